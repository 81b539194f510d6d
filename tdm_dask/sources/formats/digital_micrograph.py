"""Gatan DigitalMicrograph: .dm3 and .dm4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import CountsError, SourceError, TdmError
from ...reading.blocks import Source
from ..array_scan import detector_of, fill_array
from ..axis_order import axis_order
from ..calibration_facts import acquisition_facts, facts_of_axes
from ..rosettasciio import dm_images
from ..stacks import DetectorFirst
from ..vendor import Request, VendorFile, check_dtype, file_size, pick_frame, plain, rosettasciio_reader


def open_dm(request: Request) -> VendorFile:
    """Open the scan of a DigitalMicrograph file; its tags are read by rosettasciio, its counts are not."""
    request.refuse_layout("a DigitalMicrograph file")
    size = file_size(request.path)
    try:
        with open(request.path, "rb") as file:
            images = dm_images(file)
            shapes = [image.shape for image in images]
        candidates = [i for i, shape in enumerate(shapes) if len(shape) in (4, 5)]
        candidates = candidates or [i for i, shape in enumerate(shapes) if len(shape) == 3]
        if not candidates:
            raise CountsError(
                f"{request.name} holds arrays of {[len(s) for s in shapes]} dimensions; a scan has four: "
                "(y, x, ky, kx)."
            )
        return _open_image(request, images, candidates, size)
    except TdmError:
        raise
    except Exception as error:
        # rosettasciio's reader of tags raises whatever a file that ends early leads it to.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"{request.name} is not a DigitalMicrograph file that can be read ({reason}); it is damaged, copy it again."
        ) from error


def _open_image(request: Request, images: list[Any], candidates: list[int], size: int) -> VendorFile:
    findings: list[str] = []
    if len(candidates) > 1:
        number = pick_frame(request, len(candidates), "datasets")
        image = images[candidates[number]]
        findings.append(f'Dataset {number} of {len(candidates)}: "{image.title}".')
    else:
        image = images[candidates[0]]
        if len(image.shape) != 5:
            request.refuse_frame("a DigitalMicrograph file")
    data = image.imdict.ImageData.Data
    name = image.dtype
    if not isinstance(name, str) or name == "not_implemented":
        raise CountsError(f"{request.name} holds colours; counts must be integers or real numbers.")
    dtype = check_dtype(np.dtype(name).newbyteorder("<" if data["endian"] == "little" else ">"), request.name)
    shape = tuple(int(n) for n in image.shape)
    if min(shape) < 1 or data["offset"] + math.prod(shape) * dtype.itemsize > size:
        raise SourceError(
            f"{request.name} has {size} bytes, but its array {shape} of {dtype} from byte {data['offset']} needs "
            f"{data['offset'] + math.prod(shape) * dtype.itemsize}; it is truncated, copy it again."
        )
    axes = [{"scale": scale, "units": unit} for scale, unit in zip(image.scales.tolist(), image.units, strict=True)]
    leading: tuple[int, ...] = ()
    if len(shape) == 5:
        if len(candidates) > 1:
            raise CountsError(f"{request.name} holds several stacks of scans; save one of them alone.")
        leading = (pick_frame(request, shape[0]),)
        findings.append(f"Scan {leading[0]} of a stack of {shape[0]}.")
    lies = axis_order(request, axes, frames=len(shape) == 3)
    findings += lies.findings
    filling = fill_array(request, shape, leading, lies.order)
    offset = int(data["offset"]) + sum(leading) * math.prod(shape[1:]) * dtype.itemsize
    source: Source
    if lies.detector_first:
        source = DetectorFirst(str(request.path), (*filling.shape, *detector_of(shape[:-2])), dtype.str, offset)
    else:
        source = filling.raw_frames(str(request.path), detector_of(shape), dtype, offset=offset)
        if not lies.is_known:
            findings.append(
                "The axes have no units that tell the scan from the detector, which some DigitalMicrograph files "
                "exchange; look at the mean pattern, and give detector_first=True if it is an image."
            )
    acquisition = _acquisition(image.imdict.get("ImageTags", {}))
    facts = facts_of_axes(lies.axes, acquisition.get("energy_eV"), unit_scale_is_unset=True)
    tags = image.imdict.to_dict()
    tags.get("ImageData", {}).pop("Data", None)
    return VendorFile(
        path=str(request.path),
        reader=rosettasciio_reader("digitalmicrograph"),
        source=filling.without_missing(source),
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        acquisition=acquisition,
        metadata=plain(tags),
        findings=(*findings, *filling.findings, *facts.findings),
        valid_patterns=filling.valid_patterns,
        doubts=lies.doubts,
        order_is_known=lies.is_known,
    )


def _acquisition(tags: Mapping[str, Any]) -> dict[str, float]:
    """The beam energy and the convergence angle, where the tags have them."""
    microscope = tags.get("Microscope Info", {})
    voltage = microscope.get("Voltage") if isinstance(microscope, Mapping) else None
    known = {"beam_energy": voltage / 1e3} if isinstance(voltage, int | float) and voltage > 0 else {}
    return acquisition_facts({"Acquisition_instrument": {"TEM": known}})
