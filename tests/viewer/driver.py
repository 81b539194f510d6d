"""A page of the viewer in headless Chromium, used as with the mouse, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import browser

PATIENCE = 120.0  # seconds, on a machine that does much else
REST = 10  # looks at a page, 50 ms and more apart, between which nothing moves


class Driver:
    """A page of the viewer, and what is chosen on it."""

    def __init__(self, view: Any, seen: browser.Seen) -> None:
        self.view, self.seen, self.page = view, seen, seen.page
        self.page.wait_for_selector("text=Find columns", timeout=1000 * PATIENCE)
        self.until(lambda: self.box("overview")["width"] > 50)

    def until(self, true: Callable[[], Any]) -> Any:
        """Wait for something to be true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = true()
            if found:
                return found
            self.page.wait_for_timeout(50)
        chosen = f"its regions are {self.view.choices.scan_region} and {self.region()}"
        raise AssertionError(f"it did not happen within {PATIENCE} s; the page says {self.message()!r}, {chosen}")

    def message(self) -> str:
        alerts = self.page.locator("[role=alert]")
        return alerts.first.inner_text() if alerts.count() else ""

    def model(self, name: str, what: str) -> Any:
        """Something of the figure of that name, as the browser has it."""
        code = f"""(name) => {{
            const found = [...Bokeh.documents[0]._all_models.values()].find(m => m.name === name);
            return found ? ({what})(found) : null }}"""
        return self.page.evaluate(code, name)

    def box(self, name: str) -> dict[str, float]:
        """Where the frame of a figure is in the window."""
        code = """(name) => {
            const find = (views) => {
                for (const view of views) {
                    if (view.model && view.model.name === name) return view;
                    const inner = find(view.child_views || view._child_views?.values() || []);
                    if (inner) return inner } };
            const view = find(Object.values(Bokeh.index).concat([...(Bokeh.index.roots || [])]));
            if (!view) return {x: 0, y: 0, width: 0, height: 0};
            view.el.scrollIntoView({block: "center"});
            const r = view.el.getBoundingClientRect();
            return {x: r.x, y: r.y, width: r.width, height: r.height} }"""
        return self.page.evaluate(code, name)

    def frame(self, name: str) -> tuple[dict[str, float], list[float]]:
        """Where the frame of a figure is in the window and which part of the scan or detector it shows, at rest.

        At rest is what nothing has moved for a while, on a page that has nothing left to draw.
        """
        seen: list[Any] = []

        def rests() -> bool:
            idle = self.page.evaluate("() => Bokeh.documents.every(d => d.is_idle)")
            ranges = self.model(name, "m => [m.x_range.start, m.x_range.end, m.y_range.end, m.y_range.start]")
            seen.append((self.box(name), ranges) if idle else None)
            return len(seen) > REST and seen[-1] is not None and all(one == seen[-1] for one in seen[-REST:])

        self.until(rests)
        return seen[-1]

    def places(self, name: str, *places: tuple[float, float]) -> list[tuple[float, float]]:
        """Where places (y, x) of the scan, or of the detector, are in the window."""
        box, (left, right, top, bottom) = self.frame(name)
        return [
            (
                box["x"] + (x - left) / (right - left) * box["width"],
                box["y"] + (y - top) / (bottom - top) * box["height"],
            )
            for y, x in places
        ]

    def click(self, name: str, y: float, x: float) -> None:
        self.page.wait_for_timeout(400)  # or it is the second half of a double click
        self.page.mouse.click(*self.places(name, (y, x))[0])

    def drag(self, name: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        first, last = self.places(name, start, end)
        self.page.mouse.move(*first)
        self.page.mouse.down()
        self.page.mouse.move((first[0] + last[0]) / 2, (first[1] + last[1]) / 2, steps=4)
        self.page.mouse.move(*last, steps=4)
        self.page.mouse.up()

    def region(self) -> list[float] | None:
        """First and last y, first and last x of the rectangle on the scan, as the browser has it."""
        code = """() => {
            const b = [...Bokeh.documents[0]._all_models.values()].find(m => m.type === "BoxAnnotation");
            return b && b.visible ? [b.top, b.bottom, b.left, b.right] : null }"""
        found = self.page.evaluate(code)
        return None if found is None else [*sorted(found[:2]), *sorted(found[2:])]

    def button(self, text: str) -> Any:
        return self.page.get_by_role("button", name=text, exact=True)

    def pixels(self, name: str) -> bytes:
        """What a figure looks like."""
        self.page.wait_for_timeout(150)
        box = self.box(name)
        return self.page.screenshot(clip=box)
