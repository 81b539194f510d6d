"""HDF5 files whose arrays carry their axes: EMD (NCEM, Prismatic, DE .de5), py4DSTEM, NeXus, or a bare array."""

from __future__ import annotations

from typing import Any

from ...errors import CountsError, InputError, SourceError
from ..axis_order import axis_order
from ..calibration_facts import clean_unit, facts_of_axes, is_reciprocal, length
from ..hdf5 import arrays, axis_of, dataset_source, missing_links
from ..vendor import Request, VendorFile, pick_frame, plain

# EMD 0.x files that store the scan first although their dims are numbered from 1.
_SCAN_FIRST = ("4DSTEM_experiment", "4DSTEM_simulation")


def open_labelled(request: Request, file: Any) -> VendorFile:
    """Open the one array of an HDF5 file that looks like a scan, with the axes that lie beside it."""
    import h5py

    found = arrays(file)
    # A stack of frames counts only where there is no scan, and virtual images are stacks of frames.
    stacks = found if request.scan_shape is not None else {}
    whole = {place: d for place, d in found.items() if d.ndim >= 4} or stacks
    if not whole:
        missing = _dangling(file)
        if missing:
            raise SourceError(f"{request.name} links {', '.join(missing[:3])}, which is not beside it; put it there.")
        listed = ", ".join(f"{place} {d.shape}" for place, d in list(found.items())[:3])
        raise CountsError(
            f"{request.name} holds no array (y, x, ky, kx)"
            + (f"; it has {listed}, for which give scan_shape." if listed else ": it is not a 4D-STEM scan.")
        )
    findings: list[str] = []
    leading: tuple[int, ...] = ()
    if len(whole) > 1:
        index = pick_frame(request, len(whole))
        place, dataset = list(whole.items())[index]
        findings.append(f"Scan {index} of {len(whole)} in the file: {place}.")
        if dataset.ndim == 5:
            raise InputError(f"{request.name} holds several stacks of scans; save one of them alone.")
    else:
        ((place, dataset),) = whole.items()
        findings.append(f"Counts from {place}.")
        if dataset.ndim == 5:
            leading = (pick_frame(request, dataset.shape[0]),)
            findings.append(f"Scan {leading[0]} of a stack of {dataset.shape[0]}.")
        else:
            request.refuse_frame("an HDF5 file")
    axes = _emd_axes(dataset) or _nexus_axes(dataset) or [{"name": dim.label} for dim in dataset.dims]
    from_the_fastest = _counts_dims_from_the_fastest(file, dataset, axes) and request.detector_first is not False
    if from_the_fastest:
        if dataset.ndim == 5:
            raise SourceError(
                f"{request.name} is a stack of scans in EMD 0.x, which numbers dims from the fastest one; save one "
                "scan alone."
            )
        axes = axes[::-1]
        findings.append("EMD 0.x stores the detector first; each pattern is gathered from all over the array.")
    lies = axis_order(request, axes, frames=dataset.ndim < 4, known=from_the_fastest)
    order = tuple(reversed(range(dataset.ndim))) if from_the_fastest else lies.order
    findings += lies.findings
    is_nexus = "signal" in dataset.parent.attrs
    facts = facts_of_axes(lies.axes, None, unit_scale_is_unset=is_nexus)
    scan = dataset_source(request, dataset, leading, order, place=place)
    return VendorFile(
        path=str(request.path),
        reader=f"HDF5 (h5py {h5py.__version__})",
        source=scan.source,
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        metadata=plain({"dataset": place, "attributes": dict(dataset.attrs)}),
        findings=(*findings, *scan.findings, *facts.findings),
        valid_patterns=scan.valid_patterns,
        linked=scan.linked,
        doubts=lies.doubts,
        order_is_known=lies.is_known,
    )


def _dangling(file: Any) -> list[str]:
    """Files that any group links and that are not there."""
    import h5py

    names = missing_links(file)
    file.visititems(lambda _, node: names.extend(missing_links(node)) if isinstance(node, h5py.Group) else None)
    return names


def _counts_dims_from_the_fastest(file: Any, dataset: Any, axes: list[dict[str, Any]]) -> bool:
    """Whether an array of EMD 0.x is stored detector first, as its definition has it and rosettasciio writes it.

    Programs disagree about that: what the units of the axes say goes first, then the names of those that store the
    scan first. EMD 1.0 numbers the dims from 0 and stores the scan first.
    """
    group = dataset.parent
    if "emd_group_type" not in group.attrs or "dim0" in group or "dim1" not in group:
        return False
    units = [clean_unit(axis.get("units", "")) for axis in axes]
    if all(length(1.0, unit) for unit in units[:-2]) and all(map(is_reciprocal, units[-2:])):
        return False
    if all(map(is_reciprocal, units[:2])) and all(length(1.0, unit) for unit in units[2:]):
        return True
    return not any(name in file for name in _SCAN_FIRST) and dataset.name.rsplit("/", 1)[-1] != "datacube"


def _emd_axes(dataset: Any) -> list[dict[str, Any]]:
    """Scale and unit of each dim of an EMD array, whose vectors are numbered from 1 (EMD 0.x) or from 0 (EMD 1.0)."""
    group = dataset.parent
    first = 0 if "dim0" in group else 1
    if f"dim{first}" not in group:
        return []
    vectors = [group.get(f"dim{number}") for number in range(first, first + dataset.ndim)]
    return [axis_of(vector) | {"name": _text(getattr(vector, "attrs", {}).get("name", ""))} for vector in vectors]


def _nexus_axes(dataset: Any) -> list[dict[str, Any]]:
    """Scale and unit of each dim of the signal of an NXdata group, from the vectors that it names."""
    group = dataset.parent
    names = group.attrs.get("axes")
    if names is None or isinstance(names, str | bytes) or len(names) != dataset.ndim:
        return []
    texts = [_text(name) for name in names]
    return [axis_of(group.get(name)) | {"name": name} if name != "." else {} for name in texts]


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
