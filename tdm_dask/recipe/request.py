"""What a recipe asks for, checked as far as it can be before its counts are opened, and what of it is there already."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..axes import DESCAN, DETECTOR, SCAN, axis_coordinate
from ..detector.conventional_masks import parse_detector
from ..errors import InputError, RecipeError
from ..masks.templates import binary_template, gaussian_template, read_sites
from ..reading.store import is_complete, is_store
from ..shards.objects import get, list_keys, object_size, path_in, resolve
from ..sources.vendor import identities, same_file
from .recipe_file import OLD_KEYS, Recipe, load_recipe

COUNTS, RESULTS, NOTE = "counts.zarr", "results.zarr", "recipe.json"


@dataclass(frozen=True)
class Request:
    """A recipe, checked as far as it can be before its counts are opened, and its sites.

    Attributes
    ----------
    recipe : Recipe
    sites : dict of str to array
        (y, x) in angstrom.
    """

    recipe: Recipe
    sites: Mapping[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """Of the templates."""
        asked = self.recipe.templates
        return [] if asked is None else [*self.sites, *([asked.all_name] if asked.all_name else [])]

    @property
    def reading(self) -> dict[str, Any]:
        """How a vendor file is converted: arguments of `tdm_dask.convert`."""
        given = dataclasses.asdict(self.recipe.source) | {"path": None}
        if (file := self.recipe.format_file()) is not None:
            given["format"] = file
        return {key: value for key, value in given.items() if value is not None}

    @cached_property
    def files(self) -> dict[str, dict[str, Any] | None]:
        """What tells the file of counts, and that of its format, from others; found once, for small files are read."""
        source, own = self.recipe.source_place(), self.recipe.format_file()
        file = source if isinstance(source, Path) and source.is_file() else None
        return {name: None if p is None else identities(p)[0] for name, p in (("source", file), ("format", own))}

    @property
    def calibration(self) -> dict[str, Any]:
        """What is known: arguments of `tdm_dask.calibrate`."""
        given = dataclasses.asdict(self.recipe.calibration)
        return {key: value for key, value in given.items() if value is not None and key != "descan"}

    @property
    def scan_region(self) -> tuple[slice, ...] | None:
        region = self.recipe.masks.scan_region
        return None if region is None else tuple(slice(*region.get(dim, (None,))) for dim in SCAN)

    def reads_for_mean_pattern(self, counts: xr.DataArray, statistics: xr.Dataset | None) -> list[str]:
        """Stages that read all counts before masks are derived: "descan", where it is asked for and not there, and
        "calibrate", where the mean pattern is not among the `statistics` of a store."""
        there, asked = DESCAN[0] in counts.coords, self.recipe.calibration.descan
        measured = bool(asked) and not there
        known = statistics is not None and not measured and (asked is False or not there)
        return ["descan"] * measured + ["calibrate"] * (not known)

    def detector_region(self, counts: xr.DataArray) -> xr.DataArray | None:
        """Where masks may have weights."""
        region = self.recipe.masks.detector_region
        return None if region is None else parse_detector(region, counts)

    def templates(self, counts: xr.DataArray) -> xr.DataArray:
        """Templates (template, y, x) of the sites."""
        asked = self.recipe.templates
        assert asked is not None
        if asked.sigma is not None:
            return gaussian_template(counts, self.sites, sigma=asked.sigma, all_name=asked.all_name)
        assert asked.radius is not None
        return binary_template(counts, self.sites, radius=asked.radius, all_name=asked.all_name)


def read_request(recipe: str | Path | Mapping[str, Any] | Recipe) -> Request:
    """Read a recipe and its sites, and check them.

    Raises
    ------
    RecipeError
        If something in them is wrong.
    InputError
        If there is no such file.
    """
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    request = Request(plan, _sites(plan))
    _check_detectors(plan)
    if (file := plan.format_file()) is not None and not file.is_file():
        raise RecipeError(f"[source] format names {file}, which is not there; check the path.")
    if plan.masks.separate and plan.templates is not None and plan.templates.all_name:
        raise RecipeError(
            "[masks] separate does not go with [templates] all_name, for all columns are the sum of their kinds and "
            "cannot be told apart from them; leave one of the two out."
        )
    if is_store(plan.source_place()) and request.reading:
        raise RecipeError(
            f"[source] {min(request.reading)} does not go with the store {plan.source_place()}; leave it out."
        )
    return request


def _sites(plan: Recipe) -> dict[str, np.ndarray]:
    if plan.templates is None:
        return {}
    given = plan.templates.sites
    found = read_sites(plan.path_of(given)) if isinstance(given, str) else given
    kinds = plan.templates.kinds
    missing = [kind for kind in kinds or () if kind not in found]
    if missing:
        raise RecipeError(f'[templates] kinds names "{missing[0]}"; the sites are of {", ".join(found)}.')
    chosen = {str(kind): np.asarray(found[kind], dtype=np.float64) for kind in (kinds or found)}
    clash = sorted(set(plan.detectors) & {*chosen, plan.templates.all_name or ""})
    if clash:
        raise RecipeError(f'"{clash[0]}" names a detector and a template; rename one of them.')
    return chosen


def _check_detectors(plan: Recipe) -> None:
    """Raise for a detector that is misspelt now, not after hours of conversion."""
    angles = {dim: axis_coordinate(dim, 81, 50.0, -2000.0, "mrad") for dim in DETECTOR}
    pattern = xr.DataArray(np.zeros((81, 81)), angles, DETECTOR, attrs={"semi_angle_mrad": 100.0})
    region = [] if plan.masks.detector_region is None else [plan.masks.detector_region]
    for spec in (*plan.detectors.values(), *region):
        parse_detector(spec, pattern)


def results_place(out: str | Path) -> str | Path:
    """A folder, which need not exist, or an address without a slash at its end.

    Raises
    ------
    InputError
        If no folder can be made there.
    """
    if "://" in str(out):
        return str(out).rstrip("/")
    folder = Path(out)
    if not folder.parent.is_dir():
        raise InputError(f"The folder {folder.parent} for the results does not exist; make it first.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the results.")
    return folder


def finished_stages(folder: str | Path, request: Request) -> tuple[str, ...]:
    """Stages that an earlier run has finished in a folder or at an address: of "convert", "correlate", "images" and
    "evidence".

    Nothing is written, and nothing made.
    """
    before = _note(folder)
    if before is None:
        return ()
    now = depends_on(request)
    place, same = resolve(folder), _same(before, now)
    groups = {"correlate": "masks", "images": "images", "evidence": "evidence"}
    stages = {name: f"{RESULTS}/{group}" for name, group in groups.items()} if same else {}
    done = [name for name, group in stages.items() if object_size(place, f"{group}/zarr.json") is not None]
    converted = is_complete(path_in(folder, COUNTS)) and (same or _same_counts(before, now))
    return (*(["convert"] if converted else []), *done)


def stale_results(folder: str | Path, request: Request, overwrite: bool) -> list[str]:
    """What lies in a folder and is not of this recipe; counts outlive its change, for converting them takes hours.

    Raises
    ------
    RecipeError
        If there is something, and it may not be overwritten.
    """
    if isinstance(folder, Path) and not folder.is_dir():
        return []
    place, before = resolve(folder), _note(folder)
    stale = [name for name in (RESULTS, COUNTS) if list_keys(place, name)]
    if before is not None and stale:
        now = depends_on(request)
        kept = (RESULTS, COUNTS) if _same(before, now) else (COUNTS,) if _same_counts(before, now) else ()
        stale = [name for name in stale if name not in kept]
    if stale and not overwrite:
        raise RecipeError(
            f"{folder} holds results of another recipe, or of other files; give another folder, or "
            "overwrite=True to replace them."
        )
    return stale


def _note(folder: str | Path) -> Any:
    """What the results in a folder depend on; None where there are none."""
    if isinstance(folder, Path) and not folder.is_dir():
        return None
    note = get(resolve(folder), NOTE)
    return None if note is None else _with_new_keys(json.loads(note.tobytes()))


def _with_new_keys(note: dict[str, Any]) -> dict[str, Any]:
    """A note by today's keys of recipes: results of before a key was renamed are of the same recipe."""
    for section, keys in OLD_KEYS.items():
        asked = note["recipe"][section]
        if asked is not None:
            note["recipe"][section] = {keys.get(key, key): value for key, value in asked.items()}
    return note


def depends_on(request: Request) -> dict[str, Any]:
    """What results depend on, as in a note: the recipe, its sites, the file of counts as it is now, this package."""
    depends = {
        "recipe": request.recipe.asks(),
        "sites": {kind: places.tolist() for kind, places in request.sites.items()},
        **request.files,
        "tdm_dask": importlib.metadata.version("tdm-dask"),
    }
    return dict(json.loads(json.dumps(depends)))


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether results serve: of the same recipe, sites, package and files."""
    return _same_files(before, now) and all(before[key] == now[key] for key in ("recipe", "sites", "tdm_dask"))


def _same_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return all(same_file(before.get(name), now.get(name)) for name in ("source", "format"))


def _same_counts(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether converted counts serve: of the same file in the same way, with no calibration that is gone."""
    calibrated = [{key for key, value in d["recipe"]["calibration"].items() if value} for d in (before, now)]
    same_source = _same_files(before, now) and before["recipe"]["source"] == now["recipe"]["source"]
    return same_source and calibrated[0] <= calibrated[1]
