"""Shards as other writers lay them out, and indexes that no writer makes."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import xarray as xr
import zarr
from small_stores import poisson
from zarr.codecs import BloscCodec

import tdm_dask as tdm
from tdm_dask.errors import CorruptStoreError
from tdm_dask.shards import sharded_array
from tdm_dask.shards.codec import CRC, checksum

SCAN = (4, 6, 16, 32)


def store(folder, counts, chunks, shards, checksums=True):
    array = zarr.create_group(folder / "scan.zarr").create_array(
        "counts", shape=counts.shape, dtype=counts.dtype, chunks=chunks, shards=shards,
        compressors=[
            BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=counts.itemsize),
            *([zarr.codecs.Crc32cCodec()] if checksums else []),
        ],
    )  # fmt: skip
    array[...] = counts
    return tdm.open(folder / "scan.zarr")


@pytest.mark.parametrize(
    ("chunks", "shards"),
    [((2, 2, 8, 8), (4, 4, 16, 16)), ((2, 2, 8, 8), (2, 2, 8, 16)), ((2, 2, 3, 5), (4, 4, 9, 15))],
)
def test_shards_that_divide_the_detector_are_read_where_a_region_or_a_mask_needs_them(tmp_path, chunks, shards):
    counts = poisson(SCAN)
    opened = store(tmp_path, counts, chunks, shards)
    rng = np.random.default_rng(1)
    templates = rng.random((2, *SCAN[:2]))
    for ky, kx in ((slice(3, 4), slice(30, 31)), (slice(0, 1), slice(0, 1)), (slice(2, 14), slice(9, 25))):
        region = np.zeros(SCAN[2:], bool)
        region[ky, kx] = True
        weights = np.where(region, rng.normal(size=SCAN[2:]), 0.0)[None]
        image = tdm.apply_mask(opened, xr.DataArray(weights, dims=("template", "ky", "kx"))).compute()
        oracle.assert_close(image, oracle.image(counts, weights))
        labelled = xr.DataArray(templates, dims=("template", "y", "x"))
        found = tdm.correlate(opened, labelled, detector_region=region).compute()
        mean, _ = oracle.statistics(counts)
        oracle.assert_close(found["mean"].values[region], mean[region])
        oracle.assert_close(found["rho"].values[:, region], oracle.correlation(counts, templates)[:, region], scale=1.0)


def with_index(folder, change):
    """Change the numbers (inner chunk, 2) of the index of the first shard; its checksum is right again."""
    path = folder / "scan.zarr" / "counts" / "c" / "0" / "0" / "0" / "0"
    data = path.read_bytes()
    number = int(np.prod([4 // 2, 4 // 2, 16 // 8, 32 // 8]))
    size = 16 * number + CRC
    index = np.frombuffer(data[-size:-CRC], "<u8").reshape(number, 2).copy()
    change(index)
    table = index.tobytes()
    path.write_bytes(data[:-size] + table + checksum(table))


def huge(index):
    index[1, 0] = 2**63 + 5


def beyond_all_numbers(index):
    index[1] = 2**63 - 1, 2**63 - 1


def half_empty(index):
    index[1, 0] = 2**64 - 1


def two_at_one_place(index):
    """The longer one comes first: a range ends with the one that ends last."""
    index[1] = index[0, 0], 1


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("change", [huge, beyond_all_numbers, half_empty, two_at_one_place])
def test_an_index_with_impossible_numbers_is_an_error(tmp_path, change, checksums):
    counts = poisson(SCAN)
    opened = store(tmp_path, counts, (2, 2, 8, 8), (4, 4, 16, 32), checksums)
    with_index(tmp_path, change)
    template = xr.DataArray(np.random.default_rng(0).random(SCAN[:2]), dims=("y", "x"))
    with pytest.raises(CorruptStoreError, match="is damaged"):
        tdm.correlate(opened, template).compute(scheduler="sync")
    with pytest.raises(CorruptStoreError, match="is damaged"):
        _ = opened.values


@pytest.mark.parametrize("used", [None, np.eye(4, 6, dtype=bool)])
def test_a_pass_that_fails_leaves_no_reader_behind(tmp_path, monkeypatch, used):
    """Else the garbage collector ends it, in whatever thread it runs, and may wait for that very thread."""
    opened = store(tmp_path, poisson(SCAN), (2, 2, 8, 8), (4, 4, 16, 32))
    path = tmp_path / "scan.zarr" / "counts" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1  # in a chunk that is not the first
    path.write_bytes(data)
    template = xr.DataArray(np.random.default_rng(0).random(SCAN[:2]), dims=("y", "x"))
    left, kept = [], []
    whole = sharded_array.read_ranges

    def counted(*arguments):
        left.append(1)
        try:
            yield from whole(*arguments)
        finally:
            left.pop()

    monkeypatch.setattr(sharded_array, "read_ranges", counted)
    for _ in range(2):
        try:
            tdm.correlate(opened, template, scan_region=used).compute(scheduler="sync")
        except CorruptStoreError as error:
            kept.append(error)  # with all that it has gone through
        assert not left
    assert len(kept) == 2
