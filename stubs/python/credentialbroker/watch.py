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
from credentialbroker.entries import Entries
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
        self._unsaid: Final[deque[str]] = deque()

    def say(self) -> None:
        """Write to the log what there is to say."""
        while self._unsaid:
            try:
                text = self._unsaid.popleft()
            except IndexError:
                return  # another thread said it
            with contextlib.suppress(Exception):  # of a filter of the user's, say: it is not the client's trouble
                _LOG.warning("%s", text)

    def good(self) -> None:
        """Note that the broker answered, be it with a refusal."""
        if self._away:
            self._away = False
            self._unsaid.append("the broker is back")

    def call_failed(self, failure: Failure, now: float) -> None:
        """Note the failure of a call."""
        if failure.code is grpc.StatusCode.CANCELLED:
            return
        # That a deadline passed says nothing: it may be somebody's own, and short.
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and not failure.reason_text:
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
            self._unsaid.append(f"the broker is away ({failure.code.name}): {held} authorizations are held{ends}")

    def state(self, now: float) -> State:
        """Return how the client is."""
        self._entries.sweep(now)
        held, first = self._entries.held(now)
        error = None if self.last_failure is None else BrokerError(self.last_failure)
        return State(self._entries.pushed, held, first, error)


class Watch:
    """
    The one stream of a client, through all its ends.

    Attributes:
        heard: when the last message came.
    """

    def __init__(self, entries: Entries, health: Health, chance: Callable[[], float] = random.random) -> None:
        self.heard = 0.0
        self._entries: Final = entries
        self._health: Final = health
        self._chance: Final = chance
        self._failures = 0
        self._opened = 0.0
        self._lives = False

    def opened(self, now: float) -> list[pb2.WatchAuthorizationsRequest]:
        """Begin a stream. Returns the messages to begin it with."""
        self.heard = self._opened = now
        self._lives = False
        self._entries.sweep(now)
        return self._entries.subscriptions(now)

    def lives(self, now: float) -> None:
        """Note that the broker has accepted the stream."""
        self.heard = now
        self._lives = True
        self._health.good()
        self._entries.stream_is(up=True)

    def take(self, message: pb2.WatchAuthorizationsResponse, now: float, *, newest: bool = True) -> float | None:
        """
        Do what a message says.

        Args:
            message: from the broker.
            now: when it came.
            newest: whether no other stream was opened since this one. A value of an older one may be older than what
                came on its successor, but what it withdraws is withdrawn.

        Returns:
            In how many seconds to open the next stream, where the broker is about to end this one.
        """
        self._entries.sweep(now)
        if newest:
            self.lives(now)
        if message.HasField("closing"):
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

    def ended(self, failure: Failure | None, now: float) -> float:
        """
        Note that the newest stream has ended.

        Args:
            failure: why; None where the broker ended it with OK.
            now: when.

        Returns:
            How many seconds to wait before the next: never none, whatever the end.
        """
        self._entries.stream_is(up=False)
        if failure is not None:
            self._health.failed(failure, now, away=not failure.reason_text)
        return self._wait(failure.retry_delay if failure else None, now)

    def _wait(self, retry_delay: float | None, now: float) -> float:
        if self._lives and now - self._opened >= STREAM_LIVED:
            self._failures = 0
        wait = BACKOFF.wait(self._failures, self._chance(), retry_delay)
        self._failures += 1
        return wait
