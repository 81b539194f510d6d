"""Lazy reductions over the counts of a scan, as dask graphs of plain arrays.

A reduction is a value: what a partial result starts from, what one block adds, how two partial results merge, what
the end result is. One pass serves any of them. A pass reads inside its task: a task takes a run of consecutive tiles
of the scan, feeds one block after another to the reduction, and returns only the partial result; these are merged in
a tree. Where the counts are not an unchanged source, the same pass runs over the blocks of their dask array.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, List, Task, TaskRef
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph

from . import kernels
from .blocks import Block, InMemory, Source, Window, bounding_box, runs, source_of
from .errors import CountsError, MaskError, TemplateError

State = dict[str, Any]

# Partial results that one task merges.
SPLIT_EVERY = 8
# Counts up to this are multiplied in float32, shifted by one pattern; larger ones in float64.
FLOAT32_COUNTS = 255


class Reduction(Protocol):
    """What a pass makes of the blocks that it reads. The operand is templates, or masks, in memory."""

    def start(self, window: Window, used: np.ndarray | None, operand: Any) -> State:
        """An empty partial result for a window of the scan; `used` flags its probe positions that count."""

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Any) -> None:
        """Add one block; `used` flags its probe positions that count, None where all do."""

    def finish(self, state: State) -> State:
        """The partial result of one task, as it is handed on."""

    def join(self, first: State, second: State) -> State:
        """Two partial results of the same probe positions, of other detector pixels; may change the first."""

    def merge(self, first: State, second: State) -> State:
        """Two partial results of other probe positions; may change the first."""


@dataclass(frozen=True)
class Templates:
    """Templates for a pass (template, ny, nx), as they were given, and what standardises them."""

    values: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def weights(self, y: slice, x: slice, used: np.ndarray | None) -> np.ndarray:
        """Standardised weights (template, probe) of a tile of the scan, of its used probe positions alone."""
        part = self.values[:, y, x].reshape(len(self.values), -1)
        part = part if used is None else part[:, used.ravel()]
        return (part - self.mean[:, None]) * self.scale[:, None]


@dataclass(frozen=True)
class Moments:
    r"""Mean and variance of every detector pixel, and its products with templates, in one read.

    For counts d (probe i, pixel j) and templates S (template t): n, :math:`\sum_i d_{ij}`, :math:`\sum_i d_{ij}^2`
    and :math:`\sum_i S_{ti} d_{ij}`. Counts of up to 16 bit are summed exactly in 64-bit integers; wider ones
    shifted by the mean of a task's first block, and merged between tasks by the rule of Chan, Golub and LeVeque
    (1979).

    Parameters
    ----------
    pixels : (slice, slice)
        Window (ky, kx) of the detector that is kept.
    exact : bool
        Whether the counts are unsigned integers of at most 16 bit.
    """

    pixels: Window
    exact: bool

    def start(self, window: Window, used: np.ndarray | None, operand: Templates | None) -> State:
        shape = tuple(s.stop - s.start for s in self.pixels)
        n = math.prod(s.stop - s.start for s in window) if used is None else int(used.sum())
        weights = np.zeros((0, n)) if operand is None else operand.weights(*window, used)
        state: State = {
            "n": n,
            "weight": weights.astype(self.precision).sum(1, dtype=np.float64),
            "cross": np.zeros((len(weights), *shape)),
        }
        if self.exact:
            return state | {"total": np.zeros(shape, np.uint64), "squares": np.zeros(shape, np.uint64)}
        return state | {
            "shift": np.zeros(shape),
            "total": np.zeros(shape),
            "squares": np.zeros(shape),
            "seen": np.zeros(shape, bool),
        }

    @property
    def precision(self) -> type:
        """Precision of the products within one block."""
        return np.float32 if self.exact else np.float64

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Templates | None) -> None:
        matrix = _used_rows(block, used)
        weights = np.zeros((len(matrix), 0), self.precision)
        if operand is not None:
            weights = np.ascontiguousarray(operand.weights(block.y, block.x, used).T, self.precision)
        place = tuple(
            slice(s.start - p.start, s.stop - p.start) for s, p in zip((block.ky, block.kx), self.pixels, strict=True)
        )
        for first in range(0, len(matrix), kernels.MAX_PATTERNS):
            rows = slice(first, first + kernels.MAX_PATTERNS)
            self._add_rows(state, place, matrix[rows], weights[rows])

    def _add_rows(self, state: State, place: tuple[slice, ...], matrix: np.ndarray, weights: np.ndarray) -> None:
        pixels = matrix.shape[1]
        tile = state["total"][place].shape
        if self.exact:
            total, squares = np.zeros(pixels, np.uint64), np.zeros(pixels, np.uint64)
            kernels.exact_sums(matrix, total, squares)
            shift = np.rint(total / len(matrix))
        else:
            if not state["seen"][place].all():
                state["seen"][place] = True
                state["shift"][place] = matrix.mean(0, dtype=np.float64).reshape(tile)
            shift = state["shift"][place].ravel()
            total, squares = np.zeros(pixels), np.zeros(pixels)
            kernels.shifted_sums(matrix, _input(shift), total, squares)
        state["total"][place] += total.reshape(tile)
        state["squares"][place] += squares.reshape(tile)
        if weights.shape[1]:
            cross = np.zeros((weights.shape[1], pixels))
            kernels.cross_sums(matrix, _input(weights), _input(shift.astype(self.precision)), cross)
            if self.exact:
                cross += weights.sum(0, dtype=np.float64)[:, None] * shift
            state["cross"][:, *place] += cross.reshape(-1, *tile)

    def finish(self, state: State) -> State:
        if self.exact or not state["n"]:
            return state
        n, total = state["n"], state["total"]
        offset = total / n
        return {
            "n": n,
            "weight": state["weight"],
            "mean": state["shift"] + offset,
            "deviation": np.maximum(state["squares"] - offset * total, 0.0),
            "cross": state["cross"] - state["weight"][:, None, None] * offset,
        }

    def join(self, first: State, second: State) -> State:
        # What a partial result has not seen is zero in it.
        return first | {k: first[k] + second[k] for k in first if k not in ("n", "weight")}

    def merge(self, first: State, second: State) -> State:
        if self.exact:
            for name in ("n", "weight", "cross", "total", "squares"):
                first[name] = first[name] + second[name]
            return first
        a, b = first["n"], second["n"]
        n = a + b
        delta = second["mean"] - first["mean"]
        mean = first["mean"] + delta * (b / n)
        cross = first["cross"] + second["cross"]
        cross += first["weight"][:, None, None] * (first["mean"] - mean)
        cross += second["weight"][:, None, None] * (second["mean"] - mean)
        return {
            "n": n,
            "weight": first["weight"] + second["weight"],
            "mean": mean,
            "deviation": first["deviation"] + second["deviation"] + delta * delta * (a * b / n),
            "cross": cross,
        }

    def mean_variance_cross(self, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""Mean, population variance, and :math:`\sum_i S_{ti} (d_{ij} - \bar d_j)`."""
        n = state["n"]
        if self.exact:
            mean = state["total"] / n
            variance = kernels.variance_from_sums(n, state["total"], state["squares"])
            return mean, variance, state["cross"] - state["weight"][:, None, None] * mean
        return state["mean"], state["deviation"] / n, state["cross"]


@dataclass(frozen=True)
class Masks:
    """Masks prepared for a pass: weights (mask, ky, kx), and what is subtracted from each finished image."""

    weights: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Images:
    r"""Weighted sums over the detector, :math:`s_{ki} = \sum_j m_{kj} d_{ij} - o_k`, of any number of masks in one read."""

    def start(self, window: Window, used: np.ndarray | None, operand: Masks) -> State:
        shape = tuple(s.stop - s.start for s in window)
        return {"window": window, "images": np.zeros((len(operand.weights), *shape))}

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Masks) -> None:
        weights = operand.weights[:, block.ky, block.kx].reshape(len(operand.weights), -1)
        touched = weights.any(0)
        if not touched.any():
            return
        matrix = _used_rows(block, used)
        # Pixels of weight 0 must not carry their NaN into the sums; few pixels are also cheaper alone.
        if not touched.all() and (matrix.dtype.kind == "f" or touched.mean() < 0.25):
            matrix, weights = _input(np.ascontiguousarray(matrix[:, touched])), weights[:, touched]
        sums = np.zeros((len(matrix), len(weights)))
        if matrix.dtype.kind == "u" and len(matrix) and matrix.max() <= FLOAT32_COUNTS:
            shift = matrix[0].astype(np.float32)
            kernels.weighted_sums(matrix, _input(np.ascontiguousarray(weights, np.float32)), _input(shift), sums)
            sums += weights @ shift.astype(np.float64)
        else:
            no_shift = _input(np.zeros(matrix.shape[1]))
            kernels.weighted_sums(matrix, _input(np.ascontiguousarray(weights)), no_shift, sums)
        y, x = (s.start - w.start for s, w in zip((block.y, block.x), state["window"], strict=True))
        ny, nx = block.counts.shape[:2]
        part = state["images"][:, y : y + ny, x : x + nx]
        if used is None:
            part += sums.T.reshape(part.shape)
        else:
            part[:, used] += sums.T

    def finish(self, state: State) -> State:
        return state

    def join(self, first: State, second: State) -> State:
        return first | {"images": first["images"] + second["images"]}

    def merge(self, first: State, second: State) -> State:
        raise TypeError("Images of other probe positions lie side by side; they are not merged.")


def _used_rows(block: Block, used: np.ndarray | None) -> np.ndarray:
    matrix = block.matrix if used is None else block.matrix[used.ravel()]
    return _input(matrix.view(np.uint8) if matrix.dtype == bool else matrix)


def _input(array: np.ndarray) -> np.ndarray:
    """A read-only view: arrays from another process are read-only, and a kernel is compiled for one kind alone."""
    view = array.view()
    view.flags.writeable = False
    return view


def run_pass(
    reduction: Reduction,
    source: Source,
    window: Window,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    operand: Any,
    origin: tuple[int, int, int, int] = (0, 0, 0, 0),
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
    """
    state = reduction.start(window, used, operand)
    local = tuple(slice(s.start - o, s.stop - o) for s, o in zip(window, origin, strict=False))
    for block in source.blocks(local, used, pixels):  # type: ignore[arg-type]
        y, x, ky, kx = (
            slice(s.start + o, s.stop + o)
            for s, o in zip((block.y, block.x, block.ky, block.kx), origin, strict=True)
        )
        block_used = None
        if used is not None:
            block_used = used[y.start - window[0].start : y.stop - window[0].start, x.start - window[1].start : x.stop - window[1].start]
            if not block_used.any():
                continue
            if block_used.all():
                block_used = None
        reduction.add(state, Block(y, x, ky, kx, block.counts), block_used, operand)
    return reduction.finish(state)


def _run_on_array(reduction: Reduction, array: np.ndarray, window: Window, used: Any, pixels: Any, operand: Any, origin: Any) -> State:
    return run_pass(reduction, InMemory(array), window, used, pixels, operand, origin)


def _merge_all(reduction: Reduction, states: list[State]) -> State:
    return functools.reduce(reduction.merge, states[1:], dict(states[0]))


def _join_all(reduction: Reduction, states: list[State]) -> State:
    return functools.reduce(reduction.join, states[1:], dict(states[0]))


@dataclass(frozen=True)
class _Pass:
    """Tasks of one pass, before they are merged: their layer, and their keys by place in the scan."""

    name: str
    layer: dict[Any, Any]
    keys: dict[tuple[int, int], Any]
    chunks: tuple[tuple[int, ...], tuple[int, ...]]
    dependencies: list[Any]


def _plan(array: Any, reduction: Reduction, used: np.ndarray | None, pixels: np.ndarray | None, operand: Delayed | None) -> _Pass:
    """One task for each run of tiles of a source, or for each block of a dask array; unneeded ones are left out."""
    source = source_of(array)
    name = "pass-" + tokenize(source if source is not None else array.name, reduction, used, pixels, operand)
    argument = None if operand is None else TaskRef(operand.key)
    layer: dict[Any, Any] = {}
    keys: dict[tuple[int, int], Any] = {}
    dependencies = [] if operand is None else [operand]
    if source is not None:
        fraction = 1.0 if pixels is None else max(pixels.mean(), 1e-3)
        chunks = runs(source, float(fraction))
        origin = f"source-{name}"
        layer[origin] = DataNode(origin, source)
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
            parts = []
            for k, (ky0, ky1) in enumerate(edges[2]):
                for m, (kx0, kx1) in enumerate(edges[3]):
                    wanted = None if pixels is None else pixels[ky0:ky1, kx0:kx1]
                    if wanted is not None and not wanted.any():
                        continue
                    key = (name, i, j, k, m)
                    if source is not None:
                        task = Task(key, run_pass, reduction, TaskRef(origin), window, here, wanted, argument)
                    else:
                        block = TaskRef((array.name, i, j, k, m))
                        task = Task(key, _run_on_array, reduction, block, window, here, wanted, argument, (y0, x0, ky0, kx0))
                    layer[key] = task
                    parts.append(key)
            keys[i, j] = parts[0]
            if len(parts) > 1:
                keys[i, j] = (f"join-{name}", i, j)
                layer[keys[i, j]] = Task(keys[i, j], _join_all, reduction, List(*map(TaskRef, parts)))
    return _Pass(name, layer, keys, chunks, dependencies)


def _tree(name: str, layer: dict[Any, Any], keys: list[Any], reduction: Reduction) -> Any:
    """Add the tasks that merge `keys` to one, a few at a time; gives the last key."""
    level = 0
    while len(keys) > 1 or level == 0:
        merged = []
        for n, first in enumerate(range(0, len(keys), SPLIT_EVERY)):
            key = (f"merge-{name}", level, n)
            group = List(*map(TaskRef, keys[first : first + SPLIT_EVERY]))
            layer[key] = Task(key, _merge_all, reduction, group)
            merged.append(key)
        keys, level = merged, level + 1
    return keys[0]


def moments(
    array: Any, templates: Templates | Delayed | None, used: np.ndarray | None, pixels: np.ndarray | None, n_templates: int = 0
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
    source = source_of(array)
    if source is not None:
        window = source.detector_window(pixels)
    else:
        window = (slice(0, detector[0]), slice(0, detector[1])) if pixels is None else bounding_box(pixels)
    dtype = np.dtype(array.dtype)
    reduction = Moments(window, exact=dtype.kind in "ub" and dtype.itemsize <= 2)
    operand = None if templates is None else delayed(templates, pure=True, traverse=False)
    plan = _plan(array, reduction, used, pixels, operand)
    layer = plan.layer
    merged = _tree(plan.name, layer, list(plan.keys.values()), reduction)
    key = f"moments-{plan.name}"
    layer[key] = Task(key, _moments_result, TaskRef(merged), reduction, detector, pixels)
    result = Delayed(key, HighLevelGraph.from_collections(key, layer, plan.dependencies))
    shapes = {"n": (), "mean": detector, "std": detector, "rho": (n_templates, *detector)}
    if templates is None:
        del shapes["rho"]
    if isinstance(array, np.ndarray):
        values = result.compute(scheduler="threads")
        return {name: values[name] for name in shapes}
    return {
        name: da.from_delayed(result[name], shape, dtype=np.int64 if name == "n" else np.float64)
        for name, shape in shapes.items()
    }


def _moments_result(state: State, reduction: Moments, detector: tuple[int, int], pixels: np.ndarray | None) -> State:
    mean, variance, cross = reduction.mean_variance_cross(state)
    inside = np.ones(mean.shape, bool) if pixels is None else pixels[reduction.pixels]
    bad = inside & ~(np.isfinite(mean) & np.isfinite(variance) & np.isfinite(cross).all(0))
    if bad.any():
        raise CountsError(
            f"The counts of {int(bad.sum())} detector pixels hold NaN or infinity; mark these pixels or patterns as "
            "not valid, or leave them out by a region."
        )
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
    layer = {key: Task(key, function, *values)}
    return Delayed(key, HighLevelGraph.from_collections(key, layer, lazy))


def prepare_templates(templates: np.ndarray, used: np.ndarray | None) -> Templates:
    """Templates (template, ny, nx) for a pass, with their mean and standard deviation over the used probes.

    Raises
    ------
    TemplateError
        If a template is not finite, or constant over the probe positions used.
    """
    mean, scale = np.zeros(len(templates)), np.zeros(len(templates))
    for n, template in enumerate(templates):
        values = np.asarray(template.ravel() if used is None else template[used], np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            raise TemplateError(
                f"Template {n} holds NaN or infinity at {int((~finite).sum())} of the probe positions used; give finite weights "
                "or leave these positions out by scan_region."
            )
        mean[n] = values.mean()
        deviation = values - mean[n]
        largest = np.abs(deviation).max()
        # Rounding of a constant template leaves differences of its last digits.
        if largest <= 1e-12 * np.abs(values).max():
            raise TemplateError(
                f"Template {n} is constant over the {values.size} probe positions used, so that nothing can correlate "
                "with it; choose sites, a width or a scan_region that make it vary."
            )
        scale[n] = 1.0 / (largest * np.sqrt(((deviation / largest) ** 2).mean()))
    return Templates(templates, mean, scale)


def prepare_masks(weights: np.ndarray, subtract: np.ndarray | None, divide: np.ndarray | None, valid: np.ndarray | None) -> Masks:
    r"""Masks for a pass, from weights m (mask, nky, nkx).

    Without `divide` the image is D m^T (eq. 2). With `subtract` = mean and `divide` = std it is
    :math:`\hat D m^T = D (m / \sigma)^T - \sum_j \bar d_j m_j / \sigma_j`: a scaled mask and one number.
    """
    weights = np.array(weights, np.float64)
    bad = ~np.isfinite(weights)
    if bad.any():
        raise MaskError(f"The mask holds NaN or infinity at {int(bad.sum())} weights; give finite weights.")
    if valid is not None:
        weights[:, ~valid] = 0.0
    offsets = np.zeros(len(weights))
    if divide is not None and subtract is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = np.where(divide > 0, weights / divide, 0.0)
        offsets = (weights * np.where(divide > 0, subtract, 0.0)).sum((1, 2))
    return Masks(weights, offsets)


def images(array: Any, masks: Masks | Delayed, n_masks: int, used: np.ndarray | None) -> Any:
    """Images of any number of masks in one read, float64 of shape (n_masks, ny, nx); NaN where a probe is not used.

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    masks : Masks or Delayed of Masks
        With masks at hand, only blocks of counts that a weight touches are read.
    n_masks : int
    used : ndarray of bool, shape (ny, nx), optional

    Raises
    ------
    CountsError
        When computed, if counts under a mask are NaN or infinite.
    """
    pixels = None
    if isinstance(masks, Masks):
        pixels = masks.weights.any(0)
        if not pixels.any():  # the images are constants, whatever the counts
            pixels[0, 0] = True
    operand = delayed(masks, pure=True, traverse=False)
    plan = _plan(array, Images(), used, pixels, operand)
    layer = plan.layer
    name = f"images-{plan.name}"
    edges = [list(pairwise([0, *np.cumsum(c).tolist()])) for c in plan.chunks]
    for i, (y0, y1) in enumerate(edges[0]):
        for j, (x0, x1) in enumerate(edges[1]):
            here = None if used is None else used[y0:y1, x0:x1]
            state = TaskRef(plan.keys[i, j]) if (i, j) in plan.keys else None
            key = (name, 0, i, j)
            layer[key] = Task(key, _images_result, state, TaskRef(operand.key), here, (y1 - y0, x1 - x0))
    graph = HighLevelGraph.from_collections(name, layer, plan.dependencies)
    result = da.Array(graph, name, ((n_masks,), *plan.chunks), dtype=np.float64)
    return result.compute(scheduler="threads") if isinstance(array, np.ndarray) else result


def _images_result(state: State | None, masks: Masks, used: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    if state is None:
        return np.full((len(masks.weights), *shape), np.nan)
    out = state["images"]
    bad = ~np.isfinite(out)
    if bad.any():
        raise CountsError(
            f"The counts under the mask hold NaN or infinity at {int(bad.any(0).sum())} probe positions; mark these pixels or "
            "patterns as not valid, or set their weights to 0."
        )
    out = out - masks.offsets[:, None, None]
    if used is not None:
        out[:, ~used] = np.nan
    return out
