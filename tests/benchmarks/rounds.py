"""A case is run in rounds: every contestant once in each, in turn, so that all of them meet the same machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np

from .contestant import Answer, Contestant
from .workers import Run, Worker, WorkerFailed

# Largest difference of two answers, as a part of the largest value: of products in float32, and of ours.
TOLERANCE = 1e-4

# The two calls that a case of new processes compares.
FIRST, SECOND = "tdm_dask, first call in a process", "tdm_dask, second call"

Step = Callable[[str], None]


class Plan(Protocol):
    """What has to be known of a case to run it."""

    name: str
    contestants: list[Contestant]
    new_processes: bool


@dataclass
class Outcome:
    """What came out of a case.

    Attributes
    ----------
    contestants : dict of str to Contestant
    runs : dict of str to list of Run
        By contestant; the same place in two lists is the same round.
    left_out, failed : dict of str to str
        Contestants that could not take part here, and those that did not do their job; and why.
    disagreements : list of str
        Answers that are not the same.
    """

    contestants: dict[str, Contestant] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)

    def seconds(self, name: str) -> list[float]:
        return [run.seconds for run in self.runs[name]]

    def peaks(self, name: str) -> list[int]:
        return [run.peak_bytes for run in self.runs[name]]

    def ratios(self, numerator: str, denominator: str) -> list[float]:
        """Times of one contestant over those of another, round by round."""
        pairs = zip(self.seconds(numerator), self.seconds(denominator), strict=True)
        return [a / b for a, b in pairs]

    def fastest(self, names: Iterable[str]) -> str:
        """The contestant of the smallest median time, of those that took part."""
        took_part = [n for n in names if n in self.runs]
        if not took_part:
            raise KeyError(*names)
        return min(took_part, key=lambda n: median(self.seconds(n)))


def run_case(case: Plan, rounds: int, folder: Path, step: Step) -> Outcome:
    """Run a case.

    Parameters
    ----------
    case : Case
    rounds : int
        Timed runs of each contestant, after one that is not timed.
    folder : path
        For answers and for what libraries print.
    step : callable
        Told what runs next: `rounds` + 1 times for each contestant.
    """
    outcome = Outcome()
    folder.mkdir(parents=True, exist_ok=True)
    logs = {c.name: folder / f"{n}.log" for n, c in enumerate(case.contestants)}
    for contestant in case.contestants:
        reason = _not_here(contestant)
        if reason is not None:
            outcome.left_out[contestant.name] = reason
        else:
            outcome.contestants[contestant.name] = contestant
    run = _run_in_new_processes if case.new_processes else _run_in_turn
    run(outcome, logs, rounds, step)
    return outcome


def _not_here(contestant: Contestant) -> str | None:
    if importlib.util.find_spec(contestant.library) is None:
        return f"{contestant.library} is not installed"
    if len(os.sched_getaffinity(0)) < contestant.cores:
        return f"there are fewer than {contestant.cores} cores"
    return None


def _run_in_turn(outcome: Outcome, logs: dict[str, Path], rounds: int, step: Step) -> None:
    workers: dict[str, Worker] = {}
    answers: list[tuple[Contestant, Answer]] = []
    with ExitStack() as stack:
        for name, contestant in list(outcome.contestants.items()):
            step(f"{name}, warming up")
            saved = logs[name].with_suffix(".npz")
            with _failing(name, outcome):
                worker = stack.enter_context(closing(Worker(contestant, logs[name])))
                worker.run(saved)
                with np.load(saved) as file:
                    answers.append((contestant, dict(file)))
                saved.unlink()
                workers[name], outcome.runs[name] = worker, []
        outcome.disagreements = compare(answers)
        del answers
        for _ in range(rounds):
            for name, worker in workers.items():
                if name not in outcome.failed:
                    step(name)
                    with _failing(name, outcome):
                        outcome.runs[name].append(worker.run())


def _run_in_new_processes(outcome: Outcome, logs: dict[str, Path], rounds: int, step: Step) -> None:
    """The first and the second call in a process, new in every round; the round that is not timed compiles."""
    ((name, contestant),) = outcome.contestants.items()
    outcome.contestants = dict.fromkeys((FIRST, SECOND), contestant)
    outcome.runs = {FIRST: [], SECOND: []}
    for number in range(rounds + 1):
        step("a new process")
        with _failing(name, outcome), closing(Worker(contestant, logs[name])) as worker:
            first, second = worker.run(), worker.run()
            if number > 0:
                outcome.runs[FIRST].append(first)
                outcome.runs[SECOND].append(second)
    if outcome.failed:
        outcome.runs.clear()


@contextmanager
def _failing(name: str, outcome: Outcome) -> Iterator[None]:
    """A contestant that fails takes no further part, and leaves no numbers."""
    try:
        yield
    except WorkerFailed as failure:
        outcome.failed[name] = str(failure)
        outcome.runs.pop(name, None)


def compare(answers: Sequence[tuple[Contestant, Answer]]) -> list[str]:
    """A sentence for each answer that differs from that of the first contestant with a scan of the same shape."""
    sentences = []
    first: dict[tuple[int, ...], tuple[str, Answer]] = {}
    for contestant, answer in answers:
        name, expected = first.setdefault(contestant.scan.shape, (contestant.name, answer))
        for key in sorted(answer.keys() & expected.keys()):
            a, b = expected[key].astype(np.float64), answer[key].astype(np.float64)
            difference = np.abs(a - b).max() / np.abs(a).max() if a.shape == b.shape else np.inf
            if not difference <= TOLERANCE:
                who = f"{key} of {contestant.name} differs from that of {name}"
                sentences.append(f"{who} by {difference:.1e} of the largest value.")
    return sentences
