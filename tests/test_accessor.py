"""`array.tdm`: the public functions as methods, and what an array is in a few lines."""

from __future__ import annotations

import inspect
import pydoc
import re
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from small_stores import converted, poisson

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate
from tdm_dask.report.description import overview


def first_parameter(name: str) -> str:
    parameters = list(inspect.signature(getattr(tdm, name)).parameters.values())
    return str(parameters[0].annotation) if parameters else ""


ROUTINES = [name for name in tdm.__all__ if inspect.isroutine(getattr(tdm, name))]


@pytest.fixture
def counts():
    steps = {dim: axis_coordinate(dim, n, 0.5, 0.0, "angstrom") for dim, n in (("y", 6), ("x", 7))}
    angles = {dim: axis_coordinate(dim, 8, 2.0, -7.0, "mrad") for dim in ("ky", "kx")}
    return tdm.label_counts(poisson((6, 7, 8, 8)), {**steps, **angles}, {"energy_eV": 200e3, "semi_angle_mrad": 6.0})


@pytest.mark.parametrize(("kind", "owner"), [("xr.DataArray", xr.DataArray), ("xr.Dataset", xr.Dataset)])
def test_every_function_of_a_labelled_array_is_a_method_of_such_arrays(kind, owner):
    expected = {name for name in ROUTINES if kind in first_parameter(name)}
    offered = {name for name in dir(owner.tdm) if not name.startswith("_")}
    assert offered == expected
    assert len(expected) > 5


@pytest.mark.parametrize("owner", [xr.DataArray, xr.Dataset])
def test_a_method_is_the_public_function_less_its_first_parameter(owner):
    for name in (name for name in dir(owner.tdm) if not name.startswith("_")):
        assert getattr(owner.tdm, name) is getattr(tdm, name)


def test_an_array_offers_what_suits_it(counts):
    mask = tdm.disk(counts, 6)
    image = tdm.apply_mask(counts, mask)
    assert {"derive_mask", "disk", "gaussian_template", "to_signal"} <= set(dir(counts.tdm))
    assert not {"symmetrise_mask", "find_columns"} & set(dir(counts.tdm))
    assert {"symmetrise_mask", "disk"} <= set(dir(mask.tdm))
    assert not {"derive_mask", "find_columns", "gaussian_template"} & set(dir(mask.tdm))
    assert {"find_columns", "gaussian_template"} <= set(dir(image.tdm))
    assert not {"derive_mask", "disk", "scan_rotation"} & set(dir(image.tdm))
    assert "scan_rotation" in dir(tdm.centre_of_mass(counts).tdm)
    assert dir(xr.DataArray(1.0).tdm) == ["to_signal"]


@pytest.mark.parametrize("name", ["symmetrise_mask", "find_columns", "nothing_of_the_kind"])
def test_what_does_not_suit_an_array_is_an_error_in_one_sentence(counts, name):
    assert not hasattr(counts.tdm, name)
    with pytest.raises(AttributeError, match=rf"{name}[^.]*('y', 'x', 'ky', 'kx'\)\.|')$"):
        getattr(counts.tdm, name)


def test_methods_give_what_functions_give(counts):
    template = counts.tdm.gaussian_template([(1.0, 1.5)], sigma=0.5)
    mask = counts.tdm.derive_mask(template, detector_region=tdm.disk(counts, 6))
    assert mask.identical(tdm.derive_mask(counts, template, detector_region=tdm.disk(counts, 6)))
    assert mask.tdm.symmetrise_mask("4mm").identical(tdm.symmetrise_mask(mask, "4mm"))
    found = tdm.correlate(counts, template)
    assert found.tdm.derive_mask().identical(tdm.derive_mask(found))


def test_help_shows_the_signature_without_the_array_and_the_docstring(counts):
    method = counts.tdm.derive_mask
    assert "counts" not in inspect.signature(method).parameters
    assert next(iter(inspect.signature(method).parameters)) == "template"
    text = pydoc.plain(pydoc.render_doc(method))
    assert re.search(r"derive_mask\(\s*template\b", text)  # long signatures take several lines since Python 3.13
    assert inspect.getdoc(tdm.derive_mask).splitlines()[0] in text


def test_the_text_says_shape_bytes_and_calibration(counts):
    valid = np.ones((8, 8), bool)
    valid[0, :3] = False
    text = repr(counts.assign_coords(valid_pixels=(("ky", "kx"), valid)).tdm)
    for part in (
        "counts: 6 × 7 × 8 × 8 (y, x, ky, kx) of uint16, 5.38 kB",
        "kept: in memory",
        "x (fast scan): 7, from 0 to 3 Å in steps of 0.5",
        "kx (detector kx): 8, from -7 to 7 mrad in steps of 2",
        "optic axis: pixel 3.50 (ky), 3.50 (kx)",
        "beam energy: 200 keV",
        "semi-angle: 6 mrad",
        "valid pixels: 61 of 64",
    ):
        assert part in text
    assert "not calibrated" in repr(tdm.label_counts(np.ones((1, 1, 2, 2))).tdm)
    shifts = (("y", "x"), np.full((6, 7), 1.5))
    assert "descan: up to 1.5 pixels" in repr(counts.assign_coords(descan_ky=shifts, descan_kx=shifts).tdm)


def test_the_text_says_how_counts_are_kept_and_read(tmp_path, counts):
    path = tmp_path / "scan.zarr"
    stored = converted(path, counts)
    size = sum(p.stat().st_size for p in (path / "counts" / "c").rglob("*") if p.is_file())
    found = dict(overview(stored))
    assert found["store"] == f"{path}, {size / 1e3:.3g} kB on disk"
    assert found["shards"] == "4 shards of 4 × 6 × 12 × 8, inner chunks of 2 × 3 × 6 × 8, lz4"
    assert found["counts"].endswith("uncompressed")
    part = dict(overview(tdm.crop(stored, y=slice(0, 2))))
    assert (part["store"], part["part"]) == (found["store"], "of 6 × 7 × 8 × 8 that are there")
    assert dict(overview(tdm.thin(stored)))["thinned"] == "as it is read"
    chunked = tdm.label_counts(da.ones((4, 6, 8, 8), dtype=np.uint16, chunks=(2, 6, 8, 8)) + 1)
    assert dict(overview(chunked))["kept"] == "2 dask chunks of up to 2 × 6 × 8 × 8 (1.54 kB), computed when used"
    np.save(tmp_path / "scan.npy", np.ones((2, 3, 8, 8), np.uint16))
    assert dict(overview(tdm.open(tmp_path / "scan.npy")))["file"].startswith("scan.npy, read where it lies")
    with xr.open_zarr(path, chunks=None) as plain:
        assert dict(overview(plain["counts"]))["kept"].startswith("in a file")
        assert not plain["counts"].variable._in_memory


def test_nothing_is_read_for_it(counts):
    def fail(*_):
        raise AssertionError("counts were read")

    lazy = tdm.label_counts(da.map_blocks(fail, da.zeros((2, 2, 4, 4)), dtype=np.uint16, meta=np.empty((0,) * 4)))
    assert "2 × 2 × 4 × 4" in repr(lazy.tdm) + lazy.tdm._repr_html_()


def test_the_html_is_well_formed_and_escaped(counts):
    table = ElementTree.fromstring(counts.rename("<b>&counts").tdm._repr_html_())
    rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert rows[0][0] == "<b>&counts"
    assert [": ".join(row) for row in rows] == [
        line.strip() for line in repr(counts.rename("<b>&counts").tdm).split("\n")
    ]


def test_the_text_of_xarray_stays_short(tmp_path, counts):
    path = tmp_path / "scan.zarr"
    converted(path, counts)
    text = repr(tdm.open(path))
    assert len(text.splitlines()) < 20
    assert max(map(len, text.splitlines())) < 160
    assert text.index("long_name") < text.index("energy_eV")
