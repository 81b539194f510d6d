"""README and the pages of docs/: what they name is there, and every block of the pages runs as it stands."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import xarray as xr
from documents import (
    PAGES,
    README,
    ROOT,
    Reader,
    assert_options,
    blocks,
    code_spans,
    installed,
    options_of,
    prose,
    wheel_has,
)

import tdm_dask as tdm
import tdm_dask.plot
from tdm_dask.axes import axis_coordinate
from tdm_dask.detector.conventional_masks import parse_detector
from tdm_dask.recipe.recipe_file import SECTIONS

EVERY = [README, *PAGES]
# Programs beside `tdm` that pages name with options, and what tells these.
OTHERS = {
    "workflows/": sorted((ROOT / "workflows").glob("*.py")),
    "tests/benchmarks": sorted((ROOT / "tests" / "benchmarks").glob("*.py")),
}
MODULES = {"plot", "hyperspy", "errors"}  # that are public by themselves


def every(function: Callable) -> Callable:
    return pytest.mark.parametrize("page", EVERY, ids=lambda page: page.name)(function)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target


def test_the_readme_leads_to_every_page():
    linked = re.findall(r"\]\((docs/[^)#]+)", README.read_text(encoding="utf-8"))
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} <= set(linked)


@every
def test_commands_and_their_options_exist(page):
    commands = [command for block in blocks(page) if block.language == "sh" for command in block.commands()]
    for text in [*commands, *code_spans(page)]:
        if text.startswith("tdm "):
            assert_options(text.replace("...", ""))
        for what in re.findall(r'pip install "?(\.[^ "]*)', text):
            assert wheel_has(what), text
        for script in re.findall(r"python ((?:workflows|tests)/\S+)", text):
            assert (ROOT / script).exists(), text


@every
def test_options_that_stand_alone_are_those_of_a_command(page):
    known = options_of(tdm_commands())
    text = page.read_text(encoding="utf-8")
    for name, scripts in OTHERS.items():
        if name in text:
            known |= {o for script in scripts for o in re.findall(r'"(--[a-z-]+)"', script.read_text("utf-8"))}
    for span in code_spans(page):
        if span.startswith("--"):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)) <= known, span


def tdm_commands() -> list:
    from tdm_dask.cli import tdm as group

    return [group, *group.commands.values()]


@every
def test_names_are_public_ones(page):
    """Modules have moved, and may again; what stands in `tdm_dask` itself stays."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\btdm\.(\w+)", text):
        assert name in tdm.__all__, f"tdm.{name}"
    for name in re.findall(r"\btdm\.hyperspy\.(\w+)", text):
        assert name in tdm.hyperspy.__all__, f"tdm.hyperspy.{name}"
    for names in re.findall(r"^from tdm_dask\.plot import (.*)$", text, flags=re.MULTILINE):
        assert set(names.split(", ")) <= set(tdm_dask.plot.__all__)
    # But for a command, and the name of a group of entry points.
    for path in re.findall(r"(?<!python -m )(?<!entry-points\.\")\btdm_dask((?:\.\w+)+)", text):
        first, *more = path.removeprefix(".").split(".")
        assert not more, f"tdm_dask{path}"
        assert first in MODULES | set(tdm.__all__), f"tdm_dask{path}"


def test_the_functions_that_workflows_show_are_public():
    rows = re.findall(r"^\| `(\w+\.py)` \|.*\| (.*) \|$", (ROOT / "docs" / "workflows.md").read_text("utf-8"), re.M)
    assert {name for name, _ in rows} <= {path.name for path in OTHERS["workflows/"]}
    assert {name for _, cell in rows for name in re.findall(r"`(\w+)", cell)} <= set(tdm.__all__)


def test_the_page_of_recipes_names_every_key_and_no_other():
    text = (ROOT / "docs" / "a-file-of-your-own.md").read_text("utf-8")
    keys = text[text.index("### All keys") :]
    rows = dict(re.findall(r"^\| `\[(\w+)\]` \| (.*) \|$", keys, re.M))
    assert list(rows) == ["source", "calibration", "detectors", "templates", "masks", "images", "evidence"]
    assert set(SECTIONS) == set(rows) - {"detectors"}
    for name, section in SECTIONS.items():
        assert set(re.findall(r"`([a-z_]+)`", rows[name])) == {field.name for field in fields(section)}, name


def test_the_detectors_that_the_page_of_recipes_lists_are_understood():
    text = (ROOT / "docs" / "a-file-of-your-own.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*`) \|", text[text.index("| text | pixels |") : text.index("## The report")], re.M)
    listed = [spec for row in rows for spec in re.findall(r"`([^`]+)`", row)]
    angles = {dim: axis_coordinate(dim, 81, 5.0, -200.0, "mrad") for dim in ("ky", "kx")}
    pattern = xr.DataArray(np.zeros((81, 81)), angles, ("ky", "kx"), attrs={"semi_angle_mrad": 23.5})
    for spec in listed:
        assert float(parse_detector(spec, pattern).sum()) > 0, spec
    assert {spec.partition(":")[0] for spec in listed} == {"disk", "annulus", "bf", "abf", "adf", "haadf"}


# Every block of the pages


@contextmanager
def s3_server(folder: Path) -> Iterator[tuple[dict[str, str], str]]:
    """A server with an empty bucket, for a profile "lab": variables of the environment, and its address."""
    boto3 = pytest.importorskip("boto3")
    from s3_server import Server

    credentials = folder / "credentials"
    credentials.write_text("[lab]\naws_access_key_id = reader\naws_secret_access_key = secret\n", encoding="utf-8")
    variables = {
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    server = Server()
    try:
        known = {"aws_access_key_id": "reader", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=server.url, **known).create_bucket(Bucket="bucket")
        yield variables, server.url
    finally:
        server.stop()


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    return installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> dict[str, Path]:
    """A reader's own files, by the names that pages have for them: here, those of the sample."""
    folder, data = tmp_path_factory.mktemp("own"), files("tdm_dask") / "data"
    for name in ("scan.mib", "scan.hdr"):
        (folder / name).write_bytes((data / name.replace("scan", "lifepo4_001")).read_bytes())
    recipe = {"source": {"path": "s3://bucket/scan.zarr"}, "calibration": {"semi_angle": 23.5}}
    recipe["detectors"] = {"BF": "bf"}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    counts = tdm.convert(folder / "scan.mib", folder / "scan.zarr", scan_step=("0.3229 Å", "0.3220 Å"))
    from tdm_dask.reading.store import write_calibration

    write_calibration(folder / "scan.zarr", tdm.calibrate(counts, semi_angle="23.5 mrad"))
    tdm.write_sites(folder / "sites.csv", tdm.read_sites(data / "lifepo4_001_sites.json"))
    return {path.name: path for path in folder.iterdir()}


# What a page has a reader begin with; the others, with what the README's blocks leave.
BEGIN = {
    "a-reduction-of-your-own.md": (),
    "adding-a-format.md": (),
    "a-file-of-your-own.md": ("scan.mib", "scan.hdr", "sites.csv"),
    "s3.md": ("scan.mib", "scan.hdr", "recipe.toml"),
    "workflows.md": (),
}
LEFT = ("scan.zarr", "sites.csv")
# Commands that are not run as they stand, and what is done instead.
WHEEL = "installed from a wheel, with the packages of the tests"
DIFFERENTLY = {
    "clusters.md": {
        "tdm run recipe.toml --out results --slurm --workers 8 --cores 8 --memory 16GiB --walltime 02:00:00": (
            "needs a cluster: its options were read"
        )
    },
    "hyperspy-and-notebooks.md": {'pip install ".[docs]"': WHEEL},
    "speed.md": {
        'pip install ".[bench]"': WHEEL,
        "python tests/benchmarks": "asked for its help: it takes 20 minutes",
    },
    "tests.md": {
        'pip install ".[test]"': WHEEL,
        "pytest": "is what runs this test",
        "pytest -m long": "is what runs this test",
        'pip install -e ".[test,dev]"': WHEEL,
        "ruff check .": "is of who changes the package: its check script runs it",
        "lint-imports": "is of who changes the package: its check script runs it",
        "mypy": "is of who changes the package: its check script runs it",
    },
    "the-page.md": {
        'pip install ".[view]"': WHEEL,
        "tdm view scan.zarr": "opened by its link and ended with Ctrl-C",
        "ssh -L 5006:127.0.0.1:5006 you@host": "needs another machine",
    },
    "workflows.md": {'pip install ".[simulation]"': WHEEL},
}


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_block_of_a_page_runs_as_it_stands(page, programs, own, tmp_path):
    given = {name: own[name] for name in BEGIN.get(page.name, LEFT)}
    expected = DIFFERENTLY.get(page.name, {})
    if page.name == "s3.md":
        with s3_server(tmp_path) as (variables, address):
            reader = Reader(tmp_path / "work", programs, given, variables, {"https://s3.example.org": address})
            reader.follow(page)
        expected = {"export AWS_ENDPOINT_URL=https://s3.example.org": address}
    else:
        reader = Reader(tmp_path / "work", programs, given)
        reader.follow(page)
    assert reader.differently == expected


def test_the_tunnel_leads_to_the_port_of_the_page():
    from tdm_dask.viewer.server import FIRST_PORT

    (tunnel,) = [block for block in blocks(ROOT / "docs" / "the-page.md") if "ssh" in block.text]
    assert f"-L {FIRST_PORT}:127.0.0.1:{FIRST_PORT} " in tunnel.text
