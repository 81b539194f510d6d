r"""How much of an image is signal and how much is noise, by two definitions.

With signal of variance :math:`S` over the scan and noise of variance :math:`N` the ratio is S / N, in decibels
:math:`10 \log_{10}(S / N)`.

- `thinned_snr` takes what two halves of the electrons have in common for signal. Its noise is that of counting
  electrons alone: whatever would be the same in a second acquisition is signal.
- `lattice_snr` takes what repeats from unit cell to unit cell for signal. Its noise is all that does not: counting,
  but also drift, scan distortion, atoms displaced by heat, defects.

Masks with weights rho / std on counts weigh each pixel's image by the inverse of its noise where that is noise alone
("shot-noise-matched"). They need no way of their own: the image of a Pearson mask from D_hat is D (rho/std)^T minus a
constant (`apply_mask`), and a constant changes neither ratio.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN, TEMPLATE, VALID_PATTERNS, require_same_coordinates, require_unit, step_of
from ..counts.statistics import region_flags
from ..errors import InputError, RegionError

Array = npt.NDArray[np.float64]

# Elements of the matrix of harmonics that is in memory at a time.
_ELEMENTS = 2**22


def thinned_snr(first: xr.DataArray, second: xr.DataArray, *, scan_region: Any = None) -> xr.Dataset:
    r"""Signal over noise of an image, from the images of two halves of the electrons.

    Two images of the same signal s with independent noise of the same variance N' correlate by
    :math:`r = S / (S + N')` over the scan, so :math:`S / N' = r / (1 - r)`. With all of the electrons, the signal is
    twice that of a half and the variance of the noise too, so

    .. math:: \mathrm{SNR} = \frac{2 r}{1 - r}.

    Parameters
    ----------
    first, second : DataArray, dims ([template,] y, x)
        Images under the same mask, of the two halves of `split_electrons` at its default fraction. Lazy ones are
        computed, in as many reads as they take. A mask that was derived from a half shares noise with its image: take
        the first image with the mask from the second half, and the second image with that from the first.
    scan_region : slices or boolean array (y, x), optional
        As in `correlate`; the whole scan by default.

    Returns
    -------
    Dataset
        `correlation` r and `snr_db`, in decibels at all of the electrons, per template where there are any. No positive
        correlation is -inf dB, a correlation of 1 is inf. The halves of a scan of p positions determine 1 / (1 - r) to
        about a factor of 1 +- sqrt(2/p), 0.1 dB for 4000 positions. Positions that are not valid or NaN in any of the
        images do not count.

    Raises
    ------
    InputError
        If the images have other dims or another scan, or are constant.
    RegionError
        If the scan region is empty or of another shape.

    Examples
    --------
    Signal of variance 4 with noise of variance 1, of which each half has twice as much in proportion:

    >>> rng = np.random.default_rng(2)
    >>> signal = rng.normal(0, 2, (400, 400))
    >>> halves = [xr.DataArray((signal + rng.normal(0, 2**0.5, signal.shape)) / 2, dims=("y", "x")) for n in (1, 2)]
    >>> round(float(thinned_snr(*halves)["snr_db"]), 1), round(float(10 * np.log10(4)), 1)
    (6.0, 6.0)
    """
    for image, name in ((first, "first image"), (second, "second image")):
        _check_image(image, name)
    if set(first.dims) != set(second.dims):
        raise InputError(f"The images have dims {tuple(first.dims)} and {tuple(second.dims)}; expected the same.")
    require_same_coordinates(first, second, SCAN, ("first image", "second image"), InputError)
    used = _used(first, scan_region) & _used(second, scan_region)
    a, b = (_rows(image, used) for image in (first, second))
    if a.shape != b.shape:
        raise InputError(f"There are {len(a)} first and {len(b)} second images; expected as many of each.")
    a, b = (rows - rows.mean(1, keepdims=True) for rows in (a, b))
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    if not (norms > 0).all():
        raise InputError("An image is the same at every position used; there is neither signal nor noise in it.")
    r = np.clip((a * b).sum(1) / norms, -1.0, 1.0)
    with np.errstate(divide="ignore"):
        ratio = 2 * np.maximum(r, 0.0) / (1 - r)
    return _labelled(first, {"correlation": (r, "correlation of the halves", "1"), **_decibels(ratio)})


def lattice_snr(image: xr.DataArray, cell: Any, *, scan_region: Any = None) -> xr.Dataset:
    r"""Signal over noise of the image of a crystal: what is in the harmonics of its lattice, over the rest.

    The image is fitted, by least squares, by all harmonics of the lattice that the scan can hold,

    .. math:: s(r) = \sum_g c_g e^{2 \pi i g \cdot r}, \qquad
              g = h a^* + k b^*, \quad |g_y| \le \frac{1}{2 \Delta_y}, \; |g_x| \le \frac{1}{2 \Delta_x},

    with the reciprocal vectors a*, b* of the lattice and the scan steps :math:`\Delta`. With p positions, of which the
    fit takes m degrees of freedom (its constant among them), the residual e and the fit f give

    .. math:: N = \frac{1}{p - m} \sum_i e_i^2, \qquad
              S = \frac{1}{p} \left[ \sum_i (f_i - \bar f)^2 - (m - 1) N \right],

    for a part of the noise falls into the harmonics.

    Parameters
    ----------
    image : DataArray, dims ([template,] y, x)
        In angstrom. A lazy one is computed.
    cell : array (2, 2), or (2,)
        The two lattice vectors, (y, x) in angstrom each; or the lengths of a cell along y and x.
    scan_region : slices or boolean array (y, x), optional
        **One domain of one crystal.** Across a domain wall, a grain boundary or a strain of a fraction of a cell the
        harmonics of the two sides do not agree, and signal would be called noise. The whole scan by default.

    Returns
    -------
    Dataset
        `snr_db` in decibels, `signal_variance` and `noise_variance` in the image's unit squared, per template where
        there are any; `harmonics`, the m of the fit. A signal that is not above what noise puts into the harmonics is
        -inf dB.

    Raises
    ------
    InputError
        If the cell is no lattice, or the image has other dims, is constant, or has too few positions for the fit.
    CoordinateError
        If the scan is not calibrated in angstrom.
    RegionError
        If the scan region is empty or of another shape.

    Examples
    --------
    A signal of variance 1/2 with noise of variance 1/20:

    >>> steps = {dim: (dim, 0.25 * np.arange(80), {"units": "angstrom"}) for dim in ("y", "x")}
    >>> wave = np.sin(2 * np.pi * steps["y"][1][:, None] / 4) + np.zeros(80)
    >>> noise = np.random.default_rng(1).normal(0, 0.05**0.5, wave.shape)
    >>> found = lattice_snr(xr.DataArray(wave + noise, steps, dims=("y", "x")), (4, 5))
    >>> round(float(found["snr_db"]), 1), int(found["harmonics"])
    (10.0, 320)
    """
    _check_image(image, "image")
    require_unit(image, SCAN, "angstrom", "The signal of a lattice")
    used = _used(image, scan_region)
    rows = _rows(image, used)
    y, x = (np.asarray(image[dim].values, np.float64) for dim in SCAN)
    where = np.nonzero(used)
    positions = np.stack([y[where[0]], x[where[1]]], 1)
    limits = np.array([0.5 / abs(step_of(image, dim)) for dim in SCAN])
    waves = _harmonics(_lattice(cell), limits)
    count = 2 * len(waves) - 1
    if len(positions) <= count:
        raise InputError(
            f"{len(positions)} probe positions are used, and the lattice has {count} harmonics at this scan step; "
            "expected more positions than harmonics: use more unit cells, or check the cell."
        )
    rows = rows - rows.mean(1, keepdims=True)
    fitted, rank = _fitted(rows, positions, waves)
    if rank >= rows.shape[1]:
        raise InputError(f"The lattice's harmonics fit any image of {rows.shape[1]} positions; use more unit cells.")
    noise = ((rows - fitted) ** 2).sum(1) / (rows.shape[1] - rank)
    signal = (fitted.var(1) * rows.shape[1] - (rank - 1) * noise) / rows.shape[1]
    if not (rows.any(1)).all():
        raise InputError("An image is the same at every position used; there is neither signal nor noise in it.")
    # An image that the lattice fits to the last digit has no noise but that of rounding.
    noise = np.where(noise <= 1e-24 * rows.var(1), 0.0, noise)
    signal = np.maximum(signal, 0.0)
    with np.errstate(divide="ignore"):
        ratio = signal / noise
    units = str(image.attrs.get("units", "1"))
    squared = "1" if units == "1" else f"{units}^2"
    variances = {
        "signal_variance": (signal, "variance of the signal", squared),
        "noise_variance": (noise, "variance of the noise", squared),
    }
    found = _labelled(image, {**_decibels(ratio), **variances})
    attrs = {"long_name": "degrees of freedom of the lattice's harmonics", "units": "1"}
    return found.assign(harmonics=((), rank, attrs))


def _check_image(image: Any, name: str) -> None:
    if not isinstance(image, xr.DataArray) or not set(SCAN) <= set(image.dims) <= {TEMPLATE, *SCAN}:
        dims = tuple(image.dims) if isinstance(image, xr.DataArray) else type(image).__name__
        raise InputError(f"The {name} has dims {dims}; expected ([template,] y, x).")


def _used(image: xr.DataArray, scan_region: Any) -> npt.NDArray[np.bool_]:
    """Probe positions (y, x) of a region that are valid, and finite in every image."""
    region = region_flags(image, scan_region, SCAN, "scan_region")
    values = np.asarray(image.transpose(..., *SCAN).values)
    used = np.isfinite(values).reshape(-1, *values.shape[-2:]).all(0)
    if region is not None:
        used &= region
    if VALID_PATTERNS in image.coords:
        used &= image.coords[VALID_PATTERNS].transpose(*SCAN).values.astype(bool)
    if used.sum() < 2:
        raise RegionError(f"{int(used.sum())} probe positions are valid and in the scan_region; expected at least two.")
    return used


def _rows(image: xr.DataArray, used: npt.NDArray[np.bool_]) -> Array:
    """Values (image, position) at the positions used."""
    values = np.asarray(image.transpose(..., *SCAN).values, np.float64)
    return values.reshape(-1, *values.shape[-2:])[:, used]


def _decibels(ratio: Array) -> dict[str, tuple[Array, str, str]]:
    with np.errstate(divide="ignore"):
        return {"snr_db": (10 * np.log10(ratio), "signal over variance of the noise", "dB")}


def _labelled(image: xr.DataArray, values: dict[str, tuple[Array, str, str]]) -> xr.Dataset:
    """Values per image with its template's coordinates, or scalars where it has none."""
    many = TEMPLATE in image.dims
    dims = (TEMPLATE,) if many else ()
    coords = {name: c for name, c in image.coords.items() if c.dims == dims and not (set(SCAN) & {str(name)})}
    data = {
        name: (dims, numbers if many else numbers[0], {"long_name": long_name, "units": units})
        for name, (numbers, long_name, units) in values.items()
    }
    return xr.Dataset(data, coords)


def _lattice(cell: Any) -> Array:
    """Two lattice vectors (2, 2), of vectors or of lengths along y and x."""
    try:
        vectors = np.asarray(cell, np.float64)
    except (TypeError, ValueError):
        vectors = np.empty(0)
    vectors = np.diag(vectors) if vectors.shape == (2,) else vectors
    if vectors.shape != (2, 2) or not np.isfinite(vectors).all():
        raise InputError(f"The cell is {cell!r}; expected two vectors (y, x) in angstrom, or two lengths.")
    area = abs(np.linalg.det(vectors))
    if area <= 1e-6 * np.prod(np.linalg.norm(vectors, axis=1)):
        raise InputError(f"The cell {vectors.tolist()} has no area; expected two vectors that are not parallel.")
    return vectors


def _harmonics(vectors: Array, limits: Array) -> Array:
    """Reciprocal-lattice vectors (n, 2) up to limits along y and x, one of each +g and -g; the first is zero."""
    reciprocal = np.linalg.inv(vectors).T
    # g . a = h, so |h| is at most |g_y| |a_y| + |g_x| |a_x|.
    most = np.floor(np.abs(vectors) @ limits + 1e-9).astype(int)
    h, k = (n.ravel() for n in np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"))
    half = (h > 0) | ((h == 0) & (k >= 0))
    order = np.stack([h, k], 1)[half]
    waves = order @ reciprocal
    inside = (np.abs(waves) <= limits * (1 + 1e-9)).all(1)
    return waves[inside][np.argsort(np.linalg.norm(waves[inside], axis=1), kind="stable")]


def _fitted(rows: Array, positions: Array, waves: Array) -> tuple[Array, int]:
    """Least-squares fit of images (image, position) by waves (n, 2), and its degrees of freedom.

    By normal equations, added up over runs of positions: all harmonics at all positions need not fit into memory.
    """
    step = max(1, _ELEMENTS // (2 * len(waves)))
    runs = [slice(n, n + step) for n in range(0, len(positions), step)]
    size = 2 * len(waves) - 1
    gram, cross = np.zeros((size, size)), np.zeros((size, len(rows)))
    for run in runs:
        basis = _basis(positions[run], waves)
        gram += basis.T @ basis
        cross += basis.T @ rows[:, run].T
    # Waves at the limit of sampling are the same as others there, or zero: they add no freedom.
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-9 * values[-1]
    coefficients = vectors[:, kept] @ ((vectors[:, kept].T @ cross) / values[kept, None])
    fitted = np.concatenate([coefficients.T @ _basis(positions[run], waves).T for run in runs], axis=1)
    return fitted, int(kept.sum())


def _basis(positions: Array, waves: Array) -> Array:
    """Cosines and sines (position, 2 n - 1) of the waves, of which the first is the constant."""
    phase = 2 * np.pi * positions @ waves.T
    return np.concatenate([np.cos(phase), np.sin(phase[:, 1:])], axis=1)
