"""The sample that ships with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simulated_scans import LIFEPO4_ARCHIVE, sample_frames

import tdm_dask as tdm

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tdm_dask" / "data"
PROBES, PIXELS = 42, 38


def test_the_sample_takes_at_most_six_megabytes():
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 6_000_000


def test_every_frame_has_a_numbered_header_of_the_merlin_format():
    content = (DATA / "lifepo4_001.mib").read_bytes()
    size = 384 + 2 * PIXELS**2
    assert len(content) == PROBES**2 * size
    for number in (0, 1, PROBES**2 - 1):
        words = content[number * size : number * size + 384].split(b",")
        assert words[:7] == [b"MQ1", b"%06d" % (number + 1), b"00384", b"01", b"0038", b"0038", b"U16"]


def test_open_reads_the_sample_as_the_format_defines_it():
    counts = tdm.open(DATA / "lifepo4_001.mib")
    assert counts.dtype == np.uint16
    assert counts.dtype.isnative
    np.testing.assert_array_equal(counts.compute().values, sample_frames())


def test_the_sample_holds_the_counts_of_the_simulation(simulated):
    counts, _ = simulated(LIFEPO4_ARCHIVE)
    part = counts[:PROBES, :PROBES, 13:89, 13:89].astype(np.int64)
    binned = part.reshape(PROBES, PROBES, PIXELS, 2, PIXELS, 2).sum(axis=(3, 5))
    np.testing.assert_array_equal(sample_frames(), binned)


def test_the_script_makes_the_sample_again_byte_for_byte(shared, tmp_path):
    script, archive = ROOT / "workflows" / "make_sample.py", shared / "data" / LIFEPO4_ARCHIVE
    subprocess.run([sys.executable, script, archive, "--out", tmp_path], check=True)
    for name in ("lifepo4_001.mib", "lifepo4_001.hdr", "lifepo4_001_sites.json"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_every_column_in_and_near_the_scan_is_listed(simulated):
    _, meta = simulated(LIFEPO4_ARCHIVE)
    listed = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))
    extent = (PROBES - 1) * np.array(meta["scan_step_angstrom"])
    cell = np.array(meta["periodic_cell_angstrom"])
    assert list(listed) == list(meta["atom_columns_angstrom_yx"])
    for kind, columns in meta["atom_columns_angstrom_yx"].items():
        expected = set()
        for column in columns:
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    y, x = np.array(column) + (i, j) * cell
                    outside = np.hypot(max(-y, y - extent[0], 0), max(-x, x - extent[1], 0))
                    if outside <= 3 * 0.35:
                        expected.add((round(y, 3), round(x, 3)))
        assert {tuple(place) for place in listed[kind]} == expected


@pytest.mark.parametrize(("kind", "least"), [("Li", 0.85), ("Fe", 0.69), ("P+O", 0.6), ("O", 0.76)])
def test_columns_of_the_sample_are_as_separable_as_those_of_the_whole_scan(kind, least):
    """R of a dense Pearson mask within 24 mrad; the whole scan, not summed, has 0.87, 0.73, 0.62 and 0.80."""
    counts = sample_frames().astype(np.float64)
    pixel, centre = 2.4273461, 18.75
    k = (np.arange(PIXELS) - centre) * pixel
    inside = np.hypot(k[:, None], k) < 24
    y, x = 0.322875 * np.arange(PROBES), 0.3219643 * np.arange(PROBES)
    sites = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))[kind]
    squares = [(y[:, None] - a) ** 2 + (x - b) ** 2 for a, b in sites]
    template = np.exp(-np.array(squares) / (2 * 0.35**2)).sum(0).ravel()
    images = counts[:, :, inside].reshape(PROBES**2, -1)
    standard = (images - images.mean(0)) / images.std(0)
    rho = (template - template.mean()) @ standard
    assert np.corrcoef(standard @ rho, template)[0, 1] > least
