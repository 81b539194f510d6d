"""Conversion: killed at any moment and resumed, and what is there already.

`TDM_TEST_KILLS=50 pytest tests/test_conversion_resume.py -k killed` kills fifty times.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr
from conversions import SHAPE, SHARDS, WatchedStore, assert_same_store, stopped_after
from small_stores import converted, poisson, raw_file, shard_files
from zarr.storage import LocalStore, WrapperStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.conversion import conversion
from tdm_dask.conversion.job import convert_shards
from tdm_dask.reading.store import SIDECARS

KILLS = int(os.environ.get("TDM_TEST_KILLS", "8"))

# Killed at any moment

FORKS = """
import os, signal, sys
import dask
import small_stores, tdm_dask as tdm
from tdm_dask.conversion import conversion
from tdm_dask.passes import reductions
from tdm_dask.reading import store
from tdm_dask.reading.blocks import Block
dask.config.set(scheduler="threads", num_workers=2)
source, options = sys.argv[1], eval(sys.argv[2])
# What takes long without writing anything is done once, before the forks; no thread is started by it.
counts = small_stores.poisson((2, 3, 6, 8))
moments = reductions.Moments((slice(0, 6), slice(0, 8)), True)
state = moments.start((slice(0, 2), slice(0, 3)), None, None)
moments.add(state, Block(slice(0, 2), slice(0, 3), slice(0, 6), slice(0, 8), counts), None, None)
store.pattern_totals(counts)
print("ready", flush=True)
def die_at_check(number, check=conversion.check_shard):
    checked = []
    def counted(job, shard, written):
        checked.append(shard)
        if len(checked) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return check(job, shard, written)
    conversion.check_shard = counted
for line in iter(sys.stdin.readline, ""):
    target, number = line.split()
    pid = os.fork()
    if pid == 0:
        try:
            die_at_check(int(number))
            small_stores.converted(target, source, **options)
            os._exit(0)
        finally:
            os._exit(1)
    print(pid, flush=True)
    sys.stdin.readline()  # until then a process that has ended keeps its id
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture
def forks(raw):
    """Starts a conversion in a process of its own, which kills itself at the n-th shard that it reads back, if any.

    Gives its id, and what it ended with.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS, str(raw[0]), repr(raw[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "ready\n"

    def begin(target, at_check=0):
        process.stdin.write(f"{target} {at_check}\n")
        process.stdin.flush()
        return int(process.stdout.readline()), end

    def end():
        process.stdin.write("\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield begin
    process.communicate()


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize("shard", [1, 12, SHARDS])
def test_a_conversion_killed_while_it_reads_its_shards_back_checks_all_of_them_again(
    raw, uninterrupted, forks, tmp_path, shard
):
    path = tmp_path / "scan.zarr"
    _, ended = forks(path, at_check=shard)
    assert os.WTERMSIG(ended()) == signal.SIGKILL
    assert shard_files(path) == shard_files(uninterrupted)
    with pytest.raises(errors.IncompleteStoreError):
        tdm.open(path)
    store = WatchedStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert store.shards() == []
    assert_same_store(path, uninterrupted)


@pytest.mark.long
def test_a_shard_harmed_between_the_kill_and_the_resumption_is_found(raw, uninterrupted, forks, tmp_path):
    path = tmp_path / "scan.zarr"
    _, ended = forks(path, at_check=SHARDS)
    ended()
    shard = path / "counts" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(errors.CorruptStoreError, match=r"\(probe positions y 0-3, x 0-5\) has a wrong checksum"):
        converted(path, str(raw[0]), **raw[1])
    converted(path, str(raw[0]), **raw[1])
    assert_same_store(path, uninterrupted)


def test_a_task_that_is_repeated_does_not_write_its_shard_again(raw, uninterrupted, tmp_path, monkeypatch):
    def twice(*arguments):
        convert_shards(*arguments)
        convert_shards(*arguments)

    monkeypatch.setattr(conversion, "convert_shards", twice)
    store = WatchedStore(LocalStore(tmp_path / "scan.zarr"))
    converted(store, str(raw[0]), **raw[1])
    assert len(store.shards()) == SHARDS
    assert_same_store(tmp_path / "scan.zarr", uninterrupted)


def state_of(path):
    try:
        return json.loads((path / "zarr.json").read_text())["attributes"]["tdm_dask"]["state"]
    except FileNotFoundError:
        return None


@pytest.mark.long
@pytest.mark.parametrize("shards", [0, 1, 13, SHARDS - 1])
def test_resuming_writes_only_what_is_missing(raw, uninterrupted, tmp_path, shards):
    path = tmp_path / "scan.zarr"
    stopped_after(path, str(raw[0]), shards, **raw[1])
    with pytest.raises(errors.IncompleteStoreError):
        tdm.open(path)
    # As a writer that was killed leaves them.
    for folder in (path, path / "counts"):
        (folder / f"0.{'3f' * 16}.partial").write_bytes(b"half a shard")
    store = WatchedStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert len(store.shards()) == SHARDS - shards
    assert_same_store(path, uninterrupted)


@pytest.mark.long
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
    store = WatchedStore(LocalStore(path))
    converted(store, str(raw[0]), **raw[1])
    assert f"counts/c/{key}" in store.shards()
    assert len(store.shards()) == SHARDS - 3
    assert_same_store(path, uninterrupted)


def test_sums_are_written_before_their_shard(raw, tmp_path):
    store = WatchedStore(LocalStore(tmp_path / "scan.zarr"))
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
    store = WatchedStore(LocalStore(tmp_path / "scan.zarr"))
    converted(store, str(raw[0]), **raw[1])
    store.written.clear()
    np.testing.assert_array_equal(converted(store, str(raw[0]), **raw[1]).values, raw[2])
    assert store.written == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"compression": "zstd"}, "compression lz4 instead of zstd"),
        ({"compression": "none"}, "compression lz4 instead of none"),
        ({"crop": {"y": slice(0, 9)}}, r"crop none instead of {'y': \[0, 9\]}"),
        ({"scan_step": 0.3}, "with another calibration, such as the scan step"),
        ({"pixel_size": 1.0}, "with another calibration, such as the scan step"),
        ({"dtype": "<u2"}, "layout of the file .*<u2"),
        ({"scan_shape": (25, 18)}, r"shape \[18, 25, .* instead of \[25, 18, "),
    ],
)
def test_another_request_is_not_answered_with_what_is_there(raw, tmp_path, other, difference):
    path = tmp_path / "scan.zarr"
    converted(path, str(raw[0]), **raw[1])
    before = shard_files(path)
    told = r'already holds "scan\.raw", converted from another file or in another way \(.*'
    with pytest.raises(errors.StoreError, match=told + difference):
        converted(path, str(raw[0]), **{**raw[1], **other})
    assert shard_files(path) == before


@pytest.mark.long
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


def test_a_file_that_came_anew_is_the_same_file(raw, tmp_path):
    """As one that was copied, or came with a package that was installed again: it has another time."""
    source = tmp_path / "scan.raw"
    options = raw_file(source, raw[2])
    converted(tmp_path / "whole.zarr", str(source), **options)
    stopped_after(tmp_path / "stopped.zarr", str(source), 5, **options)
    os.utime(source, (1, 1))
    whole = WatchedStore(LocalStore(tmp_path / "whole.zarr"))
    for store in (whole, tmp_path / "stopped.zarr"):
        np.testing.assert_array_equal(converted(store, str(source), **options).values, raw[2])
    assert whole.written == []


def test_a_large_file_at_another_time_is_another_file(raw, tmp_path, monkeypatch):
    """To look at its content would take long."""
    monkeypatch.setattr("tdm_dask.sources.vendor.HASHED_BYTES", raw[2].nbytes - 1)
    source, path = tmp_path / "scan.raw", tmp_path / "scan.zarr"
    options = raw_file(source, raw[2])
    converted(path, str(source), **options)
    os.utime(source, (1, 1))
    with pytest.raises(errors.StoreError, match="converted from another file"):
        converted(path, str(source), **options)


def test_other_counts_at_the_same_time_are_another_file(raw, tmp_path):
    source, path = tmp_path / "scan.raw", tmp_path / "scan.zarr"
    options = raw_file(source, raw[2])
    os.utime(source, (1, 1))
    converted(path, str(source), **options)
    raw_file(source, raw[2][::-1])
    os.utime(source, (1, 1))
    with pytest.raises(errors.StoreError, match="converted from another file"):
        converted(path, str(source), **options)


def test_without_resume_an_unfinished_store_is_an_error(raw, uninterrupted, tmp_path):
    path = tmp_path / "scan.zarr"
    stopped_after(path, str(raw[0]), 5, **raw[1])
    with pytest.raises(errors.StoreError, match="go on with it with resume=True, or replace it with overwrite=True"):
        converted(path, str(raw[0]), **raw[1], resume=False)
    store = WatchedStore(LocalStore(path))
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
