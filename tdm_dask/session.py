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

from .errors import sentence as one_sentence
from .renamed import RenamedWarning
from .words import Argument, Output, error_in_place, in_place, in_python, path_texts

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 130


def run(
    work: Callable[[Any], Output],
    *,
    as_json: bool,
    debug: bool,
    **cluster: Any,
) -> int:
    """Do `work` on the scheduler that was asked for, and print what it has to say.

    Parameters
    ----------
    work : callable
        Called with a :data:`tdm_dask.cluster.progress.Stage`.
    as_json, debug : bool
        Print JSON, and no progress bar; show tracebacks.
    **cluster
        As for :func:`tdm_dask.scheduler`; it starts with the first computation.

    Returns
    -------
    int
        The exit code: 0 done, 1 failed while working, 2 the request or the input is wrong, 130 stopped by
        Ctrl-C. Failures are one sentence on standard error.
    """
    import dask

    from .cluster.progress import ProgressBars
    from .cluster.schedulers import scheduler

    if not debug:  # before distributed is imported, and for its workers: what they log is for developers
        loggers = ("distributed", "distributed.client", "asyncio")
        dask.config.set({"logging": dict.fromkeys(loggers, "critical")})
    said = option_words(click.get_current_context(silent=True))
    bars = ProgressBars(enabled=False if as_json else None)
    interrupted = threading.Event()
    try:
        with (
            _interrupts(interrupted),
            _notes(debug, said),
            scheduler(deferred=True, announce=not as_json, **cluster),
            bars,
        ):
            output = work(bars.stage)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        # Code in C may turn the interrupt into an error of its own.
        if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
            return complain(f"Stopped; {_kept(bars.finished)} Run the same command again to go on.", STOPPED)
        return complain(*_sentence(error, bars.finished, said))
    findings = list(map(said, output.findings))
    if as_json:
        found = {key: findings for key in output.data if key == "findings"}
        click.echo(json.dumps(output.data | found, indent=2, ensure_ascii=False, default=str))
    else:
        lines = (output.text, *(f"  {finding}" for finding in findings), output.after)
        click.echo("\n".join(filter(None, lines)))
    return DONE


def option_words(context: click.Context | None) -> Callable[[str | Exception], str]:
    """What turns a sentence, or an error's, in Python's words (`tdm_dask.words`) into the command line's.

    An argument becomes the option of this command that gives it, ``scan_shape=(64, 128)`` being ``--scan-shape
    64x128``; or the key of the recipe, where one was given; or else an option of another command, to which it may lead.
    What none of them has is said to be Python's. The options are asked, so that there is no list of them to keep.
    Paths that the command was given stay as they are, and those of its recipe.
    """
    if context is None:
        return lambda what: what if isinstance(what, str) else one_sentence(what)
    group = context.find_root().command
    others = group.commands.values() if isinstance(group, click.Group) else ()
    own = context.command
    has_recipe = context.params.get("recipe") is not None

    def ways(argument: Argument) -> Iterator[str | None]:
        yield _as_option(own, argument)
        if has_recipe:
            from .recipe.recipe_file import as_key

            yield as_key(argument)
        yield from (_as_option(command, argument) for command in others)
        yield in_python(argument)

    def say(argument: Argument) -> str | None:
        return next(filter(None, ways(argument)), None)

    def kept() -> Iterator[str]:
        for value in context.params.values():
            yield from path_texts(value)
        if has_recipe:
            from .recipe.recipe_file import recipe_texts

            yield from recipe_texts(context.params["recipe"])

    return lambda what: in_place(what, say, kept()) if isinstance(what, str) else error_in_place(what, say, kept())


def _as_option(command: click.Command, argument: Argument) -> str | None:
    """How an option of a command is written to give an argument its value; None if there is no such option."""
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        flag = option.opts[0]
        if isinstance(option.flag_value, str) and option.flag_value == argument.name:
            return flag
        if option.name != argument.name:
            continue
        if argument.value is False:
            return option.secondary_opts[0] if option.secondary_opts else f"no {flag}"
        if option.is_flag or argument.value is ...:
            return flag
        if option.nargs > 1:
            return " ".join([flag, *map(str, argument.value)])
        value = getattr(option.type, "written", str)("none" if argument.value is None else argument.value)
        return f'{flag} "{value}"' if " " in value else f"{flag} {value}"
    return None


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
def _notes(debug: bool, said: Callable[[str], str]) -> Iterator[None]:
    """Say this package's warnings as sentences, each once; those of others, and tracebacks in logs, for developers."""
    notes: set[str] = set()
    ours = str(Path(__file__).parent)
    shown = warnings.showwarning

    def say(message: Any, category: Any, filename: str, *rest: Any) -> None:
        if debug:
            shown(message, category, filename, *rest)
            return
        own = category is RenamedWarning or (category is UserWarning and filename.startswith(ours))
        if own and str(message) not in notes:
            notes.add(str(message))
            print(f"tdm: note: {said(str(message))}", file=sys.stderr)

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


def _sentence(error: Exception, finished: list[str], said: Callable[[Exception], str]) -> tuple[str, int]:
    from .errors import DiskFullError, TdmError, UnreachableStoreError, WorkerLostError, in_words

    if isinstance(error, (DiskFullError, UnreachableStoreError, WorkerLostError)):
        return said(error), FAILED
    if isinstance(error, TdmError):
        return said(error), WRONG
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
