"""Radial profiles equal dense sums over rings, and honour what is valid."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.detector.radial_profiles import radial_profile, scattering_angle
from tdm_dask.plot.profiles import plot_radial_profile


def on_detector(values, step=(1.3, 1.1), centre=None, dims=()) -> xr.DataArray:
    values = np.asarray(values)
    shape = values.shape[-2:]
    centre = [n // 2 for n in shape] if centre is None else centre
    coords = {
        dim: axis_coordinate(dim, n, s, -s * c, "mrad")
        for dim, n, s, c in zip(("ky", "kx"), shape, step, centre, strict=True)
    }
    return xr.DataArray(values, coords, (*dims, "ky", "kx"))


def dense(values, ky, kx, width, usable):
    """Mean and scatter of each ring, pixel by pixel."""
    rings: dict[int, list[float]] = {}
    for i, a in enumerate(ky):
        for j, b in enumerate(kx):
            if usable[i, j]:
                rings.setdefault(int(np.floor(np.sqrt(a * a + b * b) / width + 1e-9)), []).append(values[i, j])
    size = max(rings) + 1
    mean, scatter, pixels = np.full(size, np.nan), np.full(size, np.nan), np.zeros(size, int)
    for ring, members in rings.items():
        mean[ring] = sum(members) / len(members)
        scatter[ring] = np.sqrt(sum((m - mean[ring]) ** 2 for m in members) / len(members))
        pixels[ring] = len(members)
    return mean, scatter, pixels


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    width=st.sampled_from([None, 0.7, 3.0, 100.0]),
    seed=st.integers(0, 1000),
    some=st.sampled_from([1.0, 0.6]),
)
def test_a_profile_equals_sums_over_rings(shape, width, seed, some):
    rng = np.random.default_rng(seed)
    values = on_detector(rng.normal(3, 2, shape), centre=rng.uniform(-2, 12, 2))
    usable = rng.random(shape) < some
    usable.flat[rng.integers(usable.size)] = True
    if some < 1:
        values = values.assign_coords(valid_pixels=(("ky", "kx"), usable))
    found = radial_profile(values.rename("intensity"), width=width)
    # The step of a single pixel is 1.
    steps = [s if n > 1 else 1.0 for s, n in zip((1.3, 1.1), shape, strict=True)]
    ring = max(steps) if width is None else width
    mean, scatter, pixels = dense(values.values, values.ky.values, values.kx.values, ring, usable)
    np.testing.assert_allclose(found["intensity"], mean, rtol=1e-12)
    np.testing.assert_allclose(found["intensity_std"], scatter, atol=1e-12)
    np.testing.assert_array_equal(found["pixels"], pixels)
    np.testing.assert_allclose(found["angle"], (np.arange(len(mean)) + 0.5) * ring)
    assert found["angle"].attrs["units"] == "mrad"


def test_other_dims_are_kept_and_lazy_stays_lazy():
    values = np.random.default_rng(1).random((3, 16, 18))
    eager = on_detector(values, dims=("template",)).assign_coords(template=["a", "b", "c"])
    lazy = eager.copy(data=da.from_array(values, chunks=(1, 5, 18)))
    found = radial_profile(lazy)
    assert found["profile"].chunks is not None
    assert list(found["template"].values) == ["a", "b", "c"]
    xr.testing.assert_allclose(found.compute(), radial_profile(eager))
    alone = radial_profile(eager.sel(template="b"))
    np.testing.assert_array_equal(alone["profile"], found["profile"].sel(template="b"))
    turned = radial_profile(eager.transpose("kx", "template", "ky"))
    xr.testing.assert_allclose(turned, radial_profile(eager))


def test_correlations_give_intensity_and_rho_of_their_region_alone():
    rng = np.random.default_rng(2)
    counts = rng.poisson(4, (8, 9, 12, 12)).astype(np.uint16)
    coords = {dim: axis_coordinate(dim, 12, 2.0, -11.0, "mrad") for dim in ("ky", "kx")}
    flags = np.ones((12, 12), bool)
    flags[6, 6] = False
    labelled = tdm.label_counts(counts, coords).assign_coords(valid_pixels=(("ky", "kx"), flags))
    template = xr.DataArray(rng.normal(size=(8, 9)), dims=("y", "x"))
    inside = scattering_angle(labelled).values < 8
    correlations = tdm.correlate(labelled, template, detector_region=inside)
    found = radial_profile(correlations)
    for name in ("mean", "std", "rho"):
        mean, scatter, _ = dense(correlations[name].values, labelled.ky.values, labelled.kx.values, 2.0, inside & flags)
        np.testing.assert_allclose(found[name], mean)
        np.testing.assert_allclose(found[f"{name}_std"], scatter, atol=1e-12)
    assert int(found["pixels"].sum()) == (inside & flags).sum()
    assert "detector_region" not in found
    np.testing.assert_allclose(radial_profile(tdm.derive_mask(correlations))["mask"], found["rho"])


def test_a_centre_elsewhere_moves_the_rings():
    values = np.zeros((21, 21))
    values[14, 7] = 1
    pattern = on_detector(values, step=(1.0, 1.0))
    moved = radial_profile(pattern, centre=(4.0, -3.0))
    assert float(moved["profile"][0]) == 1
    assert float(radial_profile(pattern)["profile"][5]) > 0


def test_patterns_without_angles_or_pixels_are_refused():
    with pytest.raises(tdm.errors.CoordinateError, match="mrad"):
        radial_profile(xr.DataArray(np.ones((4, 4)), dims=("ky", "kx")))
    region = on_detector(np.ones((4, 4))).assign_coords(detector_region=(("ky", "kx"), np.zeros((4, 4))))
    with pytest.raises(tdm.errors.RegionError, match="nothing to average"):
        radial_profile(region)
    with pytest.raises(tdm.errors.UnitError, match="width"):
        radial_profile(on_detector(np.ones((4, 4))), width=-1)


@pytest.fixture(scope="module")
def correlations():
    rng = np.random.default_rng(3)
    coords = {dim: axis_coordinate(dim, 16, 4.0, -32.0, "mrad") for dim in ("ky", "kx")}
    counts = tdm.label_counts(rng.poisson(5, (8, 8, 16, 16)).astype(np.uint16), coords)
    return tdm.correlate(counts, counts[:, :, 4, 4].drop_vars(["ky", "kx"]))


def test_the_figure_shows_every_pixel_and_the_means(correlations):
    left, right = plot_radial_profile(correlations, semi_angle=23.5, marks={"1": (-16.0, -16.0)}, title="profile")
    profile = radial_profile(correlations)
    assert left.get_yscale() == "log"
    assert "mrad" in left.get_xlabel()
    for axes, name in ((left, "mean"), (right, "rho")):
        dots = axes.collections[0].get_offsets()
        np.testing.assert_allclose(sorted(dots[:, 1]), np.sort(correlations[name].values.ravel()))
        np.testing.assert_allclose(axes.lines[0].get_ydata(), profile[name])
    assert [t.get_text() for t in right.texts] == ["1"]
    np.testing.assert_allclose(right.texts[0].xy, (16 * 2**0.5, 1.0))


def test_a_figure_is_drawn_into_given_axes_and_of_one_template_only(correlations):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert plot_radial_profile(correlations, axes=axes)[0] is axes
    with pytest.raises(tdm.errors.InputError, match="one template"):
        plot_radial_profile(correlations.expand_dims("template"))
    with pytest.raises(tdm.errors.InputError, match="Every mean count is 0"):
        plot_radial_profile(correlations.assign(mean=correlations["mean"] * 0))
