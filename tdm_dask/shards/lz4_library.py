"""The LZ4 of the package lz4, for compiled code that calls it without the interpreter."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def lz4_address(function: str) -> int:
    """Address of a function of LZ4's library in the package lz4; 0 where it is not to be had, as on Windows."""
    try:
        from lz4.block import _block

        found = getattr(ctypes.CDLL(_block.__file__), function)
        return ctypes.cast(found, ctypes.c_void_p).value or 0
    except (ImportError, OSError, AttributeError):
        return 0
