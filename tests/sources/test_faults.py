"""What the sums of a conversion give away about a detector and a scan, and where it is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from vendor_files import write_mib

import tdm_dask as tdm
from tdm_dask.axes import missing_calibration
from tdm_dask.reading.store import stored_findings
from tdm_dask.sources.faults import faults


def found_in(counts, **options):
    """Faults of counts (y, x, ky, kx), by dense sums."""
    used = options.get("used", np.ones(counts.shape[:2], bool))
    patterns = counts[used]
    return faults(patterns.mean(0), patterns.max(0), counts.sum((2, 3)), n=len(patterns), **options)


@pytest.fixture
def counts():
    """Poisson counts of a beam in the middle of the detector."""
    distance = np.hypot(*np.mgrid[-6:7, -6:7])
    return np.random.default_rng(0).poisson(np.where(distance < 4, 9.0, 0.05), (8, 9, 13, 13)).astype("u2")


def test_an_ordinary_scan_has_no_faults(counts):
    assert found_in(counts) == []
    assert found_in(counts.astype("f4")) == []
    assert found_in(np.minimum(counts, 1).astype("u1"), depth=1) == []


def test_dead_pixels_are_those_whose_neighbours_count(counts):
    counts[..., 5, 7] = 0
    counts[..., 0, 0] = 0  # where hardly anything is to be counted
    (sentence,) = found_in(counts)
    assert sentence == "1 pixel(s) never counted, although their neighbours did: dead, at (ky, kx) = (5, 7)."


def test_hot_pixels_stand_alone(counts):
    counts[..., 1, 2] = 60
    counts[..., 6, 6] *= 2  # bright, but not by itself
    assert found_in(counts) == [
        "1 pixel(s) counted more than 5 times as much as each neighbour: hot, at (ky, kx) = (1, 2)."
    ]


def test_saturation_is_that_of_the_counters(counts):
    counts[0, 0, 6, 5:9] = 4095
    assert found_in(counts) == []
    (sentence,) = found_in(counts, depth=12)
    assert sentence == (
        "4 pixel(s) reached the counters' maximum of 4095, where counts are lost: saturated, at (ky, kx) = "
        "(6, 5), (6, 6), (6, 7), ...."
    )
    counts[0, 0, 6, 5] = 65535
    (sentence,) = found_in(counts)
    assert sentence.startswith("1 pixel(s) reached the counters' maximum of 65535")


def test_blank_patterns_are_named_unless_they_are_known_to_be_missing(counts):
    counts[3, 4] = counts[7, 8] = 0
    assert found_in(counts) == ["2 pattern(s) hold no count: blank, at (y, x) = (3, 4), (7, 8)."]
    used = np.ones((8, 9), bool)
    used[7, 8] = False
    assert found_in(counts, used=used) == ["1 pattern(s) hold no count: blank, at (y, x) = (3, 4)."]


def test_nothing_is_said_about_pixels_that_are_not_valid(counts):
    counts[..., 5, 7], counts[..., 1, 2] = 0, 60
    valid = np.ones((13, 13), bool)
    valid[5, 7] = valid[1, 2] = False
    assert found_in(counts, valid=valid) == []


def test_pixels_with_nan_hide_nothing(counts):
    counts = counts.astype("f4")
    counts[..., 5, 7], counts[0, 0, 5, 8] = 0, np.nan
    assert any("dead, at (ky, kx) = (5, 7)" in sentence for sentence in found_in(counts))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1)])
def test_detectors_of_a_single_row_or_pixel(shape):
    assert found_in(np.ones((2, 2, *shape), "u2")) == []


def test_the_store_keeps_what_was_found_and_info_tells_it(tmp_path, counts, capsys):
    from tdm_dask.cli import main

    counts[..., 5, 7] = 0
    counts[2, 2, 6, 6] = 4095
    path = write_mib(tmp_path / "scan.mib", counts, bits=12)
    tdm.convert(path, tmp_path / "scan.zarr", scan_shape=(8, 9))
    found = stored_findings(tmp_path / "scan.zarr")
    assert "There is no .hdr file beside it." in found
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "scan.zarr"), "--json"])
    told = json.loads(capsys.readouterr().out)["findings"]
    assert told[: len(found)] == found
    assert [sentence.split("known")[0] for sentence in told[len(found) :]] == [
        sentence.split("known")[0] for sentence in missing_calibration(tdm.open(tmp_path / "scan.zarr"))
    ]
    assert any("maximum of 4095" in sentence for sentence in told)
    assert any("dead, at (ky, kx) = (5, 7)" in sentence for sentence in told)
