"""The workflow of evidence, and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from tdm_dask.axes import axis_coordinate
from tdm_dask.errors import InputError
from tdm_dask.plot.evidence import VERDICT_COLOURS, plot_influence, plot_offsets, plot_significance, plot_verdicts

pytestmark = pytest.mark.long

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SETS, KINDS = ("true sites", "moved sites", "random sites"), ("Li", "Fe", "P+O", "O")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("evidence")
    command = [sys.executable, "evidence.py", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=WORKFLOWS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, json.loads((out / "evidence.json").read_text(encoding="utf-8"))


def test_figures_are_written(results):
    for name in ("verdicts", "influence"):
        picture = imread(results[0] / f"evidence-{name}.png")
        assert min(picture.shape[:2]) > 500
        assert np.ptp(picture[..., 0]) > 0.5


def test_the_sample_supports_oxygen_and_no_moved_or_random_template(results):
    verdicts = results[1]["verdicts"]
    assert verdicts["true sites"]["O"] == "supported"
    assert verdicts["true sites"]["Fe"] == "not distinguished from other offsets"
    assert "supported" not in verdicts["moved sites"].values()
    assert set(verdicts["random sites"].values()) == {"not supported"}


def test_moved_templates_look_as_good_as_true_ones(results):
    for method, least in (("pearson", 0.6), ("ridge", 0.85)):
        r = results[1]["held_out_R"][method]
        assert min(r["moved sites"].values()) > least
        assert max(np.abs(list(r["random sites"].values()))) < 0.15
        # One of them looks better than the true one.
        assert max(r["moved sites"][kind] - r["true sites"][kind] for kind in KINDS) > 0


def test_every_verdict_has_its_sentence_and_every_kind_its_slope(results):
    numbers = results[1]
    for name in SETS:
        assert set(numbers["sentences"][name]) == set(KINDS)
        for kind, sentence in numbers["sentences"][name].items():
            assert sentence.startswith(f"{kind}: {numbers['verdicts'][name][kind]}; ")
    assert set(numbers["influence"]) == set(KINDS)
    assert all(0 < one["slope"] < 1 for one in numbers["influence"].values())


def offsets_of(vectors, shape, centre):
    a, b = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    dy, dx = np.moveaxis(np.stack([a, b], -1) @ vectors, -1, 0)
    apart = np.cos(2 * np.pi * a) + np.cos(2 * np.pi * b)
    maps = dict.fromkeys(("response", "overlap", "own_response"), (("template", "a", "b"), apart[None] / 2))
    ranks = {name: ("template", [centre]) for name in ("rank", "own_rank")}
    return xr.Dataset(maps | ranks, {"template": ["Li"], "dy": (("a", "b"), dy), "dx": (("a", "b"), dx)})


@pytest.mark.parametrize("vectors", [np.diag([4.0, 6.0]), np.array([(4.0, 0.0), (2.0, 5.0)])])
def test_the_assumed_place_is_in_the_middle_of_the_map(vectors):
    scan = offsets_of(vectors, (8, 12), 0.0)
    axes = plot_offsets(scan, "Li")
    mesh = axes.collections[0]
    drawn = np.asarray(mesh.get_array()).reshape(8, 12)
    assert np.unravel_index(drawn.argmax(), drawn.shape) == (4, 6)
    assert axes.get_title(loc="left") == "Li: strongest here"
    assert (
        plot_offsets(offsets_of(vectors, (8, 12), 0.25), "Li", of="own_response")
        .get_title(loc="left")
        .endswith("25.0% do as well")
    )
    with pytest.raises(InputError, match="no template 'O'"):
        plot_offsets(scan, "O")
    with pytest.raises(InputError, match="expected one of"):
        plot_offsets(scan, "Li", of="overlap")


def test_significant_pixels_are_outlined():
    z = np.random.default_rng(0).normal(size=(1, 9, 8))
    coords = {"ky": axis_coordinate("ky", 9, 2.0, -8, "mrad"), "kx": axis_coordinate("kx", 8, 2.0, -7, "mrad")}
    dims = ("template", "ky", "kx")
    null = xr.Dataset({"z": (dims, z), "significant": (dims, z > 0.5), "p": ("template", [0.005])}, coords)
    null = null.assign_coords(template=["Li"])
    axes = plot_significance(null, "Li", semi_angle=7.0)
    assert axes.get_title(loc="left") == "Li: p = 0.005"
    assert len(axes.collections) == 1
    assert not plot_significance(null.assign(significant=null["significant"] & False), "Li").collections


def test_slopes_are_drawn_and_named():
    found = xr.Dataset(
        {
            "slope": ("kind", [0.5]),
            "slope_error": ("kind", [0.02]),
            **{f"template_d{d}": (("kind", "alternative"), [[0.0, 0.3 * (d == "y")]]) for d in "yx"},
            **{f"image_d{d}": (("kind", "alternative"), [[0.1, 0.1 + 0.15 * (d == "y")]]) for d in "yx"},
        },
        {"kind": ["Ti"], "alternative": ["original", "reversed"]},
    )
    axes = plot_influence(found)
    points = axes.lines[0].get_xydata()
    np.testing.assert_allclose(points, [[0.3, 0.15]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Ti: 0.50 ± 0.02"]


def test_verdicts_have_colours_of_their_own():
    labels = {"set": ["true", "random"], "template": ["Li"]}
    r = xr.DataArray([[0.9], [0.0]], labels, ("set", "template"))
    verdicts = xr.DataArray([["supported"], ["not supported"]], labels, ("set", "template"))
    axes = plot_verdicts(r, verdicts)
    colours = [VERDICT_COLOURS[verdict] for verdict in ("supported", "not supported")]
    assert [line.get_color() for line in axes.lines[:2]] == colours
