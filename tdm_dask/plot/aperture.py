"""Apertures over the mask that they were chosen from, and what they collect of each kind of column."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from ..axes import TEMPLATE
from .drawing import draw_colour_bar, draw_mask, label_detector, name_disk, show_disk, signed
from .style import COLOURS, INK, new_axes, styled


@styled
def plot_aperture(
    found: xr.Dataset,
    mask: xr.DataArray,
    *,
    semi_angle: float | None = None,
    title: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """The aperture as a circle over a mask, red where the mask is positive and blue where it is negative.

    Parameters
    ----------
    found : Dataset
        What `tdm_dask.collection_aperture` gave.
    mask : DataArray (ky, kx)
        In mrad; such as the mask of the same kind of column.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed circle; what is shown goes a little further than it
        and the aperture.
    title : str, optional
        Default: kind, radius and centre.
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
    >>> angles = {d: axis_coordinate(d, 41, 1.0, -20.0, "mrad") for d in ("ky", "kx")}
    >>> flat = xr.DataArray(np.ones((41, 41)), angles, ("ky", "kx"))
    >>> spots = xr.concat([tdm.disk(flat, 6, centre=(4, -3)), tdm.disk(flat, 5, centre=(-10, 0))], "template")
    >>> correlations = xr.Dataset({"rho": spots, "mean": flat, "std": flat, "n": 9, "detector_region": flat})
    >>> found = tdm.collection_aperture(correlations.assign_coords(template=["Li", "O"]), "Li")
    >>> plot_aperture(found, spots[0], semi_angle=15).get_xlabel()
    'kx (mrad)'
    """
    axes = new_axes(3.5, 2.9) if axes is None else axes
    picture = draw_mask(axes, mask, semi_angle)
    (cy, cx), radius = found.attrs["centre_mrad"], found.attrs["radius_mrad"]
    axes.add_patch(Circle((cx, cy), radius, fill=False, edgecolor=INK, linewidth=1.6))
    axes.plot(cx, cy, "+", color=INK, markersize=5, markeredgewidth=1.0)
    label_detector(axes, mask)
    if semi_angle is not None:
        show_disk(axes, semi_angle, least=1.08 * (np.abs([cy, cx]).max() + radius))
        name_disk(axes, semi_angle)
    draw_colour_bar(axes, picture, "weight of the mask", mask.attrs.get("units", "1"))
    where = f"({cy:.1f}, {cx:.1f})".replace("-", "−")
    axes.set_title(f"{found.attrs['kind']}: {radius:.1f} mrad at {where}" if title is None else title)
    return axes


@styled
def plot_aperture_signals(found: xr.Dataset, *, title: str = "What it collects", axes: Axes | None = None) -> Axes:
    """What the aperture collects of each kind of column, as bars; those that it is to keep out are paler.

    Parameters
    ----------
    found : Dataset
        What `tdm_dask.collection_aperture` gave.
    title : str
        Above the figure.
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
    >>> angles = {d: axis_coordinate(d, 41, 1.0, -20.0, "mrad") for d in ("ky", "kx")}
    >>> flat = xr.DataArray(np.ones((41, 41)), angles, ("ky", "kx"))
    >>> spots = xr.concat([tdm.disk(flat, 6, centre=(4, -3)), tdm.disk(flat, 5, centre=(-10, 0))], "template")
    >>> correlations = xr.Dataset({"rho": spots, "mean": flat, "std": flat, "n": 9, "detector_region": flat})
    >>> found = tdm.collection_aperture(correlations.assign_coords(template=["Li", "O"]), "Li")
    >>> [label.get_text() for label in plot_aperture_signals(found).get_yticklabels()]
    ['Li', 'O']
    """
    names = [str(name) for name in found[TEMPLATE].values]
    axes = new_axes(2.9, 0.35 * len(names) + 0.9) if axes is None else axes
    for place, (name, value) in enumerate(zip(names, found["snr"].values, strict=True)):
        own = name == found.attrs["kind"]
        axes.barh(place, value, height=0.62, color=COLOURS[place % len(COLOURS)], alpha=1.0 if own else 0.45)
        axes.annotate(
            signed(value, 1),
            (value, place),
            (3 if value >= 0 else -3, 0),
            textcoords="offset points",
            ha="left" if value >= 0 else "right",
            va="center",
            fontsize=7.5,
        )
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.margins(x=0.22)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("signal over shot noise, per probe position")
    axes.set_title(title)
    return axes
