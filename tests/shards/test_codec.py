"""Stored bytes that hold fewer counts than a chunk, or more, are an error and no counts of the chunk before."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from small_stores import poisson
from zarr.codecs import BloscCodec, ZstdCodec

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.shards.codec import CRC, Codec, checksum, is_sealed, zstd_size

OPTIONS = {"blosc": (("cname", "lz4"), ("clevel", 5), ("shuffle", "bitshuffle")), "zstd": (("level", 1),), None: ()}


def unsealed(codec, counts):
    """The stored bytes of a chunk without their checksum."""
    data = np.frombuffer(b"".join(codec.encode(counts)), np.uint8)
    if not codec.checksum:
        return data
    assert is_sealed(data)
    return data[:-CRC]


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("lines", [3, 5])
def test_a_chunk_of_another_size_is_refused(name, lines, checksum):
    codec, counts = Codec(name, OPTIONS[name], checksum), poisson((4, 4, 8, 8))
    out = np.empty_like(counts)
    codec.decompress(unsealed(codec, counts), out)
    np.testing.assert_array_equal(out, counts)
    stored = unsealed(codec, poisson((lines, 4, 8, 8)))
    with pytest.raises(ValueError, match=f"holds {lines * 512} bytes instead of 2048"):
        codec.decompress(stored, out)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65791, 65792, 10**6])
@pytest.mark.parametrize("checksum", [False, True])
def test_the_size_that_a_frame_of_zstd_states(size, checksum):
    codec = Codec("zstd", (("level", 3), ("checksum", checksum)), checksum=False)
    (data,) = codec.encode(np.zeros(size, np.uint8))
    assert zstd_size(np.frombuffer(data, np.uint8)) == size


@pytest.mark.parametrize("compressor", [BloscCodec(cname="zstd", shuffle="shuffle"), ZstdCodec(level=1)], ids=repr)
def test_another_writers_short_chunk_is_named(tmp_path, compressor):
    counts = poisson((4, 4, 8, 8))
    group = zarr.create_group(tmp_path / "scan.zarr")
    array = group.create_array(
        "counts", shape=counts.shape, dtype="u2", chunks=(2, 4, 8, 8), shards=(4, 4, 8, 8), compressors=compressor,
        dimension_names=("y", "x", "ky", "kx"),
    )  # fmt: skip
    array[...] = counts
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr").values, counts)
    (shard,) = (p for p in (tmp_path / "scan.zarr" / "counts" / "c").rglob("*") if p.is_file())
    data = shard.read_bytes()
    index = np.frombuffer(data[-36:-4], "<u8").reshape(2, 2)
    name = compressor.to_dict()["name"]
    codec = Codec(name, OPTIONS[name], checksum=False)
    (short,) = codec.encode(counts[2:3])
    start, length = index[1].tolist()
    assert len(short) <= length
    new = np.array([index[0], (start, len(short))], "<u8").tobytes()
    shard.write_bytes(data[:start] + short + data[start + len(short) : -36] + new + checksum(new))
    with pytest.raises(errors.CorruptStoreError, match=r"chunk \(1, 0, 0, 0\): it holds 512 bytes instead of 1024"):
        tdm.open(tmp_path / "scan.zarr").values  # noqa: B018


@pytest.mark.parametrize("missing", [1, 20])
def test_a_blosc_chunk_that_is_cut_short_is_refused_before_blosc_reads_it(missing):
    codec, counts = Codec("blosc", OPTIONS["blosc"], False), poisson((4, 4, 8, 8))
    stored = np.frombuffer(codec.encode(counts)[0], np.uint8)
    out = np.empty_like(counts)
    # The rest lies behind in memory, where it could be read.
    with pytest.raises(ValueError, match=f"it has {len(stored) - missing} bytes instead of {len(stored)}"):
        codec.decompress(stored[:-missing], out)
    with pytest.raises(ValueError, match=f"it has 10 bytes instead of {len(stored)}|instead of 16"):
        codec.decompress(stored[:10], out)
