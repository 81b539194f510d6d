"""Counts of any byte order and strides come out native and contiguous; frames are mapped, or read."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tdm_dask.errors import SourceError
from tdm_dask.kernels.copying import copy_native, copy_tiles
from tdm_dask.reading.blocks import RawFrames
from tdm_dask.reading.memory import Buffers, native

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


@pytest.mark.parametrize("dtype", [*DTYPES, "<f8"])
@pytest.mark.parametrize("width", [1, 3, 5, 10, 11])
def test_copy_tiles(dtype, width):
    whole = as_stored(dtype, 0, 384)
    for counts in (whole, whole[:, :, ::-1], whole[..., ::-1], whole[::-1, :2, 1:5, 2:9], whole.transpose(1, 0, 2, 3)):
        native_dtype = np.dtype(dtype).newbyteorder("=")
        shape = [n + 1 for n in counts.shape[:3]]
        tiles = np.ones((-(-counts.shape[3] // width), *shape, width), native_dtype)
        expected = np.ones((*shape, len(tiles) * width), native_dtype)
        expected[tuple(slice(n) for n in counts.shape)] = counts
        copy_tiles(counts, tiles)
        assert np.concatenate(list(tiles), -1).tolist() == expected.tolist()


def test_native_does_not_copy_without_need():
    counts = np.zeros((2, 2, 3, 3), np.uint16)
    assert native(counts, Buffers()) is counts


def test_buffers_are_used_again():
    buffers = Buffers()
    large = buffers.take("a", (4, 8), np.uint16)
    small = buffers.take("a", (5,), np.float32)
    assert np.shares_memory(large, small)
    assert not np.shares_memory(large, buffers.take("b", (4,), np.uint8))


@pytest.mark.parametrize("window", [(slice(0, 5), slice(0, 7)), (slice(1, 4), slice(2, 5)), (slice(4, 5), slice(6, 7))])
@pytest.mark.parametrize("gaps", [(0, 0), (6, 0), (6, 10)])
@pytest.mark.parametrize("can_map", [True, False])
def test_frames_are_read_alike_with_and_without_a_map(tmp_path, monkeypatch, window, gaps, can_map):
    if not can_map:
        monkeypatch.setattr("tdm_dask.reading.blocks.mapped", lambda *_: None)
    ny, nx, nky, nkx = shape = (5, 7, 4, 6)
    between, after_line = gaps
    counts = np.random.default_rng(0).integers(0, 999, shape).astype(">u2")
    frames = np.zeros((ny, nx, nky * nkx * 2 + between), np.uint8)
    frames[..., : nky * nkx * 2] = counts.reshape(ny, nx, -1).view(np.uint8)
    lines = np.zeros((ny, frames[0].size + after_line), np.uint8)
    lines[:, : frames[0].size] = frames.reshape(ny, -1)
    path = tmp_path / "frames"
    path.write_bytes(bytes(3) + lines.tobytes())
    source = RawFrames(str(path), shape, ">u2", 3, nky * nkx * 2 + between, lines.shape[1])
    y, x = window
    expected = counts[window].astype(np.uint16)
    np.testing.assert_array_equal(source.read_as_stored(y, x, Buffers()), expected)
    np.testing.assert_array_equal(source.read(y.start, y.stop, x.start, x.stop), expected)
    os.truncate(path, 3 + lines.size - after_line - between - 1)
    if window[0].stop == ny and window[1].stop == nx:
        with pytest.raises(SourceError, match="became shorter"):
            source.read_as_stored(y, x, Buffers())


def test_a_file_that_cannot_be_opened_any_more_is_one_sentence(tmp_path):
    """As after its permissions were taken away; a folder is a path that not even root can open."""
    path = tmp_path / "frames"
    path.write_bytes(bytes(48))
    source = RawFrames(str(path), (1, 2, 4, 6), "u1")
    path.unlink()
    for reason in ("No such file or directory", "Is a directory"):
        with pytest.raises(SourceError, match=rf"frames cannot be read \({reason}\); check the path"):
            source.read(0, 1, 0, 2)
        path.mkdir(exist_ok=True)
