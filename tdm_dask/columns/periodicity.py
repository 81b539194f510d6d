"""The period of an image: frequencies that stand out of its Fourier transform, and the lattice that they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr
from skimage.feature import peak_local_max

from ..axes import SCAN
from ..errors import SiteError
from .finding import smoothed
from .sites import Array

_PADDING = 4
# Part of the strongest amplitude below which side lobes of the window and walls take over.
_FAINTEST = 0.05
_MOST_PEAKS = 24
# Periods that fit less than this many times into the scan are not told from its outline.
_REPEATS = 2.0
# A basis may miss this much of what the best one explains, in amplitude, if its cell is smaller.
_SLACK = 0.04


@dataclass(frozen=True)
class Spectrum:
    """An image as the sum of its Fourier components within a window.

    Attributes
    ----------
    values : array (ny, nx)
        The image about its mean, weighted by the window, whose weights sum to 1.
    y, x : array
        Coordinates in angstrom.
    """

    values: Array
    y: Array
    x: Array

    @property
    def lengths(self) -> Array:
        """Extent of the window along y and x, in angstrom."""
        return np.array([np.ptp(axis) * len(axis) / (len(axis) - 1) for axis in (self.y, self.x)])

    def at(self, frequencies: npt.ArrayLike) -> npt.NDArray[np.complex128]:
        """Components at frequencies (n, 2), (y, x) in 1/angstrom."""
        g = np.reshape(np.asarray(frequencies, np.float64), (-1, 2))
        over_y = np.exp(-2j * np.pi * g[:, :1] * self.y)
        over_x = np.exp(-2j * np.pi * g[:, 1:] * self.x)
        return np.asarray(((over_y @ self.values) * over_x).sum(axis=1))

    def peaks(self) -> tuple[Array, Array]:
        """Frequencies (n, 2) that stand out, one of each pair g and -g, and their amplitudes, strongest first."""
        shape = [_PADDING * 2 ** int(np.ceil(np.log2(n))) for n in self.values.shape]
        amplitude = np.abs(np.fft.fft2(self.values, shape))
        steps = [np.ptp(axis) / (len(axis) - 1) for axis in (self.y, self.x)]
        fy, fx = (np.fft.fftfreq(n, step) for n, step in zip(shape, steps, strict=True))
        slow = np.hypot(fy[:, None] * self.lengths[0], fx * self.lengths[1]) < _REPEATS
        # Exponential statistics: of a million noise components, one exceeds the median twentyfold in power.
        noise = np.sqrt(20 * np.median(amplitude[~slow] ** 2))
        amplitude = np.fft.fftshift(np.where(slow, 0.0, amplitude))
        limit = max(float(noise), _FAINTEST * float(amplitude.max()))
        found = peak_local_max(amplitude, min_distance=_PADDING, threshold_abs=limit, exclude_border=False)
        frequencies = np.stack([np.fft.fftshift(f)[found[:, k]] for k, f in enumerate((fy, fx))], axis=1)
        half = (frequencies[:, 0] > 1e-12) | ((np.abs(frequencies[:, 0]) <= 1e-12) & (frequencies[:, 1] > 0))
        frequencies = self._sharpened(frequencies[half][: 4 * _MOST_PEAKS])
        heights = np.abs(self.at(frequencies))
        order = np.argsort(-heights)[:_MOST_PEAKS]
        return frequencies[order], heights[order]

    def _sharpened(self, frequencies: Array) -> Array:
        """Each frequency moved to the maximum of the amplitude near it, by parabolas over ever smaller steps."""
        for step in (0.25, 0.1, 0.04):
            spacing = step / self.lengths
            for k in (0, 1):
                shift = np.eye(2)[k] * spacing
                low, mid, high = (np.log(np.abs(self.at(frequencies + n * shift)) + 1e-300) for n in (-1, 0, 1))
                bend = low - 2 * mid + high
                with np.errstate(invalid="ignore", divide="ignore"):
                    move = np.where(bend < 0, 0.5 * (low - high) / bend, 0.0)
                frequencies = frequencies + np.clip(move, -1, 1)[:, None] * shift
        return frequencies


def spectrum(image: xr.DataArray, used: npt.NDArray[np.bool_] | None = None) -> Spectrum:
    """Spectrum of an image (y, x) from `columns.finding.scan_image`, under a Hann window over what is used of it."""
    values = np.asarray(image.values, np.float64)
    y, x = (np.asarray(image.coords[dim].values, np.float64) for dim in SCAN)
    window = np.ones_like(values)
    if used is not None:
        rows, columns = np.flatnonzero(used.any(1)), np.flatnonzero(used.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        values, y, x = values[box], y[box[0]], x[box[1]]
        # A region that is no rectangle has soft edges too.
        window = np.clip(2 * smoothed(used[box].astype(np.float64), np.array(values.shape) / 20) - 1, 0, 1)
    known = np.isfinite(values)
    hann = np.multiply.outer(*(np.hanning(n + 2)[1:-1] for n in values.shape))
    weights = window * hann
    filled: Array = values
    if not known.all():
        # Single missing patterns take the mean of their neighbours; a hole would ring.
        near = smoothed(values, 1.5)
        filled = np.where(known, values, np.where(np.isfinite(near), near, float(np.nanmean(values))))
    mean = float((weights * filled).sum() / weights.sum())
    return Spectrum(weights * (filled - mean) / weights.sum(), y, x)


def lattice_vectors(frequencies: Array, amplitudes: Array, lengths: Array) -> Array:
    """Two vectors (2, 2), rows (y, x) in angstrom, of the smallest cell that explains the frequencies.

    Raises
    ------
    SiteError
        If the frequencies do not span two directions.
    """
    basis = _basis(frequencies, amplitudes, lengths)
    for _ in range(3):
        index = frequencies @ np.linalg.inv(basis)
        whole = np.rint(index)
        near = _distance(index - whole, basis, lengths) < 0.35
        near &= (whole != 0).any(axis=1)
        if np.linalg.matrix_rank(whole[near]) < 2:
            break
        weight = amplitudes[near, None]
        solution = np.linalg.lstsq(weight * whole[near], weight * frequencies[near], rcond=None)[0]
        basis = np.asarray(solution, np.float64)
    return reduced(np.linalg.inv(basis).T)


def reduced(vectors: npt.ArrayLike) -> Array:
    """The shortest two vectors of a lattice, the first the nearer to +y, the second to the right of it."""
    a, b = np.asarray(vectors, np.float64)
    if not abs(a[0] * b[1] - a[1] * b[0]) > 0:
        raise SiteError(f"The vectors {np.array([a, b]).tolist()} are parallel, zero or not finite; they span no cell.")
    while True:
        if a @ a > b @ b:
            a, b = b, a
        turns = np.rint((a @ b) / (a @ a))
        if turns == 0:
            break
        b = b - turns * a
    if abs(a[0]) * np.hypot(*b) < abs(b[0]) * np.hypot(*a) * (1 - 1e-6):
        a, b = b, a
    a = a if a[0] > 0 else -a
    b = b if a[0] * b[1] - a[1] * b[0] > 0 else -b
    return np.array([a, b])


def _basis(frequencies: Array, amplitudes: Array, lengths: Array) -> Array:
    """The pair of frequencies, or of differences between them, whose lattice explains most with the largest mesh."""
    strong = frequencies[:16]
    pairs = [(i, j) for i in range(len(strong)) for j in range(i)]
    both = [strong[i] + s * strong[j] for i, j in pairs for s in (1, -1)]
    candidates = np.concatenate([strong, np.reshape(both, (-1, 2))])
    candidates = candidates[(np.abs(candidates * lengths) ** 2).sum(1) >= _REPEATS**2]
    candidates = candidates[np.argsort((candidates**2).sum(1), kind="stable")]
    kept: list[Array] = []
    for g in candidates:
        scaled = [min(np.hypot(*((g - k) * lengths)), np.hypot(*((g + k) * lengths))) for k in kept]
        if not scaled or min(scaled) > 0.5:
            kept.append(g)
        if len(kept) == 60:
            break
    best: list[tuple[float, float, Array]] = []
    for i, first in enumerate(kept):
        for second in kept[:i]:
            basis = np.array([first, second])
            area = abs(np.linalg.det(basis))
            if area < 0.3 * np.hypot(*first) * np.hypot(*second):
                continue
            index = frequencies @ np.linalg.inv(basis)
            near = _distance(index - np.rint(index), basis, lengths) < 0.35
            chance = min(np.pi * 0.35**2 / np.prod(lengths) / area, 0.95)
            explained = float(amplitudes[near].sum() / amplitudes.sum())
            best.append(((explained - chance) / (1 - chance), area, basis))
    if not best:
        raise SiteError(
            f"The image shows {len(frequencies)} periods in its Fourier transform, but no lattice in two directions; "
            "take a larger or sharper image, or give the vectors."
        )
    top = max(score for score, _, _ in best)
    return max((b for b in best if b[0] >= top - _SLACK), key=lambda b: b[1])[2]


def _distance(fraction: Array, basis: Array, lengths: Array) -> Array:
    """How far frequencies lie from the lattice, in widths of a component (one over the extent)."""
    return np.asarray(np.hypot(*(fraction @ basis * lengths).T))
