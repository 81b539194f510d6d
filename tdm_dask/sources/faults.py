"""Faults of a detector and of a scan that the sums over its counts give away."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

# A pixel without a count is dead where its neighbours let expect this many.
EXPECTED_OF_DEAD = 30
# A pixel is hot if it counts this many times as much as each of its neighbours, and at least so much in all.
TIMES_OF_HOT = 5
LEAST_OF_HOT = 100
# How many places are named.
_NAMED = 3


def faults(
    mean: np.ndarray,
    maximum: np.ndarray,
    totals: np.ndarray,
    *,
    n: int,
    used: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    depth: int | None = None,
) -> list[str]:
    """Sentences about saturated, dead and hot pixels, and about blank patterns; none where there are none.

    Parameters
    ----------
    mean, maximum : ndarray, shape (nky, nkx)
        Of each pixel over the scan; the maximum in the dtype of the counts.
    totals : ndarray, shape (ny, nx)
        Sum of each pattern.
    n : int
        Patterns that the mean and maximum are of.
    used : ndarray of bool, shape (ny, nx), optional
        The patterns that are valid.
    valid : ndarray of bool, shape (nky, nkx), optional
        The pixels that are valid; nothing is said about others.
    depth : int, optional
        Bits of the detector's counters; those of the dtype by default.

    NaN and infinity show in the mean of their pixel and the total of their pattern.

    Returns
    -------
    list of str

    Examples
    --------
    >>> mean = np.full((5, 5), 8.0)
    >>> mean[1, 2], mean[3, 3] = 0, 200
    >>> for sentence in faults(mean, np.where(mean, 300, 0).astype(np.uint16), np.full((9, 9), 250), n=81):
    ...     print(sentence)
    1 pixel(s) never counted, although their neighbours did: dead, at (ky, kx) = (1, 2).
    1 pixel(s) counted more than 5 times as much as each neighbour: hot, at (ky, kx) = (3, 3).
    """
    inside = np.ones(mean.shape, bool) if valid is None else valid
    blank = (totals == 0) if used is None else (totals == 0) & used
    found = []
    ceiling = _ceiling(maximum.dtype, depth)
    if ceiling is not None:
        saturated = inside & (maximum >= ceiling)
        what = f"reached the counters' maximum of {ceiling}, where counts are lost: saturated"
        found += _sentence(saturated, "pixel(s)", what, "(ky, kx)")
    neighbours = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    # Counts may hold NaN, which says nothing about a pixel's neighbours.
    known = np.where(inside & np.isfinite(mean), mean, 0.0)
    highest = ndimage.maximum_filter(known, footprint=neighbours, mode="mirror")
    typical = ndimage.median_filter(known, footprint=neighbours, mode="mirror")
    dead = inside & (maximum == 0) & (known == 0) & (typical * n > EXPECTED_OF_DEAD)
    found += _sentence(dead, "pixel(s)", "never counted, although their neighbours did: dead", "(ky, kx)")
    # Without its highest count, for one stray electron makes no pixel hot.
    usual = known - np.where(known > 0, maximum, 0) / n
    hot = inside & (usual > TIMES_OF_HOT * highest) & (usual * n > LEAST_OF_HOT)
    what = f"counted more than {TIMES_OF_HOT} times as much as each neighbour: hot"
    found += _sentence(hot, "pixel(s)", what, "(ky, kx)")
    found += _sentence(blank, "pattern(s)", "hold no count: blank", "(y, x)")
    return [*found, *_about_nan(mean, totals, valid, used)]


def without_nan(
    mean: np.ndarray, totals: np.ndarray, valid: np.ndarray | None = None, used: np.ndarray | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Flags of the pixels, or of the patterns, that are left without those that hold NaN or infinity.

    Whichever loses less is left out; neither is where more than half of both would go.

    Returns
    -------
    ndarray of bool, shape (nky, nkx), or None
    ndarray of bool, shape (ny, nx), or None

    Examples
    --------
    >>> pixels, patterns = without_nan(np.array([[1.0, np.nan]]), np.array([[np.nan, np.nan, 3.0]]))
    >>> pixels, patterns is None
    (array([[ True, False]]), True)
    """
    pixels = np.isfinite(mean) if valid is None else np.isfinite(mean) | ~valid
    patterns = np.isfinite(totals) if used is None else np.isfinite(totals) | ~used
    kept = float(pixels.mean()), float(patterns.mean())
    if kept[0] == 1 or max(kept) < 0.5:
        return None, None
    if kept[0] >= kept[1]:
        return pixels if valid is None else pixels & valid, None
    return None, patterns if used is None else patterns & used


def _about_nan(mean: np.ndarray, totals: np.ndarray, valid: np.ndarray | None, used: np.ndarray | None) -> list[str]:
    """A sentence about NaN and infinity: which patterns hold it where these are few, else which pixels."""
    patterns = ~np.isfinite(totals) if used is None else ~np.isfinite(totals) & used
    if without_nan(mean, totals, valid, used)[1] is not None:
        return _sentence(patterns, "pattern(s)", "hold NaN or infinity", "(y, x)")
    pixels = ~np.isfinite(mean) if valid is None else ~np.isfinite(mean) & valid
    what = f"hold NaN or infinity in {np.count_nonzero(patterns)} pattern(s)"
    return _sentence(pixels, "pixel(s)", what, "(ky, kx)")


def _ceiling(dtype: np.dtype, depth: int | None) -> int | None:
    """The count beyond which a counter cannot go; None for counts that are no integers, and for single bits."""
    if dtype.kind not in "ui" or depth == 1:
        return None
    highest = int(np.iinfo(dtype).max)
    return highest if depth is None or depth >= 8 * dtype.itemsize else min(2**depth - 1, highest)


def _sentence(flags: np.ndarray, kind: str, what: str, axes: str) -> list[str]:
    places: list[Any] = [tuple(place) for place in np.argwhere(flags).tolist()]
    if not places:
        return []
    more = ", ..." if len(places) > _NAMED else ""
    return [f"{len(places)} {kind} {what}, at {axes} = {', '.join(map(str, places[:_NAMED]))}{more}."]
