"""The workflow of sites, from the command line, on the sample that comes with the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lattice_images import empty_scan

import tdm_dask as tdm
from tdm_dask.columns.lattice import Lattice
from tdm_dask.plot.sites import plot_sites
from tdm_dask.plot.style import new_axes

pytestmark = pytest.mark.long

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "sites.py"


def test_sites_are_drawn_into_the_axes_that_are_given():
    lattice = Lattice([[4.0, 0.0], [0.0, 3.0]], {"Pb": [(0.5, 0.5)], "O": [(0.1, 0.2)]})
    image = empty_scan((40, 50)) + 1.0
    image[5, 5] = 0
    axes = new_axes(3, 3)
    sites = lattice.sites(image, margin=5) | {"Ti": np.empty((0, 2))}
    assert plot_sites(image, sites, lattice=lattice, axes=axes) is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Pb", "O"]
    drawn = {line.get_label(): len(line.get_xdata()) for line in axes.lines}
    assert sorted(drawn.values()) == sorted(len(p) for p in lattice.sites(image, margin=0.15).values())
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["a", "b"]
    # Without kinds there is nothing to name.
    assert plot_sites(image, sites["Pb"]).get_legend() is None


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder and numbers of a run at a reduced size."""
    out = tmp_path_factory.mktemp("sites")
    command = [sys.executable, str(WORKFLOW), "--quick", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"MPLBACKEND": "Agg"})
    assert run.returncode == 0, run.stderr
    return out, json.loads((out / "sites.json").read_text())


def test_all_ways_find_every_kind_within_a_fifth_of_an_angstrom(results):
    _, numbers = results
    assert set(numbers["errors_angstrom"]) == {"Peaks and motif", "CIF and zone axis", "Table"}
    for way, kinds in numbers["errors_angstrom"].items():
        assert set(kinds) == {"Li", "Fe", "P+O", "O"}
        for kind, error in kinds.items():
            assert error["columns"] >= 8
            assert error["max"] < 0.1, (way, kind)


def test_the_cell_of_the_image_alone_is_that_of_the_projection(results):
    _, numbers = results
    assert np.array(numbers["cell_from_image"]) == pytest.approx(np.array([[5.166, 0], [0, 6.01]]), abs=0.06)
    assert numbers["peaks_from_table_angstrom"]["median"] < 0.06


def test_the_registration_says_what_the_image_settles(results):
    _, numbers = results
    registration = numbers["registration"]["scan"]
    assert not registration["ambiguous"]
    assert registration["candidates"][0]["orientations"] == 4
    assert registration["message"].startswith("The crystal lies on the image")
    assert numbers["warnings"] == []


def test_the_table_and_the_figure_are_there(results):
    out, numbers = results
    sites = tdm.read_sites(out / "sites.csv")
    assert {kind: len(places) >= 8 for kind, places in sites.items()} == dict.fromkeys(("Fe", "P+O", "O", "Li"), True)
    motif = numbers["registration"]["scan"]["lattice"]["motif"]
    assert set(motif) == set(sites)
    assert (out / "sites-ways.png").stat().st_size > 10_000
