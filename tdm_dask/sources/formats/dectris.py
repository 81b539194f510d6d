"""Dectris detectors (Arina, Quadro, ...): a master HDF5 file that links files of frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CountsError, SourceError
from ..hdf5 import files_behind, open_hdf5
from ..scan_shape import fill_with_frames
from ..stacks import StackSource, chunk_of
from ..vendor import Request, VendorFile, check_dtype, narrowest, plain

_DETECTOR = "entry/instrument/detector"


@dataclass(frozen=True)
class LinkedFrames(StackSource):
    """Frames that lie one after the other in several datasets, which a master file links.

    Parameters
    ----------
    datasets : tuple of (str, int)
        Path inside the master file and number of frames, in order.
    counter_depth : int, optional
        Bits of a count, as the master file says.
    """

    datasets: tuple[tuple[str, int], ...] = ()
    counter_depth: int | None = None

    @contextmanager
    def opened(self) -> Iterator[Any]:
        with open_hdf5(Path(self.path)) as file:
            yield _Concatenated(file, self)


class _Concatenated:
    """Slices of consecutive frames out of several datasets."""

    def __init__(self, file: Any, frames: LinkedFrames) -> None:
        self.file, self.frames = file, frames

    def __getitem__(self, key: tuple[slice, slice, slice]) -> np.ndarray:
        start, stop = key[0].start, key[0].stop
        detector = self.frames.shape[2:]
        out = np.empty((stop - start, *detector), self.frames.file_dtype)
        first = 0
        for name, count in self.frames.datasets:
            low, high = max(start, first), min(stop, first + count)
            if low < high:
                dataset = linked(self.file, name)
                if dataset.shape != (count, *detector) or dataset.dtype != out.dtype:
                    raise SourceError(f"{dataset.file.filename} has changed since it was opened; open the scan again.")
                out[low - start : high - start] = dataset[low - first : high - first]
            first += count
        return out


def is_master(file: Any) -> bool:
    """Whether an HDF5 file is the master of a Dectris detector's files."""
    data = file.get("entry/data")
    return hasattr(data, "keys") and bool(_numbered(data))


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
    parts = [(f"entry/data/{name}", linked(file, f"entry/data/{name}")) for name in _numbered(file["entry/data"])]
    kinds = {(part.shape[1:], part.dtype) for _, part in parts}
    if len(kinds) != 1 or any(part.ndim != 3 for _, part in parts):
        raise CountsError(
            f"{request.name} links arrays {[part.shape for _, part in parts]}; expected stacks of frames "
            "of one shape and dtype."
        )
    dtype = check_dtype(parts[0][1].dtype, request.name)
    detector = tuple(parts[0][1].shape[1:])
    n_frames = sum(part.shape[0] for _, part in parts)
    if n_frames == 0 or 0 in detector:
        raise CountsError(f"{request.name} links no frames; the acquisition wrote none, or they lie elsewhere.")
    findings = [f"{n_frames} frames of {detector[0]} x {detector[1]} pixels in {len(parts)} linked file(s)."]
    per_trigger, triggers = (int(_number(file, f"detectorSpecific/{name}") or 0) for name in ("nimages", "ntrigger"))
    announced = per_trigger * triggers
    if announced and announced != n_frames:
        findings.append(f"The header announces {announced} frames.")
    is_lines = per_trigger > 1 and triggers > 1 and announced == n_frames
    filling = fill_with_frames(
        request,
        n_frames,
        (triggers, per_trigger) if is_lines else None,
        "the master file (triggers, frames per trigger)",
    )
    source = LinkedFrames(
        str(request.path),
        (*filling.shape, *detector),
        dtype.str,
        flat=True,
        chunk=chunk_of(parts[0][1].chunks, filling.shape[1], flat=True),
        frames=filling.order,
        states=tuple(dict.fromkeys(state for _, part in parts for state in files_behind(request, part))),
        datasets=tuple((name, part.shape[0]) for name, part in parts),
        counter_depth=int(_number(file, "bit_depth_image") or 0) or None,
    )
    valid, about_pixels = _valid_pixels(file, parts, source)
    dwell = _number(file, "count_time")
    return VendorFile(
        path=str(request.path),
        reader=f"Dectris master (h5py {h5py.__version__})",
        source=filling.without_missing(source),
        acquisition={"dwell_time_s": dwell} if dwell else {},
        metadata=_metadata(file),
        findings=(*findings, *filling.findings, *narrowest(source.counter_depth, dtype), *about_pixels),
        valid_pixels=valid,
        valid_patterns=filling.valid_patterns,
        linked=tuple(path for path, _, _ in source.states),
    )


def _numbered(group: Any) -> list[str]:
    """Names data_000001, data_000002, ... in the order of their numbers."""
    matches = [re.fullmatch(r"data_(\d+)", name) for name in group]
    return [match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]


def _valid_pixels(file: Any, parts: list[tuple[str, Any]], source: LinkedFrames) -> tuple[np.ndarray | None, list[str]]:
    """Usable pixels (ky, kx) by the detector's mask and by the value that it writes in unusable ones.

    Gaps and masked pixels hold the largest number of the detector's bit depth in every frame. A saturated pixel can
    hold it as well, but hardly in the first, the middle and the last frame alike.
    """
    detector = source.shape[2:]
    unusable = np.zeros(detector, bool)
    findings = []
    for place in ("detectorSpecific/pixel_mask", "pixel_mask"):
        mask = file.get(f"{_DETECTOR}/{place}")
        if mask is None:
            continue
        if mask.shape == detector:
            unusable = np.asarray(mask) != 0
            findings.append(f"The detector's mask marks {np.count_nonzero(unusable) or 'no'} pixels as not valid.")
        else:
            findings.append(f"The detector's mask {mask.shape} does not fit its frames {detector} and is not used.")
        break
    if source.dtype.kind == "u":
        width = 8 * source.dtype.itemsize
        marks = [2**bits - 1 for bits in {width, min(source.counter_depth or width, width)}]
        values = np.array(marks, source.dtype)  # sorted below: a table of 64-bit values overflows in NumPy 2.0
        filled = [part for _, part in parts if len(part)]
        middle = filled[len(filled) // 2]
        frames = [filled[0][0], middle[len(middle) // 2], filled[-1][-1]]
        marked = np.all([np.isin(frame, values, kind="sort") for frame in frames], axis=0)
        if marked.any():
            more = np.count_nonzero(marked & ~unusable)
            findings.append(
                f"{np.count_nonzero(marked)} pixels hold the largest number of their type in the first, middle and "
                f"last frame, the detector's mark of a pixel without a count; {more} of them are not in its mask, "
                "and none is valid."
            )
            unusable |= marked
    return (~unusable if unusable.any() else None), findings


def _number(file: Any, name: str) -> float | None:
    """A positive number among the detector's facts, or None."""
    dataset = file.get(f"{_DETECTOR}/{name}")
    if dataset is None or getattr(dataset, "size", 0) != 1 or dataset.dtype.kind not in "uif":
        return None
    value = float(np.asarray(dataset[()]).reshape(-1)[0])
    return value if value > 0 else None


def _metadata(file: Any) -> dict[str, Any]:
    """Every single value under the instrument."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.size == 1:
            found[name] = plain(np.asarray(node[()]).reshape(-1)[0])

    if "entry/instrument" in file:
        file["entry/instrument"].visititems(visit)
    return found
