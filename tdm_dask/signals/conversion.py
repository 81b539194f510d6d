"""HyperSpy's signals as labelled arrays, and back: data, axes, units, metadata, laziness and chunks are kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..axes import DETECTOR, DIMS, FINDINGS, SCAN, TEMPLATE, check_counts, label_counts, missing_calibration, unit_of
from ..errors import CountsError, FrameError, InputError
from ..sources.calibration_facts import HYPERSPY_FACTS, acquisition_facts
from .axes import around_zero, is_angle, is_length, read_axes, reciprocal_axis, write_axis
from .node import NODE, SAME, from_node, is_edited, recorded_dims, to_node

if TYPE_CHECKING:
    from hyperspy.signal import BaseSignal

# Attribute of an array with what is known of the signal that it came from.
ORIGIN = "hyperspy"
MASK_TYPE = "template_mask"


@dataclass(frozen=True, eq=False)
class Origin:
    """The signal that an array came from: all that `to_signal` needs to make it again.

    Attributes
    ----------
    dims : tuple of str
        Of the signal's array.
    axes : dict of str to dict
        HyperSpy's axis dictionaries.
    coords, factors
        What was made of the axes, see `signal_axes.AxesRead`.
    metadata, original_metadata : dict
        Without the node of this package.
    attrs : dict
        The attributes of the array that the axes and the metadata gave.
    has_node : bool
    signal_dimension : int
    """

    dims: tuple[str, ...]
    axes: dict[str, dict[str, Any]]
    coords: dict[str, xr.Variable]
    factors: dict[str, float]
    metadata: dict[str, Any]
    original_metadata: dict[str, Any]
    attrs: dict[str, Any]
    has_node: bool
    signal_dimension: int

    def __repr__(self) -> str:
        title = self.metadata.get("General", {}).get("title", "")
        return f'<axes and metadata of the signal "{title}">'


def from_signal(signal: BaseSignal, *, frame: int | None = None, dims: Sequence[str] | None = None) -> xr.DataArray:
    """A HyperSpy signal as a labelled array, of the same data; nothing is read.

    Parameters
    ----------
    signal : BaseSignal
        Two navigation and two signal dimensions are counts; so are those of pyxem. One navigation dimension is a
        scan of one line, or a stack of images where the signal axes have a unit of length. Two dimensions alone are
        an image or a mask, by their units. What `to_signal` made is taken back for what it was.
    frame : int, optional
        Which scan of a stack of scans (three navigation dimensions), along the slowest axis.
    dims : sequence of str, optional
        What the axes are, in the order of the array (slow to fast), where units do not say it: such as
        ``("template", "ky", "kx")`` or ``("y", "x")``.

    Returns
    -------
    DataArray
        Counts (y, x, ky, kx), an image ([template,] y, x) or a mask ([template,] ky, kx), lazy and chunked where the
        signal is. Lengths are in angstrom. Detector axes in mrad, or in 1/nm and the like at known beam energy, are in
        mrad if zero lies inside the detector; else in pixels, with `pixel_size_mrad` among the attributes, for
        `calibrate` to find the optic axis. Beam energy, current, convergence angle and dwell time are attributes.
        ``attrs["hyperspy"]`` keeps axes and metadata for `to_signal`; remove it before you write netCDF.

    Raises
    ------
    FrameError
        If the signal is a stack of scans and none, or one that it does not hold, was asked for.
    CountsError
        If its dimensions are no counts, image or mask.
    CoordinateError
        If an axis is not evenly spaced, or what is known of its axes by `to_signal` does not fit them any more.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((2, 3, 4, 4), np.uint16))
    >>> signal.axes_manager.navigation_axes.set(units="nm", scale=0.05)
    >>> counts = from_signal(signal)
    >>> counts.sizes["x"], counts.x.attrs["units"], counts.x.values
    (3, 'angstrom', array([0. , 0.5, 1. ]))
    >>> to_signal(counts)
    <Signal2D, title: , dimensions: (3, 2|4, 4)>
    """
    axes = _axes(signal)
    metadata = copy.deepcopy(signal.metadata.as_dictionary())
    node = metadata.pop(NODE, None)
    data = signal.data
    if data.dtype.kind not in "uifb":
        raise CountsError(f"The signal has dtype {data.dtype}; expected integers or real numbers.")
    if sum(axis["navigate"] for axis in axes) == 3 and len(axes) == 5:
        data, axes = _frame(data, axes, frame)
        metadata.get("_HyperSpy", {}).pop("_sig_navigator", None)  # it is the stack's
    elif frame is not None:
        raise FrameError(f"The signal {signal} is no stack of scans; leave out frame={frame}.")
    names = _dims(signal, axes, node, dims)
    facts: dict[str, Any] = acquisition_facts(metadata)
    known_axes = (node or {}).get("axes", {})
    centred = all(known_axes.get(dim, {}).get("unit") == "mrad" for dim in DETECTOR)
    read = read_axes(names, axes, facts.get("energy_eV"), centred)
    derived = facts | read.attrs
    if names[-2:] == DETECTOR and set(names) <= set(DIMS):
        array = _counts(data, names, read.coords)
        derived |= array.attrs
    else:
        array = xr.DataArray(data, dims=names, coords=read.coords, name=_name(names))
    if set(array.dims) == set(DIMS):
        known = array.assign_attrs(derived)
        findings = [*read.findings, *missing_calibration(known)]
        derived |= {FINDINGS: findings} if findings else {}
    extra = from_node(node, array, names, axes)
    attrs = derived | {k: v for k, v in extra.attrs.items() if not is_edited(derived.get(k), v)}
    origin = Origin(
        dims=names,
        axes=dict(zip(names, axes, strict=True)),
        coords=read.coords,
        factors=read.factors,
        metadata=metadata,
        original_metadata=copy.deepcopy(signal.original_metadata.as_dictionary()),
        attrs=derived,
        has_node=node is not None,
        signal_dimension=signal.axes_manager.signal_dimension,
    )
    array = array.assign_coords(extra.coords)
    array.attrs = attrs | {ORIGIN: origin}
    return array.rename(extra.name or array.name)


def to_signal(array: xr.DataArray, *, like: BaseSignal | None = None, detector_units: str | None = None) -> BaseSignal:
    """A labelled array as a HyperSpy signal, of the same data; nothing is read.

    Parameters
    ----------
    array : DataArray
        Counts (y, x, ky, kx), images ([template,] y, x) or masks ([template,] ky, kx); other dims in front navigate.
    like : BaseSignal, optional
        A signal whose axes' names and units, and whose metadata, the new one takes on: that of the scan, for an image
        from it. By default those of the signal that `from_signal` made the array of.
    detector_units : str, optional
        "1/nm", "1/Å" or the like, for detector axes in mrad, by the angle lambda * q; mrad by default.

    Returns
    -------
    Signal2D
        Counts navigate over (y, x), stacks over templates; an image is a signal without navigation. A mask that
        `derive_mask` made is a `TemplateMask`, which draws itself with zero in the middle. Lazy, and of the same
        chunks, where the array is. What HyperSpy has no place for (names of templates, valid flags, mean and standard
        deviation of a mask, history of the calibration) lies in ``metadata.tdm_dask``, and is found there again by
        `from_signal`, also after the signal was saved, cropped or sliced.

    Raises
    ------
    InputError
        If the array has neither a detector nor a scan.
    CoordinateError
        If its coordinates are not evenly spaced, or `detector_units` cannot be had.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 4, 0.5, 0.0, "angstrom") for dim in ("y", "x")}
    >>> image = xr.DataArray(np.zeros((4, 4)), steps, ("y", "x"), name="image")
    >>> signal = to_signal(image)
    >>> signal, signal.axes_manager[0].units
    (<Signal2D, title: image, dimensions: (|4, 4)>, 'Å')
    """
    own = array.attrs.get(ORIGIN)
    origin: Origin | None = own if like is None else from_signal_axes(like)
    array = _in_order(array, own if like is None else None)
    signal_dims = _signal_dims(array)
    axes = []
    for dim in map(str, array.dims):
        old = None if origin is None else origin.axes.get(dim)
        if detector_units is not None and dim in DETECTOR:
            axis = write_axis(array, dim, dim not in signal_dims)
            axis = reciprocal_axis(axis, detector_units, array.attrs.get("energy_eV")) | {"name": (old or axis)["name"]}
        elif origin is None or old is None:
            axis = write_axis(array, dim, dim not in signal_dims)
        else:
            made_of_it = origin.coords.get(dim), origin.factors.get(dim, 1.0)
            axis = write_axis(array, dim, dim not in signal_dims, old, *made_of_it)
        axes.append(axis if like is None or axis["name"] else axis | {"name": dim})
    metadata, derived = _metadata(array, origin, made_new=like is not None or origin is None)
    node = to_node(array, axes, derived, ORIGIN)
    fresh = like is not None or origin is None
    # HyperSpy's zero is taken for the optic axis where it lies inside the detector, elsewhere it must be said.
    off_axis = any(
        unit_of(array, str(d)) == "mrad" and not around_zero(a) for d, a in zip(array.dims, axes, strict=True)
    )
    if fresh or origin is None or origin.has_node or off_axis or node["attrs"] or node["coords"]:
        metadata[NODE] = node
    original = {} if fresh or origin is None else copy.deepcopy(origin.original_metadata)
    return _signal(array.data, axes, metadata, original)


def from_signal_axes(signal: BaseSignal) -> Origin:
    """What `to_signal` needs to know of a signal to make another one like it."""
    if signal.axes_manager.navigation_dimension == 3:
        return from_signal(signal, frame=0).attrs[ORIGIN]
    return from_signal(signal).attrs[ORIGIN]


def _axes(signal: BaseSignal) -> list[dict[str, Any]]:
    """Dictionaries of the axes in the order of the array."""
    manager = signal.axes_manager
    if signal.ragged:
        raise CountsError(f"The signal {signal} is ragged; expected an array of numbers.")
    axes = list(manager.as_dictionary().values())
    flags = [axis["navigate"] for axis in axes]
    if flags != sorted(flags, reverse=True):
        raise CountsError(
            f"The signal {signal} keeps its signal axes before its navigation axes; use transpose(signal_axes=2)."
        )
    return axes


def _frame(data: Any, axes: list[dict[str, Any]], frame: int | None) -> tuple[Any, list[dict[str, Any]]]:
    if frame is None or isinstance(frame, bool) or not 0 <= frame < data.shape[0]:
        asked = "none was asked for" if frame is None else f"frame={frame!r} was asked for"
        raise FrameError(
            f"The signal is a stack of {data.shape[0]} scans and {asked}; give frame=0 to frame={data.shape[0] - 1}."
        )
    return data[frame], axes[1:]


def _dims(
    signal: BaseSignal, axes: Sequence[Mapping[str, Any]], node: Mapping[str, Any] | None, given: Sequence[str] | None
) -> tuple[str, ...]:
    """What the axes are, in the order of the array."""
    if given is not None:
        names = tuple(given)
        if len(names) != len(axes) or len(set(names)) != len(names) or not set(names) <= {*DIMS, TEMPLATE}:
            raise InputError(f"dims={names} was given; expected {len(axes)} of {(TEMPLATE, *DIMS)}, each once.")
        return names
    recorded = recorded_dims(axes, node)
    if recorded:
        return recorded
    navigation = sum(axis["navigate"] for axis in axes)
    signal_axes = axes[navigation:]
    shape = (navigation, len(signal_axes))
    if shape == (2, 2):
        return DIMS
    if shape == (2, 0):
        return SCAN
    lengths, angles = all(map(is_length, signal_axes)), all(map(is_angle, signal_axes))
    if shape == (1, 2):
        return (TEMPLATE, *SCAN) if lengths else ("x", *DETECTOR)
    if shape == (0, 2) and (lengths or angles):
        return SCAN if lengths else DETECTOR
    if shape == (0, 2):
        raise CountsError(
            f"The axes of {signal} have no unit that says whether it is an image or a pattern; give "
            'dims=("y", "x") or dims=("ky", "kx").'
        )
    raise CountsError(
        f"The signal {signal} has {shape[0]} navigation and {shape[1]} signal dimensions; expected two of each: use "
        "as_signal2D or transpose(signal_axes=2), and frame=... for a stack of scans."
    )


def _counts(data: Any, names: tuple[str, ...], coords: Mapping[str, xr.Variable]) -> xr.DataArray:
    """Counts of all four dims; a scan of one line gets the other one. A single pattern stays a pattern."""
    if names == DETECTOR:
        return xr.DataArray(data, dims=names, coords=coords, name="mask")
    for position, dim in enumerate(DIMS):
        if dim not in names:
            data = data[(slice(None),) * position + (None,)]
    return check_counts(label_counts(data, coords))


def _name(names: tuple[str, ...]) -> str:
    return "mask" if set(DETECTOR) <= set(names) else "image"


def _in_order(array: xr.DataArray, origin: Origin | None) -> xr.DataArray:
    """The array in the order of dims of its signal, without what `from_signal` added to a scan of one line."""
    if not (set(SCAN) <= set(array.dims) or set(DETECTOR) <= set(array.dims)):
        raise InputError(
            f"The array has dims {tuple(array.dims)}; expected a scan (y, x), a detector (ky, kx) or both."
        )
    if origin is not None and set(array.dims) > set(origin.dims):
        added = [dim for dim in array.dims if dim in SCAN and dim not in origin.dims and array.sizes[dim] == 1]
        array = array.squeeze(added, drop=True)
    tail = [dim for dim in DIMS if dim in array.dims]
    order = [*(dim for dim in array.dims if dim not in tail), *tail]
    return array if list(array.dims) == order else array.transpose(*order)


def _signal_dims(array: xr.DataArray) -> tuple[str, ...]:
    own: Origin | None = array.attrs.get(ORIGIN)
    if own is not None and own.signal_dimension == 0 and own.dims == array.dims:
        return ()
    return DETECTOR if set(DETECTOR) <= set(array.dims) else SCAN


def _metadata(array: xr.DataArray, origin: Origin | None, made_new: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata of a signal, and the attributes of the array that can be read off it again."""
    metadata: dict[str, Any] = {} if origin is None else copy.deepcopy(origin.metadata)
    derived = {} if origin is None or made_new else origin.attrs
    if made_new:
        for key in ("Signal", "_HyperSpy", "Markers"):  # they speak of the other signal
            metadata.pop(key, None)
        label = str(array.attrs.get("long_name", array.name or ""))
        if array.name == "counts":
            label = str(array.attrs.get("source", label))
        general = metadata.setdefault("General", {})
        general["title"] = f"{label} of {general['title']}" if general.get("title") else label
        units = array.attrs.get("units", "1")
        label = "counts" if array.name == "counts" else label
        metadata["Signal"] = {"quantity": label.capitalize() + ("" if units in ("1", label) else f" ({units})")}
        if array.name == "mask" and "method" in array.attrs:
            metadata["Signal"]["signal_type"] = MASK_TYPE
    known = acquisition_facts(metadata)
    for fact in {name for _, name, _ in HYPERSPY_FACTS}:
        value = array.attrs.get(fact)
        if value is not None and not (fact in known and abs(known[fact] - value) <= SAME * abs(value)):
            _write_fact(metadata, fact, float(value))
    return metadata, dict(derived) | acquisition_facts(metadata)


def _write_fact(metadata: dict[str, Any], fact: str, value: float) -> None:
    """Write a fact where the metadata have it, or at the first of its places."""
    places = [(place.split("."), factor) for place, name, factor in HYPERSPY_FACTS if name == fact]
    present = [(keys, factor) for keys, factor in places if _at(metadata, keys) is not None]
    for keys, factor in present or places[:1]:
        node = metadata
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value / factor


def _at(metadata: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        metadata = metadata.get(key) if isinstance(metadata, Mapping) else None
    return metadata


def _signal(data: Any, axes: list[dict[str, Any]], metadata: dict[str, Any], original: dict[str, Any]) -> BaseSignal:
    from hyperspy.signals import BaseSignal, Signal2D

    images = sum(not axis["navigate"] for axis in axes) == 2
    kind = metadata.get("Signal", {}).get("signal_type", "")
    signal = (Signal2D if images else BaseSignal)(data, axes=axes, metadata=metadata, original_metadata=original)
    if not isinstance(data, np.ndarray):
        return signal.as_lazy()
    if kind:
        signal.set_signal_type(kind)
    return signal
