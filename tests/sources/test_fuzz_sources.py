"""Damaged files: whatever is cut or changed in one, it opens as it says, or is refused by an error of this package."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from binary_files import write_dm, write_mrc, write_prz, write_ser, write_tvips
from hdf5_files import write_app5, write_emd, write_hspy, write_master, write_velox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import random_counts, whole
from vendor_files import EMPAD_NEW, write_blo, write_empad

from tdm_dask.errors import TdmError
from tdm_dask.sources.formats.registry import open_vendor

COUNTS = random_counts((2, 3, 4, 4), "u2")
FRAMES = COUNTS.reshape(6, 4, 4)
BYTES = (COUNTS % 256).astype("u1")


def write_npy(path):
    np.save(path, COUNTS)
    return path


WRITERS = {
    "blo": lambda folder: write_blo(folder / "scan.blo", BYTES),
    "tvips": lambda folder: write_tvips(folder / "scan_000.tvips", FRAMES, rotator=range(6)),
    "mrc": lambda folder: write_mrc(folder / "scan.mrc", FRAMES, mode=6),
    "ser": lambda folder: write_ser(folder / "scan_1.ser", COUNTS),
    "dm3": lambda folder: write_dm(folder / "scan.dm3", COUNTS, (1, 1, 1, 1), ("nm", "nm", "1/nm", "1/nm"), version=3),
    "dm4": lambda folder: write_dm(folder / "scan.dm4", COUNTS, (1, 1, 1, 1), ("nm", "nm", "1/nm", "1/nm")),
    "prz": lambda folder: write_prz(folder / "scan.prz", COUNTS, ["ScanY", "ScanX", "CameraY", "CameraX"]),
    "npy": lambda folder: write_npy(folder / "scan.npy"),
    "hspy": lambda folder: write_hspy(folder / "scan.hspy", COUNTS),
    "emd": lambda folder: write_emd(folder / "scan.emd", COUNTS, first=0),
    "velox": lambda folder: write_velox(folder / "scan.emd", COUNTS, scan_size=(2, 3)),
    "app5": lambda folder: write_app5(folder / "scan.app5", COUNTS),
    "dectris": lambda folder: write_master(folder / "scan_master.h5", [FRAMES[:3], FRAMES[3:]]),
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """One folder of each format, written once."""
    made = {}
    for kind, write in WRITERS.items():
        made[kind] = write(tmp_path_factory.mktemp(kind))
        assert {"scan_shape": (2, 3)} in assert_opens_or_refuses(made[kind])
    return made


def assert_opens_or_refuses(path):
    """Either a scan of the shape that was asked for, whose counts are all there, or an error of this package.

    Returns the options with which the file opened.
    """
    opened = []
    for options in ({}, {"scan_shape": (2, 3)}, {"scan_shape": (2, 3), "allow_partial": True}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                file = open_vendor(path, **options)
                shape = file.source.shape
                if np.prod(shape, dtype=float) > 1e7:
                    continue  # a compressed array, or a hole, may well be as large as it says
                counts = whole(file)
            except TdmError as refused:
                sentence = str(refused)
                assert sentence.endswith("."), sentence
                continue
        opened.append(options)
        assert counts.shape == shape
        assert counts.dtype == file.source.dtype
        if options:
            assert shape[:2] == (2, 3)
        for flags, expected in ((file.valid_pixels, shape[2:]), (file.valid_patterns, shape[:2])):
            assert flags is None or flags.shape == expected
    return opened


def damaged(content, changes, cut):
    """Bytes with some of them changed, and cut short."""
    data = bytearray(content)
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    return bytes(data[: max(1, int(cut * len(data)))])


# Most of a header lies at the beginning, so half of the places do.
PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.05))
CHANGES = st.lists(st.tuples(PLACES, st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)), max_size=6)
CUTS = st.one_of(st.just(1.0), st.floats(0, 1))
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", WRITERS)
@FEW
@given(CHANGES, CUTS)
def test_damaged_file_opens_right_or_is_refused(examples, kind, changes, cut):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        shutil.copytree(examples[kind].parent, folder)
        path = folder / examples[kind].name
        path.write_bytes(damaged(path.read_bytes(), changes, cut))
        assert_opens_or_refuses(path)


@FEW
@given(st.binary(max_size=3000), st.sampled_from(["blo", "tvips", "mrc", "ser", "dm4", "prz", "npy", "hspy", "xml"]))
def test_any_bytes_are_refused_or_make_sense(content, extension):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"scan_000.{extension}"
        path.write_bytes(content or b"x")
        assert_opens_or_refuses(path)


ODD_NUMBERS = ["", "nan", "1e400", "2.5", "[", "9" * 400, "x", "\u0663"]
NUMBERS = st.one_of(st.integers(-3, 10).map(str), st.sampled_from(ODD_NUMBERS))
RAW_NAMES = st.sampled_from(["scan_x3_y2.raw", "a.raw", ".."])


@FEW
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 3 * 66560), RAW_NAMES)
def test_empad_headers_of_any_numbers(ny, nx, search, acquire, size, raw):
    with tempfile.TemporaryDirectory() as name:
        header = Path(name) / "scan.xml"
        header.write_text(EMPAD_NEW.format(raw=raw, ny=ny, nx=nx, search=search, acquire=acquire))
        if raw != "..":
            (Path(name) / raw).write_bytes(np.zeros(max(size // 4, 1), "<f4").tobytes()[: max(size, 1)])
        assert_opens_or_refuses(header)


@FEW
@given(CHANGES, CUTS, CUTS)
def test_damaged_empad_is_refused_or_opens(tmp_path_factory, changes, cut, raw_cut):
    folder = tmp_path_factory.mktemp("empad")
    header = write_empad(folder / "scan.xml", np.ones((2, 3, 128, 128), "f4"))
    header.write_bytes(damaged(header.read_bytes(), changes, cut))
    raw = folder / "scan_x3_y2.raw"
    raw.write_bytes(damaged(raw.read_bytes(), (), raw_cut))
    assert_opens_or_refuses(header)
    shutil.rmtree(folder)


@FEW
@given(CHANGES, CUTS, st.sampled_from(["zarr.json", "a/zarr.json", "a/c/0/0/0/0"]))
def test_damaged_zarr_store_is_refused_or_opens(changes, cut, member):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "scan.zarr"
        zarr.create_group(path).create_array("a", data=COUNTS, chunks=(1, 3, 4, 4))
        file = path / member
        file.write_bytes(damaged(file.read_bytes(), changes, cut))
        assert_opens_or_refuses(path)
