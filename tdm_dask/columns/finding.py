"""Atom columns in an image: peaks, with positions below the scan step."""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.ndimage import gaussian_filter, grey_erosion
from scipy.spatial import cKDTree
from skimage.feature import peak_local_max

from ..axes import SCAN, VALID_PATTERNS, quantity, require_unit, step_of
from ..errors import InputError, SiteError
from .refinement import Contrast, refine_columns, refined_sites
from .sites import Array

# A fifth of the distance between columns smooths noise and leaves neighbours apart: two Gaussians whose width is their
# own (about a quarter of the distance) together with this are still two peaks.
_SMOOTHING = 0.2
# Part of the pixels under the smoothing Gaussian that must be valid where a column is taken to be.
_KNOWN = 0.3
# A column walks at most this part of the separation from its brightest pixel.
_REACH = 0.5
_BRIGHTEST = 90  # percentile that stands for "a clear column", so that a hot pixel does not


def find_columns(
    image: xr.DataArray,
    *,
    separation: float | str,
    contrast: Contrast = "bright",
    threshold: float = 0.15,
) -> Array:
    """Positions of the atom columns that an image shows.

    The image is smoothed by a Gaussian of a fifth of `separation`; its maxima (scikit-image's `peak_local_max`) that
    rise high enough above their surroundings are columns, and each is refined by a Gaussian fitted to the image itself
    (:func:`tdm_dask.refine_columns`).

    Parameters
    ----------
    image : DataArray (y, x)
        In angstrom; the two steps may differ. NaN, infinite values and what a `valid_patterns` coordinate marks are
        left out. A lazy image is computed: what it reads is read once.
    separation : float (angstrom) or str
        A little less than the smallest distance between columns that are to be told apart: of two maxima nearer than
        this, the lower is dropped. No default fits every crystal.
    contrast : {"bright", "dark"}, default "bright"
        Whether columns are brighter (ADF) or darker (ABF) than what is around them.
    threshold : float in [0, 1), default 0.15
        How far a maximum must rise above the lowest value within `separation` of it, as a part of how far clear columns
        do (the 90th percentile of the maxima, after those too near a higher one are dropped). Lower it for faint
        columns, raise it where noise is taken for columns.

    Returns
    -------
    array (n, 2)
        (y, x) in angstrom, in the order of y, then x, of the maxima. Columns whose centre lies outside the scan are
        left out; where the fit fails, the maximum is refined by the centroid of the pixels around it instead.

    Raises
    ------
    SiteError
        If there is no maximum: the image is constant, or the separation larger than it.
    UnitError
        If the separation is not a positive length.
    CoordinateError
        If the image is not in angstrom.
    InputError
        If the image has other dims, or contrast or threshold make no sense.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> sizes = {"y": (30, 0.2), "x": (40, 0.15)}
    >>> steps = {dim: axis_coordinate(dim, n, step, unit="angstrom") for dim, (n, step) in sizes.items()}
    >>> y, x = (axis.astype(float) for axis in (steps["y"].values[:, None], steps["x"].values))
    >>> peaks = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 0.3**2)) for a, b in ((2.13, 1.58), (4.0, 4.2))]
    >>> image = xr.DataArray(sum(peaks), coords=steps, dims=("y", "x"))
    >>> find_columns(image, separation=2.0).round(3).tolist()
    [[2.13, 1.58], [4.0, 4.2]]
    """
    apart = quantity(separation, "angstrom", "separation")
    if contrast not in get_args(Contrast):
        raise InputError(f'The contrast is {contrast!r}; expected "bright" or "dark".')
    if not 0 <= threshold < 1:
        raise InputError(f"The threshold is {threshold}; expected a part of the contrast, from 0 to below 1.")
    measured = scan_image(image, "Finding columns")
    steps = np.array([abs(step_of(measured, dim)) for dim in SCAN])
    maxima = _maxima(measured.values if contrast == "bright" else -measured.values, steps, apart, threshold)
    if len(maxima) == 0:
        low, high = np.nanmin(measured.values), np.nanmax(measured.values)
        raise SiteError(
            f"No column stands out of the image, whose values go from {low:.6g} to {high:.6g}, with a separation of "
            f"{apart:g} angstrom; lower the separation or the threshold, or check the contrast ({contrast!r})."
        )
    axes = [measured.coords[dim].values for dim in SCAN]
    starts = np.stack([axis[maxima[:, k]] for k, axis in enumerate(axes)], axis=1)
    refined = np.asarray(refined_sites(refine_columns(measured, starts, radius=_REACH * apart, contrast=contrast)))
    failed = ~np.isfinite(refined).all(axis=1)
    sign = 1.0 if contrast == "bright" else -1.0
    for n in np.flatnonzero(failed):
        refined[n] = _centroid(sign * measured.values, axes, starts[n], _REACH * apart)
    inside = np.ones(len(refined), bool)
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        inside &= (refined[:, k] >= axis.min() - step / 2) & (refined[:, k] <= axis.max() + step / 2)
    return refined[inside]


def scan_image(image: xr.DataArray, what: str) -> xr.DataArray:
    """An image (y, x) in angstrom as float64 in memory, NaN wherever it is not valid or not finite.

    Raises
    ------
    InputError
        If it is no such image; `what` begins the sentence about its unit.
    """
    if not isinstance(image, xr.DataArray) or set(image.dims) != set(SCAN):
        found = tuple(image.dims) if isinstance(image, xr.DataArray) else type(image).__name__
        raise InputError(f"The image has dims {found}; expected (y, x).")
    require_unit(image, SCAN, "angstrom", what)
    image = image.transpose(*SCAN)
    if min(image.shape) < 3:
        raise InputError(f"The image has {image.shape[0]} x {image.shape[1]} pixels; at least 3 x 3 are needed.")
    values = np.array(image.values, dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    if VALID_PATTERNS in image.coords:
        values[~image.coords[VALID_PATTERNS].transpose(*SCAN).values.astype(bool)] = np.nan
    if not np.isfinite(values).any():
        raise InputError("The image holds no finite value at a valid probe position; nothing can be found in it.")
    coords = {dim: image.coords[dim].variable for dim in SCAN}
    return xr.DataArray(values, coords=coords, dims=SCAN, name=image.name)


def column_heights(image: xr.DataArray, peaks: Array, contrast: Contrast) -> Array:
    """Value of the image at the probe position nearest to each column, the larger the clearer."""
    values = smoothed(image.values, 0.5)
    y, x = np.meshgrid(*(image.coords[dim].values for dim in SCAN), indexing="ij")
    nearest = cKDTree(np.column_stack([y.ravel(), x.ravel()])).query(peaks)[1]
    return np.asarray(values.ravel()[nearest] * (1 if contrast == "bright" else -1))


def smoothed(values: Array, sigma: npt.ArrayLike) -> Array:
    """A Gaussian average, sigma in pixels, of the finite values around each pixel; NaN far from any."""
    known = np.isfinite(values)
    weights = gaussian_filter(known.astype(np.float64), sigma, mode="constant")
    sums = gaussian_filter(np.where(known, values, 0.0), sigma, mode="constant")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weights > 1e-3, sums / weights, np.nan)


def _maxima(values: Array, steps: Array, separation: float, threshold: float) -> npt.NDArray[np.intp]:
    """Pixels (n, 2) of the maxima, by rows."""
    smooth = smoothed(values, _SMOOTHING * separation / steps)
    span = np.nanmax(smooth) - np.nanmin(smooth)
    if not span > 1e-9 * np.nanmax(np.abs(values)):
        return np.empty((0, 2), np.intp)
    around = _ellipse(separation / steps)
    low = grey_erosion(np.where(np.isfinite(smooth), smooth, np.inf), footprint=around, mode="nearest")
    filled = np.where(np.isfinite(smooth), smooth, np.nanmin(smooth))
    rise = filled - np.where(np.isfinite(low), low, filled)
    # Every pixel above its neighbours, as a faint column may lie on the slope of a bright one.
    found = peak_local_max(filled, footprint=np.ones((3, 3)), exclude_border=False, threshold_abs=-np.inf)
    # A flat top gives several equal neighbours, and flat ground as many as it has pixels.
    found = found[rise[tuple(found.T)] > 1e-9 * span]
    # A single missing pattern may be the top of a column; beyond the edge of a missing part nothing is known.
    share = gaussian_filter(np.isfinite(values).astype(np.float64), _SMOOTHING * separation / steps, mode="nearest")
    found = found[share[tuple(found.T)] > _KNOWN]
    if len(found) == 0:
        return found
    found = _thinned(found, filled[tuple(found.T)], steps, separation)
    height = rise[tuple(found.T)]
    found = found[height >= threshold * np.percentile(height, _BRIGHTEST, method="lower")]
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _thinned(found: npt.NDArray[np.intp], height: Array, steps: Array, separation: float) -> npt.NDArray[np.intp]:
    """The highest of maxima that are nearer to each other than the separation."""
    kept: list[npt.NDArray[np.intp]] = []
    places = found * steps
    free = np.ones(len(found), bool)
    for n in np.argsort(-height, kind="stable"):
        if free[n]:
            kept.append(found[n])
            free &= np.hypot(*(places - places[n]).T) >= separation
    return np.array(kept)


def _ellipse(radii: Array) -> npt.NDArray[np.bool_]:
    """Pixels within a circle in angstrom, at least the eight neighbours."""
    reach = np.maximum(np.floor(radii), 1).astype(int)
    y, x = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    inside = (y / radii[0]) ** 2 + (x / radii[1]) ** 2 <= 1
    return np.asarray(inside | ((abs(y) <= 1) & (abs(x) <= 1)))


def _centroid(values: Array, axes: list[Array], start: Array, radius: float) -> Array:
    """Centre of what rises above the lowest pixel within a radius."""
    rows, columns = (np.abs(axis - s) <= radius for axis, s in zip(axes, start, strict=True))
    y, x = np.meshgrid(axes[0][rows], axes[1][columns], indexing="ij")
    part = values[np.ix_(rows, columns)]
    used = np.isfinite(part) & (np.hypot(y - start[0], x - start[1]) <= radius)
    weight = part[used] - part[used].min()
    if not weight.sum() > 0:
        return start
    return np.array([weight @ y[used], weight @ x[used]]) / weight.sum()
