"""The report as a notebook: it reads without being run, and its cells draw the figures of the report."""

from __future__ import annotations

import base64
import builtins
import json
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from tdm_dask.cli import main
from tdm_dask.errors import InputError
from tdm_dask.plot import save_figure
from tdm_dask.recipe.run import run_recipe
from tdm_dask.report.writing import write_report

nbformat = pytest.importorskip("nbformat", reason="the package nbformat is not here")
DATA = Path(str(files("tdm_dask"))) / "data"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report of a short recipe with every kind of figure, one kind named so that it needs care in code."""
    folder = tmp_path_factory.mktemp("notebook")
    sites = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))
    sites = {'the "O" | `x`': sites["O"], "Li": sites["Li"]}
    (folder / "sites.json").write_text(json.dumps(sites), encoding="utf-8")
    recipe = folder / "recipe.toml"
    text = (DATA / "demo.toml").read_text(encoding="utf-8").replace("lifepo4_001_sites.json", "sites.json")
    text = text.replace("lifepo4_001.mib", f"{DATA}/lifepo4_001.mib").replace("cell =", "draws = 20\ncell =")
    text = text.replace('ADF = "adf:30:45"\n', "").replace('all_name = "all"\n', "")
    text = text.replace("The sample that ships", "# <script>alert(1)</script> *The* sample that ships")
    recipe.write_text(text, encoding="utf-8")
    result = run_recipe(recipe, folder / "out")
    report = write_report(result, notebook=True)
    return result, report, nbformat.read(report.notebook, as_version=4)


def cells(book, kind: str) -> list:
    return [cell for cell in book.cells if cell.cell_type == kind]


@pytest.mark.long
def test_every_figure_of_the_report_is_in_the_notebook_before_it_is_run(made):
    _, report, book = made
    nbformat.validate(book)
    outputs = [cell.outputs[0] for cell in cells(book, "code")[1:]]
    found = [base64.b64decode(output.data["image/png"]) for output in outputs]
    assert found == [Path(file).read_bytes() for file in report.figures.values()]
    assert all(len(output.data["text/plain"]) > 20 for output in outputs)
    page = Path(report.page).read_text(encoding="utf-8")
    text = "\n".join(cell.source for cell in cells(book, "markdown"))
    numbers = [re.findall(r"Figure (\d+)\.", source) for source in (re.sub(r"base64,[^\"]+", "", page), text)]
    assert numbers[1] == sorted(set(numbers[0]), key=int)


def test_the_notebook_says_what_the_page_says(made):
    result, _, book = made
    text = "\n".join(cell.source for cell in cells(book, "markdown"))
    for words in ("SHA-256 of the file", "23.5 mrad", "200 keV", "20000", "tdm run recipe.toml --out results"):
        assert words in text
    assert result.recipe.text.strip() in text
    for value in result.evaluation["R"].values.ravel():
        assert f"{value:+.2f}".replace("-", "−") in text


def test_text_of_users_cannot_become_markup(made):
    _, _, book = made
    *texts, recipe = (cell.source for cell in cells(book, "markdown"))
    assert not any("<script" in text for text in texts)
    assert "> \\# &lt;script&gt;alert(1)&lt;/script&gt; \\*The\\* sample" in texts[0]
    assert any('the "O" \\| \\`x\\`' in text for text in texts)
    assert recipe.count("```toml") == 1


@pytest.mark.long
def test_cells_draw_the_figures_of_the_report_byte_by_byte(made, tmp_path, monkeypatch):
    """Without a kernel, so that what each cell gives is at hand."""
    _, report, book = made
    monkeypatch.chdir(Path(report.notebook).parent)
    setup, *drawing = (cell.source for cell in cells(book, "code"))
    names: dict = {}
    with mpl.rc_context():
        exec("\n".join(line for line in setup.splitlines() if not line.startswith("%")), names)
        for source, file in zip(drawing, report.figures.values(), strict=True):
            saved = save_figure(eval(source, names), tmp_path / "again.png")
            assert saved.read_bytes() == Path(file).read_bytes(), source


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom_wherever_its_folder_is(made, tmp_path):
    pytest.importorskip("nbclient", reason="the package nbclient is not here")
    pytest.importorskip("ipykernel", reason="the package ipykernel is not here")
    from notebooks import executed

    _, report, _ = made
    folder = tmp_path / "moved"
    shutil.copytree(Path(report.notebook).parent, folder)
    book = nbformat.read(folder / "report.ipynb", as_version=4)
    for cell in cells(book, "code"):
        cell.outputs = []
    _, *drawn = cells(executed(book, folder), "code")
    for cell, file in zip(drawn, report.figures.values(), strict=True):
        (output,) = cell.outputs
        (tmp_path / "now.png").write_bytes(base64.b64decode(output.data["image/png"]))
        now, then = imread(tmp_path / "now.png"), imread(file)
        # Their margins differ by a little.
        np.testing.assert_allclose(now.shape[:2], then.shape[:2], atol=20)
        assert now[..., :3].std() == pytest.approx(then[..., :3].std(), rel=0.1)


def test_the_command_writes_a_notebook_on_request_alone(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(f'[source]\npath = "{made[0].store}"\n[detectors]\nBF = "disk:10"\n')
    for options, there in (([], False), (["--notebook"], True)):
        with pytest.raises(SystemExit) as caught:
            main(["run", "mine.toml", *options])
        assert caught.value.code == 0
        assert ("Notebook: mine-results/report.ipynb" in capsys.readouterr().out) == there
        assert (tmp_path / "mine-results" / "report.ipynb").is_file() == there


def test_without_nbformat_the_request_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    whole = builtins.__import__

    def missing(name, *rest, **options):
        if name == "nbformat":
            raise ImportError(name)
        return whole(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, "nbformat", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--notebook"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'pip install "tdm-dask[notebook]"' in error
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="nbformat"):
        write_report(None, notebook=True)
