"""Conversions that are watched, stopped and compared, for tests."""

from __future__ import annotations

import errno
from pathlib import Path

import dask
import pytest
import xarray as xr
from small_stores import converted, shard_files
from zarr.storage import LocalStore, WrapperStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.reading.store import SIDECARS, stored_statistics

# What the fixture `raw` gives; with small shards, this many.
SHAPE = (18, 25, 10, 11)
SHARDS = 25


def leftovers(path):
    return [p for p in Path(path).rglob("*") if p.name.endswith(".partial") or p.name == SIDECARS]


def assert_same_store(path, other):
    """Every shard byte-equal, every statistic equal, nothing left of the way there."""
    assert shard_files(path) == shard_files(other)
    xr.testing.assert_identical(stored_statistics(path), stored_statistics(other))
    assert leftovers(path) == []
    assert tdm.verify(path).shards == len(shard_files(other))


class WatchedStore(WrapperStore):
    """Notes the objects that are written, and calls something before the n-th shard is: to harm, or to raise."""

    def __init__(self, store, at=None, call=None):
        super().__init__(store)
        self.written, self.at, self.call = [], at, call

    async def set(self, key, value):
        if key.startswith("counts/c/") and len(self.shards()) == self.at:
            self.call()
        self.written.append(key)
        await super().set(key, value)

    def shards(self):
        return [key for key in self.written if key.startswith("counts/c/")]


def disk_full():
    raise OSError(errno.ENOSPC, "No space left on device")


def stopped_after(path, source, shards, **options):
    """Leave an unfinished conversion with that many shards at `path`."""
    store = WatchedStore(LocalStore(path), shards, disk_full)
    with dask.config.set(scheduler="synchronous"), pytest.raises(errors.DiskFullError):
        converted(store, source, **options)
