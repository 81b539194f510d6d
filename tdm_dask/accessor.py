"""`counts.tdm.<name>`: the public functions as methods of labelled counts."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import xarray as xr

# Where each function lives is known to the package alone.
_METHODS = (
    "calibrate",
    "reciprocal",
    "descan",
    "crop",
    "bin",
    "pixel_statistics",
    "disk",
    "annulus",
    "segments",
    "binary_template",
    "gaussian_template",
    "correlate",
    "derive_mask",
    "apply_mask",
    "convert",
    "proxy",
    "column_images",
    "thin",
    "split_electrons",
    "matrix_view",
    "principal_components",
    "nonnegative_components",
    "centre_of_mass",
    "differential_phase_contrast",
    "regularisation_curve",
    "held_out_cross_talk",
    "offset_scan",
    "null_distribution",
    "template_influence",
    "counting_variance",
    "evidence",
)


@xr.register_dataarray_accessor("tdm")
class TdmAccessor:
    """Functions of this package whose first argument is counts, as methods of counts.

    Examples
    --------
    >>> import numpy as np, tdm_dask as tdm
    >>> counts = tdm.label_counts(np.ones((2, 2, 4, 4), np.uint16))
    >>> counts.tdm.crop(ky=slice(0, 2)).shape
    (2, 2, 2, 4)
    """

    def __init__(self, counts: xr.DataArray) -> None:
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(f"There is no tdm_dask function {name!r} for counts; there are {sorted(_METHODS)}.")
        function = getattr(importlib.import_module(__package__), name)
        return functools.wraps(function)(functools.partial(function, self._counts))

    def __dir__(self) -> list[str]:
        return sorted(_METHODS)
