"""Makes the runs: every order of a few operations, those with few pre-emptions of more, and random ones of all."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.interleavings.oracle import Oracle, outcome_word
from tests.interleavings.schedule import EveryOrder, StuckError, fixed_order, seeded_order
from tests.interleavings.world import FIVE, Arrangement, Stops, Template, World, make_template

_ARRANGEMENTS: Final = {"one": Arrangement.ONE, "apart": Arrangement.APART}
_SEEDED: Final = "seed "


@dataclass(frozen=True, slots=True)
class Plan:
    """Which operations meet, whose memory they share, and where they stand still."""

    operations: tuple[str, ...]
    arrangement: Arrangement
    stops: Stops
    preemptions: int | None = None
    """At most so many; None: every order."""

    def __str__(self) -> str:
        return f"{self.arrangement.name.lower()}/{self.stops}/{'+'.join(self.operations)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A run that ended wrongly: what is wrong, and what repeats it."""

    problem: str
    trace: tuple[tuple[str, str], ...]
    outcomes: dict[str, str]
    repeat: str

    def __str__(self) -> str:
        steps = "\n".join(f"    {name:<12} {point}" for name, point in self.trace)
        told = ", ".join(f"{name}: {word}" for name, word in self.outcomes.items())
        return f"{self.problem}\n{steps}\n  {told}\n  python -m tests.interleavings --repeat '{self.repeat}'"


@dataclass
class Tally:
    """What a plan came to."""

    plan: Plan
    orders: int = 0
    """Orders that were covered."""
    runs: int = 0
    states: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


async def _judge(template: Template, world: World, plan: Plan, tally: Tally, steps: str = "") -> None:
    """Make one run and note what is wrong with it; `steps` repeats it, else those that it made."""
    tally.runs += 1
    try:
        outcomes = await world.run(plan.operations)
        problems = await Oracle.violations(world)
    except StuckError as error:
        outcomes, problems = {}, [f"stuck: {error}"]
    words = {name: outcome_word(outcome) for name, outcome in outcomes.items()}
    tally.outcomes.update(f"{name.partition('-')[0]}: {word}" for name, word in words.items())
    if problems:
        trace = tuple(world.schedule.trace)
        steps = steps or ",".join(name for name, _ in trace)
        run = f"{template.profile}/{plan}/{steps}"
        tally.findings.append(Finding("; ".join(problems), trace, words, run))


async def explore(template: Template, plan: Plan) -> Tally:
    """Make every order of a plan, to the first that ends wrongly; equal states are gone on from once."""
    tally, began = Tally(plan), time.monotonic()
    orders = EveryOrder(preemptions=plan.preemptions)
    for choose in orders:
        world = World(template, choose, plan.arrangement, plan.stops)
        if plan.preemptions is None:
            # With a bound hardly two orders come to one state with as much left of it: looking would cost more.
            orders.state = world.state
        await _judge(template, world, plan, tally)
        if tally.findings:
            break
    tally.orders, tally.states = orders.orders, orders.states
    tally.seconds = time.monotonic() - began
    return tally


def seeded_plan(number: int) -> Plan:
    """Return what a numbered random schedule is of: all five, and in some following the store, or time that passes."""
    arrangement = Arrangement.ONE if number % 2 == 0 else Arrangement.APART
    more = {0: ("follow",), 4: ("lapse",), 7: ("lapse",)}.get(number % 10, ())
    return Plan((*FIVE, *more), arrangement, Stops.BOTH)


async def run_seeded(template: Template, seed: int, numbers: Sequence[int]) -> Tally:
    """Make random schedules of all five operations."""
    tally, began = Tally(Plan(FIVE, Arrangement.ONE, Stops.BOTH)), time.monotonic()
    for number in numbers:
        plan, name = seeded_plan(number), f"{seed}/{number}"
        world = World(template, seeded_order(name), plan.arrangement, plan.stops)
        await _judge(template, world, plan, tally, f"{_SEEDED}{name}")
    tally.orders, tally.seconds = tally.runs, time.monotonic() - began
    return tally


async def repeat(run: str) -> tuple[World, list[str]]:
    """Make one run again, as a finding names it; return it with what is wrong."""
    profile, arrangement, stops, operations, steps = run.split("/", maxsplit=4)
    choose = seeded_order(steps.removeprefix(_SEEDED)) if steps.startswith(_SEEDED) else fixed_order(steps.split(","))
    world = World(await make_template(profile), choose, _ARRANGEMENTS[arrangement], Stops(stops))
    await world.run(operations.split("+"))
    return world, await Oracle.violations(world)


# --- what there is to explore -----------------------------------------------------------------------------------------


def pairs(*, preemptions: int | None = None) -> Iterator[Plan]:
    """Every two of the five, two of the same too, and each beside a process that follows the store."""
    for operations in itertools.combinations_with_replacement(FIVE, 2):
        for arrangement, stops in itertools.product(Arrangement, (Stops.BEFORE, Stops.AFTER)):
            yield Plan(operations, arrangement, stops, preemptions)
    for operation in FIVE:
        for stops in (Stops.BEFORE, Stops.AFTER):
            yield Plan((operation, "follow"), Arrangement.ONE, stops, preemptions)


def lapses() -> Iterator[Plan]:
    """Every operation beside another of its kind, with time that passes in between: claims are taken over."""
    for operation in FIVE:
        if operation != "disable":
            for stops in (Stops.BEFORE, Stops.AFTER):
                yield Plan((operation, operation, "lapse"), Arrangement.APART, stops, 2)


def triples() -> Iterator[Plan]:
    """Every three of the five, with at most two pre-emptions."""
    for operations in itertools.combinations(FIVE, 3):
        for arrangement, stops in itertools.product(Arrangement, (Stops.BEFORE, Stops.AFTER)):
            yield Plan(operations, arrangement, stops, preemptions=2)
