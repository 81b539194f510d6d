"""Inner chunks of a store from their bytes to sums in one call, one after another, compiled by Numba.

Between two calls Python's lock is taken and given back: where several threads work, each waits for the others there.
A chunk is added while its counts are still in the processor's cache, so that the chunks of a run are not decoded first.

Both functions take

    data        bytes (n,), of several chunks
    places      ndarray of int64, shape (chunks, 2): where each begins and ends in them
    first       the chunk to begin with
    layout      bytes of counts in a chunk and in a block, bytes of a count, whether blocks are split
    lz4         as `kernels.blosc_blocks.read_blocks`
    memory      `scratch`, `parts` and `out` as there, for one chunk, and `out` once more, read-only

and answer with the number of the first chunk that has not been added, and what `read_blocks` said of it; if all were,
the most bytes that a count has needed.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .blosc_blocks import ALIKE, DAMAGED, read_blocks
from .moments import exact_moments
from .weighted_sums import weighted_counts

Layout = tuple[int, int, int, bool]
Memory = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@njit(nogil=True, cache=True)
def _decoded(data: np.ndarray, places: np.ndarray, n: int, layout: Layout, lz4: int, memory: Memory) -> int:
    """Decode chunk n; `DAMAGED` where the start of its header is not that of the first one, which has been checked."""
    first, start, stop = places[0, 0], places[n, 0], places[n, 1]
    if stop - start < ALIKE:
        return DAMAGED
    for k in range(ALIKE):
        if data[start + k] != data[first + k]:
            return DAMAGED
    nbytes, block, itemsize, split = layout
    scratch, parts, out, _ = memory
    return read_blocks(data[start:stop], nbytes, block, itemsize, split, lz4, scratch, parts, out)


@njit(nogil=True, cache=True)
def moments_of_chunks(
    data: np.ndarray,
    places: np.ndarray,
    first: int,
    layout: Layout,
    lz4: int,
    memory: Memory,
    weights: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
    cross: np.ndarray,
) -> tuple[int, int]:
    """Add chunks by `kernels.moments.exact_moments`, with weights (chunk, pattern, template) and sums (1, pixels)."""
    needed, counts = 1, memory[3]
    for n in range(first, len(places)):
        found = _decoded(data, places, n, layout, lz4, memory)
        if found < 0:
            return n, found
        exact_moments(counts, weights[n], total, squares, cross, 0, 0, counts.shape[1])
        needed = max(needed, found)
    return len(places), needed


@njit(nogil=True, cache=True)
def images_of_chunks(
    data: np.ndarray,
    places: np.ndarray,
    first: int,
    layout: Layout,
    lz4: int,
    memory: Memory,
    weights: np.ndarray,
    shift: np.ndarray,
    weights32: np.ndarray,
    shift32: np.ndarray,
    images: np.ndarray,
) -> tuple[int, int]:
    """Add weighted sums of chunks, by `kernels.weighted_sums.weighted_counts`, to images (chunk, pattern, mask)."""
    needed = 1
    for n in range(first, len(places)):
        found = _decoded(data, places, n, layout, lz4, memory)
        if found < 0:
            return n, found
        weighted_counts(memory[3], weights, shift, weights32, shift32, images[n])
        needed = max(needed, found)
    return len(places), needed
