"""Sources whose counts are not plain equally spaced frames: flipped detector rows, and array-like files."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..blocks import BLOCK_BYTES, Block, Frames, Source, Window, bounding_box
from ..errors import InputError, SourceError
from ..memory import Buffers
from .vendor import native_dtype


@dataclass(frozen=True)
class FlippedRows(Frames):
    """The patterns of other frames with the detector rows in reverse order.

    Merlin writes a frame from its bottom row upwards; every reader that shows it upright reverses the rows.
    """

    frames: Frames

    @property
    def shape(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        return self.frames.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.frames.dtype

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        return self.frames.read_as_stored(y, x, buffers)[:, :, ::-1]


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
        Whether the probe positions are one axis of ny * nx in the file.
    chunk : (int, int), default (1, 1)
        Probe positions (y, x) that the file compresses together, which are best read together.
    """

    path: str
    shape: tuple[int, int, int, int]
    file_dtype: str
    leading: tuple[int, ...] = ()
    flat: bool = False
    chunk: tuple[int, int] = (1, 1)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return native_dtype(self.file_dtype)

    @property
    def tile(self) -> tuple[int, int]:
        return min(self.chunk[0], self.shape[0]), min(self.chunk[1], self.shape[1])

    @abstractmethod
    def opened(self) -> AbstractContextManager[Any]:
        """The array-like as it lies in the file."""

    @staticmethod
    def load(selection: Any) -> np.ndarray:
        """A NumPy array from what slicing the array-like gave."""
        return np.asarray(selection)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        ny, nx, nky, nkx = self.shape
        if not (0 <= y0 <= y1 <= ny and 0 <= x0 <= x1 <= nx):
            raise InputError(
                f"Probe positions [{y0}:{y1}, {x0}:{x1}] were asked for; the scan has ({ny}, {nx}), stay inside it."
            )
        with self.opened() as counts:
            if not self.flat:
                block = self.load(counts[(*self.leading, slice(y0, y1), slice(x0, x1))])
            elif x1 - x0 == nx:
                block = self.load(counts[(*self.leading, slice(y0 * nx, y1 * nx))])
            else:
                block = np.empty((y1 - y0, x1 - x0, nky, nkx), self.file_dtype)
                for line, y in zip(block, range(y0, y1), strict=True):
                    line[...] = self.load(counts[(*self.leading, slice(y * nx + x0, y * nx + x1))])
        return np.ascontiguousarray(block, dtype=self.dtype).reshape(y1 - y0, x1 - x0, nky, nkx)

    def blocks(self, window: Window, used: np.ndarray | None, pixels: np.ndarray | None) -> Iterator[Block]:
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

    def identity(self) -> tuple[Any, ...]:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read ({error.strerror}); check the path.") from None
        return (*super().identity(), status.st_size, status.st_mtime_ns)


def chunk_of(chunks: tuple[int, ...] | None, nx: int, flat: bool) -> tuple[int, int]:
    """Probe positions (y, x) of one chunk of an array whose last two dims are the detector.

    Examples
    --------
    >>> chunk_of((4, 8, 64, 64), 100, flat=False), chunk_of((300, 64, 64), 100, flat=True)
    ((4, 8), (3, 100))
    """
    if chunks is None:
        return 1, 1
    if not flat:
        return chunks[-4], min(chunks[-3], nx)
    # A chunk of frames that ends within a line is decompressed for both of the blocks that share it.
    return max(1, math.ceil(chunks[-3] / nx)), min(chunks[-3], nx)
