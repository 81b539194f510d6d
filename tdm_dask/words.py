"""Bytes, times and tables in words, the same everywhere; arguments in the words of a place; what a command has to say.

Errors, notes and findings are written once, in Python's words, whoever reads them. An argument stands in a sentence

- as ``name=value``, the value being what Python would take, or ``...`` where it is the reader's to choose;
- or as its bare name, if that has an underscore and is an option of the command line or a key of recipes too: any
  other word might be plain English.

So `in_place` finds every one of them, and what it is called where the sentence is read takes its place: the command
line's options (`tdm_dask.session`), the keys of a recipe (`tdm_dask.recipe.recipe_file`), the labels of the page
(`tdm_dask.viewer.tab`). A test holds every sentence of the package against this rule.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


def bytes_text(nbytes: float) -> str:
    """Bytes in the unit that suits them.

    Examples
    --------
    >>> bytes_text(5_771_808)
    '5.77 MB'
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes:.0f} bytes"


def time_text(seconds: float) -> str:
    """A time in the unit that suits it.

    Examples
    --------
    >>> time_text(0.25), time_text(95), time_text(8000)
    ('0.25 s', '1 min 35 s', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def table_text(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first column to the left, the others to the right.

    Examples
    --------
    >>> print("\\n".join(table_text(("stage", "counts"), [("images", "5 GB"), ("correlate", "20 GB")])))
      stage      counts
      images       5 GB
      correlate   20 GB
    """
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(len(heads))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in (heads, *rows)
    ]


@dataclass(frozen=True)
class Argument:
    """An argument in a sentence.

    Attributes
    ----------
    name : str
    value : Any
        An Ellipsis where none is said.
    text : str
        As it stands there.
    """

    name: str
    value: Any
    text: str


_VALUE = r"\.\.\.|True\b|False\b|None\b|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|\"[^\"]*\"|'[^']*'|\([^()]*\)|\[[^\[\]]*\]"
# Not in a path, a quoted text, a call of a function, or after the section of a recipe that it is a key of.
_ARGUMENT = re.compile(
    r"(?<![\w./\"'`=-])(?<!\w\()(?<!\] )(?P<name>[a-z][a-z0-9_]*)"
    rf"(?:=(?P<value>{_VALUE})|(?![\w=(/\-\"'`]|\.\w))"
)


def arguments(sentence: str) -> list[Argument]:
    """The arguments that a sentence may name: every ``name=value``, and every bare word with an underscore.

    Examples
    --------
    >>> [(a.name, a.value) for a in arguments("Give scan_shape, such as scan_shape=(64, 128), or overwrite=True.")]
    [('scan_shape', Ellipsis), ('scan_shape', (64, 128)), ('overwrite', True)]
    """
    return [found for match in _ARGUMENT.finditer(sentence) if (found := _argument(match)) is not None]


def in_place(sentence: str, say: Callable[[Argument], str | None]) -> str:
    """A sentence with its arguments as they are called where it is read.

    Parameters
    ----------
    sentence : str
    say : callable
        What an argument is called there; None for what stays as it is, such as the bare name of something else.

    Examples
    --------
    >>> in_place("Give gap=... or scan_shape.", lambda argument: f"--{argument.name.replace('_', '-')}")
    'Give --gap or --scan-shape.'
    """

    def replaced(match: re.Match[str]) -> str:
        found = _argument(match)
        said = None if found is None else say(found)
        return match[0] if said is None else said

    return _ARGUMENT.sub(replaced, sentence)


def _argument(match: re.Match[str]) -> Argument | None:
    name, value = match["name"], match["value"]
    if value is None:
        return Argument(name, ..., match[0]) if "_" in name else None
    try:
        return Argument(name, ast.literal_eval(value), match[0])
    except (ValueError, SyntaxError):  # "(ny, nx)"
        return None


@dataclass(frozen=True)
class Output:
    """What a command has to say, for people and for machines."""

    text: str
    data: dict[str, Any] = field(default_factory=dict)
