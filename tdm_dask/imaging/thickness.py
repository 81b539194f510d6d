"""Thickness of a specimen: its mean pattern (PACBED) matched to simulated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from ..axes import DETECTOR, VALID_PIXELS, quantity, require_unit, step_of
from ..counts.statistics import region_flags
from ..errors import CoordinateError, CountsError, InputError, RegionError

THICKNESS = "thickness"
# Blocks of the detector that are drawn again for the error: rings, and sectors of one quadrant.
_RINGS, _SECTORS = 4, 6
_DRAWS = 400
_FINE = 0.02  # of the mean step between thicknesses
_LENGTHS = {"nm": 1.0, "angstrom": 0.1}

Range = float | str | tuple[float | str, float | str]


def match_thickness(
    pattern: xr.DataArray | xr.Dataset,
    library: xr.DataArray,
    *,
    n: int | None = None,
    rotation: Range = (-2.0, 2.0),
    scale: float | tuple[float, float] = (0.98, 1.02),
    shift: float | str = 1.0,
    background: bool = True,
    detector_region: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    r"""Thickness whose simulated mean pattern is most like the measured one, with the curve of misfit and its error.

    For each thickness t of the library, the misfit is the smallest

    .. math:: \chi^2_\nu(t) = \frac{1}{\nu} \sum_j \frac{n}{\bar d_j} \left(\bar d_j - a L_{tj} - b \right)^2

    over intensity a, background b, and rotation, scale and shift of the library's pattern L (on a grid, then by
    Nelder-Mead; interpolated linearly in mrad, as a mean over the area of each measured pixel where the library is
    finer). The weights are those of counting statistics. Model errors (phonons, the edge of the aperture, inelastic
    scattering) are many times larger than these, so that the misfit exceeds 1 and errors are taken from the residuals.

    Between thicknesses, patterns are interpolated by cubic splines along t, each compared at a geometry that follows
    the best one, and the minimum of the misfit of these is the result. Nothing is read; a lazy pattern is computed.

    Parameters
    ----------
    pattern : Dataset or DataArray (ky, kx)
        What `pixel_statistics` gave, or a mean pattern, in mrad; `valid_pixels` are honoured.
    library : DataArray (thickness, ky, kx)
        Simulated mean patterns of any normalisation, in mrad, four thicknesses or more in nm or angstrom; such as
        `tdm_dask.simulate_pacbed` gives.
    n : int, optional
        Patterns that a mean pattern without them is the mean of; 1 by default, as if it were a sum of counts.
    rotation : float, str or a pair of them, default (-2, 2)
        Degrees by which the library may be turned, from kx towards ky; one number is kept.
    scale : float or a pair, default (0.98, 1.02)
        Factor by which its angles may be stretched (camera length); one number is kept.
    shift : float or str, default 1
        Largest shift along each axis, in mrad; 0 for none.
    background : bool, default True
        Whether a constant is added to the model, for what is scattered diffusely beyond the simulation.
    detector_region : optional
        Booleans or slices (ky, kx): pixels to compare. By default all that the library covers at any allowed geometry.
    seed : int, default 0
        Of the random draws for the errors.

    Returns
    -------
    Dataset
        `thickness_nm` and `thickness_error_nm`, the larger of `bootstrap_error_nm` and `curvature_error_nm`. By
        thickness of the library (in nm): `misfit`, `misfit_error` (standard deviation of its difference from the
        smallest one), `rotation`, `scale`, `shift_ky`, `shift_kx`. `interpolated_misfit` (fine_thickness). `measured`,
        `matched` (ky, kx), the best model, in the pattern's unit, and `residual` in standard deviations of counting;
        NaN outside the region. ``attrs["rivals_nm"]``: other thicknesses at which the misfit has a minimum that is
        within two of its errors of the smallest.

    Raises
    ------
    InputError
        If the library has too few thicknesses, or the best match is its thinnest or thickest pattern.
    CoordinateError, RegionError
        If an axis is not calibrated, or nothing is left to compare.
    CountsError
        If the pattern or the library is not finite.

    Notes
    -----
    *Errors.* The bootstrap draws blocks of the detector with replacement (rings times sectors, 24; pixels in the four
    quadrants at the same \|ky\| and \|kx\| are one block, for a symmetric specimen repeats its model errors there) and
    finds the minimum anew. The curvature error is :math:`\sqrt{2 \chi^2_\nu / (\chi^2)''}`, residuals rescaled to a
    misfit of 1 and taken as independent. Neither knows of errors that all thicknesses share, such as a wrong structure.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> k = {d: axis_coordinate(d, 41, 1.0, -20.0, "mrad") for d in ("ky", "kx")}
    >>> q = np.hypot(*np.meshgrid(k["ky"], k["kx"], indexing="ij"))
    >>> t = np.arange(20.0, 62, 6)
    >>> L = [np.exp(-((q / 9) ** 2)) * (2 + np.cos(q * s / 60)) for s in t]
    >>> library = xr.DataArray(L, k | {"thickness": ("thickness", t, {"units": "nm"})}, ("thickness", "ky", "kx"))
    >>> truth = 1e5 * np.exp(-((q / 9) ** 2)) * (2 + np.cos(q * 43 / 60))
    >>> found = match_thickness(xr.DataArray(truth, k, ("ky", "kx")), library, rotation=0, scale=1)
    >>> round(float(found.thickness_nm), 1)
    43.0
    """
    measured, patterns, valid = _measured(pattern, n)
    thickness, values = _library(library)
    ranges = _ranges(rotation, scale, shift)
    fit = _Fit.of(measured, patterns, valid, library, ranges, detector_region, background)
    best = [fit.best_geometry(pattern) for pattern in values]
    misfit = np.array([found[0] for found in best])
    geometry = np.array([found[1] for found in best])
    smallest = int(misfit.argmin())
    if smallest in (0, len(thickness) - 1):
        end = "thinnest" if smallest == 0 else "thickest"
        raise InputError(
            f"The best match is the {end} pattern of the library, {thickness[smallest]:.4g} nm; simulate beyond it."
        )
    # Block by block, sums of which any draw's misfit is made again, with its own intensity and background.
    rng = np.random.default_rng(seed)
    blocks = fit.blocks()
    draws = rng.multinomial(blocks.max() + 1, np.full(blocks.max() + 1, 1 / (blocks.max() + 1)), _DRAWS)
    models = np.array([fit.model(p, g) for p, g in zip(values, geometry, strict=True)])
    drawn = fit.misfits(models, blocks, draws)
    error = (drawn - drawn[:, [smallest]]).std(0)
    fine, between = _between(fit, thickness, values, smallest, geometry[smallest])
    curve = fit.misfits(between, blocks, np.ones((1, blocks.max() + 1)))[0]
    at, second = _minimum(fine, curve)
    minima = [_minimum(fine, c)[0] for c in fit.misfits(between, blocks, draws)]
    curvature_error = float(np.sqrt(2 * max(curve.min(), 0.0) / (fit.freedom * second))) if second > 0 else np.inf
    bootstrap_error = float(np.std(minima))
    matched, residual = (np.full(measured.shape, np.nan) for _ in range(2))
    model = CubicSpline(fine, between)(at)
    matched[fit.region] = fit.scaled(model)
    residual[fit.region] = (fit.data - fit.scaled(model)) * np.sqrt(fit.weights)
    minimal = 1 + np.flatnonzero((misfit[1:-1] < misfit[:-2]) & (misfit[1:-1] <= misfit[2:]))
    rivals = [
        round(float(thickness[t]), 3)
        for t in minimal
        if abs(t - smallest) > 1 and misfit[t] - misfit[smallest] <= 2 * error[t]
    ]
    along = {"units": "1", "long_name": "reduced chi-square of counting statistics"}
    nm = {"units": "nm"}
    result = xr.Dataset(
        {
            "thickness_nm": ((), at, nm | {"long_name": "thickness"}),
            "thickness_error_nm": (
                (),
                max(bootstrap_error, curvature_error),
                nm | {"long_name": "error of the thickness"},
            ),
            "bootstrap_error_nm": ((), bootstrap_error, nm | {"long_name": "error by bootstrap"}),
            "curvature_error_nm": ((), curvature_error, nm | {"long_name": "error by curvature"}),
            "misfit": (THICKNESS, misfit, along),
            "misfit_error": (THICKNESS, error, {"units": "1", "long_name": "error of its excess over the smallest"}),
            "interpolated_misfit": ("fine_thickness", curve, along),
            "measured": (DETECTOR, measured.values, {"units": "counts", "long_name": "measured mean pattern"}),
            "matched": (DETECTOR, matched, {"units": "counts", "long_name": "matched pattern"}),
            "residual": (DETECTOR, residual, {"units": "1", "long_name": "residual over counting error"}),
        },
        {
            THICKNESS: (THICKNESS, thickness, nm | {"long_name": "thickness"}),
            "fine_thickness": ("fine_thickness", fine, nm | {"long_name": "thickness"}),
            **{dim: measured.coords[dim].variable for dim in DETECTOR},
        },
        {"rivals_nm": rivals, "patterns": patterns},
    )
    for (name, attrs), column in zip(_GEOMETRY.items(), geometry.T, strict=True):
        result[name] = (THICKNESS, column, attrs)
    return result


_GEOMETRY = {
    "rotation": {"units": "deg", "long_name": "rotation of the library"},
    "scale": {"units": "1", "long_name": "scale of the library's angles"},
    "shift_ky": {"units": "mrad", "long_name": "shift of the library along ky"},
    "shift_kx": {"units": "mrad", "long_name": "shift of the library along kx"},
}


@dataclass
class _Fit:
    """Measured pixels in a region, and the library's patterns there at any geometry."""

    data: np.ndarray  # (pixel,), and so are the weights
    weights: np.ndarray
    region: np.ndarray  # (ky, kx)
    k: np.ndarray  # (2, pixel) in mrad
    offsets: np.ndarray  # (2, sample) within a pixel, in mrad
    start: np.ndarray  # (2,) and (2,): first coordinate and step of the library
    step: np.ndarray
    ranges: list[tuple[float, float]]
    background: bool

    @classmethod
    def of(
        cls,
        measured: xr.DataArray,
        patterns: int,
        valid: np.ndarray,
        library: xr.DataArray,
        ranges: list[tuple[float, float]],
        detector_region: Any,
        background: bool,
    ) -> _Fit:
        axes = [np.asarray(library.coords[dim].values, np.float64) for dim in DETECTOR]
        step = np.array([step_of(library, dim) for dim in DETECTOR])
        k = np.stack(np.meshgrid(*(measured.coords[dim].values for dim in DETECTOR), indexing="ij")).astype(float)
        # Covered at every geometry: turned by any angle, stretched and shifted the most.
        own = np.array([abs(step_of(measured, dim)) for dim in DETECTOR])
        fixed = ranges[0][0] == ranges[0][1] == 0
        samples = [int(np.ceil(o / abs(s) - 0.25)) for o, s in zip(own, step, strict=True)]
        inside = [np.abs(o) / 2 * (1 - 1 / max(m, 1)) for o, m in zip(own, samples, strict=True)]
        half = np.array([min(-a.min(), a.max()) for a in axes]) * ranges[1][0] - max(ranges[2]) - inside
        reach = np.abs(k) <= half[:, None, None] + 1e-9 if fixed else np.hypot(*k)[None] <= half.min()
        region = valid & reach.all(0)
        flags = region_flags(measured, detector_region, DETECTOR, "detector_region")
        region = region if flags is None else region & flags
        if region.sum() < 50:
            raise RegionError(
                f"{int(region.sum())} pixels of the pattern can be compared with the library, which reaches "
                f"{half.min():.3g} mrad; expected at least 50: give a larger library or region."
            )
        data = measured.values[region]
        grids = [((np.arange(max(m, 1)) + 0.5) / max(m, 1) - 0.5) * o for m, o in zip(samples, own, strict=True)]
        offsets = np.stack(np.meshgrid(*grids, indexing="ij")).reshape(2, -1)
        # A pixel without counts is known no better than one with a single one.
        weights = patterns / np.maximum(data, 1 / patterns)
        start = np.array([a[0] for a in axes])
        return cls(data, weights, region, k[:, region], offsets, start, step, ranges, background)

    @property
    def freedom(self) -> int:
        """Degrees of freedom."""
        return len(self.data) - 1 - self.background - sum(low < high for low, high in self.ranges)

    def model(self, pattern: np.ndarray, geometry: np.ndarray) -> np.ndarray:
        """A pattern of the library at the pixels (pixel,), turned, stretched and shifted."""
        angle, scale, *shift = geometry
        angle = np.deg2rad(angle)
        y, x = (self.k[i][:, None] + self.offsets[i] - shift[i] for i in range(2))
        old = np.stack([np.cos(angle) * y - np.sin(angle) * x, np.cos(angle) * x + np.sin(angle) * y]) / scale
        places = (old - self.start[:, None, None]) / self.step[:, None, None]
        return map_coordinates(pattern, places, order=1, mode="nearest").mean(1)

    def _amplitudes(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Intensity, background and chi-square from weighted sums (..., 6) of 1, L, d, LL, Ld, dd."""
        w, wl, wd, wll, wld, wdd = np.moveaxis(sums, -1, 0)
        if not self.background:
            a = wld / wll
            return a, np.zeros_like(a), wdd - a * wld
        a = (w * wld - wl * wd) / (w * wll - wl * wl)
        b = (wd - a * wl) / w
        return a, b, wdd - a * wld - b * wd

    def _terms(self, model: np.ndarray) -> np.ndarray:
        one = np.ones_like(self.data)
        terms = (one, model, self.data, model * model, model * self.data, self.data**2)
        return self.weights * np.stack(np.broadcast_arrays(*terms))

    def scaled(self, model: np.ndarray) -> np.ndarray:
        """A model with the intensity and background that fit best."""
        a, b, _ = self._amplitudes(self._terms(model).sum(-1))
        return a * model + b

    def chi_square(self, model: np.ndarray) -> float:
        return float(self._amplitudes(self._terms(model).sum(-1))[2])

    def misfit(self, pattern: np.ndarray, geometry: np.ndarray) -> float:
        return self.chi_square(self.model(pattern, geometry)) / self.freedom

    def misfits(self, models: np.ndarray, blocks: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Misfit (draw, model) of blocks of pixels that are counted as often as each draw (draw, block) says."""
        sums = np.array([[np.bincount(blocks, term, draws.shape[1]) for term in self._terms(m)] for m in models])
        pixels = draws @ np.bincount(blocks, minlength=draws.shape[1])
        chi_square = self._amplitudes(np.einsum("db,mkb->dmk", draws, sums))[2]
        return chi_square * len(self.data) / (self.freedom * pixels[:, None])

    def best_geometry(self, pattern: np.ndarray, near: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        """Smallest misfit of a pattern, and its rotation, scale and shifts; the minimum that is near some, if given."""
        low, high = np.array(self.ranges).T
        free = high > low
        if not free.any():
            return self.misfit(pattern, low), low
        width = np.where(free, high - low, 1.0)

        def at(values: np.ndarray) -> np.ndarray:
            geometry = low.copy()
            geometry[free] += values * width[free]
            return geometry

        def loss(values: np.ndarray) -> float:
            return self.misfit(pattern, at(np.clip(values, 0, 1))) + 1e3 * float(
                np.abs(values - np.clip(values, 0, 1)).sum()
            )

        # Shifts are small and start from none; a rotation may have several minima.
        turns = np.linspace(0, 1, min(73, 1 + 2 * int(np.ceil(width[0] / 2)))) if free[0] else [0.0]
        sizes = np.linspace(0, 1, 1 + 2 * int(np.ceil(width[1] / 0.02))) if free[1] else [0.0]
        starts = [np.array([r, s, 0.5, 0.5])[free] for r in turns for s in sizes]
        start = min(starts, key=loss) if near is None else ((near - low) / width)[free]
        edge = 0.2 if near is None else 0.05
        simplex = np.vstack([start, *(start + np.where(start < 0.5, edge, -edge) * np.eye(len(start)))])
        found = minimize(
            loss, start, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 2e-3, "fatol": 1e-4}
        )
        geometry = at(np.clip(found.x, 0, 1))
        return self.misfit(pattern, geometry), geometry

    def blocks(self) -> np.ndarray:
        """Number of the block of each pixel: rings of as many pixels each, and sectors of the folded quadrant."""
        radius, angle = np.hypot(*self.k), np.arctan2(*np.abs(self.k))
        edges = np.quantile(radius, np.linspace(0, 1, _RINGS + 1)[1:-1])
        sector = np.minimum((angle / (np.pi / 2) * _SECTORS).astype(int), _SECTORS - 1)
        return np.unique(np.searchsorted(edges, radius) * _SECTORS + sector, return_inverse=True)[1]


def _between(
    fit: _Fit, thickness: np.ndarray, values: np.ndarray, smallest: int, geometry: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Thicknesses around the smallest misfit, and models (thickness, pixel) at the best geometry of each.

    The geometry is followed from thickness to thickness, so that it varies smoothly, and taken linearly between these.
    """
    low, high = max(smallest - 3, 0), min(smallest + 4, len(thickness))
    nodes = {thickness[smallest]: fit.best_geometry(values[smallest], geometry)[1]}
    for path in (range(smallest + 1, high), range(smallest - 1, low - 1, -1)):
        near = nodes[thickness[smallest]]
        for t in path:
            near = nodes[thickness[t]] = fit.best_geometry(values[t], near)[1]
    pattern = CubicSpline(thickness[low:high], values[low:high])
    step = np.diff(thickness).mean() * _FINE
    fine = np.arange(thickness[smallest - 1], thickness[smallest + 1] + step / 2, step)
    for _ in range(2):
        known = sorted(nodes)
        columns = np.array([nodes[t] for t in known]).T
        models = [fit.model(pattern(t), np.array([np.interp(t, known, c) for c in columns])) for t in fine]
        best = fine[int(np.argmin([fit.chi_square(m) for m in models]))]
        # Once more with the geometry of the thickness that was found.
        start = np.array([np.interp(best, known, c) for c in columns])
        nodes[best] = fit.best_geometry(pattern(best), start)[1]
    return fine, np.array(models)


def _minimum(places: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Place of the smallest of evenly spaced values, between them by a parabola, and the second derivative there."""
    i = int(np.clip(values.argmin(), 1, len(values) - 2))
    step = places[1] - places[0]
    second = (values[i - 1] - 2 * values[i] + values[i + 1]) / step**2
    first = (values[i + 1] - values[i - 1]) / (2 * step)
    moved = float(np.clip(-first / second, -step, step)) if second > 0 else 0.0
    return float(places[i] + moved), float(second)


def _measured(pattern: xr.DataArray | xr.Dataset, n: int | None) -> tuple[xr.DataArray, int, np.ndarray]:
    """The mean pattern, how many it is the mean of, and flags of its valid pixels."""
    if isinstance(pattern, xr.Dataset):
        missing = {"mean", "n"} - set(pattern.variables)
        if missing or n is not None:
            raise InputError(
                f"The statistics lack {sorted(missing)}; expected what tdm_dask.pixel_statistics returns."
                if missing
                else "The statistics say themselves how many patterns their mean is of; n=... is for a pattern alone."
            )
        mean, patterns = pattern["mean"], int(pattern["n"])
    else:
        mean, patterns = pattern, 1 if n is None else n
    if not isinstance(mean, xr.DataArray) or set(mean.dims) != set(DETECTOR):
        raise InputError(f"The pattern has dims {getattr(mean, 'dims', None)}; expected {DETECTOR}.")
    if isinstance(patterns, bool) or not isinstance(patterns, (int, np.integer)) or patterns < 1:
        raise InputError(f"n={patterns!r} was given; expected the number of patterns, at least 1.")
    require_unit(mean, DETECTOR, "mrad", "Matching a pattern")
    mean = mean.transpose(*DETECTOR).compute().astype(np.float64)
    valid = mean.coords[VALID_PIXELS].values.astype(bool) if VALID_PIXELS in mean.coords else np.ones(mean.shape, bool)
    if not np.isfinite(mean.values[valid]).all() or (mean.values[valid] < 0).any():
        raise CountsError("The pattern holds NaN, infinity or negative counts; mark these pixels in valid_pixels.")
    return mean, int(patterns), valid


def _library(library: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Thicknesses in nm, rising, and their patterns."""
    if not isinstance(library, xr.DataArray) or set(library.dims) != {THICKNESS, *DETECTOR}:
        raise InputError(f"The library has dims {getattr(library, 'dims', None)}; expected {(THICKNESS, *DETECTOR)}.")
    require_unit(library, DETECTOR, "mrad", "A library of patterns")
    unit = library.coords[THICKNESS].attrs.get("units") if THICKNESS in library.coords else None
    if unit not in _LENGTHS:
        raise CoordinateError(f'The thicknesses of the library are in "{unit}"; expected "nm" or "angstrom".')
    thickness = np.asarray(library.coords[THICKNESS].values, np.float64) * _LENGTHS[unit]
    if len(thickness) < 4 or not (np.diff(thickness) > 0).all():
        raise InputError(f"The library has thicknesses {thickness.tolist()} nm; expected at least four, rising.")
    values = np.asarray(library.transpose(THICKNESS, *DETECTOR).values, np.float64)
    if not np.isfinite(values).all():
        raise CountsError("The library holds NaN or infinity; simulate it again.")
    return thickness, values


def _ranges(rotation: Range, scale: Any, shift: float | str) -> list[tuple[float, float]]:
    """Least and largest rotation, scale and shifts."""

    def pair(value: Any, unit: str | None, what: str) -> tuple[float, float]:
        both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
        if len(both) != 2:
            raise InputError(f"{what} has {len(both)} numbers; expected one, or the least and the largest.")
        low, high = (float(v) if unit is None else quantity(v, unit, what, positive=False) for v in both)
        if not low <= high:
            raise InputError(f"{what} goes from {low:g} to {high:g}; expected the least first.")
        return low, high

    turn, size = pair(rotation, "deg", "rotation"), pair(scale, None, "scale")
    if size[0] <= 0:
        raise InputError(f"scale={scale!r} was given; expected positive numbers.")
    most = abs(quantity(shift, "mrad", "shift", positive=False))
    return [turn, size, (-most, most), (-most, most)]
