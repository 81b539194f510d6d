"""Stores and results on S3: moto's server on loopback, spoken to in S3's own protocol."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import xarray as xr
from small_stores import shard_files, small_shards

import tdm_dask as tdm
from tdm_dask import errors
from tdm_dask.cli import main
from tdm_dask.reading.store import SIDECARS, stored_statistics, write_calibration
from tdm_dask.recipe.run import run_recipe
from tdm_dask.shards.objects import put, resolve

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
pytest.importorskip("moto.server", reason="moto's server is not installed")

import boto3
from moto.core import set_initial_no_auth_action_count
from s3_server import Server

from tdm_dask.shards import s3_store

DATA = Path(__file__).resolve().parents[2] / "tdm_dask" / "data"
KEY_ID, SECRET = "AKIALIFEPO4LIFEPO4", "only/the+environment/knows"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_MAX_ATTEMPTS": "2",
    "AWS_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


@pytest.fixture(scope="module")
def serving():
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        server = Server()
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield server
        server.stop()


@pytest.fixture
def server(serving):
    """The server, without faults, and with nothing in its bucket but the store that is kept."""
    serving.fault = None
    for item in boto3.resource("s3").Bucket("bucket").objects.all():
        if not item.key.startswith("kept/"):
            item.delete()
    serving.requests.clear()
    return serving


@pytest.fixture
def patience(monkeypatch):
    """Sets for how long a request, and an answer, is waited for."""

    def give(request, read):
        monkeypatch.setattr(s3_store, "REQUEST_SECONDS", request)
        monkeypatch.setattr(s3_store, "SECONDS_PER_BYTE", 0)
        monkeypatch.setattr(s3_store, "READ_SECONDS", read)
        s3_store._connected.cache_clear()

    yield give
    s3_store._connected.cache_clear()


URL, KEPT = "s3://bucket/scans/scan.zarr", "s3://bucket/kept/scan.zarr"
SHARD, SHARDS = (8, 12), 9


def converted(store, source, **options):
    with small_shards(shard=SHARD):
        return tdm.convert(source, store, **options)


@pytest.fixture(scope="module")
def uninterrupted(raw, tmp_path_factory):
    """The same on disk."""
    path = tmp_path_factory.mktemp("whole") / "scan.zarr"
    converted(path, str(raw[0]), **raw[1])
    return path


@pytest.fixture(scope="module")
def kept(serving, raw):
    """The counts of a store that no test changes."""
    return converted(KEPT, str(raw[0]), **raw[1])


def objects(prefix=""):
    """Contents of the bucket's objects, by key."""
    found = boto3.resource("s3").Bucket("bucket").objects.filter(Prefix=prefix)
    return {item.key: item.get()["Body"].read() for item in found}


def assert_same_on_s3(url, path):
    """Every shard byte-equal to that on disk, every statistic equal, nothing left of the way there."""
    prefix = url.removeprefix("s3://bucket/")
    stored = {key.removeprefix(f"{prefix}/"): data for key, data in objects(f"{prefix}/").items()}
    shards = {key.removeprefix("counts/c/"): data for key, data in stored.items() if key.startswith("counts/c/")}
    assert shards == shard_files(path)
    assert not [key for key in stored if SIDECARS in key or "partial" in key]
    xr.testing.assert_identical(stored_statistics(url), stored_statistics(path))
    assert tdm.verify(url) == tdm.verify(path)


def shards_written(server):
    return [place for method, place, _ in server.requests if method == "PUT" and "/counts/c/" in place]


# Stores


@pytest.mark.long
def test_a_store_on_s3_holds_what_the_one_on_disk_holds(server, raw, uninterrupted):
    opened = converted(URL, str(raw[0]), **raw[1])
    np.testing.assert_array_equal(opened.values, raw[2])
    assert_same_on_s3(URL, uninterrupted)
    plain = xr.open_zarr(URL, chunks=None)
    np.testing.assert_array_equal(plain["counts"].values, raw[2])


def test_opening_a_store_takes_five_requests_and_lists_nothing(kept, server):
    tdm.open(KEPT)
    asked = [(method, place.removeprefix("bucket/kept/scan.zarr/")) for method, place, _ in server.requests]
    assert asked == [("GET", name) for name in ("zarr.json", "y/c/0", "x/c/0", "ky/c/0", "kx/c/0")]


def test_a_pass_asks_twice_for_each_shard(kept, server):
    assert int(kept.tdm.pixel_statistics()["n"]) == 18 * 25
    assert [method for method, place, _ in server.requests if "/counts/c/" in place] == ["GET"] * 2 * SHARDS
    assert len(server.requests) == 2 * SHARDS


@pytest.mark.long
def test_finished_conversions_are_not_repeated_and_others_not_replaced_unasked(server, raw, uninterrupted):
    converted(URL, str(raw[0]), **raw[1], compression="zstd")
    server.requests.clear()
    converted(URL, str(raw[0]), **raw[1], compression="zstd")
    assert {method for method, _, _ in server.requests} == {"GET"}
    with pytest.raises(errors.StoreError, match="already holds"):
        converted(URL, str(raw[0]), **raw[1])
    put(resolve(URL, read_only=False), "notes.txt", b"precious")
    put(resolve("s3://bucket/scans", read_only=False), "scan.zarr.txt", b"precious")
    converted(URL, str(raw[0]), **raw[1], overwrite=True)
    assert_same_on_s3(URL, uninterrupted)
    assert [key for key, data in objects().items() if data == b"precious"] == [
        "scans/scan.zarr.txt",
        "scans/scan.zarr/notes.txt",
    ]
    with pytest.raises(errors.StoreError, match="not a store of this package"):
        converted("s3://bucket/scans", str(raw[0]), **raw[1], overwrite=True)


def test_a_store_goes_from_s3_to_disk_and_not_onto_itself(server, kept, raw, tmp_path):
    with pytest.raises(errors.StoreError, match="where the counts themselves come from"):
        converted(f"{KEPT}/", kept, overwrite=True)
    np.testing.assert_array_equal(converted(tmp_path / "a.zarr", KEPT).values, raw[2])


KILLED = """
import os, signal, sys
import dask, small_stores, tdm_dask as tdm
from tdm_dask.shards import s3_store
dask.config.set(scheduler="threads", num_workers=2)
url, source, options = sys.argv[1:]
seen = []
put = s3_store.S3Store.set
def counted(self, key, value):
    if key.startswith("counts/c/"):
        seen.append(key)
    if len(seen) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return put(self, key, value)
s3_store.S3Store.set = counted
with small_stores.small_shards(shard=(8, 12)):
    tdm.convert(source, url, **eval(options))
"""


@pytest.mark.long
def test_a_conversion_that_was_killed_is_refused_and_resumed(server, raw, uninterrupted):
    arguments = [URL, str(raw[0]), repr(raw[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, timeout=60)
    assert run.returncode == -signal.SIGKILL
    with pytest.raises(errors.IncompleteStoreError, match=f"conversion into {URL} did not finish"):
        tdm.open(URL)
    done = {key.split("/c/")[1]: data for key, data in objects("scans/scan.zarr/counts/c/").items()}
    assert done.items() <= shard_files(uninterrupted).items()
    server.requests.clear()
    converted(URL, str(raw[0]), **raw[1])
    assert len(shards_written(server)) == SHARDS - len(done)
    assert_same_on_s3(URL, uninterrupted)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data[:50] + bytes([data[50] ^ 0x10]) + data[51:], "has a wrong checksum"),
        (lambda data: b"", r"has 0 bytes instead of \d+"),
    ],
)
def test_a_shard_that_changed_on_the_server_is_found(server, raw, uninterrupted, change, problem):
    def harm(method, place, query):
        if method == "HEAD" and place.endswith("counts/c/1/1/0/0") and server.fault:
            server.fault = None
            key = place.removeprefix("bucket/")
            boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=change(objects(key)[key]))

    server.fault = harm
    with pytest.raises(errors.CorruptStoreError, match=rf"1 of 9 shards of s3://.* counts/c/1/1/0/0 .* {problem};"):
        converted(URL, str(raw[0]), **raw[1])
    opened = converted(URL, str(raw[0]), **raw[1])
    assert_same_on_s3(URL, uninterrupted)
    key = "scans/scan.zarr/counts/c/1/1/0/0"
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=change(objects(key)[key]))
    with pytest.raises(errors.CorruptStoreError, match=r"1 of 9 shards .* y 8-15, x 12-23"):
        tdm.verify(URL)
    with pytest.raises(errors.CorruptStoreError, match="is damaged"):
        opened.sum().compute()


def test_an_object_is_sent_whole_in_one_request_whatever_its_size(server):
    data = bytes(101 * 2**20)
    put(resolve("s3://bucket/large", read_only=False), "object", data)
    assert [(method, query) for method, _, query in server.requests] == [("PUT", "")]
    assert boto3.client("s3").head_object(Bucket="bucket", Key="large/object")["ContentLength"] == len(data)


@pytest.mark.long
def test_a_calibration_is_written_to_s3(server, raw):
    counts = converted(URL, str(raw[0]), **raw[1], scan_step=0.3)
    calibrated = tdm.calibrate(counts, pixel_size=1.5, centre=(4.5, 5))
    write_calibration(URL, calibrated)
    for dim in counts.dims:
        xr.testing.assert_identical(tdm.open(URL)[dim].variable, calibrated[dim].variable)


# Processes


@pytest.mark.long
def test_worker_processes_give_the_same_masks_and_images_and_convert(server, kept, raw, uninterrupted):
    distributed = pytest.importorskip("distributed")
    template = xr.DataArray(np.random.default_rng(1).random((18, 25)), dims=("y", "x"))

    def chain(counts):
        mask = tdm.derive_mask(counts, template)
        return xr.Dataset({"mask": mask, "image": tdm.apply_mask(counts, mask, normalisation="standardised")})

    expected = chain(tdm.open(uninterrupted)).compute()
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        xr.testing.assert_allclose(chain(kept).compute(), expected)
        assert tdm.verify(KEPT).shards == SHARDS
        converted(URL, str(raw[0]), **raw[1])
        server.fault = lambda method, place, query: "deny" if "/counts/c/" in place else None
        with pytest.raises(errors.StoreError, match="AccessDenied"):
            chain(tdm.open(KEPT)).compute()
        server.fault = None
    assert_same_on_s3(URL, uninterrupted)


@pytest.mark.long
def test_a_store_can_be_read_after_a_fork(server, kept):
    script = (
        "import os, sys, tdm_dask as tdm\n"
        "counts = tdm.open(sys.argv[1])\n"
        "total = int(counts.sum())\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if int(counts.sum(dtype='int64').compute(scheduler='sync')) == total else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    # Python 3.12 and later warn of every fork of a process with threads.
    python = [sys.executable, "-W", "ignore::DeprecationWarning:__main__"]
    run = subprocess.run([*python, "-c", script, KEPT], timeout=60, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


# What goes wrong


@pytest.mark.parametrize(
    ("method", "done"), [("PUT", "written"), ("GET", "read"), ("HEAD", "read"), ("DELETE", "deleted")]
)
def test_what_is_not_permitted_is_named(server, raw, method, done):
    server.fault = lambda asked, place, query: "deny" if asked == method and "list-type" not in query else None
    with pytest.raises(errors.StoreError, match=f"^{URL} cannot be {done}: the server {server.url} refused it"):
        converted(URL, str(raw[0]), **raw[1])


def test_a_listing_that_is_denied_is_named(server, raw):
    server.fault = lambda method, place, query: "deny" if "list-type" in query else None
    with pytest.raises(errors.StoreError, match=r"cannot be listed: .* \(AccessDenied\)"):
        converted(URL, str(raw[0]), **raw[1])


def test_credentials_that_the_server_does_not_know_can_be_put_right(server, kept, monkeypatch):
    @set_initial_no_auth_action_count(0)
    def refused():
        with pytest.raises(errors.StoreError, match=r"refused it \(InvalidAccessKeyId\); check the credentials"):
            tdm.open(KEPT)

    refused()
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(errors.StoreError, match=r"without credentials \(NoCredentials\); set AWS_PROFILE, or"):
            tdm.open(KEPT)
    assert tdm.open(KEPT).shape == kept.shape


@pytest.mark.parametrize("place", ["s3://bukket", "s3://bukket/scan.zarr"])
def test_a_bucket_that_is_not_there_is_named(server, raw, place):
    for call in (tdm.open, lambda url: converted(url, str(raw[0]), **raw[1])):
        with pytest.raises(errors.StoreError, match=f"There is no bucket bukket on the server {server.url}; make it"):
            call(place)
    with pytest.raises(errors.StoreError, match=r"s3://bucket/nowhere\.zarr is not a zarr group"):
        tdm.open("s3://bucket/nowhere.zarr")


@pytest.mark.parametrize(
    ("variable", "value", "error", "message"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", errors.UnreachableStoreError, r"127\.0\.0\.1:1 cannot be reached"),
        ("AWS_ENDPOINT_URL", "localhost:9000", errors.StoreError, "has no valid name; expected"),
        ("AWS_PROFILE", "nobody", errors.StoreError, r"without credentials \(ProfileNotFound\)"),
    ],
)
def test_an_environment_that_is_wrong_is_named(server, monkeypatch, variable, value, error, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=message):
        tdm.open(URL)


@pytest.mark.long
def test_a_server_that_goes_away_can_come_back(server, raw, uninterrupted):
    def stop(method, place, query):
        if server.fault and len(shards_written(server)) > 3:
            server.fault = None
            gone.start()

    gone = threading.Thread(target=server.stop)
    server.fault = stop
    with pytest.raises(errors.UnreachableStoreError, match=r"^s3://.* cannot be reached .*, which goes on from"):
        converted(URL, str(raw[0]), **raw[1])
    gone.join()
    server.start()
    with pytest.raises(errors.IncompleteStoreError):
        tdm.open(URL)
    server.requests.clear()
    converted(URL, str(raw[0]), **raw[1])
    assert 0 < len(shards_written(server)) < SHARDS
    assert_same_on_s3(URL, uninterrupted)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["drop", "cut", "stall"])
def test_a_connection_that_breaks_off_is_tried_again_and_given_up_in_the_end(server, raw, patience, kept, fault):
    patience(request=60, read=2.0)  # enough for every other request, whatever else the machine does
    counts = tdm.open(KEPT)
    broken = set()

    def once(method, place, query):
        if place.endswith("counts/c/1/1/0/0") and (method, query) not in broken:
            broken.add((method, query))
            return fault
        return None

    server.fault = once
    np.testing.assert_array_equal(counts.values, raw[2])
    assert broken
    patience(request=1.5, read=0.3)
    server.fault = lambda method, place, query: fault if place.endswith("scan.zarr/counts/c/1/1/0/0") else None
    with pytest.raises(errors.UnreachableStoreError, match=f"^{KEPT} cannot be read: the server {server.url} cannot"):
        tdm.verify(KEPT)


def test_a_server_that_takes_no_bytes_is_given_up(server, patience):
    patience(request=1.5, read=0.3)
    server.fault = lambda method, place, query: "stall"
    with pytest.raises(errors.UnreachableStoreError, match="s3://bucket/a cannot be written"):
        put(resolve("s3://bucket/a", read_only=False), "large", bytes(2**25))


def test_without_s3fs_the_extra_is_named(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "tdm_dask.shards.s3_store", None)
    with pytest.raises(errors.StoreError, match=r'install "tdm-dask\[s3\]"'):
        tdm.open(URL)


# Environment and credentials


@pytest.mark.long
def test_the_endpoint_of_a_profile_and_that_of_s3_alone_are_honoured(server, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    tdm.open(KEPT)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    keys = f"aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {server.url}\nregion = us-east-1\n{keys}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    tdm.open(KEPT)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY_ID}:{SECRET}@bucket/scan.zarr",
        f"s3://{KEY_ID}@bucket/scan.zarr",
        f"s3a://{KEY_ID}:secret@bucket/scan.zarr",
        f"s3://bucket/scan.zarr?key={KEY_ID}&secret={SECRET}",
        f"https://{KEY_ID}:{SECRET}@host/scan.zarr",
    ],
)
def test_an_address_with_credentials_is_refused_without_repeating_them(server, raw, tmp_path, capsys, url):
    recipe = {"source": {"path": url}, "detectors": {"ADF": "adf:30:45"}}
    toml = tmp_path / "recipe.toml"
    toml.write_text(f'[source]\npath = "{DATA / "lifepo4_001.mib"}"\n[detectors]\nBF = "bf"\n')
    calls = [
        lambda: tdm.open(url),
        lambda: tdm.verify(url),
        lambda: converted(url, str(raw[0]), **raw[1]),
        lambda: tdm.convert(url, tmp_path / "a.zarr"),
        lambda: run_recipe(recipe, tmp_path / "out"),
        lambda: run_recipe(toml, url),
    ]
    for call in calls:
        with pytest.raises(errors.InputError, match="holds credentials or options") as caught:
            call()
        assert KEY_ID not in str(caught.value)
    for command in (
        ["info", url],
        ["convert", url, tmp_path / "a.zarr"],
        ["convert", raw[0], url],
        ["image", tmp_path, "--detector", "bf", "--out", url],
        ["run", toml, "--out", url],
    ):
        with pytest.raises(SystemExit):
            main(list(map(str, command)))
        written = "".join(capsys.readouterr())
        assert KEY_ID not in written
        assert SECRET not in written
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_an_address_without_a_bucket_is_refused():
    with pytest.raises(errors.InputError, match="names no bucket"):
        tdm.open("s3:///scan.zarr")


def test_what_is_pickled_and_printed_holds_no_credentials(server, kept):
    image = tdm.apply_mask(kept, xr.ones_like(kept[0, 0].compute(), dtype=float))
    for text in (cloudpickle.dumps(dict(image.data.dask)), repr(resolve(URL)).encode(), repr(image.data.dask).encode()):
        assert KEY_ID.encode() not in text
        assert SECRET.encode() not in text
    assert pickle.loads(pickle.dumps(resolve(URL))) == resolve(URL)


# Recipes and the command line


def sample_recipe(source):
    sites = json.loads((DATA / "lifepo4_001_sites.json").read_text(encoding="utf-8"))
    return {
        "source": {"path": source},
        "calibration": {"semi_angle": 23.5, "scan_step": 0.3225},
        "detectors": {"ADF": "adf:30:45"},
        "templates": {"sites": {"Li": sites["Li"], "O": sites["O"]}, "sigma": "35 pm"},
    }


@pytest.mark.long
def test_a_recipe_reads_from_s3_and_leaves_its_results_there(server, tmp_path):
    source = str(DATA / "lifepo4_001.mib")
    expected = run_recipe(sample_recipe(source), tmp_path / "out")
    tdm.convert(source, URL)
    # Cut short while the masks are written: they are made again, and nothing that looks whole is left.
    server.fault = lambda method, place, query: "deny" if place.endswith("results.zarr/masks/zarr.json") else None
    with pytest.raises(errors.StoreError, match=r"^s3://bucket/results/results\.zarr cannot be read"):
        run_recipe(sample_recipe(URL), "s3://bucket/results")
    server.fault = lambda *asked: "deny" if asked[0] == "PUT" and "results.zarr/masks/zarr.json" in asked[1] else None
    with pytest.raises(errors.StoreError, match=r"^s3://bucket/results/results\.zarr cannot be written"):
        run_recipe(sample_recipe(URL), "s3://bucket/results")
    server.fault = None
    found = run_recipe(sample_recipe(URL), "s3://bucket/results/")
    assert set(found.seconds) >= {"correlate", "images"}
    for part in ("masks", "images", "evaluation"):
        xr.testing.assert_allclose(getattr(found, part), getattr(expected, part))
    again = run_recipe(sample_recipe(URL), "s3://bucket/results")
    assert not {"correlate", "images"} & set(again.seconds)
    xr.testing.assert_identical(again.images, found.images)
    opened = xr.open_zarr(found.results, group="images", consolidated=False)
    np.testing.assert_array_equal(opened["image"], found.images["image"])
    other = {**sample_recipe(URL), "detectors": {}}
    with pytest.raises(errors.RecipeError, match="s3://bucket/results holds results of another recipe"):
        run_recipe(other, "s3://bucket/results")
    assert "virtual" not in run_recipe(other, "s3://bucket/results", overwrite=True).images


@pytest.mark.long
def test_nothing_that_a_run_leaves_or_says_holds_credentials(server, tmp_path):
    sites = DATA / "lifepo4_001_sites.json"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[source]\npath = "{DATA / "lifepo4_001.mib"}"\n[calibration]\nsemi_angle = 23.5\nscan_step = 0.3225\n'
        f'[templates]\nsites = "{sites}"\nsigma = "35 pm"\n'
    )
    commands = [
        ["convert", str(DATA / "lifepo4_001.mib"), URL, "--scan-step", "0.32 Å"],
        ["calibrate", URL, "--semi-angle", "23.5 mrad"],
        ["info", URL],
        ["verify", URL],
        ["image", URL, "--detector", "adf:30:45", "--out", "adf.npy"],
        ["run", str(recipe), "--out", "s3://bucket/results", "--notebook"],
        ["verify", "s3://bucket/nowhere.zarr"],
        ["verify", "s3://bukket/scan.zarr"],
    ]
    script = (
        "import json, sys\nfrom tdm_dask.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    try:\n        main([*command, '--debug'])\n"
        "    except SystemExit as end:\n        print('code', end.code, flush=True)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)], cwd=tmp_path, capture_output=True, timeout=120
    )
    out = run.stdout.decode()
    assert [line for line in out.splitlines() if line.startswith("code")] == ["code 0"] * 6 + ["code 2"] * 2
    assert "s3://bucket/results/report.html" in out
    assert "Unclosed" not in run.stderr.decode()
    stored = objects()
    written = {key.removeprefix("results/") for key in stored}
    assert written >= {"report.html", "recipe.json", "cross_talk.csv", "figures/pacbed.png", "counts.zarr/zarr.json"}
    head = boto3.client("s3").head_object(Bucket="bucket", Key="results/report.html")
    assert head["ContentType"] == "text/html"
    setup = next(cell for cell in json.loads(stored["results/report.ipynb"])["cells"] if cell["cell_type"] == "code")
    opened: dict = {}
    exec("".join(line for line in setup["source"] if not line.startswith("%")), opened)
    assert list(opened["sites"]) == list(json.loads(sites.read_text(encoding="utf-8")))
    assert {*opened["masks"]["template"].values} == {*opened["sites"]}
    left = [path.read_bytes() for path in tmp_path.iterdir()]
    for text in (*stored.values(), *left, run.stdout, run.stderr):
        assert KEY_ID.encode() not in text
        assert SECRET.encode() not in text
