"""Descan: everything is as if patterns had been moved by whole pixels, and the shifts are those of the disk."""

from __future__ import annotations

import json

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from counted_reads import CountingStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import LAYOUTS, as_labelled, scans
from small_stores import SHARD, converted, poisson, small_shards
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.cli import main
from tdm_dask.reading import shifts
from tdm_dask.reading.lazy import source_of
from tdm_dask.reading.store import clear_descan, stored_statistics, write_calibration
from tdm_dask.recipe.run import run_recipe
from tdm_dask.report.writing import write_report

NAMES = ("descan_ky", "descan_kx")


def with_descan(counts, by, **coords):
    """Labelled counts with shifts (2, ny, nx), and flags."""
    coords |= {name: (("y", "x"), np.asarray(s, np.float64)) for name, s in zip(NAMES, by, strict=True)}
    return counts.assign_coords(coords)


def plane(shape, ky, kx):
    """Shifts (2, ny, nx) of mean 0 that reach ky and kx (y, x) pixels at the ends of the scan."""
    y, x = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape)
    return np.stack([a[0] * y[:, None] + a[1] * x for a in (ky, kx)])


SHAPE = (9, 8, 13, 15)
BY = np.rint(plane(SHAPE[:2], (1.6, -1.2), (-0.8, 2.4)))


def templates_of(shape, n=2, seed=1):
    return xr.DataArray(np.random.default_rng(seed).normal(size=(n, *shape)), dims=("template", "y", "x"))


@pytest.mark.long
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(), scan=scans(), layout=st.sampled_from(LAYOUTS), scheduler=st.sampled_from(["synchronous", "threads"])
)
def test_everything_equals_the_oracle_of_moved_patterns(data, scan, layout, scheduler, tmp_path_factory):
    counts, rng = scan
    ny, nx, nky, nkx = counts.shape
    kind = data.draw(st.sampled_from(["plane", "random", "constant", "zero", "wide"]))
    by = {
        "plane": plane((ny, nx), rng.uniform(-2, 2, 2), rng.uniform(-2, 2, 2)),
        "random": rng.uniform(-1.6, 1.6, (2, ny, nx)),
        "constant": np.full((2, ny, nx), 1.2),
        "zero": rng.uniform(-0.5, 0.5, (2, ny, nx)),
        "wide": rng.integers(-nky, nky + 1, (2, ny, nx)),
    }[kind]
    valid = rng.random((nky, nkx)) < data.draw(st.sampled_from([0.9, 1.0]))
    patterns = rng.random((ny, nx)) < data.draw(st.sampled_from([0.8, 1.0]))
    patterns[0, 0] = valid[-1, -1] = True
    with small_shards():
        labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    flags = {"valid_pixels": (("ky", "kx"), valid), "valid_patterns": (("y", "x"), patterns)}
    labelled = with_descan(labelled, np.where(patterns, by, np.nan), **flags)
    moved, seen = oracle.descanned(counts, np.rint(by), valid, patterns)
    used = patterns & (rng.random((ny, nx)) < 0.8)
    used[0, 0] = True
    template = templates_of((ny, nx))
    with dask.config.set(scheduler=scheduler):
        if not seen.any():
            for call in (tdm.pixel_statistics, lambda c: tdm.apply_mask(c, xr.DataArray(seen, dims=("ky", "kx")))):
                with pytest.raises(errors.RegionError, match="every pattern has"):
                    call(labelled)
            return
        found = tdm.pixel_statistics(labelled, scan_region=used).compute()
        mean, std = oracle.statistics(moved, used)
        assert int(found["n"]) == used.sum()
        oracle.assert_close(found["mean"], mean * seen)
        oracle.assert_close(found["std"], std * seen)
        if counts.dtype.kind in "ub" and counts.dtype.itemsize <= 2:
            sums = moved.astype(np.int64)[used].sum(0)
            np.testing.assert_array_equal(found["mean"], np.where(seen, sums / used.sum(), 0))
        np.testing.assert_array_equal(found.get("valid_pixels", xr.ones_like(found["mean"], bool)), seen)
        weights = rng.normal(size=(2, nky, nkx))
        image = tdm.apply_mask(labelled, xr.DataArray(weights, dims=("template", "ky", "kx"))).compute()
        expected = np.where(patterns, oracle.image(moved, weights * seen), np.nan)
        oracle.assert_close(image, expected, np.nanmax(np.abs(expected)))
        region = rng.random((nky, nkx)) < 0.5
        if used.sum() < 2 or not (region & seen).any():
            return
        found = tdm.correlate(labelled, template, detector_region=region, scan_region=used).compute()
        oracle.assert_close(found["rho"], oracle.correlation(moved, template.values, used, region & seen), 1.0)
        mask = tdm.derive_mask(found)
        image = tdm.apply_mask(labelled, mask, normalisation="standardised").compute()
        expected = oracle.standardised_image(moved, mask.values, mask["mean"].values, mask["std"].values)
        oracle.assert_close(image, np.where(patterns, expected, np.nan), np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float32", "int16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_that_come_from_several_blocks_of_the_detector_are_whole(layout, dtype, tmp_path_factory):
    rng = np.random.default_rng(6)
    # No two patterns, or halves of the detector, have the same mean.
    counts = (rng.poisson(20, SHAPE) + np.arange(72).reshape(9, 8, 1, 1) + 50 * (np.arange(15) > 7)).astype(dtype)
    with small_shards():
        labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    if layout == "chunked":
        labelled = tdm.label_counts(da.from_array(counts, chunks=(4, 3, 5, 6)))
    moved, seen = oracle.descanned(counts, BY)
    template = templates_of(SHAPE[:2])
    found = tdm.correlate(with_descan(labelled, BY), template).compute()
    mean, std = oracle.statistics(moved)
    np.testing.assert_allclose(found["mean"], mean * seen, rtol=1e-12)
    np.testing.assert_allclose(found["std"], std * seen, rtol=1e-6)
    oracle.assert_close(found["rho"], oracle.correlation(moved, template.values), 1.0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("descan") / "scan.zarr"
    return converted(path, with_descan(tdm.label_counts(poisson(SHAPE)), BY))


@pytest.mark.parametrize("kind", ["numpy", "store", "chunked"])
@pytest.mark.parametrize("detector", [1, 2, (3, 2)])
def test_binned_counts_and_proxies_are_of_moved_patterns(stored, kind, detector, tmp_path):
    dense, patterns = poisson(SHAPE), np.random.default_rng(2).random(SHAPE[:2]) < 0.9
    counts = {
        "numpy": lambda: with_descan(tdm.label_counts(dense), BY),
        "store": lambda: stored,
        "chunked": lambda: with_descan(tdm.label_counts(da.from_array(dense, chunks=(4, 3, 5, 6))), BY),
    }[kind]()
    counts = counts.assign_coords(valid_patterns=(("y", "x"), patterns))
    moved, seen = oracle.descanned(dense, BY, used=patterns)
    moved = moved.astype(np.int64) * patterns[:, :, None, None]
    fy, fx = detector if isinstance(detector, tuple) else (detector, detector)

    def sums(array, factors=(fy, fx)):
        ky, kx = (n - n % f for n, f in zip(array.shape[2:], factors, strict=True))
        whole = array[:, :, :ky, :kx]
        return whole.reshape(*whole.shape[:2], ky // factors[0], factors[0], kx // factors[1], factors[1])

    if detector != 1:
        binned = tdm.bin(counts, detector=detector)
        np.testing.assert_array_equal(binned.values, sums(moved).sum((3, 5)))
        np.testing.assert_array_equal(binned["valid_pixels"], sums(seen[None, None]).all((3, 5))[0, 0])
        assert not set(NAMES) & set(binned.coords)
        # Patterns are moved before they are added to their neighbours.
        both = tdm.bin(counts, scan=(3, 1), detector=detector).values
        np.testing.assert_array_equal(both, sums(moved).sum((3, 5)).reshape(3, 3, 8, *both.shape[2:]).sum(1))
    region = np.zeros(SHAPE[2:], bool)
    region[3:9, 4:11] = True
    for path in (None, tmp_path / "proxy.zarr"):
        small = tdm.proxy(counts, detector_region=region, bin=detector, path=path)
        np.testing.assert_array_equal(small.values, sums(moved[:, :, 3:9, 4:11]).sum((3, 5)))
        assert not set(NAMES) & set(small.coords)


def test_counts_that_are_moved_into_a_proxy_fit_its_dtype(tmp_path):
    dense = poisson(SHAPE)
    dense[:, :, 9, 12] = 1000  # beside the region, moved into it
    converted(tmp_path / "scan.zarr", with_descan(tdm.label_counts(dense), BY))
    moved, _ = oracle.descanned(dense, BY)
    region = (slice(3, 9), slice(4, 12))
    small = tdm.proxy(tdm.open(tmp_path / "scan.zarr"), detector_region=region, path=tmp_path / "proxy.zarr")
    np.testing.assert_array_equal(small.values, moved[:, :, 3:9, 4:12])
    assert int(small.max()) == 1000
    assert small.dtype == np.uint16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_of_zeros_makes_an_image_of_zeros(layout, tmp_path_factory):
    counts = as_labelled(poisson(SHAPE), layout, tmp_path_factory, np.random.default_rng(1))
    counts = with_descan(counts, np.full((2, 9, 8), -12))
    image = tdm.apply_mask(counts, xr.DataArray(np.zeros(SHAPE[2:]), dims=("ky", "kx"))).compute()
    np.testing.assert_array_equal(image, np.zeros(SHAPE[:2]))


@pytest.mark.parametrize("persist", [False, True])
def test_column_images_are_of_moved_patterns(stored, persist):
    moved, seen = oracle.descanned(poisson(SHAPE), BY)
    region = np.zeros(SHAPE[2:], bool)
    region[1:9, 4:15] = True
    template = templates_of(SHAPE[:2])
    found = tdm.column_images(stored, template, detector_region=region, persist=persist)
    rho = oracle.correlation(moved, template.values, pixels=region & seen)
    oracle.assert_close(found["mask"], rho, 1.0)
    expected = oracle.standardised_image(moved, rho, *oracle.statistics(moved))
    np.testing.assert_allclose(found["image"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found["mask"]["valid_pixels"], seen)


def test_detectors_have_only_the_pixels_that_every_pattern_has(stored):
    calibrated = tdm.calibrate(stored, pixel_size=1.0, centre=(6, 7))
    _, seen = oracle.descanned(poisson(SHAPE), BY)
    disk = tdm.disk(calibrated, 20)
    np.testing.assert_array_equal(disk.values > 0, seen)
    assert disk.attrs["coverage"] < tdm.disk(calibrated.drop_vars(NAMES), 20).attrs["coverage"]


def test_a_crop_takes_the_shifts_along_and_loses_the_edges(stored):
    window = {"y": slice(2, 8), "x": slice(1, 6), "ky": slice(2, 12), "kx": slice(1, 15)}
    part = tdm.crop(stored, **window)
    assert source_of(part.data) is not None
    here = tuple(window.values())
    np.testing.assert_array_equal([part[name] for name in NAMES], BY[(slice(None), *here[:2])])
    moved, seen = oracle.descanned(poisson(SHAPE)[here], BY[(slice(None), *here[:2])])
    found = tdm.pixel_statistics(part).compute()
    np.testing.assert_array_equal(found["mean"], moved.sum((0, 1)) / 30 * seen)


def test_a_store_keeps_shifts_and_its_own_counts(stored, tmp_path):
    path = tmp_path / "scan.zarr"
    dense = poisson(SHAPE)
    counts = converted(path, dense)
    plain = tdm.pixel_statistics(counts)["mean"].compute()
    assert stored_statistics(path) is not None
    write_calibration(path, with_descan(counts, BY + 0.25))
    opened = tdm.open(path)
    np.testing.assert_array_equal([opened[name] for name in NAMES], BY + 0.25)
    np.testing.assert_array_equal(opened.values, dense)
    assert stored_statistics(path) is None
    moved, seen = oracle.descanned(dense, BY)
    np.testing.assert_array_equal(tdm.pixel_statistics(opened)["mean"], moved.sum((0, 1)) / 72 * seen)
    assert str(tdm.verify(path)).startswith("6 shards")
    plainly = xr.open_zarr(path)
    np.testing.assert_array_equal(plainly["descan_ky"], BY[0] + 0.25)
    write_calibration(path, counts)  # what has no descan takes none away
    assert set(NAMES) <= set(tdm.open(path).coords)
    clear_descan(path)
    clear_descan(path)
    assert not set(NAMES) & set(tdm.open(path).coords)
    xr.testing.assert_equal(tdm.pixel_statistics(tdm.open(path))["mean"].compute(), plain)
    assert "descan_ky" not in xr.open_zarr(path)
    np.testing.assert_array_equal(stored_statistics(path)["pattern_mean"], plain)


def test_statistics_of_a_conversion_know_of_no_descan(tmp_path):
    dense = poisson(SHAPE)
    converted(tmp_path / "scan.zarr", with_descan(tdm.label_counts(dense), BY))
    assert stored_statistics(tmp_path / "scan.zarr") is None
    clear_descan(tmp_path / "scan.zarr")
    found = stored_statistics(tmp_path / "scan.zarr")
    np.testing.assert_array_equal(found["pattern_mean"], dense.sum((0, 1)) / 72)
    np.testing.assert_array_equal(found["total_counts"], dense.sum((2, 3)))


def test_converting_again_with_other_shifts_is_another_store(tmp_path):
    counts = tdm.label_counts(poisson(SHAPE))
    converted(tmp_path / "scan.zarr", with_descan(counts, BY))
    with pytest.raises(errors.StoreError, match="overwrite"):
        converted(tmp_path / "scan.zarr", with_descan(counts, BY + 1))
    converted(tmp_path / "scan.zarr", counts, overwrite=True)
    assert not set(NAMES) & set(tdm.open(tmp_path / "scan.zarr").coords)


@pytest.mark.parametrize("lazy", [False, True])
def test_shifts_below_half_a_pixel_cost_nothing(stored, lazy):
    plain = stored.drop_vars(NAMES)
    still = with_descan(plain, np.full((2, *SHAPE[:2]), 0.4))
    weights = xr.DataArray(np.random.default_rng(0).random((1, *SHAPE[2:])), dims=("template", "ky", "kx"))
    template = templates_of(SHAPE[:2])
    graphs = []
    for counts in (plain, still):
        mask = tdm.derive_mask(counts, template)
        results = [tdm.pixel_statistics(counts)["mean"], mask, tdm.apply_mask(counts, mask if lazy else weights)]
        graphs.append([sorted(map(str, dict(r.__dask_graph__()))) for r in results])
    assert graphs[0] == graphs[1]
    assert not any("shift" in key for keys in graphs[0] for key in keys)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """A store of several shards of 4 x 4 detector tiles, and its counts."""
    path = tmp_path_factory.mktemp("tiled") / "scan.zarr"
    dense = poisson((24, 24, 64, 64))
    with small_shards((4, 4, 16, 16), (12, 24)):
        tdm.convert(tdm.label_counts(dense), path)
    return path, dense


def chunks_read(path, calculate):
    """Ranges of inner chunks that a calculation reads."""
    store = CountingStore(LocalStore(path, read_only=True))
    calculate(tdm.open(store))
    ranges = store.chunk_ranges()
    assert len(ranges) == len(set(ranges))
    return ranges


def apply_square(start, stop, by=None):
    weights = np.zeros((64, 64))
    weights[start:stop, start:stop] = 1
    mask = xr.DataArray(weights, dims=("ky", "kx"))
    return lambda counts: tdm.apply_mask(counts if by is None else with_descan(counts, by), mask).compute()


def test_a_mask_reads_the_tiles_within_reach_alone_and_each_once(tiled, monkeypatch):
    monkeypatch.setattr("tdm_dask.shards.sharded_array.RANGE_BYTES", 1)  # every inner chunk is a range of its own
    path, dense = tiled
    by = np.rint(plane((24, 24), (3, 0), (0, 2)))
    tiles = 6 * 6  # inner chunks of the scan
    assert len(chunks_read(path, apply_square(20, 28))) == tiles
    assert len(chunks_read(path, apply_square(20, 28, by))) == tiles
    assert len(chunks_read(path, apply_square(17, 28))) == tiles
    # Along ky the square reaches the tile before in the lower shard rows alone, along kx the square does everywhere.
    beyond = len(chunks_read(path, apply_square(17, 28, by)))
    assert tiles < beyond <= 4 * tiles
    assert len(chunks_read(path, lambda c: tdm.pixel_statistics(with_descan(c, by)).compute())) == 16 * tiles
    image = tdm.apply_mask(with_descan(tdm.open(path), by), xr.DataArray(np.eye(64), dims=("ky", "kx")))
    moved, seen = oracle.descanned(dense[:6, :5], by[:, :6, :5])
    diagonal = np.eye(64) * np.pad(np.ones((58, 60)), ((3, 3), (2, 2)))
    np.testing.assert_allclose(image[:6, :5], (moved * diagonal).sum((2, 3)))
    assert seen[3:-3, 2:-2].all()


def test_many_shifts_keep_few_cut_masks(tiled):
    """The weights cut for each place of a block do not pile up with the number of shifts."""
    from tdm_dask.passes.reductions import PLACES_KEPT, Images, prepare_masks
    from tdm_dask.reading.blocks import Block

    masks = prepare_masks(np.ones((3, 64, 64)), None, None, None)
    reduction, window = Images(), (slice(0, 24), slice(0, 24))
    state = reduction.start(window, None, masks)
    by = np.random.default_rng(0).integers(-9, 10, (2, 24, 24))
    block = Block(*window, slice(0, 64), slice(0, 64), tiled[1])
    for part, used in shifts.moved(block, None, by, (slice(0, 64), slice(0, 64))):
        reduction.add(state, part, used, masks)
        kept = sum(tile.weights.shape[1] for tile in state["masks"].values())
        assert kept <= PLACES_KEPT * 64 * 64
    expected = np.zeros((24, 24))
    for y, x in np.ndindex(24, 24):
        ky, kx = (slice(max(0, s), 64 + min(0, s)) for s in by[:, y, x])
        expected[y, x] = tiled[1][y, x, ky, kx].sum()
    np.testing.assert_allclose(state["images"], [expected] * 3)


def test_many_shifts_keep_few_sums_of_places(tiled):
    """Sums in the order in which a store is decoded do not pile up with the number of shifts."""
    from tdm_dask.passes.reductions import PLACES_KEPT, Moments
    from tdm_dask.reading.lazy import source_of

    path, dense = tiled
    whole = (slice(0, 64), slice(0, 64))
    reduction, window = Moments(whole, exact=True), (slice(0, 24), slice(0, 24))
    state = reduction.start(window, None, None)
    by = np.random.default_rng(0).integers(-9, 10, (2, 24, 24))
    most = 0
    for block in source_of(tdm.open(path).data).blocks(window, None, None):
        assert block.tile.stored is not None
        for part, used in shifts.moved(block, None, by[:, block.y, block.x], whole):
            reduction.add(state, part, used, None)
            kept = sum(tile.width for tile in state["tiles"])
            assert kept <= PLACES_KEPT * 64 * 64
            most = max(most, kept)
    assert most > PLACES_KEPT * 64 * 60
    expected = np.zeros((64, 64), np.uint64)
    for y, x in np.ndindex(24, 24):
        (ky, there), (kx, here) = (shifts.overlap(64, int(s)) for s in by[:, y, x])
        expected[ky, kx] += dense[y, x, there, here]
    np.testing.assert_array_equal(reduction.finish(state)["total"], expected)


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_workers_of_a_cluster_honour_descan(client, layout, dtype, tmp_path_factory):
    rng = np.random.default_rng(4)
    dense = poisson(SHAPE, dtype)
    counts = with_descan(as_labelled(dense, layout, tmp_path_factory, rng), BY)
    moved, _ = oracle.descanned(dense, BY)
    template = templates_of(SHAPE[:2])
    image = tdm.apply_mask(counts, tdm.derive_mask(counts, template), normalisation="standardised")
    expected = oracle.standardised_image(moved, oracle.correlation(moved, template.values), *oracle.statistics(moved))
    found = image.compute()
    oracle.assert_close(found, expected)
    if layout != "numpy":
        np.testing.assert_allclose(image.compute(scheduler="processes"), found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("coords", "sentence"),
    [
        ({"descan_ky": (("y", "x"), BY[0])}, "descan_ky alone"),
        ({"descan_ky": (("y", "x"), BY[0]), "descan_kx": ("y", BY[0][:, 0])}, "expected numbers"),
        ({"descan_ky": (("y", "x"), BY[0]), "descan_kx": (("y", "x"), BY[0].astype(str))}, "expected numbers"),
        ({"descan_ky": (("y", "x"), BY[0]), "descan_kx": (("y", "x"), BY[0] * np.nan)}, "NaN or infinite at 72"),
    ],
)
def test_shifts_that_make_no_sense_are_refused(coords, sentence):
    counts = tdm.label_counts(poisson(SHAPE)).assign_coords(coords)
    for call in (tdm.pixel_statistics, lambda c: tdm.bin(c, detector=2), tdm.proxy):
        with pytest.raises(errors.CoordinateError, match=sentence) as caught:
            call(counts)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [13, 1e300])
def test_shifts_larger_than_the_detector_are_refused(size):
    counts = with_descan(tdm.label_counts(poisson(SHAPE)), np.full((2, *SHAPE[:2]), size))
    with pytest.raises(errors.RegionError, match="no valid pixel of the 13 x 15 detector"):
        tdm.pixel_statistics(counts)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**30), 2**30), st.integers(-(2**30), 2**30)), min_size=1, max_size=20))
def test_distinct_shifts_are_those_of_numpy(pairs):
    by = np.array(pairs, np.int32).T.reshape(2, 1, -1)
    np.testing.assert_array_equal(shifts.distinct(by, None), np.unique(np.array(pairs), axis=0))


# Measuring


def simulated(
    shape=(32, 32), amplitude=((2.0, 1.0), (-1.5, 3.0)), dose=1000.0, contrast=None, within=0.0, radius=12.0, size=56
):
    """Poisson counts of a disk that wanders by a plane, on tails; its brightness may vary over the scan and within."""
    rng = np.random.default_rng(3)
    by = plane(shape, *amplitude)
    ky, kx = np.indices((size, size))
    counts = np.empty((*shape, size, size), np.uint16)
    for y, x in np.ndindex(shape):
        u, v = ky - size / 2 - by[0, y, x], kx - size / 2 + 1 - by[1, y, x]
        r = np.hypot(u, v)
        slope = 1 + within * (u * np.sin(9 * y / shape[0]) + v * (x / shape[1] - 0.5)) / radius
        pattern = slope / (1 + np.exp(np.clip((r - radius) / 0.4, -50, 50))) + 0.03 * np.exp(-r / radius)
        bright = 1.0 if contrast is None else contrast(y / shape[0], x / shape[1])
        counts[y, x] = rng.poisson(dose * bright * pattern / pattern.sum())
    return counts, by


def holes(y, x):
    """Atom columns, with a hole through which five times as many electrons come."""
    return (5 if (y - 0.3) ** 2 + (x - 0.6) ** 2 < 0.04 else 1) * (1 + 0.8 * np.sin(40 * x) * np.sin(37 * y))


def assert_measured(found, by, limit=0.1):
    for name, expected in zip(NAMES, by, strict=True):
        assert found[name].dims == ("y", "x")
        assert found[name].attrs["units"] == "pixel"
        assert abs(float(found[name].mean())) < 1e-9
        assert float(abs(found[name] - expected).max()) < limit
        assert 0 < found[name].attrs["residual"] < 2


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dose": 20.0, "shape": (64, 64)},
        {"contrast": holes},
        {"contrast": holes, "within": 0.8},
        {"amplitude": ((6.0, 4.0), (4.0, -5.0))},
        {"amplitude": ((0.0, 0.0), (0.0, 0.0))},
        {"shape": (1, 64), "amplitude": ((0.0, 2.0), (0.0, -3.0))},
        {"shape": (64, 1), "amplitude": ((2.0, 0.0), (-3.0, 0.0))},
    ],
    ids=["plain", "low dose", "holes", "holes, within the disk", "strong", "none", "one line", "one column"],
)
def test_the_plane_of_a_tilted_scan_is_recovered(options):
    counts, by = simulated(**options)
    assert_measured(tdm.descan(tdm.label_counts(counts)), by)


@pytest.fixture(scope="module")
def tilted():
    return simulated(contrast=holes)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shifts_are_the_same_wherever_the_counts_are(tilted, layout, tmp_path_factory):
    counts, by = tilted
    labelled = as_labelled(counts, layout, tmp_path_factory, np.random.default_rng(1))
    found = tdm.descan(labelled)
    assert_measured(found, by)
    assert found.drop_vars(NAMES).identical(labelled)
    if isinstance(labelled.data, np.ndarray):
        assert found.data is labelled.data
    else:
        assert found.data.name == labelled.data.name
    expected = labelled.tdm.descan()["descan_ky"].values
    np.testing.assert_allclose(found["descan_ky"], expected, atol=1e-9)


@pytest.mark.long
def test_workers_of_a_cluster_measure_the_same(tilted, client, tmp_path):
    counts = converted(tmp_path / "scan.zarr", tilted[0])
    found = tdm.descan(counts)
    with dask.config.set(scheduler="synchronous"):
        expected = tdm.descan(counts)
    np.testing.assert_allclose([found[n] for n in NAMES], [expected[n] for n in NAMES], atol=1e-9)


def test_invalid_pixels_and_patterns_and_shifts_of_before_take_no_part(tilted):
    counts, by = tilted
    data = counts.astype(np.float32)
    valid, patterns = np.ones(counts.shape[2:], bool), np.ones(counts.shape[:2], bool)
    valid[:, 31:33] = valid[5] = valid[20, 20] = False  # gaps across the disk
    patterns[3:9] = patterns[:, 20] = False
    data[:, :, ~valid] = np.nan
    data[~patterns] = np.inf
    flags = {"valid_pixels": (("ky", "kx"), valid), "valid_patterns": (("y", "x"), patterns)}
    for before in (0 * by, 7 * by):
        found = tdm.descan(with_descan(tdm.label_counts(data), before, **flags))
        assert_measured(found, by)


def test_nan_that_nobody_marked_is_refused(tilted):
    data = tilted[0].astype(np.float32)
    data[3, 4, 20, 21] = np.nan
    with pytest.raises(errors.CountsError, match="1 detector pixels"):
        tdm.descan(tdm.label_counts(data))


def test_a_hot_pixel_that_nobody_marked_does_not_hold_the_disk(tilted):
    counts, by = tilted
    hot = counts.copy()
    hot[:, :, 24, 30] = 3000
    assert_measured(tdm.descan(tdm.label_counts(hot)), by)


def test_a_part_of_the_scan_measures_all_of_it(tilted):
    counts, by = tilted
    data = counts.copy()
    data[20:] = np.random.default_rng(0).poisson(3, data[20:].shape)  # no disk at all
    region = (slice(0, 20), slice(None))
    assert_measured(tdm.descan(tdm.label_counts(data), scan_region=region), by, 0.2)


@pytest.mark.long
def test_descan_brings_the_disk_to_rest_and_calibrate_finds_it(tilted):
    smeared = tdm.label_counts(simulated(amplitude=((0.0, 0.0), (0.0, 6.0)))[0])
    with pytest.raises(errors.CalibrationError, match="ellipse"):
        tdm.calibrate(smeared, semi_angle=20)
    assert tdm.calibrate(tdm.descan(smeared), semi_angle=20).attrs["semi_angle_mrad"] == 20
    still = tdm.descan(tdm.label_counts(tilted[0]))
    calibrated = tdm.calibrate(still, semi_angle=20)
    size = float(calibrated.kx[1] - calibrated.kx[0])
    assert 20 / size == pytest.approx(12, rel=0.02)
    assert (-float(calibrated.ky[0]) / size, -float(calibrated.kx[0]) / size) == pytest.approx((28, 27), abs=0.1)
    assert set(NAMES) <= set(calibrated.coords)
    moved, seen = oracle.descanned(tilted[0], np.rint([still[name].values for name in NAMES]))
    np.testing.assert_array_equal(tdm.pixel_statistics(calibrated)["mean"], moved.sum((0, 1)) / 32**2 * seen)


@pytest.mark.long
def test_of_a_store_only_the_surroundings_of_the_disk_are_read(tmp_path):
    counts, by = simulated(amplitude=((1.0, 0.5), (-0.8, 1.0)), size=128, dose=1e5)
    counts += np.random.default_rng(4).poisson(20, counts.shape).astype(counts.dtype)  # or only the disk would be large
    path = tmp_path / "scan.zarr"
    with small_shards((8, 8, 16, 16), (16, 16)):
        tdm.convert(tdm.label_counts(counts), path)
    store = CountingStore(LocalStore(path, read_only=True))
    with dask.config.set(scheduler="threads"):  # in this process, where reads are counted, whatever cluster is there
        assert_measured(tdm.descan(tdm.open(store)), by)
    ranges = store.chunk_ranges()
    assert len(ranges) == len(set(ranges))
    everything = sum(p.stat().st_size for p in (path / "counts" / "c").rglob("*") if p.is_file())
    assert 0.1 * everything < sum(stop - start for _, start, stop in ranges) < 0.6 * everything


@pytest.mark.long
@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (np.zeros((8, 8, 40, 40), np.uint16), "disk"),
        (poisson((8, 8, 40, 40), mean=50), "disk|laid upon"),
        (simulated(shape=(1, 1))[0], "at least 4"),
        (simulated(shape=(2, 1), amplitude=((1.0, 0.0), (1.0, 0.0)))[0], "at least 4"),
    ],
    ids=["empty", "noise", "one probe", "two probes"],
)
def test_what_cannot_be_measured_is_refused(counts, sentence):
    with pytest.raises(errors.CalibrationError, match=sentence) as caught:
        tdm.descan(tdm.label_counts(counts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "jumps", "sentence"),
    [
        ((8, 1), [-2, 1, -1, 1, -1, 1, -1, 2], "expected a plane that is certain"),
        ((8, 8), [3, -3, -2, 4, -4, 1, 5, -4], "No round, sharp bright-field disk"),
    ],
)
def test_a_plane_no_better_than_none_is_refused(shape, jumps, sentence):
    """A disk that jumps about from line to line has no plane, though one can always be fitted."""
    still, _ = simulated(shape=shape, amplitude=((0.0, 0.0), (0.0, 0.0)), dose=2e4)
    counts = np.stack([np.roll(line, jump, axis=1) for line, jump in zip(still, jumps, strict=True)])
    with pytest.raises(errors.CalibrationError, match=sentence) as caught:
        tdm.descan(tdm.label_counts(counts))
    assert "\n" not in str(caught.value)


# The command line and recipes


@pytest.mark.long
def test_the_command_measures_writes_and_clears(tilted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    converted("scan.zarr", tilted[0])

    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        return caught.value.code, *capsys.readouterr()

    code, out, err = command("descan", "scan.zarr", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["descan"]
    assert found["largest_px"] == pytest.approx([3, 4.5], abs=0.1)
    assert all(0 < rest < 0.5 for rest in found["residual_px"])
    assert_measured(tdm.open("scan.zarr"), tilted[1])
    assert "descan: up to" in command("info", "scan.zarr")[1]
    assert command("calibrate", "scan.zarr", "--semi-angle", "20 mrad")[0] == 0
    assert float(tdm.open("scan.zarr").attrs["semi_angle_mrad"]) == 20.0
    assert_measured(tdm.open("scan.zarr"), tilted[1])
    code, out, err = command("descan", "scan.zarr", "--clear")
    assert (code, err) == (0, "")
    assert "descan" not in out
    assert not set(NAMES) & set(tdm.open("scan.zarr").coords)
    code, _, err = command("descan", "nowhere.zarr")
    assert code == 2
    assert err.count("\n") == 1


def recipe_for(path, **calibration):
    return {
        "source": {"path": str(path)},
        "calibration": {"semi_angle": 20.0, "scan_step": 0.3, **calibration},
        "detectors": {"BF": "disk:10"},
        "templates": {"sites": {"A": [[3.0, 3.0], [6.0, 6.0]]}, "sigma": 0.5},
    }


@pytest.mark.long
def test_a_recipe_measures_descan_once_and_says_so(tilted, tmp_path):
    np.save(tmp_path / "scan.npy", tilted[0].reshape(-1, *tilted[0].shape[2:]))
    recipe = recipe_for(tmp_path / "scan.npy", descan=True)
    recipe["source"]["scan_shape"] = [32, 32]
    result = run_recipe(recipe, tmp_path / "out")
    assert_measured(result.counts, tilted[1])
    assert_measured(tdm.open(result.store), tilted[1])
    by = np.rint([result.counts[name].values for name in NAMES])
    moved, seen = oracle.descanned(tilted[0], by)
    np.testing.assert_allclose(result.pacbed, moved.mean((0, 1)) * seen)
    virtual = (moved * result.masks["detectors"].values[0]).sum((2, 3))
    oracle.assert_close(result.images["virtual"][0], virtual)
    rho = oracle.correlation(moved, result.masks["templates"].values)
    oracle.assert_close(result.masks["mask"], rho, 1.0)
    page = write_report(result).page.read_text(encoding="utf-8")
    assert "Moved every pattern by whole pixels" in page
    again = run_recipe(recipe, tmp_path / "out")
    assert "descan" in result.seconds
    assert "descan" not in again.seconds
    xr.testing.assert_identical(again.images, result.images)


@pytest.mark.long
def test_a_recipe_honours_the_shifts_of_a_store_or_leaves_them_out(tilted, tmp_path):
    path = tmp_path / "scan.zarr"
    converted(path, tdm.descan(tdm.label_counts(tilted[0])))
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    honoured = run_recipe(recipe_for(path), tmp_path / "honoured")
    assert set(NAMES) <= set(honoured.counts.coords)
    assert "valid_pixels" in honoured.masks.coords
    without = run_recipe(recipe_for(path, descan=False), tmp_path / "without")
    assert not set(NAMES) & set(without.counts.coords)
    assert float(abs(without.images["image"] - honoured.images["image"]).max()) > 0
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


assert SHARD[0] < SHAPE[0], "the stores of these tests have several shards"
