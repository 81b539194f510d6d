"""Random sites, and what templates of them give."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr.storage
from counted_reads import CountingStore
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.stats import binom
from small_stores import converted

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate, label_counts
from tdm_dask.errors import InputError, SiteError
from tdm_dask.evaluation.null import null_distribution, random_sites

SIGMA = 0.5


def scan_axes(ny=20, nx=20, step=0.4):
    return {d: axis_coordinate(d, n, step, 0.0, "angstrom") for d, n in (("y", ny), ("x", nx))}


def empty_scan(**size):
    axes = scan_axes(**size)
    return xr.DataArray(np.zeros([len(a.values) for a in axes.values()]), axes, ("y", "x"))


def lattice(period=2.0, extent=8.0, origin=0.5):
    line = np.arange(origin, extent, period)
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


@settings(max_examples=40, deadline=None)
@given(number=st.integers(1, 40), margin=st.sampled_from([0.0, 0.7]), seed=st.integers(0, 2**31 - 1))
def test_random_sites_are_as_many_as_those_inside_and_all_inside(number, margin, seed):
    sites = np.random.default_rng(seed).uniform(0, 7.6, (number, 2))
    found = random_sites(empty_scan(), np.concatenate([sites, [(50.0, 50.0)]]), margin=margin, seed=seed)
    assert found.shape == (number, 2)
    assert (found >= -margin).all()
    assert (found <= 7.6 + margin).all()
    np.testing.assert_array_equal(found, random_sites(empty_scan(), sites, margin=margin, seed=seed))


def test_random_sites_keep_their_distance():
    for seed in range(20):
        found = random_sites(empty_scan(), lattice(), seed=seed)
        assert len(found) == 16
        assert cKDTree(found).query(found, k=2)[0][:, 1].min() >= 0.7 * 2.0 - 1e-9


def test_another_seed_gives_other_sites_and_no_site_inside_is_an_error():
    first, second = (random_sites(empty_scan(), lattice(), seed=seed) for seed in (0, 1))
    assert np.abs(first - second).max() > 0.1
    with pytest.raises(SiteError, match="None of the 1 sites"):
        random_sites(empty_scan(), [(100.0, 1.0)])


def flat(seed, detector=(2, 3), mean=9.0):
    axes = scan_axes()
    return label_counts(np.random.default_rng(seed).poisson(mean, (20, 20, *detector)).astype(np.uint16), axes)


def crystal(seed=0, sites=None, detector=(2, 3), strength=8.0):
    """Counts of columns at a lattice, which half of the pixels see."""
    axes = scan_axes()
    image = tdm.gaussian_template(empty_scan(), lattice() if sites is None else sites, sigma=SIGMA).values
    weights = np.zeros(detector)
    weights[0] = strength
    mean = 9.0 + image[:, :, None, None] * weights
    return label_counts(np.random.default_rng(seed).poisson(mean).astype(np.uint16), axes)


def assert_at_the_rate(hits, number, rate):
    """Not more often than the rate, nor much more seldom, within what 1 in 1000 repetitions would exceed."""
    assert binom.ppf(0.001, number, 0.5 * rate) <= hits <= binom.ppf(0.999, number, rate)


@pytest.mark.long
def test_false_positives_without_structure_come_at_the_stated_rate():
    def p_of(seed):
        return null_distribution(flat(seed), {"A": lattice()}, sigma=SIGMA, draws=20, seed=seed)["p"].item()

    p = np.array([p_of(seed) for seed in range(200)])
    for rate in (0.05, 0.1, 0.25, 0.5):
        assert_at_the_rate(int((p <= rate + 1e-9).sum()), len(p), rate)
    # And uniform: the mean of 200 uniform numbers is 0.5 +- 0.02.
    assert abs(p.mean() - 0.5 * 22 / 21) < 4 * np.sqrt(1 / 12 / len(p))


@pytest.mark.long
def test_false_positives_of_random_sites_on_a_crystal_come_at_the_stated_rate():
    counts = crystal()
    kinds = {f"random {n}": random_sites(counts, lattice(), margin=SIGMA, seed=1000 + n) for n in range(200)}
    found = null_distribution(counts, kinds, sigma=SIGMA, draws=20, seed=4)
    p = found["p"].values
    for rate in (0.05, 0.1, 0.25):
        assert_at_the_rate(int((p <= rate + 1e-9).sum()), len(p), rate)


def test_p_and_the_norms_equal_templates_drawn_by_hand():
    counts = crystal()
    found = null_distribution(counts, {"A": lattice(), "B": lattice(origin=1.5)}, sigma=SIGMA, draws=20, seed=2)
    numbers = np.random.default_rng(2).integers(0, 2**31, (2, 20))
    d = counts.values.reshape(400, -1).astype(float)
    d = (d - d.mean(0)) / d.std(0)

    def norm(sites):
        t = tdm.gaussian_template(empty_scan(), sites, sigma=SIGMA).values.ravel()
        return np.linalg.norm((t - t.mean()) / t.std() @ d / 400)

    for k, origin in enumerate((0.5, 1.5)):
        own = lattice(origin=origin)
        null = np.array([norm(random_sites(counts, own, margin=SIGMA, seed=int(n))) for n in numbers[k]])
        np.testing.assert_allclose(found["norm"][k], norm(own), rtol=1e-5)
        np.testing.assert_allclose(found["null_norm"][k], null, rtol=1e-5)
        assert found["p"][k].item() == pytest.approx((1 + (null >= norm(own)).sum()) / 21)


def test_structure_is_found_in_the_pixels_that_have_it_and_no_other():
    found = null_distribution(crystal(strength=20.0), {"A": lattice()}, sigma=SIGMA, draws=50)
    assert found["p"].item() == pytest.approx(1 / 51)
    significant = found["significant"].values[0]
    assert significant[0].all()
    assert not significant[1].any()
    assert (np.abs(found["z"].values[0][0]) > 3).all()


@pytest.mark.long
def test_significant_pixels_of_noise_are_as_few_as_the_rate_says():
    # Of scans without structure, a part of at most the rate has any significant pixel at all.
    with_any = [
        bool(
            null_distribution(flat(seed, (6, 6)), {"A": lattice()}, sigma=SIGMA, draws=30, rate=0.1, seed=seed)[
                "significant"
            ].any()
        )
        for seed in range(100)
    ]
    assert sum(with_any) <= binom.ppf(0.999, 100, 0.1)


@pytest.mark.long
def test_of_the_significant_pixels_a_part_of_about_the_rate_is_chance():
    false = []
    for seed in range(20):
        counts = crystal(seed, detector=(4, 40), strength=3.0)
        significant = null_distribution(counts, {"A": lattice()}, sigma=SIGMA, draws=40, rate=0.1, seed=seed)[
            "significant"
        ].values[0]
        if significant.any():
            false.append(significant[1:].sum() / significant.sum())
    assert len(false) == 20
    assert np.mean(false) < 0.15


def test_the_seed_decides_and_regions_are_kept_to():
    counts = crystal()
    region = np.array([[True, True, False], [False, True, False]])
    options = {"sigma": SIGMA, "draws": 20, "detector_region": region, "scan_region": (slice(0, 15), slice(2, 20))}
    first = null_distribution(counts, {"A": lattice()}, seed=5, **options)
    xr.testing.assert_identical(first, null_distribution(counts, {"A": lattice()}, seed=5, **options))
    other = null_distribution(counts, {"A": lattice()}, seed=6, **options)
    assert np.abs(other["null_norm"] - first["null_norm"]).max() > 0
    assert (first["z"].values[0][~region] == 0).all()
    assert (first["p_pixel"].values[0][~region] == 1).all()


def test_all_draws_come_from_one_read(tmp_path):
    counts = crystal(detector=(6, 8))
    converted(tmp_path / "scan.zarr", counts)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "scan.zarr", read_only=True))
    found = null_distribution(tdm.open(store), {"A": lattice()}, sigma=SIGMA, draws=20)
    ranges = store.chunk_ranges()
    assert ranges
    assert len(ranges) == len(set(ranges))
    expected = null_distribution(counts, {"A": lattice()}, sigma=SIGMA, draws=20)
    np.testing.assert_allclose(found["null_norm"], expected["null_norm"], rtol=1e-5)


def test_too_few_draws_for_the_rate_are_refused():
    with pytest.raises(InputError, match="expected at least 20"):
        null_distribution(flat(0), {"A": lattice()}, sigma=SIGMA, draws=19)
