"""What the page says about cross-talk, other places in the cell, and whether the data single out the sites."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import panel as pn
import xarray as xr

from ..axes import TEMPLATE
from ..evaluation.verdict import Evidence
from ..plot.evidence import plot_offsets
from .choices import DRAWS, Choices
from .engine import Look
from .tab import Tab

TABLE = """
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); font-size: 12px; padding-bottom: 4px; }
th, td { text-align: right; padding: 2px 4px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { max-width: 9em; overflow: hidden; text-overflow: ellipsis; }
th[scope=row] { text-align: left; }
small { color: var(--quiet); }
"""


class EvidencePanel:
    """Cross-talk of the images that are shown, and on request the offsets and the verdict.

    Parameters
    ----------
    page : Tab
    kind : callable
        Gives the kind of column that is chosen.
    """

    def __init__(self, page: Tab, kind: Callable[[], str | None]) -> None:
        self._page, self._kind = page, kind
        self._found: tuple[Choices, Evidence] | None = None
        self.table = pn.pane.HTML("", sizing_mode="stretch_width", stylesheets=[TABLE])
        self.verdict = pn.pane.HTML("", sizing_mode="stretch_width")
        self.offsets = pn.Column(sizing_mode="stretch_width")
        self.ask = pn.widgets.Button(label="Is it evidence? (offsets and random sites)", sizing_mode="stretch_width")
        page.on_click(self.ask, self._ask)

    def panel(self) -> Any:
        """What Panel shows."""
        title = pn.pane.HTML("<h2>Evidence</h2>", margin=0)
        return pn.Column(title, self.table, self.ask, self.verdict, self.offsets, sizing_mode="stretch_width")

    def _ask(self) -> None:
        chosen, page = self._page.choices, self._page
        draws = int(chosen.rest.get("evidence", {}).get("draws", DRAWS))

        def taken(found: Evidence) -> None:
            self._found = chosen, found
            self.changed()

        page.work("Asking other places and random sites", lambda: page.engine.evidence(chosen, draws), taken)

    def changed(self) -> None:
        """Show what was found for what is chosen now, and nothing for what was chosen before."""
        kind = self._kind()
        same = self._found is not None and _asked(self._found[0]) == _asked(self._page.choices)
        if self._found is None or not same or kind not in self._found[1].sentences:
            self.verdict.object = ""
            self.offsets.clear()
            return
        evidence = self._found[1]
        lines = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in evidence.sentences.values())
        self.verdict.object = lines
        self.offsets.clear()
        found: xr.Dataset = evidence.dataset
        if "response" in found and found["response"].sel({TEMPLATE: kind}).notnull().all():
            figure = plot_offsets(found, kind).figure
            self.offsets.append(pn.pane.Matplotlib(figure, format="svg", sizing_mode="stretch_width", tight=False))

    def show(self, look: Look | None) -> None:
        """The table of cross-talk of what is shown."""
        self.table.object = "" if look is None else cross_talk_table(look.table)


def _asked(choices: Choices) -> Choices:
    """What decides the evidence: kinds without sites and conventional detectors play no part."""
    return choices.with_(sites=choices.placed, detectors={})


def cross_talk_table(table: xr.Dataset) -> str:
    """R beside G of every image with every template, and the excess, as HTML.

    Examples
    --------
    >>> names = ["Li", "O"]
    >>> one = xr.DataArray(np.eye(2), {"image": names, "template": names}, ("image", "template"))
    >>> table = xr.Dataset({"R": one, "G": one, "excess": ("image", [0.0, 0.0])})
    >>> "<td>1.00 <small>1.00</small></td>" in cross_talk_table(table)
    True
    """
    names = [html.escape(str(name)) for name in table["template"].values]
    head = "".join(f"<th scope='col' title='{name}'>{name}</th>" for name in names)
    rows = []
    for number, name in enumerate(html.escape(str(name)) for name in table["image"].values):
        r, g = (table[part].values[number] for part in ("R", "G"))
        cells = "".join(f"<td>{_number(a)} <small>{_number(b)}</small></td>" for a, b in zip(r, g, strict=True))
        excess = _number(float(table["excess"].values[number]))
        rows.append(f"<tr><th scope='row' title='{name}'>{name}</th>{cells}<td>{excess}</td></tr>")
    caption = "Correlation of images (rows) with templates (columns), small: of the templates themselves"
    return (
        f"<div class='scroll'><table class='numbers'><caption>{caption}</caption><thead><tr><td></td>{head}"
        f"<th scope='col'>excess</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else ""
