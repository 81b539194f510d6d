"""The benchmark at small scale: that it runs, that answers agree, that its tables are whole. Never how long it took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark measures what Linux alone tells")


def benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What every case printed and wrote, run once on a few MB."""
    file = tmp_path_factory.mktemp("benchmark") / "numbers.json"
    run = benchmark("--scale", "small", "--runs", 1, "--json", file)
    assert run.returncode == 0, run.stderr
    return run, json.loads(file.read_text())


@pytest.fixture(scope="module")
def cases():
    from benchmarks.cases import CASES

    return set(CASES)


@pytest.mark.long
def test_every_answer_agrees(small):
    run, _ = small
    assert "FAILED" not in run.stderr
    assert "answers agree" in run.stdout


@pytest.mark.long
def test_every_case_has_a_figure_and_contestants(small, cases):
    _, numbers = small
    assert {row["case"] for row in numbers["figures"]} == cases
    assert {row["case"] for row in numbers["contestants"]} == cases


@pytest.mark.long
def test_only_what_is_not_installed_is_left_out(small):
    run, _ = small
    lines = [line for line in run.stdout.splitlines() if line.startswith("Left out: ")]
    for reason in [reason for line in lines for reason in line.split("; ")]:
        assert "is not installed" in reason or "cores" in reason


@pytest.mark.long
def test_every_run_was_measured(small):
    _, numbers = small
    for row in numbers["contestants"]:
        assert len(row["seconds"]) == len(row["peak_bytes"]) == len(row["bytes_read"]) == numbers["rounds"] == 1
        assert row["seconds"][0] > 0


@pytest.mark.long
def test_bytes_read_are_those_of_the_job(small):
    _, numbers = small
    (row,) = [r for r in numbers["contestants"] if r["contestant"] == "limit: raw read, twice"]
    assert 2 * row["counts_bytes"] <= row["bytes_read"][0] < 2.1 * row["counts_bytes"]


@pytest.mark.long
def test_tables_are_whole(small):
    run, numbers = small
    tables = [part.splitlines() for part in run.stdout.split("\n\n") if part.startswith("|")]
    assert [len(table) - 2 for table in tables] == [len(numbers["figures"]), len(numbers["contestants"])]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_an_unknown_case_is_refused():
    run = benchmark("--only", "nothing")
    assert run.returncode == 2
    assert "apply-memory" in run.stderr


def test_answers_that_differ_are_told():
    from benchmarks.contestant import Contestant
    from benchmarks.data import Scan
    from benchmarks.rounds import compare

    scan = Scan(Path("scan.raw"), (2, 2), (4, 4))
    ours, same, other = (Contestant(name, scan) for name in ("ours", "same", "other"))
    image = np.ones((2, 2))
    answers = [(ours, {"image": image}), (same, {"image": image * 1.00001}), (other, {"image": image * 1.01})]
    sentences = compare(answers)
    assert len(sentences) == 1
    assert "other" in sentences[0]


def large_formats():
    from benchmarks.memory import FORMATS

    return sorted(FORMATS)


@pytest.mark.long
@pytest.mark.parametrize("name", large_formats())
def test_every_large_file_holds_what_was_written(tmp_path, name):
    from benchmarks.memory import FORMATS, Place

    import tdm_dask as tdm

    (tmp_path / "folder").mkdir()
    file = FORMATS[name](Place(tmp_path / "folder", (8, 16), (32, 32)))
    counts = tdm.open(file.path, **file.options)
    assert counts.nbytes == file.nbytes
    assert float(counts.astype(np.float64).sum()) == pytest.approx(file.total)
    assert file.total > 0


@pytest.mark.long
def test_peak_memory_is_measured(tmp_path):
    file = tmp_path / "numbers.json"
    names = ["dectris", "nexus-gzip-lines"]
    run = benchmark("--memory", *names, "--scale", "small", "--json", file, "--folder", tmp_path / "files")
    assert run.returncode == 0, run.stderr
    rows = json.loads(file.read_text())["conversions"]
    assert [(row["format"], row["workers"]) for row in rows] == [
        ("dectris", "2 threads"),
        ("dectris", "2 processes"),
        ("nexus-gzip-lines", "2 threads"),
    ]
    for row in rows:
        assert row["problem"] == ""
        assert len(row["peak_bytes"]) == int(row["workers"][0]) if "processes" in row["workers"] else 1
        for peak, private in zip(row["peak_bytes"], row["private_bytes"], strict=True):
            assert peak > private > 0
        assert row["above_imports_bytes"] > 0
    assert len([line for line in run.stdout.splitlines() if line.startswith("|")]) == len(rows) + 2
    assert not list((tmp_path / "files").rglob("*.h5"))
