"""Counts that are simulated when they are read, block by block, always the same ones."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.base import tokenize

from ..reading.blocks import Shape, Source
from ..shards.shapes import choose_shards
from .scattering import Scatterer

# Largest scattering matrices and transmission functions that a process keeps.
_KEPT_BYTES = 4 * 2**30
# Most electrons per pattern of which no pixel can overflow 16 bits.
_MOST_IN_16_BITS = 60_000

# One block at a time: it fills every core, and its memory is that of one.
ONE_AT_A_TIME = threading.RLock()
_kept: OrderedDict[Any, np.ndarray] = OrderedDict()


@dataclass(frozen=True)
class SimulatedScan(Source):
    """Counts that are simulated when they are read, the same ones each time, whatever is read with them.

    Attributes
    ----------
    scatterer : Scatterer
    defoci : tuple of float
        Angstrom. The patterns of all planes and defoci follow each other along ky, the defoci of a plane together.
    shape : tuple of 4 int
    step : (float, float)
        Angstrom (y, x); the scan starts at the origin of the block.
    dose : float or None
        Electrons per probe position; None gives parts of one electron, in float32 and without noise.
    matrix : bool
        By the scattering matrix; else each probe by itself.
    block : int
        Least number of probe positions that are simulated, and written, together.
    """

    scatterer: Scatterer
    defoci: tuple[float, ...]
    shape: Shape
    step: tuple[float, float]
    dose: float | None
    matrix: bool
    block: int

    @property
    def name(self) -> str:
        return "The simulation"

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        if self.dose is None:
            return np.dtype(np.float32)
        return np.dtype(np.uint16 if self.dose <= _MOST_IN_16_BITS else np.uint32)

    @property
    def shard_bytes(self) -> int:  # type: ignore[override]
        return self.block * self.pattern_bytes

    @property
    def tile(self) -> tuple[int, int]:
        shard = choose_shards(self.shape, self.dtype.itemsize, shard_bytes=self.shard_bytes)[1]
        return min(shard[0], self.shape[0]), min(shard[1], self.shape[1])

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        out = np.empty((y1 - y0, x1 - x0, *self.shape[2:]), self.dtype)
        # Whole blocks, always the same ones: sums of another length would be rounded otherwise.
        for block in self._blocks(y0, y1, x0, x1):
            y, x = (slice(max(b.start, a), min(b.stop, z)) for b, a, z in zip(block, (y0, x0), (y1, x1), strict=True))
            counts = self._simulate(block)
            inside = counts[y.start - block[0].start : y.stop - block[0].start][
                :, x.start - block[1].start : x.stop - block[1].start
            ]
            out[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0] = inside
        return out

    def _blocks(self, y0: int, y1: int, x0: int, x1: int) -> Iterator[tuple[slice, slice]]:
        (ny, nx), (ty, tx) = self.shape[:2], self.tile
        ys = range(y0 - y0 % ty, y1, ty)
        for y, x in itertools.product(ys, range(x0 - x0 % tx, x1, tx)):
            yield slice(y, min(y + ty, ny)), slice(x, min(x + tx, nx))

    def _simulate(self, block: tuple[slice, slice]) -> np.ndarray:
        ys, xs = (np.arange(s.start, s.stop) for s in block)
        indices = np.stack(np.meshgrid(ys, xs, indexing="ij"), -1).reshape(-1, 2)
        with ONE_AT_A_TIME:
            intensities = mean_intensities(self.scatterer, indices * self.step, self.defoci, self.matrix)
        nky, nkx = self.shape[2:]
        stacked = intensities.transpose(1, 0, 2, 3).reshape(len(indices), nky, nkx)
        if self.dose is None:
            return stacked.reshape(len(ys), len(xs), nky, nkx)
        counts = np.empty(stacked.shape, self.dtype)
        for position, index in enumerate(indices):
            rng = np.random.default_rng((self.scatterer.conditions.seed, 1, *index.tolist()))
            counts[position] = rng.poisson(self.dose * stacked[position].astype(np.float64))
        return counts.reshape(len(ys), len(xs), nky, nkx)


def mean_intensities(scatterer: Scatterer, positions: np.ndarray, defoci: Sequence[float], matrix: bool) -> np.ndarray:
    """Parts of one electron on each pixel: (plane and defocus, position, ky, kx), the mean of all configurations."""
    n = len(scatterer.planes) * len(defoci)
    out = np.zeros((n, len(positions), *scatterer.detector), np.float32)
    for configuration in range(scatterer.conditions.configurations):
        for number, defocus in enumerate(defoci):
            coefficients = scatterer.probe(positions, defocus)
            if matrix:
                planes: Any = scatterer.from_matrix(_matrix(scatterer, configuration), coefficients)
            else:
                planes = scatterer.from_multislice(_transmission(scatterer, configuration), coefficients)
            for plane, intensity in enumerate(planes):
                out[plane * len(defoci) + number] += scatterer.on_pixels(intensity)
    return out / np.float32(scatterer.conditions.configurations)


def _matrix(scatterer: Scatterer, configuration: int) -> np.ndarray:
    key = (tokenize(scatterer), "matrix", configuration)
    return _keep(key, lambda: scatterer.scattering_matrix(scatterer.transmission(configuration)))


def _transmission(scatterer: Scatterer, configuration: int) -> np.ndarray:
    return _keep((tokenize(scatterer), "transmission", configuration), lambda: scatterer.transmission(configuration))


def _keep(key: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that later blocks of this process need too; the least recently used go where memory ends."""
    with ONE_AT_A_TIME:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
        for other in [k for k in _kept if k[0] != key[0]]:
            del _kept[other]
        made = make()
        _kept[key] = made
        while len(_kept) > 1 and sum(a.nbytes for a in _kept.values()) > _KEPT_BYTES:
            _kept.popitem(last=False)
        return made


def forget(scatterer: Scatterer) -> None:
    token = tokenize(scatterer)
    with ONE_AT_A_TIME:
        for key in [k for k in _kept if k[0] == token]:
            del _kept[key]
