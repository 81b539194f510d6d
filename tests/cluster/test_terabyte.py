"""The benchmark of a terabyte at a fiftieth of its size: five templates derived and applied by two workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "terabyte.py"


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark measures what Linux alone tells")
def test_twenty_gigabytes_are_derived_and_applied_by_two_workers_of_2_gib(tmp_path):
    numbers = tmp_path / "numbers.json"
    command = [sys.executable, str(BENCHMARK), "--bytes", "2e10", "--folder", str(tmp_path), "--json", str(numbers)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(numbers.read_text())
    assert found["counts_bytes"] >= 2e10
    assert found["shards"] == found["counts_bytes"] // (16 * 16 * 512 * 512 * 2)
    assert found["worker_peak_bytes"] < found["worker_limit_bytes"] == 2 * 2**30
    assert found["scheduler_peak_bytes"] < 2**30
    for graph in found["graphs"].values():
        assert graph["tasks"] < 200
        assert graph["bytes"] < 2e6
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]
