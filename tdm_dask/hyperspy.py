"""The method on HyperSpy's signals: signals in, signals out; lazy stays lazy, axes and metadata are kept.

>>> import tdm_dask as tdm
>>> signal = tdm.open_signal("scan.zarr")  # doctest: +SKIP
>>> template = tdm.hyperspy.gaussian_template(signal, {"Li": sites}, sigma="35 pm")  # doctest: +SKIP
>>> mask = tdm.hyperspy.derive_mask(signal, template)  # doctest: +SKIP
>>> tdm.hyperspy.apply_mask(signal, mask, normalisation="standardised").plot()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from hyperspy.signal import BaseSignal

from .axes import SCAN
from .counts.opening import open as open_counts
from .detector import conventional_masks as detectors
from .errors import InputError
from .imaging import deflection
from .masks import derivation as masks
from .masks import templates
from .masks.derivation import Method, Normalisation
from .reading.blocks import Shards
from .reading.lazy import in_small_chunks, source_of
from .renamed import renamed
from .shards.objects import StoreLike
from .signals.conversion import from_signal, to_signal
from .signals.mask import shown_as_asked
from .signals.operands import detector_operand, mask_operand, scan_operand, template_operand
from .signals.regions import roi_sites
from .signals.tuner import TemplateTuner

__all__ = [
    "TemplateTuner",
    "annulus",
    "apply_mask",
    "binary_template",
    "centre_of_mass",
    "derive_mask",
    "disk",
    "from_signal",
    "gaussian_template",
    "open_signal",
    "segments",
    "to_signal",
]

MADE_BY = "made_by"


def open_signal(path: StoreLike, *, navigator: Any = "auto", **options: Any) -> BaseSignal:
    """A store or a vendor's file as a lazy HyperSpy signal that plots at once; only headers and axes are read.

    Parameters
    ----------
    path : path, URL or zarr store object
        As `tdm_dask.open` takes it.
    navigator : "auto", None, BaseSignal or DataArray (y, x), default "auto"
        The image to navigate on. "auto" is the total counts of every pattern, which a store of this package has at
        hand. A vendor's file has none: HyperSpy then computes one by reading everything, at the first ``plot()``; give
        one, or plot with ``navigator="slider"``.
    **options
        Those of `tdm_dask.open`: scan_shape, frame and so on.

    Returns
    -------
    LazySignal2D
        Dimensions (x, y|kx, ky). A plot reads the one chunk that holds the pattern shown. The chunks of a store are
        the smallest parts of the scan that it can read alone, of some 30 MB, but no more than about 20 000.
        `from_signal` gives back the counts of the same store, so that functions of this package read inside their
        tasks.

    Raises
    ------
    SourceError, StoreError, ScanShapeError
        As `tdm_dask.open`.

    Examples
    --------
    >>> import tempfile
    >>> import tdm_dask as tdm
    >>> store = tempfile.mkdtemp() + "/scan.zarr"
    >>> counts = tdm.convert(tdm.label_counts(np.ones((4, 5, 8, 8), np.uint16)), store)
    >>> signal = open_signal(store)
    >>> signal, float(signal.navigator.data[0, 0])
    (<LazySignal2D, title: counts in memory, dimensions: (5, 4|8, 8)>, 64.0)
    """
    counts = open_counts(path, **options)
    signal = to_signal(counts.copy(data=in_small_chunks(counts.data)))
    if isinstance(navigator, str):
        if navigator != "auto":
            raise InputError(f'navigator="{navigator}" was given; expected "auto", None, a signal or an image (y, x).')
        navigator = _stored_totals(counts)
    if isinstance(navigator, xr.DataArray):
        navigator = to_signal(navigator)
    if navigator is not None:
        signal.navigator = navigator
    return signal


@renamed(gain="counts_per_electron")
def derive_mask(
    signal: BaseSignal,
    template: Any,
    *,
    method: Method = "pearson",
    detector_region: Any = None,
    scan_region: Any = None,
    frame: int | None = None,
    lazy_output: bool | None = None,
    show_progressbar: bool | None = None,
    **ridge: Any,
) -> BaseSignal:
    """Weighted mask over the detector from a template over the scan, as `tdm_dask.derive_mask`; one read.

    Parameters
    ----------
    signal : BaseSignal
        Two navigation and two signal dimensions, such as a Signal2D or pyxem's Diffraction2D; see `from_signal`.
    template : BaseSignal, DataArray or ndarray ([template,] y, x), or ROI
        Weight per probe position; a region of interest on the scan is 1 inside and 0 outside.
    method : {"pearson", "mean-scaled", "ridge"}, default "pearson"
        As in `tdm_dask.derive_mask`.
    detector_region : ROI, BaseSignal, DataArray or ndarray (ky, kx), or slices, optional
        Pixels that the mask may use. A region of interest is in the units of the signal axes; several are one.
    scan_region : ROI, BaseSignal, DataArray or ndarray of bool (y, x), or slices, optional
        Probe positions to derive from. A region of interest is in the units of the navigation axes.
    frame : int, optional
        Which scan of a stack of scans.
    lazy_output : bool, optional
        Whether the result is lazy; by default where the signal is, as in HyperSpy's `map`.
    show_progressbar : bool, optional
        Whether computing shows its progress; by default in a terminal or a notebook, if HyperSpy's preferences say so.
    **ridge
        Options of ridge masks, as in `tdm_dask.derive_mask`.

    Returns
    -------
    TemplateMask
        A Signal2D over the detector, or a stack of them over templates, with the axes of the signal.
        ``metadata.tdm_dask`` has the mean and standard deviation that `apply_mask` standardises with, and by what the
        mask was made.

    Raises
    ------
    InputError, TemplateError, RegionError, CountsError
        As in `tdm_dask.derive_mask` and `from_signal`.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> rng = np.random.default_rng(1)
    >>> signal = hs.signals.Signal2D(rng.poisson(5, (16, 16, 4, 4)).astype(np.uint16))
    >>> image = apply_mask(signal, hs.roi.RectangularROI(left=1, right=2, top=2, bottom=3))
    >>> mask = derive_mask(signal, image)
    >>> mask.axes_manager.signal_shape, round(float(mask.data[2, 1]), 6)
    ((4, 4), 1.0)
    """
    counts = from_signal(signal, frame=frame)
    mask = masks.derive_mask(
        counts,
        template_operand(template, counts),
        method=method,
        detector_region=detector_operand(detector_region, counts),
        scan_region=scan_operand(scan_region, counts),
        **ridge,
    )
    options = {"method": method, "detector_region": detector_region, "scan_region": scan_region, **ridge}
    made = _made_by("derive_mask", signal, {"template": template, **options})
    return _result(mask, signal, counts, made, lazy_output, show_progressbar)


def apply_mask(
    signal: BaseSignal,
    mask: Any,
    *,
    normalisation: Normalisation = "none",
    frame: int | None = None,
    lazy_output: bool | None = None,
    show_progressbar: bool | None = None,
) -> BaseSignal:
    """Image from a weighted mask, as `tdm_dask.apply_mask`; one read for any number of masks.

    Parameters
    ----------
    signal : BaseSignal
        As in `derive_mask`.
    mask : BaseSignal, DataArray or ndarray ([template,] ky, kx), or ROI
        Weight per detector pixel. A region of interest on the detector is a virtual detector: a CircleROI weighs pixels
        by their part inside, as `tdm_dask.annulus` does.
    normalisation : {"none", "standardised"}, default "none"
        As in `tdm_dask.apply_mask`: "standardised" for Pearson and ridge masks.
    frame, lazy_output, show_progressbar
        As in `derive_mask`.

    Returns
    -------
    Signal2D
        The image, whose signal axes are the navigation axes of the scan, or a stack of images over templates. It serves
        as a navigator, and as a template.

    Raises
    ------
    MaskError, CountsError
        As in `tdm_dask.apply_mask`.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((2, 3, 4, 4), np.uint16))
    >>> apply_mask(signal, np.eye(4)).data.tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    counts = from_signal(signal, frame=frame)
    image = masks.apply_mask(counts, mask_operand(mask, counts), normalisation=normalisation)
    made = _made_by("apply_mask", signal, {"mask": mask, "normalisation": normalisation})
    return _result(image, signal, counts, made, lazy_output, show_progressbar)


def centre_of_mass(
    signal: BaseSignal,
    *,
    detector_region: Any = None,
    frame: int | None = None,
    lazy_output: bool | None = None,
    show_progressbar: bool | None = None,
    **options: Any,
) -> BaseSignal:
    """Mean deflection of the electrons at every probe position, as `tdm_dask.centre_of_mass`; one read.

    Parameters
    ----------
    signal, detector_region, frame, lazy_output, show_progressbar
        As in `derive_mask`; detector axes in angles, with zero at the optic axis.
    **options
        rotation, transpose, flip and background.

    Returns
    -------
    Signal2D
        Two images, of the components y and x in mrad: index 0 and 1 of the navigation axis "component".

    Raises
    ------
    CoordinateError
        If the detector is not calibrated: HyperSpy needs a scale, a unit and an offset, and the beam energy for 1/nm.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((2, 3, 4, 4), np.uint16))
    >>> signal.axes_manager.signal_axes.set(units="mrad", scale=2, offset=-3)
    >>> centre_of_mass(signal, background="none").data.shape
    (2, 2, 3)
    """
    counts = from_signal(signal, frame=frame)
    com = deflection.centre_of_mass(counts, detector_region=detector_operand(detector_region, counts), **options)
    made = _made_by("centre_of_mass", signal, {"detector_region": detector_region, **options})
    return _result(com, signal, counts, made, lazy_output, show_progressbar)


def disk(signal: BaseSignal, radius: float | str, **options: Any) -> BaseSignal:
    """Mask of a disk on the detector of a signal, as `tdm_dask.disk`; nothing is read.

    Parameters
    ----------
    signal : BaseSignal
        Whose signal axes are angles.
    radius : float (mrad) or str
    **options
        Those of `tdm_dask.disk`: centre and soft_edge.

    Returns
    -------
    Signal2D

    Raises
    ------
    MaskError, CoordinateError
        As in `tdm_dask.disk`.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((2, 3, 64, 64), np.uint16))
    >>> signal.axes_manager.signal_axes.set(units="mrad", scale=1, offset=-32)
    >>> disk(signal, "20 mrad"), round(float(disk(signal, 20).data.sum()), 3)
    (<Signal2D, title: disk mask, dimensions: (|64, 64)>, 1256.637)
    """
    return _drawn("disk", detectors.disk, signal, {"radius": radius, **options})


def annulus(signal: BaseSignal, inner: float | str, outer: float | str, **options: Any) -> BaseSignal:
    """Mask of an annulus on the detector of a signal, as `tdm_dask.annulus`; nothing is read.

    Parameters
    ----------
    signal : BaseSignal
        Whose signal axes are angles.
    inner, outer : float (mrad) or str
    **options
        Those of `tdm_dask.annulus`: centre and soft_edge.

    Returns
    -------
    Signal2D

    Raises
    ------
    MaskError, CoordinateError
        As in `tdm_dask.annulus`.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((2, 3, 64, 64), np.uint16))
    >>> signal.axes_manager.signal_axes.set(units="mrad", scale=1, offset=-32)
    >>> annulus(signal, 10, "20 mrad"), round(float(annulus(signal, 10, 20).data.sum()), 3)
    (<Signal2D, title: annulus mask, dimensions: (|64, 64)>, 942.478)
    """
    return _drawn("annulus", detectors.annulus, signal, {"inner": inner, "outer": outer, **options})


def segments(signal: BaseSignal, inner: float | str, outer: float | str, n: int = 4, **options: Any) -> BaseSignal:
    """An annulus in `n` sectors, as `tdm_dask.segments`: a stack of masks; nothing is read.

    Parameters
    ----------
    signal : BaseSignal
        Whose signal axes are angles.
    inner, outer : float (mrad) or str
    n : int, default 4
    **options
        Those of `tdm_dask.segments`: rotation, centre and soft_edge.

    Returns
    -------
    Signal2D

    Raises
    ------
    MaskError, CoordinateError
        As in `tdm_dask.segments`.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((2, 3, 64, 64), np.uint16))
    >>> signal.axes_manager.signal_axes.set(units="mrad", scale=1, offset=-32)
    >>> segments(signal, 10, 20, rotation=-45)
    <Signal2D, title: segments mask, dimensions: (4|64, 64)>
    """
    return _drawn("segments", detectors.segments, signal, {"inner": inner, "outer": outer, "n": n, **options})


def gaussian_template(signal: BaseSignal, sites: Any, *, sigma: float | str, all_name: str | None = None) -> BaseSignal:
    """Template with a Gaussian at every site, as `tdm_dask.gaussian_template`; nothing is read.

    Parameters
    ----------
    signal : BaseSignal
        A scan whose navigation axes have a unit of length.
    sites : array (n, 2) of (y, x) in angstrom, or a list of Point2DROI, or a mapping from kind to either
        Regions of interest are in the units of the navigation axes.
    sigma : float (angstrom) or str
    all_name : str, optional

    Returns
    -------
    Signal2D
        The template over the scan, or a stack of them over kinds.

    Raises
    ------
    SiteError, UnitError, CoordinateError
        As in `tdm_dask.gaussian_template`.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((3, 4, 2, 2), np.uint16))
    >>> signal.axes_manager.navigation_axes.set(units="nm", scale=0.1)
    >>> template = gaussian_template(signal, [hs.roi.Point2DROI(x=0.2, y=0.1)], sigma="1 nm")
    >>> template, float(template.data[1, 2])
    (<Signal2D, title: gaussian template, dimensions: (|4, 3)>, 1.0)
    """
    options = {"sites": sites, "sigma": sigma, "all_name": all_name}
    return _drawn("gaussian_template", templates.gaussian_template, signal, options)


def binary_template(signal: BaseSignal, sites: Any, *, radius: float | str, all_name: str | None = None) -> BaseSignal:
    """Template that is 1 near a site, as `tdm_dask.binary_template`; nothing is read.

    Parameters
    ----------
    signal, sites, all_name
        As in `gaussian_template`.
    radius : float (angstrom) or str

    Returns
    -------
    Signal2D
        The template over the scan, or a stack of them over kinds.

    Raises
    ------
    SiteError, UnitError, CoordinateError
        As in `tdm_dask.binary_template`.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> signal = hs.signals.Signal2D(np.ones((3, 4, 2, 2), np.uint16))
    >>> signal.axes_manager.navigation_axes.set(units="nm", scale=0.1)
    >>> binary_template(signal, [(1.0, 2.0)], radius="0.5 Å").data.tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    options = {"sites": sites, "radius": radius, "all_name": all_name}
    return _drawn("binary_template", templates.binary_template, signal, options)


def _drawn(name: str, draw: Any, signal: BaseSignal, options: dict[str, Any]) -> BaseSignal:
    """A mask or template that needs the axes of a scan alone."""
    stack = signal.axes_manager.navigation_dimension == 3
    counts = from_signal(signal, frame=0 if stack else None)
    given = {k: roi_sites(v, counts) if k == "sites" else v for k, v in options.items()}
    made = _made_by(name, signal, options)
    # Templates of lazy counts are lazy, but they are drawn from sites and not from counts.
    return _result(draw(counts, **given).compute(), signal, counts, made, False, False)


def _result(
    array: xr.DataArray,
    signal: BaseSignal,
    counts: xr.DataArray,
    made: str,
    lazy_output: bool | None,
    show_progressbar: bool | None,
) -> BaseSignal:
    """The signal of a result, computed unless it is to be lazy."""
    array = array.assign_attrs({MADE_BY: made})
    if array.chunks is not None and lazy_output is not None and not lazy_output:
        array = computed(array, json.loads(made)["function"], counts.nbytes, show_progressbar)
    result = to_signal(array, like=signal)
    return result.as_lazy() if lazy_output and array.chunks is None else result


def computed(array: xr.DataArray, stage: str, nbytes: int, show_progressbar: bool | None) -> xr.DataArray:
    """An array and what it carries, computed in one go under a progress bar."""
    with shown_as_asked(show_progressbar).stage(stage, nbytes):
        return array.compute()


def _made_by(function: str, signal: BaseSignal, options: Mapping[str, Any]) -> str:
    given = {k: _in_words(v) for k, v in options.items() if v is not None}
    title = str(signal.metadata.get_item("General.title", default=""))
    version = importlib.metadata.version("tdm-dask")
    return json.dumps({"function": function, "version": version, "signal": title, "options": given})


def _in_words(value: Any) -> Any:
    """An option as JSON: numbers and words as they are, small arrays as lists, others by what they are."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.size <= 64 and value.dtype.kind in "uifb":
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _in_words(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 64:
        return [_in_words(v) for v in value]
    if isinstance(value, (np.ndarray, xr.DataArray)):
        return f"{type(value).__name__} of shape {value.shape}"
    return repr(value)


def _stored_totals(counts: xr.DataArray) -> xr.DataArray | None:
    """Total counts of every pattern, as a store has them since it was written."""
    source = source_of(counts.data)
    if not isinstance(source, Shards):
        return None
    group: Any = zarr.open_group(source.array.store, mode="r")
    totals = group.get("total_counts")
    if totals is None:
        return None
    coords = {dim: counts.coords[dim].variable for dim in SCAN}
    attrs = {"units": "counts", "long_name": "total counts"}
    return xr.DataArray(np.asarray(totals[...]), coords, SCAN, name="total_counts", attrs=attrs)
