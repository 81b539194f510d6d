"""Open a store or a vendor's file as lazy labelled counts.

What is opened is lazy: headers and coordinates are read now, counts when something is computed of them, block by block
inside the tasks. What a file says of itself, and what it leaves open, is in `attrs["findings"]`, in sentences.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import xarray as xr
from zarr.abc.store import Store

from ..axes import FINDINGS, VALID_PATTERNS, VALID_PIXELS, axis_coordinate, label_counts, missing_calibration
from ..errors import InputError
from ..reading.lazy import as_dask
from ..reading.store import StoreLike, is_store, open_store
from ..shards.objects import name_of
from ..sources.formats.registry import open_vendor
from ..sources.vendor import VendorFile


def open(
    path: StoreLike,
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
) -> xr.DataArray:
    """A store or a vendor's file as lazy labelled counts; only its header is read.

    Parameters
    ----------
    path : path, URL or zarr store object
        A store that `convert` wrote, any zarr 3 group with a 4D array "counts", or a vendor's file.
    scan_shape : (ny, nx), optional
        Probe positions of a vendor's file; needed where the file does not know. It goes before what the file says.
    frame : int, optional
        Which scan of a file that holds several.
    detector_shape, dtype, offset, gap
        Of raw binary: pixels (nky, nkx) of a pattern, dtype of a pixel, bytes before the first pattern and between
        patterns.
    flyback : int, default 0
        Frames at the end of each line of a stack of frames to leave out.
    skip_first : int, optional
        Frames before the scan to leave out; then those after its end are left out too. By default the frames must fill
        the scan.
    allow_partial : bool, default False
        Open a scan that was interrupted: probe positions without a frame read as zeros and are marked as missing in
        the coordinate `valid_patterns`, which every statistic and mask honours.
    detector_first : bool, optional
        Whether an array of four dims in a generic file (.npy, HDF5, zarr, .dm4, ...) is (ky, kx, y, x) and not
        (y, x, ky, kx). By default the names and units of its axes say it, or it is (y, x, ky, kx); a warning says it
        if a few of its counts speak against that.
    format : path, str, module or object, optional
        What opens the file, whatever its extension and first bytes say: a format of your own, as the Python file or the
        object that it is (see `register_format`), or the name of one that is registered, installed, or of this package.
        By default one of this package, or of your own where none of these knows the file.

    Returns
    -------
    DataArray, dims (y, x, ky, kx)
        Counts, native-endian, with what the file says as coordinates (angstrom, mrad; pixels until calibrated) and
        attributes. `attrs["findings"]` says in sentences how the file was read, what is odd, and what is not known.

    Raises
    ------
    SourceError
        If the file is missing, damaged or of an unknown format.
    ScanShapeError
        If its frames do not fill the scan.
    FormatError
        If a format of your own fails, or several claim the file.
    InputError
        If the arguments contradict each other or what is opened.
    StoreError, IncompleteStoreError
        If the store cannot be read, or its conversion has not finished.

    Examples
    --------
    >>> import numpy, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "scan.npy"
    >>> numpy.save(path, numpy.zeros((6, 4, 4), numpy.uint16))
    >>> open(path, scan_shape=(2, 3)).sizes
    Frozen({'y': 2, 'x': 3, 'ky': 4, 'kx': 4})
    """
    if isinstance(path, Store) or "://" in os.fspath(path):
        if format is not None:
            said = repr(format) if isinstance(format, str) else "..."
            raise InputError(f"{name_of(path)} is a store, but format={said} describes a file; leave it out.")
        return open_store(path)
    if format is None and is_store(path):
        return open_store(path)
    file = open_vendor(
        os.fspath(path),
        scan_shape=scan_shape,
        frame=frame,
        detector_shape=detector_shape,
        dtype=dtype,
        offset=offset,
        gap=gap,
        flyback=flyback,
        skip_first=skip_first,
        allow_partial=allow_partial,
        detector_first=detector_first,
        format=format,
    )
    warn_of_doubts(file)
    return label_vendor(file)


def warn_of_doubts(file: VendorFile) -> None:
    """Warn of what speaks against the way in which a file is read."""
    for doubt in file.doubts:
        warnings.warn(f"{os.path.basename(file.path)}: {doubt}", stacklevel=1)


def label_vendor(file: VendorFile) -> xr.DataArray:
    """The counts of a vendor's file, labelled with what the file knows.

    The detector keeps pixel coordinates, since a file does not know where the optic axis meets it; its pixel size
    becomes the attribute `pixel_size_mrad`, which `calibrate` uses.
    """
    coords: dict[str, Any] = {}
    if file.scan_step is not None:
        for dim, size, step in zip(("y", "x"), file.source.shape, file.scan_step, strict=False):
            coords[dim] = axis_coordinate(dim, size, step, 0.0, "angstrom")
    if file.valid_pixels is not None and not file.valid_pixels.all():
        coords[VALID_PIXELS] = (("ky", "kx"), file.valid_pixels)
    if file.valid_patterns is not None:
        coords[VALID_PATTERNS] = (("y", "x"), file.valid_patterns)
    attrs: dict[str, Any] = dict(file.acquisition)
    if file.pixel_size is not None:
        attrs["pixel_size_mrad"] = list(file.pixel_size)
    attrs["source"] = os.path.basename(file.path)
    counts = label_counts(as_dask(file.source), coords, attrs)
    counts.attrs[FINDINGS] = [*file.doubts, *file.findings, *missing_calibration(counts)]
    return counts
