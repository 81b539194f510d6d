"""Progress bars: what they count, and what they leave in a terminal, a notebook and a log."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import threading

import dask
import numpy as np
import pytest
from notebooks import executed, of_cells
from signals_for_tests import register

import tdm_dask as tdm
from tdm_dask.cluster import progress
from tdm_dask.cluster.progress import ProgressBars, progress_bar, silent

ROOTS = [dask.delayed(np.sqrt)(value) for value in range(7)]


@pytest.fixture
def bars(monkeypatch):
    """The bars that are drawn, kept."""
    kept = []

    class Kept(progress._Bar):
        def __init__(self, *facts):
            super().__init__(*facts)
            kept.append(self)

    monkeypatch.setattr(progress, "_Bar", Kept)
    return kept


# What is counted


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_a_bar_counts_the_tasks_of_every_graph_of_a_local_scheduler(scheduler, bars):
    with ProgressBars(enabled=True) as shown, shown.stage("roots", nbytes=700):
        dask.compute(*ROOTS, scheduler=scheduler, num_workers=1)
        assert bars[0].share == 1
        done = bars[0].local[0]
        assert done >= 7
        dask.compute(*ROOTS[:3], scheduler=scheduler, num_workers=1)
        assert bars[0].local == (done + 3, done + 3)
    assert shown.finished == ["roots"]


def test_a_bar_counts_the_tasks_of_a_cluster_that_is_there_and_of_one_that_comes(bars):
    from distributed import Client

    def client():
        return Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")

    with client():
        dask.compute(*ROOTS)
        with ProgressBars(enabled=True).stage("there"):
            dask.compute(*[dask.delayed(np.sqrt)(value) for value in range(20, 25)])
            # Tasks of other schedulers come on top.
            dask.compute(*ROOTS, scheduler="synchronous")
    assert bars[0].cluster[0] == bars[0].cluster[1] == 5
    assert bars[0].local[0] == bars[0].local[1] == 7
    with ProgressBars(enabled=True).stage("comes"), client():
        dask.compute(*ROOTS)
        with ProgressBars(enabled=True).stage("inner"):
            pass
        # Looked at once more when the block ends, or while it runs.
        while bars[1].cluster[0] < 7:
            threading.Event().wait(0.01)
    assert [bar.name for bar in bars] == ["there", "comes"]
    assert bars[1].cluster == (7, 7)


def test_a_cluster_that_does_not_answer_leaves_the_computation_alone(monkeypatch, capsys):
    class Gone:
        id = "gone"
        asked = 0

        def run_on_scheduler(self, function):
            self.asked += 1
            if self.asked > 1:
                raise RuntimeError("The connection is gone.")
            return 0, 0

    gone = Gone()
    monkeypatch.setattr(progress, "active_client", lambda: gone)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.001)
    with ProgressBars(enabled=True).stage("roots"):
        assert dask.compute(*ROOTS, scheduler="synchronous")[4] == 2
        while gone.asked < 4:
            threading.Event().wait(0.001)
    assert capsys.readouterr().err.count("\n") == 1


def test_everything_that_is_called_a_stage_takes_the_same():
    stages = (silent, progress_bar, ProgressBars(enabled=False).stage)
    for stage in stages:
        with stage("name", 10, kept=False):
            pass
        assert list(inspect.signature(stage).parameters) == ["name", "nbytes", "kept"]


# A log


def test_nothing_is_written_where_nobody_looks(capsys):
    with progress_bar("roots"):
        dask.compute(*ROOTS, scheduler="synchronous")
    assert capsys.readouterr() == ("", "")


def test_a_log_that_asks_for_bars_has_a_line_for_each_stage(capsys):
    with ProgressBars(enabled=True) as bars:
        with bars.stage("first"), bars.stage("inside"):
            dask.compute(*ROOTS, scheduler="synchronous")
        with pytest.raises(ZeroDivisionError), bars.stage("second"):
            raise ZeroDivisionError
        with bars.stage("third", kept=False):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["first", "second: stopped", "third"]
    assert "100 %" in lines[0]
    assert "%" not in lines[1]
    assert bars.finished == ["inside", "first"]


def test_hyperspy_shows_the_same_bars(monkeypatch, bars):
    import hyperspy.api as hs

    register()
    rng = np.random.default_rng(3)
    signal = hs.signals.Signal2D(rng.poisson(4, (5, 6, 7, 8)).astype(np.uint16)).as_lazy()
    monkeypatch.setattr(progress, "_is_terminal", lambda stream: True)
    tdm.hyperspy.apply_mask(signal, np.ones((7, 8)), lazy_output=False)
    mask = tdm.hyperspy.derive_mask(signal, rng.normal(size=(5, 6)))
    mask.compute()
    monkeypatch.setattr(hs.preferences.General, "show_progressbar", False)
    tdm.hyperspy.apply_mask(signal, np.ones((7, 8)), lazy_output=False)
    tdm.hyperspy.derive_mask(signal, rng.normal(size=(5, 6))).compute(show_progressbar=True)
    tdm.hyperspy.derive_mask(signal, rng.normal(size=(5, 6))).compute()
    assert [bar.name for bar in bars] == ["apply_mask", "mask", "mask"]
    assert all(bar.local[0] == bar.local[1] >= 1 for bar in bars)


# A terminal


def screen_of(script, columns=80, keys=None):
    """What a terminal shows when a script is done, line by line; `keys` are typed when it prints "waiting"."""
    pyte = pytest.importorskip("pyte")
    import fcntl
    import pty
    import struct
    import termios

    shown = pyte.Screen(columns, 40)
    stream = pyte.ByteStream(shown)
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    usual = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}

    def own_the_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background ignore it

    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=there,
        stdout=there,
        stderr=there,
        env=usual | {"TERM": "xterm-256color"},
        preexec_fn=own_the_terminal,
    )
    os.close(there)
    said = b""
    while True:
        try:
            piece = os.read(here, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        stream.feed(piece)
        said += piece
        if keys is not None and b"waiting" in said:
            os.write(here, keys)
            keys = None
    child.wait()
    os.close(here)
    assert not shown.cursor.hidden
    return [line.rstrip() for line in shown.display if line.strip()]


SCRIPT = """
import threading, time
import dask, numpy as np
import tdm_dask as tdm
from tdm_dask.cluster.progress import ProgressBars, progress_bar
roots = [dask.delayed(np.sqrt)(value) for value in range(7)]
"""


@pytest.mark.long
@pytest.mark.parametrize("columns", [80, 50])
def test_a_terminal_keeps_a_line_for_each_stage_below_what_is_printed(columns):
    lines = screen_of(
        SCRIPT
        + """
with ProgressBars() as bars:
    with bars.stage("images", 10**6):
        print("in between")
        dask.compute(*roots, scheduler="threads")
    with bars.stage("a name so long that it does not fit beside its numbers"):
        dask.compute(*roots, scheduler="synchronous")
with progress_bar("[bold]"):
    dask.compute(*roots, scheduler="synchronous")
print("end")
""",
        columns,
    )
    # The line that was printed stands above the bars that were there; names are cut, numbers are not.
    assert lines[0] == "in between"
    assert [line[:6] for line in lines[1:]] == ["images", "a name", "[bold]", "end"]
    assert all(re.search(r" 100 % 0:00:\d\d +[\d.]+ ([MG]B|tasks)/s$", line) for line in lines[1:4])
    assert "…" in lines[2]


@pytest.mark.long
@pytest.mark.parametrize("end", ["1 / 0", 'print("waiting"); threading.Event().wait()'])
def test_an_error_and_ctrl_c_leave_a_clean_line(end):
    script = f"""
try:
    with progress_bar("images"):
        dask.compute(*roots, scheduler="threads")
        {end}
except (KeyboardInterrupt, ZeroDivisionError) as error:
    print(type(error).__name__)
"""
    lines = screen_of(SCRIPT + script, keys=b"\x03" if "waiting" in end else None)
    lines = [line for line in lines if line not in ("waiting", "^C")]
    assert len(lines) == 2
    assert re.match(r"images: stopped .* 100 % 0:00:\d\d", lines[0])
    assert lines[1] in ("KeyboardInterrupt", "ZeroDivisionError")


@pytest.mark.long
def test_a_cluster_shows_one_line_in_a_terminal_and_its_workers_none(tmp_path):
    script = f"""
if __name__ == "__main__":
    from distributed import Client
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory={str(tmp_path)!r}):
        with progress_bar("images"):
            dask.compute(*roots)
"""
    lines = screen_of(SCRIPT + script)
    assert len(lines) == 1
    assert re.match(r"images .* 100 % 0:0", lines[0])


# A notebook


@pytest.mark.long
def test_a_notebook_keeps_one_line_for_each_bar(tmp_path):
    setup = SCRIPT + "from distributed import Client"
    cells = [
        setup,
        'with progress_bar("images", 10**6):\n    dask.compute(*roots, scheduler="threads")\n    time.sleep(0.7)',
        'with progress_bar("<images>"):\n    raise KeyboardInterrupt',
        'with ProgressBars() as bars, bars.stage("first"):\n    dask.compute(roots)\nwith bars.stage("second"):\n    0',
        f'client = Client(n_workers=1, dashboard_address=":0", local_directory={str(tmp_path)!r})',
        'with progress_bar("cluster"):\n    dask.compute(*roots)\n    time.sleep(0.7)\nclient.close()',
    ]
    notebook = executed(of_cells(*cells, may_fail=True), tmp_path)
    texts = [[output.data["text/plain"] for output in cell.outputs if "data" in output] for cell in notebook.cells]
    kinds = [[output.output_type for output in cell.outputs] for cell in notebook.cells]
    assert kinds == [[], ["display_data"], ["display_data", "error"], ["display_data"] * 2, [], ["display_data"]]
    assert re.fullmatch(r"images  100 %  0:00:0\d  [\d.]+ MB/s", texts[1][0])
    assert re.fullmatch(r"<images>: stopped  0:00:0\d", texts[2][0])
    assert [text.split("  ")[:2] for text in texts[3]] == [["first", "100 %"], ["second", "100 %"]]
    assert texts[5][0].startswith("cluster  100 %")
    page = notebook.cells[2].outputs[0].data["text/html"]
    assert "&lt;images&gt;: stopped" in page
    assert "<images>" not in page


def test_public_functions_that_take_long_count_their_tasks(bars, monkeypatch, tmp_path):
    """Conversion, verification, masks, images, proxies and evidence: each is seen by the bar around it."""
    monkeypatch.setattr(progress, "_is_terminal", lambda stream: True)
    rng = np.random.default_rng(5)
    ky, kx = np.ogrid[:16, :16]
    disk = (ky - 8) ** 2 + (kx - 8) ** 2 <= 25
    counts = tdm.label_counts(rng.poisson(20 * disk + np.zeros((16, 16, 1, 1))).astype(np.uint16))
    steps = {
        "convert": lambda: tdm.convert(counts, tmp_path / "scan.zarr", scan_step=0.25),
        "calibrate": lambda: tdm.calibrate(steps["made"], semi_angle=20),
        "verify": lambda: tdm.verify(tmp_path / "scan.zarr"),
        "proxy": lambda: tdm.proxy(steps["calibrated"], detector_region=tdm.disk(steps["calibrated"], 20)),
        "correlate": lambda: tdm.correlate(steps["calibrated"], steps["template"]).compute(),
        "apply": lambda: tdm.apply_mask(steps["calibrated"], tdm.disk(steps["calibrated"], 20)).compute(),
        "evidence": lambda: tdm.evidence(steps["calibrated"], steps["sites"], (2.0, 2.0), sigma=0.3, draws=20),
    }
    names = list(steps)
    for name in names:
        with progress_bar(name):
            found = steps[name]()
        if name == "convert":
            steps["made"] = found
        if name == "calibrate":
            steps["calibrated"] = found
            steps["sites"] = {"A": [(0.5 + 2 * i, 0.5 + 2 * j) for i in range(2) for j in range(2)]}
            steps["template"] = tdm.gaussian_template(found, steps["sites"], sigma=0.3)
    # The mean pattern that a store has is enough to calibrate.
    assert {bar.name: bar.local[0] > 0 for bar in bars} == {name: name != "calibrate" for name in names}
    assert all(bar.local[0] == bar.local[1] for bar in bars)
