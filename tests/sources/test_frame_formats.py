"""Formats that are frames in a file: blockfiles, TVIPS, MRC, TIA, DigitalMicrograph, Panta Rhei."""

from __future__ import annotations

import numpy as np
import pytest
from binary_files import write_de_info, write_dm, write_mrc, write_prz, write_ser, write_tvips
from reading import assert_reads, random_counts, whole
from vendor_files import write_blo

from tdm_dask.errors import CountsError, InputError, ScanShapeError, SourceError
from tdm_dask.sources.formats.registry import open_vendor


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


# TVIPS


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("split", [(), (4,), (1, 2, 9)])
@pytest.mark.parametrize("frame_header", [60, 64])
def test_tvips_reads_every_count(tmp_path, dtype, split, frame_header):
    counts = random_counts((3, 4, 6, 5), dtype)
    frames = counts.reshape(12, 6, 5)
    path = write_tvips(tmp_path / "scan_000.tvips", frames, split=split, frame_header=frame_header)
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(path)
    file = open_vendor(path, scan_shape=(3, 4))
    assert_reads(file, counts)
    assert file.acquisition == {"energy_eV": 200e3}
    assert_reads(open_vendor(path, scan_shape=(3, 3), flyback=1), counts[:, :3])
    assert_reads(open_vendor(path, scan_shape=(2, 5), skip_first=1), frames[1:11].reshape(2, 5, 6, 5))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("test_tvips_2345_000", (2, 3)), ("test_tvips_2345_split_000", (3, 2)), ("test_tvips_2233_000", (2, 2))],
)
def test_real_tvips_files_equal_rosettasciio(shared, name, shape):
    from rsciio.tvips import file_reader

    path = shared / "data" / "vendor" / f"{name}.tvips"
    (theirs,) = file_reader(str(path))
    file = open_vendor(path, scan_shape=shape)
    assert_reads(file, theirs["data"].reshape(*shape, *theirs["data"].shape[1:]))
    assert file.scan_step is None
    assert file.pixel_size is None
    assert file.acquisition == {"energy_eV": 200e3}


def test_tvips_rotator_says_where_the_scan_lies(tmp_path):
    frames = random_counts((12, 6, 5), "u2")
    path = write_tvips(tmp_path / "scan_000.tvips", frames, split=(5,), rotator=[0, 0, *range(1, 10), 0])
    file = open_vendor(path, scan_shape=(3, 3), skip_first=2)
    assert_reads(file, frames[2:11].reshape(3, 3, 6, 5))
    assert any("counts 9 scan positions from frame 2 to frame 10 of 12." in finding for finding in file.findings)


def test_tvips_recordings_that_are_not_whole_are_refused(tmp_path, shared):
    frames = random_counts((12, 6, 5), "u2")
    path = write_tvips(tmp_path / "scan_000.tvips", frames, split=(5,))
    second = tmp_path / "scan_001.tvips"
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(ScanShapeError, match=r"scan_001\.tvips holds 6 frames of 120 bytes and 119 bytes of another"):
        open_vendor(path, scan_shape=(3, 4))
    file = open_vendor(path, scan_shape=(3, 4), allow_partial=True)
    np.testing.assert_array_equal(whole(file).reshape(12, 6, 5)[:11], frames[:11])
    assert np.count_nonzero(~file.valid_patterns) == 1
    with pytest.raises(InputError, match="part 001 of a recording; open part 000"):
        open_vendor(second)


def test_tvips_change_in_a_later_file_is_noticed(tmp_path):
    path = write_tvips(tmp_path / "scan_000.tvips", random_counts((12, 6, 5), "u2"), split=(5,))
    file = open_vendor(path, scan_shape=(3, 4))
    assert [part["name"] for part in file.identity["linked"]] == ["scan_001.tvips"]
    (tmp_path / "scan_001.tvips").write_bytes(b"shorter")
    with pytest.raises(SourceError, match=r"scan_001\.tvips has changed"):
        whole(file)


# MRC


@pytest.mark.parametrize(("dtype", "mode"), [("u1", 0), ("i2", 1), ("f4", 2), ("u2", 6), ("f2", 12)])
@pytest.mark.parametrize(("order", "extended"), [("<", 0), (">", 0), ("<", 300)])
def test_mrc_reads_every_count(tmp_path, dtype, mode, order, extended):
    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_mrc(tmp_path / "scan.mrc", counts.reshape(12, 6, 5), mode=mode, order=order, extended=extended)
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(path)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)
    assert_reads(open_vendor(path, scan_shape=(3, 3), flyback=1), counts[:, :3])


def test_mrc_equals_rosettasciio(tmp_path):
    from rsciio.mrc import file_reader

    path = write_mrc(tmp_path / "scan.mrc", random_counts((12, 6, 5), "u2"), mode=6)
    theirs = file_reader(str(path))[0]["data"]
    np.testing.assert_array_equal(whole(open_vendor(path, scan_shape=(3, 4))), theirs.reshape(3, 4, 6, 5))


def test_real_mrc_movie_equals_rosettasciio(shared):
    from rsciio.mrc import file_reader

    path = shared / "data" / "vendor" / "20241021_00405_movie.mrc"
    (theirs,) = file_reader(str(path))
    file = open_vendor(path)
    assert_reads(file, theirs["data"])
    assert file.source.shape == (4, 8, 4, 8)
    assert file.acquisition == pytest.approx({"energy_eV": 300e3, "dwell_time_s": 1464.212499e-6})
    # 0.1 1/nm, which rosettasciio sets to 1, at the wavelength of 300 keV, 0.0019687 nm.
    assert file.pixel_size == pytest.approx((0.19687, 0.19687), rel=1e-4)
    assert any("20241021_00405_info.txt" in finding for finding in file.findings)


def test_real_mrc_movie_of_listed_positions(shared):
    """Thirty frames: three columns of five rows, visited twice."""
    from rsciio.mrc import file_reader

    path = shared / "data" / "vendor" / "Custom_movie.mrc"
    frames = file_reader(str(path))[0]["data"]
    with pytest.raises(InputError, match="2 visits of each position"):
        open_vendor(path)
    for visit in (0, 1):
        file = open_vendor(path, frame=visit)
        # The list goes down one column after the other.
        assert_reads(file, frames[15 * visit :][:15].reshape(3, 5, 16, 16).transpose(1, 0, 2, 3))
    assert_reads(open_vendor(path, scan_shape=(5, 6)), frames.reshape(5, 6, 16, 16))


def write_movie(folder, frames, positions=None, **facts):
    path = write_mrc(folder / "20240101_7_movie.mrc", frames, mode=6)
    write_de_info(folder / "20240101_7_info.txt", **facts)
    if positions is not None:
        lines = "".join(f"{x},{y}\n" for x, y in positions)
        (folder / "20240101_7_scan_coordinates.csv").write_text(lines)
    return path


DE_SCAN = {"Scan - Enable": "Enable", "Scan - Type": "Raster", "Scan - Size X": 4, "Scan - Size Y": 3}


def test_mrc_movie_knows_its_scan_and_scales(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    facts = DE_SCAN | {
        "Specimen Pixel Size X (nanometers)": 0.02,
        "Specimen Pixel Size Y (nanometers)": 0.03,
        "Diffraction Pixel Size X": -1,
        "Diffraction Pixel Size Y": -1,
    }
    file = open_vendor(write_movie(tmp_path, counts.reshape(12, 6, 5), **facts))
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.2))
    assert file.pixel_size is None
    region = facts | {"Scan - ROI Enable": "Enable", "Scan - ROI Size X": 6, "Scan - ROI Size Y": 2}
    file = open_vendor(write_movie(tmp_path, counts.reshape(12, 6, 5), **region))
    assert_reads(file, counts.reshape(2, 6, 6, 5))


def test_mrc_movie_of_repeats_needs_frame(tmp_path):
    counts = random_counts((2, 3, 4, 6, 5), "u2")
    path = write_movie(tmp_path, counts.reshape(24, 6, 5), **DE_SCAN, **{"Scan - Repeats": 2})
    with pytest.raises(InputError, match="2 repeats of the scan"):
        open_vendor(path)
    for repeat in (0, 1):
        assert_reads(open_vendor(path, frame=repeat), counts[repeat])


def test_mrc_movie_of_listed_positions_is_put_in_order(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    order = np.random.default_rng(1).permutation(12)
    positions = [(2 * (i % 4), 5 + 3 * (i // 4)) for i in order]
    facts = DE_SCAN | {"Scan - Type": "XY File"}
    path = write_movie(tmp_path, counts.reshape(12, 6, 5)[order], positions, **facts)
    assert_reads(open_vendor(path), counts)
    write_movie(tmp_path, counts.reshape(12, 6, 5)[order], [*positions[:-1], (0, 50)], **facts)
    with pytest.raises(ScanShapeError, match="no full grid"):
        open_vendor(path)
    write_movie(tmp_path, counts.reshape(12, 6, 5), positions[:-1], **facts)
    with pytest.raises(ScanShapeError, match="lists 11 positions for 12 frames"):
        open_vendor(path)
    (tmp_path / "20240101_7_scan_coordinates.csv").unlink()
    with pytest.raises(ScanShapeError, match="not beside it"):
        open_vendor(path)


def test_mrc_that_is_not_whole_is_refused(tmp_path):
    counts = random_counts((12, 6, 5), "u2")
    path = write_mrc(tmp_path / "scan.mrc", counts, mode=6, announced=13)
    with pytest.raises(ScanShapeError, match="12 frames of 60 bytes and 0 bytes more, but its header announces 13"):
        open_vendor(path, scan_shape=(3, 4))
    assert_reads(open_vendor(path, scan_shape=(3, 4), allow_partial=True), counts.reshape(3, 4, 6, 5))
    path = write_mrc(tmp_path / "scan.mrc", counts, mode=6, announced=8)
    file = open_vendor(path, scan_shape=(2, 4))
    assert_reads(file, counts[:8].reshape(2, 4, 6, 5))
    assert file.findings[0] == "240 bytes follow the last frame and are not read."
    for mode, error in ((4, CountsError), (101, SourceError)):
        with pytest.raises(error):
            open_vendor(write_mrc(tmp_path / "scan.mrc", counts, mode=mode), scan_shape=(3, 4))


# TIA


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
@pytest.mark.parametrize("version", [0x210, 0x220])
@pytest.mark.parametrize("gap", [0, 5])
def test_ser_equals_rosettasciio(tmp_path, dtype, version, gap):
    from rsciio.tia import file_reader

    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_ser(tmp_path / "scan_1.ser", counts, version=version, gap=gap)
    file = open_vendor(path)
    assert_reads(file, counts)
    np.testing.assert_array_equal(whole(file), file_reader(str(path))[0]["data"])
    assert file.scan_step == pytest.approx((20.0, 20.0))
    assert file.pixel_size is None


def test_ser_facts_come_from_the_emi_file(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    write_ser(tmp_path / "scan_1.ser", counts)
    emi = tmp_path / "scan.emi"
    emi.write_bytes(
        b"\x00\x01<ObjectInfo><ExperimentalDescription><Root><Data><Label>High tension</Label>\n<Value>300</Value>"
        b"<Unit>kV</Unit></Data></Root></ExperimentalDescription></ObjectInfo>\xff"
    )
    for path in (tmp_path / "scan_1.ser", emi):
        file = open_vendor(path)
        assert_reads(file, counts)
        assert file.acquisition == {"energy_eV": 300e3}
    write_ser(tmp_path / "scan_2.ser", counts + 1)
    with pytest.raises(InputError, match="2 series"):
        open_vendor(emi)
    assert_reads(open_vendor(emi, frame=1), counts + 1)
    (tmp_path / "scan_1.ser").unlink()
    (tmp_path / "scan_2.ser").unlink()
    with pytest.raises(SourceError, match=r"No \.ser file of scan\.emi"):
        open_vendor(emi)


def test_ser_of_an_interrupted_scan_is_refused(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    path = write_ser(tmp_path / "scan_1.ser", counts, valid=7)
    with pytest.raises(ScanShapeError, match=r"7 frames, but the header \(3, 4\) has 12"):
        open_vendor(path)
    file = open_vendor(path, allow_partial=True)
    np.testing.assert_array_equal(whole(file).reshape(12, 6, 5)[:7], counts.reshape(12, 6, 5)[:7])
    assert np.count_nonzero(file.valid_patterns) == 7
    path = write_ser(tmp_path / "scan_1.ser", counts)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="truncated"):
        open_vendor(path)


def test_ser_whose_beam_ran_along_y_first_is_said(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    file = open_vendor(write_ser(tmp_path / "scan_1.ser", counts, y_first=True))
    assert any("along y first" in finding for finding in file.findings)


# DigitalMicrograph

DM_UNITS = {"scan first": ("nm", "nm", "1/nm", "1/nm"), "without units": ("", "", "", "")}


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("units", DM_UNITS.values(), ids=DM_UNITS)
def test_dm_equals_rosettasciio(tmp_path, dtype, version, units):
    from rsciio.digitalmicrograph import file_reader

    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_dm(tmp_path / f"scan.dm{version}", counts, (0.03, 0.02, 0.1, 0.2), units, version=version)
    file = open_vendor(path)
    assert_reads(file, counts)
    np.testing.assert_array_equal(whole(file), file_reader(str(path))[0]["data"])
    assert file.acquisition == {"energy_eV": 200e3}
    if units[0]:
        assert file.scan_step == pytest.approx((0.3, 0.2))
        assert file.pixel_size == pytest.approx((0.25079, 0.50158), rel=1e-4)
    else:
        assert file.scan_step is None
        assert any("look at the mean pattern" in finding for finding in file.findings)


def test_dm_stored_detector_first_is_turned(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    stored = np.ascontiguousarray(counts.transpose(2, 3, 0, 1))
    path = write_dm(tmp_path / "scan.dm4", stored, (0.1, 0.2, 0.03, 0.02), ("1/nm", "1/nm", "nm", "nm"))
    file = open_vendor(path)
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.2))
    assert file.pixel_size == pytest.approx((0.25079, 0.50158), rel=1e-4)
    assert any("detector first" in finding for finding in file.findings)


def test_dm_stack_of_frames_needs_the_scan_shape(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    path = write_dm(tmp_path / "scan.dm4", counts.reshape(12, 6, 5), (1, 0.1, 0.1), ("s", "1/nm", "1/nm"))
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(path)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)


def test_dm_stack_of_scans_needs_frame(tmp_path):
    counts = random_counts((2, 3, 4, 6, 5), "u2")
    path = write_dm(tmp_path / "scan.dm4", counts, (1, 0.03, 0.02, 0.1, 0.2), ("s", "nm", "nm", "1/nm", "1/nm"))
    with pytest.raises(InputError, match="2 scans"):
        open_vendor(path)
    for index in (0, 1):
        assert_reads(open_vendor(path, frame=index), counts[index])


def test_dm_that_is_not_whole_or_no_scan_is_refused(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    path = write_dm(tmp_path / "scan.dm4", counts, (1, 1, 1, 1), ("", "", "", ""))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(SourceError, match=r"scan\.dm4 is not a DigitalMicrograph file that can be read"):
        open_vendor(path)
    with pytest.raises(CountsError, match="dimensions; a scan has four"):
        open_vendor(write_dm(tmp_path / "image.dm3", counts[0, 0], (1, 1), ("nm", "nm"), version=3))
    (tmp_path / "a.dm4").write_bytes(b"nothing that makes sense")
    with pytest.raises(SourceError, match=r"a\.dm4 is not a DigitalMicrograph file"):
        open_vendor(tmp_path / "a.dm4")


# Panta Rhei

PRZ_AXES = ["ScanY", "ScanX", "CameraY", "CameraX"]


def test_prz_equals_rosettasciio(tmp_path):
    from rsciio.pantarhei import file_reader

    counts = random_counts((3, 4, 6, 5), "u2")
    path = write_prz(tmp_path / "scan.prz", counts, PRZ_AXES)
    file = open_vendor(path)
    assert_reads(file, counts)
    np.testing.assert_array_equal(whole(file), file_reader(str(path))[0]["data"])
    assert file.scan_step == pytest.approx((0.3, 0.2))
    assert file.pixel_size == pytest.approx((2.0, 1.0))
    assert file.acquisition == {"energy_eV": 200e3, "semi_angle_mrad": 23.5}


def test_prz_stored_detector_first_is_turned(tmp_path):
    from rsciio.pantarhei import file_reader

    counts = random_counts((3, 4, 6, 5), "u2")
    stored = np.ascontiguousarray(counts.transpose(2, 3, 0, 1))
    path = write_prz(tmp_path / "scan.prz", stored, [*PRZ_AXES[2:], *PRZ_AXES[:2]])
    file = open_vendor(path)
    assert_reads(file, counts)
    np.testing.assert_array_equal(whole(file), file_reader(str(path))[0]["data"])
    assert file.scan_step == pytest.approx((0.3, 0.2))


def test_prz_that_cannot_be_read_in_parts_is_refused(tmp_path):
    """rosettasciio's lazy reader takes the compressed bytes for counts."""
    counts = random_counts((3, 4, 6, 5), "u2")
    with pytest.raises(SourceError, match=r"compressed as one stream.*unpack data\.npy"):
        open_vendor(write_prz(tmp_path / "scan.prz", counts, PRZ_AXES, compressed=True))
    file = open_vendor(write_prz(tmp_path / "scan.prz", counts, PRZ_AXES, pickled=True))
    assert_reads(file, counts)
    assert any("pickle" in finding for finding in file.findings)
    (tmp_path / "scan.prz").write_bytes(b"PK no zip file")
    with pytest.raises(SourceError, match="not a Panta Rhei file"):
        open_vendor(tmp_path / "scan.prz")
