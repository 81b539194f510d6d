"""Recipes: whole analyses from one file."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import tdm_dask as tdm
from tdm_dask.errors import CorruptStoreError, InputError, RecipeError, SourceError, UnitError
from tdm_dask.evaluation.verdict import evidence
from tdm_dask.reading.lazy import source_of
from tdm_dask.recipe.recipe_file import load_recipe
from tdm_dask.recipe.run import run_recipe

DATA = Path(__file__).resolve().parents[2] / "tdm_dask" / "data"
DEMO = DATA / "demo.toml"
SITES = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))
KINDS = ["Li", "Fe", "P+O", "O"]


def asking(**sections) -> dict:
    """The recipe of the demo, with other sections."""
    return {
        "source": {"path": str(DATA / "lifepo4_001.mib")},
        "calibration": {"semi_angle": 23.5, "scan_step": 0.3225},
        "templates": {"sites": {"Li": SITES["Li"], "O": SITES["O"]}, "sigma": "35 pm"},
        **sections,
    }


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    frame = np.dtype([("header", "S384"), ("counts", ">u2", (38, 38))])
    counts = np.fromfile(DATA / "lifepo4_001.mib", frame)["counts"][:, ::-1]
    return counts.reshape(42, 42, 38, 38).astype(np.float64)


class Stages:
    """Records which stages ran."""

    def __init__(self, fail: str = "") -> None:
        self.names: list[str] = []
        self.fail = fail

    @contextmanager
    def __call__(self, name, nbytes=None):
        self.names.append(name)
        if name == self.fail:
            raise RuntimeError(f"{name} failed")
        yield


def close(found, expected) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def dense_masks(counts: np.ndarray, templates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson correlations (template, pixel), and standardised counts (probe, pixel)."""
    flat = counts.reshape(-1, 38 * 38)
    standard = (flat - flat.mean(0)) / flat.std(0)
    rows = templates.reshape(len(templates), -1)
    rows = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
    return rows @ standard / len(flat), standard


@pytest.mark.long
def test_the_demo_calibrates_the_detector_and_the_scan(demo):
    counts = demo.counts
    assert counts.kx.attrs["units"] == "mrad"
    assert counts.x.attrs["units"] == "angstrom"
    step = float(counts.kx[1] - counts.kx[0])
    assert step == pytest.approx(2.4273, rel=0.01)
    assert -float(counts.ky[0]) / step == pytest.approx(18.75, abs=0.1)
    assert -float(counts.kx[0]) / step == pytest.approx(18.75, abs=0.1)
    np.testing.assert_array_equal(tdm.open(demo.store).kx, counts.kx)


def test_masks_of_the_demo_equal_a_dense_oracle(demo, dense):
    rho, _ = dense_masks(dense, demo.masks.templates.values)
    weights = demo.masks.detector_region.values.ravel()
    close(demo.masks["mask"].values.reshape(5, -1), rho * weights)
    assert list(demo.masks.template.values) == [*KINDS, "all"]
    radius = np.hypot(*np.meshgrid(demo.counts.ky, demo.counts.kx, indexing="ij")).ravel()
    assert (weights[radius < 22] == 1).all()
    assert (weights[radius > 26] == 0).all()


def test_images_of_masks_and_of_detectors_from_one_read_equal_a_dense_oracle(demo, dense):
    masks, images = demo.masks, demo.images
    _, standard = dense_masks(dense, masks.templates.values)
    expected = standard @ masks["mask"].values.reshape(5, -1).T
    close(images["image"].values.reshape(5, -1), expected.T)
    detectors = masks["detectors"].values.reshape(2, -1)
    close(images["virtual"].values.reshape(2, -1), (dense.reshape(-1, 38 * 38) @ detectors.T).T)
    assert list(images.detector.values) == ["ABF", "ADF"]


def test_the_table_compares_every_image_with_every_template(demo):
    kinds = demo.images["image"].sel(template=KINDS).values.reshape(4, -1)
    templates = demo.masks.templates.sel(template=KINDS).values.reshape(4, -1)
    dense = np.corrcoef(kinds, templates)
    close(demo.evaluation.R.values, dense[:4, 4:])
    close(demo.evaluation.G.values, dense[4:, 4:])
    assert set(demo.evaluation.other_image.values) == {"all", "ABF", "ADF"}
    others = np.concatenate([demo.images["image"].values[4:], demo.images.virtual.values]).reshape(3, -1)
    close(demo.evaluation.other.values, np.corrcoef(others, templates)[:3, 3:])


def test_the_demo_keeps_the_columns_as_far_apart_as_the_sample_allows(demo):
    diagonal = [float(demo.evaluation.R.sel(image=kind, template=kind)) for kind in KINDS]
    assert diagonal == pytest.approx([0.858, 0.708, 0.614, 0.777], abs=0.03)


def test_results_are_readable_by_plain_xarray(demo):
    masks = xr.open_zarr(demo.results, group="masks", consolidated=False)
    images = xr.open_datatree(demo.results, engine="zarr", consolidated=False)["images"]
    np.testing.assert_array_equal(masks["mask"], demo.masks["mask"])
    assert images["image"].dims == ("template", "y", "x")
    assert images.x.attrs["units"] == "angstrom"
    assert images["image"].sel(template="P+O").shape == (42, 42)


@pytest.mark.long
def test_correlating_and_applying_read_the_counts_once_each(tmp_path, monkeypatch):
    from tdm_dask.reading.blocks import Shards

    reads = []
    runs = Shards.runs

    def counted(self, *args, **kwargs):
        reads.append(stages.names[-1])
        return runs(self, *args, **kwargs)

    monkeypatch.setattr(Shards, "runs", counted)
    stages = Stages()
    run_recipe(DEMO, tmp_path / "out", stage=stages)
    assert stages.names == ["convert", "calibrate", "correlate", "images", "evidence"]
    assert reads == ["correlate", "images", "evidence", "evidence"]


def test_a_second_run_takes_up_every_finished_stage(demo):
    stages = Stages()
    again = run_recipe(DEMO, demo.out, stage=stages)
    assert not {"correlate", "images"} & set(stages.names)
    xr.testing.assert_identical(again.images, demo.images)
    xr.testing.assert_identical(again.evaluation, demo.evaluation)


def test_results_stand_when_the_file_of_counts_came_anew(tmp_path):
    """As the sample of `tdm demo` does when the package is installed again."""
    for name in ("lifepo4_001.mib", "lifepo4_001.hdr"):
        shutil.copy(DEMO.parent / name, tmp_path)
    recipe = asking(source={"path": str(tmp_path / "lifepo4_001.mib")}, detectors={"BF": "disk:10"})
    del recipe["templates"]
    run_recipe(recipe, tmp_path / "out")
    os.utime(tmp_path / "lifepo4_001.mib", (1, 1))
    stages = Stages()
    run_recipe(recipe, tmp_path / "out", stage=stages)
    assert "images" not in stages.names


def test_a_recipe_with_old_names_of_keys_is_run_with_a_warning_and_is_the_same_recipe(tmp_path):
    out, new = tmp_path / "out", {"method": "ridge", "regularisation": 0.3, "detector_region": "disk:9"}
    made = run_recipe(asking(masks={**new, "counts_per_electron": 1.0}), out)
    old = {"method": "ridge", "regularisation": 0.3, "within": "disk:9", "gain": 1.0}
    stages = Stages()
    with pytest.warns(FutureWarning) as said:
        again = run_recipe(asking(masks=old), out, stage=stages)
    assert sorted(str(warning.message) for warning in said) == [
        "[masks] gain is now called [masks] counts_per_electron; the old name works in this release alone.",
        "[masks] within is now called [masks] detector_region; the old name works in this release alone.",
    ]
    assert "correlate" not in stages.names
    xr.testing.assert_identical(again.masks, made.masks)
    with pytest.raises(InputError, match=r"\[masks\] within and \[masks\] detector_region are the same; leave out"):
        load_recipe(asking(masks=new | {"within": "disk:9"}))


def test_results_of_before_keys_were_renamed_and_files_had_checksums_are_taken_up(tmp_path):
    out, recipe = tmp_path / "out", asking(masks={"detector_region": "disk:9"})
    run_recipe(recipe, out)
    note = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    masks = note["recipe"]["masks"]
    masks |= {"within": masks.pop("detector_region"), "gain": masks.pop("counts_per_electron")}
    del note["source"]["sha256"], note["format"]
    (out / "recipe.json").write_text(json.dumps(note), encoding="utf-8")
    place = out / "counts.zarr" / "zarr.json"
    store = json.loads(place.read_text(encoding="utf-8"))
    source = store["attributes"]["tdm_dask"]["source"]
    for file in (source, *source["linked"]):
        del file["sha256"]
    place.write_text(json.dumps(store), encoding="utf-8")
    shards = {path: path.stat().st_mtime_ns for path in (out / "counts.zarr" / "counts" / "c").rglob("*")}
    stages = Stages()
    run_recipe(recipe, out, stage=stages)
    assert not {"correlate", "images"} & set(stages.names)
    assert all(path.stat().st_mtime_ns == time for path, time in shards.items())


def test_an_error_of_a_run_names_the_keys_of_the_recipe(tmp_path):
    source = {"path": str(DATA / "lifepo4_001.mib"), "scan_shape": [40, 42]}
    with pytest.raises(InputError, match=r"but \[source\] scan_shape = \[40, 42\] has 1680 probe positions"):
        run_recipe(asking(source=source), tmp_path / "out")


def test_counts_are_kept_as_they_are_where_the_recipe_asks_for_no_compression(tmp_path):
    source = {"path": str(DATA / "lifepo4_001.mib"), "compression": "none"}
    result = run_recipe(asking(source=source), tmp_path / "out")
    assert source_of(result.counts.data).array.codec.compressor is None


@pytest.mark.long
def test_a_run_that_failed_goes_on_after_its_last_finished_stage(tmp_path, demo):
    with pytest.raises(RuntimeError):
        run_recipe(DEMO, tmp_path / "out", stage=Stages(fail="images"))
    stages = Stages()
    result = run_recipe(DEMO, tmp_path / "out", stage=stages)
    assert "correlate" not in stages.names
    assert "images" in stages.names
    xr.testing.assert_equal(result.images, demo.images)


def test_results_of_another_recipe_are_replaced_only_on_request(tmp_path):
    out = tmp_path / "out"
    first = run_recipe(asking(), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = asking(masks={"detector_region": "disk:15"})
    with pytest.raises(RecipeError, match="another recipe"):
        run_recipe(other, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    second = run_recipe(other, out, overwrite=True)
    assert float(abs(second.masks["mask"]).sum()) < float(abs(first.masks["mask"]).sum())


def test_counts_are_not_converted_again_for_a_recipe_that_was_mended(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        run_recipe(asking(), out, stage=Stages(fail="correlate"))
    shards = {path: path.stat().st_mtime_ns for path in (out / "counts.zarr" / "counts" / "c").rglob("*")}
    result = run_recipe(asking(calibration={"semi_angle": 20.0, "scan_step": 0.3225}), out)
    assert {path: path.stat().st_mtime_ns for path in (out / "counts.zarr" / "counts" / "c").rglob("*")} == shards
    assert result.counts.attrs["semi_angle_mrad"] == 20.0
    np.testing.assert_array_equal(tdm.open(result.store).kx, result.counts.kx)


@pytest.mark.long
def test_a_calibration_that_the_recipe_no_longer_has_is_gone(tmp_path):
    out = tmp_path / "out"
    run_recipe(asking(calibration={"semi_angle": 23.5, "scan_step": 0.3225, "energy": "200 keV"}), out)
    result = run_recipe(asking(), out, overwrite=True)
    assert "energy_eV" not in result.counts.attrs
    assert "energy_eV" not in tdm.open(result.store).attrs


def test_a_store_of_the_users_is_read_and_not_changed(tmp_path, demo):
    store = tmp_path / "mine.zarr"
    shutil.copytree(demo.store, store)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    result = run_recipe(asking(source={"path": str(store)}, calibration={"scan_step": 0.4}), tmp_path / "out")
    assert result.store == store
    assert float(result.counts.x[1]) == pytest.approx(0.4)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_recipe_may_ask_for_detectors_alone(tmp_path, dense):
    recipe = asking(detectors={"BF": "disk:10"})
    del recipe["templates"]
    result = run_recipe(recipe, tmp_path / "out")
    weights = result.masks["detectors"].values[0]
    close(result.images["virtual"].values[0], (dense * weights).sum((2, 3)))
    assert "image" not in result.images
    assert not result.evaluation.variables
    assert not result.evidence.variables


def test_mean_scaled_masks_are_applied_to_the_counts_as_they_are(tmp_path, dense):
    recipe = asking(masks={"method": "mean-scaled"}, images={"normalisation": "none"})
    result = run_recipe(recipe, tmp_path / "out")
    rho, _ = dense_masks(dense, result.masks.templates.values)
    expected = rho / dense.reshape(-1, 38 * 38).mean(0)
    close(result.masks["mask"].values.reshape(2, -1), expected)
    close(result.images["image"].values.reshape(2, -1), (dense.reshape(-1, 38 * 38) @ expected.T).T)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"regularisation": 0.3, "separate": True, "counts_per_electron": 1.0}])
def test_ridge_masks_are_those_of_derive_mask_and_take_one_read(options, tmp_path, monkeypatch):
    from tdm_dask.reading.blocks import Shards

    reads = []
    runs = Shards.runs

    def counted(self, *args, **kwargs):
        reads.append(stages.names[-1])
        return runs(self, *args, **kwargs)

    monkeypatch.setattr(Shards, "runs", counted)
    stages = Stages()
    masks = {"method": "ridge", "detector_region": "disk:20", "scan_region": {"y": [0, 30]}, **options}
    made = run_recipe(asking(masks=masks), tmp_path / "out", stage=stages)
    assert reads == ["correlate", "images"]
    again = run_recipe(asking(masks=masks), tmp_path / "out", stage=stages)
    assert reads == ["correlate", "images"]
    xr.testing.assert_identical(again.masks, made.masks)
    region = tdm.disk(made.counts, 20.0)
    part = (slice(0, 30), slice(None))
    expected = tdm.derive_mask(
        made.counts, made.masks.templates, method="ridge", detector_region=region, scan_region=part, **options
    ).compute()
    close(made.masks["mask"].values, expected.values)
    close(made.masks["rho"].values, expected["rho"].values)
    assert float(made.masks["regularisation"]) == float(expected["regularisation"])
    image = tdm.apply_mask(made.counts, expected, normalisation="standardised")
    close(made.images["image"].values, image.values)
    pearson = run_recipe(asking(masks={**masks, "method": "pearson"} if not options else {}), tmp_path / "pearson")
    assert float(made.evaluation["excess"].max()) < float(pearson.evaluation["excess"].max())


def test_a_partial_template_is_derived_in_its_region_and_applied_everywhere(tmp_path, dense):
    recipe = asking(masks={"scan_region": {"y": [4, 36], "x": [0, 19]}})
    result = run_recipe(recipe, tmp_path / "out")
    part = dense[4:36, :19]
    rho, _ = dense_masks(part, result.masks.templates.values[:, 4:36, :19])
    close(result.masks["mask"].values.reshape(2, -1), rho)
    standard = (dense.reshape(-1, 38 * 38) - part.mean((0, 1)).ravel()) / part.std((0, 1)).ravel()
    close(result.images["image"].values.reshape(2, -1), (standard @ rho.T).T)
    assert int(result.masks["n"]) == 32 * 19


@pytest.fixture(scope="module")
def with_evidence(tmp_path_factory):
    recipe = asking(evidence={"cell": [10.332, "601 pm"], "draws": 20}, masks={"detector_region": "disk:24"})
    stages = Stages()
    return recipe, run_recipe(recipe, tmp_path_factory.mktemp("evidence") / "out", stage=stages), stages


@pytest.mark.long
def test_evidence_is_a_stage_of_its_own(with_evidence):
    recipe, result, stages = with_evidence
    assert stages.names == ["convert", "calibrate", "correlate", "images", "evidence"]
    found = evidence(
        result.counts,
        {kind: np.array(SITES[kind]) for kind in ("Li", "O")},
        (10.332, 6.01),
        sigma=0.35,
        draws=20,
        detector_region=tdm.disk(result.counts, 24.0),
    )
    assert result.evidence["sentence"].values.tolist() == list(found.sentences.values())
    close(result.evidence["response"].values, found.offsets["response"].values)
    stored = xr.open_zarr(result.results, group="evidence", consolidated=False)
    assert stored["verdict"].values.tolist() == found.table["verdict"].values.tolist()
    again = Stages()
    xr.testing.assert_identical(run_recipe(recipe, result.out, stage=again).evidence, result.evidence)
    assert "evidence" not in again.names


def test_contrast_is_part_of_the_evaluation(demo):
    images = demo.images["image"].sel(template=KINDS)
    expected = tdm.site_contrast(images, {kind: np.array(SITES[kind]) for kind in KINDS})
    close(demo.evaluation["contrast"].values, expected.values)


def test_binary_templates_and_chosen_kinds(tmp_path):
    sites = {kind: [[1.0, 2.0], [5.0, 5.0]] for kind in KINDS}
    templates = {"sites": sites, "kinds": ["O"], "shape": "binary", "radius": 0.4}
    result = run_recipe(asking(templates=templates), tmp_path / "out")
    assert list(result.masks.template.values) == ["O"]
    assert set(np.unique(result.masks.templates)) == {0.0, 1.0}


def test_sites_far_outside_the_scan_are_named(tmp_path):
    sites = {"Li": [*SITES["Li"], [500.0, 500.0]]}
    with pytest.warns(UserWarning, match="1 of 16 sites"):
        result = run_recipe(asking(templates={"sites": sites, "sigma": 0.35}), tmp_path / "out")
    assert "1 of 16 sites" in result.masks.attrs["notes"][0]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"mask": {}}, RecipeError, 'did you mean "masks"'),
        ({"masks": {"metod": "pearson"}}, RecipeError, 'did you mean "method"'),
        ({"masks": {"method": "magic"}}, RecipeError, '"pearson" or "mean-scaled"'),
        ({"masks": {"separate": True}}, RecipeError, '[masks] separate goes with method = "ridge" alone'),
        ({"masks": {"method": "ridge", "regularisation": "some"}}, RecipeError, "[masks] The regularisation is 'some'"),
        ({"masks": {"method": "ridge", "regularisation": 0}}, RecipeError, "expected a positive number"),
        ({"masks": {"method": "ridge", "objective": "best"}}, RecipeError, "[masks] The objective is 'best'"),
        ({"masks": {"method": "ridge", "counts_per_electron": -1}}, RecipeError, "[masks] counts_per_electron = -1"),
        ({"masks": {"method": "ridge", "separate": 1}}, RecipeError, "expected true or false"),
        (
            {
                "masks": {"method": "ridge", "separate": True},
                "templates": {"sites": {"Li": SITES["Li"]}, "sigma": 0.3, "all_name": "all"},
            },
            RecipeError,
            "all_name",
        ),
        ({"masks": {"scan_region": {"z": [0, 1]}}}, RecipeError, '"y" or "x"'),
        ({"masks": {"scan_region": {"y": [0]}}}, RecipeError, "first, last"),
        ({"masks": []}, RecipeError, "must be a table"),
        ({"evidence": {}}, RecipeError, "has no cell"),
        ({"evidence": {"cell": [1, 2, 3]}}, UnitError, "3 numbers"),
        ({"evidence": {"cell": [6, 6], "draws": 3}}, RecipeError, "20 at least"),
        (
            {"evidence": {"cell": [6, 6]}, "templates": {"sites": {}, "shape": "binary", "radius": 1}},
            RecipeError,
            "Gaussian templates",
        ),
        ({"images": {"normalisation": "some"}}, RecipeError, '"none" or "standardised"'),
        ({"source": {}}, RecipeError, "has no path"),
        ({"source": {"path": 3}}, RecipeError, "expected a text"),
        ({"source": {"path": "a.mib", "frame": True}}, RecipeError, "whole number"),
        ({"templates": {"sites": {}, "shape": "gaussian"}}, RecipeError, "needs sigma"),
        ({"templates": {"sites": {}, "sigma": 0.3, "radius": 1}}, RecipeError, "does not go with"),
        ({"templates": {"sites": {}, "sigma": "0.3 mrad"}}, UnitError, "sigma"),
        ({"templates": {"sites": {}, "sigma": -0.3}}, UnitError, "positive"),
        ({"calibration": {"semi_angle": "23 Å"}}, UnitError, "semi_angle"),
        ({"calibration": {"energy": [1]}}, RecipeError, "a number or a text with a unit"),
        ({"detectors": {"ADF": 3}}, RecipeError, "expected a text"),
        ({"detectors": {"Li": "adf"}}, RecipeError, "names a detector and a template"),
        ({"detectors": {"ADF": "adg:30:45"}}, InputError, "adg"),
        ({"masks": {"detector_region": "disk"}}, InputError, "disk"),
        ({"source": {"path": "nowhere.mib"}}, SourceError, "nowhere.mib"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(change, error, sentence, tmp_path):
    with pytest.raises(error) as caught:
        run_recipe(asking(**change), tmp_path / "out")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "counts.zarr").exists()
    assert not (tmp_path / "out" / "results.zarr").exists()


def test_a_recipe_that_asks_for_nothing_is_refused():
    with pytest.raises(RecipeError, match="no image"):
        load_recipe({"source": {"path": "a.mib"}})
    with pytest.raises(RecipeError, match=r"no .source."):
        load_recipe({"detectors": {"ADF": "adf"}})


@pytest.mark.parametrize("content", [b"title = ", b"\xff\xfe", None])
def test_a_file_that_is_no_toml_is_refused(content, tmp_path):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"recipe.toml"):
        load_recipe(path)


def test_results_go_only_into_a_folder_that_can_be_made(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        run_recipe(asking(), tmp_path / "nowhere" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run_recipe(asking(), tmp_path / "file")


def test_a_damaged_store_stops_the_recipe_and_leaves_no_results(tmp_path, demo):
    store = tmp_path / "mine.zarr"
    shutil.copytree(demo.store, store)
    shard = max(store.glob("counts/c/**/*"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptStoreError):
        run_recipe(asking(source={"path": str(store)}, calibration={}), tmp_path / "out")
    assert not list((tmp_path / "out").glob("results.zarr/*"))
