"""What the data say about templates: responses over the cell, pixels that are more than chance, copies of the template,
verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..axes import DETECTOR, TEMPLATE
from ..errors import InputError
from .drawing import DASHED, draw_colour_bar, draw_mask, draw_outline, label_detector, name_disk, show_disk
from .style import COLOURS, INK, MARKERS, SEQUENTIAL, figure_of, new_axes, styled

SAME_PLACE = 0.8
VERDICT_COLOURS = {
    "supported": "#009E73",
    "not distinguished from other offsets": "#E69F00",
    "not supported": "#4a4e54",
}


@styled
def plot_offsets(scan: xr.Dataset, kind: str, *, of: str = "response", axes: Axes | None = None) -> Axes:
    """The response of a template at every offset in the cell, the assumed place in the middle.

    Parameters
    ----------
    scan : Dataset
        What `tdm_dask.offset_scan` gave.
    kind : str
        Which template.
    of : {"response", "own_response", "image_correlation"}, default "response"
        Which map.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes
        The cross is the assumed place; white outlines hold the places that are the same one, where the template
        overlaps with itself by 0.8 at least.

    Examples
    --------
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {d: axis_coordinate(d, 24, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> sites = {"O": [(1 + 2 * i, 1 + 2 * j) for i in range(3) for j in range(3)]}
    >>> template = tdm.gaussian_template(xr.DataArray(np.zeros((24, 24)), steps, ("y", "x")), sites, sigma=0.4)
    >>> mean = 20 + 30 * template.values[0][:, :, None, None] * np.eye(8)
    >>> angles = {d: axis_coordinate(d, 8, 5.0, -17.5, "mrad") for d in ("ky", "kx")}
    >>> counts = tdm.label_counts(np.random.default_rng(0).poisson(mean).astype(np.uint16), steps | angles)
    >>> plot_offsets(tdm.offset_scan(counts, template, (2.0, 2.0)), "O").get_xlabel()
    'offset along x (Å)'
    """
    one = _of(scan, kind)
    ways = {"response": "response |ρ|", "own_response": "own response", "image_correlation": "R of the image"}
    if of not in ways:
        raise InputError(f"of={of!r} was given; expected one of {tuple(ways)}.")
    dy, dx = one["dy"].values, one["dx"].values
    vectors, numbers = _steps(dy, dx)
    middle = [n // 2 for n in numbers]
    a, b = np.meshgrid(*(np.arange(n) - m for n, m in zip(numbers, middle, strict=True)), indexing="ij")
    y, x = np.moveaxis(np.stack([a, b], -1) @ vectors, -1, 0)
    values, overlap = (np.roll(one[name].values, middle, (0, 1)) for name in (of, "overlap"))
    if axes is None:
        height, width = np.ptp(y), np.ptp(x)
        side = 2.6 / max(height, width, 1e-9)
        axes = new_axes(side * width + 1.1, side * height + 0.75)
    picture = axes.pcolormesh(x, y, values, cmap=SEQUENTIAL, shading="nearest", rasterized=True)
    if min(overlap.shape) > 1 and overlap.min() < SAME_PLACE:
        axes.contour(x, y, overlap, levels=[SAME_PLACE], colors="white", linewidths=0.9)
    axes.plot(0, 0, "+", color=COLOURS[1], markersize=7, markeredgewidth=1.4)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xlabel("offset along x (Å)")
    axes.set_ylabel("offset along y (Å)")
    rank = {"response": "rank", "own_response": "own_rank", "image_correlation": "image_rank"}[of]
    axes.set_title(f"{kind}: {_as_strong(float(one[rank]))}")
    draw_colour_bar(axes, picture, ways[of])
    return axes


def _as_strong(rank: float) -> str:
    return "strongest here" if rank == 0 else f"{rank:.1%} do as well"


def _steps(dy: np.ndarray, dx: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """From one offset to the next along the two vectors of the cell, and their numbers."""
    ends = [
        np.array([dy[1, 0], dx[1, 0]]) if dy.shape[0] > 1 else np.zeros(2),
        np.array([dy[0, 1], dx[0, 1]]) if dy.shape[1] > 1 else np.zeros(2),
    ]
    return np.array(ends), (dy.shape[0], dy.shape[1])


@styled
def plot_significance(
    null: xr.Dataset, kind: str, *, semi_angle: float | None = None, axes: Axes | None = None
) -> Axes:
    """The correlations of a template over those of random sites, the pixels outlined that are more than chance.

    Parameters
    ----------
    null : Dataset
        What `tdm_dask.null_distribution` gave.
    kind : str
        Which template.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed circle; what is shown goes a little further.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {d: axis_coordinate(d, 24, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> sites = {"O": [(1 + 2 * i, 1 + 2 * j) for i in range(3) for j in range(3)]}
    >>> template = tdm.gaussian_template(xr.DataArray(np.zeros((24, 24)), steps, ("y", "x")), sites, sigma=0.4)
    >>> mean = 20 + 30 * template.values[0][:, :, None, None] * np.eye(8)
    >>> angles = {d: axis_coordinate(d, 8, 5.0, -17.5, "mrad") for d in ("ky", "kx")}
    >>> counts = tdm.label_counts(np.random.default_rng(0).poisson(mean).astype(np.uint16), steps | angles)
    >>> plot_significance(tdm.null_distribution(counts, sites, sigma=0.4, draws=20), "O").get_ylabel()
    'ky (mrad)'
    """
    one = _of(null, kind)
    axes = new_axes(3.5, 2.9) if axes is None else axes
    z, significant = (one[name].transpose(*DETECTOR) for name in ("z", "significant"))
    picture = draw_mask(axes, z, semi_angle)
    if significant.values.any():
        draw_outline(axes, significant)
    label_detector(axes, z)
    if semi_angle is not None:
        show_disk(axes, semi_angle)
        name_disk(axes, semi_angle)
    axes.set_title(f"{kind}: p = {float(one['p']):.2g}")
    draw_colour_bar(axes, picture, "ρ over rms of random sites")
    return axes


@styled
def plot_influence(found: xr.Dataset, *, axes: Axes | None = None) -> Axes:
    """How far the columns in the images moved against how far the template was moved, with the slope of each kind.

    Parameters
    ----------
    found : Dataset
        What `tdm_dask.template_influence` gave.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes
        Mean moves of all columns of a kind, along y and along x, from those with the original template; the lines are
        those of data alone (slope 0) and of copies (slope 1).

    Examples
    --------
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {d: axis_coordinate(d, 24, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> y, x = np.meshgrid(steps["y"].values, steps["x"].values, indexing="ij")
    >>> peak = np.exp(-((y - 3) ** 2 + (x - 3) ** 2) / (2 * 0.5**2))
    >>> mean = np.stack([50 + 200 * peak, 150 - 100 * peak], -1)[:, :, None]
    >>> counts = tdm.label_counts(np.random.default_rng(0).poisson(mean).astype(np.uint16), steps)
    >>> found = tdm.template_influence(counts, {"O": [(3.0, 3.0)]}, sigma=0.5, radius=1.5)
    >>> plot_influence(found).get_xlabel()
    "move of the template's sites (Å)"
    """
    axes = new_axes(3.6, 3.2) if axes is None else axes
    reach = 0.0
    handles = []
    for number, kind in enumerate(found["kind"].values):
        one = found.sel(kind=kind)
        moves = []
        for dim in "yx":
            image = one[f"image_d{dim}"] - one[f"image_d{dim}"].sel(alternative="original")
            moves.append(np.stack([one[f"template_d{dim}"].values, image.values], -1))
        points = np.concatenate(moves)
        points = points[np.isfinite(points).all(1)]
        # What did not move along this direction says nothing.
        points = points[np.abs(points[:, 0]) > 1e-9]
        reach = max(reach, float(np.abs(points).max(initial=0)))
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        style: dict[str, Any] = {"color": colour, "markeredgecolor": INK, "markeredgewidth": 0.5, "markersize": 5.5}
        axes.plot(*points.T, marker, linestyle="none", zorder=3, **style)
        slope, error = float(one["slope"]), float(one["slope_error"])
        axes.axline((0, 0), slope=slope, color=colour, linewidth=1.2, zorder=2)
        label = f"{kind}: {slope:.2f}" + (f" ± {error:.2f}" if np.isfinite(error) else "")
        handles.append(Line2D([], [], marker=marker, label=label.replace("-", "−"), linewidth=1.2, **style))
    reach = 1.12 * (reach or 1.0)
    for slope, text in ((0.0, "in the data"), (1.0, "a copy of the template")):
        axes.axline((0, 0), slope=slope, color=INK, linewidth=0.8, linestyle=DASHED, zorder=1)
        angle, start = np.degrees(np.arctan(slope)), 0.06 if slope else -0.97
        axes.text(
            start * reach, start * reach * slope + 0.03 * reach, text, rotation=angle, rotation_mode="anchor",
            fontsize=7.5, ha="left", va="bottom", color=INK,
        )  # fmt: skip
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xlabel("move of the template's sites (Å)")
    axes.set_ylabel("move in the image (Å)")
    axes.set_title("Template influence")
    axes.legend(handles=handles, loc="lower right", title="slope", handletextpad=0.5)
    return axes


@styled
def plot_verdicts(held_out: xr.DataArray, verdicts: xr.DataArray, *, axes: Axes | None = None) -> Axes:
    """How well templates are reproduced, beside what the data say about them.

    Parameters
    ----------
    held_out : DataArray (set, template)
        Correlation of each image with its own template, such as `own` of `tdm_dask.held_out_cross_talk`, by set of
        templates, such as "true sites" and "random sites".
    verdicts : DataArray (set, template) of str
        As `tdm_dask.evidence` gives them.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> sets = {"set": ["true sites", "random sites"], "template": ["Li", "O"]}
    >>> own = xr.DataArray([[0.9, 0.8], [0.1, 0.0]], sets, ("set", "template"))
    >>> verdicts = own.copy(data=[["supported", "supported"], ["not supported", "not supported"]])
    >>> [label.get_text() for label in plot_verdicts(own, verdicts).get_xticklabels()]
    ['Li', 'O']
    """
    sets, kinds = ([str(n) for n in held_out[d].values] for d in ("set", TEMPLATE))
    own = axes is None
    axes = new_axes(1.1 * len(kinds) + 1.0, 3.0) if axes is None else axes
    width = 0.22
    for row, name in enumerate(sets):
        for column, kind in enumerate(kinds):
            verdict = str(verdicts.sel({"set": name, TEMPLATE: kind}).item())
            axes.plot(
                column + width * (row - (len(sets) - 1) / 2),
                float(held_out.sel({"set": name, TEMPLATE: kind})),
                MARKERS[row % len(MARKERS)],
                color=VERDICT_COLOURS[verdict],
                markeredgecolor=INK,
                markeredgewidth=0.5,
                markersize=7,
            )
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_xlim(-0.6, len(kinds) - 0.4)
    axes.set_ylim(min(-0.25, 1.1 * float(held_out.min())), 1.08)
    axes.set_ylabel("R of image and template, held out")
    axes.set_title("How it looks, and what it is evidence for")
    plain: dict[str, Any] = {"linestyle": "none", "markeredgecolor": INK, "markeredgewidth": 0.5, "markersize": 6}
    handles = [
        Line2D([], [], marker=MARKERS[n % len(MARKERS)], color="white", label=s, **plain) for n, s in enumerate(sets)
    ]
    handles += [
        Line2D([], [], marker="o", color=colour, label=verdict, **plain) for verdict, colour in VERDICT_COLOURS.items()
    ]
    if own:
        figure_of(axes).legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.2)
    else:
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, handletextpad=0.2)
    return axes


def _of(dataset: xr.Dataset, kind: str) -> xr.Dataset:
    names = [str(name) for name in dataset[TEMPLATE].values]
    if str(kind) not in names:
        raise InputError(f"There is no template {kind!r} among {names}.")
    return dataset.isel({TEMPLATE: names.index(str(kind))})
