"""NanoMEGAS / ASTAR blockfiles: .blo."""

from __future__ import annotations

import math
import warnings

from ..blocks import RawFrames
from ..errors import SourceError
from .calibration_facts import length
from .scan_shape import fill_scan
from .vendor import Request, VendorFile, file_size, plain, rosettasciio_reader

MAGIC = b"IMGBLO"

_HEADER_BYTES = 240
# AA 55 and the frame's number, four bytes, before every frame.
_FRAME_HEADER = 6


def open_blockfile(request: Request) -> VendorFile:
    """Open a blockfile: frames of bytes, each after six bytes of its own."""
    from rsciio.blockfile import file_reader

    request.refuse_layout("a blockfile")
    request.refuse_frame("a blockfile")
    size = file_size(request.path)
    with open(request.path, "rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC or size < _HEADER_BYTES:
        raise SourceError(f"{request.name} has no blockfile header; it is damaged or not a .blo file.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (signal,) = file_reader(str(request.path), lazy=True, chunks=(-1, -1, -1, -1))
    header = signal["original_metadata"]["blockfile_header"]
    declared = (int(header["NY"]), int(header["NX"]))
    edge = int(header["DP_SZ"])
    offset = int(header["Data_offset_2"])
    stride = edge * edge + _FRAME_HEADER
    expected = offset + math.prod(declared) * stride
    if 0 in declared or edge == 0:
        raise SourceError(
            f"{request.name} announces a scan of {declared} frames of {edge} pixels; its header is damaged."
        )
    if size < expected:
        whole = max(size - offset, 0) // stride
        raise SourceError(
            f"{request.name} holds {whole} whole frames, but its header announces {math.prod(declared)} "
            f"{declared}; it is truncated: copy it again."
        )
    findings = [f"{size - expected} bytes follow the last frame and are not read."] if size > expected else []
    shape, sentence = fill_scan(request.name, math.prod(declared), request.scan_shape, declared, "the header")
    steps = [length(axis["scale"], axis["units"]) for axis in signal["axes"][:2]]
    known = None not in steps and shape == declared
    energy = float(header["Beam_energy"])
    source = RawFrames(
        str(request.path), (*shape, edge, edge), "|u1", offset=offset + _FRAME_HEADER, frame_stride=stride
    )
    return VendorFile(
        path=str(request.path),
        reader=rosettasciio_reader("blockfile"),
        source=source,
        scan_step=(float(steps[0]), float(steps[1])) if known else None,  # type: ignore[arg-type]
        # The header's pixel size is one on the camera; without the true camera length it is no angle.
        acquisition={"energy_eV": energy} if energy > 0 else {},
        metadata=plain({"metadata": signal["metadata"], "original_metadata": signal["original_metadata"]}),
        findings=(*findings, sentence),
    )
