"""What figures are put together from, each drawn into given Axes: images, sites, masks, disks, rings, scale bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea, HPacker, TextArea
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from ..axes import DETECTOR, SCAN, TEMPLATE, step_of, unit_of
from ..errors import InputError
from .style import COLOURS, DIVERGING, GREY, INK, MARKERS

MICROMETRE = 1e4  # angstrom
SHOWN = 1.25  # of the semi-angle, to where masks of the bright-field disk are shown
DASHED = (0, (4, 3))
SMALL = 6.5  # points, of the numbers of rings

Sites = Mapping[str, Any]


def two_dimensional(array: xr.DataArray, dims: Sequence[str], what: str) -> np.ndarray:
    """Values of an array of just these dims, in their order; InputError for any other."""
    if set(array.dims) != set(dims):
        raise InputError(f"The {what} has dims {tuple(array.dims)}; one with dims {tuple(dims)} can be drawn.")
    return np.asarray(array.transpose(*dims).values, dtype=np.float64)


def signed(value: float, digits: int) -> str:
    """A number with its sign, a true minus, and no sign of a number that rounds to zero from below.

    Examples
    --------
    >>> signed(-0.004, 2), signed(0.31, 1)
    ('+0.00', '+0.3')
    """
    return f"{round(float(value), digits) + 0.0:+.{digits}f}".replace("-", "−")


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


def image_size(image: xr.DataArray, side: float) -> tuple[float, float]:
    """Width and height in inches of an image whose longer side is `side`."""
    height, width = extent_lengths(image)
    return (side, side * height / width) if width >= height else (side * width / height, side)


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


def draw_scale_bar(axes: Axes, array: xr.DataArray, dims: Sequence[str] = SCAN) -> None:
    """A bar below an image, or a mask with `dims` of the detector: inside, it would cover columns."""
    left, right, bottom, top = extent_of(array, dims)
    length = round_length(abs(right - left) / 4)
    axes.add_artist(
        AnchoredSizeBar(
            axes.transData,
            length,
            length_text(length, unit_of(array, dims[1]), "probe positions" if dims == SCAN else "px"),
            size_vertical=abs(bottom - top) / 90,
            color=INK,
            sep=2.5,
            **_below(axes),
        )
    )


def _below(axes: Axes) -> dict[str, Any]:
    """Where what explains a map without ticks is anchored."""
    at = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": axes.transAxes}
    return at | {"pad": 0.0, "borderpad": 0.35, "frameon": False}


def round_length(target: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `target`."""
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9)))


def length_text(length: float, unit: str, pixels: str) -> str:
    if unit != "angstrom":
        return f"{length:g} {pixels if unit == 'px' else unit}"
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


def draw_mask_bare(
    axes: Axes, mask: xr.DataArray, semi_angle: float | None, rings: Sequence[float] = (), *, first: bool
) -> AxesImage:
    """A mask without ticks, not far beyond the disk; the first of several says how large it is."""
    picture = draw_mask(axes, mask, semi_angle)
    bare(axes)
    explain_detector(axes, mask, semi_angle, rings, first=first)
    return picture


def explain_detector(
    axes: Axes, mask: xr.DataArray, semi_angle: float | None, rings: Sequence[float] = (), *, first: bool
) -> None:
    """How large what a bare map shows is: the first of several maps says it for all."""
    draw_rings(axes, rings, numbered=first)
    if semi_angle is not None and unit_of(mask, "kx") == "mrad":
        show_disk(axes, semi_angle)
        if first:
            name_disk_below(axes, semi_angle)
    elif first:
        draw_scale_bar(axes, mask, DETECTOR)


def draw_disk(axes: Axes, radius: float, colour: str) -> None:
    """A dashed circle about the optic axis; a light one has a dark edge, for bright patterns."""
    disk = Circle((0, 0), radius, fill=False, edgecolor=colour, linestyle=DASHED, linewidth=0.8)
    if colour != INK:
        disk.set_path_effects([withStroke(linewidth=2.0, foreground=INK)])
    axes.add_patch(disk)


def show_disk(axes: Axes, semi_angle: float, least: float = 0.0) -> None:
    """Show what is within 1.25 times the semi-angle, and no less than `least` mrad to every side."""
    reach = max(SHOWN * semi_angle, least)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(reach, -reach)


def semi_angle_text(semi_angle: float) -> str:
    """What names the edge of the bright-field disk."""
    return f"α = {semi_angle:.3g} mrad"


def name_disk(axes: Axes, semi_angle: float, colour: str = INK) -> None:
    """What the dashed circle is, in the lower left corner, which the disk leaves free."""
    # On a detector that ends with the disk there would be no corner.
    (left, right), (bottom, top), reach = axes.get_xlim(), axes.get_ylim(), SHOWN * semi_angle
    axes.set(xlim=(min(left, -reach), max(right, reach)), ylim=(max(bottom, reach), min(top, -reach)))
    text = axes.annotate(
        semi_angle_text(semi_angle), (0, 0), (3, 3), xycoords="axes fraction", textcoords="offset points"
    )
    text.set(fontsize=7, color=colour, bbox=_plate("white" if colour == INK else INK))


def name_disk_below(axes: Axes, semi_angle: float) -> None:
    """What the dashed circle is, below a map without ticks."""
    dashes = Line2D([0, 10], [0, 0], color=INK, linestyle=(0, (3.2, 2.2)), linewidth=0.8)
    area = DrawingArea(10, 0, 0, 0)
    area.add_artist(dashes)
    text = TextArea(semi_angle_text(semi_angle), textprops={"color": INK, "size": 7})
    both = HPacker(children=[area, text], align="center", pad=0, sep=2)
    axes.add_artist(AnchoredOffsetbox(child=both, **_below(axes)))


def name_edge(axes: Axes, place: float, text: str) -> None:
    """Name an upright line at the top, on the side where there is more room."""
    low, high = axes.get_xlim()
    left = (place - low) / (high - low) > 0.7
    axes.annotate(
        text,
        (place, 1),
        (-3 if left else 3, -3),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        fontsize=7,
        ha="right" if left else "left",
        va="top",
    )


def ring_radii(mask: xr.DataArray, semi_angle: float | None, reach: float | None = None) -> list[float]:
    """Round angles inside what is shown of a detector in mrad, none so near the semi-angle that the two run together.

    Examples
    --------
    >>> from ..axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 47, 2.0, -46.0, "mrad") for dim in ("ky", "kx")}
    >>> ring_radii(xr.DataArray(np.zeros((47, 47)), angles, ("ky", "kx")), semi_angle=21.4)
    [10.0, 30.0, 40.0]
    """
    if unit_of(mask, "kx") != "mrad":
        return []
    reach = reach or max(abs(edge) for edge in extent_of(mask, DETECTOR))
    step = round_length(reach / 2.5)
    radii = step * np.arange(1, int(0.97 * reach / step) + 1)
    return [float(r) for r in radii if semi_angle is None or abs(r - semi_angle) > 0.1 * reach]


def draw_rings(axes: Axes, radii: Sequence[float], *, numbered: bool = True) -> None:
    """Thin circles about the optic axis, each with its radius at its upper right, the outermost with the unit."""
    if not len(radii):
        return
    angle = np.append(np.linspace(0, 2 * np.pi, 181), np.nan)
    x, y = (np.concatenate([r * f(angle) for r in radii]) for f in (np.cos, np.sin))
    # With a light edge, which shows on strong colours.
    light = [withStroke(linewidth=1.3, foreground="white", alpha=0.4)]
    axes.plot(x, y, color=INK, linewidth=0.5, alpha=0.6, path_effects=light, scalex=False, scaley=False)
    for radius in radii if numbered else ():
        text = f"{radius:g}" + " mrad" * (radius == max(radii))
        at = radius * np.sqrt(0.5)
        style: dict[str, Any] = {"fontsize": SMALL, "color": INK, "bbox": _plate("white")}
        axes.text(at, -at, text, ha="center", va="center", clip_on=True, **style)


def _plate(colour: str) -> dict[str, Any]:
    """Behind a text on a map; its letters with an edge of their own would no longer be text in a vector file."""
    return {"facecolor": colour, "edgecolor": "none", "alpha": 0.7, "boxstyle": "square,pad=0.12"}


def draw_outline(axes: Axes, flags: xr.DataArray) -> None:
    """Lines along the edges of the detector pixels that are flagged."""
    inside = np.pad(two_dimensional(flags, DETECTOR, "flags") > 0, 1)
    left, right, bottom, top = extent_of(flags, DETECTOR)
    y, x = np.linspace(top, bottom, flags.sizes["ky"] + 1), np.linspace(left, right, flags.sizes["kx"] + 1)
    lines = [((x[j], y[i]), (x[j + 1], y[i])) for i, j in np.argwhere(inside[:-1, 1:-1] != inside[1:, 1:-1])]
    lines += [((x[j], y[i]), (x[j], y[i + 1])) for i, j in np.argwhere(inside[1:-1, :-1] != inside[1:-1, 1:])]
    axes.add_collection(LineCollection(lines, colors=INK, linewidths=0.7, capstyle="round"))


def draw_colour_bar(axes: Axes, picture: ScalarMappable, label: str, unit: str = "1", **options: Any) -> None:
    """A colour bar as high as the map is, whatever room there is, with the quantity and its unit."""
    unit = "" if unit in ("1", "") else f" ({unit})"
    bar = axes.figure.colorbar(picture, cax=axes.inset_axes((1.04, 0.06, 0.055, 0.88)), label=label + unit, **options)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
