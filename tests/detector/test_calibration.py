"""What must hold of a calibration: the bright-field disk is found where it is, or an error says why not."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_scans import LIFEPO4_SCANS, PBTIO3, PBTIO3_SCANS, SCANS

from tdm_dask.axes import label_counts
from tdm_dask.detector.calibration import calibrate, detector_to_scan, find_bf_disk, reciprocal
from tdm_dask.errors import CalibrationError, CoordinateError, InputError, UnitError


def soft_disk(shape, centre, radius, *, width=0.35, aspect=1.0):
    """A disk with tails and a hole in its middle, made without the code under test; radius along kx."""
    y, x = np.indices(shape)
    r = np.hypot((y - centre[0]) * aspect, x - centre[1])
    body = 1 / (1 + np.exp(np.minimum((r - radius) / width, 50))) * (1 - 0.3 * np.exp(-((r / (0.4 * radius)) ** 2)))
    return 100 * body + 1.5 / (1 + np.exp((r - radius) / (0.3 * radius)))


def counts_of(pattern, scan=(2, 3), **coords):
    return label_counts(np.broadcast_to(pattern, (*scan, *pattern.shape)), coords)


def off_centre(disk, centre):
    return float(np.abs(np.subtract(disk.centre, centre)).max())


@pytest.fixture(scope="module", params=SCANS)
def thick(request, simulated):
    """Mean pattern of a thick crystal, true centre index, true radius in pixels and number of patterns."""
    counts, meta = simulated(request.param)
    centre = counts.shape[2] // 2, counts.shape[3] // 2
    radius = meta["semi_angle_mrad"] / meta["angle_step_mrad"][0]
    return counts.mean((0, 1), dtype=float), centre, radius, counts.shape[0] * counts.shape[1]


@pytest.mark.parametrize("binning", [1, 2, 3])
def test_disk_of_a_thick_crystal_is_found(thick, binning):
    mean, centre, radius, _ = thick
    n = mean.shape[0] // binning
    binned = mean[: n * binning, : n * binning].reshape(n, binning, n, binning).sum((1, 3))
    disk = find_bf_disk(binned)
    assert off_centre(disk, (np.array(centre) - (binning - 1) / 2) / binning) < 0.1
    assert disk.radius == pytest.approx(radius / binning, rel=0.01)


def test_disk_is_found_in_a_cropped_pattern(thick):
    mean, (cy, cx), radius, _ = thick
    # Seven pixels around the disk, and unlike amounts on its sides.
    most = int(radius) + 7
    disk = find_bf_disk(mean[max(cy - most, 0) : cy + most + 1, max(cx - most - 4, 0) : cx + most - 2])
    assert off_centre(disk, (min(cy, most), min(cx, most + 4))) < 0.1
    assert disk.radius == pytest.approx(radius, rel=0.01)


@pytest.mark.parametrize("dose", [0.1, 1e-3])
def test_disk_is_found_at_low_dose(thick, dose):
    mean, centre, radius, patterns = thick
    noisy = np.random.default_rng(1).poisson(mean * patterns * dose)
    disk = find_bf_disk(noisy)
    assert off_centre(disk, centre) < 0.1
    assert disk.radius == pytest.approx(radius, rel=0.01)


def test_invalid_pixels_and_a_beam_stop_do_not_move_the_disk(thick):
    mean, (cy, cx), radius, _ = thick
    rng = np.random.default_rng(2)
    valid = rng.random(mean.shape) > 0.02
    valid[cy - 4 : cy + 5, : cx + 6] = False
    spoilt = np.where(valid, mean, rng.choice([0.0, 1e5, np.nan], mean.shape))
    disk = find_bf_disk(spoilt, valid)
    assert off_centre(disk, (cy, cx)) < 0.1
    assert disk.radius == pytest.approx(radius, rel=0.01)


def test_hot_pixels_that_nobody_marked_do_not_move_the_disk(thick):
    mean, centre, radius, _ = thick
    spoilt = mean.copy()
    # Three in a thousand.
    rows, columns = np.random.default_rng(3).integers(0, mean.shape[0], (2, round(0.003 * mean.size)))
    spoilt[rows, columns] = 500.0
    disk = find_bf_disk(spoilt)
    assert off_centre(disk, centre) < 0.1
    assert disk.radius == pytest.approx(radius, rel=0.01)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    cy=st.floats(25, 38),
    cx=st.floats(25, 38),
    radius=st.floats(7, 22),
    aspect=st.sampled_from([1.0, 2.0, 0.7]),
)
def test_sub_pixel_shifts_and_rectangular_pixels(cy, cx, radius, aspect):
    disk = find_bf_disk(soft_disk((64, 64), (cy, cx), radius, aspect=aspect), aspect=aspect)
    assert off_centre(disk, (cy, cx)) < 0.05
    assert disk.radii == pytest.approx((radius / aspect, radius), rel=0.01)


def test_large_detector_is_searched_binned_and_fitted_in_full():
    disk = find_bf_disk(soft_disk((330, 310), (160.3, 154.8), 41.4))
    assert off_centre(disk, (160.3, 154.8)) < 0.02
    assert disk.radius == pytest.approx(41.4, rel=1e-3)


@pytest.mark.parametrize("thick", [PBTIO3, LIFEPO4_SCANS[1]], indirect=True)
def test_half_a_disk_is_enough_and_a_quarter_is_not(thick):
    mean, (cy, cx), radius, _ = thick
    disk = find_bf_disk(mean[cy - 3 :])
    assert off_centre(disk, (3, cx)) < 0.15
    assert disk.radius == pytest.approx(radius, rel=0.01)
    with pytest.raises(CalibrationError, match=r"Only 2\d % of the edge"):
        find_bf_disk(mean[cy:, cx:])


@pytest.mark.parametrize("thick", PBTIO3_SCANS, indirect=True)
def test_inside_of_the_disk_alone_is_not_a_disk(thick):
    mean, (cy, cx), radius, _ = thick
    half = int(0.53 * radius)
    with pytest.raises(CalibrationError, match="No bright-field disk"):
        find_bf_disk(mean[cy - half : cy + half, cx - half : cx + half])


@pytest.mark.parametrize("level", [0.0, 3.0, 0.01, 1.0, 100.0])
def test_flat_and_noisy_patterns_have_no_disk(level):
    flat = np.full((64, 64), level)
    with pytest.raises(CalibrationError, match="empty or constant"):
        find_bf_disk(flat)
    if level:
        with pytest.raises(CalibrationError, match="No bright-field disk"):
            find_bf_disk(np.random.default_rng(4).poisson(flat))


@pytest.mark.parametrize("thick", LIFEPO4_SCANS, indirect=True)
def test_too_few_electrons_are_refused(thick):
    mean, _, _, patterns = thick
    with pytest.raises(CalibrationError, match="more patterns"):
        find_bf_disk(np.random.default_rng(1).poisson(mean * patterns * 1e-5))


def test_spot_without_an_edge_is_not_a_disk():
    y, x = np.indices((64, 64))
    with pytest.raises(CalibrationError, match="No bright-field disk"):
        find_bf_disk(np.exp(-((y - 31) ** 2 + (x - 33) ** 2) / 128))


def test_nothing_but_invalid_pixels_has_no_disk():
    with pytest.raises(CalibrationError, match="empty or constant"):
        find_bf_disk(soft_disk((40, 40), (20, 20), 10), np.zeros((40, 40), bool))
    with pytest.raises(CalibrationError, match="shape"):
        find_bf_disk(np.ones((40, 40)), np.ones((40, 41), bool))


def test_ellipse_is_refused_unless_the_pixels_explain_it():
    pattern = soft_disk((64, 64), (31, 32), 18, aspect=1.3)
    with pytest.raises(CalibrationError, match="ellipse"):
        find_bf_disk(pattern)
    found = calibrate(counts_of(pattern), pixel_size=(1.3, 1.0), pacbed=pattern)
    assert found.attrs["semi_angle_mrad"] == pytest.approx(18, rel=0.01)


def test_binned_pixels_tell_their_aspect_by_their_coordinates():
    pattern = soft_disk((32, 64), (15, 32), 18, aspect=2.0)
    counts = counts_of(pattern)
    counts = counts.assign_coords(ky=("ky", counts.ky.values * 2, counts.ky.attrs))
    found = calibrate(counts, semi_angle=36, pacbed=pattern)
    assert float(found.ky[16] - found.ky[15]) == pytest.approx(4, rel=0.01)
    assert float(found.kx[16] - found.kx[15]) == pytest.approx(2, rel=0.01)


PATTERN = soft_disk((48, 50), (22.4, 26.7), 12.5)


def test_semi_angle_gives_the_pixel_size_and_the_reverse():
    by_angle = calibrate(counts_of(PATTERN), semi_angle="25 mrad", pacbed=PATTERN)
    assert by_angle.ky.attrs["units"] == "mrad"
    assert np.diff(by_angle.kx.values) == pytest.approx(2, rel=0.005)
    assert by_angle.ky.values == pytest.approx((np.arange(48) - 22.4) * 2, abs=0.3)
    by_size = calibrate(counts_of(PATTERN), pixel_size=2, pacbed=PATTERN)
    assert by_size.attrs["semi_angle_mrad"] == pytest.approx(25, rel=0.005)
    assert by_size.kx.values == pytest.approx((np.arange(50) - 26.7) * 2, abs=0.1)


def test_contradicting_semi_angle_and_pixel_size_are_refused():
    agreed = calibrate(counts_of(PATTERN), semi_angle=25.9, pixel_size=2, pacbed=PATTERN)
    assert agreed.attrs["semi_angle_mrad"] == 25.9
    assert np.diff(agreed.ky.values) == pytest.approx(2)
    with pytest.raises(CalibrationError, match=r"25\.0. mrad by the pixel_size given, but semi_angle is 27\.00 mrad"):
        calibrate(counts_of(PATTERN), semi_angle=27, pixel_size=2, pacbed=PATTERN)


def test_given_centre_is_kept():
    found = calibrate(counts_of(PATTERN), semi_angle=25, centre=(22, 27), pacbed=PATTERN)
    assert float(found.ky[22]) == 0
    assert float(found.kx[27]) == 0
    moved = calibrate(found, centre=(20, 21.5))
    assert float(moved.ky[20]) == 0
    assert np.diff(moved.kx.values) == pytest.approx(np.diff(found.kx.values))
    with pytest.raises(CoordinateError, match="semi_angle or pixel_size"):
        calibrate(counts_of(PATTERN), centre=(22, 27))


def test_centre_and_pixel_size_need_no_disk_and_take_the_semi_angle_of_one_that_is_there():
    known = {"centre": (22, 27), "pixel_size": 2}
    found = calibrate(counts_of(PATTERN), **known, pacbed=PATTERN)
    assert found.attrs["semi_angle_mrad"] == pytest.approx(25, rel=0.01)
    flat = np.ones_like(PATTERN)
    found = calibrate(counts_of(flat), **known, pacbed=flat)
    assert (float(found.ky[22]), float(found.kx[28])) == (0, 2)
    assert "semi_angle_mrad" not in found.attrs
    for missing in known:
        with pytest.raises(CalibrationError, match="No bright-field disk"):
            calibrate(counts_of(flat), **{"semi_angle": 25, **known, missing: None}, pacbed=flat)


def untouchable(shape):
    """Lazy counts that fail when anything reads them."""

    def fail(block):
        raise AssertionError("the data was read")

    zeros = da.zeros(shape, np.uint16, chunks=-1)
    return label_counts(zeros.map_blocks(fail, dtype=np.uint16, meta=np.empty(0, np.uint16)))


def test_nothing_is_read_where_nothing_needs_it():
    counts = untouchable((3, 4, 48, 50))
    found = calibrate(counts, centre=(22, 27), pixel_size=2, scan_step=0.3)
    found = calibrate(found, energy="200 keV", rotation="-12 deg", transpose=True, flip=False)
    found = calibrate(found, semi_angle=25, pacbed=xr.DataArray(PATTERN, dims=("ky", "kx")))
    assert found.data is counts.data
    assert "energy_eV" not in counts.attrs
    with pytest.raises(AssertionError, match="was read"):
        found.compute()


def test_data_is_read_for_the_mean_pattern():
    pytest.importorskip("tdm_dask.counts.statistics")
    frames = np.random.default_rng(5).poisson(PATTERN, (4, 5, *PATTERN.shape)).astype(np.uint16)
    lazy = label_counts(da.from_array(frames, chunks=(2, 2, -1, -1)))
    lazy = lazy.assign_coords(valid_pixels=(("ky", "kx"), np.indices(PATTERN.shape)[0] != 5))
    found = calibrate(lazy, semi_angle=25, counts_per_electron=2)
    assert isinstance(found.data, da.Array)
    assert np.diff(found.kx.values) == pytest.approx(2, rel=0.01)
    expected = np.delete(frames.astype(float), 5, axis=2).sum() / 20 / 2
    assert found.attrs["electrons_per_probe"] == pytest.approx(expected)


def test_facts_dose_and_history_are_recorded():
    first = calibrate(counts_of(PATTERN), semi_angle=25, energy="200 kV", pacbed=PATTERN, counts_per_electron=1)
    second = calibrate(first, scan_step=("30 pm", 0.5), rotation=3, transpose=False, flip=True)
    assert second.attrs["electrons_per_probe"] == pytest.approx(PATTERN.sum())
    assert second.attrs["electrons_per_square_angstrom"] == pytest.approx(PATTERN.sum() / 0.15)
    expected = {
        "energy_eV": 2e5,
        "rotation_deg": 3.0,
        "transpose": False,
        "flip": True,
        "semi_angle_mrad": 25.0,
    }
    assert expected.items() <= second.attrs.items()
    history = json.loads(second.attrs["calibration_history"])
    assert [sorted(step)[0] for step in history] == ["centre_px", "electrons_per_probe"]
    assert history[0]["disk_radius_px"] == pytest.approx(12.5, rel=0.01)
    assert history[1]["scan_step_angstrom"] == [0.3, 0.5]
    third = calibrate(second, beam_current="1 pA", dwell_time="1 ms")
    assert third.attrs["electrons_per_probe"] == pytest.approx(1e-15 / 1.602176634e-19)


def test_crop_of_a_scan_stays_where_it_was():
    counts = counts_of(PATTERN, (6, 8))[2:, 3:]
    found = calibrate(counts, scan_step=(0.5, 0.25))
    assert found.y.values == pytest.approx([1.0, 1.5, 2.0, 2.5])
    assert found.x.values[0] == pytest.approx(0.75)
    again = calibrate(found[:1], scan_step=(0.4, 0.5))
    assert again.y.values == pytest.approx([1.0])
    assert again.x.values[:2] == pytest.approx([1.5, 2.0])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({}, InputError),
        ({"semi_angle": -1}, UnitError),
        ({"semi_angle": "25 kg"}, UnitError),
        ({"energy": "200"}, UnitError),
        ({"energy": 200}, UnitError),
        ({"pixel_size": (1, 2, 3)}, UnitError),
        ({"scan_step": float("nan")}, UnitError),
        ({"centre": (1, np.inf), "pixel_size": 1}, InputError),
        ({"centre": 3, "pixel_size": 1}, InputError),
        ({"transpose": "yes"}, InputError),
        ({"counts_per_electron": 0}, InputError),
        ({"semi_angle": 25, "pacbed": np.ones((3, 3))}, CalibrationError),
        ({"semi_angle": 25, "pacbed": np.ones(PATTERN.shape)}, CalibrationError),
    ],
)
def test_wrong_requests_are_refused(wrong, error):
    with pytest.raises(error):
        calibrate(counts_of(PATTERN), **wrong)


def test_pacbed_of_other_coordinates_is_refused():
    found = calibrate(counts_of(PATTERN), semi_angle=25, pacbed=PATTERN)
    with pytest.raises(CalibrationError, match="calibration"):
        calibrate(counts_of(PATTERN), semi_angle=25, pacbed=found[0, 0])


def test_detector_to_scan_flips_then_swaps_then_turns():
    def turned(ky, kx, rotation, transpose, flip):
        ky = -ky if flip else ky
        ky, kx = (kx, ky) if transpose else (ky, kx)
        vector = (kx + 1j * ky) * np.exp(1j * np.deg2rad(rotation))
        return vector.imag, vector.real

    for rotation in (0, 30, 200):
        for transpose in (False, True):
            for flip in (False, True):
                attrs = {"rotation_deg": rotation, "transpose": transpose, "flip": flip}
                assert detector_to_scan(attrs) @ (0.3, 0.8) == pytest.approx(
                    turned(0.3, 0.8, rotation, transpose, flip)
                )
    assert detector_to_scan({}) == pytest.approx(np.eye(2))


def test_reciprocal_coordinates():
    found = calibrate(counts_of(PATTERN), centre=(22, 27), pixel_size=2)
    with pytest.raises(CoordinateError, match="energy"):
        reciprocal(found)
    with pytest.raises(CoordinateError, match="mrad"):
        reciprocal(counts_of(PATTERN), 2e5)
    converted = reciprocal(calibrate(found, energy=2e5))
    assert converted.ky.attrs["units"] == "1/angstrom"
    assert converted.kx.values == pytest.approx(np.sin(2e-3 * (np.arange(50) - 27)) / 0.0250793, rel=1e-5)
