"""Progress bars: one per stage, over whatever dask scheduler is active."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from dask.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from .resources import active_client

Stage = Callable[..., AbstractContextManager[None]]

POLL_SECONDS = 0.3


def silent(name: str, nbytes: int | None = None, *, kept: bool = True) -> AbstractContextManager[None]:
    """A stage that shows nothing: the default where the package is used from Python.

    Examples
    --------
    >>> with silent("masks"):
    ...     pass
    """
    return nullcontext()


class _Rate(ProgressColumn):
    """Bytes of counts per second where a stage knows its bytes, tasks per second elsewhere."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time or task.elapsed
        if not elapsed or not task.completed:
            return Text("")
        nbytes = task.fields["nbytes"]
        if nbytes and task.total:
            return Text(f"{nbytes * task.completed / task.total / elapsed / 1e9:.2f} GB/s")
        return Text("" if task.total == 1 else f"{task.completed / elapsed:.0f} tasks/s")


class _LocalTasks(Callback):
    """Counts the tasks of every graph that a scheduler of this process starts and finishes."""

    def __init__(self, show: Callable[[int, int], None]) -> None:
        super().__init__()
        self._show = show
        self._lock = threading.Lock()
        self._done = self._total = 0

    def _start_state(self, dsk: Any, state: Any) -> None:
        with self._lock:
            self._total += sum(len(state[k]) for k in ("ready", "waiting", "running"))

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        with self._lock:
            self._done += 1
            self._show(self._done, self._total)


def _scheduler_tasks(dask_scheduler: Any) -> tuple[int, int]:
    """Finished and known tasks of a distributed scheduler since it started (runs on the scheduler)."""
    done = total = 0
    for prefix in dask_scheduler.task_prefixes.values():
        # States count the tasks of graphs that are still known; of others only the transitions are left.
        states, forgotten = prefix.states, prefix.state_counts["forgotten"]
        total += forgotten + sum(states.values()) - states["forgotten"]
        done += forgotten + sum(states[state] for state in ("memory", "released", "erred"))
    return done, total


@contextmanager
def _poll_cluster(show: Callable[[int, int], None]) -> Iterator[None]:
    """Show the tasks of the active cluster, which may be started only while the block runs."""
    client = active_client()
    done_before, total_before = (0, 0) if client is None else client.run_on_scheduler(_scheduler_tasks)
    stop = threading.Event()

    def look() -> None:
        client = active_client()
        if client is not None:
            done, total = client.run_on_scheduler(_scheduler_tasks)
            show(done - done_before, total - total_before)

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            try:
                look()
            except OSError:  # the connection is gone: the computation itself reports that
                return

    thread = threading.Thread(target=poll, name="tdm-progress", daemon=True)
    thread.start()
    try:
        yield
        look()
    finally:
        stop.set()
        thread.join()


class ProgressBars:
    """Bars on standard error, one per stage: name, share done, elapsed time, rate.

    Parameters
    ----------
    enabled : bool, optional
        Whether to draw. Default: only where standard error is a terminal.

    Attributes
    ----------
    finished : list of str
        Names of the stages that came to their end.

    Examples
    --------
    >>> with ProgressBars(enabled=False) as bars:
    ...     with bars.stage("convert", nbytes=1_000_000):
    ...         pass
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self.finished: list[str] = []
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _Rate(),
            console=Console(stderr=True),
            disable=not self.enabled,
        )

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

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
        if not self.enabled:
            yield
            self.finished += [name] * kept
            return
        bar = self._progress.add_task(name, total=None, nbytes=nbytes)

        def show(done: int, total: int) -> None:
            self._progress.update(bar, completed=done, total=max(total, 1))

        with _LocalTasks(show), _poll_cluster(show):
            yield
        self.finished += [name] * kept
        total = self._progress.tasks[bar].total or 1
        self._progress.update(bar, completed=total, total=total)
