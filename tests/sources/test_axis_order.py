"""Arrays that store the detector first: how they are recognised, and how they are read."""

from __future__ import annotations

import json
import warnings

import h5py
import numpy as np
import pytest
import zarr
from binary_files import write_dm
from hdf5_files import ANGLES, LENGTHS, RECIPROCALS, write_emd, write_hspy
from reading import assert_reads, random_counts
from simulated_scans import SCANS
from vendor_files import signal_dict, write_mib

import tdm_dask as tdm
from tdm_dask.cli import main
from tdm_dask.errors import InputError, ScanShapeError, SourceError
from tdm_dask.sources.formats.registry import open_vendor

DOUBT = "the detector's axes seem to come first; if so, open it with detector_first"


def scan_of_a_disk(shape=(9, 12, 16, 20), radius=5, contrast=0.2, dose=20.0, seed=0):
    """Poisson counts of a bright-field disk whose brightness follows a lattice, and of a little between the discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    ky, kx = np.mgrid[: shape[2], : shape[3]]
    image = 1 + contrast * np.sin(y) * np.cos(x)
    disk = np.where(np.hypot(ky - shape[2] / 2, kx - shape[3] / 2) < radius, 1.0, 0.02)
    return rng.poisson(dose * image[..., None, None] * disk).astype("u2")


def turned(counts):
    return np.ascontiguousarray(counts.transpose(2, 3, 0, 1))


def as_npy(folder, array):
    np.save(folder / "scan.npy", array)
    return folder / "scan.npy"


def as_hdf5(folder, array):
    with h5py.File(folder / "scan.h5", "w") as file:
        file["data"] = array
    return folder / "scan.h5"


def as_packed_hdf5(folder, array):
    with h5py.File(folder / "scan.h5", "w") as file:
        file.create_dataset("data", data=array, chunks=(4, 4, *array.shape[2:]), compression="gzip")
    return folder / "scan.h5"


def as_zarr(folder, array):
    zarr.create_group(folder / "other.zarr").create_array("patterns", data=array, chunks=(4, 4, *array.shape[2:]))
    return folder / "other.zarr"


def as_dm4(folder, array):
    return write_dm(folder / "scan.dm4", array, (1, 1, 1, 1), ("", "", "", ""))


def as_stack(folder, array):
    np.save(folder / "stack.npy", np.stack([array, array]))
    return folder / "stack.npy"


CONTAINERS = [as_npy, as_hdf5, as_packed_hdf5, as_zarr, as_dm4, lambda f, a: write_hspy(f / "scan.hspy", a)]


@pytest.mark.parametrize("write", CONTAINERS)
def test_counts_that_look_turned_are_doubted_and_open_turned_on_request(tmp_path, write):
    counts = scan_of_a_disk()
    path = write(tmp_path, turned(counts))
    (doubt,) = open_vendor(path).doubts
    assert DOUBT in doubt
    assert "At 64 places" in doubt
    with pytest.warns(UserWarning, match="detector's axes seem to come first"):
        assert tdm.open(path).shape == turned(counts).shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = tdm.open(path, detector_first=True)
    np.testing.assert_array_equal(opened, counts)
    assert_reads(open_vendor(path, detector_first=True), counts)
    stated = open_vendor(path, detector_first=False)
    assert stated.doubts == ()
    assert stated.source.shape == turned(counts).shape


@pytest.mark.parametrize("write", CONTAINERS)
def test_counts_in_order_are_not_doubted(tmp_path, write):
    assert open_vendor(write(tmp_path, scan_of_a_disk())).doubts == ()


@pytest.mark.parametrize("dtype", ["u2", "f4"])
@pytest.mark.parametrize("dose", [1.0, 300.0])
@pytest.mark.parametrize("radius", [3, 5, 7])
@pytest.mark.parametrize("contrast", [0.0, 0.4])
def test_the_evidence_depends_on_neither_dose_nor_disk(tmp_path, dose, radius, contrast, dtype):
    counts = scan_of_a_disk((16, 16, 16, 16), radius, contrast, dose).astype(dtype)
    assert open_vendor(as_npy(tmp_path, counts)).doubts == ()
    assert len(open_vendor(as_npy(tmp_path, turned(counts))).doubts) == 1


@pytest.mark.parametrize("dose", [0.001, 0.003, 0.01, 0.03, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_few_counts_raise_no_doubt(tmp_path, dose, seed):
    assert open_vendor(as_npy(tmp_path, scan_of_a_disk((16, 16, 16, 16), dose=dose, seed=seed))).doubts == ()


def test_a_scan_beyond_the_edge_of_its_sample_is_not_doubted(tmp_path):
    """Hardly a count arrives through a bar of the grid, so that totals differ very much."""
    counts = scan_of_a_disk()
    counts[:5] //= 50
    assert open_vendor(as_npy(tmp_path, counts)).doubts == ()


@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 9, 16, 16), (16, 16, 2, 2)])
def test_arrays_too_small_to_tell_are_not_doubted(tmp_path, shape):
    counts = random_counts(shape, "u1")
    assert open_vendor(as_npy(tmp_path, counts)).doubts == ()
    assert open_vendor(as_npy(tmp_path, turned(counts))).doubts == ()


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_arrays_without_counts_are_not_doubted(tmp_path, value):
    assert open_vendor(as_npy(tmp_path, np.full((8, 8, 8, 8), value, "f4"))).doubts == ()


@pytest.mark.parametrize("name", SCANS)
def test_simulated_scans_are_told_from_turned_ones(name, tmp_path, simulated):
    counts, _ = simulated(name)
    counts = np.random.default_rng(0).poisson(counts / counts.sum((2, 3)).mean() * 1e4).astype("u2")
    assert open_vendor(as_npy(tmp_path, counts)).doubts == ()
    assert len(open_vendor(as_npy(tmp_path, turned(counts))).doubts) == 1


def test_the_sample_of_the_package_is_told_from_a_turned_one(tmp_path):
    from importlib.resources import files

    counts = tdm.open(str(files("tdm_dask") / "data" / "lifepo4_001.mib")).values
    assert open_vendor(as_npy(tmp_path, counts)).doubts == ()
    assert len(open_vendor(as_npy(tmp_path, turned(counts))).doubts) == 1


def test_a_stack_of_turned_scans_opens_scan_by_scan(tmp_path):
    counts = scan_of_a_disk()
    path = as_stack(tmp_path, turned(counts))
    assert len(open_vendor(path, frame=1).doubts) == 1
    assert_reads(open_vendor(path, frame=1, detector_first=True), counts)


def test_raw_binary_may_store_the_detector_first(tmp_path):
    counts = random_counts((3, 4, 6, 5), ">u2")
    path = tmp_path / "scan.raw"
    path.write_bytes(b"\xfd" * 7 + turned(counts).tobytes())
    layout = {"scan_shape": (3, 4), "detector_shape": (6, 5), "dtype": ">u2", "offset": 7, "detector_first": True}
    assert_reads(open_vendor(path, **layout), counts.astype("u2"))
    with pytest.raises(ScanShapeError, match="with the detector first needs 907"):
        open_vendor(path, **layout | {"scan_shape": (3, 5)})


def test_files_of_whole_patterns_take_no_order(tmp_path):
    path = write_mib(tmp_path / "scan.mib", random_counts((3, 4, 6, 5), "u2"))
    with pytest.raises(InputError, match="each of them a whole pattern, but detector_first=True was given"):
        open_vendor(path, scan_shape=(3, 4), detector_first=True)
    np.save(tmp_path / "frames.npy", random_counts((12, 6, 5), "u2"))
    with pytest.raises(InputError, match="each of them a whole pattern"):
        open_vendor(tmp_path / "frames.npy", scan_shape=(3, 4), detector_first=False)


def test_a_cut_array_with_the_detector_first_is_refused(tmp_path):
    path = as_npy(tmp_path, turned(random_counts((3, 4, 6, 5), "u2")))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="what is missing is of every pattern"):
        open_vendor(path, detector_first=True, allow_partial=True)


def test_names_of_axes_say_the_order(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("data", data=turned(counts), dimension_names=["qy", "qx", "ry", "rx"])
    assert_reads(open_vendor(tmp_path / "a.zarr"), counts)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("data", data=turned(counts))
        for dim, name in zip(dataset.dims, ["ky", "kx", "scan_y", "scan_x"], strict=True):
            dim.label = name
    assert_reads(open_vendor(tmp_path / "a.h5"), counts)


def test_nexus_units_say_the_order(tmp_path):
    from rsciio.nexus import file_writer

    counts = random_counts((3, 4, 6, 5), "u2")
    file_writer(str(tmp_path / "scan.nxs"), signal_dict(turned(counts), RECIPROCALS + LENGTHS, {}))
    file = open_vendor(tmp_path / "scan.nxs")
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.32))
    file_writer(str(tmp_path / "other.nxs"), signal_dict(counts, LENGTHS + ANGLES, {}))
    assert_reads(open_vendor(tmp_path / "other.nxs"), counts)


def test_units_of_half_of_the_axes_raise_a_doubt(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    path = write_hspy(tmp_path / "scan.hspy", turned(counts), [*RECIPROCALS, {}, {}])
    (doubt,) = open_vendor(path).doubts
    assert doubt.startswith("The first two axes are in 1/nm and the last two are not: ")
    assert_reads(open_vendor(path, detector_first=True), counts)


def test_emd_that_counts_dims_from_the_fastest_is_taken_as_it_stands_on_request(tmp_path):
    counts = random_counts((3, 4, 6, 5), "u2")
    path = write_emd(tmp_path / "scan.emd", counts, first=1, units=("", "", "", ""))
    assert open_vendor(path).source.shape == (5, 6, 4, 3)
    assert_reads(open_vendor(path, detector_first=False), counts)


def test_the_command_line_doubts_and_repairs(tmp_path, capsys):
    counts = scan_of_a_disk()
    path = as_npy(tmp_path, turned(counts))

    def run(*arguments):
        with pytest.raises(SystemExit) as code:
            main([*map(str, arguments)])
        assert code.value.code == 0
        return capsys.readouterr()

    doubt = f"{DOUBT.removesuffix('detector_first')}--detector-first."
    assert any(doubt in finding for finding in json.loads(run("info", path, "--json").out)["findings"])
    told = run("info", path, "--detector-first")
    assert doubt not in told.out
    assert "--detector-first" in told.out
    assert "--scan-first" in run("info", path, "--scan-first").out
    doubtful = run("convert", path, tmp_path / "wrong.zarr")
    assert doubt in doubtful.err
    assert doubt in doubtful.out
    run("convert", path, tmp_path / "scan.zarr", "--detector-first")
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr"), counts)
