"""Files of what the page shows: the recipe, figures as PNG and SVG, and the numbers as a zarr store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from ..plot import plot_columns, plot_cross_talk, plot_image, plot_mask, plot_pacbed, save_figure
from .choices import Choices
from .engine import Look

RECIPE, FIGURES, SHOWN = "recipe.toml", "figures", "shown.zarr"
FORMATS = ("png", "svg")


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
    drawn = {"pacbed": plot_pacbed(pacbed, semi_angle=semi_angle)}
    drawn |= {f"image_{name}": plot_image(image, title=name, sites=sites) for name, image in conventional.items()}
    numbers = xr.Dataset({f"conventional_{name}": image for name, image in conventional.items()})
    if look is not None:
        drawn["columns"] = plot_columns(look.image, look.mask, semi_angle=semi_angle)
        drawn["cross_talk"] = plot_cross_talk(look.table)
        for name in look.image["template"].values.tolist():
            drawn[f"image_{name}"] = plot_image(look.image.sel(template=name), title=name)
            drawn[f"mask_{name}"] = plot_mask(
                look.mask.sel(template=name), title=f"mask of {name}", semi_angle=semi_angle
            )
        numbers = numbers.merge({"mask": look.mask, "image": look.image}, compat="override", join="outer")
        numbers = numbers.merge(look.table, compat="override")
    folder = out / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        save_figure(figure, folder / (re.sub(r"[^\w.+-]", "_", name) + f".{suffix}"))
        for name, figure in drawn.items()
        for suffix in FORMATS
    ]
    return [*files, _written(numbers.assign_attrs(counts=where), out / SHOWN)]


def _written(numbers: xr.Dataset, path: Path) -> Path:
    plain = numbers.drop_encoding()
    for name, variable in plain.variables.items():
        plain[name].attrs = {k: v for k, v in variable.attrs.items() if isinstance(v, str | int | float | list)}
        if variable.dtype.kind == "U":
            plain[name] = plain[name].astype(object)
    plain.to_zarr(path, mode="w", zarr_format=3, consolidated=False)
    return path
