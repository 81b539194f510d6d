"""Displacements of atom columns as arrows over an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from scipy.spatial import cKDTree

from ..axes import SCAN
from ..errors import InputError
from .drawing import draw_image, extent_lengths
from .style import INK, new_axes, styled

# A cycle through four of Okabe and Ito's colours (right, down, left and up in an image): told apart with any colour
# vision.
DIRECTIONS = LinearSegmentedColormap.from_list("directions", ["#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#E69F00"])
_FILL = 0.6  # of the way to the next column
_KEYS = tuple(m * 10.0**e for e in range(-3, 3) for m in (1, 2, 5))
_CIRCLE = Normalize(-np.pi, np.pi)


@styled
def plot_displacements(
    displacements: xr.Dataset,
    image: xr.DataArray | None,
    *,
    magnification: float | None = None,
    colour: str | None = None,
    title: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Arrows along the displacement of every column, centred on it, over an image, with a key.

    Parameters
    ----------
    displacements : xarray.Dataset
        What :func:`tdm_dask.displacements` returned, in angstrom. Small crosses mark columns that have a
        position but no complete neighbourhood.
    image : xarray.DataArray or None
        Dims (y, x), in angstrom. None adds plain arrows to `axes` that show the image already: no crosses, no key.
    magnification : float, optional
        Length of an arrow over that of its displacement; the key says it. Default: the largest round number with which
        nine tenths of the arrows are no longer than 0.6 of the median distance between columns.
    colour : str, optional
        Of all arrows. Default: by direction, on a cycle of four colours that the ring beside the key explains.
    title : str, optional
        Above the axes.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    InputError
        If no column has a displacement, or there is neither image nor axes.

    Examples
    --------
    >>> from tdm_dask.columns.displacement import displacements
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 9, 0.5, unit="angstrom") for dim in ("y", "x")}
    >>> image = xr.DataArray(np.eye(9), coords=steps, dims=("y", "x"))
    >>> found = displacements([(2.2, 2.0)], [(0, 2), (2, 0), (4, 2), (2, 4)])
    >>> plot_displacements(found, image, title="Ti").get_title(loc="left")
    'Ti'
    """
    y, x, dy, dx = (np.asarray(displacements[name].values, np.float64) for name in (*SCAN, "dy", "dx"))
    known = np.isfinite(dy) & np.isfinite(dx)
    if not known.any():
        raise InputError("No column has a displacement, so there is nothing to show.")
    if axes is None:
        if image is None:
            raise InputError("There is neither an image nor Axes to draw into; give one of them.")
        height, width = extent_lengths(image)
        axes = new_axes(3.2, 3.2 * height / width + 0.75)
    if magnification is None:
        magnification = _magnification(y[known], x[known], np.hypot(dy, dx)[known])
    if image is not None:
        draw_image(axes, image)
    shafts: dict[str, Any] = {
        "angles": "xy",
        "scale_units": "xy",
        "scale": 1 / magnification,
        "pivot": "mid",
        "units": "width",
    }
    shape: dict[str, Any] = {"width": 0.011, "headwidth": 3.6, "headlength": 4.0, "headaxislength": 3.6}
    places = (x[known], y[known], dx[known], dy[known])
    if colour is None:
        arrows = axes.quiver(
            *places, np.arctan2(dy, dx)[known], cmap=DIRECTIONS, norm=_CIRCLE, edgecolor=INK, lw=0.4, **shafts, **shape
        )
    else:
        arrows = axes.quiver(*places, color=colour, edgecolor=INK, lw=0.4, **shafts, **shape)
    if image is not None:
        lone = ~known & np.isfinite(y) & np.isfinite(x)
        axes.plot(x[lone], y[lone], "x", color="white", markersize=3, markeredgewidth=0.7, alpha=0.8)
        key = max(k for k in _KEYS if k <= max(np.hypot(dy, dx)[known].max(), _KEYS[0]))
        text = f"{key:g} Å" + (f" (× {magnification:g})" if magnification != 1 else "")
        axes.quiverkey(arrows, 0.47, -0.045, key, text, labelpos="E", color=INK, labelcolor=INK, labelsep=0.05)
        if colour is None:
            _draw_ring(axes)
    if title is not None:
        axes.set_title(title)
    return axes


def _magnification(y: np.ndarray, x: np.ndarray, length: np.ndarray) -> float:
    places = np.column_stack([y, x])
    apart = float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])) if len(places) > 1 else 1.0
    longest = float(np.percentile(length, 90))
    if not longest > 0:
        return 1.0
    return max(k for k in _KEYS if k <= max(_FILL * apart / longest, _KEYS[0]))


def _draw_ring(axes: Axes) -> None:
    """Which colour is which direction, below the right end of an image."""
    ring = axes.inset_axes((0.9, -0.125, 0.1, 0.1))
    fine = np.linspace(-1.1, 1.1, 121)
    v, u = np.meshgrid(fine, fine, indexing="ij")
    radius = np.hypot(v, u)
    angle = np.where((radius <= 1) & (radius > 0.55), np.arctan2(v, u), np.nan)
    ring.imshow(angle, cmap=DIRECTIONS, norm=_CIRCLE, extent=(-1.1, 1.1, 1.1, -1.1))
    ring.set_axis_off()
