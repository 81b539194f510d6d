"""Formats of one's own: opened, examined, converted and read on workers like any other, and wrong ones in words."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import types
import zlib

import cloudpickle
import dask
import numpy as np
import pytest
from reading import random_counts, whole
from small_stores import shard_files
from zarr.storage import MemoryStore

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.reading.lazy import source_of
from tdm_dask.sources import plugins
from tdm_dask.sources.formats.registry import known_extensions, open_vendor
from tdm_dask.sources.plugins import plugin_of

# Frames one after the other, each after eight bytes of its own.
FRAMES = '''
import struct
import tdm_dask as tdm

name = "abc"
extensions = ["abc"]

def recognises(path, first_bytes):
    return first_bytes.startswith(b"ABC1")

def open(request):
    with request.path.open("rb") as file:
        header = struct.unpack("<4s4Hd", file.read(20))
    return tdm.frame_file(
        request, header[3:5], ">u2", reader="ABC camera", offset=28, gap=8, frames=header[1] * header[2],
        scan_shape=header[1:3], scan_step=(header[5], header[5]), metadata={"magic": header[0]},
        findings=["The camera was cold."],
    )
'''

# Patterns that are compressed one by one: a source of its own, with what does not go into a pickle around it.
PACKED = '''
from __future__ import annotations
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
import numpy as np
import tdm_dask as tdm

name = "packed"
extensions = [".PACKED"]
HEADER = struct.Struct("<4H")

@lru_cache
def places(path: str, n: int) -> np.ndarray:
    with open_file(path) as file:
        return np.fromfile(file, "<u8", n + 1, offset=HEADER.size)

open_file = __builtins__["open"] if isinstance(__builtins__, dict) else __builtins__.open

@dataclass(frozen=True)
class Zone:
    edge: int

@dataclass(frozen=True)
class Packed(tdm.Source):
    path: str
    shape: tuple[int, int, int, int]
    zone: Zone
    dtype = np.dtype("uint16")

    def read(self, y0, y1, x0, x1):
        ny, nx, nky, nkx = self.shape
        starts = places(self.path, ny * nx)
        out = np.empty((y1 - y0, x1 - x0, nky, nkx), self.dtype)
        with open_file(self.path, "rb") as file:
            for y in range(y0, y1):
                for x in range(x0, x1):
                    file.seek(int(starts[y * nx + x]))
                    data = zlib.decompress(file.read(int(starts[y * nx + x + 1] - starts[y * nx + x])))
                    out[y - y0, x - x0] = np.frombuffer(data, "<u2").reshape(nky, nkx)
        return out

def open(request):
    with request.path.open("rb") as file:
        shape = HEADER.unpack(file.read(HEADER.size))
    return tdm.VendorFile(str(request.path), "packed frames", Packed(str(request.path), shape, Zone(3)))
'''


def write_abc(path, counts, frames=None):
    nky, nkx = counts.shape[2:]
    data = struct.pack("<4s4Hd", b"ABC1", *counts.shape, 2.5)
    for frame in counts.reshape(-1, nky, nkx)[:frames]:
        data += b"a header" + frame.astype(">u2").tobytes()
    path.write_bytes(data)
    return path


def write_packed(path, counts):
    frames = [zlib.compress(frame.astype("<u2").tobytes()) for frame in counts.reshape(-1, *counts.shape[2:])]
    starts = 8 + 8 * (len(frames) + 1) + np.cumsum([0, *map(len, frames)])
    path.write_bytes(struct.pack("<4H", *counts.shape) + starts.astype("<u8").tobytes() + b"".join(frames))
    return path


@pytest.fixture(autouse=True)
def no_formats_of_others(monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {})


@pytest.fixture
def counts():
    return random_counts((5, 6, 7, 8), "u2")


@pytest.fixture
def abc(tmp_path, counts):
    """A file, and the format that opens it."""
    (tmp_path / "abc_format.py").write_text(FRAMES)
    return write_abc(tmp_path / "scan.abc", counts), tmp_path / "abc_format.py"


@pytest.fixture
def packed(tmp_path, counts):
    (tmp_path / "packed format.py").write_text(PACKED)
    return write_packed(tmp_path / "scan.packed", counts), tmp_path / "packed format.py"


def an_object(name="own", opens=None, **parts):
    return types.SimpleNamespace(name=name, open=opens or (lambda request: a_scan(request)), **parts)


def a_scan(request, **options):
    return tdm.frame_file(request, (2, 2), "u1", reader="own", **options)


# What a format makes possible


def test_a_file_opens_with_a_format_in_a_file(abc, counts):
    opened = tdm.open(abc[0], format=abc[1])
    np.testing.assert_array_equal(opened, counts)
    assert opened.y.attrs["units"] == "angstrom"
    assert float(opened.y[1]) == 2.5
    assert "The camera was cold." in opened.attrs["findings"]
    file = open_vendor(abc[0], format=str(abc[1]))
    assert file.reader == "ABC camera, a format of the file abc_format.py"
    assert file.metadata == {"magic": "ABC1"}


def test_a_registered_format_opens_what_it_claims(abc, packed, counts):
    with pytest.raises(errors.SourceError, match=r'extension ".abc", which is not known; .* a format of your own'):
        tdm.open(abc[0])
    for format in (abc[1], packed[1]):
        tdm.register_format(format)
    assert {"abc", "packed"} <= set(known_extensions())
    for path in (abc[0], packed[0]):
        np.testing.assert_array_equal(tdm.open(path), counts)
    np.testing.assert_array_equal(tdm.open(abc[0].rename(abc[0].with_suffix(".unheard_of"))), counts)
    np.testing.assert_array_equal(tdm.open(packed[0], format="packed"), counts)


def test_frames_honour_all_that_is_asked_of_frames(abc, counts):
    path, format = abc
    flat = counts.reshape(30, 7, 8)
    opened = tdm.open(path, format=format, scan_shape=(4, 5), flyback=1, skip_first=2)
    np.testing.assert_array_equal(opened, flat[2:26].reshape(4, 6, 7, 8)[:, :5])
    assert opened.y.attrs["units"] == "px"  # the step was that of another scan
    write_abc(path, counts, frames=20)
    with pytest.raises(errors.SourceError, match=r"20 whole frames, but its header announces 30; it is truncated"):
        tdm.open(path, format=format)
    partial = tdm.open(path, format=format, allow_partial=True)
    assert int(partial["valid_patterns"].sum()) == 20
    np.testing.assert_array_equal(partial.values.reshape(30, 7, 8)[:20], flat[:20])
    with path.open("ab") as file:
        file.write(b"a header and more")
    with pytest.raises(errors.SourceError, match="truncated"):
        tdm.open(path, format=format)
    write_abc(path, counts)
    with path.open("ab") as file:
        file.write(b"the end")
    assert "7 bytes follow the last frame and are not read." in "".join(tdm.open(path, format=format).attrs["findings"])
    with pytest.raises(errors.InputError, match="describes its own layout, but dtype='uint16' was given"):
        tdm.open(path, format=format, dtype="u2")
    with pytest.raises(errors.InputError, match="one scan, but frame=3"):
        tdm.open(path, format=format, frame=3)


def test_a_file_without_announcements_is_as_long_as_it_is(tmp_path):
    path = tmp_path / "scan.own"
    path.write_bytes(bytes(range(24)))
    format = an_object()
    np.testing.assert_array_equal(tdm.open(path, format=format, scan_shape=(2, 3))[1, 2], [[20, 21], [22, 23]])
    path.write_bytes(bytes(range(25)))
    with pytest.raises(errors.SourceError, match="6 whole frames and 1 bytes of another; it is truncated"):
        tdm.open(path, format=format, scan_shape=(2, 3))
    assert tdm.open(path, format=format, scan_shape=(2, 3), allow_partial=True).shape == (2, 3, 2, 2)
    path.write_bytes(b"")
    with pytest.raises(errors.SourceError, match="is empty"):
        tdm.open(path, format=format, scan_shape=(2, 3))


def test_a_file_may_hold_several_scans(packed, tmp_path, counts):
    def opens(request):
        if request.frame is None:
            raise errors.FrameError("Say which scan.")
        file = open_vendor(packed[0], format=packed[1])
        lines = (slice(0, 2), slice(2, 4), slice(4, 5))[request.frame]
        whole_lines = (slice(0, n) for n in counts.shape[1:])
        return tdm.VendorFile(file.path, "own", file.source.cropped((lines, *whole_lines)), scans=3)

    format = an_object(opens=opens)
    np.testing.assert_array_equal(tdm.open(packed[0], format=format, frame=1), counts[2:4])
    with pytest.raises(errors.FrameError, match="Say which"):
        tdm.open(packed[0], format=format)
    assert [scan.shape[0] for scan in tdm.convert_stack(packed[0], tmp_path / "all.zarr", format=format)] == [2, 2, 1]


def test_a_folder_may_be_a_scan(tmp_path, packed, counts):
    folder = tmp_path / "scan.folder"
    folder.mkdir()
    with pytest.raises(errors.SourceError, match="is a folder"):
        tdm.open(folder)
    inner = open_vendor(packed[0], format=packed[1])
    tdm.register_format(an_object(extensions=["folder"], opens=lambda request: inner))
    np.testing.assert_array_equal(tdm.open(folder), counts)


@pytest.mark.long
@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes", "cluster"])
def test_workers_read_sources_of_a_file_that_they_do_not_have(packed, counts, scheduler):
    path, format = packed
    opened = tdm.open(path, format=format)
    format.unlink()
    if scheduler == "cluster":
        from distributed import Client, LocalCluster

        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
            assert_mean(opened, counts)
    else:
        with dask.config.set(scheduler=scheduler):
            assert_mean(opened, counts)


def assert_mean(opened, counts):
    np.testing.assert_array_equal(opened, counts)
    np.testing.assert_allclose(tdm.pixel_statistics(opened)["mean"], counts.mean((0, 1)))


def test_a_source_comes_back_from_any_pickle(packed, counts):
    source = source_of(tdm.open(packed[0], format=packed[1]).data)
    for dumps in (pickle.dumps, cloudpickle.dumps):
        again = pickle.loads(dumps(source))
        assert again == source
        assert type(again) is type(source)
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read(0, 5, 0, 6).sum())"
    # What holds the source and something else of its file; in a process that knows nothing of it.
    run = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(source), capture_output=True, check=True)
    assert int(run.stdout) == counts.sum()


def test_a_file_that_was_changed_is_another_format(packed, counts):
    path, format = packed
    first = tdm.open(path, format=format)
    format.write_text(PACKED.replace("reshape(nky, nkx)", "reshape(nky, nkx)[::-1]"))
    second = tdm.open(path, format=format)
    assert first.data.name != second.data.name
    np.testing.assert_array_equal(first, counts)
    np.testing.assert_array_equal(second, counts[:, :, ::-1])


def test_classes_and_errors_are_found_in_the_file(packed):
    path, format = packed
    format.write_text(PACKED.replace("nky, nkx = self.shape", "nky = self.shape"))
    opened = tdm.open(path, format=format)
    with pytest.raises(ValueError, match="too many values") as caught:
        opened.compute(scheduler="synchronous")
    assert str(caught.traceback[-1].path) == str(format)


def test_a_file_that_is_being_written_is_followed(abc, counts):
    path, format = abc
    write_abc(path, counts, frames=3)
    file = tdm.follow(path, format=format, poll=0.001, wait=lambda _: write_abc(path, counts))
    seen = np.zeros_like(counts)
    for y, x, block in file:
        seen[y, x] = block
    np.testing.assert_array_equal(seen, counts)


@pytest.mark.parametrize("kind", [list, np.array, lambda pair: np.array(pair, "u1")])
def test_frames_take_shapes_of_any_whole_numbers(tmp_path, kind):
    path = tmp_path / "scan.own"
    path.write_bytes(bytes(16 * 16 * 20 * 20))

    def opens(request):
        return tdm.frame_file(
            request, kind([20, 20]), "u1", reader="own", scan_shape=kind([16, 16]), scan_step=(1.0, 2.0)
        )

    opened = tdm.open(path, format=an_object(opens=opens))
    assert opened.shape == (16, 16, 20, 20)
    assert opened.attrs["findings"][0] == "The scan shape (16, 16) comes from the header."
    assert float(opened.x[1]) == 2.0
    assert tdm.open(path, format=an_object(opens=opens), scan_shape=(8, 32)).x.attrs["units"] == "px"


@pytest.mark.parametrize("shape", [(0, 3), (2.0, 3), (2, 3, 4), 6])
@pytest.mark.parametrize("name", ["detector_shape", "scan_shape"])
def test_frames_of_no_shape_are_refused_in_one_sentence(a_file, name, shape):
    shapes = {"detector_shape": (2, 2), "scan_shape": (2, 3)} | {name: shape}
    format = an_object(opens=lambda request: tdm.frame_file(request, dtype="u1", reader="own", **shapes))
    with pytest.raises(errors.FormatError, match=rf"own gave, for scan.own, {name}=.*; expected two positive whole"):
        tdm.open(a_file, format=format)


# Which format opens a file


def test_a_format_of_this_package_goes_first_unless_another_is_asked_for(tmp_path):
    np.save(tmp_path / "scan.npy", np.ones((2, 3, 4, 4), np.uint16))
    (tmp_path / "scan.raw").write_bytes(bytes(24))
    own = an_object(extensions=["npy", "raw"], recognises=lambda path, first_bytes: True)
    tdm.register_format(own)
    assert tdm.open(tmp_path / "scan.npy").shape == (2, 3, 4, 4)
    layout = {"scan_shape": (2, 3), "detector_shape": (2, 2), "dtype": "u1"}
    assert "Raw binary as asked" in tdm.open(tmp_path / "scan.raw", **layout).attrs["findings"][0]
    for asked in ("own", own):
        assert open_vendor(tmp_path / "scan.npy", scan_shape=(10, 8), format=asked).reader.startswith("own")


def test_a_format_of_this_package_can_be_asked_for(tmp_path):
    path = tmp_path / "scan.unheard_of"
    np.save(tmp_path / "scan.npy", np.ones((2, 3, 4, 4), np.uint16))
    (tmp_path / "scan.npy").rename(path)
    layout = {"detector_shape": (2, 4), "dtype": "u2"}
    assert tdm.open(path, format="raw", offset=128, scan_shape=(4, 3), **layout).shape == (4, 3, 2, 4)
    with pytest.raises(errors.InputError, match=r'no format "rwa"; known are .*raw, rosettasciio'):
        tdm.open(path, format="rwa")


def test_two_formats_that_claim_a_file_are_named(tmp_path):
    path = tmp_path / "scan.abc"
    path.write_bytes(b"ABC1" + bytes(24))
    tdm.register_format(an_object("first", extensions=["abc"]))
    tdm.register_format(an_object("second", extensions=["ABC"], opens=lambda r: a_scan(r, offset=4)))
    with pytest.raises(errors.FormatError, match=r'claimed by the formats "first" .* and "second" .*format='):
        tdm.open(path, scan_shape=(2, 3))
    assert tdm.open(path, scan_shape=(2, 3), format="second").shape == (2, 3, 2, 2)
    # One that recognises the file knows more than one that knows its extension.
    tdm.register_format(
        an_object("third", recognises=lambda p, start: start[:4] == b"ABC1", opens=lambda r: a_scan(r, offset=16))
    )
    assert tdm.open(path, scan_shape=(1, 3)).shape == (1, 3, 2, 2)


def test_a_format_takes_the_place_of_one_of_its_name(tmp_path):
    path = tmp_path / "scan.abc"
    path.write_bytes(bytes(28))
    for offset in (0, 4):
        tdm.register_format(an_object(extensions=["abc"], opens=lambda r, offset=offset: a_scan(r, offset=offset)))
    assert tdm.open(path, scan_shape=(2, 3)).shape == (2, 3, 2, 2)
    tdm.register_format(an_object("raw", extensions=["other"]))
    with pytest.raises(errors.InputError, match='Several formats have the name "raw": the one of this package and'):
        tdm.open(path, format="raw")


def test_a_format_of_the_session_takes_the_place_of_an_installed_one(tmp_path, monkeypatch):
    path = tmp_path / "scan.abc"
    path.write_bytes(bytes(28))
    install(monkeypatch, an_object("abc", extensions=["abc"]))
    tdm.register_format(an_object("abc", extensions=["abc"], opens=lambda request: a_scan(request, offset=4)))
    for options in ({}, {"format": "abc"}):
        assert tdm.open(path, scan_shape=(2, 3), **options).shape == (2, 3, 2, 2)


def test_advice_on_formats_that_claim_a_file_can_be_taken(tmp_path, monkeypatch):
    path = tmp_path / "scan.abc"
    path.write_bytes(bytes(24))
    twins = [an_object("abc", extensions=["abc"]) for _ in range(2)]
    install(monkeypatch, *twins)
    with pytest.raises(errors.FormatError, match=r"give the one that is meant itself, or its file") as caught:
        tdm.open(path, scan_shape=(2, 3))
    assert "format=" not in str(caught.value)
    with pytest.raises(errors.InputError, match=r'the name "abc": .*give the one that is meant itself, or its file'):
        tdm.open(path, scan_shape=(2, 3), format="abc")
    assert tdm.open(path, scan_shape=(2, 3), format=twins[0]).shape == (2, 3, 2, 2)
    # Nor can one be asked for by a name that a format of this package has.
    for name in ("raw", "other"):
        tdm.register_format(an_object(name, extensions=["abc"]))
    with pytest.raises(errors.FormatError, match=r'"raw" .* and "other" .*; say which one, such as format="other"\.'):
        tdm.open(path, scan_shape=(2, 3))


def install(monkeypatch, *formats):
    """Formats as if installed packages brought them."""
    entries = [types.SimpleNamespace(name="entry", dist=None, load=lambda of=of: of) for of in formats]
    usual = importlib.metadata.entry_points

    def entry_points(**wanted):
        return entries if wanted == {"group": plugins.ENTRY_POINTS} else usual(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(plugins, "_of_entry_point", plugins._of_entry_point.__wrapped__)


def test_a_format_that_cannot_say_whether_a_file_is_its_own_is_named_and_passed_over(abc, counts):
    tdm.register_format(an_object("sick", recognises=lambda path, first_bytes: 1 / 0))
    tdm.register_format(abc[1])
    with pytest.warns(UserWarning, match='"sick" .*cannot tell whether scan.abc is its own: ZeroDivisionError'):
        np.testing.assert_array_equal(tdm.open(abc[0]), counts)


def test_a_format_does_not_go_with_what_can_only_be_a_store(counts):
    store = MemoryStore()
    tdm.convert(tdm.label_counts(counts), store)
    np.testing.assert_array_equal(tdm.open(store), counts)
    for place, name in ((store, "memory://"), ("s3://bucket/scan.zarr", "s3://bucket/scan.zarr")):
        with pytest.raises(errors.InputError, match=rf"{name}.* is a store, but format='npy' .* a file; leave it out"):
            tdm.open(place, format="npy")


# Mistakes


def gives(**parts):
    return lambda request: tdm.VendorFile(**{"path": str(request.path), "reader": "own", "source": ramp(), **parts})


class Shapeless(tdm.Source):
    dtype = np.dtype("uint16")

    def read(self, y0, y1, x0, x1):
        return np.zeros((y1 - y0, x1 - x0, 4, 5), self.dtype)


class Failing(Shapeless):
    @property
    def shape(self):
        return {}["NX"]


def ramp(shape=(2, 3, 4, 5), dtype="uint16", kind=None, **parts):
    class Ramp(tdm.Source):
        def read(self, y0, y1, x0, x1):
            return np.zeros((y1 - y0, x1 - x0, *shape[2:]), dtype)

    made = Ramp()
    made.shape, made.dtype = shape, np.dtype(dtype) if kind is None else kind
    for name, value in parts.items():
        setattr(made, name, value)
    return made


MISTAKES = {
    "no name": (types.SimpleNamespace(open=print), 'the name None; expected a text such as name = "abc"'),
    "no open": (types.SimpleNamespace(name="own"), r'"own" of this session has no function open\(request\)'),
    "a class": (type("Own", (), {"name": "own"}), "is the class Own; expected an object"),
    "extensions that are one text": (an_object(extensions="abc"), "has extensions 'abc'; expected a list"),
    "recognises that is a text": (an_object(recognises="abc"), "has a recognises that is no function"),
    "it fails": (an_object(opens=lambda request: {}["NX"]), r"could not open scan.own: KeyError: 'NX'"),
    "it gives nothing": (an_object(opens=lambda request: None), "gave, for scan.own, NoneType instead of a tdm_dask.V"),
    "its source is none": (an_object(opens=gives(source=np.zeros(3))), "ndarray instead of a tdm_dask.Source"),
    "its shape is none": (an_object(opens=gives(source=ramp((2, 3, 4)))), r"counts of shape \(2, 3, 4\); expected"),
    "its dtype is another machine's": (an_object(opens=gives(source=ramp(dtype=">u2"))), "dtype >u2; expected native"),
    "its dtype is complex": (an_object(opens=gives(source=ramp(dtype="c8"))), "dtype <c8; expected"),
    "its flags are of another shape": (
        an_object(opens=gives(valid_pixels=np.ones((2, 3), bool))), r"valid_pixels that are no booleans of .*\(4, 5\)"
    ),
    "its source has no shape": (an_object(opens=gives(source=Shapeless())), "a Shapeless whose shape .*AttributeError"),
    "its source's shape fails": (an_object(opens=gives(source=Failing())), "a Failing whose shape .*KeyError: 'NX'"),
    "its shape overflows": (
        an_object(opens=gives(source=ramp(tuple(np.array([2, 3, 4, 5], "u2"))))), r"shape \(.*\); expected .* of int"
    ),
    "its dtype is a text": (an_object(opens=gives(source=ramp(kind="uint16"))), r"dtype 'uint16'; .* numpy\.dtype\("),
    "its dtype is a type": (an_object(opens=gives(source=ramp(kind=np.uint16))), r"dtype <class .*; .* numpy\.dtype\("),
    "its flags are a ragged list": (an_object(opens=gives(valid_patterns=[[True], [True, False]])), "valid_patterns t"),
    "its step is zero": (an_object(opens=gives(scan_step=(0.0, 1.0))), r"scan_step=\(0.0, 1.0\); expected two pos"),
    "its step is of three": (an_object(opens=gives(scan_step=(1.0,) * 3)), "scan_step=.*; expected two positive"),
    "its pixel size is no number": (an_object(opens=gives(pixel_size={})), r"pixel_size=\{\}; expected two positive"),
    "its pixel size is a length": (an_object(opens=gives(pixel_size="2 nm")), "pixel_size='2 nm'; expected two"),
    "its acquisition is no mapping": (an_object(opens=gives(acquisition=[200e3])), r"acquisition=\[.*; expected a di"),
    "its energy is zero": (
        an_object(opens=gives(acquisition={"energy_eV": 0})), "with energy_eV=0; expected a positive number in eV"
    ),
    "its energy is none": (
        an_object(opens=gives(acquisition={"energy_eV": None})), "energy_eV=None; .*or nothing of that name"
    ),
    "its fact is a text": (an_object(opens=gives(acquisition={"gain": "high"})), "with gain='high'; expected a"),
    "its findings are numbers": (an_object(opens=gives(findings=(1, 2))), r"findings=\(1, 2\); expected sentences"),
    "its doubts are a number": (an_object(opens=gives(doubts=3)), "doubts=3; expected sentences"),
    "its metadata are a list": (an_object(opens=gives(metadata=[1])), r"metadata=\[1\]; expected a dict"),
    "its other files are numbers": (an_object(opens=gives(linked=(1.5,))), r"linked=\(1.5,\); expected paths"),
    "its file of counts is none": (an_object(opens=gives(data_path=3.5)), "data_path=3.5; expected a path"),
    "its reader is none": (an_object(opens=gives(reader=None)), "reader=None; expected a text"),
    "its scans are none": (an_object(opens=gives(scans=0)), "scans=0; expected a whole number of at least one"),
    "its source holds an open file": (
        an_object(opens=lambda r: gives(source=ramp(file=r.path.open("rb")))(r)), "cannot be sent to other processes"
    ),
}  # fmt: skip


@pytest.fixture
def a_file(tmp_path):
    (tmp_path / "scan.own").write_bytes(bytes(24))
    return tmp_path / "scan.own"


def test_what_a_format_gives_is_made_plain(a_file):
    flags = [[True] * 5] * 3 + [[True] * 4 + [False]]
    opens = gives(
        path=a_file, scan_step=0.3, pixel_size=np.array([1, 2]), findings="The camera was cold.", doubts=["Odd."],
        acquisition={"energy_eV": "200 keV", "dwell_time_s": np.float32(0.5), "gain": np.int64(-2)},
        valid_pixels=flags, metadata={"magic": b"x"}, linked=a_file, data_path=a_file,
    )  # fmt: skip
    file = open_vendor(a_file, format=an_object(opens=opens))
    assert (file.scan_step, file.pixel_size) == ((0.3, 0.3), (1.0, 2.0))
    assert (file.findings, file.doubts) == (("The camera was cold.",), ("Odd.",))
    assert file.acquisition == {"energy_eV": 200e3, "dwell_time_s": 0.5, "gain": -2.0}
    assert {type(number) for number in file.acquisition.values()} == {float}
    assert (file.linked, file.data_path, file.metadata) == ((str(a_file),), str(a_file), {"magic": "x"})
    with pytest.warns(UserWarning, match="Odd"):
        opened = tdm.open(a_file, format=an_object(opens=opens))
    np.testing.assert_array_equal(opened.valid_pixels, flags)
    assert float(opened.x[1]) == 0.3
    one = an_object(opens=lambda request: a_scan(request, findings="The camera was cold."))
    findings = tdm.open(a_file, format=one, scan_shape=(2, 3)).attrs["findings"]
    assert findings[:2] == ["The camera was cold.", "The scan shape (2, 3) was given."]


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_of_a_format_are_one_sentence_with_its_name(a_file, case):
    format, match = MISTAKES[case]
    with pytest.raises(errors.FormatError, match=match) as caught:
        tdm.open(a_file, format=format)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        ("name = 'own\n", "cannot be run: SyntaxError"),
        ("import no_such_package", "cannot be run: ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1", "of the file own.py has the name None"),
    ],
)
def test_a_file_that_is_no_format_is_said_to_be_none(a_file, text, match):
    format = a_file.with_name("own.py")
    if text is not None:
        format.write_text(text)
    for _ in range(2):
        with pytest.raises(errors.FormatError, match=match):
            tdm.open(a_file, format=format)
    with pytest.raises(errors.FormatError, match=match):
        tdm.register_format(str(format))


@pytest.mark.parametrize(
    "given",
    [
        {"scan_shape": (2, 3)}, {"frame": 0}, {"detector_shape": (4, 5)}, {"dtype": "u2"}, {"offset": 1}, {"gap": 1},
        {"flyback": 1}, {"skip_first": 0}, {"allow_partial": True}, {"detector_first": False},
    ],
)  # fmt: skip
def test_what_a_format_does_not_look_at_cannot_be_given(a_file, given):
    [name] = given
    with pytest.raises(errors.InputError, match=rf'format "own" \(this session\) does not use {name}; leave it out'):
        tdm.open(a_file, format=an_object(opens=gives()), **given)

    def looks(request):
        getattr(request, name)
        return gives()(request)

    assert tdm.open(a_file, format=an_object(opens=looks), **given).shape == (2, 3, 4, 5)


def test_a_scan_of_another_shape_than_the_one_given_is_refused(a_file):
    def looks(request):
        return gives(findings=(f"{request.scan_shape}",))(request)

    with pytest.raises(errors.ScanShapeError, match=r"scan of \(2, 3\) positions, but scan_shape=\(3, 2\) was given"):
        tdm.open(a_file, format=an_object(opens=looks), scan_shape=(3, 2))


@pytest.mark.parametrize("read", [np.zeros((2, 3, 4, 4), "u2"), np.zeros((2, 3, 4, 5)), [[1, 2]]])
def test_a_source_that_reads_something_else_is_no_wrong_number(a_file, read):
    source = ramp()
    type(source).read = lambda self, *window: read
    opened = tdm.open(a_file, format=an_object(opens=gives(source=source)))
    for result in (opened, tdm.pixel_statistics(opened)):
        with pytest.raises(errors.SourceError, match=r"Ramp\.read gave counts of shape"):
            result.compute(scheduler="synchronous")


def test_a_format_that_was_interrupted_says_what_others_say(a_file):
    def opens(request):
        raise errors.SourceError("The header is damaged; copy the file again.")

    with pytest.raises(errors.SourceError, match=r"^The header is damaged; copy the file again\.$"):
        tdm.open(a_file, format=an_object(opens=opens))


# From the command line, from recipes and from packages


def command(*words, folder, check=True, **environment):
    paths = os.pathsep.join([*filter(None, [environment.pop("extra", "")]), *sys.path])
    run = subprocess.run(
        [sys.executable, "-m", "tdm_dask", *map(str, words)], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert not check or run.returncode == 0, run.stderr
    return run


@pytest.mark.long
def test_the_command_line_converts_with_a_format_in_a_file_on_workers(packed, tmp_path, counts):
    counts = counts.copy()
    counts[:, :, 3, 4] = 65535
    write_packed(packed[0], counts)
    info = json.loads(command("info", "scan.packed", "--format", "packed format.py", "--json", folder=tmp_path).stdout)
    assert info["shape"] == list(counts.shape)
    assert any("saturated" in finding for finding in info["findings"])
    assert "read by packed frames, a format of the file packed format.py" in info["findings"]
    assert info["commands"][0].startswith("tdm convert scan.packed scan.zarr --format 'packed format.py'")
    convert = ("convert", "scan.packed", "scan.zarr", "--format", "packed format.py", "--workers", 2)
    text = command(*convert, folder=tmp_path).stdout
    assert "saturated, at (ky, kx) = (3, 4)" in text
    stored = tdm.open(tmp_path / "scan.zarr")
    np.testing.assert_array_equal(stored, counts)
    before = shard_files(tmp_path / "scan.zarr")
    command(*convert, folder=tmp_path)
    assert shard_files(tmp_path / "scan.zarr") == before


@pytest.mark.long
def test_the_command_line_refuses_in_one_sentence(abc, tmp_path, counts):
    write_abc(abc[0], counts, frames=11)
    for words, sentence in (
        (("convert", "scan.abc", "scan.zarr", "--format", "abc_format.py"), "11 whole frames, but its"),
        (("info", "scan.abc", "--format", "no_format.py"), "no_format.py cannot be read"),
        (("info", "scan.abc", "--format", "abd"), 'There is no format "abd"'),
        (("info", "scan.abc"), 'has the extension ".abc", which is not known'),
    ):
        run = command(*words, folder=tmp_path, check=False)
        assert run.returncode == 2
        assert sentence in run.stderr
        assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "scan.zarr").exists()


def test_a_conversion_does_not_go_on_with_another_format(packed, tmp_path):
    path, format = packed
    tdm.convert(path, tmp_path / "scan.zarr", format=format)
    tdm.convert(path, tmp_path / "scan.zarr", format=format)
    format.write_text(PACKED.replace("reshape(nky, nkx)", "reshape(nky, nkx)[::-1]"))
    with pytest.raises(errors.StoreError, match="converted from another file or in another way"):
        tdm.convert(path, tmp_path / "scan.zarr", format=format)
    with pytest.raises(errors.InputError, match=r"format=\.\.\. describes a file"):
        tdm.convert(tdm.open(tmp_path / "scan.zarr"), tmp_path / "other.zarr", format=format)


def namespace_of(text, name="__main__"):
    """What a notebook holds after its cells were run."""
    space = {"__name__": name}
    exec(textwrap.dedent(text), space)
    return space


OWN = """
    import functools, struct, threading
    import tdm_dask as tdm

    HEADER = struct.Struct("<4H")
    lock = threading.Lock()

    @functools.cache
    def dtype():
        return "<u2"

    class Own:
        name, extensions = "own", ["own"]
        rows = property(lambda self: 2)

        def __init__(self, gap=0):
            self.gap, self.lock, self.itself = gap, lock, self

        def open(self, request):
            def shape():
                return self.rows, 2
            return tdm.frame_file(request, shape(), dtype(), reader="own", offset=HEADER.size, scan_shape=(2, 3))
"""


def label(text, make="Own()", **names):
    space = namespace_of(text) | names
    return plugin_of(eval(make, space), "this session").label


def test_the_same_code_is_the_same_format_however_often_it_is_run():
    assert label(OWN) == label(OWN) == label("\n\n" + OWN.replace("# no", "# or"))
    assert label(OWN).startswith("own@")
    script = f"OWN = {OWN!r}\n" + textwrap.dedent("""
        import textwrap
        from tdm_dask.sources.plugins import plugin_of
        exec(textwrap.dedent(OWN))
        print(plugin_of(Own(), "this session").label)
    """)
    for seed in "12":
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert run.stdout.strip() == label(OWN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"<u2"', '">u2"'), ('"<4H"', '"<5H"'), ("lambda self: 2", "lambda self: 1"), ("gap=0", "gap=2"),
        ("self.rows, 2", "self.rows, 4"), ("return tdm", "return +tdm"),
    ],
)  # fmt: skip
def test_mended_code_is_another_format(old, new):
    assert old in OWN
    assert label(OWN) != label(OWN.replace(old, new))
    assert label(OWN) != label(OWN, "Own(gap=3)")


def test_a_conversion_does_not_go_on_with_a_mended_object(tmp_path, monkeypatch):
    (tmp_path / "scan.own").write_bytes(bytes(range(56)))
    space = namespace_of(OWN)
    for _ in range(2):
        tdm.register_format(space["Own"]())
        tdm.convert(tmp_path / "scan.own", tmp_path / "scan.zarr")
    tdm.register_format(namespace_of(OWN.replace('"<u2"', '">u2"'))["Own"]())
    with pytest.raises(errors.StoreError, match="converted from another file or in another way"):
        tdm.convert(tmp_path / "scan.own", tmp_path / "scan.zarr")
    mended = tdm.convert(tmp_path / "scan.own", tmp_path / "scan.zarr", overwrite=True)
    assert int(mended[0, 0, 0, 0]) == 0x0809


def test_a_module_is_known_by_its_code_and_that_of_its_package(tmp_path, monkeypatch):
    package = tmp_path / "abc_camera"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "header.py").write_text("def dtype():\n    return '<u2'\n")
    text = "from . import header\nname = 'own'\ndef open(request):\n    return header.dtype()\n"
    (package / "ours.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    ours, header = (importlib.import_module(f"abc_camera.{name}") for name in ("ours", "header"))
    one = plugin_of(ours, "the package abc-camera 1.2").label
    assert one == plugin_of(ours, "the package abc-camera 1.2").label
    assert one != plugin_of(ours, "the package abc-camera 1.3").label
    monkeypatch.setattr(header, "dtype", namespace_of("def dtype():\n    return '>u2'", "abc_camera.header")["dtype"])
    assert one != plugin_of(ours, "the package abc-camera 1.2").label


def test_a_recipe_names_a_format_by_its_own_folder(packed, tmp_path, monkeypatch):
    distance = np.hypot(*(np.mgrid[:20, :20] - 9.5))
    counts = np.random.default_rng(0).poisson(np.where(distance < 6, 40, 0.5), (5, 6, 20, 20)).astype("u2")
    write_packed(packed[0], counts)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = tmp_path / "recipe.toml"
    text = """
        [source]
        path = "scan.packed"
        format = "packed format.py"

        [calibration]
        pixel_size = "1 mrad"

        [detectors]
        all = "disk:30"
        """
    recipe.write_text(textwrap.dedent(text))
    result = tdm.run_recipe(recipe, tmp_path / "out")
    np.testing.assert_array_equal(result.counts, counts)
    assert "images" in result.seconds
    assert "images" not in tdm.run_recipe(recipe, tmp_path / "out").seconds
    packed[1].write_text(PACKED + "\n")
    os.utime(packed[1], (1e9, 1e9))
    with pytest.raises(errors.RecipeError, match="results of another recipe, or of other files"):
        tdm.run_recipe(recipe, tmp_path / "out")
    packed[1].unlink()
    with pytest.raises(errors.RecipeError, match=r"\[source\] format names .*packed format.py, which is not there"):
        tdm.run_recipe(recipe, tmp_path / "out")


@pytest.fixture
def packages(tmp_path):
    """A folder with three installed packages that bring formats, one of which cannot be imported."""
    folder = tmp_path / "site"
    for package, text in {
        "abc_format": FRAMES.replace("import struct", "import struct, sys\nprint('imported', file=sys.stderr)", 1),
        "broken_format": "import no_such_package",
        "nameless_format": "x = 1",
    }.items():
        information = folder / f"{package}-1.2.dist-info"
        information.mkdir(parents=True)
        (folder / f"{package}.py").write_text(text)
        name = package.replace("_", "-")
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (information / "entry_points.txt").write_text(f"[tdm_dask.formats]\n{package} = {package}\n")
    return folder


@pytest.mark.long
def test_installed_packages_bring_formats(packages, abc, tmp_path, counts):
    run = command("info", "scan.abc", folder=tmp_path, extra=str(packages))
    assert "read by ABC camera, a format of the package abc-format 1.2" in run.stdout
    assert "The camera was cold." in run.stdout
    notes = [line for line in run.stderr.splitlines() if line.startswith("tdm: note:")]
    assert len(notes) == 2
    assert 'The format "broken_format" of the package broken-format 1.2 cannot be used' in " ".join(notes)
    assert "nameless-format 1.2" in " ".join(notes)
    command("convert", "scan.abc", "scan.zarr", "--workers", 2, folder=tmp_path, extra=str(packages))
    np.testing.assert_array_equal(tdm.open(tmp_path / "scan.zarr"), counts)


@pytest.mark.long
def test_packages_are_not_imported_for_files_that_are_known_without_them(packages, tmp_path):
    np.save(tmp_path / "scan.npy", np.ones((2, 3, 4, 4), np.uint16))
    run = command("info", "scan.npy", folder=tmp_path, extra=str(packages))
    assert run.stderr == ""
    run = command("info", "scan.unheard_of", folder=tmp_path, extra=str(packages), check=False)
    assert "does not exist" in run.stderr
    (tmp_path / "scan.unheard_of").write_bytes(b"?")
    run = command("info", "scan.unheard_of", folder=tmp_path, extra=str(packages), check=False)
    assert "abc, app5" in run.stderr.splitlines()[-1]


def test_what_is_read_is_what_the_blocks_are(packed, counts):
    file = open_vendor(packed[0], format=packed[1])
    np.testing.assert_array_equal(whole(file), counts)
