"""A clock that stands still until a test sets it."""

import asyncio

from broker.clock import Clock


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
