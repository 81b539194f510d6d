# %% [markdown]
# # Defects, seen with masks from a perfect unit cell (Fig. 4)
#
# A scan of LiFePO4 [001] with three defects: an oxygen column that is not there, a lithium column of which every other
# atom is iron, and a column of iron in a void of the structure. Masks of each kind of column are derived from **one
# perfect unit cell** and read on the whole scan, so they know nothing of the defects.
#
# Then every column is compared, in the image of its own kind, with the intact columns that the crystal makes equal to
# it. Evidence for a defect is a deviation far beyond the scatter of those, which holds counting noise and thermal
# disorder alike. A second scan, with columns of known partial occupancy, tells how small a deviation can be seen.
#
#     python workflows/defects.py defects.zarr --partial partial.zarr --out results
#     python workflows/defects.py --out results        # simulates both scans first (needs abTEM)

# %%
"""Vacancy, antisite and interstitial column with masks from one perfect unit cell; the limit of detection (Fig. 4)."""

from __future__ import annotations

from typing import Any

import known_scan
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

import tdm_dask as tdm
from tdm_dask.detector.conventional_masks import parse_detector
from tdm_dask.evaluation.occupancy import detection_limit, equivalent_columns, equivalent_places, occupancy_table
from tdm_dask.plot.drawing import bare, draw_image, draw_mask
from tdm_dask.plot.occupancy import plot_detection, plot_occupancy
from tdm_dask.plot.style import COLOURS, new_figure, styled
from tdm_dask.simulation.defects import fig4_defects, nearest_image, partial_columns
from tdm_dask.simulation.multislice import PRESETS, simulate
from tdm_dask.simulation.specimens import lifepo4

SIGMA = 0.35  # angstrom, of the Gaussian templates
REGION = 24.0  # mrad, of the detector that masks may use
RADIUS = 0.6  # angstrom, over which the response of a column is fitted
APART = 3.0  # angstrom: columns nearer than this to a defect are not counted among the intact
OCCUPANCIES = (0.0, 0.25, 0.5, 0.75, 0.9)
KINDS = ("O", "Li")  # of which columns lack atoms in the second scan
COLOUR_OF = {"vacancy": COLOURS[5], "antisite": COLOURS[1], "interstitial": COLOURS[2]}

ARGUMENTS = known_scan.arguments(
    __doc__, partial={"help": "a store with columns of partial occupancy, as this script simulates it"}
)


# %% [markdown]
# ## The scans
#
# As thick and at the same dose as the scan that comes with this project: 40 nm, 20 000 electrons per probe position,
# one frozen-phonon configuration. What was simulated before is opened again.


# %%
def simulated(name: str, seed: int) -> str:
    """Simulate one of the two scans into the folder of the results, unless it is there."""
    options: dict[str, Any] = dict(PRESETS["small"]) | {"soft_edge": 0.0, "max_angle": 62.0}
    specimen = lifepo4(size=(20.0, 24.0), thickness=400.0)
    occupancies = OCCUPANCIES
    if ARGUMENTS.quick:
        options |= {"potential_sampling": 0.2, "max_angle": 32.0, "scan_step": 0.33, "electrons_per_probe": 100_000.0}
        specimen = lifepo4(size=(20.0, 18.0), thickness=100.0)
        occupancies = (0.0, 0.5)
    if name == "defects":
        specimen = fig4_defects(specimen)
    else:
        # Of the two environments of oxygen, that of the vacancy in the other scan.
        groups = equivalent_columns(specimen.sites, specimen.cell)
        for kind in KINDS:
            alike = np.flatnonzero(groups[kind] == 0)
            specimen = partial_columns(specimen, kind, occupancies, members=alike.tolist())
    path = ARGUMENTS.out / f"{name}.zarr"
    simulate(specimen, path, seed=seed, **options)
    return str(path)


SCAN = known_scan.load(ARGUMENTS.data or simulated("defects", 11), ARGUMENTS.out, sites=ARGUMENTS.sites)
COUNTS, TRUTH = SCAN.counts, SCAN.meta
CELL, REPEAT = np.array(TRUTH["cell"]), np.array(TRUTH["repeat"][:2])
SUSPECTS = TRUTH["defects"]
print(f"{SCAN.name}: {COUNTS.shape}, {SCAN.thickness_nm} nm")
for suspect in SUSPECTS:
    print(f"  {suspect['defect']}, {suspect['kind']} at {suspect['site']}: {suspect['content'] or 'empty'}")

# %% [markdown]
# ## Masks from one perfect unit cell
#
# The unit cell furthest from every defect, within the scan.


# %%
def perfect_cell(counts: xr.DataArray) -> dict[str, slice]:
    """Probe positions of the unit cell that is furthest from every defect."""
    y, x = counts["y"].values, counts["x"].values
    ny, nx = (int(np.ceil(r / np.diff(a).mean() - 1e-6)) for r, a in zip(REPEAT, (y, x), strict=True))
    defects = np.array([suspect["site"] for suspect in SUSPECTS])
    best, chosen = -1.0, (0, 0)
    for i in range(0, len(y) - ny + 1, 2):
        for j in range(0, len(x) - nx + 1, 2):
            corners = np.array([(b, a) for b in y[[i, i + ny - 1]] for a in x[[j, j + nx - 1]]])
            centre = corners.mean(0)
            # Distance from the rectangle of the cell to a defect, over the periodic border.
            beyond = np.maximum(np.abs(nearest_image(defects - centre, CELL)) - np.ptp(corners, axis=0) / 2, 0)
            distance = float(np.hypot(*beyond.T).min())
            if distance > best:
                best, chosen = distance, (i, j)
    print(f"the perfect unit cell is {best:.1f} angstrom from the nearest defect")
    return {"y": slice(chosen[0], chosen[0] + ny), "x": slice(chosen[1], chosen[1] + nx)}


REFERENCE = perfect_cell(COUNTS)
TEMPLATES = tdm.gaussian_template(COUNTS, SCAN.sites, sigma=SIGMA, all_name="all")
WITHIN = tdm.disk(COUNTS, REGION) > 0.5
MASKS = tdm.derive_mask(COUNTS, TEMPLATES, detector_region=WITHIN, scan_region=REFERENCE).compute()
IMAGES = tdm.apply_mask(COUNTS, MASKS, normalisation="standardised").compute()
ABF_MASK = parse_detector("abf:11:23.5", COUNTS)
ABF = tdm.apply_mask(COUNTS, ABF_MASK).compute()

# %% [markdown]
# ## Every column against its equals
#
# The interstitial column is compared with the empty places that the crystal makes equal to its own.


# %%
def empty_places(suspects: list[dict[str, Any]]) -> np.ndarray | None:
    """Places of the perfect crystal that are equal to that of the interstitial column, itself first."""
    added = [np.array(s["site"]) for s in suspects if s["defect"] == "interstitial"]
    if not added:
        return None
    return equivalent_places(TRUTH["sites"], CELL, added[0])


TABLE = occupancy_table(
    IMAGES, TRUTH["sites"], CELL, suspects=SUSPECTS, empty=empty_places(SUSPECTS), radius=RADIUS, apart=APART
)
found = TABLE.isel(column=~TABLE["state"].isin(["intact", "near"]).values)
for n in range(found.sizes["column"]):
    row = found.isel(column=n)
    print(
        f"{row.state.item():>13} {row.kind.item():>3}: {row.deviation.item():+8.2f} over {row.scatter.item():.2f} = "
        f"{row.ratio.item():+.1f}"
    )


# %% [markdown]
# An interstitial column is told from empty voids, but is it also more than what intact columns of its kind scatter?
# The same deviation over their scatter:


# %%
def over_columns(row: xr.Dataset) -> float:
    """Deviation over the scatter of the intact columns of the kind, instead of that of empty places."""
    intact = TABLE.isel(column=((TABLE.kind == row.kind) & (TABLE.state == "intact") & (TABLE.group >= 0)).values)
    return float(row.deviation) / float(intact.response.std(ddof=1))


for n in range(found.sizes["column"]):
    row = found.isel(column=n)
    if row.group < 0:
        kind = row.kind.item()
        print(f"{row.state.item():>13} {kind:>3}: {over_columns(row):+.1f} over the scatter of intact columns")

# %% [markdown]
# ## Ridge masks
#
# They tell kinds of column apart in a perfect crystal, and cost some of the signal over the scatter: the same defects
# with masks of both methods, derived in a perfect corner of several unit cells, for one cell is too little to choose
# lambda in.


# %%
def perfect_corner(counts: xr.DataArray, start: dict[str, slice]) -> dict[str, slice]:
    """The perfect unit cell, widened to every side as long as it stays three angstrom from every defect."""
    y, x = counts["y"].values, counts["x"].values
    edges = [start["y"].start, start["y"].stop, start["x"].start, start["x"].stop]
    defects = np.array([suspect["site"] for suspect in SUSPECTS])

    def is_perfect(y0: int, y1: int, x0: int, x1: int) -> bool:
        if y0 < 0 or x0 < 0 or y1 > len(y) or x1 > len(x):
            return False
        low, high = np.array([y[y0], x[x0]]), np.array([y[y1 - 1], x[x1 - 1]])
        beyond = np.maximum(np.abs(nearest_image(defects - (low + high) / 2, CELL)) - (high - low) / 2, 0)
        return bool(np.hypot(*beyond.T).min() >= APART)

    grown = True
    while grown:
        grown = False
        for side, step in enumerate((-1, 1, -1, 1)):
            wider = [edge + step * (n == side) for n, edge in enumerate(edges)]
            if is_perfect(*wider):
                edges, grown = wider, True
    return {"y": slice(edges[0], edges[1]), "x": slice(edges[2], edges[3])}


CORNER = perfect_corner(COUNTS, REFERENCE)
RIDGE = {}
for method in ("pearson", "ridge"):
    masks = tdm.derive_mask(COUNTS, TEMPLATES, method=method, detector_region=WITHIN, scan_region=CORNER).compute()
    images = tdm.apply_mask(COUNTS, masks, normalisation="standardised").compute()
    table = occupancy_table(
        images, TRUTH["sites"], CELL, suspects=SUSPECTS, empty=empty_places(SUSPECTS), radius=RADIUS, apart=APART
    )
    rows = table.isel(column=~table["state"].isin(["intact", "near"]).values)
    RIDGE[method] = dict(zip(rows.state.values.tolist(), rows.ratio.values.tolist(), strict=True))
    words = ", ".join(f"{state} {ratio:+.1f}" for state, ratio in RIDGE[method].items())
    print(f"{method}, from the corner: {words}")

# %% [markdown]
# At 40 nm, and at the lambda that cross-validation chooses, ridge masks show the interstitial more strongly than
# Pearson masks, the vacancy and the antisite less: what they take away from the other columns, they take from the
# signal too, and the counting noise and displacements by heat stay. To find a defect, a Pearson mask is the better
# filter; to say of which kind it is, a ridge mask.
#
# ## How little is still seen
#
# The masks of the first scan, read on the second.

# %%
PARTIAL = known_scan.load(ARGUMENTS.partial or simulated("partial", 13), ARGUMENTS.out)
CARRIED = MASKS.assign_coords({dim: PARTIAL.counts[dim] for dim in ("ky", "kx")})
PARTIAL_IMAGES = tdm.apply_mask(PARTIAL.counts, CARRIED, normalisation="standardised").compute()
PARTIAL_TABLE = occupancy_table(
    PARTIAL_IMAGES,
    PARTIAL.meta["sites"],
    PARTIAL.meta["cell"],
    suspects=PARTIAL.meta["defects"],
    radius=RADIUS,
    apart=APART,
)
CURVES, LIMITS = {}, {}
for kind in KINDS:
    chosen = (PARTIAL_TABLE.kind == kind) & (PARTIAL_TABLE.state == "vacancy")
    rows = PARTIAL_TABLE.isel(column=chosen.values).sortby("occupancy")
    CURVES[kind] = (rows.occupancy.values, rows.ratio.values)
    LIMITS[kind] = detection_limit(*CURVES[kind])
    pairs = ", ".join(f"{o:.2f}: {z:+.1f}" for o, z in zip(*CURVES[kind], strict=True))
    limit = f"beyond three times the scatter below {LIMITS[kind]:.2f}" if np.isfinite(LIMITS[kind]) else "never told"
    print(f"{kind}: deviation over scatter by occupancy {pairs}; {limit}")

# %% [markdown]
# At 40 nm and 20 000 electrons per probe position an oxygen column is told from intact ones when it lacks about a
# tenth of its atoms (each point has the scatter of the intact columns, one unit). A lithium column is not told from
# them even when it is empty; a mask is a matched filter, and the surroundings of a light column say more than the
# column itself. A heavier atom in its place does show, as the antisite of the first scan.
#
# ## The figure


# %%
@styled
def figure() -> Figure:
    """Images with the defects circled and the reference in a box, their masks, all columns, and the limit."""
    names = ["ABF", *(str(name) for name in IMAGES.template.values[::-1])]
    whole = new_figure(11.0, 6.6)
    above, below = whole.subfigures(2, 1, height_ratios=[1.25, 1])
    height, width = (float(np.ptp(COUNTS[dim].values)) for dim in ("y", "x"))
    grid = above.subplots(2, len(names), gridspec_kw={"height_ratios": [height / width, 0.75]})
    for n, (name, image_axes, mask_axes) in enumerate(zip(names, *grid, strict=True)):
        image = ABF if name == "ABF" else IMAGES.sel(template=name)
        draw_image(image_axes, image, bar=n == 0)
        image_axes.set_title(f"{'abcdef'[n]}  {name}")
        for suspect in SUSPECTS:
            y, x = suspect["site"]
            circle = {"fill": False, "edgecolor": COLOUR_OF.get(suspect["defect"], COLOURS[0]), "linewidth": 1.2}
            image_axes.add_patch(Circle((x, y), 1.15, **circle))
        if n == 0:
            y, x = (COUNTS[dim].values[REFERENCE[dim]] for dim in ("y", "x"))
            box = Rectangle((x[0], y[0]), np.ptp(x), np.ptp(y), fill=False, edgecolor=COLOURS[4], linewidth=1.2)
            image_axes.add_patch(box)
        draw_mask(mask_axes, ABF_MASK if name == "ABF" else MASKS.sel(template=name), 23.5)
        bare(mask_axes)
        mask_axes.set_xlim(-27, 27)
        mask_axes.set_ylim(27, -27)
    left, right = below.subplots(1, 2, gridspec_kw={"width_ratios": [1.6, 1]})
    plot_occupancy(TABLE, axes=left)
    left.set_title("g  Every column in the image of its kind")
    plot_detection(CURVES, limits=LIMITS, axes=right)
    right.set_title("h  Columns that lack atoms")
    return whole


def rows_of(table: xr.Dataset) -> list[dict[str, Any]]:
    """The table as rows."""
    names = ("kind", "group", "state", "y", "x", "occupancy", "response", "deviation", "scatter", "ratio")
    return [{name: table[name].values[n].item() for name in names} for n in range(table.sizes["column"])]


NUMBERS = {
    "scan": SCAN.name,
    "thickness_nm": SCAN.thickness_nm,
    "dose": TRUTH["dose"],
    "reference": {dim: [REFERENCE[dim].start, REFERENCE[dim].stop] for dim in ("y", "x")},
    "defects": rows_of(found),
    "interstitial_over_intact_columns": [
        over_columns(found.isel(column=n)) for n in range(found.sizes["column"]) if found.group.values[n] < 0
    ],
    "from_a_corner": {"region": {d: [r.start, r.stop] for d, r in CORNER.items()}, "ratio": RIDGE},
    "detection": {
        kind: {
            "occupancy": CURVES[kind][0],
            "ratio": CURVES[kind][1],
            "limit": LIMITS[kind] if np.isfinite(LIMITS[kind]) else None,
        }
        for kind in KINDS
    },
    "columns": rows_of(TABLE),
    "partial_columns": rows_of(PARTIAL_TABLE),
}
known_scan.write(ARGUMENTS.out, "defects", {"fig4": figure()}, NUMBERS)
