"""Simulated scans: against abTEM's own multislice, block by block into stores, the same counts each time."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from simulated_scans import simulates

import tdm_dask as tdm
from tdm_dask.errors import InputError, TdmError
from tdm_dask.simulation import simulated_scan
from tdm_dask.simulation.conditions import SIGMAS
from tdm_dask.simulation.conditions import scatterer_of as scatterer_of_request
from tdm_dask.simulation.multislice import simulate, simulate_pacbed
from tdm_dask.simulation.simulated_scan import mean_intensities
from tdm_dask.simulation.specimens import lifepo4

pytestmark = simulates

SMALL = {
    "potential_sampling": 0.26,
    "max_angle": 30.0,
    "soft_edge": 0.0,
    "frozen_phonons": 1,
    "scan_step": 1.3,
    "seed": 5,
}
OPTICS = {"energy": 200e3, "semi_angle": 20.0, "cs": "3 um", "parametrization": "kirkland", "projection": "infinite"}


@pytest.fixture(scope="module")
def specimen():
    return lifepo4(size=(8, 8), thickness=24)


@pytest.fixture
def counted(monkeypatch):
    """How many blocks are simulated."""
    calls = []

    def count(*arguments):
        calls.append(len(arguments[1]))
        return mean_intensities(*arguments)

    monkeypatch.setattr(simulated_scan, "mean_intensities", count)
    return calls


def scatterer_of(specimen, thicknesses=None, **changes):
    options = OPTICS | {
        "soft_edge": 0.0, "slice_thickness": 4.7, "potential_sampling": 0.2, "max_angle": 40.0, "pixel_size": None,
        "frozen_phonons": 1, "sigmas": 0.0, "seed": 0,
    }  # fmt: skip
    return scatterer_of_request(specimen, thicknesses or [specimen.thickness], **options | changes)


def by_abtem(specimen, scatterer, positions, defocus):
    """Intensities (plane, position, order y, order x) of abTEM's own probes, potential and multislice."""
    import abtem

    potential = abtem.Potential(
        specimen.atoms,
        gpts=scatterer.gpts[::-1],
        slice_thickness=(scatterer.slice_thickness,) * scatterer.slices,
        parametrization="kirkland",
        projection="infinite",
        exit_planes=tuple(p - 1 for p in scatterer.planes),
    )
    probe = abtem.Probe(energy=200e3, semiangle_cutoff=20.0, soft=False, Cs=3e4, defocus=defocus)
    probe.grid.match(potential)
    waves = probe.multislice(potential, scan=abtem.CustomScan(positions[:, ::-1]), lazy=False).array
    waves = waves.reshape(len(scatterer.planes), len(positions), *scatterer.gpts[::-1])
    norm = (np.abs(np.fft.fft2(probe.build(lazy=False).array)) ** 2).sum()
    found = (np.abs(np.fft.fft2(waves)) ** 2 / norm).swapaxes(-1, -2)
    rows, columns = (o % n for o, n in zip(scatterer.orders, scatterer.gpts, strict=True))
    return found[..., rows[:, None], columns]


@pytest.mark.parametrize("matrix", [True, False])
@pytest.mark.parametrize("defocus", [0.0, -60.0, 45.0])
def test_patterns_are_those_of_abtem(specimen, matrix, defocus):
    scatterer = scatterer_of(specimen, [10.0, specimen.thickness])
    positions = np.array([(0.3, 0.1), (2.9, 1.5), (7.7, 11.0)])
    found = mean_intensities(scatterer, positions, [defocus], matrix)
    expected = scatterer.on_pixels(by_abtem(specimen, scatterer, positions, defocus).astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=2e-5 * expected.max())


def test_a_soft_edge_is_a_cosine_about_the_semi_angle(specimen):
    scatterer = scatterer_of(specimen, soft_edge=6.0)
    alpha = np.hypot(*(scatterer.beams * scatterer.steps).T)
    amplitude = np.abs(scatterer.probe(np.zeros((1, 2)), 0.0)[0])
    amplitude /= amplitude[alpha < 17].mean()
    expected = np.where(alpha < 17, 1, 0.5 + 0.5 * np.cos(np.pi * (alpha - 17) / 6))
    np.testing.assert_allclose(amplitude, expected, atol=1e-6)
    assert alpha.max() < 23


def test_pixels_of_any_size_gather_every_electron(specimen):
    rng = np.random.default_rng(3)
    for pixel in (2.1, 2.4264, 3.7):
        scatterer = scatterer_of(specimen, pixel_size=pixel)
        inside = np.hypot(*np.meshgrid(*(o * s for o, s in zip(scatterer.orders, scatterer.steps, strict=True)),
                                       indexing="ij")) < 33  # fmt: skip
        intensity = (rng.random(inside.shape) * inside).astype(np.float32)
        found = scatterer.on_pixels(intensity)
        assert found.sum() == pytest.approx(intensity.sum(), rel=1e-5)
        assert found.min() >= 0
        ky = (np.arange(scatterer.detector[0]) - scatterer.detector[0] // 2) * pixel
        centre = (found.sum(1) * ky).sum() / found.sum()
        expected = (intensity.sum(1) * scatterer.orders[0] * scatterer.steps[0]).sum() / intensity.sum()
        assert centre == pytest.approx(expected, abs=0.01 * pixel)


def test_frozen_phonons_follow_the_seed_and_are_averaged(specimen):
    positions = np.array([(2.9, 1.5)])
    one = mean_intensities(scatterer_of(specimen, sigmas=None, seed=1), positions, [0.0], False)
    again = mean_intensities(scatterer_of(specimen, sigmas=None, seed=1), positions, [0.0], False)
    other = mean_intensities(scatterer_of(specimen, sigmas=None, seed=2), positions, [0.0], False)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01 * one.max()
    three = scatterer_of(specimen, sigmas=None, seed=1, frozen_phonons=3)
    each = [
        three.on_pixels(three.from_multislice(three.transmission(n), three.probe(positions, 0.0))[0]) for n in range(3)
    ]
    np.testing.assert_allclose(
        mean_intensities(three, positions, [0.0], False)[0], np.mean(each, 0), atol=1e-6 * one.max()
    )
    displaced = three._displaced(0).positions - specimen.atoms.positions
    for symbol, sigma in SIGMAS.items():
        own = displaced[np.array(specimen.atoms.get_chemical_symbols()) == symbol]
        if len(own):
            assert own.std() == pytest.approx(sigma, rel=4 / np.sqrt(2 * own.size))


def test_a_store_is_calibrated_and_knows_the_truth(specimen, tmp_path):
    counts = simulate(specimen, tmp_path / "scan.zarr", electrons_per_probe=5000.0, **SMALL)
    assert isinstance(counts.data.dask, object)
    assert counts.dtype == np.uint16
    assert counts["y"].attrs["units"] == "angstrom"
    assert counts["kx"].attrs["units"] == "mrad"
    assert counts.sizes["y"] * np.diff(counts["y"].values).mean() == pytest.approx(specimen.cell[0])
    assert counts["ky"].values[counts.sizes["ky"] // 2] == 0
    assert counts.attrs["semi_angle_mrad"] == 23.5
    assert counts.attrs["electrons_per_probe"] == 5000
    truth = json.loads(counts.attrs["truth"])
    assert truth["thickness_nm"] == pytest.approx(specimen.thickness / 10, abs=1e-3)
    assert truth["cell"] == pytest.approx(specimen.cell)
    np.testing.assert_allclose(truth["sites"]["Fe"], specimen.sites["Fe"], atol=1e-4)
    assert truth["dose"] == 5000
    assert str(tdm.verify(tmp_path / "scan.zarr"))
    # The disk that is found in the counts is the one that was put in, to a fifth of a pixel.
    found = tdm.calibrate(counts.drop_vars(["ky", "kx"]), semi_angle=23.5, energy="200 keV")
    step = np.diff(found["kx"].values).mean()
    assert step == pytest.approx(np.diff(counts["kx"].values).mean(), rel=0.06)


def test_counts_are_poisson_numbers_of_the_intensities(specimen, tmp_path):
    intensities = simulate(specimen, tmp_path / "exact.zarr", electrons_per_probe=None, **SMALL).compute()
    assert intensities.dtype == np.float32
    counts = simulate(specimen, tmp_path / "counts.zarr", electrons_per_probe=3e4, **SMALL).compute()
    expected = 3e4 * intensities.values.astype(np.float64)
    enough = expected > 5
    z = (counts.values[enough] - expected[enough]) / np.sqrt(expected[enough])
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert z.var() == pytest.approx(1, abs=10 / np.sqrt(z.size))
    assert simulate(specimen, tmp_path / "many.zarr", electrons_per_probe=1e6, **SMALL).dtype == np.uint32


@pytest.mark.parametrize("method", ["matrix", "multislice"])
def test_counts_do_not_depend_on_blocks(specimen, tmp_path, method):
    whole, blocks = (
        simulate(specimen, tmp_path / f"{block}.zarr", block=block, method=method, **SMALL).compute().values
        for block in (1000, 8)
    )
    # Sums in another order may be rounded otherwise, which another draw of a pattern can follow from.
    assert (whole != blocks).any((2, 3)).mean() < 0.1
    np.testing.assert_allclose(whole.sum(), blocks.sum(), rtol=1e-3)


def test_each_probe_has_noise_of_its_own_and_each_seed_another(specimen, tmp_path):
    options = SMALL | {"sigmas": 0.0}
    exact = simulate(specimen, tmp_path / "exact.zarr", electrons_per_probe=None, **options).compute().values
    one = simulate(specimen, tmp_path / "one.zarr", **options).compute().values
    two = simulate(specimen, tmp_path / "two.zarr", **options | {"seed": 6}).compute().values
    noise = [(c - 2e4 * exact).reshape(-1, exact.shape[2] * exact.shape[3]) for c in (one, two)]
    limit = 6 / np.sqrt(noise[0].shape[1])
    assert abs(np.corrcoef(noise[0][0], noise[0][1])[0, 1]) < limit
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 6 / np.sqrt(noise[0].size)


def test_an_interrupted_simulation_goes_on_and_gives_the_same_counts(specimen, tmp_path, counted, monkeypatch):
    options = SMALL | {"block": 8}
    expected = simulate(specimen, tmp_path / "whole.zarr", **options).compute()
    blocks = len(counted)
    assert blocks > 3
    done = []

    def stop(*arguments):
        if len(done) == 2:
            raise InputError("stopped")
        done.append(0)
        return mean_intensities(*arguments)

    monkeypatch.setattr(simulated_scan, "mean_intensities", stop)
    with pytest.raises(TdmError, match="stopped"):
        simulate(specimen, tmp_path / "scan.zarr", **options)
    counted.clear()
    monkeypatch.setattr(simulated_scan, "mean_intensities", partial(_count, counted))
    found = simulate(specimen, tmp_path / "scan.zarr", **options).compute()
    assert len(counted) == blocks - 2
    np.testing.assert_array_equal(found.values, expected.values)


def _count(calls, *arguments):
    calls.append(0)
    return mean_intensities(*arguments)


def test_a_thickness_series_comes_from_one_run(specimen, tmp_path, counted):
    options = SMALL | {"electrons_per_probe": None, "sigmas": 0.0}
    scans = simulate(specimen, tmp_path / "series.zarr", thickness=["0.95 nm", "2.34 nm"], **options)
    together = len(counted)
    for depth, scan in zip((9.4, 23.4), scans, strict=True):
        alone = simulate(specimen, tmp_path / f"{depth}.zarr", thickness=depth, **options)
        np.testing.assert_allclose(scan.values, alone.values, atol=1e-6 * float(alone.max()))
        np.testing.assert_array_equal(scan["ky"].values, alone["ky"].values)
    names = sorted(path.name for path in tmp_path.glob("series*"))
    assert names == ["series-0.9384nm.zarr", "series-2.346nm.zarr"]
    assert [json.loads(s.attrs["truth"])["thickness_nm"] for s in scans] == pytest.approx([0.9384, 2.346])
    counted.clear()
    again = simulate(specimen, tmp_path / "series.zarr", thickness=["0.95 nm", "2.34 nm"], **options)
    assert counted == []
    assert together > 0
    np.testing.assert_array_equal(again[0].values, scans[0].values)


def test_a_defocus_series_is_that_of_single_runs(specimen, tmp_path):
    options = SMALL | {"electrons_per_probe": None}
    scans = simulate(specimen, tmp_path / "focus.zarr", defocus=["-3 nm", 0, "3 nm"], **options)
    for defocus, scan in zip((-30.0, 0.0, 30.0), scans, strict=True):
        alone = simulate(specimen, tmp_path / f"at{defocus}.zarr", defocus=defocus, **options)
        np.testing.assert_allclose(scan.values, alone.values, atol=1e-6 * float(alone.max()))
        assert json.loads(scan.attrs["truth"])["defocus"] == defocus
    assert float(abs(scans[0] - scans[2]).max()) > 0.05 * float(scans[0].max())


def test_a_mean_pattern_is_the_mean_of_the_scan(specimen, tmp_path):
    options = {k: v for k, v in SMALL.items() if k != "scan_step"}
    scan = simulate(
        specimen,
        tmp_path / "scan.zarr",
        electrons_per_probe=None,
        scan_step=1.5,
        scan_extent=specimen.repeat[:2],
        **options,
    )
    found = simulate_pacbed(specimen, [10.0, specimen.thickness], scan_step=1.5, **options)
    assert found.dims == ("thickness", "ky", "kx")
    assert found["thickness"].values == pytest.approx([0.9384, specimen.thickness / 10])
    expected = scan.astype(np.float64).mean(("y", "x")).values
    np.testing.assert_allclose(found[-1].values, expected, atol=1e-6 * expected.max())
    np.testing.assert_allclose(found["ky"].values, scan["ky"].values)


def test_the_mean_pattern_of_the_simulated_data_is_found_at_its_thickness(simulated):
    """The data are of another program's run, at a phonon seed that is not known."""
    counts, meta = simulated("lifepo4_001_40nm.npz")
    measured = counts.mean((0, 1)) / meta["dose_electrons_per_probe"]
    library = simulate_pacbed(
        lifepo4(thickness="60 nm"),
        ["20 nm", "40 nm", "60 nm"],
        soft_edge=0,
        max_angle=62,
        scan_extent=(5.166, 3.005),  # a quarter of the cell, of which the symmetry makes the rest
        seed=4,
    )
    library = sum(
        library.isel(ky=slice(1, None), kx=slice(1, None))[:, ::a, ::b].values for a in (1, -1) for b in (1, -1)
    )
    library, measured = library / 4, measured[1:, 1:]
    misfit = np.abs(library - measured).sum((1, 2)) / measured.sum()
    assert misfit.argmin() == 1
    assert np.corrcoef(library[1].ravel(), measured.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"potential_sampling": 0.5}, "use potential_sampling=0.2"),
        ({"thickness": "9 nm"}, "that of the specimen"),
        ({"scan_extent": (30, 5)}, "expected at most the block"),
        ({"frozen_phonons": 0}, "frozen_phonons=0 was given"),
        ({"soft_edge": -1.0}, "soft_edge"),
        ({"electrons_per_probe": -5.0}, "electrons_per_probe=-5.0"),
        ({"method": "magic"}, "The method is"),
        ({"sigmas": -0.1}, "The displacements are"),
        ({"max_angle": 2.0}, "The detector reaches"),
        ({"block": 0}, "block=0 was given"),
        ({"thickness": ["2.0 nm", "2.01 nm"], "defocus": [0, 0]}, "leave one out"),
    ],
)
def test_requests_that_make_no_sense_are_refused_in_words(specimen, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        simulate(specimen, tmp_path / "scan.zarr", **SMALL | changes)
    assert list(tmp_path.iterdir()) == []


def test_without_abtem_it_is_said_what_to_install(specimen, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "abtem", None)
    with pytest.raises(InputError, match=r"tdm-dask\[simulation\]"):
        simulate(specimen, tmp_path / "scan.zarr", **SMALL)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Run workflows/simulate.py with a command line."""
    workflows = Path(__file__).resolve().parents[2] / "workflows"
    monkeypatch.chdir(tmp_path)

    def run(*words):
        small = ["--potential-sampling", "0.26", "--max-angle", "30", "--soft-edge", "0", "--scan-step", "1.5"]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["simulate.py", *words, *small])
            patch.syspath_prepend(str(workflows))  # as Python itself does for a script
            runpy.run_path(str(workflows / "simulate.py"))

    run.workflows = workflows
    return run


def test_the_script_simulates_defects_in_series(script, tmp_path, monkeypatch):
    script("lifepo4", "--size", "8", "8", "--thickness", "1 nm", "2 nm", "--defects", "vacancy:O@4.72,1.5:0.5",
           "--electrons-per-probe", "800", "--out", "scan.zarr")  # fmt: skip
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["scan-0.9384nm.zarr", "scan-1.877nm.zarr"]
    monkeypatch.syspath_prepend(str(script.workflows))
    known_scan = importlib.import_module("known_scan")
    known = known_scan.load("scan-1.877nm.zarr", tmp_path / "folder")
    assert known.thickness_nm == pytest.approx(1.8768)
    assert known.cell == pytest.approx((10.332, 12.02))
    assert known.meta["defects"][0]["content"] == {"O": 2}
    assert float(known.counts.sum(("ky", "kx")).mean()) == pytest.approx(800, rel=0.05)


def test_the_script_takes_any_crystal_and_says_what_is_wrong(script, tmp_path, capsys):
    cif = str(script.workflows / "PbTiO3.cif")
    script("--cif", cif, "--zone-axis", "1", "0", "0", "--size", "7", "7", "--thickness", "8", "--out", "cif.zarr")
    truth = json.loads(tdm.open(tmp_path / "cif.zarr").attrs["truth"])
    assert truth["description"].endswith("[100]")
    assert set(truth["sites"]) == {"Pb", "Ti+O", "O"}
    with pytest.raises(SystemExit) as stopped:
        script("lifepo4", "--size", "8", "8", "--thickness", "8", "--defects", "hole:O@1,1", "--out", "wrong.zarr")
    assert stopped.value.code == 2
    assert "The defect is" in capsys.readouterr().err
