# %% [markdown]
# # Defocus and thickness: what each method makes of the columns (SI9-SI14)
#
# A scan of LiFePO4 [001] at 40 nm is simulated at defoci of -6 to 6 nm (positive: underfocus), and at zero defocus at
# thicknesses of 20 to 90 nm. Of every scan the same images are made, as if it were the only one:
#
# - the **inverted ABF** image (11 to 23.5 mrad) and **iCoM**, which are meant to show every column bright;
# - images of **all columns** and of **each kind** by template-derived masks within the bright-field disk, Pearson (the
#   paper's) and ridge, both derived from that scan.
#
# Templates need sites. Here they are the true ones; in an experiment they come from an image, which must show columns.
#
#     python workflows/series.py --out DIR [--stores DIR]
#
# Scans that `--stores` holds already are not simulated again. All of them take about four minutes of one core.

# %%
"""Column contrast and cross-talk of ABF, iCoM and template-derived masks against defocus and thickness (SI9-SI14)."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import known_scan
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.spatial import cKDTree

import tdm_dask as tdm
from tdm_dask.evaluation.cross_talk import correlations, gap_contrast
from tdm_dask.plot.drawing import draw_sites
from tdm_dask.plot.series import plot_image_series, plot_series
from tdm_dask.plot.style import COLOURS, INK, MARKERS, figure_of, new_figure, styled
from tdm_dask.simulation.specimens import lifepo4


def arguments() -> argparse.Namespace:
    """What the command line asks for; in a notebook, the defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of figures and numbers")
    parser.add_argument("--stores", type=Path, help="folder of the simulated scans (default: that of --out)")
    parser.add_argument(
        "--quick", action="store_true", help="two defoci, two thicknesses, coarsely, to see that it runs"
    )
    return parser.parse_args(known_scan.command_line())


ARGUMENTS = arguments()
warnings.filterwarnings("ignore", message=".*sites lie more than.*")  # columns around the scan are listed too
STORES = ARGUMENTS.stores or ARGUMENTS.out

# %% [markdown]
# ## The scans
#
# Each series is one run: all defoci are seen by the same atoms, all thicknesses are depths of one specimen. The two
# series have phonon displacements of their own, so that the scan they have in common (zero defocus, 40 nm) is there
# twice, by other atoms and other electrons. One configuration of frozen phonons stands for the many that an electron
# beam sees: a probe averages over the atoms along the column, and the scan over columns.

# %%
if ARGUMENTS.quick:
    DEFOCI, THICKNESSES, REFERENCE = [0.0, 6.0], [10.0, 20.0], 20.0  # nm
    SIZE, SCANNED, CONDITIONS = (10.0, 10.0), (10.332, 12.02), {"potential_sampling": 0.24, "scan_step": 0.4}
else:
    DEFOCI, THICKNESSES, REFERENCE = np.arange(-6.0, 6.1, 2.0).tolist(), np.arange(20.0, 91.0, 10.0).tolist(), 40.0
    SIZE, SCANNED, CONDITIONS = (20.0, 18.0), (20.664, 12.02), {"potential_sampling": 0.126, "scan_step": 0.3225}
CONDITIONS |= {"frozen_phonons": 1, "electrons_per_probe": 20_000.0, "seed": 31}
CONDITIONS["max_angle"] = 30.0 if ARGUMENTS.quick else 64.2
SEMI_ANGLE = 23.5  # mrad


def simulated() -> tuple[list[xr.DataArray], list[xr.DataArray]]:
    """The scans against defocus, and those against thickness; those that are there are opened."""
    STORES.mkdir(parents=True, exist_ok=True)
    common = {"semi_angle": SEMI_ANGLE, "scan_extent": SCANNED, **CONDITIONS}
    started = time.process_time()
    focus = tdm.simulate(
        lifepo4(size=SIZE, thickness=f"{REFERENCE} nm"),
        STORES / "focus.zarr",
        defocus=[f"{d} nm" for d in DEFOCI],
        **common,
    )
    thickness = tdm.simulate(
        lifepo4(size=SIZE, thickness=f"{max(THICKNESSES)} nm"),
        STORES / "thickness.zarr",
        thickness=[f"{t} nm" for t in THICKNESSES],
        **common,
    )
    print(f"{time.process_time() - started:.0f} s of this process's cores to have the scans")
    return focus, thickness


FOCUS, THICKNESS = simulated()

# %% [markdown]
# ## What is measured of a scan
#
# Three reads of the counts: for the ABF image, for the centre of mass, and for a proxy of the bright-field disk, from
# which all masks and images come.
#
# - **contrast over the gaps** of a kind, in an image of all columns: the mean of the image at the columns of the kind,
#   less its mean in the gaps (the tenth of the scan that is furthest from any column), over the standard deviation of
#   the image. Negative: the columns are darker than the gaps.
# - **contrast to other columns**, in the image of a kind: its mean at the kind's own columns, less that at all others,
#   over the scatter of the others (`site_contrast`).
# - **R**, the correlation of an image with its template, and the **excess**, the largest difference between R and G
#   (template with template) of any image with the template of another kind: cross-talk. Both are held out: masks from
#   one half of the scan, read on the other, the mean of four folds.
# - **R with the mask of the reference**: images by the masks of the scan at zero defocus and 40 nm instead, applied to
#   this scan's normalised counts; and the **similarity** of each mask with that one, their correlation in the disk.
#
# The reference is that of the *other* series, so that no mask meets itself: where the conditions are the same, what is
# missing to 1 is due to other phonons and electrons.
#
# In a perfect crystal a mask reproduces almost any template with the period of the lattice, so that a high R is no
# evidence of a column. One control goes with it: the Li template, moved to the largest gaps of the crystal.

# %%
SIGMA = 0.35  # angstrom, of the Gaussian templates
REGION = 24.0  # mrad, of the detector that masks may use: the bright-field disk
ABF_ANGLES = (11.0, SEMI_ANGLE)  # mrad, the paper's
HIGH_PASS = 15.0  # angstrom, of iCoM: longer than any period of the crystal
ALL, MOVED = "all", "Li template moved to gaps"
ABF, ICOM, PEARSON, RIDGE = METHODS = ("inverted ABF", "iCoM", "TDM, Pearson", "TDM, ridge")
MASKS: dict[str, dict[str, Any]] = {PEARSON: {"method": "pearson"}, RIDGE: {"method": "ridge", "regularisation": 0.05}}

# Of all scans: they are of one crystal, at the same place.
TRUTH = json.loads(FOCUS[0].attrs["truth"])
CELL, REPEAT = tuple(TRUTH["cell"]), np.array(TRUTH["repeat"][:2])
SITES = known_scan.with_periodic_images(TRUTH["sites"], CELL, FOCUS[0])
KINDS = list(SITES)
COLUMNS = cKDTree(np.concatenate(list(SITES.values())))


def moved_to_gaps() -> np.ndarray:
    """Sites (y, x) in angstrom: those of Li, all shifted alike, as far from any column as the crystal allows."""
    shifts = np.stack(np.meshgrid(*(np.arange(40) / 40 for _ in REPEAT), indexing="ij"), -1).reshape(-1, 2) * REPEAT
    # Places outside of where columns are known are at an infinite distance, and do not count.
    distance, _ = COLUMNS.query(SITES["Li"][:, None] + shifts, distance_upper_bound=3.0)
    places = np.array(TRUTH["sites"]["Li"]) + shifts[distance.min(0).argmax()]
    return known_scan.with_periodic_images({MOVED: places}, CELL, FOCUS[0])[MOVED]


EVERY_SITE = SITES | {MOVED: moved_to_gaps()}


def near(counts: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The counts that masks may use, in one read, and the disk on their detector."""
    proxy = tdm.proxy(counts, detector_region=tdm.disk(counts, REGION) > 0.5)
    return proxy, tdm.disk(proxy, REGION) > 0.5


def templates_of(counts: xr.DataArray) -> xr.DataArray:
    """Gaussians on every kind, on all of them, and on the moved sites."""
    true = tdm.gaussian_template(counts, SITES, sigma=SIGMA, all_name=ALL)
    moved = tdm.gaussian_template(counts, EVERY_SITE, sigma=SIGMA).sel(template=[MOVED])
    return xr.concat([true, moved], "template", combine_attrs="drop")


def masks_of(counts: xr.DataArray) -> dict[str, xr.DataArray]:
    """Masks of every kind and of all columns, Pearson and ridge; one read."""
    proxy, disk = near(counts)
    templates = templates_of(proxy).sel(template=[*KINDS, ALL])
    return {name: tdm.derive_mask(proxy, templates, detector_region=disk, **how) for name, how in MASKS.items()}


def diagonal(table: xr.DataArray) -> list[float]:
    """The R_ii of every kind."""
    return [float(table.sel(image=kind, template=kind)) for kind in KINDS]


def excess_of(table: xr.Dataset) -> xr.DataArray:
    """Largest abs(R - G) of the image of a kind with the template of another; of each fold where there are folds."""
    apart = abs(table["R"] - table["G"]).sel(image=KINDS, template=KINDS)
    return apart.where(apart["image"] != apart["template"]).max(("image", "template"))


def similarity(mask: xr.DataArray, reference: xr.DataArray, disk: xr.DataArray) -> list[float]:
    """Correlation of each mask with that of the reference, over the pixels of the disk."""
    pairs = zip(mask.values[:, disk.values], reference.values[:, disk.values], strict=True)
    return [float(np.corrcoef(one, other)[0, 1]) for one, other in pairs]


def conventional_images(counts: xr.DataArray) -> dict[str, xr.DataArray]:
    """Inverted ABF, and iCoM; a read each."""
    abf = tdm.apply_mask(counts, tdm.annulus(counts, *ABF_ANGLES)).compute()
    com = tdm.centre_of_mass(counts).compute()
    # The scan is of whole unit cells, so that it goes on at the opposite border.
    return {ABF: 1 - abf / abf.max(), ICOM: tdm.integrated_centre_of_mass(com, padding="none", high_pass=HIGH_PASS)}


def measured(counts: xr.DataArray, reference: dict[str, xr.DataArray]) -> xr.Dataset:
    """Images, masks and all that is measured of one scan; three reads of the counts."""
    together = conventional_images(counts)
    proxy, disk = near(counts)
    every = templates_of(proxy)
    templates = every.sel(template=[*KINDS, ALL])
    places = known_scan.inside(SITES, proxy)
    by_masks = []
    for name, how in MASKS.items():
        mask = tdm.derive_mask(proxy, templates, detector_region=disk, **how)
        image = tdm.apply_mask(proxy, mask, normalisation="standardised")
        together[name] = image.sel(template=ALL, drop=True)
        fixed = reference[name].assign_coords(mean=mask["mean"], std=mask["std"])
        by_fixed = tdm.apply_mask(proxy, fixed, normalisation="standardised")
        seen = tdm.cross_talk(image, templates)
        fold = tdm.held_out_cross_talk(proxy, every, detector_region=disk, **how)
        own, excess = fold["own"].sel(template=KINDS), excess_of(fold)
        values = {
            "R": ("kind", own.mean("fold").values),
            "R_scatter": ("kind", own.std("fold").values),
            "R_not_held_out": ("kind", diagonal(seen["R"])),
            "R_by_reference": ("kind", diagonal(correlations(by_fixed, templates))),
            "R_moved": float(fold["own"].sel(template=MOVED).mean()),
            "R_held_out_all": float(fold["own"].sel(template=ALL).mean()),
            "excess": float(excess.mean()),
            "excess_scatter": float(excess.std()),
            "excess_not_held_out": float(excess_of(seen)),
            "to_others": ("kind", diagonal(tdm.site_contrast(image, places).rename(kind="template"))),
            "similarity": ("template", similarity(mask, reference[name], disk)),
            "image": (image.dims, image.values),
            "mask": (mask.dims, mask.values),
        }
        by_masks.append(xr.Dataset(values, {"kind": KINDS, "template": [*KINDS, ALL]}))
    found = xr.concat(by_masks, xr.Variable("masks", list(MASKS)))
    positions = {dim: proxy[dim] for dim in ("y", "x")}
    images = np.stack([together[name].values for name in METHODS])
    images = xr.DataArray(images, {"template": list(METHODS), **positions}, ("template", "y", "x"))
    likeness = correlations(images.sel(template=[ABF, ICOM]), templates.sel(template=[ALL]))[:, 0]
    return found.assign_coords({dim: proxy[dim] for dim in ("y", "x", "ky", "kx")} | {"made_by": list(METHODS)}).assign(
        together=(("made_by", "y", "x"), images.values),
        over_gaps=(("made_by", "kind"), gap_contrast(images, SITES).values),
        R_all=("made_by", [*likeness.values, *found["R_held_out_all"].values]),
    )


# %% [markdown]
# ## Both series

# %%
# The scan that both have in common, by its place in each.
SAME = {"defocus": DEFOCI.index(0.0), "thickness": THICKNESSES.index(REFERENCE)}
REFERENCES = {"defocus": masks_of(THICKNESS[SAME["thickness"]]), "thickness": masks_of(FOCUS[SAME["defocus"]])}
DEPTHS = [json.loads(scan.attrs["truth"])["thickness_nm"] for scan in THICKNESS]
AXES = {
    "defocus": xr.Variable("defocus", DEFOCI, {"units": "nm", "long_name": "defocus"}),
    "thickness": xr.Variable("thickness", DEPTHS, {"units": "nm", "long_name": "thickness"}),
}
FOUND = {
    name: xr.concat([measured(scan, REFERENCES[name]) for scan in scans], AXES[name])
    for name, scans in (("defocus", FOCUS), ("thickness", THICKNESS))
}

# %% [markdown]
# ## What is found
#
# The paper says that template-derived masks are relatively insensitive to defocus and thickness, that their sensitivity
# to columns improves with a defocus of 6 nm either way, and that ABF needs a focus better than 3 nm. In numbers: the
# least over the largest value of every figure in a series; between which values a contrast keeps half of what it is at
# the reference; and what every figure gains from there to either end of the series.


# %%
def kept_between(values: list[float], curve: np.ndarray, start: int, level: float = 0.5) -> list[float | None] | None:
    """Where, on either side of `start`, a curve falls below `level` of what it is there, linearly between values.

    None for a side on which it does not, or instead of both where there is no contrast to keep.
    """
    if curve[start] <= 0:
        return None
    limits: list[float | None] = []
    for step, end in ((-1, 0), (1, len(values) - 1)):
        limits.append(None)
        for n in range(start, end, step):
            high, low = (float(curve[m] - level * curve[start]) for m in (n, n + step))
            if low < 0:
                limits[-1] = float(values[n] + (values[n + step] - values[n]) * high / (high - low))
                break
    return limits


def table(array: xr.DataArray, series: str = "") -> Any:
    """As JSON: labels of every dim but that of the series, over lists along it or over numbers."""
    dims = [dim for dim in array.dims if dim != series]
    if not dims:
        return array.values
    return {str(name): table(array.isel({dims[0]: n}), series) for n, name in enumerate(array[dims[0]].values)}


CURVES = [
    "over_gaps", "R_all", "R", "R_scatter", "R_not_held_out", "R_by_reference", "R_moved", "excess", "excess_scatter",
    "excess_not_held_out", "to_others", "similarity",
]  # fmt: skip
JUDGED = ["over_gaps", "R_all", "R", "excess", "to_others"]
NUMBERS: dict[str, Any] = {
    "specimen": TRUTH["description"],
    "positive_defocus_is": "underfocus",
    "conditions": {name: TRUTH[name] for name in ("dose", "frozen_phonons", "soft_edge_mrad", "cs", "grid", "seed")},
    "scan": dict(FOCUS[0].sizes),
    "sigma_angstrom": SIGMA,
    "region_mrad": REGION,
    "regularisation": MASKS[RIDGE]["regularisation"],
}
for series, found in FOUND.items():
    here, ends = found.isel({series: SAME[series]}), (found.isel({series: 0}), found.isel({series: -1}))
    at, contrast = found[series].values.tolist(), found["over_gaps"]
    NUMBERS[series] = {
        "nm": at,
        **{name: table(found[name], series) for name in CURVES},
        "least_over_largest": {name: table(found[name].min(series) / found[name].max(series)) for name in JUDGED},
        "gained_at_the_ends": {name: [table(end[name] - here[name]) for end in ends] for name in JUDGED},
        "half_of_the_contrast_is_kept_between_nm": {
            name: {kind: kept_between(at, contrast.sel(made_by=name, kind=kind).values, SAME[series]) for kind in KINDS}
            for name in METHODS
        },
    }
BOTH = [found.isel({series: SAME[series]}) for series, found in FOUND.items()]
NUMBERS["difference_by_other_phonons_and_electrons"] = {
    name: float(abs(BOTH[0][name] - BOTH[1][name]).max()) for name in JUDGED
}


def print_curves(series: str, found: xr.Dataset) -> None:
    print(f"\n{series} (nm)".ljust(48), *(f"{v:6.1f}" for v in found[series].values))
    for name in ("over_gaps", "R_all", "R", "R_by_reference", "R_moved", "excess", "to_others", "similarity"):
        curves = found[name].stack(line=[dim for dim in found[name].dims if dim != series]).transpose("line", series)
        for curve in curves:
            label = ", ".join(str(part) for part in np.atleast_1d(curve["line"].item()))
            print(f"{name}, {label}".ljust(47), *(f"{v:6.2f}" for v in curve.values))


for series, found in FOUND.items():
    print_curves(series, found)

# %% [markdown]
# At full size (seed 31):
#
# - **ABF needs the focus**: confirmed, to within about 4 nm. Li keeps half of its contrast from -3.5 to +4.6 nm, and
#   has none at either end; R with all columns falls from 0.81 to 0.13 (-6 nm) and 0.41 (+6 nm). Thickness changes it
#   little: R 0.76 to 0.81, Li 0.62 to 0.97 standard deviations above the gaps.
# - **iCoM** needs underfocus at 40 nm (R 0.44 at zero, 0.79 at +2 and +4 nm, below 0 from -2 nm on), and in focus shows
#   Li up to 45 nm.
# - **TDM of all columns is insensitive**: confirmed. Pearson R is 0.71 to 0.87 over defocus and 0.83 to 0.88 over
#   thickness; Li keeps 58 % and 73 % of its largest contrast, the other kinds more. The masks do change, down to a
#   similarity of 0.43 for all columns and 0.29 for one kind at -6 nm: they have to be derived again from each scan.
# - **TDM of one kind depends on thickness** below 40 nm: Pearson R of Li is 0.51 at 20 nm and 0.78 to 0.86 from 40 nm
#   on, of Fe 0.52 and 0.70 to 0.75.
# - **Sensitivity improves with defocus**: confirmed but for Li. Pearson R of Fe goes from 0.70 to 0.84 (-6 nm) and 0.80
#   (+6 nm), of P+O from 0.62 to 0.83 and 0.76, of O from 0.77 to 0.90 and 0.77, of Li from 0.86 to 0.80 and 0.84; the
#   excess from 0.55 to 0.21 and 0.37.
# - **Ridge masks** have an R of 0.88 to 0.99 and an excess of 0.02 to 0.16. But the moved template, where no atom is,
#   has an R of 0.90 to 0.98 too (Pearson: 0.53 to 0.78): that R stays high is no more evidence of columns than R is.
#
# Other phonons and electrons change R by up to 0.005, the contrast over the gaps by up to 0.06 (iCoM of Fe: 0.23).

# %% [markdown]
# ## Figures


# %%
LOOKS = {name: {"color": COLOURS[n], "marker": MARKERS[n]} for name, n in zip(METHODS, (0, 1, 3, 5), strict=True)}
PLAIN = {"marker": "", "linewidth": 0.9}
DASHED = {name: LOOKS[name] | PLAIN | {"linestyle": (0, (4, 2))} for name in MASKS}
DOTTED = {name: LOOKS[name] | PLAIN | {"linestyle": (0, (1, 1.2))} for name in MASKS}


@styled
def curves_figure(series: str) -> Figure:
    """A column for each kind and one for all together; a row for each figure of merit."""
    found = FOUND[series]
    mark = float(found[series][SAME[series]])
    figure = new_figure(2.05 * (len(KINDS) + 1), 8.2)
    grid = figure.subplots(4, len(KINDS) + 1)
    for row in grid:
        for axes in row[1:-1]:
            axes.sharey(row[0])
            axes.tick_params(labelleft=False)

    def draw(axes: Any, name: str, looks: dict[str, Any] = LOOKS, spread: str | None = None, **where: Any) -> None:
        error = None if spread is None else found[spread].sel(where)
        plot_series(found[name].sel(where), series, spread=error, mark=mark, style=looks, axes=axes)
        axes.set(ylabel="", xlabel=axes.get_xlabel() if axes in grid[-1] else "")

    for n, kind in enumerate(KINDS):
        draw(grid[0, n], "over_gaps", kind=kind)
        draw(grid[1, n], "R_by_reference", DASHED, kind=kind)
        if kind == "Li":
            draw(grid[1, n], "R_moved", DOTTED)
        draw(grid[1, n], "R", kind=kind, spread="R_scatter")
        draw(grid[2, n], "to_others", kind=kind)
        draw(grid[3, n], "similarity", template=kind)
        grid[0, n].set_title(kind)
    draw(grid[0, -1], "R_all")
    draw(grid[1, -1], "excess", spread="excess_scatter")
    draw(grid[3, -1], "similarity", template=ALL)
    for axes, title in zip(grid[:, -1], ("R, all columns", "excess", "", "similarity, all columns"), strict=True):
        axes.set_title(title)
    labels = ("contrast over the gaps (std)", "R, image with template", "contrast to others (scatter)", "similarity")
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    grid[1, -1].set_ylim(0, None)
    for axes in (grid[0, -1], grid[1, 0], *grid[3, [0, -1]]):
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.03)
    grid[2, 0].set_yscale("log" if (found["to_others"] > 0).all() else "symlog")
    limits = grid[2, 0].get_ylim()
    grid[2, 0].set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    grid[2, 0].set_yticks([], minor=True)
    grid[2, 0].set_ylim(limits)
    for axes in grid[0]:
        axes.axhline(0, color=INK, linewidth=0.5)
    entries = {line.get_label(): line for line in grid[0, 0].lines if line.get_label() in METHODS}
    for looks, text in ((DASHED, "by masks of the reference"), (DOTTED, MOVED)):
        entries[text] = Line2D([], [], **looks[PEARSON] | {"color": INK})
    grid[2, -1].axis("off")
    grid[2, -1].legend(entries.values(), entries.keys(), loc="center", handlelength=2.4)
    return figure


@styled
def images_figure(series: str) -> Figure:
    """What each method shows at every member of the series; the true columns in the first image of all columns."""
    found = FOUND[series]
    kinds = [found["image"].sel(masks=name, template=KINDS, drop=True).rename(template="row") for name in MASKS]
    for part, word in zip(kinds, ("Pearson", "ridge"), strict=True):
        part["row"] = [f"{kind}\n{word}" for kind in KINDS]
    words = [name.replace(" ", "\n").replace("TDM,", "all,") for name in METHODS]
    together = found["together"].rename(made_by="row").assign_coords(row=words)
    shown = xr.concat([together, *kinds], "row")
    period = REPEAT * (1, 2)
    part = shown.sel(y=slice(0, period[0]), x=slice(0, period[1]))
    grid = plot_image_series(part, series, size=1.1)
    figure = figure_of(grid)
    marked = grid[0, SAME[series]]
    handles = draw_sites(marked, part[0, 0].transpose("y", "x"), SITES)
    for marker in marked.lines:
        marker.set(markerfacecolor="none", markeredgecolor=marker.get_color(), markeredgewidth=0.7)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(KINDS), handletextpad=0.1)
    return figure


def masks_figure(series: str) -> Figure:
    """Pearson masks of every kind and of all columns, within the disk."""
    masks = FOUND[series]["mask"].sel(masks=PEARSON, drop=True)
    return figure_of(plot_image_series(masks, series, semi_angle=SEMI_ANGLE, size=1.1))


# %%
FIGURES = {}
for series in FOUND:
    FIGURES[series] = curves_figure(series)
    FIGURES[f"{series}-images"] = images_figure(series)
    FIGURES[f"{series}-masks"] = masks_figure(series)
known_scan.write(ARGUMENTS.out, "series", FIGURES, NUMBERS)
