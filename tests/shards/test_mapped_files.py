"""Files are mapped into memory, and ranges of a store's objects read so."""

from __future__ import annotations

import mmap
import os
import sys
import threading

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import LocalStore

from tdm_dask.shards import objects
from tdm_dask.shards.mapped_files import mapped


@pytest.fixture
def file(tmp_path):
    """A file of 100 kB and what is in it."""
    path = tmp_path / "file"
    content = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    return path, content


def map_part(path, start, stop, pieces):
    with open(path, "rb") as file:
        return mapped(file.fileno(), start, stop, pieces)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux brings pages in on request")
@pytest.mark.parametrize(("start", "stop"), [(0, 100_000), (1, 2), (4096, 8192), (5000, 99_999)])
def test_mapped(file, start, stop):
    path, content = file
    data = map_part(path, start, stop, [(start, stop)])
    np.testing.assert_array_equal(data, content[start:stop])
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux brings pages in on request")
def test_mapping_what_is_not_there_is_an_error_and_no_signal(file, monkeypatch):
    path, _ = file
    whole_map = mmap.mmap

    def cut_and_map(*args, **options):
        memory = whole_map(*args, **options)
        os.truncate(path, 10_000)  # after the size was looked at
        return memory

    monkeypatch.setattr(mmap, "mmap", cut_and_map)
    with pytest.raises(OSError, match="became shorter"):
        map_part(path, 0, 100_000, [(0, 100_000)])


@pytest.mark.parametrize("can_map", [True, False])
@pytest.mark.parametrize("window", [(0, 100_000), (1, 2), (4095, 8193), (99_000, 200_000), (100_000, 100_001), (7, 7)])
def test_a_range_of_an_object(file, monkeypatch, can_map, window):
    path, content = file
    if not can_map:
        monkeypatch.setattr(objects, "mapped", lambda *_: None)
    store = LocalStore(path.parent, read_only=True)
    start, stop = window
    np.testing.assert_array_equal(objects.get(store, path.name, RangeByteRequest(start, stop)), content[start:stop])
    assert objects.get(store, "another", RangeByteRequest(start, stop)) is None


def test_the_end_of_an_object(file, monkeypatch):
    path, content = file
    store = LocalStore(path.parent, read_only=True)
    for can_map in (True, False):
        if not can_map:
            monkeypatch.setattr(objects, "mapped", lambda *_: None)
        for size in (1, 4, 5000, 100_000, 200_000):
            np.testing.assert_array_equal(objects.get(store, path.name, SuffixByteRequest(size)), content[-size:])
        assert objects.get(store, "another", SuffixByteRequest(4)) is None
    (path.parent / "empty").touch()
    assert len(objects.get(store, "empty", SuffixByteRequest(4))) == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_ranges_come_in_order_and_only_what_a_disk_is_waited_for_is_read_ahead(file, monkeypatch, in_memory):
    path, content = file
    store = LocalStore(path.parent, read_only=True)
    wanted = [RangeByteRequest(50_000, 60_000), RangeByteRequest(0, 10), RangeByteRequest(99_999, 120_000)]
    threads, read = [], objects._Range.__call__

    def noted(self):
        threads.append(threading.current_thread())
        return read(self)

    monkeypatch.setattr(objects._Range, "__call__", noted)
    monkeypatch.setattr(objects._Range, "in_memory", lambda _: in_memory)
    found = []
    for n, data in enumerate(objects.read_ranges(store, path.name, wanted), 1):
        found.append(data.copy())
        assert len(threads) <= n + (not in_memory), "no more than the next one is read ahead"
    for data, byte_range in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(data, content[byte_range.start : byte_range.end])
    assert [thread is threading.current_thread() for thread in threads] == [in_memory] * len(wanted)
    assert list(objects.read_ranges(store, "another", wanted)) == [None] * 3

