r"""Ridge masks from second moments, and what they would do on parts of the scan that they have not seen.

With :math:`C` the correlation matrix of q detector pixels and :math:`\rho_t` their correlations with template t, the
ridge mask of the standardised counts solves :math:`(C + \lambda N) w_t = \rho_t`, where N is a diagonal of penalties, 1
unless pixels are told apart. Everything here is plain arrays in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from ..errors import TemplateError

Array = npt.NDArray[np.float64]

# A standard deviation that is this small a part of the mean is rounding.
_ROUNDING = 1e-13
# Templates, or their responses, that are closer than this to a sum of the others are not told apart from it.
_DEPENDENT = 1e-9
# A direction that is so close to the span of others has no more digits than their products.
_SAME_DIRECTION = 1e-5


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

    def correlations(self) -> tuple[Array, Array]:
        """Correlation matrix, 0 beside the diagonal of what is constant, and the standard deviations."""
        std = np.sqrt(np.maximum(np.diag(self.products), 0.0) / self.n)
        # What is constant has deviations by rounding alone.
        std[std <= _ROUNDING * np.abs(self.mean)] = 0.0
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


def pearson_path(moments: SecondMoments, region: Array) -> RidgePath:
    """The Pearson masks, as a path: what ridge masks become, but for their scale, where lambda is infinite.

    `region` (q,) are the weights of the detector region.
    """
    correlation, std = moments.correlations()
    pixels = len(region)
    rho = correlation[pixels:, :pixels]
    return RidgePath(moments.mean[:pixels], std[:pixels], rho, (np.inf,), (rho * region)[None])


def ridge_path(
    moments: SecondMoments,
    pixels: int,
    lambdas: Sequence[float],
    penalties: Array | None = None,
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
    penalties : array (q,), optional
        The diagonal N, above 0. 1 by default.
    separate : bool, default False
        Whether the masks are combined by `separated`.
    """
    correlation, std = moments.correlations()
    matrix, rho, between = correlation[:pixels, :pixels], correlation[pixels:, :pixels], correlation[pixels:, pixels:]
    factors = RidgeFactors.of(matrix, penalties)
    weights = np.empty((len(lambdas), *rho.shape))
    for n, penalty in enumerate(lambdas):
        weights[n] = factors.weights(rho, penalty)
        if separate:
            weights[n] = separated(weights[n], rho, between)
    weights[..., std[:pixels] == 0] = 0.0  # where eigenvectors leave rounding
    return RidgePath(moments.mean[:pixels], std[:pixels], rho, tuple(lambdas), weights)


@dataclass(frozen=True)
class RidgeFactors:
    r"""The eigendecomposition of :math:`N^{-1/2} C N^{-1/2}`, from which masks of any templates and lambda follow.

    Attributes
    ----------
    values : array (q,)
    vectors : array (q, q)
        In columns.
    scale : array (q,)
        The diagonal of :math:`N^{-1/2}`.
    """

    values: Array
    vectors: Array
    scale: Array

    @classmethod
    def of(cls, matrix: Array, penalties: Array | None = None) -> RidgeFactors:
        """Of a correlation matrix C (q, q) and the diagonal N (q,), which is 1 by default."""
        scale = np.ones(len(matrix)) if penalties is None else 1.0 / np.sqrt(penalties)
        values, vectors = eigh(matrix * scale[:, None] * scale, check_finite=False, driver="evd")
        return cls(np.maximum(values, 0.0), vectors, scale)  # below 0 by rounding alone

    def weights(self, rho: Array, penalty: float) -> Array:
        """Ridge masks (t, q) for one lambda of templates whose correlations with the pixels are rho (t, q)."""
        projected = (rho * self.scale) @ self.vectors
        return np.asarray((projected / (self.values + penalty)) @ self.vectors.T * self.scale)


def separated(weights: Array, rho: Array, between: Array) -> Array:
    r"""Ridge masks (t, q) combined so that the response to the other templates is zero.

    An image, as a sum of the templates and a rest that correlates with none, then has coefficients of 0 for all
    templates but its own, and of 1 for that. With :math:`P = \rho W^T` the responses of the masks W and G the
    templates' own correlations (t, t), that is :math:`G P^{-1} W`, which solves the ridge problem under these
    constraints.

    Raises
    ------
    TemplateError
        If a template is a sum of others, or the pixels answer to it as to one.
    """
    responses = rho @ weights.T
    for matrix in (between, responses):
        sizes = np.linalg.svd(matrix, compute_uv=False)
        if sizes[-1] <= _DEPENDENT * sizes[0]:
            raise TemplateError(
                f"The {len(rho)} templates cannot be kept apart with separate=True: where masks are derived, one of "
                "them is constant, a sum of others, or seen by the pixels as such a sum; leave it out (a template of "
                "all columns is the sum of their kinds), or give separate=False."
            )
    return between @ np.linalg.solve(responses, weights)


def read_on(part: SecondMoments, path: RidgePath) -> list[SecondMoments]:
    """Moments of the images of masks and of the templates, over probe positions that they may not have seen.

    One for each lambda; the images, standardised by the mean and standard deviation of the masks, come first.
    """
    pixels = len(path.std)
    inverse = np.divide(1.0, path.std, where=path.std > 0, out=np.zeros(pixels))
    masks = path.weights * inverse
    # The product with the matrix of the pixels, of all lambda at once.
    half = (masks.reshape(-1, pixels) @ part.products[:pixels, :pixels]).reshape(masks.shape)
    centre = masks @ (part.mean[:pixels] - path.mean)
    templates = part.products[pixels:, pixels:]
    moments = []
    for mask, product, mean in zip(masks, half, centre, strict=True):
        cross = mask @ part.products[:pixels, pixels:]
        products = np.block([[product @ mask.T, cross], [cross.T, templates]])
        moments.append(SecondMoments(part.n, np.concatenate([mean, part.mean[pixels:]]), products))
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
    penalties: Array | None = None,
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
    pooled: list[SecondMoments] | None = None
    for n, block in enumerate(blocks):
        # Added up again, for what is constant in all others must stay so to the last digit.
        others = functools.reduce(SecondMoments.__add__, [*blocks[:n], *blocks[n + 1 :]])
        path = ridge_path(others, pixels, lambdas, penalties, separate=separate)
        parts = read_on(block, path)
        pooled = parts if pooled is None else [a + b for a, b in zip(pooled, parts, strict=True)]
    assert pooled is not None
    found = [response(part) for part in pooled]
    return np.array([r for r, _ in found]), np.array([g for _, g in found])


def orthonormal(rows: Array) -> Array:
    """Orthonormal rows (s, q), s <= t, that span as much as rows (t, q) do, but for what is rounding."""
    lengths = np.linalg.norm(rows, axis=1)
    # Each as long as the others: one that is nearly solved counts as much.
    rows = rows[lengths > 0] / lengths[lengths > 0, None]
    _, sizes, vectors = np.linalg.svd(rows, full_matrices=False)
    return vectors[sizes > _SAME_DIRECTION * sizes.max(initial=0.0)]


def conjugate_gradients_step(
    products: Array, directions: Array, residuals: Array, solution: Array
) -> tuple[Array, Array, Array]:
    """One step of block conjugate gradients (O'Leary 1980): new solution, residuals (t, q) and directions (s, q).

    The directions are made orthonormal, for those of several systems become dependent, and products that are rounded to
    float32 would then lose their digits.

    Parameters
    ----------
    products : array (s, q)
        Of the system's matrix with the directions.
    directions : array (s, q)
        From the step before; `orthonormal` of the right sides at first.
    residuals, solution : array (t, q)
    """
    gram = products @ directions.T
    alpha = np.linalg.solve(gram, directions @ residuals.T).T
    solution = solution + alpha @ directions
    remaining = residuals - alpha @ products
    beta = -np.linalg.solve(gram, products @ remaining.T).T
    return solution, remaining, orthonormal(remaining + beta @ directions)
