"""Binomial thinning of counts on plain NumPy arrays, compiled by Numba: which electrons of each count are kept.

There is no stream of random numbers. The random words of a count are a hash of the seed and of its place (y, x, ky,
kx), so that any part of a scan is thinned alike whatever is thinned beside it, before it, or at the same time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# SplitMix64 (Steele, Lea and Flood, 2014): the odd fraction of 2^64 by which its state goes on, and its output mixer.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

# Electrons that are decided one by one; beyond, one draw by rejection costs less than so many bits.
COUNTED = 1024

_ZERO, _ONE, _HALF_WORD, _WORD = np.uint64(0), np.uint64(1), np.uint64(32), np.uint64(64)
_MOST = np.uint64(63)
_TOP_BIT = np.uint64(1 << 63)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@njit(nogil=True, cache=True, inline="always")
def _mixed(z):
    """The output mixer of SplitMix64: a bijection of 64 bits whose outputs look independent."""
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
def _ones(z):
    """How many of 64 bits are set, in the form that compilers know as one instruction."""
    z = z - ((z >> _ONE) & np.uint64(0x5555555555555555))
    z = (z & np.uint64(0x3333333333333333)) + ((z >> np.uint64(2)) & np.uint64(0x3333333333333333))
    z = (z + (z >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (z * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(nogil=True, cache=True, inline="always")
def _pattern_key(seed, y, x):
    key = _mixed(seed + _STEP)
    key = _mixed(key + _STEP * (np.uint64(y) + _ONE))
    return _mixed(key + _STEP * (np.uint64(x) + _ONE))


@njit(nogil=True, cache=True, inline="always")
def _uniform(word):
    """A float64 strictly between 0 and 1."""
    return (np.float64(word >> np.uint64(12)) + 0.5) * 2.0**-52


@njit(nogil=True, cache=True)
def _some(first, electrons, bits):
    """Successes of up to `COUNTED` trials of probability bits / 2^64, 64 at a time.

    A trial succeeds where a random binary fraction is below the probability: the two are compared bit by bit, a random
    word for one bit of 64 trials, until every trial is decided. `first` is the first random word.
    """
    kept, left, n = _ZERO, electrons, _ZERO
    while left > _ZERO:
        lanes = _ALL if left >= _WORD else (_ONE << left) - _ONE
        left -= min(left, _WORD)
        rest = bits
        while lanes != _ZERO and rest != _ZERO:
            word = _mixed(first + _STEP * n) if n else first
            if rest & _TOP_BIT:
                kept += _ones(lanes & ~word)
                lanes &= word
            else:
                lanes &= ~word
            rest <<= _ONE
            n += _ONE
    return kept


@njit(nogil=True, cache=True)
def _draw_halves(base, row, kept):
    """As `_some` for a probability of one half, of a row, without branches; False where a pixel has over 63 trials."""
    most = _ZERO
    for d in range(len(row)):
        n = np.uint64(max(row[d], row.dtype.type(0)))
        most = max(most, n)
        word = ~_mixed(base + _STEP * np.uint64(d))
        kept[d] = _ones((word << (_MOST - min(n, _MOST))) << _ONE)
    return most <= _MOST


@njit(nogil=True, cache=True)
def _stirling_rest(k):
    """What Stirling's formula lacks: log(k!) - [log(sqrt(2 pi)) + (k + 1/2) log(k + 1) - (k + 1)]."""
    z = k + 1.0
    if k < 10:
        return math.lgamma(z) - (0.91893853320467274 + (k + 0.5) * math.log(z) - z)
    return (1 / 12 - (1 / 360 - 1 / 1260 / z**2) / z**2) / z


@njit(nogil=True, cache=True)
def _many(first, electrons, probability):
    """Successes of any number of trials, as a float64: by rejection, or by the gaps between rare successes.

    The rejection is BTRS of W. Hörmann, J. Stat. Comput. Simul. 46 (1993) 101: exact but for the rounding of float64.
    """
    p = min(probability, 1.0 - probability)
    n, word = electrons, first
    step = _ZERO
    if n * p < 10:
        found, place = 0.0, 0.0
        while True:
            place += math.floor(math.log(_uniform(word)) / math.log1p(-p)) + 1
            if place > n:
                break
            found += 1
            step += _ONE
            word = _mixed(first + _STEP * step)
    else:
        spread = math.sqrt(n * p * (1 - p))
        b = 1.15 + 2.53 * spread
        a = -0.0873 + 0.0248 * b + 0.01 * p
        middle = n * p + 0.5
        ratio = p / (1 - p)
        m = math.floor((n + 1) * p)
        while True:
            u = _uniform(word) - 0.5
            v = _uniform(_mixed(first + _STEP * (step + _ONE)))
            step += np.uint64(2)
            word = _mixed(first + _STEP * step)
            edge = 0.5 - abs(u)
            found = math.floor((2 * a / edge + b) * u + middle)
            if edge >= 0.07 and v <= 0.92 - 4.2 / b:
                break
            if found < 0 or found > n:
                continue
            v = math.log(v * (2.83 + 5.1 / b) * spread / (a / edge**2 + b))
            limit = (
                (m + 0.5) * math.log((m + 1) / (ratio * (n - m + 1)))
                + (n + 1) * math.log((n - m + 1) / (n - found + 1))
                + (found + 0.5) * math.log(ratio * (n - found + 1) / (found + 1))
                + (_stirling_rest(m) + _stirling_rest(n - m))
                - (_stirling_rest(found) + _stirling_rest(n - found))
            )
            if v <= limit:
                break
    return found if p == probability else n - found


@njit(nogil=True, cache=True)
def thin_counts(
    counts: np.ndarray,
    place: tuple[int, int, int, int],
    seed: np.uint64,
    bits: np.uint64,
    rest: bool,
    out: np.ndarray,
) -> None:
    """Keep every electron of integer counts, one count an electron, with probability bits / 2^64.

    Parameters
    ----------
    counts : ndarray of integers, shape (ny, nx, nky, nkx)
        C-contiguous. Counts below 0 keep nothing.
    place : (y, x, ky, kx)
        Where the first count lies in the scan and on the detector.
    seed, bits : uint64
    rest : bool
        Give what is not kept instead.
    out : ndarray like `counts`
        Overwritten.
    """
    ny, nx, nky, nkx = counts.shape
    probability = np.float64(bits) * 2.0**-64
    convert = counts.dtype.type
    for a in range(ny):
        for b in range(nx):
            key = _pattern_key(seed, place[0] + a, place[1] + b)
            for c in range(nky):
                base = key + _STEP * ((np.uint64(place[2] + c) << _HALF_WORD) + np.uint64(place[3]) + _ONE)
                row, kept = counts[a, b, c], out[a, b, c]
                if bits == _TOP_BIT and _draw_halves(base, row, kept):
                    if rest:
                        for d in range(nkx):
                            kept[d] = row[d] - kept[d]
                    continue
                for d in range(nkx):
                    n = np.uint64(max(row[d], convert(0)))
                    k = _ZERO
                    if n > _ZERO:
                        word = _mixed(base + _STEP * np.uint64(d))
                        if n <= COUNTED:
                            k = _some(word, n, bits)
                        else:
                            k = np.uint64(_many(word, np.float64(n), probability))
                    kept[d] = row[d] - convert(k) if rest else convert(k)


@njit(nogil=True, cache=True)
def thin_scaled(
    counts: np.ndarray,
    place: tuple[int, int, int, int],
    seed: np.uint64,
    bits: np.uint64,
    rest: bool,
    gain: float,
    whole: bool,
    out: np.ndarray,
) -> None:
    """As `thin_counts`, of counts that are floats, or several to an electron: rint(count / gain) electrons.

    What is kept is at most the count, in whole numbers where `whole`, and what is not kept is the count minus it, so
    that the two add up to the count exactly. NaN and infinity go through.
    """
    ny, nx, nky, nkx = counts.shape
    probability = np.float64(bits) * 2.0**-64
    convert = out.dtype.type
    for a in range(ny):
        for b in range(nx):
            key = _pattern_key(seed, place[0] + a, place[1] + b)
            for c in range(nky):
                base = key + _STEP * ((np.uint64(place[2] + c) << _HALF_WORD) + np.uint64(place[3]) + _ONE)
                for d in range(nkx):
                    count = counts[a, b, c, d]
                    value = np.float64(count)
                    if not math.isfinite(value):
                        out[a, b, c, d] = count
                        continue
                    electrons = np.rint(value / gain)
                    k = 0.0
                    if electrons > 0:
                        word = _mixed(base + _STEP * np.uint64(d))
                        if electrons <= COUNTED:
                            k = np.float64(_some(word, np.uint64(electrons), bits))
                        else:
                            k = _many(word, electrons, probability)
                    amount = np.rint(k * gain) if whole else k * gain
                    kept = convert(0)
                    if k > 0:
                        kept = count if amount >= value else convert(amount)
                    left = convert(count - kept)
                    # Of floats, the difference is rounded, and what is kept is what it leaves.
                    out[a, b, c, d] = left if rest else convert(count - left)
