"""What every public plotting function draws in the tests: the sample that ships with the package, and what follows
from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tdm_dask as tdm
from tdm_dask import plot
from tdm_dask.axes import axis_coordinate
from tdm_dask.columns.lattice import Lattice
from tdm_dask.evaluation.verdict import evidence
from tdm_dask.imaging.components import nonnegative_components, principal_components
from tdm_dask.imaging.deflection import centre_of_mass
from tdm_dask.imaging.line_profiles import averaged_profile, normalised, profile_sites
from tdm_dask.imaging.matrix_view import matrix_view
from tdm_dask.masks.aperture import collection_aperture
from tdm_dask.masks.ridge import regularisation_curve

DATA = Path(tdm.__file__).parent / "data"
SEMI_ANGLE = 23.5
CELL = (10.332, 6.010)
CASES: dict[str, Callable[..., Any]] = {}


class Sample:
    """The sample, calibrated, and everything that figures are drawn of, each made when it is first asked for."""

    @cached_property
    def counts(self):
        counts = tdm.open(DATA / "lifepo4_001.mib").compute()
        options = {"semi_angle": SEMI_ANGLE, "scan_step": (0.3229, 0.3220), "energy": "200 keV"}
        return tdm.calibrate(counts, **options)

    @cached_property
    def sites(self):
        listed = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))
        return {kind: np.array(places) for kind, places in listed.items()}

    @cached_property
    def disk(self):
        return tdm.disk(self.counts, 24.0) > 0

    @cached_property
    def templates(self):
        return tdm.gaussian_template(self.counts, self.sites, sigma=0.35, all_name="all").compute()

    @cached_property
    def correlations(self):
        return tdm.correlate(self.counts, self.templates).compute()

    @cached_property
    def within(self):
        return tdm.correlate(self.counts, self.templates, detector_region=self.disk).compute()

    @cached_property
    def masks(self):
        return tdm.derive_mask(self.within)

    @cached_property
    def images(self):
        return tdm.apply_mask(self.counts, self.masks, normalisation="standardised").compute()

    @cached_property
    def pacbed(self):
        return self.correlations["mean"]

    @cached_property
    def adf(self):
        image = tdm.apply_mask(self.counts, tdm.annulus(self.counts, 30, 45)).compute()
        return image.assign_coords(template="ADF")

    @cached_property
    def cross_talk(self):
        return tdm.cross_talk(self.images, self.templates)

    @cached_property
    def aperture(self):
        return collection_aperture(self.within.drop_sel(template="all"), "Li")

    @cached_property
    def principal(self):
        return principal_components(self.counts, n=4, detector_region=self.disk)

    @cached_property
    def nonnegative(self):
        return nonnegative_components(self.counts, 2, rank=3, detector_region=self.disk)

    @cached_property
    def matrix(self):
        return matrix_view(self.counts, self.masks, shape=(40, 60), order="sorted")

    @cached_property
    def lines(self):
        return matrix_view(self.counts, shape=(40, 40), order="concatenated", normalisation="none")

    @cached_property
    def curve(self):
        lambdas = np.geomspace(1e-4, 10, 13).tolist()
        return regularisation_curve(self.counts, self.templates[:4], detector_region=self.disk, regularisation=lambdas)

    @cached_property
    def com(self):
        return centre_of_mass(self.counts)

    @cached_property
    def evidence(self):
        kinds = {kind: self.sites[kind] for kind in ("Fe", "O")}
        return evidence(self.counts, kinds, CELL, sigma=0.35, detector_region=self.disk, draws=20)


def uncalibrated(array):
    """The same numbers on axes that count pixels."""
    return array.assign_coords({dim: axis_coordinate(dim, array.sizes[dim]) for dim in array.dims if dim != "template"})


def case(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Add a drawing: that of `plot_<name>` where its own name is `<name>` or `<name>__<what is special>`."""
    CASES[draw.__name__] = draw
    return draw


def function_of(name: str) -> str:
    return "plot_" + name.partition("__")[0]


@case
def image(sample, **given):
    return plot.plot_image(sample.images.sel(template="Li"), sites=sample.sites, **given)


@case
def image__px(sample, **given):
    return plot.plot_image(uncalibrated(sample.adf), title="ADF", **given)


@case
def mask(sample, **given):
    return plot.plot_mask(sample.masks.sel(template="O"), semi_angle=SEMI_ANGLE, **given)


@case
def mask__whole(sample, **given):
    rho = sample.correlations["rho"].sel(template="Li")
    return plot.plot_mask(rho, semi_angle=SEMI_ANGLE, title="Li, whole detector", **given)


@case
def mask__px(sample, **given):
    return plot.plot_mask(uncalibrated(sample.masks.sel(template="Li")), **given)


@case
def pacbed(sample, **given):
    return plot.plot_pacbed(sample.pacbed, semi_angle=SEMI_ANGLE, **given)


@case
def pacbed__px(sample, **given):
    return plot.plot_pacbed(uncalibrated(sample.pacbed), **given)


@case
def columns(sample, **given):
    images, masks = (a.isel(template=[0, 1, 3]) for a in (sample.images, sample.masks))
    return plot.plot_columns(images, masks, sites=sample.sites, semi_angle=SEMI_ANGLE, **given)


@case
def columns__one(sample, **given):
    one = slice(2, 3)
    return plot.plot_columns(sample.images[one], sample.masks[one], semi_angle=SEMI_ANGLE, **given)


@case
def columns__seven(sample, **given):
    which, names = [0, 1, 2, 3, 4, 0, 1], [*"ABCDEFG"]
    corner = sample.images[:, :14, :18]
    images, masks = (a.isel(template=which).assign_coords(template=names) for a in (corner, sample.masks))
    return plot.plot_columns(images, masks, semi_angle=SEMI_ANGLE, **given)


@case
def columns__px(sample, **given):
    return plot.plot_columns(*(uncalibrated(a[:2]) for a in (sample.images, sample.masks)), **given)


@case
def cross_talk(sample, **given):
    return plot.plot_cross_talk(sample.cross_talk, **given)


@case
def sites(sample, **given):
    lattice = Lattice(np.diag([CELL[0], CELL[1]]), {"Li": sample.sites["Li"][:1] / CELL})
    return plot.plot_sites(sample.adf, sample.sites, lattice=lattice, **given)


@case
def radial_profile(sample, **given):
    one = sample.correlations.sel(template="O")
    marks = {"1": (4.0, 4.0), "2": (0.0, 30.0)}
    return plot.plot_radial_profile(one, semi_angle=SEMI_ANGLE, marks=marks, title="O columns", **given)


@case
def aperture(sample, **given):
    mask = sample.masks.sel(template="Li")
    return plot.plot_aperture(sample.aperture, mask, semi_angle=SEMI_ANGLE, **given)


@case
def aperture_signals(sample, **given):
    return plot.plot_aperture_signals(sample.aperture, **given)


@case
def components(sample, **given):
    return plot.plot_components(sample.principal.assign_attrs(semi_angle_mrad=SEMI_ANGLE), **given)


@case
def components__nonnegative(sample, **given):
    return plot.plot_components(sample.nonnegative, semi_angle=SEMI_ANGLE, **given)


@case
def displacements(sample, **given):
    y, x = (sample.sites["Fe"] + 0.02).T
    moves = {"dy": 0.12 * np.sin(x / 2), "dx": 0.12 * np.cos(y / 3)}
    moves["dy"][0] = np.nan
    found = xr.Dataset({name: ("column", values) for name, values in ({"y": y, "x": x} | moves).items()})
    inside = (found.y > 0) & (found.y < 13.2) & (found.x > 0) & (found.x < 13.2)
    return plot.plot_displacements(found.where(inside, drop=True), sample.adf, title="Fe, moved", **given)


@case
def matrix(sample, **given):
    return plot.plot_matrix(sample.matrix, title="Sorted and standardised", **given)


@case
def matrix__lines(sample, **given):
    return plot.plot_matrix(sample.lines, title="Line after line", **given)


@case
def deflection(sample, **given):
    return plot.plot_deflection(sample.com, title="Centre of mass", **given)


@case
def line_profiles(sample, **given):
    at = {"start": (sample.sites["Li"][0][0], 0.0), "period": (0.0, CELL[1]), "width": 1.5, "repeat": (CELL[0], 0.0)}
    every = averaged_profile(xr.concat([sample.images[:2], sample.images[-1:]], "template"), **at)
    found = normalised(every)
    marked = profile_sites(every, sample.sites)
    profiles = {str(name): found.sel(template=name) for name in found.template.values}
    return plot.plot_line_profiles(profiles, sites=marked, title="One period along x", **given)


@case
def regularisation(sample, **given):
    return plot.plot_regularisation(sample.curve, **given)


def _series():
    """How a made-up measure goes with defocus, for three ways of making an image."""
    defocus = np.arange(-12.0, 13.0, 3.0)
    values = np.exp(-((defocus[:, None] - [0.0, 3.0, 1.0]) ** 2) / [30.0, 60.0, 250.0])
    coords = {"defocus": defocus, "image": ["ABF", "iCoM", "TDM"]}
    found = xr.DataArray(values, coords, ("defocus", "image"), attrs={"long_name": "R", "units": "1"})
    found["defocus"].attrs.update(units="nm", long_name="defocus")
    return found


@case
def series(sample, **given):
    curves = _series()
    return plot.plot_series(curves, "defocus", spread=0.05 + 0 * curves, mark=0.0, title="R, all columns", **given)


@case
def image_series(sample, **given):
    found = xr.concat([sample.images[:2] + n * sample.images[2] for n in (0, 1, 2)], "thickness")
    found["thickness"] = ("thickness", [10.0, 20.0, 40.0], {"units": "nm", "long_name": "thickness"})
    return plot.plot_image_series(found, "thickness", **given)


@case
def image_series__masks(sample, **given):
    found = xr.concat([sample.masks[:2] + n * sample.masks[2] for n in (0, 1, 2)], "thickness")
    found["thickness"] = ("thickness", [10.0, 20.0, 40.0], {"units": "nm", "long_name": "thickness"})
    return plot.plot_image_series(found, "thickness", semi_angle=SEMI_ANGLE, **given)


@case
def offsets(sample, **given):
    return plot.plot_offsets(sample.evidence.offsets, "O", **given)


@case
def offsets__image(sample, **given):
    return plot.plot_offsets(sample.evidence.offsets, "Fe", of="image_correlation", **given)


@case
def significance(sample, **given):
    return plot.plot_significance(sample.evidence.null, "O", semi_angle=SEMI_ANGLE, **given)


@case
def influence(sample, **given):
    rng, names = np.random.default_rng(5), ["original", "+y", "+x"]
    moved = {"y": np.tile([0.0, 0.3, 0.0], (3, 1)), "x": np.tile([0.0, 0.0, 0.3], (3, 1))}
    slopes = np.array([0.12, 0.45, 0.9])[:, None]
    values: dict[str, Any] = {"slope": ("kind", slopes[:, 0]), "slope_error": ("kind", [0.02, 0.05, np.nan])}
    for dim, by in moved.items():
        values[f"template_d{dim}"] = (("kind", "alternative"), by)
        values[f"image_d{dim}"] = (("kind", "alternative"), slopes * by + rng.normal(0, 0.004, by.shape))
    return plot.plot_influence(xr.Dataset(values, {"kind": ["Pb", "Ti+O", "O"], "alternative": names}), **given)


@case
def verdicts(sample, **given):
    labels = {"set": ["true sites", "moved sites", "random sites"], "template": ["Li", "Fe", "P+O", "O"]}
    held_out = [[0.85, 0.71, 0.6, 0.75], [0.7, 0.75, 0.65, 0.6], [0.05, -0.1, 0.12, 0.0]]
    words = [["supported", "not distinguished from other offsets", "not distinguished from other offsets", "supported"]]
    words += [["not supported"] * 4] * 2
    found = (xr.DataArray(values, labels, ("set", "template")) for values in (held_out, words))
    return plot.plot_verdicts(*found, **given)


@case
def occupancy(sample, **given):
    rng = np.random.default_rng(3)
    kinds = np.repeat(["Li", "O"], [24, 36])
    group = np.concatenate([np.zeros(24, int), np.repeat([0, 1], 18)])
    state = np.where(np.arange(60) % 9 == 8, "near", "intact").astype("U12")
    state[[5, 40]] = "antisite", "vacancy"
    ratio = rng.normal(0, 1, 60)
    ratio[[5, 40]] = 24.0, -31.0
    values = {"kind": kinds, "group": group, "state": state, "ratio": ratio}
    return plot.plot_occupancy(xr.Dataset({name: ("column", v) for name, v in values.items()}), **given)


@case
def detection(sample, **given):
    occupancies = [0.0, 0.25, 0.5, 0.75, 0.9]
    columns = {"O": (occupancies, [-32.0, -23.5, -16.0, -7.0, -3.1]), "Li": (occupancies, [1.5, 1.9, 0.4, -0.2, 0.3])}
    return plot.plot_detection(columns, limits={"O": 0.9, "Li": np.nan}, **given)


@case
def misfit(sample, **given):
    return plot.plot_misfit(_matched(sample), truth=40.0, **given)


@case
def matched_patterns(sample, **given):
    return plot.plot_matched_patterns(_matched(sample), semi_angle=SEMI_ANGLE, **given)


def _matched(sample):
    """A match as `match_thickness` gives it, of a pattern that is the measured one with its fringes weakened."""
    t = np.arange(20.0, 61.0, 4.0)
    misfit = 12 + 0.15 * (t - 40.6) ** 2
    smooth = sample.pacbed * (1 + 0.1 * np.cos(sample.pacbed["kx"] / 12) * np.cos(sample.pacbed["ky"] / 15))
    curve = {"misfit": ("thickness", misfit), "misfit_error": ("thickness", 2 + 0.05 * abs(t - 40.6))}
    one = {"thickness_nm": 40.6, "thickness_error_nm": 0.7, "measured": sample.pacbed, "matched": smooth}
    return xr.Dataset(curve | one, {"thickness": t})
