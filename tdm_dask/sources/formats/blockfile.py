"""NanoMEGAS / ASTAR blockfiles: .blo."""

from __future__ import annotations

import math
import struct

import numpy as np

from ...errors import SourceError
from ..calibration_facts import length
from ..scan_shape import cut_advice, cut_frame, fill_with_frames
from ..vendor import Request, VendorFile, file_size, plain

MAGIC = b"IMGBLO"

_HEADER_BYTES = 240
_HEADER = struct.Struct("<6sHIIIHHHHHddIHId")
_FIELDS = (
    *("ID", "MAGIC", "Data_offset_1", "Data_offset_2", "UNKNOWN1", "DP_SZ", "DP_rotation", "NX", "NY"),
    *("Scan_rotation", "SX", "SY", "Beam_energy", "SDP", "Camera_length", "Acquisition_time"),
)
# AA 55 and the frame's number, four bytes, before every frame.
_FRAME_HEADER = 6


def open_blockfile(request: Request) -> VendorFile:
    """Open a blockfile: frames of bytes, each after six bytes of its own."""
    request.refuse_layout("a blockfile")
    request.refuse_frame("a blockfile")
    size = file_size(request.path)
    with open(request.path, "rb") as file:
        data = file.read(_HEADER_BYTES)
        if not data.startswith(MAGIC) or len(data) < _HEADER_BYTES:
            raise SourceError(f"{request.name} has no blockfile header; it is damaged or not a .blo file.")
        header = dict(zip(_FIELDS, _HEADER.unpack_from(data), strict=True))
        note = file.read(max(min(header["Data_offset_1"], size) - _HEADER_BYTES, 0))
    declared = (header["NY"], header["NX"])
    edge, offset = header["DP_SZ"], header["Data_offset_2"]
    stride = edge * edge + _FRAME_HEADER
    expected = offset + math.prod(declared) * stride
    if 0 in declared or edge == 0 or offset < _HEADER_BYTES:
        raise SourceError(
            f"{request.name} announces a scan of {declared} frames of {edge} pixels; its header is damaged."
        )
    n_frames, rest = math.prod(declared), 0
    if size < expected:
        n_frames, rest = divmod(max(size - offset, 0), stride)
        if n_frames == 0 or not request.allow_partial:
            raise SourceError(
                f"{request.name} holds {n_frames} whole frames, but its header announces {math.prod(declared)} "
                f"{declared}; it is truncated: {cut_advice(n_frames)}."
            )
    findings = [f"{size - expected} bytes follow the last frame and are not read."] if size > expected else []
    filling = fill_with_frames(request, n_frames, declared, "the header")
    steps = [length(header[axis], "nm") for axis in ("SY", "SX")]
    known = None not in steps and filling.shape == declared
    energy = float(header["Beam_energy"])
    source = filling.raw_frames(
        str(request.path), (edge, edge), np.dtype("u1"), offset=offset + _FRAME_HEADER, stride=stride
    )
    return VendorFile(
        path=str(request.path),
        reader="blockfile",
        source=filling.without_missing(source),
        scan_step=(steps[0], steps[1]) if known else None,  # type: ignore[arg-type]
        # The header's pixel size is one on the camera; without the true camera length it is no angle.
        acquisition={"energy_eV": energy} if energy > 0 else {},
        metadata=plain({"blockfile_header": header, "note": note.decode("latin-1").strip("\x00 \r\n")}),
        findings=(*findings, *cut_frame(rest, stride), *filling.findings),
        valid_patterns=filling.valid_patterns,
    )
