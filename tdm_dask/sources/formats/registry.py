"""Which format a file has: by its first bytes, and by the extension where those do not tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CountsError, InputError, ScanShapeError, SourceError
from .. import hdf5
from ..axis_order import doubts_about_order
from ..plugins import GIVE_ONE, Plugin, claiming, from_file, in_list, is_file_name, named, plugin_of, plugins
from ..vendor import Request, VendorFile, file_size, whole_pair
from . import (
    blockfile,
    digital_micrograph,
    empad,
    hdf5_formats,
    merlin,
    mrc,
    pantarhei,
    raw,
    rosetta,
    tia,
    tvips,
    zarr_file,
)

_Reader = Callable[[Request], VendorFile]


@dataclass(frozen=True)
class Known:
    """A format that this package reads.

    Attributes
    ----------
    name : str
        By which it can be asked for.
    open : callable
    extensions : tuple of str
    magic : bytes
        What its files begin with; empty where that is of no use.
    """

    name: str
    open: _Reader
    extensions: tuple[str, ...] = ()
    magic: bytes = b""


_KNOWN = (
    Known("merlin", merlin.open_merlin, ("mib", "hdr"), merlin.MAGIC),
    Known("blockfile", blockfile.open_blockfile, ("blo",), blockfile.MAGIC),
    Known("npy", raw.open_npy, ("npy",), raw.NPY_MAGIC),
    Known("hdf5", hdf5_formats.open_hdf5_scan, ("hspy", "h5", "hdf5", "emd", "de5", "nxs", "app5"), hdf5.MAGIC),
    Known("ser", tia.open_ser, ("ser",), tia.MAGIC),
    Known("emi", tia.open_emi, ("emi",)),
    Known("dm", digital_micrograph.open_dm, ("dm3", "dm4")),
    Known("zarr", zarr_file.open_zarr_scan, ("zspy", "zarr")),
    Known("mrc", mrc.open_mrc, ("mrc",)),
    Known("tvips", tvips.open_tvips, ("tvips",)),
    Known("prz", pantarhei.open_prz, ("prz",)),
    Known("empad", empad.open_empad, ("xml",)),
    Known("raw", raw.open_raw, ("raw", "bin", "dat")),
    Known("rosettasciio", rosetta.open_with_rosettasciio, rosetta.EXTENSIONS),
)
_BY_EXTENSION = {extension: known for known in _KNOWN for extension in known.extensions}

_ZIP = b"PK"


def known_extensions() -> tuple[str, ...]:
    """Extensions of the files that can be opened, those of formats of one's own among them.

    Examples
    --------
    >>> "mib" in known_extensions()
    True
    """
    return tuple(sorted({*_BY_EXTENSION, *(extension for plugin in plugins() for extension in plugin.extensions)}))


def open_vendor(
    path: str | os.PathLike[str],
    *,
    scan_shape: Sequence[int] | None = None,
    frame: int | None = None,
    detector_shape: Sequence[int] | None = None,
    dtype: Any = None,
    offset: int = 0,
    gap: int = 0,
    flyback: int = 0,
    skip_first: int | None = None,
    allow_partial: bool = False,
    detector_first: bool | None = None,
    format: Any = None,
) -> VendorFile:
    """Open a vendor's file: only its header is read, and a few counts where it leaves the order of the axes open.

    Parameters
    ----------
    path : path
        Merlin .mib, HyperSpy .hspy or .zspy, Dectris, EMD, py4DSTEM, NeXus, Velox or TopSpin HDF5, EMPAD .xml or
        .raw, .dm3, .dm4, .mrc, .tvips, .blo, .ser, .prz, a zarr store, NumPy .npy, raw binary, or what else
        rosettasciio opens lazily (.tif, .rpl, .mrcz).
    scan_shape : (ny, nx), optional
        Probe positions; needed where the file does not know. It goes before what the file says.
    frame : int, optional
        Which scan of a file that holds several.
    detector_shape : (nky, nkx), optional
        Detector pixels, for raw binary.
    dtype : dtype, optional
        Of a pixel in raw binary; native byte order unless it says another, such as ">u2".
    offset : int, default 0
        Bytes before the first frame of raw binary.
    gap : int, default 0
        Bytes between the frames of raw binary.
    flyback : int, default 0
        Frames at the end of each line of a stack of frames to leave out; the last line may lack them.
    skip_first : int, optional
        Frames before the scan to leave out. Given, even as 0, it says where the scan begins, and frames after its end
        are left out too; else the frames must fill the scan.
    allow_partial : bool, default False
        Open a scan that has too few frames, or whose last one is cut short: probe positions without a frame are marked
        in `valid_patterns` and read as zeros.
    detector_first : bool, optional
        Whether an array of four dims is (ky, kx, y, x) and not (y, x, ky, kx). By default the names and units of its
        axes say it, or it is (y, x, ky, kx), and a few counts are read to see whether that can be.
    format : path, str, module or object, optional
        What opens the file, whatever its extension and first bytes say: a format of one's own (a Python file, or the
        format itself), or the name of one that is registered, installed or of this package.

    Returns
    -------
    VendorFile

    Raises
    ------
    SourceError
        If the file is missing, empty, damaged, or of no known kind.
    ScanShapeError
        If its frames do not fill the scan, or their arrangement is not known.
    CountsError
        If it holds no real numbers, or is no scan of patterns.
    InputError
        If the arguments contradict each other or the file.
    FormatError
        If a format of one's own fails, or several claim the file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "scan.raw"
    ...     _ = path.write_bytes(np.arange(24, dtype="<u2").tobytes())
    ...     file = open_vendor(path, scan_shape=(2, 3), detector_shape=(2, 2), dtype="<u2")
    ...     file.source.shape, file.source.read(1, 2, 0, 1).ravel()
    ((2, 3, 2, 2), array([12, 13, 14, 15], dtype=uint16))
    """
    request = Request(
        path=Path(path).expanduser().absolute(),
        scan_shape=_pair(scan_shape, "scan_shape", "(ny, nx)", ScanShapeError),
        frame=None if frame is None else _whole(frame, "frame"),
        detector_shape=_pair(detector_shape, "detector_shape", "(nky, nkx)", InputError),
        dtype=None if dtype is None else _dtype(dtype),
        offset=_whole(offset, "offset"),
        gap=_whole(gap, "gap"),
        flyback=_whole(flyback, "flyback"),
        skip_first=None if skip_first is None else _whole(skip_first, "skip_first"),
        allow_partial=bool(allow_partial),
        detector_first=None if detector_first is None else bool(detector_first),
    )
    file = _opener(request, format)(request)
    asked_for = format if isinstance(format, str) and not is_file_name(format) else ""
    file = replace(file, scans=max(request.counted, default=file.scans), format=file.format or asked_for)
    if file.order_is_known or file.doubts:
        return file
    return replace(file, doubts=tuple(doubts_about_order(file.source, file.valid_patterns)))


def _opener(request: Request, format: Any) -> _Reader:
    """What opens a file: the format that was asked for; else one of this package; else one of a user's own."""
    path = request.path
    if not path.exists():
        raise SourceError(f"{path} does not exist; check the path.")
    if format is not None:
        return _asked_for(format).open
    if zarr_file.is_zarr(path):
        return zarr_file.open_zarr_scan
    if path.is_file():
        file_size(path)
        known = _of_this_package(request)
        if known is not None:
            return known
    plugin = claiming(path, [known.name for known in _KNOWN])
    if plugin is not None:
        return plugin.open
    file_size(path)
    if request.detector_shape is not None or request.dtype is not None:
        return raw.open_raw
    raise SourceError(
        f'{request.name} has the extension "{path.suffix}", which is not known; known are '
        f"{', '.join(known_extensions())}, any raw binary with dtype=..., scan_shape and detector_shape, and what a "
        "format of your own opens."
    )


def _asked_for(format: Any) -> Known | Plugin:
    """A format by its name or file, or the format itself."""
    if is_file_name(format):
        return from_file(format)
    if not isinstance(format, str):
        return plugin_of(format, "this session")
    known = [known for known in _KNOWN if known.name == format]
    own = named(format, installed=not known)
    found: list[Known | Plugin] = [*known, *own]
    if not found:
        names = sorted({*(known.name for known in _KNOWN), *(plugin.name for plugin in plugins())})
        raise InputError(
            f'There is no format "{format}"; known are {", ".join(names)}, and one of your own is given by its file, '
            "such as my_format.py."
        )
    if len(found) > 1:
        this = "the one of this package and " if known else ""
        raise InputError(f'Several formats have the name "{format}": {this}{in_list(own)}; {GIVE_ONE}.')
    return found[0]


def _of_this_package(request: Request) -> _Reader | None:
    """The reader of this package for a file, or None where it knows neither its first bytes nor its extension."""
    extension = request.path.suffix[1:].lower()
    with open(request.path, "rb") as file:
        start = file.read(16)
    for known in _KNOWN:
        if known.magic and start.startswith(known.magic):
            return known.open
    if start.startswith(_ZIP) and extension in ("zip", "zspy", "zarr"):
        return zarr_file.open_zarr_scan
    described = request.detector_shape is not None or request.dtype is not None
    if extension == "raw" and not described and empad.header_beside(request.path) is not None:
        return empad.open_empad
    if extension == "xml" and not empad.is_empad_header(request.path):
        raise SourceError(f"{request.name} is not an EMPAD header; open the file that holds the counts.")
    return _BY_EXTENSION[extension].open if extension in _BY_EXTENSION else None


def _pair(value: Sequence[int] | None, name: str, meaning: str, error: type[InputError]) -> tuple[int, int] | None:
    pair = None if value is None else whole_pair(value)
    if pair is None and value is not None:
        raise error(f"{name}={value!r} was given; expected two positive whole numbers {meaning}.")
    return pair


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise InputError(f"{name}={value!r} was given; expected a whole number, zero or more.")
    return int(value)


def _dtype(dtype: Any) -> np.dtype:
    try:
        return np.dtype(dtype)
    except TypeError:
        raise CountsError(f'dtype={dtype!r} is not known; expected one such as "uint16" or ">u2".') from None
