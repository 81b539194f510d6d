r"""Is the assumed place singled out by the data? The response of a template at every offset in the unit cell.

In a perfect crystal almost any template that repeats with the lattice is reproduced by its mask, wherever its sites are
put. What tells the assumed place from the others is how strongly the detector pixels correlate with the template there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from .axes import SCAN, TEMPLATE, check_counts, quantity, require_unit, step_of
from .errors import InputError, TemplateError
from .reductions import prepare_templates
from .second_moments import gram
from .statistics import descan_shifts, detector_weights, used_patterns
from .templates import check_template

Array = npt.NDArray[np.float64]

# Two places of a template are the same place where it overlaps with itself by so much.
SAME_PLACE = 0.8
# Part of a template's variance that its harmonics may leave out.
_LEFT_OUT = 1e-3
# Harmonics that are correlated with the counts at the most.
MOST_HARMONICS = 4096
_OFFSETS_AT_ONCE = 256


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
        `response`, `image_correlation` and `overlap`, the correlation of each template with itself moved; `dy` and
        `dx` (a, b), the offsets in angstrom. `rank` (template,) is the fraction of inequivalent offsets, with an
        overlap below 0.8, that respond at least as strongly as the assumed place, `image_rank` that by the image's
        correlation; `margin` (template,) is the response at the assumed place over the largest inequivalent one, less
        1. `unexplained` (template,) is the part of a template's variance that the harmonics leave out. All in memory:
        this reads now.

    Raises
    ------
    InputError
        If the cell is no cell, or has more than 4096 harmonics that matter.
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
    places = np.stack([y[where], x[where]], -1)
    smallest = min(abs(step_of(counts, d)) for d in SCAN)
    distance = smallest if step is None else quantity(step, "angstrom", "step")

    standard = values[:, where]
    spread = standard.std(1, keepdims=True)
    if not (spread > 0).all():
        raise TemplateError("A template is constant over the probe positions used, so that nothing moves with it.")
    standard = (standard - standard.mean(1, keepdims=True)) / spread
    harmonics, coefficients, unexplained = _harmonics(standard, places, vectors, smallest)
    if unexplained.max() > 0.1:
        raise TemplateError(
            f"Template {int(unexplained.argmax())} does not repeat with the cell: {unexplained.max():.0%} of its "
            "variance is not in its harmonics; give the cell with which it repeats."
        )
    waves = np.zeros((2 * len(harmonics), *counts.shape[:2]))
    phase = 2 * np.pi * (y[None] * harmonics[:, 0, None, None] + x[None] * harmonics[:, 1, None, None])
    waves[: len(harmonics)], waves[len(harmonics) :] = np.cos(phase), np.sin(phase)
    prepared = prepare_templates(waves, used)
    found = gram(counts.data, used, pixels, prepared, len(waves), descan_shifts(counts))
    rho, correlation = _computed(found["rho"], found["correlation"])
    # Correlations with the waves as they are, not standardised.
    waves_rho = rho[:, pixels] / prepared.scale[:, None]
    complex_rho = waves_rho[: len(harmonics)] + 1j * waves_rho[len(harmonics) :]
    shifts, grid = _offsets(vectors, distance)
    result = _scan(coefficients, complex_rho, harmonics, shifts, correlation)
    names = stacked[TEMPLATE].values if TEMPLATE in stacked.coords else np.arange(len(values))
    return _dataset(result, names, shifts, grid, unexplained)


def _vectors(cell: Any) -> Array:
    """Two lattice vectors (vector, yx) in angstrom."""
    vectors = np.asarray(cell, np.float64)
    if vectors.shape == (2,):
        vectors = np.diag(vectors)
    if vectors.shape != (2, 2) or not np.isfinite(vectors).all() or abs(np.linalg.det(vectors)) < 1e-6:
        raise InputError(f"The cell is {cell!r}; expected its period (y, x), or two vectors (y, x), in angstrom.")
    return vectors


def _harmonics(standard: Array, places: Array, vectors: Array, smallest: float) -> tuple[Array, Any, Array]:
    """Harmonics (g, yx) of the cell that make up the templates, their complex coefficients (template, g), and the part
    of each template's variance that they leave out."""
    reciprocal = np.linalg.inv(vectors).T  # vector of index n times cell vector m is 1 where n = m
    reach = 0.5 / smallest
    most = [int(np.ceil(reach * np.linalg.norm(v))) for v in vectors]
    h, k = (a.ravel() for a in np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"))
    half = (h > 0) | ((h == 0) & (k > 0))
    every = np.stack([h[half], k[half]], -1) @ reciprocal
    every = every[np.linalg.norm(every, axis=1) <= reach * (1 + 1e-9)]
    rough = np.empty((len(standard), len(every)))
    for first in range(0, len(every), _OFFSETS_AT_ONCE):
        part = slice(first, first + _OFFSETS_AT_ONCE)
        wave = np.exp(-2j * np.pi * (places @ every[part].T))
        rough[:, part] = 2 * np.abs(standard @ wave / len(places)) ** 2
    # The fewest that leave out no more than is allowed of any template.
    keep = np.zeros(len(every), bool)
    for power in rough:
        order = np.argsort(power)[::-1]
        enough = np.searchsorted(np.cumsum(power[order]), (1 - _LEFT_OUT) * min(1.0, power.sum())) + 1
        keep[order[:enough]] = True
    if keep.sum() > MOST_HARMONICS // 2:
        raise InputError(
            f"The templates have {int(keep.sum())} harmonics of the cell; at most {MOST_HARMONICS // 2} are taken: "
            "give a smaller cell, or a wider template."
        )
    harmonics = every[keep]
    angle = 2 * np.pi * (places @ harmonics.T)
    basis = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    basis -= basis.mean(0)
    # Waves are not quite orthogonal where the region holds no whole number of cells.
    solved = np.linalg.lstsq(basis.T @ basis, basis.T @ standard.T, rcond=1e-10)[0]
    unexplained = ((standard.T - basis @ solved) ** 2).mean(0)
    real, imaginary = solved[: len(harmonics)].T, solved[len(harmonics) :].T
    return harmonics, real - 1j * imaginary, unexplained


def _offsets(vectors: Array, distance: float) -> tuple[Array, tuple[int, int]]:
    """Offsets (n, yx) that fill a cell, and how many lie along its two vectors."""
    numbers = [max(1, round(float(np.linalg.norm(v)) / distance)) for v in vectors]
    fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in numbers), indexing="ij"), -1)
    return fractions.reshape(-1, 2) @ vectors, (numbers[0], numbers[1])


def _scan(
    coefficients: Any, complex_rho: Any, harmonics: Array, shifts: Array, correlation: Array
) -> dict[str, Array]:
    """Response, correlation of the image and overlap (template, offset)."""
    templates, offsets = len(coefficients), len(shifts)
    response, image, overlap = (np.zeros((templates, offsets)) for _ in range(3))
    power = np.abs(coefficients) ** 2
    power /= power.sum(1, keepdims=True)
    for first in range(0, offsets, _OFFSETS_AT_ONCE):
        part = slice(first, first + _OFFSETS_AT_ONCE)
        turned = np.exp(-2j * np.pi * (shifts[part] @ harmonics.T))
        overlap[:, part] = power @ turned.real.T
        for t in range(templates):
            # Re(c e^(2 pi i g (r - o))) correlates as Re(c e^(-2 pi i g o)) with cosines, -Im with sines.
            moved = ((turned * coefficients[t]) @ complex_rho).real
            squared = (moved**2).sum(1)
            response[t, part] = np.sqrt(squared)
            variance = ((moved @ correlation) * moved).sum(1)
            image[t, part] = np.divide(squared, np.sqrt(variance), where=variance > 0, out=np.zeros(len(squared)))
    return {"response": response, "image_correlation": image, "overlap": overlap}


def _dataset(
    result: dict[str, Array], names: Any, shifts: Array, grid: tuple[int, int], unexplained: Array
) -> xr.Dataset:
    dims = (TEMPLATE, "a", "b")
    words = {
        "response": "norm of the correlations over the mask",
        "image_correlation": "correlation of the image with the template",
        "overlap": "correlation of the template with itself, moved",
    }
    data: dict[str, Any] = {
        name: (dims, values.reshape(-1, *grid), {"long_name": words[name], "units": "1"})
        for name, values in result.items()
    }
    other = result["overlap"] < SAME_PLACE
    ranks, margins = {"rank": "response", "image_rank": "image_correlation"}, np.full(len(unexplained), np.inf)
    for rank, by in ranks.items():
        values = result[by]
        better = (values >= values[:, :1]) & other
        data[rank] = (TEMPLATE, better.sum(1) / np.maximum(other.sum(1), 1), {"units": "1"})
    for n, (values, elsewhere) in enumerate(zip(result["response"], other, strict=True)):
        if elsewhere.any() and values[elsewhere].max() > 0:
            margins[n] = values[0] / values[elsewhere].max() - 1.0
    data["margin"] = (TEMPLATE, margins, {"units": "1"})
    data["unexplained"] = (TEMPLATE, unexplained, {"units": "1"})
    coords = {
        TEMPLATE: names,
        **{
            name: (("a", "b"), shifts[:, n].reshape(grid), {"units": "angstrom", "long_name": f"offset along {dim}"})
            for n, (name, dim) in enumerate((("dy", "y"), ("dx", "x")))
        },
    }
    return xr.Dataset(data, coords)


def _computed(*arrays: Any) -> tuple[Array, ...]:
    import dask

    return tuple(np.asarray(a) for a in dask.compute(*arrays))
