"""HDF5 files as sources of counts: opened anew for each block, whatever links them to other files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SourceError, TdmError
from ..reading.blocks import RawFrames, Source
from ..reading.file_state import FileState, file_state
from .array_scan import Located, about_chunks, chunked_source, detector_of, fill_array, scan_dims
from .axis_order import DETECTOR_FIRST
from .stacks import DetectorFirst, Exchanged, JoinedFrames, StackSource
from .vendor import Request, check_dtype, storage_dtype

MAGIC = b"\x89HDF\r\n\x1a\n"

# Where (y, x, ky, kx) are in arrays (ky, kx, y, x) and (kx, ky, x, y).
_DETECTOR_FIRST = (DETECTOR_FIRST, (3, 2, 1, 0))

# Deeper groups than these are no measurement, and may be a link that leads back.
_DEEPEST = 16


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
            self.check(dataset.shape[len(self.leading) :], dataset.dtype)
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
    except TdmError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, MemoryError) as error:
        # h5py raises any of these where a damaged file contradicts itself.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{path.name} cannot be read ({reason}); it is damaged, copy it again.") from error
    finally:
        file.close()


def arrays(file: Any) -> dict[str, Any]:
    """Every numeric array of three to five dims in a file by its place, links to other files included, each once."""
    import h5py

    found: dict[str, Any] = {}
    seen: set[tuple[int, int]] = set()

    def visit(group: Any, above: str, depth: int) -> None:
        for name in group:
            node = group.get(name)
            if node is None or not isinstance(node, h5py.Dataset | h5py.Group):
                continue
            info = h5py.h5o.get_info(node.id)
            if (info.fileno, info.addr) in seen:
                continue
            seen.add((info.fileno, info.addr))
            if isinstance(node, h5py.Dataset):
                if node.ndim in (3, 4, 5) and node.dtype.kind in "uifb":
                    found[f"{above}/{name}"] = node
            elif depth < _DEEPEST:
                visit(node, f"{above}/{name}", depth + 1)

    visit(file, "", 0)
    return found


def missing_links(group: Any) -> list[str]:
    """Files that a group links and that are not there."""
    names = []
    for name in group:
        link = group.get(name, getlink=True)
        if hasattr(link, "filename") and group.get(name) is None:
            names.append(link.filename)
    return names


def dataset_source(
    request: Request,
    dataset: Any,
    leading: tuple[int, ...] = (),
    order: tuple[int, ...] = (),
    declared: tuple[int, int] | None = None,
    declared_by: str = "",
    place: str = "",
) -> Located:
    """The source of a dataset of frames or of a whole scan.

    Parameters
    ----------
    request : Request
    dataset : h5py.Dataset
    leading : tuple of int, default ()
        Indices that pick the scan out of a stack.
    order : tuple of int, default ()
        Where (y, x, ky, kx) or (frame, ky, kx) are among the other dims; as they stand, by default.
    declared, declared_by
        The scan shape that the file gives away for a stack of frames, and what gave it.
    place : str, optional
        Where the dataset is in the file that was asked for, if it may be a link.
    """
    dtype = check_dtype(dataset.dtype, request.name)
    filling = fill_array(request, dataset.shape, leading, order, declared, declared_by)
    shape = scan_dims(dataset.shape, leading, order)
    detector = detector_of(shape)
    states = files_behind(request, dataset)
    linked = tuple(path for path, _, _ in states)
    source: Source
    sentences = list(filling.findings)
    if dataset.external and (len(states) > 1 or order):
        raise SourceError(f"{request.name} keeps its counts in several raw files; write them into one array.")
    offset = None if dataset.is_virtual else dataset.external[0][1] if dataset.external else dataset.id.get_offset()
    if offset is not None and not order:
        # Not chunked: plain frames, which need no HDF5 library (and not its lock) to be read.
        offset += sum(leading) * math.prod(shape) * dtype.itemsize
        stored = storage_dtype(dtype)
        if states:
            line = RawFrames(linked[0], (1, math.prod(shape[:-2]), *detector), stored.str, offset)
            source = JoinedFrames((line,), (*filling.shape, *detector), states, filling.order)
        else:
            source = filling.raw_frames(str(request.path), detector, stored, offset=offset)
    elif offset is not None and order in _DETECTOR_FIRST and not states:
        offset += sum(leading) * math.prod(shape) * dtype.itemsize
        dtype = storage_dtype(dtype)
        ny, nx, nky, nkx = (*filling.shape, *detector)
        source = (
            DetectorFirst(str(request.path), (ny, nx, nky, nkx), dtype.str, offset)
            if order == DETECTOR_FIRST
            else Exchanged(DetectorFirst(str(request.path), (nx, ny, nkx, nky), dtype.str, offset))
        )
    else:
        chunks = None if dataset.chunks is None else dataset.chunks[len(leading) :]
        sentences += about_chunks(math.prod(chunks or ()) * dtype.itemsize)
        source = chunked_source(
            Hdf5Source,
            request,
            filling,
            dataset.shape,
            dtype,
            chunks,
            leading,
            order,
            states,
            dataset=place or dataset.name,
        )
    return Located(filling.without_missing(source), tuple(sentences), filling.valid_patterns, linked)


def files_behind(request: Request, dataset: Any) -> tuple[FileState, ...]:
    """The other files that hold a dataset's counts: linked, virtual or external ones; all must be there."""
    names = []
    if dataset.file.filename != str(request.path):
        names.append(Path(dataset.file.filename))
    folder = Path(dataset.file.filename).parent
    if dataset.is_virtual:
        # "." is the file itself; a name with a counter in it stands for as many files as there are.
        named = [source.file_name for source in dataset.virtual_sources()]
        names += [folder / name for name in named if name != "." and "%" not in name]
    names += [folder / name for name, _, _ in dataset.external or ()]
    states = []
    for name in dict.fromkeys(names):
        if not name.is_file():
            raise SourceError(f"{request.name} links {name.name}, which is not beside it; put it there.")
        states.append(file_state(name))
    return tuple(states)


def axis_of(vector: Any) -> dict[str, Any]:
    """Scale and unit of an axis from the vector of its values, all of them or the first two; {} if it has no step."""
    if vector is None or getattr(vector, "ndim", 0) != 1 or vector.size < 2 or vector.dtype.kind not in "uif":
        return {}
    start, second, last = (float(vector[i]) for i in (0, 1, vector.size - 1))
    even = vector.size == 2 or math.isclose(start + (vector.size - 1) * (second - start), last, rel_tol=1e-3)
    return {"scale": second - start if even else None, "units": vector.attrs.get("units", "")}
