"""The workflow of the optimised ADF image runs from the command line, and its numbers are those of known data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import tdm_dask as tdm

pytestmark = pytest.mark.long

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
BINARY, BEYOND, SCALED, PEARSON = "binary 30–60 mrad", "binary > 25 mrad", "mean-scaled", "Pearson on D_hat"


def run(out, *arguments):
    """The numbers that the workflow writes."""
    environment = os.environ | {"PYTHONPATH": str(WORKFLOWS.parent)}
    command = [sys.executable, str(WORKFLOWS / "adf.py"), "--quick", "--out", str(out), *arguments]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return json.loads((out / "adf.json").read_text())


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp("adf")
    return out, run(out)


@pytest.fixture(scope="module")
def lifepo4(shared, tmp_path_factory):
    return run(tmp_path_factory.mktemp("lifepo4"), str(shared / "data" / "lifepo4_001_40nm.npz"))


def assert_heavy_columns_are_bright(numbers):
    for name in (BINARY, SCALED):
        spots = numbers["brightness"][name]
        assert min(spots["Fe"], spots["P+O"]) > 1 > max(spots["O"], spots["Li"])
        assert spots["Fe"] > spots["P+O"]


def test_both_images_show_the_heavy_columns(sample, lifepo4):
    for numbers in (sample[1], lifepo4):
        assert_heavy_columns_are_bright(numbers)


def test_the_mean_scaled_mask_has_less_noise_than_the_annulus_and_all_comparators_are_there(lifepo4):
    table = lifepo4["snr"]
    assert table[SCALED]["thinning_db"] > table[BINARY]["thinning_db"] + 0.3
    assert table[PEARSON]["thinning_db"] > table[BEYOND]["thinning_db"] > table[BINARY]["thinning_db"]
    for name in (BINARY, BEYOND, SCALED, PEARSON):
        row = table[name]
        assert row["thinning_gain_db"] == pytest.approx(row["thinning_db"] - table[BINARY]["thinning_db"])
        assert row["lattice_gain_db"] == pytest.approx(row["lattice_db"] - table[BINARY]["lattice_db"])
    # Atoms displaced by heat differ from cell to cell: noise to the lattice, but not to the electrons.
    assert all(row["lattice_db"] < row["thinning_db"] for row in table.values() if "lattice_db" in row)
    paper = lifepo4["snr_paper_db"]
    assert paper[SCALED] - paper[BINARY] == pytest.approx(1.5)


def test_the_table_agrees_with_halves_drawn_and_correlated_by_numpy(sample):
    out, numbers = sample
    counts = tdm.calibrate(tdm.open(out / "sample.zarr"), semi_angle="23.5 mrad")
    data = counts.values.reshape(-1, counts.shape[2] * counts.shape[3])
    theta = np.hypot(*np.meshgrid(counts.ky, counts.kx, indexing="ij")).ravel()
    annulus = ((theta >= 30) & (theta < 60)).astype(float)

    def masks(half):
        """The annulus, and the mean-scaled and Pearson masks that it gives, as weights on counts."""
        d = half.astype(float)
        image = d @ annulus
        image = (image - image.mean()) / image.std()
        mean, std = d.mean(0), d.std(0)
        rho = image @ (d - mean) / len(d) / np.where(std > 0, std, np.inf)
        return annulus, rho / np.where(mean > 0, mean, np.inf), rho / np.where(std > 0, std, np.inf)

    found = []
    for seed in range(2):
        first = np.random.default_rng(seed).binomial(data, 0.5)
        second = data - first
        pairs = zip(masks(first), masks(second), strict=True)
        r = [np.corrcoef(first @ of_second, second @ of_first)[0, 1] for of_first, of_second in pairs]
        found.append([10 * np.log10(2 * n / (1 - n)) for n in r])
    # Two splits of a scan of 42 x 42 positions differ by 0.15 dB, and edges of the annulus are cut differently.
    for name, expected in zip((BINARY, SCALED, PEARSON), np.mean(found, axis=0), strict=True):
        assert numbers["snr"][name]["thinning_db"] == pytest.approx(expected, abs=0.5)


def test_weak_correlations_have_the_two_reasons_that_counting_statistics_say(lifepo4):
    noise, wrong = lifepo4["si2"]["noise-limited"], lifepo4["si2"]["wrong signal"]
    assert noise["rho"] == pytest.approx(wrong["rho"], abs=0.02)
    assert noise["angle_mrad"] > 30 > 23.5 > wrong["angle_mrad"]
    assert noise["ceiling"] < 0.5 < 0.95 <= wrong["ceiling"]
    # Twenty-five times the electrons help the one and not the other.
    assert noise["rho_of_neighbourhood"] > 1.5 * noise["rho"]
    assert wrong["rho_of_neighbourhood"] < wrong["rho"]


def test_the_image_out_is_like_the_image_in_and_the_same_by_both_ways_of_weighting(sample):
    si1 = sample[1]["si1"]
    assert 0.9 < si1["correlation of the image out with the image in"] < 1
    assert si1["correlation of D_hat rho and D (rho/std)"] == pytest.approx(1, abs=1e-9)


def test_the_profile_falls_outside_the_disk_where_correlations_are_positive(lifepo4):
    angle, mean, rho = (np.array(lifepo4["profile"][name]) for name in ("angle", "mean", "rho"))
    dark = (angle > 30) & (angle < 60)
    assert (np.diff(mean[dark]) < 0).all()
    assert (rho[dark] > 0).all()
    assert mean[angle < 20].min() > 10 * mean[dark].max()


def test_its_figures_are_written(sample):
    for name in ("adf-fig2.png", "adf-si.png"):
        picture = matplotlib.image.imread(sample[0] / name)
        assert min(picture.shape[:2]) > 500
        assert picture[..., :3].std() > 0.1
