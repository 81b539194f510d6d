"""Figures, in one style: grey images with a scale bar, diverging masks in mrad, tables as heat maps.

Every function returns a matplotlib Figure of its own, without pyplot: none needs a display or leaves state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from .axes import DETECTOR, SCAN, TEMPLATE, step_of, unit_of
from .errors import InputError

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "image.interpolation": "nearest",
}
GREY, DIVERGING, SEQUENTIAL = "gray", "RdBu_r", "magma"
INK = "#1a1a1a"
# Okabe and Ito's colours, told apart with any colour vision, each with a marker of its own.
COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DETECTOR_SIZE = (3.5, 2.9)  # inches
MICROMETRE = 1e4  # angstrom

Sites = Mapping[str, Any]


def _styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure at 200 dots per inch; the suffix of `path` chooses the format."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, bbox_inches="tight", pad_inches=0.06, facecolor="white")
    return Path(path)


@_styled
def plot_image(image: xr.DataArray, *, sites: Sites | None = None, title: str | None = None) -> Figure:
    """An image in grey with a scale bar and, on request, the sites of every kind of column.

    Parameters
    ----------
    image : xarray.DataArray
        Dims (y, x), in angstrom or px.
    sites : mapping of str to array_like, optional
        Kind of column to its (y, x) positions in angstrom. Default: none are drawn.
    title : str, optional
        Default: the name of the image's template, where it has one.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_image(xr.DataArray(np.eye(8), dims=("y", "x")), title="ABF")
    >>> figure.axes[0].get_title(loc="left")
    'ABF'
    """
    values = _two_dimensional(image, SCAN, "image")
    height, width = _extent_lengths(image)
    side = 2.6
    size = (side, side * height / width) if width >= height else (side * width / height, side)
    figure = Figure(figsize=(size[0], size[1] + 0.7 + (0.3 if sites else 0.0)), layout="constrained")
    axes = figure.add_subplot()
    _draw_image(axes, image, values)
    if sites:
        handles = _draw_sites(axes, image, sites)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), handletextpad=0.2)
    axes.set_title(_name_of(image) if title is None else title)
    return figure


@_styled
def plot_mask(mask: xr.DataArray, *, semi_angle: float | None = None, title: str | None = None) -> Figure:
    """A mask over the detector, red where it adds and blue where it subtracts.

    Parameters
    ----------
    mask : xarray.DataArray
        Dims (ky, kx), in mrad or px.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed circle.
    title : str, optional
        Default: the name of the mask's template, where it has one.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_mask(xr.DataArray(np.eye(8), dims=("ky", "kx")))
    >>> figure.axes[0].get_xlabel()
    'kx (px)'
    """
    figure = Figure(figsize=DETECTOR_SIZE, layout="constrained")
    axes = figure.add_subplot()
    picture = _draw_mask(axes, mask, semi_angle)
    axes.set_xlabel(f"kx ({unit_of(mask, 'kx')})")
    axes.set_ylabel(f"ky ({unit_of(mask, 'ky')})")
    axes.set_title(_name_of(mask) if title is None else title)
    figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.03).outline.set_visible(False)
    return figure


@_styled
def plot_columns(
    images: xr.DataArray, masks: xr.DataArray, *, sites: Sites | None = None, semi_angle: float | None = None
) -> Figure:
    """Images of kinds of column side by side, each over the mask that made it.

    Parameters
    ----------
    images : xarray.DataArray
        Dims (template, y, x).
    masks : xarray.DataArray
        Dims (template, ky, kx), with the same names in the same order.
    sites : mapping of str to array_like, optional
        Sites in angstrom, drawn in the image of the same name.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad. The masks are shown a little further than that.
    """
    names = [str(name) for name in images[TEMPLATE].values]
    if names != [str(name) for name in masks[TEMPLATE].values]:
        raise InputError(f"The images are {names}, the masks {list(masks[TEMPLATE].values)}; they must be the same.")
    height, width = _extent_lengths(images)
    column = 1.9
    figure = Figure(figsize=(column * len(names), column * (height / width + 1) + 0.75), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False, gridspec_kw={"height_ratios": [height / width, 1]})
    for position, name in enumerate(names):
        image, mask = images.isel({TEMPLATE: position}), masks.isel({TEMPLATE: position})
        above, below = grid[:, position]
        _draw_image(above, image, _two_dimensional(image, SCAN, "image"), bar=position == 0)
        if sites and name in sites:
            _draw_sites(above, image, {name: sites[name]}, list(sites).index(name))
        above.set_title(name)
        _draw_mask(below, mask, semi_angle)
        below.set_xticks([])
        below.set_yticks([])
        below.spines[:].set_visible(False)
        if semi_angle is not None and unit_of(mask, "kx") == "mrad":
            below.set_xlim(-1.15 * semi_angle, 1.15 * semi_angle)
            below.set_ylim(1.15 * semi_angle, -1.15 * semi_angle)
    return figure


@_styled
def plot_cross_talk(table: xr.Dataset) -> Figure:
    """The table of :func:`tdm_dask.evaluation.cross_talk` as three heat maps: R, G and R - G."""
    difference = table.R - table.G
    # The diagonal of R - G says how far an image is from its own template; cross-talk is what lies off it.
    own = table.R.image != table.R.template
    panels = (
        ("R: image with template", table.R, None),
        ("G: template with template", table.G, None),
        ("R − G: cross-talk", difference, own),
    )
    rows, columns = table.sizes["image"], table.sizes["template"]
    figure = Figure(figsize=(3 * (0.55 * columns + 0.75), 0.42 * rows + 1.2), layout="constrained")
    for axes, (title, values, shown) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        data = values.transpose("image", "template").values
        drawn = np.where(shown.transpose("image", "template").values, data, np.nan) if shown is not None else data
        axes.imshow(drawn, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(drawn):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else INK
                text = f"{value:+.2f}".replace("-", "−")
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
        axes.set_xticks(range(columns), [str(name) for name in table.template.values])
        axes.set_yticks(range(rows), [str(name) for name in table.image.values])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("template")
    figure.axes[0].set_ylabel("image")
    return figure


@_styled
def plot_pacbed(
    pattern: xr.DataArray, *, semi_angle: float | None = None, title: str = "PACBED (mean pattern)"
) -> Figure:
    """The mean pattern on a logarithmic grey scale, with the bright-field disk that was found in it.

    Parameters
    ----------
    pattern : xarray.DataArray
        Dims (ky, kx), mean counts, in mrad or px.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn about the optic axis.
    title : str
        Above the figure.
    """
    values = _two_dimensional(pattern, DETECTOR, "pattern")
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size == 0:
        raise InputError("The mean pattern holds no counts, so there is nothing to show.")
    figure = Figure(figsize=DETECTOR_SIZE, layout="constrained")
    axes = figure.add_subplot()
    floor = max(float(positive.min()), float(positive.max()) * 1e-5)
    picture = axes.imshow(
        np.clip(values, floor, None),
        cmap=SEQUENTIAL,
        norm=mpl.colors.LogNorm(floor, positive.max()),
        extent=_extent(pattern, DETECTOR),
    )
    if semi_angle is not None:
        _draw_disk(axes, semi_angle, "white")
        axes.plot(0, 0, "+", color="white", markersize=7, markeredgewidth=0.9)
    axes.set_xlabel(f"kx ({unit_of(pattern, 'kx')})")
    axes.set_ylabel(f"ky ({unit_of(pattern, 'ky')})")
    axes.set_title(title)
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.03, label="mean counts", format="%g")
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    return figure


def _two_dimensional(array: xr.DataArray, dims: Sequence[str], what: str) -> np.ndarray:
    if set(array.dims) != set(dims):
        raise InputError(f"The {what} has dims {tuple(array.dims)}; one with dims {tuple(dims)} can be drawn.")
    return np.asarray(array.transpose(*dims).values, dtype=np.float64)


def _name_of(array: xr.DataArray) -> str:
    return str(array.coords[TEMPLATE].values) if TEMPLATE in array.coords else ""


def _extent(array: xr.DataArray, dims: Sequence[str]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top edge of the outer pixels, the first row on top."""
    edges = []
    for dim in dims:
        size = array.sizes[dim]
        first = float(array[dim].values[0]) if dim in array.coords else 0.0
        step = step_of(array, dim) if dim in array.coords else 1.0
        edges.append((first - step / 2, first + (size - 0.5) * step))
    (top, bottom), (left, right) = edges
    return left, right, bottom, top


def _extent_lengths(array: xr.DataArray) -> tuple[float, float]:
    left, right, bottom, top = _extent(array, SCAN)
    return abs(bottom - top), abs(right - left)


def _draw_image(axes: Axes, image: xr.DataArray, values: np.ndarray, *, bar: bool = True) -> None:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise InputError("The image holds no finite value, so there is nothing to show.")
    # A few outliers would otherwise decide the contrast of a whole large scan.
    low, high = np.percentile(finite, (0.2, 99.8))
    axes.imshow(values, cmap=GREY, vmin=low, vmax=high, extent=_extent(image, SCAN))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if bar:
        _draw_scale_bar(axes, image)


def _draw_scale_bar(axes: Axes, image: xr.DataArray) -> None:
    """A bar below the image: inside, it would cover columns."""
    height, width = _extent_lengths(image)
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


def _draw_sites(axes: Axes, image: xr.DataArray, sites: Sites, first: int = 0) -> list[Line2D]:
    left, right, bottom, top = _extent(image, SCAN)
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


def _draw_mask(axes: Axes, mask: xr.DataArray, semi_angle: float | None) -> Any:
    values = _two_dimensional(mask, DETECTOR, "mask")
    limit = float(np.nanmax(np.abs(values))) or 1.0
    picture = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, extent=_extent(mask, DETECTOR))
    if semi_angle is not None and unit_of(mask, "kx") == "mrad":
        _draw_disk(axes, semi_angle, INK)
    return picture


def _draw_disk(axes: Axes, radius: float, colour: str) -> None:
    axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=colour, linestyle=(0, (4, 3)), linewidth=0.8))
