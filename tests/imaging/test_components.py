"""Components equal dense decompositions, read what they say, and are what eq. 6 and 9 say they are."""

from __future__ import annotations

import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from counted_reads import CountingStore
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from small_stores import converted, poisson
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.imaging.components import nonnegative_components, principal_components
from tdm_dask.kernels.factors import block_krylov, largest_eigenvectors, nonnegative_factors, signed
from tdm_dask.plot.components import plot_components

METHODS = ["gram", "krylov"]


def planted(shape=(14, 15, 8, 9), dtype="uint16", seed=0):
    """Counts whose first three components stand out of noise."""
    rng = np.random.default_rng(seed)
    ny, nx, nky, nkx = shape
    images, masks = rng.normal(size=(ny, nx, 3)), rng.random((3, nky, nkx))
    rate = 30 + np.einsum("yxk,kab->yxab", images * [6, 4, 2.5], masks)
    return rng.poisson(np.clip(rate, 0, None)).astype(dtype)


def standardised(counts, used=None):
    """D_hat (probe, pixel), dense; 0 where a pixel is constant."""
    mean, std = oracle.statistics(counts, used)
    rows = counts.astype(np.float64).reshape(-1, mean.size)
    rows = rows if used is None else rows[used.ravel()]
    return (rows - mean.ravel()) / np.where(std > 0, std, np.inf).ravel()


def angle(one, other):
    """Largest angle, in degrees, between the spaces that rows span."""
    (a, _), (b, _) = np.linalg.qr(np.asarray(one).T), np.linalg.qr(np.asarray(other).T)
    # From the sine: the cosine of a small angle has lost its digits.
    return float(np.degrees(np.arcsin(min(1.0, np.linalg.norm(b - a @ (a.T @ b), 2)))))


def rows_of(masks):
    return masks.values.reshape(len(masks), -1)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["numpy", "chunked", "store"])
def test_components_equal_a_dense_singular_value_decomposition(method, layout, tmp_path):
    counts = planted()
    labelled = tdm.label_counts(counts if layout == "numpy" else da.from_array(counts, chunks=(5, 6, 4, 5)))
    labelled = converted(tmp_path / "scan.zarr", counts) if layout == "store" else labelled
    found = principal_components(labelled, n=3, method=method)
    _, s, v = np.linalg.svd(standardised(counts), full_matrices=False)
    eigenvalues = s**2 / 210
    np.testing.assert_allclose(found["eigenvalue"], eigenvalues[:3], rtol=1e-4)
    np.testing.assert_allclose(found["fraction"], eigenvalues[:3] / eigenvalues.sum(), rtol=1e-4)
    for k in range(3):
        assert angle(rows_of(found["mask"])[k : k + 1], v[k : k + 1]) < 0.2
    np.testing.assert_allclose(rows_of(found["mask"]) @ rows_of(found["mask"]).T, np.eye(3), atol=1e-6)
    expected = np.einsum("pq,kq->kp", standardised(counts), rows_of(found["mask"]))
    oracle.assert_close(found["image"].values.reshape(3, -1), expected)
    assert found.attrs["method"] == method


@settings(max_examples=15, deadline=None)
@given(
    q=st.integers(3, 40), rank=st.integers(1, 40), n=st.integers(1, 3), extra=st.integers(0, 4), seed=st.integers(0, 99)
)
def test_block_krylov_that_fills_the_space_is_exact(q, rank, n, extra, seed):
    rng = np.random.default_rng(seed)
    rank = max(n, min(rank, q))
    factor = rng.normal(size=(rank, q)) * np.geomspace(1, 0.1, rank)[:, None]
    matrix = factor.T @ factor
    calls = []

    def product(block):
        calls.append(len(block))
        return block @ matrix

    found = block_krylov(product, rng.normal(size=(min(n + extra, q), q)), q, n)
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(found.values, values[::-1][:n], rtol=1e-4, atol=1e-4 * values[-1])
    assert sum(calls) <= q + n + extra, "it ends where the blocks fill an invariant space"
    residual = np.linalg.norm(found.vectors @ matrix - found.values[:, None] * found.vectors, axis=1)
    assert (residual < 1e-2 * values[-1]).all()
    assert np.abs(found.vectors @ found.vectors.T - np.eye(n)).max() < 1e-6
    exact = largest_eigenvectors(matrix, n)
    np.testing.assert_allclose(exact.values, values[::-1][:n], atol=1e-9 * values[-1])
    assert np.abs(np.abs((exact.vectors * vectors[:, ::-1][:, :n].T).sum(1)) - 1).max() < 1e-6


def test_block_krylov_gains_on_subspace_iteration_and_says_how_far_it_is():
    """Of a slowly falling spectrum, from the same number of products."""
    rng = np.random.default_rng(5)
    axes, _ = np.linalg.qr(rng.normal(size=(300, 300)))
    values = np.concatenate([[60.0, 30, 27, 18, 15], np.linspace(12, 1, 295)])
    matrix = (axes * values) @ axes.T
    start = rng.normal(size=(20, 300))
    found = {n: block_krylov(lambda block: block @ matrix, start, n, 5) for n in (2, 4, 8)}
    block = start
    for _ in range(4):
        block, _ = np.linalg.qr((block @ matrix).T)
        block = block.T
    _, mix = np.linalg.eigh(block @ matrix @ block.T)
    subspace = mix[:, ::-1][:, :5].T @ block
    angles = {n: angle(found[n].vectors, axes[:, :5].T) for n in found}
    assert angles[8] < 0.1
    assert angles[8] < angles[4] < angles[2]
    assert angles[4] < 0.25 * angle(subspace, axes[:, :5].T)
    for result in found.values():
        own = np.linalg.norm(result.vectors @ matrix - result.values[:, None] * result.vectors, axis=1) / result.values
        assert (own <= result.residuals + 1e-9).all(), "the residual is of the vector before the last product"


@pytest.mark.parametrize(
    ("name", "gap"), [("lifepo4_001_40nm.npz", 3), ("lifepo4_001_40nm.npz", 1), ("pbtio3_100_39nm.npz", 4)]
)
def test_components_agree_with_scikit_learn_across_an_eigen_gap(name, gap, simulated):
    decomposition = pytest.importorskip("sklearn.decomposition")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    counts = tdm.bin(tdm.label_counts(simulated(name)[0]), detector=(3, 3)).compute()
    data = preprocessing.StandardScaler().fit_transform(counts.values.reshape(-1, counts[0, 0].size).astype(float))
    pca = decomposition.PCA(n_components=gap + 1, svd_solver="covariance_eigh").fit(data)
    variance = pca.explained_variance_
    assert variance[gap - 1] > 1.3 * variance[gap], "the space ends at a gap of the spectrum"
    for method in METHODS:
        found = principal_components(counts, n=gap, method=method)
        assert angle(rows_of(found["mask"]), pca.components_[:gap]) < 1.0, method
        p = len(data)
        np.testing.assert_allclose(found["eigenvalue"], variance[:gap] * (p - 1) / p, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_image_to_mask_to_image_multiplies_a_component_by_its_eigenvalue(method):
    """Eq. 6, with its 1/p: s -> r = s_hat^T D_hat / p -> D_hat r^T."""
    labelled = tdm.label_counts(da.from_array(planted(), chunks=(7, 15, 8, 9)))
    found = principal_components(labelled, n=3, method=method, iterations=8)
    images = found["image"].rename(component="template").drop_vars("n")
    again = tdm.apply_mask(labelled, tdm.derive_mask(labelled, images), normalisation="standardised")
    s_hat = images / images.std(("y", "x"))
    expected = found["eigenvalue"].values[:, None, None] * s_hat
    oracle.assert_close(again.compute().values / np.abs(expected).max().item(), expected / np.abs(expected).max())
    np.testing.assert_allclose(images.var(("y", "x")), found["eigenvalue"], rtol=1e-4)


def test_a_component_is_a_mask_that_apply_mask_takes():
    labelled = tdm.label_counts(planted())
    found = principal_components(labelled, n=2)
    image = tdm.apply_mask(labelled, found["mask"].rename(component="template"), normalisation="standardised")
    np.testing.assert_allclose(image, found["image"], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_flags_and_regions_are_honoured(method):
    counts = planted()
    rng = np.random.default_rng(1)
    pixels, patterns = rng.random((8, 9)) < 0.8, rng.random((14, 15)) < 0.9
    counts[:, :, 2, 3] = 11  # dead
    counts[:, :, ~pixels] = 60000
    counts[~patterns] = 60000
    labelled = tdm.label_counts(counts).assign_coords(
        valid_pixels=(("ky", "kx"), pixels), valid_patterns=(("y", "x"), patterns)
    )
    region = np.zeros((8, 9), bool)
    region[1:] = True
    part = {"y": slice(0, 10)}
    found = principal_components(labelled, n=2, method=method, detector_region=region, scan_region=part, iterations=8)
    used = patterns.copy()
    used[10:] = False
    inside = region & pixels
    d_hat = standardised(counts, used)[:, inside.ravel()]
    _, s, v = np.linalg.svd(d_hat, full_matrices=False)
    np.testing.assert_allclose(found["eigenvalue"], s[:2] ** 2 / used.sum(), rtol=1e-4)
    assert angle(found["mask"].values[:, inside], v[:2]) < 0.1
    assert not found["mask"].values[:, ~inside | (np.indices((8, 9)) == [[[2]], [[3]]]).all(0)].any()
    np.testing.assert_array_equal(np.isnan(found["image"].values), np.broadcast_to(~patterns, (2, 14, 15)))
    np.testing.assert_allclose(found["fraction"], found["eigenvalue"] / (inside.sum() - 1))
    parts = nonnegative_components(labelled, 2, rank=3, method=method, detector_region=region, scan_region=part)
    np.testing.assert_array_equal(np.isnan(parts["image"].values), np.broadcast_to(~used, (2, 14, 15)))
    assert not parts["mask"].values[:, ~inside].any()


def test_both_methods_give_the_same_signs_and_the_same_numbers_every_time():
    labelled = tdm.label_counts(planted())
    gram, krylov = (principal_components(labelled, n=3, method=m, iterations=8) for m in METHODS)
    np.testing.assert_allclose(gram["mask"], krylov["mask"], atol=1e-4)
    np.testing.assert_array_equal(krylov["mask"], principal_components(labelled, 3, method="krylov", iterations=8).mask)
    assert (gram["mask"].sum(("ky", "kx")) > 0).all()
    ramp = np.arange(6) - 2.5
    antisymmetric = np.array([[-3.0, -2, -1, 1, 2, 3], [3, 2, 1, -1, -2, -3], [-1, -1, -1, -1, -1, 9]])
    assert signed(antisymmetric, ramp).tolist() == [1.0, -1.0, 1.0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda c: principal_components(c, 2, method="gram"), 2),
        (lambda c: principal_components(c, 2), 2),
        (lambda c: principal_components(c, 2, method="krylov"), 6),
        (lambda c: principal_components(c, 2, method="krylov", iterations=2, vectors=5), 4),
        (lambda c: nonnegative_components(c, 2), 2),
        (lambda c: nonnegative_components(c, 2, method="krylov", iterations=1), 3),
    ],
)
def test_components_read_as_often_as_they_say(call, expected, tmp_path):
    converted(tmp_path / "scan.zarr", planted((8, 12, 12, 16)))
    store = CountingStore(LocalStore(tmp_path / "scan.zarr", read_only=True))
    found = call(tdm.open(store))
    ranges = store.chunk_ranges()
    assert {ranges.count(r) for r in ranges} == {expected}
    assert found.attrs["reads"] == expected


def test_what_cannot_be_found_is_an_error():
    counts = tdm.label_counts(planted((6, 7, 4, 4)))
    with pytest.raises(tdm.errors.InputError, match="at most 16 components"):
        principal_components(counts, 17)
    with pytest.raises(tdm.errors.InputError, match='expected "auto", "gram" or "krylov"'):
        principal_components(counts, 2, method="svd")
    with pytest.raises(tdm.errors.InputError, match="5 components from 4 vectors"):
        principal_components(counts, 5, vectors=4)
    with pytest.raises(tdm.errors.InputError, match="3 components of a rank of 1"):
        nonnegative_components(counts, 3, rank=1)
    with pytest.raises(tdm.errors.CountsError, match="16 detector pixels have a negative mean"):
        nonnegative_components(-counts.astype(np.int16), 2)
    constant = tdm.label_counts(np.full((4, 5, 3, 3), 7, np.uint8))
    two = constant.copy(data=constant.values + np.eye(4, 5, dtype=np.uint8)[:, :, None, None] * [[0, 0, 1]])
    for method in METHODS:
        with pytest.raises(tdm.errors.InputError, match="have 0 components"):
            principal_components(constant, 1, method=method)
        with pytest.raises(tdm.errors.InputError, match="have 1 components that are more than rounding, but 3"):
            principal_components(xr.where(two > 0, two, 0), 3, method=method)


def mixtures(seed=0, p=120, q=90, n=3):
    rng = np.random.default_rng(seed)
    return rng.random((p, n)) * (rng.random((p, n)) < 0.5), rng.random((n, q)) * (rng.random((n, q)) < 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_nonnegative_factors_of_factors_reach_what_scikit_learn_reaches_on_the_matrix(seed):
    decomposition = pytest.importorskip("sklearn.decomposition")
    w, h = mixtures(seed)
    matrix = w @ h
    turn = np.random.default_rng(seed).normal(size=(3, 3))  # factors of any sign
    found = nonnegative_factors(w @ turn, np.linalg.inv(turn) @ h, 3)
    assert (found.left >= 0).all()
    assert (found.right >= 0).all()
    dense = np.linalg.norm(matrix - found.left @ found.right) / np.linalg.norm(matrix)
    assert found.residual == pytest.approx(dense, abs=1e-6)
    model = decomposition.NMF(3, init="nndsvda", tol=1e-8, max_iter=5000)
    other = np.linalg.norm(matrix - model.fit_transform(matrix) @ model.components_) / np.linalg.norm(matrix)
    assert dense < other + 0.01


def test_fewer_nonnegative_factors_than_the_rank_leave_the_residual_that_is_reported():
    w, h = mixtures(4, n=6)
    found = nonnegative_factors(w, h, 2)
    dense = np.linalg.norm(w @ h - found.left @ found.right) / np.linalg.norm(w @ h)
    assert found.residual == pytest.approx(dense, rel=1e-6)
    assert 0.1 < dense < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_nonnegative_components_find_patterns_that_never_occur_together(method):
    rng = np.random.default_rng(2)
    patterns = rng.random((3, 6, 7)) * (np.arange(42).reshape(6, 7) % 3 == np.arange(3)[:, None, None])
    patterns /= patterns.sum((1, 2), keepdims=True)
    images = 4000 * rng.random((3, 12, 13)) * (rng.integers(0, 3, (12, 13)) == np.arange(3)[:, None, None])
    counts = rng.poisson(np.einsum("kyx,kab->yxab", images, patterns)).astype(np.uint16)
    labelled = tdm.label_counts(da.from_array(counts, chunks=(5, 13, 6, 7)))
    found = nonnegative_components(labelled, 3, method=method)
    assert (found["mask"].values >= 0).all()
    assert (found["image"].values >= 0).all()
    np.testing.assert_allclose(found["mask"].sum(("ky", "kx")), 1)
    assert (np.diff(found["fraction"]) <= 0).all()
    assert float(found["fraction"].sum()) == pytest.approx(1)
    overlap = np.corrcoef(rows_of(found["mask"]), patterns.reshape(3, -1))[:3, 3:]
    best = overlap.argmax(1)
    assert sorted(best) == [0, 1, 2]
    assert overlap.max(1).min() > 0.98
    for k in range(3):
        assert np.corrcoef(found["image"][k].values.ravel(), images[best[k]].ravel())[0, 1] > 0.98
    total = float(found["image"].sum()) / counts.sum()
    assert total == pytest.approx(1, abs=0.03)
    assert float(found["residual"]) < 0.1


def test_a_figure_shows_the_spectrum_and_every_component():
    labelled = tdm.label_counts(poisson((8, 9, 6, 7)))
    axes = plot_components(principal_components(labelled, n=3))
    assert axes.shape == (7,)
    assert all(isinstance(a, Axes) for a in axes)
    assert axes[0].get_xlabel() == "component"
    np.testing.assert_allclose(axes[0].lines[0].get_xdata(), [1, 2, 3])
    parts = plot_components(nonnegative_components(labelled, 2, rank=2))
    assert parts.shape == (5,)
    assert "counts" in parts[0].get_ylabel()
