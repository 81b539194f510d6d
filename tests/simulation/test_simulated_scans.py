"""Scans that are simulated for tests are kept: simulated once, whole, and again when what they follow from changed."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import simulated_scans
from simulated_scans import LIFEPO4, PBTIO3, content, simulated_scan, simulates

pytestmark = simulates
COUNTS, META = np.arange(2 * 3 * 4 * 5, dtype="u2").reshape(2, 3, 4, 5), {"scan_step_angstrom": [0.3, 0.4]}


@pytest.fixture
def simulations(monkeypatch):
    """Names and seeds of what was simulated, in place of simulations."""
    done = []

    def simulate(name, seed):
        done.append((name, seed))
        return COUNTS, META

    monkeypatch.setattr(simulated_scans, "_simulated", simulate)
    return done


def assert_whole(found):
    counts, meta = found
    np.testing.assert_array_equal(counts, COUNTS)
    assert counts.dtype == COUNTS.dtype
    assert meta == META


def test_a_scan_is_simulated_once(simulations, tmp_path):
    for _ in range(3):
        assert_whole(simulated_scan(LIFEPO4, tmp_path / "new"))
    assert simulations == [(LIFEPO4, simulated_scans.SEED)]
    simulated_scan(PBTIO3, tmp_path / "new", seed=7)
    assert simulations[1:] == [(PBTIO3, 7)]
    assert_whole(simulated_scan(LIFEPO4, tmp_path / "new"))
    assert len(simulations) == 2


def ask_and_record(folder):
    """Ask for a scan in a process of its own, whose simulation leaves a file and takes until another one is there."""

    def simulate(name, seed):
        number = len(list(folder.glob("simulated*")))
        (folder / f"simulated {number} {multiprocessing.current_process().pid}").touch()
        wait_for(folder / "go on")
        return COUNTS, META

    simulated_scans._simulated = simulate
    (folder / f"asked {multiprocessing.current_process().pid}").touch()
    return simulated_scan(LIFEPO4, folder / "kept")


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.long
def test_of_two_processes_that_ask_at_once_one_simulates(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = [pool.submit(ask_and_record, tmp_path) for _ in range(2)]
        while len(list(tmp_path.glob("asked*"))) < 2 and not any(one.done() for one in asked):
            time.sleep(0.01)
        time.sleep(0.5)  # in which the other would begin, if it did not wait
        (tmp_path / "go on").touch()
        for one in asked:
            assert_whole(one.result())
    assert len(list(tmp_path.glob("simulated*"))) == 1


@pytest.mark.parametrize("damage", ["empty", "the end is missing", "bytes are changed", "another archive", "text"])
def test_a_damaged_archive_is_made_again(simulations, tmp_path, damage):
    simulated_scan(LIFEPO4, tmp_path)
    (archive,) = tmp_path.glob("*.npz")
    whole = archive.read_bytes()
    middle = whole.index(b"counts.npy") + 60
    if damage == "another archive":
        np.savez(archive, other=COUNTS, meta=json.dumps(META))
    else:
        archive.write_bytes(
            {
                "empty": b"",
                "the end is missing": whole[: len(whole) // 2],
                "bytes are changed": whole[:middle]
                + bytes(255 - byte for byte in whole[middle : middle + 8])
                + whole[middle + 8 :],
                "text": b"no archive",
            }[damage]
        )
    assert_whole(simulated_scan(LIFEPO4, tmp_path))
    assert len(simulations) == 2
    assert_whole(simulated_scan(LIFEPO4, tmp_path))
    assert len(simulations) == 2


def test_a_simulation_that_fails_leaves_nothing_and_is_tried_again(simulations, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as here:
        here.setattr(simulated_scans, "_simulated", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            simulated_scan(LIFEPO4, tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    assert_whole(simulated_scan(LIFEPO4, tmp_path))


def test_a_scan_is_simulated_again_with_another_abtem_and_the_old_one_goes(simulations, tmp_path, monkeypatch):
    simulated_scan(LIFEPO4, tmp_path)
    simulated_scan(PBTIO3, tmp_path)
    known = simulated_scans.version
    monkeypatch.setattr(simulated_scans, "version", lambda p: "99.0" if p == "abtem" else known(p))
    simulated_scan(LIFEPO4, tmp_path)
    assert [name for name, _ in simulations] == [LIFEPO4, PBTIO3, LIFEPO4]
    assert len(list(tmp_path.glob(f"{LIFEPO4}-*.npz"))) == 1
    assert len(list(tmp_path.glob(f"{PBTIO3}-*.npz"))) == 1


def test_the_key_follows_the_code_of_the_simulation_and_what_is_asked_for(tmp_path, monkeypatch):
    keys = [content(LIFEPO4), content(PBTIO3), content(LIFEPO4, 7)]
    copy = tmp_path / "simulation"
    shutil.copytree(simulated_scans.SIMULATION, copy)
    monkeypatch.setattr(simulated_scans, "SIMULATION", copy)
    assert content(LIFEPO4) == keys[0]
    multislice = copy / "multislice.py"
    multislice.write_text(multislice.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    keys.append(content(LIFEPO4))
    monkeypatch.setitem(simulated_scans.CONDITIONS, "dose", 1.0)
    keys.append(content(LIFEPO4))
    assert len(set(keys)) == len(keys)
