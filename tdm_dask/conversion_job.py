"""One shard of a conversion: read from the source, summed, encoded, and written after its sums are safe."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numcodecs.blosc
import numpy as np

from .blocks import Block, Crop, RawFrames, Source
from .errors import CorruptStoreError, SourceError, TdmError
from .memory import Buffers
from .reductions import Moments, State
from .shards import InnerChunk, ShardedArray, get, put
from .sources import identity
from .storage import durable_put, name_of, object_size, reason_of, writing
from .store import SIDECARS, pattern_totals


@dataclass(frozen=True)
class Job:
    """What every task of one conversion needs to know."""

    array: ShardedArray
    source: Source | None
    source_path: str | None
    source_identity: dict[str, Any]
    used: np.ndarray | None
    valid: np.ndarray | None

    @property
    def moments(self) -> Moments:
        nky, nkx = self.array.shape[2:]
        exact = self.array.dtype.kind in "ub" and self.array.dtype.itemsize <= 2
        return Moments((slice(0, nky), slice(0, nkx)), exact)

    @property
    def source_name(self) -> str:
        source = self.source.source if isinstance(self.source, Crop) else self.source
        return self.source_path or (source.path if isinstance(source, RawFrames) else "The source")

    def sidecar(self, shard: Sequence[int]) -> str:
        return f"{SIDECARS}/" + ".".join(map(str, shard))


@dataclass(frozen=True)
class Here:
    """Keeps dask from looking into a job that holds an array."""

    job: Job


def convert_shard(job: Job | Here, shard: tuple[int, ...], block: np.ndarray | None = None) -> int:
    """Read, sum, encode and write one shard; its sums are on disk before it is. Gives the bytes written."""
    job = job.job if isinstance(job, Here) else job
    array = job.array
    window = array.window(shard)
    read = _reader(job, window) if block is None else _cut(block, window)
    used = None if job.used is None else job.used[window[:2]]
    moments = job.moments
    state = moments.start((window[0], window[1]), used, None)
    maximum = np.full(array.shape[2:], lowest(array.dtype), array.dtype)
    totals = np.zeros([s.stop - s.start for s in window[:2]], np.uint64 if array.dtype.kind in "ub" else np.float64)

    def visit(chunk: InnerChunk) -> None:
        y, x = (slice(s.start - w.start, s.stop - w.start) for s, w in zip((chunk.y, chunk.x), window, strict=False))
        counts = np.ascontiguousarray(chunk.counts)
        moments.add(
            state, Block(chunk.y, chunk.x, chunk.ky, chunk.kx, counts), None if used is None else used[y, x], None
        )
        tile = maximum[chunk.ky, chunk.kx]
        rows = counts.reshape(-1, *tile.shape) if used is None else counts[used[y, x]]
        np.maximum(tile, rows.max(0, initial=lowest(array.dtype)), out=tile)
        totals[y, x] += pattern_totals(counts, None if job.valid is None else job.valid[chunk.ky, chunk.kx])

    with np.errstate(invalid="ignore"):  # counts may hold NaN: then so do the sums
        data = array.encode_shard(shard, read, visit)
        finished = moments.finish(state)
    check_unchanged(job)
    sums = {**finished, "maximum": maximum, "pattern_totals": totals, "stored_bytes": len(data)}
    with writing(name_of(array.store)):
        durable_put(array.store, job.sidecar(shard), _pack(sums))
        put(array.store, array.key(shard), data)
    return len(data)


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
    """What gives windows of the scan from the source: as they are asked for, or from all of the shard, read at once."""
    source, buffers = job.source, Buffers()
    assert source is not None

    def read(y: slice, x: slice) -> np.ndarray:
        try:
            return source.read_as_stored(y, x, buffers)
        except OSError as error:
            if isinstance(error, TdmError):
                raise
            raise SourceError(
                f"{job.source_name} cannot be read ({reason_of(error)}); bring it back, and the same convert goes on."
            ) from error

    return read if source.random_access else _cut(read(*window[:2]), window)


def check_unchanged(job: Job) -> None:
    if job.source_path is None:
        return
    found, expected = identity(job.source_path), job.source_identity
    if any(found[k] != expected[k] for k in ("size", "modified")):
        raise SourceError(
            f"{job.source_path} changed while it was converted ({found['size']} bytes of {found['modified']}; it was "
            f"{expected['size']} bytes of {expected['modified']}); convert it anew with overwrite."
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
    return numcodecs.blosc.compress(np.frombuffer(buffer.getvalue(), np.uint8), b"zstd", 1, numcodecs.blosc.NOSHUFFLE)


def _unpack(data: np.ndarray) -> State:
    with np.load(io.BytesIO(numcodecs.blosc.decompress(data))) as file:
        return {k: v[()] if v.ndim == 0 else v for k, v in file.items()}
