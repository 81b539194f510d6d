"""The viewer in a real browser: what a user does with the mouse comes out in masks, images, files and a recipe."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
import xarray as xr
from driver import Driver

import tdm_dask as tdm

pytest.importorskip("panel")

SCAN, DETECTOR = (42, 42), (38, 38)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The sample, calibrated."""
    from importlib.resources import files

    place = tmp_path_factory.mktemp("viewer") / "scan.zarr"
    sample = Path(str(files("tdm_dask") / "data" / "lifepo4_001.mib"))
    counts = tdm.convert(sample, place, scan_step=("0.3229 Å", "0.3220 Å"))
    from tdm_dask.reading.store import write_calibration

    write_calibration(place, tdm.calibrate(counts, semi_angle="23.5 mrad"))
    return place


@pytest.fixture
def driver(store, tmp_path) -> Iterator[Driver]:
    with (
        tdm.view(store, out=tmp_path / "out") as view,
        browser.visit(view.link, width=1280, height=1000) as seen,
    ):
        yield Driver(view, seen)
        assert seen.troubles() == []
        assert seen.elsewhere() == []


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_what_is_written_can_be_read(driver, theme):
    """Whatever styles Panel brings to a page with a skeleton of its own: not all of its releases bring the same."""
    if theme == "dark":
        driver.button("Dark").click()
        driver.page.wait_for_selector("text=Light")
        driver.page.wait_for_selector("text=Find columns")
    driver.frame("overview")
    found = driver.seen.contrasts()
    assert {"BUTTON: Confirm on the full data", "STRONG: Mask: place sites first"} <= {text for text, _ in found}
    assert {text: ratio for text, ratio in found if ratio < 4.5} == {}
    field, behind = driver.page.get_by_placeholder("name, such as Li").evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    )
    assert field != behind


def test_sites_sigma_mask_image_and_recipe(driver, store, tmp_path):
    page = driver.page
    page.get_by_placeholder("name, such as Li").fill("Li")
    driver.button("Add").click()
    driver.until(lambda: "Li" in driver.view.choices.sites)
    driver.button("Edit sites").click()
    places = [(5.2, 3.0), (5.2, 6.0), (5.2, 9.0), (10.3, 6.0)]
    for number, place in enumerate(places, start=1):
        driver.click("overview", *place)
        driver.until(lambda number=number: len(driver.view.choices.sites["Li"]) == number)
    np.testing.assert_allclose(driver.view.choices.sites["Li"], places, atol=0.1)
    driver.until(lambda: "mask of Li" in page.content() or page.get_by_text("mask of Li").count())

    before = driver.pixels("mask"), driver.pixels("result")
    driver.drag("overview", places[3], (10.9, 6.9))
    driver.until(lambda: np.allclose(driver.view.choices.sites["Li"][3], (10.9, 6.9), atol=0.15))
    driver.until(lambda: driver.pixels("result") != before[1] and driver.pixels("mask") != before[0])
    np.testing.assert_allclose(driver.view.choices.sites["Li"][:3], places[:3], atol=0.1)

    before = driver.pixels("mask"), driver.pixels("result")
    slider = page.locator(".noUi-handle").nth(4)
    sigma = driver.view.choices.sigma
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    driver.until(lambda: driver.view.choices.sigma > sigma)
    driver.until(lambda: driver.pixels("result") != before[1] and driver.pixels("mask") != before[0])

    driver.button("Confirm on the full data").click()
    driver.until(lambda: page.get_by_text("Done in").count())
    driver.until(lambda: page.get_by_text("mask of Li, full data").count())
    driver.button("Save recipe, figures and numbers").click()
    driver.until(lambda: "Saved" in driver.message())

    out = tmp_path / "out"
    assert {path.suffix for path in (out / "figures").iterdir()} == {".png", ".svg"}
    saved = xr.open_zarr(out / "shown.zarr", group="masks", consolidated=False)
    full = xr.open_zarr(out / "results.zarr", group="masks", consolidated=False)["mask"].load()
    again = tdm.run_recipe(out / "recipe.toml", tmp_path / "again").masks["mask"]
    np.testing.assert_allclose(again, full, atol=1e-6)
    np.testing.assert_allclose(saved["mask"].sel(template="Li"), full.sel(template="Li"), atol=1e-6)
    sites = driver.view.choices.placed
    template = tdm.gaussian_template(tdm.open(store), sites, sigma=driver.view.choices.sigma)
    region = tdm.disk(tdm.open(store), driver.view.choices.radius)
    expected = tdm.derive_mask(tdm.open(store), template, detector_region=region).compute()
    np.testing.assert_allclose(again, expected, atol=1e-6)


@pytest.mark.long
def test_it_opens_where_it_was_left(store, tmp_path):
    out = tmp_path / "out"
    sites = {"Li": np.array([[5.2, 3.0], [5.2, 6.0]]), "O": np.array([[2.0, 2.0]])}
    from tdm_dask.viewer.choices import Choices

    left = Choices(sites=sites, sigma=0.31, method="ridge", regularisation=0.2, radius=20.0, scan_region=(2, 40, 0, 30))
    out.mkdir()
    (out / "recipe.toml").write_text(left.with_(detectors={"ADF": (30.0, 60.0)}).toml(store), encoding="utf-8")
    with tdm.view(store, out=out) as view:
        assert view.choices == left.with_(detectors={"ADF": (30.0, 60.0)})
        with browser.visit(view.link) as seen:
            driver = Driver(view, seen)
            driver.until(lambda: seen.page.get_by_text("ridge mask of Li").count())
            assert seen.troubles() == []


@pytest.mark.long
def test_errors_are_sentences_and_the_page_lives_on(driver):
    page = driver.page
    driver.button("Confirm on the full data").click()
    driver.until(lambda: driver.message().startswith("There are no sites yet"))
    page.locator("input[type=file]").set_input_files(
        {"name": "<b>sites</b>.csv", "mimeType": "text/csv", "buffer": b"kind,y,x\nLi,one,2\n"}
    )
    driver.until(lambda: "<b>sites</b>.csv" in driver.message())
    page.locator("input[type=file]").set_input_files(
        {"name": "sites.csv", "mimeType": "text/csv", "buffer": b"kind,y,x\nLi,5.2,3\nLi,5.2,6\nO,2,2\n"}
    )
    driver.until(lambda: set(driver.view.choices.sites) == {"Li", "O"})
    driver.until(lambda: page.get_by_text("mask of Li").count())


@pytest.mark.long
def test_peaks_lattice_region_and_evidence(driver):
    page = driver.page
    driver.button("ADF").click()
    driver.until(lambda: page.get_by_text("ADF (").count())
    driver.button("Find columns").click()
    driver.until(lambda: "columns were found" in driver.message())
    found = sum(map(len, driver.view.choices.sites.values()))
    assert found > 8
    driver.button("Fit lattice, extend to the scan").click()
    driver.until(lambda: "The lattice repeats" in driver.message())
    # What ADF shows of LiFePO4, Fe and P, repeats after half of the cell's 10.33 angstrom.
    lengths = sorted(np.hypot(*driver.view.choices.cell.T))
    np.testing.assert_allclose(lengths, (5.166, 6.010), rtol=0.02)
    region = page.locator(".bk-Checkbox", has_text="Scan region (masks from it alone)").locator("input")
    region.check()
    driver.until(lambda: driver.view.choices.scan_region == (10, 31, 10, 31))
    corner = 10 * 0.3229 - 0.16, 10 * 0.322 - 0.16
    driver.drag("overview", corner, (1.5, 1.5))
    driver.until(lambda: driver.view.choices.scan_region[0] < 8 and driver.view.choices.scan_region[2] < 8)
    region.uncheck()
    driver.until(lambda: driver.view.choices.scan_region is None)
    driver.button("Is it evidence? (offsets and random sites)").click()
    driver.until(lambda: page.get_by_text(re.compile("supported|not distinguished")).count())
    driver.until(lambda: page.locator("svg").count())  # the map of offsets


@pytest.mark.long
def test_clicks_show_patterns_and_pixel_images(driver):
    page = driver.page
    before = driver.pixels("pattern"), driver.pixels("pixel")
    driver.click("overview", 5.2, 3.0)
    driver.until(lambda: page.get_by_text("Pattern at y 5.").count())
    driver.click("pattern", -20.0, 10.0)
    driver.until(lambda: page.get_by_text(re.compile(r"Pixel-STEM image at ky -[12]")).count())
    assert driver.pixels("pattern") != before[0]
    assert driver.pixels("pixel") != before[1]


@pytest.mark.long
def test_circles_are_dragged(driver):
    inner, outer = driver.view.choices.detectors["ABF"]
    angle = np.deg2rad(-35)
    start = inner * np.sin(angle), inner * np.cos(angle)
    driver.drag("pattern", start, (0.5 * start[0], 0.5 * start[1]))
    driver.until(lambda: driver.view.choices.detectors["ABF"][0] == pytest.approx(inner / 2, rel=0.1))
    assert driver.view.choices.detectors["ABF"][1] == outer


@pytest.mark.long
def test_two_tabs_and_the_end_leave_no_threads(store, tmp_path):
    before = {thread.name for thread in threading.enumerate()}
    with tdm.view(store, out=tmp_path / "out") as view, browser.chromium() as chromium:
        for _ in range(2):
            with browser.visit(view.link, browser=chromium) as seen:
                Driver(view, seen)
                assert seen.troubles() == []
    left = [t for t in threading.enumerate() if t.name.startswith("tdm-view-server") and t.name not in before]
    assert left == []
