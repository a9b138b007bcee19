"""Clocks that a test sets: one that stands still, one that jumps, one that goes step by step."""

import asyncio
import heapq
import itertools

from broker.clock import Clock, SystemClock


class SetClock(Clock):
    """
    Wall and monotonic time as they were last set; waits return at once, after others had their turn.

    Attributes:
        wall: what `now` returns.
        steady: what `monotonic` returns.
        slept: what was waited for.
    """

    def __init__(self, wall: float, steady: float = 1000.0) -> None:
        self.wall = wall
        self.steady = steady
        self.slept: list[float] = []

    def pass_(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.wall += seconds
        self.steady += seconds

    def now(self) -> float:
        """Return the wall time that was set."""
        return self.wall

    def monotonic(self) -> float:
        """Return the monotonic time that was set."""
        return self.steady

    async def sleep(self, seconds: float) -> None:
        """Remember the wait; others get their turn."""
        self.slept.append(seconds)
        await asyncio.sleep(0)


class WallClock(SystemClock):
    """
    The machine's clock, whose wall time can be moved; monotonic time and waiting stay the machine's.

    Leases, tombstones and the ends of credentials go by the wall clock.
    """

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        """Return the machine's wall clock plus how far this one is ahead."""
        return super().now() + self.ahead


class JumpingClock(Clock):
    """
    The machine's clock, which a test moves forward; waits take as long as they take.

    Attributes:
        ahead: seconds by which both times are ahead of the machine's.
    """

    def __init__(self) -> None:
        self._real = SystemClock()
        self.ahead = 0.0

    def now(self) -> float:
        """Return the wall clock, moved forward."""
        return self._real.now() + self.ahead

    def monotonic(self) -> float:
        """Return the monotonic clock, moved forward."""
        return self._real.monotonic() + self.ahead

    async def sleep(self, seconds: float) -> None:
        """Wait on the machine's clock."""
        await self._real.sleep(seconds)


class SteppedClock(Clock):
    """
    A clock whose waits end when the test lets that much time pass, each at its own moment.

    Attributes:
        wall: what `now` returns.
        steady: what `monotonic` returns.
    """

    def __init__(self, wall: float, steady: float = 1000.0) -> None:
        self.wall = wall
        self.steady = steady
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        """Return the wall time."""
        return self.wall

    def monotonic(self) -> float:
        """Return the monotonic time."""
        return self.steady

    async def sleep(self, seconds: float) -> None:
        """Wait until so much time has passed."""
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.steady + max(0.0, seconds), next(self._numbers), woken))
        await woken

    async def pass_(self, seconds: float) -> None:
        """Let time pass; whoever wakes on the way does what it does at that moment."""
        end = self.steady + seconds
        await _others()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            self._go_to(at)
            if not woken.done():
                woken.set_result(None)
                await _others()
        self._go_to(end)
        await _others()

    def _go_to(self, steady: float) -> None:
        self.wall += steady - self.steady
        self.steady = steady


async def _others() -> None:
    """Give everybody several turns, for one who wakes another who wakes another."""
    for _ in range(10):
        await asyncio.sleep(0)
