"""What clusters do to a run: workers killed, a scheduler that goes away, too little memory, a read that stalls."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
import xarray as xr
from counted_reads import repeated_store, templates

import tdm_dask as tdm
from tdm_dask.cluster import watch as cluster_watch
from tdm_dask.cluster.schedulers import scheduler
from tdm_dask.errors import WorkerLostError
from tdm_dask.reading import stalls

RECIPE = Path(tdm.__file__).parent / "data" / "demo.toml"
KILLS = 10
PATIENCE = 240


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("survival") / "scan.zarr"
    repeated_store(path, 1)
    return path


def derive_and_apply(counts):
    mask = tdm.derive_mask(counts, templates(counts)).compute()
    return mask, tdm.apply_mask(counts, mask, normalisation="standardised").compute()


class Killer(threading.Thread):
    """Kills a worker at a random moment of the work, and lets the cluster come back to its feet before the next."""

    def __init__(self, client):
        super().__init__(daemon=True)
        self.kills, self.working, self._client = 0, threading.Event(), client

    def run(self):
        draw = random.Random(0)
        while self.kills < KILLS:
            self.working.wait()
            if len(self._client.scheduler_info(n_workers=-1)["workers"]) < 2:
                time.sleep(0.1)
                continue
            time.sleep(draw.uniform(0, 1))
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # one that ends at this moment
                if self.working.is_set():
                    draw.choice(worker_processes()).kill()
                    self.kills += 1


def worker_processes(pid=None):
    """Those of a local cluster that a process has started."""
    children = [p for p in psutil.Process(pid).children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in children if any("spawn_main" in part for part in p.cmdline())]


@pytest.mark.long
def test_workers_killed_at_random_moments_change_no_number(store, clean, monkeypatch):
    # On a machine that does much else a new worker may take longer to come than a user would wait for.
    monkeypatch.setattr(cluster_watch, "WORKERS_SECONDS", 600.0)
    counts = tdm.open(store)
    expected = derive_and_apply(counts)
    with scheduler(workers=2, memory="1GiB", announce=False) as client:
        killer = Killer(client)
        killer.start()
        while killer.kills < KILLS:
            assert killer.is_alive()
            killer.working.set()
            found = derive_and_apply(counts)
            killer.working.clear()
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * float(abs(b).max()))
        killer.join()
    assert not list(clean.iterdir())


@pytest.mark.long
def test_a_run_one_of_whose_workers_is_killed_makes_the_same_results(clean):
    expected = tdm.run_recipe(RECIPE, clean / "local")

    def kill(process):
        workers = wait_for_workers(process)
        workers[0].kill()

    code, err = command("run", RECIPE, "--out", "out", "--workers", 2, "--memory", "1GiB", meanwhile=kill)
    assert code == 0, err
    found = xr.open_zarr("out/results.zarr/images", consolidated=False, chunks=None)
    for name in ("virtual", "image"):
        scale = float(abs(expected.images[name]).max())
        np.testing.assert_allclose(found[name], expected.images[name], rtol=0, atol=1e-6 * scale)
    assert {path.name for path in clean.iterdir()} == {"local", "out"}


@pytest.mark.long
def test_a_wrong_request_starts_no_cluster(clean):
    (clean / "broken.mib").write_bytes(b"MQ1,")
    code, err = command("convert", "broken.mib", "scan.zarr", "--workers", 2)
    assert code == 2
    assert "Dashboard" not in err


def wait_for_workers(process):
    """The two worker processes of a command, once they are there."""
    deadline = time.monotonic() + PATIENCE
    workers = []
    while len(workers) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
        workers = worker_processes(process.pid)
    return workers


def command(*arguments, meanwhile=lambda process: None):
    """Exit code and standard error of a command that must end."""
    environment = dict(os.environ, PYTHONPATH=str(Path(tdm.__file__).parents[1]))
    process = subprocess.Popen(
        [sys.executable, "-m", "tdm_dask", *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        meanwhile(process)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_run_leaves_one_sentence_and_no_process(number, store, clean):
    workers = []

    def stop(process):
        workers.extend(wait_for_workers(process))
        if number == signal.SIGINT:  # as a terminal does
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)

    code, err = command("verify", store, "--workers", 2, meanwhile=stop)
    assert code == 130
    # Python's own process for semaphores may remark on workers that were ended while they started.
    err = re.sub(r".*resource_tracker.*\n(  warnings\.warn.*\n)?", "", err)
    assert re.fullmatch(r"(Dashboard: \S+\n)?tdm: Stopped; .* Run the same command again to go on\.\n", err), err
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]


@pytest.fixture
def remote(tmp_path):
    """A scheduler and a worker of somebody else; gives the scheduler's process and address."""
    file = tmp_path / "scheduler.json"
    run = [sys.executable, "-m"]
    options = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    at = ["--no-dashboard", "--scheduler-file", str(file)]
    first = subprocess.Popen(
        [*run, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *at], **options
    )
    second = subprocess.Popen([*run, "distributed.cli.dask_worker", "--nthreads", "1", *at], **options)
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield first, file
    for process in (first, second):
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGKILL, "The (connection to the scheduler was lost|scheduler has not answered)"),
        (signal.SIGSTOP, "The scheduler has not answered for 3 s"),
    ],
)
def test_a_scheduler_that_goes_away_is_one_sentence(number, sentence, remote, monkeypatch):
    monkeypatch.setattr(cluster_watch, "ANSWER_SECONDS", 3.0)
    process, file = remote

    def compute():
        with scheduler(str(file), announce=False) as client:
            future = client.submit(time.sleep, 600)
            process.send_signal(number)
            future.result()

    with pytest.raises(WorkerLostError, match=f"^{sentence}.*finished stages are kept"):
        compute()


@pytest.mark.long
def test_workers_without_memory_to_start_are_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr("tdm_dask.cluster.schedulers.START_SECONDS", 8)
    monkeypatch.setattr(cluster_watch, "WORKERS_SECONDS", 4.0)
    with (
        pytest.raises(WorkerLostError, match=r"memory=\.\.\. gives more|too little memory"),
        scheduler(workers=1, memory="30MiB", announce=False),
    ):
        dask.delayed(time.sleep)(600).compute()


@pytest.mark.long
def test_work_that_takes_a_worker_beyond_its_memory_is_told(monkeypatch):
    monkeypatch.setattr("tdm_dask.cluster.schedulers.ALLOWED_FAILURES", 0)
    with (
        pytest.raises(WorkerLostError, match=r"memory=\.\.\. gives more"),
        scheduler(workers=1, memory="400MiB", announce=False),
    ):
        dask.delayed(hold)(2**30).compute()


def hold(size):
    memory = np.ones(size, np.uint8)
    time.sleep(PATIENCE)
    return memory.sum()


def test_a_read_that_does_not_return_is_named(monkeypatch, capsys):
    monkeypatch.setattr(stalls, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(stalls, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(stalls, "_looks", False)
    said = []

    def wait_for_the_note():
        deadline = time.monotonic() + PATIENCE
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
            said.extend(capsys.readouterr().err.splitlines())
        yield 1

    assert list(stalls.watched(wait_for_the_note(), "/mnt/scan.mib")) == [1]
    assert said[0].startswith("tdm: note: /mnt/scan.mib has not answered for 0 s")


@pytest.mark.long
def test_a_stalled_read_of_a_worker_is_named_by_its_client(capfd):
    with scheduler(workers=1, memory="1GiB", announce=False):
        dask.delayed(stalled)().compute()
        deadline = time.monotonic() + PATIENCE
        err = ""
        while "scan.mib has not answered" not in err and time.monotonic() < deadline:
            time.sleep(0.1)
            err += capfd.readouterr().err
    assert "tdm: note: /mnt/scan.mib has not answered" in err


def stalled():
    """A read that is told to be late on its worker."""
    stalls.STALL_SECONDS = stalls.LOOK_SECONDS = 0.1
    with stalls.waiting_for("/mnt/scan.mib"):
        time.sleep(1)


def test_a_second_cluster_follows_the_first_in_a_process_that_had_not_known_distributed():
    script = """
        import sys, tdm_dask as tdm
        if __name__ == "__main__":
            assert "distributed" not in sys.modules
            for number in (1, 2):
                with tdm.scheduler(workers=1, announce=False) as client:
                    print(client.submit(sum, [number, 2]).result())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["3", "4"]), done.stderr


@pytest.mark.long
def test_a_finished_run_computes_nothing(clean):
    """What an earlier run has stored is read without dask, so that no cluster is started for it."""

    def refuse(*arguments, **options):
        raise AssertionError("something was computed")

    first = tdm.run_recipe(RECIPE, clean / "out")
    with dask.config.set(scheduler=refuse):
        second = tdm.run_recipe(RECIPE, clean / "out")
    xr.testing.assert_identical(first.images, second.images)


def test_a_script_that_workers_would_run_without_an_end_is_refused(tmp_path):
    """Worker processes run the script again: without its guard, each would start workers of its own."""
    script = tmp_path / "script.py"
    body = "with tdm.scheduler(workers=1):\n    print(tdm.label_counts(np.ones((2, 2, 2, 2))).sum().item())\n"
    script.write_text(f"import numpy as np\nimport tdm_dask as tdm\n{body}", encoding="utf-8")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "Worker processes run script.py again from its beginning" in ran.stderr.splitlines()[-1]
    guarded = "".join(f"    {line}\n" for line in body.splitlines())
    script.write_text(
        f'import numpy as np\nimport tdm_dask as tdm\nif __name__ == "__main__":\n{guarded}', encoding="utf-8"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "16.0\n"), ran.stderr
