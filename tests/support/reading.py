"""Counts for files, and whether a file's source reads exactly them."""

from __future__ import annotations

import json
import pickle

import numpy as np

RNG = np.random.default_rng(7)


def random_counts(shape, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    top = min(np.iinfo(dtype).max, 2**31)
    return RNG.integers(0, top, size=shape, endpoint=True).astype(dtype)


def whole(file):
    ny, nx = file.source.shape[:2]
    return file.source.read(0, ny, 0, nx)


def assert_reads(file, expected):
    """The pickled source gives exactly these counts, whole, in windows, in blocks, in native byte order."""
    source = pickle.loads(pickle.dumps(file.source))
    ny, nx = expected.shape[:2]
    assert source.shape == expected.shape
    assert source.dtype.isnative
    got = source.read(0, ny, 0, nx)
    assert got.dtype == source.dtype
    np.testing.assert_array_equal(got, expected)
    for y0, y1, x0, x1 in [
        (0, 1, 0, 1),
        (ny - 1, ny, 0, nx),
        (0, ny, nx - 1, nx),
        (ny // 2, ny, nx // 3, nx),
    ]:
        part = source.read(y0, y1, x0, x1)
        assert part.flags.c_contiguous
        np.testing.assert_array_equal(part, expected[y0:y1, x0:x1])
    for window in [(slice(0, ny), slice(0, nx)), (slice(ny // 2, ny), slice(nx // 3, nx))]:
        seen = np.zeros((ny, nx), int)
        for block in source.blocks(window, None, None):
            seen[block.y, block.x] += 1
            np.testing.assert_array_equal(block.counts, expected[block.y, block.x, block.ky, block.kx])
        inside = np.zeros((ny, nx), int)
        inside[window] = 1
        np.testing.assert_array_equal(seen, inside)
    json.dumps(file.metadata, allow_nan=False)
    json.dumps(file.acquisition, allow_nan=False)
