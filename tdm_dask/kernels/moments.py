"""Numerics on plain NumPy arrays, compiled by Numba: sums over counts, and weighted sums of counts.

A block of counts is a C-contiguous matrix of shape (patterns, pixels): one row per probe position, one column per
detector pixel. Counts are converted and shifted in registers, four patterns at a time, for as many templates or masks
at a time as registers hold; a tile of pixels at a time, so that what it needs stays in cache. Results are added to what
the output arrays already hold. Compiled code is kept on disk, so that it is made once per machine.

There is no second way through BLAS for many masks: against sgemm on counts that were float32 before, `weighted_counts`
has 0.97 of the speed at 64 masks, 0.8 at 128 and 0.75 at 256 where a core has 32 vector registers (AVX-512), and about
0.7 with 16 (AVX2), for blocks in cache; converting the counts for sgemm would cost a part of the difference.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Pixels of one tile of the sums over patterns: its sums stay in the first-level cache.
TILE = 2048

# From the sums of one template to those of the next: not a power of two, for these would share the cache's places.
PITCH = TILE + 80

# Weights of all masks over one tile, and the longest tile: what four patterns are multiplied with stays in the
# second-level cache, and each pattern is read in runs long enough for the memory to run ahead.
TILE_WEIGHTS = 2**17
LONGEST_TILE = 16384

# Patterns that are summed in float32 before they are added to what is exact: fewer make more of such additions, more
# make float32 overflow its exact integers.
RUN = 512

# Sums may be taken in any order, but NaN and infinity must come through.
_REORDER = {"reassoc", "contract", "nsz", "arcp"}

# Sums of squares up to this are exact in float32, even where a last pattern was added up to four times: 2^24 / 8.
_EXACT_SQUARES = 2**21

# Counts that deviate from their shift by no more than this, root mean square, are multiplied by masks in float32.
FLOAT32_DEVIATION = 255.0

# A shift up to this is exact in float32, and so are counts that deviate little from it.
LARGEST_SHIFT = 2**23


@njit(nogil=True, cache=True, fastmath=_REORDER)
def _padded(weights: np.ndarray) -> np.ndarray:
    """Weights (patterns, templates) with zeros up to whole groups of four patterns and five templates."""
    patterns, templates = weights.shape
    padded = np.zeros((-(-patterns // 4) * 4, -(-templates // 5) * 5), weights.dtype)
    padded[:patterns, :templates] = weights
    return padded


@njit(nogil=True, cache=True, fastmath=_REORDER)
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
    total64, squares64 = np.empty(TILE), np.empty(TILE)
    no_weights, no_cross = np.zeros((0, 0)), np.zeros((0, PITCH))
    weight = np.zeros(templates)
    for first in range(0, len(block), RUN):
        run = block[first : first + RUN]
        padded = _padded(weights[first : first + RUN])
        sums = np.empty((padded.shape[1], PITCH), np.float32)
        for t in range(templates):
            weight[t] = padded[:, t].astype(np.float64).sum()
        for j0 in range(0, pixels, TILE):
            size = min(TILE, pixels - j0)
            c = shift[:size]
            _rough_mean(run, j0, c)
            total32[:] = 0
            squares32[:] = 0
            sums[:] = 0
            _add_tile(run, j0, padded, c, total32[:size], squares32[:size], sums)
            total64[:] = total32
            squares64[:] = squares32
            if squares32[:size].max() > _EXACT_SQUARES:
                total64[:] = 0
                squares64[:] = 0
                c64 = c.astype(np.float64)
                _add_tile(run, j0, no_weights, c64, total64[:size], squares64[:size], no_cross)
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


@njit(nogil=True, cache=True, fastmath=_REORDER)
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


@njit(nogil=True, cache=True, fastmath=_REORDER)
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
        tile = slice(j, min(j + TILE, block.shape[1]))
        sums[:] = 0
        _add_tile(block, j, padded, shift[tile], total[tile], squares[tile], sums)
        for t in range(len(cross)):
            cross[t, tile] += sums[t, : tile.stop - j]


@njit(nogil=True, cache=True, fastmath=_REORDER)
def weighted_sums(block: np.ndarray, weights: np.ndarray, shift: np.ndarray, images: np.ndarray) -> None:
    r"""Add :math:`\sum_j (d_{ij} - c_j) m_{kj}`, the product D m^T of shifted counts, in float64.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (patterns, pixels)
    weights : ndarray of float64, shape (masks, pixels)
    shift : ndarray of float64, shape (pixels,)
    images : ndarray of float64, shape (patterns, masks)
        Accumulator, changed in place.
    """
    _add_weighted(block, weights, shift, weights, shift, images)


@njit(nogil=True, cache=True, fastmath=_REORDER)
def weighted_counts(
    block: np.ndarray,
    weights: np.ndarray,
    shift: np.ndarray,
    weights32: np.ndarray,
    shift32: np.ndarray,
    images: np.ndarray,
) -> None:
    r"""Add :math:`\sum_j (d_{ij} - c_j) m_{kj}`, in float32 where counts deviate little from the shift.

    Four patterns over a tile of pixels go one way or the other, so that one hot pixel does not slow down a scan. In
    float32 the error is below 3e-7 of :math:`|d_i - c| |m_k|`, the standard deviation of an image of noise, and at most
    1e-5 of it where all counts and all weights are alike, so that every rounding goes the same way.

    Parameters
    ----------
    block : ndarray of unsigned integers, shape (patterns, pixels)
    weights, weights32 : ndarray of float64 and of float32, shape (masks, pixels)
        The same masks.
    shift, shift32 : ndarray of float64 and of float32, shape (pixels,)
        The same shift: integers, at most `LARGEST_SHIFT`.
    images : ndarray of float64, shape (patterns, masks)
        Accumulator, changed in place.
    """
    _add_weighted(block, weights32, shift32, weights, shift, images)


@njit(nogil=True, cache=True, fastmath=_REORDER)
def _add_weighted(
    block: np.ndarray,
    fast_weights: np.ndarray,
    fast_shift: np.ndarray,
    weights: np.ndarray,
    shift: np.ndarray,
    images: np.ndarray,
) -> None:
    """Add weighted sums tile by tile, four patterns at a time, with the second weights where the first do not serve."""
    pixels = block.shape[1]
    size = max(1024, min(LONGEST_TILE, TILE_WEIGHTS // len(weights)))
    for first in range(0, pixels, size):
        stop = min(first + size, pixels)
        limit = 4 * (stop - first) * FLOAT32_DEVIATION**2
        for i in range(0, len(block), 4):
            if not _add_four_patterns(block, i, first, stop, fast_weights, fast_shift, limit, images):
                _add_four_patterns(block, i, first, stop, weights, shift, np.inf, images)


@njit(nogil=True, cache=True, fastmath=_REORDER)
def _add_four_patterns(
    block: np.ndarray,
    i: int,
    first: int,
    stop: int,
    weights: np.ndarray,
    shift: np.ndarray,
    limit: float,
    images: np.ndarray,
) -> bool:
    """Add weighted sums over a tile of pixels of the patterns from i on, in the precision of the weights.

    A last group of fewer than four patterns or five masks takes its last one again, and leaves out what that adds.
    Where the shifted counts have a sum of squares beyond the limit, nothing is added, and the answer is False.
    """
    last = len(block) - 1
    x0 = block[i, first:stop]
    x1 = block[min(i + 1, last), first:stop]
    x2 = block[min(i + 2, last), first:stop]
    x3 = block[min(i + 3, last), first:stop]
    c = shift[first:stop]
    patterns, masks = min(4, len(block) - i), len(weights)
    for k in range(0, masks, 5):
        m0 = weights[k, first:stop]
        if k == masks - 1:
            square, one = _four_by_one(x0, x1, x2, x3, c, m0)
            if k == 0 and square > limit:
                return False
            for r in range(patterns):
                images[i + r, k] += one[r]
        else:
            m1 = weights[k + 1, first:stop]
            m2 = weights[min(k + 2, masks - 1), first:stop]
            m3 = weights[min(k + 3, masks - 1), first:stop]
            m4 = weights[min(k + 4, masks - 1), first:stop]
            square, five = _four_by_five(x0, x1, x2, x3, c, m0, m1, m2, m3, m4)
            if k == 0 and square > limit:
                return False
            for r in range(patterns):
                for m in range(min(5, masks - k)):
                    images[i + r, k + m] += five[4 * m + r]
    return True


@njit(nogil=True, cache=True, fastmath=_REORDER)
def _four_by_one(x0, x1, x2, x3, shift, m):
    """The sum of squares of four shifted patterns, and their weighted sums under one mask."""
    convert = m.dtype.type
    square = s0 = s1 = s2 = s3 = convert(0)
    for j in range(len(m)):
        d0 = convert(x0[j]) - shift[j]
        d1 = convert(x1[j]) - shift[j]
        d2 = convert(x2[j]) - shift[j]
        d3 = convert(x3[j]) - shift[j]
        square += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        s0 += m[j] * d0
        s1 += m[j] * d1
        s2 += m[j] * d2
        s3 += m[j] * d3
    return square, (s0, s1, s2, s3)


@njit(nogil=True, cache=True, fastmath=_REORDER)
def _four_by_five(x0, x1, x2, x3, shift, m0, m1, m2, m3, m4):
    """The sum of squares of four shifted patterns, and their weighted sums under five masks, mask by mask.

    All of these sums stay in registers.
    """
    convert = m0.dtype.type
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = convert(0)
    e0 = e1 = e2 = e3 = f0 = f1 = f2 = f3 = square = convert(0)
    for j in range(len(m0)):
        d0 = convert(x0[j]) - shift[j]
        d1 = convert(x1[j]) - shift[j]
        d2 = convert(x2[j]) - shift[j]
        d3 = convert(x3[j]) - shift[j]
        square += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        a0 += m0[j] * d0
        a1 += m0[j] * d1
        a2 += m0[j] * d2
        a3 += m0[j] * d3
        b0 += m1[j] * d0
        b1 += m1[j] * d1
        b2 += m1[j] * d2
        b3 += m1[j] * d3
        c0 += m2[j] * d0
        c1 += m2[j] * d1
        c2 += m2[j] * d2
        c3 += m2[j] * d3
        e0 += m3[j] * d0
        e1 += m3[j] * d1
        e2 += m3[j] * d2
        e3 += m3[j] * d3
        f0 += m4[j] * d0
        f1 += m4[j] * d1
        f2 += m4[j] * d2
        f3 += m4[j] * d3
    return square, (a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, e0, e1, e2, e3, f0, f1, f2, f3)


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
                        rest[k, :size] = block[i + k, j0:j1]
                    sums = _add_four_sums(rest[0, :size], rest[1, :size], rest[2, :size], rest[3, :size], v, t, s, m)
                for k in range(min(4, last - i)):
                    pattern_totals[i + k] += np.uint64(sums[k])
            squares64[:size] = s
            if np.int64(m.max()) ** 2 * (last - first) >= 2**32:
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


@njit(nogil=True, cache=True)
def gather(
    flat: np.ndarray, first: int, strides: tuple[int, int, int], shape: tuple[int, ...], swap: bool, out: np.ndarray
) -> None:
    """Copy counts (y, x, ky, kx) into tiles of the detector, in the order in which they lie in memory.

    Whole rows of the detector are read, though they go to several tiles: in pieces, the memory could not run ahead.

    Parameters
    ----------
    flat : ndarray of unsigned integers, 1D
        The count [a, b, c, d] lies at `first` + a * strides[0] + b * strides[1] + c * strides[2] + d.
    shape : (ny, nx, nky, nkx)
    swap : bool
        Whether these are 16-bit counts of the other byte order.
    out : ndarray, shape (tiles, at least ny, at least nx, at least nky, nkx of one tile)
        Tiles of the detector side by side along kx.
    """
    eight = np.uint16(8)
    ny, nx, nky, nkx = shape
    tile_width = out.shape[4]
    for a in range(ny):
        for b in range(nx):
            for k in range(nky):
                c = k if strides[2] >= 0 else nky - 1 - k  # from low to high addresses
                start = first + a * strides[0] + b * strides[1] + c * strides[2]
                for t in range(len(out)):
                    left = t * tile_width
                    width = min(tile_width, nkx - left)
                    source = flat[start + left : start + left + width]
                    row = out[t, a, b, c]
                    if swap:
                        for d in range(width):
                            row[d] = (source[d] >> eight) | (source[d] << eight)
                    else:
                        for d in range(width):
                            row[d] = source[d]


@njit(nogil=True, cache=True, fastmath=_REORDER)
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
