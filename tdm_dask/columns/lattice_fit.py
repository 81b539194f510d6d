"""A lattice with a motif, fitted to positions of columns: which column is which, and least squares. Plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial import cKDTree
from scipy.spatial.distance import squareform

from ..errors import SiteError
from .drift import drift_basis, drift_terms, ideal_positions
from .sites import Array

Index = npt.NDArray[np.int64]

# The fit starts in a window of this many of the longer vector, and the window grows by this factor at a time.
_FIRST_RADIUS = 2.6
_GROWTH = 1.3
_VOTERS = 60
_MOST_ORIGINS, _NEARLY = 5, 0.8
# Of the cells of the middle, the part in which a column must be seen to belong to the motif.
_PRESENT = 0.5
# Columns further off than this many standard deviations (from the median of all) are no part of the lattice.
_OUTLIERS = 5.0


@dataclass(frozen=True)
class Fit:
    """A fitted lattice: vectors (2, 2), origin (2,), coefficients of the drift (terms, 2) about a centre, and columns.

    `cells` (n, 2) and `member` (n,) say which site of the lattice each column is, `used` (n,) whether it is one at all,
    `residuals` (n, 2) how far it is off. `rivals` are other origins at which as many columns would have fitted.
    """

    vectors: Array
    origin: Array
    centre: Array
    half: Array
    coefficients: Array
    cells: Index
    member: Index
    used: npt.NDArray[np.bool_]
    residuals: Array
    rivals: Array


def motif_spacing(vectors: Array, motif: Array) -> float:
    """The smallest distance between sites of a lattice."""
    cells = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    places = ((motif[:, None] % 1.0) + cells).reshape(-1, 2) @ vectors
    distance = cKDTree(places).query((motif % 1.0) @ vectors, k=2)[0][:, 1]
    return float(distance.min())


def fit_lattice(
    peaks: Array,
    allowed: npt.NDArray[np.bool_],
    vectors: Array,
    motif: Array,
    kind_of: Index,
    *,
    origin: Array | None,
    order: int,
    tolerance: float,
) -> Fit:
    """Assign columns to the sites of a lattice and fit the lattice to them, from a small window outwards.

    Parameters
    ----------
    peaks : array (n, 2)
    allowed : array (n, m) of bool
        Which of the m sites of the motif a column may be.
    vectors, motif : array (2, 2), (m, 2)
        To start from: rows in angstrom; fractions of them.
    kind_of : array (m,)
        Number of the kind of each site of the motif: origins that differ in no site of any kind are the same.
    origin : array (2,), optional
        To start from. Default: that at which the most columns of the first window lie on sites, every column taken for
        every site in turn; of those that do nearly as well, the one that fits all columns best.
    order : int
        Highest degree of the polynomials of the drift; below 2 there is none.
    tolerance : float
        A column within this distance of a site may be it.

    Raises
    ------
    SiteError
        If too few columns lie on sites.
    """
    order = order if order >= 2 else 0
    start = peaks[np.argmin(((peaks - np.median(peaks, axis=0)) ** 2).sum(1))]
    distance = np.hypot(*(peaks - start).T)
    radius = _FIRST_RADIUS * float(np.hypot(*vectors.T).max())
    near = distance <= radius
    if origin is None:
        origins = _vote(peaks[near], allowed[near], vectors, motif, kind_of, start, tolerance)
    else:
        origins = [origin]
    fits = []
    for place in origins:
        state = _State(vectors, place, start, np.ones(2), np.zeros((len(drift_terms(order)), 2)), order)
        try:
            fits.append(_grown(peaks, allowed, motif, state, distance, radius, tolerance))
        except SiteError:
            if len(origins) == 1:
                raise
    if not fits:
        raise SiteError("No origin lays the lattice on the columns; check vectors and motif, or find more columns.")
    off = [np.minimum((f.residuals**2).sum(1), tolerance**2).sum() for f in fits]
    best = int(np.argmin(off))
    # Sums of squares of n columns scatter by about one over the root of n.
    close = off <= off[best] * (1 + 3 / np.sqrt(len(peaks))) + 1e-9 * tolerance**2
    rivals = [f.origin for n, f in enumerate(fits) if close[n] and n != best]
    return replace(fits[best], rivals=np.reshape(rivals, (-1, 2)))


def _grown(
    peaks: Array,
    allowed: npt.NDArray[np.bool_],
    motif: Array,
    state: _State,
    distance: Array,
    radius: float,
    tolerance: float,
) -> Fit:
    """The fit in ever larger windows, up to all columns."""
    while True:
        near = distance <= radius
        state = _adapted(peaks[near], allowed[near], motif, state, tolerance)
        if near.all():
            break
        radius *= _GROWTH
    cells, member, off = state.assigned(peaks, allowed, motif)
    where = (state.vectors, state.origin, state.centre, state.half, state.coefficients)
    return Fit(*where, cells, member, _fitting(off, tolerance), off, np.empty((0, 2)))


@dataclass(frozen=True)
class _State:
    vectors: Array
    origin: Array
    centre: Array
    half: Array
    coefficients: Array
    order: int

    def assigned(self, peaks: Array, allowed: npt.NDArray[np.bool_], motif: Array) -> tuple[Index, Index, Array]:
        """Cell and site of the motif of each column, and how far it lies from that site."""
        # Inside a growing window a drift goes on as it began.
        ideal = ideal_positions(peaks, self.centre, self.half, self.coefficients, self.order, 2.0)
        fraction = (ideal - self.origin) @ np.linalg.inv(self.vectors)
        apart = fraction[:, None] - motif
        cells = np.rint(apart)
        off = (apart - cells) @ self.vectors
        length = np.where(allowed, np.hypot(off[..., 0], off[..., 1]), np.inf)
        member = length.argmin(axis=1)
        row = np.arange(len(peaks))
        return cells[row, member].astype(np.int64), member.astype(np.int64), off[row, member]


def _adapted(peaks: Array, allowed: npt.NDArray[np.bool_], motif: Array, state: _State, tolerance: float) -> _State:
    """Assign and solve in turn until the assignment stays."""
    before = None
    for _ in range(10):
        cells, member, residuals = state.assigned(peaks, allowed, motif)
        used = _fitting(residuals, tolerance)
        index = (cells + motif[member])[used]
        state = _solved(peaks[used], index, state, len(peaks), tolerance)
        now = (cells.tobytes(), member.tobytes(), used.tobytes())
        if now == before:
            break
        before = now
    return state


def _fitting(residuals: Array, tolerance: float) -> npt.NDArray[np.bool_]:
    """Columns that lie on sites: within the tolerance, and no outliers among those that do."""
    length = np.hypot(*residuals.T)
    used = length <= tolerance
    if used.any():
        # The median of a Rayleigh distribution is 1.18 times the standard deviation along one axis.
        used &= length <= max(_OUTLIERS * float(np.median(length[used])) / 1.18, 0.2 * tolerance)
    return used


def _solved(peaks: Array, index: Array, state: _State, seen: int, tolerance: float) -> _State:
    terms = len(drift_terms(state.order))
    if len(peaks) < 4 or np.linalg.matrix_rank(index - index.mean(0), tol=1e-6) < 2:
        raise SiteError(
            f"Only {len(peaks)} of {seen} columns lie within {tolerance:.3g} angstrom of sites of the lattice, or all "
            "on one line; check vectors and motif, or find more columns."
        )
    order = state.order
    if len(peaks) < 3 * (3 + terms):
        order = 0  # the drift waits until the window holds enough columns
    linear = np.column_stack([np.ones(len(peaks)), index])
    vectors, origin, coefficients = state.vectors, state.origin, np.zeros((terms, 2))
    # The first guess of the drift's arguments holds no drift.
    ideal = origin + index @ vectors if order == 0 else peaks
    centre = (ideal.min(0) + ideal.max(0)) / 2
    half = np.maximum(np.ptp(ideal, axis=0) / 2, 1e-9)
    for _ in range(1 if order == 0 else 4):
        matrix = np.column_stack([linear, drift_basis(ideal, centre, half, order, 2.0)])
        solution = np.linalg.lstsq(matrix, peaks, rcond=None)[0]
        origin, vectors = solution[0], solution[1:3]
        if order:
            coefficients = solution[3:]
            ideal = origin + index @ vectors
    return _State(vectors, origin, centre, half, coefficients, state.order)


def _vote(
    peaks: Array,
    allowed: npt.NDArray[np.bool_],
    vectors: Array,
    motif: Array,
    kind_of: Index,
    start: Array,
    tolerance: float,
) -> list[Array]:
    """The origin at which the most columns lie on sites, and others that do nearly as well."""
    if len(peaks) < 4:
        raise SiteError(
            f"There are {len(peaks)} columns within {_FIRST_RADIUS:g} periods of the middle; a lattice needs 4 or more."
        )
    inverse = np.linalg.inv(vectors)
    order = np.argsort(((peaks - start) ** 2).sum(1))
    voters = order[:_VOTERS]
    who, site = np.nonzero(allowed[voters])
    origins = peaks[voters[who]] - motif[site] @ vectors
    score = np.empty(len(origins))
    for n, origin in enumerate(origins):
        apart = ((peaks - origin) @ inverse)[:, None] - motif
        off = (apart - np.rint(apart)) @ vectors
        square = np.where(allowed, (off**2).sum(-1), np.inf).min(1)
        score[n] = np.maximum(0.0, 1 - square / tolerance**2).sum()
    found: list[Array] = []
    for n in np.argsort(-score, kind="stable"):
        if score[n] < _NEARLY * score.max() or len(found) == _MOST_ORIGINS:
            break
        if not any(_same(origins[n] - o, motif, kind_of, vectors, tolerance) for o in found):
            found.append(origins[n])
    return found


def _same(shift: Array, motif: Array, kind_of: Index, vectors: Array, tolerance: float) -> bool:
    """Whether a shift of the origin brings every site of the motif onto one of its kind."""
    apart = (motif + shift @ np.linalg.inv(vectors))[:, None] - motif
    off = (apart - np.rint(apart)) @ vectors
    near = (np.hypot(off[..., 0], off[..., 1]) < tolerance) & (kind_of[:, None] == kind_of)
    return bool(near.any(axis=1).all())


def folded(peaks: Array, vectors: Array, apart: float) -> Array:
    """Fractional positions of the columns of one cell: clusters of folded peaks that occur in most cells."""
    if len(peaks) < 4:
        raise SiteError(f"Only {len(peaks)} columns were found in the middle of the image; a lattice needs at least 4.")
    fraction, cluster = _folded_clusters(peaks, vectors, apart)
    area = np.ptp(peaks, axis=0).prod() * np.pi / 4
    cells = max(area / abs(np.linalg.det(vectors)), 1.0)
    places = []
    for number in np.unique(cluster):
        members = fraction[cluster == number]
        if len(members) >= _PRESENT * min(cells, np.bincount(cluster).max()):
            places.append(_middle(members))
    if not places:
        raise SiteError("The columns of the image do not repeat with its period; give the vectors, or a sharper image.")
    return np.array(places)


def places_in_cell(places: Array, vectors: Array, apart: float) -> Array:
    """Fractional positions of the columns of one cell, from any of them: those nearer than `apart` are the same.

    Examples
    --------
    >>> places_in_cell(np.array([[1.0, 1.0], [5.1, 1.0], [3.0, 3.0]]), 4.0 * np.eye(2), 0.5).round(4).tolist()
    [[0.2625, 0.25], [0.75, 0.75]]
    """
    if len(places) == 1:
        return _folded(places, vectors)
    fraction, cluster = _folded_clusters(places, vectors, apart)
    return np.array([_middle(fraction[cluster == number]) for number in np.unique(cluster)])


def _folded(places: Array, vectors: Array) -> Array:
    return np.asarray((places @ np.linalg.inv(vectors)) % 1.0)


def _folded_clusters(places: Array, vectors: Array, apart: float) -> tuple[Array, npt.NDArray[np.int32]]:
    """Fractional positions in one cell, and the number of the cluster that each belongs to."""
    fraction = _folded(places, vectors)
    off = fraction[:, None] - fraction
    off = (off - np.rint(off)) @ vectors
    distance = np.hypot(off[..., 0], off[..., 1])
    return fraction, fcluster(linkage(squareform(distance, checks=False), "average"), apart, "distance")


def _middle(members: Array) -> Array:
    """The median of fractional positions that may lie on either side of a border of the cell."""
    return np.asarray(np.median(members - np.rint(members - members[0]), axis=0))
