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
from .blosc_header import ALIKE, SIZE, Blocks, read_header
from .codec import Codec, zstd_size
from .lz4_library import lz4_address

# Memory for counts in order, beside that for narrow ones, which goes by their bytes.
_IN_ORDER = 0


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
        self._patterns, self._pixels = math.prod(self.inner[:2]), math.prod(self.inner[2:])
        self._nbytes = math.prod(self.inner) * dtype.itemsize
        # Of the chunks of an array the headers are alike, but for their last number.
        self._header, self._blocks = b"", None
        self._memory: dict[int, np.ndarray] = {}
        self._shown: dict[int, np.ndarray] = {}
        self._planes = self._parts = np.empty(0, np.uint8)
        # Bytes of a count: what one chunk needs, the next one will hardly do without. Of a float, all.
        self._used = dtype.itemsize if dtype.kind == "f" else 1
        self._lz4 = lz4_address("LZ4_decompress_safe") if self._compressor == "lz4" else 0
        self._interleaves = (
            (self._compressor == "zstd" or self._lz4 != 0)
            and sys.byteorder == "little"
            and dtype.itemsize in (1, 2, 4)
            and self._pixels % PARTS == 0
        )

    def in_order(self, data: np.ndarray | None) -> np.ndarray:
        """Counts (y, x, ky, kx) of stored bytes whose checksum is right; None stands for a chunk that is not stored.

        Raises
        ------
        ValueError
            If they cannot be decoded.
        """
        out = self._take(_IN_ORDER, self._dtype)
        if data is None:
            out[...] = self._fill
        else:
            self._codec.decompress(data, out)
        return out.reshape(self.inner)

    def interleaved(self, data: np.ndarray | None) -> np.ndarray | None:
        """The same as narrow counts (patterns, pixels in eight parts), read-only; None where these are not to be had.

        Unsigned where they are narrower than they were stored; else of the array's dtype.
        """
        if not self._interleaves:
            return None
        if data is None:
            return self._filled()
        start = data[:ALIKE].tobytes()
        if start != self._header:
            self._header, self._blocks = start, self._read_header(start)
        if self._blocks is None:
            return None
        block, split = self._blocks
        used, size = self._used, self._dtype.itemsize
        while used <= size:
            out = self._memory.get(used)
            if out is None:
                out = self._take(used, np.dtype(f"u{used}"))
            if self._lz4:
                found = read_blocks(data, self._nbytes, block, size, split, self._lz4, self._planes, self._parts, out)
            else:
                found = self._read_zstd(data, block, out)
            if found > 0:
                if found < used and self._dtype.kind != "f":
                    self._used = 1 << (found - 1).bit_length()
                return self._shown[used]
            if found == DAMAGED:
                return None
            used *= 2
            self._used = used
        return None

    def _read_header(self, start: bytes) -> Blocks | None:
        size, compressor = self._dtype.itemsize, self._compressor or ""
        blocks = read_header(start, compressor, self._nbytes, size)
        # Only of LZ4 each byte of the counts may be a stream of its own.
        if blocks is None or (blocks.split and compressor != "lz4"):
            return None
        if blocks.block > len(self._planes):
            self._planes, self._parts = np.empty(blocks.block, np.uint8), np.empty(blocks.block, np.uint8)
        return blocks

    def _read_zstd(self, data: np.ndarray, block: int, out: np.ndarray) -> int:
        """As `read_blocks`, of blocks that are each one stream of zstd."""
        size, nbytes, needed = self._dtype.itemsize, self._nbytes, 1
        number = -(-nbytes // block)
        if len(data) < SIZE + 4 * number or int(data[ALIKE:SIZE].view("<i4")[0]) != len(data):
            return DAMAGED
        starts = data[SIZE : SIZE + 4 * number].view("<i4").tolist()
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

    def _filled(self) -> np.ndarray:
        value = self._fill
        narrow = self._dtype.kind in "ui" and self._dtype.itemsize > 1 and 0 <= value < 256
        used = 1 if narrow else self._dtype.itemsize
        counts = self._take(used, np.dtype(f"u{used}"))
        (counts if narrow else counts.view(self._dtype))[...] = value
        return self._shown[used]

    def _take(self, used: int, dtype: np.dtype) -> np.ndarray:
        """Memory for counts of so many bytes, or for those in order; a view of it is to be shown."""
        found = self._memory.get(used)
        if found is None:
            found = self._memory[used] = np.empty((self._patterns, self._pixels), dtype)
            shown = found.view(self._dtype) if used == self._dtype.itemsize else found.view()
            shown.flags.writeable = False
            self._shown[used] = shown
        return found
