"""The workflow of the components, run on the package's sample at a reduced size: do its numbers hold?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.long

WORKFLOW = Path(__file__).parents[2] / "workflows" / "components.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("components")
    command = [sys.executable, str(WORKFLOW), "--quick", "--components", "3", "--nonnegative", "2", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out, json.loads((out / "components.json").read_text(encoding="utf-8"))


def test_the_figure_is_drawn(results):
    assert (results[0] / "components-figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_component_resembles_the_adf_image_and_no_other_does(results):
    adf = {name: abs(r["ADF"]) for name, r in results[1]["correlation"].items() if name.startswith("PC")}
    assert len(adf) == 3
    assert adf["PC 1"] > 0.95
    assert max(adf["PC 2"], adf["PC 3"]) < 0.2


def test_image_to_mask_to_image_multiplies_the_first_component_by_its_eigenvalue(results):
    sixth = results[1]["equation 6"]
    assert sixth["factor"] == pytest.approx(sixth["eigenvalue"], rel=1e-4)
    assert sixth["correlation"] == pytest.approx(1, abs=1e-6)


def test_eigenvalues_and_fractions_fall(results):
    principal, parts = results[1]["principal"], results[1]["nonnegative"]
    assert principal["reads"] == parts["reads"] == 2
    assert (np.diff(principal["eigenvalue"]) < 0).all()
    assert 0 < sum(principal["fraction"]) < 1
    assert (np.diff(parts["fraction"]) <= 0).all()
    assert sum(parts["fraction"]) == pytest.approx(1)
    assert 0 < parts["residual"] < 0.5
