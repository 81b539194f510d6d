"""Line profiles: they follow a known image, average what they say, and leave out what is missing."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_dask import errors
from tdm_dask.axes import axis_coordinate
from tdm_dask.imaging.line_profiles import averaged_profile, line_profile, normalised, profile_peaks, profile_sites

STEP = (0.25, 0.31)
PERIOD = np.array([3.0, 4.0])  # along y and x


def image_of(function, shape=(60, 64), origin=(-1.0, 2.0), step=STEP):
    """An image of a function of (y, x) in angstrom, in counts."""
    coords = {
        d: axis_coordinate(d, n, s, o, "angstrom") for d, n, s, o in zip(("y", "x"), shape, step, origin, strict=True)
    }
    y, x = np.meshgrid(coords["y"].values, coords["x"].values, indexing="ij")
    return xr.DataArray(function(y, x), coords, ("y", "x"), attrs={"units": "counts"})


def wave(y, x):
    """A lattice of the period; each of its parts has a mean over a width that is known."""
    return 2.0 + np.cos(2 * np.pi * y / PERIOD[0]) * 0.7 + np.sin(2 * np.pi * (y / PERIOD[0] + x / PERIOD[1]))


def mean_across(points, normal, width):
    """The mean of `wave` over a width across points (2, n), by quadrature far finer than any profile's."""
    offsets = width * ((np.arange(400) + 0.5) / 400 - 0.5)
    y, x = points[:, :, None] + normal[:, None, None] * offsets
    return wave(y, x).mean(-1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    start=st.tuples(st.floats(2, 10), st.floats(6, 16)),
    angle=st.floats(0, 6.3),
    length=st.floats(0.5, 2.9),
    width=st.floats(0, 2.0),
)
def test_a_profile_in_any_direction_follows_the_image(start, angle, length, width):
    unit = np.array([np.sin(angle), np.cos(angle)])
    profile = line_profile(image_of(wave), start, np.array(start) + length * unit, width=width, step=0.1)
    distance = profile.distance.values
    assert distance[0] == 0
    assert distance[-1] == pytest.approx(length)
    points = np.array(start)[:, None] + unit[:, None] * distance
    expected = mean_across(points, np.array([unit[1], -unit[0]]), width)
    # A cubic spline through 12 points in a period is good to a few thousandths.
    np.testing.assert_allclose(profile, expected, atol=6e-3)
    assert profile.attrs["units"] == "counts"
    assert profile.distance.attrs["units"] == "angstrom"


def test_profiles_of_a_stack_are_those_of_its_images():
    first, second = image_of(wave), image_of(lambda y, x: y * x)
    stack = xr.concat([first, second], xr.Variable("template", ["a", "b"]))
    found = line_profile(stack, (2, 4), (8, 9), width="0.1 nm")
    assert found.dims == ("template", "distance")
    np.testing.assert_array_equal(found.sel(template="b"), line_profile(second, (2, 4), (8, 9), width=1.0))
    lazy = line_profile(stack.chunk(), (2, 4), (8, 9), width=1.0)
    np.testing.assert_array_equal(lazy, found)


def test_what_lies_beside_the_scan_or_next_to_nan_is_missing():
    image = image_of(wave)
    beyond = line_profile(image, (5, 20), (5, 23), width=1.0, step=0.1)
    last = float(image.x[-1])
    np.testing.assert_array_equal(np.isnan(beyond), 20 + beyond.distance > last + 1e-9)
    # The width leaves the scan, and with it all of the profile.
    with pytest.raises(errors.RegionError, match="whole width"):
        line_profile(image, (-0.9, 6), (-0.9, 9), width=1.0)
    holed = image.copy()
    holed[30, 20] = np.nan
    y, x = float(image.y[30]), float(image.x[20])
    through = line_profile(holed, (y, x - 2), (y, x + 2), step=0.05)
    missing = through.distance.values[np.isnan(through.values)]
    assert missing.min() > 2 - STEP[1] - 1e-9
    assert missing.max() < 2 + STEP[1] + 1e-9
    assert len(missing) >= 11
    known = np.isfinite(through.values)
    whole = line_profile(image, (y, x - 2), (y, x + 2), step=0.05)
    np.testing.assert_allclose(through.values[known], whole.values[known], atol=0.05)
    # A line half a step beside it needs it for its interpolation too, one two steps away does not.
    assert np.isnan(line_profile(holed, (y + 0.1, x - 1), (y + 0.1, x + 1))).any()
    assert not np.isnan(line_profile(holed, (y + 0.5, x - 1), (y + 0.5, x + 1))).any()


def test_the_average_over_cells_is_the_mean_of_their_profiles():
    rng = np.random.default_rng(4)
    image = image_of(wave) + rng.normal(size=(60, 64))
    start, period, repeat = (1.0, 4.0), (0.0, 4.0), (3.0, 0.5)
    found = averaged_profile(image, start, period, width=1.2, repeat=repeat, step=0.2)
    assert found.distance.values.tolist() == pytest.approx(np.arange(20) * 0.2)
    cells = []
    for i in range(-6, 8):
        for j in range(-6, 8):
            origin = np.array(start) + i * np.array(period) + j * np.array(repeat)
            try:
                cell = line_profile(image, origin, origin + period, width=1.2, step=0.2).values[:-1]
            except errors.RegionError:
                continue
            if np.isfinite(cell).any():
                cells.append(cell)
    cells = np.array(cells)
    n = np.isfinite(cells).sum(0)
    assert n.min() > 10
    assert n.min() < n.max()
    np.testing.assert_array_equal(found["n"], n)
    np.testing.assert_allclose(found["mean"], np.nanmean(cells, 0), atol=1e-12)
    np.testing.assert_allclose(found["standard_error"], np.nanstd(cells, 0, ddof=1) / np.sqrt(n), atol=1e-12)


def test_the_standard_error_says_how_far_the_mean_is_from_the_truth():
    rng = np.random.default_rng(6)
    clean = averaged_profile(image_of(wave), (2, 4), (0, 4), width=1.0, repeat=(3, 0))
    off = []
    for _ in range(20):
        noisy = image_of(wave) + 0.5 * rng.normal(size=(60, 64))
        found = averaged_profile(noisy, (2, 4), (0, 4), width=1.0, repeat=(3, 0))
        off.append((found["mean"] - clean["mean"]) / found["standard_error"])
    assert np.sqrt(np.mean(np.square(off))) == pytest.approx(1.0, abs=0.25)


def test_cells_of_another_domain_are_left_out():
    image = image_of(wave)
    domain = image.x < 12
    spoilt = image.where(domain, 1000.0)
    found = averaged_profile(spoilt.where(domain), (2, 4), (0, 4), width=1.0, repeat=(3, 0))
    whole = averaged_profile(image, (2, 4), (0, 4), width=1.0, repeat=(3, 0))
    np.testing.assert_allclose(found["mean"], whole["mean"], atol=0.02)
    assert found["n"].max() < whole["n"].max()


def test_without_repeat_only_the_strip_through_the_start_counts():
    found = averaged_profile(image_of(wave), (2, 4), (0, 4), width=1.0)
    assert int(found["n"].max()) == 5  # 2 to 21.5 angstrom
    one = averaged_profile(image_of(wave), (2, 2), (0, 19.6), width=1.0)
    assert np.isnan(one["standard_error"]).all()


def test_normalised_profiles_go_from_0_to_1_with_their_errors():
    cell = averaged_profile(image_of(wave) + np.random.default_rng(0).normal(size=(60, 64)), (2, 4), (0, 4), width=1)
    scaled = normalised(cell)
    assert float(scaled["mean"].min()) == 0
    assert float(scaled["mean"].max()) == 1
    span = float(cell["mean"].max() - cell["mean"].min())
    np.testing.assert_allclose(scaled["standard_error"] * span, cell["standard_error"])
    assert scaled["mean"].attrs["units"] == "1"
    assert int(scaled["n"].max()) == int(cell["n"].max())
    with pytest.raises(errors.InputError, match="the same everywhere"):
        normalised(xr.DataArray(np.ones(4), dims="distance"))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(place=st.floats(0, 5.999), width=st.floats(0.3, 0.8))
def test_the_peak_of_a_periodic_profile_is_found_wherever_it_lies(place, width):
    x = np.arange(60) * 0.1
    apart = np.minimum(abs(x - place), 6 - abs(x - place))
    profile = xr.DataArray(np.exp(-(apart**2) / (2 * width**2)), {"distance": x}, ("distance",))
    peaks = profile_peaks(profile, periodic=True)
    assert len(peaks) == 1
    off = abs(peaks[0] - place)
    assert min(off, 6 - off) < 0.01
    assert 0 <= peaks[0] < 6


def test_small_maxima_and_ends_are_no_peaks():
    x = np.arange(0, 6, 0.1)
    values = np.cos(2 * np.pi * x / 3) + 0.03 * np.cos(2 * np.pi * x / 0.4)
    profile = xr.DataArray(values, {"distance": x}, ("distance",))
    assert profile_peaks(profile, periodic=True).tolist() == pytest.approx([0, 3], abs=0.1)
    assert profile_peaks(profile).tolist() == pytest.approx([3], abs=0.1)
    assert len(profile_peaks(profile, periodic=True, prominence=1e-3)) > 2
    assert profile_peaks(xr.DataArray(np.ones(9), {"distance": x[:9]}, ("distance",))).size == 0


def test_the_peaks_of_an_average_lie_on_the_columns():
    sites = {"A": np.array([(3.0 * i, 4.0 * j) for i in range(-1, 6) for j in range(-1, 7)])}
    sites["B"] = sites["A"] + (0.4, 1.3)
    sites["far"] = sites["A"] + (1.5, 3.0)

    def columns(y, x):
        every = np.concatenate(list(sites.values()))
        return np.exp(-((y[..., None] - every[:, 0]) ** 2 + (x[..., None] - every[:, 1]) ** 2) / (2 * 0.35**2)).sum(-1)

    for start in ((3.0, 4.0), (3.0, 3.1)):
        found = averaged_profile(image_of(columns), start, (0, 4), width=1.2, repeat=(3, 0))
        places = profile_sites(found, sites)
        assert set(places) == {"A", "B"}
        every = np.sort(np.concatenate(list(places.values())))
        assert every.tolist() == pytest.approx(np.sort(np.mod([4 - start[1], 5.3 - start[1]], 4)).tolist())
        peaks = profile_peaks(found["mean"], periodic=True)
        assert len(peaks) == 2
        apart = np.abs(np.subtract.outer(every, peaks))
        assert np.minimum(apart, 4 - apart).min(1).max() < 0.03


def test_columns_of_other_cells_are_one_and_follow_a_slanting_repeat():
    image = image_of(wave)
    found = averaged_profile(image, (2, 4), (0, 4), width=1.0, repeat=(3, 1))
    # 3.98 and 4.02 - 4 lie on either side of the end of a period.
    places = profile_sites(found, {"A": [(2, 7.99), (2, 4.02), (5, 5.0), (2.3, 5.5), (5, 6.5), (3.4, 5)]})
    assert places["A"].tolist() == pytest.approx([0.0, 1.5], abs=0.01)


def test_wrong_input_is_refused_in_a_sentence():
    image = image_of(wave)
    with pytest.raises(errors.InputError, match="dims"):
        line_profile(image[0], (0, 0), (1, 1))
    with pytest.raises(errors.CoordinateError, match="angstrom"):
        line_profile(image.drop_vars(["y", "x"]), (0, 0), (1, 1))
    with pytest.raises(errors.InputError, match="no length"):
        line_profile(image, (3, 3), (3, 3))
    with pytest.raises(errors.InputError, match="pair"):
        line_profile(image, (3, 3, 3), (3, 4))
    with pytest.raises(errors.InputError, match="width"):
        line_profile(image, (3, 3), (3, 6), width=-1)
    with pytest.raises(errors.UnitError):
        line_profile(image, (3, 3), (3, 6), step=0)
    with pytest.raises(errors.InputError, match="lies along"):
        averaged_profile(image, (3, 3), (0, 4), width=1, repeat=(0, 8))
    with pytest.raises(errors.RegionError, match="whole"):
        averaged_profile(image, (3, 3), (0, 4), width=40)
    with pytest.raises(errors.InputError, match="distance alone"):
        profile_peaks(xr.DataArray([1.0, np.nan, 2.0], dims="distance"))


def test_figures_name_the_columns_and_refuse_mixed_units():
    from tdm_dask.plot.phase import plot_line_profiles

    cell = averaged_profile(image_of(wave), (2, 4), (0, 4), width=1.0)
    axes = plot_line_profiles({"one": cell, "two": cell["mean"]}, sites={"A": [1.0], "B": [1.05, 3.0]})
    assert [text.get_text() for text in axes.texts] == ["A, B", "B"]
    assert axes.get_ylabel() == "intensity (counts)"
    with pytest.raises(errors.InputError, match="one unit"):
        plot_line_profiles({"one": cell, "two": normalised(cell)})
