"""Inner chunks decoded into memory that is used again: in the order of their counts, or as passes want them.

Blosc with bitshuffle stores bit planes; a pass over them needs no order of the pixels, and gets them in eight
interleaved parts and in as few bytes as the counts need, two to three times as fast (`kernels.bit_planes`). What is
stored in any other way, or not as expected, is numcodecs'.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import numcodecs.zstd
import numpy as np

from ..kernels.bit_planes import TOO_NARROW, place_planes
from ..kernels.blosc_blocks import ALIKE, DAMAGED, read_blocks
from ..kernels.pixel_order import PARTS
from .blosc_header import SIZE, Blocks, read_header
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
        self._codec, self.dtype, self._fill = codec, dtype, fill_value
        self._compressor = codec.bit_planes
        self._patterns, self._pixels = math.prod(self.inner[:2]), math.prod(self.inner[2:])
        self._nbytes = math.prod(self.inner) * dtype.itemsize
        # Of the chunks of an array the headers are alike, but for their last number.
        self._header, self._blocks = b"", cast(Blocks | None, None)
        self._layout = self._nbytes, 0, dtype.itemsize, False
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
        out = self._take(_IN_ORDER, self.dtype)
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
        blocks = self._blocks_of(data[:ALIKE].tobytes())
        if blocks is None:
            return None
        found = TOO_NARROW
        while found == TOO_NARROW:
            used = self._used
            out = self._narrow(used)
            if self._lz4:
                found = read_blocks(data, *self._layout, self._lz4, self._planes, self._parts, out)
            else:
                found = self._read_zstd(data, blocks.block, out)
            self._take_note(found)
        return self._shown[used] if found > 0 else None

    @property
    def feeds(self) -> bool:
        """Whether chunks can be given to compiled code as they are stored."""
        return self._interleaves and self._lz4 != 0 and self.dtype.kind == "u"

    def feed(self, function: Callable[..., tuple[int, int]], data: np.ndarray, places: np.ndarray, first: int,
             *arguments: Any) -> int:  # fmt: skip
        """Give chunks to a function of `kernels.chunk_runs`, from the first on; the number of the one that it refused.

        Those that are not bit planes of LZ4, or damaged, are refused, and left to whoever takes them one by one. Only
        where the array `feeds`.
        """
        start = int(places[0, 0])
        if self._blocks_of(data[start : start + ALIKE].tobytes()) is None:
            return first
        found = TOO_NARROW
        while found == TOO_NARROW:
            used = self._used
            out = self._narrow(used)
            memory = self._planes, self._parts, out, self._shown[used]
            first, found = function(data, places, first, self._layout, self._lz4, memory, *arguments)
            self._take_note(found)
        return first

    def _narrow(self, used: int) -> np.ndarray:
        """Memory for counts of so many bytes."""
        found = self._memory.get(used)
        return self._take(used, np.dtype(f"u{used}")) if found is None else found

    def _take_note(self, found: int) -> None:
        """Of how many bytes the next count will need, by what has been found."""
        if found == TOO_NARROW:
            self._used *= 2
        elif 0 < found < self._used and self.dtype.kind != "f":
            self._used = 1 << (found - 1).bit_length()

    def _blocks_of(self, start: bytes) -> Blocks | None:
        """The blocks of a chunk from the start of its header; None where they cannot be read."""
        if start != self._header:
            self._header, self._blocks = start, self._read_header(start)
        return self._blocks

    def _read_header(self, start: bytes) -> Blocks | None:
        size, compressor = self.dtype.itemsize, self._compressor or ""
        blocks = read_header(start, compressor, self._nbytes, size)
        # Only of LZ4 each byte of the counts may be a stream of its own.
        if blocks is None or (blocks.split and compressor != "lz4"):
            return None
        if blocks.block > len(self._planes):
            self._planes, self._parts = np.empty(blocks.block, np.uint8), np.empty(blocks.block, np.uint8)
        self._layout = self._nbytes, blocks.block, size, blocks.split
        return blocks

    def _read_zstd(self, data: np.ndarray, block: int, out: np.ndarray) -> int:
        """As `read_blocks`, of blocks that are each one stream of zstd."""
        size, nbytes, needed = self.dtype.itemsize, self._nbytes, 1
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
        narrow = self.dtype.kind in "ui" and self.dtype.itemsize > 1 and 0 <= value < 256
        used = 1 if narrow else self.dtype.itemsize
        counts = self._take(used, np.dtype(f"u{used}"))
        (counts if narrow else counts.view(self.dtype))[...] = value
        return self._shown[used]

    def _take(self, used: int, dtype: np.dtype) -> np.ndarray:
        """Memory for counts of so many bytes, or for those in order; a view of it is to be shown."""
        found = self._memory.get(used)
        if found is None:
            found = self._memory[used] = np.empty((self._patterns, self._pixels), dtype)
            shown = found.view(self.dtype) if used == self.dtype.itemsize else found.view()
            shown.flags.writeable = False
            self._shown[used] = shown
        return found
