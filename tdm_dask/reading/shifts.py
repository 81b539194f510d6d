"""Whole-pixel shifts of the patterns (descan), on plain arrays: what a pass reads, and hands on, because of them.

With shifts s (2, ny, nx) everything is as if the counts C were C'(y, x, ky, kx) = C(y, x, ky + s_ky, kx + s_kx). The
counts stay where they are: it is the place of a block on the detector that moves. Pixels of C' are called shifted,
those of C read.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .blocks import Block, Window, bounding_box


def distinct(shifts: np.ndarray, used: np.ndarray | None) -> np.ndarray:
    """The different shifts (n, 2) of the probe positions used, of shifts (2, ny, nx)."""
    pairs = shifts.reshape(2, -1) if used is None else shifts[:, used]
    ky, kx = pairs.astype(np.int64)
    # One sort of single numbers takes a fraction of that of pairs.
    codes = np.unique((ky << 32) + kx)
    low = codes.astype(np.int32)
    return np.stack([(codes - low) >> 32, low], 1)


def overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Along one axis: the shifted pixels that lie on the detector, and where they are read."""
    start = min(max(0, -shift), size)
    stop = max(start, min(size, size - shift))
    return slice(start, stop), slice(start + shift, stop + shift)


def _overlaps(shape: tuple[int, ...], shift: np.ndarray) -> tuple[Window, Window]:
    (ky, from_ky), (kx, from_kx) = (overlap(n, int(s)) for n, s in zip(shape, shift, strict=True))
    return (ky, kx), (from_ky, from_kx)


def seen_by_all(valid: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Shifted pixels (ky, kx) that are read from a valid pixel of the detector at every one of the shifts (n, 2)."""
    seen = np.ones(valid.shape, bool)
    for shift in shifts:
        here, there = _overlaps(valid.shape, shift)
        part = np.zeros(valid.shape, bool)
        part[here] = valid[there]
        seen &= part
    return seen


def reach(pixels: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Pixels (ky, kx) that are read for some shifted pixels, at any of the shifts (n, 2)."""
    read = np.zeros(pixels.shape, bool)
    for shift in shifts:
        here, there = _overlaps(pixels.shape, shift)
        read[there] |= pixels[here]
    return read


def moved(
    block: Block, used: np.ndarray | None, shifts: np.ndarray, window: Window
) -> Iterator[tuple[Block, np.ndarray | None]]:
    """A block as shifted blocks, one for each shift among its probes, with the probes of each that are used.

    Parameters
    ----------
    block : Block
    used : ndarray of bool, shape (ny, nx) of the block, optional
    shifts : ndarray of int, shape (2, ny, nx) of the block
    window : (slice, slice)
        Shifted pixels (ky, kx) that are wanted.
    """
    for shift in distinct(shifts, used):
        ky, kx = (
            slice(max(s.start - by, w.start), min(s.stop - by, w.stop))
            for s, by, w in zip((block.ky, block.kx), shift.tolist(), window, strict=True)
        )
        if ky.start >= ky.stop or kx.start >= kx.stop:
            continue
        probes = (shifts == shift[:, None, None]).all(0)
        if used is not None:
            probes &= used
        y, x = bounding_box(probes)
        inside = probes[y, x]
        read = (slice(s.start + by, s.stop + by) for s, by in zip((ky, kx), shift.tolist(), strict=True))
        part = block.of_probes(y, x).within(*read).at((0, 0, *(-shift).tolist()))
        yield part, None if inside.all() else inside


def shifted(counts: np.ndarray, ky: np.ndarray, kx: np.ndarray) -> np.ndarray:
    """Shifted counts (y, x, ky, kx) of shifts (y, x, 1, 1); 0 where they would be read beside the detector."""
    out = np.zeros_like(counts)
    shifts = np.stack([ky[..., 0, 0], kx[..., 0, 0]])
    for shift in distinct(shifts, None):
        here, there = _overlaps(counts.shape[2:], shift)
        probes = (shifts == shift[:, None, None]).all(0)
        out[(probes, *here)] = counts[(probes, *there)]
    return out
