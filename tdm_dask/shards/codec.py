"""What turns an inner chunk of counts into stored bytes and back: a compressor that numcodecs knows, and a checksum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
from crc32c import crc32c

from .blosc_header import SIZE as HEADER

CRC = 4  # bytes of a checksum
# The crc32c of any bytes that their own crc32c follows.
_SEALED = 0x48674BC7

_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}

# Blosc's own threads would take a lock around every call; the parallelism is one level up, in the tasks.
numcodecs.blosc.use_threads = False


@dataclass(frozen=True)
class Codec:
    """What turns the bytes of an inner chunk into stored bytes: a compressor and an optional checksum."""

    compressor: str | None  # "blosc", "zstd" or None
    options: tuple[tuple[str, Any], ...] = ()
    checksum: bool = True

    def encode(self, chunk: np.ndarray) -> tuple[bytes, ...]:
        """Stored bytes of one C-contiguous, little-endian inner chunk, in pieces that follow each other."""
        options = dict(self.options)
        if self.compressor == "blosc":
            data = numcodecs.blosc.compress(
                chunk,
                options["cname"].encode(),
                options["clevel"],
                _BLOSC_SHUFFLE[options["shuffle"]],
                options.get("blocksize", 0),
            )
        elif self.compressor == "zstd":
            data = numcodecs.zstd.compress(chunk, options.get("level", 0), options.get("checksum", False))
        else:
            data = chunk.tobytes()
        return self.sealed(data)

    def sealed(self, data: bytes) -> tuple[bytes, ...]:
        """Compressed bytes, and their checksum if there is one."""
        return (data, checksum(data)) if self.checksum else (data,)

    @property
    def bit_planes(self) -> str | None:
        """By what the bit planes of the counts are compressed, such as "lz4"; None where something else is stored."""
        options = dict(self.options)
        return options.get("cname") if self.compressor == "blosc" and options.get("shuffle") == "bitshuffle" else None

    def for_chunks(self, nbytes: int) -> Codec:
        """The same for inner chunks of so many bytes: zstd takes each as one block.

        In blocks of the size that Blosc chooses, zstd compresses less, and decoding takes up to twice as long.
        """
        if ("cname", "zstd") not in self.options:
            return self
        return replace(self, options=(*self.options, ("blocksize", nbytes)))

    def decompress(self, data: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` from stored bytes without their checksum; ValueError where they or their length are wrong."""
        flat = out.reshape(-1).view(np.uint8)
        size: int | None = len(data)
        if self.compressor == "blosc":
            size, stored = (int.from_bytes(data[at : at + 4].tobytes(), "little") for at in (4, 12))
            # Blosc reads as much as the header says.
            if len(data) < HEADER or stored > len(data):
                raise ValueError(f"it has {len(data)} bytes instead of {max(stored, HEADER)}")
        elif self.compressor == "zstd":
            size = zstd_size(data)
        # Numcodecs fills less than the memory that it is given without a word.
        if size is not None and size != len(flat):
            raise ValueError(f"it holds {size} bytes instead of {len(flat)}")
        try:
            if self.compressor == "blosc":
                numcodecs.blosc.decompress(data, flat)
            elif self.compressor == "zstd":
                numcodecs.zstd.decompress(data, flat)
            else:
                flat[:] = data
        except RuntimeError as error:
            raise ValueError(f"it cannot be decompressed ({error})") from None

    def in_zarr(self) -> tuple[dict[str, Any], ...]:
        """The compressor and the checksum as `codecs` of a zarr array's metadata."""
        chain: list[tuple[str, dict[str, Any]]] = [("crc32c", {})] if self.checksum else []
        if self.compressor is not None:
            chain.insert(0, (self.compressor, dict(self.options)))
        return tuple({"name": name, "configuration": options} for name, options in chain)


def checksum(data: bytes) -> bytes:
    """The crc32c of stored bytes, as it follows them."""
    return crc32c(data).to_bytes(CRC, "little")


def is_sealed(data: np.ndarray) -> bool:
    """Whether bytes end in the crc32c of those before."""
    return len(data) >= CRC and crc32c(data.data) == _SEALED


def zstd_size(frame: np.ndarray) -> int | None:
    """Bytes that a frame of zstd says it holds; None where it says nothing (RFC 8878, 3.1.1.1).

    Examples
    --------
    >>> zstd_size(np.frombuffer(numcodecs.zstd.compress(bytes(1000), 1, False), np.uint8))
    1000
    """
    header = frame[:18].tobytes()
    if header[:4] != b"\x28\xb5\x2f\xfd" or len(header) < 5:
        return None
    descriptor = header[4]
    single = descriptor >> 5 & 1
    start = 6 - single + (0, 1, 2, 4)[descriptor & 3]
    length = (single, 2, 4, 8)[descriptor >> 6]
    if not length or len(header) < start + length:
        return None
    return int.from_bytes(header[start : start + length], "little") + (256 if length == 2 else 0)


COMPRESSIONS: dict[str | None, Codec] = {
    "lz4": Codec("blosc", (("cname", "lz4"), ("clevel", 5), ("shuffle", "bitshuffle"))),
    "zstd": Codec("blosc", (("cname", "zstd"), ("clevel", 1), ("shuffle", "bitshuffle"))),
    None: Codec(None),
}
