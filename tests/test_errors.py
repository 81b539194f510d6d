"""Wrong input never becomes a wrong number: each case has its exception, of one sentence."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import pickle
import signal
import traceback
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from oracle import assert_close, correlation, image, statistics
from small_stores import converted, poisson, raw_file, small_shards

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.axes import axis_coordinate

SHAPE = (8, 12, 10, 11)
CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.TdmError)]


@contextlib.contextmanager
def refused(kind, match):
    """The block raises `kind` with one sentence, which survives pickling."""
    with pytest.raises(kind, match=match) as caught:
        yield
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), sentence)


def axes(shape=SHAPE, scan_step=0.4, pixel_size=2.0):
    steps = (scan_step, scan_step, pixel_size, pixel_size)
    origins = (0.0, 0.0, -9.0, -9.0)
    units = ("angstrom", "angstrom", "mrad", "mrad")
    cases = zip(("y", "x", "ky", "kx"), shape, steps, origins, units, strict=True)
    return {dim: axis_coordinate(dim, *rest) for dim, *rest in cases}


def scan(dtype="uint16"):
    return tdm.label_counts(poisson(SHAPE, dtype), axes())


@pytest.fixture(params=["in memory", "lazy"])
def counts(request):
    return scan() if request.param == "in memory" else scan().chunk(y=3)


def on_scan(values=None, **changes):
    """A template of the scan, with other coordinates where asked."""
    values = np.random.default_rng(2).normal(size=SHAPE[:2]) if values is None else values
    coords = {d: axes()[d] for d in ("y", "x")} | changes
    return xr.DataArray(values, dims=("y", "x"), coords=coords)


def on_detector(values=None, **changes):
    values = np.random.default_rng(3).normal(size=SHAPE[2:]) if values is None else values
    coords = {d: axes()[d] for d in ("ky", "kx")} | changes
    return xr.DataArray(values, dims=("ky", "kx"), coords=coords)


def moved(dim, by):
    """The coordinate of a dim, moved by a fraction of its step."""
    variable = axes()[dim].copy()
    return variable.copy(data=variable.values + by * (variable.values[1] - variable.values[0]))


# Files and stores


def test_frames_that_do_not_fill_the_scan(tmp_path):
    options = raw_file(tmp_path / "scan.raw", poisson(SHAPE))
    for shape in ((8, 13), (8, 11), (1, 1)):
        for call in (tdm.open, lambda path, **o: tdm.convert(path, tmp_path / "scan.zarr", **o)):
            with refused(errors.ScanShapeError, r"scan\.raw"):
                call(tmp_path / "scan.raw", **{**options, "scan_shape": shape})
    np.save(tmp_path / "frames.npy", poisson((95, 10, 11)))
    for shape, message in (
        (None, "95 frames"),
        ((8, 12), "more than the file has"),
        ((8, 11), "fewer than the file has"),
    ):
        with refused(errors.ScanShapeError, message):
            tdm.open(tmp_path / "frames.npy", scan_shape=shape)
    assert not (tmp_path / "scan.zarr").exists()


def test_a_raw_file_cut_short_after_it_was_opened(tmp_path):
    path = tmp_path / "scan.raw"
    counts = tdm.open(path, **raw_file(path, poisson(SHAPE)))
    os.truncate(path, path.stat().st_size - 1)
    with refused(errors.SourceError, "became shorter"):
        counts.sum().compute()


@pytest.fixture
def damaged(tmp_path):
    """A store with a flipped byte in the shard of probe positions y 4-7, x 6-11."""
    converted(tmp_path / "scan.zarr", scan())
    shard = tmp_path / "scan.zarr" / "counts" / "c" / "1" / "1" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[50] ^= 1
    shard.write_bytes(data)
    return tmp_path / "scan.zarr"


def test_a_flipped_byte_is_found_by_whatever_reads_it(damaged):
    counts = tdm.open(damaged)
    places = r"counts/c/1/1/0/0 \(probe positions y 4-7, x 6-11\).*checksum is wrong"
    lazy = {
        "values": counts,
        "statistics": tdm.pixel_statistics(counts)["std"],
        "correlation": tdm.correlate(counts, on_scan())["rho"],
        "image": tdm.apply_mask(counts, on_detector()),
        "chain": tdm.apply_mask(counts, tdm.derive_mask(counts, on_scan()), normalisation="standardised"),
        "expression": (counts * 2).sum(),
    }
    for reads in lazy.values():
        with refused(errors.CorruptStoreError, places):
            reads.compute()
    with refused(errors.CorruptStoreError, places):
        converted(damaged.parent / "other.zarr", counts)
    with refused(errors.CorruptStoreError, places):
        tdm.verify(damaged)
    # What does not touch it is right.
    untouched = tdm.apply_mask(tdm.crop(counts, y=slice(0, 4)), on_detector())
    assert_close(untouched, image(poisson(SHAPE)[:4], on_detector().values[None])[0])


def test_an_unfinished_store(tmp_path):
    class Stop(Exception):
        pass

    def fails(block):
        raise Stop

    counts = scan().chunk(y=4)
    with pytest.raises(Stop):
        converted(
            tmp_path / "scan.zarr",
            counts.copy(data=counts.data.map_blocks(fails, dtype=counts.dtype, meta=counts.data._meta)),
        )
    for call in (tdm.open, tdm.verify):
        with refused(errors.IncompleteStoreError, "run the same tdm convert again"):
            call(tmp_path / "scan.zarr")


# Coordinates


@pytest.mark.parametrize("dim", ["y", "x"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_template_of_other_coordinates(counts, dim, sign):
    with refused(errors.TemplateError, f"The {dim} coordinates of the counts and the template differ"):
        tdm.correlate(counts, on_scan(**{dim: moved(dim, sign * 1.1e-6)}))
    near = tdm.correlate(counts, on_scan(**{dim: moved(dim, sign * 0.9e-6)})).compute()
    assert_close(near["rho"], correlation(poisson(SHAPE), on_scan().values[None])[0])
    assert near["rho"].shape == SHAPE[2:]


@pytest.mark.parametrize("dim", ["ky", "kx"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_mask_of_other_coordinates(counts, dim, sign):
    with refused(errors.MaskError, f"The {dim} coordinates of the counts and the mask differ"):
        tdm.apply_mask(counts, on_detector(**{dim: moved(dim, sign * 1.1e-6)}))
    near = tdm.apply_mask(counts, on_detector(**{dim: moved(dim, sign * 0.9e-6)})).compute()
    assert_close(near, image(poisson(SHAPE), on_detector().values[None])[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_regions_of_other_coordinates(counts, sign):
    whole_scan, whole_detector = np.ones(SHAPE[:2], bool), np.ones(SHAPE[2:], bool)
    for by, outcome in ((1.1, refused(errors.RegionError, "differ by up to")), (0.9, contextlib.nullcontext())):
        with outcome:
            tdm.pixel_statistics(counts, scan_region=on_scan(whole_scan, x=moved("x", sign * by * 1e-6)))
    for values in (whole_detector, whole_detector.astype(float)):
        for by, outcome in ((1.1, refused(errors.RegionError, "differ by up to")), (0.9, contextlib.nullcontext())):
            with outcome:
                region = on_detector(values, ky=moved("ky", sign * by * 1e-6))
                tdm.correlate(counts, on_scan(), detector_region=region)


def test_a_mask_for_another_detector(counts):
    with refused(errors.MaskError, "10 elements along ky, the mask 9"):
        tdm.apply_mask(counts, on_detector()[:9])
    pixels = {d: axis_coordinate(d, n) for d, n in zip(("ky", "kx"), SHAPE[2:], strict=True)}
    with refused(errors.MaskError, 'ky axis of the counts is in "mrad", that of the mask in "px"'):
        tdm.apply_mask(counts, on_detector(**pixels))
    with refused(errors.MaskError, "expected"):
        tdm.apply_mask(counts, on_scan())
    with refused(errors.MaskError, "ndarray"):
        tdm.apply_mask(counts, np.ones(SHAPE[2:]))
    with refused(errors.MaskError, "no mean and std"):
        tdm.apply_mask(counts, on_detector(), normalisation="standardised")
    with refused(errors.MaskError, "calibrate both"):
        tdm.transfer_mask(on_detector(**pixels), counts)


def test_a_template_of_another_scan(counts):
    with refused(errors.TemplateError, "8 elements along y, the template 7"):
        tdm.correlate(counts, on_scan()[:7])
    with refused(errors.TemplateError, "dims"):
        tdm.correlate(counts, on_detector())


# Templates and masks that have no meaning


@pytest.mark.parametrize("level", [0.0, 1.0, 0.1, 1e300, -7.3])
def test_a_constant_template(counts, level):
    with refused(errors.TemplateError, "constant over the 96 probe positions"):
        tdm.correlate(counts, on_scan(np.full(SHAPE[:2], level)))
    # Constant where it is used, though not everywhere.
    template = np.full(SHAPE[:2], level)
    template[7, 11] += 1 + abs(level)
    with refused(errors.TemplateError, "constant over the 48 probe positions"):
        tdm.derive_mask(counts, on_scan(template), scan_region=(slice(0, 4), slice(None)))


def test_a_lazy_constant_template_is_found_when_it_is_computed(counts):
    lazy = on_scan(da.ones(SHAPE[:2], chunks=4))
    with refused(errors.TemplateError, "constant"):
        tdm.correlate(counts, lazy)["rho"].compute()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_template_or_mask_that_is_not_finite(counts, bad):
    template, mask = on_scan(), on_detector()
    template[3, 3] = mask[3, 3] = bad
    with refused(errors.TemplateError, "NaN or infinity at 1 of"):
        tdm.correlate(counts, template)
    with refused(errors.MaskError, "NaN or infinity at 1 weights"):
        tdm.apply_mask(counts, mask)
    with refused(errors.MaskError, "NaN or infinity"):
        tdm.apply_mask(counts, mask.chunk()).compute()
    with refused(errors.RegionError, "not finite"):
        tdm.correlate(counts, on_scan(), detector_region=mask)
    # A template may be undefined where it is not used.
    found = tdm.correlate(counts, template, scan_region={"y": slice(4, 8)})["rho"]
    used = np.zeros(SHAPE[:2], bool)
    used[4:] = True
    assert_close(found, correlation(poisson(SHAPE), template.values[None], used)[0])


def test_sites_and_widths_that_make_no_template(counts):
    with refused(errors.SiteError, "None of the 2 sites"):
        tdm.gaussian_template(counts, [(50.0, 1.0), (-20.0, 1.0)], sigma=0.35)
    with refused(errors.SiteError, '"O"'):
        tdm.gaussian_template(counts, {"Li": [(1.0, 1.0)], "O": [(30.0, 30.0)]}, sigma=0.35)
    with refused(errors.SiteError, r"1 of 1 sites .* are not finite"):
        tdm.binary_template(counts, [(np.nan, 1.0)], radius=0.5)
    for width in (-0.3, 0, np.nan, "-30 pm", "0.3 mrad", "wide"):
        with refused(errors.UnitError, "sigma is"):
            tdm.gaussian_template(counts, [(1.0, 1.0)], sigma=width)
        with refused(errors.UnitError, "radius is"):
            tdm.binary_template(counts, [(1.0, 1.0)], radius=width)
    with refused(errors.CoordinateError, "calibrate with scan_step first"):
        tdm.gaussian_template(tdm.label_counts(poisson(SHAPE)), [(1.0, 1.0)], sigma=0.35)


def test_regions_that_hold_nothing(counts):
    for region in ((slice(3, 3), slice(None)), np.zeros(SHAPE[:2], bool), {"y": slice(8, 9)}):
        with refused(errors.RegionError, "scan_region is empty"):
            tdm.pixel_statistics(counts, scan_region=region)
    for region in (np.zeros(SHAPE[2:], bool), np.zeros(SHAPE[2:])):
        with refused(errors.RegionError, "detector_region"):
            tdm.correlate(counts, on_scan(), detector_region=region)
    with refused(errors.RegionError, "negative"):
        tdm.correlate(counts, on_scan(), detector_region=np.full(SHAPE[2:], -1.0))
    with refused(errors.RegionError, r"shape \(12, 8\)"):
        tdm.pixel_statistics(counts, scan_region=np.ones((12, 8), bool))


# NaN among the counts


@pytest.fixture(params=["in memory", "dask", "store"])
def with_nan(request, tmp_path):
    """Float counts, NaN at detector pixel (4, 5) of one pattern and all over pattern (6, 7)."""
    counts = scan("float32")
    counts.values[2, 3, 4, 5] = np.nan
    counts.values[6, 7] = np.inf
    if request.param == "store":
        return converted(tmp_path / "scan.zarr", counts)
    return counts if request.param == "in memory" else counts.chunk(y=3, ky=4)


def test_nan_that_is_used_is_an_error(with_nan):
    with refused(errors.CountsError, "hold NaN or infinity"):
        tdm.pixel_statistics(with_nan)["mean"].compute()
    with refused(errors.CountsError, "1 detector pixels"):
        tdm.pixel_statistics(with_nan, scan_region={"y": slice(0, 5)}).compute()
    with refused(errors.CountsError, "NaN or infinity"):
        tdm.correlate(with_nan, on_scan())["rho"].compute()
    with refused(errors.CountsError, "NaN or infinity"):
        tdm.apply_mask(with_nan, on_detector()).compute()


def test_nan_that_is_left_out_changes_nothing(with_nan):
    dense = poisson(SHAPE, "float32").astype(np.float64)
    pixels, patterns = np.ones(SHAPE[2:], bool), np.ones(SHAPE[:2], bool)
    pixels[4, 5] = patterns[6, 7] = False
    flagged = with_nan.assign_coords(valid_pixels=(("ky", "kx"), pixels), valid_patterns=(("y", "x"), patterns))
    mean, std = statistics(dense, patterns)
    rho = correlation(dense, on_scan().values[None], patterns, pixels)[0]
    for counts, regions in (
        (flagged, {}),
        (with_nan, {"scan_region": patterns, "detector_region": pixels}),
        (with_nan.assign_coords(valid_patterns=(("y", "x"), patterns)), {"detector_region": pixels}),
    ):
        found = tdm.correlate(counts, on_scan(), **regions).compute()
        assert_close(found["rho"], rho)
        assert_close(found["mean"], np.where(pixels, mean, 0))
        assert_close(found["std"], np.where(pixels, std, 0))
    made = tdm.apply_mask(flagged, on_detector()).compute().values
    expected = image(dense, np.where(pixels, on_detector(), 0)[None])[0]
    assert np.isnan(made[6, 7])
    assert_close(made[patterns], expected[patterns])
    # A mask that is zero at the pixel, over a scan without the pattern.
    weights = on_detector()
    weights[4, 5] = 0
    assert_close(tdm.apply_mask(tdm.crop(with_nan, y=slice(0, 6)), weights), expected[:6])


# Lost workers


def die(block):
    os.kill(os.getpid(), signal.SIGKILL)
    return block


def dying(counts):
    """Counts whose computation kills the worker that does it."""
    return counts.copy(data=counts.data.map_blocks(die, dtype=counts.dtype, meta=counts.data._meta))


@pytest.mark.long
def test_a_worker_that_is_lost_again_and_again(tmp_path, monkeypatch):
    from distributed import KilledWorker

    from tdm_dask.cluster.schedulers import scheduler

    monkeypatch.setattr("tdm_dask.cluster.schedulers.ALLOWED_FAILURES", 0)
    lazy = scan().chunk(y=4)
    path = tmp_path / "scan.zarr"
    with (
        refused(errors.WorkerLostError, "Workers were lost"),
        scheduler(workers=1, announce=False),
    ):
        # What a library user meets; the command line's scheduler makes one sentence of the second.
        with pytest.raises(KilledWorker):
            tdm.pixel_statistics(dying(lazy))["mean"].compute()
        assert float(tdm.pixel_statistics(lazy)["mean"].sum().compute()) > 0
        converted(path, dying(lazy))
    with refused(errors.IncompleteStoreError, "did not finish"):
        tdm.open(path)


# The exceptions themselves


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_an_exception_survives_pickling_with_its_sentence(kind):
    again = pickle.loads(pickle.dumps(kind("Found this; expected that.")))
    assert type(again) is kind
    assert str(again) == "Found this; expected that."
    assert again.args == ("Found this; expected that.",)
    if kind is not errors.TdmError:
        assert issubclass(kind, ValueError | OSError)


@pytest.mark.long
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_an_exception_comes_back_from_a_task_as_it_was(scheduler, damaged):
    with dask.config.set(scheduler=scheduler, num_workers=2), refused(errors.CorruptStoreError, "checksum is wrong"):
        tdm.pixel_statistics(tdm.open(damaged))["mean"].compute()


def sentences():
    """Every message in the package that is written out where it is raised, as its pieces of text."""
    names = {c.__name__ for c in CLASSES}
    for file in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                (message,) = node.args
                pieces = message.values if isinstance(message, ast.JoinedStr) else [message]
                texts = [p.value for p in pieces if isinstance(p, ast.Constant)]
                if texts and isinstance(pieces[-1], ast.Constant):
                    yield f"{file.name}:{node.lineno}", texts


@pytest.mark.long
def test_every_message_is_one_sentence():
    found = dict(sentences())
    assert len(found) > 50
    for place, texts in found.items():
        assert texts[-1].rstrip('"').endswith((".", "?")), place
        assert not any("\n" in text or ". " in text.replace("e.g. ", "").replace("=...", "") for text in texts), place


def test_no_exception_shows_another_below_it_that_only_repeats_it(tmp_path):
    with small_shards(), pytest.raises(errors.SourceError) as caught:
        tdm.convert(tmp_path / "absent.raw", tmp_path / "scan.zarr")
    assert "During handling" not in "".join(traceback.format_exception(caught.value))
