"""The pages on code of one's own: their examples run exactly as they stand, in a clean folder."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tdm_dask as tdm
from tdm_dask import cli

DOCS = Path(__file__).resolve().parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only in the repository")
PAGES = ("a-reduction-of-your-own.md", "adding-a-format.md")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run(*words, folder):
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_the_example_is_short(page):
    assert len(blocks(page, "python")[0].splitlines()) <= 40


def test_the_reductions_run_as_they_stand(tmp_path):
    (tmp_path / "example.py").write_text(blocks(PAGES[0], "python")[0])
    printed = run("example.py", folder=tmp_path)
    assert "largest  (ky, kx) uint32" in printed
    assert "total    (y, x) uint64" in printed


@pytest.mark.long
def test_the_format_runs_as_it_stands_and_with_the_commands_of_the_page(tmp_path):
    (tmp_path / "my_format.py").write_text(blocks(PAGES[1], "python")[0])
    lines = [line.split() for line in blocks(PAGES[1], "sh")[0].splitlines()]
    assert [line[0] for line in lines] == ["python", "tdm", "tdm"]
    words = [line[1:] if line[0] == "python" else ["-m", "tdm_dask", *line[1:]] for line in lines]
    tried, info, _ = (run(*command, folder=tmp_path) for command in words)
    assert tried == "It works.\n"
    assert "read by ABC camera, a format of the file my_format.py" in info
    assert "beam energy: 200 keV" in info
    assert tdm.open(tmp_path / "scan.zarr").attrs["energy_eV"] == 200e3
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr").values.ravel(), np.arange(2 * 3 * 16 * 16))


def test_the_format_accepts_partial_scans_of_whole_files_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_format.py").write_text(blocks(PAGES[1], "python")[0])
    runpy.run_path("my_format.py", run_name="__main__")
    whole = tdm.open("scan.abc", format="my_format.py", allow_partial=True)
    np.testing.assert_array_equal(whole.values.ravel(), np.arange(2 * 3 * 16 * 16))
    assert "valid_patterns" not in whole.coords
    convert_partial("scan.abc", "scan.zarr")
    np.testing.assert_array_equal(tdm.open("scan.zarr"), whole)
    os.truncate("scan.abc", os.path.getsize("scan.abc") - 8)
    convert_partial("scan.abc", "part.zarr")
    assert int(tdm.open("part.zarr").valid_patterns.sum()) == 5


def convert_partial(source, store):
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", source, store, "--format", "my_format.py", "--allow-partial"])
    assert ended.value.code == 0


def test_what_the_pages_name_is_there():
    for page in PAGES:
        for name in re.findall(r"tdm\.(\w+)", (DOCS / page).read_text(encoding="utf-8")):
            assert hasattr(tdm, name), name
