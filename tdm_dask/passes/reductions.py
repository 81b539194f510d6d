"""Reductions over the counts of a scan: what a pass makes of the blocks that it reads.

A reduction is a value: what a partial result starts from, what one block adds, how two partial results join or merge,
what the end result is. It works on plain arrays in memory, and knows neither where they come from nor who calls it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ..errors import MaskError, TemplateError
from ..kernels.chunk_runs import images_of_chunks, moments_of_chunks
from ..kernels.moments import exact_moments, shifted_moments, variance_from_sums
from ..kernels.pixel_order import Tile
from ..kernels.weighted_sums import LARGEST_SHIFT, weighted_counts, weighted_sums
from ..reading.blocks import Block, Run, Window
from ..reading.memory import read_only
from ..shards.sharded_array import StoredRun

State = dict[Any, Any]

# Cut masks that one task keeps, in whole detectors.
PLACES_KEPT = 4

# What a state of moments holds for the task alone.
_OF_TASK = ("window", "weights", "weights_of", "kept_weights", "tiles")


class Reduction(Protocol):
    """What a pass makes of the blocks that it reads. The operand is templates, or masks, in memory.

    One that has `add_run(state, run, stored, first, operand)` is given whole inner chunks of a store so, where all
    probe positions count: it adds blocks of a run, from the first on, by what is stored of them, and answers with the
    number of the one that it left. This is then added by itself.
    """

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
        state: State = {"n": n, "weight": np.zeros(0), "cross": np.zeros((0, *shape)), "window": window}
        state |= {"weights_of": {}, "kept_weights": 0, "weights": np.zeros(0)}
        if operand is not None:
            # Every detector tile of a store comes with the same probe positions.
            weights: np.ndarray = np.ascontiguousarray(operand.weights(*window, None).T, self.precision)
            flags = slice(None) if used is None else used.ravel()
            state["weights"] = weights.reshape(*(s.stop - s.start for s in window), -1)
            state["weight"] = weights[flags].sum(0, dtype=np.float64)
            state["cross"] = np.zeros((weights.shape[1], *shape))
        if self.exact:
            return state | {"total": np.zeros(shape, np.uint64), "squares": np.zeros(shape, np.uint64), "tiles": {}}
        return state | {
            "shift": np.zeros(shape),
            "total": np.zeros(shape),
            "squares": np.zeros(shape),
            "seen": np.zeros(shape, bool),
        }

    def partial_bytes(self, templates: int) -> int:
        """Bytes of a partial result, with so many templates."""
        return 8 * (templates + 3) * math.prod(s.stop - s.start for s in self.pixels)

    @property
    def precision(self) -> type:
        """Precision of the products within one block."""
        return np.float32 if self.exact else np.float64

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Templates | None) -> None:
        matrix = used_rows(block, used)
        if not len(matrix):
            return
        weights: np.ndarray
        if operand is None:
            weights = np.zeros((len(matrix), 0), self.precision)
        else:
            weights = self._weights(state, block, used)
        self.add_matrix(state, block.tile, matrix, weights)

    def add_run(self, state: State, run: Run, stored: StoredRun, first: int, operand: Templates | None) -> int:
        """Add blocks of a run in one call, from the first on; the number of the one that is left to `add`."""
        if not self.exact:
            return first
        patterns, templates = math.prod(run[0].shape), 0 if operand is None else len(operand.values)
        key = tuple((block.y.start, block.x.start) for block in run)
        weights = state["weights_of"].get(key)
        if weights is None:
            parts = [self._cut_weights(state, block, None) for block in run] if templates else []
            weights = np.concatenate(parts) if parts else np.zeros((len(run) * patterns, 0), self.precision)
            weights = self._kept_weights(state, key, weights.reshape(len(run), patterns, templates))
        tile = stored[0].tile
        return stored.feed(moments_of_chunks, first, weights, *self._sums(state, tile, tile.width, templates))

    def _weights(self, state: State, block: Block, used: np.ndarray | None) -> np.ndarray:
        key = block.y.start, block.y.stop, block.x.start, block.x.stop
        found: np.ndarray | None = state["weights_of"].get(key) if used is None else None
        if found is None:
            found = self._cut_weights(state, block, used)
            if used is None:
                found = self._kept_weights(state, key, found)
        return found

    def _cut_weights(self, state: State, block: Block, used: np.ndarray | None) -> np.ndarray:
        y, x = block.y.start - state["window"][0].start, block.x.start - state["window"][1].start
        ny, nx = block.shape
        here: np.ndarray = state["weights"][y : y + ny, x : x + nx]
        return read_only(here.reshape(ny * nx, -1) if used is None else here[used])

    def _kept_weights(self, state: State, key: Any, weights: np.ndarray) -> np.ndarray:
        """Weights of some probe positions, which are kept until there are too many."""
        weights = read_only(weights)
        state["kept_weights"] += weights.size
        if state["kept_weights"] > PLACES_KEPT * state["weights"].size:
            state["weights_of"], state["kept_weights"] = {}, weights.size
        state["weights_of"][key] = weights
        return weights

    def add_matrix(self, state: State, tile: Tile, matrix: np.ndarray, weights: np.ndarray) -> None:
        """Add counts (pattern, pixel) of a tile of the detector, and weights (pattern, template) of `precision`."""
        weights = read_only(weights)
        if not self.exact:
            self._add_shifted(state, tile, matrix, weights)
        elif tile.stored is None:
            ky, kx = self._place(tile)
            width = kx.stop - kx.start
            exact_moments(matrix, weights, state["total"], state["squares"], state["cross"], ky.start, kx.start, width)
        else:
            columns = matrix.shape[1]
            total, squares, cross = self._sums(state, tile, columns, weights.shape[1])
            exact_moments(matrix, weights, total, squares, cross, 0, 0, columns)

    def _sums(
        self, state: State, tile: Tile, columns: int, templates: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums in the order of a tile's columns, until the end or until moved blocks have come to too many places."""
        sums: tuple[np.ndarray, np.ndarray, np.ndarray] | None = state["tiles"].get(tile)
        if sums is None:
            if (len(state["tiles"]) + 1) * columns > PLACES_KEPT * max(state["total"].size, columns):
                self._gather(state)
            total, squares = (np.zeros((1, columns), np.uint64) for _ in range(2))
            sums = state["tiles"][tile] = total, squares, np.zeros((templates, 1, columns))
        return sums

    def _place(self, tile: Tile) -> Window:
        ky, kx = (s.start for s in self.pixels)
        return slice(tile.ky0 - ky, tile.ky1 - ky), slice(tile.kx0 - kx, tile.kx1 - kx)

    def _add_shifted(self, state: State, tile: Tile, matrix: np.ndarray, weights: np.ndarray) -> None:
        place, pixels = self._place(tile), matrix.shape[1]
        new = ~state["seen"][place]
        if new.any():
            # Blocks that were moved overlap others: what has been summed keeps its shift.
            state["seen"][place] = True
            state["shift"][place][new] = tile.pixels(matrix.mean(0, dtype=np.float64))[new]
        shift = read_only(tile.columns(state["shift"][place]))
        total, squares, cross = np.zeros(pixels), np.zeros(pixels), np.zeros((weights.shape[1], pixels))
        shifted_moments(matrix, weights, shift, total, squares, cross)
        state["total"][place] += tile.pixels(total)
        state["squares"][place] += tile.pixels(squares)
        state["cross"][:, *place] += tile.pixels(cross)

    def _gather(self, state: State) -> None:
        """Put sums in the order of columns where their pixels are."""
        while state["tiles"]:
            tile, (total, squares, cross) = state["tiles"].popitem()
            place = self._place(tile)
            state["total"][place] += tile.pixels(total[0])
            state["squares"][place] += tile.pixels(squares[0])
            state["cross"][:, *place] += tile.pixels(cross[:, 0])

    def finish(self, state: State) -> State:
        if self.exact:
            self._gather(state)
        if self.exact or not state["n"]:
            return {name: values for name, values in state.items() if name not in _OF_TASK}
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
            variance = variance_from_sums(n, state["total"], state["squares"])
            return mean, variance, state["cross"] - state["weight"][:, None, None] * mean
        return state["mean"], state["deviation"] / n, state["cross"]


@dataclass(frozen=True)
class Tiled:
    """Another reduction over each tile of the scan by itself: partial results by tile.

    Parameters
    ----------
    inner : Reduction
        What is gathered over a tile.
    edges : (tuple of int, tuple of int)
        Where the tiles of the scan begin and end along y and x.
    """

    inner: Reduction
    edges: tuple[tuple[int, ...], tuple[int, ...]]

    def _tiles(self, y: slice, x: slice) -> Iterator[tuple[tuple[int, int], Window]]:
        """Tiles that overlap a window of the scan, and where."""
        for i, ys in _overlapping(self.edges[0], y):
            for j, xs in _overlapping(self.edges[1], x):
                yield (i, j), (ys, xs)

    def start(self, window: Window, used: np.ndarray | None, operand: Any) -> State:
        state = {}
        for tile, place in self._tiles(*window):
            here = None if used is None else used[_within(place, window)]
            if here is None or here.any():
                state[tile] = self.inner.start(place, here, operand)
        return state

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Any) -> None:
        for tile, place in self._tiles(block.y, block.x):
            inside = _within(place, (block.y, block.x))
            here = None if used is None else used[inside]
            if here is None or here.any():
                self.inner.add(state[tile], block.of_probes(*inside), here, operand)

    def finish(self, state: State) -> State:
        return {tile: self.inner.finish(part) for tile, part in state.items()}

    def join(self, first: State, second: State) -> State:
        return {tile: self.inner.join(first[tile], second[tile]) for tile in first}

    def merge(self, first: State, second: State) -> State:
        both = {tile: self.inner.merge(dict(first[tile]), second[tile]) for tile in first.keys() & second.keys()}
        return first | second | both


def _overlapping(edges: tuple[int, ...], window: slice) -> Iterator[tuple[int, slice]]:
    for n, (start, stop) in enumerate(pairwise(edges)):
        part = slice(max(start, window.start), min(stop, window.stop))
        if part.start < part.stop:
            yield n, part


def _within(place: Window, window: Window) -> Window:
    y, x = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(place, window, strict=True))
    return y, x


@dataclass(frozen=True)
class Masks:
    """Masks prepared for a pass: weights (mask, ky, kx), and what is subtracted from each finished image."""

    weights: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Images:
    r"""Weighted sums over the detector, :math:`s_{ki} = \sum_j m_{kj} d_{ij} - o_k`, of any number of masks."""

    def start(self, window: Window, used: np.ndarray | None, operand: Masks) -> State:
        shape = tuple(s.stop - s.start for s in window)
        return {"window": window, "images": np.zeros((len(operand.weights), *shape)), "masks": {}, "kept": 0}

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Masks) -> None:
        matrix = used_rows(block, used)
        tile = MaskTile.kept(state, operand.weights, block.tile, matrix)
        if tile is None:
            return
        sums = tile.weighted_sums(matrix)
        part = self._place(state, block)
        if used is None:
            part += sums.T.reshape(part.shape)
        else:
            part[:, used] += sums.T

    def add_run(self, state: State, run: Run, stored: StoredRun, first: int, operand: Masks) -> int:
        """Add blocks of a run in one call, from the first on; the number of the one that is left to `add`."""
        tile: MaskTile | None = state["masks"].get((stored[0].tile, "u"))
        if tile is None or tile.touched is not None:
            return first
        images = np.zeros((len(run), math.prod(run[0].shape), len(tile.weights)))
        left = stored.feed(images_of_chunks, first, tile.weights, tile.shift, tile.weights32, tile.shift32, images)
        for block, sums in zip(run[first:left], images[first:left], strict=True):
            part = self._place(state, block)
            part += (sums + tile.offsets).T.reshape(part.shape)
        return left

    def _place(self, state: State, block: Block) -> np.ndarray:
        """The part of the images (mask, y, x) where a block lies."""
        y, x = (s.start - w.start for s, w in zip((block.y, block.x), state["window"], strict=True))
        ny, nx = block.shape
        return np.asarray(state["images"][:, y : y + ny, x : x + nx])

    def finish(self, state: State) -> State:
        return {"images": state["images"]}

    def join(self, first: State, second: State) -> State:
        return first | {"images": first["images"] + second["images"]}

    def merge(self, first: State, second: State) -> State:
        raise TypeError("Images of other probe positions lie side by side; they are not merged.")


@dataclass(frozen=True)
class MaskTile:
    """Masks over one tile of the detector, as the kernels want them; made once and used for every block of the tile.

    Parameters
    ----------
    touched : ndarray of bool, shape (pixels,), or None
        The pixels that are taken out of a block before they are weighted; None for all.
    weights, weights32 : ndarray, shape (masks, pixels)
        float64, and float32 for unsigned integers.
    shift, shift32 : ndarray, shape (pixels,)
        A pattern that is subtracted from the counts: integers, for float32 to lose less.
    offsets : ndarray, shape (masks,)
        What the shift takes away from the sums.
    """

    touched: np.ndarray | None
    weights: np.ndarray
    shift: np.ndarray
    weights32: np.ndarray
    shift32: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def kept(state: State, weights: np.ndarray, tile: Tile, matrix: np.ndarray) -> MaskTile | None:
        """Masks over a tile from weights (mask, nky, nkx), kept in "masks" of a state that starts as {}, "kept" as 0.

        None where all weights are 0.
        """
        # What a store decodes is unsigned where it fits in few bytes, and then weighted otherwise.
        key = tile, matrix.dtype.kind
        if key not in state["masks"]:
            # Moved blocks have as many places as shifts; the others, one for each tile of the detector.
            state["kept"] += matrix.shape[1]
            if state["kept"] > PLACES_KEPT * weights[0].size:
                state["masks"], state["kept"] = {}, matrix.shape[1]
            state["masks"][key] = MaskTile.cut(tile.columns(weights[:, tile.ky, tile.kx]), matrix)
        return state["masks"][key]

    @classmethod
    def cut(cls, weights: np.ndarray, matrix: np.ndarray) -> MaskTile | None:
        """The tile of counts (pattern, pixel) from the weights (mask, pixel) there; None where they are 0."""
        touched = np.asarray(weights.any(0))
        if not touched.any():
            return None
        # Pixels of weight 0 must not carry their NaN into the sums; few pixels are also cheaper alone.
        some = not touched.all() and (matrix.dtype.kind == "f" or touched.mean() < 0.25)
        if some:
            matrix, weights = matrix[:, touched], weights[:, touched]
        shift = np.zeros(matrix.shape[1])
        if matrix.dtype.kind == "u":
            shift = np.rint(matrix[:: -(-len(matrix) // 8)].mean(0, dtype=np.float64))
            shift = np.minimum(shift, LARGEST_SHIFT)
        return cls(
            touched if some else None,
            read_only(np.ascontiguousarray(weights)),
            read_only(shift),
            read_only(np.ascontiguousarray(weights, np.float32)),
            read_only(shift.astype(np.float32)),
            weights @ shift,
        )

    def weighted_sums(self, matrix: np.ndarray) -> np.ndarray:
        """Weighted sums (pattern, mask) of counts (pattern, pixel)."""
        if self.touched is not None:
            matrix = read_only(np.ascontiguousarray(matrix[:, self.touched]))
        sums = np.zeros((len(matrix), len(self.weights)))
        if matrix.dtype.kind == "u":
            weighted_counts(matrix, self.weights, self.shift, self.weights32, self.shift32, sums)
        else:
            weighted_sums(matrix, self.weights, self.shift, sums)
        return sums + self.offsets


def used_rows(block: Block, used: np.ndarray | None) -> np.ndarray:
    """Counts (pattern, pixel) of the probe positions used, contiguous, the pixels in the order of `block.tile`."""
    return rows_of(block.matrix, used)


def rows_of(matrix: np.ndarray, used: np.ndarray | None) -> np.ndarray:
    """Rows of a matrix (pattern, pixel) at the probe positions used, contiguous, as a kernel wants them."""
    rows = np.ascontiguousarray(matrix if used is None else matrix[used.ravel()])
    return read_only(rows.view(np.uint8) if rows.dtype.kind == "b" else rows)


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
                f"Template {n} holds NaN or infinity at {int((~finite).sum())} of the probe positions used; give "
                "finite weights or leave these positions out by scan_region."
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


def prepare_masks(
    weights: np.ndarray,
    subtract: np.ndarray | None,
    divide: np.ndarray | None,
    valid: np.ndarray | None,
    pixels: np.ndarray | None = None,
) -> Masks:
    r"""Masks for a pass, from weights m (mask, nky, nkx), of which none but those of `pixels` are other than 0.

    Without `divide` the image is D m^T (eq. 2). With `subtract` = mean and `divide` = std it is
    :math:`\hat D m^T = D (m / \sigma)^T - \sum_j \bar d_j m_j / \sigma_j`: a scaled mask and one number.
    """
    weights = np.array(weights, np.float64)
    bad = ~np.isfinite(weights)
    if bad.any():
        raise MaskError(f"The mask holds NaN or infinity at {int(bad.sum())} weights; give finite weights.")
    if pixels is not None and weights[:, ~pixels].any():
        raise MaskError(
            "The mask has weights outside the detector region that it carries, which was not read; drop its coordinate "
            '"detector_region".'
        )
    if valid is not None:
        weights[:, ~valid] = 0.0
    offsets = np.zeros(len(weights))
    if divide is not None and subtract is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = np.where(divide > 0, weights / divide, 0.0)
        offsets = (weights * np.where(divide > 0, subtract, 0.0)).sum((1, 2))
    return Masks(weights, offsets)
