"""Files are mapped into memory, and ranges of a store's objects read so."""

from __future__ import annotations

import mmap
import os
import sys

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest
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
