"""A page in headless Chromium, for tests: what it says on its console, what fails, and every address that it asks for.

    with visit("file:///tmp/report.html", width=390, height=844) as seen:
        assert seen.troubles() == []
        assert seen.elsewhere() == []
        seen.page.screenshot(path="/tmp/seen.png", full_page=True)

Playwright's synchronous interface keeps an event loop running in the thread that it is used in, from the start of the
`with` to its end: meanwhile `asyncio.run`, a distributed client and a server belong into another thread or process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HERE = {"127.0.0.1", "localhost", "::1"}
# No name but this machine's is resolved: what a page asks for elsewhere fails, and is seen to.
ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"]

# Text against its background, for every element that has text of its own and can be used; luminance as in WCAG. Widgets
# lie in trees of their own (shadow roots) within the page's.
CONTRASTS = """() => {
  const channels = c => c.match(/[\\d.]+/g).map(Number);
  const luminance = c => channels(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = e => {
    for (; e; e = e.assignedSlot || e.parentElement || e.getRootNode().host) {
      const colour = getComputedStyle(e).backgroundColor, parts = channels(colour);
      if (parts.length < 4 || parts[3] > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const every = root => [...root.querySelectorAll("*")].flatMap(e => [e, ...(e.shadowRoot ? every(e.shadowRoot) : [])]);
  return every(document.body)
    .filter(e => !["SCRIPT", "STYLE"].includes(e.tagName) && !e.closest("[disabled]"))
    .filter(e => e.getClientRects().length || e.tagName === "OPTION")
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => {
      const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((x, y) => y - x);
      return [e.tagName + ": " + e.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)];
    });
}"""


@dataclass
class Seen:
    """An open page, and what happened in it so far."""

    page: Any
    console: list[str] = field(default_factory=list)  # errors and warnings
    errors: list[str] = field(default_factory=list)  # exceptions that nothing caught
    failed: list[str] = field(default_factory=list)  # requests without an answer, or with one of 400 and above
    requests: list[str] = field(default_factory=list)  # every address, web sockets' too

    def troubles(self) -> list[str]:
        """Everything that went wrong; empty where nothing did."""
        return [*self.console, *self.errors, *self.failed]

    def elsewhere(self) -> list[str]:
        """Addresses that are not of this machine."""
        return [url for url in self.requests if not _is_here(url)]

    def contrasts(self) -> list[tuple[str, float]]:
        """Each text of the page, and its contrast with what is behind it, from 1 to 21 (WCAG 2.2)."""
        return [(text, ratio) for text, ratio in self.page.evaluate(CONTRASTS)]

    def overflow(self) -> float:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"file", "data", "blob", "about"} or parts.hostname in HERE


def executable() -> str:
    """The browser of this machine; the test is skipped where there is none, or no Playwright to drive it."""
    pytest.importorskip("playwright.sync_api", reason="the package playwright is not here")
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip("no Chromium is here")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser: for several pages, where starting one for each (about a second) is too long."""
    path = executable()
    from playwright.sync_api import sync_playwright

    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        arguments = ARGUMENTS + ["--no-sandbox"] * root
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(
    address: str | Path | None,
    *,
    browser: Any = None,
    width: int = 1280,
    height: int = 900,
    colour_scheme: str = "light",
    scale: float = 1.0,
    wait_until: str = "load",
) -> Iterator[Seen]:
    """A page of its own at an address, or at that of a file; None leaves it blank for the test to go on with."""
    if browser is None:
        with chromium() as started, _visit(started, address, width, height, colour_scheme, scale, wait_until) as seen:
            yield seen
    else:
        with _visit(browser, address, width, height, colour_scheme, scale, wait_until) as seen:
            yield seen


@contextmanager
def _visit(
    browser: Any, address: str | Path | None, width: int, height: int, colours: str, scale: float, wait_until: str
) -> Iterator[Seen]:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=colours, device_scale_factor=scale
    )
    try:
        seen = Seen(context.new_page())
        _listen(seen)
        if address is not None:
            url = address.resolve().as_uri() if isinstance(address, Path) else address
            seen.page.goto(url, wait_until=wait_until)
        yield seen
    finally:
        context.close()


def _listen(seen: Seen) -> None:
    page = seen.page

    def said(message: Any) -> None:
        if message.type in {"error", "warning"}:
            seen.console.append(f"{message.type}: {message.text}")

    def answered(response: Any) -> None:
        if response.status >= 400:
            seen.failed.append(f"{response.status}: {response.url}")

    page.on("console", said)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("requestfailed", lambda request: seen.failed.append(f"{request.failure}: {request.url}"))
    page.on("response", answered)
    page.on("websocket", lambda socket: seen.requests.append(socket.url))
