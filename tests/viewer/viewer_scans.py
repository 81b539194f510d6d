"""Counts in angstrom and mrad, for tests of the viewer."""

from __future__ import annotations

from functools import partial

import numpy as np

from tdm_dask.axes import axis_coordinate, label_counts


def calibrated(data, step=0.4, pixel=2.5, **attrs):
    """Counts in angstrom and mrad, the optic axis in the middle."""
    ny, nx, nky, nkx = data.shape
    coords = {
        "y": axis_coordinate("y", ny, step, 0.0, "angstrom"),
        "x": axis_coordinate("x", nx, step, 0.0, "angstrom"),
    }
    for dim, size in (("ky", nky), ("kx", nkx)):
        coords[dim] = axis_coordinate(dim, size, pixel, -pixel * (size - 1) / 2, "mrad")
    return label_counts(data, coords, {"semi_angle_mrad": 6.0, **attrs})


def random_counts(shape=(16, 17, 8, 9), seed=0, top=40):
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint16)


calibrated_finer = partial(calibrated, step=0.3, pixel=2.0, semi_angle_mrad=8.0)
