"""What is asked of zarr beyond its public names, in one place; see docs/dependencies.md.

Zarr's stores are asynchronous, and their event loop, as the buffers that they take and give, lies in `zarr.core`.
"""

from __future__ import annotations

import json
from typing import Any

import zarr
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync

__all__ = ["Buffer", "BufferPrototype", "default_buffer_prototype", "metadata_of", "sync"]


def metadata_of(array: zarr.Array) -> Any:
    """The metadata of an array of the zarr 3 format, as JSON: what its `zarr.json` holds; None of an older format.

    They are the format, and do not change, as attributes of zarr's objects do; nothing is read for them again.
    """
    written = array.metadata.to_buffer_dict(default_buffer_prototype()).get("zarr.json")
    return None if written is None else json.loads(written.to_bytes())
