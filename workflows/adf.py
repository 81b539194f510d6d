# %% [markdown]
# # The optimised ADF image (Fig. 2, SI1 to SI3)
#
# A binary annular mask gives a dark-field image; the correlation of every detector pixel's image with it (eq. 5) says
# which pixels hold the same signal; divided by each pixel's mean count (eq. 7) that becomes a mask that needs no angles
# from the user, and its image is the optimised ADF image.
#
# How much better it is depends on what it is compared with. So the table at the end has every comparator: the same
# annulus, *all* pixels beyond 25 mrad with equal weights, the mean-scaled mask, and the Pearson mask on D_hat.

# %%
"""ADF image, its Pearson map and mean-scaled mask, the optimised ADF image, and signal over noise of all of them."""

from __future__ import annotations

from typing import Any

import known_scan
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import tdm_dask as tdm
from tdm_dask.counts.thinning import split_electrons
from tdm_dask.detector.radial_profiles import radial_profile, scattering_angle
from tdm_dask.evaluation.noise import lattice_snr, thinned_snr
from tdm_dask.plot import plot_image, plot_mask
from tdm_dask.plot.drawing import draw_image, draw_sites
from tdm_dask.plot.profiles import CORRELATION, INTENSITY, plot_radial_profile
from tdm_dask.plot.style import INK, new_figure, styled

ANNULUS = (30.0, 60.0)  # mrad
BEYOND = 25.0  # mrad, just outside the bright-field disk
# Unit cells (y, x) in angstrom, by a kind of column that tells the crystal.
UNIT_CELLS = {"Li": (10.332, 6.010), "Pb": (4.028, 4.028)}
BINARY, ALL_DARK, MEAN_SCALED, PEARSON = "binary 30–60 mrad", "binary > 25 mrad", "mean-scaled", "Pearson on D_hat"
OF_ALL = ", mask of all electrons"

ARGUMENTS = known_scan.arguments(
    __doc__,
    unit_cell={"type": float, "nargs": 2, "metavar": ("Y", "X"), "help": "lengths of the unit cell in angstrom"},
    splits={"type": int, "default": 4, "help": "how often the electrons are split in halves (default: 4)"},
)
SPLITS = 1 if ARGUMENTS.quick else ARGUMENTS.splits
SCAN = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
COUNTS = SCAN.counts
SEMI_ANGLE = COUNTS.attrs.get("semi_angle_mrad")
print(f"{SCAN.name}: {COUNTS.shape}, {SCAN.thickness_nm} nm")

# %% [markdown]
# ## From the binary mask to the optimised image
#
# One read for the image, one for all correlations, one for the images of all masks. The paper's eq. 7 as printed
# rescales the ADF image by a constant; its text means dividing each detector pixel by its mean, which this is.

# %%
ADF = tdm.annulus(COUNTS, *ANNULUS)
DARK = tdm.annulus(COUNTS, BEYOND, float(scattering_angle(COUNTS).max()) + 2)
ADF_IMAGE = tdm.apply_mask(COUNTS, ADF).compute()
CORRELATIONS = tdm.correlate(COUNTS, ADF_IMAGE).compute()
PEARSON_MAP = tdm.derive_mask(CORRELATIONS)
SCALED_MASK = tdm.derive_mask(CORRELATIONS, method="mean-scaled")


def stacked(masks: dict[str, xr.DataArray]) -> xr.DataArray:
    """Weights on counts of several masks, named, for one read."""
    bare = [xr.DataArray(m.transpose("ky", "kx").values, COUNTS[0, 0].coords, ("ky", "kx")) for m in masks.values()]
    named = xr.concat(bare, xr.Variable("template", list(masks)), coords="minimal", compat="override")
    return named.drop_vars(("y", "x"))


def derived(correlations: xr.Dataset, suffix: str = "") -> dict[str, xr.DataArray]:
    """The two derived masks as weights on counts.

    The image of the Pearson mask from D_hat is D (rho/std)^T minus a constant, so rho/std is its mask on counts: the
    one that is matched to shot noise. Neither ratio below depends on a constant.
    """
    std = correlations["std"]
    matched = xr.where(std > 0, correlations["rho"] / std.where(std > 0, 1.0), 0.0)
    return {MEAN_SCALED + suffix: tdm.derive_mask(correlations, method="mean-scaled"), PEARSON + suffix: matched}


MASKS = {BINARY: ADF, ALL_DARK: DARK, **derived(CORRELATIONS)}
IMAGES = tdm.apply_mask(COUNTS, stacked(MASKS)).compute()
OPTIMISED = IMAGES.sel(template=MEAN_SCALED, drop=True)
PROFILE = radial_profile(CORRELATIONS)

# %% [markdown]
# ## What is bright
#
# The mean of an image at the columns of each kind, in standard deviations of the image above its mean.

# %%
SITES_INSIDE = known_scan.inside(SCAN.sites, COUNTS)


def brightness(image: xr.DataArray) -> dict[str, float]:
    """Mean of an image at the columns of each kind, less its mean, in its standard deviations."""
    spots = {}
    for kind, places in SITES_INSIDE.items():
        at = {dim: ("site", places[:, n]) for n, dim in enumerate(("y", "x"))}
        spots[kind] = float((image.interp(at).mean() - image.mean()) / image.std())
    return spots


BRIGHTNESS = {name: brightness(IMAGES.sel(template=name)) for name in (BINARY, MEAN_SCALED)}
for name, spots in BRIGHTNESS.items():
    print(f"{name}:", ", ".join(f"{kind} {value:+.2f}" for kind, value in spots.items()))

# %% [markdown]
# ## Image, mask, image (SI1)
#
# The Pearson map as a mask on D_hat gives s_out = C s_in (eq. 6). Pixels of the bright-field disk, which hold other
# signals, contribute to it: it is not the image that went in.

# %%
IMAGE_OUT = tdm.apply_mask(COUNTS, PEARSON_MAP, normalisation="standardised").compute()


def alike(first: xr.DataArray, second: xr.DataArray) -> float:
    """Correlation of two images over the scan."""
    both = np.isfinite(first.values) & np.isfinite(second.values)
    return float(np.corrcoef(first.values[both], second.values[both])[0, 1])


SI1 = {
    "correlation of the image out with the image in": alike(IMAGE_OUT, ADF_IMAGE),
    "correlation of D_hat rho and D (rho/std)": alike(IMAGE_OUT, IMAGES.sel(template=PEARSON)),
}

# %% [markdown]
# ## Noise-limited and wrong-signal pixels (SI2)
#
# A pixel can correlate weakly for two reasons: its counts are few, or its signal is another. Counting statistics tell
# them apart. A pixel of mean m and variance v has m of its variance from counting electrons, so however right its
# signal, its correlation is at most
#
# $$\rho_{max} = \sqrt{1 - m / v}.$$
#
# The rule: candidates for **noise-limited** are the tenth of the annulus that comes closest to its ceiling (that of the
# ring: one weak pixel's variance says too little). The **wrong-signal** pixel is the one in the bright-field disk, of a
# ceiling of at least 0.95, whose correlation is closest to the median of the candidates, or closest to it in size alone
# where none comes within 0.1; the noise-limited pixel is the candidate whose correlation is closest to that size. The
# check: their neighbourhoods of 5 x 5 pixels, which have 25 times the electrons, in one half of the electrons, against
# the ADF image of the other half.

# %%
REACH = 2  # pixels to each side


def ceilings(correlations: xr.Dataset) -> xr.DataArray:
    """The largest correlation that counting statistics allow: each pixel's own in the disk, its ring's beyond."""
    gain = float(COUNTS.attrs.get("counts_per_electron", 1.0))
    mean, variance = correlations["mean"], correlations["std"] ** 2
    # Variance over what counting would give, of every pixel that has counts.
    ratio = xr.where(mean > 0, variance / (gain * mean.where(mean > 0, 1.0)), 1.0)
    rings = radial_profile(ratio.rename("ratio").assign_coords(correlations.coords))
    theta = scattering_angle(correlations)
    of_ring = rings["ratio"].interp(angle=theta, kwargs={"fill_value": "extrapolate"}).drop_vars("angle")
    ratio = xr.where(theta > BEYOND, of_ring, ratio)
    return np.sqrt(1 - 1 / ratio.clip(min=1.0)).transpose("ky", "kx")


def examples(correlations: xr.Dataset) -> dict[str, tuple[int, int]]:
    """The (ky, kx) indices of a noise-limited and of a wrong-signal pixel, by the rule above."""
    rho, top = correlations["rho"].transpose("ky", "kx").values, ceilings(correlations).values
    theta = scattering_angle(correlations).values
    inside = np.zeros(theta.shape, bool)
    inside[REACH:-REACH, REACH:-REACH] = True
    dark = inside & (theta > ANNULUS[0]) & (theta < ANNULUS[1]) & (top > 0)
    reached = np.where(dark, rho / np.where(dark, top, 1.0), 0.0)
    limited = dark & (reached >= np.quantile(reached[dark], 0.9))
    disk = inside & (theta < 0.9 * (SEMI_ANGLE or BEYOND)) & (top >= 0.95)

    def closest(values: np.ndarray, pixels: np.ndarray, to: float) -> tuple[int, int]:
        place = np.argmin(np.where(pixels, np.abs(values - to), np.inf))
        ky, kx = np.unravel_index(place, rho.shape)
        return int(ky), int(kx)

    typical = float(np.median(rho[limited]))
    wrong = closest(rho, disk, typical)
    if abs(rho[wrong] - typical) > 0.1:
        wrong = closest(np.abs(rho), disk, typical)
    return {"noise-limited": closest(rho, limited, abs(rho[wrong])), "wrong signal": wrong}


EXAMPLES = examples(CORRELATIONS)
CEILINGS = ceilings(CORRELATIONS)


def window(place: tuple[int, int], reach: int) -> xr.DataArray:
    """A mask of the pixels within `reach` of a pixel."""
    weights = xr.zeros_like(ADF, dtype=float)
    weights[{dim: slice(p - reach, p + reach + 1) for dim, p in zip(("ky", "kx"), place, strict=True)}] = 1.0
    return weights


FIRST, SECOND = split_electrons(COUNTS, seed=0)
windows = {f"{name}{what}": window(p, r) for name, p in EXAMPLES.items() for what, r in (("", 0), (", 5 × 5", REACH))}
PIXEL_IMAGES = tdm.apply_mask(COUNTS, stacked(windows)).compute()
half = tdm.apply_mask(FIRST, stacked(windows)).compute()
other = tdm.apply_mask(SECOND, ADF).compute()
SI2 = {
    name: {
        "angle_mrad": float(scattering_angle(COUNTS)[place]),
        "mean_counts": float(CORRELATIONS["mean"][place]),
        "rho": float(CORRELATIONS["rho"][place]),
        "ceiling": float(CEILINGS[place]),
        "rho_of_neighbourhood": alike(half.sel(template=f"{name}, 5 × 5"), other),
        "pixel": place,
    }
    for name, place in EXAMPLES.items()
}
for name, facts in SI2.items():
    print(f"{name}:", ", ".join(f"{k} {v:.3f}" for k, v in facts.items() if isinstance(v, float)))

# %% [markdown]
# ## Signal over noise (SI3)
#
# **Thinning**: every electron goes to one of two halves; from the correlation r of the images of the halves the ratio
# at all of the electrons is 2r/(1 - r). A derived mask shares noise with the counts that it was derived from, so the
# image of each half is taken with the mask from the *other* half. Six reads for each split. **Lattice**: what is in the
# harmonics of the unit cell over what is not; in one domain of the specimen alone, never across a wall.
#
# The masks of the halves are those of a scan at half the dose. Two more rows have the masks of all electrons, read on
# the halves: at a higher dose rho of weak pixels grows, and the weights are others.

# %%


def split_snr(seed: int) -> xr.DataArray:
    """Ratios in dB of all masks from one split of the electrons."""
    halves = split_electrons(COUNTS, seed=seed)
    found = [tdm.correlate(half, tdm.apply_mask(half, ADF).compute()).compute() for half in halves]
    fixed = {BINARY: ADF, ALL_DARK: DARK}
    of_all = derived(CORRELATIONS, OF_ALL)
    masks = [stacked({**fixed, **derived(other), **of_all}) for other in reversed(found)]
    first, second = (tdm.apply_mask(half, mask).compute() for half, mask in zip(halves, masks, strict=True))
    return thinned_snr(first, second)["snr_db"]


def domain(cell: tuple[float, float]) -> xr.DataArray | None:
    """Probe positions of one domain; None where the whole scan is one."""
    if "domain wall" not in str(SCAN.meta.get("description", "")):
        return None
    return COUNTS["y"] / cell[0] + COUNTS["x"] / cell[1] < 5.0  # the wall runs where these add up to about six


CELL = ARGUMENTS.unit_cell or next((cell for kind, cell in UNIT_CELLS.items() if kind in SCAN.sites), None)
if CELL is None:
    raise SystemExit("The unit cell of this crystal is not known: --unit-cell Y X gives it, in angstrom.")
THINNING = xr.concat([split_snr(seed) for seed in range(SPLITS)], "split")
LATTICE = lattice_snr(IMAGES, CELL, scan_region=domain(CELL))["snr_db"]
SNR: dict[str, Any] = {}
for name in THINNING["template"].values.tolist():
    thinning = THINNING.sel(template=name)
    row = {"thinning_db": float(thinning.mean()), "thinning_scatter_db": float(thinning.std())}
    row["thinning_gain_db"] = row["thinning_db"] - float(THINNING.sel(template=BINARY).mean())
    if name in LATTICE["template"]:
        row["lattice_db"] = float(LATTICE.sel(template=name))
        row["lattice_gain_db"] = row["lattice_db"] - float(LATTICE.sel(template=BINARY))
    SNR[name] = row
PAPER = {BINARY: 33.7, MEAN_SCALED: 35.2}
print(f"{'mask':42} thinning  gain   lattice  gain   (dB; the paper: 33.7 binary, 35.2 mean-scaled, gain 1.5)")
for name, row in SNR.items():
    beside = f"{row['lattice_db']:8.1f} {row['lattice_gain_db']:+6.1f}" if "lattice_db" in row else ""
    print(f"{name:42} {row['thinning_db']:7.1f} {row['thinning_gain_db']:+6.1f} {beside}")

# %% [markdown]
# ## Figures

# %%


@styled
def figure_2() -> Figure:
    """Laid out like Fig. 2 of the paper."""
    figure = new_figure(9.6, 5.3)
    (a, b, c), (d, e, f) = figure.subplots(2, 3)
    plot_mask(ADF, semi_angle=SEMI_ANGLE, title="a  binary mask", axes=a)
    draw_image(b, ADF_IMAGE, bar=False)
    b.set_title("b  ADF image")
    handles = draw_sites(b, ADF_IMAGE, SCAN.sites)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 4}
    b.legend(handles=handles, handletextpad=0, columnspacing=0.5, **below)
    plot_mask(PEARSON_MAP, semi_angle=SEMI_ANGLE, title="c  Pearson map", axes=c)
    marks = {}
    for number, (ky, kx) in enumerate(EXAMPLES.values(), start=1):
        marks[str(number)] = (float(COUNTS["ky"][ky]), float(COUNTS["kx"][kx]))
    both = plot_radial_profile(CORRELATIONS, semi_angle=SEMI_ANGLE, marks=marks, title="d  intensity and ρ", axes=d)
    for axes in both:
        axes.set_box_aspect(1)
    # A few pixels with hardly a count have weights that would leave no colours to the others.
    limit = float(np.quantile(abs(SCALED_MASK), 0.99))
    plot_mask(SCALED_MASK.clip(-limit, limit, keep_attrs=True), semi_angle=SEMI_ANGLE, title="e  mean-scaled", axes=e)
    plot_image(OPTIMISED, title="f  optimised ADF image", axes=f)
    return figure


@styled
def figure_si() -> Figure:
    """SI1, SI2 and SI3 below each other."""
    figure = new_figure(8.8, 8.7)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1, 1.15, 0.7], hspace=0.03)
    a, b, c = top.subplots(1, 3)
    plot_image(ADF_IMAGE, title="SI1  image in", axes=a)
    plot_mask(PEARSON_MAP, semi_angle=SEMI_ANGLE, title="mask", axes=b)
    plot_image(IMAGE_OUT, title="image out", axes=c)
    panels = middle.subplots(1, 4)
    for axes, name in zip(panels, windows, strict=True):
        draw_image(axes, PIXEL_IMAGES.sel(template=name), bar=axes is panels[0])
        kind = name.split(",")[0]
        number = list(EXAMPLES).index(kind) + 1
        facts = SI2[kind]
        if name == kind:
            axes.set_title(f"SI2  {number}: {kind}")
            text = f"{facts['angle_mrad']:.0f} mrad, ρ = {facts['rho']:.2f}, at most {facts['ceiling']:.2f}"
        else:
            axes.set_title(f"{number}: its 5 × 5 pixels")
            text = f"ρ = {facts['rho_of_neighbourhood']:.2f} (half of the electrons)"
        text = text.replace("-", "−")
        axes.text(0.5, -0.16, text, transform=axes.transAxes, ha="center", fontsize=7.5)
    draw_snr(bottom.subplots(1, 2, sharey=True))
    return figure


def draw_snr(panels: Any) -> None:
    """Gains over the binary annulus by both definitions, with the ratios beside them."""
    for axes, kind, colour in zip(panels, ("thinning", "lattice"), (INTENSITY, CORRELATION), strict=True):
        for n, row in enumerate(SNR.values()):
            if f"{kind}_db" not in row:
                continue
            gain, at = row[f"{kind}_gain_db"], {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            axes.plot(gain, n, "o", color=colour, markersize=5)
            axes.annotate(f"{row[f'{kind}_db']:.1f} dB", (gain, n), color=colour, fontsize=7.5, bbox=white, **at)
        axes.axvline(PAPER[MEAN_SCALED] - PAPER[BINARY], color=INK, linestyle=(0, (4, 3)), linewidth=0.8)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.2 * (high - low))  # room for the labels
        axes.set_xlabel("gain over the binary annulus (dB)")
    panels[0].set_yticks(range(len(SNR)), list(SNR))
    panels[0].set_ylim(len(SNR) - 0.5, -0.5)
    panels[0].set_title("SI3  signal over noise, by thinning")
    panels[1].set_title("by the lattice (dashed: the paper's gain)")


numbers = {
    "scan": SCAN.name,
    "annulus_mrad": ANNULUS,
    "annulus_on_detector": ADF.attrs["coverage"],
    "brightness": BRIGHTNESS,
    "si1": SI1,
    "si2": SI2,
    "snr": SNR,
    "snr_splits": SPLITS,
    "snr_paper_db": PAPER,
    "profile": {name: PROFILE[name].values for name in ("angle", "mean", "mean_std", "rho", "rho_std")},
}
known_scan.write(ARGUMENTS.out, "adf", {"fig2": figure_2(), "si": figure_si()}, numbers)
