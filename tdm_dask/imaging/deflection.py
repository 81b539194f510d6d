"""Deflection of the electrons at every probe position: centre of mass and differential phase contrast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from ..axes import DETECTOR, SCAN, TEMPLATE, check_counts, quantity, require_unit
from ..counts.statistics import detector_weights
from ..detector.calibration import detector_to_scan
from ..errors import InputError, MaskError
from ..masks.derivation import apply_mask

COMPONENT = "component"
Background = Literal["none", "mean", "plane"]

# How the detector lies against the scan, as `detector.calibration.detector_to_scan` reads it.
DIRECTION = ("rotation_deg", "transpose", "flip")


def centre_of_mass(
    counts: xr.DataArray,
    *,
    detector_region: Any = None,
    rotation: float | str | None = None,
    transpose: bool | None = None,
    flip: bool | None = None,
    background: Background = "mean",
) -> xr.DataArray:
    r"""Mean deflection of the electrons at every probe position, along the axes of the scan; one read.

    .. math:: c_i = A \frac{\sum_j w_j \, (k_y, k_x)_j \, d_{ij}}{\sum_j w_j \, d_{ij}}

    with the matrix A of `detector.calibration.detector_to_scan`. The three sums are three masks of one pass.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        Calibrated in mrad. `valid_pixels`, `valid_patterns` and descan coordinates are honoured.
    detector_region : DataArray or ndarray (ky, kx), or slices, optional
        Pixels that take part, as booleans or weights w of at least 0; the whole detector by default. Where invalid
        pixels lie on one side of the optic axis, a region without their mirror images avoids a bias.
    rotation : float (deg) or str, optional
    transpose, flip : bool, optional
        Detector against scan, as `calibrate` takes them; by default what the counts were calibrated with, which is 0
        and False where nothing is known. `scan_rotation` estimates them.
    background : {"mean", "none", "plane"}, default "mean"
        What is subtracted: "none"; the "mean" over the scan, for the optic axis is not known to the fraction of a
        pixel, and a constant integrates to a ramp; or a "plane", least squares, for what is left of slow descan.

    Returns
    -------
    DataArray, dims (component, y, x)
        Components "y" and "x" in mrad, float64; lazy where the counts are. NaN where a pattern is not valid or has no
        counts in the region: it has no centre.

    Raises
    ------
    CoordinateError
        If the detector is not calibrated in mrad.
    InputError
        If the background is none of the three.
    RegionError
        If the region is empty or of another shape.
    CountsError
        When computed, if counts in the region are NaN or infinite.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> angles = {dim: axis_coordinate(dim, 5, 10.0, -20.0, "mrad") for dim in ("ky", "kx")}
    >>> counts = label_counts(np.zeros((1, 2, 5, 5), np.uint16), angles)
    >>> counts[0, 0, 2, 4] = 7  # all electrons at kx = 20 mrad
    >>> com = centre_of_mass(counts, background="none")
    >>> com.sel(component="x").values.tolist()
    [[20.0, nan]]
    """
    counts = check_counts(counts)
    require_unit(counts, DETECTOR, "mrad", "The centre of mass")
    check_choice(background, Background, "background")
    weights = detector_weights(counts, detector_region)
    weights = weights / weights.max()
    ky, kx = (np.asarray(counts.coords[dim].values, np.float64) for dim in DETECTOR)
    coords = {dim: counts.coords[dim].variable for dim in DETECTOR}
    masks = xr.DataArray(np.stack([weights, weights * ky[:, None], weights * kx]), coords, (TEMPLATE, *DETECTOR))
    # Sums of integers may be rounded by less than half a count.
    floor = 0.5 if counts.dtype.kind in "ub" else 0.0
    direction = _direction(counts.attrs, rotation, transpose, flip)
    com = _ratio(counts, masks, np.eye(3), floor, direction)
    com = _without_background(com, background)
    com.attrs |= {"units": "mrad", "long_name": "centre of mass", "background": background}
    return com.rename("centre_of_mass")


def differential_phase_contrast(
    counts: xr.DataArray,
    segments: xr.DataArray,
    *,
    rotation: float | str | None = None,
    transpose: bool | None = None,
    flip: bool | None = None,
) -> xr.DataArray:
    r"""Differences of the segments of a detector over their sum, along the axes of the scan; one read.

    .. math:: \mathrm{DPC}_i = A \frac{\sum_s u_s \, s_i}{\sum_s s_i}

    s_i being the image of a segment and u_s the unit vector from the optic axis to the segment's middle: of four
    quadrants about the axes, the normalised differences of opposite ones (Shibata et al., Nat. Phys. 8, 611, 2012).

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        Calibrated in mrad.
    segments : DataArray, dims (template, ky, kx)
        Two masks or more, as `tdm_dask.segments` makes them.
    rotation, transpose, flip
        As in `centre_of_mass`.

    Returns
    -------
    DataArray, dims (component, y, x)
        Components "y" and "x" between -1 and 1, float64; lazy where the counts are. NaN as in `centre_of_mass`.

    Raises
    ------
    CoordinateError
        If the detector is not calibrated in mrad.
    MaskError
        If there are not at least two segments with a side of their own, or they are of another detector.

    Examples
    --------
    >>> from tdm_dask import segments
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> angles = {dim: axis_coordinate(dim, 21, 1.0, -10.0, "mrad") for dim in ("ky", "kx")}
    >>> counts = label_counts(np.ones((1, 1, 21, 21), np.uint16), angles)
    >>> counts[..., 11:] *= 3  # more electrons at positive kx
    >>> dpc = differential_phase_contrast(counts, segments(counts, 2, 9, rotation=-45))
    >>> dpc.values.ravel().round(2).tolist()
    [0.0, 0.26]
    """
    counts = check_counts(counts)
    require_unit(counts, DETECTOR, "mrad", "Differential phase contrast")
    if not isinstance(segments, xr.DataArray) or set(segments.dims) != {TEMPLATE, *DETECTOR}:
        dims = tuple(segments.dims) if isinstance(segments, xr.DataArray) else type(segments).__name__
        raise MaskError(f"The segments have dims {dims}; expected (template, ky, kx), as tdm_dask.segments gives.")
    masks = np.asarray(segments.transpose(TEMPLATE, *DETECTOR).values, np.float64)
    angles = np.stack(np.meshgrid(*(counts.coords[dim].values for dim in DETECTOR), indexing="ij"))
    if masks.shape[1:] != angles.shape[1:]:
        raise MaskError(f"The segments are for a detector of {masks.shape[1:]} pixels, not {angles.shape[1:]}.")
    middles = np.einsum("skl,ckl->cs", masks, angles)
    lengths = np.hypot(*middles)
    if len(masks) < 2 or not (lengths > 1e-9 * np.abs(angles).max() * np.abs(masks).sum((1, 2))).all():
        raise MaskError(
            f"Of {len(masks)} segments, {int((lengths > 0).sum())} lie to one side of the optic axis; expected two or "
            "more that all do."
        )
    sides = np.concatenate([np.ones((1, len(masks))), middles / lengths])
    floor = 0.5 * float(masks.max()) if counts.dtype.kind in "ub" else 0.0
    direction = _direction(counts.attrs, rotation, transpose, flip)
    dpc = _ratio(counts, segments, sides, floor, direction)
    dpc.attrs |= {"units": "1", "long_name": "differential phase contrast"}
    return dpc.rename("differential_phase_contrast")


def check_choice(value: str, choices: Any, what: str) -> None:
    """Raise InputError unless a word is one of a Literal's."""
    if value not in get_args(choices):
        raise InputError(f"The {what} is {value!r}; expected one of {', '.join(get_args(choices))}.")


def _direction(
    attrs: Mapping[str, Any], rotation: float | str | None, transpose: bool | None, flip: bool | None
) -> dict[str, Any]:
    """How the detector lies against the scan: what is given, else what the counts know."""
    turn = None if rotation is None else quantity(rotation, "deg", "rotation", positive=False)
    given = dict(zip(DIRECTION, (turn, transpose, flip), strict=True))
    defaults = {"rotation_deg": 0.0, "transpose": False, "flip": False}
    return {k: attrs.get(k, defaults[k]) if v is None else v for k, v in given.items()}


def _ratio(
    counts: xr.DataArray, masks: xr.DataArray, sums: np.ndarray, floor: float, direction: Mapping[str, Any]
) -> xr.DataArray:
    """A vector on the scan from images of masks in one read; NaN where its denominator is not above `floor`.

    `sums` (3, masks) makes the denominator, the ky and the kx component of the images.
    """
    images = apply_mask(counts, masks).drop_vars(TEMPLATE, errors="ignore")
    # Numbers are rotated, and not images.
    sums = np.concatenate([sums[:1], detector_to_scan(direction) @ sums[1:]])
    total, *parts = (xr.DataArray(row, dims=TEMPLATE).dot(images, dim=TEMPLATE) for row in sums)
    vector = xr.concat(parts, COMPONENT) / total.where(total > floor)
    directions = xr.Variable(COMPONENT, list(SCAN), {"long_name": "component along"})
    vector = vector.assign_coords({COMPONENT: directions}).transpose(COMPONENT, *SCAN)
    facts = {k: v for k, v in images.attrs.items() if k not in ("normalisation", "units", "long_name")}
    vector.attrs = facts | dict(direction)
    return vector


def _without_background(com: xr.DataArray, background: Background) -> xr.DataArray:
    """The deflections less their mean or a plane, by least squares over what is known."""
    if background == "none":
        return com
    ramps = [np.ones(com.shape[1:])]
    if background == "plane":
        ramps += list(np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else [0.0] for n in com.shape[1:]), indexing="ij"))
    basis = xr.DataArray(np.stack(ramps), dims=("term", *SCAN))
    known = np.isfinite(com)
    other = basis.rename(term="other")
    normal = (basis * other * known).sum(SCAN)
    right = (basis * com.fillna(0.0)).sum(SCAN)
    inverse = xr.apply_ufunc(
        np.linalg.pinv,
        normal,
        input_core_dims=[["term", "other"]],
        output_core_dims=[["other", "term"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    terms = (inverse * right).sum("term")
    fitted = (terms * other).sum("other").transpose(*com.dims)
    result = com - fitted
    result.attrs = com.attrs
    return result
