"""Peak memory of converting a large file with two workers, format by format."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import large_arrays  # noqa: F401  (enters its formats)
from .contestant import Answer, Contestant
from .data import Pair, Scan
from .large_files import FORMATS, LargeFile, Place
from .tables import table
from .workers import Worker, WorkerFailed, process_tree, status_bytes

# What the peak memory of a conversion has to stay below.
WANTED = 1e9
# Scan and detector; of 16-bit counts, 17 GB.
SIZES: dict[str, tuple[Pair, Pair]] = {"full": ((256, 512), (256, 256)), "small": ((16, 64), (64, 64))}
# Formats that are converted by two processes as well.
BY_PROCESSES = ("merlin", "dectris")
WORKERS = 2
# Seconds between looks at the memory, and those that a conversion may take.
PERIOD, PATIENCE = 0.02, 3600

NOTES = (
    "Peak MB is the largest resident memory of the process (VmHWM), imported libraries and pages of mapped files "
    "included; of two processes, both and their sum (which counts the libraries' shared pages twice), and the client "
    "is apart. Private MB is the part of it that no file backs (RssAnon, sampled), which alone the system cannot take "
    'back when memory is short. "Above imports" is the peak of all processes less what they held when everything was '
    "imported. File read is the bytes of read calls, less those of reading the store back, over the size of the "
    "source; mapped files do not count there."
)


@dataclass
class ConvertFile(Contestant):
    """A large file into a store, with two threads or two worker processes.

    Parameters
    ----------
    options : dict
        For `tdm.convert`.
    processes : bool
        Whether processes of one thread each do the work.
    """

    cores: int = WORKERS
    options: dict[str, Any] = field(default_factory=dict)
    processes: bool = False

    library: ClassVar[str] = "tdm_dask"

    def prepare(self) -> None:
        import dask

        _import()
        dask.config.set(scheduler="threads", num_workers=WORKERS)
        if self.processes:
            from distributed import Client, LocalCluster

            cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
            self._client = Client(cluster)
            self._client.run(_import)

    def load(self) -> None:
        self.store = self.scan.path.parent.with_suffix(".converted")

    def run(self) -> Answer:
        import zarr

        import tdm_dask as tdm

        tdm.convert(self.scan.path, self.store, **self.options)
        total = zarr.open_array(self.store / "total_counts", mode="r")[...].sum(dtype=np.float64)
        return {"total": total, "stored_bytes": np.array(_size(self.store / "counts"))}

    def tidy(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)


def _import() -> None:
    """Everything that a conversion needs, but the readers of formats."""
    import h5py  # noqa: F401
    import hdf5plugin  # noqa: F401

    import tdm_dask as tdm

    tdm.convert  # noqa: B018  (names are imported on first use)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@dataclass(frozen=True)
class Peaks:
    """The largest memory of a process.

    Parameters
    ----------
    resident : int
        Bytes, pages of mapped files included; the kernel's own record.
    private : int
        Bytes that no file backs, as far as was seen.
    """

    resident: int
    private: int


@dataclass
class Measured:
    """One conversion.

    Parameters
    ----------
    name : str
    file : LargeFile
    processes : bool
    seconds : float
    above_imports : int
        Bytes of all processes.
    read : float
        Bytes that were read over those of the file.
    client : Peaks or None
        The process that started the workers.
    workers : list of Peaks
    problem : str
        What went wrong, if anything did.
    """

    name: str
    processes: bool
    counts_bytes: int
    seconds: float = 0.0
    above_imports: int = 0
    read: float = 0.0
    client: Peaks | None = None
    workers: list[Peaks] = field(default_factory=list)
    problem: str = ""

    @property
    def peak(self) -> int:
        """Bytes of the workers together."""
        return sum(peaks.resident for peaks in self.workers)


def measure_all(names: Sequence[str], folder: Path, scale: str, say: Callable[[str], None]) -> list[Measured]:
    """Make, convert and remove one file after the other.

    Parameters
    ----------
    names : sequence of str
        Of `FORMATS`.
    folder : path
        Where files are made: up to 17 GB of them, and stores.
    scale : {"full", "small"}
    say : callable
        Told what comes next.
    """
    found = []
    for name in names:
        place = Place(folder / name, *SIZES[scale])
        for old in (place.folder, place.folder.with_suffix(".converted")):
            shutil.rmtree(old, ignore_errors=True)
        place.folder.mkdir(parents=True)
        say(f"{name}: making the file")
        try:
            file = FORMATS[name](place)
            for processes in (False, True) if name in BY_PROCESSES else (False,):
                say(f"{name}: converting, {WORKERS} {'processes' if processes else 'threads'}")
                found.append(_measure(name, place, file, processes))
                say(f"{name}: {_words(found[-1])}")
        finally:
            shutil.rmtree(place.folder)
    return found


def _measure(name: str, place: Place, file: LargeFile, processes: bool) -> Measured:
    measured = Measured(name, processes, file.nbytes)
    scan = Scan(file.path, place.scan, place.detector)
    contestant = ConvertFile(name, scan, options=file.options, processes=processes)
    answer = place.folder.with_suffix(".npz")
    try:
        with closing(Worker(contestant, place.folder.with_suffix(".log"), PATIENCE)) as worker:
            with _watching(worker.pid) as private:
                run = worker.run(answer)
            peaks = {pid: Peaks(status_bytes(pid, "VmHWM"), most) for pid, most in private.items()}
    except WorkerFailed as error:
        measured.problem = str(error)
        return measured
    finally:
        shutil.rmtree(place.folder.with_suffix(".converted"), ignore_errors=True)
    first = peaks.pop(worker.pid)
    # Helpers of multiprocessing are small; the workers are the largest.
    others = sorted(peaks.values(), key=lambda p: p.resident)[-WORKERS:]
    measured.client, measured.workers = (first, others) if processes else (None, [first])
    measured.seconds, measured.above_imports = run.seconds, run.peak_bytes
    with np.load(answer) as found:
        measured.read = (run.bytes_read - int(found["stored_bytes"])) / file.stored_bytes
        total = float(found["total"])
    if abs(total - file.total) > 1e-6 * file.total:
        measured.problem = f"its counts are {total:.0f} in total, but {file.total:.0f} were written"
    return measured


@contextmanager
def _watching(pid: int) -> Iterator[dict[int, int]]:
    """The largest private memory of a process and of all that it started, by process, while the block runs."""
    most = {process.pid: 0 for process in process_tree(pid)}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(PERIOD):
            for process in most:
                most[process] = max(most[process], status_bytes(process, "RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def rows(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """One row for each conversion, with every measured number."""
    return [
        {
            "format": m.name,
            "workers": f"{WORKERS} {'processes' if m.processes else 'threads'}",
            "counts_bytes": m.counts_bytes,
            "seconds": m.seconds,
            "file_read": m.read,
            "peak_bytes": [peaks.resident for peaks in m.workers],
            "private_bytes": [peaks.private for peaks in m.workers],
            "client_bytes": m.client.resident if m.client else None,
            "above_imports_bytes": m.above_imports,
            "wanted_bytes": WANTED,
            "met": not m.problem and m.peak < WANTED,
            "problem": m.problem,
        }
        for m in found
    ]


def report(about: dict[str, Any], found: Sequence[Measured]) -> str:
    """A Markdown table, and what it was measured with."""
    head = "format", "workers", "GB", "seconds", "file read", "private MB", "peak MB", "above imports", "wanted", "met"
    lines = [
        (
            row["format"],
            row["workers"],
            f"{row['counts_bytes'] / 1e9:.3g}",
            f"{row['seconds']:.0f}",
            f"{row['file_read']:.2f}",
            _each(row["private_bytes"]),
            _each(row["peak_bytes"]),
            f"{row['above_imports_bytes'] / 1e6:.0f}",
            f"under {WANTED / 1e6:.0f}",
            "yes" if row["met"] else f"**no**{': ' if row['problem'] else ''}{row['problem']}",
        )
        for row in rows(found)
    ]
    title = f"{about['date']}, {about['processor']}, {about['cores']} cores; `{about['command']}` ({about['scale']})"
    return "\n\n".join([title, table(head, lines), NOTES])


def _words(measured: Measured) -> str:
    if measured.problem:
        return measured.problem
    return f"{measured.peak / 1e6:.0f} MB, {measured.seconds:.0f} s, file read {measured.read:.2f} times"


def _each(values: Sequence[int]) -> str:
    megabytes = [f"{value / 1e6:.0f}" for value in values]
    return megabytes[0] if len(values) == 1 else f"{' + '.join(megabytes)} = {sum(values) / 1e6:.0f}"
