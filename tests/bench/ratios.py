"""
What windows of measurement amount to: paired ratios, their median with an interval, and when they mean nothing. Pure.

The machines this runs on change speed by a factor of two within seconds, so no absolute time means anything. Windows of
the servers under comparison therefore come in rounds, one window of each in random order, and only windows of the same
round are compared.
"""

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

AA_LOW: Final = 0.95
AA_HIGH: Final = 1.05
"""A run is void when two servers that are the same seem to differ by more than this."""
RESAMPLES: Final = 4000
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Window:
    """What a server did in one window: how many calls, for how many nanoseconds of its CPU."""

    calls: int
    cpu_ns: int

    @property
    def ns_per_call(self) -> float:
        """CPU of a call; raises ZeroDivisionError for a window without calls, which measures nothing."""
        return self.cpu_ns / self.calls


Round = dict[str, Window]
"""One window of each server, by its name."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and the interval that holds it with the confidence `CONFIDENCE`."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """
    How much a server costs beside another.

    Attributes:
        ratio: CPU per call of the baseline over that of the product: 1 is as cheap, below 1 dearer.
        control: the same of the baseline over its twin; what it differs from 1 by is noise.
        beside: the ratio of other servers' CPU per call to the product's, which does not decide anything.
        medians_us: the median CPU per call of each server, in microseconds. Only for orientation: it depends on how
            fast the machine happened to be.
    """

    ratio: Estimate
    control: Estimate
    beside: dict[str, Estimate]
    medians_us: dict[str, float]

    @property
    def void(self) -> bool:
        """Whether the noise was so large that the ratio means nothing."""
        return not AA_LOW <= self.control.median <= AA_HIGH


def orders(names: Sequence[str], rounds: int, chance: random.Random) -> Iterator[list[str]]:
    """Yield the order of the windows of each round, shuffled, so that no server always comes after the same one."""
    for _ in range(rounds):
        yield chance.sample(list(names), len(names))


def paired_ratios(rounds: Sequence[Round], numerator: str, denominator: str) -> list[float]:
    """Return, for each round, the CPU per call of one server over that of another."""
    return [one[numerator].ns_per_call / one[denominator].ns_per_call for one in rounds]


def estimate(values: Sequence[float], chance: random.Random) -> Estimate:
    """
    Return the median of values and its percentile bootstrap interval.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("nothing was measured")
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Estimate(statistics.median(values), medians[tail], medians[-1 - tail])


def compare(
    rounds: Sequence[Round],
    *,
    product: str,
    baseline: str,
    twin: str,
    chance: random.Random,
    beside: Sequence[str] = (),
) -> Comparison:
    """Compare a product with a baseline and with others, and the baseline with its twin."""
    return Comparison(
        ratio=estimate(paired_ratios(rounds, baseline, product), chance),
        control=estimate(paired_ratios(rounds, baseline, twin), chance),
        beside={name: estimate(paired_ratios(rounds, name, product), chance) for name in beside},
        medians_us={
            name: statistics.median(one[name].ns_per_call for one in rounds) / 1000
            for name in (product, baseline, twin, *beside)
        },
    )
