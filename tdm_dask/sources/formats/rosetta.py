"""Every other format that rosettasciio opens lazily."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ...errors import CountsError, SourceError
from ..array_scan import scan_dims
from ..axis_order import axis_order
from ..calibration_facts import acquisition_facts, facts_of_axes
from ..scan_shape import fill_with_frames
from ..stacks import StackSource, chunk_of
from ..vendor import Request, VendorFile, check_dtype, pick_frame, plain, rosettasciio_reader

# What can hold a scan of patterns, of all that rosettasciio reads.
EXTENSIONS = ("mrcz", "rpl", "tif", "tiff")

# Bytes of a chunk: enough that a block is a few chunks, few enough that part of a line is not a whole scan.
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class RosettaSource(StackSource):
    """Counts that rosettasciio opens lazily, inside the task that reads them.

    Parameters
    ----------
    plugin : str
        Module of the reader, such as "rsciio.mrc".
    signal : int
        Which of the file's datasets.
    chunks : tuple of int or None
        Chunks that keep the detector whole; None where the reader takes none.
    """

    plugin: str = ""
    signal: int = 0
    chunks: tuple[int, ...] | None = None

    @contextmanager
    def opened(self) -> Iterator[Any]:
        try:
            modified = os.stat(self.path).st_mtime_ns
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read ({error.strerror}); check the path.") from None
        array = _lazy_array(self.path, modified, self.plugin, self.signal, self.chunks)
        self.check(array.shape[len(self.leading) :], array.dtype)
        yield array

    @staticmethod
    def load(selection: Any) -> np.ndarray:
        # One thread: the task that reads is itself one of many.
        return np.asarray(selection.compute(scheduler="synchronous"))


@lru_cache(maxsize=8)
def _lazy_array(path: str, modified: int, plugin: str, signal: int, chunks: tuple[int, ...] | None) -> Any:
    """One dataset of a file as a dask array, kept for the next block of the same, unchanged file."""
    return _read_lazily(path, plugin, chunks)[signal]["data"]


def _read_lazily(path: str, plugin: str, chunks: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
    reader = importlib.import_module(plugin).file_reader
    keywords: dict[str, Any] = {"chunks": chunks} if chunks is not None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(reader(path, lazy=True, **keywords))


def _plugins(extension: str) -> list[str]:
    """Modules of the readers for an extension."""
    from rsciio import IO_PLUGINS

    return [
        plugin["api"] for plugin in IO_PLUGINS if extension in {known.lower() for known in plugin["file_extensions"]}
    ]


def open_with_rosettasciio(request: Request) -> VendorFile:
    """Open a file by the first of rosettasciio's readers that can read it lazily."""
    request.refuse_layout("a file with a header")
    path, reasons = str(request.path), []
    for plugin in _plugins(request.path.suffix[1:].lower()):
        try:
            signals = _read_lazily(path, plugin)
        except ModuleNotFoundError as error:
            reasons.append(f"{plugin} needs {error.name}")
        except NotImplementedError:
            reasons.append(f"{plugin} cannot read it block by block")
        except Exception as error:
            reasons.append(f"{plugin}: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            return _vendor_file(request, plugin, signals)
    raise SourceError(f"{request.name} cannot be opened ({'; '.join(reasons) or 'no reader for it'}).")


def _vendor_file(request: Request, plugin: str, signals: list[dict[str, Any]]) -> VendorFile:
    dims = [signal["data"].ndim for signal in signals]
    candidates = [i for i, n in enumerate(dims) if n in (4, 5)]
    if not candidates:
        candidates = [i for i, n in enumerate(dims) if n == 3]
    if not candidates:
        raise CountsError(f"{request.name} holds arrays of {dims} dimensions; a scan has four: (y, x, ky, kx).")
    findings: list[str] = []
    leading: tuple[int, ...] = ()
    if len(candidates) > 1:
        index = candidates[pick_frame(request, len(candidates), "datasets")]
        title = signals[index]["metadata"].get("General", {}).get("title", "")
        findings.append(f'Dataset {candidates.index(index)} of {len(candidates)}: "{title}".')
    else:
        index = candidates[0]
        if dims[index] != 5:
            request.refuse_frame("a single scan")
    signal = signals[index]
    data, axes = signal["data"], signal["axes"]
    if dims[index] == 5:
        if len(candidates) > 1:
            raise CountsError(f"{request.name} holds several stacks of scans; save one of them alone.")
        leading = (pick_frame(request, data.shape[0]),)
        findings.append(f"Scan {leading[0]} of a stack of {data.shape[0]}.")
    dtype = check_dtype(data.dtype, request.name)
    if 0 in data.shape:
        raise CountsError(f"{request.name} holds an array of shape {data.shape}; every dim needs at least one element.")
    flat = data.ndim == 3
    lies = axis_order(request, axes, frames=flat)
    order = lies.order
    findings += lies.findings
    shape: Any = scan_dims(data.shape, leading, order)
    filling = None
    if flat:
        filling = fill_with_frames(request, shape[0])
        findings += filling.findings
        shape = (*filling.shape, *shape[1:])
    else:
        request.refuse_other_shape(shape[:2])
        request.refuse_trim("a scan of four dimensions")
    metadata = signal["metadata"]
    acquisition = acquisition_facts(metadata)
    # The unit of the beam current differs between rosettasciio's readers.
    acquisition.pop("beam_current_A", None)
    facts = facts_of_axes(lies.axes, acquisition.get("energy_eV"), unit_scale_is_unset=True)
    chunks = _whole_patterns(plugin, data) if len(signals) == 1 and not order else None
    source = RosettaSource(
        str(request.path),
        shape,
        dtype.str,
        leading,
        flat,
        chunk_of((chunks or data.chunksize)[len(leading) :], shape[1], flat, order or (0, 1)),
        order,
        frames=None if filling is None else filling.order,
        plugin=plugin,
        signal=index,
        chunks=chunks,
    )
    # Once with the chunks of the reads to come, so that a reader which cannot do it fails here.
    with source.opened():
        pass
    return VendorFile(
        path=str(request.path),
        reader=rosettasciio_reader(plugin.removeprefix("rsciio.")),
        source=source if filling is None else filling.without_missing(source),
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        acquisition=acquisition,
        metadata=plain({"metadata": metadata, "original_metadata": signal.get("original_metadata", {})}),
        findings=(*findings, *facts.findings),
        valid_patterns=None if filling is None else filling.valid_patterns,
        doubts=lies.doubts,
        order_is_known=lies.is_known,
    )


def _whole_patterns(plugin: str, data: Any) -> tuple[int, ...] | None:
    """Chunks of whole patterns for a reader that takes chunks; its own choice may cut the detector."""
    if "chunks" not in inspect.signature(importlib.import_module(plugin).file_reader).parameters:
        return None
    patterns = max(_CHUNK_BYTES // (math.prod(data.shape[-2:]) * data.dtype.itemsize), 1)
    return (*(1,) * (data.ndim - 3), min(patterns, data.shape[-3]), *data.shape[-2:])
