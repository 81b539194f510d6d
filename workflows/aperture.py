# %% [markdown]
# # An aperture for the spectrometer
#
# Where in the diffraction pattern would the entrance aperture of a spectrometer collect most when the probe is on one
# kind of atom column, and least when it is on the others? A mask answers with weights of both signs; an aperture is a
# circle. The covariance of its image with each template is exactly the sum of rho times sigma over its pixels, so all
# circles are compared from the one read that the masks need anyway.
#
# The aperture is chosen from elastic scattering alone. It is judged on patterns that it was not chosen from: chosen on
# one half of the scan, read on the other.

# %%
"""Apertures for kinds of atom column, as for EELS: chosen from the correlations, and the images that they make.

python workflows/aperture.py [data] [--out DIR] [--kinds Li O] [--detector-region 24]
"""

import known_scan
import numpy as np
import xarray as xr

import tdm_dask as tdm
from tdm_dask.evaluation.cross_talk import correlations
from tdm_dask.masks.aperture import collection_aperture
from tdm_dask.plot import plot_image
from tdm_dask.plot.aperture import plot_aperture, plot_aperture_signals
from tdm_dask.plot.drawing import draw_sites
from tdm_dask.plot.style import new_figure

ARGUMENTS = known_scan.arguments(
    __doc__,
    kinds={"nargs": "+", "help": "kinds of column; by default the lightest two that are there: Li and O, or O"},
    sigma={"type": float, "default": 0.35, "help": "width of the templates' Gaussians, in angstrom"},
    detector_region={
        "before": ["--within"],
        "action": known_scan.Renamed,
        "type": float,
        "default": 24.0,
        "help": "largest angle that the apertures reach to, in mrad",
    },
)
scan = known_scan.load(ARGUMENTS.data, ARGUMENTS.out, sites=ARGUMENTS.sites)
counts = scan.counts if not ARGUMENTS.quick else tdm.crop(scan.counts, y=slice(0, 32), x=slice(0, 32))
kinds = ARGUMENTS.kinds or [kind for kind in ("Li", "O") if kind in scan.sites]

# %% [markdown]
# ## One read for all apertures

# %%
template = tdm.gaussian_template(counts, scan.sites, sigma=ARGUMENTS.sigma).compute()
region = tdm.disk(counts, ARGUMENTS.detector_region) > 0
found = tdm.correlate(counts, template, detector_region=region).compute()
apertures = {kind: collection_aperture(found, kind) for kind in kinds}

# %% [markdown]
# ## The images that they make
#
# One more read, beside that of the whole bright-field disk and of the Pearson masks.

# %%
masks = tdm.derive_mask(found)
disk = tdm.disk(counts, counts.attrs["semi_angle_mrad"])
plain = xr.concat([*(found.aperture for found in apertures.values()), disk], "template")
images = tdm.apply_mask(counts, plain.assign_coords(template=[*kinds, "BF disk"])).compute()
table = correlations(images, template)  # R: each image against each template

# %% [markdown]
# ## Chosen on one half, read on the other

# %%
half = counts.sizes["y"] // 2
first, second = (slice(0, half), slice(None)), (slice(half, None), slice(None))
held_out: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
for chosen_on, read_on in ((first, second), (second, first)):
    chosen = tdm.correlate(counts, template, detector_region=region, scan_region=chosen_on).compute()
    read = tdm.correlate(counts, template, detector_region=region, scan_region=read_on).compute()
    for kind in kinds:
        aperture = collection_aperture(chosen, kind).aperture
        signal = (read["rho"] * read["std"] * aperture).sum(("ky", "kx"))
        z = signal / np.sqrt(float((read["mean"] * aperture).sum()))
        held_out[kind].append(
            {str(name): float(value) for name, value in zip(z.template.values, z.values, strict=True)}
        )

# %% [markdown]
# ## Figure and numbers

# %%
figure = new_figure(8.4, 2.75 * len(kinds))
grid = figure.subplots(len(kinds), 3, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 0.9]})
for (over, image, bars), kind in zip(grid, kinds, strict=True):
    plot_aperture(apertures[kind], masks.sel(template=kind), semi_angle=counts.attrs["semi_angle_mrad"], axes=over)
    plot_image(images.sel(template=kind), title=f"Its image, {kind} sites", axes=image)
    draw_sites(image, images, {kind: scan.sites[kind]}, list(scan.sites).index(kind))
    plot_aperture_signals(apertures[kind], axes=bars)

numbers = {
    "data": scan.name,
    "probes": counts.sizes["y"] * counts.sizes["x"],
    "sigma_angstrom": ARGUMENTS.sigma,
    "caveat": apertures[kinds[0]].attrs["caveat"],
    "apertures": {
        kind: {
            "centre_mrad_ky_kx": a.attrs["centre_mrad"],
            "radius_mrad": a.attrs["radius_mrad"],
            "part_of_the_counts_within": float(a.collected),
            "snr": dict(zip(a.template.values.tolist(), a.snr.values.tolist(), strict=True)),
            "contrast": dict(zip(a.template.values.tolist(), a.contrast.values.tolist(), strict=True)),
            "snr_held_out_by_halves": held_out[kind],
        }
        for kind, a in apertures.items()
    },
    "R": {
        str(image): dict(zip(table.template.values.tolist(), table.sel(image=image).values.tolist(), strict=True))
        for image in table.image.values
    },
}
known_scan.write(ARGUMENTS.out, "aperture", {"apertures": figure}, numbers)
for kind, a in numbers["apertures"].items():
    centre = ", ".join(f"{c:.1f}" for c in a["centre_mrad_ky_kx"])
    signals = ", ".join(f"{name} {value:+.1f}" for name, value in a["snr"].items())
    print(f"{kind:>6}: {a['radius_mrad']:.1f} mrad at ({centre}) mrad; signal over shot noise: {signals}")
