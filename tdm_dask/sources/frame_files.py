"""Frames that lie at listed places of a file, or one after the other in several files, as a scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..reading.blocks import Frames, RawFrames
from .scan_shape import Filling
from .stacks import JoinedFrames, ListedFrames
from .vendor import file_state


def listed_frames(
    path: str, filling: Filling, detector: tuple[int, int], dtype: np.dtype, starts: np.ndarray
) -> RawFrames:
    """The scan's patterns of a file whose frames begin at the bytes `starts`, in the order in which they were taken."""
    frame = detector[0] * detector[1] * dtype.itemsize
    steps = np.diff(starts)
    if len(steps) and steps[0] >= frame and np.all(steps == steps[0]):
        return filling.raw_frames(path, detector, dtype, offset=int(starts[0]), stride=int(steps[0]))
    ny, nx = filling.shape
    frames = filling.order.first + np.arange(ny)[:, None] * filling.order.line + np.arange(nx)
    # What has no frame is never asked for.
    places = starts[np.minimum(frames, len(starts) - 1).ravel()]
    return ListedFrames(path, (ny, nx, *detector), dtype.str, starts=places)


def joined_frames(
    parts: Sequence[tuple[str, int, int]], filling: Filling, detector: tuple[int, int], dtype: np.dtype, stride: int
) -> Frames:
    """The scan's patterns of several files, each a path, the byte of its first pixel and its number of frames."""
    if len(parts) == 1:
        return filling.raw_frames(parts[0][0], detector, dtype, offset=parts[0][1], stride=stride)
    return JoinedFrames(
        tuple(RawFrames(path, (1, n, *detector), dtype.str, offset, stride) for path, offset, n in parts),
        (*filling.shape, *detector),
        tuple(file_state(path) for path, _, _ in parts),
        filling.order,
    )
