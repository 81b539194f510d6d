"""The README: short, and what it tells the reader to do works as it stands, from a wheel, in a clean folder."""

from __future__ import annotations

import re
from importlib.resources import files

import browser
import pytest
from documents import README, ROOT, Reader, blocks, installed
from scipy.spatial import cKDTree
from viewer.driver import Driver

import tdm_dask as tdm

MOST_LINES = 145
KINDS = ["Fe", "P+O", "O", "Li"]


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Reader:
    """Who has done everything that the README says."""
    place = tmp_path_factory.mktemp("readme")
    reader = Reader(place / "work", installed(place))
    reader.follow(README)
    return reader


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_all_of_it_runs_but_what_cannot(followed):
    assert followed.differently == {
        "pip install .": "installed from a wheel, with the packages of the tests",
        'pip install ".[test]"': "installed from a wheel, with the packages of the tests",
        'pip install ".[view]"': "installed from a wheel, with the packages of the tests",
        "pytest": "is what runs this test",
        "tdm view scan.zarr": "opened by its link and ended with Ctrl-C",
    }
    assert len(followed.said) == len(blocks(README)) == 4


def test_the_package_is_that_of_the_wheel(followed):
    place = followed._run(["python", "-c", "import tdm_dask; print(tdm_dask.__file__)"], blocks(README)[0])
    assert place.startswith(str(followed.programs.parent / "lib"))


def test_the_demo_leaves_its_report(followed):
    assert "Fe" in (followed.folder / "tdm-demo" / "report.html").read_text(encoding="utf-8")


def test_the_store_is_calibrated_and_its_page_opens(followed):
    counts = tdm.open(followed.folder / "scan.zarr")
    assert {counts[dim].attrs["units"] for dim in counts.dims} == {"angstrom", "mrad"}
    (page,) = [said for said in followed.said.values() if "The page is at" in said]
    assert "<h1>scan.zarr" in page
    assert "42 x 42 probe positions, 38 x 38 detector pixels" in page
    assert "The page is closed." in page


def test_two_clicks_lead_from_a_crystal_to_ridge_masks_of_all_kinds(followed, tmp_path):
    with (
        tdm.view(followed.folder / "scan.zarr", out=tmp_path / "out") as view,
        browser.visit(view.link) as seen,
    ):
        driver = Driver(view, seen)
        driver.page.locator("input[type=file]").set_input_files(followed.folder / "workflows" / "LiFePO4.cif")
        driver.until(lambda: list(view.choices.placed) == KINDS)
        driver.until(lambda: driver.message().startswith("The crystal lies on the image"))
        driver.button("ridge").click()
        driver.until(lambda: driver.page.get_by_text("ridge mask of Fe").count())
        text = README.read_text(encoding="utf-8")
        section = text[text.index("## From a crystal file") : text.index("## The same in Python")]
        labels = {" ".join(label.split()) for label in re.findall(r"\*+([A-Z][^*]+)\*+", section)}
        for label in labels - {"Choose File"}:  # which is the browser's
            assert driver.page.get_by_text(label).count(), label
        assert len(labels) == 8
        assert seen.troubles() == []


def test_the_python_block_finds_all_columns_and_says_what_they_are_evidence_for(followed):
    said = followed.said[blocks(README)[-1].name]
    assert [line.partition(":")[0] for line in said.splitlines()] == KINDS
    assert (followed.folder / "columns.png").stat().st_size > 10_000
    found = tdm.read_sites(followed.folder / "sites.csv")
    assert list(found) == KINDS
    true = tdm.read_sites(files("tdm_dask") / "data" / "lifepo4_001_sites.json")
    for kind in KINDS:
        assert cKDTree(found[kind]).query(true[kind])[0].max() < 0.1  # angstrom


@pytest.mark.skipif(not (ROOT / ".ci" / "run").is_file(), reason="only in the repository")
def test_the_check_script_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (tests,) = [block for block in blocks(README) if "pytest" in block.text]
    for command in tests.text.strip().split(" && "):
        assert command.replace("pip install", "pip install --quiet") in script
