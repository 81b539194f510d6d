"""The matrix of all pixels with all, and its products with masks, equal dense float64 NumPy; what they read."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
from counted_reads import CountingStore, assert_read_once, several_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import LAYOUTS, as_labelled, scans
from small_stores import converted, poisson
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.kernels.matrix import centred_rows
from tdm_dask.passes.reductions import prepare_masks, prepare_templates
from tdm_dask.passes.second_moments import gram, normal_product


def standardised(counts, used):
    """D_hat (probe, pixel) of the probe positions used; 0 where a pixel is constant."""
    mean, std = oracle.statistics(counts, used)
    rows = counts.astype(np.float64)[used].reshape(int(used.sum()), -1)
    return (rows - mean.ravel()) / np.where(std > 0, std, np.inf).ravel()


def computed(values):
    return dask.compute(values)[0]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), scan=scans(), layout=st.sampled_from(LAYOUTS))
def test_the_correlation_matrix_and_its_products_equal_the_oracle(data, scan, layout, tmp_path_factory):
    counts, rng = scan
    ny, nx, nky, nkx = counts.shape
    used = rng.random((ny, nx)) < data.draw(st.sampled_from([0.5, 1.0]))
    used[0, 0] = True
    region = rng.random((nky, nkx)) < data.draw(st.sampled_from([0.3, 1.0]))
    region[-1, -1] = True
    array = as_labelled(counts, layout, tmp_path_factory, rng).data
    d_hat = standardised(counts, used)[:, region.ravel()]
    mean, std = oracle.statistics(counts, used)
    matrix = d_hat.T @ d_hat / len(d_hat)
    templates, n = None, data.draw(st.integers(0, 2))
    if used.sum() > 1 and n:
        templates = rng.normal(size=(n, ny, nx))
    prepared = None if templates is None else prepare_templates(templates, used)
    found = computed(gram(array, used, region, prepared, n))
    assert found["n"] == used.sum()
    np.testing.assert_allclose(found["correlation"], matrix, atol=1e-5)
    oracle.assert_close(found["mean"], np.where(region, mean, 0))
    oracle.assert_close(found["std"], np.where(region, std, 0))
    if templates is not None:
        oracle.assert_close(found["rho"], oracle.correlation(counts, templates, used, region), scale=1.0)
    vectors = rng.normal(size=(data.draw(st.integers(1, 7)), int(region.sum())))
    masks = np.zeros((len(vectors), nky, nkx))
    masks[:, region] = vectors
    product = computed(normal_product(array, prepare_masks(masks, mean, std, None), len(masks), used, region))
    expected = vectors @ matrix
    scale = np.abs(vectors).sum()
    oracle.assert_close(product["product"][:, region], expected, scale)
    assert not product["product"][:, ~region].any()
    oracle.assert_close(product["gram"], expected @ vectors.T, scale**2)
    oracle.assert_close(product["mean"], np.where(region, mean, 0))
    oracle.assert_close(product["std"], np.where(region, std, 0))


def test_raw_masks_give_correlations_with_their_images_times_the_images_deviation():
    counts = poisson((12, 10, 5, 6))
    masks = np.random.default_rng(0).random((2, 5, 6))
    found = normal_product(counts, prepare_masks(masks, None, None, None), 2, None, None)
    image = oracle.image(counts, masks)
    rho = oracle.correlation(counts, image)
    oracle.assert_close(found["product"], rho * image.std((1, 2))[:, None, None])
    oracle.assert_close(found["gram"], np.einsum("kyx,lyx->kl", image, image) / 120)


@pytest.mark.parametrize("change", [lambda c: c, lambda c: c.astype(np.uint32), lambda c: c.astype(np.float32)])
def test_counts_that_are_large_and_drift_lose_nothing_to_float32(change):
    """Shifts of one block would be far from the mean of the others, and squares of counts overflow float32's digits."""
    rng = np.random.default_rng(1)
    drift = np.linspace(0, 60000, 40)[:, None, None, None]
    counts = np.rint(2000 + drift + rng.normal(0, 8, (40, 30, 4, 5))).astype(np.uint16)
    counts[..., 0, 0] = 65535 - (rng.random((40, 30)) < 0.01)
    array = da.from_array(change(counts), chunks=(3, 30, 4, 5))
    d_hat = standardised(counts, np.ones((40, 30), bool))
    found = computed(gram(array, None, None))
    np.testing.assert_allclose(found["correlation"], d_hat.T @ d_hat / 1200, atol=1e-6)


def test_more_patterns_and_pixels_than_are_summed_at_once(monkeypatch):
    monkeypatch.setattr("tdm_dask.passes.second_moments.ROWS", 7)
    monkeypatch.setattr("tdm_dask.passes.second_moments.PANEL", 4)
    counts = poisson((9, 8, 5, 3))
    d_hat = standardised(counts, np.ones((9, 8), bool))
    templates = np.random.default_rng(2).normal(size=(2, 9, 8))
    found = gram(counts, None, None, prepare_templates(templates, None), 2)
    np.testing.assert_allclose(found["correlation"], d_hat.T @ d_hat / 72, atol=1e-6)
    oracle.assert_close(found["rho"], oracle.correlation(counts, templates), scale=1.0)


@pytest.mark.parametrize("layout", ["store", "chunked"])
def test_descan_is_followed(layout, tmp_path):
    counts = poisson((8, 7, 12, 16), mean=9)
    rng = np.random.default_rng(3)
    shifts = rng.integers(-2, 3, (2, 8, 7))
    moved, seen = oracle.descanned(counts, shifts)
    array = converted(tmp_path / "scan.zarr", counts).data if layout == "store" else da.from_array(counts, (3, 4, 5, 7))
    d_hat = standardised(moved, np.ones((8, 7), bool))[:, seen.ravel()]
    matrix = d_hat.T @ d_hat / 56
    found = computed(gram(array, None, seen, shifts=shifts))
    np.testing.assert_allclose(found["correlation"], matrix, atol=1e-5)
    vectors = rng.normal(size=(3, int(seen.sum())))
    masks = np.zeros((3, 12, 16))
    masks[:, seen] = vectors
    prepared = prepare_masks(masks, found["mean"], found["std"], None)
    product = computed(normal_product(array, prepared, 3, None, seen, shifts))["product"]
    oracle.assert_close(product[:, seen], vectors @ matrix, scale=10)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return several_shards(tmp_path_factory.mktemp("moments"), shape=(20, 24, 64, 96))


def passes(counts, pixels):
    masks = np.ones((3, *counts.shape[2:])) * pixels
    yield gram(counts.data, None, pixels)
    yield normal_product(counts.data, prepare_masks(masks, None, None, None), 3, None, pixels)


@pytest.mark.parametrize("which", [0, 1])
def test_a_pass_reads_nothing_before_compute_and_then_each_chunk_of_the_region_once(scan, which):
    path, counts = scan
    store = CountingStore(LocalStore(path, read_only=True))
    opened = tdm.open(store)
    pixels = np.zeros((64, 96), bool)
    pixels[20:40, 40:60] = True  # two of six tiles by kx of 32, both by ky
    lazy = list(passes(opened, pixels))[which]
    assert store.reads == []
    found = dask.compute(lazy, scheduler="threads")[0]
    assert_read_once(store, path, fraction=0.7)
    np.testing.assert_allclose(found["mean"][pixels], counts.mean((0, 1))[pixels])


@pytest.mark.long
def test_a_pass_runs_in_other_processes(scan):
    path, counts = scan
    pixels = np.zeros((64, 96), bool)
    pixels[20:30, 40:50] = True
    d_hat = standardised(counts, np.ones((20, 24), bool))[:, pixels.ravel()]
    lazy = gram(tdm.open(path).data, None, pixels)["correlation"]
    np.testing.assert_allclose(lazy.compute(scheduler="processes"), d_hat.T @ d_hat / 480, atol=1e-5)


def test_no_more_than_two_matrices_are_merged_at_a_time():
    array = da.from_array(poisson((16, 16, 4, 4)), chunks=(2, 2, 4, 4))
    graph = dict(gram(array, None, None)["correlation"].__dask_graph__())
    merges = [task for key, task in graph.items() if isinstance(key, tuple) and str(key[0]).startswith("merge-")]
    assert len(merges) > 32
    matrices = [[key for key in task.dependencies if isinstance(key, tuple)] for task in merges]
    assert max(map(len, matrices)) == 2


def test_a_matrix_beyond_the_limit_is_refused_before_anything_is_read():
    def read(_):
        raise AssertionError("counts were read")

    large = da.zeros((2, 2, 128, 128), dtype=np.uint16).map_blocks(read, dtype=np.uint16)
    with pytest.raises(tdm.errors.MemoryLimitError, match=r"16384 .* at most 8192 .* tdm_dask\.bin"):
        gram(large, None, None)


def test_counts_that_are_not_finite_are_an_error_where_they_are_used():
    counts = poisson((6, 7, 4, 5), "float32")
    counts[2, 3, 1, 1] = np.nan
    pixels = np.ones((4, 5), bool)
    masks = prepare_masks(np.ones((1, 4, 5)), None, None, ~np.isnan(counts).any((0, 1)))
    for run in (lambda p: gram(counts, None, p), lambda p: normal_product(counts, masks, 1, None, p)):
        with pytest.raises(tdm.errors.CountsError, match="1 detector pixels hold NaN"):
            run(pixels)
    pixels[1, 1] = False
    assert np.isfinite(gram(counts, None, pixels)["correlation"]).all()
    assert np.isfinite(normal_product(counts, masks, 1, None, pixels)["product"]).all()


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "float32", "float64"])
def test_rows_are_centred_on_their_own_mean(dtype):
    block = np.random.default_rng(4).integers(0, 100, (11, 13)).astype(dtype)
    columns, places = np.array([0, 3, 12]), np.array([4, 1, 0])
    mean, rows = np.full(5, -1.0), np.full((11, 5), -1, np.float32)
    centred_rows(block, columns, places, mean, rows)
    expected = block[:, columns].mean(0, dtype=np.float64)
    np.testing.assert_allclose(mean[places], expected, rtol=1e-15)
    np.testing.assert_allclose(rows[:, places], block[:, columns] - expected, rtol=1e-6, atol=1e-6)
    assert (mean[[2, 3]] == -1).all(), "places beside the tile are those of others"
    assert (rows[:, [2, 3]] == -1).all()
