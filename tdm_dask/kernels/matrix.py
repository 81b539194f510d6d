"""Numerics on plain NumPy arrays, compiled by Numba: the normalised data matrix, added up over bins of it.

As in `kernels`, a block of counts is a C-contiguous matrix of shape (patterns, pixels).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .moments import REORDER

# Pixels that are normalised, four patterns of them, before they are added up: as many as the second-level cache takes,
# for then several of them share a column of the picture.
TILE = 4096


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

    The pixels of a tile are put in the order of their columns once. Then, four patterns at a time, they are normalised
    side by side, and those of a column are summed in registers: one after another in memory, each addition would wait
    for the last one wherever neighbours share a column, or patterns a row.

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
    size = min(TILE, pixels)
    order, starts, bins = np.empty(size, np.uint32), np.empty(size + 1, np.uint32), np.empty(size, np.uint32)
    four = np.empty((4, size))
    for first in range(0, pixels, TILE):
        stop = min(first + TILE, pixels)
        c, w = shift[first:stop], weights[first:stop]
        groups = _grouped(columns[first:stop], picture.shape[1], order, starts, bins)
        for i in range(0, patterns, 4):
            for k in range(4):
                if i + k < patterns:
                    _normalise(block[i + k, first:stop], c, w, four[k])
                else:
                    four[k] = 0.0  # a last group of fewer than four adds nothing to the row of the last one
            y0, y1, y2, y3 = four[0], four[1], four[2], four[3]
            last = patterns - 1
            p0, p1 = picture[rows[i]], picture[rows[min(i + 1, last)]]
            p2, p3 = picture[rows[min(i + 2, last)]], picture[rows[min(i + 3, last)]]
            for g in range(groups):
                s0 = s1 = s2 = s3 = 0.0
                for k in range(starts[g], starts[g + 1]):
                    j = order[k]
                    s0 += y0[j]
                    s1 += y1[j]
                    s2 += y2[j]
                    s3 += y3[j]
                b = bins[g]
                p0[b] += s0
                p1[b] += s1
                p2[b] += s2
                p3[b] += s3


@njit(nogil=True, cache=True)
def _normalise(x: np.ndarray, shift: np.ndarray, weights: np.ndarray, y: np.ndarray) -> None:
    for j in range(len(shift)):
        y[j] = (np.float64(x[j]) - shift[j]) * weights[j]


@njit(nogil=True, cache=True)
def _grouped(columns: np.ndarray, number: int, order: np.ndarray, starts: np.ndarray, bins: np.ndarray) -> int:
    """Fill in the order of pixels by column, where each column begins in it, and which it is; gives how many."""
    places = np.zeros(number, np.int64)
    for b in columns:
        places[b] += 1
    groups = at = 0
    for b in range(number):
        n = places[b]
        places[b] = at
        if n:
            bins[groups], starts[groups] = b, at
            groups += 1
            at += n
    starts[groups] = at
    for j in range(len(columns)):
        b = columns[j]
        order[places[b]] = j
        places[b] += 1
    return groups


@njit(nogil=True, cache=True, fastmath=REORDER)
def centred_rows(
    block: np.ndarray, columns: np.ndarray, places: np.ndarray, mean: np.ndarray, rows: np.ndarray
) -> None:
    """Some pixels of a block in float32, less their mean over the block: what is squared in float32 loses nothing.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (patterns, pixels)
    columns : ndarray of int, shape (n,)
        Pixels of the block that are taken.
    places : ndarray of int, shape (n,)
        Where each of them goes in `mean` and `rows`.
    mean : ndarray of float64
        Filled in: the mean of each pixel.
    rows : ndarray of float32, shape (patterns, places)
        Filled in: the counts less that mean, subtracted in float64.
    """
    total = np.zeros(len(columns))
    for i in range(len(block)):
        row = block[i]
        for j in range(len(columns)):
            total[j] += np.float64(row[columns[j]])
    for j in range(len(columns)):
        total[j] /= len(block)
        mean[places[j]] = total[j]
    for i in range(len(block)):
        row, out = block[i], rows[i]
        for j in range(len(columns)):
            out[places[j]] = np.float32(np.float64(row[columns[j]]) - total[j])
