"""What is in a vendor file or a store, for people and for machines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from .axes import DIMS, LONG_NAMES, step_of, unit_of
from .session import Output
from .words import bytes_text

FACTS = {
    "energy_eV": ("beam energy", "keV", 1e-3),
    "semi_angle_mrad": ("semi-angle", "mrad", 1.0),
    "rotation_deg": ("rotation", "°", 1.0),
    "dwell_time_s": ("dwell time", "ms", 1e3),
    "beam_current_A": ("beam current", "pA", 1e12),
    "counts_per_electron": ("counts per electron", "", 1.0),
    "electrons_per_probe": ("electrons per probe", "", 1.0),
    "electrons_per_square_angstrom": ("dose", "electrons/Å²", 1.0),
}


def facts_text(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the experiment, with units.

    Examples
    --------
    >>> facts_text({"energy_eV": 200e3, "reader": "merlin"})
    [('beam energy', '200 keV')]
    """
    return [
        (name, f"{float(attributes[key]) * scale:.5g} {unit}".rstrip())
        for key, (name, unit, scale) in FACTS.items()
        if key in attributes
    ]


def describe(path: str | Path, options: Mapping[str, Any]) -> Output:
    """Describe a vendor file or a store; only headers are read.

    Parameters
    ----------
    path : path
    options : mapping
        How to read a vendor file: the keyword arguments of `tdm_dask.sources.open_vendor`; None stands for
        not given.
    """
    import tdm_dask

    # 0 frames to skip say where the scan begins.
    given = {key: value for key, value in options.items() if value or (key == "skip_first" and value is not None)}
    from .store import is_store, stored_findings

    if is_store(path):
        counts = tdm_dask.open(path)
        return _output(path, "store", counts, stored_findings(path), counts.attrs, None)
    from .sources import open_vendor

    file = open_vendor(path, **given)
    counts = tdm_dask.open(path, **given)
    command = _command(Path(path), given, file.scan_step is None, unit_of(counts, "kx") == "px")
    findings = [*file.findings, f"read by {file.reader}"]
    return _output(path, "vendor file", counts, findings, file.acquisition, command)


def _command(path: Path, given: Mapping[str, Any], needs_step: bool, needs_angle: bool) -> list[str]:
    store = f"{path.stem}.zarr"
    words = ["tdm", "convert", str(path), store]
    for key, value in given.items():
        words.append(f"--{key.replace('_', '-')}")
        if value is not True:
            words.append("x".join(map(str, value)) if isinstance(value, tuple) else str(value))
    if needs_step:
        words += ["--scan-step", "STEP Å"]
    commands = [shlex.join(words)]
    if needs_angle:
        commands.append(shlex.join(["tdm", "calibrate", store, "--semi-angle", "ANGLE mrad"]))
    return commands


def _output(
    path: str | Path,
    kind: str,
    counts: xr.DataArray,
    findings: list[str],
    attributes: Mapping[str, Any],
    commands: list[str] | None,
) -> Output:
    axes = [
        {
            "dim": dim,
            "name": LONG_NAMES[dim],
            "size": counts.sizes[dim],
            "first": float(counts[dim].values[0]),
            "step": step_of(counts, dim),
            "unit": unit_of(counts, dim),
        }
        for dim in DIMS
    ]
    facts = facts_text(attributes)
    shape = " × ".join(map(str, counts.shape))
    lines = [
        f"{path}: {kind}",
        f"  counts: {shape} {counts.dtype}, {bytes_text(counts.nbytes)} uncompressed",
        *(_axis_line(axis) for axis in axes),
        *(f"  {name}: {value}" for name, value in facts),
        *(f"  {finding}" for finding in findings),
    ]
    data: dict[str, Any] = {
        "path": str(path),
        "kind": kind,
        "shape": list(counts.shape),
        "dims": list(DIMS),
        "dtype": str(counts.dtype),
        "bytes": counts.nbytes,
        "axes": axes,
        "acquisition": {key: attributes[key] for key in FACTS if key in attributes},
        "findings": findings,
    }
    history = json.loads(counts.attrs.get("calibration_history", "[]"))
    if history:
        data["calibration_history"] = history
    if commands:
        lines += ["To convert it:", *(f"  {command}" for command in commands)]
        data["commands"] = commands
    return Output("\n".join(lines), data)


def _axis_line(axis: Mapping[str, Any]) -> str:
    last = axis["first"] + axis["step"] * (axis["size"] - 1)
    unit = "Å" if axis["unit"] == "angstrom" else axis["unit"]
    text = f"  {axis['dim']:<3} {axis['name']:<12} {axis['size']:>5}"
    if axis["unit"] == "px":
        return f"{text}  not calibrated"
    return f"{text}  from {axis['first']:.4g} to {last:.4g} {unit} in steps of {axis['step']:.4g}"
