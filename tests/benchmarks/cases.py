"""The cases: which contestants do which job on which data, and the figures that are wanted of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from . import figures, limits, ours, peers
from .contestant import Contestant
from .data import Data, Scan
from .figures import Figure
from .rounds import FIRST, SECOND

US = "tdm_dask"
LIBERTEM = "LiberTEM"
MANY = 64


@dataclass
class Case:
    """One job, and everyone who does it.

    Parameters
    ----------
    name, job : str
        For the command line, and in words.
    contestants : list of Contestant
        In the order in which they run; answers are compared with the first one's.
    figures : list of Figure
    limit : str, optional
        The contestant that shows what the hardware or the codec allow.
    new_processes : bool, default False
        Compare the first two calls of the only contestant, in a new process each time.
    """

    name: str
    job: str
    contestants: list[Contestant]
    figures: list[Figure]
    limit: str | None = None
    new_processes: bool = field(default=False, kw_only=True)

    @property
    def us(self) -> str:
        """The contestant that the others' times are divided by."""
        return FIRST if self.new_processes else self.contestants[0].name


def apply_memory(data: Data) -> Case:
    raw, limit = data.flat, "limit: memory read"
    return Case(
        "apply-memory",
        "five masks applied, data in memory",
        [
            ours.ApplyInMemory(US, raw),
            peers.LiberTEMImages(LIBERTEM, raw),
            peers.NumPyImages("NumPy, float32 matmul", raw),
            peers.Py4DSTEM("py4DSTEM", raw),
            peers.HyperSpy("HyperSpy, lazy", raw),
            limits.MemoryRead(limit, raw),
        ],
        [Figure("LiberTEM's time over ours", figures.time_ratio(LIBERTEM, US), 4, at_least=True)],
        limit,
    )


def raw_job(data: Data) -> Case:
    raw, dense, limit = data.flat, "NumPy, dense float32", "limit: raw read, twice"
    return Case(
        "raw-job",
        "five Pearson masks and five images, raw file in page cache",
        [
            ours.DeriveAndApply(US, raw),
            peers.LiberTEMJob(LIBERTEM, raw),
            peers.DenseNumPy(dense, raw),
            peers.H5pyJob("h5py and NumPy, in pieces", data.flat_hdf5),
            limits.RawRead(limit, raw),
        ],
        [
            Figure("LiberTEM's time over ours", figures.time_ratio(LIBERTEM, US), 5, at_least=True),
            Figure("dense NumPy's time over ours", figures.time_ratio(dense, US), 20, at_least=True),
            Figure("our memory over dense NumPy's", figures.memory_ratio(US, dense), 0.2),
        ],
        limit,
    )


def raw_job_two_cores(data: Data) -> Case:
    raw, one = data.flat, f"{US}, one core"
    executors = {f"{LIBERTEM}, {e}": e for e in ("inline", "threads", "dask", "delayed", "pipelined")}
    best = figures.time_ratio_of_fastest(list(executors), US)
    return Case(
        "raw-job-two-cores",
        "the same on two cores",
        [
            ours.DeriveAndApply(US, raw, cores=2),
            ours.DeriveAndApply(one, raw),
            *(peers.LiberTEMJob(name, raw, cores=2, executor=executor) for name, executor in executors.items()),
        ],
        [
            Figure("time of LiberTEM's best executor over ours", best, 7, at_least=True),
            Figure("our time on one core over that on two", figures.time_ratio(one, US), 1.7, at_least=True),
        ],
    )


def derive_store(data: Data) -> Case:
    store, limit = data.store, "limit: decode"
    return Case(
        "derive-store",
        "five Pearson masks from a store",
        [
            ours.Derive(US, store),
            peers.ZarrDerive("zarr and NumPy, by shards", store),
            limits.Decode(limit, store),
        ],
        [Figure("our time over decoding", figures.time_ratio(US, limit), 0.8)],
        limit,
    )


def apply_store(data: Data) -> Case:
    store, limit = data.store, "limit: decode"
    return Case(
        "apply-store",
        "five masks applied to a store",
        [
            ours.Apply(US, store),
            peers.ZarrApply("zarr and NumPy, by shards", store),
            limits.Decode(limit, store),
        ],
        [Figure("our time over decoding", figures.time_ratio(US, limit), 0.75)],
        limit,
    )


def apply_bf_store(data: Data) -> Case:
    store, limit = data.store, "limit: decode, all"
    return Case(
        "apply-bf-store",
        "one mask within the BF disk applied to a store",
        [
            ours.Apply(US, store, masks=1, bright_field=True),
            peers.ZarrApply("zarr and NumPy, by shards", store, masks=1, bright_field=True),
            limits.Decode(limit, store),
        ],
        [Figure("our time over decoding all", figures.time_ratio(US, limit), 0.2)],
        limit,
    )


def convert(data: Data) -> Case:
    mib, limit = data.merlin, "limit: compress"
    return Case(
        "convert",
        "a Merlin file of 4 GB into a store, with statistics and a check of what was written",
        [ours.Convert(US, mib), limits.Encode(limit, mib, like=data.store)],
        [Figure("our time over compressing", figures.time_ratio(US, limit), 2.2)],
        limit,
    )


def many_masks_memory(data: Data) -> Case:
    raw, limit = data.flat, "limit: sgemm"
    return Case(
        "many-masks-memory",
        f"{MANY} masks applied at once, data in memory",
        [
            ours.ApplyInMemory(US, raw, masks=MANY),
            peers.LiberTEMImages(LIBERTEM, raw, masks=MANY),
            peers.NumPyImages("NumPy, float32 matmul", raw, masks=MANY),
            limits.Sgemm(limit, raw, masks=MANY),
        ],
        [Figure("time of sgemm over ours", figures.time_ratio(limit, US), 0.8, at_least=True)],
        limit,
    )


def many_masks_store(data: Data) -> Case:
    store, one, limit = data.store, f"{US}, one mask", "limit: decode"
    return Case(
        "many-masks-store",
        f"{MANY} masks applied at once to a store",
        [
            ours.Apply(US, store, masks=MANY),
            ours.Apply(one, store, masks=1),
            peers.ZarrApply("zarr and NumPy, by shards", store, masks=MANY),
            limits.Decode(limit, store),
        ],
        [Figure("our time over ours for one mask", figures.time_ratio(US, one), 8)],
        limit,
    )


def scaling(data: Data) -> Case:
    contestants = {f"{US}, {_size(store)}": store for store in data.stores}
    names = list(contestants)
    return Case(
        "scaling",
        "five Pearson masks and five images, stores of three sizes",
        [
            *(ours.DeriveAndApply(name, store) for name, store in contestants.items()),
            peers.ZarrJob(f"zarr and NumPy, by shards, {_size(data.store)}", data.store),
        ],
        [
            Figure("exponent of time against size", figures.exponent_of_time(names), 1.05),
            Figure("largest over smallest peak memory", figures.spread_of_memory(names), 1.1),
        ],
    )


def workers(data: Data) -> Case:
    store, one, two = data.middle_store, f"{US}, one worker", f"{US}, two workers"
    threads = f"{US}, one worker of two threads"
    return Case(
        "workers",
        "five Pearson masks and five images from a store of 4 GB, on worker processes",
        [
            ours.OnWorkers(one, store, cores=2),
            ours.OnWorkers(two, store, cores=2, workers=2),
            ours.OnWorkers(threads, store, cores=2, threads=2),
        ],
        [
            Figure("one worker's time over that of two", figures.time_ratio(one, two), 1.7, at_least=True),
            Figure("one thread's time over that of two", figures.time_ratio(one, threads), 1.7, at_least=True),
        ],
    )


def two_threads(data: Data) -> Case:
    store, one, two = data.middle_store, f"{US}, one core", f"{US}, two cores"
    in_disk = ", BF disk"
    return Case(
        "two-threads",
        "five Pearson masks from a store of 4 GB, on threads",
        [
            ours.Derive(two, store, cores=2),
            ours.Derive(one, store),
            ours.Derive(two + in_disk, store, cores=2, bright_field=True),
            ours.Derive(one + in_disk, store, bright_field=True),
        ],
        [
            Figure("time on one core over that on two", figures.time_ratio(one, two), 1.75, at_least=True),
            Figure(
                "the same within the BF disk",
                figures.time_ratio(one + in_disk, two + in_disk),
                1.6,
                at_least=True,
            ),
        ],
    )


def disks(data: Data) -> Case:
    contestants = {
        (name, rate): ours.DeriveFromDisk(f"{US}, {name}, {rate:g} GB/s", store, cores=2, rate=1e9 * rate)
        for rate in (0.5, 2, 7)
        for name, store in (("lz4", data.middle_store), ("zstd", data.zstd_store))
    }

    def ratio(rate: float, numerator: str, denominator: str) -> Figure:
        names = (contestants[name, rate].name for name in (numerator, denominator))
        words = f"time with {numerator} over that with {denominator}, {rate:g} GB/s"
        return Figure(words, figures.time_ratio(*names), 1, at_least=True)

    return Case(
        "disks",
        "five Pearson masks from a store of 4 GB on disks of three speeds, two cores",
        list(contestants.values()),
        [ratio(0.5, "lz4", "zstd"), ratio(7, "zstd", "lz4")],
    )


def _size(scan: Scan) -> str:
    return f"{scan.nbytes / 1e9:.2g} GB"


def first_call(data: Data) -> Case:
    return Case(
        "first-call",
        "five Pearson masks and five images, in a new process",
        [ours.DeriveAndApply(US, data.store)],
        [Figure("first call less the second", figures.difference(FIRST, SECOND), 1, unit=" s")],
        new_processes=True,
    )


def proxy(data: Data) -> Case:
    store = data.stores[-1]
    square = replace(store, scan_shape=(store.scan_shape[0],) * 2)
    names = {bin: f"{US}, proxy, bin={bin}" for bin in (1, 2)}
    return Case(
        "proxy",
        "a mask and an image from a new Gaussian template, from a proxy of the BF disk",
        [
            *(ours.Tuning(name, square, cores=2, masks=1, bin=bin) for bin, name in names.items()),
            ours.Tuning(f"{US}, full counts", square, cores=2, masks=1),
        ],
        [Figure(f"time, bin={bin}", figures.seconds(name), 0.3, unit=" s") for bin, name in names.items()],
    )


CASES: dict[str, Callable[[Data], Case]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        apply_memory,
        raw_job,
        raw_job_two_cores,
        derive_store,
        apply_store,
        apply_bf_store,
        convert,
        many_masks_memory,
        many_masks_store,
        scaling,
        workers,
        two_threads,
        disks,
        first_call,
        proxy,
    )
}
