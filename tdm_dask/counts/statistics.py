"""Statistics of every detector pixel over the scan, and what both they and masks need: regions, valid flags."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
import zarr

from ..axes import DESCAN, DETECTOR, SCAN, VALID_PATTERNS, VALID_PIXELS, check_counts, named, require_same_coordinates
from ..errors import CoordinateError, RegionError
from ..passes.graphs import moments
from ..reading.blocks import Crop, Shards
from ..reading.lazy import source_of
from ..reading.shifts import distinct, reach, seen_by_all
from ..reading.store import GATHERED, stored_statistics


def pixel_statistics(counts: xr.DataArray, *, scan_region: Any = None) -> xr.Dataset:
    """Number of patterns, mean and standard deviation of every detector pixel, in one read.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        `valid_patterns` and `valid_pixels` coordinates are honoured, and `descan_ky` and `descan_kx`.
    scan_region : slices, boolean DataArray or ndarray (y, x), or dict of slices, optional
        Probe positions to use; the whole scan by default. Slices count probe positions, not angstrom.

    Returns
    -------
    Dataset
        `n` (), `mean` and `std` (ky, kx), in counts; the standard deviation is the population's. The mean is the
        PACBED. Invalid pixels are 0 in both. Lazy where the counts are.

    Raises
    ------
    RegionError
        If the scan region is empty or of another shape.
    CountsError
        When computed, if counts that are used are NaN or infinite.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.arange(2 * 3 * 4 * 4, dtype=np.uint16).reshape(2, 3, 4, 4))
    >>> float(pixel_statistics(counts)["mean"][0, 0])
    40.0
    """
    counts = check_counts(counts)
    used = used_patterns(counts, scan_region)
    pixels = valid_pixels(counts)
    values = moments(counts.data, None, used, pixels, shifts=descan_shifts(counts))
    return statistics_dataset(values, counts, scan_region_text(used, counts.shape[:2]))


def pacbed(counts: xr.DataArray) -> np.ndarray:
    """The mean pattern (ky, kx) of the valid patterns: a store's own where the counts are a whole store, else read."""
    stored = stored_pacbed(counts)
    return np.asarray(pixel_statistics(counts)["mean"].compute().values) if stored is None else stored


def stored_pacbed(counts: xr.DataArray) -> np.ndarray | None:
    """The mean pattern (ky, kx) that a store knows, where the counts are all of it, as they were gathered."""
    stored = stored_moments(counts)
    return None if stored is None else stored[0]


def stored_moments(counts: xr.DataArray) -> tuple[np.ndarray, np.ndarray] | None:
    """The mean pattern and the standard deviations (ky, kx) that a store knows, as `stored_pacbed`."""
    source = source_of(counts.data)
    if isinstance(source, Shards) and descan_shifts(counts) is None:
        stored = stored_statistics(source.array.store)
        flags = None if stored is None else stored.get(VALID_PATTERNS)
        now = valid_patterns(counts)
        same = now is None if flags is None or flags.all() else now is not None and np.array_equal(flags, now)
        if stored is not None and same:
            mean, variance = (
                np.asarray(stored[name].values, np.float64) for name in ("pattern_mean", "pattern_variance")
            )
            pixels = valid_pixels(counts)
            inside = True if pixels is None else pixels
            return np.where(inside, mean, 0.0), np.sqrt(np.where(inside, variance, 0.0))
    return None


def statistics_dataset(values: dict[str, Any], counts: xr.DataArray, scan_region: str) -> xr.Dataset:
    """The results of `passes.graphs.moments` that have no template, labelled like the counts' detector."""
    coords = detector_coords(counts)
    data = {
        "n": ((), values["n"], {"long_name": "probe positions used", "units": "1"}),
        "mean": (DETECTOR, values["mean"], {"units": "counts", "long_name": "mean pattern (PACBED)"}),
        "std": (DETECTOR, values["std"], {"units": "counts", "long_name": "standard deviation over the scan"}),
    }
    return xr.Dataset(data, coords, {"scan_region": scan_region, **counts_facts(counts)})


def detector_coords(array: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Coordinates that lie on the detector alone; with descan, `valid_pixels` are those that every pattern has."""
    coords = {k: v for k, v in named(array).coords.items() if v.dims and set(v.dims) <= set(DETECTOR)}
    if isinstance(array, xr.DataArray) and descan_shifts(array) is not None:
        attrs = {"long_name": "valid detector pixels that every pattern has"}
        coords[VALID_PIXELS] = xr.Variable(DETECTOR, valid_pixels(array), attrs)
    return coords  # type: ignore[return-value]


def scan_coords(array: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Coordinates that lie on the scan alone, without descan, which says how to read counts."""
    return {
        k: v  # type: ignore[misc]
        for k, v in named(array).coords.items()
        if v.dims and set(v.dims) <= set(SCAN) and k not in DESCAN
    }


def counts_facts(counts: xr.DataArray) -> dict[str, Any]:
    """Facts of the acquisition that results carry on."""
    keep = ("energy_eV", "semi_angle_mrad", "rotation_deg", "transpose", "flip", "source")
    return {k: counts.attrs[k] for k in keep if k in counts.attrs}


def stored_maxima(counts: xr.DataArray) -> np.ndarray | None:
    """Largest count of every detector pixel (ky, kx), as the store behind the counts knows it; None where none does.

    It was gathered over the pixels and patterns that were valid then: all that are valid now must be among them. It
    knows of no descan.
    """
    source = source_of(counts.data)
    start, source = (source.start, source.source) if isinstance(source, Crop) else ((0, 0, 0, 0), source)
    if not isinstance(source, Shards):
        return None
    y, x, ky, kx = (slice(a, a + n) for a, n in zip(start, counts.shape, strict=True))
    group: Any = zarr.open_group(source.array.store, mode="r")
    for name, window, now in (
        (VALID_PIXELS, (ky, kx), flagged_pixels(counts)),
        (VALID_PATTERNS, (y, x), valid_patterns(counts)),
    ):
        then = group.get(GATHERED[name])
        if then is not None and (~np.asarray(then[window]) & (True if now is None else now)).any():
            return None
    maxima = group.get("pattern_maximum")
    return None if maxima is None else np.asarray(maxima[ky, kx])


def descan_shifts(counts: xr.DataArray) -> np.ndarray | None:
    """Whole pixels (2, ny, nx) by which each pattern lies off along ky and kx, or None where none does.

    Raises
    ------
    CoordinateError
        If there is one of the two coordinates alone, or they are no finite numbers (y, x).
    """
    found = [name for name in DESCAN if name in counts.coords]
    if not found or not set(SCAN) <= set(counts.dims):
        return None
    if len(found) == 1:
        raise CoordinateError(f"The counts have {found[0]} alone; give both of {DESCAN}, or drop it.")
    shifts = np.zeros((2, *(counts.sizes[d] for d in SCAN)))
    valid = valid_patterns(counts)
    for n, name in enumerate(DESCAN):
        coordinate = counts.coords[name]
        if set(coordinate.dims) != set(SCAN) or coordinate.dtype.kind not in "uif":
            raise CoordinateError(
                f"{name} has dims {tuple(coordinate.dims)} and dtype {coordinate.dtype}; expected numbers of detector "
                f"pixels of dims {SCAN}."
            )
        values = np.asarray(coordinate.transpose(*SCAN).values, np.float64)
        shifts[n] = values if valid is None else np.where(valid, values, 0.0)
        bad = ~np.isfinite(shifts[n])
        if bad.any():
            raise CoordinateError(
                f"{name} is NaN or infinite at {int(bad.sum())} probe positions; give finite shifts, or mark these "
                f"patterns in {VALID_PATTERNS}."
            )
    # Beyond any detector, and within what the sums of places need.
    whole = np.clip(np.rint(shifts), -(2**30), 2**30).astype(np.int32)
    return whole if whole.any() else None


def valid_pixels(counts: xr.DataArray) -> np.ndarray | None:
    """Flags of the usable detector pixels, or None where all are; with descan, those that every valid pattern has.

    Raises
    ------
    RegionError
        If none is.
    """
    flags, shifts = flagged_pixels(counts), descan_shifts(counts)
    if shifts is None:
        return flags
    all_shifts = distinct(shifts, valid_patterns(counts))
    shape = tuple(counts.sizes[d] for d in DETECTOR)
    seen = seen_by_all(np.ones(shape, bool) if flags is None else flags, all_shifts)
    if not seen.any():
        (low_y, low_x), (high_y, high_x) = all_shifts.min(0), all_shifts.max(0)
        raise RegionError(
            f"With descan by {low_y} to {high_y} (ky) and {low_x} to {high_x} (kx) pixels, no valid pixel of the "
            f"{shape[0]} x {shape[1]} detector is left that every pattern has; crop the scan, or drop {DESCAN}."
        )
    return seen


def pixels_read(counts: xr.DataArray, pixels: np.ndarray) -> np.ndarray:
    """Detector pixels (ky, kx) whose counts make up some pixels: with descan, these moved by all shifts."""
    shifts = descan_shifts(counts)
    return pixels if shifts is None else reach(pixels, distinct(shifts, valid_patterns(counts)))


def flagged_pixels(counts: xr.DataArray) -> np.ndarray | None:
    """Flags of the usable detector pixels whatever the descan, or None where all are."""
    return _flags(counts, VALID_PIXELS, DETECTOR)


def valid_patterns(counts: xr.DataArray) -> np.ndarray | None:
    """Flags of the usable patterns, or None where all are."""
    return _flags(counts, VALID_PATTERNS, SCAN)


def _flags(counts: xr.DataArray, name: str, dims: tuple[str, str]) -> np.ndarray | None:
    if name not in counts.coords:
        return None
    flags = np.asarray(counts.coords[name].transpose(*dims).values).astype(bool)
    if not flags.any():
        raise RegionError(f"Every element of {name} is False; at least one must be usable.")
    return None if flags.all() else flags


def used_patterns(counts: xr.DataArray, scan_region: Any) -> np.ndarray | None:
    """Flags (y, x) of the probe positions in a scan region whose patterns are valid, or None where all are."""
    used = region_flags(counts, scan_region, SCAN, "scan_region")
    valid = valid_patterns(counts)
    if used is None:
        return valid
    if valid is not None:
        used = used & valid
    if not used.any():
        raise RegionError("The scan_region holds no probe position with a valid pattern; choose another.")
    return None if used.all() else used


def region_flags(array: xr.DataArray, region: Any, dims: tuple[str, str], name: str) -> np.ndarray | None:
    """A region as boolean flags over two dims of an array, or None for the whole.

    A region is a pair of slices or a dict of slices (elements, not units), or boolean flags.
    """
    if region is None:
        return None
    shape = tuple(array.sizes[d] for d in dims)
    if isinstance(region, dict):
        unknown = set(region) - set(dims)
        if unknown:
            raise RegionError(f"The {name} names {sorted(unknown)}; its axes are {dims}.")
        region = tuple(region.get(d, slice(None)) for d in dims)
    if isinstance(region, slice):
        region = (region, slice(None))
    if isinstance(region, tuple) and len(region) == 2 and all(isinstance(s, slice) for s in region):
        flags = np.zeros(shape, bool)
        flags[region] = True
    else:
        if isinstance(region, xr.DataArray):
            require_same_coordinates(array, region, dims, ("counts", name), RegionError)
            region = region.transpose(*dims)
        flags = np.asarray(region)
        if flags.shape != shape:
            raise RegionError(f"The {name} has shape {flags.shape}; expected {shape}, the {dims} axes of the counts.")
        if flags.dtype != bool:
            raise RegionError(f"The {name} has dtype {flags.dtype}; expected booleans.")
    if not flags.any():
        raise RegionError(f"The {name} is empty; it must hold at least one element of {shape}.")
    return flags


def detector_weights(counts: xr.DataArray, region: Any) -> np.ndarray:
    """Weights (ky, kx) of the detector region, 0 at invalid pixels."""
    shape = counts.shape[2:]
    if isinstance(region, (np.ndarray, xr.DataArray)) and region.dtype.kind != "b":
        if isinstance(region, xr.DataArray):
            require_same_coordinates(counts, region, DETECTOR, ("counts", "detector_region"), RegionError)
            region = region.transpose(*DETECTOR)
        weights = np.array(region, np.float64)
        if weights.shape != shape:
            raise RegionError(f"The detector_region has shape {weights.shape}; expected {shape}, the detector's.")
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise RegionError("The detector_region has weights that are negative or not finite; expected at least 0.")
    else:
        flags = region_flags(counts, region, DETECTOR, "detector_region")
        weights = np.ones(shape) if flags is None else flags.astype(np.float64)
    valid = valid_pixels(counts)
    if valid is not None:
        weights[~valid] = 0.0
    if not weights.any():
        raise RegionError("The detector_region holds no valid pixel; choose a larger one.")
    return weights


def scan_region_text(used: np.ndarray | None, shape: tuple[int, ...]) -> str:
    """Flags of probe positions as JSON: the whole scan, a rectangle, or runs of the flattened scan.

    Examples
    --------
    >>> scan_region_text(None, (4, 6))
    '{"shape": [4, 6], "y": [0, 4], "x": [0, 6]}'
    """
    ny, nx = shape
    region: dict[str, Any] = {"shape": [ny, nx]}
    if used is None:
        return json.dumps(region | {"y": [0, ny], "x": [0, nx]})
    ys, xs = np.flatnonzero(used.any(1)), np.flatnonzero(used.any(0))
    y, x = [int(ys[0]), int(ys[-1]) + 1], [int(xs[0]), int(xs[-1]) + 1]
    if used[slice(*y), slice(*x)].all():
        return json.dumps(region | {"y": y, "x": x})
    edges = np.flatnonzero(np.diff(used.ravel().astype(np.int8), prepend=0, append=0))
    return json.dumps(region | {"runs": edges.reshape(-1, 2).tolist()})


def scan_region_flags(text: str) -> np.ndarray:
    """The inverse of `scan_region_text`: boolean flags (y, x).

    Examples
    --------
    >>> flags = scan_region_flags('{"shape": [2, 3], "runs": [[1, 2], [4, 6]]}')
    >>> flags.astype(int).tolist()
    [[0, 1, 0], [0, 1, 1]]
    """
    region = json.loads(text)
    flags = np.zeros(region["shape"], bool)
    if "runs" in region:
        for start, stop in region["runs"]:
            flags.reshape(-1)[start:stop] = True
    else:
        flags[slice(*region["y"]), slice(*region["x"])] = True
    return flags
