"""Files of 17 GB in every format that is read lazily, which cost little to make and still are read from end to end.

Headers are written byte by byte. The first lines of the scan are dense: Poisson counts (noise, for floats), so that
what is compressed is as large as in a real scan while both workers are at it. Of the rest every 500th frame is, and the
others are zeros: holes of the file, or compressed chunks that are there, and have to be decompressed.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .data import INSIDE, OUTSIDE, Counts, Pair

# Different frames, and different chunks of several ones.
POOL_FRAMES, POOL_CHUNKS = 64, 4
# Every so manieth of the frames that are not dense has counts.
SPARSE = 500


@dataclass
class LargeFile:
    """A file of counts, and what is needed to open it and to check what was read.

    Parameters
    ----------
    path : path
    nbytes : int
        Bytes of the counts, uncompressed.
    total : float
        Sum of all counts.
    options : dict
        For `tdm.convert`.
    """

    path: Path
    nbytes: int
    total: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file, and of those beside it that belong to it."""
        return sum(p.stat().st_size for p in self.path.parent.rglob("*") if p.is_file())


@dataclass
class Place:
    """Where a file is made: a folder of its own, and the sizes of the scan.

    Parameters
    ----------
    folder : path
    scan, detector : (int, int)
    dense_part : float
        The part of the scan, at its beginning, in which every frame has counts.
    """

    folder: Path
    scan: Pair
    detector: Pair
    dense_part: float = 1 / 8

    @property
    def n(self) -> int:
        return math.prod(self.scan)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return *self.scan, *self.detector

    @property
    def dense(self) -> int:
        """Frames at the beginning that all have counts."""
        return math.ceil(self.scan[0] * self.dense_part) * self.scan[1]

    def has_counts(self, frame: int) -> bool:
        return frame < self.dense or frame % SPARSE == 0

    def pool(self, n: int, dtype: np.dtype) -> np.ndarray:
        """Patterns (n, nky, nkx) with counts: of a camera that counts, or with the noise of one that does not."""
        if dtype.kind == "f":
            return np.random.default_rng(0).normal(100, 30, (n, *self.detector)).astype(dtype)
        return Counts(self.detector, INSIDE, OUTSIDE).patterns(n, seed=0).astype(dtype)

    def frames(
        self,
        path: Path,
        first: int,
        dtype: str = "<u2",
        *,
        stride: int | None = None,
        head: Callable[[int], bytes] = lambda _: b"",
        start: bytes = b"",
        end: bytes = b"",
        options: dict[str, Any] | None = None,
    ) -> LargeFile:
        """A file of frames.

        Parameters
        ----------
        first : int
            Byte of the first frame's first pixel.
        dtype : str, default "<u2"
        stride : int, optional
            Bytes from one frame to the next one.
        head : callable
            What stands directly before a frame.
        start, end : bytes
            At the file's beginning, and after its last frame.
        """
        kind = np.dtype(dtype)
        pool = self.pool(POOL_FRAMES, kind)
        sums, pieces = pool.sum((1, 2), np.float64), [frame.tobytes() for frame in pool]
        stride = stride or len(pieces[0])
        total = 0.0
        with open(path, "wb") as file:
            file.write(start)
            for i in range(self.n):
                before, counts = head(i), pieces[i % POOL_FRAMES] if self.has_counts(i) else b""
                if before or counts:
                    file.seek(first + i * stride - len(before))
                    file.write(before + counts)
                    total += sums[i % POOL_FRAMES] if counts else 0
            size = first + self.n * stride - (stride - len(pieces[0]))
            file.truncate(size)
            file.seek(size)
            file.write(end)
        return LargeFile(path, self.n * len(pieces[0]), total, options or {})


FORMATS: dict[str, Callable[[Place], LargeFile]] = {}


def large(name: str) -> Callable[[Callable[[Place], LargeFile]], Callable[[Place], LargeFile]]:
    """Enter a maker of a file under a name, for the table and the command line."""

    def enter(make: Callable[[Place], LargeFile]) -> Callable[[Place], LargeFile]:
        FORMATS[name] = make
        return make

    return enter


# Frames one after another


def _mib(place: Place, kind: str) -> LargeFile:
    from vendor_files import mib_header

    nky, nkx = place.detector
    hdr = {"ScanX": place.scan[1], "ScanY": place.scan[0]}
    lines = ["HDR,\t", *(f"{key}:\t{value}" for key, value in hdr.items()), "End\t   "]
    place.folder.joinpath("scan.hdr").write_text("\n".join(lines))

    def head(i: int) -> bytes:
        when = np.datetime64("2024-07-02T11:46:44.035393175", "ns") + np.timedelta64(i * 1_850_000, "ns")
        return mib_header(i + 1, (nky, nkx), kind, when)

    return place.frames(place.folder / "scan.mib", 384, ">u2", stride=384 + nky * nkx * 2, head=head)


@large("merlin")
def merlin(place: Place) -> LargeFile:
    """Frames of big-endian counts."""
    return _mib(place, "U16")


@large("merlin-raw")
def merlin_raw(place: Place) -> LargeFile:
    """Raw frames of one chip with 12-bit counters: any words are some frame."""
    return _mib(place, "R64")


@large("empad")
def empad(place: Place) -> LargeFile:
    """Frames of 128 x 128 floats and two rows more."""
    from vendor_files import EMPAD_NEW

    rows = place.detector[0] * place.detector[1] * 2 // (128 * 128 * 4)
    scan = (place.scan[0], place.scan[1] * max(rows, 1))
    small = Place(place.folder, scan, (128, 128))
    raw = place.folder / "scan.raw"
    header = EMPAD_NEW.format(raw=raw.name, ny=scan[0], nx=scan[1], search=0.5, acquire=0.5)
    place.folder.joinpath("scan.xml").write_text(header)
    made = small.frames(raw, 0, "<f4", stride=130 * 128 * 4, end=bytes(2 * 128 * 4))
    return LargeFile(place.folder / "scan.xml", made.nbytes, made.total)


@large("tvips")
def tvips(place: Place) -> LargeFile:
    """One file of frames, each after a header of 60 bytes."""
    from binary_files import tvips_frame_header, tvips_header

    frame = math.prod(place.detector) * 2
    return place.frames(
        place.folder / "scan_000.tvips",
        256 + 60,
        stride=60 + frame,
        start=tvips_header(place.detector, 16),
        head=lambda i: tvips_frame_header(i).ljust(60, b"\x00"),
        options={"scan_shape": place.scan},
    )


@large("mrc")
def mrc(place: Place) -> LargeFile:
    """A stack of frames."""
    from binary_files import mrc_header

    header = mrc_header((place.n, *place.detector), mode=6)
    return place.frames(place.folder / "scan.mrc", len(header), start=header, options={"scan_shape": place.scan})


@large("blockfile")
def blockfile(place: Place) -> LargeFile:
    """Frames of bytes, twice as many, each after six bytes."""
    from vendor_files import blo_header

    ny, nx = place.scan
    twice = Place(place.folder, (ny, 2 * nx), place.detector)
    header = blo_header((ny, 2 * nx), place.detector[0])
    return twice.frames(
        place.folder / "scan.blo",
        len(header) + 6,
        "u1",
        stride=6 + math.prod(place.detector),
        start=header,
        head=lambda i: b"\xaa\x55" + struct.pack("<I", i),
    )


@large("ser")
def ser(place: Place) -> LargeFile:
    """A series of frames, each after its own header and before the position of the beam."""
    from binary_files import ser_element, ser_start, ser_tag

    element = ser_element(place.detector, "u2")
    frame = math.prod(place.detector) * 2
    stride = len(element) + frame + len(ser_tag(0, 0))
    places = np.arange(place.n) * stride
    start = ser_start(place.scan[::-1], places, places + len(element) + frame)

    def head(i: int) -> bytes:
        before = ser_tag(*divmod(i - 1, place.scan[1])) if i else b""
        return before + element

    return place.frames(
        place.folder / "scan_1.ser",
        len(start) + len(element),
        stride=stride,
        start=start,
        head=head,
        end=ser_tag(*divmod(place.n - 1, place.scan[1])),
    )


@large("dm4")
def dm4(place: Place) -> LargeFile:
    """One array between its tags."""
    from binary_files import dm_parts

    before, after = dm_parts(place.shape, "u2", (0.03, 0.03, 0.1, 0.1), ("nm", "nm", "1/nm", "1/nm"))
    return place.frames(place.folder / "scan.dm4", len(before), start=before, end=after)


@large("dm4-detector-first")
def dm4_detector_first(place: Place) -> LargeFile:
    """The same with the detector's axes before those of the scan."""
    from binary_files import dm_parts

    shape = (*place.detector, *place.scan)
    before, after = dm_parts(shape, "u2", (0.1, 0.1, 0.03, 0.03), ("1/nm", "1/nm", "nm", "nm"))
    turned = Place(place.folder, place.detector, place.scan)
    return turned.frames(place.folder / "scan.dm4", len(before), start=before, end=after)


@large("raw")
def raw(place: Place) -> LargeFile:
    """Raw binary."""
    options = {"scan_shape": place.scan, "detector_shape": place.detector, "dtype": "<u2"}
    return place.frames(place.folder / "scan.bin", 0, options=options)


@large("npy")
def npy(place: Place) -> LargeFile:
    """A NumPy file."""
    header = _npy_header(place.shape)
    return place.frames(place.folder / "scan.npy", len(header), start=header)


def _npy_header(shape: Sequence[int]) -> bytes:
    text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    text = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@large("rpl")
def rpl(place: Place) -> LargeFile:
    """Raw binary and a text that describes it, read through rosettasciio."""
    ny, nx = place.scan
    nky, nkx = place.detector
    facts = {
        "key": "value", "width": nkx, "height": nky, "depth": ny * nx, "offset": 0, "data-length": 2,
        "data-type": "unsigned", "byte-order": "little-endian", "record-by": "image",
    }  # fmt: skip
    path = place.folder / "scan.rpl"
    path.write_text("".join(f"{key}\t{value}\n" for key, value in facts.items()))
    made = place.frames(path.with_suffix(".raw"), 0)
    return LargeFile(path, made.nbytes, made.total, {"scan_shape": place.scan})


@large("prz")
def prz(place: Place) -> LargeFile:
    """NumPy arrays in a zip file, as they are; the zip's checksum is the only part that reads zeros to write them."""
    path = place.folder / "scan.prz"
    contents = ("ScanY", "ScanX", "CameraY", "CameraX")
    metadata = json.dumps([{"type": "4D", "content.types": contents[::-1]}])
    line = place.pool(POOL_FRAMES, np.dtype("<u2"))[np.arange(place.scan[1]) % POOL_FRAMES]
    dense = place.dense // place.scan[1]
    with _Holes(path) as holes, zipfile.ZipFile(holes, "w") as archive:
        with archive.open("data.npy", "w", force_zip64=True) as file:
            file.write(_npy_header(place.shape))
            for y in range(place.scan[0]):
                file.write(line.data.cast("B") if y < dense else bytes(line.nbytes))
        with archive.open("meta_data_json.npy", "w") as file:
            np.lib.format.write_array(file, np.array(metadata))
    return LargeFile(path, math.prod(place.shape) * 2, line.sum(dtype=np.float64) * dense)


class _Holes:
    """A file in which zeros that are written become holes."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b")  # noqa: SIM115  (closed below)

    def write(self, data: Any) -> int:
        if len(data) >= 2**20 and not np.frombuffer(data, np.uint8).any():
            self._file.seek(len(data), os.SEEK_CUR)
            return len(data)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Holes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
