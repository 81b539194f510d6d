"""Scans with known truth: the package's sample, simulated for the tests and kept, or archives beside the project.

The last two are `.npz` files with `counts` (y, x, ky, kx) and `meta`, a JSON text with axes and columns.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from locket import lock_file

import tdm_dask

SIGMA = 0.35
# For tests that simulate. To import abTEM takes seconds, which who runs other tests need not wait for.
simulates = pytest.mark.skipif(find_spec("abtem") is None, reason="the package abtem is not here")

PACKAGE = Path(tdm_dask.__file__).parent
DATA, SIMULATION = PACKAGE / "data", PACKAGE / "simulation"
# A corner of the archive of LiFePO4, its pixels summed 2 x 2.
SAMPLE = "sample"
SAMPLE_SCAN, SAMPLE_DETECTOR = (42, 42), (38, 38)
# Thick enough for patterns that are far from kinematic and for Li to show, as in the archives of 40 nm; thin and coarse
# enough for about ten seconds on one core. The first has the pixels of the package's sample, 2.43 mrad.
SPECIMENS = {
    "lifepo4": ("lifepo4", {"size": (10, 12), "thickness": 400}),
    "pbtio3": ("pbtio3_wall", {"cells": 4, "thickness": 300}),
}
CONDITIONS = {
    "potential_sampling": 0.2,
    "max_angle": 42,
    "soft_edge": 0,
    "frozen_phonons": 1,
    "scan_step": 0.33,
    "electrons_per_probe": 20_000.0,
}
SEED = 1
LIFEPO4, PBTIO3 = SPECIMENS
# Of the method's document, 40 nm thick with more and finer pixels.
ARCHIVES = LIFEPO4_ARCHIVE, PBTIO3_ARCHIVE = "lifepo4_001_40nm.npz", "pbtio3_100_39nm.npz"
# To parametrise a test by: what is always there, then what lies beside the project. Not the sample, which has few
# columns and an optic axis between pixels.
LIFEPO4_SCANS = [LIFEPO4, LIFEPO4_ARCHIVE]
PBTIO3_SCANS = [PBTIO3, PBTIO3_ARCHIVE]
SCANS = LIFEPO4_SCANS + PBTIO3_SCANS


def with_periodic_images(sites, cell):
    """Every site and its images in the cells around: columns beyond the border still reach into the scan."""
    offsets = np.array([(i * cell[0], j * cell[1]) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return {kind: (np.asarray(s)[:, None] + offsets).reshape(-1, 2) for kind, s in sites.items()}


def centre_of(meta, shape):
    """Where the optic axis is (ky, kx), in pixels."""
    return tuple(meta.get("optic_axis_px", (shape[-2] // 2, shape[-1] // 2)))


def sample_frames():
    """The counts by the format's definition: 384 bytes of header, big-endian rows, the bottom row first."""
    frame = np.dtype([("header", "S384"), ("counts", ">u2", SAMPLE_DETECTOR)])
    return np.fromfile(DATA / "lifepo4_001.mib", frame)["counts"][:, ::-1].reshape(*SAMPLE_SCAN, *SAMPLE_DETECTOR)


def sample():
    """Counts of the package's sample and what is known about them, in the words of the archives."""
    cell = np.array([10.332, 12.02])
    listed = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))
    listed = {kind: np.array(places) for kind, places in listed.items()}
    within = {kind: p[((p > -1e-6) & (p < cell - 1e-6)).all(1)].tolist() for kind, p in listed.items()}
    meta = {
        "description": "LiFePO4 [001], sample",
        "atom_columns_angstrom_yx": within,
        "periodic_cell_angstrom": cell.tolist(),
        "scan_step_angstrom": [20.664 / 64, 18.03 / 56],
        "angle_step_mrad": [2 * 1.2136730699442735] * 2,
        "optic_axis_px": [18.75, 18.75],
        "semi_angle_mrad": 23.5,
        "energy_ev": 200e3,
        "thickness_nm": 39.9,
        "dose_electrons_per_probe": 20_000.0,
    }
    return sample_frames().astype(np.uint16), meta


def load(path):
    """Counts and what is known about them."""
    with np.load(path) as file:
        return file["counts"], json.loads(str(file["meta"]))


def simulated_scan(name, folder, seed=SEED):
    """Counts of a specimen and what is known about them, simulated now unless the folder holds them whole.

    One process at a time: of several that ask at once, one simulates. Other seeds (other phonons, other noise) are what
    the tolerances of tests were measured with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{name}-{content(name, seed)}.npz"
    with lock_file(str(folder / f"{name}.lock")):
        # Whatever is wrong with an archive, such as the end of it that is missing: it is made again.
        with suppress(Exception):
            return load(archive)
        counts, meta = _simulated(name, seed)
        for outdated in folder.glob(f"{name}-*.npz"):
            outdated.unlink()
        unfinished = folder / f"{name}.unfinished"
        with unfinished.open("wb") as file:
            np.savez_compressed(file, counts=counts, meta=json.dumps(meta))
        unfinished.replace(archive)
        return load(archive)


def content(name, seed=SEED):
    """What the counts follow from, in few characters: the request, the code that answers it, and what that rests on."""
    request = [SPECIMENS[name], CONDITIONS, seed, [version(p) for p in ("abtem", "ase", "numpy", "scipy")]]
    code = b"".join(path.read_bytes() for path in (Path(__file__), *sorted(SIMULATION.glob("*.py"))))
    return hashlib.sha256(repr(request).encode() + code).hexdigest()[:16]


def _simulated(name, seed):
    from tdm_dask.simulation import specimens

    builder, size = SPECIMENS[name]
    with tempfile.TemporaryDirectory() as folder:
        counts = tdm_dask.simulate(
            getattr(specimens, builder)(**size), Path(folder) / "scan.zarr", seed=seed, **CONDITIONS
        ).compute()
    truth = json.loads(counts.attrs["truth"])
    meta = {
        "description": truth["description"],
        "atom_columns_angstrom_yx": truth["sites"],
        "periodic_cell_angstrom": truth["cell"],
        "scan_step_angstrom": [float(counts[dim][1] - counts[dim][0]) for dim in ("y", "x")],
        "angle_step_mrad": [float(counts[dim][1] - counts[dim][0]) for dim in ("ky", "kx")],
        "semi_angle_mrad": counts.attrs["semi_angle_mrad"],
        "energy_ev": counts.attrs["energy_eV"],
        "thickness_nm": truth["thickness_nm"],
        "dose_electrons_per_probe": truth["dose"],
    }
    return counts.values, meta
