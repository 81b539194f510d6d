"""Dims, units and coordinates: what every labelled array of this package has in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from .errors import CoordinateError, CountsError, UnitError

SCAN = ("y", "x")
DETECTOR = ("ky", "kx")
DIMS = SCAN + DETECTOR
TEMPLATE = "template"
# Dim of images that are compared with templates.
IMAGE = "image"

VALID_PIXELS = "valid_pixels"
VALID_PATTERNS = "valid_patterns"
FINDINGS = "findings"
# Detector pixels by which each pattern lies off: see `tdm_dask.descan`.
DESCAN = ("descan_ky", "descan_kx")

Labelled = TypeVar("Labelled", bound=xr.DataArray | xr.Dataset)

LONG_NAMES = {"y": "slow scan", "x": "fast scan", "ky": "detector ky", "kx": "detector kx"}

# What parts that many results have in common say of themselves.
_COMMON: Mapping[str, Mapping[str, str]] = {
    TEMPLATE: {"long_name": "template"},
    IMAGE: {"long_name": "image"},
    "kind": {"long_name": "kind of column"},
    VALID_PIXELS: {"long_name": "valid detector pixels"},
    VALID_PATTERNS: {"long_name": "valid patterns"},
    DESCAN[0]: {"long_name": "descan along ky", "units": "px"},
    DESCAN[1]: {"long_name": "descan along kx", "units": "px"},
    "n": {"long_name": "probe positions used", "units": "1"},
    "detector_region": {"long_name": "weight of the detector region", "units": "1"},
}

# Coordinates that differ by less than this fraction of a step are the same coordinates.
COORDINATE_TOLERANCE = 1e-6

_UNITS: dict[str, dict[str, float]] = {
    "mrad": {"mrad": 1.0, "rad": 1e3, "urad": 1e-3, "µrad": 1e-3, "μrad": 1e-3},
    "angstrom": {
        "angstrom": 1.0, "ångström": 1.0, "å": 1.0, "a": 1.0, "pm": 0.01, "nm": 10.0,
        "um": 1e4, "µm": 1e4, "μm": 1e4, "mm": 1e7, "m": 1e10,
    },
    "eV": {"ev": 1.0, "kev": 1e3, "mev": 1e6, "v": 1.0, "kv": 1e3, "mv": 1e6},
    "deg": {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "°": 1.0, "rad": 180 / np.pi, "mrad": 0.18 / np.pi},
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9},
    "A": {"a": 1.0, "na": 1e-9, "pa": 1e-12},
}  # fmt: skip

_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\d\s].*?)?\s*")


# Of electrons that go through a specimen, in eV: a smaller number was meant in keV.
LOWEST_ENERGY = 1000.0


def quantity(value: Any, unit: str, what: str, *, positive: bool = True) -> float:
    """A number or a string with a unit, as a float in `unit`.

    Parameters
    ----------
    value : float or str
        A plain number is taken to be in `unit` already.
    unit : {"mrad", "angstrom", "eV", "deg", "s", "A"}
        The unit wanted.
    what : str
        Name of the quantity, for the message of an error.
    positive : bool, default True
        Whether only numbers above zero make sense.

    Raises
    ------
    UnitError
        If the text is not a number with a unit of that kind, or not finite, or not positive, or an energy of less than
        1 keV.

    Examples
    --------
    >>> quantity("30 pm", "angstrom", "scan_step")
    0.3
    >>> quantity("200 keV", "eV", "energy")
    200000.0
    """
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if not match:
            raise UnitError(f'{what} is "{value}"; expected a number with a unit, such as "1.2 {unit}".')
        number, suffix = float(match[1]), match[2]
        scale = 1.0 if suffix is None else _scale(suffix, unit, value, what)
    else:
        try:
            number, scale = float(value), 1.0
        except (TypeError, ValueError):
            raise UnitError(f"{what} is {value!r}; expected a number in {unit} or a string with a unit.") from None
    result = number * scale
    if not np.isfinite(result) or (positive and result <= 0):
        kind = "positive, finite" if positive else "finite"
        raise UnitError(f"{what} is {value!r}; expected a {kind} number in {unit}.")
    if unit == "eV" and result < LOWEST_ENERGY:
        raise UnitError(f'{what} is {result:g} eV; expected at least {LOWEST_ENERGY:g} eV, as in "{result:g} keV".')
    return result


def _scale(suffix: str, unit: str, value: str, what: str) -> float:
    known = _UNITS[unit]
    # The millielectronvolt is never meant here, so "MeV" and "mev" are the same unit.
    scale = known.get(suffix) or known.get(suffix.lower())
    if scale is None:
        raise UnitError(f'{what} is "{value}"; "{suffix}" is not a unit of that quantity, use "{unit}".')
    return scale


def quantity_pair(value: Any, unit: str, what: str) -> tuple[float, float]:
    """A quantity for both axes, or a (y, x) pair of them, as two floats in `unit`."""
    if isinstance(value, (str, int, float, np.integer, np.floating)):
        both = quantity(value, unit, what)
        return both, both
    values = list(value)
    if len(values) != 2:
        raise UnitError(f"{what} has {len(values)} numbers; expected one, or a (y, x) pair.")
    first, second = (quantity(v, unit, what) for v in values)
    return first, second


def axis_coordinate(dim: str, size: int, step: float = 1.0, origin: float = 0.0, unit: str = "px") -> xr.Variable:
    """Evenly spaced coordinate of one dim: ``origin + step * arange(size)``, with its unit."""
    values = origin + step * np.arange(size, dtype=np.float64)
    return xr.Variable((dim,), values, {"units": unit, "long_name": LONG_NAMES.get(dim, dim)})


def label_counts(
    data: Any, coords: Mapping[str, Any] | None = None, attrs: Mapping[str, Any] | None = None
) -> xr.DataArray:
    """Wrap a 4D array as counts: the way in for data that are in memory already, or are any dask array.

    Parameters
    ----------
    data : array (ny, nx, nky, nkx)
        NumPy or dask; it is not copied, and not read.
    coords : mapping, optional
        Coordinates as `xarray.DataArray` takes them: calibrated axes, `valid_pixels` (ky, kx), `valid_patterns` (y, x)
        and so on. A dim without one gets pixel numbers, in "px".
    attrs : mapping, optional
        What is known of the experiment, such as `energy_eV`.

    Returns
    -------
    DataArray, dims (y, x, ky, kx)

    Raises
    ------
    CountsError
        If the data is no array of four dimensions.

    Examples
    --------
    >>> counts = label_counts(np.ones((2, 3, 8, 8), np.uint16), attrs={"energy_eV": 200e3})
    >>> counts.dims, counts.kx.attrs["units"]
    (('y', 'x', 'ky', 'kx'), 'px')
    """
    if not hasattr(data, "ndim") or not hasattr(data, "dtype"):
        raise CountsError(f"The data is a {type(data).__name__}; expected a NumPy or dask array (ny, nx, nky, nkx).")
    if data.ndim != 4:
        raise CountsError(f"The data has {data.ndim} dimensions; counts have four: (y, x, ky, kx).")
    all_coords = {dim: axis_coordinate(dim, size) for dim, size in zip(DIMS, data.shape, strict=True)}
    all_coords.update(coords or {})
    own = {"long_name": "detector counts", "units": "counts"}
    all_attrs = {**own, **(attrs or {}), **own}
    return named(xr.DataArray(data, dims=DIMS, coords=all_coords, name="counts", attrs=all_attrs))


def named(array: Labelled) -> Labelled:
    """An array whose parts of common names say what they are, with `long_name` and `units`, where they do not yet.

    Examples
    --------
    >>> named(xr.Dataset({"n": 3}))["n"].attrs
    {'long_name': 'probe positions used', 'units': '1'}
    """
    found: Any = array.copy(deep=False)
    parts = found.variables if isinstance(found, xr.Dataset) else found.coords
    for name in parts:
        if name in _COMMON:
            parts[name].attrs.update({**_COMMON[str(name)], **parts[name].attrs})
    return found


def check_counts(counts: xr.DataArray) -> xr.DataArray:
    """`counts` with its dims in the canonical order, or an error that says what is wrong with it."""
    if not isinstance(counts, xr.DataArray):
        raise CountsError(
            f"Expected labelled counts (an xarray.DataArray), found {type(counts).__name__}; use tdm_dask.open or "
            "label_counts."
        )
    if set(counts.dims) != set(DIMS):
        raise CountsError(f"The counts have dims {tuple(counts.dims)}; expected {DIMS}.")
    if counts.dtype.kind not in "uifb":
        raise CountsError(f"The counts have dtype {counts.dtype}; expected integers or real numbers.")
    if counts.dtype.kind == "f" and counts.dtype.itemsize not in (4, 8):
        raise CountsError(f"The counts have dtype {counts.dtype}; expected integers, float32 or float64: convert them.")
    if 0 in counts.shape:
        raise CountsError(f"The counts have shape {counts.shape}; every dim needs at least one element.")
    return counts if counts.dims == DIMS else counts.transpose(*DIMS)


def unit_of(array: xr.DataArray | xr.Dataset, dim: str) -> str:
    """Unit of a dim's coordinate; "px" where it has none."""
    if dim not in array.coords:
        return "px"
    return str(array.coords[dim].attrs.get("units", "px"))


def missing_calibration(counts: xr.DataArray) -> list[str]:
    """Sentences about what is not known of the axes of counts, and which argument gives it.

    Examples
    --------
    >>> missing_calibration(label_counts(np.zeros((2, 2, 2, 2))))[0]
    'The scan step is not known: scan_step gives it.'
    """
    missing = []
    if any(unit_of(counts, dim) == "px" for dim in SCAN):
        missing.append("The scan step is not known: scan_step gives it.")
    if any(unit_of(counts, dim) == "px" for dim in DETECTOR):
        if "pixel_size_mrad" in counts.attrs:
            missing.append("The optic axis is not known: calibrate finds it.")
        else:
            missing.append(
                "The angle of a detector pixel is not known: calibrate finds it from semi_angle, or takes pixel_size."
            )
    if "energy_eV" not in counts.attrs:
        missing.append("The beam energy is not known, which axes in 1/Å need; give energy=... to calibrate.")
    return missing


def require_unit(array: xr.DataArray, dims: Iterable[str], unit: str, what: str) -> None:
    """Raise CoordinateError unless the coordinates of `dims` are in `unit`."""
    for dim in dims:
        if unit_of(array, dim) != unit:
            how = "scan_step" if dim in SCAN else "semi_angle or pixel_size"
            raise CoordinateError(
                f'{what} needs the {dim} axis in {unit}, found "{unit_of(array, dim)}"; calibrate with {how} first.'
            )


def step_of(array: xr.DataArray | xr.Dataset, dim: str) -> float:
    """Step of a dim's coordinate in its unit (1 for a single element)."""
    values = np.asarray(array.coords[dim].values, dtype=np.float64)
    return float((values[-1] - values[0]) / (len(values) - 1)) if len(values) > 1 else 1.0


def require_same_coordinates(
    first: xr.DataArray | xr.Dataset,
    second: xr.DataArray | xr.Dataset,
    dims: Iterable[str],
    names: tuple[str, str],
    error: type[Exception] = CoordinateError,
) -> None:
    """Raise unless `first` and `second` have the same size and coordinates along `dims`.

    Coordinates agree when they differ by at most 1e-6 of a step; a dim without a coordinate in one of the two
    agrees with any coordinate of the same length.
    """
    for dim in dims:
        for array, name in ((first, names[0]), (second, names[1])):
            if dim not in array.dims:
                raise error(f"The {name} has dims {tuple(array.dims)}; expected {dim} among them.")
        if first.sizes[dim] != second.sizes[dim]:
            raise error(
                f"The {names[0]} has {first.sizes[dim]} elements along {dim}, the {names[1]} {second.sizes[dim]}; "
                "they must be the same."
            )
        if dim not in first.coords or dim not in second.coords:
            continue
        units = unit_of(first, dim), unit_of(second, dim)
        if units[0] != units[1]:
            raise error(
                f'The {dim} axis of the {names[0]} is in "{units[0]}", that of the {names[1]} in "{units[1]}"; '
                "give both the same calibration."
            )
        a, b = (np.asarray(v.coords[dim].values, dtype=np.float64) for v in (first, second))
        limit = COORDINATE_TOLERANCE * abs(step_of(first, dim))
        difference = float(np.abs(a - b).max())
        if not difference <= limit:
            raise error(
                f"The {dim} coordinates of the {names[0]} and the {names[1]} differ by up to {difference:.6g} "
                f"{units[0]}; expected at most {limit:.1g}: calibrate both alike or interpolate one onto the other."
            )


def electron_wavelength(energy: float) -> float:
    """Relativistic de Broglie wavelength, in angstrom, of electrons of kinetic energy `energy` in eV.

    Examples
    --------
    >>> round(electron_wavelength(200e3), 5)
    0.02508
    """
    rest_energy, hc = 510998.95, 12398.419843
    return hc / float(np.sqrt(energy * (energy + 2 * rest_energy)))
