r"""Is the assumed place singled out by the data? The response of a template at every offset in the unit cell.

In a perfect crystal almost any template that repeats with the lattice is reproduced by its mask, wherever its sites are
put. What tells the assumed place from the others is how strongly the detector pixels correlate with the template there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN, TEMPLATE, check_counts, named, quantity, require_unit, step_of
from ..counts.statistics import descan_shifts, detector_weights, used_patterns
from ..errors import InputError, TemplateError
from ..masks.templates import check_template
from ..passes.reductions import prepare_templates
from ..passes.second_moments import gram

Array = npt.NDArray[np.float64]

# Two places of a template are the same place where it overlaps with itself by so much.
SAME_PLACE = 0.8
# Part of a template's variance that its harmonics may leave out.
_LEFT_OUT = 1e-3
# Part that they must hold for it to repeat with the cell.
_REPEATS = 0.9
_ROUNDS = 4
# Smallest part of the largest variance that a combination of harmonics must have.
_TOLD_APART = 1e-3
# Harmonics at the most; each is two waves.
MOST_HARMONICS = 2048
_OFFSETS_AT_ONCE = 256
_TOO_SMALL = "The scan is too small to tell what repeats with the cell; give a cell of which it holds one at least."


def offset_scan(
    counts: xr.DataArray,
    template: xr.DataArray,
    cell: Any,
    *,
    detector_region: Any = None,
    scan_region: Any = None,
    step: float | str | None = None,
) -> xr.Dataset:
    r"""The response of templates at every offset in the unit cell, from one read.

    Moving a template by o multiplies its Fourier components at the harmonics g of the cell by
    :math:`\exp(-2\pi i\, g \cdot o)`. So the counts are correlated with the harmonics, and from that follow, for any
    offset, the correlations rho of all pixels with the moved template and, with the correlation matrix C_q of the
    pixels from the same read, the image of its Pearson mask:

    .. math:: |\rho(o)|, \qquad
              R(o) = \frac{|\rho(o)|^2}{\sqrt{\rho(o)^T C_q\, \rho(o)}}

    the norm over the detector region, and the correlation of the image with the moved template. The first decides; the
    second, which is what an eye judges by, is high in wrong places as well.

    A place may respond strongly because another kind of column is there. So a template is also moved alone, of which
    only what the others do not explain is counted: with :math:`P` the projection on the other templates,
    :math:`\rho` of :math:`\hat s(o) - P \hat s(o)`.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        With a scan in angstrom.
    template : DataArray, dims ([template,] y, x)
        Each must repeat with the cell.
    cell : pair of float, or array (2, 2)
        Period along y and x, or two vectors (y, x), in angstrom: a unit cell, or, where domains differ, the period of
        the whole scan. The scan region should hold whole cells.
    detector_region, scan_region
        As in `tdm_dask.correlate`.
    step : float (angstrom) or str, optional
        Distance of the offsets. The smaller scan step by default.

    Returns
    -------
    Dataset, dims (template, a, b)
        `response`, `image_correlation` and `overlap`, the correlation of each template with itself moved;
        `own_response`, the norm of the part of rho that the other templates, at their assumed places, do not explain;
        `together` (a, b), the norm over all templates, moved together; `dy` and `dx` (a, b), the offsets in angstrom.

        `rank` (template,) is the fraction of inequivalent offsets, with an overlap below 0.8, that respond at least as
        strongly as the assumed place; `margin` (template,) is the response there over the largest inequivalent one,
        less 1, and `margin_error` the largest standard error that counts, independent from one probe position to the
        next, give it: :math:`\sqrt{2 / p}` over the response. `own_` and `together_` are those of the other responses,
        `image_rank` that of the image's correlation.

        `unexplained` (template,) is the part of a template's variance that the harmonics leave out. All in memory:
        this reads now.

    Raises
    ------
    InputError
        If the cell is no cell, the scan does not hold one, or more than 2048 of its harmonics matter.
    TemplateError
        If a template does not repeat with the cell: more than a tenth of its variance is not in the harmonics.
    CoordinateError
        If the scan is not calibrated in angstrom.
    MemoryLimitError, RegionError, CountsError
        As in `tdm_dask.derive_mask`.

    Examples
    --------
    Columns that only the first pixel sees are where their template is, and nowhere else:

    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> y, x = np.indices((24, 24))
    >>> template = np.exp(-(np.minimum(y % 8, 8 - y % 8) ** 2 + np.minimum(x % 8, 8 - x % 8) ** 2) / 4.0)
    >>> mean = np.stack([5 + 50 * template, np.full((24, 24), 20.0)], -1)[:, :, None]
    >>> steps = {d: axis_coordinate(d, 24, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> counts = label_counts(np.random.default_rng(0).poisson(mean).astype(np.uint16), steps)
    >>> scan = offset_scan(counts, xr.DataArray(template, steps, ("y", "x")), (2.0, 2.0))
    >>> scan.sizes["a"], scan["rank"].item()
    (8, 0.0)
    """
    counts = check_counts(counts)
    template = check_template(counts, template)
    require_unit(counts, SCAN, "angstrom", "A scan of offsets")
    vectors = _vectors(cell)
    stacked = template if TEMPLATE in template.dims else template.expand_dims(TEMPLATE)
    values = np.asarray(stacked.transpose(TEMPLATE, *SCAN).values, np.float64)
    used = used_patterns(counts, scan_region)
    pixels = detector_weights(counts, detector_region) > 0
    where = np.ones(counts.shape[:2], bool) if used is None else used
    y, x = np.meshgrid(*(np.asarray(counts[d].values, np.float64) for d in SCAN), indexing="ij")
    places = np.stack([y.ravel(), x.ravel()], -1)
    steps = np.array([abs(step_of(counts, d)) for d in SCAN])
    distance = float(steps.min()) if step is None else quantity(step, "angstrom", "step")

    if not (values[:, where].std(1) > 0).all():
        raise TemplateError("A template is constant over the probe positions used, so that nothing moves with it.")
    _require_cell(places, vectors, steps)
    harmonics, coefficients, unexplained = _harmonics(values.reshape(len(values), -1), places, vectors, steps)
    waves = np.empty((2 * len(harmonics), *counts.shape[:2]))
    phase = np.tensordot(harmonics, np.stack([y, x]), 1)
    phase *= 2 * np.pi
    np.cos(phase, out=waves[: len(harmonics)])
    np.sin(phase, out=waves[len(harmonics) :])
    products = np.cov(waves[:, where], bias=True)
    # A wave may be constant over a small region.
    vary = np.diag(products) > 1e-12
    prepared = prepare_templates(waves[vary], used)
    found = gram(counts.data, used, pixels, prepared, int(vary.sum()), descan_shifts(counts))
    rho, correlation = _computed(found["rho"], found["correlation"])
    of_waves = np.zeros((len(waves), int(pixels.sum())))
    # Covariances with the waves as they are, not standardised.
    of_waves[vary] = rho[:, pixels] / prepared.scale[:, None]
    shifts, grid = _offsets(vectors, distance)
    forms = _Forms(products, of_waves @ of_waves.T, of_waves @ correlation @ of_waves.T)
    result = _scan(coefficients, harmonics, shifts, forms)
    names = stacked[TEMPLATE].values if TEMPLATE in stacked.coords else np.arange(len(values))
    return _dataset(result, names, shifts, grid, unexplained, int(where.sum()))


def _vectors(cell: Any) -> Array:
    """Two lattice vectors (vector, yx) in angstrom."""
    vectors = np.asarray(cell, np.float64)
    if vectors.shape == (2,):
        vectors = np.diag(vectors)
    if vectors.shape != (2, 2) or not np.isfinite(vectors).all() or abs(np.linalg.det(vectors)) < 1e-6:
        raise InputError(f"The cell is {cell!r}; expected its period (y, x), or two vectors (y, x), in angstrom.")
    return vectors


def _harmonics(values: Array, places: Array, vectors: Array, steps: Array) -> tuple[Array, Any, Array]:
    """Harmonics (g, yx) of the cell that make up the templates (template, probe), their complex coefficients
    (template, g), and the part of each template's variance that they leave out."""
    reciprocal = np.linalg.inv(vectors).T  # vector of index n times cell vector m is 1 where n = m
    # Each axis has waves up to its own Nyquist frequency: above it they are others that move otherwise.
    reach = 0.5 / steps * (1 - 1e-9)
    most = [int(np.ceil(np.abs(v) @ reach)) for v in vectors]
    h, k = (a.ravel() for a in np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"))
    half = (h > 0) | ((h == 0) & (k > 0))
    every = np.stack([h[half], k[half]], -1) @ reciprocal
    every = every[(np.abs(every) < reach).all(1)]
    centred = values - values.mean(1, keepdims=True)
    centred /= np.sqrt((centred**2).mean(1, keepdims=True))
    keep, residual, left = np.zeros(len(every), bool), centred, np.ones(len(values))
    for _ in range(_ROUNDS):
        rough = _power(residual, places, every)
        if keep.any() or rough.sum(1).min() > 0.5:  # else it does not repeat, and needs any number of them
            # The fewest that leave out no more than is allowed of any template.
            for n, power in enumerate(rough):
                order = np.argsort(power)[::-1]
                needed = (1 - _LEFT_OUT / left[n]) * min(left[n], power.sum())
                if needed > 0:
                    keep[order[: np.searchsorted(np.cumsum(power[order]), needed) + 1]] = True
        if not keep.any():
            left = 1 - np.minimum(rough.sum(1), 1)
            break
        if keep.sum() > MOST_HARMONICS:
            raise InputError(
                f"The templates have {int(keep.sum())} harmonics of the cell; at most {MOST_HARMONICS} are taken: "
                "give a smaller cell, or a wider template."
            )
        angle = 2 * np.pi * (places @ every[keep].T)
        basis = np.concatenate([np.cos(angle), np.sin(angle)], 1)
        basis -= basis.mean(0)
        solved = _solved(basis.T @ basis / len(places), basis.T @ centred.T / len(places))
        residual = centred - solved.T @ basis.T
        left = (residual**2).mean(1)
        # Waves are not quite orthogonal where the scan holds no whole number of cells: then more are needed.
        if left.max() <= 2 * _LEFT_OUT:
            break
    if left.max() > 1 - _REPEATS:
        raise TemplateError(
            f"Template {int(left.argmax())} does not repeat with the cell: {left.max():.0%} of its variance is not in "
            "its harmonics; give the cell with which it repeats."
        )
    number = int(keep.sum())
    return every[keep], solved[:number].T - 1j * solved[number:].T, left


def _require_cell(places: Array, vectors: Array, steps: Array) -> None:
    """Raise unless there are probe positions in every part of the cell."""
    numbers = [max(1, int(np.linalg.norm(v) / (3 * steps.max()))) for v in vectors]
    fractions = (places @ np.linalg.inv(vectors) + 1e-9) % 1.0
    bins = np.minimum((fractions * numbers).astype(int), np.array(numbers) - 1)
    if len(np.unique(bins @ [numbers[1], 1])) < numbers[0] * numbers[1]:
        raise InputError(_TOO_SMALL)


def _power(values: Array, places: Array, harmonics: Array) -> Array:
    """Variance of templates (template, probe) in each harmonic by itself."""
    power = np.empty((len(values), len(harmonics)))
    for first in range(0, len(harmonics), _OFFSETS_AT_ONCE):
        part = slice(first, first + _OFFSETS_AT_ONCE)
        wave = np.exp(-2j * np.pi * (places @ harmonics[part].T))
        power[:, part] = 2 * np.abs(values @ wave / len(places)) ** 2
    return power


def _solved(products: Array, cross: Array) -> Array:
    weights, axes = np.linalg.eigh(products)
    if weights[0] < _TOLD_APART * weights[-1]:
        raise InputError(_TOO_SMALL)
    return axes @ ((axes.T @ cross) / weights[:, None])


def _offsets(vectors: Array, distance: float) -> tuple[Array, tuple[int, int]]:
    """Offsets (n, yx) that fill a cell, and how many lie along its two vectors."""
    numbers = [max(1, round(float(np.linalg.norm(v)) / distance)) for v in vectors]
    fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in numbers), indexing="ij"), -1)
    return fractions.reshape(-1, 2) @ vectors, (numbers[0], numbers[1])


@dataclass(frozen=True)
class _Forms:
    """Of waves with waves: covariance over the scan; scalar products, over pixels, of their covariances with the
    standardised counts; and the same with the correlation matrix of the pixels between."""

    products: Array
    responses: Array
    images: Array


def _scan(coefficients: Any, harmonics: Array, shifts: Array, forms: _Forms) -> dict[str, Array]:
    """Response, own response, correlation of the image and overlap (template, offset)."""
    templates, offsets = len(coefficients), len(shifts)
    names = ("response", "own_response", "image_correlation", "overlap")
    result = {name: np.zeros((templates, offsets)) for name in names}

    def standard(vectors: Array) -> tuple[Array, Array]:
        """Templates of variance 1, and their covariances with the waves."""
        covariances = vectors @ forms.products
        spread = np.sqrt(np.maximum((covariances * vectors).sum(1), 0.0))[:, None]
        scale = np.divide(1.0, spread, where=spread > 1e-9, out=np.zeros_like(spread))
        return vectors * scale, covariances * scale

    # A template Re(c e^(2 pi i g r)) as weights of cosines and sines.
    assumed, _ = standard(np.concatenate([coefficients.real, -coefficients.imag], 1))
    for first in range(0, offsets, _OFFSETS_AT_ONCE):
        part = slice(first, first + _OFFSETS_AT_ONCE)
        turned = np.exp(-2j * np.pi * (shifts[part] @ harmonics.T))
        for t in range(templates):
            c = turned * coefficients[t]
            moved, covariances = standard(np.concatenate([c.real, -c.imag], 1))
            responses = moved @ forms.responses
            squared = np.maximum((responses * moved).sum(1), 0.0)
            variance = ((moved @ forms.images) * moved).sum(1)
            image = np.divide(squared, np.sqrt(np.maximum(variance, 0.0)), where=variance > 0, out=np.zeros(len(moved)))
            others = np.delete(assumed, t, 0)
            explained = covariances @ others.T @ np.linalg.pinv(others @ forms.products @ others.T)
            # The form of the moved template less what others explain of it.
            own = squared - 2 * (explained * (responses @ others.T)).sum(1)
            own += ((explained @ (others @ forms.responses @ others.T)) * explained).sum(1)
            result["response"][t, part] = np.sqrt(squared)
            result["own_response"][t, part] = np.sqrt(np.maximum(own, 0.0))
            result["image_correlation"][t, part] = image
            result["overlap"][t, part] = covariances @ assumed[t]
    return result


def _dataset(
    result: dict[str, Array], names: Any, shifts: Array, grid: tuple[int, int], unexplained: Array, used: int
) -> xr.Dataset:
    dims = (TEMPLATE, "a", "b")
    words = {
        "response": "norm of the correlations over the mask",
        "own_response": "norm of the correlations that the other templates do not explain",
        "image_correlation": "correlation of the image with the template",
        "overlap": "correlation of the template with itself, moved",
    }
    data: dict[str, Any] = {
        name: (dims, values.reshape(-1, *grid), {"long_name": words[name], "units": "1"})
        for name, values in result.items()
    }
    together = np.sqrt((result["response"] ** 2).sum(0))
    data["together"] = (dims[1:], together.reshape(grid), {"long_name": "response of all templates", "units": "1"})
    other = result["overlap"] < SAME_PLACE
    for name, of, by in (
        ("", "response", result["response"]),
        ("own_", "own response", result["own_response"]),
        ("together_", "response of all", np.broadcast_to(together, other.shape)),
        ("image_", "correlation of the image", result["image_correlation"]),
    ):
        found = [_rank(*row, used) for row in zip(by, other, strict=True)]
        rank, margin, error = np.array(found).T
        attrs = {"long_name": f"part of the offsets with as high a {of}", "units": "1"}
        data[f"{name}rank"] = (TEMPLATE, rank, attrs)
        if name != "image_":
            attrs = {"long_name": f"margin of the {of} over the next best offset", "units": "1"}
            data[f"{name}margin"] = (TEMPLATE, margin, attrs)
            attrs = {"long_name": f"counting error of the margin of the {of}", "units": "1"}
            data[f"{name}margin_error"] = (TEMPLATE, error, attrs)
    attrs = {"long_name": "part of the template that the others do not explain", "units": "1"}
    data["unexplained"] = (TEMPLATE, unexplained, attrs)
    coords = {
        TEMPLATE: names,
        **{
            name: (("a", "b"), shifts[:, n].reshape(grid), {"units": "angstrom", "long_name": f"offset along {dim}"})
            for n, (name, dim) in enumerate((("dy", "y"), ("dx", "x")))
        },
    }
    return named(xr.Dataset(data, coords))


def _rank(values: Array, other: npt.NDArray[np.bool_], used: int) -> tuple[float, float, float]:
    """Part of the inequivalent offsets that do at least as well as the first, its margin over the best of them, and
    what counting noise may do to that."""
    if not other.any():
        return 0.0, np.inf, 0.0
    best = float(values[other].max())
    rank = float((values[other] >= values[0] * (1 - 1e-9)).mean())
    if best <= 0:
        return rank, np.inf, 0.0
    # A correlation of counts that are independent from one probe position to the next has an error of 1 / sqrt(p), and
    # so has the norm of many; the difference of two, less than twice that.
    return rank, float(values[0]) / best - 1.0, np.sqrt(2 / used) / best


def _computed(*arrays: Any) -> tuple[Array, ...]:
    import dask

    return tuple(np.asarray(a) for a in dask.compute(*arrays))
