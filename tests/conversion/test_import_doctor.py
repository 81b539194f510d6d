"""What is found in a file before and while it is converted: repeats, NaN, room on the disk, changes, stacks, splits."""

from __future__ import annotations

import json
import os
import re
import shutil

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from binary_files import write_ser
from hdf5_files import write_master
from reading import assert_reads, random_counts
from small_stores import converted, poisson, raw_file, small_shards
from vendor_files import merlin_hdr, write_empad, write_mib

import tdm_dask as tdm
from tdm_dask.cli import main
from tdm_dask.conversion import job as conversion_job
from tdm_dask.conversion import sampling
from tdm_dask.conversion.sampling import sample
from tdm_dask.errors import DiskFullError, InputError, ScanShapeError, SourceError
from tdm_dask.reading.blocks import InMemory
from tdm_dask.reading.store import stored_findings
from tdm_dask.shards.codec import COMPRESSIONS
from tdm_dask.sources.formats.registry import open_vendor
from tdm_dask.sources.repeats import marked_pixels, pattern_marks, repeated


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments)])
        out = capsys.readouterr()
        return stop.value.code, out.out, out.err

    return call


# Repeated patterns


def marks_of(counts, kx=0):
    """Marks of patterns that are one part of the detector."""
    marked = counts.reshape(*counts.shape[:2], -1)[..., marked_pixels(counts[0, 0].size)]
    return pattern_marks(marked, counts.sum((2, 3)), 0, kx)


def repeats_in(path):
    return [finding for finding in stored_findings(path) if "repeated" in finding]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4", "f4", "f8", "bool"])
def test_repeated_patterns_are_named_with_what_they_repeat(tmp_path, dtype):
    counts = poisson((6, 7, 13, 17), "u1", mean=1).astype(dtype)
    counts[2, 3], counts[4, 0], counts[5, 6] = counts[2, 2], counts[3, 6], counts[0, 1]
    converted(tmp_path / "scan.zarr", counts)
    (sentence,) = repeats_in(tmp_path / "scan.zarr")
    assert sentence == (
        "3 pattern(s) hold the same counts as an earlier one: repeated, at (y, x) = (2, 3) as (2, 2), (4, 0) as "
        "(3, 6), (5, 6) as (0, 1)."
    )


def test_patterns_that_differ_in_one_count_are_not_repeated(tmp_path):
    """Their totals are equal, and so are the pixels that their marks are made of."""
    pattern = poisson((40, 40))
    counts = np.tile(pattern, (4, 5, 1, 1))
    for i, one in enumerate(counts.reshape(20, 1600)):
        one[1 + i], one[60 + i] = one[1 + i] + 1, one[60 + i] - 1 if one[60 + i] else 0
    counts[..., 39, 39] = pattern.sum() + 100 - counts.sum((2, 3)) + counts[..., 39, 39]
    assert len(np.unique(counts.sum((2, 3)))) == 1
    assert len(np.unique(counts.reshape(20, -1), axis=0)) == 20
    assert len(np.unique(marks_of(counts))) == 1
    converted(tmp_path / "scan.zarr", counts)
    assert repeats_in(tmp_path / "scan.zarr") == []


@pytest.mark.parametrize("mean", [1e-4, 1e-3, 1e-2, 1])
def test_sparse_patterns_are_said_to_be_repeated_only_where_they_are(tmp_path, mean):
    counts = poisson((20, 20, 12, 16), mean=mean)
    flat = counts.reshape(400, -1)
    filled = flat[flat.any(1)]
    really = len(filled) - len(np.unique(filled, axis=0))
    converted(tmp_path / "scan.zarr", counts)
    found = repeats_in(tmp_path / "scan.zarr")
    assert really or not found
    for sentence in found:
        assert int(re.search(r"(\d+) pattern", sentence)[1]) <= really


def test_blank_and_missing_patterns_are_not_repeated(tmp_path):
    counts = poisson((4, 5, 12, 16))
    counts[1] = 0
    path = tmp_path / "scan.raw"
    options = raw_file(path, counts)
    path.write_bytes(path.read_bytes()[: -7 * 12 * 16 * 2])
    converted(tmp_path / "scan.zarr", str(path), **options, allow_partial=True)
    assert repeats_in(tmp_path / "scan.zarr") == []
    assert any("5 pattern(s) hold no count: blank" in finding for finding in stored_findings(tmp_path / "scan.zarr"))


def test_a_stuck_detector_is_reported_without_reading_every_pattern():
    counts = np.tile(poisson((12, 16)), (30, 40, 1, 1))
    reads = []

    def read(y0, y1, x0, x1):
        reads.append((y0, x0))
        return counts[y0:y1, x0:x1]

    (sentence,) = repeated(counts.sum((2, 3)), marks_of(counts), read)
    assert sentence.startswith("At least 32 pattern(s) hold the same counts")
    assert "1199 look the same" in sentence
    assert len(reads) == 64


def test_marks_of_detector_tiles_tell_their_places():
    counts = np.zeros((1, 2, 4, 4), "u2")
    counts[0, 0, 0, 0] = 5
    both = np.stack([marks_of(counts), marks_of(counts, kx=4)])
    assert len(np.unique(both[:, 0, 0])) == 2
    assert not both[:, 0, 1].any()


def test_info_compares_consecutive_frames(tmp_path, run):
    counts = poisson((4, 5, 12, 16))
    counts[2, 3] = counts[2, 2]
    counts[0, 1] = counts[0, 0] = 0
    path = write_mib(tmp_path / "scan.mib", counts)
    found = json.loads(run("info", path, "--scan-shape", "4x5", "--json")[1])["findings"]
    same = [finding for finding in found if "same counts" in finding]
    assert same == [
        "Of 20 patterns that were looked at: 1 hold the same counts as the one before, (y, x) = (2, 2) and (2, 3)."
    ]
    assert any("2 pattern(s) hold no count: blank, at (y, x) = (0, 0), (0, 1)" in finding for finding in found)


# What a sample tells


def test_a_sample_reads_no_pattern_twice_and_keeps_to_the_scan():
    for shape in ((1, 1, 4, 4), (3, 5, 4, 4), (7, 33, 4, 4), (40, 1, 4, 4)):
        counts = poisson(shape)
        taken = sample(InMemory(counts))
        places = [(y, x + i) for y, x, part in taken.runs for i in range(len(part))]
        assert len(set(places)) == len(places) == taken.count
        for y, x, part in taken.runs:
            np.testing.assert_array_equal(part, counts[y, x : x + len(part)])


def test_info_says_hot_dead_and_saturated_pixels_before_a_conversion(tmp_path, run):
    counts = poisson((8, 16, 13, 13), mean=9)
    counts[..., 5, 7], counts[..., 1, 2], counts[..., 6, 6] = 0, 90, 4095
    path = write_mib(tmp_path / "scan.mib", counts, bits=12)
    found = " ".join(json.loads(run("info", path, "--scan-shape", "8x16", "--json")[1])["findings"])
    assert "dead, at (ky, kx) = (5, 7)" in found
    assert "hot, at (ky, kx) = (1, 2)" in found
    assert "maximum of 4095, where counts are lost: saturated, at (ky, kx) = (6, 6)" in found


def test_info_describes_a_file_of_which_a_part_is_damaged(tmp_path, run):
    counts = poisson((4, 5, 12, 16))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        data = file.create_dataset("data", data=counts, chunks=(1, 5, 12, 16), compression="gzip")
        place = data.id.get_chunk_info(2)
    content = bytearray((tmp_path / "scan.h5").read_bytes())
    content[place.byte_offset : place.byte_offset + 40] = b"\xff" * 40
    (tmp_path / "scan.h5").write_bytes(content)
    code, out, _ = run("info", tmp_path / "scan.h5")
    assert code == 0
    assert "A few patterns were to be looked at, but scan.h5 cannot be read" in out


# Missing calibration


def test_what_is_not_known_is_said_with_the_argument_that_gives_it(tmp_path):
    path = write_mib(tmp_path / "scan.mib", poisson((4, 5, 21, 21)))
    opened = tdm.open(path, scan_shape=(4, 5))
    missing = [finding for finding in opened.attrs["findings"] if "not known" in finding]
    assert [
        argument in sentence for sentence, argument in zip(missing, ("scan_step", "semi_angle", "energy"), strict=True)
    ]
    stored = tdm.convert(path, tmp_path / "scan.zarr", scan_shape=(4, 5), scan_step="0.3 Å", pixel_size="1 mrad")
    missing = [finding for finding in stored.attrs["findings"] if "not known" in finding]
    assert ["optic axis" in missing[0], "energy" in missing[1], len(missing)] == [True, True, 2]
    calibrated = tdm.calibrate(stored, centre=(10, 10), energy="200 keV")
    assert not any("not known" in finding for finding in calibrated.attrs["findings"])
    assert "There is no .hdr file beside it." in calibrated.attrs["findings"]


# Room on the disk


def bytes_in(folder):
    return sum(file.stat().st_size for file in folder.rglob("c/**/*") if file.is_file())


@pytest.mark.parametrize("mean", [0.05, 2.0, 500.0])
def test_info_foretells_the_size_of_the_store(tmp_path, run, mean):
    counts = poisson((24, 32, 64, 64), mean=mean)
    np.save(tmp_path / "scan.npy", counts)
    told = json.loads(run("info", tmp_path / "scan.npy", "--json")[1])
    tdm.convert(tmp_path / "scan.npy", tmp_path / "scan.zarr")
    assert told["store_bytes"] == pytest.approx(bytes_in(tmp_path / "scan.zarr" / "counts"), rel=0.1)
    assert 0 < told["free_bytes"] <= shutil.disk_usage(tmp_path).total
    assert "A store takes about" in run("info", tmp_path / "scan.npy")[1]


@pytest.fixture
def little_room(monkeypatch):
    def leave(nbytes):
        usage = shutil.disk_usage("/")._replace(free=nbytes)
        monkeypatch.setattr(sampling.shutil, "disk_usage", lambda path: usage)

    return leave


def test_counts_that_cannot_fit_are_refused_before_anything_is_written(tmp_path, little_room):
    counts = tdm.label_counts(poisson((8, 8, 32, 32)))
    little_room(counts.nbytes - 1)
    with pytest.raises(DiskFullError, match=r"0\.000131 GB of counts are to be written.*make room"):
        tdm.convert(counts, tmp_path / "scan.zarr", compression=None)
    assert not list((tmp_path / "scan.zarr").rglob("counts/c/**/*"))
    little_room(counts.nbytes)
    np.testing.assert_array_equal(tdm.convert(counts, tmp_path / "scan.zarr", compression=None), counts)


def test_compressed_counts_that_will_hardly_fit_are_warned_of(tmp_path, little_room, recwarn):
    counts = tdm.label_counts(poisson((8, 8, 32, 32)))
    little_room(counts.nbytes // 2)  # they take a fourth or so
    tdm.convert(counts, tmp_path / "fits.zarr")
    assert not [w for w in recwarn if "are free" in str(w.message)]
    little_room(1000)
    with pytest.warns(UserWarning, match="take about .* GB compressed, so make room"):
        tdm.convert(counts, tmp_path / "tight.zarr")
    with pytest.warns(UserWarning, match="compressed they may not fit"):
        tdm.convert((counts + 1).chunk({"y": 4}), tmp_path / "lazy.zarr")


def test_a_conversion_that_goes_on_needs_room_for_the_rest_alone(tmp_path, little_room):
    counts = tdm.label_counts(poisson((8, 8, 32, 32)))
    with small_shards(inner=(2, 4, 32, 32), shard=(4, 8)):
        tdm.convert(counts, tmp_path / "scan.zarr", compression=None)
        (tmp_path / "scan.zarr/counts/c/0/0/0/0").unlink()
        little_room(0)
        tdm.convert(counts, tmp_path / "scan.zarr", compression=None)  # complete: nothing to write
    little_room(10**9)


def test_the_size_of_a_sample_is_that_of_what_is_stored():
    counts = poisson((4, 16, 64, 64))
    ratio = sample(InMemory(counts)).compressed(COMPRESSIONS["lz4"])
    assert ratio == pytest.approx(sum(map(len, COMPRESSIONS["lz4"].encode(counts))) / counts.nbytes, rel=0.1)
    assert sample(InMemory(counts)).compressed(COMPRESSIONS[None]) == pytest.approx(1, rel=1e-3)


# NaN


def empad_counts():
    return random_counts((3, 5, 128, 128), "f4")


def test_nan_in_a_frame_that_was_not_sampled_makes_its_pixel_not_valid(tmp_path):
    counts = empad_counts()
    counts[0, 3, 5, 7], counts[2, 1, 100, 3] = np.nan, np.inf
    header = write_empad(tmp_path / "scan.xml", counts)
    assert open_vendor(header).valid_pixels is None
    stored = tdm.convert(header, tmp_path / "scan.zarr")
    np.testing.assert_array_equal(np.argwhere(~stored.valid_pixels.values), [[5, 7], [100, 3]])
    found = stored.attrs["findings"]
    assert "2 pixel(s) hold NaN or infinity in 2 pattern(s), at (ky, kx) = (5, 7), (100, 3)." in found
    assert any("valid_pixels leaves it out of every statistic" in finding for finding in found)
    statistics = tdm.pixel_statistics(stored).compute()
    kept = np.where(np.isfinite(counts), counts, 0).astype(float).mean((0, 1))
    np.testing.assert_allclose(
        np.delete(statistics["mean"].values.ravel(), [5 * 128 + 7, 100 * 128 + 3]),
        np.delete(kept.ravel(), [5 * 128 + 7, 100 * 128 + 3]),
        rtol=1e-6,
    )
    assert tdm.verify(tmp_path / "scan.zarr").shards == 1


def test_a_frame_of_nan_is_a_pattern_that_is_not_valid(tmp_path):
    counts = empad_counts()
    counts[1, 4] = np.nan
    stored = tdm.convert(write_empad(tmp_path / "scan.xml", counts), tmp_path / "scan.zarr")
    assert "valid_pixels" not in stored.coords
    np.testing.assert_array_equal(np.argwhere(~stored.valid_patterns.values), [[1, 4]])
    assert "1 pattern(s) hold NaN or infinity, at (y, x) = (1, 4)." in stored.attrs["findings"]
    mean = tdm.pixel_statistics(stored)["mean"].values
    rest = np.delete(counts.reshape(15, 128, 128), 9, axis=0)
    np.testing.assert_allclose(mean, rest.astype(float).mean(0), rtol=1e-6)


def test_nan_everywhere_is_said_and_nothing_is_marked(tmp_path):
    counts = empad_counts()
    counts[:, 1:4] = np.nan
    counts[:, :, :, 1:100] = np.nan
    header = write_empad(tmp_path / "scan.xml", counts)
    stored = tdm.convert(header, tmp_path / "scan.zarr")
    assert any("hold NaN or infinity" in finding for finding in stored.attrs["findings"])


# Files that change


def touched(path):
    content = path.read_bytes()
    os.utime(path, (1, 1))
    return content


def dectris(folder):
    counts = random_counts((4, 4, 12, 16), "u2") // 2
    path = write_master(folder / "scan_master.h5", np.split(counts.reshape(16, 12, 16), 2))
    return path, {"scan_shape": (4, 4)}, folder / "scan_master_data_000002.h5"


def merlin(folder):
    path = write_mib(folder / "scan.mib", random_counts((4, 4, 12, 16), "u2") // 20, hdr=merlin_hdr(16, 4, 4, 4))
    return path, {}, folder / "scan.hdr"


def empad(folder):
    path = write_empad(folder / "scan.xml", empad_counts())
    return path, {}, path


def tia(folder):
    path = write_ser(folder / "scan_1.ser", random_counts((4, 4, 12, 16), "u2"))
    (folder / "scan.emi").write_bytes(b"<Label>High tension</Label>\n<Value>200</Value>")
    return path, {}, folder / "scan.emi"


def nexus(folder):
    with h5py.File(folder / "data.h5", "w") as file:
        file["counts"] = random_counts((4, 4, 12, 16), "u2")
    with h5py.File(folder / "scan.nxs", "w") as file:
        file["entry/data"] = h5py.ExternalLink("data.h5", "/counts")
    return folder / "scan.nxs", {}, folder / "data.h5"


def split_merlin(folder):
    counts = random_counts((16, 12, 16), "u2") // 20
    write_mib(folder / "scan1.mib", counts[:8])
    write_mib(folder / "scan2.mib", counts[8:], first_number=9)
    (folder / "scan.hdr").write_text(
        write_mib(folder / "x.mib", counts, hdr=merlin_hdr(16, 4, 4, 4)).with_suffix(".hdr").read_text()
    )
    return folder / "scan1.mib", {}, folder / "scan2.mib"


KINDS = [dectris, merlin, empad, tia, nexus, split_merlin]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [1, None])
def test_every_file_of_a_scan_is_watched_to_the_end(tmp_path, monkeypatch, kind, after):
    """Of a set of files any one that is touched is named, even after the last read."""
    path, options, other = kind(tmp_path)
    assert other.name in json.dumps(open_vendor(path, **options).identity) or other == path
    done = []
    put = conversion_job.put

    def watch(store, key, *pieces):
        put(store, key, *pieces)
        if "/c/" in key:
            done.append(key)
            if len(done) == (after or 4):
                touched(other)

    monkeypatch.setattr(conversion_job, "put", watch)
    shard = (2, 2) if path.suffix != ".xml" else (2, 4)
    with (
        dask.config.set(scheduler="synchronous"),
        small_shards(inner=(2, 2, 32, 32), shard=shard),
        pytest.raises(SourceError, match=rf"{other.name} (has )?changed"),
    ):
        tdm.convert(path, tmp_path / "scan.zarr", **options)
    assert len(done) == (after or 4)


# Counters


@pytest.mark.parametrize("change", [lambda counts: counts, lambda counts: tdm.crop(counts, x=slice(1, None))])
def test_opened_counts_keep_the_depth_of_their_counters(tmp_path, change):
    counts = poisson((4, 5, 12, 16))
    counts[1, 2, 3, 4] = 4095
    path = write_mib(tmp_path / "scan.mib", counts, bits=12)
    tdm.convert(path, tmp_path / "a.zarr", scan_shape=(4, 5))
    tdm.convert(change(tdm.open(path, scan_shape=(4, 5))), tmp_path / "b.zarr")
    expected = (
        "1 pixel(s) reached the counters' maximum of 4095, where counts are lost: saturated, at (ky, kx) = (3, 4)."
    )
    for store in ("a.zarr", "b.zarr"):
        assert expected in stored_findings(tmp_path / store)


def test_all_findings_of_an_opened_file_are_those_of_the_file(tmp_path):
    path = write_mib(tmp_path / "scan.mib", poisson((4, 5, 12, 16)), bits=12)
    tdm.convert(path, tmp_path / "a.zarr", scan_shape=(4, 5))
    tdm.convert(tdm.open(path, scan_shape=(4, 5)), tmp_path / "b.zarr")
    assert stored_findings(tmp_path / "a.zarr") == stored_findings(tmp_path / "b.zarr")


def test_findings_of_a_store_are_not_those_of_the_next(tmp_path):
    """They name places, which a crop moves."""
    counts = poisson((4, 5, 12, 16))
    counts[1, 2] = 0
    path = write_mib(tmp_path / "scan.mib", counts, bits=12)
    stored = tdm.convert(path, tmp_path / "a.zarr", scan_shape=(4, 5))
    tdm.convert(tdm.crop(stored, y=slice(1, None)), tmp_path / "b.zarr")
    blank = "1 pattern(s) hold no count: blank, at (y, x) = {}."
    assert blank.format((1, 2)) in stored.attrs["findings"]
    assert stored_findings(tmp_path / "b.zarr") == [blank.format((0, 2))]


def test_dectris_says_the_depth_of_its_counters(tmp_path):
    counts = random_counts((2, 4, 5, 3), "u4") % 1000
    counts[0, 1, 2, 1] = 65535
    path = write_master(tmp_path / "scan_master.h5", [counts.reshape(8, 5, 3)], bit_depth=16)
    found = tdm.convert(path, tmp_path / "scan.zarr", scan_shape=(2, 4)).attrs["findings"]
    assert "16-bit counters: counts up to 65535, which uint16 holds without loss, in uint32 here." in found
    assert any("maximum of 65535" in finding and "(2, 1)" in finding for finding in found)


# Stacks


@pytest.fixture
def series(tmp_path):
    counts = random_counts((11, 2, 3, 6, 5), "u2")
    np.save(tmp_path / "series.npy", counts)
    return tmp_path / "series.npy", counts


def test_every_scan_of_a_stack_goes_into_a_store_of_its_own(tmp_path, series):
    path, counts = series
    assert open_vendor(path, frame=3).scans == 11
    written = tdm.convert_stack(path, tmp_path / "out.zarr", scan_step="0.3 Å")
    assert sorted(p.name for p in tmp_path.glob("out*")) == [f"out-{i:02d}.zarr" for i in range(11)]
    for i, scan in enumerate(written):
        np.testing.assert_array_equal(scan, counts[i])
        xr.testing.assert_identical(scan, tdm.open(tmp_path / f"out-{i:02d}.zarr"))
    with pytest.raises(InputError, match="frame=2 picks one scan"):
        tdm.convert_stack(path, tmp_path / "out.zarr", frame=2)


def test_the_command_line_describes_and_converts_stacks(tmp_path, series, run):
    path, counts = series
    code, out, _ = run("info", path)
    assert code == 0
    assert "The file holds 11 scans, of which this is scan 0" in out
    assert f"tdm convert {path} series.zarr --frame all" in out
    assert "tdm calibrate series-00.zarr" in out
    assert run("info", path, "--frame", "all")[0] == 0
    assert "The file holds" not in run("info", path, "--frame", "10")[1]
    assert run("info", path, "--frame", "11")[0] == 2
    assert run("info", path, "--frame", "some")[0] == 2
    code, out, _ = run("convert", path, "out.zarr", "--frame", "all", "--json")
    assert code == 0
    stores = json.loads(out)["stores"]
    assert stores[10] == "out-10.zarr"
    np.testing.assert_array_equal(tdm.open(stores[10]), counts[10])


# Merlin files that were split


@pytest.fixture
def acquisition(tmp_path):
    """Counts (4, 5, ky, kx), and what writes frames of them to a file of a set."""
    counts = random_counts((4, 5, 12, 16), "u2") // 20
    frames = counts.reshape(20, 12, 16)

    def write(name, start, stop, **options):
        return write_mib(tmp_path / name, frames[start:stop], first_number=start + 1, **options)

    return counts, write


def hdr_of(tmp_path, name, frames=20, ny=4):
    donor = write_mib(tmp_path / "donor.mib", random_counts((1, 12, 16), "u2"), hdr=merlin_hdr(frames, 5, ny, 5))
    donor.with_suffix(".hdr").rename(tmp_path / name)
    donor.unlink()


@pytest.mark.parametrize(
    "names",
    [
        ("scan.mib", "scan_1.mib", "scan_2.mib"),
        ("scan1.mib", "scan2.mib", "scan3.mib"),
        ("scan_08.mib", "scan_09.mib", "scan_10.mib"),
        ("scan.mib", "scan9.mib", "scan10.mib"),
    ],
)
@pytest.mark.parametrize("opened", [0, 1, "hdr"])
def test_split_merlin_files_open_as_one_scan(tmp_path, acquisition, names, opened):
    counts, write = acquisition
    paths = [write(name, *ends) for name, ends in zip(names, ((0, 7), (7, 14), (14, 20)), strict=True)]
    hdr_of(tmp_path, "scan.hdr")
    file = open_vendor(tmp_path / "scan.hdr" if opened == "hdr" else paths[opened])
    assert_reads(file, counts)
    assert (
        f"The acquisition is in 3 files, from {names[0]} to {names[2]}; the numbers of their frames run on."
        in file.findings
    )
    assert [part["name"] for part in file.identity["linked"]] == ["scan.hdr", *names[1:]]
    stored = tdm.convert(paths[0], tmp_path / "scan.zarr")
    np.testing.assert_array_equal(stored, counts)


def test_a_set_of_one_frame_to_a_file_opens(tmp_path, acquisition):
    counts, write = acquisition
    for i in range(20):
        write(f"frame_{i:05d}.mib", i, i + 1)
    assert_reads(open_vendor(tmp_path / "frame_00011.mib", scan_shape=(4, 5)), counts)


def test_split_merlin_files_without_hdr_are_told_by_their_numbers(tmp_path, acquisition):
    counts, write = acquisition
    write("scan1.mib", 0, 8)
    write("scan2.mib", 8, 20)
    assert_reads(open_vendor(tmp_path / "scan1.mib", scan_shape=(4, 5)), counts)
    assert_reads(open_vendor(tmp_path / "scan2.mib", scan_shape=(4, 5)), counts)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (0, "begins with frame 8 of 20, so a file before it is missing"),
        (1, r"scan1\.mib ends with frame 7 and scan3\.mib begins with frame 15, so a file between them is missing"),
        (2, r"2 files, from scan1\.mib to scan2\.mib, hold 14 of the 20 frames .* so the last file is missing"),
    ],
)
def test_a_missing_part_of_a_set_is_named(tmp_path, acquisition, missing, message):
    _, write = acquisition
    paths = [write(f"scan{i + 1}.mib", *ends) for i, ends in enumerate(((0, 7), (7, 14), (14, 20)))]
    hdr_of(tmp_path, "scan.hdr")
    paths.pop(missing).unlink()
    for path in (*paths, tmp_path / "scan.hdr"):
        with pytest.raises(ScanShapeError, match=message):
            open_vendor(path)
    if missing == 2:
        file = open_vendor(paths[0], allow_partial=True)
        assert np.count_nonzero(file.valid_patterns) == 14


def test_other_acquisitions_with_numbered_names_are_not_taken_in(tmp_path, acquisition):
    counts, write = acquisition
    path = write("scan.mib", 0, 20, hdr=merlin_hdr(20, 5, 4, 5))
    write("scan_1.mib", 0, 20)
    write("scan_2.mib", 10, 20)
    write("scan_3.mib", 0, 20, hdr=merlin_hdr(20, 5, 4, 5))
    assert_reads(open_vendor(path), counts)
    assert_reads(open_vendor(tmp_path / "scan_3.mib"), counts)
    assert open_vendor(path).findings == open_vendor(path).findings
    assert not any("acquisition is in" in finding for finding in open_vendor(path).findings)


def test_a_part_that_was_cut_short_is_named(tmp_path, acquisition):
    _, write = acquisition
    first = write("scan1.mib", 0, 10)
    write("scan2.mib", 10, 20)
    first.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(ScanShapeError, match=r"scan1\.mib has .* the file is truncated"):
        open_vendor(first, scan_shape=(4, 5))
    file = open_vendor(first, scan_shape=(4, 5), allow_partial=True)
    assert np.count_nonzero(file.valid_patterns) == 9


def test_a_header_without_its_counts_is_refused(tmp_path):
    hdr_of(tmp_path, "scan.hdr")
    with pytest.raises(SourceError, match=r"No \.mib file of scan\.hdr is beside it"):
        open_vendor(tmp_path / "scan.hdr")
