"""Kinds of column and their sites: placed by hand, found in an image, extended over the scan, or loaded."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn

from ..columns.sites import Array, read_sites
from ..errors import InputError, SiteError
from ..words import path_texts
from .choices import Choices, read_toml
from .maps import MARKERS, ScanMap, Sites
from .server import guarded
from .tab import Tab

UPLOADS = ".csv,.json,.cif,.toml"
NEW = "columns"  # the kind of sites that are placed before one is named


class SitesPanel:
    """The kinds of column of a page, and the tools to place their sites.

    Parameters
    ----------
    page : Tab
    overview : ScanMap
        On which sites are placed.
    kind_changed : callable
        Called when another kind is chosen.
    source : path or address or None
        The store that recipes name.
    """

    def __init__(
        self, page: Tab, overview: ScanMap, kind_changed: Callable[[], None], source: str | Path | None
    ) -> None:
        self._page, self._kind_changed, self._source = page, kind_changed, source
        self.marks = Sites(overview, guarded(page.tell, lambda sites: page.choose(sites=sites)))
        w, wide = pn.widgets, {"sizing_mode": "stretch_width"}
        self.kind = w.Select(label="Kind of column", options=[], **wide)
        self.legend = pn.pane.HTML("", margin=(0, 10), **wide)
        self.new_kind = w.TextInput(placeholder="name, such as Li", label="Name", **wide)
        self.add_kind = w.Button(label="Add", width=60)
        self.rename_kind = w.Button(label="Rename", width=72)
        self.remove_kind = w.Button(label="Remove", width=72)
        self.separation = w.FloatInput(label="Separation (Å)", value=1.5, start=0.1, step=0.1, width=110)
        self.dark = w.Select(label="Columns are", options=["dark", "bright"], width=90)
        self.find = w.Button(label="Find columns")
        self.extend = w.Button(label="Fit lattice, extend to the scan")
        self.file = w.FileInput(accept=UPLOADS, label="Sites (CSV, JSON), crystal (CIF) or recipe (TOML)", **wide)
        self.zone = w.TextInput(label="Zone axis of a CIF", value="0 0 1", width=110)
        page.controls |= {"separation": self.separation, "contrast": self.dark, "zone_axis": self.zone}
        page.on_value(self.kind, self._show_kind)
        page.on_value(self.file, self._load)
        page.on_click(self.add_kind, self._add_kind)
        page.on_click(self.rename_kind, self._rename_kind)
        page.on_click(self.remove_kind, self._remove_kind)
        page.on_click(self.find, self._find)
        page.on_click(self.extend, self._extend)

    def panel(self) -> Any:
        """What Panel shows."""
        wide = {"sizing_mode": "stretch_width"}
        return pn.Column(
            pn.Row(self.kind, self.new_kind, **wide), self.legend,
            pn.Row(self.add_kind, self.rename_kind, self.remove_kind),
            pn.FlexBox(self.separation, self.dark, self.zone, **wide), pn.FlexBox(self.find, self.extend, **wide),
            self.file, **wide,
        )  # fmt: skip

    def show(self, sites: Mapping[str, Array]) -> None:
        """Other kinds and sites."""
        kinds = list(sites)
        with self._page.setting():
            if list(self.kind.options) != kinds:
                kept = self.kind.value if self.kind.value in kinds else (kinds[0] if kinds else None)
                self.kind.param.update(options=kinds, value=kept)
        self.marks.show(sites, self.kind.value or NEW)
        dot = '<span style="color: {}; font-size: 16px">{}</span> {} ({})'
        parts = [
            dot.format(self.marks.colour(kind), MARKERS[self.marks.marker(kind)], html.escape(kind), len(places))
            for kind, places in sites.items()
        ]
        self.legend.object = "&ensp;".join(parts)

    def expect(self, dark: bool) -> None:
        """Whether columns are darker or brighter than what is around them in the image that is shown."""
        with self._page.setting():
            self.dark.value = "dark" if dark else "bright"

    def _show_kind(self, kind: str | None) -> None:
        self.marks.show(self._page.choices.sites, kind or NEW)
        self._kind_changed()

    def _named(self) -> str:
        name = self.new_kind.value.strip()
        if not name:
            raise InputError("Type the name of a kind of column first, such as Li.")
        if name in self._page.choices.detectors:
            raise InputError(f'"{name}" is the name of a detector; choose another one for a kind of column.')
        return name

    def _add_kind(self) -> None:
        name = self._named()
        if name not in self._page.choices.sites:
            self._page.choose(sites={**self._page.choices.sites, name: np.empty((0, 2))})
        self.kind.value, self.new_kind.value = name, ""

    def _rename_kind(self) -> None:
        name, old = self._named(), self.kind.value
        if old is None:
            raise SiteError("There is no kind to rename yet; add one.")
        sites: dict[str, Any] = {}
        for kind, places in self._page.choices.sites.items():
            kind = name if kind == old else kind
            sites[kind] = np.concatenate([sites[kind], places]) if kind in sites else places
        self._page.choose(sites=sites)
        self.kind.value, self.new_kind.value = name, ""

    def _remove_kind(self) -> None:
        self._page.choose(
            sites={kind: places for kind, places in self._page.choices.sites.items() if kind != self.kind.value}
        )

    def _find(self) -> None:
        kind, chosen, image = self.kind.value or NEW, self._page.choices, self._page.current_image()
        separation, contrast = self.separation.value, self.dark.value

        def add(found: np.ndarray) -> None:
            before = self._page.choices.sites.get(kind, np.empty((0, 2)))
            self._page.choose(sites={**self._page.choices.sites, kind: np.concatenate([before, found])})
            self._page.say(f"{len(found)} columns were found, and added to {kind}.", "note")

        self._page.work("Finding columns", lambda: self._page.engine.peaks(image, chosen, separation, contrast), add)

    def _extend(self) -> None:
        chosen, image = self._page.choices, self._page.current_image()
        separation, contrast = self.separation.value, self.dark.value

        def taken(found: Choices) -> None:
            self._page.choose(sites=found.sites, cell=found.cell)
            assert found.cell is not None
            cell = ", ".join(f"({y:.2f}, {x:.2f})" for y, x in found.cell)
            self._page.say(f"The lattice repeats by (y, x) = {cell} Å; its sites fill the scan.", "note")

        self._page.work(
            "Fitting the lattice", lambda: self._page.engine.extended(image, chosen, separation, contrast), taken
        )

    def _load(self, content: bytes | None) -> None:
        if not content:
            return
        name = str(self.file.filename)
        self._page.kept |= {*path_texts(name)}
        suffix = Path(name).suffix.lower()
        if suffix == ".toml":
            found = self._page.engine.fitted(read_toml(content, name, self._source or "counts"))
            opened = found.calibrated_as(self._page.choices)
            self._page.take(opened)
            if opened != found:
                self._page.say(
                    f"The calibration of {name} was left out: the counts are shown as they were calibrated when the "
                    "page was opened. Open it with that recipe for the other one.", "note",
                )  # fmt: skip
            return
        if suffix not in UPLOADS.split(","):
            raise InputError(f"{name} is no file of sites; expected one of {UPLOADS}.")
        if suffix == ".cif":
            self._load_crystal(content)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"sites{suffix}"
            path.write_bytes(content)
            try:
                sites = read_sites(path)
            except SiteError as error:
                raise SiteError(str(error).replace(str(path), name)) from None
        self._page.choose(sites=sites, cell=None)
        self._page.say(f"{sum(map(len, sites.values()))} sites of {', '.join(sites)} were loaded.", "note")

    def _load_crystal(self, content: bytes) -> None:
        words = self.zone.value.replace(",", " ").split()
        if len(words) != 3 or not all(word.lstrip("-").isdigit() for word in words):
            raise InputError(f'The zone axis is "{self.zone.value}"; expected three whole numbers such as 0 0 1.')
        zone, chosen, image = tuple(int(word) for word in words), self._page.choices, self._page.current_image()
        contrast = self.dark.value

        def register() -> tuple[Choices, str]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "crystal.cif"
                path.write_bytes(content)
                return self._page.engine.from_cif(path, zone, image, contrast, chosen)  # type: ignore[arg-type]

        def taken(found: tuple[Choices, str]) -> None:
            self._page.choose(sites=found[0].sites, cell=found[0].cell)
            self._page.note(found[1])

        self._page.work("Laying the crystal over the image", register, taken)
