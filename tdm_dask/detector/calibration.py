"""From pixels to units: the optic axis and the angles of the detector, the steps of the scan, the dose.

Axes are numbers of pixels until then. `calibrate` finds the bright-field disk in the mean pattern: its middle is the
optic axis, and its radius the convergence semi-angle, which gives the angle of a pixel. `reciprocal` turns angles into
1/angstrom.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import (
    DETECTOR,
    FINDINGS,
    SCAN,
    axis_coordinate,
    check_counts,
    electron_wavelength,
    missing_calibration,
    quantity,
    quantity_pair,
    require_same_coordinates,
    require_unit,
    step_of,
    unit_of,
)
from ..counts.statistics import pacbed as mean_pattern
from ..counts.statistics import valid_pixels
from ..errors import CalibrationError, CoordinateError, InputError
from .bright_field import BrightFieldDisk, find_bf_disk

__all__ = ["BrightFieldDisk", "calibrate", "detector_to_scan", "find_bf_disk", "reciprocal"]

HISTORY = "calibration_history"
_AGREEMENT = 0.05  # of the semi-angle; a camera length is rarely known better
_ELEMENTARY_CHARGE = 1.602176634e-19


def calibrate(
    counts: xr.DataArray,
    *,
    semi_angle: float | str | None = None,
    pixel_size: float | str | tuple[float | str, float | str] | None = None,
    centre: tuple[float, float] | None = None,
    scan_step: float | str | tuple[float | str, float | str] | None = None,
    energy: float | str | None = None,
    rotation: float | str | None = None,
    transpose: bool | None = None,
    flip: bool | None = None,
    pacbed: xr.DataArray | npt.ArrayLike | None = None,
    counts_per_electron: float | None = None,
    electrons_per_probe: float | None = None,
    dwell_time: float | str | None = None,
    beam_current: float | str | None = None,
) -> xr.DataArray:
    """Give counts their units: coordinates in mrad and angstrom, and what is known of the experiment.

    The detector is calibrated when `semi_angle`, `pixel_size` or `centre` is given, or when nothing is given and the
    file knew its pixel size. Then the data is
    **read once** for the mean pattern (PACBED), in which the bright-field disk is found, unless `pacbed`
    or both `centre` and `pixel_size` are given, or the counts are those of a
    store, which keeps its mean pattern. Without them only the rest is applied, and nothing is read. Where
    `centre` and `pixel_size` are given, no disk is needed; that of a `pacbed` still gives the semi-angle.

    Parameters
    ----------
    counts : xarray.DataArray (y, x, ky, kx)
        The data, lazy or not. Pixels that its `valid_pixels` coordinate marks as unusable do not take part.
    semi_angle : float (mrad) or str, optional
        Convergence semi-angle. Alone, it gives the pixel size: semi-angle over disk radius.
    pixel_size : float (mrad) or str, or a (ky, kx) pair of them, optional
        Angle per detector pixel. Alone, it gives the semi-angle: disk radius times pixel size. With
        `semi_angle` too, the two must agree within 5 %, and the pixel size is used.
    centre : (float, float), optional
        Pixel indices (ky, kx) of the optic axis; found as the centre of the bright-field disk by default.
        Alone, it moves the zero of a detector that is calibrated already.
    scan_step : float (angstrom) or str, or a (y, x) pair of them, optional
        Distance between probe positions. The scan keeps its offset, so that a crop stays where it was.
    energy : float (eV) or str, optional
        Beam energy.
    rotation : float (deg) or str, optional
        Angle of the detector axes against the scan axes, see `detector_to_scan`.
    transpose, flip : bool, optional
        Whether the detector axes are swapped, and whether ky runs backwards, see `detector_to_scan`.
    pacbed : array (ky, kx), optional
        A mean pattern to use in place of reading the data.
    counts_per_electron : float, optional
        Gain of the detector. With a mean pattern at hand it gives the electrons per probe.
    electrons_per_probe : float, optional
        Dose of one pattern. By default beam current times dwell time, where both are known, else the total
        of the mean pattern over the counts per electron, where that is known.
    dwell_time : float (s) or str, optional
        Time per probe position.
    beam_current : float (A) or str, optional
        Probe current.

    Returns
    -------
    xarray.DataArray (y, x, ky, kx)
        The same data with new coordinates (mrad from the optic axis, angstrom) and attributes; what was
        done is added to ``attrs["calibration_history"]``, a list in JSON.

    Raises
    ------
    CalibrationError
        If a disk is needed and not found, or semi-angle and pixel size contradict each other.
    InputError
        If nothing is given.
    UnitError
        If a quantity is not a number in the unit that fits.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import label_counts
    >>> ky, kx = np.indices((40, 40))
    >>> pattern = 100 * (np.hypot(ky - 20, kx - 19) < 10)
    >>> counts = label_counts(np.broadcast_to(pattern, (3, 4, 40, 40)))
    >>> calibrated = calibrate(counts, semi_angle=20, scan_step="30 pm", pacbed=pattern)
    >>> calibrated.ky.attrs["units"], round(float(calibrated.ky[21]), 1), round(float(calibrated.kx[19]), 1)
    ('mrad', 2.0, 0.0)
    >>> calibrated.x.values
    array([0. , 0.3, 0.6, 0.9])
    """
    counts = check_counts(counts)
    quantities = {
        "semi_angle_mrad": semi_angle,
        "energy_eV": energy,
        "dwell_time_s": dwell_time,
        "beam_current_A": beam_current,
    }
    numbers = {"counts_per_electron": counts_per_electron, "electrons_per_probe": electrons_per_probe}
    facts = _facts(quantities, numbers, {"transpose": transpose, "flip": flip})
    if rotation is not None:
        facts["rotation_deg"] = quantity(rotation, "deg", "rotation", positive=False)
    steps = None if scan_step is None else quantity_pair(scan_step, "angstrom", "scan_step")
    sizes = None if pixel_size is None else quantity_pair(pixel_size, "mrad", "pixel_size")
    where = None if centre is None else _pixel_pair(centre)
    known = counts.attrs.get("pixel_size_mrad")
    nothing = not (facts or steps or semi_angle or sizes or where)
    if known and sizes is None and semi_angle is None and (nothing or where) and unit_of(counts, "ky") == "px":
        sizes = quantity_pair(known, "mrad", "pixel_size_mrad")
    angles = semi_angle is not None or sizes is not None or where is not None
    if not (facts or steps or angles):
        raise InputError("Nothing was given to calibrate with; give energy=..., scan_step, semi_angle or pixel_size.")
    done: dict[str, Any] = dict(facts)
    coords: dict[str, xr.Variable] = {}
    mean = None if pacbed is None else _given_pacbed(counts, pacbed)
    if angles:
        if sizes is None and semi_angle is None:
            require_unit(counts, DETECTOR, "mrad", "A calibration by the centre alone")
            sizes = step_of(counts, "ky"), step_of(counts, "kx")
        if mean is None and (sizes is None or where is None):
            mean = mean_pattern(counts)
        found, origin, sizes = _detector(counts, mean, facts.get("semi_angle_mrad"), sizes, where)
        done |= found
        facts |= {k: v for k, v in found.items() if k == "semi_angle_mrad"}
        for dim, size, zero in zip(DETECTOR, sizes, origin, strict=True):
            coords[dim] = axis_coordinate(dim, counts.sizes[dim], size, -zero * size, "mrad")
    if steps is not None:
        done["scan_step_angstrom"] = list(steps)
        for dim, step in zip(SCAN, steps, strict=True):
            coords[dim] = axis_coordinate(dim, counts.sizes[dim], step, _origin(counts, dim, step), "angstrom")
    result = counts.assign_coords(coords)
    attrs: dict[str, Any] = dict(counts.attrs) | facts
    if angles:  # the coordinates say it now
        attrs.pop("pixel_size_mrad", None)
    dose = _dose(result, attrs, facts, mean)
    attrs |= dose
    attrs[HISTORY] = json.dumps([*_history(counts.attrs), done | dose])
    result.attrs = attrs
    if FINDINGS in attrs:
        settled = set(missing_calibration(counts)) - set(missing_calibration(result))
        result.attrs[FINDINGS] = [finding for finding in attrs[FINDINGS] if finding not in settled]
    return result


def detector_to_scan(attrs: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Matrix that turns a vector (ky, kx) on the detector into (y, x) on the scan.

    Parameters
    ----------
    attrs : mapping
        Attributes of calibrated counts: `flip` reverses ky, then `transpose` swaps ky and kx, then
        `rotation_deg` turns from x towards y. What is missing counts as False and 0.

    Returns
    -------
    array (2, 2)
        An orthogonal matrix.

    Examples
    --------
    >>> detector_to_scan({"rotation_deg": 90.0}).round(3) @ [0, 1]  # kx points along y
    array([1., 0.])
    """
    angle = np.deg2rad(float(attrs.get("rotation_deg", 0.0)))
    matrix = np.diag([-1.0 if attrs.get("flip", False) else 1.0, 1.0])
    if attrs.get("transpose", False):
        matrix = matrix[::-1]
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ matrix


def reciprocal(array: xr.DataArray, energy: float | str | None = None) -> xr.DataArray:
    """Detector coordinates in 1/angstrom in place of mrad.

    Each axis is converted by itself, ``k = sin(theta) / lambda``, lambda being the relativistic
    wavelength. For the small angles of electron diffraction this is the spatial frequency; at 100 mrad
    along both axes the error is below 1 %.

    Parameters
    ----------
    array : xarray.DataArray
        Anything with dims (ky, kx) in mrad.
    energy : float (eV) or str, optional
        Beam energy; by default that of ``attrs["energy_eV"]``.

    Returns
    -------
    xarray.DataArray
        The same data with other detector coordinates.

    Raises
    ------
    CoordinateError
        If the axes are not in mrad, or the energy is not known.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import axis_coordinate
    >>> angles = {dim: axis_coordinate(dim, 3, 10.0, -10.0, "mrad") for dim in ("ky", "kx")}
    >>> pattern = xr.DataArray(np.zeros((3, 3)), coords=angles, dims=("ky", "kx"))
    >>> reciprocal(pattern, "200 keV").kx.values.round(4)
    array([-0.3987,  0.    ,  0.3987])
    """
    require_unit(array, DETECTOR, "mrad", "A conversion to 1/angstrom")
    if energy is None:
        if "energy_eV" not in array.attrs:
            raise CoordinateError("The beam energy is not known; give energy=..., or calibrate with it first.")
        energy = float(array.attrs["energy_eV"])
    wavelength = electron_wavelength(quantity(energy, "eV", "energy"))
    coords = {}
    for dim in DETECTOR:
        old = array.coords[dim].variable
        values = np.sin(np.asarray(old.values, dtype=np.float64) * 1e-3) / wavelength
        coords[dim] = xr.Variable((dim,), values, {**old.attrs, "units": "1/angstrom"})
    return array.assign_coords(coords)


def _facts(
    quantities: Mapping[str, float | str | None],
    numbers: Mapping[str, float | None],
    flags: Mapping[str, bool | None],
) -> dict[str, Any]:
    """What was given and is simply recorded, as attributes of the counts."""
    facts: dict[str, Any] = {}
    for key, value in quantities.items():
        if value is not None:
            name, unit = key.rsplit("_", 1)
            facts[key] = quantity(value, unit, name)
    for name, number in numbers.items():
        if number is not None:
            try:
                plain = float(number)
            except (TypeError, ValueError):
                plain = np.nan
            if not (np.isfinite(plain) and plain > 0):
                raise InputError(f"{name} is {number!r}; expected a positive finite number.")
            facts[name] = plain
    for name, flag in flags.items():
        if flag is not None:
            if not isinstance(flag, (bool, np.bool_)):
                raise InputError(f"{name} is {flag!r}; expected True or False.")
            facts[name] = bool(flag)
    return facts


def _pixel_pair(centre: Any) -> tuple[float, float]:
    try:
        pair = np.asarray(centre, dtype=np.float64)
    except (TypeError, ValueError):
        pair = np.full(2, np.nan)
    if pair.shape != (2,) or not np.isfinite(pair).all():
        raise InputError(f"centre={centre!r} was given; expected two finite pixel indices (ky, kx).")
    return float(pair[0]), float(pair[1])


def _given_pacbed(counts: xr.DataArray, pacbed: Any) -> npt.NDArray[np.float64]:
    shape = counts.shape[2:]
    if isinstance(pacbed, xr.DataArray):
        if set(pacbed.dims) != set(DETECTOR):
            raise CalibrationError(f"The pacbed has dims {tuple(pacbed.dims)}; expected {DETECTOR}.")
        require_same_coordinates(counts, pacbed, DETECTOR, ("counts", "pacbed"), CalibrationError)
        pacbed = pacbed.transpose(*DETECTOR).values
    values = np.asarray(pacbed, dtype=np.float64)
    if values.shape != shape:
        raise CalibrationError(f"The pacbed has shape {values.shape}; the detector of the counts has {shape}.")
    return values


def _detector(
    counts: xr.DataArray,
    mean: npt.NDArray[np.float64] | None,
    semi_angle: float | None,
    sizes: tuple[float, float] | None,
    centre: tuple[float, float] | None,
) -> tuple[dict[str, Any], tuple[float, float], tuple[float, float]]:
    """What was found, the centre in pixel indices and the (ky, kx) pixel size in mrad."""
    known = None
    if sizes is not None and centre is not None:
        known = {"centre_px": list(centre), "pixel_size_mrad": list(sizes)}, centre, sizes
    if mean is None:
        assert known is not None
        return known
    # Binning one axis leaves steps that differ, which tells the aspect of the pixels.
    step = sizes or tuple(step_of(counts, dim) if dim in counts.coords else 1.0 for dim in DETECTOR)
    if not (unit_of(counts, "ky") == unit_of(counts, "kx") or sizes):
        step = (1.0, 1.0)
    aspect = abs(step[0] / step[1])
    try:
        disk = find_bf_disk(mean, valid_pixels(counts), centre=centre, aspect=aspect)
    except CalibrationError:
        if known is None:
            raise
        return known
    if sizes is None:
        assert semi_angle is not None
        sizes = semi_angle / disk.radii[0], semi_angle / disk.radii[1]
    angle = float(np.sqrt(sizes[0] * sizes[1])) * disk.radius
    if semi_angle is not None and abs(angle - semi_angle) > _AGREEMENT * semi_angle:
        raise CalibrationError(
            f"The bright-field disk has a radius of {disk.radius:.2f} pixels, {angle:.2f} mrad by the pixel_size "
            f"given, but semi_angle is {semi_angle:.2f} mrad; they must agree within 5 %: correct one of them or leave "
            "it out."
        )
    found = {
        "centre_px": list(disk.centre),
        "pixel_size_mrad": list(sizes),
        "semi_angle_mrad": angle if semi_angle is None else semi_angle,
        "disk_radius_px": disk.radius,
        "disk_residual": disk.residual,
    }
    return found, disk.centre, sizes


def _dose(
    counts: xr.DataArray,
    attrs: Mapping[str, Any],
    given: Mapping[str, Any],
    mean: npt.NDArray[np.float64] | None,
) -> dict[str, float]:
    """Electrons per probe, and per square angstrom where the scan step is known."""
    electrons: float | None = given.get("electrons_per_probe")
    if electrons is None and not given.keys() & {"beam_current_A", "dwell_time_s", "counts_per_electron"}:
        electrons = attrs.get("electrons_per_probe")
    if electrons is None and {"beam_current_A", "dwell_time_s"} <= attrs.keys():
        electrons = float(attrs["beam_current_A"]) * float(attrs["dwell_time_s"]) / _ELEMENTARY_CHARGE
    if electrons is None and mean is not None and "counts_per_electron" in attrs:
        valid = valid_pixels(counts)
        total = np.nansum(mean if valid is None else mean[valid])
        electrons = float(total) / float(attrs["counts_per_electron"])
    if electrons is None:
        electrons = attrs.get("electrons_per_probe")
    dose: dict[str, float] = {}
    if electrons is not None and electrons > 0:
        dose["electrons_per_probe"] = float(electrons)
        steps = [abs(step_of(counts, dim)) for dim in SCAN if unit_of(counts, dim) == "angstrom"]
        if len(steps) == 2 and min(counts.sizes[dim] for dim in SCAN) > 1:
            dose["electrons_per_square_angstrom"] = float(electrons) / (steps[0] * steps[1])
    return dose


def _origin(counts: xr.DataArray, dim: str, step: float) -> float:
    """First coordinate of a scan axis at a new step: as many steps from zero as before."""
    if dim not in counts.coords:
        return 0.0
    first = float(counts.coords[dim][0])
    if counts.sizes[dim] == 1 and unit_of(counts, dim) == "angstrom":
        return first
    return first / step_of(counts, dim) * step


def _history(attrs: Mapping[str, Any]) -> list[Any]:
    try:
        past = json.loads(attrs.get(HISTORY, "[]"))
    except (TypeError, ValueError):
        past = [attrs[HISTORY]]
    return past if isinstance(past, list) else [past]
