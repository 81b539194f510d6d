"""Dectris detectors (Arina, Quadro, ...): a master HDF5 file that links files of frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CountsError, SourceError
from .hdf5 import open_hdf5
from .scan_shape import fill_scan
from .stacks import StackSource, chunk_of
from .vendor import Request, VendorFile, check_dtype, plain


@dataclass(frozen=True)
class LinkedFrames(StackSource):
    """Frames that lie one after the other in several datasets, which a master file links.

    Parameters
    ----------
    datasets : tuple of (str, int)
        Path inside the master file and number of frames, in order.
    """

    datasets: tuple[tuple[str, int], ...] = ()

    @contextmanager
    def opened(self) -> Iterator[Any]:
        with open_hdf5(Path(self.path)) as file:
            yield _Concatenated(file, self.datasets, self.shape[2:], np.dtype(self.file_dtype))


class _Concatenated:
    """Slices of consecutive frames out of several datasets."""

    def __init__(
        self, file: Any, datasets: tuple[tuple[str, int], ...], detector: tuple[int, int], dtype: np.dtype
    ) -> None:
        self.file, self.datasets, self.detector, self.dtype = file, datasets, detector, dtype

    def __getitem__(self, key: tuple[slice]) -> np.ndarray:
        start, stop = key[0].start, key[0].stop
        out = np.empty((stop - start, *self.detector), self.dtype)
        first = 0
        for name, count in self.datasets:
            low, high = max(start, first), min(stop, first + count)
            if low < high:
                out[low - start : high - start] = linked(self.file, name)[low - first : high - first]
            first += count
        return out


def linked(file: Any, name: str) -> Any:
    """A dataset of the master file, which may be a link to another file."""
    try:
        return file[name]
    except (KeyError, OSError):
        link = file.get(name, getlink=True)
        where = getattr(link, "filename", name)
        raise SourceError(f"{Path(file.filename).name} links {where}, which is not beside it; put it there.") from None


def open_master(request: Request, file: Any) -> VendorFile:
    """Open the frames that a Dectris master file links, in the order of their numbers."""
    import h5py

    request.refuse_frame("a Dectris master file")
    names = sorted(name for name in file["entry/data"] if name.startswith("data_"))
    parts = [(f"entry/data/{name}", linked(file, f"entry/data/{name}")) for name in names]
    kinds = {(part.shape[1:], part.dtype) for _, part in parts}
    if len(kinds) != 1 or any(part.ndim != 3 for _, part in parts):
        raise CountsError(
            f"{request.name} links arrays {[part.shape for _, part in parts]}; expected stacks of frames "
            "of one shape and dtype."
        )
    dtype = check_dtype(parts[0][1].dtype, request.name)
    detector = tuple(parts[0][1].shape[1:])
    n_frames = sum(part.shape[0] for _, part in parts)
    findings = [f"{n_frames} frames of {detector[0]} x {detector[1]} pixels in {len(parts)} linked file(s)."]
    specific = file.get("entry/instrument/detector/detectorSpecific", {})
    announced = _number(specific.get("nimages")) * _number(specific.get("ntrigger"))
    if announced and announced != n_frames:
        findings.append(f"The header announces {announced:.0f} frames.")
    shape, sentence = fill_scan(request.name, n_frames, request.scan_shape, None, "")
    instrument = file.get("entry/instrument/detector", {})
    acquisition = {}
    if _number(instrument.get("count_time")) > 0:
        acquisition["dwell_time_s"] = _number(instrument.get("count_time"))
    metadata: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.size == 1:
            metadata[name] = plain(np.asarray(node[()]).reshape(-1)[0])

    if "entry/instrument" in file:
        file["entry/instrument"].visititems(visit)
    valid = None
    mask = specific.get("pixel_mask")
    if mask is not None and mask.shape == detector:
        valid = np.asarray(mask) == 0
        findings.append(f"The detector marks {int(np.count_nonzero(~valid))} pixels as unusable.")
    source = LinkedFrames(
        str(request.path),
        (*shape, *detector),
        dtype.str,
        flat=True,
        chunk=chunk_of(parts[0][1].chunks, shape[1], flat=True),
        datasets=tuple((name, part.shape[0]) for name, part in parts),
    )
    return VendorFile(
        path=str(request.path),
        reader=f"Dectris master (h5py {h5py.__version__})",
        source=source,
        acquisition=acquisition,
        metadata=metadata,
        findings=(*findings, sentence),
        valid_pixels=valid,
    )


def _number(dataset: Any) -> float:
    return float(np.asarray(dataset[()]).reshape(-1)[0]) if dataset is not None else 0.0
