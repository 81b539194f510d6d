"""EMPAD: an .xml header and the .raw file that it names."""

from __future__ import annotations

import ast
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ScanShapeError, SourceError
from ..scan_shape import cut_advice, cut_frame, fill_with_frames
from ..vendor import Request, VendorFile, file_size, plain

_DTYPE = np.dtype("<f4")
_EDGE = 128
# Each frame ends with two rows that are not pixels.
_STRIDE = (_EDGE + 2) * _EDGE * _DTYPE.itemsize


def is_empad_header(path: Path) -> bool:
    """Whether an .xml file is an EMPAD header, which names its raw file."""
    return _raw_name(path) is not None


def header_beside(path: Path) -> Path | None:
    """The EMPAD header in the same folder that names this raw file."""
    for candidate in sorted(path.parent.glob("*.[xX][mM][lL]")):
        if _raw_name(candidate) == path.name:
            return candidate
    return None


def open_empad(request: Request) -> VendorFile:
    """Open an EMPAD scan by its header or its raw file."""
    request.refuse_layout("an EMPAD file")
    request.refuse_frame("an EMPAD scan")
    header = header_beside(request.path) if request.path.suffix.lower() == ".raw" else request.path
    if header is None:
        raise SourceError(f"No EMPAD header (.xml) in {request.path.parent} names {request.name}; put it there.")
    file_size(header)
    root, name = _root(header), _raw_name(header)
    if root is None or name is None:
        raise SourceError(f"{header.name} is not an EMPAD header that can be read; copy it again.")
    raw = header.parent / name
    if not raw.is_file():
        raise SourceError(
            f"{header.name} names {raw.name} as the file with its counts, which is not in {header.parent}; "
            "put it there."
        )
    size = file_size(raw)
    n_frames, rest = divmod(size, _STRIDE)
    declared, declared_by = _declared_shape(root, raw.name, n_frames)
    if rest and not (n_frames and request.allow_partial):
        wanted = "" if declared is None else f", where {declared_by} {declared} needs {math.prod(declared) * _STRIDE}"
        raise ScanShapeError(
            f"{raw.name} has {size} bytes{wanted}; that is {n_frames} frames of {_STRIDE} bytes and {rest} "
            f"bytes of another: it is truncated, {cut_advice(n_frames)}."
        )
    if n_frames == 0:
        raise ScanShapeError(f"{raw.name} holds no whole frame; copy it again.")
    filling = fill_with_frames(request, n_frames, declared, declared_by, name=raw.name)
    step, findings = _scan_step(root, filling.shape)
    measurements = root.find("iom_measurements")
    acquisition = {}
    for place in ("high_voltage", "source.get_voltage"):
        volts = _number(measurements, place)
        if volts:
            acquisition["energy_eV"] = volts
            break
    # Calibrated by the instrument, in rad; `calibrated_pixelsize` is the field of view over 25000, not of the detector.
    pixel = _number(measurements, "calibrated_diffraction_angle")
    if pixel is not None:
        findings.append(f"The detector pixel of {pixel * 1e3:.4g} mrad is the header's calibrated diffraction angle.")
    frames = filling.raw_frames(str(raw), (_EDGE, _EDGE), _DTYPE, stride=_STRIDE)
    valid, about_pixels = _valid_pixels(raw, n_frames)
    return VendorFile(
        path=str(request.path),
        reader="EMPAD",
        source=filling.without_missing(frames),
        scan_step=step,
        pixel_size=None if pixel is None else (pixel * 1e3, pixel * 1e3),
        acquisition=acquisition,
        metadata=plain(_tree(root)),
        findings=(
            *cut_frame(rest, _STRIDE),
            *filling.findings,
            *findings,
            "The two spare rows of each frame are left out.",
            *about_pixels,
        ),
        data_path=str(raw),
        valid_pixels=valid,
        valid_patterns=filling.valid_patterns,
        linked=(str(header),),
    )


def _root(path: Path) -> ET.Element | None:
    try:
        return ET.parse(path).getroot()
    except (ET.ParseError, OSError, ValueError, LookupError):
        return None


def _raw_name(header: Path) -> str | None:
    """Name of the raw file, without its folder, which may be one of the microscope's own machine."""
    root = _root(header)
    named = None if root is None else root.find("raw_file")
    if named is None:
        return None
    return named.get("filename", "").replace("\\", "/").rsplit("/", 1)[-1] or None


def _declared_shape(root: ET.Element, raw_name: str, n_frames: int) -> tuple[tuple[int, int] | None, str]:
    """The scan shape that fits the number of frames, of all that the header says; else the first that it says.

    A header holds the settings of "search" and of "acquire" scans and not which of them took the data, which the name
    of the raw file tells.
    """
    found: list[tuple[tuple[int, int] | None, str]] = []

    def add(ny: str | None, nx: str | None, by: str) -> None:
        if ny and nx and ny.strip().isdigit() and nx.strip().isdigit() and int(ny) > 0 and int(nx) > 0:
            found.append(((int(ny), int(nx)), by))

    add("1", root.findtext("scan_parameters/series_count"), "the header (a series)")
    add(root.findtext("pix_y"), root.findtext("pix_x"), "the header")
    name = re.search(r"_x(\d{1,6})_y(\d{1,6})", raw_name)
    if name is not None:
        add(name[2], name[1], "the name of the raw file")
    for mode in root.iter("scan_parameters"):
        ny, nx = (mode.findtext(f"scan_resolution_{axis}") for axis in "yx")
        add(ny, nx, f'the header\'s "{mode.get("mode", "")}" scan')
    fitting = [(shape, by) for shape, by in found if shape is not None and math.prod(shape) == n_frames]
    return (fitting or found or [(None, "")])[0]


def _scan_step(root: ET.Element, shape: tuple[int, int]) -> tuple[tuple[float, float] | None, list[str]]:
    """The scan step in angstrom, where the header leaves no doubt about it.

    The step is field of view / scale factor * scan size / larger number of positions (rosettasciio, pull
    request 495). The header holds the scan size of both "search" and "acquire" without saying which took the
    data, so it counts only where those that have the scan's resolution agree. Headers before version 1.2 have
    no scale factor, and whether their field of view includes the scan size is not documented.
    """
    measurements = root.find("iom_measurements")
    width = _number(measurements, "full_scan_field_of_view/x")
    scale = _number(measurements, "full_scan_field_of_view/scale_factor")
    old = _number(measurements, "optics.get_full_scan_field_of_view")
    sizes: dict[float, list[str]] = {}
    for mode in root.iter("scan_parameters"):
        resolution = [mode.findtext(f"scan_resolution_{axis}") for axis in "yx"]
        size = _number(mode, "scan_size")
        if size is not None and resolution == [str(n) for n in shape]:
            sizes.setdefault(size, []).append(f'"{mode.get("mode", "")}"')
    if width is not None and scale is not None:
        steps = {size: width / scale * size / max(shape) * 1e10 for size in sizes}
        if len(steps) == 1:
            (step,) = steps.values()
            return (step, step), ["The scan step comes from the field of view and the scan size in the header."]
        if steps:
            choices = " or ".join(f"{step:.5g} angstrom ({', '.join(sizes[size])})" for size, step in steps.items())
            return None, [f"The header gives more than one scan size for this scan shape: give scan_step, {choices}."]
    if sizes.keys() == {1.0} and old is not None:
        step = old / max(shape) * 1e10
        return (step, step), ["The scan step comes from the field of view in the header."]
    if width is None and old is None:
        return None, []
    what = f"a scan size of {next(iter(sizes))}" if len(sizes) == 1 else "more than one scan size" if sizes else None
    return None, [
        f"The header gives a field of view and {what or 'no scan size'} for this scan shape, so the scan step is not "
        "certain: give scan_step."
    ]


def _valid_pixels(raw: Path, n_frames: int) -> tuple[np.ndarray | None, list[str]]:
    """Pixels that are NaN in the first, the middle or the last frame, which no statistic can use."""
    bad = np.zeros((_EDGE, _EDGE), bool)
    with open(raw, "rb") as file:
        for index in {0, n_frames // 2, n_frames - 1}:
            file.seek(index * _STRIDE)
            pixels = np.frombuffer(file.read(_EDGE * _EDGE * _DTYPE.itemsize), _DTYPE)
            bad |= ~np.isfinite(pixels.reshape(_EDGE, _EDGE))
    n = np.count_nonzero(bad)
    if n == 0:
        return None, ["The first, middle and last frame hold no NaN; a conversion looks at every frame."]
    if n == bad.size:
        return None, ["A frame is NaN as a whole; statistics over it will be NaN."]
    return ~bad, [f"{n} pixel(s) are NaN in the first, middle or last frame and are marked as not valid."]


def _number(tree: ET.Element | None, place: str) -> float | None:
    """A positive number in a header; the first of a list."""
    text = None if tree is None else tree.findtext(place)
    if text is None:
        return None
    try:
        value = ast.literal_eval(text.strip())
        number = float(value[0] if isinstance(value, list | tuple) else value)
    except (TypeError, ValueError, SyntaxError, IndexError, MemoryError, RecursionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _tree(element: ET.Element) -> Any:
    """An XML element as nested mappings: attributes and children by name, those of one name as a list."""
    if len(element) == 0 and not element.attrib:
        return element.text
    found: dict[str, Any] = dict(element.attrib)
    for child in element:
        value = _tree(child)
        if child.tag not in found:
            found[child.tag] = value
        elif isinstance(found[child.tag], list):
            found[child.tag].append(value)
        else:
            found[child.tag] = [found[child.tag], value]
    if element.text and element.text.strip():
        found["text"] = element.text.strip()
    return found
