"""How counts come to the viewer, are kept and taken up again, what cannot be viewed, and how notebooks show it."""

from __future__ import annotations

import contextlib
import gc
import http.server
import re
import threading
import weakref
from pathlib import Path
from unittest import mock

import browser
import numpy as np
import pytest
from counted_reads import CountingStore
from small_stores import converted, poisson
from viewer_scans import calibrated_finer as calibrated
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.errors import CalibrationError, InputError, RecipeError, SourceError
from tdm_dask.viewer import opening
from tdm_dask.viewer.choices import Choices

pn = pytest.importorskip("panel")

SHAPE = (12, 13, 12, 12)
SITES = {"Li": np.array([[1.0, 1.0], [2.0, 3.0]])}

@pytest.fixture
def store(tmp_path):
    path = tmp_path / "scan.zarr"
    converted(path, calibrated(poisson(SHAPE)))
    return path


def pages(counts, out, **options):
    """What is behind every tab, without a server."""
    settings = {"first": None, "source": None, "bin": None, "memory": None, "stage": opening.silent, **options}
    return opening._Pages(counts, out=Path(out), **settings)


def kept(out):
    return sorted(path.name for path in Path(out).glob("proxy-*"))


def unreadable(store):
    """Have every shard of a store gone."""
    for path in (Path(store) / "counts" / "c").rglob("*"):
        if path.is_file():
            path.unlink()


def test_the_counts_are_read_once(store, tmp_path):
    counting = CountingStore(LocalStore(store, read_only=True))
    made = pages(tdm.open(counting), tmp_path / "out", source=store)
    assert len(counting.chunk_ranges()) == len(set(counting.chunk_ranges())) > 0
    np.testing.assert_array_equal(made.engine.counts, tdm.open(store))


def test_a_kept_proxy_is_taken_up_without_the_counts(store, tmp_path):
    out = tmp_path / "out"
    counts = tdm.open(store)
    expected = counts.values
    first = pages(counts, out, source=store)
    (name,) = kept(out)
    unreadable(store)
    again = pages(tdm.open(store), out, source=store)
    for made in (first, again):
        assert isinstance(made.engine.counts.data, np.ndarray)
        np.testing.assert_array_equal(made.engine.counts, expected)
        assert made.engine.counts.attrs == counts.attrs
    assert kept(out) == [name]


def test_another_bin_calibration_or_content_makes_another_proxy_in_its_place(store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mine = out / "proxy-mine.zarr"
    mine.mkdir()
    counts = tdm.open(store)
    names = []

    def made(counts, **options):
        engine = pages(counts, out, source=store, **options).engine
        (name,) = [name for name in kept(out) if name != mine.name]
        names.append(name)
        return engine

    assert made(counts).counts.shape == SHAPE
    assert made(counts, bin=2).counts.shape == (12, 13, 6, 6)
    wider = counts.assign_coords(kx=axis_coordinate("kx", 12, 3.0, -16.5, "mrad"))
    assert made(wider).counts["kx"].values[0] == -16.5
    other = poisson(SHAPE, seed=1)
    converted(store, calibrated(other), overwrite=True)
    np.testing.assert_array_equal(made(tdm.open(store)).counts, other)
    assert len(set(names)) == 4
    assert mine.is_dir()


def test_what_is_known_besides_the_axes_is_that_of_the_counts_not_of_the_kept_proxy(store, tmp_path):
    counts = tdm.open(store)
    pages(counts, tmp_path / "out", source=store)
    again = pages(counts.assign_attrs(semi_angle_mrad=7.0), tmp_path / "out", source=store)
    assert again.engine.semi_angle == 7.0
    assert len(kept(tmp_path / "out")) == 1


def test_a_damaged_proxy_is_made_anew(store, tmp_path):
    out = tmp_path / "out"
    counts = tdm.open(store)
    pages(counts, out, source=store)
    (name,) = kept(out)
    unreadable(out / name)
    np.testing.assert_array_equal(pages(counts, out, source=store).engine.counts, counts)
    assert kept(out) == [name]


def test_an_interrupted_reading_leaves_nothing_that_stands_in_the_way(store, tmp_path):
    out = tmp_path / "out"
    counts = tdm.open(store)

    class Interrupted(BaseException):
        pass

    whole = opening.proxy

    def interrupted(counts, *, path=None, **options):
        whole(counts, path=path, **options)
        note = path / "zarr.json"
        note.write_text(note.read_text("utf-8").replace('"complete"', '"writing"'), encoding="utf-8")
        raise Interrupted

    with mock.patch.object(opening, "proxy", interrupted), pytest.raises(Interrupted):
        pages(counts, out, source=store)
    (name,) = kept(out)
    found = []

    def goes_on(counts, *, path=None, **options):
        if path is not None:
            found.append((path.name, path.is_dir()))
        return whole(counts, path=path, **options)

    with mock.patch.object(opening, "proxy", goes_on):
        np.testing.assert_array_equal(pages(counts, out, source=store).engine.counts, counts)
    assert found == [(name, True)]  # with what was written before, which a conversion takes up
    assert kept(out) == [name]


def test_changed_counts_and_counts_in_memory_are_viewed_and_nothing_is_kept(store, tmp_path):
    counts = tdm.open(store)
    for given in (counts + 1, counts.compute(), calibrated(poisson(SHAPE)).chunk(y=4)):
        assert opening._store_of(given) is None
        made = pages(given, tmp_path / "out")
        np.testing.assert_array_equal(made.engine.counts, given)
    assert not (tmp_path / "out").exists()


def test_the_store_of_counts_is_known_while_they_are_its_own(store):
    counts = tdm.open(store)
    assert opening._store_of(counts) == store
    assert opening._store_of(counts.assign_attrs(semi_angle_mrad=7.0)) is None
    assert opening._store_of(counts[:4]) is None


@pytest.mark.parametrize("view", ["view", "view_store"])
def test_what_cannot_be_viewed_is_said_in_a_sentence(view, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "View", mock.Mock(side_effect=AssertionError("it is served")))
    monkeypatch.setattr("tdm_dask.viewer.server.serve", mock.Mock(side_effect=AssertionError("it is served")))
    function = getattr(opening, view)
    plain = tmp_path / "plain.zarr"
    converted(plain, poisson(SHAPE))
    (tmp_path / "scan.raw").write_bytes(b"1234")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.toml").write_text("[source]\npath = 'scan.zarr'\n[masks]\n", encoding="utf-8")
    for path, options, error, said in (
        (plain, {}, CalibrationError, "plain.zarr is not calibrated.*calibrate it with"),
        (tmp_path / "none.zarr", {}, SourceError, r"none\.zarr does not exist"),
        (tmp_path / "scan.raw", {}, InputError, "no store; convert the file with tdm convert first"),
        (tmp_path / "folder", {}, InputError, "folder is no store"),
        (store, {"out": "s3://bucket/out"}, InputError, "cannot save to s3://bucket/out"),
        (store, {"out": tmp_path / "scan.raw"}, InputError, r"scan\.raw is a file; give a folder"),
        (store, {"bin": 0}, InputError, "bin=0 was given"),
        (store, {"proxy_memory": 10}, InputError, "Not even one number"),
        (store, {"recipe": tmp_path / "a.toml"}, RecipeError, "asks for no image"),
        (store, {"recipe": tmp_path / "b.toml"}, RecipeError, "cannot be read"),
    ):
        with pytest.raises(error, match=said) as caught:
            function(path, **{"out": tmp_path / "out", **options})
        assert "\n" not in str(caught.value)


def test_a_recipe_is_taken_up_on_the_scan_that_is_there(store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    outside = {"Li": np.array([[1.0, 1.0], [90.0, 1.0]])}
    left = Choices(sites=outside, scan_region=(2, 90, 0, 13), rest={"": {"title": "Lithium"}})
    (out / "recipe.toml").write_text(left.toml(store), encoding="utf-8")
    with tdm.view(store, out=out) as view:
        found = view.choices
    assert found.scan_region == (2, 12, 0, 13)
    assert found.same_sites(left)
    assert found.rest == left.rest
    assert list(found.detectors) == ["ABF", "BF", "ADF"]  # a recipe without any has those of the page
    gone = left.with_(scan_region=(40, 90, 0, 13))
    (out / "recipe.toml").write_text(gone.toml(store), encoding="utf-8")
    with pytest.raises(InputError, match="scan_region y is"):
        tdm.view(store, out=out)


def test_the_recipes_calibration_is_that_of_the_page(store, tmp_path):
    left = Choices(sites=SITES, rest={"calibration": {"scan_step": "0.5 Å", "descan": False}})
    (tmp_path / "a.toml").write_text(left.toml(store), encoding="utf-8")
    for given in (store, tdm.open(store)):
        with tdm.view(given, out=tmp_path / "out", recipe=tmp_path / "a.toml") as view:
            assert float(view._pages.engine.counts["y"][1]) == pytest.approx(0.5)
            assert view.recipe["calibration"] == left.rest["calibration"]


def test_a_view_knows_its_recipe_and_ends(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tdm.view(tdm.open(store)) as view:
        assert view.recipe["source"] == {"path": str(store)}
        assert view.choices.recipe(store) == view.recipe
        assert re.fullmatch(r"View\(http://127\.0\.0\.1:\d+/\?token=[\w-]+\)", repr(view))
        assert (tmp_path / "scan-view").is_dir()
        port = view._address.port
        view._pages._remember(view.choices.with_(sites=SITES))
        assert view.recipe["templates"]["sites"] == {"Li": SITES["Li"].tolist()}
    with tdm.view(calibrated(poisson(SHAPE)), port=port) as view:  # the port is free again
        assert view._address.port == port
        with pytest.raises(InputError, match="not those of a store as they are"):
            _ = view.recipe
    view.close()
    assert not view._thread.is_alive()


@pytest.mark.long
def test_a_cell_that_runs_again_has_one_page_and_one_proxy(store, tmp_path):
    first = tdm.view(store, out=tmp_path / "out")
    held = weakref.ref(first._pages.engine)
    first._pages._remember(first.choices.with_(sites=SITES))
    with tdm.view(store, out=tmp_path / "out") as second, tdm.view(store, out=tmp_path / "other"):
        assert not first._thread.is_alive()
        assert second._thread.is_alive()
        gc.collect()
        assert held() is None
        assert first.choices.same_sites(Choices(sites=SITES))  # though the view is kept, as notebooks keep them
    first.close()


# In a notebook


@contextlib.contextmanager
def notebook(*parts):
    """The address of a page on a port of its own that has in it what notebooks show of objects."""
    content = "<!doctype html><meta charset='utf-8'><link rel='icon' href='data:,'>" + "".join(parts)

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.long
def test_a_page_of_this_machine_has_the_view_in_it_and_one_of_another_site_has_not(tmp_path, monkeypatch):
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    with (
        tdm.view(calibrated(poisson(SHAPE)), out=tmp_path) as view,
        notebook(view._repr_html_()) as port,
        browser.chromium() as chromium,
    ):
        for host in ("localhost", "127.0.0.1"):
            with browser.visit(f"http://{host}:{port}/", browser=chromium) as seen:
                frame = seen.page.frame_locator("iframe")
                frame.get_by_text("Find columns").wait_for()
                assert seen.page.get_by_text("Open the page").get_attribute("href").startswith(f"http://{host}:")
                assert (seen.console, seen.errors) == ([], [])  # but the answer that says it is there is not read
        # Another site that has come to know the link: it shows nothing, in its frame and with a name of its own.
        stranger = f'<iframe src="{view.link}"></iframe>'
        with notebook(stranger) as other, browser.visit(None, browser=chromium) as seen:
            seen.page.route("http://evil.example.org/", lambda route: route.fulfill(body=stranger))
            for address in ("http://evil.example.org/", f"http://localhost:{other}/"):
                seen.page.goto(address)
                seen.page.wait_for_timeout(500)
                assert "Find columns" not in "".join(frame.content() for frame in seen.page.frames)


@pytest.mark.long
@pytest.mark.parametrize("where", ["the notebook's settings", "an older notebook", "the hub's variable"])
def test_behind_a_proxy_the_view_is_at_its_address(tmp_path, monkeypatch, where):
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    around = '<script id="jupyter-config-data" type="application/json">{"baseUrl": "/user/me/"}</script>'
    if where == "an older notebook":
        around = "<body data-base-url='/user/me/'>"
    elif where == "the hub's variable":
        monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
        around = ""
    with tdm.view(calibrated(poisson(SHAPE)), out=tmp_path) as view:
        shown, port = view._repr_html_(), view._address.port
    # The port of the page cannot be reached from where the browser is.
    with notebook(around, shown) as here, browser.visit(f"http://localhost:{here}/") as seen:
        seen.page.wait_for_function("document.querySelector('iframe').src")
        expected = f"http://localhost:{here}/user/me/proxy/{port}/?token={view._address.token}"
        assert seen.page.locator("iframe").get_attribute("src") == expected
        assert seen.page.get_by_text("Open the page").get_attribute("href") == expected
