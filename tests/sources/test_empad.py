"""EMPAD: counts without the spare rows, scan shapes against the file size, and what a header leaves open."""

from __future__ import annotations

import numpy as np
import pytest
from reading import assert_reads, random_counts, whole
from vendor_files import write_empad

from tdm_dask.errors import ScanShapeError, SourceError
from tdm_dask.sources.formats.registry import open_vendor


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
    # 1.44 um / 0.72 * 0.8 or 0.6 over the larger number of positions.
    assert any('8000 angstrom ("search") or 6000 angstrom ("acquire")' in finding for finding in file.findings)


def test_empad_raw_that_does_not_fit_is_refused(tmp_path):
    header = write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4"), cut=100)
    with pytest.raises(ScanShapeError, match="5 frames of 66560 bytes and 66460 bytes of another"):
        open_vendor(header)
    write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4"), cut=66560)
    with pytest.raises(ScanShapeError, match=r"5 frames, but the name of the raw file \(3, 2\) has 6"):
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


def empad_beside(shared, folder, name, raw, n):
    """A real header with a raw file of n frames, and these frames."""
    header = folder / f"{name}.xml"
    header.write_bytes((shared / "data" / "vendor" / header.name).read_bytes())
    frames = random_counts((n, 130, 128), "<f4")
    (folder / raw).write_bytes(frames.tobytes())
    return header, frames[:, :128]


@pytest.mark.parametrize(
    ("name", "raw", "shape"),
    [
        ("map4x4", "scan_x4_y4.raw", (4, 4)),
        ("stack_images", "series_x10.raw", (1, 10)),
        ("EMPAD_v1.2.2_x32_y64_size0.8", "scan_x32_y64.raw", (64, 32)),
    ],
)
def test_real_empad_headers_equal_rosettasciio(shared, tmp_path, name, raw, shape):
    from rsciio.empad import file_reader

    header, frames = empad_beside(shared, tmp_path, name, raw, shape[0] * shape[1])
    file = open_vendor(header)
    assert file.source.shape == (*shape, 128, 128)
    np.testing.assert_array_equal(whole(file), frames.reshape(*shape, 128, 128))
    np.testing.assert_array_equal(whole(file), file_reader(str(header))[0]["data"].reshape(file.source.shape))
    assert file.scan_step is None


def test_real_empad_headers_say_what_they_know(shared, tmp_path):
    file = open_vendor(empad_beside(shared, tmp_path, "map4x4", "scan_x4_y4.raw", 16)[0])
    assert file.acquisition == {"energy_eV": 300e3}
    assert file.pixel_size == pytest.approx((0.42906574, 0.42906574))
    assert file.metadata["iom_measurements"]["optics.get_cameralength"] == "0.7225"
    file = open_vendor(empad_beside(shared, tmp_path, "EMPAD_v1.2.2_x32_y64_size0.8", "scan_x32_y64.raw", 2048)[0])
    assert file.acquisition == {"energy_eV": 300e3}
    assert file.pixel_size is None
    # 1.2724 um / 0.72 over 64 positions, times 0.8 or 0.6.
    assert any('220.9 angstrom ("search") or 165.68 angstrom ("acquire")' in finding for finding in file.findings)


def test_empad_mode_that_fits_the_file_size_is_taken(tmp_path):
    header = write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4"), acquire=0.6)
    text = header.read_text().replace("scan_x2_y3.raw", "data.raw")
    text = text.replace("<scan_resolution_y>3<", "<scan_resolution_y>5<", 1)  # "search" has another shape
    header.write_text(text)
    (tmp_path / "scan_x2_y3.raw").rename(tmp_path / "data.raw")
    file = open_vendor(header)
    assert file.source.shape == (3, 2, 128, 128)
    assert any('comes from the header\'s "acquire" scan' in finding for finding in file.findings)
    assert file.scan_step == pytest.approx((4e3, 4e3))


def test_empad_name_of_the_raw_file_goes_before_the_modes(tmp_path):
    """Data of a "search" scan, whose settings "acquire" overwrites in other readers."""
    header = write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4"))
    text = header.read_text().replace("<scan_resolution_y>3<", "<scan_resolution_y>2<")
    header.write_text(text.replace("<scan_resolution_x>2<", "<scan_resolution_x>3<"))
    assert open_vendor(header).source.shape == (3, 2, 128, 128)


def test_empad_pixels_that_are_nan_are_not_valid(tmp_path):
    counts = random_counts((3, 2, 128, 128), "f4")
    counts[1, 1, 5, 7] = counts[2, 1, 100, 3] = np.nan
    file = open_vendor(write_empad(tmp_path / "scan.xml", counts))
    np.testing.assert_array_equal(np.argwhere(~file.valid_pixels), [[5, 7], [100, 3]])
    assert any("2 pixel(s) are NaN" in finding for finding in file.findings)
    np.testing.assert_array_equal(whole(file), counts)
    clean = open_vendor(write_empad(tmp_path / "scan.xml", random_counts((3, 2, 128, 128), "f4")))
    assert clean.valid_pixels is None


def test_empad_scan_that_was_cut_short_opens_in_part(tmp_path):
    counts = random_counts((3, 2, 128, 128), "f4")
    header = write_empad(tmp_path / "scan.xml", counts, cut=66660)
    file = open_vendor(header, allow_partial=True)
    np.testing.assert_array_equal(file.valid_patterns, [[True, True], [True, True], [False, False]])
    np.testing.assert_array_equal(whole(file)[:2], counts[:2])
