"""Workers: a process for each contestant, pinned to its cores, that measures what it does.

Linux alone tells a process its peak memory since a given moment, and the bytes it has read.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from .contestant import Contestant

# Seconds that a contestant may take for one run, if nothing else is said.
PATIENCE = 300
# Part of the memory that is free when a worker starts which it may take.
MEMORY_SHARE = 0.8
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS")


@dataclass(frozen=True)
class Run:
    """What one run of a contestant took.

    Parameters
    ----------
    seconds : float
    bytes_read : int
        By read calls, whether from the disk or from the page cache; memory-mapped files do not count.
    peak_bytes : int
        Peak resident memory, above that after its libraries were imported. Pages of mapped files count.
    """

    seconds: float
    bytes_read: int
    peak_bytes: int


class WorkerFailed(Exception):
    """A contestant could not do its job."""


class Worker:
    """The process of one contestant, which waits until it is asked.

    Parameters
    ----------
    contestant : Contestant
    log : path
        What its libraries print goes there.
    patience : float
        Seconds that it may take for one run.
    """

    def __init__(self, contestant: Contestant, log: Path, patience: float = PATIENCE) -> None:
        self._patience = patience
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contestant.cores, log))
        self._process.start()
        theirs.close()
        self._ask(contestant)

    def run(self, answer: Path | None = None) -> Run:
        """Do the job once; where a path is given, the answer is saved there (.npz).

        Raises
        ------
        WorkerFailed
            If the job ended with an error, or did not end in time.
        """
        return self._ask(answer)

    @property
    def pid(self) -> int:
        """The process; others that it started are below it."""
        assert self._process.pid is not None
        return self._process.pid

    def close(self) -> None:
        """Let the process end."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            for process in process_tree(self._process.pid):
                process.kill()
            self._process.join()

    def _ask(self, message: object) -> Run:
        try:
            self._pipe.send(message)
            in_time = self._pipe.poll(self._patience)
            reply = self._pipe.recv() if in_time else f"it did not finish in {self._patience} s"
        except (EOFError, BrokenPipeError):
            reply = "its process died"
        except BaseException:
            self.close()
            raise
        if isinstance(reply, str):
            self.close()
            raise WorkerFailed(reply)
        return reply


def _serve(pipe: Connection, cores: int, log: Path) -> None:
    """The worker's side: pin itself before anything is imported, then do what is asked until the pipe is closed."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ.update(dict.fromkeys(THREADS, str(cores)))
    # Who asks for more memory than there is fails alone, and takes no other process along.
    most = int(MEMORY_SHARE * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    contestant: Contestant = pipe.recv()
    try:
        contestant.prepare()
        baseline = sum(status_bytes(p.pid, "VmRSS") for p in process_tree())
        contestant.load()
        pipe.send(None)
        while True:
            answer = pipe.recv()
            pipe.send(_measured(contestant, baseline, answer))
    except EOFError:
        contestant.close()
    except Exception as error:
        traceback.print_exc()
        pipe.send(" ".join(f"{type(error).__name__}: {error}".split())[:300])
        contestant.close()


def _measured(contestant: Contestant, baseline: int, answer: Path | None) -> Run:
    import numpy as np

    contestant.settle()
    processes = process_tree()
    for process in processes:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak starts anew
    before = _bytes_read(processes)
    start = time.perf_counter()
    result = contestant.run()
    seconds = time.perf_counter() - start
    run = Run(seconds, _bytes_read(processes) - before, sum(status_bytes(p.pid, "VmHWM") for p in processes) - baseline)
    if answer is not None:
        np.savez(answer, **result)
    contestant.tidy()
    return run


def process_tree(pid: int | None = None) -> list[psutil.Process]:
    """A process and everything that it started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _bytes_read(processes: Sequence[psutil.Process]) -> int:
    return sum(p.io_counters().read_chars for p in processes)


def status_bytes(pid: int, field: str) -> int:
    """A size in bytes from what the kernel says about a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
