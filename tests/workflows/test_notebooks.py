"""Workflows as notebooks, and what a notebook shows of figures."""

from __future__ import annotations

import ast
import base64
import struct
from pathlib import Path

import nbformat
import pytest
from notebooks import executed, notebook_of, of_cells

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SCRIPTS = sorted(path for path in WORKFLOWS.glob("*.py") if "# %%" in path.read_text())


def test_workflows_are_found():
    assert {"tour.py", "columns.py", "sites.py"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_workflow_is_a_valid_notebook_that_begins_with_its_title(path):
    notebook = notebook_of(path)
    nbformat.validate(notebook)
    title, first, *_ = notebook.cells
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert '"""' not in title.source
    assert first.cell_type == "code"
    for cell in notebook.cells:
        assert cell.source.strip()
        if cell.cell_type == "code":
            ast.parse(cell.source)


CELLS = {
    "setup": f"""
import sys
sys.path.append({str(WORKFLOWS)!r})
import known_scan
import matplotlib.pyplot as plt
import numpy as np, xarray as xr
from tdm_dask.plot import plot_columns, plot_image
from tdm_dask.plot.style import new_figure
image = xr.DataArray(np.eye(8), dims=("y", "x"))
images = xr.DataArray(np.ones((2, 8, 8)), {{"template": ["a", "b"]}}, ("template", "y", "x"))
masks = images.rename(y="ky", x="kx")
""",
    "options": """
arguments = known_scan.arguments("What it does", draws={"type": int, "default": 3})
print(arguments.out, arguments.data, arguments.quick, arguments.draws)
""",
    "written": """
figures = {"one": plot_image(image), "two": plot_image(image).figure}
known_scan.write(arguments.out, "name", figures, {})
""",
    "Axes": "plot_image(image)",
    "array of Axes": "plot_columns(images, masks)",
    "figure": "figure = new_figure(3, 2)\nplot_image(image, axes=figure.add_subplot())\nfigure",
    # Those of pyplot are shown by IPython, and not a second time.
    "Axes of pyplot": "_, axes = plt.subplots()\nplot_image(image, axes=axes)",
    "figure of pyplot": "plot_columns(images, masks, figure=plt.figure())",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the cells put out, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = executed(of_cells(*CELLS.values()), folder)
    return dict(zip(CELLS, [cell.outputs for cell in notebook.cells], strict=True)), folder


@pytest.mark.long
def test_options_have_their_defaults_in_a_notebook(outputs):
    assert outputs[0]["options"][0].text == "results None False 3\n"


def test_figures_that_a_workflow_writes_are_shown_as_well(outputs):
    shown = [output.data for output in outputs[0]["written"] if output.output_type == "display_data"]
    assert ["image/png" in data for data in shown] == [True, True]
    assert sorted(path.name for path in (outputs[1] / "results").glob("*.png")) == ["name-one.png", "name-two.png"]


@pytest.mark.parametrize("what", ["Axes", "array of Axes", "figure", "Axes of pyplot", "figure of pyplot"])
def test_a_cell_that_ends_with_a_drawing_shows_it_once(what, outputs):
    assert sum("image/png" in output.get("data", {}) for output in outputs[0][what]) == 1


def test_a_drawing_takes_up_its_size_and_has_twice_the_pixels(outputs):
    output = outputs[0]["Axes"][0]
    png = base64.b64decode(output.data["image/png"])
    size = output.metadata["image/png"]
    assert 150 < size["width"] < 500
    assert [number // 2 for number in struct.unpack(">II", png[16:24])] == [size["width"], size["height"]]
