"""EMPAD: an .xml header and the .raw file that it names."""

from __future__ import annotations

import ast
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks import RawFrames
from ..errors import ScanShapeError, SourceError
from .scan_shape import fill_scan
from .vendor import Request, VendorFile, file_size, plain, rosettasciio_reader

_DTYPE = np.dtype("<f4")
_EDGE = 128
# Each frame ends with two rows that are not pixels.
_STRIDE = (_EDGE + 2) * _EDGE * _DTYPE.itemsize


def is_empad_header(path: Path) -> bool:
    """Whether an .xml file is an EMPAD header, which names its raw file."""
    try:
        return ET.parse(path).getroot().find("raw_file") is not None
    except (ET.ParseError, OSError):
        return False


def header_beside(path: Path) -> Path | None:
    """The EMPAD header in the same folder that names this raw file."""
    for candidate in sorted(path.parent.glob("*.[xX][mM][lL]")):
        if is_empad_header(candidate):
            named = ET.parse(candidate).getroot().find("raw_file")
            if named is not None and _base_name(named.get("filename", "")) == path.name:
                return candidate
    return None


def open_empad(request: Request) -> VendorFile:
    """Open an EMPAD scan by its header or its raw file."""
    from rsciio.empad._api import _parse_xml

    request.refuse_layout("an EMPAD file")
    request.refuse_frame("an EMPAD scan")
    header = header_beside(request.path) if request.path.suffix.lower() == ".raw" else request.path
    if header is None:
        raise SourceError(f"No EMPAD header (.xml) in {request.path.parent} names {request.name}; put it there.")
    file_size(header)
    try:
        contents, info = _parse_xml(str(header))
    except Exception as error:
        raise SourceError(f"{header.name} is not an EMPAD header that can be read ({error}).") from None
    raw = header.parent / _base_name(str(info["raw_filename"]))
    if not raw.is_file():
        raise SourceError(
            f"{header.name} names {raw.name} as the file with its counts, which is not in {header.parent}; "
            "put it there."
        )
    size = file_size(raw)
    n_frames, rest = divmod(size, _STRIDE)
    declared: tuple[int, int] | None
    if "series_count" in info:
        declared, declared_by = (1, int(info["series_count"])), "the header (a series)"
    elif "scan_x" in info:
        declared, declared_by = (int(info["scan_y"]), int(info["scan_x"])), "the header"
    else:
        declared, declared_by = None, ""
    if rest:
        wanted = "" if declared is None else f", where {declared_by} {declared} needs {math.prod(declared) * _STRIDE}"
        raise ScanShapeError(
            f"{raw.name} has {size} bytes{wanted}; that is {n_frames} frames of {_STRIDE} bytes and {rest} "
            "bytes of another: it is truncated, copy it again."
        )
    if n_frames == 0:
        raise ScanShapeError(f"{raw.name} holds no whole frame; copy it again.")
    shape, sentence = fill_scan(raw.name, n_frames, request.scan_shape, declared, declared_by)
    metadata = plain(contents.to_dict()).get("root", {})
    measurements = metadata.get("iom_measurements", {})
    step, findings = _scan_step(header, measurements, declared, shape)
    acquisition = {}
    for place in (("high_voltage",), ("source", "get_voltage")):
        volts = _look_up(measurements, place)
        if volts is not None and volts > 0:
            acquisition["energy_eV"] = volts
            break
    source = RawFrames(str(raw), (*shape, _EDGE, _EDGE), _DTYPE.str, frame_stride=_STRIDE)
    return VendorFile(
        path=str(request.path),
        reader=rosettasciio_reader("empad"),
        source=source,
        scan_step=step,
        acquisition=acquisition,
        metadata=metadata,
        findings=(
            sentence,
            *findings,
            "The two spare rows of each frame are left out; EMPAD counts may hold NaN.",
        ),
        data_path=str(raw),
    )


def _scan_step(
    header: Path, measurements: dict[str, Any], declared: tuple[int, int] | None, shape: tuple[int, int]
) -> tuple[tuple[float, float] | None, list[str]]:
    """The scan step in angstrom, where the header leaves no doubt about it.

    The step is field of view / scale factor * scan size / larger number of positions (rosettasciio, pull
    request 495). The header holds the scan size of both "search" and "acquire" without saying which took the
    data, so it counts only where those that have the scan's resolution agree. Headers before version 1.2 have
    no scale factor, and whether their field of view includes the scan size is not documented.
    """
    width = _look_up(measurements, ("full_scan_field_of_view", "x"))
    scale = _look_up(measurements, ("full_scan_field_of_view", "scale_factor"))
    old = _look_up(measurements, ("optics", "get_full_scan_field_of_view"))
    if shape != declared or (old is None and not (width and scale)):
        return None, []
    sizes = set()
    for mode in ET.parse(header).getroot().iter("scan_parameters"):
        resolution = [mode.findtext(f"scan_resolution_{axis}") for axis in "yx"]
        size = mode.findtext("scan_size")
        if size is not None and resolution == [str(n) for n in shape]:
            sizes.add(float(size))
    if len(sizes) == 1 and width and scale:
        step = width / scale * sizes.pop() / max(shape) * 1e10
        return (step, step), ["The scan step comes from the field of view and the scan size in the header."]
    if sizes == {1.0} and old:
        step = old / max(shape) * 1e10
        return (step, step), ["The scan step comes from the field of view in the header."]
    doubt = (
        "more than one scan size" if len(sizes) > 1 else f"a scan size of {sizes.pop()}" if sizes else "no scan size"
    )
    return None, [
        f"The header gives a field of view and {doubt} for this scan shape, so the scan step is not certain: "
        "give scan_step."
    ]


def _look_up(tree: dict[str, Any], place: tuple[str, ...]) -> float | None:
    """A number in nested metadata; the first of a list."""
    value: Any = tree
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    try:
        value = ast.literal_eval(value) if isinstance(value, str) else value
        number = float(value[0] if isinstance(value, (list, tuple)) else value)
    except (TypeError, ValueError, SyntaxError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _base_name(name: str) -> str:
    """File name without its folder, which may be one of the microscope's own machine."""
    return name.replace("\\", "/").rsplit("/", 1)[-1]
