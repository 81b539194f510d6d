"""What a report says in words and numbers: a summary, the steps, the scan, the times, the versions."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..axes import DETECTOR, SCAN, VALID_PATTERNS, VALID_PIXELS, quantity, step_of, unit_of
from ..cluster.resources import active_client, resources
from ..recipe.plan import Plan
from ..recipe.run import RecipeResult
from ..words import bytes_text, time_text
from .description import descan_text, facts_text
from .figures import kinds_of_evidence, semi_angle_of
from .identity import was_converted
from .tables import cross_talk_rows, kinds_of

METHODS = {"pearson": "Pearson", "mean-scaled": "mean-scaled", "ridge": "ridge"}
PACKAGES = ("tdm-dask", "dask", "zarr", "xarray", "numpy", "numba", "rosettasciio", "matplotlib")
VERDICT_SENTENCES = {
    "supported": "The data single out the sites of {}",
    "not distinguished from other offsets": "other places in the cell may respond as strongly as those of {}",
    "not supported": "the sites of {} respond no more strongly than random ones",
}


def title_of(result: RecipeResult) -> str:
    """The recipe's title, or the name of its source."""
    return result.recipe.title or source_name(result)


def source_name(result: RecipeResult) -> str:
    """The file or store that the recipe names, without its folder."""
    return Path(result.recipe.source.path).name


def summary(result: RecipeResult) -> str:
    """What was done and what came of it, in one paragraph."""
    ny, nx, nky, nkx = result.counts.shape
    scan = f"{ny} × {nx} probe positions, {nky} × {nkx} detector pixels each"
    if unit_of(result.counts, "x") == "angstrom":
        scan += f", {_field_of_view(result)}"
    kinds, detectors = kinds_of(result), list(result.recipe.detectors)
    made = [f"the conventional {_number(len(detectors), 'image')} {_and(detectors)}"] if detectors else []
    if kinds:
        method = METHODS[result.recipe.masks.method]
        every = (
            f"an image of each kind of atom column ({_and(kinds)}) with {method} masks that it derived from the counts"
        )
        made.insert(0, every)
    sentences = [f"From {source_name(result)} ({scan}), tdm_dask made {', and '.join(made)}."]
    own = {row.name: row.r[row.name] for row in cross_talk_rows(result) if row.name in row.r}
    if own:
        low, high = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
        spread = f"R = {own[low]:.2f} ({low})" + (f" to {own[high]:.2f} ({high})" if len(own) > 1 else "")
        sentences.append(f"Each image correlates with the template of its own kind by {spread}.".replace("-", "−"))
    beyond = {row.name: row.excess for row in cross_talk_rows(result) if row.excess is not None}
    if len(own) > 1:
        most = max(beyond, key=beyond.__getitem__)
        more = f"{beyond[most]:.2f}".replace("-", "−")
        sentences.append(
            f"What it shows of other kinds differs from what their places explain by {more} at most ({most})."
        )
    sentences += _verdicts(result)
    text = " ".join(sentences)
    for between in (" = ", " × ", " nm"):  # numbers stay with what they are of
        text = text.replace(between, between.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _verdicts(result: RecipeResult) -> list[str]:
    kinds = kinds_of_evidence(result)
    if not kinds:
        return []
    found = dict(zip(kinds, map(str, result.evidence["verdict"].values), strict=True))
    parts = []
    for verdict, words in VERDICT_SENTENCES.items():
        of = [kind for kind in kinds if found[kind] == verdict]
        if of:
            parts.append(words.format(_and(of)))
    text = "; ".join(parts)
    return [text[0].upper() + text[1:] + "."]


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _number(n: int, what: str) -> str:
    return what if n == 1 else f"{what}s"


def steps(result: RecipeResult) -> Iterator[str]:
    """What was done, a sentence for each step."""
    recipe, took = result.recipe, result.seconds
    ny, nx, nky, nkx = result.counts.shape
    what = f"{source_name(result)}, {ny} × {nx} probe positions of {nky} × {nkx} detector pixels"
    if was_converted(result):
        yield f"Converted {what}, to the store {Path(result.store).name}{_time(took, 'convert')}."
    else:
        yield f"Opened the store {what}."
    shifts = descan_text(result.counts)
    if shifts:
        yield f"Moved every pattern by whole pixels, so that the bright-field disk stays in place: {shifts}."
    angle = semi_angle_of(result)
    if angle is not None:
        yield f"Found the bright-field disk in the mean pattern; its radius stands for {angle:.4g} mrad."
    asked = recipe.templates
    detectors = " and ".join(recipe.detectors)
    if asked is None:
        yield f"Applied {detectors} to the counts as they are{_time(took, 'images')}."
        return
    places = ", ".join(f"{len(at)} of {kind}" for kind, at in result.sites.items())
    width = f"sigma {_length(asked.sigma)}" if asked.sigma is not None else f"radius {_length(asked.radius)}"
    notes = " ".join(result.masks.attrs.get("notes", []))
    shape = asked.shape.capitalize() if asked.shape == "gaussian" else asked.shape
    yield f"Made {shape} templates, {width}, at the sites given: {places}. {notes}".rstrip()
    region = f", within {recipe.masks.detector_region}" if recipe.masks.detector_region else ""
    ranges = [f"{dim} {ends[0]}:{ends[1]}" for dim, ends in (recipe.masks.scan_region or {}).items()]
    part = f", from the probe positions {' and '.join(ranges)} alone" if ranges else ""
    ridge = recipe.masks.method == "ridge"
    yield (
        f"Correlated the image of every detector pixel with every template{' and every other pixel' * ridge}, in one "
        f"read of the counts, and derived {METHODS[recipe.masks.method]} masks{region}{part}"
        f"{_time(took, 'correlate')}.{' ' + _ridge_text(result) if ridge else ''}"
    )
    how = "standardised counts" if recipe.images.normalisation == "standardised" else "the counts as they are"
    beside = f", and {detectors} to the counts as they are" if detectors else ""
    yield f"Applied the masks to {how}{beside}, in one more read{_time(took, 'images')}."
    if kinds_of_evidence(result):
        yield (
            "Held every template against itself moved to all other places in the cell, and against "
            f"{result.evidence.attrs['draws']} templates of random sites, in two more reads{_time(took, 'evidence')}."
        )


def _ridge_text(result: RecipeResult) -> str:
    asked, found = result.recipe.masks, float(result.masks["regularisation"])
    after = {"both": "R and excess both", "R": "R", "excess": "excess"}[asked.objective or "both"]
    chosen = f"lambda {found:.3g}"
    if asked.regularisation in (None, "cross-validated"):
        chosen += f", chosen for {after} by cross-validation on 2 × 2 blocks of the scan"
    noise = ", which weighs pixels by their counting noise" if asked.counts_per_electron is not None else ""
    apart = "; every image answers to no template but its own where masks were derived" if asked.separate else ""
    return f"The masks solve for all templates together, by the matrix of the pixels, with {chosen}{noise}{apart}."


def _length(value: float | str | None) -> str:
    return f"{quantity(value or 0.0, 'angstrom', 'width'):.4g} Å"


def _time(seconds: Mapping[str, float], stage: str) -> str:
    return f" ({time_text(seconds[stage])})" if stage in seconds else ""


def scan_facts(result: RecipeResult) -> Iterator[tuple[str, str]]:
    """The scan, the detector, the calibration and the dose, each with its unit."""
    counts = result.counts
    yield "probe positions (y × x)", " × ".join(str(n) for n in counts.shape[:2])
    yield "detector pixels (ky × kx)", " × ".join(str(n) for n in counts.shape[2:])
    yield "counts", f"{counts.dtype}, {bytes_text(counts.nbytes)} uncompressed"
    for name, what in ((VALID_PATTERNS, "probe positions"), (VALID_PIXELS, "detector pixels")):
        if name in counts.coords:
            left_out = int((~counts.coords[name].astype(bool)).sum())
            yield f"{what} left out", f"{left_out} of {counts.coords[name].size}"
    if unit_of(counts, "x") == "angstrom":
        steps = [abs(step_of(counts, dim)) for dim in SCAN]
        yield "scan step (y, x)", f"{steps[0]:#.4g} Å, {steps[1]:#.4g} Å"
        yield "field of view (y × x)", _field_of_view(result)
    if unit_of(counts, "kx") == "mrad":
        steps = [step_of(counts, dim) for dim in DETECTOR]
        first = [float(counts[dim].values[0]) for dim in DETECTOR]
        edge = min(abs(float(counts[dim].values[end])) for dim in DETECTOR for end in (0, -1))
        yield "detector pixel (ky, kx)", f"{steps[0]:.4g} mrad, {steps[1]:.4g} mrad"
        yield "optic axis (ky, kx)", f"pixel {-first[0] / steps[0]:.2f}, {-first[1] / steps[1]:.2f}"
        yield "detector reaches", f"{edge:.3g} mrad on every side"
    yield from facts_text(counts.attrs)
    yield "mean sum of a pattern", f"{float(result.pacbed.sum()):,.0f} counts".replace(",", " ")


def _field_of_view(result: RecipeResult) -> str:
    sizes = zip(SCAN, result.counts.shape, strict=False)
    lengths = [abs(step_of(result.counts, dim)) * size / 10 for dim, size in sizes]
    return f"{lengths[0]:.3g} nm × {lengths[1]:.3g} nm"


def is_planned(plan: Plan | None) -> bool:
    """Whether there is something to hold the times against."""
    return plan is not None and bool(plan.stages)


def timing(result: RecipeResult, plan: Plan | None) -> Iterator[tuple[str, ...]]:
    """Of each stage that was run: its counts, tasks, the time that was expected and taken, its rate, and that of the
    trial; empty where that was not planned."""
    planned = {stage.name: stage for stage in (() if plan is None else plan.stages)}
    for name, took in result.seconds.items():
        stage = planned.get(name)
        if stage is None:
            yield name, "", "", "", time_text(took), "", ""
            continue
        rate = stage.counts_bytes / took
        yield (
            name,
            bytes_text(stage.counts_bytes),
            f"{stage.tasks:,}",
            time_text(stage.seconds),
            time_text(took),
            f"{bytes_text(rate)}/s",
            f"{rate / stage.bytes_per_second:.0%}",
        )
    if len(result.seconds) > 1:
        yield "in all", "", "", "", time_text(sum(result.seconds.values())), "", ""


def earlier_stages(result: RecipeResult) -> list[str]:
    """Stages whose results were there from an earlier run."""
    asked = {
        "convert": was_converted(result),
        "correlate": result.recipe.templates is not None,
        "images": True,
        "evidence": result.recipe.evidence is not None,
    }
    return [name for name, wanted in asked.items() if wanted and name not in result.seconds]


def computing_facts(plan: Plan | None) -> Iterator[tuple[str, str]]:
    """What it was computed with: workers, threads, memory."""
    here = resources() if plan is None else plan.resources
    threads = -(-here.threads // here.workers)
    yield "workers", f"{here.workers}, with {threads} {_number(threads, 'thread')}{' each' * (here.workers > 1)}"
    yield "memory of a worker", f"{bytes_text(here.memory_bytes)} to use"
    if plan is not None and plan.stages:
        yield "memory that a worker was expected to need", bytes_text(plan.worker_bytes)
    peak = _peak_bytes()
    if peak is not None and active_client() is None:
        yield "largest memory of the process", bytes_text(peak)
    yield "machine", f"{platform.system()} {platform.machine()}"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    yield "software", f"Python {platform.python_version()}, {', '.join(versions)}"


def _peak_bytes() -> int | None:
    """The most memory that this process has had; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
