"""Trying sites, widths and regions quickly: the counts that matter kept at hand, and both products in one call.

`proxy` reads the counts that matter once; what it gives goes wherever counts go. `column_images` makes masks and images
of all counts, and is what confirms a choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.utils import format_bytes

from ..axes import DETECTOR, VALID_PIXELS, check_counts, named
from ..cluster.resources import memory_limit
from ..conversion.conversion import convert
from ..counts.regions import bin as bin_counts
from ..counts.regions import crop, descanned, dtype_of_sums, zeroed
from ..counts.statistics import (
    counts_facts,
    descan_shifts,
    detector_coords,
    detector_weights,
    pixels_read,
    stored_maxima,
)
from ..errors import CorruptStoreError, MemoryLimitError, RegionError
from ..reading.blocks import InMemory, bounding_box
from ..reading.lazy import as_dask, cores, scan_chunks, source_of
from ..renamed import renamed
from ..shards.objects import StoreLike
from .derivation import NORMALISATION_OF, Method, Normalisation, apply_mask, check_normalisation, derive_mask
from .ridge import RidgeOptions

# Counts of the region that one task reads, a tile of the scan at least: few tasks, and little beside the proxy.
BLOCK_BYTES = 32 * 2**20
# What a task holds at most, in such blocks: the counts, the valid ones among them, their sums, the narrowed sums.
BLOCKS_PER_TASK = 4
# Tasks of every core whose results are waited for together, and then copied to their place.
BATCH = 2


def proxy(
    counts: xr.DataArray,
    *,
    detector_region: Any = None,
    bin: int | tuple[int, int] = 1,
    path: StoreLike | None = None,
) -> xr.DataArray:
    """The counts that matter, read once and kept: for trying one template after another without reading again.

    The detector is cropped to the smallest window around the region, and binned where asked; the scan stays whole.
    What comes back are labelled counts, which go wherever counts go: `correlate`, `derive_mask`, `apply_mask`, `disk`
    and templates take them as they are. Detector regions and masks for them are on their own, smaller detector: make
    them from the proxy, as in ``tdm.disk(proxy, "24 mrad")``.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    detector_region : DataArray or ndarray (ky, kx), or slices, optional
        Pixels to keep, as in `correlate`: booleans, weights (those above 0 are kept, unweighted), or slices. The whole
        detector by default. Parts of the detector outside it are not read where the store allows it.
    bin : int or (int, int), default 1
        Pixels to sum along (ky, kx), after the crop; what is left over at the far edge of the window is dropped.
    path : path, URL or zarr store object, optional
        Keep the counts in a store there, written by `convert` and opened lazily, instead of in memory.

    Returns
    -------
    DataArray, dims (y, x, ky, kx)
        Coordinates, units, attributes and `valid_patterns` are those of the counts. Pixels of the window outside the
        region are marked in `valid_pixels`; these, other invalid pixels and invalid patterns hold 0. Descan is applied,
        and not handed on.

        In memory: a NumPy array of the narrowest unsigned dtype that holds its largest count, from unsigned counts
        (binned booleans are such); other dtypes stay. At `path`: lazy, of the narrowest dtype that is certain before
        the read, from the maxima which a store of this package knows, else from the dtype of the counts.

    Raises
    ------
    RegionError
        If the region is empty or of another shape, or the binning makes no sense or leaves no valid pixel.
    MemoryLimitError
        If the proxy might not fit into the memory that is available here. Nothing is read then.
    StoreError, DiskFullError
        As `convert`, for `path`.

    Notes
    -----
    With ``bin=1`` nothing is lost: masks and images within the region are those of the full counts. With more, a
    pixel is the sum of pixels (exact for integers), and valid only where all of these are valid and in the region, so
    that a disk loses up to bin - 1 pixels of its edge. What that changes: the image of a conventional detector, at its
    edges alone; a Pearson mask, which has one weight where the full one has several, and weights of sums: these
    correlate more strongly with a template than their noisier pixels do. So tune on a binned proxy, and confirm on the
    full counts with `column_images`.

    Peak memory is that of the proxy and, for each core, a few blocks: 32 MiB, or a shard's part of the region. On a
    cluster, workers narrow their blocks before these travel, and the proxy comes together where this is called.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> counts = label_counts(rng.poisson(5, (16, 16, 32, 32)).astype(np.uint16))
    >>> small = proxy(counts, detector_region=(slice(8, 24), slice(8, 24)), bin=2)
    >>> small.shape, str(small.dtype), int(small.sum()) == int(counts[:, :, 8:24, 8:24].sum())
    ((16, 16, 8, 8), 'uint8', True)
    """
    counts = check_counts(counts)
    weights = detector_weights(counts, detector_region)
    if path is None:
        return _in_memory(counts, weights, bin, "The proxy", "path=... for a store instead of memory", may_bin=True)
    compact = _compact(counts, weights, bin, name=None)
    with dask.config.set(scheduler="threads") if isinstance(counts.data, np.ndarray) else nullcontext():
        return convert(compact, path)


@renamed(gain="counts_per_electron")
def column_images(
    counts: xr.DataArray,
    template: xr.DataArray,
    *,
    method: Method = "pearson",
    detector_region: Any = None,
    scan_region: Any = None,
    normalisation: Normalisation | None = None,
    persist: bool = False,
    **ridge: Any,
) -> xr.Dataset:
    """Masks from templates and the images that they make, computed: the exact answer after tuning on a `proxy`.

    The same as `derive_mask` and then `apply_mask` on the full counts, in two reads: masks first, so that the second
    read is of the chunks alone that their non-zero weights touch.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
    template : DataArray, dims ([template,] y, x)
    method : str, default "pearson"
        As in `derive_mask`.
    detector_region, scan_region
        As in `correlate`. Images are of the whole scan.
    normalisation : {"none", "standardised"}, optional
        As in `apply_mask`. By default the one that belongs to the method: "standardised" to "pearson" and "ridge",
        "none" to "mean-scaled".
    persist : bool, default False
        Read the counts of the region into memory, once, and make both products from there: one read instead of two,
        for the memory of a `proxy` of the region. Equal to the precision of a mask (4e-7), for sums are then taken in
        another order.
    **ridge
        Options of ridge masks, as in `derive_mask`. Conjugate gradients read more often, and from memory with
        `persist`.

    Returns
    -------
    Dataset
        `mask` ([template,] ky, kx), on the whole detector, with `mean`, `std` and `n` as coordinates, and `image`
        ([template,] y, x). Both in memory.

    Raises
    ------
    MemoryLimitError
        If the counts of the region might not fit into memory with `persist`. Nothing is read then.
    InputError, TemplateError, RegionError, CountsError
        As in `derive_mask` and `apply_mask`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> rng = np.random.default_rng(1)
    >>> counts = label_counts(rng.poisson(5, (16, 16, 4, 4)).astype(np.uint16))
    >>> template = counts[:, :, 2, 1].drop_vars(["ky", "kx"])
    >>> found = column_images(counts, template)
    >>> mask = derive_mask(counts, template)
    >>> bool((found["mask"] == mask).all())
    True
    >>> image = apply_mask(counts, mask, normalisation="standardised")
    >>> bool((found["image"] == image).all())
    True
    """
    counts = check_counts(counts)
    if normalisation is not None:
        check_normalisation(normalisation)
    regions = {"detector_region": detector_region, "scan_region": scan_region}
    persist = persist and not isinstance(counts.data, np.ndarray)
    # What cannot work is refused here, before anything lazy is read.
    if persist and method == "ridge":
        RidgeOptions.given(ridge)
        derive_mask(counts, template, **regions)  # a ridge mask might be one that reads at once
    else:
        mask = derive_mask(counts, template, method=method, **regions, **ridge)
    normalisation = normalisation or NORMALISATION_OF[method]
    if persist:
        weights = detector_weights(counts, detector_region)
        window = bounding_box(weights > 0)
        kept = _in_memory(counts, weights, 1, "persist=True", "persist=False, which reads twice", may_bin=False)
        regions["detector_region"] = weights[window]
        part = derive_mask(kept, template, method=method, **regions, **ridge).compute()
        image = apply_mask(kept, part, normalisation=normalisation)
        mask = _on_detector(part, kept, counts, window)
    else:
        mask = mask.compute()
        image = apply_mask(counts, mask, normalisation=normalisation).compute()
    return xr.Dataset({"mask": mask, "image": image}, attrs=counts_facts(counts))


def proxy_bytes(counts: xr.DataArray, bin: int = 1) -> int:
    """Bytes that a `proxy` of the whole detector takes at most: those of the narrowest dtype that is certain.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> counts = label_counts(np.zeros((4, 4, 10, 10), np.uint8))
    >>> proxy_bytes(counts), proxy_bytes(counts, bin=3)
    (1600, 288)
    """
    whole = np.ones(counts.shape[2:])
    dtype = _certain_dtype(counts.dtype, _largest(counts, whole), bin * bin)
    return math.prod(counts.shape[:2]) * math.prod(size // bin for size in counts.shape[2:]) * dtype.itemsize


def _compact(counts: xr.DataArray, weights: np.ndarray, bin: int | tuple[int, int], name: bool | None) -> xr.DataArray:
    """The counts of the region, cropped and binned, 0 where they are not valid; lazy, in blocks of BLOCK_BYTES.

    `name` is what dask names counts in memory by: False is by chance, for a name from their values takes a read.
    """
    ky, kx = bounding_box(weights > 0)
    inside = weights[ky, kx] > 0
    read = bounding_box(pixels_read(counts, weights > 0))
    part = crop(counts, ky=read[0], kx=read[1])
    source = source_of(part.data)
    if isinstance(source, InMemory):
        chunks: Any = (*scan_chunks(source, BLOCK_BYTES), -1, -1)
        part = part.copy(data=da.from_array(source.array, chunks=chunks, name=name))
    elif source is not None:
        part = part.copy(data=as_dask(source, BLOCK_BYTES))
    if descan_shifts(counts) is not None:
        here = [slice(s.start - r.start, s.stop - r.start) for s, r in zip((ky, kx), read, strict=True)]
        part = crop(descanned(part), ky=here[0], kx=here[1])
    if not inside.all():
        part = named(part.assign_coords({VALID_PIXELS: (DETECTOR, inside)}))
    binned = bin_counts(part, detector=bin)
    if VALID_PIXELS in binned.coords and not binned.coords[VALID_PIXELS].any():
        raise RegionError(
            f"The detector_region holds no {' x '.join(map(str, _pair(bin)))} valid pixels that go into one; choose a "
            "larger region or a smaller bin."
        )
    dtype = _certain_dtype(counts.dtype, _largest(counts, weights), math.prod(_pair(bin)))
    compact = zeroed(binned)
    if dtype == compact.dtype:
        return compact
    return compact.copy(data=compact.data.map_blocks(_cast, dtype, dtype=dtype, meta=np.empty((0,) * 4, dtype)))


def _in_memory(
    counts: xr.DataArray, weights: np.ndarray, bin: int | tuple[int, int], what: str, other: str, may_bin: bool
) -> xr.DataArray:
    """The compact counts as a NumPy array, or a MemoryLimitError about `what` that names the `other` way."""
    compact = _compact(counts, weights, bin, name=False)
    data, batch = compact.data, BATCH * cores()
    longest = math.prod(map(max, data.chunks))
    window, source = (bounding_box(pixels) for pixels in (weights > 0, pixels_read(counts, weights > 0)))
    widened = math.prod(s.stop - s.start for s in source) / math.prod(s.stop - s.start for s in window)
    read = math.ceil(longest * math.prod(_pair(bin)) * counts.dtype.itemsize * widened)
    # Descan makes one block more.
    blocks = BLOCKS_PER_TASK + (descan_shifts(counts) is not None)
    tasks = min(cores(), dask.system.CPU_COUNT) * blocks * read
    largest = _largest(counts, weights)

    def needed(factors: tuple[int, int]) -> int:
        pixels = [(s.stop - s.start) // f for s, f in zip(window, factors, strict=True)]
        dtype = _certain_dtype(counts.dtype, largest, math.prod(factors))
        size = math.prod((*counts.shape[:2], *pixels)) * dtype.itemsize
        return size + min(size, batch * longest * dtype.itemsize) + tasks

    available = _available_memory()
    if needed(_pair(bin)) > available:
        binnings = range(2, min(s.stop - s.start for s in window) + 1) if may_bin else ()
        fitting = next((f"bin={n}, " for n in binnings if needed((n, n)) <= available), "")
        raise MemoryLimitError(
            f"{what} needs up to {format_bytes(needed(_pair(bin)))} of memory and {format_bytes(available)} are "
            f"available; choose a smaller detector_region, {fitting}or {other}."
        )
    like = np.empty((0,) * data.ndim, data.dtype)
    parts = data.map_blocks(_narrowest, dtype=data.dtype, meta=like).to_delayed().ravel()
    places = list(da.core.slices_from_chunks(data.chunks))
    # Pages of it that are not written to take no memory: it may become as wide as it must.
    memory = np.empty(data.nbytes, np.uint8)
    out = _view(memory, data.shape, np.dtype(np.uint8) if data.dtype.kind == "u" else data.dtype.newbyteorder("="))
    # Counts in memory stay where they are: no copy travels to a cluster.
    scheduler = "threads" if isinstance(counts.data, np.ndarray) else None
    for first in range(0, len(places), batch):
        here = slice(first, first + batch)
        for place, block in zip(places[here], dask.compute(*parts[here], scheduler=scheduler), strict=True):
            if block.dtype.itemsize > out.dtype.itemsize:
                out = _widened(memory, out, block.dtype)
            out[place] = block
    return compact.copy(data=out)


def _view(memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _widened(memory: np.ndarray, narrow: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Counts at the beginning of `memory` in a wider dtype, in place: from the last to the first."""
    wide = _view(memory, narrow.shape, dtype)
    old, new = narrow.reshape(-1), wide.reshape(-1)
    step = BLOCK_BYTES // dtype.itemsize
    for stop in range(old.size, 0, -step):
        part = slice(max(0, stop - step), stop)
        new[part] = old[part].copy()
    return wide


def _cast(block: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Unsigned counts in a dtype that is certain to hold them, by what their store knows."""
    if block.max(initial=0) > np.iinfo(dtype).max:
        raise CorruptStoreError(
            f"The counts reach {block.max()}, where their store knows of none beyond {np.iinfo(dtype).max}; check it "
            "with verify or convert the source again with overwrite=True."
        )
    return block.astype(dtype)


def _narrowest(block: np.ndarray) -> np.ndarray:
    """Unsigned counts in the narrowest dtype that holds them; others as they are."""
    return block.astype(np.min_scalar_type(block.max(initial=0)), copy=False) if block.dtype.kind == "u" else block


def _largest(counts: xr.DataArray, weights: np.ndarray) -> int:
    """A number that no count of the region exceeds, known without a read; of unsigned counts and booleans alone."""
    if counts.dtype.kind != "u":
        return 1
    maxima = stored_maxima(counts)
    return int(np.iinfo(counts.dtype).max if maxima is None else maxima[pixels_read(counts, weights > 0)].max())


def _certain_dtype(dtype: np.dtype, largest: int, terms: int) -> np.dtype:
    """The narrowest dtype that is certain to hold sums of that many counts, none beyond `largest`."""
    wide = dtype if terms == 1 else dtype_of_sums(dtype, terms)
    return np.min_scalar_type(terms * largest) if wide.kind == "u" else wide


def _available_memory() -> int:
    """Bytes that this process may still take, by what the machine has left and by the process's own limit."""
    import psutil

    return int(min(psutil.virtual_memory().available, memory_limit() - psutil.Process().memory_info().rss))


def _pair(bin: int | tuple[int, int]) -> tuple[int, int]:
    ky, kx = bin if isinstance(bin, Iterable) else (bin, bin)
    return ky, kx


def _on_detector(
    mask: xr.DataArray, part: xr.DataArray, counts: xr.DataArray, window: tuple[slice, slice]
) -> xr.DataArray:
    """A mask for part of the counts on their whole detector: 0 outside the window, as are its mean and std."""

    def whole(variable: xr.Variable) -> xr.Variable:
        if not set(DETECTOR) <= set(variable.dims):
            return variable
        out = np.zeros((*variable.shape[:-2], *counts.shape[2:]), variable.dtype)
        out[(..., *window)] = variable.values
        return xr.Variable(variable.dims, out, variable.attrs)

    own = {name: whole(c.variable) for name, c in mask.coords.items() if name not in detector_coords(part)}
    return xr.DataArray(whole(mask.variable), coords=detector_coords(counts) | own, name=mask.name)
