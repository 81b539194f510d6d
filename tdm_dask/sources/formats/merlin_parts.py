"""The .mib files of one acquisition: Merlin begins a new one after a number of frames, and writes one .hdr for all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ...errors import ScanShapeError, SourceError
from ..vendor import file_size
from .merlin_header import FrameHeader, frame_header, hdr_beside

_NUMBER = re.compile(r"_?[0-9]+$", re.ASCII)


@dataclass(frozen=True)
class Part:
    """One file of an acquisition.

    Attributes
    ----------
    path : Path
    header : FrameHeader
        Of its first frame.
    frames : int
        That are whole.
    rest : int
        Bytes of a last one that was cut short.
    """

    path: Path
    header: FrameHeader
    frames: int
    rest: int

    @property
    def stop(self) -> int:
        """The number that the frame after its last one would have."""
        return self.header.number + self.frames


def name_of_set(path: Path) -> Path:
    """The path without the number of a part, unless a .hdr file belongs to this very file."""
    if hdr_beside(path) is not None:
        return path
    stem = _NUMBER.sub("", path.stem)
    return path.with_name(f"{stem}{path.suffix}") if stem else path


def first_part(hdr: Path) -> Path:
    """The .mib file of a .hdr file, or the first one of several."""
    files = _named_alike(hdr)
    if not files:
        raise SourceError(f"No .mib file of {hdr.name} is beside it; put it there.")
    return min(files, key=lambda file: (frame_header(file).number, file.name))


def parts_of(path: Path, stride: int, announced: int | None) -> list[Part]:
    """The files of the acquisition to which a .mib file belongs, in order; this one alone if it is whole by itself.

    Files belong together if their names differ by a number at the end, none but the first has a .hdr file of its own,
    and the numbers of their frames run on from one to the next.

    Parameters
    ----------
    path : Path
    stride : int
        Bytes from one frame to the next.
    announced : int or None
        Frames that the .hdr file announces.

    Raises
    ------
    ScanShapeError
        If a file between others, or the first one, is missing.
    """
    own = _part(path, frame_header(path), stride)
    if own.frames == announced:
        return [own]
    others = []
    for file in _named_alike(name_of_set(path)):
        if file != path:
            try:
                header = frame_header(file)
            except SourceError:
                continue
            if (header.size, header.rows, header.columns, header.pixels) == (
                own.header.size,
                own.header.rows,
                own.header.columns,
                own.header.pixels,
            ):
                others.append(_part(file, header, stride))
    # What begins with the number 1 as well is another acquisition.
    parts = sorted(
        [own, *(part for part in others if part.header.number > 1 or own.header.number > 1)],
        key=lambda part: part.header.number,
    )
    if any(after.header.number < before.stop for before, after in pairwise(parts)):
        return [own]
    for before, after in pairwise(parts):
        if after.header.number > before.stop and not before.rest:
            raise ScanShapeError(
                f"{before.path.name} ends with frame {before.stop - 1} and {after.path.name} begins with frame "
                f"{after.header.number}, so a file between them is missing; put it beside them."
            )
    if parts[0].header.number > 1 and announced is not None and sum(part.frames for part in parts) < announced:
        raise ScanShapeError(
            f"{parts[0].path.name} begins with frame {parts[0].header.number} of {announced}, so a file before it is "
            "missing; put it beside it."
        )
    return parts


def _part(path: Path, header: FrameHeader, stride: int) -> Part:
    return Part(path, header, *divmod(file_size(path), stride))


def _named_alike(name: Path) -> list[Path]:
    """The .mib files with this name, or with it and a number, of which none but the first has a .hdr file."""
    files = sorted(name.parent.iterdir())
    described = {file.stem for file in files if file.suffix.lower() == ".hdr"}
    return [
        file
        for file in files
        if file.suffix.lower() == ".mib"
        and (file.stem == name.stem or (_NUMBER.sub("", file.stem) == name.stem and file.stem not in described))
    ]
