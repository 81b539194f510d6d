"""Schedulers: the one module that starts or joins them.

`scheduler` is a `with` block in which everything computes on threads, on worker processes of this machine, on a running
dask scheduler or on jobs of SLURM. What it starts, it starts at the first computation and ends with the block.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask.utils import format_bytes, parse_bytes, parse_timedelta

from ..errors import InputError, TdmError, WorkerLostError
from .resources import PLANNED_CORES, memory_limit
from .watch import ClusterWatch

# What an existing scheduler, and the workers of this machine, may take to answer.
CONNECT_SECONDS = 15
START_SECONDS = 120
# Workers that may die under one task before it counts as what kills them: clusters have reasons of their own.
ALLOWED_FAILURES = 10
# What a job of SLURM is, unless it is said here or in dask-jobqueue's own configuration.
JOBS, JOB_CORES, JOB_MEMORY, WALLTIME = 2, 4, "8GiB", "01:00:00"
WAIT = "1 h"
# Part of the walltime, and most seconds, that a worker is left with to hand over its work.
LEAVE_PART, LEAVE_SECONDS = 0.1, 600
# What worker processes keep of freed memory, bytes: distributed lets them give all back at once, and pages that are
# fetched anew for every shard then take a third of the time of a pass. These are the most that glibc adapts to.
MEMORY_KEPT = {"MALLOC_TRIM_THRESHOLD_": 64 * 2**20, "MALLOC_MMAP_THRESHOLD_": 32 * 2**20}
# How long a job looks for its scheduler.
DEATH_SECONDS = 60


@contextmanager
def scheduler(
    address: str | None = None,
    workers: int | None = None,
    memory: str | None = None,
    *,
    cores: int | None = None,
    slurm: bool = False,
    partition: str | None = None,
    account: str | None = None,
    walltime: str | None = None,
    interface: str | None = None,
    adaptive: bool = False,
    wait: str | None = None,
    logs: str | os.PathLike[str] | None = None,
    deferred: bool = False,
    announce: bool = True,
) -> Iterator[Any | None]:
    """The scheduler that computes inside the block; what was started for it ends with the block.

    Without options, dask's threads compute on all cores that this process may use.

    Parameters
    ----------
    address : str, optional
        Address of a running dask.distributed scheduler ("tcp://host:8786"), or the path of its scheduler
        file.
    workers : int, optional
        Start this many worker processes on this machine; of SLURM, this many jobs (2).
    memory : str, optional
        Memory limit of each such worker, such as "4GiB". Default: an equal share of the machine's; of SLURM
        8 GiB.
    cores : int, optional
        Threads of each worker. Default: 1, for then the memory limit of a worker is that of one task; of SLURM 4.
    slurm : bool, default False
        Start the workers as jobs of SLURM, one worker a job, by dask-jobqueue. What its configuration
        (`~/.config/dask/jobqueue.yaml`) says about partition, account, interface, cores and memory goes before the
        defaults that are named here. Jobs that end early are replaced.
    partition, account : str, optional
        Of the jobs. Default: SLURM's.
    walltime : str, optional
        Of the jobs, such as "02:00:00"; a worker hands over its work a little before. Default: one hour.
    interface : str, optional
        Network interface by which workers and scheduler talk, such as "ib0". Default: that of this
        machine's own address.
    adaptive : bool, default False
        Let jobs go when there is too little work for them, and start new ones later.
    wait : str, optional
        How long the first job may take to start, such as "30 min". Default: one hour.
    logs : path, optional
        Where a new folder is made for the jobs' output; it goes with the block unless the block fails. Default: here.
    deferred : bool, default False
        Start or join at the first computation, not before: so that whatever is wrong with the input is
        found first, and nothing is started where nothing is left to compute.
    announce : bool, default True
        Name what computes, its dashboard, and what is waited for, on standard error.

    Yields
    ------
    distributed.Client or None
        None for threads, and where it is deferred.

    Raises
    ------
    InputError
        If the options contradict each other, a number makes no sense, no scheduler answers, or SLURM refuses
        the jobs.
    WorkerLostError
        If no worker starts in time; if workers, or the scheduler, are lost while the block computes.

    Examples
    --------
    >>> with scheduler(announce=False) as client:
    ...     client is None
    True
    """
    where = _Where(address, workers, memory, cores, slurm, partition, account, walltime, interface, adaptive, wait)
    where.check()
    if not where.is_cluster:
        if announce and sys.stderr.isatty():
            _say(f"Computing on {local_resources()} of this machine.")
        with dask.config.set(scheduler="threads"):
            yield None
        return
    with ExitStack() as stack:
        start = _Start(where, Path("." if logs is None else logs), stack, announce)
        with _losses_in_words(start):
            if deferred:
                stack.enter_context(dask.config.set({"scheduler": start.get, PLANNED_CORES: where.planned_cores}))
                yield None
            else:
                yield start.client()


def local_resources() -> str:
    """Cores and memory that this process may use, as its affinity and control groups allow, in words."""
    cores = dask.system.CPU_COUNT
    return f"{cores} {'core' if cores == 1 else 'cores'} and {format_bytes(memory_limit())} of memory"


@dataclass(frozen=True)
class _Where:
    """Where to compute, as it was asked for; see `scheduler`."""

    address: str | None
    workers: int | None
    memory: str | None
    cores: int | None
    slurm: bool
    partition: str | None
    account: str | None
    walltime: str | None
    interface: str | None
    adaptive: bool
    wait: str | None

    @property
    def is_cluster(self) -> bool:
        return self.slurm or self.address is not None or self.workers is not None

    @property
    def planned_cores(self) -> int | None:
        """Threads of all workers together; None where they are another's."""
        if self.address is not None:
            return None
        return self.jobs * self.job_cores if self.slurm else (self.workers or 1) * (self.cores or 1)

    @property
    def jobs(self) -> int:
        return self.workers or JOBS

    @property
    def jobs_in_words(self) -> str:
        return f"{self.jobs} SLURM {'job' if self.jobs == 1 else 'jobs'}"

    @property
    def job_cores(self) -> int:
        return int(self.cores or _configured("cores") or JOB_CORES)

    @property
    def job_memory(self) -> str:
        return str(self.memory or _configured("memory") or JOB_MEMORY)

    @property
    def job_walltime(self) -> str:
        return self.walltime or WALLTIME

    @property
    def longest_wait(self) -> str:
        return self.wait or WAIT

    def check(self) -> None:
        """Raise InputError for what can be known to be wrong before anything is started."""
        own = {"workers": self.workers, "memory": self.memory, "cores": self.cores}
        of_jobs = {
            "partition": self.partition,
            "account": self.account,
            "walltime": self.walltime,
            "interface": self.interface,
            "adaptive": self.adaptive or None,
            "wait": self.wait,
        }
        said = {name: f"{name}={value!r}" for name, value in (own | of_jobs).items() if value is not None}
        given = list(said)
        if self.address is not None and (self.slurm or given):
            other = "slurm=True" if self.slurm else said[given[0]]
            raise InputError(f"address={self.address!r} is of a cluster with workers of its own; leave out {other}.")
        for_jobs = [name for name in given if name in of_jobs]
        if for_jobs and not self.slurm:
            raise InputError(f"{said[for_jobs[0]]} is about jobs of SLURM; give slurm=True as well, or leave it out.")
        if given and not self.is_cluster:
            raise InputError(f"{said[given[0]]} is of each worker; give their number as well, such as workers=4.")
        for name, number in (("workers", self.workers), ("cores", self.cores)):
            if number is not None and number < 1:
                raise InputError(f"{name}={number} was given; expected at least 1.")
        _check_quantity(parse_bytes, "memory", self.memory, "a size such as 4GiB")
        _check_quantity(parse_timedelta, "wait", self.wait, "a time such as 30min")
        if self.slurm:
            self._check_slurm()

    def _check_slurm(self) -> None:
        walltime_seconds(self.job_walltime)  # raises
        if importlib.util.find_spec("dask_jobqueue") is None:
            raise InputError('slurm=True needs the package dask-jobqueue, which is missing; install "tdm-dask[slurm]".')
        if shutil.which("sbatch") is None:
            raise InputError("slurm=True needs SLURM's command sbatch, which is not here; run this on a login node.")
        if self.interface is not None:
            import psutil

            known = sorted(psutil.net_if_addrs())
            if self.interface not in known:
                raise InputError(f'interface="{self.interface}" was given; this machine has {", ".join(known)}.')
        _ask_slurm(self.job_options())

    def job_options(self) -> dict[str, Any]:
        """What dask-jobqueue is to know about a job."""
        seconds = walltime_seconds(self.job_walltime)
        leave = min(LEAVE_SECONDS, LEAVE_PART * seconds)
        # On a disk of the node; the shell that runs the job knows where, and removes it.
        scratch = "${TMPDIR:-/tmp}/tdm-$SLURM_JOB_ID"
        return {
            "queue": self.partition,
            "account": self.account,
            "walltime": self.job_walltime,
            "cores": self.job_cores,
            "processes": 1,
            "memory": self.job_memory,
            "interface": self.interface or _configured("interface"),
            "job_name": "tdm",
            "local_directory": scratch,
            "job_script_prologue": [
                f"trap 'rm -rf \"{scratch}\"' EXIT",
                "trap 'exit 143' TERM",
                *(f"export {name}={size}" for name, size in MEMORY_KEPT.items()),
            ],
            "death_timeout": DEATH_SECONDS,
            # Not all at once: half of the time to leave is drawn by lot.
            "worker_extra_args": ["--lifetime", f"{seconds - leave:.0f}s", "--lifetime-stagger", f"{leave / 2:.0f}s"],
        }


def _check_quantity(parse: Any, name: str, value: str | None, expected: str) -> None:
    if value is None:
        return
    try:
        sound = float(parse(value)) > 0
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        raise InputError(f'{name}="{value}" was given; expected {expected}.')


def walltime_seconds(walltime: str) -> int:
    """Seconds of a walltime as SLURM takes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises
    ------
    InputError
        If it is none.

    Examples
    --------
    >>> walltime_seconds("02:00:00"), walltime_seconds("90"), walltime_seconds("1-12")
    (7200, 5400, 129600)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", walltime.strip())
    seconds = 0
    if match:
        given = [int(group) for group in match.groups()[1:] if group is not None]
        minutes_first = match[1] is None and len(given) < 3
        units = (60, 1) if minutes_first else (3600, 60, 1)
        seconds = 86400 * int(match[1] or 0) + sum(n * unit for n, unit in zip(given, units, strict=False))
    if not seconds:
        raise InputError(f'walltime="{walltime}" was given; expected a time such as 02:00:00.')
    return seconds


def _configured(name: str) -> Any:
    """What dask-jobqueue's own configuration says about jobs of SLURM."""
    _jobqueue()
    return dask.config.get(f"jobqueue.slurm.{name}", None)


def _jobqueue() -> Any:
    """The package dask-jobqueue, which takes Ctrl-C to itself when it is imported."""
    usual = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, usual)
    return dask_jobqueue


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


class _Start:
    """Starts or joins a cluster when it is first needed, for as long as the stack lives."""

    def __init__(self, where: _Where, logs: Path, stack: ExitStack, announce: bool) -> None:
        self._where, self._place, self._stack, self._announce = where, logs, stack, announce
        self._lock = threading.Lock()
        self._client: Any = None
        self.logs: Path | None = None
        self.watch: ClusterWatch | None = None

    def get(self, dsk: Any, keys: Any, **options: Any) -> Any:
        """A dask scheduler's `get`: the first computation starts the cluster, and later ones find its client."""
        return self.client().get(dsk, keys, **options)

    def client(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._begin()
            return self._client

    def _begin(self) -> Any:
        import distributed  # noqa: F401  (its defaults come first, or they would go with what is set before them)

        jobs, patience = None, None
        scratch = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="tdm-scratch-", ignore_cleanup_errors=True)
        )
        # Workers are sent this configuration, in which `get` would not survive pickling; the client sets itself.
        own: dict[str, Any] = {"temporary-directory": scratch, "scheduler": "threads"}
        own |= {f"distributed.nanny.pre-spawn-environ.{name}": size for name, size in MEMORY_KEPT.items()}
        self._stack.enter_context(dask.config.set(own))
        if self._where.address is not None:
            client = self._stack.enter_context(_join(self._where.address))
        elif self._where.slurm:
            self.logs = self._stack.enter_context(_folder_of_logs(self._place))
            jobs = self._stack.enter_context(_slurm_cluster(self._where, self.logs))
            client = self._stack.enter_context(_client(jobs))
            patience = float(parse_timedelta(self._where.longest_wait))
        else:
            client = self._stack.enter_context(_client(self._stack.enter_context(_local_cluster(self._where))))
        if self._announce and client.dashboard_link:
            _say(f"Dashboard: {client.dashboard_link}")
        if jobs is not None and self.logs is not None:
            _wait_for_jobs(jobs, client, self._where, self.logs, self._announce)
        else:
            _wait_for_workers(client)
        self.watch = self._stack.enter_context(ClusterWatch(client, jobs, patience))
        return client


@contextmanager
def _losses_in_words(start: _Start) -> Iterator[None]:
    """One sentence for workers or a scheduler that were lost."""
    try:
        yield
    except Exception as error:
        if start.watch is None or isinstance(error, TdmError):
            raise
        reason = start.watch.reason or loss_in_words(error)
        if reason is None:
            raise
        logs = "" if start.logs is None else f" ({_last_words(start.logs)})"
        raise WorkerLostError(
            f"{reason}{logs}; finished stages are kept: run the same command again to go on from there."
        ) from error


def loss_in_words(error: BaseException) -> str | None:
    """What was lost, if an error of dask.distributed says that something was."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    if isinstance(error, KilledWorker):
        return (
            f"Workers were lost {ALLOWED_FAILURES + 1} times over the same piece of work, as when it needs more "
            "memory than they have: memory=... gives more"
        )
    if isinstance(error, (CommClosedError, CancelledError)):
        return "The connection to the scheduler was lost, as when it was stopped"
    return None


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
    with closing(client):
        yield client


@contextmanager
def _client(cluster: Any) -> Iterator[Any]:
    from distributed import Client

    # Not as the context that it is, which must end in the thread that it began in: the first computation's.
    with closing(Client(cluster, timeout=CONNECT_SECONDS)) as client:
        yield client


def _require_guarded_script() -> None:
    """Raise where worker processes would run the user's script again, start workers in it, and so on without an end."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None:  # typed in, or a module that was run
        return
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if not any(word in text for word in ("__name__", "parent_process", "current_process")):
        raise InputError(
            f"Worker processes run {Path(path).name} again from its beginning, and would start workers in turn; put "
            'what it does under a line if __name__ == "__main__":.'
        )


@contextmanager
def _local_cluster(where: _Where) -> Iterator[Any]:
    from distributed import LocalCluster

    _require_guarded_script()
    # The thread that starts worker processes hands on to them what it blocks: Ctrl-C is for this process alone.
    with _blocked_interrupt():
        cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=where.cores or 1,
            memory_limit=_share_of_memory(where) if where.memory is None else parse_bytes(where.memory),
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
            scheduler_kwargs={"allowed_failures": ALLOWED_FAILURES},
        )
    with cluster:
        cluster.scale(where.workers)
        yield cluster


def _share_of_memory(where: _Where) -> int:
    return memory_limit() // (where.workers or 1)


@contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; not in the threads that begin in it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # where it is started only later, it takes the block away
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _wait_for_workers(client: Any) -> None:
    try:
        client.wait_for_workers(1, timeout=START_SECONDS)
    except TimeoutError as error:
        raise WorkerLostError(
            f"No worker came up within {START_SECONDS} s; give each more by memory=..., or look at the cluster's logs."
        ) from error


@contextmanager
def _folder_of_logs(place: Path) -> Iterator[Path]:
    """A new folder for the jobs' output, which goes where nothing went wrong; what was in its place before stays."""
    place = place.absolute()
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="tdm-slurm-", dir=place))
    keep = False
    try:
        yield folder
    except Exception:
        keep = any(folder.iterdir())
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # something is in it
                parent.rmdir()


@contextmanager
def _slurm_cluster(where: _Where, logs: Path) -> Iterator[Any]:
    """A scheduler here and workers as jobs, which are cancelled in the end."""
    with _jobqueue().SLURMCluster(
        **where.job_options(),
        log_directory=str(logs),
        scheduler_options={"allowed_failures": ALLOWED_FAILURES, "dashboard_address": ":8787"},
        silence_logs=logging.CRITICAL,
    ) as cluster:
        if where.adaptive:
            cluster.adapt(minimum_jobs=1, maximum_jobs=where.jobs)
        else:
            cluster.scale(jobs=where.jobs)
        yield cluster


def _ask_slurm(job_options: dict[str, Any]) -> None:
    """Raise InputError where SLURM would refuse a job: dask-jobqueue finds out later, and tells its log alone."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(_jobqueue().SLURMCluster.job_cls("tcp://127.0.0.1:1", "tdm", **job_options).job_script())
        file.flush()
        asked = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True)
    if asked.returncode:
        said = asked.stderr.strip().splitlines()[-1].split("error: ")[-1].removeprefix("allocation failure: ")
        raise InputError(
            f"SLURM refuses the jobs ({said.rstrip('.')}); give another partition=..., account=..., walltime=..., "
            "memory=... or cores=..., of which sinfo lists what there is."
        )


def _wait_for_jobs(cluster: Any, client: Any, where: _Where, logs: Path, announce: bool) -> None:
    """Wait for the first job's worker; others join while it works."""
    if announce:
        _say(f"Waiting for {where.jobs_in_words}, for at most {where.longest_wait}.")
    deadline = time.monotonic() + float(parse_timedelta(where.longest_wait))
    gone_since = math.inf
    while not client.scheduler_info(n_workers=1)["workers"]:
        try:
            client.wait_for_workers(1, timeout=2)
        except TimeoutError:
            ids = [job.job_id for job in list(cluster.workers.values()) if job.job_id]
            states = _job_states(ids)
            now = time.monotonic()
            gone_since = min(gone_since, now) if ids and not states else math.inf
            if now - gone_since > 5:
                raise WorkerLostError(
                    f"The SLURM jobs {', '.join(ids)} ended before a worker came up; {_last_words(logs)}."
                ) from None
            if now > deadline:
                why = f" ({', '.join(sorted(set(states)))})" if states else ""
                raise WorkerLostError(
                    f"No worker of {where.jobs_in_words} came up within {where.longest_wait}{why}; give a longer "
                    f"wait=..., or ask for less by walltime=..., memory=... or cores=...; {_last_words(logs)}."
                ) from None
    if announce:
        _say(f"{len(client.scheduler_info(n_workers=-1)['workers'])} of {where.jobs_in_words} at work.")


def _job_states(ids: list[str]) -> list[str]:
    """State and reason of each job that SLURM still knows, such as "PENDING: Priority"."""
    if not ids:
        return []
    command = ["squeue", "--noheader", f"--jobs={','.join(ids)}", "--format=%T: %r"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()


def _last_words(logs: Path) -> str:
    lines = [line for file in sorted(logs.glob("*.err")) for line in file.read_text(errors="replace").splitlines()]
    spoken = [" ".join(line.split())[:200].rstrip(".") for line in lines if line.strip()]
    said = f", the last of which is: {spoken[-1]}" if spoken else ""
    return f"the jobs' output is in {logs}{said}" if spoken else "the jobs put nothing out"
