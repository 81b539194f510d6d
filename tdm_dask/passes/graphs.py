"""Lazy passes over the counts of a scan, as dask graphs of plain arrays.

A pass reads inside its task: a task takes a run of consecutive tiles of the scan, feeds one block after another to a
reduction, and returns only the partial result; these are merged in a tree. Where the counts are not an unchanged
source, the same pass runs over the blocks of their dask array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph

from ..cluster.resources import active_client
from ..errors import CountsError
from ..reading.blocks import InMemory, Source, Window, bounding_box
from ..reading.lazy import runs, source_of
from ..reading.shifts import distinct, moved, reach
from ..reading.stalls import watched
from ..reading.tasks import DataNode, List, Task, TaskRef
from .reductions import Images, Masks, Moments, Reduction, State, Templates, Tiled


@dataclass(frozen=True)
class Descan:
    """Shifts (2, ny, nx) of the patterns of one task, and the window (ky, kx) of shifted pixels that are wanted."""

    shifts: np.ndarray
    window: Window


def run_pass(
    reduction: Reduction,
    source: Source,
    window: Window,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    operand: Any,
    origin: tuple[int, int, int, int] = (0, 0, 0, 0),
    descan: Descan | None = None,
) -> State:
    """The partial result of one task: read a window of the scan, add block after block.

    Parameters
    ----------
    reduction : Reduction
    source : Source
    window : (slice, slice)
        Probe positions of the task, in the whole scan.
    used, pixels : ndarray of bool, optional
        Probe positions (of the window) and detector pixels (of the source) that are needed.
    operand : object
        Templates or masks, of the whole scan or detector.
    origin : tuple of 4 int
        Where the source begins in the scan and on the detector, when it is one block of a larger array.
    descan : Descan, optional
        Shifts of the patterns of the window; `pixels` are those that are read because of them.
    """
    local = tuple(slice(s.start - o, s.stop - o) for s, o in zip(window, origin, strict=False))
    # NaN and infinity in pixels that are used are told apart from sound results at the end, in words.
    with np.errstate(invalid="ignore", over="ignore"):
        state = reduction.start(window, used, operand)
        _feed(reduction, state, source, window, local, used, pixels, operand, origin, descan)
        return reduction.finish(state)


def _feed(
    reduction: Reduction,
    state: State,
    source: Source,
    window: Window,
    local: tuple[slice, ...],
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    operand: Any,
    origin: tuple[int, int, int, int],
    descan: Descan | None,
) -> None:
    elsewhere = any(origin)
    if used is None and descan is None and not elsewhere:
        add_run = getattr(reduction, "add_run", None)
        # What has been read is closed at once: an error would keep it, with its open file, until it is forgotten.
        with closing(watched(source.runs(local, used, pixels), source.name)) as runs:  # type: ignore[arg-type]
            for run in runs:
                n = 0
                while n < len(run):
                    if add_run is not None and run.stored is not None:
                        n = add_run(state, run, run.stored, n, operand)
                    if n < len(run):
                        reduction.add(state, run[n], None, operand)
                        n += 1
        return
    with closing(watched(source.blocks(local, used, pixels), source.name)) as blocks:  # type: ignore[arg-type]
        for block in blocks:
            whole = block.at(origin) if elsewhere else block
            if used is None and descan is None:
                reduction.add(state, whole, None, operand)
                continue
            place = (
                slice(whole.y.start - window[0].start, whole.y.stop - window[0].start),
                slice(whole.x.start - window[1].start, whole.x.stop - window[1].start),
            )
            block_used = None
            if used is not None:
                block_used = used[place]
                if not block_used.any():
                    continue
                if block_used.all():
                    block_used = None
            if descan is None:
                reduction.add(state, whole, block_used, operand)
            else:
                for part, part_used in moved(whole, block_used, descan.shifts[:, *place], descan.window):
                    reduction.add(state, part, part_used, operand)


def _run_on_array(
    reduction: Reduction,
    array: np.ndarray,
    window: Window,
    used: Any,
    pixels: Any,
    operand: Any,
    origin: Any,
    descan: Descan | None = None,
) -> State:
    return run_pass(reduction, InMemory(array), window, used, pixels, operand, origin, descan)


def _merge(reduction: Reduction, *states: State) -> State:
    with np.errstate(invalid="ignore", over="ignore"):
        return functools.reduce(reduction.merge, states[1:], dict(states[0]))


# Bytes that are merged at a time between processes, but for two partial results, and most of these.
MERGED_BYTES, MERGED_MOST = 64 * 2**20, 8


def merged_together(partial_bytes: int | None) -> int:
    """Partial results of so many bytes that are merged at a time: two, for each has the size of a detector at least.

    Between processes a merge is messages to the scheduler and back, and keeps a worker from its next task: then more,
    where they are known to be small.
    """
    if partial_bytes is None or active_client() is None:
        return 2
    return min(max(2, MERGED_BYTES // partial_bytes), MERGED_MOST)


def results_held(parts: int, partial_bytes: int | None = None) -> int:
    """Partial results that wait at a time, at most, where one thread makes so many, and `Pass.merged` merges them.

    Examples
    --------
    >>> [results_held(parts) for parts in (1, 2, 8, 9)]
    [1, 2, 4, 5]
    """
    together, held, left = merged_together(partial_bytes), 1, parts
    while left > 1:
        held += min(together, left) - 1
        left = -(-left // together)
    return held


def _join_all(reduction: Reduction, states: list[State]) -> State:
    return functools.reduce(reduction.join, states[1:], dict(states[0]))


@dataclass(frozen=True)
class Pass:
    """Tasks of one pass, before they are merged: their layer, their keys by place in the scan, and their reduction."""

    name: str
    layer: dict[Any, Any]
    keys: dict[tuple[int, int], Any]
    chunks: tuple[tuple[int, ...], tuple[int, ...]]
    dependencies: list[Any]
    reduction: TaskRef

    def merged(self, partial_bytes: int | None = None) -> TaskRef:
        """Add the tasks that merge all partial results, of so many bytes each where that is known; gives the last."""
        keys, level, together = list(self.keys.values()), 0, merged_together(partial_bytes)
        while len(keys) > 1 or level == 0:
            merged = []
            for n, first in enumerate(range(0, len(keys), together)):
                key = (f"merge-{self.name}", level, n)
                self.layer[key] = Task(key, _merge, self.reduction, *map(TaskRef, keys[first : first + together]))
                merged.append(key)
            keys, level = merged, level + 1
        return TaskRef(keys[0])

    def delayed(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Delayed:
        """`function(*arguments)`, lazy, under a key of its own."""
        self.layer[key] = Task(key, function, *arguments)
        return Delayed(key, HighLevelGraph.from_collections(key, self.layer, self.dependencies))

    def side_by_side(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        used: np.ndarray | None,
        function: Callable[..., np.ndarray],
        *arguments: Any,
    ) -> da.Array:
        """Arrays (*shape, y, x) of the tasks side by side, lazy: `function(state, used, (ny, nx), *arguments)` of each.

        The state is None where no probe position of a task is used.
        """
        edges = [list(pairwise([0, *np.cumsum(c).tolist()])) for c in self.chunks]
        whole = (0,) * len(shape)
        for i, (y0, y1) in enumerate(edges[0]):
            for j, (x0, x1) in enumerate(edges[1]):
                here = None if used is None else used[y0:y1, x0:x1]
                state = TaskRef(self.keys[i, j]) if (i, j) in self.keys else None
                key = (name, *whole, i, j)
                self.layer[key] = Task(key, function, state, here, (y1 - y0, x1 - x0), *arguments)
        graph = HighLevelGraph.from_collections(name, self.layer, self.dependencies)
        return da.Array(graph, name, (*((n,) for n in shape), *self.chunks), dtype=dtype)


def plan_pass(
    array: Any,
    reduction: Reduction,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    operand: Delayed | None,
    shifts: np.ndarray | None,
) -> Pass:
    """One task for each run of tiles of a source, or for each block of a dask array; unneeded ones are left out."""
    source = source_of(array)
    # A pass over counts in memory runs at once and is never looked up: hashing them would take as long as reading them.
    counts: Any = uuid4().hex if isinstance(array, np.ndarray) else array.name if source is None else source
    name = "pass-" + tokenize(counts, reduction, used, pixels, operand, *([] if shifts is None else [shifts]))
    shown = np.ones(array.shape[2:], bool) if pixels is None else pixels
    argument = None if operand is None else TaskRef(operand.key)
    layer: dict[Any, Any] = {}
    keys: dict[tuple[int, int], Any] = {}
    dependencies = [] if operand is None else [operand]
    made = TaskRef(f"reduction-{name}")
    layer[made.key] = DataNode(made.key, reduction)  # once, and not in every task
    if source is not None:
        fraction = 1.0 if pixels is None else max(pixels.mean(), 1e-3)
        chunks = runs(source, float(fraction))
        origin = f"source-{name}"
        layer[origin] = DataNode(origin, source)
        shared = f"pixels-{name}"
        layer[shared] = DataNode(shared, pixels)
        detector_chunks: tuple[tuple[int, ...], ...] = ((source.shape[2],), (source.shape[3],))
    else:
        dependencies.append(array)
        chunks, detector_chunks = array.chunks[:2], array.chunks[2:]
    edges = [list(pairwise([0, *np.cumsum(c).tolist()])) for c in (*chunks, *detector_chunks)]
    for i, (y0, y1) in enumerate(edges[0]):
        for j, (x0, x1) in enumerate(edges[1]):
            window = (slice(y0, y1), slice(x0, x1))
            here = None if used is None else used[window]
            if here is not None:
                if not here.any():
                    continue
                here = None if here.all() else here
            read, more = pixels, []
            if shifts is not None:
                read = reach(shown, distinct(shifts[:, *window], here))
                more = [Descan(shifts[:, *window], bounding_box(shown))]
            parts = []
            for k, (ky0, ky1) in enumerate(edges[2]):
                for m, (kx0, kx1) in enumerate(edges[3]):
                    wanted = None if read is None else read[ky0:ky1, kx0:kx1]
                    if wanted is not None and not wanted.any():
                        continue
                    key = (name, i, j, k, m)
                    if source is not None:
                        start = [(0, 0, 0, 0)] if more else []
                        flags = wanted if more else TaskRef(shared)
                        task = Task(
                            key, run_pass, made, TaskRef(origin), window, here, flags, argument, *start, *more
                        )
                    else:
                        block, place = TaskRef((array.name, i, j, k, m)), (y0, x0, ky0, kx0)
                        task = Task(key, _run_on_array, made, block, window, here, wanted, argument, place, *more)
                    layer[key] = task
                    parts.append(key)
            keys[i, j] = parts[0]
            if len(parts) > 1:
                keys[i, j] = (f"join-{name}", i, j)
                layer[keys[i, j]] = Task(keys[i, j], _join_all, made, List(*map(TaskRef, parts)))
    return Pass(name, layer, keys, chunks, dependencies, made)


def reduced(
    array: Any,
    reduction: Reduction,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    operand: Delayed | None,
    shifts: np.ndarray | None,
    result: Callable[..., Any],
    *arguments: Any,
    partial_bytes: int | None = None,
) -> Delayed:
    """`result(state, *arguments)` of what one pass over the counts merges to, lazy; parameters as in `moments`.

    `partial_bytes` are those of a partial result, where they are known.
    """
    plan = plan_pass(array, reduction, used, pixels, operand, shifts)
    return plan.delayed(f"{result.__name__}-{plan.name}", result, plan.merged(partial_bytes), *arguments)


def parts_of(array: Any, result: Delayed, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Parts of a pass's result by name: computed where the counts are in memory, else dask arrays of these shapes."""
    if isinstance(array, np.ndarray):
        values = result.compute(scheduler="threads")
        return {name: values[name] for name in shapes}
    return {
        name: da.from_delayed(
            result[name],  # type: ignore[index]
            shape,
            dtype=np.int64 if name == "n" else np.float64,
        )
        for name, shape in shapes.items()
    }


def moments(
    array: Any,
    templates: Templates | Delayed | None,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    n_templates: int = 0,
    shifts: np.ndarray | None = None,
) -> dict[str, Any]:
    r"""Correlation of every detector pixel's image with templates, and its mean and standard deviation, in one read.

    .. math:: \rho_{tj} = \frac{1}{n} \sum_i \hat S_{ti} \frac{d_{ij} - \bar d_j}{\sigma_j}

    (eq. 3-5 of "Template-Derived Masks for 4D-STEM", with its 1/p).

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    templates : Templates or Delayed of Templates, optional
        As made by `prepare_templates`.
    used : ndarray of bool, shape (ny, nx), optional
        Probe positions that count. All by default.
    pixels : ndarray of bool, shape (nky, nkx), optional
        Detector pixels that count; all results are 0 at the others. All by default.
    n_templates : int
        Number of templates.
    shifts : ndarray of int, shape (2, ny, nx), optional
        Pixels (ky, kx) by which each pattern lies off. `pixels` are then such as every used pattern has.

    Returns
    -------
    dict
        "n" (), "mean" (nky, nkx), "std" (nky, nkx) and "rho" (n_templates, nky, nkx): NumPy arrays if `array` is
        one, else dask arrays that share one pass.

    Raises
    ------
    CountsError
        When computed, if counts that are used are NaN or infinite.
    """
    detector = array.shape[2:]
    reduction = moments_reduction(array, pixels, shifts)
    if shifts is not None and not reduction.exact and source_of(array) is None:
        # A pixel then has parts in several blocks of the detector, and only exact sums of parts can be joined.
        array = array.rechunk({2: -1, 3: -1})
    operand = None if templates is None else delayed(templates, pure=True, traverse=False)
    result = reduced(
        array, reduction, used, pixels, operand, shifts, moments_result, reduction, detector, pixels,
        partial_bytes=reduction.partial_bytes(n_templates),
    )  # fmt: skip
    shapes = {"n": (), "mean": detector, "std": detector, "rho": (n_templates, *detector)}
    if templates is None:
        del shapes["rho"]
    return parts_of(array, result, shapes)


def moments_reduction(array: Any, pixels: np.ndarray | None, shifts: np.ndarray | None) -> Moments:
    """What gathers moments of an array's counts at some pixels."""
    detector = array.shape[2:]
    source = source_of(array)
    if source is not None and shifts is None:
        window = source.detector_window(pixels)
    else:
        window = (slice(0, detector[0]), slice(0, detector[1])) if pixels is None else bounding_box(pixels)
    dtype = np.dtype(array.dtype)
    return Moments(window, exact=dtype.kind in "ub" and dtype.itemsize <= 2)


def tile_means(
    array: Any, edges: tuple[tuple[int, ...], tuple[int, ...]], used: np.ndarray | None, pixels: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean patterns over tiles of the scan, in one read, computed.

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    edges : (tuple of int, tuple of int)
        Where the tiles begin and end along y and x.
    used, pixels : ndarray of bool, optional
        As in `moments`.

    Returns
    -------
    n : ndarray of int, shape (tiles along y, tiles along x)
        Patterns used.
    mean : ndarray, shape (tiles along y, tiles along x, nky, nkx)
        0 where a tile has no pattern, and beside the window of the pixels.

    Raises
    ------
    CountsError
        If counts that are used are NaN or infinite.
    """
    inner = moments_reduction(array, pixels, None)
    result = reduced(array, Tiled(inner, edges), used, pixels, None, None, dict)
    states = result.compute(scheduler="threads") if isinstance(array, np.ndarray) else result.compute()
    tiles = tuple(len(e) - 1 for e in edges)
    n, mean = np.zeros(tiles, np.int64), np.zeros((*tiles, *array.shape[2:]))
    for tile, state in states.items():
        n[tile] = state["n"]
        mean[(*tile, *inner.pixels)] = inner.mean_variance_cross(state)[0]
    bad = np.asarray(~np.isfinite(mean).all((0, 1)))
    require_finite(bad if pixels is None else bad & pixels)
    return n, mean


def require_finite(bad: np.ndarray) -> None:
    """Raise where flags (ky, kx) of pixels with NaN or infinity are set."""
    if bad.any():
        raise CountsError(
            f"The counts of {int(bad.sum())} detector pixels hold NaN or infinity; mark these pixels or patterns as "
            "not valid, or leave them out by a region."
        )


def moments_result(state: State, reduction: Moments, detector: tuple[int, int], pixels: np.ndarray | None) -> State:
    mean, variance, cross = reduction.mean_variance_cross(state)
    inside = np.ones(mean.shape, bool) if pixels is None else pixels[reduction.pixels]
    require_finite(inside & ~(np.isfinite(mean) & np.isfinite(variance) & np.isfinite(cross).all(0)))
    std = np.sqrt(np.where(inside, variance, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = np.where(std > 0, cross / (state["n"] * std), 0.0)
    result = {"n": np.asarray(state["n"], np.int64)}
    for name, part in (("mean", np.where(inside, mean, 0.0)), ("std", std), ("rho", np.clip(rho, -1.0, 1.0))):
        result[name] = np.zeros((*part.shape[:-2], *detector))
        result[name][(..., *reduction.pixels)] = part
    return result


def lazily(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` of arrays, now where all are in memory, else as a Delayed on whole dask arrays.

    The blocks' own keys are used: `dask.delayed` would optimise each argument apart, and one pass become several.
    """
    if not any(isinstance(a, da.Array) for a in arguments):
        return function(*arguments)
    key = f"{function.__name__}-" + tokenize(*arguments)
    whole = [a.rechunk(a.shape) if isinstance(a, da.Array) else a for a in arguments]
    values = [TaskRef((a.name, *(0,) * a.ndim)) if isinstance(a, da.Array) else a for a in whole]
    lazy = [a for a in whole if isinstance(a, da.Array)]
    layer: dict[Any, Any] = {key: Task(key, function, *values)}
    return Delayed(key, HighLevelGraph.from_collections(key, layer, lazy))  # type: ignore[arg-type]


def images(
    array: Any,
    masks: Masks | Delayed,
    n_masks: int,
    used: np.ndarray | None,
    pixels: np.ndarray | None = None,
    shifts: np.ndarray | None = None,
) -> Any:
    """Images of any number of masks in one read, float64 of shape (n_masks, ny, nx); NaN where a probe is not used.

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    masks : Masks or Delayed of Masks
        With masks at hand, only blocks of counts that a weight touches are read.
    n_masks : int
    used : ndarray of bool, shape (ny, nx), optional
    pixels : ndarray of bool, shape (nky, nkx), optional
        Detector pixels that masks which are not at hand may use.
    shifts : ndarray of int, shape (2, ny, nx), optional
        As in `moments`; the weights are 0 at pixels that not every used pattern has.

    Raises
    ------
    CountsError
        When computed, if counts under a mask are NaN or infinite.
    """
    if isinstance(masks, Masks):
        pixels = np.asarray(masks.weights.any(0))
        if not pixels.any():  # the images are constants, whatever the counts
            pixels[0, 0], shifts = True, None
    operand = delayed(masks, pure=True, traverse=False)
    plan = plan_pass(array, Images(), used, pixels, operand, shifts)
    name = f"images-{plan.name}"
    result = plan.side_by_side(name, (n_masks,), np.float64, used, images_result, TaskRef(operand.key))
    return result.compute(scheduler="threads") if isinstance(array, np.ndarray) else result


def images_result(state: State | None, used: np.ndarray | None, shape: tuple[int, int], masks: Masks) -> np.ndarray:
    """Images (mask, y, x) of one task, from what its pass gave; NaN at probes that are not used."""
    if state is None:
        return np.full((len(masks.weights), *shape), np.nan)
    out = state["images"]
    bad = ~np.isfinite(out)
    if bad.any():
        raise CountsError(
            f"The counts under the mask hold NaN or infinity at {int(bad.any(0).sum())} probe positions; mark these "
            "pixels or patterns as not valid, or set their weights to 0."
        )
    out = out - masks.offsets[:, None, None]
    if used is not None:
        out[:, ~used] = np.nan
    return out
