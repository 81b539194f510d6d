"""What the parts of a page share: what is chosen, what works beside the page, and what is said."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import panel as pn
import xarray as xr

from ..words import Argument, error_in_place, in_place, in_python
from .choices import Choices
from .engine import Engine, Latest, Look
from .server import guarded, tell_errors

MESSAGES = """
[role=alert] { margin: 8px 0 0; padding: 8px 12px; border-radius: 6px; }
.error { background: var(--bad); color: var(--bad-ink); }
.note { background: var(--note); color: var(--note-ink); }
"""


class Tab(ABC):
    """One tab of the browser, as its panels know it.

    Parameters
    ----------
    engine : Engine
    choices : Choices
        To begin with.
    """

    def __init__(self, engine: Engine, choices: Choices) -> None:
        self.engine, self.choices = engine, choices
        self._doc = pn.state.curdoc
        self.quiet = self._said_by_look = self._closed = False
        self.message = pn.pane.HTML("", stylesheets=[MESSAGES], sizing_mode="stretch_width", margin=(0, 0))
        self.busy = pn.pane.Str("")
        self._slow = Latest(lambda work: work[1](), self._worked, skip=False)
        self._working: list[str] = []
        # By the argument that they set; panels add theirs.
        self.controls: dict[str, Any] = {}
        # Texts that stay as they are in whatever is said: paths that the user named.
        self.kept: set[str] = set()
        tell_errors(self.tell)

    @abstractmethod
    def take(self, choices: Choices) -> None:
        """Choose this, and let everything follow."""

    @abstractmethod
    def look(self) -> Look | None:
        """What is shown: of the proxy, or of the full data where these are asked for and there."""

    @abstractmethod
    def set_full(self, look: Look | None) -> None:
        """What the full data gave for what is chosen now; None where they gave nothing for it."""

    @abstractmethod
    def current_image(self) -> xr.DataArray:
        """The conventional image that is shown."""

    @property
    @abstractmethod
    def current_detector(self) -> str:
        """The name of the detector that made it."""

    def choose(self, **changes: Any) -> None:
        """Change what is chosen, and let everything follow."""
        self.take(self.choices.with_(**changes))

    @property
    def on_proxy(self) -> str:
        """What the numbers on the page are from."""
        size = self.engine.bin
        return "full detector in memory" if size == 1 else f"proxy, {size} x {size} pixels summed"

    def work(self, what: str, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do something slow beside the page, in turn, and then something with its result on the page."""
        self._working.append(what)
        self._show_busy()
        self._slow.ask((what, function, then))

    def _worked(self, request: Any, answer: Any) -> None:
        def finish() -> None:
            self._working.remove(request[0])
            self._show_busy()
            guarded(self.tell, raise_it if isinstance(answer, Exception) else request[2])(answer)

        self.later(finish)

    def _show_busy(self) -> None:
        self.busy.object = f"{', then '.join(self._working)} ..." if self._working else ""

    def later(self, function: Callable[[], None]) -> None:
        """Call a function in the page's own thread."""
        if self._closed:
            return
        safe = guarded(self.tell, function)
        if self._doc is None:
            safe()
        else:
            self._doc.add_next_tick_callback(safe)

    def on_click(self, button: Any, function: Callable[[], Any]) -> None:
        """Do something where a button is clicked, in the page's own thread, in which maps may be changed."""
        button.on_click(lambda event: self.later(function))

    def on_value(self, widget: Any, function: Callable[[Any], Any]) -> None:
        """Do something with the value of a control that the user has changed, in the page's own thread."""

        def follow(event: Any) -> None:
            if not self.quiet:
                self.later(lambda: function(event.new))

        widget.param.watch(follow, "value")

    @contextmanager
    def setting(self) -> Iterator[None]:
        """Controls that are set in the block are set by the page, not by the user."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def say(self, sentence: str, kind: str = "error") -> None:
        """Say something at the top of the page; nothing takes it away."""
        self._said_by_look = False
        said = html.escape(sentence)
        self.message.object = f'<div role="alert" class="{kind}">{said}</div>' if sentence else ""

    def tell(self, error: Exception) -> None:
        """Say what an error has to say, in the words of the page."""
        self.say(error_in_place(error, self._by_label, self.kept))

    def note(self, *sentences: str) -> None:
        """Say what calculations note, in the words of the page."""
        self.say(" ".join(in_place(sentence, self._by_label, self.kept) for sentence in sentences), "note")

    def _by_label(self, argument: Argument) -> str | None:
        """An argument in a sentence by the label of its control; what has none here is said to be Python's."""
        if argument.name not in self.controls:
            return in_python(argument)
        label = self.controls[argument.name].label.split(" (")[0]  # without its unit
        return f'"{label}"' if argument.value is ... else f'"{label}" {argument.value}'


def raise_it(error: Exception) -> None:
    """An error that was an answer, as an error again."""
    raise error
