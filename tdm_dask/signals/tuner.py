"""Sites and widths dragged over an image, and the mask and image that follow: HyperSpy's own interactive machinery."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from hyperspy.interactive import Interactive
from hyperspy.roi import CircleROI, Point2DROI
from hyperspy.signal import BaseSignal

from ..axes import SCAN, quantity, require_unit
from ..counts.statistics import detector_weights
from ..errors import InputError
from ..masks.derivation import NORMALISATION_OF, Method, Normalisation, apply_mask, derive_mask
from ..masks.proxies import column_images, proxy
from ..masks.templates import gaussian_template
from ..reading.blocks import bounding_box
from .conversion import ORIGIN, Origin, from_signal, to_signal
from .operands import detector_operand, scan_operand
from .regions import is_roi, roi_sites


class TemplateTuner:
    """Drag sites, or the width of their Gaussians, over an image of the scan; template, mask and image follow.

    The counts of the detector region are read once, into a `tdm_dask.proxy`; every move is answered from there.

    Parameters
    ----------
    signal : BaseSignal
        A scan whose navigation axes have a unit of length.
    sites : array (n, 2) of (y, x) in angstrom, a mapping from kind to such arrays, or a list of Point2DROI
        Points are dragged one by one. All others are moved together by `handle`, which is what a lattice of sites
        wants.
    sigma : float (angstrom) or str
        Width of the Gaussians to begin with: the radius of `handle`.
    over : BaseSignal, optional
        Image to drag over, with the axes of the scan; by default the counts of the region.
    method : {"pearson", "mean-scaled", "ridge"}, default "pearson"
    normalisation : {"none", "standardised"}, optional
        By default the one that belongs to the method.
    detector_region, scan_region
        As in `tdm_dask.hyperspy.derive_mask`.
    bin : int, default 1
        Detector pixels to sum along each axis: a smaller and faster proxy.
    frame : int, optional
        Which scan of a stack of scans.

    Attributes
    ----------
    handle : CircleROI
        Drawn at the site nearest to the middle of the scan. Its radius is sigma; where it is dragged to, all sites
        follow, unless they are points.
    points : list of Point2DROI
        The sites that are dragged one by one.
    template, mask, image : Signal2D
        What the sites and sigma make now; plots of them follow.
    over : BaseSignal
    sites, sigma
        As they are now, in angstrom.

    Raises
    ------
    SiteError, MemoryLimitError, RegionError, CoordinateError
        As in `gaussian_template` and `proxy`. A move that leaves no site in the scan is a warning, and changes nothing.

    Examples
    --------
    >>> import hyperspy.api as hs
    >>> rng = np.random.default_rng(1)
    >>> signal = hs.signals.Signal2D(rng.poisson(5, (16, 16, 4, 4)).astype(np.uint16))
    >>> signal.axes_manager.navigation_axes.set(units="nm", scale=0.02)
    >>> tuner = TemplateTuner(signal, [(1.0, 1.0), (2.0, 2.2)], sigma=0.4)
    >>> before = tuner.image.data.copy()
    >>> tuner.handle.r = 0.06  # nm: as if its edge were dragged
    >>> round(tuner.sigma, 3), bool((tuner.image.data != before).any())
    (0.6, True)
    """

    def __init__(
        self,
        signal: BaseSignal,
        sites: Any,
        *,
        sigma: float | str,
        over: BaseSignal | None = None,
        method: Method = "pearson",
        normalisation: Normalisation | None = None,
        detector_region: Any = None,
        scan_region: Any = None,
        bin: int = 1,
        frame: int | None = None,
    ) -> None:
        counts = from_signal(signal, frame=frame)
        require_unit(counts, SCAN, "angstrom", "A template from sites")
        origin: Origin = counts.attrs[ORIGIN]
        self._factors = tuple(origin.factors[dim] for dim in SCAN)
        self._signal, self._counts = signal, counts
        region, used = detector_operand(detector_region, counts), scan_operand(scan_region, counts)
        self._options: dict[str, Any] = {"method": method, "detector_region": region, "scan_region": used}
        self._normalisation: Normalisation = normalisation or NORMALISATION_OF[method]
        self.points: list[Point2DROI] = list(sites) if is_roi(sites) else []
        self._start = roi_sites(sites, counts)
        width = quantity(sigma, "angstrom", "sigma")
        # What cannot work is refused before anything is read.
        gaussian_template(counts, self._start, sigma=width)
        self._proxy = proxy(counts, detector_region=region, bin=bin)
        weights = detector_weights(counts, region)
        # Weights of the region hold on the same pixels; sums of pixels are in it or not.
        own = weights[bounding_box(weights > 0)] if bin == 1 else None
        self._on_proxy: dict[str, Any] = {"method": method, "detector_region": own, "scan_region": used}
        middle = self._middle()
        y, x = (float(middle[k]) / self._factors[k] for k in range(2))
        self.handle = CircleROI(cx=x, cy=y, r=width / abs(self._factors[1]))
        self._handle_start = (y, x)
        self.over = self._sum_image() if over is None else over
        moved = [roi.events.changed for roi in (self.handle, *self.points)]
        self._chain = [Interactive(self._make_template, moved, None)]
        self.template: BaseSignal = self._chain[0].out
        self._chain.append(Interactive(self._make_mask, self.template.events.data_changed, None))
        self.mask: BaseSignal = self._chain[1].out
        self._chain.append(Interactive(self._make_image, self.mask.events.data_changed, None))
        self.image: BaseSignal = self._chain[2].out

    @property
    def sigma(self) -> float:
        """Width of the Gaussians in angstrom."""
        return float(self.handle.r) * abs(self._factors[1])

    @property
    def sites(self) -> Any:
        """The sites in angstrom."""
        if self.points:
            return roi_sites(self.points, self._counts)
        places = (self.handle.cy, self.handle.cx)
        shift = np.array(
            [(float(p) - s) * f for p, s, f in zip(places, self._handle_start, self._factors, strict=True)]
        )
        if isinstance(self._start, Mapping):
            return {kind: np.asarray(positions, np.float64) + shift for kind, positions in self._start.items()}
        return np.asarray(self._start, np.float64) + shift

    def plot(self) -> None:
        """Plot the image to drag over with its handles, and beside it the mask and image that follow."""
        self.over.plot()
        axes = self.over.axes_manager.signal_axes
        self.handle.add_widget(self.over, axes=axes, snap=False)
        for point in self.points:
            point.add_widget(self.over, axes=axes, color="red", snap=False)
        self.mask.plot()
        self.image.plot()

    def full(self) -> tuple[BaseSignal, BaseSignal]:
        """Mask and image from the full counts, with the sites and sigma as they are now: two reads.

        The same as on the proxy with ``bin=1``; with more, what tuning was for.
        """
        template = gaussian_template(self._counts, self.sites, sigma=self.sigma).compute()
        found = column_images(self._counts, template, normalisation=self._normalisation, **self._options)
        return to_signal(found["mask"], like=self._signal), to_signal(found["image"], like=self._signal)

    def close(self) -> None:
        """Let nothing follow any more, and take the handles off the plot."""
        for link in self._chain:
            link.close()
        for roi in (self.handle, *self.points):
            roi.remove_widget(render_figure=False)

    def _make_template(self) -> BaseSignal | None:
        try:
            template = gaussian_template(self._proxy, self.sites, sigma=self.sigma)
        except InputError as error:
            if not hasattr(self, "template"):
                raise
            warnings.warn(str(error), stacklevel=2)
            return None
        self._template = template
        return self._updated("template", template)

    def _make_mask(self) -> BaseSignal:
        self._mask = derive_mask(self._proxy, self._template, **self._on_proxy).compute()
        return self._updated("mask", self._mask)

    def _make_image(self) -> BaseSignal:
        image = apply_mask(self._proxy, self._mask, normalisation=self._normalisation)
        return self._updated("image", image)

    def _updated(self, name: str, array: xr.DataArray) -> BaseSignal:
        """A signal of the new array; the one that is shown, which keeps its own, learns how it was made."""
        signal = to_signal(array, like=self._signal)
        shown: BaseSignal | None = getattr(self, name, None)
        if shown is not None:
            shown.metadata.add_dictionary(signal.metadata.as_dictionary())
        return signal

    def _sum_image(self) -> BaseSignal:
        ones = xr.DataArray(np.ones(self._proxy.shape[2:]), dims=self._proxy.dims[2:])
        image = apply_mask(self._proxy, ones).assign_attrs(long_name="counts of the region")
        return to_signal(image, like=self._signal)

    def _middle(self) -> np.ndarray:
        """The site nearest to the middle of the scan."""
        kinds = list(self._start.values()) if isinstance(self._start, Mapping) else [self._start]
        positions = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in kinds])
        middle = [float(self._counts.coords[dim].mean()) for dim in SCAN]
        return positions[np.hypot(*(positions - middle).T).argmin()]
