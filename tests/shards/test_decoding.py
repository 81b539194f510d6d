"""Inner chunks that are decoded here, against numcodecs, the counts themselves, and stores that others wrote."""

from __future__ import annotations

import math
import struct
import sys

import lz4.block
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import oracle
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec

import tdm_dask as tdm
from tdm_dask.kernels.pixel_order import Tile
from tdm_dask.reading.blocks import Block
from tdm_dask.reading.lazy import source_of
from tdm_dask.shards import decoding
from tdm_dask.shards.codec import Codec
from tdm_dask.shards.decoding import Decoder
from tdm_dask.shards.lz4_library import lz4_address

DTYPES = ["u1", "i1", "bool", "u2", "i2", "u4", "i4", "f4"]
FORMATS = {"lz4": 1, "zstd": 4}
# Pixels that are a multiple of 64, or of 8 only, while all counts together are one of 64.
SHAPES = [(4, 4, 16, 16), (1, 1, 8, 8), (3, 5, 24, 24), (2, 2, 64, 64), (2, 4, 5, 24), (8, 2, 9, 16), (1, 8, 3, 8)]
# Pixels that are no multiple of 8, or counts that are none of 64.
ODD_SHAPES = [(4, 4, 5, 7), (1, 1, 1, 1), (8, 8, 3, 4), (2, 7, 60, 60), (1, 1, 3, 8)]


def codec(cname="lz4", clevel=5, block=0):
    return Codec("blosc", (("cname", cname), ("clevel", clevel), ("shuffle", "bitshuffle"), ("blocksize", block)))


def encoded(counts, cname="lz4", clevel=5, block=0):
    """A chunk as Blosc makes it."""
    return np.frombuffer(codec(cname, clevel, block).encode(counts)[0], np.uint8)


def decoder(counts, cname="lz4", fill_value=0):
    return Decoder(codec(cname), counts.shape, counts.dtype, fill_value)


def in_order(found, shape):
    """Counts (patterns, pixels in eight parts) as (y, x, ky, kx)."""
    return Tile(0, shape[2], 0, shape[3], stored=tuple(shape[2:])).pixels(found).reshape(shape)


def assert_equal_to_the_last_bit(found, counts):
    found = in_order(found, counts.shape)
    assert found.dtype == counts.dtype or (found.dtype.kind == "u" and found.itemsize < counts.itemsize)
    assert found.astype(counts.dtype).tobytes() == counts.tobytes()


def narrowest(counts):
    """The dtype that holds these counts, which are whole numbers and not negative, in 1, 2 or 4 bytes."""
    used = next(n for n in (1, 2, 4) if int(counts.max()) < 256**n or n == counts.itemsize)
    return counts.dtype if used == counts.itemsize else np.dtype(f"u{used}")


def poisson(mean, shape, dtype, seed=0):
    counts = np.random.default_rng(seed).poisson(mean, shape)
    dtype = np.dtype(dtype)
    return np.minimum(counts, min(np.iinfo(dtype).max, 2**62) if dtype.kind in "ui" else 2**62).astype(dtype)


@st.composite
def chunks(draw, shapes, dtypes=DTYPES):
    """Counts of one inner chunk: Poisson counts, zeros, the largest count, hot pixels, what is no count at all."""
    shape, dtype = draw(st.sampled_from(shapes)), np.dtype(draw(st.sampled_from(dtypes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["low", "high", "zero", "top", "hot", "odd", "any"]))
    top = {"u": lambda: np.iinfo(dtype).max, "i": lambda: np.iinfo(dtype).max, "b": lambda: 1, "f": lambda: 3e38}
    largest = top[dtype.kind]()
    counts = poisson(draw(st.sampled_from([0.05, 0.5, 8, 300, 1e5])) if kind != "zero" else 0, shape, dtype, rng)
    if kind == "high" and dtype.kind in "ui":
        counts = largest - np.minimum(counts, largest // 2)
    elif kind == "top":
        counts[...] = largest
    elif kind == "hot":
        counts.flat[rng.integers(counts.size, size=2)] = largest
    elif kind == "odd" and dtype.kind in "if":
        strange = [-1, -100] if dtype.kind == "i" else [np.nan, np.inf, -np.inf, -0.0, -1e-40]
        counts.flat[rng.integers(counts.size, size=5)] = rng.choice(strange, 5)
    elif kind == "any" and dtype.kind != "b":
        counts = np.frombuffer(rng.bytes(counts.nbytes), dtype).reshape(shape)
    return np.ascontiguousarray(counts, dtype)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(chunks(SHAPES), st.sampled_from(["lz4", "zstd"]), st.sampled_from([0, 512, 4096, 2**18]), st.integers(1, 9))
def test_interleaved_counts_are_the_counts_to_the_last_bit(counts, cname, block, clevel):
    data = encoded(counts, cname, clevel, block)
    one = decoder(counts, cname)
    assert one.in_order(data).tobytes() == counts.tobytes()
    found = one.interleaved(data)
    if data[2] & 2:  # what is hard to compress is copied whole
        assert found is None
        return
    assert_equal_to_the_last_bit(found, counts)
    if counts.dtype.kind in "ui" and counts.min() >= 0:
        assert found.dtype == narrowest(counts)
    assert_equal_to_the_last_bit(one.interleaved(data), counts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chunks(ODD_SHAPES), st.sampled_from([0, 512]))
def test_pixels_that_fill_no_words_are_left_to_numcodecs(counts, block):
    data = encoded(counts, block=block)
    one = decoder(counts)
    assert one.interleaved(data) is None
    assert one.in_order(data).tobytes() == counts.tobytes()


@pytest.mark.parametrize("dtype", ["u8", "i8", "f8"])
def test_counts_of_eight_bytes_are_left_to_numcodecs(dtype):
    counts = poisson(3, (4, 4, 16, 16), dtype)
    one = decoder(counts)
    assert one.interleaved(encoded(counts)) is None
    assert one.interleaved(None) is None
    np.testing.assert_array_equal(one.in_order(encoded(counts)), counts)


@pytest.mark.parametrize(
    ("cname", "shuffle"), [("lz4", "shuffle"), ("lz4", "noshuffle"), ("lz4hc", "bitshuffle"), ("zlib", "bitshuffle")]
)
def test_what_is_no_bit_planes_of_a_known_compressor_is_left_to_numcodecs(cname, shuffle):
    counts = poisson(3, (4, 4, 16, 16), "u2")
    other = Codec("blosc", (("cname", cname), ("clevel", 5), ("shuffle", shuffle)))
    data = np.frombuffer(other.encode(counts)[0], np.uint8)
    one = Decoder(other, counts.shape, counts.dtype, 0)
    assert one.interleaved(data) is None
    np.testing.assert_array_equal(one.in_order(data), counts)
    if shuffle != "bitshuffle":  # nor where the metadata says that it is one
        assert decoder(counts).interleaved(data) is None


def test_counts_that_cannot_be_compressed_are_left_to_numcodecs():
    counts = np.frombuffer(np.random.default_rng(0).bytes(4096), "u4").reshape(2, 2, 16, 16)
    data = encoded(counts)
    assert data[2] & 2, "Blosc compressed what it should have copied"
    one = decoder(counts)
    assert one.interleaved(data) is None
    np.testing.assert_array_equal(one.in_order(data), counts)


@pytest.mark.parametrize("cname", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["u2", "u4", "i4"])
def test_a_chunk_of_large_counts_widens_the_next_at_most(cname, dtype):
    small = poisson(2, (4, 4, 16, 16), dtype)
    large = small.copy()
    large[1, 2, 3, 4] = np.iinfo(dtype).max
    one = decoder(small, cname)
    for counts in (small, large, small, large, large):
        assert_equal_to_the_last_bit(one.interleaved(encoded(counts, cname)), counts)
    assert_equal_to_the_last_bit(one.interleaved(encoded(small, cname)), small)
    again = one.interleaved(encoded(small, cname))
    assert again.dtype == np.uint8
    assert_equal_to_the_last_bit(again, small)


@pytest.mark.parametrize(("top", "dtype"), [(255, "u1"), (256, "u2"), (65535, "u2"), (65536, "u4"), (2**24, "u4")])
@pytest.mark.parametrize("cname", ["lz4", "zstd"])
@pytest.mark.parametrize("pixels", [(16, 16), (5, 24)])
def test_counts_take_the_fewest_bytes(top, dtype, cname, pixels):
    counts = poisson(0.1, (4, 2, *pixels), "u4")
    counts[3, 1, 2, 9] = top
    found = decoder(counts, cname).interleaved(encoded(counts, cname))
    assert found.dtype == np.dtype(dtype)
    assert_equal_to_the_last_bit(found, counts)


@pytest.mark.parametrize(
    ("dtype", "fill_value"),
    [("u1", 7), ("u2", 0), ("u2", 255), ("u2", 300), ("i2", -1), ("i1", 5), ("f4", 0.5), ("f4", np.nan), ("?", True)],
)
def test_a_chunk_that_is_not_stored_is_the_fill_value(dtype, fill_value):
    counts = np.full((4, 4, 16, 16), fill_value, dtype)
    one = decoder(counts, fill_value=fill_value)
    for _ in range(2):
        found = one.interleaved(None)
        np.testing.assert_array_equal(in_order(found, counts.shape), counts)
        if counts.dtype.kind in "ui" and fill_value >= 0:
            assert found.dtype.itemsize == narrowest(counts).itemsize
        np.testing.assert_array_equal(one.in_order(None), counts)
        # The same memory is used for one that is stored.
        other = poisson(1, counts.shape, dtype)
        assert_equal_to_the_last_bit(one.interleaved(encoded(other)), other)


# Chunks that are put together here, as Blosc may write them and does not by itself


def lz4_of(data):
    return lz4.block.compress(data, store_size=False)


def zstd_of(data):
    return bytes(numcodecs.zstd.compress(data, 1))


def planes_of(counts):
    """Bit planes of a block of counts: bit p of count 8 i + k is bit k of byte i of plane p."""
    parts = counts.reshape(-1).view(np.uint8).reshape(-1, counts.itemsize)
    bits = (np.unpackbits(part[:, None], axis=1, bitorder="little") for part in parts.T)
    return b"".join(np.packbits(plane.T, axis=1, bitorder="little").tobytes() for plane in bits)


def put_together(counts, block, split, cname="lz4", copied=(), pack=None):
    """A chunk of blocks of so many bytes, whose last blocks come first; streams of such numbers are copies."""
    pack = pack or {"lz4": lz4_of, "zstd": zstd_of}[cname]
    flat, items = counts.reshape(-1), block // counts.itemsize
    bodies, stream = [], 0
    for first in range(0, counts.size, items):
        planes = planes_of(flat[first : first + items])
        pieces = counts.itemsize if split and len(planes) == block else 1
        body, size = b"", len(planes) // pieces
        for start in range(0, len(planes), size):
            piece = planes[start : start + size]
            packed = pack(piece)
            packed = piece if len(packed) >= size or stream in copied else packed
            body, stream = body + struct.pack("<i", len(packed)) + packed, stream + 1
        bodies.append(body)
    flags = 4 | FORMATS[cname] << 5 | (0 if split else 16)
    return assembled(bodies, counts.itemsize, counts.nbytes, block, flags)


def assembled(bodies, itemsize, nbytes, block, flags):
    """A chunk of encoded blocks; the last ones come first."""
    starts, at = [], 16 + 4 * len(bodies)
    for body in reversed(bodies):
        starts.insert(0, at)
        at += len(body)
    head = struct.pack(f"<BBBBiii{len(bodies)}i", 2, 1, flags, itemsize, nbytes, block, at, *starts)
    return np.frombuffer(head + b"".join(reversed(bodies)), np.uint8)


@pytest.mark.parametrize("mean", [0, 0.1, 20, 1000])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize(("cname", "split"), [("lz4", True), ("lz4", False), ("zstd", False)])
def test_blocks_may_be_split_or_not_and_lie_in_any_order(cname, split, dtype, mean):
    for shape in ((4, 4, 16, 16), (3, 5, 24, 24), (2, 4, 5, 24)):
        counts = poisson(mean, shape, dtype)
        for block in (min(1024, counts.nbytes), min(1536, counts.nbytes)):
            for copied in ((), (0, 3), range(1000)):
                data = put_together(counts, block, split, cname, copied)
                one = decoder(counts, cname)
                assert one.in_order(data).tobytes() == counts.tobytes()
                found = one.interleaved(data)
                if not copied:  # zeros that are copied are read as they are
                    assert found.dtype == narrowest(counts)
                assert_equal_to_the_last_bit(found, counts)


# 64 counts in each of 4 patterns: one block of two streams, of which the second is of the upper bytes.
LOW = lz4_of(b"\x0f" * 256)
ZEROS = lz4_of(bytes(256))
# Two times three zeros and four more that repeat the last; then 242 zeros: 256 bytes.
READS_AS_ZEROS = 2 * b"\x30\0\0\0\1\0" + bytes([0xF0, 242 - 15]) + bytes(242)


def two_streams(low, high, flags=4 | 1 << 5):
    body = b"".join(struct.pack("<i", len(stream)) + stream for stream in (low, high))
    return assembled([body], 2, 512, 512, flags)


def with_version_of_lz4(number):
    data = two_streams(LOW, ZEROS).copy()
    data[1] = number
    return data


def test_a_copied_stream_is_not_taken_for_a_compressed_one():
    assert len(READS_AS_ZEROS) == 256
    assert lz4.block.decompress(READS_AS_ZEROS, uncompressed_size=256) == bytes(256)
    counts = np.zeros((2, 2, 8, 8), "u2")
    one = decoder(counts)
    data = two_streams(LOW, READS_AS_ZEROS)
    expected = one.in_order(data).copy()
    assert expected.max() > 255
    assert_equal_to_the_last_bit(one.interleaved(data), expected)


def zstd_chunk(pack):
    return put_together(poisson(1, (2, 2, 8, 8), "u2"), 512, split=False, cname="zstd", pack=pack)


@pytest.mark.parametrize(
    "refused",
    [
        # One zero, a repetition of it up to the last byte: a block must end in literals.
        pytest.param(lambda: two_streams(LOW, bytes([0x1F, 0, 1, 0, 236])), id="zeros that end in a repetition"),
        pytest.param(lambda: with_version_of_lz4(7), id="version of the compressor's format"),
        pytest.param(lambda: two_streams(LOW, ZEROS, flags=4 | 8 | 1 << 5), id="flag without a meaning"),
        pytest.param(lambda: zstd_chunk(lambda piece: zstd_of(piece[:100])), id="zstd of too few bytes"),
        pytest.param(lambda: zstd_chunk(lambda piece: zstd_of(piece + b"1")), id="zstd of too many bytes"),
    ],
)
def test_what_numcodecs_refuses_is_refused(refused):
    data = refused()
    one = decoder(np.empty((2, 2, 8, 8), "u2"), "zstd" if data[2] >> 5 == FORMATS["zstd"] else "lz4")
    with pytest.raises(ValueError, match="cannot be decompressed"):
        one.in_order(data)
    assert one.interleaved(data) is None


# Damage


def put(data, at, value, kind="<i"):
    if at + struct.calcsize(kind) <= len(data):
        struct.pack_into(kind, data, at, value)


def starts_of(data):
    nbytes, block = struct.unpack_from("<ii", data, 4)
    return struct.unpack_from(f"<{-(-nbytes // block)}i", data, 16)


def a_number(rng, near):
    values = [0, 1, -1, 15, 16, 64, 255, 2**31 - 1, -(2**31), near + 1, near - 1, near + 64, near - 64, near * 2]
    return int(np.clip(values[rng.integers(len(values))], -(2**31), 2**31 - 1))


def header_number(rng, data):
    at = (4, 8, 12)[rng.integers(3)]
    put(data, at, a_number(rng, struct.unpack_from("<i", data, at)[0]))


def header_byte(rng, data):
    data[rng.integers(16)] = rng.integers(256)


def flags_and_versions(rng, data):
    data[rng.integers(4)] ^= 1 << rng.integers(8)


def start_of_a_block(rng, data):
    n = int(rng.integers(len(starts_of(data))))
    put(data, 16 + 4 * n, a_number(rng, (starts_of(data)[n], len(data))[rng.integers(2)]))


def length_of_a_stream(rng, data):
    at = starts_of(data)[rng.integers(len(starts_of(data)))]
    if rng.integers(2):  # its second stream, where it has one
        at = min(at + 4 + struct.unpack_from("<i", data, at)[0], len(data) - 4)
    put(data, at, a_number(rng, (struct.unpack_from("<i", data, at)[0], len(data) - at - 4)[rng.integers(2)]))


def bits(rng, data):
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(16, len(data))] ^= 1 << rng.integers(8)


def bytes_of_streams(rng, data):
    for _ in range(rng.integers(1, 6)):
        at = starts_of(data)[rng.integers(len(starts_of(data)))] + 4 + int(rng.integers(24))
        data[min(at, len(data) - 1)] = (0, 255, 0x1F, 0xF0, rng.integers(256))[rng.integers(5)]


def truncated(rng, data):
    del data[int(rng.integers(len(data))) :]


def truncated_as_the_header_says(rng, data):
    del data[int(rng.integers(16, len(data) if rng.integers(2) else 40)) :]
    put(data, 12, len(data))


def cut_out(rng, data):
    at = int(rng.integers(16, len(data)))
    del data[at : at + int(rng.integers(1, 9))]
    put(data, 12, len(data))


def doubled(rng, data):
    at = int(rng.integers(16, len(data)))
    data[at:at] = data[at : at + int(rng.integers(1, 65))]
    put(data, 12, len(data))


DAMAGE = [
    header_number, header_byte, flags_and_versions, start_of_a_block, length_of_a_stream, bits, bytes_of_streams,
    truncated, truncated_as_the_header_says, cut_out, doubled,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("cname", ["lz4", "zstd"])
def test_damaged_bytes_give_what_numcodecs_gives_or_nothing(cname, damage):
    rng = np.random.default_rng(5)
    for dtype, shape in (("u2", (2, 4, 16, 16)), ("u4", (2, 4, 5, 24)), ("u1", (4, 4, 16, 16)), ("f4", (2, 2, 8, 16))):
        counts = poisson(1, shape, dtype)
        whole = [
            encoded(counts, cname, block=512),
            put_together(counts, 1024, split=cname == "lz4", cname=cname, copied=(1, 2)),
            put_together(np.zeros_like(counts), 1024, split=cname == "lz4", cname=cname),
            put_together(poisson(300, shape, dtype), 1024, split=cname == "lz4", cname=cname),
        ]
        one = decoder(counts, cname)
        for n in range(40):
            data = bytearray(whole[n % len(whole)].tobytes())
            damage(rng, data)
            data = np.frombuffer(bytes(data), np.uint8)
            found = one.interleaved(data)
            # Bytes that numcodecs may not be given are refused before; where it raises, so is this test's end.
            if found is not None:
                assert_equal_to_the_last_bit(found, one.in_order(data))
        assert_equal_to_the_last_bit(one.interleaved(whole[1]), counts)


def test_fewer_bytes_than_a_header_and_a_table_of_blocks_give_nothing():
    counts = np.zeros((4, 4, 8, 8), "u2")
    for cname in FORMATS:
        whole = encoded(counts, cname, block=512)
        assert not whole[2] & 2
        for size in range(40):  # of 16 bytes and a table of 4 blocks
            data = bytearray(whole[:size].tobytes())
            put(data, 12, size)
            assert decoder(counts, cname).interleaved(np.frombuffer(bytes(data), np.uint8)) is None


# Stores that others wrote. Neither the scan nor the detector is a multiple of an inner chunk.

SCAN = (9, 13, 27, 30)
INNER, SHARD = (4, 4, 16, 16), (8, 8, 32, 32)


def by_zarr(group, counts, **layout):
    group.create_array("counts", shape=counts.shape, dtype=counts.dtype, **layout)[...] = counts


def by_zarrs(group, counts, **layout):
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = group.create_array("counts", shape=counts.shape, dtype=counts.dtype, **layout)
        assert type(array.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
        array[...] = counts


def by_tensorstore(group, counts, **layout):
    tensorstore = pytest.importorskip("tensorstore")
    group.create_array("counts", shape=counts.shape, dtype=counts.dtype, **layout)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{group.store.root}/counts/"}}
    tensorstore.open(spec, open=True).result().write(counts).result()


def others_counts(dtype, fill_value):
    """Counts of which some inner chunks are nothing but the fill value, and one has a large count."""
    counts = poisson(2, SCAN, dtype)
    counts[:4, :4] = counts[:, 4:8, :16, :16] = fill_value
    counts[8, 12, 26, 29] = 100 if counts.itemsize == 1 and dtype != "?" else min(1000, poisson(1e6, (), dtype))
    return counts


KINDS = [
    ("u1", 0, {}),
    ("u2", 0, {}),
    ("u2", 300, {"blocksize": 512}),
    ("i2", -2, {"cname": "zstd"}),
    ("u4", 7, {"cname": "zstd", "blocksize": 2048}),
    ("f4", 0, {"clevel": 9}),
    ("?", True, {}),
]


@pytest.fixture(scope="module", params=[by_zarr, by_zarrs, by_tensorstore], ids=lambda write: write.__name__)
def others(request, tmp_path_factory):
    """Stores by one writer, with their counts."""
    made = {}
    for n, (dtype, fill_value, options) in enumerate(KINDS):
        path, counts = tmp_path_factory.mktemp("others") / "scan.zarr", others_counts(dtype, fill_value)
        options = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": counts.itemsize} | options
        layout = {"chunks": INNER, "shards": SHARD, "fill_value": fill_value, "compressors": BloscCodec(**options)}
        request.param(zarr.create_group(path), counts, **layout)
        made[n] = tdm.open(path), path, counts
    return made


def whole_scan(source):
    return slice(0, source.shape[0]), slice(0, source.shape[1])


def interleaved_of(source, counts, window=None):
    """The numbers of stored blocks that came interleaved, all of which are compared with the counts, and of others."""
    came, seen = {True: 0, False: 0}, np.zeros(counts.shape, int)
    for block in source.blocks(window or whole_scan(source), None, None):
        tile, matrix = block.tile, block.matrix
        part = counts[block.y, block.x, block.ky, block.kx]
        assert (tile.ky, tile.kx, tile.width) == (block.ky, block.kx, matrix.shape[1])
        np.testing.assert_array_equal(tile.pixels(matrix).reshape(part.shape), part)
        np.testing.assert_array_equal(block.counts, part)
        seen[block.y, block.x, block.ky, block.kx] += 1
        came[tile.stored is not None] += 1
    inside = np.zeros(counts.shape, int)
    inside[window or ...] = 1
    np.testing.assert_array_equal(seen, inside)
    return came[True], came[False]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_stores_of_other_writers_are_decoded_here_and_give_what_zarr_reads(others, kind):
    opened, path, counts = others[kind]
    np.testing.assert_array_equal(zarr.open_array(path / "counts", mode="r")[...], counts)
    source = source_of(opened.data)
    # 3 x 4 x 2 x 2 inner chunks overlap the array; none of them is left to numcodecs.
    assert interleaved_of(source, counts) == (48, 0)
    missing = [chunk for shard in source.array.shards() for chunk in source.array.read_shard(shard)]
    assert sum(chunk._data is None for chunk in missing) == 4 + 3
    np.testing.assert_array_equal(opened.values, counts)


@pytest.mark.parametrize("kind", [2, 4])
def test_crops_and_scan_regions_of_stores_of_other_writers(others, kind):
    opened, _, counts = others[kind]
    rng = np.random.default_rng(1)
    windows = {"y": slice(2, 9), "x": slice(3, 11), "ky": slice(5, 27), "kx": slice(17, 30)}
    for names in ((), ("ky", "kx"), ("x", "kx"), tuple(windows)):
        part = tdm.crop(opened, **{name: windows[name] for name in names})
        dense = counts[tuple(windows[name] if name in names else slice(None) for name in ("y", "x", "ky", "kx"))]
        assert interleaved_of(source_of(part.data), dense)[1] == 0
        window = slice(1, dense.shape[0] - 1), slice(3, 7)
        assert interleaved_of(source_of(part.data), dense, window)[1] == 0
        used = rng.random(dense.shape[:2]) < 0.6
        region = np.zeros(dense.shape[2:], bool)
        region[2:18, 1:12] = True
        templates = rng.normal(size=(3, *dense.shape[:2]))
        labelled = xr.DataArray(templates, dims=("template", "y", "x"))
        found = tdm.correlate(part, labelled, detector_region=region, scan_region=used).compute(scheduler="sync")
        mean, std = oracle.statistics(dense, used)
        oracle.assert_close(found["mean"].values[region], mean[region])
        oracle.assert_close(found["std"].values[region], std[region])
        oracle.assert_close(found["rho"], oracle.correlation(dense, templates, used, region), scale=1.0)
        weights = rng.normal(size=(2, *dense.shape[2:]))
        masks = xr.DataArray(weights, dims=("template", "ky", "kx"))
        oracle.assert_close(tdm.apply_mask(part, masks).compute(scheduler="sync"), oracle.image(dense, weights))


def parts_of(block, rng):
    """A part of a block that has been moved, cut along the scan and cut along the detector, in any order."""
    for step in rng.permutation(["at", "of_probes", "within", "of_probes", "within"]):
        if step == "at":
            block = block.at(tuple(rng.integers(-3, 4, 4).tolist()))
        elif step == "of_probes":
            starts = [int(rng.integers(n)) for n in block.shape]
            block = block.of_probes(
                *(slice(a, int(rng.integers(a, n)) + 1) for a, n in zip(starts, block.shape, strict=True))
            )
        else:
            ky, kx = block.ky, block.kx
            ky0, kx0 = int(rng.integers(ky.start, ky.stop)), int(rng.integers(kx.start, kx.stop))
            block = block.within(slice(ky0 - int(rng.integers(3)), ky.stop + 2), slice(kx0, kx0 + 5))
    return block


def test_parts_of_stored_blocks_are_those_of_plain_ones(others):
    opened, _, counts = others[2]
    for block in source_of(opened.data).blocks(whole_scan(source_of(opened.data)), None, None):
        plain = Block(block.y, block.x, block.ky, block.kx, counts[block.y, block.x, block.ky, block.kx])
        for seed in range(4):
            stored, expected = (parts_of(b, np.random.default_rng(seed)) for b in (block, plain))
            for name in ("y", "x", "ky", "kx", "shape"):
                assert getattr(stored, name) == getattr(expected, name)
            np.testing.assert_array_equal(stored.counts, expected.counts)
            assert stored.counts.flags.c_contiguous
            assert stored.tile.stored == INNER[2:]
            found = stored.tile.pixels(stored.matrix)
            np.testing.assert_array_equal(found.reshape(expected.counts.shape), expected.counts)
        # What it was a part of is as before.
        np.testing.assert_array_equal(block.counts, plain.counts)


def test_a_store_of_another_writer_that_is_damaged_is_refused(others):
    opened, _, _ = others[1]
    source = source_of(opened.data)
    (chunk, *_) = (c for c in source.array.read_shard((1, 1, 0, 0)) if c._data is not None)
    broken = chunk._data.copy()
    put(broken, 20, 2**31 - 1)
    chunk._data = broken
    assert chunk.interleaved is None
    with pytest.raises(tdm.errors.CorruptStoreError, match="cannot be decompressed"):
        _ = chunk.counts


# Without the package lz4


def test_without_lz4_a_pass_gives_the_same_numbers(tmp_path, monkeypatch):
    counts = poisson(3, SCAN, "u2")
    by_zarr(
        zarr.create_group(tmp_path / "scan.zarr"), counts, chunks=INNER, shards=SHARD,
        compressors=BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=2),
    )  # fmt: skip
    opened = tdm.open(tmp_path / "scan.zarr")
    rng = np.random.default_rng(0)
    templates = xr.DataArray(rng.normal(size=(3, *SCAN[:2])), dims=("template", "y", "x"))
    masks = xr.DataArray(rng.normal(size=(3, *SCAN[2:])), dims=("template", "ky", "kx"))

    def numbers():
        return tdm.correlate(opened, templates)["rho"].compute(), tdm.apply_mask(opened, masks).compute()

    with_lz4 = numbers()
    assert interleaved_of(source_of(opened.data), counts) == (48, 0)
    monkeypatch.setattr(decoding, "lz4_address", lambda _: 0)
    assert interleaved_of(source_of(opened.data), counts) == (0, 48)
    for found, expected in zip(numbers(), with_lz4, strict=True):
        oracle.assert_close(found, expected)


def test_a_package_lz4_that_is_not_there_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    assert lz4_address.__wrapped__("LZ4_decompress_safe") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only there are the names of the library known to be seen")
def test_the_package_lz4_still_exports_what_is_called():
    assert lz4_address.__wrapped__("LZ4_decompress_safe") != 0, (
        "the module lz4.block._block of the package lz4 is gone, or no longer exports LZ4_decompress_safe: stores are "
        "read by numcodecs, as right as before and some three times slower; lz4_address must find it elsewhere"
    )


def test_the_function_of_lz4_that_is_called_is_the_right_one():
    counts = np.arange(math.prod((2, 2, 16, 16)), dtype="u2").reshape(2, 2, 16, 16) % 256
    data = put_together(counts, 512, split=True)
    assert lz4_address("LZ4_decompress_safe") == 0 or decoder(counts).interleaved(data) is not None
