"""What the page saves: a recipe, figures and numbers of what is chosen, whatever kinds and detectors are called."""

from __future__ import annotations

import os
import threading
import types

import numpy as np
import pytest
import xarray as xr
from small_stores import converted, poisson
from viewer_scans import calibrated_finer as calibrated

import tdm_dask as tdm
from tdm_dask.errors import InputError
from tdm_dask.viewer import run_panel
from tdm_dask.viewer.choices import Choices
from tdm_dask.viewer.engine import Engine
from tdm_dask.viewer.saving import FIGURES, RECIPE, SHOWN, file_names, save_recipe, save_shown

pn = pytest.importorskip("panel")

SHAPE = (14, 15, 8, 9)
ODD = ["a/b", "a_b", "A_B", "P+O", 'a"b', "µ-日本", "..", "x" * 300, "", "n" * 299 + "/"]
DETECTORS = {"ABF/2": (4.0, 8.0)}
PATIENCE = 60  # seconds that nothing here takes, unless it hangs


@pytest.fixture(scope="module")
def engine():
    return Engine(calibrated(poisson(SHAPE)))


def chosen(kinds):
    rng = np.random.default_rng(0)
    return Choices(sites={kind: rng.random((3, 2)) * 4 for kind in kinds}, sigma=0.3, radius=8.0, detectors=DETECTORS)


def saved(folder, engine, choices):
    look = engine.look(choices)
    shown = {name: engine.conventional(*pair) for name, pair in choices.detectors.items()}
    return look, save_shown(folder, look, engine.pacbed, shown, 8.0, "the proxy")


def test_names_of_files_are_names_of_files_and_each_of_its_own(tmp_path):
    names = file_names([f"image_{name}" for name in ODD])
    assert len({name.casefold() for name in names}) == len(ODD)
    for name in names:
        assert "/" not in name
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == len(ODD)


@pytest.mark.long
def test_kinds_of_any_name_have_figures_and_numbers(engine, tmp_path):
    look, written = saved(tmp_path, engine, chosen(["a/b", "a_b", "µ-Ti"]))
    assert all(path.exists() for path in written)
    assert len(written) == len(set(written))
    names = sorted(path.name for path in (tmp_path / FIGURES).iterdir())
    assert all((tmp_path / FIGURES / name).stat().st_size > 1000 for name in names)
    for kind in ("a_b", "a_b-2", "µ-Ti"):
        for suffix in ("png", "svg"):
            assert {f"image_{kind}.{suffix}", f"mask_{kind}.{suffix}"} <= set(names)
    assert {"pacbed.png", "columns.svg", "cross_talk.png", "image_ABF_2.png"} <= set(names)
    images = xr.open_zarr(tmp_path / SHOWN, group="images", consolidated=False)
    assert images.attrs["counts"] == "the proxy"
    np.testing.assert_allclose(images["image"].sel(template="a/b"), look.image.sel(template="a/b"))
    assert images["image"]["y"].attrs["units"] == "angstrom"
    np.testing.assert_allclose(images["virtual"].sel(detector="ABF/2"), engine.conventional(4.0, 8.0))
    masks = xr.open_zarr(tmp_path / SHOWN, group="masks", consolidated=False)
    np.testing.assert_allclose(masks["mask"], look.mask)
    table = xr.open_zarr(tmp_path / SHOWN, group="evaluation", consolidated=False)
    np.testing.assert_allclose(table["R"], look.table["R"])


def test_without_sites_the_conventional_image_and_the_pattern_are_saved_and_nothing_old_stays(engine, tmp_path):
    (tmp_path / SHOWN / "masks").mkdir(parents=True)
    shown = {"BF": engine.conventional(0.0, 8.0)}
    save_shown(tmp_path, None, engine.pacbed, shown, None, "the proxy")
    assert sorted(p.name for p in (tmp_path / FIGURES).iterdir()) == [
        "image_BF.png",
        "image_BF.svg",
        "pacbed.png",
        "pacbed.svg",
    ]
    assert not (tmp_path / SHOWN / "masks").exists()
    assert list(xr.open_zarr(tmp_path / SHOWN, group="images", consolidated=False)) == ["virtual"]


def test_a_saved_recipe_gives_the_masks_that_were_shown(tmp_path):
    store = tmp_path / "scan.zarr"
    converted(store, calibrated(poisson(SHAPE)))
    choices = chosen(["a/b", 'a"b']).with_(scan_region=(1, 13, 0, 15))
    path = save_recipe(choices, store, tmp_path / "new" / "folder")
    assert Choices.from_recipe(path) == choices
    result = tdm.run_recipe(path, tmp_path / "out")
    look = Engine(tdm.open(store).compute()).look(choices)
    np.testing.assert_allclose(result.masks["mask"], look.mask, atol=1e-6)
    np.testing.assert_allclose(result.images["image"], look.image, atol=1e-6 * float(abs(look.image).max()))
    full = run_panel.look_of(choices, result)
    np.testing.assert_allclose(full.table["R"], look.table["R"], atol=1e-6)


# The panel that runs and saves


class Page:
    """As much of a page as the panel needs; `work` waits."""

    def __init__(self, engine, choices):
        self.engine, self.choices, self.on_proxy = engine, choices, "the proxy"
        self.current_detector, self.said, self.full, self.shown = "ABF/2", [], None, None

    def on_click(self, button, function):
        pass

    def look(self):
        return self.shown

    def set_full(self, look):
        self.full = look

    def current_image(self):
        return self.engine.conventional(*self.choices.detectors["ABF/2"])

    def work(self, what, function, then):
        then(function())

    def say(self, sentence, kind="error"):
        self.said.append(sentence)


@pytest.fixture
def panels(engine, tmp_path, monkeypatch):
    """Makes panels as of several tabs; nothing calls them by itself."""
    timers = []

    def timer(function, period):
        timers.append(types.SimpleNamespace(stop=lambda: None))
        return timers[-1]

    monkeypatch.setattr(pn.state, "add_periodic_callback", timer)

    def make(choices, source="scan.zarr"):
        return run_panel.RunPanel(Page(engine, choices), source, tmp_path / "out")

    yield make
    run_panel.end_job(tmp_path / "out")


@pytest.mark.long
def test_what_is_saved_is_what_is_chosen_even_if_it_is_not_shown_yet(panels, engine, tmp_path):
    choices = chosen(["Li"])
    panel = panels(choices)
    panel._page.shown = engine.look(choices.with_(sigma=0.9))
    panel._save()
    masks = xr.open_zarr(tmp_path / "out" / SHOWN, group="masks", consolidated=False)
    np.testing.assert_allclose(masks["mask"], engine.look(choices).mask)
    assert Choices.from_recipe(tmp_path / "out" / RECIPE) == choices
    (said,) = panel._page.said
    assert said.startswith("Saved ")
    assert Choices.from_recipe(tmp_path / "out" / RECIPE).toml("scan.zarr") == panel._recipe_file().read().decode()


def test_counts_of_no_store_are_not_confirmed_nor_saved(panels, tmp_path):
    panel = panels(chosen(["Li"]), source=None)
    for function in (panel._confirm, panel._save, panel._recipe_file):
        with pytest.raises(InputError, match=r"write them with tdm\.convert"):
            function()
    with pytest.raises(InputError, match="There are no sites yet"):
        panels(chosen([]))._confirm()
    assert not os.listdir(tmp_path)


@pytest.fixture
def running(monkeypatch):
    """`run_recipe` that goes on until it is told, and then gives or raises what it is told."""
    told = types.SimpleNamespace(go=threading.Event(), begun=threading.Event(), calls=[], error=None)

    def run(recipe, out, *, overwrite, stage):
        told.calls.append(recipe)
        with stage("masks"):
            pass
        with stage("images"):
            told.begun.set()
            while not told.go.wait(0.01):
                stage.__self__._graphs.check()
        if told.error:
            raise told.error
        return recipe

    monkeypatch.setattr(run_panel, "run_recipe", run)
    monkeypatch.setattr(run_panel, "look_of", lambda choices, result: ("look of", result))
    return told


def ended(panel):
    """Wait for the end of the work that a panel shows, and let it look."""
    panel._job[1].wait(PATIENCE)
    panel._look()
    return panel


def test_a_new_tab_takes_up_what_runs_and_the_same_folder_is_not_written_twice(panels, running):
    first = panels(chosen(["Li"]))
    first._confirm()
    assert running.begun.wait(PATIENCE)
    first._look()
    assert (first.confirm.disabled, first.cancel.disabled) == (True, False)
    assert "masks" in first.status.object
    other = panels(chosen(["O"]))
    assert (other.confirm.disabled, other.cancel.disabled) == (True, False)
    with pytest.raises(InputError, match="another tab has asked"):
        other._confirm()
    first.close()  # the tab is gone; the work goes on
    running.go.set()
    ended(other)
    assert len(running.calls) == 1
    assert (other.confirm.disabled, other.cancel.disabled) == (False, True)
    assert other.status.object.endswith("for what was chosen when it began")
    assert other._page.full is None
    third = panels(chosen(["Li"]).with_(detectors={"ABF/2": (2.0, 8.0)}))
    third._look()
    assert third._page.full == ("look of", running.calls[0])  # other detectors have the same masks
    third._page.choices = third._page.choices.with_(sigma=0.31)
    third.changed()
    assert third._page.full is None


def test_a_cancel_while_it_runs_leaves_a_panel_that_confirms_again(panels, running):
    panel = panels(chosen(["Li"]))
    panel._confirm()
    assert running.begun.wait(PATIENCE)
    panel._cancel()
    ended(panel)
    assert panel.status.object.startswith("Cancelled; finished and kept: masks")
    assert (panel.confirm.disabled, panel.cancel.disabled) == (False, True)
    panel._cancel()
    running.go.set()
    panel._confirm()
    assert ended(panel)._page.full is not None


def test_a_failure_is_said_once_and_a_new_tab_knows_nothing_of_it(panels, running):
    running.error = InputError("The disk is full.")
    running.go.set()
    panel = panels(chosen(["Li"]))
    panel._confirm()
    assert ended(panel)._page.said == ["The disk is full."]
    assert not panels(chosen(["Li"])).confirm.disabled


def test_the_end_of_the_page_ends_what_runs(panels, running, tmp_path):
    panel = panels(chosen(["Li"]))
    panel._confirm()
    job = panel._job[1]
    run_panel.end_job(tmp_path / "out")
    assert job.wait(PATIENCE).state == "cancelled"
    run_panel.end_job(tmp_path / "out")
