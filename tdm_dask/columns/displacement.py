"""Displacements of atom columns from the middle of their neighbours: polarisation, cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.spatial import cKDTree

from ..axes import SCAN, quantity
from ..errors import InputError, SiteError
from .refinement import COLUMN
from .sites import Array

# Between the nearest neighbours and the next in all of the lattices with 3, 4 or 6 neighbours of another kind.
_FARTHEST = 1.5


def displacements(
    columns: xr.Dataset | npt.ArrayLike,
    neighbours: xr.Dataset | npt.ArrayLike,
    *,
    number: int = 4,
    reach: float | str | None = None,
) -> xr.Dataset:
    r"""Displacement of every column from the centre of its nearest columns of another kind.

    .. math:: d = r - \frac{1}{k} \sum_{j=1}^{k} r_j

    with k the number of neighbours: for Ti in a perovskite seen along an axis of the cube, its four oxygen-only
    neighbours. In an image from a template-derived mask d may be a copy of the template: use masks symmetrised by
    :func:`tdm_dask.symmetrise_mask`, of templates without displacements.

    Parameters
    ----------
    columns : Dataset, or array (n, 2)
        What :func:`tdm_dask.refine_columns` found for one kind, or (y, x) positions in angstrom; NaN where
        there is none.
    neighbours : Dataset, or array (m, 2)
        The same for the other kind. Columns without a position are no neighbours.
    number : int, default 4
        k, at least 2.
    reach : float (angstrom) or str, optional
        How far neighbours may be. Default: 1.5 times the median distance to the k nearest.

    Returns
    -------
    Dataset, dim "column", in the order of `columns`
        `y`, `x` of the column, `dy`, `dx` of its displacement and the errors `error_dy` and `error_dx` that follow from
        those of the positions (NaN where these have none), in angstrom; `neighbours`, how many of the k lie within
        reach; and `flag`: "ok", "incomplete" with fewer than k, "no position". `dy` and `dx` are NaN unless "ok".

    Raises
    ------
    SiteError
        If positions are not (n, 2), a Dataset has more than one kind, or there are fewer than k neighbours at all.
    InputError
        If `number` is not a whole number of at least 2.

    Examples
    --------
    >>> oxygen = [(0, 1), (1, 0), (2, 1), (1, 2), (1, 4)]
    >>> found = displacements([(1.1, 0.8), (1.0, 3.0)], oxygen)
    >>> found["dy"].values.round(3), found["dx"].values.round(3), found["flag"].values.tolist()
    (array([0.1, nan]), array([-0.2,  nan]), ['ok', 'incomplete'])
    """
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 2:
        raise InputError(f"The number of neighbours is {number!r}; expected a whole number of at least 2.")
    places, errors = _positions(columns, "columns")
    others, other_errors = _positions(neighbours, "neighbours")
    there = np.isfinite(others).all(1)
    others, other_errors = others[there], other_errors[there]
    if len(others) < number:
        raise SiteError(f"There are {len(others)} neighbours with a position; expected at least {number}.")
    seen = np.isfinite(places).all(1)
    distance = np.full((len(places), number), np.inf)
    index = np.zeros((len(places), number), np.int64)
    distance[seen], index[seen] = cKDTree(others).query(places[seen], k=number)
    if reach is not None:
        limit = quantity(reach, "angstrom", "reach")
    else:
        limit = _FARTHEST * float(np.median(distance[seen])) if seen.any() else 0.0
    near = (distance <= limit).sum(1)
    complete = near == number
    moved = np.where(complete[:, None], places - others[index].mean(1), np.nan)
    spread = np.sqrt(errors**2 + (other_errors[index] ** 2).sum(1) / number**2)
    spread[~complete] = np.nan
    flags = np.where(complete, "ok", np.where(seen, "incomplete", "no position"))
    return _labelled(places, moved, spread, near, flags, columns, int(number), limit)


def _positions(columns: xr.Dataset | npt.ArrayLike, what: str) -> tuple[Array, Array]:
    """Positions (n, 2) and their errors, NaN where these are not known."""
    if isinstance(columns, xr.Dataset):
        missing = sorted(set(SCAN) - set(columns.data_vars))
        if missing:
            raise SiteError(f"The Dataset of {what} has no {missing}; expected what refine_columns returns.")
        if "kind" in columns.coords and len(set(columns["kind"].values.tolist())) > 1:
            kinds = sorted(set(columns["kind"].values.tolist()))
            raise SiteError(
                f"The {what} are of the kinds {', '.join(kinds)}; choose one: columns.isel(column=columns.kind == "
                f'"{kinds[0]}").'
            )
        places = np.stack([columns[dim].values for dim in SCAN], axis=1).astype(np.float64)
        names = [f"error_{dim}" for dim in SCAN]
        if set(names) <= set(columns.data_vars):
            return places, np.stack([columns[name].values for name in names], axis=1).astype(np.float64)
        return places, np.full(places.shape, np.nan)
    try:
        places = np.asarray(columns, np.float64)
    except (TypeError, ValueError):
        raise SiteError(f"The {what} are not numbers; expected (y, x) positions in angstrom.") from None
    if places.ndim != 2 or places.shape[1] != 2:
        raise SiteError(f"The {what} have shape {places.shape}; expected (n, 2), as (y, x) positions.")
    return places, np.full(places.shape, np.nan)


def _labelled(
    places: Array,
    moved: Array,
    errors: Array,
    near: npt.NDArray[np.int64],
    flags: npt.NDArray[np.str_],
    columns: Any,
    number: int,
    reach: float,
) -> xr.Dataset:
    length = {"units": "angstrom"}
    data: dict[str, Any] = {}
    for k, dim in enumerate(SCAN):
        data[dim] = (COLUMN, places[:, k], length | {"long_name": f"position along {dim}"})
        data[f"d{dim}"] = (COLUMN, moved[:, k], length | {"long_name": f"displacement along {dim}"})
        data[f"error_d{dim}"] = (COLUMN, errors[:, k], length | {"long_name": f"standard error along {dim}"})
    data["neighbours"] = (COLUMN, near, {"long_name": "neighbours within reach", "units": "1"})
    data["flag"] = (COLUMN, flags, {"long_name": "whether there is a displacement, or why not"})
    coords = {}
    if isinstance(columns, xr.Dataset):
        coords = {name: c.variable for name, c in columns.coords.items() if c.dims == (COLUMN,)}
    return xr.Dataset(data, coords, {"number_of_neighbours": number, "reach_angstrom": reach})
