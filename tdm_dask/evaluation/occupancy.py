"""Which columns of an image are not as their equals: each against the intact columns that are equivalent to it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN, TEMPLATE, quantity, require_unit
from ..columns.sites import Array, Sites, sites_by_kind
from ..errors import InputError, SiteError

COLUMN = "column"
# Fewest intact columns from which a scatter is taken.
_FEWEST = 4


def column_responses(images: xr.DataArray, places: Any, *, radius: float | str = "0.6 Å") -> xr.DataArray:
    r"""What images show at columns, wherever these lie between probe positions.

    The value at a place of the surface :math:`a + b_y v + b_x u + c (u^2 + v^2)`, u and v being distances from it, that
    fits the image best within a radius: a local mean would depend on how the probe positions lie about the column.

    Parameters
    ----------
    images : DataArray, dims ([template,] y, x)
        In angstrom. Lazy ones are computed.
    places : array (n, 2)
        (y, x) in angstrom.
    radius : float (angstrom) or str, default "0.6 Å"
        Half the distance of neighbouring columns at most; it has to hold six probe positions at least.

    Returns
    -------
    DataArray, dims ([template,] column)
        In the unit of the image, with `y` and `x` of each column; NaN nearer to the scan's border than the radius.

    Raises
    ------
    InputError
        If the radius is too small for the step of the scan.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 21, 0.3, 0.0, "angstrom") for dim in ("y", "x")}
    >>> image = xr.DataArray(np.zeros((21, 21)), steps, ("y", "x"))
    >>> bowl = image + (image.y - 2.9) ** 2 + (image.x - 3.1) ** 2 + 5
    >>> column_responses(bowl, [(2.9, 3.1), (9.0, 9.0)]).values.round(6).tolist()
    [5.0, nan]
    """
    require_unit(images, SCAN, "angstrom", "A response at columns")
    reach = quantity(radius, "angstrom", "radius")
    kinds, _ = sites_by_kind(places)
    at = np.concatenate(list(kinds.values()))
    values = np.asarray(images.transpose(..., *SCAN).values, np.float64)
    y, x = (np.asarray(images.coords[dim].values, np.float64) for dim in SCAN)
    stacked = values.reshape(-1, *values.shape[-2:])
    out = np.full((len(stacked), len(at)), np.nan)
    for number, (row, column) in enumerate(at):
        edges = (row - y.min(), y.max() - row, column - x.min(), x.max() - column)
        if min(edges) < reach - 1e-9:
            continue
        v, u = (w.ravel() for w in np.meshgrid(y - row, x - column, indexing="ij"))
        near = np.flatnonzero(np.hypot(v, u) <= reach)
        near = near[np.isfinite(stacked[:, near // len(x), near % len(x)]).all(0)]
        if len(near) < 6:
            raise InputError(
                f"Within {reach:g} angstrom of the column at ({row:.2f}, {column:.2f}) lie {len(near)} probe "
                "positions, but a fit needs six: use a larger radius."
            )
        v, u = v[near], u[near]
        surface = np.stack([np.ones(len(near)), v, u, v**2 + u**2], -1)
        picked = stacked[:, near // len(x), near % len(x)]
        out[:, number] = np.linalg.lstsq(surface, picked.T, rcond=None)[0][0]
    dims = (*((TEMPLATE,) if TEMPLATE in images.dims else ()), COLUMN)
    coords: dict[str, Any] = {"y": (COLUMN, at[:, 0]), "x": (COLUMN, at[:, 1])}
    if TEMPLATE in images.coords and TEMPLATE in images.dims:
        coords[TEMPLATE] = images[TEMPLATE].values
    attrs = {"long_name": "response", "units": images.attrs.get("units", "1"), "radius_angstrom": reach}
    return xr.DataArray(out.reshape(*values.shape[:-2], len(at)), coords, dims, "response", attrs)


def equivalent_columns(
    sites: Mapping[str, npt.ArrayLike], cell: Sequence[float], *, reach: float = 5.0, tolerance: float = 0.05
) -> dict[str, npt.NDArray[np.int_]]:
    """Groups of columns that the perfect crystal makes equal: those that see the same columns at the same distances.

    Parameters
    ----------
    sites : dict of str to array (n, 2)
        Every column of one periodic cell; (y, x) in angstrom.
    cell : (y, x)
        Period in angstrom.
    reach, tolerance : float
        Angstrom: how far a column sees (half the period at most), and how exactly.

    Returns
    -------
    dict of str to int array (n,)
        Number of the group of each column of a kind, from 0.

    Examples
    --------
    >>> chain = {"A": [(1.0, 1.0), (1.0, 4.0), (1.0, 6.0)], "B": [(1.0, 9.0)]}
    >>> equivalent_columns(chain, (50.0, 10.0), reach=4.0)["A"].tolist()
    [0, 1, 2]
    """
    kinds, _ = sites_by_kind(sites)
    look = _Surroundings(kinds, cell, reach, tolerance)
    found = {}
    for kind, places in kinds.items():
        seen = [look(place) for place in places]
        first: list[int] = []
        numbers = np.empty(len(places), int)
        for n, own in enumerate(seen):
            numbers[n] = next((g for g, f in enumerate(first) if look.alike(own, seen[f])), len(first))
            if numbers[n] == len(first):
                first.append(n)
        found[kind] = numbers
    return found


def equivalent_places(
    sites: Mapping[str, npt.ArrayLike],
    cell: Sequence[float],
    place: Sequence[float],
    *,
    reach: float = 5.0,
    tolerance: float = 0.05,
) -> Array:
    """Every place (y, x) of a periodic block that its perfect crystal makes equal to a given one, which comes first.

    Of the symmetries of a crystal in projection, translations, mirrors along and across the axes and their diagonals,
    and rotations by quarter turns are tried.

    Parameters
    ----------
    sites, cell, reach, tolerance
        As for `equivalent_columns`.
    place : (y, x)
        In angstrom.

    Returns
    -------
    array (n, 2)

    Examples
    --------
    >>> equivalent_places({"A": [(0.0, 0.0), (0.0, 6.0)]}, (20.0, 12.0), (0.0, 2.0)).tolist()
    [[0.0, 2.0], [0.0, 8.0], [0.0, 10.0], [0.0, 4.0]]
    """
    kinds, _ = sites_by_kind(sites)
    period = np.asarray(cell, np.float64)
    start = np.asarray(place, np.float64)
    look = _Surroundings(kinds, cell, reach, tolerance)
    own = look(start)
    rarest = min(kinds.values(), key=len)
    offset = _apart(start, rarest, period)
    offset = offset[np.argmin(np.hypot(*offset.T))]
    signs = [np.diag(signs) for signs in itertools.product((1, -1), repeat=2)]
    turns = [*signs, *(s[::-1] for s in signs)]
    found = [start]
    for turn, site in itertools.product(turns, rarest):
        other = (site + turn @ offset) % period
        known = np.hypot(*_apart(other, np.array(found), period).T).min() < tolerance
        if not known and look.alike(look(other), own):
            found.append(other)
    return np.array(found)


class _Surroundings:
    """The distances at which a place sees columns of each kind."""

    def __init__(self, kinds: Mapping[str, Array], cell: Sequence[float], reach: float, tolerance: float) -> None:
        self._period = np.asarray(cell, np.float64)
        self._reach, self._tolerance = min(reach, float(self._period.min()) / 2), tolerance
        self._kinds = list(kinds.values())

    def __call__(self, place: Array) -> list[Array]:
        distances = (np.sort(np.hypot(*_apart(place, at, self._period).T)) for at in self._kinds)
        return [d[d <= self._reach] for d in distances]

    def alike(self, seen: list[Array], other: list[Array]) -> bool:
        """Whether two places see the same; columns at the limit of what is seen do not count."""
        for a, b in zip(seen, other, strict=True):
            n = max((a <= self._reach - self._tolerance).sum(), (b <= self._reach - self._tolerance).sum())
            if min(len(a), len(b)) < n or (np.abs(a[:n] - b[:n]) > self._tolerance).any():
                return False
        return True


def _apart(place: Array, others: Array, period: Array) -> Array:
    """From each of other places to one, the shortest way over the border of a periodic block."""
    offset = place - others
    return offset - period * np.round(offset / period)


def occupancy_table(
    images: xr.DataArray,
    sites: Sites,
    cell: Sequence[float],
    *,
    suspects: Sequence[Mapping[str, Any]] = (),
    empty: npt.ArrayLike | None = None,
    empty_kind: str | None = None,
    radius: float | str = "0.6 Å",
    apart: float | str = "3 Å",
) -> xr.Dataset:
    r"""Every column in the image of its own kind, against the intact columns that are equivalent to it.

    .. math:: z = (r - \langle r \rangle_{intact}) / s_{intact}

    with the sample standard deviation s over the intact columns of its group (see `equivalent_columns`): those at
    least `apart` from every suspect. The scatter of the intact columns holds counting noise and thermal disorder alike.

    Parameters
    ----------
    images : DataArray, dims (template, y, x)
        One for each kind of column. Lazy ones are computed: one read.
    sites : dict of str to array (n, 2)
        Every column of the perfect block; (y, x) in angstrom.
    cell : (y, x)
        Period of the block, in angstrom.
    suspects : sequence of mappings
        Each with `kind`, `site` (y, x) and, where it is known, `defect` and `occupancy`, as in the truth of a
        simulated store. A suspect that is no site of its kind (an interstitial column) is compared with `empty`.
    empty : array (n, 2), optional
        Places without a column that are equivalent to that of an interstitial one, in the perfect crystal.
    empty_kind : str, optional
        The image to look at them in; by default that of the first suspect which is no site.
    radius
        As for `column_responses`.
    apart : float (angstrom) or str, default "3 Å"
        Columns nearer than this to a suspect are neither intact nor suspect; they are marked as "near".

    Returns
    -------
    Dataset, dim column
        `kind`, `group`, `y`, `x`, `state` ("intact", "near", or what the suspect is called), `occupancy`, `response`,
        `deviation` (from the mean of the intact), `scatter` and `ratio` (z).

    Raises
    ------
    SiteError
        If a group has fewer than four intact columns inside the scan.

    Examples
    --------
    A column of half the height among eight that are whole:

    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 50, 0.25, 0.0, "angstrom") for dim in ("y", "x")}
    >>> places = [(y, x) for y in (2, 6, 10) for x in (2, 6, 10)]
    >>> heights = np.where(np.arange(9) == 4, 0.5, 1 + 0.01 * np.arange(9))
    >>> y, x = np.meshgrid(steps["y"].values, steps["x"].values, indexing="ij")
    >>> image = sum(h * np.exp(-((y - a) ** 2 + (x - b) ** 2)) for h, (a, b) in zip(heights, places, strict=True))
    >>> images = xr.DataArray([image], {"template": ["O"], **steps}, ("template", "y", "x"))
    >>> vacancy = {"kind": "O", "site": (6.0, 6.0), "defect": "vacancy", "occupancy": 0.5}
    >>> table = occupancy_table(images, {"O": places}, (12.0, 12.0), suspects=[vacancy])
    >>> table["state"].values[4].item(), bool(table["ratio"][4] < -10)
    ('vacancy', True)
    """
    kinds, _ = sites_by_kind(sites)
    period = np.asarray(cell, np.float64)
    limit = quantity(apart, "angstrom", "apart")
    images = images.compute()
    groups = equivalent_columns(kinds, cell)
    rows: list[dict[str, Any]] = []
    for kind, places in kinds.items():
        rows += [_row(kind, int(group), place) for place, group in zip(places, groups[kind], strict=True)]
    added = [s for s in suspects if not _is_site(s, kinds, period)]
    if added and empty is not None:
        kind = empty_kind or str(added[0]["kind"])
        rows += [_row(kind, -1, place) for place in np.asarray(empty, np.float64)]
    for row in rows:
        offsets = {n: _offset(row["place"], s["site"], period) for n, s in enumerate(suspects)}
        nearest = min(offsets, key=lambda n: offsets[n], default=None)
        if nearest is None or offsets[nearest] >= limit:
            continue
        own = suspects[nearest]
        itself = offsets[nearest] < 0.3 and own["kind"] == row["kind"]
        row["state"] = str(own.get("defect", "suspect")) if itself else "near"
        row["occupancy"] = float(own.get("occupancy", np.nan)) if itself else row["occupancy"]
    for kind in {row["kind"] for row in rows}:
        members = [row for row in rows if row["kind"] == kind]
        found = column_responses(images.sel({TEMPLATE: kind}), [row["place"] for row in members], radius=radius)
        for row, response in zip(members, found.values, strict=True):
            row["response"] = float(response)
        _compare(kind, [row for row in members if np.isfinite(row["response"])])
    rows = [row for row in rows if np.isfinite(row["response"])]
    parts = _said_of(str(images.attrs.get("units", "1")))
    table = xr.Dataset({name: (COLUMN, [row[name] for row in rows], attrs) for name, attrs in parts.items()})
    for n, dim in enumerate(("y", "x")):
        attrs = {"long_name": f"site along {dim}", "units": "angstrom"}
        table[dim] = (COLUMN, [row["place"][n] for row in rows], attrs)
    return table.set_coords(["kind", "group", "state", "y", "x"])


def _said_of(units: str) -> dict[str, dict[str, str]]:
    return {
        "kind": {"long_name": "kind of column"},
        "group": {"long_name": "environment of the column", "units": "1"},
        "state": {"long_name": "what is known of the column"},
        "occupancy": {"long_name": "occupancy", "units": "1"},
        "response": {"long_name": "response", "units": units},
        "deviation": {"long_name": "deviation from the mean of the intact columns", "units": units},
        "scatter": {"long_name": "scatter of the intact columns", "units": units},
        "ratio": {"long_name": "deviation over the scatter of the intact columns", "units": "1"},
    }


def detection_limit(occupancy: npt.ArrayLike, ratio: npt.ArrayLike, *, threshold: float = 3.0) -> float:
    r"""The occupancy below which a column deviates by more than `threshold` times the scatter of the intact ones.

    From :math:`z = a v + b v^2`, v being the missing fraction, fitted to the columns: channelling makes the response
    somewhat other than proportional. A smooth curve tells less noise than the first column beyond the threshold.

    Parameters
    ----------
    occupancy, ratio : array (n,)
        Of the columns that lack atoms: fraction that is left, and deviation over scatter.
    threshold : float, default 3

    Returns
    -------
    float
        0 to 1; NaN where not even an empty column is told from the others.

    Examples
    --------
    >>> round(detection_limit([0.0, 0.25, 0.5, 0.75], [-24, -18, -12, -6]), 3)
    0.875
    """
    missing, z = 1 - np.asarray(occupancy, np.float64), np.asarray(ratio, np.float64)
    if missing.ndim != 1 or missing.shape != z.shape or len(missing) < 2:
        raise InputError(f"There are occupancies {missing.shape} and ratios {z.shape}; expected two or more of each.")
    a, b = np.linalg.lstsq(np.stack([missing, missing**2], -1), z, rcond=None)[0]
    fine = np.linspace(0, 1, 10_001)
    beyond = np.abs(a * fine + b * fine**2) >= threshold
    return float(1 - fine[np.argmax(beyond)]) if beyond.any() else float("nan")


def _row(kind: str, group: int, place: Array) -> dict[str, Any]:
    empty = group < 0
    start: dict[str, Any] = {"kind": kind, "group": group, "place": place}
    start |= {"state": "intact", "occupancy": 0.0 if empty else 1.0, "response": np.nan}
    return start | {"deviation": np.nan, "scatter": np.nan, "ratio": np.nan}


def _compare(kind: str, members: list[dict[str, Any]]) -> None:
    for group in {row["group"] for row in members}:
        same = [row for row in members if row["group"] == group]
        intact = np.array([row["response"] for row in same if row["state"] == "intact"])
        if len(intact) < _FEWEST:
            raise SiteError(
                f'Of the columns "{kind}" of one environment {len(intact)} are intact and inside the scan; a scatter '
                f"needs {_FEWEST}: scan a larger area, or lower `apart`."
            )
        scatter = float(intact.std(ddof=1))
        for row in same:
            row["scatter"], row["deviation"] = scatter, row["response"] - float(intact.mean())
            row["ratio"] = row["deviation"] / scatter if scatter > 0 else np.nan


def _is_site(suspect: Mapping[str, Any], kinds: Mapping[str, Array], period: Array) -> bool:
    places = kinds.get(str(suspect["kind"]))
    return places is not None and min(_offset(p, suspect["site"], period) for p in places) < 0.3


def _offset(place: Any, other: Any, period: Array) -> float:
    return float(np.hypot(*_apart(np.asarray(place, np.float64), np.asarray(other, np.float64), period)))
