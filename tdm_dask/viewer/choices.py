"""What a user of the viewer has chosen, as one value, and the recipe that says the same."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..axes import SCAN, quantity
from ..columns.sites import Array
from ..errors import RecipeError
from ..masks.derivation import NORMALISATION_OF, Method, Normalisation
from ..recipe.recipe_file import Recipe, load_recipe
from ..recipe.request import read_request

# Angles of what is shown first, in parts of the semi-angle, and whether a detector needs its angles said.
DETECTORS = {"ABF": (0.5, 1.0), "BF": (0.0, 1.0), "ADF": (1.25, 2.5), "HAADF": (2.0, 4.0)}
SIGMA = 0.4  # angstrom
LAMBDA = 0.1  # of the diagonal of the matrix that is solved
DRAWS = 200


@dataclass(frozen=True)
class Choices:
    """All that decides what the page shows and the full data are asked for; values are never changed in place.

    Attributes
    ----------
    sites : dict of str to array (n, 2)
        (y, x) in angstrom by kind of column; a kind may have none yet.
    sigma : float
        Width of the Gaussians in angstrom.
    method : {"pearson", "mean-scaled", "ridge"}
    regularisation : float or "cross-validated"
        Lambda of ridge masks.
    radius : float or None
        Of the detector region, a disk, in mrad; None for the whole detector.
    scan_region : (int, int, int, int) or None
        Probe positions that masks are derived from: first and last + 1 along y, then x. None for all.
    detectors : dict of str to (float, float)
        Inner and outer angle in mrad by name.
    cell : array (2, 2) or None
        Vectors (y, x) of the unit cell in angstrom.
    rest : dict
        Sections and keys of a recipe that the page has no handle for, kept as they were.

    Examples
    --------
    >>> chosen = Choices(sites={"Li": np.array([[1.0, 2.0]])}, radius=24.0)
    >>> again = Choices.from_recipe(chosen.recipe("scan.zarr"))
    >>> again == chosen, chosen.with_(sigma=0.3) == chosen
    (True, False)
    """

    sites: Mapping[str, Array] = field(default_factory=dict)
    sigma: float = SIGMA
    method: Method = "pearson"
    regularisation: float | str = LAMBDA
    radius: float | None = None
    scan_region: tuple[int, int, int, int] | None = None
    detectors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cell: Array | None = None
    rest: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choices) and self._plain() == other._plain()

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    def _plain(self) -> dict[str, Any]:
        """Everything in values that compare as wholes."""
        plain = dict(self.__dict__)
        plain["sites"] = [(kind, np.asarray(places).tolist()) for kind, places in self.sites.items()]
        plain["cell"] = None if self.cell is None else np.asarray(self.cell).tolist()
        plain["rest"] = {name: dict(section) for name, section in self.rest.items()}
        return plain

    def with_(self, **changes: Any) -> Choices:
        """The same but for some values."""
        return replace(self, **changes)

    def same_sites(self, other: Choices) -> bool:
        """Whether the sites are those of other choices, in the same order."""
        return self._plain()["sites"] == other._plain()["sites"]

    def same_masks(self, other: Choices) -> bool:
        """Whether masks and images are those of other choices: conventional detectors and the cell play no part."""
        first, second = (
            one.with_(sites=one.placed, detectors={}, cell=None, rest=_of_masks(one.rest)) for one in (self, other)
        )
        return first == second

    def calibrated_as(self, other: Choices) -> Choices:
        """The same with the calibration of other choices."""
        rest = {name: section for name, section in self.rest.items() if name != "calibration"}
        if "calibration" in other.rest:
            rest["calibration"] = other.rest["calibration"]
        return self.with_(rest=rest)

    @property
    def normalisation(self) -> Normalisation:
        """That masks are applied with: the one that belongs to the method, unless a recipe asked for another."""
        return self.rest.get("images", {}).get("normalisation", NORMALISATION_OF[self.method])

    @property
    def placed(self) -> dict[str, Array]:
        """Kinds that have sites."""
        return {kind: places for kind, places in self.sites.items() if len(places)}

    @property
    def regions(self) -> tuple[slice, slice] | None:
        """Slices (y, x) of the probe positions that masks are derived from."""
        if self.scan_region is None:
            return None
        y0, y1, x0, x1 = self.scan_region
        return slice(y0, y1), slice(x0, x1)

    def recipe(self, source: str | Path) -> dict[str, Any]:
        """The recipe as nested mappings, for `tdm_dask.run_recipe` and for TOML."""
        rest = {name: dict(section) for name, section in self.rest.items()}
        top = rest.pop("", {})
        recipe: dict[str, Any] = {**top, "source": {"path": str(source)}}
        if "calibration" in rest:
            recipe["calibration"] = rest["calibration"]
        if self.detectors:
            recipe["detectors"] = {
                name: f"annulus:{float(inner)}:{float(outer)}" if inner > 0 else f"disk:{float(outer)}"
                for name, (inner, outer) in self.detectors.items()
            }
        if not self.placed:
            return recipe
        sites = {kind: np.asarray(places, np.float64).tolist() for kind, places in self.placed.items()}
        recipe["templates"] = {"shape": "gaussian", "sigma": self.sigma, **rest.get("templates", {}), "sites": sites}
        masks: dict[str, Any] = {"method": self.method}
        if self.radius is not None:
            masks["detector_region"] = f"disk:{float(self.radius)}"
        if self.scan_region is not None:
            y0, y1, x0, x1 = self.scan_region
            masks["scan_region"] = {"y": [y0, y1], "x": [x0, x1]}
        if self.method == "ridge":
            masks |= {"regularisation": self.regularisation, **rest.get("masks", {})}
        recipe["masks"] = masks
        recipe["images"] = {"normalisation": self.normalisation}
        if self.cell is not None:
            recipe["evidence"] = {"cell": np.asarray(self.cell).tolist(), **rest.get("evidence", {})}
        return recipe

    def toml(self, source: str | Path) -> str:
        """The recipe as the text of a file."""
        import tomli_w

        return tomli_w.dumps(self.recipe(source))

    @classmethod
    def from_recipe(cls, recipe: str | Path | Mapping[str, Any]) -> Choices:
        """What a recipe asks for.

        Raises
        ------
        RecipeError
            If the recipe is wrong, or asks for what the page cannot show: binary templates, or a detector region that
            is no disk.
        """
        checked = load_recipe(recipe)
        request = read_request(checked)
        if checked.templates is not None and checked.templates.shape != "gaussian":
            raise RecipeError(
                f'The recipe has templates of shape "{checked.templates.shape}"; the viewer draws Gaussians alone.'
            )
        masks = checked.masks
        rest = _rest(checked)
        return cls(
            sites={kind: np.asarray(places, np.float64) for kind, places in request.sites.items()},
            sigma=SIGMA if checked.templates is None else quantity(checked.templates.sigma, "angstrom", "sigma"),
            method=masks.method,
            regularisation=_lambda(masks.regularisation, masks.method),
            radius=_radius(masks.detector_region),
            scan_region=_region(masks.scan_region),
            detectors={name: _angles(name, text) for name, text in checked.detectors.items()},
            cell=None if checked.evidence is None else checked.evidence.vectors,
            rest=rest,
        )


def _lambda(given: float | str | None, method: str) -> float | str:
    if given is not None:
        return given
    return "cross-validated" if method == "ridge" else LAMBDA


def _rest(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the page has no handle for."""

    def given(section: Any, *keys: str) -> dict[str, Any]:
        values = {key: getattr(section, key) for key in keys}
        return {key: value for key, value in values.items() if value is not None}

    asked = recipe.evidence
    usual = recipe.templates is None or recipe.images.normalisation == NORMALISATION_OF[recipe.masks.method]
    parts = {
        "": {key: value for key, value in (("title", recipe.title), ("notes", recipe.notes)) if value},
        "calibration": given(recipe.calibration, *vars(recipe.calibration)),
        "templates": {} if recipe.templates is None else given(recipe.templates, "all_name"),
        "masks": given(recipe.masks, "objective", "separate", "counts_per_electron"),
        "images": {} if usual else given(recipe.images, "normalisation"),
        "evidence": {} if asked is None or asked.draws == DRAWS else given(asked, "draws"),
    }
    return {name: part for name, part in parts.items() if part}


def _of_masks(rest: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What of the rest decides masks and images."""
    return {name: section for name, section in rest.items() if name in ("calibration", "masks", "images")}


def _radius(region: str | None) -> float | None:
    if region is None:
        return None
    kind, _, angle = region.lower().partition(":")
    if kind.strip() not in ("disk", "bf") or not angle:
        raise RecipeError(
            f'[masks] detector_region is "{region}"; the viewer has a disk, such as "disk:24", or no limit.'
        )
    return quantity(angle, "mrad", "[masks] detector_region")


def _region(given: Mapping[str, Any] | None) -> tuple[int, int, int, int] | None:
    if given is None:
        return None
    missing = [dim for dim in SCAN if dim not in given]
    if missing:
        raise RecipeError(f"[masks] scan_region has no {missing[0]}; the viewer needs [first, last + 1] for y and x.")
    return (*given["y"], *given["x"])


def _angles(name: str, text: str) -> tuple[float, float]:
    kind, *numbers = (part.strip() for part in text.lower().split(":"))
    angles = [quantity(number, "mrad", f"[detectors] {name}", positive=False) for number in numbers]
    if kind in ("disk", "bf") and len(angles) == 1:
        return 0.0, angles[0]
    if len(angles) == 2:
        return angles[0], angles[1]
    raise RecipeError(f'[detectors] {name} is "{text}"; the viewer needs both its angles, such as "{kind}:30:60".')


def read_toml(content: bytes, name: str, source: str | Path) -> Choices:
    """What a recipe that came from the browser asks for, whatever counts it names.

    Raises
    ------
    RecipeError
        If it is no recipe, or its sites are in another file.
    """
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name} is not valid TOML: {str(error).rstrip('.')}.") from None
    sites = table.get("templates", {}).get("sites", {}) if isinstance(table.get("templates", {}), Mapping) else {}
    if isinstance(sites, str):
        raise RecipeError(f'{name} has its sites in "{sites}"; open the sites as a file of their own instead.')
    return Choices.from_recipe(table | {"source": {"path": str(source)}})
