"""Thinned counts as a source: blocks of another source's counts, of which each electron is kept or not on the way."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np

from ..kernels.thinning import thin_counts, thin_scaled
from .blocks import Block, Derived, Shape, Window
from .lazy import as_dask, source_of
from .memory import Buffers, native, read_only


@dataclass(frozen=True)
class Thinning:
    """What is drawn: a binomial part of the electrons of each count, or what it leaves.

    Attributes
    ----------
    bits : int
        The probability that an electron is kept, times 2^64.
    seed : int
        Below 2^64.
    gain : float
        Counts per electron.
    rest : bool
        Whether this is what is left, the counts minus what is kept.
    origin : (y, x, ky, kx)
        Place of the first count, which its draw follows.
    """

    bits: int
    seed: int
    gain: float
    rest: bool
    origin: Shape

    def __call__(self, counts: np.ndarray, place: tuple[int, ...], out: np.ndarray | None = None) -> np.ndarray:
        """Thinned counts (y, x, ky, kx) of a part of a scan that begins at `place`, in a new array or in `out`."""
        counts = native(counts, Buffers())
        out = np.empty(counts.shape, counts.dtype) if out is None else out
        seen, filled = (a.view(np.uint8) if a.dtype.kind == "b" else a for a in (counts, out))
        y, x, ky, kx = (int(p + o) for p, o in zip(place, self.origin, strict=True))
        first = y, x, ky, kx
        key, bits = np.uint64(self.seed), np.uint64(self.bits)
        if counts.dtype.kind != "f" and self.gain == 1:
            thin_counts(read_only(seen), first, key, bits, self.rest, filled)
        else:
            whole = counts.dtype.kind != "f"
            thin_scaled(read_only(seen), first, key, bits, self.rest, self.gain, whole, filled)
        return out


@dataclass(frozen=True)
class Thinned(Derived):
    """Another source's counts, thinned block by block as they are read."""

    thinning: Thinning

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.source.shape

    def detector_window(self, pixels: np.ndarray | None) -> Window:
        return self.source.detector_window(pixels)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self.thinning(self.source.read(y0, y1, x0, x1), (y0, x0, 0, 0))

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        buffers = Buffers()
        with closing(self.source.blocks(window, used, pixels)) as blocks:
            for block in blocks:
                out = buffers.take("thinned", block.counts.shape, self.dtype)
                place = (block.y.start, block.x.start, block.ky.start, block.kx.start)
                yield Block(block.y, block.x, block.ky, block.kx, self.thinning(block.counts, place, out))


def thinned(array: Any, thinning: Thinning) -> Any:
    """An array of counts, thinned: at once where it is NumPy, inside the passes where it is an unchanged source.

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    thinning : Thinning
    """
    if isinstance(array, np.ndarray):
        return thinning(array, (0, 0, 0, 0))
    source = source_of(array)
    if source is not None:
        return as_dask(Thinned(source, thinning))
    dtype = array.dtype.newbyteorder("=")
    return da.map_blocks(_thinned_block, array, thinning, dtype=dtype, meta=np.empty((0,) * 4, dtype))


def _thinned_block(block: np.ndarray, thinning: Thinning, block_info: Any = None) -> np.ndarray:
    return thinning(block, tuple(start for start, _ in block_info[0]["array-location"]))
