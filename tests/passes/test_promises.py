"""What each call reads, and how much memory it takes: counted, not believed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr
import zarr
from counted_reads import CountingStore, WatchedStore, assert_read_once, repeated_store, several_shards, templates
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.reading.lazy import source_of


@pytest.mark.long
def test_the_next_range_comes_while_one_is_used(tmp_path, monkeypatch):
    several_shards(tmp_path)
    monkeypatch.setattr("tdm_dask.shards.sharded_array.RANGE_BYTES", 1)  # every inner chunk is a range of its own
    store = WatchedStore(LocalStore(tmp_path / "scan.zarr", read_only=True))
    array = source_of(tdm.open(store).data).array
    chunks = array.read_shard((0, 0, 0, 0))
    next(chunks)
    assert store.asked.acquire(timeout=60)  # the first
    assert store.asked.acquire(timeout=60), "the second range was not asked for while the first was used"
    assert not store.asked.acquire(timeout=0.2), "ranges must not pile up in memory"
    assert sum(1 for _ in chunks) > 2


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return several_shards(tmp_path_factory.mktemp("promises"))


@pytest.fixture
def counting(scan):
    store = CountingStore(LocalStore(scan[0], read_only=True))
    return store, tdm.open(store)


def test_nothing_is_read_before_compute(counting):
    store, counts = counting
    mask = tdm.derive_mask(counts, templates(counts))
    tdm.apply_mask(counts, mask, normalisation="standardised")
    tdm.pixel_statistics(counts)
    tdm.bin(tdm.crop(counts, y=slice(0, 8)), detector=2)
    assert store.reads == []


@pytest.mark.parametrize("n", [1, 7])
def test_correlate_reads_each_chunk_once_for_any_number_of_templates(counting, scan, n):
    store, counts = counting
    tdm.correlate(counts, templates(counts, n)).compute(scheduler="threads")
    assert_read_once(store, scan[0])
    assert len({k for k, _, _ in store.chunk_ranges()}) == 9


def test_apply_reads_each_chunk_once_for_any_number_of_masks(counting, scan):
    store, counts = counting
    mask = xr.DataArray(np.ones((6, 128, 128)), dims=("template", "ky", "kx"))
    tdm.apply_mask(counts, mask).compute(scheduler="threads")
    assert_read_once(store, scan[0])


def test_a_chain_reads_once_per_stage(counting, scan):
    store, counts = counting
    mask = tdm.derive_mask(counts, templates(counts))
    tdm.apply_mask(counts, mask, normalisation="standardised").compute(scheduler="threads")
    ranges = store.chunk_ranges()
    assert all(ranges.count(r) == 2 for r in ranges)


def test_a_mask_in_the_middle_reads_only_its_tiles(counting, scan):
    store, counts = counting
    weights = np.zeros((128, 128))
    weights[40:60, 40:60] = 1
    image = tdm.apply_mask(counts, xr.DataArray(weights, dims=("ky", "kx"))).compute(scheduler="threads")
    np.testing.assert_allclose(image, scan[1][:, :, 40:60, 40:60].sum((2, 3)))
    assert_read_once(store, scan[0], fraction=1 / 16)


def test_a_detector_region_and_a_scan_region_read_only_their_chunks(counting, scan):
    store, counts = counting
    region = np.zeros((128, 128), bool)
    region[:32, :32] = True
    used = np.zeros(counts.shape[:2], bool)
    used[2:8, 16:24] = True
    tdm.correlate(counts, templates(counts), detector_region=region, scan_region=used).compute(scheduler="threads")
    assert len(store.chunk_ranges()) == 1
    assert_read_once(store, scan[0], fraction=1 / (9 * 4 * 16) * 2)


def test_a_crop_reads_only_its_chunks(counting, scan):
    store, counts = counting
    part = tdm.crop(counts, y=slice(3, 7), x=slice(18, 22), ky=slice(5, 20), kx=slice(40, 60))
    np.testing.assert_allclose(tdm.pixel_statistics(part)["mean"], scan[1][3:7, 18:22, 5:20, 40:60].mean((0, 1)))
    assert len(store.chunk_ranges()) == 1


def test_changed_counts_are_not_taken_for_the_file(counting, scan):
    _, counts = counting
    doubled = (counts.astype(np.uint32) * 2).assign_attrs(counts.attrs)
    np.testing.assert_allclose(tdm.pixel_statistics(doubled)["mean"], 2 * scan[1].mean((0, 1)))
    np.testing.assert_allclose(tdm.pixel_statistics(counts.isel(y=slice(0, 20)))["mean"], scan[1][:20].mean((0, 1)))


def test_other_codecs_and_layouts_are_read_by_zarr_and_give_the_same_numbers(tmp_path, scan):
    counts = scan[1][:20, :20]
    group = zarr.open_group(tmp_path / "other.zarr", mode="w")
    group.create_array("counts", data=counts, chunks=(7, 6, 128, 128), compressors=zarr.codecs.GzipCodec(level=1))
    opened = tdm.open(tmp_path / "other.zarr")
    found = tdm.correlate(opened, templates(opened)).compute()
    expected = tdm.correlate(tdm.label_counts(counts), templates(opened))
    xr.testing.assert_allclose(found, expected, atol=1e-6)


MEMORY = """
import json, resource, sys, threading, time
import numpy as np, xarray as xr, psutil, dask
dask.config.set(scheduler="threads", num_workers=2)
import tdm_dask as tdm
path, job = sys.argv[1:]
process = psutil.Process()

def templates(counts):
    return xr.DataArray(np.random.default_rng(2).normal(size=(5, *counts.shape[:2])), dims=("template", "y", "x"))

def run(counts):
    if job == "derive":
        return tdm.derive_mask(counts, templates(counts)).compute()
    if job == "apply":
        mask = xr.DataArray(np.random.default_rng(2).normal(size=(5, *counts.shape[2:])), dims=("template", "ky", "kx"))
        return tdm.apply_mask(counts, mask).compute()
    mask = tdm.derive_mask(counts, templates(counts))
    return tdm.apply_mask(counts, mask, normalisation="standardised").compute()

import tdm_dask.masks.derivation, tdm_dask.counts.opening
from tdm_dask.shards import objects
mapped, call = [], objects._Range.__call__

def counted(self):
    data = call(self)
    mapped.append(len(data))
    return data

objects._Range.__call__ = counted
base = process.memory_info().rss
counts = tdm.open(path)
run(tdm.crop(counts, x=slice(0, 64)))  # compiled code is loaded, or made, before bytes are counted
peak, stop = [base], []

def watch():
    while not stop:
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
mapped.clear()
before = process.io_counters().read_chars
run(counts)
stop.append(True)
watcher.join()
read = sum(mapped) + process.io_counters().read_chars - before
print(json.dumps({"base": base, "peak": peak[0], "read": read}))
"""


@pytest.fixture(scope="module")
def large_stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return {n: (folder / f"{n}.zarr", repeated_store(folder / f"{n}.zarr", n)) for n in (1, 4)}


@pytest.mark.long
@pytest.mark.parametrize("job", ["derive", "apply", "chain"])
def test_memory_does_not_grow_with_the_scan(large_stores, job):
    peaks = {}
    for size, (path, stored) in large_stores.items():
        script = textwrap.dedent(MEMORY)
        run = subprocess.run([sys.executable, "-c", script, str(path), job], capture_output=True, text=True, check=True)
        result = json.loads(run.stdout)
        peaks[size] = result["peak"] - result["base"]
        passes = 2 if job == "chain" else 1
        # What is mapped, and the process's own counter: every byte of every shard once per pass, and little else.
        assert passes * stored <= result["read"] <= passes * stored * 1.02 + 5e6
    growth = peaks[4] / peaks[1]
    # Which buffers are alive at once depends on how the threads meet; what grows with the scan would double this.
    assert growth < 1.25, (
        f"{job}: peak above the baseline {peaks[1] / 1e6:.0f} MB for 1 GB, {peaks[4] / 1e6:.0f} MB for 4 GB"
    )
    assert peaks[4] < 400e6


@pytest.mark.long
def test_a_chain_runs_on_a_1_gib_worker_without_spilling(large_stores):
    from distributed import Client, LocalCluster

    counts = tdm.open(large_stores[4][0])
    chain = tdm.apply_mask(counts, tdm.derive_mask(counts, templates(counts)), normalisation="standardised")
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="1GiB", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        chain.compute()
        spilled = client.run(lambda dask_worker: sum(dask_worker.data.spilled_total))
        restarts = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers))
    assert set(spilled.values()) == {0}
    assert restarts == 1
