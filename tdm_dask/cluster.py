"""Schedulers: the one module that starts or joins them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from dask.utils import parse_bytes

from .errors import InputError, WorkerLostError

CONNECT_SECONDS = 15


@contextmanager
def scheduler(
    address: str | None = None,
    workers: int | None = None,
    memory: str | None = None,
    *,
    announce: bool = True,
) -> Iterator[Any | None]:
    """The scheduler that computes inside the block.

    Parameters
    ----------
    address : str, optional
        Address of a running dask.distributed scheduler ("tcp://host:8786"), or the path of its scheduler
        file.
    workers : int, optional
        Start this many worker processes on this machine, of one thread each: then the memory limit of a
        worker is that of one task.
    memory : str, optional
        Memory limit of each such worker, such as "4GiB". Default: an equal share of the machine's.
    announce : bool, default True
        Name the dashboard on standard error.

    Yields
    ------
    distributed.Client or None
        None where neither is given: then dask's threads on all local cores compute.

    Raises
    ------
    InputError
        If both kinds are asked for, a number makes no sense, or no scheduler answers.
    WorkerLostError
        If workers die while the block computes.

    Examples
    --------
    >>> with scheduler() as client:
    ...     client is None
    True
    """
    if address is not None and (workers is not None or memory is not None):
        raise InputError("--scheduler joins a cluster with workers of its own; leave out --workers and --memory.")
    if memory is not None and workers is None:
        raise InputError("--memory limits the workers of --workers; give their number, such as --workers 4.")
    if address is None and workers is None:
        with dask.config.set(scheduler="threads"):
            yield None
        return

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    with _join(address) if address is not None else _start(workers or 0, memory) as client:
        if announce and client.dashboard_link:
            print(f"Dashboard: {client.dashboard_link}", file=sys.stderr)
        try:
            yield client
        except (KilledWorker, CommClosedError) as error:
            raise WorkerLostError(
                f"Workers were lost while computing ({_first_sentence(error)}); finished stages are kept: "
                "give the workers more memory and run the same command again."
            ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split(". ")[0].split("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def _join(address: str) -> Iterator[Any]:
    from distributed import Client

    is_file = "://" not in address and Path(address).is_file()
    try:
        where = {"scheduler_file": address} if is_file else {"address": address}
        client = Client(**where, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f'No dask scheduler answers at "{address}"; give an address (tcp://host:8786) or its file.'
        ) from error
    with client:
        yield client


@contextmanager
def _start(workers: int, memory: str | None) -> Iterator[Any]:
    if workers < 1:
        raise InputError(f"--workers is {workers}; expected at least 1.")
    try:
        limit = "auto" if memory is None else parse_bytes(memory)
    except ValueError:
        raise InputError(f'--memory is "{memory}"; expected a size such as "4GiB".') from None
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=limit,
            processes=True,
            dashboard_address=":0",
        ) as local,
        Client(local) as client,
    ):
        yield client
