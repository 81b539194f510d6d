"""The viewer in a browser where things are odd: regions dragged away, recipes of another scan, two tabs, many sites."""

from __future__ import annotations

import re
import threading
import time

import browser
import numpy as np
import pytest
from small_stores import converted, poisson
from viewer_scans import calibrated_finer as calibrated

import tdm_dask as tdm
from tdm_dask.viewer.choices import Choices
from tdm_dask.viewer.engine import Engine

pytest.importorskip("panel")

from driver import Driver

from tdm_dask.viewer import run_panel
from tdm_dask.viewer.page import Page

SITES = {"Li": np.array([[2.0, 2.0], [4.0, 6.0]]), "O": np.array([[6.0, 3.0]])}
LONG = 60  # seconds that nothing here takes, unless it hangs


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as started:
        yield started


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "scan.zarr"
    converted(path, calibrated(poisson((40, 40, 13, 13), mean=8)))
    return path


def opened(view, chromium):
    return browser.visit(view.link, browser=chromium, height=1200)


def upload(driver, name, text):
    file = {"name": name, "mimeType": "text/plain", "buffer": text.encode()}
    driver.page.locator("input[type=file]").set_input_files(file)


@pytest.mark.long
def test_a_region_beyond_the_scan_stays_as_large_and_a_loaded_recipe_has_what_the_page_needs(store, tmp_path, chromium):
    started = Choices(sites=SITES, scan_region=(10, 30, 10, 30))
    (tmp_path / "a.toml").write_text(started.toml(store), encoding="utf-8")
    with (
        tdm.view(store, out=tmp_path / "out", recipe=tmp_path / "a.toml") as view,
        opened(view, chromium) as seen,
    ):
        driver = Driver(view, seen)
        driver.drag("overview", (6.0, 6.0), (13.5, 13.5))
        driver.until(lambda: view.choices.scan_region == (20, 40, 20, 40))
        # What the mouse takes hold of is where the browser has put it in the meantime.
        driver.until(lambda: driver.region() == pytest.approx([5.85, 11.85, 5.85, 11.85]))
        driver.pixels("overview")
        driver.drag("overview", (9.0, 9.0), (6.0, 7.5))
        driver.until(lambda: view.choices.scan_region == (10, 30, 15, 35))
        before = view.choices
        other = Choices(sites=SITES, sigma=2.5, scan_region=(3, 90, 0, 20), rest={"calibration": {"scan_step": 0.5}})
        upload(driver, "other.toml", other.toml("elsewhere.zarr"))
        driver.until(lambda: view.choices.sigma == 2.5)
        assert view.choices.detectors == before.detectors
        assert view.choices.scan_region == (3, 40, 0, 20)
        assert "calibration" not in view.recipe
        driver.until(lambda: driver.message().startswith("The calibration of other.toml was left out"))
        driver.until(lambda: seen.page.get_by_text("2.50").count())  # the slider goes as far as sigma
        upload(driver, "third.toml", other.with_(scan_region=(50, 90, 0, 20)).toml("elsewhere.zarr"))
        driver.until(lambda: "of which the scan of 40 probe positions" in driver.message())
        assert view.choices.scan_region == (3, 40, 0, 20)
        seen.page.get_by_placeholder("name, such as Li").fill("ABF")
        driver.button("Add").click()
        driver.until(lambda: '"ABF" is the name of a detector' in driver.message())
        assert seen.troubles() == []


@pytest.mark.long
def test_a_second_tab_follows_and_cancels_what_the_first_has_begun(store, tmp_path, chromium, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    whole = run_panel.run_recipe

    def slow(recipe, out, *, overwrite, stage):
        with stage("waiting"):
            begun.set()
            while not go.wait(0.01):
                stage.__self__._graphs.check()
        return whole(recipe, out, overwrite=overwrite, stage=stage)

    monkeypatch.setattr(run_panel, "run_recipe", slow)
    (tmp_path / "a.toml").write_text(Choices(sites=SITES).toml(store), encoding="utf-8")
    with tdm.view(store, out=tmp_path / "out", recipe=tmp_path / "a.toml") as view:
        with opened(view, chromium) as seen:
            first = Driver(view, seen)
            first.button("Confirm on the full data").click()
            assert begun.wait(LONG)
        # That tab is closed while it works.
        with opened(view, chromium) as seen:
            second = Driver(view, seen)
            second.until(lambda: seen.page.get_by_text(re.compile("^waiting")).count())
            assert second.button("Confirm on the full data").is_disabled()
            second.button("Cancel").click()
            second.until(lambda: seen.page.get_by_text("Cancelled; finished and kept").count())
            go.set()
            second.until(lambda: second.button("Confirm on the full data").is_enabled())
            second.button("Confirm on the full data").click()
            second.until(lambda: seen.page.get_by_text("mask of Li, full data").count())
            assert seen.troubles() == []


@pytest.mark.long
@pytest.mark.parametrize("shape", [(1, 120, 9, 9), (48, 48, 9, 9)])
def test_lines_and_thousands_of_sites_of_many_kinds(shape, tmp_path, chromium):
    counts = calibrated(poisson(shape))
    places = np.random.default_rng(0).random((640, 2)) * [0.3 * (shape[0] - 1), 0.3 * (shape[1] - 1)]
    sites = {f"{'a long name ' * 8}{n}": places for n in range(8)}
    (tmp_path / "a.toml").write_text(Choices(sites=sites).toml("scan.zarr"), encoding="utf-8")
    with (
        tdm.view(counts, out=tmp_path / "out", recipe=tmp_path / "a.toml") as view,
        opened(view, chromium) as seen,
    ):
        driver = Driver(view, seen)
        driver.until(lambda: seen.page.get_by_text("mask of a long name").count())
        assert driver.box("result")["height"] > 40
        assert seen.overflow() <= 0
        assert seen.troubles() == []


@pytest.fixture
def page(tmp_path):
    """A page that no browser shows."""
    engine = Engine(calibrated(poisson((20, 20, 9, 9))))
    made = Page(engine, engine.first_choices(), source=None, out=tmp_path)
    yield made
    made.close()


def until(holds):
    """Wait for what other threads do."""
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


def test_an_error_of_what_is_chosen_goes_with_it(page):
    page.choose(sites={"Li": np.array([[2.0, 2.0]]), "gone": np.array([[90.0, 2.0]])})
    until(lambda: "lies inside the scan" in page.message.object)
    page.choose(sites={"Li": np.array([[2.0, 2.0]])})
    until(lambda: page.message.object == "")
    page.say("Something else.")
    page.choose(sigma=0.7)
    until(lambda: page.look() is not None and page.look().choices.sigma == 0.7)
    assert "Something else." in page.message.object


def test_all_slow_work_is_done_in_turn_and_said(page):
    go, done = threading.Event(), []
    for name in ("Finding columns", "Saving", "Saving"):
        page.work(name, lambda name=name: go.wait(LONG) and name, done.append)
    assert page.busy.object == "Finding columns, then Saving, then Saving ..."
    page.work("Failing", lambda: 1 / 0, done.append)
    go.set()
    until(lambda: page.busy.object == "")
    assert done == ["Finding columns", "Saving", "Saving"]
    assert "division by zero" in page.message.object
