"""A scan in an array with a shape of its own: a dataset of an HDF5 file, an array of a zarr store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..errors import CountsError
from ..reading.blocks import Source
from ..reading.file_state import FileState
from .scan_shape import Filling, fill_with_frames
from .stacks import FrameOrder, StackSource, chunk_of
from .vendor import Request

S = TypeVar("S", bound=StackSource)

# A few blocks; a file with larger chunks cannot be read in less memory.
_LARGE_CHUNK = 256 * 2**20


@dataclass(frozen=True)
class Located:
    """A scan that was found in an array.

    Parameters
    ----------
    source : Source
    findings : tuple of str
        Where its shape came from.
    valid_patterns : bool array (ny, nx) or None
        The probe positions that have a frame, where some have none.
    linked : tuple of str
        Other files that hold its counts.
    """

    source: Source
    findings: tuple[str, ...] = ()
    valid_patterns: np.ndarray | None = None
    linked: tuple[str, ...] = ()


def scan_dims(shape: tuple[int, ...], leading: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a scan (y, x, ky, kx), or of its frames (frame, ky, kx), in an array with its dims in some order."""
    in_file = shape[len(leading) :]
    return tuple(in_file[i] for i in order) if order else in_file


def detector_of(dims: tuple[int, ...]) -> tuple[int, int]:
    """The last two of the dims of a scan or of its frames."""
    return dims[-2], dims[-1]


def about_chunks(chunk_bytes: int) -> list[str]:
    """A sentence about chunks that are so large that reading them needs much memory, or none."""
    if chunk_bytes <= _LARGE_CHUNK:
        return []
    return [
        f"The file is compressed in chunks of {chunk_bytes / 1e6:.0f} MB, each of which is decompressed as a whole, in "
        "every task that needs a part of it."
    ]


def chunked_source(
    kind: Callable[..., S],
    request: Request,
    filling: Filling,
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunks: tuple[int, ...] | None,
    leading: tuple[int, ...],
    order: tuple[int, ...],
    states: tuple[FileState, ...],
    **inside: str,
) -> S:
    """A source that reads an array of some `shape` chunk by chunk.

    Parameters
    ----------
    kind : subclass of StackSource
    chunks : tuple of int or None
        Of the array, its leading dims left out; None where there are none.
    inside : str
        Where the array is in its file, as that kind of source takes it.
    """
    dims = scan_dims(shape, leading, order)
    flat = len(dims) == 3
    return kind(
        str(request.path),
        (*filling.shape, *detector_of(dims)),
        dtype.str,
        leading,
        flat,
        chunk_of(chunks, filling.shape[1], flat, order or (0, 1)),
        order,
        states,
        filling.order if flat else None,
        **inside,
    )


def fill_array(
    request: Request,
    shape: tuple[int, ...],
    leading: tuple[int, ...] = (),
    order: tuple[int, ...] = (),
    declared: tuple[int, int] | None = None,
    declared_by: str = "",
) -> Filling:
    """How an array of `shape` fills a scan: as its own shape says, or, if it is a stack of frames, as they are many.

    Raises
    ------
    CountsError
        If the array is empty.
    ScanShapeError
        If what was asked for does not fit.
    """
    if 0 in shape:
        raise CountsError(f"{request.name} holds an array of shape {shape}; every dim needs at least one element.")
    dims = scan_dims(shape, leading, order)
    if len(dims) == 3:
        return fill_with_frames(request, dims[0], declared, declared_by)
    request.refuse_trim("a scan of four dimensions")
    ny, nx = dims[:2]
    request.refuse_other_shape((ny, nx))
    return Filling((ny, nx), FrameOrder(ny * nx, 0, nx), ny * nx, ())
