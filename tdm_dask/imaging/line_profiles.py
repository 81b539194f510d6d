"""Profiles of images along lines: one line, or the same line in every unit cell, and where their peaks lie.

All lengths are in angstrom, all positions (y, x).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN, TEMPLATE, axis_coordinate, quantity, require_unit, step_of
from ..errors import InputError, RegionError

DISTANCE = "distance"

Array = npt.NDArray[np.float64]
Place = Sequence[float]


def line_profile(
    image: xr.DataArray, start: Place, end: Place, *, width: float | str = 0.0, step: float | str | None = None
) -> xr.DataArray:
    """Profile of an image from one point to another, averaged across a width.

    Parameters
    ----------
    image : DataArray, dims ([template,] y, x)
        Over a scan in angstrom. A lazy one is computed.
    start, end : (float, float)
        (y, x) in angstrom.
    width : float (angstrom) or str, default 0
        Distance between two lines parallel to the profile, half of it on either side, between which the image is
        averaged; 0 takes the line alone.
    step : float (angstrom) or str, optional
        Distance between points of the profile; by default a third of the smaller scan step.

    Returns
    -------
    DataArray, dims ([template,] distance)
        Mean over the width, in the image's unit, against the distance from `start`. The image is interpolated between
        probe positions by cubic splines. NaN where any part of the width lies beside the scan or next to NaN: a mean
        of what is left would be of another place.

    Raises
    ------
    CoordinateError
        If the scan is not in angstrom.
    InputError
        If start and end are the same, or are no (y, x) pairs.
    RegionError
        If no point of the profile lies inside the scan.

    Examples
    --------
    >>> scan = {dim: axis_coordinate(dim, 5, 0.5, 0.0, "angstrom") for dim in ("y", "x")}
    >>> image = xr.DataArray(np.arange(25.0).reshape(5, 5), scan, ("y", "x"))  # 2 per angstrom along x
    >>> profile = line_profile(image, (1, 0), (1, 2), width=1, step=0.5)
    >>> profile.values.round(6).tolist(), profile.distance.values.tolist()
    ([10.0, 11.0, 12.0, 13.0, 14.0], [0.0, 0.5, 1.0, 1.5, 2.0])
    """
    image, values, spacing = _prepared(image)
    first, vector = _place(start, "start"), _place(end, "end") - _place(start, "start")
    distance, sampled = _grid(vector, width, step, spacing, "start and end")
    points = first[:, None, None] + sampled
    profile = _sampled(image, values, points).mean(-1)
    if np.isnan(profile).all():
        raise RegionError(
            f"No point of the profile from {tuple(first)} to {tuple(first + vector)} angstrom has its whole width "
            "inside the scan; move it or make it narrower."
        )
    return _labelled(image, profile[0] if TEMPLATE not in image.dims else profile, distance, image.attrs)


def averaged_profile(
    image: xr.DataArray,
    start: Place,
    period: Place,
    *,
    width: float | str,
    repeat: Place | None = None,
    step: float | str | None = None,
) -> xr.Dataset:
    """Profile over one period of a crystal, averaged over all unit cells of the image.

    Parameters
    ----------
    image : DataArray, dims ([template,] y, x)
        Over a scan in angstrom. A lazy one is computed. Set it to NaN (``image.where(domain)``) where the crystal is
        another.
    start : (float, float)
        (y, x) in angstrom where a period begins, on the middle line of the strip; it may lie outside the scan.
    period : (float, float)
        (y, x) from `start` to where the period ends, which is the direction of the profile.
    width : float (angstrom) or str
        Between the two lines along the strip, as in `line_profile`.
    repeat : (float, float), optional
        Another vector (y, x) of the lattice, by which the strip occurs again; by default only the strip through
        `start` is used.
    step : float (angstrom) or str, optional
        About the distance between points; a whole number of them makes a period. By default a third of the smaller
        scan step.

    Returns
    -------
    Dataset, dims ([template,] distance)
        `mean` over the unit cells and its `standard_error` (the sample's standard deviation over the root of the
        number; NaN of a single cell), both in the image's unit, and `n`, the number of cells with a value there:
        where the whole width lies inside the scan and not next to NaN. The distance goes from 0 to one step below the
        period.

    Raises
    ------
    CoordinateError
        If the scan is not in angstrom.
    InputError
        If a vector is 0, or `repeat` lies along the period.
    RegionError
        If no unit cell reaches into the scan.

    Examples
    --------
    >>> scan = {dim: axis_coordinate(dim, 40, 0.25, 0.0, "angstrom") for dim in ("y", "x")}
    >>> image = xr.DataArray(np.broadcast_to(np.cos(np.pi * np.arange(40) * 0.25), (40, 40)), scan, ("y", "x"))
    >>> cell = averaged_profile(image, (1, 0), (0, 2), width=1, repeat=(3, 0), step=0.25)
    >>> (cell["mean"].values.round(3) + 0.0).tolist(), int(cell["n"].max())
    ([1.0, 0.707, 0.0, -0.707, -1.0, -0.707, 0.0, 0.707], 15)
    """
    image, values, spacing = _prepared(image)
    first, along = _place(start, "start"), _place(period, "period")
    distance, sampled = _grid(along, width, step, spacing, "period", closed=False)
    across = None if repeat is None else _place(repeat, "repeat")
    if across is not None and abs(_cross(along, across)) < 1e-6 * np.hypot(*along) * np.hypot(*across) + 1e-12:
        raise InputError(f"repeat {tuple(across)} lies along the period {tuple(along)}; give another lattice vector.")
    cells = []
    for origin in _origins(image, first, along, across):
        cell = _sampled(image, values, origin[:, None, None] + sampled).mean(-1)
        if np.isfinite(cell).any():
            cells.append(cell)
    if not cells:
        raise RegionError(
            f"No point of a strip {width} angstrom wide through {tuple(first)} lies inside the scan with its whole "
            "width; move it or make it narrower."
        )
    stacked = np.stack(cells)
    known = np.isfinite(stacked)
    n = known.sum(0)
    mean = np.where(known, stacked, 0.0).sum(0) / np.where(n > 0, n, np.nan)
    squares = (np.where(known, stacked - mean, 0.0) ** 2).sum(0)
    error = np.sqrt(squares / np.where(n > 1, (n - 1.0) * n, np.nan))
    of_error = {"long_name": "standard error", "units": image.attrs.get("units", "1")}
    parts = {"mean": (mean, image.attrs), "standard_error": (error, of_error)}
    parts["n"] = (n, {"long_name": "unit cells", "units": "1"})
    bare = TEMPLATE not in image.dims
    found = {k: _labelled(image, v[0] if bare else v, distance, attrs) for k, (v, attrs) in parts.items()}
    facts = {"start_angstrom": first.tolist(), "period_angstrom": along.tolist()}
    facts |= {} if across is None else {"repeat_angstrom": across.tolist()}
    return xr.Dataset(found, attrs=facts | {"width_angstrom": quantity(width, "angstrom", "width", positive=False)})


def profile_sites(profile: xr.Dataset, sites: Mapping[str, npt.ArrayLike], *, same: float = 0.1) -> dict[str, Array]:
    """Where the columns between the two lines of an averaged profile lie along it.

    Parameters
    ----------
    profile : Dataset
        From `averaged_profile`.
    sites : mapping of str to array (n, 2)
        (y, x) in angstrom by kind of column, those of every unit cell, or of one whole cell at least.
    same : float (angstrom), default 0.1
        Columns of a kind that lie closer than this along the profile are one: the same column of several cells.

    Returns
    -------
    dict of str to array (n,)
        Distances in angstrom from 0 to below the period, ascending; kinds with no column there are left out.

    Examples
    --------
    >>> scan = {dim: axis_coordinate(dim, 9, 0.5, 0.0, "angstrom") for dim in ("y", "x")}
    >>> image = xr.DataArray(np.zeros((9, 9)), scan, ("y", "x"))
    >>> profile = averaged_profile(image, (1, 0), (0, 2), width=1)
    >>> found = profile_sites(profile, {"Li": [(1.2, 0.5), (0.9, 2.5)], "O": [(3, 1)]})
    >>> {kind: places.tolist() for kind, places in found.items()}
    {'Li': [0.5]}
    """
    start, along = (np.asarray(profile.attrs[f"{name}_angstrom"]) for name in ("start", "period"))
    length = float(np.hypot(*along))
    unit = along / length
    across = np.asarray(profile.attrs.get("repeat_angstrom", (0.0, 0.0)))
    rise, half = _cross(unit, across), profile.attrs["width_angstrom"] / 2 + 1e-6
    found = {}
    for kind, places in sites.items():
        relative = np.asarray(places, np.float64).reshape(-1, 2) - start
        height, distance = unit[0] * relative[:, 1] - unit[1] * relative[:, 0], relative @ unit
        if rise:  # back to the strip through the start
            strips = np.rint(height / rise)
            height, distance = height - strips * rise, distance - strips * (across @ unit)
        at = np.sort(distance[np.abs(height) <= half] % length)
        if len(at):
            groups = np.split(at, np.flatnonzero(np.diff(at) > same) + 1)
            if len(groups) > 1 and groups[0][0] + length - groups[-1][-1] <= same:  # across the end of the period
                groups[0] = np.concatenate([groups[0], groups.pop() - length])
            found[kind] = np.sort([group.mean() % length for group in groups])
    return found


def normalised(profile: xr.DataArray | xr.Dataset) -> Any:
    """A profile between 0 and 1, its least and largest value; of a Dataset the standard error is scaled alike.

    Parameters
    ----------
    profile : DataArray or Dataset
        From `line_profile` or `averaged_profile`; each template by itself.

    Returns
    -------
    DataArray or Dataset

    Raises
    ------
    InputError
        If a profile is the same everywhere.

    Examples
    --------
    >>> normalised(xr.DataArray([2.0, 4.0, 3.0], dims="distance")).values.tolist()
    [0.0, 1.0, 0.5]
    """
    values = profile["mean"] if isinstance(profile, xr.Dataset) else profile
    low, high = values.min(DISTANCE), values.max(DISTANCE)
    if not bool((high > low).all()):
        raise InputError("A profile is the same everywhere, or NaN; it has no least and largest value to scale by.")
    scaled = (values - low) / (high - low)
    scaled.attrs = {**values.attrs, "units": "1"}
    if isinstance(profile, xr.DataArray):
        return scaled
    error = profile["standard_error"] / (high - low)
    error.attrs = {**profile["standard_error"].attrs, "units": "1"}
    return profile.assign(mean=scaled, standard_error=error)


def profile_peaks(profile: xr.DataArray, *, periodic: bool = False, prominence: float = 0.05) -> Array:
    """Where a profile has its maxima, refined by a parabola through three points.

    Parameters
    ----------
    profile : DataArray, dims (distance)
    periodic : bool, default False
        Whether it continues at its other end, as an `averaged_profile` does; else its ends are no maxima.
    prominence : float, default 0.05
        How far a maximum must rise above the higher of the two minima beside it, as a part of the profile's range:
        what noise does is less.

    Returns
    -------
    array (n,)
        Distances in angstrom, ascending; those of a periodic profile from 0 to below the period.

    Raises
    ------
    InputError
        If the profile has another dim than distance, holds NaN, or has fewer than three points.

    Examples
    --------
    >>> x = np.arange(0, 6, 0.25)
    >>> wave = xr.DataArray(np.cos(2 * np.pi * (x - 0.1) / 3), {"distance": x}, "distance")
    >>> profile_peaks(wave, periodic=True).round(2).tolist()
    [0.1, 3.1]
    """
    from scipy.signal import find_peaks

    if profile.dims != (DISTANCE,) or profile.size < 3 or not np.isfinite(profile.values).all():
        raise InputError(
            f"The profile has dims {profile.dims}, {profile.size} points and "
            f"{int((~np.isfinite(profile.values)).sum())} NaN or infinite values; expected distance alone, at least 3 "
            "points and none of these."
        )
    values = np.asarray(profile.values, np.float64)
    size, step = len(values), step_of(profile, DISTANCE)
    if not np.ptp(values) > 0:
        return np.empty(0)
    # Three periods, of which the middle one counts: a peak's surroundings are then whole.
    longer = np.tile(values, 3) if periodic else values
    at, _ = find_peaks(longer, prominence=prominence * np.ptp(values))
    left, middle, right = longer[at - 1], longer[at], longer[at + 1]
    bend = left - 2 * middle + right
    shift = np.divide(left - right, 2 * bend, out=np.zeros(len(at)), where=bend < 0)
    if periodic:
        inside = (at >= size) & (at < 2 * size)
        at, shift = at[inside] - size, shift[inside]
        # Rounded: what lies the last digit below 0 is at 0, and not a period further.
        return np.sort(np.round(at + shift, 9) % size * step + float(profile[DISTANCE][0]))
    return (at + shift) * step + float(profile[DISTANCE][0])


def _prepared(image: xr.DataArray) -> tuple[xr.DataArray, Array, float]:
    """The image with its dims in order, its values (template, y, x), and the smaller scan step."""
    if not isinstance(image, xr.DataArray) or not set(SCAN) <= set(image.dims) <= {TEMPLATE, *SCAN}:
        dims = tuple(image.dims) if isinstance(image, xr.DataArray) else type(image).__name__
        raise InputError(f"The image has dims {dims}; expected ([template,] y, x).")
    require_unit(image, SCAN, "angstrom", "A profile")
    image = image.transpose(..., *SCAN)
    values = np.asarray(image.values, np.float64).reshape(-1, *(image.sizes[d] for d in SCAN))
    return image, values, min(abs(step_of(image, d)) for d in SCAN)


def _place(pair: Place, what: str) -> Array:
    try:
        place = np.asarray(pair, np.float64)
    except (TypeError, ValueError):
        place = np.empty(0)
    if place.shape != (2,) or not np.isfinite(place).all():
        raise InputError(f"{what} is {pair!r}; expected a (y, x) pair of numbers in angstrom.")
    return place


def _grid(
    vector: Array, width: float | str, step: float | str | None, spacing: float, what: str, *, closed: bool = True
) -> tuple[Array, Array]:
    """Distances along a vector, and the points (yx, distance, across) of a strip along it, from its beginning."""
    length = float(np.hypot(*vector))
    if not length > 0:
        raise InputError(f"The {what} leave no length for a profile; give different points.")
    across = quantity(width, "angstrom", "width", positive=False)
    if across < 0:
        raise InputError(f"The width is {across:g} angstrom; expected at least 0.")
    fine = spacing / 3 if step is None else quantity(step, "angstrom", "step")
    number = max(1, round(length / fine))
    fraction = np.arange(number + closed) / number
    # Middles of equal parts of the width: their mean is the integral over it.
    parts = max(1, round(across / (spacing / 3)))
    offsets = across * ((np.arange(parts) + 0.5) / parts - 0.5)
    unit = vector / length
    normal = np.array([unit[1], -unit[0]])
    points = (vector[:, None] * fraction)[:, :, None] + (normal[:, None] * offsets)[:, None, :]
    return length * fraction, points


def _sampled(image: xr.DataArray, values: Array, points: Array) -> Array:
    """Values (template, ...) at points (yx, ...) by cubic splines; NaN beside the scan and next to NaN."""
    from scipy.ndimage import distance_transform_edt, map_coordinates

    index = np.empty_like(points)
    inside = np.ones(points.shape[1:], bool)
    for n, dim in enumerate(SCAN):
        size = image.sizes[dim]
        index[n] = (points[n] - float(image[dim][0])) / step_of(image, dim)
        inside &= (index[n] >= -1e-6) & (index[n] <= size - 1 + 1e-6)
        np.clip(index[n], 0, size - 1, out=index[n])
    out = np.empty((len(values), *points.shape[1:]))
    for plane, target in zip(values, out, strict=True):
        known = np.isfinite(plane)
        present = inside
        if known.all():
            filled = plane
        elif known.any():
            # A spline reaches over missing positions: they stand at their nearest neighbour's value.
            filled = plane[tuple(distance_transform_edt(~known, return_distances=False, return_indices=True))]
            weight = map_coordinates(known.astype(np.float64), index, order=1, mode="nearest")
            present = inside & (weight > 1 - 1e-9)
        else:
            filled, present = np.zeros_like(plane), np.zeros_like(inside)
        target[...] = map_coordinates(filled, index, order=3, mode="mirror")
        target[~present] = np.nan
    return out


def _origins(image: xr.DataArray, first: Array, along: Array, across: Array | None) -> list[Array]:
    """Beginnings of all periods that may reach into the scan."""
    corners = np.array(list(itertools.product(*((float(image[d][0]), float(image[d][-1])) for d in SCAN)))) - first
    if across is None:
        numbers = corners @ along / (along @ along)
        return [first + i * along for i in range(int(np.floor(numbers.min())) - 1, int(np.ceil(numbers.max())) + 1)]
    cells = np.linalg.solve(np.stack([along, across], 1), corners.T)
    low, high = np.floor(cells.min(1)).astype(int) - 1, np.ceil(cells.max(1)).astype(int) + 1
    ranges = (range(a, b + 1) for a, b in zip(low, high, strict=True))
    return [first + i * along + j * across for i, j in itertools.product(*ranges)]


def _cross(a: Array, b: Array) -> float:
    return float(a[0] * b[1] - a[1] * b[0])


def _labelled(image: xr.DataArray, values: Array, distance: Array, attrs: Any) -> xr.DataArray:
    along = axis_coordinate(DISTANCE, len(distance), 1.0, 0.0, "angstrom").copy(data=distance)
    coords: dict[str, Any] = {DISTANCE: along}
    if TEMPLATE in image.dims:
        coords |= {str(k): v.variable for k, v in image.coords.items() if v.dims == (TEMPLATE,)}
        return xr.DataArray(values, coords, (TEMPLATE, DISTANCE), attrs=dict(attrs))
    return xr.DataArray(values, coords, (DISTANCE,), attrs=dict(attrs))
