"""Deflections as arrows, and line profiles with the columns that they pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..axes import SCAN
from ..errors import InputError
from .drawing import bare, draw_colour_bar, draw_scale_bar, extent_lengths, extent_of
from .style import COLOURS, INK, SEQUENTIAL, new_axes, styled

# Colours that stay apart on white, each with a dash of its own.
_LINES = (COLOURS[6], COLOURS[5], COLOURS[3], COLOURS[2], COLOURS[0], COLOURS[1])
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 3)))
_ARROWS = 24  # along the longer side


@styled
def plot_deflection(com: xr.DataArray, *, title: str | None = None, axes: Axes | None = None) -> Axes:
    """The size of a vector on the scan as brightness; its mean over small squares as arrows.

    Parameters
    ----------
    com : xarray.DataArray
        Dims (component, y, x): from `centre_of_mass` or `differential_phase_contrast`.
    title : str, optional
        Default: what the vector is.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> com = xr.DataArray(np.ones((2, 4, 4)), {"component": ["y", "x"]}, ("component", "y", "x"))
    >>> plot_deflection(com, title="CoM").get_title(loc="left")
    'CoM'
    """
    if set(com.dims) != {"component", *SCAN}:
        raise InputError(f"The deflection has dims {tuple(com.dims)}; one with dims (component, y, x) can be drawn.")
    vector = np.asarray(com.transpose("component", *SCAN).sel(component=list(SCAN)).values, np.float64)
    size = np.hypot(*vector)
    if not np.isfinite(size).any():
        raise InputError("The deflection holds no finite value, so there is nothing to show.")
    height, width = extent_lengths(com)
    axes = new_axes(3.4, 2.7 * height / width + 0.6) if axes is None else axes
    extent = extent_of(com, SCAN)
    high = float(np.nanpercentile(size, 99.8)) or 1.0
    picture = axes.imshow(size, cmap=SEQUENTIAL, vmin=0.0, vmax=high, extent=extent)
    every = max(1, -(-max(size.shape) // _ARROWS))
    # Means over squares: single arrows would show noise.
    blocks = com.coarsen({dim: min(every, com.sizes[dim]) for dim in SCAN}, boundary="trim").mean()
    v, u = blocks.transpose("component", *SCAN).sel(component=list(SCAN)).values
    left, _, _, top = extent
    rows, columns = (
        (np.arange(n) + 0.5) * every * length / whole
        for n, length, whole in zip(v.shape, (height, width), size.shape, strict=True)
    )
    # The largest arrow reaches from its square to the next.
    scale = (float(np.nanmax(np.hypot(u, v))) or 1.0) / (
        1.3 * every * min(height / size.shape[0], width / size.shape[1])
    )
    style: dict[str, Any] = {"color": "white", "width": 0.005, "headwidth": 3.2, "headlength": 3.6, "minlength": 0.4}
    axes.quiver(left + columns, top + rows, u, v, angles="xy", scale_units="xy", scale=scale, pivot="mid", **style)
    bare(axes)
    draw_scale_bar(axes, com)
    axes.set_title(str(com.attrs.get("long_name", "")) if title is None else title)
    draw_colour_bar(axes, picture, "size", com.attrs.get("units", "1"))
    return axes


@styled
def plot_line_profiles(
    profiles: Mapping[str, xr.DataArray | xr.Dataset],
    *,
    sites: Mapping[str, Any] | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Profiles in one frame, with their standard errors where they have any, and the columns that they pass.

    Parameters
    ----------
    profiles : mapping of str to DataArray or Dataset
        Dims (distance): from `line_profile`, or from `averaged_profile` with its `mean` and `standard_error`. Profiles
        of other units are brought to one by `normalised` first.
    sites : mapping of str to array_like, optional
        Kind of column to distances in angstrom along the profile, as `profile_sites` finds them: lines with the kind's
        name above.
    title : str, optional
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> profile = xr.DataArray([0.0, 1.0, 0.0], {"distance": [0.0, 0.5, 1.0]}, "distance", attrs={"units": "1"})
    >>> axes = plot_line_profiles({"ABF": profile}, sites={"Li": [0.5]})
    >>> axes.get_xlabel(), [text.get_text() for text in axes.texts]
    ('distance (Å)', ['Li'])
    """
    axes = new_axes(4.2, 2.4) if axes is None else axes
    units = set()
    for number, (name, profile) in enumerate(profiles.items()):
        values = profile["mean"] if isinstance(profile, xr.Dataset) else profile
        units.add(str(values.attrs.get("units", "1")))
        along, mean = values["distance"].values, values.values
        colour = _LINES[number % len(_LINES)]
        axes.plot(along, mean, color=colour, linestyle=_DASHES[number % len(_DASHES)], linewidth=1.4, label=name)
        if isinstance(profile, xr.Dataset):
            error = profile["standard_error"].values
            axes.fill_between(along, mean - error, mean + error, color=colour, alpha=0.22, linewidth=0)
    if len(units) > 1:
        raise InputError(f"The profiles are in {sorted(units)}; bring them to one unit first, such as by normalised.")
    axes.margins(x=0.02)
    low, high = axes.get_xlim()
    for text, places in _named(sites or {}, 0.035 * (high - low)):
        for place in places:
            axes.axvline(place, color=INK, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
        axes.text(
            float(np.mean(places)),
            1.02,
            text,
            ha="center",
            va="bottom",
            transform=axes.get_xaxis_transform(),
            fontsize=8,
        )
    axes.set_xlabel("distance (Å)")
    unit = units.pop() if units else "1"
    axes.set_ylabel("normalised intensity" if unit == "1" else f"intensity ({unit})")
    axes.spines[["top", "right"]].set_visible(False)
    if len(profiles) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.set_title(title, pad=16 if sites else None)
    return axes


def _named(sites: Mapping[str, Any], apart: float) -> list[tuple[str, list[float]]]:
    """Names of the columns and their places; those too close for two names share one."""
    every = sorted((float(place), kind) for kind, places in sites.items() for place in np.atleast_1d(places))
    groups: list[tuple[str, list[float]]] = []
    for place, kind in every:
        if groups and place - groups[-1][1][-1] < apart:
            name, places = groups[-1]
            groups[-1] = (name if kind in name.split(", ") else f"{name}, {kind}", [*places, place])
        else:
            groups.append((kind, [place]))
    return groups
