"""Defects of known occupancy in specimens to simulate: vacancies, antisites, interstitial and displaced columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from ..columns.sites import Array
from ..errors import InputError, SiteError
from .specimens import COLUMN_WIDTH, Defect, Specimen

if TYPE_CHECKING:
    from ase import Atoms

# Furthest, in angstrom, that a column may be from the place at which it is asked for.
_REACH = 1.0
_WORDS = re.compile(r"(\w+):([\w+]+)(?:>(\w+))?@([-\d.]+),([-\d.]+)(?::([\d.]+))?")


def vacancy(specimen: Specimen, kind: str, site: Sequence[float], *, occupancy: float = 0.0) -> Specimen:
    """Take atoms out of the column of a kind nearest to a site; those that stay are spread evenly along it.

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
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> [defect] = vacancy(lifepo4(thickness=47), "Li", (5.2, 3.0), occupancy=0.5).defects
    >>> defect.site, defect.occupancy, defect.content
    ((5.166, 3.005), 0.5, {'Li': 5})
    """
    place, members = _column_at(specimen, kind, site)
    kept = _spread(len(members), _fraction(occupancy))
    atoms = specimen.atoms[np.delete(np.arange(len(specimen.atoms)), members[~kept])]
    content = _content(specimen.atoms, members[kept])
    return _with(specimen, atoms, Defect("vacancy", kind, place, float(kept.mean()), content))


def antisite(specimen: Specimen, kind: str, site: Sequence[float], *, element: str = "Fe", every: int = 2) -> Specimen:
    """Put another element in place of every n-th atom of a column, counted along the beam.

    Parameters
    ----------
    specimen, kind, site
        As for `vacancy`.
    element : str, default "Fe"
    every : int, default 2
        2 makes them alternate, 1 exchanges the whole column.

    Returns
    -------
    Specimen

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> [defect] = antisite(lifepo4(thickness=47), "Li", (5.2, 3.0)).defects
    >>> defect.occupancy, defect.content
    (0.5, {'Fe': 5, 'Li': 5})
    """
    if every < 1 or every != int(every):
        raise InputError(f"every={every} was given; expected a whole number, 1 or more.")
    place, members = _column_at(specimen, kind, site)
    exchanged = members[int(every) - 1 :: int(every)]
    atoms = specimen.atoms.copy()
    atoms.symbols[exchanged] = element
    own = 1 - len(exchanged) / len(members)
    return _with(specimen, atoms, Defect("antisite", kind, place, own, _content(atoms, members)))


def interstitial(
    specimen: Specimen, site: Sequence[float], *, element: str = "Fe", kind: str | None = None, occupancy: float = 1.0
) -> Specimen:
    """Add a column where there was none, with an atom in the middle of each repeat of the crystal along the beam.

    Parameters
    ----------
    specimen : Specimen
    site : (y, x)
        In angstrom, such as `largest_void` gives.
    element : str, default "Fe"
    kind : str, optional
        Kind of column that it counts as; by default the element.
    occupancy : float, default 1
        Fraction of the repeats that have an atom, spread evenly.

    Returns
    -------
    Specimen

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> crystal = lifepo4(thickness=47)
    >>> changed = interstitial(crystal, largest_void(crystal))
    >>> len(changed.atoms) - len(crystal.atoms), changed.defects[0].content
    (10, {'Fe': 10})
    """
    from ase import Atoms

    depth = specimen.repeat[2]
    layers = round(specimen.thickness / depth)
    z = (np.flatnonzero(_spread(layers, _fraction(occupancy))) + 0.5) * depth
    y, x = _pair(site)
    added = Atoms([element] * len(z), np.column_stack([np.full(len(z), x), np.full(len(z), y), z]))
    defect = Defect("interstitial", kind or element, (y, x), len(z) / layers, {element: len(z)})
    return _with(specimen, specimen.atoms + added, defect)


def displace(specimen: Specimen, kind: str, site: Sequence[float], by: Sequence[float]) -> Specimen:
    """Move a whole column by (y, x) in angstrom; among the `sites` of the perfect block it stays where it was.

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> [defect] = displace(lifepo4(thickness=47), "Fe", (2.9, 1.5), by=(0.0, 0.3)).defects
    >>> [round(v, 2) for v in defect.site]
    [2.92, 1.8]
    """
    (y, x), members = _column_at(specimen, kind, site)
    dy, dx = _pair(by)
    atoms = specimen.atoms.copy()
    atoms.positions[members] += (dx, dy, 0.0)
    return _with(specimen, atoms, Defect("displacement", kind, (y + dy, x + dx), 1.0, _content(atoms, members)))


def add_defect(specimen: Specimen, text: str) -> Specimen:
    """A defect from a word, as the command line has it.

    Parameters
    ----------
    specimen : Specimen
    text : str
        "vacancy:O@4.7,7.5" or, with the fraction that stays, "vacancy:O@4.7,7.5:0.5"; "antisite:Li>Fe@5.2,18" or, for
        every third atom, "antisite:Li>Fe@5.2,18:3"; "interstitial:Fe@14.2,6.8". Places are y,x in angstrom.

    Raises
    ------
    InputError
        If the text says something else.

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> add_defect(lifepo4(thickness=47), "antisite:Li>Fe@5.2,3.0").defects[0].content
    {'Fe': 5, 'Li': 5}
    """
    match = _WORDS.fullmatch(text.strip())
    if match is None:
        raise InputError(f'The defect is "{text}"; expected one such as "vacancy:O@4.7,7.5" (y,x in angstrom).')
    name, kind, element, y, x, amount = match.groups()
    site = (float(y), float(x))
    makers: dict[str, Callable[[], Specimen]] = {
        "vacancy": lambda: vacancy(specimen, kind, site, occupancy=float(amount or 0)),
        "antisite": lambda: antisite(specimen, kind, site, element=element or "Fe", every=round(float(amount or 2))),
        "interstitial": lambda: interstitial(specimen, site, element=kind, occupancy=float(amount or 1)),
    }
    if name not in makers:
        raise InputError(f'The defect is "{name}"; expected one of {", ".join(makers)}.')
    return makers[name]()


def fig4_defects(specimen: Specimen) -> Specimen:
    """The three defects of the paper's Fig. 4 in LiFePO4 [001]: an O column that is not there, a Li column of which
    every other atom is Fe, and a column of Fe in the largest void; far apart.

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> [f"{d.defect} {d.kind}" for d in fig4_defects(lifepo4(thickness=20)).defects]
    ['vacancy O', 'interstitial Fe', 'antisite Li']
    """
    height, width = specimen.cell
    lithium = specimen.sites["Li"]
    offsets = nearest_image(lithium - np.array([height / 4, 3 * width / 4]), specimen.cell)
    specimen = vacancy(specimen, "O", (4.72, 7.51))
    specimen = interstitial(specimen, largest_void(specimen, near=(0.69 * height, 0.28 * width)))
    return antisite(specimen, "Li", lithium[np.argmin(np.hypot(*offsets.T))])


def partial_columns(
    specimen: Specimen, kind: str, occupancies: Sequence[float], *, members: Sequence[int] | None = None
) -> Specimen:
    """Columns of a kind with given occupancies, as far from each other, from defects and from the border as can be.

    Parameters
    ----------
    specimen : Specimen
    kind : str
    occupancies : sequence of float
        One for each column that is changed.
    members : sequence of int, optional
        Numbers, among the sites of this kind, of the columns that may be changed; by default any.

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> changed = partial_columns(lifepo4(thickness=47), "Li", [0.2, 0.5])
    >>> [(d.occupancy, d.content) for d in changed.defects]
    [(0.2, {'Li': 2}), (0.5, {'Li': 5})]
    """
    cell = np.array(specimen.cell)
    places = specimen.sites[kind] if members is None else specimen.sites[kind][list(members)]
    # A response cannot be taken at the border of a scan.
    inside = places[((places > _REACH) & (places < cell - _REACH)).all(1)]
    for occupancy in occupancies:
        taken = np.array([d.site for d in specimen.defects]).reshape(-1, 2)
        apart = np.hypot(*np.moveaxis(nearest_image(inside[:, None] - taken, cell), -1, 0))
        best = int(np.argmax(apart.min(1))) if len(taken) else 0
        specimen = vacancy(specimen, kind, inside[best], occupancy=occupancy)
    return specimen


def largest_void(specimen: Specimen, near: Sequence[float] | None = None) -> tuple[float, float]:
    """The place (y, x) in projection that is furthest from every column of the perfect block, to 0.05 angstrom.

    Parameters
    ----------
    specimen : Specimen
    near : (y, x), optional
        Of several such places the one nearest to this is taken; by default to the centre of the block.

    Examples
    --------
    >>> from tdm_dask.simulation.specimens import lifepo4
    >>> y, x = largest_void(lifepo4(thickness=5), near=(14, 7))
    >>> bool(abs(y - 14.2) < 0.1 and abs(x - 6.8) < 0.1)
    True
    """
    cell = np.array(specimen.cell)
    columns = np.concatenate(list(specimen.sites.values())) % cell
    ny, nx = (max(1, round(length / 0.05)) for length in cell)
    grid = np.stack(np.meshgrid(np.arange(ny) / ny, np.arange(nx) / nx, indexing="ij"), -1).reshape(-1, 2) * cell
    distance = cKDTree(columns, boxsize=cell).query(grid)[0]
    places = grid[distance > distance.max() - 0.02]
    target = cell / 2 if near is None else np.asarray(near, float)
    y, x = places[np.argmin(np.hypot(*nearest_image(places - target, cell).T))]
    return float(y), float(x)


def nearest_image(offset: Array, cell: Any) -> Array:
    """Offsets (..., 2) between places of a periodic block, to the nearest image."""
    return offset - np.asarray(cell) * np.round(offset / np.asarray(cell))


def _column_at(specimen: Specimen, kind: str, site: Sequence[float]) -> tuple[tuple[float, float], Any]:
    """Where the column of a kind nearest to a site lies, and its atoms in order along the beam."""
    if kind not in specimen.sites:
        raise SiteError(f'There are no columns "{kind}"; expected one of {", ".join(specimen.sites)}.')
    target = np.array(_pair(site))
    distances = np.hypot(*nearest_image(specimen.sites[kind] - target, specimen.cell).T)
    nearest = int(np.argmin(distances))
    if distances[nearest] > _REACH:
        raise SiteError(
            f'The nearest column "{kind}" lies {distances[nearest]:.2f} angstrom from ({target[0]:g}, {target[1]:g}); '
            f"expected one within {_REACH:g}."
        )
    place = specimen.sites[kind][nearest]
    offsets = nearest_image(specimen.atoms.positions[:, [1, 0]] - place, specimen.cell)
    members = np.flatnonzero(np.hypot(*offsets.T) < COLUMN_WIDTH)
    members = members[np.argsort(specimen.atoms.positions[members, 2], kind="stable")]
    if not len(members):
        raise SiteError(f'The column "{kind}" at ({place[0]:g}, {place[1]:g}) is empty already.')
    return (float(place[0]), float(place[1])), members


def _pair(values: Sequence[float]) -> tuple[float, float]:
    numbers = [float(v) for v in values]
    if len(numbers) != 2 or not np.isfinite(numbers).all():
        raise SiteError(f"The place is {values!r}; expected (y, x) in angstrom.")
    return numbers[0], numbers[1]


def _fraction(occupancy: float) -> float:
    if not 0 <= occupancy <= 1:
        raise InputError(f"The occupancy is {occupancy}; expected 0 to 1.")
    return occupancy


def _spread(n: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Flags of n atoms of which a fraction, spread evenly, is True."""
    return np.diff(np.floor(np.arange(n + 1) * fraction + 0.5)) > 0


def _content(atoms: Atoms, members: npt.NDArray[np.intp]) -> dict[str, int]:
    symbols = [atoms.symbols[int(m)] for m in members]
    return {s: symbols.count(s) for s in sorted(set(symbols))}


def _with(specimen: Specimen, atoms: Atoms, defect: Defect) -> Specimen:
    return replace(specimen, atoms=atoms, defects=(*specimen.defects, defect))
