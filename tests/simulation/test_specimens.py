"""Specimens: blocks of crystals that repeat themselves, seen from the source; columns and defects that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_dask.errors import InputError, SiteError
from tdm_dask.evaluation.occupancy import equivalent_columns, equivalent_places
from tdm_dask.simulation.defects import (
    add_defect,
    antisite,
    displace,
    fig4_defects,
    interstitial,
    largest_void,
    partial_columns,
    vacancy,
)

pytest.importorskip("ase")

from ase import Atoms

from tdm_dask.simulation.specimens import crystal_block, lifepo4, pbtio3_wall

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
CIF = """data_test
_cell_length_a {a}
_cell_length_b {b}
_cell_length_c {c}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Fe 0.10 0.20 0.30 1.0
O 0.45 0.15 0.70 {occupancy}
Li 0.70 0.60 0.55 1.0
"""


def nearest(first, second, cell):
    """From each of the first places to the nearest of the second, over the periodic border."""
    offsets = np.asarray(first)[:, None] - np.asarray(second)[None]
    offsets -= np.asarray(cell) * np.round(offsets / np.asarray(cell))
    return np.hypot(offsets[..., 0], offsets[..., 1]).min(1)


@pytest.fixture(scope="module")
def crystal():
    return lifepo4(thickness=47)


@pytest.mark.parametrize(("name", "build"), [("lifepo4_001_40nm.npz", lifepo4), ("pbtio3_100_39nm.npz", pbtio3_wall)])
def test_columns_are_those_of_the_simulated_scans(name, build, simulated):
    meta = simulated(name)[1]
    specimen = build()
    assert specimen.cell == pytest.approx(meta["periodic_cell_angstrom"], abs=1e-3)
    assert specimen.thickness / 10 == pytest.approx(meta["thickness_nm"], abs=0.1)
    known = meta["atom_columns_angstrom_yx"]
    assert set(specimen.sites) == set(known)
    for kind, places in known.items():
        assert len(specimen.sites[kind]) == len(places)
        assert nearest(places, specimen.sites[kind], specimen.cell).max() < 2e-3, kind


def test_a_cif_gives_the_same_block():
    from_file = crystal_block(WORKFLOWS / "LiFePO4.cif", (0, 0, 1), size=(20, 20), thickness=47)
    built = lifepo4(thickness=47)
    assert from_file.cell == pytest.approx(built.cell)
    assert len(from_file.atoms) == len(built.atoms)
    for kind, places in built.sites.items():
        assert nearest(places, from_file.sites[kind], built.cell).max() < 1e-3


@pytest.mark.parametrize("zone", [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, -1, 1)])
def test_a_block_shows_what_its_cif_shows_from_the_source(tmp_path, zone):
    """Of a crystal without any symmetry, so that a mirror image or a crystal upside down would be found."""
    from tdm_dask.columns.crystal import sites_from_cif

    path = tmp_path / "p1.cif"
    path.write_text(CIF.format(a=6.0, b=6.0, c=6.0, occupancy=1.0))
    block = crystal_block(path, zone, size=(10, 10), thickness=10)
    lattice = sites_from_cif(path, zone)
    # Every column of the block lies on the lattice of the projection, up to one shift for all.
    for kind, places in block.sites.items():
        motif = np.asarray(lattice.motif[kind])
        assert len(motif) == 1
        fractions = places @ np.linalg.inv(lattice.vectors) - motif[0]
        assert np.abs(fractions - np.round(fractions)).max() < 1e-3, kind


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.tuples(*[st.floats(3.0, 9.0)] * 3),
    zone=st.sampled_from([(0, 0, 1), (1, 0, 0), (0, 1, 0)]),
    thickness=st.floats(5.0, 60.0),
)
def test_a_block_keeps_the_density_and_the_distances_of_its_crystal(lengths, zone, thickness):
    unit = Atoms("FeO", [(0.1, 0.2, 0.3), (1.4, 1.7, 2.0)], cell=lengths, pbc=True)
    block = crystal_block(unit, zone, size=(7, 7), thickness=thickness)
    assert len(block.atoms) / block.atoms.get_volume() == pytest.approx(2 / unit.get_volume())
    assert sorted(block.repeat) == pytest.approx(sorted(lengths))
    assert min(block.cell) >= 7 - 1e-6
    assert abs(block.thickness - thickness) <= max(block.repeat[2], block.repeat[2] / 2 + 1e-6)
    own = unit.get_distance(0, 1, mic=True)
    iron, oxygen = (np.flatnonzero(block.atoms.symbols == s) for s in ("Fe", "O"))
    distances = block.atoms.get_distances(iron[0], oxygen, mic=True)
    assert distances.min() == pytest.approx(own, abs=1e-6)


def test_what_is_no_whole_crystal_is_refused(tmp_path):
    path = tmp_path / "partly.cif"
    path.write_text(CIF.format(a=6.0, b=6.0, c=6.0, occupancy=0.5))
    with pytest.raises(InputError, match="partly occupied"):
        crystal_block(path)
    with pytest.raises(InputError, match="cannot be read as a crystal"):
        crystal_block(tmp_path / "missing.cif")
    with pytest.raises(InputError, match="not all zero"):
        crystal_block(Atoms("Fe", cell=[3, 3, 3], pbc=True), (0, 0, 0))
    oblique = Atoms("Fe", cell=[[4.0, 0, 0], [0.83, 5.1, 0], [0.4, 0.9, 6.3]], pbc=True)
    with pytest.raises(InputError, match="right angles"):
        crystal_block(oblique, (0, 0, 1))


def test_titanium_lies_towards_minus_c_of_its_cage_in_both_domains():
    specimen = pbtio3_wall(thickness=8)
    oxygen = specimen.sites["O"]
    cell, side = np.array(specimen.cell), specimen.repeat[0]
    off = []
    for place in specimen.sites["Ti+O"]:
        i, j = np.floor(place / side).astype(int)
        offsets = oxygen - place
        offsets -= cell * np.round(offsets / cell)
        four = offsets[np.argsort(np.hypot(*offsets.T))[:4]]
        off.append((i + j < 6, *(-four.mean(0))))
    along_x, dy, dx = np.array(off, float).T
    inner = (np.abs(dy) < 0.05) | (np.abs(dx) < 0.05)  # cells at a wall have neighbours of the other domain
    assert inner.sum() >= 18
    polar = np.where(along_x > 0, dx, dy)[inner]
    assert polar == pytest.approx(-0.31, abs=0.03)


def column(specimen, place):
    """Elements of the column at a place, in order along the beam."""
    offsets = specimen.atoms.positions[:, [1, 0]] - np.asarray(place)
    offsets -= np.array(specimen.cell) * np.round(offsets / np.array(specimen.cell))
    members = np.flatnonzero(np.hypot(*offsets.T) < 0.3)
    ordered = members[np.argsort(specimen.atoms.positions[members, 2])]
    return [specimen.atoms.symbols[i] for i in ordered], specimen.atoms.positions[ordered, 2]


@pytest.mark.parametrize(("occupancy", "left"), [(0.0, 0), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_a_vacancy_takes_atoms_of_one_column_alone(crystal, occupancy, left):
    place = (5.166, 3.005)
    changed = vacancy(crystal, "Li", (5.2, 3.1), occupancy=occupancy)
    assert len(crystal.atoms) - len(changed.atoms) == 10 - left
    symbols, depths = column(changed, place)
    assert symbols == ["Li"] * left
    if left > 1:  # spread along the whole column
        assert np.diff(depths).max() < 2.1 * crystal.thickness / left
    assert changed.defects[0].occupancy == pytest.approx(left / 10)
    assert len(crystal.defects) == 0
    np.testing.assert_array_equal(changed.sites["Li"], crystal.sites["Li"])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_an_antisite_exchanges_every_nth_atom(crystal, every):
    changed = antisite(crystal, "Li", (5.2, 3.0), element="Fe", every=every)
    assert column(changed, (5.166, 3.005))[0] == ["Fe" if (n + 1) % every == 0 else "Li" for n in range(10)]
    assert len(changed.atoms) == len(crystal.atoms)


def test_an_interstitial_column_has_an_atom_in_each_repeat(crystal):
    place = largest_void(crystal)
    assert column(crystal, place)[0] == []
    symbols, depths = column(interstitial(crystal, place, element="Fe"), place)
    assert symbols == ["Fe"] * 10
    assert depths == pytest.approx((np.arange(10) + 0.5) * 4.692)
    assert column(interstitial(crystal, place, occupancy=0.5), place)[0] == ["Fe"] * 5


def test_a_displaced_column_is_elsewhere_and_its_site_stays(crystal):
    changed = displace(crystal, "Fe", (2.9, 1.5), by=(0.5, -0.4))
    place = np.array([2.9159, 1.5025])
    assert column(changed, place)[0] == []
    assert len(column(changed, (place[0] + 0.5, place[1] - 0.4))[0]) == 10
    assert nearest([place], changed.sites["Fe"], changed.cell)[0] < 1e-3


def test_no_place_is_further_from_every_column_than_the_largest_void(crystal):
    columns = np.concatenate(list(crystal.sites.values()))
    own = nearest([largest_void(crystal)], columns, crystal.cell)[0]
    rng = np.random.default_rng(4)
    others = nearest(rng.uniform(0, crystal.cell, (3000, 2)), columns, crystal.cell)
    assert own > others.max() - 0.05


def test_partial_columns_are_far_apart(crystal):
    changed = partial_columns(crystal, "Li", [0.0, 0.3, 0.6])
    places = np.array([d.site for d in changed.defects])
    assert [d.occupancy for d in changed.defects] == pytest.approx([0.0, 0.3, 0.6])
    for n, place in enumerate(places):
        assert nearest([place], np.delete(places, n, 0), crystal.cell)[0] > 6


def test_the_defects_of_figure_4(crystal):
    changed = fig4_defects(crystal)
    assert [(d.defect, d.kind) for d in changed.defects] == [
        ("vacancy", "O"), ("interstitial", "Fe"), ("antisite", "Li")
    ]  # fmt: skip
    assert changed.defects[2].content == {"Fe": 5, "Li": 5}
    places = np.array([d.site for d in changed.defects])
    for n, place in enumerate(places):
        assert nearest([place], np.delete(places, n, 0), crystal.cell)[0] > 6


def test_defects_in_words_are_those_of_the_functions(crystal):
    assert (
        add_defect(crystal, "vacancy:O@4.7,7.5:0.5").defects == vacancy(crystal, "O", (4.7, 7.5), occupancy=0.5).defects
    )
    assert (
        add_defect(crystal, "antisite:Li>Fe@5.2,3.0:3").defects == antisite(crystal, "Li", (5.2, 3.0), every=3).defects
    )
    assert add_defect(crystal, "interstitial:Fe@14.2,6.8").defects == interstitial(crystal, (14.2, 6.8)).defects
    for text in ("vacancy:O", "hole:O@1,2", "vacancy:O@a,b"):
        with pytest.raises(InputError, match="The defect is"):
            add_defect(crystal, text)


def test_defects_where_there_is_no_column_are_refused(crystal):
    with pytest.raises(SiteError, match='no columns "Xe"'):
        vacancy(crystal, "Xe", (0, 0))
    with pytest.raises(SiteError, match="The nearest column"):
        vacancy(crystal, "Li", (2.5, 1.5))
    empty = vacancy(crystal, "Li", (5.166, 3.005))
    with pytest.raises(SiteError, match="empty already"):
        vacancy(empty, "Li", (5.166, 3.005))
    with pytest.raises(InputError, match=r"occupancy is 1\.5"):
        vacancy(crystal, "Li", (5.166, 3.005), occupancy=1.5)


def test_symmetry_makes_two_environments_of_oxygen_and_one_of_all_else(crystal):
    groups = equivalent_columns(crystal.sites, crystal.cell)
    assert {kind: np.bincount(g).tolist() for kind, g in groups.items()} == {
        "Fe": [32], "P+O": [32], "O": [32, 64], "Li": [32]
    }  # fmt: skip


def test_equal_places_see_equal_columns(crystal):
    place = (14.16, 6.80)
    places = equivalent_places(crystal.sites, crystal.cell, place)
    # Pnma projects along c to p2gm with half of a, four places in general position in each of sixteen cells.
    assert len(places) == 64
    assert places[0].tolist() == list(place)
    for kind, columns in crystal.sites.items():
        first = np.sort(np.linalg.norm(wrapped(columns - places[0], crystal.cell), axis=1))[:4]
        for other in places[1:]:
            same = np.sort(np.linalg.norm(wrapped(columns - other, crystal.cell), axis=1))[:4]
            assert same == pytest.approx(first, abs=0.01), kind


def wrapped(offsets, cell):
    return offsets - np.array(cell) * np.round(offsets / np.array(cell))
