"""Zarr stores of other programs: HyperSpy's .zspy, abTEM's, xarray's."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from reading import assert_reads, random_counts, whole

import tdm_dask as tdm
from tdm_dask.errors import CountsError, InputError, ScanShapeError, SourceError
from tdm_dask.sources.formats.registry import open_vendor


@pytest.fixture
def counts():
    return random_counts((3, 4, 6, 5), "u2")


def write_zspy(path, counts, *, zipped=False):
    """What HyperSpy with zarr 2 writes: groups of attributes, and chunks in nested folders."""
    store = zarr.storage.ZipStore(path, mode="w") if zipped else path
    marks = {"file_format": "ZSpy", "file_format_version": "3.3"}
    root = zarr.open_group(store, mode="w", zarr_format=2, attributes=marks)
    signal = root.create_group("Experiments/scan")
    signal.create_array(
        "data", data=counts, chunks=(2, 2, 6, 5), chunk_key_encoding={"name": "v2", "separator": "/"}
    )
    scales, units = (0.03, 0.32, 1.2, 0.002), ("nm", "Å", "mrad", "rad")
    for i, (scale, unit) in enumerate(zip(scales, units, strict=True)):
        axis = {"name": f"axis{i}", "scale": scale, "offset": 0.0, "units": unit, "size": counts.shape[i]}
        signal.create_group(f"axis-{i}", attributes=axis | {"navigate": i < 2, "_type": "UniformDataAxis"})
    signal.create_group("metadata/Acquisition_instrument/TEM", attributes={"beam_energy": 200.0})
    signal.create_group("original_metadata")
    if zipped:
        store.close()
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_zspy_reads_every_count(tmp_path, counts, zipped):
    file = open_vendor(write_zspy(tmp_path / "scan.zspy", counts, zipped=zipped))
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.32))
    assert file.pixel_size == pytest.approx((1.2, 2.0))
    assert file.acquisition == {"energy_eV": 200e3}
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zspy").compute(), counts)


def write_abtem(path, counts, *, zipped=False, tuples=False, kind="DiffractionPatterns", fftshift=True):
    """abTEM's own layout: array0 and what made it as attributes; x before y."""
    packed = [{"_type": "tuple", "_value": [0.5, 0.25]}, [0.5, 0.25]][not tuples]
    scan = [
        {"label": "x", "sampling": 0.2, "units": "Å", "offset": 0.0, "endpoint": False, "type": "ScanAxis"},
        {"label": "y", "sampling": 0.3, "units": "Å", "offset": 0.0, "endpoint": False, "type": "ScanAxis"},
    ]
    made = {"sampling": packed, "fftshift": fftshift, "ensemble_axes_metadata": scan, "metadata": {"energy": 200e3}}
    store = zarr.storage.ZipStore(path, mode="w") if zipped else path
    root = zarr.open_group(store, mode="w", attributes={"kwargs0": made, "type0": kind})
    root.create_array("array0", data=np.ascontiguousarray(counts.transpose(1, 0, 3, 2)), chunks=(4, 1, 5, 6))
    if zipped:
        store.close()
    return path


@pytest.mark.parametrize(("zipped", "tuples"), [(False, False), (False, True), (True, True)])
def test_abtem_patterns_are_put_y_first(tmp_path, zipped, tuples):
    counts = random_counts((3, 4, 6, 5), "f4")
    path = tmp_path / ("scan.zip" if zipped else "scan.zarr")
    file = open_vendor(write_abtem(path, counts, zipped=zipped, tuples=tuples))
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.2))
    # 0.25 and 0.5 1/angstrom at the wavelength of 200 keV.
    assert file.pixel_size == pytest.approx((6.2698, 12.5396), rel=1e-4)
    assert file.acquisition == {"energy_eV": 200e3}


@pytest.mark.parametrize(
    ("options", "message"), [({"kind": "Waves"}, "abTEM's Waves"), ({"fftshift": False}, "optic axis in a corner")]
)
def test_abtem_arrays_that_are_no_patterns_are_refused(tmp_path, counts, options, message):
    with pytest.raises(CountsError, match=message):
        open_vendor(write_abtem(tmp_path / "scan.zarr", counts, **options))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_store_of_xarray_is_read_with_its_coordinates(tmp_path, counts, zarr_format):
    coords = {
        name: (name, np.arange(size) * step, {"units": unit})
        for name, size, step, unit in zip(
            ("a", "b", "c", "d"), counts.shape, (0.03, 0.02, 1.5, 1.5), ("nm", "nm", "mrad", "mrad"), strict=True
        )
    }
    scan = xr.Dataset({"patterns": (tuple(coords), counts), "image": (("a", "b"), counts.sum((2, 3)))}, coords)
    scan.to_zarr(tmp_path / "scan.zarr", zarr_format=zarr_format, consolidated=False)
    file = open_vendor(tmp_path / "scan.zarr")
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.2))
    assert file.pixel_size == pytest.approx((1.5, 1.5))
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr").compute(), counts)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_bare_array_is_read(tmp_path, counts, zarr_format):
    zarr.create_array(tmp_path / "scan.zarr", data=counts, zarr_format=zarr_format, chunks=(1, 4, 6, 5))
    assert_reads(open_vendor(tmp_path / "scan.zarr"), counts)
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr").compute(), counts)


def test_stacks_need_the_scan_shape_or_frame(tmp_path, counts):
    root = zarr.create_group(tmp_path / "frames.zarr")
    root.create_array("frames", data=counts.reshape(12, 6, 5), chunks=(5, 6, 5))
    with pytest.raises(CountsError, match=r"it has /frames \(12, 6, 5\)"):
        open_vendor(tmp_path / "frames.zarr")
    assert_reads(open_vendor(tmp_path / "frames.zarr", scan_shape=(3, 4)), counts)
    assert_reads(open_vendor(tmp_path / "frames.zarr", scan_shape=(3, 3), flyback=1), counts[:, :3])
    root = zarr.create_group(tmp_path / "scans.zarr")
    root.create_array("scans", data=np.stack([counts, counts + 1]), chunks=(1, 2, 2, 6, 5))
    with pytest.raises(InputError, match="2 scans"):
        open_vendor(tmp_path / "scans.zarr")
    assert_reads(open_vendor(tmp_path / "scans.zarr", frame=1), counts + 1)
    with pytest.raises(ScanShapeError, match="leave it out"):
        open_vendor(tmp_path / "scans.zarr", frame=1, scan_shape=(4, 3))


def test_array_that_changed_or_is_damaged_is_an_error(tmp_path, counts):
    zarr.create_group(tmp_path / "scan.zarr").create_array("a", data=counts)
    file = open_vendor(tmp_path / "scan.zarr")
    identity, token = file.identity, file.source.__dask_tokenize__()
    shutil.rmtree(tmp_path / "scan.zarr" / "a")
    zarr.open_group(tmp_path / "scan.zarr", mode="a").create_array("a", data=counts + 1)
    assert open_vendor(tmp_path / "scan.zarr").identity != identity
    assert open_vendor(tmp_path / "scan.zarr").source.__dask_tokenize__() != token
    with pytest.raises(SourceError, match="has changed"):
        whole(file)
    file = open_vendor(tmp_path / "scan.zarr")
    (tmp_path / "scan.zarr" / "a" / "c" / "0" / "0" / "0" / "0").write_bytes(b"no chunk")
    with pytest.raises(SourceError, match="not a zarr store that can be read"):
        whole(file)


def test_of_a_sharded_array_inner_chunks_are_read_by_themselves(tmp_path, counts):
    root = zarr.open_group(tmp_path / "scan.zarr", mode="w")
    array = root.create_array("data", shape=counts.shape, dtype=counts.dtype, chunks=(1, 2, 6, 5), shards=(3, 4, 6, 5))
    array[...] = counts
    file = open_vendor(tmp_path / "scan.zarr")
    assert file.source.tile == (1, 2)
    assert_reads(file, counts)
