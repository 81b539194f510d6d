"""Figures and the report."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from matplotlib.image import imread

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.errors import InputError
from tdm_dask.evaluation.cross_talk import cross_talk
from tdm_dask.plot import plot_columns, plot_cross_talk, plot_image, plot_mask, plot_pacbed, save_figure
from tdm_dask.recipe.run import run_recipe
from tdm_dask.report.figures import figures_of
from tdm_dask.report.identity import fingerprint
from tdm_dask.report.image_file import check_image_path, write_image
from tdm_dask.report.writing import write_report

DEMO = Path(__file__).resolve().parents[2] / "tdm_dask" / "data" / "demo.toml"
KINDS = ["Li", "O"]


@pytest.fixture(scope="module")
def made(demo):
    return demo, write_report(demo)


@pytest.fixture
def images() -> xr.DataArray:
    values = np.random.default_rng(1).random((2, 9, 12))
    coords = {"template": KINDS, "y": axis_coordinate("y", 9, 0.5, 0, "angstrom")}
    coords["x"] = axis_coordinate("x", 12, 0.25, 0, "angstrom")
    return xr.DataArray(values, coords, ("template", "y", "x"))


@pytest.fixture
def masks() -> xr.DataArray:
    values = np.random.default_rng(2).normal(0, 1, (2, 9, 8)) + 0.7
    coords = {"template": KINDS, "ky": axis_coordinate("ky", 9, 2.0, -8, "mrad")}
    coords["kx"] = axis_coordinate("kx", 8, 2.0, -7, "mrad")
    return xr.DataArray(values, coords, ("template", "ky", "kx"))


def words(report) -> str:
    """The page without its pictures, as it is written."""
    return re.sub(r"data:image/png;base64,[\w+/=]+", "data:", report.page.read_text(encoding="utf-8"))


def test_the_page_stands_alone(made):
    page = made[1].page.read_text(encoding="utf-8")
    for name, value in re.findall(r'\b(src|href|url|srcset|data)\s*[=(]\s*"?([^">\s]+)', page):
        assert value.startswith(("data:image/png;base64,", "#")), (name, value[:60])
    assert not re.search(r"<(script|link|iframe|object)\b|@import|\bon\w+=", words(made[1]))
    assert "{{" not in page
    assert "None" not in words(made[1])
    assert len(page) < 3e6


def test_the_page_says_what_was_done_with_numbers_and_units(made):
    page = made[1].page.read_text(encoding="utf-8")
    for text in ("lifepo4_001.mib", "42 × 42", "38 × 38", "23.5 mrad", "0.3229 Å, 0.3220 Å", "200 keV"):
        assert text in page
    for text in (
        "semi_angle = &#34;23.5 mrad&#34;",
        "electrons per probe</th><td>20000</td>",
        "electrons/Å²",
        "tdm run recipe.toml",
        "adf:30:45",
        "sigma 0.35 Å",
        "15 of Li",
        "Pearson masks",
    ):
        assert text in page
    assert "A high R is not evidence that the atoms are there" in page


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            'objective = "excess"',
            r"with lambda [\d.]+, chosen for excess by cross-validation on 2 × 2 blocks of the scan\.",
        ),
        (
            "regularisation = 0.25\nseparate = true\ncounts_per_electron = 1",
            r"with lambda 0\.25, which weighs pixels by their counting noise; every image answers to no template but",
        ),
    ],
    ids=["chosen", "given"],
)
def test_the_page_says_how_ridge_masks_were_found(options, words, tmp_path):
    text = DEMO.read_text(encoding="utf-8").replace("lifepo4_001", f"{DEMO.parent}/lifepo4_001")
    text, _ = text.split("# Whether the data single out")
    assert 'method = "pearson"\n' in text
    recipe = tmp_path / "recipe.toml"
    text = text.replace('method = "pearson"\n', f'method = "ridge"\n{options}\n').replace('all_name = "all"\n', "")
    recipe.write_text(text, encoding="utf-8")
    page = write_report(run_recipe(recipe, tmp_path / "out")).page.read_text(encoding="utf-8")
    assert "every template and every other pixel, in one read of the counts, and derived ridge masks" in page
    assert re.search(words, page)
    assert "weights of the pixels&rsquo; standardised counts" in page
    assert "Values of a mask are correlations" not in page


def test_the_table_of_the_page_and_the_csv_hold_the_evaluation(made):
    result, report = made
    page = report.page.read_text(encoding="utf-8")
    with report.table.open(encoding="utf-8") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["Li", "Fe", "P+O", "O", "all", "ABF", "ADF"]
    for image in result.evaluation.image.values:
        assert f"{float(result.evaluation.excess.sel(image=image)):.2f}</td>" in page
        for template in result.evaluation.template.values:
            r = float(result.evaluation.R.sel(image=image, template=template))
            assert float(rows[image][f"R {template}"]) == pytest.approx(r, abs=1e-4)
            assert f"{r:+.2f}".replace("-", "−") in page
    assert rows["ADF"]["excess"] == ""


def test_every_figure_is_a_picture_of_its_own(made):
    figures = made[1].figures
    kinds = ("Li", "Fe", "P+O", "O")
    expected = {"pacbed", "columns", "cross_talk", "image_ABF", "image_ADF"}
    expected |= {f"{part}_{kind}" for part in ("image", "mask") for kind in (*kinds, "all")}
    expected |= {f"{part}_{kind}" for part in ("offsets", "significance") for kind in kinds}
    assert set(figures) == expected
    pictures = {name: imread(path) for name, path in figures.items()}
    assert all(picture[..., :3].std() > 0.02 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)


def test_the_page_has_the_contrast_of_every_kind(made):
    page = made[1].page.read_text(encoding="utf-8")
    assert "How far the columns stand out" in page
    for value in made[0].evaluation["contrast"].values.ravel():
        assert f"{value:+.2f}".replace("-", "−") + "</td>" in page


def test_the_page_has_the_verdicts_and_their_maps_where_a_cell_is_given(made):
    result, report = made
    page = words(report)
    for sentence in result.evidence["sentence"].values:
        assert f"<li>{sentence}</li>" in page
    assert page.count('alt="The response of the template of') == 4
    assert "The data single out the sites of P+O and O; other places in the cell may respond as strongly" in page


def test_figures_and_tables_are_numbered_in_their_order_and_have_captions(made):
    page = words(made[1])
    numbers = [int(n) for n in re.findall(r"<figcaption><b>Figure (\d+)\.</b> [A-Z]", page)]
    assert numbers == list(range(1, 1 + 1 + 3 + 1 + 4 + 5))
    assert [int(n) for n in re.findall(r"<caption><b>Table (\d+)\.</b>", page)] == [1, 2, 3]
    assert page.count("<img ") == len(made[1].figures)
    assert len(re.findall(r'<img [^>]*alt="[^"]{20,}"', page)) == len(made[1].figures)


def test_a_kind_that_was_not_moved_over_the_cell_has_a_caption_of_its_own(made):
    """As those are that respond no more strongly than random sites do."""
    unmoved = dataclasses.replace(made[0], evidence=made[0].evidence.drop_vars("response"))
    figures = [figure for figure in figures_of(unmoved) if figure.part == "evidence"]
    assert [len(figure.pictures) for figure in figures] == [1] * 4
    assert all(": " not in figure.caption and ". Correlation of" in figure.caption for figure in figures)


def test_headings_go_down_one_step_at_a_time_and_are_what_links_lead_to(made):
    page = words(made[1])
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    targets = re.findall(r'href="#([\w-]+)"', page)
    assert len(targets) == 10
    assert all(page.count(f'id="{target}"') == 1 for target in targets)


def dense_fingerprint(counts: np.ndarray) -> str:
    totals, maximum = counts.sum((2, 3), dtype=np.uint64), counts.max((0, 1))
    return hashlib.sha256(totals.astype("<u8").tobytes() + maximum.astype("<u2").tobytes()).hexdigest()


def test_the_page_says_which_file_it_is_about_with_its_hash(made):
    page, source = words(made[1]), DEMO.parent / "lifepo4_001.mib"
    modified = datetime.fromtimestamp(source.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    for name, value in {
        "file": "lifepo4_001.mib",
        "size": "5 771 808 bytes (5.77 MB)",
        "modified": modified,
        "SHA-256 of the file": hashlib.sha256(source.read_bytes()).hexdigest(),
        "fingerprint of the counts": dense_fingerprint(tdm.open(source).values),
    }.items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in page


def test_the_command_of_the_page_gives_the_fingerprint_again(made):
    (command,) = re.findall(r'<pre class="command"><code>(python -c .*)</code></pre>', words(made[1]))
    arguments = shlex.split(html.unescape(command))[1:]
    ran = subprocess.run([sys.executable, *arguments], cwd=made[0].out, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == fingerprint(made[0].store)


def test_a_fingerprint_is_of_the_counts_however_they_are_stored(tmp_path):
    counts = np.random.default_rng(3).poisson(2.0, (9, 7, 12, 12)).astype(np.uint16)
    found = set()
    for n, options in enumerate(({}, {"compression": "zstd"}, {"compression": None})):
        tdm.convert(tdm.label_counts(counts), tmp_path / f"{n}.zarr", **options)
        found.add(fingerprint(tmp_path / f"{n}.zarr"))
    assert found == {dense_fingerprint(counts)}
    other = counts.copy()
    other[4, 3, 5, 6] += 1
    tdm.convert(tdm.label_counts(other), tmp_path / "other.zarr")
    assert fingerprint(tmp_path / "other.zarr") not in found
    turned = tdm.label_counts(np.ascontiguousarray(counts[:, :, ::-1]))
    tdm.convert(turned, tmp_path / "turned.zarr")
    assert fingerprint(tmp_path / "turned.zarr") not in found


def test_the_page_of_a_store_says_which_one_and_what_it_was_converted_from(made, tmp_path):
    recipe = {"source": {"path": str(made[0].store)}, "detectors": {"BF": "disk:10"}}
    result = run_recipe(recipe, tmp_path / "out")
    page = words(write_report(result))
    identifier = json.loads((Path(made[0].store) / "zarr.json").read_text())["attributes"]["tdm_dask"]["id"]
    whole = hashlib.sha256((DEMO.parent / "lifepo4_001.mib").read_bytes()).hexdigest()
    for text in (identifier, "converted from</th><td>lifepo4_001.mib", whole, fingerprint(made[0].store)):
        assert text in page
    assert "In the folder of the store, this" in page
    assert "tdm_dask.run_recipe" in page  # the recipe was no file
    assert '"BF": "disk:10"' in html.unescape(page)


def test_a_store_of_another_program_has_no_fingerprint_and_the_page_says_so(tmp_path):
    disk = np.hypot(*np.indices((24, 24)) - 11.5) < 7
    group = zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=3)
    counts = np.random.default_rng(4).poisson(np.where(disk, 20.0, 0.5), (5, 6, 24, 24))
    group.create_array("counts", data=counts.astype(np.uint16))
    recipe = {"source": {"path": str(tmp_path / "other.zarr")}, "detectors": {"BF": "disk:10"}}
    recipe["calibration"] = {"semi_angle": 20.0}
    page = words(write_report(run_recipe(recipe, tmp_path / "out")))
    assert "none: the store has no sums of its counts" in page
    assert "hashlib" not in page
    assert "None" not in page


@pytest.mark.long
def test_text_of_a_recipe_cannot_become_markup(tmp_path):
    data = DEMO.parent
    recipe = {
        "title": "<script>alert(1)</script>",
        "notes": "<script>alert(2)</script>",
        "source": {"path": str(shutil.copy(data / "lifepo4_001.mib", tmp_path / "<script>alert(3)<.mib"))},
        "detectors": {"<i>/../BF": "disk:10", "<i>_.._BF": "disk:11", "<I>/../bf": "disk:12"},
        "calibration": {"semi_angle": 23.5, "scan_step": 0.3225},
        "templates": {"sites": {'<script>alert("4")</script>': [[2.0, 2.0]], "O": [[3.0, 4.0]]}, "sigma": 0.35},
    }
    shutil.copy(data / "lifepo4_001.hdr", tmp_path / "<script>alert(3)<.hdr")
    report = write_report(run_recipe(recipe, tmp_path / "out"))
    page = words(report)
    assert page.count("&lt;script&gt;") > 10
    assert "<script" not in page
    assert "<i>" not in page.lower()
    assert all(path.parent == tmp_path / "out" / "figures" for path in report.figures.values())
    assert len({str(path).lower() for path in report.figures.values()}) == len(report.figures) == 10


def test_a_report_without_templates_has_no_table(made, tmp_path):
    recipe = {"source": {"path": str(made[0].store)}, "detectors": {"BF": "disk:10"}}
    report = write_report(run_recipe(recipe, tmp_path / "out"))
    assert report.table is None
    assert "Cross-talk" not in words(report)
    assert set(report.figures) == {"pacbed", "image_BF"}


def test_an_image_is_drawn_in_its_own_proportions_with_a_round_scale_bar(images):
    axes = plot_image(images[0], sites={"Li": [(0.0, 0.0), (2.0, 1.0), (50.0, 50.0)]})
    assert axes.get_xlim() == pytest.approx((-0.125, 2.875))
    assert axes.get_ylim() == pytest.approx((4.25, -0.25))
    assert axes.get_title(loc="left") == "Li"
    assert len(axes.lines[0].get_xdata()) == 2
    (bar,) = axes.artists
    assert bar.txt_label.get_text() == "0.5 Å"
    assert bar.size_bar.get_children()[0].get_width() == 0.5


@pytest.mark.parametrize(("step", "text"), [(0.01, "0.2 Å"), (1.0, "2 nm"), (2000.0, "5 µm")])
def test_the_scale_bar_has_a_unit_that_suits_the_scan(step, text):
    coords = {dim: axis_coordinate(dim, 100, step, 0, "angstrom") for dim in ("y", "x")}
    image = xr.DataArray(np.random.default_rng(1).random((100, 100)), coords, ("y", "x"))
    assert plot_image(image).artists[0].txt_label.get_text() == text


def test_the_colours_of_a_mask_are_centred_on_zero(masks):
    axes = plot_mask(masks[0], semi_angle=6.0)
    low, high = axes.images[0].get_clim()
    assert low == -high == -float(abs(masks[0]).max())
    (disk,) = axes.patches
    assert disk.get_radius() == 6.0
    assert axes.get_xlabel() == "kx (mrad)"


def test_images_stand_over_their_masks(images, masks):
    grid = plot_columns(images, masks, semi_angle=6.0)
    assert [axes.get_title(loc="left") for axes in grid[0]] == KINDS
    for number, axes in enumerate(grid.flat):
        source = (images if number < 2 else masks)[number % 2]
        np.testing.assert_array_equal(axes.images[0].get_array(), source)
    with pytest.raises(InputError, match="the same"):
        plot_columns(images, masks[::-1])


def test_cross_talk_is_written_into_the_heat_maps(images):
    table = cross_talk(images, images[::-1])
    texts = [[text.get_text() for text in axes.texts] for axes in plot_cross_talk(table)]
    expected = [f"{value:+.2f}".replace("-", "−") for value in table.R.values.ravel()]
    assert texts[0] == texts[1] == expected
    assert texts[2] == ["+0.00", "+0.00"]


def test_nothing_to_draw_is_an_error(masks, images):
    with pytest.raises(InputError, match="no counts"):
        plot_pacbed(0 * masks[0])
    with pytest.raises(InputError, match="dims"):
        plot_mask(images[0])
    with pytest.raises(InputError, match="no finite value"):
        plot_image(images[0] * np.nan)


def test_images_are_written_for_other_programs(images, tmp_path):
    from tifffile import TiffFile

    image = images[0].drop_vars("template")
    np.testing.assert_array_equal(np.load(write_image(image, tmp_path / "a.npy")), image)
    with TiffFile(write_image(image, tmp_path / "a.tif")) as file:
        np.testing.assert_array_equal(file.asarray(), image.values.astype(np.float32))
        numerator, denominator = file.pages[0].tags["XResolution"].value
        assert numerator / denominator == pytest.approx(4.0)
        assert file.imagej_metadata["unit"] == "angstrom"
    stored = xr.open_zarr(write_image(image, tmp_path / "a.zarr"), consolidated=False)
    np.testing.assert_array_equal(stored["image"], image)
    assert stored.x.attrs["units"] == "angstrom"
    assert imread(write_image(image, tmp_path / "a.png")).ndim == 3


def test_figures_are_drawn_into_axes_that_are_given(images, masks):
    axes = plot_image(images[0])
    for draw, what in ((plot_image, images[1]), (plot_mask, masks[0]), (plot_pacbed, abs(masks[0]))):
        before = len(axes.images)
        assert draw(what, axes=axes) is axes
        assert len(axes.images) == before + 1


def test_figures_are_the_same_every_time(masks, tmp_path):
    first, second = (save_figure(plot_mask(masks[0]), tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert first == second


def test_an_image_file_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_image_path(tmp_path / "nowhere" / "a.npy")
    (tmp_path / "a.npy").touch()
    with pytest.raises(InputError, match="exists"):
        check_image_path(tmp_path / "a.npy")
    check_image_path(tmp_path / "a.npy", overwrite=True)
    counts = tdm.label_counts(np.ones((2, 3, 4, 4), np.uint16))
    tdm.convert(counts, tmp_path / "scan.zarr")
    (tmp_path / "folder.zarr").mkdir()
    for name in ("scan.zarr", "folder.zarr"):
        with pytest.raises(InputError, match="is a folder that holds no image; give another name"):
            check_image_path(tmp_path / name, overwrite=True)
    write_image(counts[..., 0, 0].rename("image"), tmp_path / "image.zarr")
    check_image_path(tmp_path / "image.zarr", overwrite=True)
