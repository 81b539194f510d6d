"""The figures of a report, each as a value: what draws it, from which results, and how a notebook writes that down."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..axes import TEMPLATE, unit_of
from ..plot import plot_columns, plot_cross_talk, plot_image, plot_mask, plot_pacbed, save_figure
from ..plot.evidence import plot_offsets, plot_significance
from ..recipe.run import VIRTUAL, RecipeResult
from .tables import kinds_of


@dataclass(frozen=True)
class Value:
    """A value, and the code that gives it where the results are open under their names."""

    code: str
    value: Any


@dataclass(frozen=True)
class Picture:
    """One drawing: the name of its file, the call that makes it, and what it shows to those who do not see it."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Value, ...]
    options: Mapping[str, Value]
    alt: str

    def draw(self) -> Any:
        """The Axes that the function gives."""
        options = {name: option.value for name, option in self.options.items()}
        return self.function(*(argument.value for argument in self.arguments), **options)

    @property
    def code(self) -> str:
        """The same as Python."""
        parts = [argument.code for argument in self.arguments]
        parts += [f"{name}={option.code}" for name, option in self.options.items()]
        return f"{self.function.__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class Figure:
    """What stands together under one number: its pictures, the part of the report that it belongs to, its caption."""

    part: str
    pictures: tuple[Picture, ...]
    caption: str


def semi_angle_of(result: RecipeResult) -> float | None:
    """Radius of the bright-field disk in mrad, where the detector is calibrated."""
    angle = result.counts.attrs.get("semi_angle_mrad")
    return float(angle) if angle is not None and unit_of(result.counts, "kx") == "mrad" else None


def kinds_of_evidence(result: RecipeResult) -> list[str]:
    """Templates that have a verdict."""
    return [str(kind) for kind in result.evidence[TEMPLATE].values] if "verdict" in result.evidence else []


def image_names(result: RecipeResult) -> list[str]:
    """Templates that have an image and a mask."""
    return [str(name) for name in result.images[TEMPLATE].values] if "image" in result.images else []


def figures_of(result: RecipeResult) -> list[Figure]:
    """All figures, in the order of their numbers."""
    return [*_overview(result), *_pattern(result), *_cross_talk(result), *_evidence(result), *_pairs(result)]


def _overview(result: RecipeResult) -> Iterator[Figure]:
    if "image" not in result.images:
        return
    images, masks = Value('images["image"]', result.images["image"]), Value('masks["mask"]', result.masks["mask"])
    names = ", ".join(image_names(result))
    alt = f"A row of images, of {names}, each over the mask that made it."
    picture = Picture("columns", plot_columns, (images, masks), _disk(result), alt)
    caption = (
        "Images of one kind of atom column each (above), and the masks that make them (below): the counts of red "
        "detector pixels are added, those of blue ones subtracted."
    )
    yield Figure("overview", (picture,), caption + _circle(result))


def _pattern(result: RecipeResult) -> Iterator[Figure]:
    pattern = Value("pacbed", result.pacbed)
    alt = "The mean pattern over the detector, brightest in the bright-field disk, with a scale of mean counts."
    caption = "Mean of all patterns (PACBED), in counts, on a logarithmic scale."
    if semi_angle_of(result) is not None:
        caption += f" Dashed: the bright-field disk, {_angle(result)} in radius; cross: the optic axis."
    yield Figure("pattern", (Picture("pacbed", plot_pacbed, (pattern,), _disk(result), alt),), caption)
    sites = result.sites if unit_of(result.counts, "x") == "angstrom" else {}
    for number, (name, spec) in enumerate(result.recipe.detectors.items()):
        options = {"title": _literal(name)}
        marked = bool(sites) and number == 0
        if marked:
            options["sites"] = Value("sites", sites)
        image = _of(result.images["virtual"], 'images["virtual"]', VIRTUAL, name)
        alt = f"The {name} image of the scan in grey, with a scale bar{' and the sites marked' * marked}."
        caption = f"{name}: the counts of the detector {spec} at every probe position."
        caption += " Marked: the sites that the templates were made of." * marked
        yield Figure("pattern", (Picture(f"image_{name}", plot_image, (image,), options, alt),), caption)


def _cross_talk(result: RecipeResult) -> Iterator[Figure]:
    if not kinds_of(result):
        return
    table = Value("evaluation", result.evaluation)
    alt = "Three heat maps of images against templates: R, G and their difference, with each number written in."
    caption = (
        "R, G and their difference for the kinds of column alone. R − G is what one kind leaves in the image of "
        "another, beyond what their places explain."
    )
    yield Figure("cross-talk", (Picture("cross_talk", plot_cross_talk, (table,), {}, alt),), caption)


def _evidence(result: RecipeResult) -> Iterator[Figure]:
    for kind in kinds_of_evidence(result):
        found = (Value("evidence", result.evidence), _literal(kind))
        pictures, caption, start = [], f"{kind}. ", "Correlation"
        if "response" in result.evidence and result.evidence["response"].sel({TEMPLATE: kind}).notnull().all():
            alt = f"The response of the template of {kind} at every offset in the unit cell, in angstrom."
            pictures.append(Picture(f"offsets_{kind}", plot_offsets, found, {}, alt))
            caption += (
                "Left: how strongly the template responds when all of its sites are moved together; the cross is where "
                "they were assumed, outlines hold what is the same place. "
            )
            start = "Right: correlation"
        alt = f"Detector pixels by their correlation with the template of {kind}, those beyond chance outlined."
        pictures.append(Picture(f"significance_{kind}", plot_significance, found, _disk(result), alt))
        caption += (
            f"{start} of each detector pixel, over its root mean square for random sites; outlined where it is more "
            "than chance."
        )
        yield Figure("evidence", tuple(pictures), caption)


def _pairs(result: RecipeResult) -> Iterator[Figure]:
    for name in image_names(result):
        image = _of(result.images["image"], 'images["image"]', TEMPLATE, name)
        mask = _of(result.masks["mask"], 'masks["mask"]', TEMPLATE, name)
        whose = "all columns" if name == _all_name(result) else name
        pictures = (
            Picture(
                f"image_{name}",
                plot_image,
                (image,),
                {"title": _literal(name)},
                f"The image of {whose} in grey, with a scale bar.",
            ),
            Picture(
                f"mask_{name}",
                plot_mask,
                (mask,),
                {"title": _literal(f"mask of {name}")} | _disk(result),
                f"The mask of {whose} over the detector in mrad, red where it adds and blue where it subtracts.",
            ),
        )
        yield Figure("pairs", pictures, f"The image of {whose}, and the mask that made it.")


def _all_name(result: RecipeResult) -> str | None:
    return None if result.recipe.templates is None else result.recipe.templates.all_name


def _of(array: Any, code: str, dim: str, name: str) -> Value:
    """One of several images or masks, by its name."""
    return Value(f"{code}.sel({dim}={_literal(name).code})", array.sel({dim: name}))


def _literal(text: str) -> Value:
    return Value(json.dumps(text, ensure_ascii=False), text)


def _disk(result: RecipeResult) -> dict[str, Value]:
    angle = semi_angle_of(result)
    return {} if angle is None else {"semi_angle": Value("semi_angle", angle)}


def _angle(result: RecipeResult) -> str:
    return f"{semi_angle_of(result):.4g} mrad"


def _circle(result: RecipeResult) -> str:
    known = semi_angle_of(result) is not None
    return f" The dashed circle is the bright-field disk, {_angle(result)} in radius." if known else ""


def draw_figures(figures: list[Figure], folder: Path) -> dict[str, Path]:
    """Write every picture as PNG; gives its file by its name."""
    folder.mkdir(exist_ok=True)
    files: dict[str, Path] = {}
    for figure in figures:
        for picture in figure.pictures:
            path = _free(folder, re.sub(r"[^\w.+-]", "_", picture.name), set(files.values()))
            files[picture.name] = save_figure(picture.draw(), path)
    return files


def _free(folder: Path, stem: str, taken: set[Path]) -> Path:
    """A file that no other picture has: names may differ in what a file's cannot hold."""
    names = [stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 2))]
    # Some disks take capitals for small letters.
    lower = {path.name.lower() for path in taken}
    return folder / next(f"{name}.png" for name in names if f"{name}.png".lower() not in lower)
