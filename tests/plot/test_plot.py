"""Every public plotting function, drawn on the sample: as the stored images show, legible, labelled, in one style.

After a change that is meant, `TDM_REMAKE_IMAGES=1 pytest tests/test_plot.py -k looks_like` writes the images in
tests/images again; look at them before they are committed.
"""

from __future__ import annotations

import inspect
import io
import itertools
import os
import re
from functools import cache
from html import unescape
from pathlib import Path
from unittest import mock

import matplotlib as mpl
import numpy as np
import pytest
from image_likeness import SEVERAL, picture_of, read, stored, unlike
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox
from matplotlib.text import Text
from plot_cases import CASES, Sample, function_of
from skimage.color import deltaE_ciede2000, rgb2lab

from tdm_dask import plot
from tdm_dask.plot.drawing import ring_radii
from tdm_dask.plot.evidence import VERDICT_COLOURS
from tdm_dask.plot.style import COLOURS, DIVERGING, GREY, SEQUENTIAL, figure_of, in_style, new_figure

IMAGES = Path(__file__).parent / "images"
REMAKE = "TDM_REMAKE_IMAGES"
UNIT = re.compile(r"\((px|mrad|Å|nm|%|standard deviations)\)|\bcounts\b|\bprobe position\b|\bdetector pixel\b")
# Quantities and names without a unit.
DIMENSIONLESS = {
    *("correlation ρ", "response |ρ|", "ρ over rms of random sites", "R", "R of the image", "R with the own template"),
    *("R of image and template, held out", "excess |R − G|", "loss (R and excess)", "regularisation λ", "component"),
    *("weight", "weight of the mask", "normalised intensity", "misfit (reduced χ²)", "part of the measured counts"),
    *("deviation / scatter of intact", "occupancy of the column", "signal over shot noise, per probe position"),
}


@pytest.fixture(scope="module")
def sample():
    return Sample()


@pytest.fixture(scope="module")
def drawn(sample):
    """Draw a case, once."""
    return cache(lambda name: figure_of(CASES[name](sample)))


@pytest.fixture(scope="module")
def drawn_texts(drawn):
    return cache(lambda name: texts_of(drawn(name)))


@pytest.fixture(scope="module")
def pictures(drawn):
    return cache(lambda name: picture_of(drawn(name)))


def every_case(function):
    return pytest.mark.parametrize("name", CASES)(function)


SEVERAL_KINDS = pytest.mark.parametrize("name", ["image", "mask", "columns", "radial_profile", "series", "offsets"])


def texts_of(figure):
    """All texts that drawing a figure draws: those of ticks outside the limits, say, are not among them."""
    found, draw = [], Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            found.append(text)
        draw(text, renderer)

    with in_style(), mock.patch.object(Text, "draw", noted):
        FigureCanvasAgg(figure).draw()
    return list(dict.fromkeys(found))


def outline(text, renderer):
    """The corners of a text's box; where it is slanted, those of the slanted box."""
    angle = text.get_rotation()
    slanted = angle % 90 != 0
    if slanted:
        text.set_rotation(0)
    box = text.get_window_extent(renderer)
    corners = np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)])
    if not slanted:
        return corners
    text.set_rotation(angle)
    assert text.get_rotation_mode() == "anchor"
    pivot, turn = text.get_transform().transform(text.get_position()), np.deg2rad(angle)
    return (corners - pivot) @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]] + pivot


def overlap(first, second, by=0.5):
    """Whether two convex outlines have more than `by` pixels in common along every direction of their sides."""
    for sides in (first, second):
        for side in np.diff(sides[:3], axis=0):
            across = np.array([-side[1], side[0]]) / np.hypot(*side)
            a, b = first @ across, second @ across
            if a.max() <= b.min() + by or b.max() <= a.min() + by:
                return False
    return True


def axes_of(figure):
    return [axes for one in figure.axes for axes in (one, *one.child_axes) if axes.get_visible() and axes.axison]


def test_every_public_plotting_function_has_a_case():
    public = {name for name in plot.__all__ if name.startswith("plot_")}
    assert {function_of(name) for name in CASES} == public
    assert {path.stem for path in IMAGES.glob("*.png")} == set(CASES)


@every_case
def test_a_figure_looks_like_the_stored_one(name, pictures, tmp_path):
    path = IMAGES / f"{name}.png"
    if os.environ.get(REMAKE):
        IMAGES.mkdir(exist_ok=True)
        path.write_bytes(stored(pictures(name)))
    found = unlike(pictures(name), read(path))
    if found > SEVERAL:
        (tmp_path / path.name).write_bytes(stored(pictures(name)))
    assert found <= SEVERAL, f"compare {tmp_path / path.name} with {path}; if it is meant, set {REMAKE}=1"


def test_stored_images_are_small():
    sizes = [path.stat().st_size for path in IMAGES.glob("*.png")]
    assert max(sizes) <= 30_000
    assert sum(sizes) <= 700_000


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mask", lambda figure: figure.axes[0].images[0].set_cmap("viridis")),
        ("mask", lambda figure: figure.axes[0].images[0].set_clim(-0.3, 0.9)),
        ("mask", lambda figure: figure.axes[0].lines[0].set_visible(False)),  # the rings
        ("mask", lambda figure: figure.axes[0].patches[0].set_visible(False)),  # the disk
        ("mask", lambda figure: figure.axes[0].set_xlabel(" ")),
        ("mask", lambda figure: figure.axes[0].set_title(" ", loc="left")),
        ("mask", lambda figure: figure.axes[0].child_axes[0].set_visible(False)),  # the colour bar
        ("mask", lambda figure: figure.axes[0].texts[-1].set_visible(False)),  # the name of the disk
        ("image", lambda figure: figure.axes[0].artists[0].set_visible(False)),  # the scale bar
        ("image", lambda figure: figure.legends[0].set_visible(False)),
        ("image", lambda figure: figure.axes[0].images[0].set_cmap("magma")),
        ("radial_profile", lambda figure: figure.axes[0].lines[0].set_linewidth(4)),
        ("radial_profile", lambda figure: figure.axes[1].lines[0].set_visible(False)),
        ("cross_talk", lambda figure: figure.axes[0].texts[1].set_text("")),
        ("series", lambda figure: figure.axes[0].lines[0].set_color("black")),
    ],
)
def test_a_figure_that_lost_something_is_not_like_the_stored_one(sample, name, change):
    figure = figure_of(CASES[name](sample))
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")  # the room that something took stays free
    change(figure)
    assert unlike(picture_of(figure), read(IMAGES / f"{name}.png")) > SEVERAL


@every_case
def test_no_text_overlaps_another_or_leaves_the_figure(name, drawn, drawn_texts):
    figure, texts = drawn(name), drawn_texts(name)
    renderer = figure.canvas.get_renderer()
    outlines = [outline(text, renderer) for text in texts]
    for (one, a), (other, b) in itertools.combinations(zip(texts, outlines, strict=True), 2):
        assert not overlap(a, b), f"{one.get_text()!r} and {other.get_text()!r}"
    size = figure.get_size_inches() * figure.dpi
    for text, corners in zip(texts, outlines, strict=True):
        assert (corners > -1).all(), text.get_text()
        assert (corners < size + 1).all(), text.get_text()


def numbers(axis, texts):
    """Numbers among the tick labels of an axis that are drawn."""
    labels = [label.get_text() for label in axis.get_ticklabels() if label in texts]
    return [label for label in labels if re.match(r"[−\d$]", label)]


@every_case
def test_every_axis_with_numbers_has_a_unit_or_needs_none(name, drawn, drawn_texts):
    figure, texts = drawn(name), set(drawn_texts(name))
    for axes in axes_of(figure):
        for axis in (axes.xaxis, axes.yaxis):
            label = axis.label.get_text()
            if numbers(axis, texts):
                assert UNIT.search(label) or label in DIMENSIONLESS, (label, numbers(axis, texts))


@every_case
def test_every_map_without_ticks_says_how_large_it_is(name, drawn):
    def explained(axes):
        return any(isinstance(artist, AnchoredOffsetbox) for artist in axes.artists)

    every = axes_of(drawn(name))
    for axes in every:
        if axes.images and not len(axes.get_xticks()):
            alike = [a for a in every if (a.get_xlim(), a.get_ylim()) == (axes.get_xlim(), axes.get_ylim())]
            assert any(explained(one) for one in alike), axes.get_title(loc="left")


@pytest.mark.parametrize("name", [name for name in CASES if "__" not in name])
def test_a_figure_is_drawn_where_it_is_wanted(name, sample):
    whole = new_figure(8, 6)
    above, below = whole.subfigures(2, 1)
    if "figure" in inspect.signature(getattr(plot, function_of(name))).parameters:
        found = CASES[name](sample, figure=below)
        assert all(axes.figure is below for axes in np.ravel(found))
        assert set(below.axes) >= set(np.ravel(found))
    else:
        given = below.subplots(1, 3) if name.startswith("regularisation") else below.subplots()
        found = CASES[name](sample, axes=given)
        assert set(np.ravel(found)) >= set(np.ravel(given))
        assert figure_of(found) is whole
    assert not above.axes
    assert not whole.legends


USERS = {
    "font.family": ["serif"], "font.size": 21.0, "axes.grid": True, "axes.facecolor": "black", "axes.labelpad": 20.0,
    "image.cmap": "jet", "image.origin": "lower", "image.interpolation": "bicubic", "lines.linewidth": 6.0,
    "lines.marker": "x", "xtick.direction": "in", "xtick.bottom": False, "legend.loc": "center", "text.color": "red",
    "figure.facecolor": "black", "savefig.facecolor": "black", "savefig.dpi": 30, "svg.fonttype": "path",
    "axes.prop_cycle": mpl.cycler(color=["red"]), "axes.spines.left": False, "patch.linewidth": 5.0,
}  # fmt: skip


@SEVERAL_KINDS
def test_settings_of_the_user_change_nothing_and_are_not_changed(name, sample, pictures):
    with mpl.rc_context(USERS):
        figure = figure_of(CASES[name](sample))
        np.testing.assert_array_equal(picture_of(figure), pictures(name))
        assert {key: mpl.rcParams[key] for key in USERS} == USERS


@every_case
def test_every_text_stays_text(name, drawn_texts):
    """Letters with an edge of their own are written as outlines."""
    assert not any(text.get_path_effects() for text in drawn_texts(name))


@SEVERAL_KINDS
def test_text_is_text_in_a_vector_file(name, drawn, drawn_texts, tmp_path):
    figure = drawn(name)
    # Of the numbers at ticks there may be others in a figure of another resolution.
    ticks = {label for axes in axes_of(figure) for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()}
    texts = {line.strip() for text in set(drawn_texts(name)) - ticks for line in text.get_text().split("\n")}
    content = plot.save_figure(figure, tmp_path / "a.svg").read_text(encoding="utf-8")
    written = {unescape(part).strip() for part in re.findall(r"<text[^>]*>([^<]*)</text>", content)}
    assert texts <= written
    assert not re.findall(r'href="(?!#|data:)', content)
    if any(axes.images for axes in axes_of(figure)):
        assert "data:image/png;base64," in content


def test_a_pdf_has_fonts_that_can_be_edited(drawn, tmp_path):
    content = plot.save_figure(drawn("mask"), tmp_path / "a.pdf").read_bytes()
    assert b"/CIDFontType2" in content
    assert b"/Type3" not in content


def test_no_figure_is_registered_with_pyplot(drawn):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    drawn("mask")
    assert plt.get_fignums() == before
    assert isinstance(drawn("mask"), Figure)


@pytest.mark.parametrize("number", [1, 6, 7, 8, 11])
def test_a_montage_wraps_into_bands_that_are_nearly_equal(number, sample):
    names = [str(n) for n in range(number)]
    images, masks = (
        a.isel(template=[n % 5 for n in range(number)]).assign_coords(template=names)
        for a in (sample.images[:, :4, :4], sample.masks[:, ::9, ::9])
    )
    grid = plot.plot_columns(images, masks)
    assert grid.shape == (2, number)
    assert [axes.get_title(loc="left") for axes in grid[0]] == names
    figure = figure_of(grid)
    assert set(figure.axes) == set(grid.flat)
    places = [axes.get_subplotspec() for axes in grid[0]]
    bands = [sum(place.rowspan.start == row for place in places) for row in sorted({p.rowspan.start for p in places})]
    assert len(bands) == (1 if number <= 6 else -(-number // 5))
    assert max(bands) - bands[-1] < len(bands)


def test_a_montage_is_as_wide_as_asked(sample):
    grid = plot.plot_columns(sample.images, sample.masks, across=1)
    assert {axes.get_subplotspec().colspan.start for axes in grid.flat} == {0}
    eight = [0, 1, 2, 3, 4, 0, 1, 2]
    grid = plot.plot_columns(*(a.isel(template=eight) for a in (sample.images, sample.masks)), figure=new_figure(9, 3))
    assert {axes.get_subplotspec().rowspan.start for axes in grid[0]} == {0}


@pytest.mark.parametrize("reach", [5.0, 12.0, 27.0, 46.0, 62.0, 100.0, 210.0])
@pytest.mark.parametrize("semi_angle", [None, 21.4, 23.5, 30.0])
def test_rings_are_few_round_and_apart_from_the_disk(reach, semi_angle, sample):
    radii = ring_radii(sample.masks, semi_angle, reach)
    assert 1 <= len(radii) <= 5
    assert all(0 < r < reach and float(f"{r:.2g}") == pytest.approx(r) for r in radii)
    assert semi_angle is None or min(abs(r - semi_angle) for r in radii) > 0.1 * reach


def test_rings_can_be_chosen(sample):
    mask = sample.masks[0]
    axes = plot.plot_mask(mask, semi_angle=23.5, rings=(12.5, 35.0))
    x, y = axes.lines[0].get_data()
    radii = np.hypot(x, y)
    np.testing.assert_allclose(sorted(set(radii[np.isfinite(radii)].round(9))), [12.5, 35.0])
    assert [text.get_text() for text in axes.texts] == ["12.5", "35 mrad", "α = 23.5 mrad"]
    assert not plot.plot_mask(mask, rings=()).lines


def lightness(name):
    return rgb2lab(mpl.colormaps[name](np.linspace(0, 1, 101))[None, :, :3])[0, :, 0]


def test_colour_maps_are_even_in_lightness():
    for name in (GREY, SEQUENTIAL):
        steps = np.diff(lightness(name))
        assert (steps > 0).all()
        assert steps.max() < 3 * np.median(steps)
    found = lightness(DIVERGING)
    assert found.argmax() == 50
    assert (np.diff(found[:51]) > 0).all()
    assert (np.diff(found[50:]) < 0).all()
    assert np.abs(found - found[::-1]).max() < 8


# What is seen without the cones for red, and for green (Machado, Oliveira and Fernandes, IEEE TVCG 15, 1291 (2009)).
DEFICIENT = (
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
)


@pytest.mark.parametrize("colours", [COLOURS, tuple(VERDICT_COLOURS.values())], ids=["kinds", "verdicts"])
@pytest.mark.parametrize("cones", DEFICIENT, ids=["no red", "no green"])
def test_colours_are_told_apart_with_any_colour_vision(colours, cones):
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(cones), 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    apart = [float(deltaE_ciede2000(a, b)) for a, b in itertools.combinations(lab, 2)]
    assert min(apart) > 9, apart


def test_likeness_does_not_mind_a_shift_of_a_pixel_but_a_line_that_is_missing():
    plain = np.ones((60, 80, 3), np.float32)
    line = plain.copy()
    line[20, 5:75] = 0.2
    assert unlike(line, np.roll(line, 1, 0)) == 0
    assert unlike(line, plain) > SEVERAL
    assert unlike(line, plain[1:]) > SEVERAL
    assert np.abs(read(io.BytesIO(stored(line))) - line).max() < 0.01


def test_texts_that_overlap_are_found():
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    slanted = {"rotation": 45, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    places = {"one": (0.2, 0.2, {}), "two": (0.22, 0.21, {}), "far": (0.7, 0.9, {}), "slanted": (0.4, 0.2, slanted)}
    # Inside the upright box around the slanted text, but below it.
    places["below"] = (0.57, 0.2, {})
    texts = {name: axes.text(x, y, name, **style) for name, (x, y, style) in places.items()}
    assert set(texts.values()) <= set(texts_of(figure))
    outlines = {name: outline(text, figure.canvas.get_renderer()) for name, text in texts.items()}
    assert [pair for pair in itertools.combinations(outlines, 2) if overlap(*(outlines[name] for name in pair))] == [
        ("one", "two")
    ]
