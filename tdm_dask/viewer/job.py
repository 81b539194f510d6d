"""Long work beside a page that stays alive: in a thread of its own, with progress, and a cancel that does not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..cluster.progress import Stage
from ..cluster.schedulers import loss_in_words
from ..errors import TdmError
from ..words import error_in_place, in_python
from .cancelling import LAST_TASKS_SECONDS, Cancelled, Graphs

State = Literal["waiting", "running", "cancelled", "failed", "done"]


@dataclass(frozen=True)
class StageProgress:
    """A stage of a job.

    Attributes
    ----------
    name : str
    done, total : int
        Tasks that are finished and known; the total grows where a stage computes several graphs.
    nbytes : int or None
        Bytes of counts that it reads, where known.
    seconds : float
        Since it began, or what it took.
    finished : bool
    kept : bool
        Whether what it makes is kept once it is finished.

    Examples
    --------
    >>> half = StageProgress("masks", 4, 8, 2_000_000_000, 2.0, False)
    >>> half.fraction, half.rate
    (0.5, 500000000.0)
    """

    name: str
    done: int
    total: int
    nbytes: int | None
    seconds: float
    finished: bool
    kept: bool = True

    @property
    def fraction(self) -> float | None:
        """Share of the tasks that are finished; None while none are known."""
        return 1.0 if self.finished else self.done / self.total if self.total else None

    @property
    def rate(self) -> float | None:
        """Bytes of counts per second; None where the bytes or the share are not known."""
        if self.nbytes is None or not self.fraction or not self.seconds:
            return None
        return self.nbytes * self.fraction / self.seconds


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    Attributes
    ----------
    state : {"waiting", "running", "cancelled", "failed", "done"}
    stages : tuple of StageProgress
        In the order in which they began.
    seconds : float
        Since the job began, or what it took.
    result : object
        What the work has returned, once it is done.
    error : str or None
        Why it failed, in one sentence.
    """

    state: State
    stages: tuple[StageProgress, ...]
    seconds: float
    result: Any = None
    error: str | None = None

    @property
    def finished(self) -> tuple[StageProgress, ...]:
        """The stages that came to their end."""
        return tuple(stage for stage in self.stages if stage.finished)

    @property
    def current(self) -> StageProgress | None:
        """The stage that is being worked on."""
        return next((stage for stage in reversed(self.stages) if not stage.finished), None)

    @property
    def ended(self) -> bool:
        """Whether nothing more will change."""
        return self.state in ("cancelled", "failed", "done")


def error_in_words(error: BaseException) -> str:
    """An error of a job in one sentence, those of a lost cluster as well; an argument in it is said to be Python's.

    Examples
    --------
    >>> error_in_words(ZeroDivisionError("division by zero"))
    'ZeroDivisionError: division by zero.'
    """
    loss = None if isinstance(error, TdmError) else loss_in_words(error)
    return f"{loss}." if loss else error_in_place(error, in_python)


class Job:
    """Runs ``work(stage)`` in a thread of its own, once.

    Parameters
    ----------
    work : callable
        Called with a :data:`tdm_dask.cluster.progress.Stage`; what it computes goes to the active dask scheduler.
    describe : callable, optional
        Gives the sentence of an error.

    Notes
    -----
    A job that is cancelled ends when its thread next computes, waits for a computation, or begins or ends a stage. It
    does not wait for tasks that have begun, but for a few seconds; those of a cluster end by themselves. What earlier
    stages have stored stays.

    Examples
    --------
    >>> import dask
    >>> def work(stage):
    ...     with stage("double"):
    ...         return dask.delayed(lambda number: 2 * number)(21).compute()
    >>> progress = Job(work).start().wait()
    >>> progress.state, progress.result, [(s.name, s.done, s.total) for s in progress.finished]
    ('done', 42, [('double', 1, 1)])
    """

    def __init__(self, work: Callable[[Stage], Any], describe: Callable[[Exception], str] = error_in_words) -> None:
        self._work, self._describe = work, describe
        self._lock = threading.Lock()
        self._stages: list[StageProgress] = []
        self._began: dict[int, float] = {}
        self._progress = JobProgress("waiting", (), 0.0)
        self._since: float | None = None
        self._ended = threading.Event()
        self._graphs = Graphs(self._count)
        self._thread = threading.Thread(target=self._run, name="tdm-job", daemon=True)

    def start(self) -> Job:
        """Begin, and give back this job."""
        with self._lock:
            if not self._graphs.cancelled:
                self._since = time.perf_counter()
                self._progress = replace(self._progress, state="running")
                self._thread.start()
        return self

    def progress(self) -> JobProgress:
        """How far it is, at this moment; may be asked from any thread."""
        with self._lock:
            if self._progress.ended or self._since is None:
                return self._progress
            now = time.perf_counter()
            stages = (
                stage if stage.finished else replace(stage, seconds=now - self._began[index])
                for index, stage in enumerate(self._stages)
            )
            return replace(self._progress, stages=tuple(stages), seconds=now - self._since)

    def cancel(self) -> None:
        """Have it end as soon as it can; returns at once. Nothing happens to a job that has ended."""
        with self._lock:
            if self._since is None and not self._ended.is_set():
                self._progress = JobProgress("cancelled", (), 0.0)
                self._ended.set()
            self._graphs.cancel()

    def end(self) -> JobProgress:
        """Cancel it, as when its page is no longer served, and wait a little for its end."""
        self.cancel()
        return self.wait(LAST_TASKS_SECONDS)

    def wait(self, timeout: float | None = None) -> JobProgress:
        """Wait for its end, or so many seconds, and say how far it is."""
        self._ended.wait(timeout)
        return self.progress()

    def _run(self) -> None:
        result, error = None, None
        state: State = "done"
        try:
            with self._graphs.of_this_thread():
                result = self._work(self._stage)
                self._graphs.check()
        except Cancelled:
            state = "cancelled"
        except Exception as failure:
            # What was lost because of the cancel is no failure.
            state = "cancelled" if self._graphs.cancelled else "failed"
            error = None if self._graphs.cancelled else self._describe(failure)
        finally:
            last = self.progress()
            with self._lock:
                self._progress = replace(last, state=state, result=result if state == "done" else None, error=error)
            self._ended.set()

    @contextmanager
    def _stage(self, name: str, nbytes: int | None = None, *, kept: bool = True) -> Iterator[None]:
        self._graphs.check()
        with self._lock:
            index = len(self._stages)
            self._stages.append(StageProgress(name, 0, 0, nbytes, 0.0, False, kept))
            self._began[index] = time.perf_counter()
        yield
        self._graphs.check()
        with self._lock:
            stage, seconds = self._stages[index], time.perf_counter() - self._began[index]
            self._stages[index] = replace(stage, done=stage.total, seconds=seconds, finished=True)

    def _count(self, done: int, total: int) -> None:
        """Add to the tasks of the stage that is being worked on."""
        with self._lock:
            for index in reversed(range(len(self._stages))):
                stage = self._stages[index]
                if not stage.finished:
                    self._stages[index] = replace(stage, done=stage.done + done, total=stage.total + total)
                    return
