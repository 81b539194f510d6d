"""What the package asks of its dependencies beyond what they promise: listed, in few modules, and still there.

A test that fails here says in words what a library has changed, and where it is used.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from numba import njit

import tdm_dask as tdm

PACKAGE = Path(tdm.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "dependencies.md"


def private(name):
    return re.match(r"_[a-z]", name) is not None


def defined(tree):
    """Private names that a module defines: functions, attributes of self, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def used(tree):
    """Private names that a module uses: attributes, and what it imports from private modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
            inside = re.search(r"(^|\.)_[a-z]|^zarr\.core", node.module or "")
            yield from (alias.name for alias in node.names if inside or private(alias.name))


def test_every_private_name_of_others_is_on_the_page_with_its_module():
    rows = [row.split("|") for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| ")][1:]
    listed: dict[str, set[str]] = {}
    for _, _, names, modules, *_ in rows:
        for module in re.findall(r"`([\w/]+\.py)`", modules):
            assert (PACKAGE / module).is_file(), f"docs/dependencies.md names {module}, which is not there"
            listed.setdefault(module, set()).update(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", names))))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    own = {name for tree in trees.values() for name in defined(tree)}
    for path, tree in trees.items():
        module = path.relative_to(PACKAGE).as_posix()
        missing = {*used(tree)} - own - listed.get(module, set())
        assert not missing, f"{module} uses {sorted(missing)}; list them in docs/dependencies.md, or do without"
    for module, names in listed.items():
        text = (PACKAGE / module).read_text(encoding="utf-8")
        gone = {name for name in names if private(name) and name not in text}
        assert not gone, f"docs/dependencies.md says that {module} uses {sorted(gone)}, and it does not"


def test_zarr_runs_the_coroutines_of_its_stores_and_has_buffers():
    from tdm_dask.shards.zarr_core import default_buffer_prototype, sync

    async def answer():
        await asyncio.sleep(0)
        return 42

    assert sync(answer()) == 42, "zarr.core.sync.sync does not give what a coroutine gives"
    assert sync(asyncio.wait_for(answer(), 5), timeout=5) == 42, "zarr.core.sync.sync takes no timeout"
    buffer = default_buffer_prototype().buffer.from_bytes(b"abc")
    assert buffer.to_bytes() == b"abc", "a buffer of zarr does not give back its bytes"
    assert buffer.as_numpy_array().tobytes() == b"abc", "a buffer of zarr is no NumPy array of its bytes"


def test_zarr_gives_the_metadata_that_it_writes(tmp_path):
    from tdm_dask.shards.codec import COMPRESSIONS
    from tdm_dask.shards.layout import array_layout
    from tdm_dask.shards.zarr_core import metadata_of

    for number, (dtype, fill) in enumerate([("uint16", 0), ("float32", np.nan), ("bool", True), ("float64", -np.inf)]):
        array = zarr.create_array(
            tmp_path / "group.zarr", name=f"a{number}", shape=(4, 4, 8, 8), chunks=(2, 2, 4, 4), shards=(4, 4, 8, 8),
            dtype=dtype, fill_value=fill, compressors=COMPRESSIONS["lz4"].in_zarr(),
        )  # fmt: skip
        written = json.loads((tmp_path / "group.zarr" / f"a{number}" / "zarr.json").read_text())
        assert metadata_of(array) == written, "to_buffer_dict of an array's metadata is not what zarr.json holds"
        layout = array_layout(written)
        assert layout is not None, f"zarr writes metadata that the package does not know: {written}"
        assert (layout.shape, layout.inner, layout.shard) == ((4, 4, 8, 8), (2, 2, 4, 4), (4, 4, 8, 8))
        assert layout.dtype == dtype
        np.testing.assert_equal(layout.fill_value, fill)
        assert (layout.codec.compressor, layout.codec.checksum) == ("blosc", True)
    old = zarr.create_array({}, shape=(2, 2), dtype="u1", zarr_format=2)
    assert metadata_of(old) is None


def test_a_store_of_zarr_that_is_read_only_says_so():
    store = zarr.storage.MemoryStore(read_only=True)
    with pytest.raises(ValueError, match="read"):
        store._check_writable()


def test_s3fs_has_the_requests_that_the_store_makes():
    s3fs = pytest.importorskip("s3fs")
    for name in ("_cat_file", "_info", "_pipe_file", "_rm_file", "_lsdir"):
        function = getattr(s3fs.S3FileSystem, name, None)
        assert inspect.iscoroutinefunction(function), f"s3fs.S3FileSystem.{name} is no coroutine function any more"
    assert {"start", "end"} <= set(inspect.signature(s3fs.S3FileSystem._cat_file).parameters)
    assert "chunksize" in inspect.signature(s3fs.S3FileSystem._pipe_file).parameters
    assert "delimiter" in inspect.signature(s3fs.S3FileSystem._lsdir).parameters
    fs = s3fs.S3FileSystem(asynchronous=True, skip_instance_cache=True)
    assert fs._s3 is None, "s3fs.S3FileSystem._s3, its client, is made before the first request"


def test_numcodecs_compresses_and_fills_memory_that_is_there():
    from numcodecs import blosc, zstd

    assert blosc.use_threads is False, "blosc.use_threads is not what shards/codec.py has set"
    counts = np.arange(5000, dtype="uint16")
    for packed, unpack in (
        (blosc.compress(counts, b"lz4", 5, blosc.BITSHUFFLE, 0), blosc.decompress),
        (zstd.compress(counts, 1, False), zstd.decompress),
    ):
        out = np.zeros_like(counts)
        unpack(packed, out.view(np.uint8))
        np.testing.assert_array_equal(out, counts)


@pytest.mark.skipif(sys.platform == "win32", reason="a library of Windows shows no names but those that it exports")
def test_lz4_shows_the_functions_of_its_library():
    import ctypes

    import lz4.block

    from tdm_dask.shards.lz4_library import lz4_address

    data = b"counts " * 100
    packed = lz4.block.compress(data, store_size=False)
    found = lz4_address("LZ4_decompress_safe")
    assert found, "lz4.block._block shows no LZ4_decompress_safe any more: numcodecs decodes, at half the speed"
    out = ctypes.create_string_buffer(len(data))
    decompress = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)(found)
    assert decompress(packed, out, len(packed), len(data)) == len(data)
    assert out.raw == data
    assert decompress(packed, out, len(packed), len(data) - 1) < 0, "lz4 writes beyond the memory that it is given"
    compress = lz4_address("LZ4_compress_fast")
    assert compress, "lz4.block._block shows no LZ4_compress_fast any more: numcodecs compresses, more slowly"
    kinds = ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int
    size = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(compress)(data, out, len(data), len(data), 1)
    assert lz4.block.decompress(out.raw[:size], uncompressed_size=len(data)) == data


def test_a_function_that_lz4_does_not_show_has_no_address():
    from tdm_dask.shards.lz4_library import lz4_address

    assert lz4_address("LZ4_of_no_version") == 0


def test_numba_takes_instructions_that_are_written_out():
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def last(typing, values):
        def generate(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            n = builder.extract_value(array.shape, 0)
            place = cgutils.gep_inbounds(builder, array.data, builder.sub(n, n.type(1)))
            return builder.load(place)

        return types.int64(values), generate

    @njit
    def call(values):
        return last(values)

    assert call(np.arange(5)) == 4, "numba.extending.intrinsic does not write out what it is given"


def test_dask_runs_tasks_that_hold_values_and_refer_to_others():
    import dask
    from dask.highlevelgraph import HighLevelGraph

    from tdm_dask.reading.tasks import DataNode, List, Task, TaskRef

    layer = {
        "held": DataNode("held", 3),
        "twice": Task("twice", lambda value, factor: value * factor, TaskRef("held"), 2),
        "all": Task("all", sum, List(TaskRef("held"), TaskRef("twice"))),
    }
    assert layer["held"].value == 3, "dask's DataNode does not give its value"
    graph = HighLevelGraph.from_collections("all", layer, dependencies=())
    assert dask.get(graph, "all") == 9, "dask's Task, TaskRef or List do not work as reading/tasks.py expects"


def test_dask_tells_callbacks_of_tasks():
    import dask
    from dask.callbacks import Callback

    seen = []

    class Counts(Callback):
        def _start_state(self, dsk, state):
            seen.append(sum(len(state[part]) for part in ("ready", "waiting", "running")))

        def _pretask(self, key, dsk, state):
            seen.append("before")

        def _posttask(self, key, result, dsk, state, worker_id):
            seen.append("after")

    calls = Counts()._callback
    assert dask.get({"a": (abs, -1)}, "a", callbacks=[calls]) == 1
    said = "dask's Callback is not called as viewer/cancelling.py and progress.py expect"
    assert seen == [1, "before", "after"], said


def test_a_scheduler_of_distributed_has_what_is_asked_of_it():
    from distributed import Client, LocalCluster

    from tdm_dask.cluster.scheduler_state import tasks_for, tasks_since_start, work_and_workers

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        assert client.run_on_scheduler(tasks_since_start) == (0, 0)
        futures = client.map(abs, range(-4, 0))
        client.gather(futures)
        assert client.run_on_scheduler(tasks_for, [future.key for future in futures]) == (4, 4)
        assert client.run_on_scheduler(tasks_since_start) == (4, 4)
        assert client.run_on_scheduler(work_and_workers) == {"work": 0, "able": True, "workers": 1}
        del futures


def test_the_memory_limit_of_distributed_is_a_number_of_bytes():
    from tdm_dask.cluster.resources import memory_limit

    assert 2**26 < memory_limit() < 2**50, "distributed.system.MEMORY_LIMIT is no number of bytes"


def test_xarray_says_whether_a_variable_was_read(tmp_path):
    import xarray as xr

    xr.Dataset({"a": ("x", np.arange(3))}).to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    opened = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)["a"]
    assert not opened.variable._in_memory, "xarray's Variable._in_memory is true of what was not read"
    assert opened.load().variable._in_memory, "xarray's Variable._in_memory is not true of what was read"


def test_hyperspy_has_preferences_and_interactive_chains():
    from hyperspy.defaults_parser import preferences
    from hyperspy.interactive import Interactive

    assert isinstance(preferences.General.show_progressbar, bool)
    assert list(inspect.signature(Interactive).parameters)[:3] == ["f", "event", "recompute_out_event"]


def test_rosettasciio_reads_headers_without_counts(tmp_path):
    import h5py

    from tdm_dask.sources import rosettasciio

    with h5py.File(tmp_path / "a.hspy", "w") as file:
        file.attrs["file_format_version"] = "3.3"
        group = file.create_group("axis-0")
        group.attrs.update({"name": "x", "scale": 0.5})
        reader = rosettasciio.hspy_reader(file)
        read = rosettasciio.group_to_dict(reader, group)
    assert (read["name"], read["scale"]) == ("x", 0.5), "rosettasciio's reader of .hspy groups gives other entries"
    root = zarr.create_group(tmp_path / "a.zspy", attributes={"file_format_version": "3.3"})
    root.create_group("axis-0").attrs.update({"name": "x", "scale": 0.5})
    read = rosettasciio.group_to_dict(rosettasciio.zspy_reader(root), root["axis-0"])
    assert (read["name"], read["scale"]) == ("x", 0.5), "rosettasciio's reader of .zspy groups gives other entries"
    (tmp_path / "a.hdr").write_text("HDR,\t\nScanX:\t4\nScanY:\t3\nEnd\t   ")
    found = rosettasciio.merlin_settings(str(tmp_path / "a.hdr"))
    assert found["ScanX"].strip() == "4", "rosettasciio's parser of Merlin's .hdr gives other entries"


def test_rosettasciio_finds_the_images_of_a_digitalmicrograph_file(tmp_path):
    from binary_files import write_dm

    from tdm_dask.sources import rosettasciio

    counts = np.arange(2 * 3 * 4 * 5, dtype="uint16").reshape(2, 3, 4, 5)
    write_dm(tmp_path / "a.dm4", counts, [1.0] * 4, [""] * 4)
    with (tmp_path / "a.dm4").open("rb") as file:
        images = rosettasciio.dm_images(file)
    assert counts.shape in [tuple(image.shape) for image in images], "rosettasciio's ImageObject has no shape of counts"


def test_numba_lets_nan_through_where_sums_may_be_reordered():
    from tdm_dask.kernels.moments import REORDER

    @njit(fastmath=REORDER)
    def total(values):
        s = 0.0
        for value in values:
            s += value
        return s

    assert total(np.array([1.0, 2.0])) == 3.0
    assert np.isnan(total(np.array([1.0, np.nan, 2.0]))), "Numba's fastmath flags lose NaN"


ENDED = """
import multiprocessing.util, os, sys
multiprocessing.util.Finalize(None, print, args=("finalized",), exitpriority=0)
multiprocessing.util._run_finalizers(0)
sys.stdout.flush()
os._exit(130)
"""


def test_python_runs_the_finalizers_of_multiprocessing_on_request_and_ends_at_once():
    ended = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "finalized\n", "multiprocessing.util._run_finalizers does not run what is to be run"
    assert (ended.returncode, ended.stderr) == (130, ""), "os._exit does not end the process with its code, in silence"


def test_panel_and_bokeh_serve_as_the_viewer_expects():
    pn = pytest.importorskip("panel")
    from bokeh.document import Document
    from bokeh.server.contexts import ApplicationContext
    from panel.io.server import get_server

    assert isinstance(pn.state._servers, dict), "panel's state keeps its servers elsewhere"
    assert inspect.iscoroutinefunction(ApplicationContext._cleanup_sessions)
    assert "doc" in inspect.signature(pn.Template._init_doc).parameters
    with Document().models.freeze():
        pass
    server = get_server(lambda: pn.pane.Str("a"), port=0, start=False, show=False)
    try:
        assert callable(server._http.request_callback), "Bokeh's server calls nothing for a request"
        assert server._tornado.applications, "Bokeh's server knows no applications"
    finally:
        server.stop(wait=False)
