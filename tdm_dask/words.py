"""Bytes, times and tables in words, the same everywhere, and what a command has to say."""

from __future__ import annotations

from collections.abc import Sequence
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
class Output:
    """What a command has to say, for people and for machines."""

    text: str
    data: dict[str, Any] = field(default_factory=dict)
