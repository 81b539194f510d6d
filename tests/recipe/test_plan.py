"""Plans: what a recipe will read, need and take, said before it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
from dask.callbacks import Callback

import tdm_dask as tdm
from tdm_dask import cli
from tdm_dask.cluster.resources import Resources
from tdm_dask.errors import DiskFullError, MemoryLimitError, RecipeError
from tdm_dask.recipe import plan
from tdm_dask.recipe.plan import plan_recipe
from tdm_dask.recipe.run import run_recipe
from tdm_dask.report.writing import write_report

DATA = Path(__file__).resolve().parents[2] / "tdm_dask" / "data"
DEMO = DATA / "demo.toml"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A store of several shards, and a recipe for the middle of its detector."""
    folder = tmp_path_factory.mktemp("scan")
    rng = np.random.default_rng(0)
    ky, kx = np.ogrid[:256, :256]
    disk = np.where(np.hypot(ky - 127.5, kx - 127.5) < 50, 3.0, 0.2)
    part = rng.poisson(disk, (10, 10, 256, 256)).astype(np.uint16)
    tdm.convert(tdm.label_counts(np.tile(part, (4, 4, 1, 1))), folder / "scan.zarr")
    recipe = {
        "source": {"path": str(folder / "scan.zarr")},
        "calibration": {"semi_angle": 50.0, "scan_step": 0.5},
        "templates": {"sites": {"A": [[4.0, 4.0], [9.0, 12.0]], "B": [[3.0, 8.0]]}, "sigma": 0.6},
        "masks": {"detector_region": "disk:50"},
    }
    return folder, recipe


def index_bytes(store, tiles):
    """Stored bytes of the inner chunks of some tiles (ky, kx) of the detector, from the shards' own indices."""
    total = 0
    for path in (store / "counts" / "c").rglob("*"):
        if path.is_file():
            table = np.frombuffer(path.read_bytes()[-(16 * 64 + 4) : -4], "<u8").reshape(2, 2, 4, 4, 2)
            lengths = np.where(table[..., 1] == 2**64 - 1, 0, table[..., 1])
            total += sum(int(lengths[:, :, ky, kx].sum()) for ky, kx in tiles)
    return total


def test_a_plan_says_what_will_be_read_of_a_store(scan, tmp_path):
    folder, recipe = scan
    made = plan_recipe(recipe, tmp_path / "out", seconds=0.1)
    assert [stage.name for stage in made.stages] == ["correlate", "images"]
    # A disk of radius 50 about the middle lies on the four inner tiles of 64 x 64 pixels.
    middle = [(1, 1), (1, 2), (2, 1), (2, 2)]
    for stage in made.stages:
        assert stage.counts_bytes == 40 * 40 * 128 * 128 * 2
        assert stage.read_bytes == pytest.approx(index_bytes(folder / "scan.zarr", middle), rel=0.02)
        assert stage.chunks == 9 * 4
        assert stage.seconds > 0
    assert made.results_bytes > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_plan_names_the_stages_that_it_does_not_estimate(scan, tmp_path):
    assert plan_recipe(scan[1], tmp_path / "out", seconds=0.1).not_estimated == {}
    asked = {"calibration": {**scan[1]["calibration"], "descan": True}, "evidence": {"cell": [5.0, 4.0], "draws": 40}}
    made = plan_recipe({**scan[1], **asked}, tmp_path / "out", seconds=0.1)
    assert [stage.name for stage in made.stages] == ["correlate", "images"]
    assert list(made.not_estimated) == ["descan", "calibrate", "evidence"]
    assert made.data()["not_estimated"] == made.not_estimated
    said = made.text().splitlines()
    for name, does in made.not_estimated.items():
        assert f"Not estimated: {name}, which {does}." in said
    assert "40 templates of random sites" in made.not_estimated["evidence"]
    # They are named where nothing else is left, too.
    left = replace(made, stages=(), finished=("correlate", "images")).text()
    assert "Not estimated: evidence" in left
    assert "Nothing is left" not in left


@pytest.mark.long
def test_a_plan_for_ridge_masks_tries_the_matrix_and_counts_its_memory(scan, tmp_path):
    recipe = {**scan[1], "masks": {"detector_region": "disk:16", "method": "ridge"}}
    made = plan_recipe(recipe, tmp_path / "out", seconds=0.1)
    assert [stage.name for stage in made.stages] == ["correlate", "images"]
    matrix = 8 * int((tdm.disk(_calibrated(scan), 16.0) > 0).sum()) ** 2
    one = plan_recipe({**recipe, "masks": {**recipe["masks"], "regularisation": 0.1}}, tmp_path / "out", seconds=0.1)
    # Of four blocks of the scan beside one: their matrices, whole in the end, half of each in every task.
    assert made.stages[0].shared_bytes - one.stages[0].shared_bytes >= 3 * matrix
    assert made.stages[0].task_bytes - one.stages[0].task_bytes >= 1.5 * matrix
    # A region that the matrix cannot hold is refused before anything is converted.
    wide = {**recipe, "masks": {"detector_region": "disk:60", "method": "ridge"}}
    with pytest.raises(MemoryLimitError, match="at most 4096 pixels are taken"):
        plan_recipe(wide, tmp_path / "out", seconds=0.1)


def _calibrated(scan):
    counts = tdm.open(scan[0] / "scan.zarr")
    return tdm.calibrate(counts, **scan[1]["calibration"])


class Tasks(Callback):
    def __init__(self):
        super().__init__()
        self.done = 0

    def _posttask(self, *arguments):
        self.done += 1


@pytest.mark.long
@pytest.mark.parametrize("masks", [{"detector_region": "disk:50"}, {"detector_region": "disk:10", "method": "ridge"}])
def test_as_many_tasks_are_run_as_were_planned(scan, masks, tmp_path):
    recipe = {**scan[1], "masks": masks}
    made = plan_recipe(recipe, tmp_path / "out", seconds=0.1)
    tasks = {}

    @contextmanager
    def stage(name, nbytes=None):
        with Tasks() as counted:
            yield
        tasks[name] = counted.done

    run_recipe(recipe, tmp_path / "out", stage=stage)
    for planned in made.stages:
        # The masks are read from the results by some more.
        assert planned.tasks <= tasks[planned.name] <= planned.tasks + 20


@pytest.mark.long
def test_a_vendor_file_is_tried_and_nothing_is_left(tmp_path):
    made = plan_recipe(DEMO, tmp_path / "out")
    assert [stage.name for stage in made.stages] == ["convert", "correlate", "images"]
    counts = 42 * 42 * 38 * 38 * 2
    assert [stage.counts_bytes for stage in made.stages] == [counts] * 3
    assert list(tmp_path.iterdir()) == []
    run_recipe(DEMO, tmp_path / "out")
    stored = sum(
        p.stat().st_size for p in (tmp_path / "out" / "counts.zarr" / "counts" / "c").rglob("*") if p.is_file()
    )
    assert made.stages[1].read_bytes == pytest.approx(stored, rel=0.02)
    assert made.stages[0].read_bytes == pytest.approx(counts + stored, rel=0.02)


@pytest.mark.long
def test_stages_that_are_finished_are_not_planned(tmp_path):
    out = tmp_path / "out"
    run_recipe(DEMO, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    whole = plan_recipe(DEMO, out)
    assert whole.finished == ("convert", "correlate", "images", "evidence")
    assert whole.stages == ()
    assert "Nothing is left to run." in whole.text()
    whole.check()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    shutil.rmtree(out / "results.zarr" / "images")
    part = plan_recipe(DEMO, out)
    assert part.finished == ("convert", "correlate", "evidence")
    assert [stage.name for stage in part.stages] == ["images"]
    assert part.not_estimated == {}


@pytest.mark.long
def test_what_does_not_fit_is_refused_with_what_would(scan, tmp_path, monkeypatch, capsys):
    made = plan_recipe(scan[1], tmp_path / "out", seconds=0.1)
    made.check()
    needs = made.worker_bytes
    many = replace(made, resources=Resources(1, 8, needs))
    with pytest.raises(MemoryLimitError, match=r'worker of 8 threads needs about .* for the stage ".*" and has .* fit'):
        many.check()
    tiny = replace(made, resources=Resources(1, 1, made.base_bytes // 2))
    with pytest.raises(MemoryLimitError, match=r"workers of one thread with .* each would fit"):
        tiny.check()
    with pytest.raises(DiskFullError, match=r"give another folder as out=\.\.\., or make room"):
        replace(made, free_bytes=made.results_bytes - 1).check()
    # The command says so in one sentence, and runs nothing.
    monkeypatch.setattr(plan, "resources", lambda: Resources(1, 1, 10**6))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(DEMO.read_text().replace("lifepo4_001", f"{DATA}/lifepo4_001"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "recipe.toml"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "would fit" in said[0]
    assert not (tmp_path / "recipe-results").exists()


def test_a_wrong_recipe_is_refused_before_anything_is_tried(scan, tmp_path):
    with pytest.raises(RecipeError, match="does not go with the store"):
        plan_recipe({**scan[1], "source": {**scan[1]["source"], "flyback": 2}}, tmp_path / "out")


@pytest.mark.long
@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"]])
def test_the_command_prints_the_plan(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([command[0], str(DEMO), *command[1:]])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for part in ("stage", "convert", "correlate", "images", "Memory of a worker", "Disk for the results"):
        assert part in said
    with pytest.raises(SystemExit):
        cli.main([command[0], str(DEMO), *command[1:], "--json"])
    data = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in data["stages"]] == ["convert", "correlate", "images"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_report_holds_what_was_expected_beside_what_was_taken(scan, tmp_path):
    made = plan_recipe(scan[1], tmp_path / "out", seconds=0.1)
    result = run_recipe(scan[1], tmp_path / "out")
    page = write_report(result, made).page.read_text()
    assert "beside what was expected" in page
    for stage in made.stages:
        share = stage.counts_bytes / result.seconds[stage.name] / stage.bytes_per_second
        assert f"<td>{share:.0%}</td>" in page
    assert "what was expected" not in write_report(result).page.read_text()


MEMORY = """
import json, sys
import dask
from tdm_dask.recipe.plan import plan_recipe
from tdm_dask.recipe.run import run_recipe
dask.config.set(scheduler="threads", num_workers=2)
recipe = json.loads(sys.argv[1])
made = plan_recipe(recipe, sys.argv[2], seconds=0.1)
run_recipe(recipe, sys.argv[2])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([made.worker_bytes, 1024 * int(status["VmHWM"].split()[0])]))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process its peak memory since it began")
@pytest.mark.parametrize("masks", [{"detector_region": "disk:50"}, {"detector_region": "disk:25", "method": "ridge"}])
def test_a_run_stays_within_the_memory_that_was_planned(scan, masks, tmp_path):
    recipe = {**scan[1], "masks": masks}
    command = [sys.executable, "-c", MEMORY, json.dumps(recipe), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    planned, taken = json.loads(ended.stdout)
    assert taken <= 1.1 * planned
    assert planned <= 3 * taken


@pytest.mark.long
def test_workers_of_a_cluster_are_counted(scan, tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="1GiB", dashboard_address=None) as cluster,
        Client(cluster),
    ):
        made = plan_recipe(scan[1], tmp_path / "out", seconds=0.1)
    assert (made.resources.workers, made.resources.threads, made.resources.memory_bytes) == (2, 2, 2**30)
    with dask.config.set(scheduler="synchronous"):
        assert plan_recipe(scan[1], tmp_path / "out", seconds=0.1).resources.threads == 1
