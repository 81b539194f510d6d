"""HyperSpy's own files: one layout of groups, in HDF5 (.hspy) and in zarr (.zspy)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...errors import CountsError, InputError, SourceError
from ..array_scan import Located
from ..axis_order import axis_order
from ..calibration_facts import acquisition_facts, facts_of_axes
from ..hdf5 import dataset_source
from ..rosettasciio import group_to_dict, hspy_reader
from ..vendor import Request, VendorFile, check_dtype, pick_frame, plain, rosettasciio_reader

# From an array, the indices of the scan in a stack, the order of its dims and the scan shape of its frames to a scan.
_Locate = Callable[[Any, tuple[int, ...], tuple[int, ...], tuple[int, int] | None], Located]


def is_hspy(file: Any) -> bool:
    """Whether an HDF5 file is one of HyperSpy's."""
    return str(file.attrs.get("file_format", "")).lower() == "hyperspy" or "Experiments" in file


def open_hspy(request: Request, file: Any) -> VendorFile:
    """Open a HyperSpy file; only its headers are read."""
    return open_signal(
        request,
        file.get("Experiments", {}),
        hspy_reader(file),
        rosettasciio_reader("hspy"),
        lambda dataset, leading, order, line: dataset_source(request, dataset, leading, order, line, "its single axis"),
    )


def open_signal(request: Request, experiments: Any, reader: Any, reader_name: str, locate: _Locate) -> VendorFile:
    """Open the scan of HyperSpy's group of signals.

    Parameters
    ----------
    request : Request
    experiments : group of groups, each with "data"
    reader : rosettasciio's reader of such groups
        Of which only the part that reads metadata is used.
    reader_name : str
    locate
        From an array to a scan.
    """
    groups = [group for group in experiments.values() if "data" in group]
    if not groups:
        raise SourceError(f"{request.name} is a HyperSpy file without a signal; save it again.")
    scans, stacks = ([group for group in groups if group["data"].ndim in dims] for dims in ((4, 5), (3,)))
    fitting = scans or stacks or groups
    findings = []
    if len(fitting) > 1:
        group = fitting[pick_frame(request, len(fitting), "signals")]
        findings.append(f'Signal "{group.name.rsplit("/", 1)[-1]}" of {len(fitting)}.')
        if group["data"].ndim == 5:
            raise InputError(f"{request.name} holds several signals, of which this is a stack of scans; save it alone.")
    else:
        group = fitting[0]
        if group["data"].ndim != 5:
            request.refuse_frame("a HyperSpy file")
    metadata, original = (
        group_to_dict(reader, group[key]) if key in group else {} for key in ("metadata", "original_metadata")
    )
    dataset = group["data"]
    check_dtype(dataset.dtype, request.name)
    axes = _axes(request.name, group, reader)
    navigation = [axis for axis in axes if axis.get("navigate")]
    signal = [axis for axis in axes if not axis.get("navigate")]
    if len(signal) != 2 or len(navigation) not in (1, 2, 3):
        raise CountsError(
            f"{request.name} has {len(navigation)} navigation and {len(signal)} signal dimensions; "
            "expected two of each: "
            "in HyperSpy, use signal.as_signal2D or transpose(signal_axes=2) and save it again."
        )
    leading: tuple[int, ...] = ()
    if dataset.ndim == 5:
        leading = (pick_frame(request, dataset.shape[0]),)
        findings.append(f"Scan {leading[0]} of a stack of {dataset.shape[0]}.")
    flat = dataset.ndim == 3
    if flat and any(axis.get("navigate") for axis in axes[-2:]):
        raise CountsError(
            f"{request.name} is stored with its navigation axis last; expected (frame, ky, kx): save it from HyperSpy "
            "again."
        )
    if request.detector_first is None and all(axis.get("navigate") for axis in axes[-2:]):
        request = replace(request, detector_first=True)
    lies = axis_order(request, axes, frames=flat)
    findings += lies.findings
    line = (1, dataset.shape[0]) if flat and request.scan_shape is None else None
    if line is not None:
        findings.append(
            f"The scan has one axis of {dataset.shape[0]} positions, taken as one line; give scan_shape if it is more."
        )
    acquisition = acquisition_facts(metadata)
    four = [{}, navigation[0], *signal] if flat else lies.axes
    facts = facts_of_axes(four, acquisition.get("energy_eV"))
    scan = locate(dataset, leading, lies.order, line)
    return VendorFile(
        path=str(request.path),
        reader=reader_name,
        source=scan.source,
        scan_step=facts.scan_step,
        pixel_size=facts.pixel_size,
        acquisition=acquisition,
        metadata=plain({"metadata": metadata, "original_metadata": original}),
        findings=(*findings, *scan.findings, *facts.findings),
        valid_patterns=scan.valid_patterns,
        linked=scan.linked,
        doubts=lies.doubts,
        order_is_known=lies.is_known,
    )


def _axes(name: str, group: Any, reader: Any) -> list[dict[str, Any]]:
    """The axes in array order, which HyperSpy keeps one group to an axis."""
    axes = [group_to_dict(reader, group[f"axis-{i}"]) for i in range(group["data"].ndim) if f"axis-{i}" in group]
    if len(axes) != group["data"].ndim:
        raise SourceError(f"{name} lacks the description of some axes; save it again with a newer HyperSpy.")
    return axes
