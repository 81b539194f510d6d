"""Writing a report: its figures as PNG files, the table of cross-talk as CSV, the page and, on request, a notebook."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..recipe.plan import Plan
from ..recipe.run import RecipeResult
from ..shards.objects import path_in, put, resolve
from .figures import draw_figures, figures_of
from .notebook import check_notebook, write_notebook
from .page import page_text
from .tables import kinds_of, write_cross_talk


@dataclass(frozen=True)
class Report:
    """Files of a report.

    Attributes
    ----------
    page : Path or str
        The HTML page, which needs no other file and no network.
    table : Path, str or None
        Cross-talk as CSV; None where there are no templates.
    figures : mapping of str to Path or str
        PNG files by name.
    notebook : Path, str or None
        None where none was asked for.
    """

    page: str | Path
    table: str | Path | None
    figures: Mapping[str, str | Path]
    notebook: str | Path | None = None


def write_report(result: RecipeResult, plan: Plan | None = None, *, notebook: bool = False) -> Report:
    """Draw the figures of a recipe's results, and write `report.html` and `cross_talk.csv` beside them.

    Reads none of the counts, nor the file that was converted: its facts are in the store.

    Parameters
    ----------
    result : RecipeResult
        From :func:`tdm_dask.run_recipe`.
    plan : Plan, optional
        What was expected of the run, to be shown beside what it took: from :func:`tdm_dask.recipe.plan.plan_recipe`.
    notebook : bool, default False
        Whether to write `report.ipynb` as well: the same text, and cells that open the results and draw every figure.
        Needs the package nbformat.

    Returns
    -------
    Report
        Where the files are.

    Raises
    ------
    InputError
        If a notebook is asked for and nbformat is not installed.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import tdm_dask as tdm
    >>> sample = str(files("tdm_dask") / "data" / "lifepo4_001.mib")
    >>> recipe = {"source": {"path": sample}, "calibration": {"semi_angle": "23.5 mrad"}, "detectors": {"BF": "bf"}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = write_report(tdm.run_recipe(recipe, Path(folder) / "out"))
    ...     report.page.name, sorted(report.figures)
    ('report.html', ['image_BF', 'pacbed'])
    """
    if notebook:
        check_notebook()
    if isinstance(result.out, Path):
        return _write(result, plan, result.out, notebook)
    place = resolve(result.out, read_only=False)
    with tempfile.TemporaryDirectory() as folder:
        made = _write(result, plan, Path(folder), notebook)

        def sent(file: str | Path) -> str | Path:
            name = Path(file).relative_to(folder).as_posix()
            put(place, name, Path(file).read_bytes())
            return path_in(result.out, name)

        return Report(
            page=sent(made.page),
            table=None if made.table is None else sent(made.table),
            figures={name: sent(file) for name, file in made.figures.items()},
            notebook=None if made.notebook is None else sent(made.notebook),
        )


def _write(result: RecipeResult, plan: Plan | None, folder: Path, notebook: bool) -> Report:
    figures = figures_of(result)
    files = draw_figures(figures, folder / "figures")
    page = folder / "report.html"
    page.write_text(page_text(result, plan, figures, files), encoding="utf-8")
    return Report(
        page=page,
        table=write_cross_talk(result, folder / "cross_talk.csv") if kinds_of(result) else None,
        figures=files,
        notebook=write_notebook(result, plan, figures, files, folder / "report.ipynb") if notebook else None,
    )
