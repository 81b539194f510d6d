# %% [markdown]
# # Ten minutes with tdm_dask: from a file to an image of lithium
#
# In a 4D-STEM scan every probe position has a diffraction pattern of its own. This tour takes such a scan from the
# microscope's file to images in which one kind of atom column stands out, lithium among them. It then asks what such an
# image is worth, and ends with a recipe that does the same to a terabyte.
#
# The scan comes with the package: a corner of a simulated scan of LiFePO4 along [001], 40 nm thick, with the noise of
# 20 000 electrons per probe position. Nothing else is needed. In JupyterLab (with jupytext) this file opens as a
# notebook; from the command line, `python workflows/tour.py --out DIR` leaves figures, numbers and recipe in a folder.

# %%
"""From the microscope's file to images of every kind of atom column, and to a recipe that does it on a cluster."""

from importlib.resources import files

import known_scan  # the folder for results, and numbers as JSON; lies beside this file
import numpy as np
from scipy.spatial import cKDTree

import tdm_dask as tdm
from tdm_dask.cluster.progress import progress_bar
from tdm_dask.plot import (
    plot_columns,
    plot_cross_talk,
    plot_image,
    plot_mask,
    plot_offsets,
    plot_pacbed,
    plot_sites,
    save_figure,
)

out = known_scan.arguments(__doc__, sample_only=True).out
out.mkdir(parents=True, exist_ok=True)


def show(name, drawn):
    """Keep a figure as a file, and give it back for the notebook to show."""
    save_figure(drawn, out / f"tour-{name}.png")
    return drawn


# %% [markdown]
# ## The file
#
# `tdm.open` takes any of some twenty formats, here a Merlin `.mib` file, and reads the header alone. The counts are an
# xarray array with named axes: `y` and `x` are the scan, `ky` and `kx` the detector. They stay in the file: an array of
# a terabyte opens as fast. `counts.tdm`, printed, says what the array is, and its methods are the functions that suit
# it.

# %%
sample = files("tdm_dask") / "data" / "lifepo4_001.mib"
raw = tdm.open(sample)
print(raw.tdm)

# %% [markdown]
# What was found in the file, and what it does not say, stands in sentences, each with the argument that helps. On the
# command line `tdm info scan.mib` says the same.

# %%
print("\n".join(raw.attrs["findings"]))

# %% [markdown]
# ## The store
#
# Vendor files are slow to read in pieces, and a flipped byte in them goes unnoticed. So the counts are written once to
# a store: compressed, with checksums, cut so that a mask reads only the pixels that it needs. The scan step is given
# here, because the file does not have it. A conversion that was stopped goes on where it was.
#
# A bar goes around whatever takes long; it is shown in notebooks and terminals, and counts the work of threads,
# processes and clusters alike.

# %%
with progress_bar("convert", raw.nbytes):
    counts = tdm.convert(sample, out / "tour.zarr", scan_step=("0.3229 Å", "0.3220 Å"))

# %% [markdown]
# ## Calibration
#
# Templates are in angstrom and masks in mrad, so the axes must be as well. The bright-field disk is found in the mean
# pattern (PACBED), and its radius is the convergence semi-angle, which the microscopist knows: that fixes the optic
# axis and the angle of a pixel. The dashed circle shows what was found. If it does not lie on the edge of the disk,
# nothing that follows can be right, so this is the figure to look at first.

# %%
counts = tdm.calibrate(counts, semi_angle="23.5 mrad", energy="200 keV")
pacbed = tdm.pixel_statistics(counts)["mean"].compute()
pixel = float(counts.ky[1] - counts.ky[0])
print(counts.tdm)
print(f"A pixel is {pixel:.3f} mrad; {float(pacbed.sum()):.0f} counts per pattern.")
show("pacbed", plot_pacbed(pacbed, semi_angle=23.5))

# %% [markdown]
# ## Conventional images
#
# A virtual detector is a mask of ones and zeros. An annulus inside the disk gives annular bright field (ABF), in which
# columns are dark, light ones faintly, and one outside it annular dark field (ADF), in which heavy ones are bright.
# Like everything here the images are lazy: nothing is read before `.compute()`.

# %%
abf = tdm.apply_mask(counts, tdm.annulus(counts, "11 mrad", "23.5 mrad")).compute()
adf = tdm.apply_mask(counts, tdm.annulus(counts, "30 mrad", "45 mrad")).compute()
show("abf", plot_image(abf, title="ABF, 11 to 23.5 mrad"))

# %% [markdown]
# ## Where the columns are
#
# A template needs sites. The columns that the ADF image shows, Fe and P+O, are found as peaks; `Lattice.from_image`
# finds the cell from the image alone, which is the check that the scan step is right (LiFePO4: half of a is 5.166 Å, b
# is 6.010 Å). A lattice with the known motif, fitted to the peaks, then says where lithium and oxygen must be, although
# the image hardly shows them. `tdm.sites_from_cif` and `tdm.register_sites` do the same from a CIF.

# %%
peaks = tdm.find_columns(adf, separation="1.4 Å")
cell = tdm.Lattice.from_image(adf, separation="1.4 Å")
print(f"{len(peaks)} columns; from the image alone: {cell}")

shown = {"Fe": [(0.5644, 0.25), (0.4356, 0.75)], "P+O": [(0.1896, 0.25), (0.8104, 0.75)]}
oxygen = [(0.3312, 0.0465), (0.3312, 0.4535), (0.6688, 0.5465), (0.6688, 0.9535), (0.0858, 0.75), (0.9142, 0.25)]
motif = shown | {"O": oxygen, "Li": [(0.0, 0.0), (0.0, 0.5)]}
lattice = tdm.Lattice([[5.166, 0.0], [0.0, 6.010]], shown).fit(peaks, origin="find").with_motif(motif)
show("sites", plot_sites(adf, lattice.sites(adf), lattice=lattice, title="ADF, fitted lattice"))

# %% [markdown]
# The sample comes with a table of its true sites, and from here on they are used. Other scans have the fitted ones: how
# little that matters here is the distance between the two.

# %%
sites = tdm.read_sites(files("tdm_dask") / "data" / "lifepo4_001_sites.json")
fitted = lattice.sites(adf, margin="1.05 Å")
apart = {kind: float(cKDTree(fitted[kind]).query(sites[kind])[0].max()) for kind in sites}
print("at most", ", ".join(f"{kind} {distance:.2f} Å" for kind, distance in apart.items()), "from the true sites")

# %% [markdown]
# ## Templates
#
# A template says how an image of one kind of column would look: a Gaussian at every site. Its width is about that of
# the probe. Any number of templates goes through every step at the cost of one, so there is one for each kind, and one
# more for all of them together.

# %%
template = tdm.gaussian_template(counts, sites, sigma="0.35 Å", all_name="all")
show("template", plot_image(template.sel(template="Li"), title="Template: Li"))

# %% [markdown]
# ## The mask
#
# Every detector pixel has an image of its own: its counts over the scan. The correlation of that image with the
# template is the weight of the pixel. Where more electrons arrive when the probe is on lithium, it is positive (red);
# where fewer do, negative (blue). Only pixels within the bright-field disk are used here: light atoms hardly scatter
# beyond it.

# %%
disk = tdm.disk(counts, "24 mrad")
mask = tdm.derive_mask(counts, template, detector_region=disk)  # lazy: all masks are one read
with progress_bar("masks", counts.nbytes):
    mask = mask.compute()
show("mask", plot_mask(mask.sel(template="Li"), semi_angle=23.5, title="Mask: Li"))

# %% [markdown]
# ## The image of lithium
#
# The mask is a virtual detector with weights, and applied to all patterns it gives an image. "Standardised" means that
# the counts of every pixel are measured from that pixel's own mean, in its own standard deviations: a bright pixel
# weighs no more than a faint one. The circles are the true sites of lithium, of which ABF shows next to nothing.

# %%
image = tdm.apply_mask(counts, mask, normalisation="standardised")
with progress_bar("images", counts.nbytes):
    image = image.compute()
show("li", plot_image(image.sel(template="Li"), sites={"Li": sites["Li"]}, title="Image: Li"))

# %% [markdown]
# ## All kinds of column
#
# All masks were derived in one read of the counts, and all images made in a second one, so the others are there
# already. Above are the images, below the masks that made them.

# %%
show("columns", plot_columns(image, mask, sites=sites, semi_angle=23.5))

# %% [markdown]
# ## Cross-talk, and masks that have less of it
#
# A mask by correlation is a matched filter: the images of Fe and P+O above show other columns too. R is the correlation
# of an image with every template, and G that of the templates among each other, which a perfect image would have. A
# *ridge* mask is solved for instead, for all templates together, in the same one read: it gives each kind what the
# others do not explain.

# %%
kinds = template.drop_sel(template="all")
ridge = tdm.derive_mask(counts, kinds, detector_region=disk, method="ridge").compute()
ridge_image = tdm.apply_mask(counts, ridge, normalisation="standardised").compute()
before, after = (tdm.cross_talk(i.sel(template=kinds.template), kinds) for i in (image, ridge_image))
show("cross-talk", plot_cross_talk(after))

# %%
show("ridge", plot_columns(ridge_image, ridge, sites=sites, semi_angle=23.5))

# %% [markdown]
# A mask with a weight for every pixel may also learn the noise of the scan that it comes from. So masks are derived
# from one half of the scan and judged on the other, four times: what remains of R is what they are worth.

# %%
held_out = {
    method: tdm.held_out_cross_talk(counts, kinds, detector_region=disk, method=method)["own"].mean("fold")
    for method in ("pearson", "ridge")
}
for method, found in held_out.items():
    print(f"{method:<8}", *(f"{kind} {float(found.sel(template=kind)):.2f}" for kind in sites), sep="  ")

# %% [markdown]
# ## Is it evidence of lithium?
#
# An image that looks like its template is no evidence: in a perfect crystal a template that is put elsewhere is found
# there as well. `tdm.evidence` therefore moves every template over the whole cell, and tries random sites too. In the
# map, the cross is the assumed place, and bright is a strong response; the white line holds what is the same place.
#
# For lithium the answer on this small corner is a careful one: random sites never respond as strongly, but the next
# best place in the cell comes too close to call. In the whole scan, with twice the patterns and finer pixels, the same
# question is answered with "supported". Ask it of your own data before believing an image.

# %%
evidence = tdm.evidence(counts, sites, cell=(10.332, 6.010), sigma="0.35 Å", detector_region=disk, draws=100)
print(evidence)
show("evidence", plot_offsets(evidence.offsets, "Li"))

# %% [markdown]
# ## Trying things quickly
#
# What if the Gaussians were narrower? On a large scan every try would be two reads of the disk. A *proxy* reads the
# pixels that matter once and keeps them in memory as small as they go; masks and images of any other template follow in
# an instant, and `tdm.column_images` confirms the final choice on the full counts. Mind that a wide template is easier
# to match: a higher R is no better image.

# %%
with progress_bar("proxy", counts.nbytes):
    small = tdm.proxy(counts, detector_region=disk)
print(f"{counts.nbytes / 1e6:.1f} MB became {small.nbytes / 1e6:.1f} MB")
widths = {}
for sigma in (0.25, 0.35, 0.50):
    trial = tdm.gaussian_template(small, sites, sigma=sigma)
    trial_image = tdm.apply_mask(small, tdm.derive_mask(small, trial), normalisation="standardised")
    widths[sigma] = float(tdm.cross_talk(trial_image, trial)["R"].sel(image="Li", template="Li"))
    print(f"sigma {sigma:.2f} Å: R of the Li image {widths[sigma]:.2f}")

# %% [markdown]
# ## In HyperSpy
#
# Those who live in HyperSpy stay there. `tdm.to_signal` makes a signal of counts, masks and images, lazy if they are,
# and `tdm.from_signal` goes back; `tdm.open_signal("scan.zarr")` opens a store with a navigator, so that `.plot()`
# appears at once. The functions in `tdm.hyperspy` take signals and regions of interest, and give signals.

# %%
signal = tdm.to_signal(counts)
print(signal)
signal_template = tdm.hyperspy.gaussian_template(signal, {"Li": sites["Li"]}, sigma="0.35 Å")
signal_mask = tdm.hyperspy.derive_mask(signal, signal_template, detector_region=disk)
signal_image = tdm.hyperspy.apply_mask(signal, signal_mask, normalisation="standardised", lazy_output=False)
# The same sums in single precision, taken in another order: they differ by some 1e-6 of the largest value.
lithium = image.sel(template="Li").values
same = bool(np.abs(signal_image.data - lithium).max() <= 1e-5 * np.abs(lithium).max())
print(f"{signal_image}: {'the same image' if same else 'another image'}")

# %% [markdown]
# ## The recipe, for the cluster
#
# What was done here fits into one file that a colleague can read, and a batch job can run:
#
#     tdm plan recipe.toml --out run      # what it will read, need and take
#     tdm run recipe.toml --out run       # report.html; masks and images in a store
#     tdm run recipe.toml --out run --slurm --workers 8 --memory 16GiB --cores 8
#
# The same file works for a scan of a terabyte: the counts are never in memory, and a run that was stopped goes on.

# %%
tdm.write_sites(out / "sites.csv", sites)
recipe = """\
title = "The atom columns of LiFePO4 [001]"

[source]
path = "tour.zarr"                    # paths are relative to this file

[calibration]
semi_angle = "23.5 mrad"
energy = "200 keV"

[detectors]
ABF = "abf:11:23.5"
ADF = "adf:30:45"

[templates]
sites = "sites.csv"
shape = "gaussian"
sigma = "0.35 Å"

[masks]
method = "ridge"
detector_region = "disk:24"

[images]
normalisation = "standardised"

[evidence]
cell = ["10.332 Å", "6.010 Å"]
"""
(out / "recipe.toml").write_text(recipe, encoding="utf-8")
print(out / "recipe.toml")

# %% [markdown]
# ## Where to go from here
#
# `tdm info` on a file of your own. The other scripts in this folder, each a notebook as well: `sites.py` (sites from
# peaks, from a CIF, from a table), `columns.py` (what width and shape of templates do), `evidence.py`, `defects.py`,
# `domain_wall.py`, `comparison.py` (ABF, iCoM and masks side by side), `simulate.py` (a scan of any crystal).

# %%
numbers = {
    "pixel_mrad": pixel,
    "counts_per_pattern": float(pacbed.sum()),
    "cell_angstrom": np.abs(cell.vectors).tolist(),
    "fitted_to_true_sites_angstrom": apart,
    "R": {kind: float(before["R"].sel(image=kind, template=kind)) for kind in sites},
    "R_ridge": {kind: float(after["R"].sel(image=kind, template=kind)) for kind in sites},
    "excess": {kind: float(before["excess"].sel(image=kind)) for kind in sites},
    "excess_ridge": {kind: float(after["excess"].sel(image=kind)) for kind in sites},
    "held_out_R": {method: {kind: float(own.sel(template=kind)) for kind in sites} for method, own in held_out.items()},
    "evidence": evidence.sentences,
    "R_of_width": widths,
    "same_image_in_hyperspy": same,
}
known_scan.write(out, "tour", {}, numbers)
