# %% [markdown]
# # Sites of atom columns, by three ways
#
# A mask is derived from a template, and a template from the sites of one kind of column. This workflow takes the ADF
# image of a scan of which the truth is known, and finds its sites
#
# 1. from the **peaks** of the image **and a motif** that is typed in: a lattice is fitted to the columns that the image
#    shows, and the motif says where the others are;
# 2. from a **CIF and a zone axis**: the projected crystal is laid over the image, which settles rotation, handedness
#    and origin, or says that it does not;
# 3. from a **table**, here the one that comes with the data (`--sites` names another).
#
# It ends with a table of the sites by the second way, a figure of the three, and how far they are from the truth.

# %%
"""Sites of atom columns from peaks and a motif, from a CIF and from a table, compared with the truth."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import known_scan
import numpy as np
from scipy.spatial import cKDTree

import tdm_dask as tdm
from tdm_dask.columns.crystal import sites_from_cif
from tdm_dask.columns.finding import find_columns
from tdm_dask.columns.lattice import Lattice
from tdm_dask.columns.registration import register_sites
from tdm_dask.plot.sites import plot_sites
from tdm_dask.plot.style import new_figure, styled

HERE = Path(known_scan.__file__).parent
MARGIN = 1.5  # angstrom: columns this far outside the scan reach into it

ARGUMENTS = known_scan.arguments(
    __doc__,
    cif={"type": Path, "help": "the CIF of another crystal, for the second way alone"},
    zone_axis={"nargs": 3, "type": int, "metavar": ("U", "V", "W"), "help": "its zone axis"},
)
SCAN = known_scan.load(ARGUMENTS.data, ARGUMENTS.out)
COUNTS = tdm.crop(SCAN.counts, y=slice(0, 40), x=slice(0, 40)) if ARGUMENTS.quick else SCAN.counts
print(f"{SCAN.name}: {COUNTS.shape}")

# %% [markdown]
# ## What is known beforehand
#
# LiFePO4 [001]: the cell of the projection, and its columns in fractions of it. An ADF image shows iron and phosphorus;
# lithium and oxygen are placed by the motif.
#
# PbTiO3 [100]: a 90-degree domain wall crosses the scan from corner to corner. The polar axis lies along x on one side,
# along y on the other, so that each domain has a motif of its own and is registered by its own part of the scan, at a
# distance from the wall.


# %%
def olivine() -> dict[str, Any]:
    iron = {"Fe": [(0.5644, 0.25), (0.4356, 0.75)], "P+O": [(0.1896, 0.25), (0.8104, 0.75)]}
    oxygen = [(0.3312, 0.0465), (0.3312, 0.4535), (0.6688, 0.5465), (0.6688, 0.9535), (0.0858, 0.75), (0.9142, 0.25)]
    hidden = {"O": oxygen, "Li": [(0.0, 0.0), (0.0, 0.5)]}
    return {"cell": [[5.166, 0.0], [0.0, 6.010]], "shown": iron, "hidden": hidden, "region": None}


def perovskite(polar: str, region: np.ndarray) -> dict[str, Any]:
    along = slice(None) if polar == "x" else slice(None, None, -1)
    shown = {"Pb": [(0.0, 0.0)], "Ti+O": [(0.5, 0.5377)[along]]}
    hidden = {"O": [(0.0, 0.6174)[along], (0.5, 0.1118)[along]]}
    return {"cell": [[4.03, 0.0], [0.0, 4.03]], "shown": shown, "hidden": hidden, "region": region}


LEAD = "Pb" in SCAN.sites
if LEAD:
    ACROSS = (COUNTS.y.values[:, None] + COUNTS.x.values) / SCAN.cell[0] * 6
    DOMAINS = {"c along x": perovskite("x", ACROSS < 5.6), "c along y": perovskite("y", ACROSS > 6.4)}
else:
    DOMAINS = {"": olivine()}
CIF = ARGUMENTS.cif or HERE / ("PbTiO3.cif" if LEAD else "LiFePO4.cif")
ZONE_AXIS = ARGUMENTS.zone_axis or ((1, 0, 0) if LEAD else (0, 0, 1))
DOMAINS = {name: domain for name, domain in DOMAINS.items() if domain["region"] is None or domain["region"].any()}

# %% [markdown]
# ## The image
#
# One read of the counts. Everything below works on the image alone.

# %%
ADF = tdm.apply_mask(COUNTS, tdm.annulus(COUNTS, "30 mrad", "60 mrad")).compute()

# %% [markdown]
# ## First way: peaks and a motif
#
# `Lattice.from_image` finds the cell without any knowledge of the crystal, which is the check that it is the one typed
# in. Then the typed one is fitted to the peaks, from an origin that is settled by the peaks as well.

# %%
PEAKS = find_columns(ADF, separation=1.4)
CELL = Lattice.from_image(ADF, separation=1.4)
print(f"{len(PEAKS)} columns; from the image alone: {CELL}")


def chosen(sites: dict[str, np.ndarray], region: np.ndarray | None) -> dict[str, np.ndarray]:
    """Sites whose nearest probe position is in a region; all where there is none."""
    if region is None:
        return sites
    kept = {}
    for kind, places in sites.items():
        nearest = [
            np.clip(np.rint(np.interp(places[:, n], COUNTS[dim], np.arange(COUNTS.sizes[dim]))), 0, None).astype(int)
            for n, dim in enumerate(("y", "x"))
        ]
        kept[kind] = places[region[tuple(nearest)]]
    return kept


def from_peaks(domain: dict[str, Any]) -> Lattice:
    """The typed lattice, fitted to the peaks of a domain."""
    peaks = chosen({"peaks": PEAKS}, domain["region"])["peaks"]
    fitted = Lattice(domain["cell"], domain["shown"]).fit(peaks, origin="find")
    return fitted.with_motif(domain["shown"] | domain["hidden"])


# %% [markdown]
# ## Second way: a CIF and a zone axis
#
# The message says what the image settles: the rotation and handedness found, how many orientations give the same sites
# by symmetry, and by how much the next candidate fits worse.

# %%
CRYSTAL = sites_from_cif(CIF, ZONE_AXIS)
WARNINGS: list[str] = []
FOUND: dict[str, dict[str, Lattice]] = {"Peaks and motif": {}, "CIF and zone axis": {}}
REGISTERED = {}
for NAME, DOMAIN in DOMAINS.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if ARGUMENTS.cif is None:
            FOUND["Peaks and motif"][NAME] = from_peaks(DOMAIN)
        REGISTERED[NAME] = register_sites(CRYSTAL, ADF, scan_region=DOMAIN["region"])
    FOUND["CIF and zone axis"][NAME] = REGISTERED[NAME].lattice
    WARNINGS += [str(warning.message) for warning in caught]
    print(f"{NAME} {REGISTERED[NAME].message}")

# %% [markdown]
# ## Third way: a table
#
# Any table of kind, y and x in angstrom. It is what the other two ways are turned into as well, so that a mask can be
# derived from it later, or elsewhere.

# %%
TABLE = tdm.read_sites(ARGUMENTS.sites) if ARGUMENTS.sites else SCAN.sites


def joined(lattices: dict[str, Lattice]) -> dict[str, np.ndarray]:
    """The sites of all domains, each in its own region."""
    parts = [chosen(lattice.sites(ADF, margin=MARGIN), DOMAINS[name]["region"]) for name, lattice in lattices.items()]
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}


LATTICES = {way: lattices for way, lattices in FOUND.items() if lattices}
WAYS = {way: joined(lattices) for way, lattices in LATTICES.items()}
WAYS["Table"] = {kind: places for kind, places in known_scan.inside(TABLE, ADF, -MARGIN).items() if len(places)}
ARGUMENTS.out.mkdir(parents=True, exist_ok=True)
tdm.write_sites(ARGUMENTS.out / "sites.csv", WAYS["CIF and zone axis"])

# %% [markdown]
# ## How far from the truth
#
# From every true column of the scan (of the regions, where there are two domains) to the nearest site of its kind. The
# table that comes with the data is the truth itself; what can be asked of it is how far the peaks lie from it.


# %%
def errors(way: str) -> dict[str, dict[str, float]]:
    """Number of true columns of each kind, and root mean square and largest distance of the sites from them."""
    off: dict[str, list[np.ndarray]] = {}
    for name, domain in DOMAINS.items():
        sites = LATTICES[way][name].sites(ADF, margin=MARGIN) if way in LATTICES else WAYS[way]
        for kind, true in chosen(known_scan.inside(SCAN.sites, ADF), domain["region"]).items():
            if len(true) and len(sites.get(kind, ())):
                off.setdefault(kind, []).append(cKDTree(sites[kind]).query(true)[0])
    every = {kind: np.concatenate(parts) for kind, parts in off.items()}
    return {kind: {"columns": len(d), "rms": np.sqrt((d**2).mean()), "max": d.max()} for kind, d in every.items()}


ERRORS = {way: errors(way) for way in WAYS}
for way, kinds in ERRORS.items():
    print(f"{way:18s}", "  ".join(f"{kind}: rms {e['rms']:.3f}, max {e['max']:.3f} Å" for kind, e in kinds.items()))
PEAK_ERROR = cKDTree(np.concatenate(list(WAYS["Table"].values()))).query(PEAKS)[0]
print(f"peaks from the table: rms {np.sqrt((PEAK_ERROR**2).mean()):.3f} Å, median {np.median(PEAK_ERROR):.3f} Å")


@styled
def figure() -> Any:
    """The three, side by side over the ADF image."""
    height, width = (float(np.ptp(ADF[dim].values)) for dim in ("y", "x"))
    panels = new_figure(2.9 * len(WAYS), 2.9 * height / width + 0.75)
    order = [kind for kind in SCAN.sites if all(kind in sites for sites in WAYS.values())]
    for number, (axes, (way, sites)) in enumerate(zip(panels.subplots(1, len(WAYS)), WAYS.items(), strict=True)):
        lattice = next(iter(FOUND[way].values())) if way in FOUND and not LEAD else None
        shown = {kind: sites[kind] for kind in order}
        plot_sites(ADF, shown, lattice=lattice, title=way, legend=number == len(WAYS) - 1, axes=axes)
    return panels


NUMBERS = {
    "scan": SCAN.name,
    "errors_angstrom": ERRORS,
    "cell_from_image": CELL.vectors,
    "columns_found": len(PEAKS),
    "peaks_from_table_angstrom": {"rms": np.sqrt((PEAK_ERROR**2).mean()), "median": np.median(PEAK_ERROR)},
    "table": str(ARGUMENTS.sites or "the truth of the scan"),
    "registration": {
        name or "scan": {
            "message": r.message,
            "ambiguous": r.ambiguous,
            "lattice": r.lattice.to_dict(),
            "candidates": [
                {
                    "score": c.score,
                    "rotation_deg": c.rotation,
                    "mirrored": c.mirrored,
                    "strain": c.strain,
                    "worse_by_standard_errors": c.worse_by,
                    "distance_angstrom": c.distance,
                    "orientations": c.orientations,
                }
                for c in r.candidates
            ],
        }
        for name, r in REGISTERED.items()
    },
    "warnings": WARNINGS,
}
known_scan.write(ARGUMENTS.out, "sites", {"ways": figure()}, NUMBERS)
