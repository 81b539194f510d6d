"""CEOS Panta Rhei: .prz, NumPy arrays in a zip file."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from ...errors import CountsError, SourceError
from ...reading.blocks import Source
from ..array_scan import detector_of, fill_array
from ..axis_order import axis_order
from ..calibration_facts import acquisition_facts, facts_of_axes
from ..stacks import DetectorFirst
from ..vendor import Request, VendorFile, check_dtype, file_size, pick_frame, plain, storage_dtype
from .raw import npy_header

_SCAN = {"ScanY", "ScanX"}
_DETECTOR = {"CameraY", "CameraX"}
# A zip member's own header, before its name.
_LOCAL_HEADER = 30


# What zipfile and NumPy raise where a file ends early or is none; a pickle is a ValueError.
_OF_DAMAGED_ARCHIVES = (
    *(zipfile.BadZipFile, zlib.error, struct.error, RuntimeError),
    *(KeyError, ValueError, TypeError, EOFError, OSError, SyntaxError, MemoryError, OverflowError),
)


def open_prz(request: Request) -> VendorFile:
    """Open a Panta Rhei file whose array is stored as it is."""
    request.refuse_layout("a Panta Rhei file")
    size = file_size(request.path)
    try:
        with zipfile.ZipFile(request.path) as archive:
            member = archive.getinfo("data.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise SourceError(
                    f"{request.name} is compressed as one stream, so that no part of it can be read by itself; unpack "
                    "data.npy from it (it is a zip file), and open that."
                )
            with archive.open(member) as file:
                shape, fortran, dtype = npy_header(request.name, file)
                header_bytes = file.tell()
            metadata = _metadata(archive)
        with open(request.path, "rb") as file:
            file.seek(member.header_offset)
            name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(_LOCAL_HEADER), 26)
    except SourceError:
        raise
    except _OF_DAMAGED_ARCHIVES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"{request.name} is not a Panta Rhei file that can be read ({reason}); save it again."
        ) from None
    dtype = check_dtype(dtype, request.name)
    offset = member.header_offset + _LOCAL_HEADER + name_bytes + extra_bytes + header_bytes
    if fortran or len(shape) not in (3, 4, 5):
        raise CountsError(f"{request.name} holds an array of shape {shape}; expected (y, x, ky, kx), C order.")
    if 0 not in shape and offset + math.prod(shape) * dtype.itemsize > size:
        raise SourceError(f"{request.name} is shorter than its array {shape} of {dtype}; copy it again.")
    findings: list[str] = []
    if not metadata:
        findings.append("Its metadata was pickled by an old Panta Rhei and is not read: a pickle can run any program.")
    leading: tuple[int, ...] = ()
    if len(shape) == 5:
        leading = (pick_frame(request, shape[0]),)
        findings.append(f"Scan {leading[0]} of a stack of {shape[0]}.")
    else:
        request.refuse_frame("a Panta Rhei file")
    axes = _axes(metadata, len(shape))[-4:]
    contents = [axis.get("name") for axis in axes]
    lies = axis_order(request, axes, frames=len(shape) == 3)
    findings += lies.findings
    mixed = len(shape) > 3 and (_SCAN & set(contents[2:]) or _DETECTOR & set(contents[:2]))
    if mixed and not lies.detector_first and request.detector_first is None:
        raise CountsError(f"{request.name} holds the axes {contents}; expected (ScanY, ScanX, CameraY, CameraX).")
    filling = fill_array(request, shape, leading, lies.order)
    offset += sum(leading) * math.prod(shape[1:]) * dtype.itemsize
    stored = storage_dtype(dtype)
    source: Source
    if lies.detector_first:
        source = DetectorFirst(str(request.path), (*filling.shape, *detector_of(shape[:-2])), stored.str, offset)
    else:
        source = filling.raw_frames(str(request.path), detector_of(shape), stored, offset=offset)
    acquisition = _acquisition(metadata)
    facts = facts_of_axes(lies.axes, acquisition.get("energy_eV"))
    return VendorFile(
        path=str(request.path),
        reader="Panta Rhei",
        source=filling.without_missing(source),
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        acquisition=acquisition,
        metadata=plain(metadata),
        findings=(*findings, *filling.findings, *facts.findings),
        valid_patterns=filling.valid_patterns,
        doubts=lies.doubts,
        order_is_known=lies.is_known,
    )


def _metadata(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The metadata that Panta Rhei 24.03 and later writes as JSON; {} of earlier ones, which pickle it."""
    if "meta_data_json.npy" not in archive.namelist():
        return {}
    with archive.open("meta_data_json.npy") as file:
        found = json.loads(str(np.lib.format.read_array(file, allow_pickle=False)[()]))
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, dict) else {}


def _axes(metadata: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Content, scale and unit of each axis in array order; the file lists them from the fastest one."""
    contents, calibrations = (metadata.get(key) or [] for key in ("content.types", "device.calib"))
    axes = []
    for i in range(n):
        axis: dict[str, Any] = {"name": contents[i] if i < len(contents) else None}
        calibration = calibrations[i] if i < len(calibrations) else None
        if isinstance(calibration, dict):
            factor = calibration.get("pixel_factor", 1)
            value = calibration.get("value")
            if isinstance(value, int | float) and isinstance(factor, int | float):
                axis |= {"scale": value * factor, "units": calibration.get("unit", "")}
        axes.append(axis)
    return axes[::-1]


def _acquisition(metadata: dict[str, Any]) -> dict[str, float]:
    voltage, offset, angle = (
        metadata.get(key) for key in ("electron_gun.voltage", "filter.ht_offset", "condenser.convergence_semi_angle")
    )
    facts: dict[str, float] = {}
    if isinstance(voltage, int | float):
        facts["beam_energy"] = (voltage + (offset if isinstance(offset, int | float) else 0)) / 1e3
    if isinstance(angle, int | float):
        facts["convergence_angle"] = angle * 1e3
    return acquisition_facts({"Acquisition_instrument": {"TEM": facts}})
