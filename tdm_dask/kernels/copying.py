"""Counts copied in native byte order, into tiles of the detector side by side."""

from __future__ import annotations

import numpy as np
from numba import njit


def copy_native(counts: np.ndarray, out: np.ndarray) -> None:
    """Copy counts of any byte order; NumPy by itself would swap bytes one count at a time."""
    copy_tiles(counts, out[None])


def copy_tiles(counts: np.ndarray, out: np.ndarray) -> None:
    """Copy counts (y, x, ky, kx) of any byte order to tiles of the detector (tile, y, x, ky, kx) side by side along kx.

    What the tiles hold beyond the counts stays.
    """
    swap = counts.dtype == np.dtype(np.uint16).newbyteorder()
    if (swap or counts.dtype.isnative) and _rows_are_whole(counts) and out.flags.c_contiguous:
        item = counts.dtype.itemsize
        unsigned = np.dtype(f"u{item}")
        # The lowest address comes first where an axis runs backwards.
        lowest = counts[tuple(slice(None, None, -1) if s < 0 else slice(None) for s in counts.strides)]
        size = 1 + sum((n - 1) * abs(s) for n, s in zip(counts.shape, counts.strides, strict=True)) // item
        flat = np.lib.stride_tricks.as_strided(lowest.view(unsigned), (size,), (item,), writeable=False)
        first = sum((n - 1) * -s for n, s in zip(counts.shape, counts.strides, strict=True) if s < 0) // item
        y, x, ky, _ = (s // item for s in counts.strides)
        gather(flat, first, (y, x, ky), counts.shape, swap, out.view(unsigned))
        return
    width = out.shape[-1]
    for tile, left in zip(out, range(0, counts.shape[-1], width), strict=True):
        part = counts[..., left : left + width]
        inside = tile[tuple(slice(n) for n in part.shape)]
        inside[...] = part.view(out.dtype)
        if not counts.dtype.isnative:
            inside.byteswap(inplace=True)


def _rows_are_whole(counts: np.ndarray) -> bool:
    """Whether counts (y, x, ky, kx) are aligned and those of a detector row lie side by side."""
    item = counts.dtype.itemsize
    together = counts.strides[-1] == item and not any(s % item for s in counts.strides)
    return together and counts.flags.aligned and counts.size > 0


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
