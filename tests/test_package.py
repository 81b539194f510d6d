"""The package as a whole: names, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tdm_dask as tdm
from tdm_dask import renamed

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


def test_importing_the_package_loads_nothing_beyond_xarray():
    script = (
        "import sys, xarray; before = set(sys.modules); import tdm_dask; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(run.stdout)) <= {"tdm_dask", "functools", "importlib"}


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
