"""`array.tdm.<name>`: the public functions as methods of their first argument, and what an array is in a few lines.

An array offers the functions that suit it: counts those of counts, a mask those of masks, an image those of images.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import xarray as xr

# What an array must have among its dims and variables, what it must not, and what such an array is called.
_COUNTS = (("y", "x", "ky", "kx"), (), "counts (y, x, ky, kx)")
_SCAN = (("y", "x"), (), "arrays with a scan (y, x)")
_DETECTOR = (("ky", "kx"), (), "arrays with a detector (ky, kx)")
_IMAGE = (("y", "x"), ("ky", "kx", "component"), "images ([template,] y, x)")
_DEFLECTION = (("component", "y", "x"), ("ky", "kx"), "deflections (component, y, x)")
_PATTERN = (("ky", "kx"), ("y", "x"), "masks and patterns ([template,] ky, kx)")
_PROFILE = (("distance",), (), "profiles (distance)")
_CORRELATIONS = (("rho",), ("y", "x"), "what correlate gives")
_COLUMNS = (("column",), (), "tables of columns")
_ANY = ((), (), "any array")

_Need = tuple[tuple[str, ...], tuple[str, ...], str]

# Where each function lives is known to the package alone.
_OF_ARRAYS: Mapping[str, _Need] = {
    **dict.fromkeys(
        (
            *("calibrate", "descan", "crop", "bin", "pixel_statistics", "correlate", "derive_mask", "apply_mask"),
            *("convert", "proxy", "column_images", "thin", "split_electrons", "matrix_view", "principal_components"),
            *("nonnegative_components", "centre_of_mass", "differential_phase_contrast", "regularisation_curve"),
            *("held_out_cross_talk", "offset_scan", "null_distribution", "template_influence", "counting_variance"),
            *("evidence", "running_mask", "live_image", "view", "reduce"),
        ),
        _COUNTS,
    ),
    **dict.fromkeys(("binary_template", "gaussian_template", "random_sites"), _SCAN),
    **dict.fromkeys(("disk", "annulus", "segments", "reciprocal"), _DETECTOR),
    **dict.fromkeys(
        (
            *("find_columns", "refine_columns", "line_profile", "averaged_profile", "cross_talk", "site_contrast"),
            "gap_contrast",
            *("occupancy_table", "lattice_snr", "thinned_snr"),
        ),
        _IMAGE,
    ),
    **dict.fromkeys(("integrated_centre_of_mass", "scan_rotation"), _DEFLECTION),
    **dict.fromkeys(
        ("symmetrise_mask", "transfer_mask", "radial_profile", "match_thickness", "collection_aperture"), _PATTERN
    ),
    "profile_peaks": _PROFILE,
    "to_signal": _ANY,
}
_OF_DATASETS: Mapping[str, _Need] = {
    "derive_mask": _CORRELATIONS,
    "collection_aperture": _CORRELATIONS,
    "radial_profile": _PATTERN,
    "match_thickness": _PATTERN,
    "profile_sites": _PROFILE,
    "refined_sites": _COLUMNS,
    "displacements": _COLUMNS,
}


def _suits(array: xr.DataArray | xr.Dataset, need: _Need) -> bool:
    wanted, barred, _ = need
    names = {*array.dims, *(array.data_vars if isinstance(array, xr.Dataset) else ())}
    return set(wanted) <= names and not set(barred) & set(array.dims)


class _Method:
    """A public function as a method of the array that it takes first; found when it is asked for."""

    def __init__(self, name: str, need: _Need) -> None:
        self._name, self._need = name, need

    def __get__(self, accessor: TdmAccessor | TdmDatasetAccessor | None, owner: type) -> Callable[..., Any]:
        if accessor is not None and not _suits(accessor._array, self._need):
            raise AttributeError(
                f"{self._name} is a function of {self._need[2]}; this array has dims {tuple(accessor._array.dims)}."
            )
        function = getattr(importlib.import_module(__package__), self._name)
        return function if accessor is None else MethodType(function, accessor._array)


class TdmAccessor:
    """The functions of this package that take such an array first, as its methods; printed, what the array is.

    Examples
    --------
    >>> import numpy as np, tdm_dask as tdm
    >>> counts = tdm.label_counts(np.ones((2, 2, 4, 4), np.uint16))
    >>> counts.tdm.crop(ky=slice(0, 2)).shape
    (2, 2, 2, 4)
    >>> counts.tdm
    counts: 2 × 2 × 4 × 4 (y, x, ky, kx) of uint16, 128 bytes
      kept: in memory
      y (slow scan): 2, not calibrated
      x (fast scan): 2, not calibrated
      ky (detector ky): 4, not calibrated
      kx (detector kx): 4, not calibrated
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def __dir__(self) -> list[str]:
        return sorted(name for name, need in _OF_ARRAYS.items() if _suits(self._array, need))

    def __repr__(self) -> str:
        from .report.description import overview, overview_text

        return overview_text(overview(self._array))

    def _repr_html_(self) -> str:
        from .report.description import overview, overview_html

        return overview_html(overview(self._array))


class TdmDatasetAccessor:
    """The functions of this package that take such a Dataset first, as its methods.

    Examples
    --------
    >>> import numpy as np, tdm_dask as tdm
    >>> columns = {"y": ("column", [1.0]), "x": ("column", [2.0]), "kind": ("column", ["Li"])}
    >>> xr.Dataset(columns).tdm.refined_sites()["Li"].tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, array: xr.Dataset) -> None:
        self._array = array

    def __dir__(self) -> list[str]:
        return sorted(name for name, need in _OF_DATASETS.items() if _suits(self._array, need))

    def __repr__(self) -> str:
        return f"<tdm functions of this Dataset: {', '.join(dir(self)) or 'none'}>"


for _owner, _table in ((TdmAccessor, _OF_ARRAYS), (TdmDatasetAccessor, _OF_DATASETS)):
    for _name, _needed in _table.items():
        setattr(_owner, _name, _Method(_name, _needed))

xr.register_dataarray_accessor("tdm")(TdmAccessor)
xr.register_dataset_accessor("tdm")(TdmDatasetAccessor)
