"""Merlin's raw mode (R64): where each pixel of the detector lies in a frame as the chips gave it away.

A frame is a stream of 64-bit words, the first byte the highest one. A word holds pixels side by side in a row of the
detector, the first of them in the lowest bits: 64 of 1 bit, 8 of a byte (6-bit counters), or 4 of two bytes (12-bit
counters). 24-bit counters are two frames of 12 bits, the higher half first. The rows of all chips lie side by side. Of
four chips in a square, the last two are the upper ones in the order of the file (left: the last), and the first two
the lower ones (left: the second), turned by half a turn. As in every Merlin file, the first row is the lowest one.

The order for 1, 6 and 12 bits and for 24 bits of one chip is that of LiberTEM's reader
(https://github.com/LiberTEM/LiberTEM, dataset "mib"); that for 1 bit agrees with real files, in which the same noisy
pixels stand out in raw mode and outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...reading.blocks import Frames
from ...reading.memory import Buffers

# Bytes of a word of pixels, and what a pixel takes in it.
WORD = 8
BITS_STORED = {1: 1, 6: 8, 12: 16, 24: 16}
DTYPES: dict[int, np.dtype] = {1: np.dtype("u1"), 6: np.dtype("u1"), 12: np.dtype("u2"), 24: np.dtype("u4")}


@dataclass(frozen=True)
class RawChips(Frames):
    """Patterns of raw frames, upright, every pixel in its place.

    Parameters
    ----------
    frames : Frames
        The bytes of the frames, shape (ny, nx, rows, bytes of a row of all chips); with 24-bit counters, the rows of
        the lower half follow those of the higher one.
    depth : {1, 6, 12, 24}
        Bits of a counter.
    square : bool
        Whether the rows are those of four chips in a square; else they are those of one chip.
    """

    frames: Frames
    depth: int
    square: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        ny, nx, rows, row_bytes = self.frames.shape
        rows = rows // 2 if self.depth == 24 else rows
        columns = row_bytes * 8 // BITS_STORED[self.depth]
        return (ny, nx, rows * 2, columns // 2) if self.square else (ny, nx, rows, columns)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return DTYPES[self.depth]

    @property
    def counter_depth(self) -> int:  # type: ignore[override]
        return self.depth

    def read_as_stored(self, y: slice, x: slice, buffers: Buffers) -> np.ndarray:
        stored = self.frames.read_as_stored(y, x, buffers)
        words = buffers.take("words", stored.shape, np.uint8)
        words[...] = stored
        words.view("u8").byteswap(inplace=True)
        pixels = self._pixels(words, buffers)
        if not self.square:
            return pixels[..., ::-1, :]
        out = buffers.take("square", (*pixels.shape[:2], *self.shape[2:]), pixels.dtype)
        rows, width = self.shape[2] // 2, self.shape[3] // 2
        chips = [pixels[..., i * width : (i + 1) * width] for i in range(4)]
        _copy_mirrored(chips[1], out[..., :rows, :width])
        _copy_mirrored(chips[0], out[..., :rows, width:])
        out[..., rows:, :width] = chips[3][..., ::-1, :]
        out[..., rows:, width:] = chips[2][..., ::-1, :]
        return out

    def _pixels(self, words: np.ndarray, buffers: Buffers) -> np.ndarray:
        """Pixels in the order of the file's rows, from words whose first byte is the lowest one."""
        if self.depth == 1:
            return np.unpackbits(words, axis=-1, bitorder="little")
        if self.depth == 6:
            return words
        values = words.view("<u2")
        if self.depth == 12:
            return values
        high, low = np.split(values, 2, axis=-2)
        out = buffers.take("24 bits", high.shape, np.uint32)
        np.left_shift(high, 12, out=out, dtype=np.uint32)
        return np.bitwise_or(out, low, out=out)


def _copy_mirrored(pixels: np.ndarray, out: np.ndarray) -> None:
    """Copy pixels, the last of each row first; of bytes, whole words, which NumPy is twice as quick with."""
    if pixels.itemsize > 1:
        out[...] = pixels[..., ::-1]
        return
    words = out.view("u8")
    words[...] = pixels.view("u8")[..., ::-1]
    words.byteswap(inplace=True)
