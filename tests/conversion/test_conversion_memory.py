"""A conversion holds little at a time and decompresses each part of its source once, however the file is chunked."""

from __future__ import annotations

import math
from itertools import product
from unittest import mock

import dask
import h5py
import numpy as np
import pytest
import zarr
from conversions import WatchedStore, assert_same_store, disk_full
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_stores import INNER, SHARD, poisson, small_shards
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.shards.shapes import choose_shards, follow_tiles
from tdm_dask.sources.stacks import StackSource

SHAPE = (16, 24, 12, 16)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(1, 1000), st.integers(1, 1000), st.integers(16, 600), st.integers(16, 600)),
    st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
)
@example((256, 512, 256, 256), (1, 512))
@example((256, 515, 256, 256), (1, 515))
@example((256, 512, 256, 256), (1, 1000))
@example((64, 2048, 256, 256), (1, 2048))
@example((256, 512, 256, 256), (64, 64))
@example((256, 512, 256, 256), (97, 97))
def test_shards_that_follow_tiles_are_sound(shape, tile):
    default = choose_shards(shape, 2)
    inner, shard = follow_tiles(*default, shape, tile)
    assert all(s % c == 0 for s, c in zip(shard, inner, strict=True))
    assert (inner[2:], shard[2:]) == (default[0][2:], default[1][2:])
    assert math.prod(inner[:2]) <= math.prod(default[0][:2])
    # Along the whole of an axis, the last inner chunk of a shard may overhang.
    overhang = math.prod((s + c) / s for s, c in zip(shard[:2], inner[:2], strict=True))
    assert math.prod(shard[:2]) <= math.prod(default[1][:2]) * overhang
    if shard == default[1]:
        return
    sizes = [min(t, n) for t, n in zip(tile, shape, strict=False)]
    whole_tiles = all(s % t == 0 or s >= n for s, t, n in zip(shard, sizes, shape, strict=False))
    parts = all(t % s == 0 or t == n for s, t, n in zip(shard, sizes, shape, strict=False))
    assert whole_tiles if math.prod(sizes) <= math.prod(default[1][:2]) else parts


def test_shards_of_the_usual_shape_are_kept_where_tiles_fit():
    usual = choose_shards((256, 512, 256, 256), 2)
    for tile in ((1, 1), (1, 32), (16, 32), (32, 32), (2, 3)):
        assert follow_tiles(*usual, (256, 512, 256, 256), tile) == usual


def write(path, counts, chunks):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=counts, chunks=chunks, compression="lzf")


def chunks_read(path, store, chunks, **options):
    """Convert with small shards; how often each chunk (y, x) of the file is decompressed."""
    times: dict[tuple[int, int], int] = {}
    read = StackSource.read

    def watched(self, y0, y1, x0, x1):
        for place in product(range(y0 // chunks[0], -(-y1 // chunks[0])), range(x0 // chunks[1], -(-x1 // chunks[1]))):
            times[place] = times.get(place, 0) + 1
        return read(self, y0, y1, x0, x1)

    # A look at a few patterns, before anything is converted, does not count.
    no_look = mock.patch("tdm_dask.sources.formats.registry.doubts_about_order", return_value=[])
    with small_shards(), no_look, mock.patch.object(StackSource, "read", watched):
        tdm.convert(path, store, **options)
    return times


@pytest.mark.long
@pytest.mark.parametrize(
    "chunks",
    [
        (1, 1, 12, 16),
        (1, 24, 12, 16),  # lines
        (2, 24, 12, 16),  # as long as the scan, larger than a shard
        (4, 3, 5, 16),
        (3, 5, 12, 16),  # fits no shard of the usual shape
        (8, 12, 3, 4),  # a few pixels over several shards
        (16, 24, 1, 1),
    ],
)
def test_each_chunk_is_decompressed_once(tmp_path, chunks):
    counts = poisson(SHAPE)
    write(tmp_path / "scan.h5", counts, chunks)
    times = chunks_read(tmp_path / "scan.h5", tmp_path / "store", chunks)
    assert set(times) == set(product(*(range(-(-n // c)) for n, c in zip(SHAPE[:2], chunks, strict=False))))
    assert set(times.values()) == {1}
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "store/counts")[...], counts)
    assert tdm.verify(tmp_path / "store").shards > 1


def test_tiles_that_are_too_large_are_read_by_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("tdm_dask.conversion.job._TILE_BYTES", 1000)
    counts, chunks = poisson(SHAPE), (8, 12, 3, 4)
    write(tmp_path / "scan.h5", counts, chunks)
    times = chunks_read(tmp_path / "scan.h5", tmp_path / "store", chunks)
    assert min(times.values()) > 1
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "store/counts")[...], counts)


@pytest.mark.parametrize("crop", [{"y": slice(3, 15)}, {"y": slice(8, 16), "x": slice(5, 23), "ky": slice(2, 9)}])
def test_a_crop_of_large_chunks_is_whole(tmp_path, crop):
    counts, chunks = poisson(SHAPE), (8, 12, 3, 4)
    write(tmp_path / "scan.h5", counts, chunks)
    chunks_read(tmp_path / "scan.h5", tmp_path / "store", chunks, crop=crop)
    window = tuple(crop.get(dim, slice(None)) for dim in ("y", "x", "ky", "kx"))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "store/counts")[...], counts[window])


def test_a_conversion_that_stopped_within_a_large_tile_goes_on(tmp_path):
    counts, chunks = poisson(SHAPE), (8, 12, 3, 4)
    path = tmp_path / "scan.h5"
    write(path, counts, chunks)
    with small_shards():
        tdm.convert(path, tmp_path / "whole")
        watched = WatchedStore(LocalStore(tmp_path / "stopped"), 2, disk_full)
        with dask.config.set(scheduler="synchronous"), pytest.raises(errors.DiskFullError):
            tdm.convert(path, watched)
        store = WatchedStore(LocalStore(tmp_path / "stopped"))
        tdm.convert(path, store)
    assert_same_store(tmp_path / "stopped", tmp_path / "whole")
    assert len(store.shards()) == math.prod(n // s for n, s in zip(SHAPE[:2], (4, 6), strict=False)) - 2


def test_frames_in_chunks_that_do_not_fill_lines_are_read_in_whole_lines(tmp_path):
    counts = poisson((10, 20, 12, 16))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("data", data=counts.reshape(-1, 12, 16), chunks=(7, 12, 16))
    with small_shards():
        tdm.convert(tmp_path / "scan.h5", tmp_path / "store", scan_shape=(10, 20))
    array = zarr.open_array(tmp_path / "store/counts")
    assert array.shards[1] >= 20
    np.testing.assert_array_equal(array[...], counts)


def test_small_shards_are_what_these_tests_take_them_for():
    assert (INNER[:2], SHARD) == ((2, 3), (4, 6))


def test_a_store_begun_with_other_shards_is_finished_with_them(tmp_path, monkeypatch):
    """An unfinished store keeps its shards, and no task reads more than a shard or a tile of the file for it."""
    counts, chunks = poisson(SHAPE), (1, 24, 12, 16)
    path = tmp_path / "scan.h5"
    write(path, counts, chunks)
    with small_shards():
        with monkeypatch.context() as patched:
            patched.setattr("tdm_dask.reading.store.follow_tiles", lambda inner, shard, shape, tile: (inner, shard))
            store = WatchedStore(LocalStore(tmp_path / "store"), 2, disk_full)
            with dask.config.set(scheduler="synchronous"), pytest.raises(errors.DiskFullError):
                tdm.convert(path, store)
        monkeypatch.setattr("tdm_dask.conversion.job._TILE_BYTES", 5 * 24 * 12 * 16 * 2)
        largest = 0
        read = StackSource.read

        def watched(self, y0, y1, x0, x1):
            nonlocal largest
            largest = max(largest, (y1 - y0) * (x1 - x0))
            return read(self, y0, y1, x0, x1)

        with mock.patch.object(StackSource, "read", watched):
            tdm.convert(path, tmp_path / "store")
    assert zarr.open_array(tmp_path / "store/counts").shards[:2] == SHARD
    assert largest <= 5 * 24
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "store/counts")[...], counts)
