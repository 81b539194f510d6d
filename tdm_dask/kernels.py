"""Numerics on plain NumPy arrays, compiled by Numba: sums over counts, and weighted sums of counts.

A block of counts is a C-contiguous matrix of shape (patterns, pixels): one row per probe position, one column per
detector pixel. Integers are converted in registers; accumulators stay in cache, because patterns are taken four at
a time and pixels a tile at a time. Results are added to what the output arrays already hold. Compiled code is kept
on disk, so that it is made once per machine.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Pixels of one tile: four converted rows and the accumulators of several templates stay in the first-level cache.
TILE = 512

# Tile of the kernel that goes over its block twice: all patterns of a tile stay in the second-level cache.
NARROW_TILE = 1024

# Sums may be taken in any order, but NaN and infinity must come through.
_REORDER = {"reassoc", "contract", "nsz", "arcp"}

# Patterns of a 16-bit detector that a 32-bit sum holds without overflow.
MAX_PATTERNS = 65536


@njit(nogil=True, cache=True, fastmath=_REORDER)
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

    Each tile of pixels is summed in integers first; its mean then shifts the counts before they are multiplied in
    float32, which keeps 4e-7 of a pixel's standard deviation even where the counts are large. Squares are summed as
    two 16-bit halves, so that 32-bit lanes hold them.

    Parameters
    ----------
    block : ndarray of uint8 or uint16, shape (patterns, pixels)
        At most 65536 patterns. Its pixels are rows of `width`.
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
    patterns, pixels = block.shape
    templates = weights.shape[1]
    tile_total = np.empty(NARROW_TILE, np.uint32)
    tile_low = np.empty(NARROW_TILE, np.uint32)
    tile_high = np.empty(NARROW_TILE, np.uint32)
    tile_shift = np.empty(NARROW_TILE, np.float32)
    rows = np.empty((4, NARROW_TILE), np.float32)
    sums = np.empty((templates, NARROW_TILE), np.float32)
    weight = np.zeros(templates)
    for i in range(patterns):
        for t in range(templates):
            weight[t] += weights[i, t]
    half = np.uint32(0xFFFF)
    sixteen = np.uint32(16)
    for j0 in range(0, pixels, NARROW_TILE):
        size = min(NARROW_TILE, pixels - j0)
        a = tile_total[:size]
        low = tile_low[:size]
        high = tile_high[:size]
        c = tile_shift[:size]
        for j in range(size):
            a[j] = 0
            low[j] = 0
            high[j] = 0
        for i in range(patterns):
            row = block[i, j0 : j0 + size]
            for j in range(size):
                value = np.uint32(row[j])
                square = np.uint32(value * value)
                a[j] += value
                low[j] += square & half
                high[j] += square >> sixteen
        if templates:
            for j in range(size):
                c[j] = np.float32(np.rint(a[j] / patterns))
            sums[:] = 0
            b0 = rows[0, :size]
            b1 = rows[1, :size]
            b2 = rows[2, :size]
            b3 = rows[3, :size]
            whole = patterns - patterns % 4
            for i in range(0, whole, 4):
                x0 = block[i, j0 : j0 + size]
                x1 = block[i + 1, j0 : j0 + size]
                x2 = block[i + 2, j0 : j0 + size]
                x3 = block[i + 3, j0 : j0 + size]
                for j in range(size):
                    b0[j] = np.float32(x0[j]) - c[j]
                    b1[j] = np.float32(x1[j]) - c[j]
                    b2[j] = np.float32(x2[j]) - c[j]
                    b3[j] = np.float32(x3[j]) - c[j]
                for t in range(templates):
                    s = sums[t, :size]
                    w0 = weights[i, t]
                    w1 = weights[i + 1, t]
                    w2 = weights[i + 2, t]
                    w3 = weights[i + 3, t]
                    for j in range(size):
                        s[j] += w0 * b0[j] + w1 * b1[j] + w2 * b2[j] + w3 * b3[j]
            for i in range(whole, patterns):
                x0 = block[i, j0 : j0 + size]
                for t in range(templates):
                    s = sums[t, :size]
                    w0 = weights[i, t]
                    for j in range(size):
                        s[j] += w0 * (np.float32(x0[j]) - c[j])
        j = 0
        while j < size:
            row_index = (j0 + j) // width
            column = (j0 + j) - row_index * width
            run = min(width - column, size - j)
            y = ky + row_index
            x = kx + column
            for k in range(run):
                total[y, x + k] += np.uint64(a[j + k])
                squares[y, x + k] += np.uint64(low[j + k]) + (np.uint64(high[j + k]) << np.uint64(16))
            for t in range(templates):
                for k in range(run):
                    cross[t, y, x + k] += np.float64(sums[t, j + k]) + weight[t] * np.float64(c[j + k])
            j += run


@njit(nogil=True, cache=True, fastmath=_REORDER)
def shifted_sums(block: np.ndarray, shift: np.ndarray, total: np.ndarray, squares: np.ndarray) -> None:
    r"""Add :math:`\sum_i (d_{ij} - c_j)` and :math:`\sum_i (d_{ij} - c_j)^2` in float64.

    Squares of 32-bit counts would overflow 64-bit integers, and sums of squares of large counts lose the variance.
    With a shift that is the mean of any m patterns of the n, the variance has a relative error of at most n / m
    times the float64 epsilon, because a shift far from the mean implies a large variance.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (patterns, pixels)
    shift : ndarray of float64, shape (pixels,)
    total, squares : ndarray of float64, shape (pixels,)
        Accumulators, changed in place.
    """
    patterns, pixels = block.shape
    for j0 in range(0, pixels, TILE):
        width = min(TILE, pixels - j0)
        c = shift[j0 : j0 + width]
        a = total[j0 : j0 + width]
        b = squares[j0 : j0 + width]
        for i in range(patterns):
            row = block[i, j0 : j0 + width]
            for j in range(width):
                d = np.float64(row[j]) - c[j]
                a[j] += d
                b[j] += d * d


@njit(nogil=True, cache=True, fastmath=_REORDER)
def cross_sums(block: np.ndarray, weights: np.ndarray, shift: np.ndarray, cross: np.ndarray) -> None:
    r"""Add :math:`\sum_i w_{it} (d_{ij} - c_j)`, the product S^T D of shifted counts.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (patterns, pixels)
    weights : ndarray of float32 or float64, shape (patterns, templates)
        Its dtype is the precision of the products within a block. With a shift near each pixel's mean, float32
        keeps 4e-7 of a pixel's standard deviation.
    shift : ndarray of the same dtype, shape (pixels,)
    cross : ndarray of float64, shape (templates, pixels)
        Accumulator, changed in place.
    """
    patterns, pixels = block.shape
    templates = weights.shape[1]
    convert = weights.dtype.type
    rows = np.empty((4, TILE), weights.dtype)
    sums = np.empty((templates, TILE), weights.dtype)
    for j0 in range(0, pixels, TILE):
        width = min(TILE, pixels - j0)
        sums[:] = 0
        c = shift[j0 : j0 + width]
        b0 = rows[0, :width]
        b1 = rows[1, :width]
        b2 = rows[2, :width]
        b3 = rows[3, :width]
        whole = patterns - patterns % 4
        for i in range(0, whole, 4):
            x0 = block[i, j0 : j0 + width]
            x1 = block[i + 1, j0 : j0 + width]
            x2 = block[i + 2, j0 : j0 + width]
            x3 = block[i + 3, j0 : j0 + width]
            for j in range(width):
                b0[j] = convert(x0[j]) - c[j]
                b1[j] = convert(x1[j]) - c[j]
                b2[j] = convert(x2[j]) - c[j]
                b3[j] = convert(x3[j]) - c[j]
            for t in range(templates):
                s = sums[t, :width]
                w0 = weights[i, t]
                w1 = weights[i + 1, t]
                w2 = weights[i + 2, t]
                w3 = weights[i + 3, t]
                for j in range(width):
                    s[j] += w0 * b0[j] + w1 * b1[j] + w2 * b2[j] + w3 * b3[j]
        for i in range(whole, patterns):
            x0 = block[i, j0 : j0 + width]
            for j in range(width):
                b0[j] = convert(x0[j]) - c[j]
            for t in range(templates):
                s = sums[t, :width]
                w0 = weights[i, t]
                for j in range(width):
                    s[j] += w0 * b0[j]
        for t in range(templates):
            s = sums[t, :width]
            for j in range(width):
                cross[t, j0 + j] += s[j]


@njit(nogil=True, cache=True, fastmath=_REORDER)
def weighted_sums(block: np.ndarray, weights: np.ndarray, shift: np.ndarray, images: np.ndarray) -> None:
    r"""Add :math:`\sum_j (d_{ij} - c_j) m_{kj}`, the product D m^T of shifted counts.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (patterns, pixels)
    weights : ndarray of float32 or float64, shape (masks, pixels)
        Its dtype is the precision of the products and of the sums over one tile.
    shift : ndarray of the same dtype, shape (pixels,)
    images : ndarray of float64, shape (patterns, masks)
        Accumulator, changed in place.
    """
    patterns, pixels = block.shape
    masks = weights.shape[0]
    convert = weights.dtype.type
    rows = np.empty((4, TILE), weights.dtype)
    zero = convert(0)
    for j0 in range(0, pixels, TILE):
        width = min(TILE, pixels - j0)
        c = shift[j0 : j0 + width]
        b0 = rows[0, :width]
        b1 = rows[1, :width]
        b2 = rows[2, :width]
        b3 = rows[3, :width]
        whole = patterns - patterns % 4
        for i in range(0, whole, 4):
            x0 = block[i, j0 : j0 + width]
            x1 = block[i + 1, j0 : j0 + width]
            x2 = block[i + 2, j0 : j0 + width]
            x3 = block[i + 3, j0 : j0 + width]
            for j in range(width):
                b0[j] = convert(x0[j]) - c[j]
                b1[j] = convert(x1[j]) - c[j]
                b2[j] = convert(x2[j]) - c[j]
                b3[j] = convert(x3[j]) - c[j]
            for k in range(masks):
                m = weights[k, j0 : j0 + width]
                s0 = zero
                s1 = zero
                s2 = zero
                s3 = zero
                for j in range(width):
                    s0 += m[j] * b0[j]
                    s1 += m[j] * b1[j]
                    s2 += m[j] * b2[j]
                    s3 += m[j] * b3[j]
                images[i, k] += s0
                images[i + 1, k] += s1
                images[i + 2, k] += s2
                images[i + 3, k] += s3
        for i in range(whole, patterns):
            x0 = block[i, j0 : j0 + width]
            for j in range(width):
                b0[j] = convert(x0[j]) - c[j]
            for k in range(masks):
                m = weights[k, j0 : j0 + width]
                s0 = zero
                for j in range(width):
                    s0 += m[j] * b0[j]
                images[i, k] += s0


@njit(nogil=True, cache=True)
def pattern_sums(block: np.ndarray, totals: np.ndarray) -> None:
    """Add the sum over pixels of each pattern of integer counts to `totals` (patterns,), exactly in its dtype."""
    patterns, pixels = block.shape
    for i in range(patterns):
        s = totals[i]
        for j in range(pixels):
            s += totals.dtype.type(block[i, j])
        totals[i] = s


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
