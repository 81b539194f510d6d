"""HDF5 files: HyperSpy's .hspy, EMD 4D-STEM (NCEM, Prismatic, py4DSTEM), Dectris masters, any 4D dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks import RawFrames, Source
from ..errors import CountsError, InputError, ScanShapeError, SourceError
from .calibration_facts import acquisition_facts, facts_of_axes
from .scan_shape import fill_scan
from .stacks import StackSource, chunk_of
from .vendor import (
    Request,
    VendorFile,
    check_dtype,
    file_size,
    pick_frame,
    plain,
    rosettasciio_reader,
    storage_dtype,
)

MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Hdf5Source(StackSource):
    """Counts in one dataset of an HDF5 file, opened and closed for each block.

    Parameters
    ----------
    dataset : str
        Path of the dataset inside the file.
    """

    dataset: str = ""

    @contextmanager
    def opened(self) -> Iterator[Any]:
        with open_hdf5(Path(self.path)) as file:
            dataset = file.get(self.dataset)
            if dataset is None:
                raise SourceError(f"{self.path} has changed: it has no {self.dataset} any more; open it again.")
            found = dataset.shape[len(self.leading) :]
            expected = (self.shape[0] * self.shape[1], *self.shape[2:]) if self.flat else self.shape
            if found != expected or dataset.dtype != self.file_dtype:
                raise SourceError(
                    f"{self.path} has changed since it was opened: {self.dataset} is {found} "
                    f"{dataset.dtype}, it was {expected} {self.file_dtype}; open it again."
                )
            yield dataset


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, read-only, with the compression filters of detectors; errors as sentences."""
    import h5py
    import hdf5plugin  # noqa: F401  (registers the filters)

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path.name} is not an HDF5 file that can be opened ({error}); copy it again.") from None
    try:
        yield file
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path.name} cannot be read ({error}); it is damaged, copy it again.") from None
    finally:
        file.close()


def open_hdf5_scan(request: Request) -> VendorFile:
    """Open the 4D-STEM scan of an HDF5 file."""
    request.refuse_layout("an HDF5 file")
    file_size(request.path)
    with open_hdf5(request.path) as file:
        if str(file.attrs.get("file_format", "")).lower() == "hyperspy" or "Experiments" in file:
            return _hyperspy(request, file)
        return _four_dimensional(request, file)


def _hyperspy(request: Request, file: Any) -> VendorFile:
    """A file in HyperSpy's format; only its headers are read."""
    from rsciio.hspy._api import HyperspyReader

    groups = [group for group in file.get("Experiments", {}).values() if "data" in group]
    if not groups:
        raise SourceError(f"{request.name} is a HyperSpy file without a signal; save it again.")
    scans, stacks = ([group for group in groups if group["data"].ndim in dims] for dims in ((4, 5), (3,)))
    fitting = scans or stacks or groups
    findings = []
    stacked = fitting[0]["data"].ndim == 5
    if len(fitting) > 1:
        group = fitting[pick_frame(request, len(fitting), "signals")]
        findings.append(f'Signal "{group.name.rsplit("/", 1)[-1]}" of {len(fitting)}.')
        if group["data"].ndim == 5:
            raise InputError(f"{request.name} holds several signals, of which this is a stack of scans; save it alone.")
    else:
        group = fitting[0]
        if not stacked:
            request.refuse_frame("a HyperSpy file")
    reader = HyperspyReader(file)
    metadata, original = (
        reader._group2dict(group[key]) if key in group else {} for key in ("metadata", "original_metadata")
    )
    dataset = group["data"]
    check_dtype(dataset.dtype, request.name)
    axes = _hyperspy_axes(request.name, group, reader)
    navigation = [axis for axis in axes if axis.get("navigate")]
    signal = [axis for axis in axes if not axis.get("navigate")]
    if len(signal) != 2 or len(navigation) not in (1, 2, 3):
        raise CountsError(
            f"{request.name} has {len(navigation)} navigation and {len(signal)} signal dimensions; "
            "expected two of each: "
            "in HyperSpy, use signal.as_signal2D or transpose(signal_axes=2) and save it again."
        )
    if any(axis.get("navigate") for axis in axes[-2:]):
        raise CountsError(
            f"{request.name} is stored detector first; expected (y, x, ky, kx): save it from HyperSpy again."
        )
    request_shape = request.scan_shape
    leading: tuple[int, ...] = ()
    if dataset.ndim == 5:
        leading = (pick_frame(request, dataset.shape[0]),)
        findings.append(f"Scan {leading[0]} of a stack of {dataset.shape[0]}.")
    flat = dataset.ndim == 3
    if flat and request_shape is None:
        request_shape = (1, dataset.shape[0])
        findings.append(
            f"The scan has one axis of {dataset.shape[0]} positions, taken as one line; give scan_shape if it is more."
        )
    acquisition = acquisition_facts(metadata)
    four = [{}, navigation[0], *signal] if flat else axes[-4:]
    facts = facts_of_axes(request.name, four, acquisition.get("energy_eV"))
    source, sentence = _source(request, dataset, request_shape, leading)
    return VendorFile(
        path=str(request.path),
        reader=rosettasciio_reader("hspy"),
        source=source,
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        acquisition=acquisition,
        metadata=plain({"metadata": metadata, "original_metadata": original}),
        findings=(*findings, *sentence, *facts.findings),
    )


def _hyperspy_axes(name: str, group: Any, reader: Any) -> list[dict[str, Any]]:
    """The axes in array order, which HyperSpy keeps one group to an axis."""
    axes = [reader._group2dict(group[f"axis-{i}"]) for i in range(group["data"].ndim) if f"axis-{i}" in group]
    if len(axes) != group["data"].ndim:
        raise SourceError(f"{name} lacks the description of some axes; save it again with a newer HyperSpy.")
    return axes


def _source(
    request: Request, dataset: Any, scan_shape: tuple[int, int] | None, leading: tuple[int, ...] = ()
) -> tuple[Source, list[str]]:
    """The source of a dataset of frames or of a whole scan, and where its scan shape came from."""
    dtype = check_dtype(dataset.dtype, request.name)
    shape = dataset.shape[len(leading) :]
    if 0 in shape:
        raise CountsError(
            f"{request.name} holds an array of shape {dataset.shape}; every dim needs at least one element."
        )
    findings = []
    if len(shape) == 3:
        scan, sentence = fill_scan(request.name, shape[0], scan_shape, None, "")
        if request.scan_shape is not None:
            findings.append(sentence)
        full = (*scan, *shape[1:])
    else:
        if scan_shape is not None and scan_shape != shape[:2]:
            raise ScanShapeError(
                f"{request.name} holds a scan of {shape[:2]} positions, but scan_shape {scan_shape} was "
                "given; leave it out."
            )
        full = shape
    offset = None if dataset.is_virtual or dataset.external else dataset.id.get_offset()
    if offset is not None:
        # Not chunked: plain frames, which need no HDF5 library (and not its lock) to be read.
        offset += sum(leading) * math.prod(full) * dtype.itemsize
        return RawFrames(str(request.path), full, storage_dtype(dtype).str, offset), findings
    flat = len(shape) == 3
    chunk = chunk_of(dataset.chunks, full[1], flat)
    return Hdf5Source(str(request.path), full, dtype.str, leading, flat, chunk, dataset=dataset.name), findings


def _four_dimensional(request: Request, file: Any) -> VendorFile:
    """The one dataset of an HDF5 file that looks like a scan, with the axes of EMD files."""
    import h5py

    if "entry/data" in file and any(name.startswith("data_") for name in file["entry/data"]):
        from .dectris import open_master

        return open_master(request, file)
    datasets = _arrays(file)
    # A stack of frames counts only where there is no scan, and virtual images are stacks of frames.
    whole = [d for d in datasets if d.ndim >= 4] or (datasets if request.scan_shape is not None else [])
    if not whole:
        stacks = ", ".join(f"{d.name} {d.shape}" for d in datasets[:3])
        raise CountsError(
            f"{request.name} holds no array (y, x, ky, kx)"
            + (f"; it has {stacks}, for which give scan_shape=(ny, nx)." if stacks else ": it is not a 4D-STEM scan.")
        )
    findings: list[str] = []
    leading: tuple[int, ...] = ()
    if len(whole) > 1:
        index = pick_frame(request, len(whole))
        dataset = whole[index]
        findings.append(f"Scan {index} of {len(whole)} in the file: {dataset.name}.")
        if dataset.ndim == 5:
            raise InputError(f"{request.name} holds several stacks of scans; save one of them alone.")
    else:
        dataset = whole[0]
        findings.append(f"Counts from {dataset.name}.")
        if dataset.ndim == 5:
            leading = (pick_frame(request, dataset.shape[0]),)
            findings.append(f"Scan {leading[0]} of a stack of {dataset.shape[0]}.")
        else:
            request.refuse_frame("an HDF5 file")
    if _is_reversed(dataset):
        raise SourceError(
            f"{request.name} is an EMD file of the kind that numbers its dims from the fastest one; rename "
            "it to .emd, which says so to its reader."
        )
    axes = emd_axes(dataset) if dataset.ndim == 4 else [{}] * 4
    facts = facts_of_axes(request.name, axes, None)
    source, sentence = _source(request, dataset, request.scan_shape, leading)
    return VendorFile(
        path=str(request.path),
        reader=f"HDF5 (h5py {h5py.__version__})",
        source=source,
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        metadata=plain({"dataset": dataset.name, "attributes": dict(dataset.attrs)}),
        findings=(*findings, *sentence, *facts.findings),
    )


def _arrays(file: Any) -> list[Any]:
    """Every numeric array of three to five dims in a file."""
    import h5py

    found: list[Any] = []

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim in (3, 4, 5) and node.dtype.kind in "uifb":
            found.append(node)

    file.visititems(visit)
    return found


def _is_reversed(dataset: Any) -> bool:
    """Whether an array is of NCEM's EMD 0.x, whose dims count from 1 and which rosettasciio transposes.

    Prismatic's "datacube" and EMD 1.0 (dims from 0) are stored scan first.
    """
    group = dataset.parent
    is_emd = "emd_group_type" in group.attrs and "dim1" in group
    return is_emd and "dim0" not in group and dataset.name.rsplit("/", 1)[-1] != "datacube"


def is_scan_first(path: Path) -> bool:
    """Whether an .emd file holds a scan whose array is stored (y, x, ky, kx), and needs no other reader."""
    with open_hdf5(path) as file:
        scans = [array for array in _arrays(file) if array.ndim >= 4 and "emd_group_type" in array.parent.attrs]
        return bool(scans) and not any(map(_is_reversed, scans))


def emd_axes(dataset: Any) -> list[dict[str, Any]]:
    """Scale and unit of each dim from the dim vectors that EMD files keep beside an array.

    They are numbered from 1 in EMD 0.x and from 0 in EMD 1.0, and hold all values or the first two.
    """
    group = dataset.parent
    first = 0 if "dim0" in group else 1
    axes: list[dict[str, Any]] = []
    for number in range(first, first + dataset.ndim):
        vector = group.get(f"dim{number}")
        if vector is None or vector.ndim != 1 or vector.size < 2:
            axes.append({})
            continue
        start, second = (float(value) for value in vector[:2])
        last = float(vector[-1])
        even = vector.size == 2 or np.isclose(start + (vector.size - 1) * (second - start), last, rtol=1e-3)
        axes.append({"scale": second - start if even else None, "units": vector.attrs.get("units", "")})
    return axes
