"""An image as a sum of Gaussians at the sites of a lattice, and least squares for where the lattice lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN
from ..errors import SiteError
from .lattice import Drift, Lattice
from .lattice_fit import drift_basis, drift_terms
from .sites import Array

_TILE = 96
_REACH = 5.0  # sigma
# One step moves no site further than this, in angstrom: the model is linear in displacements only so far.
_LONGEST_STEP = 0.25
_SETTLED = 2e-3  # angstrom
BLUR = (0.15, 1.5)  # angstrom
_PLANE = 3  # a background that is a plane: constant, y, x


@dataclass(frozen=True)
class Model:
    """A lattice, the weight of each site of its motif (in the motif's order), and the width of its columns."""

    lattice: Lattice
    weights: Array
    blur: float


@dataclass(frozen=True)
class Fitted:
    """A model and how well it describes an image: `score`, the correlation once a plane is taken off both."""

    model: Model
    score: float


def render(model: Model, y: Array, x: Array) -> tuple[Array, Array, Array, Array]:
    """The model at probe positions (y, x), and its derivatives by a shift along y, along x, and by the blur."""
    places, weights = _placed(model, y, x)
    over_y, over_x = (axis - places[:, [k]] for k, axis in enumerate((y, x)))
    gy, gx = (np.exp(-0.5 * (d / model.blur) ** 2) for d in (over_y, over_x))
    weighted = gx * weights[:, None]
    square = model.blur**2
    image = gy.T @ weighted
    down = (gy * over_y / square).T @ weighted
    right = gy.T @ (weighted * over_x / square)
    wider = ((gy * over_y**2).T @ weighted + gy.T @ (weighted * over_x**2)) / (square * model.blur)
    return image, down, right, wider


def rendered(model: Model, image: xr.DataArray) -> Array:
    """The model at every probe position of an image."""
    plane = np.zeros(image.shape)
    for rows, columns, y, x in _tiles(image):
        plane[rows, columns] = render(model, y, x)[0]
    return plane


def refined(model: Model, image: xr.DataArray, used: npt.NDArray[np.bool_], order: int, *, steps: int = 15) -> Fitted:
    """Vectors, origin, blur and drift (degrees 2 to `order`) by Gauss-Newton steps, on the pixels that are used.

    In each step the image is a plane, the model, and the model's derivatives by its blur and by a displacement that is
    a polynomial of the position: a linear least-squares problem.
    """
    y, x = (np.asarray(image.coords[dim].values, np.float64) for dim in SCAN)
    rows, columns = np.flatnonzero(used.any(1)), np.flatnonzero(used.any(0))
    low, high = np.array([y[rows[0]], x[columns[0]]]), np.array([y[rows[-1]], x[columns[-1]]])
    centre, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-9)
    terms = len(drift_terms(order))
    if order >= 2:
        model = replace(model, lattice=_drifting(model.lattice, order, centre, half))
    for _ in range(steps):
        gram, projection = _normal_equations(model, image, used, order, centre, half)
        scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
        solution = np.linalg.lstsq(gram / np.outer(scale, scale), projection / scale, rcond=1e-10)[0] / scale
        amplitude = solution[_PLANE]
        if not amplitude > 0:
            break
        wider, moves = solution[_PLANE + 1] / amplitude, solution[_PLANE + 2 :].reshape(2, 3 + terms).T / amplitude
        longest = float(np.abs(moves).sum(axis=0).max())
        damping = min(1.0, _LONGEST_STEP / max(longest, 1e-12))
        blur = float(np.clip(model.blur + np.clip(wider, -0.1, 0.1), *BLUR))
        model = Model(_shifted(model.lattice, damping * moves, centre, half), model.weights, blur)
        if longest < _SETTLED:
            break
    return Fitted(model, score(model, image, used))


def score(model: Model, image: xr.DataArray, used: npt.NDArray[np.bool_]) -> float:
    """Correlation of an image with a model, once the best plane is taken off both; negative for the wrong sign."""
    data, shape = without_plane(image, image.values, used), without_plane(image, rendered(model, image), used)
    norm = np.sqrt((data**2).sum() * (shape**2).sum())
    return float((data * shape).sum() / norm) if norm > 0 else 0.0


def without_plane(image: xr.DataArray, values: Array, used: npt.NDArray[np.bool_]) -> Array:
    """Values about their least-squares plane, 0 where not used."""
    y, x = (np.asarray(image.coords[dim].values, np.float64) for dim in SCAN)
    over = np.stack(np.broadcast_arrays(1.0, (y - y.mean())[:, None], x - x.mean()), axis=-1)
    fit = np.linalg.lstsq(over[used], values[used], rcond=None)[0]
    return np.where(used, np.where(used, values, 0.0) - over @ fit, 0.0)


def _placed(model: Model, y: Array, x: Array) -> tuple[Array, Array]:
    """Sites that reach into a part of the scan, and their weights."""
    reach = _REACH * model.blur
    places, member = model.lattice.inside(
        (float(y.min()) - reach, float(x.min()) - reach), (float(y.max()) + reach, float(x.max()) + reach)
    )
    return places, model.weights[member]


def _tiles(image: xr.DataArray) -> Iterator[tuple[slice, slice, Array, Array]]:
    y, x = (np.asarray(image.coords[dim].values, np.float64) for dim in SCAN)
    for top in range(0, len(y), _TILE):
        for left in range(0, len(x), _TILE):
            rows, columns = slice(top, min(top + _TILE, len(y))), slice(left, min(left + _TILE, len(x)))
            yield rows, columns, y[rows], x[columns]


def _normal_equations(
    model: Model, image: xr.DataArray, used: npt.NDArray[np.bool_], order: int, centre: Array, half: Array
) -> tuple[Array, Array]:
    """Gram matrix of plane, model and derivatives, and their products with the image."""
    size = _PLANE + 2 + 2 * (3 + len(drift_terms(order)))
    gram, projection = np.zeros((size, size)), np.zeros(size)
    for rows, columns, y, x in _tiles(image):
        inside = used[rows, columns]
        if not inside.any():
            continue
        picture, down, right, wider = render(model, y, x)
        places = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[inside]
        moves = np.column_stack([np.ones(len(places)), (places - centre) / half])
        moves = np.column_stack([moves, drift_basis(places, centre, half, order, 1.0)])
        shifts = [moves * derivative[inside][:, None] for derivative in (down, right)]
        matrix = np.column_stack([moves[:, :_PLANE], picture[inside], wider[inside], *shifts])
        gram += matrix.T @ matrix
        projection += matrix.T @ image.values[rows, columns][inside]
    return gram, projection


def _drifting(lattice: Lattice, order: int, centre: Array, half: Array) -> Lattice:
    """A lattice whose drift is given over another region, as far as it was known; none before is none now."""
    known = lattice.drift
    still = replace(lattice, drift=Drift(order, centre, half, np.zeros((len(drift_terms(order)), 2))))
    if known is None:
        return still
    ticks = np.linspace(-1, 1, order + 2)
    places = known.centre + known.half * np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    basis = np.column_stack(
        [np.ones(len(places)), (places - centre) / half, drift_basis(places, centre, half, order, np.inf)]
    )
    moves = np.asarray(np.linalg.lstsq(basis, known.at(places), rcond=None)[0], np.float64)
    return _shifted(still, moves, centre, half)


def _shifted(lattice: Lattice, moves: Array, centre: Array, half: Array) -> Lattice:
    """A lattice displaced by a polynomial: its constant and linear parts go into origin and vectors."""
    slope = moves[1:3] / half[:, None]
    origin = lattice.origin + moves[0] + (lattice.origin - centre) @ slope
    vectors = lattice.vectors @ (np.eye(2) + slope)
    drift = lattice.drift
    if drift is not None:
        drift = replace(drift, coefficients=drift.coefficients + moves[3:])
    if abs(np.linalg.det(vectors)) < 0.25 * abs(np.linalg.det(lattice.vectors)):
        raise SiteError("The lattice does not settle on the image; take a larger or sharper image, or a better start.")
    return replace(lattice, vectors=vectors, origin=origin, drift=drift)
