"""What tells code from other code of the same name: a checksum of what it does, and of the values that it uses.

Of the code in memory, and not of its text: what was typed in a notebook has no file, and a file may have changed since
it was imported. The same code has the same checksum in every process of the same version of Python.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import inspect
import pickle
import struct
import types
import uuid
from collections.abc import Iterator
from typing import Any

_AROUND_FUNCTIONS = (property, staticmethod, classmethod, functools.cached_property)


def code_checksum(of: Any, *parts: Any) -> str:
    """The checksum of an object, or of a module's parts, with all that they use of their own package.

    Parameters
    ----------
    of : object or module
    parts : functions or methods, or None
        What of it is called.
    """
    said = _Said()
    described = parts if isinstance(of, types.ModuleType) else (of, *parts)
    modules = [getattr(of, "__name__", ""), *(getattr(one, "__module__", "") for one in described)]
    try:
        _Describer(said, {_package(module) for module in modules} - {"", "None", "builtins"}).dump(described)
    except Exception:  # so entangled that it cannot be followed: no other code is the same
        return uuid.uuid4().hex[:12]
    return said.digest.hexdigest()[:12]


class _Said:
    """A file that keeps nothing but the checksum of what is written."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> None:
        self.digest.update(data)


class _Describer(pickle.Pickler):
    """A pickle that is never read: functions and classes of one's own are in it with their code, others by name."""

    def __init__(self, said: _Said, homes: set[str]) -> None:
        super().__init__(said, protocol=5, buffer_callback=lambda buffer: said.write(buffer.raw()))
        self.homes = homes

    def reducer_override(self, value: Any) -> Any:
        # Each is a tuple of what is simple and, after it, of what may lead back to it.
        if value is tuple:
            return NotImplemented
        if isinstance(value, types.CodeType):
            does = [value.co_code, value.co_exceptiontable, value.co_names]
            return tuple, (does,), [*map(_constant, value.co_consts)]
        if isinstance(value, (type, types.FunctionType)) and _package(value.__module__) in self.homes:
            return tuple, ([value.__qualname__],), [*(_of_class(value) if isinstance(value, type) else _of(value))]
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            return tuple, ([str(value.__module__), value.__qualname__],)
        if isinstance(value, types.ModuleType):
            return tuple, ([value.__name__],)
        if isinstance(value, struct.Struct):
            return tuple, ([value.format],)
        if isinstance(value, _AROUND_FUNCTIONS):
            names = ("fget", "fset", "__func__", "func")
            return tuple, ([type(value)],), [getattr(value, name, None) for name in names]
        if (wrapped := inspect.getattr_static(value, "__wrapped__", None)) is not None:
            return tuple, ([type(value)],), [wrapped]
        try:
            reduced = copyreg.dispatch_table.get(type(value), lambda found: found.__reduce_ex__(5))(value)
        except Exception:  # a lock, an open file: nothing that counts depend on
            return tuple, ([type(value)],)
        return (tuple, ([type(value), reduced],)) if isinstance(reduced, str) else reduced


def _package(module: Any) -> str:
    return str(module).partition(".")[0]


def _constant(value: Any) -> Any:
    """A constant of code; a set of them in an order that is the same in every process."""
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


def _of_class(kind: type) -> Iterator[Any]:
    yield kind.__bases__
    for name, value in sorted(vars(kind).items()):
        # Python's own names differ with the lines of the text.
        if isinstance(value, types.FunctionType) or not name.startswith("__"):
            yield name, value


def _of(function: types.FunctionType) -> Iterator[Any]:
    yield function.__code__
    yield function.__defaults__, function.__kwdefaults__
    for cell in function.__closure__ or ():
        yield cell.cell_contents if cell != types.CellType() else None
    names = sorted(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        yield name, value
        if isinstance(value, types.ModuleType) and _package(value.__name__) == _package(function.__module__):
            yield [(inner, vars(value)[inner]) for inner in names if inner in vars(value)]


def _names(code: types.CodeType) -> set[str]:
    """Names outside functions that code uses, and those of attributes among them."""
    return {*code.co_names}.union(*(_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))
