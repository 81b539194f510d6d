"""Sites of columns over the image that they were found in or laid over."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..axes import SCAN
from ..columns.lattice import Lattice
from ..columns.sites import Sites, sites_by_kind
from .drawing import draw_image, draw_sites, extent_of, image_size, name_of
from .style import COLOURS, INK, new_axes, styled

_ARROW = COLOURS[5]


@styled
def plot_sites(
    image: xr.DataArray,
    sites: Sites,
    *,
    lattice: Lattice | None = None,
    title: str | None = None,
    legend: bool = True,
    axes: Axes | None = None,
) -> Axes:
    """Sites of every kind of column over an image, with a legend and, on request, the vectors of a lattice.

    Parameters
    ----------
    image : xarray.DataArray
        Dims (y, x), in angstrom.
    sites : array (n, 2), or mapping of str to array (n, 2)
        (y, x) positions in angstrom. Those outside the image are not drawn.
    lattice : Lattice, optional
        Its vectors a and b are drawn from the corner of a cell in the middle of the image.
    title : str, optional
        Default: the name of the image's template, where it has one.
    legend : bool, default True
        Whether the kinds are named below the image.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 20, 0.4, unit="angstrom") for dim in ("y", "x")}
    >>> image = xr.DataArray(np.random.default_rng(0).random((20, 20)), coords=steps, dims=("y", "x"))
    >>> axes = plot_sites(image, {"Pb": [(2.0, 2.0)], "Ti": [(4.0, 4.1)]})
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['Pb', 'Ti']
    """
    kinds, single = sites_by_kind({k: v for k, v in sites.items() if len(v)} if isinstance(sites, dict) else sites)
    width, height = image_size(image, 3.0)
    axes = new_axes(width, height + 0.8) if axes is None else axes
    draw_image(axes, image)
    handles = draw_sites(axes, image, kinds)
    if lattice is not None:
        _draw_vectors(axes, image, lattice)
    if legend and not single:
        axes.legend(
            handles=handles,
            loc="upper right",
            bbox_to_anchor=(1.0, -0.01),
            ncols=min(len(handles), 4),
            handletextpad=0.1,
            columnspacing=0.8,
            borderpad=0.1,
        )
    axes.set_title(name_of(image) if title is None else title)
    return axes


def _draw_vectors(axes: Axes, image: xr.DataArray, lattice: Lattice) -> None:
    """Arrows along a and b from a corner of a cell in the middle."""
    left, right, bottom, top = extent_of(image, SCAN)
    middle = lattice.fractions([((top + bottom) / 2, (left + right) / 2)])[0]
    corner = np.rint(middle - 0.5)
    start, *ends = lattice.at(corner + np.array([(0, 0), (1, 0), (0, 1)]))
    for name, end in zip("ab", ends, strict=True):
        style = {"arrowstyle": "-|>", "color": _ARROW, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=end[::-1], xytext=start[::-1], arrowprops=style)
        beyond = end + 0.09 * (end - start) * np.hypot(*(ends[0] - start)) / np.hypot(*(end - start))
        # A cell as large as the image would have its names outside.
        inset = 0.04 * (bottom - top)
        beyond = np.clip(beyond, (top + inset, left + inset), (bottom - inset, right - inset))
        label = axes.text(beyond[1], beyond[0], name, color=_ARROW, ha="center", va="center", style="italic", size=10)
        label.set_bbox({"facecolor": INK, "edgecolor": "none", "pad": 0.6, "alpha": 0.6})
