"""What users can name: the public functions, their arguments, the command line's options, the keys of recipes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import click

import tdm_dask as tdm
from tdm_dask import errors, plot
from tdm_dask.cli import tdm as command_line
from tdm_dask.masks.ridge import RidgeOptions
from tdm_dask.recipe.recipe_file import SECTIONS


def functions() -> Iterator[tuple[str, Callable[..., Any] | None]]:
    """Every public name with what can be called there, methods of classes too; None for what cannot be called."""
    for name in tdm.__all__:
        found = getattr(tdm, name)
        if inspect.ismodule(found):
            continue
        yield f"tdm.{name}", found if callable(found) else None
        if inspect.isclass(found):
            for member in filter(lambda member: not member.startswith("_"), dir(found)):
                method = getattr(found, member)
                yield f"tdm.{name}.{member}", method if callable(method) else None
    of_errors = [name for name, found in vars(errors).items() if getattr(found, "__module__", "") == errors.__name__]
    for room, names in (("plot", plot.__all__), ("hyperspy", tdm.hyperspy.__all__), ("errors", of_errors)):
        module = getattr(tdm, room, plot)
        yield from ((f"{room}.{name}", getattr(module, name)) for name in names)


def parameters(function: Callable[..., Any] | None) -> list[tuple[str, str, str | None]]:
    """Name, kind and default, as Python would write it, of every parameter."""
    try:
        found = inspect.signature(function).parameters.values() if function is not None else ()
    except (TypeError, ValueError):  # exceptions, whose constructor is in C
        return []
    return [(p.name, p.kind.name, None if p.default is p.empty else repr(p.default)) for p in found]


def arguments() -> set[str]:
    """Names of all arguments of public functions, options of ridge masks among them."""
    return {name for _, function in functions() for name, _, _ in parameters(function)} | {
        field.name for field in dataclasses.fields(RidgeOptions)
    }


def options() -> set[str]:
    """Python's names of all options of the command line."""
    return {
        part.name
        for command in command_line.commands.values()
        for part in command.params
        if isinstance(part, click.Option)
    } | {"resume", "overwrite"}


def keys() -> set[str]:
    """Keys of recipes."""
    return {field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)}
