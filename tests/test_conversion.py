"""Conversion: killed, resumed, refused, out of disk, on every scheduler, in bounded memory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from small_stores import converted, poisson, raw_file, shard_files
from zarr.storage import LocalStore, WrapperStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.store import SIDECARS, stored_statistics

SHAPE = (18, 25, 10, 11)
SHARDS = 25
KILLS = int(os.environ.get("TDM_TEST_KILLS", "8"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A raw file, the options that open it, and its counts."""
    counts = poisson(SHAPE, ">u2")
    path = tmp_path_factory.mktemp("raw") / "scan.raw"
    return path, raw_file(path, counts), counts


@pytest.fixture(scope="module")
def uninterrupted(raw, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "scan.zarr"
    converted(path, str(raw[0]), **raw[1])
    return path


def leftovers(path):
    return [p for p in Path(path).rglob("*") if p.name.endswith(".partial") or p.name == SIDECARS]


def assert_same_store(path, other):
    """Every shard byte-equal, every statistic equal, nothing left of the way there."""
    assert shard_files(path) == shard_files(other)
    xr.testing.assert_identical(stored_statistics(path), stored_statistics(other))
    assert leftovers(path) == []
    assert tdm.verify(path).shards == len(shard_files(other))


class RecordingStore(WrapperStore):
    """Notes the objects that are written; from the n-th shard on, `fail` is raised instead of writing it."""

    def __init__(self, store, fail_at=None, fail=None):
        super().__init__(store)
        self.written, self.fail_at, self.fail = [], fail_at, fail

    async def set(self, key, value):
        shards = sum(k.startswith("counts/c/") for k in self.written)
        if key.startswith("counts/c/") and self.fail_at is not None and shards >= self.fail_at:
            raise self.fail
        self.written.append(key)
        await super().set(key, value)

    def shards(self):
        return [key for key in self.written if key.startswith("counts/c/")]


def disk_full():
    return OSError(errno.ENOSPC, "No space left on device")


def stopped_after(path, source, shards, **options):
    """Leave an unfinished conversion with that many shards at `path`."""
    store = RecordingStore(LocalStore(path), shards, disk_full())
    with dask.config.set(scheduler="synchronous"), pytest.raises(errors.DiskFullError):
        converted(store, source, **options)


# Killed at any moment

FORKS = """
import os, sys
import dask
import small_stores, tdm_dask as tdm
from tdm_dask import conversion_job, reductions, store
from tdm_dask.blocks import Block
dask.config.set(scheduler="threads", num_workers=2)
source, options = sys.argv[1], eval(sys.argv[2])
# What takes long without writing anything is done once, before the forks; no thread is started by it.
counts = small_stores.poisson((2, 3, 6, 8))
moments = reductions.Moments((slice(0, 6), slice(0, 8)), True)
state = moments.start((slice(0, 2), slice(0, 3)), None, None)
moments.add(state, Block(slice(0, 2), slice(0, 3), slice(0, 6), slice(0, 8), counts), None, None)
store.pattern_totals(counts)
print("ready", flush=True)
for target in iter(sys.stdin.readline, ""):
    pid = os.fork()
    if pid == 0:
        try:
            small_stores.converted(target.strip(), source, **options)
            os._exit(0)
        finally:
            os._exit(1)
    print(pid, flush=True)
    sys.stdin.readline()  # until then a process that has ended keeps its id
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture
def forks(raw):
    """Starts a conversion in a process of its own; gives its id, and what it ended with."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS, str(raw[0]), repr(raw[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.stdout.readline() == "ready\n"

    def begin(target):
        process.stdin.write(f"{target}\n")
        process.stdin.flush()
        return int(process.stdout.readline()), end

    def end():
        process.stdin.write("\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield begin
    process.communicate()


def test_a_conversion_killed_at_any_moment_and_resumed_equals_an_uninterrupted_one(raw, uninterrupted, forks, tmp_path):
    start = time.perf_counter()
    _, ended = forks(tmp_path / "timed.zarr")
    assert ended() == 0
    duration = time.perf_counter() - start
    assert_same_store(tmp_path / "timed.zarr", uninterrupted)
    rng = np.random.default_rng()
    target, kept, unfinished = tmp_path / "scan.zarr", [], 0
    for n in range(KILLS):
        pid, ended = forks(target)
        time.sleep(rng.uniform(0, duration))
        os.kill(pid, signal.SIGKILL)
        finished = ended() == 0
        if not finished and state_of(target) != "complete":
            unfinished += 1
            with pytest.raises((errors.IncompleteStoreError, errors.SourceError)):
                tdm.open(target)
        done = {key: data for key, data in shard_files(target).items() if not key.endswith(".partial")}
        assert done.items() <= shard_files(uninterrupted).items()
        kept.append(len(done))
        # Every other one is resumed to its end; the others are killed again on their way.
        if n % 2 or state_of(target) == "complete":
            converted(target, str(raw[0]), **raw[1])
            assert_same_store(target, uninterrupted)
            target = tmp_path / f"scan-{n}.zarr"
    converted(target, str(raw[0]), **raw[1])
    assert_same_store(target, uninterrupted)
    assert unfinished, f"no kill came before the end; shards at each: {kept}"


def state_of(path):
    try:
        return json.loads((path / "zarr.json").read_text())["attributes"]["tdm_dask"]["state"]
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("shards", [0, 1, 13, SHARDS - 1])
def test_resuming_writes_only_what_is_missing(raw, uninterrupted, tmp_path, shards):
    path = tmp_path / "scan.zarr"
    stopped_after(path, str(raw[0]), shards, **raw[1])
    with pytest.raises(errors.IncompleteStoreError):
        tdm.open(path)
    # As a writer that was killed leaves them.
    for folder in (path, path / "counts"):
        (folder / f"0.{'3f' * 16}.partial").write_bytes(b"half a shard")
    store = RecordingStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert len(store.shards()) == SHARDS - shards
    assert_same_store(path, uninterrupted)


@pytest.mark.parametrize("harm", ["shard", "sums", "half a shard", "half the sums", "index"])
def test_a_shard_that_is_not_whole_with_its_sums_is_written_again(raw, uninterrupted, tmp_path, harm):
    path = tmp_path / "scan.zarr"
    stopped_after(path, str(raw[0]), 4, **raw[1])
    key = min(shard_files(path))
    shard, sums = path / "counts" / "c" / key, path / SIDECARS / key.replace("/", ".")
    file = sums if "sums" in harm else shard
    if harm.startswith("half"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif harm == "index":
        file.write_bytes(file.read_bytes()[:-9] + b"\0" * 9)
    else:
        file.unlink()
    store = RecordingStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert f"counts/c/{key}" in store.shards()
    assert len(store.shards()) == SHARDS - 3
    assert_same_store(path, uninterrupted)


def test_sums_are_written_before_their_shard(raw, tmp_path):
    store = RecordingStore(LocalStore(tmp_path / "scan.zarr"))
    converted(store, str(raw[0]), **raw[1])
    for key in store.shards():
        sidecar = f"{SIDECARS}/" + key.removeprefix("counts/c/").replace("/", ".")
        assert store.written.index(sidecar) < store.written.index(key)


def test_a_kill_before_the_first_object_was_whole_can_be_resumed(raw, uninterrupted, tmp_path):
    path = tmp_path / "scan.zarr"
    path.mkdir()
    (path / f"zarr.{'0a' * 16}.partial").write_text("{")
    converted(path, str(raw[0]), **raw[1])
    assert_same_store(path, uninterrupted)


# What is there already


def test_a_finished_conversion_is_not_repeated(raw, tmp_path):
    store = RecordingStore(LocalStore(tmp_path / "scan.zarr"))
    converted(store, str(raw[0]), **raw[1])
    store.written.clear()
    np.testing.assert_array_equal(converted(store, str(raw[0]), **raw[1]).values, raw[2])
    assert store.written == []


@pytest.mark.parametrize(
    "other",
    [
        {"compression": "zstd"},
        {"crop": {"y": slice(0, 9)}},
        {"scan_step": 0.3},
        {"pixel_size": 1.0},
        {"dtype": "<u2"},
        {"scan_shape": (25, 18)},
    ],
)
def test_another_request_is_not_answered_with_what_is_there(raw, tmp_path, other):
    path = tmp_path / "scan.zarr"
    converted(path, str(raw[0]), **raw[1])
    before = shard_files(path)
    with pytest.raises(
        errors.StoreError, match=r'already holds "scan\.raw", converted from another file or in another way'
    ):
        converted(path, str(raw[0]), **{**raw[1], **other})
    assert shard_files(path) == before


@pytest.mark.parametrize("other", [{"compression": "zstd"}, {"crop": {"y": slice(0, 9)}}])
def test_overwrite_replaces_a_store(raw, tmp_path, other):
    path, fresh = tmp_path / "scan.zarr", tmp_path / "fresh.zarr"
    converted(path, str(raw[0]), **raw[1])
    converted(path, str(raw[0]), **raw[1], **other, overwrite=True)
    converted(fresh, str(raw[0]), **raw[1], **other)
    assert_same_store(path, fresh)


def test_other_counts_in_memory_are_not_taken_for_those_that_are_there(tmp_path):
    path, counts = tmp_path / "scan.zarr", poisson(SHAPE)
    converted(path, counts)
    converted(path, counts.copy())
    other = counts.copy()
    other[17, 24, 9, 10] += 1
    for source in (other, tdm.label_counts(counts).chunk(y=5)):
        with pytest.raises(errors.StoreError, match="already holds"):
            converted(path, source)
    np.testing.assert_array_equal(converted(path, other, overwrite=True).values, other)


def test_flags_and_facts_make_another_conversion(tmp_path):
    path, counts = tmp_path / "scan.zarr", tdm.label_counts(poisson(SHAPE))
    converted(path, counts)
    flags = np.ones(SHAPE[2:], bool)
    flags[0, 0] = False
    for other in (counts.assign_coords(valid_pixels=(("ky", "kx"), flags)), counts.assign_attrs(energy_eV=2e5)):
        with pytest.raises(errors.StoreError, match="already holds"):
            converted(path, other)


def test_a_source_that_changed_is_noticed(raw, tmp_path):
    source, path = tmp_path / "scan.raw", tmp_path / "scan.zarr"
    options = raw_file(source, raw[2])
    stopped_after(path, str(source), 5, **options)
    raw_file(source, raw[2] + np.uint16(1), ">u2")
    os.utime(source, (1, 1))
    with pytest.raises(
        errors.StoreError, match=r'unfinished conversion of another file, or of "scan\.raw" as it was before'
    ):
        converted(path, str(source), **options)
    converted(path, str(source), **options, overwrite=True)
    np.testing.assert_array_equal(tdm.open(path).values, raw[2] + 1)


def test_without_resume_an_unfinished_store_is_an_error(raw, uninterrupted, tmp_path):
    path = tmp_path / "scan.zarr"
    stopped_after(path, str(raw[0]), 5, **raw[1])
    with pytest.raises(errors.StoreError, match="go on with it with resume, or replace it with overwrite"):
        converted(path, str(raw[0]), **raw[1], resume=False)
    store = RecordingStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1], overwrite=True)
    assert len(store.shards()) == SHARDS
    assert_same_store(path, uninterrupted)


def test_overwrite_never_removes_what_is_not_ours(raw, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.partial").write_text("precious")
    other = tmp_path / "other.zarr"
    zarr.create_group(other).create_array("counts", data=np.arange(6))
    file = tmp_path / "file"
    file.write_text("precious")
    for path in (folder, other, file, raw[0]):
        with pytest.raises(errors.StoreError):
            converted(path, poisson(SHAPE), overwrite=True)
    assert (folder / "notes.partial").read_text() == file.read_text() == "precious"
    np.testing.assert_array_equal(zarr.open_array(other / "counts")[...], np.arange(6))
    assert raw[0].stat().st_size == raw[2].nbytes
    # Beside a store of ours, too.
    path = tmp_path / "scan.zarr"
    converted(path, poisson(SHAPE))
    (path / "notes.txt").write_text("precious")
    (path / "my.partial").write_text("precious")
    converted(path, poisson((3, 4, 10, 11)), overwrite=True)
    assert tdm.open(path).shape == (3, 4, 10, 11)
    assert (path / "notes.txt").read_text() == (path / "my.partial").read_text() == "precious"


@pytest.mark.parametrize("change", [lambda c: c, lambda c: tdm.crop(c, y=slice(2, 9)), lambda c: c * 2])
def test_a_store_is_not_overwritten_with_itself(tmp_path, change):
    path, counts = tmp_path / "scan.zarr", poisson(SHAPE)
    converted(path, counts)
    with pytest.raises(errors.StoreError, match="where the counts themselves come from"):
        converted(str(path) + "/../scan.zarr", change(tdm.open(path)), overwrite=True)
    np.testing.assert_array_equal(tdm.open(path).values, counts)


def test_an_interrupted_overwrite_leaves_no_mixture(raw, uninterrupted, tmp_path):
    path = tmp_path / "scan.zarr"
    converted(path, poisson(SHAPE, seed=9))

    class Stop(Exception):
        pass

    class Fragile(WrapperStore):
        """Stops after some members of the old store are gone."""

        left = 3

        async def delete_dir(self, prefix):
            self.left -= 1
            if self.left < 0:
                raise Stop
            await super().delete_dir(prefix)

    with pytest.raises(Stop):
        converted(Fragile(LocalStore(path)), str(raw[0]), **raw[1], overwrite=True)
    with pytest.raises(errors.IncompleteStoreError):
        tdm.open(path)
    converted(path, str(raw[0]), **raw[1], overwrite=True)
    assert_same_store(path, uninterrupted)


# Sources that fail


class Hook(WrapperStore):
    """Calls something once, before the n-th shard is written."""

    def __init__(self, store, at=None, call=None):
        super().__init__(store)
        self.count, self.at, self.call = 0, at, call

    async def set(self, key, value):
        if key.startswith("counts/c/"):
            if self.count == self.at:
                self.call()
            self.count += 1
        await super().set(key, value)


@pytest.mark.parametrize("at", [3, SHARDS - 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.unlink(), "scan.raw cannot be read"),
        (lambda p: os.utime(p, (1, 1)), "changed while it was converted"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "changed while it was converted"),
        (lambda p: p.write_bytes(p.read_bytes()[:-2]), "changed while it was converted|became shorter"),
    ],
)
def test_a_source_that_vanishes_or_changes_while_it_is_read_is_an_error(raw, tmp_path, change, message, at):
    source, path = tmp_path / "scan.raw", tmp_path / "scan.zarr"
    options = raw_file(source, raw[2])
    store = Hook(LocalStore(path), at, lambda: change(source))
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


# A full disk, a store that may not be written


def test_a_full_disk_keeps_what_was_written_and_is_resumed(raw, uninterrupted, tmp_path):
    path = tmp_path / "scan.zarr"
    store = RecordingStore(LocalStore(path), 7, disk_full())
    in_one_thread = dask.config.set(scheduler="synchronous")
    with in_one_thread, pytest.raises(errors.DiskFullError, match="free space and repeat the call"):
        converted(store, str(raw[0]), **raw[1])
    assert len(shard_files(path)) == 7
    converted(path, str(raw[0]), **raw[1])
    assert_same_store(path, uninterrupted)


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
    store = RecordingStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert len(store.shards()) == SHARDS - kept
    assert_same_store(path, uninterrupted)


def test_a_store_that_may_not_be_written_is_an_error(tmp_path):
    denied = RecordingStore(LocalStore(tmp_path / "scan.zarr"), 0, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(errors.StoreError, match=r"cannot be written \(Permission denied"):
        converted(denied, poisson(SHAPE))
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StoreError, match="cannot be written"):
        converted(tmp_path / "file" / "scan.zarr", poisson(SHAPE))


# What is converted


def test_a_crop_a_step_and_a_pixel_size_reach_the_store(raw, tmp_path):
    path = tmp_path / "scan.zarr"
    crop = {"y": slice(3, 12), "x": slice(2, -3), "ky": slice(1, None), "kx": slice(0, 7)}
    counts = converted(path, str(raw[0]), **raw[1], crop=crop, scan_step=("30 pm", 0.4), pixel_size="1.25 mrad")
    np.testing.assert_array_equal(counts.values, raw[2][3:12, 2:-3, 1:, :7])
    np.testing.assert_allclose(counts["y"], 0.3 * np.arange(3, 12))
    np.testing.assert_allclose(counts["x"], 0.4 * np.arange(2, 22))
    assert counts["x"].attrs["units"] == "angstrom"
    assert counts["ky"].attrs["units"] == "px"
    np.testing.assert_array_equal(counts["ky"], np.arange(1, 10))
    assert counts.attrs["pixel_size_mrad"] == [1.25, 1.25]


def test_any_labelled_counts_can_be_converted(raw, tmp_path):
    opened, dense = tdm.open(raw[0], **raw[1]), raw[2].astype(np.uint16)
    cases = {
        "NumPy": (tdm.label_counts(dense), dense),
        "big-endian NumPy": (tdm.label_counts(raw[2]), dense),
        "not contiguous": (tdm.label_counts(dense)[::2, ::-1], dense[::2, ::-1]),
        "transposed": (tdm.label_counts(dense).transpose("kx", "y", "ky", "x"), dense),
        "opened": (opened, dense),
        "cropped": (tdm.crop(opened, x=slice(1, 20), kx=slice(2, 9)), dense[:, 1:20, :, 2:9]),
        "binned": (tdm.bin(opened, detector=2), dense[..., :10].reshape(18, 25, 5, 2, 5, 2).sum((3, 5))),
        "expression": (opened.astype("float32") / 2, dense / np.float32(2)),
        "odd chunks": (tdm.label_counts(dense).chunk(y=5, x=7, ky=4, kx=3), dense),
    }
    for name, (counts, expected) in cases.items():
        path = tmp_path / f"{name}.zarr"
        stored = converted(path, counts)
        np.testing.assert_array_equal(stored.values, expected, err_msg=name)
        np.testing.assert_allclose(stored_statistics(path)["pattern_mean"], expected.mean((0, 1)), rtol=1e-6)
        if name in ("binned", "transposed"):
            assert stored_as_it_is(path, counts)


def stored_as_it_is(path, counts):
    """Whether converting once more finds nothing to write."""
    store = RecordingStore(LocalStore(path))
    converted(store, counts)
    return store.written == []


def test_a_store_can_be_converted_to_another_compression(uninterrupted, raw, tmp_path):
    archive = converted(tmp_path / "archive.zarr", tdm.open(uninterrupted), compression="zstd")
    np.testing.assert_array_equal(archive.values, raw[2])
    assert archive.attrs["source"] == "scan.raw"


def test_options_that_do_not_fit_are_refused(raw, tmp_path):
    path = tmp_path / "scan.zarr"
    for options, error, message in (
        ({"compression": "gzip"}, errors.InputError, "compression is 'gzip'"),
        ({"crop": {"z": slice(1)}}, errors.RegionError, "no axis"),
        ({"crop": {"y": slice(5, 5)}}, errors.RegionError, "empty"),
        ({"scan_step": -1}, errors.UnitError, "scan_step is -1"),
        ({"pixel_size": "3 pm"}, errors.UnitError, "pixel_size"),
        ({"scan_shape": (18, 24)}, errors.ScanShapeError, "scan"),
    ):
        with pytest.raises(error, match=message):
            converted(path, str(raw[0]), **{**raw[1], **options})
    with pytest.raises(errors.InputError, match="scan_shape describes a file"):
        converted(path, poisson(SHAPE), scan_shape=(18, 25))
    for dtype in ("float16", "complex64"):
        with pytest.raises(errors.CountsError, match=dtype):
            converted(path, poisson(SHAPE, dtype))
    none = tdm.label_counts(poisson(SHAPE), {"valid_patterns": (("y", "x"), np.zeros(SHAPE[:2], bool))})
    with pytest.raises(errors.RegionError, match="valid_patterns"):
        converted(path, none)
    assert not path.exists()


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_statistics_honour_the_valid_flags(tmp_path, dtype):
    rng = np.random.default_rng(4)
    dense = poisson(SHAPE, dtype)
    pixels, patterns = rng.random(SHAPE[2:]) < 0.8, rng.random(SHAPE[:2]) < 0.8
    patterns[:4, :6] = False  # a shard without any
    counts = tdm.label_counts(dense, {"valid_pixels": (("ky", "kx"), pixels), "valid_patterns": (("y", "x"), patterns)})
    if dtype == "float32":
        counts.values[:, :, ~pixels] = np.nan
        counts.values[~patterns] = np.inf
    path = tmp_path / "scan.zarr"
    converted(path, counts)
    found = xr.open_zarr(path, chunks=None)
    exact = dense.astype(np.float64)[patterns]
    np.testing.assert_allclose(found["pattern_mean"], np.where(pixels, exact.mean(0), 0), rtol=1e-9)
    np.testing.assert_allclose(found["pattern_variance"], np.where(pixels, exact.var(0), 0), rtol=1e-9)
    np.testing.assert_array_equal(found["pattern_maximum"], np.where(pixels, exact.max(0), 0))
    totals = found["total_counts"].values
    np.testing.assert_allclose(totals[patterns], exact[:, pixels].sum(1), rtol=1e-12)
    assert tdm.verify(path)
    assert stored_statistics(path) is not None


# Schedulers and memory


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local:
        yield local


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes", "distributed"])
def test_every_scheduler_writes_the_same_store(request, raw, uninterrupted, tmp_path, scheduler):
    with contextlib.ExitStack() as stack:
        if scheduler == "distributed":
            from distributed import Client

            stack.enter_context(Client(request.getfixturevalue("cluster")))
        else:
            stack.enter_context(dask.config.set(scheduler=scheduler, num_workers=2))
        path = tmp_path / "scan.zarr"
        converted(path, str(raw[0]), **raw[1])
        memory = tmp_path / "memory.zarr"
        converted(memory, raw[2])
        if scheduler != "processes":  # they start anew for every call
            lazy = tmp_path / "lazy.zarr"
            converted(lazy, tdm.open(raw[0], **raw[1]) + np.uint16(1))
            assert tdm.verify(lazy).shards == SHARDS
            np.testing.assert_array_equal(tdm.open(lazy).values, raw[2] + 1)
    assert_same_store(path, uninterrupted)
    assert shard_files(memory) == shard_files(uninterrupted)


def test_a_failing_task_on_a_cluster_gives_its_own_error(cluster, raw, tmp_path):
    from distributed import Client

    source = tmp_path / "scan.raw"
    options = raw_file(source, raw[2])
    counts = tdm.open(source, **options)
    source.write_bytes(source.read_bytes()[:-200])
    with Client(cluster), pytest.raises(errors.SourceError, match="became shorter"):
        converted(tmp_path / "scan.zarr", counts)


MEMORY = """
import json, os, resource, sys
import dask, numpy as np
import tdm_dask as tdm
from tdm_dask.shards import choose_shards
dask.config.set(scheduler="threads", num_workers=2)
shape = (128, 64, 256, 256)
assert choose_shards(shape, 2)[1] == (32, 32, 256, 256)
tdm.convert(sys.argv[1], sys.argv[2], scan_shape=shape[:2], detector_shape=shape[2:], dtype=">u2")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_a_gigabyte_is_converted_in_less_than_a_gigabyte_of_memory(tmp_path):
    source = tmp_path / "scan.raw"
    frames = poisson((16, 256, 256), ">u2", mean=1).tobytes()
    with source.open("wb") as file:
        for n in range(0, 128 * 64, 16):
            # One pattern in four is written; the rest are holes of the file.
            if n % 64 == 0:
                file.seek(n * 256 * 256 * 2)
                file.write(frames)
        file.truncate(128 * 64 * 256 * 256 * 2)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(source), str(tmp_path / "scan.zarr")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 1e9
