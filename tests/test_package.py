"""The package as a whole: names, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import tdm_dask as tdm
from tdm_dask import renamed
from tdm_dask.sources.vendor import Request

PACKAGE = Path(tdm.__file__).parent
MOST_AT_THE_ROOT = 10
KEPT = """from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    from ..renamed import moved
    __getattr__ = moved('{wing}')"""


def test_what_lies_at_the_root_is_little_and_every_wing_is_one():
    loose = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(loose) <= MOST_AT_THE_ROOT
    wings = [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert [wing.name for wing in wings if len(list(wing.glob("*.py"))) < 3] == []


@pytest.mark.parametrize("wing", sorted(p.parent.name for p in PACKAGE.rglob("__init__.py") if p.parent != PACKAGE))
def test_a_wing_says_what_it_is_and_hands_on_no_names(wing):
    tree = ast.parse(next(PACKAGE.rglob(f"{wing}/__init__.py")).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if wing == "plot":  # whose functions are a namespace of their own
        return
    kept = [ast.unparse(part) for part in tree.body[1:]]
    # What was in a module that has the name of a wing is found there for one release more, with a warning.
    assert kept == (KEPT.format(wing=wing).split("\n\n") if wing in renamed.MOVED else [])


def test_every_public_name_resolves():
    for name in tdm.__all__:
        assert getattr(tdm, name) is not None


def test_no_module_hides_a_public_function():
    """Importing a submodule sets an attribute of the package, which would take the function's place."""
    inside = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not inside & (set(tdm.__all__) - {"errors", "hyperspy"})


# Names that lead to no module: a group of entry points, a key of dask's configuration.
NO_MODULES = {"tdm_dask.formats", "tdm_dask.cores"}
FILES = (".html", ".toml", ".csv", ".ipynb", ".py")
# What variables are called as well as rooms are: `counts.nbytes`, `request.path`.
VARIABLES = {"counts": dir(xr.DataArray), "request": list(Request.__annotations__)}
ROOMS = {part.removesuffix(".py") for file in PACKAGE.rglob("*.py") for part in file.relative_to(PACKAGE).parts}


def references(module: Path) -> Iterator[str]:
    """Dotted names of this package in the texts and comments of a module, such as `wing.module.name`."""
    with tokenize.open(module) as source:
        kinds = (tokenize.COMMENT, tokenize.STRING)
        said = [token.string for token in tokenize.generate_tokens(source.readline) if token.type in kinds]
    for text in said:
        names = set(re.findall(r"\btdm_dask(?:\.[A-Za-z_]\w*)+", text)) - NO_MODULES
        for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]\w*)+)`", text):
            first, second = name.split(".")[:2]
            if first in ROOMS and second not in VARIABLES.get(first, ()):
                names.add(f"tdm_dask.{name}")
        yield from (name for name in names if not name.endswith(FILES))


def is_there(name: str) -> bool:
    """Whether a dotted name leads to something, by names that are no old ones."""
    found: Any = tdm
    folder = PACKAGE
    for part in name.split(".")[1:]:
        folder = folder / part
        is_room = folder.is_dir() or folder.with_suffix(".py").is_file()
        try:
            found = importlib.import_module(f"{found.__name__}.{part}") if is_room else getattr(found, part)
        except (AttributeError, renamed.RenamedWarning):
            return False
    return not str(found.__doc__).startswith("Moved to ")  # as a module of old, which has no file


@pytest.mark.filterwarnings("error::tdm_dask.renamed.RenamedWarning")
@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_texts_and_comments_refer_to_is_there(module):
    assert [name for name in references(module) if not is_there(name)] == []


@pytest.mark.filterwarnings("error::tdm_dask.renamed.RenamedWarning")
@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("tdm_dask.passes.graphs.moments", True),
        ("tdm_dask.passes.moments", False),
        ("tdm_dask.plan.plan_recipe", False),
        ("tdm_dask.cluster.scheduler", False),
        ("tdm_dask.thinning", False),
        ("tdm_dask.scheduler", True),
    ],
)
def test_a_reference_by_an_old_place_is_found_out(name, there):
    assert is_there(name) is there


def test_importing_the_package_loads_nothing_beyond_xarray():
    script = (
        "import sys, xarray; before = set(sys.modules); import tdm_dask; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(run.stdout)) <= {"tdm_dask", "functools", "importlib"}


@pytest.mark.long
def test_compiled_code_is_kept_between_processes():
    """The second process loads every kernel that it uses, and compiles none."""
    script = (
        "import numpy as np, xarray as xr, tdm_dask as tdm\n"
        "from tdm_dask.kernels.moments import exact_moments\n"
        "from tdm_dask.kernels.weighted_sums import weighted_counts\n"
        "counts = tdm.label_counts(np.random.default_rng(0).poisson(3, (6, 5, 4, 4)).astype('uint16'))\n"
        "template = xr.DataArray(np.random.default_rng(1).random((6, 5)), dims=('y', 'x'))\n"
        "tdm.apply_mask(counts, tdm.derive_mask(counts, template), normalisation='standardised')\n"
        "stats = [k.stats for k in (exact_moments, weighted_counts)]\n"
        "print([sum(s.cache_misses.values()) for s in stats], [sum(s.cache_hits.values()) for s in stats])\n"
    )
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[0, 0] [1, 1]"
