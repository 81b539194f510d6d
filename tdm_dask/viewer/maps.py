"""What the page draws: maps of the scan and of the detector, as Bokeh figures whose contents are exchanged in place."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import panel as pn
import xarray as xr
from bokeh.events import Tap
from bokeh.models import (
    BoxAnnotation,
    ColumnDataSource,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    PointDrawTool,
    Range1d,
    WheelZoomTool,
)
from bokeh.plotting import figure

from ..axes import DETECTOR, SCAN
from ..columns.sites import Array
from ..plot.drawing import extent_of, length_text, ring_radii, round_length
from ..plot.style import COLOURS, DIVERGING, GREY, SEQUENTIAL

# Beyond this many pixels along an axis neighbours are averaged: a screen shows no more.
MOST_PIXELS = 1024
KINDS = len(COLOURS)
MARKERS = {"circle": "\N{BLACK CIRCLE}", "square": "\N{BLACK SQUARE}", "triangle": "\N{BLACK UP-POINTING TRIANGLE}"}
# A map of a scan that is longer or wider is stretched to these ratios of width to height, for a line would not be seen.
RATIOS = (0.4, 6.0)
SETTLED_MILLISECONDS = 50


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    text: str
    lines: str
    ground: str

    @classmethod
    def named(cls, name: str) -> Theme:
        """Of a light or a dark page."""
        return cls("#e6e6e6", "#5c6068", "#1b1d21") if name == "dark" else cls("#1a1a1a", "#9aa0a6", "#ffffff")


def palette(name: str) -> list[str]:
    """256 colours of a colour map of matplotlib."""
    import matplotlib as mpl

    return [mpl.colors.to_hex(colour) for colour in mpl.colormaps[name](np.linspace(0, 1, 256))]


def reduced(values: npt.NDArray[Any], most: int = MOST_PIXELS) -> npt.NDArray[Any]:
    """An image with at most so many pixels along each axis: means of neighbours.

    Examples
    --------
    >>> reduced(np.arange(12.0).reshape(2, 6), most=3).tolist()
    [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    """
    fy, fx = (-(-size // most) for size in values.shape)
    ny, nx = values.shape[0] // fy, values.shape[1] // fx
    return np.asarray(values[: ny * fy, : nx * fx].reshape(ny, fy, nx, fx).mean((1, 3)))


def _frame(array: xr.DataArray, dims: tuple[str, str]) -> dict[str, list[float]]:
    """Where a reduced image is drawn: what is averaged over is whole, and what is left over at the far ends is not."""
    left, right, bottom, top = extent_of(array, dims)
    ny, nx = (size - size % -(-size // MOST_PIXELS) for size in (array.sizes[dim] for dim in dims))
    height, width = (bottom - top) * ny / array.sizes[dims[0]], (right - left) * nx / array.sizes[dims[1]]
    return {"x": [left], "y": [top], "dw": [width], "dh": [height]}


class Map:
    """One image with its axes; the base of both kinds.

    Parameters
    ----------
    like : DataArray
        Of two dims, whose coordinates give the axes.
    dims : (str, str)
        Down and to the right.
    units : str
        Of the axes, for the hover.
    theme : Theme
    mapper : LinearColorMapper or LogColorMapper
    name : str
        By which tests and screen readers find it.
    """

    def __init__(
        self, like: xr.DataArray, dims: tuple[str, str], units: str, theme: Theme, mapper: Any, name: str
    ) -> None:
        self.dims, self.theme, self.mapper = dims, theme, mapper
        left, right, bottom, top = extent_of(like, dims)
        self.edges = left, right, bottom, top
        self.figure = figure(
            x_range=Range1d(left, right, bounds=None),
            y_range=Range1d(bottom, top, bounds=None),
            sizing_mode="scale_width",
            aspect_ratio=float(np.clip(abs(right - left) / abs(bottom - top), *RATIOS)),
            min_border=0,
            tools="pan,reset",
            toolbar_location="above",
            toolbar_inner=True,
            background_fill_color=theme.ground,
            border_fill_color=None,
            outline_line_color=None,
            name=name,
        )
        self.figure.toolbar.update(logo=None, autohide=True)
        # Outside the figure, whose frame would not have the ratio of its axes otherwise.
        self.title = pn.pane.HTML("", sizing_mode="stretch_width", margin=(2, 4), styles={"overflow-wrap": "anywhere"})
        self.figure.axis.visible = False
        self.figure.grid.visible = False
        wheel = WheelZoomTool()
        self.figure.add_tools(wheel)
        self.figure.toolbar.active_scroll = wheel
        self.source = ColumnDataSource({"image": [np.zeros((1, 1), np.float32)], **_frame(like, dims)})
        # Rows follow each other downwards, as does the axis.
        picture = self.figure.image("image", source=self.source, x="x", y="y", dw="dw", dh="dh", color_mapper=mapper)
        down, along = dims
        self.hover = HoverTool(renderers=[picture], attachment="horizontal")
        self.hover.tooltips = [(f"{down}, {along}", f"$y{{0.00}}, $x{{0.00}} {units}"), ("value", "@image{0.[0000]}")]
        self.figure.add_tools(self.hover)

    def say(self, title: str, units: str) -> None:
        """Title of the map, and the unit of its values."""
        self.title.object = f"<strong>{html.escape(title)}</strong>"
        unit = "" if units == "1" else f" {units}"
        self.hover.tooltips = [self.hover.tooltips[0], ("value", f"@image{{0.[0000]}}{unit}")]

    def panel(self) -> Any:
        """The map with its title."""
        ratio = self.figure.aspect_ratio
        picture = pn.pane.Bokeh(self.figure, sizing_mode="scale_width", aspect_ratio=ratio, margin=0)
        return pn.Column(self.title, picture, sizing_mode="stretch_width", margin=0)

    def values(self, array: xr.DataArray) -> npt.NDArray[np.float32]:
        """Values of an array in the order of the map, and shows them."""
        values = np.asarray(array.transpose(*self.dims).values, np.float32)
        self.source.data = {"image": [reduced(values)], **_frame(array, self.dims)}
        return values

    def on_tap(self, function: Callable[[float, float], None]) -> None:
        """Call with the place (down, along) of each click inside the map."""
        left, right, bottom, top = self.edges

        def tapped(event: Any) -> None:
            if event.x is not None and left <= event.x <= right and top <= event.y <= bottom:
                function(float(event.y), float(event.x))

        self.figure.on_event(Tap, tapped)


class ScanMap(Map):
    """An image of the scan in grey, with a scale bar."""

    def __init__(self, like: xr.DataArray, theme: Theme, name: str, shared: ScanMap | None = None) -> None:
        mapper = LinearColorMapper(palette=palette(GREY), low=0, high=1, nan_color="rgba(0,0,0,0)")
        super().__init__(like, SCAN, "Å", theme, mapper, name)
        self._shown = np.zeros(1, np.float32)
        if shared is not None:
            self.figure.x_range, self.figure.y_range = shared.figure.x_range, shared.figure.y_range
        left, right, bottom, top = self.edges
        length = round_length(abs(right - left) / 4)
        y, x = bottom - 0.05 * (bottom - top), left + 0.05 * (right - left)
        for colour, width in (("black", 6), ("white", 3)):
            self.figure.segment(x, y, x + length, y, line_color=colour, line_width=width)
        self.figure.text(
            x, y - 0.02 * (bottom - top), [length_text(length, "angstrom", "px")], text_color="white",
            text_baseline="bottom", text_font_size="13px", background_fill_color="black", background_fill_alpha=0.6,
            padding=2,
        )  # fmt: skip

    def show(self, image: xr.DataArray, title: str, contrast: tuple[float, float]) -> None:
        """Another image, its darkest and brightest values at two percentiles."""
        self._shown = self.values(image)
        self.set_contrast(contrast)
        self.say(title, str(image.attrs.get("units", "1")))

    def set_contrast(self, contrast: tuple[float, float]) -> None:
        """Percentiles that are shown as black and white."""
        finite = self._shown[np.isfinite(self._shown)]
        if finite.size:
            low, high = (float(value) for value in np.percentile(finite, contrast))
            self.mapper.update(low=low, high=high if high > low else low + 1.0)


class Sites:
    """Sites over a map that are added, moved and deleted with the mouse, and shown over other maps.

    Parameters
    ----------
    on : ScanMap
    changed : callable
        Called with the sites by kind after the user has changed them.
    """

    def __init__(self, on: ScanMap, changed: Callable[[dict[str, Array]], None]) -> None:
        self.source = ColumnDataSource({"x": [], "y": [], "kind": [], "colour": [], "marker": []})
        self.kinds: list[str] = []
        self.current = ""
        self._changed, self._own = changed, False
        marks = self._marks(on)
        self.tool = PointDrawTool(renderers=[marks], description="Add (click), move (drag), delete (click, Backspace)")
        on.figure.add_tools(self.tool)
        self.source.on_change("data", self._edited)

    def _marks(self, on: ScanMap) -> Any:
        return on.figure.scatter(
            "x", "y", source=self.source, marker="marker", size=9, fill_color="colour", fill_alpha=0.75,
            line_color="black", line_width=0.8, selection_line_color="white", selection_line_width=2,
            nonselection_alpha=0.75,
        )  # fmt: skip

    def show_on(self, other: ScanMap) -> Any:
        """The same sites on another map; gives what is drawn, to be hidden."""
        return self._marks(other)

    def show(self, sites: Mapping[str, Array], current: str) -> None:
        """Other sites, and the kind that new ones are of."""
        self.kinds, self.current = list(sites), current
        kinds = [kind for kind, places in sites.items() for _ in places]
        places = np.concatenate([np.empty((0, 2)), *(np.asarray(p, np.float64).reshape(-1, 2) for p in sites.values())])
        colours = [self.colour(kind) for kind in kinds]
        data: dict[str, Any] = {"x": places[:, 1], "y": places[:, 0], "kind": kinds, "colour": colours}
        data["marker"] = [self.marker(kind) for kind in kinds]
        self._own = True
        try:
            # A new site is of the current kind as soon as it is drawn.
            self.source.default_values = {
                "kind": current, "colour": self.colour(current), "marker": self.marker(current),
            }  # fmt: skip
            # What is there already may be in the user's hand.
            if not all(np.array_equal(data[name], self.source.data[name]) for name in data):
                self.source.data = data
        finally:
            self._own = False

    def colour(self, kind: str) -> str:
        """Of a kind of column."""
        return COLOURS[self.kinds.index(kind) % KINDS] if kind in self.kinds else "#808080"

    def marker(self, kind: str) -> str:
        """Of a kind of column: another one where all colours are used."""
        number = self.kinds.index(kind) // KINDS if kind in self.kinds else 0
        return list(MARKERS)[number % len(MARKERS)]

    def _edited(self, name: str, before: Any, now: Any) -> None:
        if self._own:
            return
        # What the browser does not know of a new site is empty there.
        kinds = [str(kind) if kind else self.current for kind in now["kind"]]
        places = np.stack([np.asarray(now[name], np.float64).reshape(-1) for name in ("y", "x")], axis=1)
        found = {kind: places[[k == kind for k in kinds]] for kind in dict.fromkeys([*self.kinds, *kinds])}
        self._changed(found)


class Region:
    """A rectangle of probe positions on a map that is dragged and resized with the mouse."""

    def __init__(self, on: ScanMap, changed: Callable[[tuple[float, float, float, float]], None]) -> None:
        left, right, bottom, top = on.edges
        self.box = BoxAnnotation(
            left=left, right=right, top=top, bottom=bottom, editable=True, visible=False, fill_color="#ffffff",
            fill_alpha=0.08, line_color="#F0E442", line_width=2, line_dash="dashed",
        )  # fmt: skip
        on.figure.add_layout(self.box)
        self._changed, self._own, self._waiting = changed, False, False
        for edge in ("left", "right", "top", "bottom"):
            self.box.on_change(edge, self._moved)

    def show(self, edges: tuple[float, float, float, float] | None) -> None:
        """The rectangle (first y, last y, first x, last x) in angstrom, or none."""
        self._own = True
        try:
            self.box.visible = edges is not None
            if edges is not None:
                y0, y1, x0, x1 = edges
                self.box.update(top=y0, bottom=y1, left=x0, right=x1)
        finally:
            self._own = False

    def _moved(self, name: str, before: Any, now: Any) -> None:
        if self._own or self._waiting:
            return
        # The edges come one by one: between them the rectangle is none that anyone has drawn.
        document = self.box.document
        if document is None:
            self._tell()
        else:
            self._waiting = True
            document.add_timeout_callback(self._tell, SETTLED_MILLISECONDS)

    def _tell(self) -> None:
        self._waiting = False
        b = self.box
        if b.visible:
            y, x = sorted((b.top, b.bottom)), sorted((b.left, b.right))
            self._changed((y[0], y[1], x[0], x[1]))


class DetectorMap(Map):
    """A mask or a pattern on the detector, with the edge of the bright-field disk and mrad rings."""

    def __init__(self, like: xr.DataArray, theme: Theme, name: str, semi_angle: float | None, signed: bool) -> None:
        if signed:
            mapper: Any = LinearColorMapper(palette=palette(DIVERGING), low=-1, high=1)
        else:
            mapper = LogColorMapper(palette=palette(SEQUENTIAL), low=1, high=10)
        super().__init__(like, DETECTOR, "mrad", theme, mapper, name)
        self._signed = signed
        ink = "#1a1a1a" if signed else "#ffffff"
        radii = ring_radii(like, semi_angle, min(abs(edge) for edge in self.edges))
        for radius in radii:
            self.figure.circle(
                0, 0, radius=radius, fill_color=None, line_color=ink, line_alpha=0.45, line_dash="dotted"
            )
            text = f"{radius:g}" + " mrad" * (radius == radii[-1])
            at = radius * np.sqrt(0.5)
            self.figure.text(at, -at, [text], text_color=ink, text_font_size="11px", text_align="center",
                             text_baseline="middle")  # fmt: skip
        if semi_angle is not None:
            self.figure.circle(0, 0, radius=semi_angle, fill_color=None, line_color=ink, line_width=1.5)

    def zoom(self, radius: float) -> None:
        """Show no more than a disk, and what is around it in a square."""
        left, right, bottom, top = self.edges
        for axis, ends in ((self.figure.x_range, (left, right)), (self.figure.y_range, (bottom, top))):
            start, end = (float(np.clip(edge, -radius, radius)) for edge in ends)
            axis.update(start=start, end=end, reset_start=start, reset_end=end)

    def show(self, array: xr.DataArray, title: str) -> None:
        """Another mask or pattern."""
        values = self.values(array)
        finite = values[np.isfinite(values)]
        if self._signed:
            limit = float(np.abs(finite).max(initial=0.0)) or 1.0
            self.mapper.update(low=-limit, high=limit)
        else:
            high = float(finite.max(initial=0.0)) or 1.0
            above = finite[finite > 0]
            low = max(float(np.percentile(above, 2)), high * 1e-5) if above.size else high / 10
            self.mapper.update(low=min(low, high / 1.001), high=high)
        self.say(title, str(array.attrs.get("units", "1")))

    def circles(self, colour: str, changed: Callable[[int, float], None], description: str) -> Circles:
        """Circles whose radius is dragged."""
        return Circles(self, colour, changed, description)


class Circles:
    """Circles around the optic axis, each with a handle that changes its radius."""

    def __init__(self, on: DetectorMap, colour: str, changed: Callable[[int, float], None], description: str) -> None:
        self._rings = ColumnDataSource({"radius": []})
        self._handles = ColumnDataSource({"x": [], "y": []})
        self._radii: list[float] = []
        self._changed, self._own = changed, False
        on.figure.circle(0, 0, radius="radius", source=self._rings, fill_color=None, line_color=colour, line_width=2)
        marks = on.figure.scatter(
            "x", "y", source=self._handles, size=11, marker="square", fill_color=colour, line_color="black"
        )
        tool = PointDrawTool(renderers=[marks], add=False, drag=True, description=description)
        on.figure.add_tools(tool)
        on.figure.toolbar.active_drag = tool
        self._handles.on_change("data", self._dragged)

    def show(self, radii: list[float]) -> None:
        """Circles of other radii in mrad; what is 0 or below has no circle."""
        if radii == self._radii:
            return
        moved = [n for n, radius in enumerate(radii) if n >= len(self._radii) or radius != self._radii[n]]
        self._radii = radii
        self._own = True
        try:
            self._rings.data = {"radius": [radius for radius in radii if radius > 0]}
            places = np.array([_handle(n, radius) for n, radius in enumerate(radii)]).reshape(-1, 2)
            if moved:
                self._handles.data = {"x": places[:, 0], "y": places[:, 1]}
        finally:
            self._own = False

    def _dragged(self, name: str, before: Any, now: Any) -> None:
        if self._own or len(now["x"]) != len(self._radii):
            return
        for n, (x, y) in enumerate(zip(now["x"], now["y"], strict=True)):
            expected = _handle(n, self._radii[n])
            if not np.allclose((x, y), expected, atol=1e-9):
                self._changed(n, float(np.hypot(x, y)))


def _handle(number: int, radius: float) -> tuple[float, float]:
    """Where the handle of a circle is: each to another side, so that they do not cover each other."""
    angle = np.deg2rad((-35, 35, -145)[number % 3])
    return float(radius * np.cos(angle)), float(radius * np.sin(angle))


def activate(tool: Any, widget: Any, value: str) -> None:
    """Have a tool active while one of a group of buttons is pressed, which the browser knows by their numbers."""
    number = list(widget.options).index(value)
    widget.jscallback(value=f"tool.active = cb_obj.active == {number}", args={"tool": tool})


def reload_in(theme: str) -> str:
    """JavaScript that loads the page again in a theme."""
    return f"window.location.search = '?theme={theme}'"
