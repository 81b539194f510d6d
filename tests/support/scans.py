"""Scans of any small shape and dtype, in memory, in chunks and in files, for tests against dense answers."""

from __future__ import annotations

import dask.array as da
import numpy as np
from hypothesis import strategies as st

import tdm_dask as tdm

DTYPES = ["uint8", "uint16", "uint32", ">u2", ">u4", "float32", "int16", "bool"]
LAYOUTS = ["numpy", "chunked", "memory-source", "raw-file", "store"]


@st.composite
def scans(draw):
    """Counts of any small shape and dtype, with the edge values that break sums."""
    shape = tuple(draw(st.integers(1, n)) for n in (7, 7, 9, 9))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["poisson", "zero", "equal", "top", "top-and-zero", "one-outlier", "wide"]))
    if dtype.kind == "b":
        counts = rng.random(shape) < 0.5
    else:
        top = np.iinfo(dtype).max if dtype.kind in "ui" else 1e6
        counts = rng.poisson(4, shape).astype(np.int64)
        if kind == "zero":
            counts[:] = 0
        elif kind == "equal":
            counts[:] = 7
        elif kind == "top":
            counts = int(top) - counts
        elif kind == "top-and-zero":
            counts = np.where(rng.random(shape) < 0.5, int(top), 0)
        elif kind == "one-outlier":
            counts[0, 0] = int(top)
        elif kind == "wide":
            counts = (rng.random(shape) * top).astype(np.int64)
        counts = np.clip(counts, 0, int(top))
    return counts.astype(dtype), rng


def as_labelled(counts, layout, tmp_path_factory, rng):
    if layout == "numpy":
        return tdm.label_counts(counts)
    if layout == "chunked":
        chunks = tuple(int(rng.integers(1, n + 1)) for n in counts.shape)
        return tdm.label_counts(da.from_array(counts, chunks=chunks))
    folder = tmp_path_factory.mktemp("scan")
    if layout == "memory-source":
        from tdm_dask.reading.blocks import InMemory
        from tdm_dask.reading.lazy import as_dask

        return tdm.label_counts(as_dask(InMemory(counts)))
    if layout == "raw-file":
        path = folder / "scan.raw"
        counts.view(np.uint8 if counts.dtype == bool else counts.dtype).tofile(path)
        dtype = "uint8" if counts.dtype == bool else counts.dtype
        return tdm.open(path, scan_shape=counts.shape[:2], detector_shape=counts.shape[2:], dtype=dtype)
    return tdm.convert(tdm.label_counts(counts), folder / "scan.zarr")
