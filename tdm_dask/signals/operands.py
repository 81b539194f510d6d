"""Templates, masks and regions as HyperSpy's users have them: signals, regions of interest, bare arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
import xarray as xr
from hyperspy.signal import BaseSignal

from ..axes import DETECTOR, SCAN, TEMPLATE
from ..errors import InputError
from .conversion import ORIGIN, Origin, from_signal
from .node import NODE
from .regions import is_roi, roi_flags, roi_weights


def detector_operand(region: Any, counts: xr.DataArray) -> Any:
    """A detector region for the labelled functions."""
    return roi_weights(region, counts) if is_roi(region) else _operand(region, counts, DETECTOR)


def scan_operand(region: Any, counts: xr.DataArray) -> Any:
    """A scan region for the labelled functions."""
    region = roi_flags(region, counts) if is_roi(region) else _operand(region, counts, SCAN)
    if isinstance(region, xr.DataArray) and region.dtype != bool and np.isin(region, (0, 1)).all():
        return region.astype(bool)  # HyperSpy's arithmetic makes numbers of flags
    return region


def template_operand(template: Any, counts: xr.DataArray) -> Any:
    """A template for the labelled functions."""
    if is_roi(template):
        return roi_flags(template, counts).astype(np.float64)
    return _labelled(_operand(template, counts, SCAN), SCAN)


def mask_operand(mask: Any, counts: xr.DataArray) -> Any:
    """A mask for the labelled functions."""
    return roi_weights(mask, counts) if is_roi(mask) else _labelled(_operand(mask, counts, DETECTOR), DETECTOR)


def _labelled(value: Any, dims: Sequence[str]) -> Any:
    """A bare array with dims: a template or a mask, or a stack of them."""
    if isinstance(value, np.ndarray) or (dask.is_dask_collection(value) and not isinstance(value, xr.DataArray)):
        if value.ndim not in (2, 3):
            raise InputError(f"The array has {value.ndim} dimensions; expected ([template,] {dims[0]}, {dims[1]}).")
        return xr.DataArray(value, dims=(TEMPLATE, *dims)[-value.ndim :])
    return value


def _operand(value: Any, counts: xr.DataArray, dims: tuple[str, str]) -> Any:
    """A signal over the scan or the detector as an array on the coordinates of the counts, others as they are."""
    if not isinstance(value, BaseSignal):
        return value
    n = len(value.axes_manager.shape)
    if n not in (2, 3):
        raise InputError(f"{value} has {n} dimensions; expected ([template,] {dims[0]}, {dims[1]}).")
    array = from_signal(value, dims=None if NODE in value.metadata else (TEMPLATE, *dims)[-n:])
    mine: Origin = array.attrs[ORIGIN]
    theirs: Origin = counts.attrs[ORIGIN]
    for dim in dims:
        if dim in mine.axes and dim in theirs.axes and array.sizes[dim] == counts.sizes[dim]:
            axis = mine.axes[dim]
            unset = axis["units"] is None and axis["scale"] == 1 and axis["offset"] == 0
            same = all(axis[k] == theirs.axes[dim][k] for k in ("units", "scale", "offset"))
            if unset or same:  # whether or not this signal knows the beam energy
                array = array.assign_coords({dim: counts.coords[dim].variable})
    return array
