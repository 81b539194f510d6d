"""Masks with the symmetry of the crystal: averages under a point group of the plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import Delayed
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import minimize

from ..axes import DETECTOR, TEMPLATE, require_same_coordinates, require_unit, step_of
from ..counts.statistics import valid_pixels
from ..errors import MaskError
from ..passes.graphs import lazily

Array = npt.NDArray[np.float64]
Group = Literal["1", "2", "m", "mm2", "3", "3m", "4", "4mm", "6", "6mm"]

# Order of the axis, and whether there are mirror lines.
_GROUPS: Mapping[str, tuple[int, bool]] = {
    "1": (1, False),
    "2": (2, False),
    "m": (1, True),
    "mm2": (2, True),
    "3": (3, False),
    "3m": (3, True),
    "4": (4, False),
    "4mm": (4, True),
    "6": (6, False),
    "6mm": (6, True),
}
_ON_GRID = 1e-6  # pixels
_SEARCH = 3  # pixels around the given centre
_TURNS = 12  # trial rotations


def symmetrise_mask(
    mask: xr.DataArray,
    group: Group,
    *,
    centre: tuple[float, float] | Literal["refine"] | None = None,
    rotation: float | Literal["refine"] = 0.0,
    pattern: xr.DataArray | None = None,
) -> xr.DataArray:
    r"""A mask averaged over the operations of a point group of the plane.

    .. math:: m'(k) = w(k) \frac{\sum_g m(g k)}{\sum_g w(g k)}

    with g the operations of the group about the centre, and w the weight of the detector region that m was multiplied
    with, so that correlations are averaged: pixels outside the detector or the region, invalid ones and those of
    standard deviation 0 know nothing of the correlation, and count neither in the average nor in the result, where
    they are 0. Values between pixels are interpolated linearly in mrad; operations that take pixels to pixels (4mm
    about a pixel, or a corner, of a square detector) are exact.

    A mask of a small reference region takes on the symmetry of what it was derived from, so that displacements in its
    images may be copies of those in its template. A mask with the symmetry of the crystal without displacements cannot
    prefer a direction among equivalent ones.

    Parameters
    ----------
    mask : DataArray, dims ([template,] ky, kx)
        In mrad from the optic axis.
    group : {"1", "2", "m", "mm2", "3", "3m", "4", "4mm", "6", "6mm"}
        The point group of the projected crystal.
    centre : (float, float), "refine" or None, default None
        What the operations are about: (ky, kx) in mrad, None for the optic axis. "refine" finds it, and is tried within
        three pixels of the optic axis.
    rotation : float or "refine", default 0
        Azimuth of a mirror line, in degrees from +kx towards +ky. For groups without mirrors it has no meaning, and
        must be left 0.
    pattern : DataArray, dims (ky, kx), optional
        What "refine" makes most symmetric: a mean pattern (PACBED), which has little noise but tells the centre of the
        aperture rather than the zone axis. Default: the mask itself, all templates together.

    Returns
    -------
    DataArray, dims of `mask`
        With `symmetry`, `symmetry_centre_mrad` and `symmetry_rotation_deg` in its attributes. Lazy where the mask is,
        unless something is refined: then it is computed. Nothing else is read. `mean`, `std`, `n` and
        `detector_region` are those of `mask`, pixel by pixel: they say how the counts of *that* pixel are standardised,
        which has no symmetry; only the correlations do. Of a mask "mean-scaled", rho is averaged, not rho / mean.

    Raises
    ------
    MaskError
        If the group is unknown, the mask is not finite, of other dims, or a rotation is given for a group
        without mirror lines.
    CoordinateError
        If the mask is not in mrad.

    Examples
    --------
    >>> k = xr.Variable("k", np.arange(-2.0, 3), {"units": "mrad"})
    >>> coords = {"ky": ("ky", k.values, k.attrs), "kx": ("kx", k.values, k.attrs)}
    >>> mask = xr.DataArray(np.zeros((5, 5)), coords=coords, dims=("ky", "kx"))
    >>> mask[0, 1] = 8.0
    >>> symmetrise_mask(mask, "4mm").values
    array([[0., 1., 0., 1., 0.],
           [1., 0., 0., 0., 1.],
           [0., 0., 0., 0., 0.],
           [1., 0., 0., 0., 1.],
           [0., 1., 0., 1., 0.]])
    """
    if group not in _GROUPS:
        raise MaskError(f"The group is {group!r}; expected one of {', '.join(_GROUPS)}.")
    if not isinstance(mask, xr.DataArray) or not set(DETECTOR) <= set(mask.dims) <= {TEMPLATE, *DETECTOR}:
        dims = tuple(mask.dims) if isinstance(mask, xr.DataArray) else type(mask).__name__
        raise MaskError(f"The mask has dims {dims}; expected ([template,] ky, kx).")
    require_unit(mask, DETECTOR, "mrad", "Symmetry about the optic axis")
    if not _GROUPS[group][1] and rotation != 0:
        raise MaskError(f'The group "{group}" has no mirror lines, so that a rotation has no meaning; leave it out.')
    if centre == "refine" or rotation == "refine":
        mask = mask.compute()
    ordered = mask.transpose(..., *DETECTOR)
    scale = ordered["mean"].data if mask.attrs.get("method") == "mean-scaled" and "mean" in mask.coords else None
    weights = _weights(ordered)
    grid = _Grid.of(mask)
    middle, turn = _found(ordered, weights, grid, group, centre, rotation, pattern)
    arguments = (ordered.data, weights, scale, grid.mates(group, middle, turn))
    data = lazily(_averaged, *arguments)
    if isinstance(data, Delayed):
        data = da.from_delayed(data, ordered.shape, np.float64)
    result = ordered.copy(data=data)
    result.attrs |= {"symmetry": group, "symmetry_centre_mrad": list(middle), "symmetry_rotation_deg": turn}
    return result.transpose(*mask.dims)


@dataclass(frozen=True)
class _Grid:
    """The pixels of a detector: first pixel and step along ky and kx, in mrad, and their numbers."""

    first: Array
    step: Array
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: xr.DataArray) -> _Grid:
        first = np.array([float(mask.coords[dim].values[0]) for dim in DETECTOR])
        return cls(first, np.array([step_of(mask, dim) for dim in DETECTOR]), (mask.sizes["ky"], mask.sizes["kx"]))

    def mates(self, group: str, centre: tuple[float, float], rotation: float) -> Array:
        """Fractional pixels (operation, 2, ky, kx) that every pixel is taken to."""
        pixels = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"))
        offsets = (self.first - centre)[:, None, None] + self.step[:, None, None] * pixels
        moved = np.einsum("gij,jyx->giyx", _operations(group, rotation), offsets)
        index = (moved - (self.first - centre)[:, None, None]) / self.step[:, None, None]
        nearest = np.rint(index)
        return np.where(np.abs(index - nearest) < _ON_GRID, nearest, index)


def _operations(group: str, rotation: float) -> Array:
    """Matrices (operation, 2, 2) that act on (ky, kx)."""
    order, mirrors = _GROUPS[group]
    angles = 2 * np.pi * np.arange(order) / order
    cos, sin = np.cos(angles), np.sin(angles)
    turns = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1)
    if not mirrors:
        return turns
    double = 2 * np.deg2rad(rotation)
    mirror = np.array([[-np.cos(double), np.sin(double)], [np.sin(double), np.cos(double)]])
    return np.concatenate([turns, turns @ mirror])


def _weights(mask: xr.DataArray) -> Any:
    """How much each pixel knows: the weight of the detector region, 0 where there is no correlation."""
    weights: Any = np.ones([mask.sizes[d] for d in DETECTOR])
    if "detector_region" in mask.coords:
        weights = mask["detector_region"].transpose(*DETECTOR).data.astype(np.float64)
    if "std" in mask.coords:
        weights = weights * (mask["std"].transpose(*DETECTOR).data > 0)
    valid = valid_pixels(mask)
    return weights if valid is None else weights * valid


def _averaged(values: Array, weights: Array, scale: Array | None, mates: Array) -> Array:
    """The mask averaged over its mates; `scale` turns it into correlations first, and back."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise MaskError(f"{int((~np.isfinite(values)).sum())} weights of the mask are not finite; set them to 0.")
    known = np.where(weights > 0, values if scale is None else values * scale, 0.0)
    total = _over_mates(weights, mates)
    planes = known.reshape(-1, *known.shape[-2:])
    sums = np.stack([_over_mates(plane, mates) for plane in planes]).reshape(known.shape)
    average = weights * np.divide(sums, total, out=np.zeros_like(sums), where=(weights > 0) & (total > 0))
    if scale is None:
        return average
    return np.divide(average, scale, out=np.zeros_like(average), where=np.broadcast_to(scale != 0, average.shape))


def _over_mates(plane: Array, mates: Array) -> Array:
    """Sum of a plane's values at the mates of every pixel, 0 outside."""
    total = np.zeros(plane.shape)
    for mate in mates:
        total += map_coordinates(plane, mate, order=1, mode="constant", cval=0.0, output=np.float64)
    return total


def _found(
    mask: xr.DataArray,
    weights: Any,
    grid: _Grid,
    group: str,
    centre: tuple[float, float] | str | None,
    rotation: float | str,
    pattern: xr.DataArray | None,
) -> tuple[tuple[float, float], float]:
    """Centre in mrad and rotation in degrees, found where they are to be refined."""
    words = {value for value in (centre, rotation) if isinstance(value, str)}
    if words - {"refine"}:
        raise MaskError(f'The centre is {centre!r}, the rotation {rotation!r}; the only word they know is "refine".')
    if centre is not None and centre != "refine" and np.shape(centre) != (2,):
        raise MaskError(f"The centre is {centre!r}; expected (ky, kx) in mrad.")
    search_centre, search_turn = centre == "refine", rotation == "refine"
    start = (0.0, 0.0) if centre is None or search_centre else (float(centre[0]), float(centre[1]))
    turn = 0.0 if search_turn else float(rotation)
    if not search_centre and not search_turn:
        if pattern is not None:
            raise MaskError(
                'A pattern was given, but nothing is to be refined; give centre="refine" or rotation="refine".'
            )
        return start, turn
    if pattern is None:
        planes = np.asarray(mask.values, np.float64).reshape(-1, *grid.shape)
    else:
        require_same_coordinates(mask, pattern, DETECTOR, ("mask", "pattern"), MaskError)
        planes = np.asarray(pattern.transpose(*DETECTOR).values, np.float64)[None]
    known = np.asarray(weights) if pattern is None else np.isfinite(planes[0]).astype(np.float64)
    # Interpolation smooths, so that the centres between pixels would be the more symmetric ones of a noisy pattern.
    smooth = gaussian_filter(known, 1.0)
    planes = np.stack([gaussian_filter(np.where(known > 0, p, 0.0), 1.0) for p in planes])
    planes = np.divide(planes, smooth, out=np.zeros_like(planes), where=known > 0)
    planes -= planes.mean(axis=(1, 2), keepdims=True, where=known > 0)
    planes *= known > 0
    if not planes.any():
        raise MaskError("The pattern to refine symmetry with is the same everywhere; give another one.")
    period = 180.0 / _GROUPS[group][0]

    def lack(unknowns: Array) -> float:
        """Part of the pattern that the average over the group does not hold, of pixels that have all their mates."""
        moved = start[0] + grid.step[0] * unknowns[0], start[1] + grid.step[1] * unknowns[1]
        mates = grid.mates(group, moved, turn + period * unknowns[2])
        whole = _over_mates((known > 0).astype(np.float64), mates) > len(mates) - 1e-6
        if not whole.any():
            return np.inf
        averages = [_over_mates(plane, mates)[whole] / len(mates) for plane in planes]
        rest = sum(((plane[whole] - a) ** 2).sum() for plane, a in zip(planes, averages, strict=True))
        return float(rest / max(sum((plane[whole] ** 2).sum() for plane in planes), 1e-300))

    free = np.array([search_centre, search_centre, search_turn])
    best = np.zeros(3)
    if search_turn:
        best = min((np.array([0, 0, n / _TURNS]) for n in range(_TURNS)), key=lack)
    if search_centre:
        steps = np.arange(-_SEARCH, _SEARCH + 1)
        best = min((best + np.array([i, j, 0.0]) for i in steps for j in steps), key=lack)

    def of_free(part: Array) -> float:
        every = best.copy()
        every[free] += part
        return lack(every)

    size = np.where(free, (0.5, 0.5, 0.5 / _TURNS), 0.0)[free]
    simplex = np.vstack([np.zeros(free.sum()), np.diag(size)])
    found = minimize(
        of_free, np.zeros(free.sum()), method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 1e-3}
    )
    best[free] += found.x
    middle = start[0] + grid.step[0] * best[0], start[1] + grid.step[1] * best[1]
    return (float(middle[0]), float(middle[1])), float((turn + period * best[2]) % period)
