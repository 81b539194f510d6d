"""Second moments over blocks of the scan equal dense float64 NumPy over each block; what they read."""

from __future__ import annotations

import functools
from itertools import pairwise

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
from tdm_dask.errors import CountsError, MemoryLimitError
from tdm_dask.kernels.ridge_solver import SecondMoments
from tdm_dask.passes.block_moments import block_edges, block_moments
from tdm_dask.passes.reductions import prepare_templates


def dense(counts, templates, used, region, edges):
    """n, mean and products of deviations of pixels and standardised templates, by block."""
    s = templates - templates[:, used].mean(1)[:, None, None]
    s /= templates[:, used].std(1)[:, None, None]
    found = {}
    for i in range(len(edges[0]) - 1):
        for j in range(len(edges[1]) - 1):
            place = (slice(*edges[0][i : i + 2]), slice(*edges[1][j : j + 2]))
            here = used[place]
            if here.any():
                pixels = counts[place][here][:, region].astype(np.float64)
                rows = np.concatenate([pixels, s[:, *place][:, here].T], 1)
                deviations = rows - rows.mean(0)
                found[i, j] = (len(rows), rows.mean(0), deviations.T @ deviations)
    return found


def assert_blocks(found, expected, templates):
    assert list(found) == sorted(expected)
    for place, (n, mean, products) in expected.items():
        block = found[place]
        assert block.n == n
        np.testing.assert_allclose(block.mean, mean, rtol=1e-12, atol=1e-9)
        # Of each product, a part of what two such variables could have at the most. Pixels are centred on the block;
        # templates, on the whole scan.
        squares = np.diag(products).copy()
        squares[-templates:] += n * mean[-templates:] ** 2
        limit = 2e-6 * np.sqrt(np.outer(squares, squares)) + 1e-12 * n * np.abs(np.outer(mean, mean)) + 1e-12
        np.testing.assert_array_less(np.abs(block.products - products) / limit, 1.0)


@pytest.mark.long
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), scan=scans(), layout=st.sampled_from(LAYOUTS))
def test_the_moments_of_every_block_equal_the_oracle(data, scan, layout, tmp_path_factory):
    counts, rng = scan
    ny, nx, nky, nkx = counts.shape
    used = rng.random((ny, nx)) < data.draw(st.sampled_from([0.5, 1.0]))
    used[0, 0] = True
    if used.sum() < 2:
        return
    region = rng.random((nky, nkx)) < data.draw(st.sampled_from([0.4, 1.0]))
    region[-1, -1] = True
    templates = rng.normal(size=(data.draw(st.integers(1, 3)), ny, nx))
    edges = block_edges(used, (ny, nx), (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))))
    array = as_labelled(counts, layout, tmp_path_factory, rng).data
    found = block_moments(array, prepare_templates(templates, used), used, region, edges)
    expected = dense(counts, templates, used, region, edges)
    found = found.compute(scheduler=data.draw(st.sampled_from(["synchronous", "threads"])))
    assert_blocks(found, expected, len(templates))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    blocks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_edges_cut_what_is_used_into_nearly_equal_parts(seed, shape, blocks):
    rng = np.random.default_rng(seed)
    used = np.zeros(shape, bool)
    used[rng.integers(shape[0]) :, rng.integers(shape[1]) :] = True
    for axis, edges in enumerate(block_edges(used, shape, blocks)):
        assert edges[0] == 0
        assert edges[-1] == shape[axis]
        assert (np.diff(edges) > 0).all()
        lines = np.flatnonzero(used.any(1 - axis))
        numbers = [((lines >= a) & (lines < b)).sum() for a, b in pairwise(edges)]
        assert len(numbers) <= blocks[axis]
        if len(lines) >= blocks[axis]:
            assert len(numbers) == blocks[axis]
            assert max(numbers) - min(numbers) <= 1


def test_blocks_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    parts = [rng.normal(5, 2, (n, 4)) + rng.normal(size=4) for n in (3, 1, 17)]

    def of(rows):
        return SecondMoments(len(rows), rows.mean(0), (rows - rows.mean(0)).T @ (rows - rows.mean(0)))

    whole = functools.reduce(SecondMoments.__add__, map(of, parts))
    expected = of(np.concatenate(parts))
    assert whole.n == 21
    np.testing.assert_allclose(whole.mean, expected.mean, rtol=1e-13)
    np.testing.assert_allclose(whole.products, expected.products, rtol=1e-12)
    correlation, std = whole.correlations()
    np.testing.assert_allclose(correlation, np.corrcoef(np.concatenate(parts).T), atol=1e-12)
    np.testing.assert_allclose(std, np.concatenate(parts).std(0), rtol=1e-12)


def test_what_is_constant_correlates_with_nothing():
    rows = np.random.default_rng(0).normal(size=(9, 3)) + 1e4
    rows[:, 1] = 0.1
    moments = SecondMoments(9, rows.mean(0), (rows - rows.mean(0)).T @ (rows - rows.mean(0)))
    correlation, std = moments.correlations()
    assert std[1] == 0
    assert not correlation[1].any()
    assert not correlation[:, 1].any()
    # A rare count beside a large, constant background is no rounding.
    rows[:, 1] = 4e9
    rows[3, 1] += 1
    moments = SecondMoments(9, rows.mean(0), (rows - rows.mean(0)).T @ (rows - rows.mean(0)))
    assert moments.correlations()[1][1] == pytest.approx(np.sqrt(8) / 9, rel=1e-6)


def test_more_patterns_than_are_summed_at_once(monkeypatch):
    monkeypatch.setattr("tdm_dask.passes.second_moments.ROWS", 7)
    monkeypatch.setattr("tdm_dask.passes.second_moments.PANEL", 4)
    counts = poisson((9, 8, 5, 3))
    templates = np.random.default_rng(2).normal(size=(2, 9, 8))
    used, region, edges = np.ones((9, 8), bool), np.ones((5, 3), bool), ((0, 4, 9), (0, 8))
    array = da.from_array(counts, (3, 8, 5, 2))
    found = block_moments(array, prepare_templates(templates, None), None, region, edges).compute()
    assert_blocks(found, dense(counts, templates, used, region, edges), 2)


@pytest.mark.parametrize("layout", ["store", "chunked"])
def test_descan_is_followed(layout, tmp_path):
    counts = poisson((8, 7, 12, 16), mean=9)
    rng = np.random.default_rng(3)
    shifts = rng.integers(-2, 3, (2, 8, 7))
    moved, seen = oracle.descanned(counts, shifts)
    templates = rng.normal(size=(2, 8, 7))
    array = converted(tmp_path / "scan.zarr", counts).data if layout == "store" else da.from_array(counts, (3, 4, 5, 7))
    edges = ((0, 3, 8), (0, 4, 7))
    found = block_moments(array, prepare_templates(templates, None), None, seen, edges, shifts).compute()
    assert_blocks(found, dense(moved, templates, np.ones((8, 7), bool), seen, edges), 2)


def test_a_pass_reads_each_chunk_of_the_region_once(tmp_path):
    path, counts = several_shards(tmp_path, shape=(20, 24, 64, 96))
    store = CountingStore(LocalStore(path, read_only=True))
    array = tdm.open(store).data
    region = np.zeros((64, 96), bool)
    region[20:40, 40:50] = True
    templates = np.random.default_rng(1).normal(size=(2, 20, 24))
    edges = block_edges(None, (20, 24), (3, 2))
    lazy = block_moments(array, prepare_templates(templates, None), None, region, edges)
    assert store.reads == []
    (found,) = dask.compute(lazy, scheduler="threads")
    assert_read_once(store, path, fraction=0.7)
    assert_blocks(found, dense(counts, templates, np.ones((20, 24), bool), region, edges), 2)


def test_more_pixels_than_the_blocks_may_have_are_refused_before_anything_is_read():
    def read(_):
        raise AssertionError("counts were read")

    large = da.zeros((4, 4, 64, 64), dtype=np.uint16).map_blocks(read, dtype=np.uint16)
    prepared = prepare_templates(np.random.default_rng(0).normal(size=(1, 4, 4)), None)
    pixels = np.ones((64, 64), bool)
    block_moments(large, prepared, None, pixels, ((0, 2, 4), (0, 2, 4)))  # 4096 over four blocks are as many as can be
    with pytest.raises(MemoryLimitError, match=r"4096 .* over 6 blocks .* at most 3344 .* tdm_dask\.bin"):
        block_moments(large, prepared, None, pixels, ((0, 2, 4), (0, 1, 2, 4)))


def test_counts_that_are_not_finite_are_an_error_where_they_are_used():
    counts = poisson((6, 7, 4, 5), "float32")
    counts[2, 3, 1, 1] = np.inf
    prepared = prepare_templates(np.random.default_rng(0).normal(size=(1, 6, 7)), None)
    pixels = np.ones((4, 5), bool)
    with pytest.raises(CountsError, match="1 detector pixels hold NaN or infinity"):
        block_moments(counts, prepared, None, pixels, ((0, 3, 6), (0, 7))).compute()
    pixels[1, 1] = False
    found = block_moments(counts, prepared, None, pixels, ((0, 3, 6), (0, 7))).compute()
    assert all(np.isfinite(block.products).all() for block in found.values())
