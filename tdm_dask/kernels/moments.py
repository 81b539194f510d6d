"""Sums over patterns of counts, of their squares and of their products with templates, compiled by Numba.

A block of counts is a C-contiguous matrix of shape (patterns, pixels): one row per probe position, one column per
detector pixel. Counts are converted and shifted in registers, four patterns at a time, for as many templates at a time
as registers hold; a tile of pixels at a time, so that what it needs stays in cache. Results are added to what the
output arrays already hold. Compiled code is kept on disk, so that it is made once per machine. Arrays are copied and
searched in loops of ours: a kernel that assigns an array to a slice, or asks for its maximum, takes seconds longer to
compile.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Pixels of one tile of the sums over patterns: its sums stay in the first-level cache.
TILE = 2048

# From the sums of one template to those of the next: not a power of two, for these would share the cache's places.
PITCH = TILE + 80

# Patterns that are summed in float32 before they are added to what is exact: fewer make more of such additions, more
# make float32 overflow its exact integers.
RUN = 512

# Sums may be taken in any order, but NaN and infinity must come through.
REORDER = {"reassoc", "contract", "nsz", "arcp"}

# Sums of squares up to this are exact in float32, even where a last pattern was added up to four times: 2^24 / 8.
_EXACT_SQUARES = 2**21


@njit(nogil=True, cache=True, fastmath=REORDER)
def _padded(weights: np.ndarray) -> np.ndarray:
    """Weights (patterns, templates) with zeros up to whole groups of four patterns and five templates."""
    patterns, templates = weights.shape
    padded = np.zeros((-(-patterns // 4) * 4, -(-templates // 5) * 5), weights.dtype)
    for i in range(patterns):
        for t in range(templates):
            padded[i, t] = weights[i, t]
    return padded


@njit(nogil=True, cache=True, fastmath=REORDER)
def _add_tile(
    block: np.ndarray,
    first: int,
    weights: np.ndarray,
    shift: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
    cross: np.ndarray,
) -> None:
    """Add sums, squares and products with `_padded` weights of the pixels from `first` on, in the shift's precision.

    The tile is cut row by row: a compiler takes rows for contiguous, but not those of a cut matrix.
    """
    patterns, size = len(block), len(shift)
    stop, last = first + size, patterns - 1
    convert = shift.dtype.type
    # Sums come with the first five templates; what further ones would add to them again goes here.
    unused = np.zeros((2, PITCH), shift.dtype)
    for i in range(0, patterns, 4):
        # A last group of fewer than four takes the last pattern again, with weight 0; the sums are corrected below.
        x0 = block[i, first:stop]
        x1 = block[min(i + 1, last), first:stop]
        x2 = block[min(i + 2, last), first:stop]
        x3 = block[min(i + 3, last), first:stop]
        if len(cross) == 0:
            for j in range(size):
                d0 = convert(x0[j]) - shift[j]
                d1 = convert(x1[j]) - shift[j]
                d2 = convert(x2[j]) - shift[j]
                d3 = convert(x3[j]) - shift[j]
                total[j] += (d0 + d1) + (d2 + d3)
                squares[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        for t in range(0, len(cross), 5):
            sums, sums_of_squares = (total, squares) if t == 0 else (unused[0], unused[1])
            s, u, v = cross[t, :size], cross[t + 1, :size], cross[t + 2, :size]
            w, z = cross[t + 3, :size], cross[t + 4, :size]
            s0, s1, s2, s3 = weights[i, t], weights[i + 1, t], weights[i + 2, t], weights[i + 3, t]
            u0, u1, u2, u3 = weights[i, t + 1], weights[i + 1, t + 1], weights[i + 2, t + 1], weights[i + 3, t + 1]
            v0, v1, v2, v3 = weights[i, t + 2], weights[i + 1, t + 2], weights[i + 2, t + 2], weights[i + 3, t + 2]
            w0, w1, w2, w3 = weights[i, t + 3], weights[i + 1, t + 3], weights[i + 2, t + 3], weights[i + 3, t + 3]
            z0, z1, z2, z3 = weights[i, t + 4], weights[i + 1, t + 4], weights[i + 2, t + 4], weights[i + 3, t + 4]
            for j in range(size):
                d0 = convert(x0[j]) - shift[j]
                d1 = convert(x1[j]) - shift[j]
                d2 = convert(x2[j]) - shift[j]
                d3 = convert(x3[j]) - shift[j]
                sums[j] += (d0 + d1) + (d2 + d3)
                sums_of_squares[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                s[j] += s0 * d0 + s1 * d1 + s2 * d2 + s3 * d3
                u[j] += u0 * d0 + u1 * d1 + u2 * d2 + u3 * d3
                v[j] += v0 * d0 + v1 * d1 + v2 * d2 + v3 * d3
                w[j] += w0 * d0 + w1 * d1 + w2 * d2 + w3 * d3
                z[j] += z0 * d0 + z1 * d1 + z2 * d2 + z3 * d3
    again = convert(-patterns % 4)
    if again:
        x0 = block[last, first:stop]
        for j in range(size):
            d0 = convert(x0[j]) - shift[j]
            total[j] -= again * d0
            squares[j] -= again * d0 * d0


@njit(nogil=True, cache=True, fastmath=REORDER)
def exact_moments(
    block: np.ndarray,
    weights: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
    cross: np.ndarray,
    ky: int,
    kx: int,
    width: int,
) -> None:
    r"""Add sums, sums of squares and S^T D of a tile of the detector; the sums are exact.

    Counts are shifted by about their mean, an integer, before they are squared or multiplied in float32. With this
    shift the products keep 4e-7 of a pixel's standard deviation even where the counts are large. Sums of squares below
    2^24 are exact in float32, and so are then the sums; a tile with larger ones is summed again in float64.

    Parameters
    ----------
    block : ndarray of uint8 or uint16, shape (patterns, pixels)
        Its pixels are rows of `width`.
    weights : ndarray of float32, shape (patterns, templates)
    total, squares : ndarray of uint64, shape (nky, nkx)
        Accumulators, changed in place. Squares of 16-bit counts overflow only beyond 4e9 patterns.
    cross : ndarray of float64, shape (templates, nky, nkx)
        Accumulator of :math:`\sum_i w_{it} d_{ij}`, changed in place.
    ky, kx : int
        Where the tile begins in the accumulators.
    width : int
        Pixels of one row of the tile.
    """
    pixels = block.shape[1]
    templates = weights.shape[1]
    shift = np.empty(TILE, np.float32)
    total32, squares32 = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    shift64, total64, squares64 = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    no_weights, no_cross = np.zeros((0, 0)), np.zeros((0, PITCH))
    weight = np.zeros(templates)
    for first in range(0, len(block), RUN):
        run = block[first : first + RUN]
        padded = _padded(weights[first : first + RUN])
        sums = np.empty((padded.shape[1], PITCH), np.float32)
        weight[:] = 0
        for i in range(len(run)):
            for t in range(templates):
                weight[t] += np.float64(padded[i, t])
        for j0 in range(0, pixels, TILE):
            size = min(TILE, pixels - j0)
            c = shift[:size]
            _rough_mean(run, j0, c)
            total32[:] = 0
            squares32[:] = 0
            sums[:] = 0
            _add_tile(run, j0, padded, c, total32[:size], squares32[:size], sums)
            largest = np.float32(0)
            for k in range(size):
                total64[k] = total32[k]
                squares64[k] = squares32[k]
                largest = max(largest, squares32[k])
            if largest > _EXACT_SQUARES:
                for k in range(size):
                    shift64[k] = c[k]
                total64[:] = 0
                squares64[:] = 0
                _add_tile(run, j0, no_weights, shift64[:size], total64[:size], squares64[:size], no_cross)
            j = 0
            while j < size:
                y = ky + (j0 + j) // width
                x = kx + (j0 + j) % width
                stop = min(j + width - (j0 + j) % width, size)
                for k in range(j, stop):
                    shift_k = np.int64(c[k])
                    total_k = np.int64(total64[k])
                    shifted = shift_k * (2 * total_k + len(run) * shift_k)
                    total[y, x + k - j] += np.uint64(total_k + len(run) * shift_k)
                    squares[y, x + k - j] += np.uint64(np.int64(squares64[k]) + shifted)
                for t in range(templates):
                    for k in range(j, stop):
                        cross[t, y, x + k - j] += np.float64(sums[t, k]) + weight[t] * np.float64(c[k])
                j = stop


@njit(nogil=True, cache=True, fastmath=REORDER)
def _rough_mean(block: np.ndarray, first: int, mean: np.ndarray) -> None:
    """Fill in the mean of the pixels from `first` on over about eight of the patterns, rounded to integers."""
    step = -(-len(block) // 8)
    mean[:] = 0
    for i in range(0, len(block), step):
        row = block[i, first : first + len(mean)]
        for j in range(len(mean)):
            mean[j] += np.float32(row[j])
    scale = np.float32(1 / -(-len(block) // step))
    for j in range(len(mean)):
        mean[j] = np.rint(mean[j] * scale)


@njit(nogil=True, cache=True, fastmath=REORDER)
def shifted_moments(
    block: np.ndarray,
    weights: np.ndarray,
    shift: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
    cross: np.ndarray,
) -> None:
    r"""Add sums, sums of squares and S^T D of shifted counts :math:`d_{ij} - c_j`, in float64.

    Squares of 32-bit counts would overflow 64-bit integers, and sums of squares of large counts lose the variance.
    With a shift that is the mean of any m patterns of the n, the variance has a relative error of at most n / m
    times the float64 epsilon, because a shift far from the mean implies a large variance.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (patterns, pixels)
    weights : ndarray of float64, shape (patterns, templates)
    shift : ndarray of float64, shape (pixels,)
    total, squares : ndarray of float64, shape (pixels,)
        Accumulators, changed in place.
    cross : ndarray of float64, shape (templates, pixels)
        Accumulator, changed in place.
    """
    padded = _padded(weights)
    sums = np.empty((padded.shape[1], PITCH))
    for j in range(0, block.shape[1], TILE):
        stop = min(j + TILE, block.shape[1])
        sums[:] = 0
        _add_tile(block, j, padded, shift[j:stop], total[j:stop], squares[j:stop], sums)
        for t in range(len(cross)):
            for k in range(j, stop):
                cross[t, k] += sums[t, k - j]


def variance_from_sums(n: int, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Population variance from exact uint64 sums of `n` counts, without loss by cancellation.

    The sums are shifted by each pixel's mean, rounded down, in arithmetic modulo 2^64; the shifted sum of squares
    fits, so it is exact.

    Examples
    --------
    >>> counts = np.array([65535, 65534, 65535, 65534], np.uint64)
    >>> float(variance_from_sums(4, counts.sum(), (counts * counts).sum()))
    0.25
    """
    n64 = np.uint64(n)
    shift = total // n64
    rest = (total - n64 * shift).astype(np.float64)
    with np.errstate(over="ignore"):
        shifted = squares - np.uint64(2) * shift * total + n64 * shift * shift
    return np.maximum(shifted.astype(np.float64) / n - (rest / n) ** 2, 0.0)
