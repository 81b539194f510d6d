r"""Ridge masks: weights that tell kinds of atom column apart, where a Pearson mask mixes them.

A Pearson mask gives every detector pixel its own correlation with the template, whatever its neighbours show. A ridge
mask is the image of the counts that comes closest to the template, with weights that are kept small:

.. math:: (C_q + \lambda N)\, w_t = \rho_t, \qquad C_q = \frac{1}{p} \hat D^T \hat D

over the pixels of the detector region (Hoerl and Kennard 1970). :math:`\hat D` is never formed. Lambda is in units of
the diagonal of C_q, which is 1. N is the inverse of the region's weights, so that a pixel of little weight gets little
of the mask, as in a Pearson mask, and the others make up for it; with the counts per electron, times the part of a
pixel's variance that is counting noise.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed, delayed

from ..axes import DETECTOR, IMAGE, SCAN, TEMPLATE, check_counts, named
from ..counts.statistics import descan_shifts, detector_weights, scan_region_text, statistics_dataset, used_patterns
from ..errors import InputError
from ..kernels.ridge_solver import (
    RidgePath,
    SecondMoments,
    conjugate_gradients_step,
    held_out,
    orthonormal,
    ridge_path,
    separated,
)
from ..passes.block_moments import block_edges, block_moments
from ..passes.graphs import lazily, moments
from ..passes.reductions import prepare_masks, prepare_templates
from ..passes.second_moments import normal_product
from ..renamed import renamed
from .templates import check_template

Objective = Literal["both", "R", "excess"]
Solver = Literal["auto", "gram", "conjugate-gradients"]

# What cross-validation chooses from: ten in each decade, far beyond what serves at any dose.
LAMBDAS = tuple(float(f"{v:.3g}") for v in np.geomspace(1e-3, 100.0, 51))
# Pixels up to which the matrix C_q is made; beyond, conjugate gradients need less memory than it.
GRAM_MOST = 4096
TOLERANCE = 1e-6
LAMBDA = "regularisation"


@dataclass(frozen=True)
class RidgeOptions:
    """How ridge masks are found; see `tdm_dask.derive_mask` for what each means.

    Attributes
    ----------
    regularisation : float or "cross-validated"
    objective : {"both", "R", "excess"}
    blocks : (int, int)
    separate : bool
    counts_per_electron : float or None
        Where pixels are weighted by their counting noise.
    solver : {"auto", "gram", "conjugate-gradients"}
    most_reads : int
    """

    regularisation: float | Literal["cross-validated"] = "cross-validated"
    objective: Objective = "both"
    blocks: tuple[int, int] = (2, 2)
    separate: bool = False
    counts_per_electron: float | None = None
    solver: Solver = "auto"
    most_reads: int = 200

    @classmethod
    def given(cls, options: Mapping[str, Any]) -> RidgeOptions:
        """Options by name; InputError for one that does not exist."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InputError(f"There is no option {unknown[0]!r} of ridge masks; there are {known}.")
        return cls(**options)

    def __post_init__(self) -> None:
        value = self.regularisation
        if isinstance(value, str):
            if value != "cross-validated":
                raise InputError(f'The regularisation is {value!r}; expected a number or "cross-validated".')
        elif not _positive(value):
            raise InputError(f"The regularisation is {value!r}; expected a positive number, such as 0.1.")
        if self.objective not in get_args(Objective):
            raise InputError(f"The objective is {self.objective!r}; expected one of {get_args(Objective)}.")
        if self.solver not in get_args(Solver):
            raise InputError(f"The solver is {self.solver!r}; expected one of {get_args(Solver)}.")
        blocks = self.blocks
        numbers_of = isinstance(blocks, Sequence) and len(blocks) == 2 and all(_whole(b) for b in blocks)
        if not numbers_of or max(blocks) < 2:
            raise InputError(f"The blocks are {blocks!r}; expected two whole numbers (y, x), such as (2, 2).")
        electron = self.counts_per_electron
        if electron is not None and not _positive(electron):
            raise InputError(f"counts_per_electron={electron!r} was given; expected a positive number.")
        if not _whole(self.most_reads):
            raise InputError(f"most_reads={self.most_reads!r} was given; expected a whole number of at least 1.")


def _positive(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 < value < np.inf)


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def ridge_masks(
    counts: xr.DataArray, template: xr.DataArray, detector_region: Any, scan_region: Any, options: RidgeOptions
) -> xr.DataArray:
    """Ridge masks ([template,] ky, kx) of counts and templates that have been checked; see `tdm_dask.derive_mask`."""
    problem = RidgeProblem.of(counts, template, detector_region, scan_region)
    if _solver(problem, options) == "gram":
        found = _from_matrix(problem, options)
        values = {name: found[name] for name in ("mask", "rho", "mean", "std", "n", LAMBDA)}
        facts: dict[str, Any] = {"solver": "gram", "reads": 1}
    else:
        values, facts = _by_gradients(problem, options)
    return labelled_masks(values, problem, template, facts)


def labelled_masks(
    values: dict[str, Any], problem: RidgeProblem, template: xr.DataArray, facts: Mapping[str, Any]
) -> xr.DataArray:
    """What `tdm_dask.derive_mask` returns, from `mask`, `rho` (t, ky, kx), `mean`, `std`, `n` and lambda."""
    dataset = statistics_dataset(values, problem.counts, scan_region_text(problem.used, problem.counts.shape[:2]))
    mask = xr.DataArray(values["mask"], dims=(TEMPLATE, *DETECTOR))
    mask = mask.assign_coords(dataset.coords).assign_coords({k: dataset[k].variable for k in ("mean", "std", "n")})
    region = (DETECTOR, problem.weights, {"long_name": "weight of the detector region", "units": "1"})
    scale = ((), values[LAMBDA], {"long_name": "lambda of the ridge mask, in units of the diagonal", "units": "1"})
    rho = (mask.dims, values["rho"], {"long_name": "Pearson correlation", "units": "1"})
    mask = mask.assign_coords({"detector_region": region, LAMBDA: scale, "rho": rho})
    mask.attrs = {**dataset.attrs, "method": "ridge", "units": "1", "long_name": "ridge mask", **facts}
    if TEMPLATE not in template.dims:
        return mask[0].rename("mask")
    extra = {k: v for k, v in template.coords.items() if v.dims == (TEMPLATE,)}
    return mask.assign_coords(extra).rename("mask")


@renamed(lambdas="regularisation", gain="counts_per_electron")
def regularisation_curve(
    counts: xr.DataArray,
    template: xr.DataArray,
    *,
    detector_region: Any = None,
    scan_region: Any = None,
    regularisation: Sequence[float] = LAMBDAS,
    objective: Objective = "both",
    blocks: tuple[int, int] = (2, 2),
    separate: bool = False,
    counts_per_electron: float | None = None,
) -> xr.Dataset:
    r"""How ridge masks of every lambda do on parts of the scan that they have not seen, in one read.

    The scan region is cut into blocks, for neighbouring probe positions are correlated and random ones would give the
    answer away. The image of each block is made by the masks of all others; the images of all blocks together are
    compared with the templates: R (image against template) beside G (template against template).

    Parameters
    ----------
    counts, template, detector_region, scan_region
        As in `tdm_dask.derive_mask`.
    regularisation : sequence of float
        Every lambda, in units of the diagonal of C_q. By default 51 from 0.001 to 100, evenly in their logarithm.
        Called `lambdas` before, which works in this release alone.
    objective : {"both", "R", "excess"}, default "both"
        What the loss is: "R", the mean of 1 - R_ii; "excess", the mean over the images of their largest abs(R - G)
        with a template of another kind; "both", the root of the product of the two, so that either may grow only by
        a factor by which the other falls.
    blocks : (int, int), default (2, 2)
        Blocks along y and x. Each should hold a unit cell or more.
    separate, counts_per_electron
        As in `tdm_dask.derive_mask`.

    Returns
    -------
    Dataset
        `R` and `G` (regularisation, image, template), `own` (regularisation, template), the R_ii, `excess`
        (regularisation, image), `loss` (regularisation,), and `chosen`, the lambda of the least loss. Lazy where the
        counts are.

    Raises
    ------
    InputError
        If an option makes no sense, or there is a single block with counts that are used.
    TemplateError, RegionError, CountsError, MemoryLimitError
        As in `tdm_dask.derive_mask`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> template = xr.DataArray(rng.random((24, 24)), dims=("y", "x"))
    >>> mean = 20 + 50 * template.values[:, :, None, None] * rng.random((4, 4))
    >>> curve = regularisation_curve(label_counts(rng.poisson(mean).astype(np.uint16)), template, objective="R")
    >>> bool(curve["own"].sel(regularisation=curve["chosen"]).item() > 0.9)
    True
    """
    options = RidgeOptions("cross-validated", objective, blocks, separate, counts_per_electron)
    chosen_from = tuple(sorted({float(v) for v in regularisation}))
    if not chosen_from or not np.isfinite(chosen_from).all() or chosen_from[0] <= 0:
        raise InputError(f"The regularisation is one of {tuple(regularisation)}; expected positive numbers.")
    counts = check_counts(counts)
    problem = RidgeProblem.of(counts, check_template(counts, template), detector_region, scan_region)
    found = _from_matrix(problem, options, chosen_from)
    names = [str(name) for name in problem.names]
    lambdas_along = (LAMBDA, list(chosen_from), {"long_name": "lambda, in units of the diagonal", "units": "1"})
    coords = {LAMBDA: lambdas_along, IMAGE: names, TEMPLATE: names}
    data = {
        "R": ((LAMBDA, IMAGE, TEMPLATE), found["R"], {"long_name": "correlation of image and template", "units": "1"}),
        "G": ((LAMBDA, IMAGE, TEMPLATE), found["G"], {"long_name": "correlation of two templates", "units": "1"}),
        "own": ((LAMBDA, TEMPLATE), found["own"], {"long_name": "correlation with the own template", "units": "1"}),
        "excess": ((LAMBDA, IMAGE), found["excess"], {"long_name": "largest excess correlation", "units": "1"}),
        "loss": (LAMBDA, found["loss"], {"long_name": f"loss ({objective})", "units": "1"}),
        "chosen": ((), found[LAMBDA], {"long_name": "lambda of the least loss", "units": "1"}),
    }
    attrs = {"objective": objective, "blocks": list(options.blocks), "separate": int(separate)}
    return named(xr.Dataset(data, coords, attrs))


@dataclass(frozen=True)
class RidgeProblem:
    """What every way of solving starts from."""

    counts: xr.DataArray
    names: Sequence[Any]
    templates: Any
    used: np.ndarray | None
    weights: np.ndarray
    shifts: np.ndarray | None
    lazy: bool

    @classmethod
    def of(cls, counts: xr.DataArray, template: xr.DataArray, detector_region: Any, scan_region: Any) -> RidgeProblem:
        used = used_patterns(counts, scan_region)
        weights = detector_weights(counts, detector_region)
        stacked = (template if TEMPLATE in template.dims else template.expand_dims(TEMPLATE)).transpose(TEMPLATE, *SCAN)
        names = stacked[TEMPLATE].values if TEMPLATE in stacked.coords else range(stacked.sizes[TEMPLATE])
        prepared = lazily(prepare_templates, stacked.data, used)
        lazy = counts.chunks is not None or isinstance(prepared, Delayed)
        return cls(counts, list(names), prepared, used, weights, descan_shifts(counts), lazy)

    @property
    def pixels(self) -> np.ndarray:
        return self.weights > 0

    @property
    def region(self) -> np.ndarray:
        """Weights of the pixels (q,)."""
        return self.weights[self.pixels]

    def computed(self) -> RidgeProblem:
        """The same with its templates in memory."""
        return replace(self, templates=self.templates.compute()) if isinstance(self.templates, Delayed) else self

    def template_correlations(self) -> np.ndarray:
        """Of all templates with each other (t, t), over the probe positions used; they are in memory."""
        standard = self.templates.weights(*(slice(0, n) for n in self.counts.shape[:2]), self.used)
        return np.asarray(standard @ standard.T / standard.shape[1])


def _solver(problem: RidgeProblem, options: RidgeOptions) -> str:
    if options.solver != "auto":
        return options.solver
    few = int(problem.pixels.sum()) <= GRAM_MOST
    if not few and isinstance(options.regularisation, str):
        raise InputError(
            f"The detector region holds {int(problem.pixels.sum())} pixels, more than the {GRAM_MOST} up to which "
            "lambda is chosen by cross-validation; sum pixels with tdm_dask.bin, choose a smaller region, or give the "
            "regularisation as a number."
        )
    return "gram" if few else "conjugate-gradients"


def _from_matrix(
    problem: RidgeProblem, options: RidgeOptions, lambdas: Sequence[float] = LAMBDAS
) -> dict[str, np.ndarray | da.Array]:
    """Masks and what cross-validation found, from the products of all pixels with all in one read."""
    chosen = isinstance(options.regularisation, str)
    ny, nx, *detector = problem.counts.shape
    edges = block_edges(problem.used, (ny, nx), options.blocks) if chosen else ((0, ny), (0, nx))
    parts = block_moments(problem.counts.data, problem.templates, problem.used, problem.pixels, edges, problem.shifts)
    result = delayed(_solved, pure=True)(parts, problem.weights, options, tuple(lambdas))
    templates, number = len(problem.names), len(lambdas)
    pattern, maps = tuple(detector), (templates, *detector)
    shapes: dict[str, tuple[int, ...]] = {"mask": maps, "rho": maps, "mean": pattern, "std": pattern}
    shapes |= {"n": (), LAMBDA: ()}
    if chosen:
        square = (number, templates, templates)
        shapes |= {"R": square, "G": square, "own": square[:2], "excess": square[:2], "loss": square[:1]}
    if not problem.lazy:
        return result.compute(scheduler="threads")
    return {
        name: da.from_delayed(result[name], size, dtype=np.int64 if name == "n" else np.float64)
        for name, size in shapes.items()
    }


def _solved(
    parts: Mapping[Any, SecondMoments], weights: np.ndarray, options: RidgeOptions, lambdas: tuple[float, ...]
) -> dict[str, np.ndarray]:
    blocks, pixels = list(parts.values()), weights > 0
    path, found = chosen_path(blocks, weights[pixels], options, lambdas)
    found |= {LAMBDA: np.asarray(path.lambdas[0]), "n": np.asarray(sum(b.n for b in blocks), np.int64)}
    for name, values in (("mask", path.weights[0]), ("rho", path.rho), ("mean", path.mean), ("std", path.std)):
        found[name] = np.zeros((*values.shape[:-1], *pixels.shape))
        found[name][..., pixels] = values
    return found


def chosen_path(
    blocks: Sequence[SecondMoments], region: np.ndarray, options: RidgeOptions, lambdas: Sequence[float]
) -> tuple[RidgePath, dict[str, np.ndarray]]:
    """Masks of all blocks at the lambda that is given or chosen, and what cross-validation found, where it chose.

    `region` (q,) are the weights of the detector region.
    """
    whole, pixels = functools.reduce(SecondMoments.__add__, blocks), len(region)
    mean, std = whole.mean[:pixels], np.sqrt(np.diag(whole.products)[:pixels] / whole.n)
    penalties = pixel_penalties(mean, std, region, options.counts_per_electron)
    found: dict[str, np.ndarray] = {}
    if isinstance(options.regularisation, str):
        if len(blocks) < 2:
            raise InputError(
                "Only one block of the scan holds counts that are used, and nothing is left to try a mask on; take "
                "more blocks, a larger scan_region, or give the regularisation as a number."
            )
        r, g = held_out(blocks, pixels, lambdas, penalties, separate=options.separate)
        found = compared(r, g, options.objective)
        penalty = lambdas[int(np.argmin(found["loss"]))]
    else:
        penalty = float(options.regularisation)
    return ridge_path(whole, pixels, [penalty], penalties, separate=options.separate), found


def compared(r: np.ndarray, g: np.ndarray, objective: Objective) -> dict[str, np.ndarray]:
    """R, G, the R_ii, the excess and the loss of an objective, from R and G (lambda, image, template)."""
    own = np.einsum("lii->li", r)
    excess = (np.abs(r - g) * ~np.eye(r.shape[1], dtype=bool)).max(2)
    short, mixed = np.maximum(1.0 - own.mean(1), 0.0), excess.mean(1)  # below 0 by rounding alone
    loss = {"R": short, "excess": mixed, "both": np.sqrt(short * mixed)}[objective]
    # A template by itself has nothing to be told apart from.
    return {"R": r, "G": g, "own": own, "excess": excess, "loss": short if r.shape[1] == 1 else loss}


def pixel_penalties(
    mean: np.ndarray, std: np.ndarray, region: np.ndarray, counts_per_electron: float | None
) -> np.ndarray:
    """The diagonal N: what a weight of 1 on a pixel's standardised counts costs."""
    if counts_per_electron is None:
        return 1.0 / region
    # The part of its variance that is counting noise.
    share = np.divide(counts_per_electron * mean, std**2, where=std > 0, out=np.ones(len(std)))
    return np.clip(share, 1e-3, 1.0) / region


def _by_gradients(problem: RidgeProblem, options: RidgeOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Masks by block conjugate gradients: one read for the statistics, one for each step, now."""
    if isinstance(options.regularisation, str):
        raise InputError(
            "Conjugate gradients need the regularisation as a number; cross-validation goes with the Gram matrix "
            '(solver "gram").'
        )
    penalty = float(options.regularisation)
    problem = problem.computed()
    number, pixels = len(problem.names), problem.pixels
    first = _computed(moments(problem.counts.data, problem.templates, problem.used, pixels, number, problem.shifts))
    mean, std, rho = (first[name][..., pixels] for name in ("mean", "std", "rho"))
    root = 1.0 / np.sqrt(pixel_penalties(mean, std, problem.region, options.counts_per_electron))
    right = rho * root

    def product(directions: np.ndarray) -> np.ndarray:
        masks = np.zeros((len(directions), *pixels.shape))
        masks[:, pixels] = directions * root
        prepared = prepare_masks(masks, first["mean"], first["std"], None)
        found = normal_product(problem.counts.data, prepared, len(masks), problem.used, pixels, problem.shifts)
        return _computed({"product": found["product"]})["product"][:, pixels] * root + penalty * directions

    solution, residuals, directions = np.zeros_like(right), right, orthonormal(right)
    lengths = np.maximum(np.linalg.norm(right, axis=1), 1e-300)
    history = [1.0 if len(directions) else 0.0]  # without directions, no pixel correlates with any template
    while history[-1] > TOLERANCE and len(history) <= options.most_reads:
        solution, residuals, directions = conjugate_gradients_step(product(directions), directions, residuals, solution)
        history.append(float((np.linalg.norm(residuals, axis=1) / lengths).max()))
    if history[-1] > TOLERANCE:
        warnings.warn(
            f"Conjugate gradients were stopped after {len(history) - 1} reads with a residual of {history[-1]:.2g}; "
            f"{TOLERANCE:g} was wanted: allow more reads, or a larger regularisation.",
            stacklevel=4,
        )
    weights = np.where(std > 0, solution * root, 0.0)
    if options.separate:
        weights = separated(weights, rho, problem.template_correlations())
    mask = np.zeros((number, *pixels.shape))
    mask[:, pixels] = weights
    values = {name: first[name] for name in ("rho", "mean", "std", "n")} | {"mask": mask, LAMBDA: np.asarray(penalty)}
    return values, {"solver": "conjugate-gradients", "reads": len(history), "residuals": history}


def _computed(values: dict[str, Any]) -> dict[str, np.ndarray]:
    import dask

    return dict(zip(values, dask.compute(*values.values()), strict=True))
