"""The numbers of the viewer: masks, images and patterns of counts at hand, for whatever is chosen."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..axes import DETECTOR, SCAN, VALID_PATTERNS, step_of, unit_of
from ..columns.crystal import sites_from_cif
from ..columns.finding import Contrast, find_columns
from ..columns.lattice import Lattice
from ..columns.lattice_fit import places_in_cell
from ..columns.registration import register_sites
from ..columns.sites import Array
from ..counts.statistics import pixel_statistics
from ..detector.conventional_masks import annulus, disk
from ..errors import CalibrationError, InputError, SiteError
from ..evaluation.cross_talk import cross_talk
from ..evaluation.verdict import Evidence, evidence
from ..masks.derivation import apply_mask, derive_mask
from ..masks.proxies import proxy_bytes
from ..masks.ridge import LAMBDA
from ..masks.ridge_tuning import RidgeTuner
from ..masks.templates import gaussian_template
from .choices import DETECTORS, Choices

log = logging.getLogger(__name__)

_noting = threading.Lock()

# Templates take sites up to this many sigma outside the scan.
MARGIN = 3.0
# Columns nearer than this part of the separation are the same one.
SAME = 0.5


@dataclass(frozen=True)
class Look:
    """What some choices come to, all kinds of column together.

    Attributes
    ----------
    choices : Choices
    mask : DataArray (template, ky, kx)
    image : DataArray (template, y, x)
    table : Dataset
        Cross-talk of the images: `R`, `G` and `excess`.
    notes : tuple of str
        Such as of sites that lie outside the scan.
    """

    choices: Choices
    mask: xr.DataArray
    image: xr.DataArray
    table: xr.Dataset
    notes: tuple[str, ...] = ()


def fitting_bin(counts: xr.DataArray, memory: int) -> int:
    """The least number of detector pixels to sum along each axis for which the counts fit into some bytes.

    Raises
    ------
    InputError
        If not even patterns of one pixel fit.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> fitting_bin(label_counts(np.zeros((4, 4, 10, 10), np.uint8)), 800)
    2
    """
    for size in range(1, min(counts.shape[2:]) + 1):
        if proxy_bytes(counts, size) <= memory:
            return size
    raise InputError(
        f"Not even one number for each of {counts.shape[0]} x {counts.shape[1]} patterns fits; give a larger "
        "proxy_memory."
    )


def check_calibrated(counts: xr.DataArray, name: str) -> None:
    """Raise for counts without angstrom and mrad, with what would give them."""
    for dims, unit, what in (
        (SCAN, "angstrom", 'scan_step="0.32 Å"'),
        (DETECTOR, "mrad", 'semi_angle="23.5 mrad"'),
    ):
        if any(unit_of(counts, dim) != unit for dim in dims):
            part = "scan" if dims == SCAN else "detector"
            raise CalibrationError(
                f"The {part} of {name} is not calibrated, and the viewer works in angstrom and mrad; calibrate it "
                f"with {what} first."
            )


class Engine:
    """Answers about counts that lie in memory; many threads may ask.

    Parameters
    ----------
    small : DataArray, dims (y, x, ky, kx)
        A `tdm_dask.proxy` of the whole detector, calibrated in angstrom and mrad.
    bin : int
        Detector pixels of the full counts that went into one, along each axis.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> steps = {d: axis_coordinate(d, 24, 0.25, 0.0, "angstrom") for d in SCAN}
    >>> steps |= {d: axis_coordinate(d, 8, 2.0, -7.0, "mrad") for d in DETECTOR}
    >>> rng = np.random.default_rng(0)
    >>> engine = Engine(label_counts(rng.poisson(5, (24, 24, 8, 8)).astype(np.uint8), steps))
    >>> look = engine.look(Choices(sites={"Li": np.array([[3.0, 3.0]])}))
    >>> look.image.dims, engine.conventional(0, 4).shape
    (('template', 'y', 'x'), (24, 24))
    """

    def __init__(self, small: xr.DataArray, bin: int = 1) -> None:
        check_calibrated(small, "the counts")
        self.counts, self.bin = small, bin
        # Two, for to make what ridge masks need takes seconds.
        self._lock, self._ridge_lock = threading.Lock(), threading.Lock()
        self._conventional: dict[tuple[float, float], xr.DataArray] = {}
        self._ridge: tuple[Any, RidgeTuner] | None = None
        self._latest: Look | None = None
        statistics = pixel_statistics(small)
        self.pacbed: xr.DataArray = statistics["mean"].compute()

    @property
    def semi_angle(self) -> float | None:
        """In mrad, where it is known."""
        angle = self.counts.attrs.get("semi_angle_mrad")
        return None if angle is None else float(angle)

    @property
    def reach(self) -> float:
        """Radius in mrad of the largest disk on the detector."""
        ends = [
            abs(float(self.counts[d].values[end])) + abs(step_of(self.counts, d)) / 2
            for d in DETECTOR
            for end in (0, -1)
        ]
        return min(ends)

    def detectors(self) -> dict[str, tuple[float, float]]:
        """Conventional detectors to begin with, by name, as far as the detector reaches."""
        semi = self.semi_angle or self.reach / 3
        angles = {name: (inner * semi, min(outer * semi, self.reach)) for name, (inner, outer) in DETECTORS.items()}
        step = abs(step_of(self.counts, "kx"))
        wide = {name: pair for name, pair in angles.items() if pair[1] - pair[0] >= step}
        return wide or {"BF": (0.0, self.reach)}

    def first_choices(self) -> Choices:
        """What the page begins with where nothing was chosen before."""
        semi = self.semi_angle
        return Choices(detectors=self.detectors(), radius=None if semi is None else round(1.02 * semi, 3))

    def fitted(self, choices: Choices) -> Choices:
        """Choices from elsewhere, such as from a recipe: with a scan region inside this scan, and with detectors.

        Raises
        ------
        InputError
            If none of the region is inside.
        """
        choices = choices.with_(detectors=choices.detectors or self.detectors())
        if choices.regions is None:
            return choices
        ends: list[int] = []
        for dim, asked in zip(SCAN, choices.regions, strict=True):
            size = self.counts.sizes[dim]
            start, stop, _ = asked.indices(size)
            if stop <= start:
                raise InputError(
                    f"[masks] scan_region {dim} is [{asked.start}, {asked.stop}], of which the scan of {size} probe "
                    f"positions along {dim} has none; choose another region."
                )
            ends += [start, stop]
        return choices.with_(scan_region=(ends[0], ends[1], ends[2], ends[3]))

    def edges(self, region: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
        """First and last edge along y, then x, in angstrom, of the probe positions of a scan region."""
        ends: list[float] = []
        for dim, first, stop in zip(SCAN, region[::2], region[1::2], strict=True):
            axis, half = self.counts[dim].values, step_of(self.counts, dim) / 2
            ends += [float(axis[first]) - half, float(axis[stop - 1]) + half]
        return ends[0], ends[1], ends[2], ends[3]

    def region(
        self, edges: tuple[float, float, float, float], before: tuple[int, int, int, int]
    ) -> tuple[int, int, int, int]:
        """The scan region nearest to a rectangle: one that was moved beyond the scan stays as large as `before`."""
        chosen: list[int] = []
        for dim, ends, old in zip(SCAN, (edges[:2], edges[2:]), (before[:2], before[2:]), strict=True):
            size, step = self.counts.sizes[dim], step_of(self.counts, dim)
            origin = float(self.counts[dim].values[0]) - step / 2
            first, stop = sorted((end - origin) / step for end in ends)
            if abs(stop - first - (old[1] - old[0])) < 1e-3:
                first = float(np.clip(first, 0, size - (old[1] - old[0])))
                stop = first + (old[1] - old[0])
            start = int(np.clip(round(first), 0, size - 1))
            chosen += [start, int(np.clip(round(stop), start + 1, size))]
        return chosen[0], chosen[1], chosen[2], chosen[3]

    def conventional(self, inner: float, outer: float) -> xr.DataArray:
        """Image (y, x) of a disk or annulus, in counts."""
        key = (round(inner, 6), round(outer, 6))
        with self._lock:
            if key in self._conventional:
                return self._conventional[key]
        mask = annulus(self.counts, *key) if inner > 0 else disk(self.counts, outer)
        image = apply_mask(self.counts, mask).compute()
        with self._lock:
            while len(self._conventional) >= 2 * len(DETECTORS):
                del self._conventional[next(iter(self._conventional))]
            self._conventional[key] = image
        return image

    def pattern(self, y: float, x: float) -> xr.DataArray:
        """The pattern (ky, kx) of the probe position nearest to a place in angstrom."""
        return self.counts.sel(y=y, x=x, method="nearest")

    def pixel_image(self, ky: float, kx: float) -> xr.DataArray:
        """The image (y, x) of the detector pixel nearest to a place in mrad."""
        image = self.counts.sel(ky=ky, kx=kx, method="nearest").astype(np.float32)
        return image.where(self.counts[VALID_PATTERNS]) if VALID_PATTERNS in self.counts.coords else image

    def look(self, choices: Choices) -> Look:
        """Masks and images of all kinds that have sites.

        Raises
        ------
        SiteError
            If there are no sites.
        InputError
            As `tdm_dask.gaussian_template`, `derive_mask` and `RidgeTuner` raise, about what is chosen.
        """
        latest = self._latest  # what a new tab asks for is often what the last one saw
        if latest is not None and latest.choices == choices:
            return latest
        with noted() as notes:
            template = self.templates(choices)
            mask = self._masks(choices, template)
        image = apply_mask(self.counts, mask, normalisation=choices.normalisation).compute()
        self._latest = look = Look(choices, mask, image, cross_talk(image, template), tuple(notes))
        return look

    def templates(self, choices: Choices) -> xr.DataArray:
        """Templates (template, y, x) of the sites."""
        if not choices.placed:
            raise SiteError("There are no sites yet: click on the image to place some, or find or load them.")
        return gaussian_template(self.counts, choices.placed, sigma=choices.sigma).compute()

    def _masks(self, choices: Choices, template: xr.DataArray) -> xr.DataArray:
        regions = self._regions(choices)
        if choices.method != "ridge":
            return derive_mask(self.counts, template, method=choices.method, **regions).compute()
        asked = choices.rest.get("masks", {})
        separate, electron = bool(asked.get("separate")), asked.get("counts_per_electron")
        if isinstance(choices.regularisation, str):
            chosen = {key: asked[key] for key in ("objective", "separate", "counts_per_electron") if key in asked}
            return derive_mask(self.counts, template, method="ridge", **chosen, **regions).compute()
        key = (choices.radius, choices.scan_region, electron)
        with self._ridge_lock:  # one thread makes it, and the others wait for that
            if self._ridge is None or self._ridge[0] != key:
                self._ridge = None  # not two at a time
                self._ridge = key, RidgeTuner(self.counts, counts_per_electron=electron, **regions)
            tuner = self._ridge[1]
        return tuner.mask(template, choices.regularisation, separate=separate)

    def chosen_lambda(self, choices: Choices) -> float:
        """Lambda of ridge masks by cross-validation on blocks of the scan."""
        look = self.look(choices.with_(method="ridge", regularisation="cross-validated"))
        return float(look.mask[LAMBDA])

    def _regions(self, choices: Choices) -> dict[str, Any]:
        region = None if choices.radius is None else disk(self.counts, choices.radius)
        return {"detector_region": region, "scan_region": choices.regions}

    def evidence(self, choices: Choices, draws: int) -> Evidence:
        """What the counts at hand say about the sites: `tdm_dask.evidence`."""
        if choices.cell is None:
            raise SiteError("The unit cell is not known yet: fit the lattice, or load sites from a CIF, first.")
        regions = self._regions(choices)
        return evidence(self.counts, choices.placed, choices.cell, sigma=choices.sigma, draws=draws, **regions)

    def peaks(self, image: xr.DataArray, choices: Choices, separation: float, contrast: Contrast) -> Array:
        """Columns that an image shows where no site is yet."""
        found = find_columns(image, separation=separation, contrast=contrast)
        known = _together(choices.placed)
        apart = np.hypot(*(found[:, None] - known).transpose(2, 0, 1)).min(1, initial=np.inf)
        return found[apart > SAME * separation]

    def extended(self, image: xr.DataArray, choices: Choices, separation: float, contrast: Contrast) -> Choices:
        """Sites over the whole scan, from the period of an image and those that are placed; with none, its own columns.

        Raises
        ------
        SiteError
            If the image shows no lattice.
        """
        lattice = Lattice.from_image(image, separation=separation, contrast=contrast)
        if choices.placed:
            tolerance = SAME * separation
            motif = {
                kind: places_in_cell(places - lattice.origin, lattice.vectors, tolerance)
                for kind, places in choices.placed.items()
            }
            lattice = lattice.with_motif(motif)
        return self._on_lattice(choices, lattice)

    def from_cif(
        self, path: Path, zone_axis: tuple[int, int, int], image: xr.DataArray, contrast: Contrast, choices: Choices
    ) -> tuple[Choices, str]:
        """Sites of a crystal laid over an image, and what there is to say about it."""
        crystal = sites_from_cif(path, zone_axis)
        with noted():
            found = register_sites(crystal, image, contrast="adf" if contrast == "bright" else "abf")
        return self._on_lattice(choices.with_(sites={}), found.lattice), found.message

    def _on_lattice(self, choices: Choices, lattice: Any) -> Choices:
        sites = lattice.sites(self.counts, margin=MARGIN * choices.sigma)
        empty = {kind: places for kind, places in choices.sites.items() if kind not in sites}
        return choices.with_(sites={**sites, **empty}, cell=np.asarray(lattice.vectors))


def _together(sites: Mapping[str, Array]) -> Array:
    return np.concatenate([np.empty((0, 2)), *(np.asarray(places, np.float64) for places in sites.values())])


@contextmanager
def noted() -> Any:
    """Collect what this package warns of, as sentences; in one thread at a time, for warnings are of all threads."""
    notes: list[str] = []
    with _noting, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += dict.fromkeys(str(note.message) for note in caught)


class Latest:
    """Works on the latest of many requests, in a thread of its own: those that came while it was busy are skipped.

    Parameters
    ----------
    work : callable
        Called with a request.
    done : callable
        Called with the request and the result, or the exception, in that thread. What it raises is logged.
    skip : bool, default True
        If False, all requests are answered, one after the other.

    Examples
    --------
    >>> answers = []
    >>> latest = Latest(lambda n: n * n, lambda request, answer: answers.append(answer))
    >>> latest.ask(3)
    >>> latest.close()
    >>> answers
    [9]
    """

    def __init__(self, work: Callable[[Any], Any], done: Callable[[Any, Any], None], *, skip: bool = True) -> None:
        self._work, self._done, self._skip = work, done, skip
        self._changed = threading.Condition()
        self._waiting: list[Any] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="tdm-view", daemon=True)
        self._thread.start()

    def ask(self, request: Any) -> None:
        """Answer this next, and nothing that waits; or after what waits, if nothing is to be skipped."""
        with self._changed:
            self._waiting = [request] if self._skip else [*self._waiting, request]
            self._changed.notify()

    def close(self, *, wait: bool = True) -> None:
        """End when what waits is answered, and wait for that; or without answering it, and without waiting."""
        with self._changed:
            self._closed = True
            self._waiting = self._waiting if wait else []
            self._changed.notify()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                request = self._waiting.pop(0)
            try:
                answer = self._work(request)
            except Exception as error:
                answer = error
            try:
                self._done(request, answer)
            except Exception:  # as of a page that is gone
                log.warning("An answer of the viewer came to nothing.", exc_info=True)
