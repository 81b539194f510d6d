"""Images as files that other programs open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import xarray as xr

from ..axes import SCAN, step_of, unit_of
from ..errors import InputError
from ..reading.store import COUNTS, KEY

SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".zarr")


def check_image_path(path: str | Path, overwrite: bool = False) -> Path:
    """The file that an image can be written to; InputError if there can be none, before anything is computed.

    Examples
    --------
    >>> check_image_path("adf.tif").name
    'adf.tif'
    """
    if "://" in str(path):
        raise InputError("An image is written to a file, not to an address; give a path, and copy the file there.")
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise InputError(f'{path} ends in "{path.suffix}"; images are written as {known}.')
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; make it first.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another name, or overwrite=True to replace it.")
    if path.is_dir() and not _holds_an_image(path):
        raise InputError(f"{path} is a folder that holds no image; give another name, for all in it would be lost.")
    return path


def _holds_an_image(folder: Path) -> bool:
    """Whether a folder is a zarr group as an image is written to, and no store of counts."""
    try:
        top = json.loads((folder / "zarr.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return top.get("node_type") == "group" and KEY not in top.get("attributes", {}) and not (folder / COUNTS).exists()


def write_image(image: xr.DataArray, path: Path, *, title: str = "") -> Path:
    """Write an image (y, x), replacing a file of that name; the suffix chooses the format.

    .npy holds the bare array; .tif float32 with the pixel's size, as ImageJ reads it; .zarr the labelled
    array; .png a picture with a scale bar, not numbers.
    """
    suffix = path.suffix.lower()
    values = np.asarray(image.transpose(*SCAN).values)
    if suffix == ".npy":
        np.save(path, values)
    elif suffix in (".tif", ".tiff"):
        _write_tiff(image, values, path)
    elif suffix == ".zarr":
        if path.exists():
            shutil.rmtree(path)
        named = image.rename(image.name or "image").reset_coords(drop=True)
        named.to_dataset().to_zarr(path, mode="w", zarr_format=3, consolidated=False)
    else:
        from ..plot import plot_image, save_figure

        save_figure(plot_image(image, title=title), path)
    return path


def _write_tiff(image: xr.DataArray, values: np.ndarray, path: Path) -> None:
    from tifffile import imwrite

    calibrated = unit_of(image, "x") == "angstrom"
    steps = [abs(step_of(image, dim)) if calibrated else 1.0 for dim in ("x", "y")]
    imwrite(
        path,
        values.astype(np.float32),
        imagej=True,
        resolution=(1 / steps[0], 1 / steps[1]),
        metadata={"axes": "YX", "unit": "angstrom" if calibrated else "pixel"},
    )
