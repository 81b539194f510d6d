"""workflows/pacbed.py at a reduced size: a coarse library, simulated here, finds the thickness of the sample."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_scans import simulates

pytestmark = [pytest.mark.long, simulates]

WORKFLOW = Path(__file__).parents[2] / "workflows" / "pacbed.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("pacbed")
    subprocess.run([sys.executable, WORKFLOW, "--quick", "--out", out], check=True, capture_output=True, text=True)
    return out, json.loads((out / "pacbed.json").read_text())


def test_the_thickness_of_the_sample_is_found(results):
    out, numbers = results
    # The library is coarse in everything: 8 nm between thicknesses, probes 1 angstrom apart, a small block.
    assert numbers["thickness_nm"] == pytest.approx(numbers["truth_nm"], abs=6)
    assert 0 < numbers["error_nm"] < 6
    assert min(numbers["curve"]["misfit"]) == pytest.approx(numbers["at_the_best"]["misfit"])
    assert (out / "pacbed-match.png").stat().st_size > 10_000


def test_a_library_that_is_there_is_read_and_gives_the_same(results, tmp_path):
    out, numbers = results
    command = [sys.executable, WORKFLOW, "--quick", "--out", tmp_path, "--library", out / "pacbed-library.zarr"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    again = json.loads((tmp_path / "pacbed.json").read_text())
    assert again["thickness_nm"] == pytest.approx(numbers["thickness_nm"], rel=1e-9)
    assert not (tmp_path / "pacbed-library.zarr").exists()
