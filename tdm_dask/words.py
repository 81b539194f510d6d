"""Bytes, times and tables in words, the same everywhere; arguments in the words of a place; what a command has to say.

Errors, notes and findings are written once, in Python's words, whoever reads them. An argument stands in a sentence

- as ``name=value``, the value being what Python would take, or ``...`` where it is the reader's to choose;
- or as its bare name, if that has an underscore and is an option of the command line or a key of recipes too: any
  other word might be plain English;
- and as a word of its own, which a part of a path seldom is.

So `in_place` finds every one of them, and what it is called where the sentence is read takes its place: the command
line's options (`tdm_dask.session`), the keys of a recipe (`tdm_dask.recipe.recipe_file`), the labels of the page
(`tdm_dask.viewer.tab`). A test holds every sentence of the package against this rule. What the package does not say
itself stays as it is: paths that it was given, and what others' exceptions say.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from .errors import TdmError
from .errors import sentence as one_sentence


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
# A word of its own: not in a path, a quoted text, a call of a function, or after the section of a recipe that it is a
# key of.
_ARGUMENT = re.compile(
    r"(?<![^\s(])(?<!\w\()(?<!\] )(?P<name>[a-z][a-z0-9_]*)"
    rf"(?:=(?P<value>{_VALUE}))?(?=[,.;:!?)]*(?:\s|$))"
)


def arguments(sentence: str) -> list[Argument]:
    """The arguments that a sentence may name: every ``name=value``, and every bare word with an underscore.

    Examples
    --------
    >>> [(a.name, a.value) for a in arguments("Give scan_shape, such as scan_shape=(64, 128), or overwrite=True.")]
    [('scan_shape', Ellipsis), ('scan_shape', (64, 128)), ('overwrite', True)]
    """
    return [found for match in _ARGUMENT.finditer(sentence) if (found := _argument(match)) is not None]


def in_place(sentence: str, say: Callable[[Argument], str | None], kept: Iterable[str] = ()) -> str:
    """A sentence with its arguments as they are called where it is read.

    Parameters
    ----------
    sentence : str
    say : callable
        What an argument is called there; None for what stays as it is, such as the bare name of something else.
    kept : iterable of str
        What stays as it is wherever it stands: see `path_texts`.

    Examples
    --------
    >>> in_place("Give gap=... or scan_shape.", lambda argument: f"--{argument.name.replace('_', '-')}")
    'Give --gap or --scan-shape.'
    >>> in_place("a gap=3 b.mib needs gap=...", lambda argument: "--gap", kept=["a gap=3 b.mib"])
    'a gap=3 b.mib needs --gap'
    """
    whole = sorted({text for text in kept if arguments(text)}, key=len, reverse=True)
    pieces = re.split(rf"(?<!\w)({'|'.join(map(re.escape, whole))})(?!\w)", sentence) if whole else [sentence]

    def replaced(match: re.Match[str]) -> str:
        found = _argument(match)
        said = None if found is None else say(found)
        return match[0] if said is None else said

    return "".join(piece if n % 2 else _ARGUMENT.sub(replaced, piece) for n, piece in enumerate(pieces))


def in_python(argument: Argument) -> str | None:
    """What an argument is called where nothing gives it its value; of its bare name, nothing is said."""
    return f"{argument.text} (in Python)" if "=" in argument.text else None


def error_in_place(error: BaseException, say: Callable[[Argument], str | None], kept: Iterable[str] = ()) -> str:
    """What an exception has to say, with arguments as they are called where it is read.

    What others' exceptions say stays as it is, by themselves or where an error of this package tells it.

    Examples
    --------
    >>> error_in_place(ValueError("gap=3 is odd"), lambda argument: "--gap")
    'ValueError: gap=3 is odd.'
    """
    if not isinstance(error, TdmError):
        return one_sentence(error)
    return in_place(str(error), say, [*kept, *_told_by_others(error)])


def _told_by_others(error: BaseException | None) -> Iterator[str]:
    """What the exceptions say that led to one, if they are not of this package."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if not isinstance(error, TdmError):
            said = str(error)
            for text in (said, " ".join(said.split()), *said.splitlines(), getattr(error, "strerror", None) or ""):
                yield text.strip().rstrip(".")
            yield from path_texts(getattr(error, "filename", None))
        error = error.__cause__ or error.__context__


def path_texts(place: Any) -> Iterator[str]:
    """How a sentence may name a path: as it was given, by its name, and by parts of several words.

    Examples
    --------
    >>> list(path_texts("data/gap=3 a.mib"))
    ['data/gap=3 a.mib', 'gap=3 a.mib', 'gap=3 a', 'gap=3 a.mib']
    """
    if isinstance(place, str | os.PathLike) and os.fspath(place):
        path = PurePath(os.fspath(place))
        yield from (str(place), path.name)
        yield from (part for part in (path.stem, *path.parts) if " " in part)


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
    """What a command has to say, for people and for machines.

    Attributes
    ----------
    text : str
        Says what is there, with its paths.
    data : dict
    findings : sequence of str
        Sentences that follow the text, in Python's words; also "findings" of the data.
    after : str
        Follows the findings: commands with their paths.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    findings: Sequence[str] = ()
    after: str = ""
