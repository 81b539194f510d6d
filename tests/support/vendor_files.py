"""Writers of vendor files, byte by byte, for tests: what a microscope would have written for known counts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MIB_KINDS = {1: "U08", 2: "U16", 4: "U32"}
# Bits that a pixel takes in a 64-bit word of Merlin's raw mode, by the bits of its counter.
RAW_BITS = {1: 1, 6: 8, 12: 16}


def write_mib(
    path: Path,
    counts: np.ndarray,
    *,
    hdr: dict[str, object] | None = None,
    head: int = 384,
    chips: int | None = None,
    layout: str | None = None,
    exposure_ns: int | None = 1_000_000,
    exposures_ns: Sequence[int] | None = None,
    bits: int = 12,
    pauses_ns: Sequence[int] | None = None,
    kind: str | None = None,
    first_number: int = 1,
    numbers: Sequence[int] | None = None,
) -> Path:
    """A Merlin file of counts (..., ky, kx), bottom row first, big-endian, and its .hdr where given."""
    frames = counts.reshape(-1, *counts.shape[-2:])
    kind = kind or MIB_KINDS[counts.dtype.itemsize]
    chips = chips or (4 if head == 768 else 1)
    layout = layout or ("2x2" if head == 768 else "1x1")
    size = frames.shape[1:]
    if kind == "R64":
        # The rows of all chips side by side, and twice as many columns for two frames of 12 bits.
        size = (size[0] // 2, size[1] * 2) if layout.startswith("2x2") else size
        size = (size[0], size[1] * 2) if bits == 24 else size
    times = np.datetime64("2024-07-02T11:46:44.035393175", "ns") + np.concatenate(
        [[0], np.cumsum(pauses_ns if pauses_ns is not None else [1_850_000] * (len(frames) - 1))]
    ).astype("timedelta64[ns]")
    with open(path, "wb") as file:
        for index, (frame, time) in enumerate(zip(frames, times, strict=True)):
            number = numbers[index] if numbers is not None else first_number + index
            exposure = exposures_ns[index] if exposures_ns is not None else exposure_ns
            file.write(mib_header(number, size, kind, time, exposure, head=head, chips=chips, layout=layout, bits=bits))
            picture = frame[::-1]
            if kind == "R64":
                file.write(raw_frame(picture, bits, square=layout.startswith("2x2")))
            else:
                file.write(picture.astype(counts.dtype.newbyteorder(">")).tobytes())
    if hdr is not None:
        lines = ["HDR,\t", *(f"{key}:\t{value}" for key, value in hdr.items()), "End\t   "]
        suffix = ".HDR" if path.suffix.isupper() else ".hdr"
        path.with_suffix(suffix).write_text("\n".join(lines))
    return path


def mib_header(
    number: int,
    size: tuple[int, int],
    kind: str,
    time: np.datetime64,
    exposure_ns: int | None = 1_000_000,
    *,
    head: int = 384,
    chips: int = 1,
    layout: str = "1x1",
    bits: int = 12,
) -> bytes:
    """What stands before a frame of `size` (rows, columns) in a Merlin file."""
    fields = [
        "MQ1", f"{number:06d}", f"{head:05d}", f"{chips:02d}", f"{size[1]:04d}", f"{size[0]:04d}", kind,
        layout.rjust(6), "01", str(time.astype("datetime64[us]")).replace("T", " "), "0.001000",
        "0", "0", "0", "1.200000E+1", "3RX", "023",
    ]  # fmt: skip
    if exposure_ns is not None:
        fields += ["MQ1A", f"{time}Z", f"{exposure_ns}ns", str(bits)]
    return (",".join(fields) + ",").encode().ljust(head, b"\x00")


def raw_frame(picture: np.ndarray, bits: int, *, square: bool) -> bytes:
    """A frame of Merlin's raw mode, pixel by pixel, from a picture whose first row is the lowest one.

    Each pixel goes to its chip, and there to a row and column: the upper half of the picture is that of the fourth
    chip and then the third, the lower half that of the second and the first, which look the other way round. Pixel p
    of a row of all chips fills the bits from p * width on, counted from the low end, of the row's 64-bit words, which
    are written high byte first.
    """
    if bits == 24:
        high, low = picture.astype(np.uint32) // 4096, picture.astype(np.uint32) % 4096
        return raw_frame(high, 12, square=square) + raw_frame(low, 12, square=square)
    rows, columns = picture.shape
    if square:
        rows, columns = rows // 2, columns // 2
    width = RAW_BITS[bits]
    words = [[0] * (columns * (4 if square else 1) * width // 64) for _ in range(rows)]
    for y, x in np.argwhere(picture).tolist():
        row, column, chip = y, x, 0
        if square:
            chip = {(0, 0): 3, (0, 1): 2, (1, 0): 1, (1, 1): 0}[y // rows, x // columns]
            row, column = y % rows, x % columns
            if chip < 2:
                row, column = rows - 1 - row, columns - 1 - column
        word, place = divmod((chip * columns + column) * width, 64)
        words[row][word] |= int(picture[y, x]) << place
    return b"".join(struct.pack(">Q", word) for line in words for word in line)


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
    edge = counts.shape[2]
    body = blo_header(counts.shape[:2], edge, energy)
    for number, frame in list(enumerate(counts.reshape(-1, edge, edge)))[:whole]:
        body += b"\xaa\x55" + struct.pack("<I", number) + frame.tobytes()
    path.write_bytes(body + b"\x00" * trailing)
    return path


def blo_header(scan: tuple[int, int], edge: int, energy: int = 200_000) -> bytes:
    """What stands before the frames of a blockfile, an empty image of the scan included."""
    ny, nx = scan
    offset1 = 0x1000
    offset2 = offset1 + ny * nx
    header = struct.pack(
        "<6sHIIIHHHHHddIHId",
        b"IMGBLO", 0x0102, offset1, offset2, 131141, edge, 0, nx, ny, 0, 0.4, 0.3, energy, 6226, 0, 42_000.5,
    )  # fmt: skip
    return (header + struct.pack("<22d", *[0.0] * 22)).ljust(offset2, b"\x00")


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
