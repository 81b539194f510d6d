"""NanoMEGAS / ASTAR blockfiles: .blo."""

from __future__ import annotations

import math
import struct

from ...errors import SourceError
from ..calibration_facts import length
from ..frame_files import frame_file
from ..vendor import Request, VendorFile, file_size

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
    size = file_size(request.path)
    with open(request.path, "rb") as file:
        data = file.read(_HEADER_BYTES)
        if not data.startswith(MAGIC) or len(data) < _HEADER_BYTES:
            raise SourceError(f"{request.name} has no blockfile header; it is damaged or not a .blo file.")
        header = dict(zip(_FIELDS, _HEADER.unpack_from(data), strict=True))
        note = file.read(max(min(header["Data_offset_1"], size) - _HEADER_BYTES, 0))
    declared = (header["NY"], header["NX"])
    edge, offset = header["DP_SZ"], header["Data_offset_2"]
    if 0 in declared or edge == 0 or offset < _HEADER_BYTES:
        raise SourceError(
            f"{request.name} announces a scan of {declared} frames of {edge} pixels; its header is damaged."
        )
    step_y, step_x = (length(header[axis], "nm") for axis in ("SY", "SX"))
    energy = float(header["Beam_energy"])
    return frame_file(
        request,
        (edge, edge),
        "u1",
        reader="blockfile",
        offset=offset + _FRAME_HEADER,
        gap=_FRAME_HEADER,
        frames=math.prod(declared),
        scan_shape=declared,
        scan_step=None if step_y is None or step_x is None else (step_y, step_x),
        # The header's pixel size is one on the camera; without the true camera length it is no angle.
        acquisition={"energy_eV": energy} if energy > 0 else {},
        metadata={"blockfile_header": header, "note": note.decode("latin-1").strip("\x00 \r\n")},
    )
