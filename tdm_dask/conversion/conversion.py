"""From a vendor's file, or any counts, to a store: shard by shard, with statistics, resumable at any time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr
from crc32c import crc32c
from zarr.abc.store import Store
from zarr.storage import LocalStore

from ..axes import (
    DESCAN,
    DETECTOR,
    DIMS,
    FINDINGS,
    SCAN,
    VALID_PATTERNS,
    VALID_PIXELS,
    axis_coordinate,
    check_counts,
    missing_calibration,
    quantity_pair,
)
from ..counts.opening import label_vendor, warn_of_doubts
from ..counts.regions import crop as crop_counts
from ..counts.statistics import flagged_pixels, valid_patterns, valid_pixels
from ..errors import CorruptStoreError, CountsError, InputError, StoreError
from ..passes.reductions import State
from ..reading import store as stores
from ..reading.blocks import Crop, InMemory, Shards, ZarrArray
from ..reading.lazy import source_of
from ..reading.store import SIDECARS, is_store
from ..reading.tasks import DataNode
from ..reading.thinned import Thinned
from ..shards.codec import COMPRESSIONS
from ..shards.objects import StoreLike, ahead, delete, delete_folder, list_keys, name_of, resolve, to_json, writing
from ..sources.faults import faults, without_nan
from ..sources.formats.registry import open_vendor
from ..sources.repeats import repeated
from ..sources.vendor import same_file
from .job import (
    Job,
    check_shard,
    check_unchanged,
    convert_shards,
    is_written,
    lowest,
    read_sums,
    read_together,
    tile_of,
)
from .sampling import check_space

# The arguments that say how a file is read.
_LAYOUT = tuple(name for name in inspect.signature(open_vendor).parameters if name not in ("path", "frame"))
# Temporary files of this package and of zarr, which a writer that was killed leaves behind.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
# Small objects of one store that are read at a time, since each takes its time to arrive from a server.
REQUESTS = 8


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
    flyback: int = 0,
    skip_first: int | None = None,
    allow_partial: bool = False,
    detector_first: bool | None = None,
    format: Any = None,
    compression: str | None = "lz4",
    resume: bool = True,
    overwrite: bool = False,
) -> xr.DataArray:
    """Write a scan into a store, and open it. This reads the whole source, once, on the active dask scheduler.

    The mean pattern, its variance and every pattern's total are gathered in the same read. At the end every shard is
    read back from the store, and its sums (each pixel's sum, sum of squares and maximum, each pattern's total) are
    compared with those of the source. A conversion that was interrupted, at any moment, goes on where it stopped when
    it is called again; until then the store is refused.

    Parameters
    ----------
    source : path, URL or DataArray
        A vendor's file, the address of a store, or labelled counts: in memory, of an opened file or store, or any lazy
        expression.
    store : path, URL or zarr store object
        Where to write.
    scan_shape, frame, detector_shape, dtype, offset, gap, flyback, skip_first, allow_partial, detector_first, format
        As in `open`; `convert_stack` converts every frame. Probe positions without a frame are marked in the store and
        left out of every statistic.
    scan_step : float, str or (y, x) pair, optional
        Angstrom; goes before what the file says.
    pixel_size : float, str or (y, x) pair, optional
        Mrad; goes before what the file says. It is noted for `calibrate`, which finds the optic axis.
    crop : dict of slices, optional
        As for `crop`: the part to convert.
    compression : {"lz4", "zstd", "none"}, default "lz4"
        "lz4" reads and writes fastest; "zstd" takes less room, and less time on slow disks (see "Speed" in the
        documentation); both after bitshuffle. "none", or None, takes most room and is not faster. Checksums with all.
    resume : bool, default True
        Go on with an unfinished conversion of the same source; else an unfinished store is an error.
    overwrite : bool, default False
        Replace a store of this package that holds something else. Other files beside it are left alone.

    Returns
    -------
    DataArray
        What `open(store)` gives.

    Raises
    ------
    SourceError
        If the source cannot be read, or changed while it was converted.
    StoreError
        If there is something else at `store`, it is the source itself, or it cannot be written.
    DiskFullError
        If the disk is full; free space and call again.
    CorruptStoreError
        If shards read back differ from the source; they are removed, and the next call writes them anew.
    ScanShapeError, InputError
        If the request does not fit the source.
    FormatError
        If a format of your own fails, or several claim the source.

    Examples
    --------
    >>> import tempfile
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.ones((4, 4, 8, 8), np.uint16))
    >>> convert(counts, tempfile.mkdtemp() + "/scan.zarr").sum().compute().item()
    1024
    """
    compression = None if compression == "none" else compression
    if compression not in COMPRESSIONS:
        raise InputError(f'The compression is {compression!r}; expected one of "lz4", "zstd" and "none".')
    layout = {"scan_shape": scan_shape, "frame": frame, "detector_shape": detector_shape, "dtype": dtype}
    layout |= {"offset": offset or None, "gap": gap or None}
    trim: dict[str, Any] = {"flyback": flyback or None, "skip_first": skip_first, "detector_first": detector_first}
    trim |= {"allow_partial": allow_partial or None}
    trim = {name: value for name, value in trim.items() if value is not None}
    layout |= trim
    given = {name: value for name, value in (layout | {"format": format}).items() if value is not None}
    metadata: dict[str, Any] = {}
    if not isinstance(source, xr.DataArray) and ("://" in os.fspath(source) or (format is None and is_store(source))):
        source = stores.open_store(source)
    paths: tuple[str, ...] = ()
    if isinstance(source, xr.DataArray):
        if given:
            name, value = min(given.items(), key=lambda one: one[0])
            said = repr(value) if isinstance(value, str | int | float | tuple | list) else "..."
            raise InputError(f"{name}={said} describes a file, but counts or a store were given; leave it out.")
        counts = check_counts(source)
        name = str(source.attrs.get("source", "counts in memory"))
        known = [found for found in source.attrs.get(FINDINGS, ()) if found not in missing_calibration(source)]
        if next(_stores_read(counts.data), None) is not None:
            known = []  # they name places of that store, and what is in this one will be found
        description = {"name": name, "reader": "xarray", "findings": known, **_fingerprint(counts.data)}
    else:
        file = open_vendor(source, **given)
        warn_of_doubts(file)
        counts, paths = label_vendor(file), (file.data_path, *file.linked)
        findings = [*file.doubts, *file.findings]
        description = {**file.identity, "reader": file.reader, "frame": frame, "findings": findings}
        metadata = file.metadata
        if file.format:  # another one may give other counts
            trim["format"] = file.format
    if counts.dtype.kind == "f" and counts.dtype.itemsize not in (4, 8):
        raise CountsError(f"The counts have dtype {counts.dtype}; convert them to float32 or float64 first.")
    whole_shape = counts.shape
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
    valid_patterns(counts), valid_pixels(counts)  # raise where nothing is valid, before anything is written
    facts = {k: counts.attrs[k] for k in stores.FACTS if k in counts.attrs}
    attributes = to_json(
        {
            "schema": stores.SCHEMA,
            "state": "writing",
            "id": stores.new_id(),
            "source": description,
            "request": {
                "shape": counts.shape,
                "dtype": str(counts.dtype.newbyteorder("=")),
                "compression": compression,
                "crop": {d: [s.start, s.stop] for d, s in crop.items()} if crop else None,
                "whole": whole_shape,
                "layout": {
                    "dtype": None if dtype is None else np.dtype(dtype).str,
                    "offset": offset,
                    "gap": gap,
                    **trim,
                },
                "labels": _digest(counts, attrs if paths else facts),
            },
            "versions": {p: importlib.metadata.version(p) for p in ("tdm-dask", "zarr", "numcodecs", "rosettasciio")},
            "acquisition": facts,
            "vendor_metadata": metadata,
        }
    )
    backend = resolve(store, read_only=False)
    with writing(name_of(store)):
        if any(_lies_in(path, backend) for path in paths):
            raise StoreError(f"{name_of(store)} is where the counts themselves come from; convert to another path.")
        if not _prepare(backend, counts.data, name_of(store), attributes, resume, overwrite):
            _write(backend, counts, paths, attributes)
    return stores.open_store(backend if isinstance(store, Store) else store)


def convert_stack(source: str | os.PathLike[str], store: str | os.PathLike[str], **options: Any) -> list[xr.DataArray]:
    """Write every scan of a file that holds several (a time or focal series) into a store of its own.

    Scan by scan, as `convert` with ``frame=0``, ``frame=1``, ... does it: what was finished is not done again when the
    same call is repeated.

    Parameters
    ----------
    source : path
        A vendor's file.
    store : path or URL
        Where to write: of "series.zarr" the stores are "series-0.zarr", "series-1.zarr", ..., with as many digits as
        the last one needs.
    **options
        As for `convert`, for every scan.

    Returns
    -------
    list of DataArray
        What `open` gives of each store, in the order of the scans.

    Raises
    ------
    InputError
        If `frame` is among the options.
    SourceError, StoreError, DiskFullError, ScanShapeError
        As for `convert`.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "series.npy", np.ones((3, 4, 4, 8, 8), np.uint16))
    >>> [scan.attrs["source"] for scan in convert_stack(folder / "series.npy", folder / "series.zarr")]
    ['series.npy', 'series.npy', 'series.npy']
    >>> sorted(path.name for path in folder.glob("*.zarr"))
    ['series-0.zarr', 'series-1.zarr', 'series-2.zarr']
    """
    if options.get("frame") is not None:
        raise InputError(f"frame={options['frame']} picks one scan, but all are to be converted; leave it out.")
    layout = {name: options[name] for name in _LAYOUT if name in options}
    paths = stack_stores(store, open_vendor(source, **layout, frame=0).scans)
    return [convert(source, path, **options | {"frame": frame}) for frame, path in enumerate(paths)]


def stack_stores(store: str | os.PathLike[str], n: int) -> list[str]:
    """The paths of the stores of n scans, by that which was given for all.

    Examples
    --------
    >>> stack_stores("s3://bucket/series.zarr", 2), stack_stores("a.b/series", 11)[10]
    (['s3://bucket/series-0.zarr', 's3://bucket/series-1.zarr'], 'a.b/series-10')
    """
    stem, suffix = os.path.splitext(os.fspath(store))
    return [f"{stem}-{frame:0{len(str(n - 1))}d}{suffix}" for frame in range(n)]


def _fingerprint(data: Any) -> dict[str, Any]:
    """What tells counts that are not a file from others: a checksum, or the name of their dask graph."""
    if not isinstance(data, np.ndarray):
        return {"graph": data.name}
    checksum = 0
    for line in data:
        native = np.ascontiguousarray(line, data.dtype.newbyteorder("="))
        checksum = crc32c(native.reshape(-1).view(np.uint8).data, checksum)
    return {"crc32c": checksum}


def _digest(counts: xr.DataArray, facts: Mapping[str, Any]) -> str:
    """A checksum of the axes, flags and facts that go into a store with its counts."""
    digest = hashlib.sha256(repr(sorted(to_json(dict(facts)).items())).encode())
    for name, variable in _labels(counts).items():
        digest.update(f"{name}{variable.dims}{variable.attrs.get('units')}".encode())
        digest.update(np.ascontiguousarray(variable.values).tobytes())
    return digest.hexdigest()


def _labels(counts: xr.DataArray) -> dict[str, xr.Variable]:
    """Coordinates of the counts that a store keeps."""
    names = (*DIMS, VALID_PIXELS, VALID_PATTERNS, *DESCAN)
    return {n: counts.coords[n].variable for n in names if n in counts.coords}


def _prepare(backend: Store, data: Any, name: str, attributes: dict[str, Any], resume: bool, overwrite: bool) -> bool:
    """Make a store ready to be written, whatever is there already; True where the very conversion is finished."""
    if isinstance(backend, LocalStore) and Path(backend.root).is_file():
        raise StoreError(f"{name} is a file; expected a new path, for a store is a folder.")
    found = stores.read_attributes(backend)
    if found is None:
        if not all(_PARTIAL.search(key) for key in list_keys(backend, "")):
            raise StoreError(
                f"{name} exists and is not a store of this package; choose another path or remove it yourself."
            )
        return False
    same = _same(found, attributes)
    complete = found.get("state") == "complete"
    if same and complete and not overwrite:
        _sweep(backend)
        return True
    if any(_same_place(place, backend) for place in _stores_read(data)):
        raise StoreError(f"{name} is where the counts themselves come from; convert to another path.")
    if same and not complete and resume and not overwrite:
        return False
    if overwrite:
        # Refused by `open` from here on; what follows may be interrupted anywhere.
        stores.update_attributes(backend, {"state": "writing"})
        for member in stores.MEMBERS:
            delete_folder(backend, member)
        _sweep(backend)
        stores.update_attributes(backend, attributes)
        return False
    what, other = stores.source_name(found), _difference(found, attributes)
    if complete:
        raise StoreError(
            f'{name} already holds "{what}", converted from another file or in another way ({other}); choose another '
            "path, or replace it with overwrite=True."
        )
    if same:
        raise StoreError(
            f"{name} holds an unfinished conversion; go on with it with resume=True, or replace it with overwrite=True."
        )
    raise StoreError(
        f'{name} holds an unfinished conversion of another file, or of "{what}" as it was before or in another way '
        f"({other}); convert as before to go on with it, or replace it with overwrite=True."
    )


def _same(found: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
    """Whether two conversions give the same store. A newer reader does not make them differ."""
    return _same_source(found, attributes) and found.get("request") == attributes.get("request")


def _same_source(found: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
    def source(of: Mapping[str, Any]) -> dict[str, Any]:
        known = of.get("source")
        given = known if isinstance(known, Mapping) else {}
        return {key: value for key, value in given.items() if key not in ("reader", "findings")}

    return same_file(source(found), source(attributes))


# What a request may differ in, in words.
_ASKED = {
    "shape": "shape",
    "dtype": "dtype",
    "compression": "compression",
    "crop": "crop",
    "whole": "shape of the file",
    "layout": "layout of the file",
}


def _difference(found: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    """In what two conversions that do not give the same store differ."""
    if not _same_source(found, attributes):
        return "its file has another name, size, time or content"
    before, now = (of.get("request") or {} for of in (found, attributes))
    words = [
        f"{word} {_shown(before.get(key))} instead of {_shown(now.get(key))}"
        for key, word in _ASKED.items()
        if before.get(key) != now.get(key)
    ]
    if before.get("labels") != now.get("labels"):
        words.append("with another calibration, such as the scan step")
    return ", ".join(words)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _stores_read(data: Any) -> Iterator[Store]:
    """The stores that a dask expression of opened counts reads."""
    for name, layer in {} if isinstance(data, np.ndarray) else data.dask.layers.items():
        node = layer.get(f"source-{name}") if name.startswith("counts-") else None
        source = node.value if isinstance(node, DataNode) else None
        while isinstance(source, Crop | Thinned):
            source = source.source
        if isinstance(source, Shards | ZarrArray):
            yield source.array.store


def _same_place(first: Store, second: Store) -> bool:
    if isinstance(first, LocalStore) and isinstance(second, LocalStore):
        return Path(first.root).resolve() == Path(second.root).resolve()
    return first == second


def _lies_in(path: str, store: Store) -> bool:
    return isinstance(store, LocalStore) and Path(path).resolve().is_relative_to(Path(store.root).resolve())


def _write(backend: Store, counts: xr.DataArray, paths: tuple[str, ...], attributes: dict[str, Any]) -> None:
    codec = COMPRESSIONS[attributes["request"]["compression"]]
    dtype = counts.dtype.newbyteorder("=")
    source = source_of(counts.data)
    shard_bytes = None if source is None else source.shard_bytes
    array = stores.create(
        backend, attributes, counts.shape, dtype, codec, _labels(counts), tile_of(source), shard_bytes
    )
    _sweep_partial(backend)
    path = paths[0] if paths else None
    job = Job(array, source, path, attributes["source"], valid_patterns(counts), flagged_pixels(counts), paths[1:])
    begun = set(list_keys(backend, SIDECARS))
    resumed = [s for s in array.shards() if job.sidecar(s) in begun]
    whole = dict(zip(resumed, ahead([partial(is_written, job, s) for s in resumed], REQUESTS), strict=True))
    pending = [s for s in array.shards() if not whole.get(s, False)]
    if isinstance(backend, LocalStore):
        check_space(Path(backend.root), array, pending, source)
    convert_task, check_task = (dask.delayed(task, pure=False) for task in (convert_shards, check_shard))
    shared: Any = dask.delayed(job, pure=False, traverse=False)
    # Counts in memory stay where they are: no copy travels to a cluster.
    scheduler = {"scheduler": "threads"} if isinstance(source, InMemory) else {}
    if source is not None:
        written = [convert_task(shared, group) for group in read_together(job, pending)]
    else:
        shards = tuple(
            tuple(min(s, n - i) for i in range(0, n, s)) for s, n in zip(array.shard, array.shape, strict=True)
        )
        parts = counts.data.rechunk(shards).to_delayed()
        written = [convert_task(shared, [s], parts[s]) for s in pending]
    # Nothing is read back before all is written; in one graph, so that progress is that of both.
    all_written = dask.delayed(len, pure=False)(written)
    checked = dask.compute(*(check_task(shared, s, all_written) for s in array.shards()), **scheduler)
    problems = [problem for problem in checked if problem is not None]
    if problems:
        raise CorruptStoreError(
            f"{len(problems)} of {len(checked)} shards of {backend} did not come back as they were written: "
            f"{stores.shards_in_words(problems)}; they were removed, and the same conversion, called again, writes "
            "them anew."
        )
    _complete(backend, job)


def _complete(backend: Store, job: Job) -> None:
    """Merge the sums of all shards, write the statistics, say that the store is complete, and clean up."""
    array, moments = job.array, job.moments
    totals = np.zeros(array.shape[:2], np.uint64 if array.dtype.kind in "ub" else np.float64)
    maximum = np.full(array.shape[2:], lowest(array.dtype), array.dtype)
    marks = np.zeros(array.shape[:2], np.uint64)
    states: list[State] = []
    shards = list(array.shards())
    for shard, sums in zip(shards, ahead([partial(read_sums, job, s) for s in shards], REQUESTS), strict=True):
        if sums is None:
            raise CorruptStoreError(
                f"The {array.describe(shard)} has lost the sums of its source; call the same conversion again, which "
                "writes it anew."
            )
        totals[array.window(shard)[:2]] = sums.pop("pattern_totals")
        marks[array.window(shard)[:2]] = sums.pop("pattern_marks")
        np.maximum(maximum, sums.pop("maximum"), out=maximum)
        with np.errstate(invalid="ignore"):
            states = [reduce(moments.merge, [*states, sums])] if sums["n"] else states
    check_unchanged(job)
    mean, variance, _ = moments.mean_variance_cross(states[0])
    # NaN stays NaN: a pixel that held some has no mean.
    if job.valid is not None:
        mean, variance = np.where(job.valid, mean, 0.0), np.where(job.valid, variance, 0.0)
        maximum[~job.valid] = 0
    group = zarr.open_group(backend, mode="r+", use_consolidated=False)
    for name, dims, values, units, long_name in (
        ("pattern_mean", DETECTOR, mean, "counts", "mean pattern (PACBED)"),
        ("pattern_variance", DETECTOR, variance, "counts^2", "variance over the scan"),
        ("pattern_maximum", DETECTOR, maximum, "counts", "maximum over the scan"),
        ("total_counts", SCAN, totals, "counts", "sum of each pattern over its valid pixels"),
    ):
        stores.write_variable(group, name, xr.Variable(dims, values, {"units": units, "long_name": long_name}))
    for name, dims, flags in ((VALID_PIXELS, DETECTOR, job.valid), (VALID_PATTERNS, SCAN, job.used)):
        if flags is not None:
            attrs = {"long_name": f"{name} that the statistics were gathered with"}
            stores.write_variable(group, stores.GATHERED[name], xr.Variable(dims, flags, attrs))
    depth = None if job.source is None else job.source.counter_depth
    found = faults(mean, maximum, totals, used=job.used, valid=job.valid, n=int(states[0]["n"]), depth=depth)
    found += repeated(totals, marks, Shards(array, "").read, job.used)
    if job.source_path is not None:  # counts that were given may hold what will not be used
        usable = without_nan(mean, totals, job.valid, job.used)
        for name, dims, flags in zip((VALID_PIXELS, VALID_PATTERNS), (DETECTOR, SCAN), usable, strict=True):
            if flags is not None:
                stores.write_variable(group, name, xr.Variable(dims, flags, {"long_name": f"{name}, without NaN"}))
                found.append(f"What holds NaN or infinity is not valid: {name} leaves it out of every statistic.")
    stores.consolidate(backend)
    stores.update_attributes(backend, {"state": "complete", "findings": found})
    _sweep(backend)


def _sweep(backend: Store) -> None:
    """Remove what only an unfinished conversion needs."""
    delete_folder(backend, SIDECARS)
    _sweep_partial(backend)


def _sweep_partial(backend: Store) -> None:
    """Remove temporary files of a writer that was killed."""
    for key in list_keys(backend, ""):
        if _PARTIAL.search(key):
            delete(backend, key)
