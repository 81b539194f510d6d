"""Multislice scattering of a focused probe, in numbers: abTEM's potentials, and NumPy from there on.

A probe is a sum of plane waves. Where more probes than plane waves are wanted, the plane waves are taken through the
specimen instead, once, and every probe is a sum of their results (the PRISM algorithm without interpolation, exact in
a periodic block; C. Ophus, Adv. Struct. Chem. Imaging 3 (2017) 13): the scattering matrix. It serves every defocus.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import numpy.typing as npt
import scipy.fft

from ..axes import electron_wavelength
from ..errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

Array = npt.NDArray[Any]

# Part of the grid's frequencies that multislice keeps, so that products of two of them do not fold back.
_KEPT = 2 / 3
# Waves that go through the specimen together.
_BATCH = 16


@dataclass(frozen=True)
class Conditions:
    """Microscope, detector and model of one simulation.

    Attributes
    ----------
    energy : float
        eV.
    semi_angle, soft_edge : float
        mrad. The amplitude of the probe falls from 1 to 0 as a cosine over `soft_edge`, centred on `semi_angle`.
    cs : float
        Spherical aberration, angstrom.
    max_angle, pixel_size : float
        Of the detector, mrad.
    slice_thickness, potential_sampling : float
        Angstrom; the grid is rounded up to sizes that transform fast.
    parametrization, projection : str
        Of the atoms' potentials, as abTEM names them.
    sigmas : tuple of (str, float)
        Root mean square displacement of each element along one direction, angstrom.
    configurations, seed : int
        Frozen phonon configurations, and what makes their displacements.
    """

    energy: float
    semi_angle: float
    soft_edge: float
    cs: float
    max_angle: float
    pixel_size: float
    slice_thickness: float
    potential_sampling: float
    parametrization: str
    projection: str
    sigmas: tuple[tuple[str, float], ...]
    configurations: int
    seed: int

    @property
    def wavelength(self) -> float:
        return electron_wavelength(self.energy)


@dataclass(frozen=True)
class Scatterer:
    """A specimen under given conditions, seen at the end of some of its slices.

    Attributes
    ----------
    numbers, positions : arrays (n,), (n, 3)
        Atoms; x, y, z in angstrom.
    cell : (float, float, float)
        (x, y, z) in angstrom.
    conditions : Conditions
    planes : tuple of int
        After so many slices; ascending.
    """

    numbers: Array
    positions: Array
    cell: tuple[float, float, float]
    conditions: Conditions
    planes: tuple[int, ...]

    @property
    def size(self) -> tuple[float, float]:
        """Period (y, x), angstrom."""
        return self.cell[1], self.cell[0]

    @cached_property
    def slices(self) -> int:
        return max(1, round(self.cell[2] / self.conditions.slice_thickness))

    @property
    def slice_thickness(self) -> float:
        return self.cell[2] / self.slices

    @cached_property
    def gpts(self) -> tuple[int, int]:
        """Points (y, x) of the potential's grid."""
        sampling = self.conditions.potential_sampling
        ny, nx = (_fast_even(math.ceil(n / sampling - 1e-9)) for n in self.size)
        return ny, nx

    @property
    def steps(self) -> tuple[float, float]:
        """Angle (y, x) in mrad from one plane wave of the periodic block to the next."""
        return natural_steps(self.size, self.conditions.wavelength)

    @cached_property
    def detector(self) -> tuple[int, int]:
        """Pixels (ky, kx)."""
        half = int(self.conditions.max_angle / self.conditions.pixel_size + 1e-9)
        return 2 * half, 2 * half

    @cached_property
    def orders(self) -> tuple[Array, Array]:
        """The plane waves (y, x), by number, that reach the detector."""
        reach = (self.detector[0] / 2 + 0.5) * self.conditions.pixel_size
        most = [min(math.ceil(reach / s), n // 2 - 1) for s, n in zip(self.steps, self.gpts, strict=True)]
        return np.arange(-most[0], most[0] + 1), np.arange(-most[1], most[1] + 1)

    @cached_property
    def beams(self) -> Array:
        """The plane waves (n, 2), by number (y, x), that make up the probe."""
        limit = self.conditions.semi_angle + self.conditions.soft_edge / 2
        most = [math.ceil(limit / s) for s in self.steps]
        numbers = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), -1).reshape(-1, 2)
        return numbers[_amplitude(np.hypot(*(numbers * self.steps).T), self.conditions) > 0]

    def probe(self, positions: Array, defocus: float) -> Array:
        r"""Plane-wave coefficients (position, beam) of probes at positions (y, x) in angstrom.

        .. math:: c_g = a(\alpha) \exp(-i \chi(\alpha) - 2 \pi i g r), \qquad
                  \chi = \frac{2 \pi}{\lambda} (-\tfrac{1}{2} \Delta f \alpha^2 + \tfrac{1}{4} C_s \alpha^4)

        normalised to one electron; a positive defocus is underfocus, as in abTEM.
        """
        alpha = np.hypot(*(self.beams * self.steps).T)
        amplitude = _amplitude(alpha, self.conditions)
        squared = (alpha * 1e-3) ** 2
        chi = 2 * np.pi / self.conditions.wavelength * (-defocus * squared / 2 + self.conditions.cs * squared**2 / 4)
        frequencies = self.beams / np.array(self.size)
        phase = 2 * np.pi * (np.asarray(positions, np.float64) @ frequencies.T) + chi
        norm = np.sqrt((amplitude**2).sum())
        return (amplitude / norm * np.exp(-1j * phase)).astype(np.complex64)

    def transmission(self, configuration: int) -> Array:
        """Transmission functions (slice, y, x) with the atoms displaced as one configuration has it; complex64."""
        abtem = need_abtem()
        ny, nx = self.gpts
        with dask.config.set(scheduler="synchronous"):  # abTEM's own dask graphs stay within this task
            potential = abtem.Potential(
                self._displaced(configuration),
                gpts=(nx, ny),
                slice_thickness=(self.slice_thickness,) * self.slices,
                parametrization=self.conditions.parametrization,
                projection=self.conditions.projection,
            ).build(lazy=False)
            phases = potential.transmission_function(energy=self.conditions.energy).array
        aperture = self._aperture
        out = np.empty((self.slices, ny, nx), np.complex64)
        for slice_, phase in zip(out, phases, strict=True):
            slice_[:] = scipy.fft.ifft2(scipy.fft.fft2(phase.T.astype(np.complex64)) * aperture)
        return out

    def exit_waves(self, waves: Array, transmission: Array) -> Iterator[Array]:
        """Waves (n, y, x) after each of the planes, as Fourier coefficients (n, y, x) of the `orders`; overwrites."""
        rows, columns = (o % n for o, n in zip(self.orders, self.gpts, strict=True))
        propagator = self._propagator
        for number in range(self.planes[-1]):
            waves *= transmission[number]
            waves = scipy.fft.fft2(waves, overwrite_x=True, norm="forward")
            waves *= propagator
            if number + 1 in self.planes:
                yield waves[:, rows[:, None], columns]
            waves = scipy.fft.ifft2(waves, overwrite_x=True, norm="forward")

    def scattering_matrix(self, transmission: Array) -> Array:
        """Where each beam of the probe goes: (plane, beam, ky, kx), complex64."""
        ny, nx = (len(o) for o in self.orders)
        out = np.empty((len(self.planes), len(self.beams), ny, nx), np.complex64)

        def through(start: int) -> None:
            beams = self.beams[start : start + _BATCH]
            waves = self._on_grid(np.eye(len(beams), dtype=np.complex64), beams)
            for plane, exit_wave in enumerate(self.exit_waves(waves, transmission)):
                out[plane, start : start + len(beams)] = exit_wave

        _in_threads(through, range(0, len(self.beams), _BATCH))
        return out

    def matrix_bytes(self) -> int:
        """Memory of the scattering matrices of all configurations."""
        ny, nx = (len(o) for o in self.orders)
        return self.conditions.configurations * len(self.planes) * len(self.beams) * ny * nx * 8

    def from_matrix(self, matrix: Array, coefficients: Array) -> Iterator[Array]:
        """Intensities (position, ky, kx) of probes after each plane, by the scattering matrix."""
        for plane in matrix:
            waves = coefficients @ plane.reshape(len(self.beams), -1)
            yield self._intensity(waves.reshape(len(coefficients), *plane.shape[1:]))

    def from_multislice(self, transmission: Array, coefficients: Array) -> list[Array]:
        """The same, each probe taken through the specimen by itself."""
        ny, nx = (len(o) for o in self.orders)
        out = [np.empty((len(coefficients), ny, nx), np.float32) for _ in self.planes]

        def through(start: int) -> None:
            waves = self._on_grid(coefficients[start : start + _BATCH], self.beams)
            for plane, exit_wave in zip(out, self.exit_waves(waves, transmission), strict=True):
                plane[start : start + _BATCH] = self._intensity(exit_wave)

        _in_threads(through, range(0, len(coefficients), _BATCH))
        return out

    def on_pixels(self, intensity: Array) -> Array:
        """Intensities of the `orders` on the pixels of the detector, each a square that gathers what falls on it."""
        by_y, by_x = self._gather
        return by_y @ intensity @ by_x.T

    def _displaced(self, configuration: int) -> Atoms:
        # abTEM's own frozen phonons are not used: their displacements must be the same on every worker and release.
        from ase import Atoms

        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=True)
        sigmas = dict(self.conditions.sigmas)
        missing = sorted(set(atoms.get_chemical_symbols()) - set(sigmas))
        if missing:
            raise InputError(f"There is no thermal displacement for {', '.join(missing)}; give the sigmas of all.")
        sigma = np.array([sigmas[s] for s in atoms.get_chemical_symbols()])
        rng = np.random.default_rng((self.conditions.seed, configuration))
        atoms.positions += sigma[:, None] * rng.standard_normal((len(atoms), 3))
        return atoms

    def _on_grid(self, coefficients: Array, beams: Array) -> Array:
        spectrum = np.zeros((len(coefficients), *self.gpts), np.complex64)
        spectrum[:, beams[:, 0] % self.gpts[0], beams[:, 1] % self.gpts[1]] = coefficients
        return scipy.fft.ifft2(spectrum, overwrite_x=True, norm="forward")

    @cached_property
    def _frequencies(self) -> tuple[Array, Array]:
        ky, kx = (np.fft.fftfreq(n, length / n) for n, length in zip(self.gpts, self.size, strict=True))
        return ky[:, None], kx

    @cached_property
    def _aperture(self) -> Array:
        from abtem.antialias import antialias_aperture

        spacing = self.size[0] / self.gpts[0], self.size[1] / self.gpts[1]
        return antialias_aperture(self.gpts, spacing, np).astype(np.float32)

    @cached_property
    def _propagator(self) -> Array:
        ky, kx = self._frequencies
        phase = -np.pi * self.conditions.wavelength * self.slice_thickness * (ky**2 + kx**2)
        return (np.exp(1j * phase) * self._aperture).astype(np.complex64)

    @cached_property
    def _gather(self) -> tuple[Array, Array]:
        """The part of each plane wave's square, its step wide, that falls on each pixel: (pixel, order), y and x."""
        p = self.conditions.pixel_size
        found = []
        for orders, step, n in zip(self.orders, self.steps, self.detector, strict=True):
            pixels = (np.arange(n) - n // 2)[:, None]
            low = np.maximum((pixels - 0.5) * p, (orders - 0.5) * step)
            high = np.minimum((pixels + 0.5) * p, (orders + 0.5) * step)
            found.append((np.maximum(high - low, 0) / step).astype(np.float32))
        return found[0], found[1]

    @staticmethod
    def _intensity(waves: Array) -> Array:
        return waves.real**2 + waves.imag**2


def need_abtem() -> Any:
    """abTEM, or an error that says how to get it."""
    try:
        import abtem
    except ImportError:
        raise InputError(
            'Simulating needs abTEM, which is not installed; install it with: pip install "tdm-dask[simulation]".'
        ) from None
    return abtem


def natural_steps(size: Sequence[float], wavelength: float) -> tuple[float, float]:
    """Angles (y, x) in mrad between the plane waves of a block of a size (y, x) in angstrom."""
    return 1e3 * wavelength / size[0], 1e3 * wavelength / size[1]


def check_sampling(scatterer: Scatterer) -> None:
    """Raise unless multislice keeps every frequency that the detector sees."""
    spacing = max(length / n for n, length in zip(scatterer.gpts, scatterer.size, strict=True))
    reach = 1e3 * scatterer.conditions.wavelength * _KEPT / (2 * spacing)
    wanted = scatterer.conditions.max_angle
    if reach < wanted:
        raise InputError(
            f"A potential sampled every {spacing:.3f} angstrom serves angles up to {reach:.1f} mrad, but "
            f"max_angle={wanted:g} was asked for; use potential_sampling={spacing * reach / wanted:.3f} or less."
        )


def _amplitude(alpha: Array, conditions: Conditions) -> Array:
    if conditions.soft_edge == 0:
        return (alpha <= conditions.semi_angle).astype(np.float64)
    way = (alpha - conditions.semi_angle) / conditions.soft_edge + 0.5
    return 0.5 * (1 + np.cos(np.pi * np.clip(way, 0, 1)))


def _fast_even(n: int) -> int:
    n = scipy.fft.next_fast_len(n)
    while n % 2:
        n = scipy.fft.next_fast_len(n + 1)
    return n


def _in_threads(do: Callable[[int], None], starts: Iterable[int]) -> None:
    """Do something for each start, on as many threads as this process has."""
    with ThreadPoolExecutor(_threads()) as pool:
        for _ in pool.map(do, starts):
            pass


def _threads() -> int:
    if "distributed" in sys.modules:
        from distributed import get_worker

        try:
            return int(get_worker().state.nthreads)
        except ValueError:
            pass
    if dask.config.get("scheduler", None) in ("sync", "synchronous", "single-threaded"):
        return 1
    return int(dask.config.get("num_workers", None) or dask.system.CPU_COUNT)
