# %% [markdown]
# # Images of one kind of atom column at a time (Fig. 3, SI5-SI8)
#
# A conventional image shows where the columns are. A template is put on those of one kind, its correlation with the
# image of every detector pixel is a mask (eq. 8), and the mask applied to the normalised counts is an image of that
# kind of column. This workflow makes them for every kind and for all together, from binary templates and from
# Gaussians, within the bright-field disk; finds out what the width of the Gaussians does (SI8); shows how a binary
# template of Ti fails in PbTiO3 (SI7); and holds the masks against those of another scan (Fig. 3b against 3d).
#
# **A warning.** In a perfect crystal almost any template with the period of the lattice is reproduced, wherever its
# sites are. That an image looks like its template is no evidence of atoms there.
#
#     python workflows/columns.py lifepo4_001_40nm.npz --other another_scan.zarr

# %%
"""Masks and images of every kind of atom column, binary and Gaussian, against width and against another scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import known_scan
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tdm_dask as tdm
from tdm_dask.evaluation.cross_talk import gap_contrast
from tdm_dask.plot import plot_cross_talk
from tdm_dask.plot.drawing import bare, draw_image, draw_mask, draw_sites, extent_lengths
from tdm_dask.plot.style import COLOURS, INK, MARKERS, new_figure, styled

SIGMA = 0.35  # angstrom, of the Gaussians
REGION = 24.0  # mrad, of the detector that masks may use: the bright-field disk with its edge
SEMI_ANGLE = 23.5  # mrad
ABF = (11.0, 23.5)  # mrad, the paper's
ALL = "all"
MARGIN = 0.3  # angstrom; columns nearer to the edge of the scan are not measured

ARGUMENTS = known_scan.arguments(
    __doc__,
    other={"help": "another scan of the same crystal, for its masks: archive, store or vendor file"},
    sigmas={"type": float, "nargs": "+", "help": "widths of the Gaussians in angstrom"},
)
SIGMAS = ARGUMENTS.sigmas or ([0.2, 0.35, 0.6] if ARGUMENTS.quick else np.arange(0.1, 0.81, 0.05).round(2).tolist())
SCAN = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
KINDS = list(SCAN.sites)
print(f"{SCAN.name}: {SCAN.counts.shape}, {SCAN.thickness_nm} nm, columns {', '.join(KINDS)}")

# %% [markdown]
# ## The counts that matter, read once
#
# Nearly everything lies within the bright-field disk. A proxy keeps its counts at hand: what follows tries a hundred
# templates without reading again. Only the other scan and the maps over the whole detector take one more read each.

# %%
PROXY = tdm.proxy(SCAN.counts, detector_region=tdm.disk(SCAN.counts, REGION) > 0.5)
DISK = tdm.disk(PROXY, REGION) > 0.5
STEP = float(max(abs(np.diff(PROXY[d].values).mean()) for d in ("y", "x")))
IMAGE_ABF = tdm.apply_mask(PROXY, tdm.annulus(PROXY, *ABF))
INSIDE = known_scan.inside(SCAN.sites, PROXY, MARGIN)


def masks_and_images(templates: xr.DataArray) -> xr.Dataset:
    """Pearson masks within the disk, and images from D_hat."""
    return tdm.column_images(PROXY, templates, detector_region=DISK)


def levels(images: xr.DataArray) -> xr.DataArray:
    """Mean of every image at the columns of each kind, in its standard deviations above its mean: (template, kind)."""
    standardised = (images - images.mean(("y", "x"))) / images.std(("y", "x"))
    at = []
    for places in INSIDE.values():
        y, x = (xr.DataArray(p, dims="site") for p in places.T)
        at.append(standardised.interp(y=y, x=x).mean("site").drop_vars(["y", "x"], errors="ignore"))
    return xr.concat(at, xr.IndexVariable("kind", KINDS)).transpose(..., "kind")


def rivals(table: xr.DataArray) -> dict[str, dict[str, Any]]:
    """For the image of each kind: its level there, the other kind that is brightest in it, and the ratio of the two."""
    found = {}
    for kind in KINDS:
        own = float(table.sel(template=kind, kind=kind))
        others = table.sel(template=kind).drop_sel(kind=kind)
        rival = str(others["kind"].values[others.values.argmax()])
        level = float(others.max())
        found[kind] = {"level": own, "rival": rival, "level_of_rival": level, "ratio": level / own}
    return found


def positive_share(masks: xr.DataArray) -> dict[str, float]:
    """How much of a mask's weight adds: the rest works by anti-correlation."""
    share = masks.clip(min=0).sum(("ky", "kx")) / abs(masks).sum(("ky", "kx"))
    return {str(k): float(v) for k, v in zip(masks["template"].values, share.values, strict=True)}


def single(array: xr.DataArray) -> xr.DataArray:
    return array.sel(template=KINDS)


# %% [markdown]
# ## Gaussian and binary templates
#
# A binary template marks the probe position nearest to each site, as in the paper. R is the correlation of every image
# with every template, G that of the templates with each other, which a perfect image would have; the excess of R over G
# is cross-talk. The table of the method was made with Gaussians of 0.35 angstrom.

# %%
TEMPLATES = {
    "gaussian": tdm.gaussian_template(PROXY, SCAN.sites, sigma=SIGMA, all_name=ALL),
    "binary": tdm.binary_template(PROXY, SCAN.sites, radius=0.45 * STEP, all_name=ALL),
}
FOUND = {name: masks_and_images(templates) for name, templates in TEMPLATES.items()}
TABLES = {name: tdm.cross_talk(single(FOUND[name]["image"]), single(TEMPLATES[name])) for name in TEMPLATES}


def table_in_words(table: xr.Dataset) -> dict[str, Any]:
    own = {kind: float(table["R"].sel(image=kind, template=kind)) for kind in KINDS}
    return {"R": own, "excess": float(table["excess"].max())}


NUMBERS: dict[str, Any] = {"scan": SCAN.name, "thickness_nm": SCAN.thickness_nm, "sigma_angstrom": SIGMA}
for name, found in FOUND.items():
    NUMBERS[name] = table_in_words(TABLES[name]) | {
        "levels": rivals(levels(single(found["image"]))),
        "positive_share_of_the_mask": positive_share(found["mask"]),
    }
    print(f"{name}: R", {k: round(v, 3) for k, v in NUMBERS[name]["R"].items()}, f"{NUMBERS[name]['excess']:.3f}")
# Columns are dark in an ABF image.
MEANT_FOR_ALL = {"all columns": FOUND["gaussian"]["image"].sel(template=ALL, drop=True), "inverted ABF": -IMAGE_ABF}
NUMBERS["above_gaps"] = {
    name: dict(zip(KINDS, gap_contrast(image.expand_dims(template=[name]), SCAN.sites).values[0].tolist(), strict=True))
    for name, image in MEANT_FOR_ALL.items()
}

# %% [markdown]
# ## The width of the Gaussians (SI8)
#
# With the width, the share of positive weights in the mask grows; R_ii of each kind, the cross-talk, and what the image
# of a kind shows at its own columns beyond the brightest others (the contrast) have their best at different widths.

# %%
names = [f"{kind} {sigma}" for sigma in SIGMAS for kind in [*KINDS, ALL]]
several = xr.concat(
    [tdm.gaussian_template(PROXY, SCAN.sites, sigma=sigma, all_name=ALL) for sigma in SIGMAS],
    "template",
    combine_attrs="drop",
)
several["template"] = names
scanned = masks_and_images(several)


def of_width(sigma: float, array: xr.DataArray) -> xr.DataArray:
    part = array.sel(template=[f"{kind} {sigma}" for kind in [*KINDS, ALL]])
    return part.assign_coords(template=[*KINDS, ALL])


WIDTHS: dict[str, Any] = {"sigma_angstrom": SIGMAS, "excess": [], "R": {}, "contrast": {}, "positive_share": {}}
for sigma in SIGMAS:
    image, template, mask = (of_width(sigma, a) for a in (scanned["image"], several, scanned["mask"]))
    words = table_in_words(tdm.cross_talk(single(image), single(template)))
    WIDTHS["excess"].append(words["excess"])
    rival = rivals(levels(single(image)))
    share = positive_share(mask)
    for kind in KINDS:
        WIDTHS["R"].setdefault(kind, []).append(words["R"][kind])
        WIDTHS["contrast"].setdefault(kind, []).append(rival[kind]["level"] - rival[kind]["level_of_rival"])
        WIDTHS["positive_share"].setdefault(kind, []).append(share[kind])
NUMBERS["widths"] = WIDTHS

# %% [markdown]
# ## Where a binary template fails (SI7)
#
# A template of few probe positions works by anti-correlation: most of its mask is negative. Where two kinds of column
# are dark in the same pixels, as Pb and Ti are in PbTiO3, the image of one shows the other too. A wider template weighs
# what is bright. The kind shown is the one whose brightest rival gains most from the binary template.

# %%
FEW = masks_and_images(tdm.binary_template(PROXY, SCAN.sites, radius=SIGMA))
WIDE = max(SIGMAS)
COMPARED = {
    "binary, one probe position": single(FOUND["binary"]["image"]),
    f"binary, radius {SIGMA:g} Å": FEW["image"],
    f"Gaussian, σ = {SIGMA:g} Å": single(FOUND["gaussian"]["image"]),
    f"Gaussian, σ = {WIDE:g} Å": single(of_width(WIDE, scanned["image"])),
}
LEVELS = {name: levels(images) for name, images in COMPARED.items()}
few, gaussian = (LEVELS[name] for name in list(COMPARED)[1:3])
RIVAL = {kind: row["rival"] for kind, row in rivals(few).items()}


def ratio(table: xr.DataArray, kind: str) -> float:
    """Of what an image shows at the columns of its rival to what it shows at its own."""
    own, other = (float(table.sel(template=kind, kind=at)) for at in (kind, RIVAL[kind]))
    return other / own


FAILING = max(KINDS, key=lambda kind: ratio(few, kind) - ratio(gaussian, kind))
NUMBERS["binary_against_gaussian"] = {"kind": FAILING, "rival": RIVAL[FAILING], "templates": {}}
for name, table in LEVELS.items():
    own_level, rival_level = (float(table.sel(template=FAILING, kind=at)) for at in (FAILING, RIVAL[FAILING]))
    NUMBERS["binary_against_gaussian"]["templates"][name] = {
        "level": own_level,
        "level_of_rival": rival_level,
        "ratio": rival_level / own_level,
    }
    print(f"{FAILING}, {name}: {own_level:+.2f} at its own columns, {rival_level:+.2f} at {RIVAL[FAILING]}")

# %% [markdown]
# ## Masks of another scan (Fig. 3b against 3d)
#
# Masks are transferred in mrad, whatever the detectors. Where no other scan is given, the lower half of this one stands
# for it, on a detector of 2 x 2 times larger pixels, against masks of the upper half: other electrons, other pixels.
# `held by` is how well an image made by the transferred mask keeps to the template.

# %%
half = SCAN.counts.sizes["y"] // 2
if ARGUMENTS.other is None:
    OTHER_NAME = "other half, 2 × 2 pixels summed"
    other = tdm.bin(tdm.crop(SCAN.counts, y=slice(half, None)), detector=2)
    other_sites: Mapping[str, Any] = SCAN.sites
    own = tdm.derive_mask(PROXY, TEMPLATES["gaussian"], detector_region=DISK, scan_region={"y": slice(0, half)})
else:
    known = known_scan.load(ARGUMENTS.other, ARGUMENTS.out)
    OTHER_NAME, other, other_sites = f"other scan, {known.name}", known.counts, known.sites
    own = FOUND["gaussian"]["mask"]
    if sorted(other_sites) != sorted(KINDS):
        raise SystemExit(f"The other scan has columns {sorted(other_sites)}; expected {sorted(KINDS)}.")
    other_sites = {kind: other_sites[kind] for kind in KINDS}
theirs = tdm.derive_mask(
    other,
    tdm.gaussian_template(other, other_sites, sigma=SIGMA, all_name=ALL),
    detector_region=tdm.disk(other, REGION) > 0.5,
).compute()
TRANSFERRED = tdm.transfer_mask(theirs, PROXY).where(DISK, 0.0)
statistics = tdm.pixel_statistics(PROXY)
image = tdm.apply_mask(
    PROXY, TRANSFERRED.assign_coords(mean=statistics["mean"], std=statistics["std"]), normalisation="standardised"
)
held = tdm.cross_talk(single(image), single(TEMPLATES["gaussian"]))["R"]
flat = DISK.values
SIMILARITY = {
    kind: {
        "masks": float(
            np.corrcoef(own.sel(template=kind).values[flat], TRANSFERRED.sel(template=kind).values[flat])[0, 1]
        ),
        **({"held_by": float(held.sel(image=kind, template=kind))} if kind != ALL else {}),
    }
    for kind in [*KINDS, ALL]
}
NUMBERS["other_scan"] = {"name": OTHER_NAME, "similarity": SIMILARITY}
print(f"{OTHER_NAME}:", {kind: round(v["masks"], 3) for kind, v in SIMILARITY.items()})

# %% [markdown]
# ## The whole maps of correlation (SI5, SI6)
#
# Not restricted to the bright-field disk: one more read, of everything.

# %%
WHOLE = tdm.derive_mask(SCAN.counts, TEMPLATES["gaussian"]).compute()

# %% [markdown]
# ## Figures


# %%
def zoomed(axes: Axes, mask: xr.DataArray, reach: float = 1.1 * SEMI_ANGLE) -> None:
    """A mask within the disk, to the limit that one of its weights in two hundred exceeds."""
    top = float(np.quantile(abs(mask.values[DISK.values]), 0.995))
    draw_mask(axes, mask, SEMI_ANGLE).set_clim(-top, top)
    bare(axes)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(reach, -reach)


def open_markers(axes: Axes, sites: Mapping[str, Any]) -> list[Line2D]:
    """Rings about the columns of some kinds, which do not hide what is there; gives the handles of a legend."""
    handles = []
    for kind, places in sites.items():
        handles += draw_sites(axes, IMAGE_ABF, {kind: places}, KINDS.index(kind))
    for marker in axes.lines:
        marker.set(
            markerfacecolor="none", markeredgecolor=marker.get_color(), markeredgewidth=0.8,
            markersize=1.8 * marker.get_markersize(),
        )  # fmt: skip
    return handles


@styled
def columns_figure(found: xr.Dataset) -> Figure:
    """Fig. 3: the ABF image with its columns over the image of all of them; beside them masks over images of a kind."""
    height, width = extent_lengths(IMAGE_ABF)
    shape, n = height / width, len(KINDS)
    figure = new_figure(1.95 * (n + 1), 2 * 1.9 * shape + 0.95)
    grid = figure.subplots(2, n + 1)
    draw_image(grid[0, 0], IMAGE_ABF)
    handles = draw_sites(grid[0, 0], IMAGE_ABF, SCAN.sites)
    grid[0, 0].set_title("ABF")
    draw_image(grid[1, 0], found["image"].sel(template=ALL), bar=False)
    grid[1, 0].set_title("all columns")
    inset = grid[1, 0].inset_axes((0.67, 1 - 0.33 / shape, 0.33, 0.33 / shape))
    zoomed(inset, found["mask"].sel(template=ALL))
    inset.patch.set(visible=True, facecolor="white")
    for number, kind in enumerate(KINDS):
        above, below = grid[:, number + 1]
        zoomed(above, found["mask"].sel(template=kind))
        above.set_title(kind)
        draw_image(below, found["image"].sel(template=kind), bar=False)
        open_markers(below, {kind: SCAN.sites[kind]})
    figure.legend(handles=handles, loc="outside lower center", ncols=n, handletextpad=0.1)
    return figure


@styled
def widths_figure() -> Figure:
    """R_ii, contrast and positive share of every kind, and the excess, against sigma."""
    figure = new_figure(9.6, 2.7)
    panels = figure.subplots(1, 3)
    titles = {"R": "Image against template, $R_{ii}$", "contrast": "Contrast to the brightest others",
              "positive_share": "Share of positive weights"}  # fmt: skip
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for number, kind in enumerate(KINDS):
            axes.plot(SIGMAS, WIDTHS[key][kind], color=COLOURS[number], marker=MARKERS[number], markersize=3.5,
                      markeredgecolor=INK, markeredgewidth=0.3, linewidth=1.2, label=kind)  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("σ of the Gaussians (Å)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].plot(SIGMAS, WIDTHS["excess"], color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="excess")
    panels[0].set_ylabel("correlation")
    panels[0].set_ylim(0, 1)
    panels[1].set_ylabel("standard deviations")
    panels[1].set_ylim(min(0.0, *(min(v) for v in WIDTHS["contrast"].values())), None)
    panels[2].set_ylim(0, 1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS) + 1)
    return figure


@styled
def failure_figure() -> Figure:
    """SI7: the image of one kind from binary templates and from Gaussians, with its columns and those of its rival."""
    height, width = extent_lengths(IMAGE_ABF)
    figure = new_figure(2.3 * len(COMPARED), 2.2 * height / width + 0.95)
    for axes, (name, images) in zip(figure.subplots(1, len(COMPARED)), COMPARED.items(), strict=True):
        draw_image(axes, images.sel(template=FAILING), bar=axes.get_subplotspec().is_first_col())
        handles = open_markers(axes, {kind: SCAN.sites[kind] for kind in (FAILING, RIVAL[FAILING])})
        axes.set_title(name, fontsize=8.5)
        row = NUMBERS["binary_against_gaussian"]["templates"][name]
        text = f"{FAILING} {row['level']:+.2f}, {RIVAL[FAILING]} {row['level_of_rival']:+.2f}".replace("-", "−")
        axes.text(0.99, -0.02, text, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def similarity_figure() -> Figure:
    """Masks of this scan over those of the other one, on the same detector."""
    shown = [*KINDS, ALL]
    figure = new_figure(1.65 * len(shown), 3.9)
    grid = figure.subplots(2, len(shown))
    for (above, below), kind in zip(grid.T, shown, strict=True):
        zoomed(above, own.sel(template=kind))
        zoomed(below, TRANSFERRED.sel(template=kind))
        above.set_title(kind)
        below.set_title(f"r = {SIMILARITY[kind]['masks']:.2f}", fontweight="normal", fontsize=8.5)
    for axes, text in zip(grid[:, 0], ("this scan", OTHER_NAME.replace(", ", ",\n")), strict=True):
        axes.set_ylabel(text)
    return figure


@styled
def maps_figure() -> Figure:
    """SI5, SI6: correlation over the whole detector, on one scale."""
    shown = [*KINDS, ALL]
    figure = new_figure(1.75 * len(shown) + 0.5, 2.2)
    panels = figure.subplots(1, len(shown))
    top = float(np.quantile(abs(WHOLE), 0.999))
    for axes, kind in zip(panels, shown, strict=True):
        picture = draw_mask(axes, WHOLE.sel(template=kind), SEMI_ANGLE)
        picture.set_clim(-top, top)
        bare(axes)
        axes.set_title(kind)
    figure.colorbar(picture, ax=panels, shrink=0.8, pad=0.01, label="ρ").outline.set_visible(False)
    return figure


# %%
FIGURES = {
    "gaussian": columns_figure(FOUND["gaussian"]),
    "binary": columns_figure(FOUND["binary"]),
    "cross-talk": plot_cross_talk(TABLES["gaussian"]),
    "widths": widths_figure(),
    "binary-fails": failure_figure(),
    "other-scan": similarity_figure(),
    "whole-maps": maps_figure(),
}
known_scan.write(ARGUMENTS.out, "columns", FIGURES, NUMBERS)
