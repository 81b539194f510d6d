"""What the hardware and the codec allow: parts of the jobs that no implementation can leave out, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numcodecs.blosc
import numpy as np

from .contestant import Answer, Contestant, images_answer
from .data import DTYPE, Scan

READ_BYTES = 8 * 2**20
EMPTY = 2**64 - 1  # offset of an inner chunk that is not there
CHECKSUM_BYTES = 4

# As in the package: one level of threads only.
numcodecs.blosc.use_threads = False


class MemoryRead(Contestant):
    """Every byte of an array in memory, read once: their sum as 64-bit words."""

    def load(self) -> None:
        self.words = self.in_memory().view(np.uint64)

    def run(self) -> Answer:
        self.words.sum()
        return {}


@dataclass
class RawRead(Contestant):
    """Every byte of a file read into one reused buffer, as `dd` does, as often as the job has to read it."""

    passes: int = 2

    def load(self) -> None:
        self.buffer = bytearray(READ_BYTES)

    def run(self) -> Answer:
        for _ in range(self.passes):
            with open(self.scan.path, "rb", buffering=0) as file:
                while file.readinto(self.buffer):
                    pass
        return {}


class Sgemm(Contestant):
    """The product of float32 counts and float32 masks by BLAS, both in memory already."""

    def load(self) -> None:
        self.matrix = self.scan.in_memory().reshape(-1, self.weights[0].size).astype(np.float32)

    def run(self) -> Answer:
        images = self.weights.reshape(self.masks, -1) @ self.matrix.T
        return images_answer(images.reshape(self.masks, *self.scan.scan_shape))


class Decode(Contestant):
    """Every inner chunk of a store decompressed from memory into one reused buffer, its checksum left out."""

    def load(self) -> None:
        layout = Layout(self.scan.path)
        self.chunks = list(layout.stored_chunks())
        self.buffer = np.empty(layout.inner, DTYPE)

    def run(self) -> Answer:
        for chunk in self.chunks:
            numcodecs.blosc.decompress(chunk, self.buffer)
        return {}


@dataclass
class Encode(Contestant):
    """The counts of a Merlin file, as inner chunks in memory, compressed as in a store of the default settings.

    Its answer is what a conversion has to find out about the counts; it is not timed.
    """

    like: Scan = field(kw_only=True)  # a store of the default settings

    def load(self) -> None:
        layout = Layout(self.like.path)
        self.options = layout.blosc
        y, x, ky, kx = layout.inner
        (ny, nx), (nky, nkx) = self.scan.scan_shape, self.scan.detector_shape
        head = self.scan.path.stat().st_size // (ny * nx) - nky * nkx * DTYPE.itemsize
        record = np.dtype([("head", f"S{head}"), ("counts", DTYPE.newbyteorder(">"), (nky, nkx))])
        frames = np.memmap(self.scan.path, record, "r", shape=(ny, nx))["counts"][:, :, ::-1]  # bottom row first
        self.blocks: list[np.ndarray] = []
        self.totals, self.mean = np.empty((ny, nx)), np.zeros((nky, nkx))
        for top in range(0, ny, y):
            lines = frames[top : top + y].astype(DTYPE)
            self.totals[top : top + y] = lines.sum((2, 3), np.uint64)
            self.mean += lines.sum((0, 1), np.uint64) / (ny * nx)
            tiles = lines.reshape(y, nx // x, x, nky // ky, ky, nkx // kx, kx).transpose(1, 3, 5, 0, 2, 4, 6)
            self.blocks += list(np.ascontiguousarray(tiles).reshape(-1, *layout.inner))

    def run(self) -> Answer:
        for block in self.blocks:
            numcodecs.blosc.compress(block, *self.options)
        return {"total_counts": self.totals, "pattern_mean": self.mean}


class Layout:
    """How a store holds its counts, read from its zarr metadata alone.

    Parameters
    ----------
    store : path

    Attributes
    ----------
    inner : tuple of 4 int
        Shape of an inner chunk.
    blosc : tuple
        Compressor, level, shuffle and block size, as `numcodecs.blosc.compress` takes them.
    """

    def __init__(self, store: Path) -> None:
        self._shards = store / "counts" / "c"
        metadata = json.loads((store / "counts" / "zarr.json").read_text())
        sharding = metadata["codecs"][0]["configuration"]
        shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        self.inner = tuple(sharding["chunk_shape"])
        self._n_inner = math.prod(shard) // math.prod(self.inner)
        codec = next(c["configuration"] for c in sharding["codecs"] if c["name"] == "blosc")
        shuffle = ("noshuffle", "shuffle", "bitshuffle").index(codec["shuffle"])
        self.blosc = (codec["cname"].encode(), codec["clevel"], shuffle, codec["blocksize"])

    def stored_chunks(self) -> Iterator[np.ndarray]:
        """Compressed bytes of every inner chunk, shard by shard in the order in which they lie there."""
        for path in sorted(p for p in self._shards.rglob("*") if p.is_file()):
            shard = np.fromfile(path, np.uint8)
            index = shard[-16 * self._n_inner - CHECKSUM_BYTES : -CHECKSUM_BYTES].view("<u8").reshape(-1, 2)
            for offset, length in sorted(index[index[:, 0] != EMPTY].tolist()):
                yield shard[offset : offset + length - CHECKSUM_BYTES]
