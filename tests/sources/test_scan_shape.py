"""Frames that are more, fewer or otherwise arranged than the scan: what is offered, left out, and marked as missing."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import assert_reads, random_counts, whole
from small_stores import small_shards
from vendor_files import write_blo, write_empad, write_mib, write_raw

import tdm_dask as tdm
from tdm_dask.errors import InputError, ScanShapeError, SourceError
from tdm_dask.reading.blocks import RawFrames
from tdm_dask.reading.store import stored_statistics
from tdm_dask.sources.formats.registry import open_vendor
from tdm_dask.sources.scan_shape import Rhythm, trims_that_fit


def as_numpy(path, frames):
    np.save(path.with_suffix(".npy"), frames)
    return path.with_suffix(".npy"), {}


def as_merlin(path, frames):
    return write_mib(path.with_suffix(".mib"), frames), {}


def as_raw(path, frames):
    return write_raw(path.with_suffix(".bin"), frames, offset=5, gap=3), {
        "detector_shape": frames.shape[1:],
        "dtype": frames.dtype.str,
        "offset": 5,
        "gap": 3,
    }


def as_blockfile(path, frames):
    square = np.zeros((1, len(frames), 6, 6), "u1")
    square[0, ..., :5] = frames % 256
    return write_blo(path.with_suffix(".blo"), square), {}


WRITERS = [as_numpy, as_merlin, as_raw, as_blockfile]


def pixels_of(file):
    """The pixels that every writer writes, as bytes."""
    return whole(file)[..., :6, :5].astype("u1")


# Flyback and frames before and after the scan


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("flyback", "first", "after"), [(0, 0, 3), (2, 0, 0), (0, 4, 0), (2, 3, 0), (1, 7, 5), (2, 0, -2)]
)
def test_flyback_and_extra_frames_are_left_out(tmp_path, write, flyback, first, after):
    ny, nx = 3, 4
    frames = random_counts((first + ny * (nx + flyback) + after, 6, 5), "u2")
    path, layout = write(tmp_path / "scan", frames)
    skip = first if first or after > 0 else None
    file = open_vendor(path, scan_shape=(ny, nx), flyback=flyback, skip_first=skip, **layout)
    expected = np.stack([frames[first + y * (nx + flyback) :][:nx] for y in range(ny)]) % 256
    np.testing.assert_array_equal(pixels_of(file), expected)
    assert file.valid_patterns is None
    if after > 0:
        assert f"{after} frame(s) after the scan are left out." in file.findings
    if first:
        assert f"{first} frame(s) before the scan are left out: skip_first={first}." in file.findings


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_window_of_a_trimmed_scan_reads_the_right_frames(tmp_path_factory, data):
    ny, nx = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    flyback, first, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 6)), data.draw(st.integers(0, 4))
    frames = random_counts((first + ny * (nx + flyback) + after, 3, 2), "u2")
    path, _ = data.draw(st.sampled_from([as_numpy, as_merlin]))(tmp_path_factory.mktemp("frames") / "scan", frames)
    file = open_vendor(path, scan_shape=(ny, nx), flyback=flyback, skip_first=first)
    assert_reads(file, np.stack([frames[first + y * (nx + flyback) :][:nx] for y in range(ny)]))


def test_tvips_frames_can_be_trimmed(shared):
    path = shared / "data" / "vendor" / "test_tvips_2345_000.tvips"
    (theirs,) = importlib.import_module("rsciio.tvips").file_reader(str(path))
    frames = theirs["data"]
    assert len(frames) == 6
    assert_reads(open_vendor(path, scan_shape=(2, 2), flyback=1), frames.reshape(2, 3, *frames.shape[1:])[:, :2])
    assert_reads(open_vendor(path, scan_shape=(2, 2), skip_first=1), frames[1:5].reshape(2, 2, *frames.shape[1:]))
    file = open_vendor(path, scan_shape=(2, 4), allow_partial=True)
    expected = np.concatenate([frames, np.zeros_like(frames[:2])]).reshape(2, 4, *frames.shape[1:])
    assert_reads(file, expected)
    np.testing.assert_array_equal(file.valid_patterns, [[True] * 4, [True, True, False, False]])


def test_the_example_of_a_lab_is_offered():
    assert trims_that_fit(33800, (128, 256)) == [(4, 520, "33800 = 130 x 260")]


@pytest.mark.parametrize(
    ("n_frames", "shape", "expected"),
    [
        (130 * 260, (130, 256), [(4, 0)]),
        (130 * 260 - 4, (130, 256), [(4, 0)]),
        (131 * 257, (128, 256), [(1, 3 * 257)]),
        (256 * 256 + 1, (256, 256), []),
    ],
)
def test_trims_that_fit_divide_the_frames_into_lines(n_frames, shape, expected):
    found = [fit[:2] for fit in trims_that_fit(n_frames, shape)]
    assert found[: len(expected)] == expected
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(("first", "skip"), [(260, 260), (520, 520), (780, 520), (5, 5)])
def test_times_of_the_frames_go_before_what_only_divides(first, skip):
    n_frames = skip + 128 * 260
    assert [fit[:2] for fit in trims_that_fit(n_frames, (128, 256), Rhythm(260, first, "The clock"))] == [(4, skip)]


@pytest.mark.parametrize("write", WRITERS)
def test_the_error_offers_what_fits(tmp_path, write):
    path, layout = write(tmp_path / "scan", random_counts((21, 6, 5), "u2"))
    with pytest.raises(ScanShapeError, match=r"21 frames, but scan_shape=\(3, 5\) has 15 .*flyback=2 \(21 = 3 x 7\)"):
        open_vendor(path, scan_shape=(3, 5), **layout)
    with pytest.raises(ScanShapeError, match=r"has 20 .*skip_first=1 or skip_first=0 if 1 frame\(s\) came before"):
        open_vendor(path, scan_shape=(4, 5), **layout)
    with pytest.raises(ScanShapeError, match=r"with flyback=1 needs 24 frames, more than.*or allow_partial"):
        open_vendor(path, scan_shape=(5, 4), flyback=1, **layout)


def test_flyback_within_the_declared_line_is_recognised(tmp_path):
    path = write_blo(tmp_path / "scan.blo", random_counts((3, 5, 6, 6), "u1"))
    with pytest.raises(ScanShapeError, match=r"the header \(3, 5\).*give the same with scan_shape=\(3, 4\)"):
        open_vendor(path, flyback=1)
    assert open_vendor(path, scan_shape=(3, 4), flyback=1).source.shape[:2] == (3, 4)


def test_frames_are_not_left_out_of_a_scan_with_a_shape_of_its_own(tmp_path):
    from rsciio.nexus import file_writer
    from vendor_files import signal_dict

    file_writer(str(tmp_path / "scan.nxs"), signal_dict(random_counts((3, 4, 6, 5), "u2"), [{}] * 4, {}))
    for option in ({"flyback": 1}, {"skip_first": 1}):
        with pytest.raises(InputError, match=f"{next(iter(option))}=1 was given"):
            open_vendor(tmp_path / "scan.nxs", **option)


@pytest.mark.parametrize("option", [{"flyback": -1}, {"flyback": 1.5}, {"skip_first": -1}, {"skip_first": "3"}])
def test_trims_that_make_no_sense_are_refused(tmp_path, option):
    path, _ = as_numpy(tmp_path / "scan", random_counts((12, 6, 5), "u2"))
    with pytest.raises(InputError, match=f"{next(iter(option))}=.* was given"):
        open_vendor(path, scan_shape=(3, 4), **option)


def test_nothing_left_after_skip_first_is_an_error(tmp_path):
    path, _ = as_numpy(tmp_path / "scan", random_counts((12, 6, 5), "u2"))
    with pytest.raises(ScanShapeError, match="skip_first=12 leaves none"):
        open_vendor(path, scan_shape=(3, 4), skip_first=12, allow_partial=True)


# Interrupted scans


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("n_frames", "flyback", "first"), [(1, 0, None), (4, 0, None), (7, 0, None), (9, 1, None), (9, 2, 2)]
)
def test_missing_probes_are_marked_and_read_as_zeros(tmp_path, write, n_frames, flyback, first):
    ny, nx = 3, 4
    frames = random_counts((n_frames, 6, 5), "u2") | 1
    path, layout = write(tmp_path / "scan", frames)
    options = {"scan_shape": (ny, nx), "flyback": flyback, "skip_first": first} | layout
    with pytest.raises(ScanShapeError, match="allow_partial=True if the scan was interrupted"):
        open_vendor(path, **options)
    file = open_vendor(path, allow_partial=True, **options)
    place = (first or 0) + np.arange(ny)[:, None] * (nx + flyback) + np.arange(nx)
    np.testing.assert_array_equal(file.valid_patterns, place < n_frames)
    expected = np.where((place < n_frames)[..., None, None], frames[np.minimum(place, n_frames - 1)], 0) % 256
    np.testing.assert_array_equal(pixels_of(file), expected)
    missing = int((place >= n_frames).sum())
    assert any(finding.startswith(f"{missing} of 12 probe positions have no frame") for finding in file.findings)


@pytest.mark.parametrize("present", range(1, 13))
def test_every_window_of_an_interrupted_scan_reads_zeros_where_nothing_is(tmp_path, present):
    counts = random_counts((12, 6, 5), "u2")
    path, _ = as_merlin(tmp_path / "scan", counts[:present])
    counts[present:] = 0
    assert_reads(open_vendor(path, scan_shape=(3, 4), allow_partial=True), counts.reshape(3, 4, 6, 5))


@pytest.mark.parametrize("cut", [1, 30, 61])
def test_a_last_frame_cut_short_counts_as_missing(tmp_path, cut):
    """Files whose headers announce the whole scan."""
    counts = random_counts((3, 4, 6, 5), "u2")
    np.save(tmp_path / "scan.npy", counts)
    square = random_counts((3, 4, 8, 8), "u1")
    write_blo(tmp_path / "scan.blo", square)
    for path, values in ((tmp_path / "scan.npy", counts), (tmp_path / "scan.blo", square)):
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(SourceError):
            open_vendor(path)
        file = open_vendor(path, allow_partial=True)
        missing = 2 if cut == 61 and path.suffix == ".npy" else 1
        expected = values.copy()
        expected[-1, -missing:] = 0
        assert_reads(file, expected)
        assert not file.valid_patterns[-1, -missing:].any()
        assert file.valid_patterns.sum() == 12 - missing
        assert any("cut short" in finding for finding in file.findings)


def test_a_truncated_empad_scan_opens_in_part(tmp_path):
    counts = random_counts((3, 2, 128, 128), "f4")
    header = write_empad(tmp_path / "scan.xml", counts, cut=100)
    file = open_vendor(header, allow_partial=True)
    counts[2, 1] = 0
    assert_reads(file, counts)
    np.testing.assert_array_equal(file.valid_patterns, [[True, True], [True, True], [True, False]])


def test_a_truncated_raw_file_opens_in_part(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    path = write_raw(tmp_path / "scan.raw", counts)
    path.write_bytes(path.read_bytes()[:-61])
    options = {"scan_shape": (3, 4), "detector_shape": (6, 5), "dtype": "u2"}
    with pytest.raises(ScanShapeError, match=r"10 such frames and 59 bytes more.*allow_partial"):
        open_vendor(path, **options)
    file = open_vendor(path, allow_partial=True, **options)
    counts[2, 2:] = 0
    assert_reads(file, counts)


def test_a_whole_scan_is_not_changed_by_allow_partial(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    path, _ = as_merlin(tmp_path / "scan", counts.reshape(12, 6, 5))
    file = open_vendor(path, scan_shape=(3, 4), allow_partial=True)
    assert file.valid_patterns is None
    assert file.source == open_vendor(path, scan_shape=(3, 4)).source
    with pytest.raises(ScanShapeError, match="fewer than the file has"):
        open_vendor(path, scan_shape=(2, 4), allow_partial=True)


def test_plain_frames_stay_plain_frames(tmp_path):
    path, _ = as_numpy(tmp_path / "scan", random_counts((15, 6, 5), "u2"))
    source = open_vendor(path, scan_shape=(3, 4), flyback=1).source
    assert isinstance(source, RawFrames)
    assert source.line_stride == 5 * 60


def test_an_interrupted_scan_is_left_out_of_every_statistic(tmp_path):
    counts = random_counts((12, 6, 8), "u2") | 1
    path, _ = as_merlin(tmp_path / "scan", counts[:7])
    valid = np.arange(12).reshape(3, 4) < 7
    opened = tdm.open(path, scan_shape=(3, 4), allow_partial=True)
    np.testing.assert_array_equal(opened.valid_patterns, valid)
    with small_shards():
        stored = tdm.convert(path, tmp_path / "scan.zarr", scan_shape=(3, 4), allow_partial=True)
    np.testing.assert_array_equal(stored.valid_patterns, valid)
    assert not stored.values[~valid].any()
    mean = counts[:7].astype(float).mean(0)
    for some in (opened, stored):
        statistics = tdm.pixel_statistics(some)
        assert int(statistics["n"]) == 7
        np.testing.assert_allclose(statistics["mean"], mean)
        image = tdm.apply_mask(some, xr.DataArray(np.ones((6, 8)), dims=("ky", "kx")))
        np.testing.assert_allclose(image.values[valid], counts[:7].sum((1, 2), dtype=float))
        assert np.isnan(image.values[~valid]).all()
    np.testing.assert_allclose(stored_statistics(tmp_path / "scan.zarr")["pattern_mean"], mean)
    assert tdm.verify(tmp_path / "scan.zarr").shards == 1


def test_another_trim_is_another_conversion(tmp_path):
    path, _ = as_numpy(tmp_path / "scan", random_counts((16, 6, 8), "u2"))
    store = tmp_path / "scan.zarr"
    first = tdm.convert(path, store, scan_shape=(3, 4), skip_first=0).compute()
    np.testing.assert_array_equal(tdm.convert(path, store, scan_shape=(3, 4), skip_first=0), first)
    with pytest.raises(tdm.errors.StoreError, match="converted from another file or in another way"):
        tdm.convert(path, store, scan_shape=(3, 4), skip_first=4)
    second = tdm.convert(path, store, scan_shape=(3, 4), skip_first=4, overwrite=True)
    assert not np.array_equal(first, second)


def test_the_command_line_trims(tmp_path, capsys):
    from tdm_dask.cli import main

    frames = random_counts((3 + 3 * 5, 6, 8), "u2")
    path = write_mib(tmp_path / "scan.mib", frames)

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return caught.value.code, *capsys.readouterr()

    code, _, err = run("info", path, "--scan-shape", "3x4")
    assert code == 2
    assert "18 frames, but --scan-shape 3x4 has 12 probe positions" in err
    trims = ("--scan-shape", "3x4", "--flyback", 1, "--skip-first", 3)
    code, out, _ = run("info", path, *trims)
    assert code == 0
    assert "The last 1 of the 5 frames of each line are left out: --flyback 1." in out
    assert "--scan-shape 3x4 --flyback 1 --skip-first 3" in out
    code, *_ = run("convert", path, tmp_path / "a.zarr", *trims)
    assert code == 0
    np.testing.assert_array_equal(tdm.open(tmp_path / "a.zarr"), frames[3:].reshape(3, 5, 6, 8)[:, :4])
    code, out, _ = run("info", path, "--scan-shape", "5x4", "--skip-first", 0, "--allow-partial")
    assert code == 0
    assert "2 of 20 probe positions have no frame" in out
    assert "--skip-first 0 --allow-partial" in out
