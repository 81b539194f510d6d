"""Conventional masks: disks, annuli and their segments, in mrad from the optic axis.

A weight is the exact fraction of the pixel's area that lies inside the shape. So the weights of a shape
add up to its area, and annuli that touch add up to the annulus over both. With a soft edge it is a linear
ramp instead, which keeps the second property.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import DETECTOR, TEMPLATE, named, quantity, require_unit, step_of
from ..counts.statistics import valid_pixels
from ..errors import MaskError

Array = npt.NDArray[np.float64]

# Where a segment's boundary crosses a pixel, its share is counted on this many samples along each axis.
_SAMPLES = 32
_ADF_START = 1.3
_HAADF_START = 3.0
_ABF_START = 11 / 23.5


def disk(
    counts: xr.DataArray,
    radius: float | str,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    soft_edge: float | str = 0.0,
) -> xr.DataArray:
    """Mask of a disk: 1 inside, 0 outside, the covered fraction of the area in pixels at the edge.

    Parameters
    ----------
    counts : xarray.DataArray (..., ky, kx)
        Anything with a detector calibrated in mrad; only its coordinates and `valid_pixels` are used.
    radius : float (mrad) or str
        Radius of the disk.
    centre : (float, float), default (0, 0)
        Where its middle is, (ky, kx) in mrad from the optic axis.
    soft_edge : float (mrad) or str, default 0
        Width of a linear ramp from 1 to 0 that replaces the sharp edge, half of it inside `radius`.

    Returns
    -------
    xarray.DataArray (ky, kx), float64
        Weights between 0 and 1; 0 at invalid pixels. ``attrs["coverage"]`` is the fraction of the shape's
        area that lies on valid pixels of the detector.

    Raises
    ------
    MaskError
        If the radius is not positive, or no valid pixel lies inside.
    CoordinateError
        If the detector is not calibrated in mrad.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 64, 1.0, -32.0, "mrad") for dim in ("ky", "kx")}
    >>> pattern = xr.DataArray(np.zeros((64, 64)), coords=angles, dims=("ky", "kx"))
    >>> mask = disk(pattern, 20)
    >>> round(float(mask.sum()), 6) == round(np.pi * 20**2, 6)
    True
    """
    outer = _angle(radius, "radius")
    soft = _angle(soft_edge, "soft_edge")
    if outer <= 0:
        raise MaskError(f"The radius of the disk is {outer:g} mrad; expected a positive number.")
    return _ring(counts, 0.0, outer, centre, soft, {"detector": "disk", "radius_mrad": outer})


def annulus(
    counts: xr.DataArray,
    inner: float | str,
    outer: float | str,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    soft_edge: float | str = 0.0,
) -> xr.DataArray:
    """Mask of an annulus between two angles.

    Parameters
    ----------
    counts : xarray.DataArray (..., ky, kx)
        Anything with a detector calibrated in mrad; only its coordinates and `valid_pixels` are used.
    inner, outer : float (mrad) or str
        Radii. `inner` may be 0. `outer` may lie beyond the detector: see ``attrs["coverage"]``.
    centre : (float, float), default (0, 0)
        Where its middle is, (ky, kx) in mrad from the optic axis.
    soft_edge : float (mrad) or str, default 0
        Width of a linear ramp that replaces both sharp edges.

    Returns
    -------
    xarray.DataArray (ky, kx), float64
        Weights between 0 and 1, as those of `disk`.

    Raises
    ------
    MaskError
        If `inner` is negative or not below `outer`, or no valid pixel lies inside.
    CoordinateError
        If the detector is not calibrated in mrad.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 64, 1.0, -32.0, "mrad") for dim in ("ky", "kx")}
    >>> pattern = xr.DataArray(np.zeros((64, 64)), coords=angles, dims=("ky", "kx"))
    >>> both = annulus(pattern, 5, 10) + annulus(pattern, 10, 20)
    >>> bool(np.allclose(both, annulus(pattern, 5, 20), rtol=0, atol=1e-12))
    True
    """
    low, high, soft = _limits(inner, outer, soft_edge)
    return _ring(counts, low, high, centre, soft, {"detector": "annulus", "inner_mrad": low, "outer_mrad": high})


def segments(
    counts: xr.DataArray,
    inner: float | str,
    outer: float | str,
    n: int = 4,
    *,
    rotation: float | str = 0.0,
    centre: tuple[float, float] = (0.0, 0.0),
    soft_edge: float | str = 0.0,
) -> xr.DataArray:
    """An annulus cut into `n` equal sectors, as a segmented detector has.

    Parameters
    ----------
    counts : xarray.DataArray (..., ky, kx)
        Anything with a detector calibrated in mrad; only its coordinates and `valid_pixels` are used.
    inner, outer : float (mrad) or str
        Radii of the annulus; `inner` may be 0.
    n : int, default 4
        Number of segments, at least 2.
    rotation : float (deg) or str, default 0
        Azimuth, from +kx towards +ky, at which the first segment begins; the others follow in that sense.
    centre : (float, float), default (0, 0)
        Where its middle is, (ky, kx) in mrad from the optic axis.
    soft_edge : float (mrad) or str, default 0
        Width of a linear ramp that replaces the sharp edges of the annulus; the cuts stay sharp.

    Returns
    -------
    xarray.DataArray (template, ky, kx), float64
        One mask per segment, named "segment 1" and so on. They add up to the annulus.

    Raises
    ------
    MaskError
        If the radii or `n` make no sense, or a segment has no valid pixel.
    CoordinateError
        If the detector is not calibrated in mrad.

    Notes
    -----
    A pixel's weight in the annulus is exact; where a cut crosses the pixel it is shared out by the number
    of samples, of 32 x 32 inside the annulus, on either side of the cut.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 64, 1.0, -32.0, "mrad") for dim in ("ky", "kx")}
    >>> pattern = xr.DataArray(np.zeros((64, 64)), coords=angles, dims=("ky", "kx"))
    >>> quadrants = segments(pattern, 5, 20, rotation=-45)
    >>> quadrants.template.values.tolist()
    ['segment 1', 'segment 2', 'segment 3', 'segment 4']
    >>> float(quadrants[0].sel(ky=0, kx=10)), float(quadrants[1].sel(ky=10, kx=0))
    (1.0, 1.0)
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 2:
        raise MaskError(f"The number of segments is {n!r}; expected a whole number, at least 2.")
    low, high, soft = _limits(inner, outer, soft_edge)
    turn = quantity(rotation, "deg", "rotation", positive=False)
    facts: dict[str, Any] = {"detector": "segments", "inner_mrad": low, "outer_mrad": high}
    whole = _ring(counts, low, high, centre, soft, facts | {"segments": int(n), "rotation_deg": turn})
    weights = whole.values * _shares(whole, low, high, int(n), np.deg2rad(turn), centre)
    names = [f"segment {k + 1}" for k in range(n)]
    for name, weight in zip(names, weights, strict=True):
        if not weight.any():
            raise MaskError(
                f'"{name}" of the annulus from {low:g} to {high:g} mrad has no valid detector pixel; '
                "choose other angles."
            )
    coords = {TEMPLATE: names, **{dim: whole.coords[dim] for dim in DETECTOR}}
    return named(xr.DataArray(weights, coords, (TEMPLATE, *DETECTOR), "mask", whole.attrs))


def parse_detector(text: str, counts: xr.DataArray) -> xr.DataArray:
    """The mask that a short text describes, as the command line and recipes use it.

    Parameters
    ----------
    text : str
        One of (angles in mrad, or with a unit)

        - ``disk:RADIUS`` and ``annulus:INNER:OUTER``;
        - ``bf`` the whole bright-field disk, ``bf:RADIUS`` a part of it;
        - ``abf`` from 11/23.5 of the semi-angle (the paper's annulus) to the semi-angle, ``abf:INNER:OUTER``;
        - ``adf`` from 1.3 times the semi-angle, outside the edge's blur, to the largest ring that lies
        wholly on the
          detector; ``adf:INNER`` and ``adf:INNER:OUTER``;
        - ``haadf`` as ``adf`` from three times the semi-angle.
    counts : xarray.DataArray (..., ky, kx)
        Anything with a detector calibrated in mrad; `semi_angle_mrad` is taken from its attributes.

    Returns
    -------
    xarray.DataArray (ky, kx)
        The mask.

    Raises
    ------
    MaskError
        If the text is not understood, or needs a semi-angle that is not known.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 65, 1.0, -32.0, "mrad") for dim in ("ky", "kx")}
    >>> pattern = xr.DataArray(np.zeros((65, 65)), coords=angles, dims=("ky", "kx"))
    >>> parse_detector("annulus:11:23.5", pattern).attrs["outer_mrad"]
    23.5
    >>> pattern.attrs["semi_angle_mrad"] = 20.0
    >>> adf = parse_detector("adf", pattern)
    >>> adf.attrs["inner_mrad"], adf.attrs["outer_mrad"], adf.attrs["coverage"]
    (26.0, 32.5, 1.0)
    """
    kind, *numbers = (part.strip() for part in str(text).strip().split(":"))
    kind = kind.lower()
    allowed = {
        "disk": (1,),
        "annulus": (2,),
        "bf": (0, 1),
        "abf": (0, 2),
        "adf": (0, 1, 2),
        "haadf": (0, 1, 2),
    }
    if kind not in allowed or len(numbers) not in allowed[kind] or "" in numbers:
        raise MaskError(
            f'"{text}" is not a detector; expected bf, abf, adf, haadf, disk:RADIUS, annulus:INNER:OUTER '
            "or such as "
            "adf:30:60, in mrad."
        )
    require_unit(counts, DETECTOR, "mrad", f'The detector "{text}"')
    angles = [_angle(number, f'"{text}"') for number in numbers]
    if kind in ("disk", "bf"):
        mask = disk(counts, angles[0] if angles else _semi_angle(counts, text))
    elif kind == "annulus" or len(angles) == 2:
        mask = annulus(counts, *angles)
    elif kind == "abf":
        semi = _semi_angle(counts, text)
        mask = annulus(counts, _ABF_START * semi, semi)
    else:
        start = {"adf": _ADF_START, "haadf": _HAADF_START}[kind]
        inner = angles[0] if angles else start * _semi_angle(counts, text)
        outer = _largest_ring(counts)
        if inner >= outer:
            raise MaskError(
                f'"{text}" begins at {inner:.4g} mrad, but the largest full ring on the detector ends at '
                f"{outer:.4g} mrad; give both angles, such as {kind}:{0.8 * outer:.3g}:{outer:.3g}."
            )
        mask = annulus(counts, inner, outer)
    mask.attrs["detector"] = kind
    return mask


def _angle(value: float | str, what: str) -> float:
    return quantity(value, "mrad", what, positive=False)


def _limits(inner: float | str, outer: float | str, soft_edge: float | str) -> tuple[float, float, float]:
    low, high = _angle(inner, "inner"), _angle(outer, "outer")
    if not 0 <= low < high:
        raise MaskError(
            f"The annulus goes from {low:g} to {high:g} mrad; expected an inner angle of at least 0 that "
            "is below the outer."
        )
    return low, high, _angle(soft_edge, "soft_edge")


def _semi_angle(counts: xr.DataArray, text: str) -> float:
    if "semi_angle_mrad" not in counts.attrs:
        raise MaskError(
            f'The detector "{text}" needs the convergence semi-angle, which is not known; calibrate with '
            "semi_angle or "
            "pixel_size first, or give the angles."
        )
    return float(counts.attrs["semi_angle_mrad"])


def _edges(counts: xr.DataArray, dim: str) -> Array:
    """Borders between the pixels along one detector axis, in mrad."""
    values = np.asarray(counts.coords[dim].values, dtype=np.float64)
    step = step_of(counts, dim)
    return np.append(values - step / 2, values[-1] + step / 2)


def _largest_ring(counts: xr.DataArray) -> float:
    reach = []
    for dim in DETECTOR:
        edges = _edges(counts, dim)
        reach += [edges.max(), -edges.min()]
    return float(min(reach))


def _centre(centre: tuple[float, float]) -> tuple[float, float]:
    pair = tuple(_angle(value, "centre") for value in centre)
    if len(pair) != 2:
        raise MaskError(f"The centre has {len(pair)} numbers; expected two, (ky, kx) in mrad.")
    return pair[0], pair[1]


def _ring(
    counts: xr.DataArray,
    inner: float,
    outer: float,
    centre: tuple[float, float],
    soft_edge: float,
    facts: dict[str, Any],
) -> xr.DataArray:
    """The mask between two radii, with valid pixels and coverage."""
    require_unit(counts, DETECTOR, "mrad", f"The mask of a {facts['detector']}")
    if not 0 <= soft_edge <= outer - inner:
        raise MaskError(
            f"The soft edge is {soft_edge:g} mrad wide; expected at least 0 and at most the width of the "
            "shape, "
            f"{outer - inner:g} mrad."
        )
    cy, cx = _centre(centre)
    ky, kx = _edges(counts, "ky") - cy, _edges(counts, "kx") - cx
    area = abs(step_of(counts, "ky") * step_of(counts, "kx"))
    weights = _filled(ky, kx, outer, soft_edge)
    if inner > 0:
        weights = weights - _filled(ky, kx, inner, soft_edge)
    np.clip(weights, 0.0, 1.0, out=weights)
    valid = valid_pixels(counts)
    if valid is not None:
        weights[~valid] = 0.0
    if not weights.any():
        raise MaskError(
            f"The {facts['detector']} between {inner:g} and {outer:g} mrad has no valid detector pixel; "
            "choose other angles."
        )
    attrs = facts | {
        "long_name": f"{facts['detector']} mask",
        "units": "1",
        "centre_mrad": [cy, cx],
        "soft_edge_mrad": soft_edge,
        "coverage": min(1.0, round(float(weights.sum()) * area / (np.pi * (outer**2 - inner**2)), 9)),
    }
    coords = {dim: counts.coords[dim].variable for dim in DETECTOR}
    return xr.DataArray(weights, dims=DETECTOR, coords=coords, name="mask", attrs=attrs)


def _filled(ky: Array, kx: Array, radius: float, soft_edge: float) -> Array:
    """Weights of a disk around zero; `ky` and `kx` are the borders of the pixels."""
    if soft_edge > 0:
        distance = np.hypot((ky[:-1, None] + ky[1:, None]) / 2, (kx[:-1] + kx[1:]) / 2)
        return np.clip((radius - distance) / soft_edge + 0.5, 0.0, 1.0)
    corner = _quadrant_area(ky[:, None], kx[None, :], radius)
    area = np.abs(np.diff(ky))[:, None] * np.abs(np.diff(kx))
    weights = np.abs(np.diff(np.diff(corner, axis=0), axis=1)) / area
    # Exact 0 and 1 away from the edge: what is read of the data depends on which weights are zero.
    far = [np.maximum(np.abs(e[:-1]), np.abs(e[1:])) for e in (ky, kx)]
    near = [np.where(e[:-1] * e[1:] < 0, 0.0, np.minimum(np.abs(e[:-1]), np.abs(e[1:]))) for e in (ky, kx)]
    weights[np.hypot(far[0][:, None], far[1]) <= radius] = 1.0
    weights[np.hypot(near[0][:, None], near[1]) >= radius] = 0.0
    return weights


def _quadrant_area(y: Array, x: Array, radius: float) -> Array:
    """Area, signed as y * x, of the rectangle from the origin to (y, x) inside a circle around the origin."""
    sign = np.sign(y) * np.sign(x)
    y, x = np.minimum(np.abs(y), radius), np.minimum(np.abs(x), radius)
    # Up to `full` the rectangle is limited by y, beyond it by the circle.
    full = np.minimum(np.sqrt(radius**2 - y**2), x)
    return sign * (full * y + _under_arc(x, radius) - _under_arc(full, radius))


def _under_arc(x: Array, radius: float) -> Array:
    """Integral of sqrt(radius^2 - t^2) from 0 to x."""
    return 0.5 * (x * np.sqrt(np.maximum(radius**2 - x**2, 0)) + radius**2 * np.arcsin(np.minimum(x / radius, 1)))


def _shares(
    mask: xr.DataArray, inner: float, outer: float, n: int, rotation: float, centre: tuple[float, float]
) -> Array:
    """Share (n, ky, kx) of each segment in each pixel of an annulus; the shares of a pixel add up to 1."""
    cy, cx = _centre(centre)
    ky = np.asarray(mask.coords["ky"].values, dtype=np.float64) - cy
    kx = np.asarray(mask.coords["kx"].values, dtype=np.float64) - cx
    steps = step_of(mask, "ky"), step_of(mask, "kx")
    rows, columns = np.nonzero(mask.values)
    offsets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES - 0.5
    width = 2 * np.pi / n

    def sector(y: Array, x: Array) -> npt.NDArray[np.int64]:
        return np.floor(np.mod(np.arctan2(y, x) - rotation, 2 * np.pi) / width).astype(np.int64) % n

    shares = np.zeros((n, *mask.shape))
    y, x = ky[rows], kx[columns]
    own = sector(y, x)
    shares[own, rows, columns] = 1.0
    # A cut is a ray from the centre: it can only touch pixels whose half diagonal reaches it.
    azimuth = np.mod(np.arctan2(y, x) - rotation, width)
    reach = np.hypot(y, x) * np.sin(np.minimum(np.minimum(azimuth, width - azimuth), np.pi / 2))
    crossed = np.nonzero(reach <= np.hypot(*steps) / 2)[0]
    for start in range(0, len(crossed), 512):
        part = crossed[start : start + 512]
        sy = y[part, None, None] + offsets[:, None] * steps[0]
        sx = x[part, None, None] + offsets[None, :] * steps[1]
        radius = np.hypot(sy, sx)
        inside = ((radius >= inner) & (radius <= outer)).astype(np.float64)
        inside[inside.sum(axis=(1, 2)) == 0] = 1.0
        which = sector(sy, sx)
        amounts = np.stack([(inside * (which == k)).sum(axis=(1, 2)) for k in range(n)])
        shares[:, rows[part], columns[part]] = amounts / amounts.sum(axis=0)
    return shares
