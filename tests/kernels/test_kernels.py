"""Each kernel against dense NumPy in float64, or in exact integers, over shapes and values at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from tdm_dask.kernels.exact_sums import exact_sums
from tdm_dask.kernels.moments import exact_moments, shifted_moments
from tdm_dask.kernels.weighted_sums import LARGEST_SHIFT, weighted_counts, weighted_sums

INTEGERS = [np.uint8, np.uint16, np.uint32]
# Patterns (also not a multiple of four, and more than one run) and detector (rows, columns).
SHAPES = [(1, 1, 1), (2, 1, 7), (7, 3, 5), (64, 20, 60), (259, 9, 8), (5, 90, 100)]


def read_only(array: np.ndarray) -> np.ndarray:
    """The only kind of input that kernels are compiled for."""
    array = np.ascontiguousarray(array).view()
    array.flags.writeable = False
    return array


def counts(rng: np.random.Generator, shape: tuple[int, int], dtype: type, kind: str) -> np.ndarray:
    """Counts (patterns, pixels) of a kind that a kernel could get wrong."""
    top = int(np.iinfo(dtype).max) if np.dtype(dtype).kind == "u" else 60000
    made = {
        "low": lambda: rng.poisson(2, shape),
        "narrow and high": lambda: rng.integers(top - 6, top, shape, endpoint=True),
        "wide": lambda: rng.integers(0, top, shape, endpoint=True),
        "zero": lambda: np.zeros(shape),
        "top": lambda: np.full(shape, top),
        "one blank pattern": lambda: np.where(np.arange(shape[0])[:, None] == 0, 0, rng.integers(top // 2, top, shape)),
        "last pattern saturated": lambda: np.where(np.arange(shape[0])[:, None] == shape[0] - 1, top, 1),
        "one hot pixel": lambda: np.where(np.arange(shape[1]) == shape[1] // 2, top, rng.poisson(3, shape)),
    }[kind]()
    return np.broadcast_to(made, shape).astype(dtype)


KINDS = [
    "low",
    "narrow and high",
    "wide",
    "zero",
    "top",
    "one blank pattern",
    "last pattern saturated",
    "one hot pixel",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("patterns", "rows", "columns"), SHAPES)
def test_exact_moments(patterns, rows, columns, dtype, kind):
    rng = np.random.default_rng(patterns)
    for templates in (0, 1, 2, 3, 6):
        block = counts(rng, (patterns, rows * columns), dtype, kind)
        weights = rng.standard_normal((patterns, templates)).astype(np.float32)
        # Accumulators larger than the block, with something in them already.
        total = np.full((rows + 2, columns + 1), 3, np.uint64)
        squares = np.full((rows + 2, columns + 1), 5, np.uint64)
        cross = np.full((templates, rows + 2, columns + 1), 0.5)
        exact_moments(read_only(block), read_only(weights), total, squares, cross, 1, 1, columns)
        inner = (slice(1, rows + 1), slice(1, columns + 1))
        exact = block.astype(np.uint64)
        np.testing.assert_array_equal(total[inner].ravel(), exact.sum(0) + 3)
        np.testing.assert_array_equal(squares[inner].ravel(), (exact * exact).sum(0) + 5)
        expected = weights.T.astype(np.float64) @ block.astype(np.float64) + 0.5
        deviation = np.abs(block - block.mean(0)).max(0)
        error = np.abs(cross[:, *inner].reshape(templates, rows * columns) - expected)
        assert (error <= 4e-7 * patterns * (deviation + 1) + 1e-12 * np.abs(expected)).all()
        total[inner], squares[inner], cross[:, *inner] = 3, 5, 0.5
        assert (total == 3).all()
        assert (squares == 5).all()
        assert (cross == 0.5).all()


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("patterns", "rows", "columns"), [*SHAPES, (513, 4, 6), (1030, 1, 3)])
def test_exact_sums(patterns, rows, columns, dtype, kind):
    rng = np.random.default_rng(patterns)
    block = counts(rng, (patterns, rows * columns), dtype, kind)
    for valid in (np.ones(rows * columns, np.uint32), rng.integers(0, 2, rows * columns, np.uint32)):
        # Accumulators larger than the block, with something in them already.
        total = np.full((rows + 2, columns + 1), 3, np.uint64)
        squares = np.full((rows + 2, columns + 1), 5, np.uint64)
        maximum = np.full((rows + 2, columns + 1), 2, dtype)
        of_patterns = np.full(patterns, 7, np.uint64)
        exact_sums(read_only(block), valid, total, squares, maximum, of_patterns, 1, 1, columns)
        inner = (slice(1, rows + 1), slice(1, columns + 1))
        exact = block.astype(np.uint64)
        np.testing.assert_array_equal(total[inner].ravel(), exact.sum(0) + 3)
        np.testing.assert_array_equal(squares[inner].ravel(), (exact * exact).sum(0) + 5)
        np.testing.assert_array_equal(maximum[inner].ravel(), np.maximum(block.max(0), 2))
        np.testing.assert_array_equal(of_patterns, exact[:, valid == 1].sum(1) + 7)
        total[inner], squares[inner], maximum[inner] = 3, 5, 2
        assert (total == 3).all()
        assert (squares == 5).all()
        assert (maximum == 2).all()


@pytest.mark.parametrize("dtype", [*INTEGERS, np.int16, np.float32, np.float64])
@pytest.mark.parametrize(("patterns", "rows", "columns"), SHAPES)
def test_shifted_moments(patterns, rows, columns, dtype):
    rng = np.random.default_rng(patterns)
    for templates in (0, 1, 2, 3, 6):
        block = counts(rng, (patterns, rows * columns), dtype, "wide")
        weights = rng.standard_normal((patterns, templates))
        shift = block[0].astype(np.float64)
        total, squares = np.ones(rows * columns), np.ones(rows * columns)
        cross = np.ones((templates, rows * columns))
        shifted_moments(read_only(block), read_only(weights), read_only(shift), total, squares, cross)
        shifted = block.astype(np.float64) - shift
        scale = np.abs(shifted).max() + 1
        np.testing.assert_allclose(total, shifted.sum(0) + 1, rtol=1e-12, atol=1e-12 * patterns * scale)
        np.testing.assert_allclose(squares, (shifted**2).sum(0) + 1, rtol=1e-12, atol=1e-12 * scale**2)
        np.testing.assert_allclose(cross, weights.T @ shifted + 1, rtol=1e-12, atol=1e-12 * patterns * scale)


@pytest.mark.parametrize("dtype", [*INTEGERS, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("masks", [1, 2, 4, 5, 7, 33])
@pytest.mark.parametrize(("patterns", "rows", "columns"), SHAPES)
def test_weighted_sums(patterns, rows, columns, masks, dtype):
    rng = np.random.default_rng(patterns)
    block = counts(rng, (patterns, rows * columns), dtype, "wide")
    weights, shift = rng.standard_normal((masks, rows * columns)), rng.standard_normal(rows * columns)
    images = np.ones((patterns, masks))
    weighted_sums(read_only(block), read_only(weights), read_only(shift), images)
    expected = (block.astype(np.float64) - shift) @ weights.T + 1
    np.testing.assert_allclose(images, expected, rtol=1e-12, atol=1e-12 * (np.abs(block).max() + 1.0) * rows * columns)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("masks", [1, 5, 6, 34])
def test_weighted_counts(masks, dtype, kind):
    rng = np.random.default_rng(masks)
    for patterns, rows, columns in SHAPES:
        block = counts(rng, (patterns, rows * columns), dtype, kind)
        weights = rng.standard_normal((masks, rows * columns))
        shift = np.minimum(block[0].astype(np.float64), LARGEST_SHIFT)
        images = np.ones((patterns, masks))
        weighted_counts(
            *map(read_only, (block, weights, shift, weights.astype(np.float32), shift.astype(np.float32))), images
        )
        shifted = block.astype(np.float64) - shift
        bound = 3e-7 * np.sqrt((shifted**2).sum(1)[:, None] * (weights**2).sum(1)) + 1e-9
        assert (np.abs(images - (shifted @ weights.T + 1)) <= bound).all()
