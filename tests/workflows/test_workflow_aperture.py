"""workflows/aperture.py at a reduced size: what it writes, held against the truth of the sample."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.long

WORKFLOW = Path(__file__).parents[2] / "workflows" / "aperture.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("aperture")
    subprocess.run([sys.executable, WORKFLOW, "--quick", "--out", out], check=True, capture_output=True, text=True)
    return out, json.loads((out / "aperture.json").read_text())


def test_the_apertures_lie_in_the_disk_and_collect_their_own_columns_most(results):
    out, numbers = results
    assert (out / "aperture-apertures.png").stat().st_size > 10_000
    assert set(numbers["apertures"]) == {"Li", "O"}
    for kind, aperture in numbers["apertures"].items():
        assert np.hypot(*aperture["centre_mrad_ky_kx"]) + aperture["radius_mrad"] < 24 + 1.3 * 2.43
        for signals in (aperture["snr"], *aperture["snr_held_out_by_halves"]):
            assert max(signals, key=signals.get) == kind
        # R of an aperture's image is its contrast over the standard deviation of the image: the same sign and order.
        r, contrast = numbers["R"][kind], aperture["contrast"]
        assert sorted(r, key=r.get) == sorted(contrast, key=contrast.get)
    assert "elastic scattering alone" in numbers["caveat"]


def test_the_aperture_for_oxygen_is_near_the_axis_and_shows_it_better_than_the_whole_disk(results):
    # By mirror symmetry of the specimen the best aperture of a strong signal is central, or one of a pair.
    _, numbers = results
    oxygen = numbers["apertures"]["O"]
    assert np.hypot(*oxygen["centre_mrad_ky_kx"]) < 3
    assert numbers["R"]["O"]["O"] > numbers["R"]["BF disk"]["O"] + 0.3
