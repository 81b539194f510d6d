"""Axes and acquisition facts of a vendor's header, in angstrom, mrad, eV, seconds and ampere."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..axes import electron_wavelength, quantity
from ..errors import UnitError

_UNKNOWN_UNITS = {"", "<undefined>", "none", "px", "pixel", "pixels", "undefined", "unknown"}
_ANGLES = {"mrad", "rad", "urad", "µrad", "deg", "°"}
_RECIPROCAL = re.compile(r"(?:1/(?P<over>.+)|(?P<power>.+?)(?:\^?\(?[-−]1\)?|⁻¹|\*\*-1))")


@dataclass(frozen=True)
class Facts:
    """What a header says about its axes."""

    scan_step: tuple[float, float] | None = None
    pixel_size: tuple[float, float] | None = None
    findings: tuple[str, ...] = ()


def clean_unit(unit: Any) -> str:
    """A unit as a vendor writes it, without decoration; "" where there is none.

    Examples
    --------
    >>> clean_unit("[n_m^-1]"), clean_unit("1 / nm"), clean_unit("<undefined>"), clean_unit(None)
    ('nm^-1', '1/nm', '', '')
    """
    text = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
    text = re.sub(r"[\s\[\]_]", "", text)
    return "" if text.lower() in _UNKNOWN_UNITS else text


def is_reciprocal(unit: str) -> bool:
    """Whether a cleaned unit is one over a length, or an angle."""
    return _RECIPROCAL.fullmatch(unit) is not None or unit.lower() in _ANGLES


def length(scale: Any, unit: Any) -> float | None:
    """A step in angstrom; None unless it is a positive number with a unit of length.

    Examples
    --------
    >>> length(0.5, "nm"), length(0.0, "nm"), length(1.0, ""), length(2.0, "1/nm")
    (5.0, None, None, None)
    """
    return _quantity(scale, clean_unit(unit), "angstrom")


def angle(scale: Any, unit: Any, energy: float | None) -> float | None:
    """A detector pixel in mrad; None unless it is a positive angle, or a reciprocal length at known energy.

    A reciprocal step q, in 1/angstrom, is the angle lambda * q: the scattering angle of the small-angle
    Bragg equation, lambda being the electron wavelength.

    Examples
    --------
    >>> angle(0.001, "rad", None), angle(0.1, "1/nm", None), round(angle(0.1, "1/nm", 200e3), 4)
    (1.0, None, 0.2508)
    """
    text = clean_unit(unit)
    direct = _quantity(scale, text, "mrad")
    if direct is not None:
        return direct
    degrees = _quantity(scale, text, "deg")
    if degrees is not None:
        return math.radians(degrees) * 1e3
    reciprocal = reciprocal_length(scale, text)
    return None if reciprocal is None or energy is None else reciprocal * electron_wavelength(energy) * 1e3


def reciprocal_length(scale: Any, unit: Any) -> float | None:
    """A detector pixel in 1/angstrom; None unless it is positive, with a unit of one over a length."""
    match = _RECIPROCAL.fullmatch(clean_unit(unit))
    if not match:
        return None
    base = _quantity(1.0, match["over"] or match["power"], "angstrom")
    number = _number(scale)
    return None if base is None or number is None else number / base


def _number(scale: Any) -> float | None:
    try:
        number = float(scale)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _quantity(scale: Any, unit: str, wanted: str) -> float | None:
    number = _number(scale)
    if number is None or not unit:
        return None
    try:
        return quantity(f"{number!r} {unit}", wanted, "axis scale")
    except UnitError:
        return None


def facts_of_axes(
    axes: Sequence[Mapping[str, Any]], energy: float | None, *, unit_scale_is_unset: bool = False
) -> Facts:
    """Scan step and pixel size from four axes (y, x, ky, kx), each with `scale` and `units`.

    Parameters
    ----------
    axes : sequence of four mappings
        As rosettasciio returns them; an empty mapping is an axis about which nothing is known.
    energy : float or None
        Beam energy in eV, which turns reciprocal lengths into angles.
    unit_scale_is_unset : bool, default False
        Whether a scale of exactly 1 is a reader's placeholder even where it has a unit.
    """
    units = [clean_unit(axis.get("units")) for axis in axes]
    findings: list[str] = []
    scales = [axis.get("scale") for axis in axes]
    if unit_scale_is_unset:
        for pair, what in ((slice(0, 2), "scan"), (slice(2, 4), "detector")):
            if any(units[pair]) and all(_number(scale) == 1.0 for scale in scales[pair]):
                findings.append(f"The {what} axes have a scale of exactly 1 {units[pair][0]}, taken as not calibrated.")
                scales[pair] = [None, None]
    step = [length(*pair) for pair in zip(scales[:2], units[:2], strict=True)]
    pixel = [angle(scale, unit, energy) for scale, unit in zip(scales[2:], units[2:], strict=True)]
    if pixel[0] is None and energy is None:
        reciprocal = [reciprocal_length(scale, unit) for scale, unit in zip(scales[2:], units[2:], strict=True)]
        if all(value is not None for value in reciprocal):
            findings.append(
                f"The detector pixel is {reciprocal[0]:.6g} x {reciprocal[1]:.6g} 1/angstrom; the file "
                "does not say the beam energy, so it is not known in mrad."
            )
    return Facts(_pair(step), _pair(pixel), tuple(findings))


def _pair(values: Sequence[float | None]) -> tuple[float, float] | None:
    first, second = values
    return None if first is None or second is None else (first, second)


# HyperSpy's metadata convention: place, our name, factor to our unit (keV, nA, mrad, s).
HYPERSPY_FACTS = (
    ("Acquisition_instrument.TEM.beam_energy", "energy_eV", 1e3),
    ("Acquisition_instrument.TEM.beam_current", "beam_current_A", 1e-9),
    ("Acquisition_instrument.TEM.convergence_angle", "semi_angle_mrad", 1.0),
    ("Acquisition_instrument.TEM.Detector.Diffraction.exposure_time", "dwell_time_s", 1.0),
    ("Acquisition_instrument.dwell_time", "dwell_time_s", 1.0),
)


def acquisition_facts(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Acquisition facts in metadata that follow HyperSpy's convention.

    Examples
    --------
    >>> acquisition_facts({"Acquisition_instrument": {"TEM": {"beam_energy": 300, "beam_current": 0}}})
    {'energy_eV': 300000.0}
    """
    facts: dict[str, float] = {}
    for place, name, factor in HYPERSPY_FACTS:
        value: Any = metadata
        for key in place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        number = _number(value)
        if number is not None:
            facts[name] = number * factor
    return facts
