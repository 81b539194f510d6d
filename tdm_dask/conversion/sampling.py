"""What a few patterns tell before all are read: faults, repeated frames, and how much room a store will take."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import DiskFullError
from ..reading.blocks import Source
from ..shards.codec import Codec
from ..shards.shapes import choose_shards
from ..shards.sharded_array import ShardedArray
from ..sources.faults import faults
from ..sources.stacks import DetectorFirst

# So many runs of so many patterns of a line, spread over the scan, as far as they cost no more bytes to read.
_RUNS, _PATTERNS = 8, 16
_SAMPLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Sample:
    """Runs of consecutive patterns of a scan.

    Parameters
    ----------
    shape : tuple of 4 int
        Of the whole scan.
    runs : tuple of (int, int, ndarray)
        Of each run the place (y, x) of its first pattern, and the patterns, shape (n, nky, nkx).
    """

    shape: tuple[int, int, int, int]
    runs: tuple[tuple[int, int, np.ndarray], ...]

    @property
    def count(self) -> int:
        return sum(len(patterns) for _, _, patterns in self.runs)

    def compressed(self, codec: Codec) -> float:
        """Bytes that a store takes for each byte of counts."""
        stored = read = 0
        for _, _, patterns in self.runs:
            _, _, ky, kx = choose_shards(self.shape, patterns.itemsize)[0]
            for i in range(0, self.shape[2], ky):
                for j in range(0, self.shape[3], kx):
                    part = np.ascontiguousarray(patterns[:, i : i + ky, j : j + kx])
                    stored, read = stored + sum(map(len, codec.encode(part))), read + part.nbytes
        return stored / read

    def findings(self, valid: np.ndarray | None = None, depth: int | None = None) -> list[str]:
        """Sentences about pixels and patterns of the sample, as a conversion has them about all."""
        patterns = np.concatenate([part for _, _, part in self.runs])
        totals, used = np.zeros(self.shape[:2]), np.zeros(self.shape[:2], bool)
        same = []
        for y, x, part in self.runs:
            totals[y, x : x + len(part)] = part.sum((1, 2), dtype=np.float64)
            used[y, x : x + len(part)] = True
            same += [
                f"{(y, x + i)} and {(y, x + i + 1)}"
                for i, (one, next_one) in enumerate(pairwise(part))
                if one.any() and np.array_equal(one, next_one)
            ]
        mean = patterns.mean(0, dtype=np.float64)
        found = faults(mean, patterns.max(0), totals, n=len(patterns), used=used, valid=valid, depth=depth)
        if same:
            more = ", ..." if len(same) > 3 else ""
            found.append(f"{len(same)} hold the same counts as the one before, (y, x) = {', '.join(same[:3])}{more}.")
        return [f"Of {len(patterns)} patterns that were looked at: {sentence}" for sentence in found]


def sample(source: Source, used: np.ndarray | None = None) -> Sample | None:
    """Read a few runs of patterns, or None where even these would cost too much.

    Parameters
    ----------
    source : Source
    used : ndarray of bool, shape (ny, nx), optional
        Probe positions that have a pattern.

    Examples
    --------
    >>> from tdm_dask.reading.blocks import InMemory
    >>> sample(InMemory(np.zeros((9, 40, 8, 8), np.uint16))).count
    128
    """
    ny, nx = source.shape[:2]
    n = min(nx, _PATTERNS, max(2, _SAMPLE_BYTES // source.pattern_bytes))
    cost = n * source.pattern_bytes
    if not source.random_access:
        lines, columns = source.tile
        cost = lines * columns * (1 + math.ceil((n - 1) / columns)) * source.pattern_bytes
    if isinstance(source, DetectorFirst) or cost > 4 * _SAMPLE_BYTES:
        return None
    runs = []
    count = max(1, min(_RUNS, _SAMPLE_BYTES // cost))
    for run in np.unique(np.linspace(0, ny * (nx // n) - 1, count).round().astype(int)).tolist():
        y, x = divmod(run, nx // n)
        x *= n
        if used is None or used[y, x : x + n].all():
            runs.append((y, x, source.read(y, y + 1, x, x + n)[0]))
    return Sample(source.shape, tuple(runs)) if runs else None


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not exist yet."""
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def check_space(folder: Path, array: ShardedArray, pending: Iterable[tuple[int, ...]], source: Source | None) -> None:
    """Refuse to write shards for which there is certainly no room; warn where a sample says that there is none.

    Raises
    ------
    DiskFullError
        If counts that are not compressed do not fit.
    """
    windows = [math.prod(part.stop - part.start for part in array.window(shard)) for shard in pending]
    counts, free = sum(windows) * array.dtype.itemsize, free_bytes(folder)
    if counts <= free:
        return
    room = f"{counts / 1e9:.3g} GB of counts are to be written to {folder}, where {free / 1e9:.3g} GB are free"
    if array.codec.compressor is None:
        raise DiskFullError(f"{room}; make room, choose another disk, or compress them.")
    looked_at = None if source is None else sample(source)
    if looked_at is None:
        warnings.warn(f"{room}; compressed they may not fit.", stacklevel=1)
        return
    needed = counts * looked_at.compressed(array.codec)
    if needed > free:
        warnings.warn(
            f"{room}; a sample of them says that they take about {needed / 1e9:.3g} GB compressed, so make room: what "
            "was written is kept, and the same conversion goes on.",
            stacklevel=1,
        )
