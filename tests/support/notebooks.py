"""Notebooks, executed in a kernel of their own, for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient


def executed(notebook: Any, folder: Path, **environment: str) -> Any:
    """The notebook with its outputs, run in `folder`; the first error in a cell is raised."""
    nbformat.validate(notebook)
    # What IPython remembers goes where the rest goes.
    places = {"IPYTHONDIR": str(folder / "ipython"), "MPLBACKEND": "", **environment}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | places)
    nbformat.validate(notebook)
    return notebook


def of_cells(*sources: str, may_fail: bool = False) -> Any:
    """A notebook of code cells; those that may fail are marked so."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell in cells:
        cell.metadata["tags"] = ["raises-exception"] * may_fail
    return nbformat.v4.new_notebook(cells=cells)


def notebook_of(script: Path) -> Any:
    """The notebook that a script in percent cells is."""
    return jupytext.read(script)
