"""The verdict on templates."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr.storage
from counted_reads import CountingStore
from scipy.stats import binom
from small_stores import converted

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate, label_counts
from tdm_dask.errors import TemplateError
from tdm_dask.evaluation.null import null_distribution, random_sites
from tdm_dask.evaluation.offsets import offset_scan
from tdm_dask.evaluation.verdict import evidence

SIGMA, STEP, SIZE, CELL = 0.4, 0.25, 24, (2.0, 3.0)
SUPPORTED, ELSEWHERE, NOT = "supported", "not distinguished from other offsets", "not supported"

pytestmark = pytest.mark.filterwarnings("ignore:.*sites lie more than")


def lattice(y, x, cell=CELL):
    numbers = np.arange(-1, 5)
    return np.stack(np.meshgrid(numbers, numbers, indexing="ij"), -1).reshape(-1, 2) * cell + (y, x)


# "strong" columns, and "weak" ones that other pixels see.
SITES = {"strong": lattice(0.5, 0.6), "weak": np.concatenate([lattice(1.5, 1.3), lattice(0.9, 2.2)])}


def column_counts(strong=40.0, weak=25.0, seed=0, detector=(2, 3)):
    axes = {d: axis_coordinate(d, SIZE, STEP, 0.0, "angstrom") for d in "yx"}
    empty = xr.DataArray(np.zeros((SIZE, SIZE)), axes, ("y", "x"))
    images = tdm.gaussian_template(empty, SITES, sigma=SIGMA).values
    weights = np.zeros((2, *detector))
    weights[0, 0], weights[1, 1, 0] = strong, weak
    mean = 9 + np.einsum("tyx,tab->yxab", images, weights)
    return label_counts(np.random.default_rng(seed).poisson(mean).astype(np.uint16), axes)


def verdicts(counts, sites=SITES, **options):
    found = evidence(counts, sites, CELL, **({"sigma": SIGMA, "draws": 40} | options))
    return dict(zip(found.table["template"].values, found.table["verdict"].values, strict=True))


def test_columns_that_the_counts_hold_are_supported_and_said_to_be():
    found = evidence(column_counts(), SITES, CELL, sigma=SIGMA, draws=40)
    # The weak ones are there too, but their template responds more strongly near the strong ones.
    assert found.table["verdict"].values.tolist() == [SUPPORTED, ELSEWHERE]
    assert found.table["own_rank"].values.tolist() == [0, 0]
    rank = found.table["rank"].sel(template="weak").item()
    assert f"{rank:.1%} of the other places in the cell respond at least as strongly" in found.sentences["weak"]
    line = found.sentences["strong"]
    assert line.startswith("strong: supported; no other place in the cell responds as strongly, the next one at least ")
    assert "of 40 templates of random sites none responded as strongly (p = 0.024)" in line
    assert str(found) == "\n".join(found.sentences.values())
    smallest = min(float(found.table[f"{way}margin"].sel(template="strong")) for way in ("", "own_", "together_"))
    assert f"{1 - 1 / (1 + smallest):.1%} less" in line


def test_the_table_holds_the_numbers_of_both_scans():
    found = evidence(column_counts(), SITES, CELL, sigma=SIGMA, draws=40)
    for name in ("rank", "margin", "own_rank", "own_margin", "image_rank", "margin_error"):
        np.testing.assert_array_equal(found.table[name], found.offsets[name])
    np.testing.assert_array_equal(found.table["p"], found.null["p"])
    assert found.table["significant"].values.tolist() == found.null["significant"].sum(("ky", "kx")).values.tolist()


def test_everything_is_one_dataset_with_gaps_where_there_are_no_offsets():
    counts = column_counts()
    sites = {"random": random_sites(counts, SITES["weak"], seed=4), "strong": SITES["strong"]}
    found = evidence(counts, sites, CELL, sigma=SIGMA, draws=40)
    both = found.dataset
    assert both["template"].values.tolist() == ["random", "strong"]
    assert both["significant"].dims == ("template", "ky", "kx")
    np.testing.assert_array_equal(both["response"].sel(template="strong"), found.offsets["response"][0])
    assert both["response"].sel(template="random").isnull().all()
    assert both["sentence"].values.tolist() == list(found.sentences.values())
    assert both["verdict"].values.tolist() == [NOT, SUPPORTED]


@pytest.mark.long
def test_templates_moved_off_their_sites_are_never_supported():
    counts = column_counts()
    overlap = offset_scan(counts, tdm.gaussian_template(counts, SITES, sigma=SIGMA), CELL)["overlap"]
    for kind, other in (("strong", "weak"), ("weak", "strong")):
        away = overlap.sel(template=kind).where(overlap.sel(template=kind) < 0.8, drop=False)
        a, b = np.nonzero(np.isfinite(away.values))
        chosen = np.random.default_rng(1).choice(len(a), 6, replace=False)
        offsets = [(away["dy"].values[a[n], b[n]], away["dx"].values[a[n], b[n]]) for n in chosen]
        # And right upon the columns of the other kind.
        offsets.append(SITES[other][0] - SITES[kind][0])
        for offset in offsets:
            moved = SITES | {kind: SITES[kind] + offset}
            assert verdicts(counts, moved)[kind] != SUPPORTED
    for offset in ([1.0, 1.5], SITES["strong"][0] - SITES["weak"][0]):
        assert SUPPORTED not in verdicts(counts, {kind: at + offset for kind, at in SITES.items()}).values()


def test_a_place_that_another_kind_explains_is_not_supported():
    # The weak columns on the strong ones respond most of all; what is left of them there is nothing.
    counts = column_counts(weak=5.0)
    moved = SITES | {"weak": SITES["strong"] + [0.0, 0.05]}
    found = evidence(counts, moved, CELL, sigma=SIGMA, draws=40)
    row = found.table.sel(template="weak")
    assert row["rank"].item() == 0
    assert row["own_rank"].item() > 0
    assert row["verdict"].item() == ELSEWHERE
    assert "of what no other kind explains, at least as strongly" in found.sentences["weak"]


@pytest.mark.long
def test_one_of_two_equal_places_is_supported_by_noise_no_more_often_than_the_rate():
    # Sites of every other column: those left out are as good.
    every, half = lattice(0.5, 0.6), lattice(0.5, 0.6, (4.0, 3.0))
    axes = {d: axis_coordinate(d, 32, STEP, 0.0, "angstrom") for d in "yx"}
    empty = xr.DataArray(np.zeros((32, 32)), axes, ("y", "x"))
    image = tdm.gaussian_template(empty, {"A": every}, sigma=SIGMA).values[0]
    hits, ranked_first = 0, 0
    for seed in range(60):
        mean = 9 + 8 * image[:, :, None, None] * np.array([[1.0, 1.0], [0.0, 0.0]])
        counts = label_counts(np.random.default_rng(seed).poisson(mean).astype(np.uint16), axes)
        table = evidence(counts, {"A": half}, (4.0, 3.0), sigma=SIGMA, draws=20, seed=seed).table
        hits += table["verdict"].item() == SUPPORTED
        ranked_first += table["rank"].item() == 0
    assert hits <= binom.ppf(0.999, 60, 0.05)
    assert ranked_first > 15  # though half of the time it ranks first


def test_random_sites_are_not_supported_but_for_the_stated_rate():
    counts = column_counts()
    kinds = {f"{n}": random_sites(counts, SITES["strong"], margin=SIGMA, seed=100 + n) for n in range(60)}
    p = null_distribution(counts, kinds, sigma=SIGMA, draws=40)["p"]
    chance = {name: places for name, places in kinds.items() if p.sel(template=name) > 0.05}
    assert len(kinds) - len(chance) <= binom.ppf(0.999, 60, 0.05)
    # With the same seed and order the draws are the same.
    first = dict(list(kinds.items())[:2])
    assert set(first) <= set(chance)
    table = evidence(counts, first, CELL, sigma=SIGMA, draws=40).table
    assert table["verdict"].values.tolist() == [NOT, NOT]


def test_what_random_sites_do_as_well_is_not_supported_and_costs_one_read(tmp_path):
    flat = column_counts(0.0, 0.0, detector=(6, 8))
    converted(tmp_path / "scan.zarr", flat)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "scan.zarr", read_only=True))
    found = evidence(tdm.open(store), SITES, CELL, sigma=SIGMA, draws=20)
    assert found.table["verdict"].values.tolist() == [NOT, NOT]
    assert "may well be chance" in found.sentences["weak"]
    assert not found.offsets.variables
    ranges = store.chunk_ranges()
    assert len(ranges) == len(set(ranges))


def test_a_verdict_takes_two_reads(tmp_path):
    counts = column_counts(detector=(6, 8))
    converted(tmp_path / "scan.zarr", counts)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "scan.zarr", read_only=True))
    found = evidence(tdm.open(store), SITES, CELL, sigma=SIGMA, draws=20)
    assert SUPPORTED in found.table["verdict"].values
    ranges = store.chunk_ranges()
    assert ranges
    assert all(ranges.count(r) == 2 for r in set(ranges))


def test_a_kind_among_others_that_is_not_supported_has_no_numbers_of_offsets():
    counts = column_counts()
    sites = {"strong": SITES["strong"], "weak": random_sites(counts, SITES["weak"], seed=4)}
    found = evidence(counts, sites, CELL, sigma=SIGMA, draws=40)
    row = found.table.sel(template="weak")
    assert row["verdict"].item() == NOT
    assert np.isnan(row["rank"].item())
    assert found.table["verdict"].sel(template="strong").item() == SUPPORTED
    assert list(found.sentences) == ["strong", "weak"]


def test_sites_that_do_not_repeat_with_the_cell_are_refused():
    with pytest.raises(TemplateError, match="does not repeat"):
        evidence(column_counts(), SITES, (1.3, 1.7), sigma=SIGMA, draws=40)
