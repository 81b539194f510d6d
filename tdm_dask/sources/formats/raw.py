"""Raw binary files of equally spaced frames, and NumPy's .npy files."""

from __future__ import annotations

import math
from dataclasses import replace
from tokenize import TokenError
from typing import Any

import numpy as np

from ...errors import CountsError, InputError, ScanShapeError, SourceError
from ..array_scan import fill_array
from ..axis_order import ABOUT_DETECTOR_FIRST, DETECTOR_FIRST
from ..scan_shape import cut_advice, cut_frame, fill_with_frames
from ..stacks import DetectorFirst
from ..vendor import Request, VendorFile, check_dtype, file_size, pick_frame, storage_dtype

NPY_MAGIC = b"\x93NUMPY"


def open_raw(request: Request) -> VendorFile:
    """Open raw binary frames whose layout the caller knows."""
    missing = [
        name
        for name, value in (
            ("scan_shape", request.scan_shape),
            ("detector_shape", request.detector_shape),
            ('dtype="uint16" or another type', request.dtype),
        )
        if value is None
    ]
    size = file_size(request.path)
    if missing:
        raise InputError(f"{request.name} is raw binary and does not describe itself; give {', '.join(missing)}.")
    request.refuse_frame("a raw binary file")
    assert request.scan_shape is not None
    assert request.detector_shape is not None
    dtype = check_dtype(request.dtype, request.name)
    pixels = math.prod(request.detector_shape) * dtype.itemsize
    stride = pixels + request.gap
    layout = f"{request.detector_shape} {dtype} frames (offset {request.offset}, gap {request.gap})"
    n_frames, rest = divmod(max(size - request.offset, 0), stride)
    findings = [f"Raw binary as asked: {layout}."]
    if rest == pixels and request.gap:
        n_frames, rest = n_frames + 1, 0
        findings.append("There is no gap after the last frame.")
    if n_frames == 0 or (rest and not request.allow_partial):
        raise ScanShapeError(
            f"{request.name} has {size} bytes, but scan_shape={request.scan_shape} of {layout} needs "
            f"{request.offset + math.prod(request.scan_shape) * stride}; the size holds {n_frames} such frames and "
            f"{rest} bytes more, so check offset=..., gap=..., dtype=... and detector_shape, or {cut_advice(n_frames)}."
        )
    if request.detector_first:
        return _detector_first(request, size, dtype, layout)
    frames = replace(request, detector_first=None)
    filling = fill_with_frames(frames, n_frames, name=f"{request.name}, {size} bytes read as {layout},")
    source = filling.raw_frames(
        str(request.path), request.detector_shape, storage_dtype(dtype), offset=request.offset, stride=stride
    )
    return VendorFile(
        path=str(request.path),
        reader="raw binary",
        source=filling.without_missing(source),
        findings=(*findings, *cut_frame(rest, stride), *filling.findings),
        valid_patterns=filling.valid_patterns,
    )


def _detector_first(request: Request, size: int, dtype: np.dtype, layout: str) -> VendorFile:
    """Raw binary of an array (ky, kx, y, x)."""
    assert request.scan_shape is not None
    assert request.detector_shape is not None
    request.refuse_trim("an array with the detector first")
    shape = (*request.scan_shape, *request.detector_shape)
    expected = request.offset + math.prod(shape) * dtype.itemsize
    if size != expected or request.gap:
        raise ScanShapeError(
            f"{request.name} has {size} bytes, but scan_shape={request.scan_shape} of {layout} with the detector first "
            f"needs {expected}, and no gap; check offset=..., dtype=... and detector_shape."
        )
    return VendorFile(
        path=str(request.path),
        reader="raw binary",
        source=DetectorFirst(str(request.path), shape, storage_dtype(dtype).str, request.offset),
        findings=(f"Raw binary as asked: {layout}.", ABOUT_DETECTOR_FIRST),
    )


def npy_header(name: str, file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of the array in an open .npy file, which is left at its first byte."""
    try:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
        if read is None:
            raise SourceError(
                f"{name} is a NumPy file of version {version[0]}; save it again as a plain numeric array."
            )
        return read(file)
    except (ValueError, TypeError, SyntaxError, TokenError, OverflowError, MemoryError, RecursionError) as error:
        raise SourceError(f"{name} is not a whole NumPy file ({error}); save it again.") from None


def open_npy(request: Request) -> VendorFile:
    """Open an array that NumPy saved: 4D, a 3D stack of frames, or a 5D stack of scans; C order."""
    request.refuse_layout("a NumPy file")
    size = file_size(request.path)
    with open(request.path, "rb") as file:
        shape, fortran, dtype = npy_header(request.name, file)
        offset = file.tell()
    dtype = check_dtype(dtype, request.name)
    if fortran:
        raise SourceError(
            f"{request.name} is stored in Fortran order; expected C order: save numpy.ascontiguousarray(array) instead."
        )
    if len(shape) not in (3, 4, 5) or min(shape) < 1:
        raise CountsError(
            f"{request.name} holds an array of shape {shape}; expected (y, x, ky, kx) or (frame, ky, kx)."
        )
    expected = offset + math.prod(shape) * dtype.itemsize
    frame = math.prod(shape[-2:]) * dtype.itemsize
    n_frames, rest = divmod(max(size - offset, 0), frame)
    interrupted = request.allow_partial and 0 < n_frames < math.prod(shape[:-2]) and len(shape) < 5
    if size != expected and not interrupted:
        raise SourceError(
            f"{request.name} has {size} bytes, but its header announces {expected}; the file is damaged, save it again."
        )
    findings = []
    if len(shape) == 5:
        index = pick_frame(request, shape[0])
        findings.append(f"Scan {index} of a stack of {shape[0]}.")
        shape = shape[1:]
        offset += index * math.prod(shape) * dtype.itemsize
    else:
        request.refuse_frame("a NumPy file")
    if request.detector_first and len(shape) == 4:
        if interrupted:
            raise SourceError(
                f"{request.name} has {size} bytes, but its header announces {expected}; what is missing is of every "
                "pattern if the detector comes first: save it again."
            )
        filling = fill_array(request, shape, order=DETECTOR_FIRST)
        return VendorFile(
            path=str(request.path),
            reader="NumPy",
            source=DetectorFirst(str(request.path), (*shape[2:], *shape[:2]), storage_dtype(dtype).str, offset),
            findings=(*findings, ABOUT_DETECTOR_FIRST),
        )
    declared = shape[:2] if len(shape) == 4 else None
    if not interrupted:
        n_frames, rest = math.prod(shape[:-2]), 0
    frames = replace(request, detector_first=None) if declared else request
    filling = fill_with_frames(frames, n_frames, declared, "the array's own shape")
    detector = (shape[-2], shape[-1])
    source = filling.raw_frames(str(request.path), detector, storage_dtype(dtype), offset=offset)
    return VendorFile(
        path=str(request.path),
        reader="NumPy",
        source=filling.without_missing(source),
        findings=(*findings, *cut_frame(rest, frame), *filling.findings),
        valid_patterns=filling.valid_patterns,
        order_is_known=declared is None or request.detector_first is not None,
    )
