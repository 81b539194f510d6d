"""The command `tdm`. What a command needs is imported inside it, so that `tdm --help` is quick."""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .errors import InputError
from .session import STOPPED, WRONG, complain, run
from .words import Output

if TYPE_CHECKING:
    from .cluster.progress import Stage

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Shape(click.ParamType):
    """Two whole numbers such as 256x256."""

    name = "NYxNX"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().replace("×", "x").split("x")
        if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
            self.fail(f'"{value}" is not two whole numbers such as 256x256.', param, ctx)
        return int(parts[0]), int(parts[1])

    def written(self, value: tuple[int, int]) -> str:
        """The option's text for a value."""
        return "x".join(map(str, value))


class Frame(click.ParamType):
    """The number of a scan in a stack, or "all"."""

    name = "N|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        if isinstance(value, int) or value == "all":
            return value
        if not str(value).isdigit():
            self.fail(f'"{value}" is no number of a scan; expected 0, 1, ... or all.', param, ctx)
        return int(value)


class Pair(click.ParamType):
    """A quantity, or one for y and one for x with a comma between."""

    name = "TEXT"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        parts = [part.strip() for part in str(value).split(",")]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def written(self, value: Any) -> str:
        """The option's text for a value."""
        return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Place(click.ParamType):
    """A path, or the address of a store, such as s3://bucket/scan.zarr."""

    name = "PATH"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | Path:
        return value if "://" in str(value) else Path(value)


Command = Callable[..., Any]


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


common = _options(
    click.option("--json", "as_json", is_flag=True, help="Print JSON for machines, and no progress bar."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
computing = _options(
    click.option(
        *("--scheduler", "address"),
        metavar="ADDRESS",
        help="Compute on a running dask cluster: address or scheduler file.",
    ),
    click.option(
        "--workers", type=int, metavar="N", help="Compute on N worker processes of this machine; with --slurm, jobs."
    ),
    click.option("--memory", metavar="SIZE", help='Memory limit of each worker, such as "4GiB".'),
    click.option("--cores", type=int, metavar="C", help="Threads of each worker. [default: 1; of a job 4]"),
    click.option("--slurm", is_flag=True, help="Compute on workers that are jobs of SLURM."),
    click.option("--partition", help="Of the jobs."),
    click.option("--account", help="That the jobs are charged to."),
    click.option("--walltime", metavar="TIME", help="Of each job, such as 02:00:00; one that ends is replaced."),
    click.option("--interface", metavar="NAME", help="Network by which the jobs reach this machine, such as ib0."),
    click.option("--adaptive", is_flag=True, help="Let jobs go while there is too little work for all of them."),
    click.option("--wait", metavar="TIME", help="How long the first job may take to start. [default: 1 h]"),
    common,
)
# What of a command's options is about how it runs, not about what it does.
SESSION = (
    "as_json",
    "debug",
    "address",
    "workers",
    "memory",
    "cores",
    "slurm",
    "partition",
    "account",
    "walltime",
    "interface",
    "adaptive",
    "wait",
)
layout = _options(
    click.option("--scan-shape", type=Shape(), help="Probe positions, where the file does not know them."),
    click.option(
        "--frame", type=Frame(), help="Which scan of a file that holds several, from 0; all: each into its own store."
    ),
    click.option("--detector-shape", type=Shape(), help="Detector pixels of a raw binary file."),
    click.option("--dtype", help='Type of a pixel of a raw binary file, such as "uint16" or ">u2".'),
    click.option("--offset", type=int, default=0, help="Bytes before the first frame of a raw binary file."),
    click.option("--gap", type=int, default=0, help="Bytes between the frames of a raw binary file."),
    click.option("--flyback", type=int, default=0, metavar="N", help="Frames at the end of each line to leave out."),
    click.option(
        "--skip-first", type=int, metavar="N", help="Frames before the scan to leave out; those after it, too."
    ),
    click.option(
        "--allow-partial", is_flag=True, help="Take a scan that was interrupted; what is missing is marked as such."
    ),
    click.option(
        "--detector-first/--scan-first",
        default=None,
        help="Whether an array is (ky, kx, y, x) or (y, x, ky, kx), where the file does not say it.",
    ),
    click.option(
        "--format", metavar="FILE|NAME", help="What opens the file: a format of your own (my_format.py) or one by name."
    ),
)
calibration = _options(
    click.option("--scan-step", type=Pair(), help='Between probe positions, such as "0.32 Å"; "y, x" if they differ.'),
    click.option("--pixel-size", type=Pair(), help='Of the detector, such as "1.2 mrad"; "ky, kx" if they differ.'),
)
notebook_option = click.option(
    "--notebook", is_flag=True, help="Write the report as a Jupyter notebook too, whose cells draw its figures again."
)
local = click.Path(path_type=Path)
LOGS = "slurm-logs"  # folder for the output of jobs, in that of the results


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(package_name="tdm-dask", message="tdm_dask %(version)s")
@click.pass_context
def tdm(context: click.Context) -> None:
    """Template-derived masks for 4D-STEM: images of one kind of atom column at a time.

    Exit codes: 0 done; 1 failed while working, what was finished is kept; 2 the request or the input is
    wrong; 130 stopped by Ctrl-C, what was finished is kept.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        code = tdm.main(args=arguments, prog_name="tdm", standalone_mode=False)
    except click.Abort:
        code = complain("Stopped.", STOPPED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "tdm"
        found = error.format_message().replace(". Did you mean", ", did you mean").rstrip(".?")
        code = complain(f"{found}; see {command} --help.", WRONG)
    if code == STOPPED and arguments is None:
        # Threads still in a kernel, and event loops cut short, would hold up or spoil an orderly end.
        sys.stderr.flush()
        _end_children()
        os._exit(STOPPED)
    sys.exit(code if isinstance(code, int) else 0)


def _end_children() -> None:
    """End worker processes that are still starting, and what else multiprocessing would complain of afterwards."""
    if "multiprocessing.util" not in sys.modules:
        return
    import multiprocessing.util

    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]


@tdm.command()
@click.option(
    "--out", type=Place(), default=Path("tdm-demo"), show_default=True, help="Folder or s3:// address for the results."
)
@click.option("--overwrite", is_flag=True, help="Replace results of another recipe in that folder.")
@notebook_option
@computing
def demo(out: str | Path, overwrite: bool, notebook: bool, **session: Any) -> int:
    """Run the whole job on the sample that ships with the package.

    A Merlin file of LiFePO4 [001] is converted and calibrated; ABF and ADF images, masks and images of every
    kind of column, what the data say about their sites, and a report are made.
    """
    with importlib.resources.as_file(importlib.resources.files("tdm_dask").joinpath("data")) as data:
        recipe = data / "demo.toml"
        return run(lambda stage: _run_recipe(recipe, out, overwrite, notebook, stage), logs=_logs(out), **session)


@tdm.command("run")
@click.argument("recipe", type=local)
@click.option("--out", type=Place(), help="Folder or s3:// address for the results. [default: RECIPE-results, here]")
@click.option("--overwrite", is_flag=True, help="Replace results of another recipe in that folder.")
@notebook_option
@click.option("--dry-run", is_flag=True, help="Say what it will read, need and take, as tdm plan does.")
@computing
def run_command(
    recipe: Path, out: str | Path | None, overwrite: bool, notebook: bool, dry_run: bool, **session: Any
) -> int:
    """Run a whole analysis from one readable file: a zarr store of results, figures and a report that stands
    alone.

    Stages that an earlier run of the same recipe finished are taken up.
    """
    folder = Path(f"{recipe.stem}-results") if out is None else out
    if dry_run:
        return run(lambda stage: _plan_recipe(recipe, folder, overwrite, stage), **session)
    return run(lambda stage: _run_recipe(recipe, folder, overwrite, notebook, stage), logs=_logs(folder), **session)


@tdm.command("plan")
@click.argument("recipe", type=local)
@click.option("--out", type=Place(), help="Folder or s3:// address for the results. [default: RECIPE-results, here]")
@click.option("--overwrite", is_flag=True, help="Plan to replace results of another recipe there.")
@computing
def plan_command(recipe: Path, out: str | Path | None, overwrite: bool, **session: Any) -> int:
    """Say what a recipe will read, need and take on these workers, before anything runs.

    What converts, correlates and makes images is tried for a few seconds on a part of the scan; other stages, such as
    evidence, are named. A run that cannot fit is refused, with what would.
    """
    folder = Path(f"{recipe.stem}-results") if out is None else out
    return run(lambda stage: _plan_recipe(recipe, folder, overwrite, stage), **session)


def _logs(out: str | Path) -> Path | None:
    """Where the output of jobs goes for results in a folder; None where they go elsewhere."""
    return out / LOGS if isinstance(out, Path) else None


def _plan_recipe(recipe: Path, out: str | Path, overwrite: bool, stage: Stage) -> Output:
    from .recipe.plan import plan_recipe

    plan = plan_recipe(recipe, out, overwrite=overwrite, stage=stage)
    plan.check()
    return Output(plan.text(), plan.data())


def _run_recipe(recipe: Path, out: str | Path, overwrite: bool, notebook: bool, stage: Stage) -> Output:
    from .recipe.plan import plan_recipe
    from .recipe.run import run_recipe

    if notebook:  # what is missing is said now, not after hours
        from .report.notebook import check_notebook

        check_notebook()
    plan = plan_recipe(recipe, out, overwrite=overwrite, stage=stage)
    plan.check()
    result = run_recipe(recipe, out, overwrite=overwrite, stage=stage)
    from .report.writing import write_report
    from .shards.objects import path_in

    with stage("report"):
        report = write_report(result, plan, notebook=notebook)
    lines = [
        f"Report:   {report.page}",
        f"Figures:  {path_in(result.out, 'figures')} ({len(report.figures)} PNG)",
        f"Counts:   {result.store}",
        f"Results:  {result.results}",
    ]
    data = {
        "report": report.page,
        "figures": report.figures,
        "store": result.store,
        "results": result.results,
        "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
        "plan": plan.data(),
    }
    if report.notebook is not None:
        lines.append(f"Notebook: {report.notebook}")
        data["notebook"] = report.notebook
    if report.table is not None:
        lines.append(f"Table:    {report.table}")
        data["table"] = report.table
        data["excess"] = {
            str(name): round(float(value), 4)
            for name, value in zip(result.evaluation["image"].values, result.evaluation["excess"].values, strict=True)
        }
    return Output("\n".join(lines), data)


@tdm.command()
@click.argument("path", type=Place())
@layout
@common
def info(path: str | Path, **options: Any) -> int:
    """Say what is in a vendor file or a store: shape, axes, checks, and the command to convert it."""
    from .report.description import describe

    session = {key: options.pop(key) for key in ("as_json", "debug")}
    return run(lambda stage: describe(path, options), **session)


@tdm.command()
@click.argument("source", type=Place())
@click.argument("store", type=Place())
@layout
@calibration
@click.option(
    "--compression",
    type=click.Choice(["lz4", "zstd", "none"]),
    default="lz4",
    show_default=True,
    help="lz4 is fastest; zstd takes less room, and less time on slow disks; none takes most room and is not faster.",
)
@click.option(
    "--resume",
    "start",
    flag_value="resume",
    default="resume",
    help="Go on with a conversion that stopped, as is done without this option.",
)
@click.option("--overwrite", "start", flag_value="overwrite", help="Replace what is in STORE.")
@computing
def convert(source: str | Path, store: str | Path, start: str, **options: Any) -> int:
    """Convert a vendor file to a store.

    A conversion that was stopped is taken up where it was when the same command runs again.
    """
    session = {key: options.pop(key) for key in SESSION}

    def work(stage: Stage) -> Output:
        import tdm_dask

        from .conversion.conversion import stack_stores
        from .report.description import describe

        nbytes = source.stat().st_size if isinstance(source, Path) and source.is_file() else None
        keywords = options | {"overwrite": start == "overwrite"}
        if options["frame"] == "all":
            with stage("convert", nbytes):
                written = tdm_dask.convert_stack(source, store, **keywords | {"frame": None})
            shape = " × ".join(map(str, written[0].shape))
            paths = stack_stores(store, len(written))
            return Output("\n".join(f"{path}: {shape} {written[0].dtype}" for path in paths), {"stores": paths})
        with stage("convert", nbytes):
            tdm_dask.convert(source, store, **keywords)
        return describe(store, {})

    return run(work, **session)


@tdm.command()
@click.argument("store", type=Place())
@computing
def verify(store: str | Path, **session: Any) -> int:
    """Check a store: every shard present, readable, its checksum right."""

    def work(stage: Stage) -> Output:
        import tdm_dask

        with stage("verify"):
            report = tdm_dask.verify(store)
        from .words import bytes_text

        size = bytes_text(report.bytes_stored)
        shards = f"{report.shards} {'shard' if report.shards == 1 else 'shards'}"
        text = f"{store} is whole: {shards}, {size}, every checksum right."
        return Output(text, {"store": store, **dataclasses.asdict(report)})

    return run(work, **session)


@tdm.command()
@click.argument("store", type=Place())
@click.option("--semi-angle", help='Convergence semi-angle, the radius of the bright-field disk: "23.5 mrad".')
@calibration
@click.option("--energy", help='Beam energy, such as "200 keV".')
@click.option("--rotation", help='Of the scan against the detector, such as "12 deg".')
@click.option(
    "--centre", type=float, nargs=2, metavar="KY KX", help="Of the bright-field disk, in pixels, if it is not found."
)
@computing
def calibrate(store: str | Path, **options: Any) -> int:
    """Find the bright-field disk in a store's mean pattern, and write the calibrated axes into the store."""
    session = {key: options.pop(key) for key in SESSION}

    def work(stage: Stage) -> Output:
        import tdm_dask

        from .reading.store import stored_statistics, write_calibration
        from .report.description import describe

        known = {key: value for key, value in options.items() if value is not None}
        with stage("calibrate"):
            counts, statistics = tdm_dask.open(store), stored_statistics(store)
            if statistics is not None:  # gathered by the conversion, so that the counts need not be read again
                known["pacbed"] = statistics["pattern_mean"].values
            calibrated = tdm_dask.calibrate(counts, **known)
            write_calibration(store, calibrated)
        return describe(store, {})

    return run(work, **session)


@tdm.command()
@click.argument("store", type=Place())
@click.option("--clear", is_flag=True, help="Remove the descan that the store has.")
@computing
def descan(store: str | Path, clear: bool, **session: Any) -> int:
    """Measure how the bright-field disk wanders over the scan, and write the shifts into the store.

    From then on, all that reads the store moves each pattern by whole pixels; the counts are not changed.
    """

    def work(stage: Stage) -> Output:
        import tdm_dask

        from .reading.store import clear_descan, write_calibration
        from .report.description import describe

        if clear:
            clear_descan(store)
        else:
            with stage("descan"):
                write_calibration(store, tdm_dask.descan(tdm_dask.open(store)))
        return describe(store, {})

    return run(work, **session)


@tdm.command()
@click.argument("store", type=Place())
@click.option("--detector", required=True, help="bf, bf:10, abf:11:23.5, adf:30:60, haadf:70:150, ... in mrad.")
@click.option("--out", type=Place(), required=True, help="File to write: .png, .tif, .npy or .zarr.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@computing
def image(store: str | Path, detector: str, out: str | Path, overwrite: bool, **session: Any) -> int:
    """Make a virtual image: the counts of a detector at every probe position."""

    def work(stage: Stage) -> Output:
        import tdm_dask

        from .detector.conventional_masks import parse_detector
        from .report.image_file import check_image_path, write_image

        file = check_image_path(out, overwrite)
        counts = tdm_dask.open(store)
        mask = parse_detector(detector, counts)
        with stage(detector, counts.nbytes):
            made = tdm_dask.apply_mask(counts, mask).compute()
        write_image(made, file, title=detector)
        shape = " × ".join(str(size) for size in made.shape)
        return Output(f"{out}: {shape}, {detector}", {"out": out, "shape": made.shape, "detector": detector})

    return run(work, **session)


@tdm.command("view")
@click.argument("store", type=Place())
@click.option("--port", type=int, metavar="N", help="Port of the page. [default: the first that is free from 5006 on]")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Host through which the page may be used besides this machine, as of a JupyterHub; may be repeated.",
)
@click.option("--bin", type=int, metavar="N", help="Sum N × N detector pixels for the page. [default: what fits]")
@click.option("--proxy-memory", metavar="SIZE", help='Memory that the page may take for its counts, such as "2GiB".')
@click.option("--recipe", type=local, help="A recipe to begin with, such as one that the page has saved.")
@click.option("--out", type=Place(), help="Folder for what the page makes. [default: STORE-view, here]")
@click.option("--open/--no-open", "browser", default=None, help="Open a browser. [default: where it would be seen]")
@computing
def view_command(store: str | Path, browser: bool | None, out: str | Path | None, **options: Any) -> int:
    """Open a page in the browser: choose columns, see their masks and images, save the recipe.

    It is served on this machine alone, to whoever has the link that is printed, until Ctrl-C. From elsewhere it is
    reached through ssh -L or, with --origin, through jupyter-server-proxy.
    """
    session = {key: options.pop(key) for key in SESSION}
    folder = Path(f"{Path(str(store).rstrip('/')).stem}-view") if out is None else out

    def work(stage: Stage) -> Output:
        missing = [name for name in ("panel", "bokeh", "tomli_w") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"tdm view needs the package {missing[0].replace('_', '-')}, which is not here; install it with pip "
                'install "tdm-dask[view]".'
            )
        from .viewer.opening import view_store
        from .viewer.server import has_display

        seen = has_display(os.environ, sys.platform) if browser is None else browser
        view_store(store, out=folder, browser=seen, stage=stage, **options)
        return Output("The page is closed.")

    return run(work, logs=_logs(folder), **session)
