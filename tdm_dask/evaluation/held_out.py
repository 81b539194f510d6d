"""Masks from one part of the scan, or of its electrons, read on another.

An image of the very patterns that its mask was derived from shares their noise, and flatters the mask. Here each mask
is applied to what it has not seen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import dask
import numpy as np
import xarray as xr

from ..axes import IMAGE, SCAN, TEMPLATE, VALID_PATTERNS, check_counts, named
from ..counts.statistics import used_patterns
from ..counts.thinning import split_electrons
from ..errors import InputError, RegionError, TemplateError
from ..kernels.ridge_solver import RidgePath, SecondMoments, pearson_path, read_on, response
from ..masks.derivation import NORMALISATION_OF, apply_mask, derive_mask
from ..masks.ridge import LAMBDA, LAMBDAS, RidgeOptions, RidgeProblem, chosen_path
from ..masks.templates import check_template
from ..passes.block_moments import block_edges, block_moments
from ..renamed import renamed
from .cross_talk import cross_talk

Method = Literal["pearson", "ridge"]
By = Literal["halves", "electrons"]

FOLD = "fold"
# Blocks along y and x: two for each half, so that lambda can be chosen inside it.
_GRID = (4, 4)
_HALVES = {
    "top": (slice(0, 2), slice(0, 4)),
    "bottom": (slice(2, 4), slice(0, 4)),
    "left": (slice(0, 4), slice(0, 2)),
    "right": (slice(0, 4), slice(2, 4)),
}


@renamed(gain="counts_per_electron")
def held_out_cross_talk(
    counts: xr.DataArray,
    template: xr.DataArray,
    *,
    by: By = "halves",
    method: Method = "pearson",
    detector_region: Any = None,
    scan_region: Any = None,
    seed: int = 0,
    **ridge: Any,
) -> xr.Dataset:
    r"""Cross-talk of images whose masks have not seen the counts that the images are made of.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    template : DataArray, dims (template, y, x)
    by : {"halves", "electrons"}, default "halves"
        "halves": masks, statistics too, from one half of the scan (top, bottom, left, right), read on the other; from
        one read of the counts. "electrons": masks from half of the electrons of all patterns, read on the other half,
        and the other way round (`tdm_dask.split_electrons`); in four reads, two of them for the masks. That tells
        noise apart, but not what repeats over the scan.
    method : {"pearson", "ridge"}, default "pearson"
    detector_region, scan_region
        As in `tdm_dask.derive_mask`; halves are those of the scan region.
    seed : int, default 0
        Of the split of the electrons.
    **ridge
        Options of ridge masks, as in `tdm_dask.derive_mask`. Cross-validation chooses lambda inside each part, on 2 x 2
        blocks of it.

    Returns
    -------
    Dataset
        `R` (image against template) and `G` (template against template), dims (fold, image, template), over the probe
        positions that the fold was read on; `own` (fold, template), the R_ii; `excess` (fold,), the largest abs(R - G)
        off the diagonal; with ridge masks `regularisation` (fold,). In memory: this reads now.

    Raises
    ------
    InputError
        If an option makes no sense.
    RegionError
        If a half holds no probe position with a valid pattern.
    TemplateError
        If a template is constant over a half, and as in `tdm_dask.correlate`.
    MemoryLimitError
        If there are more than 2048 pixels: `tdm_dask.bin` sums pixels.
    CountsError
        As in `tdm_dask.correlate`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> template = xr.DataArray(rng.random((2, 24, 24)), dims=("template", "y", "x"), coords={"template": ["Li", "O"]})
    >>> mean = 20 + np.einsum("tyx,tab->yxab", template.values, 10 * rng.random((2, 4, 4)))
    >>> counts = label_counts(rng.poisson(mean).astype(np.uint16))
    >>> found = held_out_cross_talk(counts, template)
    >>> found["R"].dims, found["fold"].values.tolist()
    (('fold', 'image', 'template'), ['top', 'bottom', 'left', 'right'])
    """
    if by not in get_args(By):
        raise InputError(f"by={by!r} was given; expected one of {get_args(By)}.")
    if method not in get_args(Method):
        raise InputError(f"The method is {method!r}; expected one of {get_args(Method)}.")
    if ridge and method != "ridge":
        raise InputError(f'{min(ridge)} is an option of method="ridge" alone; leave it out, or ask for ridge masks.')
    counts = check_counts(counts)
    template = check_template(counts, template)
    if TEMPLATE not in template.dims:
        raise InputError("The template has no name; cross-talk is between several, with dims (template, y, x).")
    if by == "electrons":
        return _by_electrons(counts, template, method, detector_region, scan_region, seed, ridge)
    options = RidgeOptions.given(ridge)
    if options.solver == "conjugate-gradients":
        raise InputError('Halves of the scan are compared by the Gram matrix alone; leave the solver at "auto".')
    if tuple(options.blocks) != RidgeOptions.blocks:
        raise InputError("Lambda is chosen on 2 x 2 blocks of each half; leave the blocks out.")
    problem = RidgeProblem.of(counts, template, detector_region, scan_region)
    edges = block_edges(problem.used, (counts.sizes["y"], counts.sizes["x"]), _GRID)
    parts = block_moments(counts.data, problem.templates, problem.used, problem.pixels, edges, problem.shifts)
    grid = np.full(_GRID, None, dtype=object)
    for place, part in parts.compute().items():
        grid[place] = part
    r, g, lambdas = [], [], []
    for fold, half in _HALVES.items():
        inside = np.zeros(_GRID, bool)
        inside[half] = True
        first, second = (_sum(grid[part].tolist()) for part in (inside, ~inside))
        for part, where in ((first, "in"), (second, "outside")):
            _require_variation(part, problem.names, f"{where} the {fold} half of the scan region")
        path = _path(grid[half], problem.region, method, options)
        r_fold, g_fold = response(read_on(second, path)[0])
        r.append(r_fold)
        g.append(g_fold)
        lambdas.append(path.lambdas[0])
    return _dataset(np.array(r), np.array(g), list(_HALVES), template, method, lambdas)


def _require_variation(part: SecondMoments, names: Sequence[Any], where: str) -> None:
    """Raise for a template that is constant over some blocks."""
    spread = np.sqrt(np.diag(part.products)[-len(names) :] / part.n)
    for name, of_template in zip(names, spread, strict=True):
        if of_template <= 1e-9:  # of a template that is standardised over all blocks
            raise TemplateError(
                f"Template {str(name)!r} is constant {where}; choose a scan_region with sites in each half."
            )


def _path(half: Any, region: np.ndarray, method: Method, options: RidgeOptions) -> RidgePath:
    """Masks from the blocks (y, x) of one half."""
    if method == "pearson":
        return pearson_path(_sum(half.ravel().tolist()), region)
    quarters = [
        [b for b in part.ravel() if b is not None]
        for rows in np.split(half, 2, axis=0)
        for part in np.split(rows, 2, axis=1)
    ]
    return chosen_path([_sum(part) for part in quarters if part], region, options, LAMBDAS)[0]


def _sum(blocks: Sequence[SecondMoments | None]) -> SecondMoments:
    there = [block for block in blocks if block is not None]
    if not there:
        raise RegionError("One half of the scan region holds no valid pattern; choose a larger scan_region.")
    return functools.reduce(SecondMoments.__add__, there)


def _by_electrons(
    counts: xr.DataArray,
    template: xr.DataArray,
    method: Method,
    detector_region: Any,
    scan_region: Any,
    seed: int,
    ridge: dict[str, Any],
) -> xr.Dataset:
    halves = split_electrons(counts, seed=seed)
    regions = {"detector_region": detector_region, "scan_region": scan_region}
    masks = [derive_mask(half, template, method=method, **regions, **ridge) for half in halves]
    masks = list(dask.compute(*masks))
    images = [
        apply_mask(other, mask, normalisation=NORMALISATION_OF[method])
        for other, mask in zip(halves[::-1], masks, strict=True)
    ]
    images = list(dask.compute(*images))
    used = used_patterns(counts, scan_region)
    if used is not None:
        template = template.assign_coords({VALID_PATTERNS: (SCAN, used)})
    tables = [cross_talk(image, template) for image in images]
    r, g = (np.array([table[name].transpose(IMAGE, TEMPLATE).values for table in tables]) for name in ("R", "G"))
    lambdas = [float(mask.coords[LAMBDA]) if LAMBDA in mask.coords else np.inf for mask in masks]
    return _dataset(r, g, ["first half", "second half"], template, method, lambdas)


def _dataset(
    r: np.ndarray, g: np.ndarray, folds: list[str], template: xr.DataArray, method: str, lambdas: list[float]
) -> xr.Dataset:
    names = [str(name) for name in template[TEMPLATE].values]
    off = ~np.eye(len(names), dtype=bool)
    data: dict[str, Any] = {
        "R": ((FOLD, IMAGE, TEMPLATE), r, {"long_name": "correlation of image and template", "units": "1"}),
        "G": ((FOLD, IMAGE, TEMPLATE), g, {"long_name": "correlation of two templates", "units": "1"}),
        "own": (
            (FOLD, TEMPLATE),
            np.einsum("fii->fi", r),
            {"long_name": "correlation with the own template", "units": "1"},
        ),
        "excess": (
            FOLD,
            (np.abs(r - g) * off).max((1, 2)),
            {"long_name": "largest excess correlation", "units": "1"},
        ),
    }
    if method == "ridge":
        data[LAMBDA] = (FOLD, lambdas, {"long_name": "lambda of the masks, in units of the diagonal", "units": "1"})
    coords = {FOLD: (FOLD, folds, {"long_name": "fold"}), IMAGE: names, TEMPLATE: names}
    return named(xr.Dataset(data, coords, {"method": method}))
