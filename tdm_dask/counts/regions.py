"""Parts of a scan, and sums over neighbours: crop and bin."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from ..axes import DESCAN, DETECTOR, DIMS, SCAN, VALID_PATTERNS, VALID_PIXELS, check_counts, named
from ..errors import RegionError
from ..reading.lazy import crop as crop_array
from ..reading.shifts import shifted
from .statistics import descan_shifts, valid_pixels

FLAGS = (VALID_PIXELS, VALID_PATTERNS)


def crop(counts: xr.DataArray, **windows: slice) -> xr.DataArray:
    """A part of the scan or of the detector.

    Unlike `counts.isel`, it keeps the connection to the file: passes over the part still read inside their tasks, and
    only what they need.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    **windows : slice
        Elements to keep along y, x, ky or kx, without a step; negative ends count from the end.

    Returns
    -------
    DataArray
        Lazy as the counts are; coordinates, flags and descan are cropped with them. Pixels that descan would move in
        over the edge of the new detector are not valid: leave a margin as wide as the shifts.

    Raises
    ------
    RegionError
        If an axis is unknown, or a window is empty or has a step.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.zeros((4, 6, 8, 8), np.uint16))
    >>> crop(counts, y=slice(0, 2), kx=slice(2, -2)).shape
    (2, 6, 8, 4)
    """
    counts = check_counts(counts)
    unknown = set(windows) - set(DIMS)
    if unknown:
        raise RegionError(f"There is no axis {sorted(unknown)} to crop; the axes are {DIMS}.")
    full = {}
    for dim, size in counts.sizes.items():
        window = windows.get(str(dim), slice(None))
        if not isinstance(window, slice) or window.step not in (None, 1):
            raise RegionError(f"The window of {dim} is {window!r}; expected a slice without a step.")
        try:
            start, stop, _ = window.indices(size)
        except TypeError:
            raise RegionError(f"The window of {dim} is {window!r}; expected whole numbers of elements.") from None
        if stop <= start:
            raise RegionError(
                f"The window {window.start}:{window.stop} of {dim} is empty; the axis has {size} elements."
            )
        full[str(dim)] = slice(start, stop)
    y, x, ky, kx = (full[d] for d in DIMS)
    data = crop_array(counts.data, (y, x, ky, kx))
    coords = {name: c.variable.isel({d: full[d] for d in c.dims if d in full}) for name, c in counts.coords.items()}
    return xr.DataArray(data, dims=DIMS, coords=coords, attrs=counts.attrs, name=counts.name)


def bin(counts: xr.DataArray, *, scan: int | tuple[int, int] = 1, detector: int | tuple[int, int] = 1) -> xr.DataArray:
    """Sums of neighbouring probe positions or detector pixels.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    scan, detector : int or (int, int), default 1
        Elements to sum along (y, x) and (ky, kx). What is left over at the far edge is dropped.

    Returns
    -------
    DataArray
        Lazy as the counts are. Integers become wide enough for the sum (uint32 where that holds it, else uint64 or
        int64; float64 for what no integer holds); coordinates are means. Invalid pixels and patterns count as 0, and a
        sum is valid only where all that went into it are. Descan is applied before the sums, and not handed on.

    Raises
    ------
    RegionError
        If a factor is below 1 or larger than its axis.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.ones((4, 6, 8, 8), np.uint16))
    >>> binned = bin(counts, detector=2)
    >>> binned.shape, int(binned.max())
    ((4, 6, 4, 4), 4)
    """
    counts = check_counts(counts)
    factors: dict[str, int] = {}
    for dims, value, name in ((SCAN, scan, "scan"), (DETECTOR, detector, "detector")):
        pair = tuple(value) if isinstance(value, Iterable) else (value, value)
        if len(pair) != 2:
            raise RegionError(f"The {name} binning is {value!r}; expected one integer or two.")
        for dim, factor in zip(dims, pair, strict=True):
            if (
                isinstance(factor, bool)
                or not isinstance(factor, (int, np.integer))
                or not 1 <= factor <= counts.sizes[dim]
            ):
                raise RegionError(
                    f"The binning of {dim} is {factor!r}; expected an integer from 1 to {counts.sizes[dim]}, its size."
                )
            if factor > 1:
                factors[dim] = int(factor)
    if not factors:
        return counts
    counts = descanned(counts)
    values = zeroed(counts).drop_vars(FLAGS, errors="ignore")
    dtype = dtype_of_sums(counts.dtype, math.prod(factors.values()))
    summed = values.coarsen(factors, boundary="trim").reduce(functools.partial(_sums, dtype=dtype))
    for name in FLAGS:
        if name in counts.coords:
            valid = counts.coords[name].drop_vars(FLAGS, errors="ignore")
            here = {d: f for d, f in factors.items() if d in valid.dims}
            summed = summed.assign_coords({name: valid.coarsen(here, boundary="trim").all() if here else valid})
    for dim in DIMS:
        summed.coords[dim].attrs.update(counts.coords[dim].attrs)
    summed.attrs = _rescaled(counts.attrs, factors)
    return summed.rename(counts.name)


def zeroed(counts: xr.DataArray) -> xr.DataArray:
    """The counts, with 0 at pixels and patterns that are not valid, be they NaN."""
    for name in FLAGS:
        if name in counts.coords:
            valid = counts.coords[name].drop_vars(FLAGS, errors="ignore")
            counts = counts.where(valid, np.zeros((), counts.dtype)).astype(counts.dtype, copy=False)
    return counts


def descanned(counts: xr.DataArray) -> xr.DataArray:
    """Counts whose patterns are moved by their descan, and which have none then; lazy where they are.

    This is for counts that become others anyhow; passes honour descan without it.
    """
    shifts = descan_shifts(counts)
    plain = counts.drop_vars(DESCAN, errors="ignore")
    if shifts is None:
        return plain
    valid = valid_pixels(counts)
    by = [s[..., None, None] for s in shifts]
    data = counts.data
    if isinstance(data, np.ndarray):
        data = shifted(data, *by)
    else:
        data = data.rechunk({2: -1, 3: -1})
        by = [da.from_array(s, chunks=(*data.chunks[:2], 1, 1)) for s in by]
        like = np.empty((0,) * 4, data.dtype)
        data = da.map_blocks(shifted, data, *by, dtype=data.dtype, chunks=data.chunks, meta=like)
    return named(plain.copy(data=data).assign_coords({VALID_PIXELS: (DETECTOR, valid)}))


def dtype_of_sums(dtype: np.dtype, terms: int) -> np.dtype:
    """A dtype that holds every sum of that many counts."""
    if dtype.kind == "f":
        return dtype
    largest = terms * (1 if dtype.kind == "b" else int(np.iinfo(dtype).max) + (dtype.kind == "i"))
    wide = (np.int64,) if dtype.kind == "i" else (np.uint32, np.uint64)
    return np.dtype(next((w for w in wide if largest <= np.iinfo(w).max), np.float64))


def _sums(blocks: Any, axis: Sequence[int], dtype: np.dtype) -> Any:
    """Sums over some axes, which are short: line by line, one addition for each of their elements.

    That takes a tenth of the time of NumPy's own sums, which loop over the short axes innermost.
    """
    if not isinstance(blocks, np.ndarray):
        summed = functools.partial(_sums, axis=axis, dtype=dtype)
        return blocks.map_blocks(summed, drop_axis=axis, meta=np.empty((0,) * len(DIMS), dtype))
    parts = np.moveaxis(blocks, axis, range(len(axis)))
    total = np.zeros(parts.shape[len(axis) :], dtype)
    for n, line in enumerate(total):
        for index in np.ndindex(parts.shape[: len(axis)]):
            line += parts[(*index, n)]
    return total


def _rescaled(attrs: Mapping[Any, Any], factors: Mapping[str, int]) -> dict[Any, Any]:
    """Facts of the acquisition that a sum changes."""
    new = dict(attrs)
    if "pixel_size_mrad" in new:
        new["pixel_size_mrad"] = [s * factors.get(d, 1) for s, d in zip(new["pixel_size_mrad"], DETECTOR, strict=True)]
    probes = factors.get("y", 1) * factors.get("x", 1)
    if "electrons_per_probe" in new:
        new["electrons_per_probe"] *= probes
    if "dwell_time_s" in new:
        new["dwell_time_s"] *= probes
    return new
