"""Crop and bin against NumPy: numbers, flags, axes, dtypes, facts, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import converted, poisson

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.axes import DIMS, axis_coordinate
from tdm_dask.reading.lazy import source_of

SHAPE = (7, 9, 10, 11)


def labelled(data):
    rng = np.random.default_rng(1)
    coords = {
        "y": axis_coordinate("y", data.shape[0], 0.5, 3.0, "angstrom"),
        "x": axis_coordinate("x", data.shape[1], 0.25, -2.0, "angstrom"),
        "ky": axis_coordinate("ky", data.shape[2], 1.5, -6.0, "mrad"),
        "kx": axis_coordinate("kx", data.shape[3], 2.0, -9.0, "mrad"),
        "valid_pixels": (("ky", "kx"), rng.random(data.shape[2:]) < 0.9),
        "valid_patterns": (("y", "x"), rng.random(data.shape[:2]) < 0.9),
    }
    attrs = {"pixel_size_mrad": [1.5, 2.0], "electrons_per_probe": 100.0, "dwell_time_s": 1e-3, "energy_eV": 2e5}
    return tdm.label_counts(data, coords, attrs)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("regions") / "scan.zarr", labelled(poisson(SHAPE)))


windows = st.fixed_dictionaries(
    {},
    optional={
        dim: st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda w: w[0] < w[1]).map(lambda w: slice(*w))
        for dim, n in zip(DIMS, SHAPE, strict=True)
    },
)


@settings(max_examples=25, deadline=None)
@given(windows, windows)
def test_a_crop_is_a_slice_of_everything(stored, first, second):
    for counts in (stored, labelled(poisson(SHAPE))):
        expected = counts.isel(first)
        found = tdm.crop(counts, **first)
        xr.testing.assert_identical(found.compute(), expected.compute())
        # A crop of a crop counts from the first one, and stops where that stops.
        inside = {d: s for d, s in second.items() if s.start < expected.sizes[d]}
        xr.testing.assert_identical(tdm.crop(found, **inside).compute(), expected.isel(inside).compute())


def test_a_crop_of_a_store_stays_connected_to_it(stored):
    part = tdm.crop(stored, y=slice(2, -1), kx=slice(-5, None))
    assert source_of(part.data) is not None
    assert part.shape == (4, 9, 10, 5)
    np.testing.assert_array_equal(part["kx"], stored["kx"][-5:])
    assert part["kx"].attrs == stored["kx"].attrs
    assert part.attrs == stored.attrs


@pytest.mark.parametrize("kind", ["NumPy", "store"])
@pytest.mark.parametrize(
    ("scan", "detector"), [(2, 1), (1, 2), ((2, 3), (3, 2)), (3, (1, 5)), (7, 10), ((7, 9), (10, 11)), (np.int64(2), 1)]
)
def test_bin_sums_what_is_valid_and_drops_the_rest_at_the_edge(stored, kind, scan, detector):
    counts = stored if kind == "store" else labelled(poisson(SHAPE))
    dense = poisson(SHAPE).astype(np.int64)
    pixels, patterns = counts["valid_pixels"].values, counts["valid_patterns"].values
    dense = dense * pixels * patterns[:, :, None, None]
    factors = [f for pair in (scan, detector) for f in (pair if isinstance(pair, tuple) else (pair, pair))]
    found = tdm.bin(counts, scan=scan, detector=detector)
    np.testing.assert_array_equal(found.values, blocks(dense, factors).sum((1, 3, 5, 7)))
    assert found.dtype == np.uint32
    assert found.name == "counts"
    np.testing.assert_array_equal(found["valid_pixels"], blocks(pixels, factors[2:]).all((1, 3)))
    np.testing.assert_array_equal(found["valid_patterns"], blocks(patterns, factors[:2]).all((1, 3)))
    for dim, factor in zip(DIMS, factors, strict=True):
        np.testing.assert_allclose(found[dim], blocks(counts[dim].values, [factor]).mean(1))
        assert found[dim].attrs == counts[dim].attrs


def blocks(array, factors):
    """Each axis split in two: blocks, and the elements of a block; what is left over is dropped."""
    whole = array[tuple(slice(0, n - n % f) for n, f in zip(array.shape, factors, strict=True))]
    return whole.reshape([part for n, f in zip(whole.shape, factors, strict=True) for part in (n // f, f)])


def test_bin_scales_the_facts_that_a_sum_changes():
    binned = tdm.bin(labelled(poisson(SHAPE)), scan=(2, 3), detector=(5, 2))
    assert binned.attrs["pixel_size_mrad"] == [7.5, 4.0]
    assert binned.attrs["electrons_per_probe"] == 600.0
    assert binned.attrs["dwell_time_s"] == pytest.approx(6e-3)
    assert binned.attrs["energy_eV"] == 2e5


def test_bin_by_one_changes_nothing():
    counts = labelled(poisson(SHAPE))
    xr.testing.assert_identical(tdm.bin(counts), counts)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", ">u2", "uint32", "int8", "int16", "int32", "float32"])
@pytest.mark.parametrize("lazy", [False, True])
def test_sums_near_the_top_of_a_dtype_do_not_overflow(dtype, lazy):
    top = True if dtype == "bool" else 3e4 if dtype == "float32" else np.iinfo(dtype).max
    counts = tdm.label_counts(np.full((4, 4, 4, 4), top, dtype))
    binned = tdm.bin(counts.chunk(y=3) if lazy else counts, scan=2, detector=4)
    assert np.unique(binned.values).astype(float).tolist() == [64 * float(top)]
    assert binned.dtype.kind == {"b": "u", "f": "f"}.get(np.dtype(dtype).kind, np.dtype(dtype).kind)


def test_sums_of_very_many_counts_do_not_overflow():
    top = np.iinfo(np.uint16).max
    binned = tdm.bin(tdm.label_counts(np.full((300, 300, 1, 1), top, np.uint16)), scan=300)
    assert binned.values.tolist() == [[[[90000 * top]]]]
    for dtype in (np.uint64, np.int64):
        largest = np.iinfo(dtype).max
        binned = tdm.bin(tdm.label_counts(np.full((2, 2, 1, 1), largest, dtype)), scan=2)
        np.testing.assert_allclose(binned.values, 4.0 * float(largest))
    lowest = tdm.bin(tdm.label_counts(np.full((2, 2, 1, 1), -(2**31), np.int32)), scan=2)
    assert lowest.values.item() == -(2**33)


def test_nan_at_what_is_not_valid_stays_out_of_the_sums():
    data = poisson(SHAPE, "float32")
    counts = labelled(data.copy())
    expected = tdm.bin(counts, scan=2, detector=2).values
    counts.values[:, :, ~counts["valid_pixels"].values] = np.nan
    counts.values[~counts["valid_patterns"].values] = np.inf
    np.testing.assert_array_equal(tdm.bin(counts, scan=2, detector=2).values, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"y": slice(3, 3)},
        {"y": slice(7, None)},
        {"x": slice(0, 6, 2)},
        {"x": slice(None, None, -1)},
        {"ky": 3},
        {"ky": slice(0.5, 3)},
        {"z": slice(0, 1)},
    ],
)
def test_a_window_that_makes_no_sense_is_refused(options):
    with pytest.raises(errors.RegionError, match=next(iter(options))):
        tdm.crop(labelled(poisson(SHAPE)), **options)


@pytest.mark.parametrize("factor", [0, -1, 8, 2.0, "2", None, True, (2,), (1, 2, 3), (2, 0), (2, 1.5)])
def test_a_binning_that_makes_no_sense_is_refused(factor):
    with pytest.raises(errors.RegionError, match="binning"):
        tdm.bin(labelled(poisson(SHAPE)), scan=factor)


def test_what_is_no_counts_is_refused():
    for call in (tdm.crop, tdm.bin):
        with pytest.raises(errors.CountsError, match="ndarray"):
            call(poisson(SHAPE))
        with pytest.raises(errors.CountsError, match="dims"):
            call(labelled(poisson(SHAPE))[0])
