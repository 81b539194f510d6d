"""HyperSpy's regions of interest as masks, regions and sites, in the units that the signal's axes show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from hyperspy.roi import BaseROI, CircleROI, Point2DROI, PolygonROI, RectangularROI
from hyperspy.signals import Signal2D

from ..axes import DETECTOR, SCAN, VALID_PIXELS, axis_coordinate
from ..detector.conventional_masks import annulus, disk
from ..errors import InputError, RegionError
from .conversion import ORIGIN, Origin

_AREAS = (CircleROI, RectangularROI, PolygonROI, Point2DROI)


def is_roi(value: Any) -> bool:
    """Whether a value is one of HyperSpy's regions of interest, or several of them."""
    many = isinstance(value, (list, tuple)) and len(value) > 0
    return isinstance(value, BaseROI) or (many and all(isinstance(v, BaseROI) for v in value))


def roi_weights(roi: Any, counts: xr.DataArray) -> xr.DataArray:
    """Weights (ky, kx) of regions on the detector.

    A circle weighs a pixel by the part of its area that lies inside, as `tdm_dask.disk` and `annulus` do, around the
    place where HyperSpy draws it; other regions hold the pixels that HyperSpy slices. Several are one: the largest
    weight counts.

    Raises
    ------
    RegionError
        If a region is not set, of another kind, or beside the detector.
    """
    axes = _shown(counts, DETECTOR)
    angles = {dim: axis_coordinate(dim, a["size"], a["scale"], a["offset"], "mrad") for dim, a in axes.items()}
    valid = {VALID_PIXELS: counts.coords[VALID_PIXELS].variable} if VALID_PIXELS in counts.coords else {}
    # Geometry alone: areas know nothing of the unit, so the one that the masks ask for stands for the signal's.
    detector = xr.DataArray(np.zeros([a["size"] for a in axes.values()]), angles, DETECTOR).assign_coords(valid)

    def weights(one: Any) -> np.ndarray:
        if not isinstance(one, CircleROI):
            return _sliced(one, axes).astype(np.float64)
        centre = (float(one.cy), float(one.cx))
        inner = float(one.r_inner)
        mask = annulus(detector, inner, one.r, centre=centre) if inner else disk(detector, one.r, centre=centre)
        return mask.values

    data = np.max([weights(one) for one in _each(roi)], axis=0)
    coords = {dim: counts.coords[dim].variable for dim in DETECTOR if dim in counts.coords}
    return xr.DataArray(data, coords, DETECTOR, name="mask", attrs={"units": "1", "long_name": "region"})


def roi_flags(roi: Any, counts: xr.DataArray) -> xr.DataArray:
    """Flags (y, x) of the probe positions in regions on the scan: those that HyperSpy slices, or within a circle.

    Raises
    ------
    RegionError
        If a region is not set, of another kind, or beside the scan.
    """
    axes = _shown(counts, SCAN)
    y, x = (a["offset"] + a["scale"] * np.arange(a["size"]) for a in axes.values())

    def flags(one: Any) -> np.ndarray:
        if not isinstance(one, CircleROI):
            return _sliced(one, axes)
        distance = np.hypot(y[:, None] - float(one.cy), x - float(one.cx))
        return (distance <= float(one.r)) & (distance >= float(one.r_inner))

    data = np.any([flags(one) for one in _each(roi)], axis=0)
    coords = {dim: counts.coords[dim].variable for dim in SCAN if dim in counts.coords}
    return xr.DataArray(data, coords, SCAN)


def roi_sites(sites: Any, counts: xr.DataArray) -> Any:
    """Sites (n, 2) in angstrom, or a mapping from kind to them, of points (or middles of circles) on the scan.

    Sites that are no regions of interest are handed on as they are: (y, x) positions in angstrom.
    """
    if isinstance(sites, Mapping):
        return {kind: roi_sites(positions, counts) for kind, positions in sites.items()}
    if not is_roi(sites):
        return sites
    origin: Origin = counts.attrs[ORIGIN]
    y, x = (origin.factors.get(dim, 1.0) for dim in SCAN)
    points = []
    for one in _each(sites):
        if not isinstance(one, (Point2DROI, CircleROI)):
            raise InputError(f"{one} is no point; expected Point2DROI or CircleROI as a site.")
        place = (one.y, one.x) if isinstance(one, Point2DROI) else (one.cy, one.cx)
        points.append((float(place[0]) * y, float(place[1]) * x))
    return np.array(points)


def _each(roi: Any) -> Sequence[Any]:
    each = list(roi) if isinstance(roi, (list, tuple)) else [roi]
    for one in each:
        if not isinstance(one, _AREAS):
            names = ", ".join(kind.__name__ for kind in _AREAS)
            raise RegionError(f"{type(one).__name__} is no area; expected one of {names}.")
        if not one.is_valid():
            raise RegionError(f"{type(one).__name__} is not set yet; place it on a plot, or give it numbers.")
    return each


def _shown(counts: xr.DataArray, dims: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The axes as the signal shows them; a scan of one line has no second one."""
    origin: Origin = counts.attrs[ORIGIN]
    missing = {"_type": "UniformDataAxis", "size": 1, "scale": 1.0, "offset": 0.0, "units": None, "name": None}
    return {dim: {**origin.axes.get(dim, missing), "navigate": False} for dim in dims}


def _sliced(roi: Any, axes: Mapping[str, dict[str, Any]]) -> np.ndarray:
    """Flags of the elements that HyperSpy slices: it is given their numbers, and says which are left."""
    shape = tuple(axis["size"] for axis in axes.values())
    numbers = Signal2D(np.arange(float(np.prod(shape))).reshape(shape), axes=list(axes.values()))
    try:
        left = np.asarray(roi(numbers).data).ravel()
    except (ValueError, IndexError) as error:
        raise RegionError(f"{roi} does not lie on axes of {shape} elements ({error}); move it.") from None
    flags = np.zeros(shape, bool)
    flags.ravel()[left[np.isfinite(left)].astype(np.int64)] = True
    if not flags.any():
        raise RegionError(f"{roi} holds no element of axes of {shape}; move it or make it larger.")
    return flags
