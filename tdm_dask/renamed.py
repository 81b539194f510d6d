"""Names that have changed: an old one keeps working for one release, with a warning that says the new one.

The warning is a FutureWarning, which Python shows to everybody; a DeprecationWarning would be hidden from those who
call this package from modules and notebooks of their own. What is listed here goes with the release after.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from .errors import InputError

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Files of this package, and Python's imports.
_BETWEEN = (f"{Path(__file__).parent}{os.sep}", "<frozen importlib")

# Modules that the README, the reference, examples or workflows have named, and where their names are now.
MOVED: Mapping[str, str] = {
    "aperture": "masks.aperture",
    "arrival": "counts.arrival",
    "beam_tilt": "detector.descan",
    "calibration": "detector.calibration",
    "cluster": "cluster.schedulers",
    "components": "imaging.components",
    "conversion": "conversion.conversion",
    "deflection": "imaging.deflection",
    "detectors": "detector.conventional_masks",
    "line_profiles": "imaging.line_profiles",
    "masks": "masks.derivation",
    "matrix": "imaging.matrix_view",
    "opening": "counts.opening",
    "phase": "imaging.phase",
    "profiles": "detector.radial_profiles",
    "progress": "cluster.progress",
    "recipe": "recipe.run",
    "regions": "counts.regions",
    "ridge": "masks.ridge",
    "statistics": "counts.statistics",
    "store": "reading.store",
    "streaming": "masks.live",
    "symmetry": "masks.symmetry",
    "templates": "masks.templates",
    "thickness": "imaging.thickness",
    "thinning": "counts.thinning",
    "tuning": "masks.proxies",
    "viewer": "viewer.opening",
}


class RenamedWarning(FutureWarning):
    """Something was called by the name that it had before."""


def renamed(**names: str) -> Callable[[_Function], _Function]:
    """A function that takes arguments by their old names too: ``@renamed(old="new")``.

    Examples
    --------
    >>> @renamed(dose="electrons_per_probe")
    ... def electrons(*, electrons_per_probe=1.0):
    ...     return electrons_per_probe
    >>> with warnings.catch_warnings(record=True) as said:
    ...     electrons(dose=5.0), str(said[0].message)
    (5.0, 'dose=... is now called electrons_per_probe; the old name works in this release alone.')
    """

    def keep(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            return function(*arguments, **new_names(keywords, names, "{}=...".format))

        return cast(_Function, call)

    return keep


def new_names(given: Mapping[str, Any], names: Mapping[str, str], called: Callable[[str], str]) -> dict[str, Any]:
    """What was given, by its new names.

    Parameters
    ----------
    given : mapping
    names : mapping
        From old names to new ones.
    called : callable
        Makes of a name what it is called where it was given.

    Raises
    ------
    InputError
        If something was given by both of its names.

    Examples
    --------
    >>> new_names({"sigma": 1}, {"within": "detector_region"}, str)
    {'sigma': 1}
    """
    found = dict(given)
    for old in names.keys() & found.keys():
        new = names[old]
        if new in found:
            raise InputError(f"{called(old)} and {called(new)} are the same; leave out the first, its old name.")
        now = called(new).removesuffix("=...") if "_" in new else called(new)
        _warn(f"{called(old)} is now called {now}")
        found[new] = found.pop(old)
    return found


def _warn(what: str) -> None:
    """Warn at the user's own line, however many functions of this package lie between."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    warnings.warn_explicit(
        f"{what}; the old name works in this release alone.",
        RenamedWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def moved(old: str) -> Callable[[str], Any]:
    """``__getattr__`` of a module that is not there any more, or of the wing that has taken its name."""
    package = __package__
    where = f"{package}.{MOVED[old]}"

    def find(name: str) -> Any:
        missing = AttributeError(f"module {f'{package}.{old}'!r} has no attribute {name!r}")
        # Python asks modules for much of this kind; and a module of a wing is imported, not handed on.
        if name.startswith("_") or _is_module(f"{package}.{old}.{name}"):
            raise missing
        found = getattr(importlib.import_module(where), name, missing)
        if found is missing:
            raise missing
        public = name in getattr(sys.modules[package], "__all__", ())
        _warn(f"{package}.{old}.{name} is now {package if public else where}.{name}")
        return found

    return find


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what would hold it is no wing
        return False


def keep_modules() -> None:
    """Let the modules of old that are no wings be imported, though there are no such files."""
    for old in MOVED:
        if not (Path(__file__).parent / old).is_dir():
            name = f"{__package__}.{old}"
            sys.modules[name] = module = ModuleType(name, f"Moved to {__package__}.{MOVED[old]}.")
            module.__spec__ = ModuleSpec(name, None)
            module.__getattr__ = moved(old)  # type: ignore[method-assign]
