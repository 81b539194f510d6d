"""Runs of stored chunks that compiled code takes in one call, against the same chunks taken one by one."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import xarray as xr
import zarr
from small_stores import poisson
from zarr.codecs import BloscCodec

import tdm_dask as tdm
from tdm_dask.passes import reductions
from tdm_dask.reading.blocks import Shards
from tdm_dask.reading.lazy import source_of
from tdm_dask.shards.decoding import Decoder

SCAN = (9, 10, 16, 24)


@pytest.fixture(scope="module", params=["u1", "u2", "u4"])
def scan(request, tmp_path_factory):
    """Counts of a few bytes, some of which need more; one shard in four overhangs the scan."""

    counts = poisson(SCAN, request.param)
    counts[2, 3, 4, 5] = counts[7, 1, 9, 20] = min(np.iinfo(counts.dtype).max, 2**20)
    folder = tmp_path_factory.mktemp("runs")
    group = zarr.create_group(folder / "scan.zarr")
    array = group.create_array(
        "counts", shape=SCAN, dtype=counts.dtype, chunks=(2, 2, 8, 8), shards=(4, 4, 16, 24),
        compressors=BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=counts.itemsize),
    )  # fmt: skip
    array[...] = counts
    return tdm.open(folder / "scan.zarr"), counts


def templates_and_masks(seed=0):
    rng = np.random.default_rng(seed)
    templates = xr.DataArray(rng.random((3, *SCAN[:2])), dims=("template", "y", "x"))
    weights = rng.normal(size=(2, *SCAN[2:]))
    weights[:, :, :3] = 0
    return templates, xr.DataArray(weights, dims=("template", "ky", "kx"))


def test_sums_of_runs_are_those_of_single_chunks_and_of_the_oracle(scan, monkeypatch):
    opened, counts = scan
    templates, masks = templates_and_masks()
    calls = []
    feed = Decoder.feed

    def counted(self, function, data, places, first, *arguments):
        reached = feed(self, function, data, places, first, *arguments)
        calls.append(reached - first)
        return reached

    def answers():
        found = tdm.correlate(opened, templates).compute(scheduler="sync")
        return found, tdm.apply_mask(opened, masks).compute(scheduler="sync")

    monkeypatch.setattr(Decoder, "feed", counted)
    correlations, images = answers()
    # Each chunk that does not overhang the scan, at least once; of u4 the images alone.
    assert sum(calls) >= 4 * 5 * 6 * (1 if counts.itemsize == 4 else 2) * 0.7
    monkeypatch.delattr(reductions.Moments, "add_run")
    monkeypatch.delattr(reductions.Images, "add_run")
    calls.clear()
    one_by_one, single = answers()
    assert not calls
    for name in ("mean", "std", "n"):
        np.testing.assert_array_equal(correlations[name], one_by_one[name])
    oracle.assert_close(correlations["rho"], oracle.correlation(counts, templates.values), scale=1.0)
    oracle.assert_close(one_by_one["rho"], oracle.correlation(counts, templates.values), scale=1.0)
    oracle.assert_close(images, oracle.image(counts, masks.values))
    oracle.assert_close(single, oracle.image(counts, masks.values))


def test_runs_hold_every_block_once_and_only_whole_chunks_are_fed(scan):
    opened, counts = scan
    source = source_of(opened.data)
    assert isinstance(source, Shards)
    seen = np.zeros(SCAN, int)
    for window in ((slice(0, 9), slice(0, 10)), (slice(1, 6), slice(0, 7))):
        seen[...] = 0
        longest = 0
        for run in source.runs(window, None, None):
            assert len({block.tile for block in run}) == 1
            longest = max(longest, len(run))
            for block in run:
                np.testing.assert_array_equal(block.counts, counts[block.y, block.x, block.ky, block.kx])
                seen[block.y, block.x, block.ky, block.kx] += 1
                assert run.stored is None or block.shape == (2, 2)
        assert longest == 4
        assert (seen[window] == 1).all()
        assert seen.sum() == seen[window].size


def test_a_damaged_chunk_of_a_run_is_named(scan, monkeypatch):
    """Its checksum is right, its header is not that of the others, and then not that of a chunk at all."""
    opened, counts = scan
    source = source_of(opened.data)
    templates, _ = templates_and_masks()
    whole = Shards.runs

    def changed(at, value):
        def runs(self, *arguments):
            for number, run in enumerate(whole(self, *arguments)):
                if number == 1 and run.stored is not None and len(run) > 2:
                    data = run.stored.data.copy()
                    start, stop = run.stored.places[2]
                    data[start + at] = value
                    run.stored.data = data
                    run.stored[2]._data = data[start:stop]
                yield run

        return runs

    found = tdm.correlate(opened, templates).compute(scheduler="sync")
    # A flag that has no meaning to Blosc, and is none of ours: left to numcodecs, which refuses it.
    monkeypatch.setattr(Shards, "runs", changed(2, 0x2C))
    with pytest.raises(tdm.errors.CorruptStoreError, match=r"inner chunk .* cannot be decompressed"):
        tdm.correlate(opened, templates).compute(scheduler="sync")
    monkeypatch.setattr(Shards, "runs", changed(12, 7))
    with pytest.raises(tdm.errors.CorruptStoreError, match=r"inner chunk"):
        tdm.correlate(opened, templates).compute(scheduler="sync")
    monkeypatch.setattr(Shards, "runs", whole)
    again = tdm.correlate(opened, templates).compute(scheduler="sync")
    np.testing.assert_array_equal(found["mean"], again["mean"])
    assert source.shape == counts.shape
