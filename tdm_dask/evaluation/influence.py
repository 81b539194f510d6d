"""How much of a position measured in a template-derived image is a copy of the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..axes import SCAN, TEMPLATE, check_counts, quantity
from ..columns.refinement import refine_columns
from ..columns.sites import sites_by_kind
from ..errors import InputError, SiteError
from ..masks.derivation import NORMALISATION_OF, Method, apply_mask, derive_mask
from ..masks.symmetry import Group, symmetrise_mask
from ..masks.templates import gaussian_template
from ..renamed import renamed

Array = npt.NDArray[np.float64]

KIND, ALTERNATIVE = "kind", "alternative"


@renamed(gain="counts_per_electron")
def template_influence(
    counts: xr.DataArray,
    sites: Mapping[str, npt.ArrayLike],
    *,
    sigma: float | str,
    alternatives: Mapping[str, Mapping[str, npt.ArrayLike]] | None = None,
    amplitude: float | str = 0.3,
    method: Method = "pearson",
    symmetry: Group | None = None,
    detector_region: Any = None,
    scan_region: Any = None,
    radius: float | str | None = None,
    measured: Mapping[str, npt.ArrayLike] | None = None,
    **ridge: Any,
) -> xr.Dataset:
    r"""How far measured positions follow the sites of the template: the slope, for every kind of column.

    Masks are derived from templates whose sites were moved, and the columns are measured in every one of their images,
    always starting from the same sites. Of a column i and a template m, with the template's site :math:`t_{im}` and the
    measured position :math:`r_{im}`, both less their mean over the templates, the slope is

    .. math:: s = \frac{\sum_{im} t_{im} \cdot r_{im}}{\sum_{im} t_{im} \cdot t_{im}}.

    At 0 the position is in the data; at 1 it is that of the template, wherever that was put. At 0.5 half of every
    displacement of the template is found again as a displacement in the image.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        With a scan in angstrom.
    sites : mapping of str to array (n, 2)
        (y, x) in angstrom by kind.
    sigma : float (angstrom) or str
        Width of the templates' Gaussians.
    alternatives : mapping of str to (mapping of str to array (n, 2)), optional
        By kind, other sites by name, such as "reversed", as many and in the same order. By default each kind is moved
        as a whole by `amplitude` to and fro along y and x. A kind that is not named is not moved.
    amplitude : float (angstrom) or str, default 0.3
    method, detector_region, scan_region, **ridge
        As in `tdm_dask.derive_mask`; the scan region is that of the masks.
    symmetry : str, optional
        Point group under which the masks are averaged, as in `tdm_dask.symmetrise_mask`.
    radius : float (angstrom) or str, optional
        As in `tdm_dask.refine_columns`.
    measured : mapping of str to array (n, 2), optional
        Sites at which to measure, where these are others than `sites`: columns outside the reference region, say,
        which then do not move with the template. The slope is then that against the mean move of the template.

    Returns
    -------
    Dataset
        `slope` and `slope_error` (kind,), the latter from the scatter of the columns; `columns` (kind,), how many were
        measured in the images of all alternatives; `template_dy`, `template_dx`, `image_dy`, `image_dx` (kind,
        alternative), mean positions less those of the original sites, in angstrom. This reads twice, now, for any
        number of kinds and alternatives (ridge masks by conjugate gradients more often).

    Raises
    ------
    SiteError
        If alternatives have other numbers of sites, or nothing moves, or a kind has no column that can be measured.
    InputError, TemplateError, RegionError, CountsError
        As in `tdm_dask.derive_mask`.

    Examples
    --------
    A column that the counts do show stays where it is:

    >>> from tdm_dask.axes import axis_coordinate, label_counts
    >>> steps = {d: axis_coordinate(d, 32, 0.25, 0.0, "angstrom") for d in ("y", "x")}
    >>> y, x = np.meshgrid(steps["y"].values, steps["x"].values, indexing="ij")
    >>> peak = np.exp(-((y - 4) ** 2 + (x - 4) ** 2) / (2 * 0.5**2))
    >>> mean = np.stack([50 + 200 * peak, 150 - 100 * peak], -1)[:, :, None]
    >>> counts = label_counts(np.random.default_rng(0).poisson(mean).astype(np.uint16), steps)
    >>> found = template_influence(counts, {"O": [(4.0, 4.0)]}, sigma=0.5, radius=1.5)
    >>> abs(found["slope"].item()) < 0.05
    True
    """
    counts = check_counts(counts)
    kinds, _ = sites_by_kind(dict(sites))
    moved = _alternatives(kinds, alternatives, quantity(amplitude, "angstrom", "amplitude"))
    drawn = {f"{kind}/{n}": places for kind, each in moved.items() for n, places in enumerate(each.values())}
    templates = gaussian_template(counts, drawn, sigma=sigma)
    regions = {"detector_region": detector_region, "scan_region": scan_region}
    masks = derive_mask(counts, templates, method=method, **regions, **ridge).compute()
    if symmetry is not None:
        masks = symmetrise_mask(masks, symmetry)
    images = apply_mask(counts, masks, normalisation=NORMALISATION_OF[method]).compute()
    elsewhere = None if measured is None else sites_by_kind(dict(measured))[0]
    rows = [
        _influence(images, kind, each, kinds[kind], None if elsewhere is None else elsewhere[kind], radius)
        for kind, each in moved.items()
    ]
    together = xr.concat(rows, xr.Variable(KIND, list(moved), {"long_name": "kind of column"}), join="outer")
    return together.sel({ALTERNATIVE: list(dict.fromkeys(name for each in moved.values() for name in each))})


def _alternatives(
    kinds: Mapping[str, Array], given: Mapping[str, Mapping[str, npt.ArrayLike]] | None, amplitude: float
) -> dict[str, dict[str, Array]]:
    """Sites by kind and name of the alternative, the original ones first."""
    if given is None:
        moves = {"-y": (-1, 0), "+y": (1, 0), "-x": (0, -1), "+x": (0, 1)}
        return {
            kind: {"original": places}
            | {name: places + amplitude * np.array(move, np.float64) for name, move in moves.items()}
            for kind, places in kinds.items()
        }
    found: dict[str, dict[str, Array]] = {}
    for kind, each in given.items():
        if kind not in kinds:
            raise SiteError(f'The alternatives name the kind "{kind}"; the sites are of {", ".join(kinds)}.')
        found[kind] = {"original": kinds[kind]}
        for name, places in each.items():
            array = np.asarray(places, np.float64)
            if array.shape != kinds[kind].shape:
                raise SiteError(
                    f'The alternative "{name}" of "{kind}" has sites of shape {array.shape}; expected '
                    f"{kinds[kind].shape}, site by site those that are moved."
                )
            found[kind][name] = array
    if not found:
        raise InputError("There are no alternatives; give other sites for one kind at least.")
    return found


def _influence(
    images: xr.DataArray,
    kind: str,
    alternatives: Mapping[str, Array],
    original: Array,
    measured: Array | None,
    radius: float | str | None,
) -> xr.Dataset:
    start = original if measured is None else measured
    positions, template = [], []
    for n, places in enumerate(alternatives.values()):
        image = images.sel({TEMPLATE: f"{kind}/{n}"}, drop=True)
        columns = refine_columns(image, start, radius=radius)
        positions.append(np.stack([columns[d].values for d in SCAN], -1) - start)
        move = places - original
        template.append(move if measured is None else np.broadcast_to(move.mean(0), start.shape))
    found, moves = np.array(positions), np.array(template)
    sound = np.isfinite(found).all((0, 2))
    if not sound.any():
        raise SiteError(
            f'No column of "{kind}" can be measured in the images of all alternatives; choose a larger radius, smaller '
            "moves, or other sites."
        )
    found, moves = found[:, sound], moves[:, sound]
    t, r = moves - moves.mean(0), found - found.mean(0)
    weight = (t**2).sum()
    if weight <= 0:
        raise SiteError(f'The sites of "{kind}" are the same in all alternatives; nothing can follow them.')
    slope = (t * r).sum() / weight
    # Columns are independent of each other; the images of one are not.
    scatter = ((t * (r - slope * t)).sum((0, 2)) ** 2).sum()
    count = int(sound.sum())
    error = np.sqrt(scatter * count / (count - 1)) / weight if count > 1 else np.nan
    data: dict[str, Any] = {
        "slope": ((), slope, {"long_name": "measured move over the template's", "units": "1"}),
        "slope_error": ((), error, {"long_name": "standard error of the slope", "units": "1"}),
        "columns": ((), count, {"long_name": "columns measured", "units": "1"}),
    }
    for n, dim in enumerate(SCAN):
        attrs = {"long_name": f"mean move of the template along {dim}", "units": "angstrom"}
        data[f"template_d{dim}"] = (ALTERNATIVE, moves[..., n].mean(1), attrs)
        attrs = {"long_name": f"mean move of the measured columns along {dim}", "units": "angstrom"}
        data[f"image_d{dim}"] = (ALTERNATIVE, found[..., n].mean(1), attrs)
    return xr.Dataset(data, {ALTERNATIVE: (ALTERNATIVE, list(alternatives), {"long_name": "alternative sites"})})
