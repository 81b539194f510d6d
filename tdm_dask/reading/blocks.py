"""Where counts come from, block by block: a store's shards, a raw file, a NumPy array, any dask array.

A `Source` is a small picklable value that can read any part of one scan. It is what a lazy array of counts is made of,
and what a pass over the data reads from inside its tasks, so that blocks of counts are never values in a graph.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from dask.base import tokenize

from ..errors import SourceError
from ..kernels.pixel_order import Tile
from ..shards.mapped_files import mapped
from ..shards.sharded_array import ShardedArray, StoredChunk, StoredRun
from .file_state import FileState, check_state, file_state, opened
from .memory import Buffers, copy_native, native

Shape = tuple[int, int, int, int]
Window = tuple[slice, slice]

# One block of whole patterns on its way from a file to a kernel: so many that what is gathered over them is added to
# partial results seldom.
BLOCK_BYTES = 64 * 2**20


class Block:
    """Counts of a tile of the scan and of the detector; overwritten when the next block is taken.

    Parameters
    ----------
    y, x, ky, kx : slice
        Where they lie.
    counts : ndarray, shape (y, x, ky, kx)
        Those of a source are C-contiguous; a reduction may be given parts of them.
    """

    def __init__(self, y: slice, x: slice, ky: slice, kx: slice, counts: np.ndarray) -> None:
        self.y, self.x, self.ky, self.kx = y, x, ky, kx
        self._counts = counts

    @property
    def counts(self) -> np.ndarray:
        """The counts (y, x, ky, kx), in order and in their own dtype."""
        return self._counts

    @property
    def matrix(self) -> np.ndarray:
        """The counts as (patterns, pixels), in the order of pixels and in the dtype that are had soonest."""
        ny, nx = self.shape
        return self.counts.reshape(ny * nx, -1)

    @property
    def tile(self) -> Tile:
        """Which pixels the columns of the matrix are."""
        return Tile(self.ky.start, self.ky.stop, self.kx.start, self.kx.stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Probe positions along y and x."""
        return self.y.stop - self.y.start, self.x.stop - self.x.start

    def at(self, origin: tuple[int, int, int, int]) -> Block:
        """The same block where another array begins at (y, x, ky, kx)."""
        y, x, ky, kx = (_moved(s, o) for s, o in zip((self.y, self.x, self.ky, self.kx), origin, strict=True))
        return Block(y, x, ky, kx, self.counts)

    def of_probes(self, y: slice, x: slice) -> Block:
        """The part of the block at some of its probe positions, counted from its first."""
        return Block(_moved(y, self.y.start), _moved(x, self.x.start), self.ky, self.kx, self.counts[y, x])

    def within(self, ky: slice, kx: slice) -> Block:
        """The part of the block that lies in a window of the detector."""
        ky, kx = _overlap(self.ky, ky), _overlap(self.kx, kx)
        if (ky, kx) == (self.ky, self.kx):
            return self
        part = self.counts[..., _inside(ky, self.ky), _inside(kx, self.kx)]
        return Block(self.y, self.x, ky, kx, np.ascontiguousarray(part))


class StoredBlock(Block):
    """A block of a store, decoded when it is asked for: in order, or as a matrix in interleaved parts.

    Parameters
    ----------
    chunk : StoredChunk
        What it is a part of.
    y, x : slice
        Its probe positions.
    """

    def __init__(self, chunk: StoredChunk, y: slice, x: slice) -> None:
        self.y, self.x, self.ky, self.kx = y, x, chunk.ky, chunk.kx
        self._chunk = chunk
        # Its part of the chunk. One of these is made for every few thousand counts: nothing is called for it.
        first_y, first_x = chunk.y.start, chunk.x.start
        self._probes = slice(y.start - first_y, y.stop - first_y), slice(x.start - first_x, x.stop - first_x)
        self._tile = chunk.tile

    @property
    def counts(self) -> np.ndarray:
        return np.ascontiguousarray(self._chunk.counts[(*self._probes, *self._tile.inside)])

    @property
    def matrix(self) -> np.ndarray:
        rows = self._chunk.interleaved
        if rows is None:
            return super().matrix
        y, x = self._probes
        patterns = (y.stop - y.start) * (x.stop - x.start)
        if len(rows) != patterns:
            stored = rows.reshape(*self._chunk.patterns, -1)
            rows = np.ascontiguousarray(stored[self._probes]).reshape(patterns, -1)
        return rows

    @property
    def tile(self) -> Tile:
        return super().tile if self._chunk.interleaved is None else self._tile

    def at(self, origin: tuple[int, int, int, int]) -> Block:
        block = copy(self)
        block.y, block.x, block.ky, block.kx = (
            _moved(s, o) for s, o in zip((self.y, self.x, self.ky, self.kx), origin, strict=True)
        )
        block._tile = self._tile.covering(block.ky, block.kx, self._tile.offset)
        return block

    def of_probes(self, y: slice, x: slice) -> Block:
        block = copy(self)
        block.y, block.x = _moved(y, self.y.start), _moved(x, self.x.start)
        block._probes = _moved(y, self._probes[0].start), _moved(x, self._probes[1].start)
        return block

    def within(self, ky: slice, kx: slice) -> Block:
        block = copy(self)
        block.ky, block.kx = _overlap(self.ky, ky), _overlap(self.kx, kx)
        first_y, first_x = self._tile.offset
        offset = first_y + block.ky.start - self.ky.start, first_x + block.kx.start - self.kx.start
        block._tile = self._tile.covering(block.ky, block.kx, offset)
        return block


class Run(list[Block]):
    """Blocks that are read together, of one tile of the detector.

    Attributes
    ----------
    stored : StoredRun or None
        What they are, block by block, if they are whole inner chunks of a store that can be fed to compiled code.
    """

    stored: StoredRun | None = None


class Source(ABC):
    """Where the counts of one scan come from: a small picklable value, without open handles, that reads any part.

    `tdm_dask.frame_file` makes one of frames that lie at equal distances in a file. For others, derive a frozen
    dataclass from it that has a `path` or whatever `read` needs, `shape`, `dtype`, and `read`. Tasks on other threads,
    processes and machines call `read`, each for its part, and open the file there.

    Attributes
    ----------
    shape : (int, int, int, int)
        (ny, nx, nky, nkx): probe positions and detector pixels.
    dtype : dtype
        Of the counts in memory, in native byte order.
    counter_depth : int or None
        Bits of the detector's counters, where they are known to be fewer than those of the dtype may be: what reaches
        their maximum is reported as saturated.
    shard_bytes : int or None
        Bytes of a shard of a store that is written from this source, where a usual one would take too long to read.

    Notes
    -----
    `tile`, the probe positions (y, x) that are best read together, is one line by default; a source that decompresses
    more at once gives its own. `random_access` says whether single patterns are read as fast as lines.

    Examples
    --------
    Patterns that a function makes, as a file that compresses each of them would be read:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> @dataclass(frozen=True)
    ... class Ramp(tdm.Source):
    ...     shape: tuple[int, int, int, int]
    ...     dtype = np.dtype("uint16")
    ...     def read(self, y0, y1, x0, x1):
    ...         lines, columns = np.mgrid[y0:y1, x0:x1]
    ...         patterns = 10 * lines + columns
    ...         return np.tile(patterns[..., None, None], (1, 1, *self.shape[2:])).astype(self.dtype)
    >>> Ramp((4, 5, 2, 2)).read(1, 2, 3, 5).tolist()
    [[[[13, 13], [13, 13]], [[14, 14], [14, 14]]]]
    """

    shape: Shape
    dtype: np.dtype
    # Bits of the detector's counters, where they are known to be fewer than those of the dtype may be.
    counter_depth: int | None = None
    # Bytes of a shard of a store that is written from this source, where a usual one would take too long to read.
    shard_bytes: int | None = None

    @property
    def name(self) -> str:
        """The file or store, for people."""
        path = getattr(self, "path", None)
        return "The source" if path is None else str(path)

    @property
    def random_access(self) -> bool:
        """Whether small windows of the scan cost no more than large ones."""
        return False

    @abstractmethod
    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Whole patterns of a window of the scan, native-endian, shape (y1 - y0, x1 - x0, nky, nkx)."""

    @property
    def tile(self) -> tuple[int, int]:
        """Probe positions (y, x) that are best read together."""
        return 1, self.shape[1]

    @property
    def grain(self) -> tuple[int, int]:
        """Probe positions (y, x) that can be read without reading others."""
        return self.tile

    def detector_window(self, pixels: np.ndarray | None) -> Window:
        """The window (ky, kx) that holds every pixel which `blocks` delivers when `pixels` are needed."""
        if pixels is None:
            return slice(0, self.shape[2]), slice(0, self.shape[3])
        return bounding_box(pixels)

    @property
    def pattern_bytes(self) -> int:
        return self.shape[2] * self.shape[3] * self.dtype.itemsize

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        """Read a window of the scan as blocks, each part at most once.

        Parameters
        ----------
        window : (slice, slice)
            Probe positions (y, x).
        used : ndarray of bool, shape (ny, nx) of the window, optional
            Probe positions that are needed; blocks without any are not read.
        pixels : ndarray of bool, shape (nky, nkx), optional
            Detector pixels that are needed; blocks without any are not delivered, nor read where possible.
        """
        ky, kx = self.detector_window(pixels)
        whole = (ky, kx) == (slice(0, self.shape[2]), slice(0, self.shape[3]))
        (y0, y1), (x0, x1) = ((s.start, s.stop) for s in window)
        columns = max(1, min(x1 - x0, BLOCK_BYTES // self.pattern_bytes))
        lines = max(1, BLOCK_BYTES // (self.pattern_bytes * columns)) if columns == x1 - x0 else 1
        buffers = Buffers()
        for y in range(y0, y1, lines):
            for x in range(x0, x1, columns):
                ys, xs = slice(y, min(y + lines, y1)), slice(x, min(x + columns, x1))
                if used is not None and not used[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0].any():
                    continue
                counts = self.read_as_stored(ys, xs, buffers)
                yield Block(ys, xs, ky, kx, native(counts if whole else counts[..., ky, kx], buffers))

    def runs(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Run]:
        """The same blocks, as they are read together; each is valid until the next."""
        with closing(self.blocks(window, used, pixels)) as blocks:
            for block in blocks:
                yield Run([block])

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        """As `read`, but in any byte order and with any strides; may lie in a buffer until the next call."""
        return checked_read(self, y.start, y.stop, x.start, x.stop)

    def cropped(self, window: tuple[slice, slice, slice, slice]) -> Source:
        """A part of this scan, as a source."""
        return Crop(self, tuple(s.start for s in window), tuple(s.stop - s.start for s in window))

    def __dask_tokenize__(self) -> Any:
        # Stores hold these, so those of this package must outlive a move to another module.
        kind = type(self)
        own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
        where = (kind.__name__,) if own else (kind.__module__, kind.__qualname__)
        return *where, *(tokenize(v) for v in self.identity())

    def identity(self) -> tuple[Any, ...]:
        """What makes two sources the same data: their fields, and the file at their path as it is now."""
        values = vars(self) if not is_dataclass(self) else {f.name: getattr(self, f.name) for f in fields(self)}
        path = values.get("path")
        try:
            status = os.stat(path) if isinstance(path, (str, os.PathLike)) else None
        except OSError:
            status = None
        return *values.values(), *(() if status is None else (status.st_size, status.st_mtime_ns))


def checked_read(source: Source, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    """What a source reads of a window, or an error unless it is what was asked for: a source may be a user's own."""
    counts = source.read(y0, y1, x0, x1)
    expected = (y1 - y0, x1 - x0, *source.shape[2:])
    if np.shape(counts) != expected or getattr(counts, "dtype", None) != source.dtype:
        found = f"shape {np.shape(counts)} and dtype {getattr(counts, 'dtype', type(counts).__name__)}"
        raise SourceError(
            f"{type(source).__name__}.read gave counts of {found} for a window of {source.name}; expected {expected} "
            f"and {source.dtype}."
        )
    return counts


class Frames(Source):
    """Patterns that lie in a file as they are: any of them is read by itself."""

    @property
    def random_access(self) -> bool:
        return True

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        out = np.empty((y1 - y0, x1 - x0, *self.shape[2:]), self.dtype)
        buffers = Buffers()
        lines = max(1, BLOCK_BYTES // (self.pattern_bytes * max(1, x1 - x0)))
        for y in range(y0, y1, lines):
            part = slice(y, min(y + lines, y1))
            copy_native(self.read_as_stored(part, slice(x0, x1), buffers), out[y - y0 : part.stop - y0])
        return out

    @abstractmethod
    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        """Whole patterns of a window, in the file's byte order, with any strides; in a buffer until the next call."""


@dataclass(frozen=True)
class RawFrames(Frames):
    """Equally spaced frames in one file, read inside the task; each frame's first nky * nkx values are used.

    Parameters
    ----------
    path : str
    shape : tuple of 4 int
        (ny, nx, nky, nkx).
    file_dtype : str
        dtype in the file, such as ">u2".
    offset : int, default 0
        Bytes before the first frame's first pixel.
    frame_stride : int, optional
        Bytes from one frame's first pixel to the next one's; by default frames touch.
    line_stride : int, optional
        Bytes from one scan line's first pixel to the next one's; by default lines touch.
    """

    path: str
    shape: Shape
    file_dtype: str
    offset: int = 0
    frame_stride: int | None = None
    line_stride: int | None = None

    def __post_init__(self) -> None:
        # Now, and with the rest to workers; no field, for the file as it is at any time tells sources apart.
        _ = self._opened

    @cached_property
    def _opened(self) -> FileState | None:
        return file_state(self.path)

    def let_grow(self) -> None:
        """From now on the file may change: it is being written."""
        self.__dict__["_opened"] = None

    @cached_property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return np.dtype(self.file_dtype).newbyteorder("=")

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        lines, columns = y.stop - y.start, x.stop - x.start
        nky, nkx = self.shape[2:]
        item = self.dtype.itemsize
        frame = nky * nkx * item
        stride = self.frame_stride or frame
        line = self.line_stride or self.shape[1] * stride
        span = stride * (columns - 1) + frame
        start = self.offset + y.start * line + x.start * stride
        stop = start + line * (lines - 1) + span
        together = line == columns * stride
        pieces = [(start, stop)] if together else [(n, n + span) for n in range(start, stop, line)]
        with opened(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < stop:
                raise self._ended(size, stop)
            if self._opened is not None:
                check_state(self._opened, file.fileno())
            pitch = line
            data = mapped(file.fileno(), start, stop, pieces)
            if data is None:
                pitch = line if together else span
                data = buffers.take("file", (pitch * (lines - 1) + span,), np.uint8)
                for n, (begin, end) in enumerate(pieces):
                    self._fill(file.fileno(), data[n * pitch :][: end - begin], begin)
        return np.ndarray(
            (lines, columns, nky, nkx), self.file_dtype, data.data, strides=(pitch, stride, nkx * item, item)
        )

    def _fill(self, descriptor: int, buffer: np.ndarray, position: int) -> None:
        done = 0
        while done < len(buffer):
            n = os.preadv(descriptor, [buffer[done:].data], position + done)
            if n == 0:
                raise self._ended(position + done, position + len(buffer))
            done += n

    def _ended(self, size: int, needed: int) -> SourceError:
        return SourceError(
            f"{self.path} ended at byte {size} while byte {needed} was being read; the file became shorter since it "
            "was opened: copy it again."
        )


@dataclass(frozen=True, eq=False)
class InMemory(Source):
    """Counts in memory: a NumPy array, or one block of a dask array."""

    array: np.ndarray

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.array.dtype.newbyteorder("=")

    @property
    def random_access(self) -> bool:
        return True

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        part = self.array[y0:y1, x0:x1]
        return part if part.dtype.isnative else part.astype(self.dtype)

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        return self.array[y, x]


@dataclass(frozen=True)
class Shards(Source):
    """A sharded array of a store, decoded inner chunk by inner chunk."""

    array: ShardedArray
    token: str

    @property
    def name(self) -> str:
        return str(self.array.store)

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.array.dtype

    @property
    def tile(self) -> tuple[int, int]:
        return self.array.shard[0], self.array.shard[1]

    @property
    def grain(self) -> tuple[int, int]:
        return self.array.inner[0], self.array.inner[1]

    def detector_window(self, pixels: np.ndarray | None) -> Window:
        ky, kx = super().detector_window(pixels)
        cy, cx = self.array.inner[2:]
        return (
            slice(ky.start - ky.start % cy, min(-(-ky.stop // cy) * cy, self.shape[2])),
            slice(kx.start - kx.start % cx, min(-(-kx.stop // cx) * cx, self.shape[3])),
        )

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return assembled(self, y0, y1, x0, x1)

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        with closing(self.runs(window, used, pixels)) as runs:
            for run in runs:
                yield from run

    def runs(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Run]:
        array = self.array
        decoder = array.decoder()
        tiles = array.inner_grid[2:]
        # Of the whole detector, which the shards of other writers may divide.
        pixels_wanted = np.ones(self.shape[2:], bool) if pixels is None else pixels
        across = array.grid[2] * tiles[0], array.grid[3] * tiles[1]
        wanted_tiles = any_per_tile(pixels_wanted, array.inner[2:], across)
        (y0, y1), (x0, x1) = ((s.start, s.stop) for s in window)
        sy, sx = array.shard[:2]
        for iy in range(y0 // sy, -(-y1 // sy)):
            for ix in range(x0 // sx, -(-x1 // sx)):
                probes = np.zeros((sy, sx), bool)
                ys = slice(max(y0, iy * sy), min(y1, (iy + 1) * sy))
                xs = slice(max(x0, ix * sx), min(x1, (ix + 1) * sx))
                probes[ys.start - iy * sy : ys.stop - iy * sy, xs.start - ix * sx : xs.stop - ix * sx] = (
                    True if used is None else used[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0]
                )
                cut = (ys, xs) != array.window((iy, ix, 0, 0))[:2]
                wanted_probes = any_per_tile(probes, array.inner[:2], array.inner_grid[:2])[..., None, None]
                for iky in range(array.grid[2]):
                    for ikx in range(array.grid[3]):
                        ky, kx = (slice(i * n, (i + 1) * n) for i, n in zip((iky, ikx), tiles, strict=True))
                        wanted = wanted_probes & wanted_tiles[ky, kx]
                        if not wanted.any():
                            continue
                        with closing(array.read_runs((iy, ix, iky, ikx), wanted, decoder)) as runs:
                            for stored in runs:
                                if cut:
                                    yield Run(StoredBlock(c, _overlap(c.y, ys), _overlap(c.x, xs)) for c in stored)
                                    continue
                                run = Run(StoredBlock(chunk, chunk.y, chunk.x) for chunk in stored)
                                if stored.feeds and all(block.shape == array.inner[:2] for block in run):
                                    run.stored = stored
                                yield run

    def identity(self) -> tuple[Any, ...]:
        return self.token, self.shape, str(self.dtype)


@dataclass(frozen=True)
class ZarrArray(Source):
    """A zarr array whose chunks only zarr itself decodes."""

    array: Any  # zarr.Array
    token: str

    @property
    def name(self) -> str:
        return str(self.array.store)

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def tile(self) -> tuple[int, int]:
        y, x = (self.array.shards or self.array.chunks)[:2]
        return y, x

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.array[y0:y1, x0:x1]).astype(self.dtype, copy=False)

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        # A chunk must be decoded once, so blocks are tiles of the store, not lines.
        ky, kx = self.detector_window(pixels)
        ty, tx = self.tile
        (y0, y1), (x0, x1) = ((s.start, s.stop) for s in window)
        for y in range(y0 - y0 % ty, y1, ty):
            for x in range(x0 - x0 % tx, x1, tx):
                ys, xs = slice(max(y, y0), min(y + ty, y1)), slice(max(x, x0), min(x + tx, x1))
                if used is None or used[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0].any():
                    counts = np.asarray(self.array[ys, xs, ky, kx]).astype(self.dtype, copy=False)
                    yield Block(ys, xs, ky, kx, np.ascontiguousarray(counts))

    def identity(self) -> tuple[Any, ...]:
        return self.token, self.shape, str(self.dtype)


@dataclass(frozen=True)
class Derived(Source):
    """A source whose counts are another's, changed on the way: what it does not say of itself is as there."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.source.dtype

    @property
    def tile(self) -> tuple[int, int]:
        return self.source.tile

    @property
    def grain(self) -> tuple[int, int]:
        return self.source.grain

    @property
    def counter_depth(self) -> int | None:  # type: ignore[override]
        return self.source.counter_depth

    @property
    def random_access(self) -> bool:
        return self.source.random_access

    @property
    def shard_bytes(self) -> int | None:  # type: ignore[override]
        return self.source.shard_bytes


@dataclass(frozen=True)
class Crop(Derived):
    """A window of another source."""

    start: Shape
    shape: Shape

    @property
    def _detector(self) -> tuple[slice, slice]:
        ky, kx = (slice(a, a + n) for a, n in zip(self.start[2:], self.shape[2:], strict=True))
        return ky, kx

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return assembled(self, y0, y1, x0, x1)

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        counts = self.source.read_as_stored(_moved(y, self.start[0]), _moved(x, self.start[1]), buffers)
        return counts[(..., *self._detector)]

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        inside = self._source_pixels(pixels)
        oy, ox, oky, okx = self.start
        back = (-oy, -ox, -oky, -okx)
        outer = tuple(slice(s.start + o, s.stop + o) for s, o in zip(window, (oy, ox), strict=True))
        with closing(self.source.blocks(outer, used, inside)) as blocks:  # type: ignore[arg-type]
            for block in blocks:
                yield block.within(*self._detector).at(back)

    def _source_pixels(self, pixels: np.ndarray | None) -> np.ndarray:
        inside = np.zeros(self.source.shape[2:], bool)
        inside[self._detector] = True if pixels is None else pixels
        return inside

    def detector_window(self, pixels: np.ndarray | None) -> Window:
        window = self.source.detector_window(self._source_pixels(pixels))
        ky, kx = (
            slice(max(s.start, d.start) - d.start, min(s.stop, d.stop) - d.start)
            for s, d in zip(window, self._detector, strict=True)
        )
        return ky, kx

    def cropped(self, window: tuple[slice, slice, slice, slice]) -> Source:
        start = tuple(a + s.start for a, s in zip(self.start, window, strict=True))
        return replace(self, start=start, shape=tuple(s.stop - s.start for s in window))


def assembled(source: Source, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    """Whole patterns of a window, from its blocks: nothing is read of what a crop of the detector leaves out."""
    out = np.empty((y1 - y0, x1 - x0, *source.shape[2:]), source.dtype)
    with closing(source.blocks((slice(y0, y1), slice(x0, x1)), None, None)) as blocks:
        for block in blocks:
            y = slice(block.y.start - y0, block.y.stop - y0)
            out[y, block.x.start - x0 : block.x.stop - x0, block.ky, block.kx] = block.counts
    return out


def _moved(s: slice, by: int) -> slice:
    return slice(s.start + by, s.stop + by)


def _overlap(first: slice, second: slice) -> slice:
    return slice(max(first.start, second.start), min(first.stop, second.stop))


def _inside(part: slice, of: slice) -> slice:
    """A part of a slice, counted from where that begins."""
    return slice(part.start - of.start, part.stop - of.start)


def bounding_box(pixels: np.ndarray) -> tuple[slice, slice]:
    """Smallest (ky, kx) window that holds every True pixel."""
    ky, kx = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return slice(int(ky[0]), int(ky[-1]) + 1), slice(int(kx[0]), int(kx[-1]) + 1)


def any_per_tile(flags: np.ndarray, tile: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """For each tile of a 2D array of flags, whether any is set."""
    padded = np.zeros([t * g for t, g in zip(tile, grid, strict=True)], bool)
    padded[: flags.shape[0], : flags.shape[1]] = flags[: padded.shape[0], : padded.shape[1]]
    return np.asarray(padded.reshape(grid[0], tile[0], grid[1], tile[1]).any((1, 3)))
