"""Whole analyses from one recipe, stage by stage, written with the package's public names alone.

The counts are read three times: to convert them, to correlate every pixel with every template (for ridge masks, with
every other pixel too), and to apply every mask; descan takes two more, to measure it and for the mean pattern. Each
stage is stored before the next begins, and a second run of the same recipe takes up the stages that are there.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from ..axes import DESCAN, DETECTOR, IMAGE, TEMPLATE
from ..cluster.progress import Stage, silent
from ..conversion.conversion import convert
from ..counts.opening import open as open_counts
from ..counts.statistics import pixel_statistics
from ..detector.calibration import HISTORY, calibrate
from ..detector.conventional_masks import parse_detector
from ..detector.descan import descan
from ..evaluation.cross_talk import correlations, cross_talk, site_contrast
from ..evaluation.verdict import evidence as evidence_on
from ..masks.derivation import apply_mask, correlate, derive_mask
from ..reading.store import is_store, stored_statistics, write_calibration
from ..shards.objects import delete_folder, object_size, path_in, put, resolve, writing
from .recipe_file import Recipe, says_keys
from .request import COUNTS, NOTE, RESULTS, Request, depends_on, read_request, results_place, stale_results

VIRTUAL = "detector"  # dim of the detectors that the recipe names


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe has made.

    Attributes
    ----------
    recipe : Recipe
        As it was read and checked.
    out : Path or str
        The folder of the results, or its address on S3.
    store : str or Path
        The counts that were used.
    results : Path or str
        A zarr store with one group for each stage: masks, images, pacbed, evaluation, evidence.
    counts : xarray.DataArray
        The calibrated counts, lazy.
    pacbed : xarray.DataArray
        The mean pattern (ky, kx).
    masks : xarray.Dataset
        `detectors` (detector, ky, kx); where the recipe has templates, `mask` and `rho` (template, ky, kx),
        `mean` and `std` (ky, kx), `templates` (template, y, x), and `regularisation` of ridge masks.
    images : xarray.Dataset
        `virtual` (detector, y, x) and `image` (template, y, x), as far as the recipe asks for them.
    evaluation : xarray.Dataset
        `R`, `G`, `excess` and `contrast` of the kinds of column, and `other`, the correlation of all other images.
    sites : dict of str to array
        (y, x) in angstrom.
    seconds : dict of str to float
        What each stage took; stages that an earlier run had finished are not listed.
    evidence : xarray.Dataset
        As :attr:`tdm_dask.evaluation.verdict.Evidence.dataset` has it; empty where the recipe asks for none.
    """

    recipe: Recipe
    out: str | Path
    store: str | Path
    results: str | Path
    counts: xr.DataArray
    pacbed: xr.DataArray
    masks: xr.Dataset
    images: xr.Dataset
    evaluation: xr.Dataset
    sites: Mapping[str, np.ndarray]
    seconds: Mapping[str, float] = field(default_factory=dict)
    evidence: xr.Dataset = field(default_factory=xr.Dataset)


@says_keys
def run_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    stage: Stage = silent,
) -> RecipeResult:
    """Run a recipe and store what it makes; see :class:`RecipeResult`.

    Reads the counts on whatever dask scheduler is active.

    Parameters
    ----------
    recipe : path, mapping or Recipe
        What :func:`load_recipe` takes or gives.
    out : path or address
        Folder for the results, made if its parent exists, or an address such as s3://bucket/results.
    overwrite : bool, default False
        Whether results of another recipe in `out` may be replaced. Results of the same recipe are taken up.
    stage : callable, optional
        Called with the name of each stage and the bytes it reads; the context that it gives is open
        meanwhile.

    Returns
    -------
    RecipeResult
        Counts, masks, images and what was found of them, with the places where they are kept.

    Raises
    ------
    RecipeError
        If the recipe is wrong, or `out` holds results of another one.
    InputError, SourceError, StoreError
        If the counts or sites that it names cannot be used.

    Examples
    --------
    The recipe of `tdm demo`, on the sample of the package:

    >>> import tempfile
    >>> from importlib.resources import files
    >>> found = run_recipe(files("tdm_dask") / "data" / "demo.toml", tempfile.mkdtemp() + "/results")
    >>> found.images["image"].dims, found.masks["template"].values.tolist()
    (('template', 'y', 'x'), ['Li', 'Fe', 'P+O', 'O', 'all'])
    """
    request = read_request(recipe)
    plan = request.recipe
    folder = results_place(out)
    _prepare(folder, request, overwrite)
    clock = _Clock(stage)

    store = _open_or_convert(request, folder, clock)
    counts, pacbed = _calibrated(request, store, clock)
    results = path_in(folder, RESULTS)
    masks = _stored(results, "masks", lambda: _masks(request, counts, clock))
    images = _stored(results, "images", lambda: _images(plan, counts, masks, _lazily(results, "masks"), clock))
    pacbed = _stored(results, "pacbed", pacbed.to_dataset)[pacbed.name]
    evaluation = _stored(results, "evaluation", lambda: _evaluation(request, masks, images))
    found = (
        xr.Dataset()
        if plan.evidence is None
        else _stored(results, "evidence", lambda: _evidence(request, counts, clock))
    )
    return RecipeResult(
        recipe=plan,
        out=folder,
        store=store,
        results=results,
        counts=counts,
        pacbed=pacbed,
        masks=masks,
        images=images,
        evaluation=evaluation,
        sites=request.sites,
        seconds=clock.seconds,
        evidence=found,
    )


class _Clock:
    """Opens each stage and keeps what it took."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.seconds: dict[str, float] = {}

    def run(self, name: str, nbytes: int | None, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        with self._stage(name, nbytes):
            result = work()
        self.seconds[name] = time.perf_counter() - start
        return result


def _prepare(folder: str | Path, request: Request, overwrite: bool) -> None:
    """Make the folder of the results, with a note of what they depend on; what depends on something else goes."""
    stale = stale_results(folder, request, overwrite)
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)
    place = resolve(folder, read_only=False)
    for name in stale:
        delete_folder(place, name)
    text = json.dumps(depends_on(request), indent=1, sort_keys=True, ensure_ascii=False)
    with writing(str(folder)):
        put(place, NOTE, (text + "\n").encode())


def _open_or_convert(request: Request, folder: str | Path, clock: _Clock) -> str | Path:
    source = request.recipe.source_place()
    if is_store(source):
        return source
    store = path_in(folder, COUNTS)
    nbytes = source.stat().st_size if isinstance(source, Path) and source.is_file() else None
    clock.run("convert", nbytes, lambda: convert(source, store, **request.reading))
    return store


def _calibrated(request: Request, store: str | Path, clock: _Clock) -> tuple[xr.DataArray, xr.DataArray]:
    """The calibrated counts and their mean pattern, which the conversion gathered where it can."""
    stored = counts = open_counts(store)
    known, asked = request.calibration, request.recipe.calibration.descan
    statistics = stored_statistics(store)
    reads = request.reads_for_mean_pattern(counts, statistics)
    if asked is False:
        counts = counts.drop_vars(DESCAN, errors="ignore")
    if "descan" in reads:
        counts = clock.run("descan", counts.nbytes, lambda: descan(counts))
    if "calibrate" in reads:
        statistics = None

    def with_pattern() -> tuple[xr.DataArray, np.ndarray]:
        mean = pixel_statistics(counts)["mean"].compute() if statistics is None else statistics["pattern_mean"]
        pattern = mean.transpose(*DETECTOR).values
        return (calibrate(counts, **known, pacbed=pattern) if known else counts), pattern

    nbytes = counts.nbytes if statistics is None else None
    calibrated, pattern = clock.run("calibrate", nbytes, with_pattern)
    # A store that the user brought is not changed.
    if (known or asked) and store != request.recipe.source_place() and not _calibrated_alike(stored, calibrated):
        write_calibration(store, calibrated)
    coords = {dim: calibrated.coords[dim].variable for dim in DETECTOR}
    attrs = {"long_name": "mean pattern (PACBED)", "units": "counts"}
    pacbed = xr.DataArray(pattern, coords, DETECTOR, name="pattern_mean", attrs=attrs)
    return calibrated, pacbed


def _calibrated_alike(first: xr.DataArray, second: xr.DataArray) -> bool:
    facts = [{key: value for key, value in a.attrs.items() if key != HISTORY} for a in (first, second)]
    axes = all(first[dim].identical(second[dim]) for dim in first.dims)
    return facts[0] == facts[1] and axes and (DESCAN[0] in first.coords or DESCAN[0] not in second.coords)


def _masks(request: Request, counts: xr.DataArray, clock: _Clock) -> xr.Dataset:
    plan = request.recipe
    found = xr.Dataset()
    if plan.detectors:
        parts = [parse_detector(spec, counts) for spec in plan.detectors.values()]
        names = xr.DataArray(list(plan.detectors), dims=VIRTUAL, name=VIRTUAL, attrs={"long_name": "detector"})
        attrs = {"long_name": "mask of the detector", "units": "1"}
        found["detectors"] = _concat(parts, names).assign_attrs(attrs)
    if plan.templates is None:
        return found
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        templates = request.templates(counts)
    for note in notes:
        warnings.warn(str(note.message), stacklevel=2)
    region = request.detector_region(counts)
    regions = {"detector_region": region, "scan_region": request.scan_region}
    made: xr.DataArray | xr.Dataset
    if plan.masks.method == "ridge":
        lazy = derive_mask(counts, templates, method="ridge", solver="gram", **regions, **plan.masks.ridge)
        made = mask = clock.run("correlate", counts.nbytes, lazy.compute)
    else:
        made = clock.run("correlate", counts.nbytes, correlate(counts, templates, **regions).compute)
        mask = derive_mask(made, method=plan.masks.method)
    beside = ["rho", "mean", "std", "n", "detector_region"]
    beside += ["regularisation"] if plan.masks.method == "ridge" else []
    found["mask"] = mask.drop_vars(beside, errors="ignore")
    for name in beside:
        found[name] = made[name].variable
    found["templates"] = templates
    return found.assign_attrs(made.attrs, notes=[str(note.message) for note in notes])


def _images(plan: Recipe, counts: xr.DataArray, masks: xr.Dataset, stored: xr.Dataset, clock: _Clock) -> xr.Dataset:
    """Images of the detectors and of the derived masks, in one read.

    The weights are those that are `stored`, lazy: so each worker reads them, and the graph stays small. One read has
    one normalisation, and detectors want the counts as they are. So a derived mask goes in as the weights that
    standardising comes to, D_hat m^T = D (m/std)^T - sum(mean m / std), and the number is subtracted.
    """
    parts, used = [], np.zeros(counts.shape[2:], bool)
    if "detectors" in masks:
        parts.append(stored["detectors"].rename({VIRTUAL: TEMPLATE}))
        used |= (masks["detectors"] != 0).any(VIRTUAL).values
    if "mask" in masks:
        parts.append(_weights(stored, plan.images.normalisation))
        used |= (masks["mask"] != 0).any(TEMPLATE).values
    every = _concat(parts, TEMPLATE).assign_coords(detector_region=(DETECTOR, used))
    lazy = apply_mask(counts, every)
    made = clock.run("images", counts.nbytes, lazy.compute)
    found = xr.Dataset()
    if "detectors" in masks:
        found["virtual"] = made.sel({TEMPLATE: list(plan.detectors)}).rename({TEMPLATE: VIRTUAL})
        found[VIRTUAL].attrs["long_name"] = "detector"
    if "mask" in masks:
        image = made.sel({TEMPLATE: masks[TEMPLATE]})
        if plan.images.normalisation == "standardised":
            image = image - (_weights(masks, "standardised") * masks["mean"]).sum(DETECTOR)
        plain = plan.images.normalisation == "none" and masks["mask"].attrs["units"] == "1"
        units = "counts" if plain else "1"
        image.attrs = {**made.attrs, "normalisation": plan.images.normalisation, "units": units}
        found["image"] = image
    return found


def _weights(masks: xr.Dataset, normalisation: str) -> xr.DataArray:
    """Weights that masks come to for counts as they are."""
    if normalisation == "none":
        return masks["mask"]
    std = masks["std"]
    return xr.where(std > 0, masks["mask"] / std.where(std > 0, 1.0), 0.0).transpose(TEMPLATE, *DETECTOR)


def _concat(parts: list[xr.DataArray], dim: Any) -> xr.DataArray:
    """Masks of one detector as one array; only what they share is kept beside their values."""
    bare = [part.reset_coords(drop=True).drop_attrs(deep=False) for part in parts]
    return xr.concat(bare, dim=dim, coords="minimal", compat="override", join="exact")


def _evidence(request: Request, counts: xr.DataArray, clock: _Clock) -> xr.Dataset:
    """What the data say about the templates' sites, in two reads."""
    asked, templates = request.recipe.evidence, request.recipe.templates
    assert asked is not None
    assert templates is not None
    assert templates.sigma is not None
    width = templates.sigma
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of sites that were dropped; the masks' stage has told
        found = clock.run(
            "evidence",
            2 * counts.nbytes,
            lambda: evidence_on(
                counts,
                request.sites,
                asked.vectors,
                sigma=width,
                draws=asked.draws,
                detector_region=request.detector_region(counts),
                scan_region=request.scan_region,
            ),
        )
    return found.dataset


def _evaluation(request: Request, masks: xr.Dataset, images: xr.Dataset) -> xr.Dataset:
    """Cross-talk of the kinds of column, their contrast, and how every other image correlates with their templates."""
    if "mask" not in masks:
        return xr.Dataset()
    plan = request.recipe
    assert plan.templates is not None
    kinds = [name for name in images[TEMPLATE].values.tolist() if name != plan.templates.all_name]
    templates = masks["templates"].sel({TEMPLATE: kinds})
    table = cross_talk(images["image"].sel({TEMPLATE: kinds}), templates)
    table["contrast"] = site_contrast(images["image"].sel({TEMPLATE: kinds}), request.sites)
    rest = [images["image"].drop_sel({TEMPLATE: kinds})]
    if "virtual" in images:
        rest.append(images["virtual"].rename({VIRTUAL: TEMPLATE}))
    others = xr.concat(rest, dim=TEMPLATE, coords="minimal", compat="override", join="override")
    if others.sizes[TEMPLATE]:
        table["other"] = correlations(others, templates).rename({IMAGE: "other_image"})
    return table


def _stored(results: str | Path, group: str, work: Callable[[], xr.Dataset]) -> xr.Dataset:
    """A group of the results: read where an earlier run has finished it, else made and written whole."""
    store = resolve(results, read_only=False)
    if object_size(store, f"{group}/zarr.json") is None:
        made: dict[str, Any] = {}
        write_plain(work().load(), MemoryStore(made))  # workers would write into memory of their own
        with writing(str(results)):
            zarr.open_group(store, mode="a", zarr_format=3)
            delete_folder(store, group)
            # A group is there once its metadata are: they come last, so that what was cut short is made again.
            for key in sorted(made, key=lambda key: key == "zarr.json"):
                put(store, f"{group}/{key}", made[key].to_bytes())
    # Without dask, for which a cluster would be started.
    return xr.open_zarr(store, group=group, consolidated=False, chunks=None).load()


def _lazily(results: str | Path, group: str) -> xr.Dataset:
    """A group of the results that is read where it is needed."""
    return xr.open_zarr(resolve(results), group=group, consolidated=False, chunks={})


def write_plain(dataset: xr.Dataset, place: Store | Path, group: str | None = None) -> None:
    """Write a dataset as results are written: texts of any length, and only such attributes as are JSON."""
    plain = dataset.assign_attrs(tdm_dask=importlib.metadata.version("tdm-dask"))
    for name, variable in plain.variables.items():
        plain[name].attrs = {key: value for key, value in variable.attrs.items() if _is_json(value)}
        if variable.dtype.kind == "U":  # zarr 3 has a standard only for text of any length
            plain[name] = plain[name].astype(object)
    plain.to_zarr(place, group=group, mode="w" if group is None else "a", zarr_format=3, consolidated=False)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
