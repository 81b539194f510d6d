"""Images of known columns, drawn densely in NumPy: Gaussians on a scan with steps of any size."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree
from simulated_scans import centre_of, with_periodic_images

from tdm_dask.axes import axis_coordinate


def empty_scan(shape=(60, 70), step=(0.3, 0.25), origin=(0.0, 0.0), unit="angstrom"):
    """An image of zeros with coordinates."""
    coords = {
        dim: axis_coordinate(dim, n, s, o, unit) for dim, n, s, o in zip(("y", "x"), shape, step, origin, strict=True)
    }
    return xr.DataArray(np.zeros(shape), coords=coords, dims=("y", "x"))


def drawn(scan, sites, heights, sigma=0.4, *, background=1.0, noise=None):
    """Gaussians of a height per kind at all sites; Poisson counts where `noise` is a random generator."""
    y, x = scan.y.values[:, None, None], scan.x.values[None, :, None]
    image = np.full(scan.shape, background, float)
    for kind, places in sites.items():
        places = np.reshape(places, (-1, 2))
        image += heights[kind] * np.exp(-((y - places[:, 0]) ** 2 + (x - places[:, 1]) ** 2) / (2 * sigma**2)).sum(2)
    return scan.copy(data=image if noise is None else noise.poisson(np.maximum(image, 0)).astype(float))


def inside(sites, scan, margin=0.0):
    """Sites of every kind at least `margin` within the scan."""
    low = np.array([scan.y.values.min(), scan.x.values.min()]) + margin
    high = np.array([scan.y.values.max(), scan.x.values.max()]) - margin
    arrays = {kind: np.reshape(places, (-1, 2)) for kind, places in sites.items()}
    return {kind: p[((p >= low) & (p <= high)).all(1)] for kind, p in arrays.items()}


def furthest(true, found):
    """How far, at most, each true site lies from a found one."""
    return float(cKDTree(found).query(true)[0].max())


_SEEN = {}


def scan_of(simulated, name, angles):
    """Image of a simulated scan by an annulus of angles in mrad, and its true sites, periodic images included."""
    if (name, angles) not in _SEEN:
        _SEEN[name, angles] = _scan_of(simulated, name, angles)
    image, sites = _SEEN[name, angles]
    return image.copy(), sites


def _scan_of(simulated, name, angles):
    counts, meta = simulated(name)
    ky, kx = np.indices(counts.shape[2:], sparse=True)
    cy, cx = centre_of(meta, counts.shape)
    radius = meta["angle_step_mrad"][0] * np.hypot(ky - cy, kx - cx)
    mask = (radius > angles[0]) & (radius <= angles[1])
    image = empty_scan(counts.shape[:2], meta["scan_step_angstrom"]).copy(data=counts[..., mask].sum(-1).astype(float))
    return image, with_periodic_images(meta["atom_columns_angstrom_yx"], meta["periodic_cell_angstrom"])
