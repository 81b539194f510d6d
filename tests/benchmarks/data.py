"""The data: scans of Poisson counts, as raw binary, HDF5, a Merlin file and stores; each made once, when first used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

Pair = tuple[int, int]

# Detector-like counts: Poisson means inside and outside the BF disk, and its radius as a part of the half-detector.
INSIDE, OUTSIDE, BF_RADIUS = 8.0, 0.6, 47 / 128
FLAT = 2.0
SCAN_STEP = 0.3  # angstrom
DTYPE = np.dtype(np.uint16)


@dataclass(frozen=True)
class Scan:
    """A file or store of uint16 counts."""

    path: Path
    scan_shape: Pair
    detector_shape: Pair

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return *self.scan_shape, *self.detector_shape

    @property
    def nbytes(self) -> int:
        """Bytes of the counts, uncompressed."""
        return math.prod(self.shape) * DTYPE.itemsize

    def in_memory(self) -> np.ndarray:
        """All counts of a raw file."""
        return np.fromfile(self.path, DTYPE).reshape(self.shape)


@dataclass(frozen=True)
class Scale:
    """Sizes of the data of one run."""

    scan: Pair
    detector: Pair
    mib_scan: Pair
    store_scans: tuple[Pair, Pair, Pair]


SCALES = {
    # 1 GB; a Merlin file of 4 GB; stores of 1, 4 and 16 GB.
    "full": Scale((64, 128), (256, 256), (128, 256), ((64, 128), (128, 256), (256, 512))),
    # A few MB, to try the benchmark itself.
    "small": Scale((16, 32), (32, 32), (32, 32), ((16, 32), (32, 32), (32, 64))),
}


class Data:
    """Everything that the cases read, in one folder.

    Parameters
    ----------
    folder : path
        What is there already is used again.
    scale : {"full", "small"}
    say : callable
        Told what is being made.
    """

    def __init__(self, folder: Path, scale: str, say: Callable[[str], None]) -> None:
        self.folder, self.scale, self._say = folder, SCALES[scale], say
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def flat(self) -> Scan:
        """Counts of Poisson mean 2, raw binary."""

        def write(path: Path) -> None:
            counts = Counts(self.scale.detector, FLAT, FLAT)
            with open(path, "wb") as file:
                for y in range(self.scale.scan[0]):
                    file.write(counts.patterns(self.scale.scan[1], seed=y).data)

        return self._made("flat.raw", self.scale.scan, write)

    @cached_property
    def flat_hdf5(self) -> Scan:
        """The same counts in an HDF5 file, neither chunked nor compressed."""
        import h5py

        def write(path: Path) -> None:
            counts = np.memmap(self.flat.path, DTYPE, "r", shape=self.flat.shape)
            with h5py.File(path, "w") as file:
                file["counts"] = counts

        return self._made("flat.h5", self.scale.scan, write)

    @cached_property
    def merlin(self) -> Scan:
        """Detector-like counts in a Merlin file."""
        from vendor_files import write_mib

        def write(path: Path) -> None:
            counts = Counts(self.scale.detector, INSIDE, OUTSIDE)
            write_mib(path, counts.patterns(math.prod(self.scale.mib_scan), seed=0))

        return self._made("scan.mib", self.scale.mib_scan, write)

    @cached_property
    def stores(self) -> tuple[Scan, ...]:
        """Detector-like counts in stores of three sizes, with the default settings of `tdm.convert`."""
        return tuple(self._store(scan) for scan in self.scale.store_scans)

    @property
    def store(self) -> Scan:
        """The smallest of the stores."""
        return self._store(self.scale.store_scans[0])

    @property
    def middle_store(self) -> Scan:
        """The second of the stores."""
        return self._store(self.scale.store_scans[1])

    @property
    def zstd_store(self) -> Scan:
        """The counts of the second one, compressed by zstd."""
        return self._store(self.scale.store_scans[1], "zstd")

    def _store(self, scan: Pair, compression: str = "lz4") -> Scan:
        import dask.array as da

        import tdm_dask as tdm

        def write(path: Path) -> None:
            source = Counts(self.scale.detector, INSIDE, OUTSIDE)
            tiles = [tuple(min(32, n - i) for i in range(0, n, 32)) for n in scan]

            def tile(block_id: tuple[int, ...]) -> np.ndarray:
                shape = tiles[0][block_id[0]], tiles[1][block_id[1]]
                return source.patterns(math.prod(shape), seed=list(block_id)).reshape(*shape, *self.scale.detector)

            chunks = (*tiles, *((n,) for n in self.scale.detector))
            counts = tdm.label_counts(da.map_blocks(tile, chunks=chunks, dtype=DTYPE, meta=np.empty((0,) * 4, DTYPE)))
            tdm.convert(counts, path, scan_step=SCAN_STEP, compression=compression)

        of_zstd = "-zstd" if compression == "zstd" else ""
        return self._made(f"{scan[0]}x{scan[1]}{of_zstd}.zarr", scan, write)

    def _made(self, name: str, scan: Pair, write: Callable[[Path], None]) -> Scan:
        """Make a file under another name and move it, so that one that is there is whole."""
        made = Scan(self.folder / name, scan, self.scale.detector)
        if not made.path.exists():
            self._say(f"making {name}, {made.nbytes / 1e9:.3g} GB of counts")
            unfinished = made.path.with_stem(f"{made.path.stem}-unfinished")
            write(unfinished)
            unfinished.rename(made.path)
        return made


class Counts:
    """Poisson counts, drawn quickly: each pattern takes its pixels from a pool of counts, at a random place.

    Parameters
    ----------
    detector : (int, int)
    inside, outside : float
        Poisson means inside and outside the BF disk.
    """

    def __init__(self, detector: Pair, inside: float, outside: float) -> None:
        rng = np.random.default_rng(0)
        self._detector = detector
        self._disk = bf_disk(detector).ravel()
        self._pools = [rng.poisson(mean, 256 * self._disk.size).astype(DTYPE) for mean in (inside, outside)]

    def patterns(self, n: int, seed: int | list[int]) -> np.ndarray:
        """Patterns (n, nky, nkx)."""
        pixels = self._disk.size
        starts = np.random.default_rng(seed).integers(0, self._pools[0].size - pixels, (n, 2))
        out = np.empty((n, pixels), DTYPE)
        for pattern, (a, b) in zip(out, starts, strict=True):
            pattern[:] = self._pools[1][b : b + pixels]
            np.copyto(pattern, self._pools[0][a : a + pixels], where=self._disk)
        return out.reshape(n, *self._detector)


def bf_disk(detector: Pair) -> np.ndarray:
    """Pixels of the BF disk, centred: bool (nky, nkx)."""
    ky, kx = (np.arange(n) - (n - 1) / 2 for n in detector)
    return np.hypot(ky[:, None], kx) < BF_RADIUS * detector[0] / 2
