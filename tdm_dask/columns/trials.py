"""Ways to lay a crystal over an image that were tried, and which of them give the same sites."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.spatial import cKDTree

from ..axes import SCAN
from ..errors import SiteError
from .column_model import Model, refined
from .lattice import Lattice

# Candidates whose sites all lie within this distance, in angstrom, of sites of their kind are the same one.
_SAME = 0.12
# Candidates are dropped below this part of the best score.
_WORST = 0.7
_TURN = 3.0  # degrees: rotations nearer than this are the same


@dataclass(frozen=True)
class Trial:
    """A fitted model with its map from the given lattice, and the maps of those that give the same sites."""

    model: Model
    score: float
    rotation: float
    mirrored: bool
    strain: tuple[float, float]
    orientations: tuple[tuple[bool, float], ...]


def tried(
    given: Lattice,
    model: Model,
    image: xr.DataArray,
    used: npt.NDArray[np.bool_],
    drift: int,
    max_strain: float,
    steps: int,
    known: tuple[tuple[bool, float], ...] = (),
) -> Trial | None:
    """A model refined on a part of the image, or None where it does not settle."""
    try:
        fitted = refined(model, image, used, drift, steps=steps)
    except SiteError:
        return None
    rotation, mirrored, strain = _decomposed(given, fitted.model.lattice)
    # The first guess comes from single periods; what exceeds the limit only a little may still be within it.
    if max(map(abs, strain)) > 1.5 * max_strain or not fitted.score > 0:
        return None
    return Trial(fitted.model, fitted.score, rotation, mirrored, strain, known or ((mirrored, rotation),))


def _decomposed(given: Lattice, found: Lattice) -> tuple[float, bool, tuple[float, float]]:
    """Rotation in degrees, handedness and principal strains of the map from one lattice to another."""
    change = np.linalg.inv(given.vectors) @ found.vectors
    mirrored = bool(np.linalg.det(change) < 0)
    if mirrored:
        change = np.diag([1.0, -1.0]) @ change
    left, stretches, right = np.linalg.svd(change)
    turn = left @ right
    rotation = float(np.degrees(np.arctan2(turn[0, 1], turn[0, 0])))
    return rotation, mirrored, (float(stretches[0] - 1), float(stretches[1] - 1))


def merged(trials: list[Trial | None], image: xr.DataArray) -> list[Trial]:
    """Trials that give different sites, best first, without those that fit far worse."""
    groups: list[list[Trial]] = []
    for trial in sorted((t for t in trials if t is not None), key=lambda t: -t.score):
        if groups and trial.score < _WORST * groups[0][0].score:
            break
        same = next((g for g in groups if apart(trial.model.lattice, g[0].model.lattice, image) < _SAME), None)
        if same is None:
            groups.append([trial])
        else:
            same.append(trial)
    kept = []
    for group in groups:
        maps: list[tuple[bool, float]] = []
        for mirrored, rotation in (m for trial in group for m in trial.orientations):
            turned = [abs((rotation - r + 180) % 360 - 180) for m, r in maps if m == mirrored]
            if not turned or min(turned) > _TURN:
                maps.append((mirrored, rotation))
        # Of equals, the one that asks for the least.
        plain = min(group, key=lambda t: (t.score < group[0].score - 0.01, t.mirrored, round(abs(t.rotation), 1)))
        kept.append(replace(plain, orientations=tuple(maps)))
    return kept


def apart(one: Lattice, other: Lattice, image: xr.DataArray) -> float:
    """How far, at most, sites of one lattice lie from sites of the same kind of another, in angstrom."""
    longest = float(np.hypot(*other.vectors.T).max())
    # Half a dozen cells tell lattices apart as well as a whole scan; the four corners of it tell strains apart.
    far = 0.0
    for window in _corners(image, 3 * longest):
        places, others = one.sites(window), other.sites(window, margin=longest)
        for kind in places:
            if len(places[kind]) and not len(others[kind]):
                return np.inf
            if len(places[kind]):
                far = max(far, float(cKDTree(others[kind]).query(places[kind])[0].max()))
    return far


def _corners(image: xr.DataArray, size: float) -> list[xr.DataArray]:
    """The image's corners and middle, each at most `size` wide; one where they overlap."""
    spans = []
    for dim in SCAN:
        values = np.sort(image.coords[dim].values)
        low, high = values[0], values[-1]
        starts = (low, (low + high - size) / 2, high - size)
        spans.append([(s, s + size) for s in starts] if high - low > 2 * size else [(low, high)])
    boxes = [(a, b) for i, a in enumerate(spans[0]) for j, b in enumerate(spans[1]) if (i + j) % 2 == 0]
    windows = []
    for box in boxes:
        coords = {d: xr.Variable(d, list(s), {"units": "angstrom"}) for d, s in zip(SCAN, box, strict=True)}
        windows.append(xr.DataArray(np.zeros((2, 2)), coords=coords, dims=SCAN))
    return windows
