"""Specimens to simulate: a crystal seen along a zone axis, in a block that repeats itself, with its atom columns.

Atoms are ASE's, x along the fast scan, y along the slow scan, z the way of the electrons: with y drawn downwards, as an
image is, the electron source is on the side of the viewer. ASE comes with the extra `simulation`.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..axes import quantity
from ..columns.crystal import atomic_numbers, columns_in_projection
from ..columns.sites import Array
from ..errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

# Atoms whose projections are at most so far apart are one column, in angstrom.
COLUMN_WIDTH = 0.35
# Largest misfit (relative length, or radian) by which a block may be bent to have right angles.
_MISFIT = 0.005
_LARGEST_INDEX = 6


@dataclass(frozen=True)
class Defect:
    """One column that is not as in the perfect crystal.

    Attributes
    ----------
    defect : {"vacancy", "antisite", "interstitial", "displacement"}
    kind : str
        Kind of the column; of an interstitial column, that which it counts as.
    site : (float, float)
        (y, x) in angstrom, where the column is.
    occupancy : float
        Atoms of its own that the column has, of those of the intact column; of an interstitial column, atoms per
        repeat of the crystal along the beam.
    content : dict of str to int
        Atoms of each element in the column as it is.
    """

    defect: str
    kind: str
    site: tuple[float, float]
    occupancy: float
    content: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """What goes into a store."""
        return {
            "defect": self.defect,
            "kind": self.kind,
            "site": [round(v, 4) for v in self.site],
            "occupancy": round(self.occupancy, 6),
            "content": self.content,
        }


@dataclass(frozen=True)
class Specimen:
    """Atoms in a periodic block with right angles, and the truth about their columns.

    Attributes
    ----------
    atoms : ase.Atoms
    sites : dict of str to array (n, 2)
        (y, x) in angstrom of every column of the block without its defects, by what lies in projection, such as
        "Li" or "P+O"; the position is that of the heaviest element.
    repeat : (float, float, float)
        Period (y, x, along the beam) of the perfect crystal, in angstrom.
    description : str
    defects : tuple of Defect
    """

    atoms: Atoms
    sites: dict[str, Array]
    repeat: tuple[float, float, float]
    description: str
    defects: tuple[Defect, ...] = field(default=())

    @property
    def cell(self) -> tuple[float, float]:
        """Period (y, x) of the block, in angstrom."""
        lengths = self.atoms.cell.lengths()
        return float(lengths[1]), float(lengths[0])

    @property
    def thickness(self) -> float:
        """Length along the beam, in angstrom."""
        return float(self.atoms.cell.lengths()[2])

    def truth(self) -> dict[str, Any]:
        """What is known, as JSON can hold it: `description`, `sites`, `cell`, `repeat`, `defects`."""
        return {
            "description": self.description,
            "sites": {kind: np.round(places, 4).tolist() for kind, places in self.sites.items()},
            "cell": [round(v, 6) for v in self.cell],
            "repeat": [round(v, 6) for v in self.repeat],
            "defects": [defect.as_json() for defect in self.defects],
        }


def crystal_block(
    crystal: str | os.PathLike[str] | Atoms,
    zone_axis: Sequence[int] = (0, 0, 1),
    *,
    size: Sequence[float | str] = (20.0, 20.0),
    thickness: float | str = "40 nm",
    description: str | None = None,
) -> Specimen:
    """A block of any crystal with a zone axis along the beam and right angles, which repeats itself without a seam.

    Of the lattice vectors across the zone axis (of the cell as given, which may be a centred one), two that are
    perpendicular to each other and span the smallest area are taken. The one nearer to the crystal's a (to b where a
    is the zone axis) lies along the slow scan, downwards, as :func:`tdm_dask.sites_from_cif` has it.

    Parameters
    ----------
    crystal : path or ase.Atoms
        A CIF, or any file that ASE reads, or atoms with a periodic cell.
    zone_axis : (u, v, w), default (0, 0, 1)
        Direction of the crystal that points from the specimen to the electron source.
    size : (y, x) in angstrom, default (20, 20)
        Least size, rounded up to whole cells. A probe needs about 20 angstrom at a thickness of 40 nm so as not to
        meet its own periodic images.
    thickness : float (angstrom) or str, default "40 nm"
        Rounded to whole repeats along the beam.
    description : str, optional
        By default the formula and the zone axis.

    Returns
    -------
    Specimen

    Raises
    ------
    InputError
        If the file cannot be read, has sites that are partly occupied, or no block with right angles exists for this
        zone axis.

    Examples
    --------
    >>> from ase.build import bulk
    >>> block = crystal_block(bulk("Si", cubic=True), (1, 1, 0), size=(10, 10), thickness=40)
    >>> [round(v, 2) for v in (*block.cell, block.thickness)], {k: len(v) for k, v in block.sites.items()}
    ([15.36, 10.86, 38.4], {'Si': 32})
    """
    from ase.build import make_supercell

    atoms = _read(crystal)
    zone = _zone_axis(zone_axis)
    cell = make_supercell(atoms, _orthogonal_axes(atoms.cell.array, zone))
    # Turned, and bent by less than the misfit, so that its edges lie along x, y and z.
    cell.set_cell(np.diag(cell.cell.lengths()), scale_atoms=True)
    cell.wrap(eps=1e-6)
    if description is None:
        formula = atoms.get_chemical_formula(empirical=True)
        description = f"{formula} [{('' if all(0 <= v < 10 for v in zone) else ' ').join(map(str, zone))}]"
    return tile(cell, size=size, thickness=thickness, description=description)


def tile(cell: Atoms, *, size: Sequence[float | str], thickness: float | str, description: str) -> Specimen:
    """A block of whole copies of an orthogonal cell with its edges along x, y and z, and its columns.

    Examples
    --------
    >>> from ase import Atoms
    >>> cell = Atoms("POLi", [(1, 1, 0), (1.02, 1, 2), (3, 3, 0)], cell=[4, 4, 4], pbc=True)
    >>> tile(cell, size=(4, 8), thickness=12, description="a cell").sites
    {'P+O': array([[1., 1.],
           [1., 5.]]), 'Li': array([[3., 3.],
           [3., 7.]])}
    """
    lx, ly, lz = (float(v) for v in cell.cell.lengths())
    if len(size) != 2:
        raise InputError(f"size has {len(size)} numbers; expected (y, x) in angstrom.")
    wanted = [quantity(v, "angstrom", "size") for v in size]
    ny, nx = (max(1, math.ceil(w / n - 1e-6)) for w, n in zip(wanted, (ly, lx), strict=True))
    layers = max(1, round(quantity(thickness, "angstrom", "thickness") / lz))
    shifts = np.array(list(itertools.product(range(ny), range(nx)))) * (ly, lx)
    sites = {
        kind: _sorted((places[:, None] + shifts).reshape(-1, 2)) for kind, places in _columns_of_cell(cell).items()
    }
    return Specimen(cell * (nx, ny, layers), sites, (ly, lx, lz), description)


def lifepo4(*, size: Sequence[float | str] = (20.0, 20.0), thickness: float | str = "40 nm") -> Specimen:
    """LiFePO4 seen along [001] (Pnma, 10.332 x 6.010 x 4.692 angstrom): a along the slow scan, b along the fast scan.

    Parameters
    ----------
    size, thickness
        As for `crystal_block`.

    Examples
    --------
    >>> specimen = lifepo4(thickness=10)
    >>> {kind: len(places) for kind, places in specimen.sites.items()}
    {'Fe': 32, 'P+O': 32, 'O': 96, 'Li': 32}
    """
    from ase.spacegroup import crystal

    motif = {
        ("Li", 1): (0, 0, 0),
        ("Fe", 1): (0.28222, 0.25, 0.97472),
        ("P", 1): (0.0948, 0.25, 0.4182),
        ("O", 1): (0.09678, 0.25, 0.74279),
        ("O", 2): (0.4571, 0.25, 0.20602),
        ("O", 3): (0.1656, 0.04645, 0.28478),
    }
    cell = crystal(
        [symbol for symbol, _ in motif],
        list(motif.values()),
        spacegroup=62,
        cellpar=[10.332, 6.010, 4.692, 90, 90, 90],
    )
    return crystal_block(cell, (0, 0, 1), size=size, thickness=thickness, description="LiFePO4 [001]")


def pbtio3_wall(*, cells: int = 6, thickness: float | str = "39 nm", wall: bool = True) -> Specimen:
    """PbTiO3 seen along a, with a 90-degree {011} domain wall from the top right to the bottom left corner.

    a = 3.904 and c = 4.152 angstrom. Both domains have square cells of (a + c) / 2 across the beam, so that the wall
    is free of strain and the block repeats itself; displacements are fractions of the cell. In cells with i + j <
    `cells` (i along y, j along x) the c axis lies along +x, elsewhere along +y; there are walls along the borders of
    the block too.

    Parameters
    ----------
    cells : int, default 6
        Unit cells along y and along x.
    thickness : float (angstrom) or str, default "39 nm"
    wall : bool, default True
        Without a wall, c lies along +x everywhere.

    Examples
    --------
    >>> specimen = pbtio3_wall(thickness=8)
    >>> {kind: len(places) for kind, places in specimen.sites.items()}, specimen.sites["Ti+O"][0].round(3).tolist()
    ({'Pb': 36, 'Ti+O': 36, 'O': 72}, [2.014, 2.166])
    """
    from ase import Atoms

    a, c = 3.904, 4.152
    side = (a + c) / 2
    # Element, and place along c, across it and along the beam, as fractions of the cell.
    motif = [
        ("Pb", 0.0, 0.0, 0.0),
        ("Ti", 0.5377, 0.5, 0.5),
        ("O", 0.1118, 0.5, 0.5),
        ("O", 0.6174, 0.0, 0.5),
        ("O", 0.6174, 0.5, 0.0),
    ]
    symbols, places = [], []
    for i, j in itertools.product(range(cells), repeat=2):
        along_x = not wall or i + j < cells
        for symbol, polar, across, depth in motif:
            x, y = (polar, across) if along_x else (across, polar)
            symbols.append(symbol)
            places.append(((j + x) * side, (i + y) * side, depth * a))
    layer = Atoms(symbols, places, cell=[cells * side, cells * side, a], pbc=True)
    walls = "with a 90-degree domain wall" if wall else "one domain, c along +x"
    block = tile(layer, size=(cells * side,) * 2, thickness=thickness, description=f"PbTiO3 [100], {walls}")
    return replace(block, repeat=(side, side, a))


def _read(crystal: Any) -> Atoms:
    from ase import Atoms
    from ase.io import read

    if isinstance(crystal, Atoms):
        atoms = crystal
    else:
        try:
            with warnings.catch_warnings():
                # ASE warns of settings that it takes from the symmetry operations itself.
                warnings.simplefilter("ignore")
                form: dict[str, Any] = {}
                if os.fspath(crystal).lower().endswith(".cif"):
                    form["fractional_occupancies"] = True
                found: Any = read(crystal, **form)
                atoms = found
        except Exception as error:  # each format of ASE has errors of its own
            raise InputError(f"{crystal} cannot be read as a crystal ({error}); expected a CIF.") from None
    if len(atoms) == 0 or atoms.cell.rank < 3:
        raise InputError("The atoms have no cell of three vectors; expected a crystal.")
    occupancies = [part for content in (atoms.info.get("occupancy") or {}).values() for part in content.values()]
    if any(part < 1 for part in occupancies):
        raise InputError(
            "The crystal has sites that are partly occupied, but a simulation needs whole atoms; give one with whole "
            "sites and take atoms out of columns with tdm_dask.simulation.defects."
        )
    return atoms


def _zone_axis(zone_axis: Sequence[int]) -> list[int]:
    axis = [int(v) for v in zone_axis]
    if len(axis) != 3 or not any(axis):
        raise InputError(f"The zone axis is {list(zone_axis)}; expected three whole numbers, not all zero.")
    return [v // math.gcd(*axis) for v in axis]


def _orthogonal_axes(cell: Array, zone: list[int]) -> npt.NDArray[np.int_]:
    """Integer combinations of lattice vectors (rows) along x, y and z; z is against the zone axis."""
    beam = np.array(zone) @ cell
    span = range(-_LARGEST_INDEX, _LARGEST_INDEX + 1)
    indices = np.array([v for v in itertools.product(span, repeat=3) if any(v)])
    vectors = indices @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    flat = np.flatnonzero(np.abs(vectors @ beam) <= _MISFIT * lengths * np.linalg.norm(beam))
    flat = flat[np.argsort(lengths[flat], kind="stable")]
    best, area = None, np.inf
    for number, i in enumerate(flat):
        if lengths[i] ** 2 >= area:
            break
        for j in flat[number + 1 :]:
            if lengths[i] * lengths[j] >= area * (1 - 1e-9):
                break
            if abs(vectors[i] @ vectors[j]) <= _MISFIT * lengths[i] * lengths[j]:
                best, area = (i, j), lengths[i] * lengths[j]
                break
    if best is None:
        raise InputError(
            f"The zone axis {zone} has no two lattice vectors across it with right angles; choose another one."
        )
    down = cell[0] if np.any(np.cross(zone, (1, 0, 0))) else cell[1]
    x, y = sorted(best, key=lambda n: round(abs(vectors[n] @ down) / lengths[n], 6))
    along_y = indices[y] if vectors[y] @ down >= 0 else -indices[y]
    along_x = indices[x]
    if np.linalg.det(np.array([along_x, along_y, -np.array(zone)]) @ cell) < 0:
        along_x = -along_x
    return np.array([along_x, along_y, -np.array(zone)])


def _columns_of_cell(cell: Atoms) -> dict[str, Array]:
    """Columns (y, x) of an orthogonal cell by kind, the heaviest kind first."""
    size = np.asarray(cell.cell.lengths())[[1, 0]]
    places = cell.positions[:, [1, 0]] / size
    contents = [{symbol: 1.0} for symbol in cell.get_chemical_symbols()]
    kinds: dict[str, list[Array]] = {}
    for place, content in columns_in_projection(places, np.diag(size), contents, COLUMN_WIDTH):
        inside = place % 1.0
        # A column on the border belongs to its start.
        kinds.setdefault("+".join(content), []).append(np.where(inside > 1 - 1e-6, 0.0, inside) * size)
    order = sorted(kinds, key=lambda kind: [-number for number in atomic_numbers(kind).values()])
    return {kind: np.array(kinds[kind]) for kind in order}


def _sorted(places: Array) -> Array:
    rounded = np.round(places, 6) + 0.0
    return rounded[np.lexsort(rounded.T[::-1].round(3))]
