"""Memory that is filled again and again, and counts in native byte order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels.copying import copy_native


class Buffers:
    """Memory by name that is filled again and again: fresh memory costs as much as the reading into it."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def take(self, name: str, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array in the memory of that name, with whatever it holds."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if len(self._memory.get(name, ())) < size:
            self._memory[name] = np.empty(size, np.uint8)
        return self._memory[name][:size].view(dtype).reshape(shape)


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view: arrays from another process are read-only, and a kernel is compiled for one kind alone."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def native(counts: np.ndarray, buffers: Buffers) -> np.ndarray:
    """Counts in native byte order, C-contiguous and aligned; copied into a buffer unless they are so already."""
    if counts.dtype.isnative and counts.flags.c_contiguous and counts.flags.aligned:
        return counts
    out = buffers.take("native", counts.shape, counts.dtype.newbyteorder("="))
    copy_native(counts, out)
    return out
