"""What must hold of a lattice: its sites, what it is fitted to, and what is found in an image."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_images import drawn, empty_scan, furthest, inside, scan_of
from simulated_scans import LIFEPO4_ARCHIVE, SAMPLE

from tdm_dask.columns.finding import find_columns
from tdm_dask.columns.lattice import Drift, Lattice
from tdm_dask.columns.periodicity import reduced
from tdm_dask.errors import CoordinateError, SiteError

PEROVSKITE = {"Pb": [(0.0, 0.0)], "Ti": [(0.5, 0.54)], "O": [(0.0, 0.62), (0.5, 0.11)]}
MOTIF = {"Fe": [(0.0, 0.0), (0.13, 0.5)], "P": [(0.62, 0.5), (0.25, 0.0)]}


def wavy(scale=1.0, order=3):
    terms = 3 if order == 2 else 7
    coefficients = scale * np.random.default_rng(5).uniform(-0.5, 0.5, (terms, 2))
    return Drift(order, np.array([20.0, 25.0]), np.array([27.0, 32.0]), coefficients)


def brute_sites(lattice, low, high):
    """Every site between two corners, by trying far more cells than can be needed."""
    found = {}
    for kind, motif in lattice.motif.items():
        cells = np.array([(h, k) for h in range(-60, 61) for k in range(-60, 61)])
        places = lattice.origin + (cells[:, None] + motif).reshape(-1, 2) @ lattice.vectors
        if lattice.drift is not None:
            places = places + lattice.drift.at(places)
        found[kind] = places[((places >= low) & (places <= high)).all(1)]
    return found


def same_points(one, other):
    one, other = (np.round(np.reshape(p, (-1, 2)), 6) + 0.0 for p in (one, other))
    return np.array_equal(one[np.lexsort(one.T)], other[np.lexsort(other.T)])


lengths = st.floats(2.5, 8.0)
small = st.floats(-1.0, 1.0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(a=lengths, b=lengths, shear=small, tilt=small, origin=st.tuples(small, small), margin=st.floats(0, 4))
def test_sites_are_all_those_inside_the_scan_and_no_others(a, b, shear, tilt, origin, margin):
    lattice = Lattice([[a, tilt], [shear, b]], PEROVSKITE, origin)
    scan = empty_scan((40, 50), (0.4, 0.5), (-3.0, 11.0))
    found = lattice.sites(scan, margin=margin)
    low, high = np.array([-3.0, 11.0]) - margin, np.array([-3.0 + 39 * 0.4, 11.0 + 49 * 0.5]) + margin
    expected = brute_sites(lattice, low, high)
    # Inside and on the border all are there; just outside, as far as rounding may take one of the border, some may be.
    surely, perhaps = (brute_sites(lattice, low + inset, high - inset) for inset in (1e-12, -1e-7))
    assert set(found) == set(PEROVSKITE)
    for kind in PEROVSKITE:
        if len(surely[kind]) == len(perhaps[kind]):
            assert same_points(found[kind], expected[kind])
        else:
            assert len(surely[kind]) <= len(found[kind]) <= len(perhaps[kind])


def test_sites_of_a_drifting_lattice_are_all_those_inside():
    scan = empty_scan((100, 100), (0.4, 0.5))
    lattice = Lattice([[4, 0.2], [0, 4]], PEROVSKITE, (1, 2), wavy(3.0))
    found = lattice.sites(scan)
    expected = brute_sites(lattice, np.zeros(2), np.array([39.6, 49.5]))
    for kind in PEROVSKITE:
        assert same_points(found[kind], expected[kind])
    straight = dataclasses.replace(lattice, drift=None).sites(scan)["Pb"]
    assert len(straight) != len(found["Pb"]) or np.abs(straight - found["Pb"]).max() > 0.5


def test_positions_and_fractions_are_inverse():
    fractions = np.random.default_rng(0).uniform(0, 9, (40, 2))
    for drift in (None, wavy()):
        lattice = Lattice([[4, 0.2], [0.3, 5]], PEROVSKITE, (1, 2), drift)
        assert np.abs(lattice.fractions(lattice.at(fractions)) - fractions).max() < 1e-9


def test_a_lattice_survives_json_and_cannot_be_changed():
    columns = {"Pb": [{"Pb": 1.0}], "Ti": [{"Ti": 1.0, "O": 0.5}], "O": [{"O": 1.0}, {"O": 1.0}]}
    lattice = Lattice([[4, 0.1], [0, 4.2]], PEROVSKITE, (0.5, 0.25), wavy(), columns, 3.9)
    assert Lattice.from_json(lattice.to_json()) == lattice
    assert Lattice.from_dict(json.loads(json.dumps(lattice.to_dict()))) == lattice
    assert hash(Lattice.from_json(lattice.to_json())) == hash(lattice)
    assert lattice != dataclasses.replace(lattice, origin=(0.5, 0.2501))
    with pytest.raises(dataclasses.FrozenInstanceError):
        lattice.origin = np.zeros(2)
    with pytest.raises(ValueError, match="read-only"):
        lattice.vectors[0, 0] = 5


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.tuples(*[st.floats(-9, 9)] * 4), st.tuples(*[st.integers(-3, 3)] * 3))
def test_reduced_vectors_generate_the_same_lattice(values, turns):
    vectors = np.array(values).reshape(2, 2)
    if abs(np.linalg.det(vectors)) < 0.5:
        return
    short = reduced(vectors)
    change = vectors @ np.linalg.inv(short)
    assert np.abs(change - np.rint(change)).max() < 1e-6
    assert abs(abs(np.linalg.det(change)) - 1) < 1e-6
    assert abs(short[0] @ short[1]) <= 0.5 * min((short**2).sum(1)) * (1 + 1e-9)
    sheared = np.array([[1, turns[0]], [0, 1]]) @ np.array([[1, 0], [turns[1], 1]]) @ np.array([[1, turns[2]], [0, 1]])
    assert np.sort((reduced(sheared @ vectors) ** 2).sum(1)) == pytest.approx(np.sort((short**2).sum(1)), rel=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(origin=st.tuples(st.floats(-20, 20), st.floats(-20, 20)), turn=st.floats(-180, 180), seed=st.integers(0, 99))
def test_a_fit_finds_the_lattice_from_vectors_that_are_a_little_wrong(origin, turn, seed):
    rng = np.random.default_rng(seed)
    t = np.radians(turn)
    vectors = np.array([[5.2, 0], [0.1, 6.0]]) @ [[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]
    true = Lattice(vectors, MOTIF, origin)
    cells = np.stack(np.meshgrid(np.arange(9), np.arange(8)), axis=-1).reshape(-1, 1, 2)
    places = true.at(cells + np.concatenate(list(MOTIF.values())))
    peaks = places[rng.random(len(places)) > 0.1]
    peaks = peaks + rng.normal(0, 0.05, peaks.shape)
    strays = rng.uniform(places.min(0), places.max(0), (12, 2))
    peaks = rng.permutation(np.concatenate([peaks, strays]))
    start = Lattice(vectors @ (np.eye(2) + rng.uniform(-0.02, 0.02, (2, 2))), MOTIF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = start.fit(peaks, origin="find")
    assert np.abs(found.vectors - true.vectors).max() < 0.01
    for kind, motif in MOTIF.items():
        middle = true.at(np.add(motif, (4, 4)))
        assert np.abs(middle - found.expected({kind: middle})[kind]).max() < 0.05


def test_a_fit_with_kinds_is_not_misled_by_the_others():
    true = Lattice([[4, 0], [0, 4]], {"A": [(0, 0)], "B": [(0.5, 0.5)]}, (0.3, 0.4))
    scan = empty_scan((100, 100), (0.4, 0.4))
    peaks = true.sites(scan)
    start = dataclasses.replace(true, origin=(0.0, 0.0))
    assert np.abs(start.fit(peaks, origin="find").expected(peaks["A"]) - peaks["A"]).max() < 1e-9
    swapped = start.fit({"A": peaks["B"], "B": peaks["A"]}, origin="find")
    assert np.abs(swapped.expected({"A": peaks["B"]})["A"] - peaks["B"]).max() < 1e-9


def test_a_fit_says_when_positions_do_not_tell_the_kinds_apart():
    true = Lattice([[4, 0], [0, 4]], {"A": [(0, 0)], "B": [(0.5, 0.5)]}, (0.3, 0.4))
    peaks = np.concatenate(list(true.sites(empty_scan((100, 100), (0.4, 0.4))).values()))
    with pytest.warns(UserWarning, match="which kind is which is not settled"):
        true.fit(peaks, origin="find")


@pytest.mark.parametrize("order", [2, 3])
def test_a_fit_follows_a_drift_of_several_angstrom(order):
    true = Lattice([[4, 0.1], [0, 4]], {"Pb": [(0, 0)], "Ti": [(0.5, 0.54)]}, (1, 2), wavy(2.0, order))
    scan = empty_scan((100, 100), (0.4, 0.5))
    sites = true.sites(scan)
    noisy = {k: p + np.random.default_rng(0).normal(0, 0.03, p.shape) for k, p in sites.items()}
    peaks = np.concatenate(list(noisy.values()))
    start = Lattice(true.vectors + 0.02, true.motif)
    found = start.fit(peaks, drift=order, origin="find")
    assert found.drift.order == order
    for kind, places in sites.items():
        assert np.abs(found.expected({kind: places})[kind] - places).max() < 0.06
    none = found.fit(peaks).expected(sites["Pb"]) - sites["Pb"]
    assert np.hypot(*none.T).max() > 0.3  # the drift is no rigid motion


def test_displacements_are_sites_less_what_the_lattice_expects():
    lattice = Lattice([[4, 0], [1.9, 4]], PEROVSKITE)
    sites = lattice.sites(empty_scan((100, 100), (0.4, 0.4)))
    moved = {kind: np.add(places, (0.2, -0.3)) for kind, places in sites.items()}
    expected = lattice.expected(moved)
    for kind in PEROVSKITE:
        assert np.abs(moved[kind] - expected[kind] - (0.2, -0.3)).max() < 1e-9
    assert np.abs(lattice.expected(sites["Ti"] + 0.1) - sites["Ti"]).max() < 1e-9


@pytest.mark.parametrize("turn", [0.0, 23.0, 90.0, -52.0])
def test_an_image_gives_its_smallest_cell_whatever_its_rotation(turn):
    # Glide planes leave out every other frequency along the axes: the cell must still be the whole one.
    t = np.radians(turn)
    vectors = np.array([[5.166, 0], [0, 6.01]]) @ [[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]
    true = Lattice(vectors, {"Fe": [(0.564, 0.25), (0.436, 0.75)], "P": [(0.19, 0.25), (0.81, 0.75)]}, (0.7, 1.9))
    scan = empty_scan((90, 100), (0.3, 0.25))
    sites = true.sites(scan, margin=3)
    image = drawn(scan, sites, {"Fe": 40, "P": 15}, noise=np.random.default_rng(2))
    found = Lattice.from_image(image, separation=1.4)
    change = true.vectors @ np.linalg.inv(found.vectors)
    assert np.abs(change - np.rint(change)).max() < 0.01
    assert abs(abs(np.linalg.det(change)) - 1) < 0.01
    named = found.renamed({"1": "Fe", "2": "Fe", "3": "P", "4": "P"})
    for kind, places in inside(sites, scan).items():
        assert furthest(places, named.sites(scan, margin=1)[kind]) < 0.08


def test_an_image_with_drift_gives_its_lattice():
    drift = Drift(2, np.array([20.0, 20.0]), np.array([20.0, 20.0]), np.array([[0.5, -0.3], [0.2, 0.4], [-0.4, 0.6]]))
    true = Lattice([[3.9, 0.3], [-0.3, 4.1]], {"Pb": [(0, 0)], "Ti": [(0.5, 0.54)]}, (1, 2), drift)
    scan = empty_scan((134, 134), (0.3, 0.3))
    image = drawn(scan, true.sites(scan, margin=3), {"Pb": 50, "Ti": 20}, noise=np.random.default_rng(2))
    found = Lattice.from_image(image, separation=1.6, drift=2).renamed({"1": "Pb", "2": "Ti"})
    for kind, places in true.sites(scan).items():
        assert furthest(places, found.sites(scan, margin=1)[kind]) < 0.06


def test_columns_that_the_image_does_not_show_are_added_in_the_same_frame():
    true = Lattice([[4.0, 0.2], [0, 4.2]], PEROVSKITE, (1.3, 0.8))
    scan = empty_scan((80, 80))
    image = drawn(scan, true.sites(scan, margin=3), {"Pb": 50, "Ti": 20, "O": 0}, noise=np.random.default_rng(3))
    peaks = find_columns(image, separation=1.6)
    shown = {kind: PEROVSKITE[kind] for kind in ("Pb", "Ti")}
    found = Lattice([[4.0, 0], [0, 4.0]], shown).fit(peaks, origin="find").with_motif(PEROVSKITE)
    for kind, places in true.sites(scan).items():
        assert furthest(places, found.sites(scan, margin=1)[kind]) < 0.05


@pytest.mark.parametrize("name", [SAMPLE, LIFEPO4_ARCHIVE])
def test_two_cells_are_enough(name, simulated):
    image, _ = scan_of(simulated, name, (30, 60))
    found = Lattice.from_image(image[:42, :42], separation=1.4)
    change = np.array([[5.166, 0], [0, 6.01]]) @ np.linalg.inv(found.vectors)
    assert np.abs(change - np.eye(2)).max() < 0.02


def test_what_is_no_lattice_is_refused_in_words():
    scan = empty_scan()
    with pytest.raises(SiteError, match="parallel"):
        Lattice([[1, 1], [2, 2]], PEROVSKITE)
    with pytest.raises(SiteError, match="shape"):
        Lattice([1, 2], PEROVSKITE)
    with pytest.raises(SiteError, match="not finite"):
        Lattice([[4, 0], [0, np.nan]], PEROVSKITE)
    with pytest.raises(SiteError, match="do not match the motif"):
        Lattice([[4, 0], [0, 4]], {"Pb": [(0, 0)]}, columns={"Pb": [{"Pb": 1.0}] * 2})
    lattice = Lattice([[4, 0], [0, 4]], {"Pb": [(0, 0)]})
    with pytest.raises(SiteError, match='no columns of "Ti"'):
        lattice.expected({"Ti": [(0, 0)]})
    with pytest.raises(SiteError, match='no columns of "Ti"'):
        lattice.renamed({"Ti": "O"})
    with pytest.raises(SiteError, match='no columns of "Ti"'):
        lattice.fit({"Ti": [(0, 0)]})
    with pytest.raises(SiteError, match="4 or more"):
        lattice.fit([(0, 0), (4, 0)], origin="find")
    with pytest.raises(SiteError, match="on one line"):
        lattice.fit([(0, 0), (4, 0), (8, 0), (12, 0), (16, 0)])
    with pytest.raises(SiteError, match="order of the drift"):
        lattice.fit([(0, 0)] * 5, drift=-1)
    with pytest.raises(SiteError, match="origin"):
        lattice.fit([(0, 0)] * 5, origin="search")
    with pytest.raises(CoordinateError, match="scan_step"):
        lattice.sites(empty_scan(unit="px"))
    with pytest.raises(SiteError, match="not JSON"):
        Lattice.from_json("{")
    with pytest.raises(SiteError, match="A lattice has"):
        Lattice.from_json('{"vectors": [[1, 0], [0, 1]]}')
    with pytest.raises(SiteError, match=r"no lattice|0 periods"):
        Lattice.from_image(scan.copy(data=np.random.default_rng(0).normal(size=scan.shape)), separation=1.5)
    stripes = scan.copy(data=np.sin(scan.y.values[:, None] * 2) + 0 * scan.x.values)
    with pytest.raises(SiteError, match="no lattice in two directions"):
        Lattice.from_image(stripes, separation=1.5)
