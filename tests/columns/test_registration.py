"""What must hold of a crystal laid over an image: is it where it is, the right way round, and is doubt said?"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from lattice_images import drawn, empty_scan, furthest, inside, scan_of
from simulated_scans import LIFEPO4_ARCHIVE, PBTIO3, PBTIO3_ARCHIVE, SAMPLE

from tdm_dask.columns.crystal import sites_from_cif
from tdm_dask.columns.lattice import Drift, Lattice
from tdm_dask.columns.registration import column_weights, register_sites
from tdm_dask.errors import CoordinateError, InputError, RegionError, SiteError

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
# No rotation or mirror image of it gives the same sites.
CHIRAL = Lattice([[4.1, 0.0], [0.9, 5.2]], {"Pb": [(0, 0)], "Ti": [(0.35, 0.2)], "Fe": [(0.6, 0.65)]})
HEIGHTS = {"Pb": 60.0, "Ti": 30.0, "Fe": 40.0}


def olivine():
    return sites_from_cif(WORKFLOWS / "LiFePO4.cif", (0, 0, 1))


def perovskite():
    return sites_from_cif(WORKFLOWS / "PbTiO3.cif", (1, 0, 0))


def turned(lattice, rotation, mirrored=False, origin=(0.0, 0.0), strain=None):
    """A lattice mirrored left to right, rotated counter-clockwise as images are drawn, strained, and moved."""
    t = np.radians(rotation)
    change = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
    if mirrored:
        change = np.diag([1.0, -1.0]) @ change
    change = change if strain is None else change @ (np.eye(2) + strain)
    return dataclasses.replace(lattice, vectors=lattice.vectors @ change, origin=np.array(origin))


def image_of(lattice, heights, scan=None, **options):
    scan = empty_scan((80, 90)) if scan is None else scan
    return drawn(scan, lattice.sites(scan, margin=3), heights, **options)


def off(registration, true, scan):
    """How far, at most, any true site of the scan lies from the nearest found one of its kind."""
    found = registration.sites(scan, margin=2)
    return max(furthest(places, found[kind]) for kind, places in true.sites(scan).items())


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0.0, 90.0, 180.0, -37.0])
def test_rotation_and_handedness_are_those_of_the_image(rotation, mirrored):
    true = turned(CHIRAL, rotation, mirrored, (3.3, -1.2))
    image = image_of(true, HEIGHTS, noise=np.random.default_rng(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = register_sites(CHIRAL, image, weights=HEIGHTS)
    best = found.candidates[0]
    assert best.mirrored == mirrored
    assert abs((best.rotation - rotation + 180) % 360 - 180) < 0.5
    assert best.orientations == 1
    assert off(found, true, image) < 0.04
    assert not found.ambiguous


def test_flipped_and_transposed_images_are_mirrored_crystals():
    image = image_of(CHIRAL, HEIGHTS, empty_scan((80, 80), (0.3, 0.3)), noise=np.random.default_rng(3))
    seen = {}
    for name, values in {
        "as it is": image.values,
        "left to right": image.values[:, ::-1],
        "upside down": image.values[::-1],
        "both": image.values[::-1, ::-1],
        "transposed": image.values.T,
    }.items():
        best = register_sites(CHIRAL, image.copy(data=values), weights=HEIGHTS).candidates[0]
        seen[name] = (best.mirrored, round(best.rotation) % 360)
    assert seen == {
        "as it is": (False, 0),
        "left to right": (True, 0),
        "upside down": (True, 180),
        "both": (False, 180),
        "transposed": (True, 90),
    }


def test_strain_shear_and_unequal_steps_are_followed():
    strain = np.array([[0.03, 0.02], [-0.015, -0.025]])
    true = turned(olivine(), 21.0, origin=(1.3, 0.4), strain=strain)
    scan = empty_scan((110, 80), (0.22, 0.35), (-40.0, 17.0))
    heights = {"Fe": 60, "P+O": 30, "O": 5, "Li": 0}
    found = register_sites(olivine(), image_of(true, heights, scan, noise=np.random.default_rng(0)))
    assert off(found, true, scan) < 0.05
    stretches = np.linalg.svd(np.eye(2) + strain, compute_uv=False) - 1
    assert found.candidates[0].strain == pytest.approx(tuple(stretches), abs=0.004)


def test_equivalent_orientations_are_one_candidate():
    image = image_of(olivine(), {"Fe": 60, "P+O": 30, "O": 5, "Li": 0}, noise=np.random.default_rng(0))
    found = register_sites(olivine(), image)
    # p2gm: twofold axes and two mirrors or glides.
    assert found.candidates[0].orientations == 4
    assert not found.candidates[0].mirrored
    assert abs(found.candidates[0].rotation) < 1
    assert "4 of its rotations and mirror images give the same sites" in found.message


def test_what_the_image_does_not_settle_is_said():
    # Lead alone shows: where titanium and oxygen are displaced to, this image does not say.
    true = turned(perovskite(), 0.0, origin=(0.5, 0.7))
    image = image_of(true, {"Pb": 60, "Ti+O": 0, "O": 0}, noise=np.random.default_rng(0))
    shown = {"Pb": 1.0, "Ti+O": 0.0, "O": 0.0}
    with pytest.warns(UserWarning, match="does not settle"):
        found = register_sites(perovskite(), image, weights=shown)
    assert found.ambiguous
    others = [c for c in found.candidates[1:] if c.worse_by < 3]
    assert others
    assert all(c.distance > 0.12 for c in others)
    # The true one is among them.
    best = min(off(dataclasses.replace(found, lattice=c.lattice), true, image) for c in found.candidates)
    assert best < 0.05
    # With titanium in the image, it is settled.
    image = image_of(true, {"Pb": 60, "Ti+O": 25, "O": 0}, noise=np.random.default_rng(0))
    settled = register_sites(perovskite(), image, weights={"Pb": 60, "Ti+O": 25, "O": 0})
    assert not settled.ambiguous
    assert off(settled, true, image) < 0.05


@pytest.mark.long
def test_a_drift_is_followed_from_the_middle_outwards():
    # Larger than the part in which candidates are sought, so that the drift is carried from window to window.
    drift = Drift(2, np.array([33.0, 33.0]), np.array([33.0, 33.0]), np.array([[0.9, -0.5], [0.3, 0.8], [-0.6, 1.1]]))
    true = dataclasses.replace(turned(perovskite(), 8.0, origin=(1.3, 0.4)), drift=drift)
    scan = empty_scan((220, 220), (0.3, 0.3))
    image = image_of(true, {"Pb": 60, "Ti+O": 25, "O": 3}, scan, noise=np.random.default_rng(0))
    heights = {"Pb": 60, "Ti+O": 25, "O": 3}
    found = register_sites(perovskite(), image, weights=heights, drift=2)
    assert off(found, true, scan) < 0.06
    assert found.lattice.drift.order == 2


def test_missing_patterns_and_regions_are_honoured():
    true = turned(CHIRAL, 12.0, origin=(3.3, -1.2))
    image = image_of(true, HEIGHTS, noise=np.random.default_rng(3))
    lost = np.random.default_rng(0).random(image.shape) < 0.15
    flagged = image.where(~lost, 1e5).assign_coords(valid_patterns=(("y", "x"), ~lost))
    for holed in (image.where(~lost), flagged):
        assert off(register_sites(CHIRAL, holed, weights=HEIGHTS), true, image) < 0.06
    # The right half is another crystal: the region keeps it out.
    spoilt = image.copy()
    other = image_of(turned(CHIRAL, 70.0, True, (1, 1)), HEIGHTS)
    spoilt[:, 50:] = other[:, 50:]
    found = register_sites(CHIRAL, spoilt, weights=HEIGHTS, scan_region={"x": slice(0, 50)})
    assert off(found, true, image.isel(x=slice(0, 50))) < 0.06
    right = np.zeros(image.shape, bool)
    right[:, 50:] = True
    assert register_sites(CHIRAL, spoilt, weights=HEIGHTS, scan_region=right).candidates[0].mirrored


@pytest.mark.parametrize("name", [SAMPLE, LIFEPO4_ARCHIVE])
@pytest.mark.parametrize(("contrast", "angles"), [("adf", (30, 60)), ("abf", (11, 23.5))])
def test_the_sites_of_lifepo4_are_found_within_a_fifth_of_an_angstrom(name, simulated, contrast, angles):
    image, sites = scan_of(simulated, name, angles)
    for flip in (np.s_[:, :], np.s_[::-1, :], np.s_[:, ::-1]):
        found = register_sites(olivine(), image.copy(data=image.values[flip]), contrast=contrast).sites(image, margin=2)
        ends = np.array([image[dim].values[-1] for dim in ("y", "x")])
        signs = np.array([-1 if s.step == -1 else 1 for s in flip])
        for kind, places in sites.items():
            true = inside({kind: np.where(signs < 0, ends - places, places)}, image)[kind]
            assert len(true) >= (10 if name == SAMPLE else 20)
            # The pixels of the sample are coarser and its columns fewer: 0.047 at most, seen before this was chosen.
            assert furthest(true, found[kind]) < (0.1 if name == SAMPLE else 0.05), kind


@pytest.mark.parametrize(
    ("name", "contrast", "angles"),
    [
        (PBTIO3, "abf", (11, 23.5)),  # of 30 nm, coarsely sampled, the dark field hardly shows Pb
        (PBTIO3_ARCHIVE, "adf", (30, 60)),
        (PBTIO3_ARCHIVE, "abf", (11, 23.5)),
    ],
)
def test_the_sites_of_each_domain_of_pbtio3_are_found_within_a_fifth_of_an_angstrom(name, simulated, contrast, angles):
    image, sites = scan_of(simulated, name, angles)
    across = (image.y + image.x).transpose("y", "x") / 4.028
    wall = round(float(image.y[-1]) / 4.028)  # along the diagonal of the scan, so many cells from its corner
    # c along +x as in the lattice's own frame; along +y, which is clockwise from it.
    for region, rotation in ((across < wall - 0.4, 0), (across > wall + 0.4, -90)):
        for transposed in (False, True) if name == PBTIO3 or contrast == "adf" else (False,):
            seen = image.copy(data=image.values.T) if transposed else image
            chosen = region.values.T if transposed else region.values
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                registration = register_sites(perovskite(), seen, contrast=contrast, scan_region=chosen)
            expected = -90 - rotation if transposed else rotation
            assert abs((registration.candidates[0].rotation - expected + 180) % 360 - 180) < 1
            assert registration.candidates[0].orientations == 2
            found = registration.sites(seen, margin=2)
            for kind, places in sites.items():
                true = inside({kind: places}, image)[kind]
                domain = true.sum(1) / 4.028
                true = true[domain < wall - 0.4] if rotation == 0 else true[domain > wall + 0.4]
                # The small domains of the scan that is simulated here; seen first: 0.11 of six seeds, at most 0.13.
                least, most = (3, 0.17) if name == PBTIO3 else (10, 0.1)
                assert len(true) >= least
                assert furthest(true[:, ::-1] if transposed else true, found[kind]) < most, kind


def test_noise_shows_no_crystal():
    for seed in range(3):
        noise = np.random.default_rng(seed).poisson(20, (64, 64)).astype(float)
        with pytest.raises(SiteError, match=r"0 periods|hardly shows|No orientation|No two periods"):
            register_sites(olivine(), empty_scan((64, 64)).copy(data=noise))


def test_another_crystal_is_refused():
    image = image_of(Lattice([[2.9, 0], [0.2, 3.3]], {"Al": [(0, 0)]}), {"Al": 50}, noise=np.random.default_rng(0))
    with pytest.raises(SiteError, match=r"strain|hardly shows"):
        register_sites(olivine(), image)


def test_weights_follow_what_is_in_a_column():
    adf = column_weights(perovskite(), "adf", None)
    expected = np.array([82**1.7, 22**1.7 + 8**1.7, 8**1.7, 8**1.7])
    assert adf == pytest.approx(expected / expected.max())
    assert (column_weights(perovskite(), "abf", None) < 0).all()
    table = Lattice([[4, 0], [0, 4]], {"Ti+O": [(0.5, 0.5)], "Pb": [(0, 0)]})
    assert column_weights(table, "adf", None) == pytest.approx(expected[[1, 0]] / expected.max())


def test_what_cannot_be_registered_is_refused_in_words():
    image = image_of(CHIRAL, HEIGHTS)
    with pytest.raises(CoordinateError, match="scan_step"):
        register_sites(CHIRAL, empty_scan(unit="px"))
    with pytest.raises(InputError, match="contrast"):
        register_sites(CHIRAL, image, contrast="haadf")
    with pytest.raises(InputError, match="max_strain"):
        register_sites(CHIRAL, image, max_strain=0)
    with pytest.raises(SiteError, match='no weight for "Fe"'):
        register_sites(CHIRAL, image, weights={"Pb": 1, "Ti": 1})
    with pytest.raises(SiteError, match="names no elements"):
        register_sites(CHIRAL.renamed({"Ti": "second"}), image)
    with pytest.raises(SiteError, match="not all zero"):
        register_sites(CHIRAL, image, weights={"Pb": 0, "Ti": 0, "Fe": 0})
    with pytest.raises(RegionError, match="empty"):
        register_sites(CHIRAL, image, scan_region={"x": slice(5, 5)})
    with pytest.raises(SiteError, match="valid probe positions"):
        register_sites(CHIRAL, image, scan_region={"x": slice(0, 5), "y": slice(0, 5)})
    with pytest.raises(SiteError, match="0 periods"):
        register_sites(CHIRAL, image * 0 + 1)
