"""Inner chunks decoded into memory that is used again: in the order of their counts, or as passes want them.

Blosc with bitshuffle stores bit planes; a pass over them needs no order of the pixels, and gets them in eight
interleaved parts and in as few bytes as the counts need, two to three times as fast (`kernels.bit_planes`). What is
stored in any other way, or not as expected, is numcodecs'.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numcodecs.zstd
import numpy as np

from ..kernels.bit_planes import place_planes
from ..kernels.blosc_blocks import DAMAGED, read_blocks
from ..kernels.pixel_order import PARTS
from .blosc_header import SIZE, read_header
from .codec import Codec, zstd_size
from .lz4_library import lz4_address


class Decoder:
    """Decodes inner chunks of one array, each into the same memory; for one thread.

    Parameters
    ----------
    codec : Codec
    inner : tuple of 4 int
    dtype : dtype
    fill_value : float
    """

    def __init__(self, codec: Codec, inner: Sequence[int], dtype: np.dtype, fill_value: float) -> None:
        iy, ix, height, width = inner
        self.inner = (iy, ix, height, width)
        self._codec, self._dtype, self._fill = codec, dtype, fill_value
        self._compressor = codec.bit_planes
        self._memory: dict[str, np.ndarray] = {}
        self._shown: dict[str, np.ndarray] = {}
        self._planes = self._parts = np.empty(0, np.uint8)
        self._needed = 1  # bytes of a count
        self._lz4 = lz4_address("LZ4_decompress_safe") if self._compressor == "lz4" else 0
        pixels = math.prod(self.inner[2:])
        self._interleaves = (
            (self._compressor == "zstd" or self._lz4 != 0)
            and sys.byteorder == "little"
            and dtype.itemsize in (1, 2, 4)
            and pixels % PARTS == 0
        )

    def in_order(self, data: np.ndarray | None) -> np.ndarray:
        """Counts (y, x, ky, kx) of stored bytes whose checksum is right; None stands for a chunk that is not stored.

        Raises
        ------
        ValueError
            If they cannot be decoded.
        """
        out = self._take("in order", self._dtype)
        if data is None:
            out[...] = self._fill
        else:
            self._codec.decompress(data, out)
        return out.reshape(self.inner)

    def interleaved(self, data: np.ndarray | None) -> np.ndarray | None:
        """The same as narrow counts (y, x, pixels in eight parts), read-only; None where these are not to be had.

        Unsigned where they are narrower than they were stored; else of the array's dtype.
        """
        if not self._interleaves:
            return None
        if data is None:
            return self._filled()
        compressor, size = self._compressor or "", self._dtype.itemsize
        nbytes = math.prod(self.inner) * size
        blocks = read_header(data, compressor, nbytes, size)
        # Only of LZ4 each byte of the counts may be a stream of its own.
        if blocks is None or (blocks.split and compressor != "lz4"):
            return None
        block, split = blocks
        if block > len(self._planes):
            self._planes, self._parts = np.empty(block, np.uint8), np.empty(block, np.uint8)
        # What one chunk needs, the next one will hardly do without. Bytes of a float are none by themselves.
        used = size if self._dtype.kind == "f" else 1 << (self._needed - 1).bit_length()
        while used <= size:
            out = self._take(f"{used} bytes", np.dtype(f"u{used}"))
            if compressor == "lz4":
                found = read_blocks(data, nbytes, block, size, split, self._lz4, self._planes, self._parts, out)
            else:
                found = self._read_zstd(data, nbytes, block, out)
            if found > 0:
                self._needed = found
                return self._rows(f"{used} bytes", self._dtype if used == size else out.dtype)
            if found == DAMAGED:
                return None
            used *= 2
        return None

    def _read_zstd(self, data: np.ndarray, nbytes: int, block: int, out: np.ndarray) -> int:
        """As `read_blocks`, of blocks that are each one stream of zstd."""
        size, needed = self._dtype.itemsize, 1
        starts = data[SIZE:][: 4 * -(-nbytes // block)].view("<i4").tolist()
        for n, start in enumerate(starts):
            planes = self._planes[: min(block, nbytes - n * block)]
            stored = int.from_bytes(data[start : start + 4].tobytes(), "little")
            stream = data[start + 4 : start + 4 + stored]
            if start < SIZE + 4 * len(starts) or len(stream) < stored:
                return DAMAGED
            if stored == len(planes):
                planes[:] = stream  # a copy
            elif zstd_size(stream) != len(planes):
                return DAMAGED
            else:
                try:
                    numcodecs.zstd.decompress(stream, planes)
                except (RuntimeError, ValueError):
                    return DAMAGED
            found = place_planes(planes, size, n * block // size, self._parts, out)
            if found < 0:
                return found
            needed = max(needed, found)
        return needed

    def _rows(self, name: str, dtype: np.dtype) -> np.ndarray:
        """What has been decoded into the memory of a name, to be looked at alone."""
        rows = self._shown.get(name)
        if rows is None:
            matrix = self._memory[name]
            rows = self._shown[name] = matrix.view(dtype).reshape(*self.inner[:2], matrix.shape[1])
            rows.flags.writeable = False
        return rows

    def _filled(self) -> np.ndarray | None:
        value = self._fill
        narrow = self._dtype.kind in "ui" and self._dtype.itemsize > 1 and 0 <= value < 256
        name, dtype = ("1 bytes", np.dtype("u1")) if narrow else ("filled", self._dtype)
        self._take(name, dtype)[...] = value
        return self._rows(name, dtype)

    def _take(self, name: str, dtype: np.dtype) -> np.ndarray:
        patterns, pixels = math.prod(self.inner[:2]), math.prod(self.inner[2:])
        found = self._memory.get(name)
        if found is None:
            found = self._memory[name] = np.empty((patterns, pixels), dtype)
        return found
