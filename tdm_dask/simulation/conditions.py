"""What is asked of a simulation, with its units, as numbers that fit its specimen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ..axes import electron_wavelength, quantity, quantity_pair
from ..errors import InputError
from .scattering import Conditions, Scatterer, check_sampling, natural_steps
from .specimens import Specimen

# Root mean square displacements along one direction at room temperature, in angstrom: square roots of the isotropic
# U of V. A. Streltsov et al., Acta Cryst. B49 (1993) 147 (LiFePO4) and of A. M. Glazer and S. A. Mabud, Acta Cryst.
# B34 (1978) 1065 (PbTiO3; O as in LiFePO4).
SIGMAS: Mapping[str, float] = MappingProxyType(
    {"Li": 0.12, "O": 0.08, "P": 0.065, "Ti": 0.075, "Fe": 0.075, "Pb": 0.11}
)
# Of elements that are not listed.
OTHER_SIGMA = 0.08


def scatterer_of(
    specimen: Specimen,
    thicknesses: list[float],
    *,
    energy: Any,
    semi_angle: Any,
    soft_edge: Any,
    cs: Any,
    slice_thickness: Any,
    potential_sampling: Any,
    parametrization: str,
    projection: str,
    max_angle: Any,
    pixel_size: Any,
    frozen_phonons: int,
    sigmas: Mapping[str, float] | float | None,
    seed: int,
) -> Scatterer:
    """The specimen under the conditions that `tdm_dask.simulate` is called with, seen at thicknesses."""
    atoms = specimen.atoms
    volt = quantity(energy, "eV", "energy")
    edge = quantity(soft_edge, "mrad", "soft_edge", positive=False)
    if edge < 0:
        raise InputError(f"soft_edge={soft_edge!r} was given; expected an angle of at least 0.")
    if frozen_phonons < 1:
        raise InputError(
            f"frozen_phonons={frozen_phonons} was given; expected 1 or more (sigmas=0 leaves the atoms at rest)."
        )
    steps = natural_steps(specimen.cell, electron_wavelength(volt))
    pixel = max(steps) if pixel_size is None else quantity(pixel_size, "mrad", "pixel_size")
    elements = sorted(set(atoms.get_chemical_symbols()))
    if sigmas is None or isinstance(sigmas, Mapping):
        known = SIGMAS if sigmas is None else sigmas
        widths = {e: float(known.get(e, OTHER_SIGMA)) for e in elements}
    else:
        widths = dict.fromkeys(elements, float(sigmas))
    if any(not 0 <= w < 1 for w in widths.values()):
        raise InputError(f"The displacements are {widths}; expected 0 to 1 angstrom.")
    most = quantity(slice_thickness, "angstrom", "slice_thickness")
    # Whole slices fill each repeat of the crystal, so that each cuts the same atoms.
    depth = specimen.repeat[2] / math.ceil(specimen.repeat[2] / most - 1e-6)
    slices = round(specimen.thickness / depth)
    conditions = Conditions(
        energy=volt,
        semi_angle=quantity(semi_angle, "mrad", "semi_angle"),
        soft_edge=edge,
        cs=quantity(cs, "angstrom", "cs", positive=False),
        max_angle=quantity(max_angle, "mrad", "max_angle"),
        pixel_size=pixel,
        slice_thickness=depth,
        potential_sampling=quantity(potential_sampling, "angstrom", "potential_sampling"),
        parametrization=parametrization,
        projection=projection,
        sigmas=tuple(sorted(widths.items())),
        configurations=int(frozen_phonons),
        seed=int(seed),
    )
    if conditions.max_angle < 2 * pixel:
        raise InputError(f"The detector reaches to {conditions.max_angle:g} mrad, in pixels of {pixel:g}; use more.")
    planes = sorted({round(t / depth) for t in thicknesses})
    if planes[0] < 1 or planes[-1] > slices:
        raise InputError(
            f"The thicknesses {[round(t, 2) for t in thicknesses]} angstrom were asked for; expected {depth:.2f} to "
            f"{specimen.thickness:.2f}, that of the specimen."
        )
    cell = tuple(float(v) for v in atoms.cell.lengths())
    scatterer = Scatterer(
        np.asarray(atoms.numbers), np.array(atoms.positions), (cell[0], cell[1], cell[2]), conditions, tuple(planes)
    )
    check_sampling(scatterer)
    return scatterer


def thicknesses_of(specimen: Specimen, thickness: Any) -> list[float]:
    """Thicknesses in angstrom; that of the specimen where none is asked for."""
    if thickness is None:
        return [specimen.thickness]
    values = [quantity(v, "angstrom", "thickness") for v in listed(thickness)]
    if not values:
        raise InputError("There are no thicknesses; give one at least.")
    return values


def listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def probe_grid(specimen: Specimen, scan_step: Any, scan_extent: Any) -> tuple[tuple[int, int], tuple[float, float]]:
    """Probe positions (y, x), and the steps of which so many fill the extent."""
    steps = quantity_pair(scan_step, "angstrom", "scan_step")
    extent = specimen.cell if scan_extent is None else quantity_pair(scan_extent, "angstrom", "scan_extent")
    if any(e > c + 1e-6 for e, c in zip(extent, specimen.cell, strict=True)):
        raise InputError(
            f"scan_extent={tuple(round(e, 3) for e in extent)} was given, in angstrom; expected at most the block, "
            f"{tuple(round(c, 3) for c in specimen.cell)}."
        )
    ny, nx = (max(1, round(e / s)) for e, s in zip(extent, steps, strict=True))
    return (ny, nx), (extent[0] / ny, extent[1] / nx)
