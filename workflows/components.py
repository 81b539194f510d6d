# %% [markdown]
# # Principal components, non-negative components and templates (eq. 6 and 9)
#
# Without a template, the counts can be taken apart by statistics alone. **Principal components** are the images that
# eq. 6 (image -> mask -> image) gives back as they were, but for a factor: the eigenvalue. **Non-negative** components
# (NMF) are patterns and images that nowhere fall below zero.
#
# The paper says of them: the first principal component resembles the ADF image; whether others have a physical meaning
# is often unclear; and NMF is of little use for atomic resolution. Here both are held against the ADF image and against
# the images of template-derived masks of every kind of column. On the simulated scans the first two statements hold.
# NMF comes out better than the paper has it in PbTiO3, where two components are nearly the Pb and the O columns, and as
# the paper has it in LiFePO4, where they mix; but which of the two has happened, only known columns tell.

# %%
"""Principal and non-negative components beside the ADF image and template-derived masks (eq. 6 and 9)."""

from __future__ import annotations

from typing import Any

import known_scan
import numpy as np
import xarray as xr
from matplotlib.figure import Figure, SubFigure

import tdm_dask as tdm
from tdm_dask.evaluation.cross_talk import correlations
from tdm_dask.imaging.components import nonnegative_components, principal_components
from tdm_dask.plot import plot_columns
from tdm_dask.plot.components import plot_components
from tdm_dask.plot.drawing import draw_disk, extent_lengths
from tdm_dask.plot.style import DIVERGING, INK, new_figure, styled

SIGMA = 0.35  # angstrom, of the Gaussian templates
REGION = 24.0  # mrad, of the detector that template-derived masks may use
ADF = (30.0, 60.0)  # mrad

ARGUMENTS = known_scan.arguments(
    __doc__,
    components={"type": int, "default": 5, "help": "principal components (default: 5)"},
    nonnegative={"type": int, "default": 4, "help": "non-negative components (default: 4)"},
    iterations={"type": int, "default": 6, "help": "of block Krylov, one read each (default: 6)"},
)
SCAN = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
COUNTS = SCAN.counts
if ARGUMENTS.quick:
    COUNTS = tdm.bin(COUNTS, detector=2)
SEMI_ANGLE = COUNTS.attrs["semi_angle_mrad"]
print(f"{SCAN.name}: {COUNTS.shape}, {SCAN.thickness_nm} nm")

# %% [markdown]
# ## The components
#
# Of the whole detector, every pixel standardised. Up to 2048 pixels the correlation matrix itself is made, in one
# read, and one more gives the images; beyond that, block Krylov multiplies it with a few masks in each read. The
# residual says how far a component is from one: where the spectrum falls slowly, the last few are not sharply told
# apart from those that would follow.

# %%
PCA = principal_components(COUNTS, ARGUMENTS.components, iterations=ARGUMENTS.iterations)
print(f"{PCA.attrs['method']}, {PCA.attrs['reads']} reads")
print(PCA[["eigenvalue", "fraction", "residual"]].to_dataframe()[["eigenvalue", "fraction", "residual"]].round(4))
NMF = nonnegative_components(COUNTS, ARGUMENTS.nonnegative, iterations=ARGUMENTS.iterations)
print(f"NMF of rank {NMF.attrs['rank']}: residual {NMF.residual.item():.3f}, fractions {NMF.fraction.values.round(3)}")

# %% [markdown]
# ## Eq. 6, once: image -> mask -> image
#
# The first component's image as a template gives a mask, and that mask the same image times the eigenvalue.

# %%
first = PCA["image"].isel(component=0, drop=True)
again = tdm.apply_mask(COUNTS, tdm.derive_mask(COUNTS, first), normalisation="standardised").compute()
FACTOR = float((again * first).sum() / (first**2).sum() * first.std())
LIKENESS = float(np.corrcoef(again.values.ravel(), first.values.ravel())[0, 1])
print(f"eigenvalue {PCA.eigenvalue[0].item():.3f}, factor of eq. 6 {FACTOR:.3f}, correlation {LIKENESS:.6f}")

# %% [markdown]
# ## What there is to compare with
#
# The ADF image and its own mask, which is what the first component should resemble, and the Pearson masks of every kind
# of column within the bright-field disk, with their images.

# %%
adf_detector = tdm.annulus(COUNTS, *ADF)
adf = tdm.apply_mask(COUNTS, adf_detector).compute()
adf_mask = tdm.derive_mask(COUNTS, adf).compute()
templates = tdm.gaussian_template(COUNTS, SCAN.sites, sigma=SIGMA)
masks = tdm.derive_mask(COUNTS, templates, detector_region=tdm.disk(COUNTS, REGION) > 0.5).compute()
images = tdm.apply_mask(COUNTS, masks, normalisation="standardised").compute()


def stacked(first: xr.DataArray, others: xr.DataArray) -> xr.DataArray:
    """The ADF image or mask, and those of the kinds of column, named."""
    plain = [array.reset_coords(drop=True) for array in (first.expand_dims(template=["ADF"]), others)]
    return xr.concat(plain, "template", coords="minimal", compat="override")


REFERENCES = stacked(adf, images)
REFERENCE_MASKS = stacked(adf_mask, masks)

# %% [markdown]
# ## Correlations
#
# Of every component's image with the ADF image and with each template-derived image, over the scan. Those of principal
# components have no sign of their own: what counts is the absolute value. A component that is a kind of column would
# have one entry near 1 and small ones beside it.

# %%


def table(components: xr.Dataset, prefix: str) -> xr.DataArray:
    """Correlation of each component's image with each reference, dims (image, template)."""
    pictures = components["image"].reset_coords(drop=True).rename(component="template")
    return correlations(
        pictures.assign_coords(template=[f"{prefix} {k}" for k in pictures.template.values]), REFERENCES
    )


R = xr.concat([table(PCA, "PC"), table(NMF, "NMF")], "image")
print(R.to_pandas().round(2))

# %% [markdown]
# ## The figure

# %%


@styled
def draw_correlations(figure: Figure | SubFigure, r: xr.DataArray) -> None:
    """The correlations as a heat map."""
    axes = figure.subplots()
    axes.imshow(r.values.T, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(r.values.T):
        colour = "white" if abs(value) > 0.6 else INK
        axes.text(column, row, f"{value:+.2f}".replace("-", "−"), ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(r.sizes["image"]), r.image.values.tolist())
    axes.set_yticks(range(r.sizes["template"]), r.template.values.tolist())
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(PCA.sizes["component"] - 0.5, color="white", linewidth=3)


@styled
def drawn() -> Figure:
    """Four parts below each other: PCA, NMF, references, correlations."""
    height, width = extent_lengths(adf)
    part = 1.55 * (height / width + 1) + 0.8
    figure = new_figure(9.8, 3 * part + 2.4)
    titles = (
        f"Principal components ({PCA.attrs['method']}, {PCA.attrs['reads']} reads): part of the variance, image, mask",
        "Non-negative components: part of the counts, image, pattern (square-root scale)",
        f"ADF image and template-derived images, each over its Pearson mask (dashed: {SEMI_ANGLE:g} mrad)",
        "Correlation of component images with these",
    )
    parts = figure.subfigures(4, 1, height_ratios=[part, part, part, 2.4], hspace=0.04)
    for place, title in zip(parts, titles, strict=True):
        place.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    plot_components(PCA, semi_angle=SEMI_ANGLE, figure=parts[0])
    plot_components(NMF, semi_angle=SEMI_ANGLE, figure=parts[1])
    for axes in plot_columns(REFERENCES, REFERENCE_MASKS, sites=SCAN.sites, figure=parts[2])[1]:
        draw_disk(axes, SEMI_ANGLE, INK)
    draw_correlations(parts[3], R)
    return figure


NUMBERS: dict[str, Any] = {
    "scan": SCAN.name,
    "principal": {
        "method": PCA.attrs["method"],
        "reads": PCA.attrs["reads"],
        **{name: PCA[name].values for name in ("eigenvalue", "fraction", "residual")},
    },
    "nonnegative": {
        "rank": NMF.attrs["rank"],
        "reads": NMF.attrs["reads"],
        "residual": NMF["residual"].item(),
        "fraction": NMF["fraction"].values,
    },
    "equation 6": {"eigenvalue": PCA["eigenvalue"][0].item(), "factor": FACTOR, "correlation": LIKENESS},
    "correlation": {
        str(row): {str(column): R.sel(image=row, template=column).item() for column in R.template.values}
        for row in R.image.values
    },
}
known_scan.write(ARGUMENTS.out, "components", {"figure": drawn()}, NUMBERS)
