"""Large files whose counts are an array of HDF5 or zarr: chunked or not, in many shapes of chunks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .large_files import POOL_CHUNKS, POOL_FRAMES, LargeFile, Place, large

# HDF5


def _contiguous(group: Any, name: str, shape: Sequence[int], dtype: str = "<u2") -> Any:
    """A dataset whose bytes have their place in the file, a hole until they are written."""
    import h5py

    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(np.dtype(dtype))
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(tuple(shape)), how))


def _fill_contiguous(place: Place, dataset: Any) -> float:
    """Counts for the dense lines of a contiguous dataset (y, x, ky, kx); gives their sum."""
    nx = place.scan[1]
    line = place.pool(POOL_FRAMES, dataset.dtype)[np.arange(nx) % POOL_FRAMES]
    lines = range(place.dense // nx)
    for y in lines:
        dataset[y] = line
    return line.sum(dtype=np.float64) * len(lines)


def _chunked(
    place: Place,
    group: Any,
    name: str,
    shape: Sequence[int],
    chunks: Sequence[int],
    packed: dict[str, Any],
    order: Sequence[int] = (0, 1, 2, 3),
) -> float:
    """A dataset whose chunks are compressed a few times, and written as often as there are chunks; gives the sum.

    Parameters
    ----------
    order : sequence of int
        Where (y, x, ky, kx), or (frame, ky, kx), are among the dataset's dims.
    """
    import h5py

    pool = _chunk_pool(place, chunks, np.dtype("<u2"), order)
    stored = []
    with h5py.File("pool", "w", driver="core", backing_store=False) as scratch:
        for i, block in enumerate(pool):
            one = scratch.create_dataset(str(i), data=block, chunks=tuple(chunks), **packed)
            stored.append(one.id.read_direct_chunk((0,) * len(chunks))[1])
    dataset = group.create_dataset(name, tuple(shape), "<u2", chunks=tuple(chunks), **packed)
    total = 0.0
    for pick, at, counts in _picks(place, shape, pool, order):
        dataset.id.write_direct_chunk(tuple(i * c for i, c in zip(at, chunks, strict=True)), stored[pick])
        total += counts
    return total


def _picks(
    place: Place, shape: Sequence[int], pool: Sequence[np.ndarray], order: Sequence[int]
) -> Iterator[tuple[int, tuple[int, ...], float]]:
    """For each chunk of an array: which of the pool it is, its place in the grid, and the sum of what is inside."""
    chunks = pool[0].shape

    @cache
    def total(pick: int, inside: tuple[int, ...]) -> float:
        return float(pool[pick][tuple(map(slice, inside))].sum(dtype=np.float64))

    for number, at in enumerate(product(*(range(-(-n // c)) for n, c in zip(shape, chunks, strict=True)))):
        start = [i * c for i, c in zip(at, chunks, strict=True)]
        scan = [start[i] for i in order[:-2]]
        frame = scan[0] if len(scan) == 1 else scan[0] * place.scan[1] + scan[1]
        pick = 1 + number % POOL_CHUNKS if place.has_counts(frame) else 0
        yield pick, at, total(pick, tuple(min(c, n - s) for c, n, s in zip(chunks, shape, start, strict=True)))


def _chunk_pool(place: Place, chunks: Sequence[int], dtype: np.dtype, order: Sequence[int]) -> list[np.ndarray]:
    """A chunk of zeros and several of counts, with (y, x, ky, kx), or (frame, ky, kx), as dims `order` of an array."""
    *scan, nky, nkx = (chunks[i] for i in order)
    n = math.prod(scan)
    patterns = place.pool(POOL_FRAMES, dtype)[:, :nky, :nkx]
    blocks = [patterns[(np.arange(n) + 7 * i) % POOL_FRAMES].reshape(*scan, nky, nkx) for i in range(POOL_CHUNKS)]
    return [block.transpose(np.argsort(order)) for block in (np.zeros_like(blocks[0]), *blocks)]


def _hdf5(
    place: Place, name: str, prepare: Callable[[Any], Any], chunks: Sequence[int] | None = None, **packed: Any
) -> LargeFile:
    """An HDF5 file (y, x, ky, kx) in which `prepare` makes the group of a dataset and returns it."""
    import h5py

    path = place.folder / name
    with h5py.File(path, "w", libver="latest") as file:
        group = prepare(file)
        if chunks is None:
            total = _fill_contiguous(place, _contiguous(group, "data", place.shape))
        else:
            total = _chunked(place, group, "data", place.shape, chunks, packed)
    return LargeFile(path, math.prod(place.shape) * 2, total)


def _nexus(file: Any) -> Any:
    group = file.create_group("entry/data")
    group.attrs["NX_class"], group.attrs["signal"] = "NXdata", "data"
    return group


def _emd(file: Any) -> Any:
    group = file.create_group("cube")
    group.attrs["emd_group_type"] = 1
    for i, size in enumerate((4, 4, 4, 4)):
        group[f"dim{i}"] = np.arange(size) * 0.25
    return group


def _bitshuffle() -> dict[str, Any]:
    import hdf5plugin

    return dict(hdf5plugin.Bitshuffle(cname="lz4"))


@large("nexus")
def nexus(place: Place) -> LargeFile:
    """One array that is not chunked."""
    return _hdf5(place, "scan.nxs", _nexus)


@large("nexus-gzip-lines")
def nexus_gzip_lines(place: Place) -> LargeFile:
    """Chunks of a whole line of the scan, gzip."""
    return _hdf5(place, "scan.nxs", _nexus, (1, *place.shape[1:]), compression="gzip", compression_opts=1)


@large("nexus-gzip-long-chunks")
def nexus_long_chunks(place: Place) -> LargeFile:
    """Chunks of two lines, as large as a shard."""
    return _hdf5(place, "scan.nxs", _nexus, (2, *place.shape[1:]), compression="gzip", compression_opts=1)


@large("py4dstem")
def py4dstem(place: Place) -> LargeFile:
    """EMD 1.0, chunks of one pattern, gzip."""
    return _hdf5(place, "scan.h5", _emd, (1, 1, *place.detector), compression="gzip", compression_opts=1)


@large("hdf5-auto-chunks")
def hdf5_auto_chunks(place: Place) -> LargeFile:
    """The chunks that h5py chooses: a part of the scan and of the detector."""
    import h5py

    with h5py.File("guess", "w", driver="core", backing_store=False) as file:
        chunks = file.create_dataset("data", place.shape, "<u2", chunks=True).chunks
    return _hdf5(place, "scan.h5", _emd, chunks, compression="lzf")


@large("hdf5-tall-chunks")
def hdf5_tall_chunks(place: Place) -> LargeFile:
    """Chunks of a few pixels over a large part of the scan."""
    side = [min(n, 64) for n in place.scan]
    detector = [max(1, n // 32) for n in place.detector]
    return _hdf5(place, "scan.h5", _emd, (*side, *detector), compression="lzf")


@large("emd-detector-first")
def emd_detector_first(place: Place) -> LargeFile:
    """EMD 0.x as it is defined: (kx, ky, x, y), not chunked."""
    return _emd_first(place, "scan.emd", None)


@large("de5")
def de5(place: Place) -> LargeFile:
    """The same as a camera of Direct Electron's writes it: one pattern to a chunk."""
    return _emd_first(place, "scan.de5", (*place.detector[::-1], 1, 1))


def _emd_first(place: Place, name: str, chunks: Sequence[int] | None) -> LargeFile:
    import h5py

    path = place.folder / name
    shape = place.shape[::-1]
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("cube")
        group.attrs["emd_group_type"] = 1
        for i, unit in enumerate(("A^-1", "A^-1", "nm", "nm")):
            group[f"dim{i + 1}"] = np.arange(shape[i]) * 0.25
            group[f"dim{i + 1}"].attrs["units"] = unit
        if chunks is None:
            turned = Place(place.folder, place.detector[::-1], place.scan[::-1])
            total = _fill_contiguous(turned, _contiguous(group, "data", shape))
        else:
            total = _chunked(place, group, "data", shape, chunks, {"compression": "lzf"}, (3, 2, 1, 0))
    return LargeFile(path, math.prod(shape) * 2, total)


@large("dectris")
def dectris(place: Place) -> LargeFile:
    """A master file and four files of frames, one to a chunk, bitshuffle and lz4."""
    return _dectris(place, 1)


@large("dectris-many-frames")
def dectris_many_frames(place: Place) -> LargeFile:
    """The same with 32 frames to a chunk."""
    return _dectris(place, 32)


def _dectris(place: Place, frames: int) -> LargeFile:
    import h5py

    path, parts = place.folder / "scan_master.h5", 4
    each = place.n // parts
    # All of it has counts: of a file of few bytes, HDF5's own index would be a large part of what is read.
    dense = replace(place, dense_part=1.0)
    total = 0.0
    with h5py.File(path, "w") as file:
        data = file.create_group("entry/data")
        for i in range(parts):
            name = f"scan_data_{i + 1:06d}.h5"
            with h5py.File(place.folder / name, "w", libver="latest") as linked:
                group, shape = linked.create_group("entry/data"), (each, *place.detector)
                total += _chunked(dense, group, "data", shape, (frames, *place.detector), _bitshuffle(), (0, 1, 2))
            data[f"data_{i + 1:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
        specific = file.create_group("entry/instrument/detector/detectorSpecific")
        specific["ntrigger"], specific["nimages"] = place.scan
    return LargeFile(path, math.prod(place.shape) * 2, total)


@large("hspy")
def hspy(place: Place) -> LargeFile:
    """The chunks that HyperSpy chooses, gzip."""
    import h5py
    from hdf5_files import write_hspy
    from rsciio._hierarchical import get_signal_chunks

    path = place.folder / "scan.hspy"
    write_hspy(path, np.zeros((2, 2, 2, 2), np.uint16))
    chunks = get_signal_chunks(place.shape, np.dtype("u2"), (2, 3))
    with h5py.File(path, "a") as file:
        (group,) = file["Experiments"].values()
        del group["data"]
        for i, size in enumerate(place.shape):
            group[f"axis-{i}"].attrs["size"] = size
        packed = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
        total = _chunked(place, group, "data", place.shape, chunks, packed)
    return LargeFile(path, math.prod(place.shape) * 2, total)


@large("velox")
def velox(place: Place) -> LargeFile:
    """Frames last, one to a chunk."""
    import h5py
    from hdf5_files import write_velox

    path = place.folder / "scan.emd"
    nky, nkx = place.detector
    write_velox(path, np.zeros((2, 2, 2, 2), np.uint16), scan_size=place.scan)
    with h5py.File(path, "a") as file:
        stack = file["Data/Image/0a1b"]
        del stack["Data"]
        packed = {"compression": "lzf"}
        total = _chunked(place, stack, "Data", (nky, nkx, place.n), (nky, nkx, 1), packed, (2, 0, 1))
    return LargeFile(path, math.prod(place.shape) * 2, total)


@large("app5")
def app5(place: Place) -> LargeFile:
    """A group for each pattern; patterns are four times as large, and fewer."""
    import h5py
    from hdf5_files import APP5_SCAN

    (ny, nx), (nky, nkx) = place.scan, place.detector
    larger = Place(place.folder, (max(1, ny // 2), max(1, nx // 2)), (2 * nky, 2 * nkx))
    axis = "<A><Offset>-1</Offset><Scale>0.5</Scale><Unit><Name>angle</Name><Symbol>mrad</Symbol></Unit></A>"
    pool = larger.pool(POOL_FRAMES, np.dtype("<u2"))
    path = place.folder / "scan.app5"
    total = 0.0
    with h5py.File(path, "w", libver="latest") as file:
        scan = file.create_group(APP5_SCAN)
        for i in range(larger.n):
            y, x = divmod(i, larger.scan[1])
            node = scan.create_group(str(i))
            where = f"<X>{x * 2e-9}</X><Y>{y * 2e-9}</Y>"
            node["Metadata"] = np.bytes_(
                f"<M><Calibration>{axis * 2}</Calibration><Hardware><Beam><Id/><Position>{where}</Position></Beam>"
                "</Hardware></M>".encode()
            )
            data = _contiguous(node, "Data", larger.detector)
            if larger.has_counts(i):
                data[...] = pool[i % POOL_FRAMES]
                total += pool[i % POOL_FRAMES].sum(dtype=np.float64)
    return LargeFile(path, math.prod(larger.shape) * 2, total)


# zarr


def _link_chunks(place: Place, store: Path, array: Any, order: Sequence[int] = (0, 1, 2, 3)) -> float:
    """Every chunk of an empty array of a zarr store, as a hard link to one of a few; gives the sum.

    Parameters
    ----------
    order : sequence of int
        Where (y, x, ky, kx) are among the array's dims.
    """
    import zarr

    pool = _chunk_pool(place, array.chunks, array.dtype, order)
    stored = []
    for i, block in enumerate(pool):
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = zarr.open_array(store, path=array.path)
            array[tuple(map(slice, block.shape))] = block
        first = store / array.path / array.metadata.encode_chunk_key((0,) * array.ndim)
        stored.append(first.rename(place.folder / f"chunk{i}"))
    total = 0.0
    for pick, at, counts in _picks(place, array.shape, pool, order):
        target = store / array.path / array.metadata.encode_chunk_key(at)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(stored[pick], target)
        total += counts
    for kept in stored:
        kept.unlink()
    return total


def _zarr(place: Place, chunks: Sequence[int], zarr_format: int) -> LargeFile:
    """A zarr group with one array, "data"."""
    import zarr

    path = place.folder / "scan.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    array = root.create_array("data", shape=place.shape, chunks=tuple(chunks), dtype="<u2")
    total = _link_chunks(place, path, array)
    return LargeFile(path, math.prod(place.shape) * 2, total)


@large("zarr-lines")
def zarr_lines(place: Place) -> LargeFile:
    """zarr 3, zstd, chunks of a line of the scan."""
    return _zarr(place, (1, *place.shape[1:]), 3)


@large("zarr-tiles")
def zarr_tiles(place: Place) -> LargeFile:
    """zarr 2, zstd, chunks of a part of the scan and of the detector."""
    return _zarr(place, [max(1, n // 8) for n in place.shape], 2)


@large("zspy")
def zspy(place: Place) -> LargeFile:
    """The chunks that HyperSpy chooses, in zarr."""
    import zarr
    from rsciio._hierarchical import get_signal_chunks

    path = place.folder / "scan.zspy"
    marks = {"file_format": "ZSpy", "file_format_version": "3.3"}
    signal = zarr.open_group(path, mode="w", zarr_format=2, attributes=marks).create_group("Experiments/scan")
    for i, size in enumerate(place.shape):
        axis = {"name": f"axis{i}", "scale": 1.0, "offset": 0.0, "units": "", "size": size}
        signal.create_group(f"axis-{i}", attributes=axis | {"navigate": i < 2, "_type": "UniformDataAxis"})
    chunks = get_signal_chunks(place.shape, np.dtype("u2"), (2, 3))
    encoding = {"name": "v2", "separator": "/"}
    array = signal.create_array("data", shape=place.shape, chunks=chunks, dtype="<u2", chunk_key_encoding=encoding)
    total = _link_chunks(place, path, array)
    return LargeFile(path, math.prod(place.shape) * 2, total)


@large("abtem")
def abtem(place: Place) -> LargeFile:
    """abTEM's zarr, x before y, floats, chunks of some positions."""
    import zarr

    path = place.folder / "scan.zarr"
    (ny, nx), (nky, nkx) = place.scan, place.detector
    half = Place(place.folder, (ny // 2, nx), place.detector)
    shape, chunks = (nx, ny // 2, nkx, nky), (max(1, nx // 16), max(1, ny // 32), nkx, nky)
    axis = {"sampling": 0.2, "units": "Å"}
    described = {"ensemble_axes_metadata": [axis, axis], "sampling": [0.1, 0.1], "metadata": {"energy": 2e5}}
    attributes = {"kwargs0": described, "type0": "DiffractionPatterns"}
    root = zarr.open_group(path, mode="w", zarr_format=2, attributes=attributes)
    array = root.create_array("array0", shape=shape, chunks=chunks, dtype="<f4")
    total = _link_chunks(half, path, array, (1, 0, 3, 2))
    return LargeFile(path, math.prod(shape) * 4, total)


@large("store")
def store(place: Place) -> LargeFile:
    """Another store of ours, of one shard many times."""
    import zarr

    import tdm_dask as tdm
    from tdm_dask.axes import axis_coordinate
    from tdm_dask.reading.store import write_variable
    from tdm_dask.shards.shapes import choose_shards

    path = place.folder / "source.zarr"
    _, shard = choose_shards(place.shape, 2)
    tile = tuple(min(s, n) for s, n in zip(shard[:2], place.scan, strict=True))
    counts = place.pool(POOL_FRAMES, np.dtype("u2"))[np.arange(math.prod(tile)) % POOL_FRAMES]
    tdm.convert(tdm.label_counts(counts.reshape(*tile, *place.detector)), path)
    shard = zarr.open_array(path / "counts").shards
    metadata = json.loads((path / "counts/zarr.json").read_text())
    metadata["shape"] = list(place.shape)
    (path / "counts/zarr.json").write_text(json.dumps(metadata))
    top = json.loads((path / "zarr.json").read_text())
    top.pop("consolidated_metadata", None)
    (path / "zarr.json").write_text(json.dumps(top))
    for dim, size in zip(("y", "x"), place.scan, strict=True):
        write_variable(zarr.open_group(path, mode="a"), dim, axis_coordinate(dim, size))
    n = [-(-a // b) for a, b in zip(place.scan, shard, strict=False)]
    first = path / "counts/c/0/0/0/0"
    for i, j in product(*map(range, n)):
        target = path / f"counts/c/{i}/{j}/0/0"
        if (i, j) != (0, 0):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(first, target)
    return LargeFile(path, math.prod(place.shape) * 2, float(counts.sum(dtype=np.float64)) * math.prod(n))
