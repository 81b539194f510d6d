"""Axes of HyperSpy's signals as coordinates in angstrom and mrad, and back to the signal's own units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from ..axes import DETECTOR, DIMS, SCAN, axis_coordinate, unit_of
from ..errors import CoordinateError
from ..sources.calibration_facts import angle, clean_unit, is_reciprocal, length

# Units of this package as HyperSpy's unit registry and its scale bars understand them.
_SIGNAL_UNITS = {"angstrom": "Å", "1/angstrom": "1/Å"}
# What is said to be in pixels is: binned ones have steps of two.
_PIXELS = {"px", "pixel", "pixels"}
# Coordinates that are out of step by less than this fraction of a step are evenly spaced.
_EVEN = 1e-3

_DECORATION = re.compile(r"[${}\s]")
_KIND = re.compile(r"(?P<kind>k|q|2th)_")


@dataclass(frozen=True)
class AxesRead:
    """The axes of a signal, read.

    Attributes
    ----------
    coords : dict of str to xarray.Variable
        One for each of the dims y, x, ky, kx.
    factors : dict of str to float
        Coordinate over the value that HyperSpy shows, of each of these dims.
    attrs : dict
        `pixel_size_mrad`, where it is known and the optic axis is not.
    findings : list of str
    """

    coords: dict[str, xr.Variable]
    factors: dict[str, float]
    attrs: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def plain_unit(unit: Any) -> tuple[str, float]:
    r"""A unit as HyperSpy and pyxem write it without its decoration, and the factor that the decoration means.

    Examples
    --------
    >>> plain_unit(r"$\AA^{-1}$"), plain_unit("k_nm^-1"), plain_unit("2th_rad"), plain_unit(None)
    (('Å^-1', 1.0), ('nm^-1', 1.0), ('rad', 1.0), ('', 1.0))
    >>> round(plain_unit("q_A^-1")[1] * 2 * math.pi, 9)
    1.0
    """
    text = "" if unit is None else str(unit)
    text = _DECORATION.sub("", text.replace(r"\mathring{A}", "Å").replace(r"\AA", "Å"))
    kind = _KIND.match(text)
    factor = 1.0
    if kind:
        text = text[kind.end() :]
        factor = 1 / (2 * math.pi) if kind["kind"] == "q" else 1.0
    return clean_unit(text), factor


def is_length(axis: Mapping[str, Any]) -> bool:
    """Whether an axis has a unit of length."""
    return length(1.0, plain_unit(axis.get("units"))[0]) is not None


def is_angle(axis: Mapping[str, Any]) -> bool:
    """Whether an axis has a unit of angle, or of one over a length."""
    return is_reciprocal(plain_unit(axis.get("units"))[0])


def read_axes(
    dims: Sequence[str], axes: Sequence[Mapping[str, Any]], energy: float | None, centred: bool = False
) -> AxesRead:
    """Coordinates from HyperSpy's axis dictionaries, one for each dim.

    Scan axes of a unit of length are converted to angstrom. Detector axes both in angles, or in one over a length at
    known beam energy, are converted to mrad by the angle lambda * q; they are angles from the optic axis only if zero
    lies between their ends, for HyperSpy's zero is the corner until someone moves it, or if they are known to be so
    (`centred`). Others are in pixels, counted from where HyperSpy has its zero.

    Raises
    ------
    CoordinateError
        If an axis is not evenly spaced.
    """
    found = AxesRead({}, {})
    per_unit: dict[str, float | None] = {}
    for dim, axis in zip(dims, axes, strict=True):
        if axis.get("_type", "UniformDataAxis") != "UniformDataAxis":
            raise CoordinateError(
                f'The {dim} axis "{axis.get("name")}" of the signal is not evenly spaced ({axis["_type"]}); expected '
                "even steps: convert_to_uniform_axis, or interpolate_on_axis, gives them."
            )
        unit, share = plain_unit(axis.get("units"))
        if dim in SCAN:
            per_unit[dim] = length(1.0, unit)
        elif dim in DETECTOR:
            per_unit[dim] = angle(share, unit, energy)
            if per_unit[dim] is None and is_reciprocal(unit) and energy is None:
                found.findings.append(
                    f"The {dim} axis is in {axis['units']}; the signal does not know the beam energy "
                    "(metadata.Acquisition_instrument.TEM.beam_energy, in keV), so it is not known in mrad."
                )
    detector = [(dim, axis) for dim, axis in zip(dims, axes, strict=True) if dim in DETECTOR]
    known = all(per_unit[dim] for dim, _ in detector)
    if detector and not (known and (centred or all(around_zero(axis) for _, axis in detector))):
        sizes = [abs(float(axis["scale"])) * (per_unit[dim] or 0.0) for dim, axis in detector]
        if all(sizes):
            found.attrs["pixel_size_mrad"] = sizes
        per_unit |= dict.fromkeys(DETECTOR)
    for dim, axis in zip(dims, axes, strict=True):
        if dim not in DIMS:
            continue
        size, scale, offset = int(axis["size"]), float(axis["scale"]), float(axis["offset"])
        factor = per_unit[dim]
        if str(axis["units"]).strip().lower() in _PIXELS:
            factor = 1.0
            found.coords[dim] = axis_coordinate(dim, size, scale, offset, "px")
        elif factor is None or not scale:
            factor = 1 / scale if scale else 1.0
            found.coords[dim] = axis_coordinate(dim, size, 1.0, offset * factor, "px")
        else:
            unit = "angstrom" if dim in SCAN else "mrad"
            found.coords[dim] = axis_coordinate(dim, size, scale * factor, offset * factor, unit)
        found.factors[dim] = factor
    return found


def around_zero(axis: Mapping[str, Any]) -> bool:
    """Whether zero lies between the ends of an axis."""
    first = float(axis["offset"])
    last = first + float(axis["scale"]) * (int(axis["size"]) - 1)
    return min(first, last) < 0 < max(first, last)


def write_axis(
    array: xr.DataArray,
    dim: str,
    navigate: bool,
    old: Mapping[str, Any] | None = None,
    coordinate: xr.Variable | None = None,
    factor: float = 1.0,
) -> dict[str, Any]:
    """HyperSpy's dictionary of an axis.

    Parameters
    ----------
    array : DataArray
    dim : str
    navigate : bool
    old : mapping, optional
        The axis of the signal that the array, or its like, came from. Where the coordinate is still what was made of
        it, this is what comes back; where it was cropped or binned, its name and its unit.
    coordinate, factor
        What was made of that axis, see `AxesRead`.

    Raises
    ------
    CoordinateError
        If the coordinate is not evenly spaced.
    """
    size = array.sizes[dim]
    known = dim in DIMS and dim in array.coords
    first, step = _even(array, dim) if known else (0.0, 1.0)
    if old is not None:
        axis = dict(old) | {"size": size, "navigate": navigate}
        if not known or coordinate is None:
            return axis
        if coordinate.attrs.get("units") == unit_of(array, dim):
            values = np.asarray(coordinate.values, np.float64)
            then = float(values[1] - values[0]) if len(values) > 1 else step
            slack = 1e-9 * abs(then)
            if abs(first - values[0]) > slack * max(1.0, len(values)) or abs(step - then) > slack:
                axis |= {"scale": step / factor, "offset": first / factor}
            return axis
    unit = unit_of(array, dim) if known else None
    name = (old or {}).get("name") or dim
    return {
        "_type": "UniformDataAxis",
        "name": name,
        "units": None if unit is None else _SIGNAL_UNITS.get(unit, unit),
        "navigate": navigate,
        "is_binned": False,
        "size": size,
        "scale": step,
        "offset": first,
    }


def reciprocal_axis(axis: Mapping[str, Any], unit: str, energy: float | None) -> dict[str, Any]:
    """An axis in mrad, as `write_axis` makes it of angles, in a unit of one over a length: by the angle lambda * q.

    Raises
    ------
    CoordinateError
        If the axis is not in mrad, the energy is not known, or the unit is not one over a length.
    """
    if axis["units"] != "mrad" or energy is None:
        lacks = "the axis is not in mrad" if axis["units"] != "mrad" else "the beam energy is not known"
        raise CoordinateError(f"A detector axis in {unit} was asked for, but {lacks}; calibrate first.")
    plain, share = plain_unit(unit)
    factor = angle(share, plain, energy)
    if factor is None:
        raise CoordinateError(f'"{unit}" is not a unit of one over a length; expected such as "1/nm" or "1/Å".')
    return dict(axis) | {"units": unit, "scale": axis["scale"] / factor, "offset": axis["offset"] / factor}


def _even(array: xr.DataArray, dim: str) -> tuple[float, float]:
    """First value and step of a coordinate."""
    values = np.asarray(array.coords[dim].values, np.float64)
    if len(values) == 1:
        return float(values[0]), 1.0
    step = float(values[-1] - values[0]) / (len(values) - 1)
    off = float(np.abs(values - (values[0] + step * np.arange(len(values)))).max())
    if not off <= _EVEN * abs(step):
        raise CoordinateError(
            f"The {dim} coordinates are not evenly spaced (by {off:.3g} of steps of {step:.3g} {unit_of(array, dim)}), "
            "as a signal's axis must be; give angles in mrad, or interpolate."
        )
    return float(values[0]), step
