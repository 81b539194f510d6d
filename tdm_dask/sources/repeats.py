"""Patterns that repeat another one count by count: a detector that was stuck, or frames that were written twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

# A mark is made of a sum that is there already and of one pixel in so many, or of so many pixels where they are few:
# less than a hundredth of a conversion's time.
_ONE_IN, _LEAST_PIXELS = 127, 32
# Pairs of patterns that look the same are read again to see whether they are; of more, as many, spread over all.
_MOST_READ = 32
# How many places are named.
_NAMED = 3


def marked_pixels(pixels: int) -> slice:
    """Those of so many pixels of a part of the detector that marks are made of."""
    return slice(0, None, min(max(pixels // _LEAST_PIXELS, 1), _ONE_IN))


def pattern_marks(pixels: np.ndarray, totals: np.ndarray, ky: int, kx: int) -> np.ndarray:
    """A number for each pattern, from its sum and a few pixels: equal where these are, and hardly ever elsewhere.

    Parameters
    ----------
    pixels : ndarray, shape (ny, nx, n)
        The `marked_pixels` of part of the detector; the marks of all parts add up to that of the pattern.
    totals : ndarray of uint64 or float64, shape (ny, nx)
        Sums over all pixels of that part.
    ky, kx : int
        The first pixel of that part.

    Returns
    -------
    ndarray of uint64, shape (ny, nx)

    Examples
    --------
    >>> counts = np.arange(4 * 300, dtype=np.uint16).reshape(2, 2, 300)
    >>> counts[1, 1] = counts[0, 0]
    >>> marks = pattern_marks(counts[..., marked_pixels(300)], counts.sum(2), 0, 0)
    >>> bool(marks[0, 0] == marks[1, 1]), len(np.unique(marks))
    (True, 3)
    """
    ny, nx, n = pixels.shape
    values = pixels.reshape(ny * nx, n).view(f"u{pixels.itemsize}").astype(np.uint64)
    weights = _weights(ky, kx, n + 1)
    return (values @ weights[1:]).reshape(ny, nx) + totals.view(np.uint64) * weights[0]


@lru_cache(maxsize=4096)
def _weights(ky: int, kx: int, n: int) -> np.ndarray:
    """Random numbers for a part of the detector, of which sums are taken modulo 2**64."""
    return np.random.default_rng((ky, kx)).integers(0, 2**64, n, dtype=np.uint64)


def repeated(
    totals: np.ndarray,
    marks: np.ndarray,
    read: Callable[[int, int, int, int], np.ndarray],
    used: np.ndarray | None = None,
) -> list[str]:
    """A sentence about patterns that hold the same counts as an earlier one, or none where there are none.

    Parameters
    ----------
    totals, marks : ndarray, shape (ny, nx)
        Sum of each pattern, and its mark. A pattern without a count is blank, and no repeated one.
    read : callable
        Gives the patterns of a window (y0, y1, x0, x1); asked only for those with equal totals and marks.
    used : ndarray of bool, shape (ny, nx), optional
        The patterns that are valid.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(3, (4, 5, 16, 16)).astype(np.uint16)
    >>> counts[2, 1] = counts[2, 0]
    >>> totals = counts.sum((2, 3))
    >>> marks = pattern_marks(counts.reshape(4, 5, -1)[..., marked_pixels(256)], totals, 0, 0)
    >>> repeated(totals, marks, lambda y0, y1, x0, x1: counts[y0:y1, x0:x1])
    ['1 pattern(s) hold the same counts as an earlier one: repeated, at (y, x) = (2, 1) as (2, 0).']
    """
    present = totals.ravel() != 0
    if used is not None:
        present &= used.ravel()
    place = np.flatnonzero(present)
    order = place[np.lexsort((place, marks.ravel()[place], totals.ravel()[place]))]
    earlier, later = order[:-1], order[1:]
    alike = (totals.flat[earlier] == totals.flat[later]) & (marks.flat[earlier] == marks.flat[later])
    pairs = np.stack([later[alike], earlier[alike]], axis=1)
    pairs = pairs[np.argsort(pairs[:, 0])]
    n = min(len(pairs), _MOST_READ)
    chosen = pairs[np.linspace(0, len(pairs) - 1, n).round().astype(int)]

    def pattern(index: int) -> np.ndarray:
        y, x = divmod(index, totals.shape[1])
        return read(y, y + 1, x, x + 1)

    same = [(a, b) for a, b in chosen.tolist() if np.array_equal(pattern(a), pattern(b))]
    if not same:
        return []
    nx = totals.shape[1]
    named = ", ".join(f"{divmod(a, nx)} as {divmod(b, nx)}" for a, b in same[:_NAMED])
    count, more = f"{len(same)} pattern(s)", ", ..." if len(same) > _NAMED else ""
    rest = ""
    if len(pairs) > n:
        count, more = f"At least {count}", ", ..."
        rest = f" {len(pairs)} look the same by their totals and some of their pixels, of which {n} were compared."
    return [f"{count} hold the same counts as an earlier one: repeated, at (y, x) = {named}{more}.{rest}"]
