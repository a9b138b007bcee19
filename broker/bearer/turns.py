"""
Turns at one issuer: how many exchanges may begin within a second, and who is next.

Whoever needs a token now goes before whoever refreshes ahead. A library's limiter (aiolimiter) knows neither that nor
the broker's clock, and lets twice its rate through in the second after a pause; docs/adr/0018 has the comparison.
"""

import asyncio
from collections import OrderedDict, deque

from broker.clock import Clock


class Turn:
    """A place in the line of an issuer; it has come when its future is done."""

    __slots__ = ("come",)

    def __init__(self) -> None:
        self.come: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_come(self) -> bool:
        """Whether the exchange may begin, or never will."""
        return self.come.done()


class Turns:
    """
    At most so many turns begin within any second: after a pause the first ones all at once, then evenly.

    Args:
        rate: turns a second; below 1, one turn in `1 / rate` seconds.
        clock: times them.
    """

    def __init__(self, rate: float, clock: Clock) -> None:
        count = max(1, int(rate))
        self._period = count / rate
        self._step = 1 / rate
        self._clock = clock
        # When the last ones began; the oldest of a full row says when the next may.
        self._begun: deque[float] = deque(maxlen=count)
        self._urgent: OrderedDict[Turn, None] = OrderedDict()
        self._ahead: OrderedDict[Turn, None] = OrderedDict()
        self._usher: asyncio.Task[None] | None = None
        self._is_closed = False

    def ask(self, *, urgent: bool) -> Turn:
        """Return a turn, which has come already when one is free and nobody waits."""
        turn = Turn()
        if self._is_closed:
            turn.come.cancel()
            return turn
        if self._usher is None and self._wait() <= 0:
            self._admit(turn)
            return turn
        (self._urgent if urgent else self._ahead)[turn] = None
        if self._usher is None:
            self._usher = asyncio.create_task(self._admit_all(), name="hand-out-turns")
        return turn

    def hurry(self, turn: Turn) -> None:
        """Put a turn that was asked for ahead of need behind the urgent ones, as somebody now waits for it."""
        if turn in self._ahead:
            del self._ahead[turn]
            self._urgent[turn] = None

    def leave(self, turn: Turn) -> None:
        """Give up a place in the line."""
        self._ahead.pop(turn, None)
        self._urgent.pop(turn, None)
        if self._usher is not None and not (self._urgent or self._ahead):
            self._usher.cancel()
            self._usher = None

    async def close(self) -> None:
        """Let nobody in any more; whoever waits, or asks yet, is cancelled."""
        self._is_closed = True
        for turn in (*self._urgent, *self._ahead):
            turn.come.cancel()
            self.leave(turn)

    async def _admit_all(self) -> None:
        while self._urgent or self._ahead:
            # What stands in line is let in step by step, so that an issuer sees no waves.
            wait = max(self._wait(), self._begun[-1] + self._step - self._clock.monotonic())
            if wait > 0:
                await self._clock.sleep(wait)
                continue
            turn, _ = (self._urgent or self._ahead).popitem(last=False)
            if not turn.has_come:  # else whoever waited was cut off in this moment
                self._admit(turn)
        self._usher = None

    def _admit(self, turn: Turn) -> None:
        self._begun.append(self._clock.monotonic())
        turn.come.set_result(None)

    def _wait(self) -> float:
        """Return the seconds until a turn may begin without there being too many within a second."""
        if len(self._begun) < (self._begun.maxlen or 0):
            return 0.0
        return self._begun[0] + self._period - self._clock.monotonic()
