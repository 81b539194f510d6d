"""What must hold of the columns of a crystal, projected along a zone axis."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from simulated_scans import LIFEPO4_SCANS, PBTIO3_SCANS, SAMPLE

from tdm_dask.columns.crystal import sites_from_cif
from tdm_dask.errors import SiteError

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
OLIVINE, PEROVSKITE = WORKFLOWS / "LiFePO4.cif", WORKFLOWS / "PbTiO3.cif"


def cif(path, cell, group, atoms):
    lengths = "".join(f"_cell_length_{n} {v}\n" for n, v in zip("abc", cell[:3], strict=True))
    angles = "".join(f"_cell_angle_{n} {v}\n" for n, v in zip(("alpha", "beta", "gamma"), cell[3:], strict=True))
    fields = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    loop = "loop_\n" + "".join(f"_atom_site_{field}\n" for field in fields)
    rows = "".join(" ".join(map(str, (f"{a[0]}{n}", *a))) + "\n" for n, a in enumerate(atoms))
    path.write_text(f"data_test\n{lengths}{angles}_symmetry_space_group_name_H-M '{group}'\n{loop}{rows}")
    return path


def in_cell(lattice):
    """Positions in angstrom of all columns of one cell, by kind."""
    return {kind: places @ lattice.vectors for kind, places in lattice.motif.items()}


def distance_to(lattice, kind, points):
    """How far points lie from columns of a kind, all cells counted."""
    cells = np.array(list(itertools.product(range(-8, 9), repeat=2)))
    places = (cells[:, None] + lattice.motif[kind]).reshape(-1, 2) @ lattice.vectors
    return cKDTree(places).query(points)[0]


@pytest.mark.parametrize("name", [SAMPLE, *LIFEPO4_SCANS])
def test_the_columns_of_lifepo4_are_those_of_the_simulated_scan(name, simulated):
    lattice = sites_from_cif(OLIVINE, (0, 0, 1))
    _, meta = simulated(name)
    assert lattice.vectors == pytest.approx(np.array([[5.166, 0], [0, 6.01]]), abs=1e-9)
    assert list(lattice.motif) == ["Fe", "P+O", "O", "Li"]
    for kind, places in meta["atom_columns_angstrom_yx"].items():
        assert distance_to(lattice, kind, np.array(places)[:24] - (0, 0)).max() < 0.003, kind
    per_cell = {kind: len(places) for kind, places in lattice.motif.items()}
    assert per_cell == {"Fe": 2, "P+O": 2, "O": 6, "Li": 2}
    assert lattice.columns["P+O"] == [{"P": 1.0, "O": 1.0}] * 2
    assert lattice.period == pytest.approx(4.692)


@pytest.mark.parametrize("name", PBTIO3_SCANS)
def test_the_columns_of_pbtio3_are_those_of_the_simulated_scan(name, simulated):
    lattice = sites_from_cif(PEROVSKITE, (1, 0, 0))
    _, meta = simulated(name)
    assert lattice.vectors == pytest.approx(np.array([[3.902, 0], [0, 4.156]]), abs=1e-9)
    for kind, places in lattice.motif.items():
        true = np.array(meta["atom_columns_angstrom_yx"][kind]) / 4.028
        for place in places:
            off = true - place
            assert np.hypot(*(off - np.rint(off)).T).min() < 0.001, kind
    assert lattice.columns["Ti+O"] == [{"Ti": 1.0, "O": 1.0}]


def test_a_smaller_tolerance_keeps_columns_apart():
    lattice = sites_from_cif(PEROVSKITE, (1, 0, 0), tolerance="30 pm")
    assert {kind: len(places) for kind, places in lattice.motif.items()} == {"Pb": 1, "Ti": 1, "O": 3}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(zone=st.tuples(*[st.integers(-4, 4)] * 3).filter(any), path=st.sampled_from([OLIVINE, PEROVSKITE]))
def test_no_atom_is_lost_or_counted_twice_along_any_zone_axis(zone, path):
    lattice = sites_from_cif(path, zone)
    atoms = sum(sum(column.values()) for columns in lattice.columns.values() for column in columns)
    volume, count = {OLIVINE: (10.332 * 6.01 * 4.692, 28), PEROVSKITE: (3.902**2 * 4.156, 5)}[path]
    projected = abs(np.linalg.det(lattice.vectors)) * lattice.period
    assert atoms / projected == pytest.approx(count / volume, rel=1e-6)
    assert np.linalg.det(lattice.vectors) > 0


@pytest.mark.parametrize(
    ("group", "zone", "area"),
    [
        # The volume of the primitive cell over the shortest lattice vector along the axis.
        ("F m -3 m", (0, 0, 1), 4.0),
        ("F m -3 m", (1, 1, 0), 4 * 2**0.5),
        ("F m -3 m", (1, 1, 1), 4 / 3**0.5),
        ("I m -3 m", (0, 0, 1), 8.0),
        ("P m -3 m", (0, 0, 1), 16.0),
    ],
)
def test_the_cell_is_the_smallest_of_the_projection(tmp_path, group, zone, area):
    # One atom per lattice point: every cell has one column.
    path = cif(tmp_path / "metal.cif", (4, 4, 4, 90, 90, 90), group, [("Al", 0, 0, 0, 1)])
    lattice = sites_from_cif(path, zone)
    assert len(lattice.motif["Al"]) == 1
    assert abs(np.linalg.det(lattice.vectors)) == pytest.approx(area)


def test_the_other_side_shows_the_mirror_image(tmp_path):
    atoms = [("Pb", 0, 0, 0, 1), ("Ti", 0.3, 0.1, 0.2, 1), ("O", 0.55, 0.7, 0.4, 1)]
    path = cif(tmp_path / "chiral.cif", (5, 6, 7, 80, 95, 105), "P 1", atoms)
    front, back = sites_from_cif(path, (0, 0, 1)), sites_from_cif(path, (0, 0, -1))
    for kind, places in in_cell(front).items():
        pb = in_cell(front)["Pb"][0]
        assert distance_to(back, kind, (places - pb) * (1, -1) + in_cell(back)["Pb"][0]).max() < 1e-6
    ti = in_cell(front)["Ti"][0] - in_cell(front)["Pb"][0]
    assert distance_to(back, "Ti", [ti + in_cell(back)["Pb"][0]])[0] > 0.1


def test_x_is_to_the_right_and_y_down_as_seen_from_the_source(tmp_path):
    atoms = [("Pb", 0, 0, 0, 1), ("Ti", 0.1, 0, 0, 1), ("O", 0, 0.2, 0, 1)]
    path = cif(tmp_path / "axes.cif", (10, 8, 4, 90, 90, 90), "P 1", atoms)
    # c towards the viewer, a downwards: b is to the right, as a right-handed frame has it.
    found = in_cell(sites_from_cif(path, (0, 0, 1), down=(1, 0, 0)))
    assert found["Ti"][0] - found["Pb"][0] == pytest.approx([1.0, 0.0])
    assert found["O"][0] - found["Pb"][0] == pytest.approx([0.0, 1.6])
    turned = sites_from_cif(path, (0, 0, 1), down=(0, 1, 0))
    assert distance_to(turned, "Ti", [(0.0, -1.0)])[0] < 1e-6
    assert distance_to(turned, "O", [(1.6, 0.0)])[0] < 1e-6


def test_occupancies_are_counted_and_heavier_elements_named_first(tmp_path):
    atoms = [("Li", 0, 0, 0, 0.75), ("Fe", 0, 0, 0, 0.25), ("O", 0.02, 0, 0.5, 1), ("O", 0.5, 0.5, 0.5, 0.5)]
    path = cif(tmp_path / "mixed.cif", (5, 5, 5, 90, 90, 90), "P 1", atoms)
    lattice = sites_from_cif(path, (0, 0, 1))
    assert lattice.columns["Fe+O+Li"] == [{"Fe": 0.25, "O": 1.0, "Li": 0.75}]
    assert lattice.columns["O"] == [{"O": 0.5}]
    assert in_cell(lattice)["Fe+O+Li"][0] == pytest.approx([0, 0])  # where Fe is, not the mean


def test_what_is_no_crystal_or_direction_is_refused_in_words(tmp_path):
    with pytest.raises(SiteError, match="no direction"):
        sites_from_cif(OLIVINE, (0, 0, 0))
    with pytest.raises(SiteError, match="three integers"):
        sites_from_cif(OLIVINE, (0, 0.5, 1))
    with pytest.raises(SiteError, match="three integers"):
        sites_from_cif(OLIVINE, (0, 1))
    with pytest.raises(SiteError, match="parallel to the zone axis"):
        sites_from_cif(OLIVINE, (0, 0, 1), down=(0, 0, 2))
    with pytest.raises(SiteError, match="no file"):
        sites_from_cif(tmp_path / "none.cif", (0, 0, 1))
    (tmp_path / "text.cif").write_text("not a crystal")
    with pytest.raises(SiteError, match="cannot be read as a CIF"):
        sites_from_cif(tmp_path / "text.cif", (0, 0, 1))
    (tmp_path / "bytes.cif").write_bytes(bytes(range(256)))
    with pytest.raises(SiteError, match="cannot be read as a CIF"):
        sites_from_cif(tmp_path / "bytes.cif", (0, 0, 1))
