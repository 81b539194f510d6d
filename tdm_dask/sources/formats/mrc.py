"""MRC stacks, and what a Direct Electron camera writes beside them: _info.txt and _scan_coordinates.csv."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import CountsError, ScanShapeError, SourceError
from ..calibration_facts import facts_of_axes
from ..frame_files import listed_frames
from ..scan_shape import cut_advice, cut_frame, fill_with_frames
from ..vendor import Request, VendorFile, file_size, pick_frame, plain

_HEADER_BYTES = 1024
_MODES = {0: "u1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_COMPLEX = (3, 4)


@dataclass(frozen=True)
class _Layout:
    """How the frames of a movie fill the scan, by its camera's info file.

    Parameters
    ----------
    shape : (ny, nx) or None
    declared_by : str
    frames : ndarray of int or None
        The frame of each probe position; as they were taken, by default.
    findings : list of str
    table : Path or None
        The file that lists the positions.
    """

    shape: tuple[int, int] | None = None
    declared_by: str = ""
    frames: np.ndarray | None = None
    findings: list[str] = field(default_factory=list)
    table: Path | None = None


def open_mrc(request: Request) -> VendorFile:
    """Open a stack of frames."""
    request.refuse_layout("an MRC file")
    size = file_size(request.path)
    header = _header(request.path, size)
    dtype, detector, announced = header["dtype"], header["detector"], header["frames"]
    offset = _HEADER_BYTES + header["extended"]
    frame = math.prod(detector) * dtype.itemsize
    n_frames, rest = divmod(max(size - offset, 0), frame)
    findings = []
    if n_frames >= announced:
        if size > offset + announced * frame:
            findings.append(f"{size - offset - announced * frame} bytes follow the last frame and are not read.")
        n_frames, rest = announced, 0
    elif n_frames == 0 or not request.allow_partial:
        raise ScanShapeError(
            f"{request.name} holds {n_frames} frames of {frame} bytes and {rest} bytes more, but its header announces "
            f"{announced} frames; it is truncated: {cut_advice(n_frames)}."
        )
    findings += cut_frame(rest, frame)
    info = _info_file(request.path)
    facts = _info(info) if info is not None else {}
    if info is not None:
        findings.append(f"Facts of the camera from {info.name}.")
    layout = _layout(request, facts, announced)
    starts = offset + frame * np.arange(n_frames, dtype=np.int64)
    if layout.frames is not None:
        if n_frames < announced:
            raise ScanShapeError(f"{request.name} is truncated, and its frames are in no plain order: copy it again.")
        starts = starts[layout.frames]
    filling = fill_with_frames(request, len(starts), layout.shape, layout.declared_by)
    energy = _number(facts, "Instrument Accelerating Voltage (V)")
    scales = [
        {"scale": _number(facts, f"Specimen Pixel Size {axis} (nanometers)"), "units": "nm"} for axis in "YX"
    ] + [{"scale": _number(facts, f"Diffraction Pixel Size {axis}"), "units": "1/nm"} for axis in "YX"]
    known = facts_of_axes(scales, energy)
    dwell = _number(facts, "Scan - Dwell Time (microseconds)")
    acquisition = {"energy_eV": energy} if energy else {}
    if dwell:
        acquisition["dwell_time_s"] = dwell * 1e-6
    return VendorFile(
        path=str(request.path),
        reader="MRC",
        source=filling.without_missing(listed_frames(str(request.path), filling, detector, dtype, starts)),
        scan_step=known.scan_step if filling.shape == layout.shape else None,
        pixel_size=known.pixel_size,
        acquisition=acquisition,
        metadata=plain({"mrc_header": header | {"dtype": str(dtype)}, "de_info": facts}),
        findings=(*findings, *layout.findings, *filling.findings, *known.findings),
        valid_patterns=filling.valid_patterns,
        linked=tuple(str(path) for path in (info, layout.table) if path is not None),
    )


def _header(path: Path, size: int) -> dict[str, Any]:
    """The facts in the first 1024 bytes, in either byte order."""
    with open(path, "rb") as file:
        data = file.read(_HEADER_BYTES)
    if len(data) < _HEADER_BYTES:
        raise SourceError(f"{path.name} is shorter than an MRC header; it is damaged, copy it again.")
    # The machine stamp; old programs left it empty, and wrote what little-endian machines do.
    order: Literal["<", ">"] = ">" if data[212:214] == b"\x11\x11" else "<"
    nx, ny, nz, mode = struct.unpack_from(f"{order}4i", data)
    (extended,) = struct.unpack_from(f"{order}i", data, 92)
    if mode in _COMPLEX:
        raise CountsError(f"{path.name} holds complex numbers; counts must be integers or real numbers.")
    if mode not in _MODES or min(nx, ny, nz) < 1 or not 0 <= extended <= size:
        raise SourceError(
            f"{path.name} announces {nz} frames of {ny} x {nx} pixels of mode {mode}; it is damaged, or no MRC file."
        )
    return {
        "frames": nz,
        "detector": (ny, nx),
        "mode": mode,
        "dtype": np.dtype(_MODES[mode]).newbyteorder(order),
        "extended": extended,
        "labels": data[224:1024].decode("latin-1").replace("\x00", " ").strip(),
    }


def _beside(movie: Path, ending: str) -> Path | None:
    """A file of the same acquisition: DATE_NUMBER_..., or the movie's own name, with another ending."""
    stem, _, last = movie.stem.rpartition("_")
    if last != "movie":
        return None
    exact = movie.with_name(f"{stem}_{ending}")
    if exact.is_file():
        return exact
    words = stem.split("_")
    if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()):
        return None
    prefix = f"{words[0]}_{words[1]}_"
    names = sorted(p for p in movie.parent.iterdir() if p.name.startswith(prefix) and p.name.endswith(ending))
    return names[0] if names else None


def _info_file(movie: Path) -> Path | None:
    return _beside(movie, "info.txt")


def _info(path: Path) -> dict[str, str]:
    """The lines "key = value" of an info file."""
    lines = (line.partition("=") for line in path.read_text("utf-8", "replace").splitlines())
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


def _number(facts: dict[str, str], key: str) -> float | None:
    """A positive number; -1 stands for unknown."""
    try:
        value = float(facts.get(key, ""))
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _layout(request: Request, facts: dict[str, str], n_frames: int) -> _Layout:
    """The scan shape that the info file gives away; which of several repeats is asked for."""
    if facts.get("Scan - Enable") != "Enable" or request.scan_shape is not None:
        request.refuse_frame("an MRC file")
        return _Layout()
    if facts.get("Scan - Type", "Raster") != "Raster":
        return _listed_layout(request, facts, n_frames)
    region = "ROI " if facts.get("Scan - ROI Enable") == "Enable" else ""
    ny, nx = (_number(facts, f"Scan - {region}Size {axis}") for axis in "YX")
    if ny is None or nx is None:
        request.refuse_frame("an MRC file")
        return _Layout()
    shape = (int(ny), int(nx))
    repeats, rest = divmod(n_frames, math.prod(shape))
    if rest == 0 and repeats > 1 and _number(facts, "Scan - Repeats") == repeats:
        chosen = pick_frame(request, repeats, "repeats of the scan")
        frames = chosen * math.prod(shape) + np.arange(math.prod(shape))
        return _Layout(shape, "the info file", frames, [f"Repeat {chosen} of {repeats}."])
    request.refuse_frame("an MRC file")
    return _Layout(shape, "the info file")


def _listed_layout(request: Request, facts: dict[str, str], n_frames: int) -> _Layout:
    """A scan whose positions are listed in a file, if they are a grid, visited once or several times."""
    kind = facts["Scan - Type"]
    table = _beside(request.path, "scan_coordinates.csv")
    if table is None:
        raise ScanShapeError(
            f"{request.name} was scanned in the order {kind!r}, whose positions (_scan_coordinates.csv) are not beside "
            "it; put them there, or give scan_shape to take the frames as they were recorded."
        )
    try:
        positions = np.loadtxt(table, delimiter=",", dtype=np.int64, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise SourceError(f"{table.name} holds no list of positions x,y ({error}); copy it again.") from None
    if positions.shape != (n_frames, 2):
        raise ScanShapeError(
            f"{table.name} lists {len(positions)} positions for {n_frames} frames; give scan_shape to take the frames "
            "as they were recorded."
        )
    x, y = positions.T
    columns, rows = np.unique(x), np.unique(y)
    shape = (len(rows), len(columns))
    place = np.searchsorted(rows, y) * shape[1] + np.searchsorted(columns, x)
    visits = np.bincount(place, minlength=math.prod(shape))
    if np.any(visits != visits[0]):
        raise ScanShapeError(
            f"The positions in {table.name} are no full grid: {np.count_nonzero(visits)} of {shape[0]} x {shape[1]} "
            "were visited, or not equally often; give scan_shape to take the frames as they were recorded."
        )
    repeats = int(visits[0])
    chosen = pick_frame(request, repeats, "visits of each position") if repeats > 1 else 0
    if repeats == 1:
        request.refuse_frame("an MRC file")
    frames = np.argsort(place, kind="stable").reshape(-1, repeats)[:, chosen]
    findings = [f"The frames are put where {table.name} says."]
    if repeats > 1:
        findings.append(f"Visit {chosen} of {repeats} to each position.")
    return _Layout(shape, table.name, frames, findings, table)
