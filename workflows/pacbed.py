# %% [markdown]
# # Thickness from the mean pattern (PACBED)
#
# The mean pattern of a scan depends on the thickness, and hardly on defocus or the scan. It is compared with simulated
# ones of many thicknesses; rotation, scale and shift of the pattern, its intensity and a constant background are
# fitted for each. The library is simulated with phonon displacements of its own (`--seed`), or read from a store that
# an earlier run wrote (`--library`).

# %%
"""Thickness of a specimen from its mean pattern, matched to a library of simulated ones (SI4, SI15 of the paper).

python workflows/pacbed.py [data] [--out DIR] [--library LIBRARY.zarr] [--cif FILE --zone 0 0 1]
"""

from pathlib import Path

import known_scan
import numpy as np
import xarray as xr

import tdm_dask as tdm
from tdm_dask.imaging.thickness import match_thickness
from tdm_dask.plot.style import new_figure
from tdm_dask.plot.thickness import plot_matched_patterns, plot_misfit

ARGUMENTS = known_scan.arguments(
    __doc__,
    library={"type": Path, "help": "store of simulated patterns; read if it is there, else written"},
    specimen={"choices": ["lifepo4", "pbtio3"], "help": "what is simulated; by default as the data's name says"},
    cif={"type": Path, "help": "crystal structure that is simulated instead"},
    zone={"nargs": 3, "type": int, "default": [0, 0, 1], "help": "zone axis of the CIF; its a axis lies along y"},
    thinnest={"type": float, "default": 20.0, "help": "in nm"},
    thickest={"type": float, "default": 90.0, "help": "in nm"},
    step={"type": float, "default": 2.0, "help": "between thicknesses, in nm"},
    soft_edge={"type": float, "default": 0.0, "help": "of the probe-forming aperture, in mrad"},
    frozen_phonons={"type": int, "default": 4, "help": "configurations that are averaged"},
    seed={"type": int, "default": 12, "help": "of the phonon displacements"},
)
scan = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
counts = scan.counts

# %% [markdown]
# ## The measured pattern
#
# One read.

# %%
measured = tdm.pixel_statistics(counts).compute()
largest = max(float(np.abs(counts[dim]).max()) for dim in ("ky", "kx"))

# %% [markdown]
# ## The library
#
# A multislice run gives all thicknesses at once. With the defaults it takes about 90 s of one core (LiFePO4).


# %%
def specimen_of(thickness: float):
    """The specimen to simulate, at least as thick as asked, in nm."""
    from tdm_dask.simulation import specimens

    if ARGUMENTS.cif is not None:
        return specimens.crystal_block(ARGUMENTS.cif, tuple(ARGUMENTS.zone), thickness=f"{thickness} nm")
    if (ARGUMENTS.specimen or ("pbtio3" if "PbTiO3" in scan.name else "lifepo4")) == "pbtio3":
        return specimens.pbtio3_wall(thickness=f"{thickness} nm")
    return specimens.lifepo4(**({"size": (10, 10)} if ARGUMENTS.quick else {}), thickness=f"{thickness} nm")


def simulated() -> xr.DataArray:
    """The library of mean patterns."""
    from tdm_dask.simulation.multislice import simulate_pacbed

    thicknesses = np.arange(ARGUMENTS.thinnest, ARGUMENTS.thickest + 1e-9, ARGUMENTS.step)
    options = {"frozen_phonons": ARGUMENTS.frozen_phonons}
    if ARGUMENTS.quick:
        thicknesses = np.arange(20.0, 61, 8)
        options = {"frozen_phonons": 1, "scan_step": 1.0, "potential_sampling": 0.17}
    specimen = specimen_of(float(thicknesses[-1]) + 1)
    if "wall" in specimen.description:  # the mean over both domains
        options |= {"scan_extent": specimen.cell, "scan_step": 0.8}
    return simulate_pacbed(
        specimen,
        [f"{t} nm" for t in thicknesses],
        energy=float(counts.attrs.get("energy_eV", 200e3)),
        semi_angle=float(counts.attrs.get("semi_angle_mrad", 23.5)),
        soft_edge=ARGUMENTS.soft_edge,
        max_angle=min(largest + 3.0, 64.2),
        seed=ARGUMENTS.seed,
        **options,
    )


if ARGUMENTS.library is not None and ARGUMENTS.library.exists():
    library = xr.open_zarr(ARGUMENTS.library, consolidated=False)["pattern"].compute()
else:
    library = simulated()
    place = ARGUMENTS.library or ARGUMENTS.out / "pacbed-library.zarr"
    library.to_dataset(name="pattern").to_zarr(place, mode="w", consolidated=False)

# %% [markdown]
# ## The match
#
# The misfit is in units of what counting alone would leave. It stays far above 1: the phonons of the specimen are
# others than those of the library, and so is the edge of the aperture. The error of the thickness is therefore taken
# from the residuals, by drawing parts of the detector again.

# %%
found = match_thickness(measured, library)

# %%
figure = new_figure(7.8, 5.4)
above, below = figure.subfigures(2, 1, height_ratios=[1, 1])
plot_misfit(found, truth=scan.thickness_nm, axes=above.subplots())
plot_matched_patterns(found, semi_angle=counts.attrs.get("semi_angle_mrad"), figure=below)
best = int(np.argmin(found.misfit.values))
numbers = {
    "data": scan.name,
    "patterns": int(measured["n"]),
    "thickness_nm": float(found.thickness_nm),
    "error_nm": float(found.thickness_error_nm),
    "bootstrap_error_nm": float(found.bootstrap_error_nm),
    "curvature_error_nm": float(found.curvature_error_nm),
    "truth_nm": scan.thickness_nm,
    "rivals_nm": found.attrs["rivals_nm"],
    "at_the_best": {name: float(found[name][best]) for name in ("misfit", "rotation", "scale", "shift_ky", "shift_kx")},
    "curve": {name: found[name] for name in ("thickness", "misfit", "misfit_error")},
}
known_scan.write(ARGUMENTS.out, "pacbed", {"match": figure}, numbers)
truth = "" if scan.thickness_nm is None else f"; the truth is {scan.thickness_nm:g} nm"
print(f"{numbers['thickness_nm']:.1f} ± {numbers['error_nm']:.1f} nm{truth}")
