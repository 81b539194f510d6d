"""Electron thinning: the right distribution, the same draw whatever the way, and halves that add up."""

from __future__ import annotations

import functools
import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from counted_reads import CountingStore, assert_read_once, several_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import LAYOUTS, as_labelled, scans
from scipy.stats import binom, chisquare
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.counts.thinning import split_electrons, thin
from tdm_dask.reading.blocks import Shards
from tdm_dask.reading.lazy import source_of
from tdm_dask.reading.thinned import Thinned

WORD = 2**64 - 1


def mixed(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def kept_of(electrons: int, fraction: float, seed: int, place: tuple[int, ...]) -> int:
    """What is kept of one count, in Python's unbounded integers: binary fractions of random words below `fraction`."""
    step = 0x9E3779B97F4A7C15
    y, x, ky, kx = place
    key = functools.reduce(lambda key, n: mixed(key + step * n & WORD), (y + 1, x + 1), mixed(seed + step & WORD))
    first = mixed(key + step * ((ky << 32) + kx + 1) & WORD)
    bits = f"{round(fraction * 2**64):064b}".rstrip("0")
    kept, used = 0, 0
    for begin in range(0, electrons, 64):
        undecided = set(range(min(64, electrons - begin)))
        for bit in bits:
            if not undecided:
                break
            word = mixed(first + step * used & WORD) if used else first
            used += 1
            zeros = {n for n in undecided if not word >> n & 1}
            kept += len(zeros) if bit == "1" else 0
            undecided = undecided - zeros if bit == "1" else zeros
    return kept


@pytest.mark.long
@pytest.mark.parametrize("fraction", [0.5, 0.25, 0.3, 0.9, 1e-3, 1 - 1e-9])
def test_the_draw_is_the_one_that_the_places_say(fraction):
    rng = np.random.default_rng(3)
    counts = rng.poisson(np.geomspace(0.3, 300, 6), (2, 3, 3, 6)).astype(np.uint16)
    counts[1, 2, 0, 0] = 1024
    found = thin(tdm.label_counts(counts), fraction, seed=2**64 - 1, origin=(7, 0, 2**20, 5)).values
    for place, n in np.ndenumerate(counts):
        at = tuple(p + o for p, o in zip(place, (7, 0, 2**20, 5), strict=True))
        assert found[place] == kept_of(int(n), fraction, 2**64 - 1, at)


@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.95, 1e-4])
@pytest.mark.parametrize("electrons", [1, 3, 63, 64, 65, 300, 1024, 1025, 60000, 2**32 - 1])
def test_what_is_kept_is_binomial(electrons, fraction):
    counts = tdm.label_counts(np.full((10, 20, 10, 10), electrons, np.uint32))
    n = counts.size
    kept = thin(counts, fraction, seed=4).values.astype(np.int64).ravel()
    expected = binom(electrons, fraction)
    assert abs(kept.mean() - expected.mean()) < 4.5 * expected.std() / np.sqrt(n)
    spread = np.sqrt((expected.stats("k") + 2) / n)  # of the variance, relative
    assert abs(kept.var() / expected.var() - 1) < 4.5 * spread + 4.5**2 / n
    # Classes of about equal probability, of at least ten counts each.
    edges = np.unique(expected.ppf(np.linspace(0, 1, 41)[1:-1]))
    probabilities = np.diff(expected.cdf(edges), prepend=0, append=1)
    classes = np.searchsorted(edges, kept)
    found = np.bincount(classes, minlength=len(probabilities))
    common = probabilities * n >= 10
    found = np.append(found[common], found[~common].sum())
    probabilities = np.append(probabilities[common], probabilities[~common].sum())
    if probabilities[-1] * n < 1e-6:  # every class was common
        assert found[-1] == 0
        found, probabilities = found[:-1], probabilities[:-1]
    if len(found) > 1:
        assert chisquare(found, probabilities / probabilities.sum() * n).pvalue > 1e-4


def test_halves_of_poisson_counts_are_poisson_and_independent():
    counts = tdm.label_counts(np.random.default_rng(1).poisson(6, (40, 40, 12, 12)).astype(np.uint8))
    first, second = (h.values.astype(np.float64) for h in split_electrons(counts, seed=2))
    limit = 4 / np.sqrt(first.size)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < limit
    for half in (first, second):
        assert abs(half.var() / half.mean() - 1) < 6 * limit
    # Nor do neighbours, other seeds or the two ways of an exchange of y with x share anything.
    kept = first - counts.values / 2
    for axis in range(4):
        a, b = kept.take(range(kept.shape[axis] - 1), axis), kept.take(range(1, kept.shape[axis]), axis)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < limit
    other = thin(counts, seed=3).values - counts.values / 2
    off_diagonal = ~np.eye(40, dtype=bool)
    assert abs(np.corrcoef(kept.ravel(), other.ravel())[0, 1]) < limit
    turned = kept.swapaxes(0, 1)[off_diagonal]
    assert abs(np.corrcoef(kept[off_diagonal].ravel(), turned.ravel())[0, 1]) < limit


@pytest.mark.long
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    scan=scans(),
    layout=st.sampled_from(LAYOUTS),
    scheduler=st.sampled_from(["synchronous", "threads"]),
    fraction=st.sampled_from([0.5, 0.3]),
    gain=st.sampled_from([1.0, 1.0, 2.0, 3.7]),
)
def test_halves_add_up_and_are_the_same_in_every_layout(scan, layout, scheduler, fraction, gain, tmp_path_factory):
    counts, rng = scan
    labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    first, second = split_electrons(labelled, fraction, seed=9, counts_per_electron=gain)
    with dask.config.set(scheduler=scheduler):
        a, b = first.compute(), second.compute()
    assert first.dtype == second.dtype == labelled.dtype.newbyteorder("=")
    assert first.dims == labelled.dims
    assert (labelled.chunks is None) == (first.chunks is None)
    wide = np.int64 if counts.dtype.kind in "uib" else counts.dtype
    np.testing.assert_array_equal(a.values.astype(wide) + b.values.astype(wide), counts.astype(wide))
    assert (a.values >= 0).all()
    assert (np.where(counts >= 0, b.values, 0) >= 0).all()
    at_once = thin(tdm.label_counts(counts), fraction, seed=9, counts_per_electron=gain)
    np.testing.assert_array_equal(a.values, at_once.values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [{"y": slice(2, 5)}, {"x": slice(1, 4), "ky": slice(3, 6), "kx": slice(2, 9)}])
def test_a_crop_of_thinned_counts_is_the_part_that_was_drawn(layout, window, tmp_path_factory):
    rng = np.random.default_rng(2)
    counts = rng.poisson(20, (7, 6, 8, 9)).astype(np.uint16)
    whole = xr.DataArray(thin(tdm.label_counts(counts), seed=5).values, dims=("y", "x", "ky", "kx"))
    labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    expected = whole.isel(window).values
    np.testing.assert_array_equal(tdm.crop(thin(labelled, seed=5), **window).values, expected)
    np.testing.assert_array_equal(thin(labelled, seed=5).isel(window).values, expected)
    # A part that is thinned itself draws from its own corner, or from where it is said to lie.
    origin = tuple(window.get(d, slice(0, 1)).start for d in labelled.dims)
    part = tdm.crop(labelled, **window)
    np.testing.assert_array_equal(thin(part, seed=5, origin=origin).values, expected)
    own = thin(tdm.label_counts(np.ascontiguousarray(part.values)), seed=5)
    np.testing.assert_array_equal(thin(part, seed=5).values, own.values)


def test_passes_over_halves_give_what_dense_halves_give(tmp_path):
    rng = np.random.default_rng(6)
    counts = rng.poisson(rng.gamma(2, 3, (1, 1, 9, 10)), (12, 11, 9, 10)).astype(np.uint16)
    labelled = tdm.convert(tdm.label_counts(counts), tmp_path / "scan.zarr")
    template = xr.DataArray(rng.normal(size=(12, 11)), dims=("y", "x"))
    flags = rng.random((9, 10)) < 0.9
    extra = {
        "valid_pixels": (("ky", "kx"), flags),
        "descan_ky": (("y", "x"), rng.integers(-1, 2, (12, 11))),
        "descan_kx": (("y", "x"), rng.integers(-1, 2, (12, 11))),
    }
    for lazy in split_electrons(labelled, seed=1):
        assert isinstance(source_of(lazy.data), Thinned)
        again = pickle.loads(pickle.dumps(source_of(lazy.data)))
        np.testing.assert_array_equal(again.read(3, 9, 2, 5), lazy[3:9, 2:5].values)
        for coords in ({}, extra):
            dense = lazy.compute().assign_coords(coords)
            found = tdm.correlate(lazy.assign_coords(coords), template).compute()
            xr.testing.assert_allclose(found, tdm.correlate(dense, template), atol=1e-6)
            mask = tdm.derive_mask(found)
            image = tdm.apply_mask(lazy.assign_coords(coords), mask, normalisation="standardised").compute()
            xr.testing.assert_allclose(image, tdm.apply_mask(dense, mask, normalisation="standardised"), atol=1e-5)


def test_thinned_counts_are_lazy_and_read_each_chunk_once(tmp_path):
    path, _ = several_shards(tmp_path, shape=(20, 20, 64, 64))
    store = CountingStore(LocalStore(path, read_only=True))
    first, second = split_electrons(tdm.open(store))
    region = np.zeros((64, 64), bool)
    region[:30, :30] = True
    assert store.reads == []
    statistics = tdm.pixel_statistics(first).compute(scheduler="threads")
    np.testing.assert_allclose(statistics["mean"], first.values.mean((0, 1)))
    store.reads.clear()
    tdm.pixel_statistics(second).compute(scheduler="threads")
    assert_read_once(store, path)
    store.reads.clear()
    tdm.apply_mask(first, xr.DataArray(region * 1.0, dims=("ky", "kx"))).compute(scheduler="threads")
    assert_read_once(store, path, fraction=1 / 4)


def test_what_a_store_knows_of_all_electrons_is_not_taken_for_that_of_some(tmp_path):
    counts = np.random.default_rng(0).poisson(4, (6, 6, 16, 16)).astype(np.uint16)
    half = thin(tdm.convert(tdm.label_counts(counts), tmp_path / "scan.zarr"))
    from tdm_dask.counts.statistics import pacbed, stored_maxima

    np.testing.assert_allclose(pacbed(half), half.values.mean((0, 1)))
    assert stored_maxima(half) is None
    stored = tdm.convert(half, tmp_path / "half.zarr")
    assert isinstance(source_of(stored.data), Shards)
    np.testing.assert_array_equal(stored.values, half.values)


def test_a_store_is_not_overwritten_by_a_half_of_itself(tmp_path):
    counts = np.random.default_rng(0).poisson(4, (6, 6, 16, 16)).astype(np.uint16)
    whole = tdm.convert(tdm.label_counts(counts), tmp_path / "scan.zarr")
    with pytest.raises(tdm.errors.TdmError):
        tdm.convert(tdm.crop(thin(whole), y=slice(0, 3)), tmp_path / "scan.zarr", overwrite=True)
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr").values, counts)


def test_gain_makes_electrons_of_counts():
    electrons = np.random.default_rng(1).poisson(30, (9, 9, 6, 6))
    expected = thin(tdm.label_counts(electrons.astype(np.uint16)), seed=2).values
    integers = tdm.label_counts((electrons * 12).astype(np.uint32))
    np.testing.assert_array_equal(thin(integers, seed=2, counts_per_electron=12).values, expected * 12)
    noisy = electrons * 12.5 + np.random.default_rng(3).normal(0, 1.5, electrons.shape)
    floats = tdm.label_counts(noisy.astype(np.float32)).assign_attrs(counts_per_electron=12.5, electrons_per_probe=1080)
    first, second = split_electrons(floats, 0.5, seed=2)
    np.testing.assert_allclose(first, expected * 12.5, rtol=0, atol=1e-4)
    # What rounding leaves is in the second.
    np.testing.assert_allclose(second, noisy - expected * 12.5, rtol=0, atol=1e-4)
    assert first.attrs["electrons_per_probe"] == second.attrs["electrons_per_probe"] == 540


def test_parts_of_an_electron_and_counts_below_zero():
    values = np.array([0.3, 0.5, 0.6, 1.4, -0.2, -7.0, 0.0, 2.6]).reshape(1, 1, 1, 8)
    many = tdm.label_counts(np.broadcast_to(values, (50, 1, 1, 8)).copy())
    first, second = (half.values[:, 0, 0] for half in split_electrons(many))
    assert [set(np.unique(first[:, n])) for n in range(8)] == [
        {0.0}, {0.0}, {0.0, 0.6}, {0.0, 1.0}, {0.0}, {0.0}, {0.0}, {0.0, 1.0, 2.0, 2.6},
    ]  # fmt: skip
    np.testing.assert_array_equal(first + second, many.values[:, 0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_counts_that_are_no_numbers_stay_so_and_are_refused_by_a_pass(bad):
    values = np.full((4, 4, 3, 3), 5, np.float32)
    values[1, 2, 0, 1] = bad
    half = thin(tdm.label_counts(values))
    assert np.array_equal(half.values[1, 2, 0, 1], np.float32(bad), equal_nan=True)
    with pytest.raises(tdm.errors.CountsError, match="1 detector pixel"):
        tdm.pixel_statistics(half)


def test_counts_of_a_user_are_left_as_they_are():
    values = np.full((3, 3, 4, 4), 9, np.uint16)
    values.flags.writeable = False
    thin(tdm.label_counts(values))
    tdm.pixel_statistics(thin(tdm.label_counts(da.from_array(values))))
    assert (values == 9).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 1.0}, "fraction"),
        ({"fraction": "half"}, "fraction"),
        ({"fraction": np.nan}, "fraction"),
        ({"fraction": 1e-30}, "fraction"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"counts_per_electron": 0}, "counts_per_electron"),
        ({"counts_per_electron": np.inf}, "counts_per_electron"),
        ({"counts_per_electron": "2"}, "counts_per_electron"),
        ({"origin": (0, 0)}, "origin"),
        ({"origin": (0, 0, -1, 0)}, "origin"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, sentence):
    with pytest.raises(tdm.errors.InputError, match=sentence):
        thin(tdm.label_counts(np.ones((2, 2, 2, 2), np.uint8)), **arguments)
