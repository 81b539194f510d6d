"""Numerics on plain NumPy arrays, compiled by Numba: the normalised data matrix, added up over bins of it.

As in `kernels`, a block of counts is a C-contiguous matrix of shape (patterns, pixels).
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Pixels of one tile: its bins, means and weights stay in the second-level cache while all patterns go through them.
TILE = 2048


@njit(nogil=True, cache=True)
def add_to_bins(
    block: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    shift: np.ndarray,
    weights: np.ndarray,
    picture: np.ndarray,
) -> None:
    r"""Add :math:`(d_{ij} - c_j) w_j` to the element (row of pattern i, column of pixel j) of a picture, in float64.

    Pixels go one after another and four patterns at a time: their sums are different places of memory, so that none
    waits for the one before. What is added lands in the order of the pixels, whatever the tiles.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (patterns, pixels)
    rows : ndarray of int32, shape (patterns,)
        Row of the picture that each pattern belongs to.
    columns : ndarray of int32, shape (pixels,)
        Column of the picture that each pixel belongs to. What is left out has a column of its own.
    shift, weights : ndarray of float64, shape (pixels,)
    picture : ndarray of float64, shape (rows, columns)
        Accumulator, changed in place.
    """
    patterns, pixels = block.shape
    for first in range(0, pixels, TILE):
        stop = min(first + TILE, pixels)
        bins, c, w = columns[first:stop], shift[first:stop], weights[first:stop]
        whole = patterns - patterns % 4
        for i in range(0, whole, 4):
            x0, x1 = block[i, first:stop], block[i + 1, first:stop]
            x2, x3 = block[i + 2, first:stop], block[i + 3, first:stop]
            p0, p1, p2, p3 = picture[rows[i]], picture[rows[i + 1]], picture[rows[i + 2]], picture[rows[i + 3]]
            for j in range(stop - first):
                b = bins[j]
                p0[b] += (np.float64(x0[j]) - c[j]) * w[j]
                p1[b] += (np.float64(x1[j]) - c[j]) * w[j]
                p2[b] += (np.float64(x2[j]) - c[j]) * w[j]
                p3[b] += (np.float64(x3[j]) - c[j]) * w[j]
        for i in range(whole, patterns):
            x0, p0 = block[i, first:stop], picture[rows[i]]
            for j in range(stop - first):
                p0[bins[j]] += (np.float64(x0[j]) - c[j]) * w[j]
