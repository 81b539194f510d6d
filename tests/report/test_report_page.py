"""The page of a report in a browser: it opens from its file, asks for nothing, and fits phone, desk and paper."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from browser import chromium, executable, visit

from tdm_dask.recipe.run import run_recipe
from tdm_dask.report.writing import write_report

SIZES = {"phone": (390, 844), "desk": (1280, 900)}
CONTRAST = 4.5  # of text against what is behind it: WCAG 2.2, level AA

IMAGES = "() => [...document.images].map(i => [i.alt, i.complete && i.naturalWidth, i.clientWidth / i.clientHeight, "
IMAGES += "i.naturalWidth / i.naturalHeight])"
# What reaches beyond the window without standing in a box of its own that scrolls.
BEYOND = """() => [...document.body.querySelectorAll("*")]
  .filter(e => !e.parentElement.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.tagName + " " + e.className)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of the demo, with names as long as those of files may be."""
    executable()
    data = files("tdm_dask") / "data"
    text = (data / "demo.toml").read_text(encoding="utf-8").replace("lifepo4_001", f"{data}/lifepo4_001")
    folder = tmp_path_factory.mktemp("page")
    recipe = folder / "recipe.toml"
    recipe.write_text(text.replace("cell =", "draws = 20\ncell ="), encoding="utf-8")
    return Path(write_report(run_recipe(recipe, folder / "out")).page)


@pytest.fixture(scope="module")
def browser(page):
    """One browser for all pages, made after the report: see the module `browser` for what it keeps others from."""
    with chromium() as started:
        yield started


@pytest.fixture(params=SIZES)
def seen(page, browser, request):
    width, height = SIZES[request.param]
    with visit(page, browser=browser, width=width, height=height) as found:
        yield found


def test_the_page_opens_from_its_file_and_asks_for_nothing_else(seen, page):
    assert seen.troubles() == []
    assert seen.elsewhere() == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page.as_uri()]


@pytest.mark.long
def test_every_picture_is_there_in_its_own_proportions_and_is_described(seen):
    pictures = seen.page.evaluate(IMAGES)
    assert len(pictures) == 23
    for alt, width, shown, own in pictures:
        assert len(alt) > 20
        assert width > 100
        assert shown == pytest.approx(own, rel=0.02)


@pytest.mark.long
def test_nothing_is_wider_than_the_window_and_wide_things_scroll_in_their_box(seen):
    assert seen.overflow() == 0
    assert seen.page.evaluate(BEYOND) == []
    boxes = seen.page.locator(".scroll")
    assert boxes.count() == 5
    if seen.page.viewport_size["width"] == 390:
        widths = [boxes.nth(n).evaluate("e => [e.scrollWidth, e.clientWidth]") for n in range(5)]
        assert any(inner > outer for inner, outer in widths)
        boxes.first.focus()  # by keyboard, too
        assert boxes.first.evaluate("e => e === document.activeElement")


def test_tables_have_heads_and_captions_that_are_read_out(seen):
    assert seen.page.get_by_role("heading", level=1).count() == 1
    assert seen.page.get_by_role("columnheader", name="excess").count() == 1
    assert seen.page.get_by_role("rowheader", name="fingerprint of the counts").count() == 1
    assert seen.page.get_by_role("table", name=re.compile(r"Table 1\. R")).count() == 1
    assert seen.page.get_by_role("region").count() >= 5
    assert seen.page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, browser, scheme):
    with visit(page, browser=browser, colour_scheme=scheme) as seen:
        found = seen.contrasts()
        behind = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(found) > 100
    assert {what: ratio for what, ratio in found if ratio < CONTRAST} == {}
    red = int(re.findall(r"\d+", behind)[0])
    assert red < 50 if scheme == "dark" else red > 240


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_prints_dark_on_white_on_a_few_sheets(page, browser, scheme):
    with visit(page, browser=browser, colour_scheme=scheme) as seen:
        seen.page.emulate_media(media="print", color_scheme=scheme)
        colours = seen.page.evaluate(
            "[document.body, document.documentElement].map(e => getComputedStyle(e).backgroundColor)"
        )
        ink = seen.page.evaluate("getComputedStyle(document.body).color")
        whole = seen.page.evaluate(
            "[...document.querySelectorAll('figure, .numbers, .warning')].map(e => getComputedStyle(e).breakInside)"
        )
        hidden = seen.page.evaluate("getComputedStyle(document.querySelector('nav')).display")
        sheets = seen.page.pdf(format="A4", print_background=True, prefer_css_page_size=True)
    assert set(colours) == {"rgb(255, 255, 255)"}
    assert max(int(n) for n in re.findall(r"\d+", ink)) < 60
    assert set(whole) == {"avoid"}
    assert hidden == "none"
    assert 6 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", sheets)) <= 11
