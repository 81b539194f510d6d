"""What a vendor file is to the rest of the package, and what was asked of it."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CountsError, FrameError, InputError, ScanShapeError, SourceError
from ..reading.blocks import Source
from ..reading.file_state import file_state

# Longer arrays in a vendor's metadata (look-up tables, flat fields) are named, not copied.
LONGEST_METADATA_ARRAY = 4096
# The files of a scan that are no larger than this, all together, are known by their content, which takes less than a
# second to read; others by their time.
HASHED_BYTES = 2**28


@dataclass(frozen=True)
class VendorFile:
    """One scan in a vendor's file: where its counts come from and what the file says about them.

    A format of your own gives one: by `tdm_dask.frame_file`, or with a `tdm_dask.Source` of its own.

    Attributes
    ----------
    path : str
        The file that was asked for, absolute.
    reader : str
        What read the header, with its version.
    source : Source
        The counts, read block by block; picklable.
    scan_step : (float, float) or None
        Angstrom (y, x); None where the file does not know it.
    pixel_size : (float, float) or None
        Mrad (ky, kx); None where the file does not know it.
    acquisition : dict
        Plain numbers: energy_eV, dwell_time_s, semi_angle_mrad, beam_current_A; only what the file knows.
    metadata : dict
        The vendor's metadata as plain JSON.
    findings : tuple of str
        Sentences about what was found and how it was read.
    data_path : str
        The file that holds the counts; `path` unless the header has a file of its own.
    valid_pixels : bool array (nky, nkx) or None
        The detector's own list of usable pixels, where the file has one.
    valid_patterns : bool array (ny, nx) or None
        The probe positions that have a frame, where some have none.
    linked : tuple of str
        Other files that hold counts of the scan or say how they lie; what `identity` says changes with them.
    doubts : tuple of str
        Findings by which the file may have been read in a wrong way; `open` and `convert` warn of them.
    order_is_known : bool
        Whether the format, the file or the caller says that the scan's axes come before those of the detector.
    scans : int
        How many scans the file holds, of which this is one.
    format : str
        The format of a user's own that opened it, or one of this package that was asked for; else empty.

    Examples
    --------
    >>> from tdm_dask.reading.blocks import InMemory
    >>> counts = np.ones((2, 3, 4, 4), np.uint16)
    >>> file = VendorFile("scan.abc", "ABC camera", InMemory(counts), acquisition={"energy_eV": 200e3})
    >>> file.source.shape, file.data_path
    ((2, 3, 4, 4), 'scan.abc')
    """

    path: str
    reader: str
    source: Source
    scan_step: tuple[float, float] | None = None
    pixel_size: tuple[float, float] | None = None
    acquisition: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    data_path: str = ""
    valid_pixels: np.ndarray | None = field(default=None, compare=False)
    valid_patterns: np.ndarray | None = field(default=None, compare=False)
    linked: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    order_is_known: bool = True
    scans: int = 1
    format: str = ""

    def __post_init__(self) -> None:
        if not self.data_path:
            object.__setattr__(self, "data_path", self.path)

    @property
    def identity(self) -> dict[str, Any]:
        """Of the file that holds the counts, as `identities` has it, and of those it links."""
        found, *linked = identities(self.data_path, *self.linked)
        return found | {"linked": linked} if linked else found


@dataclass(frozen=True)
class Request:
    """The arguments of `open_vendor`, checked."""

    path: Path
    scan_shape: tuple[int, int] | None = None
    frame: int | None = None
    detector_shape: tuple[int, int] | None = None
    dtype: np.dtype | None = None
    offset: int = 0
    gap: int = 0
    flyback: int = 0
    skip_first: int | None = None
    allow_partial: bool = False
    detector_first: bool | None = None
    # How many scans the file was found to hold.
    counted: list[int] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        return self.path.name

    def refuse_layout(self, kind: str) -> None:
        """Raise unless the byte layout was left to the file, which describes itself."""
        given = [
            said
            for said, asked in (
                (f"detector_shape={self.detector_shape}", self.detector_shape is not None),
                (f"dtype={str(self.dtype)!r}", self.dtype is not None),
                (f"offset={self.offset}", self.offset != 0),
                (f"gap={self.gap}", self.gap != 0),
            )
            if asked
        ]
        if given:
            raise InputError(
                f"{self.name} is {kind}, which describes its own layout, but {' and '.join(given)} was "
                "given; leave that out (it is for raw binary files)."
            )

    def refuse_trim(self, kind: str) -> None:
        """Raise if frames of a stack were to be left out where there is no stack of frames."""
        trims = {"flyback": self.flyback, "skip_first": self.skip_first}
        given = [f"{name}={number}" for name, number in trims.items() if number]
        if given:
            raise InputError(
                f"{self.name} holds {kind}, not a stack of frames, but {' and '.join(given)} was given; leave that out "
                "(tdm_dask.crop leaves out probe positions)."
            )

    def refuse_order(self, kind: str) -> None:
        """Raise if the order of the axes was given where whole patterns lie one after the other."""
        if self.detector_first is not None:
            raise InputError(
                f"{self.name} holds {kind}, each of them a whole pattern, but detector_first={self.detector_first} was "
                "given; leave it out (it is for arrays of four dimensions)."
            )

    def refuse_other_shape(self, shape: tuple[int, ...]) -> None:
        """Raise if another scan shape was given than that of a file whose counts have one of their own."""
        if self.scan_shape not in (None, shape):
            raise ScanShapeError(
                f"{self.name} holds a scan of {shape} positions, but scan_shape={self.scan_shape} was given; leave it "
                "out."
            )

    def refuse_frame(self, kind: str) -> None:
        """Raise if one scan of a stack was asked for where there is a single scan."""
        if self.frame not in (None, 0):
            raise InputError(
                f"{self.name} is {kind}, which holds one scan, but frame={self.frame} was given; leave it out."
            )


def pick_frame(request: Request, count: int, what: str = "scans") -> int:
    """Index of the scan that was asked for among `count`, or an error that says how many there are."""
    request.counted.append(count)
    if request.frame is None:
        if count == 1:
            return 0
        raise FrameError(f"{request.name} holds {count} {what}; say which one with frame=0 to frame={count - 1}.")
    if not 0 <= request.frame < count:
        raise FrameError(
            f"{request.name} holds {count} {what}, but frame={request.frame} was given; expected 0 to {count - 1}."
        )
    return request.frame


def one_or_more(value: Any) -> tuple[Any, ...]:
    """A text or path alone as a tuple of one, and several as a tuple."""
    return (value,) if isinstance(value, (str, os.PathLike)) else tuple(value)


def whole_pair(value: Any) -> tuple[int, int] | None:
    """Two positive whole numbers of any kind as such, or None for what is something else.

    Examples
    --------
    >>> whole_pair(np.array([2, 3], "u1")), whole_pair((2.0, 3)), whole_pair((0, 3))
    ((2, 3), None, None)
    """
    try:
        first, second = (index(number) for number in value if not isinstance(number, bool))
    except (TypeError, ValueError):
        return None
    return (first, second) if min(first, second) > 0 else None


def check_dtype(dtype: Any, name: str) -> np.dtype:
    """The dtype of counts on disk, or an error unless it is made of integers, booleans or real numbers."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "uifb" or dtype.itemsize > 8:
        raise CountsError(f"{name} holds values of dtype {dtype}; counts must be integers or real numbers.")
    return dtype


def narrowest(depth: int | None, dtype: np.dtype) -> list[str]:
    """A sentence on the counts that the counters can reach, and the narrowest dtype for them."""
    if depth is None or depth > 32:
        return []
    narrowest = np.min_scalar_type(2**depth - 1)
    stored = "" if narrowest == dtype else f", in {dtype} here"
    return [f"{depth}-bit counters: counts up to {2**depth - 1}, which {narrowest} holds without loss{stored}."]


def native_dtype(dtype: Any) -> np.dtype:
    """The dtype in memory of counts that are `dtype` on disk: native byte order, booleans as uint8.

    Examples
    --------
    >>> native_dtype(">u2"), native_dtype(bool)
    (dtype('uint16'), dtype('uint8'))
    """
    dtype = np.dtype(dtype)
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def storage_dtype(dtype: Any) -> np.dtype:
    """The dtype of the bytes on disk; a boolean is a byte."""
    dtype = np.dtype(dtype)
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype


def identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name, size in bytes and modification time (ISO 8601, UTC) of a file or folder."""
    _, size, nanoseconds = file_state(path)
    modified = datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
    return {"name": Path(path).name, "size": size, "modified": modified.isoformat()}


def identities(*paths: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Identity of each of the files of a scan, with the SHA-256 of its content where all together are small."""
    found = [identity(path) for path in paths]
    if not all(map(os.path.isfile, paths)) or sum(file["size"] for file in found) > HASHED_BYTES:
        return found
    return [file | {"sha256": _sha256(path)} for file, path in zip(found, paths, strict=True)]


def _sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_file(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    """Whether two identities, as stores and results keep them, are of the same file.

    What is known of its content decides: its checksum where both have one, its time of change where one of them has
    none, as in stores of versions before. A file that was copied, or came with another installation, is the same file
    at another time.

    Examples
    --------
    >>> kept = {"name": "a.mib", "size": 1, "modified": "2026-01-01", "sha256": "0f"}
    >>> same_file(kept, kept | {"modified": "2026-01-02"})
    True
    >>> before = {"name": "a.mib", "size": 1, "modified": "2026-01-01"}
    >>> same_file(kept, before), same_file(kept, before | {"modified": "2026-01-02"})
    (True, False)
    """
    if first is None or second is None:
        return first is second
    by_content = "sha256" in first and "sha256" in second
    content = ("modified", "sha256", "linked")
    rest = [{key: value for key, value in of.items() if key not in content} for of in (first, second)]
    key = "sha256" if by_content else "modified"
    linked = [of.get("linked", []) for of in (first, second)]
    return (
        rest[0] == rest[1]
        and first.get(key) == second.get(key)
        and len(linked[0]) == len(linked[1])
        and all(map(same_file, *linked))
    )


def file_size(path: Path) -> int:
    """Size in bytes of a file that must exist and not be empty."""
    if not path.exists():
        raise SourceError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise SourceError(f"{path} is a folder; expected a file, or a zarr store.")
    size = path.stat().st_size
    if size == 0:
        raise SourceError(f"{path} is empty; copy it again from the microscope.")
    return size


def plain(value: Any) -> Any:
    """Metadata as JSON can hold it: no NumPy scalars, tuples, bytes, NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> plain({"a": np.float32(2), "b": (1, float("nan")), "c": b"x", "d": np.inf})
    {'a': 2.0, 'b': [1, None], 'c': 'x', 'd': 'inf'}
    """
    if isinstance(value, np.ndarray) and value.dtype.names is None:
        if value.size > LONGEST_METADATA_ARRAY:
            return f"array {value.shape} of {value.dtype}, left out"
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or isinstance(value, (str, bool, int)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\x00")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        if len(value) > LONGEST_METADATA_ARRAY:
            return f"list of {len(value)} values, left out"
        return [plain(item) for item in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def rosettasciio_reader(plugin: str) -> str:
    """Name of a rosettasciio reader with the version that is installed."""
    import rsciio

    return f"{plugin} (rosettasciio {rsciio.__version__})"
