"""The response of templates at every offset in the cell, against templates moved site by site and dense sums."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr.storage
from counted_reads import CountingStore
from small_stores import converted

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate, label_counts
from tdm_dask.errors import CoordinateError, InputError, TemplateError
from tdm_dask.evaluation.offsets import offset_scan

SIGMA = 0.5


def scan_axes(ny, nx, step=(0.25, 0.25)):
    return {d: axis_coordinate(d, n, s, 0.0, "angstrom") for d, n, s in zip("yx", (ny, nx), step, strict=True)}


def lattice_sites(vectors, motif, reach):
    """Sites of a lattice with an origin, far enough around a scan that its edges see no end."""
    numbers = np.arange(-reach, reach + 1)
    corners = np.stack(np.meshgrid(numbers, numbers, indexing="ij"), -1).reshape(-1, 2) @ vectors
    return (corners[:, None] + motif).reshape(-1, 2)


def drawn(axes, sites, sigma=SIGMA):
    """A sum of Gaussians, written out."""
    y, x = (axes[d].values for d in "yx")
    y, x = np.meshgrid(y, x, indexing="ij")
    apart = (y - sites[:, 0, None, None]) ** 2 + (x - sites[:, 1, None, None]) ** 2
    return np.exp(-apart / (2 * sigma**2)).sum(0)


def structured_counts(axes, patterns, seed=0, detector=(3, 4)):
    """Poisson counts whose mean follows some images, each with weights of its own over the detector."""
    rng = np.random.default_rng(seed)
    shape = tuple(len(axes[d]) for d in "yx")
    mean = np.full((*shape, *detector), 30.0)
    for pattern in patterns:
        mean += pattern[:, :, None, None] * rng.uniform(0, 25, detector)
    return label_counts(rng.poisson(mean).astype(np.uint16), axes)


def dense(counts, template, moved, others=(), used=None, pixels=None):
    """Response, image correlation, overlap and own response of one moved template, from the equations alone."""
    used = np.ones(counts.shape[:2], bool) if used is None else used
    pixels = np.ones(counts.shape[2:], bool) if pixels is None else pixels
    d = counts.values.astype(np.float64)[used][:, pixels]
    d = (d - d.mean(0)) / d.std(0)

    def standard(values):
        s = values[used]
        return (s - s.mean()) / s.std()

    s, t = standard(moved), standard(template)
    rho = s @ d / len(d)
    image = d @ rho
    own = s
    if len(others):
        basis = np.array([standard(o) for o in others]).T
        own = s - basis @ np.linalg.lstsq(basis, s, rcond=None)[0]
    return np.linalg.norm(rho), np.corrcoef(image, s)[0, 1], s @ t / len(s), np.linalg.norm(own @ d / len(d))


MOTIF = {"A": np.array([(0.3, 0.4)]), "B": np.array([(1.4, 1.3), (0.9, 2.2)])}
SQUARE = np.diag([2.0, 3.0])
OBLIQUE = np.array([(2.0, 0.0), (1.0, 3.0)])


@pytest.mark.parametrize(
    ("vectors", "size", "step", "region"),
    [
        (SQUARE, (24, 24), (0.25, 0.25), None),
        (SQUARE, (16, 30), (0.375, 0.2), None),  # other steps along y and x, the second no part of the cell
        (OBLIQUE, (24, 24), (0.25, 0.25), None),
        (OBLIQUE, (29, 31), (0.25, 0.25), "box"),
        (SQUARE, (23, 27), (0.25, 0.25), None),
        (SQUARE, (23, 27), (0.25, 0.25), "scattered"),
    ],
)
def test_every_offset_equals_templates_moved_site_by_site(vectors, size, step, region):
    axes = scan_axes(*size, step)
    sites = {kind: lattice_sites(vectors, motif, 9) for kind, motif in MOTIF.items()}
    templates = {kind: drawn(axes, places) for kind, places in sites.items()}
    counts = structured_counts(axes, [templates["A"], templates["B"] ** 2, drawn(axes, sites["A"] + 0.4)])
    used = np.ones(size, bool)
    if region == "box":
        used[:] = False
        used[3:25, 2:28] = True
    if region == "scattered":
        used = np.random.default_rng(3).random(size) < 0.7
    pixels = np.ones((3, 4), bool)
    pixels[0, 1] = pixels[2, 2] = False
    labelled = xr.DataArray(list(templates.values()), {"template": list(templates), **axes}, ("template", "y", "x"))
    found = offset_scan(
        counts, labelled, vectors, detector_region=pixels, scan_region=None if region is None else used, step=0.5
    )
    assert float(found["unexplained"].max()) < 2.1e-3
    number = round(np.linalg.norm(vectors[0]) / 0.5), round(np.linalg.norm(vectors[1]) / 0.5)
    assert (found.sizes["a"], found.sizes["b"]) == number
    rng = np.random.default_rng(0)
    places = [(0, 0), *zip(rng.integers(0, number[0], 12), rng.integers(0, number[1], 12), strict=True)]
    for kind in MOTIF:
        others = [t for name, t in templates.items() if name != kind]
        for a, b in places:
            here = found.sel(template=kind).isel(a=a, b=b)
            offset = a / number[0] * vectors[0] + b / number[1] * vectors[1]
            np.testing.assert_allclose([here["dy"], here["dx"]], offset, atol=1e-12)
            expected = dense(counts, templates[kind], drawn(axes, sites[kind] + offset), others, used, pixels)
            names = ("response", "image_correlation", "overlap", "own_response")
            np.testing.assert_allclose([float(here[name]) for name in names], expected, atol=0.006)
    together = np.sqrt((found["response"] ** 2).sum("template"))
    np.testing.assert_allclose(found["together"], together, rtol=1e-12)


def test_ranks_and_margins_follow_from_the_maps():
    axes = scan_axes(24, 24)
    sites = {kind: lattice_sites(SQUARE, motif, 6) for kind, motif in MOTIF.items()}
    templates = np.array([drawn(axes, places) for places in sites.values()])
    counts = structured_counts(axes, [templates[0], templates[1]], seed=5)
    found = offset_scan(counts, xr.DataArray(templates, axes, ("template", "y", "x")), (2.0, 3.0))
    assert found["template"].values.tolist() == [0, 1]
    for t in range(2):
        one = found.isel(template=t)
        away = one["overlap"].values < 0.8
        for way, by in (("", "response"), ("own_", "own_response"), ("image_", "image_correlation")):
            values = one[by].values
            assert one[f"{way}rank"].item() == pytest.approx((values[away] >= values[0, 0]).mean())
            if way != "image_":
                assert one[f"{way}margin"].item() == pytest.approx(values[0, 0] / values[away].max() - 1)
                assert one[f"{way}margin_error"].item() == pytest.approx(np.sqrt(2 / 576) / values[away].max())


def test_a_template_without_a_name_has_only_the_response_of_its_own():
    axes = scan_axes(24, 24)
    template = drawn(axes, lattice_sites(SQUARE, MOTIF["A"], 6))
    counts = structured_counts(axes, [template])
    found = offset_scan(counts, xr.DataArray(template, axes, ("y", "x")), (2.0, 3.0))
    assert found.sizes["template"] == 1
    np.testing.assert_allclose(found["own_response"], found["response"], rtol=1e-12)
    np.testing.assert_allclose(found["together"], found["response"][0], rtol=1e-12)
    assert found["rank"].item() == 0


def test_the_margin_of_noise_is_within_its_error():
    axes = scan_axes(24, 24)
    template = xr.DataArray(drawn(axes, lattice_sites(SQUARE, MOTIF["A"], 6)), axes, ("y", "x"))
    beyond = []
    for seed in range(60):
        flat = label_counts(np.random.default_rng(seed).poisson(20, (24, 24, 3, 4)).astype(np.uint16), axes)
        found = offset_scan(flat, template, (2.0, 3.0))
        beyond.append(bool(found["margin"].item() > 1.645 * found["margin_error"].item()))
    # At most one in twenty: 3 of 60, and three standard deviations of that.
    assert sum(beyond) <= 8


def test_missing_patterns_and_pixels_do_not_count():
    axes = scan_axes(24, 24)
    templates = {kind: drawn(axes, lattice_sites(SQUARE, motif, 6)) for kind, motif in MOTIF.items()}
    labelled = xr.DataArray(list(templates.values()), {"template": list(templates), **axes}, ("template", "y", "x"))
    counts = structured_counts(axes, [templates["A"]])
    used = np.random.default_rng(1).random((24, 24)) < 0.8
    pixels = np.ones((3, 4), bool)
    pixels[1, 1] = False
    spoilt = counts.copy(deep=True)
    spoilt.values[~used] = 60000
    spoilt.values[:, :, 1, 1] = 1
    spoilt = spoilt.assign_coords(valid_patterns=(("y", "x"), used), valid_pixels=(("ky", "kx"), pixels))
    found = offset_scan(spoilt, labelled, (2.0, 3.0))
    expected = offset_scan(counts, labelled, (2.0, 3.0), detector_region=pixels, scan_region=used)
    np.testing.assert_allclose(found["response"], expected["response"], rtol=1e-5)


def test_all_offsets_come_from_one_read(tmp_path):
    axes = scan_axes(12, 18)
    template = xr.DataArray(drawn(axes, lattice_sites(SQUARE, MOTIF["A"], 6)), axes, ("y", "x"))
    counts = structured_counts(axes, [template.values], detector=(6, 8))
    converted(tmp_path / "scan.zarr", counts)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "scan.zarr", read_only=True))
    opened = tdm.open(store)
    found = offset_scan(opened, template, (2.0, 3.0))
    ranges = store.chunk_ranges()
    assert ranges
    assert len(ranges) == len(set(ranges))
    expected = offset_scan(counts, template, (2.0, 3.0))
    np.testing.assert_allclose(found["response"], expected["response"], rtol=1e-5)


def test_what_cannot_be_scanned_is_refused_in_words():
    axes = scan_axes(24, 24)
    template = xr.DataArray(drawn(axes, lattice_sites(SQUARE, MOTIF["A"], 6)), axes, ("y", "x"))
    counts = structured_counts(axes, [template.values])
    for cell in ((2.0,), (0.0, 3.0), [(1, 2), (2, 4)], (np.nan, 3.0)):
        with pytest.raises(InputError, match="expected its period"):
            offset_scan(counts, template, cell)
    with pytest.raises(TemplateError, match="does not repeat with the cell"):
        offset_scan(counts, template, (1.3, 1.7))
    with pytest.raises(InputError, match="too small to tell"):
        offset_scan(counts, template, (7.7, 9.1))
    with pytest.raises(TemplateError, match="constant"):
        offset_scan(counts, xr.ones_like(template), (2.0, 3.0))
    with pytest.raises(CoordinateError, match="angstrom"):
        offset_scan(label_counts(counts.values), template.drop_vars(["y", "x"]), (2.0, 3.0))


def test_too_many_harmonics_are_refused(monkeypatch):
    axes = scan_axes(24, 24)
    template = xr.DataArray(drawn(axes, lattice_sites(SQUARE, MOTIF["A"], 6)), axes, ("y", "x"))
    monkeypatch.setattr("tdm_dask.evaluation.offsets.MOST_HARMONICS", 2)
    with pytest.raises(InputError, match="at most 2 are taken"):
        offset_scan(structured_counts(axes, [template.values]), template, (2.0, 3.0))
