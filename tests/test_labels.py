"""Results say what they are: a quantity and a unit on everything that a public function returns, for `.plot()`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.errors import CountsError

CELL = (3.0, 3.0)
SITES = {
    "A": np.array([(y, x) for y in (0.0, 3, 6, 9) for x in (0.0, 3, 6, 9)]),
    "B": np.array([(y, x) for y in (1.5, 4.5, 7.5) for x in (1.5, 4.5, 7.5)]),
}
SIGMA = 0.5
LATTICE = tdm.Lattice([[3.0, 0], [0, 3.0]], {"A": [(0, 0)], "B": [(0.5, 0.5)]})


@pytest.fixture(scope="module")
def counts() -> xr.DataArray:
    """A scan of two kinds of columns, calibrated, with pixels and patterns that are not valid and with descan."""
    steps = {dim: axis_coordinate(dim, 36, 0.25, 0.0, "angstrom") for dim in ("y", "x")}
    angles = {dim: axis_coordinate(dim, 16, 4.0, -30.0, "mrad") for dim in ("ky", "kx")}
    scan = xr.DataArray(np.zeros((36, 36)), steps, ("y", "x"))
    weights = tdm.gaussian_template(scan, SITES, sigma=SIGMA)
    k = xr.Dataset(coords=angles)
    inside = 1 / (1 + np.exp(np.hypot(k.ky, k.kx) - 20))
    mean = 1 + 40 * inside * (1 + 0.5 * weights[0] * np.sign(k.kx) - 0.3 * weights[1] * np.sign(k.ky))
    mean = mean + 6 * (weights[0] + 0.3 * weights[1])
    values = np.random.default_rng(0).poisson(mean.transpose("y", "x", "ky", "kx")).astype(np.uint16)
    valid = {
        "valid_pixels": (("ky", "kx"), np.ones((16, 16), bool)),
        "valid_patterns": (("y", "x"), np.ones((36, 36), bool)),
    }
    valid["valid_pixels"][1][3, 4] = valid["valid_patterns"][1][0, 1] = False
    still = {f"descan_{dim}": (("y", "x"), np.zeros((36, 36))) for dim in ("ky", "kx")}
    return tdm.label_counts(values, {**steps, **angles, **valid, **still}, {"energy_eV": 200e3})


def templates(counts):
    return tdm.gaussian_template(counts, SITES, sigma=SIGMA)


def masks(counts):
    return tdm.derive_mask(counts, templates(counts))


def images(counts):
    return tdm.apply_mask(counts, masks(counts), normalisation="standardised")


def adf(counts):
    return tdm.apply_mask(counts, tdm.annulus(counts, 22, 32)).fillna(0)


def deflection(counts):
    return tdm.centre_of_mass(counts).fillna(0)


def profile(counts):
    return tdm.averaged_profile(adf(counts), (3, 0), (0, 3), width=1)


def library(counts):
    angle = np.hypot(counts.ky, counts.kx)
    thicknesses = xr.DataArray(
        np.arange(20.0, 62, 6), dims="thickness", attrs={"units": "nm", "long_name": "thickness"}
    )
    return np.exp(-((angle / 9) ** 2)) * (2 + np.cos(angle * thicknesses / 60)).assign_coords(thickness=thicknesses)


def a_match(counts):
    known = library(counts)
    pattern = (1e5 * known.interp(thickness=43.0)).drop_vars("thickness").assign_attrs(units="counts")
    return tdm.match_thickness(pattern, known, rotation=0, scale=1)


def a_store(counts, tmp_path):
    tdm.convert(counts, tmp_path / "scan.zarr")
    return tmp_path / "scan.zarr"


def vendor_files(tmp_path, *shape):
    np.save(tmp_path / "scan.npy", np.ones(shape, np.uint16))
    return tmp_path / "scan.npy"


def a_recipe(counts, tmp_path):
    (tmp_path / "sites.json").write_text(json.dumps({kind: places.tolist() for kind, places in SITES.items()}))
    recipe = {
        "source": {"path": str(a_store(counts, tmp_path))},
        "detectors": {"ADF": "adf:22:30"},
        "templates": {"sites": str(tmp_path / "sites.json"), "shape": "gaussian", "sigma": SIGMA},
        "evidence": {"cell": list(CELL)},
    }
    result = tdm.run_recipe(recipe, tmp_path / "out")
    return [result.counts, result.pacbed, result.masks, result.images, result.evaluation, result.evidence]


def pacbed(specimen_thickness):
    pytest.importorskip("abtem")
    from tdm_dask.simulation.specimens import lifepo4

    specimen = lifepo4(size=(8, 8), thickness=specimen_thickness)
    return tdm.simulate_pacbed(
        specimen, [specimen_thickness], potential_sampling=0.26, max_angle=30, soft_edge=0, scan_step=1.3
    )


def simulated(tmp_path):
    pytest.importorskip("abtem")
    from tdm_dask.simulation.specimens import lifepo4

    specimen = lifepo4(size=(4, 4), thickness=9)
    options = {"potential_sampling": 0.26, "max_angle": 30, "soft_edge": 0, "scan_step": 2.0}
    return tdm.simulate(specimen, tmp_path / "scan.zarr", **options)


def an_occupancy_table(counts):
    suspects = [{"kind": "B", "site": (4.5, 4.5), "defect": "vacancy", "occupancy": 0.0}]
    once = {kind: places[(places < 9).all(1)] for kind, places in SITES.items()}
    return tdm.occupancy_table(images(counts), once, (9.0, 9.0), suspects=suspects, apart=1.0)


class Largest(tdm.Reduction):
    """Largest count."""

    units = "counts"

    def __init__(self, *dims):
        self.dims = dims

    def start(self, shape):
        return np.zeros(shape or ())

    def add(self, state, block):
        if self.dims == ("y", "x"):
            np.maximum.at(state, block.scan, block.counts.max((1, 2)))
        else:
            state[...] = np.maximum(state.max(), block.counts.max())
        return state

    def merge(self, first, second):
        return np.maximum(first, second)


CASES = {
    "annulus": lambda c, p: tdm.annulus(c, 22, 30),
    "apply_mask": lambda c, p: [
        *(tdm.apply_mask(c, masks(c), normalisation=n) for n in ("none", "standardised")),
        tdm.apply_mask(c, tdm.derive_mask(c, templates(c), method="mean-scaled")),
    ],
    "averaged_profile": lambda c, p: profile(c),
    "bin": lambda c, p: tdm.bin(c, scan=2, detector=2),
    "binary_template": lambda c, p: tdm.binary_template(c, SITES, radius=0.6, all_name="all"),
    "calibrate": lambda c, p: tdm.calibrate(c, semi_angle=20, scan_step=0.25, energy="200 keV"),
    "centre_of_mass": lambda c, p: tdm.centre_of_mass(c),
    "collection_aperture": lambda c, p: tdm.collection_aperture(tdm.correlate(c, templates(c)), "A"),
    "column_images": lambda c, p: tdm.column_images(c, templates(c)),
    "convert": lambda c, p: tdm.convert(c, p / "scan.zarr"),
    "convert_stack": lambda c, p: tdm.convert_stack(vendor_files(p, 2, 4, 4, 8, 8), p / "series.zarr"),
    "correlate": lambda c, p: tdm.correlate(c, templates(c)),
    "counting_variance": lambda c, p: [
        tdm.counting_variance(c, masks(c), normalisation=n) for n in ("none", "standardised")
    ],
    "crop": lambda c, p: tdm.crop(c, y=slice(2, 9), kx=slice(2, 9)),
    "cross_talk": lambda c, p: tdm.cross_talk(images(c), templates(c)),
    "derive_mask": lambda c, p: [
        tdm.derive_mask(c, templates(c), method=m, **o)
        for m, o in (
            *(("pearson", {}), ("mean-scaled", {})),
            *(("ridge", {"regularisation": 0.1}), ("ridge", {"counts_per_electron": 1.0})),
        )
    ],
    "descan": lambda c, p: tdm.descan(c),
    "differential_phase_contrast": lambda c, p: tdm.differential_phase_contrast(c, tdm.segments(c, 2, 24)),
    "disk": lambda c, p: tdm.disk(c, "20 mrad"),
    "displacements": lambda c, p: [
        tdm.displacements(SITES["B"], SITES["A"]),
        tdm.displacements(tdm.refine_columns(adf(c), {"B": SITES["B"]}), tdm.refine_columns(adf(c), {"A": SITES["A"]})),
    ],
    "evidence": lambda c, p: (lambda found: [found.table, found.offsets, found.null])(
        tdm.evidence(c, SITES, CELL, sigma=SIGMA, draws=25)
    ),
    "from_signal": lambda c, p: tdm.from_signal(tdm.to_signal(c)),
    "gaussian_template": lambda c, p: [
        templates(c),
        tdm.gaussian_template(c, SITES["A"], sigma=SIGMA),
        tdm.gaussian_template(c.chunk(y=12), SITES, sigma=1),
    ],
    "held_out_cross_talk": lambda c, p: [
        tdm.held_out_cross_talk(c, templates(c), by=by) for by in ("halves", "electrons")
    ],
    "integrated_centre_of_mass": lambda c, p: tdm.integrated_centre_of_mass(deflection(c), energy="200 keV"),
    "label_counts": lambda c, p: tdm.label_counts(c.values),
    "lattice_snr": lambda c, p: tdm.lattice_snr(images(c).fillna(0), CELL),
    "line_profile": lambda c, p: tdm.line_profile(adf(c), (3, 0), (3, 8), width=1),
    "live_image": lambda c, p: list(tdm.live_image(c, masks(c), normalisation="standardised"))[-1],
    "match_thickness": lambda c, p: a_match(c),
    "matrix_view": lambda c, p: tdm.matrix_view(c, masks(c), shape=(32, 32), high_angle=22),
    "nonnegative_components": lambda c, p: tdm.nonnegative_components(c, 2),
    "null_distribution": lambda c, p: tdm.null_distribution(c, SITES, sigma=SIGMA, draws=20),
    "occupancy_table": lambda c, p: an_occupancy_table(c),
    "offset_scan": lambda c, p: tdm.offset_scan(c, templates(c), CELL),
    "open": lambda c, p: [tdm.open(a_store(c, p)), tdm.open(vendor_files(p, 2, 3, 8, 8))],
    "pixel_statistics": lambda c, p: tdm.pixel_statistics(c),
    "principal_components": lambda c, p: tdm.principal_components(c, 2),
    "proxy": lambda c, p: tdm.proxy(c, detector_region=tdm.disk(c, 20), bin=2),
    "radial_profile": lambda c, p: [
        tdm.radial_profile(tdm.correlate(c, templates(c))),
        tdm.radial_profile(masks(c), width=4),
    ],
    "reciprocal": lambda c, p: [tdm.reciprocal(c, "200 keV"), tdm.reciprocal(masks(c), "200 keV")],
    "reduce": lambda c, p: [
        *(tdm.reduce(c, Largest(*dims), detector_region=tdm.disk(c, 20)) for dims in (("ky", "kx"), ("y", "x"), ())),
        tdm.reduce(c, {"a": Largest("ky", "kx"), "b": Largest("y", "x")}),
    ],
    "refine_columns": lambda c, p: [tdm.refine_columns(adf(c), s) for s in (SITES, SITES["A"])],
    "regularisation_curve": lambda c, p: tdm.regularisation_curve(c, templates(c), regularisation=(0.01, 0.1, 1.0)),
    "run_recipe": lambda c, p: a_recipe(c, p),
    "running_mask": lambda c, p: list(tdm.running_mask(c, templates(c)))[-1],
    "scan_rotation": lambda c, p: tdm.scan_rotation(deflection(c)),
    "segments": lambda c, p: tdm.segments(c, 2, 24),
    "simulate": lambda c, p: simulated(p),
    "simulate_pacbed": lambda c, p: pacbed(9),
    "gap_contrast": lambda c, p: tdm.gap_contrast(images(c), SITES),
    "site_contrast": lambda c, p: tdm.site_contrast(images(c), SITES),
    "split_electrons": lambda c, p: tdm.split_electrons(c),
    "symmetrise_mask": lambda c, p: tdm.symmetrise_mask(masks(c), "4mm"),
    "template_influence": lambda c, p: tdm.template_influence(c, SITES, sigma=SIGMA, radius=1.0),
    "thin": lambda c, p: tdm.thin(c, 0.5),
    "thinned_snr": lambda c, p: tdm.thinned_snr(*(tdm.apply_mask(h, masks(c)) for h in tdm.split_electrons(c))),
    "transfer_mask": lambda c, p: tdm.transfer_mask(masks(c), tdm.bin(c, detector=2)),
}
EXEMPT = {
    "Lattice": "a class",
    "Reduction": "a class",
    "Source": "a class",
    "VendorFile": "a class",
    "__version__": "a text",
    "crystal_block": "gives a Specimen",
    "detection_limit": "gives a number",
    "errors": "a module",
    "find_columns": "gives sites: an array (n, 2) in angstrom",
    "frame_file": "gives a VendorFile",
    "follow": "gives blocks of counts as they arrive",
    "hyperspy": "a module, of functions that give signals",
    "open_signal": "gives a signal",
    "progress_bar": "gives a context",
    "profile_peaks": "gives places on a profile: an array",
    "profile_sites": "gives places on a profile: arrays by kind",
    "random_sites": "gives sites: an array (n, 2) in angstrom",
    "read_sites": "gives sites: arrays (n, 2) in angstrom by kind",
    "refined_sites": "gives sites: arrays (n, 2) in angstrom by kind",
    "register_format": "gives nothing",
    "register_sites": "gives a Registration, with a lattice",
    "scheduler": "gives a client, or nothing",
    "sites_from_cif": "gives a Lattice",
    "to_signal": "gives a signal",
    "verify": "gives numbers of shards and bytes",
    "view": "gives a page",
    "write_report": "gives the names of files",
    "write_sites": "gives nothing",
}


def arrays_of(found) -> list[xr.DataArray | xr.Dataset]:
    if isinstance(found, (xr.DataArray, xr.Dataset)):
        return [found]
    assert isinstance(found, (list, tuple, Iterator))
    return [array for part in found for array in arrays_of(part)]


def complaints(array: xr.DataArray | xr.Dataset) -> list[str]:
    """What has no name or no unit; flags and texts have no unit."""
    parts = {**array.coords, **(array.data_vars if isinstance(array, xr.Dataset) else {"the array": array})}
    missing = []
    for name, part in parts.items():
        wanted = ["long_name"] if part.dtype.kind in "bOUST" else ["long_name", "units"]
        missing += [f"{name} has no {key}" for key in wanted if not part.attrs.get(key)]
    return missing


def test_every_public_name_has_a_case_or_a_reason_to_have_none():
    assert set(CASES) | set(EXEMPT) == set(tdm.__all__)
    assert not set(CASES) & set(EXEMPT)


@pytest.mark.parametrize("name", [name for name in EXEMPT if inspect.isroutine(getattr(tdm, name))])
def test_what_has_no_case_returns_no_labelled_arrays(name):
    assert "xr." not in str(inspect.signature(getattr(tdm, name)).return_annotation)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_results_carry_their_name_and_unit(name, counts, tmp_path):
    arrays = arrays_of(CASES[name](counts, tmp_path))
    assert arrays
    assert not sorted({complaint for array in arrays for complaint in complaints(array)})


@pytest.mark.parametrize("data", [[[1, 2], [3, 4]], None, "counts", 3])
def test_what_is_no_array_is_refused(data):
    with pytest.raises(CountsError, match=f"a {type(data).__name__}; expected a NumPy or dask array"):
        tdm.label_counts(data)
