"""workflows/series.py at a reduced size, against dense float64 images of the scans that it simulated; its drawings."""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.interpolate import RegularGridInterpolator
from zarr.storage import LocalStore, WrapperStore

import tdm_dask as tdm
from tdm_dask.errors import InputError
from tdm_dask.plot.series import plot_image_series, plot_series

pytestmark = pytest.mark.long

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SCANS = {
    "defocus": ["focus-defocus+0A", "focus-defocus+60A"],
    "thickness": ["thickness-9.853nm", "thickness-20.18nm"],
}
KINDS = ["Fe", "P+O", "O", "Li"]
PEARSON, RIDGE = "TDM, Pearson", "TDM, ridge"


def run(out, stores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["series.py", "--quick", "--out", str(out), "--stores", str(stores)])
        patch.syspath_prepend(str(WORKFLOWS))
        return runpy.run_path(str(WORKFLOWS / "series.py"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("abtem")
    out = tmp_path_factory.mktemp("series")
    names = run(out, out / "stores")
    return out, json.loads((out / "series.json").read_text(encoding="utf-8")), names


@pytest.fixture(scope="module")
def dense(results):
    """Of each scan: counts (p, q) in the disk, ABF image, templates of each kind and all, their sites; plain NumPy."""
    found = {}
    for name in [*SCANS["defocus"], *SCANS["thickness"]]:
        counts = tdm.open(results[0] / "stores" / f"{name}.zarr")
        truth = json.loads(counts.attrs["truth"])
        values = counts.values.astype(float).reshape(-1, counts.shape[2] * counts.shape[3])
        y, x = np.meshgrid(counts.y, counts.x, indexing="ij")
        shifts = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]) * truth["cell"]
        sites = {kind: (np.array(truth["sites"][kind])[:, None] + shifts).reshape(-1, 2) for kind in KINDS}
        rows = [
            sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 0.35**2)) for a, b in sites[kind]).ravel()
            for kind in KINDS
        ]
        found[name] = {
            "d": values[:, (tdm.disk(counts, 24.0) > 0.5).values.ravel()],
            "abf": values @ tdm.annulus(counts, 11.0, 23.5).values.ravel(),
            "templates": dict(zip([*KINDS, "all"], [*rows, sum(rows)], strict=True)),
            "grid": np.stack([y.ravel(), x.ravel()], -1),
            "sites": sites,
        }
    return found


def pearson(scan, kind):
    t = scan["templates"][kind]
    standard = (scan["d"] - scan["d"].mean(0)) / scan["d"].std(0)
    mask = (t - t.mean()) / t.std() @ standard / len(t)
    return mask, standard @ mask


def r(one, other):
    return np.corrcoef(one, other)[0, 1]


def test_every_figure_is_written(results):
    for series in SCANS:
        for name in ("", "-images", "-masks"):
            assert (results[0] / f"series-{series}{name}.png").stat().st_size > 20_000


@pytest.mark.parametrize("series", SCANS)
def test_likeness_of_images_is_that_of_dense_ones(results, dense, series):
    numbers = results[1][series]
    for n, name in enumerate(SCANS[series]):
        scan = dense[name]
        all_columns = scan["templates"]["all"]
        assert numbers["R_all"]["inverted ABF"][n] == pytest.approx(r(-scan["abf"], all_columns), abs=0.01)
        for kind in KINDS:
            expected = r(pearson(scan, kind)[1], scan["templates"][kind])
            assert numbers["R_not_held_out"][PEARSON][kind][n] == pytest.approx(expected, abs=0.01), (name, kind)


@pytest.mark.parametrize("series", SCANS)
def test_masks_are_compared_with_those_of_the_other_series(results, dense, series):
    reference = dense[{"defocus": "thickness-20.18nm", "thickness": "focus-defocus+0A"}[series]]
    numbers = results[1][series]
    for kind in [*KINDS, "all"]:
        expected = [r(pearson(dense[name], kind)[0], pearson(reference, kind)[0]) for name in SCANS[series]]
        np.testing.assert_allclose(numbers["similarity"][PEARSON][kind], expected, atol=0.01)
    same = numbers["nm"].index(min(numbers["nm"], key=abs) if series == "defocus" else max(numbers["nm"]))
    for name, least in ((PEARSON, 0.98), (RIDGE, 0.7)):
        for kind, values in numbers["similarity"][name].items():
            assert least < values[same] < 1, "no mask is compared with itself"
            assert values[same] == max(values), kind
            if kind != "all":
                assert numbers["R_by_reference"][name][kind][1 - same] < numbers["R_not_held_out"][name][kind][1 - same]


def test_contrast_over_the_gaps_is_that_of_a_dense_abf_image(results, dense):
    for series, names in SCANS.items():
        for n, name in enumerate(names):
            scan = dense[name]
            image, every = -scan["abf"], np.concatenate(list(scan["sites"].values()))
            distance = np.hypot(*(scan["grid"][:, None] - every).transpose(2, 0, 1)).min(1)
            gaps = image[distance >= np.quantile(distance, 0.9) - 1e-9].mean()
            steps = [np.unique(axis) for axis in scan["grid"].T]
            between = RegularGridInterpolator(steps, image.reshape([len(axis) for axis in steps]))
            for kind in KINDS:
                places = scan["sites"][kind]
                inside = places[((places >= 0) & (places <= scan["grid"].max(0))).all(1)]
                expected = (between(inside).mean() - gaps) / image.std()
                assert results[1][series]["over_gaps"]["inverted ABF"][kind][n] == pytest.approx(expected, rel=1e-4)


def test_ridge_masks_keep_columns_apart_better_and_held_out_is_never_much_better(results):
    for series in SCANS:
        numbers = results[1][series]
        assert (np.array(numbers["excess"][RIDGE]) < numbers["excess"][PEARSON]).all()
        for name in (PEARSON, RIDGE):
            for kind in KINDS:
                held, seen = (np.array(numbers[key][name][kind]) for key in ("R", "R_not_held_out"))
                assert (held < seen + 0.03).all(), (name, kind)
                assert (np.array(numbers["to_others"][RIDGE][kind]) > 2).all(), kind


def test_abf_loses_li_with_defocus_and_ridge_does_not(results):
    over = results[1]["defocus"]["over_gaps"]
    assert over["inverted ABF"]["Li"][1] < 0.5 * over["inverted ABF"]["Li"][0]
    assert over[RIDGE]["Li"][1] > 0.8 * over[RIDGE]["Li"][0]
    low, high = results[1]["defocus"]["half_of_the_contrast_is_kept_between_nm"]["inverted ABF"]["Li"]
    first, last = over["inverted ABF"]["Li"]
    assert low is None
    assert high == pytest.approx(6 * 0.5 * first / (first - last))


def test_a_contrast_is_kept_between_crossings_on_either_side(results):
    kept = results[2]["kept_between"]
    values = [-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0]
    assert kept(values, np.array([0, 1, 2, 2, 2, 0, 9.0]), 3) == [pytest.approx(-4), pytest.approx(3)]
    assert kept(values, np.array([2, 3, 2, 2, 2, 3, 2.0]), 3) == [None, None]
    assert kept(values, np.array([4, 1, 1, 1, 1, 1, 1.0]), 0) == [None, pytest.approx(-6 + 2 * 2 / 3)]
    assert kept(values, np.array([1, 1, 1, -1, 1, 1, 1.0]), 3) is None, "there is no contrast to be kept"


def test_the_control_lies_between_the_columns(results, dense):
    moved = results[2]["EVERY_SITE"][results[2]["MOVED"]]
    every = np.concatenate(list(dense["focus-defocus+0A"]["sites"].values()))
    assert np.hypot(*(moved[:, None] - every).transpose(2, 0, 1)).min() > 0.8


class CountingStore(WrapperStore):
    """Notes which range of which shard is read."""

    def __init__(self, store):
        super().__init__(store)
        self.reads = []

    async def get(self, key, prototype=None, byte_range=None):
        if key.startswith("counts/c/") and getattr(byte_range, "start", None) is not None:
            self.reads.append((key, byte_range.start))
        return await super().get(key, prototype, byte_range)


@pytest.mark.filterwarnings("ignore:.*sites lie more than.*")
def test_a_scan_is_read_three_times(results):
    name, where = SCANS["defocus"][1], results[0] / "stores"
    store = CountingStore(LocalStore(where / f"{name}.zarr", read_only=True))
    found = results[2]["measured"](tdm.open(store), results[2]["REFERENCES"]["defocus"])
    np.testing.assert_allclose(found["R"], results[2]["FOUND"]["defocus"]["R"][1], atol=1e-6)
    assert max(Counter(store.reads).values()) == 3


def test_scans_that_are_there_are_not_simulated_again(results, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a scan was simulated again")

    monkeypatch.setattr("tdm_dask.simulation.simulated_scan.mean_intensities", refuse)
    monkeypatch.setattr(results[2]["known_scan"], "write", lambda *_: None)
    before = {path: path.stat().st_mtime_ns for path in (results[0] / "stores").rglob("*") if path.is_file()}
    focus, thickness = results[2]["simulated"]()
    assert [len(focus), len(thickness)] == [2, 2]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_curves_are_drawn_as_given_whatever_the_order_of_dims():
    table = xr.DataArray([[1.0, 2, 3], [4, 5, 6]], {"made_by": ["ABF", "TDM"], "thickness": [20.0, 40, 90]}, name="R")
    table["thickness"].attrs["units"] = "nm"
    style = {"TDM": {"color": "#123456"}}
    axes = plot_series(table, "thickness", spread=0 * table + 0.5, mark=40, style=style, title="Li")
    lines = {line.get_label(): line for line in axes.lines}
    assert [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")] == ["thickness (nm)", "R", "Li"]
    np.testing.assert_array_equal(lines["TDM"].get_ydata(), [4, 5, 6])
    np.testing.assert_array_equal(lines["TDM"].get_xdata(), [20, 40, 90])
    assert lines["TDM"].get_color() == "#123456" != lines["ABF"].get_color()
    assert len(axes.collections) == 2, "error bars of both curves"
    with pytest.raises(InputError, match="expected"):
        plot_series(table, "defocus")
    with pytest.raises(InputError, match="expected"):
        plot_series(table.drop_vars("made_by"), "thickness")


@pytest.mark.parametrize("plane", [("y", "x"), ("ky", "kx")])
def test_a_series_of_images_or_masks_has_a_row_for_each_kind(plane):
    unit = {"y": "angstrom", "ky": "mrad"}[plane[0]]
    steps = {dim: (dim, np.arange(-4.0, 5), {"units": unit}) for dim in plane}
    values = np.random.default_rng(1).normal(size=(3, 2, 9, 9))
    images = xr.DataArray(values, {"nm": [-6.0, 0, 6], "kind": ["Li", "O"]} | steps, ("nm", "kind", *plane))
    grid = plot_image_series(images, "nm", semi_angle=3.0 if plane[0] == "ky" else None)
    assert grid.shape == (2, 3)
    np.testing.assert_array_equal(grid[1, 0].images[0].get_array(), values[0, 1])
    assert [axes.get_title() for axes in grid[0]] == ["−6", "0", "6"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["Li", "O"]
    if plane[0] == "ky":
        low, high = grid[0, 0].images[0].get_clim()
        assert low == -high, "white is zero"
        left, right = grid[0, 0].get_xlim()
        assert left == -right
        assert 3.0 < right < 4.0, "the disk and its edge, and no more"
    with pytest.raises(InputError, match="expected"):
        plot_image_series(images[0], "nm")
