"""From a vendor's file (or any counts) to a store: shard by shard, with statistics, resumable after any interruption."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import dask
import numcodecs.blosc
import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import LocalStore

from . import store as stores
from .axes import (
    DETECTOR,
    DIMS,
    SCAN,
    VALID_PATTERNS,
    VALID_PIXELS,
    axis_coordinate,
    check_counts,
    quantity_pair,
)
from .blocks import Block, InMemory, Source, source_of
from .errors import CorruptStoreError, DiskFullError, InputError, SourceError, StoreError
from .opening import label_vendor
from .reductions import Moments, State
from .regions import crop as crop_counts
from .shards import COMPRESSIONS, InnerChunk, ShardedArray, put
from .sources import identity, open_vendor
from .statistics import valid_patterns, valid_pixels
from .store import StoreLike, name_of

# Source sums of each written shard, until the store is complete.
SIDECARS = "tdm_dask_progress"


@dataclass(frozen=True)
class _Job:
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

    def sidecar(self, shard: Sequence[int]) -> str:
        return f"{SIDECARS}/" + ".".join(map(str, shard))


def convert(
    source: str | os.PathLike[str] | xr.DataArray,
    store: StoreLike,
    *,
    scan_shape: Sequence[int] | None = None,
    scan_step: Any = None,
    pixel_size: Any = None,
    crop: Mapping[str, slice] | None = None,
    frame: int | None = None,
    detector_shape: Sequence[int] | None = None,
    dtype: Any = None,
    offset: int = 0,
    gap: int = 0,
    compression: str | None = "lz4",
    resume: bool = True,
    overwrite: bool = False,
) -> xr.DataArray:
    """Write a scan into a store, and open it. This reads the whole source, once, on the active dask scheduler.

    The mean pattern, its variance and every pattern's total are gathered in the same read. A conversion that was
    interrupted, at any moment, goes on where it stopped when it is called again; until then the store is refused.

    Parameters
    ----------
    source : path or DataArray
        A vendor's file, or labelled counts.
    store : path, URL or zarr store object
        Where to write.
    scan_shape, frame, detector_shape, dtype, offset, gap
        As in `open`.
    scan_step : float, str or (y, x) pair, optional
        Angstrom; goes before what the file says.
    pixel_size : float, str or (y, x) pair, optional
        Mrad; goes before what the file says. It is noted for `calibrate`, which finds the optic axis.
    crop : dict of slices, optional
        As for `crop`: the part to convert.
    compression : {"lz4", "zstd", None}, default "lz4"
        "lz4" reads and writes fastest; "zstd" is smaller, for archives. All with bitshuffle and checksums.
    resume : bool, default True
        Go on with an unfinished conversion of the same source; else an unfinished store is an error.
    overwrite : bool, default False
        Replace a store of this package that holds something else.

    Returns
    -------
    DataArray
        What `open(store)` gives.

    Raises
    ------
    SourceError
        If the source cannot be read, or changed while it was converted.
    StoreError
        If there is something else at `store`, or it cannot be written.
    DiskFullError
        If the disk is full; free space and call again.
    ScanShapeError, InputError
        If the request does not fit the source.

    Examples
    --------
    >>> import tempfile
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.ones((4, 4, 8, 8), np.uint16))
    >>> convert(counts, tempfile.mkdtemp() + "/scan.zarr").sum().compute().item()
    1024
    """
    if compression not in COMPRESSIONS:
        raise InputError(f"The compression is {compression!r}; expected one of {list(COMPRESSIONS)}.")
    if isinstance(source, xr.DataArray):
        counts, path = check_counts(source), None
        description: dict[str, Any] = {"name": str(source.attrs.get("source", "counts in memory")), "reader": "xarray"}
        if not isinstance(source.data, np.ndarray):
            description["graph"] = source.data.name
        metadata: dict[str, Any] = {}
    else:
        file = open_vendor(
            source, scan_shape=scan_shape, frame=frame, detector_shape=detector_shape, dtype=dtype, offset=offset, gap=gap
        )
        counts, path = label_vendor(file), file.data_path
        description = {**file.identity, "reader": file.reader, "frame": frame, "findings": list(file.findings)}
        metadata = stores.to_json(file.metadata)
    coords: dict[str, Any] = {}
    attrs = {}
    if scan_step is not None:
        steps = quantity_pair(scan_step, "angstrom", "scan_step")
        coords |= {d: axis_coordinate(d, counts.sizes[d], s, 0.0, "angstrom") for d, s in zip(SCAN, steps, strict=True)}
    if pixel_size is not None:
        attrs["pixel_size_mrad"] = list(quantity_pair(pixel_size, "mrad", "pixel_size"))
    counts = counts.assign_coords(coords).assign_attrs(attrs)
    if crop:
        counts = crop_counts(counts, **crop)
    backend = stores.resolve(store, read_only=False)
    attributes = {
        "schema": stores.SCHEMA,
        "state": "writing",
        "id": stores.new_id(),
        "source": description,
        "request": {
            "shape": list(counts.shape),
            "dtype": str(counts.dtype.newbyteorder("=")),
            "compression": compression,
            "crop": {d: [s.start, s.stop] for d, s in crop.items()} if crop else None,
        },
        "versions": {p: importlib.metadata.version(p) for p in ("tdm-dask", "zarr", "numcodecs", "rosettasciio")},
        "acquisition": {k: stores.to_json(counts.attrs[k]) for k in stores.FACTS if k in counts.attrs},
        "vendor_metadata": metadata,
    }
    try:
        finished = _prepare(backend, name_of(store), attributes, resume, overwrite)
        if not finished:
            _write(backend, counts, path, description, attributes, compression)
    except OSError as error:
        raise _explained(error, name_of(store)) from error
    return stores.open_store(backend if isinstance(store, Store) else store)


def _prepare(backend: Store, name: str, attributes: dict[str, Any], resume: bool, overwrite: bool) -> bool:
    """Decide what to do with what is at the store already; True where the very conversion is finished."""
    found = stores.read_attributes(backend)
    if found is None:
        if not sync(backend.is_empty("")):
            raise StoreError(f"{name} exists and is not a store of this package; choose another path or remove it yourself.")
        return False
    same = all(found.get(k) == stores.to_json(attributes[k]) for k in ("source", "request"))
    if same and found.get("state") == "complete" and not overwrite:
        _sweep(backend)
        return True
    if same and found.get("state") == "writing" and resume and not overwrite:
        attributes["id"] = found["id"]
        return False
    if overwrite:
        sync(backend.clear())
        return False
    if found.get("state") == "complete":
        raise StoreError(
            f'{name} already holds "{found["source"]["name"]}", converted from another file or in another way; choose another '
            "path, or replace it with overwrite."
        )
    if same:
        raise StoreError(f"{name} holds an unfinished conversion; go on with it with resume, or replace it with overwrite.")
    raise StoreError(
        f'{name} holds an unfinished conversion of another file, or of "{found["source"]["name"]}" as it was before or in '
        "another way; replace it with overwrite."
    )


def _write(
    backend: Store,
    counts: xr.DataArray,
    path: str | None,
    description: dict[str, Any],
    attributes: dict[str, Any],
    compression: str | None,
) -> None:
    named = [*DIMS, *(n for n in (VALID_PIXELS, VALID_PATTERNS) if n in counts.coords)]
    coords = {n: counts.coords[n].variable for n in named}
    dtype = counts.dtype.newbyteorder("=")
    array = stores.create(backend, stores.to_json(attributes), counts.shape, dtype, COMPRESSIONS[compression], coords)
    _sweep_partial(backend)
    source = source_of(counts.data)
    job = _Job(array, source, path, description, valid_patterns(counts), valid_pixels(counts))
    pending = [s for s in array.shards() if not _is_written(job, s)]
    if isinstance(source, InMemory):
        # Counts in memory stay where they are: no copy travels to a cluster.
        dask.compute(*(dask.delayed(_convert_shard, pure=False)(_Here(job), s) for s in pending), scheduler="threads")
    elif source is not None:
        shared = dask.delayed(job, pure=False, traverse=False)
        dask.compute(*(dask.delayed(_convert_shard, pure=False)(shared, s) for s in pending))
    else:
        shards = tuple(tuple(min(s, n - i) for i in range(0, n, s)) for s, n in zip(array.shard, array.shape, strict=True))
        parts = counts.data.rechunk(shards).to_delayed()
        shared = dask.delayed(job, pure=False, traverse=False)
        dask.compute(*(dask.delayed(_convert_shard, pure=False)(shared, s, parts[s]) for s in pending))
    _complete(backend, job)


@dataclass(frozen=True)
class _Here:
    """Keeps dask from looking into a job that holds an array."""

    job: _Job


def _convert_shard(job: _Job | _Here, shard: tuple[int, ...], block: np.ndarray | None = None) -> int:
    """Read, sum, encode and write one shard; its sums are on disk before it is. Gives the bytes written."""
    job = job.job if isinstance(job, _Here) else job
    array = job.array
    window = array.window(shard)
    if block is None:
        assert job.source is not None
        if job.source_path is not None:
            _check_unchanged(job.source_path, job.source_identity)
        block = job.source.read(window[0].start, window[0].stop, window[1].start, window[1].stop)
    used = None if job.used is None else job.used[window[:2]]
    moments = job.moments
    state = moments.start((window[0], window[1]), used, None)
    maximum = np.zeros(array.shape[2:], array.dtype)
    totals = np.zeros(block.shape[:2], np.uint64 if array.dtype.kind in "ub" else np.float64)

    def visit(chunk: InnerChunk) -> None:
        y, x = (slice(s.start - w.start, s.stop - w.start) for s, w in zip((chunk.y, chunk.x), window, strict=False))
        counts = np.ascontiguousarray(chunk.counts)
        moments.add(state, Block(chunk.y, chunk.x, chunk.ky, chunk.kx, counts), None if used is None else used[y, x], None)
        np.maximum(maximum[chunk.ky, chunk.kx], counts.max((0, 1)), out=maximum[chunk.ky, chunk.kx])
        totals[y, x] += stores.pattern_totals(counts, None if job.valid is None else job.valid[chunk.ky, chunk.kx])

    data = array.encode_shard(shard, block, visit)
    sums = {**moments.finish(state), "maximum": maximum, "pattern_totals": totals, "stored_bytes": len(data)}
    try:
        stores.durable_put(array.store, job.sidecar(shard), _pack(sums))
        put(array.store, array.key(shard), data)
    except OSError as error:
        raise _explained(error, str(array.store)) from error
    return len(data)


def _check_unchanged(path: str, expected: dict[str, Any]) -> None:
    found = identity(path)
    if any(found[k] != expected[k] for k in ("size", "modified")):
        raise SourceError(
            f"{path} changed while it was converted ({found['size']} bytes of {found['modified']}; it was {expected['size']} bytes "
            f"of {expected['modified']}); convert it anew with overwrite."
        )


def _is_written(job: _Job, shard: tuple[int, ...]) -> bool:
    """Whether a shard and its sums are whole."""
    sums = _read_sums(job, shard)
    return sums is not None and stores.object_size(job.array.store, job.array.key(shard)) == int(sums["stored_bytes"])


def _read_sums(job: _Job, shard: tuple[int, ...]) -> State | None:
    from .shards import get

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


def _complete(backend: Store, job: _Job) -> None:
    """Merge the sums of all shards, write the statistics, say that the store is complete, and clean up."""
    array, moments = job.array, job.moments
    totals = np.zeros(array.shape[:2], np.uint64 if array.dtype.kind in "ub" else np.float64)
    maximum = np.zeros(array.shape[2:], array.dtype)
    states = []
    for shard in array.shards():
        sums = _read_sums(job, shard)
        size = stores.object_size(array.store, array.key(shard))
        if sums is None or size != int(sums["stored_bytes"]):
            raise CorruptStoreError(
                f"The {array.describe(shard)} is not there as it was written ({size} bytes); run the conversion again to "
                "write it anew."
            )
        totals[array.window(shard)[:2]] = sums.pop("pattern_totals")
        np.maximum(maximum, sums.pop("maximum"), out=maximum)
        states = [reduce(moments.merge, [*states, sums])] if sums["n"] else states
    mean, variance, _ = moments.mean_variance_cross(states[0])
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        bad = ~(np.isfinite(mean) & np.isfinite(variance))
        mean, variance = np.where(bad, 0.0, mean), np.where(bad, 0.0, variance)
    group = zarr.open_group(backend, mode="r+", use_consolidated=False)
    for name, dims, values, units, long_name in (
        ("pattern_mean", DETECTOR, mean, "counts", "mean pattern (PACBED)"),
        ("pattern_variance", DETECTOR, variance, "counts^2", "variance over the scan"),
        ("pattern_maximum", DETECTOR, maximum, "counts", "maximum over the scan"),
        ("total_counts", SCAN, totals, "counts", "sum of each pattern over its valid pixels"),
    ):
        stores.write_variable(group, name, xr.Variable(dims, values, {"units": units, "long_name": long_name}))
    stores.consolidate(backend)
    stores.update_attributes(backend, {"state": "complete"})
    _sweep(backend)


def _sweep(backend: Store) -> None:
    """Remove what only an unfinished conversion needs."""
    sync(backend.delete_dir(SIDECARS))
    if isinstance(backend, LocalStore):
        shutil.rmtree(Path(backend.root) / SIDECARS, ignore_errors=True)
    _sweep_partial(backend)


def _sweep_partial(backend: Store) -> None:
    """Remove temporary files of a writer that was killed."""
    if isinstance(backend, LocalStore):
        for path in Path(backend.root).rglob("*.partial"):
            path.unlink(missing_ok=True)


def _explained(error: OSError, name: str) -> OSError:
    """An operating system's error as one sentence; errors of this package pass unchanged."""
    if isinstance(error, (StoreError, SourceError)):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"The disk of {name} is full ({error.strerror}); what was written is kept: free space, and the same convert goes on."
        )
    return StoreError(f"{name} cannot be written: {error}.")
