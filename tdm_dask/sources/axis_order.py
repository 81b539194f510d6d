"""Whether an array stores the scan or the detector first: by what was asked, its axes, or a few of its counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import SourceError
from ..reading.blocks import Source
from .calibration_facts import clean_unit, is_reciprocal, length
from .vendor import Request

# Where (y, x, ky, kx) are among the dims of an array that stores the detector first.
DETECTOR_FIRST = (2, 3, 0, 1)
ABOUT_DETECTOR_FIRST = "The file stores the detector first; each pattern is gathered from all over the file."

_DETECTOR = re.compile(r"(k|q|camera|det|detector|diffraction|diff)[_ ]?[xy]", re.IGNORECASE)
_SCAN = re.compile(r"((r|scan|probe|real|sample)[_ ]?)?[xy]", re.IGNORECASE)

_OFFER = "the detector's axes seem to come first; if so, open it with detector_first=True."

# Places along each of two axes that are compared, and fewer where they cost more bytes than this to read.
_PLACES, _FEWEST_PLACES = 8, 4
_SAMPLE_BYTES = 64 * 2**20
# Sums over the pixels of a detector differ as much as this between pixels (standard deviation over mean), and those
# over a scan's patterns hardly.
_UNEVEN, _EVEN, _TIMES_EVEN = 0.6, 0.4, 0.3


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of a scan, or of its frames, lie in an array.

    Attributes
    ----------
    axes : list of four mappings
        In the order (y, x, ky, kx).
    detector_first : bool or None
        None where nothing says it, or there is no choice.
    is_known : bool
        Whether the array, the format or the caller says it.
    """

    axes: list[Mapping[str, Any]]
    detector_first: bool | None
    is_known: bool

    @property
    def order(self) -> tuple[int, ...]:
        """Where (y, x, ky, kx) are among the array's dims; () as they stand."""
        return DETECTOR_FIRST if self.detector_first else ()

    @property
    def findings(self) -> list[str]:
        return [ABOUT_DETECTOR_FIRST] if self.detector_first else []

    @property
    def doubts(self) -> tuple[str, ...]:
        return () if self.is_known else tuple(_doubts_about_units(self.axes))


def axis_order(
    request: Request, axes: Sequence[Mapping[str, Any]], *, frames: bool, known: bool = False
) -> AxisOrder:
    """How the last axes of an array lie: those of a stack of frames, or of a scan.

    Parameters
    ----------
    axes : sequence of mapping
        Of the array's dims; the last two of frames, the last four of a scan count.
    frames : bool
        Whether the array is (frame, ky, kx).
    known : bool, default False
        Whether the reader knows that the axes are (y, x, ky, kx).
    """
    if frames:
        return AxisOrder([{}, {}, *axes[-2:]], None, True)
    four = list(axes[-4:])
    if known:
        return AxisOrder(four, None, True)
    detector_first = is_detector_first(request, four)
    if detector_first:
        four = [four[i] for i in DETECTOR_FIRST]
    return AxisOrder(four, detector_first, detector_first is not None)


def is_detector_first(request: Request, axes: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the detector's axes are the first two of four, by what was asked for, by their units, or by their names.

    None where nothing says it.
    """
    if request.detector_first is not None:
        return request.detector_first
    units = [clean_unit(axis.get("units")) for axis in axes]
    reciprocal = [is_reciprocal(unit) for unit in units]
    if all(reciprocal[2:]) and not any(reciprocal[:2]):
        return False
    if all(reciprocal[:2]) and all(length(1.0, unit) for unit in units[2:]):
        return True
    names = [str(axis.get("name") or "") for axis in axes]
    for first, pairs in ((False, (_SCAN, _DETECTOR)), (True, (_DETECTOR, _SCAN))):
        if all(pairs[i // 2].fullmatch(name) for i, name in enumerate(names)):
            return first
    return None


def _doubts_about_units(axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence if the axes that are taken for those of the scan have the unit of a detector's."""
    units = [clean_unit(axis.get("units")) for axis in axes[:2]]
    if not all(map(is_reciprocal, units)):
        return []
    return [f"The first two axes are in {units[0]} and the last two are not: {_OFFER}"]


def doubts_about_order(source: Source, used: np.ndarray | None = None) -> list[str]:
    """A sentence if a few counts look as if the array had its detector's axes first; nothing is stated by default.

    A pattern's total hardly changes over a scan, while the pixels of a detector count very differently: the few places
    of the first two axes that are read are compared with one another, and their mean over the last two axes likewise.

    Parameters
    ----------
    source : Source
        The array with its scan first.
    used : ndarray of bool, shape (ny, nx), optional
        Probe positions that have a pattern.
    """
    cost = source.pattern_bytes * (1 if source.random_access else source.tile[0] * source.tile[1])
    n = _PLACES
    while n >= _FEWEST_PLACES and n * n * cost > _SAMPLE_BYTES:
        n -= 1
    if n < _FEWEST_PLACES or min(source.shape) < _FEWEST_PLACES:
        return []
    places = [np.unique(np.linspace(0, size - 1, n).round().astype(int)).tolist() for size in source.shape[:2]]
    grid = [(y, x) for y in places[0] for x in places[1] if used is None or used[y, x]]
    try:
        slices = [source.read(y, y + 1, x, x + 1)[0, 0] for y, x in grid]
    except SourceError:
        return []  # a part that is damaged is an error where it is read
    totals = np.array([part.sum(dtype=np.float64) for part in slices])
    pixels = sum(slices, np.zeros(source.shape[2:]))
    edges = [np.unique(np.linspace(0, size, n + 1).round().astype(int)) for size in pixels.shape]
    tiles = np.array([pixels[a:b, c:d].mean() for a, b in pairwise(edges[0]) for c, d in pairwise(edges[1])])
    # Few counts differ between tiles as much as between places, and raise no doubt.
    if not (np.isfinite(totals).all() and totals.mean() > 0 and tiles.mean() > 0):
        return []
    between_first, between_last = totals.std() / totals.mean(), tiles.std() / tiles.mean()
    if between_first < _UNEVEN or between_last > min(_EVEN, _TIMES_EVEN * between_first):
        return []
    return [
        f"At {len(grid)} places of the first two axes, sums over the last two differ by {between_first:.0%}, as those "
        f"of a detector's pixels do, and over the last two axes by only {between_last:.0%}, as an image does: {_OFFER}"
    ]
