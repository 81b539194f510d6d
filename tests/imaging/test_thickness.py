"""Thickness from a mean pattern: found between the thicknesses of a library, with an error that covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.axes import axis_coordinate
from tdm_dask.imaging.thickness import match_thickness

THICKNESSES = np.arange(20.0, 62, 4)


def axes_of(n, step):
    return {dim: axis_coordinate(dim, n, step, -step * (n // 2), "mrad") for dim in ("ky", "kx")}


def intensity(ky, kx, t):
    """A made-up pattern without symmetry, whose fringes depend on angle and thickness in different ways."""
    q2 = ky**2 + kx**2
    fringes = 0.3 * np.cos(0.11 * t + 0.3 * kx) + 0.25 * np.cos(0.09 * t - 0.27 * kx + 1)
    fringes = fringes + 0.2 * np.cos(0.07 * t + 0.25 * ky) + 0.2 * np.cos(0.1 * t - 0.23 * ky + 2)
    return np.exp(-q2 / (2 * 12.0**2)) * (2 + fringes) + 0.02


def pattern_of(t, n=41, step=1.0, turn=0.0, scale=1.0, shift=(0.0, 0.0), counts=1.0):
    """The pattern of a thickness on a detector that is turned, stretched and shifted against the simulation."""
    k = axes_of(n, step)
    ky, kx = np.meshgrid(k["ky"].values - shift[0], k["kx"].values - shift[1], indexing="ij")
    a = np.deg2rad(turn)
    old = (np.cos(a) * ky - np.sin(a) * kx) / scale, (np.cos(a) * kx + np.sin(a) * ky) / scale
    return xr.DataArray(counts * intensity(*old, t), k, ("ky", "kx"))


def library_of(n=51, step=1.0, thicknesses=THICKNESSES, unit="nm"):
    patterns = [pattern_of(t, n, step) for t in thicknesses]
    values = np.stack([p.values for p in patterns]) * 1e-3
    length = np.asarray(thicknesses) * {"nm": 1, "angstrom": 10}[unit]
    coords = axes_of(n, step) | {"thickness": ("thickness", length, {"units": unit})}
    return xr.DataArray(values, coords, ("thickness", "ky", "kx"))


FIXED = {"rotation": 0, "scale": 1, "shift": 0}


def noisy(pattern, rng, n):
    return pattern.copy(data=rng.poisson(pattern * n) / n)


@pytest.mark.parametrize("truth", [26.0, 33.3, 41.9, 53.0])
def test_the_thickness_is_found_between_those_of_the_library(truth):
    found = match_thickness(pattern_of(truth, counts=1e4), library_of(), **FIXED)
    assert float(found.thickness_nm) == pytest.approx(truth, abs=0.05)
    # Without noise and model errors, what is left is that of interpolation between thicknesses.
    assert float(found.interpolated_misfit.min()) < 0.1 < 10 < float(found.misfit.max())


@pytest.mark.long
def test_errors_cover_the_truth_and_fall_with_the_dose():
    rng, spread = np.random.default_rng(0), {}
    library = library_of()
    for dose in (30, 3000):
        found = [match_thickness(noisy(pattern_of(35.0), rng, dose), library, n=dose, **FIXED) for _ in range(12)]
        t = np.array([float(f.thickness_nm) for f in found])
        error = np.array([float(f.thickness_error_nm) for f in found])
        assert (np.abs(t - 35) < 4 * error).all()
        assert 0.4 < np.sqrt(((t - 35) ** 2).mean()) / error.mean() < 2
        # With nothing but counting noise the misfit is 1.
        assert np.mean([f.interpolated_misfit.min() for f in found]) == pytest.approx(1, abs=0.1)
        spread[dose] = t.std()
    assert 3 < spread[30] / spread[3000] < 30  # ten, as the root of the dose


@pytest.mark.long
def test_rotation_scale_and_shift_are_found_with_the_thickness():
    geometry = {"turn": 3.0, "scale": 1.03, "shift": (0.4, -0.7)}
    library, allowed = library_of(71), {"rotation": (-6, 6), "scale": (0.95, 1.05)}
    between = match_thickness(pattern_of(38.0, counts=1e3, **geometry), library, **allowed)
    assert float(between.thickness_nm) == pytest.approx(38, abs=0.2)
    found = match_thickness(pattern_of(40.0, counts=1e3, **geometry), library, **allowed)
    best = found.isel(thickness=int(np.argmin(found.misfit.values)))
    for name, truth, near in (
        ("rotation", 3, 0.2),
        ("scale", 1.03, 0.004),
        ("shift_ky", 0.4, 0.1),
        ("shift_kx", -0.7, 0.1),
    ):
        assert float(best[name]) == pytest.approx(truth, abs=near), name


def test_rotation_agrees_with_the_transfer_of_masks():
    library = library_of()
    turned = tdm.transfer_mask(library.sel(thickness=40, drop=True), pattern_of(40), rotation=4)
    found = match_thickness(turned, library, rotation=(0, 8), scale=1, shift=0, detector_region=abs(turned) > 0)
    assert float(found.rotation.sel(thickness=40)) == pytest.approx(4, abs=0.1)


@pytest.mark.long
@pytest.mark.parametrize("step", [0.5, 1.7])
def test_the_library_may_be_finer_or_coarser_than_the_detector(step):
    library = library_of(int(70 / step) | 1, step)
    found = match_thickness(pattern_of(38.0, counts=1e3), library)
    assert float(found.thickness_nm) == pytest.approx(38, abs=0.5)


def test_intensity_and_background_do_not_matter_where_a_background_is_fitted():
    raised = 5 * pattern_of(40.0, counts=1e3) + 400
    found = match_thickness(raised, library_of(), **FIXED)
    assert float(found.thickness_nm) == pytest.approx(40, abs=0.01)
    np.testing.assert_allclose(found.matched, raised, rtol=1e-3)
    worse = match_thickness(raised, library_of(), background=False, **FIXED)
    assert float(worse.misfit.min()) > 1 > 100 * float(found.misfit.min())


def test_the_misfit_is_the_weighted_least_squares_of_its_definition():
    rng = np.random.default_rng(1)
    measured = noisy(pattern_of(38.0, 21), rng, 50)
    library = library_of(21)
    found = match_thickness(measured, library, n=50, **FIXED)
    d = measured.values.ravel()
    root = np.sqrt(50 / np.maximum(d, 1 / 50))
    for t, misfit in enumerate(found.misfit.values):
        design = np.stack([library.values[t].ravel(), np.ones(d.size)], 1)
        solution = np.linalg.lstsq(root[:, None] * design, root * d, rcond=None)[0]
        assert misfit == pytest.approx((root**2 * (d - design @ solution) ** 2).sum() / (d.size - 2), rel=1e-6)


def test_statistics_of_counts_serve_with_their_dead_pixels_and_thicknesses_in_angstrom():
    rng = np.random.default_rng(2)
    truth = pattern_of(45.0, counts=20)
    counts = rng.poisson(np.broadcast_to(truth.values, (6, 7, 41, 41))).astype(np.uint16)
    valid = rng.random((41, 41)) < 0.9
    counts[:, :, ~valid] = 60000
    labelled = tdm.label_counts(counts, axes_of(41, 1.0)).assign_coords(valid_pixels=(("ky", "kx"), valid))
    found = match_thickness(tdm.pixel_statistics(labelled), library_of(unit="angstrom"), **FIXED)
    assert abs(float(found.thickness_nm) - 45) < 4 * float(found.thickness_error_nm)
    assert found.attrs["patterns"] == 42
    assert np.isnan(found.matched.values[~valid]).all()
    assert np.isfinite(found.matched.values[valid]).all()


def test_a_second_minimum_that_is_as_good_is_named():
    twice = library_of().copy()
    twice.values[8] = twice.values[2]  # 52 nm as 28 nm
    measured = noisy(pattern_of(28.0), np.random.default_rng(3), 100)
    found = match_thickness(measured, twice, n=100, **FIXED)
    there = sorted([*found.attrs["rivals_nm"], float(found.thickness[int(np.argmin(found.misfit.values))])])
    assert there == [28.0, 52.0]
    assert match_thickness(measured, library_of(), n=100, **FIXED).attrs["rivals_nm"] == []


def test_what_cannot_be_matched_is_said():
    library, measured = library_of(), pattern_of(38.0)
    with pytest.raises(errors.InputError, match="thickest pattern of the library, 60 nm"):
        match_thickness(pattern_of(63.0, counts=1e3), library, **FIXED)
    with pytest.raises(errors.InputError, match="at least four"):
        match_thickness(measured, library[:3])
    with pytest.raises(errors.CoordinateError, match='in "None"'):
        match_thickness(measured, library.assign_coords(thickness=THICKNESSES))
    with pytest.raises(errors.CoordinateError, match="calibrate"):
        match_thickness(measured.assign_coords(ky=np.arange(41.0)), library)
    with pytest.raises(errors.CountsError, match="NaN"):
        match_thickness(measured.where(measured.ky != 0), library)
    with pytest.raises(errors.InputError, match="at least 1"):
        match_thickness(measured, library, n=0)
    with pytest.raises(errors.InputError, match=r"n=\.\.\. is for a pattern alone"):
        match_thickness(xr.Dataset({"mean": measured, "n": 5}), library, n=3)
    with pytest.raises(errors.InputError, match=r"lack \['mean', 'n'\]"):
        match_thickness(xr.Dataset(), library)
    with pytest.raises(errors.RegionError, match="expected at least 50"):
        match_thickness(measured, library, detector_region=np.hypot(measured.ky, measured.kx) < 2)
    with pytest.raises(errors.InputError, match="least first"):
        match_thickness(measured, library, rotation=(2, 1))
    with pytest.raises(errors.InputError, match="positive numbers"):
        match_thickness(measured, library, scale=0)
