"""Counts of any byte order and strides come out native and contiguous."""

from __future__ import annotations

import numpy as np
import pytest

from tdm_dask.memory import Buffers, copy_native, native

DTYPES = ["<u2", ">u2", ">u1", ">u4", "<u4", ">f4", ">i2", "?"]


def as_stored(dtype: str, offset: int, gap: int, shape: tuple[int, ...] = (3, 4, 6, 10)) -> np.ndarray:
    """Counts as in a file: `offset` bytes, then patterns with `gap` bytes after each."""
    ny, nx, nky, nkx = shape
    item = np.dtype(dtype).itemsize
    stride = nky * nkx * item + gap
    raw = np.random.default_rng(1).integers(0, 2, offset + ny * nx * stride, dtype=np.uint8)
    if dtype != "?":
        raw = np.random.default_rng(1).integers(0, 60, raw.shape, dtype=np.uint8)
    return np.ndarray(shape, dtype, raw.data, offset, (nx * stride, stride, nkx * item, item))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("offset", "gap"), [(0, 0), (384, 384), (3, 5)])
def test_native(dtype, offset, gap):
    whole = as_stored(dtype, offset, gap)
    buffers = Buffers()
    for counts in (
        whole,
        whole[:, :, ::-1],
        whole[::-1, ::-1, ::-1],
        whole[..., ::-1],
        whole[1:, 2:3, 2:5, 3:9],
        whole[..., ::2],
        whole[:0],
        whole.transpose(0, 1, 3, 2),
    ):
        expected = counts.tolist()
        got = native(counts, buffers)
        assert got.dtype == np.dtype(dtype).newbyteorder("=")
        assert got.flags.c_contiguous
        assert got.flags.aligned
        assert got.tolist() == expected
        larger = np.zeros([n + 1 for n in counts.shape], got.dtype)
        inside = larger[tuple(slice(0, n) for n in counts.shape)]
        copy_native(counts, inside)
        assert inside.tolist() == expected
        assert np.count_nonzero(larger) == np.count_nonzero(inside)


def test_native_does_not_copy_without_need():
    counts = np.zeros((2, 2, 3, 3), np.uint16)
    assert native(counts, Buffers()) is counts


def test_buffers_are_used_again():
    buffers = Buffers()
    large = buffers.take("a", (4, 8), np.uint16)
    small = buffers.take("a", (5,), np.float32)
    assert np.shares_memory(large, small)
    assert not np.shares_memory(large, buffers.take("b", (4,), np.uint8))
