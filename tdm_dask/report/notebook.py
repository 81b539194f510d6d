"""The report as a notebook: the same text, and cells that open the results and draw every figure again."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipe.plan import Plan
from ..recipe.run import RecipeResult
from . import facts
from .figures import Figure, semi_angle_of
from .identity import fingerprint_command, source_facts
from .page import is_toml, recipe_text, sentences_of, written_at
from .tables import contrast_rows, cross_talk_rows, kinds_of, signed

HEADINGS = {
    "overview": "",
    "pattern": "The mean pattern and the virtual images",
    "cross-talk": "How well the columns are kept apart",
    "evidence": "What the data say about the sites",
    "pairs": "Every image and its mask",
}


def check_notebook() -> None:
    """Raise unless notebooks can be written.

    Raises
    ------
    InputError
        If nbformat is not installed.
    """
    try:
        import nbformat  # noqa: F401
    except ImportError:
        raise InputError(
            'A notebook needs the package nbformat, which is not installed; pip install "tdm-dask[notebook]" brings it.'
        ) from None


def write_notebook(
    result: RecipeResult, plan: Plan | None, figures: list[Figure], files: Mapping[str, Path], path: Path
) -> Path:
    """Write the report as a notebook that reads without being run: every figure is in it already.

    Run from top to bottom in the folder of the results, it draws them again from there.
    """
    import nbformat

    cells = [
        nbformat.from_dict({"id": f"cell-{number}", "metadata": {}, **cell})
        for number, cell in enumerate(_cells(result, plan, figures, files), start=1)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.validate(book)
    nbformat.write(book, path)
    return path


def _cells(
    result: RecipeResult, plan: Plan | None, figures: list[Figure], files: Mapping[str, Path]
) -> Iterator[dict[str, Any]]:
    yield _markdown(_opening(result))
    yield _code(_setup(result, figures))
    drawn: dict[str, list[dict[str, Any]]] = {part: [] for part in HEADINGS}
    for number, figure in enumerate(figures, start=1):
        drawn[figure.part] += _figure(number, figure, files)
    yield from drawn["overview"]
    yield _markdown(["## What was done", _numbered(facts.steps(result))])
    yield _markdown(["## The counts", _facts(source_facts(result)), *_fingerprint(result)])
    yield _markdown(["## The scan in numbers", _facts(facts.scan_facts(result))])
    texts = {"cross-talk": _cross_talk(result), "evidence": _evidence(result)}
    for part, heading in HEADINGS.items():
        if heading and drawn[part]:
            yield _markdown([f"## {heading}", *texts.get(part, [])])
            yield from drawn[part]
    yield _markdown(["## How it was computed", *_timing(result, plan), _facts(facts.computing_facts(plan))])
    yield _markdown(["## To do it again", *_again(result)])


def _markdown(paragraphs: Iterable[str]) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": "\n\n".join(paragraphs)}


def _code(source: str, outputs: Sequence[dict[str, Any]] = (), count: int | None = None) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "execution_count": count}


def _plain(text: str) -> str:
    """Text that markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _opening(result: RecipeResult) -> Iterator[str]:
    yield f"# {_plain(facts.title_of(result))}"
    yield f"{_plain(facts.source_name(result))} · {written_at()}"
    yield _plain(facts.summary(result))
    if result.recipe.notes:
        yield f"> {_plain(result.recipe.notes)}"


def _setup(result: RecipeResult, figures: list[Figure]) -> str:
    """What opens the results under the names that the cells of the figures use."""
    functions = sorted({picture.function.__name__ for figure in figures for picture in figure.pictures})
    away = "://" in str(result.out)
    results, note = (str(result.results), f"{result.out}/recipe.json") if away else ("results.zarr", "recipe.json")
    lines = [
        "# The results lie beside this notebook: run it in their folder." if not away else "# The results:",
        "%matplotlib inline",
        '%config InlineBackend.figure_format = "retina"',
        "import json",
        "",
        "import fsspec",
        "import matplotlib",
        "import xarray as xr",
        "",
        f"from tdm_dask.plot import {', '.join(functions)}",
        "from tdm_dask.plot.style import STYLE, figure_of",
        "",
        "matplotlib.rcParams.update(STYLE)",
        "",
        "",
        "def opened(group):",
        f"    return xr.open_zarr({results!r}, group=group, consolidated=False, chunks=None).load()",
        "",
        "",
        'pacbed = opened("pacbed")["pattern_mean"]',
        'masks, images, evaluation = opened("masks"), opened("images"), opened("evaluation")',
    ]
    if result.evidence.variables:
        lines.append('evidence = opened("evidence")')
    lines += [
        f"with fsspec.open({note!r}) as file:",
        '    found = json.load(file)["sites"]  # kind -> (y, x) in angstrom',
        f"sites = {{kind: found[kind] for kind in {json.dumps(list(result.sites), ensure_ascii=False)}}}",
    ]
    angle = semi_angle_of(result)
    if angle is not None:
        lines.append(f"semi_angle = {angle!r}  # mrad")
    return "\n".join(lines)


def _figure(number: int, figure: Figure, files: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    for picture in figure.pictures:
        data = files[picture.name].read_bytes()
        width, height = (int.from_bytes(data[at : at + 4]) // 2 for at in (16, 20))
        output = {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(data).decode("ascii"), "text/plain": picture.alt},
            "metadata": {"image/png": {"width": width, "height": height}},
        }
        yield _code(f"figure_of({picture.code})", [output])
    yield _markdown([f"**Figure {number}.** {_plain(figure.caption)}"])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    lines = ["| | |", "| --- | --- |", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in facts)]
    return "\n".join(lines)


def _numbered(sentences: Iterable[str]) -> str:
    return "\n".join(f"{n}. {_plain(sentence)}" for n, sentence in enumerate(sentences, start=1))


def _fingerprint(result: RecipeResult) -> Iterator[str]:
    command = fingerprint_command(result.store)
    if command is not None:
        yield (
            "The fingerprint is the SHA-256 of the sum of every pattern and the maximum of every pixel, which the "
            "conversion gathers in its one read. In the folder of the store, this gives it again:"
        )
        yield _fenced(command, "bash")


def _cross_talk(result: RecipeResult) -> Iterator[str]:
    kinds = kinds_of(result)
    yield (
        "R is the correlation over the scan of an image (row) with a template (column); in brackets G, that of the two "
        "templates with each other, which a perfect image would have. The excess is the largest |R − G|, the image's "
        "own template apart."
    )
    rows = []
    for row in cross_talk_rows(result):
        cells = [signed(row.r[k]) + ("" if row.g is None else f" ({signed(row.g[k])})") for k in kinds]
        rows.append([row.name, *cells, "" if row.excess is None else f"{row.excess:.2f}"])
    yield _table(["image", *map(_plain, kinds), "excess"], rows)
    yield (
        "**A high R is not evidence that the atoms are there.** In a perfect crystal almost any template that repeats "
        "with the lattice is reproduced, wherever its sites are put."
    )
    contrast = list(contrast_rows(result))
    if contrast:
        yield "Contrast: the mean of an image at the sites of a kind less that at all others, over the scatter there."
        yield _table(["image", *map(_plain, kinds)], ([name, *(signed(v[k]) for k in kinds)] for name, v in contrast))


def _evidence(result: RecipeResult) -> Iterator[str]:
    yield "\n".join(f"- {_plain(sentence)}" for sentence in sentences_of(result))


def _timing(result: RecipeResult, plan: Plan | None) -> Iterator[str]:
    rows = list(facts.timing(result, plan))
    if rows and facts.is_planned(plan):
        yield _table(["stage", "counts", "tasks", "expected", "taken", "rate", "of the trial's rate"], rows)
    elif rows:
        yield _table(["stage", "taken"], [(row[0], row[4]) for row in rows])
    earlier = facts.earlier_stages(result)
    if earlier:
        yield f"Finished by an earlier run: {', '.join(earlier)}."


def _again(result: RecipeResult) -> Iterator[str]:
    if is_toml(result):
        yield "Saved as `recipe.toml`, beside the files that it names, this repeats the analysis:"
        yield _fenced("tdm run recipe.toml --out results", "bash")
        yield _fenced(recipe_text(result), "toml")
    else:
        yield "`tdm_dask.run_recipe` repeats the analysis with this mapping, and a folder for the results:"
        yield _fenced(recipe_text(result), "json")


def _fenced(text: str, language: str) -> str:
    """A block of code, in a fence that the text does not close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
