"""Sums over patterns of counts, of their squares and of their products with templates, compiled by Numba.

A block of counts is a C-contiguous matrix of shape (patterns, pixels): one row per probe position, one column per
detector pixel. Counts are converted and shifted in registers, four patterns at a time, for as many templates at a time
as registers hold; a tile of pixels at a time, so that what it needs stays in cache. Results are added to what the
output arrays already hold. Compiled code is kept on disk, so that it is made once per machine. Arrays are copied and
searched in loops of ours: a kernel that assigns an array to a slice, or asks for its maximum, takes seconds longer to
compile. The products themselves are written in instructions on vectors (`kernels.vectors`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from .vectors import NUMBER, VECTOR, Floats, floats, instructions, length_of, start_of

# Pixels of one tile of the sums over patterns: its sums stay in the first-level cache.
TILE = 1024

# From the sums of one template to those of the next: not a power of two, for these would share the cache's places.
PITCH = TILE + 80

# Patterns that are summed in float32 before they are added to what is exact: fewer make more of such additions, more
# make float32 overflow its exact integers.
RUN = 512

# Sums may be taken in any order, but NaN and infinity must come through.
REORDER = {"reassoc", "contract", "nsz", "arcp"}

# Sums of squares up to this are exact in float32, even where a last pattern was added up to four times: 2^24 / 8.
_EXACT_SQUARES = 2**21


# Templates that counts are multiplied with at a time: the sums of as many stay in cache, their weights in registers.
TOGETHER = 5


@njit(nogil=True, cache=True, fastmath=REORDER)
def _grouped(weights: np.ndarray) -> np.ndarray:
    """Weights (patterns, templates), of four patterns and `TOGETHER` templates each (or one) side by side.

    Shape (groups of patterns, groups of templates, 4 templates), with zeros where there are fewer.
    """
    patterns, templates = weights.shape
    together = 1 if templates == 1 else TOGETHER
    grouped = np.zeros((-(-patterns // 4), -(-templates // together), 4 * together), weights.dtype)
    for i in range(patterns):
        for t in range(templates):
            grouped[i // 4, t // together, 4 * (t % together) + i % 4] = weights[i, t]
    return grouped


def _adding(templates: int, with_sums: bool) -> Any:
    """Instructions that add four patterns to their products with so many templates, and to plain sums or not."""

    @instructions
    def add(typing, x0, x1, x2, x3, shift, total, squares, weights, cross):
        def generate(context, builder, signature, arguments):
            arrays = list(zip(signature.args, arguments, strict=True))
            *rows, c, sums, sums_of_squares, w, products = (start_of(context, builder, *array) for array in arrays)
            whole = floats(builder, shift.dtype)
            one = Floats(builder, shift.dtype, 1)
            numbers = [one.load(w, NUMBER(n)) for n in range(4 * templates)]
            outs = [one.place(products, NUMBER(k * PITCH)) for k in range(templates)]
            for j, f in whole.loops(length_of(context, builder, *arrays[4])):
                shifts = f.load(c, j)
                d = [f.subtract(f.load_as(row, j, x0.dtype), shifts) for row in rows]
                if with_sums:
                    f.store(f.add(f.load(sums, j), f.add(d[0], d[1]), f.add(d[2], d[3])), sums, j)
                    of_squares = f.add(f.load(sums_of_squares, j), *(f.multiply(v, v) for v in d))
                    f.store(of_squares, sums_of_squares, j)
                for k, out in enumerate(outs):
                    weighted = (f.multiply(f.everywhere(numbers[4 * k + r]), d[r]) for r in range(4))
                    f.store(f.add(f.load(out, j), *weighted), out, j)
            return context.get_dummy_value()

        return types.void(x0, x1, x2, x3, shift, total, squares, weights, cross), generate

    return add


_add_sums = _adding(0, True)
_add_sums_and_one = _adding(1, True)
_add_sums_and_five = _adding(TOGETHER, True)
_add_five = _adding(TOGETHER, False)


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
    """Add sums, squares and products with `_grouped` weights of the pixels from `first` on, in the shift's precision.

    The tile is cut row by row: a compiler takes rows for contiguous, but not those of a cut matrix.
    """
    patterns, size = len(block), len(shift)
    stop, last = first + size, patterns - 1
    for i in range(0, patterns, 4):
        # A last group of fewer than four takes the last pattern again, with weight 0; the sums are corrected below.
        x0 = block[i, first:stop]
        x1 = block[min(i + 1, last), first:stop]
        x2 = block[min(i + 2, last), first:stop]
        x3 = block[min(i + 3, last), first:stop]
        groups = weights[i // 4]
        if len(groups) == 0:
            _add_sums(x0, x1, x2, x3, shift, total, squares, shift, cross)
        elif groups.shape[1] == 4:
            _add_sums_and_one(x0, x1, x2, x3, shift, total, squares, groups[0], cross)
        else:
            _add_sums_and_five(x0, x1, x2, x3, shift, total, squares, groups[0], cross)
            for g in range(1, len(groups)):
                _add_five(x0, x1, x2, x3, shift, total, squares, groups[g], cross[TOGETHER * g :])
    again = shift.dtype.type(-patterns % 4)
    if again:
        x0 = block[last, first:stop]
        for j in range(size):
            d0 = shift.dtype.type(x0[j]) - shift[j]
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
    shift64, total64, squares64 = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    no_weights, no_cross = _grouped(np.zeros((len(block), 0))), np.zeros((0, PITCH))
    weight = np.zeros(templates)
    for first in range(0, len(block), RUN):
        run = block[first : first + RUN]
        grouped = _grouped(weights[first : first + RUN])
        memory = _aligned(3 + grouped.shape[1] * grouped.shape[2] // 4)
        weight[:] = 0
        for i in range(len(run)):
            for t in range(templates):
                weight[t] += np.float64(weights[first + i, t])
        for j0 in range(0, pixels, TILE):
            size = min(TILE, pixels - j0)
            c, total32, squares32, sums = memory[0, :size], memory[1, :size], memory[2, :size], memory[3:]
            memory[1:] = 0
            _rough_mean(run, j0, c)
            _add_tile(run, j0, grouped, c, total32, squares32, sums)
            largest = np.float32(0)
            for k in range(size):
                largest = max(largest, squares32[k])
            if largest > _EXACT_SQUARES:
                for k in range(size):
                    shift64[k] = c[k]
                total64[:] = 0
                squares64[:] = 0
                _add_tile(run, j0, no_weights, shift64[:size], total64[:size], squares64[:size], no_cross)
            j = 0
            while j < size:
                y, x = ky + (j0 + j) // width, kx + (j0 + j) % width
                stop = min(j + width - (j0 + j) % width, size)
                end = x + stop - j
                of_row = total[y, x:end], squares[y, x:end]
                if largest > _EXACT_SQUARES:
                    _add_exactly(len(run), c[j:stop], total64[j:stop], squares64[j:stop], *of_row)
                else:
                    _add_exactly(len(run), c[j:stop], total32[j:stop], squares32[j:stop], *of_row)
                for t in range(templates):
                    _add_products(weight[t], c[j:stop], sums[t, j:stop], cross[t, y, x:end])
                j = stop


@njit(nogil=True, cache=True)
def _aligned(rows: int) -> np.ndarray:
    """Rows of `PITCH` floats that begin where whole vectors do: others cost a fifth of the time."""
    spare = VECTOR // 4
    memory = np.empty(rows * PITCH + spare, np.float32)
    start = (-np.intp(memory.ctypes.data) // 4) % spare
    return memory[start : start + rows * PITCH].reshape(rows, PITCH)


@njit(nogil=True, cache=True)
def _add_exactly(
    n: int, shift: np.ndarray, of_shifted: np.ndarray, of_squares: np.ndarray, total: np.ndarray, squares: np.ndarray
) -> None:
    """Add the sums of n counts, and of their squares, that shifted sums stand for; all are integers."""
    for k in range(len(shift)):
        c, shifted = np.int64(shift[k]), np.int64(of_shifted[k])
        total[k] += np.uint64(shifted + n * c)
        squares[k] += np.uint64(np.int64(of_squares[k]) + c * (2 * shifted + n * c))


@njit(nogil=True, cache=True, fastmath=REORDER)
def _add_products(weight: float, shift: np.ndarray, of_shifted: np.ndarray, cross: np.ndarray) -> None:
    """Add the products with a template that those of shifted counts stand for."""
    for k in range(len(shift)):
        cross[k] += np.float64(of_shifted[k]) + weight * np.float64(shift[k])


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
    grouped = _grouped(weights)
    sums = np.empty((grouped.shape[1] * grouped.shape[2] // 4, PITCH))
    for j in range(0, block.shape[1], TILE):
        stop = min(j + TILE, block.shape[1])
        sums[:] = 0
        _add_tile(block, j, grouped, shift[j:stop], total[j:stop], squares[j:stop], sums)
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
