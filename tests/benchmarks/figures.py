"""The figures that are wanted: how each is measured from the outcome of a case, and what it must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .rounds import Outcome


@dataclass(frozen=True)
class Figure:
    """One figure of a case, measured in every round.

    Parameters
    ----------
    what : str
        What is measured, in words.
    values : callable
        From an outcome to the figure of each round; KeyError where a contestant did not take part.
    bound : float
        What its median must reach.
    at_least : bool, default False
        Whether the bound is the least that is wanted; else the most.
    unit : str
        Printed after each value.
    """

    what: str
    values: Callable[[Outcome], list[float]]
    bound: float
    at_least: bool = False
    unit: str = ""

    @property
    def wanted(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.bound:g}{self.unit}"

    def measured(self, outcome: Outcome) -> list[float] | None:
        """The figure of each round, or None where a contestant did not take part."""
        try:
            return self.values(outcome)
        except KeyError:
            return None

    def met(self, values: list[float]) -> bool:
        middle = float(np.median(values))
        return middle >= self.bound if self.at_least else middle <= self.bound


def time_ratio(numerator: str, denominator: str) -> Callable[[Outcome], list[float]]:
    """Time of one contestant over that of another."""
    return lambda outcome: outcome.ratios(numerator, denominator)


def memory_ratio(numerator: str, denominator: str) -> Callable[[Outcome], list[float]]:
    """Peak memory of one contestant over that of another."""
    return lambda outcome: [
        a / b for a, b in zip(outcome.peaks(numerator), outcome.peaks(denominator), strict=True)
    ]


def time_ratio_of_fastest(numerators: list[str], denominator: str) -> Callable[[Outcome], list[float]]:
    """Time of the fastest of some contestants over that of another."""
    return lambda outcome: outcome.ratios(outcome.fastest(numerators), denominator)


def difference(first: str, second: str) -> Callable[[Outcome], list[float]]:
    """Time of one contestant less that of another, in seconds."""
    return lambda outcome: [a - b for a, b in zip(outcome.seconds(first), outcome.seconds(second), strict=True)]


def seconds(name: str) -> Callable[[Outcome], list[float]]:
    """Time of one contestant."""
    return lambda outcome: outcome.seconds(name)


def exponent_of_time(names: list[str]) -> Callable[[Outcome], list[float]]:
    """Exponent of time against size: the slope of a straight line through their logarithms."""

    def values(outcome: Outcome) -> list[float]:
        sizes = np.log([outcome.contestants[n].scan.nbytes for n in names])
        rounds = zip(*(outcome.seconds(n) for n in names), strict=True)
        return [float(np.polyfit(sizes, np.log(times), 1)[0]) for times in rounds]

    return values


def spread_of_memory(names: list[str]) -> Callable[[Outcome], list[float]]:
    """Largest over smallest peak memory of some contestants."""
    return lambda outcome: [max(peaks) / min(peaks) for peaks in zip(*map(outcome.peaks, names), strict=True)]
