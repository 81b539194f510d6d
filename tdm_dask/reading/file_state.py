"""A file as it was when it was opened, which it must still be when it is read."""

from __future__ import annotations

import os
from typing import IO

from ..errors import SourceError

# Path, size in bytes and modification time in nanoseconds.
FileState = tuple[str, int, int]


def opened(path: str | os.PathLike[str]) -> IO[bytes]:
    """A file, open to be read without a buffer.

    Raises
    ------
    SourceError
        If it cannot be.
    """
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from None


def file_state(path: str | os.PathLike[str], descriptor: int | None = None) -> FileState:
    """What tells a file from a later one at the same path; of one that is open, by its descriptor.

    Raises
    ------
    SourceError
        If the file cannot be found.
    """
    try:
        found = os.stat(path if descriptor is None else descriptor)
    except OSError as error:
        raise _unreadable(path, error) from None
    return os.fspath(path), found.st_size, found.st_mtime_ns


def check_state(state: FileState, descriptor: int | None = None) -> None:
    """Raise unless a file is as it was when it was opened."""
    if file_state(state[0], descriptor) != state:
        raise SourceError(f"{state[0]} has changed since it was opened; open the scan again.")


def _unreadable(path: str | os.PathLike[str], error: OSError) -> SourceError:
    return SourceError(f"{path} cannot be read ({error.strerror}); check the path.")
