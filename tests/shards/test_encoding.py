"""Inner chunks that are written from bit planes are valid Blosc chunks of the same counts, as small as c-blosc's."""

from __future__ import annotations

import math

import numcodecs
import numpy as np
import pytest

from tdm_dask.kernels.bit_planes import make_planes, place_planes
from tdm_dask.shards import encoding
from tdm_dask.shards.codec import COMPRESSIONS, Codec
from tdm_dask.shards.decoding import Decoder
from tdm_dask.shards.encoding import Encoder

DTYPES = ("u1", "i1", "?", "u2", "i2", "u4", "i4", "f4")
# Inner chunks of one block, of several whole ones, with a shorter last one; and of sizes that numcodecs compresses.
SHAPES = ((4, 4, 16, 16), (16, 16, 32, 64), (10, 16, 48, 64), (3, 3, 5, 7), (1, 1, 8, 8))


def counts_of(kind, dtype, shape):
    rng = np.random.default_rng(len(kind))
    dtype = np.dtype(dtype)
    counts = {
        "zeros": lambda: np.zeros(shape),
        "few": lambda: rng.poisson(0.6, shape),
        "many": lambda: rng.poisson(300, shape),
        "disk": lambda: rng.poisson(np.where(np.arange(shape[-1]) < shape[-1] // 2, 8, 0.1), shape),
        "hot": lambda: np.where(rng.random(shape) < 1e-4, 2.0**31 - 1, 0),
        "negative": lambda: rng.poisson(3, shape) - 2,
        "noise": lambda: rng.integers(0, 2**31, shape),
    }[kind]()
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        counts = np.clip(counts, limits.min, limits.max)
    return counts.astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["zeros", "few", "many", "disk", "hot", "negative", "noise"])
def test_numcodecs_reads_what_is_written_and_writes_nothing_smaller(kind, dtype, shape):
    counts, codec = counts_of(kind, dtype, shape), COMPRESSIONS["lz4"]
    encoder = Encoder(codec, counts.dtype)
    for _ in range(2):  # in memory that is used again
        data, checksum = encoder.encode(counts)
        out = np.empty_like(counts)
        numcodecs.blosc.decompress(data, out.reshape(-1).view(np.uint8))
        assert out.tobytes() == counts.tobytes()
        whole, expected = codec.encode(counts), len(codec.encode(counts)[0])
        assert len(whole[1]) == len(checksum) == 4
        assert len(data) <= 1.02 * expected + 64
        interleaved = Decoder(codec, shape, counts.dtype, 0).interleaved(np.frombuffer(data, np.uint8))
        assert interleaved is not None or math.prod(shape[2:]) % 8 or len(data) > counts.nbytes


@pytest.mark.parametrize("clevel", range(1, 10))
def test_every_level_is_written(clevel):
    counts = counts_of("disk", "u2", (16, 16, 32, 64))
    codec = Codec("blosc", (("cname", "lz4"), ("clevel", clevel), ("shuffle", "bitshuffle")), checksum=False)
    (data,) = Encoder(codec, counts.dtype).encode(counts)
    out = np.empty_like(counts)
    numcodecs.blosc.decompress(data, out.reshape(-1).view(np.uint8))
    np.testing.assert_array_equal(out, counts)


def test_the_usual_chunk_is_written_here_and_without_lz4_by_numcodecs(monkeypatch):
    counts = counts_of("disk", "u2", (16, 16, 64, 64))
    codec = COMPRESSIONS["lz4"]
    calls = []
    monkeypatch.setattr(Codec, "encode", lambda self, chunk: calls.append(chunk) or (b"",))
    assert len(Encoder(codec, counts.dtype).encode(counts)[0]) > 1000
    assert not calls
    monkeypatch.setattr(encoding, "lz4_address", lambda _: 0)
    assert Encoder(codec, counts.dtype).encode(counts) == (b"",)
    assert len(calls) == 1


@pytest.mark.parametrize("codec", [COMPRESSIONS["zstd"], COMPRESSIONS[None]], ids=["zstd", "none"])
def test_other_chains_are_numcodecs(codec):
    counts = counts_of("few", "u2", (16, 16, 32, 64))
    assert Encoder(codec, counts.dtype).encode(counts) == codec.encode(counts)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("pixels", [64, 192, 4096])
def test_planes_become_the_counts_that_they_were_made_of(dtype, pixels):
    rng = np.random.default_rng(pixels)
    patterns = 256 // math.gcd(256, pixels) * 2
    counts = rng.integers(0, np.iinfo(dtype).max, (patterns, pixels), dtype=dtype, endpoint=True)
    planes, parts, out = np.empty(counts.nbytes, np.uint8), np.empty(counts.nbytes, np.uint8), np.empty_like(counts)
    assert make_planes(counts.reshape(-1), planes) == (1 << counts.itemsize) - 1
    bits = np.unpackbits(counts.reshape(-1).view(np.uint8).reshape(-1, counts.itemsize), axis=1, bitorder="little")
    expected = np.packbits(bits.T, axis=1, bitorder="little")
    np.testing.assert_array_equal(planes.reshape(expected.shape), expected)
    assert place_planes(planes, counts.itemsize, 0, parts, out) == counts.itemsize
    interleaved = counts.reshape(patterns, pixels // 8, 8).transpose(0, 2, 1).reshape(patterns, pixels)
    np.testing.assert_array_equal(out, interleaved)
    small = counts & np.array(255, dtype)
    assert make_planes(small.reshape(-1), planes) == 1
