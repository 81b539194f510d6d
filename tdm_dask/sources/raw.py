"""Raw binary files of equally spaced frames, and NumPy's .npy files."""

from __future__ import annotations

import math

import numpy as np

from ..blocks import RawFrames
from ..errors import CountsError, InputError, ScanShapeError, SourceError
from .scan_shape import fill_scan, suggestion
from .vendor import Request, VendorFile, check_dtype, file_size, pick_frame, storage_dtype

NPY_MAGIC = b"\x93NUMPY"


def open_raw(request: Request) -> VendorFile:
    """Open raw binary frames whose layout the caller knows."""
    missing = [
        name
        for name, value in (
            ("scan_shape=(ny, nx)", request.scan_shape),
            ("detector_shape=(nky, nkx)", request.detector_shape),
            ('dtype such as "uint16"', request.dtype),
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
    positions = math.prod(request.scan_shape)
    expected = request.offset + positions * stride
    findings = [
        f"Raw binary as asked: {positions} frames of {pixels} bytes, offset {request.offset}, gap {request.gap}."
    ]
    if size == expected - request.gap and request.gap:
        findings.append("There is no gap after the last frame.")
    elif size != expected:
        whole, rest = divmod(size - request.offset, stride) if size > request.offset else (0, 0)
        # The last frame counts although its gap is missing.
        fits = whole if rest == 0 else whole + 1 if rest == pixels else 0
        advice = (
            f"{fits} frames fit, so give a scan_shape such as {suggestion(fits, request.scan_shape)}"
            if fits
            else f"the size holds {whole} such frames and {rest} bytes more, so check offset, gap, "
            "detector_shape and dtype"
        )
        raise ScanShapeError(
            f"{request.name} has {size} bytes, but scan_shape {request.scan_shape} of "
            f"{request.detector_shape} {dtype} frames "
            f"(offset {request.offset}, gap {request.gap}) needs {expected}; {advice}."
        )
    source = RawFrames(
        str(request.path),
        (*request.scan_shape, *request.detector_shape),
        storage_dtype(dtype).str,
        offset=request.offset,
        frame_stride=stride,
    )
    return VendorFile(path=str(request.path), reader="raw binary", source=source, findings=tuple(findings))


def open_npy(request: Request) -> VendorFile:
    """Open an array that NumPy saved: 4D, a 3D stack of frames, or a 5D stack of scans; C order."""
    request.refuse_layout("a NumPy file")
    size = file_size(request.path)
    with open(request.path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
            if read is None:
                raise SourceError(
                    f"{request.name} is a NumPy file of version {version[0]}; save it again as a plain numeric array."
                )
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise SourceError(f"{request.name} is not a whole NumPy file ({error}); save it again.") from None
        offset = file.tell()
    dtype = check_dtype(dtype, request.name)
    if fortran:
        raise SourceError(
            f"{request.name} is stored in Fortran order; expected C order: save numpy.ascontiguousarray(array) instead."
        )
    if 0 in shape or len(shape) not in (3, 4, 5):
        raise CountsError(
            f"{request.name} holds an array of shape {shape}; expected (y, x, ky, kx) or (frame, ky, kx)."
        )
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
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
    declared = shape[:2] if len(shape) == 4 else None
    scan_shape, sentence = fill_scan(
        request.name, math.prod(shape[:-2]), request.scan_shape, declared, "the array's own shape"
    )
    full = (*scan_shape, shape[-2], shape[-1])
    source = RawFrames(str(request.path), full, storage_dtype(dtype).str, offset=offset)
    return VendorFile(path=str(request.path), reader="NumPy", source=source, findings=(*findings, sentence))
