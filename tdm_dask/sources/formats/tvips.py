"""TVIPS cameras (EMMENU, TemCam): .tvips, frames of one header each, spread over files _000, _001, ..."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, ScanShapeError, SourceError
from ..frame_files import joined_frames
from ..scan_shape import cut_advice, cut_frame, fill_with_frames
from ..vendor import Request, VendorFile, file_size, plain

_FIELDS = (
    *("size", "version", "dimx", "dimy", "bitsperpixel", "offsetx", "offsety", "binx", "biny"),
    *("pixelsize", "ht", "magtotal", "frameheaderbytes"),
)
_HEADER_BYTES = 256
_DTYPES = {8: "<u1", 16: "<u2", 32: "<u4"}
# The scan position that the rotator counts, in the header of each frame.
_ROTATOR = 48
# More headers than these are not read one by one for what they say about the scan.
_MOST_HEADERS = 2**19


def open_tvips(request: Request) -> VendorFile:
    """Open a TVIPS recording by its first file."""
    request.refuse_layout("a TVIPS file")
    request.refuse_frame("a TVIPS recording")
    match = re.fullmatch(r"(.*)_(\d{3})(\.tvips)", request.name, re.IGNORECASE)
    if match is not None and match[2] != "000":
        raise InputError(f"{request.name} is part {match[2]} of a recording; open part 000, which has its header.")
    size = file_size(request.path)
    header, mode = _header(request.path, size)
    dtype = np.dtype(_DTYPES[header["bitsperpixel"]])
    detector = (header["dimy"], header["dimx"])
    gap = header["frameheaderbytes"]
    frame = detector[0] * detector[1] * dtype.itemsize
    stride = gap + frame
    parts = []
    findings = []
    for path in _parts(request.path, match):
        start = header["size"] if path == request.path else 0
        n, rest = divmod(max(file_size(path) - start, 0), stride)
        if rest and not request.allow_partial:
            raise ScanShapeError(
                f"{path.name} holds {n} frames of {stride} bytes and {rest} bytes of another; it is truncated: "
                f"{cut_advice(n)}."
            )
        findings += cut_frame(rest, stride)
        parts.append((str(path), start + gap, n))
        if rest:
            break  # the frames of later files are not those that follow
    parts = [part for part in parts if part[2]]
    n_frames = sum(n for _, _, n in parts)
    if n_frames == 0:
        raise ScanShapeError(f"{request.name} holds no whole frame; copy it again.")
    findings.insert(0, f"{n_frames} frame(s) of {detector[0]} x {detector[1]} pixels in {len(parts)} file(s).")
    findings += _rotator(parts, stride, gap)
    filling = fill_with_frames(request, n_frames)
    if mode != 2:
        findings.append("The camera recorded in image mode, not in diffraction.")
    voltage = float(header["ht"])
    acquisition = {}
    if voltage > 0:
        # Written in kV by some versions and in V by others; no microscope has less than 1000 V.
        acquisition["energy_eV"] = voltage if voltage >= 1000 else voltage * 1e3
    source = joined_frames(parts, filling, detector, dtype, stride)
    return VendorFile(
        path=str(request.path),
        reader="TVIPS",
        source=filling.without_missing(source),
        # The header's pixel size is one on the camera; without the true camera length it is no angle.
        acquisition=acquisition,
        metadata=plain({"tvips_header": header}),
        findings=(*findings, *filling.findings),
        valid_patterns=filling.valid_patterns,
        linked=tuple(path for path, _, _ in parts[1:]),
    )


def _header(path: Path, size: int) -> tuple[dict[str, int], int]:
    """The facts in a recording's header, and the mode (1 image, 2 diffraction) of its first frame."""
    with open(path, "rb") as file:
        data = file.read(_HEADER_BYTES)
        if len(data) < _HEADER_BYTES:
            raise SourceError(f"{path.name} is shorter than a TVIPS header; it is damaged, copy it again.")
        header: dict[str, Any] = dict(zip(_FIELDS, struct.unpack_from(f"<{len(_FIELDS)}I", data), strict=True))
        if header["version"] == 1:
            header["frameheaderbytes"] = 12
        file.seek(header["size"])
        frame_header = file.read(64)
    reasonable = (
        header["version"] in (1, 2)
        and _HEADER_BYTES <= header["size"] < max(size, _HEADER_BYTES + 1)
        and 12 <= header["frameheaderbytes"] <= size
        and header["dimx"] > 0
        and header["dimy"] > 0
    )
    if not reasonable:
        raise SourceError(f"{path.name} has a TVIPS header that contradicts itself; it is damaged, or no .tvips file.")
    if header["bitsperpixel"] not in _DTYPES:
        raise SourceError(
            f"{path.name} has {header['bitsperpixel']} bits per pixel; expected one of {list(_DTYPES)}."
        )
    has_mode = header["version"] == 2 and len(frame_header) >= 28
    return header, struct.unpack_from("<I", frame_header, 24)[0] if has_mode else 2


def _parts(first: Path, match: re.Match[str] | None) -> list[Path]:
    """The files of a recording, as far as their numbers run on."""
    if match is None:
        return [first]
    paths = [first]
    while (path := first.with_name(f"{match[1]}_{len(paths):03d}{match[3]}")).is_file():
        paths.append(path)
    return paths


def _rotator(parts: list[tuple[str, int, int]], stride: int, gap: int) -> list[str]:
    """A sentence about the frames in which the rotator counts scan positions, where it does."""
    n_frames = sum(n for _, _, n in parts)
    if gap < _ROTATOR + 4 or n_frames > _MOST_HEADERS:
        return []
    index = np.empty(n_frames, np.uint32)
    done = 0
    for path, pixels, n in parts:
        with open(path, "rb", buffering=0) as file:
            for i in range(n):
                place = pixels - gap + i * stride + _ROTATOR
                index[done + i] = int.from_bytes(os.pread(file.fileno(), 4, place), "little")
        done += n
    scanning = np.flatnonzero(index)
    if not len(scanning) or index.max() < 2:
        return []
    first, last, positions = int(scanning[0]), int(np.argmax(index)), int(index.max())
    return [
        f"The rotator index counts {positions} scan positions from frame {first} to frame {last} of {n_frames}"
        + ("." if last - first + 1 == positions else ", not one to each frame.")
    ]
