# %% [markdown]
# # A whole scan as one picture (Fig. 1c, d)
#
# A 4D scan is a matrix **D**: every probe position is a row, every detector pixel a column, each count is there once.
# Concatenated, line after line, it shows little (Fig. 1c). With columns sorted by scattering angle and rows by the
# counts at high angles, and every column standardised (eq. 3), the structure of the data is seen at once (Fig. 1d):
# beyond the bright-field disk everything gets brighter together, weakly, in noise; inside it, bands rise and fall.
#
# A mask is a row vector over the same columns. Below the picture are an annular bright-field and an annular dark-field
# mask, and masks derived from templates of single kinds of column, averaged over the same bins.

# %%
"""The whole data matrix, concatenated and sorted, with masks below it (Fig. 1c, d)."""

from __future__ import annotations

import known_scan
import numpy as np
import xarray as xr

import tdm_dask as tdm
from tdm_dask.imaging.matrix_view import matrix_view
from tdm_dask.plot.matrix import plot_matrix
from tdm_dask.plot.style import new_figure

SIGMA = 0.35  # angstrom, of the Gaussian templates
ABF = (11.0, 23.5)  # mrad, the paper's
PAPER_HIGH_ANGLE = 25.0  # mrad, where the paper's high angles begin

ARGUMENTS = known_scan.arguments(__doc__)
SCAN = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
COUNTS = SCAN.counts
SHAPE = (200, 200) if ARGUMENTS.quick else (1000, 1000)
print(f"{SCAN.name}: {COUNTS.shape}, {np.prod(COUNTS.shape[:2])} rows and {np.prod(COUNTS.shape[2:])} columns")

# %% [markdown]
# ## Masks
#
# Two conventional ones, and Pearson masks of every kind of column within the bright-field disk. One read.

# %%
outer = float(min(abs(COUNTS[d].values[[0, -1]]).min() for d in ("ky", "kx")))
conventional = {"ABF": tdm.annulus(COUNTS, *ABF), "ADF": tdm.annulus(COUNTS, PAPER_HIGH_ANGLE, outer)}
templates = tdm.gaussian_template(COUNTS, SCAN.sites, sigma=SIGMA)
derived = tdm.derive_mask(COUNTS, templates, detector_region=tdm.disk(COUNTS, 24.0) > 0.5).compute()
MASKS = xr.concat(
    [*conventional.values(), *(derived.sel(template=kind, drop=True) for kind in SCAN.sites)],
    xr.IndexVariable("template", [*conventional, *SCAN.sites]),
    coords="minimal",
    compat="override",
    join="override",
    combine_attrs="drop",
)

# %% [markdown]
# ## The matrix, twice
#
# Never formed: each read of the counts adds them to a thousand rows and columns at most. The sorted one takes the
# statistics of every pixel from the store, one read of the pixels at high angles for the order of the rows, and one for
# the picture.

# %%
CONCATENATED = matrix_view(COUNTS, shape=SHAPE, order="concatenated", normalisation="none").compute()
SORTED = matrix_view(COUNTS, MASKS, shape=SHAPE).compute()
# The bright-field disk takes a small part of the columns: once more, for itself.
disk = tdm.disk(COUNTS, 1.05 * COUNTS.attrs["semi_angle_mrad"]) > 0.5
BRIGHT = matrix_view(COUNTS, MASKS.drop_sel(template="ADF"), shape=SHAPE, detector_region=disk).compute()

# %% [markdown]
# ## What the picture says in numbers
#
# Rows were sorted by high angles alone. How far does every column follow that order? Beyond the disk every column does;
# inside it, columns go along and against: those are the signals that single kinds of column have to themselves.

# %%
rank = np.arange(SORTED.sizes["row"])
matrix = SORTED["matrix"].values
constant = matrix.std(0) == 0
FOLLOWS = np.array([0.0 if c else np.corrcoef(rank, m)[0, 1] for c, m in zip(constant, matrix.T, strict=True)])
semi_angle = float(COUNTS.attrs["semi_angle_mrad"])
beyond = SORTED["angle"].values > SORTED.attrs["high_angle_mrad"]
inside = SORTED["angle"].values < semi_angle
NUMBERS = {
    "scan": SCAN.name,
    "shape_of_the_matrix": [int(np.prod(COUNTS.shape[:2])), int(np.prod(COUNTS.shape[2:]))],
    "shape_of_the_picture": list(SORTED["matrix"].shape),
    "high_angle_mrad": SORTED.attrs["high_angle_mrad"],
    "high_angle_counts": [float(SORTED["high_angle_counts"][n]) for n in (0, -1)],
    "columns_beyond_the_disk_that_follow_the_order": float((FOLLOWS[beyond] > 0).mean()),
    "columns_inside_that_go_against_it": float((FOLLOWS[inside] < 0).mean()),
    "median_correlation_with_the_order": {
        "inside": float(np.median(FOLLOWS[inside])),
        "beyond": float(np.median(FOLLOWS[beyond])),
    },
}

# %%
figure = new_figure(14.0, 4.9)
left, middle, right = figure.subplots(1, 3)
plot_matrix(CONCATENATED, title="Concatenated counts D", axes=left)
plot_matrix(SORTED, title="Sorted and standardised D̂", axes=middle)
plot_matrix(BRIGHT, title="D̂ inside the bright-field disk", axes=right)
for key, value in NUMBERS.items():
    print(f"{key.replace('_', ' ')}: {value}")
known_scan.write(ARGUMENTS.out, "matrix", {"figure": figure}, NUMBERS)
