"""What is printed: two Markdown tables, and what they were measured with; and the same as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from .cases import Case
from .rounds import TOLERANCE, Outcome

Results = list[tuple[Case, Outcome]]

LIBRARIES = (
    "tdm-dask", "numpy", "numba", "numcodecs", "zarr", "dask", "xarray", "libertem", "py4DSTEM", "hyperspy", "h5py",
)  # fmt: skip

NOTES = (
    "Seconds and ratios are minimum / median / maximum over the rounds; ratios are taken within each round. GB/s are "
    "of the uncompressed counts, of the whole scan where a proxy stands for it. GB read are those of read calls, from "
    "the disk or the page cache; raw files that are mapped (by LiberTEM and us) do not count there, but their pages do "
    "as memory. Peak memory is that above the imported libraries, and includes the counts where they are in memory."
)


def conditions(command: str, scale: str, rounds: int) -> dict[str, Any]:
    """Date, machine, versions, command."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name)) is not None},
        "command": command,
        "scale": scale,
        "rounds": rounds,
    }


def figure_rows(results: Results, scale: str) -> list[dict[str, Any]]:
    """One row for each wanted figure; on small data, which take no time worth speaking of, nothing is wanted."""
    rows = []
    for case, outcome in results:
        for figure in case.figures:
            values = figure.measured(outcome)
            rows.append(
                {
                    "case": case.name,
                    "job": case.job,
                    "figure": figure.what,
                    "wanted": figure.wanted if scale == "full" else "nothing: small data",
                    "unit": figure.unit,
                    "measured": values,
                    "met": None if values is None or scale != "full" else figure.met(values),
                }
            )
    return rows


def contestant_rows(results: Results) -> list[dict[str, Any]]:
    """One row for each contestant of each case."""
    rows = []
    for case, outcome in results:
        for name, runs in outcome.runs.items():
            contestant = outcome.contestants[name]
            rows.append(
                {
                    "case": case.name,
                    "contestant": name,
                    "cores": contestant.cores,
                    "counts_bytes": contestant.scan.nbytes,
                    "seconds": outcome.seconds(name),
                    "bytes_read": [run.bytes_read for run in runs],
                    "peak_bytes": outcome.peaks(name),
                    "ratio_to_ours": outcome.ratios(name, case.us) if case.us in outcome.runs else None,
                    "of_limit": outcome.ratios(case.limit, name) if case.limit in outcome.runs else None,
                }
            )
    return rows


def report(about: dict[str, Any], results: Results) -> str:
    """Everything as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in about["libraries"].items())
    parts = [
        f"{about['date']}, {about['processor']}, {about['cores']} cores, Python {about['python']}; {versions}. "
        f"`{about['command']}` ({about['scale']} scale, {about['rounds']} rounds)",
        table(
            ("case", "figure", "wanted", "measured", "met"),
            [
                (
                    f"{row['case']}: {row['job']}",
                    row["figure"],
                    row["wanted"],
                    "not measured" if row["measured"] is None else _spread(row["measured"]) + row["unit"],
                    {True: "yes", False: "**no**", None: ""}[row["met"]],
                )
                for row in figure_rows(results, about["scale"])
            ],
        ),
        table(
            ("case", "contestant", "cores", "seconds", "GB/s", "GB read", "peak MB", "time over ours", "of the limit"),
            [
                (
                    row["case"],
                    row["contestant"],
                    str(row["cores"]),
                    _spread(row["seconds"]),
                    f"{row['counts_bytes'] / median(row['seconds']) / 1e9:.2f}",
                    f"{median(row['bytes_read']) / 1e9:.2f}",
                    f"{max(row['peak_bytes']) / 1e6:.0f}",
                    "" if row["ratio_to_ours"] is None else _spread(row["ratio_to_ours"]),
                    "" if row["of_limit"] is None else f"{median(row['of_limit']):.0%}",
                )
                for row in contestant_rows(results)
            ],
        ),
        NOTES,
    ]
    absent = [f"{case.name}: {n} ({why})" for case, out in results for n, why in (out.left_out | out.failed).items()]
    if absent:
        parts.append("Left out: " + "; ".join(absent) + ".")
    differences = [f"{case.name}: {sentence}" for case, out in results for sentence in out.disagreements]
    agreed = f"The contestants' answers agree to {TOLERANCE:g} of the largest value."
    parts.append("**Answers differ.** " + " ".join(differences) if differences else agreed)
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in (min(values), median(values), max(values)))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
