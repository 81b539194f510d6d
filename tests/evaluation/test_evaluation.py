"""Cross-talk between the images of kinds of column."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tdm_dask.axes import axis_coordinate
from tdm_dask.errors import CoordinateError, SiteError, TemplateError
from tdm_dask.evaluation.cross_talk import correlations, cross_talk, gap_contrast, site_contrast

KINDS = ["Li", "Fe", "O"]


def labelled(values, names=None) -> xr.DataArray:
    names = KINDS if names is None else names
    return xr.DataArray(values, dims=("template", "y", "x"), coords={"template": names})


@pytest.fixture
def templates() -> xr.DataArray:
    return labelled(np.random.default_rng(1).random((3, 8, 9)))


def test_the_table_equals_dense_correlation_coefficients(templates):
    images = labelled(np.random.default_rng(2).normal(5, 2, (3, 8, 9)))
    table = cross_talk(images, templates)
    dense = np.corrcoef(images.values.reshape(3, -1), templates.values.reshape(3, -1))
    np.testing.assert_allclose(table.R, dense[:3, 3:], atol=1e-12)
    np.testing.assert_allclose(table.G, dense[3:, 3:], atol=1e-12)
    apart = np.abs(dense[:3, 3:] - dense[3:, 3:])
    np.fill_diagonal(apart, 0)
    np.testing.assert_allclose(table.excess, apart.max(axis=1), atol=1e-12)


def test_images_that_equal_their_templates_have_no_excess(templates):
    table = cross_talk(3 * templates + 7, templates)
    np.testing.assert_allclose(table.R, table.G, atol=1e-12)
    np.testing.assert_allclose(table.excess, 0, atol=1e-12)


def test_rows_follow_their_names_whatever_the_order_and_the_dims(templates):
    turned = templates.isel(template=[2, 0]).transpose("x", "template", "y")
    table = cross_talk(turned, templates)
    assert list(table.image.values) == ["O", "Li"]
    assert list(table.template.values) == KINDS
    np.testing.assert_allclose(table.R.sel(image="O", template="O"), 1)
    np.testing.assert_allclose(table.excess, 0, atol=1e-12)


def test_any_image_can_be_compared_with_the_templates(templates):
    table = correlations(labelled(-templates.values[:1], ["ABF"]), templates)
    assert table.sel(image="ABF", template="Li") == pytest.approx(-1)


def test_missing_patterns_do_not_count(templates):
    valid = np.ones((8, 9), bool)
    valid[2, 3] = valid[7, 0] = False
    noisy = templates.values + np.random.default_rng(3).normal(0, 1, (3, 8, 9))
    images = labelled(np.where(valid, noisy, np.nan)).assign_coords(valid_patterns=(("y", "x"), valid))
    dense = np.corrcoef(noisy[:, valid], templates.values[:, valid])
    np.testing.assert_allclose(cross_talk(images, templates).R, dense[:3, 3:], atol=1e-12)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (labelled(np.full((3, 8, 9), 0.1)), "same everywhere"),
        (labelled(np.full((3, 8, 9), np.nan)), "not finite"),
        (labelled(np.ones((3, 8, 8))), "along x"),
        (labelled(np.arange(216.0).reshape(3, 8, 9) % 7, ["Li", "Fe", "Mn"]), "'Mn'"),
        (labelled(np.ones((3, 8, 9))).isel(template=0), "dims"),
        (labelled(np.ones((3, 8, 9))).drop_vars("template"), "coordinate"),
    ],
)
def test_images_that_fit_no_template_are_refused(images, sentence, templates):
    with pytest.raises(TemplateError, match=sentence):
        cross_talk(images, templates)


def in_angstrom(values) -> xr.DataArray:
    steps = {d: axis_coordinate(d, n, 0.5, 0.0, "angstrom") for d, n in zip("yx", values.shape[1:], strict=True)}
    return xr.DataArray(values, {"template": KINDS[: len(values)], **steps}, ("template", "y", "x"))


def test_contrast_equals_the_means_and_scatter_at_the_sites():
    images = in_angstrom(np.random.default_rng(5).random((2, 8, 9)))
    # On probe positions, and between two: there the image is interpolated.
    sites = {"Li": [(0.5, 1.0), (2.0, 2.25)], "O": [(1.0, 1.0), (3.0, 4.0), (0.0, 0.5)], "Fe": [(1.5, 3.5)]}
    found = site_contrast(images, sites)
    assert found.dims == ("image", "kind")
    for i, name in enumerate(["Li", "Fe"]):
        v = images.values[i]
        at = {
            "Li": np.array([v[1, 2], 0.5 * (v[4, 4] + v[4, 5])]),
            "O": np.array([v[2, 2], v[6, 8], v[0, 1]]),
            "Fe": np.array([v[3, 7]]),
        }
        for kind in at:
            rest = np.concatenate([values for other, values in at.items() if other != kind])
            expected = (at[kind].mean() - rest.mean()) / rest.std()
            assert found.sel(image=name, kind=kind).item() == pytest.approx(expected)


def test_sites_outside_the_scan_and_missing_patterns_do_not_count():
    values = np.random.default_rng(5).random((1, 8, 9))
    sites = {"Li": [(0.5, 1.0)], "O": [(1.0, 1.0), (3.0, 4.0), (2.0, 2.0)], "Fe": [(70.0, 1.0)]}
    expected = site_contrast(in_angstrom(values), {"Li": sites["Li"], "O": sites["O"][:2]})
    values[0, 4, 4] = np.nan  # as apply_mask leaves a missing pattern
    found = site_contrast(in_angstrom(values), sites)
    assert found.sel(image="Li", kind="Li").item() == pytest.approx(expected.sel(image="Li", kind="Li").item())
    assert np.isnan(found.sel(image="Li", kind="Fe").item())


@pytest.mark.parametrize("contrast", [site_contrast, gap_contrast])
def test_contrast_needs_sites_and_a_scan_in_angstrom(contrast):
    with pytest.raises(CoordinateError, match="angstrom"):
        contrast(labelled(np.zeros((3, 8, 9))), {"Li": [(1.0, 1.0)]})
    with pytest.raises(SiteError):
        contrast(in_angstrom(np.zeros((1, 8, 9))), {"Li": [1.0, 2.0, 3.0]})


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(3, 12), st.booleans())
@example(756, 8, 12, False)  # places that are equally far but for the last digit
@settings(max_examples=40, deadline=None)
def test_contrast_over_gaps_equals_a_loop_over_all_positions(seed, ny, nx, missing):
    rng = np.random.default_rng(seed)
    values = rng.normal(3, 2, (2, ny, nx))
    # Sites on probe positions, and one outside the scan, which only says where no gap is.
    sites = {kind: 0.5 * rng.integers(0, (ny, nx), (3, 2)) for kind in ("Li", "O")}
    sites["O"] = np.concatenate([sites["O"], [(-0.6, 0.7)]])
    every = np.concatenate(list(sites.values()))
    far = np.array([[min(np.hypot(0.5 * y - a, 0.5 * x - b) for a, b in every) for x in range(nx)] for y in range(ny)])
    if missing and (apart := np.argwhere(far > 0.75)).size:  # beyond the pixels that a site is interpolated from
        values[:, *apart[rng.integers(len(apart))]] = np.nan
    found = gap_contrast(in_angstrom(values), sites | {"Fe": [(99.0, 99.0)]})
    assert found.dims == ("image", "kind")
    assert np.isnan(found.sel(kind="Fe")).all()
    for i, image in enumerate(values):
        gaps = image[far >= np.quantile(far, 0.9) - 1e-9]
        for kind in sites:
            own = np.array([image[int(2 * y), int(2 * x)] for y, x in sites[kind] if y >= 0])
            if np.isfinite(gaps).any():
                expected = (own.mean() - np.nanmean(gaps)) / np.nanstd(image)
                assert found.isel(image=i).sel(kind=kind).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_contrast_over_gaps_of_a_constant_image_is_nan():
    assert np.isnan(gap_contrast(in_angstrom(np.ones((1, 6, 6))), {"Li": [(1.0, 1.0)]})).all()
