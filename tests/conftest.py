"""Fixtures that several test files share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import simulated_scans
from conversions import SHAPE
from small_stores import converted, poisson, raw_file

from tdm_dask.recipe.run import run_recipe

# What takes longest by file, to begin with: a file goes to one process, and the last ones should be short.
FIRST = (
    "test_readme.py", "test_kernels.py", "test_store.py", "test_plot.py", "test_ridge_physics.py", "test_cli.py",
    "test_viewer_page.py", "test_package.py", "test_reduction.py", "test_promises.py", "test_report_page.py",
)  # fmt: skip
SHARED = Path(__file__).resolve().parents[2] / "shared"
DEMO = Path(__file__).resolve().parents[1] / "tdm_dask" / "data" / "demo.toml"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests on an archive beside the project are long; the scans that are simulated here are tested always.

    Files that take longest come first.
    """
    rank = {name: n for n, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(value in simulated_scans.ARCHIVES for value in params if isinstance(value, str)):
            item.add_marker("long")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of simulated scans and real vendor files that lies beside the project, where it does."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared is not here")
    return SHARED


@pytest.fixture(scope="session")
def simulated(request, tmp_path_factory):
    """Load a scan with known truth: its counts, which are not to be changed, and what is known about it."""
    kept = getattr(request.config, "cache", None)
    folder = tmp_path_factory.mktemp("simulated") if kept is None else kept.mkdir("simulated_scans")

    @cache
    def load(name: str):
        if name == simulated_scans.SAMPLE:
            counts, meta = simulated_scans.sample()
        elif name in simulated_scans.SPECIMENS:
            pytest.importorskip("abtem")
            counts, meta = simulated_scans.simulated_scan(name, folder)
        else:
            counts, meta = simulated_scans.load(request.getfixturevalue("shared") / "data" / name)
        counts.flags.writeable = False
        return counts, meta

    return load


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The results of the recipe that comes with the package, which are not to be changed."""
    return run_recipe(DEMO, tmp_path_factory.mktemp("demo") / "demo")


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
