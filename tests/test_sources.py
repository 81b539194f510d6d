"""Vendor files: counts bit for bit, headers without guesses, and every wrong file refused in words."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vendor_files import merlin_hdr, signal_dict, write_blo, write_empad, write_mib, write_raw

from tdm_dask.blocks import RawFrames
from tdm_dask.errors import CountsError, InputError, ScanShapeError, SourceError
from tdm_dask.lazy import as_dask, source_of
from tdm_dask.sources import identity, known_extensions, open_vendor, stacks
from tdm_dask.sources.vendor import plain

RNG = np.random.default_rng(7)


def random_counts(shape, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    top = min(np.iinfo(dtype).max, 2**31)
    return RNG.integers(0, top, size=shape, endpoint=True).astype(dtype)


def whole(file):
    ny, nx = file.source.shape[:2]
    return file.source.read(0, ny, 0, nx)


def assert_reads(file, expected):
    """The pickled source gives exactly these counts, whole, in windows, in blocks, in native byte order."""
    source = pickle.loads(pickle.dumps(file.source))
    ny, nx = expected.shape[:2]
    assert source.shape == expected.shape
    assert source.dtype.isnative
    got = source.read(0, ny, 0, nx)
    assert got.dtype == source.dtype
    np.testing.assert_array_equal(got, expected)
    for y0, y1, x0, x1 in [
        (0, 1, 0, 1),
        (ny - 1, ny, 0, nx),
        (0, ny, nx - 1, nx),
        (ny // 2, ny, nx // 3, nx),
    ]:
        part = source.read(y0, y1, x0, x1)
        assert part.flags.c_contiguous
        np.testing.assert_array_equal(part, expected[y0:y1, x0:x1])
    for window in [(slice(0, ny), slice(0, nx)), (slice(ny // 2, ny), slice(nx // 3, nx))]:
        seen = np.zeros((ny, nx), int)
        for block in source.blocks(window, None, None):
            seen[block.y, block.x] += 1
            np.testing.assert_array_equal(block.counts, expected[block.y, block.x, block.ky, block.kx])
        inside = np.zeros((ny, nx), int)
        inside[window] = 1
        np.testing.assert_array_equal(seen, inside)
    json.dumps(file.metadata, allow_nan=False)
    json.dumps(file.acquisition, allow_nan=False)


@pytest.fixture
def counts():
    return random_counts((3, 4, 6, 5), "u2")


# Merlin


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("extension", [".mib", ".MIB"])
def test_merlin_with_hdr_reads_every_count(tmp_path, dtype, extension):
    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_mib(tmp_path / f"scan{extension}", counts, hdr=merlin_hdr(12, 4, 3, 4))
    file = open_vendor(path)
    assert_reads(file, counts)
    assert file.acquisition == {"dwell_time_s": pytest.approx(1e-3)}
    assert file.metadata["counter_depth_bits"] == 12
    assert file.metadata["hdr_file"]["ScanX"] == "4"
    assert any("ScanY, ScanX" in finding for finding in file.findings)


def test_merlin_equals_rosettasciio(tmp_path, counts):
    from rsciio.quantumdetector import file_reader

    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4, 3, 4))
    np.testing.assert_array_equal(whole(open_vendor(path)), file_reader(str(path))[0]["data"])


def test_merlin_quad_header_is_longer(tmp_path, counts):
    path = write_mib(tmp_path / "quad.mib", counts, head=768)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)


def test_merlin_without_hdr_needs_the_scan_shape(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts)
    with pytest.raises(ScanShapeError, match=r"12 frames.*scan_shape=\(ny, nx\), such as \(3, 4\)"):
        open_vendor(path)
    file = open_vendor(path, scan_shape=(3, 4))
    assert_reads(file, counts)
    assert "There is no .hdr file beside it." in file.findings


def test_merlin_line_length_from_frames_per_trigger(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4))
    file = open_vendor(path)
    assert_reads(file, counts)
    assert any("frames per trigger" in finding for finding in file.findings)


def test_merlin_zero_or_all_frames_per_trigger_say_nothing(tmp_path, counts):
    for per_trigger in (0, 1, 12):
        path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, per_trigger))
        with pytest.raises(ScanShapeError, match="12 frames"):
            open_vendor(path)


def test_merlin_line_length_from_pauses_between_frames(tmp_path, counts):
    pauses = [100_000] * 11
    pauses[3] = pauses[7] = 140_000
    path = write_mib(tmp_path / "scan.mib", counts, pauses_ns=pauses)
    file = open_vendor(path)
    assert file.source.shape[:2] == (3, 4)
    assert any("time stamps" in finding for finding in file.findings)


def test_merlin_irregular_pauses_and_clock_ticks_are_no_lines(tmp_path, counts):
    irregular = [100_000] * 11
    irregular[3] = irregular[6] = 140_000
    ticks = [100_000] * 11
    ticks[5] = 100_010
    for pauses in (irregular, ticks, [100_000] * 11):
        with pytest.raises(ScanShapeError, match="12 frames"):
            open_vendor(write_mib(tmp_path / "scan.mib", counts, pauses_ns=pauses))


def test_merlin_scan_shape_goes_before_the_header_and_says_so(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4, 3, 4))
    file = open_vendor(path, scan_shape=(2, 6))
    assert_reads(file, counts.reshape(2, 6, 6, 5))
    assert any("(3, 4) instead" in finding for finding in file.findings)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (12, 2), (1, 1)])
def test_merlin_frames_that_do_not_fill_the_scan_are_refused(tmp_path, counts, shape):
    path = write_mib(tmp_path / "scan.mib", counts)
    with pytest.raises(ScanShapeError, match=rf"12 frames.*{shape[0] * shape[1]} probe positions.*such as \("):
        open_vendor(path, scan_shape=shape)


def test_merlin_interrupted_scan_suggests_whole_lines(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts[:2], hdr=merlin_hdr(12, 4, 3, 4))
    with pytest.raises(ScanShapeError, match=r"8 frames.*\(3, 4\) has 12.*such as \(2, 4\)"):
        open_vendor(path)


def test_shapes_that_keep_the_declared_lines_are_suggested_first(tmp_path):
    path = write_mib(tmp_path / "scan.mib", random_counts((36, 1, 2, 2), "u1"), hdr=merlin_hdr(60, 12, 5, 12))
    with pytest.raises(ScanShapeError, match=r"36 frames.*such as \(3, 12\) or \(6, 6\)"):
        open_vendor(path)
    path = write_mib(tmp_path / "bare.mib", random_counts((36, 1, 2, 2), "u1"))
    with pytest.raises(ScanShapeError, match=r"such as \(4, 9\) or \(6, 6\)"):
        open_vendor(path, scan_shape=(4, 10))


def test_merlin_truncated_last_frame_is_refused(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4, 3, 4))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ScanShapeError, match="11 frames of 444 bytes and 437 bytes of another; the file is truncated"):
        open_vendor(path)


def test_merlin_raw_mode_is_refused_in_words(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, kind="R64")
    with pytest.raises(SourceError, match="raw mode"):
        open_vendor(path)


def test_merlin_unknown_pixels_and_damaged_headers_are_refused(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, kind="U99")
    with pytest.raises(SourceError, match='kind "U99"'):
        open_vendor(path)
    path.write_bytes(b"MQ1,000001,hello,")
    with pytest.raises(SourceError, match="no Merlin header"):
        open_vendor(path)
    path.write_bytes(b"not a Merlin file")
    with pytest.raises(SourceError, match="no Merlin header"):
        open_vendor(path)


def test_merlin_bytes_that_are_no_frames_are_refused(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts)
    data = bytearray(path.read_bytes())
    data[-444:-440] = b"XXXX"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="no Merlin header at byte 4884"):
        open_vendor(path, scan_shape=(3, 4))


def test_merlin_dropped_frames_are_reported(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, numbers=[*range(1, 12), 14])
    file = open_vendor(path, scan_shape=(3, 4))
    assert any("frames may be missing" in finding for finding in file.findings)
    path = write_mib(tmp_path / "scan.mib", counts, first_number=5)
    assert not any("missing" in finding for finding in open_vendor(path, scan_shape=(3, 4)).findings)


def test_merlin_unreadable_hdr_is_named(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts)
    (tmp_path / "scan.hdr").write_text("HDR,\t\nno tabulator here\n")
    with pytest.raises(SourceError, match=r"scan\.hdr beside scan\.mib"):
        open_vendor(path)


def test_merlin_short_header_has_no_exposure(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, exposure_ns=None, hdr=merlin_hdr(12, 4, 3, 4))
    file = open_vendor(path)
    assert_reads(file, counts)
    assert file.acquisition == {}
    assert file.metadata["counter_depth_bits"] == 12


def test_single_merlin_frame_is_a_scan_of_one(tmp_path, counts):
    path = write_mib(tmp_path / "one.mib", counts[:1, :1])
    assert_reads(open_vendor(path), counts[:1, :1])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_merlin_of_any_shape_reads_upright(tmp_path_factory, ny, nx, nky, nkx):
    counts = random_counts((ny, nx, nky, nkx), "u2")
    path = write_mib(tmp_path_factory.mktemp("mib") / "scan.mib", counts)
    assert_reads(open_vendor(path, scan_shape=(ny, nx)), counts)


def merlin_examples(shared, tmp_path):
    for archive in sorted((shared / "data" / "vendor").glob("Merlin*.zip")):
        with zipfile.ZipFile(archive) as content:
            content.extractall(tmp_path / archive.stem)
    return sorted(tmp_path.rglob("*.mib"))


def test_real_merlin_files_equal_rosettasciio(shared, tmp_path):
    from rsciio.quantumdetector import file_reader

    opened = 0
    for path in merlin_examples(shared, tmp_path):
        if "RAW" in path.name:
            with pytest.raises(SourceError, match="raw mode"):
                open_vendor(path)
            continue
        shape = (3, 3) if "_9_Frame" in path.name else (1, 1) if "_1_Frame" in path.name else (2, 4)
        theirs = file_reader(str(path), navigation_shape=shape[::-1])[0]["data"]
        ours = open_vendor(path, scan_shape=shape)
        np.testing.assert_array_equal(whole(ours), theirs.reshape(ours.source.shape))
        opened += 1
    assert opened == 20


def test_real_merlin_scans_know_their_shape_and_stacks_do_not(shared, tmp_path):
    for path in merlin_examples(shared, tmp_path):
        if "4x2" in path.name:
            assert open_vendor(path).source.shape[:2] == (2, 4)
        elif "_9_Frame" in path.name and "RAW" not in path.name:
            with pytest.raises(ScanShapeError, match="9 frames"):
                open_vendor(path)


# Blockfiles


def test_blockfile_reads_every_count(tmp_path):
    counts = random_counts((3, 4, 7, 7), "u1")
    file = open_vendor(write_blo(tmp_path / "scan.BLO", counts))
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((3.0, 4.0))
    assert file.pixel_size is None
    assert file.acquisition == {"energy_eV": 200_000.0}


def test_blockfile_equals_rosettasciio(shared):
    from rsciio.blockfile import file_reader

    for path in sorted((shared / "data" / "vendor").glob("*.blo")):
        assert_reads(open_vendor(path), file_reader(str(path))[0]["data"])


def test_blockfile_truncated_is_refused(tmp_path):
    path = write_blo(tmp_path / "scan.blo", random_counts((3, 4, 7, 7), "u1"), whole=11)
    with pytest.raises(SourceError, match="11 whole frames, but its header announces 12"):
        open_vendor(path)


def test_blockfile_trailing_bytes_are_reported(tmp_path):
    counts = random_counts((3, 4, 7, 7), "u1")
    file = open_vendor(write_blo(tmp_path / "scan.blo", counts, trailing=9))
    assert_reads(file, counts)
    assert file.findings[0].startswith("9 bytes follow")


def test_blockfile_scan_shape_may_be_corrected_but_must_fit(tmp_path):
    counts = random_counts((3, 4, 7, 7), "u1")
    path = write_blo(tmp_path / "scan.blo", counts)
    file = open_vendor(path, scan_shape=(4, 3))
    assert_reads(file, counts.reshape(4, 3, 7, 7))
    assert file.scan_step is None
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(path, scan_shape=(4, 4))


def test_blockfile_without_its_header_is_refused(tmp_path):
    path = tmp_path / "scan.blo"
    path.write_bytes(b"x" * 500)
    with pytest.raises(SourceError, match="no blockfile header"):
        open_vendor(path)
    path.write_bytes(b"IMGBLO")
    with pytest.raises(SourceError, match="no blockfile header"):
        open_vendor(path)
    write_blo(path, np.zeros((1, 1, 4, 4), "u1"))
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x00\x00"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="header is damaged"):
        open_vendor(path)


# EMPAD


def test_empad_reads_pixels_without_the_spare_rows(tmp_path):
    from rsciio.empad import file_reader

    counts = random_counts((3, 2, 128, 128), "f4")
    header = write_empad(tmp_path / "scan.xml", counts)
    for path in (header, tmp_path / "scan_x2_y3.raw"):
        file = open_vendor(path)
        assert_reads(file, counts)
        assert file.acquisition == {"energy_eV": 300_000.0}
        # 1.44 um / 0.72 * 0.5 over the larger number of positions.
        assert file.scan_step == pytest.approx((1e4 / 3, 1e4 / 3))
        assert file.pixel_size is None
        assert file.identity["name"] == "scan_x2_y3.raw"
    np.testing.assert_array_equal(whole(open_vendor(header)), file_reader(str(header))[0]["data"])


def test_empad_scan_step_is_unknown_where_search_and_acquire_differ(tmp_path):
    header = write_empad(tmp_path / "scan.xml", random_counts((1, 2, 128, 128), "f4"), search=0.8, acquire=0.6)
    file = open_vendor(header)
    assert file.scan_step is None
    assert any("more than one scan size" in finding for finding in file.findings)


def test_empad_raw_that_does_not_fit_is_refused(tmp_path):
    header = write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4"), cut=100)
    with pytest.raises(ScanShapeError, match="5 frames of 66560 bytes and 66460 bytes of another"):
        open_vendor(header)
    write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4"), cut=66560)
    with pytest.raises(ScanShapeError, match=r"5 frames, but the header \(3, 2\) has 6"):
        open_vendor(header)
    write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4"), cut=6 * 66560 - 10)
    with pytest.raises(ScanShapeError, match="10 bytes"):
        open_vendor(header)


def test_empad_without_its_raw_file_is_refused(tmp_path):
    header = write_empad(tmp_path / "scan.xml", random_counts((1, 1, 128, 128), "f4"))
    (tmp_path / "scan_x1_y1.raw").unlink()
    with pytest.raises(SourceError, match=r"names scan_x1_y1\.raw"):
        open_vendor(header)


def test_other_xml_is_refused(tmp_path):
    for text in ("<root/>", "no xml at all"):
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(SourceError, match="not an EMPAD header"):
            open_vendor(tmp_path / "a.xml")


def test_real_empad_headers_open_with_their_raw_files(shared, tmp_path):
    for name, raw, n in (("map4x4", "scan_x4_y4.raw", 16), ("stack_images", "series_x10.raw", 10)):
        header = tmp_path / f"{name}.xml"
        header.write_bytes((shared / "data" / "vendor" / header.name).read_bytes())
        frames = random_counts((n, 130, 128), "<f4")
        (tmp_path / raw).write_bytes(frames.tobytes())
        file = open_vendor(header)
        assert file.source.shape == ((4, 4, 128, 128) if n == 16 else (1, 10, 128, 128))
        np.testing.assert_array_equal(whole(file).reshape(n, 128, 128), frames[:, :128])
        assert file.scan_step is None


# Raw binary


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
            r"720 bytes.*needs 900; 12 frames fit, so give a scan_shape such as \(4, 3\)|12 frames fit",
        ),
        ({"scan_shape": (2, 4)}, r"720 bytes.*needs 480; 12 frames fit"),
        ({"detector_shape": (6, 7)}, r"needs 1008; the size holds 8 such frames and 48 bytes more"),
        ({"dtype": "u4"}, "needs 1440; 6 frames fit"),
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
    with pytest.raises(ScanShapeError, match="12 frames fit"):
        open_vendor(path, scan_shape=(3, 5), detector_shape=(6, 5), dtype="u2", gap=6)


def test_raw_binary_that_lost_frames_since_it_was_opened_is_an_error(tmp_path, counts):
    path = write_raw(tmp_path / "scan.raw", counts)
    file = open_vendor(path, scan_shape=(3, 4), detector_shape=(6, 5), dtype="u2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match="became shorter"):
        whole(file)


# NumPy


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


# HyperSpy and other HDF5

LENGTHS = [{"units": "nm", "scale": 0.03}, {"units": "Å", "scale": 0.32}]
ANGLES = [{"units": "mrad", "scale": 1.2}, {"units": "rad", "scale": 0.002}]
RECIPROCALS = [{"units": "1/nm", "scale": 0.1}, {"units": "1/Å", "scale": 0.02}]
TEM = {"Acquisition_instrument": {"TEM": {"beam_energy": 200.0, "convergence_angle": 23.5, "beam_current": 0.05}}}


def write_hspy(path, counts, axes=None, metadata=None, **options):
    from rsciio.hspy import file_writer

    file_writer(str(path), signal_dict(counts, axes or [{}] * counts.ndim, metadata or {}), **options)
    return path


@pytest.mark.parametrize("dtype", ["u2", ">u2", "f4"])
@pytest.mark.parametrize("extension", [".hspy", ".hdf5", ".HSPY"])
def test_hyperspy_file_reads_every_count(tmp_path, dtype, extension):
    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_hspy(tmp_path / f"scan{extension}", counts, LENGTHS + ANGLES, TEM)
    file = open_vendor(path)
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.32))
    assert file.pixel_size == pytest.approx((1.2, 2.0))
    assert file.acquisition == pytest.approx(
        {"energy_eV": 200e3, "semi_angle_mrad": 23.5, "beam_current_A": 5e-11}, rel=1e-12
    )


@pytest.mark.parametrize("compression", ["gzip", None, "blosc"])
@pytest.mark.parametrize("chunks", [None, (2, 3, 6, 5), (1, 1, 3, 5)])
def test_hyperspy_chunks_and_compression_do_not_matter(tmp_path, compression, chunks):
    import hdf5plugin

    counts = random_counts((5, 7, 6, 5), "u2")
    options = {"compression": hdf5plugin.Blosc()} if compression == "blosc" else {"compression": compression}
    if compression == "blosc":
        options["shuffle"] = False
    path = write_hspy(tmp_path / "scan.hspy", counts, chunks=chunks, **options)
    assert_reads(open_vendor(path), counts)


def test_hyperspy_reciprocal_axes_become_angles_at_known_energy(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts, LENGTHS + RECIPROCALS, TEM)
    wavelength = 0.025079  # angstrom, 200 keV, tabulated
    assert open_vendor(path).pixel_size == pytest.approx((0.01 * wavelength * 1e3, 0.02 * wavelength * 1e3), rel=1e-4)
    path = write_hspy(tmp_path / "blind.hspy", counts, LENGTHS + RECIPROCALS)
    file = open_vendor(path)
    assert file.pixel_size is None
    assert any("0.01 x 0.02 1/angstrom" in finding for finding in file.findings)


@pytest.mark.parametrize(
    "axis", [{"units": "nm", "scale": 0.0}, {"units": "nm", "scale": -1.0}, {"units": "", "scale": 2.0}, {}]
)
def test_hyperspy_axes_without_a_step_are_unknown(tmp_path, counts, axis):
    path = write_hspy(tmp_path / "scan.hspy", counts, [axis, LENGTHS[1], ANGLES[0], {"units": "px", "scale": 1.0}])
    file = open_vendor(path)
    assert file.scan_step is None
    assert file.pixel_size is None


def test_hyperspy_line_scan_is_one_line_or_what_was_asked(tmp_path, counts):
    path = write_hspy(tmp_path / "line.hspy", counts.reshape(12, 6, 5))
    file = open_vendor(path)
    assert_reads(file, counts.reshape(1, 12, 6, 5))
    assert any("taken as one line" in finding for finding in file.findings)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(path, scan_shape=(5, 2))


def test_hyperspy_scan_of_another_shape_is_refused(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)
    with pytest.raises(ScanShapeError, match=r"\(3, 4\) positions, but scan_shape \(4, 3\)"):
        open_vendor(path, scan_shape=(4, 3))


@pytest.mark.parametrize("compression", ["gzip", None])
def test_hyperspy_stack_of_scans_needs_frame(tmp_path, compression):
    counts = random_counts((2, 3, 4, 6, 5), ">u2")
    path = write_hspy(tmp_path / "scans.hspy", counts, [{}, *LENGTHS, *ANGLES], compression=compression)
    with pytest.raises(InputError, match="holds 2 scans"):
        open_vendor(path)
    for index in (0, 1):
        file = open_vendor(path, frame=index)
        assert_reads(file, counts[index])
        assert file.scan_step == pytest.approx((0.3, 0.32))


@pytest.mark.parametrize(
    ("navigate", "message"),
    [
        ((True, True, True, False), "3 navigation and 1 signal"),
        ((False, False, False, False), "0 navigation and 4 signal"),
        ((False, False, True, True), "stored detector first"),
    ],
)
def test_hyperspy_signal_that_is_no_scan_of_patterns_is_refused(tmp_path, counts, navigate, message):
    path = write_hspy(tmp_path / "scan.hspy", counts, [{"navigate": n} for n in navigate])
    with pytest.raises(CountsError, match=message):
        open_vendor(path)


def test_scan_stored_detector_first_is_refused_by_its_units(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts, RECIPROCALS + LENGTHS)
    with pytest.raises(CountsError, match="stored detector first"):
        open_vendor(path)


def test_hyperspy_complex_signal_is_refused(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts.astype(complex))
    with pytest.raises(CountsError, match="dtype complex128"):
        open_vendor(path)


def test_hyperspy_file_with_several_signals_needs_frame(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts)
    with h5py.File(path, "a") as file:
        file.copy("Experiments/scan", "Experiments/second")
        file["Experiments/second/data"][...] = counts + 1
    with pytest.raises(InputError, match="holds 2 signals"):
        open_vendor(path)
    file = open_vendor(path, frame=1)
    np.testing.assert_array_equal(whole(file), counts + 1)
    assert any('"second"' in finding for finding in file.findings)


def test_hyperspy_file_without_signal_or_axes_is_refused(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts)
    with h5py.File(path, "a") as file:
        del file["Experiments/scan/axis-1"]
    with pytest.raises(SourceError, match="lacks the description of some axes"):
        open_vendor(path)
    with h5py.File(path, "a") as file:
        del file["Experiments/scan"]
    with pytest.raises(SourceError, match="without a signal"):
        open_vendor(path)


def test_damaged_hdf5_is_refused(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match="not an HDF5 file that can be opened"):
        open_vendor(path)


def test_hdf5_dataset_that_changed_since_it_was_opened_is_an_error(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts)
    file = open_vendor(path)
    token = file.source.__dask_tokenize__()
    write_hspy(path, counts[:2])
    assert file.source.__dask_tokenize__() != token
    with pytest.raises(SourceError, match="has changed"):
        whole(file)
    with h5py.File(path, "a") as content:
        del content["Experiments/scan/data"]
    with pytest.raises(SourceError, match="has changed"):
        whole(file)
    path.unlink()
    with pytest.raises(SourceError):
        whole(file)


def test_hdf5_damaged_chunk_is_an_error_at_reading(tmp_path):
    counts = random_counts((4, 4, 32, 32), "u2")
    path = write_hspy(tmp_path / "scan.hspy", counts, fletcher32=True)
    with h5py.File(path) as content:
        chunk = content["Experiments/scan/data"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(data)
    file = open_vendor(path)
    with pytest.raises(SourceError, match="cannot be read"):
        whole(file)


def test_window_outside_the_scan_is_an_error(tmp_path, counts):
    file = open_vendor(write_hspy(tmp_path / "scan.hspy", counts))
    with pytest.raises(InputError, match="stay inside"):
        file.source.read(0, 4, 0, 4)


def write_emd(path, counts, *, first, name="data", scans=1):
    with h5py.File(path, "w") as file:
        for i in range(scans):
            group = file.create_group(f"cube{i}")
            group.attrs["emd_group_type"] = 1
            group[name] = counts + i
            for number, unit in enumerate(("nm", "nm", "A^-1", "A^-1")):
                size = counts.shape[number]
                dim = group.create_dataset(f"dim{number + first}", data=np.arange(size) * 0.25)
                dim.attrs["units"] = unit
    return path


@pytest.mark.parametrize(
    ("first", "name", "extension"), [(0, "data", ".h5"), (0, "data", ".emd"), (1, "datacube", ".emd")]
)
def test_emd_scan_reads_every_count(tmp_path, counts, first, name, extension):
    file = open_vendor(write_emd(tmp_path / f"scan{extension}", counts, first=first, name=name))
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((2.5, 2.5))
    assert any("0.25 x 0.25 1/angstrom" in finding for finding in file.findings)


def test_emd_file_with_several_scans_needs_frame(tmp_path, counts):
    path = write_emd(tmp_path / "scan.h5", counts, first=0, scans=2)
    with pytest.raises(InputError, match="2 scans"):
        open_vendor(path)
    assert_reads(open_vendor(path, frame=1), counts + 1)


def test_emd_with_dims_from_the_fastest_is_left_to_its_reader(tmp_path, counts):
    with pytest.raises(SourceError, match=r"rename it to \.emd"):
        open_vendor(write_emd(tmp_path / "scan.h5", counts, first=1))


def test_real_hdf5_scans_equal_what_other_readers_read(shared):
    vendor = shared / "data" / "vendor"
    from rsciio.emd import file_reader

    (theirs,) = file_reader(str(vendor / "Si100_4D.emd"))
    for index in (0, 1):
        file = open_vendor(vendor / "Si100_4D.emd", frame=index)
        assert_reads(file, theirs["data"][index])
        assert file.scan_step == pytest.approx((5.0, 5.0))
    file = open_vendor(vendor / "py4DSTEM_size2x3x4x5.h5")
    with h5py.File(vendor / "py4DSTEM_size2x3x4x5.h5") as content:
        assert_reads(file, content["datacube_root/datacube/data"][...])
    assert file.scan_step == pytest.approx((1.26796875, 1.26796875))


@pytest.mark.parametrize("dtype", [">u2", "u4", "bool"])
def test_hdf5_without_chunks_is_read_as_plain_frames(tmp_path, dtype):
    counts = random_counts((3, 3, 4, 6, 5), "u1").astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["other"] = np.arange(7)
        file["scans"] = counts
    for index in range(3):
        file = open_vendor(tmp_path / "a.h5", frame=index)
        assert isinstance(file.source, RawFrames)
        assert_reads(file, counts[index].astype("u1") if dtype == "bool" else counts[index])


def test_hdf5_without_a_scan_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["vector"] = np.arange(5)
    with pytest.raises(CountsError, match="not a 4D-STEM scan"):
        open_vendor(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["frames"] = np.arange(2 * 3 * 4).reshape(6, 2, 2)
    with pytest.raises(CountsError, match=r"/frames \(6, 2, 2\), for which give scan_shape"):
        open_vendor(tmp_path / "a.h5")
    assert_reads(open_vendor(tmp_path / "a.h5", scan_shape=(2, 3)), np.arange(24).reshape(2, 3, 2, 2))


# Dectris


def write_master(path, parts, *, mask=None):
    with h5py.File(path, "w") as file:
        data = file.create_group("entry/data")
        for i, part in enumerate(parts, 1):
            name = f"{path.stem}_data_{i:06d}.h5"
            with h5py.File(path.parent / name, "w") as linked:
                linked.create_dataset("entry/data/data", data=part, chunks=(1, *part.shape[1:]), compression="gzip")
            data[f"data_{i:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
        detector = file.create_group("entry/instrument/detector")
        detector["count_time"] = 9.95e-5
        specific = detector.create_group("detectorSpecific")
        specific["nimages"], specific["ntrigger"] = 1, sum(len(part) for part in parts)
        if mask is not None:
            specific["pixel_mask"] = mask
    return path


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


# As dask arrays


def test_every_kind_of_source_is_a_dask_array_that_leads_back_to_it(tmp_path, counts):
    from rsciio.nexus import file_writer

    file_writer(str(tmp_path / "scan.nxs"), signal_dict(counts, LENGTHS + ANGLES, {}))
    for path in (
        write_mib(tmp_path / "scan.mib", counts),
        write_raw(tmp_path / "scan.raw", counts),
        write_hspy(tmp_path / "scan.hspy", counts, chunks=(1, 2, 6, 5)),
        write_master(tmp_path / "scan_master.h5", [counts.reshape(12, 6, 5)]),
        tmp_path / "scan.nxs",
    ):
        layout = {"detector_shape": (6, 5), "dtype": "u2"} if path.suffix == ".raw" else {}
        source = open_vendor(path, scan_shape=(3, 4), **layout).source
        array = as_dask(source, chunk_bytes=200)
        assert path.suffix == ".nxs" or array.npartitions > 1
        assert source_of(array) is source
        np.testing.assert_array_equal(array.compute(scheduler="threads"), counts)
        again = open_vendor(path, scan_shape=(3, 4), **layout).source
        assert as_dask(again, chunk_bytes=200).name == array.name


def test_blocks_decompress_each_chunk_once(tmp_path, monkeypatch):
    counts = random_counts((9, 10, 6, 5), "u2")
    source = open_vendor(write_hspy(tmp_path / "scan.hspy", counts, chunks=(4, 3, 6, 5))).source
    monkeypatch.setattr(stacks, "BLOCK_BYTES", 4 * 6 * 60)
    touched = [
        (y, x)
        for block in source.blocks((slice(0, 9), slice(0, 10)), None, None)
        for y in range(block.y.start // 4, -(-block.y.stop // 4))
        for x in range(block.x.start // 3, -(-block.x.stop // 3))
    ]
    assert sorted(touched) == [(y, x) for y in range(3) for x in range(4)]


def test_blocks_skip_unused_probe_positions_and_pixels(tmp_path, counts):
    source = open_vendor(write_hspy(tmp_path / "scan.hspy", counts, chunks=(1, 4, 6, 5))).source
    used = np.zeros((3, 4), bool)
    used[1, 2] = True
    pixels = np.zeros((6, 5), bool)
    pixels[2:4, 1] = True
    blocks = list(source.blocks((slice(0, 3), slice(0, 4)), used, pixels))
    assert sum(block.counts[..., 0, 0].size for block in blocks) <= 12
    for block in blocks:
        np.testing.assert_array_equal(block.counts, counts[block.y, block.x, 2:4, 1:2])
    assert any(block.y.start <= 1 < block.y.stop and block.x.start <= 2 < block.x.stop for block in blocks)


# What rosettasciio opens


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("20241021_00405_movie.mrc", None),
        ("Custom_movie.mrc", (5, 6)),
        ("test_tvips_2345_000.tvips", (2, 3)),
        ("test_tvips_2345_split_000.tvips", (3, 2)),
    ],
)
def test_real_files_of_other_formats_equal_rosettasciio(shared, name, shape):
    import importlib

    path = shared / "data" / "vendor" / name
    (theirs,) = importlib.import_module(f"rsciio.{path.suffix[1:]}").file_reader(str(path))
    file = open_vendor(path, scan_shape=shape)
    expected = theirs["data"] if shape is None else theirs["data"].reshape(*shape, *theirs["data"].shape[1:])
    assert_reads(file, expected)
    # These files hold a reader's placeholder of exactly 1 for every scale.
    assert file.scan_step is None
    assert file.pixel_size is None
    if shape is not None:
        with pytest.raises(ScanShapeError, match="frames"):
            open_vendor(path)


def test_rosettasciio_stack_and_transposed_axes(tmp_path):
    from rsciio.emd import file_writer

    counts = random_counts((3, 4, 6, 5), "u2")
    file_writer(str(tmp_path / "scan.emd"), signal_dict(counts, LENGTHS + ANGLES, {}))
    file = open_vendor(tmp_path / "scan.emd")
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.32))
    with pytest.raises(ScanShapeError, match="leave it out"):
        open_vendor(tmp_path / "scan.emd", scan_shape=(4, 3))


def test_nexus_scan_reads_every_count(tmp_path, counts):
    from rsciio.nexus import file_writer

    file_writer(str(tmp_path / "scan.nxs"), signal_dict(counts, LENGTHS + ANGLES, {}))
    file = open_vendor(tmp_path / "scan.nxs")
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.32))


def test_scale_of_exactly_one_is_a_placeholder(tmp_path, counts):
    from rsciio.nexus import file_writer

    unset = [{"units": "nm", "scale": 1.0}] * 2
    file_writer(str(tmp_path / "scan.nxs"), signal_dict(counts, unset + ANGLES, {}))
    file = open_vendor(tmp_path / "scan.nxs")
    assert file.scan_step is None
    assert file.pixel_size == pytest.approx((1.2, 2.0))
    assert any("taken as not calibrated" in finding for finding in file.findings)


def test_file_that_rosettasciio_cannot_read_is_refused(tmp_path, shared):
    (tmp_path / "a.dm4").write_bytes(b"nothing that makes sense")
    with pytest.raises(SourceError, match=r"a\.dm4 cannot be opened"):
        open_vendor(tmp_path / "a.dm4")
    with pytest.raises(SourceError, match="part 000"):
        open_vendor(shared / "data" / "vendor" / "test_tvips_2345_split_001.tvips")


def test_file_of_rosettasciio_that_changed_since_it_was_opened_is_an_error(tmp_path, counts):
    from rsciio.nexus import file_writer

    path = tmp_path / "scan.nxs"
    file_writer(str(path), signal_dict(counts, LENGTHS + ANGLES, {}))
    file = open_vendor(path)
    path.rename(tmp_path / "old.nxs")
    file_writer(str(path), signal_dict(counts[:2], LENGTHS + ANGLES, {}))
    with pytest.raises(SourceError, match="has changed"):
        file.source.read(0, 1, 0, 1)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        file.source.read(0, 1, 0, 1)


def test_image_is_no_scan(tmp_path):
    from rsciio.tiff import file_writer

    image = np.zeros((4, 5), "u2")
    signal = signal_dict(image, [{"navigate": False}] * 2, {})
    file_writer(str(tmp_path / "a.tif"), signal)
    with pytest.raises(CountsError, match="dimensions; a scan has four"):
        open_vendor(tmp_path / "a.tif")


# Requests


def test_missing_empty_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        open_vendor(tmp_path / "nothing.mib")
    for extension in known_extensions():
        empty = tmp_path / f"empty.{extension}"
        empty.touch()
        with pytest.raises(SourceError, match="is empty"):
            open_vendor(empty)
    with pytest.raises(SourceError, match="is a folder"):
        open_vendor(tmp_path)
    (tmp_path / "a.xyz").write_bytes(b"content")
    with pytest.raises(SourceError, match=r'"\.xyz", which is not known; known are app5, bin, blo'):
        open_vendor(tmp_path / "a.xyz")


def test_first_bytes_go_before_the_extension(tmp_path, counts):
    path = write_mib(tmp_path / "scan.raw", counts)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)


@pytest.mark.parametrize("option", [{"detector_shape": (6, 5)}, {"dtype": "u2"}, {"offset": 4}, {"gap": 4}])
def test_byte_layout_of_a_file_that_describes_itself_is_refused(tmp_path, counts, option):
    np.save(tmp_path / "a.npy", counts)
    paths = [
        write_mib(tmp_path / "a.mib", counts, hdr=merlin_hdr(12, 4, 3, 4)),
        write_blo(tmp_path / "a.blo", np.zeros((1, 1, 4, 4), "u1")),
        write_hspy(tmp_path / "a.hspy", counts),
        write_empad(tmp_path / "a.xml", np.zeros((1, 1, 128, 128), "f4")),
        tmp_path / "a.npy",
    ]
    for path in paths:
        with pytest.raises(InputError, match=f"{next(iter(option))} was given"):
            open_vendor(path, **option)
        with pytest.raises(InputError, match="frame=3 was given"):
            open_vendor(path, frame=3)


@pytest.mark.parametrize("wrong", [(3,), (3, 4, 1), (0, 4), (-3, -4), (3.0, 4), "12", 12, (True, 12)])
def test_scan_shape_that_is_no_pair_of_whole_numbers_is_refused(tmp_path, counts, wrong):
    path = write_mib(tmp_path / "a.mib", counts)
    with pytest.raises(ScanShapeError, match="two positive whole numbers"):
        open_vendor(path, scan_shape=wrong)


@pytest.mark.parametrize(
    "option",
    [{"offset": -1}, {"gap": 1.5}, {"frame": -1}, {"dtype": "unheard of"}, {"detector_shape": (1, 0)}],
)
def test_options_that_make_no_sense_are_refused(tmp_path, counts, option):
    path = write_raw(tmp_path / "a.raw", counts)
    with pytest.raises(InputError, match=next(iter(option))):
        open_vendor(path, **option)


def test_identity_names_size_and_time(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(b"12345")
    found = identity(path)
    assert (found["name"], found["size"]) == ("a.raw", 5)
    assert found["modified"].endswith("+00:00")
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(SourceError, match="cannot be read"):
        identity(tmp_path / "b.raw")


def test_metadata_becomes_plain_json():
    value = {
        1: np.float32(1.5),
        "b": (np.int64(2), b"x\x00", float("inf")),
        "c": np.array([[1, 2]]),
        "d": np.zeros(5000),
        "e": {"f": np.nan, "g": None, "h": np.bool_(True)},
        "i": Path("a"),
        "j": 1 + 2j,
        "k": np.datetime64("2024-01-01T00:00:00"),
    }
    assert plain(value) == {
        "1": 1.5,
        "b": [2, "x", "inf"],
        "c": [[1, 2]],
        "d": "array (5000,) of float64, left out",
        "e": {"f": None, "g": None, "h": True},
        "i": "a",
        "j": "(1+2j)",
        "k": "2024-01-01T00:00:00",
    }
    json.dumps(plain(value), allow_nan=False)


def test_opening_reads_headers_only(tmp_path):
    """A file of 4 GiB, most of it a hole, opens; its counts would not fit a test's memory."""
    path = tmp_path / "big.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype="<u2", shape=(128, 256, 256, 256))
    file = open_vendor(path)
    assert file.source.shape == (128, 256, 256, 256)
    assert not file.source.read(127, 128, 255, 256).any()


def test_import_loads_neither_rosettasciio_nor_hyperspy():
    code = (
        "import sys, tdm_dask.sources; "
        "print([m for m in ('rsciio', 'hyperspy', 'h5py', 'hdf5plugin') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
