"""The workflow of Fig. 4 on scans that it simulates in a reduced size."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from simulated_scans import simulates

pytestmark = [pytest.mark.long, simulates]

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("defects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["defects.py", "--quick", "--out", str(out)])
        patch.syspath_prepend(str(WORKFLOWS))
        runpy.run_path(str(WORKFLOWS / "defects.py"))
    return out


def test_each_defect_changes_the_image_of_its_own_kind(results):
    numbers = json.loads((results / "defects.json").read_text("utf-8"))
    found = {row["state"]: row for row in numbers["defects"]}
    assert {state: row["kind"] for state, row in found.items()} == {
        "vacancy": "O", "antisite": "Li", "interstitial": "Fe"
    }  # fmt: skip
    assert found["vacancy"]["ratio"] < -8
    assert found["antisite"]["ratio"] < -5
    assert found["interstitial"]["ratio"] > 10


def test_the_table_has_every_column_once(results):
    numbers = json.loads((results / "defects.json").read_text("utf-8"))
    rows = numbers["columns"]
    assert len({(row["kind"], row["group"], row["y"], row["x"]) for row in rows}) == len(rows)
    intact = [row["ratio"] for row in rows if row["state"] == "intact"]
    assert len(intact) > 60
    assert max(map(abs, intact)) < 5


def test_the_limit_of_detection_lies_between_empty_and_full(results):
    detection = json.loads((results / "defects.json").read_text("utf-8"))["detection"]
    assert 0.3 < detection["O"]["limit"] < 1
    assert min(detection["O"]["occupancy"]) == 0


def test_there_is_a_figure(results):
    assert (results / "defects-fig4.png").stat().st_size > 50_000
