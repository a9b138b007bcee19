"""How long things are kept and waited for. Pure: the time and the chance are arguments."""

from dataclasses import dataclass
from typing import Final

from credentialbroker.authorization import Authorization

TIMEOUT: Final = 10.0
"""Seconds that a unary call may take; the service config allows no more."""

STREAM_LIVED: Final = 5.0
"""A stream that lived so many seconds was a good one: the wait for the next starts from the beginning."""

LOOK_SECONDS: Final = 1.0
"""How often a client that does not watch looks what is idle, and what its open connections need."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    Waits that grow.

    Attributes:
        first: seconds after the first failure, before chance shortens it.
        most: seconds that no wait exceeds, unless the broker asks for more.
    """

    first: float = 0.2
    most: float = 10.0

    def wait(self, failures: int, chance: float, retry_delay: float | None = None) -> float:
        """
        Return how many seconds to wait.

        Args:
            failures: how many there were before this one, without a success in between.
            chance: from 0 to 1; the wait is a half to the whole of what it could be, so that not all come at once.
            retry_delay: how long the broker asks to wait at least.
        """
        whole = min(self.most, self.first * 2.0 ** min(failures, 32))
        return max(whole * (0.5 + 0.5 * chance), retry_delay or 0.0)


BACKOFF: Final = Backoff()


def due_at(authorization: Authorization, *, pushed: bool) -> float:
    """
    Return when to ask for the next value.

    Args:
        authorization: what is held.
        pushed: whether a stream is up, on which the broker sends the next value before `refresh_time`. Then the client
            leaves it until half-way to the end.
    """
    if not pushed:
        return min(authorization.refresh_at, authorization.ends_at)
    return min((authorization.refresh_at + authorization.ends_at) / 2, authorization.ends_at)
