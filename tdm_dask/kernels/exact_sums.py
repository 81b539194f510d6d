"""Exact sums of integer counts: of each pattern, and what a conversion finds out in one read; compiled by Numba."""

from __future__ import annotations

import numpy as np
from numba import njit

from .moments import RUN, TILE


@njit(nogil=True, cache=True)
def pattern_sums(block: np.ndarray, totals: np.ndarray) -> None:
    """Add the sum over pixels of each pattern of integer counts to `totals` (patterns,), exactly in its dtype."""
    patterns, pixels = block.shape
    for i in range(patterns):
        s = totals[i]
        for j in range(pixels):
            s += totals.dtype.type(block[i, j])
        totals[i] = s


@njit(nogil=True, cache=True)
def exact_sums(
    block: np.ndarray,
    valid: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
    maximum: np.ndarray,
    pattern_totals: np.ndarray,
    ky: int,
    kx: int,
    width: int,
) -> None:
    """Add what a conversion finds out about the counts of a tile of the detector, exactly and in one read of them.

    Sums are taken in 32-bit integers over runs of patterns, and again in 64-bit where squares could overflow these.

    Parameters
    ----------
    block : ndarray of uint8 or uint16, shape (patterns, pixels)
        Its pixels are rows of `width`.
    valid : ndarray of uint32, shape (pixels,)
        1 for the pixels that count in the pattern's sums, 0 for the others.
    total, squares : ndarray of uint64, shape (nky, nkx)
        Sums of each pixel's counts and of their squares, changed in place.
    maximum : ndarray like `block`, shape (nky, nkx)
        Maximum of each pixel, changed in place.
    pattern_totals : ndarray of uint64, shape (patterns,)
        Sums of each pattern, changed in place.
    ky, kx : int
        Where the tile begins in `total`, `squares` and `maximum`.
    width : int
        Pixels of one row of the tile.
    """
    patterns, pixels = block.shape
    total32, squares32, top = np.empty(TILE, np.uint32), np.empty(TILE, np.uint32), np.empty(TILE, block.dtype)
    squares64 = np.empty(TILE, np.uint64)
    rest = np.zeros((4, TILE), block.dtype)
    for first in range(0, patterns, RUN):
        last = min(first + RUN, patterns)
        for j0 in range(0, pixels, TILE):
            j1 = min(j0 + TILE, pixels)
            size = j1 - j0
            t, s, m, v = total32[:size], squares32[:size], top[:size], valid[j0:j1]
            t[:] = 0
            s[:] = 0
            m[:] = 0
            for i in range(first, last, 4):
                if i + 4 <= last:
                    x0, x1, x2, x3 = block[i, j0:j1], block[i + 1, j0:j1], block[i + 2, j0:j1], block[i + 3, j0:j1]
                    sums = _add_four_sums(x0, x1, x2, x3, v, t, s, m)
                else:
                    rest[:, :size] = 0
                    for k in range(last - i):
                        for j in range(size):
                            rest[k, j] = block[i + k, j0 + j]
                    sums = _add_four_sums(rest[0, :size], rest[1, :size], rest[2, :size], rest[3, :size], v, t, s, m)
                for k in range(min(4, last - i)):
                    pattern_totals[i + k] += np.uint64(sums[k])
            largest = np.int64(0)
            for j in range(size):
                squares64[j] = s[j]
                largest = max(largest, np.int64(m[j]))
            if largest**2 * (last - first) >= 2**32:
                squares64[:size] = 0
                for i in range(first, last):
                    for j in range(size):
                        square = np.uint64(block[i, j0 + j])
                        squares64[j] += square * square
            j = 0
            while j < size:
                y, x = ky + (j0 + j) // width, kx + (j0 + j) % width
                stop = min(j + width - (j0 + j) % width, size)
                for k in range(j, stop):
                    total[y, x + k - j] += np.uint64(t[k])
                    squares[y, x + k - j] += squares64[k]
                    maximum[y, x + k - j] = max(maximum[y, x + k - j], m[k])
                j = stop


@njit(nogil=True, cache=True)
def _add_four_sums(x0, x1, x2, x3, valid, total, squares, maximum):
    """Add four patterns to sums of 32 bit and maxima over a tile; gives the sum of each pattern's valid pixels."""
    s0 = s1 = s2 = s3 = np.uint32(0)
    for j in range(len(total)):
        c0, c1, c2, c3 = np.uint32(x0[j]), np.uint32(x1[j]), np.uint32(x2[j]), np.uint32(x3[j])
        total[j] += (c0 + c1) + (c2 + c3)
        squares[j] += (c0 * c0 + c1 * c1) + (c2 * c2 + c3 * c3)
        maximum[j] = max(max(maximum[j], max(x0[j], x1[j])), max(x2[j], x3[j]))
        s0 = np.uint32(s0 + c0 * valid[j])
        s1 = np.uint32(s1 + c1 * valid[j])
        s2 = np.uint32(s2 + c2 * valid[j])
        s3 = np.uint32(s3 + c3 * valid[j])
    return s0, s1, s2, s3
