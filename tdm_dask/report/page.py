"""The report as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from ..recipe.plan import Plan
from ..recipe.run import RecipeResult
from . import facts
from .figures import Figure, kinds_of_evidence
from .identity import fingerprint_command, source_facts, was_converted
from .tables import contrast_rows, cross_talk_rows, kinds_of, signed

PARTS = ("overview", "pattern", "cross-talk", "evidence", "pairs")
PIXELS_PER_INCH = 200  # of the PNG files; a page has 96


def page_text(result: RecipeResult, plan: Plan | None, figures: list[Figure], files: Mapping[str, Path]) -> str:
    """The page, with every picture in it."""
    skeleton = importlib.resources.files("tdm_dask").joinpath("data", "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(skeleton).render(
        **_texts(result, plan), **_numbers(result, plan), figures=_drawn(figures, files)
    )


def _texts(result: RecipeResult, plan: Plan | None) -> dict[str, Any]:
    return {
        "title": facts.title_of(result),
        "notes": result.recipe.notes,
        "source_name": facts.source_name(result),
        "date": written_at(),
        "version": importlib.metadata.version("tdm-dask"),
        "summary": facts.summary(result),
        "steps": list(facts.steps(result)),
        "sentences": sentences_of(result),
        "method": result.recipe.masks.method,
        "converted": was_converted(result),
        "fingerprint_command": fingerprint_command(result.store),
        "whole_numbers": result.counts.dtype.kind != "f",
        "earlier": facts.earlier_stages(result),
        "planned": facts.is_planned(plan),
        "recipe": recipe_text(result),
        "is_toml": is_toml(result),
        "results_name": Path(result.results).name,
    }


def _numbers(result: RecipeResult, plan: Plan | None) -> dict[str, Any]:
    return {
        "source": list(source_facts(result)),
        "scan": list(facts.scan_facts(result)),
        "computing": list(facts.computing_facts(plan)),
        "timing": list(facts.timing(result, plan)),
        "kinds": kinds_of(result),
        "cross_talk": list(_cross_talk(result)),
        "contrast": list(_contrast(result)),
    }


def _drawn(figures: list[Figure], files: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Figures with their numbers, by the part of the page that they belong to."""
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for number, figure in enumerate(figures, start=1):
        pictures = [{"alt": p.alt, "name": p.name, **_inline(files[p.name])} for p in figure.pictures]
        parts[figure.part].append({"number": number, "pictures": pictures, "caption": figure.caption})
    return parts


def _inline(path: Path) -> dict[str, Any]:
    """A picture as an address that holds it, and its size in the pixels of a page, so that nothing moves later."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4]) * 96 // PIXELS_PER_INCH for at in (16, 20))
    address = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return {"src": address, "width": width, "height": height}


def _cross_talk(result: RecipeResult) -> Iterator[dict[str, Any]]:
    for row in cross_talk_rows(result):
        cells = [
            {"r": signed(row.r[kind]), "g": None if row.g is None else signed(row.g[kind]), "own": kind == row.name}
            for kind in row.r
        ]
        yield {"name": row.name, "cells": cells, "excess": "" if row.excess is None else f"{row.excess:.2f}"}


def _contrast(result: RecipeResult) -> Iterator[dict[str, Any]]:
    for name, values in contrast_rows(result):
        cells = [{"value": signed(value), "own": kind == name} for kind, value in values.items()]
        yield {"name": name, "cells": cells}


def sentences_of(result: RecipeResult) -> list[str]:
    """The verdict on each template in words."""
    return [str(text) for text in result.evidence["sentence"].values] if kinds_of_evidence(result) else []


def is_toml(result: RecipeResult) -> bool:
    """Whether the recipe was read from a file; else it was given as a mapping."""
    return bool(result.recipe.text) and not result.recipe.text.lstrip().startswith("{")


def recipe_text(result: RecipeResult) -> str:
    """The recipe as it was written; as JSON where it was never text."""
    return result.recipe.text.strip() or json.dumps(_given(result.recipe.asks()), indent=2, ensure_ascii=False)


def _given(value: Any) -> Any:
    """What was given of a section: nothing that is None."""
    if isinstance(value, dict):
        return {key: _given(part) for key, part in value.items() if part is not None}
    return value


def written_at() -> str:
    """Now, with its time zone."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
