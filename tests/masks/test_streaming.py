"""Masks and images of a scan while it arrives: equal to those of the whole, at any moment; each pattern read once."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import oracle
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from vendor_files import merlin_hdr, write_mib

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.counts.arrival import expected_counts, follow, replay, stream_frames
from tdm_dask.masks.live import LiveImage, RunningMask, live_image, running_mask
from tdm_dask.reading.blocks import RawFrames

TOLERANCE = {"uint8": 1e-6, "uint16": 1e-6, "uint32": 1e-10, "int16": 1e-10, "float32": 1e-10, "float64": 1e-10}
SHAPE = (5, 6, 4, 3)


def counts_of(dtype, rng, shape=SHAPE, offset=0):
    dtype = np.dtype(dtype)
    values = rng.poisson(4, shape) + offset
    return values.astype(dtype) if dtype.kind != "f" else (values + rng.normal(size=shape)).astype(dtype)


def templates_of(scan, rng, n=2):
    return xr.DataArray(rng.normal(size=(n, *scan[:2])), dims=("template", "y", "x"))


def random_blocks(scan, rng):
    """The scan cut into rectangles in random order."""
    ny, nx = scan.shape[:2]
    rows = sorted({0, ny, *rng.integers(0, ny, 2).tolist()})
    blocks = []
    for y0, y1 in pairwise(rows):
        columns = sorted({0, nx, *rng.integers(0, nx, 2).tolist()})
        blocks += [(slice(y0, y1), slice(x0, x1)) for x0, x1 in pairwise(columns)]
    return [(*blocks[n], scan[blocks[n]]) for n in rng.permutation(len(blocks))]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(sorted(TOLERANCE)),
    st.tuples(st.integers(1, 6), st.integers(2, 6), st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([0, 200]),
)
def test_at_any_moment_the_mask_is_that_of_the_patterns_that_have_arrived(seed, dtype, shape, offset):
    rng = np.random.default_rng(seed)
    scan = counts_of(dtype, rng, shape, offset if np.dtype(dtype) != np.uint8 else offset // 2)
    template = templates_of(shape, rng)
    region = rng.random(shape[2:]) < 0.8
    region.flat[0] = True
    running = RunningMask(expected_counts(shape[:2], shape[2:], dtype), template, detector_region=region)
    for y, x, block in random_blocks(scan, rng):
        running.update(y, x, block)
        seen = running.seen.values
        if seen.sum() < 2:
            with pytest.raises(errors.TemplateError, match="constant over the 1 probe"):
                running.mask()
            continue
        found = running.correlations()
        rho = oracle.correlation(scan, template.values, seen, region)
        mean, std = oracle.statistics(scan, seen)
        # Templates and pixels of few patterns may vary little: what is compared is a correlation, of size 1.
        np.testing.assert_allclose(found["rho"], rho, rtol=0, atol=2e-6 if TOLERANCE[dtype] == 1e-6 else 1e-8)
        np.testing.assert_allclose(found["mean"], np.where(region, mean, 0), rtol=1e-12)
        np.testing.assert_allclose(found["std"], np.where(region, std, 0), rtol=1e-9, atol=1e-7 * (offset + 1))
        assert int(found["n"]) == seen.sum()
    batch = tdm.correlate(tdm.label_counts(scan), template, detector_region=region)
    np.testing.assert_allclose(running.correlations()["rho"], batch["rho"], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["uint16", "float64"])
@pytest.mark.parametrize("method", ["pearson", "mean-scaled"])
def test_the_mask_is_labelled_as_that_of_a_scan_region(dtype, method):
    rng = np.random.default_rng(3)
    scan = tdm.label_counts(counts_of(dtype, rng))
    template = templates_of(SHAPE, rng).assign_coords(template=["Li", "O"])
    running = RunningMask(scan, template)
    for y, x, block in list(replay(scan))[:3]:
        running.update(y, x, block)
    found = running.mask(method)
    expected = tdm.derive_mask(scan, template, method=method, scan_region=(slice(0, 3), slice(None)))
    xr.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert found.attrs == expected.attrs
    assert list(found.coords) == list(expected.coords)
    # It is a value: what arrives later does not change it.
    before = found.copy(deep=True)
    running.update(slice(3, 4), slice(0, 6), scan.values[3:4])
    xr.testing.assert_identical(found, before)


def test_large_counts_of_small_spread_keep_their_correlation():
    rng = np.random.default_rng(4)
    scan = (65000 + rng.poisson(36, (6, 8, 3, 3))).astype(np.uint16)
    template = xr.DataArray(1e3 + rng.normal(size=(6, 8)), dims=("y", "x"))
    running = RunningMask(tdm.label_counts(scan), template)
    for y, x, block in random_blocks(scan, rng):
        running.update(y, x, block)
    np.testing.assert_allclose(running.mask(), oracle.correlation(scan, template.values[None])[0], atol=2e-6)


def test_invalid_pixels_and_patterns_and_descan_are_honoured():
    rng = np.random.default_rng(5)
    for dtype in ("uint16", "float32"):
        scan = tdm.label_counts(counts_of(dtype, rng, (6, 5, 7, 6)))
        valid, patterns = np.ones((7, 6), bool), rng.random((6, 5)) < 0.8
        valid[3, 2] = False
        scan = scan.assign_coords(valid_pixels=(("ky", "kx"), valid), valid_patterns=(("y", "x"), patterns))
        shifts = rng.integers(-1, 2, (2, 6, 5))
        descanned = scan.assign_coords(descan_ky=(("y", "x"), shifts[0]), descan_kx=(("y", "x"), shifts[1]))
        template = templates_of((6, 5), rng)
        mask = xr.DataArray(rng.normal(size=(7, 6)), dims=("ky", "kx"))
        for counts in (scan, descanned):
            last = list(running_mask(counts, template, every=7))[-1]
            xr.testing.assert_allclose(last, tdm.derive_mask(counts, template), rtol=0, atol=TOLERANCE[dtype])
            image = list(live_image(counts, mask))[-1]
            xr.testing.assert_allclose(image, tdm.apply_mask(counts, mask))


def test_running_masks_of_two_receivers_merge_and_stay_as_they_are():
    rng = np.random.default_rng(6)
    for dtype in ("uint16", "float64"):
        scan = tdm.label_counts(counts_of(dtype, rng))
        template = templates_of(SHAPE, rng)
        first, second = (RunningMask(scan, template) for _ in range(2))
        for number, (y, x, block) in enumerate(replay(scan)):
            (first if number % 2 else second).update(y, x, block)
        alone = first.mask()
        merged = first.merge(second)
        xr.testing.assert_allclose(merged.mask(), tdm.derive_mask(scan, template), rtol=0, atol=TOLERANCE[dtype])
        xr.testing.assert_identical(first.mask(), alone)
        with pytest.raises(errors.InputError, match="same 12 patterns"):
            merged.merge(first)
        with pytest.raises(errors.InputError, match="other scans, templates"):
            first.merge(RunningMask(scan, template + 1))


def test_a_template_without_a_site_in_the_first_lines_waits_for_one():
    scan = tdm.label_counts(counts_of("uint16", np.random.default_rng(7)))
    values = np.zeros(SHAPE[:2])
    values[3, 2] = 1
    template = xr.DataArray(values, dims=("y", "x"))
    assert [int(mask.n) for mask in running_mask(scan, template)] == [24, 30]
    with pytest.raises(errors.TemplateError, match="constant over the 6"):
        list(running_mask(list(replay(scan))[:1], template, counts=scan, every=100))


def test_what_does_not_belong_to_the_scan_is_refused():
    scan = tdm.label_counts(counts_of("uint8", np.random.default_rng(8)))
    template = templates_of(SHAPE, np.random.default_rng(8))
    running = RunningMask(scan, template)
    everywhere = slice(0, 1), slice(0, 6)
    with pytest.raises(errors.InputError, match="No valid pattern has arrived"):
        running.mask()
    running.update(*everywhere, scan.values[:1])
    before = running.mask()
    with pytest.raises(errors.InputError, match="arrived again"):
        running.update(slice(0, 2), slice(0, 6), scan.values[:2])
    with pytest.raises(errors.InputError, match="inside"):
        running.update(slice(4, 6), slice(0, 6), scan.values[:2])
    with pytest.raises(errors.CountsError, match="shape"):
        running.update(slice(1, 2), slice(0, 6), scan.values[:2])
    with pytest.raises(errors.CountsError, match="dtype uint16"):
        running.update(slice(1, 2), slice(0, 6), scan.values[1:2].astype(np.uint16))
    xr.testing.assert_identical(running.mask(), before)
    with pytest.raises(errors.InputError, match="give counts"):
        running_mask(replay(scan), template)
    with pytest.raises(errors.InputError, match="every=0 was given"):
        running_mask(scan, template, every=0)


def test_nan_in_counts_is_an_error_of_the_mask():
    scan = counts_of("float64", np.random.default_rng(9))
    scan[1, 2, 1, 1] = np.nan
    with pytest.raises(errors.CountsError, match="1 detector pixels"):
        list(running_mask(tdm.label_counts(scan), templates_of(SHAPE, np.random.default_rng(9)), every=30))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(TOLERANCE)), st.sampled_from(["none", "standardised"]))
def test_the_live_image_is_that_of_the_whole_scan_where_patterns_have_arrived(seed, dtype, normalisation):
    rng = np.random.default_rng(seed)
    scan = counts_of(dtype, rng)
    labelled = tdm.label_counts(scan)
    mask = tdm.derive_mask(labelled, templates_of(SHAPE, rng))
    whole = tdm.apply_mask(labelled, mask, normalisation=normalisation)
    if normalisation == "none":
        expected = oracle.image(scan, mask.values)
    else:
        expected = oracle.standardised_image(scan, mask.values, mask["mean"].values, mask["std"].values)
    live = LiveImage(expected_counts(SHAPE[:2], SHAPE[2:], dtype), mask, normalisation=normalisation)
    assert live.image().isnull().all()
    for y, x, block in random_blocks(scan, rng):
        live.update(y, x, block)
        found = live.image()
        seen = live.seen.values
        np.testing.assert_array_equal(np.isfinite(found), np.broadcast_to(seen, found.shape))
        oracle.assert_close(found.values[:, seen], expected[:, seen], scale=np.abs(expected).max())
    xr.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    assert found.attrs == whole.attrs


def test_an_image_of_a_mask_of_zeros_is_zero_where_patterns_have_arrived():
    images = list(live_image(expected_counts((2, 3), (2, 2)), xr.DataArray(np.zeros((2, 2)), dims=("ky", "kx"))))
    assert [int(image.isnull().sum()) for image in images] == [3, 0]
    assert (images[-1] == 0).all()


def test_frames_in_the_order_of_the_scan_are_a_stream():
    scan = counts_of("uint16", np.random.default_rng(10))
    template = templates_of(SHAPE, np.random.default_rng(10))
    frames = scan.reshape(-1, *SHAPE[2:])
    stream = stream_frames(iter(frames[:20]), SHAPE[:2])
    masks = list(running_mask(stream, template, counts=expected_counts(SHAPE[:2], SHAPE[2:])))
    assert [int(mask.n) for mask in masks] == [6, 12, 18, 20]
    seen = np.arange(30).reshape(SHAPE[:2]) < 20
    np.testing.assert_allclose(masks[-1], oracle.correlation(scan, template.values, seen), atol=2e-6)


def test_each_chunk_of_lazy_counts_is_replayed_once():
    import dask.array as da

    scan = counts_of("uint16", np.random.default_rng(11), (8, 9, 4, 4))
    read = []

    def note(block, block_info=None):
        read.append(block_info[0]["chunk-location"])
        return block

    lazy = da.from_array(scan, chunks=(3, 4, -1, -1)).map_blocks(note, dtype=scan.dtype, meta=scan[:0, :0, :0, :0])
    template = templates_of((8, 9), np.random.default_rng(11))
    last = list(running_mask(tdm.label_counts(lazy), template))[-1]
    assert sorted(read) == [(i, j, 0, 0) for i in range(3) for j in range(3)]
    xr.testing.assert_allclose(last, tdm.derive_mask(tdm.label_counts(scan), template), rtol=0, atol=1e-6)


class Writer:
    """Appends to a file a few bytes at a time, and only when the reader waits: in a thread, and the same every time."""

    def __init__(self, path, content, steps):
        self.path, self.content, self.steps = path, content, steps
        self.asked, self.answered = threading.Semaphore(0), threading.Semaphore(0)
        self.sizes = []
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def write(self):
        written = 0
        for step in self.steps:
            self.asked.acquire()
            with open(self.path, "ab") as file:
                file.write(self.content[written : written + step])
            written += step
            self.sizes.append(min(written, len(self.content)))
            self.answered.release()

    def wait(self, seconds):
        assert self.thread.is_alive(), "the reader waits though everything has been written"
        self.asked.release()
        assert self.answered.acquire(timeout=60)


@pytest.fixture
def reads(monkeypatch):
    """How often each pattern is read from files of frames."""
    times = np.zeros((7, 6), int)
    original = RawFrames.read_as_stored

    def noted(self, y, x, buffers):
        times[y, x] += 1
        return original(self, y, x, buffers)

    monkeypatch.setattr(RawFrames, "read_as_stored", noted)
    return times


def growing(tmp_path, kind, rng):
    """A scan of 7 x 6 patterns, the bytes of its file, and what opens that."""
    scan = rng.poisson(5, (7, 6, 8, 8)).astype(np.uint16)
    if kind == "mib":
        path = write_mib(tmp_path / "whole.mib", scan)
        return scan, path.read_bytes(), tmp_path / "growing.mib", {"scan_shape": (7, 6)}
    gap = 10 if kind == "raw with gaps" else 0
    content = b"\xff" * 5 + b"".join(frame.tobytes() + b"\xfe" * gap for frame in scan.reshape(-1, 8, 8))
    options = {"scan_shape": (7, 6), "detector_shape": (8, 8), "dtype": "<u2", "offset": 5, "gap": gap}
    return scan, content, tmp_path / "growing.raw", options


@pytest.mark.parametrize("kind", ["raw", "raw with gaps", "mib"])
def test_patterns_of_a_growing_file_are_read_once_each_and_once_more_for_the_final_image(tmp_path, reads, kind):
    rng = np.random.default_rng(12)
    scan, content, path, options = growing(tmp_path, kind, rng)
    steps = [*rng.integers(1, len(content) // 8, 60).tolist(), len(content)]
    writer = Writer(path, content, steps)
    file = follow(path, wait=writer.wait, timeout=600, **options)
    template = templates_of((7, 6), rng)
    masks = list(running_mask(file, template, every=1))
    assert len(masks) > 5
    for mask in masks:
        seen = np.arange(42).reshape(7, 6) < int(mask.n)
        np.testing.assert_allclose(mask, oracle.correlation(scan, template.values, seen), atol=2e-6)
    assert (reads == 1).all()
    # Read a last time for the final image: the file that was followed is now a whole scan.
    final = tdm.apply_mask(file.counts, masks[-1], normalisation="standardised").compute(scheduler="synchronous")
    whole = tdm.label_counts(scan)
    expected = tdm.apply_mask(whole, tdm.derive_mask(whole, template), normalisation="standardised")
    xr.testing.assert_allclose(final.drop_vars(["y", "x"]), expected.drop_vars(["y", "x"]), atol=1e-4)
    assert (reads == 2).all()


def test_a_growing_file_gives_no_pattern_before_its_last_byte_is_there(tmp_path):
    _, content, path, options = growing(tmp_path, "raw", np.random.default_rng(13))
    path.write_bytes(content[: 5 + 128])
    file = follow(path, timeout=0, **options)
    for size in [5 + 128, 5 + 2 * 128 - 1, 5 + 2 * 128, 5 + 6 * 128 + 1, 5 + 13 * 128 + 127, len(content)]:
        path.write_bytes(content[:size])
        assert file.present() == (size - 5) // 128


def test_a_file_that_stops_growing_is_given_up_in_words_and_can_be_gone_on_with(tmp_path):
    scan, content, path, options = growing(tmp_path, "raw", np.random.default_rng(14))
    path.write_bytes(content[: 5 + 128 * 20 + 3])
    file = follow(path, timeout=0, **options)
    template = templates_of((7, 6), np.random.default_rng(14))
    running = RunningMask(file.counts, template)

    def read_on():
        for y, x, block in file:
            running.update(y, x, block)

    with pytest.raises(errors.SourceError, match="holds 20 of the 42 patterns of its scan and has not grown for 0 s"):
        read_on()
    assert int(running.mask().n) == 20
    with pytest.raises(errors.SourceError, match="ended at byte"):
        file.counts.compute(scheduler="synchronous")
    path.write_bytes(content)
    read_on()
    np.testing.assert_allclose(running.mask(), oracle.correlation(scan, template.values), atol=2e-6)


def test_a_file_that_cannot_be_followed_says_why(tmp_path):
    missing = tmp_path / "missing.mib"
    with pytest.raises(errors.SourceError, match=r"has not changed for 0 s: .*does not exist"):
        follow(missing, timeout=0, scan_shape=(7, 6))
    (tmp_path / "a.raw").write_bytes(b"1234")
    with pytest.raises(errors.InputError, match="does not describe itself"):
        follow(tmp_path / "a.raw", timeout=0)
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=np.zeros((7, 6, 8, 8), np.uint16), chunks=(1, 6, 8, 8), compression="gzip")
    with pytest.raises(errors.SourceError, match="cannot be read while it grows"):
        follow(tmp_path / "a.h5", timeout=0)


def test_a_complete_file_is_followed_to_its_end_at_once(tmp_path):
    scan = np.random.default_rng(15).poisson(5, (7, 6, 8, 8)).astype(np.uint16)
    path = write_mib(tmp_path / "whole.mib", scan, hdr=merlin_hdr(42, 6))
    whole = np.zeros_like(scan)
    for y, x, block in follow(path, timeout=0):
        whole[y, x] = block
    np.testing.assert_array_equal(whole, scan)
