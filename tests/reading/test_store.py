"""The store: what is in it, that others read it, and that damage is found."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from functools import cache

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_stores import converted, poisson, shard_files
from zarr.storage import LocalStore, MemoryStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.axes import axis_coordinate
from tdm_dask.reading.blocks import Shards, ZarrArray
from tdm_dask.reading.lazy import source_of
from tdm_dask.reading.store import stored_statistics, write_calibration
from tdm_dask.shards.codec import COMPRESSIONS
from tdm_dask.shards.objects import put
from tdm_dask.shards.shapes import choose_shards
from tdm_dask.shards.sharded_array import sharded_array

DTYPES = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float32",
    "float64",
    ">u2",
    ">u4",
    ">f4",
]
# One of each size, and of each kind that is stored otherwise than it is computed with; the others are long.
SOME = {"bool", "uint16", "int32", "float64", ">u2", ">f4"}
EACH = [pytest.param(dtype, marks=[] if dtype in SOME else pytest.mark.long) for dtype in DTYPES]
# Neither the scan nor the detector is a multiple of a shard or inner chunk.
SHAPE = (9, 13, 10, 11)


def numbers(shape=SHAPE, dtype="uint16", seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.3
    if dtype.kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype.newbyteorder("="), endpoint=True).astype(dtype)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A store of 9 shards of 16 inner chunks, and its counts."""
    path = tmp_path_factory.mktemp("store") / "scan.zarr"
    counts = poisson(SHAPE)
    converted(path, counts)
    return path, counts


@pytest.fixture
def copy(scan, tmp_path):
    return shutil.copytree(scan[0], tmp_path / "copy.zarr")


# Layout, and other readers


@pytest.mark.parametrize("dtype", EACH)
def test_the_counts_come_back_in_native_order(tmp_path, dtype):
    counts = numbers(dtype=dtype)
    path = tmp_path / "scan.zarr"
    opened = converted(path, counts)
    assert opened.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(opened.values, counts)
    assert tdm.verify(path).shards == 9


@pytest.fixture(scope="module", params=[None, "lz4", "zstd"], ids=lambda name: f"compression={name}")
def for_others(request, tmp_path_factory):
    """Stores of one compression, and their counts, by the dtype of the source."""
    folder = tmp_path_factory.mktemp("others")

    @cache
    def store(dtype):
        path, counts = folder / np.dtype(dtype).str, numbers(dtype=dtype)
        converted(path, counts, compression=request.param)
        return path, counts

    return store


def read_by_xarray(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(path, chunks=None)
    assert plain["counts"].dims == ("y", "x", "ky", "kx")
    return plain["counts"].values


def read_by_zarr(path):
    array = zarr.open_array(path / "counts", mode="r")
    assert array.metadata.zarr_format == 3
    assert array.shards == (4, 6, 12, 16)
    return array[...]


def read_by_zarrs(path):
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = zarr.open_array(path / "counts", mode="r")
        assert type(array.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
        return array[...]


def read_by_tensorstore(path):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / 'counts'}/"}}
    array = tensorstore.open(spec, read=True).result()
    assert array.domain.labels == ("y", "x", "ky", "kx")
    return array.read().result()


@pytest.mark.parametrize("dtype", EACH)
@pytest.mark.parametrize("read", [read_by_xarray, read_by_zarr, read_by_zarrs, read_by_tensorstore])
def test_every_reader_gives_the_same_counts(for_others, read, dtype):
    path, counts = for_others(dtype)
    found = read(path)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, counts)


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_every_compression_keeps_the_counts_and_says_what_it_is(tmp_path, compression):
    counts = poisson(SHAPE)
    path = tmp_path / "scan.zarr"
    np.testing.assert_array_equal(converted(path, counts, compression=compression).values, counts)
    metadata = json.loads((path / "counts" / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    names = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert names == ["bytes", *(["blosc"] if compression else []), "crc32c"]
    if compression:
        blosc = sharding["configuration"]["codecs"][1]["configuration"]
        assert (blosc["cname"], blosc["shuffle"], blosc["typesize"]) == (compression, "bitshuffle", 2)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, 10, 11), (5, 7, 1, 1), (1, 9, 3, 1), (7, 1, 1, 4), (5, 5, 9, 9)]
)
def test_one_probe_and_one_pixel_are_scans_too(tmp_path, shape):
    counts = poisson(shape, seed=3)
    for name, convert in (("small", converted), ("as chosen", lambda p, c: tdm.convert(tdm.label_counts(c), p))):
        path = tmp_path / name
        np.testing.assert_array_equal(convert(path, counts).values, counts)
        np.testing.assert_array_equal(xr.open_zarr(path, chunks=None)["counts"].values, counts)
        np.testing.assert_array_equal(stored_statistics(path)["pattern_mean"], counts.mean((0, 1)))
        assert tdm.verify(path).shards == math.prod(-(-n // s) for n, s in zip(shape, shards_of(path), strict=True))


def shards_of(path):
    return zarr.open_array(path / "counts", mode="r").shards


def test_the_shards_that_are_chosen_are_written(tmp_path):
    counts = poisson((5, 9, 70, 200))
    path = tmp_path / "scan.zarr"
    tdm.convert(tdm.label_counts(counts), path)
    array = zarr.open_array(path / "counts", mode="r")
    assert (array.chunks, array.shards) == choose_shards(counts.shape, 2)
    np.testing.assert_array_equal(array[...], counts)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "float32"])
def test_statistics_are_those_of_the_counts(tmp_path, dtype):
    counts = numbers(dtype=dtype)
    path = tmp_path / "scan.zarr"
    converted(path, counts)
    found = xr.open_zarr(path, chunks=None)
    exact = counts.astype(np.float64)
    np.testing.assert_allclose(found["pattern_mean"], exact.mean((0, 1)), rtol=1e-6, atol=1e-6 * np.abs(exact).max())
    np.testing.assert_allclose(found["pattern_variance"], exact.var((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found["total_counts"], exact.sum((2, 3)), rtol=1e-12, atol=1e-9 * np.abs(exact).max())
    np.testing.assert_array_equal(found["pattern_maximum"], counts.max((0, 1)))
    assert found["total_counts"].dtype == (np.uint64 if dtype.startswith("u") else np.float64)


def test_a_maximum_below_zero_is_found(tmp_path):
    converted(tmp_path / "scan.zarr", numbers(dtype="float32") - np.float32(1e6))
    assert float(xr.open_zarr(tmp_path / "scan.zarr", chunks=None)["pattern_maximum"].max()) < 0


def test_coordinates_units_flags_and_facts_survive(tmp_path):
    counts = tdm.label_counts(
        poisson(SHAPE),
        {
            "y": axis_coordinate("y", 9, 0.3, -1.0, "angstrom"),
            "x": axis_coordinate("x", 13, 0.4, 2.0, "angstrom"),
            "ky": axis_coordinate("ky", 10, 1.5, -7.0, "mrad"),
            "kx": axis_coordinate("kx", 11, 1.25, -6.0, "mrad"),
            "valid_pixels": (("ky", "kx"), np.arange(110).reshape(10, 11) != 17),
            "valid_patterns": (("y", "x"), np.arange(117).reshape(9, 13) != 5),
        },
        {
            "energy_eV": 2e5,
            "semi_angle_mrad": 23.5,
            "pixel_size_mrad": np.array([1.5, 1.25]),
            "source": "scan.mib",
            "other": 1,
        },
    )
    path = tmp_path / "scan.zarr"
    opened = converted(path, counts)
    plain = xr.open_zarr(path, chunks=None)
    for name in ("y", "x", "ky", "kx", "valid_pixels", "valid_patterns"):
        xr.testing.assert_identical(opened[name].variable, counts[name].variable)
        np.testing.assert_array_equal(plain[name].values, counts[name].values)
        assert plain[name].attrs == counts[name].attrs
    assert opened.attrs == {
        "energy_eV": 2e5, "semi_angle_mrad": 23.5, "pixel_size_mrad": [1.5, 1.25], "source": "scan.mib",
        "long_name": "detector counts", "units": "counts",
    }  # fmt: skip
    attributes = plain.attrs["tdm_dask"]
    assert (attributes["schema"], attributes["state"]) == (1, "complete")
    assert {"zarr", "tdm-dask", "rosettasciio", "numcodecs"} == set(attributes["versions"])


# Shards against stock zarr


@st.composite
def arrays(draw):
    """Shape, inner chunk, shard, dtype and codec of a sharded array."""
    shape = tuple(draw(st.integers(1, 7)) for _ in range(4))
    inner = tuple(draw(st.integers(1, 4)) for _ in range(4))
    shard = tuple(c * draw(st.integers(1, 3)) for c in inner)
    return (
        shape,
        inner,
        shard,
        draw(st.sampled_from(["bool", "uint8", "uint16", "int32", "float32"])),
        draw(st.sampled_from(list(COMPRESSIONS))),
    )


def empty_array(shape, inner, shard, dtype, compression, store):
    compressors = COMPRESSIONS[compression].in_zarr() or None
    return zarr.create_array(
        store,
        name="counts",
        shape=shape,
        dtype=dtype,
        chunks=inner,
        shards=shard,
        compressors=compressors,
        fill_value=0,
    )


@settings(max_examples=25, deadline=None)
@given(arrays(), st.integers(0, 2**16))
def test_our_shards_are_what_zarr_reads(case, seed):
    counts = numbers(case[0], case[3], seed)
    array = empty_array(*case, MemoryStore())
    ours = sharded_array(array)
    for shard in ours.shards():
        put(ours.store, ours.key(shard), *ours.encode_shard(shard, lambda y, x: counts[y, x]))
    np.testing.assert_array_equal(array[...], counts)


@settings(max_examples=25, deadline=None)
@given(arrays(), st.integers(0, 2**16), st.booleans())
def test_what_zarr_writes_is_what_we_read(case, seed, write_empty):
    counts = numbers(case[0], case[3], seed)
    # Half of it empty, so that stock zarr leaves inner chunks out; no shard is left out as a whole.
    counts[counts.shape[0] // 2 :] = 0
    for corner in np.ndindex(*(-(-n // s) for n, s in zip(counts.shape, case[2], strict=True))):
        counts[tuple(i * s for i, s in zip(corner, case[2], strict=True))] = 1
    with zarr.config.set({"array.write_empty_chunks": write_empty}):
        array = empty_array(*case, MemoryStore())
        array[...] = counts
    ours = sharded_array(array)
    assert ours is not None
    np.testing.assert_array_equal(Shards(ours, "").read(0, counts.shape[0], 0, counts.shape[1]), counts)


def test_layouts_that_only_zarr_decodes_are_left_to_it(tmp_path):
    counts = poisson(SHAPE)
    group = zarr.create_group(tmp_path / "scan.zarr")
    group.create_array("counts", data=counts, chunks=(3, 3, 10, 11))
    opened = tdm.open(tmp_path / "scan.zarr")
    assert isinstance(source_of(opened.data), ZarrArray)
    np.testing.assert_array_equal(opened.values, counts)
    with pytest.raises(errors.StoreError, match="no checksums"):
        tdm.verify(tmp_path / "scan.zarr")


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 5000), st.integers(1, 5000)),
    st.sampled_from([1, 2, 4, 8]),
)
@example((1, 100, 47, 3520), 8)
@example((1, 1, 3441, 4561), 4)
def test_a_shard_holds_whole_patterns_and_is_not_too_large(shape, itemsize):
    inner, shard = choose_shards(shape, itemsize)
    assert all(s % c == 0 for s, c in zip(shard, inner, strict=True))
    assert all(s >= n for s, n in zip(shard[2:], shape[2:], strict=True))
    pattern = shard[2] * shard[3] * itemsize
    assert shard[0] * shard[1] * pattern <= 128 * 2**20 or shard[:2] == (1, 1)
    assert math.prod(inner) * itemsize <= 2 * 2**20 or inner[:2] == (1, 1)
    assert math.prod(inner) * itemsize <= 4.5 * 2**20
    # It overhangs by less than itself, and a scan that fills shards fills them well.
    assert all(s < 2 * n + c for s, n, c in zip(shard, shape, inner, strict=True))
    if math.prod(shape) * itemsize > 2**30 and pattern < 2**20 and min(shape[:2]) >= 64:
        assert math.prod(shard) * itemsize >= 32 * 2**20


# Damage


def flipped(data, position):
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    return bytes(damaged)


def parts_of_a_shard(path):
    """Bytes to flip: first, middle and last of several inner chunks, of the index, and of its checksum."""
    array = sharded_array(zarr.open_array(path / "counts", mode="r"))
    size = len(shard_files(path)["1/1/0/0"])
    index = array.read_index((1, 1, 0, 0)).reshape(-1, 2).astype(int)
    chunks = index[index[:, 1] < 2**40]
    places = [place for start, n in chunks[:: len(chunks) // 4] for place in (start, start + n // 2, start + n - 1)]
    return [*places, size - array.index_bytes, size - array.index_bytes // 2, size - 5, size - 4, size - 1]


def test_a_flipped_byte_in_any_part_of_a_shard_is_found(copy):
    shard = copy / "counts" / "c" / "1" / "1" / "0" / "0"
    whole = shard.read_bytes()
    for position in parts_of_a_shard(copy):
        shard.write_bytes(flipped(whole, position))
        with pytest.raises(errors.CorruptStoreError, match=r"counts/c/1/1/0/0 \(probe positions y 4-7, x 6-11\)"):
            tdm.verify(copy)
        with pytest.raises(errors.CorruptStoreError, match=r"counts/c/1/1/0/0 \(probe positions y 4-7, x 6-11\)"):
            tdm.open(copy).compute()
    shard.write_bytes(whole)
    assert tdm.verify(copy).shards == 9


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -200])
def test_a_truncated_shard_is_found(copy, keep):
    shard = copy / "counts" / "c" / "2" / "2" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(errors.CorruptStoreError, match=r"counts/c/2/2/0/0 \(probe positions y 8-8, x 12-12\)"):
        tdm.verify(copy)
    with pytest.raises(errors.CorruptStoreError, match="counts/c/2/2/0/0"):
        tdm.open(copy).compute()


def test_a_missing_shard_is_found_and_is_not_zeros(copy):
    (copy / "counts" / "c" / "0" / "1" / "0" / "0").unlink()
    with pytest.raises(errors.CorruptStoreError, match=r"counts/c/0/1/0/0 \(probe positions y 0-3, x 6-11\).* missing"):
        tdm.verify(copy)
    with pytest.raises(errors.CorruptStoreError, match="missing"):
        tdm.pixel_statistics(tdm.open(copy))["mean"].compute()
    # What does not need the shard still works.
    assert tdm.crop(tdm.open(copy), y=slice(4, 9)).sum().compute() > 0


def test_shards_that_changed_places_are_found(copy):
    first, second = (copy / "counts" / "c" / "0" / i / "0" / "0" for i in "01")
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(errors.CorruptStoreError, match=r"2 of 9 shards.*counts/c/0/0/0/0.*counts/c/0/1/0/0"):
        tdm.verify(copy)


def test_every_kind_of_damage_is_named_at_once(copy):
    shards = [copy / "counts" / "c" / place / "0" / "0" for place in ("0/0", "1/1", "2/2")]
    shards[0].write_bytes(flipped(shards[0].read_bytes(), 30))
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-8])
    with pytest.raises(errors.CorruptStoreError) as caught:
        tdm.verify(copy)
    sentence = str(caught.value)
    assert sentence.startswith("3 of 9 shards are damaged: ")
    for place, damage in (
        ("0/0/0/0 (probe positions y 0-3, x 0-5)", "checksum is wrong"),
        ("1/1/0/0 (probe positions y 4-7, x 6-11)", "is missing"),
        ("2/2/0/0 (probe positions y 8-8, x 12-12)", "truncation"),
    ):
        assert damage in sentence.split(f"shard counts/c/{place}")[1].split(";")[0]


def test_verify_counts_what_it_read(scan):
    verified = tdm.verify(scan[0])
    assert verified.bytes_stored == sum(map(len, shard_files(scan[0]).values()))
    assert verified.bytes_counts == scan[1].nbytes
    assert "9 shards" in str(verified)


def test_a_store_with_nan_is_whole(tmp_path):
    counts = numbers(dtype="float32")
    counts[3, 4, 5, 6] = np.nan
    path = tmp_path / "scan.zarr"
    converted(path, counts)
    assert tdm.verify(path).shards == 9
    mean = zarr.open_group(path, mode="r")["pattern_mean"][...]
    assert np.isnan(mean[5, 6])
    assert np.isnan(mean).sum() == 1


# What is refused


def changed_attributes(path, **changes):
    group = zarr.open_group(path, mode="r+")
    group.update_attributes({"tdm_dask": {**group.attrs["tdm_dask"], **changes}})


def test_an_unfinished_store_is_refused(copy):
    changed_attributes(copy, state="writing")
    for call in (tdm.open, tdm.verify):
        with pytest.raises(errors.IncompleteStoreError, match="run the same tdm convert again"):
            call(copy)


@pytest.mark.parametrize("schema", [2, "2.0", None])
def test_a_store_of_another_schema_is_refused(copy, schema):
    changed_attributes(copy, schema=schema)
    with pytest.raises(errors.StoreError, match=f"schema version {schema}, .* update tdm_dask"):
        tdm.open(copy)


def test_what_is_no_store_is_refused(tmp_path):
    zarr.create_group(tmp_path / "empty.zarr")
    with pytest.raises(errors.StoreError, match='no 4D array "counts"'):
        tdm.open(tmp_path / "empty.zarr")
    zarr.create_group(tmp_path / "flat.zarr").create_array("counts", data=np.zeros((3, 4)))
    with pytest.raises(errors.StoreError, match="no 4D array"):
        tdm.open(tmp_path / "flat.zarr")
    zarr.create_array(tmp_path / "array.zarr", data=np.zeros((3, 4)))
    with pytest.raises(errors.StoreError, match="not a zarr group"):
        tdm.open(tmp_path / "array.zarr")
    (tmp_path / "damaged.zarr").mkdir()
    (tmp_path / "damaged.zarr" / "zarr.json").write_text("{")
    with pytest.raises(errors.StoreError, match="not a zarr group"):
        tdm.open(tmp_path / "damaged.zarr")
    with pytest.raises(errors.StoreError):
        tdm.open(LocalStore(tmp_path / "absent.zarr"))
    with pytest.raises(errors.SourceError):
        tdm.open(tmp_path / "absent.zarr")


def test_any_sharded_zarr_group_opens_with_pixel_axes(tmp_path):
    counts = poisson(SHAPE)
    group = zarr.create_group(tmp_path / "other.zarr")
    group.create_array("counts", data=counts, chunks=(2, 2, 5, 11), shards=(4, 4, 10, 11))
    opened = tdm.open(tmp_path / "other.zarr")
    assert {opened[d].attrs["units"] for d in opened.dims} == {"px"}
    np.testing.assert_array_equal(opened.values, counts)


# Calibration


def calibrated(counts):
    axes = {d: axis_coordinate(d, n, 1.5, -6.0, "mrad") for d, n in zip(("ky", "kx"), counts.shape[2:], strict=True)}
    return counts.assign_coords(axes | {"y": axis_coordinate("y", counts.sizes["y"], 0.25, 0.0, "angstrom")})


def test_a_calibration_is_kept_and_leaves_the_counts_alone(copy):
    before = shard_files(copy)
    counts = calibrated(tdm.open(copy)).assign_attrs(energy_eV=np.float64(2e5), flip=np.True_, rotation_deg=3.5)
    write_calibration(copy, counts)
    again = tdm.open(copy)
    for dim in ("y", "x", "ky", "kx"):
        xr.testing.assert_identical(again[dim].variable, counts[dim].variable)
    assert (again.attrs["energy_eV"], again.attrs["flip"], again.attrs["rotation_deg"]) == (2e5, True, 3.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(copy, chunks=None)
    assert plain["kx"].attrs["units"] == "mrad"
    np.testing.assert_array_equal(plain["kx"], counts["kx"])
    assert shard_files(copy) == before
    assert tdm.verify(copy).shards == 9


def test_flags_that_came_later_neither_break_verify_nor_pass_off_old_statistics(copy):
    counts = tdm.open(copy)
    assert stored_statistics(copy) is not None
    flags = np.ones(SHAPE[2:], bool)
    flags[3, 4] = False
    write_calibration(copy, counts.assign_coords(valid_pixels=(("ky", "kx"), flags)))
    assert tdm.verify(copy).shards == 9
    assert stored_statistics(copy) is None
    np.testing.assert_array_equal(tdm.open(copy)["valid_pixels"], flags)


def test_a_calibration_of_another_scan_is_refused(copy, tmp_path):
    counts = calibrated(tdm.open(copy))
    with pytest.raises(errors.StoreError, match=r"shape \(9, 13, 10, 11\), the calibrated ones have \(8, 13, 10, 11\)"):
        write_calibration(copy, counts[:8])
    zarr.create_group(tmp_path / "other.zarr").create_array("counts", data=np.zeros(SHAPE, np.uint8))
    with pytest.raises(errors.StoreError, match="not a store written by this package"):
        write_calibration(tmp_path / "other.zarr", counts)
