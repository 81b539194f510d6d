"""A series of scans, of defocus or thickness or dose: curves of what was measured, and its images or masks in rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ..axes import DETECTOR, SCAN
from ..errors import InputError
from .drawing import bare, draw_image, draw_mask, draw_scale_bar, explain_detector, extent_lengths
from .style import COLOURS, INK, MARKERS, figure_of, new_axes, new_figure, styled

_ROBUST = 99.5  # percentile of a mask's weights at which its colours end


@styled
def plot_series(
    curves: xr.DataArray,
    over: str,
    *,
    spread: xr.DataArray | None = None,
    mark: float | None = None,
    style: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Curves of a series, each with a colour and a marker of its own.

    Parameters
    ----------
    curves : DataArray, dims (`over`, one other)
        The coordinate of `over` is the horizontal axis; those of the other name the curves. `long_name` and `units` in
        the attributes of both label the axes.
    over : str
        The dimension of the series, such as "defocus".
    spread : DataArray, same dims, optional
        Drawn as error bars to either side.
    mark : float, optional
        Where an upright line stands, such as the conditions that others are compared with.
    style : mapping of str to keywords of `Axes.plot`, optional
        Of curves by name, such as ``{"ABF": {"color": "black"}}``.
    title : str, default ""
    axes : matplotlib Axes, optional
        To draw into, without a legend, which several panels can share. Default: those of a new figure, with one.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    InputError
        If the curves have other dims, or no coordinates.

    Examples
    --------
    >>> table = xr.DataArray(
    ...     [[0.2, 0.9], [0.8, 0.9], [0.3, 0.8]], {"defocus": [-6, 0, 6], "image": ["ABF", "TDM"]}, name="R"
    ... )
    >>> table["defocus"].attrs["units"] = "nm"
    >>> axes = plot_series(table, "defocus", mark=0)
    >>> axes.get_xlabel(), [line.get_label() for line in axes.lines][:2]
    ('defocus (nm)', ['ABF', 'TDM'])
    """
    others = [dim for dim in curves.dims if dim != over]
    if over not in curves.dims or len(others) != 1 or over not in curves.coords or others[0] not in curves.coords:
        raise InputError(f"The curves have dims {tuple(curves.dims)}; expected ({over}, one other), with coordinates.")
    lines = curves.transpose(over, others[0])
    errors = None if spread is None else spread.transpose(over, others[0]).values
    own = axes is None
    axes = new_axes(3.2, 2.7) if axes is None else axes
    for number, name in enumerate(str(n) for n in lines[others[0]].values):
        looks: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 3.2,
            "markeredgecolor": INK,
            "markeredgewidth": 0.3,
            "linewidth": 1.2,
        } | dict((style or {}).get(name, {}))
        x, y = lines[over].values, lines.values[:, number]
        axes.plot(x, y, label=name, **looks)
        if errors is not None:
            axes.errorbar(x, y, errors[:, number], linestyle="none", ecolor=looks["color"], elinewidth=0.8)
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
    axes.set_xlabel(_label(lines[over]))
    axes.set_ylabel(_label(lines))
    axes.set_title(title)
    if own:
        figure_of(axes).legend(loc="outside lower center", ncols=min(lines.shape[1], 4), columnspacing=1.2)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


@styled
def plot_image_series(
    images: xr.DataArray,
    over: str,
    *,
    semi_angle: float | None = None,
    size: float = 1.0,
    figure: Figure | SubFigure | None = None,
) -> np.ndarray:
    """Images, or masks, of a series: a row for each kind of image, a column for each member of the series.

    Parameters
    ----------
    images : DataArray, dims (`over`, one other, y, x) or (`over`, one other, ky, kx)
        Each is drawn from its own darkest to its own brightest value; each mask with white at zero, to the weight that
        one pixel in two hundred exceeds.
    over : str
        The dimension of the series, whose coordinate is written above the columns, with its `units`.
    semi_angle : float, optional
        mrad; masks are drawn to 1.25 times that, with the edge of the disk.
    size : float, default 1
        Width of each image in inches, in a figure of its own.
    figure : matplotlib Figure or SubFigure, optional
        To draw into. Default: a new one.

    Returns
    -------
    ndarray of Axes (rows, columns)

    Raises
    ------
    InputError
        If the images have other dims, or no coordinates.

    Examples
    --------
    >>> steps = {dim: 0.3 * np.arange(9) for dim in ("y", "x")}
    >>> names = {"defocus": [-6, 0, 6], "made_by": ["ABF", "TDM"]}
    >>> images = xr.DataArray(np.random.default_rng(1).random((3, 2, 9, 9)), names | steps)
    >>> plot_image_series(images, "defocus").shape
    (2, 3)
    """
    plane = SCAN if set(SCAN) <= set(images.dims) else DETECTOR
    others = [dim for dim in images.dims if dim not in (over, *plane)]
    if images.ndim != 4 or len(others) != 1 or over not in images.coords or others[0] not in images.coords:
        raise InputError(
            f"The images have dims {tuple(images.dims)}; expected ({over}, one other, y, x) or ({over}, one other, "
            "ky, kx), with coordinates."
        )
    drawn = images.transpose(others[0], over, *plane)
    height, width = extent_lengths(drawn[0, 0]) if plane == SCAN else (1.0, 1.0)
    rows, columns = drawn.shape[:2]
    if figure is None:
        figure = new_figure(size * columns + 0.4, size * rows * height / width + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        image = drawn[row, column]
        if plane == SCAN:
            draw_image(axes, image, bar=False)
        else:
            limit = float(np.percentile(abs(image.values), _ROBUST)) or 1.0
            draw_mask(axes, image, semi_angle).set_clim(-limit, limit)
            explain_detector(axes, image, semi_angle, first=(row, column) == (rows - 1, 0))
        bare(axes)
    unit = drawn[over].attrs.get("units", "")
    for axes, value in zip(grid[0], drawn[over].values, strict=True):
        axes.set_title(f"{value:.3g} {unit}".strip().replace("-", "−"), loc="center", fontweight="normal")
    for axes, name in zip(grid[:, 0], drawn[others[0]].values, strict=True):
        axes.set_ylabel(str(name))
    if plane == SCAN:
        draw_scale_bar(grid[-1, 0], drawn[0, 0])
    return grid


def _label(array: xr.DataArray) -> str:
    """Name and unit of an axis; no unit where there is none."""
    name = str(array.attrs.get("long_name", array.name or ""))
    unit = array.attrs.get("units", "1")
    return name if unit in ("1", "") else f"{name} ({unit})"
