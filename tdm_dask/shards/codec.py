"""What turns an inner chunk of counts into stored bytes and back: a compressor that numcodecs knows, and a checksum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np

CRC = 4  # bytes of a checksum

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
        return (data, checksum(data)) if self.checksum else (data,)

    def decode(self, data: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` from the stored bytes; ValueError where the checksum or the length is wrong."""
        if self.checksum:
            if len(data) < CRC or not checksum_is_right(data):
                raise ValueError("its checksum is wrong")
            data = data[:-CRC]
        flat = out.reshape(-1).view(np.uint8)
        try:
            if self.compressor == "blosc":
                numcodecs.blosc.decompress(data, flat)
            elif self.compressor == "zstd":
                numcodecs.zstd.decompress(data, flat)
            elif len(data) == len(flat):
                flat[:] = data
            else:
                raise ValueError(f"it has {len(data)} bytes instead of {len(flat)}")
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
    return google_crc32c.value(data).to_bytes(CRC, "little")


def checksum_is_right(data: np.ndarray) -> bool:
    return google_crc32c.value(data[:-CRC]) == int.from_bytes(data[-CRC:].tobytes(), "little")


COMPRESSIONS: dict[str | None, Codec] = {
    "lz4": Codec("blosc", (("cname", "lz4"), ("clevel", 5), ("shuffle", "bitshuffle"))),
    "zstd": Codec("blosc", (("cname", "zstd"), ("clevel", 3), ("shuffle", "bitshuffle"))),
    None: Codec(None),
}
