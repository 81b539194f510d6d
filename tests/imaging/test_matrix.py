"""The picture of the data matrix equals a dense one, honours what is not valid, and reads what it says."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from counted_reads import CountingStore, assert_read_once
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_stores import converted, poisson, small_shards
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.imaging.matrix_view import matrix_view

DTYPES = ["uint8", "uint16", "uint32", ">u2", "float32", "int16", "bool"]
STEP = 2.0


def labelled(data, **flags):
    """Counts with the optic axis between pixels, 2 mrad a pixel; flags as coordinates."""
    coords = {
        d: axis_coordinate(d, n, STEP, -0.5 * STEP * n, "mrad")
        for d, n in zip(("ky", "kx"), data.shape[2:], strict=True)
    }
    counts = tdm.label_counts(data, coords)
    dims = {
        "valid_pixels": ("ky", "kx"),
        "valid_patterns": ("y", "x"),
        "descan_ky": ("y", "x"),
        "descan_kx": ("y", "x"),
    }
    return counts.assign_coords({name: (dims[name], values) for name, values in flags.items()})


def dense(counts, coords, shape, *, used, kept, high=None, standardised=True):
    """The picture from the whole matrix in float64: normalised, put in order, cut into bins, each averaged.

    Gives the picture, and the mean angle of each column.
    """
    ny, nx, nky, nkx = counts.shape
    d = counts.reshape(ny * nx, nky * nkx)
    d = d.astype(np.int64) if d.dtype.kind in "uib" else d.astype(np.float64)
    if standardised:
        mean, std = oracle.statistics(counts, used)
        mean, std = mean.ravel(), std.ravel()
        d_hat = (d - mean) / np.where(std > 0, std, np.inf)
    else:
        d_hat = d.astype(np.float64)
    angle = np.sqrt(coords["ky"].values[:, None] ** 2 + coords["kx"].values ** 2).ravel()
    columns = [j for j in range(nky * nkx) if kept.ravel()[j]]
    rows = [i for i in range(ny * nx) if used.ravel()[i]]
    if high is not None:
        columns = sorted(columns, key=lambda j: round(angle[j], 5))  # sorted() is stable
        brightness = d[:, high.ravel()].sum(1)
        rows = sorted(rows, key=lambda i: brightness[i])
    bins = [[], []]
    for n, (order, most) in enumerate(zip((rows, columns), shape, strict=True)):
        number = min(most, len(order))
        bins[n] = [[order[k] for k in range(len(order)) if k * number // len(order) == b] for b in range(number)]
    picture = np.array([[d_hat[np.ix_(r, c)].mean() for c in bins[1]] for r in bins[0]])
    return picture, [angle[c].mean() for c in bins[1]]


@st.composite
def scans(draw):
    shape = tuple(draw(st.integers(1, n)) for n in (6, 6, 8, 8))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if dtype.kind == "b":
        return rng.random(shape) < 0.5, rng
    top = np.iinfo(dtype).max if dtype.kind in "ui" else 1e6
    kind = draw(st.sampled_from(["poisson", "zero", "equal", "top", "one-outlier"]))
    counts = rng.poisson(4, shape).astype(np.int64)
    if kind == "zero":
        counts[:] = 0
    elif kind == "equal":
        counts[:] = 7
    elif kind == "top":
        counts = int(top) - counts
    elif kind == "one-outlier":
        counts[0, 0] = int(top)
    # Some pixels are dead.
    counts[:, :, rng.random(shape[2:]) < 0.2] = 0
    return counts.astype(dtype), rng


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    scan=scans(),
    layout=st.sampled_from(["numpy", "chunked", "store"]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    order=st.sampled_from(["sorted", "concatenated"]),
    normalisation=st.sampled_from(["standardised", "none"]),
    regions=st.booleans(),
    flags=st.booleans(),
)
def test_matrix_view_equals_a_dense_computation(
    scan, layout, shape, order, normalisation, regions, flags, tmp_path_factory
):
    data, rng = scan
    ny, nx, nky, nkx = data.shape
    used, kept, valid = np.ones((ny, nx), bool), np.ones((nky, nkx), bool), np.ones((nky, nkx), bool)
    options, coords = {}, {}
    if flags:
        coords["valid_patterns"] = rng.random((ny, nx)) < 0.8
        coords["valid_pixels"] = rng.random((nky, nkx)) < 0.8
        coords["valid_patterns"][0, 0] = coords["valid_pixels"][0, 0] = True
        used, kept, valid = coords["valid_patterns"], coords["valid_pixels"], coords["valid_pixels"]
        if data.dtype.kind == "f":
            data = np.where(valid, data, np.nan).astype(data.dtype)
            data[~used] = np.nan
    if regions:
        options["scan_region"] = rng.random((ny, nx)) < 0.7
        options["detector_region"] = rng.random((nky, nkx)) < 0.7
        options["scan_region"][0, 0] = options["detector_region"][0, 0] = True
        used, kept = used & options["scan_region"], kept & options["detector_region"]
    whole = labelled(data, **coords)
    if layout == "chunked":
        whole = whole.copy(data=da.from_array(data, chunks=tuple(int(rng.integers(1, n + 1)) for n in data.shape)))
    elif layout == "store":
        whole = converted(tmp_path_factory.mktemp("scan") / "scan.zarr", whole)
    # Pixel (0, 0) is the furthest out; it is valid.
    limit = float(np.hypot(*(whole.coords[d].values[0] for d in ("ky", "kx")))) * rng.uniform(0.3, 0.99)
    angles = np.hypot(whole["ky"].values[:, None], whole["kx"].values)
    high = (angles > limit) & valid if order == "sorted" else None
    if order == "sorted":
        options["high_angle"] = limit
    view = matrix_view(whole, shape=shape, order=order, normalisation=normalisation, **options).compute()
    values = np.where(valid, data, 0) if data.dtype.kind == "f" else data
    if data.dtype.kind == "f":
        values[~used] = 0
    expected, angle = dense(
        values, whole.coords, shape, used=used, kept=kept, high=high, standardised=normalisation == "standardised"
    )
    # Where counts are near the top of their dtype, rounding of a mean is that much of a standard deviation.
    oracle.assert_close(view["matrix"], expected, scale=1.0 if normalisation == "standardised" else None)
    np.testing.assert_allclose(view["angle"], angle)
    assert int(view["pixels"].sum()) == kept.sum()
    assert int(view["probes"].sum()) == used.sum()
    for sizes in (view["pixels"].values, view["probes"].values):
        assert sizes.max() - sizes.min() <= 1
    if order == "sorted":
        assert (np.diff(view["high_angle_counts"].values) >= 0).all()
        sums = values.reshape(ny * nx, -1)[used.ravel()][:, high.ravel()].astype(np.float64).sum(1)
        mean = float((view["high_angle_counts"] * view["probes"]).sum() / used.sum())
        assert mean == pytest.approx(sums.mean(), rel=1e-6)


def test_fewer_probes_and_pixels_than_bins_show_every_count():
    data = poisson((3, 4, 5, 6))
    view = matrix_view(labelled(data), order="concatenated", normalisation="none")
    np.testing.assert_array_equal(view["matrix"], data.reshape(12, 30))
    assert view["matrix"].attrs["units"] == "counts"


def test_patterns_follow_their_descan():
    data = poisson((6, 5, 12, 12), seed=1)
    rng = np.random.default_rng(2)
    shifts = rng.integers(-2, 3, (2, 6, 5))
    moved, seen = oracle.descanned(data, shifts)
    for array in (data, da.from_array(data, chunks=(2, 5, 5, 12))):
        counts = labelled(array, descan_ky=shifts[0], descan_kx=shifts[1])
        view = matrix_view(counts, shape=(20, 30), high_angle=8.0).compute()
        high = (np.hypot(counts["ky"].values[:, None], counts["kx"].values) > 8.0) & seen
        expected, _ = dense(moved, counts.coords, (20, 30), used=np.ones((6, 5), bool), kept=seen, high=high)
        oracle.assert_close(view["matrix"], expected, scale=1.0)


def test_masks_are_averaged_over_the_same_columns():
    counts = labelled(poisson((3, 4, 6, 6)))
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(2, 6, 6))
    masks = xr.DataArray(weights, dims=("template", "ky", "kx"), coords={"template": ["a", "b"]})
    view = matrix_view(counts, masks, shape=(10, 9), order="concatenated")
    np.testing.assert_allclose(view["mask"], weights.reshape(2, 9, 4).mean(2))
    assert view["template"].values.tolist() == ["a", "b"]
    lazy = matrix_view(counts, masks.chunk({"ky": 2}), shape=(10, 9), order="concatenated")
    assert lazy["mask"].chunks is not None
    np.testing.assert_allclose(lazy["mask"].compute(), view["mask"])
    one = matrix_view(counts, masks[0], shape=(10, 9), high_angle=3.0)
    assert one["mask"].dims == ("template", "column")
    inside = (np.hypot(counts["ky"].values[:, None], counts["kx"].values)).ravel().argsort(kind="stable")[:4]
    assert float(one["mask"][0, 0]) == pytest.approx(weights[0].ravel()[inside].mean())


def test_numpy_counts_give_a_view_in_memory_and_lazy_ones_a_lazy_view():
    data = poisson((4, 5, 6, 6))
    assert matrix_view(labelled(data), high_angle=3.0)["matrix"].chunks is None
    lazy = matrix_view(labelled(da.from_array(data, chunks=(2, 2, 6, 6))), high_angle=3.0)
    assert lazy["matrix"].chunks is not None
    assert lazy["high_angle_counts"].chunks is not None


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("matrix") / "scan.zarr"
    with small_shards((8, 8, 32, 32), (16, 16)):
        tdm.convert(labelled(poisson((32, 40, 128, 128), mean=1)), path)
    return path


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        # Statistics are the store's own, so the first read is of high angles alone: 12 of 16 tiles of the detector.
        ({"high_angle": 100.0}, 1.75),
        ({"high_angle": 100.0, "normalisation": "none"}, 1.75),
        ({"order": "concatenated"}, 1.0),
        ({"order": "concatenated", "normalisation": "none"}, 1.0),
        # Over a region of the scan, here of half of the shards, statistics come with the sums.
        ({"high_angle": 100.0, "scan_region": np.s_[:16, :]}, 1.0),
        ({"order": "concatenated", "scan_region": np.s_[:16, :]}, 1.0),
        # The inner quarter of the detector, and what lies at high angles for the order of the rows.
        ({"high_angle": 100.0, "detector_region": np.s_[32:96, 32:96]}, 1.0),
    ],
)
def test_a_view_reads_what_it_says(scan, options, reads):
    store = CountingStore(LocalStore(scan, read_only=True))
    view = matrix_view(tdm.open(store), shape=(50, 50), **options)
    assert store.reads == []
    with dask.config.set(scheduler="threads"):
        view.compute()
    stored = sum(p.stat().st_size for p in (scan / "counts" / "c").rglob("*") if p.is_file())
    read = sum(stop - start for _, start, stop in store.chunk_ranges())
    assert read / stored == pytest.approx(reads, abs=0.03)


def test_a_concatenated_view_of_raw_counts_reads_each_chunk_once(scan):
    store = CountingStore(LocalStore(scan, read_only=True))
    view = matrix_view(tdm.open(store), order="concatenated", normalisation="none")
    view["matrix"].compute(scheduler="threads")
    assert_read_once(store, scan)


def test_a_store_and_its_counts_in_memory_give_the_same_view(scan):
    counts = tdm.open(scan)
    options = {"shape": (60, 70), "high_angle": 60.0}
    stored = matrix_view(counts, **options).compute()
    xr.testing.assert_allclose(stored, matrix_view(counts.compute(), **options), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"shape": (0, 5)}, tdm.errors.InputError, "two whole numbers"),
        ({"shape": 1000}, tdm.errors.InputError, "two whole numbers"),
        ({"order": "angle"}, tdm.errors.InputError, 'expected "sorted" or "concatenated"'),
        ({"normalisation": "mean"}, tdm.errors.InputError, "normalisation"),
        ({}, tdm.errors.InputError, "semi-angle"),
        ({"high_angle": 500.0}, tdm.errors.RegionError, "reaches 8.48528 mrad"),
        ({"high_angle": -1.0}, tdm.errors.UnitError, "positive"),
        ({"high_angle": 3.0, "masks": xr.DataArray(np.ones((3, 3)), dims=("ky", "kx"))}, tdm.errors.MaskError, "masks"),
        ({"high_angle": 3.0, "masks": np.ones((6, 6))}, tdm.errors.MaskError, "ndarray"),
    ],
)
def test_wrong_requests_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        matrix_view(labelled(poisson((3, 4, 6, 6))), **options)


def test_sorting_an_uncalibrated_detector_is_refused_and_concatenating_it_is_not():
    counts = tdm.label_counts(poisson((3, 4, 6, 6)))
    with pytest.raises(tdm.errors.CoordinateError, match="mrad"):
        matrix_view(counts, high_angle=3.0)
    assert "angle" not in matrix_view(counts, order="concatenated").coords


def test_the_default_high_angle_is_a_tenth_beyond_the_disk():
    counts = labelled(poisson((3, 4, 12, 12))).assign_attrs(semi_angle_mrad=5.0)
    assert matrix_view(counts).attrs["high_angle_mrad"] == pytest.approx(5.5)


@pytest.mark.parametrize("options", [{"high_angle": 3.0}, {"order": "concatenated", "normalisation": "none"}])
def test_nan_in_counts_that_are_used_is_an_error(options):
    data = poisson((3, 4, 6, 6)).astype(np.float32)
    data[1, 1, 0, 0] = np.nan
    with pytest.raises(tdm.errors.CountsError, match="NaN"):
        matrix_view(labelled(data), **options)
