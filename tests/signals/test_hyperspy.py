"""HyperSpy's signals in and out: nothing of them is lost, and the numbers are those of labelled arrays."""

from __future__ import annotations

import importlib
import json

import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
import yaml
from counted_reads import CountingStore, assert_read_once, several_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signals_for_tests import EXTENSION, assert_equal_signals, register, same, scan_signal
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask.axes import axis_coordinate, electron_wavelength, label_counts
from tdm_dask.errors import CoordinateError, CountsError, FrameError, InputError, RegionError
from tdm_dask.reading.lazy import source_of

hs = pytest.importorskip("hyperspy.api")
hyperspy = importlib.import_module("tdm_dask.hyperspy")
from tdm_dask.signals.conversion import ORIGIN, from_signal, to_signal  # noqa: E402
from tdm_dask.signals.node import NODE  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _ready():
    register()
    to_signal(from_signal(scan_signal(lazy=True)))  # what HyperSpy imports when it is first used


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return several_shards(tmp_path_factory.mktemp("signals"))


def template_of(signal, n=2, seed=3):
    ny, nx = signal.axes_manager.navigation_shape[::-1]
    data = np.random.default_rng(seed).normal(size=(n, ny, nx))
    return xr.DataArray(data, dims=("template", "y", "x"), coords={"template": [f"kind {k}" for k in range(n)]})


# Round trips

UNITS = [None, "px", "nm", "Å", "pm", "mrad", "rad", "1/nm", "1/Å", "k_A^-1", r"$\AA^{-1}$", "parsec"]
finite = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda v: round(v, 6))
axis_facts = st.fixed_dictionaries(
    {
        "name": st.sampled_from([None, "x", "y", "kx", "some axis"]),
        "units": st.sampled_from(UNITS),
        "scale": st.sampled_from([1.0, 0.25, 0.3, -0.5, 1e-3]),
        "offset": finite,
        "is_binned": st.booleans(),
    }
)
leaves = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    finite,
    st.text(max_size=4),
    st.just((1, "two")),
    st.just([1.5, [2]]),
    st.just(np.arange(3)),
)
words = st.sampled_from(["alpha", "beta", "with space", "Stage"])
trees = st.dictionaries(words, st.one_of(leaves, st.dictionaries(words, leaves, min_size=1)), max_size=3)


@st.composite
def signals(draw):
    navigation = draw(st.sampled_from([1, 2, 2]))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=navigation + 2, max_size=navigation + 2)))
    dtype = draw(st.sampled_from(["uint8", "uint16", ">u2", "int32", "float32", "float64", "bool"]))
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    axes = [draw(axis_facts) | {"size": n} for n in shape]
    metadata = draw(trees)
    if draw(st.booleans()):
        metadata["Acquisition_instrument"] = {"TEM": {"beam_energy": draw(st.sampled_from([80.0, 200, 0.0]))}}
    signal = hs.signals.Signal2D(data, axes=axes, metadata=metadata, original_metadata=draw(trees))
    if draw(st.booleans()):
        chunks = tuple(draw(st.integers(1, n)) for n in shape)
        signal.data = da.from_array(data, chunks=chunks)
        signal = signal.as_lazy()
    if navigation == 2 and draw(st.booleans()):
        signal.navigator = hs.signals.Signal2D(np.ones(shape[:2]))
    return signal


@pytest.mark.long
@given(signals())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_signal_comes_back_equal(signal):
    assert_equal_signals(to_signal(from_signal(signal)), signal)


@pytest.mark.long
@given(signals())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_comes_back_is_taken_for_the_same_array(signal):
    first, second = from_signal(signal), from_signal(to_signal(from_signal(signal)))
    xr.testing.assert_equal(first, second)
    assert {k: v for k, v in first.attrs.items() if k != ORIGIN} == {
        k: v for k, v in second.attrs.items() if k != ORIGIN
    }


@pytest.mark.parametrize("lazy", [False, True])
def test_calibrated_counts_come_back_equal(lazy):
    counts = label_counts(np.random.default_rng(0).poisson(3, (4, 5, 6, 8)).astype(np.uint16))
    counts = counts.chunk({"y": 2}) if lazy else counts
    counts = tdm.calibrate(
        counts, semi_angle=20, pixel_size=3.7, centre=(2.2, 3.1), scan_step="31 pm", energy=80123.7, rotation=12
    )
    flags = np.ones((6, 8), bool)
    flags[1, 2] = False
    counts = counts.assign_coords(valid_pixels=(("ky", "kx"), flags), descan_ky=(("y", "x"), np.ones((4, 5))))
    back = from_signal(to_signal(counts))
    assert back.attrs.pop(ORIGIN)
    assert back.attrs == counts.attrs
    xr.testing.assert_allclose(back, counts, rtol=1e-12)
    assert set(back.coords) == set(counts.coords)
    assert back.chunks == counts.chunks
    if lazy:
        assert back.data.name == counts.data.name


@pytest.mark.parametrize("dims", [("template", "ky", "kx"), ("ky", "kx"), ("template", "y", "x"), ("y", "x")])
@pytest.mark.parametrize("units", ["angstrom and mrad", "px", None])
def test_masks_and_images_come_back_equal(dims, units):
    rng = np.random.default_rng(0)
    sizes = {"template": 3, "y": 4, "x": 5, "ky": 6, "kx": 7}
    coords = {"template": ["Li", "O", "P+O"]} if "template" in dims else {}
    for dim in dims[-2:]:
        unit = "px" if units == "px" else "mrad" if dim in ("ky", "kx") else "angstrom"
        coords |= {} if units is None else {dim: axis_coordinate(dim, sizes[dim], 0.7, 5.0, unit)}
    array = xr.DataArray(rng.normal(size=[sizes[d] for d in dims]), coords, dims, name="something")
    array.attrs = {"method": "pearson", "units": "1", "truth": [1, 2]}
    array = array.assign_coords(mean=(dims[-2:], rng.normal(size=array.shape[-2:])), n=((), 20))
    back = from_signal(to_signal(array))
    assert back.attrs.pop(ORIGIN)
    if units is None:
        back = back.drop_vars(dims[-2:])
    xr.testing.assert_allclose(back, array, rtol=1e-12)
    assert back.attrs == array.attrs
    assert back.name == array.name


def test_what_was_cropped_keeps_its_units_and_moves_its_offset():
    signal = scan_signal()
    part = to_signal(from_signal(signal).isel(y=slice(2, 5), kx=slice(3, 9)))
    expected = signal.inav[:, 2:5].isig[3:9, :]
    for found, axis in zip(
        part.axes_manager.as_dictionary().values(), expected.axes_manager.as_dictionary().values(), strict=True
    ):
        assert found.pop("scale") == pytest.approx(axis.pop("scale"), rel=1e-12)
        assert found.pop("offset") == pytest.approx(axis.pop("offset"), abs=1e-12)
        assert found == axis


def test_what_was_binned_has_wider_steps_of_the_same_unit():
    part = to_signal(tdm.bin(from_signal(scan_signal()), detector=2))
    axis = part.axes_manager["kx"]
    assert (axis.units, axis.size, axis.scale, axis.offset) == ("mrad", 5, pytest.approx(4), pytest.approx(-9))


# Units and facts


@pytest.mark.parametrize(
    ("unit", "scale", "energy", "expected"),
    [
        ("mrad", 2.0, None, 2.0),
        ("rad", 0.002, None, 2.0),
        ("1/nm", 0.5, 200.0, 0.05 * electron_wavelength(200e3) * 1e3),
        ("1/Å", 0.05, 200.0, 0.05 * electron_wavelength(200e3) * 1e3),
        ("nm^-1", 0.5, 80.0, 0.05 * electron_wavelength(80e3) * 1e3),
        ("k_A^-1", 0.05, 200.0, 0.05 * electron_wavelength(200e3) * 1e3),
        (r"$\AA^{-1}$", 0.05, 200.0, 0.05 * electron_wavelength(200e3) * 1e3),
        ("nm$^{-1}$", 0.5, 200.0, 0.05 * electron_wavelength(200e3) * 1e3),
        ("q_nm^-1", 0.5, 200.0, 0.05 * electron_wavelength(200e3) * 1e3 / (2 * np.pi)),
        ("2th_rad", 0.002, None, 2.0),
    ],
)
def test_detector_units_become_mrad(unit, scale, energy, expected):
    signal = scan_signal()
    signal.axes_manager.signal_axes.set(units=unit, scale=scale, offset=-3 * scale)
    del signal.metadata.Acquisition_instrument
    if energy is not None:
        signal.metadata.set_item("Acquisition_instrument.TEM.beam_energy", energy)
    counts = from_signal(signal)
    np.testing.assert_allclose(counts.kx, expected * np.arange(-3, 7), rtol=1e-12, atol=1e-12)
    assert counts.kx.attrs["units"] == "mrad"


@pytest.mark.parametrize(("unit", "factor"), [("nm", 10.0), ("Å", 1.0), ("angstrom", 1.0), ("pm", 0.01), ("A", 1.0)])
def test_scan_units_become_angstrom(unit, factor):
    signal = scan_signal()
    signal.axes_manager.navigation_axes.set(units=unit, scale=0.5, offset=3.0)
    counts = from_signal(signal)
    np.testing.assert_allclose(counts.x, factor * (3 + 0.5 * np.arange(6)), rtol=1e-12)
    assert counts.x.attrs["units"] == "angstrom"


def test_a_detector_whose_zero_is_its_corner_is_not_centred():
    signal = scan_signal()
    signal.axes_manager.signal_axes.set(offset=0.0)
    counts = from_signal(signal)
    assert counts.kx.attrs["units"] == "px"
    assert counts.attrs["pixel_size_mrad"] == [2.0, 2.0]
    assert any("optic axis" in finding for finding in counts.attrs["findings"])
    assert tdm.calibrate(counts, centre=(6, 5)).kx.values[5] == 0


def test_reciprocal_axes_without_an_energy_are_pixels_and_it_is_said():
    signal = scan_signal()
    signal.axes_manager.signal_axes.set(units="1/nm", scale=0.5, offset=-2)
    del signal.metadata.Acquisition_instrument
    counts = from_signal(signal)
    assert counts.kx.attrs["units"] == "px"
    assert any("beam energy" in finding for finding in counts.attrs["findings"])


def test_facts_of_the_microscope_go_both_ways():
    signal = scan_signal()
    signal.metadata.set_item("Acquisition_instrument.TEM.convergence_angle", 23.5)
    signal.metadata.set_item("Acquisition_instrument.dwell_time", 1e-3)
    counts = from_signal(signal)
    assert (counts.attrs["energy_eV"], counts.attrs["semi_angle_mrad"], counts.attrs["dwell_time_s"]) == (
        200e3,
        23.5,
        1e-3,
    )
    changed = tdm.calibrate(counts, energy="300 keV", beam_current="50 pA", dwell_time="2 ms")
    metadata = to_signal(changed).metadata
    assert metadata.Acquisition_instrument.TEM.beam_energy == 300
    assert metadata.Acquisition_instrument.TEM.beam_current == pytest.approx(0.05)
    assert metadata.Acquisition_instrument.dwell_time == pytest.approx(2e-3)
    assert from_signal(to_signal(changed)).attrs["energy_eV"] == 300e3


def test_facts_that_are_edited_in_the_metadata_go_before_what_was_recorded():
    counts = tdm.calibrate(label_counts(np.ones((2, 2, 4, 4))), energy=80123.7)
    signal = to_signal(counts)
    assert from_signal(signal).attrs["energy_eV"] == 80123.7
    signal.metadata.Acquisition_instrument.TEM.beam_energy = 120.0
    assert from_signal(signal).attrs["energy_eV"] == 120e3


@pytest.mark.parametrize(("unit", "per_angstrom"), [("1/nm", 10.0), ("1/Å", 1.0)])
def test_detector_units_can_be_reciprocal(unit, per_angstrom):
    counts = from_signal(scan_signal())
    signal = to_signal(counts, detector_units=unit)
    axis = signal.axes_manager["kx"]
    assert axis.units == unit
    assert axis.scale == pytest.approx(per_angstrom * 2e-3 / electron_wavelength(200e3))
    xr.testing.assert_allclose(from_signal(signal), counts)
    assert to_signal(from_signal(signal), detector_units="nm^-1").axes_manager["kx"].units == "nm^-1"


# Dimensions


def test_a_stack_of_scans_needs_a_frame():
    data = np.random.default_rng(0).poisson(3, (3, 4, 5, 6, 7))
    signal = hs.signals.Signal2D(data)
    np.testing.assert_array_equal(from_signal(signal, frame=2), data[2])
    np.testing.assert_array_equal(to_signal(from_signal(signal, frame=1)).data, data[1])
    for frame in (None, 3, -1, True):
        with pytest.raises(FrameError, match="stack of 3 scans"):
            from_signal(signal, frame=frame)
    with pytest.raises(FrameError, match="no stack"):
        from_signal(scan_signal(), frame=0)


@pytest.mark.long
def test_functions_take_one_scan_of_a_stack():
    data = np.random.default_rng(0).poisson(3, (3, 4, 5, 6, 7))
    image = hyperspy.apply_mask(hs.signals.Signal2D(data), np.ones((6, 7)), frame=2)
    np.testing.assert_allclose(image.data, data[2].sum((2, 3)))


def test_a_scan_of_one_line_is_one_line():
    data = np.random.default_rng(0).poisson(3, (9, 6, 7))
    signal = hs.signals.Signal2D(data)
    signal.axes_manager.navigation_axes.set(units="nm", scale=0.1)
    counts = from_signal(signal)
    assert dict(counts.sizes) == {"y": 1, "x": 9, "ky": 6, "kx": 7}
    assert counts.x.attrs["units"] == "angstrom"
    assert_equal_signals(to_signal(counts), signal)
    assert hyperspy.apply_mask(signal, np.ones((6, 7))).data.shape == (1, 9)


def test_dims_say_what_units_do_not():
    bare = hs.signals.Signal2D(np.ones((4, 5)))
    with pytest.raises(CountsError, match="no unit that says"):
        from_signal(bare)
    assert from_signal(bare, dims=("ky", "kx")).dims == ("ky", "kx")
    assert from_signal(hs.signals.Signal2D(np.ones((3, 4, 5))), dims=("template", "y", "x")).dims[0] == "template"
    with pytest.raises(InputError, match="each once"):
        from_signal(bare, dims=("y", "y"))


def test_a_sum_over_the_detector_is_an_image():
    signal = scan_signal()
    image = signal.sum(axis=signal.axes_manager.signal_axes)
    array = from_signal(image)
    assert array.dims == ("y", "x")
    np.testing.assert_allclose(array.x, from_signal(signal).x)
    assert_equal_signals(to_signal(array), image)


def test_what_is_no_scan_is_refused_in_words():
    with pytest.raises(CountsError, match="2 navigation and 1 signal"):
        from_signal(hs.signals.Signal1D(np.ones((3, 4, 5))))
    with pytest.raises(CountsError, match="complex"):
        from_signal(hs.signals.ComplexSignal2D(np.ones((3, 4, 5, 6), complex)))
    uneven = scan_signal()
    uneven.axes_manager[0].convert_to_non_uniform_axis()
    with pytest.raises(CoordinateError, match="not evenly spaced"):
        from_signal(uneven)
    with pytest.raises(InputError, match="expected a scan"):
        to_signal(xr.DataArray(np.ones(4), dims="radius"))
    angles = {d: xr.Variable(d, [-4.0, 0, 4.5], {"units": "mrad"}) for d in ("ky", "kx")}
    with pytest.raises(CoordinateError, match="not evenly spaced"):
        to_signal(xr.DataArray(np.ones((3, 3)), angles, ("ky", "kx")))
    with pytest.raises(CoordinateError, match="not known"):
        to_signal(from_signal(scan_signal()).assign_attrs(energy_eV=None), detector_units="1/nm")


def test_flags_follow_slices_and_are_not_guessed_for_bins():
    flags = np.random.default_rng(1).random((6, 8)) > 0.3
    counts = label_counts(np.ones((4, 5, 6, 8), np.uint16), {"valid_pixels": (("ky", "kx"), flags)})
    signal = to_signal(counts)
    part = from_signal(signal.isig[2:7, 1:5].inav[1:3])
    np.testing.assert_array_equal(part.valid_pixels, flags[1:5, 2:7])
    with pytest.raises(CoordinateError, match="valid_pixels"):
        from_signal(signal.rebin(scale=(1, 1, 2, 2)))


# Laziness and reads


@pytest.mark.long
def test_a_store_stays_the_same_source(store):
    signal = hyperspy.open_signal(store[0])
    assert type(signal) is type(hs.signals.Signal2D(signal.data).as_lazy())
    for one in (signal, signal.deepcopy(), to_signal(from_signal(signal)), signal.as_lazy()):
        assert source_of(from_signal(one).data) is not None
        assert source_of(from_signal(one).data).token == source_of(tdm.open(store[0]).data).token


@pytest.mark.long
def test_functions_on_signals_read_once_and_nothing_before(store):
    counting = CountingStore(LocalStore(store[0], read_only=True))
    signal = hyperspy.open_signal(counting)
    template = np.random.default_rng(0).normal(size=(2, 40, 48))
    mask = hyperspy.derive_mask(signal, template)
    hyperspy.apply_mask(signal, mask, normalisation="standardised")
    assert counting.reads == []
    assert type(mask).__name__ == "LazyTemplateMask"
    mask.compute(show_progressbar=False, scheduler="threads")
    assert_read_once(counting, store[0])
    assert type(mask).__name__ == "TemplateMask"
    counting.reads.clear()
    image = hyperspy.apply_mask(signal, mask, normalisation="standardised", lazy_output=False, show_progressbar=False)
    assert_read_once(counting, store[0])
    mean, std = oracle.statistics(store[1])
    rho = oracle.correlation(store[1], template)
    oracle.assert_close(mask.data, rho, 1)
    oracle.assert_close(image.data, oracle.standardised_image(store[1], rho, mean, std))


@pytest.mark.parametrize("lazy", [False, True])
def test_lazy_stays_lazy_unless_asked(lazy):
    signal = scan_signal(lazy=lazy)
    template = template_of(signal)
    assert hyperspy.derive_mask(signal, template)._lazy is lazy
    assert hyperspy.apply_mask(signal, np.ones((12, 10)))._lazy is lazy
    assert not hyperspy.derive_mask(signal, template, lazy_output=False, show_progressbar=False)._lazy
    assert hyperspy.derive_mask(signal, template, lazy_output=True)._lazy


def test_progress_is_shown_where_it_is_asked_for(capsys):
    signal = scan_signal(lazy=True)
    hyperspy.apply_mask(signal, np.ones((12, 10)), lazy_output=False, show_progressbar=False)
    assert capsys.readouterr().err == ""
    hyperspy.apply_mask(signal, np.ones((12, 10)), lazy_output=False, show_progressbar=True)
    assert "apply_mask" in capsys.readouterr().err


# The same numbers


@pytest.mark.long
@given(st.booleans(), st.sampled_from(["pearson", "mean-scaled", "ridge"]), st.booleans(), st.integers(0, 3))
@settings(max_examples=16, deadline=None)
def test_masks_and_images_are_those_of_the_labelled_array(lazy, method, stacked, seed):
    signal = scan_signal(lazy=lazy, seed=seed)
    counts = from_signal(signal)
    template = template_of(signal, seed=seed)
    template = template if stacked else template[0].drop_vars("template")
    options = {"method": method} | ({"regularisation": 0.1} if method == "ridge" else {})
    expected = tdm.derive_mask(counts, template.assign_coords(y=counts.y, x=counts.x), **options).compute()
    mask = hyperspy.derive_mask(signal, template.values, **options)
    np.testing.assert_array_equal(np.asarray(mask.data), expected)
    for normalisation in ("none", "standardised"):
        image = hyperspy.apply_mask(signal, mask, normalisation=normalisation)
        wanted = tdm.apply_mask(counts, expected, normalisation=normalisation)
        oracle.assert_close(image.data, wanted)
    assert mask.axes_manager.signal_shape == (10, 12)
    assert [(a.name, a.units, a.scale, a.offset) for a in mask.axes_manager.signal_axes] == [
        ("kx", "mrad", 2.0, -10.0),
        ("ky", "mrad", 2.0, -12.0),
    ]
    assert [(a.name, a.units, a.scale, a.offset) for a in image.axes_manager.signal_axes] == [
        ("x", "nm", 0.02, 0.1),
        ("y", "nm", 0.02, 0.0),
    ]
    assert image.axes_manager.navigation_shape == ((2,) if stacked else ())


def test_a_mask_that_was_saved_makes_the_same_image(tmp_path):
    signal = scan_signal()
    mask = hyperspy.derive_mask(signal, template_of(signal), detector_region=hyperspy.disk(signal, 9))
    mask.save(tmp_path / "mask.hspy")
    loaded = hs.load(tmp_path / "mask.hspy")
    assert type(loaded).__name__ == "TemplateMask"
    first, second = (hyperspy.apply_mask(signal, m, normalisation="standardised") for m in (mask, loaded))
    np.testing.assert_array_equal(first.data, second.data)
    assert from_signal(loaded).template.values.tolist() == ["kind 0", "kind 1"]


def test_signals_serve_as_templates_masks_and_regions():
    signal = scan_signal()
    counts = from_signal(signal)
    sums = signal.sum(axis=signal.axes_manager.signal_axes)  # navigates over the scan
    expected = tdm.derive_mask(counts, counts.sum(("ky", "kx")))
    oracle.assert_close(hyperspy.derive_mask(signal, sums).data, expected, 1)
    oracle.assert_close(hyperspy.derive_mask(signal, sums.T).data, expected, 1)
    # A bare signal of the right shape lies on the detector as it stands.
    weights = np.random.default_rng(0).random((12, 10))
    bare = hs.signals.Signal2D(weights)
    np.testing.assert_allclose(hyperspy.apply_mask(signal, bare).data, oracle.image(counts.values, weights[None])[0])
    used = np.zeros((7, 6), bool)
    used[:4] = True
    found = hyperspy.derive_mask(signal, sums, scan_region=hs.signals.Signal2D(used), detector_region=bare)
    oracle.assert_close(
        found.data, tdm.derive_mask(counts, counts.sum(("ky", "kx")), scan_region=used, detector_region=weights), 1
    )


def test_a_mask_of_another_detector_is_refused():
    signal = scan_signal()
    other = hyperspy.disk(signal, 9)
    other.axes_manager[0].offset += 1
    with pytest.raises(tdm.errors.MaskError, match="differ"):
        hyperspy.apply_mask(signal, other)


def test_conventional_masks_and_templates_are_signals():
    signal = scan_signal(lazy=True)
    counts = from_signal(signal)
    for found, expected in (
        (hyperspy.disk(signal, 7), tdm.disk(counts, 7)),
        (hyperspy.annulus(signal, 3, "9 mrad"), tdm.annulus(counts, 3, 9)),
        (hyperspy.segments(signal, 3, 9, 3), tdm.segments(counts, 3, 9, 3)),
        (
            hyperspy.binary_template(signal, [(0.4, 1.5)], radius=0.3),
            tdm.binary_template(counts, [(0.4, 1.5)], radius=0.3),
        ),
    ):
        assert not found._lazy
        np.testing.assert_array_equal(found.data, expected)
        xr.testing.assert_allclose(from_signal(found).drop_attrs(), expected.drop_attrs())
    points = {"A": [hs.roi.Point2DROI(x=0.14, y=0.06)], "B": [(1.0, 1.8)]}
    found = hyperspy.gaussian_template(signal, points, sigma=0.3)
    expected = tdm.gaussian_template(counts, {"A": [(0.6, 1.4)], "B": [(1.0, 1.8)]}, sigma=0.3)
    np.testing.assert_allclose(found.data, expected, rtol=1e-9)
    com = hyperspy.centre_of_mass(signal, lazy_output=False, show_progressbar=False)
    np.testing.assert_allclose(com.data, tdm.centre_of_mass(counts))


def test_results_say_what_made_them():
    signal = scan_signal()
    mask = hyperspy.derive_mask(signal, template_of(signal), detector_region=hs.roi.CircleROI(0, 0, 8))
    made = json.loads(mask.metadata.tdm_dask.attrs.made_by)
    assert made["function"] == "derive_mask"
    assert made["signal"] == "a scan"
    assert made["version"] == tdm.__version__
    assert "CircleROI" in made["options"]["detector_region"]
    assert mask.metadata.Acquisition_instrument.TEM.beam_energy == 200
    assert mask.metadata.General.title == "pearson mask of a scan"
    assert NODE in mask.metadata


# Regions of interest


@pytest.mark.parametrize(("unit", "scale"), [("mrad", 2.0), ("1/nm", 0.8), ("", 1.0)])
def test_a_circle_weighs_pixels_by_their_part_inside_whatever_the_unit(unit, scale):
    signal = scan_signal()
    signal.axes_manager.signal_axes.set(units=unit, scale=scale, offset=-5 * scale)
    roi = hs.roi.CircleROI(cx=0.4 * scale, cy=-0.2 * scale, r=3.3 * scale, r_inner=1.2 * scale)
    angles = {d: axis_coordinate(d, n, 1.0, -5.0, "mrad") for d, n in (("ky", 12), ("kx", 10))}
    detector = xr.DataArray(np.zeros((12, 10)), angles, ("ky", "kx"))
    weights = tdm.annulus(detector, 1.2, 3.3, centre=(-0.2, 0.4)).values
    found = hyperspy.apply_mask(signal, roi).data
    np.testing.assert_allclose(
        found, oracle.image(signal.data, weights[None])[0], rtol=1e-7
    )  # weights are float32 in a pass


@pytest.mark.parametrize(
    "roi",
    [
        hs.roi.RectangularROI(left=-4, right=5, top=-6, bottom=2),
        hs.roi.RectangularROI(left=-400, right=500, top=-6, bottom=2),
        hs.roi.PolygonROI([(-6, -6), (6, -4), (0, 8)]),
        hs.roi.Point2DROI(x=2, y=-4),
    ],
)
def test_other_regions_hold_what_hyperspy_slices(roi):
    signal = scan_signal()
    sliced = (
        np.nansum(np.asarray(roi(signal, axes=signal.axes_manager.signal_axes).data, float), axis=(2, 3))
        if (not isinstance(roi, hs.roi.Point2DROI))
        else signal.isig[2.0, -4.0].data
    )
    np.testing.assert_allclose(hyperspy.apply_mask(signal, roi).data, np.reshape(sliced, (7, 6)))


def test_regions_on_the_scan_choose_probe_positions():
    signal = scan_signal()
    counts, template = from_signal(signal), template_of(signal)
    template = template.assign_coords(y=counts.y, x=counts.x)
    rectangle = hs.roi.RectangularROI(left=0.12, right=0.18, top=0.02, bottom=0.1)
    expected = tdm.derive_mask(counts, template, scan_region=(slice(1, 5), slice(1, 4)))
    oracle.assert_close(hyperspy.derive_mask(signal, template, scan_region=rectangle).data, expected, 1)
    flags = np.hypot(np.arange(7)[:, None] - 3, np.arange(6) - 2) <= 2.01
    circle = hs.roi.CircleROI(cx=0.14, cy=0.06, r=0.0402)
    expected = tdm.derive_mask(counts, template, scan_region=flags)
    oracle.assert_close(hyperspy.derive_mask(signal, template, scan_region=circle).data, expected, 1)
    # A region on the scan is a template too.
    expected = tdm.derive_mask(counts, xr.DataArray(flags.astype(float), dims=("y", "x")))
    oracle.assert_close(hyperspy.derive_mask(signal, circle).data, expected, 1)


def test_several_regions_are_one():
    signal = scan_signal()
    both = [hs.roi.Point2DROI(x=2, y=-4), hs.roi.Point2DROI(x=-2, y=4)]
    found = hyperspy.apply_mask(signal, both).data
    np.testing.assert_allclose(found, sum(hyperspy.apply_mask(signal, one).data for one in both))


def test_regions_that_cannot_be_are_refused_in_words():
    signal = scan_signal()
    for roi, words_ in (
        (hs.roi.CircleROI(), "not set"),
        (hs.roi.SpanROI(0, 1), "no area"),
        (hs.roi.RectangularROI(left=100, right=200, top=100, bottom=200), "RectangularROI"),
    ):
        with pytest.raises(RegionError, match=words_):
            hyperspy.apply_mask(signal, roi)
    with pytest.raises(InputError, match="no point"):
        hyperspy.gaussian_template(signal, [hs.roi.RectangularROI(0, 0, 1, 1)], sigma=1)


# The extension


def test_the_extension_registers_what_exists_and_nothing_of_others():
    from hyperspy.extensions import EXTENSIONS

    ours = yaml.safe_load(EXTENSION.read_text())["signals"]
    types = {entry["signal_type"] for entry in EXTENSIONS["signals"].values()}
    for name, entry in ours.items():
        assert name not in EXTENSIONS["signals"]
        assert entry["signal_type"] not in types
        assert "diffraction" not in entry["signal_type"]
        kind = getattr(importlib.import_module(entry["module"]), name)
        assert (kind._signal_type, kind._lazy, kind._signal_dimension) == (entry["signal_type"], entry["lazy"], 2)


def test_pyxem_signals_go_in_and_come_back():
    pyxem = pytest.importorskip("pyxem")
    counts = np.random.default_rng(0).poisson(4, (6, 5, 16, 16)).astype(np.uint16)
    for lazy in (False, True):
        signal = pyxem.signals.ElectronDiffraction2D(counts.copy())
        signal.beam_energy = 200
        signal.calibration(scale=0.05, units="k_A^-1", center=None)
        signal.set_scan_calibration(0.03)
        signal = signal.as_lazy() if lazy else signal
        assert_equal_signals(to_signal(from_signal(signal)), signal)
        array = from_signal(signal)
        step = 0.05 * electron_wavelength(200e3) * 1e3
        np.testing.assert_allclose(array.kx, step * (np.arange(16) - 7.5), rtol=1e-9)
        mask = hyperspy.derive_mask(signal, signal.get_integrated_intensity(hs.roi.CircleROI(0, 0, 0.2)))
        assert type(mask).__name__.endswith("TemplateMask")
        image = hyperspy.apply_mask(signal, mask, normalisation="standardised", lazy_output=False)
        assert same(list(image.data.shape), [6, 5])


def test_pyxem_and_this_package_plot_their_own_signals(tmp_path):
    pyxem = pytest.importorskip("pyxem")
    import matplotlib.pyplot as plt

    counts = np.random.default_rng(0).poisson(4, (6, 5, 16, 16)).astype(np.uint16)
    theirs = pyxem.signals.ElectronDiffraction2D(counts)
    mask = hyperspy.derive_mask(theirs, np.random.default_rng(1).normal(size=(6, 5)))
    for signal, kind in ((theirs, "ElectronDiffraction2D"), (mask, "TemplateMask")):
        signal.save(tmp_path / f"{kind}.hspy")
        loaded = hs.load(tmp_path / f"{kind}.hspy")
        assert type(loaded).__name__ == kind
        loaded.plot()
        assert loaded._plot.signal_plot.ax is not None
        loaded = hs.load(tmp_path / f"{kind}.hspy", lazy=True)
        assert type(loaded).__name__ == f"Lazy{kind}"
    plt.close("all")
