"""
What a client holds, and what is to be done for a use of it: the heart of both clients.

It does no I/O and knows no thread, task or clock. The time is an argument, and whoever uses it from several threads
holds one lock meanwhile.

Only `Entry.fresh` may be read without the lock: it is replaced as a whole.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from credentialbroker.authorization import Authorization, Key
from credentialbroker.errors import Failure
from credentialbroker.lifetimes import BACKOFF, due_at
from credentialbroker.origins import Origin
from credentialbroker.v1 import credential_broker_pb2 as pb2

MAX_ORIGINS: Final = 8
MAX_SUBSCRIPTIONS: Final = 1000
"""What a stream holds at most."""
_NEVER: Final = float("-inf")
_SWEEP_SECONDS: Final = 0.5


class Outbox(Protocol):
    """What is still to be sent on a stream, a queue of either runtime; None ends the sending."""

    def put_nowait(self, message: pb2.WatchAuthorizationsRequest | None, /) -> None:
        """Send a message after those before it."""


@dataclass(slots=True, eq=False)
class Use:
    """
    A connection that is open with the headers of an entry.

    Attributes:
        connection_tag: of the headers that it was authenticated with.
        on_change: called once, under the lock, when they must not be used any longer.
    """

    connection_tag: str
    on_change: Callable[[], None]


@dataclass(slots=True, eq=False)
class Entry:
    """
    What is held for one key.

    Attributes:
        key: what it is for.
        name: of its subscription.
        fresh: what may be given without a look at anything else, and until when. One tuple, so that a reader without
            the lock never sees a value with another's time.
        held: the value; None after a withdrawal.
        used: when it was last asked for.
        version: counts what replaced or withdrew the value: an answer to a call that began before is not newer.
        revoked: counts the withdrawals for anything else than a rejection, which a report outlives.
        rejected: the revision that the answer to a report replaced, until it comes again.
        watched: whether it is subscribed.
        refreshing: whether a refresh is under way.
        failures: how many refreshes have failed since the value came.
        retry_at: when a refresh that failed may be tried again.
        origins: those that the broker has allowed, the oldest first.
        connections: those that are open.
    """

    key: Key
    name: str
    fresh: tuple[Authorization | None, float] = (None, _NEVER)
    held: Authorization | None = None
    used: float = _NEVER
    version: int = 0
    revoked: int = 0
    rejected: str | None = None
    watched: bool = False
    refreshing: bool = False
    failures: int = 0
    retry_at: float = _NEVER
    origins: list[Origin] = field(default_factory=list)
    connections: list[Use] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Asked:
    """
    One question to the broker, remembered until its answer.

    Attributes:
        key: what is asked for.
        entry: what was held under it when it was asked.
        version: of the entry then.
        revoked: of the entry then.
    """

    key: Key
    entry: Entry | None
    version: int
    revoked: int


class Entries:
    """
    All that a client holds.

    Attributes:
        by_key: the entries.
        outbox: of the newest stream, which is told what to watch; None without one.
        pushed: whether that stream is up, on which the broker sends new values.
    """

    def __init__(
        self,
        *,
        size: int,
        idle_seconds: float,
        watched: bool,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """
        Hold nothing yet.

        Args:
            size: how many to keep at most.
            idle_seconds: after how long without a use one goes.
            watched: whether entries are subscribed.
            chance: a number from 0 to 1.
        """
        self.by_key: Final[dict[tuple[str, str, str], Entry]] = {}
        self.outbox: Outbox | None = None
        self.pushed = False
        self._size: Final = size
        self._idle: Final = idle_seconds
        self._watched: Final = watched
        self._chance: Final = chance
        self._by_name: Final[dict[str, Entry]] = {}
        self._names: Final = itertools.count(1)
        self._swept = _NEVER

    # --- uses ---------------------------------------------------------------------------------------------------------

    def current(self, key: tuple[str, str, str], now: float) -> Authorization | None:
        """Return what may be given without a look at anything else. Of all that is here only this needs no lock."""
        entry = self.by_key.get(key)
        if entry is None:
            return None
        held, until = entry.fresh
        if now >= until:
            return None
        entry.used = now
        return held

    def look(
        self, key: Key, now: float, min_validity: float = 0.0, origin: Origin | None = None
    ) -> tuple[Authorization | None, bool]:
        """
        Return what is held and fits, and whether a refresh must be begun now.

        None means that the broker is to be asked.
        """
        entry = self.by_key.get(key)
        if entry is None:
            return None, False
        entry.used = now
        held = entry.held
        if held is None or now >= held.ends_at:
            return None, False
        if held.ends_at - now < min_validity or (origin is not None and origin not in entry.origins):
            return None, False
        self._freshen(entry)
        if now < entry.fresh[1] or entry.refreshing:
            return held, False
        entry.refreshing = True
        self._freshen(entry)
        return held, True

    def asked(self, key: Key) -> Asked:
        """Remember how things stand before a question is sent."""
        entry = self.by_key.get(key)
        return Asked(key, entry, entry.version, entry.revoked) if entry else Asked(key, None, 0, 0)

    def answered(
        self, asked: Asked, answer: Authorization, now: float, min_validity: float = 0.0, origin: Origin | None = None
    ) -> Authorization | None:
        """
        Keep an answer, unless something newer overtook it.

        Returns:
            What to give to those who wait for it: the answer, or what came meanwhile on the stream. None where the
            value was withdrawn meanwhile, so that the answer may be the one that was meant: ask again.
        """
        entry = self.by_key.get(asked.key)
        if entry is not asked.entry and asked.entry is not None and asked.entry.version != asked.version:
            return None  # it was withdrawn, say, and then dropped
        if entry is not None and entry.version != asked.version and (entry is asked.entry or entry.version > 1):
            entry.refreshing = False
            self._freshen(entry)
            held = entry.held
            return held if held is not None and held.ends_at > now and held.ends_at - now >= min_validity else None
        if entry is None:
            entry = self._add(asked.key, now)
        self._replace(entry, answer, now)
        if origin is not None and origin not in entry.origins:
            entry.origins = [*entry.origins, origin][-MAX_ORIGINS:]
        return answer

    def replaced(self, asked: Asked, rejected: str, answer: Authorization, now: float) -> None:
        """
        Keep the answer to a report of a revision: whatever was asked for before it is older.

        But not where something else than the rejection withdrew the value meanwhile: then the next use asks.
        """
        if asked.entry is None or asked.entry.revoked == asked.revoked:
            entry = self.by_key.get(asked.key) or self._add(asked.key, now)
            entry.rejected = rejected
            self._replace(entry, answer, now)

    def refused(self, asked: Asked) -> None:
        """Drop what is held: the broker gives it no more. The next use asks, and learns why."""
        entry = self.by_key.get(asked.key)
        if entry is not None and entry is asked.entry:
            self.drop(entry)

    def refresh_failed(self, asked: Asked, failure: Failure, now: float) -> None:
        """Note that a refresh brought nothing, but may another time: what is held stays until its end."""
        entry = self.by_key.get(asked.key)
        if entry is None or entry is not asked.entry:
            return
        entry.refreshing = False
        entry.retry_at = now + BACKOFF.wait(entry.failures, self._chance(), failure.retry_delay)
        entry.failures += 1
        self._freshen(entry)

    # --- the stream ---------------------------------------------------------------------------------------------------

    def subscriptions(self, now: float) -> list[pb2.WatchAuthorizationsRequest]:
        """Return what a new stream begins with: as many entries as it holds."""
        for number, entry in enumerate(self.by_key.values()):
            entry.watched = number < MAX_SUBSCRIPTIONS
        return [_subscribe(entry, now) for entry in self.by_key.values() if entry.watched]

    def named(self, name: str) -> Entry | None:
        """Return the entry of a subscription; None for one that was dropped."""
        return self._by_name.get(name)

    def received(self, entry: Entry, value: Authorization, now: float) -> None:
        """Take over what the broker sent, or drop an entry that nobody uses any more."""
        if not entry.connections and now - entry.used > self._idle:
            self.drop(entry)
        else:
            self._replace(entry, value, now)

    def withdrawn(self, entry: Entry, *, rejected: bool = False) -> None:
        """
        Forget the value at once. The entry stays subscribed, so that the next value comes.

        Args:
            entry: whose value.
            rejected: whether it is because the backend rejected it, which is mended.
        """
        entry.held = None
        entry.version += 1
        entry.revoked += not rejected
        entry.origins = []
        self._freshen(entry)
        self._change(entry, None)

    def task_ended(self, identity: str, thread: str) -> None:
        """Forget what is held of a thread whose task this client ended, in every scope."""
        for entry in self.by_key.values():
            if (entry.key.identity, entry.key.thread) == (identity, thread):
                self.withdrawn(entry)

    def stream_is(self, *, up: bool) -> None:
        """Note that the broker sends new values from now on, or does not."""
        if self.pushed != up:
            self.pushed = up
            for entry in self.by_key.values():
                self._freshen(entry)

    def look_at_all_again(self) -> None:
        """Let the next use of each entry be one that looks, as after a fork, which leaves the stream to the parent."""
        self.outbox, self.pushed = None, False
        for entry in self.by_key.values():
            entry.refreshing = False
            entry.fresh = None, _NEVER

    # --- connections --------------------------------------------------------------------------------------------------

    def connect(self, authorization: Authorization, use: Use) -> None:
        """Tell a connection when the headers that it was opened with must not be used any longer."""
        entry = self.by_key.get(authorization.key)
        if entry is None or entry.held is None or entry.held.connection_tag != use.connection_tag:
            use.on_change()
        else:
            entry.connections.append(use)

    def disconnect(self, key: Key, use: Use, now: float) -> None:
        """Forget a connection, which used its entry until now."""
        entry = self.by_key.get(key)
        if entry is not None and use in entry.connections:
            entry.connections.remove(use)
            entry.used = now

    def connected_and_due(self, now: float) -> list[Key]:
        """Return what open connections use and nobody else asks for: a refresh of each must be begun now."""
        due = [
            entry
            for entry in self.by_key.values()
            if entry.connections and not entry.refreshing and now >= max(entry.fresh[1], entry.retry_at)
        ]
        for entry in due:
            entry.refreshing = True
            self._freshen(entry)
        return [entry.key for entry in due]

    # --- the whole ----------------------------------------------------------------------------------------------------

    def drop(self, entry: Entry) -> None:
        """Forget an entry and end its subscription."""
        del self.by_key[entry.key]
        del self._by_name[entry.name]
        entry.held = None
        self._freshen(entry)
        self._change(entry, None)
        if entry.watched:
            self._announce(pb2.WatchAuthorizationsRequest(unsubscribe=pb2.Unsubscribe(subscription_id=entry.name)))

    def sweep(self, now: float) -> None:
        """Drop what nobody used for long and for which no value comes any more, once in a while."""
        if now - self._swept < _SWEEP_SECONDS:
            return
        self._swept = now
        for entry in list(self.by_key.values()):
            due = entry.held is None or now >= due_at(entry.held, pushed=False)
            # With a stream the next value comes before this one is due, and finds out by itself.
            coming = entry.held is not None and self.pushed and entry.watched
            if due and not coming and not entry.connections and now - entry.used > self._idle:
                self.drop(entry)

    def clear(self) -> None:
        """Forget everything, at the end of the client."""
        for entry in list(self.by_key.values()):
            self.drop(entry)

    def held(self, now: float) -> tuple[int, float | None]:
        """Return how many values may be used now, and in how many seconds the first of them ends."""
        ends = [held.ends_at - now for held in self._values() if now < held.ends_at]
        return len(ends), min(ends, default=None)

    def _announce(self, message: pb2.WatchAuthorizationsRequest) -> None:
        if self.outbox is not None:
            self.outbox.put_nowait(message)

    def _values(self) -> Iterator[Authorization]:
        return (held for entry in list(self.by_key.values()) if (held := entry.held) is not None)

    def _add(self, key: Key, now: float) -> Entry:
        self.sweep(now)
        while len(self.by_key) >= self._size:
            idle = [entry for entry in self.by_key.values() if not entry.connections]
            self.drop(min(idle or self.by_key.values(), key=lambda entry: entry.used))
        entry = self.by_key[key] = Entry(key, str(next(self._names)), used=now)
        self._by_name[entry.name] = entry
        return entry

    def _replace(self, entry: Entry, value: Authorization, now: float) -> None:
        new = entry.version == 0
        if entry.held is not None and entry.held.connection_tag != value.connection_tag:
            entry.origins = []
        if value.revision == entry.rejected:
            entry.rejected = None
        entry.held = value
        entry.version += 1
        entry.refreshing = False
        entry.failures = 0
        entry.retry_at = _NEVER
        if new and self._watched and sum(one.watched for one in self.by_key.values()) < MAX_SUBSCRIPTIONS:
            entry.watched = True
            self._announce(_subscribe(entry, now))
        self._freshen(entry)
        self._change(entry, value.connection_tag)

    def _freshen(self, entry: Entry) -> None:
        held = entry.held
        if held is None:
            entry.fresh = None, _NEVER
        elif entry.refreshing:
            entry.fresh = held, held.ends_at
        else:
            entry.fresh = (
                held,
                min(held.ends_at, max(due_at(held, pushed=self.pushed and entry.watched), entry.retry_at)),
            )

    @staticmethod
    def _change(entry: Entry, connection_tag: str | None) -> None:
        over = [use for use in entry.connections if use.connection_tag != connection_tag]
        entry.connections = [use for use in entry.connections if use not in over]
        for use in over:
            use.on_change()


def _subscribe(entry: Entry, now: float) -> pb2.WatchAuthorizationsRequest:
    known = entry.held.revision if entry.held is not None and now < entry.held.refresh_at else ""
    subscribe = pb2.Subscribe(
        subscription_id=entry.name,
        scope=entry.key.scope,
        thread_id=entry.key.thread,
        identity=entry.key.identity,
        known_revision=known,
    )
    return pb2.WatchAuthorizationsRequest(subscribe=subscribe)
