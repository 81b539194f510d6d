# %% [markdown]
# # What a mask is evidence for
#
# In a perfect crystal nearly any template that repeats with the lattice is reproduced by its mask, whether or not atoms
# are there. So an image that looks like its template says little, and a displacement measured in it may be the
# template's own. Here three kinds of template are held against each other:
#
# - **true sites**;
# - **moved sites**: each kind by itself, moved to the place, away from its own, where its template responds most
#   strongly: the worst case for whoever has the structure wrong;
# - **random sites**, of the same number and spacing.
#
# Beside the verdict on each stands R, the correlation of image and template, held out: masks from one half of the scan,
# read on the other. That number alone would have let the moved ones pass.
#
# A second part measures how far positions follow the template. In a perovskite with displaced Ti, its template is put
# at the centre of the oxygen cage, and on the wrong side of it.
#
#     python workflows/evidence.py lifepo4_001_40nm.npz --out results
#     python workflows/evidence.py pbtio3_100_39nm.npz --out results

# %%
"""Verdicts on true, moved and random templates, and how far measured positions follow the template."""

from __future__ import annotations

import known_scan
import numpy as np
import xarray as xr
from scipy.spatial import cKDTree

import tdm_dask as tdm
from tdm_dask.evaluation.held_out import held_out_cross_talk
from tdm_dask.evaluation.influence import template_influence
from tdm_dask.evaluation.null import random_sites
from tdm_dask.evaluation.verdict import Evidence, evidence
from tdm_dask.plot.evidence import plot_influence, plot_offsets, plot_significance, plot_verdicts
from tdm_dask.plot.style import new_figure, styled

SIGMA = 0.35  # angstrom, of the Gaussians of templates
REGION = 24.0  # mrad, of the detector that masks may use
RADIUS = 1.4  # angstrom, of the windows of fits
UNIT_CELLS = {"LiFePO4": (10.332, 6.010)}  # where the known period holds several

ARGUMENTS = known_scan.arguments(
    __doc__,
    draws={"type": int, "default": 200, "help": "random templates for each kind (default: 200)"},
    cell={"type": float, "nargs": 2, "metavar": ("Y", "X"), "help": "period in angstrom, where it is not known"},
)
SCAN = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
COUNTS, SITES = SCAN.counts, SCAN.sites
DRAWS = 40 if ARGUMENTS.quick else ARGUMENTS.draws
KNOWN = [cell for name, cell in UNIT_CELLS.items() if SCAN.name.startswith(name)]
CELL = tuple(ARGUMENTS.cell) if ARGUMENTS.cell else (KNOWN[0] if KNOWN else SCAN.cell)
if CELL is None:
    raise SystemExit("The period of the specimen is not known; give it with --cell Y X.")
DISK = tdm.disk(COUNTS, REGION) > 0.5
OPTIONS = {"sigma": SIGMA, "detector_region": DISK, "draws": DRAWS}
print(f"{SCAN.name}: {COUNTS.shape}, cell {CELL[0]:g} x {CELL[1]:g} angstrom")

# %% [markdown]
# ## The true sites

# %%
TRUE = evidence(COUNTS, SITES, CELL, **OPTIONS)
print(TRUE)

# %% [markdown]
# ## Each kind moved to where it responds most strongly
#
# The others stay in their places: they say what the columns there are already known for. Images that repeat with the
# cell are complete for the moved sites too.


# %%
def periodic(sites: np.ndarray) -> np.ndarray:
    """Sites and their images around the scan, by the period of all of it."""
    period = SCAN.cell or CELL
    return known_scan.with_periodic_images({"": sites}, period, COUNTS)[""]


def strongest_elsewhere(found: Evidence, kind: str) -> np.ndarray:
    """The inequivalent offset (y, x) at which a template responds most strongly."""
    one = found.offsets.sel(template=kind)
    away = one["response"].where(one["overlap"] < 0.8)
    place = away.isel(away.argmax(("a", "b")))
    return np.array([place["dy"].item(), place["dx"].item()])


WANTED = list(SITES)
OFFSETS = {kind: strongest_elsewhere(TRUE, kind) for kind in WANTED if "response" in TRUE.offsets}
MOVED_SITES = {kind: periodic(SITES[kind] + offset) for kind, offset in OFFSETS.items()}
MOVED = {kind: evidence(COUNTS, SITES | {kind: MOVED_SITES[kind]}, CELL, **OPTIONS) for kind in OFFSETS}
for kind, found in MOVED.items():
    print(f"moved by ({OFFSETS[kind][0]:.2f}, {OFFSETS[kind][1]:.2f}) angstrom: {found.sentences[kind]}")

# %% [markdown]
# ## Random sites
#
# They do not repeat with the cell, and need not: random sites do as well.

# %%
RANDOM_SITES = {kind: random_sites(COUNTS, SITES[kind], seed=n) for n, kind in enumerate(WANTED)}
RANDOM = evidence(COUNTS, RANDOM_SITES, SCAN.cell or CELL, **OPTIONS, seed=1)
print(RANDOM)

# %% [markdown]
# ## How it looks: R, held out

# %%
SETS = ["true sites", "moved sites", "random sites"]
EVERY = {"true sites": SITES, "moved sites": MOVED_SITES, "random sites": RANDOM_SITES}
NAMED = {f"{name}: {kind}": places for name in SETS for kind, places in EVERY[name].items()}
TEMPLATES = tdm.gaussian_template(COUNTS, NAMED, sigma=SIGMA)
HELD_OUT = {
    method: held_out_cross_talk(COUNTS, TEMPLATES, method=method, detector_region=DISK, **options)["own"].mean("fold")
    for method, options in (("pearson", {}), ("ridge", {"regularisation": 0.1}))
}
LABELS = {"set": SETS, "template": WANTED}


def by_set(own: xr.DataArray) -> xr.DataArray:
    values = [[float(own.sel(template=f"{name}: {kind}")) for kind in WANTED] for name in SETS]
    return xr.DataArray(values, LABELS, ("set", "template"))


VERDICTS = xr.DataArray(
    [
        [str(TRUE.table["verdict"].sel(template=kind).item()) for kind in WANTED],
        [str(MOVED[kind].table["verdict"].sel(template=kind).item()) for kind in WANTED],
        [str(RANDOM.table["verdict"].sel(template=kind).item()) for kind in WANTED],
    ],
    LABELS,
    ("set", "template"),
)
for name in SETS:
    for kind in WANTED:
        r = [float(by_set(HELD_OUT[method]).sel(set=name, template=kind)) for method in HELD_OUT]
        verdict = VERDICTS.sel(set=name, template=kind).item()
        print(f"{name:12} {kind:5} R held out {r[0]:+.2f} (Pearson) {r[1]:+.2f} (ridge): {verdict}")

# %% [markdown]
# ## Template influence
#
# Masks from a reference region of a ninth of the scan, templates whose sites are moved, positions in their images. A
# slope of 0 is a position that the data hold, 1 a copy of the template.


# %%
def cage_alternatives() -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Ti where it is, at the centre of its four oxygen neighbours, and reversed; Pb and O as a whole to one side."""
    ti = next(kind for kind in SITES if kind.startswith("Ti"))
    distance, near = cKDTree(SITES["O"]).query(SITES[ti], k=4)
    whole = distance.max(1) < 2.9
    true, cage = SITES[ti][whole], SITES["O"][near[whole]].mean(1)
    moves = {ti: {"cage centre": cage, "reversed": 2 * cage - true}}
    sites = {ti: true}
    for kind in SITES:
        if kind != ti:
            sites[kind] = SITES[kind]
            moves[kind] = {name: SITES[kind] + 0.31 * np.array(v) for name, v in (("+y", (1, 0)), ("+x", (0, 1)))}
    return sites, moves


REFERENCE = np.zeros(COUNTS.shape[:2], bool)
NY, NX = COUNTS.shape[:2]
REFERENCE[NY // 6 : NY // 2, NX // 6 : NX // 2] = True
PEROVSKITE = any(kind.startswith("Ti") for kind in SITES)
MEASURED_SITES, ALTERNATIVES = cage_alternatives() if PEROVSKITE else (SITES, None)
INFLUENCE = template_influence(
    COUNTS,
    MEASURED_SITES,
    sigma=SIGMA,
    alternatives=ALTERNATIVES,
    detector_region=DISK,
    scan_region=REFERENCE,
    radius=RADIUS,
)
for kind in INFLUENCE["kind"].values:
    one = INFLUENCE.sel(kind=kind)
    print(f"{kind}: slope {float(one.slope):.2f} +- {float(one.slope_error):.2f} ({int(one.columns)} columns)")


# %%
@styled
def overview():
    """Offsets and significance of every true template, and the verdicts."""
    figure = new_figure(2.45 * len(WANTED) + 0.4, 8.6)
    above, middle, below = figure.subfigures(3, 1, height_ratios=(1.35, 1, 1.45))
    angle = COUNTS.attrs.get("semi_angle_mrad")
    rows = [part.subplots(1, len(WANTED), squeeze=False)[0] for part in (above, middle)]
    for n, kind in enumerate(WANTED):
        plot_offsets(TRUE.offsets, kind, axes=rows[0][n])
        plot_significance(TRUE.null, kind, semi_angle=angle, axes=rows[1][n])
        for axes, drawn in ((rows[0][n], rows[0][n].collections), (rows[1][n], rows[1][n].images)):
            # One label on either side is enough.
            if n > 0:
                axes.set_ylabel("")
            if n < len(WANTED) - 1:
                drawn[0].colorbar.set_label("")
    left, right = below.subplots(1, 2, sharey=True)
    for axes, (method, own) in zip((left, right), HELD_OUT.items(), strict=True):
        plot_verdicts(by_set(own), VERDICTS, axes=axes)
        axes.set_title({"pearson": "Pearson masks", "ridge": "Ridge masks"}[method])
    right.get_legend().remove()
    right.set_ylabel("")
    return figure


NUMBERS = {
    "scan": SCAN.name,
    "cell_angstrom": list(CELL),
    "draws": DRAWS,
    "verdicts": {name: dict(zip(WANTED, VERDICTS.sel(set=name).values.tolist(), strict=True)) for name in SETS},
    "held_out_R": {
        method: {
            name: {kind: round(float(by_set(own).sel(set=name, template=kind)), 4) for kind in WANTED} for name in SETS
        }
        for method, own in HELD_OUT.items()
    },
    "offsets": {
        kind: {
            name: round(float(TRUE.table[name].sel(template=kind)), 4)
            for name in (
                "rank",
                "image_rank",
                "own_rank",
                "margin",
                "own_margin",
                "together_margin",
                "margin_error",
                "p",
            )
        }
        for kind in WANTED
    },
    "sentences": {
        "true sites": TRUE.sentences,
        "moved sites": {kind: found.sentences[kind] for kind, found in MOVED.items()},
        "random sites": RANDOM.sentences,
    },
    "moved_by_angstrom": {kind: offset.tolist() for kind, offset in OFFSETS.items()},
    "influence": {
        str(kind): {
            name: round(float(INFLUENCE[name].sel(kind=kind)), 4) for name in ("slope", "slope_error", "columns")
        }
        for kind in INFLUENCE["kind"].values
    },
}
known_scan.write(ARGUMENTS.out, "evidence", {"verdicts": overview(), "influence": plot_influence(INFLUENCE)}, NUMBERS)
