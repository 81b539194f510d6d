"""How well images keep atom columns apart.

R is the correlation of an image with a template, and G that of two templates, which a perfect image would have: what
R exceeds G by is cross-talk.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.spatial import cKDTree

from ..axes import IMAGE, SCAN, TEMPLATE, VALID_PATTERNS, named, require_same_coordinates, require_unit
from ..columns.sites import sites_by_kind
from ..errors import TemplateError

KIND = "kind"


def correlations(images: xr.DataArray, templates: xr.DataArray) -> xr.DataArray:
    r"""Correlation over the scan of every image with every template.

    .. math:: R_{ij} = \frac{1}{p} \sum_{yx} \hat t_i(y, x)\, \hat s_j(y, x)

    with :math:`\hat{}` for zero mean and unit population standard deviation over the scan: equation (4) of
    the paper on template-derived masks.

    Parameters
    ----------
    images, templates : xarray.DataArray
        Dims (template, y, x), on the same scan. They need not have the same names. Lazy ones are computed.
        Probe positions that a `valid_patterns` coordinate of either marks as missing are left out.

    Returns
    -------
    xarray.DataArray
        Dims (image, template), float64, in [-1, 1].

    Raises
    ------
    TemplateError
        If an image or a template is constant or not finite, or the scans differ.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> labels = {"dims": ("template", "y", "x"), "coords": {"template": ["Li"]}}
    >>> stripes = xr.DataArray([[[0.0, 1.0], [0.0, 1.0]]], **labels)
    >>> correlations(-stripes, stripes).values
    array([[-1.]])
    """
    for array, name in ((images, "images"), (templates, "templates")):
        if set(array.dims) != {TEMPLATE, *SCAN}:
            raise TemplateError(f"The {name} have dims {tuple(array.dims)}; expected {(TEMPLATE, *SCAN)}.")
    require_same_coordinates(images, templates, SCAN, ("images", "templates"), TemplateError)
    used = _used(images, templates)
    values = _normalised(images, used, "image") @ _normalised(templates, used, "template").T
    coords = {IMAGE: _names(images), TEMPLATE: _names(templates)}
    attrs = {"long_name": "correlation of image and template", "units": "1"}
    return named(xr.DataArray(values, coords, (IMAGE, TEMPLATE), "R", attrs))


def cross_talk(images: xr.DataArray, templates: xr.DataArray) -> xr.Dataset:
    """How much of the other kinds of column each image shows, beside what a perfect image would show.

    The image of a kind would ideally be its template, so R (image against template) would be G (template
    against template). What exceeds G is cross-talk. Both matter: templates of neighbouring columns are
    correlated themselves.

    In a perfect crystal a mask reproduces almost any lattice-periodic template, wherever its sites are put,
    so a high R is no evidence that atoms are there (see arXiv:1908.00659 for the general argument).

    Parameters
    ----------
    images, templates : xarray.DataArray
        Dims (template, y, x), on the same scan; every image has a template of its own name. Lazy ones are
        computed.

    Returns
    -------
    xarray.Dataset
        R and G, dims (image, template), and excess, dims (image): the largest abs(R - G) of an image with any
        template but its own.

    Raises
    ------
    TemplateError
        If an image has no template of its name, or as :func:`correlations` raises.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> labels = {"dims": ("template", "y", "x"), "coords": {"template": ["Li", "O"]}}
    >>> two = xr.DataArray(np.eye(4).reshape(4, 2, 2)[:2], **labels)
    >>> table = cross_talk(two, two)
    >>> table.excess.values
    array([0., 0.])
    >>> float(table.R.sel(image="Li", template="O").round(3))
    -0.333
    """
    found = correlations(images, templates)
    missing = sorted(set(_names(images)) - set(_names(templates)))
    if missing:
        raise TemplateError(
            f"There is no template for the image {missing[0]!r} among {_names(templates)}; each needs one."
        )
    expected = correlations(templates, templates).sel({IMAGE: found[IMAGE]}).rename("G")
    expected.attrs["long_name"] = "correlation of two templates"
    apart = abs(found - expected).where(found[IMAGE] != found[TEMPLATE], 0.0).max(TEMPLATE)
    apart.attrs = {"long_name": "largest excess correlation", "units": "1"}
    return named(xr.Dataset({"R": found, "G": expected, "excess": apart}))


def site_contrast(images: xr.DataArray, sites: Mapping[str, npt.ArrayLike]) -> xr.DataArray:
    r"""How far the columns of each kind stand out from all other columns, in every image.

    .. math:: c_{ik} = \frac{\overline{s_i(\mathrm{sites\ of\ } k)} - \overline{s_i(\mathrm{other\ sites})}}
              {\mathrm{std}\, s_i(\mathrm{other\ sites})}

    Parameters
    ----------
    images : DataArray, dims (template, y, x)
        In angstrom; lazy ones are computed.
    sites : mapping of str to array (n, 2)
        (y, x) in angstrom by kind; those outside the scan do not count. Between probe positions images are interpolated
        linearly.

    Returns
    -------
    DataArray, dims (image, kind)
        NaN where a kind has no site inside, or the others fewer than two.

    Raises
    ------
    SiteError
        If sites are not finite (n, 2) positions.
    CoordinateError
        If the images are not in angstrom.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {d: axis_coordinate(d, 5, 1.0, 0.0, "angstrom") for d in ("y", "x")}
    >>> plane = xr.DataArray([np.arange(25.0).reshape(5, 5)], {"template": ["Li"], **steps}, ("template", "y", "x"))
    >>> found = site_contrast(plane, {"Li": [(4, 4)], "O": [(0, 0), (0, 2), (0, 4)]})
    >>> found.sel(image="Li", kind="Li").item() > 10
    True
    """
    require_unit(images, SCAN, "angstrom", "Contrast at sites")
    kinds, _ = sites_by_kind(dict(sites))
    at = _values_at(images, kinds)
    found = np.full((images.sizes[TEMPLATE], len(kinds)), np.nan)
    for k in range(len(kinds)):
        others = np.concatenate([at[k][:, :0], *(values for n, values in enumerate(at) if n != k)], axis=1)
        for i in range(len(found)):
            own, rest = (v[np.isfinite(v)] for v in (at[k][i], others[i]))
            if own.size and rest.size > 1 and rest.std() > 0:
                found[i, k] = (own.mean() - rest.mean()) / rest.std()
    attrs = {"long_name": "contrast at the sites over the scatter at all others", "units": "1"}
    return named(xr.DataArray(found, {IMAGE: _names(images), KIND: list(kinds)}, (IMAGE, KIND), "contrast", attrs))


def gap_contrast(images: xr.DataArray, sites: Mapping[str, npt.ArrayLike]) -> xr.DataArray:
    r"""How far the columns of each kind stand out from the gaps between all columns, in every image.

    .. math:: c_{ik} = \frac{\overline{s_i(\mathrm{sites\ of\ } k)} - \overline{s_i(\mathrm{gaps})}}
              {\mathrm{std}\, s_i}

    The gaps are the tenth of the probe positions that is furthest from any site, with all that are as far but for
    rounding. Negative: the columns are darker.
    Unlike :func:`site_contrast` it is for images that are meant to show columns of every kind, such as ABF or iCoM.

    Parameters
    ----------
    images : DataArray, dims (template, y, x)
        In angstrom; lazy ones are computed. Missing values do not count.
    sites : mapping of str to array (n, 2)
        (y, x) in angstrom by kind: all kinds that there are, for what no site is near to is a gap. Those outside the
        scan only say where no gap is. Between probe positions images are interpolated linearly.

    Returns
    -------
    DataArray, dims (image, kind)
        NaN where a kind has no site inside, or an image is constant.

    Raises
    ------
    SiteError
        If sites are not finite (n, 2) positions.
    CoordinateError
        If the images are not in angstrom.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from tdm_dask.axes import axis_coordinate
    >>> steps = {d: axis_coordinate(d, 9, 1.0, 0.0, "angstrom") for d in ("y", "x")}
    >>> spot = np.zeros((1, 9, 9))
    >>> spot[0, 4, 4] = 1.0
    >>> image = xr.DataArray(spot, {"template": ["Li"], **steps}, ("template", "y", "x"))
    >>> gap_contrast(image, {"Li": [(4, 4)]}).item()  # the square root of 80, over 81 probe positions
    9.0...
    """
    require_unit(images, SCAN, "angstrom", "Contrast over gaps")
    kinds, _ = sites_by_kind(dict(sites))
    points = np.stack(np.meshgrid(images["y"].values, images["x"].values, indexing="ij"), axis=-1)
    distance, _ = cKDTree(np.concatenate(list(kinds.values()))).query(points)
    planes = images.transpose(TEMPLATE, *SCAN).values
    # Places of a lattice are as far from a site as others are, but for rounding.
    gaps = planes[:, distance >= np.quantile(distance, 0.9) - 1e-9 * distance.max()]
    found = np.full((len(planes), len(kinds)), np.nan)
    for k, values in enumerate(_values_at(images, kinds)):
        for i, plane in enumerate(planes):
            own, gap = (v[np.isfinite(v)] for v in (values[i], gaps[i]))
            scale = plane[np.isfinite(plane)].std() if own.size and gap.size else 0.0
            if scale > 0:
                found[i, k] = (own.mean() - gap.mean()) / scale
    attrs = {"long_name": "contrast at the sites over the gaps", "units": "1"}
    return named(xr.DataArray(found, {IMAGE: _names(images), KIND: list(kinds)}, (IMAGE, KIND), "contrast", attrs))


def _values_at(images: xr.DataArray, kinds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The values (template, n) of images at the sites of every kind; NaN outside the scan."""
    planes = images.transpose(TEMPLATE, *SCAN)
    return [planes.interp({d: ("site", places[:, n]) for n, d in enumerate(SCAN)}).values for places in kinds.values()]


def _names(array: xr.DataArray) -> list[str]:
    if TEMPLATE not in array.coords:
        raise TemplateError("Images and templates need a template coordinate that names them; it is missing.")
    return [str(name) for name in array[TEMPLATE].values]


def _used(*arrays: xr.DataArray) -> np.ndarray:
    """Probe positions (y * x) that no array marks as missing."""
    used = np.ones([arrays[0].sizes[dim] for dim in SCAN], bool)
    for array in arrays:
        if VALID_PATTERNS in array.coords:
            used &= array.coords[VALID_PATTERNS].transpose(*SCAN).values.astype(bool)
    return used.ravel()


def _normalised(array: xr.DataArray, used: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(array.transpose(TEMPLATE, *SCAN).values, dtype=np.float64)
    rows = values.reshape(array.sizes[TEMPLATE], -1)[:, used]
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    scale = np.abs(rows).max(axis=1, keepdims=True) * np.sqrt(rows.shape[1])
    for name, norm, limit in zip(_names(array), norms[:, 0], scale[:, 0], strict=True):
        if not np.isfinite(norm):
            raise TemplateError(f"The {what} {name!r} holds values that are not finite; fill them first.")
        if norm <= 1e-12 * limit:
            raise TemplateError(f"The {what} {name!r} is the same everywhere on the scan; it correlates with none.")
    return centred / norms
