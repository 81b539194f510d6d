"""Reductions of a user's own in a pass: what they are given of the counts, and what is made of what they give.

A user's reduction knows neither tiles of a store nor flags nor shifts: it is given blocks of patterns that are used,
with 0 at pixels that are not. It is tried on a few made-up patterns before anything is read, which says what its
result is and finds most of its mistakes.
"""

from __future__ import annotations

import copy
import gc
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any
from uuid import uuid4

import cloudpickle
import dask.array as da
import numpy as np

from ..errors import ReductionError, in_words
from ..reading.blocks import Block, Window
from ..reading.memory import Buffers
from .graphs import plan_pass
from .own_results import (
    Form,
    OwnReduction,
    arrays_of,
    as_array,
    by_name,
    called,
    kind_of,
    name_of,
    state_copied,
    wrong_shape,
)
from .reductions import State, rows_of
from .second_moments import unsplit_detector
from .whole_patterns import Whole

# For so long another thread may look at the frames of a method that has ended, as a worker's profiler does, and keep
# with them the counts that the method was given.
LOOKED_AT_SECONDS = 5.0

# Probe positions (y, x) of the part of a scan that a reduction is tried on.
_TRIED = (2, 3)


@dataclass(frozen=True)
class PatternBlock:
    """Patterns that are used, of a tile of the detector; the counts are overwritten when the next block comes.

    Attributes
    ----------
    counts : ndarray, shape (pattern, nky, nkx)
        Native-endian and read-only, booleans as uint8; 0 at pixels that are not used.
    detector : (slice, slice)
        The tile's place on the detector: `array[..., *block.detector]` of an array (..., ky, kx) is its part.
    """

    counts: np.ndarray
    detector: Window
    _place: Window
    _used: np.ndarray | None
    _part: Window
    _made_up: bool = False

    @cached_property
    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        shape = tuple(s.stop - s.start for s in self._place)
        y, x = np.nonzero(np.ones(shape, bool) if self._used is None else self._used)
        return y + self._place[0].start, x + self._place[1].start

    @property
    def y(self) -> np.ndarray:
        """Line of each pattern in the scan, shape (pattern,)."""
        return self._positions[0]

    @property
    def x(self) -> np.ndarray:
        """Place of each pattern in its line, shape (pattern,)."""
        return self._positions[1]

    @property
    def place_in_words(self) -> str:
        """Where the patterns are, for messages."""
        if self._made_up:
            return "the made-up patterns that it is tried on before anything is read"
        y, x, ky, kx = (f"{s.start} to {s.stop - 1}" for s in (*self._place, *self.detector))
        return f"patterns of y {y}, x {x} and pixels of ky {ky}, kx {kx}"

    @property
    def scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Places (y, x) of the patterns in a state (..., y, x), which is one of a part of the scan."""
        return self.y - self._part[0].start, self.x - self._part[1].start


class _Lent:
    """The memory of a block's counts, to read: it lives as long as any array of it."""

    def __init__(self, counts: np.ndarray) -> None:
        self._counts = counts
        address, _ = counts.__array_interface__["data"]
        self.__array_interface__ = counts.__array_interface__ | {"data": (address, True)}


class Merged(dict[str, Any]):
    """A partial result that a merge has just made. One that a task hands on is another's, who may need it again."""


@dataclass(frozen=True)
class OwnReductions:
    """Reductions of a user's own as one of a pass: several of them see the same blocks.

    Parameters
    ----------
    reductions : tuple of OwnReduction
    detector : (int, int)
        Its shape.
    pixels : ndarray of bool, shape (nky, nkx), optional
        Pixels that are used.
    forms : tuple of Form
        What each of them gives; none while they are tried.
    token : str
        What tells it from all others: nothing can be known of a user's code by its name.
    """

    reductions: tuple[OwnReduction, ...]
    detector: tuple[int, int]
    pixels: np.ndarray | None
    forms: tuple[Form, ...] = ()
    token: str = field(default_factory=lambda: uuid4().hex)

    def __dask_tokenize__(self) -> str:
        return self.token

    def start(self, window: Window, used: np.ndarray | None, operand: None) -> State:
        part = (window[0].stop - window[0].start, window[1].stop - window[1].start)
        shapes = {"scan": part, "detector": self.detector, "other": None}
        # A copy, for it may be an attribute of the reduction, which other tasks start from as well.
        states = [state_copied(r, called(r, "start", shapes[kind_of(r)])) for r in self.reductions]
        return {"states": states, "window": window, "whole": Whole(self.detector, self.pixels), "zeroed": Buffers()}

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: None) -> None:
        tile, place = (block.ky, block.kx), (block.y, block.x)
        ny, nx, *sizes = block.counts.shape
        counts = rows_of(block.counts.reshape(ny * nx, -1), used).reshape(-1, *sizes)
        if not all(r.whole_patterns for r in self.reductions):
            self._add(state, self._zeroed(counts, tile, state["zeroed"]), tile, place, used, whole=False)
        if any(r.whole_patterns for r in self.reductions):
            patterns = state["whole"].take(counts, tile, place, used)
            if patterns is not None:
                whole = (slice(0, self.detector[0]), slice(0, self.detector[1]))
                self._add(state, patterns, whole, place, used, whole=True)
                state["whole"].give_back(patterns)

    def _add(
        self, state: State, counts: np.ndarray, tile: Window, place: Window, used: np.ndarray | None, *, whole: bool
    ) -> None:
        for n, reduction in enumerate(self.reductions):
            if reduction.whole_patterns == whole:
                lent = _Lent(counts)
                block = PatternBlock(np.asarray(lent), tile, place, used, state["window"], not self.forms)
                state["states"][n] = called(reduction, "add", state["states"][n], block)
                kept = weakref.ref(lent)
                del lent, block
                if kept() is not None:
                    _require_gone(kept, reduction)

    def _zeroed(self, counts: np.ndarray, tile: Window, buffers: Buffers) -> np.ndarray:
        """Counts (pattern, ky, kx) of a tile, with 0 at pixels that are not used."""
        if self.pixels is None or self.pixels[tile].all():
            return counts
        out = buffers.take("zeroed", counts.shape, counts.dtype)
        np.copyto(out, counts)
        out[:, ~self.pixels[tile]] = 0
        return out

    def finish(self, state: State) -> State:
        """What a task hands on: of a result that is laid out over the scan, its part."""
        state["whole"].require_whole()
        part = tuple(s.stop - s.start for s in state["window"])
        states = list(state["states"])
        for n, (reduction, form) in enumerate(zip(self.reductions, self.forms, strict=False)):
            if form.kind == "scan":
                states[n] = arrays_of(reduction, states[n], form, part)
        return {"states": states}

    def join(self, first: State, second: State) -> State:
        raise TypeError("The blocks of a user's reduction have the detector whole; there are no parts of it to join.")

    def merge(self, first: State, second: State) -> State:
        pairs = zip(self.reductions, first["states"], second["states"], strict=True)
        states: list[Any] = []
        for reduction, one, other in pairs:
            if kind_of(reduction) == "scan":  # lies side by side, and goes no further
                states.append(None)
                continue
            # Either may become a part of what is merged, and be changed with it by the next merge.
            own, others = (
                of if isinstance(state, Merged) else state_copied(reduction, of)
                for state, of in ((first, one), (second, other))
            )
            states.append(called(reduction, "merge", own, others))
        return Merged(states=states)

    def finished(self, state: State, n: int) -> dict[str, np.ndarray]:
        """Arrays of a reduction by name, of what all tasks merged to."""
        form = self.forms[n]
        found = arrays_of(
            self.reductions[n], state_copied(self.reductions[n], state["states"][n]), form, self.detector
        )
        if form.kind == "detector" and self.pixels is not None:
            for name, values in found.items():
                found[name] = np.where(self.pixels, values, np.asarray(form.fills[name], values.dtype))
        return found


def _require_gone(kept: weakref.ref[_Lent], reduction: OwnReduction) -> None:
    """Raise if a reduction has kept counts that the next block will overwrite."""
    gc.collect()  # it may wait in a cycle
    end = time.monotonic() + LOOKED_AT_SECONDS
    while kept() is not None:
        if time.monotonic() > end:
            raise ReductionError(
                f"{name_of(reduction)}.add has kept a part of block.counts, which the next block overwrites; keep a "
                "copy, such as block.counts[0].copy()."
            )
        time.sleep(0.005)


def own_reductions(
    array: Any,
    reductions: Sequence[OwnReduction],
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    shifts: np.ndarray | None,
) -> list[dict[str, da.Array]]:
    """Results of a user's reductions, all in one read: dask arrays by name, a single array by "".

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    reductions : sequence of OwnReduction
    used, pixels, shifts
        As in `passes.graphs.moments`.

    Raises
    ------
    ReductionError
        If a reduction is none, or fails on a few made-up patterns. When computed, if it fails on those of the scan.
    """
    array = unsplit_detector(array)
    detector = (array.shape[2], array.shape[3])
    forms = tuple(form_of(r, array.shape, array.dtype, used, pixels) for r in reductions)
    own = OwnReductions(tuple(reductions), detector, pixels, forms)
    plan = plan_pass(array, own, used, pixels, None, shifts)
    merged = None if all(form.kind == "scan" for form in forms) else plan.merged()
    found: list[dict[str, da.Array]] = []
    for n, form in enumerate(forms):
        key = f"{name_of(reductions[n])}-{n}-{own.token}"
        arrays = {}
        if form.kind == "scan":
            for name, shape in form.shapes.items():
                arguments = (n, name, form)
                arrays[name] = plan.side_by_side(f"{key}-{name}", shape, form.dtypes[name], used, laid_out, *arguments)
        else:
            result: Any = plan.delayed(key, OwnReductions.finished, plan.reduction, merged, n)
            last = detector if form.kind == "detector" else ()
            for name, shape in form.shapes.items():
                arrays[name] = da.from_delayed(result[name], (*shape, *last), form.dtypes[name])
        found.append(arrays)
    return found


def laid_out(
    state: State | None, used: np.ndarray | None, shape: tuple[int, int], n: int, name: str, form: Form
) -> np.ndarray:
    """One task's part of an array (..., y, x) of a reduction, filled where no pattern was used."""
    if state is not None and used is None:
        return np.asarray(state["states"][n][name])
    out = np.full((*form.shapes[name], *shape), form.fills[name], form.dtypes[name])
    if state is not None:
        out[..., used] = state["states"][n][name][..., used]
    return out


def form_of(
    reduction: OwnReduction,
    shape: tuple[int, ...],
    dtype: Any,
    used: np.ndarray | None = None,
    pixels: np.ndarray | None = None,
) -> Form:
    """What a reduction gives for counts of a shape and dtype, by trying a copy of it on a few made-up patterns.

    Raises
    ------
    ReductionError
        If it cannot be sent to other processes, fails, or does not give arrays of its dims.
    """
    dims, kind = tuple(reduction.dims), kind_of(reduction)
    own = OwnReductions((_copied(reduction),), (shape[2], shape[3]), pixels)
    state, part = _tried(own, shape, np.dtype(dtype))
    finished = called(own.reductions[0], "finish", state)
    last = {"scan": part, "detector": own.detector, "other": ()}[kind]
    some_left_out = {"scan": used, "detector": pixels, "other": None}[kind] is not None
    shapes, dtypes, fills = {}, {}, {}
    for name, value in by_name(reduction, finished).items():
        values = as_array(reduction, name, value)
        leading = values.shape[: values.ndim - len(last)]
        if values.ndim != len(dims) or values.shape != (*leading, *last):
            wrong_shape(reduction, name, values, last)
        shapes[name], dtypes[name] = leading, values.dtype
        fills[name] = None if values.dtype.kind == "O" else 0 if kind == "detector" else np.nan
        if reduction.fill is not None:
            fills[name] = reduction.fill
        if some_left_out:
            dtypes[name] = _dtype_with(reduction, fills[name], values.dtype)
    if not shapes:
        raise ReductionError(f"{name_of(reduction)}.finish gave no array; expected one at least.")
    return Form(kind, shapes, dtypes, fills)


def _dtype_with(reduction: OwnReduction, fill: Any, dtype: np.dtype) -> np.dtype:
    """The dtype of a result that holds its fill as well: integers become float64 beside NaN."""
    if dtype.kind == "O":
        return dtype
    if dtype.kind in "biu" and isinstance(fill, (float, np.floating)) and np.isnan(fill):
        return np.dtype(np.float64)
    try:
        held = np.full((), fill, dtype)[()]
    except (TypeError, ValueError, OverflowError):
        held = None
    if held is None or not (held == fill or (held != held and fill != fill)):
        raise ReductionError(
            f"{name_of(reduction)}.fill is {fill!r}, which a result of dtype {dtype} cannot hold; choose another."
        )
    return dtype


def _copied(reduction: OwnReduction) -> OwnReduction:
    """A copy of a reduction, after making sure that it can be sent to other processes.

    Loading what was made to be sent would put other functions into the very class, which no debugger finds.
    """
    try:
        cloudpickle.dumps(reduction)
        return copy.deepcopy(reduction)
    except Exception as error:
        raise ReductionError(
            f"{name_of(reduction)} cannot be sent to other processes ({in_words(error)}); keep what cannot be copied, "
            "such as an open file, out of it."
        ) from error


def _tried(own: OwnReductions, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Any, tuple[int, int]]:
    """What a reduction makes of made-up patterns in two tiles of the detector, and the part of the scan they fill.

    All but one of the positions are used, and merging joins two states, as where tasks share a scan.
    """
    [reduction] = own.reductions
    part = (min(_TRIED[0], shape[0]), min(_TRIED[1], shape[1]))
    window = (slice(0, part[0]), slice(0, part[1]))
    used = np.ones(part, bool)
    used[-1, -1] = used.size == 1
    states = []
    for _ in range(1 if kind_of(reduction) == "scan" else 2):
        state = own.start(window, used, None)
        with np.errstate(all="ignore"):
            for tile in _halves(own):
                pattern = _made_up(own.detector, dtype)[tile]
                counts = np.broadcast_to(pattern, (*part, *pattern.shape))
                own.add(state, Block(*window, *tile, counts), used, None)
        states.append(own.finish(state))
    with np.errstate(all="ignore"):
        merged = states[0] if len(states) == 1 else own.merge(*states)
    return merged["states"][0], part


def _halves(own: OwnReductions) -> list[Window]:
    """The detector in two tiles, where it has two columns of pixels, without those in which no pixel is used."""
    nky, nkx = own.detector
    edges = [0, nkx // 2, nkx] if nkx > 1 else [0, nkx]
    tiles = [(slice(0, nky), slice(a, b)) for a, b in pairwise(edges)]
    return [tile for tile in tiles if own.pixels is None or own.pixels[tile].any()]


def _made_up(detector: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A pattern that no sum, peak finder or centre of mass stumbles over: 1 everywhere, and more in the middle."""
    y, x = (np.linspace(-2, 2, n) if n > 1 else np.zeros(1) for n in detector)
    values = 1 + np.rint(20 * np.exp(-(y[:, None] ** 2) - x**2))
    return values.astype(dtype.newbyteorder("="))
