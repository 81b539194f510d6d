"""The layout of an array of counts, from the metadata of the zarr 3 format (`zarr.json`) as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .codec import Codec

# What the format calls a dtype is what NumPy calls it; other names are for zarr to understand.
_DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
_FLOATS = ("float16", "float32", "float64")
_FLOAT_WORDS = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
# Entries of the metadata that say how the array is stored, or only describe it.
_KNOWN = {
    *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"),
    *("attributes", "dimension_names", "storage_transformers", "consolidated_metadata"),
}


@dataclass(frozen=True)
class ArrayLayout:
    """How a sharded 4D array is stored: shape, dtype, inner chunk and shard, codec, and the value of what is absent."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    inner: tuple[int, int, int, int]
    shard: tuple[int, int, int, int]
    codec: Codec
    fill_value: float


def array_layout(metadata: Any) -> ArrayLayout | None:
    """The layout that an array's metadata describes; None where it is any but the one that this package decodes.

    That is: four dims, shards of a regular grid with the index at their end, and of each inner chunk little-endian
    bytes, at most one compressor (blosc or zstd) and crc32c.

    Examples
    --------
    >>> array_layout({"zarr_format": 3, "node_type": "array", "shape": [8, 8]}) is None
    True
    """
    if not isinstance(metadata, Mapping) or metadata.get("zarr_format") != 3 or metadata.get("node_type") != "array":
        return None
    if not all(name in _KNOWN or _may_be_ignored(value) for name, value in metadata.items()):
        return None
    if metadata.get("storage_transformers") or _named(metadata.get("chunk_key_encoding")) not in (
        ("default", {}),
        ("default", {"separator": "/"}),
    ):
        return None
    grid, grid_options = _named(metadata.get("chunk_grid"))
    codecs = metadata.get("codecs")
    if grid != "regular" or not isinstance(codecs, Sequence) or len(codecs) != 1:
        return None
    name, options = _named(codecs[0])
    if name != "sharding_indexed" or options.get("index_location", "end") != "end":
        return None
    dtype = _dtype(metadata.get("data_type"))
    shape, shard, inner = (
        _four(sizes)
        for sizes in (metadata.get("shape"), grid_options.get("chunk_shape"), options.get("chunk_shape"))
    )
    if dtype is None or shape is None or shard is None or inner is None:
        return None
    if any(size == 0 or whole % size for whole, size in zip(shard, inner, strict=True)):
        return None
    index = [_named(codec) for codec in _sequence(options.get("index_codecs"))]
    if [name for name, _ in index] != ["bytes", "crc32c"] or not _is_little(index[0][1], 8):
        return None
    codec = _codec([_named(codec) for codec in _sequence(options.get("codecs"))], dtype.itemsize)
    fill_value = _fill_value(metadata.get("fill_value"), dtype)
    if codec is None or fill_value is None:
        return None
    return ArrayLayout(shape, dtype, inner, shard, codec, fill_value)


def _may_be_ignored(value: Any) -> bool:
    """Whether the format permits a reader to pass over an entry that it does not know."""
    return isinstance(value, Mapping) and value.get("must_understand") is False


def _named(value: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and configuration of an extension point (codec, grid, ...), which may be a name alone."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping):
        return "", {}
    options = value.get("configuration")
    return str(value.get("name")), options if isinstance(options, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else ()


def _four(sizes: Any) -> tuple[int, int, int, int] | None:
    if not isinstance(sizes, Sequence) or len(sizes) != 4 or not all(isinstance(n, int) for n in sizes):
        return None
    y, x, ky, kx = sizes
    return y, x, ky, kx


def _dtype(name: Any) -> np.dtype | None:
    return np.dtype(name) if name in _DTYPES or name in _FLOATS else None


def _is_little(options: Mapping[str, Any], itemsize: int) -> bool:
    """Whether the `bytes` codec writes little-endian values; single bytes have no order."""
    return itemsize == 1 or options.get("endian") == "little"


def _codec(chain: list[tuple[str, Mapping[str, Any]]], itemsize: int) -> Codec | None:
    """The codec of an inner chunk, from names and configurations of its chain."""
    if not chain or chain[0][0] != "bytes" or not _is_little(chain[0][1], itemsize):
        return None
    checksum = chain[-1][0] == "crc32c"
    compressors = chain[1:-1] if checksum else chain[1:]
    if not compressors:
        return Codec(None, checksum=checksum)
    name, options = compressors[0]
    names = {"blosc": ("cname", "clevel", "shuffle", "blocksize"), "zstd": ("level", "checksum")}.get(name)
    if len(compressors) > 1 or names is None:
        return None
    return Codec(name, tuple((key, options[key]) for key in names if key in options), checksum)


def _fill_value(value: Any, dtype: np.dtype) -> float | None:
    """The fill value as a number; None where it is written in another way (such as the bytes of a float)."""
    if dtype.kind == "f" and isinstance(value, str):
        return _FLOAT_WORDS.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, bool) and dtype.kind == "b" else None
    return value
