"""How a crystal may lie in an image: maps of its reciprocal lattice onto the image's frequencies, and origins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from ..errors import SiteError
from .lattice import Lattice
from .periodicity import Spectrum
from .sites import Array

_FINEST = 1.1  # 1/angstrom: finer detail than this no probe of today shows in a thick crystal
_BLUR = 0.4  # angstrom: a typical width of columns, which decides how much fine detail counts
_STRONGEST = 10
_MOST_FREQUENCIES = 16
_MOST_MAPS, _MOST_ORIGINS, _MOST_CANDIDATES = 48, 6, 48
_GRID = 128
# Parts of the best below which maps (by amplitudes) and origins (by correlation) are no candidates.
_WORST_MAP, _WORST_ORIGIN = 0.6, 0.6


def orientations(lattice: Lattice, weights: Array, waves: Spectrum, max_strain: float) -> list[Lattice]:
    """The crystal in every orientation, and at every origin, that may explain an image; the likeliest first.

    Parameters
    ----------
    lattice : Lattice
    weights : array (m,)
        Brightness of each site of its motif, in order.
    waves : Spectrum
        Of the image.
    max_strain : float

    Raises
    ------
    SiteError
        If the image shows no periods, or none that the crystal has.
    """
    frequencies, _ = waves.peaks()
    if len(frequencies) < 2:
        raise SiteError(
            f"The image shows {len(frequencies)} periods in its Fourier transform; a registration needs two "
            "directions: take a larger or sharper image."
        )
    index, factors = _structure_factors(lattice, weights)
    reciprocal = index @ np.linalg.inv(lattice.vectors).T
    maps = _maps(reciprocal, factors, frequencies[:_MOST_FREQUENCIES], max_strain, waves.lengths)
    found = []
    for turned in maps:
        image = waves.at(reciprocal @ turned)
        found.append((float(np.abs(image) @ np.abs(factors) / np.linalg.norm(image)), turned, image))
    found.sort(key=lambda entry: -entry[0])
    candidates = []
    for likeness, turned, image in found[:_MOST_MAPS]:
        if likeness < _WORST_MAP * found[0][0]:
            break
        vectors = lattice.vectors @ np.linalg.inv(turned).T
        for value, origin in _origins(index, factors, image):
            candidates.append((value, replace(lattice, vectors=vectors, origin=origin @ vectors, drift=None)))
    candidates.sort(key=lambda entry: -entry[0])
    return [c for value, c in candidates[:_MOST_CANDIDATES] if value >= _WORST_ORIGIN * candidates[0][0]]


def _structure_factors(lattice: Lattice, weights: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.complex128]]:
    """Indices (n, 2) of the frequencies that count, and the components of Gaussians at the sites of a cell."""
    basis = np.linalg.inv(lattice.vectors).T
    most = np.ceil(_FINEST * np.hypot(*lattice.vectors.T)).astype(int)
    index = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 2)
    length = np.hypot(*(index @ basis).T)
    index = index[(length > 0) & (length <= _FINEST)]
    motif = np.concatenate(list(lattice.motif.values()))
    factors = np.exp(-2j * np.pi * (index @ motif.T)) @ weights
    return index, factors * np.exp(-2 * (np.pi * _BLUR * np.hypot(*(index @ basis).T)) ** 2)


def _maps(
    reciprocal: Array, factors: npt.NDArray[np.complex128], frequencies: Array, max_strain: float, lengths: Array
) -> list[Array]:
    """Linear maps (2, 2), from the right, that take two strong frequencies of the crystal to two of the image."""
    strong = reciprocal[np.argsort(-np.abs(factors), kind="stable")[: 2 * _STRONGEST]]
    both = np.concatenate([frequencies, -frequencies])
    first, second = (n.ravel() for n in np.meshgrid(*[np.arange(len(strong))] * 2, indexing="ij"))
    crystal = np.stack([strong[first], strong[second]], axis=1)
    area = np.abs(np.linalg.det(crystal))
    wide = area > 0.4 * np.prod(np.hypot(crystal[..., 0], crystal[..., 1]), axis=1)
    crystal = crystal[wide & (first < second)]
    i, j = (n.ravel() for n in np.meshgrid(*[np.arange(len(both))] * 2, indexing="ij"))
    image = np.stack([both[i], both[j]], axis=1)
    sizes = np.hypot(image[..., 0], image[..., 1])
    kept: list[Array] = []
    for pair in crystal:
        size = np.hypot(*pair.T)
        near = (np.abs(sizes / size - 1) <= 1.2 * max_strain).all(1)
        turned = np.linalg.inv(pair) @ image[near]
        if len(turned) == 0:
            continue
        stretch = np.linalg.svd(turned, compute_uv=False)
        for candidate in turned[(np.abs(stretch - 1) <= 1.2 * max_strain).all(1)]:
            # Maps that agree within the width of a component at the finest detail are one.
            if not any((np.abs(candidate - k) * _FINEST * lengths < 0.7).all() for k in kept):
                kept.append(candidate)
    if not kept:
        raise SiteError(
            f"No two periods of the image are periods of the crystal within a strain of {max_strain:g}; check the scan "
            "step, the zone axis and max_strain=... for it."
        )
    return kept


def _origins(
    index: npt.NDArray[np.int64], factors: npt.NDArray[np.complex128], image: npt.NDArray[np.complex128]
) -> list[tuple[float, Array]]:
    """Correlations with the image, and origins in fractions of the cell, at the maxima over all origins."""
    grid = np.zeros((_GRID, _GRID), complex)
    inside = (np.abs(index) < _GRID // 2).all(1)
    grid[tuple(index[inside].T)] = (image * factors.conj())[inside]
    over = np.fft.ifft2(grid).real * grid.size / (np.linalg.norm(image) * np.linalg.norm(factors))
    peaks = np.argwhere((over == maximum_filter(over, size=7, mode="wrap")) & (over > _WORST_ORIGIN * over.max()))
    values = over[tuple(peaks.T)]
    order = np.argsort(-values)[:_MOST_ORIGINS]
    return [(float(values[n]), peaks[n] / _GRID) for n in order]
