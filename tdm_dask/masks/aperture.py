"""The circular aperture that favours one kind of atom column, as for the entrance of a spectrometer (EELS)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.optimize import minimize

from ..axes import DETECTOR, TEMPLATE, VALID_PIXELS, quantity, require_unit, step_of
from ..detector.conventional_masks import disk
from ..errors import InputError, MaskError

CAVEAT = (
    "Chosen from elastic scattering alone: how much of a column's inelastic scattering enters the aperture, and how "
    "delocalised that is, these counts do not say."
)
_STARTS = 3


def collection_aperture(
    correlations: xr.Dataset | xr.DataArray,
    kind: str,
    *,
    others: Iterable[str] | None = None,
    radius: float | str | tuple[float | str, float | str] | None = None,
    rejection: float = 1.0,
) -> xr.Dataset:
    r"""Centre and radius of the aperture that collects most of one column's correlation and least of the others'.

    The counts in an aperture A make an image, whose covariance with a template t of standard deviation 1 is, exactly
    and whatever the pixels have to do with each other,

    .. math:: S_t(A) = \sum_{j \in A} \rho_{tj} \sigma_j ,

    the counts by which it rises where the template is one standard deviation up. Against the shot noise of the image,
    :math:`z_t(A) = S_t(A) / \sqrt{\sum_{j \in A} \bar d_j}`, and what is made largest is

    .. math:: z_{own}(A) - r \max_{t \ne own} z_t(A)

    with `rejection` r, over all centres (every pixel) and radii (every half pixel, or 3 % where that is more) by
    Fourier convolution, and from the best of these on to any centre and radius (Nelder-Mead). Apertures lie wholly in
    the detector region of the correlations. Nothing is read but lazy correlations, once.

    Parameters
    ----------
    correlations : Dataset or DataArray
        What `correlate` gave, or a mask of `derive_mask` ("pearson" or "mean-scaled"), with two templates at least.
    kind : str
        Name of the template that the aperture is for.
    others : iterable of str, optional
        Templates to be kept out; all others by default. Leave out one of all kinds together.
    radius : float or str, or a pair of them, optional
        In mrad: that of the microscope's aperture, or the least and the largest. From two pixels up to what fits in the
        detector region by default.
    rejection : float, default 1
        How much the largest signal of the others counts; 0 for the most of the own signal.

    Returns
    -------
    Dataset
        `aperture` (ky, kx), the exact share of each pixel, for `apply_mask`; `signal` S (template), in counts; `snr` z
        (template); `contrast` (template), the signal over the mean counts in the aperture; `collected`, the fraction of
        the mean counts of the region; `merit` (ky, kx), what is made largest, of apertures of about this radius around
        each pixel, NaN where they do not fit; `merit_of_radius` (radius), its largest value at each radius.
        ``attrs`` hold `kind`, `others`, `centre_mrad` (ky, kx), `radius_mrad`, `merit`, `rejection` and `caveat`.

    Raises
    ------
    InputError
        If the correlations lack what is needed, or there is no such kind.
    MaskError
        If no aperture of that radius fits, or the own signal of the best is not positive: then no aperture collects
        more where the probe is on these columns.
    CoordinateError
        If the detector is not calibrated in mrad.

    Notes
    -----
    Choosing the best of many apertures flatters its signals, by noise, the fewer patterns there are; judge it on
    patterns that it was not chosen from.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> k = {d: axis_coordinate(d, 41, 1.0, -20.0, "mrad") for d in ("ky", "kx")}
    >>> flat = xr.DataArray(np.ones((41, 41)), k, ("ky", "kx"))
    >>> spots = xr.concat([disk(flat, 6, centre=(4, -3)), disk(flat, 5, centre=(-10, 0))], "template")
    >>> found = xr.Dataset({"rho": spots, "mean": flat, "std": flat, "n": 100, "detector_region": flat})
    >>> found = collection_aperture(found.assign_coords(template=["Li", "O"]), "Li")
    >>> [round(c, 1) for c in found.attrs["centre_mrad"]], round(found.attrs["radius_mrad"], 1)
    ([4.0, -3.0], 6.0)
    """
    maps = _maps(correlations)
    require_unit(maps["mean"], DETECTOR, "mrad", "An aperture")
    names = [str(name) for name in maps[TEMPLATE].values]
    kept_out = [name for name in names if name != kind] if others is None else [str(name) for name in others]
    for name in (kind, *kept_out):
        if name not in names or names.count(name) > 1:
            raise InputError(f'There is no template "{name}" among {names}; name one that is there, once.')
    if not kept_out or kind in kept_out:
        raise InputError(f'The others are {kept_out}; expected at least one template, and not "{kind}" itself.')
    if not np.isfinite(rejection) or rejection < 0:
        raise InputError(f"rejection={rejection!r} was given; expected a number of at least 0.")
    chosen = maps["covariance"].sel({TEMPLATE: [kind, *kept_out]}).values
    low, high = _limits(maps, radius)
    search = _Search(maps, chosen, rejection, high)
    radii = _radii(low, high, min(search.steps))
    grid = [search.on_grid(r) for r in radii]
    best = np.array([np.max(m) for m in grid])
    if not np.isfinite(best).any():
        raise MaskError(
            f"No aperture of {low:.4g} to {high:.4g} mrad lies wholly in the detector region; give a smaller radius, "
            "or correlations of a larger region."
        )
    starts = np.argsort(best)[::-1][:_STARTS]
    found = [search.refined(r, grid[n], low, high) for n, r in zip(starts, radii[starts], strict=True)]
    merit, (cy, cx, size) = max(found, key=lambda f: f[0])
    aperture = disk(maps["mean"], size, centre=(cy, cx))
    inside = float((aperture * maps["mean"]).sum())
    signal = (maps["covariance"] * aperture).sum(DETECTOR)
    if float(signal.sel({TEMPLATE: kind})) <= 0:
        raise MaskError(
            f'The best aperture for "{kind}" collects {float(signal.sel({TEMPLATE: kind})):.3g} counts where its '
            "template is high: no aperture collects more there; use the mask, whose weights may be negative."
        )
    nearest = grid[int(np.abs(radii - size).argmin())]
    result = xr.Dataset(
        {
            "aperture": aperture.assign_attrs(units="1", long_name="collection aperture"),
            "signal": signal.assign_attrs(units="counts", long_name="covariance with the template"),
            "snr": (signal / np.sqrt(inside)).assign_attrs(units="1", long_name="signal over shot noise"),
            "contrast": (signal / inside).assign_attrs(units="1", long_name="signal over counts"),
            "collected": ((), inside / float(maps["mean"].sum()), {"units": "1", "long_name": "part of the counts"}),
            "merit": (
                DETECTOR,
                np.where(np.isfinite(nearest), nearest, np.nan),
                {"units": "1", "long_name": "merit of apertures around each pixel"},
            ),
            "merit_of_radius": (
                "radius",
                np.where(np.isfinite(best), best, np.nan),
                {"units": "1", "long_name": "merit of the best aperture of each radius"},
            ),
        },
        {"radius": ("radius", radii, {"units": "mrad", "long_name": "radius"})},
    )
    result.attrs = {
        "kind": kind,
        "others": kept_out,
        "centre_mrad": [float(cy), float(cx)],
        "radius_mrad": float(size),
        "merit": float(merit),
        "rejection": float(rejection),
        "caveat": CAVEAT,
    }
    return result


class _Search:
    """What is made largest: of apertures around every pixel, and of any one.

    Parameters
    ----------
    maps : Dataset
        `mean` and `known` (ky, kx).
    covariance : ndarray, shape (template, ky, kx)
        The own template first.
    largest : float
        Radius, in mrad, beyond which no aperture is asked for.
    """

    def __init__(self, maps: xr.Dataset, covariance: np.ndarray, rejection: float, largest: float) -> None:
        self.detector, self.covariance, self.rejection = maps["mean"], covariance, rejection
        self.mean, self.unknown = maps["mean"].values, ~maps["known"].values
        self.steps = [abs(step_of(maps, dim)) for dim in DETECTOR]
        shape = [n + self._reach(largest)[axis] for axis, n in enumerate(self.mean.shape)]
        self._shape = [next_fast_len(n, real=True) for n in shape]
        after = [(0, m - n) for m, n in zip(self._shape, self.mean.shape, strict=True)]
        counted = np.pad(np.concatenate([covariance, self.mean[None]]), ((0, 0), *after))
        # What lies beside the detector is not known either.
        beside = np.pad(self.unknown.astype(np.float64), after, constant_values=1.0)
        self._transformed = rfft2(np.concatenate([counted, beside[None]]))

    def _reach(self, radius: float) -> list[int]:
        return [int(np.ceil(radius / step + 0.5)) for step in self.steps]

    def merit(self, signals: np.ndarray, counts: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = signals / np.sqrt(counts)
            merit = z[0] - self.rejection * z[1:].max(0)
        # Sums by Fourier transforms are noise where there are no counts.
        return np.where(counts > 1e-9 * self.mean.sum(), merit, -np.inf)

    def on_grid(self, radius: float) -> np.ndarray:
        """Merit (ky, kx) of the apertures of a radius around every pixel; -inf where they do not fit."""
        reach = self._reach(radius)
        if any(2 * radius > n * step for n, step in zip(self.mean.shape, self.steps, strict=True)):
            return np.full(self.mean.shape, -np.inf)
        coords = {
            dim: (dim, step * np.arange(-n, n + 1), {"units": "mrad"})
            for dim, step, n in zip(DETECTOR, self.steps, reach, strict=True)
        }
        shares = disk(xr.DataArray(np.zeros([2 * n + 1 for n in reach]), coords, DETECTOR), radius).values
        kernel = np.zeros(self._shape)
        kernel[: shares.shape[0], : shares.shape[1]] = shares
        kernel = np.roll(kernel, [-n for n in reach], (0, 1))
        sums = irfft2(self._transformed * rfft2(kernel), self._shape)
        sums = sums[:, : self.mean.shape[0], : self.mean.shape[1]]
        return np.where(sums[-1] < 1e-3, self.merit(sums[:-2], sums[-2]), -np.inf)

    def at(self, centre_and_radius: np.ndarray) -> float:
        """Merit of one aperture; -inf where it does not fit."""
        cy, cx, radius = centre_and_radius
        try:
            aperture = disk(self.detector, radius, centre=(cy, cx))
        except MaskError:
            return -np.inf
        weights = aperture.values
        if aperture.attrs["coverage"] < 1 - 1e-6 or weights[self.unknown].sum() > 1e-3:
            return -np.inf
        return float(self.merit((self.covariance * weights).sum((1, 2)), (self.mean * weights).sum()))

    def refined(self, radius: float, grid: np.ndarray, low: float, high: float) -> tuple[float, np.ndarray]:
        """Best merit, and centre and radius, from the best pixel of a radius on."""
        place = np.unravel_index(int(np.argmax(grid)), grid.shape)
        start = np.array([*(self.detector[d].values[i] for d, i in zip(DETECTOR, place, strict=True)), radius])
        fixed = high - low < 1e-9 * high
        free = 2 if fixed else 3

        def loss(values: np.ndarray) -> float:
            whole = np.append(values, radius) if fixed else values
            if not low * (1 - 1e-9) <= whole[2] <= high * (1 + 1e-9):
                return np.inf
            return -self.at(whole)

        simplex = np.vstack([start[:free], *(start[:free] - 0.3 * min(self.steps) * np.eye(free))])
        options = {"initial_simplex": simplex, "xatol": 1e-3 * min(self.steps), "fatol": 1e-9, "maxiter": 400}
        if not np.isfinite(loss(start[:free])):
            return -np.inf, start
        with np.errstate(invalid="ignore"):
            end = minimize(loss, start[:free], method="Nelder-Mead", options=options)
        return -float(end.fun), np.append(end.x, radius) if fixed else end.x


def _maps(correlations: Any) -> xr.Dataset:
    """Covariance (template, ky, kx) and mean counts of every pixel, and where they are known."""
    if isinstance(correlations, xr.DataArray):
        mask = correlations
        method = mask.attrs.get("method")
        if method not in ("pearson", "mean-scaled") or "std" not in mask.coords or "detector_region" not in mask.coords:
            raise InputError(
                "This is no mask that derive_mask made (Pearson or mean-scaled); an aperture needs one, or the Dataset "
                "of correlate."
            )
        region = mask["detector_region"]
        rho = (mask / region.where(region > 0, 1.0)).where(region > 0, 0.0)
        rho = rho * mask["mean"] if method == "mean-scaled" else rho
        found = xr.Dataset({"rho": rho.drop_vars(["mean", "std", "n", "detector_region"], errors="ignore")})
        found = found.assign({name: mask[name].variable for name in ("mean", "std", "detector_region")})
    else:
        found = correlations
        missing = {"rho", "mean", "std", "detector_region"} - set(getattr(found, "variables", ()))
        if missing:
            raise InputError(f"The correlations lack {sorted(missing)}; expected what tdm_dask.correlate returns.")
    if TEMPLATE not in found["rho"].dims or TEMPLATE not in found.coords:
        raise InputError(
            "The correlations are of one template; an aperture needs those of other columns, by name, too."
        )
    found = found.transpose(TEMPLATE, *DETECTOR, ...).compute()
    known = found["detector_region"] > 0
    if VALID_PIXELS in found.coords:  # a dead pixel of the camera is no obstacle for a spectrometer
        known = known | ~found[VALID_PIXELS].astype(bool)
    bare = [name for name in found.coords if name not in (TEMPLATE, *DETECTOR)]
    covariance = (found["rho"] * found["std"]).where(known, 0.0)
    maps = xr.Dataset({"covariance": covariance, "mean": found["mean"].where(known, 0.0), "known": known})
    return maps.drop_vars(bare, errors="ignore")


def _radii(low: float, high: float, pixel: float) -> np.ndarray:
    """Radii of the search: a step below half a pixel, or 3 %, the refinement bridges."""
    radii = [low]
    while radii[-1] < high * (1 - 1e-9):
        radii.append(min(radii[-1] + max(pixel / 2, 0.03 * radii[-1]), high))
    return np.array(radii)


def _limits(maps: xr.Dataset, radius: Any) -> tuple[float, float]:
    """Least and largest radius in mrad."""
    steps = [abs(step_of(maps, dim)) for dim in DETECTOR]
    known = maps["known"].values
    widest = min(int(known.any(1 - axis).sum()) * step for axis, step in enumerate(steps)) / 2
    if radius is None:
        return min(2 * min(steps), widest), widest
    pair = (radius, radius) if isinstance(radius, (str, int, float, np.number)) else tuple(radius)
    if len(pair) != 2:
        raise InputError(f"The radius has {len(pair)} numbers; expected one, or the least and the largest, in mrad.")
    low, high = (quantity(value, "mrad", "radius") for value in pair)
    if low > high:
        raise InputError(f"The radius goes from {low:g} to {high:g} mrad; expected the least first.")
    return low, high
