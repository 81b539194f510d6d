"""Sources whose counts are not plain equally spaced frames: flipped rows, scattered frames, array-like files."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np

from ..errors import InputError, SourceError
from ..reading.blocks import BLOCK_BYTES, Block, Derived, Frames, RawFrames, Source, Window, bounding_box
from ..reading.file_state import FileState, check_state
from ..reading.memory import Buffers
from .vendor import native_dtype


@dataclass(frozen=True)
class FlippedRows(Frames):
    """The patterns of other frames with the detector rows in reverse order.

    Merlin writes a frame from its bottom row upwards; every reader that shows it upright reverses the rows.

    Parameters
    ----------
    frames : Frames
    counter_depth : int, optional
        Bits of the detector's counters.
    """

    frames: Frames
    counter_depth: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        return self.frames.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.frames.dtype

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        return self.frames.read_as_stored(y, x, buffers)[:, :, ::-1]


@dataclass(frozen=True)
class ListedFrames(RawFrames):
    """Frames of one file that start at listed bytes, in the order of the scan.

    Parameters
    ----------
    starts : ndarray of int64, shape (ny * nx,)
        Byte of each frame's first pixel.
    """

    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        shape = (y.stop - y.start, x.stop - x.start, *self.shape[2:])
        data = buffers.take("file", (shape[0] * shape[1], math.prod(shape[2:]) * self.dtype.itemsize), np.uint8)
        with open(self.path, "rb", buffering=0) as file:
            for frame, start in zip(data, self.starts.reshape(self.shape[:2])[y, x].flat, strict=True):
                self._fill(file.fileno(), frame, int(start))
        return data.view(self.file_dtype).reshape(shape)


@dataclass(frozen=True)
class FrameOrder:
    """Where the patterns of a scan lie among the frames of a stack.

    Parameters
    ----------
    frames : int
        Frames in the stack.
    first : int
        The frame of the first probe position.
    line : int
        Frames from the first of one line to the first of the next: nx and the flyback.
    """

    frames: int
    first: int
    line: int


@dataclass(frozen=True)
class JoinedFrames(Frames):
    """The frames of several files, one file after the other.

    Parameters
    ----------
    parts : tuple of RawFrames
        The frames of each file as one line, shape (1, n, nky, nkx).
    shape : (ny, nx, nky, nkx)
        Of the scan that they fill together.
    states : tuple of FileState
        The files as they were when they were opened.
    order : FrameOrder
        Which frame belongs to which probe position.
    """

    parts: tuple[RawFrames, ...]
    shape: tuple[int, int, int, int]
    states: tuple[FileState, ...]
    order: FrameOrder

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.parts[0].dtype

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        ny, nx = y.stop - y.start, x.stop - x.start
        out = buffers.take("joined", (ny, nx, *self.shape[2:]), self.parts[0].file_dtype)
        edges = [0, *np.cumsum([part.shape[1] for part in self.parts]).tolist()]
        for part, state, (first, last) in zip(self.parts, self.states, pairwise(edges), strict=True):
            for line, row in zip(out, range(y.start, y.stop), strict=True):
                start = self.order.first + row * self.order.line + x.start
                low, high = max(start, first), min(start + nx, last)
                if low < high:
                    check_state(state)
                    frames = part.read_as_stored(slice(0, 1), slice(low - first, high - first), buffers)
                    line[low - start : high - start] = frames[0]
        return out


@dataclass(frozen=True)
class DetectorFirst(Source):
    """Counts of an uncompressed array (ky, kx, y, x), of which each pixel's part of a window is read by itself.

    Parameters
    ----------
    path : str
    shape : (ny, nx, nky, nkx)
    file_dtype : str
    offset : int
        Byte of the first count.
    """

    path: str
    shape: tuple[int, int, int, int]
    file_dtype: str
    offset: int

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return native_dtype(self.file_dtype)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        ny, nx, nky, nkx = self.shape
        out = np.empty((y1 - y0, x1 - x0, nky, nkx), self.dtype)
        # One read brings a pixel's lines, whole but for the ends of the first and the last one; the columns that are
        # not wanted are dropped row by row of the detector, before they add up.
        first, stop = y0 * nx + x0, (y1 - 1) * nx + x1
        run = np.zeros((y1 - y0) * nx, self.file_dtype)
        wanted = run[x0 : x0 + stop - first]
        row = np.empty((nkx, y1 - y0, x1 - x0), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for ky in range(nky):
                for kx in range(nkx):
                    place = self.offset + ((ky * nkx + kx) * ny * nx + first) * run.itemsize
                    if os.preadv(file.fileno(), [wanted.data], place) != wanted.nbytes:
                        raise SourceError(f"{self.path} became shorter since it was opened; copy it again.")
                    row[kx] = run.reshape(y1 - y0, nx)[:, x0:x1]
                out[:, :, ky] = row.transpose(1, 2, 0)
        return out


@dataclass(frozen=True)
class Exchanged(Derived):
    """Another source with both pairs of axes exchanged: its (x, y, kx, ky) are read as (y, x, ky, kx)."""

    @property
    def shape(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        nx, ny, nkx, nky = self.source.shape
        return ny, nx, nky, nkx

    @property
    def tile(self) -> tuple[int, int]:
        x, y = self.source.tile
        return y, x

    @property
    def grain(self) -> tuple[int, int]:
        x, y = self.source.grain
        return y, x

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.ascontiguousarray(self.read_as_stored(slice(y0, y1), slice(x0, x1), Buffers()))

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        return self.source.read_as_stored(x, y, buffers).transpose(1, 0, 3, 2)

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        turned = (None if flags is None else flags.T for flags in (used, pixels))
        with closing(self.source.blocks((window[1], window[0]), *turned)) as blocks:
            for block in blocks:
                counts = np.ascontiguousarray(block.counts.transpose(1, 0, 3, 2))
                yield Block(block.x, block.y, block.kx, block.ky, counts)


@dataclass(frozen=True)
class PartialScan(Derived):
    """A scan of which only the first probe positions have a pattern in the file; the others read as zeros.

    Parameters
    ----------
    source : Source
        Of the whole scan's shape; what it has no frame for is never asked of it.
    present : int
        Probe positions, in the order of the scan, that have a pattern.
    """

    present: int

    @property
    def shape(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        return self.source.shape

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        out = np.zeros((y1 - y0, x1 - x0, *self.shape[2:]), self.dtype)
        lines, rest = divmod(self.present, self.shape[1])
        if y0 < min(lines, y1):
            out[: min(lines, y1) - y0] = self.source.read(y0, min(lines, y1), x0, x1)
        if y0 <= lines < y1 and x0 < min(rest, x1):
            out[lines - y0, : min(rest, x1) - x0] = self.source.read(lines, lines + 1, x0, min(rest, x1))[0]
        return out

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        if y.stop <= self.present // self.shape[1]:
            return self.source.read_as_stored(y, x, buffers)
        return self.read(y.start, y.stop, x.start, x.stop)

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        y, x = window
        whole = min(max(self.present // self.shape[1], y.start), y.stop)
        above, below = (None, None) if used is None else (used[: whole - y.start], used[whole - y.start :])
        if y.start < whole:
            yield from self.source.blocks((slice(y.start, whole), x), above, pixels)
        if whole < y.stop:
            yield from super().blocks((slice(whole, y.stop), x), below, pixels)


@dataclass(frozen=True)
class StackSource(Source):
    """Counts in an array-like that is opened anew for each block.

    Parameters
    ----------
    path : str
        The file.
    shape : (ny, nx, nky, nkx)
    file_dtype : str
        The dtype on disk.
    leading : tuple of int, default ()
        Indices that pick this scan out of a stack of scans.
    flat : bool, default False
        Whether the probe positions are one axis in the file.
    chunk : (int, int), default (1, 1)
        Probe positions (y, x) that the file compresses together, which are best read together.
    order : tuple of int, default ()
        Where (y, x, ky, kx), or (frame, ky, kx) if flat, are among the file's dims; as they stand, by default.
    states : tuple of FileState, default ()
        Other files that hold these counts, as they were when the scan was opened.
    frames : FrameOrder, optional
        If flat, which frame belongs to which probe position; as many as there are of these, by default.
    """

    path: str
    shape: tuple[int, int, int, int]
    file_dtype: str
    leading: tuple[int, ...] = ()
    flat: bool = False
    chunk: tuple[int, int] = (1, 1)
    order: tuple[int, ...] = ()
    states: tuple[FileState, ...] = ()
    frames: FrameOrder | None = None

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return native_dtype(self.file_dtype)

    @property
    def _frames(self) -> FrameOrder:
        return self.frames or FrameOrder(self.shape[0] * self.shape[1], 0, self.shape[1])

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of the scan as it lies in the file, without the leading dims."""
        shape = (self._frames.frames, *self.shape[2:]) if self.flat else self.shape
        return tuple(shape[self.order.index(i)] for i in range(len(shape))) if self.order else shape

    @property
    def tile(self) -> tuple[int, int]:
        return min(self.chunk[0], self.shape[0]), min(self.chunk[1], self.shape[1])

    @abstractmethod
    def opened(self) -> AbstractContextManager[Any]:
        """The array-like as it lies in the file."""

    def check(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise unless the array, without its leading dims, is what it was when the scan was opened."""
        if shape != self.file_shape or dtype != self.file_dtype:
            raise SourceError(
                f"{self.path} has changed since it was opened: it holds {shape} {dtype}, it held {self.file_shape} "
                f"{np.dtype(self.file_dtype)}; open it again."
            )

    @staticmethod
    def load(selection: Any) -> np.ndarray:
        """A NumPy array from what slicing the array-like gave."""
        return np.asarray(selection)

    def _select(self, counts: Any, *scan: slice) -> np.ndarray:
        """Patterns of a window as (y, x, ky, kx), or of a run of frames as (frame, ky, kx)."""
        index = (*scan, slice(None), slice(None))
        if not self.order:
            return self.load(counts[(*self.leading, *index)])
        if self.chunk == (1, 1) and self.order[-1] < self.order[0]:
            return self._one_by_one(counts, *scan)
        in_file = tuple(index[self.order.index(i)] for i in range(len(index)))
        return self.load(counts[(*self.leading, *in_file)]).transpose(self.order)

    def _one_by_one(self, counts: Any, *scan: slice) -> np.ndarray:
        """The same where patterns lie apart in a file with the detector first: HDF5 would spread each over all."""
        ranges = [range(s.start, s.stop) for s in scan]
        out = np.empty((*map(len, ranges), *self.shape[2:]), self.file_dtype)
        turned = self.order[-2] > self.order[-1]
        for pattern, at in zip(out.reshape(-1, *self.shape[2:]), product(*ranges), strict=True):
            index = (*at, slice(None), slice(None))
            in_file = tuple(index[self.order.index(i)] for i in range(len(index)))
            found = self.load(counts[(*self.leading, *in_file)])
            pattern[...] = found.T if turned else found
        return out

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        ny, nx, nky, nkx = self.shape
        if not (0 <= y0 <= y1 <= ny and 0 <= x0 <= x1 <= nx):
            raise InputError(
                f"Probe positions [{y0}:{y1}, {x0}:{x1}] were asked for; the scan has ({ny}, {nx}), stay inside it."
            )
        for state in self.states:
            check_state(state)
        with self.opened() as counts:
            if not self.flat:
                block = self._select(counts, slice(y0, y1), slice(x0, x1))
            elif x1 - x0 == self._frames.line:
                first = self._frames.first
                block = self._select(counts, slice(first + y0 * nx, first + y1 * nx))
            else:
                block = np.empty((y1 - y0, x1 - x0, nky, nkx), self.file_dtype)
                for line, y in zip(block, range(y0, y1), strict=True):
                    start = self._frames.first + y * self._frames.line
                    line[...] = self._select(counts, slice(start + x0, start + x1))
        return np.ascontiguousarray(block, dtype=self.dtype).reshape(y1 - y0, x1 - x0, nky, nkx)

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Generator[Block]:
        # Blocks end where chunks end, so that no chunk is decompressed twice within a window.
        nky, nkx = self.shape[2:]
        ky, kx = bounding_box(pixels) if pixels is not None else (slice(0, nky), slice(0, nkx))
        lines, columns = self.chunk
        across = max(1, BLOCK_BYTES // (self.pattern_bytes * lines * columns)) * columns
        (y0, y1), (x0, x1) = ((s.start, s.stop) for s in window)
        if across >= x1 - x0:
            across = -(-x1 // columns) * columns
            lines *= max(1, BLOCK_BYTES // (self.pattern_bytes * lines * (x1 - x0)))
        for y in range(y0 - y0 % lines, y1, lines):
            for x in range(x0 - x0 % across, x1, across):
                ys, xs = slice(max(y, y0), min(y + lines, y1)), slice(max(x, x0), min(x + across, x1))
                if used is None or used[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0].any():
                    counts = self.read(ys.start, ys.stop, xs.start, xs.stop)[..., ky, kx]
                    yield Block(ys, xs, ky, kx, np.ascontiguousarray(counts))


def chunk_of(
    chunks: tuple[int, ...] | None, nx: int, flat: bool, order: tuple[int, ...] = (0, 1)
) -> tuple[int, int]:
    """Probe positions (y, x) of one chunk of an array, without its leading dims.

    Examples
    --------
    >>> chunk_of((4, 8, 64, 64), 100, flat=False), chunk_of((300, 64, 64), 100, flat=True)
    ((4, 8), (3, 100))
    >>> chunk_of((20, 64, 64), 100, flat=True), chunk_of((30, 64, 64), 100, flat=True)
    ((1, 20), (1, 100))
    """
    if chunks is None:
        return 1, 1
    if not flat:
        return chunks[order[0]], min(chunks[order[1]], nx)
    # A chunk of frames that ends within a line is decompressed for both of the blocks that share it; whole lines share
    # the fewest.
    frames = chunks[order[0]]
    return math.ceil(frames / nx), frames if nx % frames == 0 else nx
