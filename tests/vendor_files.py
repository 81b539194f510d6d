"""Writers of vendor files, byte by byte, for tests: what a microscope would have written for known counts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MIB_KINDS = {1: "U08", 2: "U16", 4: "U32"}


def write_mib(
    path: Path,
    counts: np.ndarray,
    *,
    hdr: dict[str, object] | None = None,
    head: int = 384,
    exposure_ns: int | None = 1_000_000,
    bits: int = 12,
    pauses_ns: Sequence[int] | None = None,
    kind: str | None = None,
    first_number: int = 1,
    numbers: Sequence[int] | None = None,
) -> Path:
    """A Merlin file of counts (..., ky, kx), bottom row first, big-endian, and its .hdr where given."""
    frames = counts.reshape(-1, *counts.shape[-2:])
    nky, nkx = frames.shape[1:]
    kind = kind or MIB_KINDS[counts.dtype.itemsize]
    times = np.datetime64("2024-07-02T11:46:44.035393175", "ns") + np.concatenate(
        [[0], np.cumsum(pauses_ns if pauses_ns is not None else [1_850_000] * (len(frames) - 1))]
    ).astype("timedelta64[ns]")
    chips, layout = (4, "2x2") if head == 768 else (1, "1x1")
    with open(path, "wb") as file:
        for index, (frame, time) in enumerate(zip(frames, times, strict=True)):
            number = numbers[index] if numbers is not None else first_number + index
            fields = [
                "MQ1", f"{number:06d}", f"{head:05d}", f"{chips:02d}", f"{nkx:04d}", f"{nky:04d}", kind,
                f"   {layout}", "01", str(time.astype("datetime64[us]")).replace("T", " "), "0.001000",
                "0", "0", "0", "1.200000E+1", "3RX", "023",
            ]  # fmt: skip
            if exposure_ns is not None:
                fields += ["MQ1A", f"{time}Z", f"{exposure_ns}ns", str(bits)]
            file.write((",".join(fields) + ",").encode().ljust(head, b"\x00"))
            file.write(frame[::-1].astype(counts.dtype.newbyteorder(">")).tobytes())
    if hdr is not None:
        lines = ["HDR,\t", *(f"{key}:\t{value}" for key, value in hdr.items()), "End\t   "]
        suffix = ".HDR" if path.suffix.isupper() else ".hdr"
        path.with_suffix(suffix).write_text("\n".join(lines))
    return path


def merlin_hdr(frames: int, per_trigger: int, ny: int | None = None, nx: int | None = None) -> dict[str, object]:
    """The lines of a Merlin .hdr file that matter."""
    hdr: dict[str, object] = {
        "Counter Depth (number)": 12,
        "Frames in Acquisition (Number)": frames,
        "Frames per Trigger (Number)": per_trigger,
    }
    return hdr if nx is None else hdr | {"ScanX": nx, "ScanY": ny}


def write_blo(
    path: Path, counts: np.ndarray, *, energy: int = 200_000, trailing: int = 0, whole: int | None = None
) -> Path:
    """A blockfile of uint8 counts (ny, nx, n, n), of which the first `whole` frames are written."""
    ny, nx, edge, _ = counts.shape
    offset1 = 0x1000
    offset2 = offset1 + ny * nx
    header = struct.pack(
        "<6sHIIIHHHHHddIHId",
        b"IMGBLO", 0x0102, offset1, offset2, 131141, edge, 0, nx, ny, 0, 0.4, 0.3, energy, 6226, 0, 42_000.5,
    )  # fmt: skip
    body = header + struct.pack("<22d", *[0.0] * 22)
    body = body.ljust(offset2, b"\x00")
    for number, frame in list(enumerate(counts.reshape(-1, edge, edge)))[:whole]:
        body += b"\xaa\x55" + struct.pack("<I", number) + frame.tobytes()
    path.write_bytes(body + b"\x00" * trailing)
    return path


EMPAD_NEW = (
    '<root name="scan"><timestamp isoformat="2026-03-25T16:47:52.586728"/><raw_file filename="{raw}"/>'
    '<exposure_time>1</exposure_time><scan_parameters mode="search"><scan_size>{search}</scan_size>'
    "<scan_resolution_y>{ny}</scan_resolution_y><scan_resolution_x>{nx}</scan_resolution_x></scan_parameters>"
    '<scan_parameters mode="acquire"><scan_size>{acquire}</scan_size>'
    "<scan_resolution_y>{ny}</scan_resolution_y>"
    "<scan_resolution_x>{nx}</scan_resolution_x></scan_parameters><iom_measurements><full_scan_field_of_view>"
    "<scale_factor>0.72</scale_factor><x>1.44e-06</x><y>1.44e-06</y></full_scan_field_of_view>"
    "<high_voltage>300000.0</high_voltage></iom_measurements></root>"
)


def write_empad(path: Path, counts: np.ndarray, *, search: float = 0.5, acquire: float = 0.5, cut: int = 0) -> Path:
    """An EMPAD header and the raw file it names: frames of 128 x 128 and two rows that are not pixels."""
    ny, nx = counts.shape[:2]
    raw = f"scan_x{nx}_y{ny}.raw"
    path.write_text(EMPAD_NEW.format(raw=raw, ny=ny, nx=nx, search=search, acquire=acquire))
    frames = np.full((ny * nx, 130, 128), -1e9, "<f4")
    frames[:, :128] = counts.reshape(-1, 128, 128)
    content = frames.tobytes()
    (path.parent / raw).write_bytes(content[: len(content) - cut])
    return path


def write_raw(path: Path, counts: np.ndarray, *, offset: int = 0, gap: int = 0, last_gap: bool = True) -> Path:
    """Raw binary frames in the byte order of `counts`."""
    frames = [frame.tobytes() for frame in counts.reshape(-1, *counts.shape[-2:])]
    between = b"\xfe" * gap
    path.write_bytes(b"\xfd" * offset + between.join(frames) + (between if last_gap else b""))
    return path


def signal_dict(
    counts: np.ndarray, axes: Sequence[dict[str, object]], metadata: dict[str, object]
) -> dict[str, object]:
    """What rosettasciio's writers take for a signal."""
    return {
        "data": counts,
        "axes": [
            {
                "_type": "UniformDataAxis",
                "name": f"axis{i}",
                "scale": 1.0,
                "offset": 0.0,
                "units": "<undefined>",
                "size": size,
                "navigate": i < counts.ndim - 2,
                "is_binned": False,
            }
            | dict(axis)
            for i, (size, axis) in enumerate(zip(counts.shape, axes, strict=True))
        ],
        "metadata": {"General": {"title": "scan"}, "Signal": {"signal_type": ""}} | dict(metadata),
        "original_metadata": {},
        "learning_results": {},
        "tmp_parameters": {},
        "attributes": {"_lazy": False, "ragged": False},
        "package_info": {"package": "hyperspy", "package_version": "2.5.0"},
        "models": {},
    }
