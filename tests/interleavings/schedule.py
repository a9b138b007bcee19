"""Runs operations one step at a time, and chooses the steps: all orders, all with few pre-emptions, or random ones."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

Choose = Callable[[tuple[str, ...], str | None], str]
"""Given the operations that can go on, and the one that made the last step, returns the one to go on with."""

_OPERATION: ContextVar[str | None] = ContextVar("operation", default=None)
_MOST_STEPS = 2_000


class StuckError(Exception):
    """Operations wait for each other, or go on for ever."""


@dataclass(slots=True)
class _Pause:
    operation: str
    point: str
    go_on: "asyncio.Future[None]"
    since: int
    """How many steps had been made when it began: one that waits for time goes on only after others did something."""
    waits: bool


@dataclass
class Schedule:
    """
    One run of several operations.

    Attributes:
        choose: which operation makes the next step.
        trace: the steps that were made: operation and point.
    """

    choose: Choose
    trace: list[tuple[str, str]] = field(default_factory=list)
    _paused: dict[str, deque[_Pause]] = field(default_factory=dict)

    async def pause(self, point: str, *, waits: bool = False) -> None:
        """
        Stand still until chosen; outside of operations nothing stands still.

        Args:
            point: what comes next, as a word for the trace.
            waits: whether time has to pass: a poll, which is worth a step only after somebody else made one.
        """
        operation = _OPERATION.get()
        if operation is None:
            return
        go_on = asyncio.get_running_loop().create_future()
        pause = _Pause(operation, point, go_on, len(self.trace), waits)
        self._paused.setdefault(operation, deque()).append(pause)
        await go_on

    async def run(self, operations: Mapping[str, Callable[[], Awaitable[object]]]) -> dict[str, object]:
        """
        Run operations to their ends, and the jobs that they leave behind; return what each returned or raised.

        Raises:
            StuckError: they cannot go on.
        """
        tasks = {name: asyncio.create_task(self._begin(name, work)) for name, work in operations.items()}
        last: str | None = None
        await _quiet()
        while self._paused:
            last = self._step(last)
            await _quiet()
        waiting = [name for name, task in tasks.items() if not task.done()]
        if waiting:
            for task in tasks.values():
                task.cancel()
            raise StuckError(f"{', '.join(waiting)} cannot go on after {self.trace}")
        return {name: _outcome(task) for name, task in tasks.items()}

    async def _begin(self, name: str, work: Callable[[], Awaitable[object]]) -> object:
        _OPERATION.set(name)
        await self.pause("begin")
        return await work()

    def _step(self, last: str | None) -> str:
        if len(self.trace) > _MOST_STEPS:
            raise StuckError(f"no end after {_MOST_STEPS} steps; the last: {self.trace[-20:]}")
        made = len(self.trace)
        able = tuple(
            name
            for name, paused in sorted(self._paused.items())
            if any(not one.waits or one.since < made for one in paused)
        )
        chosen = self.choose(able or tuple(sorted(self._paused)), last)
        paused = self._paused[chosen]
        pause = next((one for one in paused if not one.waits or one.since < made), paused[0])
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
    taken: int = 0


class EveryOrder:
    """
    All orders, depth first; with a bound on pre-emptions, all that have no more of them.

    A pre-emption takes an operation's turn away although it could go on. Most faults need one or two (Musuvathi and
    Qadeer, "Iterative context bounding for systematic testing of multithreaded programs", 2007).
    """

    def __init__(self, *, preemptions: int | None = None) -> None:
        self._bound = preemptions
        self._decisions: list[_Decision] = []
        self._depth = 0
        self._spent = 0

    def __iter__(self) -> Iterator[Choose]:
        """Give one way to choose after the other, until there is no other."""
        while True:
            self._depth = self._spent = 0
            yield self._choose
            del self._decisions[self._depth :]
            while self._decisions and self._decisions[-1].taken + 1 == len(self._decisions[-1].options):
                self._decisions.pop()
            if not self._decisions:
                return
            self._decisions[-1].taken += 1

    def _choose(self, able: tuple[str, ...], last: str | None) -> str:
        if self._depth == len(self._decisions):
            options = able
            if last in able:
                others = tuple(name for name in able if name != last)
                options = (last, *others) if self._bound is None or self._spent < self._bound else (last,)
            self._decisions.append(_Decision(options))
        decision = self._decisions[self._depth]
        self._depth += 1
        chosen = decision.options[decision.taken]
        self._spent += last in able and chosen != last
        return chosen


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
