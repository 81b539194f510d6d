"""What the active dask scheduler computes with: workers, threads, memory."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import dask
from dask.system import CPU_COUNT

# Key of dask's configuration for the threads that a cluster will have when all of its workers have come.
PLANNED_CORES = "tdm_dask.cores"


@dataclass(frozen=True)
class Resources:
    """Workers of the active scheduler.

    Attributes
    ----------
    workers : int
        Processes that compute; 1 where threads of this process do.
    threads : int
        Threads of all workers together.
    memory_bytes : int
        Memory that one worker may use, the smallest of all.
    """

    workers: int
    threads: int
    memory_bytes: int


def active_client() -> Any | None:
    """The distributed client that dask would use now, or None; distributed is not imported for this."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        return get_client(timeout=1)
    except ValueError:
        return None


def cores() -> int:
    """Threads that the active scheduler computes with, or is going to."""
    client, planned = active_client(), int(dask.config.get(PLANNED_CORES, None) or 0)
    if client is not None:
        return max(1, planned, sum(client.nthreads().values()))
    if planned:
        return planned
    if synchronous():
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def synchronous() -> bool:
    """Whether dask was told to compute in the thread that asks, as for a debugger."""
    return dask.config.get("scheduler", None) in ("sync", "synchronous", "single-threaded")


def memory_limit() -> int:
    """Bytes that this process may use, as the machine, control groups and its own limits allow."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def resources() -> Resources:
    """The workers of the active scheduler, and what they may use.

    Examples
    --------
    >>> here = resources()
    >>> here.workers, here.threads >= 1, here.memory_bytes > 2**20
    (1, True, True)
    """
    client = active_client()
    if client is None:
        return Resources(1, cores(), memory_limit())
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [int(worker["memory_limit"]) for worker in workers if worker["memory_limit"]]
    # A worker without a limit has what its machine has; that of this one is a guess.
    memory = min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Resources(max(1, len(workers)), cores(), memory)
