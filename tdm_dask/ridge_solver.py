r"""Ridge masks from second moments, and what they would do on parts of the scan that they have not seen.

With :math:`C` the correlation matrix of q detector pixels and :math:`\rho_t` their correlations with template t, the
ridge mask of the standardised counts solves :math:`(C + \lambda N) w_t = \rho_t`, where N is 1 or, on request, a
diagonal of the pixels' expected noise. Everything here is plain arrays in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SecondMoments:
    """Moments of some variables over some probe positions: here, pixels followed by templates.

    Attributes
    ----------
    n : int
        Probe positions.
    mean : array (z,)
    products : array (z, z)
        Sums of products of deviations from the mean.
    """

    n: int
    mean: Array
    products: Array

    def __add__(self, other: SecondMoments) -> SecondMoments:
        """Of both parts, by the rule of Chan, Golub and LeVeque (1979)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        between = np.outer(delta, delta) * (self.n * other.n / n)
        return SecondMoments(n, self.mean + delta * (other.n / n), self.products + other.products + between)

    def __sub__(self, part: SecondMoments) -> SecondMoments:
        """Of the probe positions that are not in a part."""
        n = self.n - part.n
        mean = (self.n * self.mean - part.n * part.mean) / n
        delta = part.mean - mean
        between = np.outer(delta, delta) * (n * part.n / self.n)
        return SecondMoments(n, mean, self.products - part.products - between)

    def of(self, weights: Array, offset: Array) -> SecondMoments:
        """Of weighted sums of the variables, ``weights @ (z - offset)``."""
        return SecondMoments(self.n, weights @ (self.mean - offset), weights @ self.products @ weights.T)

    def correlations(self) -> tuple[Array, Array]:
        """Correlation matrix, 0 beside the diagonal of what is constant, and the standard deviations."""
        std = np.sqrt(np.maximum(np.diag(self.products), 0.0) / self.n)
        # What is constant has deviations by rounding alone.
        std[std <= 1e-7 * np.abs(self.mean)] = 0.0
        inverse = np.divide(1.0, std, where=std > 0, out=np.zeros(len(std)))
        return self.products * inverse[:, None] * inverse / self.n, std


@dataclass(frozen=True)
class RidgePath:
    """Ridge masks of the standardised counts for several lambda at once.

    Attributes
    ----------
    mean, std : array (q,)
        Of the pixels.
    rho : array (t, q)
        Correlations of the pixels with the templates.
    lambdas : sequence of float
    weights : array (lambda, t, q)
    """

    mean: Array
    std: Array
    rho: Array
    lambdas: Sequence[float]
    weights: Array


def pearson_path(moments: SecondMoments, pixels: int) -> RidgePath:
    """The Pearson masks, as a path: what ridge masks become, but for their scale, where lambda is infinite."""
    correlation, std = moments.correlations()
    rho = correlation[pixels:, :pixels]
    return RidgePath(moments.mean[:pixels], std[:pixels], rho, (np.inf,), rho[None])


def ridge_path(
    moments: SecondMoments,
    pixels: int,
    lambdas: Sequence[float],
    noise: Array | None = None,
    *,
    separate: bool = False,
) -> RidgePath:
    r"""Ridge masks for every lambda from one eigendecomposition.

    Parameters
    ----------
    moments : SecondMoments
        Of `pixels` detector pixels, followed by the templates.
    pixels : int
    lambdas : sequence of float
        In units of the diagonal of C, which is 1.
    noise : array (q,), optional
        The diagonal N, above 0. 1 by default.
    separate : bool, default False
        Whether the masks are combined so that the response to the other templates is zero: an image, as a sum of the
        templates and a rest that correlates with none, then has coefficients of 0 for all templates but its own. With
        :math:`P = \rho W^T` the responses of the masks W and G the templates' own correlations, that is
        :math:`G P^{-1} W`, which solves the ridge problem under these constraints.
    """
    correlation, std = moments.correlations()
    matrix, rho, between = correlation[:pixels, :pixels], correlation[pixels:, :pixels], correlation[pixels:, pixels:]
    scale = np.ones(pixels) if noise is None else 1.0 / np.sqrt(noise)
    values, vectors = eigh(matrix * scale[:, None] * scale, check_finite=False, driver="evd")
    values = np.maximum(values, 0.0)  # below 0 by rounding alone
    projected = (rho * scale) @ vectors
    weights = np.empty((len(lambdas), *rho.shape))
    for n, penalty in enumerate(lambdas):
        weights[n] = (projected / (values + penalty)) @ vectors.T * scale
        if separate:
            weights[n] = between @ np.linalg.solve(rho @ weights[n].T, weights[n])
    return RidgePath(moments.mean[:pixels], std[:pixels], rho, tuple(lambdas), weights)


def read_on(part: SecondMoments, path: RidgePath) -> list[SecondMoments]:
    """Moments of the images of masks and of the templates, over probe positions that they may not have seen.

    One for each lambda; the images, standardised by the mean and standard deviation of the masks, come first.
    """
    pixels = len(path.std)
    inverse = np.divide(1.0, path.std, where=path.std > 0, out=np.zeros(pixels))
    templates = len(path.rho)
    offset = np.concatenate([path.mean, np.zeros(templates)])
    moments = []
    for masks in path.weights:
        weights = np.zeros((2 * templates, pixels + templates))
        weights[:templates, :pixels] = masks * inverse
        weights[templates:, pixels:] = np.eye(templates)
        moments.append(part.of(weights, offset))
    return moments


def response(moments: SecondMoments) -> tuple[Array, Array]:
    """R (image, template) and G (template, template) from moments of images and templates."""
    correlation, _ = moments.correlations()
    templates = len(correlation) // 2
    return correlation[:templates, templates:], correlation[templates:, templates:]


def held_out(
    blocks: Sequence[SecondMoments],
    pixels: int,
    lambdas: Sequence[float],
    noise: Array | None = None,
    *,
    separate: bool = False,
) -> tuple[Array, Array]:
    """R and G of images whose every block was made by masks of all other blocks.

    The images of all blocks are pooled before they are correlated, for correlations over a single block are few.

    Returns
    -------
    r, g : array (lambda, t, t)
        Images against templates, templates against templates.
    """
    whole = functools.reduce(SecondMoments.__add__, blocks)
    pooled: list[SecondMoments] | None = None
    for block in blocks:
        path = ridge_path(whole - block, pixels, lambdas, noise, separate=separate)
        parts = read_on(block, path)
        pooled = parts if pooled is None else [a + b for a, b in zip(pooled, parts, strict=True)]
    assert pooled is not None
    found = [response(part) for part in pooled]
    return np.array([r for r, _ in found]), np.array([g for _, g in found])


def conjugate_gradients_step(
    products: Array, directions: Array, residuals: Array, solution: Array
) -> tuple[Array, Array, Array]:
    """One step of block conjugate gradients (O'Leary 1980): new solution, residuals and directions, each (t, q).

    Parameters
    ----------
    products : array (t, q)
        Of the system's matrix with the directions.
    directions, residuals, solution : array (t, q)
    """
    gram = products @ directions.T
    alpha = np.linalg.lstsq(gram, directions @ residuals.T, rcond=1e-14)[0].T
    solution = solution + alpha @ directions
    remaining = residuals - alpha @ products
    beta = -np.linalg.lstsq(gram, products @ remaining.T, rcond=1e-14)[0].T
    return solution, remaining, remaining + beta @ directions
