"""Weighted sums of counts over the detector: the product D m^T, compiled by Numba.

A block of counts is a C-contiguous matrix of shape (patterns, pixels). Counts are converted and shifted in registers,
four patterns at a time, for five masks at a time, whose sums stay in registers as well.

There is no second way through BLAS for many masks: with 64 masks on counts in memory `weighted_counts` takes 1.05 to
1.2 times the time of sgemm on counts that were float32 before (AVX-512; docs/speed.md); converting them for sgemm would
cost more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from .moments import REORDER
from .vectors import NUMBER, Floats, floats, instructions, length_of, start_of

# Weights of all masks over one tile, and the longest tile: what four patterns are multiplied with stays in the
# second-level cache, and each pattern is read in runs long enough for the memory to run ahead.
TILE_WEIGHTS = 2**17

LONGEST_TILE = 16384

# Counts that deviate from their shift by no more than this, root mean square, are multiplied by masks in float32.
FLOAT32_DEVIATION = 255.0

# A shift up to this is exact in float32, and so are counts that deviate little from it.
LARGEST_SHIFT = 2**23


@njit(nogil=True, cache=True, fastmath=REORDER)
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


@njit(nogil=True, cache=True, fastmath=REORDER)
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


@njit(nogil=True, cache=True, fastmath=REORDER)
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
    fast_sums, sums = np.empty(21, fast_weights.dtype), np.empty(21, weights.dtype)
    size = max(1024, min(LONGEST_TILE, TILE_WEIGHTS // len(weights)))
    for first in range(0, pixels, size):
        stop = min(first + size, pixels)
        limit = 4 * (stop - first) * FLOAT32_DEVIATION**2
        for i in range(0, len(block), 4):
            if not _add_four_patterns(block, i, first, stop, fast_weights, fast_shift, limit, fast_sums, images):
                _add_four_patterns(block, i, first, stop, weights, shift, np.inf, sums, images)


def _multiplying(masks: int) -> Any:
    """Instructions for the weighted sums of four patterns under so many masks; all sums stay in registers.

    They fill in the weighted sums, mask by mask, and then the sum of squares of the shifted patterns.
    """

    @instructions
    def multiply(typing, x0, x1, x2, x3, shift, m0, m1, m2, m3, m4, out):
        def generate(context, builder, signature, arguments):
            arrays = list(zip(signature.args, arguments, strict=True))
            *rows, c, m0, m1, m2, m3, m4, sums = (start_of(context, builder, *array) for array in arrays)
            whole, one = floats(builder, shift.dtype), Floats(builder, shift.dtype, 1)
            found = {f.lanes: [f.variable() for _ in range(4 * masks + 1)] for f in (whole, one)}
            for j, f in whole.loops(length_of(context, builder, *arrays[4])):
                accumulators = found[f.lanes]
                shifts = f.load(c, j)
                d = [f.subtract(f.load_as(row, j, x0.dtype), shifts) for row in rows]
                for k, mask in enumerate((m0, m1, m2, m3, m4)[:masks]):
                    weights = f.load(mask, j)
                    for r in range(4):
                        f.add_to(accumulators[4 * k + r], f.multiply(weights, d[r]))
                f.add_to(accumulators[-1], *(f.multiply(v, v) for v in d))
            for n, (some, rest) in enumerate(zip(*found.values(), strict=True)):
                one.store(one.add(builder.load(rest), whole.sum(builder.load(some))), sums, NUMBER(n))
            return context.get_dummy_value()

        return types.void(x0, x1, x2, x3, shift, m0, m1, m2, m3, m4, out), generate

    return multiply


_under_one = _multiplying(1)
_under_five = _multiplying(5)


@njit(nogil=True, cache=True, fastmath=REORDER)
def _add_four_patterns(
    block: np.ndarray,
    i: int,
    first: int,
    stop: int,
    weights: np.ndarray,
    shift: np.ndarray,
    limit: float,
    sums: np.ndarray,
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
        together = min(5, masks - k)
        m0 = weights[k, first:stop]
        if together == 1:
            _under_one(x0, x1, x2, x3, c, m0, m0, m0, m0, m0, sums)
        else:
            m1 = weights[k + 1, first:stop]
            m2 = weights[min(k + 2, masks - 1), first:stop]
            m3 = weights[min(k + 3, masks - 1), first:stop]
            m4 = weights[min(k + 4, masks - 1), first:stop]
            _under_five(x0, x1, x2, x3, c, m0, m1, m2, m3, m4, sums)
        if k == 0 and sums[4 if together == 1 else 20] > limit:
            return False
        for r in range(patterns):
            for m in range(together):
                images[i + r, k + m] += sums[4 * m + r]
    return True
