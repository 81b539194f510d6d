"""Streams of patterns: frames as they come, a file that is being written, a finished scan once more.

A stream is an iterator of (slice of y, slice of x, patterns): each pattern of a scan once, in any order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from ..axes import VALID_PATTERNS, check_counts, label_counts
from ..errors import ScanShapeError, SourceError
from ..reading.blocks import BLOCK_BYTES, RawFrames, Source
from ..reading.lazy import as_dask, source_of
from ..sources.stacks import PartialScan
from .opening import open as open_counts

Stream = Iterable[tuple[slice, slice, np.ndarray]]


def expected_counts(scan_shape: Sequence[int], detector_shape: Sequence[int], dtype: Any = "uint16") -> xr.DataArray:
    """Labelled counts of a scan that has not arrived: shape, dtype and coordinates, to make templates and masks for.

    Give them their units as any counts, with `calibrate(counts, pixel_size=, centre=, scan_step=)`, which then reads
    nothing. The counts themselves are zeros that take no memory.

    Parameters
    ----------
    scan_shape : (ny, nx)
    detector_shape : (nky, nkx)
    dtype : dtype, default "uint16"
        Of the counts to come.

    Examples
    --------
    >>> expected_counts((512, 512), (256, 256)).shape
    (512, 512, 256, 256)
    """
    zero = np.zeros((), np.dtype(dtype).newbyteorder("="))
    return label_counts(np.broadcast_to(zero, (*scan_shape, *detector_shape)))


def stream_frames(frames: Iterable[np.ndarray], scan_shape: Sequence[int]) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Single patterns (ky, kx) in the order of the scan, as a stream of its lines; the last may be cut short.

    Examples
    --------
    >>> frames = (np.full((2, 2), n, np.uint16) for n in range(5))
    >>> [(y.start, x.stop, block.shape) for y, x, block in stream_frames(frames, (2, 3))]
    [(0, 3, (1, 3, 2, 2)), (1, 2, (1, 2, 2, 2))]
    """
    nx, line, y = scan_shape[1], [], 0
    for frame in frames:
        line.append(np.array(frame))
        if len(line) == nx:
            yield slice(y, y + 1), slice(0, nx), np.stack(line)[None]
            line, y = [], y + 1
    if line:
        yield slice(y, y + 1), slice(0, len(line)), np.stack(line)[None]


def replay(counts: xr.DataArray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """A finished scan as a stream, each of its chunks read once; line by line where it is in memory.

    Examples
    --------
    >>> [y.start for y, x, block in replay(expected_counts((3, 4), (2, 2)))]
    [0, 1, 2]
    """
    counts = check_counts(counts)
    data = counts.data
    lazy = not isinstance(data, np.ndarray)
    chunks = data.chunks[:2] if lazy else ((1,) * counts.shape[0], (counts.shape[1],))
    rows, columns = (list(pairwise([0, *np.cumsum(c).tolist()])) for c in chunks)
    for y in rows:
        for x in columns:
            part = data[slice(*y), slice(*x)]
            yield slice(*y), slice(*x), part.compute() if lazy else part


class GrowingFile:
    """A vendor's file that is being written, as a stream: each new pattern is read once, when it is complete.

    See `follow`, which makes one. Iterating reads; it can be gone on with after an error, and ends with the scan.

    Attributes
    ----------
    counts : DataArray (y, x, ky, kx)
        The whole scan, lazy, in pixels until calibrated: to make templates with, and, once the file is complete, to
        read again for the final image. Until then, computing what has not arrived is an error.
    """

    def __init__(self, path: str, options: dict[str, Any], poll: float, timeout: float, wait: Callable[[float], Any]):
        self.path, self._poll, self._timeout, self._wait = path, poll, timeout, wait
        self._done = 0
        opened = self._first(options)
        source: Any = source_of(opened.data)
        # That of the whole scan lies behind the one that knows what is missing now.
        self._source: Source = source.source if isinstance(source, PartialScan) else source
        frames: Any = self._source
        while hasattr(frames, "frames"):
            frames = frames.frames
        if type(frames) is not RawFrames:
            raise SourceError(
                f"{path} does not hold its patterns one after the other at equal distances in one file, so it cannot "
                "be read while it grows; open it when it is complete."
            )
        frames.let_grow()
        self._frames = frames
        whole = opened.drop_vars(VALID_PATTERNS, errors="ignore")
        self.counts = whole.copy(data=as_dask(self._source))

    def _first(self, options: dict[str, Any]) -> xr.DataArray:
        """The file, opened as soon as it holds one pattern."""
        since, size = time.monotonic(), -1
        while True:
            try:
                return open_counts(self.path, allow_partial=True, **options)
            except (SourceError, ScanShapeError) as error:
                now = os.path.getsize(self.path) if os.path.exists(self.path) else -1
                if now != size:
                    since, size = time.monotonic(), now
                if time.monotonic() - since >= self._timeout:
                    raise SourceError(
                        f"{self.path} could not be opened, and has not changed for {self._timeout:g} s: {error}"
                    ) from error
            self._wait(self._poll)

    def present(self) -> int:
        """Patterns of the scan that are complete in the file now, in the order of the scan."""
        f = self._frames
        ny, nx, nky, nkx = f.shape
        frame = nky * nkx * f.dtype.itemsize
        stride = f.frame_stride or frame
        line = f.line_stride or nx * stride
        lines, rest = divmod(max(os.path.getsize(f.path) - f.offset, 0), line)
        return min(lines * nx + (min((rest - frame) // stride + 1, nx) if rest >= frame else 0), ny * nx)

    def __iter__(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        ny, nx = self._source.shape[:2]
        most = max(1, BLOCK_BYTES // self._source.pattern_bytes)
        since = time.monotonic()
        while self._done < ny * nx:
            present = self.present()
            if present == self._done:
                if time.monotonic() - since >= self._timeout:
                    raise SourceError(
                        f"{self.path} holds {self._done} of the {ny * nx} patterns of its scan and has not grown for "
                        f"{self._timeout:g} s; if the scan was stopped, what has arrived is all there is."
                    )
                self._wait(self._poll)
                continue
            while self._done < present:
                y, x = divmod(self._done, nx)
                if x == 0 and present - self._done >= nx and most >= nx:
                    rows = min((present - self._done) // nx, most // nx)
                    ys, xs = slice(y, y + rows), slice(0, nx)
                else:
                    ys, xs = slice(y, y + 1), slice(x, min(nx, x + present - self._done, x + most))
                block = self._source.read(ys.start, ys.stop, xs.start, xs.stop)
                self._done += block.shape[0] * block.shape[1]
                yield ys, xs, block
            since = time.monotonic()


def follow(
    path: str | os.PathLike[str],
    *,
    poll: float = 0.2,
    timeout: float = 60.0,
    wait: Callable[[float], Any] = time.sleep,
    **options: Any,
) -> GrowingFile:
    """Follow a file while the microscope writes it: raw binary, Merlin .mib, and others whose frames lie evenly.

    Waits until the file is there and holds one pattern. A file whose whole size is set before it is filled cannot be
    told from a complete one; formats of the HDF5 kind, and acquisitions that go on in further files, are refused.

    Parameters
    ----------
    path : path
    poll : float, default 0.2
        Seconds between two looks at the file's size.
    timeout : float, default 60
        Seconds without a new pattern after which it is given up.
    wait : callable, default time.sleep
        Called with `poll` where nothing is new, as by a program that has other things to do meanwhile.
    **options
        What `open` needs: `scan_shape`, and `detector_shape`, `dtype`, `offset`, `gap` of raw binary.

    Returns
    -------
    GrowingFile

    Raises
    ------
    SourceError
        If the file cannot be opened until the timeout, is of a format that cannot be followed, or (when iterated)
        stops growing before the scan is complete.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "scan.raw"
    >>> _ = path.write_bytes(np.arange(24, dtype="<u2").tobytes())
    >>> file = follow(path, scan_shape=(2, 3), detector_shape=(2, 2), dtype="<u2")
    >>> [(y.start, y.stop, block.shape) for y, x, block in file]
    [(0, 2, (2, 3, 2, 2))]
    """
    return GrowingFile(os.fspath(path), options, poll, timeout, wait)
