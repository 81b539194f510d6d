"""A whole scan as one picture: the data matrix of "Template-Derived Masks for 4D-STEM", put in order and binned."""

from __future__ import annotations

from typing import Any, Literal, get_args

import dask.array as da
import numpy as np
import xarray as xr

from ..axes import (
    DETECTOR,
    TEMPLATE,
    check_counts,
    quantity,
    require_same_coordinates,
    require_unit,
    step_of,
    unit_of,
)
from ..counts.statistics import (
    counts_facts,
    descan_shifts,
    detector_weights,
    scan_region_text,
    stored_moments,
    used_patterns,
    valid_pixels,
)
from ..errors import InputError, MaskError, RegionError
from ..masks.derivation import Normalisation, check_normalisation
from ..passes.binned_rows import binned_matrix, bins_in_order, pattern_sums, prepare_bins, row_bins, row_means
from ..passes.graphs import lazily, moments

Order = Literal["sorted", "concatenated"]

ROW, COLUMN = "row", "column"
# High angles begin here, in semi-angles: the paper's "> 25 mrad" at 23.5, and clear of the blurred edge of the disk.
HIGH_ANGLE = 1.1


def matrix_view(
    counts: xr.DataArray,
    masks: xr.DataArray | None = None,
    *,
    shape: tuple[int, int] = (1000, 1000),
    order: Order = "sorted",
    normalisation: Normalisation = "standardised",
    high_angle: float | str | None = None,
    detector_region: Any = None,
    scan_region: Any = None,
) -> xr.Dataset:
    r"""The whole data matrix as one picture: probe positions down, detector pixels across (Fig. 1c, d of the paper).

    .. math:: M_{rc} = \frac{1}{n_r n_c} \sum_{i \in r} \sum_{j \in c} \hat d_{ij}, \qquad
              \hat d_{ij} = (d_{ij} - \bar d_j) / \sigma_j

    (eq. 1 and 3, averaged over bins of nearly equal population). Sorted, columns go from the optic axis outwards, and
    rows from the darkest probe position at high angles to the brightest. The matrix itself is never formed.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        `valid_pixels`, `valid_patterns` and descan are honoured: what is not valid is in no bin.
    masks : DataArray, dims ([template,] ky, kx), optional
        Averaged over the same columns, to be drawn below the picture.
    shape : (int, int), default (1000, 1000)
        Rows and columns at most; as many as there are probe positions and pixels where these are fewer.
    order : {"sorted", "concatenated"}, default "sorted"
        "concatenated": rows and columns as they lie in the scan and on the detector, line after line (Fig. 1c).
    normalisation : {"standardised", "none"}, default "standardised"
        "none": mean counts, without subtraction and division (D in place of D_hat).
    high_angle : float (mrad) or str, optional
        Rows are sorted by the counts beyond this angle, of all valid pixels. By default 1.1 times the counts'
        `semi_angle_mrad`: the paper's "> 25 mrad" at 23.5 mrad, and clear of the disk's blurred edge.
    detector_region : DataArray or ndarray (ky, kx), or slices, optional
        Pixels that have a column: the whole detector by default. Weights above 0 count as 1.
    scan_region : DataArray or ndarray of bool (y, x), or slices, optional
        Probe positions that have a row, and that mean and standard deviation are taken over.

    Returns
    -------
    Dataset, dims (row, column)
        `matrix` in standard deviations (or counts), `mask` (template, column) where masks were given, and as
        coordinates `angle` (column; mean scattering angle in mrad, where the detector is calibrated), `pixels`
        (column), `probes` (row) and `high_angle_counts` (row; mean counts of a pattern, where sorted). A pixel of
        standard deviation 0 is 0. Lazy where the counts are.

    Raises
    ------
    InputError
        If shape, order or normalisation make no sense, or the angle from which to sort is not known.
    CoordinateError
        If the detector is not calibrated in mrad and the order is "sorted".
    RegionError
        If a region is empty, or no valid pixel lies beyond `high_angle`.
    MaskError
        If the masks are of another detector.
    CountsError
        When computed, if counts that are used are NaN or infinite.

    Notes
    -----
    Two reads: statistics and sums at high angles together, then the picture. Where the counts are a whole store that
    knows its statistics (and `scan_region` is not given), the first one is of the pixels at high angles alone.
    Concatenated, it is of the statistics, or not needed.

    Examples
    --------
    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> rng = np.random.default_rng(1)
    >>> angles = {dim: axis_coordinate(dim, 16, 4.0, -32.0, "mrad") for dim in ("ky", "kx")}
    >>> counts = label_counts(rng.poisson(5, (12, 10, 16, 16)).astype(np.uint16), angles)
    >>> view = matrix_view(counts, shape=(40, 64), high_angle=25)
    >>> view["matrix"].shape, view["pixels"].values.tolist() == [4] * 64
    ((40, 64), True)
    >>> bool((np.diff(view["angle"]) >= 0).all() and (np.diff(view["high_angle_counts"]) >= 0).all())
    True
    """
    counts = check_counts(counts)
    rows, columns = _checked_shape(shape)
    if order not in get_args(Order):
        raise InputError(f'The order is {order!r}; expected "sorted" or "concatenated".')
    check_normalisation(normalisation)
    used = used_patterns(counts, scan_region)
    kept = detector_weights(counts, detector_region) > 0
    angles = _angles(counts) if all(unit_of(counts, d) == "mrad" for d in DETECTOR) else None
    attrs: dict[str, Any] = {"order": order, "normalisation": normalisation}
    high = None
    if order == "sorted":
        require_unit(counts, DETECTOR, "mrad", "A sorted view of the data matrix")
        beyond = _high_angle(counts, high_angle)
        high = _beyond(counts, _angles(counts), beyond)
        attrs["high_angle_mrad"] = beyond
    column_of, n_columns = _columns(kept, angles if order == "sorted" else None, columns, counts)

    found = _first_read(counts, high, used, kept, standardised=normalisation == "standardised", whole=scan_region)
    sums, mean, std = (found.get(name) for name in ("sums", "mean", "std"))
    flags = np.ones(counts.shape[:2], bool) if used is None else used
    bins = lazily(prepare_bins, sums, mean, std, flags, column_of, rows, n_columns)
    row_sizes = np.bincount(row_bins(None, flags, rows)[flags])
    column_sizes = np.bincount(column_of[kept])
    pixels = None if kept.all() else kept
    picture = binned_matrix(counts.data, bins, used, pixels, descan_shifts(counts), row_sizes, column_sizes)

    units = "1" if normalisation == "standardised" else "counts"
    name = "standardised counts" if normalisation == "standardised" else "mean counts"
    data: dict[str, Any] = {"matrix": ((ROW, COLUMN), picture, {"units": units, "long_name": name})}
    coords: dict[str, Any] = {
        "probes": (ROW, row_sizes, {"units": "1", "long_name": "probe positions"}),
        "pixels": (COLUMN, column_sizes, {"units": "1", "long_name": "detector pixels"}),
    }
    if angles is not None:
        angle = np.bincount(column_of[kept], angles[kept]) / column_sizes
        coords["angle"] = (COLUMN, angle, {"units": "mrad", "long_name": "scattering angle"})
    if sums is not None:
        means = lazily(row_means, sums, flags, rows)
        if not isinstance(sums, np.ndarray):
            means = da.from_delayed(means, (len(row_sizes),), dtype=np.float64)
        long_name = f"counts beyond {attrs['high_angle_mrad']:g} mrad"
        coords["high_angle_counts"] = (ROW, means, {"units": "counts", "long_name": long_name})
    view = xr.Dataset(data, coords, attrs | counts_facts(counts))
    view.attrs["scan_region"] = scan_region_text(used, counts.shape[:2])
    return view if masks is None else view.assign(mask=_strips(counts, masks, column_of, column_sizes))


def _checked_shape(shape: Any) -> tuple[int, int]:
    values = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1 for n in values]
    if len(whole) != 2 or not all(whole):
        raise InputError(f"The shape is {shape!r}; expected rows and columns, two whole numbers of at least 1.")
    return int(values[0]), int(values[1])


def _angles(counts: xr.DataArray) -> np.ndarray:
    """Scattering angle (ky, kx) in mrad."""
    ky, kx = (np.asarray(counts.coords[d].values, np.float64) for d in DETECTOR)
    return np.hypot(ky[:, None], kx)


def _high_angle(counts: xr.DataArray, high_angle: float | str | None) -> float:
    if high_angle is not None:
        return quantity(high_angle, "mrad", "high_angle")
    if "semi_angle_mrad" not in counts.attrs:
        raise InputError(
            "The counts do not know their semi-angle, beyond which rows are sorted; give high_angle=..., or calibrate "
            "with semi_angle."
        )
    return HIGH_ANGLE * float(counts.attrs["semi_angle_mrad"])


def _beyond(counts: xr.DataArray, angles: np.ndarray, limit: float) -> np.ndarray:
    """Valid pixels (ky, kx) beyond an angle."""
    high, valid = angles > limit, valid_pixels(counts)
    high = high if valid is None else high & valid
    if not high.any():
        raise RegionError(
            f"No valid detector pixel lies beyond {limit:g} mrad, by which rows are sorted; the detector reaches "
            f'{angles.max():g} mrad: give a smaller high_angle=..., or order="concatenated".'
        )
    return high


def _columns(kept: np.ndarray, angles: np.ndarray | None, most: int, counts: xr.DataArray) -> tuple[np.ndarray, int]:
    """Column of every pixel (ky, kx), from the optic axis outwards or line after line; their number at the others."""
    n = int(kept.sum())
    ordered = bins_in_order(n, most)
    n_columns = int(ordered[-1]) + 1
    columns = np.full(kept.shape, n_columns, np.int32)
    if angles is None:
        columns[kept] = ordered
        return columns, n_columns
    # Pixels at the same angle stay in the order of the detector, whatever the last digits of its coordinates.
    step = min(abs(step_of(counts, d)) for d in DETECTOR)
    part = np.empty(n, np.int32)
    part[np.argsort(np.round(angles[kept] / step, 6), kind="stable")] = ordered
    columns[kept] = part
    return columns, n_columns


def _first_read(
    counts: xr.DataArray,
    high: np.ndarray | None,
    used: np.ndarray | None,
    kept: np.ndarray,
    *,
    standardised: bool,
    whole: Any,
) -> dict[str, Any]:
    """What the picture needs to know before: "sums" at high angles, "mean" and "std", as few reads as possible."""
    shifts = descan_shifts(counts)
    known: dict[str, Any] = {}
    if standardised and whole is None:
        stored = stored_moments(counts)
        if stored is not None:
            known = {"mean": stored[0], "std": stored[1]}
    wanted = standardised and not known
    pixels = None if kept.all() else kept
    if high is not None:
        return known | pattern_sums(counts.data, high, used, pixels, shifts, statistics=wanted)
    if wanted:
        return moments(counts.data, None, used, pixels, shifts=shifts)
    return known


def _strips(counts: xr.DataArray, masks: xr.DataArray, column_of: np.ndarray, column_sizes: np.ndarray) -> xr.DataArray:
    """Masks (template, column), averaged over the pixels of each column."""
    if not isinstance(masks, xr.DataArray) or not set(DETECTOR) <= set(masks.dims) <= {TEMPLATE, *DETECTOR}:
        dims = tuple(masks.dims) if isinstance(masks, xr.DataArray) else type(masks).__name__
        raise MaskError(f"The masks have dims {dims}; expected ([template,] ky, kx).")
    require_same_coordinates(counts, masks, DETECTOR, ("counts", "masks"), MaskError)
    stacked = masks if TEMPLATE in masks.dims else masks.expand_dims(TEMPLATE)
    stacked = stacked.transpose(TEMPLATE, *DETECTOR)
    data = lazily(_mean_of_columns, stacked.data, column_of, column_sizes)
    if not isinstance(stacked.data, np.ndarray):
        data = da.from_delayed(data, (stacked.sizes[TEMPLATE], len(column_sizes)), dtype=np.float64)
    coords = {name: c for name, c in stacked.coords.items() if c.dims == (TEMPLATE,)}
    attrs = {"long_name": "mean weight", "units": masks.attrs.get("units", "1")}
    return xr.DataArray(data, dims=(TEMPLATE, COLUMN), coords=coords, attrs=attrs)


def _mean_of_columns(masks: np.ndarray, column_of: np.ndarray, column_sizes: np.ndarray) -> np.ndarray:
    n = len(column_sizes)
    flat = column_of.ravel()
    sums = [np.bincount(flat, np.asarray(mask, np.float64).ravel(), n + 1)[:n] for mask in masks]
    return np.stack(sums) / column_sizes
