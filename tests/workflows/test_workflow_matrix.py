"""The workflow of Fig. 1c, d at a reduced size, and the figure it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small_stores import poisson

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.imaging.matrix_view import matrix_view
from tdm_dask.plot.matrix import plot_matrix

pytestmark = pytest.mark.long

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "matrix.py"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("matrix")
    subprocess.run([sys.executable, WORKFLOW, "--quick", "--out", out], check=True, timeout=300)
    return out


def test_the_workflow_writes_its_figure_and_numbers(written):
    assert (written / "matrix-figure.png").stat().st_size > 50_000
    numbers = json.loads((written / "matrix.json").read_text())
    assert numbers["shape_of_the_matrix"] == [42 * 42, 38 * 38]
    assert numbers["shape_of_the_picture"] == [200, 200]


def test_the_dark_field_follows_the_order_of_the_rows_and_the_disk_goes_both_ways(written):
    numbers = json.loads((written / "matrix.json").read_text())
    assert numbers["columns_beyond_the_disk_that_follow_the_order"] > 0.95
    assert 0.2 < numbers["columns_inside_that_go_against_it"] < 0.95
    low, high = numbers["high_angle_counts"]
    assert high > 3 * low


def view(**options):
    coords = {d: axis_coordinate(d, 12, 5.0, -30.0, "mrad") for d in ("ky", "kx")}
    counts = tdm.label_counts(poisson((5, 6, 12, 12)), coords).assign_attrs(semi_angle_mrad=20.0)
    weights = np.stack([np.ones((12, 12)), np.linspace(-1, 1, 144).reshape(12, 12)])
    masks = xr.DataArray(weights, dims=("template", "ky", "kx"), coords={"template": ["disk", "Li"]})
    return matrix_view(counts, masks, shape=(20, 40), **options)


def test_the_picture_has_angles_across_and_masks_by_name_below():
    found = view()
    axes = plot_matrix(found)
    picture, disk, derived = axes.images
    assert picture.norm.vmin == -picture.norm.vmax
    assert [t.get_text() for t in axes.get_yticklabels()][-2:] == ["disk", "Li"]
    assert (disk.norm.vmin, disk.norm.vmax) == (0.0, 1.0)
    assert derived.norm.vmin == -derived.norm.vmax
    # A tick stands where the columns reach its angle, and the edge of the disk where they reach the semi-angle.
    edge = axes.lines[0].get_xdata()[0]
    assert found["angle"].values[int(edge) - 1] <= 20 <= found["angle"].values[int(edge) + 1]
    ticks = {t.get_text(): p for t, p in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}
    assert found["angle"].values[int(ticks["30"]) - 1] <= 30 <= found["angle"].values[int(ticks["30"]) + 1]


def test_raw_counts_are_drawn_from_zero_in_the_order_of_the_detector():
    axes = plot_matrix(view(order="concatenated", normalisation="none").drop_vars("mask"))
    assert len(axes.images) == 1
    assert axes.images[0].norm.vmin == 0.0
    assert axes.get_xlabel() == "detector pixel, line after line"


def test_what_is_no_view_is_refused():
    with pytest.raises(tdm.errors.InputError, match="matrix_view"):
        plot_matrix(xr.Dataset())
