"""`tdm run --slurm` on SLURM itself, which runs on this host: jobs that are cancelled, refused or never start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slurm_host
import xarray as xr

import tdm_dask as tdm

pytestmark = pytest.mark.slurm

RECIPE = Path(tdm.__file__).parent / "data" / "demo.toml"
JOBS = ("--slurm", "--workers", "2", "--cores", "1", "--memory", "1GiB", "--interface", "lo")
PATIENCE = 180


def start(*arguments):
    command = [sys.executable, "-m", "tdm_dask", *map(str, arguments)]
    environment = dict(os.environ, PYTHONPATH=str(Path(tdm.__file__).parents[1]))
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process):
    """Exit code and standard error of a process that must end."""
    try:
        _, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err


def running_jobs():
    return slurm_host.run("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()


def queue_is_empty():
    return not slurm_host.run("squeue", "--noheader")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of the sample's recipe on threads of this machine."""
    return tdm.run_recipe(RECIPE, tmp_path_factory.mktemp("local") / "out")


def test_a_run_of_which_a_job_is_cancelled_gives_the_same_numbers(slurm, clean, undisturbed):
    process = start("run", RECIPE, "--out", "out", *JOBS)
    # The first job has the first piece of work when the store is begun.
    slurm_host.until(lambda: process.poll() is not None or (clean / "out" / "counts.zarr").exists(), "a conversion")
    slurm_host.until(lambda: process.poll() is not None or running_jobs(), "a running job")
    assert process.poll() is None, finished(process)
    slurm_host.run("scancel", running_jobs()[0])
    assert process.poll() is None
    code, err = finished(process)
    assert code == 0, err
    assert "Dashboard: http://" in err
    assert "Waiting for 2 SLURM jobs" in err
    for group in ("masks", "images", "evaluation"):
        found, expected = (
            xr.open_zarr(results / group, consolidated=False, chunks=None).load()
            for results in (clean / "out" / "results.zarr", undisturbed.results)
        )
        for name, variable in expected.data_vars.items():
            if variable.dtype.kind == "f":
                scale = float(abs(variable).max())
                np.testing.assert_allclose(found[name], variable, rtol=0, atol=1e-6 * scale, err_msg=name)
            else:
                assert (found[name] == variable).all(), name
    np.testing.assert_array_equal(tdm.open(clean / "out" / "counts.zarr"), undisturbed.counts)
    assert {path.name for path in clean.iterdir()} == {"out"}
    assert not (clean / "out" / "slurm-logs").exists()
    slurm_host.until(queue_is_empty, "an empty queue")


def test_ctrl_c_cancels_the_jobs(slurm, clean):
    process = start("run", RECIPE, "--out", "out", *JOBS)
    slurm_host.until(lambda: process.poll() is not None or running_jobs(), "a running job")
    process.send_signal(signal.SIGINT)
    code, err = finished(process)
    assert code == 130, err
    assert err.splitlines()[-1].startswith("tdm: Stopped; ")
    slurm_host.until(queue_is_empty, "an empty queue")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--partition", "nowhere"), "SLURM refuses the jobs (Invalid partition name specified)"),
        (("--memory", "900TiB"), "SLURM refuses the jobs (Requested node configuration is not available)"),
        (("--interface", "nowhere"), '--interface is "nowhere"; this machine has '),
    ],
)
def test_jobs_that_slurm_refuses_are_one_sentence_before_anything_runs(slurm, clean, options, sentence):
    code, err = finished(start("run", RECIPE, "--out", "out", *JOBS, *options))
    assert code == 2
    assert err.startswith(f"tdm: {sentence}")
    assert err.count("\n") == 1
    assert not list(clean.iterdir())


def test_jobs_that_never_start_are_waited_for_as_long_as_was_said(slurm, clean):
    slurm_host.run("scontrol", "update", f"PartitionName={slurm_host.PARTITION}", "State=DOWN")
    try:
        code, err = finished(start("run", RECIPE, "--out", "out", *JOBS, "--wait", "3s"))
    finally:
        slurm_host.run("scontrol", "update", f"PartitionName={slurm_host.PARTITION}", "State=UP")
    assert code == 1
    assert "tdm: No worker of 2 SLURM jobs came up within 3s (PENDING: PartitionDown)" in err
    slurm_host.until(queue_is_empty, "an empty queue")
