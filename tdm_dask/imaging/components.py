r"""Components of a scan, without a template: principal ones (eq. 6 and 9 of the paper) and non-negative ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import dask
import numpy as np
import xarray as xr

from ..axes import DETECTOR, SCAN, check_counts, named
from ..counts.statistics import (
    counts_facts,
    descan_shifts,
    detector_coords,
    detector_weights,
    scan_coords,
    scan_region_text,
    used_patterns,
    valid_patterns,
)
from ..errors import CountsError, InputError
from ..kernels.factors import Eigenvectors, block_krylov, largest_eigenvectors, nonnegative_factors, signed
from ..passes.graphs import images, moments
from ..passes.reductions import prepare_masks
from ..passes.second_moments import gram, normal_product

COMPONENT = "component"

Method = Literal["auto", "gram", "krylov"]

# Up to so many pixels the matrix takes less time than the further reads of block Krylov.
AUTO_PIXELS = 2048

# Vectors beyond those asked for: with them, four iterations find five components to within a degree.
EXTRA_VECTORS = 15

# An eigenvalue that is this small a part of the largest is rounding.
SMALLEST = 1e-6


def principal_components(
    counts: xr.DataArray,
    n: int = 5,
    *,
    detector_region: Any = None,
    scan_region: Any = None,
    method: Method = "auto",
    vectors: int | None = None,
    iterations: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    r"""Principal components of the standardised counts: images that mask and image turn into themselves.

    .. math:: \hat D \hat D^T s_{[i]} = p \lambda_i s_{[i]}, \qquad s_{[i]} = \hat D m_{[i]}^T, \qquad
              C_q m_{[i]}^T = \lambda_i m_{[i]}^T, \quad C_q = \hat D^T \hat D / p

    (eq. 6 and 9 of the paper, with the eigenvalue on its right side, and the 1/p that makes C a correlation matrix).
    The first often resembles the ADF image; the others have, in general, no meaning of their own.

    This reads the counts now, whether they are lazy or not: an eigenvector needs them.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    n : int, default 5
        Components.
    detector_region : DataArray or ndarray (ky, kx), or slices, optional
        Pixels to use, those of weight above 0; the whole detector by default. The others are not read where the store
        allows it.
    scan_region : DataArray or ndarray of bool (y, x), or slices, optional
        Probe positions that the components are of; the whole scan by default. Images are of the whole scan.
    method : {"auto", "gram", "krylov"}, default "auto"
        "gram": exact, from the correlation matrix of the region's pixels, of which there may be 8192; two reads.
        "krylov": by block Krylov iteration (Musco and Musco 2015), any number of pixels; a read for the statistics,
        one for each iteration and one for the images, 6 by default. "auto": "gram" up to 2048 pixels.
    vectors : int, optional
        Vectors in a block of "krylov"; 15 more than n by default.
    iterations : int, default 4
        Of "krylov". See `residual` for whether they were enough.
    seed : int, default 0
        Of the vectors that "krylov" starts from: the same seed gives the same components.

    Returns
    -------
    Dataset
        `eigenvalue` (component,), :math:`\lambda`, the variance of the image; `fraction` (component,), its part of the
        total variance, which is the number of pixels that vary; `mask` (component, ky, kx), of length 1, 0 at dead
        pixels; `image` (component, y, x), from standardised counts, NaN at patterns that are not valid; `residual`
        (component,), :math:`|C m - \lambda m| / \lambda`: of "krylov" that before the last product, which is larger
        than the mask's own. A component whose residual is above some 0.1 is not sharply told apart from those that
        follow: take more iterations, or fewer components. `mean`, `std` and `n` are those of the pixels, so that
        ``mask.rename(component="template")`` may be given to `apply_mask`. The attributes say which method was taken,
        and the number of `reads`.

    Raises
    ------
    InputError
        If n, the vectors or the iterations make no sense, or there are fewer than n components.
    MemoryLimitError
        If there are more than 8192 pixels for "gram": `tdm_dask.bin` sums pixels.
    RegionError, CountsError
        As in `tdm_dask.correlate`.

    Notes
    -----
    The sign is such that the sum of a mask is positive; where it is nearly 0, the half at larger ky (then kx) is.

    A task of "gram" holds 4 bytes for every pair of pixels, "krylov" 8 bytes for every pixel, vector and iteration
    beside the passes, and both one shard of counts for each task.

    Examples
    --------
    Two pixels that rise and fall together are one component, a third by itself is another:

    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(0)
    >>> one, other = rng.poisson(9, (2, 20, 20, 1))
    >>> counts = label_counts(np.concatenate([one, one, other], -1)[:, :, None].astype(np.uint16))
    >>> found = principal_components(counts, n=2)
    >>> abs(found["mask"].isel(component=0)).values.round(1).tolist(), found.attrs["reads"]
    ([[0.7, 0.7, 0.0]], 2)
    """
    counts = check_counts(counts)
    used = used_patterns(counts, scan_region)
    weights = detector_weights(counts, detector_region)
    found = _eigenvectors(counts, used, weights > 0, n, method, vectors, iterations, seed)
    mean, std = found.mean, found.std
    data = images(
        counts.data,
        prepare_masks(found.masks, mean, std, None),
        n,
        valid_patterns(counts),
        shifts=descan_shifts(counts),
    )
    dataset = _dataset(counts, found, used, found.masks, _computed({"image": data})["image"])
    dataset["image"].attrs["normalisation"] = "standardised"
    values = found.eigen.values
    dataset["eigenvalue"] = (COMPONENT, values, {"long_name": "eigenvalue", "units": "1"})
    fraction = values / np.count_nonzero(std)
    dataset["fraction"] = (COMPONENT, fraction, {"long_name": "fraction of the total variance", "units": "1"})
    dataset["residual"] = (COMPONENT, found.eigen.residuals, {"long_name": "relative residual", "units": "1"})
    region = (DETECTOR, (weights > 0).astype(np.float64), {"long_name": "weight of the detector region", "units": "1"})
    coords = {
        "mean": (DETECTOR, mean, {"long_name": "mean pattern (PACBED)", "units": "counts"}),
        "std": (DETECTOR, std, {"long_name": "standard deviation over the scan", "units": "counts"}),
        "n": ((), found.n),
        "detector_region": region,
    }
    return named(dataset.assign_coords(coords))


def nonnegative_components(
    counts: xr.DataArray,
    n: int = 4,
    *,
    rank: int | None = None,
    detector_region: Any = None,
    scan_region: Any = None,
    method: Method = "auto",
    iterations: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    r"""Non-negative matrix factorisation (NMF) of the counts: patterns and images that nowhere fall below zero.

    .. math:: D \approx W H, \qquad W \ge 0, \; H \ge 0

    D is not formed: what is factorised is its approximation of a low rank, mean pattern and principal components of
    counts that are divided by the square root of each pixel's mean, which makes counting noise alike everywhere (Keenan
    and Kotula, "Accounting for Poisson noise in the multivariate analysis of ToF-SIMS spectrum images", 2004).

    The paper finds this "of little use for atomic resolution STEM". Of the simulated scans that this package is tested
    on, components of PbTiO3 are nearly Pb and O columns, those of LiFePO4 mixtures of columns; only what is known of
    the specimen tells which. It is here for comparison.

    This reads the counts now, as `principal_components` does, as often as that does.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    n : int, default 4
        Components.
    rank : int, optional
        Principal components of the approximation; 2 n by default.
    detector_region, scan_region, method, iterations, seed
        As in `principal_components`; images are of the scan region.

    Returns
    -------
    Dataset
        `mask` (component, ky, kx), a pattern of sum 1; `image` (component, y, x), counts of that pattern, NaN at probe
        positions that were not used; `fraction` (component,), its part of all counts, in falling order; `residual` (),
        :math:`|D_r - W H| / |D_r|` against the approximation :math:`D_r`, both divided by the square root of the mean.
        The attributes say `method`, `rank`, and the number of `reads`.

    Raises
    ------
    InputError
        If n or the rank make no sense.
    CountsError
        If pixels have a negative mean.
    MemoryLimitError, RegionError
        As in `principal_components`.

    Examples
    --------
    Two patterns that never occur together:

    >>> from tdm_dask.axes import label_counts
    >>> where = np.random.default_rng(0).random((20, 20, 1, 1)) < 0.3
    >>> counts = label_counts(np.where(where, [[4, 4, 0, 0]], [[0, 0, 0, 8]]).astype(np.uint16))
    >>> found = nonnegative_components(counts, n=2, rank=1)
    >>> found["mask"].values[:, 0].round(2).tolist()
    [[0.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.0, 0.0]]
    """
    counts = check_counts(counts)
    used = used_patterns(counts, scan_region)
    pixels = detector_weights(counts, detector_region) > 0
    rank = 2 * n if rank is None else rank
    if n < 1 or rank < n - 1:
        raise InputError(f"There are to be {n} components of a rank of {rank}; expected 1 or more, of a rank of n - 1.")
    found = _eigenvectors(counts, used, pixels, rank, method, None, iterations, seed, poisson=True)
    root = np.sqrt(found.mean)
    data = images(
        counts.data,
        prepare_masks(found.masks, found.mean, root, None),
        rank,
        used,
        shifts=descan_shifts(counts),
    )
    data = _computed({"image": data})["image"]
    flags = np.ones(data.shape[1:], bool) if used is None else used
    live = root > 0
    left = np.concatenate([np.ones((1, int(flags.sum()))), data[:, flags]]).T
    right = np.concatenate([root[live][None], found.masks[:, live]])
    factors = nonnegative_factors(left, right, n)
    patterns = factors.right * root[live]
    sums = patterns.sum(1)
    strengths = factors.left * sums
    order = np.argsort(-strengths.sum(0), kind="stable")
    masks, pictures = np.zeros((n, *live.shape)), np.full((n, *flags.shape), np.nan)
    masks[:, live] = np.divide(patterns, sums[:, None], where=sums[:, None] > 0, out=np.zeros_like(patterns))[order]
    pictures[:, flags] = strengths.T[order]
    dataset = _dataset(counts, found, used, masks, pictures)
    dataset["mask"].attrs["long_name"] = "pattern"
    dataset["image"].attrs["units"] = "counts"
    total = strengths.sum(0)[order]
    dataset["fraction"] = (COMPONENT, total / total.sum(), {"long_name": "fraction of the counts", "units": "1"})
    dataset["residual"] = ((), factors.residual, {"long_name": "relative residual", "units": "1"})
    dataset.attrs["rank"] = rank
    return dataset


@dataclass(frozen=True)
class _Found:
    """Eigenvectors as masks (n, nky, nkx), the statistics of the pixels, and how they were found."""

    eigen: Eigenvectors
    masks: np.ndarray
    n: int
    mean: np.ndarray
    std: np.ndarray
    method: str
    reads: int


def _eigenvectors(
    counts: xr.DataArray,
    used: np.ndarray | None,
    pixels: np.ndarray,
    n: int,
    method: Method,
    vectors: int | None,
    iterations: int,
    seed: int,
    poisson: bool = False,
) -> _Found:
    """Eigenvectors of the correlation matrix or, with `poisson`, of the covariance of counts over the root of means."""
    block = n + EXTRA_VECTORS if vectors is None else vectors
    if method not in get_args(Method):
        raise InputError(f'The method is {method!r}; expected "auto", "gram" or "krylov".')
    if n < 1 or block < n or iterations < 1:
        raise InputError(
            f"There are to be {n} components from {block} vectors in {iterations} iterations; expected at least one "
            "component and one iteration, and no fewer vectors than components."
        )
    most = min(int(pixels.sum()), (counts.sizes["y"] * counts.sizes["x"] if used is None else int(used.sum())) - 1)
    if n > most:
        raise InputError(f"There are at most {most} components of these probe positions and pixels, but {n} are asked.")
    shifts = descan_shifts(counts)
    flags = None if pixels.all() else pixels
    exact = method == "gram" or (method == "auto" and pixels.sum() <= AUTO_PIXELS)
    if exact:
        values = _computed(gram(counts.data, used, flags, shifts=shifts))
    else:
        values = _computed(moments(counts.data, None, used, flags, shifts=shifts))
    mean, std = values["mean"], values["std"]
    if poisson and (mean < 0).any():
        raise CountsError(
            f"{int((mean < 0).sum())} detector pixels have a negative mean; non-negative components need counts of at "
            "least 0: undo the subtraction of a dark reference, or leave these pixels out by detector_region."
        )
    scale = np.divide(std, np.sqrt(mean), where=mean > 0, out=np.zeros_like(mean)) if poisson else np.ones_like(mean)
    live = pixels & (std > 0)
    _require_components(int(live.sum()), n)
    reads = 2  # those of the statistics and of the images
    if exact:
        inside = live[pixels]
        matrix = values.pop("correlation")
        matrix = matrix if inside.all() else matrix[np.ix_(inside, inside)]
        if poisson:
            matrix = np.einsum("jk,j,k->jk", matrix, scale[live], scale[live])
        eigen = largest_eigenvectors(matrix, n)
    else:

        def product(block: np.ndarray) -> np.ndarray:
            nonlocal reads
            reads += 1
            masks = np.zeros((len(block), *live.shape))
            masks[:, live] = block * scale[live]
            prepared = prepare_masks(masks, mean, std, None)
            found = _computed(normal_product(counts.data, prepared, len(block), used, flags, shifts))
            return np.asarray(found["product"][:, live] * scale[live])

        q = int(live.sum())
        start = np.random.default_rng(seed).normal(size=(min(block, q), q))
        eigen = block_krylov(product, start, iterations, n)
    _require_components(int((eigen.values > SMALLEST * eigen.values.max(initial=0.0)).sum()), n)
    y, x = np.indices(live.shape) - (np.array(live.shape)[:, None, None] - 1) / 2
    eigen = Eigenvectors(
        eigen.values, eigen.vectors * signed(eigen.vectors, (y + 1e-3 * x)[live])[:, None], eigen.residuals
    )
    masks = np.zeros((n, *live.shape))
    masks[:, live] = eigen.vectors
    return _Found(eigen, masks, int(values["n"]), mean, std, "gram" if exact else "krylov", reads)


def _require_components(there: int, n: int) -> None:
    if there < n:
        raise InputError(
            f"The counts have {there} components that are more than rounding, but {n} are asked: ask for fewer, or "
            "choose larger regions."
        )


def _computed(values: dict[str, Any]) -> dict[str, Any]:
    """Results of a pass as arrays in memory, by the active scheduler where they are lazy."""
    return dask.compute(values)[0]


def _dataset(
    counts: xr.DataArray, found: _Found, used: np.ndarray | None, masks: np.ndarray, pictures: np.ndarray
) -> xr.Dataset:
    """Masks and images, labelled."""
    mask = ((COMPONENT, *DETECTOR), masks, {"long_name": "mask", "units": "1"})
    image = ((COMPONENT, *SCAN), pictures, {"long_name": "image", "units": "1"})
    number = (COMPONENT, np.arange(1, len(masks) + 1), {"long_name": "component", "units": "1"})
    coords = {**detector_coords(counts), **scan_coords(counts), COMPONENT: number}
    facts = {"method": found.method, "reads": found.reads, "scan_region": scan_region_text(used, counts.shape[:2])}
    return xr.Dataset({"mask": mask, "image": image}, coords, {**counts_facts(counts), **facts})
