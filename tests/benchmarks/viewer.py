"""`python tests/benchmarks/viewer.py`: how soon the viewer's page follows a slider, in a real browser, and its memory.

A store of 256 x 256 probe positions and 256 x 256 detector pixels (8.6 GB of counts) is made and viewed by `tdm view`
in a process of its own; headless Chromium moves the sigma slider, and counts the time from each key that is pressed to
the frame in which the new image is drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = {"full": 256, "small": 64}
SEMI_ANGLE = "21.5 mrad"
KINDS, CELL = ("A", "B", "C", "D"), 6.0  # angstrom
WAIT = 60_000  # milliseconds

# Presses a key on the focused slider, and waits until the figure named "result" has painted another image.
FOLLOW = """async () => {
    const all = [...Bokeh.documents[0]._all_models.values()];
    const figure = all.find(model => model.name === "result");
    const source = figure.renderers.find(r => r.glyph && r.glyph.type === "Image").data_source;
    const before = source.data.image[0];
    window.__start = null; window.__took = null;
    addEventListener("keydown", () => { window.__start = performance.now() }, {capture: true, once: true});
    const changed = () => {
        if (source.data.image[0] === before || window.__start === null) return;
        source.properties.data.change.disconnect(changed);
        // After the frame in which Bokeh paints what has changed.
        const painted = () => { window.__took = performance.now() - window.__start };
        requestAnimationFrame(() => requestAnimationFrame(painted));
    };
    source.properties.data.change.connect(changed) }"""


def make_store(path: Path, size: int) -> None:
    """Detector-like counts, calibrated."""
    import dask.array as da

    import tdm_dask as tdm
    from benchmarks.data import DTYPE, INSIDE, OUTSIDE, SCAN_STEP, Counts
    from tdm_dask.reading.store import write_calibration

    source, tile = Counts((size, size), INSIDE, OUTSIDE), 32

    def block(block_id: tuple[int, ...]) -> np.ndarray:
        return source.patterns(tile * tile, seed=list(block_id)).reshape(tile, tile, size, size)

    chunks = ((tile,) * (size // tile), (tile,) * (size // tile), (size,), (size,))
    counts = tdm.label_counts(da.map_blocks(block, chunks=chunks, dtype=DTYPE, meta=np.empty((0,) * 4, DTYPE)))
    stored = tdm.convert(counts, path, scan_step=SCAN_STEP)
    write_calibration(path, tdm.calibrate(stored, semi_angle=SEMI_ANGLE))


def make_recipe(path: Path, store: Path, size: int) -> None:
    """Four kinds of column in a square cell."""
    from tdm_dask.viewer.choices import Choices

    rng, count = np.random.default_rng(0), int(size * 0.3 / CELL)
    corners = CELL * np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), -1).reshape(-1, 2)
    sites = {kind: corners + CELL * rng.random(2) for kind in KINDS}
    path.write_text(Choices(sites=sites, radius=22.0).toml(store), encoding="utf-8")


class Server:
    """`tdm view` in a process of its own."""

    def __init__(self, store: Path, recipe: Path, out: Path) -> None:
        command = [sys.executable, "-m", "tdm_dask", "view", store, "--recipe", recipe, "--out", out, "--no-open"]
        start = time.perf_counter()
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://\S+token=\S+", line):
                self.link, self.seconds = found.group(), time.perf_counter() - start
                return
        raise SystemExit("tdm view ended before it said where the page is.")

    def memory(self, what: str = "VmRSS") -> float:
        """Resident megabytes, now or (VmHWM) at most."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+) kB", text)
        assert found is not None
        return int(found.group(1)) / 1e3

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def measure(server: Server, changes: int, out: Path) -> dict[str, Any]:
    """Seconds until the first page and from slider to image by method, and the server's memory."""
    import browser

    found: dict[str, Any] = {"memory before a page": server.memory()}
    with browser.visit(None, width=1280, height=1000) as seen:
        page = seen.page
        start = time.perf_counter()
        page.goto(server.link)
        page.get_by_text("mask of A").wait_for(timeout=WAIT)
        page.wait_for_timeout(100)
        found["first page"] = time.perf_counter() - start - 0.1
        slider = page.get_by_role("slider").nth(4)
        for method in ("Pearson", "mean-scaled", "ridge"):
            page.get_by_role("button", name=method, exact=True).click()
            page.get_by_text(f"{method} mask of A").wait_for(timeout=WAIT)
            took = []
            for number in range(changes // 3):
                page.evaluate(FOLLOW)
                slider.focus()
                page.keyboard.press("ArrowRight" if number % 20 < 10 else "ArrowLeft")
                page.wait_for_function("window.__took !== null", timeout=WAIT)
                took.append(page.evaluate("window.__took") / 1e3)
                if number % 20 == 0:
                    found.setdefault("memory in between", []).append(server.memory())
            found[method] = took
        page.screenshot(path=str(out / "page.png"), full_page=True)
        found["troubles"] = seen.troubles() + seen.elsewhere()
    found["memory at most"] = server.memory("VmHWM")
    return found


def main() -> int:
    parser = argparse.ArgumentParser("python tests/benchmarks/viewer.py", description=__doc__)
    parser.add_argument("--scale", choices=SIZES, default="full", help="size of the store (default: full, 8.6 GB)")
    parser.add_argument("--changes", type=int, default=200, help="how often the slider is moved (default: 200)")
    parser.add_argument("--folder", type=Path, help="where the store is made and kept (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measured number there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tdm-viewer-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        size = SIZES[options.scale]
        store, recipe, out = folder / f"viewer-{size}.zarr", folder / "recipe.toml", folder / "out"
        if not store.exists():
            print(f"making {store.name}, {2 * size**4 / 1e9:.3g} GB of counts", file=sys.stderr)
            make_store(store, size)
        make_recipe(recipe, store, size)
        out.mkdir(exist_ok=True)
        kept = bool(list(out.glob("proxy-*.zarr")))
        first = Server(store, recipe, out)
        started = first.seconds
        first.close()
        server = Server(store, recipe, out)  # with the proxy that the first has kept
        try:
            found = measure(server, options.changes, out)
        finally:
            server.close()
        (proxy,) = out.glob("proxy-*.zarr")
        import tdm_dask as tdm

        counts = tdm.open(proxy)
        nbytes = tdm.proxy(counts).nbytes
        report(found, {"built": None if kept else started, "opened": server.seconds}, counts.shape, nbytes)
        if options.json is not None:
            options.json.write_text(json.dumps(found | {"proxy": nbytes, "shape": counts.shape}, indent=1))
    return 1 if found["troubles"] else 0


def report(found: dict[str, Any], seconds: dict[str, float | None], shape: tuple[int, ...], nbytes: int) -> None:
    """Print the table."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}; proxy {' x '.join(map(str, shape))}, {nbytes / 1e6:.0f} MB in memory")
    if seconds["built"] is not None:
        print(f"tdm view until the link, proxy built: {seconds['built']:.1f} s")
    print(f"tdm view until the link, proxy there: {seconds['opened']:.1f} s; first page: {found['first page']:.2f} s")
    print("from the key to the image, in s:")
    for method in ("Pearson", "mean-scaled", "ridge"):
        times = sorted(found[method])
        worst = times[-1 - len(times) // 20]
        print(f"  {method:12s} median {statistics.median(times):.3f}, 95 % within {worst:.3f}, {len(times)} changes")
    between = found["memory in between"]
    print(
        f"memory of the server: {found['memory before a page']:.0f} MB before a page, {between[0]:.0f} to "
        f"{max(between):.0f} MB through the changes ({between[-1]:.0f} at the end), at most "
        f"{found['memory at most']:.0f} MB; the proxy plus 500 MB is {nbytes / 1e6 + 500:.0f} MB"
    )
    for trouble in found["troubles"]:
        print(f"FAILED: {trouble}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
