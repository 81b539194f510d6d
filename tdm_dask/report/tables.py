"""The tables of a report: cross-talk, as rows and as a CSV file, and how far columns stand out."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..recipe.run import RecipeResult


@dataclass(frozen=True)
class Row:
    """One image: its R with every template, and its G and excess where it has a template of its own."""

    name: str
    r: dict[str, float]
    g: dict[str, float] | None
    excess: float | None


def kinds_of(result: RecipeResult) -> list[str]:
    """Kinds of column that have a template; none where the recipe asks for none."""
    return [str(kind) for kind in result.evaluation["template"].values] if "R" in result.evaluation else []


def cross_talk_rows(result: RecipeResult) -> Iterator[Row]:
    """Each image of the table of cross-talk, the images of kinds of column first."""
    table, kinds = result.evaluation, kinds_of(result)
    if not kinds:
        return
    for name in table["image"].values:
        row = table.sel(image=name)
        r, g = (dict(zip(kinds, row[part].values.tolist(), strict=True)) for part in ("R", "G"))
        yield Row(str(name), r, g, float(row["excess"]))
    if "other" in table:
        for name in table["other_image"].values:
            values = table["other"].sel(other_image=name).values.tolist()
            yield Row(str(name), dict(zip(kinds, values, strict=True)), None, None)


def contrast_rows(result: RecipeResult) -> Iterator[tuple[str, dict[str, float]]]:
    """Each image's name and its contrast at the sites of every kind."""
    if "contrast" not in result.evaluation:
        return
    table = result.evaluation["contrast"]
    for name in table["image"].values:
        row = table.sel(image=name)
        yield str(name), {str(kind): float(value) for kind, value in zip(row["kind"].values, row.values, strict=True)}


def write_cross_talk(result: RecipeResult, path: Path) -> Path:
    """Write the table of cross-talk as CSV, to four decimals."""
    kinds = kinds_of(result)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"R {kind}" for kind in kinds), *(f"G {kind}" for kind in kinds), "excess"])
        for row in cross_talk_rows(result):
            found = [round(row.r[kind], 4) for kind in kinds]
            expected = ["" if row.g is None else round(row.g[kind], 4) for kind in kinds]
            writer.writerow([row.name, *found, *expected, "" if row.excess is None else round(row.excess, 4)])
    return path


def signed(value: float) -> str:
    """A number to two decimals with its sign, empty where it is none.

    Examples
    --------
    >>> signed(-0.256), signed(float("nan"))
    ('−0.26', '')
    """
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else ""
