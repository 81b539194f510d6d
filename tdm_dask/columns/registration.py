"""A crystal's columns laid over an image: rotation, handedness, strain and origin, and what the image leaves open."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN, step_of
from ..counts.statistics import region_flags
from ..errors import InputError, SiteError
from .column_model import Model, rendered, without_plane
from .crystal import atomic_numbers
from .finding import scan_image
from .lattice import Lattice
from .orientation import orientations
from .periodicity import spectrum
from .sites import Array
from .trials import Trial, apart, merged, tried

ColumnContrast = Literal["adf", "abf"]

# Intensity of a column against the atomic numbers in it: Rutherford scattering, screened, for ADF; for ABF columns of
# light atoms are dark too, and much less follows from Z.
_EXPONENT = {"adf": 1.7, "abf": 0.6}
_SIGN = {"adf": 1.0, "abf": -1.0}
_BLUR = 0.4  # angstrom, to start from
_WINDOW = 14  # longer vectors: the part of the image in which candidates are sought
_GROWTH = 2.0
_MOST_REFINED = 8
_FEWEST_PIXELS = 64
# A candidate this many standard errors worse than the best is told from it.
_SETTLED = 3.0
_FEWEST_BLOCKS = 8
# Twice the gain in log-likelihood below which noise may have made it: the best of about ten thousand places and eight
# unknowns gains 2 ln 10^4 + 8 = 26 from noise alone.
_SEEN = 40.0


@dataclass(frozen=True)
class Candidate:
    """One way to lay a crystal over an image.

    Attributes
    ----------
    lattice : Lattice
    score : float
        Correlation of the image with Gaussians at its sites, a plane taken off both.
    rotation : float
        Degrees, counter-clockwise as images are drawn (y down, x to the right), from the frame of the given lattice.
    mirrored : bool
        Whether the given lattice is mirrored left to right before it is rotated: the image shows the crystal as seen
        from the other side, or its axes are flipped or transposed.
    strain : (float, float)
        Principal strains of the given lattice.
    blur : float
        Standard deviation of the columns, in angstrom.
    worse_by : float
        How much worse than the best candidate it fits, in standard errors over blocks of about a cell; 0 for the best.
    distance : float
        How far, at most, its sites lie from sites of the best candidate of their kind, in angstrom.
    orientations : int
        Number of orientations and mirror images found that give the same sites: the symmetry of the projection.
    """

    lattice: Lattice
    score: float
    rotation: float
    mirrored: bool
    strain: tuple[float, float]
    blur: float
    worse_by: float = 0.0
    distance: float = 0.0
    orientations: int = 1

    def __str__(self) -> str:
        hand = "mirrored and " if self.mirrored else ""
        return f"{hand}rotated by {self.rotation:.1f}°, score {self.score:.3f}"


@dataclass(frozen=True)
class Registration:
    """A crystal laid over an image.

    Attributes
    ----------
    lattice : Lattice
        The best candidate's.
    candidates : tuple of Candidate
        Best first; those that give the same sites are one.
    ambiguous : bool
        Whether another candidate fits nearly as well.
    message : str
        What the image settles and what it does not, in words.
    """

    lattice: Lattice
    candidates: tuple[Candidate, ...]
    ambiguous: bool
    message: str

    def sites(self, scan: xr.DataArray, *, margin: float | str = 0.0) -> dict[str, Array]:
        """Sites of every kind inside a scan: :meth:`tdm_dask.columns.lattice.Lattice.sites`."""
        return self.lattice.sites(scan, margin=margin)


def register_sites(
    lattice: Lattice,
    image: xr.DataArray,
    *,
    contrast: ColumnContrast = "adf",
    weights: Mapping[str, float] | None = None,
    scan_region: Any = None,
    max_strain: float = 0.06,
    drift: int = 0,
) -> Registration:
    r"""Lay the columns of a crystal over an image of it.

    Rotation, handedness (mirror images, transposed axes), strain and origin are taken from the image. Pairs of
    frequencies that stand out of its Fourier transform are matched with pairs of the crystal's; each match within
    `max_strain` is an orientation. For each, the components F of the image at the crystal's frequencies g, and the
    structure factors S of its motif, give the correlation at all origins q of the cell at once,

    .. math:: C(q) = \sum_g F(g) S^*(g) \exp(2 \pi i\, g \cdot q)

    and the maxima of C are the candidates. Each is refined by least squares: the image as a plane and Gaussians at the
    sites, of fixed relative weights.

    Parameters
    ----------
    lattice : Lattice
        With a motif of all kinds, as :func:`tdm_dask.sites_from_cif` gives it.
    image : DataArray (y, x)
        In angstrom, such as an ADF image; at least two cells along y and x. NaN and what a `valid_patterns` coordinate
        marks are left out. A lazy image is computed: what it reads is read once.
    contrast : {"adf", "abf"}, default "adf"
        How bright columns are: the sum over their atoms of Z^1.7, or minus that of Z^0.6 (dark columns).
    weights : mapping of str to float, optional
        Brightness of each kind of column above the background instead, negative where dark. Zero for columns that the
        image does not show.
    scan_region : slices or boolean (y, x), optional
        The probe positions to register to, such as one domain of a crystal. Default: all.
    max_strain : float, default 0.06
        How far the scan's calibration, shear and drift may stretch the crystal in any direction.
    drift : int, default 0
        Highest degree of the polynomials of a slow drift that the lattice follows; below 2 there is none, as shear and
        a constant drift are in the vectors already.

    Returns
    -------
    Registration

    Raises
    ------
    SiteError
        If the image shows no period, or none that the crystal has within the strain allowed; or weights are missing.
    CoordinateError
        If the image is not in angstrom.

    Warns
    -----
    UserWarning
        If another candidate fits nearly as well: less than three standard errors worse, over blocks of about a cell.
        Its sites differ from those of the best one, as the message says. The standard error covers noise and what
        differs from cell to cell, not what Gaussians of fixed weights miss in every cell alike.

    Notes
    -----
    The image decides by the columns that it shows. Columns that it does not show lie where the crystal has them.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> crystal = Lattice([[4.0, 0], [0, 3.0]], {"Pb": [(0, 0)], "Ti": [(0.4, 0.3)]})
    >>> steps = {dim: axis_coordinate(dim, 60, 0.3, unit="angstrom") for dim in ("y", "x")}
    >>> scan = xr.DataArray(np.zeros((60, 60)), coords=steps, dims=("y", "x"))
    >>> moved = Lattice([[0, 4.0], [-3.0, 0]], crystal.motif, origin=(0.7, 1.1))
    >>> image = rendered(Model(moved, np.array([10.0, 3.0]), 0.5), scan)
    >>> found = register_sites(crystal, scan.copy(data=image))
    >>> round(found.candidates[0].rotation), found.candidates[0].mirrored, found.ambiguous
    (90, False, False)
    """
    if not 0 < max_strain < 0.5:
        raise InputError(f"max_strain={max_strain} was given; expected a part of the length between 0 and 0.5.")
    measured = scan_image(image, "A registration")
    flags = region_flags(measured, scan_region, SCAN, "scan_region")
    used = np.isfinite(measured.values) if flags is None else np.isfinite(measured.values) & flags
    if used.sum() < _FEWEST_PIXELS:
        raise SiteError(f"The scan_region holds {int(used.sum())} valid probe positions; a registration needs more.")
    strength = column_weights(lattice, contrast, weights)
    reach = _WINDOW / 2 * float(np.hypot(*lattice.vectors.T).max())
    window = _around_middle(measured, used, reach)
    starts = orientations(lattice, strength, spectrum(measured, window), max_strain)
    trials = [tried(lattice, Model(start, strength, _BLUR), measured, window, 0, max_strain, 6) for start in starts]
    kept = merged(trials, measured)[:_MOST_REFINED]
    while kept and (window != used).any():
        trials = [tried(lattice, t.model, measured, window, drift, max_strain, 4, t.orientations) for t in kept]
        kept = merged(trials, measured)
        reach *= _GROWTH
        window = _around_middle(measured, used, reach)
    trials = [tried(lattice, t.model, measured, used, drift, max_strain, 15, t.orientations) for t in kept]
    kept = merged(trials, measured)
    if not kept:
        raise SiteError(
            f"No orientation of the crystal fits the image within a strain of {max_strain:g}; check the scan step, the "
            "zone axis, the contrast and max_strain=..., or take a larger or sharper image."
        )
    _check_seen(kept[0], measured, used)
    candidates = _compared(kept, measured, used)
    message, ambiguous = _in_words(candidates)
    if ambiguous:
        warnings.warn(message, stacklevel=2)
    return Registration(candidates[0].lattice, candidates, ambiguous, message)


def column_weights(lattice: Lattice, contrast: str, weights: Mapping[str, float] | None) -> Array:
    """Brightness of each site of a lattice's motif, in its order: as `register_sites` says."""
    if weights is not None:
        missing = [kind for kind in lattice.motif if kind not in weights]
        if missing:
            raise SiteError(f'There is no weight for "{missing[0]}"; give one for each of {", ".join(lattice.motif)}.')
        values = [float(weights[kind]) for kind, places in lattice.motif.items() for _ in places]
    elif contrast not in get_args(ColumnContrast):
        raise InputError(f'The contrast is {contrast!r}; expected "adf", "abf", or weights of the kinds.')
    else:
        values = []
        for kind, places in lattice.motif.items():
            numbers = atomic_numbers(kind)
            content = lattice.columns[kind] if lattice.columns else [dict.fromkeys(numbers, 1.0)] * len(places)
            for column in content:
                if not column:
                    raise SiteError(f'"{kind}" names no elements, so that its brightness is unknown; give the weights.')
                z = {element: atomic_numbers(element)[element] for element in column}
                power = _EXPONENT[contrast]
                values.append(_SIGN[contrast] * sum(n * float(z[element]) ** power for element, n in column.items()))
    strength = np.array(values)
    if not np.isfinite(strength).all() or not strength.any():
        raise SiteError(f"The weights of the columns are {strength.tolist()}; expected finite ones, not all zero.")
    return strength / np.abs(strength).max()


def _around_middle(image: xr.DataArray, used: npt.NDArray[np.bool_], reach: float) -> npt.NDArray[np.bool_]:
    """The used probe positions within a square about one in the middle of what is used."""
    places = np.stack(np.meshgrid(*(image.coords[dim].values for dim in SCAN), indexing="ij"), axis=-1)
    inside = places[used]
    middle = inside[((inside - inside.mean(0)) ** 2).sum(1).argmin()]
    return np.asarray(used & (np.abs(places - middle) <= reach).all(-1))


def _compared(trials: list[Trial], image: xr.DataArray, used: npt.NDArray[np.bool_]) -> tuple[Candidate, ...]:
    """Candidates with how much worse than the best each fits, by its residuals block by block."""
    data = without_plane(image, image.values, used)
    size = float(np.hypot(*trials[0].model.lattice.vectors.T).max())
    blocks = _blocks(image, used, size)
    squares: list[Array] = []
    candidates: list[Candidate] = []
    for trial in trials:
        shape = without_plane(image, rendered(trial.model, image), used)
        squares.append((data - (data * shape).sum() / (shape**2).sum() * shape) ** 2)
        worse = _standard_errors(squares[-1] - squares[0], blocks, float((data**2).sum()))
        lattice = trial.model.lattice
        candidates.append(
            Candidate(
                lattice,
                trial.score,
                trial.rotation,
                trial.mirrored,
                trial.strain,
                trial.model.blur,
                worse,
                apart(lattice, trials[0].model.lattice, image) if len(candidates) else 0.0,
                len(trial.orientations),
            )
        )
    return tuple(candidates)


def _check_seen(trial: Trial, image: xr.DataArray, used: npt.NDArray[np.bool_]) -> None:
    """Raise unless a correlation is more than the best of many places would reach in noise."""
    pixel = abs(float(np.prod([step_of(image, dim) for dim in SCAN])))
    # What is nearer than the width of a column is no independent evidence.
    places = used.sum() * min(pixel / (4 * np.pi * trial.model.blur**2), 1.0)
    gain = -places * np.log1p(-(min(trial.score, 1 - 1e-12) ** 2))
    if gain < _SEEN:
        raise SiteError(
            f"The crystal hardly shows in the image: the correlation at its best place, {trial.score:.3f} over about "
            f"{places:.0f} independent places, may be noise: check the zone axis, the scan step and the contrast, or "
            "take a larger or sharper image."
        )


def _standard_errors(excess: Array, blocks: list[tuple[Any, ...]], scale: float) -> float:
    """A sum over pixels in units of its standard error, from how it scatters between blocks."""
    sums = np.array([excess[block].sum() for block in blocks])
    error = float(sums.std(ddof=1) * np.sqrt(len(sums)))
    return float(sums.sum()) / error if error > 1e-9 * scale else 0.0


def _blocks(image: xr.DataArray, used: npt.NDArray[np.bool_], size: float) -> list[tuple[Any, ...]]:
    """Pixels of blocks that a region falls into, of about a cell, or less where there would be few."""
    y, x = (image.coords[dim].values for dim in SCAN)
    while True:
        number = np.add.outer(
            np.floor((y - y.min()) / size).astype(int) * 10**6, np.floor((x - x.min()) / size).astype(int)
        )
        found = [np.nonzero(used & (number == n)) for n in np.unique(number[used])]
        if len(found) >= _FEWEST_BLOCKS:
            return found
        size /= 1.5


def _in_words(candidates: tuple[Candidate, ...]) -> tuple[str, bool]:
    """What the image settles, and whether it leaves anything open."""
    best, *others = candidates
    text = f"The crystal lies on the image {best}."
    if best.orientations > 1:
        text += f" {best.orientations} of its rotations and mirror images give the same sites."
    close = [c for c in others if c.worse_by < _SETTLED]
    if close:
        listed = "; ".join(f"{c} ({c.distance:.2f} angstrom, {c.worse_by:.1f} standard errors)" for c in close[:4])
        text += (
            f" The image does not settle this. Nearly as well fit, with sites elsewhere (up to this far, worse by this "
            f"much): {listed}."
        )
    elif others:
        text += f" The next candidate, {others[0]}, fits worse by {others[0].worse_by:.1f} standard errors."
    else:
        text += " No other candidate comes near."
    return text, bool(close)
