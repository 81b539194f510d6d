"""The graphs that a thread computes, told from those of all other threads: counted, and stopped at once.

dask's callbacks and its configuration are the process's, so that they cannot tell a job from what the page computes at
the same time. Therefore one scheduler stands before the active one while jobs run: it looks at the thread that asks,
and sends a job's graphs through pools and futures of that job; all others go where they would have gone.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from typing import Any

import dask.base
import dask.local
import dask.threaded
from dask.callbacks import Callback
from dask.system import CPU_COUNT

from ..cluster.resources import active_client
from ..cluster.scheduler_state import tasks_for

POLL_SECONDS = 0.25
# How long is waited for tasks that have begun when they are given up, so that none writes while the next job runs.
LAST_TASKS_SECONDS = 10.0


class Cancelled(Exception):
    """Raised in the thread whose graphs were cancelled."""


class Graphs:
    """The graphs of one thread.

    Parameters
    ----------
    count : callable
        Told how many tasks more are finished, and how many more are known.

    Examples
    --------
    >>> import dask
    >>> told = []
    >>> graphs = Graphs(lambda done, total: told.append((done, total)))
    >>> with graphs.of_this_thread():
    ...     dask.delayed(lambda number: 2 * number)(21).compute(scheduler="synchronous")
    ...     dask.delayed(lambda number: 2 * number)(21).compute()
    42
    42
    >>> told
    [(0, 1), (1, 0)]
    """

    def __init__(self, count: Callable[[int, int], None]) -> None:
        self.count = count
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._graph: _Graph | None = None
        self._pool: _Pool | None = None

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise Cancelled if they were."""
        if self.cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """Stop the one that is computed, and all that would follow; any thread may ask for it."""
        with self._lock:
            self._cancelled.set()
            graph = self._graph
        if graph is not None:
            graph.cancel()

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """What this thread computes in the block is theirs, where it does not name a scheduler itself."""
        with _standing_before(self):
            try:
                yield
            finally:
                if self._pool is not None:
                    self._pool.close()

    def get(self, get: Callable[..., Any], dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        """Compute a graph by dask's `get`, or by the client of a cluster."""
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
            self.check()  # a cancel that came before the graph was known
            return graph.compute(dsk, keys, options)
        finally:
            with self._lock:
                self._graph = None


class _Graph(ABC):
    """A graph while it is computed; what it may be computed by differs in how it is counted and stopped."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs

    @abstractmethod
    def compute(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        """The values of the keys."""

    @abstractmethod
    def cancel(self) -> None:
        """Called by another thread."""


class _Tasks(Callback):
    """Counts the tasks of the one graph that it is handed to."""

    def __init__(self, graphs: Graphs) -> None:
        super().__init__()
        self._graphs = graphs

    def _start_state(self, dsk: Any, state: Any) -> None:
        self._graphs.count(0, sum(len(state[part]) for part in ("ready", "waiting", "running")))

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        self._graphs.check()

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        self._graphs.count(1, 0)


class _Here(_Graph):
    """By a scheduler of dask that takes callbacks; it stops before its next task."""

    def __init__(self, graphs: Graphs, get: Callable[..., Any]) -> None:
        super().__init__(graphs)
        self._get = get

    def compute(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        return self._get(dsk, keys, callbacks=[_Tasks(self._graphs)._callback], **options)

    def cancel(self) -> None:
        return  # the next task looks


class _OnThreads(_Here):
    """By threads of the job's own; the wait for a task ends at once."""

    def __init__(self, graphs: Graphs, get: Callable[..., Any], pool: _Pool) -> None:
        super().__init__(graphs, get)
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

    def __init__(self, graphs: Graphs, client: Any) -> None:
        super().__init__(graphs)
        self._client = client
        self._gathering: Future[Any] | None = None
        self._futures: Sequence[Any] = ()

    def compute(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        from distributed import futures_of

        asked = self._client.get(dsk, keys, sync=False, **options)
        self._futures = futures_of(asked)
        try:
            self._gathering = self._soon(self._client.gather(asked, asynchronous=True))
            self._graphs.check()  # a cancel that came before it was known
            counted = (0, 0)
            while not self._gathering.done():
                wait_for([self._gathering], POLL_SECONDS)
                counted = self._look(counted)
            self._graphs.check()
            return self._gathering.result()
        finally:
            for future in self._futures:
                future.release()

    def _soon(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._client.loop.asyncio_loop)

    def _look(self, before: tuple[int, int]) -> tuple[int, int]:
        keys = [future.key for future in self._futures]
        with suppress(OSError, ValueError, RuntimeError, AttributeError):  # the end of the cluster is told by the wait
            now = self._client.run_on_scheduler(tasks_for, keys)
            done, total = max(now[0], before[0]), max(now[1], before[1])
            self._graphs.count(done - before[0], total - before[1])
            return done, total
        return before

    def cancel(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._soon(self._client.cancel(list(self._futures), asynchronous=True, force=True))


# The graphs of each thread that has some; the scheduler that was active before the first of them.
_threads: dict[int, Graphs] = {}
_lock = threading.Lock()
_standing: Any = None
_usual: Any = None


@contextmanager
def _standing_before(graphs: Graphs) -> Iterator[None]:
    """Put the scheduler that looks at threads before the active one, for as long as any thread has graphs."""
    global _standing, _usual
    # A cluster that starts with the first computation sets the configuration itself: let it do so before.
    active = dask.config.get("scheduler", None)
    if callable(active) and active is not _get:
        active({}, [])
    with _lock:
        _threads[threading.get_ident()] = graphs
        if _standing is None:
            _usual = dask.config.get("scheduler", None)
            _standing = dask.config.set(scheduler=_get)
    try:
        yield
    finally:
        with _lock:
            del _threads[threading.get_ident()]
            if not _threads:
                if dask.config.get("scheduler", None) is _get:
                    _standing.__exit__(None, None, None)
                _standing = None


def _get(dsk: Any, keys: Any, **options: Any) -> Any:
    """A dask scheduler's `get` that stands before the active one; workers that are sent it have no graphs."""
    get = _active_get()
    graphs = _threads.get(threading.get_ident())
    return get(dsk, keys, **options) if graphs is None else graphs.get(get, dsk, keys, options)


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
