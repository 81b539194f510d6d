"""The domain wall's workflow: positions and displacements against the truth, and the controls."""

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


def run(*arguments):
    command = [sys.executable, "domain_wall.py", *map(str, arguments)]
    return subprocess.run(command, cwd=WORKFLOWS, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(shared, tmp_path_factory):
    out = tmp_path_factory.mktemp("domain_wall")
    done = run(shared / "data" / "pbtio3_100_39nm.npz", "--quick", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, json.loads((out / "domain_wall.json").read_text(encoding="utf-8"))


def test_a_figure_is_written(results):
    picture = imread(results[0] / "domain_wall-figure.png")
    assert min(picture.shape[:2]) > 1000
    assert np.ptp(picture[..., 0]) > 0.5


def test_the_templates_come_from_a_ninth_of_the_area_in_either_domain(results):
    regions = results[1]["regions"]
    assert len(regions) == 2
    for region in regions.values():
        assert region["part_of_scan"] == pytest.approx(1 / 9, abs=0.01)


def test_positions_are_found_from_undisplaced_sites(results):
    for region in results[1]["regions"].values():
        positions = region["positions"]["second round"]
        for kind, limit, columns in (("Pb", 0.06, 36), ("O", 0.1, 72)):
            assert positions[kind]["columns"] == columns
            assert positions[kind]["not_fitted"] == 0
            for measure in ("rms_angstrom", "rms_without_shift_angstrom", "rms_outside_region_angstrom"):
                assert positions[kind][measure] < limit, (kind, measure)
        # The undisplaced sites that the fits start from are far off.
        assert np.abs(region["true_displacement_along_itself_angstrom"]) == pytest.approx(0.31, abs=0.005)


def test_axis_and_sign_are_right_outside_the_reference_region_of_either_domain(results):
    for region in results[1]["regions"].values():
        directions = region["directions"]["undisplaced, 4mm"]
        assert directions["scored"]["of"] == 17
        assert directions["scored"]["right"] * 18 >= 16 * directions["scored"]["of"]
        assert directions["other domain"]["of"] + directions["own domain"]["of"] == 17
        assert directions["other domain"]["right"] == directions["other domain"]["of"] >= 6
        assert 0.1 < directions["scored"]["mean_along_truth_angstrom"] < 0.31


def test_a_reversed_template_is_copied_unless_the_mask_is_symmetrised(results):
    for region in results[1]["regions"].values():
        directions = region["directions"]
        assert directions["reversed, as derived"]["reference"]["right"] == 0
        assert directions["reversed, 4mm"]["reference"]["right"] == directions["reversed, 4mm"]["reference"]["of"] == 4


def test_without_a_scan_of_a_wall_it_says_what_it_needs(tmp_path):
    done = run("--out", tmp_path / "results")
    assert done.returncode != 0
    assert "needs a scan of a domain wall" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()
