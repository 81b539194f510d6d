"""What a recipe will read, need and take, said before anything of it runs; and refused where it cannot fit."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import xarray as xr

from ..axes import DETECTOR, TEMPLATE
from ..cluster.progress import Stage, silent
from ..cluster.resources import Resources, resources
from ..conversion.conversion import convert
from ..counts.opening import open as open_counts
from ..counts.regions import crop
from ..counts.statistics import detector_weights, pixel_statistics
from ..detector.calibration import calibrate
from ..detector.conventional_masks import parse_detector
from ..errors import DiskFullError, MemoryLimitError
from ..masks.derivation import apply_mask, correlate, derive_mask
from ..passes.graphs import results_held
from ..passes.second_moments import ROWS
from ..reading.blocks import BLOCK_BYTES, Crop, Shards, Source, any_per_tile
from ..reading.lazy import runs, source_of
from ..reading.store import is_store, stored_statistics
from ..reading.tasks import DataNode
from ..shards.objects import path_in
from ..shards.shapes import choose_shards
from ..shards.sharded_array import RANGE_BYTES
from ..words import bytes_text, table_text, time_text
from .rates import SLOW_SECONDS, TRIAL_PART, Rate, try_gram, try_images, try_moments
from .recipe_file import Recipe, says_keys
from .request import COUNTS, Request, finished_stages, read_request, results_place, stale_results

TRIAL_SECONDS = 10.0

# Stages that are not tried, and what they do.
NOT_TRIED = {
    "descan": "reads all counts once",
    "calibrate": "reads all counts once, for the mean pattern",
    "evidence": "reads counts twice, once with {draws} templates of random sites of each kind, and may take longer "
    "than all the rest",
}

SHARDS_LOOKED_AT = 8

FLOAT = 8  # bytes of a number in what is gathered


@dataclass(frozen=True)
class StagePlan:
    """What one stage of a recipe will do.

    Attributes
    ----------
    name : str
        "convert", "correlate" or "images".
    counts_bytes : int
        Counts, uncompressed, that it goes through.
    read_bytes : int
        What it reads of the source or the store.
    chunks : int
        Pieces that it reads and decodes one after another.
    tasks : int
        Tasks of its graph.
    task_bytes : int
        Memory of one task that runs.
    shared_bytes : int
        Memory of what every worker holds besides.
    trial_seconds : float
        How long the work was tried.
    bytes_per_second : float
        Counts that all threads together went through in a second of the trial.
    """

    name: str
    counts_bytes: int
    read_bytes: int
    chunks: int
    tasks: int
    task_bytes: int
    shared_bytes: int
    trial_seconds: float
    bytes_per_second: float

    @property
    def seconds(self) -> float:
        """Expected time."""
        return self.counts_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Plan:
    """What a recipe will read, need and take.

    Attributes
    ----------
    recipe : Recipe
    stages : tuple of StagePlan
        Those that are still to be run, in their order.
    not_estimated : dict of str to str
        Stages that are still to be run and are no part of any number here, with what they do.
    finished : tuple of str
        Stages that an earlier run has finished.
    resources : Resources
        What computes.
    base_bytes : int
        Memory of a worker before its first task.
    results_bytes : int
        Disk for the results, and for the counts where they have to be converted.
    free_bytes : int or None
        Free on the disk of the results; None where that cannot be asked.
    """

    recipe: Recipe
    stages: tuple[StagePlan, ...]
    not_estimated: Mapping[str, str]
    finished: tuple[str, ...]
    resources: Resources
    base_bytes: int
    results_bytes: int
    free_bytes: int | None

    @property
    def seconds(self) -> float:
        """Expected time of all stages, but for those that are not estimated."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def worker_bytes(self) -> int:
        """Memory that one worker needs in the stage that needs most."""
        return self.base_bytes + max((self._beyond_base(stage) for stage in self.stages), default=0)

    def _beyond_base(self, stage: StagePlan) -> int:
        return stage.shared_bytes + self._threads_of_a_worker * stage.task_bytes

    @property
    def _threads_of_a_worker(self) -> int:
        return -(-self.resources.threads // self.resources.workers)

    def check(self) -> None:
        """Raise where the run cannot fit.

        Raises
        ------
        MemoryLimitError
            If a worker has less memory than it needs.
        DiskFullError
            If there is less room on the disk than the results take.
        """
        has, needs = self.resources.memory_bytes, self.worker_bytes
        if needs > has:
            most = max(self.stages, key=self._beyond_base)
            raise MemoryLimitError(
                f"A worker of {_number(self._threads_of_a_worker, 'thread')} needs about {bytes_text(needs)} for the "
                f'stage "{most.name}" and has {bytes_text(has)}; {self._what_fits(most, has)}'
            )
        if self.free_bytes is not None and self.results_bytes > self.free_bytes:
            raise DiskFullError(
                f"The results take about {bytes_text(self.results_bytes)}, and {bytes_text(self.free_bytes)} are free "
                "there; give another folder as out=..., or make room."
            )

    def _what_fits(self, stage: StagePlan, has: int) -> str:
        least = self.base_bytes + stage.shared_bytes + stage.task_bytes
        if least <= has:
            threads = (has - self.base_bytes - stage.shared_bytes) // stage.task_bytes
            more = bytes_text(1.1 * self.worker_bytes)
            return f"{_number(threads, 'thread')} in each worker would fit, or workers with {more}."
        return f"workers of one thread with {bytes_text(1.1 * least)} each would fit."

    def text(self) -> str:
        """The plan for people."""
        here = self.resources
        memory = f"{bytes_text(self.worker_bytes)} of {bytes_text(here.memory_bytes)}"
        heads = ("stage", "counts", "read", "chunks", "tasks", "expected")
        rows: list[tuple[str, ...]] = [
            (
                stage.name,
                bytes_text(stage.counts_bytes),
                bytes_text(stage.read_bytes),
                f"{stage.chunks:,}",
                f"{stage.tasks:,}",
                f"{time_text(stage.seconds)} at {bytes_text(stage.bytes_per_second)}/s",
            )
            for stage in self.stages
        ]
        total = sum(stage.counts_bytes for stage in self.stages), sum(stage.read_bytes for stage in self.stages)
        if len(rows) > 1:
            rows.append(("in all", *map(bytes_text, total), "", "", time_text(self.seconds)))
        free = "" if self.free_bytes is None else f"; {bytes_text(self.free_bytes)} are free"
        tried = sum(stage.trial_seconds for stage in self.stages)
        done = [f"Finished by an earlier run: {', '.join(self.finished)}."] if self.finished else []
        rest = [f"Not estimated: {name}, which {does}." for name, does in self.not_estimated.items()]
        if not rows and not rest:
            return "\n".join([*done, "Nothing is left to run."])
        if not rows:
            return "\n".join([*done, *rest])
        return "\n".join(
            [
                f"Computes with {_number(here.workers, 'worker')} of {_number(self._threads_of_a_worker, 'thread')}.",
                *table_text(heads, rows),
                f"Memory of a worker: {memory}.",
                f"Disk for the results: {bytes_text(self.results_bytes)}{free}.",
                *done,
                f"Expected times are from trials on a part of the scan, {time_text(tried)} in all.",
                *rest,
            ]
        )

    def data(self) -> dict[str, Any]:
        """The plan for machines."""
        return {
            "stages": [dataclasses.asdict(stage) | {"seconds": stage.seconds} for stage in self.stages],
            "not_estimated": dict(self.not_estimated),
            "finished": list(self.finished),
            "workers": self.resources.workers,
            "threads": self.resources.threads,
            "worker_memory_bytes": self.resources.memory_bytes,
            "worker_needs_bytes": self.worker_bytes,
            "results_bytes": self.results_bytes,
            "free_bytes": self.free_bytes,
            "seconds": self.seconds,
        }


def _number(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@says_keys
def plan_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    seconds: float = TRIAL_SECONDS,
    stage: Stage = silent,
) -> Plan:
    """Plan a recipe: what :func:`run_recipe` will read, need and take on the active dask scheduler.

    The work of every stage that converts, correlates or makes images is tried on a part of the scan, on all threads at
    once; the others are named. Nothing is left on the disk, and nothing is refused: see :meth:`Plan.check`.

    Parameters
    ----------
    recipe : path, mapping or Recipe
    out : path
        The folder for the results: stages that are finished there are not planned.
    overwrite : bool, default False
        Whether results of another recipe in `out` may be replaced, as for :func:`run_recipe`.
    seconds : float, default 10
        Longest time of all trials together, but for one piece of the scan on every thread; a twentieth of the scan
        is enough.
    stage : callable, optional
        Called with the name of each trial; the context that it gives is open meanwhile.

    Raises
    ------
    RecipeError, InputError, SourceError, StoreError
        As :func:`run_recipe` does, before it reads any counts.
    """
    request = read_request(recipe)
    folder = results_place(out)
    stale_results(folder, request, overwrite)
    finished = finished_stages(folder, request)
    passes = {"correlate": _correlate, "images": _images}
    if request.recipe.templates is None:
        del passes["correlate"]
    wanted = [name for name in passes if name not in finished]
    disk = next(p for p in (folder, *folder.absolute().parents) if p.is_dir()) if isinstance(folder, Path) else None
    with tempfile.TemporaryDirectory(prefix=".tdm-trial-", dir=disk) as scratch:
        scan = _Scan.opened(request, folder, "convert" in finished, Path(scratch), seconds / 3, stage)
        stages = list(scan.conversion)
        for name in wanted:
            with stage(f"try {name}", kept=False):
                stages.append(passes[name](request, scan, seconds / 3))
    base = max((found.base_bytes for found in scan.rates), default=0)
    results = scan.store_bytes + (_results_bytes(request, scan.counts.shape) if wanted else 0)
    free = None if disk is None else shutil.disk_usage(disk).free
    rest = _not_tried(request, scan, finished)
    return Plan(request.recipe, tuple(stages), rest, finished, resources(), base, results, free)


def _not_tried(request: Request, scan: _Scan, finished: tuple[str, ...]) -> dict[str, str]:
    """Stages that are still to be run and that no trial is made of, with what they do."""
    asked = request.recipe.evidence
    names = [*scan.mean_pattern, *(["evidence"] if asked is not None and "evidence" not in finished else [])]
    return {name: NOT_TRIED[name].format(draws=0 if asked is None else asked.draws) for name in names}


@dataclass
class _Scan:
    """The counts that a recipe is about, and those that the passes are tried on.

    Attributes
    ----------
    counts : DataArray
        All of them, calibrated as well as is known before a conversion.
    tried : Source
        A store's source, or that of the few shards that the trial of the conversion wrote.
    store_bytes : int
        Disk for counts that have to be converted.
    conversion : list of StagePlan
        Empty where the counts are a store already.
    rates : list of Rate
    mean_pattern : list of str
        Stages that read all counts before masks are derived, as `Request.reads_for_mean_pattern` gives them.
    """

    counts: xr.DataArray
    tried: Source
    store_bytes: int
    conversion: list[StagePlan]
    rates: list[Rate]
    mean_pattern: list[str]

    @classmethod
    def opened(
        cls, request: Request, folder: str | Path, converted: bool, scratch: Path, seconds: float, stage: Stage
    ) -> _Scan:
        place = request.recipe.source_place()
        if converted or is_store(place):
            ready = path_in(folder, COUNTS) if converted else place
            counts = open_counts(ready)
            source = source_of(counts.data)
            assert source is not None
            statistics = stored_statistics(ready)
            reads = request.reads_for_mean_pattern(counts, statistics)
            return cls(_calibrated(request, counts, statistics), source, 0, [], [], reads)
        reading = {key: value for key, value in request.reading.items() if key != "compression"}
        counts = open_counts(place, **reading)
        with stage("try convert", kept=False):
            return cls._after_trial(request, counts, scratch / COUNTS, seconds)

    @classmethod
    def _after_trial(cls, request: Request, counts: xr.DataArray, store: Path, seconds: float) -> _Scan:
        """Convert a corner of the scan: with a shard on every thread, and with more if there is time."""
        _, shard = choose_shards(counts.shape, counts.dtype.itemsize)
        here, tried = resources(), False
        fitting = math.prod(-(-n // s) for n, s in zip(counts.shape[:2], shard, strict=False))
        pieces, took, part = 1, math.inf, counts
        while True:
            rows, columns = _corner(pieces, counts.shape, shard)
            part = crop(counts, y=slice(0, rows), x=slice(0, columns))
            begin = time.perf_counter()
            convert(part, store, compression=request.reading.get("compression", "lz4"), overwrite=True)
            took = time.perf_counter() - begin
            if tried or took > SLOW_SECONDS:
                break
            # The first time, a process also loads and compiles what it needs.
            most = max(here.threads, int(fitting * TRIAL_PART))
            pieces, tried = min(fitting, most, max(here.threads, int(seconds / took))), True
        opened = open_counts(store)
        source, whole = source_of(opened.data), source_of(counts.data)
        assert source is not None
        stored_part = _stored_part(source)
        rate = Rate(part.nbytes, part.nbytes / took, took, psutil.Process().memory_info().rss)
        read = counts.nbytes + counts.nbytes * stored_part  # the file, and what was written, to check it
        planned = StagePlan(
            name="convert",
            counts_bytes=counts.nbytes,
            read_bytes=round(read),
            chunks=_pieces(counts.shape, choose_shards(counts.shape, counts.dtype.itemsize)[0]),
            tasks=2 * fitting + 1,
            task_bytes=_conversion_bytes(counts, stored_part, whole),
            shared_bytes=0,
            trial_seconds=took,
            bytes_per_second=rate.bytes_per_second,
        )
        statistics = stored_statistics(store)
        reads = request.reads_for_mean_pattern(counts, statistics)
        counts = _calibrated(request, counts, statistics)
        return cls(counts, source, round(counts.nbytes * stored_part), [planned], [rate], reads)

    def planned(
        self, name: str, pixels: np.ndarray | None, rate: Rate, lazy: Any, task_bytes: int, shared_bytes: int
    ) -> StagePlan:
        """A pass over all of the counts."""
        self.rates.append(rate)
        shape, item = self.counts.shape, self.counts.dtype.itemsize
        part = _part_of_detector(self.tried, pixels)
        counts_bytes = round(part * self.counts.nbytes)
        shards = isinstance(self.tried, Shards)
        inner = choose_shards(shape, item)[0] if shards else (1, max(1, BLOCK_BYTES // self.tried.pattern_bytes))
        return StagePlan(
            name=name,
            counts_bytes=counts_bytes,
            read_bytes=round(_stored_part(self.tried, pixels) * counts_bytes),
            chunks=round(part * _pieces(shape[: len(inner)], inner)),
            tasks=_tasks(lazy),
            task_bytes=task_bytes + _block_bytes(self.tried),
            shared_bytes=shared_bytes,
            trial_seconds=rate.seconds,
            bytes_per_second=rate.bytes_per_second,
        )


def _tasks(lazy: Any) -> int:
    """Tasks that computing something comes to."""
    (optimised,) = dask.optimize(lazy)
    return sum(not isinstance(node, DataNode) for node in dict(optimised.__dask_graph__()).values())


def _corner(pieces: int, shape: tuple[int, ...], shard: tuple[int, ...]) -> tuple[int, int]:
    """A window (ny, nx) at the scan's first corner of about so many shards, in the shape of the scan."""
    down, across = (-(-n // s) for n, s in zip(shape[:2], shard, strict=False))
    columns = min(across, max(1, round(math.sqrt(pieces * across / down))))
    rows = min(down, -(-pieces // columns))
    return min(shape[0], rows * shard[0]), min(shape[1], columns * shard[1])


def _pieces(shape: tuple[int, ...], piece: tuple[int, ...]) -> int:
    return math.prod(-(-n // p) for n, p in zip(shape, piece, strict=True))


def _stored_part(source: Source, pixels: np.ndarray | None = None) -> float:
    """Stored bytes for each byte of counts under some detector pixels, from some of the shards."""
    inner = source.source if isinstance(source, Crop) else source
    if not isinstance(inner, Shards):
        return 1.0
    array, shards = inner.array, list(inner.array.shards())
    touched = np.ones(array.inner_grid[2:], bool)
    if pixels is not None and inner is source:
        touched = any_per_tile(pixels, array.inner[2:], array.inner_grid[2:])
    stored = counts = 0
    for n in np.random.default_rng(0).permutation(len(shards))[:SHARDS_LOOKED_AT]:
        index = array.read_index(shards[n])
        stored += int(index[..., 1][array.overlapping(shards[n]) & touched].sum())
        y, x = array.window(shards[n])[:2]
        counts += (y.stop - y.start) * (x.stop - x.start)
    return stored / (
        counts * array.dtype.itemsize * round(_part_of_detector(inner, pixels) * math.prod(array.shape[2:]))
    )


def _part_of_detector(source: Source, pixels: np.ndarray | None) -> float:
    """How much of each pattern is decoded for some of its pixels."""
    if pixels is None:
        return 1.0
    if isinstance(source, Shards):
        tile = source.array.inner[2:]
        grid = [-(-n // t) for n, t in zip(source.shape[2:], tile, strict=True)]
        touched = np.repeat(np.repeat(any_per_tile(pixels, tile, grid), tile[0], 0), tile[1], 1)
        return float(touched[: pixels.shape[0], : pixels.shape[1]].mean())
    return 1.0


def _calibrated(request: Request, counts: xr.DataArray, statistics: xr.Dataset | None) -> xr.DataArray:
    """Counts calibrated by a mean pattern, be it of a part of the scan: regions need no more."""
    if not request.calibration:
        return counts
    if statistics is None:
        ty, tx = (min(n, 16) for n in counts.shape[:2])
        pattern = pixel_statistics(crop(counts, y=slice(0, ty), x=slice(0, tx)))["mean"].compute()
    else:
        pattern = statistics["pattern_mean"]
    return calibrate(counts, **request.calibration, pacbed=pattern.transpose(*DETECTOR).values)


def _block_bytes(source: Source | None) -> int:
    """Memory in which one task reads."""
    inner = source.source if isinstance(source, Crop) else source
    if isinstance(inner, Shards):
        # One range is used, one is read ahead, one is on its way through zarr.
        return 3 * RANGE_BYTES + 2 * math.prod(inner.array.inner) * inner.array.dtype.itemsize
    return 2 * BLOCK_BYTES


def _conversion_bytes(counts: xr.DataArray, stored_part: float, source: Source | None) -> int:
    inner, shard = choose_shards(counts.shape, counts.dtype.itemsize)
    item = counts.dtype.itemsize
    shard_bytes = math.prod(shard) * item
    tiles = math.prod(inner[:3]) * shard[3] * item
    sums = 3 * 2 * FLOAT * math.prod(shard[2:])
    whole = 0 if source is not None and source.random_access else shard_bytes
    return round(2 * stored_part * shard_bytes) + tiles + sums + whole + _block_bytes(source)


def _correlate(request: Request, scan: _Scan, seconds: float) -> StagePlan:
    counts, templates = scan.counts, request.templates(scan.counts)
    region = request.detector_region(counts)
    weights = detector_weights(counts, region)
    pixels = None if (weights > 0).all() else weights > 0
    number = templates.sizes[TEMPLATE]
    if request.recipe.masks.method == "ridge":
        return _ridge(request, scan, templates, weights > 0, seconds)
    rate = try_moments(scan.tried, pixels, number, seconds)
    lazy = correlate(counts, templates, detector_region=region, scan_region=request.scan_region)
    # Sums and squares, and the products with every template; two copies while they are handed on, and those that wait
    # to be merged.
    state = (number + 3) * FLOAT * int(np.prod(_window_shape(scan.tried, pixels)))
    source = source_of(counts.data)
    tasks = counts.data.chunks[:2] if source is None else runs(source, _part_of_detector(source, pixels))
    waiting = results_held(math.prod(map(len, tasks)), state)
    return scan.planned("correlate", pixels, rate, lazy, 2 * state, waiting * state + 4 * templates.nbytes)


def _ridge(request: Request, scan: _Scan, templates: xr.DataArray, pixels: np.ndarray, seconds: float) -> StagePlan:
    counts, asked = scan.counts, request.recipe.masks
    region = request.detector_region(counts)
    lazy = derive_mask(
        counts,
        templates,
        method="ridge",
        solver="gram",
        detector_region=region,
        scan_region=request.scan_region,
        **asked.ridge,
    )
    rate = try_gram(scan.tried, pixels, templates.sizes[TEMPLATE], seconds)
    q = int(pixels.sum())
    blocks = 4 if asked.regularisation in (None, "cross-validated") else 1
    # Of every block of the scan that a task reaches: half a symmetric matrix, and rows that wait for their products.
    state = blocks * (FLOAT * q * q // 2 + ROWS * q * FLOAT // 2)
    # Two are merged to a third; at the end, the matrices of all blocks are whole, and one sum of them is decomposed.
    last = (blocks + 6) * FLOAT * q * q
    return scan.planned("correlate", pixels, rate, lazy, state, max(3 * state, last) + 4 * templates.nbytes)


def _images(request: Request, scan: _Scan, seconds: float) -> StagePlan:
    counts = scan.counts
    parts = [parse_detector(spec, counts).values for spec in request.recipe.detectors.values()]
    number = len(parts)
    if request.recipe.templates is not None:
        region = detector_weights(counts, request.detector_region(counts))
        parts += [region] * len(request.names)
        number += len(request.names)
    masks = np.stack(parts)
    pixels = np.asarray(masks.any(0))
    rate = try_images(scan.tried, None if pixels.all() else pixels, number, seconds)
    lazy = apply_mask(counts, xr.DataArray(masks, dims=(TEMPLATE, *DETECTOR)))
    source = source_of(counts.data)
    probes = math.prod(counts.shape[:2])
    if source is not None:
        rows, columns = runs(source, _part_of_detector(source, pixels))
        probes = max(rows) * max(columns)
    # Weights are kept in both precisions for every tile of the detector.
    return scan.planned("images", pixels, rate, lazy, 2 * number * FLOAT * probes + 3 * masks.nbytes, 2 * masks.nbytes)


def _window_shape(source: Source, pixels: np.ndarray | None) -> tuple[int, int]:
    ky, kx = source.detector_window(pixels)
    return ky.stop - ky.start, kx.stop - kx.start


def _results_bytes(request: Request, shape: tuple[int, ...]) -> int:
    """Uncompressed masks, templates and images, which are small beside the counts."""
    probes, pixels = math.prod(shape[:2]), math.prod(shape[2:])
    templates, detectors = len(request.names), len(request.recipe.detectors)
    of_detector = 2 * templates + detectors + 4
    of_scan = 2 * templates + detectors
    return FLOAT * (of_detector * pixels + of_scan * probes)
