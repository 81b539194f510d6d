"""Proxies hold exactly the counts that matter, read once; both products in one call are those of the full counts."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
import textwrap
from typing import get_args

import dask
import numpy as np
import oracle
import psutil
import pytest
import xarray as xr
from counted_reads import CountingStore, assert_read_once, several_shards
from dask import hashing
from small_stores import converted, poisson, shard_files, small_shards
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.axes import axis_coordinate
from tdm_dask.masks import derivation as masks
from tdm_dask.masks import proxies as tuning
from tdm_dask.reading import store as stores
from tdm_dask.shards.codec import COMPRESSIONS

SHAPE = (9, 10, 13, 14)
LAYOUTS = ["numpy", "chunked", "store", "crop of a store"]


def labelled(data, flags=True):
    rng = np.random.default_rng(1)
    coords = {
        "y": axis_coordinate("y", data.shape[0], 0.5, 3.0, "angstrom"),
        "x": axis_coordinate("x", data.shape[1], 0.25, -2.0, "angstrom"),
        "ky": axis_coordinate("ky", data.shape[2], 1.5, -9.0, "mrad"),
        "kx": axis_coordinate("kx", data.shape[3], 2.0, -13.0, "mrad"),
    }
    if flags:
        coords["valid_pixels"] = (("ky", "kx"), rng.random(data.shape[2:]) < 0.95)
        coords["valid_patterns"] = (("y", "x"), rng.random(data.shape[:2]) < 0.9)
    attrs = {"pixel_size_mrad": [1.5, 2.0], "energy_eV": 2e5, "semi_angle_mrad": 8.0}
    return tdm.label_counts(data, coords, attrs)


def laid_out(counts, layout, folder):
    if layout == "numpy":
        return counts
    if layout == "chunked":
        return counts.chunk(y=4, x=7, ky=5, kx=9)
    if layout == "store":
        return converted(folder / "scan.zarr", counts)
    # The scan inside a larger one, whose other counts must play no part.
    wide = counts.pad(y=(3, 2), x=(1, 4), ky=(2, 1), kx=(5, 3), constant_values=1)
    coords = {d: axis_coordinate(d, wide.sizes[d]) for d in wide.dims}
    for name in ("valid_pixels", "valid_patterns"):
        if name in counts.coords:
            coords[name] = (wide[name].dims, np.nan_to_num(wide[name].values.astype(float), nan=1).astype(bool))
    stored = converted(folder / "wide.zarr", tdm.label_counts(wide.values.astype(counts.dtype), coords, counts.attrs))
    part = tdm.crop(stored, y=slice(3, -2), x=slice(1, -4), ky=slice(2, -1), kx=slice(5, -3))
    return part.assign_coords({d: counts[d].variable for d in counts.dims})


REGIONS = {
    "whole": None,
    "slices": (slice(2, 11), slice(3, 12)),
    "disk": np.hypot(*(np.mgrid[:13, :14] - 6.0)) <= 5,
    "weights": np.clip(5.5 - np.hypot(*(np.mgrid[:13, :14] - 6.0)), 0, 1),
}


def dense(counts, region, factors):
    """The counts of the region as sums in the widest dtype, 0 where not valid; their flags; the window."""
    flags = np.ones(SHAPE[2:], bool)
    if isinstance(region, tuple):
        flags[:] = False
        flags[region] = True
    elif region is not None:
        flags = region > 0
    if "valid_pixels" in counts.coords:
        flags = flags & counts["valid_pixels"].values
    rows, columns = np.nonzero(flags.any(1))[0], np.nonzero(flags.any(0))[0]
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    fy, fx = factors
    ny, nx = ((s.stop - s.start) // f for s, f in zip(window, factors, strict=True))
    wide = np.float64 if counts.dtype.kind == "f" else np.uint64 if counts.dtype.kind in "ub" else np.int64
    inside = flags[window][: ny * fy, : nx * fx].reshape(ny, fy, nx, fx).all((1, 3))
    values = counts.values[:, :, *window][:, :, : ny * fy, : nx * fx].astype(wide)
    sums = values.reshape(*SHAPE[:2], ny, fy, nx, fx).sum((3, 5))
    sums[:, :, ~inside] = 0
    if "valid_patterns" in counts.coords:
        sums[~counts["valid_patterns"].values] = 0
    return sums, inside, window


@pytest.mark.long
@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "uint32", "int16", "float32", "bool"])
def test_a_proxy_holds_the_sums_of_the_region(dtype, layout, flags, tmp_path):
    counts = labelled(poisson(SHAPE).astype(dtype), flags)
    given = laid_out(counts, layout, tmp_path)
    for (name, region), factors in itertools.product(REGIONS.items(), [(1, 1), (3, 2)]):
        found = tdm.proxy(given, detector_region=region, bin=factors)
        expected, inside, window = dense(counts, region, factors)
        assert isinstance(found.data, np.ndarray)
        np.testing.assert_array_equal(found.values, expected, err_msg=f"{name} {factors}")
        kept = np.dtype(dtype).kind in "if" or (dtype == "bool" and factors == (1, 1))
        assert found.dtype.kind == (np.dtype(dtype).kind if kept else "u")
        assert kept or found.dtype == np.min_scalar_type(int(expected.max()))
        np.testing.assert_array_equal(found.coords.get("valid_pixels", np.ones(inside.shape, bool)), inside)
        assert ("valid_patterns" in found.coords) == flags
        if flags:
            np.testing.assert_array_equal(found["valid_patterns"], counts["valid_patterns"])
        for dim, factor, place in zip(("ky", "kx"), factors, window, strict=True):
            axis = counts[dim].values[place]
            axis = axis[: len(axis) // factor * factor].reshape(-1, factor).mean(1)
            np.testing.assert_allclose(found[dim], axis, rtol=1e-12, atol=1e-12)
            assert found[dim].attrs == counts[dim].attrs
        for dim in ("y", "x"):
            xr.testing.assert_identical(found[dim].variable, counts[dim].variable)
        assert found.attrs["pixel_size_mrad"] == [1.5 * factors[0], 2.0 * factors[1]]
        assert (found.attrs["units"], found.attrs["energy_eV"], found.name) == ("counts", 2e5, "counts")


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("region", REGIONS)
def test_masks_and_images_of_a_proxy_equal_the_oracle(region, factor, tmp_path):
    counts = labelled(poisson(SHAPE))
    small = tdm.proxy(laid_out(counts, "store", tmp_path), detector_region=REGIONS[region], bin=factor)
    sums, inside, _ = dense(counts, REGIONS[region], (factor, factor))
    used = counts["valid_patterns"].values
    templates = np.random.default_rng(2).normal(size=(3, *SHAPE[:2]))
    template = xr.DataArray(templates, dims=("template", "y", "x"), coords={"y": counts["y"], "x": counts["x"]})
    mask = tdm.derive_mask(small, template)
    mean, std = oracle.statistics(sums, used)
    oracle.assert_close(mask, oracle.correlation(sums, templates, used, inside), scale=1.0)
    image = tdm.apply_mask(small, mask, normalisation="standardised")
    expected = oracle.standardised_image(sums, mask.values, mean, np.where(inside, std, 0))
    np.testing.assert_array_equal(np.isnan(image.values), np.broadcast_to(~used, image.shape))
    oracle.assert_close(image.values[:, used], expected[:, used])


def test_detectors_and_templates_take_a_proxy_as_counts():
    counts = labelled(poisson(SHAPE), flags=False)
    small = tdm.proxy(counts, detector_region=tdm.disk(counts, 8))
    for make in (lambda c: tdm.disk(c, 5), lambda c: tdm.annulus(c, 2, 6)):
        np.testing.assert_allclose(tdm.apply_mask(small, make(small)), tdm.apply_mask(counts, make(counts)))
    sites = {"Li": [(4.0, -1.0)], "O": [(6.0, 0.0)]}
    xr.testing.assert_identical(
        tdm.gaussian_template(small, sites, sigma=0.4), tdm.gaussian_template(counts, sites, sigma=0.4)
    )
    again = tdm.proxy(small, detector_region=tdm.disk(small, 6), bin=2)
    xr.testing.assert_identical(again, tdm.proxy(counts, detector_region=tdm.disk(counts, 6), bin=2))


@pytest.mark.parametrize("top", [0, 1, 255, 256, 65535, 65536, 2**32 - 1])
@pytest.mark.parametrize("layout", ["numpy", "chunked", "store"])
def test_the_narrowest_dtype_loses_nothing(top, layout, tmp_path):
    data = np.zeros(SHAPE, np.uint32)
    data[5, 6, 7, 8] = top
    small = tdm.proxy(laid_out(labelled(data, flags=False), layout, tmp_path))
    assert small.dtype == np.min_scalar_type(top)
    np.testing.assert_array_equal(small, data)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "int32", "bool"])
def test_sums_at_the_top_of_a_dtype_lose_nothing(dtype):
    top = 1 if dtype == "bool" else np.iinfo(dtype).max
    small = tdm.proxy(labelled(np.full(SHAPE, top, dtype), flags=False), bin=(3, 4))
    assert np.unique(small).tolist() == [12 * int(top)]


def test_what_is_not_valid_neither_widens_nor_spoils_a_proxy():
    data = poisson(SHAPE)
    counts = labelled(data)
    data[:, :, ~counts["valid_pixels"].values] = 65535
    data[~counts["valid_patterns"].values] = 65535
    assert tdm.proxy(counts).dtype == tdm.proxy(counts, bin=2).dtype == np.uint8
    floats = np.where(data == 65535, np.nan, data).astype(np.float32)
    assert np.isfinite(tdm.proxy(counts.copy(data=floats))).all()
    assert np.isfinite(tdm.proxy(counts.copy(data=floats), bin=2)).all()


@pytest.mark.parametrize("order", [1, -1])
def test_blocks_of_every_width_come_together(order, monkeypatch):
    """The proxy widens while it is filled: each line has counts of another width, in either order."""
    monkeypatch.setattr(tuning, "BLOCK_BYTES", 100)
    lines = [10, 200, 300, 60000, 70000, 2**31, 2**40, 5][::order]
    data = poisson((8, 5, 4, 3), "uint64") + np.array(lines, np.uint64)[:, None, None, None]
    with dask.config.set(scheduler="synchronous"):
        for upto in range(1, 9):
            counts = tdm.label_counts(data[:upto])
            found = tdm.proxy(counts.chunk(y=1))
            np.testing.assert_array_equal(found, data[:upto])
            assert found.dtype == np.min_scalar_type(data[:upto].max())
            assert tdm.proxy(counts).identical(found)


def test_counts_in_memory_are_not_hashed(monkeypatch):
    hashed = []

    def hash_buffer(buffer, *rest):
        hashed.append(memoryview(buffer).nbytes)
        return hashing.hash_buffer_hex(buffer, *rest)

    monkeypatch.setattr("dask.tokenize.hash_buffer_hex", hash_buffer)
    counts = labelled(poisson(SHAPE))
    small = tdm.proxy(counts, detector_region=REGIONS["disk"])
    tdm.apply_mask(small, tdm.derive_mask(small, on_scan(small)), normalisation="standardised")
    tdm.pixel_statistics(counts)
    assert 0 < max(hashed) < small.nbytes


def on_scan(counts, n=3):
    rng = np.random.default_rng(2)
    coords = {"y": counts["y"], "x": counts["x"], "template": [f"kind {i}" for i in range(n)]}
    return xr.DataArray(rng.normal(size=(n, *counts.shape[:2])), dims=("template", "y", "x"), coords=coords)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flags", [True, False])
def test_column_images_are_those_of_the_two_steps(flags, layout, tmp_path):
    counts = labelled(poisson(SHAPE), flags)
    given = laid_out(counts, layout, tmp_path)
    template = on_scan(counts)
    for region, method, persist in itertools.product(REGIONS.values(), get_args(masks.Method), [False, True]):
        options = {"method": method, "detector_region": region, "scan_region": (slice(1, 8), slice(0, 7))}
        tolerance = 1e-6
        if method == "ridge":  # which solves with what the others have: rounding grows with the inverse of lambda
            tolerance, options = 1e-5, options | {"regularisation": 0.5}
        found = tdm.column_images(given, template, persist=persist, **options)
        mask = tdm.derive_mask(counts, template, **options)
        image = tdm.apply_mask(counts, mask, normalisation=masks.NORMALISATION_OF[method])
        for name, expected in (("mask", mask), ("image", image)):
            same = found[name].drop_vars("rho", errors="ignore")
            expected = expected.drop_vars("rho", errors="ignore")
            assert isinstance(same.data, np.ndarray)
            xr.testing.assert_allclose(same, expected, rtol=1e-5, atol=tolerance * float(abs(expected).max()))
            assert same.dims == expected.dims
            assert layout not in ("numpy", "chunked") or same.attrs == expected.attrs
        for name in ("mean", "std"):
            assert found[name].attrs == mask[name].attrs
        if method == "ridge":
            np.testing.assert_allclose(found["mask"]["rho"], mask["rho"], atol=1e-6)
        one = tdm.column_images(given, template[0], persist=persist, normalisation="none", **options)
        # A ridge mask by itself is another than one among several.
        alone = tdm.derive_mask(counts, template[0], **options)
        np.testing.assert_allclose(one["mask"], alone, rtol=1e-5, atol=tolerance)
        assert one["image"].dims == ("y", "x")
        assert one["image"].attrs["normalisation"] == "none"


@pytest.mark.long
@pytest.mark.parametrize("persist", [False, True])
def test_column_images_take_the_options_of_ridge_masks(persist, tmp_path):
    given = laid_out(labelled(poisson(SHAPE)), "store", tmp_path)
    template = on_scan(given)
    for options in ({"separate": True, "counts_per_electron": 1.0}, {"solver": "conjugate-gradients"}):
        options |= {"method": "ridge", "regularisation": 0.5}
        found = tdm.column_images(given, template, persist=persist, **options)
        expected = tdm.derive_mask(given, template, **options).compute()
        np.testing.assert_allclose(found["mask"], expected, rtol=0, atol=1e-4 * float(abs(expected).max()))
        assert float(found["mask"]["regularisation"]) == 0.5
        assert found["mask"]["rho"].shape == expected.shape
        with pytest.raises(tdm.errors.InputError, match="The regularisation is 0"):
            tdm.column_images(given, template, persist=persist, **(options | {"regularisation": 0}))
    with pytest.raises(tdm.errors.InputError, match="separate is an option of"):
        tdm.column_images(given, template, persist=persist, separate=True)


def test_every_method_has_its_normalisation():
    assert set(masks.NORMALISATION_OF) == set(get_args(masks.Method))
    assert set(masks.NORMALISATION_OF.values()) <= set(get_args(masks.Normalisation))


# What is read, and what it takes


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return several_shards(tmp_path_factory.mktemp("tuning"))


@pytest.fixture
def counting(scan):
    store = CountingStore(LocalStore(scan[0], read_only=True))
    return store, tdm.open(store)


MIDDLE = np.zeros((128, 128), bool)
MIDDLE[40:60, 36:62] = True


@pytest.mark.long
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_proxy_reads_the_tiles_of_its_region_once(counting, scan, factor, scheduler):
    store, counts = counting
    with dask.config.set(scheduler=scheduler):
        small = tdm.proxy(counts, detector_region=MIDDLE, bin=factor)
    assert_read_once(store, scan[0], fraction=1 / 16)
    assert len({key for key, _, _ in store.chunk_ranges()}) == 9
    ny, nx = 20 // factor * factor, 26 // factor * factor
    assert small.sum() == scan[1][:, :, 40 : 40 + ny, 36 : 36 + nx].sum()
    store.reads.clear()
    tdm.apply_mask(small, tdm.derive_mask(small, on_scan(small)))
    assert store.reads == []


def test_a_proxy_in_a_store_reads_the_tiles_of_its_region_once(counting, scan, tmp_path):
    store, counts = counting
    small = tdm.proxy(counts, detector_region=MIDDLE, bin=2, path=tmp_path / "small.zarr")
    assert_read_once(store, scan[0], fraction=1 / 16)
    store.reads.clear()
    again = tdm.proxy(counts, detector_region=MIDDLE, bin=2, path=tmp_path / "small.zarr")
    assert store.chunk_ranges() == []
    xr.testing.assert_identical(again.compute(), small.compute())


def test_a_crop_in_an_expression_reads_only_its_tiles(counting, scan):
    store, counts = counting
    found = tdm.crop(counts, ky=slice(40, 60), kx=slice(36, 62)).sum().compute()
    assert found == scan[1][:, :, 40:60, 36:62].sum()
    assert_read_once(store, scan[0], fraction=1 / 16)


@pytest.mark.long
@pytest.mark.parametrize(("persist", "times"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("method", ["pearson", "ridge"])
def test_column_images_read_the_region_twice_or_once(counting, scan, method, persist, times):
    store, counts = counting
    tdm.column_images(counts, on_scan(counts), method=method, detector_region=MIDDLE, persist=persist)
    ranges = store.chunk_ranges()
    assert all(ranges.count(r) == times for r in ranges)
    store.reads[:] = [r for n, r in enumerate(store.reads) if r not in store.reads[:n]]
    assert_read_once(store, scan[0], fraction=1 / 16)


@contextlib.contextmanager
def refused(kind, match):
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert str(caught.value).endswith(".")
    assert ". " not in str(caught.value).replace("=...", "")


def test_a_proxy_that_might_not_fit_is_refused_before_anything_is_read(counting, monkeypatch, tmp_path):
    store, counts = counting
    # As uint8, which the store's maxima promise, and as much again on the way, for the blocks are few.
    whole = 2 * 40 * 48 * 128 * 128
    monkeypatch.setattr(tuning, "BLOCKS_PER_TASK", 0)
    monkeypatch.setattr(tuning, "_available_memory", lambda: whole - 1)
    with refused(errors.MemoryLimitError, r"detector_region, bin=2, or path=\.\.\. for a store") as caught:
        tdm.proxy(counts)
    assert re.findall(r"[\d.]+ MiB", str(caught.value)) == ["60.00 MiB", "60.00 MiB"]
    assert store.chunk_ranges() == []
    assert 2 * tdm.proxy(counts, bin=2).nbytes == whole / 4
    monkeypatch.setattr(tuning, "_available_memory", lambda: whole / 10)
    with refused(errors.MemoryLimitError, "bin=4"):
        tdm.proxy(counts, bin=2)
    monkeypatch.setattr(tuning, "_available_memory", lambda: 100)
    with refused(errors.MemoryLimitError, r"smaller detector_region, or path=\.\.\. for a store"):
        tdm.proxy(counts)
    store.reads.clear()
    with refused(errors.MemoryLimitError, "smaller detector_region, or persist=False"):
        tdm.column_images(counts, on_scan(counts), persist=True)
    assert store.chunk_ranges() == []
    assert tdm.proxy(counts, detector_region=MIDDLE, path=tmp_path / "small.zarr").shape == (40, 48, 20, 26)


def test_the_need_is_that_of_the_widest_dtype_where_no_maximum_is_known(monkeypatch):
    counts = tdm.label_counts(poisson(SHAPE))
    monkeypatch.setattr(tuning, "BLOCKS_PER_TASK", 0)
    for factor, itemsize in ((1, 2), (2, 4)):
        needed = 2 * 9 * 10 * (13 // factor) * (14 // factor) * itemsize
        monkeypatch.setattr(tuning, "_available_memory", lambda needed=needed: needed - 1)
        with refused(errors.MemoryLimitError, "needs up to"):
            tdm.proxy(counts, bin=factor)
        monkeypatch.setattr(tuning, "_available_memory", lambda needed=needed: needed)
        assert tdm.proxy(counts, bin=factor).dtype == np.uint8


def test_a_maximum_gathered_over_fewer_pixels_is_not_trusted(tmp_path):
    counts = labelled(poisson(SHAPE))
    dead = tuple(np.argwhere(~counts["valid_pixels"].values)[0])
    counts.values[(slice(None), slice(None), *dead)] = 60000
    stored = converted(tmp_path / "scan.zarr", counts)
    assert tdm.proxy(stored, path=tmp_path / "small.zarr").dtype == np.uint8
    alive = stored.assign_coords(valid_pixels=(("ky", "kx"), np.ones(SHAPE[2:], bool)))
    small = tdm.proxy(alive, path=tmp_path / "alive.zarr")
    assert small.dtype == np.uint16
    assert small.max().compute() == 60000


def test_counts_beyond_what_their_store_knows_are_an_error(tmp_path):
    counts = converted(tmp_path / "scan.zarr", labelled(poisson(SHAPE), flags=False))
    import zarr

    zarr.open_array(tmp_path / "scan.zarr" / "pattern_maximum", mode="r+")[...] = 2
    for path in (None, tmp_path / "small.zarr"):
        # As large as a byte holds is not told apart from what is known.
        assert tdm.proxy(counts, path=path).max() == poisson(SHAPE).max()
    zarr.open_array(tmp_path / "scan.zarr" / "counts", mode="r+")[2, 3, 4, 5] = 300
    for path in (None, tmp_path / "other.zarr"):
        with refused(errors.CorruptStoreError, "reach 300"):
            tdm.proxy(counts, path=path)


def test_the_available_memory_is_part_of_the_machines():
    assert 0 < tuning._available_memory() < psutil.virtual_memory().total


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factor", [1, 2])
def test_a_proxy_in_a_store_holds_the_same_counts(layout, factor, tmp_path):
    counts = laid_out(labelled(poisson(SHAPE)), layout, tmp_path)
    options = {"detector_region": REGIONS["disk"], "bin": factor}
    with small_shards():
        stored = tdm.proxy(counts, path=tmp_path / "small.zarr", **options)
        again = tdm.proxy(counts, path=tmp_path / "small.zarr", **options)
    expected = tdm.proxy(counts, **options)
    assert stored.chunks is not None
    for found in (stored, again, tdm.open(tmp_path / "small.zarr")):
        np.testing.assert_array_equal(found, expected)
        for name, coordinate in expected.coords.items():
            xr.testing.assert_identical(found[name].variable, coordinate.variable)
        about_the_store = ("source", "findings")
        assert {k: v for k, v in expected.attrs.items() if k not in about_the_store} == {
            k: v for k, v in found.attrs.items() if k not in about_the_store
        }
    # Where the store says how large its counts are, the proxy is as narrow as can be, for the fast kernels.
    assert layout not in ("store", "crop of a store") or stored.dtype == np.uint8


def test_a_place_that_holds_something_else_is_refused(tmp_path):
    stored = converted(tmp_path / "scan.zarr", labelled(poisson(SHAPE)))
    with refused(errors.StoreError, "where the counts themselves come from"):
        tdm.proxy(stored, bin=2, path=tmp_path / "scan.zarr")
    tdm.proxy(stored, bin=2, path=tmp_path / "small.zarr")
    with refused(errors.StoreError, "already holds"):
        tdm.proxy(stored, bin=3, path=tmp_path / "small.zarr")
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr"), poisson(SHAPE))


def test_what_makes_no_sense_is_refused_before_anything_is_read(counting):
    store, counts = counting
    with refused(errors.RegionError, "detector_region"):
        tdm.proxy(counts, detector_region=np.zeros((128, 128), bool))
    with refused(errors.RegionError, "binning of ky"):
        tdm.proxy(counts, detector_region=MIDDLE, bin=21)
    ring = np.abs(np.hypot(*(np.mgrid[:128, :128] - 64.0)) - 40) < 1
    with refused(errors.RegionError, "no 8 x 8 valid pixels"):
        tdm.proxy(counts, detector_region=ring, bin=8)
    template = on_scan(counts)
    for persist in (False, True):
        for options, match in (
            ({"method": "best"}, "method"),
            ({"normalisation": "some"}, "normalisation"),
            ({"template": template[0] * 0}, "constant"),
            ({"scan_region": np.zeros((40, 48), bool)}, "scan_region"),
        ):
            with refused(errors.InputError, match):
                tdm.column_images(counts, **{"template": template, "persist": persist, **options})
    assert store.chunk_ranges() == []


MEMORY = """
import json, sys, threading, time
import psutil, dask
dask.config.set(scheduler="threads", num_workers=1)
import tdm_dask as tdm, tdm_dask.conversion.conversion, tdm_dask.masks.proxies
from distributed.system import MEMORY_LIMIT
path, out = sys.argv[1:]
process = psutil.Process()
counts = tdm.open(path)
tdm.proxy(tdm.crop(counts, y=slice(0, 16)), path=out + ".first" if out else None)
base = process.memory_info().rss
peak, stop = [base], []

def watch():
    while not stop:
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
small = tdm.proxy(counts, path=out or None)
stop.append(True)
watcher.join()
print(json.dumps({"above": peak[0] - base, "proxy": small.nbytes, "dtype": str(small.dtype)}))
"""


@pytest.fixture(scope="module")
def half_a_gigabyte(tmp_path_factory):
    """A store of 64 equal shards of 8 MiB: 16-bit counts that 8 bits hold, with no maximum known."""
    folder = tmp_path_factory.mktemp("large")
    path = folder / "scan.zarr"
    attributes = {"schema": 1, "state": "complete", "id": stores.new_id()}
    with small_shards((8, 8, 64, 64), (16, 16)):
        tdm.convert(tdm.label_counts(poisson((16, 16, 128, 128), mean=0.5)), folder / "one.zarr")
        backend = stores.resolve(path, read_only=False)
        array = stores.create(backend, attributes, (128, 128, 128, 128), np.dtype("u2"), COMPRESSIONS["lz4"], {})
    (data,) = shard_files(folder / "one.zarr").values()
    for shard in array.shards():
        file = path / array.key(shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


@pytest.mark.long
@pytest.mark.parametrize("kept", ["in memory", "in a store"])
def test_peak_memory_is_the_proxy_and_a_few_blocks(half_a_gigabyte, kept, tmp_path):
    out = "" if kept == "in memory" else str(tmp_path / "small.zarr")
    script = [sys.executable, "-c", textwrap.dedent(MEMORY), str(half_a_gigabyte), out]
    result = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert result["dtype"] == ("uint16" if out else "uint8")
    working = (tuning.BLOCKS_PER_TASK + tuning.BATCH) * tuning.BLOCK_BYTES
    if kept == "in memory":
        assert result["proxy"] == 128**4
        assert result["above"] < result["proxy"] + working < 2 * result["proxy"]
    else:
        assert result["above"] < 2 * working


# Clusters


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cluster_gives_the_same_numbers(client, layout, tmp_path):
    counts = labelled(poisson(SHAPE))
    given = laid_out(counts, layout, tmp_path)
    options = {"detector_region": REGIONS["disk"], "bin": 2}
    expected = tdm.proxy(counts, **options)
    xr.testing.assert_equal(tdm.proxy(given, **options), expected)
    np.testing.assert_array_equal(tdm.proxy(given, path=tmp_path / "small.zarr", **options), expected)
    template = on_scan(counts)
    expected = tdm.column_images(counts, template, detector_region=REGIONS["disk"])
    for persist in (False, True):
        found = tdm.column_images(given, template, detector_region=REGIONS["disk"], persist=persist)
        for name in ("mask", "image"):
            xr.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
