"""Atom columns of a crystal seen along a zone axis: a CIF projected to a lattice with a motif."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from ..axes import quantity
from ..errors import SiteError
from .lattice import Lattice
from .periodicity import reduced
from .sites import Array

Content = dict[str, float]

# Atoms this near in projection, in angstrom, are the same site: coordinates in files are rounded.
_SAME = 0.02


def sites_from_cif(
    cif: str | Path,
    zone_axis: Sequence[int],
    *,
    tolerance: float | str = 0.35,
    down: Sequence[int] | None = None,
) -> Lattice:
    """The atom columns of a crystal seen along a zone axis, as a lattice with a motif.

    The CIF is read with its symmetry by ASE, and every atom projected along the zone axis. Atoms within `tolerance` of
    each other in projection are one column.

    Parameters
    ----------
    cif : str or pathlib.Path
        A CIF file.
    zone_axis : three integers
        Direction [u v w] of the crystal that points from the specimen to the electron source.
    tolerance : float (angstrom) or str, default 0.35
        Atoms of a column are at most this far apart in projection. The default is below what a probe of an atomically
        resolved scan tells apart, and takes the O at 0.32 angstrom from Ti in PbTiO3 [100] into the column "Ti+O".
    down : three integers, optional
        Direction of the crystal whose projection points along +y, downwards in the image. Default: the
        crystal's a, or b where a is the zone axis. :func:`tdm_dask.register_sites` turns the lattice as
        the image shows it.

    Returns
    -------
    Lattice
        Vectors of the smallest cell of the projection in angstrom, x to the right and y down as seen from the source,
        origin (0, 0). Kinds are named by the elements in projection, the heaviest first: "P+O". A mixed column lies
        where its heaviest element does. `columns` holds the atoms of each element per `period`, occupancies counted.

    Raises
    ------
    SiteError
        If the file is no CIF that ASE reads, or the zone axis is zero or `down` parallel to it.

    Examples
    --------
    >>> import os, tempfile
    >>> text = '''data_NaCl
    ... _cell_length_a 5.64
    ... _cell_length_b 5.64
    ... _cell_length_c 5.64
    ... _cell_angle_alpha 90
    ... _cell_angle_beta 90
    ... _cell_angle_gamma 90
    ... _symmetry_space_group_name_H-M 'F m -3 m'
    ... loop_
    ... _atom_site_type_symbol
    ... _atom_site_fract_x
    ... _atom_site_fract_y
    ... _atom_site_fract_z
    ... Na 0 0 0
    ... Cl 0.5 0.5 0.5
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "NaCl.cif")
    ...     with open(path, "w") as file:
    ...         _ = file.write(text)
    ...     lattice = sites_from_cif(path, (1, 1, 0))
    >>> lattice
    Lattice(a=(1.994, 2.820), b=(-1.994, 2.820) angstrom, origin=(0.000, 0.000), Cl: 1, Na: 1)
    """
    near = quantity(tolerance, "angstrom", "tolerance")
    zone = _direction(zone_axis, "zone axis")
    cell, fractions, contents = _atoms(Path(cif))
    frame = _frame(cell, zone, down)
    # Lattice vectors across the zone axis, in the plane of the image: their cell times the period holds all atoms once.
    plane = reduced((_basis_along(zone)[1:] @ cell) @ frame.T)
    places = (fractions @ cell) @ frame.T @ np.linalg.inv(plane) % 1.0
    columns = columns_in_projection(places, plane, contents, near)
    vectors, columns = _smallest_cell(plane, columns)
    motif: dict[str, list[Array]] = {}
    content: dict[str, list[Content]] = {}
    for place, atoms in sorted(columns, key=lambda column: [-atomic_numbers(e)[e] for e in column[1]]):
        motif.setdefault("+".join(atoms), []).append(place)
        content.setdefault("+".join(atoms), []).append(atoms)
    arrays = {kind: np.array(places) for kind, places in motif.items()}
    return Lattice(vectors, arrays, np.zeros(2), None, content, float(np.linalg.norm(zone @ cell)))


def atomic_numbers(kind: str) -> dict[str, int]:
    """Elements named by a kind of column such as "P+O", and their atomic numbers; empty where it names none.

    Examples
    --------
    >>> atomic_numbers("P+O"), atomic_numbers("site 1")
    ({'P': 15, 'O': 8}, {})
    """
    from ase.data import atomic_numbers as numbers

    names = [name.strip() for name in kind.split("+")]
    return {name: int(numbers[name]) for name in names} if all(name in numbers for name in names) else {}


def _direction(direction: Sequence[int], what: str) -> npt.NDArray[np.int64]:
    values = np.asarray(direction)
    if values.shape != (3,) or values.dtype.kind not in "iuf" or not np.array_equal(values, np.rint(values)):
        raise SiteError(f"The {what} is {direction!r}; expected three integers, such as (0, 0, 1).")
    whole = values.astype(np.int64)
    if not whole.any():
        raise SiteError(f"The {what} is (0, 0, 0), which is no direction; give the indices of the direction.")
    return whole // math.gcd(*map(int, whole))


def _atoms(path: Path) -> tuple[Array, Array, list[Content]]:
    """Cell (3, 3), fractional positions (n, 3), and for each site its elements with their occupancies."""
    from ase.io import read

    if not path.is_file():
        raise SiteError(f"There is no file {path}; expected a CIF.")
    try:
        with warnings.catch_warnings():
            # ASE warns of settings that it takes from the symmetry operations itself.
            warnings.simplefilter("ignore")
            atoms: Any = read(path, format="cif", fractional_occupancies=True)
    except Exception as error:  # ASE's parser raises whatever it stumbles over
        raise SiteError(f"{path} cannot be read as a CIF ({type(error).__name__}: {error}).") from None
    if len(atoms) == 0 or abs(atoms.cell.volume) < 1e-6:
        raise SiteError(f"{path} holds {len(atoms)} atoms in {atoms.cell.volume:g} cubic angstrom; that is no crystal.")
    occupied = atoms.info.get("occupancy") or {}
    kinds = atoms.arrays.get("spacegroup_kinds", np.full(len(atoms), -1))
    contents = []
    for kind, symbol in zip(kinds, atoms.get_chemical_symbols(), strict=True):
        content = occupied.get(str(kind)) or {symbol: 1.0}
        contents.append({str(element): float(part) for element, part in content.items()})
    return np.array(atoms.cell), atoms.get_scaled_positions(), contents


def _frame(cell: Array, zone: npt.NDArray[np.int64], down: Sequence[int] | None) -> Array:
    """Unit vectors (2, 3) of the image's y, downwards, and x, to the right, the zone axis pointing at the viewer."""
    beam = zone @ cell
    beam = beam / np.linalg.norm(beam)
    if down is None:
        chosen = cell[0] if np.any(np.cross(zone, (1, 0, 0))) else cell[1]
    else:
        chosen = _direction(down, "direction down") @ cell
    across = chosen - (chosen @ beam) * beam
    if np.linalg.norm(across) < 1e-6 * np.linalg.norm(chosen):
        raise SiteError(f"The direction down, {down}, is parallel to the zone axis; choose one across it.")
    y = across / np.linalg.norm(across)
    return np.array([y, np.cross(beam, y)])


def _basis_along(zone: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Integer vectors (3, 3), the first the zone axis, that generate the whole lattice: Bezout's identity, twice."""
    u, v, w = map(int, zone)
    first, s, t = _bezout(u, v)
    _, x, y = _bezout(first, w)
    one = np.array([[s, -v // first if first else 0, 0], [t, u // first if first else 1, 0], [0, 0, 1]])
    if first == 0:
        one[0, 0] = 1
    two = np.array([[x, 0, -w], [0, 1, 0], [y, 0, first]])
    return np.rint(np.linalg.inv(one @ two)).astype(np.int64)


def _bezout(a: int, b: int) -> tuple[int, int, int]:
    """Greatest common divisor g >= 0, and s, t with s a + t b = g."""
    s, t, previous = (1, 0), (0, 1), (a, b)
    while previous[1]:
        q = previous[0] // previous[1]
        previous = (previous[1], previous[0] - q * previous[1])
        s, t = (s[1], s[0] - q * s[1]), (t[1], t[0] - q * t[1])
    sign = -1 if previous[0] < 0 else 1
    return sign * previous[0], sign * s[0], sign * t[0]


def columns_in_projection(
    places: Array, plane: Array, contents: list[Content], tolerance: float
) -> list[tuple[Array, Content]]:
    """Atom columns of a cell of a crystal in projection.

    Parameters
    ----------
    places : array (n, 2)
        Atoms, in fractions of the plane's cell.
    plane : array (2, 2)
        Vectors (y, x) of that cell as rows, in angstrom.
    contents : list of dict
        Elements of each atom with their occupancies.
    tolerance : float
        Atoms of a column are at most so far apart, in angstrom.

    Returns
    -------
    list of (array (2,), dict)
        Position, in fractions of the cell, and content of each column; elements by descending atomic number.
    """
    if len(places) == 1:
        cluster = np.array([1])
    else:
        apart = places[:, None] - places
        off = (apart - np.rint(apart)) @ plane
        distance = np.hypot(off[..., 0], off[..., 1])
        # Complete linkage: no two atoms of a column are further apart than the tolerance.
        cluster = fcluster(linkage(squareform(distance, checks=False), "complete"), tolerance, "distance")
    columns = []
    for number in np.unique(cluster):
        members = np.flatnonzero(cluster == number)
        total: Content = {}
        for m in members:
            for element, part in contents[m].items():
                total[element] = total.get(element, 0.0) + part
        ordered = {e: round(total[e], 9) for e in sorted(total, key=lambda e: -atomic_numbers(e)[e])}
        heaviest = next(iter(ordered))
        heavy = places[[m for m in members if heaviest in contents[m]]]
        columns.append((heavy[0] + (heavy - heavy[0] - np.rint(heavy - heavy[0])).mean(axis=0), ordered))
    return columns


def _smallest_cell(plane: Array, columns: list[tuple[Array, Content]]) -> tuple[Array, list[tuple[Array, Content]]]:
    """The vectors of the smallest cell that repeats the columns, and the columns in it."""
    labels = [tuple(content.items()) for _, content in columns]
    rarest = min(set(labels), key=lambda label: (labels.count(label), label))
    places = np.array([place for place, _ in columns])
    first = labels.index(rarest)
    shifts = [places[n] - places[first] for n, label in enumerate(labels) if label == rarest]
    valid = [shift for shift in shifts if _repeats(shift, places, labels, plane)]
    whole = np.array(list(itertools.product((-1, 0, 1), repeat=2)))
    moves = (np.array(valid)[:, None] + whole).reshape(-1, 2)
    moves = moves[np.argsort(((moves @ plane) ** 2).sum(1), kind="stable")][1:]
    basis = next(
        np.array(pair)
        for pair in itertools.combinations(moves, 2)
        if abs(abs(np.linalg.det(np.array(pair))) * len(valid) - 1) < 1e-2
    )
    vectors = reduced(basis @ plane)
    kept: list[tuple[Array, Content]] = []
    for (_, content), place in zip(columns, places @ plane @ np.linalg.inv(vectors) % 1.0, strict=True):
        apart = np.array([place - other for other, known in kept if known == content]).reshape(-1, 2)
        off = (apart - np.rint(apart)) @ vectors
        if not (np.hypot(*off.T) < _SAME).any():
            kept.append((np.where(place > 1 - 1e-6, 0.0, place), content))
    return vectors, kept


def _repeats(shift: Array, places: Array, labels: list[Any], plane: Array) -> bool:
    """Whether a shift brings every column onto one of the same content."""
    apart = (places + shift)[:, None] - places
    off = (apart - np.rint(apart)) @ plane
    same = np.array([[a == b for b in labels] for a in labels])
    return bool(((np.hypot(off[..., 0], off[..., 1]) < _SAME) & same).any(axis=1).all())
