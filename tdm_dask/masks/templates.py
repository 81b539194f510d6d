"""Templates: one weight per probe position, made from the sites of atom columns.

Sites are (y, x) in angstrom, an array for each kind of column. A template is 1 near the sites and 0 elsewhere, or a sum
of Gaussians, whose width tunes the balance of positive and negative weights in the mask.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed
from scipy.spatial import cKDTree

from ..axes import SCAN, TEMPLATE, named, quantity, require_same_coordinates, require_unit
from ..columns.sites import Array, Sites, read_sites, sites_by_kind, write_sites
from ..errors import SiteError, TemplateError

__all__ = ["binary_template", "gaussian_template", "read_sites", "write_sites"]

_OUTSIDE = 3.0  # sigma
_REACH = 8.0  # sigma; exp(-32) = 1e-14 of the peak is left out
_TILE = 128


def binary_template(
    counts: xr.DataArray, sites: Sites, *, radius: float | str, all_name: str | None = None
) -> xr.DataArray:
    """Template that is 1 at the probe positions near a site, 0 elsewhere.

    Parameters
    ----------
    counts : xarray.DataArray (y, x, ...)
        Anything with a scan calibrated in angstrom; only its coordinates are used.
    sites : array (n, 2), or mapping of str to array (n, 2)
        (y, x) positions in angstrom; a mapping from kind of atom column to sites gives one template per kind.
    radius : float (angstrom) or str
        Probe positions within this distance of a site are 1, and in any case the probe position nearest to
        each site inside the scan, so that a radius below half a step marks one position per site.
    all_name : str, optional
        Name of one more template, that of all kinds together.

    Returns
    -------
    xarray.DataArray (y, x) or (template, y, x), float64
        The template, with `radius_angstrom` in its attributes; lazy where `counts` are.

    Raises
    ------
    SiteError
        If a kind has no site within `radius` of the scan, or sites are not finite (n, 2) positions.
    UnitError
        If the radius is not a positive length.
    CoordinateError
        If the scan is not calibrated in angstrom.

    Warns
    -----
    UserWarning
        If sites lie further than `radius` outside the scan; they are dropped.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 4, 0.5, 0.0, "angstrom") for dim in ("y", "x")}
    >>> scan = xr.DataArray(np.zeros((4, 4)), coords=steps, dims=("y", "x"))
    >>> binary_template(scan, [(0.5, 1.0)], radius=0.55).values
    array([[0., 0., 1., 0.],
           [0., 1., 1., 1.],
           [0., 0., 1., 0.],
           [0., 0., 0., 0.]])
    """
    reach = quantity(radius, "angstrom", "radius")
    y, x, kinds, single = _prepared(counts, sites, reach, all_name, f"the radius, {reach:g} angstrom,")
    for kind, positions in kinds.items():
        nearest = [axis[_nearest(axis, positions[:, k])] - positions[:, k] for k, axis in enumerate((y, x))]
        if not (_inside(y, x, positions) | (np.hypot(*nearest) <= _with_edge(reach))).any():
            raise SiteError(
                f'No probe position lies within {reach:g} angstrom of a site of "{kind}"; use a larger radius.'
            )
    planes = {kind: _plane(counts, _discs, y, x, positions, reach) for kind, positions in kinds.items()}
    if all_name is not None:
        planes[all_name] = functools.reduce(np.maximum, planes.values())
    return _labelled(counts, planes, single, {"kind": "binary", "radius_angstrom": reach})


def gaussian_template(
    counts: xr.DataArray, sites: Sites, *, sigma: float | str, all_name: str | None = None
) -> xr.DataArray:
    """Template with a two-dimensional Gaussian at every site.

    Parameters
    ----------
    counts : xarray.DataArray (y, x, ...)
        Anything with a scan calibrated in angstrom; only its coordinates are used.
    sites : array (n, 2), or mapping of str to array (n, 2)
        (y, x) positions in angstrom; a mapping from kind of atom column to sites gives one template per kind.
    sigma : float (angstrom) or str
        Standard deviation of the Gaussians; it tunes the balance of positive and negative correlation.
    all_name : str, optional
        Name of one more template, the sum over all kinds.

    Returns
    -------
    xarray.DataArray (y, x) or (template, y, x), float64
        The sum over sites of ``exp(-r^2 / (2 sigma^2))``, r being the distance to the site, with
        `sigma_angstrom` in its attributes; lazy where `counts` are. Where Gaussians overlap they add up, and a site
        that is listed twice counts twice.

    Raises
    ------
    SiteError
        If a kind has no site within three sigma of the scan, or sites are not finite (n, 2) positions.
    UnitError
        If sigma is not a positive length.
    CoordinateError
        If the scan is not calibrated in angstrom.

    Warns
    -----
    UserWarning
        If sites lie further than three sigma outside the scan (its outermost probe positions); they are
        dropped.

    Examples
    --------
    >>> import numpy as np
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 3, 0.5, 0.0, "angstrom") for dim in ("y", "x")}
    >>> scan = xr.DataArray(np.zeros((3, 3)), coords=steps, dims=("y", "x"))
    >>> template = gaussian_template(scan, {"Li": [(0.5, 0.5)], "O": [(0.0, 1.0)]}, sigma="50 pm")
    >>> template.dims, template.template.values.tolist(), float(template.sel(template="Li", y=0.5, x=0.5))
    (('template', 'y', 'x'), ['Li', 'O'], 1.0)
    """
    width = quantity(sigma, "angstrom", "sigma")
    y, x, kinds, single = _prepared(
        counts, sites, _OUTSIDE * width, all_name, f"three sigma, {_OUTSIDE * width:g} angstrom,"
    )
    planes = {kind: _plane(counts, _gaussians, y, x, positions, width) for kind, positions in kinds.items()}
    if all_name is not None:
        planes[all_name] = functools.reduce(np.add, planes.values())
    return _labelled(counts, planes, single, {"kind": "gaussian", "sigma_angstrom": width})


def _prepared(
    counts: xr.DataArray, sites: Sites, margin: float, all_name: str | None, limit: str
) -> tuple[Array, Array, dict[str, Array], bool]:
    """Scan coordinates, and the sites of each kind that lie within `margin` of the scan."""
    require_unit(counts, SCAN, "angstrom", "A template from sites")
    y, x = (np.asarray(counts.coords[dim].values, dtype=np.float64) for dim in SCAN)
    kinds, single = sites_by_kind(sites)
    if all_name is not None and (single or all_name in kinds):
        why = "the sites have no kinds" if single else f"there is a kind of that name among {', '.join(kinds)}"
        raise SiteError(f'A template "{all_name}" of all kinds was asked for, but {why}; leave it out or rename it.')
    slack = 1e-9 * (margin + float(np.ptp(y)) + float(np.ptp(x)))
    kept, dropped = {}, {}
    for kind, positions in kinds.items():
        outside = [
            np.maximum(np.maximum(axis.min() - p, p - axis.max()), 0)
            for axis, p in zip((y, x), positions.T, strict=True)
        ]
        near = np.hypot(*outside) <= margin + slack
        if not near.any():
            raise SiteError(
                f'None of the {len(positions)} sites of "{kind}" lies inside the scan, y {y.min():g} to '
                f"{y.max():g} and "
                f"x {x.min():g} to {x.max():g} angstrom; check their unit and the order (y, x)."
            )
        kept[kind] = positions[near]
        if not near.all():
            dropped[kind] = int((~near).sum())
    if dropped:
        total = sum(len(positions) for positions in kinds.values())
        names = "" if single else " (" + ", ".join(f"{kind}: {n}" for kind, n in dropped.items()) + ")"
        warnings.warn(
            f"{sum(dropped.values())} of {total} sites lie more than {limit} outside the scan and were dropped{names}.",
            stacklevel=3,
        )
    return y, x, kept, single


def _plane(counts: xr.DataArray, draw: Callable[..., Array], y: Array, x: Array, sites: Array, width: float) -> Any:
    """A template; lazy counts may have millions of probe positions, and a graph should carry the sites alone."""
    if counts.chunks is None:
        return draw(y, x, sites, width)
    return da.from_delayed(delayed(draw, pure=True)(y, x, sites, width), (len(y), len(x)), np.float64)


def _discs(y: Array, x: Array, sites: Array, radius: float) -> Array:
    tree = cKDTree(sites)
    plane = np.zeros((len(y), len(x)))
    limit = _with_edge(radius)
    for start in range(0, len(y), _TILE):
        rows = y[start : start + _TILE]
        points = np.stack(np.meshgrid(rows, x, indexing="ij"), axis=-1)
        distance, _ = tree.query(points, distance_upper_bound=limit * (1 + 1e-9))
        plane[start : start + _TILE] = distance <= limit
    inside = sites[_inside(y, x, sites)]
    nearest = [_nearest(axis, inside[:, k]) for k, axis in enumerate((y, x))]
    plane[nearest[0], nearest[1]] = 1.0
    return plane


def _with_edge(radius: float) -> float:
    """A radius that takes in what lies on it, whatever the rounding."""
    return radius * (1 + 1e-9)


def _inside(y: Array, x: Array, sites: Array) -> npt.NDArray[np.bool_]:
    """Which sites lie between the outermost probe positions."""
    return (sites[:, 0] >= y.min()) & (sites[:, 0] <= y.max()) & (sites[:, 1] >= x.min()) & (sites[:, 1] <= x.max())


def _nearest(axis: Array, values: Array) -> npt.NDArray[np.int64]:
    """Index of the element of an evenly spaced axis nearest to each value."""
    if len(axis) == 1:
        return np.zeros(len(values), dtype=np.int64)
    step = (axis[-1] - axis[0]) / (len(axis) - 1)
    return np.clip(np.rint((values - axis[0]) / step), 0, len(axis) - 1).astype(np.int64)


def _gaussians(y: Array, x: Array, sites: Array, sigma: float) -> Array:
    """Sum of Gaussians; each is one over y times one over x, so that a tile is a matrix product."""
    plane = np.zeros((len(y), len(x)))
    reach = _REACH * sigma
    for row in range(0, len(y), _TILE):
        ys = y[row : row + _TILE]
        here = sites[(sites[:, 0] >= ys.min() - reach) & (sites[:, 0] <= ys.max() + reach)]
        for column in range(0, len(x), _TILE):
            xs = x[column : column + _TILE]
            near = here[(here[:, 1] >= xs.min() - reach) & (here[:, 1] <= xs.max() + reach)]
            over_y, over_x = (np.exp(-0.5 * ((axis - near[:, [k]]) / sigma) ** 2) for k, axis in enumerate((ys, xs)))
            plane[row : row + _TILE, column : column + _TILE] = over_y.T @ over_x
    return plane


def _labelled(counts: xr.DataArray, planes: Mapping[str, Any], single: bool, attrs: Mapping[str, Any]) -> xr.DataArray:
    coords: dict[str, Any] = {dim: counts.coords[dim].variable for dim in SCAN}
    attrs = {"long_name": f"{attrs['kind']} template", "units": "1", **attrs}
    if single:
        (plane,) = planes.values()
        return xr.DataArray(plane, dims=SCAN, coords=coords, name=TEMPLATE, attrs=attrs)
    templates = xr.DataArray(
        (np if counts.chunks is None else da).stack(list(planes.values())),
        dims=(TEMPLATE, *SCAN),
        coords={TEMPLATE: list(planes), **coords},
        name="templates",
        attrs=attrs,
    )
    return named(templates)


def check_template(counts: xr.DataArray, template: Any) -> xr.DataArray:
    """The template, or an error that says why it does not belong to the counts."""
    if not isinstance(template, xr.DataArray) or not set(SCAN) <= set(template.dims) <= {TEMPLATE, *SCAN}:
        dims = tuple(template.dims) if isinstance(template, xr.DataArray) else type(template).__name__
        raise TemplateError(f"The template has dims {dims}; expected ([template,] y, x).")
    require_same_coordinates(counts, template, SCAN, ("counts", "template"), TemplateError)
    return template
