"""Evidence on simulated scans with known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy.spatial import cKDTree
from scipy.stats import norm
from simulated_scans import (
    LIFEPO4,
    LIFEPO4_ARCHIVE,
    LIFEPO4_SCANS,
    PBTIO3,
    PBTIO3_ARCHIVE,
    PBTIO3_SCANS,
    SCANS,
    SIGMA,
    SPECIMENS,
)

import tdm_dask as tdm
from tdm_dask.axes import label_counts
from tdm_dask.evaluation.influence import template_influence
from tdm_dask.evaluation.null import random_sites
from tdm_dask.evaluation.offsets import offset_scan
from tdm_dask.evaluation.verdict import evidence

SUPPORTED, ELSEWHERE, NOT = "supported", "not distinguished from other offsets", "not supported"
PERIOD = {
    LIFEPO4_ARCHIVE: (20.664, 18.03),
    PBTIO3_ARCHIVE: (24.168, 24.168),
    LIFEPO4: (10.332, 12.02),
    PBTIO3: (16.112, 16.112),
}
# Of inequivalent offsets, the part that do at least as well as the true place, and how closely that must be met. Of the
# archives: made once with other code. Of the scans that are simulated here, chosen after six seeds were seen: their
# mean and five times what they scatter by; where none of six has any such offset, the hundredth part that a few are.
TABLE = {
    LIFEPO4_ARCHIVE: {
        "rank": {"Li": (0.000, 0.02), "Fe": (0.744, 0.02), "P+O": (0.012, 0.02), "O": (0.000, 0.02)},
        "image_rank": {"Li": (0.000, 0.02), "Fe": (0.840, 0.02), "P+O": (1.000, 0.02), "O": (0.098, 0.02)},
    },
    PBTIO3_ARCHIVE: {
        "rank": {"Pb": (0.000, 0.02), "Ti+O": (0.021, 0.02), "O": (0.000, 0.02)},
        "image_rank": {"Pb": (0.000, 0.02), "Ti+O": (0.825, 0.02), "O": (0.000, 0.02)},
    },
    LIFEPO4: {
        "rank": {"Li": (0.000, 0.01), "Fe": (0.466, 0.22), "P+O": (0.000, 0.01), "O": (0.000, 0.01)},
        "image_rank": {"Li": (0.000, 0.01), "Fe": (0.796, 0.15), "P+O": (0.840, 0.07), "O": (0.267, 0.11)},
    },
    PBTIO3: {
        "rank": {"Pb": (0.000, 0.01), "Ti+O": (0.015, 0.012), "O": (0.000, 0.01)},
        "image_rank": {"Pb": (0.000, 0.01), "Ti+O": (0.033, 0.04), "O": (0.000, 0.01)},
    },
}
# What six seeds agree on, each by many times its error. That Li is supported on the scan that is simulated here they
# agree on as well, but by 1.9 times its error, where 1.6 decides: it is left open.
VERDICTS = {
    LIFEPO4_ARCHIVE: {"Li": SUPPORTED, "Fe": ELSEWHERE, "P+O": ELSEWHERE, "O": SUPPORTED},
    PBTIO3_ARCHIVE: {"Pb": SUPPORTED, "Ti+O": ELSEWHERE, "O": SUPPORTED},
    LIFEPO4: {"Fe": ELSEWHERE, "P+O": SUPPORTED, "O": SUPPORTED},
    PBTIO3: {"Pb": SUPPORTED, "Ti+O": ELSEWHERE, "O": SUPPORTED},
}

pytestmark = pytest.mark.filterwarnings("ignore:.*sites lie more than")


def with_images(sites, cell, counts):
    """Sites and their periodic images that reach into the scan."""
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=2))) * cell
    every = (np.asarray(sites)[:, None] + shifts).reshape(-1, 2)
    low, high = (np.array([counts[d].values[end] for d in "yx"]) for end in (0, -1))
    return every[((every > low - 2) & (every < high + 2)).all(1)]


@pytest.fixture(scope="module", params=SCANS)
def known(request, simulated):
    """Counts (of the archive of lead titanate, summed over 2 x 2 pixels), sites, and the offset scan of templates."""
    data, meta = simulated(request.param)
    counts = tdm.calibrate(
        label_counts(data),
        semi_angle=meta["semi_angle_mrad"],
        pixel_size=meta["angle_step_mrad"],
        centre=tuple(n // 2 for n in data.shape[2:]),
        scan_step=meta["scan_step_angstrom"],
    )
    if request.param == PBTIO3_ARCHIVE:
        counts = tdm.bin(counts, detector=2)
    cell = meta["periodic_cell_angstrom"]
    sites = {k: with_images(v, cell, counts) for k, v in meta["atom_columns_angstrom_yx"].items()}
    region = tdm.disk(counts, 24.0) > 0.5
    template = tdm.gaussian_template(counts, sites, sigma=SIGMA)
    scan = offset_scan(counts, template, PERIOD[request.param], detector_region=region)
    return request.param, counts, sites, cell, region, scan


def test_the_offset_table_is_reproduced(known):
    name, *_, scan = known
    for rank, expected in TABLE[name].items():
        assert set(expected) == set(scan["template"].values)
        for kind, (value, within) in expected.items():
            assert scan[rank].sel(template=kind).item() == pytest.approx(value, abs=within), (rank, kind)


def test_what_the_data_single_out_is_supported(known):
    name, counts, sites, _, region, _ = known
    found = evidence(counts, sites, PERIOD[name], sigma=SIGMA, detector_region=region, draws=20)
    verdict = dict(zip(found.table["template"].values, found.table["verdict"].values, strict=True))
    assert {kind: verdict[kind] for kind in VERDICTS[name]} == VERDICTS[name]
    # All but Fe are where they should be once the other columns are accounted for.
    own = {k for k in verdict if found.table["own_rank"].sel(template=k) == 0}
    assert own == set(verdict) - {"Fe"}


def test_no_place_that_is_not_the_true_one_would_be_supported(known):
    """Every kind by itself at every offset of the whole cell."""
    *_, scan = known
    least = norm.ppf(0.95)
    for kind in scan["template"].values:
        one = scan.sel(template=kind)
        overlap = one["overlap"].values
        away = np.argwhere(overlap < 0.8)
        response, own = one["response"].values, one["own_response"].values
        error = one["margin_error"].item() / (one["margin"].item() + 1) * response[0, 0]
        # Only places that respond more strongly than all but their own neighbourhood can be.
        strongest = away[np.argsort(response[tuple(away.T)])[::-1][:400]]
        for a, b in strongest:
            other = np.roll(overlap, (a, b), (0, 1)) < 0.8
            beats = [v[a, b] > v[other].max() + least * error * v[a, b] / v[other].max() for v in (response, own)]
            assert not all(beats), (kind, scan["dy"].values[a, b], scan["dx"].values[a, b])


@pytest.mark.parametrize("known", LIFEPO4_SCANS, indirect=True)
def test_a_template_moved_to_where_it_responds_most_is_not_supported(known):
    name, counts, sites, cell, region, scan = known
    one = scan.sel(template="Fe")
    away = np.argwhere(one["overlap"].values < 0.8)
    a, b = away[one["response"].values[tuple(away.T)].argmax()]
    offset = np.array([scan["dy"].values[a, b], scan["dx"].values[a, b]])
    options = {"sigma": SIGMA, "detector_region": region, "draws": 20}
    moved = {kind: with_images(places + offset, cell, counts) for kind, places in sites.items()}
    alone = evidence(counts, sites | {"Fe": moved["Fe"]}, PERIOD[name], **options)
    assert alone.table["verdict"].sel(template="Fe").item() == ELSEWHERE
    together = evidence(counts, moved, PERIOD[name], **options)
    assert SUPPORTED not in together.table["verdict"].values


@pytest.mark.parametrize("known", LIFEPO4_SCANS, indirect=True)
def test_random_templates_are_not_supported(known):
    name, counts, sites, _, region, _ = known
    kinds = {f"{kind} {n}": random_sites(counts, places, seed=n) for kind, places in sites.items() for n in range(2)}
    found = evidence(counts, kinds, PERIOD[name], sigma=SIGMA, detector_region=region, draws=40, seed=3)
    verdict = found.table["verdict"].values.tolist()
    if name in SPECIMENS:
        # One in twenty responds more strongly than 39 of 40 others by chance, but none so as no other place does.
        assert SUPPORTED not in verdict
        assert verdict.count(NOT) >= 6
    else:
        assert set(verdict) == {NOT}


@pytest.mark.parametrize("known", PBTIO3_SCANS, indirect=True)
def test_a_displacement_of_ti_that_copies_the_template_is_caught(known):
    """Ti at the cage centre, where it is, and on the wrong side: the position in the image follows the template."""
    name, counts, sites, _, region, _ = known
    true = sites["Ti+O"]
    near = cKDTree(sites["O"]).query(true, k=4)
    cage = sites["O"][near[1]].mean(1)
    inside = np.abs(np.hypot(*(true - cage).T) - 0.3095) < 0.01  # of one domain, with all four neighbours
    true, cage = true[inside], cage[inside]
    alternatives = {"Ti+O": {"cage centre": cage, "reversed": 2 * cage - true}}
    reference = xr.zeros_like(counts[:, :, 0, 0], dtype=bool)
    # Two by two unit cells of one domain.
    first, expected, within = (0, 0.52, 0.08) if name in SPECIMENS else (12, 0.55, 0.05)
    reference[first : first + 24, first : first + 24] = True
    options = {"sigma": SIGMA, "detector_region": region, "scan_region": reference.drop_vars(["ky", "kx"])}
    found = template_influence(
        counts,
        {"Ti+O": true, "Pb": sites["Pb"]},
        alternatives=alternatives | {"Pb": {"+x": sites["Pb"] + np.array([0.0, 0.31])}},
        radius=1.4,
        **options,
    )
    slope, error = found["slope"], found["slope_error"]
    assert slope.sel(kind="Ti+O").item() == pytest.approx(expected, abs=within)
    assert slope.sel(kind="Ti+O").item() > 4 * error.sel(kind="Ti+O").item()
    assert slope.sel(kind="Pb").item() < 0.2
