"""Displacements of columns from the centre of their neighbours, and their figure."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.quiver import Quiver

from tdm_dask.axes import axis_coordinate
from tdm_dask.columns.displacement import displacements
from tdm_dask.columns.refinement import refine_columns
from tdm_dask.errors import InputError, SiteError
from tdm_dask.plot.displacements import DIRECTIONS, plot_displacements


def perovskite(ny, nx, a=4.0):
    """Ti in the middle of cells, and the oxygen-only columns on their edges."""
    i, j = (index.ravel() for index in np.indices((ny, nx)))
    ti = np.column_stack([i + 0.5, j + 0.5]) * a
    oxygen = {(p, q + 0.5) for p in range(ny + 1) for q in range(nx)} | {
        (p + 0.5, q) for p in range(ny) for q in range(nx + 1)
    }
    return ti, np.array(sorted(oxygen)) * a


@settings(max_examples=40, deadline=None)
@given(ny=st.integers(1, 4), nx=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_displacements_are_those_that_were_given(ny, nx, seed):
    rng = np.random.default_rng(seed)
    ti, oxygen = perovskite(ny, nx)
    shift, own = rng.uniform(-0.3, 0.3, 2), rng.uniform(-0.3, 0.3, ti.shape)
    found = displacements(rng.permutation(ti + own + shift), rng.permutation(oxygen + shift))
    assert (found["flag"] == "ok").all()
    order = np.lexsort((np.rint(found.x / 4 - 0.5), np.rint(found.y / 4 - 0.5)))
    np.testing.assert_allclose(np.stack([found.dy, found.dx], 1)[order], own, atol=1e-12)


def test_the_centre_is_of_the_nearest_four_columns_of_a_dense_search():
    rng = np.random.default_rng(1)
    ti, oxygen = perovskite(5, 4)
    ti, oxygen = ti + rng.normal(0, 0.2, ti.shape), oxygen + rng.normal(0, 0.2, oxygen.shape)
    found = displacements(ti, oxygen)
    for n, place in enumerate(ti):
        nearest = oxygen[np.argsort(np.hypot(*(oxygen - place).T))[:4]]
        np.testing.assert_allclose([found.dy[n], found.dx[n]], place - nearest.mean(0), atol=1e-12)


def test_columns_without_all_their_neighbours_have_no_displacement():
    ti, oxygen = perovskite(3, 3)
    oxygen[np.hypot(*(oxygen - (0, 2)).T) < 0.1] = np.nan
    ti = np.vstack([ti, [(np.nan, 1.0)]])
    found = displacements(ti, oxygen)
    assert found["flag"].values.tolist() == ["incomplete"] + ["ok"] * 8 + ["no position"]
    assert found["neighbours"].values.tolist() == [3] + [4] * 8 + [0]
    assert np.isnan(found[["dy", "dx", "error_dy"]].to_array().values[:, [0, -1]]).all()
    # A reach that takes in the next ones would hide that one is missing.
    assert displacements(ti, oxygen, reach="0.7 nm")["flag"].values.tolist()[0] == "ok"


def test_errors_follow_from_those_of_the_positions():
    def positions(places, error):
        names = {"y": places[:, 0], "x": places[:, 1], "error_y": error, "error_x": 2 * error}
        return xr.Dataset({name: ("column", values) for name, values in names.items()})

    ti, oxygen = perovskite(1, 1)
    found = displacements(positions(ti, np.array([0.3])), positions(oxygen, np.array([0.1, 0.2, 0.3, 0.4])))
    expected = np.sqrt(0.09 + (0.01 + 0.04 + 0.09 + 0.16) / 16)
    np.testing.assert_allclose(found["error_dy"], [expected])
    np.testing.assert_allclose(found["error_dx"], [2 * expected])
    assert np.isnan(displacements(ti, oxygen)["error_dy"]).all()


def test_what_refinement_found_can_be_used_as_it_is():
    steps = {dim: axis_coordinate(dim, 60, 0.2, unit="angstrom") for dim in ("y", "x")}
    ti, oxygen = perovskite(2, 2)
    ti, oxygen = ti + 2, oxygen + 2
    moved = ti + np.array([0.2, -0.1])
    y, x = (steps[dim].values for dim in ("y", "x"))
    planes = [
        sum(np.exp(-((y[:, None] - a) ** 2 + (x - b) ** 2) / 0.5) for a, b in places) for places in (moved, oxygen)
    ]
    images = xr.DataArray(planes, coords={"template": ["Ti", "O"], **steps}, dims=("template", "y", "x"))
    columns = refine_columns(images, {"Ti": ti, "O": oxygen}, radius=1.2)
    kinds = [columns.isel(column=columns.kind == kind) for kind in ("Ti", "O")]
    found = displacements(*kinds)
    np.testing.assert_allclose(found["dy"], 0.2, atol=2e-3)
    np.testing.assert_allclose(found["dx"], -0.1, atol=2e-3)
    assert found["kind"].values.tolist() == ["Ti"] * 4
    with pytest.raises(SiteError, match="kinds O, Ti"):
        displacements(columns, kinds[1])


def test_what_makes_no_sense_is_refused():
    ti, oxygen = perovskite(1, 1)
    with pytest.raises(SiteError, match="There are 3 neighbours"):
        displacements(ti, oxygen[:3])
    with pytest.raises(InputError, match="number of neighbours is 1"):
        displacements(ti, oxygen, number=1)
    with pytest.raises(SiteError, match="shape"):
        displacements(np.zeros((3, 3)), oxygen)
    with pytest.raises(SiteError, match="has no"):
        displacements(xr.Dataset(), oxygen)
    with pytest.raises(SiteError, match="not numbers"):
        displacements([("a", "b")], oxygen)


@pytest.fixture
def picture():
    steps = {"y": axis_coordinate("y", 20, 0.4, unit="angstrom"), "x": axis_coordinate("x", 30, 0.4, unit="angstrom")}
    return xr.DataArray(np.random.default_rng(2).random((20, 30)), coords=steps, dims=("y", "x"))


def test_arrows_are_drawn_where_and_along_what_they_show(picture):
    ti, oxygen = perovskite(2, 2)
    found = displacements(ti + 0.2 * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]), oxygen)
    axes = plot_displacements(found, picture, magnification=4.0)
    (arrows,) = (drawn for drawn in axes.collections if isinstance(drawn, Quiver))
    np.testing.assert_allclose(arrows.XY, np.column_stack([found.x, found.y]))
    np.testing.assert_allclose(np.column_stack([arrows.U, arrows.V]), np.column_stack([found.dx, found.dy]))
    assert arrows.scale == 0.25
    assert len({tuple(colour) for colour in arrows.to_rgba(arrows.get_array()).round(3)}) == 4
    # The image runs downwards, as scans do.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert DIRECTIONS(0.0) == DIRECTIONS(1.0)
    plot_displacements(found, None, colour="white", axes=axes)
    assert sum(isinstance(drawn, Quiver) for drawn in axes.collections) == 2


def test_without_displacements_or_a_place_to_draw_there_is_an_error(picture):
    ti, oxygen = perovskite(2, 2)
    found = displacements(ti, oxygen)
    with pytest.raises(InputError, match="neither an image nor Axes"):
        plot_displacements(found, None)
    with pytest.raises(InputError, match="nothing to show"):
        plot_displacements(found.where(found.y < 0), picture)
