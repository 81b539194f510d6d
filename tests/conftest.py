"""Fixtures that several test files share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conversions import SHAPE
from small_stores import converted, poisson, raw_file

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


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A raw file, the options that open it, and its counts."""
    counts = poisson(SHAPE, ">u2")
    path = tmp_path_factory.mktemp("raw") / "scan.raw"
    return path, raw_file(path, counts), counts


@pytest.fixture(scope="session")
def uninterrupted(raw, tmp_path_factory):
    """The store that the raw file is converted to with small shards, where nothing goes wrong."""
    path = tmp_path_factory.mktemp("whole") / "scan.zarr"
    converted(path, str(raw[0]), **raw[1])
    return path
