"""What all vendor files have in common: lazy, exact, native-endian, and wrong requests refused in words."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import zarr
from binary_files import write_dm, write_mrc, write_prz, write_ser, write_tvips
from hdf5_files import ANGLES, LENGTHS, write_app5, write_emd, write_hspy, write_master, write_velox
from reading import assert_reads, random_counts
from vendor_files import merlin_hdr, signal_dict, write_blo, write_empad, write_mib, write_raw

import tdm_dask as tdm
from tdm_dask.errors import CountsError, InputError, ScanShapeError, SourceError
from tdm_dask.reading.lazy import as_dask, source_of
from tdm_dask.sources import stacks
from tdm_dask.sources.formats.registry import known_extensions, open_vendor
from tdm_dask.sources.vendor import identities, identity, plain, same_file


@pytest.fixture
def counts():
    return random_counts((3, 4, 6, 5), "u2")


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


UNITS = ("nm", "nm", "1/nm", "1/nm")
KINDS = {
    "split tvips": lambda folder, c: write_tvips(folder / "scan_000.tvips", c.reshape(12, 6, 5), split=(5,)),
    "mrc": lambda folder, c: write_mrc(folder / "scan.mrc", c.reshape(12, 6, 5), mode=6),
    "uneven ser": lambda folder, c: write_ser(folder / "scan_1.ser", c, gap=3),
    "dm4": lambda folder, c: write_dm(folder / "scan.dm4", c, (1, 1, 1, 1), UNITS),
    "dm4 detector first": lambda folder, c: write_dm(
        folder / "scan.dm4", np.ascontiguousarray(c.transpose(2, 3, 0, 1)), (1, 1, 1, 1), (*UNITS[2:], *UNITS[:2])
    ),
    "prz": lambda folder, c: write_prz(folder / "scan.prz", c, ["ScanY", "ScanX", "CameraY", "CameraX"]),
    "hspy": lambda folder, c: write_hspy(folder / "scan.hspy", c, chunks=(1, 2, 6, 5)),
    "emd detector first": lambda folder, c: write_emd(
        folder / "scan.emd", c.T, first=1, units=("1/nm", "1/nm", "nm", "nm")
    ),
    "velox": lambda folder, c: write_velox(folder / "scan.emd", c),
    "app5": lambda folder, c: write_app5(folder / "scan.app5", c),
    "dectris": lambda folder, c: write_master(folder / "scan_master.h5", np.split(c.reshape(12, 6, 5), [5])),
    "zarr": lambda folder, c: write_zarr(folder / "scan.zarr", c),
}


def write_zarr(path, counts):
    zarr.create_group(path).create_array("patterns", data=counts, chunks=(2, 2, 6, 5))
    return path


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """Counts, and for each kind of file that is not plain frames the lazy array of these counts."""
    counts = random_counts((3, 4, 6, 5), "u2")
    paths = {kind: write(tmp_path_factory.mktemp("kind"), counts) for kind, write in KINDS.items()}
    return counts, paths


@pytest.mark.long
def test_every_kind_is_computed_by_threads_and_by_processes(every_kind):
    counts, paths = every_kind
    sources = [open_vendor(path, scan_shape=(3, 4)).source for path in paths.values()]
    arrays = [as_dask(source, chunk_bytes=200) for source in sources]
    assert all(array.npartitions > 1 for array in arrays)
    for options in ({"scheduler": "threads"}, {"scheduler": "processes", "num_workers": 2}):
        for kind, computed in zip(paths, dask.compute(*arrays, **options), strict=True):
            np.testing.assert_array_equal(computed, counts, err_msg=kind)


@pytest.mark.long
def test_every_kind_is_computed_by_distributed_workers(every_kind):
    from distributed import Client

    counts, paths = every_kind
    arrays = [as_dask(open_vendor(path, scan_shape=(3, 4)).source, chunk_bytes=200) for path in paths.values()]
    with Client(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None):
        for kind, computed in zip(paths, dask.compute(*arrays), strict=True):
            np.testing.assert_array_equal(computed, counts, err_msg=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_converts_to_the_same_counts(every_kind, tmp_path, kind):
    counts, paths = every_kind
    stored = tdm.convert(paths[kind], tmp_path / "scan.zarr", scan_shape=(3, 4))
    np.testing.assert_array_equal(stored.compute(), counts)
    crop = {"y": slice(1, 3), "x": slice(1, 4), "kx": slice(1, 4)}
    cropped = tdm.convert(paths[kind], tmp_path / "crop.zarr", scan_shape=(3, 4), crop=crop)
    np.testing.assert_array_equal(cropped.compute(), counts[1:3, 1:4, :, 1:4])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_holds_no_open_file(every_kind, kind):
    _, paths = every_kind
    before = set(os.listdir("/proc/self/fd"))
    source = open_vendor(paths[kind], scan_shape=(3, 4)).source
    source.read(0, 1, 0, 4)
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


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
        with pytest.raises(InputError, match=f"{next(iter(option))}=.* was given"):
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


def test_small_files_are_known_by_their_content_and_large_ones_by_their_time(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.raw", "b.raw")]
    for path in paths:
        path.write_bytes(b"counts")
    whole = hashlib.sha256(b"counts").hexdigest()
    before = identities(*paths)
    assert [file["sha256"] for file in before] == [whole, whole]
    os.utime(paths[0], (1, 1))
    assert identities(*paths) != before
    assert all(map(same_file, identities(*paths), before))
    assert identities(tmp_path) == [identity(tmp_path)]
    monkeypatch.setattr("tdm_dask.sources.vendor.HASHED_BYTES", 11)  # one alone is small enough, two are not
    assert identities(*paths) == [identity(path) for path in paths]
    # What was kept without a checksum is known by its time.
    assert [*map(same_file, identities(*paths), before)] == [False, True]
    together = {"name": "scan", "linked": before}
    assert same_file(together, together | {"linked": [dict(file) for file in before]})
    assert not same_file(together, together | {"linked": identities(*paths)})
    assert not same_file(together, together | {"linked": before[:1]})
    assert not same_file(before[0], before[1])
    assert same_file(None, None)
    assert not same_file(before[0], None)


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
        "import sys, tdm_dask.sources.formats.registry; "
        "print([m for m in ('rsciio', 'hyperspy', 'h5py', 'hdf5plugin') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_image_is_no_scan(tmp_path):
    from rsciio.tiff import file_writer

    image = np.zeros((4, 5), "u2")
    signal = signal_dict(image, [{"navigate": False}] * 2, {})
    file_writer(str(tmp_path / "a.tif"), signal)
    with pytest.raises(CountsError, match="dimensions; a scan has four"):
        open_vendor(tmp_path / "a.tif")
