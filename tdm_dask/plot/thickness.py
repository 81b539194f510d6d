"""A thickness that was matched: the misfit over thickness, and the measured pattern beside the simulated one."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from .drawing import draw_colour_bar, draw_disk, extent_of, label_detector, name_disk
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

    Examples
    --------
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {d: axis_coordinate(d, 41, 1.0, -20.0, "mrad") for d in ("ky", "kx")}
    >>> q = np.hypot(*np.meshgrid(angles["ky"], angles["kx"], indexing="ij"))
    >>> t = np.arange(20.0, 62, 6)
    >>> patterns = [np.exp(-((q / 9) ** 2)) * (2 + np.cos(q * s / 60)) for s in t]
    >>> along = ("thickness", t, {"units": "nm"})
    >>> library = xr.DataArray(patterns, angles | {"thickness": along}, ("thickness", "ky", "kx"))
    >>> found = tdm.match_thickness(1e5 * library[3].drop_vars("thickness"), library, rotation=0, scale=1)
    >>> plot_misfit(found, truth=38.0).get_xlabel()
    'thickness (nm)'
    """
    axes = new_axes(3.9, 2.9) if axes is None else axes
    t, misfit, error = (found[name].values for name in ("thickness", "misfit", "misfit_error"))
    best, spread = float(found["thickness_nm"]), float(found["thickness_error_nm"])
    line, band, mark = COLOURS[6], COLOURS[1], COLOURS[5]
    axes.fill_between(t, misfit - _BAND * error, misfit + _BAND * error, color=band, alpha=0.35, linewidth=0)
    axes.plot(t, misfit, "o-", color=line, markersize=3, linewidth=1.0, clip_on=False, label="simulated, ±2 errors")
    axes.axvspan(best - _BAND * spread, best + _BAND * spread, color=mark, alpha=0.3, linewidth=0)
    axes.axvline(best, color=mark, linewidth=1.0, label="match, ±2 errors")
    if truth is not None:
        axes.axvline(truth, color=INK, linewidth=1.0, linestyle=":", label=f"truth, {truth:g} nm")
    axes.set_ylim(0, None)
    axes.set_xlim(t[0], t[-1])
    axes.set_xlabel("thickness (nm)")
    axes.set_ylabel("misfit (reduced χ²)")
    axes.spines[["top", "right"]].set_visible(False)
    # Below, for the curve may go anywhere.
    narrow = {"handlelength": 1.3, "handletextpad": 0.4, "columnspacing": 1.0, "borderaxespad": 0.0}
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, -0.2), ncols=3, **narrow)
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

    Examples
    --------
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {d: axis_coordinate(d, 41, 1.0, -20.0, "mrad") for d in ("ky", "kx")}
    >>> q = np.hypot(*np.meshgrid(angles["ky"], angles["kx"], indexing="ij"))
    >>> t = np.arange(20.0, 62, 6)
    >>> patterns = [np.exp(-((q / 9) ** 2)) * (2 + np.cos(q * s / 60)) for s in t]
    >>> along = ("thickness", t, {"units": "nm"})
    >>> library = xr.DataArray(patterns, angles | {"thickness": along}, ("thickness", "ky", "kx"))
    >>> found = tdm.match_thickness(1e5 * library[3].drop_vars("thickness"), library, rotation=0, scale=1)
    >>> len(plot_matched_patterns(found, semi_angle=10))
    3
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
            colour = "white" if style is not panels[2][2] else INK
            draw_disk(axes, semi_angle, colour)
            name_disk(axes, semi_angle, colour)
        label_detector(axes, found["measured"])
        axes.set_title(title)
        axes.label_outer()
    draw_colour_bar(grid[1], grid[1].images[0], "mean counts per pixel", format="%g")
    draw_colour_bar(grid[2], grid[2].images[0], "part of the measured counts")
    return grid
