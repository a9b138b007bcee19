"""
Explores the orders in which operations meet, and prints what it came to: `python -m tests.interleavings`.

Without an option: every order of each two operations, of each two of a kind with time that passes, of each three with
at most two pre-emptions, and 10,000 random ones of all five. The exit code is 1 when a run ended wrongly.
"""

import argparse
import asyncio
import functools
import itertools
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

from broker.telemetry import configure_logging
from tests.interleavings.explore import Plan, Tally, explore, lapses, pairs, repeat, run_seeded, triples
from tests.interleavings.oracle import outcome_word
from tests.interleavings.world import PROFILES, Template, make_template

_SEEDED_AT_ONCE: Final = 250
_MOST_SHOWN: Final = 3


@functools.cache
def _template(profile: str = PROFILES[0]) -> Template:
    configure_logging("critical", "json")  # what is wrong is found by the oracle; a repeated run shows its log
    return asyncio.run(make_template(profile))


def _explored(plan: Plan) -> Tally:
    return asyncio.run(explore(_template(), plan))


def _seeded(profile: str, seed: int, numbers: range) -> Tally:
    return asyncio.run(run_seeded(_template(profile), seed, numbers))


def _repeated(run: str) -> int:
    configure_logging("debug", "console")
    world, problems = asyncio.run(repeat(run))
    for name, point in world.schedule.trace:
        print(f"{name:<12} {point}")
    for name, outcome in world.outcomes.items():
        print(f"{name}: {outcome_word(outcome)}")
    for problem in problems:
        print(f"WRONG {problem}")
    return bool(problems)


def _row(what: str, tally: Tally) -> str:
    return f"{what:<58} {tally.orders:>12,} {tally.runs:>9,} {tally.states:>9,} {tally.seconds:>7.1f}"


def _sum(what: str, tallies: Iterable[Tally]) -> str:
    listed = list(tallies)
    orders, runs, states = (sum(getattr(one, name) for one in listed) for name in ("orders", "runs", "states"))
    return f"{what:<58} {orders:>12,} {runs:>9,} {states:>9,} {sum(one.seconds for one in listed):>7.1f}"


def _explored_all(pool: ProcessPoolExecutor, title: str, plans: Iterator[Plan]) -> list[Tally]:
    print(f"\n{title:<58} {'orders':>12} {'runs':>9} {'states':>9} {'seconds':>7}", flush=True)
    tallies = []
    for done in as_completed([pool.submit(_explored, plan) for plan in plans]):
        tallies.append(done.result())
        print(_row(str(tallies[-1].plan), tallies[-1]), flush=True)
    print(_sum(f"{len(tallies)} in all", tallies), flush=True)
    return tallies


def _seeded_all(pool: ProcessPoolExecutor, seed: int, count: int) -> list[Tally]:
    chunks = [range(first, min(first + _SEEDED_AT_ONCE, count)) for first in range(0, count, _SEEDED_AT_ONCE)]
    begun = [
        pool.submit(_seeded, profile, seed, chunk)
        for profile, chunk in zip(itertools.cycle(PROFILES), chunks, strict=False)
    ]
    tallies = [done.result() for done in as_completed(begun)]
    print(f"\n{_sum(f'random orders of all five, seed {seed}', tallies)}", flush=True)
    return tallies


def main() -> int:
    """Explore what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.interleavings", description=__doc__.splitlines()[1])
    parser.add_argument("--pairs", action="store_true", help="every order of each two operations")
    parser.add_argument("--lapses", action="store_true", help="each two of a kind, with time that passes in between")
    parser.add_argument("--triples", action="store_true", help="each three, with at most two pre-emptions")
    parser.add_argument("--seeded", type=int, default=0, metavar="N", help="random orders of all five")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--repeat", metavar="RUN", help="make one run again, as a finding names it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that explore")
    options = parser.parse_args()
    if options.repeat:
        return _repeated(options.repeat)
    everything = not (options.pairs or options.lapses or options.triples or options.seeded)
    began = time.monotonic()
    tallies: list[Tally] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        if options.pairs or everything:
            tallies += _explored_all(pool, "two operations, every order", pairs())
        if options.lapses or everything:
            tallies += _explored_all(pool, "two of a kind and time that passes, two pre-emptions", lapses())
        if options.triples or everything:
            tallies += _explored_all(pool, "three operations, two pre-emptions", triples())
        if options.seeded or everything:
            tallies += _seeded_all(pool, options.seed, options.seeded or 10_000)
    findings = [finding for tally in tallies for finding in tally.findings]
    print(f"\n{_sum('in all', tallies)}\n{time.monotonic() - began:.0f} s, {len(findings)} ended wrongly")
    for finding in findings[:_MOST_SHOWN]:
        print(f"\nWRONG {finding}")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
