"""The store: one zarr 3 group per scan, sharded counts with their axes, statistics, and what is known about them."""

from __future__ import annotations

import json
import math
import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store

from ..axes import (
    DESCAN,
    DIMS,
    FINDINGS,
    VALID_PATTERNS,
    VALID_PIXELS,
    axis_coordinate,
    label_counts,
    missing_calibration,
)
from ..errors import CorruptStoreError, IncompleteStoreError, StoreError
from ..kernels.exact_sums import pattern_sums
from ..shards.codec import Codec
from ..shards.objects import StoreLike, delete_folder, name_of, reason_of, resolve, to_json, writing
from ..shards.shapes import choose_shards, follow_tiles
from ..shards.sharded_array import EMPTY, ShardedArray, sharded_array
from .blocks import Block, Shards, Source, StoredBlock, ZarrArray
from .lazy import as_dask, source_of

SCHEMA = 1
KEY = "tdm_dask"
COUNTS = "counts"
STATISTICS = ("pattern_mean", "pattern_variance", "total_counts")
# The valid flags that the statistics of a store were gathered with; a calibration may change the flags themselves.
GATHERED = {name: f"{name}_gathered" for name in (VALID_PIXELS, VALID_PATTERNS)}
# Source sums of each written shard, until the store is complete.
SIDECARS = "tdm_dask_progress"
# Everything that this package writes at the top of a store.
MEMBERS = (COUNTS, *DIMS, *GATHERED, *GATHERED.values(), *DESCAN, *STATISTICS, "pattern_maximum", SIDECARS)
# Facts of the acquisition and calibration that are kept with the counts and handed out as their attributes.
FACTS = (
    "energy_eV", "semi_angle_mrad", "pixel_size_mrad", "rotation_deg", "transpose", "flip", "counts_per_electron",
    "dwell_time_s", "beam_current_A", "electrons_per_probe", "electrons_per_square_angstrom", "calibration_history",
    "bf_disk_centre_px", "bf_disk_radius_px", "truth",
)  # fmt: skip


def is_store(path: Any) -> bool:
    """Whether a path or store object holds a zarr 3 group that is no other program's (local paths are only looked at).

    A folder of another program has arrays of other names than `counts`, or is an array itself.
    """
    if isinstance(path, Store):
        return True
    text = os.fspath(path)
    if "://" in text:
        return True
    folder = Path(text)
    try:
        top = json.loads((folder / "zarr.json").read_text("utf-8"))
    except (OSError, ValueError):
        return (folder / "zarr.json").is_file()
    if top.get("node_type") == "array":
        return len(top.get("shape", ())) < 4
    ours = KEY in top.get("attributes", {}) or (folder / COUNTS).is_dir()
    return ours or not any((member / "zarr.json").is_file() for member in folder.iterdir())


def read_attributes(store: Store) -> dict[str, Any] | None:
    """The `tdm_dask` mapping of a store, or None where there is no store of this package."""
    try:
        group = zarr.open_group(store, mode="r", zarr_format=3)
    except (FileNotFoundError, KeyError, ValueError):
        return None
    attributes = group.attrs.get(KEY)
    return dict(attributes) if isinstance(attributes, dict) else None


def is_complete(store: StoreLike) -> bool:
    """Whether there is a store of this package whose conversion has finished."""
    found = read_attributes(resolve(store))
    return found is not None and found.get("state") == "complete"


def open_store(store: StoreLike) -> xr.DataArray:
    """Lazy labelled counts of a finished store; reads metadata and coordinates alone.

    Any zarr 3 group with a 4D array `counts` is accepted; one that this package wrote must be complete.

    Raises
    ------
    StoreError
        If there is no such group or array.
    IncompleteStoreError
        If the conversion that writes it has not finished.
    """
    backend = resolve(store)
    try:
        group = zarr.open_group(backend, mode="r", zarr_format=3)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise StoreError(
            f"{name_of(store)} is not a zarr group ({error}); expected a store written by tdm convert."
        ) from None
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"{name_of(store)} cannot be read ({reason_of(error)}); check the path and its permissions."
        ) from None
    found: Any = group.attrs.get(KEY)
    attributes: dict[str, Any] = dict(found) if isinstance(found, dict) else {}
    if attributes.get("state", "complete") != "complete":
        raise IncompleteStoreError(
            f"The conversion into {name_of(store)} did not finish; run the same tdm convert again, and it goes on "
            "where it stopped."
        )
    schema = attributes.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise StoreError(
            f"{name_of(store)} has schema version {schema}, this package reads up to {SCHEMA}; update tdm_dask."
        )
    array = group.get(COUNTS)
    if not isinstance(array, zarr.Array) or array.ndim != 4:
        raise StoreError(f'{name_of(store)} has no 4D array "{COUNTS}"; expected a store written by tdm convert.')
    token = str(attributes.get("id") or f"{backend}/{array.path}/{array.metadata.to_dict()}")
    sharded = sharded_array(array)
    source: Source = ZarrArray(array, token) if sharded is None else Shards(sharded, token)
    coords: dict[str, Any] = {}
    for dim, size in zip(DIMS, array.shape, strict=True):
        stored = _read_variable(group, dim)
        _check_axis(name_of(store), dim, size, stored, converted="source" in attributes)
        coords[dim] = axis_coordinate(dim, size) if stored is None else stored
    for name in (VALID_PIXELS, VALID_PATTERNS):
        flags = _read_variable(group, name)
        if flags is not None:
            coords[name] = flags.astype(bool)
    for name in DESCAN:
        shifts = _read_variable(group, name)
        if shifts is not None:
            coords[name] = shifts
    facts = {k: v for k, v in attributes.get("acquisition", {}).items() if k in FACTS}
    if "source" in attributes:
        facts["source"] = source_name(attributes)
    counts = label_counts(as_dask(source), coords, facts)
    findings = [*_findings(attributes), *missing_calibration(counts)]
    return counts.assign_attrs({FINDINGS: findings}) if findings else counts


def _check_axis(store: str, dim: str, size: int, axis: xr.Variable | None, *, converted: bool) -> None:
    """Raise where a store has lost an axis: what zarr does not find of an array, it reads as zeros."""
    if axis is None:
        lost = converted
    else:
        lost = axis.shape != (size,) or (size > 1 and not np.diff(axis.values.astype(np.float64)).all())
    if lost:
        raise StoreError(
            f"The axis {dim} of {store} is missing or not of {size} different values, as where a part of the store is "
            "lost; copy it again, or convert its source again with overwrite=True."
        )


def source_name(attributes: Mapping[str, Any]) -> str:
    """Name of the file that a store was converted from, as its attributes say."""
    source = attributes.get("source")
    return str(source.get("name")) if isinstance(source, Mapping) else "something unknown"


def _read_variable(group: zarr.Group, name: str) -> xr.Variable | None:
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        return None
    dims = getattr(array.metadata, "dimension_names", None) or DIMS[: array.ndim]
    attrs = {k: v for k, v in array.attrs.items() if not k.startswith("_")}
    return xr.Variable(dims, np.asarray(array[...]), attrs)


def write_variable(group: zarr.Group, name: str, variable: xr.Variable) -> None:
    """Write a small labelled array (a coordinate, a statistic) into a store, in place of an older one."""
    group.create_array(
        name,
        data=np.asarray(variable.values),
        dimension_names=[str(d) for d in variable.dims],
        attributes=dict(variable.attrs),
        fill_value=0,
        overwrite=True,
    )


def create(
    backend: Store,
    attributes: dict[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    codec: Codec,
    coords: dict[str, xr.Variable],
    tile: tuple[int, int] = (1, 1),
    shard_bytes: int | None = None,
) -> ShardedArray:
    """Make the frame of a store (attributes, coordinates, an empty `counts`), or find it, ready for shards.

    The shards are made to suit a source that is read in tiles (y, x) of the scan, and hold at most `shard_bytes`.
    """
    group = zarr.open_group(backend, mode="a", zarr_format=3, attributes={KEY: attributes}, use_consolidated=False)
    for name, variable in coords.items():
        write_variable(group, name, variable)
    array = group.get(COUNTS)
    if not isinstance(array, zarr.Array):
        largest = {} if shard_bytes is None else {"shard_bytes": shard_bytes}
        inner, shard = follow_tiles(*choose_shards(shape, dtype.itemsize, **largest), shape, tile)
        array = group.create_array(
            COUNTS,
            shape=shape,
            dtype=dtype,
            chunks=inner,
            shards=shard,
            compressors=codec.for_chunks(math.prod(inner) * dtype.itemsize).in_zarr() or None,
            fill_value=0,
            dimension_names=list(DIMS),
            attributes={"units": "counts", "long_name": "detector counts"},
        )
    sharded = sharded_array(array)
    if sharded is None:
        raise StoreError(f"{backend} holds counts of another layout; convert to another path or with overwrite=True.")
    return sharded


def new_id() -> str:
    return uuid.uuid4().hex


def update_attributes(backend: Store, changes: dict[str, Any]) -> None:
    """Change entries of the `tdm_dask` mapping, in one write; metadata that was gathered stays so."""
    group = zarr.open_group(backend, mode="r+")
    group.update_attributes({KEY: {**group.attrs.get(KEY, {}), **changes}})  # type: ignore[dict-item]


def consolidate(backend: Store) -> None:
    """Gather all metadata in the group's own, so that plain `xarray.open_zarr` opens the store in one request."""
    with warnings.catch_warnings():
        # zarr warns that other readers may ignore what is gathered; they lose nothing by it.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(backend, zarr_format=3)


def write_calibration(store: StoreLike, counts: xr.DataArray) -> None:
    """Write the coordinates, valid flags, descan and acquisition facts of calibrated counts back into their store.

    The counts themselves are not touched. Counts without descan leave what the store has; see `clear_descan`.

    Raises
    ------
    StoreError
        If the store is not writable, not of this package, or holds counts of another shape.
    """
    backend = resolve(store, read_only=False)
    attributes = read_attributes(backend)
    if attributes is None:
        raise StoreError(f"{name_of(store)} is not a store written by this package; convert it first.")
    group = zarr.open_group(backend, mode="r+", use_consolidated=False)
    shape = group[COUNTS].shape  # type: ignore[union-attr]
    if shape != counts.shape:
        raise StoreError(
            f"{name_of(store)} holds counts of shape {shape}, the calibrated ones have {counts.shape}; use the same."
        )
    facts = {k: to_json(counts.attrs[k]) for k in FACTS if k in counts.attrs}
    with writing(name_of(store)):
        for name in (*DIMS, VALID_PIXELS, VALID_PATTERNS, *DESCAN):
            if name in counts.coords:
                write_variable(group, name, counts.coords[name].variable)
        update_attributes(backend, {"acquisition": {**attributes.get("acquisition", {}), **facts}})
        consolidate(backend)


def clear_descan(store: StoreLike) -> None:
    """Remove the descan of a store; nothing happens where it has none.

    Raises
    ------
    StoreError
        If the store is not writable, or not of this package.
    """
    backend = resolve(store, read_only=False)
    if read_attributes(backend) is None:
        raise StoreError(f"{name_of(store)} is not a store written by this package; convert it first.")
    with writing(name_of(store)):
        for name in DESCAN:
            delete_folder(backend, name)
        consolidate(backend)


def stored_statistics(store: StoreLike) -> xr.Dataset | None:
    """Mean pattern, variance and total counts that were gathered while a store was written.

    None where there are none, where the valid flags are others than those that they were gathered with, or where the
    store has descan, which they know nothing of.
    """
    group = zarr.open_group(resolve(store), mode="r")
    if any(name in group for name in DESCAN):
        return None
    for name, gathered in GATHERED.items():
        now, then = (_unusable(_read_variable(group, n)) for n in (name, gathered))
        if now != then:
            return None
    variables = {n: _read_variable(group, n) for n in STATISTICS}
    if any(v is None for v in variables.values()):
        return None
    flags = _read_variable(group, VALID_PATTERNS)
    if flags is not None:
        variables[VALID_PATTERNS] = flags.astype(bool)
    coords = {d: _read_variable(group, d) for d in DIMS}
    return xr.Dataset(variables, {k: v for k, v in coords.items() if v is not None})


def stored_findings(store: StoreLike) -> list[str]:
    """What was found in a store's source: by its header, and by the sums that were gathered while it was converted."""
    return _findings(read_attributes(resolve(store)) or {})


def _findings(attributes: Mapping[str, Any]) -> list[str]:
    return [*attributes.get("source", {}).get("findings", []), *attributes.get("findings", [])]


def _unusable(flags: xr.Variable | None) -> list[int]:
    """Flat positions of the elements that are not valid."""
    return [] if flags is None else np.flatnonzero(~flags.values.astype(bool)).tolist()


@dataclass(frozen=True)
class Verified:
    """What `verify` read."""

    shards: int
    bytes_stored: int
    bytes_counts: int

    def __str__(self) -> str:
        return (
            f"{self.shards} shards, {self.bytes_stored / 1e6:.1f} MB stored, {self.bytes_counts / 1e6:.1f} MB of "
            "counts: every shard is present, every checksum right, every pattern's sum as converted."
        )


def verify(store: StoreLike) -> Verified:
    """Read a store whole: every shard present, every checksum right, every pattern's sum that of the source.

    Runs on the active dask scheduler, one task for each shard.

    Parameters
    ----------
    store : path, URL or zarr store object
        That `convert` wrote.

    Returns
    -------
    Verified
        How many shards there are, and their bytes, stored and as counts.

    Raises
    ------
    IncompleteStoreError
        If the conversion has not finished.
    CorruptStoreError
        If shards are missing or damaged; the message names them and their probe positions.

    Examples
    --------
    >>> import tempfile
    >>> import tdm_dask as tdm
    >>> store = tempfile.mkdtemp() + "/scan.zarr"
    >>> counts = tdm.convert(tdm.label_counts(np.ones((4, 4, 8, 8), np.uint16)), store)
    >>> found = verify(store)
    >>> found.shards, found.bytes_counts
    (1, 2048)
    """
    counts = open_store(store)
    backend = resolve(store)
    source = source_of(counts.data)
    if not isinstance(source, Shards):
        raise StoreError(
            f"{name_of(store)} has a layout that carries no checksums of this package; convert it to verify it."
        )
    group = zarr.open_group(backend, mode="r")
    stored = (_read_variable(group, name) for name in ("total_counts", GATHERED[VALID_PIXELS]))
    totals, valid = (None if variable is None else variable.values for variable in stored)
    array = source.array
    tasks = [
        dask.delayed(_verify_shard, pure=False)(
            array, shard, None if totals is None else totals[array.window(shard)[:2]], valid
        )
        for shard in array.shards()
    ]
    results = dask.compute(*tasks)
    problems = [r for r in results if isinstance(r, str)]
    if problems:
        raise CorruptStoreError(f"{len(problems)} of {len(results)} shards are damaged: {shards_in_words(problems)}.")
    return Verified(len(results), sum(results), counts.size * counts.dtype.itemsize)


def _verify_shard(
    array: ShardedArray, shard: tuple[int, ...], totals: np.ndarray | None, valid: np.ndarray | None
) -> int | str:
    """Stored bytes of a shard that is whole, or a sentence that says what is wrong with it."""
    window = array.window(shard)
    sums = None if totals is None else np.zeros(totals.shape, totals.dtype)
    try:
        with closing(array.read_shard(shard)) as chunks:
            for chunk in chunks:
                if sums is not None:
                    places = zip((chunk.y, chunk.x), window, strict=False)
                    y, x = (slice(s.start - w.start, s.stop - w.start) for s, w in places)
                    sums[y, x] += _totals(StoredBlock(chunk, chunk.y, chunk.x), valid)
        index = array.read_index(shard)
    except CorruptStoreError as error:
        return str(error)
    except StoreError:
        raise  # it is the server that does not answer, and the shard may be whole
    except OSError as error:
        return f"The {array.describe(shard)} cannot be read ({reason_of(error)})."
    lengths = index[..., 1][array.overlapping(shard) & (index[..., 1] != EMPTY)]
    if sums is not None and totals is not None and not same_sums(sums, totals):
        return (
            f"The {array.describe(shard)} holds counts that differ from the source's sums; convert the source "
            "again with overwrite=True."
        )
    return int(lengths.sum()) + array.index_bytes


def _totals(block: Block, valid: np.ndarray | None) -> np.ndarray:
    """Sum of each pattern (y, x) of a block over its valid pixels, in whatever order these have been decoded."""
    tile = block.tile
    flags = np.ones(tile.shape, bool) if valid is None else valid[tile.ky, tile.kx]
    columns = tile.columns(flags)
    matrix = block.matrix.reshape(*block.shape, 1, tile.width)
    return pattern_totals(matrix, None if columns.all() else columns)


def same_sums(found: Any, expected: Any) -> bool:
    """Whether two sums over the same counts are equal: integers exactly, others to rounding; NaN equals NaN."""
    found, expected = np.asarray(found), np.asarray(expected)
    if expected.dtype.kind != "f":
        return np.array_equal(found, expected)
    # Where large counts cancel, what is left of them is rounding of the large ones.
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return np.allclose(found, expected, rtol=1e-9, atol=1e-12 * float(largest), equal_nan=True)


def shards_in_words(problems: Sequence[str]) -> str:
    """The first of several shards that are damaged, and how many more there are."""
    shown = "; ".join(p.rstrip(".") for p in problems[:5])
    return shown + (f" (and {len(problems) - 5} more)" if len(problems) > 5 else "")


def pattern_totals(counts: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Sum of each pattern (y, x) over its valid pixels: uint64 for unsigned integers and booleans, else float64."""
    ny, nx, nky, nkx = counts.shape
    matrix = counts.reshape(ny * nx, nky * nkx)
    if valid is not None:
        matrix = matrix[:, valid.ravel()]
    if matrix.dtype.kind not in "ub":
        return matrix.sum(1, dtype=np.float64).reshape(ny, nx)
    totals = np.zeros(ny * nx, np.uint64)
    pattern_sums(np.ascontiguousarray(matrix), totals)
    return totals.reshape(ny, nx)
