"""The data matrix of a scan as one picture, with masks as strips below it."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ..axes import TEMPLATE
from ..errors import InputError
from .drawing import DASHED, name_edge, semi_angle_text
from .style import DIVERGING, GREY, INK, SEQUENTIAL, new_axes, styled

SIZE = (4.6, 3.9)  # inches
STRIP, FIRST_GAP, GAP = 0.055, 0.035, 0.018  # of the picture's height
CLOSEST = 0.08  # of the picture's width, between two ticks


@styled
def plot_matrix(view: xr.Dataset, *, title: str = "", axes: Axes | None = None) -> Axes:
    """The picture that :func:`tdm_dask.matrix_view` makes, and below it the masks over the same columns.

    Standardised counts are red above the mean of their pixel and blue below it, to the limit that one bin in two
    hundred exceeds. Where columns go by scattering angle, these are the ticks, and a dashed line marks the edge of the
    bright-field disk. Every mask has its own scale: white is the largest weight and black none, or, where there are
    negative ones, red is positive.

    Parameters
    ----------
    view : xarray.Dataset
        Its `mask`, where it has one, is drawn too.
    title : str, default ""
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    InputError
        If the Dataset is not one of `matrix_view`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> from tdm_dask.imaging.matrix_view import matrix_view
    >>> counts = label_counts(np.arange(4 * 4 * 3 * 3).reshape(4, 4, 3, 3).astype(np.uint16))
    >>> axes = plot_matrix(matrix_view(counts, order="concatenated"))
    >>> axes.get_xlabel()
    'detector pixel, line after line'
    """
    if "matrix" not in view or view["matrix"].dims != ("row", "column"):
        raise InputError("There is no matrix (row, column) in this Dataset; expected what matrix_view returns.")
    masks = view.get("mask")
    axes = new_axes(*SIZE) if axes is None else axes
    values = np.asarray(view["matrix"].values, np.float64)
    rows, columns = values.shape
    signed = view.attrs.get("normalisation") != "none"
    top = float(np.percentile(np.abs(values), 99.5)) or 1.0
    picture = _strip(axes, values, 0.0, float(rows), top, signed, DIVERGING if signed else SEQUENTIAL)
    bottom = float(rows)
    row_ticks, row_names = _row_ticks(view, rows)
    gap = FIRST_GAP
    for name, mask in [] if masks is None else zip(_names(masks), masks.values, strict=True):
        above = bottom + gap * rows
        bottom, gap = above + STRIP * rows, GAP
        signed = bool((mask < 0).any())
        _strip(axes, mask[None], above, bottom, float(np.abs(mask).max()) or 1.0, signed, DIVERGING if signed else GREY)
        row_ticks.append((above + bottom) / 2)
        row_names.append(name)
    axes.set_xlim(0, columns)
    axes.set_ylim(bottom, 0)
    axes.spines[:].set_visible(False)
    axes.set_yticks(row_ticks, row_names)
    _label_columns(axes, view, columns)
    by = f"probe position, by {view['high_angle_counts'].attrs['long_name']}" if "high_angle_counts" in view else ""
    axes.set_ylabel(by or "probe position, line after line")
    axes.set_title(title)
    unit = view["matrix"].attrs.get("units", "1")
    label = view["matrix"].attrs.get("long_name", "") + (" (standard deviations)" if unit == "1" else "")
    axes.figure.colorbar(picture, ax=axes, shrink=0.7, pad=0.02, label=label).outline.set_visible(False)
    return axes


def _names(masks: xr.DataArray) -> list[str]:
    return [str(n) for n in masks[TEMPLATE].values] if TEMPLATE in masks.coords else [""] * masks.sizes[TEMPLATE]


def _strip(
    axes: Axes, values: np.ndarray, above: float, below: float, top: float, signed: bool, colours: str
) -> AxesImage:
    """Values (row, column) between two heights, from 0 or, signed, from -top to top, in a frame."""
    columns = values.shape[1]
    axes.add_patch(
        Rectangle((0, above), columns, below - above, fill=False, edgecolor=INK, linewidth=0.5, clip_on=False)
    )
    return axes.imshow(
        values,
        cmap=colours,
        vmin=-top if signed else 0.0,
        vmax=top,
        extent=(0, columns, below, above),
        aspect="auto",
        # There are more bins than dots: these are means, not samples.
        interpolation="antialiased",
        interpolation_stage="data",
    )


def _row_ticks(view: xr.Dataset, rows: int) -> tuple[list[float], list[str]]:
    """Places of five ticks along the rows, and the counts, or the number of the probe position, there."""
    places = np.linspace(0, rows, 5)
    if "high_angle_counts" in view:
        counts = np.asarray(view["high_angle_counts"].values)
        at = counts[np.clip(places.astype(int), 0, rows - 1)]
        digits = 0 if np.ptp(counts) > 8 else 2
        return places.tolist(), [f"{c:.{digits}f}" for c in at]
    ends = np.concatenate([[0], np.cumsum(view["probes"].values)])
    return places.tolist(), [f"{n:g}" for n in np.rint(np.interp(places, np.arange(rows + 1), ends))]


def _label_columns(axes: Axes, view: xr.Dataset, columns: int) -> None:
    if view.attrs.get("order") != "sorted":
        ends = np.concatenate([[0], np.cumsum(view["pixels"].values)])
        places = np.linspace(0, columns, 5)
        axes.set_xticks(places, [f"{n:g}" for n in np.rint(np.interp(places, np.arange(columns + 1), ends))])
        axes.set_xlabel("detector pixel, line after line")
        return
    angle = np.asarray(view["angle"].values)
    middles = np.arange(columns) + 0.5
    ticks: list[tuple[float, float]] = []
    step = max(1.0, np.round(angle.max() / 60) * 10 if angle.max() > 30 else 5.0)
    for value in np.arange(step, angle.max(), step):
        place = float(np.interp(value, angle, middles))
        if place / columns >= CLOSEST and (not ticks or place - ticks[-1][0] >= CLOSEST * columns):
            ticks.append((place, value))
    axes.set_xticks([0.0, *(p for p, _ in ticks)], ["0", *(f"{v:g}" for _, v in ticks)])
    axes.set_xlabel("scattering angle (mrad)")
    edge = view.attrs.get("semi_angle_mrad")
    if edge is not None and angle.min() < edge < angle.max():
        place = float(np.interp(edge, angle, middles))
        axes.axvline(place, color=INK, linestyle=DASHED, linewidth=0.8)
        name_edge(axes, place, semi_angle_text(float(edge)))
