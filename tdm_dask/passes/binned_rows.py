"""The data matrix as a picture: passes over the counts of a scan that never form it.

Probe positions are its rows, detector pixels its columns. Two passes make a picture of it: sums over some pixels of
every pattern, by which rows are put in order (together with the statistics of every pixel, where these are needed),
and sums over bins of rows and columns of the normalised counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from ..errors import CountsError
from ..kernels.matrix import add_to_bins
from ..kernels.weighted_sums import weighted_sums
from ..reading.blocks import Block, Window
from ..reading.lazy import source_of
from ..reading.memory import read_only
from .graphs import moments_reduction, moments_result, parts_of, reduced
from .reductions import Moments, State, used_rows


@dataclass(frozen=True)
class PatternSums:
    """The sum over some detector pixels of every pattern, and the moments of every pixel where they are wanted.

    The operand are the flags (ky, kx) of the pixels that are summed. Sums of integers are exact up to 2^53.
    """

    moments: Moments | None

    def start(self, window: Window, used: np.ndarray | None, operand: np.ndarray) -> State:
        shape = tuple(s.stop - s.start for s in window)
        state: State = {"window": window, "sums": np.zeros(shape)}
        return state if self.moments is None else state | {"moments": self.moments.start(window, used, None)}

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: np.ndarray) -> None:
        matrix = used_rows(block, used)
        if not len(matrix):
            return
        if self.moments is not None:
            none = read_only(np.zeros((len(matrix), 0), self.moments.precision))
            self.moments.add_matrix(state["moments"], block.tile, matrix, none)
        chosen = block.tile.columns(operand[block.ky, block.kx])
        if not chosen.any():
            return
        if matrix.dtype.kind == "f" and not chosen.all():
            # Pixels that are not summed must not carry their NaN into the sums.
            matrix, chosen = read_only(np.ascontiguousarray(matrix[:, chosen])), chosen[chosen]
        sums = np.zeros((len(matrix), 1))
        weights, shift = read_only(chosen.astype(np.float64)[None]), read_only(np.zeros(len(chosen)))
        weighted_sums(matrix, weights, shift, sums)
        y, x = (s.start - w.start for s, w in zip((block.y, block.x), state["window"], strict=True))
        ny, nx = block.shape
        part = state["sums"][y : y + ny, x : x + nx]
        if used is None:
            part += sums.reshape(part.shape)
        else:
            part[used] += sums[:, 0]

    def finish(self, state: State) -> State:
        (y, x), sums = state["window"], state["sums"]
        finished = {"sums": {(y.start, x.start): sums}}
        return finished if self.moments is None else finished | {"moments": self.moments.finish(state["moments"])}

    def join(self, first: State, second: State) -> State:
        joined = {"sums": {place: sums + second["sums"][place] for place, sums in first["sums"].items()}}
        if self.moments is None:
            return joined
        return joined | {"moments": self.moments.join(first["moments"], second["moments"])}

    def merge(self, first: State, second: State) -> State:
        merged = {"sums": first["sums"] | second["sums"]}
        if self.moments is None:
            return merged
        return merged | {"moments": self.moments.merge(dict(first["moments"]), second["moments"])}


def pattern_sums(
    array: Any,
    chosen: np.ndarray,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    shifts: np.ndarray | None,
    *,
    statistics: bool,
) -> dict[str, Any]:
    """Sums over some pixels of every pattern, with the statistics of every pixel or without, in one read.

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    chosen : ndarray of bool, shape (nky, nkx)
        The pixels that are summed.
    used, pixels, shifts
        As in `passes.graphs.moments`; `pixels` are those whose statistics are wanted.
    statistics : bool
        Whether they are. Without, the chosen pixels alone are read.

    Returns
    -------
    dict
        "sums" (ny, nx), 0 where a probe position is not used, and with statistics "mean" and "std" (nky, nkx). NumPy
        arrays if `array` is one, else dask arrays that share one pass.

    Raises
    ------
    CountsError
        When computed, if counts that are used are NaN or infinite.
    """
    read = chosen if not statistics else None if pixels is None else pixels | chosen
    gathered = moments_reduction(array, read, shifts) if statistics else None
    if shifts is not None and gathered is not None and not gathered.exact and source_of(array) is None:
        array = array.rechunk({2: -1, 3: -1})  # as in `moments`
    operand = delayed(chosen, pure=True, traverse=False)
    scan, detector = array.shape[:2], array.shape[2:]
    result = reduced(
        array, PatternSums(gathered), used, read, operand, shifts, _sums_result, gathered, scan, detector, read
    )
    shapes = {"sums": scan} | ({"mean": detector, "std": detector} if statistics else {})
    return parts_of(array, result, shapes)


def _sums_result(
    state: State,
    gathered: Moments | None,
    scan: tuple[int, int],
    detector: tuple[int, int],
    pixels: np.ndarray | None,
) -> State:
    sums = np.zeros(scan)
    for (y, x), part in state["sums"].items():
        sums[y : y + part.shape[0], x : x + part.shape[1]] = part
    _require_finite(sums, "probe positions")
    if gathered is None:
        return {"sums": sums}
    found = moments_result(state["moments"], gathered, detector, pixels)
    return {"sums": sums, "mean": found["mean"], "std": found["std"]}


@dataclass(frozen=True)
class Bins:
    r"""Where the counts go: the row of every probe position, the column of every pixel, and :math:`(d - c_j) w_j`.

    Parameters
    ----------
    rows : ndarray of int32, shape (ny, nx)
        -1 at probe positions that are not used.
    columns : ndarray of int32, shape (nky, nkx)
        `n_columns` at pixels that are left out.
    shift, weights : ndarray, shape (nky, nkx)
    n_columns : int
    """

    rows: np.ndarray
    columns: np.ndarray
    shift: np.ndarray
    weights: np.ndarray
    n_columns: int


def bins_in_order(total: int, most: int) -> np.ndarray:
    """Bins of `total` things in a row: at most so many bins, of nearly equal population.

    Examples
    --------
    >>> bins_in_order(7, 3).tolist()
    [0, 0, 0, 1, 1, 2, 2]
    """
    return (np.arange(total) * min(most, total) // total).astype(np.int32)


def row_bins(sums: np.ndarray | None, used: np.ndarray, most: int) -> np.ndarray:
    """Row (ny, nx) of every probe position used, by increasing sums or in the order of the scan; -1 at the others."""
    rows = np.full(used.shape, -1, np.int32)
    n = int(used.sum())
    ordered = bins_in_order(n, most)
    if sums is None:
        rows[used] = ordered
    else:
        part = np.empty(n, np.int32)
        part[np.argsort(sums[used], kind="stable")] = ordered
        rows[used] = part
    return rows


def row_means(sums: np.ndarray, used: np.ndarray, most: int) -> np.ndarray:
    """Mean of the sums in each row."""
    rows = row_bins(sums, used, most)[used]
    return np.asarray(np.bincount(rows, sums[used]) / np.bincount(rows))


def prepare_bins(
    sums: np.ndarray | None,
    mean: np.ndarray | None,
    std: np.ndarray | None,
    used: np.ndarray,
    columns: np.ndarray,
    most_rows: int,
    n_columns: int,
) -> Bins:
    """Bins for a pass: rows by increasing sums, counts less their mean and over their std; a pixel of std 0 is 0."""
    shift, weights = np.zeros(columns.shape), np.ones(columns.shape)
    if mean is not None and std is not None:
        shift = np.asarray(mean, np.float64)
        weights = np.zeros(columns.shape)
        np.divide(1.0, std, out=weights, where=std > 0)
    return Bins(row_bins(sums, used, most_rows), columns, shift, weights, n_columns)


@dataclass(frozen=True)
class BinnedRows:
    r"""Sums of :math:`(d_{ij} - c_j) w_j` over the patterns of each row and the pixels of each column of a picture.

    A task holds the rows that its probe positions belong to, and no others.
    """

    def start(self, window: Window, used: np.ndarray | None, operand: Bins) -> State:
        rows = operand.rows[window]
        here = np.unique(rows if used is None else rows[used])
        return {"rows": here, "picture": np.zeros((len(here), operand.n_columns + 1))}

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Bins) -> None:
        matrix = used_rows(block, used)
        if not len(matrix):
            return
        rows = operand.rows[block.y, block.x]
        rows = np.searchsorted(state["rows"], rows.ravel() if used is None else rows[used]).astype(np.int32)
        columns, shift, weights = (
            read_only(block.tile.columns(values[block.ky, block.kx], fill))
            for values, fill in ((operand.columns, operand.n_columns), (operand.shift, 0), (operand.weights, 0))
        )
        add_to_bins(matrix, read_only(rows), columns, shift, weights, state["picture"])

    def finish(self, state: State) -> State:
        # The last column is that of pixels that are left out.
        return {"rows": state["rows"], "picture": state["picture"][:, :-1]}

    def join(self, first: State, second: State) -> State:
        return {"rows": first["rows"], "picture": first["picture"] + second["picture"]}

    def merge(self, first: State, second: State) -> State:
        rows = np.union1d(first["rows"], second["rows"])
        picture = np.zeros((len(rows), first["picture"].shape[1]))
        for part in (first, second):
            picture[np.searchsorted(rows, part["rows"])] += part["picture"]
        return {"rows": rows, "picture": picture}


def binned_matrix(
    array: Any,
    bins: Bins | Delayed,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    shifts: np.ndarray | None,
    row_sizes: np.ndarray,
    column_sizes: np.ndarray,
) -> Any:
    r"""Mean of :math:`(d_{ij} - c_j) w_j` over each bin of rows and columns, in one read.

    Parameters
    ----------
    array : ndarray or dask array, shape (ny, nx, nky, nkx)
    bins : Bins or Delayed of Bins
    used, pixels, shifts
        As in `passes.graphs.moments`; `pixels` are those that have a column.
    row_sizes, column_sizes : ndarray of int
        Probe positions and pixels that share each row and column.

    Returns
    -------
    ndarray or dask array of float64, shape (rows, columns)

    Raises
    ------
    CountsError
        When computed, if counts that are used are NaN or infinite.
    """
    operand = delayed(bins, pure=True, traverse=False)
    result = reduced(array, BinnedRows(), used, pixels, operand, shifts, _mean_of_bins, row_sizes, column_sizes)
    if isinstance(array, np.ndarray):
        return result.compute(scheduler="threads")
    return da.from_delayed(result, (len(row_sizes), len(column_sizes)), dtype=np.float64)


def _mean_of_bins(state: State, row_sizes: np.ndarray, column_sizes: np.ndarray) -> np.ndarray:
    picture = state["picture"] / (row_sizes[:, None] * column_sizes)
    _require_finite(picture, "bins of the data matrix")
    return picture


def _require_finite(values: np.ndarray, what: str) -> None:
    bad = math.prod(values.shape) - int(np.isfinite(values).sum())
    if bad:
        raise CountsError(
            f"The counts in {bad} {what} hold NaN or infinity; mark these pixels or patterns as not valid, or leave "
            "them out by a region."
        )
