"""Whole patterns for reductions that need all pixels of a pattern at once.

A store delivers a shard detector tile by detector tile. What a task has read of a pattern is kept, in the dtype of the
counts, until the last pixel of the region is there: that is one shard at most, and of each byte one copy. A source
that delivers whole patterns has nothing copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kernels.pixel_order import Tile
from ..reading.blocks import Block, Window
from ..reading.memory import read_only
from .reductions import rows_of


@dataclass
class Patterns:
    """Patterns of which some pixels have been read: their probe positions, and the tiles of the detector so far."""

    y: slice
    x: slice
    used: np.ndarray | None
    missing: int
    tiles: list[tuple[Tile, np.ndarray]] = field(default_factory=list)
    images: np.ndarray | None = None


class Gathered:
    """Blocks of the same probe positions, kept until they hold every pixel of a region (nky, nkx)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self._total = int(pixels.sum())
        self._open: dict[Any, Patterns] = {}
        self._inside: dict[Any, int] = {}
        self._spare: dict[Any, list[np.ndarray]] = {}

    def take(self, block: Block, used: np.ndarray | None) -> Patterns | None:
        """The patterns of a block with the block's tile as their last; None where it holds no pixel of the region.

        The tiles are valid until `give_back`, where none is missing; else until these patterns come again.
        """
        place = (block.ky.start, block.ky.stop, block.kx.start, block.kx.stop)
        if place not in self._inside:
            self._inside[place] = int(self._pixels[block.ky, block.kx].sum())
        if not self._inside[place]:
            return None
        key = _key((block.y, block.x), used)
        patterns = self._open.pop(key, None) or Patterns(block.y, block.x, used, self._total)
        patterns.missing -= self._inside[place]
        lent = block.matrix
        matrix = rows_of(lent, used)
        if patterns.missing:
            self._open[key] = patterns
            if np.may_share_memory(matrix, lent):  # a block is overwritten by the next
                matrix = self._copied(matrix)
        patterns.tiles.append((block.tile, matrix))
        return patterns

    def _copied(self, matrix: np.ndarray) -> np.ndarray:
        spare = self._spare.get((matrix.shape, matrix.dtype))
        # Fresh memory would cost as much as the copy into it.
        copy = spare.pop() if spare else np.empty(matrix.shape, matrix.dtype)
        copy[...] = matrix
        return read_only(copy)

    def give_back(self, patterns: Patterns) -> None:
        """The memory of these patterns' tiles may be used again."""
        for _, matrix in patterns.tiles[:-1]:
            memory = matrix.base
            if memory is not None and memory.shape == matrix.shape and memory.dtype == matrix.dtype:
                self._spare.setdefault((matrix.shape, matrix.dtype), []).append(memory)
        patterns.tiles.clear()

    def require_whole(self) -> None:
        """Raise unless all patterns came whole."""
        _require_none(self._open)


class Whole:
    """Patterns that are put together from tiles of the detector, with 0 at pixels that are not used."""

    def __init__(self, detector: tuple[int, int], pixels: np.ndarray | None) -> None:
        self._pixels = np.ones(detector, bool) if pixels is None else pixels
        self._total = int(self._pixels.sum())
        self._open: dict[Any, tuple[np.ndarray, int]] = {}
        self._spare: dict[Any, list[np.ndarray]] = {}

    def take(self, counts: np.ndarray, tile: Window, place: Window, used: np.ndarray | None) -> np.ndarray | None:
        """Whole patterns (pattern, nky, nkx) once all of their pixels have come; None before."""
        inside = self._pixels[tile]
        if not inside.any():
            return None
        if inside.size == self._total == self._pixels.size:
            return counts
        key = _key(place, used)
        if key not in self._open:
            self._open[key] = self._empty(len(counts), counts.dtype), self._total
        patterns, missing = self._open.pop(key)
        part = patterns[:, tile[0], tile[1]]
        part[...] = counts
        if not inside.all():
            part[:, ~inside] = 0
        missing -= int(inside.sum())
        if missing:
            self._open[key] = patterns, missing
            return None
        return patterns

    def _empty(self, n: int, dtype: np.dtype) -> np.ndarray:
        # Fresh memory would cost as much as the copy into it. Tiles without a pixel that is used are left out: 0 stays.
        spare = self._spare.get((n, dtype))
        return spare.pop() if spare else np.zeros((n, *self._pixels.shape), dtype)

    def give_back(self, patterns: np.ndarray) -> None:
        """The memory of these patterns may be used again."""
        if patterns.flags.writeable:
            self._spare.setdefault((len(patterns), patterns.dtype), []).append(patterns)

    def require_whole(self) -> None:
        """Raise unless all patterns came whole."""
        _require_none(self._open)


def _key(place: Window, used: np.ndarray | None) -> Any:
    """What tells the patterns of a block from others, whatever tile of the detector they come in."""
    return *((s.start, s.stop) for s in place), b"" if used is None else used.tobytes()


def _require_none(unfinished: Mapping[Any, Any]) -> None:
    """Raise where patterns are left: a source that leaves out pixels must not become a wrong number."""
    if unfinished:
        raise RuntimeError(f"{len(unfinished)} blocks of patterns ended before all of their pixels had been read.")


@dataclass(frozen=True)
class Region:
    """Detector pixels (nky, nkx) of a pass over whole patterns, and the templates or masks that go with them."""

    pixels: np.ndarray
    of: Any

    def places(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """The region's pixels in a tile of the detector: its columns, and places among the region's pixels."""
        inside = tile.columns(self.pixels[tile.ky, tile.kx])
        number = np.cumsum(self.pixels).reshape(self.pixels.shape)
        return np.flatnonzero(inside), tile.columns(number[tile.ky, tile.kx])[inside] - 1
