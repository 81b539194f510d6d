"""The command line."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import memory
from .cases import CASES, Case
from .data import SCALES, Data
from .memory import FORMATS
from .rounds import Outcome, run_case
from .tables import conditions, contestant_rows, figure_rows, report

ABOUT = """Measure the package's speed side by side with its peers and with the limits of the machine.

Everyone does the same jobs in one run, in turn, on the same cores, and the answers are compared. Who is not installed
is left out. LiberTEM comes with the extra "bench". py4DSTEM asks for an older NumPy than it needs:
    pip install emdfile ncempy mpire pylops colorspacious gdown scikit-learn scikit-optimize dill
    pip install --no-deps py4DSTEM
At full scale this takes about 25 minutes, 12 GB of disk and 12 GB of memory. Linux only.

With --scale small, data of some MB only show that the cases run: their times mean nothing.

With --memory, files of 17 GB are made instead, one for each format, and converted with two threads, some with two
processes as well: what is printed is the peak memory. That takes about an hour and 30 GB of disk."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print the tables; 1 where answers differ or a job of ours failed, else 0."""
    parser = argparse.ArgumentParser(
        "python tests/benchmarks", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--memory", nargs="*", choices=FORMATS, metavar="FORMAT", help=f"all, or of {', '.join(FORMATS)}"
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each contestant (default: 5)")
    parser.add_argument("--scale", choices=SCALES, default="full", help="size of the data (default: full)")
    parser.add_argument("--folder", type=Path, help="where the data are made and kept (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measured number there")
    options = parser.parse_args(arguments)
    about = conditions(
        shlex.join(["python", "tests/benchmarks", *(sys.argv[1:] if arguments is None else arguments)]),
        options.scale,
        options.runs,
    )
    with tempfile.TemporaryDirectory(prefix="tdm-benchmarks-") as temporary:
        folder = (options.folder or Path(temporary)) / options.scale
        if options.memory is not None:
            return _memory(options.memory or list(FORMATS), folder, options.scale, about, options.json)
        results = run_cases(options.only or list(CASES), folder, Path(temporary), options.scale, options.runs)
    print(report(about, results))
    if options.json is not None:
        numbers = about | {"figures": figure_rows(results, options.scale), "contestants": contestant_rows(results)}
        options.json.write_text(json.dumps(numbers, indent=1))
    failures = [sentence for case, outcome in results for sentence in _failures(case, outcome)]
    for sentence in failures:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return 1 if failures else 0


def _memory(names: Sequence[str], folder: Path, scale: str, about: dict[str, Any], json_file: Path | None) -> int:
    """Measure the peak memory of conversions and print the table; 1 where one of them failed, else 0."""
    console = Console(stderr=True, soft_wrap=True)
    found = memory.measure_all(names, folder, scale, lambda words: console.print(words, highlight=False))
    print(memory.report(about, found))
    if json_file is not None:
        json_file.write_text(json.dumps(about | {"conversions": memory.rows(found)}, indent=1))
    problems = [f"{m.name}: {m.problem}" for m in found if m.problem]
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def run_cases(
    names: Sequence[str], folder: Path, scratch: Path, scale: str, rounds: int
) -> list[tuple[Case, Outcome]]:
    """Run cases one after another, with a progress bar and a line for each on standard error."""
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, soft_wrap=True), transient=True) as progress:
        bar = progress.add_task("")

        def say(words: str) -> None:
            progress.update(bar, description=f"{name}: {words}")

        def step(words: str) -> None:
            say(words)
            progress.advance(bar)

        data = Data(folder, scale, say)
        for name in names:
            start = time.perf_counter()
            progress.reset(bar, total=None)
            case = CASES[name](data)
            progress.update(bar, total=len(case.contestants) * (rounds + 1))
            results.append((case, run_case(case, rounds, scratch / name, step)))
            progress.console.print(f"{name}: {time.perf_counter() - start:.0f} s", highlight=False)
    return results


def _failures(case: Case, outcome: Outcome) -> list[str]:
    must = {contestant.name for contestant in case.contestants if not contestant.may_fail}
    failed = [f"{name} did not do its job: {why}." for name, why in outcome.failed.items() if name in must]
    return [f"{case.name}: {sentence}" for sentence in failed + outcome.disagreements]
