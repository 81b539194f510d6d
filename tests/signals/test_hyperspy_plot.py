"""Plots of lazy signals read what they show, and what is dragged over an image is followed; without a display."""

from __future__ import annotations

import importlib

import matplotlib
import numpy as np
import oracle
import pytest
import xarray as xr
import zarr
from counted_reads import CountingStore, several_shards
from signals_for_tests import register, scan_signal
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.reading import store as stores
from tdm_dask.shards.codec import COMPRESSIONS

matplotlib.use("Agg")
hs = pytest.importorskip("hyperspy.api")
hyperspy = importlib.import_module("tdm_dask.hyperspy")
from tdm_dask.signals.conversion import from_signal  # noqa: E402


@pytest.fixture(autouse=True)
def _figures():
    import matplotlib.pyplot as plt

    register()
    yield
    plt.close("all")


def large_store(path, shards=32):
    """A store of equal shards, one shard's bytes written many times: 128 MiB of counts each."""
    shape = (32, 32 * shards, 256, 256)
    attributes = {"schema": 1, "state": "complete", "id": stores.new_id()}
    backend = stores.resolve(path, read_only=False)
    array = stores.create(backend, attributes, shape, np.dtype(np.uint16), COMPRESSIONS["lz4"], {})
    tile = np.random.default_rng(0).poisson(0.5, (32, 2, 256, 256)).astype(np.uint16)
    block = np.tile(tile, (1, 16, 1, 1))
    data = b"".join(array.encode_shard((0, 0, 0, 0), lambda y, x: block[y, x]))
    for n in range(shards):
        file = path / array.key((0, n, 0, 0))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    totals = np.tile(block.sum((2, 3), dtype=np.uint64), (1, shards))
    group = zarr.open_group(path, mode="r+")
    group.create_array("total_counts", data=totals, dimension_names=["y", "x"])
    return block, totals


@pytest.mark.long
def test_a_plot_of_a_4_gb_store_reads_the_chunk_that_it_shows(tmp_path):
    block, totals = large_store(tmp_path / "scan.zarr")
    counting = CountingStore(LocalStore(tmp_path / "scan.zarr", read_only=True))
    signal = hyperspy.open_signal(counting)
    assert signal.data.nbytes == 4 * 2**30
    assert counting.reads == []
    signal.plot()
    assert {key for key, _, _ in counting.reads} == {"counts/c/0/0/0/0"}
    ranges = counting.chunk_ranges()
    assert len(ranges) == len(set(ranges)), "a chunk was read twice"
    np.testing.assert_array_equal(signal._plot.navigator_plot.ax.images[0].get_array(), totals)
    np.testing.assert_array_equal(signal._plot.signal_plot.ax.images[0].get_array(), block[0, 0])
    # Of the shard a small part is read: the pattern, and the neighbours that lie in the same chunks.
    ny, nx = (chunks[0] for chunks in signal.data.chunks[:2])
    assert ny * nx * 256 * 256 * 2 <= 32 * 2**20
    shard = (tmp_path / "scan.zarr" / "counts/c/0/0/0/0").stat().st_size
    assert sum(stop - start for _, start, stop in ranges) < 0.3 * shard
    # Within the chunk nothing more is read; the next one is.
    counting.reads.clear()
    signal.axes_manager.indices = (nx - 1, ny - 1)
    np.testing.assert_array_equal(signal._plot.signal_plot.ax.images[0].get_array(), block[ny - 1, nx - 1])
    assert counting.reads == []
    signal.axes_manager.indices = (40, 7)
    np.testing.assert_array_equal(signal._plot.signal_plot.ax.images[0].get_array(), block[7, 8])
    assert {key for key, _, _ in counting.reads} == {"counts/c/0/1/0/0"}


@pytest.mark.long
def test_another_navigator_can_be_given(tmp_path):
    path, counts = several_shards(tmp_path)
    image = np.arange(40.0 * 48).reshape(40, 48)
    for navigator in (hs.signals.Signal2D(image), xr.DataArray(image, dims=("y", "x"))):
        np.testing.assert_array_equal(hyperspy.open_signal(path, navigator=navigator).navigator.data, image)
    assert hyperspy.open_signal(path, navigator=None).navigator is None
    np.testing.assert_array_equal(hyperspy.open_signal(path).navigator.data, counts.sum((2, 3)))
    with pytest.raises(tdm.errors.InputError, match="navigator"):
        hyperspy.open_signal(path, navigator="sum")


def test_a_vendors_file_has_no_navigator_until_one_is_given(tmp_path):
    np.save(tmp_path / "scan.npy", np.ones((3, 4, 5, 6), np.uint16))
    signal = hyperspy.open_signal(tmp_path / "scan.npy")
    assert signal.navigator is None
    assert signal._lazy
    assert signal.axes_manager.shape == (4, 3, 6, 5)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_mask_is_drawn_with_zero_in_the_middle(lazy):
    signal = scan_signal(lazy=lazy)
    template = np.random.default_rng(0).normal(size=(2, 7, 6))
    mask = hyperspy.derive_mask(signal, template)
    mask.plot()
    low, high = mask._plot.signal_plot.ax.images[0].get_clim()
    assert low == -high
    assert mask._plot.signal_plot.ax.images[0].get_cmap().name == "RdBu_r"
    mask.plot(cmap="PuOr")
    assert mask._plot.signal_plot.ax.images[0].get_cmap().name == "PuOr"


# What is dragged


def lattice_scan(lazy=False):
    """A scan whose counts have something to follow: columns every 1.2 angstrom."""
    signal = scan_signal((24, 26, 12, 12), lazy=False)
    counts = from_signal(signal)
    y, x = counts.y.values[:, None], counts.x.values
    columns = 1 + np.cos(2 * np.pi * y / 1.2) * np.cos(2 * np.pi * x / 1.2)
    weights = np.random.default_rng(1).random((12, 12))
    signal.data[:] = np.random.default_rng(2).poisson(5 * columns[..., None, None] * weights)
    return signal.as_lazy() if lazy else signal


SITES = np.array([(1.2 * i, 1.2 * j) for i in range(5) for j in range(1, 6)])


def expected(signal, sites, sigma, **options):
    counts = from_signal(signal)
    template = tdm.gaussian_template(counts, sites, sigma=sigma).compute()
    mask = tdm.derive_mask(counts, template, **options).compute()
    return template, mask, tdm.apply_mask(counts, mask, normalisation="standardised").compute()


def assert_follows(tuner, signal, sites, sigma, **options):
    template, mask, image = expected(signal, sites, sigma, **options)
    oracle.assert_close(tuner.template.data, template)
    oracle.assert_close(tuner.mask.data, mask, 1)
    oracle.assert_close(tuner.image.data, image)


@pytest.mark.parametrize("lazy", [False, True])
def test_mask_and_image_follow_the_width_and_the_place_of_all_sites(lazy):
    signal = lattice_scan(lazy)
    tuner = hyperspy.TemplateTuner(signal, SITES, sigma="30 pm")
    assert_follows(tuner, signal, SITES, 0.3)
    tuner.handle.r = 0.05  # nm, as the axes are
    assert tuner.sigma == pytest.approx(0.5)
    assert_follows(tuner, signal, SITES, 0.5)
    tuner.handle.cx += 0.03
    tuner.handle.cy -= 0.01
    np.testing.assert_allclose(tuner.sites, SITES + np.array([-0.1, 0.3]))
    assert_follows(tuner, signal, SITES + np.array([-0.1, 0.3]), 0.5)
    found = from_signal(tuner.template)
    assert found.attrs["sigma_angstrom"] == pytest.approx(0.5), "the metadata must follow too"


def test_points_are_dragged_one_by_one():
    signal = lattice_scan()
    points = [hs.roi.Point2DROI(x=x / 10, y=y / 10) for y, x in SITES[:4]]
    tuner = hyperspy.TemplateTuner(signal, points, sigma=0.3)
    tuner.handle.cx += 0.05  # the handle is for the width alone
    assert_follows(tuner, signal, SITES[:4], 0.3)
    points[2].x += 0.04
    points[2].y += 0.02
    moved = SITES[:4].copy()
    moved[2] += 0.2, 0.4
    assert_follows(tuner, signal, moved, 0.3)


def test_dragging_on_the_plot_moves_the_plots_of_mask_and_image():
    signal = lattice_scan()
    tuner = hyperspy.TemplateTuner(signal, SITES, sigma=0.3)
    tuner.plot()
    widget = next(iter(tuner.handle.widgets))
    start = tuner.handle.cx, tuner.handle.cy
    widget.position = (start[0] + 0.031, start[1] + 0.02)
    assert (tuner.handle.cx, tuner.handle.cy) == pytest.approx((start[0] + 0.031, start[1] + 0.02))
    assert_follows(tuner, signal, SITES + np.array([0.2, 0.31]), 0.3)
    widget.size = (0.045, 0)
    assert_follows(tuner, signal, SITES + np.array([0.2, 0.31]), 0.45)
    for shown in (tuner.mask, tuner.image):
        np.testing.assert_array_equal(shown._plot.signal_plot.ax.images[0].get_array(), shown.data)


def test_kinds_regions_and_bins_are_taken():
    signal = lattice_scan()
    counts = from_signal(signal)
    sites = {"A": SITES[::2], "B": SITES[1::2]}
    circle, used = hs.roi.CircleROI(0, 0, 7.0), hs.roi.RectangularROI(left=0.12, right=0.5, top=0.0, bottom=0.4)
    tuner = hyperspy.TemplateTuner(signal, sites, sigma=0.3, detector_region=circle, scan_region=used)
    options = {"detector_region": tdm.disk(counts, 7.0), "scan_region": (slice(0, 20), slice(1, 20))}
    tuner.handle.r = 0.04
    _, mask, image = expected(signal, sites, 0.4, **options)
    inside = from_signal(tuner.mask)
    oracle.assert_close(inside, mask.sel(ky=inside.ky, kx=inside.kx, method="nearest"), 1)
    oracle.assert_close(tuner.image.data, image)
    full_mask, full_image = tuner.full()
    oracle.assert_close(full_mask.data, mask, 1)
    oracle.assert_close(full_image.data, image)
    binned = hyperspy.TemplateTuner(signal, sites, sigma=0.4, bin=2)
    assert binned.mask.axes_manager.signal_shape == (6, 6)
    small = tdm.bin(counts, detector=2)
    oracle.assert_close(binned.mask.data, tdm.derive_mask(small, tdm.gaussian_template(small, sites, sigma=0.4)), 1)


@pytest.mark.long
def test_the_store_is_read_once_and_no_move_reads_it_again(tmp_path):
    path, _ = several_shards(tmp_path)
    counts = tdm.calibrate(tdm.open(path), scan_step=0.3)
    stores.write_calibration(path, counts)
    counting = CountingStore(LocalStore(path, read_only=True))
    tuner = hyperspy.TemplateTuner(
        hyperspy.open_signal(counting), [(3.0, 3.0), (6.0, 7.0)], sigma=0.5, detector_region=(slice(40, 60),) * 2
    )
    ranges = counting.chunk_ranges()
    assert len(ranges) == len(set(ranges)) > 0
    counting.reads.clear()
    tuner.handle.r = 0.8
    tuner.handle.cx += 1
    assert counting.reads == []


def test_a_move_out_of_the_scan_is_a_warning_and_changes_nothing():
    signal = lattice_scan()
    tuner = hyperspy.TemplateTuner(signal, SITES[:1], sigma=0.3)
    before = tuner.image.data.copy()
    with pytest.warns(UserWarning, match="inside the scan"):
        tuner.handle.cx += 100
    np.testing.assert_array_equal(tuner.image.data, before)
    tuner.handle.cx -= 100
    np.testing.assert_allclose(tuner.image.data, before, rtol=1e-6, atol=1e-6)


def test_nothing_follows_after_close():
    tuner = hyperspy.TemplateTuner(lattice_scan(), SITES, sigma=0.3)
    tuner.plot()
    before = tuner.image.data.copy()
    tuner.close()
    tuner.handle.r = 0.06
    np.testing.assert_array_equal(tuner.image.data, before)
    assert not tuner.handle.signal_map


def test_what_cannot_work_is_refused_before_anything_is_read():
    signal = scan_signal()
    with pytest.raises(tdm.errors.SiteError):
        hyperspy.TemplateTuner(signal, [(100.0, 100.0)], sigma=0.3)
    signal.axes_manager.navigation_axes.set(units="px")
    with pytest.raises(tdm.errors.CoordinateError, match="angstrom"):
        hyperspy.TemplateTuner(signal, SITES, sigma=0.3)


def test_a_signal_of_a_file_has_its_name_for_a_title(tmp_path):
    np.save(tmp_path / "scan.npy", np.ones((3, 4, 5, 6), np.uint16))
    signal = hyperspy.open_signal(tmp_path / "scan.npy")
    assert signal.metadata.General.title == "scan.npy"
    assert hyperspy.apply_mask(signal, np.ones((5, 6))).metadata.General.title == "image of scan.npy"
