"""Fixtures of the cluster tests."""

from __future__ import annotations

import subprocess

import pytest
import slurm_host


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """SLURM on this host, while the tests of a module run."""
    pytest.importorskip("dask_jobqueue", reason="the package dask-jobqueue is not installed")
    absent = slurm_host.missing()
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)")
    host = slurm_host.slurm(tmp_path_factory.mktemp("slurm"))
    try:
        host.__enter__()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"SLURM cannot be started here: {error}")
    yield
    host.__exit__(None, None, None)


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """A folder to work in and one for temporary files, of which nothing may be left behind."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield work
    slurm_host.until(lambda: not list(temporary.iterdir()), "an empty folder of temporary files")
