"""What HyperSpy has no place for, in a node of a signal's metadata: found again after saving, cut by slicing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..axes import DIMS, unit_of
from ..errors import CoordinateError

NODE = "tdm_dask"
# A fact in the metadata and in the node is the same up to the rounding of its unit.
SAME = 1e-9


def recorded_dims(axes: Sequence[Mapping[str, Any]], node: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Dims as `to_signal` wrote them: by the names of the axes, of which some may be gone since."""
    if not node or "dims" not in node:
        return None
    by_name = {axis["name"]: dim for dim, axis in node["axes"].items()}
    if len(by_name) == len(node["axes"]) and all(axis["name"] in by_name for axis in axes):
        return tuple(by_name[axis["name"]] for axis in axes)
    return tuple(node["dims"]) if len(axes) == len(node["dims"]) else None


@dataclass(frozen=True)
class Extra:
    """What a node adds to an array."""

    attrs: dict[str, Any]
    coords: dict[str, xr.Variable]
    name: str | None


def from_node(
    node: Mapping[str, Any] | None, array: xr.DataArray, names: tuple[str, ...], axes: Sequence[Mapping[str, Any]]
) -> Extra:
    """Attributes and coordinates that `to_signal` wrote, cut to what is left of their axes."""
    if not node:
        return Extra({}, {}, None)
    now, then = dict(zip(names, axes, strict=True)), node.get("axes", {})
    coords = {}
    for name, entry in node.get("coords", {}).items():
        dims = tuple(entry["dims"])
        if not set(dims) <= set(array.dims):
            continue  # of an axis that was picked from or summed over
        window = tuple(_window(dim, now[dim], then[dim], name) if dim in now else slice(None) for dim in dims)
        data = entry["data"]
        data = np.asarray(data)[window] if isinstance(data, (list, tuple)) else data[window] if dims else data
        coords[name] = xr.Variable(dims, data, dict(entry.get("attrs", {})))
    return Extra(dict(node.get("attrs", {})), coords, node.get("name"))


def _window(dim: str, now: Mapping[str, Any], then: Mapping[str, Any], name: str) -> slice:
    """The part of an axis that is left, as HyperSpy's slicing says it: by its offset."""
    if now["size"] == then["size"]:
        return slice(None)
    scale = float(then["scale"])
    start = (float(now["offset"]) - float(then["offset"])) / scale if scale else 0.0
    same = abs(float(now["scale"]) - scale) <= 1e-6 * abs(scale) and abs(start - round(start)) < 1e-3
    if not same or round(start) < 0 or round(start) + now["size"] > then["size"]:
        raise CoordinateError(
            f"The {dim} axis of the signal has {now['size']} elements, and {name} of its metadata.{NODE} was made for "
            f"{then['size']}, of which these are no part; bin or resample before to_signal, or delete that node."
        )
    return slice(round(start), round(start) + now["size"])


def is_edited(derived: Any, recorded: Any) -> bool:
    """Whether a fact in the metadata was changed since it was recorded as an attribute."""
    both = isinstance(derived, float) and isinstance(recorded, (int, float, np.number))
    return both and abs(derived - float(recorded)) > SAME * abs(derived)


def to_node(
    array: xr.DataArray, axes: Sequence[Mapping[str, Any]], derived: Mapping[str, Any], origin: str
) -> dict[str, Any]:
    """The node of an array: all but its axes, the attributes that can be derived again, and that of its origin."""
    attrs = {k: v for k, v in array.attrs.items() if k != origin and not (k in derived and _same(derived[k], v))}
    coords = {}
    for name, coordinate in array.coords.items():
        if name in array.dims and name in DIMS:
            continue  # the axis says it
        data: Any = coordinate.data
        if coordinate.dtype.kind in "OUST":
            data = [str(value) for value in coordinate.values.ravel()] if coordinate.ndim else str(coordinate.values)
        elif coordinate.ndim == 0 and isinstance(data, np.ndarray):
            data = data.item()
        coords[str(name)] = {"dims": [str(d) for d in coordinate.dims], "data": data, "attrs": dict(coordinate.attrs)}
    shown = {
        str(dim): {key: axis[key] for key in ("name", "scale", "offset", "size")} | {"unit": unit_of(array, str(dim))}
        for dim, axis in zip(array.dims, axes, strict=True)
    }
    # The dims by themselves too: a file may give the axes back in another order.
    return {
        "name": None if array.name is None else str(array.name),
        "dims": list(shown),
        "axes": shown,
        "attrs": attrs,
        "coords": coords,
    }


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    return bool(first == second)
