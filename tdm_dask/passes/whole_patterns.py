"""Whole patterns for reductions that need all pixels of a pattern at once.

A store delivers a shard detector tile by detector tile. What a task has read of a pattern is kept, in the dtype of the
counts, until the last pixel of the region is there: that is one shard at most, and of each byte one copy. A source
that delivers whole patterns has nothing copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..reading.blocks import Block
from ..reading.memory import read_only
from .reductions import used_rows


@dataclass
class Patterns:
    """Patterns of which some pixels have been read: their probe positions, and the tiles of the detector so far."""

    y: slice
    x: slice
    used: np.ndarray | None
    missing: int
    tiles: list[tuple[slice, slice, np.ndarray]] = field(default_factory=list)
    images: np.ndarray | None = None


class Gathered:
    """Blocks of the same probe positions, kept until they hold every pixel of a region (nky, nkx)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self._total = int(pixels.sum())
        self._open: dict[Any, Patterns] = {}
        self._inside: dict[Any, int] = {}
        self._spare: dict[tuple[int, ...], list[np.ndarray]] = {}

    def take(self, block: Block, used: np.ndarray | None) -> Patterns | None:
        """The patterns of a block with the block's tile as their last; None where it holds no pixel of the region.

        The tiles are valid until `give_back`, where none is missing; else until these patterns come again.
        """
        place = (block.ky.start, block.ky.stop, block.kx.start, block.kx.stop)
        if place not in self._inside:
            self._inside[place] = int(self._pixels[block.ky, block.kx].sum())
        if not self._inside[place]:
            return None
        flags = b"" if used is None else used.tobytes()
        key = (block.y.start, block.y.stop, block.x.start, block.x.stop, flags)
        patterns = self._open.pop(key, None) or Patterns(block.y, block.x, used, self._total)
        patterns.missing -= self._inside[place]
        matrix = used_rows(block, used)
        if patterns.missing:
            self._open[key] = patterns
            if np.may_share_memory(matrix, block.counts):  # a block is overwritten by the next
                matrix = self._copied(matrix)
        patterns.tiles.append((block.ky, block.kx, matrix))
        return patterns

    def _copied(self, matrix: np.ndarray) -> np.ndarray:
        spare = self._spare.get(matrix.shape)
        # Fresh memory would cost as much as the copy into it.
        copy = spare.pop() if spare else np.empty(matrix.shape, matrix.dtype)
        copy[...] = matrix
        return read_only(copy)

    def give_back(self, patterns: Patterns) -> None:
        """The memory of these patterns' tiles may be used again."""
        for *_, matrix in patterns.tiles[:-1]:
            memory = matrix.base
            if memory is not None and memory.shape == matrix.shape and memory.dtype == matrix.dtype:
                self._spare.setdefault(matrix.shape, []).append(memory)
        patterns.tiles.clear()

    def require_whole(self) -> None:
        """Raise unless all patterns came whole: a source that leaves out pixels must not become a wrong number."""
        if self._open:
            raise RuntimeError(f"{len(self._open)} blocks of patterns ended before all of their pixels had been read.")


@dataclass(frozen=True)
class Region:
    """Detector pixels (nky, nkx) of a pass over whole patterns, and the templates or masks that go with them."""

    pixels: np.ndarray
    of: Any

    def places(self, ky: slice, kx: slice) -> tuple[np.ndarray, np.ndarray]:
        """The region's pixels in a tile of the detector: columns of the tile, and places among the region's pixels."""
        inside = self.pixels[ky, kx]
        row, column = np.nonzero(inside)
        before = np.cumsum(self.pixels).reshape(self.pixels.shape)[ky, kx][inside] - 1
        return row * inside.shape[1] + column, before
