"""The tour, as a notebook in a kernel of its own, and what it leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import executed, notebook_of

import tdm_dask as tdm

pytestmark = pytest.mark.long

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "tour.py"
FIGURES = ["pacbed", "abf", "sites", "template", "mask", "li", "columns", "cross-talk", "ridge", "evidence"]


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The executed notebook, the folder of its results, and its numbers."""
    folder = tmp_path_factory.mktemp("tour")
    # A notebook elsewhere: the folder of the workflows is where it looks for what they share.
    notebook = executed(notebook_of(WORKFLOW), folder, PYTHONPATH=str(WORKFLOW.parent))
    out = folder / "results"
    return notebook, out, json.loads((out / "tour.json").read_text())


def shown(notebook, kind):
    return [
        (cell, output.data[kind])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {})
    ]


def test_every_figure_is_shown_below_its_cell_once_and_kept(tour):
    notebook, out, _ = tour
    cells = [cell.source for cell, _ in shown(notebook, "image/png")]
    assert [re.search(r'show\("([\w-]+)"', source)[1] for source in cells] == FIGURES
    assert sorted(path.name for path in out.glob("*.png")) == sorted(f"tour-{name}.png" for name in FIGURES)


def test_every_bar_is_one_finished_line(tour):
    notebook, _, _ = tour
    bars = [text for _, text in shown(notebook, "text/plain") if "%  0:00:" in text]
    assert [text.split("  ")[:2] for text in bars] == [
        [name, "100 %"] for name in ("convert", "masks", "images", "proxy", "apply_mask")
    ]


def test_every_step_is_explained_and_nothing_is_complained_of(tour):
    notebook, _, _ = tour
    cells = notebook.cells
    assert cells[0].cell_type == "markdown"
    headings = [c.source for c in cells if c.cell_type == "markdown" and c.source.startswith("## ")]
    assert len(headings) >= 13
    for text in headings:
        sentences = len(re.findall(r"[.?:](\s|$)", text.split("\n", 1)[1]))
        assert sentences >= 2, text
    complaints = [o.text for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
    # HyperSpy knows signal types of installed packages alone.
    assert [text for text in complaints if "template_mask" not in text] == []


def test_the_numbers_are_those_of_the_sample(tour):
    _, _, numbers = tour
    kinds = ("Li", "Fe", "P+O", "O")
    assert numbers["pixel_mrad"] == pytest.approx(2.443, abs=0.005)
    (ay, ax), (by, bx) = numbers["cell_angstrom"]
    assert (ay, bx) == (pytest.approx(5.166, abs=0.03), pytest.approx(6.010, abs=0.03))
    assert max(ax, by) < 0.05
    assert max(numbers["fitted_to_true_sites_angstrom"].values()) < 0.08
    assert numbers["R"]["Li"] > 0.84
    for kind in kinds:
        assert numbers["R_ridge"][kind] > 0.94
        assert numbers["excess_ridge"][kind] < 0.2 * numbers["excess"][kind]
        assert numbers["held_out_R"]["ridge"][kind] > max(0.88, numbers["held_out_R"]["pearson"][kind] + 0.1)
    # What the text says of lithium.
    assert numbers["evidence"]["Li"].startswith("Li: not distinguished from other offsets")
    assert "none responded as strongly" in numbers["evidence"]["Li"]
    assert list(numbers["R_of_width"].values()) == sorted(numbers["R_of_width"].values())
    assert numbers["same_image_in_hyperspy"]


@pytest.mark.long
def test_the_recipe_gives_the_masks_of_the_tour(tour, tmp_path):
    _, out, numbers = tour
    recipe = (out / "recipe.toml").read_text()
    (out / "short.toml").write_text(recipe[: recipe.index("[evidence]")])
    result = tdm.run_recipe(out / "short.toml", tmp_path / "results")
    for kind, expected in numbers["R_ridge"].items():
        assert float(result.evaluation["R"].sel(image=kind, template=kind)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.long
def test_the_command_line_offers_a_folder_and_nothing_that_does_nothing():
    run = subprocess.run([sys.executable, str(WORKFLOW), "--help"], capture_output=True, text=True, check=True)
    assert re.findall(r"--[\w-]+", run.stdout.split("options:")[1]) == ["--help", "--out"]
