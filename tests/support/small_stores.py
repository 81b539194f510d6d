"""Small scans in stores of several shards, for tests."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import numpy as np

import tdm_dask as tdm
from tdm_dask.reading import store as stores

INNER, SHARD = (2, 3, 6, 8), (4, 6)


@contextlib.contextmanager
def small_shards(inner=INNER, shard=SHARD):
    """Inside, stores get shards of a few probe positions, and overhang the detector by less than an inner chunk."""

    def choose(shape, itemsize):
        detector = [-(-n // c) * c for n, c in zip(shape[2:], inner[2:], strict=True)]
        return inner, (*shard, *detector)

    with mock.patch.object(stores, "choose_shards", choose):
        yield


def poisson(shape, dtype="uint16", seed=0, mean=3):
    return np.random.default_rng(seed).poisson(mean, shape).astype(dtype)


def converted(path, counts, **options):
    """Convert an array (or labelled counts) with small shards."""
    with small_shards():
        return tdm.convert(tdm.label_counts(counts) if isinstance(counts, np.ndarray) else counts, path, **options)


def shard_files(path):
    """Contents of the shards of a store, by key."""
    folder = Path(path) / "counts" / "c"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def raw_file(path, counts, dtype=None):
    """Write counts as raw binary; gives the options that open it."""
    Path(path).write_bytes(np.ascontiguousarray(counts, dtype or counts.dtype).tobytes())
    dtype = np.dtype(dtype or counts.dtype).str
    return {"scan_shape": counts.shape[:2], "detector_shape": counts.shape[2:], "dtype": dtype}
