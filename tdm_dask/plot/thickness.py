"""A thickness that was matched: the misfit over thickness, and the measured pattern beside the simulated one."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from .drawing import draw_disk, extent_of
from .style import COLOURS, DIVERGING, INK, SEQUENTIAL, new_axes, new_figure, styled

_BAND = 2  # errors


@styled
def plot_misfit(
    found: xr.Dataset, *, truth: float | None = None, title: str | None = None, axes: Axes | None = None
) -> Axes:
    """The misfit of every thickness with its uncertainty, and the thickness that it gives.

    Parameters
    ----------
    found : Dataset
        What `tdm_dask.match_thickness` gave.
    truth : float, optional
        The true thickness in nm, where it is known; drawn as a dotted line.
    title : str, optional
        Default: the thickness and its error.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes
        The band is two standard deviations of each misfit's difference from the smallest, and the upright bar two of
        the thickness.
    """
    axes = new_axes(3.6, 2.7) if axes is None else axes
    t, misfit, error = (found[name].values for name in ("thickness", "misfit", "misfit_error"))
    best, spread = float(found["thickness_nm"]), float(found["thickness_error_nm"])
    line, band, mark = COLOURS[6], COLOURS[1], COLOURS[5]
    axes.fill_between(t, misfit - _BAND * error, misfit + _BAND * error, color=band, alpha=0.35, linewidth=0)
    axes.plot(t, misfit, "o-", color=line, markersize=3, linewidth=1.0, label="simulated thicknesses, ±2 errors")
    axes.axvspan(best - _BAND * spread, best + _BAND * spread, color=mark, alpha=0.3, linewidth=0)
    axes.axvline(best, color=mark, linewidth=1.0, label="match, ±2 errors")
    if truth is not None:
        axes.axvline(truth, color=INK, linewidth=1.0, linestyle=":", label=f"truth, {truth:g} nm")
    axes.set_ylim(0, None)
    axes.set_xlim(t[0], t[-1])
    axes.set_xlabel("thickness (nm)")
    axes.set_ylabel("misfit (reduced χ²)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
    axes.set_title(f"{best:.1f} ± {spread:.1f} nm" if title is None else title)
    return axes


@styled
def plot_matched_patterns(
    found: xr.Dataset, *, semi_angle: float | None = None, figure: Figure | SubFigure | None = None
) -> np.ndarray:
    """Measured and matched pattern on one logarithmic scale, and their difference in parts of the measured one.

    Parameters
    ----------
    found : Dataset
        What `tdm_dask.match_thickness` gave.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed circle.
    figure : matplotlib Figure or SubFigure, optional
        To draw into. Default: a new one.

    Returns
    -------
    array of three matplotlib Axes
    """
    measured, matched = found["measured"].values, found["matched"].values
    compared = np.isfinite(matched)
    positive = measured[compared & (measured > 0)]
    norm = mpl.colors.LogNorm(float(np.quantile(positive, 0.01)), float(positive.max()))
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where(compared & (measured > 0), (measured - matched) / measured, np.nan)
    limit = float(np.nanquantile(np.abs(apart), 0.98))
    figure = new_figure(7.6, 2.7) if figure is None else figure
    grid = figure.subplots(1, 3)
    extent = extent_of(found["measured"], ("ky", "kx"))
    panels = (
        ("Measured", np.clip(measured, norm.vmin, None), {"cmap": SEQUENTIAL, "norm": norm}),
        (f"Simulated, {float(found.thickness_nm):.1f} nm", np.clip(matched, norm.vmin, None), None),
        ("Measured − simulated", apart, {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}),
    )
    for axes, (title, values, style) in zip(grid, panels, strict=True):
        axes.imshow(values, extent=extent, **(style or panels[0][2]))
        if semi_angle is not None:
            draw_disk(axes, semi_angle, "white" if "−" not in title else INK)
        axes.set_title(title)
        axes.set_xlabel("kx (mrad)")
    grid[0].set_ylabel("ky (mrad)")
    for axes in grid[1:]:
        axes.set_yticks([])
    for last, label in ((grid[1], "mean counts"), (grid[2], "part of the measured")):
        bar = figure.colorbar(last.images[0], ax=last, shrink=0.85, pad=0.03, label=label)
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
    return grid
