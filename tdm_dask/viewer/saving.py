"""Files of what the page shows: the recipe, figures as PNG and SVG, and the numbers as a zarr store."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from ..plot import plot_columns, plot_cross_talk, plot_image, plot_mask, plot_pacbed, save_figure
from ..recipe.run import write_plain
from .choices import Choices
from .engine import Look

RECIPE, FIGURES, SHOWN = "recipe.toml", "figures", "shown.zarr"
FORMATS = ("png", "svg")
LONGEST = 60  # characters of a name; a letter may be four of the 255 bytes that file systems have


def file_names(names: Iterable[str]) -> list[str]:
    """Names of files for names of any kind: without what is no part of one, not too long, each once.

    Examples
    --------
    >>> file_names(["mask_P+O", "mask_a/b", "mask_a:b"])
    ['mask_P+O', 'mask_a_b', 'mask_a_b-2']
    """
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.+-]", "_", name)[:LONGEST]
        taken, number, unique = {other.casefold() for other in found}, 1, plain
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}-{number}"
        found.append(unique)
    return found


def save_recipe(choices: Choices, source: str | Path, out: Path) -> Path:
    """The recipe in a folder, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / RECIPE
    path.write_text(choices.toml(source), encoding="utf-8")
    return path


def save_shown(
    out: Path,
    look: Look | None,
    pacbed: xr.DataArray,
    conventional: Mapping[str, xr.DataArray],
    semi_angle: float | None,
    where: str,
) -> list[Path]:
    """Figures and numbers of what is shown.

    Parameters
    ----------
    out : Path
    look : Look or None
        Masks and images, where there are any.
    pacbed : DataArray (ky, kx)
    conventional : dict of str to DataArray (y, x)
    semi_angle : float or None
        In mrad.
    where : str
        What the numbers are from, for the store.

    Returns
    -------
    list of Path
    """
    sites = None if look is None else look.choices.placed
    drawn: dict[str, Any] = {"pacbed": plot_pacbed(pacbed, semi_angle=semi_angle)}
    drawn |= {f"image_{name}": plot_image(image, title=name, sites=sites) for name, image in conventional.items()}
    groups = {"images": xr.Dataset()}
    if conventional:
        names = xr.DataArray(list(conventional), dims="detector", name="detector", attrs={"long_name": "detector"})
        parts = [image.reset_coords(drop=True) for image in conventional.values()]
        groups["images"]["virtual"] = xr.concat(parts, names, combine_attrs="drop_conflicts")
    if look is not None:
        drawn["columns"] = plot_columns(look.image, look.mask, semi_angle=semi_angle)
        drawn["cross_talk"] = plot_cross_talk(look.table)
        for name in look.image["template"].values.tolist():
            drawn[f"image_{name}"] = plot_image(look.image.sel(template=name), title=name)
            mask = look.mask.sel(template=name)
            drawn[f"mask_{name}"] = plot_mask(mask, title=f"mask of {name}", semi_angle=semi_angle)
        groups["images"]["image"] = look.image
        groups |= {"masks": look.mask.to_dataset(name="mask"), "evaluation": look.table}
    folder = out / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        save_figure(figure, folder / f"{name}.{suffix}")
        for name, figure in zip(file_names(drawn), drawn.values(), strict=True)
        for suffix in FORMATS
    ]
    shutil.rmtree(out / SHOWN, ignore_errors=True)
    for group, numbers in groups.items():
        write_plain(numbers.drop_encoding().assign_attrs(counts=where), out / SHOWN, group)
    return [*files, out / SHOWN]
