"""The order in which the columns of a matrix hold the pixels of a tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_dask.kernels.pixel_order import PARTS, Tile


@st.composite
def tiles(draw):
    """Tiles anywhere on the detector, as they are or as parts of one that is stored in eight parts."""
    ky, kx = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    place = ky, ky + height, kx, kx + width
    if draw(st.booleans()):
        return Tile(*place)
    offset = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    stored = [size + before + draw(st.integers(0, 3)) for size, before in zip((height, width), offset, strict=True)]
    stored[1] += -stored[1] % (PARTS // np.gcd(stored[0], PARTS))
    return Tile(*place, stored=tuple(stored), offset=offset)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tiles(), st.sampled_from([(), (1,), (3,), (2, 3), (0,), (2, 0)]), st.sampled_from(["u1", "f4", "f8", "?"]))
def test_pixels_of_columns_are_what_they_were(tile, rest, dtype):
    values = np.random.default_rng(0).integers(0, 200, (*rest, *tile.shape)).astype(dtype)
    columns = tile.columns(values)
    assert columns.shape == (*rest, tile.width)
    assert columns.dtype == values.dtype
    assert columns.flags.c_contiguous
    np.testing.assert_array_equal(tile.pixels(columns), values)
    assert tile.pixels(columns).shape == values.shape


@settings(max_examples=50, deadline=None, derandomize=True)
@given(tiles(), st.sampled_from([0, 7, -1.5]))
def test_every_pixel_has_a_column_and_others_hold_the_fill(tile, fill):
    values = 100.0 + np.arange(np.prod(tile.shape)).reshape(tile.shape)
    columns = tile.columns(values, fill)
    own = columns != fill
    np.testing.assert_array_equal(np.sort(columns[own]), values.ravel())
    assert (columns[~own] == fill).all()
    # A sum over columns is a sum over pixels, where those of the operand that are no pixel's are zero.
    counts = np.random.default_rng(0).random(tile.width)
    assert tile.columns(values, 0) @ counts == pytest.approx((values * tile.pixels(counts)).sum())


def test_columns_are_the_stored_pixels_in_eight_parts():
    stored, part = Tile(0, 5, 0, 24, stored=(5, 24)), np.arange(120).reshape(5, 24)
    columns = stored.columns(part)
    for k in range(PARTS):
        np.testing.assert_array_equal(columns[15 * k : 15 * (k + 1)], np.arange(k, 120, PARTS))


def test_a_part_of_a_stored_tile_begins_at_its_offset():
    # Lines 1 and 2, columns 3 to 6, of 4 x 8 stored pixels, which are at ky 11 and kx 23 of the detector.
    tile = Tile(11, 13, 23, 27, stored=(4, 8), offset=(1, 3))
    stored = np.arange(32).reshape(4, 8)
    whole = Tile(10, 14, 20, 28, stored=(4, 8)).columns(stored)
    assert (tile.ky, tile.kx, tile.shape, tile.width) == (slice(11, 13), slice(23, 27), (2, 4), 32)
    np.testing.assert_array_equal(tile.pixels(whole), stored[1:3, 3:7])
    columns = tile.columns(np.ones((2, 4)), fill=9)
    expected = np.full((4, 8), 9)
    expected[1:3, 3:7] = 1
    np.testing.assert_array_equal(Tile(0, 4, 0, 8, stored=(4, 8)).pixels(columns), expected)


def test_a_plain_tile_leaves_the_order_as_it_is():
    values = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    tile = Tile(4, 7, 1, 6)
    assert tile.width == 15
    np.testing.assert_array_equal(tile.columns(values[..., ::-1]), values[..., ::-1].reshape(2, 15))
    np.testing.assert_array_equal(tile.pixels(values.reshape(2, 15)), values)


@pytest.mark.parametrize("tile", [Tile(0, 2, 0, 4), Tile(0, 2, 0, 8, stored=(2, 8)), Tile(0, 2, 0, 4, stored=(3, 8))])
def test_no_templates_are_no_rows(tile):
    columns = tile.columns(np.empty((0, *tile.shape)))
    assert columns.shape == (0, tile.width)
    assert tile.pixels(columns).shape == (0, *tile.shape)


def test_equal_tiles_are_one_key():
    kept = {Tile(0, 2, 0, 8, stored=(2, 8)): "a"}
    assert kept[Tile(0, 2, 0, 8, (2, 8), (0, 0))] == "a"
    assert Tile(0, 2, 0, 8) not in kept
