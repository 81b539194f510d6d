"""Ridge masks on simulated scans with known truth: how far they keep kinds of column apart, and at what dose."""

from __future__ import annotations

import warnings

import dense_cross_talk
import numpy as np
import pytest
from simulated_scans import (
    LIFEPO4,
    LIFEPO4_ARCHIVE,
    PBTIO3,
    PBTIO3_ARCHIVE,
    SCANS,
    SIGMA,
    SPECIMENS,
    with_periodic_images,
)

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.evaluation.held_out import held_out_cross_talk
from tdm_dask.masks.ridge import LAMBDAS

# What must be reached with masks of one half of the scan read on the other, as a mean over four folds: the R_ii of each
# kind, the excess of R over G, and that of Pearson masks. Of the scans that are simulated here, chosen after six seeds
# were seen: R_ii at least 0.016 below the worst of them and far above what Pearson masks have, the excess 0.025 above.
LIMITS = {
    LIFEPO4_ARCHIVE: ({"Li": 0.98, "Fe": 0.96, "P+O": 0.935, "O": 0.98}, 0.09, 0.53),
    PBTIO3_ARCHIVE: ({"Pb": 0.94, "Ti+O": 0.865, "O": 0.975}, 0.075, 0.28),
    LIFEPO4: ({"Li": 0.94, "Fe": 0.92, "P+O": 0.90, "O": 0.95}, 0.115, 0.641),
    PBTIO3: ({"Pb": 0.945, "Ti+O": 0.885, "O": 0.96}, 0.075, 0.253),
}


@pytest.fixture(scope="module", params=SCANS)
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


@pytest.fixture(scope="module")
def coarse(scan):
    """Counts on pixels of 2 to 3 mrad, of which there are few, and their disk."""
    _, counts, _, region = scan
    if float(counts.kx[1] - counts.kx[0]) > 2:
        return counts, region
    binned = tdm.bin(counts, detector=2)
    return binned, tdm.disk(binned, 24.0) > 0.5


def test_ridge_masks_keep_columns_apart_where_they_were_not_derived(scan, ridge):
    limits, excess, pearson = LIMITS[scan[0]]
    own = ridge["own"].mean("fold")
    assert set(own["template"].values) == set(limits)
    for kind, least in limits.items():
        assert float(own.sel(template=kind)) >= least, kind
    assert float(ridge["excess"].mean()) <= excess < 0.3 * pearson
    # Well within the values that are tried; with the few pixels of the scans that are simulated here, not at an end.
    low, high = (LAMBDAS[0], LAMBDAS[-1]) if scan[0] in SPECIMENS else (0.01, 1.0)
    assert (ridge["regularisation"] > low).all()
    assert (ridge["regularisation"] < high).all()


@pytest.mark.long
@pytest.mark.parametrize("method", ["pearson", "ridge"])
def test_masks_of_halves_keep_apart_what_dense_ones_keep_apart(scan, coarse, method):
    templates, (counts, region) = scan[2], coarse
    found = held_out_cross_talk(counts, templates, method=method, detector_region=region)
    penalties = found["regularisation"].values if method == "ridge" else None
    r, excess = dense_cross_talk.held_out(counts.values, templates.values, region.values, penalties)
    np.testing.assert_allclose(found["R"], r, atol=1e-4)
    np.testing.assert_allclose(found["excess"], excess, atol=1e-4)


def test_separate_masks_mix_columns_less_still(scan, coarse):
    name, templates, (counts, region) = scan[0], scan[2], coarse
    options = {"method": "ridge", "detector_region": region}
    ridge = held_out_cross_talk(counts, templates, **options)
    separate = held_out_cross_talk(counts, templates, separate=True, **options)
    # Of the scans that are simulated here the ratio is 0.72 and 0.80, and scatters by 0.065 from seed to seed: seen
    # first, so that what is asked for is that it is less at all.
    least = 1.0 if name in SPECIMENS else 0.75
    assert float(separate["excess"].mean()) <= least * float(ridge["excess"].mean())
    assert (separate["own"].mean("fold") >= ridge["own"].mean("fold") - 0.005).all()


def test_pearson_masks_mix_them(scan):
    name, counts, templates, region = scan
    found = held_out_cross_talk(counts, templates, detector_region=region)
    # Archives are what they are; other seeds, seen before this was chosen, scatter by at most 0.008.
    within = 0.035 if name in SPECIMENS else 0.01
    assert float(found["excess"].mean()) == pytest.approx(LIMITS[name][2], abs=within)


def test_at_a_tenth_of_the_dose_ridge_masks_are_no_worse_than_pearson_masks(scan, coarse):
    templates, (counts, region) = scan[2], coarse
    # Electrons are drawn one by one: it makes no difference whether before or after pixels are summed.
    thinned = tdm.thin(counts, 0.1, seed=1)
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
