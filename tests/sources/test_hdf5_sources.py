"""HDF5 files: HyperSpy, EMD, py4DSTEM, NeXus, Velox, TopSpin, and bare arrays."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hdf5_files import (
    ANGLES,
    APP5_SCAN,
    LENGTHS,
    RECIPROCALS,
    TEM,
    write_app5,
    write_emd,
    write_hspy,
    write_velox,
)
from reading import assert_reads, random_counts, whole
from vendor_files import signal_dict

from tdm_dask.errors import CountsError, InputError, ScanShapeError, SourceError
from tdm_dask.reading.blocks import RawFrames, assembled
from tdm_dask.sources.formats.registry import open_vendor


@pytest.fixture
def counts():
    return random_counts((3, 4, 6, 5), "u2")


@pytest.mark.parametrize("dtype", ["u2", ">u2", "f4"])
@pytest.mark.parametrize("extension", [".hspy", ".hdf5", ".HSPY"])
def test_hspy_reads_every_count(tmp_path, dtype, extension):
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
    with pytest.raises(ScanShapeError, match=r"\(3, 4\) positions, but scan_shape=\(4, 3\)"):
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
    ],
)
def test_hyperspy_signal_that_is_no_scan_of_patterns_is_refused(tmp_path, counts, navigate, message):
    path = write_hspy(tmp_path / "scan.hspy", counts, [{"navigate": n} for n in navigate])
    with pytest.raises(CountsError, match=message):
        open_vendor(path)


@pytest.mark.parametrize("chunks", [None, (3, 5, 2, 2)])
@pytest.mark.parametrize("says", ["units", "navigation", "caller"])
def test_hyperspy_signal_with_the_detector_first_is_turned(tmp_path, counts, says, chunks):
    axes = {
        "units": RECIPROCALS + LENGTHS,
        "navigation": [{"navigate": n} for n in (False, False, True, True)],
        "caller": [{}] * 4,
    }
    stored = np.ascontiguousarray(counts.transpose(2, 3, 0, 1))
    path = write_hspy(tmp_path / "scan.hspy", stored, axes[says], chunks=chunks)
    file = open_vendor(path, detector_first=True if says == "caller" else None)
    assert_reads(file, counts)
    assert file.order_is_known
    assert any("detector first" in finding for finding in file.findings)
    assert file.scan_step == (pytest.approx((0.3, 0.32)) if says == "units" else None)
    assert open_vendor(path, detector_first=False).source.shape == stored.shape


def test_hyperspy_complex_signal_is_refused(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts.astype(complex))
    with pytest.raises(CountsError, match="dtype complex128"):
        open_vendor(path)


def test_hspy_with_several_signals_needs_frame(tmp_path, counts):
    path = write_hspy(tmp_path / "scan.hspy", counts)
    with h5py.File(path, "a") as file:
        file.copy("Experiments/scan", "Experiments/second")
        file["Experiments/second/data"][...] = counts + 1
    with pytest.raises(InputError, match="holds 2 signals"):
        open_vendor(path)
    file = open_vendor(path, frame=1)
    np.testing.assert_array_equal(whole(file), counts + 1)
    assert any('"second"' in finding for finding in file.findings)


def test_hspy_without_signal_or_axes_is_refused(tmp_path, counts):
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


@pytest.mark.parametrize("extension", [".emd", ".h5", ".de5"])
@pytest.mark.parametrize("chunks", [None, (5, 6, 2, 1)])
def test_emd_with_dims_from_the_fastest_is_turned(tmp_path, counts, extension, chunks):
    """EMD 0.x as it is defined and as rosettasciio reads it, contiguous and with whole patterns in a chunk."""
    from rsciio.emd import file_reader

    units = ("A^-1", "A^-1", "nm", "nm")
    path = write_emd(tmp_path / f"scan{extension}", counts.T, first=1, units=units, chunks=chunks)
    file = open_vendor(path)
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((2.5, 2.5))
    assert any("detector first" in finding for finding in file.findings)
    np.testing.assert_array_equal(whole(file), file_reader(str(path))[0]["data"])
    np.testing.assert_array_equal(assembled(file.source, 1, 3, 0, 2), counts[1:3, :2])
    used, pixels = np.zeros((2, 3), bool), np.zeros(counts.shape[2:], bool)
    used[1, 2] = pixels[3, 1] = True
    for block in file.source.blocks((slice(1, 3), slice(1, 4)), used, pixels):
        np.testing.assert_array_equal(block.counts, counts[block.y, block.x, block.ky, block.kx])
        assert block.counts.flags.c_contiguous


@pytest.mark.parametrize("units", [("nm", "nm", "A^-1", "A^-1"), ("", "", "", "")])
def test_emd_with_dims_from_the_slowest_is_known_by_its_units_or_its_program(tmp_path, counts, units):
    """rosettasciio turns these round: py4DSTEM before 0.13 and others number the dims from 1 as they stand."""
    top = "" if units[0] else "4DSTEM_experiment/data/datacubes"
    path = write_emd(tmp_path / "scan.h5", counts, first=1, units=units, top=top)
    assert_reads(open_vendor(path), counts)


def test_emd_without_any_unit_is_taken_as_defined(tmp_path, counts):
    path = write_emd(tmp_path / "scan.emd", counts.T, first=1, units=("", "", "", ""))
    assert_reads(open_vendor(path), counts)


@pytest.mark.parametrize("extension", [".emd", ".de5"])
def test_emd_of_rosettasciio_reads_every_count(tmp_path, counts, extension):
    from rsciio.emd import file_writer

    path = tmp_path / f"scan{extension}"
    file_writer(str(path), signal_dict(counts, LENGTHS + ANGLES, {}))
    file = open_vendor(path)
    assert_reads(file, counts)
    assert file.scan_step == pytest.approx((0.3, 0.32))
    with pytest.raises(ScanShapeError, match="leave it out"):
        open_vendor(path, scan_shape=(4, 3))


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


# Links to other files


def write_linked(tmp_path, counts, *, kind):
    """A file whose counts lie in another one, by a link, a virtual or an external dataset."""
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("raw/counts", data=counts, chunks=(1, 4, 6, 5))
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        if kind == "link":
            file["entry/data"] = h5py.ExternalLink("data.h5", "/raw/counts")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(counts.shape, counts.dtype)
            layout[...] = h5py.VirtualSource("data.h5", "raw/counts", counts.shape)
            file.create_virtual_dataset("entry/data", layout)
        else:
            (tmp_path / "data.h5").write_bytes(counts.tobytes())
            file.create_dataset("entry/data", counts.shape, counts.dtype, external=[("data.h5", 0, counts.nbytes)])
        file["again"] = h5py.SoftLink("/entry/data")
    return tmp_path / "scan.nxs"


@pytest.mark.parametrize("kind", ["link", "virtual", "external"])
def test_counts_in_another_file_are_found_watched_and_missed(tmp_path, counts, kind):
    """HDF5 itself reads zeros where a file of a virtual dataset is missing."""
    path = write_linked(tmp_path, counts, kind=kind)
    file = open_vendor(path)
    assert_reads(file, counts)
    assert [part["name"] for part in file.identity["linked"]] == ["data.h5"]
    content = (tmp_path / "data.h5").read_bytes()
    (tmp_path / "data.h5").write_bytes(content + b"more")
    with pytest.raises(SourceError, match=r"data\.h5 has changed"):
        whole(file)
    (tmp_path / "data.h5").unlink()
    with pytest.raises(SourceError, match=r"links .*data\.h5, which is not beside it"):
        open_vendor(path)


# Velox


def test_velox_stack_reads_every_count(tmp_path, counts):
    from rsciio.emd import file_reader

    path = write_velox(tmp_path / "scan.emd", counts)
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(path)
    file = open_vendor(path, scan_shape=(3, 4))
    assert_reads(file, counts)
    assert file.acquisition == {"energy_eV": 200e3}
    # 0.01 1/angstrom at the wavelength of 200 keV.
    assert file.pixel_size == pytest.approx((0.25079, 0.25079), rel=1e-4)
    theirs = next(d["data"] for d in file_reader(str(path)) if d["data"].ndim == 3)
    np.testing.assert_array_equal(whole(file).reshape(12, 6, 5), theirs)
    assert_reads(open_vendor(path, scan_shape=(3, 3), flyback=1), counts[:, :3])


def test_velox_scan_shape_from_the_scan_size(tmp_path, counts):
    assert_reads(open_vendor(write_velox(tmp_path / "scan.emd", counts, scan_size=(3, 4))), counts)
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(write_velox(tmp_path / "scan.emd", counts, scan_size=(30, 40)))


def test_velox_images_are_no_scan(tmp_path, counts):
    with pytest.raises(CountsError, match="single images and spectra"):
        open_vendor(write_velox(tmp_path / "scan.emd", counts[:1, :1]))


# TopSpin


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "<f4"])
def test_topspin_equals_rosettasciio(tmp_path, nested, dtype):
    from rsciio.topspin import file_reader

    counts = random_counts((3, 4, 6, 5), dtype)
    path = write_app5(tmp_path / "scan.app5", counts, nested=nested)
    file = open_vendor(path)
    assert_reads(file, counts)
    np.testing.assert_array_equal(whole(file), file_reader(str(path), show_progressbar=False)[0]["data"])
    assert file.scan_step == pytest.approx((20.0, 20.0))
    assert file.pixel_size == pytest.approx((0.5, 0.25))


def test_topspin_file_that_lacks_patterns_is_refused(tmp_path, counts):
    path = write_app5(tmp_path / "scan.app5", counts, nested=False)
    with h5py.File(path, "a") as file:
        del file[f"{APP5_SCAN}/5"]
    with pytest.raises(SourceError, match="numbers its 11 patterns from 0 to 11"):
        open_vendor(path)


def test_topspin_scan_without_positions_needs_the_scan_shape(tmp_path, counts):
    path = write_app5(tmp_path / "scan.app5", counts, step=0.0)
    with pytest.raises(ScanShapeError, match="12 frames"):
        open_vendor(path)
    assert_reads(open_vendor(path, scan_shape=(3, 4)), counts)
