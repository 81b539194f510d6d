"""Radial profiles: what lies on the detector as a function of the scattering angle alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import DETECTOR, VALID_PIXELS, quantity, require_unit, step_of
from ..counts.statistics import valid_pixels
from ..errors import RegionError

ANGLE = "angle"
REGION = "detector_region"

Array = npt.NDArray[np.float64]


def scattering_angle(pattern: xr.DataArray | xr.Dataset, *, centre: tuple[float, float] = (0.0, 0.0)) -> xr.DataArray:
    r"""Scattering angle of every detector pixel's middle, in mrad: :math:`\sqrt{k_y^2 + k_x^2}` from the optic axis.

    Parameters
    ----------
    pattern : DataArray or Dataset, dims (..., ky, kx)
        Anything with a detector calibrated in mrad; only its coordinates are used.
    centre : (float, float), default (0, 0)
        Where the angle is 0, (ky, kx) in mrad from the optic axis.

    Returns
    -------
    DataArray, dims (ky, kx)

    Raises
    ------
    CoordinateError
        If the detector is not calibrated in mrad.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 3, 4.0, -4.0, "mrad") for dim in ("ky", "kx")}
    >>> scattering_angle(xr.Dataset(coords=angles)).values.round(2).tolist()
    [[5.66, 4.0, 5.66], [4.0, 0.0, 4.0], [5.66, 4.0, 5.66]]
    """
    require_unit(pattern, DETECTOR, "mrad", "A scattering angle")  # type: ignore[arg-type]
    middle = [quantity(c, "mrad", "centre", positive=False) for c in centre]
    ky, kx = (np.asarray(pattern.coords[d].values, np.float64) - c for d, c in zip(DETECTOR, middle, strict=True))
    coords = {dim: pattern.coords[dim].variable for dim in DETECTOR}
    attrs = {"units": "mrad", "long_name": "scattering angle"}
    return xr.DataArray(np.hypot(ky[:, None], kx), coords, DETECTOR, "scattering_angle", attrs)


def radial_profile(
    pattern: xr.DataArray | xr.Dataset,
    *,
    width: float | str | None = None,
    centre: tuple[float, float] = (0.0, 0.0),
) -> xr.Dataset:
    r"""Mean over the azimuth, and scatter, of what lies on the detector, against the scattering angle (Fig. 2d).

    .. math:: \bar v(\theta_b) = \frac{1}{n_b} \sum_{k \in b} v_k, \qquad
              \sigma(\theta_b)^2 = \frac{1}{n_b} \sum_{k \in b} (v_k - \bar v(\theta_b))^2

    over the n_b pixels k whose middle lies in the ring b. Nothing of the scan is read.

    Parameters
    ----------
    pattern : DataArray or Dataset, dims (..., ky, kx)
        A mean pattern, a mask, or the Dataset of `correlate` or `pixel_statistics`, of which every variable with a
        detector is taken. Other dims are kept.
    width : float (mrad) or str, optional
        Width of a ring; the size of a detector pixel by default (of the larger side, where it has two).
    centre : (float, float), default (0, 0)
        Middle of the rings, (ky, kx) in mrad from the optic axis.

    Returns
    -------
    Dataset, dims (..., angle)
        For each variable v its mean `v` and its scatter `v_std` (population), and `pixels`, the number of pixels in
        each ring; `angle` is the middle of the ring, in mrad. A DataArray without a name is called "profile". A ring
        without a pixel is NaN. Pixels that `valid_pixels` marks as unusable do not count, nor do those outside the
        `detector_region` that correlations and masks carry. Lazy where the pattern is.

    Raises
    ------
    CoordinateError
        If the detector is not calibrated in mrad.
    RegionError
        If no pixel is usable.
    UnitError
        If the width is no positive angle.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 65, 1.0, -32.0, "mrad") for dim in ("ky", "kx")}
    >>> cone = scattering_angle(xr.Dataset(coords=angles))
    >>> profile = radial_profile(cone, width=2)
    >>> profile.angle.values[:3].tolist(), profile.scattering_angle.values[:3].round(2).tolist()
    ([1.0, 3.0, 5.0], [1.07, 2.87, 4.92])
    """
    theta = scattering_angle(pattern, centre=centre).values
    steps = [abs(step_of(pattern, dim)) for dim in DETECTOR]
    ring = quantity(max(steps) if width is None else width, "mrad", "width")
    # A pixel in the middle of two rings' edge, but for rounding, goes to the outer one.
    number = np.floor(theta / ring + 1e-9).astype(np.int64)
    number[~_usable(pattern)] = -1
    if (number < 0).all():
        raise RegionError("No detector pixel is valid and inside the detector_region; there is nothing to average.")
    rings = int(number.max()) + 1
    pixels = np.bincount(number[number >= 0], minlength=rings)
    name = "profile" if isinstance(pattern, xr.DataArray) and pattern.name is None else None
    variables = pattern.data_vars if isinstance(pattern, xr.Dataset) else {name or str(pattern.name): pattern}
    angle = ((np.arange(rings) + 0.5) * ring, {"units": "mrad", "long_name": "scattering angle"})
    result = xr.Dataset(coords={ANGLE: (ANGLE, *angle)})
    for label, values in variables.items():
        if not set(DETECTOR) <= set(values.dims) or label == REGION:
            continue
        mean, scatter = _over_rings(values, number, rings)
        facts = {"units": values.attrs.get("units", "1"), "long_name": values.attrs.get("long_name", str(label))}
        result[label] = mean.assign_attrs(facts)
        result[f"{label}_std"] = scatter.assign_attrs(facts | {"long_name": f"scatter of the {facts['long_name']}"})
    return result.assign(pixels=(ANGLE, pixels, {"units": "1", "long_name": "detector pixels in the ring"}))


def _usable(pattern: xr.DataArray | xr.Dataset) -> npt.NDArray[np.bool_]:
    """Pixels (ky, kx) that are valid, and in the region of what was derived."""
    usable = np.ones([pattern.sizes[dim] for dim in DETECTOR], bool)
    if isinstance(pattern, xr.DataArray):
        valid: Any = valid_pixels(pattern)
    else:
        valid = pattern[VALID_PIXELS].transpose(*DETECTOR).values if VALID_PIXELS in pattern.variables else None
    if valid is not None:
        usable &= np.asarray(valid, bool)
    region = pattern.coords.get(REGION) if isinstance(pattern, xr.DataArray) else pattern.variables.get(REGION)
    if region is not None:
        usable &= np.asarray(region.transpose(*DETECTOR).values) > 0
    return usable


def _over_rings(
    values: xr.DataArray, number: npt.NDArray[np.int64], rings: int
) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and scatter (..., angle) over the rings that pixels (ky, kx) belong to; -1 is none."""
    kept = {name: c for name, c in values.coords.items() if not set(DETECTOR) & set(c.dims)}
    bare = xr.DataArray(values.variable, {name: c.variable for name, c in kept.items()})
    both = xr.apply_ufunc(
        _mean_and_scatter,
        bare,
        kwargs={"number": number, "rings": rings},
        input_core_dims=[list(DETECTOR)],
        output_core_dims=[["moment", ANGLE]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"moment": 2, ANGLE: rings}, "allow_rechunk": True},
    )
    return both.isel(moment=0), both.isel(moment=1)


def _mean_and_scatter(values: np.ndarray, number: npt.NDArray[np.int64], rings: int) -> Array:
    """Mean and standard deviation (..., 2, ring) of values (..., ky, kx)."""
    inside = number >= 0
    where = number[inside]
    n = np.bincount(where, minlength=rings)
    rows = np.asarray(values[..., inside], np.float64).reshape(-1, len(where))
    out = np.full((len(rows), 2, rings), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        for row, result in zip(rows, out, strict=True):
            result[0] = np.bincount(where, row, rings) / n
            result[1] = np.sqrt(np.bincount(where, (row - result[0][where]) ** 2, rings) / n)
    return out.reshape(*values.shape[:-2], 2, rings)
