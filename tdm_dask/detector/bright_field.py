"""Finding the bright-field disk in a mean pattern, on plain NumPy arrays.

The disk is searched in two steps. Contours of the smoothed pattern at a ladder of levels give candidate
circles (RANSAC, so that a beam stop, hot pixels or Kikuchi lines do not matter); the candidate with the
strongest step across its edge is refined by fitting a soft-edged disk to the pixels around the edge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize, special
from skimage.measure import find_contours

from ..errors import CalibrationError

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_SMOOTHING = (0.7, 1.5, 3.0)  # px; the wider ones are for doses at which single pixels are mostly noise
_LEVELS = np.geomspace(0.04, 0.85, 10)  # of the brightest part of the smoothed pattern
_MIN_RADIUS = 2.5  # px; below it a disk and a Gaussian spot cannot be told apart
_MIN_VISIBLE = 0.5
_CONTOURS = 8  # per level; noise has many short ones
_LARGE = 300  # px; larger patterns are searched binned
_MIN_STEP = 8.0  # standard errors of the fitted step; the search tries some thousand circles
_MIN_SHARPNESS = 0.5
_MAX_SOFTNESS = 0.24
_MAX_NOISE = 0.23  # of the step over the root of the radius; beyond it the radius is off by several percent
_MAX_ELLIPTICITY = 0.1


class BrightFieldDisk(NamedTuple):
    """The bright-field disk of a mean pattern, in detector pixels.

    Attributes
    ----------
    centre : tuple of float
        Pixel indices (ky, kx) of the optic axis; (0, 0) is the middle of the first pixel.
    radius : float
        Radius; with rectangular pixels the geometric mean of the two in `radii`.
    residual : float
        Root mean square deviation of the pattern from the fitted soft-edged disk, around the edge, in
        units of the step at the edge.
    aspect : float
        Height (ky) over width (kx) of a pixel.
    """

    centre: tuple[float, float]
    radius: float
    residual: float
    aspect: float = 1.0

    @property
    def radii(self) -> tuple[float, float]:
        """Half axes along (ky, kx) in pixels of each axis."""
        root = float(np.sqrt(self.aspect))
        return self.radius / root, self.radius * root


def find_bf_disk(
    pacbed: npt.ArrayLike,
    valid: npt.ArrayLike | None = None,
    *,
    centre: tuple[float, float] | None = None,
    aspect: float = 1.0,
) -> BrightFieldDisk:
    """Find centre and radius of the bright-field disk in a mean pattern.

    Parameters
    ----------
    pacbed : array (nky, nkx)
        Mean (or summed) pattern. Pixels that are not finite are taken as invalid.
    valid : boolean array (nky, nkx), optional
        False at pixels that must not be used.
    centre : (float, float), optional
        Pixel indices (ky, kx) of the centre where it is known; then only the radius is fitted.
    aspect : float, default 1
        Height over width of a pixel; 1 is a square pixel.

    Returns
    -------
    BrightFieldDisk
        Centre and radius in pixels, and how well a soft-edged disk describes the edge.

    Raises
    ------
    CalibrationError
        If there is no disk, less than half of its edge lies on valid pixels, or it is an ellipse where
        square (or the given) pixels would make it a circle.

    Notes
    -----
    Around the edge the pattern is described by a step that is blurred twice,
    ``(A + B u) E(u / w) + C L(u / g) + D``, where u is the distance to the circle, E the complementary error
    function (pixel and aperture) and L the integral of a Lorentzian (phonon and inelastic tails). Both are
    symmetric, so tails do not shift the radius. A varies with azimuth in even orders up to the eighth, as the
    disk of a thick crystal does. The radius is where the edge has half its intensity; simulations that smooth
    an aperture's amplitude over one pixel have that 0.15 pixels inside the nominal semi-angle.

    Examples
    --------
    >>> import numpy as np
    >>> ky, kx = np.indices((64, 64))
    >>> pattern = 10.0 / (1 + np.exp((np.hypot(ky - 30.3, kx - 33.6) - 15.2) / 0.3))
    >>> disk = find_bf_disk(pattern)
    >>> [round(float(c), 1) for c in disk.centre], round(disk.radius, 1)
    ([30.3, 33.6], 15.2)
    """
    image = np.array(pacbed, dtype=np.float64)
    if image.ndim != 2:
        raise CalibrationError(f"The mean pattern has {image.ndim} dimensions; expected two (ky, kx).")
    usable = np.isfinite(image)
    if valid is not None:
        flags = np.asarray(valid, dtype=bool)
        if flags.shape != image.shape:
            raise CalibrationError(
                f"valid has shape {flags.shape}, the mean pattern {image.shape}; they must be the same."
            )
        usable &= flags
    if not (np.isfinite(aspect) and aspect > 0):
        raise CalibrationError(f"The pixel aspect is {aspect!r}; expected a positive finite number.")
    image[~usable] = 0.0
    if usable.sum() < 25 or np.ptp(image[usable]) <= 1e-9 * np.abs(image[usable]).max():
        raise CalibrationError(
            "No bright-field disk was found: the mean pattern is empty or constant; give centre=... and pixel_size."
        )
    # Coordinates in which a disk is a circle of the same area as in pixels.
    scale = np.array([np.sqrt(aspect), 1 / np.sqrt(aspect)])
    fixed = None if centre is None else np.asarray(centre, dtype=np.float64) * scale
    usable = despiked(image, usable)
    circle = _search(image, usable, scale, fixed)
    return _refined(image, usable, scale, circle, fixed, aspect)


def visible_fraction(
    usable: Flags, centre: tuple[float, float], radii: tuple[float, float], samples: int = 720
) -> float:
    """Fraction of an ellipse's edge that lies on usable detector pixels."""
    azimuth = np.arange(samples) * (2 * np.pi / samples)
    rows = np.rint(centre[0] + radii[0] * np.sin(azimuth)).astype(np.int64)
    columns = np.rint(centre[1] + radii[1] * np.cos(azimuth)).astype(np.int64)
    inside = (rows >= 0) & (rows < usable.shape[0]) & (columns >= 0) & (columns < usable.shape[1])
    return float(usable[rows[inside], columns[inside]].sum() / samples)


def _smoothed(image: Array, usable: Flags, sigma: float) -> Array:
    """Gaussian filter that leaves unusable pixels out (normalised convolution)."""
    weight = ndimage.gaussian_filter(usable.astype(np.float64), sigma, mode="constant")
    total = ndimage.gaussian_filter(np.where(usable, image, 0.0), sigma, mode="constant")
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-3)


def _search(image: Array, usable: Flags, scale: Array, fixed: Array | None) -> Array:
    """The best candidate circle, found in a binned pattern where the pattern is large."""
    factor = -(-max(image.shape) // _LARGE)
    if factor == 1:
        return _best_candidate(image, usable, scale, fixed)
    shape = tuple(n // factor for n in image.shape)
    blocks = [
        a[: shape[0] * factor, : shape[1] * factor].reshape(shape[0], factor, shape[1], factor).sum(axis=(1, 3))
        for a in (np.where(usable, image, 0.0), usable.astype(np.float64))
    ]
    seen = blocks[1] > 0
    binned = np.divide(blocks[0], blocks[1], out=np.zeros(shape), where=seen)
    offset = scale * (factor - 1) / 2
    known = None if fixed is None else (fixed - offset) / factor
    circle = _best_candidate(binned, seen, scale, known)
    return np.append(circle[:2] * factor + offset, circle[2] * factor)


def _candidates(image: Array, usable: Flags, scale: Array, fixed: Array | None) -> Array:
    """Different circles (cy, cx, radius), in scaled coordinates, along contours of the smoothed pattern."""
    found: list[Array] = []
    # A beam stop or a dead pixel has a contour of its own; contours are cut away around them.
    mask = ndimage.binary_erosion(usable, border_value=1)
    rng = np.random.default_rng(0)
    largest = float(np.hypot(*image.shape))
    for sigma in _SMOOTHING:
        smooth = ndimage.median_filter(_smoothed(image, usable, sigma), 3)
        bright = float(np.percentile(smooth[usable], 99.8))
        for level in _LEVELS * bright:
            contours = sorted(find_contours(smooth, level, mask=mask), key=len, reverse=True)
            for points in contours[:_CONTOURS]:
                if len(points) < 12:
                    break
                points = points[:: max(1, len(points) // 300)] * scale
                if fixed is not None:
                    circle = np.append(fixed, np.median(np.hypot(*(points - fixed).T)))
                else:
                    circle = _circle(points, rng)
                if _MIN_RADIUS <= circle[2] <= largest:
                    found.append(circle)
    if not found:
        return np.empty((0, 3))
    circles = np.array(found)
    return circles[np.unique(np.rint(2 * circles).astype(np.int64), axis=0, return_index=True)[1]]


def _circle(points: Array, rng: np.random.Generator) -> Array:
    """RANSAC circle (cy, cx, radius) through contour points; radius NaN where they do not follow a circle."""
    tolerance = max(0.75, 0.04 * float(np.ptp(points, axis=0).max()))
    a, b, c = np.moveaxis(points[rng.integers(0, len(points), (80, 3))], 1, 0)
    # Centre of the circle through a, b and c: equally far from all three.
    rows = np.stack([b - a, c - a], axis=1)
    sides = 0.5 * np.stack([(b**2 - a**2).sum(1), (c**2 - a**2).sum(1)], axis=1)
    proper = np.abs(np.linalg.det(rows)) > 1.0
    none = np.full(3, np.nan)
    if not proper.any():
        return none
    centres = np.linalg.solve(rows[proper], sides[proper][..., None])[..., 0]
    radii = np.hypot(*(a[proper] - centres).T)
    distances = np.abs(np.hypot(*np.moveaxis(points[None] - centres[:, None], 2, 0)) - radii[:, None])
    near = distances < tolerance
    inliers = points[near[near.sum(axis=1).argmax()]]
    if len(inliers) < max(10, 0.3 * len(points)):
        return none
    # Algebraic least squares (Kasa): |p|^2 = 2 p . centre + (radius^2 - |centre|^2).
    design = np.column_stack([2 * inliers, np.ones(len(inliers))])
    cy, cx, rest = np.linalg.lstsq(design, (inliers**2).sum(axis=1), rcond=None)[0]
    return np.array([cy, cx, np.sqrt(rest + cy**2 + cx**2)])


def _best_candidate(image: Array, usable: Flags, scale: Array, fixed: Array | None) -> Array:
    """The candidate circle across which the pattern falls most."""
    rows, columns = np.nonzero(usable)
    y, x = rows * scale[0], columns * scale[1]
    # The square root evens out Poisson noise, so that a dim ring of many pixels does not win by its length.
    values = np.sqrt(np.clip(image[usable], 0, None))
    overall = 0.1 * float(values.std())
    best, best_score = None, 0.0
    for circle in _candidates(image, usable, scale, fixed):
        distance = np.hypot(y - circle[0], x - circle[1]) - circle[2]
        width = max(1.5, 0.15 * circle[2])
        inside = values[(distance < -0.5) & (distance > -width - 0.5)]
        outside = values[(distance > 0.5) & (distance < width + 0.5)]
        if len(inside) < 6 or len(outside) < 6:
            continue
        step = float(inside.mean() - outside.mean())
        spread = float(np.sqrt((inside.var() + outside.var()) / 2)) + overall
        seen = visible_fraction(usable, *_in_pixels(circle, scale))
        score = step * min(1.0, step / spread) * min(1.0, 2 * seen)
        if score > best_score:
            best, best_score = circle, score
    if best is None:
        raise CalibrationError(
            "No bright-field disk was found in the mean pattern: nothing in it has a round edge; "
            "give centre=... and pixel_size (a pair where pixels are not square)."
        )
    return best


def _in_pixels(circle: Array, scale: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """Centre and half axes, in detector pixels, of a circle in scaled coordinates."""
    cy, cx, radius = (float(v) for v in circle)
    down, across = (float(v) for v in scale)
    return (cy / down, cx / across), (radius / down, radius / across)


def despiked(image: Array, usable: Flags) -> Flags:
    """`usable` without single pixels far brighter than all their neighbours (hot pixels nobody marked)."""
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    beside = ndimage.rank_filter(np.where(usable, image, 0.0), -2, footprint=ring, mode="reflect")
    limit = max(3 * float(np.percentile(image[usable], 98)), 0.0)
    return usable & ~((image > 3 * beside) & (image > limit))


class _EdgeFit:
    """Soft-edged disk around a starting circle: linear terms solved exactly, shape terms by least squares."""

    def __init__(self, image: Array, usable: Flags, scale: Array, circle: Array, fixed: Array | None) -> None:
        rows, columns = np.nonzero(usable)
        y, x = rows * scale[0], columns * scale[1]
        radius = circle[2]
        distance = np.hypot(y - circle[0], x - circle[1]) - radius
        near = (distance > -max(4.0, min(0.35 * radius, 16))) & (distance < max(5.0, min(0.5 * radius, 20)))
        self.y, self.x, self.values = y[near], x[near], image[usable][near]
        self.fixed = fixed
        self.start = circle
        # Poisson noise of the smoothed counts, with a floor; robust weights are multiplied in later.
        smooth = np.clip(_smoothed(image, usable, 1.5)[usable][near], 0, None)
        self.weights = 1 / np.sqrt(smooth + 0.1 * smooth.mean())

    def unpack(self, p: Array) -> tuple[float, float, float, float, float, float]:
        cy, cx = self.fixed if self.fixed is not None else p[:2]
        radius, narrow, wide, stretch = p[-4:]
        return cy, cx, radius, float(np.exp(narrow)), float(np.exp(wide)), float(np.exp(stretch / 2))

    def terms(self, p: Array) -> Array:
        cy, cx, radius, narrow, wide, stretch = self.unpack(p)
        dy, dx = (self.y - cy) * stretch, (self.x - cx) / stretch
        # The distance of a square pixel's middle is a little less than the mean distance over its area.
        u = np.sqrt(dy**2 + dx**2 + 1 / 12) - radius
        azimuth = np.arctan2(dy, dx)
        edge = 0.5 * special.erfc(u / (np.sqrt(2) * narrow))
        tail = 0.5 - np.arctan(u / wide) / np.pi
        waves = [f(k * azimuth) * edge for k in (2, 4, 6, 8) for f in (np.cos, np.sin)]
        return np.stack([edge, tail, np.ones_like(u), edge * u / radius, *waves])

    def residuals(self, p: Array) -> Array:
        terms = self.terms(p) * self.weights
        target = self.values * self.weights
        normal = terms @ terms.T
        # Some terms are nearly the same when part of the edge is hidden; the ridge is far below the noise.
        normal[np.diag_indices_from(normal)] *= 1 + 1e-10
        return target - np.linalg.solve(normal, terms @ target) @ terms

    def solve(self, stretch_free: bool) -> Array:
        radius = self.start[2]
        slack = max(2.5, 0.2 * radius)
        start = [radius, np.log(0.6), np.log(1.5), 0.0]
        free = 0.5 if stretch_free else 1e-9
        lower = [max(1.5, radius - slack), np.log(0.25), np.log(0.5), -free]
        upper = [radius + slack, np.log(max(1.0, 0.25 * radius)), np.log(max(3.0, radius)), free]
        if self.fixed is None:
            start, lower, upper = (
                [*self.start[:2], *start],
                [*(self.start[:2] - slack), *lower],
                [*(self.start[:2] + slack), *upper],
            )
        begin = np.array(start)
        # Two rounds: the second leaves out what the first shows to be outliers (unmarked hot pixels,
        # Kikuchi lines).
        for _ in range(2):
            result: Any = optimize.least_squares(
                self.residuals, begin, bounds=(lower, upper), x_scale="jac", ftol=1e-7, xtol=1e-6
            )
            begin = np.clip(result.x, np.array(lower) + 1e-12, np.array(upper) - 1e-12)
            misfit = self.residuals(begin)
            sigma = 1.4826 * float(np.median(np.abs(misfit))) + 1e-12 * float(np.abs(self.values).max())
            self.weights = self.weights / (1 + (misfit / (4 * sigma)) ** 2)
        return begin


def _refined(
    image: Array, usable: Flags, scale: Array, circle: Array, fixed: Array | None, aspect: float
) -> BrightFieldDisk:
    """Fit the edge around a candidate circle, and refuse what turns out not to be a disk."""
    for _ in range(4):
        fit = _EdgeFit(image, usable, scale, circle, fixed)
        if len(fit.values) < 40:
            raise CalibrationError(
                f"The bright-field disk covers too few detector pixels to be fitted ({len(fit.values)} "
                "valid ones around "
                "its edge); give centre=... and pixel_size."
            )
        p = fit.solve(stretch_free=False)
        cy, cx, radius, narrow, *_ = fit.unpack(p)
        moved = float(np.abs(np.array([cy, cx, radius]) - circle).max())
        circle = np.array([cy, cx, radius])
        if moved < 0.5:
            break
    centre, radii = _in_pixels(circle, scale)
    seen = visible_fraction(usable, centre, radii)
    if seen < _MIN_VISIBLE:
        raise CalibrationError(
            f"Only {100 * seen:.0f} % of the edge of the bright-field disk lies on valid detector pixels; "
            "expected at "
            "least half: give centre=... and pixel_size."
        )
    step = _step(image, usable, scale, circle)
    residual = np.inf
    if step is not None:
        residual = float(np.sqrt(np.mean((fit.residuals(p) / fit.weights) ** 2))) / step
    if narrow > _MAX_SOFTNESS * radius or residual > _MAX_NOISE * np.sqrt(radius):
        raise CalibrationError(
            "No bright-field disk was found: the mean pattern has no round, sharp edge above the "
            "noise; give centre=... and pixel_size, or a PACBED of more patterns."
        )
    if seen > 0.75:
        _require_circle(fit, scale, radius)
    return BrightFieldDisk(centre, float(radius), residual, float(aspect))


def _require_circle(fit: _EdgeFit, scale: Array, radius: float) -> None:
    stretched = fit.solve(stretch_free=True)
    ratio = float(np.exp(stretched[-1]))
    if abs(np.log(ratio)) > _MAX_ELLIPTICITY:
        half = stretched[-4] / np.sqrt(ratio) / scale[0], stretched[-4] * np.sqrt(ratio) / scale[1]
        raise CalibrationError(
            f"The bright-field disk is an ellipse with half axes of {half[0]:.1f} (ky) and {half[1]:.1f} "
            "(kx) pixels; "
            "expected a circle in angle: give pixel_size as a (y, x) pair."
        )


def _step(image: Array, usable: Flags, scale: Array, circle: Array) -> float | None:
    """Mean fall of the pattern across the circle; None where it is not there all around or is noise."""
    rows, columns = np.nonzero(usable)
    dy, dx = rows * scale[0] - circle[0], columns * scale[1] - circle[1]
    u, values = np.hypot(dy, dx) - circle[2], image[usable]
    width = max(1.5, 0.2 * circle[2])
    inside, outside = (u < -0.5) & (u > -0.5 - width), (u > 0.5) & (u < 0.5 + width)
    if inside.sum() < 6 or outside.sum() < 6:
        return None
    step = float(values[inside].mean() - values[outside].mean())
    error = float(np.sqrt(values[inside].var() / inside.sum() + values[outside].var() / outside.sum()))
    if step <= max(_MIN_STEP * error, 0.1 * float(np.abs(values[inside]).mean())):
        return None
    sectors = np.floor((np.arctan2(dy, dx) / (2 * np.pi) + 0.5) * 12).astype(np.int64) % 12
    falls = []
    for sector in range(12):
        here = sectors == sector
        if (inside & here).sum() >= 2 and (outside & here).sum() >= 2:
            falls.append(float(values[inside & here].mean() - values[outside & here].mean()))
    if len(falls) < 4 or np.mean(np.array(falls) > 0.25 * step) < 0.75:
        return None
    # A spot without an edge falls over its whole radius, a disk within a fifth of it.
    before, after = np.abs(u + width) < 0.75, np.abs(u - width) < 0.75
    core, far = u < -width, (u > width) & (u < max(2 * width, circle[2]))
    if not (before.any() and after.any() and core.any() and far.any()):
        return None
    whole = float(np.mean(values[core]) - np.mean(values[far]))
    return step if values[before].mean() - values[after].mean() > _MIN_SHARPNESS * whole else None
