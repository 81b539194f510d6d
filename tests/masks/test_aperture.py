"""The aperture for one kind of column: its signals are those of the image it makes, and no other one is better."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.axes import axis_coordinate
from tdm_dask.masks.aperture import collection_aperture

NAMES = ["Li", "Fe", "O"]


def detector(nky, nkx, step=1.0):
    return {dim: axis_coordinate(dim, n, step, -step * (n // 2), "mrad") for dim, n in (("ky", nky), ("kx", nkx))}


def smooth(rng, shape):
    """A random map of features of a few pixels, as correlations have them."""
    k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    waves = rng.normal(size=(6, 2)) * 0.5
    return sum(a * np.cos(w[0] * k[0] + w[1] * k[1] + p) for a, w, p in zip(*random_waves(rng, waves), strict=True))


def random_waves(rng, waves):
    return rng.normal(size=len(waves)), waves, rng.uniform(0, 6, len(waves))


def correlations(rng, shape=(13, 12), step=1.0):
    """Made-up correlations, of which the own kind has a spot of more than it has elsewhere."""
    coords = detector(*shape, step)
    rho = np.stack([0.2 * np.tanh(smooth(rng, shape)) for _ in NAMES])
    dims = ("ky", "kx")
    return xr.Dataset(
        {
            "rho": (("template", *dims), rho),
            "mean": (dims, rng.uniform(1, 9, shape)),
            "std": (dims, rng.uniform(0.5, 3, shape)),
            "n": ((), 1000),
            "detector_region": (dims, np.ones(shape)),
        },
        coords | {"template": NAMES},
    )


def merit(found, aperture, kind="Li", rejection=1.0):
    """What is made largest, written out pixel by pixel."""
    weights = aperture.values
    z = {
        name: (found.rho.sel(template=name).values * found["std"].values * weights).sum()
        / np.sqrt((found["mean"].values * weights).sum())
        for name in NAMES
    }
    return z[kind] - rejection * max(value for name, value in z.items() if name != kind)


@pytest.mark.long
@pytest.mark.parametrize(("seed", "rejection", "step"), [(0, 1.0, 1.0), (1, 0.0, 1.7), (2, 0.5, 1.0)])
def test_no_aperture_is_better_than_the_one_found(seed, rejection, step):
    rng = np.random.default_rng(seed)
    found = correlations(rng, (9, 8), step=step)
    best = collection_aperture(found, "Li", rejection=rejection)
    brute = np.full(len(best.radius), -np.inf)
    for n, radius in enumerate(best.radius.values):
        for ky in found.ky.values:
            for kx in found.kx.values:
                aperture = tdm.disk(found["mean"], radius, centre=(ky, kx))
                if aperture.attrs["coverage"] == 1:
                    brute[n] = max(brute[n], merit(found, aperture, rejection=rejection))
    np.testing.assert_allclose(best.merit_of_radius, np.where(np.isfinite(brute), brute, np.nan), rtol=1e-9)
    assert best.attrs["merit"] >= brute.max() - 1e-12
    exact = tdm.disk(found["mean"], best.attrs["radius_mrad"], centre=best.attrs["centre_mrad"])
    np.testing.assert_array_equal(best.aperture, exact)
    assert exact.attrs["coverage"] > 1 - 2e-6
    assert merit(found, best.aperture, rejection=rejection) == pytest.approx(best.attrs["merit"], rel=1e-9)


def test_signals_are_covariances_of_the_image_that_the_aperture_makes():
    rng = np.random.default_rng(1)
    templates = xr.DataArray(rng.normal(size=(3, 9, 8)), dims=("template", "y", "x"), coords={"template": NAMES})
    pattern = np.abs(rng.normal(size=(3, 12, 12)))
    # Pixels that vary together: their correlations with each other do not matter.
    rate = 5 + np.einsum("tyx,tab->yxab", templates.values - templates.values.min(), pattern)
    counts = tdm.label_counts(rng.poisson(rate).astype(np.uint16), detector(12, 12))
    found = collection_aperture(tdm.correlate(counts, templates), "Fe")
    image = tdm.apply_mask(counts, found.aperture).values
    for n, name in enumerate(NAMES):
        template = templates.values[n]
        covariance = ((image - image.mean()) * (template - template.mean())).mean() / template.std()
        assert float(found.signal.sel(template=name)) == pytest.approx(covariance, rel=1e-5)
        assert float(found.snr.sel(template=name)) == pytest.approx(covariance / np.sqrt(image.mean()), rel=1e-5)
        assert float(found.contrast.sel(template=name)) == pytest.approx(covariance / image.mean(), rel=1e-5)
    whole = counts.values.mean((0, 1)).sum()
    assert float(found.collected) == pytest.approx(image.mean() / whole)
    assert "elastic scattering alone" in found.attrs["caveat"]


@pytest.mark.long
@pytest.mark.parametrize("method", ["pearson", "mean-scaled"])
def test_a_mask_serves_as_well_as_the_correlations_it_came_from(method):
    rng = np.random.default_rng(2)
    found = correlations(rng)
    weights = tdm.disk(found["mean"], 5.3)  # weights below 1 at the edge are no lower correlations
    found = found.assign(detector_region=(("ky", "kx"), weights.values))
    within = found.assign(rho=found.rho.where(weights > 0, 0.0))
    mask = tdm.derive_mask(within, method=method)
    first, second = (collection_aperture(source, "O") for source in (within, mask))
    assert first.attrs["centre_mrad"] == pytest.approx(second.attrs["centre_mrad"], abs=1e-3)
    assert first.attrs["radius_mrad"] == pytest.approx(second.attrs["radius_mrad"], abs=1e-3)
    xr.testing.assert_allclose(first.signal, second.signal, rtol=1e-4)
    reach = np.hypot(*first.attrs["centre_mrad"]) + first.attrs["radius_mrad"]
    assert reach < 5.3 + 1.5  # inside the region, whose edge is that of its last pixels


def test_dead_pixels_are_no_obstacle_and_count_nothing():
    found = correlations(np.random.default_rng(3))
    alive = collection_aperture(found, "Li", radius=3)
    valid = np.ones((13, 12), bool)
    centre = dict(zip(("ky", "kx"), alive.attrs["centre_mrad"], strict=True))
    valid[tuple(int(np.abs(found[d].values - c).argmin()) for d, c in centre.items())] = False
    dead = found.assign_coords(valid_pixels=(("ky", "kx"), valid))
    dead = dead.assign(detector_region=(("ky", "kx"), valid.astype(float)))
    dead = dead.assign(rho=dead.rho.where(valid, 0.0), mean=dead["mean"].where(valid, 0.0))
    again = collection_aperture(dead, "Li", radius=3)
    assert np.isfinite(again.merit).sum() == np.isfinite(alive.merit).sum()
    blocked = collection_aperture(dead.drop_vars("valid_pixels"), "Li", radius=3)
    assert np.isfinite(blocked.merit).sum() < np.isfinite(alive.merit).sum()


def test_a_given_radius_is_kept_and_a_range_is_not_left():
    found = correlations(np.random.default_rng(4))
    fixed = collection_aperture(found, "Li", radius="0.0025 rad")
    assert fixed.attrs["radius_mrad"] == 2.5
    np.testing.assert_array_equal(fixed.radius, [2.5])
    ranged = collection_aperture(found, "Li", radius=(2.0, "3.1 mrad"))
    assert 2.0 <= ranged.attrs["radius_mrad"] <= 3.1
    np.testing.assert_allclose(ranged.radius, [2.0, 2.5, 3.0, 3.1])


def test_what_makes_no_aperture_is_said():
    found = correlations(np.random.default_rng(5))
    with pytest.raises(errors.InputError, match='no template "Mn"'):
        collection_aperture(found, "Mn")
    with pytest.raises(errors.InputError, match='not "Li" itself'):
        collection_aperture(found, "Li", others=["Li", "O"])
    with pytest.raises(errors.InputError, match="rejection=-1 was given"):
        collection_aperture(found, "Li", rejection=-1)
    with pytest.raises(errors.InputError, match="least first"):
        collection_aperture(found, "Li", radius=(3, 2))
    with pytest.raises(errors.InputError, match=r"lack \['std'\]"):
        collection_aperture(found.drop_vars("std"), "Li")
    with pytest.raises(errors.InputError, match="of one template"):
        collection_aperture(found.isel(template=0), "Li")
    with pytest.raises(errors.InputError, match="no mask that derive_mask made"):
        collection_aperture(tdm.disk(found["mean"], 3), "Li")
    with pytest.raises(errors.MaskError, match="No aperture of 30 to 30 mrad"):
        collection_aperture(found, "Li", radius=30)
    with pytest.raises(errors.MaskError, match="collects more there"):
        collection_aperture(found.assign(rho=-abs(found.rho)), "Li")
    pixels = found.assign_coords(ky=np.arange(13.0), kx=np.arange(12.0))
    with pytest.raises(errors.CoordinateError, match="calibrate"):
        collection_aperture(pixels, "Li")


@pytest.mark.long
def test_correlations_that_are_lazy_are_read_once(tmp_path):
    import dask.array as da

    rng = np.random.default_rng(6)
    counts = rng.poisson(5, (8, 6, 10, 10)).astype(np.uint16)
    counts[:, ::2, 4:7, 4:7] += 9
    read = []

    def note(block, block_info=None):
        read.append(block_info[0]["chunk-location"])
        return block

    lazy = da.from_array(counts, chunks=(4, 3, -1, -1)).map_blocks(note, dtype="uint16", meta=counts[:0, :0, :0, :0])
    values = np.stack([np.tile([1.0, 0.0], (8, 3)), rng.normal(size=(8, 6))])
    template = xr.DataArray(values, {"template": ["Li", "O"]}, ("template", "y", "x"))
    found = collection_aperture(tdm.correlate(tdm.label_counts(lazy, detector(10, 10)), template), "Li")
    assert sorted(read) == [(i, j, 0, 0) for i in range(2) for j in range(2)]
    assert found.attrs["centre_mrad"] == pytest.approx([0, 0], abs=0.3)
