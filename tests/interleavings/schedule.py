"""Runs operations one step at a time, and chooses the steps: all orders, all with few pre-emptions, or random ones."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

Choose = Callable[[tuple[str, ...], str | None], str]
"""Given the operations that can go on, and the one that made the last step, returns the one to go on with."""

_OPERATION: ContextVar[str | None] = ContextVar("operation", default=None)
_MOST_STEPS = 2_000


def operation_name() -> str | None:
    """Return the operation that the running code belongs to; None outside of operations."""
    return _OPERATION.get()


class StuckError(Exception):
    """Operations wait for each other, or go on for ever."""


@dataclass(slots=True)
class Pause:
    """One coroutine that stands still."""

    operation: str
    point: str
    go_on: "asyncio.Future[None]"
    since: Hashable
    """How far the run had come when it began: one that waits for time goes on only once there is something new."""
    waits: bool


@dataclass
class Schedule:
    """
    One run of several operations.

    Attributes:
        choose: which operation makes the next step.
        trace: the steps that were made: operation and point.
        progress: tells how far the run has come, other after everything that a poll might wait for; None: any step counts.
        tasks: every asyncio task of the run, with the operation that it belongs to.
    """

    choose: Choose
    trace: list[tuple[str, str]] = field(default_factory=list)
    progress: Callable[[], Hashable] | None = None
    tasks: "dict[asyncio.Task[Any], str]" = field(default_factory=dict)
    _paused: dict[str, deque[Pause]] = field(default_factory=dict)
    _is_over: bool = False

    async def pause(self, point: str, *, waits: bool = False) -> None:
        """
        Stand still until chosen; outside of operations nothing stands still.

        Args:
            point: what comes next, as a word for the trace.
            waits: whether time has to pass: a poll, which is worth a step only after something happened.
        """
        operation = _OPERATION.get()
        if operation is None:
            return
        if self._is_over:
            raise asyncio.CancelledError
        go_on = asyncio.get_running_loop().create_future()
        pause = Pause(operation, point, go_on, self._place(), waits)
        self._paused.setdefault(operation, deque()).append(pause)
        await go_on

    async def run(self, operations: Mapping[str, Callable[[], Awaitable[object]]]) -> dict[str, object]:
        """
        Run operations to their ends, and the jobs that they leave behind; return what each returned or raised.

        Raises:
            StuckError: they cannot go on.
        """
        loop = asyncio.get_running_loop()
        loop.set_task_factory(cast("Any", self._new_task))  # by keyword it takes what any version of Python gives
        try:
            tasks = {name: asyncio.create_task(self._begin(name, work)) for name, work in operations.items()}
            last: str | None = None
            await _quiet()
            while self._paused:
                last = self._step(last)
                await _quiet()
            waiting = [name for name, task in tasks.items() if not task.done()]
            if waiting:
                raise StuckError(f"{', '.join(waiting)} cannot go on after {self.trace}")
        finally:
            loop.set_task_factory(None)
            await self._end()
        return {name: _outcome(task) for name, task in tasks.items()}

    async def _end(self) -> None:
        """Cancel what is left of a run that got stuck."""
        self._is_over = True
        left = [task for task in self.tasks if not task.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    @property
    def standing(self) -> list[tuple[str, str, bool]]:
        """Who stands still where, in the order in which each goes on, and whether it may go on yet."""
        place = self._place()
        return [
            (name, one.point, not one.waits or one.since != place)
            for name, paused in sorted(self._paused.items())
            for one in paused
        ]

    def _place(self) -> Hashable:
        return len(self.trace) if self.progress is None else self.progress()

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> "asyncio.Task[Any]":
        task = asyncio.Task(coroutine, loop=loop, **options)
        self.tasks[task] = operation_name() or ""
        return task

    async def _begin(self, name: str, work: Callable[[], Awaitable[object]]) -> object:
        _OPERATION.set(name)
        await self.pause("begin")
        return await work()

    def _step(self, last: str | None) -> str:
        if len(self.trace) > _MOST_STEPS:
            raise StuckError(f"no end after {_MOST_STEPS} steps; the last: {self.trace[-20:]}")
        place = self._place()
        able = tuple(
            name
            for name, paused in sorted(self._paused.items())
            if any(not one.waits or one.since != place for one in paused)
        )
        chosen = self.choose(able or tuple(sorted(self._paused)), last)
        paused = self._paused[chosen]
        pause = next((one for one in paused if not one.waits or one.since != place), paused[0])
        paused.remove(pause)
        if not paused:
            del self._paused[chosen]
        self.trace.append((chosen, pause.point))
        if not pause.go_on.done():
            pause.go_on.set_result(None)
        return chosen


def _outcome(task: "asyncio.Task[object]") -> object:
    error = task.exception()
    return task.result() if error is None else error


async def _quiet() -> None:
    """Wait until everything stands still: nothing is ready to run but this."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]  # the loop tells it in no other way
    while True:
        await asyncio.sleep(0)
        if not ready:
            return


# --- choosing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Decision:
    options: tuple[str, ...]
    state: Hashable = None
    taken: int = 0
    orders: int = 0
    """How many orders there are from here on, as far as they were made."""


class EveryOrder:
    """
    All orders, depth first; with a bound on pre-emptions, all that have no more of them.

    A pre-emption takes an operation's turn away although it could go on. Most faults need one or two (Musuvathi and
    Qadeer, "Iterative context bounding for systematic testing of multithreaded programs", 2007).

    When `state` says all that the rest of a run depends on, an order is not made to its end that comes to a state from
    which every order was made: what follows is known.

    Attributes:
        state: tells the state of the run that is under way; None: orders are told apart by their steps alone.
        orders: how many orders there are, each step taken for itself.
        runs: how many were made.
    """

    def __init__(self, *, preemptions: int | None = None) -> None:
        self._bound = preemptions
        self._decisions: list[_Decision] = []
        self._depth = 0
        self._spent = 0
        self._is_known = False
        self._states: dict[Hashable, int | None] = {}
        self.state: Callable[[], Hashable] | None = None
        self.orders = 0
        self.runs = 0

    @property
    def states(self) -> int:
        """How many different states were met in which there was a choice."""
        return len(self._states)

    def __iter__(self) -> Iterator[Choose]:
        """Give one way to choose after the other, until there is no other."""
        while True:
            self._depth = self._spent = 0
            self._is_known = False
            yield self._choose
            self.runs += 1
            if not self._is_known:
                self._count(1)
            while self._decisions and self._decisions[-1].taken + 1 == len(self._decisions[-1].options):
                done = self._decisions.pop()
                if self.state is not None:
                    self._states[done.state] = done.orders
                self._count(done.orders)
            if not self._decisions:
                return
            self._decisions[-1].taken += 1

    def _count(self, orders: int) -> None:
        if self._decisions:
            self._decisions[-1].orders += orders
        else:
            self.orders += orders

    def _choose(self, able: tuple[str, ...], last: str | None) -> str:
        options = able
        if last in able:
            others = tuple(name for name in able if name != last)
            options = (last, *others) if self._bound is None or self._spent < self._bound else (last,)
        if len(options) == 1 or self._is_known:
            return options[0]
        if self._depth == len(self._decisions) and not self._decide(options, last if last in able else None):
            return options[0]
        decision = self._decisions[self._depth]
        if decision.options != options:
            raise StuckError(f"not the same choice as before: {decision.options}, now {options}")
        self._depth += 1
        chosen = decision.options[decision.taken]
        self._spent += last in able and chosen != last
        return chosen

    def _decide(self, options: tuple[str, ...], last: str | None) -> bool:
        """Begin a decision; False where all that can follow was made."""
        state: Hashable = None
        if self.state is not None:
            # What is left of the bound, and whom a change takes the turn from, matter only where there is a bound.
            state = (self.state(), *(() if self._bound is None else (self._spent, last)))
            if state in self._states:
                self._is_known = True
                # None: the state that this order is on its way from. A poll that found nothing leads back to it.
                self._count(self._states[state] or 0)
                return False
            self._states[state] = None
        self._decisions.append(_Decision(options, state))
        return True


def seeded_orders(seed: int, count: int) -> Iterator[tuple[str, Choose]]:
    """Give random ways to choose, each with the name that it is repeated by."""
    for number in range(count):
        yield f"{seed}/{number}", seeded_order(f"{seed}/{number}")


def seeded_order(name: str) -> Choose:
    """Return the random way to choose of that name: in some runs operations are interrupted often, in others seldom."""
    rng = random.Random(name)
    patience = rng.choice((0.0, 0.3, 0.6, 0.9))

    def choose(able: tuple[str, ...], last: str | None) -> str:
        if last in able and rng.random() < patience:
            return last
        return rng.choice(able)

    return choose


def fixed_order(names: list[str]) -> Choose:
    """Return the way to choose that made this trace: for repeating one run."""
    following = iter(names)

    def choose(able: tuple[str, ...], _last: str | None) -> str:
        name = next(following, able[0])
        return name if name in able else able[0]

    return choose
