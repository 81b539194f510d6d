"""What must hold of conventional masks: weights are areas, parts add up, wrong shapes are refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_dask.axes import axis_coordinate, label_counts
from tdm_dask.detector.conventional_masks import annulus, disk, parse_detector, segments
from tdm_dask.errors import CoordinateError, MaskError, UnitError


def detector(shape=(40, 44), centre=(19.3, 21.8), pixel=(1.5, 1.2), **attrs):
    coords = {
        dim: axis_coordinate(dim, n, step, -c * step, "mrad")
        for dim, n, step, c in zip(("ky", "kx"), shape, pixel, centre, strict=True)
    }
    return label_counts(np.zeros((1, 1, *shape), np.uint8), coords, attrs)


def sampled(counts, inside, n=40):
    """Fraction of each pixel inside a shape, by brute force."""
    ky, kx = counts.ky.values, counts.kx.values
    offsets = (np.arange(n) + 0.5) / n - 0.5
    y = (ky[:, None] + offsets * (ky[1] - ky[0])).ravel()
    x = (kx[:, None] + offsets * (kx[1] - kx[0])).ravel()
    flags = inside(y[:, None], x[None, :])
    return flags.reshape(len(ky), n, len(kx), n).mean(axis=(1, 3))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    radius=st.floats(0.05, 40),
    cy=st.floats(-15, 15),
    cx=st.floats(-15, 15),
)
def test_weights_are_the_covered_fraction_of_each_pixel(radius, cy, cx):
    counts = detector()
    mask = disk(counts, radius, centre=(cy, cx))
    expected = sampled(counts, lambda y, x: np.hypot(y - cy, x - cx) <= radius)
    assert mask.dims == ("ky", "kx")
    assert mask.dtype == np.float64
    assert np.abs(mask.values - expected).max() < 0.03
    assert mask.values.min() >= 0
    assert mask.values.max() <= 1


@settings(max_examples=25, deadline=None, derandomize=True)
@given(radius=st.floats(0.01, 20), cy=st.floats(-3, 3), cx=st.floats(-3, 3))
def test_weights_add_up_to_the_area(radius, cy, cx):
    mask = disk(detector(), radius, centre=(cy, cx))
    assert float(mask.sum()) * 1.5 * 1.2 == pytest.approx(np.pi * radius**2, rel=1e-7)
    assert mask.attrs["coverage"] == pytest.approx(1)


@pytest.mark.parametrize("soft_edge", [0, "0.8 mrad"])
def test_touching_annuli_add_up(soft_edge):
    counts = detector()
    parts = [disk(counts, 4.3, soft_edge=soft_edge)] + [
        annulus(counts, a, b, soft_edge=soft_edge) for a, b in ((4.3, 6), (6, 13.1), (13.1, 31))
    ]
    whole = disk(counts, 31, soft_edge=soft_edge)
    assert np.abs(sum(p.values for p in parts) - whole.values).max() < 1e-12


def test_weights_away_from_the_edge_are_exactly_zero_and_one():
    counts = detector((256, 256), (128, 128), (0.1, 0.1))
    mask = annulus(counts, 3.3, 7.7).values
    r = np.hypot(counts.ky.values[:, None], counts.kx.values)
    assert np.all(mask[(r < 3.2) | (r > 7.8)] == 0)
    assert np.all(mask[(r > 3.4) & (r < 7.6)] == 1)


def test_soft_edge_is_a_linear_ramp():
    counts = detector((81, 81), (40, 40), (0.5, 0.5))
    mask = annulus(counts, 5, 12, soft_edge=2)
    along = mask.sel(ky=0).interp(kx=[3.5, 4.5, 5, 5.5, 8, 11.5, 12, 12.5, 13.5])
    assert along.values == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 9),
    rotation=st.floats(-400, 400),
    inner=st.sampled_from([0.0, 3.0]),
    soft=st.sampled_from([0, 1.0]),
)
def test_segments_add_up_to_the_annulus(n, rotation, inner, soft):
    counts = detector()
    parts = segments(counts, inner, 20, n, rotation=rotation, centre=(0.4, -0.2), soft_edge=soft)
    whole = annulus(counts, inner, 20, centre=(0.4, -0.2), soft_edge=soft)
    assert parts.dims == ("template", "ky", "kx")
    assert list(parts.template.values) == [f"segment {k + 1}" for k in range(n)]
    assert np.abs(parts.sum("template").values - whole.values).max() < 1e-12
    assert parts.values.min() >= 0
    if not soft:
        assert parts.sum(("ky", "kx")).values == pytest.approx(float(whole.sum()) / n, rel=0.01)


def test_segments_begin_at_the_rotation_and_turn_from_kx_to_ky():
    counts = detector()
    parts = segments(counts, 2, 15, 3, rotation=25)
    for k in range(3):

        def inside(y, x, k=k):
            r, azimuth = np.hypot(y, x), np.mod(np.rad2deg(np.arctan2(y, x)) - 25, 360)
            return (r > 2) & (r < 15) & (azimuth >= 120 * k) & (azimuth < 120 * (k + 1))

        assert np.abs(parts.values[k] - sampled(counts, inside)).max() < 0.05


def test_quadrants_of_a_centred_detector_are_images_of_each_other():
    counts = detector((31, 31), (15, 15), (1, 1))
    parts = segments(counts, 3, 12, 4).values
    for k in range(3):
        # A quarter turn from +kx to +ky.
        assert parts[k + 1] == pytest.approx(np.rot90(parts[k], -1), abs=1e-12)


def test_invalid_pixels_weigh_nothing():
    counts = detector()
    valid = np.random.default_rng(0).random((40, 44)) > 0.3
    counts = counts.assign_coords(valid_pixels=(("ky", "kx"), valid))
    for mask in (disk(counts, 20), *segments(counts, 3, 20)):
        assert np.all(mask.values[~valid] == 0)
    plain = disk(detector(), 20).values
    assert disk(counts, 20).values == pytest.approx(plain * valid)
    assert disk(counts, 20).attrs["coverage"] == pytest.approx((plain * valid).sum() / plain.sum(), rel=1e-6)


def test_coverage_tells_how_much_of_the_shape_lies_on_the_detector():
    counts = detector((20, 20), (-0.5, -0.5), (1, 1))
    assert disk(counts, 10).attrs["coverage"] == pytest.approx(0.25)
    assert annulus(detector(), 10, 1000).attrs["coverage"] < 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda c: disk(c, 0),
        lambda c: disk(c, -2),
        lambda c: annulus(c, 5, 5),
        lambda c: annulus(c, 8, 5),
        lambda c: annulus(c, -1, 5),
        lambda c: annulus(c, 200, 300),
        lambda c: disk(c, 1, centre=(300, 0)),
        lambda c: annulus(c, 5, 7, soft_edge=3),
        lambda c: disk(c, 5, soft_edge=-1),
        lambda c: segments(c, 2, 5, 1),
        lambda c: segments(c, 2, 5, 2.5),
        lambda c: segments(c, 2, 5, centre=(300, 0)),
        lambda c: segments(c, 2, 5, 4, centre=(0, 31)),
        lambda c: disk(c, 5, centre=(1, 2, 3)),
    ],
)
def test_shapes_that_make_no_sense_are_refused(make):
    with pytest.raises(MaskError):
        make(detector())


def test_angles_must_be_numbers_and_the_detector_calibrated():
    with pytest.raises(UnitError):
        disk(detector(), "5 angstrom")
    with pytest.raises(UnitError):
        annulus(detector(), 3, np.nan)
    with pytest.raises(CoordinateError, match="mrad"):
        disk(label_counts(np.zeros((1, 1, 8, 8))), 3)


def test_detectors_by_name():
    counts = detector((101, 101), (50, 50), (1, 1), semi_angle_mrad=23.5)
    limits = {
        "abf": (11, 23.5),
        "abf:10:20": (10, 20),
        "adf": (1.3 * 23.5, 50.5),
        "adf:30": (30, 50.5),
        "adf:30:60": (30, 60),
        "haadf:40": (40, 50.5),
        "HAADF:0.04 rad:50 mrad": (40, 50),
        "annulus:11:23.5": (11, 23.5),
    }
    for text, (inner, outer) in limits.items():
        xr.testing.assert_allclose(parse_detector(text, counts), annulus(counts, inner, outer), atol=1e-12)
    for text, radius in {"bf": 23.5, "bf:5": 5, "disk:10": 10, " Disk : 10 mrad": 10}.items():
        xr.testing.assert_allclose(parse_detector(text, counts), disk(counts, radius), atol=1e-12)
    assert parse_detector("adf", counts).attrs["detector"] == "adf"
    assert parse_detector("adf", counts).attrs["coverage"] == 1


@pytest.mark.parametrize(
    "text", ["", "dark", "disk", "disk:1:2", "annulus:3", "adf:1:2:3", "bf:", "abf:3", "adf:30:20"]
)
def test_texts_that_name_no_detector_are_refused(text):
    with pytest.raises(MaskError):
        parse_detector(text, detector(semi_angle_mrad=20.0))


def test_detectors_by_name_need_the_semi_angle():
    for text in ("bf", "abf", "adf", "haadf"):
        with pytest.raises(MaskError, match="semi-angle"):
            parse_detector(text, detector())
    with pytest.raises(MaskError, match="largest full ring"):
        parse_detector("haadf", detector(semi_angle_mrad=23.5))
    with pytest.raises(UnitError):
        parse_detector("disk:x", detector())
