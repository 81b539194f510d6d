"""Phase from the deflection of the electrons, and the rotation of the scan that a deflection tells.

In a thin specimen the mean deflection is the gradient of the phase of the transmission function, blurred by the probe
(Lazić et al., Ultramicroscopy 160, 265, 2016). Multiple scattering ends that: at tens of nanometres the integral has
peaks beside the atom columns, or pits on them.
"""

from __future__ import annotations

from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from ..axes import SCAN, electron_wavelength, quantity, require_unit, step_of
from ..detector.calibration import detector_to_scan
from ..errors import CoordinateError, InputError
from ..passes.graphs import lazily
from .deflection import COMPONENT, DIRECTION, centre_of_mass, check_choice, differential_phase_contrast

__all__ = ["centre_of_mass", "differential_phase_contrast", "integrated_centre_of_mass", "scan_rotation"]

Padding = Literal["mirror", "zeros", "none"]


def integrated_centre_of_mass(
    com: xr.DataArray,
    *,
    energy: float | str | None = None,
    padding: Padding = "mirror",
    high_pass: float | str | None = None,
    low_pass: float | str | None = None,
    order: float = 2.0,
) -> xr.DataArray:
    r"""The phase whose gradient is nearest to the deflections, by one Fourier integration.

    .. math:: \hat\varphi(k) = \frac{k \cdot \hat g(k)}{2 \pi i \, |k|^2}, \quad \hat\varphi(0) = 0, \qquad
              g = 2 \pi c / \lambda

    g being the gradient of the phase in rad/angstrom that the deflection c amounts to: the least-squares solution, in
    which the part of c that is no gradient (its curl) has no share. In a thin specimen the result is the phase of the
    transmission function, blurred by the intensity of the probe, but for a constant.

    Parameters
    ----------
    com : DataArray, dims (component, y, x)
        From `centre_of_mass`, in mrad over a scan in angstrom; missing positions count as the mean deflection. It is
        small: nothing is read but what it needs itself.
    energy : float (eV) or str, optional
        Beam energy; by default that of ``attrs["energy_eV"]``.
    padding : {"mirror", "zeros", "none"}, default "mirror"
        What lies around the scan, which a Fourier transform repeats for ever. "mirror": the phase continues as its
        mirror image, so that no border meets the opposite one: the solution by least squares in cosines, with free
        borders. "zeros": no deflection, over as much again along each axis. "none": the scan itself, which is right
        where it is a whole number of unit cells.
    high_pass, low_pass : float (angstrom) or str, optional
        Periods at which Butterworth filters halve the amplitude: longer ones than `high_pass` are weakened, shorter
        ones than `low_pass`. The mean of the phase is never known, and set to 0; nothing else is regularised by
        default, so that noise grows with the period, which `high_pass` tames.
    order : float, default 2
        Order n of the filters: 1 / (1 + q^(2n)), q being the period over `high_pass`, or `low_pass` over the period.

    Returns
    -------
    DataArray, dims (y, x)
        Phase in rad, float64, of mean 0; lazy where `com` is. NaN where `com` is.

    Raises
    ------
    CoordinateError
        If `com` has no components y and x in mrad over a scan in angstrom, or the energy is not known.
    InputError
        If the padding is none of the three, the order not positive, or the filters leave nothing.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate, electron_wavelength
    >>> x = 0.5 * np.arange(20)
    >>> phase = np.broadcast_to(0.1 * np.cos(2 * np.pi * x / 10), (4, 20))
    >>> slope = -0.1 * 2 * np.pi / 10 * np.sin(2 * np.pi * x / 10)  # rad/angstrom
    >>> angle = 1e3 * electron_wavelength(200e3) / (2 * np.pi) * np.broadcast_to(slope, (4, 20))
    >>> scan = {d: axis_coordinate(d, n, 0.5, 0.0, "angstrom") for d, n in (("y", 4), ("x", 20))}
    >>> com = xr.DataArray([0 * angle, angle], scan | {"component": ["y", "x"]}, ("component", "y", "x"))
    >>> com.attrs["units"] = "mrad"
    >>> found = integrated_centre_of_mass(com, energy="200 keV", padding="none")
    >>> bool(np.allclose(found, phase))
    True
    """
    com = _check_com(com)
    check_choice(padding, Padding, "padding")
    if energy is None:
        if "energy_eV" not in com.attrs:
            raise CoordinateError("The beam energy is not known; give energy=..., or calibrate with it first.")
        energy = float(com.attrs["energy_eV"])
    wavelength = electron_wavelength(quantity(energy, "eV", "energy"))
    long, short = (
        None if value is None else quantity(value, "angstrom", name)
        for value, name in ((high_pass, "high_pass"), (low_pass, "low_pass"))
    )
    if long is not None and short is not None and long <= short:
        raise InputError(
            f"The filters leave nothing between low_pass={short:g} and high_pass={long:g}, which are periods in "
            "angstrom; give high_pass=... above the other."
        )
    if not order > 0:
        raise InputError(f"The order of the filters is {order!r}; expected a positive number.")
    steps = step_of(com, "y"), step_of(com, "x")
    scale = 2e-3 * np.pi / wavelength  # rad/angstrom per mrad
    phase: Any = lazily(_integrated, com.data, scale, steps, padding, (long, short), order)
    if not isinstance(phase, np.ndarray):
        phase = da.from_delayed(phase, com.shape[1:], np.float64)
    coords = {k: v for k, v in com.coords.items() if v.dims and set(v.dims) <= set(SCAN)}
    kept = {k: v for k, v in com.attrs.items() if k in ("energy_eV", "semi_angle_mrad", "source", *DIRECTION)}
    facts = {"units": "rad", "long_name": "integrated centre of mass", "padding": padding}
    given = {k: v for k, v in (("high_pass_angstrom", long), ("low_pass_angstrom", short)) if v is not None}
    return xr.DataArray(phase, coords, SCAN, name="integrated_centre_of_mass", attrs=kept | facts | given)


def scan_rotation(com: xr.DataArray) -> xr.Dataset:
    r"""Rotation, and transposition, of detector against scan, from the curl of the centre of mass.

    The gradient of a phase has no curl. Turning all deflections by an angle turns curl and divergence into one
    another, so that the sum of their squares stays and the angle of least curl is that of most divergence, or contrast
    of the integral: one criterion, solved in closed form, for the detector as it is and transposed.

    **It cannot tell an angle from that angle plus 180 degrees**, which reverses the sign of the integral and leaves
    its curl. Both are returned. In a thin specimen atoms are maxima of the phase, so that the integral of the right
    one has a positive skewness. At tens of nanometres this no longer holds, and a lattice may leave the transposition
    open as well: take the rotation from a thin reference taken at the same camera length, or from a calibration.

    Parameters
    ----------
    com : DataArray, dims (component, y, x)
        From `centre_of_mass`, of a thin specimen. Any rotation that it was made with is undone first, so that the
        answer is absolute. A lazy one is computed: one read.

    Returns
    -------
    Dataset, dims (candidate)
        `rotation_deg` (between -180 and 180) and `transposed`: what `calibrate` takes as `rotation` and `transpose`,
        with ``flip=False`` (a flip is a transposition and a quarter turn). `curl`, its share in curl and divergence
        (sums of squares, 0 for a gradient and 0.5 for noise); `skewness` of the integral. The four candidates go by
        curl, and then skewness: the first two differ by 180 degrees.

    Raises
    ------
    CoordinateError
        As in `integrated_centre_of_mass`.
    InputError
        If the scan is smaller than 3 x 3 valid probe positions, or the deflection is the same everywhere.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> y, x = np.meshgrid(0.5 * np.arange(20), 0.5 * np.arange(20), indexing="ij")
    >>> bump = np.exp(-((y - 5) ** 2 + (x - 5) ** 2) / 2)
    >>> scan = {d: axis_coordinate(d, 20, 0.5, 0.0, "angstrom") for d in ("y", "x")}
    >>> turned = [-(x - 5) * bump, (y - 5) * bump]  # its gradient, turned by -90 degrees
    >>> com = xr.DataArray(turned, scan | {"component": ["y", "x"]}, ("component", "y", "x"), attrs={"units": "mrad"})
    >>> found = scan_rotation(com)
    >>> found["rotation_deg"].values[:2].round(1).tolist(), bool(found["transposed"][0])
    ([-90.0, 90.0], False)
    """
    com = _check_com(com)
    steps = step_of(com, "y"), step_of(com, "x")
    # An orthogonal matrix: its transpose undoes it.
    detector = np.tensordot(detector_to_scan(com.attrs).T, np.asarray(com.values, np.float64), 1)
    if min(detector.shape[1:]) < 3:
        raise InputError(f"The scan has {detector.shape[1:]} probe positions; expected at least 3 x 3.")
    rows = []
    for transpose in (False, True):
        part = detector[::-1] if transpose else detector
        (yy, yx), (xy, xx) = ([np.gradient(c, steps[d], axis=d)[1:-1, 1:-1] for d in (0, 1)] for c in part)
        inside = np.isfinite(yy + yx + xy + xx)
        curl, divergence = (xy - yx)[inside], (yy + xx)[inside]
        total = float((curl**2).sum() + (divergence**2).sum())
        if not total > 0:
            raise InputError("The deflection is the same everywhere, or nowhere known; it has no rotation to be found.")
        even, odd = ((divergence**2).sum() - (curl**2).sum()) / 2, (curl * divergence).sum()
        angle = np.rad2deg(np.arctan2(odd, even) / 2)
        least = max(0.0, 0.5 - np.hypot(even, odd) / total)
        for turn in (angle, angle - 180 if angle > 0 else angle + 180):
            matrix = detector_to_scan({"rotation_deg": turn, "transpose": transpose})
            phase = _integrated(np.tensordot(matrix, detector, 1), 1.0, steps, "mirror", (None, None), 2.0)
            rows.append((round(least, 12), -_skewness(phase), turn, transpose))
    rows.sort()
    least_, skewness, angles, transposed = zip(*rows, strict=True)
    one = "candidate"
    return xr.Dataset(
        {
            "rotation_deg": (one, list(angles), {"units": "deg", "long_name": "rotation of detector against scan"}),
            "transposed": (one, list(transposed), {"long_name": "detector axes swapped"}),
            "curl": (one, list(least_), {"units": "1", "long_name": "share of curl in curl and divergence"}),
            "skewness": (one, [-s for s in skewness], {"units": "1", "long_name": "skewness of the integral"}),
        },
        attrs={"ambiguity": "Curl leaves 180 degrees open; skewness settles it in thin specimens alone."},
    )


def _check_com(com: Any) -> xr.DataArray:
    """The deflections with their dims in order, or an error that says what is wrong."""
    if not isinstance(com, xr.DataArray) or set(com.dims) != {COMPONENT, *SCAN}:
        dims = tuple(com.dims) if isinstance(com, xr.DataArray) else type(com).__name__
        raise CoordinateError(f"The deflections have dims {dims}; expected (component, y, x), from centre_of_mass.")
    if com.attrs.get("units") != "mrad":
        raise CoordinateError(
            f'The deflections are in "{com.attrs.get("units", "")}"; expected mrad, as centre_of_mass gives.'
        )
    require_unit(com, SCAN, "angstrom", "An integration")
    names = [str(n) for n in com[COMPONENT].values] if COMPONENT in com.coords else []
    if sorted(names) != sorted(SCAN):
        raise CoordinateError(f"The components are {names}; expected y and x.")
    return com.transpose(COMPONENT, *SCAN).sel({COMPONENT: list(SCAN)})


def _integrated(
    com: np.ndarray,
    scale: float,
    steps: tuple[float, float],
    padding: Padding,
    periods: tuple[float | None, float | None],
    order: float,
) -> np.ndarray:
    """The phase (y, x) from deflections (component, y, x) times a scale; periods are those of high and low pass."""
    known = np.isfinite(com).all(0)
    if not known.any():
        return np.full(com.shape[1:], np.nan)
    ny, nx = known.shape
    gy, gx = (scale * np.where(known, part, part[known].mean()) for part in com)
    if padding == "mirror":
        # The gradient across a mirror changes sign, that along it does not.
        gy, gx = _mirrored(gy, -1, 1), _mirrored(gx, 1, -1)
    elif padding == "zeros":
        gy, gx = (np.pad(g, ((0, ny), (0, nx))) for g in (gy, gx))
    ky, kx = (np.fft.fftfreq(n, step) for n, step in zip(gy.shape, steps, strict=True))
    square = ky[:, None] ** 2 + kx**2
    square[0, 0] = np.inf
    spectrum = (np.fft.fft2(gy) * (ky[:, None] / square) + np.fft.fft2(gx) * (kx / square)) / (2j * np.pi)
    frequency = np.sqrt(square)
    high, low = periods
    if high is not None:
        spectrum *= 1 / (1 + (1 / (frequency * high)) ** (2 * order))
    if low is not None:
        spectrum *= 1 / (1 + (frequency * low) ** (2 * order))
    phase = np.fft.ifft2(spectrum).real[:ny, :nx]
    return np.where(known, phase - phase[known].mean(), np.nan)


def _mirrored(part: np.ndarray, over_y: int, over_x: int) -> np.ndarray:
    rows = np.concatenate([part, over_y * part[::-1]], 0)
    return np.concatenate([rows, over_x * rows[:, ::-1]], 1)


def _skewness(image: np.ndarray) -> float:
    values = image[np.isfinite(image)]
    deviation = values - values.mean()
    return float((deviation**3).mean() / np.maximum((deviation**2).mean(), 1e-300) ** 1.5)
