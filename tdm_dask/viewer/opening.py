"""Counts to look at: their proxy, kept for the next time, what was chosen before, and the page that is served."""

from __future__ import annotations

import ctypes
import html
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr
from dask.base import tokenize
from dask.utils import parse_bytes

from ..axes import DESCAN
from ..cluster.progress import Stage, progress_bar, silent
from ..counts.opening import open as open_counts
from ..detector.calibration import calibrate
from ..errors import DiskFullError, InputError, StoreError
from ..masks.proxies import proxy, proxy_bytes
from ..reading.blocks import Shards, ZarrArray
from ..reading.lazy import source_of
from ..reading.store import is_complete, is_store, stored_statistics
from ..recipe.recipe_file import errors_in_keys
from ..renamed import renamed
from .choices import Choices
from .engine import Engine, check_calibrated, fitting_bin
from .saving import RECIPE

MEMORY = "1 GiB"
PROXY, DIGITS = "proxy", 12
START_SECONDS = 60.0
# Of malloc.h.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
# The page in a notebook. It is at the host that the notebook is at, for cookies go to one site, if that is the machine
# which the page is served on; else, as on a hub or a cluster, where jupyter-server-proxy serves it. The link leads to
# the same place, and is all that stays where neither can be, or a notebook is not trusted to run scripts.
FRAME = """<div>
<iframe title="tdm view" style="width: 100%; height: {height}px; border: 0"></iframe>
<p><a href="{link}" target="_blank" rel="noopener">Open the page in a tab of its own</a></p>
<script>
(async (part, asked) => {{
  const [frame, link] = [part.querySelector("iframe"), part.querySelector("a")];
  const said = document.getElementById("jupyter-config-data");
  const base = (said && JSON.parse(said.textContent).baseUrl) || document.body.dataset.baseUrl || asked.base;
  const direct = `http://${{location.hostname}}:${{asked.port}}/`;
  const proxied = base && new URL(`${{base.replace(/\\/$/, "")}}/proxy/${{asked.port}}/`, location.href).href;
  const local = location.protocol === "http:" && ["localhost", "127.0.0.1"].includes(location.hostname);
  const there = local && await fetch(direct + asked.query, {{mode: "no-cors"}}).then(() => true, () => false);
  const place = there || !proxied ? local && direct : proxied;
  if (!place) return frame.remove();
  frame.src = link.href = place + asked.query;
}})(document.currentScript.parentElement, {asked})
</script>
</div>"""


def view_store(
    store: str | Path,
    *,
    out: str | Path,
    recipe: str | Path | None = None,
    bin: int | None = None,
    proxy_memory: int | str | None = None,
    port: int | None = None,
    origins: Iterable[str] = (),
    browser: bool = False,
    stage: Stage = silent,
) -> None:
    """Serve the page of a store until Ctrl-C: what `tdm view` does.

    Parameters
    ----------
    store : path or address
    out : path
        Folder for the proxy, the recipe, figures and results. What a recipe there says is where the page begins.
    recipe : path, optional
        A recipe to begin with instead.
    bin : int, optional
        Detector pixels to sum along each axis. Default: the least for which the counts fit into `proxy_memory`.
    proxy_memory : int or str, default "1 GiB"
        Bytes for the counts of the page.
    port, origins, browser
        As for :func:`tdm_dask.viewer.server.serve`.
    stage : callable, optional
        A :data:`tdm_dask.cluster.progress.Stage`.

    Raises
    ------
    InputError
        If there is no such store, it is not calibrated, or the recipe is wrong.
    """
    from .server import serve

    _give_memory_back()
    folder = _local_folder(out)
    opened = _opened(store)
    given = recipe or (folder / RECIPE if (folder / RECIPE).is_file() else None)
    choices = None if given is None else Choices.from_recipe(given)
    counts = _calibrated(opened, choices, store)
    pages = _Pages(counts, choices, source=_absolute(store), out=folder, bin=bin, memory=proxy_memory, stage=stage)
    try:
        serve(pages.make, port=port, origins=origins, browser=browser, title=f"{pages.title} - tdm view")
    finally:
        _end_job(folder)


@renamed(memory="proxy_memory")
def view(
    counts: xr.DataArray | str | Path,
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    bin: int | None = None,
    proxy_memory: int | str | None = None,
    port: int | None = None,
    height: int = 1250,
) -> View:
    """A page to choose columns on and to see their masks and images, beside the cells of a notebook.

    The same page as that of `tdm view`, served by a thread of this process, on this machine alone. Needs the extra
    ``view``: ``pip install "tdm-dask[view]"``.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx), or path
        Calibrated in angstrom and mrad; a path is that of a store. **This reads once**, to make a `proxy` of the whole
        detector in memory.
    out : path, optional
        Folder for what the page saves. Default: "view" here, or "NAME-view" for a store NAME.zarr. The proxy of a
        store is kept there and taken up the next time; a recipe there says where the page begins. An earlier view
        with the same folder is closed.
    recipe : path, optional
        A recipe to begin with instead.
    bin : int, optional
        Detector pixels to sum along each axis. Default: the least for which the counts fit into `proxy_memory`.
    proxy_memory : int or str, default "1 GiB"
        Bytes for the counts of the page. Called `memory` before, which works in this release alone.
    port : int, optional
        Of the page. Default: the first that is free from 5006 on.
    height : int, default 1250
        Of the page in the notebook, in pixels.

    Returns
    -------
    View
        Shows itself in a notebook; `link` opens it elsewhere. `choices`, `recipe` and `close` are its other uses. Where
        it is open twice, both are of their own, and these are of what was changed last.

    Raises
    ------
    InputError
        If the counts are not calibrated, or the recipe is wrong.
    MemoryLimitError
        As `proxy` raises.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> steps = {d: axis_coordinate(d, 24, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> steps |= {d: axis_coordinate(d, 8, 2.0, -7.0, "mrad") for d in ("ky", "kx")}
    >>> counts = label_counts(np.random.default_rng(0).poisson(5, (24, 24, 8, 8)).astype(np.uint8), steps)
    >>> with tempfile.TemporaryDirectory() as folder, view(counts, out=folder) as page:
    ...     page.link.startswith("http://127.0.0.1:"), page.choices.method
    (True, 'pearson')
    """
    path = counts if isinstance(counts, str | Path) else None
    opened = _opened(counts) if isinstance(counts, str | Path) else counts
    place = path or _store_of(opened)
    folder = _local_folder(out or (f"{Path(str(place).rstrip('/')).stem}-view" if place is not None else "view"))
    given = recipe or (folder / RECIPE if (folder / RECIPE).is_file() else None)
    choices = None if given is None else Choices.from_recipe(given)
    if place is not None:
        opened = _calibrated(opened, choices, place)
    source = None if place is None else _absolute(place)
    if folder in _views:
        _views[folder].close()
    pages = _Pages(opened, choices, source=source, out=folder, bin=bin, memory=proxy_memory, stage=progress_bar)
    _views[folder] = made = View(pages, port, height)
    return made


# One for a folder: a cell that runs again shows another page, and the one before holds its counts no longer.
_views: dict[Path, View] = {}


def _end_job(folder: Path) -> None:
    from .run_panel import end_job

    end_job(folder)


class View:
    """A page that a thread of this process serves; `view` makes it.

    Attributes
    ----------
    link : str
        Opens the page; with the token that it asks for.
    """

    def __init__(self, pages: _Pages, port: int | None, height: int) -> None:
        from .server import serve

        self._pages, self._height = pages, height
        self._stop, started = threading.Event(), threading.Event()
        failed: list[BaseException] = []
        addresses: list[Any] = []

        def announce(address: Any) -> None:
            addresses.append(address)
            started.set()

        def run() -> None:
            try:
                serve(pages.make, port=port, announce=announce, stop=self._stop, title=f"{pages.title} - tdm view")
            except BaseException as error:
                failed.append(error)
                started.set()

        self._thread = threading.Thread(target=run, name="tdm-view-server", daemon=True)
        self._thread.start()
        started.wait(START_SECONDS)
        if failed:
            raise failed[0]
        if not addresses:
            self._stop.set()
            raise InputError(f"The page was not there after {START_SECONDS:g} s; try again when the machine does less.")
        self._address = addresses[0]
        self.link: str = self._address.link

    @property
    def choices(self) -> Choices:
        """What is chosen on the page now."""
        return self._pages.choices

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of what is chosen now, for `tdm_dask.run_recipe`."""
        source = self._pages.source
        if source is None:
            raise InputError("These counts are not those of a store as they are, and a recipe has to name one.")
        return self.choices.recipe(source)

    def close(self) -> None:
        """End the page, and what it runs on the full data."""
        self._stop.set()
        self._thread.join()
        if _views.get(self._pages.out) is self:
            del _views[self._pages.out], self._pages.engine
            _end_job(self._pages.out)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"View({self.link})"

    def _repr_html_(self) -> str:
        asked = {
            "port": self._address.port,
            "query": f"?token={self._address.token}",
            "base": os.environ.get("JUPYTERHUB_SERVICE_PREFIX"),
        }
        return FRAME.format(link=html.escape(self.link), height=self._height, asked=json.dumps(asked))


@dataclass
class _Pages:
    """Makes the page of every tab; all share the counts at hand, and a new one begins where the last one was left."""

    counts: xr.DataArray
    first: Choices | None
    source: str | Path | None
    out: Path
    bin: int | None
    memory: int | str | None
    stage: Stage
    title: str = field(init=False)
    engine: Engine = field(init=False)
    choices: Choices = field(init=False)

    def __post_init__(self) -> None:
        name = self.source if self.source is not None else self.counts.attrs.get("source", "counts")
        self.title = Path(str(name).rstrip("/")).name
        check_calibrated(self.counts, self.title)
        if self.bin is not None and self.bin < 1:
            raise InputError(f"bin={self.bin} was given; expected a whole number of at least 1.")
        size = self.bin or fitting_bin(self.counts, parse_bytes(self.memory or MEMORY))
        self.engine = Engine(self._proxy(size), size)
        self.choices = self.engine.first_choices() if self.first is None else self.engine.fitted(self.first)
        self._prepare()

    def _prepare(self) -> None:
        """What the first tab would wait for: the page's imports, compiled kernels, the image that it begins with."""
        from . import page as _page  # noqa: F401

        with suppress(InputError):  # the page says it
            self.engine.conventional(*next(iter(self.choices.detectors.values())))
            if self.choices.placed:
                self.engine.look(self.choices)

    def _proxy(self, size: int) -> xr.DataArray:
        """The counts in memory: as they are, from what an earlier page has kept, or read now."""
        if self.source is None or source_of(self.counts.data) is None:
            with self.stage("proxy", self.counts.nbytes):
                return proxy(self.counts, bin=size)
        kept = self.out / f"{PROXY}-{tokenize(self.counts.data, self.counts.coords.to_dataset(), size)[:DIGITS]}.zarr"
        if kept.is_dir() and is_complete(kept):
            with suppress(StoreError):
                return self._loaded(kept, size)
            shutil.rmtree(kept)  # damaged: it is made anew
        self.out.mkdir(parents=True, exist_ok=True)
        for old in self.out.glob(f"{PROXY}-{'[0-9a-f]' * DIGITS}.zarr"):  # no other one, which may be the user's
            if old != kept:
                shutil.rmtree(old)
        with self.stage("proxy", self.counts.nbytes):
            try:
                proxy(self.counts, bin=size, path=kept)  # what was stopped goes on where it was
            except DiskFullError:
                raise
            except StoreError:
                shutil.rmtree(kept)
                proxy(self.counts, bin=size, path=kept)
        return self._loaded(kept, size)

    def _loaded(self, kept: Path, size: int) -> xr.DataArray:
        with self.stage("load", proxy_bytes(self.counts, size)):
            small = proxy(open_counts(kept))
        # What is known of the counts besides their axes may have changed since.
        small.attrs = dict(self.counts.attrs)
        return small

    def make(self) -> Any:
        """The page of a new tab."""
        import panel as pn

        from .page import Page

        asked = [value.decode() for value in pn.state.session_args.get("theme", [])]
        page = Page(
            self.engine,
            self.choices,
            source=self.source,
            out=self.out,
            remember=self._remember,
            title=self.title,
            theme="dark" if asked == ["dark"] else "light",
        )
        return page.panel()

    def _remember(self, choices: Choices) -> None:
        self.choices = choices


def _give_memory_back() -> None:
    """Have glibc give freed arrays back to the system at once, in this process that lasts for hours.

    It otherwise takes ever larger ones from heaps of its own, one for each thread, which only grow.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for parameter, value in ((M_MMAP_THRESHOLD, 2**20), (M_ARENA_MAX, 2)):
                mallopt(parameter, value)


def _local_folder(out: str | Path) -> Path:
    if "://" in str(out):
        raise InputError(f"The page cannot save to {out}; give a folder of this machine.")
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for what the page saves.")
    return folder


def _opened(store: str | Path) -> xr.DataArray:
    if Path(store).exists() and not is_store(store):
        raise InputError(f"{store} is no store; convert the file with tdm convert first, and view what that writes.")
    return open_counts(store)


def _absolute(place: str | Path) -> str | Path:
    return place if "://" in str(place) else Path(place).absolute()


def _calibrated(counts: xr.DataArray, choices: Choices | None, store: str | Path) -> xr.DataArray:
    """The counts as the recipe calibrates them; descan that it would measure first is not measured here."""
    known = dict(choices.rest.get("calibration", {})) if choices is not None else {}
    if known.pop("descan", None) is False:
        counts = counts.drop_vars(DESCAN, errors="ignore")
    if not known:
        return counts
    statistics = stored_statistics(store)
    pattern = None if statistics is None else statistics["pattern_mean"].values
    with errors_in_keys(store):
        return calibrate(counts, **known, pacbed=pattern)


def _store_of(counts: xr.DataArray) -> Path | None:
    """The local store whose counts these are, as they are there; None where there is none, or they were changed."""
    source = source_of(counts.data)
    if not isinstance(source, Shards | ZarrArray):
        return None
    with suppress(Exception):
        root = getattr(getattr(source.array, "store", None), "root", None)
        if root is not None:
            stored = open_counts(root)
            # Names of the same array first: to compare other ones would read them.
            if stored.data.name == counts.data.name and stored.identical(counts):
                return Path(root)
    return None
