"""Columns that are not as their equals: each over the scatter of the intact ones, and how little is still seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from .drawing import DASHED, signed
from .style import COLOURS, INK, MARKERS, new_axes, styled

GREY_POINT = "#9a9a9a"


@styled
def plot_occupancy(table: xr.Dataset, *, threshold: float = 10.0, axes: Axes | None = None) -> Axes:
    """The deviation of every column in the image of its own kind, over the scatter of the intact ones.

    Parameters
    ----------
    table : Dataset
        What :func:`tdm_dask.occupancy_table` gives.
    threshold : float, default 10
        Drawn on both sides of zero.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import xarray as xr
    >>> states = ["intact", "intact", "intact", "vacancy"]
    >>> parts = {"kind": ["O"] * 4, "group": [0] * 4, "state": states}
    >>> parts |= {"occupancy": [1, 1, 1, 0.5], "ratio": [0, 1, -1, -20]}
    >>> table = xr.Dataset({name: ("column", values) for name, values in parts.items()})
    >>> plot_occupancy(table.set_coords(["kind", "group", "state"])).get_ylabel()
    'deviation / scatter of intact'
    """
    axes = new_axes(4.6, 2.8) if axes is None else axes
    labels = []
    rng = np.random.default_rng(0)  # spreads points that would cover each other
    for number, (name, rows) in enumerate(_groups(table)):
        labels.append(name)
        for state, colour, marker, size in (("intact", GREY_POINT, "o", 2.2), ("near", GREY_POINT, "x", 3.0)):
            z = rows.ratio.values[rows.state.values == state]
            axes.plot(number + rng.uniform(-0.22, 0.22, len(z)), z, marker, color=colour, markersize=size, mew=0.7)
        for state, place in zip(rows.state.values, range(rows.sizes["column"]), strict=True):
            if state in ("intact", "near"):
                continue
            z = float(rows.ratio.values[place])
            axes.plot(number, z, "D", color=COLOURS[5], markersize=5, markeredgecolor=INK, markeredgewidth=0.5)
            axes.annotate(f"{state} {signed(z, 0)}", (number, z), (7, -2.5), textcoords="offset points")
    for z, style in ((threshold, DASHED), (-threshold, DASHED), (0.0, "-")):
        axes.axhline(z, color=INK, linewidth=0.5, linestyle=style, zorder=0)
    for state, marker, size in (("intact", "o", 2.8), ("near a defect", "x", 3.5)):
        axes.plot([], [], marker, color=GREY_POINT, markersize=size, mew=0.7, label=state)
    axes.plot([], [], color=INK, linewidth=0.5, linestyle=DASHED, label=f"±{threshold:g}")
    axes.legend(loc="upper right", handletextpad=0.4)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.1)
    axes.margins(y=0.12)
    axes.set_xlabel("columns of one environment, each in the image of its kind")
    axes.set_ylabel("deviation / scatter of intact")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


@styled
def plot_detection(
    columns: Mapping[str, tuple[Any, Any]],
    *,
    limits: Mapping[str, float] | None = None,
    threshold: float = 3.0,
    axes: Axes | None = None,
) -> Axes:
    """Deviation over scatter against the occupancy of columns, by kind, with the limit of detection.

    Parameters
    ----------
    columns : dict of str to (occupancies, ratios)
    limits : dict of str to float, optional
        Occupancy of each kind at which the threshold is crossed, by :func:`tdm_dask.detection_limit`.
    threshold : float, default 3
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> columns = {"O": ([0.0, 0.25, 0.5, 0.75], [-24, -18, -12, -6])}
    >>> plot_detection(columns, limits={"O": 0.875}).get_xlabel()
    'occupancy of the column'
    """
    axes = new_axes(3.4, 2.8) if axes is None else axes
    for number, (kind, (occupancy, ratio)) in enumerate(columns.items()):
        missing, z = 1 - np.asarray(occupancy, float), np.asarray(ratio, float)
        curve = np.linspace(0, 1, 101)
        a, b = np.linalg.lstsq(np.stack([missing, missing**2], -1), z, rcond=None)[0]
        label = kind
        if limits is not None and kind in limits:
            seen = np.isfinite(limits[kind])
            label += f": seen below {limits[kind]:.0%}" if seen else ": not told from intact ones"
        axes.plot(1 - curve, a * curve + b * curve**2, "-", color=COLOURS[number], linewidth=1.0)
        axes.plot(
            1 - missing,
            z,
            MARKERS[number],
            color=COLOURS[number],
            markersize=4.5,
            markeredgecolor=INK,
            markeredgewidth=0.5,
            label=label,
        )
    axes.axhspan(-threshold, threshold, color="#e6e6e6", zorder=0, linewidth=0, label=f"within ±{threshold:g}")
    axes.axhline(0, color=INK, linewidth=0.5, zorder=0.5)
    axes.set_xlim(-0.04, 1.04)
    axes.set_xlabel("occupancy of the column")
    axes.set_ylabel("deviation / scatter of intact")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", handletextpad=0.2)
    return axes


def _groups(table: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    """Columns of each kind and environment, and what to call them."""
    pairs = sorted({(str(k), int(g)) for k, g in zip(table.kind.values, table.group.values, strict=True)})
    several = {kind: sum(k == kind and g >= 0 for k, g in pairs) > 1 for kind, _ in pairs}
    groups = []
    for kind, group in pairs:
        rows = table.isel(column=(table.kind.values == kind) & (table.group.values == group))
        name = f"{kind},\nno column" if group < 0 else f"{kind} {group + 1}" if several[kind] else kind
        groups.append((name, rows))
    return groups
