"""What a Merlin frame says about itself, and what the times of many frames say about the lines of the scan."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SourceError
from ..rosettasciio import merlin_settings
from ..scan_shape import Rhythm

# Longest text before a frame; a quad has 768 bytes.
_LONGEST_HEADER = 8192
# A pause between lines is well above the jitter of the frames; ticks of the clock (10 ns) are no lines.
_LEAST_PAUSE_NS = 1e3
# A frame of the flyback is exposed this many times longer than the others at least.
_LONG_EXPOSURE = 1.5


@dataclass(frozen=True)
class FrameHeader:
    """The facts in the text before one frame.

    Attributes
    ----------
    number : int
        What the detector counted the frame as.
    size : int
        Bytes of the text.
    rows, columns : int
        As the header states them; in raw mode the columns are those of all chips side by side.
    pixels : str
        "U08", "U16", "U32" or "R64".
    chips : int
    layout : str
        How the chips lie, such as "1x1", "2x2", or "2x2G" with the gap between them in the counts.
    time : str
    exposure_ms : float or None
    depth : int or None
        Bits of a counter.
    """

    number: int
    size: int
    rows: int
    columns: int
    pixels: str
    chips: int
    layout: str
    time: str
    exposure_ms: float | None
    depth: int | None


def whole_number(text: str) -> int | None:
    """A number that is above zero, or None."""
    return int(text) if re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", text, re.ASCII) else None


def frame_header(path: Path, position: int = 0) -> FrameHeader:
    """The header of the frame that starts at a byte of a file.

    Raises
    ------
    SourceError
        If there is none.
    """
    with open(path, "rb") as file:
        file.seek(position)
        text = file.read(_LONGEST_HEADER)
    found = _parse(text)
    if found is None:
        raise SourceError(
            f"{path.name} has no Merlin header at byte {position}; the file is damaged or not a .mib file."
        )
    return found


def _parse(text: bytes) -> FrameHeader | None:
    fields = text.split(b"\x00")[0].decode("latin-1").split(",")
    if len(fields) < 10 or fields[0] != "MQ1":
        return None
    size, chips, columns, rows = (whole_number(fields[i]) for i in (2, 3, 4, 5))
    if size is None or chips is None or columns is None or rows is None or size > _LONGEST_HEADER:
        return None
    fields = text[:size].decode("latin-1").rstrip("\x00 \r\n").split(",")
    number = re.fullmatch(r"\s*([0-9]{1,12})\s*", fields[1], re.ASCII) if len(fields) >= 10 else None
    if number is None:
        return None
    extension = fields[fields.index("MQ1A") + 1 :] if "MQ1A" in fields else []
    exposure = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)ns\s*", extension[1], re.ASCII) if len(extension) > 1 else None
    return FrameHeader(
        number=int(number[1]),
        size=size,
        rows=rows,
        columns=columns,
        pixels=fields[6].strip(),
        chips=chips,
        layout=fields[7].strip(),
        time=extension[0] if extension else fields[9],
        exposure_ms=float(exposure[1]) / 1e6 if exposure else None,
        depth=whole_number(extension[2]) if len(extension) > 2 else None,
    )


def hdr_file(path: Path) -> tuple[Path | None, dict[str, str]]:
    """The text header beside a .mib file, and what it says."""
    beside = hdr_beside(path)
    if beside is None:
        return None, {}
    try:
        return beside, {key: value.strip() for key, value in merlin_settings(str(beside)).items()}
    except (ValueError, OSError) as error:
        raise SourceError(
            f"{beside.name} beside {path.name} cannot be read as a Merlin header ({error}); move it away or copy it "
            "again."
        ) from None


def hdr_beside(path: Path) -> Path | None:
    """The file with the name of a .mib file and the extension .hdr, in whatever case."""
    files = sorted(path.parent.iterdir())
    return next((file for file in files if file.stem == path.stem and file.suffix.lower() == ".hdr"), None)


def rhythm_of_frames(path: Path, count: int, stride: int) -> Rhythm | None:
    """The lines of a scan by its first frames' times: one frame a line exposed longer, or a pause before each line."""
    headers: list[FrameHeader | None] = []
    handle = os.open(path, os.O_RDONLY)
    try:
        for index in range(count):
            headers.append(_parse(os.pread(handle, 1024, index * stride)))
    finally:
        os.close(handle)
    found: list[Any] = [header for header in headers if header is not None]
    if len(found) < len(headers):
        return None
    return _by_exposure(found) or _by_pauses(found)


def _by_exposure(headers: list[FrameHeader]) -> Rhythm | None:
    exposures = np.array([np.nan if header.exposure_ms is None else header.exposure_ms for header in headers])
    if np.isnan(exposures).any():
        return None
    usual = float(np.median(exposures))
    long = np.flatnonzero(exposures > _LONG_EXPOSURE * usual)
    if usual <= 0 or np.ptp(exposures[exposures <= _LONG_EXPOSURE * usual]) > 0.1 * usual:
        return None
    # The long frame ends its line.
    return _regular(long + 1, len(headers), "A longer exposure at the end of each line", flyback=1)


def _by_pauses(headers: list[FrameHeader]) -> Rhythm | None:
    times = [_timestamp(header.time) for header in headers]
    if any(time is None for time in times):
        return None
    pauses = np.diff(np.array(times, dtype="datetime64[ns]")).astype(np.float64)
    if not pauses.size:
        return None
    is_break = pauses > (np.median(pauses) + pauses.max()) / 2
    usual = pauses[~is_break]
    if not is_break.any() or pauses[is_break].min() - usual.max() < max(_LEAST_PAUSE_NS, 3 * np.ptp(usual)):
        return None
    return _regular(np.flatnonzero(is_break) + 1, len(headers), "A pause between the time stamps")


def _regular(starts: np.ndarray, count: int, by: str, flyback: int = 0) -> Rhythm | None:
    """Lines that start at these frames, or None unless they are equally long, to the end of what was looked at."""
    if not starts.size:
        return None
    lengths = np.diff(starts)
    # With a single break, what is before it is a line.
    line = int(lengths[0]) if lengths.size else int(starts[0])
    regular = (lengths == line).all() and starts[-1] + line >= count + flyback
    return Rhythm(line, int(starts[0]), by, flyback) if regular and line > 1 + flyback else None


def _timestamp(text: str) -> np.datetime64 | None:
    try:
        # NumPy keeps the nanoseconds, datetime says whether the text is a time at all.
        datetime.fromisoformat(text[:19])
        return np.datetime64(text.rstrip("Z").strip().replace(" ", "T"), "ns")
    except ValueError:
        return None
