"""`python tests/benchmarks/terabyte.py`: five templates derived and applied on a terabyte of counts, by two workers.

The counts are made so that the answer is known: one number for every inner chunk. So they compress to almost nothing,
but every shard is a file of its own with its own content, and every chunk that the job touches is read and decoded.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

DETECTOR = 512
INNER = 64  # detector pixels of an inner chunk
SCAN_STEP = 0.2  # angstrom
PIXEL_SIZE = 0.1  # mrad
SEMI_ANGLE = 9.6  # mrad: the disk touches 16 of the 64 tiles of the detector
KINDS = {"A": (0.0, 0.0), "B": (0.5, 0.5), "C": (0.0, 0.5), "D": (0.5, 0.0), "E": (0.25, 0.25)}  # of the cell
CELL = 6.4  # angstrom
SIGMA = 0.5  # angstrom


def make_store(path: Path, nbytes: float) -> tuple[int, int, np.ndarray, np.ndarray]:
    """A store of at least so many bytes of uint16 counts.

    Returns
    -------
    shards, stored_bytes : int
    scan : ndarray (windows of 16 x 16 probe positions)
    detector : ndarray (tiles of 64 x 64 pixels)
        A count is the number of its window times that of its tile.
    """
    from tdm_dask.axes import axis_coordinate
    from tdm_dask.reading import store as stores
    from tdm_dask.shards.codec import COMPRESSIONS
    from tdm_dask.shards.shapes import choose_shards
    from tdm_dask.shards.sharded_array import EMPTY, sealing

    patterns = math.ceil(nbytes / (2 * DETECTOR**2))
    ny = 16 * max(1, round(math.sqrt(patterns) / 16 * 0.75))
    nx = 16 * math.ceil(patterns / ny / 16)
    shape = ny, nx, DETECTOR, DETECTOR
    coords = {
        **{dim: axis_coordinate(dim, n, SCAN_STEP, 0.0, "angstrom") for dim, n in (("y", ny), ("x", nx))},
        **{
            dim: axis_coordinate(dim, DETECTOR, PIXEL_SIZE, -PIXEL_SIZE * (DETECTOR - 1) / 2, "mrad")
            for dim in ("ky", "kx")
        },
    }
    attributes = {
        "schema": 1,
        "state": "complete",
        "id": stores.new_id(),
        "acquisition": {"semi_angle_mrad": SEMI_ANGLE},
    }
    backend = stores.resolve(path, read_only=False)
    array = stores.create(backend, attributes, shape, np.dtype(np.uint16), COMPRESSIONS["lz4"], coords)
    inner, shard = choose_shards(shape, 2)
    assert inner == (16, 16, INNER, INNER)
    assert shard == (16, 16, DETECTOR, DETECTOR)
    rng = np.random.default_rng(1)
    scan = rng.integers(1, 100, (ny // 16, nx // 16))
    detector = rng.integers(1, 4, (DETECTOR // INNER,) * 2)
    encoded: dict[int, bytes] = {}
    stored = 0
    for y, x in np.ndindex(*scan.shape):
        parts = []
        index = np.full((1, 1, *detector.shape, 2), EMPTY, np.uint64)
        offset = 0
        for tile, factor in np.ndenumerate(detector):
            count = int(scan[y, x] * factor)
            if count not in encoded:
                encoded[count] = b"".join(array.codec.encode(np.full(inner, count, "<u2")))
            parts.append(encoded[count])
            index[0, 0, *tile] = offset, len(parts[-1])
            offset += len(parts[-1])
        file = path / array.key((y, x, 0, 0))
        file.parent.mkdir(parents=True, exist_ok=True)
        data = b"".join((*parts, *sealing(index)))
        file.write_bytes(data)
        stored += len(data)
    # As a conversion gathers them.
    group = zarr.open_group(backend, mode="r+", use_consolidated=False)
    pixels = np.kron(detector, np.ones((INNER, INNER)))
    for name, dims, values in (
        ("pattern_mean", ("ky", "kx"), pixels * scan.mean()),
        ("pattern_variance", ("ky", "kx"), pixels**2 * scan.var()),
        ("pattern_maximum", ("ky", "kx"), (pixels * scan.max()).astype(np.uint16)),
        ("total_counts", ("y", "x"), np.kron(scan, np.full((16, 16), pixels.sum(), np.uint64)).astype(np.uint64)),
    ):
        stores.write_variable(group, name, xr.Variable(dims, values, {"units": "counts"}))
    stores.consolidate(backend)
    return scan.size, stored, scan, detector


def make_recipe(folder: Path, store: Path, scan_shape: tuple[int, int]) -> Path:
    """A recipe of five templates, with a column of each kind in every cell."""
    ends = [n * SCAN_STEP for n in scan_shape]
    corners = np.stack(np.meshgrid(*(np.arange(0.0, end, CELL) for end in ends), indexing="ij"), -1).reshape(-1, 2)
    sites = {}
    for kind, place in KINDS.items():
        found = corners + CELL * np.array(place)
        sites[kind] = found[(found < ends).all(1)].tolist()
    (folder / "sites.json").write_text(json.dumps({"unit": "angstrom", "sites": sites}))
    recipe = folder / "terabyte.toml"
    recipe.write_text(
        f'title = "{Path(store).name}"\n[source]\npath = "{store}"\n'
        f'[templates]\nsites = "sites.json"\nsigma = {SIGMA}\n'
        f'[masks]\ndetector_region = "disk:{SEMI_ANGLE}"\n'
    )
    return recipe


def peak_bytes() -> int:
    """Largest resident memory of this process since the last `forget_peak`, or since it began."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def graph_facts(lazy: Any, started: float) -> dict[str, float]:
    """Tasks and bytes of a graph, and the seconds that building and ordering it take."""
    import cloudpickle
    import dask

    (optimised,) = dask.optimize(lazy)
    graph = dict(optimised.__dask_graph__())
    built = time.perf_counter()
    dask.order.order(graph)
    ordered = time.perf_counter()
    return {
        "tasks": len(graph),
        "bytes": len(cloudpickle.dumps(graph)),
        "build_seconds": built - started,
        "order_seconds": ordered - built,
    }


def run(folder: Path, nbytes: float, workers: int, memory: str) -> dict[str, Any]:
    """Make the counts, run the recipe on workers of this machine, compare with the known answer."""
    import tdm_dask as tdm
    from tdm_dask.cluster.schedulers import scheduler
    from tdm_dask.recipe.run import run_recipe

    store = folder / "terabyte.zarr"
    begin = time.perf_counter()
    shards, stored, scan, _ = make_store(store, nbytes)
    made = time.perf_counter() - begin
    counts = tdm.open(store)
    recipe = make_recipe(folder, store, counts.shape[:2])
    graphs = {}
    with scheduler(workers=workers, memory=memory) as client:
        begin = time.perf_counter()
        disk = tdm.disk(counts, SEMI_ANGLE)
        sites = tdm.read_sites(folder / "sites.json")
        correlation = tdm.correlate(counts, tdm.gaussian_template(counts, sites, sigma=SIGMA), detector_region=disk)
        graphs["derive"] = graph_facts(correlation, begin)
        forget_peak()
        result = run_recipe(recipe, folder / "results")
        scheduler_peak = peak_bytes()
        begin = time.perf_counter()
        masks = xr.open_zarr(result.results, group="masks", consolidated=False, chunks={})
        mask = masks["mask"].assign_coords(detector_region=disk.variable)
        graphs["apply"] = graph_facts(tdm.apply_mask(counts, mask), begin)
        worker_peaks = client.run(peak_bytes)
        limits = [worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    tiles = disk.values.reshape(DETECTOR // INNER, INNER, DETECTOR // INNER, INNER).any((1, 3))
    return {
        "counts_bytes": counts.nbytes,
        "stored_bytes": stored,
        "shards": shards,
        "made_seconds": made,
        "graphs": graphs,
        "seconds": dict(result.seconds),
        "touched_bytes": round(counts.nbytes * float(tiles.mean())),
        "scheduler_peak_bytes": scheduler_peak,
        "worker_peak_bytes": max(worker_peaks.values()),
        "worker_limit_bytes": min(limits),
        "errors": answer_errors(result, scan),
    }


def answer_errors(result: Any, scan: np.ndarray) -> dict[str, float]:
    """Largest differences from the known answer, as a part of the largest value."""
    # Every pixel sees the same image but for a factor, and so has the same correlations.
    plane = np.kron(scan, np.ones((16, 16)))[: result.counts.shape[0], : result.counts.shape[1]]
    standard = (plane - plane.mean()) / plane.std()
    region = result.masks["detector_region"].values
    errors = {"mask": 0.0, "image": 0.0}
    for kind in KINDS:
        template = result.masks["templates"].sel(template=kind).values
        rho = float((standard * (template - template.mean()) / template.std()).mean())
        mask = result.masks["mask"].sel(template=kind).values
        image = result.images["image"].sel(template=kind).values
        expected = rho * region.sum() * standard
        errors["mask"] = max(errors["mask"], float(np.abs(mask - rho * region).max() / abs(rho)))
        errors["image"] = max(errors["image"], float(np.abs(image - expected).max() / np.abs(expected).max()))
    return errors


def table(found: dict[str, Any]) -> str:
    """What was measured beside what is wanted, as a Markdown table."""
    from tdm_dask.words import bytes_text, time_text

    graphs = found["graphs"].values()
    rows = [
        ("counts, uncompressed", bytes_text(found["counts_bytes"]), ""),
        ("stored", f"{bytes_text(found['stored_bytes'])} in {found['shards']:,} shards", ""),
        ("counts decoded by each pass", bytes_text(found["touched_bytes"]), ""),
        *(
            (f"time of {name}", f"{time_text(took)}, {bytes_text(found['touched_bytes'] / took)}/s", "")
            for name, took in found["seconds"].items()
            if name != "calibrate"
        ),
        *(
            (f"graph of {name}", f"{graph['tasks']:,} tasks, {bytes_text(graph['bytes'])}", "")
            for name, graph in found["graphs"].items()
        ),
        (
            "building and ordering a graph",
            time_text(max(g["build_seconds"] + g["order_seconds"] for g in graphs)),
            "under 5 s",
        ),
        ("peak memory of scheduler and client", bytes_text(found["scheduler_peak_bytes"]), "under 1 GiB"),
        (
            "peak memory of a worker",
            bytes_text(found["worker_peak_bytes"]),
            f"under {bytes_text(found['worker_limit_bytes'])}",
        ),
        ("largest error of a mask", f"{found['errors']['mask']:.1g}", "under 1e-6"),
        ("largest error of an image", f"{found['errors']['image']:.1g}", "under 1e-5"),
    ]
    lines = ["| what | measured | wanted |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser("python tests/benchmarks/terabyte.py", description=__doc__)
    parser.add_argument("--bytes", type=float, default=1e12, help="of counts, uncompressed (default: 1e12)")
    parser.add_argument("--folder", type=Path, help="where the counts are made (default: a temporary folder)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GiB", help="of each worker (default: 2GiB)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measured number there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tdm-terabyte-", dir=options.folder) as folder:
        found = run(Path(folder), options.bytes, options.workers, options.memory)
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if found["errors"]["mask"] < 1e-6 and found["errors"]["image"] < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
