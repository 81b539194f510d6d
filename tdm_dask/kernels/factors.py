"""Few vectors for a large matrix, on plain arrays: eigenvectors by block Krylov, non-negative factors of a low rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, qr

# Directions that are this small a part of what they were made from are rounding of float32 products.
_INDEPENDENT = 1e-6

# Iterations of non-negative factors at most, and the change of the relative residual that ends them.
SWEEPS = 2000
SWEEPS_END = 1e-7


@dataclass(frozen=True)
class Eigenvectors:
    """The largest eigenvalues (n,), their eigenvectors (n, q) of length 1, and the residual (n,) of each."""

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray


def largest_eigenvectors(matrix: np.ndarray, n: int) -> Eigenvectors:
    """The n largest of a symmetric matrix (q, q), by LAPACK; residuals as in `block_krylov`."""
    q = len(matrix)
    values, columns = eigh(matrix, subset_by_index=[q - n, q - 1])
    values, vectors = values[::-1], columns.T[::-1]
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    return Eigenvectors(values, vectors, _relative(residuals, values))


def block_krylov(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, iterations: int, n: int
) -> Eigenvectors:
    """The n largest eigenvalues of a positive semidefinite matrix C (q, q) that is known by its products alone.

    Each iteration multiplies a block of vectors; every block is orthogonalised against all that came before (twice:
    full reorthogonalisation), and the best vectors are sought in the space of all blocks, after Musco and Musco,
    "Randomized block Krylov methods for stronger and faster approximate singular value decomposition" (2015). For
    C = A^T A these are the Ritz vectors of A A^T in the images A S of that space S; the eigenvectors w in S are then
    multiplied by C once more, without another product: C S is known.

    Parameters
    ----------
    product : function
        Of vectors (b, q), their products with C.
    start : ndarray, shape (b, q)
        The first block, of at least n independent vectors.
    iterations : int
        How often `product` is called; less often where the blocks end in an invariant space.
    n : int

    Returns
    -------
    Eigenvectors
        Orthonormal. A residual is |C w - value w| / (value |w|) of the vector w that the eigenvector C w was made
        from. It overestimates that of the eigenvector itself, in which smaller eigenvalues have faded once more.
    """
    basis, _ = _orthonormal(start, start[:0])
    new = basis
    known = np.zeros((0, len(basis)))  # C S in terms of the basis, which has one block more than S
    for _ in range(iterations):
        multiplied = product(new)
        new, coefficients = _orthonormal(multiplied, basis)
        basis = np.concatenate([basis, new])
        padded = np.zeros((len(known), len(basis)))
        padded[:, : known.shape[1]] = known
        known = np.concatenate([padded, coefficients])
        if not len(new):
            break
    inside = known[:, : len(known)]
    images, axes = np.linalg.eigh((inside + inside.T) / 2)  # products of the images A S with each other
    kept = images > max(images[-1], 0.0) * _INDEPENDENT
    axes = axes[:, kept] / np.sqrt(images[kept])
    values, mix = np.linalg.eigh(axes.T @ (known @ known.T) @ axes)
    values, mix = values[::-1][:n], (axes @ mix[:, ::-1][:, :n]).T
    multiplied = mix @ known
    apart = multiplied.copy()
    apart[:, : len(known)] -= values[:, None] * mix
    residuals = np.linalg.norm(apart, axis=1) / np.linalg.norm(mix, axis=1)
    return Eigenvectors(values, (multiplied / np.sqrt(values)[:, None]) @ basis, _relative(residuals, values))


def _relative(residuals: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(residuals, values, where=values > 0, out=np.zeros(len(values))))


def _orthonormal(block: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal rows that, with those of a basis, span a block (b, q); and the block in terms of basis and rows."""
    size = np.linalg.norm(block, axis=1).max(initial=0.0)
    rest, along = block, np.zeros((len(block), len(basis)))
    for _ in range(2):
        part = rest @ basis.T
        rest, along = rest - part @ basis, along + part
    columns, triangle, order = qr(rest.T, mode="economic", pivoting=True)
    independent = np.abs(np.diag(triangle)) > _INDEPENDENT * size
    rows = columns[:, independent].T
    # What rounding left along the basis would grow with each block.
    rows = rows - (rows @ basis.T) @ basis
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    coefficients = np.empty((len(block), len(rows)))
    coefficients[order] = triangle[independent].T
    return rows, np.concatenate([along, coefficients], 1)


def signed(vectors: np.ndarray, ramp: np.ndarray) -> np.ndarray:
    """1 or -1 for each vector (n, q), so that its sum becomes positive.

    Where the sum is less than a hundredth of that of absolute values, as of an antisymmetric vector, its sum with the
    weights of a ramp (q,) decides.
    """
    total = vectors.sum(1)
    balanced = np.abs(total) < 0.01 * np.abs(vectors).sum(1)
    return np.where(np.where(balanced, vectors @ ramp, total) < 0, -1.0, 1.0)


@dataclass(frozen=True)
class NonnegativeFactors:
    """A matrix L R as W H without negative numbers: W (p, n), H (n, q), and the residual |L R - W H| / |L R|."""

    left: np.ndarray
    right: np.ndarray
    residual: float


def nonnegative_factors(left: np.ndarray, right: np.ndarray, n: int) -> NonnegativeFactors:
    """Non-negative factors of a matrix that is itself given by factors, L (p, r) and R (r, q); it is never formed.

    Hierarchical alternating least squares (Cichocki and Phan, 2009): each column of W and each row of H in turn is the
    best non-negative one for all others. W and H start from the singular vectors of L R (Boutsidis and Gallopoulos,
    "SVD based initialization", 2008, zeros filled by the mean), so that the same factors give the same answer.

    Parameters
    ----------
    left, right : ndarray
        L and R; L R may have small negative elements, as a truncated matrix of counts has.
    n : int
        Number of components, at most r.
    """
    w, h = _nonnegative_start(left, right, n)
    power = float(((left.T @ left) * (right @ right.T)).sum())
    last = np.inf
    for _ in range(SWEEPS):
        for target, other, these, those in ((left, right, w, h.T), (right.T, left.T, h.T, w)):
            products, gram = target @ (other @ those), those.T @ those
            for k in range(n):
                if gram[k, k] > 0:
                    step = (products[:, k] - these @ gram[:, k]) / gram[k, k]
                    these[:, k] = np.maximum(these[:, k] + step, 0.0)
        # `products` and `gram` are those of H, with W as it is.
        rest = power - 2 * float((products * h.T).sum()) + float(((h @ h.T) * gram).sum())
        residual = float(np.sqrt(max(rest, 0.0) / power)) if power > 0 else 0.0
        if last - residual < SWEEPS_END:
            break
        last = residual
    return NonnegativeFactors(w, h, residual)


def _nonnegative_start(left: np.ndarray, right: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    u, s, v = np.linalg.svd(r_left @ r_right.T)
    columns, rows = q_left @ u[:, :n], v[:n] @ q_right.T
    w, h = np.zeros((len(left), n), order="F"), np.zeros((n, right.shape[1]))
    for k in range(n):
        halves = [(np.maximum(sign * columns[:, k], 0), np.maximum(sign * rows[k], 0)) for sign in (1.0, -1.0)]
        lengths = [np.linalg.norm(a) * np.linalg.norm(b) for a, b in halves]
        a, b = halves[int(np.argmax(lengths))]
        length = max(lengths)
        if length > 0:
            w[:, k] = np.sqrt(s[k] * length) * a / np.linalg.norm(a)
            h[k] = np.sqrt(s[k] * length) * b / np.linalg.norm(b)
    for part in (w, h):
        part[part == 0] = max(part.mean(), np.finfo(float).tiny)
    return w, h
