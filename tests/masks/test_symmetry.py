"""Masks averaged under a point group of the plane."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from counted_reads import CountingStore
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.errors import CoordinateError, MaskError
from tdm_dask.masks.symmetry import symmetrise_mask


def detector(n, m=None, origin=None, step=1.0):
    """Coordinates of a detector of n x m pixels, the optic axis in its middle unless `origin` says otherwise."""
    sizes = {"ky": n, "kx": n if m is None else m}
    first = {dim: -(size - 1) / 2 * step for dim, size in sizes.items()} if origin is None else origin
    return {dim: axis_coordinate(dim, size, step, first[dim], "mrad") for dim, size in sizes.items()}


def labelled(values, **options):
    values = np.asarray(values, float)
    dims = ("ky", "kx") if values.ndim == 2 else ("template", "ky", "kx")
    coords = detector(*values.shape[-2:], **options)
    if values.ndim == 3:
        coords["template"] = [f"kind {n}" for n in range(len(values))]
    return xr.DataArray(values, coords=coords, dims=dims)


def turned_and_mirrored(plane, group):
    """Every image of a square plane under a group of quarter turns, by moving pixels."""
    turns = {"1": [0], "2": [0, 2], "m": [0], "mm2": [0, 2], "4": range(4), "4mm": range(4)}[group]
    images = [np.rot90(plane, n) for n in turns]
    # Azimuth 0 is the line along kx, so that the mirror takes ky to -ky.
    return images + [image[::-1] for image in images] if "m" in group else images


@settings(max_examples=40, deadline=None)
@given(
    group=st.sampled_from(["1", "2", "m", "mm2", "4", "4mm"]),
    size=st.integers(1, 9),
    templates=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_quarter_turns_of_a_centred_square_are_exact(group, size, templates, seed):
    values = np.random.default_rng(seed).normal(size=(templates, size, size))
    expected = [np.mean(turned_and_mirrored(plane, group), axis=0) for plane in values]
    found = symmetrise_mask(labelled(values), group)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-14)
    again = symmetrise_mask(found, group)
    np.testing.assert_allclose(again.values, found.values, rtol=0, atol=1e-14)


@pytest.mark.parametrize("descending", [False, True])
def test_the_optic_axis_need_not_be_in_the_middle(descending):
    # Pixel (2, 3) of 7 x 8: what has no mate on the detector is averaged over those that it has.
    values = np.random.default_rng(1).normal(size=(7, 8))
    mask = labelled(values, origin={"ky": -2.0, "kx": -3.0})
    expected = np.zeros((7, 8))
    for (row, column), _ in np.ndenumerate(values):
        places = {(2 + s * (row - 2), 3 + t * (column - 3)) for s in (1, -1) for t in (1, -1)}
        inside = [values[p] for p in places if 0 <= p[0] < 7 and 0 <= p[1] < 8]
        expected[row, column] = np.mean(inside)
    if descending:
        mask = mask.isel(ky=slice(None, None, -1))
        expected = expected[::-1]
    np.testing.assert_allclose(symmetrise_mask(mask, "mm2").values, expected, atol=1e-14)


def test_a_centre_can_be_given():
    values = np.random.default_rng(2).normal(size=(9, 9))
    moved = symmetrise_mask(labelled(values, origin={"ky": -3.0, "kx": -5.5}), "4mm", centre=(1.0, -1.5))
    np.testing.assert_allclose(moved.values, symmetrise_mask(labelled(values), "4mm").values, atol=1e-14)
    assert moved.attrs["symmetry_centre_mrad"] == [1.0, -1.5]


@pytest.mark.parametrize(
    ("group", "order"), [("3", 3), ("3m", 3), ("4", 4), ("6", 6), ("6mm", 6), ("2", 2), ("mm2", 2)]
)
def test_waves_of_the_order_of_the_axis_stay_and_others_vanish(group, order):
    k = (np.arange(81) - 40) * 0.5
    ky, kx = np.meshgrid(k, k, indexing="ij")
    angle, envelope = np.arctan2(ky, kx), np.exp(-((np.hypot(ky, kx) - 9) ** 2) / 18)
    kept = envelope * np.cos(order * (angle - 0.3))
    lost = envelope * np.cos((order - 1) * angle)
    rotation = np.degrees(0.3) if "m" in group else 0.0
    found = symmetrise_mask(labelled(kept + lost, step=0.5), group, rotation=rotation)
    inside = np.hypot(ky, kx) < 19
    # Linear interpolation of waves about 12 pixels long.
    np.testing.assert_allclose(found.values[inside], kept[inside], atol=0.03)
    if "m" in group:
        off = symmetrise_mask(labelled(kept, step=0.5), group, rotation=rotation + 90 / order)
        np.testing.assert_allclose(off.values[inside], 0, atol=0.03)


def test_pixels_that_know_nothing_count_neither_in_the_average_nor_in_the_result():
    rng = np.random.default_rng(3)
    values, region = rng.uniform(1, 2, (5, 5)), rng.uniform(0.2, 1, (5, 5))
    region[0, 1], std = 0.0, np.ones((5, 5))
    std[1, 0] = 0.0
    valid = np.ones((5, 5), bool)
    valid[4, 3] = False
    mask = labelled(values * region * (std > 0) * valid).assign_coords(
        detector_region=(("ky", "kx"), region),
        std=(("ky", "kx"), std),
        mean=(("ky", "kx"), rng.uniform(1, 2, (5, 5))),
        valid_pixels=(("ky", "kx"), valid),
    )
    weight = region * (std > 0) * valid
    sums, totals = (sum(turned_and_mirrored(a, "4mm")) for a in (mask.values, weight))
    found = symmetrise_mask(mask, "4mm")
    np.testing.assert_allclose(found.values, weight * sums / totals, atol=1e-14)
    for dead in ((0, 1), (1, 0), (4, 3)):
        assert found.values[dead] == 0
    for name in ("mean", "std", "detector_region"):
        np.testing.assert_array_equal(found[name], mask[name])


def test_of_a_mean_scaled_mask_the_correlation_is_averaged():
    rng = np.random.default_rng(4)
    counts = tdm.label_counts(rng.poisson(rng.uniform(1, 9, (5, 5)), (8, 9, 5, 5)).astype(np.uint16))
    counts = counts.assign_coords({dim: axis_coordinate(dim, 5, 1.0, -2.0, "mrad") for dim in ("ky", "kx")})
    template = xr.DataArray(rng.normal(size=(8, 9)), dims=("y", "x"))
    pearson = symmetrise_mask(tdm.derive_mask(counts, template), "4mm")
    scaled = symmetrise_mask(tdm.derive_mask(counts, template, method="mean-scaled"), "4mm")
    np.testing.assert_allclose(scaled.values, pearson.values / pearson["mean"].values, rtol=1e-12)


@pytest.mark.parametrize("rotation", [0.0, 17.0])
def test_centre_and_rotation_are_found_in_a_noisy_pattern(rotation):
    rng = np.random.default_rng(5)
    k = np.arange(41) - 20.0
    ky, kx = np.meshgrid(k - 1.3, k + 0.6, indexing="ij")
    angle, radius = np.arctan2(ky, kx) - np.deg2rad(rotation), np.hypot(ky, kx)
    pattern = np.exp(-(radius**2) / 60) * (1 + 0.5 * np.cos(4 * angle)) + 0.02 * rng.normal(size=ky.shape)
    found = symmetrise_mask(
        labelled(np.zeros((41, 41)) + (radius < 15)),
        "4mm",
        centre="refine",
        rotation="refine",
        pattern=labelled(pattern),
    )
    np.testing.assert_allclose(found.attrs["symmetry_centre_mrad"], (1.3, -0.6), atol=0.05)
    # Mirrors of 4mm repeat every 45 degrees.
    assert abs((found.attrs["symmetry_rotation_deg"] - rotation + 22.5) % 45 - 22.5) < 1.0
    own = symmetrise_mask(labelled(pattern), "4", centre="refine")
    np.testing.assert_allclose(own.attrs["symmetry_centre_mrad"], (1.3, -0.6), atol=0.05)


def test_a_lazy_mask_stays_lazy_and_derive_symmetrise_apply_read_twice(tmp_path):
    rng = np.random.default_rng(6)
    values = rng.poisson(rng.uniform(1, 9, (7, 7)), (12, 10, 7, 7)).astype(np.uint16)
    tdm.convert(tdm.label_counts(values), tmp_path / "scan.zarr")
    store = CountingStore(LocalStore(tmp_path / "scan.zarr", read_only=True))
    counts = tdm.open(store)
    counts = counts.assign_coords({dim: axis_coordinate(dim, 7, 1.0, -3.0, "mrad") for dim in ("ky", "kx")})
    template = xr.DataArray(rng.normal(size=(12, 10)), dims=("y", "x"))
    store.reads.clear()
    mask = symmetrise_mask(tdm.derive_mask(counts, template), "4mm")
    image = tdm.apply_mask(counts, mask, normalisation="standardised")
    assert not store.reads
    assert mask.chunks is not None
    image = image.compute()
    ranges = store.chunk_ranges()
    assert all(ranges.count(one) == 2 for one in ranges), "one read to derive, one to apply"
    eager = counts.compute()
    expected = symmetrise_mask(tdm.derive_mask(eager, template), "4mm")
    np.testing.assert_allclose(
        image.values, tdm.apply_mask(eager, expected, normalisation="standardised").values, rtol=1e-5, atol=1e-5
    )


def test_what_makes_no_sense_is_refused():
    mask = labelled(np.eye(5))
    for error, message, arguments in (
        (MaskError, "group is '5'", {"group": "5"}),
        (MaskError, "no mirror lines", {"group": "4", "rotation": 10.0}),
        (MaskError, "only word", {"group": "4", "centre": "find"}),
        (MaskError, r"expected \(ky, kx\)", {"group": "4", "centre": (1.0, 2.0, 3.0)}),
        (MaskError, "nothing is to be refined", {"group": "4", "pattern": mask}),
    ):
        with pytest.raises(error, match=message):
            symmetrise_mask(mask, **arguments)
    with pytest.raises(MaskError, match="1 weights of the mask are not finite"):
        symmetrise_mask(mask.where(mask.kx + mask.ky != 4), "4")
    with pytest.raises(MaskError, match="dims"):
        symmetrise_mask(mask.rename(ky="y"), "4")
    with pytest.raises(CoordinateError, match="mrad"):
        symmetrise_mask(mask.drop_vars("kx"), "4")
    with pytest.raises(MaskError, match="same everywhere"):
        symmetrise_mask(mask, "4", centre="refine", pattern=mask * 0 + 1)
