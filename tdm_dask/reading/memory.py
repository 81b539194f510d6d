"""Memory that is filled again and again, files mapped into memory, and counts in native byte order."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import sys
from collections.abc import Iterable, Sequence
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
    view = array.view()
    view.flags.writeable = False
    return view


_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14


def mapped(descriptor: int, start: int, stop: int, pieces: Iterable[tuple[int, int]]) -> np.ndarray | None:
    """Bytes `start` to `stop` of a file, mapped into memory: reading without a copy takes less than half the time.

    The pages of the `pieces` (start, stop) that will be used are brought in at once, so that what cannot be read is an
    error here and not a signal that ends the process later, as with a plain map of a file that became shorter.

    Returns
    -------
    ndarray of uint8 or None
        Read-only; the map ends with it. None where the system has no way to bring pages in.
    """
    if sys.platform != "linux":
        return None
    first = start - start % mmap.ALLOCATIONGRANULARITY
    memory = mmap.mmap(descriptor, stop - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first)
    data = np.frombuffer(memory, np.uint8)
    # Called from outside of the interpreter, whose lock a slow disk would hold otherwise.
    advise = ctypes.CDLL(None, use_errno=True).madvise
    for begin, end in pieces:
        page = (begin - first) - (begin - first) % mmap.PAGESIZE
        address, length = ctypes.c_void_p(data.ctypes.data + page), ctypes.c_size_t(end - first - page)
        while advise(address, length, _POPULATE_READ):
            error = ctypes.get_errno()
            if error in (errno.EINVAL, errno.ENOSYS):
                return None
            if error != errno.EINTR:
                raise OSError(errno.EIO, f"{os.strerror(error)}, as after a disk failed or the file became shorter")
    return data[start - first :]


def native(counts: np.ndarray, buffers: Buffers) -> np.ndarray:
    """Counts in native byte order, C-contiguous and aligned; copied into a buffer unless they are so already."""
    if counts.dtype.isnative and counts.flags.c_contiguous and counts.flags.aligned:
        return counts
    out = buffers.take("native", counts.shape, counts.dtype.newbyteorder("="))
    copy_native(counts, out)
    return out
