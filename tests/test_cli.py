"""The command line: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import errno
import json
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import dask
import numpy as np
import public
import pytest
import xarray as xr
from vendor_files import write_mib

import tdm_dask as tdm
from tdm_dask.cli import main
from tdm_dask.cluster.schedulers import scheduler, walltime_seconds
from tdm_dask.errors import DiskFullError, InputError, WorkerLostError
from tdm_dask.words import arguments

SAMPLE = Path(__file__).resolve().parents[1] / "tdm_dask" / "data" / "lifepo4_001.mib"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run one command in an empty folder; gives its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return command


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A store of the sample, calibrated."""
    store = tmp_path_factory.mktemp("cli") / "scan.zarr"
    counts = tdm.convert(SAMPLE, store)
    from tdm_dask.reading.store import write_calibration

    write_calibration(store, tdm.calibrate(counts, semi_angle=23.5, scan_step=0.3225))
    return store


@pytest.mark.long
def test_demo_makes_everything_and_says_where(run, tmp_path):
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    for name in ("report.html", "cross_talk.csv", "counts.zarr", "results.zarr", "figures"):
        assert (tmp_path / "tdm-demo" / name).exists()
        assert f"tdm-demo/{name}" in out


def test_info_of_a_vendor_file_names_the_command_that_converts_it(run, tmp_path):
    code, out, err = run("info", SAMPLE)
    assert (code, err) == (0, "")
    assert "42 × 42 × 38 × 38 (y, x, ky, kx) of uint16" in out
    assert "not calibrated" in out
    assert f"tdm convert {SAMPLE} lifepo4_001.zarr --scan-step" in out
    assert "tdm calibrate lifepo4_001.zarr --semi-angle" in out
    assert not list(tmp_path.iterdir())


def test_info_of_a_store_has_axes_with_units(run, converted):
    code, out, _ = run("info", converted, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["shape"] == [42, 42, 38, 38]
    assert found["dtype"] == "uint16"
    assert found["bytes"] == 42 * 42 * 38 * 38 * 2
    assert [axis["unit"] for axis in found["axes"]] == ["angstrom", "angstrom", "mrad", "mrad"]
    assert found["axes"][0]["step"] == pytest.approx(0.3225)
    assert found["acquisition"]["semi_angle_mrad"] == 23.5
    assert "commands" not in found


def test_a_file_goes_through_convert_calibrate_verify_and_image(run, tmp_path):
    assert run("convert", SAMPLE, "a.zarr", "--scan-step", "0.3229 Å, 32.2 pm")[0] == 0
    code, out, _ = run("calibrate", "a.zarr", "--semi-angle", "23.5 mrad", "--energy", "200 keV")
    assert code == 0
    assert "beam energy: 200 keV" in out
    counts = tdm.open("a.zarr")
    assert counts.attrs["energy_eV"] == 200e3
    assert (float(counts.y[1]), float(counts.x[1])) == pytest.approx((0.3229, 0.322))
    assert run("verify", "a.zarr")[:2] == (0, "a.zarr is whole: 1 shard, 1.62 MB, every checksum right.\n")
    assert run("image", "a.zarr", "--detector", "adf:30:45", "--out", "adf.npy")[0] == 0
    k = np.hypot(*np.meshgrid(counts.ky, counts.kx, indexing="ij"))
    values = counts.compute().values.astype(float)
    made = np.load("adf.npy")
    sharp = (values * ((k >= 30) & (k < 45))).sum((2, 3))
    assert np.corrcoef(made.ravel(), sharp.ravel())[0, 1] > 0.99


def test_a_scan_without_a_disk_is_calibrated_by_centre_and_pixel_size(run, tmp_path):
    flat = tdm.label_counts(np.full((3, 4, 16, 16), 2, np.uint16))
    tdm.convert(flat, tmp_path / "flat.zarr")
    code, _, err = run("calibrate", "flat.zarr", "--pixel-size", "1.5 mrad")
    assert code == 2
    assert "No bright-field disk was found" in err
    assert run("calibrate", "flat.zarr", "--centre", "7", "8", "--pixel-size", "1.5 mrad")[0] == 0
    found = tdm.open("flat.zarr")
    np.testing.assert_allclose(found.ky, 1.5 * (np.arange(16) - 7))
    np.testing.assert_allclose(found.kx, 1.5 * (np.arange(16) - 8))
    assert "semi_angle_mrad" not in found.attrs


def test_convert_again_finds_the_store_complete_and_overwrite_replaces_it(run):
    assert run("convert", SAMPLE, "a.zarr")[0] == 0
    before = tdm.open("a.zarr").compute()
    assert run("convert", SAMPLE, "a.zarr", "--resume")[0] == 0
    xr.testing.assert_identical(tdm.open("a.zarr").compute(), before)
    assert run("convert", SAMPLE, "a.zarr", "--overwrite", "--compression", "none")[0] == 0
    assert run("verify", "a.zarr", "--json")[1].count("5094432") == 1
    xr.testing.assert_equal(tdm.open("a.zarr").compute(), before)


def test_convert_of_raw_binary_takes_its_layout_from_the_options(run, tmp_path):
    values = np.arange(3 * 4 * 5 * 6, dtype=">u2").reshape(3, 4, 5, 6)
    frames = [b"head", *(frame.tobytes() + b"gap" for frame in values.reshape(12, 5, 6))]
    (tmp_path / "scan.raw").write_bytes(b"".join(frames))
    options = ["--scan-shape", "3x4", "--detector-shape", "5x6", "--dtype", ">u2", "--offset", 4, "--gap", 3]
    assert "30 × 6" not in run("info", "scan.raw", *options)[1]
    assert run("convert", "scan.raw", "a.zarr", *options)[0] == 0
    np.testing.assert_array_equal(tdm.open("a.zarr"), values)


@pytest.mark.long
def test_image_of_the_whole_disk_is_the_same_on_worker_processes(run, converted):
    assert run("image", converted, "--detector", "bf", "--out", "threads.npy")[0] == 0
    options = ("--workers", 1, "--memory", "1GiB", "--json")
    code, out, _ = run("image", converted, "--detector", "bf", "--out", "workers.npy", *options)
    assert code == 0
    assert json.loads(out)["shape"] == [42, 42]
    np.testing.assert_allclose(np.load("workers.npy"), np.load("threads.npy"), rtol=1e-12)


def test_run_makes_the_results_of_a_recipe(run, tmp_path, converted):
    recipe = f'[source]\npath = "{converted}"\n[detectors]\nBF = "disk:10"\n'
    (tmp_path / "mine.toml").write_text(recipe, encoding="utf-8")
    code, out, _ = run("run", "mine.toml", "--json")
    assert code == 0
    assert json.loads(out)["report"] == "mine-results/report.html"
    page = (tmp_path / "mine-results" / "report.html").read_text(encoding="utf-8")
    assert "disk:10" in page
    assert run("run", "mine.toml", "--out", "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere" / "report.html").is_file()


WRONG = [
    ("convert",),
    ("convrt",),
    ("info", "--scan-shape", "3y4", SAMPLE),
    ("info", "nowhere.mib"),
    ("info", SAMPLE, "--scan-shape", "40x40"),
    ("info", "broken.mib"),
    ("convert", SAMPLE, "new.zarr", "--scan-step", "0.3 mrad"),
    ("convert", SAMPLE, "new.zarr", "--scan-step=-0.3"),
    ("convert", SAMPLE, "new.zarr", "--compression", "zip"),
    ("convert", SAMPLE, "new.zarr", "--dtype", "uint16"),
    ("convert", SAMPLE, "new.zarr", "--memory", "1GiB"),
    ("convert", SAMPLE, "new.zarr", "--workers", "0"),
    ("convert", SAMPLE, "new.zarr", "--workers", "1", "--memory", "much"),
    ("convert", SAMPLE, "new.zarr", "--workers", "1", "--scheduler", "tcp://127.0.0.1:1"),
    ("convert", SAMPLE, "new.zarr", "--workers", "1", "--memory", "-1GiB"),
    ("convert", SAMPLE, "new.zarr", "--cores", "2"),
    ("convert", SAMPLE, "new.zarr", "--workers", "1", "--cores", "0"),
    ("convert", SAMPLE, "new.zarr", "--workers", "1", "--partition", "long"),
    ("convert", SAMPLE, "new.zarr", "--adaptive"),
    ("convert", SAMPLE, "new.zarr", "--slurm", "--scheduler", "tcp://127.0.0.1:1"),
    ("convert", SAMPLE, "new.zarr", "--slurm", "--walltime", "two hours"),
    ("convert", SAMPLE, "new.zarr", "--slurm", "--walltime", "0"),
    ("convert", SAMPLE, "new.zarr", "--slurm", "--wait", "long"),
    ("demo", "--out", "nowhere/new", "--workers", "2"),
    ("convert", "broken.mib", "new.zarr"),
    ("verify", "nowhere.zarr"),
    ("calibrate", "STORE"),
    ("calibrate", "STORE", "--semi-angle", "much"),
    ("image", "STORE", "--detector", "adg:30:45", "--out", "new.npy"),
    ("image", "STORE", "--detector", "adf:45:30", "--out", "new.npy"),
    ("image", "STORE", "--detector", "adf:300:450", "--out", "new.npy"),
    ("image", "STORE", "--detector", "bf", "--out", "nowhere/new.npy"),
    ("image", "STORE", "--detector", "bf", "--out", "new.jpg"),
    ("image", "STORE", "--detector", "bf", "--out", "broken.mib"),
    ("image", "STORE", "--detector", "bf"),
    ("run", "nowhere.toml"),
    ("run", "broken.mib"),
    ("demo", "--out", "nowhere/new"),
]


@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: " ".join(map(str, arguments[:1] + arguments[2:])))
def test_a_wrong_request_is_one_sentence_and_exit_code_2(arguments, run, tmp_path, converted):
    (tmp_path / "broken.mib").write_bytes(SAMPLE.read_bytes()[:10_000])
    before = sorted(tmp_path.iterdir())
    code, out, err = run(*(converted if argument == "STORE" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("tdm: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert python_words(err) == []
    assert sorted(tmp_path.iterdir()) == before


def python_words(said: str) -> list[str]:
    """Arguments of Python that are named in what the command line says."""
    known = public.arguments() | public.options() | public.keys()
    return [argument.text for argument in arguments(said) if argument.name in known]


RECIPE = """
[source]
path = "scan.mib"
scan_shape = [3, 4]
{more}
[detectors]
BF = "disk:10"
"""
# What was typed, and what the sentence must say, each about a scan of 18 frames.
MISTAKES = [
    (("info", "scan.mib"), "give --scan-shape, such as --scan-shape 3x6 or --scan-shape 6x3"),
    (("info", "scan.mib", "--scan-shape", "3x4"), "but --scan-shape 3x4 has 12 probe positions, fewer than"),
    (("info", "scan.mib", "--scan-shape", "3x4"), "give --flyback 2 (18 = 3 x 6), or"),
    (("info", "scan.mib", "--scan-shape", "4x5"), "or --allow-partial if the scan was interrupted"),
    (("convert", "scan.mib", "a.zarr", "--scan-shape", "3x6", "--gap", "2"), "but --gap 2 was given"),
    (("convert", "scan.mib", "a.zarr", "--scan-shape", "3x6", "--dtype", "uint16"), "but --dtype uint16 was given"),
    (("convert", "scan.mib", "a.zarr", "--scan-shape", "3x6", "--frame", "4"), "but --frame 4 was given"),
    (("convert", "scan.mib", "a.zarr", "--scan-shape", "3x6", "--scan-first"), "but --scan-first was given"),
    (("convert", "scan.bin", "a.zarr", "--dtype", "uint16"), "give --scan-shape, --detector-shape"),
    (("convert", "scan.xyz", "a.zarr"), "any raw binary with --dtype, --scan-shape and --detector-shape"),
    (("convert", "series.npy", "a.zarr"), "say which one with --frame 0 to --frame 1"),
    (("convert", "scan.mib", "there.zarr", "--scan-shape", "6x3"), "another path, or replace it with --overwrite"),
    (("convert", "scan.mib", "a.zarr", "--scan-shape", "3x6", "--cores", "2"), "--cores 2 is of each worker"),
    (("image", "there.zarr", "--detector", "adf", "--out", "a.png"), "with --semi-angle or --pixel-size first"),
    (("image", "there.zarr", "--detector", "adf:1:2", "--out", "there.png"), "or --overwrite to replace it"),
    (("calibrate", "there.zarr"), "give --energy, --scan-step, --semi-angle or --pixel-size"),
    (("calibrate", "there.zarr", "--semi-angle", "20 mrad"), "give --centre and --pixel-size"),
    (("calibrate", "there.zarr", "--scan-step", "three"), '--scan-step is "three"'),
    (("view", "there.zarr"), 'calibrate it with --scan-step "0.32 Å" first'),
    (("run", "recipe.toml"), "but [source] scan_shape = [3, 4] has 12 probe positions"),
    (("run", "layout.toml"), "but [source] offset = 4 was given"),
    (("plan", "old.toml"), "give [source] flyback = 2 (18 = 3 x 6), or"),
    (("run", "recipe.toml", "--out", "results"), "or --overwrite to replace them"),
]


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[" ".join(typed) for typed, _ in MISTAKES])
def test_a_mistake_is_answered_in_the_words_of_the_command_line(typed, said, run, mistakes):
    code, out, err = run(*typed)
    assert code == 2
    assert said in err
    assert python_words(out + err) == []


# Names of files that look as if they named an argument.
NAMES = ("defocus=5nm.mib", "frame=3.mib", "scan_step=0.3.mib", "a frame=3 b.mib", "frame=3 of 4/scan_shape.mib")


@pytest.fixture(params=NAMES)
def file(tmp_path, request):
    """A scan of 18 frames by such a name."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    write_mib(path, np.random.default_rng(0).poisson(3, (18, 6, 8)).astype(np.uint16))
    return request.param


def test_the_name_of_a_file_stays_as_it_is_in_what_is_said_of_it(file, run):
    code, out, err = run("info", file, "--scan-shape", "3x6")
    assert (code, err) == (0, "")
    assert out.startswith(f"{file}: vendor file\n")
    store = f"{Path(file).stem}.zarr"
    assert shlex.join(["tdm", "convert", file, store, "--scan-shape", "3x6"]) in out
    code, out, err = run("convert", file, store, "--scan-shape", "3x6")
    assert (code, err) == (0, "")
    assert out.startswith(f"{store}: store\n")
    assert run("verify", store)[1].startswith(f"{store} is whole")
    code, _, err = run("convert", file, store, "--scan-shape", "6x3")
    assert (code, store in err, "--overwrite" in err) == (2, True, True)


def test_the_name_of_a_file_stays_as_it_is_in_errors(file, run, tmp_path):
    for command in (("info", file), ("convert", file, "a.zarr")):
        code, _, err = run(*command)
        assert (code, Path(file).name in err, "give --scan-shape, such as" in err) == (2, True, True), err
    recipe = f'[source]\npath = "{file}"\nscan_shape = [3, 4]\n[detectors]\nBF = "disk:10"\n'
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    code, _, err = run("run", "recipe.toml")
    assert (code, Path(file).name in err, "but [source] scan_shape = [3, 4] has" in err) == (2, True, True), err
    for given in (tmp_path / "recipe.toml", tomllib.loads(recipe)):
        with pytest.raises(InputError, match=re.escape("but [source] scan_shape = [3, 4] has")) as caught:
            tdm.run_recipe(given, "out")
        assert Path(file).name in str(caught.value)


def test_what_others_say_stays_as_it_is(run, monkeypatch):
    def fail(*arguments, **keywords):
        raise ValueError("shape=(3, 4) and frame=3 do not go together")

    monkeypatch.setattr("tdm_dask.report.description.describe", fail)
    _, _, err = run("info", SAMPLE)
    assert "ValueError: shape=(3, 4) and frame=3 do not go together;" in err


@pytest.fixture
def mistakes(tmp_path, run):
    """A folder with what mistakes can be made with."""
    frames = np.random.default_rng(0).poisson(3, (18, 6, 8)).astype(np.uint16)
    write_mib(tmp_path / "scan.mib", frames)
    for name in ("scan.bin", "scan.xyz"):
        (tmp_path / name).write_bytes(frames.tobytes())
    np.save(tmp_path / "series.npy", frames.reshape(2, 3, 3, 6, 8))
    tdm.convert(tmp_path / "scan.mib", tmp_path / "there.zarr", scan_shape=(3, 6))
    (tmp_path / "there.png").touch()
    for name, more in (("recipe", ""), ("layout", "offset = 4"), ("old", '[masks]\nwithin = "disk:9"')):
        (tmp_path / f"{name}.toml").write_text(RECIPE.format(more=more), encoding="utf-8")
    note = {"recipe": {"masks": {}, "source": {}, "calibration": {}}, "sites": {}, "source": None, "tdm_dask": "0"}
    (tmp_path / "results" / "results.zarr").mkdir(parents=True)
    (tmp_path / "results" / "results.zarr" / "zarr.json").write_text("{}", encoding="utf-8")
    (tmp_path / "results" / "recipe.json").write_text(json.dumps(note), encoding="utf-8")


def test_notes_and_findings_are_in_the_words_of_the_command_line(run, tmp_path, mistakes):
    trimmed = ("--scan-shape", "3x5", "--flyback", "1")
    code, out, err = run("info", "scan.mib", *trimmed)
    assert (code, err) == (0, "")
    assert "frames of each line are left out: --flyback 1." in out
    assert "The scan step is not known: --scan-step gives it." in out
    assert "calibrate finds it from --semi-angle, or takes --pixel-size." in out
    assert "give --energy to calibrate" in out
    found = json.loads(run("info", "scan.mib", *trimmed, "--json")[1])["findings"]
    assert "The scan step is not known: --scan-step gives it." in found
    assert python_words(out) == [word for sentence in found for word in python_words(sentence)] == []
    code, out, err = run("plan", "old.toml")
    assert "tdm: note: [masks] within is now called [masks] detector_region" in err
    assert "the old name works in this release alone" in err


def test_debug_shows_the_traceback_of_a_wrong_request(run):
    code, _, err = run("info", "nowhere.mib", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("tdm: ")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda data: data[:1000] + bytes([data[1000] ^ 4]) + data[1001:], "checksum is wrong"),
        (lambda data: data[:-1000], "as after truncation"),
        (lambda data: None, "is missing"),
    ],
)
def test_a_damaged_shard_and_its_probes_are_named_by_verify(run, tmp_path, harm, sentence):
    run("convert", SAMPLE, "a.zarr")
    shard = max((tmp_path / "a.zarr" / "counts" / "c").rglob("*"), key=lambda path: path.stat().st_size)
    harmed = harm(shard.read_bytes())
    shard.unlink()
    if harmed is not None:
        shard.write_bytes(harmed)
    code, out, err = run("verify", "a.zarr")
    assert (code, out) == (2, "")
    assert "1 of 1 shards are damaged: The shard counts/c/0/0/0/0 (probe positions y 0-41, x 0-41)" in err
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DiskFullError("The disk is full; 3 shards are kept."), 1, "3 shards are kept"),
        (WorkerLostError("Workers were lost; finished stages are kept."), 1, "finished stages are kept"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "make room"),
        (PermissionError(errno.EACCES, "Permission denied", "scan.zarr"), 2, "scan.zarr may not be"),
        (MemoryError(), 1, "memory is full"),
        (RuntimeError("first line\nsecond line"), 1, "first line second line"),
        (InputError("Give another number."), 2, "Give another number."),
        (KeyboardInterrupt(), 130, "Run the same command again"),
    ],
)
def test_failures_have_their_exit_code_and_one_sentence(error, code, sentence, run, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(tdm, "convert", fail, raising=False)
    found, out, err = run("convert", SAMPLE, "a.zarr")
    assert (found, out) == (code, "")
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.long
def test_a_failure_names_the_stages_that_were_finished(run, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no figure today")

    monkeypatch.setattr("tdm_dask.report.writing.write_report", fail)
    code, _, err = run("demo")
    assert code == 1
    assert "no figure today; finished and kept: convert, calibrate, correlate, images, evidence." in err


def test_warnings_of_the_package_are_notes_and_others_are_left_out(run, monkeypatch):
    def warn(*args, **kwargs):
        warnings.warn_explicit("5 sites dropped.", UserWarning, tdm.__file__, 1)
        warnings.warn_explicit("numba is unhappy", UserWarning, "/somewhere/numba.py", 1)
        warnings.warn_explicit("xarray will change a default", FutureWarning, tdm.__file__, 1)  # as it does, of callers

    monkeypatch.setattr("tdm_dask.report.description.describe", warn_then(warn))
    code, _, err = run("info", SAMPLE)
    assert (code, err) == (0, "tdm: note: 5 sites dropped.\n")


def test_old_names_are_notes(run, mistakes):
    _, _, err = run("plan", "old.toml")
    assert "tdm: note: [masks] within is now called [masks] detector_region" in err


def warn_then(warn):
    from tdm_dask.report.description import describe

    def described(*args, **kwargs):
        warn()
        return describe(*args, **kwargs)

    return described


def test_help_imports_nothing_heavy():
    heavy = ("distributed", "matplotlib", "numba", "zarr", "hyperspy", "scipy")
    code = (
        "import sys\n"
        "from tdm_dask.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in found.stdout
    assert found.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "tdm_dask", "--version"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, f"tdm_dask {tdm.__version__}\n")


def test_without_a_command_the_help_is_shown(run):
    code, out, _ = run()
    assert code == 0
    assert "convert" in out


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("30", 1800), ("30:15", 1815), ("02:00:00", 7200), ("1-0", 86400), ("1-12:30", 131400), ("2-00:00:01", 172801)],
)
def test_a_walltime_is_read_as_slurm_reads_it(walltime, seconds):
    assert walltime_seconds(walltime) == seconds


@pytest.mark.parametrize(
    ("name", "sentence"), [("importlib.util.find_spec", 'install "tdm-dask[slurm]"'), ("shutil.which", "sbatch")]
)
def test_slurm_that_is_not_here_is_one_sentence(name, sentence, run, monkeypatch, tmp_path):
    monkeypatch.setattr(f"tdm_dask.cluster.schedulers.{name}", lambda *arguments: None)
    code, _, err = run("convert", SAMPLE, "new.zarr", "--slurm")
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_deferred_cluster_starts_with_the_first_computation_and_is_planned_for_before():
    from distributed import get_client

    from tdm_dask.reading.lazy import cores

    with scheduler(workers=2, cores=3, memory="1GiB", deferred=True, announce=False) as client:
        assert client is None
        assert cores() == 6
        with pytest.raises(ValueError, match="client"):
            get_client()
        assert dask.delayed(sum)([1, 2]).compute() == 3
        assert get_client().nthreads()
        assert cores() == 6


def test_a_lost_worker_is_named_as_such(monkeypatch):
    monkeypatch.setattr("tdm_dask.cluster.schedulers.ALLOWED_FAILURES", 0)
    code = "import os; os._exit(1)"
    with (
        pytest.raises(WorkerLostError, match="finished stages are kept"),
        scheduler(workers=1, memory="1GiB", announce=False),
    ):
        dask.delayed(exec)(code).compute()


def test_a_scheduler_file_joins_its_cluster(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        path = tmp_path / "scheduler.json"
        path.write_text(json.dumps(cluster.scheduler.identity()), encoding="utf-8")
        with scheduler(str(path), announce=False) as client:
            assert client.scheduler.address == cluster.scheduler_address
            assert dask.delayed(sum)([1, 2]).compute() == 3


def test_a_scheduler_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setattr("tdm_dask.cluster.schedulers.CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match="No dask scheduler answers"), scheduler("tcp://127.0.0.1:1"):
        pass


def test_without_a_request_threads_compute():
    with scheduler() as client:
        assert client is None
        assert dask.config.get("scheduler") == "threads"
