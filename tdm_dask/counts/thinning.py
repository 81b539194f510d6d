"""Electron thinning: half of the electrons of a scan, and the other half, as if it had been acquired twice."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import xarray as xr

from ..axes import check_counts
from ..errors import InputError
from ..reading.thinned import Thinning, thinned
from ..renamed import renamed

# Facts of the acquisition that go with the number of electrons.
_DOSES = ("electrons_per_probe", "electrons_per_square_angstrom")


@renamed(gain="counts_per_electron")
def thin(
    counts: xr.DataArray,
    fraction: float = 0.5,
    *,
    seed: int = 0,
    counts_per_electron: float | None = None,
    origin: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> xr.DataArray:
    r"""Counts at a lower dose: every electron of every count is kept with the same probability.

    .. math:: d'_{ij} \sim \mathrm{Binomial}(d_{ij}, f)

    If the counts are Poisson distributed with mean :math:`\lambda`, what is kept is with mean :math:`f \lambda`, and
    independent of what is left: two acquisitions of a lower dose each. Nothing is read before `.compute()`, and then
    each read of the thinned counts is one read of the counts.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    fraction : float, default 0.5
        Probability f that an electron is kept, between 0 and 1; one half takes about a seventh of the time of others.
    seed : int, default 0
        From 0 to 2^64 - 1. Thin thinned counts with another seed than theirs: the same one would draw the same words.
    counts_per_electron : float, optional
        g: a count d is rint(d / g) electrons (half to even, none below 0), and k electrons kept are k g counts (rounded
        for integer counts), but at most d. By default the attribute of that name of the counts, which `calibrate`
        sets, or 1. Called `gain` before, which works in this release alone.
    origin : (y, x, ky, kx), default (0, 0, 0, 0)
        Element of a larger scan that the first element of these counts is.

    Returns
    -------
    DataArray, dims (y, x, ky, kx)
        Of the same dtype, in the same unit, with the same coordinates. Lazy where the counts are, and where they are an
        unchanged file or store, passes thin them inside their tasks, block by block.

    Raises
    ------
    InputError
        If the fraction, seed, counts per electron or origin is none.

    Notes
    -----
    The draw is a function of the seed and of the element (y, x, ky, kx) of the array given plus `origin`, alone:
    chunks, scheduler, kind of array or file, and what else is read make no difference. So a crop of thinned counts is
    what thinning drew in the whole scan; a crop that is thinned has elements of its own, counted from its corner, and
    draws the same only when `origin` names that corner. Descan and flags do not move elements.

    Up to 1024 electrons are decided one by one against 64 bits of the fraction; beyond, the number that is kept is
    drawn by rejection (BTRS, Hörmann 1993), exact but for the rounding of float64.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.full((8, 8, 4, 4), 100, np.uint16))
    >>> tenth = thin(counts, 0.1, seed=1)
    >>> round(float(tenth.mean()), 1), round(float(tenth.std()), 1)  # 100 f and the root of 100 f (1 - f)
    (10.1, 3.0)
    """
    thinning = _thinning(counts, fraction, seed, counts_per_electron, origin, rest=False)
    return _thinned(check_counts(counts), thinning, fraction)


@renamed(gain="counts_per_electron")
def split_electrons(
    counts: xr.DataArray,
    fraction: float = 0.5,
    *,
    seed: int = 0,
    counts_per_electron: float | None = None,
    origin: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> tuple[xr.DataArray, xr.DataArray]:
    """Counts as two scans of a lower dose each, which add up to them exactly.

    Their noise is independent where the counts are Poisson distributed, so that a mask from one and its image from the
    other share none, and the correlation of two images is that of their signals (`thinned_snr`).

    Parameters
    ----------
    counts, fraction, seed, counts_per_electron, origin
        As in `thin`.

    Returns
    -------
    first, second : DataArray, dims (y, x, ky, kx)
        `thin` of the counts, and the counts minus it; lazy as in `thin`, each a read of the counts by itself. With
        several counts per electron, the first holds whole electrons, and what rounding leaves is in the second.

    Raises
    ------
    InputError
        As in `thin`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.random.default_rng(1).poisson(5, (8, 8, 4, 4)).astype(np.uint16))
    >>> first, second = split_electrons(counts)
    >>> bool((first + second == counts).all()), first.dtype.name
    (True, 'uint16')
    """
    counts = check_counts(counts)
    kept, rest = (_thinning(counts, fraction, seed, counts_per_electron, origin, rest=rest) for rest in (False, True))
    return _thinned(counts, kept, fraction), _thinned(counts, rest, 1 - fraction)


def _thinning(
    counts: xr.DataArray, fraction: float, seed: int, gain: float | None, origin: Any, *, rest: bool
) -> Thinning:
    if gain is None:
        gain = counts.attrs.get("counts_per_electron", 1.0)
    bits = round(float(fraction) * 2**64) if isinstance(fraction, numbers.Real) and 0 < fraction < 1 else 0
    if not 0 < bits < 2**64:
        raise InputError(f"The fraction of electrons to keep is {fraction!r}; expected a number between 0 and 1.")
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**64:
        raise InputError(f"The seed is {seed!r}; expected a whole number from 0 to 2^64 - 1.")
    if not isinstance(gain, numbers.Real) or not 0 < gain < np.inf:
        raise InputError(f"counts_per_electron={gain!r} was given; expected a positive, finite number.")
    place = tuple(origin)
    if len(place) != 4 or not all(isinstance(p, numbers.Integral) and 0 <= p < 2**31 for p in place):
        raise InputError(f"The origin is {origin!r}; expected four whole numbers, the first element's (y, x, ky, kx).")
    y, x, ky, kx = (int(p) for p in place)
    return Thinning(bits, int(seed), float(gain), rest, (y, x, ky, kx))


def _thinned(counts: xr.DataArray, thinning: Thinning, fraction: float) -> xr.DataArray:
    attrs = dict(counts.attrs)
    for name in _DOSES:
        if name in attrs:
            attrs[name] = attrs[name] * fraction
    return counts.copy(data=thinned(counts.data, thinning)).assign_attrs(attrs)
