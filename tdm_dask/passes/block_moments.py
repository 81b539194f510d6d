"""Second moments of detector pixels and templates over blocks of the scan, in one read.

Whatever is linear in the counts, a mask above all, can then be derived from some blocks and tried on the others
without another read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from dask.delayed import Delayed, delayed
from dask.utils import format_bytes

from ..errors import MemoryLimitError
from ..kernels.ridge_solver import SecondMoments
from ..reading.tasks import TaskRef
from .graphs import reduced, require_finite
from .reductions import State, Tiled
from .second_moments import GRAM_PIXELS, Gram, unsplit_detector, whole_matrix
from .whole_patterns import Region

Edges = tuple[tuple[int, ...], tuple[int, ...]]


def block_edges(used: np.ndarray | None, shape: tuple[int, int], blocks: tuple[int, int]) -> Edges:
    """Edges along y and x that cut the probe positions used into blocks of nearly the same number of lines.

    Examples
    --------
    >>> block_edges(None, (8, 10), (2, 3))
    ((0, 4, 8), (0, 3, 7, 10))
    """
    edges = []
    for axis, (size, number) in enumerate(zip(shape, blocks, strict=True)):
        lines = np.arange(size) if used is None else np.flatnonzero(used.any(1 - axis))
        first, last = int(lines[0]), int(lines[-1]) + 1
        cuts = np.rint(np.linspace(first, last, number + 1)).astype(int).tolist()
        edges.append(tuple(sorted({0, *cuts[1:-1], size})))
    return edges[0], edges[1]


def block_moments(
    array: Any,
    templates: Any,
    used: np.ndarray | None,
    pixels: np.ndarray,
    edges: Edges,
    shifts: np.ndarray | None = None,
) -> Delayed:
    """Second moments over each block of the scan: those of detector pixels, followed by those of templates.

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    templates : Templates or Delayed of Templates
        As made by `prepare_templates`; they are standardised over all probe positions used.
    used, shifts
        As in `passes.graphs.moments`.
    pixels : ndarray of bool, shape (nky, nkx)
    edges : (tuple of int, tuple of int)
        Where the blocks begin and end along y and x.

    Returns
    -------
    Delayed
        `kernels.ridge_solver.SecondMoments` by block (number along y, number along x), in order; blocks without probe
        positions that are used are left out.

    Raises
    ------
    MemoryLimitError
        If there are more than `GRAM_PIXELS` pixels, shared between the blocks. Nothing is read then.
    CountsError
        When computed, if counts that are used are NaN or infinite.
    """
    q, number = int(pixels.sum()), (len(edges[0]) - 1) * (len(edges[1]) - 1)
    if q * q * number > GRAM_PIXELS**2:
        most = int(GRAM_PIXELS / number**0.5)
        raise MemoryLimitError(
            f"The region holds {q} detector pixels, whose products over {number} blocks of the scan would take "
            f"{format_bytes(8 * q * q * number)}; at most {most} pixels are taken: sum pixels with tdm_dask.bin or "
            "choose a smaller region."
        )
    operand = delayed(Region, pure=True)(pixels, templates)
    return reduced(
        unsplit_detector(array),
        Tiled(Gram(), edges),
        used,
        pixels,
        operand,
        shifts,
        _with_templates,
        TaskRef(operand.key),
        used,
        edges,
    )


def _with_templates(
    states: State, region: Region, used: np.ndarray | None, edges: Edges
) -> dict[Any, SecondMoments]:
    bad = np.zeros(region.pixels.shape, bool)
    blocks = {}
    for tile in sorted(states):
        state = states.pop(tile)  # one matrix less in memory
        y, x = (slice(e[n], e[n + 1]) for e, n in zip(edges, tile, strict=True))
        weights = region.of.weights(y, x, None if used is None else used[y, x])
        mean = weights.mean(1)
        q = len(state["mean"])
        products = np.empty((q + len(mean), q + len(mean)))
        whole_matrix(state["panels"], products[:q, :q])
        products[q:, :q] = state["cross"]
        products[:q, q:] = state["cross"].T
        deviations = weights - mean[:, None]
        products[q:, q:] = deviations @ deviations.T
        bad[region.pixels] |= ~(np.isfinite(state["mean"]) & np.isfinite(np.diag(products)[:q]))
        blocks[tile] = SecondMoments(state["n"], np.concatenate([state["mean"], mean]), products)
    require_finite(bad)
    return blocks
