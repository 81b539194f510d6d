"""Components of a scan: how much each explains, and its image over its mask."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..axes import DETECTOR, unit_of
from ..errors import InputError
from ..imaging.components import COMPONENT
from .drawing import (
    bare,
    draw_disk,
    draw_image,
    draw_mask,
    explain_detector,
    extent_lengths,
    extent_of,
    two_dimensional,
)
from .style import COLOURS, SEQUENTIAL, new_figure, styled

COLUMN = 1.55  # inches


@styled
def plot_components(
    components: xr.Dataset,
    *,
    semi_angle: float | None = None,
    figure: Figure | SubFigure | None = None,
) -> np.ndarray:
    """How much each component explains, and beside it the image of each over its mask.

    Parameters
    ----------
    components : xarray.Dataset
        As `principal_components` or `nonnegative_components` returned it.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed circle; masks are shown to 1.25 times that. Default:
        that of the attributes.
    figure : matplotlib Figure or SubFigure, optional
        To draw into. Default: a new one.

    Returns
    -------
    array of matplotlib Axes
        That of the fractions, those of the images, those of the masks.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> from tdm_dask.imaging.components import principal_components
    >>> counts = label_counts(np.random.default_rng(0).poisson(5, (16, 16, 4, 4)).astype(np.uint16))
    >>> len(plot_components(principal_components(counts, n=2)))
    5
    """
    missing = {"image", "mask", "fraction"} - set(components.variables)
    if missing:
        raise InputError(f"The Dataset lacks {sorted(missing)}; expected what principal_components returns.")
    n = components.sizes[COMPONENT]
    semi_angle = components.attrs.get("semi_angle_mrad") if semi_angle is None else semi_angle
    height, width = extent_lengths(components["image"])
    if figure is None:
        figure = new_figure(COLUMN * (n + 1.3), COLUMN * (height / width + 1) + 0.75)
    grid = figure.add_gridspec(2, n + 1, width_ratios=[1.2] + [1] * n, height_ratios=[height / width, 1])
    spectrum = figure.add_subplot(grid[:, 0])
    _draw_fractions(spectrum, components["fraction"])
    above = [figure.add_subplot(grid[0, k + 1]) for k in range(n)]
    below = [figure.add_subplot(grid[1, k + 1]) for k in range(n)]
    for k, (image_axes, mask_axes) in enumerate(zip(above, below, strict=True)):
        part = components.isel({COMPONENT: k})
        draw_image(image_axes, part["image"], bar=k == 0)
        image_axes.set_title(f"{part[COMPONENT].item()}: {_percent(part['fraction'].item())}")
        _draw_weights(mask_axes, part["mask"], semi_angle)
        bare(mask_axes)
        explain_detector(mask_axes, part["mask"], semi_angle, first=k == 0)
    return np.array([spectrum, *above, *below])


def _draw_fractions(axes: Axes, fraction: xr.DataArray) -> None:
    number, percent = fraction[COMPONENT].values, 100 * fraction.values
    axes.plot(number, percent, marker="o", markersize=4, color=COLOURS[-1], linewidth=0.8)
    if percent.min() > 0 and percent.max() > 5 * percent.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(number[0] - 0.5, number[-1] + 0.5)
    axes.set_xlabel("component")
    axes.set_ylabel(f"{fraction.attrs['long_name']} (%)")
    axes.spines[["top", "right"]].set_visible(False)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def _draw_weights(axes: Axes, mask: xr.DataArray, semi_angle: float | None) -> None:
    """A mask about zero in two colours, or a pattern without negative weights in one, its square root for its span."""
    values = two_dimensional(mask, DETECTOR, "mask")
    if values.min() < 0:
        draw_mask(axes, mask, semi_angle)
        return
    norm = mpl.colors.PowerNorm(0.5, 0.0, values.max() or 1.0)
    axes.imshow(values, cmap=SEQUENTIAL, norm=norm, extent=extent_of(mask, DETECTOR))
    if semi_angle is not None and unit_of(mask, "kx") == "mrad":
        draw_disk(axes, semi_angle, "white")
