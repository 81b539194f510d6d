"""workflows/live.py at a reduced size: live masks end as those of the whole, live images are nearly as good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

WORKFLOW = Path(__file__).parents[2] / "workflows" / "live.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("live")
    subprocess.run([sys.executable, WORKFLOW, "--quick", "--out", out], check=True, capture_output=True, text=True)
    return out, json.loads((out / "live.json").read_text())


def test_the_last_mask_is_that_of_the_whole_scan(results):
    out, numbers = results
    assert numbers["largest_difference_from_the_batch_mask"] < 1e-6
    assert numbers["patterns"][-1] == numbers["probes"] == 576
    assert (out / "live-masks.png").stat().st_size > 10_000
    assert not (out / "arriving.raw").exists()
    for kind, agreement in numbers["agreement_with_the_last_mask"].items():
        assert agreement[-1] == pytest.approx(1), kind
        assert agreement[-2] > 0.95 > agreement[0], kind


def test_images_of_a_mask_that_was_fixed_early_are_nearly_as_good(results):
    _, numbers = results
    assert 144 <= numbers["mask_fixed_after"] < 288
    # Fe has the weakest signal, and its mask needs most patterns.
    for kind in ("Li", "O"):
        assert numbers["R_live"][kind] > numbers["R_final_at_the_same_probes"][kind] - 0.1 > 0.5, kind
