"""What every command shares: its scheduler, its progress bars, its output, its exit code."""

from __future__ import annotations

import errno
import json
import logging
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich_click as click

from .words import Output

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 130


def run(
    work: Callable[[Any], Output],
    *,
    as_json: bool,
    debug: bool,
    scheduler: str | None = None,
    **cluster: Any,
) -> int:
    """Do `work` on the scheduler that was asked for, and print what it has to say.

    Parameters
    ----------
    work : callable
        Called with a :data:`tdm_dask.cluster.progress.Stage`.
    as_json, debug : bool
        Print JSON, and no progress bar; show tracebacks.
    scheduler, **cluster
        As for :func:`tdm_dask.cluster.scheduler`; it starts with the first computation.

    Returns
    -------
    int
        The exit code: 0 done, 1 failed while working, 2 the request or the input is wrong, 130 stopped by
        Ctrl-C. Failures are one sentence on standard error.
    """
    import dask

    from .cluster.progress import ProgressBars
    from .cluster.schedulers import scheduler as use_scheduler

    if not debug:  # before distributed is imported, and for its workers: what they log is for developers
        loggers = ("distributed", "distributed.client", "asyncio")
        dask.config.set({"logging": dict.fromkeys(loggers, "critical")})
    bars = ProgressBars(enabled=False if as_json else None)
    interrupted = threading.Event()
    try:
        with (
            _interrupts(interrupted),
            _notes(debug),
            use_scheduler(scheduler, deferred=True, announce=not as_json, **cluster),
            bars,
        ):
            output = work(bars.stage)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        # Code in C may turn the interrupt into an error of its own.
        if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
            return complain(f"Stopped; {_kept(bars.finished)} Run the same command again to go on.", STOPPED)
        return complain(*_sentence(error, bars.finished))
    click.echo(json.dumps(output.data, indent=2, ensure_ascii=False, default=str) if as_json else output.text)
    return DONE


@contextmanager
def _interrupts(interrupted: threading.Event) -> Iterator[None]:
    """Remember that Ctrl-C was pressed, or the process told to end; signals reach the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    usual = {number: signal.getsignal(number) for number in signals}

    def interrupt(number: int, frame: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def _notes(debug: bool) -> Iterator[None]:
    """Say this package's warnings as sentences, each once; those of others, and tracebacks in logs, for developers."""
    notes: set[str] = set()
    ours = str(Path(__file__).parent)
    shown = warnings.showwarning

    def say(message: Any, category: Any, filename: str, *rest: Any) -> None:
        if debug:
            shown(message, category, filename, *rest)
        elif category is UserWarning and filename.startswith(ours) and str(message) not in notes:
            notes.add(str(message))
            print(f"tdm: note: {message}", file=sys.stderr)

    log = logging.getLogger(__package__)
    level = log.level
    log.setLevel(logging.DEBUG if debug else level)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = say  # type: ignore[assignment]
            yield
    finally:
        log.setLevel(level)


def complain(sentence: str, code: int) -> int:
    """Print one sentence on standard error, on one line, and give back the exit code."""
    print(f"tdm: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _sentence(error: Exception, finished: list[str]) -> tuple[str, int]:
    from .errors import DiskFullError, TdmError, UnreachableStoreError, WorkerLostError, in_words

    if isinstance(error, (DiskFullError, UnreachableStoreError, WorkerLostError)):
        return str(error), FAILED
    if isinstance(error, TdmError):
        return str(error), WRONG
    what = in_words(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}; {_kept(finished)}", FAILED
    if isinstance(error, PermissionError):
        return f"{what}.", WRONG
    if isinstance(error, MemoryError):
        return f"{what}; {_kept(finished)}", FAILED
    return f"{what}; {_kept(finished)} --debug shows where.", FAILED


def _kept(finished: list[str]) -> str:
    if not finished:
        return "no stage was finished, and what an earlier run finished is kept."
    return f"finished and kept: {', '.join(finished)}."
