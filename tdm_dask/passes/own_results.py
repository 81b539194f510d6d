"""What the methods of a user's reduction give, checked: its mistakes become one sentence with its name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from ..axes import DETECTOR, SCAN
from ..errors import ReductionError, in_words


class OwnReduction(Protocol):
    """What a pass asks of a user's reduction; see `tdm_dask.Reduction`."""

    dims: tuple[str, ...]
    whole_patterns: bool
    fill: Any

    def start(self, shape: tuple[int, int] | None) -> Any: ...

    def add(self, state: Any, block: Any) -> Any: ...

    def merge(self, first: Any, second: Any) -> Any: ...

    def finish(self, state: Any) -> Any: ...


@dataclass(frozen=True)
class Form:
    """What a reduction gives, as its trial has found it.

    Attributes
    ----------
    kind : {"scan", "detector", "other"}
        By its last dims.
    shapes : dict of str to tuple of int
        Of each array that it gives, without the dims of scan or detector; a single array has the name "".
    dtypes : dict of str to dtype
    fills : dict of str to object
        What stands where nothing was used.
    """

    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]
    fills: Mapping[str, Any]


def kind_of(reduction: OwnReduction) -> str:
    """Whether a result is laid out over the "scan", over the "detector", or over something "other"."""
    last = reduction.dims[-2:]
    return "scan" if last == SCAN else "detector" if last == DETECTOR else "other"


def called(reduction: OwnReduction, method: str, *arguments: Any) -> Any:
    """What a method of a user's reduction gives; its mistakes are told with its name, and lead to its line.

    The error has the traceback of its cause, so that a debugger that looks at it afterwards is at that line.
    """
    try:
        given = getattr(reduction, method)(*arguments)
    except Exception as error:
        where = "".join(f" on {block.place_in_words}" for block in arguments if hasattr(block, "place_in_words"))
        sentence = f"{name_of(reduction)}.{method} failed{where}: {in_words(error)}."
        raise ReductionError(sentence).with_traceback(error.__traceback__) from error
    if given is None and method in ("add", "merge"):
        raise ReductionError(f'{name_of(reduction)}.{method} gave nothing; end it with "return" and the state.')
    return given


def state_copied(reduction: OwnReduction, state: Any) -> Any:
    """A copy of a state, which another task may need as it is."""
    try:
        return copy.deepcopy(state)
    except Exception as error:
        raise ReductionError(
            f"{name_of(reduction)} has a state that cannot be copied ({in_words(error)}); keep arrays, numbers, and "
            "lists or dicts of them."
        ) from error


def arrays_of(reduction: OwnReduction, state: Any, form: Form, last: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrays by name that a reduction makes of a state, or an error unless they are as in its trial."""
    given = by_name(reduction, called(reduction, "finish", state))
    if given.keys() != form.shapes.keys():
        raise ReductionError(
            f"{name_of(reduction)}.finish gave {_names(given)}, but {_names(form.shapes)} when it was tried; it must "
            "always give the same."
        )
    found = {}
    for name, value in given.items():
        values = as_array(reduction, name, value)
        expected = (*form.shapes[name], *(() if form.kind == "other" else last))
        if values.shape != expected:
            wrong_shape(reduction, name, values, expected)
        if not np.can_cast(values.dtype, form.dtypes[name], "safe"):
            raise ReductionError(
                f"{name_of(reduction)}.finish gave {_named(name)} of dtype {values.dtype}, but of {form.dtypes[name]} "
                "when it was tried; make its dtype one that does not depend on the counts."
            )
        found[name] = values.astype(form.dtypes[name], copy=False)
    return found


def by_name(reduction: OwnReduction, value: Any) -> dict[str, Any]:
    """A result as arrays by name; "" is that of a single one. Without dims, a value is what it is."""
    if not reduction.dims or not isinstance(value, Mapping):
        return {"": value}
    unnamed = [name for name in value if not isinstance(name, str)]
    if unnamed:
        raise ReductionError(f"{name_of(reduction)}.finish gave an array by the name {unnamed[0]!r}; expected a text.")
    return dict(value)


def as_array(reduction: OwnReduction, name: str, value: Any) -> np.ndarray:
    """A value as an array; one without dims, other than a number, as an object in an array of none."""
    number = isinstance(value, (bool, int, float, complex, np.generic)) or getattr(value, "shape", None) == ()
    if reduction.dims or number:
        try:
            return np.asarray(value)
        except Exception as error:
            raise ReductionError(
                f"{name_of(reduction)}.finish gave {_named(name)} that is none ({in_words(error)}); expected an array, "
                "or a list that makes one."
            ) from error
    held = np.empty((), object)
    held[()] = value
    return held


def wrong_shape(reduction: OwnReduction, name: str, values: np.ndarray, last: tuple[int, ...]) -> NoReturn:
    dims = ", ".join(reduction.dims)
    ends = f", the last of sizes {last}" if last else ""
    raise ReductionError(
        f"{name_of(reduction)}.finish gave {_named(name)} of shape {values.shape}; expected its dims ({dims}){ends}."
    )


def name_of(reduction: OwnReduction) -> str:
    return type(reduction).__name__


def _named(name: str) -> str:
    return f'"{name}"' if name else "an array"


def _names(of: Mapping[str, Any]) -> str:
    return ", ".join(map(_named, of))
