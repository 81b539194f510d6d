"""The README: what it tells the user to do works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from tdm_dask.recipe.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_python_examples_make_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if "=" in line or "plot_image(" in line]) <= 10
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    image = names["image"]
    assert image.dims == ("template", "y", "x")
    assert (tmp_path / "li.png").stat().st_size > 1000
    at_sites = image.sel(template="Li").sel(y=5.166, x=[3.005, 6.01, 9.015], method="nearest")
    assert float(at_sites.min()) > 2 * float(image.std())
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    assert names["small"].sizes["ky"] < names["counts"].sizes["ky"] / 2
    correlation = np.corrcoef(names["found"]["image"].values.ravel(), image.values.ravel())[0, 1]
    assert correlation > 0.999
    exec(compile(blocks("python")[2], "README.md", "exec"), names)
    assert names["mask"].attrs["method"] == "ridge"
    assert set(names["found"].sentences) == {"Li"}
    matplotlib.use("agg")
    exec(compile(blocks("python")[3], "README.md", "exec"), names)
    assert names["mask"].axes_manager.signal_shape == names["counts"].shape[:1:-1]


def test_the_recipe_example_is_a_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(blocks("toml")[0], encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.masks.scan_region == {"y": [0, 64]}
    assert recipe.detectors["ADF"] == "adf:30:60"


def test_every_command_and_option_that_it_names_exists():
    from tdm_dask.cli import tdm

    lines = [line for block in blocks("sh") for line in block.splitlines() if "tdm " in line]
    for line in lines:
        words = line.split("#")[0].split("tdm ")[-1].split()
        command = tdm.commands[words[0]]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
    assert len(lines) >= 7


def test_the_files_that_it_points_to_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (ROOT / target).is_file(), target


@pytest.mark.skipif(not (ROOT / ".ci" / "run").is_file(), reason="only in the repository")
def test_the_check_script_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in blocks("sh")[1].strip().split(" && "):
        assert command.replace("pip install", "pip install --quiet") in script
