"""How far the bright-field disk wanders over the detector while the probe scans, and the shifts that undo it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import ndimage

from ..axes import DESCAN, DETECTOR, SCAN, check_counts, step_of, unit_of
from ..counts.statistics import stored_pacbed, used_patterns, valid_pixels
from ..errors import CalibrationError
from ..passes.graphs import tile_means
from ..reading.blocks import Window, bounding_box
from .bright_field import despiked, find_bf_disk

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# Tiles of the scan along each axis, over which patterns are averaged before a disk is looked for: a single pattern may
# hold a few electrons, or a specimen's own contrast. Fewer where their mean patterns would take more memory than this.
TILES = 8
TILES_BYTES = 256 * 2**20
_FEWEST_TILES = 3
_MARGIN = 1.6  # of the disk's radius, around it
_ROUNDS = 30
_CONVERGED = 0.002  # px
_SMOOTHING = 1.0  # px; for slopes of the pattern that noise does not make
_REJECTED = 4.0  # robust standard deviations from the plane
_CERTAIN = 2.0  # standard errors


def descan(counts: xr.DataArray, *, scan_region: Any = None) -> xr.DataArray:
    """Measure how the bright-field disk wanders over the scan, so that everything follows it.

    The counts are **read once**, of a store only the part of the detector around the disk. They are not changed: masks,
    images and statistics shift each pattern by whole pixels as they read it, and leave out the pixels at the edges of
    the detector that not every pattern has.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        Lazy or not. Invalid pixels and patterns take no part; shifts that the counts have already are measured anew.
    scan_region : slices, boolean DataArray or ndarray (y, x), or dict of slices, optional
        Probe positions to measure from, such as vacuum; the whole scan by default. The plane is continued beyond.

    Returns
    -------
    DataArray, dims (y, x, ky, kx)
        The same counts with the coordinates `descan_ky` and `descan_kx` (y, x): how many detector pixels each pattern's
        disk lies off, a plane over the scan of mean 0. Their attribute ``residual`` is how far, in pixels, the tiles of
        the scan lie from the plane. Without descan again: ``counts.drop_vars(["descan_ky", "descan_kx"])``.

    Raises
    ------
    CalibrationError
        If there is no bright-field disk, the scan has too few probe positions, or the plane is no more certain than
        no descan at all.
    RegionError
        If the scan region is empty or of another shape.
    CountsError
        If counts that are used are NaN or infinite.

    Notes
    -----
    Mean patterns of up to 8 x 8 tiles of the scan are registered with each other, to fractions of a pixel, by linear
    least squares: each is the common pattern, its slopes along ky and kx (the disk's edge, mostly), and a brightness
    that changes linearly across it, which a specimen may cause and which does not count as a shift. A plane through
    their shifts, weighted by their counts and without outliers, moves the tiles, and so on until nothing moves. With
    s = round(descan), everything is as if the counts C had been C(y, x, ky + s_ky, kx + s_kx).

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> y, x, ky, kx = np.ogrid[:12, :12, :40, :40]
    >>> disk = 100 / (1 + np.exp((np.hypot(ky - 20 - (y - 5.5) / 3, kx - 19) - 9) / 0.4))
    >>> found = descan(label_counts(disk))
    >>> found.descan_ky[[0, -1], 0].values.round(1), float(abs(found.descan_kx).max().round(1))
    (array([-1.8,  1.8]), 0.0)
    """
    counts = check_counts(counts).drop_vars(DESCAN, errors="ignore")
    used, valid = used_patterns(counts, scan_region), valid_pixels(counts)
    usable = np.ones(counts.shape[2:], bool) if valid is None else valid
    box = _surroundings(counts, usable)
    pixels = np.zeros_like(usable)
    pixels[box] = usable[box]
    most = math.isqrt(TILES_BYTES // (16 * int(np.prod(usable[box].shape))))
    edges = _tiles(counts.shape[:2], used, min(TILES, max(_FEWEST_TILES, most)))
    n, means = tile_means(counts.data, edges, used, None if pixels.all() else pixels)
    places = _places(edges, used, counts.shape[:2])[n > 0]
    found = _registered(means[(n > 0, *box)], n[n > 0].astype(np.float64), places, usable[box])
    try:  # only now is the disk sharp, where there is one
        find_bf_disk(found.reference, found.common, aspect=_aspect(counts))
    except CalibrationError:
        raise CalibrationError(
            "No round, sharp bright-field disk is there once a plane of shifts has laid the patterns upon each other; "
            "leave the descan out, measure it on a part of the scan that is even, or calibrate with pixel_size "
            "first where pixels are not square."
        ) from None
    y, x = (np.arange(size) - (size - 1) / 2 for size in counts.shape[:2])
    coords = {}
    for axis, (name, along) in enumerate(zip(DESCAN, DETECTOR, strict=True)):
        values = found.plane.slopes[0, axis] * y[:, None] + found.plane.slopes[1, axis] * x
        _check(values, found.plane.error(axis, float(y[-1]), float(x[-1])), along)
        attrs = {
            "units": "pixel",
            "long_name": f"descan along {along}",
            "residual": round(float(found.plane.residual[axis]), 4),
        }
        coords[name] = xr.Variable(SCAN, values, attrs)
    return counts.assign_coords(coords)


def _check(plane: Array, error: float, along: str) -> None:
    """Raise where a plane that would move patterns is no better than none."""
    largest = float(np.abs(plane).max())
    if largest >= 0.5 and largest < _CERTAIN * error:
        raise CalibrationError(
            f"The bright-field disk seems to wander by up to {largest:.2g} pixels along {along}, with an error of "
            f"{error:.2g} pixels; expected a plane that is certain: leave the descan out, or measure it on a part "
            "of the scan that is even."
        )


def _aspect(counts: xr.DataArray) -> float:
    """Height over width of a detector pixel, as far as the counts know it."""
    if unit_of(counts, "ky") == unit_of(counts, "kx") == "px":
        ky, kx = counts.attrs.get("pixel_size_mrad", (1.0, 1.0))
        return abs(ky / kx)
    same = unit_of(counts, "ky") == unit_of(counts, "kx")
    return abs(step_of(counts, "ky") / step_of(counts, "kx")) if same else 1.0


def _surroundings(counts: xr.DataArray, usable: Flags) -> Window:
    """The window of the detector around the disk, where a store's mean pattern shows it; else all of it."""
    mean = stored_pacbed(counts)
    whole = (slice(0, usable.shape[0]), slice(0, usable.shape[1]))
    if mean is None:
        return whole
    try:
        disk = find_bf_disk(mean, usable, aspect=_aspect(counts))
    except CalibrationError:  # it may be smeared by what is to be measured
        return whole
    ky, kx = (
        slice(max(0, math.floor(c - _MARGIN * r) - 4), min(n, math.ceil(c + _MARGIN * r) + 5))
        for c, r, n in zip(disk.centre, disk.radii, usable.shape, strict=True)
    )
    return ky, kx


def _tiles(shape: tuple[int, ...], used: Flags | None, most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where tiles begin and end, up to `most` along each axis of the part of the scan that is used."""
    window = (slice(0, shape[0]), slice(0, shape[1])) if used is None else bounding_box(used)
    y, x = (tuple(np.linspace(s.start, s.stop, min(most, s.stop - s.start) + 1).astype(int).tolist()) for s in window)
    return y, x


def _places(edges: tuple[tuple[int, ...], tuple[int, ...]], used: Flags | None, shape: tuple[int, ...]) -> Array:
    """Mean position of the probes used in each tile, (tiles along y, tiles along x, 2); NaN where there is none."""
    places = np.full((len(edges[0]) - 1, len(edges[1]) - 1, 2), np.nan)
    for i, (y0, y1) in enumerate(pairwise(edges[0])):
        for j, (x0, x1) in enumerate(pairwise(edges[1])):
            here = np.ones((y1 - y0, x1 - x0), bool) if used is None else used[y0:y1, x0:x1]
            if here.any():
                places[i, j] = np.argwhere(here).mean(0) + np.array([y0, x0])
    return places


class _Plane(NamedTuple):
    """Shifts along ky and kx as planes over the scan, of mean 0 over the places that they were found at."""

    shifts: Array  # (place, ky or kx)
    slopes: Array  # (y or x, ky or kx), pixels per probe position
    residual: Array  # (ky or kx), root mean square distance from the planes in pixels
    covariance: Array  # (y or x, y or x) of the slopes, for a variance of 1
    variance: Array  # (ky or kx)

    def error(self, axis: int, y: float, x: float) -> float:
        """Standard error of the plane of one axis at the corners of the scan, (y, x) from its middle."""
        corners = np.array([[y, x], [y, -x]])
        return float(np.sqrt(self.variance[axis] * np.einsum("ni,ij,nj->n", corners, self.covariance, corners)).max())


def _plane(places: Array, shifts: Array, weights: Array) -> _Plane:
    """Planes through shifts by weighted least squares, without those that lie far off."""
    # From their middle, so that a scan of one line has a slope along it alone.
    middle = np.average(places, axis=0, weights=weights)
    design = np.column_stack([np.ones(len(places)), places - middle])
    root = np.sqrt(weights)[:, None]
    kept = weights > 0
    for _ in range(_ROUNDS):
        slopes, _, rank, _ = np.linalg.lstsq(design[kept] * root[kept], shifts[kept] * root[kept], rcond=1e-9)
        miss = (shifts - design @ slopes) * root
        distance = np.hypot(*miss.T)
        # The median distance in two dimensions is 1.18 standard deviations of one.
        near = (weights > 0) & (distance <= _REJECTED * np.median(distance[kept]) / 1.18 + 1e-9)
        if (near == kept).all():
            break
        kept = near
    if rank < 2 or kept.sum() <= rank:
        raise CalibrationError(
            f"The scan has {len(places)} parts to look for a disk in, which do not make a plane; expected at least 4 "
            "valid patterns along y or x: leave the descan out."
        )
    variance = (miss[kept] ** 2).sum(0) / (kept.sum() - rank)
    normal = (design[kept] * root[kept]).T @ (design[kept] * root[kept])
    covariance = np.linalg.pinv(normal, rcond=1e-12)[1:, 1:]
    residual = np.sqrt(np.average((shifts - design @ slopes)[kept] ** 2, axis=0, weights=weights[kept]))
    plane = design[:, 1:] @ slopes[1:]
    return _Plane(plane, slopes[1:], residual, covariance, variance)


class _Registered(NamedTuple):
    plane: _Plane
    reference: Array  # the mean of the patterns laid upon each other
    common: Flags  # where all of them have usable pixels


def _registered(means: Array, n: Array, places: Array, usable: Flags) -> _Registered:
    """Planes of shifts that lay mean patterns (tile, ky, kx) of n probe positions each upon each other."""
    usable = despiked(np.average(means, axis=0, weights=n), usable)
    means = np.where(usable, means, 0.0)
    ky, kx = np.indices(usable.shape)
    shifts = np.zeros((len(means), 2))
    moved = np.inf
    for _ in range(_ROUNDS):
        laid = np.stack([ndimage.shift(m, -s, order=1) for m, s in zip(means, shifts, strict=True)])
        seen = [ndimage.shift(usable.astype(np.float64), -s, order=1) for s in shifts]
        common = np.min(seen, axis=0) > 0.999
        reference = np.average(laid, axis=0, weights=n)
        smooth = ndimage.gaussian_filter(reference, _SMOOTHING, mode="nearest")
        # Beside what is common, slopes are made by its edge.
        inner = ndimage.binary_erosion(common, iterations=math.ceil(3 * _SMOOTHING), border_value=1)
        total = smooth[inner].sum()
        if not total > 0:
            raise CalibrationError(
                "No bright-field disk was found: the patterns are empty, or no part of the detector is in all of them; "
                "leave the descan out, or measure it on a part of the scan."
            )
        terms = [smooth, *np.gradient(smooth)]
        if moved < 1.0:
            # A brightness that changes across the disk; before, a smeared edge would look like one.
            terms += [smooth * (k - (smooth * k)[inner].sum() / total) for k in (ky, kx)]
        design = np.stack([term[inner] for term in terms], 1)
        patterns = np.stack([ndimage.gaussian_filter(m, _SMOOTHING, mode="nearest")[inner] for m in laid], 1)
        brightness, *slopes = np.linalg.lstsq(design, patterns, rcond=None)[0]
        lit = brightness > 0
        step = np.zeros_like(shifts)
        step[lit] = -np.stack(slopes[:2], 1)[lit] / brightness[lit, None]
        plane = _plane(places, shifts + step, np.where(lit, brightness * n, 0.0))
        moved = float(np.abs(plane.shifts - shifts).max())
        shifts = plane.shifts
        if moved < _CONVERGED:
            return _Registered(plane, reference, common)
    raise CalibrationError(
        "The patterns of different parts of the scan cannot be laid upon each other by a plane of shifts; leave the "
        "descan out, or measure it on a part of the scan that is even."
    )
