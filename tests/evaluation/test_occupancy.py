"""Columns against their equals: responses between probe positions, tables with known deviations, limits."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_dask.axes import axis_coordinate
from tdm_dask.errors import InputError, SiteError
from tdm_dask.evaluation.occupancy import column_responses, detection_limit, occupancy_table
from tdm_dask.plot.occupancy import plot_detection, plot_occupancy

CELL = (24.0, 24.0)
SITES = {
    "A": np.array([(2.0 + 4 * i, 2.0 + 4 * j) for i in range(6) for j in range(6)]),
    "B": np.array([(4.0 * i, 4.0 * j) for i in range(6) for j in range(6)]),
}


def scan(names, step=0.3, size=24.0):
    n = round(size / step)
    coords = {dim: axis_coordinate(dim, n, step, 0.0, "angstrom") for dim in ("y", "x")}
    return xr.DataArray(np.zeros((len(names), n, n)), {"template": list(names), **coords}, ("template", "y", "x"))


def drawn(heights, noise=0.0, seed=0):
    """Images with a Gaussian of a known height at every column."""
    images = scan(SITES)
    rng = np.random.default_rng(seed)
    for kind, places in SITES.items():
        values = rng.normal(0, noise, images.shape[1:])
        for place, height in zip(places, heights[kind], strict=True):
            away = (images.y - place[0]) ** 2 + (images.x - place[1]) ** 2
            values = values + (height * np.exp(-away / 0.5)).values
        images.loc[{"template": kind}] = values
    return images


@settings(max_examples=25, deadline=None)
@given(
    place=st.tuples(st.floats(2.0, 8.0), st.floats(2.0, 8.0)),
    step=st.floats(0.1, 0.4),
    surface=st.tuples(*[st.floats(-5, 5)] * 4),
)
def test_a_response_is_that_of_a_surface_wherever_the_probes_lie(place, step, surface):
    a, by, bx, c = surface
    image = scan("A", step, 10.0)[0]
    v, u = image.y - place[0], image.x - place[1]
    values = a + by * v + bx * u + c * (v**2 + u**2)
    found = column_responses(image + values, [place], radius=1.2)
    assert found.values[0] == pytest.approx(a, abs=1e-6)


def test_responses_follow_templates_and_leave_out_the_border():
    images = scan("AB") + xr.DataArray([1.0, 2.0], dims="template")
    found = column_responses(images, [(5.0, 5.0), (0.1, 5.0), (5.0, 40.0)])
    assert found.dims == ("template", "column")
    np.testing.assert_allclose(found.values[:, 0], [1.0, 2.0])
    assert np.isnan(found.values[:, 1:]).all()


def test_patterns_that_are_missing_are_left_out_of_a_fit():
    image = scan("A")[0] + 3.0
    image[16, 17] = np.nan
    assert column_responses(image, [(5.0, 5.0)]).item() == pytest.approx(3.0)


def test_a_radius_below_the_step_is_refused():
    with pytest.raises(InputError, match="use a larger radius"):
        column_responses(scan("A"), [(5.0, 5.0)], radius=0.3)


def test_a_table_tells_what_deviates_and_by_how_much():
    rng = np.random.default_rng(7)
    heights = {kind: rng.normal(1.0, 0.02, len(places)) for kind, places in SITES.items()}
    heights["A"][14] = 0.4
    suspect = {"kind": "A", "site": SITES["A"][14].tolist(), "defect": "vacancy", "occupancy": 0.4}
    table = occupancy_table(drawn(heights), SITES, CELL, suspects=[suspect])
    rows = table.isel(column=(table.state == "vacancy").values)
    assert rows.sizes["column"] == 1
    intact = np.delete(heights["A"], 14)
    far = np.delete(SITES["A"], 14, 0)
    intact = intact[np.hypot(*(far - SITES["A"][14]).T) >= 3]
    assert rows.deviation.item() == pytest.approx(0.4 - intact.mean(), rel=0.05)
    assert rows.scatter.item() == pytest.approx(intact.std(ddof=1), rel=0.1)
    assert rows.ratio.item() == pytest.approx(rows.deviation.item() / rows.scatter.item())
    assert rows.occupancy.item() == 0.4
    near = table.isel(column=(table.state == "near").values)
    assert set(near.kind.values) == {"B"}
    assert (np.hypot(near.y - suspect["site"][0], near.x - suspect["site"][1]) < 3).all()
    # Columns of the border are in the scan by halves, and left out.
    assert (table.kind == "B").sum() == 25
    assert np.abs(table.ratio.values[table.state.values == "intact"]).max() < 4


def test_an_added_column_is_compared_with_empty_places():
    heights = {kind: np.ones(len(places)) for kind, places in SITES.items()}
    images = drawn(heights, noise=0.01)
    place = np.array([12.0, 14.0])
    away = (images.y - place[0]) ** 2 + (images.x - place[1]) ** 2
    images = images + 0.5 * np.exp(-away / 0.5)
    empty = np.array([(4.0 * i, 2.0 + 4.0 * j) for i in range(6) for j in range(6)])
    suspect = {"kind": "A", "site": place.tolist(), "defect": "interstitial", "occupancy": 1.0}
    table = occupancy_table(images, SITES, CELL, suspects=[suspect], empty=empty)
    row = table.isel(column=(table.state == "interstitial").values)
    assert row.sizes["column"] == 1
    assert row.deviation.item() == pytest.approx(0.5, abs=0.05)
    assert row.ratio.item() > 20


def test_too_few_intact_columns_are_refused():
    heights = {kind: np.ones(len(places)) for kind, places in SITES.items()}
    suspects = [{"kind": "A", "site": place.tolist()} for place in SITES["A"][3:]]
    with pytest.raises(SiteError, match="a scatter needs 4"):
        occupancy_table(drawn(heights), SITES, CELL, suspects=suspects)


@settings(max_examples=25, deadline=None)
@given(slope=st.floats(4, 100), sign=st.sampled_from([-1, 1]), threshold=st.floats(1, 3.5))
def test_the_limit_of_a_proportional_response(slope, sign, threshold):
    occupancy = np.array([0.0, 0.3, 0.6, 0.9])
    found = detection_limit(occupancy, sign * slope * (1 - occupancy), threshold=threshold)
    assert found == pytest.approx(1 - threshold / slope, abs=2e-4)


def test_what_is_never_seen_has_no_limit():
    assert np.isnan(detection_limit([0.0, 0.5], [2.0, 1.0]))
    with pytest.raises(InputError, match="two or more"):
        detection_limit([0.0], [2.0])


def test_figures_show_every_kind_and_state():
    heights = {kind: np.random.default_rng(1).normal(1, 0.05, len(places)) for kind, places in SITES.items()}
    suspect = {"kind": "A", "site": SITES["A"][14].tolist(), "defect": "vacancy", "occupancy": 0.4}
    axes = plot_occupancy(occupancy_table(drawn(heights), SITES, CELL, suspects=[suspect]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A", "B"]
    assert any("vacancy" in text.get_text() for text in axes.texts)
    curve = plot_detection({"O": ([0.0, 0.5], [-20.0, -11.0])}, limits={"O": 0.8})
    assert curve.get_legend().get_texts()[0].get_text() == "O: seen below 80%"
