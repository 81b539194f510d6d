"""Fixtures that several test files share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of simulated scans and real vendor files that lies beside the project, where it does."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared is not here")
    return SHARED


@pytest.fixture(scope="session")
def simulated(shared):
    """Load one of the simulated scans: its counts and what is known about it."""

    def load(name: str):
        with np.load(shared / "data" / name) as file:
            return file["counts"], json.loads(str(file["meta"]))

    return load
