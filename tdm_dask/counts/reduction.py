"""Reductions of your own: what you make of the patterns of a scan, in one read, on any scheduler."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dask
import numpy as np
import xarray as xr

from ..axes import DETECTOR, DIMS, SCAN, check_counts
from ..cluster.resources import synchronous
from ..errors import InputError, ReductionError
from ..passes.own_reductions import own_reductions
from ..passes.own_results import kind_of
from .statistics import (
    counts_facts,
    descan_shifts,
    detector_coords,
    detector_weights,
    scan_coords,
    scan_region_text,
    used_patterns,
)


class Reduction:
    """What `reduce` makes of the patterns of a scan: derive a class from this one, and give it a few lines.

    `start` makes an empty state, `add` adds a block of patterns to it, `merge` joins two states, `finish` makes the
    result. The tasks of a read do this side by side: each has a state of its own, and shares nothing but the reduction
    itself, which therefore must not change. It is sent to other processes as a copy; a class that is defined in a
    notebook goes with it, one of a module has to be importable there.

    Attributes
    ----------
    dims : tuple of str, default ()
        Of the result. It ends with ("ky", "kx") if there is a value for every detector pixel, and with ("y", "x") if
        there is one for every probe position: these get coordinates. Any others may stand before them, or alone. With
        none at all the result is one value of any kind.
    whole_patterns : bool, default False
        Whether `add` needs all pixels of a pattern at once. By default, it gets tiles of the detector as the store has
        them, which is faster: with whole patterns, a task keeps a shard of counts at a time.
    fill : object, optional
        What stands at detector pixels and probe positions that are not used. By default 0 on the detector and NaN on
        the scan (where integers become float64), None among objects.
    units : str or mapping of str to str, optional
        Of the result, or of each array by its name.
    long_name : str or mapping of str to str, optional
        What the result is; by default the first line of the class's docstring.

    Notes
    -----
    A block has patterns that are used, each in full or in a tile of the detector:

    - `block.counts`, shape (pattern, nky, nkx), read-only, in the dtype of the counts (booleans as uint8). Pixels that
      are not used read as 0. The array is overwritten when the next block comes.
    - `block.detector`, the tile's place: `array[block.detector]` is its part of an array (ky, kx).
    - `block.y` and `block.x`, shape (pattern,), where each pattern is in the scan, as for weights by position.
    - `block.scan`, where each is in a state (y, x): `state[block.scan] += ...`. A pattern comes in several blocks where
      the detector comes in tiles.

    Blocks come in any order. What is added to an array in place takes its dtype: let `start` choose one that holds the
    result, such as uint64 for sums of counts, which NumPy makes of unsigned integers.

    Before anything is read, `reduce` tries a copy of the reduction on a few made-up patterns (1 count everywhere, more
    in the middle), which says what names, shapes and dtypes its results have. So most mistakes are found at once, and
    `add` has to bear such patterns, and blank ones, as a scan may hold them.

    Examples
    --------
    The scan's largest count at every detector pixel, and the number of pixels that counted in every pattern:

    >>> import numpy as np
    >>> import tdm_dask as tdm
    >>> class LargestCount(tdm.Reduction):
    ...     dims, units = ("ky", "kx"), "counts"
    ...     def start(self, shape):
    ...         return np.zeros(shape, np.uint32)
    ...     def add(self, state, block):
    ...         part = state[block.detector]
    ...         np.maximum(part, block.counts.max(0), out=part)
    ...         return state
    ...     def merge(self, first, second):
    ...         return np.maximum(first, second)
    >>> class PixelsThatCounted(tdm.Reduction):
    ...     dims, units = ("y", "x"), "1"
    ...     def start(self, shape):
    ...         return np.zeros(shape, np.int64)
    ...     def add(self, state, block):
    ...         state[block.scan] += np.count_nonzero(block.counts, (1, 2))
    ...         return state
    >>> counts = tdm.label_counts(np.arange(24, dtype=np.uint16).reshape(2, 3, 2, 2))
    >>> tdm.reduce(counts, LargestCount()).values.tolist()
    [[20, 21], [22, 23]]
    >>> tdm.reduce(counts, PixelsThatCounted()).values.tolist()
    [[3, 4, 4], [4, 4, 4]]
    """

    dims: tuple[str, ...] = ()
    whole_patterns: bool = False
    fill: Any = None
    units: str | Mapping[str, str] = ""
    long_name: str | Mapping[str, str] = ""

    def start(self, shape: tuple[int, int] | None) -> Any:
        """An empty state.

        Parameters
        ----------
        shape : (int, int) or None
            Of the detector, where the result is laid out over it; of the part of the scan that a task reads, where it
            is laid out over that; None for other results.

        Returns
        -------
        object
            An array of that shape, or anything else that can be sent to other processes.
        """
        raise NotImplementedError

    def add(self, state: Any, block: Any) -> Any:
        """The state with one more block of patterns; it may be the same one, changed."""
        raise NotImplementedError

    def merge(self, first: Any, second: Any) -> Any:
        """One state of two, of other patterns each; it may be the first one, changed.

        Results that are laid out over the scan need none: a probe position is in one task alone.
        """
        raise NotImplementedError

    def finish(self, state: Any) -> Any:
        """The result: an array of `dims`, or a mapping of such by name; without dims, any value. By default the state.

        Of a result that is laid out over the scan, it is that of the part that a task read.
        """
        return state


def reduce(
    counts: xr.DataArray,
    reduction: Reduction | Mapping[str, Reduction],
    *,
    detector_region: Any = None,
    scan_region: Any = None,
) -> xr.DataArray | xr.Dataset:
    """What a reduction of your own makes of the counts, in one read: see `Reduction` for how to write one.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        `valid_pixels` and `valid_patterns` coordinates are honoured, and `descan_ky` and `descan_kx`: patterns come
        moved by whole pixels, and pixels that not all of them have are not used.
    reduction : Reduction, or mapping of str to Reduction
        Any number of them cost one read.
    detector_region : DataArray or ndarray (ky, kx), or slices, optional
        Pixels to use, as booleans or as weights, of which all above 0 are alike; the whole detector by default. The
        others are not read where the store allows it, and read as 0 elsewhere.
    scan_region : DataArray or ndarray of bool (y, x), or slices, optional
        Probe positions to use; the whole scan by default. The patterns of others do not come at all.

    Returns
    -------
    DataArray or Dataset
        The array that the reduction gives, or a Dataset of those that it gives by name; of several reductions, a
        Dataset of all, where `name` is the array of a reduction and `name_part` one of several. Lazy where the counts
        are: nothing is read until `.compute()`. A value that is no array and no number is an object without dims, which
        `.item()` gives.

    Raises
    ------
    ReductionError
        If the reduction lacks a method, cannot be sent to other processes, or fails on made-up patterns; when computed,
        if it fails, or gives something else than it did then. What it raised itself is the cause.
    RegionError
        If a region is empty or of another shape.

    Notes
    -----
    With ``dask.config.set(scheduler="synchronous")`` all runs in this thread, so that a debugger stops in the
    reduction's own lines. NaN and infinity in the counts are given to the reduction as they are.

    Examples
    --------
    The number of counts in every pattern that is used:

    >>> import tdm_dask as tdm
    >>> class TotalCounts(tdm.Reduction):
    ...     dims = ("y", "x")
    ...     def start(self, shape):
    ...         return np.zeros(shape, np.uint64)
    ...     def add(self, state, block):
    ...         state[block.scan] += block.counts.sum((1, 2))
    ...         return state
    >>> counts = tdm.label_counts(np.ones((2, 3, 4, 4), np.uint16))
    >>> tdm.reduce(counts, TotalCounts(), detector_region=(slice(1, 3), slice(0, 4))).values.tolist()
    [[8, 8, 8], [8, 8, 8]]
    """
    counts = check_counts(counts)
    several = isinstance(reduction, Mapping)
    wanted: dict[str, Any] = dict(reduction) if isinstance(reduction, Mapping) else {"": reduction}
    if not wanted:
        raise InputError("There is no reduction; give one, or a mapping of names to some.")
    unnamed = [key for key in wanted if not isinstance(key, str)]
    if unnamed:
        raise InputError(f"A reduction has the name {unnamed[0]!r}; expected a text.")
    for one in wanted.values():
        _check(one)
    used = used_patterns(counts, scan_region)
    weights = detector_weights(counts, detector_region)
    pixels = None if (weights > 0).all() else weights > 0
    found = own_reductions(counts.data, list(wanted.values()), used, pixels, descan_shifts(counts))
    _check_names_and_sizes(counts, wanted, found)
    if isinstance(counts.data, np.ndarray):
        # At once, for then they are read once; and where a debugger can follow.
        [found] = dask.compute(found, scheduler="synchronous" if synchronous() else "threads")
    facts = {"scan_region": scan_region_text(used, counts.shape[:2]), **counts_facts(counts)}
    region = None if detector_region is None else weights > 0
    variables = {
        _joined(key, name): _labelled(counts, one, name, values, region)
        for (key, one), arrays in zip(wanted.items(), found, strict=True)
        for name, values in arrays.items()
    }
    if not several and list(variables) == [""]:
        return variables[""].rename(_in_snake_case(type(reduction).__name__)).assign_attrs(facts)
    return xr.Dataset(variables, attrs=facts)


def _check(reduction: Any) -> None:
    """Raise unless a reduction has all that it needs."""
    if isinstance(reduction, type) and issubclass(reduction, Reduction):
        raise ReductionError(f"{reduction.__name__} is a class; give a reduction of it, {reduction.__name__}().")
    if not isinstance(reduction, Reduction):
        raise ReductionError(
            f"The reduction is {reduction!r}; expected an object of a class that is derived from tdm_dask.Reduction."
        )
    name, dims = type(reduction).__name__, reduction.dims
    sound = isinstance(dims, tuple) and all(isinstance(d, str) for d in dims) and len(set(dims)) == len(dims)
    leading = dims[:-2] if sound and kind_of(reduction) != "other" else dims
    if not sound or set(leading) & set(DIMS):
        raise ReductionError(
            f'{name}.dims is {dims!r}; expected a tuple of names, with "ky", "kx" or "y", "x" at its end where the '
            "result is laid out over the detector or the scan."
        )
    needed = {
        "start": "makes an empty state",
        "add": "adds a block of patterns to a state",
        "merge": "makes one state of two, as where several tasks read",
    }
    if kind_of(reduction) == "scan":
        del needed["merge"]
    for method, does in needed.items():
        if getattr(type(reduction), method) is getattr(Reduction, method):
            raise ReductionError(f"{name} has no method {method}, which {does}; give it one.")


def _joined(key: str, name: str) -> str:
    """The name of an array in a Dataset, by those of its reduction and of its part."""
    return "_".join(filter(None, (key, name)))


def _check_names_and_sizes(
    counts: xr.DataArray, reductions: Mapping[str, Reduction], found: Sequence[Mapping[str, Any]]
) -> None:
    """Raise, before anything is read, unless the arrays of all reductions go into one Dataset."""
    arrays = [
        (_joined(key, name), reduction, values.shape)
        for (key, reduction), by_name in zip(reductions.items(), found, strict=True)
        for name, values in by_name.items()
    ]
    taken = {*DIMS, *map(str, counts.coords), "detector_region", *(dim for _, one, _ in arrays for dim in one.dims)}
    sizes: dict[str, tuple[int, str]] = {}
    names: set[str] = set()
    for name, reduction, shape in arrays:
        if name in names:
            raise InputError(f'Two results have the same name, "{name}"; name the reductions otherwise.')
        if name in taken:
            raise InputError(
                f'A result has the name "{name}", which a dimension or coordinate has; name the reduction, or what its '
                "finish gives, otherwise."
            )
        names.add(name)
        for dim, size in zip(reduction.dims, shape, strict=True):
            before, first = sizes.setdefault(dim, (size, type(reduction).__name__))
            if before != size:
                raise InputError(
                    f"The dimension {dim} has {before} in a result of {first} and {size} in one of "
                    f"{type(reduction).__name__}; name it otherwise in one of them."
                )


def _labelled(
    counts: xr.DataArray, reduction: Reduction, name: str, values: Any, region: np.ndarray | None
) -> xr.DataArray:
    """An array of a reduction with the coordinates of its dims, and what it says of itself."""
    coords: dict[str, Any] = {}
    if reduction.dims[-2:] == SCAN:
        coords = scan_coords(counts)
    elif reduction.dims[-2:] == DETECTOR:
        coords = detector_coords(counts)
        if region is not None:
            coords["detector_region"] = (DETECTOR, region, {"long_name": "detector pixels used"})
    attrs = {"long_name": _long_name(reduction, name)}
    units = reduction.units.get(name, "") if isinstance(reduction.units, Mapping) else reduction.units
    if units:
        attrs["units"] = units
    return xr.DataArray(values, coords, reduction.dims, attrs=attrs)


def _long_name(reduction: Reduction, name: str) -> str:
    given = reduction.long_name
    if isinstance(given, Mapping):
        return given.get(name, name.replace("_", " "))
    own = type(reduction).__dict__.get("__doc__") or ""
    said = given or inspect.cleandoc(own).split("\n")[0].rstrip(".") or type(reduction).__name__
    return f"{said}: {name.replace('_', ' ')}" if name else said


def _in_snake_case(name: str) -> str:
    """The name of a class as that of an array: "LargestCount" as "largest_count"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
