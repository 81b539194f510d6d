"""Progress bars: one line per stage, in a terminal or a notebook, over whatever dask scheduler is active."""

from __future__ import annotations

import contextvars
import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from dask.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from .resources import active_client
from .scheduler_state import tasks_since_start

Stage = Callable[..., AbstractContextManager[None]]

POLL_SECONDS = 0.3

_drawing = threading.Lock()  # held by the stage that is drawn: a stage inside another draws nothing


def silent(name: str, nbytes: int | None = None, *, kept: bool = True) -> AbstractContextManager[None]:
    """A stage that shows nothing: the default where the package is used from Python.

    Examples
    --------
    >>> with silent("masks"):
    ...     pass
    """
    return nullcontext()


def progress_bar(
    name: str = "computing", nbytes: int | None = None, *, kept: bool = True
) -> AbstractContextManager[None]:
    """Show how far the computations inside a `with` block are: one line, in a terminal or a notebook.

    It counts the tasks of every dask graph that is computed in the block, whoever computes it: threads, processes or
    a `distributed.Client`, started before or inside the block. So it goes around anything that takes long:
    `.compute()` of a lazy result, `tdm_dask.convert`, `tdm_dask.proxy`, `tdm_dask.evidence`. Where a function
    computes several graphs, the bar goes back when one more begins. Work without tasks only has its time shown.

    Parameters
    ----------
    name : str, default "computing"
        Shown before the bar.
    nbytes : int, optional
        Bytes of counts that are read, such as ``counts.nbytes``, for a rate beside the time.
    kept : bool, default True
        What stages are told of what they make; a single bar has no use for it. So it may be given for the stages of
        others: ``tdm_dask.run_recipe(recipe, out, stage=tdm_dask.progress_bar)``.

    Returns
    -------
    context manager
        Draws from the beginning of the block to its end.

    Notes
    -----
    In a terminal the bar is on standard error; in a notebook it is an output of its cell, without widgets. Elsewhere,
    as in the log of a batch job, nothing is shown. A bar inside another one is not shown either.

    Examples
    --------
    >>> import numpy as np, tdm_dask as tdm
    >>> counts = tdm.label_counts(np.ones((4, 4, 6, 6), np.uint16)).chunk(y=2)
    >>> with progress_bar("mean pattern", counts.nbytes):
    ...     mean = tdm.pixel_statistics(counts)["mean"].compute()
    """
    return ProgressBars().stage(name, nbytes, kept=kept)


class ProgressBars:
    """Bars one below the other, one per stage: name, share done, elapsed time, rate.

    For work of several stages of which one wants to know, at the end or after an error, which were finished; around a
    single computation goes :func:`progress_bar`.

    Parameters
    ----------
    enabled : bool, optional
        Whether to draw. Default: only in a notebook, or where standard error is a terminal. If true elsewhere, a line
        is written when a stage ends.

    Attributes
    ----------
    finished : list of str
        Names of the stages that came to their end.

    Examples
    --------
    >>> with ProgressBars(enabled=False) as bars:
    ...     with bars.stage("convert", nbytes=1_000_000):
    ...         pass
    >>> bars.finished
    ['convert']
    """

    def __init__(self, enabled: bool | None = None) -> None:
        notebook = _in_notebook()
        self.enabled = (notebook or _is_terminal(sys.stderr)) if enabled is None else enabled
        self.finished: list[str] = []
        self._display: _Display = _Notebook() if notebook else _Terminal()
        self._together = False

    def __enter__(self) -> ProgressBars:
        self._together = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._together = False
        self._display.stop()

    @contextmanager
    def stage(self, name: str, nbytes: int | None = None, *, kept: bool = True) -> Iterator[None]:
        """Count the dask tasks that run inside the block as the stage `name`.

        Parameters
        ----------
        name : str
            Shown before the bar.
        nbytes : int, optional
            Bytes of counts that the stage reads, for its rate.
        kept : bool, default True
            Whether what the stage makes is kept: then it is among those that were finished.
        """
        if self.enabled and _drawing.acquire(blocking=False):
            try:
                with self._drawn(_Bar(name, nbytes)):
                    yield
            finally:
                if not self._together:
                    self._display.stop()
                _drawing.release()
        else:
            yield
        self.finished += [name] * kept

    @contextmanager
    def _drawn(self, bar: _Bar) -> Iterator[None]:
        self._display.add(bar)
        state = "stopped"
        try:
            with _LocalTasks(bar), _watched(bar, self._display):
                yield
            state = "done"
        finally:
            bar.end(state)
            self._display.draw(bar)


@dataclass
class _Bar:
    """What is known of one stage."""

    name: str
    nbytes: int | None
    local: tuple[int, int] = (0, 0)
    cluster: tuple[int, int] = (0, 0)
    state: str = "running"
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def end(self, state: str) -> None:
        self.state, self.ended = state, time.monotonic()

    @property
    def share(self) -> float | None:
        """The part that is done, from 0 to 1; None as long as nothing is known to be done."""
        if self.state == "done":
            return 1.0
        done, total = (a + b for a, b in zip(self.local, self.cluster, strict=True))
        return min(done / total, 1.0) if total else None

    @property
    def label(self) -> str:
        return self.name + ": stopped" * (self.state == "stopped")

    @property
    def percentage(self) -> str:
        return "" if self.share is None else f"{100 * self.share:.0f} %"

    @property
    def seconds(self) -> float:
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def time(self) -> str:
        minutes, seconds = divmod(int(self.seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    @property
    def rate(self) -> str:
        """Bytes of counts per second where the stage knows its bytes, tasks per second elsewhere."""
        tasks = self.local[0] + self.cluster[0]
        if not self.share or not self.seconds or not tasks:
            return ""
        if self.nbytes:
            rate = self.nbytes * self.share / self.seconds
            return f"{rate / 1e9:.2f} GB/s" if rate >= 1e8 else f"{rate / 1e6:.3g} MB/s"
        return f"{tasks / self.seconds:.0f} tasks/s"


class _LocalTasks(Callback):
    """Counts the tasks of every graph that a scheduler of this process starts and finishes."""

    def __init__(self, bar: _Bar) -> None:
        super().__init__()
        self._bar = bar
        self._lock = threading.Lock()

    def _start_state(self, dsk: Any, state: Any) -> None:
        self._add(0, sum(len(state[k]) for k in ("ready", "waiting", "running")))

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        self._add(1, 0)

    def _add(self, done: int, known: int) -> None:
        with self._lock:
            self._bar.local = self._bar.local[0] + done, self._bar.local[1] + known


class _ClusterTasks:
    """Counts the tasks of the active cluster, which may be started only while the stage runs."""

    def __init__(self, bar: _Bar) -> None:
        self._bar = bar
        self._before: dict[str, tuple[int, int]] = {}
        client = active_client()
        if client is not None:
            self._before[client.id] = client.run_on_scheduler(tasks_since_start)

    def look(self) -> None:
        client = active_client()
        if client is not None:
            now = client.run_on_scheduler(tasks_since_start)
            done, total = (a - b for a, b in zip(now, self._before.get(client.id, (0, 0)), strict=True))
            self._bar.cluster = done, total


@contextmanager
def _watched(bar: _Bar, display: _Display) -> Iterator[None]:
    """Look at the cluster and draw the bar now and then, from a thread of its own."""
    stop = threading.Event()
    tasks = _ClusterTasks(bar)

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            with suppress(Exception):  # a connection that is gone: the computation itself reports that
                tasks.look()
            display.draw(bar)

    # What is displayed from a thread belongs to the cell whose context the thread has.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), name="tdm-progress", daemon=True)
    thread.start()
    try:
        yield
        with suppress(Exception):
            tasks.look()
    finally:
        stop.set()
        thread.join()


class _Display(Protocol):
    """Where bars are drawn."""

    def add(self, bar: _Bar) -> None: ...

    def draw(self, bar: _Bar) -> None: ...

    def stop(self) -> None: ...


class _Text(ProgressColumn):
    """One property of a bar."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def render(self, task: Task) -> Text:
        return Text(getattr(task.fields["bar"], self._name), no_wrap=True)


class _Terminal:
    """Bars on standard error; what is printed meanwhile goes above them."""

    def __init__(self) -> None:
        self._rows: dict[int, Any] = {}
        self._progress: Progress | None = None
        self._room = 24

    def add(self, bar: _Bar) -> None:
        if self._progress is None:
            console = Console(stderr=True)
            length = 24 if console.width >= 80 else 12
            # Long names are cut, so that the numbers never are.
            self._room = max(8, console.width - length - len(" 100 % 0:00:00 10000 tasks/s"))
            texts = [_Text(name) for name in ("percentage", "time", "rate")]
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=length), *texts)
            self._progress = Progress(*columns, console=console)
            self._progress.start()
        self._rows[id(bar)] = self._progress.add_task(self._cut(bar.label), total=None, bar=bar)

    def draw(self, bar: _Bar) -> None:
        if self._progress is not None:
            row = self._rows[id(bar)]
            self._progress.update(row, description=self._cut(bar.label), completed=bar.share or 0.0)
            if bar.share is not None or bar.ended is not None:
                self._progress.update(row, total=1.0)

    def _cut(self, label: str) -> str:
        return (label if len(label) <= self._room else label[: self._room - 1] + "…").ljust(min(24, self._room))

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Notebook:
    """Bars as outputs of a cell, each replaced in place: HTML that no widget has to stand behind."""

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}

    def add(self, bar: _Bar) -> None:
        from IPython.display import display

        self._handles[id(bar)] = display(_mimebundle(bar), raw=True, display_id=True)

    def draw(self, bar: _Bar) -> None:
        if id(bar) in self._handles:
            self._handles[id(bar)].update(_mimebundle(bar), raw=True)

    def stop(self) -> None:
        self._handles.clear()


_COLOURS = {"running": "#56B4E9", "done": "#009E73", "stopped": "#D55E00"}


def _mimebundle(bar: _Bar) -> dict[str, str]:
    words = [text for text in (bar.percentage, bar.time, bar.rate) if text]
    # The colours of page and text are the notebook's own, so that it looks right on dark pages as well.
    row = "display:flex;align-items:center;gap:0.8em;margin:0.2em 0;font-family:sans-serif;font-size:0.9em"
    rail = "width:12em;height:0.5em;border-radius:0.25em;background:rgba(128,128,128,0.3)"
    done = f"width:{100 * (bar.share or 0):.1f}%;height:100%;border-radius:inherit;background:{_COLOURS[bar.state]}"
    numbers = "font-variant-numeric:tabular-nums"
    line = (
        f'<div style="{row}"><span style="min-width:10em">{html.escape(bar.label)}</span>'
        f'<div style="{rail}"><div style="{done}"></div></div><span style="{numbers}">{" · ".join(words)}</span></div>'
    )
    return {"text/html": line, "text/plain": "  ".join([bar.label, *words])}


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process; IPython is not imported for this."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
