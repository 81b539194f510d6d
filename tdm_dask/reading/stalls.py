"""Reads that do not return, as of a network mount that stalls, are named while they last.

Nothing can end such a read from inside of its process; who is told can stop the run, or bring the mount back.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

# Seconds after which a read is named, and how often is looked.
STALL_SECONDS = 60.0
LOOK_SECONDS = 5.0

T = TypeVar("T")


@dataclass(eq=False)
class _Read:
    what: str
    tell: Callable[[str], None]
    since: float | None
    told: bool = False


_reads: set[_Read] = set()
_lock = threading.Lock()
_looks = False


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Name `what` on standard error, once, if the block lasts very long; from a worker, on that of its client.

    Examples
    --------
    >>> with waiting_for("scan.mib"):
    ...     pass
    """
    read = _Read(what, _teller(), time.monotonic())
    with _watched(read):
        yield


def watched(items: Iterable[T], what: str) -> Generator[T]:
    """The items, as they come; `what` is named if one is waited for very long. A generator is closed at the end.

    Examples
    --------
    >>> list(watched([1, 2], "scan.mib"))
    [1, 2]
    """
    read = _Read(what, _teller(), time.monotonic())
    with _watched(read), closing(items) if isinstance(items, Generator) else nullcontext():
        for item in items:
            read.since = None  # the time that is taken to work on it is not the file system's
            yield item
            read.since = time.monotonic()


@contextmanager
def _watched(read: _Read) -> Iterator[None]:
    global _looks
    with _lock:
        _reads.add(read)
        if not _looks:
            _looks = True
            threading.Thread(target=_look, name="tdm-stalls", daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            _reads.discard(read)


def _look() -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        with _lock:
            reads = list(_reads)
        for read in reads:
            since = read.since
            if since is not None and not read.told and time.monotonic() - since > STALL_SECONDS:
                read.told = True
                read.tell(
                    f"tdm: note: {read.what} has not answered for {STALL_SECONDS:.0f} s; if its file system does not "
                    "come back, stop with Ctrl-C and run the same command again later."
                )


def _teller() -> Callable[[str], None]:
    """What brings a sentence to the user: in a worker's task, its client prints it."""
    worker: Any = None
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):
            worker = get_worker()
    if worker is None:
        return lambda sentence: print(sentence, file=sys.stderr, flush=True)
    # As distributed.print has it, which works only in the thread of a task.
    event = {"sep": " ", "end": "\n", "flush": True, "file": 2}
    return lambda sentence: worker.log_event("print", {"args": (sentence,), **event})
