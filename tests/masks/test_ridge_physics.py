"""Ridge masks on simulated scans with known truth: how far they keep kinds of column apart, and at what dose."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from simulated_scans import SIGMA, with_periodic_images

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.evaluation.held_out import held_out_cross_talk

# What must be reached with masks of one half of the scan read on the other, as a mean over four folds: the R_ii of each
# kind, the excess of R over G, and that of Pearson masks.
LIMITS = {
    "lifepo4_001_40nm.npz": ({"Li": 0.98, "Fe": 0.96, "P+O": 0.935, "O": 0.98}, 0.09, 0.53),
    "pbtio3_100_39nm.npz": ({"Pb": 0.94, "Ti+O": 0.865, "O": 0.975}, 0.075, 0.28),
}


@pytest.fixture(scope="module", params=LIMITS)
def scan(request, simulated):
    """Counts in memory, calibrated by what is known, their templates, and the bright-field disk."""
    data, meta = simulated(request.param)
    angle, step = meta["angle_step_mrad"], meta["scan_step_angstrom"]
    axes = {
        dim: axis_coordinate(dim, n, angle[i], -angle[i] * (n // 2), "mrad")
        for i, (dim, n) in enumerate(zip(("ky", "kx"), data.shape[2:], strict=True))
    }
    axes |= {
        dim: axis_coordinate(dim, n, step[i], 0.0, "angstrom")
        for i, (dim, n) in enumerate(zip(("y", "x"), data.shape[:2], strict=True))
    }
    counts = tdm.label_counts(data, axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # most periodic images lie outside the scan
        sites = with_periodic_images(meta["atom_columns_angstrom_yx"], meta["periodic_cell_angstrom"])
        templates = tdm.gaussian_template(counts, sites, sigma=SIGMA)
    return request.param, counts, templates, tdm.disk(counts, 24.0) > 0.5


@pytest.fixture(scope="module")
def ridge(scan):
    _, counts, templates, region = scan
    return held_out_cross_talk(counts, templates, method="ridge", detector_region=region)


def test_ridge_masks_keep_columns_apart_where_they_were_not_derived(scan, ridge):
    limits, excess, pearson = LIMITS[scan[0]]
    own = ridge["own"].mean("fold")
    assert set(own["template"].values) == set(limits)
    for kind, least in limits.items():
        assert float(own.sel(template=kind)) >= least, kind
    assert float(ridge["excess"].mean()) <= excess < 0.3 * pearson
    assert (ridge["regularisation"] > 0.01).all()
    assert (ridge["regularisation"] < 1.0).all()


def test_separate_masks_mix_columns_less_still(scan):
    _, counts, templates, _ = scan
    binned = tdm.bin(counts, detector=2)
    options = {"method": "ridge", "detector_region": tdm.disk(binned, 24.0) > 0.5}
    ridge = held_out_cross_talk(binned, templates, **options)
    separate = held_out_cross_talk(binned, templates, separate=True, **options)
    assert float(separate["excess"].mean()) <= 0.75 * float(ridge["excess"].mean())
    assert (separate["own"].mean("fold") >= ridge["own"].mean("fold") - 0.005).all()


def test_pearson_masks_mix_them(scan):
    name, counts, templates, region = scan
    found = held_out_cross_talk(counts, templates, detector_region=region)
    assert float(found["excess"].mean()) == pytest.approx(LIMITS[name][2], abs=0.01)


def test_at_a_tenth_of_the_dose_ridge_masks_are_no_worse_than_pearson_masks(scan):
    _, counts, templates, _ = scan
    thinned = tdm.bin(tdm.thin(counts, 0.1, seed=1), detector=2)
    region = tdm.disk(thinned, 24.0) > 0.5
    both = {
        method: held_out_cross_talk(thinned, templates, method=method, detector_region=region)
        for method in ("pearson", "ridge")
    }
    gained = both["ridge"]["own"] - both["pearson"]["own"]
    assert float(gained.min()) >= -0.02, "in any fold, of any kind"
    assert float(both["ridge"]["excess"].mean()) < float(both["pearson"]["excess"].mean())


def test_both_solvers_agree_and_say_what_they_read(scan):
    _, counts, templates, _ = scan
    binned = tdm.bin(counts, detector=3)
    options = {"method": "ridge", "regularisation": 0.1, "detector_region": tdm.disk(binned, 24.0)}
    by_matrix = tdm.derive_mask(binned, templates, **options)
    by_steps = tdm.derive_mask(binned, templates, solver="conjugate-gradients", **options)
    np.testing.assert_allclose(by_steps, by_matrix, rtol=0, atol=1e-4 * float(abs(by_matrix).max()))
    assert by_matrix.attrs["reads"] == 1
    assert 10 < by_steps.attrs["reads"] == len(by_steps.attrs["residuals"]) < 60
