"""Jobs of the viewer: their progress is theirs alone, a cancel does not wait, and what is finished stays."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest

from tdm_dask.errors import MaskError
from tdm_dask.recipe.run import run_recipe
from tdm_dask.viewer.job import Job, StageProgress

DATA = Path(__file__).resolve().parents[2] / "tdm_dask" / "data"
LONG = 60  # seconds that nothing here takes, unless it hangs


@pytest.fixture(scope="module")
def client():
    """A client that is not the default until a test makes it so."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as made,
    ):
        yield made


@contextmanager
def active(name, request):
    chosen = request.getfixturevalue("client") if name == "distributed" else name
    with dask.config.set(scheduler=chosen):
        yield name


@pytest.fixture(params=["threads", "distributed", "synchronous"])
def scheduler(request):
    """Each scheduler as the active one."""
    with active(request.param, request) as name:
        yield name


@pytest.fixture(params=["threads", "distributed"])
def parallel(request):
    """Each scheduler that goes on with other tasks while some wait."""
    with active(request.param, request) as name:
        yield name


def numbers(count, function=lambda number: number):
    """A graph of so many tasks and one more that adds up what they give."""
    tasks = [dask.delayed(function, pure=False)(number) for number in range(count)]
    return dask.delayed(sum, pure=False)(tasks)


def until(holds):
    """Wait until something holds."""
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.01)


class Gate:
    """Tasks that begin and then wait to be let on."""

    def __init__(self):
        self.begun, self.open = threading.Semaphore(0), threading.Event()

    def __call__(self, number):
        self.begun.release()
        assert self.open.wait(LONG)
        return number


# Workers in this process are handed functions by value: what they share is found by name.
GATES = {}


def through(name):
    return lambda number: __import__("test_viewer_job").GATES[name](number)


@pytest.fixture
def gate(request):
    GATES[request.node.name] = gate = Gate()
    yield gate, through(request.node.name)
    gate.open.set()
    del GATES[request.node.name]


def test_stages_and_tasks_are_counted_and_the_result_is_there(scheduler):
    def work(stage):
        with stage("first", 1000):
            first = numbers(5).compute()
        with stage("second", kept=False):
            return first + numbers(3).compute() + numbers(2).compute()

    progress = Job(work).start().wait(LONG)
    assert (progress.state, progress.result, progress.error) == ("done", 10 + 3 + 1, None)
    assert [(s.name, s.done, s.total, s.nbytes, s.finished, s.kept) for s in progress.stages] == [
        ("first", 6, 6, 1000, True, True),
        ("second", 7, 7, None, True, False),
    ]
    assert progress.current is None
    assert progress.ended
    assert sum(s.seconds for s in progress.stages) <= progress.seconds


def test_progress_is_seen_while_it_works(parallel, gate):
    gate, passing = gate

    def work(stage):
        with stage("counts", 8_000):
            return numbers(2, passing).compute()

    job = Job(work)
    assert job.progress().state == "waiting"
    job.start()
    assert gate.begun.acquire(timeout=LONG)
    until(lambda: job.progress().current.total == 3)
    progress = job.progress()
    assert (progress.state, progress.finished) == ("running", ())
    assert (progress.current.name, progress.current.done, progress.current.fraction) == ("counts", 0, 0)
    assert progress.current.rate is None
    gate.open.set()
    assert job.wait(LONG).result == 1


def test_what_others_compute_at_the_same_time_is_not_cancelled_with_it(parallel, gate):
    gate, passing = gate
    job = Job(lambda stage: numbers(1, passing).compute()).start()
    assert gate.begun.acquire(timeout=LONG)
    others = []
    page = threading.Thread(target=lambda: others.append(numbers(2, passing).compute()))
    page.start()
    assert gate.begun.acquire(timeout=LONG)
    job.cancel()
    gate.open.set()
    page.join(LONG)
    assert others == [1]
    assert job.wait(LONG).state == "cancelled"


def test_tasks_of_the_page_are_not_in_the_progress(scheduler):
    go, counted = threading.Event(), threading.Event()

    def work(stage):
        with stage("job"):
            first = numbers(3).compute()
            go.set()
            assert counted.wait(LONG)
            return first

    job = Job(work).start()
    assert go.wait(LONG)
    numbers(50).compute()
    progress = job.progress()
    counted.set()
    assert (progress.current.done, progress.current.total) == (4, 4)
    assert job.wait(LONG).state == "done"


def test_a_cancel_drops_what_has_not_begun_and_does_not_wait_for_what_has(gate, parallel, monkeypatch):
    monkeypatch.setattr("tdm_dask.viewer.cancelling.LAST_TASKS_SECONDS", 0.0)
    gate, passing = gate

    def work(stage):
        with stage("kept"):
            pass
        with stage("long"):
            return numbers(200, passing).compute()

    job = Job(work).start()
    assert gate.begun.acquire(timeout=LONG)
    job.cancel()
    progress = job.wait(LONG)  # while the tasks that have begun cannot end
    assert (progress.state, progress.result, progress.error) == ("cancelled", None, None)
    assert [stage.name for stage in progress.finished] == ["kept"]
    assert progress.current.name == "long"
    begun = 1
    gate.open.set()
    while gate.begun.acquire(timeout=0.3):
        begun += 1
    assert begun < 100


def test_a_cancel_stops_a_single_thread_before_its_next_task():
    done = []

    def task(number):
        done.append(number)
        job.cancel()
        return number

    with dask.config.set(scheduler="synchronous"):
        job = Job(lambda stage: numbers(5, task).compute())
        progress = job.start().wait(LONG)
    assert progress.state == "cancelled"
    assert len(done) == 1


def test_a_cancelled_job_stops_between_stages_and_never_begins_after():
    began = []

    def work(stage):
        with stage("first"):
            job.cancel()
        began.append("second")

    job = Job(work)
    assert job.start().wait(LONG).state == "cancelled"
    assert began == []
    never = Job(lambda stage: began.append("never"))
    never.cancel()
    assert never.start().wait(LONG).state == "cancelled"
    assert began == []


def test_an_error_is_a_sentence(scheduler):
    def refuse(number):
        raise MaskError("The mask is not finite; derive it again.")

    def work(stage):
        with stage("kept"):
            pass
        with stage("masks"):
            numbers(2, refuse).compute()

    progress = Job(work).start().wait(LONG)
    assert (progress.state, progress.error) == ("failed", "The mask is not finite; derive it again.")
    assert [stage.name for stage in progress.finished] == ["kept"]
    assert Job(lambda stage: 1 / 0).start().wait(LONG).error == "ZeroDivisionError: division by zero."
    assert Job(lambda stage: 1 / 0, describe=lambda error: "no").start().wait(LONG).error == "no"


def test_many_jobs_leave_no_thread_and_the_scheduler_as_it_was(scheduler):
    Job(lambda stage: numbers(4).compute()).start().wait(LONG)  # what a library starts once
    usual, before = dask.config.get("scheduler", None), threading.active_count()
    for number in range(20):
        job = Job(lambda stage: numbers(4).compute()).start()
        if number % 2:
            job.cancel()
        # One that is cancelled may have come to its end before.
        assert job.wait(LONG).state in (("cancelled", "done") if number % 2 else ("done",))
    until(lambda: threading.active_count() <= before)
    assert dask.config.get("scheduler", None) is usual


def test_two_jobs_at_once_count_their_own(scheduler):
    def work(count):
        def run(stage):
            with stage("numbers"):
                return numbers(count).compute()

        return run

    jobs = [Job(work(count)).start() for count in (3, 11, 29)]
    assert [job.wait(LONG).stages[0].total for job in jobs] == [4, 12, 30]


def test_closing_the_page_cancels_what_runs(gate):
    gate, passing = gate
    job = Job(lambda stage: numbers(50, passing).compute()).start()
    assert gate.begun.acquire(timeout=LONG)
    threading.Timer(0.2, gate.open.set).start()
    job.end()
    assert job.progress().state == "cancelled"


def test_a_cluster_that_starts_with_the_first_computation_counts_from_it():
    from tdm_dask.cluster.schedulers import scheduler as use

    def work(stage):
        with stage("first"):
            return numbers(6).compute()

    with use(workers=1, memory="1GiB", deferred=True, announce=False):
        progress = Job(work).start().wait(LONG)
        assert (progress.state, progress.result, progress.error) == ("done", 15, None)
        assert (progress.stages[0].done, progress.stages[0].total) == (7, 7)
        assert numbers(3).compute() == 3
    assert dask.config.get("scheduler", None) is None


def test_a_rate_is_of_the_bytes_that_are_read():
    assert StageProgress("masks", 0, 0, None, 1.0, False).fraction is None
    assert StageProgress("masks", 1, 4, 400, 2.0, False).rate == 50
    assert StageProgress("masks", 1, 4, None, 2.0, False).rate is None


@pytest.mark.long
def test_a_recipe_that_was_cancelled_goes_on_where_it_was(tmp_path):
    sites = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))
    recipe = {
        "source": {"path": str(DATA / "lifepo4_001.mib")},
        "calibration": {"semi_angle": 23.5, "scan_step": 0.3225},
        "templates": {"sites": {"Li": sites["Li"]}, "sigma": "35 pm"},
    }

    def work(stage):
        @contextmanager
        def cancelled_in_images(name, nbytes=None, *, kept=True):
            with stage(name, nbytes, kept=kept):
                if name == "images":
                    first.cancel()
                yield

        return run_recipe(recipe, tmp_path / "out", stage=cancelled_in_images)

    first = Job(work)
    progress = first.start().wait(LONG)
    assert progress.state == "cancelled", progress.error
    assert [stage.name for stage in progress.finished] == ["convert", "calibrate", "correlate"]
    assert progress.current.name == "images"
    second = Job(lambda stage: run_recipe(recipe, tmp_path / "out", stage=stage)).start().wait(LONG)
    assert second.state == "done", second.error
    assert [stage.name for stage in second.stages] == ["convert", "calibrate", "images"]
    assert second.stages[0].total == 0  # it was all there
    assert all(stage.done == stage.total for stage in second.stages)
    whole = run_recipe(recipe, tmp_path / "whole")
    np.testing.assert_array_equal(second.result.images["image"], whole.images["image"])
