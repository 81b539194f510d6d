"""Ridge masks by either solver equal a dense float64 solve; what cross-validation chooses, and what is read."""

from __future__ import annotations

import warnings
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from counted_reads import CountingStore, assert_read_once, several_shards
from dense_ridge import dataset, dense_masks, few_pixels, labelled, some_templates
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import LAYOUTS, as_labelled, scans
from small_stores import converted, poisson
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.errors import CountsError, InputError, MemoryLimitError, TemplateError
from tdm_dask.kernels.ridge_solver import conjugate_gradients_step, orthonormal
from tdm_dask.masks.ridge import LAMBDAS, compared, regularisation_curve
from tdm_dask.plot.ridge import plot_regularisation
from tdm_dask.plot.style import new_figure


def assert_masks(found, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-300))


def largest_eigenvalue(rows):
    """Of the correlation matrix of the pixels of patterns (pattern, pixel)."""
    mean, std = oracle.statistics(rows[:, None, None])
    return np.linalg.norm(oracle.standardised(rows[:, None, None], mean, std)[:, 0, 0], 2) ** 2 / len(rows)


@pytest.mark.long
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(), scan=scans(), layout=st.sampled_from(LAYOUTS), scheduler=st.sampled_from(["synchronous", "threads"])
)
def test_both_solvers_equal_a_dense_solve(data, scan, layout, scheduler, tmp_path_factory):
    counts, rng = scan
    ny, nx, nky, nkx = counts.shape
    used = rng.random((ny, nx)) < data.draw(st.sampled_from([0.6, 1.0]))
    used[0, 0] = True
    if used.sum() < 2:
        return
    region = rng.random((nky, nkx)) * (rng.random((nky, nkx)) < data.draw(st.sampled_from([0.4, 1.0])))
    region[-1, -1] = 1.0
    if data.draw(st.booleans()):
        region = np.ceil(region)
    templates = rng.normal(size=(data.draw(st.integers(1, 3)), ny, nx))
    penalty = data.draw(st.sampled_from([0.1, 1.0, 30.0]))
    gain = data.draw(st.sampled_from([None, 1.0]))
    expected = dense_masks(counts, templates, used, region, penalty, gain)
    # With a gain, lambda N goes down to a thousandth of lambda, and what the solution makes of rounding grows with its
    # inverse.
    smallest = penalty * (1.0 if gain is None else 1e-3)
    worse = max(1.0, 0.1 / smallest)
    # Where one pattern is saturated all pixels are alike, and a residual and rounding are that much larger.
    condition = largest_eigenvalue(counts[used][:, region > 0]) / smallest
    array = as_labelled(counts, layout, tmp_path_factory, rng)
    options = {"detector_region": region, "scan_region": used, "regularisation": penalty, "counts_per_electron": gain}
    with dask.config.set(scheduler=scheduler):
        by_matrix = tdm.derive_mask(array, labelled(templates), method="ridge", **options).compute()
        by_steps = tdm.derive_mask(
            array, labelled(templates), method="ridge", solver="conjugate-gradients", **options
        ).compute()
    assert_masks(by_matrix, expected, max(3e-5 * worse, 3e-7 * condition))
    assert_masks(by_steps, by_matrix, max(1e-4 * worse, 1e-6 * condition))
    mean, std = oracle.statistics(counts, used)
    for mask, solver in ((by_matrix, "gram"), (by_steps, "conjugate-gradients")):
        oracle.assert_close(mask["mean"].values[region > 0], mean[region > 0])
        oracle.assert_close(mask["std"].values[region > 0], std[region > 0])
        assert (mask.values[:, (region == 0) | (std == 0)] == 0).all()
        assert int(mask["n"]) == used.sum()
        assert float(mask["regularisation"]) == penalty
        assert mask.attrs["solver"] == solver
        assert mask.dims == ("template", "ky", "kx")


@pytest.mark.long
@pytest.mark.parametrize("solver", ["gram", "conjugate-gradients"])
@pytest.mark.parametrize("layout", ["numpy", "chunked", "store"])
def test_flags_and_descan_are_honoured(layout, solver, tmp_path):
    counts, templates = dataset((14, 16, 8, 9))
    counts[:, :, 4, 4] = 0  # dead
    counts[:, :, 3, 5] = 65535  # hot, and flagged
    counts[5, 7] = 65535  # a broken pattern
    rng = np.random.default_rng(5)
    shifts = rng.integers(-1, 2, (2, 14, 16))
    valid, patterns = np.ones((8, 9), bool), np.ones((14, 16), bool)
    valid[3, 5], patterns[5, 7] = False, False
    used = patterns.copy()
    used[:, :3] = False
    array = {
        "numpy": lambda: tdm.label_counts(counts),
        "chunked": lambda: tdm.label_counts(da.from_array(counts, (5, 7, 3, 4))),
        "store": lambda: converted(tmp_path / "scan.zarr", counts),
    }[layout]()
    flags = {"valid_pixels": (("ky", "kx"), valid), "valid_patterns": (("y", "x"), patterns)}
    for more in (False, True):
        moved, seen = counts, valid
        if more:
            flags |= {n: (("y", "x"), s) for n, s in zip(("descan_ky", "descan_kx"), shifts, strict=True)}
            moved, seen = oracle.descanned(counts, shifts, valid, used)
        expected = dense_masks(moved, templates, used, seen.astype(float), 0.1)
        found = tdm.derive_mask(
            array.assign_coords(flags),
            labelled(templates),
            method="ridge",
            scan_region=(slice(None), slice(3, None)),
            regularisation=0.1,
            solver=solver,
        ).compute()
        assert_masks(found, expected, 1e-5 if solver == "gram" else 1e-4)
        assert (found.values[:, ~seen] == 0).all()


@pytest.mark.parametrize("solver", ["gram", "conjugate-gradients"])
def test_a_template_without_a_name_gives_one_mask(solver):
    counts, templates = dataset(kinds=1)
    options = {"method": "ridge", "regularisation": 0.3, "solver": solver}
    one = tdm.derive_mask(tdm.label_counts(counts), labelled(templates)[0].drop_vars("template"), **options)
    assert one.dims == ("ky", "kx")
    assert_masks(one, dense_masks(counts, templates, np.ones((16, 18), bool), np.ones((5, 6)), 0.3)[0], 1e-5)
    image = tdm.apply_mask(tdm.label_counts(counts), one, normalisation="standardised")
    assert np.corrcoef(image.values.ravel(), templates[0].ravel())[0, 1] > 0.8


@pytest.mark.parametrize("solver", ["gram", "conjugate-gradients"])
@pytest.mark.parametrize("soft", [False, True])
def test_separate_masks_answer_to_no_other_template(solver, soft):
    counts, templates = dataset()
    used = np.ones((16, 18), bool)
    used[11:] = False
    region = np.random.default_rng(3).random((5, 6)) if soft else np.ones((5, 6))
    options = {"method": "ridge", "regularisation": 0.1, "separate": True, "solver": solver}
    given = {"detector_region": region, "scan_region": used}
    mask = tdm.derive_mask(tdm.label_counts(counts), labelled(templates), **given, **options)
    assert_masks(mask, dense_masks(counts, templates, used, region, 0.1, separate=True), 1e-5)
    image = oracle.standardised_image(counts, mask.values, mask["mean"].values, mask["std"].values)[:, used]
    s = templates[:, used] - templates[:, used].mean(1, keepdims=True)
    partial = np.linalg.lstsq((s / s.std(1, keepdims=True)).T, image.T, rcond=None)[0]
    np.testing.assert_allclose(partial, np.eye(3), atol=1e-5)


def test_templates_that_are_not_independent_cannot_be_kept_apart():
    counts, templates = dataset(kinds=2)
    three = labelled([*templates, templates.sum(0)])
    for solver in ("gram", "conjugate-gradients"):
        with pytest.raises(TemplateError, match="3 templates cannot be kept apart with separate=True"):
            tdm.derive_mask(
                tdm.label_counts(counts), three, method="ridge", regularisation=0.1, separate=True, solver=solver
            )
    assert np.isfinite(tdm.derive_mask(tdm.label_counts(counts), three, method="ridge", regularisation=0.1)).all()


def test_a_large_lambda_gives_the_pearson_mask_with_the_weights_of_the_region():
    counts, templates = dataset()
    region = np.random.default_rng(3).random((5, 6))
    array = tdm.label_counts(counts)
    pearson = tdm.derive_mask(array, labelled(templates), detector_region=region)
    ridge = tdm.derive_mask(array, labelled(templates), method="ridge", detector_region=region, regularisation=1e6)
    assert_masks(ridge * 1e6, pearson, 1e-4)


def test_block_conjugate_gradients_end_after_as_many_steps_as_dimensions_allow():
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(12, 12))
    matrix = factor @ factor.T + np.eye(12)
    right = rng.normal(size=(4, 12))
    right[3] = right[0] - right[2]  # the directions become dependent at once
    solution, residuals, directions = np.zeros_like(right), right, orthonormal(right)
    for _ in range(4):
        np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-12)
        solution, residuals, directions = conjugate_gradients_step(directions @ matrix, directions, residuals, solution)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, right.T).T, atol=1e-8)


def test_steps_that_do_not_suffice_are_said():
    counts, templates = dataset()
    options = {"method": "ridge", "solver": "conjugate-gradients", "regularisation": 1e-3, "most_reads": 2}
    with pytest.warns(UserWarning, match=r"stopped after 2 reads with a residual of .*; 1e-06 was wanted"):
        mask = tdm.derive_mask(tdm.label_counts(counts), labelled(templates), **options)
    assert mask.attrs["reads"] == 3
    assert len(mask.attrs["residuals"]) == 3


# ---- cross-validation


def dense_curve(counts, templates, used, region, lambdas, rows, columns, gain=None):
    """R and G (lambda, image, template): the image of each block by masks from all other probe positions."""
    blocks = [(slice(*y), slice(*x)) for y in pairwise(rows) for x in pairwise(columns)]
    whole_mean, whole_std = (a.copy() for a in oracle.statistics(counts, used))
    n = region
    if gain is not None:
        n = region / np.clip(gain * whole_mean / np.where(whole_std > 0, whole_std, 1) ** 2, 1e-3, 1.0)
    result = []
    for penalty in lambdas:
        image = np.zeros((len(templates), *used.shape))
        for block in blocks:
            here = np.zeros(used.shape, bool)
            here[block] = True
            rest = used & ~here
            masks = dense_masks(counts, templates, rest, n, penalty)
            mean, std = oracle.statistics(counts, rest)
            image[:, here] = oracle.standardised_image(counts, masks, mean, std)[:, here]
        k = len(templates)
        both = np.corrcoef(image[:, used], templates[:, used])
        result.append((both[:k, k:], both[k:, k:]))
    return np.array([r for r, _ in result]), np.array([g for _, g in result])


@pytest.mark.parametrize("gain", [None, 1.0])
@pytest.mark.parametrize("layout", ["numpy", "chunked", "store"])
def test_the_curve_equals_masks_derived_block_by_block(layout, gain, tmp_path):
    counts, templates = dataset()
    counts[..., 0, 1] = 7
    used = np.ones((16, 18), bool)
    used[:2] = False
    used[5, 5] = False
    region = np.ones((5, 6))
    region[4] = 0.5
    array = {
        "numpy": lambda: tdm.label_counts(counts),
        "chunked": lambda: tdm.label_counts(da.from_array(counts, (5, 7, 3, 4))),
        "store": lambda: converted(tmp_path / "scan.zarr", counts),
    }[layout]()
    lambdas = (0.01, 0.3, 10.0)
    given = {"detector_region": region, "scan_region": used, "counts_per_electron": gain, "blocks": (2, 3)}
    curve = regularisation_curve(array, labelled(templates), regularisation=lambdas, **given).compute()
    r, g = dense_curve(counts, templates, used, region, lambdas, (0, 9, 16), (0, 6, 12, 18), gain)
    np.testing.assert_allclose(curve["R"], r, atol=1e-5)
    np.testing.assert_allclose(curve["G"], g, atol=1e-9)
    own = np.einsum("lii->li", r)
    excess = (np.abs(r - g) * (1 - np.eye(3))).max(2)
    np.testing.assert_allclose(curve["own"], own, atol=1e-5)
    np.testing.assert_allclose(curve["excess"], excess, atol=1e-5)
    loss = np.sqrt((1 - own.mean(1)) * excess.mean(1))
    np.testing.assert_allclose(curve["loss"], loss, atol=1e-5)
    assert float(curve["chosen"]) == lambdas[int(loss.argmin())]
    assert curve["own"].dims == ("regularisation", "template")
    assert curve["R"].dims == ("regularisation", "image", "template")
    assert curve["image"].values.tolist() == ["kind 0", "kind 1", "kind 2"]


@pytest.mark.parametrize("seed", range(4))
def test_pixels_with_counts_in_one_block_alone_are_constant_where_it_is_left_out(seed):
    counts, templates = dataset(seed=seed)
    rng = np.random.default_rng(seed)
    counts[..., 0, :] = 0
    for pixel in range(6):
        counts[rng.integers(0, 8, 2), rng.integers(0, 9, 2), 0, pixel] = rng.integers(1, 9, 2)
    lambdas = (0.001, 0.1)
    curve = regularisation_curve(tdm.label_counts(counts), labelled(templates), regularisation=lambdas)
    used = np.ones((16, 18), bool)
    r, _ = dense_curve(counts, templates, used, np.ones((5, 6)), lambdas, (0, 8, 16), (0, 9, 18))
    np.testing.assert_allclose(curve["R"], r, atol=1e-4)


@pytest.mark.parametrize("objective", ["both", "R", "excess"])
@pytest.mark.parametrize("separate", [False, True])
def test_the_mask_has_the_lambda_of_the_least_loss(objective, separate):
    counts, templates = dataset(signal=2.0)
    array = tdm.label_counts(counts)
    options = {"objective": objective, "separate": separate}
    curve = regularisation_curve(array, labelled(templates), **options)
    assert curve["regularisation"].values.tolist() == list(LAMBDAS)
    own, excess = curve["own"].mean("template"), curve["excess"].mean("image")
    expected = {"R": 1 - own, "excess": excess, "both": np.sqrt((1 - own) * excess)}[objective]
    np.testing.assert_allclose(curve["loss"], expected, rtol=1e-12)
    assert float(curve["chosen"]) == LAMBDAS[int(curve["loss"].values.argmin())]
    mask = tdm.derive_mask(array, labelled(templates), method="ridge", **options)
    assert float(mask["regularisation"]) == float(curve["chosen"])
    fixed = tdm.derive_mask(
        array, labelled(templates), method="ridge", regularisation=float(curve["chosen"]), separate=separate
    )
    assert_masks(mask, fixed, 1e-6)  # the products of blocks were added up in another order


def test_one_template_is_judged_by_its_own_correlation():
    r, g = np.array([[[0.5]], [[0.9]], [[0.7]]]), np.ones((3, 1, 1))
    for objective in ("both", "R", "excess"):
        assert int(np.argmin(compared(r, g, objective)["loss"])) == 1


def test_a_perfect_image_has_a_loss_of_zero():
    r = np.array([[[1 + 2e-16, 0.0], [0.0, 1 + 2e-16]]])
    assert compared(r, np.eye(2)[None], "both")["loss"].tolist() == [0.0]


def test_a_single_block_leaves_nothing_to_try_masks_on():
    counts, templates = dataset()
    part = (slice(0, 1), slice(0, 18))
    with pytest.raises(InputError, match=r"Only one block of the scan .* give the regularisation as a number"):
        tdm.derive_mask(tdm.label_counts(counts), labelled(templates), method="ridge", scan_region=part, blocks=(2, 1))
    lazy = tdm.derive_mask(
        tdm.label_counts(da.from_array(counts, (5, 7, 5, 6))),
        labelled(templates),
        method="ridge",
        scan_region=part,
        blocks=(2, 1),
    )
    with pytest.raises(InputError, match="Only one block of the scan"):
        lazy.compute()


# ---- what is read, and where it runs


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return several_shards(tmp_path_factory.mktemp("ridge"), shape=(20, 24, 64, 96))


@pytest.fixture
def counting(scan):
    store = CountingStore(LocalStore(scan[0], read_only=True))
    return store, tdm.open(store)


@pytest.mark.parametrize("regularisation", ["cross-validated", 0.1])
def test_the_matrix_takes_one_read_and_none_before_compute(counting, scan, regularisation):
    store, counts = counting
    mask = tdm.derive_mask(
        counts, some_templates(), method="ridge", detector_region=few_pixels(), regularisation=regularisation
    )
    curve = regularisation_curve(counts, some_templates(), detector_region=few_pixels())
    assert store.reads == []
    mask = mask.compute(scheduler="threads")
    assert_read_once(store, scan[0], fraction=0.7)
    assert mask.attrs["reads"] == 1
    store.reads.clear()
    curve.compute(scheduler="threads")
    assert_read_once(store, scan[0], fraction=0.7)


@pytest.mark.long
def test_conjugate_gradients_take_as_many_reads_as_they_say(counting, scan):
    store, counts = counting
    options = {"detector_region": few_pixels(), "regularisation": 0.3, "solver": "conjugate-gradients"}
    mask = tdm.derive_mask(counts, some_templates(), method="ridge", separate=True, **options)
    ranges = store.chunk_ranges()
    times = {r: ranges.count(r) for r in set(ranges)}
    assert set(times.values()) == {mask.attrs["reads"]}
    assert mask.attrs["reads"] == 1 + (len(mask.attrs["residuals"]) - 1)
    residuals = mask.attrs["residuals"]
    assert residuals[0] == 1.0
    assert residuals[-1] <= 1e-6 < residuals[-2]


def test_a_lazy_template_is_computed_once_for_all_steps(counting):
    _, counts = counting
    lazy = some_templates().chunk()
    asked = []
    lazy = lazy.copy(data=lazy.data.map_blocks(lambda block: asked.append(1) or block, dtype=float, meta=np.empty(0)))
    options = {"detector_region": few_pixels(), "regularisation": 0.3, "separate": True}
    found = tdm.derive_mask(counts, lazy, method="ridge", solver="conjugate-gradients", **options)
    assert len(asked) == 1
    expected = tdm.derive_mask(counts, some_templates(), method="ridge", **options)
    assert_masks(found, expected.compute(), 1e-4)


def test_chains_read_once_per_stage_and_lie_in_one_graph(counting):
    store, counts = counting
    mask = tdm.derive_mask(counts, some_templates(), method="ridge", detector_region=few_pixels())
    image = tdm.apply_mask(counts, mask, normalisation="standardised")
    assert store.reads == []
    image = image.compute(scheduler="threads")
    ranges = store.chunk_ranges()
    assert all(ranges.count(r) == 2 for r in ranges)
    assert image.shape == (2, 20, 24)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["numpy", "chunked", "store"])
def test_a_cluster_gives_the_same_masks(layout, client, tmp_path):
    counts, templates = dataset()
    array = {
        "numpy": lambda: tdm.label_counts(counts),
        "chunked": lambda: tdm.label_counts(da.from_array(counts, (5, 7, 3, 4))),
        "store": lambda: converted(tmp_path / "scan.zarr", counts),
    }[layout]()
    used = np.ones((16, 18), bool)
    for penalty in (0.1, "cross-validated"):
        mask = tdm.derive_mask(array, labelled(templates), method="ridge", regularisation=penalty).compute()
        assert_masks(mask, dense_masks(counts, templates, used, np.ones((5, 6)), float(mask["regularisation"])))
    steps = tdm.derive_mask(
        array, labelled(templates), method="ridge", regularisation=0.1, solver="conjugate-gradients"
    )
    assert_masks(steps, dense_masks(counts, templates, used, np.ones((5, 6)), 0.1), 1e-4)


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


# ---- what makes no sense


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regularisation": "some"}, "The regularisation is 'some'; expected a number or \"cross-validated\""),
        ({"regularisation": -1.0}, "The regularisation is -1.0; expected a positive number"),
        ({"regularisation": np.nan}, "The regularisation is nan"),
        ({"regularisation": None}, "The regularisation is None"),
        ({"regularisation": True}, "The regularisation is True"),
        ({"objective": "best"}, "The objective is 'best'; expected one of"),
        ({"solver": "lu"}, "The solver is 'lu'; expected one of"),
        ({"blocks": (1, 1)}, r"The blocks are \(1, 1\); expected two whole numbers"),
        ({"blocks": 4}, "The blocks are 4; expected two whole numbers"),
        ({"blocks": (2, 1.5)}, r"The blocks are \(2, 1.5\)"),
        ({"counts_per_electron": 0.0}, "counts_per_electron=0.0 was given; expected a positive number"),
        ({"counts_per_electron": "1"}, "counts_per_electron='1'"),
        ({"most_reads": 0}, "most_reads=0 was given; expected a whole number of at least 1"),
        ({"regularization": 0.1}, "regularization"),
        ({"solver": "conjugate-gradients"}, "Conjugate gradients need the regularisation as a number"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(counting, options, words):
    store, counts = counting
    with pytest.raises(InputError, match=words):
        tdm.derive_mask(counts, some_templates(), method="ridge", detector_region=few_pixels(), **options)
    assert store.reads == []


@pytest.mark.parametrize("lambdas", [(), (0.0, 1.0), (np.inf,), (-1.0,)])
def test_lambdas_that_make_no_sense_are_refused(counting, lambdas):
    with pytest.raises(InputError, match="The regularisation is one of"):
        regularisation_curve(counting[1], some_templates(), detector_region=few_pixels(), regularisation=lambdas)


def test_options_of_ridge_masks_belong_to_them_alone(counting):
    _, counts = counting
    with pytest.raises(InputError, match='separate is an option of method="ridge" alone'):
        tdm.derive_mask(counts, some_templates(), separate=True)
    found = xr.Dataset({"rho": (("ky", "kx"), np.zeros((64, 96)))})
    with pytest.raises(InputError, match="more than correlations; give the counts and a template"):
        tdm.derive_mask(found, method="ridge")


def test_too_many_pixels_are_refused_before_anything_is_read(counting):
    store, counts = counting
    with pytest.raises(MemoryLimitError, match=r"6144 detector pixels, .* 4 blocks .* at most 4096"):
        tdm.derive_mask(counts, some_templates(), method="ridge", solver="gram")
    with pytest.raises(InputError, match=r"6144 pixels, more than the 4096 .* tdm_dask\.bin"):
        tdm.derive_mask(counts, some_templates(), method="ridge")
    assert store.reads == []


def test_more_pixels_than_the_matrix_holds_are_solved_by_conjugate_gradients(monkeypatch):
    counts, templates = dataset()
    monkeypatch.setattr("tdm_dask.masks.ridge.GRAM_MOST", 29)
    mask = tdm.derive_mask(tdm.label_counts(counts), labelled(templates), method="ridge", regularisation=0.1)
    assert mask.attrs["solver"] == "conjugate-gradients"
    monkeypatch.setattr("tdm_dask.masks.ridge.GRAM_MOST", 30)
    other = tdm.derive_mask(tdm.label_counts(counts), labelled(templates), method="ridge", regularisation=0.1)
    assert other.attrs["solver"] == "gram"
    assert_masks(mask, other, 1e-4)


@pytest.mark.parametrize("solver", ["gram", "conjugate-gradients"])
def test_counts_that_are_not_finite_are_an_error_where_they_are_used(solver):
    counts = poisson((8, 8, 4, 5), "float32")
    counts[2, 3, 1, 1] = np.nan
    templates = labelled(np.random.default_rng(0).normal(size=(2, 8, 8)))
    options = {"method": "ridge", "regularisation": 0.1, "solver": solver}
    with pytest.raises(CountsError, match="1 detector pixels hold NaN"):
        tdm.derive_mask(tdm.label_counts(counts), templates, **options)
    region = np.ones((4, 5), bool)
    region[1, 1] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(
            tdm.derive_mask(tdm.label_counts(counts), templates, detector_region=region, **options)
        ).all()


# ---- the curve, drawn


def test_the_curve_is_drawn_with_the_chosen_lambda_marked():
    counts, templates = dataset()
    curve = regularisation_curve(tdm.label_counts(counts), labelled(templates), objective="excess")
    own, excess, loss = plot_regularisation(curve)
    chosen = float(curve["chosen"])
    for axes, name in ((own, "own"), (excess, "excess")):
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "regularisation λ"
        *lines, mark = axes.get_lines()
        assert set(mark.get_xdata()) == {chosen}
        np.testing.assert_array_equal(np.array([line.get_ydata() for line in lines]).T, curve[name])
    line, circle, mark = loss.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), curve["loss"])
    assert circle.get_xdata() == [chosen]
    assert circle.get_ydata() == [float(curve["loss"].min())]
    assert set(mark.get_xdata()) == {chosen}
    assert loss.get_ylabel() == "loss (excess)"
    assert loss.get_title(loc="left") == f"chosen: λ = {chosen:.3g}"
    assert [text.get_text() for text in own.get_legend().get_texts()] == ["kind 0", "kind 1", "kind 2"]


def test_the_curve_is_drawn_where_it_is_asked_for():
    counts, templates = dataset(kinds=1)
    curve = regularisation_curve(tdm.label_counts(counts), labelled(templates))
    given = new_figure(4, 2).subplots(1, 2)
    drawn = plot_regularisation(curve, given)
    assert list(drawn) == list(given)
    assert drawn[1].get_ylabel() == "loss (R)"
    with pytest.raises(InputError, match="3 Axes were given for 2 panels: own, loss"):
        plot_regularisation(curve, new_figure(4, 2).subplots(1, 3))
    with pytest.raises(InputError, match=r"lacks \['chosen'\]; expected what regularisation_curve returns"):
        plot_regularisation(curve.drop_vars("chosen"))
