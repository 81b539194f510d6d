"""Frames as a scan: at equal distances in a file, at listed places, or one after the other in several files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FormatError, SourceError
from ..reading.blocks import Frames, RawFrames
from ..reading.file_state import file_state
from .scan_shape import Filling, cut_advice, cut_frame, fill_with_frames
from .stacks import JoinedFrames, ListedFrames
from .vendor import (
    Request,
    VendorFile,
    check_dtype,
    file_size,
    one_or_more,
    plain,
    storage_dtype,
    whole_pair,
)


def frame_file(
    request: Request,
    detector_shape: tuple[int, int],
    dtype: Any,
    *,
    reader: str,
    offset: int = 0,
    gap: int = 0,
    frames: int | None = None,
    scan_shape: tuple[int, int] | None = None,
    scan_step: tuple[float, float] | None = None,
    pixel_size: tuple[float, float] | None = None,
    acquisition: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    findings: str | Sequence[str] = (),
    valid_pixels: np.ndarray | None = None,
) -> VendorFile:
    """A file whose frames lie one after the other at equal distances: most of what a format of your own needs.

    It honours what is asked of frames (scan_shape, flyback, skip_first, allow_partial), refuses what is not, and
    refuses a file that is cut short or does not fill its scan, in words.

    Parameters
    ----------
    request : Request
        What `open` of a format was given; `request.path` is the file.
    detector_shape : (nky, nkx)
        Detector pixels of a frame; rows in the order in which they are in the file.
    dtype : dtype
        Of a pixel in the file, with its byte order: "<u2" or ">u2".
    reader : str
        What reads the file, in words: "ABC camera".
    offset : int, default 0
        Bytes before the first frame's first pixel: the file's header, and the first frame's own.
    gap : int, default 0
        Bytes between the frames, as of headers of their own.
    frames : int, optional
        Frames that the header announces; by default as many as the file holds. What comes after them is not read.
    scan_shape : (ny, nx), optional
        What the header says; without it, `scan_shape` must be given when the file is opened.
    scan_step, pixel_size, acquisition, metadata, findings, valid_pixels
        What else the header says, as a VendorFile has it. The step is left out if another scan_shape is given.

    Returns
    -------
    VendorFile

    Raises
    ------
    SourceError
        If the file is cut short.
    FormatError
        If the header's shapes are none.
    ScanShapeError
        If its frames do not fill the scan, or no shape is known.
    InputError
        If what was asked for does not go with frames.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tdm_dask.sources.vendor import Request
    >>> path = pathlib.Path(tempfile.mkdtemp(), "scan.abc")
    >>> _ = path.write_bytes(b"ABC1" + np.arange(24, dtype="<u2").tobytes())
    >>> file = frame_file(Request(path), (2, 2), "<u2", reader="ABC camera", offset=4, scan_shape=(2, 3))
    >>> file.source.shape, file.findings
    ((2, 3, 2, 2), ('The scan shape (2, 3) comes from the header.',))
    """
    request.refuse_layout(f"read as {reader}")
    request.refuse_frame(f"read as {reader}")
    dtype = check_dtype(dtype, request.name)
    detector_shape = _shape(request, reader, "detector_shape", detector_shape)
    if scan_shape is not None:
        scan_shape = _shape(request, reader, "scan_shape", scan_shape)
    size, offset, gap = file_size(request.path), int(offset), int(gap)
    pixels = math.prod(detector_shape) * dtype.itemsize
    stride = pixels + gap
    there, rest = divmod(max(size - offset, 0), stride)
    if rest >= pixels:  # no gap need follow the last frame
        there, rest = there + 1, rest - pixels
    n_frames, announced, found = there, there if frames is None else frames, [*one_or_more(findings)]
    if frames is not None and there >= frames:
        n_frames, rest = frames, 0
        after = size - offset - frames * stride + gap
        found += [f"{after} bytes follow the last frame and are not read."] if after not in (0, gap) else []
    if n_frames == 0 or ((rest or n_frames < announced) and not request.allow_partial):
        says = f", but its header announces {announced}" if n_frames < announced else f" and {rest} bytes of another"
        raise SourceError(
            f"{request.name} holds {n_frames} whole frames{says}; it is truncated: {cut_advice(n_frames)}."
        )
    filling = fill_with_frames(request, n_frames, scan_shape, "the header")
    source = filling.raw_frames(str(request.path), detector_shape, storage_dtype(dtype), offset=offset, stride=stride)
    return VendorFile(
        path=str(request.path),
        reader=reader,
        source=filling.without_missing(source),
        scan_step=scan_step if scan_shape in (None, filling.shape) else None,
        pixel_size=pixel_size,
        acquisition=dict(acquisition or {}),
        metadata=plain(dict(metadata or {})),
        findings=(*found, *cut_frame(rest, stride), *filling.findings),
        valid_pixels=valid_pixels,
        valid_patterns=filling.valid_patterns,
    )


def _shape(request: Request, reader: str, name: str, shape: Any) -> tuple[int, int]:
    """A shape that a header says, as numbers that do not overflow, or an error that names the reader."""
    pair = whole_pair(shape)
    if pair is None:
        raise FormatError(
            f"The reader of {reader} gave, for {request.name}, {name}={shape!r}; expected two positive whole numbers."
        )
    return pair


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
