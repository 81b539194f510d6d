"""The comparison of methods runs from the command line and finds what is known of the specimen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

pytestmark = pytest.mark.long

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    command = [sys.executable, "comparison.py", "--quick", "--out", str(out)]
    run = subprocess.run(command, cwd=WORKFLOWS, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out, json.loads((out / "comparison.json").read_text(encoding="utf-8"))


def test_figures_and_numbers_are_written(results):
    out, numbers = results
    for name in ("images", "deflection"):
        picture = imread(out / f"comparison-{name}.png")
        assert min(picture.shape[:2]) > 400
        assert np.ptp(picture[..., 0]) > 0.5
    assert set(numbers["methods"]) == {"inverted ABF", "iCoM", "TDM, all atoms"}
    assert numbers["rotation_deg"] == 0


def test_light_columns_gain_most_and_the_peaks_of_abf_and_tdm_lie_on_columns(results):
    _, numbers = results
    abf, icom, tdm = (numbers["methods"][name] for name in ("inverted ABF", "iCoM", "TDM, all atoms"))
    # Truth of this row: Li every 3.005 angstrom, O half-way between.
    columns = numbers["profile"]["columns_angstrom"]
    assert set(columns) == {"Li", "O"}
    assert columns["Li"] == pytest.approx([0, 3.005], abs=0.01)
    assert columns["O"] == pytest.approx([1.502, 4.507], abs=0.01)
    for method in (abf, tdm):
        apart = method["profile"]["column_to_nearest_peak_angstrom"]
        assert max(apart["Li"] + apart["O"]) < 0.15
        assert not method["profile"]["peaks_without_column"]
    assert tdm["contrast"]["Li"] > 1.5 * abf["contrast"]["Li"] > 0
    assert tdm["contrast"]["Li"] / tdm["contrast"]["Fe"] > 3 * abf["contrast"]["Li"] / abf["contrast"]["Fe"]
    assert tdm["R_with_all_columns"] > abf["R_with_all_columns"] > icom["R_with_all_columns"] + 0.2


def test_the_likeness_is_held_out_and_set_beside_a_template_without_atoms(results):
    _, numbers = results
    checks = numbers["checks_R"]
    assert checks["TDM held out"] > 0.75
    assert abs(checks["moved template, held out"]) < checks["TDM held out"] - 0.3
    assert abs(checks["moved template against the true one"]) < 0.3


def test_the_rotation_keeps_its_180_degrees(results):
    _, numbers = results
    angles = numbers["rotation_of_this_scan_by_itself"]["rotation_deg"]
    assert abs(angles[0] - angles[1]) == pytest.approx(180)
    assert min(abs(a) for a in angles[:2]) < 3
