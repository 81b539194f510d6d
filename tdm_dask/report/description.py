"""What is in a vendor file, a store or an array, for people and for machines."""

from __future__ import annotations

import html
import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from zarr.storage import LocalStore

from ..axes import DESCAN, DETECTOR, DIMS, FINDINGS, LONG_NAMES, VALID_PATTERNS, VALID_PIXELS, step_of, unit_of
from ..reading.blocks import Crop, InMemory, Shards, Source, ZarrArray
from ..reading.lazy import source_of
from ..reading.thinned import Thinned
from ..shards.sharded_array import ShardedArray
from ..words import Output, bytes_text

if TYPE_CHECKING:
    from ..sources.vendor import VendorFile

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

# Beyond so many shards, their sizes are not asked for.
_SHARDS_LOOKED_AT = 10_000

# Arguments that mean something even where they are 0 or False.
_MEANT = ("skip_first", "detector_first")


def facts_text(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the experiment, with units.

    Examples
    --------
    >>> facts_text({"energy_eV": 200e3, "electrons_per_square_angstrom": 192354.1})
    [('beam energy', '200 keV'), ('dose', '192354 electrons/Å²')]
    """
    return [
        (name, f"{_five_digits(float(attributes[key]) * scale)} {unit}".rstrip())
        for key, (name, unit, scale) in FACTS.items()
        if key in attributes
    ]


def _five_digits(value: float) -> str:
    """A number to five digits, without an exponent where it has a few more."""
    return f"{value:.0f}" if 1e5 <= abs(value) < 1e7 else f"{value:.5g}"


def _descan(counts: xr.DataArray) -> dict[str, list[float | None]]:
    """The largest shift along ky and kx, and how far the disk was found from the plane, in pixels."""
    found = [counts.coords[name] for name in DESCAN]
    return {"largest_px": [float(abs(c).max()) for c in found], "residual_px": [c.attrs.get("residual") for c in found]}


def descan_text(counts: xr.DataArray) -> str:
    """What the descan of counts comes to; empty where they have none.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> import numpy as np
    >>> counts = label_counts(np.ones((2, 2, 4, 4), np.uint16))
    >>> descan_text(counts)
    ''
    >>> shifts = (("y", "x"), np.array([[-1.5, 0.5], [-0.5, 1.5]]))
    >>> descan_text(counts.assign_coords(descan_ky=shifts, descan_kx=shifts))
    'up to 1.5 pixels (ky) and 1.5 pixels (kx)'
    """
    if not set(DESCAN) <= set(counts.coords):
        return ""
    (ky, kx), rests = _descan(counts).values()
    text = f"up to {ky:.3g} pixels (ky) and {kx:.3g} pixels (kx)"
    if None in rests:
        return text
    return f"{text}, residual {rests[0]:.2g} and {rests[1]:.2g}"


def overview(array: xr.DataArray) -> list[tuple[str, str]]:
    """What an array is, how it is kept and read, and what is known of it, as names and values; no counts are read.

    Examples
    --------
    >>> overview(xr.DataArray(np.zeros((2, 3)), dims=("ky", "kx"), name="mask"))
    [('mask', '2 × 3 (ky, kx) of float64, 48 bytes'), ('kept', 'in memory')]
    """
    lazy = array.chunks is not None
    shape = f"{_times(array.shape)} ({', '.join(map(str, array.dims))})" if array.dims else "one number"
    name = "array" if array.name is None else str(array.name)
    found = [(name, f"{shape} of {array.dtype}, {bytes_text(array.nbytes)}{' uncompressed' * lazy}")]
    found += _kept(array)
    found += [
        (f"{dim} ({LONG_NAMES[dim]})", _axis_text(_axis(array, dim)))
        for dim in DIMS
        if dim in array.dims and dim in array.coords
    ]
    if all(dim in array.coords and dim in array.dims and unit_of(array, dim) != "px" for dim in DETECTOR):
        middle = [-float(array[dim].values[0]) / step_of(array, dim) for dim in DETECTOR]
        found.append(("optic axis", f"pixel {middle[0]:.2f} (ky), {middle[1]:.2f} (kx)"))
    found += facts_text(array.attrs)
    for flags, what in ((VALID_PIXELS, "pixels"), (VALID_PATTERNS, "patterns")):
        if flags in array.coords:
            valid = np.asarray(array.coords[flags].values, bool)
            found.append((f"valid {what}", f"{valid.sum()} of {valid.size}"))
    shifts = descan_text(array)
    return [*found, ("descan", shifts)] if shifts else found


def overview_text(found: list[tuple[str, str]]) -> str:
    """An overview as lines.

    Examples
    --------
    >>> print(overview_text([("mask", "2 × 3"), ("kept", "in memory")]))
    mask: 2 × 3
      kept: in memory
    """
    return "\n  ".join(f"{name}: {value}" for name, value in found)


def overview_html(found: list[tuple[str, str]]) -> str:
    """An overview as a small table for notebooks, in their own colours, light or dark.

    Examples
    --------
    >>> "&lt;m&gt;" in overview_html([("<m>", "2 × 3")])
    True
    """
    cell = "border:0;background:none;text-align:left;vertical-align:top;padding:1px 12px 1px 0"
    rows = "".join(
        f'<tr style="background:none"><th scope="row" style="{cell};font-weight:600;white-space:nowrap">'
        f'{html.escape(name)}</th><td style="{cell};white-space:normal">{html.escape(value)}</td></tr>'
        for name, value in found
    )
    table = "border:0;border-collapse:collapse;margin:0;font-size:90%;color:inherit"
    return f'<table class="tdm-overview" style="{table}"><tbody>{rows}</tbody></table>'


def _kept(array: xr.DataArray) -> list[tuple[str, str]]:
    """Where the values are, and in what pieces they are read."""
    if array.chunks is None:
        return [("kept", "in memory" if array.variable._in_memory else "in a file, and read as a whole when used")]
    source = source_of(array.data)
    if source is not None:
        return _source_text(source, array.attrs.get("source"))
    largest = [max(sizes) for sizes in array.chunks]
    size = bytes_text(math.prod(largest) * array.dtype.itemsize)
    number = math.prod(map(len, array.chunks))
    pieces = "one dask chunk" if number == 1 else f"{number} dask chunks"
    return [("kept", f"{pieces} of up to {_times(largest)} ({size}), computed when used")]


def _source_text(source: Source, file: Any) -> list[tuple[str, str]]:
    if isinstance(source, Crop):
        return [*_source_text(source.source, file), ("part", f"of {_times(source.source.shape)} that are there")]
    if isinstance(source, Thinned):
        return [*_source_text(source.source, file), ("thinned", "as it is read")]
    if isinstance(source, InMemory):
        return [("kept", "in memory")]
    if isinstance(source, ZarrArray):
        return [("store", f"{_path(source)}, read in pieces of {_times(source.tile)} patterns")]
    if not isinstance(source, Shards):
        return [("file", f"{file or source.name}, read where it lies, {_times(source.tile)} patterns together")]
    array, size = source.array, _bytes_on_disk(source.array)
    codec = dict(array.codec.options).get("cname", array.codec.compressor) or "not compressed"
    number = math.prod(array.grid)
    many = f"{number} shard{'s' * (number > 1)} of {_times(array.shard)}"
    return [
        ("store", f"{_path(source)}{'' if size is None else f', {bytes_text(size)} on disk'}"),
        ("shards", f"{many}, inner chunks of {_times(array.inner)}, {codec}"),
    ]


def _bytes_on_disk(array: ShardedArray) -> int | None:
    """Bytes of all shards, where they lie on this machine and can be asked for at once."""
    if not isinstance(array.store, LocalStore) or math.prod(array.grid) > _SHARDS_LOOKED_AT:
        return None
    paths = (array.store.root / array.key(shard) for shard in array.shards())
    return sum(os.stat(path).st_size for path in paths if path.is_file())


def _path(source: Source) -> str:
    return source.name.removeprefix("file://")


def _times(sizes: Any) -> str:
    return " × ".join(map(str, sizes))


def describe(path: str | Path, options: Mapping[str, Any]) -> Output:
    """Describe a vendor file or a store; of its counts, a few patterns of a vendor file are read.

    Parameters
    ----------
    path : path
    options : mapping
        How to read a vendor file: the keyword arguments of `open_vendor`; None stands for not given.
    """
    given = {key: value for key, value in options.items() if value or (key in _MEANT and value is not None)}
    from ..counts.opening import label_vendor
    from ..counts.opening import open as open_counts
    from ..reading.store import is_store

    if is_store(path):
        counts = open_counts(path)
        return _output(path, "store", counts, counts.attrs.get(FINDINGS, []), counts.attrs, None)
    from ..errors import FrameError
    from ..sources.formats.registry import open_vendor

    if given.get("frame") == "all":
        del given["frame"]
    several: list[str] = []
    try:
        file = open_vendor(path, **given)
    except FrameError:
        if "frame" in given:
            raise
        file = open_vendor(path, **given, frame=0)
        given["frame"] = "all"
        several.append(
            f'The file holds {file.scans} scans, of which this is scan 0: frame=0 picks one, and frame="all" '
            "converts each into a store of its own."
        )
    counts = label_vendor(file)
    command = _command(Path(path), given, file.scans, file.scan_step is None, unit_of(counts, "kx") == "px")
    sampled, room = _look_at_patterns(file)
    findings = [*several, *counts.attrs[FINDINGS], *sampled, f"read by {file.reader}"]
    return _output(path, "vendor file", counts, findings, file.acquisition, command, room)


def _look_at_patterns(file: VendorFile) -> tuple[list[str], dict[str, int]]:
    """What a few patterns say of the others, and the bytes that a store will take and that are free here."""
    from ..conversion.sampling import free_bytes, sample
    from ..errors import SourceError
    from ..shards.codec import COMPRESSIONS

    free = free_bytes(Path())
    try:
        sampled = sample(file.source, file.valid_patterns)
    except SourceError as error:
        return [f"A few patterns were to be looked at, but {error}"], {"free_bytes": free}
    counts = math.prod(file.source.shape) * file.source.dtype.itemsize
    if sampled is None:
        room = f"A store takes up to {bytes_text(counts)}, less as far as the counts can be compressed"
        return [f"{room}; {bytes_text(free)} are free in this folder."], {"free_bytes": free}
    stored = round(counts * sampled.compressed(COMPRESSIONS["lz4"]))
    room = f"A store takes about {bytes_text(stored)}, by {sampled.count} patterns that were compressed"
    space = f"{room}; {'only ' * (stored > free)}{bytes_text(free)} are free in this folder."
    found = sampled.findings(file.valid_pixels, file.source.counter_depth)
    return [*found, space], {"store_bytes": stored, "free_bytes": free}


def _command(path: Path, given: Mapping[str, Any], scans: int, needs_step: bool, needs_angle: bool) -> list[str]:
    from ..conversion.conversion import stack_stores

    store = f"{path.stem}.zarr"
    words = ["tdm", "convert", str(path), store]
    for key, value in given.items():
        words.append("--scan-first" if (key, value) == ("detector_first", False) else f"--{key.replace('_', '-')}")
        if not isinstance(value, bool):
            words.append("x".join(map(str, value)) if isinstance(value, tuple) else str(value))
    if needs_step:
        words += ["--scan-step", "STEP Å"]
    commands = [shlex.join(words)]
    if needs_angle:
        store = stack_stores(store, scans)[0] if given.get("frame") == "all" else store
        commands.append(shlex.join(["tdm", "calibrate", store, "--semi-angle", "ANGLE mrad"]))
    return commands


def _output(
    path: str | Path,
    kind: str,
    counts: xr.DataArray,
    findings: list[str],
    attributes: Mapping[str, Any],
    commands: list[str] | None,
    room: Mapping[str, int] | None = None,
) -> Output:
    shifts = descan_text(counts)
    found = overview(counts.assign_attrs(attributes))
    lines = [f"{path}: {kind}", *(f"  {line.lstrip()}" for line in overview_text(found).split("\n"))]
    data: dict[str, Any] = {
        "path": str(path),
        "kind": kind,
        "shape": list(counts.shape),
        "dims": list(DIMS),
        "dtype": str(counts.dtype),
        "bytes": counts.nbytes,
        "axes": [_axis(counts, dim) for dim in DIMS],
        "acquisition": {key: attributes[key] for key in FACTS if key in attributes},
        "findings": findings,
        **(room or {}),
    }
    history = json.loads(counts.attrs.get("calibration_history", "[]"))
    if history:
        data["calibration_history"] = history
    if shifts:
        data["descan"] = _descan(counts)
    if commands:
        data["commands"] = commands
    after = "\n".join(["To convert it:", *(f"  {command}" for command in commands)]) if commands else ""
    return Output("\n".join(lines), data, findings, after)


def _axis(array: xr.DataArray, dim: str) -> dict[str, Any]:
    return {
        "dim": dim,
        "name": LONG_NAMES[dim],
        "size": array.sizes[dim],
        "first": float(array[dim].values[0]),
        "step": step_of(array, dim),
        "unit": unit_of(array, dim),
    }


def _axis_text(axis: Mapping[str, Any]) -> str:
    last = axis["first"] + axis["step"] * (axis["size"] - 1)
    unit = {"angstrom": "Å", "1/angstrom": "1/Å"}.get(axis["unit"], axis["unit"])
    if axis["unit"] == "px":
        return f"{axis['size']}, not calibrated"
    return f"{axis['size']}, from {axis['first']:.4g} to {last:.4g} {unit} in steps of {axis['step']:.4g}"
