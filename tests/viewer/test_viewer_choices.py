"""What is chosen on the page and the recipe that says so are the same thing, there and back."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdm_dask.errors import RecipeError, UnitError
from tdm_dask.recipe.recipe_file import load_recipe
from tdm_dask.viewer.choices import DRAWS, Choices, read_toml

ODD = ["Li", "P+O", 'a"b', "O.1", "µ-Ti (sub)", "a/b", "日本", "", " ", "=", "#", "[x]", "\\n", "'", "0"]
NUMBER = st.floats(-500, 500).map(lambda value: value + 0.0)
POSITIVE = st.floats(1e-3, 500)
ANGLES = st.tuples(st.floats(0, 100), st.floats(1e-3, 100)).map(lambda p: (p[0], p[0] + p[1]))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=12)
REGION = st.tuples(*[st.tuples(st.integers(0, 90), st.integers(1, 90)).map(lambda p: (p[0], sum(p)))] * 2)


@st.composite
def choices(draw):
    """Anything that a recipe can hold and the page can show."""
    names = draw(st.lists(st.sampled_from(ODD) | TEXT, min_size=1, max_size=8, unique=True))
    places = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=4).map(np.array)
    sites = {name: draw(places) for name in names[1:]}
    method = draw(st.sampled_from(["pearson", "mean-scaled", "ridge"]))
    rest = {"": draw(st.fixed_dictionaries({}, optional={"title": TEXT.filter(bool), "notes": TEXT.filter(bool)}))}
    rest["calibration"] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "semi_angle": st.just("23.5 mrad") | POSITIVE,
                "scan_step": st.just(["0.3 Å", "0.31 Å"]) | POSITIVE,
                "centre": st.just([18.5, 19]),
                "energy": st.just("200 keV"),
                "descan": st.booleans(),
                "flip": st.booleans(),
            },
        )
    )
    cell = None
    if sites:
        if draw(st.booleans()) and "all" not in names:
            rest["templates"] = {"all_name": "all"}
        usual = "none" if method == "mean-scaled" else "standardised"
        asked = draw(st.sampled_from(["none", "standardised"]))
        rest["images"] = {} if asked == usual else {"normalisation": asked}
        if method == "ridge":
            rest["masks"] = draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "objective": st.sampled_from(["both", "R", "excess"]),
                        "counts_per_electron": st.floats(0.5, 100),
                    }
                    | ({} if rest.get("templates") else {"separate": st.booleans()}),
                )
            )
            if "all" in rest.get("templates", {}).values():
                rest["masks"].pop("separate", None)
        if draw(st.booleans()):
            cell = np.array(draw(st.tuples(*[st.tuples(NUMBER, NUMBER)] * 2)))
            draws = draw(st.integers(20, 500).filter(lambda n: n != DRAWS) | st.none())
            rest["evidence"] = {} if draws is None else {"draws": draws}
    penalty = draw(POSITIVE)
    if method == "ridge":
        penalty = draw(st.just("cross-validated")) if draw(st.booleans()) else penalty
        if penalty != "cross-validated":
            rest.get("masks", {}).pop("objective", None)  # it goes with cross-validation
    else:
        penalty = Choices().regularisation  # a recipe of another method has none
    return Choices(
        sites=sites,
        sigma=draw(POSITIVE) if sites else Choices().sigma,
        method=method if sites else "pearson",
        regularisation=penalty if sites else Choices().regularisation,
        radius=draw(POSITIVE | st.none()) if sites else None,
        scan_region=sum(draw(REGION), ()) if sites and draw(st.booleans()) else None,
        detectors={f"detector {n}": draw(ANGLES) for n in range(draw(st.integers(1, 3)))},
        cell=cell,
        rest={name: section for name, section in rest.items() if section},
    )


@settings(deadline=None, max_examples=60)
@given(choices())
def test_choices_come_back_from_their_recipe_and_its_text(chosen):
    recipe = chosen.recipe("scan.zarr")
    assert Choices.from_recipe(recipe) == chosen
    text = chosen.toml("scan.zarr")
    assert tomllib.loads(text)["source"] == {"path": "scan.zarr"}
    assert load_recipe(tomllib.loads(text)).asks() == load_recipe(recipe).asks()
    assert read_toml(text.encode(), "recipe.toml", "scan.zarr") == chosen


@settings(deadline=None, max_examples=60)
@given(choices(), choices())
def test_choices_are_the_same_where_their_recipes_are(first, second):
    assert (first == second) == (first.recipe("a") == second.recipe("a"))
    assert first.same_masks(first.with_(detectors={"other": (0.0, 1.0)}, cell=np.eye(2)))
    assert first.same_masks(first.with_(sites={**first.sites, "empty": np.empty((0, 2))}))
    for changes in ({"sigma": 777.0}, {"radius": 777.0}, {"scan_region": (0, 777, 0, 1)}, {"sites": {"o": np.eye(2)}}):
        assert not first.same_masks(first.with_(**changes))
    assert not first.same_masks(first.with_(rest={**first.rest, "calibration": {"semi_angle": 777.0}}))


def test_kinds_without_sites_and_what_needs_sites_are_not_in_a_recipe():
    chosen = Choices(sites={"Li": np.empty((0, 2))}, detectors={"BF": (0.0, 24.0)}, cell=np.eye(2))
    assert chosen.recipe("scan.zarr") == {"source": {"path": "scan.zarr"}, "detectors": {"BF": "disk:24.0"}}
    mixed = chosen.with_(sites={"Li": np.empty((0, 2)), "O": np.ones((1, 2))})
    assert list(mixed.recipe("scan.zarr")["templates"]["sites"]) == ["O"]


def test_values_of_numpy_are_plain_in_the_text():
    chosen = Choices(
        sites={"Li": np.ones((1, 2), np.float32)},
        radius=np.float64(24.1),
        detectors={"ADF": (np.float64(30.0), np.float32(60.0))},
    )
    recipe = tomllib.loads(chosen.toml("scan.zarr"))
    assert recipe["masks"]["detector_region"] == "disk:24.1"
    assert recipe["detectors"] == {"ADF": "annulus:30.0:60.0"}


def recipe(**sections):
    base = {
        "source": {"path": "scan.zarr"},
        "templates": {"sites": {"Li": [[1.0, 2.0]]}, "sigma": "40 pm"},
    }
    return {name: {**base.get(name, {}), **section} for name, section in (base | sections).items()}


def test_what_recipes_say_in_other_words_is_understood():
    found = Choices.from_recipe(
        recipe(
            masks={"detector_region": " Disk:24 mrad", "scan_region": {"y": [0, 4], "x": [2, 8]}},
            detectors={"a": "bf:12", "b": "ADF:30 mrad:0.06 rad", "c": "annulus:0:5"},
            evidence={"cell": ["1.033 nm", 6.01]},
        )
    )
    assert found.sigma == pytest.approx(0.4)
    assert found.radius == 24
    assert found.scan_region == (0, 4, 2, 8)
    assert found.detectors == {"a": (0, 12), "b": (30, 60), "c": (0, 5)}
    np.testing.assert_allclose(found.cell, [[10.33, 0], [0, 6.01]])
    chosen = recipe(masks={"method": "ridge"})
    assert Choices.from_recipe(chosen).regularisation == "cross-validated"
    kinds = recipe(templates={"sites": {"Li": [[1, 2]], "O": [[0, 0]]}, "sigma": 0.4, "kinds": ["O"]})
    assert list(Choices.from_recipe(kinds).sites) == ["O"]


def test_choices_that_were_saved_under_old_names_of_keys_open_still():
    new = recipe(masks={"method": "ridge", "detector_region": "disk:24", "counts_per_electron": 2.0})
    old = recipe(masks={"method": "ridge", "within": "disk:24", "gain": 2.0})
    with pytest.warns(FutureWarning, match="is now called"):
        found = Choices.from_recipe(old)
    assert found == Choices.from_recipe(new)
    assert (found.radius, found.rest["masks"]) == (24, {"counts_per_electron": 2.0})


def test_an_image_that_is_not_the_methods_own_stays_as_the_recipe_wants_it():
    found = Choices.from_recipe(recipe(images={"normalisation": "none"}))
    assert found.normalisation == "none"
    assert found.recipe("scan.zarr")["images"] == {"normalisation": "none"}
    assert not found.same_masks(Choices.from_recipe(recipe()))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"templates": {"shape": "binary", "radius": 1.0, "sigma": None}}, 'templates of shape "binary"'),
        ({"masks": {"detector_region": "annulus:3:24"}}, "the viewer has a disk"),
        ({"masks": {"detector_region": "bf"}}, "the viewer has a disk"),
        ({"masks": {"scan_region": {"y": [0, 3]}}}, "scan_region has no x"),
        ({"detectors": {"HAADF": "haadf"}}, "needs both its angles"),
        ({"detectors": {"ADF": "adf:30"}}, 'such as "adf:30:60"'),
        ({"detectors": {"Li": "bf:12"}}, "names a detector and a template"),
        ({"masks": {"method": "other"}}, "method"),
        ({"masks": {"unknown": 1}}, '"unknown"'),
    ],
)
def test_recipes_that_the_page_cannot_show_are_refused(sections, said):
    asked = recipe(**sections)
    asked["templates"] = {key: value for key, value in asked["templates"].items() if value is not None}
    with pytest.raises(RecipeError, match=said):
        Choices.from_recipe(asked)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"source = [", "recipe.toml is not valid TOML"),
        (b"\xff\xfe", "recipe.toml is not valid TOML"),
        (b"", "asks for no image"),
        (b"templates = 3", r"\[templates\] must be a table"),
        (b'[templates]\nsites = "../../etc/passwd"\nsigma = 0.4\n', "open the sites as a file of their own"),
        (b"[templates]\nsites = {Li = [[1, 2]]}\nsigma = 'wide'\n", "sigma"),
        (b"[templates.sites]\nLi = 3\n", "sigma"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_and_no_other_file_is_read(content, said):
    with pytest.raises((RecipeError, UnitError), match=said):
        read_toml(content, "recipe.toml", "scan.zarr")


@pytest.mark.long
def test_choices_and_numbers_need_no_panel():
    code = "import sys, tdm_dask.viewer.engine; sys.exit('panel' in sys.modules or 'bokeh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
