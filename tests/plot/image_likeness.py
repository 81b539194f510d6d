"""Whether a drawing looks like a stored image, whatever version of matplotlib or FreeType drew it."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from tdm_dask.plot.style import in_style

DPI, LARGEST = 72, 230_000  # pixels of an image
COLOURS = 256
REACH = 4  # pixels by which lines and letters may lie elsewhere
CLEAR = 0.09  # of the way from black to white, after blurring
SEVERAL = 55  # pixels: fewer than those of a title or an axis label


def picture_of(figure: Figure) -> np.ndarray:
    """A figure as pixels (rows, columns, 3) from 0 to 1, small, in as many colours as are stored."""
    width, height = figure.get_size_inches()
    file = io.BytesIO()
    # Hinted letters are as wide as the rasteriser's version makes them, and all that makes room for them moves with it.
    with in_style(), mpl.rc_context({"text.hinting": "none"}):
        figure.savefig(file, format="png", dpi=min(DPI, int(np.sqrt(LARGEST / (width * height)))), facecolor="white")
    return np.asarray(Image.open(file).convert("RGB"), np.float32) / 255


def stored(picture: np.ndarray) -> bytes:
    """A PNG file with a palette, about a third as large as one without."""
    file = io.BytesIO()
    image = Image.fromarray(np.rint(255 * picture).astype(np.uint8))
    image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True
    )
    return file.getvalue()


def read(file) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"), np.float32) / 255


def unlike(first: np.ndarray, second: np.ndarray) -> int:
    """How many pixels of either picture, blurred, are clearly beyond all that the other has within four pixels.

    Letters of another rasteriser and edges that lie one pixel elsewhere count for nothing; what is there in one picture
    and not in the other does, be it a thin line.
    """
    if first.shape != second.shape:
        return max(first.size, second.size)
    a, b = (gaussian_filter(p, (1, 1, 0)) for p in (first, second))
    size = (2 * REACH + 1, 2 * REACH + 1, 1)
    beyond = np.zeros(a.shape, np.float32)
    for one, other in ((a, b), (b, a)):
        beyond = np.maximum(beyond, one - maximum_filter(other, size))
        beyond = np.maximum(beyond, minimum_filter(other, size) - one)
    return int((beyond.max(-1) > CLEAR).sum())
