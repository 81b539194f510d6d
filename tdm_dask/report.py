"""The report of a recipe: figures as PNG files, the table of cross-talk, one HTML page that stands alone."""

from __future__ import annotations

import base64
import csv
import importlib.metadata
import importlib.resources
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr

from .axes import DETECTOR, SCAN, TEMPLATE, quantity, step_of, unit_of
from .describe import descan_text, facts_text
from .plan import Plan
from .plot import plot_columns, plot_cross_talk, plot_image, plot_mask, plot_pacbed, save_figure
from .plot.evidence import plot_offsets, plot_significance
from .recipe import VIRTUAL, RecipeResult
from .shards import put
from .storage import resolve, within
from .words import bytes_text, time_text

METHODS = {"pearson": "Pearson", "mean-scaled": "mean-scaled", "ridge": "ridge"}
PACKAGES = ("tdm-dask", "dask", "zarr", "xarray", "numpy", "numba", "rosettasciio")


@dataclass(frozen=True)
class Report:
    """Files of a report: the page, the table (None where there are no templates) and the figures by name."""

    page: str | Path
    table: str | Path | None
    figures: Mapping[str, str | Path]


def write_report(result: RecipeResult, plan: Plan | None = None) -> Report:
    """Draw the figures of a recipe's results, and write `report.html` and `cross_talk.csv` beside them.

    Parameters
    ----------
    result : RecipeResult
        From :func:`tdm_dask.run_recipe`.
    plan : Plan, optional
        What was expected of the run, to be shown beside what it took: from :func:`tdm_dask.plan.plan_recipe`.

    Returns
    -------
    Report
        The page needs no other file and no network.
    """
    if isinstance(result.out, Path):
        return _write_report(result, plan, result.out)
    place = resolve(result.out, read_only=False)
    with tempfile.TemporaryDirectory() as folder:
        made = _write_report(result, plan, Path(folder))

        def sent(file: str | Path) -> str | Path:
            name = Path(file).relative_to(folder).as_posix()
            put(place, name, Path(file).read_bytes())
            return within(result.out, name)

        table = None if made.table is None else sent(made.table)
        return Report(sent(made.page), table, {name: sent(file) for name, file in made.figures.items()})


def _write_report(result: RecipeResult, plan: Plan | None, folder: Path) -> Report:
    figures = _figures(result, folder / "figures")
    table = _write_table(result, folder / "cross_talk.csv") if "R" in result.evaluation else None
    page = folder / "report.html"
    skeleton = importlib.resources.files("tdm_dask").joinpath("data", "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page.write_text(environment.from_string(skeleton).render(_content(result, plan, figures)), encoding="utf-8")
    return Report(page, table, figures)


def _figures(result: RecipeResult, folder: Path) -> dict[str, Path]:
    """A PNG of the mean pattern, of each virtual image, of each kind's image and mask, and two overviews."""
    folder.mkdir(exist_ok=True)
    angle = _semi_angle(result)
    sites = result.sites if unit_of(result.counts, "x") == "angstrom" else {}
    drawn: dict[str, Any] = {"pacbed": plot_pacbed(result.pacbed, semi_angle=angle)}
    if "virtual" in result.images:
        for number, (name, image) in enumerate(_each(result.images["virtual"], VIRTUAL)):
            drawn[f"image_{name}"] = plot_image(image, title=name, sites=sites if number == 0 else None)
    if "image" in result.images:
        images, masks = result.images["image"], result.masks["mask"]
        drawn["columns"] = plot_columns(images, masks, semi_angle=angle)
        drawn["cross_talk"] = plot_cross_talk(result.evaluation)
        for (name, image), (_, mask) in zip(_each(images, TEMPLATE), _each(masks, TEMPLATE), strict=True):
            drawn[f"image_{name}"] = plot_image(image, title=name)
            drawn[f"mask_{name}"] = plot_mask(mask, title=f"mask of {name}", semi_angle=angle)
    for kind in _kinds_of_evidence(result):
        drawn[f"significance_{kind}"] = plot_significance(result.evidence, kind, semi_angle=angle)
        if "response" in result.evidence and result.evidence["response"].sel({TEMPLATE: kind}).notnull().all():
            drawn[f"offsets_{kind}"] = plot_offsets(result.evidence, kind)
    return {name: save_figure(figure, folder / f"{_file_name(name)}.png") for name, figure in drawn.items()}


def _kinds_of_evidence(result: RecipeResult) -> list[str]:
    return [str(kind) for kind in result.evidence[TEMPLATE].values] if "verdict" in result.evidence else []


def _each(array: xr.DataArray, dim: str) -> Iterator[tuple[str, xr.DataArray]]:
    for position, name in enumerate(array[dim].values):
        yield str(name), array.isel({dim: position})


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def _semi_angle(result: RecipeResult) -> float | None:
    angle = result.counts.attrs.get("semi_angle_mrad")
    return float(angle) if angle is not None and unit_of(result.counts, "kx") == "mrad" else None


def _rows(
    result: RecipeResult,
) -> Iterator[tuple[str, dict[str, float], dict[str, float] | None, float | None]]:
    """Each image's name, its R with every template, and its G and excess where it has a template."""
    table = result.evaluation
    kinds = [str(kind) for kind in table["template"].values]
    for name in table["image"].values:
        row = table.sel(image=name)
        r, g = (dict(zip(kinds, row[part].values.tolist(), strict=True)) for part in ("R", "G"))
        yield str(name), r, g, float(row["excess"])
    if "other" in table:
        for name in table["other_image"].values:
            values = table["other"].sel(other_image=name).values.tolist()
            yield str(name), dict(zip(kinds, values, strict=True)), None, None


def _write_table(result: RecipeResult, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        kinds = [str(kind) for kind in result.evaluation["template"].values]
        writer.writerow(["image", *(f"R {kind}" for kind in kinds), *(f"G {kind}" for kind in kinds), "excess"])
        for name, r, g, excess in _rows(result):
            expected = ["" if g is None else round(g[kind], 4) for kind in kinds]
            found = [round(r[kind], 4) for kind in kinds]
            writer.writerow([name, *found, *expected, "" if excess is None else round(excess, 4)])
    return path


def _content(result: RecipeResult, plan: Plan | None, figures: dict[str, Path]) -> dict[str, Any]:
    pictures = {name: _inline(path) for name, path in figures.items()}
    angle = _semi_angle(result)
    virtual = [(name, spec, pictures[f"image_{name}"]) for name, spec in result.recipe.detectors.items()]
    names = [str(name) for name in result.images[TEMPLATE].values] if "image" in result.images else []
    return {
        "title": result.recipe.title or Path(result.recipe.source.path).name,
        "notes": result.recipe.notes,
        "source_name": Path(result.recipe.source.path).name,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "version": importlib.metadata.version("tdm-dask"),
        "figures": {name: pictures.get(name) for name in ("columns", "pacbed", "cross_talk")},
        "semi_angle": None if angle is None else f"{angle:.4g}",
        "steps": list(_steps(result)),
        "facts": list(_facts(result)),
        "expected": [] if plan is None else list(_expected(result, plan)),
        "virtual": virtual,
        "kinds": [str(kind) for kind in result.evaluation["template"].values] if "R" in result.evaluation else [],
        "table": list(_table(result)) if "R" in result.evaluation else [],
        "contrast": list(_contrast(result)) if "contrast" in result.evaluation else [],
        "evidence": [
            (str(sentence), pictures.get(f"offsets_{kind}"), pictures[f"significance_{kind}"])
            for kind, sentence in zip(_kinds_of_evidence(result), _sentences(result), strict=True)
        ],
        "pairs": [(name, pictures[f"image_{name}"], pictures[f"mask_{name}"]) for name in names],
        "method": result.recipe.masks.method,
        "recipe": result.recipe.text.strip(),
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        + f", Python {platform.python_version()}",
        "results_name": Path(result.results).name,
    }


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _table(result: RecipeResult) -> Iterator[dict[str, Any]]:
    for name, r, g, excess in _rows(result):
        cells = [
            {"r": _signed(r[kind]), "g": None if g is None else _signed(g[kind]), "own": kind == name} for kind in r
        ]
        yield {"name": name, "cells": cells, "excess": "" if excess is None else f"{excess:.2f}"}


def _contrast(result: RecipeResult) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Each image's name and its contrast at the sites of every kind, and whether that kind is its own."""
    table = result.evaluation["contrast"]
    for name in table["image"].values:
        row = table.sel(image=name)
        cells = zip(row["kind"].values, row.values, strict=True)
        yield str(name), [(_signed(value) if np.isfinite(value) else "", kind == name) for kind, value in cells]


def _sentences(result: RecipeResult) -> list[str]:
    return [str(text) for text in result.evidence["sentence"].values] if "verdict" in result.evidence else []


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _steps(result: RecipeResult) -> Iterator[str]:
    recipe, took = result.recipe, result.seconds
    ny, nx, nky, nkx = result.counts.shape
    what = f"{Path(recipe.source.path).name}, {ny} × {nx} probe positions of {nky} × {nkx} detector pixels"
    if result.store != recipe.source_place():
        yield f"Converted {what}, to the store {Path(result.store).name}{_time(took, 'convert')}."
    else:
        yield f"Opened the store {what}."
    shifts = descan_text(result.counts)
    if shifts:
        yield f"Moved every pattern by whole pixels, so that the bright-field disk stays in place: {shifts}."
    angle = _semi_angle(result)
    if angle is not None:
        yield f"Found the bright-field disk in the mean pattern; its radius stands for {angle:.4g} mrad."
    asked = recipe.templates
    detectors = " and ".join(recipe.detectors)
    if asked is None:
        yield f"Applied {detectors} to the counts as they are{_time(took, 'images')}."
        return
    places = ", ".join(f"{len(at)} of {kind}" for kind, at in result.sites.items())
    width = f"sigma {_length(asked.sigma)}" if asked.sigma is not None else f"radius {_length(asked.radius)}"
    notes = " ".join(result.masks.attrs.get("notes", []))
    yield f"Made {asked.shape} templates, {width}, at the sites given: {places}. {notes}".rstrip()
    within = f", within {recipe.masks.within}" if recipe.masks.within else ""
    ranges = [f"{dim} {ends[0]}:{ends[1]}" for dim, ends in (recipe.masks.scan_region or {}).items()]
    part = f", from the probe positions {' and '.join(ranges)} alone" if ranges else ""
    ridge = recipe.masks.method == "ridge"
    yield (
        f"Correlated the image of every detector pixel with every template{' and every other pixel' * ridge}, in one "
        f"read of the counts, and derived {METHODS[recipe.masks.method]} masks{within}{part}"
        f"{_time(took, 'correlate')}.{' ' + _ridge_text(result) if ridge else ''}"
    )
    how = "standardised counts" if recipe.images.normalisation == "standardised" else "the counts as they are"
    beside = f", and {detectors} to the counts as they are" if detectors else ""
    yield f"Applied the masks to {how}{beside}, in one more read{_time(took, 'images')}."


def _ridge_text(result: RecipeResult) -> str:
    asked, found = result.recipe.masks, float(result.masks["regularisation"])
    after = {"both": "R and excess both", "R": "R", "excess": "excess"}[asked.objective or "both"]
    chosen = f"lambda {found:.3g}"
    if asked.regularisation in (None, "cross-validated"):
        chosen += f", chosen for {after} by cross-validation on 2 × 2 blocks of the scan"
    noise = ", which weighs pixels by their counting noise" if asked.gain is not None else ""
    apart = "; every image answers to no template but its own where masks were derived" if asked.separate else ""
    return f"The masks solve for all templates together, by the matrix of the pixels, with {chosen}{noise}{apart}."


def _length(value: float | str | None) -> str:
    return f"{quantity(value or 0.0, 'angstrom', 'width'):.4g} Å"


def _time(seconds: Mapping[str, float], stage: str) -> str:
    return f" ({seconds[stage]:.2g} s)" if stage in seconds else ""


def _expected(result: RecipeResult, plan: Plan) -> Iterator[tuple[str, ...]]:
    """Of each stage that was run: its counts, the time that was expected and taken, its rate, and that of the trial."""
    for stage in plan.stages:
        if stage.name in result.seconds:
            took = result.seconds[stage.name]
            rate = stage.counts_bytes / took
            yield (
                stage.name,
                bytes_text(stage.counts_bytes),
                f"{stage.tasks:,}",
                time_text(stage.seconds),
                time_text(took),
                f"{bytes_text(rate)}/s",
                f"{rate / stage.bytes_per_second:.0%}",
            )


def _facts(result: RecipeResult) -> Iterator[tuple[str, str]]:
    counts = result.counts
    yield "probe positions (y × x)", " × ".join(str(n) for n in counts.shape[:2])
    yield "detector pixels (ky × kx)", " × ".join(str(n) for n in counts.shape[2:])
    yield "counts", f"{counts.dtype}, {bytes_text(counts.nbytes)} uncompressed"
    if unit_of(counts, "x") == "angstrom":
        steps = [abs(step_of(counts, dim)) for dim in SCAN]
        field = [step * size / 10 for step, size in zip(steps, counts.shape[:2], strict=True)]
        yield "scan step (y, x)", f"{steps[0]:#.4g} Å, {steps[1]:#.4g} Å"
        yield "field of view (y × x)", f"{field[0]:.3g} nm × {field[1]:.3g} nm"
    if unit_of(counts, "kx") == "mrad":
        steps = [step_of(counts, dim) for dim in DETECTOR]
        first = [float(counts[dim].values[0]) for dim in DETECTOR]
        edge = min(abs(float(counts[dim].values[end])) for dim in DETECTOR for end in (0, -1))
        yield "detector pixel (ky, kx)", f"{steps[0]:.4g} mrad, {steps[1]:.4g} mrad"
        yield "optic axis (ky, kx)", f"pixel {-first[0] / steps[0]:.2f}, {-first[1] / steps[1]:.2f}"
        yield "detector reaches", f"{edge:.3g} mrad on every side"
    yield from facts_text(counts.attrs)
    yield "mean counts of a pattern", f"{float(result.pacbed.sum()):,.0f}".replace(",", " ")
