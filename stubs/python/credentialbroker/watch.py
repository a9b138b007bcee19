"""What both clients do with the messages of a stream, and when the next one is opened. No I/O, as in `entries`."""

import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc

from credentialbroker.authorization import Authorization
from credentialbroker.entries import Entries, Outbox
from credentialbroker.errors import BrokerError, Failure, failure_of_status
from credentialbroker.lifetimes import BACKOFF, STREAM_LIVED
from credentialbroker.v1 import credential_broker_pb2 as pb2

_LOG: Final = logging.getLogger("credentialbroker")


@dataclass(frozen=True, slots=True)
class State:
    """
    How a client is.

    Attributes:
        watching: whether its stream is up.
        held: how many authorizations it holds that may be used now.
        first_end_in: in how many seconds the first of them ends; None without any.
        last_error: the last failure of a call or of the stream; None while there was none.
    """

    watching: bool
    held: int
    first_end_in: float | None
    last_error: BrokerError | None


class Health:
    """
    Says once that the broker is away, and once that it is back.

    What is to be said is kept until `say`, which the client calls where it holds no lock: logging may take its time.

    Attributes:
        last_failure: of a call or of the stream.
    """

    def __init__(self, entries: Entries) -> None:
        self.last_failure: Failure | None = None
        self._entries: Final = entries
        self._away = False
        self._unsaid: Final[deque[tuple[int, str]]] = deque()

    def say(self) -> None:
        """Write to the log what there is to say."""
        while self._unsaid:
            try:
                level, text = self._unsaid.popleft()
            except IndexError:
                return  # another thread said it
            with contextlib.suppress(Exception):  # of a filter of the user's, say: it is not the client's trouble
                _LOG.log(level, "%s", text)

    def good(self) -> None:
        """Note that the broker answered, be it with a refusal."""
        if self._away:
            self._away = False
            self._unsaid.append((logging.INFO, "the broker is back"))

    def call_failed(self, failure: Failure, now: float) -> None:
        """Note the failure of a call."""
        if failure.code is grpc.StatusCode.CANCELLED:
            return
        if failure.is_late:
            self.last_failure = failure
        else:
            self.failed(failure, now, away=failure.code is grpc.StatusCode.UNAVAILABLE and not failure.reason_text)

    def failed(self, failure: Failure, now: float, *, away: bool) -> None:
        """Note a failure, and whether it means that the broker cannot be reached."""
        self.last_failure = failure
        if not away:
            self.good()
        elif not self._away:
            self._away = True
            held, first = self._entries.held(now)
            ends = "" if first is None else f", the first ends in {first:.0f} s"
            text = f"the broker is away ({failure.code.name}): {held} authorizations are held{ends}"
            self._unsaid.append((logging.WARNING, text))

    def state(self, now: float) -> State:
        """Return how the client is."""
        self._entries.sweep(now)
        held, first = self._entries.held(now)
        error = None if self.last_failure is None else BrokerError(self.last_failure)
        return State(self._entries.pushed, held, first, error)


class Watch:
    """
    The streams of a client: one at a time, but for an old one that comes to its end. Each goes by its outbox.

    Attributes:
        heard: when the last message came.
        succeeded: whether the next stream is opened without the end of the newest.
    """

    def __init__(self, entries: Entries, health: Health, chance: Callable[[], float] = random.random) -> None:
        self.heard = 0.0
        self.succeeded = False
        self._entries: Final = entries
        self._health: Final = health
        self._chance: Final = chance
        self._failures = 0
        self._opened = 0.0
        self._lives = False

    def opened(self, outbox: Outbox, now: float) -> None:
        """Begin a stream, with a subscription to each entry."""
        self.heard = self._opened = now
        self._lives = self.succeeded = False
        self._entries.outbox = outbox
        self._entries.sweep(now)
        for message in self._entries.subscriptions(now):
            outbox.put_nowait(message)

    def lives(self, now: float) -> None:
        """Note that the broker has accepted the stream."""
        self.heard = now
        self._lives = True
        self._health.good()
        self._entries.stream_is(up=True)

    def take(self, outbox: Outbox, message: pb2.WatchAuthorizationsResponse, now: float) -> float | None:
        """
        Do what a message says.

        A value on an older stream than the newest may be older than what came on its successor, but what it withdraws
        is withdrawn.

        Args:
            outbox: of the stream that it came on.
            message: from the broker.
            now: when it came.

        Returns:
            In how many seconds to open the next stream, where the broker is about to end this one and none is planned.
        """
        self._entries.sweep(now)
        newest = outbox is self._entries.outbox
        if newest:
            self.lives(now)
        if message.HasField("closing"):
            if not newest or self.succeeded:
                return None
            return self._wait(message.closing.retry_delay.ToNanoseconds() / 1e9, now)
        entry = self._entries.named(message.subscription_id)
        if entry is None:
            return None
        if message.HasField("withdrawal"):
            rejected = message.withdrawal.reason == pb2.WITHDRAWAL_REASON_CREDENTIAL_REJECTED
            self._entries.withdrawn(entry, rejected=rejected)
        elif message.HasField("authorization") and newest:
            self._entries.received(entry, Authorization(message.authorization, entry.key, now), now)
        elif message.HasField("error"):
            failure = failure_of_status(message.error.status)
            self._health.last_failure = failure
            if failure.refused:
                self._entries.withdrawn(entry)
        return None

    def ended(self, outbox: Outbox, failure: Failure | None, now: float) -> float | None:
        """
        Note that a stream has ended.

        Args:
            outbox: of the stream.
            failure: why; None where the broker ended it with OK.
            now: when.

        Returns:
            How many seconds to wait before the next, never none, whatever the end; None where the next is opened
            already, or planned.
        """
        if outbox is not self._entries.outbox:
            return None
        self._entries.outbox = None
        self._entries.stream_is(up=False)
        if failure is not None:
            self._health.failed(failure, now, away=not failure.reason_text)
        return None if self.succeeded else self._wait(failure.retry_delay if failure else None, now)

    def _wait(self, retry_delay: float | None, now: float) -> float:
        if self._lives and now - self._opened >= STREAM_LIVED:
            self._failures = 0
        wait = BACKOFF.wait(self._failures, self._chance(), retry_delay)
        self._failures += 1
        return wait
