"""The output of jobs: where it lies, when it goes, and that nothing else goes with it. No SLURM is needed."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import LocalCluster

from tdm_dask.cluster import schedulers
from tdm_dask.errors import InputError, ReductionError


@pytest.fixture(autouse=True)
def jobs(monkeypatch, tmp_path):
    """What is started in place of jobs: a worker in this process, and output as SLURM would write it."""
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def cluster(where, logs):
        (Path(logs) / "tdm-7.out").touch()
        (Path(logs) / "tdm-7.err").write_text("a worker has begun", encoding="utf-8")
        with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as started:
            yield started

    monkeypatch.setattr(schedulers, "_slurm_cluster", cluster)
    monkeypatch.setattr(schedulers._Where, "_check_slurm", lambda where: None)


def started(logs=None):
    return schedulers.scheduler(slurm=True, logs=logs, announce=False)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("logs", [".", "project", "project/deeper"])
def test_what_was_in_the_folder_of_the_logs_stays(tmp_path, logs):
    folder = tmp_path / logs
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tdm-3.err").write_text("of an earlier job", encoding="utf-8")
    (folder / "results").mkdir()
    with started(logs):
        assert "tdm-7.err" in files(folder)
        (folder / "results" / "image.npy").touch()
    assert files(folder) == ["image.npy", "tdm-3.err"]
    assert sorted(path.name for path in folder.iterdir()) == ["results", "tdm-3.err"]


@pytest.mark.parametrize("logs", [None, "out/logs"])
def test_of_folders_that_were_made_for_the_logs_none_stays(tmp_path, logs):
    with started(logs):
        assert files(tmp_path) == ["tdm-7.err", "tdm-7.out"]
    assert list(tmp_path.iterdir()) == []


def test_of_folders_that_were_made_for_the_logs_those_stay_in_which_something_else_was_put(tmp_path):
    with started("out/logs"):
        (tmp_path / "out" / "counts.zarr").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["counts.zarr"]


@pytest.mark.parametrize("error", [InputError, ReductionError, ValueError])
@pytest.mark.parametrize("logs", [None, "out/logs"])
def test_after_any_error_in_the_block_the_logs_stay(tmp_path, logs, error):
    with pytest.raises(error), started(logs):
        raise error("Something is wrong.")
    assert files(tmp_path) == ["tdm-7.err", "tdm-7.out"]


def test_the_last_words_of_an_earlier_job_are_not_taken_for_those_of_this_one(tmp_path, monkeypatch):
    """Where no worker comes up, what the jobs said last is told."""
    (tmp_path / "tdm-99.err").write_text("killed long ago", encoding="utf-8")

    def none(jobs, client, where, logs, announce):
        raise schedulers.WorkerLostError(f"No worker came up; {schedulers._last_words(logs)}.")

    monkeypatch.setattr(schedulers, "_wait_for_jobs", none)
    with pytest.raises(schedulers.WorkerLostError, match="a worker has begun"), started("."):
        pass


@pytest.mark.parametrize("logs", [None, "out/logs"])
def test_where_nothing_was_put_out_no_folder_stays_after_an_error(tmp_path, monkeypatch, logs):
    @contextmanager
    def refused(where, logs):
        raise InputError("SLURM refuses the jobs.")
        yield

    monkeypatch.setattr(schedulers, "_slurm_cluster", refused)
    with pytest.raises(InputError), started(logs):
        pass
    assert list(tmp_path.iterdir()) == []
