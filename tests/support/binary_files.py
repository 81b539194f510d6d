"""Writers of binary files for tests, byte by byte: TVIPS, MRC, TIA, DigitalMicrograph, Panta Rhei."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np


def write_tvips(
    path: Path,
    counts: np.ndarray,
    *,
    split: Sequence[int] = (),
    frame_header: int = 60,
    rotator: Sequence[int] | None = None,
    kilovolts: int = 200,
    mode: int = 2,
) -> Path:
    """A TVIPS recording of counts (frame, ky, kx), which goes on in another file at each frame of `split`."""
    n = len(counts)
    header = tvips_header(counts.shape[1:], counts.dtype.itemsize * 8, frame_header, kilovolts)
    edges = [0, *split, n]
    for part, (first, last) in enumerate(pairwise(edges)):
        data = [header] if part == 0 else []
        for i in range(first, last):
            one = tvips_frame_header(i, rotator[i] if rotator is not None else 0, mode).ljust(frame_header, b"\x00")
            data += [one, counts[i].astype(counts.dtype.newbyteorder("<")).tobytes()]
        path.with_name(f"{path.stem[:-3]}{part:03d}.tvips").write_bytes(b"".join(data))
    return path


def tvips_header(detector: tuple[int, int], bits: int, frame_header: int = 60, kilovolts: int = 200) -> bytes:
    """The header of a TVIPS recording."""
    nky, nkx = detector
    fields = (256, 2, nkx, nky, bits, 0, 0, 1, 1, 21, kilovolts, 80, frame_header)
    return (struct.pack("<13I", *fields) + b"TVIPS " * 40)[:256]


def tvips_frame_header(number: int, rotator: int = 0, mode: int = 2) -> bytes:
    """What stands before a frame, as far as anything is known of it; 60 bytes with those that follow."""
    return struct.pack("<IIIIfII5fI", number, 740399696, 0, 0, 23.0, 0, mode, 0, 0, 0, 0, 0, rotator)


def write_mrc(
    path: Path, counts: np.ndarray, *, mode: int, order: str = "<", extended: int = 0, announced: int | None = None
) -> Path:
    """An MRC stack of counts (frame, ky, kx)."""
    n, nky, nkx = counts.shape
    header = mrc_header((n if announced is None else announced, nky, nkx), mode=mode, order=order, extended=extended)
    data = counts.astype(counts.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(header + b"\xee" * extended + data)
    return path


def mrc_header(shape: tuple[int, int, int], *, mode: int, order: str = "<", extended: int = 0) -> bytes:
    """The header of an MRC stack (frame, ky, kx)."""
    header = bytearray(1024)
    struct.pack_into(f"{order}4i", header, 0, *shape[::-1], mode)
    struct.pack_into(f"{order}i", header, 92, extended)
    header[208:216] = b"MAP " + (b"\x11\x11\x00\x00" if order == ">" else b"DD\x00\x00")
    return bytes(header)


def write_de_info(path: Path, **facts: object) -> Path:
    """A Direct Electron info file."""
    path.write_text("".join(f"{key:<64}= {value}\n" for key, value in facts.items()))
    return path


SER_KINDS = {"u1": 1, "u2": 2, "u4": 3, "i1": 4, "i2": 5, "i4": 6, "f4": 7, "f8": 8}


def write_ser(
    path: Path,
    counts: np.ndarray,
    *,
    valid: int | None = None,
    version: int = 0x220,
    y_first: bool = False,
    gap: int = 0,
    step: float = 2e-9,
) -> Path:
    """A TIA series of counts (ny, nx, ky, kx), bottom row first, each frame with the position of the beam after it."""
    ny, nx, nky, nkx = counts.shape
    n = ny * nx
    valid = n if valid is None else valid
    element = ser_element((nky, nkx), counts.dtype.newbyteorder("=").str[1:])
    body, data_at, tag_at = b"", [], []
    for i, frame in enumerate(counts.reshape(n, nky, nkx)[:valid]):
        data_at.append(len(body))
        body += element + frame[::-1].astype(counts.dtype.newbyteorder("<")).tobytes()
        tag_at.append(len(body))
        y, x = divmod(i, nx)
        if y_first:
            x, y = divmod(i, ny)
        body += ser_tag(y, x, step) + b"\xaa" * (gap * (i % 3))
    dims = (nx, ny) if not y_first else (ny, nx)
    path.write_bytes(ser_start(dims, data_at, tag_at, version=version, step=step) + body)
    return path


def ser_start(
    dims: tuple[int, int],
    data_at: Sequence[int],
    tag_at: Sequence[int],
    *,
    version: int = 0x220,
    step: float = 2e-9,
) -> bytes:
    """What stands before the frames of a TIA series: header, dims from the fast one on, and the table of its frames.

    `data_at` and `tag_at` are counted from the end of it.
    """
    n, valid = math.prod(dims), len(data_at)
    item = "Q" if version >= 0x220 else "I"
    axes = b""
    for size in dims:
        text, unit = b"Position", b"meters"
        axes += struct.pack("<IddI", size, 0.0, step, 0)
        axes += struct.pack("<I", len(text)) + text + struct.pack("<I", len(unit)) + unit
    table = 22 + struct.calcsize(f"<{item}") + 4 + len(axes)
    first = table + 2 * n * struct.calcsize(f"<{item}")
    header = struct.pack("<HHHIIII", 0x4949, 0x0197, version, 0x4122, 0x4142, n, valid)
    header += struct.pack(f"<{item}I", table, 2)
    places = np.zeros((2, n), f"<u{struct.calcsize(item)}")
    places[:, :valid] = first + np.array([data_at, tag_at])
    return header + axes + places.tobytes()


def ser_element(detector: tuple[int, int], kind: str) -> bytes:
    """What stands before each frame of a TIA series."""
    nky, nkx = detector
    return struct.pack("<ddIddIHII", 0, 1e-9, 0, 0, 1e-9, 0, SER_KINDS[kind], nkx, nky)


def ser_tag(y: int, x: int, step: float = 2e-9) -> bytes:
    """What stands after each frame: where the beam was."""
    return struct.pack("<HHIdd", 0x4142, 0, 1_700_000_000, x * step, y * step)


DM_KINDS = {"i2": (1, 2), "f4": (2, 6), "u1": (6, 10), "i4": (7, 3), "u2": (10, 4), "u4": (11, 5), "f8": (12, 7)}


# Stands for the array while the tags around it are made.
_ARRAY = b"<the array>"


class _DmTags:
    """A tag tree of DigitalMicrograph as bytes, in version 3 or 4."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.size = ">q" if version == 4 else ">i"

    def number(self, value: int) -> bytes:
        return struct.pack(self.size, value)

    def group(self, items: list[tuple[str, bytes, int]], top: bool = False) -> bytes:
        body = b"".join(self._named(*item) for item in items)
        size = self.number(0) if self.version == 4 and not top else b""
        return b"\x01\x00" + size + self.number(len(items)) + body

    def _named(self, name: str, content: bytes, kind: int) -> bytes:
        label = name.encode()
        length = struct.pack(">q", len(content)) if self.version == 4 and kind == 21 else b""
        return struct.pack(">bh", kind, len(label)) + label + length + content

    def data(self, name: str, info: list[int], value: bytes) -> tuple[str, bytes, int]:
        content = b"%%%%" + self.number(len(info)) + b"".join(map(self.number, info)) + value
        return name, content, 21

    def integer(self, name: str, value: int) -> tuple[str, bytes, int]:
        return self.data(name, [5], struct.pack("<I", value))

    def real(self, name: str, value: float) -> tuple[str, bytes, int]:
        return self.data(name, [6], struct.pack("<f", value))

    def text(self, name: str, value: str) -> tuple[str, bytes, int]:
        return self.data(name, [20, 4, len(value)], value.encode("utf-16-le"))

    def branch(self, name: str, items: list[tuple[str, bytes, int]]) -> tuple[str, bytes, int]:
        return name, self.group(items), 20


def write_dm(
    path: Path,
    array: np.ndarray,
    scales: Sequence[float],
    units: Sequence[str],
    *,
    version: int = 4,
    volts: float | None = 200e3,
) -> Path:
    """A .dm3 or .dm4 file with one array, its scales and units in the array's order (slowest axis first)."""
    kind = array.dtype.newbyteorder("=").str[1:]
    before, after = dm_parts(array.shape, kind, scales, units, version=version, volts=volts)
    path.write_bytes(before + array.astype(array.dtype.newbyteorder("<")).tobytes() + after)
    return path


def dm_parts(
    shape: Sequence[int],
    kind: str,
    scales: Sequence[float],
    units: Sequence[str],
    *,
    version: int = 4,
    volts: float | None = 200e3,
) -> tuple[bytes, bytes]:
    """What stands before and after the array in such a file.

    The lengths of the tags that hold the array are those without it; no reader looks at them.
    """
    tags = _DmTags(version)
    data_type, element = DM_KINDS[kind]
    axes = [
        tags.branch("", [tags.real("Origin", 0.0), tags.real("Scale", scale), tags.text("Units", unit)])
        for scale, unit in zip(reversed(scales), reversed(units), strict=True)
    ]
    brightness = [tags.real("Origin", 0.0), tags.real("Scale", 1.0), tags.text("Units", "")]
    image_data = tags.branch(
        "ImageData",
        [
            tags.branch(
                "Calibrations", [tags.branch("Brightness", brightness), tags.branch("Dimension", axes)]
            ),
            tags.data("Data", [20, element, math.prod(shape)], _ARRAY),
            tags.integer("DataType", data_type),
            tags.branch("Dimensions", [tags.integer("", n) for n in reversed(shape)]),
            tags.integer("PixelDepth", int(kind[1:])),
        ],
    )
    microscope = [tags.real("Voltage", volts)] if volts is not None else [tags.real("Spot size", 3.0)]
    image = tags.branch(
        "", [image_data, tags.branch("ImageTags", [tags.branch("Microscope Info", microscope)]), tags.text("Name", "s")]
    )
    root = tags.group([tags.branch("ImageList", [image])], top=True)
    header = struct.pack(">i", version) + tags.number(len(root)) + struct.pack(">i", 1)
    before, after = (header + root + b"\x00" * 8).split(_ARRAY)
    return before, after


def write_prz(
    path: Path, array: np.ndarray, contents: Sequence[str], *, compressed: bool = False, pickled: bool = False
) -> Path:
    """A Panta Rhei file; `contents` are the names of the axes in the array's order."""
    calibrations = {
        "ScanY": {"unit": "m", "value": 3e-11, "offset": 0, "pixel_factor": 1},
        "ScanX": {"unit": "m", "value": 2e-11, "offset": 0, "pixel_factor": 1},
        "CameraY": {"unit": "rad", "value": 1e-3, "offset": 0, "pixel_factor": 2},
        "CameraX": {"unit": "rad", "value": 1e-3, "offset": 0, "pixel_factor": 1},
    }
    metadata = {
        "type": "4D",
        "content.types": list(reversed(contents)),
        "device.calib": [calibrations[name] for name in reversed(contents)],
        "electron_gun.voltage": 200e3,
        "condenser.convergence_semi_angle": 0.0235,
    }
    arrays = {"data": array}
    if pickled:
        arrays["meta_data"] = np.array([metadata], dtype=object)
    else:
        arrays["meta_data_json"] = np.array(json.dumps([metadata]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, value)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    return path
