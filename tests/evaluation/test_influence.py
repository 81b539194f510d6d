"""How far measured positions follow the template."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
import zarr.storage
from counted_reads import CountingStore
from small_stores import converted

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate, label_counts
from tdm_dask.errors import SiteError
from tdm_dask.evaluation.influence import template_influence

SIGMA, PERIOD, STEP, SIZE = 0.5, 3.0, 0.25, 36


def scan_axes():
    return {d: axis_coordinate(d, SIZE, STEP, 0.0, "angstrom") for d in "yx"}


def lattice(origin=(1.5, 1.5), around=2):
    numbers = np.arange(-around, SIZE * STEP / PERIOD + around)
    return np.stack(np.meshgrid(numbers, numbers, indexing="ij"), -1).reshape(-1, 2) * PERIOD + origin


def inside(sites):
    return sites[((sites > 0.7) & (sites < SIZE * STEP - 0.95)).all(1)]


def column_counts(seed=0):
    """Columns that two pixels see, with a little noise."""
    axes = scan_axes()
    empty = xr.DataArray(np.zeros((SIZE, SIZE)), axes, ("y", "x"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = tdm.gaussian_template(empty, lattice(), sigma=SIGMA).values
    mean = np.stack([100 + 400 * image, 900 - 300 * image], -1)[:, :, None]
    return label_counts(np.random.default_rng(seed).poisson(mean).astype(np.uint16), axes)


def copying_counts():
    """Counts that hold every wave of the lattice alike, so that the image of any template is a copy of it."""
    axes = scan_axes()
    y, x = np.meshgrid(axes["y"].values, axes["x"].values, indexing="ij")
    waves = []
    for h in range(-5, 6):
        for k in range(-5, 6):
            if (h, k) > (0, 0):
                angle = 2 * np.pi * (h * y + k * x) / PERIOD
                waves += [np.cos(angle), np.sin(angle)]
    values = np.rint(1000 + 400 * np.array(waves)).astype(np.uint16)
    return label_counts(np.moveaxis(values, 0, -1).reshape(SIZE, SIZE, 10, 12), axes)


pytestmark = pytest.mark.filterwarnings("ignore:.*sites lie more than")


def test_columns_that_are_in_the_counts_do_not_follow():
    found = template_influence(column_counts(), {"A": lattice()}, sigma=SIGMA, radius=1.2)
    assert abs(found["slope"].item()) < 0.02
    assert found["slope_error"].item() < 0.02
    assert found["columns"].item() >= 4
    assert found["alternative"].values.tolist() == ["original", "-y", "+y", "-x", "+x"]
    np.testing.assert_allclose(found["template_dy"][0], [0, -0.3, 0.3, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found["template_dx"][0], [0, 0, 0, -0.3, 0.3], atol=1e-12)
    np.testing.assert_allclose(found["image_dy"][0], 0, atol=0.02)


def test_an_image_that_copies_its_template_has_a_slope_of_one():
    found = template_influence(copying_counts(), {"A": lattice()}, sigma=SIGMA, radius=1.2)
    assert found["slope"].item() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(found["image_dx"][0], found["template_dx"][0], atol=0.02)
    # Columns without a template there at all: the image moves as much.
    elsewhere = template_influence(
        copying_counts(), {"A": lattice()}, sigma=SIGMA, radius=1.2, measured={"A": inside(lattice())}
    )
    assert elsewhere["slope"].item() == pytest.approx(1, abs=0.05)
    assert elsewhere["columns"].item() == len(inside(lattice()))


def test_alternatives_and_measured_sites_are_the_users():
    places = lattice()
    reverse = {"reversed": places + np.array([0.0, -0.25])}
    found = template_influence(
        copying_counts(),
        {"A": places, "B": lattice((0.2, 0.2))},
        sigma=SIGMA,
        radius=1.2,
        alternatives={"A": reverse},
        measured={"A": inside(places)},
    )
    assert found["kind"].values.tolist() == ["A"]
    assert found["alternative"].values.tolist() == ["original", "reversed"]
    np.testing.assert_allclose(found["image_dx"][0], [0, -0.25], atol=0.02)
    np.testing.assert_allclose(found["image_dy"][0], 0, atol=0.02)


def test_the_slope_equals_the_sums_of_its_definition():
    counts, places = column_counts(), inside(lattice())
    moved = places + np.random.default_rng(0).normal(0, 0.2, places.shape)
    found = template_influence(counts, {"A": places}, sigma=SIGMA, alternatives={"A": {"moved": moved}}, radius=1.2)
    t, r = [], []
    for sites in (places, moved):
        template = tdm.gaussian_template(counts, {"A": sites}, sigma=SIGMA)
        mask = tdm.derive_mask(counts, template)
        image = tdm.apply_mask(counts, mask, normalisation="standardised")[0]
        columns = tdm.refine_columns(image, places, radius=1.2)
        t.append(sites - places)
        r.append(np.stack([columns["y"].values, columns["x"].values], -1) - places)
    t, r = (np.array(a) - np.mean(a, 0) for a in (t, r))
    assert found["slope"].item() == pytest.approx((t * r).sum() / (t * t).sum(), abs=1e-6)


def test_ridge_masks_are_taken():
    counts = column_counts()
    ridge = template_influence(counts, {"A": lattice()}, sigma=SIGMA, radius=1.2, method="ridge", regularisation=0.1)
    assert abs(ridge["slope"].item()) < 0.02


def test_any_number_of_kinds_and_alternatives_takes_two_reads(tmp_path):
    counts = column_counts()
    repeated = label_counts(np.tile(counts.values, (1, 1, 6, 4)), scan_axes())
    converted(tmp_path / "scan.zarr", repeated)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "scan.zarr", read_only=True))
    kinds = {"A": lattice(), "B": lattice((1.4, 1.5))}
    template_influence(tdm.open(store), kinds, sigma=SIGMA, radius=1.2)
    ranges = store.chunk_ranges()
    assert ranges
    assert all(ranges.count(r) == 2 for r in set(ranges))


def test_alternatives_that_do_not_fit_are_refused_in_words():
    counts, places = column_counts(), inside(lattice())
    for alternatives, sentence in (
        ({"B": {"moved": places}}, 'name the kind "B"'),
        ({"A": {"moved": places[:-1]}}, "site by site"),
        ({"A": {"moved": places}}, "the same in all alternatives"),
    ):
        with pytest.raises(SiteError, match=sentence):
            template_influence(counts, {"A": places}, sigma=SIGMA, alternatives=alternatives, radius=1.2)
