"""Images, masks, mean patterns and tables of cross-talk."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ..axes import DETECTOR, TEMPLATE, unit_of
from ..errors import InputError
from .drawing import (
    SHOWN,
    Sites,
    draw_colour_bar,
    draw_disk,
    draw_image,
    draw_mask,
    draw_mask_bare,
    draw_rings,
    draw_sites,
    extent_lengths,
    extent_of,
    image_size,
    label_detector,
    name_disk,
    name_of,
    ring_radii,
    signed,
    two_dimensional,
)
from .style import DIVERGING, INK, SEQUENTIAL, figure_of, new_axes, new_figure, styled

DETECTOR_SIZE = (3.5, 2.9)  # inches


@styled
def plot_image(
    image: xr.DataArray, *, sites: Sites | None = None, title: str | None = None, axes: Axes | None = None
) -> Axes:
    """An image in grey with a scale bar and, on request, the sites of every kind of column.

    Parameters
    ----------
    image : xarray.DataArray
        Dims (y, x), in angstrom or px.
    sites : mapping of str to array_like, optional
        Kind of column to its (y, x) positions in angstrom. Default: none are drawn.
    title : str, optional
        Default: the name of the image's template, where it has one.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure, with a legend of the sites below.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import numpy as np
    >>> axes = plot_image(xr.DataArray(np.eye(8), dims=("y", "x")), title="ABF")
    >>> axes.get_title(loc="left")
    'ABF'
    """
    width, height = image_size(image, 2.6)
    legend = sites is not None and axes is None
    axes = new_axes(width, height + 0.7 + (0.3 if sites else 0.0)) if axes is None else axes
    draw_image(axes, image)
    if sites:
        handles = draw_sites(axes, image, sites)
        if legend:
            columns = min(len(handles), 5)
            figure_of(axes).legend(handles=handles, loc="outside lower center", ncols=columns, handletextpad=0.2)
    axes.set_title(name_of(image) if title is None else title)
    return axes


@styled
def plot_mask(
    mask: xr.DataArray,
    *,
    semi_angle: float | None = None,
    rings: Sequence[float] | None = None,
    title: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """A mask over the detector, red where it adds and blue where it subtracts, with rings of equal scattering angle.

    Parameters
    ----------
    mask : xarray.DataArray
        Dims (ky, kx), in mrad or px.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed circle and named.
    rings : sequence of float, optional
        Scattering angles in mrad of thin circles with their numbers; ``()`` for none. Default: two to five round
        angles that the detector reaches, without those that would run into the disk; none on axes in px.
    title : str, optional
        Default: the name of the mask's template, where it has one.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import numpy as np
    >>> axes = plot_mask(xr.DataArray(np.eye(8), dims=("ky", "kx")))
    >>> axes.get_xlabel()
    'kx (px)'
    """
    axes = new_axes(*DETECTOR_SIZE) if axes is None else axes
    picture = draw_mask(axes, mask, semi_angle)
    draw_rings(axes, ring_radii(mask, semi_angle) if rings is None else rings)
    if semi_angle is not None and unit_of(mask, "kx") == "mrad":
        name_disk(axes, semi_angle)
    label_detector(axes, mask)
    axes.set_title(name_of(mask) if title is None else title)
    draw_colour_bar(axes, picture, "weight", mask.attrs.get("units", "1"))
    return axes


@styled
def plot_columns(
    images: xr.DataArray,
    masks: xr.DataArray,
    *,
    sites: Sites | None = None,
    semi_angle: float | None = None,
    rings: Sequence[float] | None = None,
    across: int | None = None,
    figure: Figure | SubFigure | None = None,
) -> np.ndarray:
    """Images of kinds of column side by side, each over the mask that made it (Fig. 3 of the paper).

    Parameters
    ----------
    images : xarray.DataArray
        Dims (template, y, x).
    masks : xarray.DataArray
        Dims (template, ky, kx), with the same names in the same order. Each has its own colours, white at zero.
    sites : mapping of str to array_like, optional
        Sites in angstrom, drawn in the image of the same name.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad. The masks are shown to 1.25 times that.
    rings : sequence of float, optional
        Scattering angles in mrad of thin circles in the masks, numbered in the first; ``()`` for none. Default: round
        angles inside what is shown; none without `semi_angle`.
    across : int, optional
        How many templates stand side by side before a new band of images over masks begins. Default: up to six, or
        in several bands as equal as they can be with at most five; all in a figure that is given.
    figure : matplotlib Figure or SubFigure, optional
        To draw into. Default: a new one.

    Returns
    -------
    array of matplotlib Axes
        Two rows, images over masks, however many bands they are drawn in; a column for each template.

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
    >>> mask = tdm.derive_mask(counts, template)
    >>> plot_columns(tdm.apply_mask(counts, mask, normalisation="standardised"), mask, sites=sites).shape
    (2, 1)
    """
    names = [str(name) for name in images[TEMPLATE].values]
    if names != [str(name) for name in masks[TEMPLATE].values]:
        raise InputError(f"The images are {names}, the masks {list(masks[TEMPLATE].values)}; they must be the same.")
    height, width = extent_lengths(images)
    in_mrad = semi_angle is not None and unit_of(masks, "kx") == "mrad"
    angle = semi_angle if in_mrad else None
    shape = 1.0 if in_mrad else _height_over_width(masks)
    if across is None:
        across = len(names) if figure is not None or len(names) <= 6 else -(-len(names) // -(-len(names) // 5))
    bands = -(-len(names) // across)
    column = 1.9
    if figure is None:
        figure = new_figure(column * across, bands * (column * (height / width + shape) + 0.62) + 0.05)
    every = figure.subplots(2 * bands, across, squeeze=False, height_ratios=[height / width, shape] * bands)
    grid = every.reshape(bands, 2, across).swapaxes(0, 1).reshape(2, -1)
    for unused in grid[:, len(names) :].flat:
        unused.remove()
    grid = grid[:, : len(names)]
    if rings is None:
        rings = () if angle is None else ring_radii(masks, angle, SHOWN * angle)
    for position, name in enumerate(names):
        image, mask = images.isel({TEMPLATE: position}), masks.isel({TEMPLATE: position})
        above, below = grid[:, position]
        draw_image(above, image, bar=position == 0)
        if sites and name in sites:
            draw_sites(above, image, {name: sites[name]}, list(sites).index(name))
        above.set_title(name)
        draw_mask_bare(below, mask, angle, rings, first=position == 0)
    return grid


def _height_over_width(masks: xr.DataArray) -> float:
    left, right, bottom, top = extent_of(masks, DETECTOR)
    return abs((bottom - top) / (right - left))


@styled
def plot_cross_talk(table: xr.Dataset, *, figure: Figure | SubFigure | None = None) -> np.ndarray:
    """The table of :func:`tdm_dask.cross_talk` as three heat maps: R, G and R - G.

    Parameters
    ----------
    table : xarray.Dataset
        `R` and `G`, dims (image, template).
    figure : matplotlib Figure or SubFigure, optional
        To draw into. Default: a new one.

    Returns
    -------
    array of three matplotlib Axes

    Examples
    --------
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> planes = np.eye(4).reshape(4, 2, 2)[:2]
    >>> two = xr.DataArray(planes, {"template": ["Li", "O"]}, ("template", "y", "x"))
    >>> plot_cross_talk(tdm.cross_talk(two, two)).shape
    (3,)
    """
    difference = table.R - table.G
    # The diagonal of R - G says how far an image is from its own template; cross-talk is what lies off it.
    own = table.R.image != table.R.template
    panels = (
        ("R: image with template", table.R, None),
        ("G: template with template", table.G, None),
        ("R − G: cross-talk", difference, own),
    )
    rows, columns = table.sizes["image"], table.sizes["template"]
    if figure is None:
        figure = new_figure(3 * (0.55 * columns + 0.75), 0.42 * rows + 1.2)
    drawn_in = figure.subplots(1, 3, sharey=True)
    for axes, (title, values, shown) in zip(drawn_in, panels, strict=True):
        data = values.transpose("image", "template").values
        drawn = np.where(shown.transpose("image", "template").values, data, np.nan) if shown is not None else data
        axes.imshow(drawn, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(drawn):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else INK
                text = signed(value, 2)
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
        axes.set_xticks(range(columns), [str(name) for name in table.template.values])
        axes.set_yticks(range(rows), [str(name) for name in table.image.values])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("template")
    drawn_in[0].set_ylabel("image")
    return drawn_in


@styled
def plot_pacbed(
    pattern: xr.DataArray,
    *,
    semi_angle: float | None = None,
    title: str = "PACBED (mean pattern)",
    axes: Axes | None = None,
) -> Axes:
    """The mean pattern on a logarithmic grey scale, with the bright-field disk that was found in it.

    Parameters
    ----------
    pattern : xarray.DataArray
        Dims (ky, kx), mean counts, in mrad or px.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn about the optic axis and named.
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
    >>> pattern = 100 * tdm.disk(xr.DataArray(np.zeros((41, 41)), angles, ("ky", "kx")), 15) + 1
    >>> plot_pacbed(pattern, semi_angle=15).get_ylabel()
    'ky (mrad)'
    """
    values = two_dimensional(pattern, DETECTOR, "pattern")
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size == 0:
        raise InputError("The mean pattern holds no counts, so there is nothing to show.")
    axes = new_axes(*DETECTOR_SIZE) if axes is None else axes
    floor = max(float(positive.min()), float(positive.max()) * 1e-5)
    picture = axes.imshow(
        np.clip(values, floor, None),
        cmap=SEQUENTIAL,
        norm=mpl.colors.LogNorm(floor, positive.max()),
        extent=extent_of(pattern, DETECTOR),
    )
    if semi_angle is not None and unit_of(pattern, "kx") == "mrad":
        draw_disk(axes, semi_angle, "white")
        axes.plot(0, 0, "+", color=INK, markersize=7, markeredgewidth=0.9)
        name_disk(axes, semi_angle, "white")
    label_detector(axes, pattern)
    axes.set_title(title)
    draw_colour_bar(axes, picture, "mean counts per pixel", format="%g")
    return axes
