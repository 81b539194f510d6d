"""Long work beside a page that stays alive: in a thread of its own, with progress, and a cancel that does not wait.

dask's callbacks and its configuration are the process's, so that they cannot tell a job from what the page computes at
the same time. Therefore one scheduler stands before the active one while jobs run: it looks at the thread that asks,
and sends a job's graphs through pools and futures of that job; all others go where they would have gone.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import dask.base
import dask.local
import dask.threaded
from dask.callbacks import Callback
from dask.system import CPU_COUNT

from ..cluster import loss_in_words
from ..errors import TdmError, sentence
from ..progress import Stage
from ..resources import active_client

State = Literal["waiting", "running", "cancelled", "failed", "done"]

POLL_SECONDS = 0.25
# How long a job that was cancelled waits for tasks that have begun, so that none writes while the next one runs.
LAST_TASKS_SECONDS = 10.0


class Cancelled(Exception):
    """Raised in the thread of a job that was cancelled."""


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
    """An error of a job in one sentence, those of a lost cluster as well.

    Examples
    --------
    >>> error_in_words(ZeroDivisionError("division by zero"))
    'ZeroDivisionError: division by zero.'
    """
    loss = None if isinstance(error, TdmError) else loss_in_words(error)
    return f"{loss}." if loss else sentence(error)


class Job:
    """Runs ``work(stage)`` in a thread of its own, once.

    Parameters
    ----------
    work : callable
        Called with a :data:`tdm_dask.progress.Stage`; what it computes goes to the active dask scheduler.
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
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._graph: _Graph | None = None
        self._pool: _Pool | None = None
        self._thread = threading.Thread(target=self._run, name="tdm-job", daemon=True)
        _all.add(self)

    def start(self) -> Job:
        """Begin, and give back this job."""
        with self._lock:
            if not self._cancelled.is_set():
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
            self._cancelled.set()
            if self._since is None and not self._ended.is_set():
                self._progress = JobProgress("cancelled", (), 0.0)
                self._ended.set()
            graph = self._graph
        if graph is not None:
            graph.cancel()

    def wait(self, timeout: float | None = None) -> JobProgress:
        """Wait for its end, or so many seconds, and say how far it is."""
        self._ended.wait(timeout)
        return self.progress()

    def _run(self) -> None:
        result, error = None, None
        state: State = "done"
        try:
            with _standing_before(self):
                result = self._work(self._stage)
                self._check()
        except Cancelled:
            state = "cancelled"
        except Exception as failure:
            # What was lost because of the cancel is no failure.
            state = "cancelled" if self._cancelled.is_set() else "failed"
            error = None if self._cancelled.is_set() else self._describe(failure)
        finally:
            if self._pool is not None:
                self._pool.close()
            last = self.progress()
            with self._lock:
                self._progress = replace(last, state=state, result=result if state == "done" else None, error=error)
            self._ended.set()

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    @contextmanager
    def _stage(self, name: str, nbytes: int | None = None, *, kept: bool = True) -> Iterator[None]:
        self._check()
        with self._lock:
            index = len(self._stages)
            self._stages.append(StageProgress(name, 0, 0, nbytes, 0.0, False, kept))
            self._began[index] = time.perf_counter()
        yield
        self._check()
        with self._lock:
            stage, seconds = self._stages[index], time.perf_counter() - self._began[index]
            self._stages[index] = replace(stage, done=stage.total, seconds=seconds, finished=True)

    def count(self, done: int, total: int) -> None:
        """Add to the tasks of the stage that is being worked on."""
        with self._lock:
            for index in reversed(range(len(self._stages))):
                stage = self._stages[index]
                if not stage.finished:
                    self._stages[index] = replace(stage, done=stage.done + done, total=stage.total + total)
                    return

    def get(self, get: Callable[..., Any], dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        """Compute a graph of this job by dask's `get`, or by the client of a cluster."""
        self._check()
        if _is_of_client(get):
            graph: _Graph = _OnCluster(self, get.__self__)  # type: ignore[attr-defined]
        elif get is dask.threaded.get:
            if self._pool is None:
                self._pool = _Pool(int(dask.config.get("num_workers", None) or CPU_COUNT))
            graph = _OnThreads(self, get, self._pool)
        else:
            graph = _Here(self, get)
        with self._lock:
            self._graph = graph
        try:
            self._check()  # a cancel that came before it was known
            return graph.compute(dsk, keys, options)
        finally:
            with self._lock:
                self._graph = None


def cancel_all() -> None:
    """Cancel every job of this process, as when the page is closed, and wait for their ends a little."""
    jobs = [job for job in list(_all) if not job.progress().ended]
    for job in jobs:
        job.cancel()
    for job in jobs:
        job.wait(LAST_TASKS_SECONDS)


class _Graph:
    """A graph while it is computed; what it may be computed by differs in how it is counted and stopped."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def compute(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def cancel(self) -> None:
        """Called by another thread."""


class _Tasks(Callback):
    """Counts the tasks of the one graph that it is handed to."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def _start_state(self, dsk: Any, state: Any) -> None:
        self._job.count(0, sum(len(state[part]) for part in ("ready", "waiting", "running")))

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        self._job._check()

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        self._job.count(1, 0)


class _Here(_Graph):
    """By a scheduler of dask that takes callbacks; it stops before its next task."""

    def __init__(self, job: Job, get: Callable[..., Any]) -> None:
        super().__init__(job)
        self._get = get

    def compute(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        return self._get(dsk, keys, callbacks=[_Tasks(self._job)._callback], **options)


class _OnThreads(_Here):
    """By threads of the job's own; the wait for a task ends at once."""

    def __init__(self, job: Job, get: Callable[..., Any], pool: _Pool) -> None:
        super().__init__(job, get)
        self._pool = pool

    def compute(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        return super().compute(dsk, keys, options | {"pool": self._pool})

    def cancel(self) -> None:
        self._pool.give_up()


class _Pool:
    """Threads whose tasks can be given up: who waits for one is told so, while it goes on to its end."""

    def __init__(self, workers: int) -> None:
        self._max_workers = workers  # dask asks for it
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="tdm-job-task")
        self._lock = threading.Lock()
        self._waited: dict[Future[Any], Future[Any]] = {}
        self._given_up: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        waited: Future[Any] = Future()
        with self._lock:
            task = self._threads.submit(contextvars.copy_context().run, function, *arguments)
            self._waited[waited] = task
        task.add_done_callback(lambda task: self._hand_over(waited, task))
        return waited

    def _hand_over(self, waited: Future[Any], task: Future[Any]) -> None:
        with self._lock:
            given_up = self._waited.pop(waited, None) is None
        if given_up or task.cancelled():
            return
        error = task.exception()
        if error is None:
            waited.set_result(task.result())
        else:
            waited.set_exception(error)

    def give_up(self) -> None:
        with self._lock:
            waited, self._waited = self._waited, {}
            self._given_up += waited.values()
        for future in waited:
            future.set_exception(Cancelled())

    def close(self) -> None:
        """End the threads, and wait a little for tasks that have begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            tasks = [*self._waited.values(), *self._given_up]
        wait_for(tasks, LAST_TASKS_SECONDS)


class _OnCluster(_Graph):
    """By workers of a cluster; their tasks that have not begun are dropped."""

    def __init__(self, job: Job, client: Any) -> None:
        super().__init__(job)
        self._client = client
        self._gathering: Future[Any] | None = None
        self._futures: Sequence[Any] = ()

    def compute(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        from distributed import futures_of

        asked = self._client.get(dsk, keys, sync=False, **options)
        self._futures = futures_of(asked)
        try:
            self._gathering = self._soon(self._client.gather(asked, asynchronous=True))
            self._job._check()  # a cancel that came before it was known
            counted = (0, 0)
            while not self._gathering.done():
                wait_for([self._gathering], POLL_SECONDS)
                counted = self._look(counted)
            self._job._check()
            return self._gathering.result()
        finally:
            for future in self._futures:
                future.release()

    def _soon(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._client.loop.asyncio_loop)

    def _look(self, before: tuple[int, int]) -> tuple[int, int]:
        keys = [future.key for future in self._futures]
        with suppress(OSError, ValueError, RuntimeError, AttributeError):  # the end of the cluster is told by the wait
            now = self._client.run_on_scheduler(_tasks_for, keys)
            done, total = max(now[0], before[0]), max(now[1], before[1])
            self._job.count(done - before[0], total - before[1])
            return done, total
        return before

    def cancel(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._soon(self._client.cancel(list(self._futures), asynchronous=True, force=True))


def _tasks_for(keys: Sequence[Any], dask_scheduler: Any) -> tuple[int, int]:
    """Finished tasks and all of those that results need (runs on the scheduler, which keeps them until it has them)."""
    seen: set[Any] = set()
    left = [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    while left:
        task = left.pop()
        if task not in seen:
            seen.add(task)
            left.extend(task.dependencies)
    return sum(task.state in ("memory", "released", "erred") for task in seen), len(seen)


# The job of each thread that runs one; the scheduler that was active before the first of them.
_jobs: dict[int, Job] = {}
_all: weakref.WeakSet[Job] = weakref.WeakSet()
_lock = threading.Lock()
_standing: Any = None
_usual: Any = None


@contextmanager
def _standing_before(job: Job) -> Iterator[None]:
    """The computations of this thread are the job's inside the block."""
    global _standing, _usual
    # A cluster that starts with the first computation sets the configuration itself: let it do so before.
    active = dask.config.get("scheduler", None)
    if callable(active) and active is not _get:
        active({}, [])
    with _lock:
        _jobs[threading.get_ident()] = job
        if _standing is None:
            _usual = dask.config.get("scheduler", None)
            _standing = dask.config.set(scheduler=_get)
    try:
        yield
    finally:
        with _lock:
            del _jobs[threading.get_ident()]
            if not _jobs:
                if dask.config.get("scheduler", None) is _get:
                    _standing.__exit__(None, None, None)
                _standing = None


def _get(dsk: Any, keys: Any, **options: Any) -> Any:
    """A dask scheduler's `get` that stands before the active one; workers that are sent it have no jobs."""
    get = _active_get()
    job = _jobs.get(threading.get_ident())
    return get(dsk, keys, **options) if job is None else job.get(get, dsk, keys, options)


def _active_get() -> Callable[..., Any]:
    if _usual is not None and _usual is not _get:
        return dask.base.get_scheduler(scheduler=_usual)
    client = active_client()
    return dask.threaded.get if client is None else client.get


def _is_of_client(get: Callable[..., Any]) -> bool:
    if "distributed" not in sys.modules:
        return False
    from distributed import Client

    return isinstance(getattr(get, "__self__", None), Client)
