"""What a format of one's own gives, as plain values of the types that a VendorFile has, or what of it does not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np

from ..axes import quantity, quantity_pair
from ..errors import in_words
from ..reading.blocks import Source
from .vendor import VendorFile, one_or_more, plain

_UNITS = {"energy_eV": "eV", "dwell_time_s": "s", "semi_angle_mrad": "mrad", "beam_current_A": "A"}


class UnfitError(ValueError):
    """What does not fit and what was expected, as the end of a sentence."""


def plain_file(file: Any) -> VendorFile:
    """What a format gave as a VendorFile of plain values, with absolute paths.

    Raises
    ------
    UnfitError
        If something else was given than a scan in a VendorFile.
    """
    if not isinstance(file, VendorFile):
        raise UnfitError(f"{type(file).__name__} instead of a tdm_dask.VendorFile")
    if not isinstance(file.reader, str):
        raise _unfit("reader", file.reader, "a text")
    if not isinstance(file.metadata, Mapping):
        raise _unfit("metadata", file.metadata, "a dict")
    if not isinstance(file.scans, (int, np.integer)) or file.scans < 1:
        raise _unfit("scans", file.scans, "a whole number of at least one")
    shape = _shape_of(file.source)
    return replace(
        file,
        scan_step=_pair("scan_step", file.scan_step, "angstrom"),
        pixel_size=_pair("pixel_size", file.pixel_size, "mrad"),
        acquisition=_acquisition(file.acquisition),
        metadata=plain(file.metadata),
        findings=_sentences("findings", file.findings),
        data_path=_paths("data_path", file.data_path, "a path")[0],
        valid_pixels=_flags("valid_pixels", file.valid_pixels, shape[2:]),
        valid_patterns=_flags("valid_patterns", file.valid_patterns, shape[:2]),
        linked=_paths("linked", file.linked, "paths"),
        doubts=_sentences("doubts", file.doubts),
        order_is_known=bool(file.order_is_known),
        scans=int(file.scans),
    )


def _unfit(name: str, value: Any, expected: str) -> UnfitError:
    return UnfitError(f"{name}={value!r}; expected {expected}")


def _shape_of(source: Any) -> tuple[int, ...]:
    """The shape of a source that can be read, in other processes as well."""
    if not isinstance(source, Source):
        raise UnfitError(f"{type(source).__name__} instead of a tdm_dask.Source")
    shape, dtype = _of(source, "shape"), _of(source, "dtype")
    if not isinstance(shape, tuple) or len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UnfitError(f"counts of shape {shape!r}; expected a tuple (y, x, ky, kx) of int, of at least one each")
    if not isinstance(dtype, np.dtype):
        raise UnfitError(f"counts of dtype {dtype!r}; expected a NumPy dtype, such as numpy.dtype('uint16')")
    if dtype.kind not in "uif" or dtype.itemsize > 8 or not dtype.isnative:
        raise UnfitError(f"counts of dtype {dtype.str}; expected native-endian integers or real numbers")
    try:
        cloudpickle.dumps(source)
    except Exception as error:
        raise UnfitError(
            f"a source that cannot be sent to other processes ({in_words(error)}); open files in read"
        ) from error
    return shape


def _of(source: Source, name: str) -> Any:
    try:
        return getattr(source, name)
    except Exception as error:
        raise UnfitError(f"a {type(source).__name__} whose {name} cannot be had ({in_words(error)})") from error


def _pair(name: str, value: Any, unit: str) -> tuple[float, float] | None:
    try:
        return None if value is None else quantity_pair(value, unit, name)
    except (TypeError, ValueError):
        raise _unfit(name, value, f"two positive numbers (y, x) in {unit}, or None") from None


def _acquisition(facts: Any) -> dict[str, float]:
    if not isinstance(facts, Mapping):
        raise _unfit("acquisition", facts, "a dict")
    return {str(name): _fact(str(name), value) for name, value in facts.items()}


def _fact(name: str, value: Any) -> float:
    unit = _UNITS.get(name)
    try:
        if unit is not None:
            return quantity(value, unit, name)
        if np.isfinite(number := float(value)):
            return number
    except (TypeError, ValueError):
        pass
    kind = "finite number" if unit is None else f"positive number in {unit}"
    raise UnfitError(f"an acquisition with {name}={value!r}; expected a {kind}, or nothing of that name")


def _flags(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if value is None:
        return None
    try:
        flags = np.asarray(value)
    except ValueError:  # lists of different lengths
        flags = np.empty(0)
    if flags.dtype != bool or flags.shape != shape:
        raise UnfitError(f"{name} that are no booleans of shape {shape}")
    return flags


def _sentences(name: str, value: Any) -> tuple[str, ...]:
    try:
        found = one_or_more(value)
    except TypeError:
        found = (value,)
    if not all(isinstance(sentence, str) for sentence in found):
        raise _unfit(name, value, "sentences")
    return found


def _paths(name: str, value: Any, expected: str) -> tuple[str, ...]:
    try:
        return tuple(os.path.abspath(path) for path in one_or_more(value))
    except TypeError:
        raise _unfit(name, value, expected) from None
