"""Clocks for tests of what happens later."""

from broker.clock import SystemClock


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
