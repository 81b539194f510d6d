"""Specimens to simulate: a crystal seen along a zone axis, its atom columns by kind, and defects of known occupancy.

Atoms are ASE's: x along the fast scan, y along the slow scan, z along the beam. ASE comes with the extra `simulation`
(``pip install tdm-dask[simulation]``).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .axes import quantity
from .errors import InputError, SiteError

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[np.float64]

# Atoms whose projections lie closer than this are one column, in angstrom.
COLUMN_WIDTH = 0.5
# Largest misfit (relative length, or radian) by which a block may be bent to be orthogonal.
MISFIT = 0.005
_LARGEST_INDEX = 6


@dataclass(frozen=True)
class Defect:
    """One column that is not as in the perfect crystal.

    Attributes
    ----------
    defect : {"vacancy", "antisite", "interstitial", "displacement"}
    kind : str
        Kind of the column; of an interstitial column, that which it is named by.
    site : (float, float)
        (y, x) in angstrom.
    occupancy : float
        Atoms of the column's own element(s) that are there, of those of the intact column; of an interstitial, atoms
        per repeat of the crystal along the beam.
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
            "occupancy": self.occupancy,
            "content": self.content,
        }


@dataclass(frozen=True)
class Specimen:
    """Atoms in an orthogonal, periodic block, and the truth about their columns.

    Attributes
    ----------
    atoms : ase.Atoms
        x along the fast scan, y along the slow scan, z along the beam; angstrom.
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
        """What is known, as JSON can hold it: `description`, `sites`, `elements`, `cell`, `repeat`, `defects`."""
        return {
            "description": self.description,
            "sites": {kind: np.round(places, 4).tolist() for kind, places in self.sites.items()},
            "elements": {kind: np.round(places, 4).tolist() for kind, places in element_sites(self.atoms).items()},
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

    Of the lattice vectors perpendicular to the zone axis, the two shortest that are perpendicular to each other are
    taken: the shorter one along the fast scan.

    Parameters
    ----------
    crystal : path or ase.Atoms
        A CIF, or any file that ASE reads, or atoms with a periodic cell.
    zone_axis : (u, v, w), default (0, 0, 1)
        Lattice direction along the beam.
    size : (y, x), default (20, 20)
        Least size in angstrom, rounded up to whole cells. A probe needs about 20 angstrom at 40 nm so as not to meet
        its own periodic images.
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
        If the file cannot be read, or no block with right angles exists for this zone axis.

    Examples
    --------
    >>> from ase.build import bulk
    >>> block = crystal_block(bulk("Si", cubic=True), (1, 1, 0), size=(10, 10), thickness=40)
    >>> [round(v, 2) for v in (*block.cell, block.thickness)], {k: len(v) for k, v in block.sites.items()}
    ([10.86, 11.52, 38.4], {'Si': 24})
    """
    from ase.build import make_supercell

    atoms, name = _read(crystal)
    axes = _orthogonal_axes(atoms.cell.array, [int(v) for v in zone_axis])
    cell = make_supercell(atoms, axes)
    lengths = cell.cell.lengths()
    # Turned, and bent by less than the misfit, so that its edges lie along x, y and z.
    cell.set_cell(np.diag(lengths), scale_atoms=True)
    cell.wrap(eps=1e-6)
    if description is None:
        description = f"{name} [{' '.join(map(str, zone_axis))}]".replace(" ", "" if _short(zone_axis) else " ")
    return tile(cell, size=size, thickness=thickness, description=description)


def tile(
    cell: Atoms, *, size: Sequence[float | str], thickness: float | str, description: str, columns: bool = True
) -> Specimen:
    """A block of whole copies of an orthogonal cell, and its columns.

    Parameters
    ----------
    cell : ase.Atoms
        With right angles, along x, y and z.
    size, thickness
        As for `crystal_block`.
    """
    lx, ly, lz = (float(v) for v in cell.cell.lengths())
    wanted = [quantity(v, "angstrom", "size") for v in size]
    if len(wanted) != 2:
        raise InputError(f"size has {len(wanted)} numbers; expected (y, x) in angstrom.")
    counts = [max(1, math.ceil(w / n - 1e-6)) for w, n in zip(wanted, (ly, lx), strict=True)]
    layers = max(1, round(quantity(thickness, "angstrom", "thickness") / lz))
    # One layer is enough to find the columns, since each repeats along the beam.
    sites = columns_in_projection(cell * (counts[1], counts[0], 1)) if columns else {}
    return Specimen(cell * (counts[1], counts[0], layers), sites, (ly, lx, lz), description)


def columns_in_projection(atoms: Atoms, width: float = COLUMN_WIDTH) -> dict[str, Array]:
    """Atom columns by what lies in projection: kind to positions (y, x) in angstrom.

    Atoms whose projections are closer than `width` angstrom are one column. It is named by its elements, the heaviest
    first ("P+O"), and lies where its heaviest element does.

    Examples
    --------
    >>> from ase import Atoms
    >>> columns_in_projection(Atoms("POLi", [(1, 1, 0), (1.02, 1, 2), (3, 3, 0)], cell=[4, 4, 4], pbc=True))
    {'P+O': array([[1., 1.]]), 'Li': array([[3., 3.]])}
    """
    from ase.data import chemical_symbols

    kinds: dict[str, list[Array]] = {}
    for members in _columns(atoms, width):
        numbers = atoms.numbers[members]
        elements = sorted(set(numbers.tolist()), reverse=True)
        heaviest = members[numbers == elements[0]]
        name = "+".join(chemical_symbols[z] for z in elements)
        kinds.setdefault(name, []).append(_mean_position(atoms, heaviest))
    return {kind: _sorted(places) for kind, places in sorted(kinds.items(), key=lambda k: -_heaviest(k[0]))}


def element_sites(atoms: Atoms, width: float = 0.05) -> dict[str, Array]:
    """Where the columns of each element lie in projection, whatever else lies there: element to (y, x) in angstrom."""
    found = {}
    for symbol in sorted(set(atoms.get_chemical_symbols())):
        alone = atoms[[i for i, s in enumerate(atoms.get_chemical_symbols()) if s == symbol]]
        found[symbol] = _sorted([_mean_position(alone, members) for members in _columns(alone, width)])
    return found


def lifepo4(*, size: Sequence[float | str] = (20.664, 24.04), thickness: float | str = "40 nm") -> Specimen:
    """LiFePO4 seen along [001] (Pnma; beam along c), a along the slow scan, b along the fast scan.

    Coordinates of V. A. Streltsov et al., Acta Cryst. B49 (1993) 147, in the cell of 10.332 x 6.010 x 4.692 angstrom.

    Examples
    --------
    >>> {kind: len(places) for kind, places in lifepo4(thickness=10).sites.items()}
    {'Fe': 32, 'P+O': 32, 'O': 64, 'Li': 32}
    """
    from ase.spacegroup import crystal

    sites = [
        ("Li", (0, 0, 0)),
        ("Fe", (0.28222, 0.25, 0.97472)),
        ("P", (0.09486, 0.25, 0.41820)),
        ("O", (0.09678, 0.25, 0.74279)),
        ("O", (0.45710, 0.25, 0.20602)),
        ("O", (0.16558, 0.04646, 0.28478)),
    ]
    cell = crystal(
        [s for s, _ in sites], [p for _, p in sites], spacegroup=62, cellpar=[10.332, 6.010, 4.692, 90, 90, 90]
    )
    cell = _turned(cell, (1, 0, 2))
    return tile(cell, size=size, thickness=thickness, description="LiFePO4 [001]")


def pbtio3_wall(*, cells: int = 6, thickness: float | str = "39 nm", wall: bool = True) -> Specimen:
    """PbTiO3 seen along a, with a 90-degree {011} domain wall from the top right to the bottom left corner.

    Coordinates of A. M. Glazer and S. A. Mabud, Acta Cryst. B34 (1978) 1065 (a = 3.904, c = 4.152 angstrom). Both
    domains have square cells of (a + c) / 2 across the beam, so that the wall is free of strain and the block repeats
    itself; displacements are fractions of the cell. In cells with i + j < `cells` (i along y, j along x) the c axis
    lies along +x, elsewhere along +y; there are walls at two of the borders of the block too.

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
    # (element, along c, across c, along the beam) as fractions of the cell.
    motif = [("Pb", 0, 0, 0), ("Ti", 0.5377, 0.5, 0.5), ("O", 0.1118, 0.5, 0.5), ("O", 0.6174, 0, 0.5)]
    motif.append(("O", 0.6174, 0.5, 0))
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


def vacancy(specimen: Specimen, kind: str, site: Sequence[float], *, occupancy: float = 0.0) -> Specimen:
    """Take atoms out of the column of a kind nearest to a site; what stays is spread evenly along it.

    Parameters
    ----------
    specimen : Specimen
    kind : str
        Kind of the column, such as "O".
    site : (y, x)
        In angstrom.
    occupancy : float, default 0
        Fraction of the atoms that stay, as nearly as whole atoms allow.

    Returns
    -------
    Specimen

    Raises
    ------
    SiteError
        If there is no column of that kind within an angstrom of the site.

    Examples
    --------
    >>> crystal = lifepo4(thickness=47)
    >>> [defect] = vacancy(crystal, "Li", (5.2, 3.0), occupancy=0.5).defects
    >>> defect.site, defect.occupancy, defect.content
    ((5.166, 3.005), 0.5, {'Li': 5})
    """
    place, members = _column_at(specimen, kind, site)
    kept = _spread(len(members), _fraction(occupancy))
    atoms = specimen.atoms[np.delete(np.arange(len(specimen.atoms)), members[~kept])]
    content = _content(specimen.atoms, members[kept])
    return _with(specimen, atoms, Defect("vacancy", kind, place, float(kept.mean()), content))


def antisite(
    specimen: Specimen, kind: str, site: Sequence[float], *, element: str = "Fe", every: int = 2
) -> Specimen:
    """Put another element in place of every n-th atom of a column, counted along the beam.

    Parameters
    ----------
    specimen, kind, site
        As for `vacancy`.
    element : str, default "Fe"
    every : int, default 2
        2 makes them alternate, 1 exchanges the whole column.

    Examples
    --------
    >>> [defect] = antisite(lifepo4(thickness=47), "Li", (5.2, 3.0)).defects
    >>> defect.occupancy, defect.content
    (0.5, {'Fe': 5, 'Li': 5})
    """
    if every < 1:
        raise InputError(f"every is {every}; expected a whole number, 1 or more.")
    place, members = _column_at(specimen, kind, site)
    exchanged = members[every - 1 :: every]
    atoms = specimen.atoms.copy()
    atoms.symbols[exchanged] = element
    own = 1 - len(exchanged) / len(members)
    return _with(specimen, atoms, Defect("antisite", kind, place, own, _content(atoms, members)))


def interstitial(
    specimen: Specimen, site: Sequence[float], *, element: str = "Fe", kind: str | None = None, occupancy: float = 1.0
) -> Specimen:
    """Add a column where there was none, with one atom in the middle of each repeat along the beam.

    Parameters
    ----------
    specimen : Specimen
    site : (y, x)
        In angstrom.
    element : str, default "Fe"
    kind : str, optional
        Kind of column that it counts as; by default the element.
    occupancy : float, default 1
        Fraction of the repeats that hold an atom, spread evenly.

    Examples
    --------
    >>> crystal = lifepo4(thickness=47)
    >>> changed = interstitial(crystal, largest_void(crystal))
    >>> len(changed.atoms) - len(crystal.atoms), changed.defects[0].content
    (10, {'Fe': 10})
    """
    from ase import Atoms

    depth = specimen.repeat[2]
    layers = round(specimen.thickness / depth)
    z = (np.flatnonzero(_spread(layers, _fraction(occupancy))) + 0.5) * depth
    y, x = (float(v) for v in site)
    added = Atoms([element] * len(z), np.column_stack([np.full(len(z), x), np.full(len(z), y), z]))
    content = {element: len(z)}
    defect = Defect("interstitial", kind or element, (y, x), len(z) / layers, content)
    return _with(specimen, specimen.atoms + added, defect)


def displace(specimen: Specimen, kind: str, site: Sequence[float], by: Sequence[float]) -> Specimen:
    """Move a whole column by (y, x) angstrom; its site in the truth of the perfect block stays."""
    place, members = _column_at(specimen, kind, site)
    atoms = specimen.atoms.copy()
    atoms.positions[members] += (float(by[1]), float(by[0]), 0.0)
    content = _content(atoms, members)
    moved = (place[0] + float(by[0]), place[1] + float(by[1]))
    return _with(specimen, atoms, Defect("displacement", kind, moved, 1.0, content))


def largest_void(specimen: Specimen, near: Sequence[float] | None = None) -> tuple[float, float]:
    """The place (y, x) in projection that is furthest from every column; of several, that nearest to `near`.

    Examples
    --------
    >>> [round(v, 1) for v in largest_void(lifepo4(thickness=5))]
    [2.2, 1.5]
    """
    cell = np.array(specimen.cell)
    columns = np.concatenate(list(specimen.sites.values())) % cell
    ny, nx = (max(1, round(length / 0.05)) for length in cell)
    grid = np.stack(np.meshgrid(np.arange(ny) / ny, np.arange(nx) / nx, indexing="ij"), -1).reshape(-1, 2) * cell
    distance = cKDTree(columns, boxsize=cell).query(grid)[0]
    places = grid[distance > distance.max() - 0.02]
    target = cell / 2 if near is None else np.asarray(near, float)
    y, x = places[np.argmin(np.hypot(*_nearest_image(places - target, cell).T))]
    return float(y), float(x)


def equivalent_places(specimen: Specimen, site: Sequence[float]) -> Array:
    """Every place (y, x) of the block that lattice translations of the perfect crystal take a site to, itself first."""
    ny, nx = (round(c / r) for c, r in zip(specimen.cell, specimen.repeat, strict=False))
    shifts = np.array(list(itertools.product(range(ny), range(nx)))) * specimen.repeat[:2]
    return (np.asarray(site, float) + shifts) % np.array(specimen.cell)


def _read(crystal: Any) -> tuple[Atoms, str]:
    from ase import Atoms
    from ase.io import read

    if isinstance(crystal, Atoms):
        atoms = crystal
    else:
        try:
            atoms = read(crystal)
        except Exception as error:  # each format of ASE has errors of its own
            raise InputError(f"{crystal} cannot be read as a crystal ({error}); expected a CIF.") from None
    if atoms.cell.rank < 3:
        raise InputError("The atoms have no cell of three vectors; expected a crystal.")
    return atoms, atoms.get_chemical_formula("reduce", empirical=True)


def _orthogonal_axes(cell: Array, zone_axis: list[int]) -> npt.NDArray[np.int_]:
    """Integer combinations of lattice vectors (rows) along x, y and z; z is the zone axis."""
    if len(zone_axis) != 3 or not any(zone_axis):
        raise InputError(f"The zone axis is {zone_axis}; expected three whole numbers, not all zero.")
    axis = np.array(zone_axis) // math.gcd(*zone_axis)
    beam = axis @ cell
    span = range(-_LARGEST_INDEX, _LARGEST_INDEX + 1)
    indices = np.array([v for v in itertools.product(span, repeat=3) if any(v)])
    vectors = indices @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    flat = np.abs(vectors @ beam) <= MISFIT * lengths * np.linalg.norm(beam)
    order = np.argsort(lengths[flat], kind="stable")
    indices, vectors, lengths = (v[flat][order] for v in (indices, vectors, lengths))
    best: tuple[float, int, int] | None = None
    for i in range(len(indices)):
        if best is not None and lengths[i] ** 2 >= best[0]:
            break
        across = np.abs(vectors[i + 1 :] @ vectors[i]) <= MISFIT * lengths[i] * lengths[i + 1 :]
        if across.any():
            j = i + 1 + int(np.argmax(across))
            area = lengths[i] * lengths[j]
            best = (area, i, j) if best is None or area < best[0] - 1e-9 else best
    if best is None:
        raise InputError(
            f"The zone axis {zone_axis} has no two lattice vectors across it with right angles; choose another one."
        )
    first, second = indices[best[1]], indices[best[2]]
    first = -first if first[np.flatnonzero(first)[0]] < 0 else first
    if np.linalg.det(np.array([first, second, axis]) @ cell) < 0:
        second = -second
    return np.array([first, second, axis])


def _short(zone_axis: Sequence[int]) -> bool:
    return all(0 <= v < 10 for v in zone_axis)


def _turned(cell: Atoms, order: tuple[int, int, int]) -> Atoms:
    """An orthogonal cell with its axes in another order."""
    from ase import Atoms

    index = list(order)
    return Atoms(cell.symbols, cell.positions[:, index], cell=cell.cell.lengths()[index], pbc=True)


def _projected(atoms: Atoms) -> tuple[Array, Array]:
    """Positions (y, x) within the cell, and its size (y, x)."""
    size = atoms.cell.lengths()[[1, 0]]
    places = atoms.positions[:, [1, 0]] % size
    return np.where(places >= size, 0.0, places), size


def _columns(atoms: Atoms, width: float) -> list[npt.NDArray[np.intp]]:
    """Indices of the atoms of each column."""
    places, size = _projected(atoms)
    pairs = cKDTree(places, boxsize=size).query_pairs(width, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(atoms),) * 2)
    n, labels = connected_components(links, directed=False)
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=n))[:-1])


def _nearest_image(offset: Array, size: Array) -> Array:
    return offset - size * np.round(offset / size)


def _mean_position(atoms: Atoms, members: npt.NDArray[np.intp]) -> Array:
    places, size = _projected(atoms)
    around = places[members[0]] + _nearest_image(places[members] - places[members[0]], size)
    mean = around.mean(0)
    # A column at the border belongs to its start.
    return np.where(mean > size - 1e-4, mean - size, mean)


def _sorted(places: list[Array]) -> Array:
    array = np.round(np.array(places), 6) + 0.0
    return array[np.lexsort(array.T[::-1].round(3))]


def _heaviest(kind: str) -> int:
    from ase.data import atomic_numbers

    return atomic_numbers[kind.split("+")[0]]


def _column_at(specimen: Specimen, kind: str, site: Sequence[float]) -> tuple[tuple[float, float], Any]:
    """Where the column of a kind nearest to a site lies, and its atoms in order along the beam."""
    if kind not in specimen.sites:
        raise SiteError(f'There are no columns "{kind}"; expected one of {", ".join(specimen.sites)}.')
    size = np.array(specimen.cell)
    target = np.array([float(v) for v in site])
    distances = np.hypot(*_nearest_image(specimen.sites[kind] - target, size).T)
    nearest = int(np.argmin(distances))
    if distances[nearest] > 1.0:
        raise SiteError(
            f'The nearest column "{kind}" lies {distances[nearest]:.2f} angstrom from ({target[0]:g}, {target[1]:g}); '
            "expected one within an angstrom."
        )
    place = specimen.sites[kind][nearest]
    near = np.hypot(*_nearest_image(_projected(specimen.atoms)[0] - place, size).T) < COLUMN_WIDTH
    members = np.flatnonzero(near)
    members = members[np.argsort(specimen.atoms.positions[members, 2], kind="stable")]
    if not len(members):
        raise SiteError(f'The column "{kind}" at ({place[0]:g}, {place[1]:g}) is empty already.')
    return (float(place[0]), float(place[1])), members


def _fraction(occupancy: float) -> float:
    if not 0 <= occupancy <= 1:
        raise InputError(f"The occupancy is {occupancy}; expected 0 to 1.")
    return occupancy


def _spread(n: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Flags of n atoms of which a fraction, spread evenly, is True."""
    return np.diff(np.round(np.arange(n + 1) * fraction + 1e-9)) > 0


def _content(atoms: Atoms, members: npt.NDArray[np.intp]) -> dict[str, int]:
    symbols = np.array(atoms.get_chemical_symbols())[members]
    return {str(s): int((symbols == s).sum()) for s in sorted(set(symbols.tolist()))}


def _with(specimen: Specimen, atoms: Atoms, defect: Defect) -> Specimen:
    return replace(specimen, atoms=atoms, defects=(*specimen.defects, defect))
