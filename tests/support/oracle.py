"""Dense float64 NumPy answers, written from the equations alone."""

from __future__ import annotations

import numpy as np


def statistics(counts, used=None):
    """Mean and population standard deviation (ky, kx) over the probe positions used."""
    ny, nx, nky, nkx = counts.shape
    used = np.ones((ny, nx), bool) if used is None else used
    # Shifted in exact integer (or float64) arithmetic, so that large counts keep their variance.
    rows = counts.reshape(ny * nx, -1)[used.ravel()]
    wide = rows.astype(np.int64) if counts.dtype.kind in "uib" else rows.astype(np.float64)
    shift = wide[0]
    d = (wide - shift).astype(np.float64)
    mean = d.mean(0)
    std = np.sqrt(((d - mean) ** 2).mean(0))
    return (mean + shift).reshape(nky, nkx), std.reshape(nky, nkx)


def correlation(counts, templates, used=None, pixels=None):
    """rho (template, ky, kx), eq. 3-5 with 1/p; 0 where the standard deviation is 0 or the pixel is not used."""
    ny, nx, nky, nkx = counts.shape
    used = np.ones((ny, nx), bool) if used is None else used
    rows = counts.reshape(ny * nx, -1)[used.ravel()]
    wide = rows.astype(np.int64) if counts.dtype.kind in "uib" else rows.astype(np.float64)
    d = (wide - wide[0]).astype(np.float64)
    d -= d.mean(0)
    s = templates[:, used].astype(np.float64)
    s = (s - s.mean(1, keepdims=True)) / s.std(1, keepdims=True)
    std = np.sqrt((d**2).mean(0))
    # A constant pixel has no deviations at all in integer arithmetic.
    rho = np.zeros((len(s), nky * nkx))
    rho[:, std > 0] = (s @ d[:, std > 0]) / len(d) / std[std > 0]
    rho = rho.reshape(-1, nky, nkx)
    return rho if pixels is None else np.where(pixels, rho, 0.0)


def image(counts, mask):
    """D m^T (eq. 2)."""
    return np.einsum("yxab,kab->kyx", counts.astype(np.float64), mask)


def standardised_image(counts, mask, mean, std):
    """D_hat m^T, D_hat written out; a pixel of standard deviation 0 has D_hat = 0."""
    return np.einsum("yxab,kab->kyx", standardised(counts, mean, std), mask)


def standardised(counts, mean, std):
    """D_hat."""
    return (counts.astype(np.float64) - mean) / np.where(std > 0, std, np.inf)


def image_scale(patterns, mask):
    r""":math:`|d_i| |m_k|` of every pattern and mask (k, y, x), by which the rounding of a sum is measured."""
    of_patterns = np.sqrt((patterns.astype(np.float64) ** 2).sum((2, 3)))
    return np.sqrt((mask**2).sum((1, 2)))[:, None, None] * of_patterns


def assert_close(found, expected, scale=None):
    """Relative 1e-5, absolute 1e-6 of the largest value."""
    expected = np.asarray(expected)
    largest = np.abs(expected).max() if scale is None else scale
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6 * max(largest, 1e-300))


def descanned(counts, shifts, valid=None, used=None):
    """C'(y, x, ky, kx) = C(y, x, ky + s_ky, kx + s_kx), and the pixels that all used patterns have; 0 at the others."""
    ny, nx, nky, nkx = counts.shape
    valid = np.ones((nky, nkx), bool) if valid is None else valid
    used = np.ones((ny, nx), bool) if used is None else used
    moved, seen = np.zeros_like(counts), np.ones((nky, nkx), bool)
    for y, x in zip(*np.nonzero(used), strict=True):
        for ky in range(nky):
            for kx in range(nkx):
                ry, rx = ky + int(shifts[0][y, x]), kx + int(shifts[1][y, x])
                inside = 0 <= ry < nky and 0 <= rx < nkx and valid[ry, rx]
                seen[ky, kx] &= inside
                if inside:
                    moved[y, x, ky, kx] = counts[y, x, ry, rx]
    moved[:, :, ~seen] = 0
    return moved, seen
