# %% [markdown]
# # A 90-degree domain wall in PbTiO3 (Fig. 5)
#
# Masks are derived from one ninth of the scan, a reference region of 2 x 2 unit cells in one domain. Applied to the
# whole scan they image the Pb, Ti and O columns of both domains, and where each Ti lies against its oxygen cage is a
# map of the polarisation.
#
# **The trap.** A displacement measured in a template-derived image can be a copy of one that the template contained.
# So here
#
# - no template knows a displacement: every Ti is put at the centre of its oxygen cage, and every fit starts from a site
#   of the undisplaced lattice;
# - masks are averaged under 4mm, the symmetry of the projected crystal without displacements, so that they cannot
#   prefer one of its equivalent directions;
# - the map is scored outside the reference region, above all in the *other* domain, and the region is swapped between
#   the two domains;
# - the control is in the figure: the same measurement with every Ti of the template put on the wrong side.
#
#     python workflows/domain_wall.py pbtio3_100_39nm.npz --out results

# %%
"""Column positions and Ti displacements across a 90-degree domain wall in PbTiO3 (Fig. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import known_scan
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from scipy.spatial import cKDTree

import tdm_dask as tdm
from tdm_dask.columns.displacement import displacements
from tdm_dask.columns.finding import find_columns
from tdm_dask.columns.lattice import Lattice
from tdm_dask.columns.refinement import refine_columns, refined_sites
from tdm_dask.detector.conventional_masks import parse_detector
from tdm_dask.masks.symmetry import symmetrise_mask
from tdm_dask.plot.displacements import plot_displacements
from tdm_dask.plot.drawing import bare, draw_image, draw_mask, draw_sites
from tdm_dask.plot.style import COLOURS, INK, new_figure, styled

SIGMA = 0.35  # angstrom, of the Gaussians of templates
REGION = 24.0  # mrad, of the detector that masks may use
RADIUS = 1.4  # angstrom, of the windows of fits: half the distance between oxygen columns
OFFSET = 0.31  # angstrom, by which the control puts Ti on the wrong side
KINDS = ("Pb", "Ti", "O")
CELLS = 2  # the reference region is CELLS x CELLS unit cells
# The first cell (row, column) of the reference region, cells counted from the first one inside the scan. Each lies in
# the middle of its domain, not at the edge of the scan.
FIRST_CELLS = {"first domain": (1, 1), "second domain": (3, 3)}

ARGUMENTS = known_scan.arguments(
    __doc__,
    first_cells={
        "type": lambda text: tuple(int(n) for n in text.split(",")),
        "nargs": 2,
        "metavar": "ROW,COLUMN",
        "help": "first unit cell of the reference region in each domain (default: 1,1 3,3)",
    },
)
if ARGUMENTS.data is None:
    raise SystemExit("This workflow needs a scan of a domain wall in PbTiO3: an archive, or what simulate.py wrote.")
SCAN = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
COUNTS = SCAN.counts
if ARGUMENTS.quick:
    COUNTS = tdm.bin(COUNTS, detector=2).compute()
if ARGUMENTS.first_cells:
    FIRST_CELLS = dict(zip(FIRST_CELLS, ARGUMENTS.first_cells, strict=True))
print(f"{SCAN.name}: {COUNTS.shape}, {SCAN.thickness_nm} nm")

# %% [markdown]
# ## What a user knows: the lattice of Pb, and the structure without displacements
#
# The Pb columns stand out of the virtual ADF image. The lattice fitted to them, with the motif of a cubic perovskite,
# gives sites for Ti and O that no knowledge of the displacements went into (one read).

# %%
CONVENTIONAL = xr.concat(
    [parse_detector(text, COUNTS) for text in ("adf:30:60", "abf:11:23.5")], "template", combine_attrs="drop"
).assign_coords(template=["ADF", "ABF"])
CONVENTIONAL = tdm.apply_mask(COUNTS, CONVENTIONAL).compute()
ADF = CONVENTIONAL.sel(template="ADF")
# The brightest columns are Pb; the fainter ones, Ti, are displaced and are left out of the fit.
PB = Lattice.from_image(ADF, separation=2.5).with_motif({"Pb": [(0, 0)]}).fit(find_columns(ADF, separation=2.5))
PEROVSKITE = PB.with_motif({"Pb": [(0, 0)], "Ti": [(0.5, 0.5)], "O": [(0, 0.5), (0.5, 0)]})
print(PEROVSKITE)
# Half a step more than the scan: there a column is still seen.
UNDISPLACED = PEROVSKITE.sites(COUNTS, margin=0.16)
AROUND = PEROVSKITE.sites(COUNTS, margin=3 * SIGMA)
CELL = PEROVSKITE.fractions(UNDISPLACED["Ti"]) - 0.5
CORNER = np.rint(CELL.min(0))


def in_region(positions: np.ndarray, first: tuple[int, int]) -> np.ndarray:
    """Which positions lie in the reference region."""
    fraction = PEROVSKITE.fractions(positions) - CORNER - first + 1e-9
    return ((fraction >= 0) & (fraction < CELLS)).all(1)


def region_of(first: tuple[int, int]) -> np.ndarray:
    """The probe positions of the reference region (y, x)."""
    y, x = np.meshgrid(COUNTS.y.values, COUNTS.x.values, indexing="ij")
    return in_region(np.column_stack([y.ravel(), x.ravel()]), first).reshape(y.shape)


# %% [markdown]
# ## Masks, images and positions, in two rounds
#
# The first round's templates are the undisplaced perovskite throughout. Its oxygen image shows where the oxygen columns
# are, and the second round's templates put oxygen there and Ti **at the centre of that measured cage**: still
# undisplaced against its cage, and no knowledge of the answer. Each round reads the counts twice, once to derive and
# once to image; both rounds' fits start from the undisplaced sites.


# %%
@dataclass(frozen=True)
class Measurement:
    """Masks and images of one reference region, refined columns, and the displacement of each Ti."""

    masks: xr.DataArray
    images: xr.DataArray
    sites: dict[str, np.ndarray]
    displacements: xr.Dataset


def measure(images: xr.DataArray, masks: xr.DataArray) -> Measurement:
    """Columns refined in the images of their kinds, from undisplaced sites."""
    columns = refine_columns(images, UNDISPLACED, radius=RADIUS)
    parts = {kind: columns.isel(column=columns.kind == kind) for kind in KINDS}
    moved = displacements(parts["Ti"], parts["O"], number=4, reach=0.75 * np.hypot(*PEROVSKITE.vectors[0]))
    return Measurement(masks, images, refined_sites(columns), moved)


def masks_and_images(sites: dict[str, np.ndarray], region: np.ndarray) -> tuple[xr.DataArray, xr.DataArray]:
    """Masks as derived and symmetrised ("Ti" and "Ti, 4mm"), and the images of them all: two reads."""
    kinds = {kind: sites[kind] for kind in KINDS}
    templates = [tdm.gaussian_template(COUNTS, kinds, sigma=SIGMA, all_name="all")]
    if "reversed Ti" in sites:
        templates.append(tdm.gaussian_template(COUNTS, {"reversed Ti": sites["reversed Ti"]}, sigma=SIGMA))
    disk = tdm.disk(COUNTS, REGION) > 0.5
    template = xr.concat(templates, "template", combine_attrs="drop")
    derived = tdm.derive_mask(COUNTS, template, detector_region=disk, scan_region=region).compute()
    symmetric = symmetrise_mask(derived, "4mm")
    symmetric = symmetric.assign_coords(template=[f"{name}, 4mm" for name in derived.template.values])
    masks = xr.concat([derived, symmetric], "template", combine_attrs="drop_conflicts")
    return masks, tdm.apply_mask(COUNTS, masks, normalisation="standardised").compute()


def named(array: xr.DataArray, ending: str, ti: str = "Ti") -> xr.DataArray:
    """The planes of Pb, Ti, O and all, named so, from masks as derived ("") or symmetrised (", 4mm")."""
    chosen = {"Pb": "Pb", "Ti": ti, "O": "O", "all": "all"}
    return array.sel(template=[name + ending for name in chosen.values()]).assign_coords(template=list(chosen))


def next_sites(found: Measurement) -> dict[str, np.ndarray]:
    """Sites of the next templates: oxygen where it was seen, Ti at the centre of its cage, the rest undisplaced."""
    oxygen = np.where(np.isfinite(found.sites["O"]), found.sites["O"], UNDISPLACED["O"])
    moved = found.displacements
    centres = found.sites["Ti"] - np.stack([moved.dy, moved.dx], axis=1)
    ti = np.where(np.isfinite(centres), centres, UNDISPLACED["Ti"])
    outside = {kind: AROUND[kind][cKDTree(UNDISPLACED[kind]).query(AROUND[kind])[0] > 0.1] for kind in KINDS}
    inside = {"Pb": UNDISPLACED["Pb"], "Ti": ti, "O": oxygen}
    return {kind: np.concatenate([inside[kind], outside[kind]]) for kind in KINDS}


METHODS = {  # name: (ending of the masks, template of Ti)
    "undisplaced, 4mm": (", 4mm", "Ti"),
    "undisplaced, as derived": ("", "Ti"),
    "reversed, 4mm": (", 4mm", "reversed Ti"),
    "reversed, as derived": ("", "reversed Ti"),
}


def both_rounds(first: tuple[int, int]) -> tuple[Measurement, dict[str, Measurement]]:
    """The first round, and the second with its controls."""
    region = region_of(first)
    masks, images = masks_and_images(AROUND, region)
    start = measure(named(images, ", 4mm"), named(masks, ", 4mm"))
    sites = next_sites(start)
    here = in_region(UNDISPLACED["Ti"], first)
    mean = np.array([np.nanmean(start.displacements[name].values[here]) for name in ("dy", "dx")])
    # The wrong side is the other side than the one that was just measured, whatever the truth.
    sites["reversed Ti"] = sites["Ti"] - OFFSET * mean / np.hypot(*mean)
    masks, images = masks_and_images(sites, region)
    return start, {name: measure(named(images, *how), named(masks, *how)) for name, how in METHODS.items()}


FOUND = {name: both_rounds(first) for name, first in FIRST_CELLS.items()}

# %% [markdown]
# ## The score
#
# Positions: distance between each refined column and the nearest true one of its kind, with the mean offset of all Pb
# columns (a rigid shift of the whole image against the file's origin) and without it.
#
# Displacements. **Scored** are all Ti columns
#
# 1. whose four oxygen-only neighbours all lie inside the scan,
# 2. that do not lie in the reference region, and
# 3. whose true displacement lies along an axis of the crystal: at the wall, where the four neighbours belong to both
#    domains, it turns, and "along the polar axis" has no meaning. Columns at the wall are counted apart.
#
# A displacement is right when axis and sign are, that is, within 45 degrees of the true one. The numbers say which of
# the scored columns lie in the other domain than the reference region, and which in its own.
#
# On the scan of 39 nm that comes with this project axis and sign are right in 17 of 17 scored columns and 4 of 4 at the
# wall, for both choices of domain. **The lengths are not**: about two thirds of the true 0.31 angstrom, presumably
# because an oxygen column lies 0.32 angstrom beside each Ti, on the side of the centre, and draws the peak that way.
# The reversed template with its mask as derived is copied: every column of its reference region comes out reversed.


# %%
def true_displacements() -> xr.Dataset | None:
    """Those of the true columns nearest to the undisplaced sites of Ti, NaN where there is no truth."""
    ti = SCAN.sites.get("Ti+O", SCAN.sites.get("Ti"))
    if ti is None or "O" not in SCAN.sites:
        return None
    every = displacements(ti, SCAN.sites["O"], number=4, reach=3.0)
    return every.isel(column=cKDTree(ti).query(UNDISPLACED["Ti"])[1])


def vectors(of: xr.Dataset) -> np.ndarray:
    return np.stack([of.dy.values, of.dx.values], axis=1)


TRUTH = true_displacements()


def position_errors(sites: dict[str, np.ndarray], first: tuple[int, int]) -> dict[str, Any]:
    """Root mean square distance of the columns of each kind from the truth, with and without the shift of Pb."""
    truth = {"Pb": SCAN.sites["Pb"], "Ti": SCAN.sites.get("Ti+O", SCAN.sites.get("Ti")), "O": SCAN.sites["O"]}
    away, outside = {}, {}
    for kind in KINDS:
        seen = sites[kind][np.isfinite(sites[kind]).all(1)]
        away[kind] = seen - truth[kind][cKDTree(truth[kind]).query(seen)[1]]
        outside[kind] = ~in_region(seen, first)
    rigid = away["Pb"].mean(0)
    numbers: dict[str, Any] = {"shift_of_Pb_angstrom": rigid}
    for kind, off in away.items():
        numbers[kind] = {
            "rms_angstrom": float(np.sqrt((off**2).sum(1).mean())),
            "rms_without_shift_angstrom": float(np.sqrt(((off - rigid) ** 2).sum(1).mean())),
            "rms_outside_region_angstrom": float(np.sqrt((off[outside[kind]] ** 2).sum(1).mean())),
            "columns": len(off),
            "not_fitted": len(sites[kind]) - len(off),
        }
    return numbers


def groups(first: tuple[int, int]) -> dict[str, np.ndarray]:
    """Which Ti columns are counted as what, settled by the truth and the region alone."""
    true = vectors(TRUTH)
    # Of the undisplaced sites, so that no result decides what is scored.
    near = cKDTree(UNDISPLACED["O"]).query(UNDISPLACED["Ti"], k=4)[0]
    complete = (near < 0.75 * np.hypot(*PEROVSKITE.vectors[0])).all(1) & np.isfinite(true).all(1)
    along = np.abs(true).max(1) > 0.98 * np.hypot(*true.T)
    here = in_region(UNDISPLACED["Ti"], first)
    axis = np.abs(true).argmax(1)
    own = axis == np.bincount(axis[here]).argmax()
    scored = complete & along & ~here
    return {
        "scored": scored,
        "other domain": scored & ~own,
        "own domain": scored & own,
        "wall": complete & ~along & ~here,
        "reference": complete & here,
    }


def right(found: xr.Dataset) -> np.ndarray:
    """Axis and sign: within 45 degrees of the truth."""
    measured, true = vectors(found), vectors(TRUTH)
    return (measured * true).sum(1) > np.cos(np.pi / 4) * np.hypot(*measured.T) * np.hypot(*true.T)


def score(found: xr.Dataset, first: tuple[int, int]) -> dict[str, Any]:
    """Right ones of all, and the mean displacement along the true one, of each group of columns."""
    measured, true = vectors(found), vectors(TRUTH)
    along = (measured * true).sum(1) / np.hypot(*true.T)
    numbers = {}
    for group, chosen in groups(first).items():
        seen = chosen & np.isfinite(along)
        numbers[group] = {
            "right": int(right(found)[chosen].sum()),
            "of": int(chosen.sum()),
            "mean_along_truth_angstrom": float(along[seen].mean()) if seen.any() else None,
            "scatter_angstrom": float(along[seen].std()) if seen.any() else None,
        }
    return numbers


NUMBERS: dict[str, Any] = {
    "scan": SCAN.name,
    "sigma_angstrom": SIGMA,
    "detector_region_mrad": REGION,
    "fit_radius_angstrom": RADIUS,
    "lattice": PEROVSKITE.to_dict(),
    "regions": {},
}
for name, first in FIRST_CELLS.items():
    start, second = FOUND[name]
    region: dict[str, Any] = {
        "first_cell": first,
        "part_of_scan": float(region_of(first).mean()),
        "displacements_angstrom": vectors(second["undisplaced, 4mm"].displacements),
        "ti_sites_angstrom": UNDISPLACED["Ti"],
    }
    if TRUTH is not None:
        region["true_displacement_along_itself_angstrom"] = float(
            np.hypot(*vectors(TRUTH)[groups(first)["scored"]].T).mean()
        )
        region["positions"] = {"first round": position_errors(start.sites, first)}
        region["positions"]["second round"] = position_errors(second["undisplaced, 4mm"].sites, first)
        region["directions"] = {"first round, undisplaced, 4mm": score(start.displacements, first)}
        region["directions"] |= {method: score(m.displacements, first) for method, m in second.items()}
        print(f"\nReference region in the {name}, {region['part_of_scan']:.3f} of the scan")
        for stage, numbers in region["positions"].items():
            text = ", ".join(f"{kind} {numbers[kind]['rms_angstrom']:.3f}" for kind in KINDS)
            print(f"  rms error of positions, {stage}: {text} angstrom")
        for method, numbers in region["directions"].items():
            text = ", ".join(f"{group} {n['right']}/{n['of']}" for group, n in numbers.items())
            print(f"  right directions, {method}: {text}")
    NUMBERS["regions"][name] = region

# %% [markdown]
# ## The figure


# %%
def draw_region(axes: Axes, first: tuple[int, int], colour: str = COLOURS[1]) -> None:
    """The outline of a reference region."""
    corners = np.array([(0, 0), (0, CELLS), (CELLS, CELLS), (CELLS, 0)]) + CORNER + first
    axes.add_patch(Polygon(PEROVSKITE.at(corners)[:, ::-1], fill=False, edgecolor=colour, linewidth=1.4))


def draw_map(axes: Axes, found: Measurement, first: tuple[int, int], title: str) -> None:
    """The vector map over the image of all columns, true displacements in white below, wrong ones ringed."""
    counted = ""
    known = np.isfinite(vectors(found.displacements)).all(1)
    if TRUTH is not None:
        at_the_same_place = TRUTH.assign(y=found.displacements.y, x=found.displacements.x).isel(column=known)
        plot_displacements(at_the_same_place, None, magnification=MAGNIFICATION, colour="white", axes=axes)
        y, x = UNDISPLACED["Ti"][known & ~right(found.displacements)].T
        axes.plot(x, y, "o", markersize=21, markerfacecolor="none", markeredgecolor="#D55E00", markeredgewidth=1.4)
        numbers = score(found.displacements, first)
        counted = ", ".join(f"{group} {numbers[group]['right']}/{numbers[group]['of']}" for group in SHOWN)
    image = found.images.sel(template="all")
    plot_displacements(found.displacements, image, magnification=MAGNIFICATION, axes=axes)
    axes.set_title(title)
    axes.text(0, 1.025, counted, transform=axes.transAxes, fontsize=7.5, color=INK)
    draw_region(axes, first)


SHOWN = ("other domain", "own domain", "wall")
MAGNIFICATION = 8.0
CAPTION = (
    "Displacements i-k: measured in colour, true in white; a ring marks a wrong axis or sign. Frames: the reference "
    "region, one ninth of the scan.\nCounts: right ones of all columns outside the region. "
    "k: the template has Ti on the wrong side of its cage, and its mask is used as derived."
)


@styled
def figure(name: str, other: str) -> Figure:
    """Fig. 5: images with masks of one reference region, the vector map, the swapped region and the control."""
    first = FIRST_CELLS[name]
    found = FOUND[name][1]["undisplaced, 4mm"]
    whole = new_figure(8.2, 8.0)
    above, below = whole.subfigures(2, 1, height_ratios=(4.5, 3.5))
    grid = above.subplots(2, 4)
    seen = {kind: places[np.isfinite(places).all(1)] for kind, places in found.sites.items()}
    for axes, kind in zip(grid[0, :2], ("ADF", "ABF"), strict=True):
        draw_image(axes, CONVENTIONAL.sel(template=kind), bar=kind == "ADF")
        axes.set_title(f"virtual {kind}")
        draw_region(axes, first)
    handles = draw_sites(grid[0, 1], CONVENTIONAL.sel(template="ABF"), seen)
    grid[0, 1].legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.06, 0.02), ncols=3, handletextpad=0.1, columnspacing=0.6
    )
    for axes, kind in zip(np.append(grid[0, 2:], grid[1, :2]), ("Pb", "Ti", "O", "all"), strict=True):
        draw_image(axes, found.images.sel(template=kind), bar=False)
        axes.set_title({"all": "all columns"}.get(kind, f"{kind} columns"))
    for axes, kind in zip(grid[1, 2:], ("Ti", "O"), strict=True):
        draw_mask(axes, found.masks.sel(template=kind), COUNTS.attrs["semi_angle_mrad"])
        axes.set(xlim=(-1.1 * REGION, 1.1 * REGION), ylim=(1.1 * REGION, -1.1 * REGION))
        bare(axes)
        axes.set_title(f"mask of {kind}, 4mm")
        edge = f"dashed: {COUNTS.attrs['semi_angle_mrad']:g} mrad"
        axes.text(0.5, -0.03, edge, transform=axes.transAxes, ha="center", va="top", fontsize=7.5)
    maps = (
        (name, "undisplaced, 4mm", "Ti against its four O"),
        (other, "undisplaced, 4mm", "region in the other domain"),
        (name, "reversed, as derived", "control: reversed template"),
    )
    bottom = below.subplots(1, 3)
    for axes, (region, method, title) in zip(bottom, maps, strict=True):
        draw_map(axes, FOUND[region][1][method], FIRST_CELLS[region], title)
    for letter, axes in zip("abcdefghijk", [*grid.flat, *bottom], strict=True):
        # Room for the counts above the maps.
        axes.set_title(f"{letter}  {axes.get_title(loc='left')}", fontsize=8.5, pad=17 if letter in "ijk" else 4)
    below.supxlabel(CAPTION, fontsize=7.5, x=0.01, ha="left")
    return whole


NAME, OTHER = FIRST_CELLS
known_scan.write(ARGUMENTS.out, "domain_wall", {"figure": figure(NAME, OTHER)}, NUMBERS)
