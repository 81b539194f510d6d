"""Quantum Detectors Merlin: .mib, with the .hdr text file beside it."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks import RawFrames
from ..errors import ScanShapeError, SourceError
from .scan_shape import fill_scan
from .stacks import FlippedRows
from .vendor import Request, VendorFile, file_size, plain, rosettasciio_reader

MAGIC = b"MQ1,"

_DTYPES = {"U08": ">u1", "U16": ">u2", "U32": ">u4"}

# A line break shows within a few lines, so more time stamps than these need not be read.
_MOST_TIMESTAMPS = 10_000
_LEAST_FLYBACK_NS = 1e3


def open_merlin(request: Request) -> VendorFile:
    """Open a Merlin file; counts are big-endian after a text header before each frame."""
    request.refuse_layout("a Merlin file")
    request.refuse_frame("a Merlin file")
    size = file_size(request.path)
    header = _frame_header(request.path, 0)
    kind = header["pixels"]
    if kind == "R64":
        raise SourceError(
            f"{request.name} was written in Merlin's raw mode (R64), which is not readable yet; "
            "export it from the Merlin software as U08, U16 or U32."
        )
    if kind not in _DTYPES:
        raise SourceError(f'{request.name} has pixels of kind "{kind}"; expected U08, U16 or U32.')
    dtype = np.dtype(_DTYPES[kind])
    nky, nkx, head = header["rows"], header["columns"], header["size"]
    stride = head + nky * nkx * dtype.itemsize
    n_frames, rest = divmod(size, stride)
    if rest:
        raise ScanShapeError(
            f"{request.name} has {size} bytes, which is {n_frames} frames of {stride} bytes and {rest} "
            "bytes of another; the file is truncated: copy it again, or cut it to whole frames."
        )
    hdr_path, hdr = _hdr_file(request.path)
    findings = [f"{n_frames} frame(s) of {nky} x {nkx} pixels, {kind}."]
    if hdr_path is None:
        findings.append("There is no .hdr file beside it.")
    else:
        findings.append(f"Header from {hdr_path.name}.")
    announced = _integer(hdr, "Frames in Acquisition (Number)")
    if announced not in (None, n_frames):
        findings.append(f"The .hdr file announces {announced} frames.")
    declared, declared_by = _declared_shape(request, hdr, n_frames, stride)
    shape, sentence = fill_scan(request.name, n_frames, request.scan_shape, declared, declared_by)
    findings.append(sentence)
    findings += _dropped_frames(request.path, n_frames, stride, header)
    acquisition = {}
    if header["exposure_ms"] is not None and header["exposure_ms"] > 0:
        acquisition["dwell_time_s"] = header["exposure_ms"] * 1e-3
    bits = header["bits"] or _integer(hdr, "Counter Depth (number)")
    metadata = {
        "counter_depth_bits": bits,
        "mib_header": {key: value for key, value in header.items() if key not in ("size", "bits")},
        "hdr_file": {key: value.strip() for key, value in hdr.items()},
    }
    frames = RawFrames(str(request.path), (*shape, nky, nkx), dtype.str, offset=head, frame_stride=stride)
    return VendorFile(
        path=str(request.path),
        reader=rosettasciio_reader("quantumdetector"),
        source=FlippedRows(frames),
        acquisition=acquisition,
        metadata=plain(metadata),
        findings=tuple(findings),
    )


def _frame_header(path: Path, position: int) -> dict[str, Any]:
    """The facts in the text before one frame, which starts at `position` bytes."""
    with open(path, "rb") as file:
        file.seek(position)
        text = file.read(8192)
    damaged = SourceError(
        f"{path.name} has no Merlin header at byte {position}; the file is damaged or not a .mib file."
    )
    fields = text.split(b"\x00")[0].decode("latin-1").split(",")
    try:
        size = int(fields[2])
        if fields[0] != "MQ1" or size <= 0:
            raise damaged
        fields = text[:size].decode("latin-1").rstrip("\x00 \r\n").split(",")
        header: dict[str, Any] = {
            "sequence": int(fields[1]),
            "size": size,
            "columns": int(fields[4]),
            "rows": int(fields[5]),
            "pixels": fields[6],
            "chips": fields[7].strip(),
            "timestamp": fields[9],
            "exposure_ms": None,
            "bits": None,
        }
    except (ValueError, IndexError):
        raise damaged from None
    if "MQ1A" in fields:
        extension = fields[fields.index("MQ1A") + 1 :]
        if extension:
            header["timestamp"] = extension[0]
        if len(extension) > 1 and extension[1].endswith("ns"):
            header["exposure_ms"] = float(extension[1][:-2]) / 1e6
        if len(extension) > 2 and extension[2].strip().isdigit():
            header["bits"] = int(extension[2])
    return header


def _hdr_file(path: Path) -> tuple[Path | None, dict[str, str]]:
    """The text header beside a .mib file, whatever the case of its extension."""
    from rsciio.quantumdetector._api import parse_hdr_file

    for candidate in sorted(path.parent.iterdir()):
        if candidate.stem == path.stem and candidate.suffix.lower() == ".hdr":
            try:
                return candidate, parse_hdr_file(str(candidate))
            except (ValueError, OSError) as error:
                raise SourceError(
                    f"{candidate.name} beside {path.name} cannot be read as a Merlin header ({error}); "
                    "move it away or copy it again."
                ) from None
    return None, {}


def _integer(hdr: dict[str, str], key: str) -> int | None:
    text = hdr.get(key, "").strip()
    return int(text) if text.isdigit() and int(text) > 0 else None


def _declared_shape(
    request: Request, hdr: dict[str, str], n_frames: int, stride: int
) -> tuple[tuple[int, int] | None, str]:
    """The scan shape that the file gives away, and what gave it."""
    nx, ny = _integer(hdr, "ScanX"), _integer(hdr, "ScanY")
    if nx and ny:
        return (ny, nx), "the .hdr file (ScanY, ScanX)"
    per_trigger = _integer(hdr, "Frames per Trigger (Number)") or 1
    if 1 < per_trigger < n_frames and n_frames % per_trigger == 0:
        return (n_frames // per_trigger, per_trigger), "the .hdr file (frames per trigger)"
    if n_frames == 1:
        return (1, 1), "the single frame"
    if request.scan_shape is not None:
        return None, ""
    per_line = _frames_per_line(request.path, n_frames, stride)
    if per_line:
        return (n_frames // per_line, per_line), "the pauses between the frames' time stamps (check it)"
    return None, ""


def _frames_per_line(path: Path, n_frames: int, stride: int) -> int | None:
    """Frames between regular pauses of the time stamps; None unless every pause fits and lines are whole."""
    count = min(n_frames, _MOST_TIMESTAMPS)
    times = []
    handle = os.open(path, os.O_RDONLY)
    try:
        for index in range(count):
            times.append(_timestamp(os.pread(handle, 1024, index * stride)))
    finally:
        os.close(handle)
    if any(time is None for time in times):
        return None
    pauses = np.diff(np.array(times, dtype="datetime64[ns]")).astype(np.float64)
    is_break = pauses > (np.median(pauses) + pauses.max()) / 2
    if not is_break.any():
        return None
    # A flyback is well above the jitter of the frames; ticks of the clock (10 ns) are no lines.
    usual = pauses[~is_break]
    if pauses[is_break].min() - usual.max() < max(_LEAST_FLYBACK_NS, 3 * np.ptp(usual)):
        return None
    breaks = np.flatnonzero(is_break) + 1
    per_line = int(breaks[0])
    regular = np.array_equal(breaks, np.arange(per_line, count, per_line))
    return per_line if regular and per_line > 1 and n_frames % per_line == 0 else None


def _timestamp(header: bytes) -> np.datetime64 | None:
    fields = header.split(b"\x00")[0].decode("latin-1").split(",")
    text = fields[fields.index("MQ1A") + 1] if "MQ1A" in fields[:-1] else (fields[9] if len(fields) > 9 else "")
    try:
        # NumPy keeps the nanoseconds, datetime says whether the text is a time at all.
        datetime.fromisoformat(text[:19])
        return np.datetime64(text.rstrip("Z").strip().replace(" ", "T"), "ns")
    except ValueError:
        return None


def _dropped_frames(path: Path, n_frames: int, stride: int, first: dict[str, Any]) -> list[str]:
    """A sentence if the numbers that the detector gave its frames do not run on to the end of the file."""
    last = _frame_header(path, (n_frames - 1) * stride)
    expected = first["sequence"] + n_frames - 1
    if last["sequence"] == expected or n_frames == 1:
        return []
    return [
        f"The first frame is number {first['sequence']} and the last number {last['sequence']}, where "
        f"{expected} was expected: frames may be missing or doubled."
    ]
