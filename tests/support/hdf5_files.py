"""Writers of HDF5 files for tests: what HyperSpy, EMD programs, Dectris detectors, Velox and TopSpin write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from vendor_files import signal_dict

LENGTHS = [{"units": "nm", "scale": 0.03}, {"units": "Å", "scale": 0.32}]
ANGLES = [{"units": "mrad", "scale": 1.2}, {"units": "rad", "scale": 0.002}]
RECIPROCALS = [{"units": "1/nm", "scale": 0.1}, {"units": "1/Å", "scale": 0.02}]
TEM = {"Acquisition_instrument": {"TEM": {"beam_energy": 200.0, "convergence_angle": 23.5, "beam_current": 0.05}}}


def write_hspy(path: Path, counts: np.ndarray, axes=None, metadata=None, **options) -> Path:
    """A HyperSpy file, by rosettasciio's writer."""
    from rsciio.hspy import file_writer

    file_writer(str(path), signal_dict(counts, axes or [{}] * counts.ndim, metadata or {}), **options)
    return path


def write_emd(
    path: Path,
    counts: np.ndarray,
    *,
    first: int,
    name: str = "data",
    scans: int = 1,
    units: Sequence[str] = ("nm", "nm", "A^-1", "A^-1"),
    top: str = "",
    chunks: tuple[int, ...] | None = None,
) -> Path:
    """An EMD file of counts as they stand, with dims numbered from `first`."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        for i in range(scans):
            group = file.create_group(f"{top}/cube{i}")
            group.attrs["emd_group_type"] = 1
            group.create_dataset(name, data=counts + i, chunks=chunks)
            for number, unit in enumerate(units):
                size = counts.shape[number]
                dim = group.create_dataset(f"dim{number + first}", data=np.arange(size) * 0.25)
                dim.attrs["units"] = unit
    return path


def write_master(
    path: Path,
    parts: Sequence[np.ndarray],
    *,
    mask: np.ndarray | None = None,
    nimages: int = 1,
    bit_depth: int | None = None,
) -> Path:
    """A Dectris master file and the files of frames that it links."""
    with h5py.File(path, "w") as file:
        data = file.create_group("entry/data")
        for i, part in enumerate(parts, 1):
            name = f"{path.stem}_data_{i:06d}.h5"
            with h5py.File(path.parent / name, "w") as linked:
                packed = {"chunks": (1, *part.shape[1:]), "compression": "gzip"} if len(part) else {}
                linked.create_dataset("entry/data/data", data=part, **packed)
            data[f"data_{i:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
        detector = file.create_group("entry/instrument/detector")
        detector["count_time"] = 9.95e-5
        if bit_depth is not None:
            detector["bit_depth_image"] = np.uint16(bit_depth)
        specific = detector.create_group("detectorSpecific")
        specific["nimages"], specific["ntrigger"] = nimages, sum(len(part) for part in parts) // nimages
        if mask is not None:
            specific["pixel_mask"] = mask
    return path


def write_velox(path: Path, counts: np.ndarray, *, scan_size: tuple[int, int] | None = None) -> Path:
    """A Velox file: a column of JSON bytes for each frame, and the frames (ky, kx, frame), one to a chunk."""
    frames = counts.reshape(-1, *counts.shape[-2:])
    metadata = {
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1700000000"}},
        "Detectors": {},
        "BinaryResult": {"PixelSize": {"width": "1e8", "height": "1e8"}, "PixelUnitX": "1/m", "PixelUnitY": "1/m"},
        "Optics": {"AccelerationVoltage": "200000"},
        "Scan": {"FrameTime": "1"},
    }
    if scan_size is not None:
        metadata["Scan"]["ScanSize"] = {"width": str(scan_size[1]), "height": str(scan_size[0])}
    text = json.dumps(metadata).encode().ljust(1000, b"\x00")
    column = np.repeat(np.frombuffer(text, np.uint8)[:, None], len(frames), axis=1)
    with h5py.File(path, "w") as file:
        file["Version"] = np.array([json.dumps({"format": "Velox", "version": "11"}).encode()])
        stack = file.create_group("Data/Image/0a1b")
        stack.create_dataset("Data", data=frames.transpose(1, 2, 0), chunks=(*frames.shape[1:], 1))
        stack["Metadata"] = column
        image = file.create_group("Data/Image/2c3d")
        image["Data"], image["Metadata"] = np.zeros((5, 6, 1), np.uint16), column[:, :1]
    return path


APP5_SESSION = "18d9446f-22bf-4fb1-8d13-338174e75d20"
APP5_SCAN = "3526f008-a687-41fb-a21e-c21362241492"


def write_app5(path: Path, counts: np.ndarray, *, step: float = 2e-9, nested: bool = True) -> Path:
    """A TopSpin file: a group for each pattern, with its axes and the beam's position (m) in XML."""
    axis = "<A><Offset>-1</Offset><Scale>{scale}</Scale><Unit><Name>angle</Name><Symbol>{unit}</Symbol></Unit></A>"
    with h5py.File(path, "w") as file:
        top = file.create_group(APP5_SESSION) if nested else file
        top["Metadata"] = np.bytes_(b"<Session><Id>1</Id><Title>a session</Title></Session>")
        scan = top.create_group(APP5_SCAN)
        nx = counts.shape[1]
        for i, pattern in enumerate(counts.reshape(-1, *counts.shape[2:])):
            node = scan.create_group(str(i))
            axes = axis.format(scale=0.5, unit="mrad") + axis.format(scale=0.25, unit="mrad")
            place = f"<X>{(i % nx) * step}</X><Y>{(i // nx) * step}</Y>"
            node["Metadata"] = np.bytes_(
                f"<M><Calibration>{axes}</Calibration><Hardware><Beam><Id/><Position>{place}</Position></Beam></Hardware>"
                f"<Filler>{'x' * (i % 7)}</Filler></M>".encode()
            )
            node["Data"] = pattern
    return path
