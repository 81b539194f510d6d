"""Masks and images of a scan while it arrives: from an iterator of blocks, or from a file that is being written.

The sums behind a mask are mergeable, so those of the patterns seen so far are all that is kept: a block of counts and
the accumulators are in memory, whatever the scan's size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from ..axes import SCAN, TEMPLATE, check_counts
from ..counts.arrival import GrowingFile, Stream, replay
from ..counts.statistics import descan_shifts, detector_weights, valid_patterns
from ..errors import CountsError, InputError, TemplateError
from ..passes.graphs import Descan, images_result, moments_result, run_pass
from ..passes.reductions import Images, Moments, Reduction, State, Templates, prepare_templates
from ..reading.blocks import InMemory, bounding_box
from ..reading.shifts import distinct, reach
from .derivation import (
    Method,
    Normalisation,
    check_normalisation,
    check_template,
    derive_mask,
    labelled_correlations,
    labelled_image,
    masks_for_pass,
)


class _Arriving:
    """What is known of a scan before it arrives, and which of its patterns have."""

    def __init__(self, counts: xr.DataArray) -> None:
        self.counts = check_counts(counts)
        self._valid, self._shifts = valid_patterns(self.counts), descan_shifts(self.counts)
        self._seen = np.zeros(self.counts.shape[:2], bool)

    @property
    def seen(self) -> xr.DataArray:
        """Flags (y, x) of the probe positions whose patterns have arrived."""
        coords = {dim: self.counts.coords[dim].variable for dim in SCAN if dim in self.counts.coords}
        return xr.DataArray(self._seen.copy(), coords, SCAN, name="seen")

    @property
    def used(self) -> np.ndarray:
        """Flags (y, x) of those that are valid as well."""
        return self._seen.copy() if self._valid is None else self._seen & self._valid

    def _check(self, y: slice, x: slice, block: np.ndarray) -> np.ndarray:
        shape = tuple(s.stop - s.start for s in (y, x)) + self.counts.shape[2:]
        if min(y.start, x.start) < 0 or y.stop > self._seen.shape[0] or x.stop > self._seen.shape[1]:
            raise InputError(
                f"A block of patterns at y {y.start}:{y.stop}, x {x.start}:{x.stop} arrived; expected places inside "
                f"the scan of {self._seen.shape} probe positions."
            )
        if block.shape != shape:
            raise CountsError(f"A block of shape {block.shape} arrived; expected {shape}, that of its place.")
        if block.dtype != self.counts.dtype and not np.can_cast(block.dtype, self.counts.dtype):
            raise CountsError(f"Counts of dtype {block.dtype} arrived; {self.counts.dtype} was expected, or narrower.")
        if self._seen[y, x].any():
            raise InputError(
                f"{int(self._seen[y, x].sum())} patterns at y {y.start}:{y.stop}, x {x.start}:{x.stop} arrived again; "
                "expected each once."
            )
        return block.astype(self.counts.dtype, copy=False)

    def _partial(
        self, reduction: Reduction, y: slice, x: slice, block: np.ndarray, pixels: np.ndarray | None, operand: Any
    ) -> State:
        """What one pass over the block gives."""
        used = None if self._valid is None or self._valid[y, x].all() else self._valid[y, x]
        descan = None
        if self._shifts is not None:
            shifts = self._shifts[:, y, x]
            shown = np.ones(block.shape[2:], bool) if pixels is None else pixels
            descan = Descan(shifts, bounding_box(shown))
            pixels = reach(shown, distinct(shifts, used))
        origin = (y.start, x.start, 0, 0)
        return run_pass(reduction, InMemory(block), (y, x), used, pixels, operand, origin, descan)


class RunningMask(_Arriving):
    r"""Correlations and masks of the patterns that have arrived so far, exact at any moment.

    The templates are known of the whole scan; those of n patterns are standardised over these n, so that at any moment
    the result is that of `correlate` or `derive_mask` with `scan_region` = `seen`, whatever the order and the size of
    the blocks. Kept are n, :math:`\sum d`, :math:`\sum d^2` and :math:`\sum S d` of every detector pixel.

    Parameters
    ----------
    counts : DataArray (y, x, ky, kx)
        The scan to come, such as `expected_counts`; its shape, dtype, coordinates, valid flags and descan are used, its
        values are not.
    template : DataArray ([template,] y, x)
        Weights of the whole scan.
    detector_region : optional
        As in `correlate`.

    Raises
    ------
    TemplateError, RegionError
        As in `correlate`, here for the whole scan.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> scan = label_counts(rng.poisson(5, (8, 8, 4, 4)).astype(np.uint16))
    >>> template = scan[:, :, 2, 1].drop_vars(["ky", "kx"]).astype(float)
    >>> running = RunningMask(scan, template)
    >>> for y, x, block in replay(scan):
    ...     running.update(y, x, block)
    >>> bool(np.allclose(running.mask(), derive_mask(scan, template), atol=1e-6))
    True
    """

    def __init__(self, counts: xr.DataArray, template: xr.DataArray, *, detector_region: Any = None) -> None:
        super().__init__(counts)
        self._template = check_template(self.counts, template)
        stacked = self._template if TEMPLATE in self._template.dims else self._template.expand_dims(TEMPLATE)
        values = np.asarray(stacked.transpose(TEMPLATE, *SCAN).values)
        self._templates = prepare_templates(values, self._valid)
        self._weights = detector_weights(self.counts, detector_region)
        self._pixels = None if (self._weights > 0).all() else self._weights > 0
        nky, nkx = self.counts.shape[2:]
        window = (slice(0, nky), slice(0, nkx)) if self._pixels is None else bounding_box(self._pixels)
        dtype = self.counts.dtype
        self._moments = Moments(window, exact=dtype.kind in "ub" and dtype.itemsize <= 2)
        self._state: State | None = None

    def update(self, y: slice, x: slice, block: np.ndarray) -> None:
        """Add the patterns (ny, nx, nky, nkx) of the probe positions `y`, `x`, which have not been added before.

        Raises
        ------
        InputError
            If they lie outside the scan, or were added already.
        CountsError
            If the block is of another shape, or of a dtype that the expected one does not hold.
        """
        block = self._check(y, x, block)
        self._seen[y, x] = True
        here = slice(None) if self._valid is None else self._valid[y, x].ravel()
        part = self._templates.values[:, y, x].reshape(len(self._templates.values), -1)[:, here]
        if not part.shape[1]:
            return
        # Products are exact to the last digit of the weights: these are kept small by their mean over the block.
        centre = part.mean(1, dtype=np.float64)
        operand = Templates(self._templates.values, centre, self._templates.scale)
        state = self._partial(self._moments, y, x, block, self._pixels, operand)
        moved = (centre - self._templates.mean) * self._templates.scale
        state["weight"] = state["weight"] + moved * state["n"]
        if self._moments.exact:
            state["cross"] += moved[:, None, None] * state["total"]
        self._state = state if self._state is None else self._moments.merge(self._state, state)

    def merge(self, other: RunningMask) -> RunningMask:
        """The patterns of both, of the same scan and templates, as of two receivers that shared a scan."""
        if (self._seen & other._seen).any():
            raise InputError(f"Both hold the same {int((self._seen & other._seen).sum())} patterns; expected others.")
        same = (
            self.counts.shape == other.counts.shape
            and self.counts.dtype == other.counts.dtype
            and np.array_equal(self._templates.values, other._templates.values)
            and np.array_equal(self._weights, other._weights)
        )
        if not same:
            raise InputError("The two running masks are of other scans, templates or regions; expected the same.")
        merged = copy.copy(self)
        merged._seen = self._seen | other._seen
        states = [dict(s) for s in (self._state, other._state) if s is not None]
        merged._state = self._moments.merge(*states) if len(states) == 2 else next(iter(states), None)
        return merged

    def correlations(self) -> xr.Dataset:
        """What `correlate` gives for the patterns that have arrived; the next ones do not change it.

        Raises
        ------
        InputError
            If no valid pattern has.
        TemplateError
            If a template is constant over them.
        CountsError
            If their counts are NaN or infinite.
        """
        if self._state is None:
            raise InputError("No valid pattern has arrived yet; a mask needs some.")
        used = self.used
        scale = prepare_templates(self._templates.values, used).scale / self._templates.scale
        state = {**self._state, "weight": self._state["weight"] * scale}
        state["cross"] = self._state["cross"] * scale[:, None, None]
        values = moments_result(state, self._moments, self._weights.shape, self._pixels)
        return labelled_correlations(values, self.counts, self._template, None if used.all() else used, self._weights)

    def mask(self, method: Method = "pearson") -> xr.DataArray:
        """What `derive_mask` gives for the patterns that have arrived; raises as `correlations` does."""
        return derive_mask(self.correlations(), method=method)


class LiveImage(_Arriving):
    """The image that a fixed mask gives, pattern by pattern as they arrive.

    Parameters
    ----------
    counts : DataArray (y, x, ky, kx)
        The scan to come, as in `RunningMask`.
    mask : DataArray ([template,] ky, kx)
    normalisation : {"none", "standardised"}
        As in `apply_mask`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> scan = label_counts(np.ones((2, 3, 4, 4), np.uint16))
    >>> live = LiveImage(scan, xr.DataArray(np.eye(4), dims=("ky", "kx")))
    >>> live.update(slice(0, 1), slice(0, 2), scan.values[:1, :2])
    >>> live.image().values.tolist()
    [[4.0, 4.0, nan], [nan, nan, nan]]
    """

    def __init__(self, counts: xr.DataArray, mask: xr.DataArray, *, normalisation: Normalisation = "none") -> None:
        super().__init__(counts)
        check_normalisation(normalisation)
        self._mask, self._normalisation = mask.compute(), normalisation
        self._masks = masks_for_pass(self.counts, self._mask, normalisation)
        self._pixels = np.asarray(self._masks.weights.any(0))
        self._image = np.full((len(self._masks.weights), *self.counts.shape[:2]), np.nan)

    def update(self, y: slice, x: slice, block: np.ndarray) -> None:
        """Add patterns, as `RunningMask.update` does; CountsError too if counts under the mask are not finite."""
        block = self._check(y, x, block)
        self._seen[y, x] = True
        used = np.ones(block.shape[:2], bool) if self._valid is None else self._valid[y, x]
        state = None
        if used.any() and self._pixels.any():
            state = self._partial(Images(), y, x, block, self._pixels, self._masks)
        elif used.any():  # a mask of zeros: a constant image, whatever the counts
            state = {"images": np.zeros((len(self._image), *block.shape[:2]))}
        self._image[:, y, x] = images_result(state, used, block.shape[:2], self._masks)

    def image(self) -> xr.DataArray:
        """The image ([template,] y, x) so far, as of `apply_mask`; NaN where no valid pattern has arrived."""
        return labelled_image(self._image.copy(), self.counts, self._mask, self._normalisation)


def running_mask(
    stream: Stream | xr.DataArray,
    template: xr.DataArray,
    *,
    counts: xr.DataArray | None = None,
    method: Method = "pearson",
    detector_region: Any = None,
    every: int | None = None,
) -> Iterator[xr.DataArray]:
    """Masks from a template while patterns arrive; the last one is that of `derive_mask` of all that did.

    Parameters
    ----------
    stream : iterable of (y, x, block), GrowingFile, or DataArray (y, x, ky, kx)
        Slices of probe positions with their patterns (ny, nx, nky, nkx), in any order, each once: see `stream_frames`
        and `follow`. Counts are replayed; all are read once.
    template : DataArray ([template,] y, x)
    counts : DataArray (y, x, ky, kx), optional
        The scan to come, as in `RunningMask`; needed for an iterable of blocks alone.
    method, detector_region
        As in `derive_mask`.
    every : int, optional
        Patterns that arrive before the next mask is made; one line of the scan by default.

    Yields
    ------
    DataArray ([template,] ky, kx)
        None is made before every template varies over the patterns that have arrived.

    Raises
    ------
    InputError
        If `counts` are needed and missing, or as `RunningMask` raises.
    TemplateError
        If at the end a template is constant over what has arrived.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> scan = label_counts(rng.poisson(5, (8, 8, 4, 4)).astype(np.uint16))
    >>> template = scan[:, :, 2, 1].drop_vars(["ky", "kx"]).astype(float)
    >>> [int(mask.n) for mask in running_mask(scan, template, every=24)]
    [24, 48, 64]
    """
    counts, blocks = _counts_and_blocks(stream, counts)
    running = RunningMask(counts, template, detector_region=detector_region)
    return _snapshots(running, blocks, every, lambda: running.mask(method))


def live_image(
    stream: Stream | xr.DataArray,
    mask: xr.DataArray,
    *,
    counts: xr.DataArray | None = None,
    normalisation: Normalisation = "none",
    every: int | None = None,
) -> Iterator[xr.DataArray]:
    """Images from a fixed mask while patterns arrive; the last one is that of `apply_mask`, NaN where none arrived.

    Parameters
    ----------
    stream, counts, every
        As in `running_mask`.
    mask : DataArray ([template,] ky, kx)
    normalisation : {"none", "standardised"}, default "none"
        As in `apply_mask`.

    Yields
    ------
    DataArray ([template,] y, x)

    Raises
    ------
    InputError, MaskError, CountsError
        As in `running_mask` and `apply_mask`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> scan = label_counts(np.ones((2, 3, 4, 4), np.uint16))
    >>> mask = xr.DataArray(np.eye(4), dims=("ky", "kx"))
    >>> [int(image.notnull().sum()) for image in live_image(scan, mask)]
    [3, 6]
    """
    counts, blocks = _counts_and_blocks(stream, counts)
    live = LiveImage(counts, mask, normalisation=normalisation)
    return _snapshots(live, blocks, every, live.image)


def _counts_and_blocks(stream: Any, counts: xr.DataArray | None) -> tuple[xr.DataArray, Stream]:
    if isinstance(stream, xr.DataArray):
        return stream if counts is None else counts, replay(stream)
    if isinstance(stream, GrowingFile):
        return stream.counts if counts is None else counts, stream
    if counts is None:
        raise InputError("A stream of blocks does not say what scan it is of; give counts, such as expected_counts.")
    return counts, stream


def _snapshots(
    result: Any, blocks: Stream, every: int | None, make: Callable[[], xr.DataArray]
) -> Iterator[xr.DataArray]:
    every = result.counts.shape[1] if every is None else every
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise InputError(f"every={every!r} was given; expected a number of patterns, at least 1.")

    def snapshots() -> Iterator[xr.DataArray]:
        new = 0
        for y, x, block in blocks:
            result.update(y, x, block)
            new += block.shape[0] * block.shape[1]
            if new >= every:
                try:
                    snapshot = make()
                except TemplateError:  # a template without a site among the first patterns varies later
                    continue
                yield snapshot
                new = 0
        if new:
            yield make()

    return snapshots()
