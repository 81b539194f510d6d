"""The lattice of a crystal in a scan: two vectors, a motif of kinds of columns, an origin, and a slow drift."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN, quantity, require_unit
from ..errors import SiteError
from .drift import Drift, fixed, ideal_positions
from .finding import Contrast, column_heights, find_columns, scan_image
from .lattice_fit import Fit, fit_lattice, folded, motif_spacing
from .periodicity import lattice_vectors, spectrum
from .sites import Array, Sites, sites_by_kind

# Half of this is how far a column may lie from its site: halfway to the next would be half the spacing.
_TOLERANCE = 0.35
_MOST_ORDER = 8


@dataclass(frozen=True, eq=False)
class Lattice:
    r"""Where the columns of a crystal lie in a scan.

    .. math:: r = r_0 + (h + m_1) a + (k + m_2) b + u

    for all integers h, k, each fractional position m of the motif, and the drift u at the position without it.

    Attributes
    ----------
    vectors : array (2, 2)
        Rows a and b, each (y, x) in angstrom.
    motif : dict of str to array (n, 2)
        Fractional positions, in units of a and b, by kind of column.
    origin : array (2,)
        (y, x) in angstrom.
    drift : Drift or None
    columns : dict of str to list of dict, or None
        What is in each column of the motif, where that is known: atoms of each element per `period`.
    period : float or None
        Length along the beam after which the columns repeat, in angstrom.

    Raises
    ------
    SiteError
        If the vectors are parallel, or anything is not finite or of the wrong shape.

    Examples
    --------
    >>> rutile = Lattice([[4.6, 0], [0, 3.0]], {"Ti": [(0, 0)], "O": [(0.3, 0.5)]}, origin=(1.0, 0.5))
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {dim: axis_coordinate(dim, 21, 0.2, unit="angstrom") for dim in ("y", "x")}
    >>> scan = xr.DataArray(np.zeros((21, 21)), coords=steps, dims=("y", "x"))
    >>> rutile.sites(scan)["Ti"].tolist()
    [[1.0, 0.5], [1.0, 3.5]]
    >>> Lattice.from_json(rutile.to_json()) == rutile
    True
    """

    vectors: Array
    motif: Mapping[str, Array]
    origin: Array = (0.0, 0.0)  # type: ignore[assignment]
    drift: Drift | None = None
    columns: dict[str, list[dict[str, float]]] | None = None
    period: float | None = None

    def __post_init__(self) -> None:
        vectors = fixed(self.vectors, (2, 2), "The vectors")
        if abs(np.linalg.det(vectors)) < 1e-3 * np.prod(np.hypot(*vectors.T)):
            raise SiteError(f"The vectors {vectors.tolist()} are parallel or zero; a lattice needs two directions.")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "origin", fixed(self.origin, (2,), "The origin"))
        motif = {kind: fixed(places, (-1, 2), f'"{kind}"') for kind, places in sites_by_kind(self.motif)[0].items()}
        object.__setattr__(self, "motif", motif)
        if self.columns is not None:
            counts = {kind: len(places) for kind, places in motif.items()}
            if {kind: len(column) for kind, column in self.columns.items()} != counts:
                raise SiteError(f"The columns do not match the motif, which has {counts}; give one entry per site.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lattice) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        # Adding zero makes -0.0 a plain zero.
        a, b, origin = (f"({v[0]:.3f}, {v[1]:.3f})" for v in np.round([*self.vectors, self.origin], 3) + 0.0)
        kinds = ", ".join(f"{kind}: {len(places)}" for kind, places in self.motif.items())
        drift = f", drift of order {self.drift.order}" if self.drift else ""
        return f"Lattice(a={a}, b={b} angstrom, origin={origin}, {kinds}{drift})"

    def sites(self, scan: xr.DataArray, *, margin: float | str = 0.0) -> dict[str, Array]:
        """Every site inside a scan.

        Parameters
        ----------
        scan : DataArray with y and x in angstrom
            Counts or an image; only its coordinates are used, nothing is read.
        margin : float (angstrom) or str, default 0
            How far outside the outermost probe positions sites still count. Templates of Gaussians take those up to
            three sigma outside into account.

        Returns
        -------
        dict of str to array (n, 2)
            (y, x) in angstrom, by kind, in the order of the motif; empty where a kind has no site in the scan.
        """
        wide = quantity(margin, "angstrom", "margin", positive=False)
        require_unit(scan, SCAN, "angstrom", "A lattice")
        axes = [np.asarray(scan.coords[dim].values, np.float64) for dim in SCAN]
        low, high = np.array([a.min() for a in axes]) - wide, np.array([a.max() for a in axes]) + wide
        places, member = self.inside(low, high)
        ends = np.cumsum([len(motif) for motif in self.motif.values()])
        kind_of = np.searchsorted(ends, member, side="right")
        return {kind: places[kind_of == n] for n, kind in enumerate(self.motif)}

    def inside(self, low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.int64]]:
        """Sites (n, 2) from `low` to `high`, (y, x) in angstrom, and which of all sites of the motif each is."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        # Rounding must not decide about sites on the border.
        slack = 1e-9 * (1 + np.abs([low, high]).max())
        reach = 0.0 if self.drift is None else self.drift.largest
        corners = [(y, x) for y in (low[0] - reach, high[0] + reach) for x in (low[1] - reach, high[1] + reach)]
        fraction = (np.array(corners) - self.origin) @ np.linalg.inv(self.vectors)
        motif = np.concatenate(list(self.motif.values()))
        first, last = np.floor(fraction.min(0) - motif.max(0)), np.ceil(fraction.max(0) - motif.min(0))
        cells = np.stack(np.meshgrid(*map(np.arange, first, last + 1), indexing="ij"), axis=-1).reshape(-1, 2)
        places = self.at(motif[:, None] + cells)
        kept = ((places >= low - slack) & (places <= high + slack)).all(1)
        return places[kept], np.repeat(np.arange(len(motif)), len(cells))[kept]

    def at(self, fractions: npt.ArrayLike) -> Array:
        """Positions (n, 2) in angstrom of fractional positions (n, 2), the drift included."""
        ideal = self.origin + np.asarray(fractions, np.float64).reshape(-1, 2) @ self.vectors
        return ideal if self.drift is None else ideal + self.drift.at(ideal)

    def fractions(self, positions: npt.ArrayLike) -> Array:
        """Fractional positions (n, 2) of positions (n, 2) in angstrom: the inverse of :meth:`at`."""
        points = np.asarray(positions, np.float64).reshape(-1, 2)
        if self.drift is not None:
            d = self.drift
            points = ideal_positions(points, d.centre, d.half, d.coefficients, d.order)
        return np.asarray((points - self.origin) @ np.linalg.inv(self.vectors))

    def expected(self, sites: Sites) -> Any:
        """The site of the lattice nearest to each of some columns, so that ``sites - expected`` is their displacement.

        Parameters
        ----------
        sites : array (n, 2), or mapping of str to array (n, 2)
            (y, x) in angstrom. With kinds, each is compared with sites of its own kind alone.

        Returns
        -------
        array (n, 2), or dict of str to array (n, 2)
            As `sites`.

        Raises
        ------
        SiteError
            If a kind is none of the motif's.

        Examples
        --------
        >>> Lattice([[4, 0], [0, 4]], {"Pb": [(0, 0)]}).expected([(4.1, 7.7)]).tolist()
        [[4.0, 8.0]]
        """
        kinds, single = sites_by_kind(sites)
        unknown = [] if single else sorted(set(kinds) - set(self.motif))
        if unknown:
            raise SiteError(f'The lattice has no columns of "{unknown[0]}"; its kinds are {", ".join(self.motif)}.')
        every = np.concatenate(list(self.motif.values()))
        nearest = {kind: self._nearest(p, every if single else self.motif[kind]) for kind, p in kinds.items()}
        return next(iter(nearest.values())) if single else nearest

    def _nearest(self, positions: Array, motif: Array) -> Array:
        apart = self.fractions(positions)[:, None] - motif
        around = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
        # The nearest in fractions need not be the nearest in angstrom where vectors are oblique.
        cells = np.rint(apart)[:, :, None] + around
        places = self.at(motif[:, None] + cells).reshape(len(positions), -1, 2)
        best = ((places - positions[:, None]) ** 2).sum(-1).argmin(1)
        return np.asarray(places[np.arange(len(positions)), best])

    def fit(
        self, peaks: Sites, *, drift: int = 0, origin: str = "keep", tolerance: float | str | None = None
    ) -> Lattice:
        """The same lattice, fitted to columns that were found.

        Each column is assigned to the nearest site that it may be, and vectors, origin and drift follow by least
        squares, from a window of a few cells outwards, so that errors of the first vectors and slow drift do not
        spoil the assignment. Columns further from their site than the tolerance, or than five standard deviations, are
        left out.

        Parameters
        ----------
        peaks : array (n, 2), or mapping of str to array (n, 2)
            (y, x) in angstrom, as :func:`tdm_dask.find_columns` gives them. Without kinds, a column may be of
            any kind of the motif; then the motif should hold only kinds that the image shows.
        drift : int, default 0
            Highest degree of the polynomials of the drift. Below 2 there is none: shear and a constant drift are in the
            vectors already.
        origin : {"keep", "find"}, default "keep"
            Whether the origin to start from is that of this lattice, or where the most columns lie on sites: each
            column of the middle is taken for each site of the motif in turn.
        tolerance : float (angstrom) or str, optional
            How far a column may lie from its site. Default: 0.35 of the smallest distance between sites.

        Returns
        -------
        Lattice

        Raises
        ------
        SiteError
            If too few columns lie on sites.

        Warns
        -----
        UserWarning
            If other origins explain the columns as well, so that kinds may be confused.

        Examples
        --------
        >>> true = Lattice([[4.1, 0.1], [0, 3.9]], {"Pb": [(0, 0)]}, origin=(0.3, -0.2))
        >>> peaks = true.at([(h, k) for h in range(4) for k in range(5)])
        >>> found = Lattice([[4, 0], [0, 4]], {"Pb": [(0, 0)]}).fit(peaks, origin="find")
        >>> found.vectors.round(6).tolist()
        [[4.1, 0.1], [0.0, 3.9]]
        """
        fit, _ = self._fitted(peaks, drift, origin, tolerance)
        if len(fit.rivals):
            others = ", ".join(f"({y:.2f}, {x:.2f})" for y, x in fit.rivals[:3])
            warnings.warn(
                f"As many columns lie on sites with the origin at {others} angstrom as at "
                f"({fit.origin[0]:.2f}, {fit.origin[1]:.2f}): which kind is which is not settled by their positions.",
                stacklevel=2,
            )
        return self._moved(fit, drift)

    def _fitted(self, peaks: Sites, drift: int, origin: str, tolerance: float | str | None) -> tuple[Fit, list[str]]:
        if not 0 <= drift <= _MOST_ORDER:
            raise SiteError(f"The order of the drift is {drift}; expected 0 (none) or 2 to {_MOST_ORDER}.")
        if origin not in ("keep", "find"):
            raise SiteError(f'The origin is {origin!r}; expected "keep" or "find".')
        kinds, single = sites_by_kind(peaks)
        names = [kind for kind, places in self.motif.items() for _ in places]
        unknown = [] if single else sorted(set(kinds) - set(names))
        if unknown:
            raise SiteError(f'The lattice has no columns of "{unknown[0]}"; its kinds are {", ".join(self.motif)}.')
        found = np.concatenate(list(kinds.values()))
        labels = np.repeat(list(kinds), [len(p) for p in kinds.values()])
        allowed = np.ones((len(found), len(names)), bool) if single else labels[:, None] == np.array(names)
        motif = np.concatenate(list(self.motif.values()))
        reach = _TOLERANCE * motif_spacing(self.vectors, motif) if tolerance is None else None
        reach = quantity(tolerance, "angstrom", "tolerance") if reach is None else reach
        start = None if origin == "find" else self.origin
        number = {kind: n for n, kind in enumerate(self.motif)}
        kind_of = np.array([number[name] for name in names])
        fit = fit_lattice(found, allowed, self.vectors, motif, kind_of, origin=start, order=drift, tolerance=reach)
        return fit, names

    def _moved(self, fit: Fit, order: int) -> Lattice:
        drift = Drift(order, fit.centre, fit.half, fit.coefficients) if order >= 2 else None
        return replace(self, vectors=fit.vectors, origin=fit.origin, drift=drift)

    @classmethod
    def from_image(
        cls,
        image: xr.DataArray,
        *,
        separation: float | str,
        contrast: Contrast = "bright",
        drift: int = 0,
        threshold: float = 0.15,
        vectors: npt.ArrayLike | None = None,
    ) -> Lattice:
        """The lattice that an image shows, without knowledge of the crystal.

        The vectors come from the frequencies that stand out of the image's Fourier transform: those of the smallest
        cell that explains them. The columns found in the image, folded into that cell, are the motif.

        Parameters
        ----------
        image : DataArray (y, x)
            In angstrom. It must hold at least two cells along y and x.
        separation, contrast, threshold
            As in :func:`tdm_dask.find_columns`.
        drift : int, default 0
            As in :meth:`fit`.
        vectors : array (2, 2), optional
            Rows (y, x) in angstrom to start from, instead of those of the Fourier transform: for a larger cell than
            the image's contrast alone suggests.

        Returns
        -------
        Lattice
            Its kinds are "1", "2", ... in the order of their contrast, one for each column of the cell; the origin is
            at "1". :meth:`renamed` gives them names, and the same name to columns of one kind.

        Raises
        ------
        SiteError
            If the image shows no lattice or too few columns.
        """
        measured = scan_image(image, "A lattice")
        if vectors is None:
            waves = spectrum(measured)
            frequencies, amplitudes = waves.peaks()
            start = lattice_vectors(frequencies, amplitudes, waves.lengths)
        else:
            start = np.array(fixed(vectors, (2, 2), "The vectors"))
        peaks = find_columns(measured, separation=separation, contrast=contrast, threshold=threshold)
        # Columns that are missing here and there, or walls, leave the commonest motif of the middle.
        middle = np.median(peaks, axis=0)
        near = np.hypot(*(peaks - middle).T) <= 3.2 * np.hypot(*start.T).max()
        found = folded(peaks[near], start, 0.5 * quantity(separation, "angstrom", "separation"))
        every = cls(start, {str(n): [place] for n, place in enumerate(found)})  # type: ignore[misc]
        fit, _ = every._fitted(peaks, drift, "find", None)
        fit, _ = every._moved(fit, drift)._fitted(peaks, drift, "keep", None)
        taken = [n for n in range(len(found)) if (fit.member == n).any()]
        mean = [np.median(fit.residuals[fit.member == n], axis=0) for n in taken]
        places = found[taken] + np.array(mean) @ np.linalg.inv(fit.vectors)
        height = column_heights(measured, peaks, contrast)
        brightness = [np.nanmedian(height[fit.member == n]) for n in taken]
        order = np.argsort(brightness)[::-1]
        first = places[order[0]]
        motif = {str(n + 1): (places[k : k + 1] - first) % 1.0 for n, k in enumerate(order)}
        lattice = every._moved(fit, drift)
        return replace(lattice, motif=motif, origin=lattice.origin + first @ lattice.vectors)

    def renamed(self, names: Mapping[str, str]) -> Lattice:
        """The same lattice with other names of kinds; kinds of the same name become one.

        Examples
        --------
        >>> lattice = Lattice([[4, 0], [0, 4]], {"1": [(0, 0)], "2": [(0.5, 0)], "3": [(0, 0.5)]})
        >>> lattice.renamed({"1": "Pb", "2": "O", "3": "O"}).motif["O"].tolist()
        [[0.5, 0.0], [0.0, 0.5]]
        """
        unknown = sorted(set(names) - set(self.motif))
        if unknown:
            raise SiteError(f'The lattice has no columns of "{unknown[0]}"; its kinds are {", ".join(self.motif)}.')
        motif: dict[str, Array] = {}
        columns: dict[str, list[dict[str, float]]] = {}
        for kind, places in self.motif.items():
            name = names.get(kind, kind)
            motif[name] = np.concatenate([motif[name], places]) if name in motif else places
            if self.columns is not None:
                columns.setdefault(name, []).extend(self.columns[kind])
        return replace(self, motif=motif, columns=columns if self.columns is not None else None)

    def with_motif(self, motif: Mapping[str, npt.ArrayLike]) -> Lattice:
        """The same vectors, origin and drift with another motif: also columns that the image does not show."""
        return replace(self, motif=sites_by_kind(motif)[0], columns=None, period=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON and TOML; what is not known is left out."""
        plain: dict[str, Any] = {
            "unit": "angstrom",
            "vectors": self.vectors.tolist(),
            "origin": self.origin.tolist(),
            "motif": {kind: places.tolist() for kind, places in self.motif.items()},
        }
        if self.drift is not None:
            d = self.drift
            arrays = {"centre": d.centre, "half": d.half, "coefficients": d.coefficients}
            plain["drift"] = {"order": d.order, **{name: array.tolist() for name, array in arrays.items()}}
        if self.columns is not None:
            plain["columns"] = {kind: [dict(c) for c in column] for kind, column in self.columns.items()}
        if self.period is not None:
            plain["period"] = float(self.period)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Lattice:
        """What :meth:`to_dict` wrote.

        Raises
        ------
        SiteError
            If entries are missing, unknown or not in angstrom.
        """
        known = {"unit", "vectors", "origin", "motif", "drift", "columns", "period"}
        wrong = sorted(set(plain) - known) + sorted({"vectors", "motif"} - set(plain))
        if wrong or plain.get("unit", "angstrom") != "angstrom":
            raise SiteError(
                f"A lattice has {', '.join(sorted(known))}, in angstrom; found {', '.join(map(str, plain))}."
            )
        drift = Drift(**plain["drift"]) if plain.get("drift") else None
        rest = {name: plain[name] for name in ("columns", "period") if name in plain}
        return cls(plain["vectors"], plain["motif"], plain.get("origin", (0.0, 0.0)), drift, **rest)

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Lattice:
        """What :meth:`to_json` wrote."""
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            raise SiteError(f"The lattice is not JSON ({error}).") from None
        if not isinstance(plain, dict):
            raise SiteError(f"The JSON holds {type(plain).__name__}; expected the entries of a lattice.")
        return cls.from_dict(plain)
