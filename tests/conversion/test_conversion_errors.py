"""Conversion: sources that fail, disks that are full, and shards that do not come back as they were written."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import shutil

import cloudpickle
import dask
import numpy as np
import pytest
from conversions import SHAPE, SHARDS, WatchedStore, assert_same_store, disk_full, stopped_after
from crc32c import crc32c
from small_stores import converted, poisson, raw_file, shard_files
from zarr.storage import LocalStore, WrapperStore

import tdm_dask as tdm
from tdm_dask import errors

# Sources that fail


@pytest.mark.parametrize("at", [3, SHARDS - 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.unlink(), "scan.raw cannot be read"),
        (lambda p: os.utime(p, (1, 1)), "changed (while it was converted|since it was opened)"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "changed (while it was converted|since it was opened)"),
        (lambda p: p.write_bytes(p.read_bytes()[:-2]), "changed (while|since)|became shorter"),
    ],
)
def test_a_source_that_vanishes_or_changes_while_it_is_read_is_an_error(raw, tmp_path, change, message, at):
    source, path = tmp_path / "scan.raw", tmp_path / "scan.zarr"
    options = raw_file(source, raw[2])
    store = WatchedStore(LocalStore(path), at, lambda: change(source))
    with dask.config.set(scheduler="synchronous"), pytest.raises(errors.SourceError, match=message):
        converted(store, str(source), **options)
    with pytest.raises(errors.IncompleteStoreError):
        tdm.open(path)
    assert len(shard_files(path)) == at + 1


def test_an_opened_file_that_vanishes_is_a_source_error(raw, tmp_path):
    source = tmp_path / "scan.raw"
    counts = tdm.open(source, **raw_file(source, raw[2]))
    source.unlink()
    with pytest.raises(errors.SourceError, match=r"scan\.raw cannot be read \(No such file"):
        converted(tmp_path / "scan.zarr", counts)


@pytest.mark.parametrize("kind", ["npy", "raw"])
def test_an_opened_file_that_is_written_again_is_an_error_and_not_other_counts(raw, tmp_path, kind):
    path = tmp_path / f"scan.{kind}"
    if kind == "npy":
        np.save(path, raw[2])
        counts = tdm.open(path)
    else:
        counts = tdm.open(path, **raw_file(path, raw[2]))
    expected = counts.compute().values
    np.testing.assert_array_equal(expected, raw[2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(0, 1))
    for again in (counts, pickle.loads(cloudpickle.dumps(counts))):
        with pytest.raises(errors.SourceError, match="has changed since it was opened; open the scan again"):
            again.compute()
    now = tdm.open(path, **({} if kind == "npy" else raw[1])).compute().values
    assert (now != expected).sum() == 1


@pytest.mark.parametrize("through", ["itself", "a link", "its array"])
def test_a_store_is_not_replaced_by_itself(uninterrupted, tmp_path, through):
    path, link = tmp_path / "scan.zarr", tmp_path / "link.zarr"
    shutil.copytree(uninterrupted, path)
    link.symlink_to(path, target_is_directory=True)
    before = shard_files(path)
    source = {"itself": path, "a link": link, "its array": path / "counts"}[through]
    with pytest.raises(errors.StoreError, match="where the counts themselves come from"):
        converted(path, source, overwrite=True)
    assert shard_files(path) == before
    assert tdm.verify(path).shards == SHARDS


def test_a_store_that_is_not_whole_is_no_source(uninterrupted, raw, tmp_path):
    """What zarr does not find of an array, it reads as zeros."""
    begun, damaged, out = tmp_path / "begun.zarr", tmp_path / "damaged.zarr", tmp_path / "out.zarr"
    stopped_after(begun, str(raw[0]), 3, **raw[1])
    with pytest.raises(errors.IncompleteStoreError, match=r"conversion into .*begun\.zarr did not finish"):
        converted(out, begun)
    shutil.copytree(uninterrupted, damaged)
    shutil.rmtree(damaged / "counts" / "c" / "1")
    with pytest.raises(errors.CorruptStoreError):
        converted(out, damaged)
    with pytest.raises(errors.StoreError):
        tdm.open(out)


@pytest.mark.parametrize("lost", ["ky/c", "ky", "x/c"])
def test_a_store_that_has_lost_an_axis_is_not_opened(uninterrupted, tmp_path, lost):
    path = tmp_path / "scan.zarr"
    shutil.copytree(uninterrupted, path)
    shutil.rmtree(path / lost)
    for use in (tdm.open, tdm.verify, lambda path: converted(tmp_path / "out.zarr", path)):
        with pytest.raises(errors.StoreError, match=f"The axis {lost[:2].strip('/')} of .* is missing or not of"):
            use(path)


def test_a_source_that_is_gone_when_it_is_resumed_can_come_back(raw, uninterrupted, tmp_path):
    source, path = tmp_path / "scan.raw", tmp_path / "scan.zarr"
    shutil.copy2(raw[0], source)
    stopped_after(path, str(source), 5, **raw[1])
    away = source.rename(tmp_path / "away.raw")
    with pytest.raises(errors.SourceError, match=r"scan\.raw"):
        converted(path, str(source), **raw[1])
    assert len(shard_files(path)) == 5
    away.rename(source)
    store = WatchedStore(LocalStore(path))
    converted(store, str(source), **raw[1])
    assert len(store.shards()) == SHARDS - 5
    assert_same_store(path, uninterrupted)


# A full disk, a store that may not be written


def test_a_full_disk_keeps_what_was_written_and_is_resumed(raw, uninterrupted, tmp_path):
    path = tmp_path / "scan.zarr"
    store = WatchedStore(LocalStore(path), 7, disk_full)
    in_one_thread = dask.config.set(scheduler="synchronous")
    with in_one_thread, pytest.raises(errors.DiskFullError, match="free space and repeat the call"):
        converted(store, str(raw[0]), **raw[1])
    assert len(shard_files(path)) == 7
    converted(path, str(raw[0]), **raw[1])
    assert_same_store(path, uninterrupted)


class SmallStore(WrapperStore):
    """Has room for some objects."""

    room = 0

    async def set(self, key, value):
        self.room -= 1
        if self.room < 0:
            disk_full()
        await super().set(key, value)


@pytest.mark.long
@pytest.mark.parametrize("room", [0, 1, 4, 6, 7, 30, 56, 58, 60, 61, 62])
def test_a_disk_that_is_full_at_any_object_keeps_what_was_written_and_is_resumed(raw, uninterrupted, tmp_path, room):
    store = SmallStore(LocalStore(tmp_path / "scan.zarr"))
    store.room = room
    with dask.config.set(scheduler="synchronous"), pytest.raises(errors.DiskFullError, match="No space left"):
        converted(store, str(raw[0]), **raw[1])
    store.room = 1000
    converted(store, str(raw[0]), **raw[1])
    assert_same_store(tmp_path / "scan.zarr", uninterrupted)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 kB."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = tmp_path / "disk"
    path.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=512k") != 0:
        pytest.skip("no right to mount a small file system")
    yield path
    libc.umount2(os.fsencode(path), 2)


def test_a_really_full_disk_keeps_what_was_written_and_is_resumed(raw, uninterrupted, small_disk):
    path = small_disk / "scan.zarr"
    # Room for the metadata and about half of the shards with their sums: a page each.
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (512 * 1024 - 4096 * (10 + SHARDS)))
    # In one thread: others would still be writing when the error of the first arrives.
    with dask.config.set(scheduler="synchronous"), pytest.raises(errors.DiskFullError):
        converted(path, str(raw[0]), **raw[1])
    kept = len(shard_files(path))
    assert 0 < kept < SHARDS
    assert not list(path.rglob("*.partial"))
    ballast.unlink()
    store = WatchedStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert len(store.shards()) == SHARDS - kept
    assert_same_store(path, uninterrupted)


def test_a_store_that_may_not_be_written_is_an_error(tmp_path):
    def deny():
        raise PermissionError(errno.EACCES, "Permission denied")

    denied = WatchedStore(LocalStore(tmp_path / "scan.zarr"), 0, deny)
    with pytest.raises(errors.StoreError, match=r"cannot be written \(Permission denied"):
        converted(denied, poisson(SHAPE))
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StoreError, match="cannot be written"):
        converted(tmp_path / "file" / "scan.zarr", poisson(SHAPE))


# The check at the end


class LyingStore(WrapperStore):
    """Keeps something else than one of the shards that it is given, and does not say so."""

    def __init__(self, store, harm=None, key="counts/c/1/2/0/0"):
        super().__init__(store)
        self.harm, self.key = harm, key

    async def set(self, key, value):
        harmed = self.harm(value.to_bytes()) if key == self.key else value.to_bytes()
        if harmed is not None:
            await super().set(key, value.from_bytes(harmed))


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def swapped(data, first, second):
    """A shard with two inner chunks in each other's places, of the same length and with every checksum right."""
    index = np.frombuffer(data[-260:-4], "<u8").reshape(2, 2, 2, 2, 2).copy()
    index[first], index[second] = index[second].copy(), index[first].copy()
    table = index.tobytes()
    return data[:-260] + table + crc32c(table).to_bytes(4, "little")


def other_probes(data):
    return swapped(data, (0, 0, 0, 0), (0, 1, 0, 0))


def other_pixels(data):
    return swapped(data, (0, 0, 0, 0), (0, 0, 1, 1))


HARMS = {
    "a flipped byte": (lambda data: flipped(data, 50), "has a wrong checksum"),
    "a flipped byte of the index": (lambda data: flipped(data, -9), "has a wrong checksum"),
    "half of it": (lambda data: data[: len(data) // 2], "has [0-9]+ bytes instead of [0-9]+"),
    "too much": (lambda data: data + b"\0", "has [0-9]+ bytes instead of [0-9]+"),
    "nothing": (lambda data: None, "is missing"),
    "other probes": (other_probes, "holds other counts than its source"),
    "other pixels": (other_pixels, "holds other counts than its source"),
}


@pytest.mark.long
@pytest.mark.parametrize("harm", HARMS)
def test_a_shard_that_did_not_arrive_as_it_was_written_is_named_and_written_anew(raw, uninterrupted, tmp_path, harm):
    path = tmp_path / "scan.zarr"
    change, problem = HARMS[harm]
    names = rf"1 of {SHARDS} shards .*: shard counts/c/1/2/0/0 \(probe positions y 4-7, x 12-17\) {problem}; .* anew"
    with pytest.raises(errors.CorruptStoreError, match=names):
        converted(LyingStore(LocalStore(path), change), str(raw[0]), **raw[1])
    assert len(shard_files(path)) == SHARDS - 1
    with pytest.raises(errors.IncompleteStoreError):
        tdm.open(path)
    store = WatchedStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert store.shards() == ["counts/c/1/2/0/0"]
    assert_same_store(path, uninterrupted)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint32", "uint64", "int16", "float32", "float64"])
@pytest.mark.parametrize("harm", [other_probes, other_pixels])
@pytest.mark.parametrize("flags", [False, True])
def test_counts_in_the_wrong_place_are_found_whatever_their_dtype(tmp_path, dtype, harm, flags):
    counts = poisson(SHAPE, dtype, mean=1)
    if dtype.startswith("f"):
        counts[::3, 2, 4, 5], counts[7, ::3, 1, 1] = np.nan, np.inf
    valid = np.random.default_rng(2).random
    labelled = tdm.label_counts(counts)
    if flags:
        labelled = labelled.assign_coords(
            valid_pixels=(("ky", "kx"), valid(SHAPE[2:]) < 0.9), valid_patterns=(("y", "x"), valid(SHAPE[:2]) < 0.9)
        )
    path = tmp_path / "scan.zarr"
    with pytest.raises(errors.CorruptStoreError, match="holds other counts than its source"):
        converted(LyingStore(LocalStore(path), harm), labelled, compression=None)
    np.testing.assert_array_equal(converted(path, labelled, compression=None).values, counts)
    assert tdm.verify(path).shards == SHARDS


def test_a_disk_that_cannot_read_a_shard_back_is_an_error(raw, uninterrupted, tmp_path):
    class BadDisk(WrapperStore):
        async def get(self, key, prototype, byte_range=None):
            if key == "counts/c/4/4/0/0":
                raise OSError(errno.EIO, "Input/output error")
            return await super().get(key, prototype, byte_range)

    path = tmp_path / "scan.zarr"
    with pytest.raises(errors.CorruptStoreError, match=r"x 24-24\) cannot be kept or read \(Input/output error\)"):
        converted(BadDisk(LocalStore(path)), str(raw[0]), **raw[1])
    converted(path, str(raw[0]), **raw[1])
    assert_same_store(path, uninterrupted)
    bad = BadDisk(LocalStore(path, read_only=True))
    with pytest.raises(errors.CorruptStoreError, match=r"x 24-24\) cannot be read \(Input/output error\)"):
        tdm.verify(bad)


def test_many_shards_that_differ_are_counted(raw, tmp_path):
    store = LyingStore(LocalStore(tmp_path / "scan.zarr"), lambda data: data[:-1])
    store.key = type("AnyShard", (), {"__eq__": lambda self, key: key.startswith("counts/c/")})()
    with pytest.raises(errors.CorruptStoreError, match=rf"^{SHARDS} of {SHARDS} shards .* \(and 20 more\); they were"):
        converted(store, str(raw[0]), **raw[1])
    assert shard_files(tmp_path / "scan.zarr") == {}
