"""Stores whose reads are counted, and scans of several shards to read, for tests."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import xarray as xr
from zarr.storage import WrapperStore

import tdm_dask as tdm
from tdm_dask.reading import store as stores
from tdm_dask.shards.codec import COMPRESSIONS


class CountingStore(WrapperStore):
    """Notes every range of a shard that is read."""

    def __init__(self, store):
        super().__init__(store)
        self.reads = []

    async def get(self, key, prototype=None, byte_range=None):
        data = await super().get(key, prototype, byte_range)
        if "/c/" in key and data is not None and key.startswith("counts"):
            start = getattr(byte_range, "start", None)
            self.reads.append((key, start, len(data)))
        return data

    def chunk_ranges(self):
        """Bytes of inner chunks that were read: (key, start, stop); shard indexes are not among them."""
        return [(key, start, start + size) for key, start, size in self.reads if start is not None]


class WatchedStore(CountingStore):
    """Says when a range of a shard is asked for."""

    def __init__(self, store):
        super().__init__(store)
        self.asked = threading.Semaphore(0)

    async def get(self, key, prototype=None, byte_range=None):
        if getattr(byte_range, "start", None) is not None:
            self.asked.release()
        return await super().get(key, prototype, byte_range)


def several_shards(tmp_path, dtype="uint16", shape=(40, 48, 128, 128)):
    """A store of several shards with several detector tiles each, and its counts."""
    rng = np.random.default_rng(8)
    counts = rng.poisson(1, shape).astype(dtype)
    path = tmp_path / "scan.zarr"
    # Small shards, so that a small scan has several.
    original = stores.choose_shards
    try:
        stores.choose_shards = lambda shape, itemsize: ((8, 8, 32, 32), (16, 16, *shape[2:]))
        tdm.convert(tdm.label_counts(counts), path)
    finally:
        stores.choose_shards = original
    return path, counts


def templates(counts, n=5):
    rng = np.random.default_rng(2)
    return xr.DataArray(rng.normal(size=(n, *counts.shape[:2])), dims=("template", "y", "x"))


def assert_read_once(store, path, fraction=1.0):
    ranges = store.chunk_ranges()
    assert ranges, "nothing was read"
    assert len(ranges) == len(set(ranges))
    for key in {k for k, _, _ in ranges}:
        spans = sorted((a, b) for k, a, b in ranges if k == key)
        assert all(first[1] <= second[0] for first, second in pairwise(spans)), "a chunk was read twice"
    stored = sum(p.stat().st_size for p in (path / "counts" / "c").rglob("*") if p.is_file())
    assert sum(b - a for _, a, b in ranges) <= 1.02 * fraction * stored


def repeated_store(path, gigabytes):
    """A store of equal shards, written as one shard's bytes many times over."""
    shards = gigabytes * 8
    shape = (32, 32 * shards, 256, 256)
    array = stores.create(
        stores.resolve(path, read_only=False),
        {"schema": 1, "state": "complete", "id": stores.new_id()},
        shape,
        np.dtype(np.uint16),
        COMPRESSIONS["lz4"],
        {},
    )
    block = np.random.default_rng(0).poisson(0.5, (32, 32, 256, 256)).astype(np.uint16)
    data = b"".join(array.encode_shard((0, 0, 0, 0), lambda y, x: block[y, x]))
    for n in range(shards):
        file = path / array.key((0, n, 0, 0))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return shards * len(data)
