"""What figures are put together from, each drawn into given Axes: images, sites, masks, disks, scale bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from ..axes import DETECTOR, SCAN, TEMPLATE, step_of, unit_of
from ..errors import InputError
from .style import COLOURS, DIVERGING, GREY, INK, MARKERS

MICROMETRE = 1e4  # angstrom

Sites = Mapping[str, Any]


def two_dimensional(array: xr.DataArray, dims: Sequence[str], what: str) -> np.ndarray:
    """Values of an array of just these dims, in their order; InputError for any other."""
    if set(array.dims) != set(dims):
        raise InputError(f"The {what} has dims {tuple(array.dims)}; one with dims {tuple(dims)} can be drawn.")
    return np.asarray(array.transpose(*dims).values, dtype=np.float64)


def name_of(array: xr.DataArray) -> str:
    """The template that an image or a mask is of; "" where it says none."""
    return str(array.coords[TEMPLATE].values) if TEMPLATE in array.coords else ""


def extent_of(array: xr.DataArray, dims: Sequence[str]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top edge of the outer pixels, the first row on top."""
    edges = []
    for dim in dims:
        size = array.sizes[dim]
        first = float(array[dim].values[0]) if dim in array.coords else 0.0
        step = step_of(array, dim) if dim in array.coords else 1.0
        edges.append((first - step / 2, first + (size - 0.5) * step))
    (top, bottom), (left, right) = edges
    return left, right, bottom, top


def extent_lengths(array: xr.DataArray) -> tuple[float, float]:
    """Height and width of a scan in the unit of its axes."""
    left, right, bottom, top = extent_of(array, SCAN)
    return abs(bottom - top), abs(right - left)


def draw_image(axes: Axes, image: xr.DataArray, *, bar: bool = True) -> AxesImage:
    """An image (y, x) in grey, with a scale bar below it unless `bar` is False."""
    values = two_dimensional(image, SCAN, "image")
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise InputError("The image holds no finite value, so there is nothing to show.")
    # A few outliers would otherwise decide the contrast of a whole large scan.
    low, high = np.percentile(finite, (0.2, 99.8))
    picture = axes.imshow(values, cmap=GREY, vmin=low, vmax=high, extent=extent_of(image, SCAN))
    bare(axes)
    if bar:
        draw_scale_bar(axes, image)
    return picture


def bare(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def label_detector(axes: Axes, array: xr.DataArray) -> None:
    """Names and units of the detector's axes."""
    axes.set_xlabel(f"kx ({unit_of(array, 'kx')})")
    axes.set_ylabel(f"ky ({unit_of(array, 'ky')})")


def draw_scale_bar(axes: Axes, image: xr.DataArray) -> None:
    """A bar below the image: inside, it would cover columns."""
    height, width = extent_lengths(image)
    length = _round_length(width / 4)
    axes.add_artist(
        AnchoredSizeBar(
            axes.transData,
            length,
            _length_text(length, unit_of(image, "x")),
            loc="upper left",
            bbox_to_anchor=(0, 0),
            bbox_transform=axes.transAxes,
            pad=0.0,
            borderpad=0.35,
            sep=2.5,
            frameon=False,
            size_vertical=height / 90,
            color=INK,
        )
    )


def _round_length(target: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `target`."""
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9)))


def _length_text(length: float, unit: str) -> str:
    if unit != "angstrom":
        return f"{length:g} {'probe positions' if unit == 'px' else unit}"
    if length >= MICROMETRE:
        return f"{length / MICROMETRE:g} µm"
    return f"{length / 10:g} nm" if length >= 10 else f"{length:g} Å"


def draw_sites(axes: Axes, image: xr.DataArray, sites: Sites, first: int = 0) -> list[Line2D]:
    """Markers at the sites inside an image, the kinds numbered from `first`; gives the handles of a legend."""
    left, right, bottom, top = extent_of(image, SCAN)
    handles = []
    # Markers of a field with many columns would hide it.
    number_of_sites = sum(len(places) for places in sites.values())
    size = float(np.clip(75 / np.sqrt(number_of_sites), 0.8, 3.4))
    for number, (kind, places) in enumerate(sites.items(), start=first):
        at = np.atleast_2d(np.asarray(places, dtype=np.float64))
        inside = (at[:, 0] >= top) & (at[:, 0] <= bottom) & (at[:, 1] >= left) & (at[:, 1] <= right)
        style: dict[str, Any] = {
            "marker": MARKERS[number % len(MARKERS)],
            "color": COLOURS[number % len(COLOURS)],
            "markeredgecolor": INK,
            "markeredgewidth": 0.15 * size,
            "markersize": size,
            "linestyle": "none",
        }
        axes.plot(at[inside, 1], at[inside, 0], **style)
        handles.append(Line2D([], [], label=kind, **style | {"markersize": 4.0}))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return handles


def draw_mask(axes: Axes, mask: xr.DataArray, semi_angle: float | None = None) -> AxesImage:
    """A mask (ky, kx), its colours centred on zero, and the edge of the bright-field disk where that is known."""
    values = two_dimensional(mask, DETECTOR, "mask")
    limit = float(np.nanmax(np.abs(values))) or 1.0
    picture = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, extent=extent_of(mask, DETECTOR))
    if semi_angle is not None and unit_of(mask, "kx") == "mrad":
        draw_disk(axes, semi_angle, INK)
    return picture


def draw_disk(axes: Axes, radius: float, colour: str) -> None:
    """A dashed circle about the optic axis."""
    axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=colour, linestyle=(0, (4, 3)), linewidth=0.8))
