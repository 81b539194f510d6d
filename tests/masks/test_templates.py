"""What must hold of templates and of the files that hold sites."""

from __future__ import annotations

import json
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_scans import LIFEPO4, LIFEPO4_ARCHIVE, centre_of, with_periodic_images

from tdm_dask.axes import axis_coordinate, label_counts
from tdm_dask.errors import CoordinateError, SiteError, UnitError
from tdm_dask.masks.templates import binary_template, gaussian_template, read_sites, write_sites


def scan(shape=(20, 30), step=(0.3, 0.2), origin=(0.0, 0.0)):
    coords = {
        dim: axis_coordinate(dim, n, s, o, "angstrom")
        for dim, n, s, o in zip(("y", "x"), shape, step, origin, strict=True)
    }
    return label_counts(np.zeros((*shape, 1, 1), np.uint8), coords)


def gaussians(counts, sites, sigma):
    y, x = counts.y.values[:, None, None], counts.x.values[None, :, None]
    sites = np.asarray(sites, float)
    return np.exp(-((y - sites[:, 0]) ** 2 + (x - sites[:, 1]) ** 2) / (2 * sigma**2)).sum(axis=2)


positions = st.lists(st.tuples(st.floats(0, 5.7), st.floats(0, 5.8)), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sites=positions, sigma=st.floats(0.02, 20))
def test_gaussian_template_is_the_sum_over_sites(sites, sigma):
    counts = scan()
    template = gaussian_template(counts, sites, sigma=sigma)
    assert template.dims == ("y", "x")
    assert template.dtype == np.float64
    assert np.abs(template.values - gaussians(counts, sites, sigma)).max() < 1e-12
    assert template.attrs["sigma_angstrom"] == sigma


def test_gaussian_template_of_a_large_scan_is_the_same_tile_by_tile():
    counts = scan((140, 270), (0.31, 0.33), (4.0, -7.0))
    rng = np.random.default_rng(0)
    sites = np.stack([rng.uniform(4, 47, 200), rng.uniform(-7, 81, 200)], axis=1)
    for sigma in (0.35, 6.0):
        template = gaussian_template(counts, sites, sigma=sigma)
        assert np.abs(template.values - gaussians(counts, sites, sigma)).max() < 1e-9


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sites=positions, radius=st.floats(0.01, 2))
def test_binary_template_is_one_within_the_radius_and_at_the_nearest_position(sites, radius):
    counts = scan()
    template = binary_template(counts, sites, radius=radius).values
    y, x = counts.y.values[:, None, None], counts.x.values[None, :, None]
    s = np.array(sites)
    distance = np.hypot(y - s[:, 0], x - s[:, 1])
    clear = np.abs(distance - radius).min(axis=2) > 1e-6
    expected = (distance <= radius).any(axis=2)
    for k in range(len(s)):
        at = distance[..., k]
        assert template[at <= at.min() + 1e-12].any()
        expected |= at <= at.min() + 1e-7
    extra = clear & (template != expected)
    # A site half way between two positions may take either.
    assert not (extra & (template == 1)).any()
    assert np.all(template[clear & (distance <= radius).any(axis=2)] == 1)
    assert set(np.unique(template)) <= {0.0, 1.0}


def test_radius_below_half_a_step_marks_one_position_per_site():
    template = binary_template(scan(), [(0.31, 0.41), (3.1, 2.13)], radius="1 pm")
    assert np.argwhere(template.values).tolist() == [[1, 2], [10, 11]]


def test_kinds_make_a_template_dim_in_their_order():
    counts = scan()
    sites = {"P+O": [(1, 1)], "Li": [(2, 2), (1.0, 1.3)]}
    template = gaussian_template(counts, sites, sigma=0.35, all_name="all")
    assert template.dims == ("template", "y", "x")
    assert list(template.template.values) == ["P+O", "Li", "all"]
    assert template.sel(template="Li", drop=True).values == pytest.approx(gaussians(counts, sites["Li"], 0.35))
    both = sites["P+O"] + sites["Li"]
    assert template.sel(template="all").values == pytest.approx(gaussians(counts, both, 0.35))
    binary = binary_template(counts, sites, radius=0.4, all_name="every")
    assert binary.sel(template="every").values.tolist() == binary[:2].max("template").values.tolist()
    assert binary.sel(template="every").values.max() == 1
    assert binary.y.attrs["units"] == "angstrom"


def test_sites_up_to_three_sigma_outside_count_and_others_are_reported():
    counts = scan()
    near = [(-1.0, 2.0), (5.7 + 1.04, 5.8), (2.0, 2.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        template = gaussian_template(counts, near, sigma=0.35)
    assert np.abs(template.values - gaussians(counts, near, 0.35)).max() < 1e-12
    with pytest.warns(UserWarning, match=r"2 of 5 sites .* three sigma, 1.05 angstrom") as caught:
        more = gaussian_template(counts, [*near, (-1.06, 2.0), (-0.9, -0.9)], sigma=0.35)
    assert np.array_equal(more.values, template.values)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"1 of 3 .*\(B: 1\)"):
        gaussian_template(counts, {"A": near[:1], "B": [(2, 2), (9, 9)]}, sigma=0.35)


def test_binary_sites_count_up_to_the_radius_outside():
    counts = scan()
    with pytest.warns(UserWarning, match="1 of 3"):
        template = binary_template(counts, [(-0.3, 2.0), (-0.6, 3.0), (3.0, 3.0)], radius=0.4)
    assert template.values[0, 10] == 1
    assert template.values[0, 15] == 0
    with pytest.raises(SiteError, match="No probe position"):
        binary_template(counts, {"A": [(3, 3)], "B": [(-0.199, 0.1)]}, radius=0.2)


def test_no_site_inside_the_scan_is_an_error_that_names_the_kind():
    with pytest.raises(SiteError, match=r'2 sites of "Fe"'):
        gaussian_template(scan(), {"Li": [(1, 1)], "Fe": [(50, 50), (-9, 1)]}, sigma=0.35)


@pytest.mark.parametrize(
    "sites",
    [
        [],
        {},
        {"Li": []},
        [1, 2],
        [(1, 2, 3)],
        [(1, np.nan)],
        {"Li": [(np.inf, 1)]},
        [("a", "b")],
        [(1, 2), (3,)],
    ],
)
def test_sites_that_are_no_positions_are_refused(sites):
    with pytest.raises(SiteError):
        gaussian_template(scan(), sites, sigma=0.35)
    with pytest.raises(SiteError):
        binary_template(scan(), sites, radius=0.35)


def test_widths_must_be_positive_lengths_and_the_scan_calibrated():
    for wrong in (0, -0.35, np.nan, "3 mrad", "wide"):
        with pytest.raises(UnitError):
            gaussian_template(scan(), [(1, 1)], sigma=wrong)
        with pytest.raises(UnitError):
            binary_template(scan(), [(1, 1)], radius=wrong)
    with pytest.raises(CoordinateError, match="scan_step"):
        gaussian_template(label_counts(np.zeros((4, 4, 1, 1))), [(1, 1)], sigma=1)


def test_name_of_all_kinds_needs_kinds_and_must_be_new():
    with pytest.raises(SiteError, match="no kinds"):
        gaussian_template(scan(), [(1, 1)], sigma=1, all_name="all")
    with pytest.raises(SiteError, match="kind of that name"):
        binary_template(scan(), {"all": [(1, 1)]}, radius=1, all_name="all")


def test_scan_of_one_line_works():
    counts = scan((1, 30))
    assert gaussian_template(counts, [(0.1, 2.0)], sigma=0.3).values == pytest.approx(
        gaussians(counts, [(0.1, 2.0)], 0.3)
    )
    assert binary_template(counts, [(0.0, 2.01)], radius=0.01).values.argmax() == 10


@pytest.mark.parametrize("suffix", ["csv", "json", "txt"])
def test_sites_survive_a_file_exactly(tmp_path, suffix):
    sites = {"P+O": np.array([[0.1, 1 / 3], [2, -3e-7]]), 'odd, "kind"': np.array([[5.0, 6.0]])}
    path = tmp_path / f"sites.{suffix}"
    write_sites(path, sites)
    read = read_sites(path)
    assert list(read) == list(sites)
    for kind, expected in sites.items():
        assert np.array_equal(read[kind], expected)
    write_sites(path, [(1, 2)])
    assert {k: v.tolist() for k, v in read_sites(path).items()} == {"sites": [[1.0, 2.0]]}


def test_hand_written_site_files(tmp_path):
    path = tmp_path / "sites.csv"
    path.write_bytes("\ufeff# from an image\nX, Y\r\n1.5, 2\r\n\r\n3,4\n".encode())
    assert read_sites(path)["sites"].tolist() == [[2.0, 1.5], [4.0, 3.0]]
    path.write_text("kind,y,x\nLi,1,2\nO,3,4\nLi,5,6\n")
    assert {k: v.tolist() for k, v in read_sites(path).items()} == {"Li": [[1, 2], [5, 6]], "O": [[3, 4]]}
    path = tmp_path / "sites.json"
    path.write_text(json.dumps({"unit": "nm", "sites": {"Li": [[0.1, 0.2]]}}))
    assert read_sites(path)["Li"] == pytest.approx(np.array([[1.0, 2.0]]))
    path.write_text(json.dumps({"Li": [[0.1, 0.2]]}))
    assert read_sites(str(path))["Li"].tolist() == [[0.1, 0.2]]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "1,2\n3,4\n", "Line 1 "),
        ("a.csv", "", "header"),
        ("a.csv", "y,x,z\n1,2,3\n", "header"),
        ("a.csv", "y,y,x\n1,2,3\n", "header"),
        ("a.csv", "y,x\n", "no sites"),
        ("a.csv", "kind,y,x\nLi,1,2\n\nLi,1,b\n", "Line 4 "),
        ("a.csv", "y,x\n1,2,3\n", "Line 2 "),
        ("a.csv", "y,x\n1\n", "Line 2 "),
        ("a.csv", "y,x\n1,nan\n", "Line 2 "),
        ("a.csv", "kind,y,x\n,1,2\n", "Line 2 "),
        ("a.json", '{"Li":\n [[1, 2]', "Line 2 "),
        ("a.json", '{"Li": [[1, 2], [3]]}', "Entry 2 "),
        ("a.json", '{"Li": [[1, true]]}', "Entry 1 "),
        ("a.json", '{"Li": 3}', "not a list"),
        ("a.json", "3", "mapping"),
        ("a.json", '{"Li": []}', "no sites"),
    ],
)
def test_site_files_that_cannot_be_read_say_where(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SiteError, match=says):
        read_sites(path)


def test_missing_and_binary_site_files(tmp_path):
    with pytest.raises(SiteError, match="cannot be read"):
        read_sites(tmp_path / "none.csv")
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SiteError, match="cannot be read"):
        read_sites(path)
    path = tmp_path / "x.json"
    path.write_text('{"unit": "mrad", "sites": {"Li": [[1, 2]]}}')
    with pytest.raises(UnitError, match="unit"):
        read_sites(path)


@pytest.mark.parametrize(("name", "dim", "period"), [(LIFEPO4, "x", 18), (LIFEPO4_ARCHIVE, "y", 32)])
def test_templates_of_the_simulated_crystal_repeat_with_it(name, dim, period, simulated):
    counts, meta = simulated(name)
    sites = with_periodic_images(meta["atom_columns_angstrom_yx"], meta["periodic_cell_angstrom"])
    label = scan(counts.shape[:2], meta["scan_step_angstrom"])
    with pytest.warns(UserWarning, match="dropped"):
        template = gaussian_template(label, sites, sigma=0.35)
    assert list(template.template.values) == list(sites)
    assert set(sites) == {"Li", "Fe", "P+O", "O"}
    # Two cells along one axis; near the border sites beyond three sigma are missing.
    first, second = (template.isel({dim: slice(start, start + period - 8)}) for start in (4, 4 + period))
    assert first.values == pytest.approx(second.values, abs=1e-5)
    # Atom columns scatter: where a template is 1, dark-field counts are above the mean of the scan.
    (cy, cx), (ky, kx) = centre_of(meta, counts.shape), np.indices(counts.shape[2:])
    far = (np.hypot(ky - cy, kx - cx) * meta["angle_step_mrad"][0] > 30).ravel()
    dark = counts.reshape(*counts.shape[:2], -1)[..., far].sum(axis=2, dtype=float)
    for kind in ("Fe", "P+O"):
        weight = template.sel(template=kind).values
        assert (dark * weight).sum() / weight.sum() > 1.1 * dark.mean()


@pytest.mark.parametrize(
    "make",
    [partial(gaussian_template, sigma=0.4, all_name="all"), partial(binary_template, radius=0.4, all_name="all")],
)
def test_templates_of_lazy_counts_are_lazy_and_a_graph_carries_their_sites_alone(make):
    sites = {"A": [(1.0, 2.0), (3.1, 4.0)], "B": [(0.2, 0.2)]}
    counts = scan((300, 400), (0.05, 0.05))
    lazy = make(counts.chunk(y=100), sites)
    assert lazy.chunks is not None
    graph = len(pickle.dumps(dict(lazy.__dask_graph__())))
    assert graph < 50_000 < lazy.nbytes
    xr.testing.assert_identical(lazy.compute(), make(counts, sites))
