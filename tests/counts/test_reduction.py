"""Reductions of one's own: the dense answer whatever the counts lie in, one read, and mistakes in one sentence."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import traceback

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from counted_reads import CountingStore, assert_read_once, several_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import LAYOUTS, as_labelled, scans
from small_stores import converted, poisson, small_shards
from zarr.storage import LocalStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.passes import own_reductions as passes_of_own
from tdm_dask.passes.own_reductions import OwnReductions, form_of
from tdm_dask.passes.whole_patterns import Whole


class Extremes(tdm.Reduction):
    """Extremes of every detector pixel."""

    dims, units, fill = ("ky", "kx"), "counts", -1.0

    def start(self, shape):
        return {"smallest": np.full(shape, np.inf), "largest": np.full(shape, -np.inf)}

    def add(self, state, block):
        for name, extreme, of in (("smallest", np.minimum, np.min), ("largest", np.maximum, np.max)):
            part = state[name][block.detector]
            extreme(part, of(block.counts, 0), out=part)
        return state

    def merge(self, first, second):
        np.minimum(first["smallest"], second["smallest"], out=first["smallest"])
        return first | {"largest": np.maximum(first["largest"], second["largest"])}


class Weighted(tdm.Reduction):
    """Counts weighted by their position, and as they are."""

    dims = ("weighting", "ky", "kx")

    def __init__(self, weights):
        self.weights = weights

    def start(self, shape):
        return np.zeros((2, *shape))

    def add(self, state, block):
        weights = np.stack([self.weights[block.y, block.x], np.ones(len(block.counts))])
        state[:, *block.detector] += np.tensordot(weights, block.counts.astype(float), 1)
        return state

    def merge(self, first, second):
        first += second
        return first


class Totals(tdm.Reduction):
    """Counts of every pattern."""

    dims = ("y", "x")

    def start(self, shape):
        return np.zeros(shape)

    def add(self, state, block):
        state[block.scan] += block.counts.sum((1, 2), dtype=float)
        return state


class Brightest(tdm.Reduction):
    """Place and count of the brightest pixel of every pattern."""

    dims, whole_patterns = ("y", "x"), True

    def start(self, shape):
        return {"pixel": np.zeros(shape, np.int64), "count": np.zeros(shape, np.float64)}

    def add(self, state, block):
        assert block.detector == (slice(0, block.counts.shape[1]), slice(0, block.counts.shape[2]))
        flat = block.counts.reshape(len(block.counts), -1)
        state["pixel"][block.scan] = flat.argmax(1)
        state["count"][block.scan] = flat.max(1)
        return state


class Spectrum(tdm.Reduction):
    """How many counts are odd, and how many are not 0."""

    dims, units = ("what",), "1"

    def start(self, shape):
        assert shape is None
        return np.zeros(2, np.int64)

    def add(self, state, block):
        return state + np.array([(block.counts % 2 == 1).sum(), np.count_nonzero(block.counts)])

    def merge(self, first, second):
        return first + second


class Patterns(tdm.Reduction):
    """Number of patterns."""

    whole_patterns = True

    def start(self, shape):
        return 0

    def add(self, state, block):
        return state + len(block.counts)

    def merge(self, first, second):
        return first + second


class Places(Patterns):
    """Where the patterns are."""

    def start(self, shape):
        return []

    def add(self, state, block):
        return state + list(zip(block.y.tolist(), block.x.tolist(), strict=True))

    def finish(self, state):
        return {"sorted": sorted(state)}


def all_of_them(shape, seed=0):
    weights = np.random.default_rng(seed).normal(size=shape[:2])
    return {
        "extremes": Extremes(), "weighted": Weighted(weights), "totals": Totals(), "brightest": Brightest(),
        "spectrum": Spectrum(), "patterns": Patterns(), "places": Places(),
    }  # fmt: skip


def assert_dense(found, counts, used, pixels, weights):
    """The answers of `all_of_them` from all counts at once, with 0 at pixels that are not used."""
    seen = np.where(pixels, counts, 0)[used].astype(float)
    for name, extreme in (("smallest", np.min), ("largest", np.max)):
        np.testing.assert_array_equal(found[f"extremes_{name}"], np.where(pixels, extreme(seen, 0), -1))
    expected = [np.tensordot(weights[used], seen, 1), seen.sum(0)]
    oracle.assert_close(found["weighted"], expected)
    flat = seen.reshape(len(seen), -1)
    for name, values in (
        ("totals", flat.sum(1)), ("brightest_pixel", flat.argmax(1)), ("brightest_count", flat.max(1))
    ):  # fmt: skip
        image = np.full(used.shape, np.nan)
        image[used] = values
        np.testing.assert_allclose(found[name], image, rtol=1e-12)
    np.testing.assert_array_equal(found["spectrum"], [(seen % 2 == 1).sum(), (seen != 0).sum()])
    assert int(found["patterns"]) == used.sum()
    assert found["places"].item() == {"sorted": list(map(tuple, np.argwhere(used).tolist()))}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(), scan=scans(), layout=st.sampled_from(LAYOUTS), scheduler=st.sampled_from(["synchronous", "threads"])
)
def test_results_are_the_dense_ones(data, scan, layout, scheduler, tmp_path_factory):
    counts, rng = scan
    ny, nx, nky, nkx = counts.shape
    by = {
        "none": np.zeros((2, ny, nx)),
        "random": rng.uniform(-1.6, 1.6, (2, ny, nx)),
        "wide": rng.integers(-nky, nky + 1, (2, ny, nx)),
    }[data.draw(st.sampled_from(["none", "none", "random", "wide"]))]
    valid = rng.random((nky, nkx)) < data.draw(st.sampled_from([0.8, 1.0]))
    patterns = rng.random((ny, nx)) < data.draw(st.sampled_from([0.7, 1.0]))
    valid[-1, -1] = patterns[0, 0] = True
    region = rng.random((nky, nkx)) < data.draw(st.sampled_from([0.3, 1.0]))
    used = rng.random((ny, nx)) < data.draw(st.sampled_from([0.5, 1.0]))
    used[0, 0] = True
    with small_shards():
        labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    labelled = labelled.assign_coords(
        valid_pixels=(("ky", "kx"), valid), valid_patterns=(("y", "x"), patterns),
        descan_ky=(("y", "x"), by[0]), descan_kx=(("y", "x"), by[1]),
    )  # fmt: skip
    moved, seen = oracle.descanned(counts, np.rint(by), valid, patterns)
    reductions = all_of_them(counts.shape)
    with dask.config.set(scheduler=scheduler):
        if not (seen & region).any():
            with pytest.raises(errors.RegionError):
                tdm.reduce(labelled, reductions, detector_region=region, scan_region=used)
            return
        found = tdm.reduce(labelled, reductions, detector_region=region, scan_region=used)
        assert (found.chunks == {}) == (layout == "numpy")
        assert_dense(found.compute(), moved, used & patterns, seen & region, reductions["weighted"].weights)


SHAPE = (9, 14, 12, 16)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("stored") / "scan.zarr", poisson(SHAPE))


def everything(shape=SHAPE):
    return np.ones(shape[:2], bool), np.ones(shape[2:], bool)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes", "cluster"])
def test_every_scheduler_gives_the_same(stored, scheduler):
    reductions = all_of_them(SHAPE)
    weights = reductions["weighted"].weights
    if scheduler == "cluster":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            found = tdm.reduce(stored, reductions).compute()
    else:
        with dask.config.set(scheduler=scheduler):
            found = tdm.reduce(stored, reductions).compute()
    assert_dense(found, poisson(SHAPE), *everything(), weights)


NOTEBOOK = """
import numpy as np, tdm_dask as tdm
from distributed import Client, LocalCluster

class Sum(tdm.Reduction):
    dims = ("ky", "kx")
    def start(self, shape):
        return np.zeros(shape, np.uint64)
    def add(self, state, block):
        state[block.detector] += block.counts.sum(0)
        return state
    def merge(self, first, second):
        return first + second

if __name__ == "__main__":
    counts = tdm.open("{path}")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        first = tdm.reduce(counts, Sum()).compute()

        class Sum(Sum):  # as a cell that is run again, with other lines
            def finish(self, state):
                return 2 * state

        second = tdm.reduce(counts, Sum()).compute()
    np.save("{out}", [first, second])
"""


@pytest.mark.long
def test_a_class_of_a_notebook_goes_to_workers_as_it_is_now(stored, tmp_path):
    path = stored.data.dask[f"source-{stored.data.name}"].value.name.removeprefix("file://")
    script = NOTEBOOK.format(path=path, out=tmp_path / "sums.npy")
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=300)
    total = poisson(SHAPE).sum((0, 1))
    np.testing.assert_array_equal(np.load(tmp_path / "sums.npy"), [total, 2 * total])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return several_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def counting(shards):
    store = CountingStore(LocalStore(shards[0], read_only=True))
    return store, tdm.open(store)


@pytest.mark.long
def test_any_number_of_reductions_is_one_read_and_nothing_is_read_before(counting, shards):
    store, counts = counting
    found = tdm.reduce(counts, all_of_them(counts.shape))
    assert store.reads == []
    found.compute(scheduler="threads")
    assert_read_once(store, shards[0])


def test_a_result_over_the_scan_is_read_where_it_is_looked_at(counting):
    store, counts = counting
    image = tdm.reduce(counts, Totals())
    assert max(image.chunks[0]) < 40
    image[:8, :8].compute(scheduler="threads")
    assert {key.split("/")[2] for key, _, _ in store.chunk_ranges()} == {"0"}  # of three lines of shards


def test_only_the_chunks_of_regions_are_read(counting, shards):
    store, counts = counting
    tdm.reduce(
        counts, {"totals": Totals(), "brightest": Brightest()},
        detector_region=(slice(0, 32), slice(40, 60)), scan_region=(slice(2, 8), slice(16, 24)),
    ).compute(scheduler="threads")  # fmt: skip
    assert len(store.chunk_ranges()) == 1
    assert_read_once(store, shards[0], fraction=1 / (9 * 4 * 16) * 2)


def test_by_default_a_store_gives_its_tiles_and_whole_patterns_on_request(stored):
    class Shapes(tdm.Reduction):
        def start(self, shape):
            return set()

        def add(self, state, block):
            return state | {block.counts.shape[1:]}

        def merge(self, first, second):
            return first | second

    class WholeShapes(Shapes):
        whole_patterns = True

    found = tdm.reduce(stored, {"tiles": Shapes(), "whole": WholeShapes()}).compute()
    assert found["tiles"].item() == {(6, 8)}
    assert found["whole"].item() == {(12, 16)}


def test_dask_blocks_that_cut_the_detector_are_put_together_first():
    counts = poisson(SHAPE)
    lazy = tdm.label_counts(da.from_array(counts, chunks=(4, 5, 5, 6)))
    reductions = all_of_them(SHAPE)
    assert_dense(tdm.reduce(lazy, reductions).compute(), counts, *everything(), reductions["weighted"].weights)


def test_results_have_coordinates_names_and_facts(stored):
    steps = {d: ("" + d, np.arange(stored.sizes[d]) * 0.5, {"units": "angstrom"}) for d in ("y", "x")}
    valid = np.ones(SHAPE[2:], bool)
    valid[0, 0] = False
    counts = stored.assign_coords(steps).assign_coords(valid_pixels=(("ky", "kx"), valid))
    counts.attrs["energy_eV"] = 200e3
    totals = counts.tdm.reduce(Totals(), scan_region=(slice(0, 3), slice(None)))
    assert totals.name == "totals"
    assert totals.attrs["long_name"] == "Counts of every pattern"
    assert "units" not in totals.attrs
    assert totals.attrs["energy_eV"] == 200e3
    assert '"y": [0, 3]' in totals.attrs["scan_region"]
    np.testing.assert_array_equal(totals["y"], steps["y"][1])
    extremes = tdm.reduce(counts, Extremes(), detector_region=(slice(0, 4), slice(None)))
    assert set(extremes) == {"smallest", "largest"}
    assert extremes["largest"].attrs == {"long_name": "Extremes of every detector pixel: largest", "units": "counts"}
    np.testing.assert_array_equal(extremes["valid_pixels"], valid)
    assert extremes["detector_region"].values[1:4].all()
    assert not extremes["detector_region"].values[4:].any()
    both = tdm.reduce(counts, {"a": Extremes(), "b": Totals()})
    assert set(both) == {"a_smallest", "a_largest", "b"}
    assert tdm.reduce(counts, Spectrum()).dims == ("what",)


def test_fills_and_integers():
    class Numbers(Totals):
        def start(self, shape):
            return np.zeros(shape, np.int64)

        def add(self, state, block):
            state[block.scan] += 1
            return state

    counts = tdm.label_counts(np.ones((2, 2, 3, 3), np.uint16))
    region = np.array([[True, False], [True, True]])
    assert tdm.reduce(counts, Numbers()).dtype == np.int64
    np.testing.assert_array_equal(tdm.reduce(counts, Numbers(), scan_region=region), [[1, np.nan], [1, 1]])
    for fill in (-1, 255):
        filled = Numbers()
        filled.fill = fill
        found = tdm.reduce(counts, filled, scan_region=region)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, [[1, fill], [1, 1]])


def test_objects_may_lie_over_the_scan():
    class Positions(tdm.Reduction):
        dims = ("y", "x")

        def start(self, shape):
            return np.empty(shape, object)

        def add(self, state, block):
            for y, x, pattern in zip(*block.scan, block.counts, strict=True):
                state[y, x] = np.argwhere(pattern).tolist()
            return state

    values = np.zeros((1, 3, 2, 2), np.uint16)
    values[0, 1, 1, 0] = values[0, 2] = 1
    found = tdm.reduce(tdm.label_counts(values), Positions(), scan_region=np.array([[False, True, True]]))
    assert found.values.tolist() == [[None, [[1, 0]], [[0, 0], [0, 1], [1, 0], [1, 1]]]]


def test_what_a_task_hands_on_is_not_changed_by_merging_or_finishing():
    """For it may be merged again, where the worker is lost that had the result."""

    class InPlace(Weighted):
        def finish(self, state):
            state *= 2
            return state

    reduction = InPlace(np.ones((2, 2)))
    form = form_of(reduction, (2, 2, 3, 3), np.uint16)
    own = OwnReductions((reduction,), (3, 3), None, (form,))
    states = [{"states": [np.full((2, 3, 3), n)]} for n in (1.0, 2.0, 4.0)]
    merged = own.merge(own.merge(states[0], states[1]), states[2])
    assert [float(own.finished(merged, 0)[""][0, 0, 0]) for _ in range(2)] == [14.0, 14.0]
    assert [float(state["states"][0][0, 0, 0]) for state in states] == [1.0, 2.0, 4.0]


def test_what_a_task_hands_on_is_not_changed_where_a_merge_takes_the_second_state():
    class Larger(Weighted):
        def merge(self, first, second):
            return second if second.sum() > first.sum() else first

        def start(self, shape):
            return np.zeros(shape)

    class Both(Larger):
        def merge(self, first, second):
            larger = super().merge(first, second)
            larger += first + second - larger
            return larger

    reduction = Both(np.ones((2, 2)))
    own = OwnReductions((reduction,), (3, 3), None, ())
    states = [{"states": [np.full((3, 3), n)]} for n in (1.0, 2.0, 4.0)]
    for _ in range(2):
        merged = own.merge(own.merge(states[0], states[1]), states[2])
        np.testing.assert_array_equal(merged["states"][0], 7.0)
    assert [float(state["states"][0][0, 0]) for state in states] == [1.0, 2.0, 4.0]


def test_tiles_without_a_pixel_that_is_used_make_no_patterns():
    pixels = np.zeros((2, 6), bool)
    pixels[:, 1:3] = True
    whole, ones = Whole((2, 6), pixels), np.ones((4, 2, 2), np.uint16)
    place, rows = (slice(0, 2), slice(0, 2)), slice(0, 2)
    for _ in range(2):
        assert whole.take(ones, (rows, slice(0, 2)), place, None) is None
        patterns = whole.take(ones, (rows, slice(2, 4)), place, None)
        np.testing.assert_array_equal(patterns, np.broadcast_to(pixels, (4, 2, 6)))
        whole.give_back(patterns)
        assert whole.take(ones, (rows, slice(4, 6)), place, None) is None
        whole.require_whole()


def test_tasks_start_from_states_of_their_own():
    class Shared(Weighted):
        def start(self, shape):
            if not hasattr(self, "empty"):
                self.empty = np.zeros((2, *shape))
            return self.empty

    counts = poisson(SHAPE)
    lazy = tdm.label_counts(da.from_array(counts, chunks=(2, 5, 12, 16)))
    found = tdm.reduce(lazy, Shared(np.ones(SHAPE[:2])))
    for _ in range(2):
        np.testing.assert_allclose(found.compute(scheduler="synchronous")[1], counts.sum((0, 1)))


# Mistakes


class Sum(tdm.Reduction):
    dims = ("ky", "kx")

    def start(self, shape):
        return np.zeros(shape)

    def add(self, state, block):
        state[block.detector] += block.counts.sum(0)
        return state

    def merge(self, first, second):
        return first + second


def changed(**parts):
    return type("Changed", (Sum,), parts)()


def without(method):
    body = {name: vars(Sum)[name] for name in ("dims", "start", "add", "merge") if name != method}
    return type("Changed", (tdm.Reduction,), body)()


def keeps(self, state, block):
    self.kept = block.counts[0]
    return state


def forgets(self, state, block):
    state[block.detector] += block.counts.sum(0)


MISTAKES = {
    "not a reduction": (lambda: np.sum, "function sum"),
    "a class": (lambda: Sum, r"a class; give a reduction of it, Sum\(\)"),
    "no merge": (lambda: without("merge"), "Changed has no method merge"),
    "no add": (lambda: without("add"), "Changed has no method add"),
    "no start": (lambda: without("start"), "Changed has no method start"),
    "dims that are none": (lambda: changed(dims="ky"), r"Changed.dims is 'ky'"),
    "dims the wrong way round": (lambda: changed(dims=("kx", "ky")), "Changed.dims is .'kx', 'ky'.; expected"),
    "four dims": (lambda: changed(dims=("y", "x", "ky", "kx")), "Changed.dims is"),
    "a wrong shape": (
        lambda: changed(finish=lambda self, state: state[1:]),
        r"Changed.finish gave an array of shape \(3, 5\); expected its dims \(ky, kx\), the last of sizes \(4, 5\)",
    ),
    "a wrong shape of one of several": (
        lambda: changed(finish=lambda self, state: {"a": state, "b": state.sum(0)}), '"b" of shape .5,.; expected'
    ),
    "a list that makes no array": (
        lambda: changed(finish=lambda self, state: {"a": [[1, 2], [3]]}), 'Changed.finish gave "a" that is none .Value'
    ),
    "a state that cannot be copied": (
        lambda: changed(dims=(), start=lambda self, shape: threading.Lock()), "Changed has a state that cannot be co"
    ),
    "a name that is none": (
        lambda: changed(finish=lambda self, state: {1: state}), "Changed.finish gave an array by the name 1; expected"
    ),
    "no array at all": (lambda: changed(finish=lambda self, state: {}), "Changed.finish gave no array"),
    "states over the detector added as if blocks were whole": (
        lambda: changed(add=lambda self, state, block: state + block.counts.sum(0)),
        "Changed.add failed on the made-up patterns .*: ValueError: operands could not be broadcast",
    ),
    "add gives nothing": (lambda: changed(add=forgets), 'Changed.add gave nothing; end it with "return"'),
    "merge gives nothing": (lambda: changed(merge=lambda self, *_: None), "Changed.merge gave nothing"),
    "a lock inside": (lambda: changed(lock=None), None),
    "counts that are kept": (lambda: changed(add=keeps), "Changed.add has kept a part of block.counts"),
    "counts that are changed": (
        lambda: changed(add=lambda self, state, block: block.counts.sort() or state), "Changed.add .*read-only"
    ),
    "a fill that does not fit": (
        lambda: changed(fill=-1, start=lambda self, shape: np.zeros(shape, np.uint64)), "Changed.fill is -1, .*uint64"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence_with_the_name_of_the_class_before_anything_is_read(case, monkeypatch):
    monkeypatch.setattr(passes_of_own, "LOOKED_AT_SECONDS", 0.2)

    def read(_):
        raise AssertionError("counts were read")

    make, match = MISTAKES[case]
    reduction = make()
    if match is None:
        reduction.lock, match = threading.Lock(), "Changed cannot be sent to other processes"
    lazy = da.zeros((3, 4, 4, 5), dtype=np.uint16).map_blocks(read, dtype=np.uint16, meta=np.empty((0,) * 4, np.uint16))
    with pytest.raises(errors.ReductionError, match=match) as caught:
        tdm.reduce(tdm.label_counts(lazy), reduction, detector_region=(slice(0, 3), slice(None)))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_there_must_be_a_reduction_and_names_must_differ(stored):
    with pytest.raises(errors.InputError, match="no reduction"):
        tdm.reduce(stored, {})
    twice = changed(finish=lambda self, state: {"mean": state})
    with pytest.raises(errors.InputError, match='same name, "a_mean"'):
        tdm.reduce(stored, {"a": twice, "a_mean": Totals()})


def test_arrays_that_do_not_go_into_one_dataset_are_refused_before_anything_is_read():
    def bins(n):
        return changed(dims=("bin",), start=lambda self, shape: np.zeros(n), add=lambda self, state, block: state)

    def read(_):
        raise AssertionError("counts were read")

    lazy = da.zeros((3, 4, 4, 5), dtype=np.uint16).map_blocks(read, dtype=np.uint16, meta=np.empty((0,) * 4, np.uint16))
    counts = tdm.label_counts(lazy)
    with pytest.raises(errors.InputError, match="dimension bin has 3 in a result of Changed and 5 in one of Changed"):
        tdm.reduce(counts, {"a": bins(3), "b": bins(5)})
    for name in ("y", "ky", "bin", "detector_region"):
        with pytest.raises(errors.InputError, match=f'the name "{name}", which a dimension or coordinate has'):
            tdm.reduce(counts, {name: bins(3)})
    with pytest.raises(errors.InputError, match="has the name 1; expected a text"):
        tdm.reduce(counts, {1: bins(3)})
    assert dict(tdm.reduce(counts, {"a": bins(3), "b": bins(3)}).sizes) == {"bin": 3}


def test_a_thread_that_looks_at_frames_is_no_reduction_that_keeps_counts():
    """As the profiler of every worker of distributed does, a hundred times a second."""
    ended = threading.Event()

    class Slow(Totals):
        def add(self, state, block):
            counts = block.counts[:]
            time.sleep(0.005)  # while the other thread looks
            assert counts.any()
            return super().add(state, block)

    def look():
        while not ended.is_set():
            frames = sys._current_frames()
            time.sleep(0.02)
            del frames

    looking = threading.Thread(target=look)
    looking.start()
    try:
        counts = tdm.label_counts(da.from_array(np.ones((60, 4, 3, 3), np.uint16), chunks=(1, 4, 3, 3)))
        for scheduler in ("synchronous", "threads"):
            found = tdm.reduce(counts, Slow()).compute(scheduler=scheduler)
            np.testing.assert_array_equal(found, np.full((60, 4), 9))
    finally:
        ended.set()
        looking.join()


class FailsLater(Sum):
    """Fails on patterns that the trial does not have."""

    def add(self, state, block):
        if block.x.max() >= 12:
            raise IndexError("too\nfar")
        return super().add(state, block)


class ChangesShape(Sum):
    def finish(self, state):
        return state if state.sum() < 20000 else state[1:]


class ChangesNames(Sum):
    def finish(self, state):
        return {"few" if state.sum() < 20000 else "many": state}


class ChangesDtype(Sum):
    def finish(self, state):
        return state.astype(np.int64) if state.sum() < 20000 else state


@pytest.mark.parametrize(
    ("reduction", "match"),
    [
        (ChangesShape(), r"ChangesShape.finish gave an array of shape \(11, 16\); expected .* sizes \(12, 16\)"),
        (ChangesNames(), 'ChangesNames.finish gave "many", but "few" when it was tried'),
        (ChangesDtype(), "ChangesDtype.finish gave an array of dtype float64, but of int64"),
    ],
)
def test_what_is_not_as_in_the_trial_is_an_error_and_no_wrong_number(stored, reduction, match):
    with pytest.raises(errors.ReductionError, match=match):
        tdm.reduce(stored, reduction).compute(scheduler="threads")


@pytest.mark.long
@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_an_exception_keeps_its_type_and_leads_to_its_line(stored, scheduler):
    lazy = tdm.reduce(stored, FailsLater())
    with pytest.raises(errors.ReductionError, match=r"FailsLater.add failed on patterns of y \d") as caught:
        lazy.compute(scheduler=scheduler)
    assert str(caught.value).endswith("IndexError: too far.")
    assert isinstance(caught.value.__cause__, IndexError)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.name) == (__file__, "add")  # where a debugger looks first


@pytest.mark.parametrize("kept", ["in memory", "stored"])
def test_on_request_all_runs_in_the_thread_that_asks(stored, kept):
    seen = set()

    class Threads(Sum):
        def add(self, state, block):
            seen.add(threading.current_thread())
            return super().add(state, block)

    counts = tdm.label_counts(poisson(SHAPE)) if kept == "in memory" else stored
    with dask.config.set(scheduler="synchronous"):
        tdm.reduce(counts, Threads()).compute()
    assert seen == {threading.main_thread()}


def test_nan_comes_as_it_is():
    values = np.ones((2, 2, 2, 3))
    values[0, 1, 0, 2] = np.nan
    found = tdm.reduce(tdm.label_counts(values), Sum())
    xr.testing.assert_equal(found.drop_vars(["ky", "kx"]), xr.DataArray([[4, 4, np.nan], [4, 4, 4]], dims=("ky", "kx")))
