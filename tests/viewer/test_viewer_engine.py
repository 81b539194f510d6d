"""The numbers of the viewer are those of the functions that it stands for, and it keeps little besides the counts."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_images import drawn, empty_scan, furthest, inside
from viewer_scans import calibrated, random_counts

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate, label_counts
from tdm_dask.errors import CalibrationError, InputError, SiteError
from tdm_dask.evaluation.cross_talk import cross_talk
from tdm_dask.viewer import engine as engines
from tdm_dask.viewer.choices import Choices
from tdm_dask.viewer.engine import Engine, Latest, check_calibrated, fitting_bin

PATIENCE = 60  # seconds that nothing here takes, unless it hangs
METHODS = {"pearson": "standardised", "mean-scaled": "none", "ridge": "standardised"}
SITES = {"Li": np.array([[2.0, 1.5], [4.0, 4.0]]), "P+O": np.array([[1.0, 5.0]])}


@pytest.fixture(scope="module")
def engine():
    return Engine(calibrated(random_counts()))


@settings(deadline=None, max_examples=4)
@given(
    seed=st.integers(0, 99),
    sigma=st.floats(0.2, 1.5),
    radius=st.none() | st.floats(4, 12),
    region=st.sampled_from([None, (0, 16, 2, 14), (5, 15, 0, 17)]),
    regularisation=st.floats(0.01, 10),
)
def test_masks_images_and_table_are_those_of_the_public_functions(seed, sigma, radius, region, regularisation):
    counts = calibrated(random_counts(seed=seed))
    counts[:, :, 2, 3] = 5  # a constant pixel
    engine = Engine(counts)
    template = tdm.gaussian_template(counts, SITES, sigma=sigma)
    regions = {
        "detector_region": None if radius is None else tdm.disk(counts, radius),
        "scan_region": None if region is None else (slice(*region[:2]), slice(*region[2:])),
    }
    for method, normalisation in METHODS.items():
        look = engine.look(
            Choices(
                sites=SITES,
                sigma=sigma,
                method=method,
                radius=radius,
                scan_region=region,
                regularisation=regularisation,
            )
        )
        ridge = {"regularisation": regularisation} if method == "ridge" else {}
        mask = tdm.derive_mask(counts, template, method=method, **regions, **ridge).compute()
        image = tdm.apply_mask(counts, mask, normalisation=normalisation).compute()
        scale = float(abs(mask).max())
        np.testing.assert_allclose(look.mask, mask, atol=scale * (1e-4 if method == "ridge" else 1e-9))
        np.testing.assert_allclose(look.image, image, atol=float(abs(image).max()) * 1e-4, rtol=1e-4)
        assert (look.image.dims, look.mask.dims) == (("template", "y", "x"), ("template", "ky", "kx"))
        table = cross_talk(look.image, template)
        for name in ("R", "G", "excess"):
            np.testing.assert_array_equal(look.table[name], table[name])
        assert look.choices.method == method


def test_options_of_ridge_masks_and_another_normalisation_are_those_of_the_recipe(engine):
    counts = engine.counts
    template = tdm.gaussian_template(counts, SITES, sigma=0.5)
    options = {"separate": True, "counts_per_electron": 2.0}
    chosen = Choices(sites=SITES, sigma=0.5, method="ridge", regularisation=0.3, rest={"masks": options})
    expected = tdm.derive_mask(counts, template, method="ridge", regularisation=0.3, **options)
    np.testing.assert_allclose(engine.look(chosen).mask, expected, atol=1e-4 * float(abs(expected).max()))
    plain = Choices(sites=SITES, rest={"images": {"normalisation": "none"}})
    assert engine.look(plain).image.attrs["normalisation"] == "none"
    chosen = chosen.with_(regularisation="cross-validated", rest={"masks": {"objective": "R"}})
    expected = tdm.derive_mask(counts, template, method="ridge", regularisation="cross-validated", objective="R")
    assert engine.chosen_lambda(chosen) == pytest.approx(float(expected["regularisation"]))


@pytest.mark.long
def test_what_ridge_masks_need_is_made_once_for_a_region(engine, monkeypatch):
    made = []

    class Counted(engines.RidgeTuner):
        def __init__(self, *arguments, **options):
            made.append(weakref.ref(self))
            super().__init__(*arguments, **options)

    monkeypatch.setattr(engines, "RidgeTuner", Counted)
    monkeypatch.setattr(engine, "_ridge", None)
    chosen = Choices(sites=SITES, method="ridge", radius=8.0)
    for changes in ({}, {"sigma": 0.7}, {"regularisation": 3.0}, {"sites": {"Li": SITES["Li"]}}):
        engine.look(chosen.with_(**changes))
    assert len(made) == 1
    for changes in ({"radius": 6.0}, {"scan_region": (0, 9, 0, 9)}, {"rest": {"masks": {"counts_per_electron": 2.0}}}):
        engine.look(chosen.with_(**changes))
    gc.collect()
    assert len(made) == 4
    assert sum(ref() is not None for ref in made) == 1  # and the others are gone


def test_images_of_detectors_patterns_and_pixels(engine):
    counts = engine.counts
    np.testing.assert_allclose(engine.conventional(0.0, 6.0), tdm.apply_mask(counts, tdm.disk(counts, 6.0)))
    np.testing.assert_allclose(engine.conventional(3.0, 9.0), tdm.apply_mask(counts, tdm.annulus(counts, 3.0, 9.0)))
    np.testing.assert_array_equal(engine.pattern(0.5, 100.0), counts.values[1, 16])
    np.testing.assert_array_equal(engine.pixel_image(-8.75, 0.1), counts.values[:, :, 0, 4])
    np.testing.assert_allclose(engine.pacbed, counts.values.mean((0, 1)), rtol=1e-6)


def test_few_images_of_detectors_are_kept(engine):
    first = engine.conventional(0.0, 6.0)
    assert engine.conventional(0.0, 6.0) is first
    for radius in np.linspace(1.5, 9, 30):
        engine.conventional(0.0, radius)
    assert len(engine._conventional) <= 8
    np.testing.assert_array_equal(engine.conventional(0.0, 6.0), first)


def test_sites_outside_are_a_note_and_none_at_all_a_sentence(engine):
    outside = {"Li": np.array([[2.0, 2.0], [90.0, 2.0]])}
    look = engine.look(Choices(sites=outside))
    assert len(look.notes) == 1
    assert "Li" in look.notes[0]
    assert engine.look(Choices(sites=SITES)).notes == ()
    with pytest.raises(SiteError, match="There are no sites yet"):
        engine.look(Choices(sites={"Li": np.empty((0, 2))}))
    with pytest.raises(InputError):
        engine.look(Choices(sites={"Li": outside["Li"][1:]}))
    look = engine.look(Choices(sites={**SITES, "empty": np.empty((0, 2))}))
    assert look.image["template"].values.tolist() == ["Li", "P+O"]


@pytest.mark.parametrize("shape", [(1, 40, 6, 6), (40, 1, 6, 6), (12, 12, 6, 7), (2, 2, 4, 4)])
def test_scans_of_one_line_and_of_any_size_have_masks_and_images(shape):
    engine = Engine(calibrated(random_counts(shape)))
    start = engine.first_choices()
    for pair in start.detectors.values():
        assert engine.conventional(*pair).shape == shape[:2]
    look = engine.look(start.with_(sites={"Li": [[0.0, 0.0]]}))
    assert np.isfinite(look.image).all()


def test_invalid_patterns_and_pixels_do_not_spoil_what_is_shown():
    data = random_counts()
    counts = calibrated(data)
    patterns, pixels = np.ones((16, 17), bool), np.ones((8, 9), bool)
    patterns[3:5, 3:5], pixels[4, 4] = False, False
    counts = counts.assign_coords(valid_patterns=(("y", "x"), patterns), valid_pixels=(("ky", "kx"), pixels))
    engine = Engine(counts)
    look = engine.look(Choices(sites=SITES, radius=8.0))
    assert np.isfinite(look.image.values[:, patterns]).all()
    assert np.isfinite(look.mask).all()
    assert np.isfinite(look.table["R"]).all()
    lattice = engine.conventional(0.0, 6.0)
    assert np.isfinite(lattice.values[patterns]).all()
    assert engine.peaks(lattice, Choices(), 1.5, "bright").shape[1] == 2


def test_eight_kinds_and_thousands_of_sites():
    engine = Engine(calibrated(random_counts((40, 40, 6, 6))))
    rng = np.random.default_rng(0)
    sites = {f"kind {n}": rng.random((700, 2)) * 15 for n in range(8)}
    look = engine.look(Choices(sites=sites))
    assert look.image.shape == (8, 40, 40)
    assert np.isfinite(look.table["R"]).all()


def test_detectors_to_begin_with_reach_no_further_than_the_detector():
    for pixel, semi in ((2.5, 6.0), (1.0, 6.0), (0.5, 6.0), (2.5, None)):
        engine = Engine(calibrated(random_counts(), pixel=pixel, semi_angle_mrad=semi))
        chosen = engine.first_choices()
        assert chosen.detectors
        assert all(inner < outer <= engine.reach + 1e-9 for inner, outer in chosen.detectors.values())
        assert (chosen.radius is None) == (semi is None)
    coarse = Engine(calibrated(random_counts((4, 4, 2, 2)), semi_angle_mrad=None)).first_choices()
    assert list(coarse.detectors) == ["BF"]


def test_choices_from_elsewhere_have_detectors_and_a_region_inside_the_scan(engine):
    assert engine.fitted(Choices()) == Choices(detectors=engine.detectors())
    other = Choices(detectors={"mine": (1.0, 2.0)}, scan_region=(0, 16, 0, 17))
    assert engine.fitted(other) == other
    assert engine.fitted(Choices(scan_region=(2, 90, 0, 17))).scan_region == (2, 16, 0, 17)
    assert engine.fitted(Choices(scan_region=(2, -1, -4, 17))).scan_region == (2, 15, 13, 17)
    with pytest.raises(InputError, match=r"scan_region x is \[40, 60\], of which the scan of 17"):
        engine.fitted(Choices(scan_region=(0, 4, 40, 60)))


def test_counts_without_units_are_refused_with_what_would_give_them():
    bare = label_counts(random_counts())
    with pytest.raises(CalibrationError, match=r"The scan of scan.zarr is not calibrated.*scan_step="):
        check_calibrated(bare, "scan.zarr")
    half = calibrated(random_counts()).assign_coords({d: bare[d] for d in ("ky", "kx")})
    with pytest.raises(CalibrationError, match=r"The detector of scan.zarr.*semi_angle="):
        check_calibrated(half, "scan.zarr")


@pytest.mark.parametrize(("memory", "size"), [(10**9, 1), (16 * 17 * 4 * 4 * 4 + 8000, 2), (16 * 17 * 8, 8)])
def test_the_bin_is_the_least_that_fits(memory, size):
    counts = calibrated(random_counts((16, 17, 8, 8)))
    found = fitting_bin(counts, memory)
    assert found <= size
    assert engines.proxy_bytes(counts, found) <= memory
    assert found == 1 or engines.proxy_bytes(counts, found - 1) > memory
    with pytest.raises(InputError, match="Not even one number"):
        fitting_bin(counts, 100)


# Lattices


@pytest.fixture(scope="module")
def lattice():
    """An image of two kinds of column on a lattice, an engine for its scan, and the sites."""
    scan = empty_scan((60, 62), (0.25, 0.25))
    vectors = np.array([[4.2, 0.3], [-0.2, 3.6]])
    numbers = np.stack(np.meshgrid(np.arange(-6, 8), np.arange(-6, 8), indexing="ij"), -1).reshape(-1, 2)
    origins = {"A": np.array([1.0, 1.2]), "B": np.array([3.2, 2.9])}
    sites = {kind: numbers @ vectors + origin for kind, origin in origins.items()}
    image = drawn(scan, sites, {"A": 40.0, "B": 22.0}, sigma=0.5, noise=np.random.default_rng(1))
    counts = label_counts(np.zeros((60, 62, 4, 4), np.uint8) + np.eye(4, dtype=np.uint8))
    axes = {dim: axis_coordinate(dim, 4, 5.0, -7.5, "mrad") for dim in ("ky", "kx")}
    counts = counts.assign_coords({**axes, "y": scan["y"], "x": scan["x"]})
    return Engine(counts), image, sites, vectors


def test_sites_of_one_cell_fill_the_scan(lattice):
    engine, image, sites, vectors = lattice
    within = inside(sites, image, margin=1.0)
    one = {kind: places[len(places) // 2][None] for kind, places in within.items()}
    before = Choices(sites={**one, "none yet": np.empty((0, 2))}, sigma=0.3)
    found = engine.extended(image, before, 1.2, "bright")
    assert set(found.sites) == {"A", "B", "none yet"}
    for kind, places in within.items():
        assert furthest(places, found.sites[kind]) < 0.15
        assert furthest(found.sites[kind], sites[kind]) < 0.25
    assert abs(np.linalg.det(found.cell)) == pytest.approx(abs(np.linalg.det(vectors)), rel=0.02)
    assert (found.sigma, found.detectors) == (before.sigma, before.detectors)


def test_without_sites_the_columns_of_the_image_fill_the_scan(lattice):
    engine, image, sites, _ = lattice
    found = engine.extended(image, Choices(), 1.2, "bright")
    every = np.concatenate(list(found.sites.values()))
    assert furthest(np.concatenate(list(inside(sites, image, 0.5).values())), every) < 0.3


def test_an_image_without_a_lattice_is_a_sentence(lattice):
    engine, image, _, _ = lattice
    with pytest.raises(InputError):
        engine.extended(xr.zeros_like(image), Choices(), 1.2, "bright")


def test_columns_are_found_once(lattice):
    engine, image, sites, _ = lattice
    within = inside(sites, image, margin=0.8)
    found = engine.peaks(image, Choices(), 1.2, "bright")
    assert furthest(np.concatenate(list(within.values())), found) < 0.25
    assert len(engine.peaks(image, Choices(sites={"all": found}), 1.2, "bright")) == 0
    rest = engine.peaks(image, Choices(sites={"A": sites["A"]}), 1.2, "bright")
    assert furthest(within["B"], rest) < 0.25
    assert np.hypot(*(rest[:, None] - sites["A"]).transpose(2, 0, 1)).min() > 0.6


def test_evidence_needs_the_cell_and_is_that_of_the_public_function(engine):
    chosen = Choices(sites=SITES, sigma=0.5)
    with pytest.raises(SiteError, match="unit cell is not known"):
        engine.evidence(chosen, 20)
    cell = np.array([[3.0, 0.0], [0.0, 3.2]])
    found = engine.evidence(chosen.with_(cell=cell, radius=8.0), 20)
    expected = tdm.evidence(
        engine.counts, SITES, cell, sigma=0.5, draws=20, detector_region=tdm.disk(engine.counts, 8.0)
    )
    assert found.sentences == expected.sentences
    xr.testing.assert_allclose(found.dataset, expected.dataset)


def test_a_crystal_is_laid_over_the_image():
    cif = Path(__file__).resolve().parents[2] / "workflows" / "LiFePO4.cif"
    if not cif.is_file():
        pytest.skip("the crystal is not here")
    sample = Path(str(files("tdm_dask") / "data" / "lifepo4_001.mib"))
    counts = tdm.open(sample).compute()
    counts = tdm.calibrate(counts, scan_step=("0.3229 Å", "0.3220 Å"), semi_angle="23.5 mrad")
    engine = Engine(counts)
    image = engine.conventional(*engine.detectors()["ADF"])
    chosen, message = engine.from_cif(cif, (0, 0, 1), image, "bright", Choices(sites={"old": np.zeros((1, 2))}))
    assert "old" not in chosen.sites
    assert {"Li", "Fe", "P"} <= set("+".join(chosen.sites).split("+"))
    assert message.endswith(".")
    np.testing.assert_allclose(sorted(np.hypot(*chosen.cell.T)), (10.33 / 2, 6.01), rtol=0.02)  # along c
    truth = tdm.read_sites(sample.parent / "lifepo4_001_sites.json")
    iron = next(kind for kind in chosen.sites if "Fe" in kind)
    true = next(places for kind, places in truth.items() if "Fe" in kind)
    ends = counts["y"].values[-1], counts["x"].values[-1]
    seen = [place for place in true if 0.5 < place[0] < ends[0] - 0.5 and 0.5 < place[1] < ends[1] - 0.5]
    assert furthest(np.array(seen), chosen.sites[iron]) < 0.35


# Threads


def test_requests_that_came_meanwhile_are_skipped():
    begun, go = threading.Event(), threading.Event()
    answers = []

    def work(number):
        begun.set()
        assert go.wait(PATIENCE)
        return 10 * number

    latest = Latest(work, lambda request, answer: answers.append((request, answer)))
    latest.ask(1)
    assert begun.wait(PATIENCE)
    for number in (2, 3, 4):
        latest.ask(number)
    go.set()
    latest.close()
    assert answers == [(1, 10), (4, 40)]


def test_where_nothing_is_skipped_all_are_answered_in_order():
    answers = []
    work = Latest(lambda number: number, lambda request, answer: answers.append(answer), skip=False)
    for number in range(20):
        work.ask(number)
    work.close()
    assert answers == list(range(20))


def test_errors_are_answers_and_those_of_who_is_told_end_nothing():
    answers = []

    def done(request, answer):
        answers.append(answer)
        if request == 1:
            raise RuntimeError("the page is gone")

    latest = Latest(lambda number: 1 / number, done, skip=False)
    for number in (0, 1, 2):
        latest.ask(number)
    latest.close()
    assert isinstance(answers[0], ZeroDivisionError)
    assert answers[1:] == [1.0, 0.5]


def test_it_ends_without_waiting_for_what_it_does_and_without_what_waits():
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    answers = []

    def work(number):
        begun.set()
        assert go.wait(PATIENCE)
        return number

    latest = Latest(work, lambda request, answer: (answers.append(answer), done.set()))
    latest.ask(1)
    assert begun.wait(PATIENCE)
    latest.ask(2)
    latest.close(wait=False)
    assert answers == []
    go.set()
    assert done.wait(PATIENCE)
    latest.close()
    assert answers == [1]


def test_many_threads_may_ask_and_get_what_one_gets(engine):
    kinds = [Choices(sites=SITES, method=method, radius=radius) for method in METHODS for radius in (6.0, 9.0)]
    expected = [engine.look(chosen).mask.values for chosen in kinds]
    found: dict[int, np.ndarray] = {}

    def ask(number):
        found[number] = engine.look(kinds[number]).mask.values

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for number, mask in enumerate(expected):
        np.testing.assert_allclose(found[number], mask, atol=1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("still heard", UserWarning, stacklevel=1)
    assert len(caught) == 1
