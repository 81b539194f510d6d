"""Raw binary and NumPy files: the bytes that were described, or a sentence that says what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from reading import RNG, assert_reads, random_counts, whole
from vendor_files import write_raw

from tdm_dask.errors import CountsError, InputError, ScanShapeError, SourceError
from tdm_dask.sources.formats.registry import open_vendor


@pytest.fixture
def counts():
    return random_counts((3, 4, 6, 5), "u2")


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "u1", ">i4", "<f4", ">f8"])
@pytest.mark.parametrize(("offset", "gap", "last_gap"), [(0, 0, True), (13, 0, True), (0, 6, True), (512, 7, False)])
def test_raw_binary_reads_every_count(tmp_path, dtype, offset, gap, last_gap):
    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_raw(tmp_path / "scan.raw", counts, offset=offset, gap=gap, last_gap=last_gap)
    file = open_vendor(path, scan_shape=(3, 4), detector_shape=(6, 5), dtype=dtype, offset=offset, gap=gap)
    assert_reads(file, counts)


def test_raw_binary_of_any_extension_opens_when_described(tmp_path, counts):
    path = write_raw(tmp_path / "scan.001", counts)
    assert_reads(open_vendor(path, scan_shape=(3, 4), detector_shape=(6, 5), dtype="u2"), counts)


def test_raw_binary_booleans_become_bytes(tmp_path):
    counts = RNG.random((2, 2, 3, 3)) < 0.5
    path = write_raw(tmp_path / "scan.bin", counts)
    file = open_vendor(path, scan_shape=(2, 2), detector_shape=(3, 3), dtype=bool)
    assert file.source.dtype == np.uint8
    assert_reads(file, counts.astype("u1"))


@pytest.mark.parametrize("missing", ["scan_shape", "detector_shape", "dtype"])
def test_raw_binary_must_be_described(tmp_path, counts, missing):
    path = write_raw(tmp_path / "scan.dat", counts)
    described = {"scan_shape": (3, 4), "detector_shape": (6, 5), "dtype": "u2"}
    del described[missing]
    with pytest.raises(InputError, match=f"raw binary and does not describe itself; give {missing}"):
        open_vendor(path, **described)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scan_shape": (3, 5)},
            r"720 bytes.*12 frames, but.*\(3, 5\) has 15.*such as scan_shape=\(3, 4\) or scan_shape=\(4, 3\)",
        ),
        ({"scan_shape": (2, 4)}, r"720 bytes.*holds 12 frames, but.*\(2, 4\) has 8.*such as scan_shape=\(3, 4\)"),
        ({"detector_shape": (6, 7)}, "needs 1008; the size holds 8 such frames and 48 bytes more"),
        ({"dtype": "u4"}, r"720 bytes read as.*uint32 frames.*holds 6 frames"),
        ({"offset": 1}, "needs 721; the size holds 11 such frames and 59 bytes more"),
        ({"gap": 2}, "needs 744; the size holds 11 such frames and 38 bytes more"),
        ({"offset": 5000}, "needs 5720; the size holds 0 such frames"),
    ],
)
def test_raw_binary_of_another_size_is_refused(tmp_path, counts, options, message):
    path = write_raw(tmp_path / "scan.raw", counts)
    with pytest.raises(ScanShapeError, match=message):
        open_vendor(path, **({"scan_shape": (3, 4), "detector_shape": (6, 5), "dtype": "u2"} | options))


def test_raw_binary_counts_the_last_frame_although_its_gap_is_missing(tmp_path, counts):
    path = write_raw(tmp_path / "scan.raw", counts, gap=6, last_gap=False)
    with pytest.raises(ScanShapeError, match="holds 12 frames"):
        open_vendor(path, scan_shape=(3, 5), detector_shape=(6, 5), dtype="u2", gap=6)


def test_raw_binary_that_lost_frames_since_it_was_opened_is_an_error(tmp_path, counts):
    path = write_raw(tmp_path / "scan.raw", counts)
    file = open_vendor(path, scan_shape=(3, 4), detector_shape=(6, 5), dtype="u2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match="became shorter"):
        whole(file)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "bool", "<f4", ">i8"])
def test_numpy_file_reads_every_count(tmp_path, dtype):
    counts = random_counts((3, 4, 6, 5), "u1").astype(dtype)
    np.save(tmp_path / "scan.npy", counts)
    file = open_vendor(tmp_path / "scan.npy")
    assert_reads(file, counts.astype("u1") if dtype == "bool" else counts)


def test_numpy_stack_of_frames_needs_the_scan_shape(tmp_path, counts):
    np.save(tmp_path / "scan.npy", counts.reshape(12, 6, 5))
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(tmp_path / "scan.npy")
    assert_reads(open_vendor(tmp_path / "scan.npy", scan_shape=(3, 4)), counts)


def test_numpy_stack_of_scans_needs_frame(tmp_path):
    counts = random_counts((2, 3, 4, 6, 5), "u2")
    np.save(tmp_path / "scans.npy", counts)
    with pytest.raises(InputError, match="2 scans; say which one with frame=0 to frame=1"):
        open_vendor(tmp_path / "scans.npy")
    with pytest.raises(InputError, match="frame=2 was given; expected 0 to 1"):
        open_vendor(tmp_path / "scans.npy", frame=2)
    for index in (0, 1):
        assert_reads(open_vendor(tmp_path / "scans.npy", frame=index), counts[index])


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.asfortranarray(np.zeros((2, 3, 4, 5))), SourceError, "Fortran order"),
        (np.zeros((2, 3)), CountsError, r"shape \(2, 3\)"),
        (np.zeros((0, 3, 4, 5)), CountsError, r"shape \(0, 3, 4, 5\)"),
        (np.zeros((2, 3, 4, 5), complex), CountsError, "dtype complex128"),
        (np.full((2, 3, 4, 5), "a"), CountsError, "dtype <U1"),
    ],
)
def test_numpy_file_of_something_else_is_refused(tmp_path, array, error, message):
    np.save(tmp_path / "scan.npy", array)
    with pytest.raises(error, match=message):
        open_vendor(tmp_path / "scan.npy")


def test_numpy_file_of_the_wrong_size_is_refused(tmp_path, counts):
    path = tmp_path / "scan.npy"
    np.save(path, counts)
    data = path.read_bytes()
    for wrong in (data[:-1], data + b"x"):
        path.write_bytes(wrong)
        with pytest.raises(SourceError, match="its header announces 848"):
            open_vendor(path)
    for wrong in (data[:9], b"\x93NUMPY\x09\x00" + data[8:]):
        path.write_bytes(wrong)
        with pytest.raises(SourceError):
            open_vendor(path)
