"""Dectris: frames over many files, pixels that cannot count, and files that are missing or changed."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hdf5_files import write_master
from reading import assert_reads, random_counts, whole

from tdm_dask.errors import CountsError, ScanShapeError, SourceError
from tdm_dask.sources.formats.registry import open_vendor


def test_dectris_frames_are_read_across_linked_files(tmp_path):
    counts = random_counts((3, 5, 6, 4), "u4")
    frames = counts.reshape(15, 6, 4)
    mask = np.zeros((6, 4), "u4")
    mask[2, 3] = 8
    path = write_master(tmp_path / "scan_master.h5", [frames[:4], frames[4:11], frames[11:]], mask=mask)
    with pytest.raises(ScanShapeError, match="15 frames"):
        open_vendor(path)
    file = open_vendor(path, scan_shape=(3, 5))
    assert_reads(file, counts)
    assert file.acquisition == {"dwell_time_s": pytest.approx(9.95e-5)}
    np.testing.assert_array_equal(file.valid_pixels, mask == 0)


def test_dectris_missing_or_mismatched_parts_are_named(tmp_path):
    frames = random_counts((6, 6, 4), "u2")
    path = write_master(tmp_path / "scan_master.h5", [frames[:3], frames[3:, :5]])
    with pytest.raises(CountsError, match="one shape and dtype"):
        open_vendor(path, scan_shape=(2, 3))
    path = write_master(tmp_path / "scan_master.h5", [frames[:3], frames[3:]])
    (tmp_path / "scan_master_data_000002.h5").unlink()
    with pytest.raises(SourceError, match=r"links scan_master_data_000002\.h5, which is not beside it"):
        open_vendor(path, scan_shape=(2, 3))


def test_real_dectris_master_opens(shared):
    vendor = shared / "data" / "vendor"
    import hdf5plugin  # noqa: F401

    with h5py.File(vendor / "test_00_data_000001.h5") as file:
        expected = file["entry/data/data"][...].reshape(4, 4, 192, 192)
    file = open_vendor(vendor / "test_00_master.h5", scan_shape=(4, 4))
    assert file.source.dtype == np.uint32
    assert_reads(file, expected)


def write_linked(tmp_path, counts, **options):
    frames = counts.reshape(-1, *counts.shape[2:])
    return write_master(tmp_path / "scan_master.h5", [frames[:4], frames[4:]], **options)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i4"])
def test_dectris_counts_keep_their_width(tmp_path, dtype):
    counts = random_counts((2, 4, 5, 3), dtype)
    counts[0, 0, 0, 0] = np.iinfo(dtype).max - 1
    file = open_vendor(write_linked(tmp_path, counts), scan_shape=(2, 4))
    assert file.source.dtype == np.dtype(dtype)
    assert_reads(file, counts)


def test_dectris_equals_rosettasciio_where_that_is_right(tmp_path):
    """It casts uint32 to uint16 and takes height for width; square uint16 it reads correctly."""
    from rsciio.arina import file_reader

    counts = random_counts((3, 3, 6, 6), "u2")
    path = write_linked(tmp_path, counts)
    np.testing.assert_array_equal(whole(open_vendor(path, scan_shape=(3, 3))), file_reader(str(path))[0]["data"])


def test_dectris_scan_shape_from_triggers(tmp_path):
    counts = random_counts((2, 4, 5, 3), "u2")
    file = open_vendor(write_linked(tmp_path, counts, nimages=4))
    assert_reads(file, counts)
    assert any("triggers, frames per trigger" in finding for finding in file.findings)


@pytest.mark.parametrize(("dtype", "bit_depth"), [("u2", None), ("u4", None), ("u4", 16)])
def test_dectris_marks_of_bad_pixels_become_not_valid(tmp_path, dtype, bit_depth):
    counts = random_counts((2, 4, 5, 3), dtype) // 3
    mark = 2 ** (bit_depth or 8 * counts.itemsize) - 1
    counts[..., 1, :] = mark  # a gap
    counts[0, 0, 4, 2] = mark  # saturated once
    mask = np.zeros((5, 3), "u4")
    mask[0, 0] = 1
    file = open_vendor(write_linked(tmp_path, counts, mask=mask, bit_depth=bit_depth), scan_shape=(2, 4))
    expected = np.ones((5, 3), bool)
    expected[1, :] = expected[0, 0] = False
    np.testing.assert_array_equal(file.valid_pixels, expected)
    assert any("3 of them are not in its mask" in finding for finding in file.findings)
    assert_reads(file, counts)


def test_dectris_mask_of_another_shape_is_said_and_not_used(tmp_path):
    counts = random_counts((2, 4, 5, 3), "u2") // 2
    file = open_vendor(write_linked(tmp_path, counts, mask=np.ones((3, 5), "u4")), scan_shape=(2, 4))
    assert file.valid_pixels is None
    assert any("(3, 5) does not fit its frames (5, 3)" in finding for finding in file.findings)


def test_dectris_change_in_any_data_file_is_noticed(tmp_path):
    counts = random_counts((2, 4, 5, 3), "u2")
    path = write_linked(tmp_path, counts)
    file = open_vendor(path, scan_shape=(2, 4))
    identity, token = file.identity, file.source.__dask_tokenize__()
    assert [part["name"] for part in identity["linked"]] == [f"scan_master_data_{i:06d}.h5" for i in (1, 2)]
    with h5py.File(tmp_path / "scan_master_data_000002.h5", "a") as data:
        data["entry/data/data"][0] = 7
    assert open_vendor(path, scan_shape=(2, 4)).identity != identity
    assert open_vendor(path, scan_shape=(2, 4)).source.__dask_tokenize__() != token
    with pytest.raises(SourceError, match=r"scan_master_data_000002\.h5 has changed"):
        whole(file)


def test_dectris_master_without_frames_is_refused(tmp_path):
    path = write_master(tmp_path / "scan_master.h5", [np.zeros((0, 5, 3), "u2")])
    with pytest.raises(CountsError, match="links no frames"):
        open_vendor(path, scan_shape=(2, 4))


def test_dectris_partial_scan_and_frames_before_it(tmp_path):
    counts = random_counts((2, 4, 5, 3), "u2")
    path = write_linked(tmp_path, counts)
    file = open_vendor(path, scan_shape=(2, 3), flyback=1)
    assert_reads(file, counts[:, :3])
    file = open_vendor(path, scan_shape=(3, 4), allow_partial=True)
    np.testing.assert_array_equal(file.valid_patterns, [[True] * 4, [True] * 4, [False] * 4])
    np.testing.assert_array_equal(whole(file)[:2], counts)
