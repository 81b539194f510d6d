"""Sources as lazy dask arrays, the source behind a dask array, and how a scan is cut into tasks.

Which source stands behind a dask array is read from the array's own graph: once a user has changed the counts in any
way, the graph is another, and a pass runs over the dask blocks instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ..cluster.resources import cores
from .blocks import Crop, InMemory, Source, checked_read
from .tasks import DataNode, Task, TaskRef

# What one task reads: enough that its fixed cost (milliseconds, and its partial sums) does not count.
TASK_BYTES = 2**30
# Least number of tasks for every core, so that the last one is not waited for alone.
TASKS_PER_CORE = 3
# Of a dask array of counts, and how many chunks it has where they are to be small.
CHUNK_BYTES = 128 * 2**20
MOST_CHUNKS = 20_000



def as_dask(source: Source, chunk_bytes: int = CHUNK_BYTES, *, tile: tuple[int, int] | None = None) -> da.Array:
    """A lazy dask array of a source's counts: whole detectors, tiles of the scan of about `chunk_bytes`.

    `tile` is what chunks are put together from, instead of what the source reads best together.
    """
    name = "counts-" + (tokenize(source) if tile is None else tokenize(source, chunk_bytes, tile))
    chunks = (*scan_chunks(source, chunk_bytes, tile), (source.shape[2],), (source.shape[3],))
    origin = f"source-{name}"
    layer: dict[Any, Any] = {origin: DataNode(origin, source)}
    for i, (y0, y1) in enumerate(pairwise(_edges(chunks[0]))):
        for j, (x0, x1) in enumerate(pairwise(_edges(chunks[1]))):
            layer[name, i, j, 0, 0] = Task((name, i, j, 0, 0), _read, TaskRef(origin), y0, y1, x0, x1)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=())
    return da.Array(graph, name, chunks, dtype=source.dtype)


def _read(source: Source, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    return checked_read(source, y0, y1, x0, x1)


def source_of(array: Any) -> Source | None:
    """The source behind an array: NumPy in memory, or an unchanged array of `as_dask`; None for anything else."""
    if isinstance(array, np.ndarray):
        return InMemory(array)
    graph = array.dask
    if len(graph.layers) != 1:
        return None
    node = graph.layers.get(array.name, {}).get(f"source-{array.name}")
    return node.value if isinstance(node, DataNode) else None


def crop(array: Any, window: tuple[slice, slice, slice, slice]) -> Any:
    """A part of an array of counts; an unchanged source stays one, so that passes go on reading inside their tasks."""
    source = source_of(array)
    if source is None or isinstance(source, InMemory):
        return array[window]
    return as_dask(source.cropped(window))


def in_small_chunks(array: Any) -> Any:
    """Counts of a source in the smallest chunks that it reads alone, as far as these are not too many; others as they
    are. For who looks at single patterns: a pass reads as it does from larger ones."""
    source = source_of(array)
    if source is None or isinstance(source, InMemory):
        return array
    chunk_bytes = math.prod(source.shape[:2]) * source.pattern_bytes // MOST_CHUNKS
    return as_dask(source, chunk_bytes, tile=source.grain)


def scan_chunks(
    source: Source, chunk_bytes: int, tile: tuple[int, int] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks of the scan axes: runs of consecutive tiles, of about `chunk_bytes`, one tile at least."""
    ny, nx = source.shape[:2]
    offset = source.start[:2] if isinstance(source, Crop) else (0, 0)
    ty, tx = tile or source.tile
    tiles = max(1, chunk_bytes // (ty * tx * source.pattern_bytes))
    across = -(-nx // tx)
    if tiles >= across:
        return _cut(ny, ty * _evenly(-(-ny // ty), tiles // across), offset[0], ty), (nx,)
    if ty == 1 and tx >= nx:  # one line is too large a tile: lines may be cut anywhere
        tx = 1
        tiles = max(1, chunk_bytes // source.pattern_bytes)
    return _cut(ny, ty, offset[0], ty), _cut(nx, tx * _evenly(-(-nx // tx), tiles), offset[1], tx)


def _evenly(total: int, most: int) -> int:
    """Tiles of a piece, at most so many, if all pieces are to be of nearly the same size."""
    return -(-total // -(-total // most))


def _cut(size: int, step: int, offset: int, tile: int) -> tuple[int, ...]:
    """Cut an axis into pieces of `step`, at multiples of `tile` of the axis that it was cropped from."""
    edges = [0, *range(step - offset % tile, size, step), size]
    return tuple(b - a for a, b in pairwise(edges) if b > a)


def _edges(chunks: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(chunks).tolist()]


def runs(source: Source, fraction: float = 1.0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks of the scan that one task each reads: about a gigabyte, less where every core would not have work.

    Parameters
    ----------
    source : Source
    fraction : float, default 1
        Part of each pattern that is read.
    """
    per_pattern = max(1.0, source.pattern_bytes * fraction)
    total = math.prod(source.shape[:2]) * per_pattern
    target = max(1.0, min(TASK_BYTES, total / (TASKS_PER_CORE * cores()))) / fraction
    # Rounded up to whole tiles: one task more than meant would leave all cores but one idle at the end.
    tile = math.prod(source.tile) * source.pattern_bytes
    return scan_chunks(source, math.ceil(target / tile) * tile)
