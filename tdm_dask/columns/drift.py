"""A slow displacement of a lattice, as polynomials of the position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import SiteError
from .sites import Array

# Beyond the columns that it was fitted to, by this part of half their extent, a drift stays what it is.
_BEYOND = 1.1


@dataclass(frozen=True, eq=False)
class Drift:
    r"""A slow displacement of a lattice: polynomials of degree 2 to `order` (degrees 0 and 1 are origin and vectors).

    .. math:: u(y, x) = \sum_{2 \le i + j \le n} c_{ij} P_i(\eta) P_j(\xi)

    with Legendre polynomials of :math:`\eta, \xi`, which are (y, x) about `centre` in units of `half`, held at 1.1
    beyond the fitted region.

    Attributes
    ----------
    order : int
    centre, half : array (2,)
        In angstrom.
    coefficients : array (terms, 2)
        In angstrom, in the order of :func:`drift_terms`.
    """

    order: int
    centre: Array
    half: Array
    coefficients: Array

    def __post_init__(self) -> None:
        terms = len(drift_terms(self.order))
        for name, shape in (("centre", (2,)), ("half", (2,)), ("coefficients", (terms, 2))):
            object.__setattr__(self, name, fixed(getattr(self, name), shape, f"The {name} of the drift"))

    @property
    def largest(self) -> float:
        """No displacement along y or x is larger than this, in angstrom."""
        edge = drift_basis(self.centre + 2 * self.half[None], self.centre, self.half, self.order)
        return float((edge @ np.abs(self.coefficients)).max(initial=0.0))

    def at(self, positions: npt.ArrayLike) -> Array:
        """Displacements (n, 2) in angstrom of undrifted positions (n, 2)."""
        points = np.asarray(positions, np.float64)
        return drift_basis(points, self.centre, self.half, self.order) @ self.coefficients


def drift_terms(order: int) -> list[tuple[int, int]]:
    """Degrees along y and x of the polynomials of a drift: of a total from 2 to `order`.

    Examples
    --------
    >>> drift_terms(2)
    [(0, 2), (1, 1), (2, 0)]
    """
    return [(i, total - i) for total in range(2, order + 1) for i in range(total + 1)]


def drift_basis(positions: Array, centre: Array, half: Array, order: int, beyond: float = _BEYOND) -> Array:
    """Legendre polynomials (n, terms) at positions, which are scaled to [-1, 1] and held at `beyond`."""
    u = np.clip((positions - centre) / half, -beyond, beyond)
    one = [np.polynomial.legendre.legvander(u[:, k], max(order, 0)) for k in (0, 1)]
    terms = drift_terms(order)
    return np.stack([one[0][:, i] * one[1][:, j] for i, j in terms], axis=1) if terms else np.empty((len(u), 0))


def ideal_positions(
    positions: Array, centre: Array, half: Array, coefficients: Array, order: int, beyond: float = _BEYOND
) -> Array:
    """Where positions would be without the drift, which is given over undrifted positions: by iteration."""
    ideal = positions
    for _ in range(12 if order >= 2 else 0):
        ideal = positions - drift_basis(ideal, centre, half, order, beyond) @ coefficients
    return ideal


def fixed(values: npt.ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    """A float64 copy that cannot be written to."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise SiteError(f"{what} is no array of numbers; expected shape {shape}.") from None
    if array.ndim != len(shape) or any(s not in (-1, n) for s, n in zip(shape, array.shape, strict=True)):
        raise SiteError(f"{what} has shape {array.shape}; expected {shape}.")
    if not np.isfinite(array).all():
        raise SiteError(f"{what} holds values that are not finite.")
    array.flags.writeable = False
    return array
