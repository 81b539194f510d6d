"""Recipe files: a whole analysis as one readable TOML file, checked before anything is read or written."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np

from ..axes import quantity, quantity_pair
from ..errors import InputError, RecipeError, TdmError
from ..masks.ridge import RidgeOptions
from ..renamed import new_names
from ..shards.objects import check_address
from ..sources.plugins import is_file_name
from ..words import Argument, error_in_place, path_texts

Quantity = float | str
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class SourceSection:
    """Where the counts come from: a vendor file or a store. The keys are arguments of `tdm_dask.convert`."""

    path: str
    scan_shape: Sequence[int] | None = None
    detector_shape: Sequence[int] | None = None
    dtype: str | None = None
    offset: int | None = None
    gap: int | None = None
    frame: int | None = None
    flyback: int | None = None
    skip_first: int | None = None
    allow_partial: bool | None = None
    detector_first: bool | None = None
    format: str | None = None
    compression: str | None = None

    def __post_init__(self) -> None:
        if "://" in self.path:
            check_address(self.path)


@dataclass(frozen=True)
class CalibrationSection:
    """What is known about the microscope. The keys are arguments of `tdm_dask.calibrate`, but for `descan`.

    That says whether shifts of the bright-field disk over the scan are measured (unless the store has some already), or
    left out whatever the store has; by default, the store's own are honoured.
    """

    semi_angle: Quantity | None = None
    pixel_size: Quantity | Sequence[Quantity] | None = None
    centre: Sequence[float] | None = None
    scan_step: Quantity | Sequence[Quantity] | None = None
    energy: Quantity | None = None
    rotation: Quantity | None = None
    transpose: bool | None = None
    flip: bool | None = None
    counts_per_electron: float | None = None
    electrons_per_probe: float | None = None
    dwell_time: Quantity | None = None
    beam_current: Quantity | None = None
    descan: bool | None = None

    def __post_init__(self) -> None:
        for key, unit in (
            ("semi_angle", "mrad"),
            ("energy", "eV"),
            ("dwell_time", "s"),
            ("beam_current", "A"),
        ):
            if getattr(self, key) is not None:
                quantity(getattr(self, key), unit, f"[calibration] {key}")
        for key, unit in (("pixel_size", "mrad"), ("scan_step", "angstrom")):
            if getattr(self, key) is not None:
                quantity_pair(getattr(self, key), unit, f"[calibration] {key}")
        if self.rotation is not None:
            quantity(self.rotation, "deg", "[calibration] rotation", positive=False)


@dataclass(frozen=True)
class TemplatesSection:
    """Which columns to look for: sites (a file, or a table of them) and the shape drawn at each."""

    sites: str | Mapping[str, Any]
    kinds: Sequence[str] | None = None
    shape: Literal["gaussian", "binary"] = "gaussian"
    sigma: Quantity | None = None
    radius: Quantity | None = None
    all_name: str | None = None

    def __post_init__(self) -> None:
        _one_of(self.shape, ("gaussian", "binary"), "[templates] shape")
        wanted, other = ("sigma", "radius") if self.shape == "gaussian" else ("radius", "sigma")
        if getattr(self, wanted) is None:
            raise RecipeError(f'[templates] with shape "{self.shape}" needs {wanted}, such as {wanted} = "0.35 Å".')
        if getattr(self, other) is not None:
            raise RecipeError(f'[templates] {other} does not go with shape "{self.shape}"; leave it out.')
        quantity(getattr(self, wanted), "angstrom", f"[templates] {wanted}")


@dataclass(frozen=True)
class MasksSection:
    """How masks are derived, from which detector pixels and which probe positions.

    The last four are of ridge masks alone: options of `tdm_dask.derive_mask`. Before, `detector_region` was called
    `within`, and `counts_per_electron` `gain`; these names work in this release alone.
    """

    method: Literal["pearson", "mean-scaled", "ridge"] = "pearson"
    detector_region: str | None = None
    scan_region: Mapping[str, Sequence[int]] | None = None
    regularisation: float | str | None = None
    objective: Literal["both", "R", "excess"] | None = None
    separate: bool | None = None
    counts_per_electron: float | None = None

    @property
    def ridge(self) -> dict[str, Any]:
        """Options of ridge masks that are given."""
        names = ("regularisation", "objective", "separate", "counts_per_electron")
        options = {name: getattr(self, name) for name in names}
        return {name: value for name, value in options.items() if value is not None}

    def __post_init__(self) -> None:
        _one_of(self.method, ("pearson", "mean-scaled", "ridge"), "[masks] method")
        if self.ridge and self.method != "ridge":
            raise RecipeError(f'[masks] {min(self.ridge)} goes with method = "ridge" alone; leave it out.')
        try:
            RidgeOptions.given(self.ridge)
        except InputError as error:
            said = error_in_place(error, lambda argument: as_key(argument, "masks"))
            raise RecipeError(said if said.startswith("[masks]") else f"[masks] {said}") from None
        for dim, ends in (self.scan_region or {}).items():
            _one_of(dim, ("y", "x"), "A key of [masks] scan_region")
            if not (isinstance(ends, Sequence) and len(ends) == 2 and all(type(end) is int for end in ends)):
                raise RecipeError(
                    f"[masks] scan_region {dim} is {ends!r}; expected [first, last + 1] in probe positions."
                )


@dataclass(frozen=True)
class ImagesSection:
    """How masks are applied."""

    normalisation: Literal["none", "standardised"] = "standardised"

    def __post_init__(self) -> None:
        _one_of(self.normalisation, ("none", "standardised"), "[images] normalisation")


@dataclass(frozen=True)
class EvidenceSection:
    """Whether the data single out the sites of Gaussian templates. The keys are arguments of `tdm_dask.evidence`."""

    cell: Sequence[Quantity] | Sequence[Sequence[Quantity]]
    draws: int = 200

    @property
    def vectors(self) -> np.ndarray:
        """The cell as two vectors (y, x) in angstrom: those that are given, or of a period along y and one along x."""
        vectors = [part for part in self.cell if isinstance(part, Sequence) and not isinstance(part, str)]
        if vectors:
            if [len(vector) for vector in vectors] != [2, 2] or len(self.cell) != 2:
                raise RecipeError(f"[evidence] cell is {self.cell}; expected two vectors [y, x], or a length for each.")
            what = "A number of [evidence] cell"
            return np.array([[quantity(v, "angstrom", what, positive=False) for v in vector] for vector in vectors])
        return np.diag(quantity_pair(self.cell, "angstrom", "[evidence] cell"))

    def __post_init__(self) -> None:
        _ = self.vectors
        if self.draws < 20:
            raise RecipeError(f"[evidence] draws is {self.draws}; expected 20 at least, to see what happens in 5 %.")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes
    ----------
    source, calibration, templates, masks, images, evidence : the sections of the file
    detectors : dict of str to str
        Name of an image to its detector, such as "adf:30:60".
    title, notes : str
        For the report.
    folder : Path
        Where relative paths start: the folder of the recipe file.
    text : str
        The recipe as it was written, for the report.
    """

    source: SourceSection
    calibration: CalibrationSection = field(default_factory=CalibrationSection)
    detectors: Mapping[str, str] = field(default_factory=dict)
    templates: TemplatesSection | None = None
    masks: MasksSection = field(default_factory=MasksSection)
    images: ImagesSection = field(default_factory=ImagesSection)
    evidence: EvidenceSection | None = None
    title: str = ""
    notes: str = ""
    folder: Path = field(default=Path("."), compare=False)
    text: str = field(default="", compare=False)

    def path_of(self, name: str) -> Path:
        """A path of the recipe, relative ones from its folder."""
        return (self.folder / Path(name).expanduser()).absolute()

    def source_place(self) -> str | Path:
        """Where the counts are: a path, or the address of a store."""
        return self.source.path if "://" in self.source.path else self.path_of(self.source.path)

    def format_file(self) -> Path | None:
        """The Python file of a format of the user's own, where the recipe names one."""
        named = self.source.format
        return self.path_of(named) if named is not None and is_file_name(named) else None

    def asks(self) -> dict[str, Any]:
        """All that decides the numbers, as plain values: equal for recipes that ask for the same."""
        asked = dataclasses.asdict(self)
        for key in ("folder", "text", "title", "notes"):
            del asked[key]
        asked["source"]["path"] = str(self.source_place())
        if self.source.format is None:
            del asked["source"]["format"]  # as if there were no such key
        elif (file := self.format_file()) is not None:
            asked["source"]["format"] = str(file)
        if self.evidence is None:
            del asked["evidence"]
        return asked


SECTIONS: dict[str, type] = {
    "source": SourceSection,
    "calibration": CalibrationSection,
    "templates": TemplatesSection,
    "masks": MasksSection,
    "images": ImagesSection,
    "evidence": EvidenceSection,
}


# Keys by the names that they had, section by section.
OLD_KEYS: dict[str, dict[str, str]] = {"masks": {"within": "detector_region", "gain": "counts_per_electron"}}


def as_key(argument: Argument, section: str | None = None) -> str | None:
    """How a recipe gives an argument its value; None where it has no key for it.

    Examples
    --------
    >>> from tdm_dask.words import in_place
    >>> in_place("Give scan_shape=(64, 128), or a larger reach=...", as_key)
    'Give [source] scan_shape = [64, 128], or a larger reach=...'
    """
    for name, kind in SECTIONS.items():
        if section in (None, name) and argument.name in {f.name for f in dataclasses.fields(kind)}:
            key = f"[{name}] {argument.name}"
            if argument.value is ...:
                return key
            if argument.value is None:
                return f"no {key}"
            return f"{key} = {json.dumps(argument.value, ensure_ascii=False)}"
    return None


@contextmanager
def errors_in_keys(*given: Any) -> Iterator[None]:
    """Errors inside name the keys of a recipe in place of arguments, for the recipe is what the user wrote.

    Paths that are given, and the texts of a recipe that is given, stay as they are.
    """
    try:
        yield
    except TdmError as error:
        kept = [text for value in given for text in recipe_texts(value)]
        error.args = (error_in_place(error, as_key, kept),)
        raise


def says_keys(function: _Function) -> _Function:
    """A function of a recipe, the errors of which name its keys."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        with errors_in_keys(*arguments, *keywords.values()):
            return function(*arguments, **keywords)

    return cast(_Function, call)


def recipe_texts(recipe: Any) -> Iterator[str]:
    """The paths and other texts of a recipe, in any form that `load_recipe` takes; or of another path.

    Examples
    --------
    >>> list(recipe_texts({"source": {"path": "a gap=3.mib", "gap": 4}}))
    ['a gap=3.mib', 'a gap=3.mib', 'a gap=3', 'a gap=3.mib']
    """
    if isinstance(recipe, str | Path):
        with suppress(RecipeError):
            yield from _texts(_read_toml(Path(recipe))[0])
    yield from _texts(dataclasses.asdict(recipe) if isinstance(recipe, Recipe) else recipe)


def _texts(part: Any) -> Iterator[str]:
    yield from path_texts(part)
    parts = part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
    for inner in parts:
        yield from _texts(inner)


def load_recipe(recipe: str | Path | Mapping[str, Any]) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    recipe : path or mapping
        A TOML file, or the same as nested mappings (relative paths then start at the working folder).

    Returns
    -------
    Recipe

    Raises
    ------
    RecipeError
        If the file cannot be read, a key is unknown or missing, or a value makes no sense.
    UnitError
        If a quantity has no unit that fits.

    Examples
    --------
    >>> recipe = load_recipe({"source": {"path": "scan.mib"}, "detectors": {"ADF": "adf:30:60"}})
    >>> recipe.detectors["ADF"]
    'adf:30:60'
    """
    if isinstance(recipe, Mapping):
        table, text, folder = (
            dict(recipe),
            json.dumps(recipe, indent=2, default=str, ensure_ascii=False),
            Path(),
        )
    else:
        table, text, folder = _read_toml(Path(recipe))
    names = [*SECTIONS, "detectors", "title", "notes"]
    _refuse_unknown(table, names, "the recipe")
    if "source" not in table:
        raise RecipeError('The recipe has no [source]; give one with path = "scan.mib".')
    parts: dict[str, Any] = {
        name: _section(kind, table[name], f"[{name}]") for name, kind in SECTIONS.items() if name in table
    }
    for name in ("title", "notes"):
        parts[name] = _typed(table.get(name, ""), "str", name)
    parts["detectors"] = _detectors(table.get("detectors", {}))
    if not parts["detectors"] and "templates" not in parts:
        raise RecipeError("The recipe asks for no image; give [templates] or [detectors] or both.")
    if "evidence" in parts and (parts.get("templates") is None or parts["templates"].sigma is None):
        raise RecipeError('[evidence] is on Gaussian templates; give [templates] with shape "gaussian" and a sigma.')
    return Recipe(**parts, folder=folder, text=text)


def _read_toml(path: Path) -> tuple[dict[str, Any], str, Path]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text, path.absolute().parent
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read ({error.strerror}); check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} is not valid TOML: {str(error).rstrip('.')}.") from None


def _detectors(table: Any) -> dict[str, str]:
    if not isinstance(table, Mapping):
        raise RecipeError('[detectors] must be a table of names and detectors, such as ADF = "adf:30:60".')
    return {str(name): _typed(spec, "str", f"[detectors] {name}") for name, spec in table.items()}


def _section(kind: type, table: Any, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} must be a table, found {table!r}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    table = new_names(table, OLD_KEYS.get(where.strip("[]"), {}), lambda name: f"{where} {name}")
    _refuse_unknown(table, list(fields), where)
    missing = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in table
    ]
    if missing:
        raise RecipeError(f"{where} has no {missing[0]}; it needs one.")
    values = {name: _typed(value, str(fields[name].type), f"{where} {name}") for name, value in table.items()}
    return kind(**values)


def _typed(value: Any, kinds: str, where: str) -> Any:
    """`value` if it is of one of the annotated kinds, which are those that TOML has."""
    allowed = [part.strip().split("[")[0] for part in kinds.split("|")]
    tests = {
        "str": isinstance(value, str),
        "Literal": isinstance(value, str),
        "bool": isinstance(value, bool),
        "int": type(value) is int,
        "float": type(value) in (int, float),
        "Quantity": type(value) in (int, float, str),
        "Sequence": isinstance(value, Sequence) and not isinstance(value, str),
        "Mapping": isinstance(value, Mapping),
    }
    if not any(tests[kind] for kind in allowed if kind != "None"):
        words = {"str": "a text", "bool": "true or false", "int": "a whole number", "float": "a number"}
        words |= {
            "Literal": "a text",
            "Quantity": "a number or a text with a unit",
            "Sequence": "a list",
            "Mapping": "a table",
        }
        expected = " or ".join(words[kind] for kind in allowed if kind != "None")
        raise RecipeError(f"{where} is {value!r}; expected {expected}.")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}."
            raise RecipeError(f'"{key}" in {where} is not a key of a recipe; {hint}')


def _one_of(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        expected = " or ".join(f'"{name}"' for name in known)
        raise RecipeError(f'{where} is "{value}"; expected {expected}.')
