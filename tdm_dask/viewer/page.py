"""The page: what is chosen on it, and the maps and tables that follow."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn
import xarray as xr

from ..axes import DETECTOR, SCAN, TEMPLATE, step_of
from ..words import path_texts
from .choices import Choices
from .engine import Engine, Latest, Look
from .evidence_panel import EvidencePanel
from .maps import DetectorMap, Region, ScanMap, Theme, activate, reload_in
from .run_panel import RunPanel
from .server import guarded
from .sites_panel import SitesPanel
from .tab import Tab, raise_it

METHODS = {"Pearson": "pearson", "mean-scaled": "mean-scaled", "ridge": "ridge"}
METHOD_NAMES = {method: name for name, method in METHODS.items()}
FULL = "Full data"
SIGMAS = (0.1, 1.5)  # angstrom
CARD = {
    "background": "var(--card)",
    "border": "1px solid var(--line)",
    "border-radius": "6px",
    "padding": "6px 8px 8px",
    "box-sizing": "border-box",
}
SHOWN = 1.8  # of the semi-angle, to where masks are shown at first
CHOSEN = ".bk-btn.bk-active { background: #0072b2 !important; color: #ffffff !important; box-shadow: none; }"
LAMBDAS = (-3.0, 2.0)  # their decimal logarithm


class Page(Tab):
    """One tab of the browser.

    Parameters
    ----------
    engine : Engine
    choices : Choices
        To begin with.
    source : path or address or None
        The store that recipes name; None where the counts are no store's as they are.
    out : Path
        Where what is saved goes.
    remember : callable, optional
        Called with the choices whenever they change.
    title : str
        Of the counts.
    theme : {"light", "dark"}
    """

    def __init__(
        self,
        engine: Engine,
        choices: Choices,
        *,
        source: str | Path | None,
        out: Path,
        remember: Callable[[Choices], None] = lambda choices: None,
        title: str = "counts",
        theme: str = "light",
    ) -> None:
        super().__init__(engine, choices)
        self.kept |= {*path_texts(source), *path_texts(out)}
        self.title, self._source = title, source
        self._remember, self._theme = remember, theme
        self._look: Look | None = None
        self._full: Look | None = None
        self._latest = Latest(engine.look, self._looked)
        self._overviews = Latest(lambda wanted: engine.conventional(*wanted[1:]), self._overview_made)
        self._make_maps()
        self._make_controls()
        self.evidence = EvidencePanel(self, lambda: self.sites.kind.value)
        self.run = RunPanel(self, source, out)
        if self._doc is not None:
            self._doc.on_session_destroyed(lambda context: self.close())
        self._show_all()

    # What is chosen

    def take(self, choices: Choices) -> None:
        if choices == self.choices:
            return
        before, self.choices = self.choices, choices
        self._remember(choices)
        self._show_controls(before)
        self.run.changed()
        self.evidence.changed()
        self.ask()

    def ask(self) -> None:
        """Have masks and images made for what is chosen now."""
        if self.choices.placed:
            if self.choices.method == "ridge" and self.choices.regularisation == "cross-validated":
                self.work("Choosing lambda", lambda: self.engine.chosen_lambda(self.choices), self._lambda_chosen)
            else:
                self._latest.ask(self.choices)
        else:
            self._look = None
            self.show_look()

    def _lambda_chosen(self, value: float) -> None:
        self.choose(regularisation=value)
        self.say(f"Cross-validation on blocks of the scan chose lambda = {value:.3g}.", "note")

    def _looked(self, choices: Choices, answer: Any) -> None:
        self.later(lambda: self._take_look(answer))

    def _take_look(self, answer: Any) -> None:
        if isinstance(answer, Exception):
            guarded(self.tell, raise_it)(answer)
            self._said_by_look = True  # until there is something to show again
            return
        self._look = answer
        if answer.notes:
            self.note(*answer.notes)
        elif self._said_by_look:
            self.say("")
        self._said_by_look = bool(answer.notes)
        self.show_look()

    def close(self) -> None:
        """Stop what works for this tab."""
        self._closed = True
        self.run.close()
        # In the thread of all tabs, which may not wait for one of them.
        for worker in (self._latest, self._overviews, self._slow):
            worker.close(wait=False)

    # Maps

    def _make_maps(self) -> None:
        engine, theme = self.engine, Theme.named(self._theme)
        like = xr.DataArray(np.zeros(engine.counts.shape[:2]), {d: engine.counts[d] for d in SCAN}, SCAN)
        self._nothing = like
        self.overview: ScanMap = ScanMap(like, theme, "overview")
        self.result = ScanMap(like, theme, "result", shared=self.overview)
        self.pixel = ScanMap(like, theme, "pixel", shared=self.overview)
        self.mask = DetectorMap(engine.pacbed, theme, "mask", engine.semi_angle, signed=True)
        self.pattern = DetectorMap(engine.pacbed, theme, "pattern", engine.semi_angle, signed=False)
        if engine.semi_angle is not None:
            self.mask.zoom(SHOWN * engine.semi_angle)
        self.sites = SitesPanel(self, self.overview, self._kind_changed, self._source)
        self._over_result = self.sites.marks.show_on(self.result)
        self._over_result.visible = False
        self.region = Region(self.overview, guarded(self.tell, self._region_moved))
        self._detector_circles = self.pattern.circles(
            "#56B4E9", guarded(self.tell, self._detector_dragged), "Drag the detector's edges"
        )
        self._region_circle = self.mask.circles(
            "#009E73", guarded(self.tell, self._radius_dragged), "Drag the edge of the detector region"
        )
        for scan in (self.overview, self.result, self.pixel):
            scan.on_tap(guarded(self.tell, self._scan_tapped))
        for detector in (self.mask, self.pattern):
            detector.on_tap(guarded(self.tell, self._detector_tapped))

    def _scan_tapped(self, y: float, x: float) -> None:
        if self.mode.value != "Look":
            return
        pattern = self.engine.pattern(y, x)
        place = f"y {float(pattern.y):.2f}, x {float(pattern.x):.2f} Å"
        self.pattern.show(pattern.assign_attrs(units="counts"), f"Pattern at {place}")

    def _detector_tapped(self, ky: float, kx: float) -> None:
        image = self.engine.pixel_image(ky, kx)
        place = ", ".join(f"{dim} {round(float(image[dim]), 1) + 0.0:g}" for dim in DETECTOR)
        self.pixel.show(image.assign_attrs(units="counts"), f"Pixel-STEM image at {place} mrad", self.contrast.value)

    def _detector_dragged(self, number: int, radius: float) -> None:
        inner, outer = self.choices.detectors[self.detector.value]
        step = abs(step_of(self.engine.counts, "kx"))
        radius = min(radius, self.engine.reach)
        pair = (min(radius, outer - step), outer) if number == 0 else (inner, max(radius, inner + step))
        self._set_angles(pair)

    def _set_angles(self, pair: tuple[float, float]) -> None:
        angles = (round(max(pair[0], 0.0), 2), round(pair[1], 2))
        self.choose(detectors={**self.choices.detectors, self.detector.value: angles})

    def _radius_dragged(self, number: int, radius: float) -> None:
        self.choose(radius=round(min(radius, self.radius.end), 2))

    def _region_moved(self, edges: tuple[float, float, float, float]) -> None:
        if self.choices.scan_region is not None:
            self.choose(scan_region=self.engine.region(edges, self.choices.scan_region))
            self.region.show(self._edges())

    def _edges(self) -> tuple[float, float, float, float] | None:
        return None if self.choices.scan_region is None else self.engine.edges(self.choices.scan_region)

    # Controls

    def _make_controls(self) -> None:
        engine, w = self.engine, pn.widgets
        names = list(self.choices.detectors) or list(engine.detectors())
        wide = {"sizing_mode": "stretch_width"}
        either = {"stylesheets": [CHOSEN], **wide}
        self.detector = w.RadioButtonGroup(options=names, value=names[0], label="Detector", **either)
        self.angles = w.RangeSlider(label="Angles (mrad)", start=0.0, end=round(engine.reach, 2), step=0.1, **wide)
        self.mode = w.RadioButtonGroup(options=["Look", "Edit sites"], value="Look", label="Mouse", **either)
        activate(self.sites.marks.tool, self.mode, "Edit sites")
        self.contrast = w.RangeSlider(
            label="Contrast (percentiles)", start=0, end=100, value=(0.5, 99.5), step=0.5, **wide
        )
        self.use_region = w.Checkbox(label="Scan region (masks from it alone)")
        self.method = w.RadioButtonGroup(options=list(METHODS), value="Pearson", label="Method", **either)
        self.sigma = w.FloatSlider(label="Sigma (Å)", start=SIGMAS[0], end=SIGMAS[1], step=0.01, **wide)
        low, high = LAMBDAS
        self.penalty = w.FloatSlider(label="Regularisation (log10)", start=low, end=high, step=0.05, **wide)
        self.cross_validate = w.Button(label="Choose by cross-validation", **wide)
        self.radius = w.FloatSlider(
            label="Detector region (mrad)",
            start=0.5,
            end=round(engine.reach, 2),
            step=0.1,
            value=min(engine.first_choices().radius or engine.reach, round(engine.reach, 2)),
            **wide,
        )
        self.whole = w.Checkbox(label="Whole detector")
        self.controls |= {"method": self.method, "sigma": self.sigma, "regularisation": self.penalty}
        self.controls |= {"detector_region": self.radius, "scan_region": self.use_region}
        self.with_sites = w.Checkbox(label="Sites", value=False)
        self.shown = w.RadioButtonGroup(options=["Proxy", FULL], value="Proxy", label="Shown", disabled=True, **either)
        self.mean_pattern = w.Button(label="Mean pattern", width=110)
        self.dark_page = w.Button(label="Light" if self._theme == "dark" else "Dark", width=70)
        self.dark_page.js_on_click(args={}, code=reload_in("light" if self._theme == "dark" else "dark"))
        self._wire()

    def _wire(self) -> None:
        on = self.on_value
        on(self.detector, lambda name: self._show_overview())
        on(self.angles, self._set_angles)
        on(self.contrast, self._set_contrast)
        on(self.sigma, lambda value: self.choose(sigma=round(value, 4)))
        on(self.method, lambda name: self.choose(method=METHODS[name]))
        on(self.penalty, lambda power: self.choose(regularisation=float(f"{10**power:.4g}")))
        on(self.radius, lambda value: self.choose(radius=round(value, 2)))
        on(self.whole, lambda whole: self.choose(radius=None if whole else self.radius.value))
        on(self.use_region, self._switch_region)
        on(self.with_sites, lambda seen: setattr(self._over_result, "visible", seen))
        on(self.shown, lambda shown: self.show_look())
        self.on_click(self.cross_validate, lambda: self.choose(regularisation="cross-validated"))
        self.on_click(self.mean_pattern, self._show_mean_pattern)

    def _set_contrast(self, percentiles: tuple[float, float]) -> None:
        for scan in (self.overview, self.result, self.pixel):
            scan.set_contrast(percentiles)

    def _switch_region(self, used: bool) -> None:
        ny, nx = self.engine.counts.shape[:2]
        quarter = (ny // 4, max(3 * ny // 4, ny // 4 + 1), nx // 4, max(3 * nx // 4, nx // 4 + 1))
        self.choose(scan_region=quarter if used else None)

    # What is shown

    def current_image(self) -> xr.DataArray:
        return self.engine.conventional(*self.choices.detectors[self.detector.value])

    def _kind_changed(self) -> None:
        self.evidence.changed()
        self.show_look()

    @property
    def current_detector(self) -> str:
        return self.detector.value

    def _show_all(self) -> None:
        self._show_controls(None)
        self._show_mean_pattern()
        self._detector_tapped(0.0, 0.0)
        self.ask()

    def _show_controls(self, before: Choices | None) -> None:
        """Set every control to what is chosen."""
        chosen = self.choices
        with self.setting():
            low, high = min(SIGMAS[0], chosen.sigma), max(SIGMAS[1], chosen.sigma)
            self.sigma.param.update(start=low, end=high, value=chosen.sigma)
            self.method.value = METHOD_NAMES[chosen.method]
            self.penalty.visible = self.cross_validate.visible = chosen.method == "ridge"
            if not isinstance(chosen.regularisation, str):
                power = float(np.log10(chosen.regularisation))
                self.penalty.param.update(start=min(LAMBDAS[0], power), end=max(LAMBDAS[1], power), value=power)
            self.whole.value = chosen.radius is None
            self.radius.disabled = chosen.radius is None
            if chosen.radius is not None:
                self.radius.value = float(min(chosen.radius, self.radius.end))
            self.use_region.value = chosen.scan_region is not None
            if list(self.detector.options) != list(chosen.detectors) and chosen.detectors:
                self.detector.param.update(options=list(chosen.detectors), value=next(iter(chosen.detectors)))
        self.region.show(self._edges())
        self._region_circle.show([] if chosen.radius is None else [chosen.radius])
        if before is None or not before.same_sites(chosen):
            self.sites.show(chosen.sites)
        if before is None or before.detectors != chosen.detectors:
            self._show_overview()

    def _show_overview(self) -> None:
        name = self.detector.value
        inner, outer = self.choices.detectors[name]
        with self.setting():
            self.angles.value = (inner, outer)
        self.sites.expect(dark=outer <= 1.05 * (self.engine.semi_angle or outer))
        self._detector_circles.show([inner, outer])
        self._overviews.ask((name, inner, outer))

    def _overview_made(self, request: tuple[str, float, float], answer: Any) -> None:
        name, inner, outer = request

        def show() -> None:
            if isinstance(answer, Exception):
                raise answer
            self.overview.show(answer, f"{name} ({inner:g}-{outer:g} mrad)", self.contrast.value)

        self.later(show)

    def _show_mean_pattern(self) -> None:
        self.pattern.show(self.engine.pacbed.assign_attrs(units="counts"), "Mean pattern (PACBED), log scale")

    def look(self) -> Look | None:
        return self._full if self.shown.value == FULL and self._full is not None else self._look

    def set_full(self, look: Look | None) -> None:
        self._full = look
        with self.setting():
            self.shown.param.update(disabled=look is None, value=FULL if look is not None else "Proxy")
        self.show_look()

    def show_look(self) -> None:
        """Show the mask and the image of the kind that is chosen, and the table of all."""
        look, kind = self.look(), self.sites.kind.value
        names = [] if look is None else [str(name) for name in look.image[TEMPLATE].values]
        self.evidence.show(look)
        if look is None or kind not in names:
            of = f" of {kind}" if kind else ""
            why = "there is none" if kind in self.choices.placed else "place sites first"
            self.mask.show(xr.full_like(self.engine.pacbed, 0.0), f"Mask{of}: {why}")
            shape, coords = self.engine.counts.shape[:2], {d: self.engine.counts[d] for d in SCAN}
            nothing = xr.DataArray(np.full(shape, np.nan), coords, SCAN)
            self.result.show(nothing, f"Image{of}: {why}", self.contrast.value)
            return
        where = "full data" if look is self._full else self.on_proxy
        mask = look.mask.sel({TEMPLATE: kind})
        self.mask.show(mask, f"{METHOD_NAMES[look.choices.method]} mask of {kind}, {where}")
        self.result.show(look.image.sel({TEMPLATE: kind}), f"Image of {kind}, {where}", self.contrast.value)

    # The page as a whole

    def panel(self) -> Any:
        """What Panel shows."""
        row, column = pn.Row, pn.Column
        wide = {"sizing_mode": "stretch_width"}

        def card(*parts: Any) -> Any:
            return column(*parts, styles=CARD, margin=(0, 0, 12, 0), **wide)

        left = column(
            card(
                self.overview.panel(), self.detector, self.angles, self.contrast, self.mode,
                self.sites.panel(),
            ),
            card(self.pixel.panel()),
            **wide,
        )  # fmt: skip
        middle = column(
            card(
                self.mask.panel(), self.method, self.sigma, self.penalty, self.cross_validate, self.radius,
                pn.FlexBox(self.whole, self.use_region, **wide),
            ),
            card(self.pattern.panel(), self.mean_pattern),
            **wide,
        )  # fmt: skip
        right = column(
            card(self.result.panel(), self.shown, self.with_sites),
            card(self.run.panel()),
            card(self.evidence.panel()),
            **wide,
        )  # fmt: skip
        theme = pn.theme.DarkTheme if self._theme == "dark" else pn.theme.DefaultTheme
        page = _Template(_skeleton(), design=pn.theme.Native, theme=theme)
        page.add_variable("title", self.title)
        page.add_variable("facts", self._facts())
        page.add_variable("theme", self._theme)
        page.add_variable("version", importlib.metadata.version("tdm-dask"))
        page.add_panel("message", self.message)
        page.add_panel("busy", row(self.busy, self.dark_page))
        page.add_panel("left", left)
        page.add_panel("middle", middle)
        page.add_panel("right", right)
        return page

    def _facts(self) -> str:
        counts, bin = self.engine.counts, self.engine.bin
        shape = " x ".join(map(str, counts.shape[:2]))
        detector = " x ".join(map(str, counts.shape[2:]))
        summed = "" if bin == 1 else f", each the sum of {bin} x {bin}"
        return f"{shape} probe positions, {detector} detector pixels{summed}"


class _Template(pn.Template):
    """A template whose models are counted once, not again for each of its parts: a second less for a page."""

    def _init_doc(self, doc: Any = None, *arguments: Any, **options: Any) -> Any:
        doc = doc if doc is not None else pn.state.curdoc
        with nullcontext() if doc is None else doc.models.freeze():
            return super()._init_doc(doc, *arguments, **options)


def _skeleton() -> str:
    return importlib.resources.files("tdm_dask").joinpath("data", "view.html").read_text(encoding="utf-8")
