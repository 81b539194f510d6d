"""Sub-pixel positions of atom columns: Gaussians fitted to an image around given sites."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.spatial import cKDTree

from ..axes import SCAN, TEMPLATE, quantity, require_unit, step_of
from ..errors import InputError, SiteError
from .sites import Array, Sites, sites_by_kind

Contrast = Literal["bright", "dark"]

COLUMN = "column"
_UNKNOWNS = 5  # y, x, amplitude, width, background
_REACH = 3.0  # radii: the peaks of columns that far away still reach into a window
_MOST_NEIGHBOURS = 12
_WIDTHS = (0.05, 2.0)  # radii
_NARROWEST = 1 / 3  # scan steps: a narrower peak fits between probe positions, where it can be anything
_HIGHEST = 10.0  # ranges of the data
_SETTLED = 3e-5  # radii
_ROUNDING = 1e-10  # of a sum of squares
_SWEEPS = 200
_BRISK = 30  # sweeps of whole steps: columns that overlap much may then answer one another for ever


def refine_columns(
    image: xr.DataArray, sites: Sites, *, radius: float | str | None = None, contrast: Contrast = "bright"
) -> xr.Dataset:
    r"""Positions of atom columns below the scan step, by least-squares fits of 2D Gaussians around given sites.

    .. math:: s(y, x) = b + \sum_i A_i \exp\left(-\frac{(y - y_i)^2 + (x - x_i)^2}{2 w_i^2}\right)

    is fitted by least squares (Levenberg-Marquardt) to the pixels within `radius` of each site that are not nearer to
    another one. i runs over the column itself and its nearest neighbours among the given ones (twelve at most), so that
    columns that overlap are fitted together: each in its own window and with a background of its own, in turns until
    none moves any more. Every fit starts from the given sites.

    Parameters
    ----------
    image : DataArray (y, x), or (template, y, x)
        In angstrom; the two steps may differ. NaN pixels are left out. Of several images, each kind of column is
        fitted in the one of its name. A lazy image is computed: what it reads is read once.
    sites : array (n, 2), or mapping of str to array (n, 2)
        (y, x) positions in angstrom, to start from. All of them count as neighbours, whatever their kind, as far as
        they are fitted in the same image.
    radius : float (angstrom) or str, optional
        Of the window around a site, and how far a column may walk from it. Default: half the median distance from a
        site to its nearest, so that windows do not overlap. Larger ones use more pixels and need a flat background.
    contrast : {"bright", "dark"}, default "bright"
        Whether columns are brighter or darker than what is around them.

    Returns
    -------
    Dataset, dim "column", in the order of `sites`
        `y`, `x`, `error_y`, `error_x`, `width` (of the Gaussian) in angstrom; `amplitude` (negative where dark) and
        `background` in the units of the image; `start_y` and `start_x`; and `flag`: "ok"; "outside" for sites more than
        half a step outside the image; "few pixels" where the window holds no more than five pixels; "walked" where the
        fit went as far as `radius` from the site; "contrast" where it found the other contrast; "failed" where it did
        not converge or found no peak of a width between a twentieth and twice the radius, and of at least a third of
        the scan step. Whatever is not "ok" is NaN.
        The coordinate `kind` is "sites" where sites came without kinds. :func:`refined_sites` gives the positions in
        the structure of `sites`.

        Errors are standard deviations from the covariance of a column's own unknowns, with the noise taken from the
        residuals in its window. They do not hold what the model misses (a background that is not flat, peaks that are
        no Gaussians), nor what the errors of overlapping neighbours add.

    Raises
    ------
    SiteError
        If sites are not finite (n, 2) positions, or there is but one and no radius, or a kind has no image.
    CoordinateError
        If the image is not in angstrom.
    InputError
        If the image has other dims, or the contrast is unknown.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> y, x = axis_coordinate("y", 30, 0.2, unit="angstrom"), axis_coordinate("x", 20, 0.3, unit="angstrom")
    >>> peak = 7 * np.exp(-((y.values[:, None] - 2.13) ** 2 + (x.values - 3.08) ** 2) / (2 * 0.5**2))
    >>> image = xr.DataArray(peak, coords={"y": y, "x": x}, dims=("y", "x"))
    >>> found = refine_columns(image, {"Li": [(2.0, 3.3)]}, radius="120 pm")
    >>> refined_sites(found)["Li"].round(3).tolist(), float(found["width"][0].round(3))
    ([[2.13, 3.08]], 0.5)
    """
    if contrast not in get_args(Contrast):
        raise InputError(f'The contrast is {contrast!r}; expected "bright" or "dark".')
    kinds, single = sites_by_kind(sites)
    reach = _spacing(np.concatenate(list(kinds.values()))) if radius is None else quantity(radius, "angstrom", "radius")
    dims = (TEMPLATE, *SCAN) if TEMPLATE in getattr(image, "dims", ()) else SCAN
    if not isinstance(image, xr.DataArray) or set(image.dims) != set(dims):
        found = tuple(image.dims) if isinstance(image, xr.DataArray) else type(image).__name__
        raise InputError(f"The image has dims {found}; expected ([template,] y, x).")
    require_unit(image, SCAN, "angstrom", "Positions of columns")
    groups = [(image, list(kinds))] if dims == SCAN else [(_image_of(image, kind), [kind]) for kind in kinds]
    parts = [_fitted(plane, np.concatenate([kinds[k] for k in names]), reach, contrast) for plane, names in groups]
    return _labelled(parts, kinds, single, image, reach, contrast)


def refined_sites(columns: xr.Dataset) -> Array | dict[str, Array]:
    """Positions that `refine_columns` found, in the structure of the sites that it was given.

    Parameters
    ----------
    columns : Dataset
        What :func:`refine_columns` returned.

    Returns
    -------
    array (n, 2), or dict of str to array (n, 2)
        (y, x) in angstrom, NaN for columns that are flagged.

    Examples
    --------
    >>> columns = xr.Dataset({"y": ("column", [1.0]), "x": ("column", [2.0])}, {"kind": ("column", ["Li"])})
    >>> refined_sites(columns)
    {'Li': array([[1., 2.]])}
    """
    positions = np.stack([columns[dim].values for dim in SCAN], axis=1)
    if columns.attrs.get("without_kinds"):
        return positions
    kinds = columns["kind"].values
    return {str(kind): positions[kinds == kind] for kind in dict.fromkeys(kinds.tolist())}


def _spacing(positions: Array) -> float:
    """Half the median distance between nearest sites."""
    if len(positions) < 2:
        raise SiteError("There is but one site, so that no radius follows from their spacing; give the radius.")
    nearest = cKDTree(positions).query(positions, k=2)[0][:, 1]
    half = 0.5 * float(np.median(nearest))
    if half == 0:
        raise SiteError("Most sites are listed twice, so that no radius follows from their spacing; give the radius.")
    return half


def _image_of(images: xr.DataArray, kind: str) -> xr.DataArray:
    names = [str(name) for name in images[TEMPLATE].values] if TEMPLATE in images.coords else []
    if kind not in names:
        raise SiteError(f'There is no image for the sites of "{kind}" among {names}; give one per kind, or one image.')
    return images.isel({TEMPLATE: names.index(kind)})


@dataclass(frozen=True)
class _Windows:
    """Pixels around every site, n sites by p pixels: positions, values, and which of them count."""

    y: Array
    x: Array
    data: Array
    used: npt.NDArray[np.bool_]


def _fitted(image: xr.DataArray, starts: Array, radius: float, contrast: Contrast) -> tuple[Array, list[str]]:
    """Parameters and errors (n, 7) and flags of all columns of one image."""
    values = np.asarray(image.transpose(*SCAN).values, np.float64)
    axes = [np.asarray(image.coords[dim].values, np.float64) for dim in SCAN]
    steps = [abs(step_of(image, dim)) for dim in SCAN]
    outside = np.zeros(len(starts), bool)
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        outside |= (starts[:, k] < axis.min() - step / 2) | (starts[:, k] > axis.max() + step / 2)
    neighbours = _neighbours(starts, _REACH * radius)
    windows = _windows(values, axes, starts, neighbours, radius)
    level = windows.data[windows.used]
    spread = float(np.ptp(level)) if level.size else 0.0
    unit = spread if spread > 0 else 1.0
    fitted = ~outside & (windows.used.sum(1) > _UNKNOWNS)
    scaled = replace(windows, data=windows.data / unit)
    best, settled, errors = _fit(scaled, starts, neighbours, fitted, radius, contrast)
    best[:, [2, 4]] *= unit
    walked = np.hypot(*(best[:, :2] - starts).T) >= radius * (1 - 1e-9)
    width = best[:, 3] / radius
    narrowest = max(_WIDTHS[0] * (1 + 1e-9), _NARROWEST * max(steps) / radius)
    broken = ~settled | (width <= narrowest) | (width >= _WIDTHS[1] * (1 - 1e-9)) | ~np.isfinite(errors).all(1)
    wrong = best[:, 2] <= 0 if contrast == "bright" else best[:, 2] >= 0
    flags = np.select(
        [outside, ~fitted, walked, wrong, broken], ["outside", "few pixels", "walked", "contrast", "failed"], "ok"
    )
    results = np.concatenate([best, errors], axis=1)
    results[flags != "ok"] = np.nan
    return results, flags.tolist()


def _neighbours(starts: Array, reach: float) -> npt.NDArray[np.int64]:
    """Indices (n, k) of the nearest sites within reach of each site, n in place of those that are not there."""
    most = min(len(starts), _MOST_NEIGHBOURS + 1)
    distance, index = cKDTree(starts).query(starts, k=np.arange(1, most + 1), distance_upper_bound=reach)
    # A site that is listed twice is no neighbour of its own.
    return np.where(distance > 0, index, len(starts))


def _windows(
    values: Array, axes: list[Array], starts: Array, neighbours: npt.NDArray[np.int64], radius: float
) -> _Windows:
    """The finite pixels within `radius` of every site and not nearer to a neighbour."""
    places, inside = [], []
    for k, axis in enumerate(axes):
        step = (axis[-1] - axis[0]) / (len(axis) - 1) if len(axis) > 1 else 1.0
        half = int(np.ceil(radius / abs(step)))
        centre = np.rint((starts[:, k] - axis[0]) / step).astype(np.int64)
        index = centre[:, None] + np.arange(-half, half + 1)
        places.append(np.clip(index, 0, len(axis) - 1))
        inside.append((index >= 0) & (index < len(axis)))
    rows, columns = places
    shape = (len(starts), -1)
    y, x = np.broadcast_arrays(axes[0][rows][:, :, None], axes[1][columns][:, None, :])
    data = values[rows[:, :, None], columns[:, None, :]].reshape(shape)
    y, x = y.reshape(shape), x.reshape(shape)
    used = (inside[0][:, :, None] & inside[1][:, None, :]).reshape(shape) & np.isfinite(data)
    distance = np.hypot(y - starts[:, [0]], x - starts[:, [1]])
    used &= distance <= radius * (1 + 1e-9)
    everywhere = np.append(starts, [[np.inf, np.inf]], axis=0)
    for other in everywhere[neighbours].transpose(1, 0, 2):
        used &= distance <= np.hypot(y - other[:, [0]], x - other[:, [1]])
    # Pixels that count first, and no more columns of pixels than the fullest window needs.
    order = np.argsort(~used, axis=1, kind="stable")[:, : max(int(used.sum(1).max()), 1)]
    y, x, data, used = (np.take_along_axis(a, order, axis=1) for a in (y, x, data, used))
    return _Windows(y, x, np.where(used, data, 0.0), used)


def _fit(
    windows: _Windows,
    starts: Array,
    neighbours: npt.NDArray[np.int64],
    fitted: npt.NDArray[np.bool_],
    radius: float,
    contrast: Contrast,
) -> tuple[Array, npt.NDArray[np.bool_], Array]:
    """Unknowns (n, 5) of every column, which of them settled, and standard errors (n, 2) of their positions.

    In each sweep every column takes one step of Levenberg and Marquardt in its own window, the others' peaks taken off
    as they are, so that a sweep is a few operations on all windows at once.
    """
    n = len(starts)
    best = np.concatenate([starts, _first_guess(windows, starts, neighbours, radius, contrast)], axis=1)
    # One more row, of amplitude 0, for neighbours that are not there.
    best = np.concatenate([best, [[0.0, 0.0, 0.0, 1.0, 0.0]]])
    best[:-1][~fitted, 2] = 0.0
    damping, moved = np.full(n, 1e-2), np.append(np.where(fitted, np.inf, 0.0), 0.0)
    tolerance = _SETTLED * radius
    for sweep in range(_SWEEPS):
        active = np.flatnonzero(fitted & ((moved[:-1] > tolerance) | (moved[neighbours] > tolerance).any(1)))
        if not len(active):
            break
        others = _others(windows, best, neighbours, active)
        residuals, slopes = _model(windows, best, others, active)
        normal = np.einsum("nip,njp->nij", slopes, slopes)
        diagonal = np.einsum("nii->ni", normal)
        diagonal += damping[active, None] * diagonal + 1e-12
        step = -np.linalg.solve(normal, np.einsum("nip,np->ni", slopes, residuals)[..., None])[..., 0]
        trial = best.copy()
        trial[active] = _bounded(best[active] + (1.0 if sweep < _BRISK else 0.5) * step, starts[active], radius)
        after = _difference(windows, trial, others, active)
        # At the minimum, rounding decides whether a step is better: that must neither refuse it nor wake neighbours.
        better = (after**2).sum(1) <= (1 + _ROUNDING) * (residuals**2).sum(1)
        change = np.abs(trial[active] - best[active])[:, [0, 1, 3]].max(1)
        # A step that is refused says nothing, until even the smallest one is.
        moved[active] = np.where(better | (damping[active] > 1e6), change, np.inf)
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 10.0), 1e-8, 1e8)
        best[active[better]] = trial[active[better]]
    every = np.arange(n)
    residuals, slopes = _model(windows, best, _others(windows, best, neighbours, every), every)
    free = windows.used.sum(1) - _UNKNOWNS
    noise = (residuals**2).sum(1) / np.maximum(free, 1)
    normal = np.einsum("nip,njp->nij", slopes, slopes)
    covariance = np.linalg.pinv(normal, rcond=1e-14, hermitian=True)
    errors = np.sqrt(noise[:, None] * np.maximum(np.einsum("nii->ni", covariance)[:, :2], 0.0))
    return best[:-1], moved[:-1] <= tolerance, errors


def _first_guess(
    windows: _Windows, starts: Array, neighbours: npt.NDArray[np.int64], radius: float, contrast: Contrast
) -> Array:
    """Amplitude, width and background (n, 3) to start from."""
    sign = 1.0 if contrast == "bright" else -1.0
    data = sign * windows.data
    low = np.where(windows.used, data, np.inf).min(1)
    high = np.where(windows.used, data, -np.inf).max(1)
    empty = ~windows.used.any(1)
    low[empty], high[empty] = 0.0, 0.0
    # Peaks that start as wide as their distance would make up one another's background.
    everywhere = np.append(starts, [[np.inf, np.inf]], axis=0)
    nearest = np.hypot(*np.moveaxis(everywhere[neighbours] - starts[:, None], -1, 0)).min(1, initial=np.inf)
    return np.stack([sign * (high - low), 0.5 * np.minimum(radius, nearest / 2), sign * low], axis=1)


def _bounded(unknowns: Array, starts: Array, radius: float) -> Array:
    """No further than `radius` from the start, and no width that the window cannot tell."""
    away = unknowns[:, :2] - starts
    distance = np.hypot(*away.T)
    unknowns[:, :2] = starts + away * np.minimum(1.0, radius / np.maximum(distance, 1e-300))[:, None]
    # The data span a range of one.
    unknowns[:, 2] = np.clip(unknowns[:, 2], -_HIGHEST, _HIGHEST)
    unknowns[:, 3] = np.clip(unknowns[:, 3], _WIDTHS[0] * radius, _WIDTHS[1] * radius)
    return unknowns


def _peaks(windows: _Windows, unknowns: Array, which: npt.NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Offsets along y and x from a column to the pixels of some windows, and its Gaussian of height one."""
    cy, cx, _, width, _ = unknowns.T[..., None]
    dy, dx = windows.y[which] - cy, windows.x[which] - cx
    return dy, dx, np.exp(-(dy**2 + dx**2) / (2 * width**2))


def _others(
    windows: _Windows, unknowns: Array, neighbours: npt.NDArray[np.int64], which: npt.NDArray[np.int64]
) -> Array:
    """What the neighbours' peaks add to the windows of some columns."""
    total = np.zeros((len(which), windows.y.shape[1]))
    for column in neighbours[which].T:
        there = np.flatnonzero(unknowns[column, 2] != 0)
        theirs = unknowns[column[there]]
        total[there] += theirs[:, [2]] * _peaks(windows, theirs, which[there])[2]
    return total


def _difference(windows: _Windows, unknowns: Array, others: Array, which: npt.NDArray[np.int64]) -> Array:
    """Model less data, 0 at pixels that do not count."""
    own = unknowns[which]
    model = own[:, [2]] * _peaks(windows, own, which)[2] + own[:, [4]] + others
    return np.where(windows.used[which], model - windows.data[which], 0.0)


def _model(windows: _Windows, unknowns: Array, others: Array, which: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Residuals (n, p) of some columns, and their derivatives (n, 5, p) by each column's own unknowns."""
    own = unknowns[which]
    dy, dx, peak = _peaks(windows, own, which)
    _, _, amplitude, width, _ = own.T[..., None]
    steep = amplitude * peak / width**2
    slopes = np.stack([steep * dy, steep * dx, peak, steep * (dy**2 + dx**2) / width, np.ones_like(peak)], axis=1)
    residuals = _difference(windows, unknowns, others, which)
    return residuals, slopes * windows.used[which][:, None]


def _labelled(
    parts: list[tuple[Array, list[str]]],
    kinds: dict[str, Array],
    single: bool,
    image: xr.DataArray,
    radius: float,
    contrast: Contrast,
) -> xr.Dataset:
    values = np.concatenate([part[0] for part in parts])
    units = str(image.attrs.get("units", "1"))
    length = {"units": "angstrom"}
    rows: dict[str, tuple[Array, dict[str, Any]]] = {
        "y": (values[:, 0], length | {"long_name": "position along the slow scan"}),
        "x": (values[:, 1], length | {"long_name": "position along the fast scan"}),
        "amplitude": (values[:, 2], {"units": units, "long_name": "height of the peak"}),
        "width": (values[:, 3], length | {"long_name": "standard deviation of the Gaussian"}),
        "background": (values[:, 4], {"units": units, "long_name": "background"}),
        "error_y": (values[:, 5], length | {"long_name": "standard error along y"}),
        "error_x": (values[:, 6], length | {"long_name": "standard error along x"}),
    }
    starts = np.concatenate(list(kinds.values()))
    for k, dim in enumerate(SCAN):
        rows[f"start_{dim}"] = (starts[:, k], length | {"long_name": f"{dim} that the fit started from"})
    data = {name: (COLUMN, column, attrs) for name, (column, attrs) in rows.items()}
    flags = np.array([flag for part in parts for flag in part[1]])
    data["flag"] = (COLUMN, flags, {"long_name": "whether the fit holds, or why not"})
    kind = (COLUMN, np.repeat(list(kinds), [len(p) for p in kinds.values()]), {"long_name": "kind of column"})
    attrs = {"radius_angstrom": radius, "contrast": contrast, "without_kinds": int(single)}
    return xr.Dataset(data, {"kind": kind}, attrs)
