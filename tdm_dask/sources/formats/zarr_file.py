"""Zarr stores that another program wrote: HyperSpy's .zspy, abTEM's, and any group with one array (y, x, ky, kx)."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CountsError, SourceError, TdmError
from ...reading.file_state import FileState, file_state
from ..array_scan import Located, about_chunks, chunked_source, fill_array
from ..axis_order import axis_order
from ..calibration_facts import facts_of_axes
from ..rosettasciio import zspy_reader
from ..stacks import StackSource
from ..vendor import Request, VendorFile, check_dtype, pick_frame, plain, rosettasciio_reader
from .hspy import open_signal

# What a folder has at its top if it is a zarr group or array.
MARKS = ("zarr.json", ".zgroup", ".zarray")
# abTEM's arrays of what a detector sees.
_PATTERNS = ("DiffractionPatterns", "IndexedDiffractionPatterns")


@dataclass(frozen=True)
class ZarrSource(StackSource):
    """Counts in one array of a zarr store, a folder or a zip file, opened for each block.

    Parameters
    ----------
    array : str
        Path of the array inside the store.
    """

    array: str = ""

    @contextmanager
    def opened(self) -> Iterator[Any]:
        with open_zarr(Path(self.path)) as root:
            found = root[self.array] if self.array else root
            self.check(found.shape[len(self.leading) :], found.dtype)
            yield found


@contextmanager
def open_zarr(path: Path) -> Iterator[Any]:
    """The group or array at the top of a zarr store, read-only; errors as sentences."""
    import zarr
    from zarr.storage import LocalStore, ZipStore

    store: Any = None
    try:
        store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
        yield zarr.open(store, mode="r")
    except TdmError:
        raise
    except (*_OF_DAMAGED_STORES, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{path.name} is not a zarr store that can be read ({reason}); copy it again.") from error
    finally:
        if store is not None:
            store.close()


# What zarr and its codecs raise where metadata or a chunk is damaged.
_OF_DAMAGED_STORES = (
    *(OSError, KeyError, ValueError, TypeError, AttributeError, IndexError),
    *(RuntimeError, MemoryError),
)


def is_zarr(path: Path) -> bool:
    """Whether a folder holds a zarr store."""
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


def open_zarr_scan(request: Request) -> VendorFile:
    """Open the 4D-STEM scan of a zarr store."""
    import zarr

    request.refuse_layout("a zarr store")
    with open_zarr(request.path) as root:
        if isinstance(root, zarr.Group) and "Experiments" in root:
            return _open_zspy(request, root)
        return _open_group(request, root)


def _open_zspy(request: Request, root: Any) -> VendorFile:
    experiments = {name: root[f"Experiments/{name}"] for name in root["Experiments"]}
    return open_signal(
        request,
        experiments,
        zspy_reader(root),
        rosettasciio_reader("zspy"),
        lambda array, leading, order, line: _locate(request, array, leading, order, line, "its single axis"),
    )


def _open_group(request: Request, root: Any) -> VendorFile:
    """The one array that looks like a scan, with what abTEM or xarray write about its axes."""
    import zarr

    found = [root] if isinstance(root, zarr.Array) else list(_arrays(root))
    whole = [a for a in found if a.ndim in (4, 5)]
    whole = whole or ([a for a in found if a.ndim == 3] if request.scan_shape is not None else [])
    if not whole:
        shapes = ", ".join(f"{a.name} {a.shape}" for a in found[:3])
        raise CountsError(
            f"{request.name} holds no array (y, x, ky, kx)"
            + (f"; it has {shapes}." if shapes else ": it has no array of numbers.")
        )
    findings = []
    index = 0
    if len(whole) > 1:
        index = pick_frame(request, len(whole), "arrays")
        findings.append(f"Array {index} of {len(whole)}: {whole[index].name}.")
    array = whole[index]
    leading: tuple[int, ...] = ()
    if array.ndim == 5:
        if len(whole) > 1:
            raise CountsError(f"{request.name} holds several stacks of scans; save one of them alone.")
        leading = (pick_frame(request, array.shape[0]),)
        findings.append(f"Scan {leading[0]} of a stack of {array.shape[0]}.")
    elif len(whole) == 1:
        request.refuse_frame("a zarr store")
    order: tuple[int, ...] = ()
    energy = None
    acquisition: dict[str, float] = {}
    number = array.basename.removeprefix("array") if array.basename else ""
    described = _plain_tuples(dict(root.attrs).get(f"kwargs{number}")) if number.isdigit() else None
    if isinstance(described, dict):
        kind = str(root.attrs.get(f"type{number}"))
        if kind not in _PATTERNS or described.get("fftshift") is False:
            raise CountsError(
                f"{request.name} holds abTEM's {kind}"
                + (" with the optic axis in a corner" if kind in _PATTERNS else "")
                + "; expected DiffractionPatterns with the optic axis in the middle."
            )
        # abTEM puts x before y, on the scan and on the detector.
        order = (1, 0, 3, 2) if array.ndim - len(leading) == 4 else (0, 2, 1)
        axes = _abtem_axes(described)[-array.ndim :]
        axes = [axes[len(leading) + i] for i in order] if len(axes) == array.ndim else [{}] * 4
        energy = described.get("metadata", {}).get("energy")
        energy = float(energy) if isinstance(energy, int | float) and energy > 0 else None
        findings.append("abTEM stores x before y, so both pairs of axes are exchanged.")
        request.refuse_order("abTEM's patterns")
    else:
        axes = _named_axes(root, array)
    if energy is not None:
        acquisition["energy_eV"] = energy
    four = axes[-4:] if len(axes) >= 4 else [{}, {}, *axes[-2:]]
    four = four if len(four) == 4 else [{}] * 4
    lies = axis_order(request, four, frames=array.ndim == 3, known=bool(order))
    findings += lies.findings
    facts = facts_of_axes(lies.axes, energy)
    scan = _locate(request, array, leading, order or lies.order)
    return VendorFile(
        path=str(request.path),
        reader=f"zarr {zarr.__version__}",
        source=scan.source,
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        acquisition=acquisition,
        metadata=plain({"array": array.name, "attributes": {**dict(root.attrs), **dict(array.attrs)}}),
        findings=(*findings, *scan.findings, *facts.findings),
        valid_patterns=scan.valid_patterns,
        linked=scan.linked,
        doubts=lies.doubts,
        order_is_known=lies.is_known,
    )


def _arrays(group: Any) -> Iterator[Any]:
    """Every numeric array of three to five dims below a group."""
    import zarr

    for _, node in sorted(group.members(max_depth=None)):
        if isinstance(node, zarr.Array) and node.ndim in (3, 4, 5) and node.dtype.kind in "uifb":
            yield node


def _locate(
    request: Request,
    array: Any,
    leading: tuple[int, ...],
    order: tuple[int, ...],
    declared: tuple[int, int] | None = None,
    declared_by: str = "",
) -> Located:
    dtype = check_dtype(array.dtype, request.name)
    filling = fill_array(request, array.shape, leading, order, declared, declared_by)
    # Of a shard, its inner chunks are decompressed one by one; a whole shard at once would be held twice.
    chunks = array.chunks[len(leading) :]
    states = _metadata_states(request.path, array.path)
    source = chunked_source(
        ZarrSource, request, filling, array.shape, dtype, chunks, leading, order, states, array=array.path
    )
    linked = tuple(path for path, _, _ in states)
    findings = (*filling.findings, *about_chunks(math.prod(chunks) * dtype.itemsize))
    return Located(filling.without_missing(source), findings, filling.valid_patterns, linked)


def _metadata_states(store: Path, array: str) -> tuple[FileState, ...]:
    """The array's own metadata file, which a new array of the same name replaces; a folder's time does not tell."""
    files = (store / array / mark for mark in MARKS)
    return tuple(file_state(file) for file in files if file.is_file()) if store.is_dir() else ()


def _plain_tuples(value: Any) -> Any:
    """abTEM's way to keep tuples in JSON undone."""
    if isinstance(value, dict):
        if value.get("_type") == "tuple":
            return tuple(_plain_tuples(item) for item in value.get("_value", ()))
        return {key: _plain_tuples(item) for key, item in value.items()}
    return [_plain_tuples(item) for item in value] if isinstance(value, list) else value


def _abtem_axes(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Scale and unit of each of abTEM's axes: described for the scan, a sampling for the detector."""
    ensemble = described.get("ensemble_axes_metadata")
    axes = [
        {"scale": axis.get("sampling"), "units": axis.get("units", "")} if isinstance(axis, dict) else {}
        for axis in (ensemble if isinstance(ensemble, list | tuple) else ())
    ]
    sampling = described.get("sampling")
    if not isinstance(sampling, list | tuple) or len(sampling) != 2:
        return [*axes, {}, {}]
    return [*axes, *({"scale": step, "units": "1/Å"} for step in sampling)]


def _named_axes(root: Any, array: Any) -> list[dict[str, Any]]:
    """Scale and unit of each dim from the coordinates of the same name, as xarray writes them."""
    import zarr

    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not isinstance(names, list | tuple) or len(names) != array.ndim or not isinstance(root, zarr.Group):
        return [{}] * 4
    parent = array.path.rpartition("/")[0]
    axes: list[dict[str, Any]] = []
    for name in names:
        vector = root.get(f"{parent}/{name}".lstrip("/")) if name else None
        if not isinstance(vector, zarr.Array) or vector.ndim != 1 or vector.size < 2 or vector.dtype.kind not in "uif":
            axes.append({"name": name})
            continue
        first, second = np.asarray(vector[:2], np.float64)
        axes.append({"name": name, "scale": float(second - first), "units": vector.attrs.get("units", "")})
    return axes
