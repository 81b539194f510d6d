"""One shard of a conversion: read, summed, encoded, written after its sums, and in the end read back."""

from __future__ import annotations

import io
import math
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numcodecs.blosc
import numpy as np

from ..errors import CorruptStoreError, SourceError, StoreError, TdmError
from ..kernels.exact_sums import exact_sums
from ..kernels.pixel_order import Tile
from ..passes.reductions import Moments, State, used_rows
from ..reading.blocks import Block, Crop, Source, StoredBlock
from ..reading.memory import Buffers
from ..reading.stalls import waiting_for, watched
from ..reading.store import SIDECARS, pattern_totals, same_sums
from ..shards.objects import delete, flush, get, name_of, object_size, put, reason_of, writing
from ..shards.sharded_array import ShardedArray
from ..sources.repeats import marked_pixels, pattern_marks
from ..sources.vendor import identity

# Largest tile of a source that a task holds as a whole, to write several shards from it. There is memory for one such
# task at a time in a process, whatever its number of threads.
_TILE_BYTES = 512 * 2**20
_LARGE_TILE = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What every task of one conversion needs to know."""

    array: ShardedArray
    source: Source | None
    source_path: str | None
    source_identity: dict[str, Any]
    used: np.ndarray | None
    valid: np.ndarray | None
    linked: tuple[str, ...] = ()

    @property
    def moments(self) -> Moments:
        nky, nkx = self.array.shape[2:]
        exact = self.array.dtype.kind in "ub" and self.array.dtype.itemsize <= 2
        return Moments((slice(0, nky), slice(0, nkx)), exact)

    @property
    def source_name(self) -> str:
        return self.source_path or ("The source" if self.source is None else self.source.name)

    def sidecar(self, shard: Sequence[int]) -> str:
        return f"{SIDECARS}/" + ".".join(map(str, shard))


@dataclass(frozen=True)
class _TileSums:
    """Exact sums over a tile of the detector, in the order of its columns; shapes (1, pixels), flags (pixels,)."""

    counted: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    maximum: np.ndarray
    marked: np.ndarray

    @classmethod
    def over(cls, tile: Tile, counted: np.ndarray, dtype: np.dtype) -> _TileSums:
        marked = marked_pixels(counted.size)
        total, squares = (np.zeros((1, tile.width), np.uint64) for _ in range(2))
        maximum = np.zeros((1, tile.width), dtype)
        return cls(tile.columns(counted), total, squares, maximum, tile.places()[marked])


class ShardSums:
    """Sums of one shard, from its inner chunks: the same ones when it is written and when it is read back."""

    def __init__(self, job: Job, shard: Sequence[int]) -> None:
        dtype, detector = job.array.dtype, job.array.shape[2:]
        self._window = job.array.window(shard)[:2]
        self._used = None if job.used is None else job.used[self._window]
        self._valid, self._moments = job.valid, job.moments
        self._counted = np.ones(detector, np.uint32) if job.valid is None else job.valid.astype(np.uint32)
        y, x = self._window
        self._state = self._moments.start((y, x), self._used, None)
        self._maximum = np.full(detector, lowest(dtype), dtype)
        self._totals = np.zeros((y.stop - y.start, x.stop - x.start), np.uint64 if dtype.kind in "ub" else np.float64)
        self._marks = np.zeros(self._totals.shape, np.uint64)
        self._tiles: dict[tuple[Tile, np.dtype], _TileSums] = {}

    def add(self, block: Block) -> None:
        place = zip((block.y, block.x), self._window, strict=True)
        y, x = (slice(s.start - w.start, s.stop - w.start) for s, w in place)
        used = None if self._used is None or self._used[y, x].all() else self._used[y, x]
        if used is None and self._moments.exact:
            totals, marked = self._add_exactly(block)
        else:
            counts = block.counts
            totals = pattern_totals(counts, None if self._valid is None else self._valid[block.ky, block.kx])
            self._add(block, counts, used)
            rows = counts.reshape(totals.size, -1)
            marked = rows[:, marked_pixels(rows.shape[1])]
        self._totals[y, x] += totals
        self._marks[y, x] += pattern_marks(marked.reshape(*totals.shape, -1), totals, block.ky.start, block.kx.start)

    def _add(self, block: Block, counts: np.ndarray, used: np.ndarray | None) -> None:
        if used is not None and not used.any():
            return
        self._moments.add(self._state, block, used, None)
        tile = self._maximum[block.ky, block.kx]
        rows = counts.reshape(-1, *tile.shape) if used is None else counts[used]
        np.maximum(tile, rows.max(0), out=tile)

    def _add_exactly(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """The same, the sum of each pattern and its marked pixels, in one read of the counts.

        The compressor finds them in cache.
        """
        matrix, tile = used_rows(block, None), block.tile
        key = tile, matrix.dtype
        if key not in self._tiles:
            self._tiles[key] = _TileSums.over(tile, self._counted[tile.ky, tile.kx], matrix.dtype)
        sums = self._tiles[key]
        totals = np.zeros(len(matrix), np.uint64)
        exact_sums(matrix, sums.counted, sums.total, sums.squares, sums.maximum, totals, 0, 0, tile.width)
        return totals.reshape(block.shape), matrix[:, sums.marked]

    def _gather(self) -> None:
        """Put the sums over tiles, whose pixels may lie in another order, where they belong."""
        for (tile, _), sums in self._tiles.items():
            self._state["total"][tile.ky, tile.kx] += tile.pixels(sums.total[0])
            self._state["squares"][tile.ky, tile.kx] += tile.pixels(sums.squares[0])
            most = self._maximum[tile.ky, tile.kx]
            np.maximum(most, tile.pixels(sums.maximum[0]).astype(most.dtype), out=most)
        self._tiles.clear()

    def finish(self) -> State:
        self._gather()
        of_patterns = {"pattern_totals": self._totals, "pattern_marks": self._marks}
        return {**self._moments.finish(self._state), "maximum": self._maximum, **of_patterns}


def tile_of(source: Source | None) -> tuple[int, int]:
    """Probe positions (y, x) of a source that are read together, and that the shards of a store should respect."""
    if source is None or source.random_access:
        return 1, 1
    origin = _origin(source)
    # Tiles that begin elsewhere than the scan cannot be those of a store, unless the scan lies within one.
    aligned = [o % t == 0 or n <= t - o % t for o, t, n in zip(origin, source.tile, source.shape, strict=False)]
    return source.tile if all(aligned) else (1, 1)


def _origin(source: Source) -> tuple[int, int]:
    return source.start[:2] if isinstance(source, Crop) else (0, 0)


def read_together(job: Job, shards: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Shards, in runs that one task each writes: those of one tile of the source, which is then read once."""
    array, source = job.array, job.source
    assert source is not None
    # A store that was begun otherwise may have shards that fit no tile.
    sizes = [max(t, s) for t, s in zip(tile_of(source), array.shard, strict=False)]
    if math.prod(sizes) * source.pattern_bytes > _TILE_BYTES:
        return [[shard] for shard in shards]
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for shard in shards:
        place = tuple(w.start // n for w, n in zip(array.window(shard), sizes, strict=False))
        groups.setdefault(place, []).append(shard)
    return list(groups.values())


def convert_shards(job: Job, shards: Sequence[tuple[int, ...]], block: np.ndarray | None = None) -> None:
    """Read, sum, encode and write shards; the source of several is read once. Their sums are stored before they are."""
    # A cluster repeats the tasks whose results it lost together with a worker.
    shards = [shard for shard in shards if not is_written(job, shard)]
    if not shards:
        return
    windows = [job.array.window(shard)[:2] for shard in shards]
    y, x = (slice(min(w[i].start for w in windows), max(w[i].stop for w in windows)) for i in range(2))
    with _LARGE_TILE if len(shards) > 1 else nullcontext():
        read = _reader(job, (y, x)) if block is None else _cut(block, (y, x))
        for shard in shards:
            _convert_shard(job, shard, read)


def _convert_shard(job: Job, shard: tuple[int, ...], read: Callable[[slice, slice], np.ndarray]) -> None:
    array = job.array
    sums = ShardSums(job, shard)
    with np.errstate(invalid="ignore"):  # counts may hold NaN: then so do the sums
        pieces = array.encode_shard(shard, read, lambda c: sums.add(Block(c.y, c.x, c.ky, c.kx, c.counts)))
        finished = sums.finish()
    check_unchanged(job)
    with writing(name_of(array.store)):
        put(array.store, job.sidecar(shard), _pack({**finished, "stored_bytes": sum(map(len, pieces))}))
        put(array.store, array.key(shard), *pieces)


def check_shard(job: Job, shard: tuple[int, ...], written: object) -> str | None:
    """Read a shard back from the store, and compare its sums with those of the source.

    A shard that differs is removed with its sums, so that the next call of the conversion writes it anew.

    Parameters
    ----------
    written : object
        What comes before this in the graph.

    Returns
    -------
    str or None
        The shard, its probe positions and what is wrong; None where it is as it was written.
    """
    problem = _problem(job, shard)
    if problem is None:
        return None
    with writing(name_of(job.array.store)):
        for key in (job.array.key(shard), job.sidecar(shard)):
            delete(job.array.store, key)
    return f"{job.array.describe(shard)} {problem}"


def _problem(job: Job, shard: tuple[int, ...]) -> str | None:
    """What is wrong with a shard, after its name; None where it is flushed to disk and as it was written."""
    array = job.array
    expected = read_sums(job, shard)
    if expected is None:
        return "has lost the sums of its source"
    written = int(expected.pop("stored_bytes"))
    sums = ShardSums(job, shard)
    try:
        size = object_size(array.store, array.key(shard))
        if size != written:
            return "is missing" if size is None else f"has {size} bytes instead of {written}"
        flush(array.store, array.key(shard))
        stored = watched(array.read_shard(shard), str(array.store))
        with np.errstate(invalid="ignore"), closing(stored) as chunks:
            for chunk in chunks:
                sums.add(StoredBlock(chunk, chunk.y, chunk.x))
            found = sums.finish()
    except CorruptStoreError:
        return "has a wrong checksum"
    except StoreError:
        raise  # it is the server that does not answer, and the shard may be whole
    except OSError as error:
        return f"cannot be kept or read ({reason_of(error)})"
    if array.dtype.kind == "f":  # made of sums that may be rounded otherwise
        del found["pattern_marks"]
    same = found.keys() <= expected.keys() and all(same_sums(found[name], expected[name]) for name in found)
    return None if same else "holds other counts than its source"


def lowest(dtype: np.dtype) -> Any:
    """The value that no maximum falls below."""
    if dtype.kind == "b":
        return np.False_
    return dtype.type(-np.inf) if dtype.kind == "f" else np.iinfo(dtype).min


def _cut(block: np.ndarray, window: tuple[slice, ...]) -> Callable[[slice, slice], np.ndarray]:
    """What gives windows of the scan from the counts of one shard."""
    y0, x0 = window[0].start, window[1].start
    return lambda y, x: block[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0]


def _reader(job: Job, window: tuple[slice, ...]) -> Callable[[slice, slice], np.ndarray]:
    """What gives windows of the scan from the source: as they are asked for, or from all of the window, read at once.

    They are read as they are asked for where no part of the file is then read twice.
    """
    source, buffers = job.source, Buffers()
    assert source is not None

    def read(y: slice, x: slice) -> np.ndarray:
        try:
            # A source with small shards is slow by nature, and does not wait for a file.
            with nullcontext() if source.shard_bytes else waiting_for(job.source_name):
                return source.read_as_stored(y, x, buffers)
        except OSError as error:
            if isinstance(error, TdmError):
                raise
            raise SourceError(
                f"{job.source_name} cannot be read ({reason_of(error)}); bring it back, and the same convert goes on."
            ) from error

    aligned = tile_of(source) == source.tile
    piecewise = aligned and all(c % t == 0 for c, t in zip(job.array.inner, source.tile, strict=False))
    return read if source.random_access or piecewise else _cut(read(*window), window)


def check_unchanged(job: Job) -> None:
    """Raise unless the file of the counts, and every file that it links, is as it was when it was opened."""
    if job.source_path is None:
        return
    paths = (job.source_path, *job.linked)
    for path, expected in zip(paths, (job.source_identity, *job.source_identity.get("linked", ())), strict=True):
        found = identity(path)
        if any(found[k] != expected[k] for k in ("size", "modified")):
            raise SourceError(
                f"{path} changed while it was converted ({found['size']} bytes of {found['modified']}; it was "
                f"{expected['size']} bytes of {expected['modified']}); convert it anew with overwrite=True."
            )


def is_written(job: Job, shard: tuple[int, ...]) -> bool:
    """Whether a shard, its index and its sums are whole."""
    sums = read_sums(job, shard)
    if sums is None or object_size(job.array.store, job.array.key(shard)) != int(sums["stored_bytes"]):
        return False
    try:
        job.array.read_index(shard)
    except CorruptStoreError:
        return False
    return True


def read_sums(job: Job, shard: tuple[int, ...]) -> State | None:
    data = get(job.array.store, job.sidecar(shard))
    try:
        return None if data is None else _unpack(data)
    except (ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # cut short by a power failure: the shard is written again


def _pack(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    # Most of it are 64-bit sums, whose high bytes are zero.
    buffer.write(b"\0" * (-buffer.tell() % 8))
    return numcodecs.blosc.compress(np.frombuffer(buffer.getvalue(), np.uint64), b"lz4", 1, numcodecs.blosc.SHUFFLE)


def _unpack(data: np.ndarray) -> State:
    with np.load(io.BytesIO(numcodecs.blosc.decompress(data))) as file:
        return {k: v[()] if v.ndim == 0 else v for k, v in file.items()}
