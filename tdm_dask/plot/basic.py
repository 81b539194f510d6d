"""Images, masks, mean patterns and tables of cross-talk."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ..axes import DETECTOR, TEMPLATE, unit_of
from ..errors import InputError
from .drawing import (
    Sites,
    bare,
    draw_disk,
    draw_image,
    draw_mask,
    draw_sites,
    extent_lengths,
    extent_of,
    label_detector,
    name_of,
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
    height, width = extent_lengths(image)
    side = 2.6
    size = (side, side * height / width) if width >= height else (side * width / height, side)
    legend = sites is not None and axes is None
    axes = new_axes(size[0], size[1] + 0.7 + (0.3 if sites else 0.0)) if axes is None else axes
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
    mask: xr.DataArray, *, semi_angle: float | None = None, title: str | None = None, axes: Axes | None = None
) -> Axes:
    """A mask over the detector, red where it adds and blue where it subtracts.

    Parameters
    ----------
    mask : xarray.DataArray
        Dims (ky, kx), in mrad or px.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad, drawn as a dashed circle.
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
    label_detector(axes, mask)
    axes.set_title(name_of(mask) if title is None else title)
    unit = mask.attrs.get("units", "1")
    bar = axes.figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.03, label="weight" + f" ({unit})" * (unit != "1"))
    bar.outline.set_visible(False)
    return axes


@styled
def plot_columns(
    images: xr.DataArray,
    masks: xr.DataArray,
    *,
    sites: Sites | None = None,
    semi_angle: float | None = None,
    figure: Figure | SubFigure | None = None,
) -> np.ndarray:
    """Images of kinds of column side by side, each over the mask that made it.

    Parameters
    ----------
    images : xarray.DataArray
        Dims (template, y, x).
    masks : xarray.DataArray
        Dims (template, ky, kx), with the same names in the same order.
    sites : mapping of str to array_like, optional
        Sites in angstrom, drawn in the image of the same name.
    semi_angle : float, optional
        Radius of the bright-field disk in mrad. The masks are shown a little further than that.
    figure : matplotlib Figure or SubFigure, optional
        To draw into. Default: a new one.

    Returns
    -------
    array of matplotlib Axes
        Two rows, images over masks; a column for each template.
    """
    names = [str(name) for name in images[TEMPLATE].values]
    if names != [str(name) for name in masks[TEMPLATE].values]:
        raise InputError(f"The images are {names}, the masks {list(masks[TEMPLATE].values)}; they must be the same.")
    height, width = extent_lengths(images)
    column = 1.9
    if figure is None:
        figure = new_figure(column * len(names), column * (height / width + 1) + 0.75)
    grid = figure.subplots(2, len(names), squeeze=False, gridspec_kw={"height_ratios": [height / width, 1]})
    for position, name in enumerate(names):
        image, mask = images.isel({TEMPLATE: position}), masks.isel({TEMPLATE: position})
        above, below = grid[:, position]
        draw_image(above, image, bar=position == 0)
        if sites and name in sites:
            draw_sites(above, image, {name: sites[name]}, list(sites).index(name))
        above.set_title(name)
        draw_mask(below, mask, semi_angle)
        bare(below)
        if semi_angle is not None and unit_of(mask, "kx") == "mrad":
            below.set_xlim(-1.15 * semi_angle, 1.15 * semi_angle)
            below.set_ylim(1.15 * semi_angle, -1.15 * semi_angle)
    return grid


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
                text = f"{value:+.2f}".replace("-", "−")
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
        Radius of the bright-field disk in mrad, drawn about the optic axis.
    title : str
        Above the figure.
    axes : matplotlib Axes, optional
        To draw into. Default: those of a new figure.

    Returns
    -------
    matplotlib Axes
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
    if semi_angle is not None:
        draw_disk(axes, semi_angle, "white")
        axes.plot(0, 0, "+", color="white", markersize=7, markeredgewidth=0.9)
    label_detector(axes, pattern)
    axes.set_title(title)
    bar = axes.figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.03, label="mean counts", format="%g")
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    return axes
