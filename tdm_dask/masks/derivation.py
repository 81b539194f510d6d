"""Masks from templates and images from masks: the method of "Template-Derived Masks for 4D-STEM", labelled.

Every detector pixel has an image over the scan, that of a detector which had this pixel alone. `correlate` compares all
of them with templates, in one read; `derive_mask` makes weights of what it finds; `apply_mask` sums every pattern under
the weights, in one more; `transfer_mask` lays a mask of another scan on the detector of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from ..axes import DETECTOR, SCAN, TEMPLATE, check_counts, require_same_coordinates
from ..counts.statistics import (
    counts_facts,
    descan_shifts,
    detector_coords,
    detector_weights,
    scan_coords,
    scan_region_text,
    statistics_dataset,
    used_patterns,
    valid_patterns,
    valid_pixels,
)
from ..errors import InputError, MaskError
from ..passes.graphs import images, lazily, moments
from ..passes.reductions import prepare_masks, prepare_templates
from ..renamed import renamed
from .ridge import RidgeOptions, ridge_masks
from .templates import check_template

Method = Literal["pearson", "mean-scaled", "ridge"]
Normalisation = Literal["none", "standardised"]

# What a mask of each method is to be applied with.
NORMALISATION_OF: Mapping[Method, Normalisation] = {
    "pearson": "standardised",
    "mean-scaled": "none",
    "ridge": "standardised",
}


def correlate(
    counts: xr.DataArray, template: xr.DataArray, *, detector_region: Any = None, scan_region: Any = None
) -> xr.Dataset:
    r"""Correlation of the image of every detector pixel with templates: the one read that masks need.

    .. math:: \rho_k = \frac{1}{p} \sum_i \hat s_i \hat s_{ik}, \qquad
              \hat s_{ik} = (d_{ik} - \bar d_k) / \sigma_k

    over the p probe positions used (eq. 3-5 of the paper, with the 1/p that makes it a correlation, in [-1, 1]).

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    template : DataArray, dims ([template,] y, x)
        Weight per probe position; any number of templates costs one read.
    detector_region : DataArray or ndarray (ky, kx), or slices, optional
        Pixels that a mask may use, as booleans or as weights of at least 0; the whole detector by default. The
        others are not read where the store allows it, and are 0 in every result.
    scan_region : DataArray or ndarray of bool (y, x), or slices, optional
        Probe positions that statistics and correlations are taken over (a partial template); the whole scan by
        default. Slices count probe positions.

    Returns
    -------
    Dataset
        `rho` ([template,] ky, kx), `mean` and `std` (ky, kx, in counts), `n` () and `detector_region` (ky, kx).
        Lazy where counts or template are: nothing is read until `.compute()`. A pixel that is invalid, outside the
        region, or of standard deviation 0 has rho = 0.

    Raises
    ------
    TemplateError
        If a template is constant or not finite over the probe positions used, or of another scan. Eagerly for
        templates in memory, when computed for lazy ones.
    RegionError
        If a region is empty or of another shape.
    CountsError
        When computed, if counts that are used are NaN or infinite.

    Examples
    --------
    The image of one detector pixel as template finds that pixel:

    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> counts = label_counts(rng.poisson(5, (16, 16, 4, 4)).astype(np.uint16))
    >>> rho = correlate(counts, counts[:, :, 2, 1].drop_vars(["ky", "kx"]))["rho"]
    >>> round(float(rho[2, 1]), 6), bool(abs(rho).sum() < 4)
    (1.0, True)
    """
    counts = check_counts(counts)
    template = check_template(counts, template)
    used = used_patterns(counts, scan_region)
    weights = detector_weights(counts, detector_region)
    pixels = None if (weights > 0).all() else weights > 0
    stacked = template if TEMPLATE in template.dims else template.expand_dims(TEMPLATE)
    stacked = stacked.transpose(TEMPLATE, *SCAN)
    templates = lazily(prepare_templates, stacked.data, used)
    values = moments(counts.data, templates, used, pixels, stacked.sizes[TEMPLATE], descan_shifts(counts))
    return labelled_correlations(values, counts, template, used, weights)


def labelled_correlations(
    values: dict[str, Any], counts: xr.DataArray, template: xr.DataArray, used: np.ndarray | None, weights: np.ndarray
) -> xr.Dataset:
    """What `correlate` returns, from the results of `passes.graphs.moments` over the probe positions used."""
    dataset = statistics_dataset(values, counts, scan_region_text(used, counts.shape[:2]))
    rho = xr.DataArray(
        values["rho"], dims=(TEMPLATE, *DETECTOR), attrs={"long_name": "Pearson correlation", "units": "1"}
    )
    dataset["rho"] = rho if TEMPLATE in template.dims else rho[0]
    for name, coordinate in template.coords.items():
        if coordinate.dims == (TEMPLATE,):
            dataset = dataset.assign_coords({name: coordinate})
    region = (DETECTOR, weights, {"long_name": "weight of the detector region", "units": "1"})
    return dataset.assign(detector_region=region)


@renamed(gain="counts_per_electron")
def derive_mask(
    counts: xr.DataArray | xr.Dataset,
    template: xr.DataArray | None = None,
    *,
    method: Method = "pearson",
    detector_region: Any = None,
    scan_region: Any = None,
    **ridge: Any,
) -> xr.DataArray:
    r"""Weighted mask in diffraction space from a template in real space.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx), or Dataset
        Counts, or what `correlate` made of them: then nothing is read, and `template` and the regions are not given
        again.
    template : DataArray, dims ([template,] y, x)
    method : {"pearson", "mean-scaled", "ridge"}, default "pearson"
        "pearson": m = rho (eq. 8), to be applied to D_hat (`normalisation="standardised"`). "mean-scaled":
        m = rho / mean (eq. 7), to be applied to the raw counts (`normalisation="none"`); 0 where the mean is 0.
        "ridge": m = (C_q + lambda)^-1 rho, to be applied to D_hat; it tells kinds of column apart that a Pearson mask
        mixes. All its templates are solved together, and it needs more than `correlate` gives.
    detector_region, scan_region
        As in `correlate`. Weights of the detector region multiply the mask; of a ridge mask they divide lambda, so
        that a pixel of little weight gets little of the mask and the others make up for it.
    **ridge
        Of ridge masks alone:

        regularisation : float or "cross-validated" (default)
            Lambda, in units of the diagonal of C_q, which is 1. Cross-validation chooses it on blocks of the scan, from
            the same read; `tdm_dask.regularisation_curve` shows the choice. The mask has it as a coordinate.
        objective : {"both", "R", "excess"}, blocks : (int, int)
            What cross-validation is after, and on how many blocks: see `tdm_dask.regularisation_curve`.
        separate : bool, default False
            Whether the response to the other templates is made zero where the mask is derived: the image, as a sum
            of all templates and a rest, has coefficients of 0 for all but its own.
        counts_per_electron : float, optional
            Lambda then weighs every pixel by the part of its variance that is counting noise. By default all pixels
            alike. Called `gain` before, which works in this release alone.
        solver : {"auto", "gram", "conjugate-gradients"}
            "gram" makes C_q in one read, for up to 8192 pixels (of which 4 blocks hold half as many); conjugate
            gradients take one read for each step, now, whatever the size, and need the regularisation as a number.
            "auto" takes the first for up to 4096 pixels. The mask says which was taken, and its reads.
        most_reads : int, default 200
            Steps of conjugate gradients, which end at a relative residual of 1e-6: about 70 for lambda = 0.1, and more
            the smaller it is.

    Returns
    -------
    DataArray, dims ([template,] ky, kx)
        The mask, which carries `mean`, `std`, `n` and `detector_region` as coordinates and the scan region as an
        attribute, so that an image from D_hat is defined over any scan. A ridge mask carries its `regularisation` and
        the Pearson correlations `rho` as well.

    Raises
    ------
    InputError
        If the method is unknown, a template is missing or given twice, or an option makes no sense.
    TemplateError, RegionError, CountsError
        As in `correlate`.
    MemoryLimitError
        If the detector region has too many pixels for the matrix of a ridge mask.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> counts = label_counts(rng.poisson(5, (16, 16, 4, 4)).astype(np.uint16))
    >>> template = counts[:, :, 2, 1].drop_vars(["ky", "kx"])
    >>> mask = derive_mask(counts, template)
    >>> image = apply_mask(counts, mask, normalisation="standardised")
    >>> bool(np.corrcoef(image.values.ravel(), template.values.ravel())[0, 1] > 0.95)
    True
    """
    if method not in get_args(Method):
        raise InputError(f"The method is {method!r}; expected one of {get_args(Method)}.")
    if ridge and method != "ridge":
        raise InputError(f'{min(ridge)} is an option of method="ridge" alone; leave it out, or ask for ridge masks.')
    if method == "ridge":
        return _ridge(counts, template, detector_region, scan_region, ridge)
    if isinstance(counts, xr.Dataset):
        if template is not None or detector_region is not None or scan_region is not None:
            raise InputError(
                "A Dataset of correlations already holds its template and regions; give either that Dataset alone, or "
                "the counts with a template."
            )
        missing = {"rho", "mean", "std", "n", "detector_region"} - set(counts.variables)
        if missing:
            raise InputError(f"The Dataset lacks {sorted(missing)}; expected what tdm_dask.correlate returns.")
        correlations = counts
    elif template is None:
        raise InputError("No template was given; give one, or the Dataset that tdm_dask.correlate returned.")
    else:
        correlations = correlate(counts, template, detector_region=detector_region, scan_region=scan_region)
    mask = correlations["rho"] * correlations["detector_region"]
    if method == "mean-scaled":
        mean = correlations["mean"]
        mask = xr.where(mean != 0, mask / mean.where(mean != 0, 1.0), 0.0)
    carried = {name: correlations[name].variable for name in ("mean", "std", "n", "detector_region")}
    mask = mask.transpose(..., *DETECTOR).assign_coords(carried)
    units = "1" if method == "pearson" else "1/counts"
    mask.attrs = {**correlations.attrs, "method": method, "units": units, "long_name": f"{method} mask"}
    return mask.rename("mask")


def _ridge(
    counts: xr.DataArray | xr.Dataset,
    template: xr.DataArray | None,
    detector_region: Any,
    scan_region: Any,
    options: dict[str, Any],
) -> xr.DataArray:
    if isinstance(counts, xr.Dataset) or template is None:
        raise InputError("A ridge mask needs more than correlations; give the counts and a template.")
    counts = check_counts(counts)
    given = RidgeOptions.given(options)
    return ridge_masks(counts, check_template(counts, template), detector_region, scan_region, given)


def apply_mask(counts: xr.DataArray, mask: xr.DataArray, *, normalisation: Normalisation = "none") -> xr.DataArray:
    r"""Image from a weighted mask: a virtual detector with one weight per pixel.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    mask : DataArray, dims ([template,] ky, kx)
        Any number of masks costs one read, and only of the chunks that a non-zero weight touches where the mask is in
        memory; of a lazy one, of those that its `detector_region` touches, where it has that from `derive_mask`.
    normalisation : {"none", "standardised"}, default "none"
        "none": s = D m^T (eq. 2), in counts. "standardised": s = D_hat m^T, from counts normalised to mean 0 and
        standard deviation 1 with the mask's own `mean` and `std`: D_hat m^T = D (m/std)^T - sum(mean m / std), so
        that D is never copied.

    Returns
    -------
    DataArray, dims ([template,] y, x)
        Float64; lazy where counts or mask are. NaN at patterns that are not valid: they have no image.

    Raises
    ------
    MaskError
        If the mask is not finite, belongs to another detector, or carries no mean and std to standardise with.
    CountsError
        When computed, if counts under the mask are NaN or infinite.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.ones((2, 3, 4, 4), np.uint16))
    >>> mask = xr.DataArray(np.eye(4), dims=("ky", "kx"))
    >>> apply_mask(counts, mask).values.tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    counts = check_counts(counts)
    check_normalisation(normalisation)
    masks = masks_for_pass(counts, mask, normalisation)
    n_masks, pixels = mask.sizes.get(TEMPLATE, 1), _known_pixels(mask)
    data = images(counts.data, masks, n_masks, valid_patterns(counts), pixels, descan_shifts(counts))
    return labelled_image(data, counts, mask, normalisation)


def masks_for_pass(counts: xr.DataArray, mask: xr.DataArray, normalisation: Normalisation) -> Any:
    """Masks as `passes.graphs.images` takes them, lazy where the mask is, or an error that says what is wrong."""
    if not isinstance(mask, xr.DataArray) or not set(DETECTOR) <= set(mask.dims) <= {TEMPLATE, *DETECTOR}:
        dims = tuple(mask.dims) if isinstance(mask, xr.DataArray) else type(mask).__name__
        raise MaskError(f"The mask has dims {dims}; expected ([template,] ky, kx).")
    require_same_coordinates(counts, mask, DETECTOR, ("counts", "mask"), MaskError)
    stacked = (mask if TEMPLATE in mask.dims else mask.expand_dims(TEMPLATE)).transpose(TEMPLATE, *DETECTOR)
    mean = std = None
    if normalisation == "standardised":
        if "mean" not in mask.coords or "std" not in mask.coords:
            raise MaskError(
                "The mask carries no mean and std, which the standardised image needs; derive it with derive_mask, or "
                'use normalisation="none".'
            )
        mean, std = (mask.coords[name].transpose(*DETECTOR).data for name in ("mean", "std"))
    return lazily(prepare_masks, stacked.data, mean, std, valid_pixels(counts), _known_pixels(mask))


def labelled_image(data: Any, counts: xr.DataArray, mask: xr.DataArray, normalisation: Normalisation) -> xr.DataArray:
    """Images (mask, y, x) of counts as `apply_mask` returns them."""
    units = "counts" if normalisation == "none" and mask.attrs.get("units", "1") == "1" else "1"
    result = xr.DataArray(data, dims=(TEMPLATE, *SCAN), coords=scan_coords(counts), name="image")
    result.attrs = {**counts_facts(counts), "normalisation": normalisation, "units": units, "long_name": "image"}
    if TEMPLATE not in mask.dims:
        return result[0]
    extra = {k: v for k, v in mask.coords.items() if v.dims == (TEMPLATE,)}
    return result.assign_coords(extra)


def _known_pixels(mask: xr.DataArray) -> np.ndarray | None:
    """Detector pixels that a lazy mask may use, as far as that is known before it is computed."""
    region = mask.coords.get("detector_region")
    if mask.chunks is None or region is None or region.chunks is not None:
        return None
    return np.asarray(region.transpose(*DETECTOR).values) > 0


def transfer_mask(
    mask: xr.DataArray, counts: xr.DataArray, *, rotation: float = 0.0, flip: bool = False
) -> xr.DataArray:
    """A mask from another scan, dose or camera, on the detector of these counts.

    The mask is interpolated linearly in mrad (or 1/angstrom: the units must agree), about the optic axis. Its `mean`
    and `std` are left behind, for they belong to the other scan. For `normalisation="standardised"`, give it those of
    the new one: ``s = pixel_statistics(counts); mask.assign_coords(mean=s["mean"], std=s["std"])``.

    Parameters
    ----------
    mask : DataArray, dims ([template,] ky, kx)
    counts : DataArray
        Counts (or anything with ky and kx coordinates) to transfer to.
    rotation : float, default 0
        Degrees by which the mask is turned, from kx towards ky.
    flip : bool, default False
        Mirror the mask (ky to -ky) before it is turned.

    Returns
    -------
    DataArray, dims ([template,] ky, kx)
        0 where the old detector does not reach.

    Raises
    ------
    MaskError
        If the units of the two detectors differ or the mask is lazy and not finite.

    Examples
    --------
    >>> k = xr.DataArray(np.arange(-4.0, 5), dims="kx", attrs={"units": "mrad"})
    >>> mask = xr.DataArray(np.ones((9, 9)), dims=("ky", "kx"), coords={"ky": k.values, "kx": k.values})
    >>> mask.ky.attrs["units"] = mask.kx.attrs["units"] = "mrad"
    >>> fine = xr.DataArray(np.zeros((3, 3)), dims=("ky", "kx"), coords={"ky": [-1.5, 0, 1.5], "kx": [-1.5, 0, 1.5]})
    >>> fine.ky.attrs["units"] = fine.kx.attrs["units"] = "mrad"
    >>> float(transfer_mask(mask, fine).sum())
    9.0
    """
    from scipy.interpolate import RegularGridInterpolator

    from ..axes import unit_of

    for dim in DETECTOR:
        if dim not in mask.dims or dim not in counts.dims:
            raise MaskError(f"Both the mask and the counts need a {dim} axis; found {mask.dims} and {counts.dims}.")
        old, new = unit_of(mask, dim), unit_of(counts, dim)
        if old != new or old == "px":
            raise MaskError(
                f'The {dim} axis of the mask is in "{old}", that of the counts in "{new}"; '
                "calibrate both in mrad before a mask is transferred."
            )
    values = np.asarray(mask.transpose(..., *DETECTOR).values, np.float64)
    ky, kx = (np.asarray(counts.coords[d].values, np.float64) for d in DETECTOR)
    grid_y, grid_x = np.meshgrid(ky, kx, indexing="ij")
    angle = np.deg2rad(rotation)
    # Where each new pixel lies on the old detector: turned back, then mirrored back.
    old_x = np.cos(angle) * grid_x + np.sin(angle) * grid_y
    old_y = -np.sin(angle) * grid_x + np.cos(angle) * grid_y
    old_y = -old_y if flip else old_y
    axes = [np.asarray(mask.coords[d].values, np.float64) for d in DETECTOR]
    order = [slice(None, None, -1) if a[0] > a[-1] else slice(None) for a in axes]
    grid = RegularGridInterpolator(
        [a[o] for a, o in zip(axes, order, strict=True)],
        np.moveaxis(values[(..., *order)], 0, -1) if values.ndim == 3 else values[tuple(order)],
        bounds_error=False,
        fill_value=0.0,
    )
    moved = grid(np.stack([old_y, old_x], -1))
    moved = np.moveaxis(moved, -1, 0) if values.ndim == 3 else moved
    valid = valid_pixels(counts)
    if valid is not None:
        moved = np.where(valid, moved, 0.0)
    dims = (TEMPLATE, *DETECTOR) if values.ndim == 3 else DETECTOR
    coords = detector_coords(counts) | {k: v for k, v in mask.coords.items() if v.dims == (TEMPLATE,)}
    attrs = {**mask.attrs, "transferred": f"rotation {rotation:g} deg, flip {flip}"}
    return xr.DataArray(moved, dims=dims, coords=coords, attrs=attrs, name="mask")


def check_normalisation(normalisation: str) -> None:
    """Raise InputError unless there is such a normalisation."""
    if normalisation not in get_args(Normalisation):
        raise InputError(f'The normalisation is {normalisation!r}; expected "none" or "standardised".')
