"""Cross-talk of masks read on what they have not seen equals that of masks derived and applied step by step."""

from __future__ import annotations

import dask.array as da
import numpy as np
import oracle
import pytest
from counted_reads import CountingStore, assert_read_once, several_shards
from dense_ridge import dataset, dense_masks, few_pixels, labelled, some_templates
from small_stores import converted
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.errors import InputError, MemoryLimitError, RegionError, TemplateError
from tdm_dask.evaluation.cross_talk import cross_talk
from tdm_dask.evaluation.held_out import held_out_cross_talk
from tdm_dask.masks.ridge import regularisation_curve

FOLDS = {
    "top": (slice(0, 8), slice(None)),
    "bottom": (slice(8, 16), slice(None)),
    "left": (slice(None), slice(0, 8)),
    "right": (slice(None), slice(8, 16)),
}


def quartered(seed=0):
    """Counts and templates of a scan that blocks divide evenly."""
    counts, templates = dataset((16, 16, 5, 6), seed=seed)
    return counts, labelled(templates)


@pytest.mark.parametrize("layout", ["numpy", "chunked", "store"])
@pytest.mark.parametrize("ridge", [None, {}, {"separate": True, "counts_per_electron": 1.0}])
def test_halves_equal_dense_masks_of_one_half_read_on_the_other(layout, ridge, tmp_path):
    counts, template = quartered()
    region = np.random.default_rng(1).random((5, 6))
    array = {
        "numpy": lambda: tdm.label_counts(counts),
        "chunked": lambda: tdm.label_counts(da.from_array(counts, (5, 7, 3, 4))),
        "store": lambda: converted(tmp_path / "scan.zarr", counts),
    }[layout]()
    options = {} if ridge is None else {"method": "ridge", "regularisation": 0.2, **ridge}
    found = held_out_cross_talk(array, template, detector_region=region, **options)
    assert found["fold"].values.tolist() == list(FOLDS)
    for fold, half in FOLDS.items():
        used = np.zeros((16, 16), bool)
        used[half] = True
        mean, std = oracle.statistics(counts, used)
        if ridge is None:
            masks = oracle.correlation(counts, template.values, used) * region
        else:
            masks = dense_masks(counts, template.values, used, region, 0.2, **ridge)
        images = oracle.standardised_image(counts, masks, mean, std)[:, ~used]
        both = np.corrcoef(images, template.values[:, ~used])
        row = found.sel(fold=fold)
        np.testing.assert_allclose(row["R"], both[:3, 3:], atol=1e-5)
        np.testing.assert_allclose(row["G"], both[3:, 3:], atol=1e-9)
        np.testing.assert_allclose(row["own"], np.diag(both[:3, 3:]), atol=1e-5)
        apart = np.abs(both[:3, 3:] - both[3:, 3:])[~np.eye(3, dtype=bool)]
        assert float(row["excess"]) == pytest.approx(apart.max(), abs=1e-5)
    assert ("regularisation" in found) == (ridge is not None)


def test_lambda_is_chosen_inside_each_half():
    counts, template = quartered(seed=3)
    array = tdm.label_counts(counts)
    found = held_out_cross_talk(array, template, method="ridge", objective="R")
    for fold, half in FOLDS.items():
        curve = regularisation_curve(array, template, scan_region=half, objective="R")
        assert float(found["regularisation"].sel(fold=fold)) == float(curve["chosen"])
        mask = tdm.derive_mask(array, template, method="ridge", scan_region=half, objective="R")
        image = tdm.apply_mask(array, mask, normalisation="standardised")
        used = np.ones((16, 16), bool)
        used[half] = False
        table = cross_talk(image, template.assign_coords(valid_patterns=(("y", "x"), used)))
        np.testing.assert_allclose(found["R"].sel(fold=fold), table["R"], atol=1e-5)


@pytest.mark.parametrize("method", ["pearson", "ridge"])
def test_electrons_equal_masks_of_one_half_of_them_applied_to_the_other(method):
    counts, template = quartered()
    array = tdm.label_counts(counts)
    part = (slice(2, 14), slice(None))
    found = held_out_cross_talk(array, template, by="electrons", method=method, scan_region=part, seed=5)
    halves = tdm.split_electrons(array, seed=5)
    used = np.zeros((16, 16), bool)
    used[part] = True
    for fold, (own, other) in enumerate((halves, halves[::-1])):
        mask = tdm.derive_mask(own, template, method=method, scan_region=part)
        image = tdm.apply_mask(other, mask, normalisation="standardised").values[:, used]
        both = np.corrcoef(image, template.values[:, used])
        np.testing.assert_allclose(found["R"].isel(fold=fold), both[:3, 3:], atol=1e-6)
        np.testing.assert_allclose(found["G"].isel(fold=fold), both[3:, 3:], atol=1e-9)
    assert found["fold"].values.tolist() == ["first half", "second half"]


@pytest.mark.long
def test_halves_take_one_read_and_electrons_four(tmp_path):
    path, _ = several_shards(tmp_path, shape=(20, 24, 64, 96))
    store = CountingStore(LocalStore(path, read_only=True))
    for method in ("pearson", "ridge"):
        store.reads.clear()
        held_out_cross_talk(tdm.open(store), some_templates(), method=method, detector_region=few_pixels())
        assert_read_once(store, path, fraction=0.7)
    store.reads.clear()
    held_out_cross_talk(tdm.open(store), some_templates(), by="electrons", method="ridge", detector_region=few_pixels())
    ranges = store.chunk_ranges()
    assert {ranges.count(r) for r in set(ranges)} == {4}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "thirds"}, "by='thirds' was given"),
        ({"method": "mean-scaled"}, "The method is 'mean-scaled'"),
        ({"separate": True}, 'separate is an option of method="ridge" alone'),
        ({"method": "ridge", "solver": "conjugate-gradients"}, "Gram matrix alone"),
        ({"method": "ridge", "blocks": (3, 3)}, "2 x 2 blocks of each half; leave the blocks out"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    counts, template = quartered()
    with pytest.raises(InputError, match=words):
        held_out_cross_talk(tdm.label_counts(counts), template, **options)


def test_a_template_without_a_name_has_nothing_to_be_told_from():
    counts, template = quartered()
    with pytest.raises(InputError, match="The template has no name"):
        held_out_cross_talk(tdm.label_counts(counts), template[0].drop_vars("template"))


def test_a_half_without_patterns_is_refused():
    counts, template = quartered()
    with pytest.raises(RegionError, match="One half of the scan region holds no valid pattern"):
        held_out_cross_talk(tdm.label_counts(counts), template, scan_region=(slice(3, 4), slice(None)))


@pytest.mark.parametrize("method", ["pearson", "ridge"])
def test_a_template_that_is_constant_over_a_half_is_refused(method):
    counts, template = quartered()
    template = template.copy()
    template[1, 8:] = 0.25
    with pytest.raises(TemplateError, match="Template 'kind 1' is constant outside the top half"):
        held_out_cross_talk(tdm.label_counts(counts), template, method=method)


def test_too_many_pixels_are_refused():
    counts = tdm.label_counts(da.zeros((8, 8, 48, 48), dtype=np.uint16))
    template = labelled(np.random.default_rng(0).random((2, 8, 8)))
    with pytest.raises(MemoryLimitError, match=r"at most 2048 pixels are taken: sum pixels with tdm_dask\.bin"):
        held_out_cross_talk(counts, template)
