"""The package as a whole: names, layers, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tdm_dask as tdm

PACKAGE = Path(tdm.__file__).parent
MODULES = sorted(PACKAGE.glob("*.py"))
PACKAGES = sorted(p.parent for p in PACKAGE.glob("*/__init__.py"))

# From the bottom up; a module imports from its own layer and from those before it.
LAYERS = [
    {"errors", "axes", "stalls", "words"},
    {"kernels", "kernels_matrix", "kernels_thinning", "factors", "ridge_solver", "memory", "shards"},
    {"blocks", "storage", "resources", "s3_store"},
    {"lazy", "reductions", "whole_patterns", "thinning_source", "shifts", "sources", "faults", "repeats"},
    {"sampling"},
    {"passes", "binned_rows", "second_moments", "block_moments", "probe"},
    {
        *("store", "statistics", "calibration", "bright_field", "beam_tilt", "regions"),
        *("opening", "conversion", "conversion_job", "thinning"),
    },
    {"sites", "templates", "detectors", "profiles", "line_profiles", "thickness"},
    {"columns"},
    {"simulation"},
    {
        *("masks", "ridge", "ridge_tuning", "symmetry", "aperture", "tuning", "streaming", "arrival"),
        *("components", "matrix", "deflection", "phase"),
    },
    {"evaluation"},
    {"recipe_file", "plot", "image_file", "progress", "cluster", "cluster_watch"},
    {"request"},
    {"recipe", "plan"},
    {"signals"},
    {"report", "accessor", "describe", "reference", "session", "cli", "hyperspy", "viewer", "__main__", "__init__"},
]


def imports_of(path: Path, level: int = 1) -> set[str]:
    """Modules and packages of this package that a module imports, from so many levels up."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found - {"annotations"}


@pytest.mark.parametrize("path", [*MODULES, *PACKAGES], ids=lambda p: p.stem)
def test_imports_run_downwards(path):
    layer = {name: n for n, names in enumerate(LAYERS) for name in names}
    assert path.stem in layer, f"{path.name} has no place in the layers"
    if path.stem == "__init__":
        return
    found = set().union(*(imports_of(p, 2) for p in path.glob("*.py"))) if path.is_dir() else imports_of(path)
    above = {name for name in found if layer.get(name, 0) > layer[path.stem]}
    assert not above, f"{path.name} imports upwards: {above}"


@pytest.mark.parametrize("name", ["kernels", "kernels_matrix", "kernels_thinning"])
def test_kernels_know_only_numpy(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    names = {
        n.names[0].name if isinstance(n, ast.Import) else n.module
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert names <= {"__future__", "math", "numpy", "numba"}


DASK_LAYER = [
    *("lazy", "blocks", "shards", "reductions", "whole_patterns"),
    *("passes", "second_moments", "block_moments", "binned_rows"),
]


@pytest.mark.parametrize("name", DASK_LAYER)
def test_the_dask_layer_knows_no_labels(name):
    assert "xarray" not in (PACKAGE / f"{name}.py").read_text().replace("xarray.DataArray", "")


def test_every_public_name_resolves():
    for name in tdm.__all__:
        assert getattr(tdm, name) is not None


def test_no_module_hides_a_public_function():
    """Importing a submodule sets an attribute of the package, which would take the function's place."""
    assert not {p.stem for p in [*MODULES, *PACKAGES]} & (set(tdm.__all__) - {"errors", "hyperspy"})


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
        "from tdm_dask import kernels\n"
        "counts = tdm.label_counts(np.random.default_rng(0).poisson(3, (6, 5, 4, 4)).astype('uint16'))\n"
        "template = xr.DataArray(np.random.default_rng(1).random((6, 5)), dims=('y', 'x'))\n"
        "tdm.apply_mask(counts, tdm.derive_mask(counts, template), normalisation='standardised')\n"
        "stats = [k.stats for k in (kernels.exact_moments, kernels.weighted_counts)]\n"
        "print([sum(s.cache_misses.values()) for s in stats], [sum(s.cache_hits.values()) for s in stats])\n"
    )
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[0, 0] [1, 1]"
