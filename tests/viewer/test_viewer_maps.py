"""What the page draws lies where it belongs, and what the mouse does to it comes out as it was meant."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from tdm_dask.axes import DETECTOR, SCAN, axis_coordinate
from tdm_dask.viewer.engine import Engine

pytest.importorskip("panel")

from bokeh.document import Document
from viewer_scans import calibrated, random_counts

from tdm_dask.viewer import maps

LIGHT = maps.Theme.named("light")


def image(shape=(20, 30), step=0.5, dims=SCAN, origin=0.0, unit="angstrom"):
    coords = {dim: axis_coordinate(dim, n, step, origin, unit) for dim, n in zip(dims, shape, strict=True)}
    return xr.DataArray(np.arange(float(np.prod(shape))).reshape(shape), coords, dims, attrs={"units": "counts"})


def frame(shown):
    data = shown.source.data
    return tuple(data[name][0] for name in ("x", "y", "dw", "dh"))


def test_an_image_fills_its_axes_with_the_first_row_on_top():
    shown = maps.ScanMap(image(), LIGHT, "scan")
    shown.show(image(), "an <image>", (0, 100))
    assert frame(shown) == (-0.25, -0.25, 15.0, 10.0)
    assert (shown.figure.y_range.start, shown.figure.y_range.end) == (9.75, -0.25)
    np.testing.assert_array_equal(shown.source.data["image"][0], image())
    assert shown.title.object == "<strong>an &lt;image&gt;</strong>"
    assert (shown.mapper.low, shown.mapper.high) == (0, 599)
    assert "counts" in shown.hover.tooltips[1][1]


@pytest.mark.parametrize(("size", "factor"), [(1024, 1), (1025, 2), (2049, 3), (3001, 3)])
def test_a_large_image_is_averaged_and_stays_where_it_was(size, factor):
    large = image((2, size), step=1.0)
    shown = maps.ScanMap(large, LIGHT, "scan")
    shown.show(large, "large", (0, 100))
    values = shown.source.data["image"][0]
    assert values.shape[1] <= maps.MOST_PIXELS
    assert values.shape == (2, size // factor)
    x, _, width, _ = frame(shown)
    assert width / values.shape[1] == factor
    np.testing.assert_allclose(values[0, -1], large.values[0, (values.shape[1] - 1) * factor :][:factor].mean())
    assert x == -0.5


def test_a_mask_of_the_full_detector_lies_where_that_of_the_proxy_does():
    proxy = image((13, 13), 2.0, DETECTOR, -12.5, "mrad")
    shown = maps.DetectorMap(proxy, LIGHT, "mask", 8.0, signed=True)
    shown.show(proxy, "of the proxy")
    assert frame(shown) == (-13.5, -13.5, 26.0, 26.0)
    shown.show(image((27, 27), 1.0, DETECTOR, -13.0, "mrad"), "of 27 pixels, one of which is in no bin")
    assert frame(shown) == (-13.5, -13.5, 27.0, 27.0)
    assert (shown.figure.x_range.start, shown.figure.x_range.end) == (-13.5, 12.5)


@pytest.mark.parametrize(("shape", "ratio"), [((20, 30), 1.5), ((1, 500), 6.0), ((500, 1), 0.4), ((20, 80), 4.0)])
def test_scans_of_a_line_are_seen(shape, ratio):
    assert maps.ScanMap(image(shape), LIGHT, "scan").figure.aspect_ratio == pytest.approx(ratio)


def test_what_is_not_known_does_not_decide_the_contrast():
    some = image()
    some[3:7] = np.nan
    shown = maps.ScanMap(some, LIGHT, "scan")
    shown.show(some, "some", (0, 100))
    assert (shown.mapper.low, shown.mapper.high) == (0, 599)
    shown.show(xr.full_like(some, np.nan), "none", (0, 100))
    shown.show(xr.full_like(some, 3.0), "all the same", (0, 100))
    assert shown.mapper.low < shown.mapper.high
    for signed in (True, False):
        pattern = image((6, 6), 2.0, DETECTOR, -5.0, "mrad")
        detector = maps.DetectorMap(pattern, LIGHT, "pattern", None, signed=signed)
        for values in (pattern, xr.zeros_like(pattern), xr.full_like(pattern, np.nan)):
            detector.show(values, "values")
            assert detector.mapper.low < detector.mapper.high


@pytest.fixture
def sites():
    told = []
    made = maps.Sites(maps.ScanMap(image(), LIGHT, "scan"), told.append)
    made.told = told
    return made


def test_sites_that_are_shown_are_not_told_and_those_of_the_mouse_are(sites):
    sites.show({"Li": np.array([[1.0, 2.0], [3.0, 4.0]]), "P+O": np.empty((0, 2))}, "P+O")
    assert sites.told == []
    data = {name: list(values) for name, values in sites.source.data.items()}
    # A click in the browser: what it does not know of the new site is what is set for those, or nothing.
    sites.source.data = data | {
        "x": [*data["x"], 6.0],
        "y": [*data["y"], 5.0],
        **{name: [*data[name], ""] for name in ("kind", "colour", "marker")},
    }
    (found,) = sites.told
    assert list(found) == ["Li", "P+O"]
    np.testing.assert_array_equal(found["P+O"], [[5.0, 6.0]])
    np.testing.assert_array_equal(found["Li"], [[1.0, 2.0], [3.0, 4.0]])
    sites.show(found, "P+O")
    sites.source.data = {name: list(values)[1:] for name, values in sites.source.data.items()}  # deleted
    np.testing.assert_array_equal(sites.told[-1]["Li"], [[3.0, 4.0]])


def test_many_kinds_are_told_apart_by_colour_and_marker(sites):
    kinds = {f"kind {n}": np.array([[1.0, n]]) for n in range(3 * maps.KINDS)}
    sites.show(kinds, "kind 0")
    looks = set(zip(sites.source.data["colour"], sites.source.data["marker"], strict=True))
    assert len(looks) == 3 * maps.KINDS
    assert set(sites.source.data["marker"]) == set(maps.MARKERS)


def test_a_region_is_told_once_its_edges_are_all_there():
    told = []
    on = maps.ScanMap(image(), LIGHT, "scan")
    region = maps.Region(on, told.append)
    region.show((1.0, 3.0, 2.0, 5.0))
    assert told == []
    document = Document()
    document.add_root(on.figure)
    for edge, value in (("top", 2.0), ("bottom", 4.0), ("left", 6.0), ("right", 3.0)):
        setattr(region.box, edge, value)
    (waiting,) = document.session_callbacks
    assert told == []
    waiting.callback()
    assert told == [(2.0, 4.0, 3.0, 6.0)]
    region.show(None)
    region._tell()
    assert len(told) == 1


def test_regions_are_whole_probe_positions_inside_the_scan():
    engine = Engine(calibrated(random_counts((20, 30, 4, 4)), step=0.5))
    region = (5, 15, 3, 9)
    edges = engine.edges(region)
    assert edges == (2.25, 7.25, 1.25, 4.25)
    assert engine.region(edges, region) == region
    moved = tuple(edge + 0.6 for edge in edges)
    assert engine.region(moved, region) == (6, 16, 4, 10)
    for shift, expected in ((90.0, (10, 20, 24, 30)), (-90.0, (0, 10, 0, 6))):
        assert engine.region(tuple(edge + shift for edge in edges), region) == expected
    assert engine.region((2.25, 90.0, 1.25, 4.25), region) == (5, 20, 3, 9)  # one edge was drawn beyond the scan
    assert engine.region((2.25, 2.3, 50.0, 60.0), region) == (5, 6, 29, 30)


def test_circles_tell_which_was_dragged_and_how_far():
    told = []
    pattern = image((12, 12), 2.0, DETECTOR, -11.0, "mrad")
    circles = maps.DetectorMap(pattern, LIGHT, "p", 8.0, signed=False).circles("red", lambda *a: told.append(a), "drag")
    circles.show([4.0, 8.0])
    assert told == []
    data = {name: np.array(values) for name, values in circles._handles.data.items()}
    data["x"][1], data["y"][1] = 3.0, 4.0
    circles._handles.data = data
    assert told == [(1, 5.0)]
    circles.show([])
    assert list(circles._rings.data["radius"]) == []
