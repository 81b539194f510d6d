"""Signal over noise of images: the number that was put in comes out, by both definitions."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import tdm_dask as tdm
from tdm_dask.counts.thinning import split_electrons
from tdm_dask.evaluation.noise import lattice_snr, thinned_snr

STEP = 0.32
SHAPE = (64, 56)


def on_scan(values, step=STEP) -> xr.DataArray:
    values = np.asarray(values)
    coords = {
        dim: (dim, step * np.arange(size), {"units": "angstrom"})
        for dim, size in zip(("y", "x"), values.shape[-2:], strict=True)
    }
    dims = ("template", "y", "x")[-values.ndim :]
    names = {"template": [f"image {n}" for n in range(len(values))]} if values.ndim == 3 else {}
    return xr.DataArray(values, {**coords, **names}, dims=dims, attrs={"units": "counts"})


def crystal(vectors, shape=SHAPE, step=STEP, seed=0):
    """A smooth image with the period of a lattice, of a few random harmonics, and its population variance."""
    rng = np.random.default_rng(seed)
    y, x = (step * np.arange(n) for n in shape)
    reciprocal = np.linalg.inv(np.asarray(vectors, float)).T
    image = np.full(shape, 3.0)
    for h, k in [(1, 0), (0, 1), (1, 1), (2, -1), (2, 3)]:
        g = h * reciprocal[0] + k * reciprocal[1]
        image += rng.normal() * np.cos(2 * np.pi * (g[0] * y[:, None] + g[1] * x) + rng.uniform(0, 6))
    return image, image.var()


def decibels(ratio):
    return 10 * np.log10(ratio)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 30.0, 1000.0])
def test_halves_give_the_ratio_that_was_put_in(ratio):
    rng = np.random.default_rng(5)
    signal = rng.gamma(2, 3, (300, 300))
    # Of all of the electrons the noise has variance S / ratio; each half has half the signal and half that variance.
    spread = np.sqrt(signal.var() / ratio / 2)
    first, second = (on_scan(signal / 2 + rng.normal(0, spread, signal.shape)) for _ in range(2))
    found = thinned_snr(first, 7 * second - 3)
    assert float(found["snr_db"]) == pytest.approx(decibels(ratio), abs=0.15)
    dense = np.corrcoef(first.values.ravel(), second.values.ravel())[0, 1]
    assert float(found["correlation"]) == pytest.approx(dense, abs=1e-12)
    assert found["snr_db"].attrs["units"] == "dB"


def test_poisson_counts_have_the_ratio_that_counting_electrons_says():
    rng = np.random.default_rng(1)
    expected, _ = crystal(np.diag([10.3, 6.0]), (60, 60))
    expected = 40 * (expected - expected.min() + 1)
    counts = tdm.label_counts(rng.poisson(expected[..., None, None] / 16, (60, 60, 4, 4)).astype(np.uint16))
    mask = xr.DataArray(np.ones((4, 4)), dims=("ky", "kx"))
    true = decibels(expected.var() / expected.mean())
    found = [
        float(thinned_snr(*(tdm.apply_mask(h, mask) for h in split_electrons(counts, seed=seed)))["snr_db"])
        for seed in range(4)
    ]
    assert np.mean(found) == pytest.approx(true, abs=0.3)


@pytest.mark.long
@pytest.mark.parametrize("ratio", [0.2, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("vectors", [[[10.332, 0], [0, 6.01]], [[4.1, 0.3], [1.2, 5.2]], [[0, 6.01], [-10.332, 0]]])
def test_a_lattice_gives_the_ratio_that_was_put_in(ratio, vectors):
    signal, variance = crystal(vectors)
    rng = np.random.default_rng(7)
    images = signal + rng.normal(0, np.sqrt(variance / ratio), (30, *SHAPE))
    found = lattice_snr(on_scan(images), vectors)
    # Of thirty images, the mean of what is estimated without bias.
    assert float(found["noise_variance"].mean()) == pytest.approx(variance / ratio, rel=0.02)
    limit = 4 * np.sqrt((4 * variance**2 / ratio + 2 * (variance / ratio) ** 2) / signal.size / 30)
    assert abs(float(found["signal_variance"].mean()) - variance) < limit + 0.01 * variance / ratio
    both = decibels(found["signal_variance"] / found["noise_variance"])
    np.testing.assert_allclose(found["snr_db"], both)


@pytest.mark.long
@pytest.mark.parametrize("cell", [(10.332, 6.01), (2.56, 2.56), [[2.56, 0.0], [1.28, 2.24]]])
def test_a_fit_equals_a_dense_one_by_least_squares(cell):
    rng = np.random.default_rng(2)
    vectors = np.diag(cell) if np.ndim(cell) == 1 else np.array(cell)
    image = crystal(vectors)[0] + rng.normal(0, 0.4, SHAPE)
    used = rng.random(SHAPE) < 0.8
    g = np.linalg.inv(vectors).T
    y, x = np.nonzero(used)
    columns = []
    for h in range(-40, 41):
        for k in range(-40, 41):
            wave = h * g[0] + k * g[1]
            if (np.abs(wave) <= 0.5 / STEP + 1e-12).all():
                phase = 2 * np.pi * STEP * (wave[0] * y + wave[1] * x)
                columns += [np.cos(phase), np.sin(phase)]
    basis = np.stack(columns, 1)
    values = image[used]
    coefficients, _, rank, _ = np.linalg.lstsq(basis, values, rcond=1e-6)
    fit = basis @ coefficients
    noise = ((values - fit) ** 2).sum() / (len(values) - rank)
    signal = fit.var() - (rank - 1) * noise / len(values)
    found = lattice_snr(on_scan(image), cell, scan_region=used)
    assert int(found["harmonics"]) == rank
    assert float(found["noise_variance"]) == pytest.approx(noise, rel=1e-6)
    assert float(found["signal_variance"]) == pytest.approx(signal, rel=1e-6)


def test_noise_alone_has_no_signal_and_a_perfect_crystal_no_noise():
    rng = np.random.default_rng(3)
    noise = lattice_snr(on_scan(rng.normal(size=(40, *SHAPE))), (10.332, 6.01))
    assert float(noise["signal_variance"].mean()) < 0.02
    assert (noise["snr_db"] < -10).any()
    perfect = lattice_snr(on_scan(crystal(np.diag([10.332, 6.01]))[0]), (10.332, 6.01))
    assert float(perfect["snr_db"]) > 200
    same = on_scan(rng.normal(size=SHAPE))
    assert float(thinned_snr(same, same)["snr_db"]) > 100
    assert float(thinned_snr(same, -same)["snr_db"]) == -np.inf


def test_a_wall_between_two_domains_looks_like_noise_and_one_domain_does_not():
    signal, variance = crystal(np.diag([4.0, 4.0]))
    image = np.where(np.arange(SHAPE[1]) < 28, signal, np.roll(signal, 5, axis=0))
    image = on_scan(image + np.random.default_rng(1).normal(0, np.sqrt(variance / 100), SHAPE))
    one = lattice_snr(image, (4, 4), scan_region=(slice(None), slice(0, 28)))
    assert float(one["snr_db"]) == pytest.approx(20, abs=0.7)
    assert float(lattice_snr(image, (4, 4))["snr_db"]) < 10


def test_missing_patterns_and_other_positions_do_not_count():
    rng = np.random.default_rng(4)
    signal, _ = crystal(np.diag([10.332, 6.01]))
    first, second = (on_scan(signal + rng.normal(0, 0.3, SHAPE)) for _ in range(2))
    valid = np.ones(SHAPE, bool)
    valid[3, 4] = valid[10] = False
    region = (slice(0, 50), slice(5, 56))
    flags = np.zeros(SHAPE, bool)
    flags[region] = True
    damaged = first.copy(data=np.where(valid, first.values, 1e6)).assign_coords(valid_patterns=(("y", "x"), valid))
    holed = first.where(valid)
    dense = np.corrcoef(first.values[valid & flags], second.values[valid & flags])[0, 1]
    for image in (damaged, holed):
        assert float(thinned_snr(image, second, scan_region=region)["correlation"]) == pytest.approx(dense)
        a = lattice_snr(image, (10.332, 6.01), scan_region=region)
        b = lattice_snr(first, (10.332, 6.01), scan_region=valid & flags)
        xr.testing.assert_allclose(a, b)


def test_images_of_several_templates_keep_their_names_lazy_or_not():
    rng = np.random.default_rng(4)
    images = on_scan(rng.normal(size=(3, *SHAPE)) + crystal(np.diag([10.332, 6.01]))[0])
    other = images + rng.normal(0, 0.1, images.shape)
    lazy = images.copy(data=da.from_array(images.values, chunks=(1, 20, 20))).transpose("y", "template", "x")
    xr.testing.assert_allclose(thinned_snr(lazy, other), thinned_snr(images, other))
    assert list(thinned_snr(images, other)["template"].values) == ["image 0", "image 1", "image 2"]
    found = lattice_snr(lazy, (10.332, 6.01))
    assert found["snr_db"].dims == ("template",)
    for n in range(3):
        alone = lattice_snr(images[n], (10.332, 6.01))
        assert float(alone["snr_db"]) == pytest.approx(float(found["snr_db"][n]))
        xr.testing.assert_allclose(thinned_snr(images[n], other[n]), thinned_snr(images, other).isel(template=n))


def test_weights_matched_to_shot_noise_are_the_pearson_mask_on_d_hat():
    rng = np.random.default_rng(8)
    counts = tdm.label_counts(rng.poisson(rng.gamma(2, 2, (20, 21, 1, 1)) * rng.gamma(2, 2, (7, 8))).astype(np.uint16))
    template = tdm.apply_mask(counts, xr.DataArray(np.eye(7, 8), dims=("ky", "kx")))
    mask = tdm.derive_mask(counts, template)
    d_hat = tdm.apply_mask(counts, mask, normalisation="standardised")
    weights = (mask / mask["std"]).drop_vars(["mean", "std", "n", "detector_region"])
    raw = tdm.apply_mask(counts, weights)
    assert float((raw - d_hat).std()) < 1e-9 * float(d_hat.std())


ONES = on_scan(np.ones(SHAPE))
RANDOM = on_scan(np.random.default_rng(0).normal(size=SHAPE))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: thinned_snr(ONES, RANDOM), "InputError", "same at every position"),
        (lambda: thinned_snr(RANDOM, RANDOM.isel(y=slice(5))), "InputError", "along y"),
        (lambda: thinned_snr(RANDOM, RANDOM.expand_dims("template")), "InputError", "expected the same"),
        (lambda: thinned_snr(RANDOM.values, RANDOM), "InputError", "ndarray"),
        (lambda: thinned_snr(RANDOM, RANDOM, scan_region=np.zeros(SHAPE, bool)), "RegionError", "empty"),
        (lambda: thinned_snr(RANDOM, RANDOM * np.nan), "RegionError", "at least two"),
        (lambda: lattice_snr(ONES, (10.332, 6.01)), "InputError", "same at every position"),
        (lambda: lattice_snr(RANDOM, (40.0, 40.0)), "InputError", "more unit cells"),
        (lambda: lattice_snr(RANDOM, (4.0, 0.0)), "InputError", "no area"),
        (lambda: lattice_snr(RANDOM, [[4.0, 0.0], [8.0, 0.0]]), "InputError", "parallel"),
        (lambda: lattice_snr(RANDOM, 4.0), "InputError", "two lengths"),
        (lambda: lattice_snr(RANDOM.drop_vars("y"), (4.0, 4.0)), "CoordinateError", "angstrom"),
        (lambda: lattice_snr(RANDOM.expand_dims("ky"), (4.0, 4.0)), "InputError", "dims"),
    ],
)
def test_what_has_no_ratio_is_refused(call, error, sentence):
    with pytest.raises(getattr(tdm.errors, error), match=sentence):
        call()
