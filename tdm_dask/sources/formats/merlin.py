"""Quantum Detectors Merlin: .mib, with the .hdr text file beside it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import numpy as np

from ...errors import ScanShapeError, SourceError
from ...reading.blocks import Frames
from ..frame_files import joined_frames
from ..scan_shape import Filling, Rhythm, cut_advice, cut_frame, fill_with_frames
from ..stacks import FlippedRows
from ..vendor import Request, VendorFile, file_size, narrowest, plain, rosettasciio_reader
from .merlin_header import FrameHeader, frame_header, hdr_file, rhythm_of_frames, whole_number
from .merlin_parts import Part, first_part, name_of_set, parts_of
from .merlin_raw import BITS_STORED, WORD, RawChips

MAGIC = b"MQ1,"

_DTYPES: dict[str, np.dtype] = {"U08": np.dtype(">u1"), "U16": np.dtype(">u2"), "U32": np.dtype(">u4")}

# A line break shows within a few lines, so more headers than these need not be read for their times; and where the
# scan shape is known, only enough to see that it is another.
_MOST_TIMES = 10_000
_FEWEST_TIMES = 1024

# Pixels of a Medipix chip along an edge.
_CHIP = 256


@dataclass(frozen=True)
class _Layout:
    """What follows the header of each frame.

    Attributes
    ----------
    rows, columns : int
        Of values of `dtype`; bytes in raw mode.
    dtype : dtype
    depth : int or None
        Bits of a counter, in raw mode; None in others.
    square : bool
        Whether raw frames are those of four chips in a square.
    """

    rows: int
    columns: int
    dtype: np.dtype
    depth: int | None = None
    square: bool = False

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns * self.dtype.itemsize

    def frames(self, parts: list[Part], filling: Filling, depth: int | None) -> Frames:
        """The patterns of a scan, upright, of counters of `depth` bits."""
        head = parts[0].header.size
        files = [(str(part.path), head, part.frames) for part in parts]
        stored = joined_frames(files, filling, (self.rows, self.columns), self.dtype, head + self.nbytes)
        return FlippedRows(stored, depth) if self.depth is None else RawChips(stored, self.depth, self.square)


def open_merlin(request: Request) -> VendorFile:
    """Open a Merlin file: big-endian counts, or raw words, after a text header before each frame."""
    request.refuse_layout("a Merlin file")
    request.refuse_frame("a Merlin file")
    opened = first_part(request.path) if request.path.suffix.lower() == ".hdr" else request.path
    file_size(opened)
    header = frame_header(opened)
    hdr_path, hdr = hdr_file(name_of_set(opened))
    depth = header.depth or whole_number(hdr.get("Counter Depth (number)", ""))
    layout = _layout(request.name, header, depth)
    stride = header.size + layout.nbytes
    announced = whole_number(hdr.get("Frames in Acquisition (Number)", ""))
    parts = parts_of(opened, stride, announced)
    for part in parts:
        if part.frames == 0 or (part.rest and not request.allow_partial):
            raise ScanShapeError(
                f"{part.path.name} has {file_size(part.path)} bytes, which is {part.frames} frames of {stride} bytes "
                f"and {part.rest} bytes of another; the file is truncated: {cut_advice(part.frames)}."
            )
    cut = next((n for n, part in enumerate(parts, 1) if part.rest), len(parts))
    parts = parts[:cut]  # the frames of later files are not those that follow
    header, n_frames, rest = parts[0].header, sum(part.frames for part in parts), parts[-1].rest
    names = f"{len(parts)} files, from {parts[0].path.name} to {parts[-1].path.name}"
    if len(parts) > 1 and announced is not None and n_frames < announced and not request.allow_partial:
        raise ScanShapeError(
            f"{names}, hold {n_frames} of the {announced} frames that the .hdr file announces, so the last file is "
            "missing; put it beside them, or give allow_partial=True to open what is there."
        )
    declared, declared_by = _declared_shape(hdr, n_frames)

    def look_at_times(most: int = _MOST_TIMES) -> Rhythm | None:
        return rhythm_of_frames(parts[0].path, min(parts[0].frames, most), stride)

    if declared is None and request.scan_shape is None:
        lines = look_at_times()
        if lines is not None and lines.start == 0 and not lines.flyback and n_frames % lines.line == 0:
            declared = n_frames // lines.line, lines.line
            declared_by = "the pauses between the frames' time stamps (check it)"
    filling = fill_with_frames(request, n_frames, declared, declared_by, rhythm=look_at_times)
    lines = look_at_times(min(max(3 * filling.order.line, _FEWEST_TIMES), _MOST_TIMES))
    frames = layout.frames(parts, filling, depth)
    nky, nkx = frames.shape[2:]
    findings = [f"{n_frames} frame(s) of {nky} x {nkx} pixels, {_kind_text(header, layout)}."]
    if len(parts) > 1:
        findings.append(f"The acquisition is in {names}; the numbers of their frames run on.")
    findings += cut_frame(rest, stride)
    findings.append("There is no .hdr file beside it." if hdr_path is None else f"Header from {hdr_path.name}.")
    if announced not in (None, n_frames):
        findings.append(f"The .hdr file announces {announced} frames.")
    findings += [*filling.findings, *_other_lines(filling, lines), *_dropped_frames(parts, stride)]
    findings += narrowest(depth, frames.dtype)
    valid_pixels, sentences = _gaps(header, hdr, (nky, nkx))
    acquisition = {}
    if header.exposure_ms:
        acquisition["dwell_time_s"] = header.exposure_ms * 1e-3
    metadata = {"counter_depth_bits": depth, "mib_header": dataclasses.asdict(header), "hdr_file": hdr}
    return VendorFile(
        path=str(request.path),
        reader=rosettasciio_reader("quantumdetector"),
        source=filling.without_missing(frames),
        acquisition=acquisition,
        metadata=plain(metadata),
        findings=(*findings, *sentences),
        valid_pixels=valid_pixels,
        valid_patterns=filling.valid_patterns,
        data_path=str(parts[0].path),
        linked=tuple(str(file) for file in (hdr_path, *(part.path for part in parts[1:])) if file is not None),
    )


def _layout(name: str, header: FrameHeader, depth: int | None) -> _Layout:
    """How the counts of a frame lie in the file."""
    if header.pixels in _DTYPES:
        return _Layout(header.rows, header.columns, _DTYPES[header.pixels])
    if header.pixels != "R64":
        raise SourceError(f'{name} has pixels of kind "{header.pixels}"; expected U08, U16, U32 or R64.')
    if depth not in BITS_STORED:
        raise SourceError(
            f"{name} was written in raw mode (R64) with counters of {depth or 'unknown'} bits; expected 1, 6, 12 or "
            "24: put the .hdr file beside it, which says so, or export it from the Merlin software."
        )
    square = header.chips == 4 and header.layout.removesuffix("G") == "2x2"
    if header.chips != 1 and not square:
        raise SourceError(
            f"{name} was written in raw mode (R64) by {header.chips} chips in the layout {header.layout}, whose pixel "
            "order is not known; expected one chip or four in 2x2: export it from the Merlin software as U16."
        )
    rows, columns = header.rows, header.columns
    if depth == 24:
        # Two frames of 12 bits, for which the header doubles the columns.
        columns, odd = (columns, 0) if columns == _CHIP * header.chips else divmod(columns, 2)
        rows *= 2
    else:
        odd = 0
    if odd or columns * BITS_STORED[depth] % (8 * WORD * header.chips):
        raise SourceError(
            f"{name} was written in raw mode (R64) with {header.columns} columns of {depth} bits by {header.chips} "
            "chip(s), which fill no whole 64-bit words; the header is damaged: export it from the Merlin software."
        )
    return _Layout(rows, columns * BITS_STORED[depth] // 8, np.dtype("u1"), depth, square)


def _kind_text(header: FrameHeader, layout: _Layout) -> str:
    if layout.depth is None:
        return header.pixels
    text = f"raw mode (R64), {layout.depth} bits, {header.chips} chip(s), every pixel put in its place"
    if layout.square and layout.depth == 24:
        text += " (24 bits of four chips are read as two frames of 12 bits; no real file was seen: look at a pattern)"
    return text


def _declared_shape(hdr: dict[str, str], n_frames: int) -> tuple[tuple[int, int] | None, str]:
    """The scan shape that the headers give away, and what gave it."""
    nx, ny = whole_number(hdr.get("ScanX", "")), whole_number(hdr.get("ScanY", ""))
    if nx and ny:
        return (ny, nx), "the .hdr file (ScanY, ScanX)"
    per_trigger = whole_number(hdr.get("Frames per Trigger (Number)", "")) or 1
    if 1 < per_trigger < n_frames and n_frames % per_trigger == 0:
        return (n_frames // per_trigger, per_trigger), "the .hdr file (frames per trigger)"
    if n_frames == 1:
        return (1, 1), "the single frame"
    return None, ""


def _other_lines(filling: Filling, lines: Rhythm | None) -> list[str]:
    """A sentence if the frames' times say that lines are longer or shorter than those of the scan."""
    if lines is None or lines.line == filling.order.line:
        return []
    return [f"{lines}, but those of the scan have {filling.order.line}: check flyback=... and scan_shape."]


def _dropped_frames(parts: list[Part], stride: int) -> list[str]:
    """A sentence if the numbers that the detector gave its frames do not run on to the end of the last file."""
    first, expected = parts[0].header.number, parts[-1].stop - 1
    last = frame_header(parts[-1].path, (parts[-1].frames - 1) * stride)
    if last.number == expected:
        return []
    return [
        f"The first frame is number {first} and the last number {last.number}, where {expected} was expected: "
        "frames may be missing or doubled."
    ]


def _gaps(header: FrameHeader, hdr: dict[str, str], detector: tuple[int, int]) -> tuple[np.ndarray | None, list[str]]:
    """Flags of the pixels that are no gap between chips, where the counts have any, and what is said about gaps."""
    if header.chips == 1 or not re.fullmatch(r"[0-9N]+x[0-9]+G?", header.layout, re.ASCII):
        return None, []
    chips = (2, 2) if header.layout.removesuffix("G") == "2x2" else (1, header.chips)
    gaps = [(n - count * _CHIP) // (count - 1) if count > 1 else 0 for n, count in zip(detector, chips, strict=True)]
    if max(gaps) <= 0:
        return None, [
            f"The {header.chips} chips ({header.layout}) touch in the counts: the gap between them is left out, so "
            "what lies across it is farther apart than it seems, and the pixels along it may be larger than others."
        ]
    valid = np.ones(detector, bool)
    for axis, (count, gap) in enumerate(zip(chips, gaps, strict=True)):
        for chip in range(1, count if gap > 0 else 1):
            start = chip * _CHIP + (chip - 1) * gap
            index = [slice(None), slice(None)]
            index[axis] = slice(start, start + gap)
            valid[tuple(index)] = False
    mode = hdr.get("Gap Fill Mode", "")
    filled = f' (filled: "{mode}")' if mode else ""
    return valid, [
        f"The gap between the chips ({header.layout}) is in the counts{filled}; its {int((~valid).sum())} pixels were "
        "not measured and are not valid."
    ]
