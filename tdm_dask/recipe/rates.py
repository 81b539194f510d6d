"""Short trials of the work itself, on the scheduler that is active: what it does in a second, and what it needs.

A trial runs the very tasks of a pass on a sample of the scan, one at a time on every thread, for as long as it is
given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import dask
import numpy as np
import psutil

from ..cluster.resources import cores
from ..passes.graphs import run_pass
from ..passes.reductions import Images, Masks, Moments, Reduction, State
from ..passes.second_moments import Gram
from ..passes.whole_patterns import Region
from ..reading.blocks import Block, Source, Window

# A trial goes through this part of the scan at most, but for one piece on every thread: short runs have short trials.
TRIAL_PART = 0.05
# A first piece that takes longer than this is not slow because a process loads and compiles.
SLOW_SECONDS = 30.0


@dataclass(frozen=True)
class Rate:
    """What a trial found.

    Attributes
    ----------
    counts_bytes : int
        Bytes of counts, uncompressed, that the trial went through.
    bytes_per_second : float
        Bytes of counts that all threads together get through in a second.
    seconds : float
        How long the trial took.
    base_bytes : int
        Memory of a process before its first task, the largest of all workers.
    """

    counts_bytes: int
    bytes_per_second: float
    seconds: float
    base_bytes: int


class _Flat:
    """Stands for templates that are the same everywhere: the work is the same, and nothing large travels."""

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def values(self) -> range:
        return range(self.number)

    def weights(self, y: slice, x: slice, used: np.ndarray | None) -> np.ndarray:
        n = (y.stop - y.start) * (x.stop - x.start) if used is None else int(used.sum())
        return np.ones((self.number, n))


@dataclass(frozen=True)
class _Counted:
    """A reduction that also counts the bytes of counts that it is given."""

    reduction: Reduction

    def start(self, window: Window, used: np.ndarray | None, operand: Any) -> State:
        return {"state": self.reduction.start(window, used, operand), "bytes": 0}

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Any) -> None:
        self.reduction.add(state["state"], block, used, operand)
        state["bytes"] += block.counts.nbytes

    def finish(self, state: State) -> State:
        return {"bytes": state["bytes"]}

    join = merge = None  # a trial has nothing to merge


def try_moments(source: Source, pixels: np.ndarray | None, templates: int, seconds: float) -> Rate:
    """Try what correlating with a number of templates takes."""
    exact = source.dtype.kind in "ub" and source.dtype.itemsize <= 2
    return _try_pass(source, pixels, Moments(source.detector_window(pixels), exact), _Flat(templates), seconds)


def try_gram(source: Source, pixels: np.ndarray, templates: int, seconds: float) -> Rate:
    """Try what the matrix of some pixels, with a number of templates, takes."""
    return _try_pass(source, pixels, Gram(), Region(pixels, _Flat(templates)), seconds)


def try_images(source: Source, pixels: np.ndarray | None, masks: int, seconds: float) -> Rate:
    """Try what applying a number of masks takes."""
    weights = np.zeros((masks, *source.shape[2:]))
    weights[:, True if pixels is None else pixels] = 1.0
    return _try_pass(source, pixels, Images(), Masks(weights, np.zeros(masks)), seconds)


def _try_pass(source: Source, pixels: np.ndarray | None, reduction: Reduction, operand: Any, seconds: float) -> Rate:
    ty, tx = source.tile
    corners = product(range(0, source.shape[0], ty), range(0, source.shape[1], tx))
    windows = [(slice(y, min(y + ty, source.shape[0])), slice(x, min(x + tx, source.shape[1]))) for y, x in corners]
    shared = dask.delayed((source, _Counted(reduction), operand, pixels), pure=False, traverse=False)
    return _on_every_thread(_run_pass, shared, windows, seconds)


def _run_pass(shared: tuple[Any, ...], window: Window) -> int:
    source, reduction, operand, pixels = shared
    return int(run_pass(reduction, source, window, None, pixels, operand)["bytes"])


def _on_every_thread(work: Any, shared: Any, parts: Sequence[Any], seconds: float) -> Rate:
    """Do parts of the work, spread over the scan, on every thread at once until the time is over; one at least."""
    start = time.perf_counter()
    threads = max(1, min(cores(), len(parts)))
    order = np.random.default_rng(0).permutation(len(parts))[: max(threads, int(TRIAL_PART * len(parts)))]
    shares = [[parts[n] for n in order[thread::threads]] for thread in range(threads)]
    task = dask.delayed(_until, pure=False)
    found = dask.compute(*(task(work, shared, share, seconds) for share in shares))
    return Rate(
        counts_bytes=sum(nbytes for nbytes, _, _ in found),
        bytes_per_second=sum(nbytes / took for nbytes, took, _ in found),
        seconds=time.perf_counter() - start,
        base_bytes=max(base for _, _, base in found),
    )


def _until(work: Any, shared: Any, parts: Sequence[Any], seconds: float) -> tuple[int, float, int]:
    """Bytes and seconds of the work, and the memory before it; the first part is done once more, for the first time a
    process also loads and compiles what it needs."""
    base = psutil.Process(os.getpid()).memory_info().rss
    begin = time.perf_counter()
    nbytes = work(shared, parts[0])
    took = time.perf_counter() - begin
    if took > SLOW_SECONDS:
        return nbytes, took, base
    nbytes, begin = 0, time.perf_counter()
    for part in parts:
        nbytes += work(shared, part)
        if time.perf_counter() - begin > seconds:
            break
    return nbytes, time.perf_counter() - begin, base
