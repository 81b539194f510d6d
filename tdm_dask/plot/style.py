"""One style for all figures: fonts, lines, colours that are told apart with any colour vision.

Figures are made without pyplot: none needs a display or leaves state. A notebook shows what a cell ends with: a figure,
the Axes of one that a function of this package made, or an array of them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # which comes with matplotlib: the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "image.interpolation": "nearest",
    # Text stays text, which other programs can search and edit.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
GREY, DIVERGING, SEQUENTIAL = "gray", "RdBu_r", "magma"
INK = "#1a1a1a"
# Okabe and Ito's colours, told apart with any colour vision, each with a marker of its own.
COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

F = TypeVar("F", bound=Callable[..., Any])


def in_style() -> AbstractContextManager[None]:
    """Inside, matplotlib's own defaults and STYLE hold, whatever the user's settings are; after it, these again."""
    return mpl.style.context(["default", STYLE])


def styled(function: F) -> F:
    """Draw in the style of this package, whatever the user's own is."""

    @wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        with in_style():
            drawn = function(*args, **kwargs)
        ours = isinstance(drawn, np.ndarray) and isinstance(figure_of(drawn), _ShownFigure)
        return drawn.view(_ShownArray) if ours else drawn

    return draw  # type: ignore[return-value]


class _Shown:
    """What a notebook shows as its figure; IPython itself shows those of pyplot alone."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        png = io.BytesIO()
        # With twice the pixels that it takes up, as screens have them.
        with in_style():
            figure_of(self).savefig(png, format="png", bbox_inches="tight", pad_inches=0.06, facecolor="white", dpi=200)
        width, height = struct.unpack(">II", png.getvalue()[16:24])
        return png.getvalue(), {"width": width // 2, "height": height // 2}


class _ShownFigure(_Shown, Figure):
    """A figure, whose Axes have the style of this package whoever adds them."""

    add_subplot = styled(Figure.add_subplot)


class _ShownAxes(_Shown, Axes):
    """The only Axes of a figure."""


class _ShownArray(_Shown, np.ndarray):
    """Axes of one figure."""


def new_axes(width: float, height: float) -> Axes:
    """The only Axes of a new figure, which is `width` x `height` inches."""
    return new_figure(width, height).add_subplot(axes_class=_ShownAxes)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, whose parts make room for each other's labels."""
    return _ShownFigure(figsize=(width, height), layout="constrained")


def figure_of(drawn: Any) -> Figure:
    """The figure that Axes, an array of them or a part of a figure belong to.

    Examples
    --------
    >>> axes = new_axes(2, 2)
    >>> figure_of(np.array([axes])) is axes.figure
    True
    """
    first = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    while not isinstance(first, Figure):
        first = first.figure
    return first


@styled
def save_figure(drawn: Figure | SubFigure | Axes | np.ndarray, path: str | Path) -> Path:
    """Write a figure, or that of some Axes; the suffix of `path` chooses the format.

    PNG has 200 dots per inch. In SVG and PDF lines are lines and text is text; only images, and what consists of
    thousands of dots, are pixels.

    Parameters
    ----------
    drawn : Figure, SubFigure, Axes or array of Axes
        What a function of this room returned.
    path : path

    Returns
    -------
    Path
        The same path.

    Examples
    --------
    >>> import tempfile
    >>> axes = new_axes(2, 2)
    >>> line = axes.plot([0, 1], [0, 1])
    >>> save_figure(axes, tempfile.mkdtemp() + "/line.svg").stat().st_size > 1000
    True
    """
    figure_of(drawn).savefig(path, bbox_inches="tight", pad_inches=0.06, facecolor="white")
    return Path(path)
