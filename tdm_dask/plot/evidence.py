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
from .drawing import draw_mask, label_detector
from .style import COLOURS, INK, MARKERS, SEQUENTIAL, figure_of, new_axes, styled

SAME_PLACE = 0.8
VERDICTS = {
    "supported": "#009E73",
    "not distinguished from other offsets": "#E69F00",
    "not supported": "#8a8f96",
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
    """
    one = _of(scan, kind)
    ways = {"response": "response |ρ|", "own_response": "own response", "image_correlation": "R of the image"}
    if of not in ways:
        raise InputError(f"of is {of!r}; expected one of {tuple(ways)}.")
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
    _draw_bar(axes, picture, ways[of])
    return axes


def _draw_bar(axes: Axes, picture: Any, label: str) -> None:
    """A colour bar as high as the map is, whatever room there is."""
    bar = axes.figure.colorbar(picture, cax=axes.inset_axes((1.04, 0.06, 0.055, 0.88)), label=label)
    bar.outline.set_visible(False)


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
    """
    one = _of(null, kind)
    axes = new_axes(3.5, 2.9) if axes is None else axes
    z, significant = (one[name].transpose(*DETECTOR) for name in ("z", "significant"))
    picture = draw_mask(axes, z, semi_angle)
    flags = significant.values
    if flags.any() and min(flags.shape) > 1:
        ky, kx = (z[d].values if d in z.coords else np.arange(z.sizes[d]) for d in DETECTOR)
        axes.contour(kx, ky, flags.astype(float), levels=[0.5], colors=INK, linewidths=0.7)
    label_detector(axes, z)
    if semi_angle is not None:
        axes.set_xlim(-1.15 * semi_angle, 1.15 * semi_angle)
        axes.set_ylim(1.15 * semi_angle, -1.15 * semi_angle)
    axes.set_title(f"{kind}: p = {float(one['p']):.2g}")
    _draw_bar(axes, picture, "ρ over rms of random sites")
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
        axes.axline((0, 0), slope=slope, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
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
                color=VERDICTS[verdict],
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
        Line2D([], [], marker="o", color=colour, label=verdict, **plain) for verdict, colour in VERDICTS.items()
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
