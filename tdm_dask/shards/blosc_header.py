"""The first bytes of a Blosc chunk of bit planes: what can be read block by block, and what is written so."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..kernels.blosc_blocks import ALIKE

# Version of the container and of its compressor's format; kinds of what flags say.
_VERSION, _COMPRESSOR_VERSION = 2, 1
_SHUFFLES, _BITSHUFFLED, _COPIED, _RESERVED, _UNSPLIT = 0b101, 0b100, 0b10, 0b1000, 0b10000
_FORMATS = {"lz4": 1, "zstd": 4}
_START, _STORED = struct.Struct("<BBBBii"), struct.Struct("<i")
# Bytes of it; the place of each block follows, in four.
SIZE = ALIKE + _STORED.size
# Counts of one word of a bit plane.
_WORD = 64


class Blocks(NamedTuple):
    """How the bit planes of a chunk lie in blocks.

    Attributes
    ----------
    block : int
        Bytes of counts in each block but the last, which may have fewer.
    split : bool
        Whether each byte of the counts is a stream of its own in whole blocks.
    """

    block: int
    split: bool


def read_header(start: bytes, compressor: str, nbytes: int, itemsize: int) -> Blocks | None:
    """The blocks of a chunk that should hold so many bytes of counts; None where they cannot be read from planes.

    `start` are the bytes of the header that the chunks of an array have in common: all but the number of stored bytes.
    """
    if len(start) < ALIKE:
        return None
    version, compressor_version, flags, size, length, block = _START.unpack(start)
    words = _WORD * itemsize
    expected = (
        (version, compressor_version, size, length) == (_VERSION, _COMPRESSOR_VERSION, itemsize, nbytes)
        and flags & _SHUFFLES == _BITSHUFFLED
        and not flags & (_COPIED | _RESERVED)
        and flags >> 5 == _FORMATS.get(compressor)
        and 0 < block <= nbytes
        and block % words == 0
        and (nbytes % block) % words == 0
    )
    return Blocks(block, not flags & _UNSPLIT) if expected else None


def header(compressor: str, nbytes: int, itemsize: int, block: int, stored: int) -> bytes:
    """The header of a chunk of so many bytes in split blocks, which holds `nbytes` of counts."""
    flags = _FORMATS[compressor] << 5 | _BITSHUFFLED
    start = _START.pack(_VERSION, _COMPRESSOR_VERSION, flags, itemsize, nbytes, block)
    return start + _STORED.pack(stored)
