"""Thermo Fisher Velox: .emd, an HDF5 file whose stacks of images have the frames last."""

from __future__ import annotations

import json
from typing import Any

from ...errors import CountsError
from ..calibration_facts import angle
from ..hdf5 import dataset_source
from ..vendor import Request, VendorFile, pick_frame, plain


def is_velox(file: Any) -> bool:
    """Whether an HDF5 file is one of Velox's, which says so in a JSON text."""
    return str(_json(file.get("Version")).get("format", "")).lower() == "velox"


def open_velox(request: Request, file: Any) -> VendorFile:
    """Open a stack of patterns in a Velox file."""
    import h5py

    images = file.get("Data/Image", {})
    stacks = [group["Data"] for group in images.values() if "Data" in group and group["Data"].ndim == 3]
    stacks = [data for data in stacks if data.shape[2] > 1 and data.dtype.names is None]
    if not stacks:
        raise CountsError(
            f"{request.name} holds single images and spectra, but no stack of patterns: it is not a 4D-STEM scan."
        )
    index = pick_frame(request, len(stacks), "stacks of images")
    data = stacks[index]
    metadata = _json(data.parent.get("Metadata"))
    findings = [f"Stack {index} of {len(stacks)}: {data.name}."] if len(stacks) > 1 else []
    size = _look_up(metadata, "Scan", "ScanSize")
    declared = None
    if isinstance(size, dict):
        width, height = (_number(size.get(key)) for key in ("width", "height"))
        if width and height and int(width) * int(height) == data.shape[2]:
            declared = (int(height), int(width))
    scan = dataset_source(request, data, order=(2, 0, 1), declared=declared, declared_by="Velox's scan size")
    energy = _number(_look_up(metadata, "Optics", "AccelerationVoltage"))
    acquisition = {"energy_eV": energy} if energy else {}
    result = metadata.get("BinaryResult")
    pixel = []
    if isinstance(result, dict):
        sizes = result.get("PixelSize")
        for key, unit in (("height", "PixelUnitY"), ("width", "PixelUnitX")):
            scale = sizes.get(key) if isinstance(sizes, dict) else None
            pixel.append(angle(scale, result.get(unit, result.get("PixelUnitX")), energy))
    known = len(pixel) == 2 and None not in pixel
    return VendorFile(
        path=str(request.path),
        reader=f"Velox (h5py {h5py.__version__})",
        source=scan.source,
        pixel_size=(pixel[0], pixel[1]) if known else None,  # type: ignore[arg-type]
        acquisition=acquisition,
        metadata=plain(metadata),
        findings=(*findings, *scan.findings),
        valid_patterns=scan.valid_patterns,
        linked=scan.linked,
    )


def _json(dataset: Any) -> dict[str, Any]:
    """The JSON object in a dataset: one text, or a column of bytes for each frame, of which the first is read."""
    if dataset is None or not hasattr(dataset, "shape"):
        return {}
    if dataset.ndim == 2:
        text = dataset[:, 0].tobytes()
    else:
        value = dataset[0] if dataset.ndim == 1 and len(dataset) else dataset[()]
        text = value if isinstance(value, bytes) else str(value).encode()
    try:
        found = json.loads(text.rstrip(b"\x00").decode("utf-8", "replace"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _look_up(tree: dict[str, Any], *keys: str) -> Any:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float | None:
    """A positive number, which Velox writes as a text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None
