"""Ridge masks by dense float64 solves, and small scans whose pixels see some columns each, for tests."""

from __future__ import annotations

import numpy as np
import oracle
import xarray as xr


def standardised(counts, used, region):
    """D_hat (probe, pixel) of the region's pixels, 0 where a pixel is constant, with their mean and std."""
    mean, std = oracle.statistics(counts, used)
    rows = counts.astype(np.float64)[used].reshape(int(used.sum()), -1) - mean.ravel()
    rows /= np.where(std > 0, std, np.inf).ravel()
    return rows[:, region.ravel() > 0], mean, std


def dense_masks(counts, templates, used, region, penalty, counts_per_electron=None, separate=False):
    """Ridge masks (template, ky, kx) by dense solves, the constraints by Lagrange multipliers."""
    d, mean, std = standardised(counts, used, region)
    s = templates[:, used] - templates[:, used].mean(1, keepdims=True)
    s /= s.std(1, keepdims=True)
    rho, g, pixels = s @ d / len(d), s @ s.T / len(d), region > 0
    live = std[pixels] > 0
    n = 1.0 / region[pixels]
    if counts_per_electron is not None:
        share = np.ones(len(n))
        share[live] = counts_per_electron * mean[pixels][live] / std[pixels][live] ** 2
        n = n * np.clip(share, 1e-3, 1.0)
    matrix = d.T @ d / len(d) + penalty * np.diag(n)
    if separate:
        corner = np.zeros((len(g), len(g)))
        both = np.linalg.solve(np.block([[matrix, rho.T], [rho, corner]]), np.concatenate([rho.T, g]))
        weights = both[: len(n)].T
    else:
        weights = np.linalg.solve(matrix, rho.T).T
    masks = np.zeros((len(s), *region.shape))
    masks[:, pixels] = np.where(live, weights, 0.0)
    return masks


def dataset(shape=(16, 18, 5, 6), kinds=3, seed=0, signal=6.0):
    """Counts whose pixels see some columns each, and the templates of the columns."""
    rng = np.random.default_rng(seed)
    smooth = np.array([np.kron(rng.random((shape[0] // 2, shape[1] // 2)), np.ones((2, 2))) for _ in range(kinds)])
    seen = rng.random((kinds, *shape[2:]))
    counts = rng.poisson(4 + signal * np.einsum("tyx,tab->yxab", smooth, seen)).astype(np.uint16)
    return counts, smooth


def labelled(templates, names=None):
    names = [f"kind {n}" for n in range(len(templates))] if names is None else names
    return xr.DataArray(templates, dims=("template", "y", "x"), coords={"template": names})


def few_pixels():
    pixels = np.zeros((64, 96), bool)
    pixels[20:40, 40:50] = True  # two of six tiles by kx of 32, both by ky
    return pixels


def some_templates(n=2):
    return labelled(np.random.default_rng(1).normal(size=(n, 20, 24)))
