"""Conversion: what can be converted, on every scheduler, in bounded memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from typing import ClassVar

import dask
import numpy as np
import pytest
import xarray as xr
from conversions import SHAPE, SHARDS, WatchedStore, assert_same_store
from small_stores import converted, poisson, raw_file, shard_files
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.reading.store import stored_statistics

# What is converted


def test_a_crop_a_step_and_a_pixel_size_reach_the_store(raw, tmp_path):
    path = tmp_path / "scan.zarr"
    crop = {"y": slice(3, 12), "x": slice(2, -3), "ky": slice(1, None), "kx": slice(0, 7)}
    counts = converted(path, str(raw[0]), **raw[1], crop=crop, scan_step=("30 pm", 0.4), pixel_size="1.25 mrad")
    np.testing.assert_array_equal(counts.values, raw[2][3:12, 2:-3, 1:, :7])
    np.testing.assert_allclose(counts["y"], 0.3 * np.arange(3, 12))
    np.testing.assert_allclose(counts["x"], 0.4 * np.arange(2, 22))
    assert counts["x"].attrs["units"] == "angstrom"
    assert counts["ky"].attrs["units"] == "px"
    np.testing.assert_array_equal(counts["ky"], np.arange(1, 10))
    assert counts.attrs["pixel_size_mrad"] == [1.25, 1.25]


@pytest.mark.long
def test_any_labelled_counts_can_be_converted(raw, tmp_path):
    opened, dense = tdm.open(raw[0], **raw[1]), raw[2].astype(np.uint16)
    cases = {
        "NumPy": (tdm.label_counts(dense), dense),
        "big-endian NumPy": (tdm.label_counts(raw[2]), dense),
        "not contiguous": (tdm.label_counts(dense)[::2, ::-1], dense[::2, ::-1]),
        "transposed": (tdm.label_counts(dense).transpose("kx", "y", "ky", "x"), dense),
        "opened": (opened, dense),
        "cropped": (tdm.crop(opened, x=slice(1, 20), kx=slice(2, 9)), dense[:, 1:20, :, 2:9]),
        "binned": (tdm.bin(opened, detector=2), dense[..., :10].reshape(18, 25, 5, 2, 5, 2).sum((3, 5))),
        "expression": (opened.astype("float32") / 2, dense / np.float32(2)),
        "odd chunks": (tdm.label_counts(dense).chunk(y=5, x=7, ky=4, kx=3), dense),
    }
    for name, (counts, expected) in cases.items():
        path = tmp_path / f"{name}.zarr"
        stored = converted(path, counts)
        np.testing.assert_array_equal(stored.values, expected, err_msg=name)
        np.testing.assert_allclose(stored_statistics(path)["pattern_mean"], expected.mean((0, 1)), rtol=1e-6)
        if name in ("binned", "transposed"):
            assert stored_as_it_is(path, counts)


def stored_as_it_is(path, counts):
    """Whether converting once more finds nothing to write."""
    store = WatchedStore(LocalStore(path))
    converted(store, counts)
    return store.written == []


def test_a_store_can_be_converted_to_another_compression(uninterrupted, raw, tmp_path):
    archive = converted(tmp_path / "archive.zarr", tdm.open(uninterrupted), compression="zstd")
    np.testing.assert_array_equal(archive.values, raw[2])
    assert archive.attrs["source"] == "scan.raw"


def test_options_that_do_not_fit_are_refused(raw, tmp_path):
    path = tmp_path / "scan.zarr"
    for options, error, message in (
        ({"compression": "gzip"}, errors.InputError, "compression is 'gzip'"),
        ({"crop": {"z": slice(1)}}, errors.RegionError, "no axis"),
        ({"crop": {"y": slice(5, 5)}}, errors.RegionError, "empty"),
        ({"scan_step": -1}, errors.UnitError, "scan_step is -1"),
        ({"pixel_size": "3 pm"}, errors.UnitError, "pixel_size"),
        ({"scan_shape": (18, 24)}, errors.ScanShapeError, "scan"),
    ):
        with pytest.raises(error, match=message):
            converted(path, str(raw[0]), **{**raw[1], **options})
    with pytest.raises(errors.InputError, match=r"scan_shape=\(.*\) describes a file"):
        converted(path, poisson(SHAPE), scan_shape=(18, 25))
    for dtype in ("float16", "complex64"):
        with pytest.raises(errors.CountsError, match=dtype):
            converted(path, poisson(SHAPE, dtype))
    none = tdm.label_counts(poisson(SHAPE), {"valid_patterns": (("y", "x"), np.zeros(SHAPE[:2], bool))})
    with pytest.raises(errors.RegionError, match="valid_patterns"):
        converted(path, none)
    assert not path.exists()


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_statistics_honour_the_valid_flags(tmp_path, dtype):
    rng = np.random.default_rng(4)
    dense = poisson(SHAPE, dtype)
    pixels, patterns = rng.random(SHAPE[2:]) < 0.8, rng.random(SHAPE[:2]) < 0.8
    patterns[:4, :6] = False  # a shard without any
    patterns[4:6, 6:9] = False  # and a shard's first inner chunk
    counts = tdm.label_counts(dense, {"valid_pixels": (("ky", "kx"), pixels), "valid_patterns": (("y", "x"), patterns)})
    if dtype == "float32":
        counts.values[:, :, ~pixels] = np.nan
        counts.values[~patterns] = np.inf
    path = tmp_path / "scan.zarr"
    converted(path, counts)
    found = xr.open_zarr(path, chunks=None)
    exact = dense.astype(np.float64)[patterns]
    np.testing.assert_allclose(found["pattern_mean"], np.where(pixels, exact.mean(0), 0), rtol=1e-9)
    np.testing.assert_allclose(found["pattern_variance"], np.where(pixels, exact.var(0), 0), rtol=1e-9)
    np.testing.assert_array_equal(found["pattern_maximum"], np.where(pixels, exact.max(0), 0))
    totals = found["total_counts"].values
    np.testing.assert_allclose(totals[patterns], exact[:, pixels].sum(1), rtol=1e-12)
    assert tdm.verify(path)
    assert stored_statistics(path) is not None


# Schedulers and memory


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local:
        yield local


@pytest.mark.long
@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes", "distributed"])
def test_every_scheduler_writes_the_same_store(request, raw, uninterrupted, tmp_path, scheduler):
    with contextlib.ExitStack() as stack:
        if scheduler == "distributed":
            from distributed import Client

            stack.enter_context(Client(request.getfixturevalue("cluster")))
        else:
            stack.enter_context(dask.config.set(scheduler=scheduler, num_workers=2))
        path = tmp_path / "scan.zarr"
        converted(path, str(raw[0]), **raw[1])
        memory = tmp_path / "memory.zarr"
        converted(memory, raw[2])
        if scheduler != "processes":  # they start anew for every call
            lazy = tmp_path / "lazy.zarr"
            converted(lazy, tdm.open(raw[0], **raw[1]) + np.uint16(1))
            assert tdm.verify(lazy).shards == SHARDS
            np.testing.assert_array_equal(tdm.open(lazy).values, raw[2] + 1)
    assert_same_store(path, uninterrupted)
    assert shard_files(memory) == shard_files(uninterrupted)


def test_writing_and_checking_go_forward_together(raw, tmp_path):
    from tdm_dask.cluster.progress import _LocalTasks

    class Bar:
        seen: ClassVar = [(0, 0)]
        local = property(lambda self: self.seen[-1], lambda self, now: self.seen.append(now))

    with _LocalTasks(Bar()):
        converted(tmp_path / "scan.zarr", str(raw[0]), **raw[1])
    seen = Bar.seen[1:]
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == list(range(seen[-1][1] + 1))
    assert seen[-1][1] >= 2 * SHARDS


@pytest.mark.long
def test_a_failing_task_on_a_cluster_gives_its_own_error(cluster, raw, tmp_path):
    from distributed import Client

    source = tmp_path / "scan.raw"
    options = raw_file(source, raw[2])
    counts = tdm.open(source, **options)
    source.write_bytes(source.read_bytes()[:-200])
    with Client(cluster), pytest.raises(errors.SourceError, match=r"became shorter|has changed since it was opened"):
        converted(tmp_path / "scan.zarr", counts)


MEMORY = """
import sys
import dask, numpy as np
import tdm_dask as tdm
from tdm_dask.shards.shapes import choose_shards
dask.config.set(scheduler="threads", num_workers=2)
shape = (128, 64, 256, 256)
assert choose_shards(shape, 2)[1] == (32, 32, 256, 256)
tdm.convert(sys.argv[1], sys.argv[2], scan_shape=shape[:2], detector_shape=shape[2:], dtype=">u2")
# Not ru_maxrss: a new process inherits that of the one that started it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(1024 * int(status["VmHWM"].split()[0]))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process its peak memory since it began")
def test_a_gigabyte_is_converted_in_less_than_a_gigabyte_of_memory(tmp_path):
    source = tmp_path / "scan.raw"
    frames = poisson((16, 256, 256), ">u2", mean=1).tobytes()
    with source.open("wb") as file:
        for n in range(0, 128 * 64, 16):
            # One pattern in four is written; the rest are holes of the file.
            if n % 64 == 0:
                file.seek(n * 256 * 256 * 2)
                file.write(frames)
        file.truncate(128 * 64 * 256 * 256 * 2)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(source), str(tmp_path / "scan.zarr")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 1e9
