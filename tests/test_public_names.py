"""Public names, their parameters and the command line's options: none that there was before is lost.

`public_names.json` has what there was before the modules moved into wings. A name may come, a parameter too, if it has
a default and no place among those that are given by place. What is renamed stands here, and is still taken.
"""

from __future__ import annotations

import ast
import inspect
import json
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import public
import pytest

import tdm_dask as tdm
from tdm_dask.cli import tdm as command_line
from tdm_dask.recipe.recipe_file import load_recipe
from tdm_dask.renamed import MOVED

BEFORE = json.loads(Path(__file__).with_name("public_names.json").read_text(encoding="utf-8"))
NOW = dict(public.functions())
RENAMED = {
    "tdm.thin": {"gain": "counts_per_electron"},
    "tdm.split_electrons": {"gain": "counts_per_electron"},
    "tdm.counting_variance": {"gain": "counts_per_electron"},
    "tdm.regularisation_curve": {"gain": "counts_per_electron", "lambdas": "regularisation"},
    "tdm.simulate": {"dose": "electrons_per_probe"},
    "tdm.view": {"memory": "proxy_memory"},
}
# Options of ridge masks, which stand in no signature.
OF_RIDGE = ("derive_mask", "column_images", "held_out_cross_talk", "template_influence")
OPTIONS_RENAMED = {
    **RENAMED,
    **{f"tdm.{name}": {"gain": "counts_per_electron"} for name in OF_RIDGE},
    "hyperspy.derive_mask": {"gain": "counts_per_electron"},
}
ANY = "..."  # a default that is a function


def parameters(signature: str) -> list[tuple[str, str, str | None]]:
    """Name, kind and default of each parameter of a signature as it is written in Python."""
    (function,) = ast.parse(f"def function{signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    of, kinds = function.args, inspect._ParameterKind
    by_place = [*of.posonlyargs, *of.args]
    defaults = [None] * (len(by_place) - len(of.defaults)) + [ast.unparse(value) for value in of.defaults]
    found = [
        (part.arg, (kinds.POSITIONAL_ONLY if part in of.posonlyargs else kinds.POSITIONAL_OR_KEYWORD).name, default)
        for part, default in zip(by_place, defaults, strict=True)
    ]
    if of.vararg:
        found.append((of.vararg.arg, kinds.VAR_POSITIONAL.name, None))
    for part, value in zip(of.kwonlyargs, of.kw_defaults, strict=True):
        found.append((part.arg, kinds.KEYWORD_ONLY.name, None if value is None else ast.unparse(value)))
    if of.kwarg:
        found.append((of.kwarg.arg, kinds.VAR_KEYWORD.name, None))
    return found


def same_default(before: str | None, now: str | None) -> bool:
    return before in (now, ANY) or (None not in (before, now) and ast.unparse(ast.parse(now)) == before)


@pytest.mark.parametrize("name", BEFORE["names"])
def test_a_name_is_there_still_and_takes_what_it_took(name):
    assert name in NOW
    signature = BEFORE["names"][name]
    if signature is None:
        return
    now = public.parameters(NOW[name])
    renamed = RENAMED.get(name, {})
    before = [(renamed.get(parameter, parameter), kind, default) for parameter, kind, default in parameters(signature)]
    by_name = {parameter: (kind, default) for parameter, kind, default in now}
    for parameter, kind, default in before:
        assert parameter in by_name
        assert by_name[parameter][0] == kind
        assert same_default(default, by_name[parameter][1])
    places = [[parameter for parameter, kind, _ in of if kind.startswith("POSITIONAL")] for of in (before, now)]
    assert places[1][: len(places[0])] == places[0]
    for parameter in set(by_name) - {parameter for parameter, *_ in before}:
        assert by_name[parameter][0].startswith("VAR") or by_name[parameter][1] is not None


@pytest.mark.parametrize("command", BEFORE["commands"])
def test_a_command_has_every_option_that_it_had(command):
    found = {word for part in command_line.commands[command].params for word in (*part.opts, *part.secondary_opts)}
    assert set(BEFORE["commands"][command].split()) <= found


OLD = [(name, old, new) for name, names in OPTIONS_RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("name", "old", "new"), OLD)
def test_an_argument_is_taken_by_its_old_name_with_a_warning_that_says_the_new_one(name, old, new):
    """Called with nothing else, each complains of what is missing, not of an argument that it does not know."""
    said = f"{old}=... is now called {new}"
    with pytest.warns(FutureWarning, match=said), pytest.raises(TypeError, match="missing"):
        NOW[name](**{old: 1.0})
    with pytest.raises(tdm.errors.InputError, match=f"{old}=... and {new}=... are the same"):
        NOW[name](**{old: 1.0, new: 2.0})


@pytest.mark.parametrize("old", MOVED)
def test_what_was_in_a_module_of_old_is_found_with_a_warning_that_says_where_it_is(old):
    home = __import__(f"tdm_dask.{MOVED[old]}", fromlist=["_"])
    names = [name for name, room in tdm._HOME.items() if room == MOVED[old]]
    for name in names:
        with pytest.warns(FutureWarning, match=rf"tdm_dask\.{old}\.{name} is now tdm_dask\.{name};"):
            exec(f"from tdm_dask.{old} import {name} as found", space := {})
        assert space["found"] is getattr(home, name) is getattr(tdm, name)
    with pytest.raises(ImportError):
        exec(f"from tdm_dask.{old} import nothing_of_this_name")


def test_what_is_no_public_name_is_found_in_its_room():
    with pytest.warns(FutureWarning, match=r"is now tdm_dask\.detector\.radial_profiles\.scattering_angle"):
        from tdm_dask.profiles import scattering_angle  # type: ignore[import-not-found]
    assert scattering_angle.__module__ == "tdm_dask.detector.radial_profiles"


def test_the_readmes_way_to_a_scheduler_works_still():
    with pytest.warns(FutureWarning, match=r"tdm_dask\.cluster\.scheduler is now tdm_dask\.scheduler"):
        scheduler = tdm.cluster.scheduler
    with scheduler(announce=False) as client:
        assert client is None


def line_here() -> int:
    """The line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def argument_of_a_function() -> int:
    return tdm.thin(COUNTS, 0.5, gain=1.0) is not None and line_here()


def argument_of_a_method() -> int:
    return COUNTS.tdm.thin(0.5, gain=1.0) is not None and line_here()


def name_that_is_imported() -> int:
    exec(compile(f"{chr(10) * 4}from tdm_dask.thinning import thin", __file__, "exec"), {})
    return 5


def name_in_a_module() -> int:
    import tdm_dask.profiles  # type: ignore[import-not-found]

    return tdm_dask.profiles.radial_profile is not None and line_here()


def name_in_a_wing() -> int:
    return tdm.cluster.scheduler is not None and line_here()


def key_of_a_recipe() -> int:
    return load_recipe(RECIPE) is not None and line_here()


def key_of_a_recipe_that_runs() -> int:
    with suppress(tdm.errors.TdmError):  # there is no such file
        tdm.run_recipe(RECIPE, "out")
    return line_here() - 1


COUNTS = tdm.label_counts(np.ones((2, 2, 4, 4), np.uint16))
RECIPE = {"source": {"path": "a.mib"}, "masks": {"within": "disk:9"}, "detectors": {"BF": "disk:9"}}
USES = (
    argument_of_a_function,
    argument_of_a_method,
    name_that_is_imported,
    name_in_a_module,
    name_in_a_wing,
    key_of_a_recipe,
    key_of_a_recipe_that_runs,
)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_the_warning_of_an_old_name_points_at_the_users_own_line(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = use()
    (said,) = [warning for warning in caught if "is now" in str(warning.message)]
    assert (said.filename, said.lineno) == (__file__, line)


def test_the_warning_of_an_old_name_is_shown_once_for_each_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            tdm.thin(COUNTS, 0.5, gain=1.0)
        tdm.thin(COUNTS, 0.5, gain=1.0)
    lines = [warning.lineno for warning in caught]
    assert lines == [line_here() - 3, line_here() - 2]


def test_modules_of_a_wing_are_imported_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from tdm_dask.masks import derivation, live

    assert derivation.__name__, live.__name__
