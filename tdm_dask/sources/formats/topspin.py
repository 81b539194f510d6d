"""NanoMEGAS TopSpin: .app5, an HDF5 file with one group to a pattern."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np

from ...errors import CountsError, SourceError
from ..calibration_facts import angle
from ..frame_files import listed_frames
from ..scan_shape import fill_with_frames
from ..vendor import Request, VendorFile, check_dtype, pick_frame, plain

# The lengths of the parts of a GUID, which names each of TopSpin's results.
_GUID = [8, 4, 4, 4, 12]


def is_topspin(file: Any) -> bool:
    """Whether an HDF5 file is one of TopSpin's: its results are named by GUIDs."""
    return bool(_results(file))


def open_topspin(request: Request, file: Any) -> VendorFile:
    """Open the scan of an .app5 file; a group "0", "1", ... holds each pattern and its position."""
    import h5py

    scans = _results(file)
    group = scans[pick_frame(request, len(scans))]
    findings = [f"Scan {group.name}, one of {len(scans)} in the file."] if len(scans) > 1 else []
    names = sorted(group, key=int)
    if names != [str(i) for i in range(len(names))]:
        raise SourceError(
            f"{request.name} numbers its {len(names)} patterns from {names[0]} to {names[-1]}; expected 0 to "
            f"{len(names) - 1}: patterns are missing, export it again."
        )
    first = group["0/Data"]
    dtype = check_dtype(first.dtype, request.name)
    starts, positions = [], []
    for name in names:
        # One at a time: HDF5 holds some 20 kB for each dataset that is open.
        node = group[name]
        pattern = node["Data"]
        if first.ndim != 2 or pattern.shape != first.shape or pattern.dtype != first.dtype:
            raise CountsError(f"{request.name} holds patterns of several shapes; expected one.")
        starts.append(pattern.id.get_offset())
        positions.append(_position(node))
    if None in starts:
        raise SourceError(f"{request.name} holds compressed patterns, each by itself; export it again without.")
    declared, step = _scan(positions)
    filling = fill_with_frames(request, len(names), declared, "the positions of the patterns")
    offsets = np.array(starts, np.int64)
    source = listed_frames(str(request.path), filling, first.shape, dtype, offsets)
    pixel = _pixel_size(group[names[0]])
    metadata = file.get("Metadata") or group.parent.get("Metadata")
    return VendorFile(
        path=str(request.path),
        reader=f"TopSpin (h5py {h5py.__version__})",
        source=filling.without_missing(source),
        scan_step=step if filling.shape == declared else None,
        pixel_size=pixel,
        metadata=plain({"scan": group.name, "xml": metadata[()] if metadata is not None else None}),
        findings=(*findings, *filling.findings),
        valid_patterns=filling.valid_patterns,
    )


def _results(file: Any) -> list[Any]:
    """The groups of patterns, at the top or one session further down."""
    import h5py

    found = []
    for name in file:
        node = file.get(name)
        if [len(part) for part in name.split("-")] != _GUID or not isinstance(node, h5py.Group):
            continue
        if "0" in node and "Data" in node["0"]:
            found.append(node)
        else:
            found += _results(node)
    return found


def _xml(node: Any) -> ET.Element | None:
    try:
        return ET.fromstring(node["Metadata"][()])
    except (KeyError, ET.ParseError, TypeError, ValueError):
        return None


def _position(node: Any) -> tuple[float, float] | None:
    """Where the beam was, (y, x) in metres."""
    root = _xml(node)
    try:
        x, y = (float(value.text or "") for value in list(root[1][0][1])[:2])  # type: ignore[index]
    except (TypeError, ValueError, IndexError):
        return None
    return y, x


def _scan(positions: list[tuple[float, float] | None]) -> tuple[tuple[int, int] | None, tuple[float, float] | None]:
    """Shape and step (angstrom) of a scan, line by line, from the position of each pattern; None where it is none."""
    if not positions or None in positions:
        return None, None
    y, x = np.array(positions, float).T
    ny, nx = len(np.unique(y)), len(np.unique(x))
    if ny * nx != len(positions):
        return None, None
    lines_y, lines_x = y.reshape(ny, nx), x.reshape(ny, nx)
    if np.any(lines_y != lines_y[:, :1]) or np.any(lines_x != lines_x[:1]):
        return None, None
    steps = [abs(line[1] - line[0]) * 1e10 if len(line) > 1 else None for line in (lines_y[:, 0], lines_x[0])]
    known = [step for step in steps if step]
    if not known:
        return (ny, nx), None
    return (ny, nx), (steps[0] or known[0], steps[1] or known[0])


def _pixel_size(node: Any) -> tuple[float, float] | None:
    """Mrad (ky, kx); None where the unit of the pattern's axes is no angle."""
    root = _xml(node)
    try:
        values = [angle(axis[1].text, axis[2][1].text, None) for axis in root[0][:2]]  # type: ignore[index]
    except (TypeError, IndexError):
        return None
    return None if None in values else (values[0], values[1])  # type: ignore[return-value]
