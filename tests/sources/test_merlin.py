"""Merlin files: every kind of count in its place, headers without guesses, and every wrong file refused in words."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import assert_reads, random_counts, whole
from vendor_files import merlin_hdr, write_mib

import tdm_dask as tdm
from tdm_dask.errors import ScanShapeError, SourceError, TdmError
from tdm_dask.sources.formats.registry import open_vendor


@pytest.fixture
def counts():
    return random_counts((3, 4, 6, 5), "u2")


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("extension", [".mib", ".MIB"])
def test_with_hdr_reads_every_count(tmp_path, dtype, extension):
    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_mib(tmp_path / f"scan{extension}", counts, hdr=merlin_hdr(12, 4, 3, 4))
    file = open_vendor(path)
    assert_reads(file, counts)
    assert file.acquisition == {"dwell_time_s": pytest.approx(1e-3)}
    assert file.metadata["counter_depth_bits"] == 12
    assert file.metadata["hdr_file"]["ScanX"] == "4"
    assert any("ScanY, ScanX" in finding for finding in file.findings)


def test_equals_rosettasciio(tmp_path, counts):
    from rsciio.quantumdetector import file_reader

    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4, 3, 4))
    np.testing.assert_array_equal(whole(open_vendor(path)), file_reader(str(path))[0]["data"])


def test_quad_header_is_longer(tmp_path, counts):
    path = write_mib(tmp_path / "quad.mib", counts, head=768)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)


def test_without_hdr_needs_the_scan_shape(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts)
    with pytest.raises(ScanShapeError, match=r"12 frames.*give scan_shape, such as scan_shape=\(3, 4\)"):
        open_vendor(path)
    file = open_vendor(path, scan_shape=(3, 4))
    assert_reads(file, counts)
    assert "There is no .hdr file beside it." in file.findings


def test_line_length_from_frames_per_trigger(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4))
    file = open_vendor(path)
    assert_reads(file, counts)
    assert any("frames per trigger" in finding for finding in file.findings)


def test_zero_or_all_frames_per_trigger_say_nothing(tmp_path, counts):
    for per_trigger in (0, 1, 12):
        path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, per_trigger))
        with pytest.raises(ScanShapeError, match="12 frames"):
            open_vendor(path)


def test_line_length_from_pauses_between_frames(tmp_path, counts):
    pauses = [100_000] * 11
    pauses[3] = pauses[7] = 140_000
    path = write_mib(tmp_path / "scan.mib", counts, pauses_ns=pauses)
    file = open_vendor(path)
    assert file.source.shape[:2] == (3, 4)
    assert any("time stamps" in finding for finding in file.findings)


def test_irregular_pauses_and_clock_ticks_are_no_lines(tmp_path, counts):
    irregular = [100_000] * 11
    irregular[3] = irregular[6] = 140_000
    ticks = [100_000] * 11
    ticks[5] = 100_010
    for pauses in (irregular, ticks, [100_000] * 11):
        with pytest.raises(ScanShapeError, match="12 frames"):
            open_vendor(write_mib(tmp_path / "scan.mib", counts, pauses_ns=pauses))


def test_scan_shape_goes_before_the_header_and_says_so(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4, 3, 4))
    file = open_vendor(path, scan_shape=(2, 6))
    assert_reads(file, counts.reshape(2, 6, 6, 5))
    assert any("(3, 4) instead" in finding for finding in file.findings)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (12, 2), (1, 1)])
def test_frames_that_do_not_fill_the_scan_are_refused(tmp_path, counts, shape):
    path = write_mib(tmp_path / "scan.mib", counts)
    places = shape[0] * shape[1]
    with pytest.raises(ScanShapeError, match=rf"12 frames.*{places} probe positions.*such as scan_shape=\("):
        open_vendor(path, scan_shape=shape)


def test_interrupted_scan_suggests_whole_lines(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts[:2], hdr=merlin_hdr(12, 4, 3, 4))
    with pytest.raises(ScanShapeError, match=r"8 frames.*\(3, 4\) has 12.*such as scan_shape=\(2, 4\)"):
        open_vendor(path)


def test_shapes_that_keep_the_declared_lines_are_suggested_first(tmp_path):
    path = write_mib(tmp_path / "scan.mib", random_counts((36, 1, 2, 2), "u1"), hdr=merlin_hdr(60, 12, 5, 12))
    with pytest.raises(ScanShapeError, match=r"36 frames.*such as scan_shape=\(3, 12\) or scan_shape=\(6, 6\)"):
        open_vendor(path)
    path = write_mib(tmp_path / "bare.mib", random_counts((36, 1, 2, 2), "u1"))
    with pytest.raises(ScanShapeError, match=r"such as scan_shape=\(4, 9\) or scan_shape=\(6, 6\)"):
        open_vendor(path, scan_shape=(4, 10))


def test_truncated_last_frame_is_refused(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4, 3, 4))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ScanShapeError, match="11 frames of 444 bytes and 437 bytes of another; the file is truncated"):
        open_vendor(path)


def test_unknown_pixels_and_damaged_headers_are_refused(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, kind="U99")
    with pytest.raises(SourceError, match='kind "U99"'):
        open_vendor(path)
    path.write_bytes(b"MQ1,000001,hello,")
    with pytest.raises(SourceError, match="no Merlin header"):
        open_vendor(path)
    path.write_bytes(b"not a Merlin file")
    with pytest.raises(SourceError, match="no Merlin header"):
        open_vendor(path)


def test_bytes_that_are_no_frames_are_refused(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts)
    data = bytearray(path.read_bytes())
    data[-444:-440] = b"XXXX"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="no Merlin header at byte 4884"):
        open_vendor(path, scan_shape=(3, 4))


def test_dropped_frames_are_reported(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, numbers=[*range(1, 12), 14])
    file = open_vendor(path, scan_shape=(3, 4))
    assert any("frames may be missing" in finding for finding in file.findings)
    path = write_mib(tmp_path / "scan.mib", counts, first_number=5)
    assert not any("missing" in finding for finding in open_vendor(path, scan_shape=(3, 4)).findings)


def test_unreadable_hdr_is_named(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts)
    (tmp_path / "scan.hdr").write_text("HDR,\t\nno tabulator here\n")
    with pytest.raises(SourceError, match=r"scan\.hdr beside scan\.mib"):
        open_vendor(path)


def test_short_header_has_no_exposure(tmp_path, counts):
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
def test_of_any_shape_reads_upright(tmp_path_factory, ny, nx, nky, nkx):
    counts = random_counts((ny, nx, nky, nkx), "u2")
    path = write_mib(tmp_path_factory.mktemp("mib") / "scan.mib", counts)
    assert_reads(open_vendor(path, scan_shape=(ny, nx)), counts)


# Raw mode

DTYPES = {1: "u1", 6: "u1", 12: "u2", 24: "u4"}


def raw_counts(shape, bits, seed=0):
    """Counts that use every bit of the counters."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**bits - 1, shape, endpoint=True) * (rng.random(shape) < 0.4)
    values[..., 0, 0], values[..., -1, -2] = 2**bits - 1, 1
    return values.astype(DTYPES[bits])


@pytest.mark.parametrize("bits", [1, 6, 12, 24])
@pytest.mark.parametrize("head", [384, 768])
@pytest.mark.parametrize("extension", [".mib", ".MIB"])
def test_raw_mode_puts_every_pixel_in_its_place(tmp_path, bits, head, extension):
    shape = (2, 3, 10, 64) if head == 384 else (2, 3, 12, 128)
    counts = raw_counts(shape, bits)
    path = write_mib(tmp_path / f"scan{extension}", counts, kind="R64", bits=bits, head=head)
    file = open_vendor(path, scan_shape=(2, 3))
    assert file.source.dtype == DTYPES[bits]
    assert_reads(file, counts)
    assert any(f"raw mode (R64), {bits} bits" in finding for finding in file.findings)


@pytest.mark.parametrize("bits", [1, 6, 12, 24])
@pytest.mark.parametrize("square", [False, True])
def test_each_pixel_of_a_raw_frame_of_full_size_is_where_the_chips_say(tmp_path, bits, square):
    edge = 512 if square else 256
    places = [(y, x) for y in (0, 1, edge // 2 - 1, edge - 1) for x in (0, 3, 64, edge // 2, edge - 1)]
    counts = np.zeros((len(places), 1, edge, edge), DTYPES[bits])
    for number, (y, x) in enumerate(places):
        counts[number, 0, y, x] = 1
    path = write_mib(tmp_path / "scan.mib", counts, kind="R64", bits=bits, head=768 if square else 384)
    assert_reads(open_vendor(path, scan_shape=(len(places), 1)), counts)


@pytest.mark.parametrize("square", [False, True])
def test_raw_mode_of_a_few_rows(tmp_path, square):
    counts = raw_counts((2, 2, 128, 512) if square else (2, 2, 64, 256), 12)
    path = write_mib(tmp_path / "roi.mib", counts, kind="R64", head=768 if square else 384)
    assert_reads(open_vendor(path, scan_shape=(2, 2)), counts)


def test_raw_mode_of_24_bits_may_state_the_columns_of_the_chip(tmp_path):
    counts = raw_counts((1, 2, 4, 256), 24)
    path = write_mib(tmp_path / "scan.mib", counts, kind="R64", bits=24)
    data = path.read_bytes()
    assert data.count(b",0512,0004,R64,") == 2
    path.write_bytes(data.replace(b",0512,0004,R64,", b",0256,0004,R64,"))
    assert_reads(open_vendor(path, scan_shape=(1, 2)), counts)


def test_the_depth_of_raw_counters_comes_from_the_hdr_file_where_the_frames_do_not_say(tmp_path):
    counts = raw_counts((2, 2, 4, 64), 12)
    path = write_mib(tmp_path / "scan.mib", counts, kind="R64", exposure_ns=None)
    with pytest.raises(SourceError, match=r"raw mode \(R64\) with counters of unknown bits.*\.hdr"):
        open_vendor(path, scan_shape=(2, 2))
    write_mib(tmp_path / "scan.mib", counts, kind="R64", exposure_ns=None, hdr=merlin_hdr(4, 2, 2, 2))
    assert_reads(open_vendor(path), counts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chips": 4, "layout": "4x1"}, "4 chips in the layout 4x1, whose pixel order is not known"),
        ({"chips": 2, "layout": "2x2"}, "2 chips in the layout 2x2"),
    ],
)
def test_raw_mode_of_unknown_order_is_refused(tmp_path, options, message):
    path = write_mib(tmp_path / "scan.mib", raw_counts((1, 2, 8, 128), 1), kind="R64", bits=1, **options)
    with pytest.raises(SourceError, match=message):
        open_vendor(path, scan_shape=(1, 2))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (b"ns,1,", b"ns,7,", "counters of 7 bits; expected 1, 6, 12 or 24"),
        (b",0128,0008,", b",0120,0008,", "120 columns of 1 bits by 1 chip"),
    ],
)
def test_raw_mode_of_another_depth_or_width_is_refused(tmp_path, right, wrong, message):
    path = write_mib(tmp_path / "scan.mib", raw_counts((1, 2, 8, 128), 1), kind="R64", bits=1)
    path.write_bytes(path.read_bytes().replace(right, wrong))
    with pytest.raises(SourceError, match=message):
        open_vendor(path, scan_shape=(1, 2))


@pytest.mark.long
def test_raw_mode_converts_on_worker_processes(tmp_path):
    from distributed import Client, LocalCluster

    counts = raw_counts((4, 5, 12, 128), 12)
    path = write_mib(tmp_path / "scan.mib", counts, kind="R64", head=768)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        opened = tdm.open(path, scan_shape=(4, 5))
        np.testing.assert_array_equal(opened.compute().values, counts)
        stored = tdm.convert(path, tmp_path / "scan.zarr", scan_shape=(4, 5))
        np.testing.assert_array_equal(stored.compute().values, counts)


# Several chips


def test_chips_that_touch_are_said_to(tmp_path):
    path = write_mib(tmp_path / "quad.mib", random_counts((1, 1, 512, 512), "u2"), head=768)
    file = open_vendor(path)
    assert file.valid_pixels is None
    assert any("4 chips (2x2) touch in the counts" in finding for finding in file.findings)


@pytest.mark.parametrize(("layout", "gap"), [("2x2G", 2), ("2x2G", 3), ("4x1G", 3)])
def test_the_gap_between_chips_is_not_valid(tmp_path, layout, gap):
    size = (512 + gap, 512 + gap) if layout == "2x2G" else (256, 4 * 256 + 3 * gap)
    hdr = merlin_hdr(1, 1) | {"Gap Fill Mode": "Interpolate"}
    path = write_mib(tmp_path / "quad.mib", random_counts((1, 1, *size), "u1"), head=768, layout=layout, hdr=hdr)
    expected = np.ones(size, bool)
    if layout == "2x2G":
        expected[256 : 256 + gap], expected[:, 256 : 256 + gap] = False, False
    else:
        for start in (256, 512 + gap, 768 + 2 * gap):
            expected[:, start : start + gap] = False
    file = open_vendor(path)
    np.testing.assert_array_equal(file.valid_pixels, expected)
    assert any('(filled: "Interpolate")' in finding for finding in file.findings)
    np.testing.assert_array_equal(tdm.open(path).valid_pixels, expected)


def test_the_counters_say_which_dtype_is_enough(tmp_path):
    path = write_mib(tmp_path / "scan.mib", random_counts((1, 1, 4, 4), "u2"), bits=6)
    findings = open_vendor(path).findings
    assert any("counts up to 63, which uint8 holds without loss, in uint16 here" in finding for finding in findings)


# What the times of the frames say


def lines_of_frames(ny, nx, before=0, after=0):
    """Pauses between frames in ns: longer ones before each line."""
    pauses = [100_000] * (before + ny * nx + after - 1)
    for line in range(0 if before else 1, ny):
        pauses[before + line * nx - 1] = 150_000
    return pauses


def test_frames_before_the_scan_are_found_by_the_time_stamps(tmp_path):
    counts = random_counts((1, 3 + 5 * 6, 4, 3), "u1")
    path = write_mib(tmp_path / "scan.mib", counts, pauses_ns=lines_of_frames(5, 6, before=3))
    with pytest.raises(
        ScanShapeError,
        match=r"33 frames.*shows lines of 6 frames from frame 3 on: give scan_shape=\(5, 6\) with skip_first=3",
    ):
        open_vendor(path)
    with pytest.raises(ScanShapeError, match=r"33 frames, but scan_shape=\(5, 4\).*give flyback=2 and skip_first=3 \("):
        open_vendor(path, scan_shape=(5, 4))
    file = open_vendor(path, scan_shape=(5, 4), flyback=2, skip_first=3)
    assert_reads(file, counts[0, 3:].reshape(5, 6, 4, 3)[:, :4])
    assert "3 frame(s) before the scan are left out: skip_first=3." in file.findings
    assert "The last 2 of the 6 frames of each line are left out: flyback=2." in file.findings


def test_a_longer_exposure_marks_the_flyback(tmp_path):
    counts = random_counts((1, 2 + 4 * 6, 4, 3), "u1")
    # Two frames of a line that was not recorded whole, the last of them its flyback.
    exposures = [1_000_000, 9_000_000] + ([1_000_000] * 5 + [9_000_000]) * 4
    path = write_mib(tmp_path / "scan.mib", counts, exposures_ns=exposures)
    with pytest.raises(ScanShapeError, match=r"longer exposure.*scan_shape=\(4, 5\) with flyback=1 and skip_first=2"):
        open_vendor(path)
    file = open_vendor(path, scan_shape=(4, 5), flyback=1, skip_first=2)
    assert_reads(file, counts[0, 2:].reshape(4, 6, 4, 3)[:, :5])


def test_flyback_that_the_last_line_lacks(tmp_path):
    counts = random_counts((1, 4 * 6 - 1, 4, 3), "u1")
    exposures = (([1_000_000] * 5 + [9_000_000]) * 4)[:-1]
    path = write_mib(tmp_path / "scan.mib", counts, exposures_ns=exposures)
    with pytest.raises(ScanShapeError, match=r"scan_shape=\(4, 5\) with flyback=1, if"):
        open_vendor(path)
    padded = np.concatenate([counts[0], counts[0, :1]]).reshape(4, 6, 4, 3)
    assert_reads(open_vendor(path, scan_shape=(4, 5), flyback=1), padded[:, :5])


def test_lines_of_another_length_than_the_scan_are_said(tmp_path):
    counts = random_counts((12, 20, 4, 3), "u1")
    path = write_mib(tmp_path / "scan.mib", counts, pauses_ns=lines_of_frames(12, 20))
    assert_reads(open_vendor(path), counts)
    for shape in [(20, 12), (15, 16), (10, 24)]:
        (finding,) = (f for f in open_vendor(path, scan_shape=shape).findings if "lines of 20 frames" in f)
        assert finding.endswith(f"but those of the scan have {shape[1]}: check flyback=... and scan_shape.")
    for options in ({"scan_shape": (12, 20)}, {"scan_shape": (12, 18), "flyback": 2}):
        assert not any("lines of" in finding for finding in open_vendor(path, **options).findings)


# Interrupted scans


def test_a_truncated_file_opens_with_what_is_whole(tmp_path, counts):
    path = write_mib(tmp_path / "scan.mib", counts, hdr=merlin_hdr(12, 4, 3, 4))
    path.write_bytes(path.read_bytes()[: 7 * 444 + 443])
    with pytest.raises(ScanShapeError, match=r"7 frames of 444 bytes and 443 bytes of another.*allow_partial"):
        open_vendor(path)
    file = open_vendor(path, allow_partial=True)
    expected = counts.copy()
    expected.reshape(12, 6, 5)[7:] = 0
    assert_reads(file, expected)
    np.testing.assert_array_equal(file.valid_patterns, np.arange(12).reshape(3, 4) < 7)
    assert "The last frame is cut short (443 of 444 bytes) and is not read." in file.findings
    assert any(finding.startswith("5 of 12 probe positions have no frame") for finding in file.findings)


# Wrong headers


WRONG_FIELDS = [b"", b"0", b"-1", b"00384", b"1", b"999999999999", b"R64", b"U08", b"U32", b"2x2G", b"\xb2"]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_header_or_truncation_gives_more_than_an_error_of_ours(tmp_path, data):
    """What is opened has exactly as many positions as were asked for, and can be read."""
    raw = data.draw(st.booleans())
    bits = data.draw(st.sampled_from([1, 6, 12, 24] if raw else [12]))
    counts = raw_counts((2, 3, 4, 128), bits) if raw else random_counts((2, 3, 4, 5), "u2")
    kind = {"kind": "R64", "bits": bits, "head": data.draw(st.sampled_from([384, 768]))} if raw else {}
    path = write_mib(tmp_path / "scan.mib", counts, **kind)
    content = path.read_bytes()
    first = content.split(b"\0")[0]
    fields = first.split(b",")
    for _ in range(data.draw(st.integers(0, 3))):
        fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(
            st.one_of(st.binary(max_size=6), st.sampled_from(WRONG_FIELDS))
        )
    content = b",".join(fields) + content[len(first) :]
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    hdr = data.draw(st.one_of(st.none(), st.binary(max_size=40), st.just(b"HDR,\t\nScanX:\t0\nScanY:\t\xc2\xb2\n")))
    path.with_suffix(".hdr").unlink(missing_ok=True)
    if hdr is not None:
        path.with_suffix(".hdr").write_bytes(hdr)
    shape = data.draw(st.sampled_from([None, (2, 3), (3, 2), (1, 7), (2, 2)]))
    options = {
        "flyback": data.draw(st.integers(0, 2)),
        "skip_first": data.draw(st.one_of(st.none(), st.integers(0, 3))),
        "allow_partial": data.draw(st.booleans()),
    }
    try:
        file = open_vendor(path, scan_shape=shape, **options)
    except TdmError:
        return
    assert shape in (None, file.source.shape[:2])
    ny, nx = file.source.shape[:2]
    assert file.source.read(0, ny, 0, nx).shape == file.source.shape
    assert file.valid_patterns is None or (options["allow_partial"] and file.valid_patterns.any())


# Real files


def real_files(shared, tmp_path):
    for archive in sorted((shared / "data" / "vendor").glob("Merlin*.zip")):
        with zipfile.ZipFile(archive) as content:
            content.extractall(tmp_path / archive.stem)
    return sorted(tmp_path.rglob("*.mib"))


def test_real_merlin_files_equal_rosettasciio(shared, tmp_path):
    from rsciio.quantumdetector import file_reader

    opened = 0
    for path in real_files(shared, tmp_path):
        if "RAW" in path.name:  # which rosettasciio does not read
            continue
        shape = (3, 3) if "_9_Frame" in path.name else (1, 1) if "_1_Frame" in path.name else (2, 4)
        theirs = file_reader(str(path), navigation_shape=shape[::-1])[0]["data"]
        ours = open_vendor(path, scan_shape=shape)
        np.testing.assert_array_equal(whole(ours), theirs.reshape(ours.source.shape))
        opened += 1
    assert opened == 20


def test_real_merlin_scans_know_their_shape_and_stacks_do_not(shared, tmp_path):
    for path in real_files(shared, tmp_path):
        if "4x2" in path.name:
            assert open_vendor(path).source.shape[:2] == (2, 4)
        elif "_9_Frame" in path.name:
            with pytest.raises(ScanShapeError, match="9 frames"):
                open_vendor(path)


@pytest.mark.parametrize("chips", ["Single", "Quad"])
def test_real_raw_frames_show_the_noise_of_the_same_pixels(shared, tmp_path, chips):
    """Raw mode and not, a second apart, without a beam: single noisy pixels that count in nearly every frame."""
    paths = {path.stem: path for path in real_files(shared, tmp_path)}
    name = f"{chips}_9_Frame_CounterDepth_1_Rows_256"
    plain, raw = (
        whole(open_vendor(paths[stem], scan_shape=(3, 3))).mean((0, 1)) for stem in (name, f"{name}RAW")
    )
    assert raw.shape == plain.shape == ((512, 512) if chips == "Quad" else (256, 256))
    assert plain.std() > 0.1
    half = slice(0, 256), slice(256, 512)
    for quarter in [(y, x) for y in half for x in half] if chips == "Quad" else [(half[0], half[0])]:
        a, b = plain[quarter], raw[quarter]
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
        # No other way to put the chip is nearly as good.
        for other in (b[::-1], b[:, ::-1], b[::-1, ::-1]):
            assert np.corrcoef(a.ravel(), other.ravel())[0, 1] < 0.6
    one = open_vendor(paths[name.replace("_9_", "_1_") + "RAW"])
    assert one.source.shape == (1, 1, *raw.shape)
