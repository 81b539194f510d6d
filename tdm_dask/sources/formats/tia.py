"""FEI / Thermo Fisher TIA: .ser, a table of frames, with its .emi beside it."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CountsError, SourceError, TdmError
from ..calibration_facts import length
from ..frame_files import listed_frames
from ..scan_shape import fill_with_frames
from ..stacks import FlippedRows
from ..vendor import Request, VendorFile, check_dtype, file_size, pick_frame, plain

MAGIC = b"II\x97\x01"

_FIELDS = (
    *("ByteOrder", "SeriesID", "SeriesVersion", "DataTypeID", "TagTypeID"),
    *("TotalNumberElements", "ValidNumberElements"),
)
_IMAGES = 0x4122
_WITH_POSITION = 0x4142
# Offsets of eight bytes came with this version.
_LONG_OFFSETS = 0x220
_DTYPES = {1: "<u1", 2: "<u2", 3: "<u4", 4: "<i1", 5: "<i2", 6: "<i4", 7: "<f4", 8: "<f8"}
_ELEMENT = struct.Struct("<ddIddIHII")


def open_emi(request: Request) -> VendorFile:
    """Open the .ser file that belongs to an .emi file."""
    pattern = re.compile(re.escape(request.path.stem) + r"_\d+\.ser", re.IGNORECASE)
    beside = sorted(path for path in request.path.parent.iterdir() if pattern.fullmatch(path.name))
    if not beside:
        raise SourceError(f"No .ser file of {request.name} is beside it; put it there.")
    path = beside[pick_frame(request, len(beside), "series")]
    return open_ser(Request(**{**vars(request), "path": path, "frame": None}))


def open_ser(request: Request) -> VendorFile:
    """Open a series of images."""
    request.refuse_layout("a TIA series")
    request.refuse_frame("a TIA series")
    file_size(request.path)
    try:
        return _open_ser(request)
    except TdmError:
        raise
    except (struct.error, ValueError, OverflowError, OSError) as error:
        raise SourceError(f"{request.name} points beyond its end ({error}); it is damaged, copy it again.") from None


def _open_ser(request: Request) -> VendorFile:
    size = request.path.stat().st_size
    header = _header(request.path)
    starts, tags, total = header["starts"], header["tags"], header["TotalNumberElements"]
    n_frames = len(starts)
    detector, dtype = header["detector"], np.dtype(header["dtype"])
    frame = detector[0] * detector[1] * dtype.itemsize
    if n_frames and (starts.min() < 0 or starts.max() + frame > size):
        raise SourceError(
            f"{request.name} has {size} bytes, but its table puts a frame of {frame} bytes at byte {starts.max()}; it "
            "is truncated, copy it again."
        )
    declared, step, findings = _scan(request.path, header, tags)
    findings.insert(0, f"{n_frames} frame(s) of {detector[0]} x {detector[1]} pixels.")
    if n_frames != total:
        findings.append(f"The scan was interrupted: {n_frames} of {total} frames were recorded.")
    filling = fill_with_frames(request, n_frames, declared, "the header")
    frames = listed_frames(str(request.path), filling, detector, check_dtype(dtype, request.name), starts)
    emi = _emi_file(request.path)
    facts = {} if emi is None else _emi_facts(emi)
    energy = facts.get("High tension", 0.0) * 1e3
    return VendorFile(
        path=str(request.path),
        reader="TIA",
        source=filling.without_missing(FlippedRows(frames)),
        scan_step=step if filling.shape == declared else None,
        # The header gives a pixel in metres, of the camera or of an image, whatever was projected on it.
        acquisition={"energy_eV": energy} if energy > 0 else {},
        metadata=plain({"ser_header": {k: v for k, v in header.items() if k not in ("starts", "tags")}, "emi": facts}),
        findings=(*findings, *filling.findings),
        valid_patterns=filling.valid_patterns,
        linked=() if emi is None else (str(emi),),
    )


def _header(path: Path) -> dict[str, Any]:
    """What stands before the frames of a series, and the bytes at which their pixels begin."""
    with open(path, "rb") as file:
        header: dict[str, Any] = dict(zip(_FIELDS, _read(file, "<HHHIIII"), strict=True))
        if header["ByteOrder"] != 0x4949 or header["SeriesID"] != 0x0197:
            raise SourceError(f"{path.name} has no TIA header; it is damaged, or no .ser file.")
        if header["DataTypeID"] != _IMAGES:
            raise CountsError(f"{path.name} holds a series of spectra, not of patterns; it is not a 4D-STEM scan.")
        wide = header["SeriesVersion"] >= _LONG_OFFSETS
        table, n_dims = _read(file, "<QI" if wide else "<II")
        if n_dims > 8 or header["ValidNumberElements"] > header["TotalNumberElements"]:
            raise SourceError(f"{path.name} has a TIA header that contradicts itself; it is damaged, copy it again.")
        header["dimensions"] = [_dimension(file) for _ in range(n_dims)]
        total, n = header["TotalNumberElements"], header["ValidNumberElements"]
        if n == 0:
            raise CountsError(f"{path.name} holds no recorded frame; if it is a single one, it lies in the .emi file.")
        item = 8 if wide else 4
        size = path.stat().st_size
        if table + 2 * total * item > size:
            raise SourceError(f"{path.name} has {size} bytes, too few for the table of its frames; copy it again.")
        file.seek(table)
        offsets = np.frombuffer(file.read(2 * total * item), f"<u{item}").astype(np.int64)
        file.seek(int(offsets[0]))
        *calibration, kind, nx, ny = _ELEMENT.unpack(file.read(_ELEMENT.size))
    if kind not in _DTYPES:
        raise CountsError(f"{path.name} holds values of kind {kind}; counts must be integers or real numbers.")
    if nx == 0 or ny == 0:
        raise SourceError(f"{path.name} has frames of {ny} x {nx} pixels; it is damaged, copy it again.")
    return header | {
        "calibration": calibration,
        "dtype": _DTYPES[kind],
        "detector": (ny, nx),
        "starts": offsets[:n] + _ELEMENT.size,
        "tags": offsets[total : total + n],
    }


def _read(file: Any, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _dimension(file: Any) -> dict[str, Any]:
    """One of the dims of a scan: size, step and unit."""
    size, offset, delta, element = _read(file, "<IddI")
    texts = []
    for _ in range(2):
        (n,) = _read(file, "<I")
        if n > 4096:
            raise struct.error
        texts.append(file.read(n).decode("latin-1"))
    return {"size": size, "offset": offset, "step": delta, "element": element, "name": texts[0], "unit": texts[1]}


def _scan(
    path: Path, header: dict[str, Any], tags: np.ndarray
) -> tuple[tuple[int, int] | None, tuple[float, float] | None, list[str]]:
    """Scan shape, step in angstrom, and what is odd; the first dim of the header is the fast one, as a rule."""
    dims = header["dimensions"]
    if len(dims) == 1:
        return (1, header["ValidNumberElements"]), None, []
    if len(dims) != 2 or 0 in (dims[0]["size"], dims[1]["size"]):
        return None, None, []
    findings: list[str] = []
    slow, fast = dims[1], dims[0]
    if header["TagTypeID"] == _WITH_POSITION and len(tags) > 1 and not _x_moves_first(path, tags):
        slow, fast = dims[0], dims[1]
        findings.append("The beam ran along y first, so the scan's axes are exchanged: y is the sample's x.")
    steps = [length(dim["step"], "m" if dim["unit"] in ("meters", "m") else dim["unit"]) for dim in (slow, fast)]
    known = None not in steps
    return (slow["size"], fast["size"]), (steps[0], steps[1]) if known else None, findings  # type: ignore[return-value]


def _x_moves_first(path: Path, tags: np.ndarray) -> bool:
    """Whether the first two frames were taken on one line."""
    rows = []
    with open(path, "rb") as file:
        for tag in tags[:2]:
            file.seek(int(tag) + 16)  # after the tag's type, time and x
            rows.append(struct.unpack("<d", file.read(8))[0])
    return rows[0] == rows[1]


def _emi_file(path: Path) -> Path | None:
    """The .emi file beside a series."""
    stem = path.stem.rsplit("_", 1)[0]
    beside = (path.with_name(f"{stem}{suffix}") for suffix in (".emi", ".EMI"))
    return next(filter(Path.is_file, beside), None)


def _emi_facts(path: Path) -> dict[str, float]:
    """Numbers of the experimental description in an .emi file, by their labels."""
    found = re.findall(rb"<Label>([^<]{1,80})</Label>\s*<Value>([-+.0-9eE]{1,30})</Value>", path.read_bytes())
    return {label.decode("latin-1"): float(value) for label, value in found if _is_number(value)}


def _is_number(text: bytes) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False
