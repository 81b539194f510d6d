"""How far counting statistics alone let an image vary."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ..axes import DETECTOR
from ..errors import InputError, MaskError
from ..masks.derivation import Normalisation, apply_mask, check_normalisation
from ..renamed import renamed


@renamed(gain="counts_per_electron")
def counting_variance(
    counts: xr.DataArray, mask: xr.DataArray, *, normalisation: Normalisation = "none", counts_per_electron: float = 1.0
) -> xr.DataArray:
    r"""Variance of every pixel of a mask's image from counting statistics, so that a difference comes with a number.

    Electrons that arrive independently make the variance of a count its mean, which the count itself estimates without
    bias. With the weights w that a mask comes to for the counts as they are, m or m / std,

    .. math:: \mathrm{Var}(s_i) = g \sum_k w_k^2\, d_{ik}.

    The square root is the error of that pixel; that of a mean over n pixels, the root of the sum of their variances,
    over n. What the mask's own noise adds is not in it: it is derived from many probe positions, and the same
    everywhere. Nor is whatever correlates pixels, such as the point spread of the camera or a current that drifts.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    mask : DataArray, dims ([template,] ky, kx)
        Any number costs one read.
    normalisation : {"none", "standardised"}, default "none"
        As in the `tdm_dask.apply_mask` that made the image.
    counts_per_electron : float, default 1
        g; 1 for a counting detector. Called `gain` before, which works in this release alone.

    Returns
    -------
    DataArray, dims ([template,] y, x)
        Variance, in the square of the image's unit; lazy where counts or mask are. NaN at patterns that are not valid.

    Raises
    ------
    InputError
        If the counts per electron are not a positive number.
    MaskError, CountsError
        As in `tdm_dask.apply_mask`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.full((2, 3, 4, 4), 5, np.uint16))
    >>> counting_variance(counts, xr.DataArray(2 * np.eye(4), dims=("ky", "kx"))).values.tolist()
    [[80.0, 80.0, 80.0], [80.0, 80.0, 80.0]]
    """
    check_normalisation(normalisation)
    if not (np.isfinite(counts_per_electron) and counts_per_electron > 0):
        raise InputError(f"counts_per_electron={counts_per_electron!r} was given; expected a number above 0.")
    if not isinstance(mask, xr.DataArray) or not set(DETECTOR) <= set(mask.dims):
        raise MaskError("The mask must be a DataArray with dims ([template,] ky, kx).")
    weights = mask
    if normalisation == "standardised":
        if "std" not in mask.coords:
            raise MaskError(
                "The mask carries no std, which the standardised image needs; derive it with derive_mask, or use "
                'normalisation="none".'
            )
        std = mask.coords["std"]
        weights = xr.where(std > 0, mask / std.where(std > 0, 1.0), 0.0).transpose(*mask.dims)
        weights = weights.assign_coords(mask.coords)
    result = apply_mask(counts, counts_per_electron * weights**2).rename("variance")
    unit = "counts^2" if normalisation == "none" and mask.attrs.get("units", "1") == "1" else "1"
    result.attrs |= {"normalisation": normalisation, "units": unit, "long_name": "variance from counting statistics"}
    return result
