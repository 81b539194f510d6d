"""Profiles against the scattering angle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..axes import TEMPLATE
from ..detector.radial_profiles import ANGLE, radial_profile, scattering_angle
from ..errors import InputError
from .drawing import DASHED, name_edge, semi_angle_text
from .style import INK, new_axes, styled

INTENSITY, CORRELATION = "#0072B2", "#D55E00"


@styled
def plot_radial_profile(
    correlations: xr.Dataset,
    *,
    semi_angle: float | None = None,
    width: float | str | None = None,
    marks: Mapping[str, tuple[float, float]] | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> np.ndarray:
    """Mean intensity and correlation of every detector pixel against its scattering angle (Fig. 2d of the paper).

    Each pixel is a dot: its mean count on the left, logarithmic axis, its correlation on the right one. Lines are the
    means over the azimuth.

    Parameters
    ----------
    correlations : Dataset
        What `correlate` gives, of one template.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed line and named.
    width : float (mrad) or str, optional
        Width of the rings of the means, as in `radial_profile`.
    marks : mapping of str to (float, float), optional
        Pixels to point out: label to (ky, kx) in mrad, the correlation of each in a circle with its label.
    title : str, default ""
    axes : Axes, optional
        Where to draw; a figure of its own by default.

    Returns
    -------
    ndarray of Axes (2,)
        The axes of the intensity and of the correlation.

    Raises
    ------
    InputError
        If the Dataset is not of one template, or has no pixel with a count.

    Examples
    --------
    >>> from tdm_dask import correlate
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> angles = {dim: axis_coordinate(dim, 8, 4.0, -16.0, "mrad") for dim in ("ky", "kx")}
    >>> rng = np.random.default_rng(0)
    >>> counts = label_counts(rng.poisson(5, (6, 6, 8, 8)).astype(np.uint8), angles)
    >>> left, right = plot_radial_profile(correlate(counts, counts[:, :, 2, 1].drop_vars(["ky", "kx"])))
    >>> left.get_xlabel(), left.get_yscale(), right.get_ylabel()
    ('scattering angle (mrad)', 'log', 'correlation ρ')
    """
    if "mean" not in correlations or "rho" not in correlations or TEMPLATE in correlations["rho"].dims:
        raise InputError("A radial profile is drawn of what correlate gives for one template: mean and rho (ky, kx).")
    correlations = correlations.compute()
    theta = scattering_angle(correlations).values
    mean, rho = (correlations[name].transpose("ky", "kx").values for name in ("mean", "rho"))
    profile = radial_profile(correlations, width=width)
    seen = mean > 0
    if not seen.any():
        raise InputError("Every mean count is 0; there is no intensity to draw on a logarithmic axis.")
    left = new_axes(3.6, 2.6) if axes is None else axes
    right = left.twinx()
    dots: dict[str, Any] = {"s": 1.2, "linewidths": 0, "alpha": 0.35, "rasterized": True}
    left.scatter(theta[seen], mean[seen], color=INTENSITY, **dots)
    right.scatter(theta[seen], rho[seen], color=CORRELATION, **dots)
    left.plot(profile[ANGLE], profile["mean"].where(profile["mean"] > 0), color=INTENSITY, linewidth=1.0)
    right.plot(profile[ANGLE], profile["rho"], color=CORRELATION, linewidth=1.0)
    right.axhline(0, color=CORRELATION, linewidth=0.4, alpha=0.6)
    if semi_angle is not None:
        left.axvline(semi_angle, color=INK, linestyle=DASHED, linewidth=0.8)
    for label, (ky, kx) in (marks or {}).items():
        at: dict[str, Any] = {"ky": ky, "kx": kx, "method": "nearest"}
        x, y = float(np.hypot(ky, kx)), float(correlations["rho"].sel(**at))
        right.plot(x, y, marker="o", markersize=6, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=0.9)
        right.annotate(label, (x, y), (4, 5), textcoords="offset points", color=INK, fontweight="bold")
    left.set_yscale("log")
    left.set_xlim(0, float(theta[seen].max()))
    left.set_xlabel("scattering angle (mrad)")
    left.set_ylabel("mean counts per pixel", color=INTENSITY)
    right.set_ylabel("correlation ρ", color=CORRELATION)
    for side, colour in ((left, INTENSITY), (right, CORRELATION)):
        side.tick_params(axis="y", colors=colour)
    if semi_angle is not None:
        name_edge(left, semi_angle, semi_angle_text(semi_angle))
    left.set_title(title)
    return np.array([left, right])
