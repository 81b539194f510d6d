"""Masks that are made again from factors that are kept are those that are made anew."""

import numpy as np
import pytest
import xarray as xr

import tdm_dask as tdm
from tdm_dask.axes import label_counts
from tdm_dask.errors import InputError, TemplateError
from tdm_dask.masks.ridge_tuning import RidgeTuner


def scan(seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    templates = rng.random((3, 20, 22))
    mean = 20 + np.tensordot(templates, rng.random((3, 6, 5)) * 60, ((0,), (0,)))
    counts = label_counts(rng.poisson(mean).astype(np.uint16))
    counts[:, :, 2, 2] = 7  # a pixel that is constant
    names = ["a", "b", "c"]
    return counts, xr.DataArray(templates, {"template": names}, ("template", "y", "x"))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("gain", [None, 1.0])
@pytest.mark.parametrize("scan_region", [None, (slice(3, 18), slice(0, 20))])
def test_masks_are_those_of_derive_mask(separate, gain, scan_region):
    counts, templates = scan()
    region = np.random.default_rng(1).random((6, 5)) * (np.arange(30).reshape(6, 5) % 7 > 0)
    regions = {"detector_region": region, "scan_region": scan_region}
    tuner = RidgeTuner(counts, counts_per_electron=gain, **regions)
    for penalty in (0.01, 3.0):
        for template in (templates, templates[::-1], templates[0]):
            options = {"regularisation": penalty, "separate": separate}
            expected = tdm.derive_mask(counts, template, method="ridge", counts_per_electron=gain, **options, **regions)
            found = tuner.mask(template, penalty, separate=separate)
            assert found.dims == expected.dims
            assert found.attrs == expected.attrs
            assert set(found.coords) == set(expected.coords)
            np.testing.assert_allclose(found, expected, atol=3e-5 * float(abs(expected).max()))
            assert not found.values[..., 2, 2].any()
            np.testing.assert_allclose(found["rho"], expected["rho"], atol=1e-6)


def test_what_cannot_be_solved_is_refused():
    counts, templates = scan()
    tuner = RidgeTuner(counts)
    with pytest.raises(InputError, match="positive"):
        tuner.mask(templates, 0.0)
    with pytest.raises(TemplateError):
        tuner.mask(templates[:, :5], 0.1)
    wide = label_counts(np.ones((2, 2, 46, 46), np.uint8))
    with pytest.raises(InputError, match="2116 pixels"):
        RidgeTuner(wide)
