"""The variance of images from counting statistics."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr.storage
from counted_reads import CountingStore
from small_stores import converted

import tdm_dask as tdm
from tdm_dask.axes import label_counts
from tdm_dask.errors import InputError, MaskError
from tdm_dask.evaluation.counting_noise import counting_variance

MEAN = np.random.default_rng(0).uniform(2, 30, (5, 6, 4, 4))


def poisson(seed, mean=MEAN):
    return label_counts(np.random.default_rng(seed).poisson(mean).astype(np.uint16))


def mask_of(counts, n=2):
    template = xr.DataArray(
        np.random.default_rng(9).normal(size=(n, 5, 6)), {"template": ["A", "B"][:n]}, ("template", "y", "x")
    )
    return tdm.derive_mask(counts, template)


@pytest.mark.long
@pytest.mark.parametrize("normalisation", ["none", "standardised"])
def test_repeated_scans_scatter_as_much_as_it_says(normalisation):
    mask = mask_of(poisson(0))
    scans = [poisson(seed) for seed in range(1, 201)]
    images = np.array([tdm.apply_mask(one, mask, normalisation=normalisation).values for one in scans])
    said = np.mean([counting_variance(one, mask, normalisation=normalisation).values for one in scans[:40]], 0)
    # The variance of 200 draws has a relative error of 10 %; the mean over 60 image pixels, of 1 %.
    ratio = images.var(0) / said
    assert abs(ratio.mean() - 1) < 0.05
    assert 0.5 < ratio.min() < ratio.max() < 1.6


def test_halves_of_the_electrons_differ_by_as_much_as_it_says():
    counts = poisson(3, np.tile(MEAN, (6, 5, 1, 1)))
    mask = xr.DataArray(np.random.default_rng(1).normal(size=(4, 4)), dims=("ky", "kx"))
    first, second = (tdm.apply_mask(half, mask) for half in tdm.split_electrons(counts, seed=2))
    # Half against half: the difference has the variance of the sum.
    ratio = (first - second) ** 2 / counting_variance(counts, mask)
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * np.sqrt(2 / ratio.size))


def test_it_equals_the_sum_of_squared_weights():
    counts = poisson(0)
    mask = mask_of(counts)
    weights = mask.values / mask["std"].values
    expected = 3 * np.einsum("yxab,kab->kyx", counts.values.astype(float), weights**2)
    found = counting_variance(counts, mask, normalisation="standardised", counts_per_electron=3.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dims == ("template", "y", "x")
    assert found["template"].values.tolist() == ["A", "B"]


def test_counts_of_a_gain_scatter_more():
    gain = 7
    mask = xr.DataArray(np.ones((4, 4)), dims=("ky", "kx"))
    images = [tdm.apply_mask(gain * poisson(seed), mask).values for seed in range(150)]
    said = counting_variance(gain * poisson(0), mask, counts_per_electron=gain)
    assert float((np.var(images, 0) / said).mean()) == pytest.approx(1, abs=0.1)


def test_dead_pixels_and_missing_patterns_do_not_count():
    counts = poisson(0)
    pixels = np.ones((4, 4), bool)
    pixels[0, 0] = False
    patterns = np.ones((5, 6), bool)
    patterns[2, 3] = False
    spoilt = counts.copy(deep=True)
    spoilt.values[:, :, 0, 0] = 60000
    spoilt = spoilt.assign_coords(valid_pixels=(("ky", "kx"), pixels), valid_patterns=(("y", "x"), patterns))
    found = counting_variance(spoilt, xr.DataArray(np.ones((4, 4)), dims=("ky", "kx")))
    expected = counts.values.sum((2, 3), dtype=float) - counts.values[:, :, 0, 0]
    np.testing.assert_allclose(found.values[patterns], expected[patterns], rtol=1e-6)
    assert np.isnan(found.values[~patterns]).all()


def test_a_pixel_of_standard_deviation_zero_adds_nothing():
    counts = poisson(0)
    counts.values[:, :, 1, 1] = 5
    mask = mask_of(counts).copy()
    mask.values[:, 1, 1] = 2.0
    found = counting_variance(counts, mask, normalisation="standardised")
    assert np.isfinite(found).all()
    without = mask.copy()
    without.values[:, 1, 1] = 0.0
    np.testing.assert_allclose(found, counting_variance(counts, without, normalisation="standardised"))


def test_it_is_lazy_and_takes_one_read(tmp_path):
    counts = label_counts(np.random.default_rng(0).poisson(4, (9, 13, 12, 16)).astype(np.uint16))
    converted(tmp_path / "scan.zarr", counts)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "scan.zarr", read_only=True))
    opened = tdm.open(store)
    mask = tdm.derive_mask(
        counts, xr.DataArray(np.random.default_rng(1).random((3, 9, 13)), dims=("template", "y", "x"))
    )
    found = counting_variance(opened, mask, normalisation="standardised")
    assert store.reads == []
    np.testing.assert_allclose(
        found.compute(), counting_variance(counts, mask, normalisation="standardised"), rtol=1e-6
    )
    ranges = store.chunk_ranges()
    assert ranges
    assert len(ranges) == len(set(ranges))


def test_what_makes_no_sense_is_refused_in_words():
    mask = xr.DataArray(np.ones((4, 4)), dims=("ky", "kx"))
    for gain in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="number above 0"):
            counting_variance(poisson(0), mask, counts_per_electron=gain)
    with pytest.raises(MaskError, match="carries no std"):
        counting_variance(poisson(0), mask, normalisation="standardised")
    with pytest.raises(MaskError, match="DataArray with dims"):
        counting_variance(poisson(0), np.ones((4, 4)))
