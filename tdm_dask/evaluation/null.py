"""What templates of random sites give: how much of a mask, and which of its pixels, is more than chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.spatial import cKDTree
from scipy.stats import false_discovery_control

from ..axes import DETECTOR, SCAN, TEMPLATE, check_counts, named, quantity, require_unit
from ..columns.sites import Sites, sites_by_kind
from ..errors import InputError, SiteError
from ..masks.derivation import correlate
from ..masks.templates import gaussian_template

Array = npt.NDArray[np.float64]

DRAW = "draw"
# Random sites keep this part of the distance between neighbours: with more, few arrangements are left, and they
# repeat like a crystal.
_SPACING = 0.7
_TRIES = 200


def random_sites(counts: xr.DataArray, sites: Any, *, margin: float = 0.0, seed: int = 0) -> Array:
    """Random sites of the same number, about as far apart as given ones.

    Parameters
    ----------
    counts : DataArray (y, x, ...)
        Anything with a scan in angstrom.
    sites : array (n, 2)
        (y, x) in angstrom. Those inside the scan, widened by `margin` angstrom, set how many there are, and the median
        distance to their nearest neighbour how far apart: 0.7 times that at the least, or less where they do not fit.
    margin : float, default 0
        Angstrom around the scan that sites may lie in.
    seed : int, default 0

    Returns
    -------
    array (n, 2)

    Raises
    ------
    SiteError
        If no site is inside.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {d: axis_coordinate(d, 40, 0.5, 0.0, "angstrom") for d in ("y", "x")}
    >>> scan = xr.DataArray(np.zeros((40, 40)), steps, ("y", "x"))
    >>> random_sites(scan, [(5.0, 5.0), (5.0, 15.0), (15.0, 5.0)]).shape
    (3, 2)
    """
    require_unit(counts, SCAN, "angstrom", "Random sites")
    kinds, _ = sites_by_kind(sites)
    (places,) = kinds.values()
    axes = [np.asarray(counts.coords[d].values, np.float64) for d in SCAN]
    low = np.array([a.min() - margin for a in axes])
    high = np.array([a.max() + margin for a in axes])
    inside = places[((places >= low) & (places <= high)).all(1)]
    if not len(inside):
        raise SiteError(f"None of the {len(places)} sites lies inside the scan; check their unit and the order (y, x).")
    apart = 0.0
    if len(inside) > 1:
        apart = _SPACING * float(np.median(cKDTree(inside).query(inside, k=2)[0][:, 1]))
    rng = np.random.default_rng(seed)
    found = [rng.uniform(low, high)]
    tries = 0
    while len(found) < len(inside):
        one = rng.uniform(low, high)
        if np.hypot(*(np.array(found) - one).T).min() >= apart:
            found.append(one)
            tries = 0
        elif (tries := tries + 1) > _TRIES:
            apart, tries = 0.9 * apart, 0
    return np.array(found)


def null_distribution(
    counts: xr.DataArray,
    sites: Sites,
    *,
    sigma: float | str,
    draws: int = 200,
    rate: float = 0.05,
    detector_region: Any = None,
    scan_region: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    r"""The correlations of templates beside those of random sites of the same number and spacing, in one read.

    Of every kind, `draws` templates of random sites are correlated with the counts in the same read. The null
    hypothesis is that the sites of a kind have no more to do with the counts than random ones.

    For the whole mask, p is the part of the draws, the template itself among them, whose norm of rho is at least as
    large: :math:`p = (1 + \#\{|\rho_{null}| \ge |\rho|\}) / (1 + draws)`. So under the null hypothesis p is at most a
    with probability a, for any a, whatever the counts are.

    For a pixel, rho over its root mean square in the draws is held against those of all pixels and draws together (each
    draw over the root mean square of the others), for so small a part as one pixel among thousands needs takes more
    draws than there are. These p are corrected for the
    number of pixels by the rule of Benjamini and Hochberg (1995): of the pixels below `rate`, a part of about `rate` is
    there by chance.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        With a scan in angstrom.
    sites : mapping of str to array (n, 2)
        (y, x) in angstrom by kind of column.
    sigma : float (angstrom) or str
        Width of the Gaussians of all templates.
    draws : int, default 200
        For each kind. Each takes 8 bytes a detector pixel and probe position.
    rate : float, default 0.05
        False discovery rate of the significant pixels.
    detector_region, scan_region
        As in `tdm_dask.correlate`.
    seed : int, default 0

    Returns
    -------
    Dataset
        `rho` (template, ky, kx); `z`, the same over its root mean square under the null hypothesis; `p_pixel`,
        corrected, and `significant`, those below the rate; `norm` and `p` (template,); `null_norm` (template, draw).
        This reads now.

    Raises
    ------
    InputError
        If there are too few draws for the rate.
    SiteError, TemplateError, RegionError, CountsError
        As in `gaussian_template` and `tdm_dask.correlate`.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> steps = {d: axis_coordinate(d, 32, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> flat = label_counts(np.random.default_rng(0).poisson(9, (32, 32, 2, 2)).astype(np.uint16), steps)
    >>> found = null_distribution(flat, {"Li": [(2.0, 2.0), (5.0, 3.0)]}, sigma=0.4, draws=50)
    >>> bool(found["significant"].any()), found["p"].item() > 0.05
    (False, True)
    """
    counts = check_counts(counts)
    kinds, _ = sites_by_kind(sites)
    if draws < 1 / rate:
        raise InputError(
            f"{draws} draws cannot show that something happens in less than {rate:g} of them; expected at least "
            f"{int(np.ceil(1 / rate))}."
        )
    width = quantity(sigma, "angstrom", "sigma")
    numbers = np.random.default_rng(seed).integers(0, 2**31, (len(kinds), draws))
    drawn = {
        f"{kind}/{n}": random_sites(counts, places, margin=width, seed=int(number))
        for (kind, places), row in zip(kinds.items(), numbers, strict=True)
        for n, number in enumerate(row)
    }
    templates = gaussian_template(counts, kinds | drawn, sigma=width)
    found = correlate(counts, templates, detector_region=detector_region, scan_region=scan_region).compute()
    rho = found["rho"].transpose(TEMPLATE, *DETECTOR).values
    region = found["detector_region"].values > 0
    own, null = rho[: len(kinds)], rho[len(kinds) :].reshape(len(kinds), draws, *rho.shape[1:])
    z, p_pixel = np.zeros(own.shape), np.ones(own.shape)
    norms, null_norms = _norm(own, region), _norm(null, region)
    for n in range(len(kinds)):
        z[n], p_pixel[n] = _pixels(own[n], null[n], region)
    p = (1 + (null_norms >= norms[:, None] * (1 - 1e-12)).sum(1)) / (1 + draws)
    maps = (TEMPLATE, *DETECTOR)
    data = {
        "rho": (maps, own, {"long_name": "Pearson correlation", "units": "1"}),
        "z": (maps, z, {"long_name": "correlation over its root mean square under the null hypothesis", "units": "1"}),
        "p_pixel": (maps, p_pixel, {"long_name": "p, corrected for the number of pixels", "units": "1"}),
        "significant": (maps, p_pixel < rate, {"long_name": f"false discovery rate below {rate:g}"}),
        "norm": (TEMPLATE, norms, {"long_name": "norm of the correlations over the mask", "units": "1"}),
        "p": (TEMPLATE, p, {"long_name": "p of the norm", "units": "1"}),
        "null_norm": ((TEMPLATE, DRAW), null_norms, {"long_name": "norm of templates of random sites", "units": "1"}),
    }
    coords = {k: v for k, v in found.coords.items() if set(v.dims) <= set(DETECTOR)}
    return named(xr.Dataset(data, coords | {TEMPLATE: list(kinds)}, {"rate": rate, "draws": draws, "seed": seed}))


def _norm(rho: Array, region: npt.NDArray[np.bool_]) -> Array:
    return np.sqrt((rho[..., region] ** 2).sum(-1))


def _pixels(own: Array, null: Array, region: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """z, and p corrected for the number of pixels (ky, kx), 0 and 1 beside the region and at pixels without counts."""
    draws = len(null)
    squares = null**2
    total = squares.sum(0)
    live = region & (total > 0)
    z, p = np.zeros(own.shape), np.ones(own.shape)
    if live.any():
        z[live] = own[live] / np.sqrt(total[live] / draws)
        # Each draw over the root mean square of all others, as the template is: else that of few draws is of less
        # use to the draws than to the template.
        rest = np.sqrt(np.maximum(total[live] - squares[:, live], 1e-12 * total[live]) / (draws - 1))
        all_null = np.sort((np.abs(null[:, live]) / rest).ravel())
        above = all_null.size - np.searchsorted(all_null, np.abs(z[live]), side="left")
        p[live] = false_discovery_control((1 + above) / (1 + all_null.size))
    return z, p
