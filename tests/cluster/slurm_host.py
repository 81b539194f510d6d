"""SLURM on this one host: munge, slurmctld and slurmd with a configuration of their own, in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
PARTITION = "tests"
CORES = 4  # told to SLURM, so that two jobs run side by side on any machine
# Bounds for what a daemon may take to come up or to do as it is told; seconds.
PATIENCE = 60

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=30
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName={partition} Nodes={host} Default=YES MaxTime=01:00:00 State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def run(*command: str) -> str:
    """What a SLURM command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, and fail where it does not come true in a bounded time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.1)


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """SLURM with one node and one partition while the block runs; its programs find it by SLURM_CONF.

    Raises
    ------
    OSError, subprocess.SubprocessError, TimeoutError
        Where a daemon cannot be started here, as without the rights.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    configuration = CONFIGURATION.format(
        host=host,
        user=getpass.getuser(),
        folder=folder,
        controller_port=_free_port(),
        daemon_port=_free_port(),
        cores=CORES,
        memory=psutil.virtual_memory().total // 2**20,
        partition=PARTITION,
    )
    file = folder / "slurm.conf"
    file.write_text(configuration, encoding="utf-8")
    variables = {"SLURM_CONF": str(file), "PATH": _path()}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    daemons = (
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log"],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-N", host],
    )  # fmt: skip
    try:
        with contextlib.ExitStack() as started:
            for command in daemons:
                started.enter_context(_daemon(command, folder))
                if command[0] == "munged":
                    until((folder / "munge.socket").exists, "munged")
            until(lambda: "idle" in run("sinfo", "--noheader", "--format=%T"), "an idle node")
            yield
            subprocess.run(["scancel", f"--user={getpass.getuser()}"], timeout=PATIENCE, check=False)
            until(lambda: not run("squeue", "--noheader"), "an empty queue")
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    with open(folder / f"{command[0]}.out", "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        time.sleep(0.2)
        if process.poll() is not None:
            raise OSError(f"{command[0]} ended: {(folder / f'{command[0]}.out').read_text()[-300:]}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
