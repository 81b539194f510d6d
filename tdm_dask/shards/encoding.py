"""Inner chunks encoded for a store: Blosc chunks of LZ4 are made here, as c-blosc makes them; others by numcodecs."""

from __future__ import annotations

import functools
import sys

import lz4.block
import numpy as np

from ..kernels.bit_planes import GROUP
from ..kernels.blosc_blocks import write_blocks
from .blosc_header import SIZE, header
from .codec import Codec
from .lz4_library import lz4_address

# Counts of a block: each byte of them is a stream of 128 KiB, as with c-blosc.
BLOCK = 2**17


@functools.cache
def _zeros(size: int, acceleration: int) -> np.ndarray:
    """LZ4 of so many zeros."""
    data = lz4.block.compress(bytes(size), mode="fast", acceleration=acceleration, store_size=False)
    return np.frombuffer(data, np.uint8)


class Encoder:
    """Encodes inner chunks of one array, in memory that is used again; for one thread.

    Parameters
    ----------
    codec : Codec
    dtype : dtype
    """

    def __init__(self, codec: Codec, dtype: np.dtype) -> None:
        self._codec = codec
        options = dict(codec.options)
        own = (
            codec.bit_planes == "lz4"
            and options.get("blocksize", 0) == 0
            and 1 <= options["clevel"] <= 9
            and dtype.itemsize in (1, 2, 4)
            and sys.byteorder == "little"
        )
        self._lz4 = lz4_address("LZ4_compress_fast") if own else 0
        # The trade of time for size that c-blosc makes.
        self._acceleration = 10 - options["clevel"] if own else 1
        self._planes = self._out = np.empty(0, np.uint8)

    def encode(self, chunk: np.ndarray) -> tuple[bytes, ...]:
        """Stored bytes of one C-contiguous, little-endian inner chunk, in pieces that follow each other."""
        data = self._compressed(chunk) if self._lz4 and chunk.size % GROUP == 0 else None
        return self._codec.encode(chunk) if data is None else self._codec.sealed(data)

    def _compressed(self, chunk: np.ndarray) -> bytes | None:
        """A Blosc chunk, None where it would not be smaller than the counts."""
        counts = chunk.reshape(-1).view(f"u{chunk.itemsize}")
        block = min(BLOCK, counts.size)
        if counts.nbytes > len(self._out):
            self._out = np.empty(counts.nbytes, np.uint8)
            self._planes = np.empty(block * counts.itemsize, np.uint8)
        zeros = _zeros(block, self._acceleration)
        out = self._out[: counts.nbytes]
        size = write_blocks(counts, block, self._lz4, self._acceleration, zeros, self._planes, out)
        if not size:
            return None
        head = header("lz4", counts.nbytes, counts.itemsize, block * counts.itemsize, size)
        out[:SIZE] = np.frombuffer(head, np.uint8)
        return out[:size].tobytes()
