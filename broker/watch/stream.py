"""One stream: its subscriptions, which of them have something new, and how it ends."""

import asyncio
from collections import OrderedDict, deque
from typing import Final, Protocol

from broker import errors
from broker.authorization import Asking, AuthorizationRequest
from broker.clock import Clock
from broker.errors import BrokerError
from broker.watch.topics import Closing, Event, Failed, Heartbeat, Subscription, Topic

MOST_SUBSCRIPTIONS: Final = 1000
"""How many subscriptions one stream may have."""

_REOPENING_MARGIN_SECONDS: Final = 1.0
_MOST_REFUSALS: Final = 64


class Hub(Protocol):
    """What a stream needs of the hub that keeps it."""

    @property
    def clock(self) -> Clock:
        """What everything is timed by."""
        ...

    def topic(self, call: Asking, request: AuthorizationRequest) -> Topic:
        """Return the topic of a request."""
        ...

    def join(self, subscription: Subscription, known_revision: str) -> None:
        """Take in a subscription."""
        ...

    def leave(self, subscription: Subscription, *, keep: bool) -> None:
        """Free a subscription."""
        ...

    def next_for(self, subscription: Subscription) -> Event | None:
        """Return what a subscription is to be sent now."""
        ...

    def renew_before(self, subscription: Subscription, seconds: float) -> None:
        """Replace a value now if that is due within so many seconds."""
        ...

    def forget(self, stream: "WatchStream") -> None:
        """Free a stream, whose subscriptions have left."""
        ...


class WatchStream:
    """
    One stream: its subscriptions, and which of them have something new.

    The sender calls `take` until it returns None, then waits for `ready`; around each write it says `begin_write` and
    `end_write`. Whatever is wrong with the stream as a whole is raised by `take`.
    """

    def __init__(self, hub: Hub, call: Asking, *, now: float, end_time: float) -> None:
        self.call = call
        self.end_time = end_time
        """When it is ended, on the monotonic clock."""
        self._hub = hub
        self._subscriptions: dict[str, Subscription] = {}
        self._new: OrderedDict[Subscription, None] = OrderedDict()
        self._refusals: deque[Failed] = deque()
        self._failure: BrokerError | None = None
        self._retry_delay: float | None = None
        self._sent_time = now
        self._heartbeat_due = False
        self._write_begun: float | None = None
        self._something = asyncio.Event()
        self._room = asyncio.Event()

    # --- changes ------------------------------------------------------------------------------------------------------

    def subscribe(
        self, subscription_id: str, name_bytes: bytes, request: AuthorizationRequest, known_revision: str
    ) -> None:
        """
        Begin a subscription; its first value, or why there is none, comes as an event.

        Args:
            subscription_id: the caller's name for it.
            name_bytes: kept with it for the edge.
            request: what for, checked in form.
            known_revision: of a value that the caller holds, empty when it holds none.

        Raises:
            FieldInvalidError: the name is in use.
            WatchLimitError: there are as many subscriptions as there may be.
        """
        if self._failure is not None:
            return
        if subscription_id in self._subscriptions:
            raise errors.FieldInvalidError(violations={"subscription_id": "is in use on this stream"})
        if len(self._subscriptions) >= MOST_SUBSCRIPTIONS:
            raise errors.WatchLimitError(metadata={"limit": str(MOST_SUBSCRIPTIONS)})
        topic = self._hub.topic(self.call, request)
        subscription = Subscription(subscription_id, self, topic, name_bytes)
        self._subscriptions[subscription_id] = subscription
        self._hub.join(subscription, known_revision)

    def unsubscribe(self, subscription_id: str) -> None:
        """End a subscription; nothing is sent for it from here on. One that there is not is ignored."""
        subscription = self._subscriptions.pop(subscription_id, None)
        if subscription is not None:
            self._new.pop(subscription, None)
            self._hub.leave(subscription, keep=False)

    async def refuse(self, subscription_id: str, error: BrokerError) -> None:
        """Answer a change that cannot be made; wait while too many such answers have not been sent."""
        while len(self._refusals) >= _MOST_REFUSALS:
            self._room.clear()
            await self._room.wait()
        self._refusals.append(Failed(subscription_id, error, None))
        self._something.set()

    def fail(self, error: BrokerError) -> None:
        """Let `take` raise this: the stream cannot go on."""
        self._failure = error
        self._something.set()

    # --- sending ------------------------------------------------------------------------------------------------------

    def take(self) -> Event | None:
        """
        Return what is to be sent next; None when there is nothing for now.

        Raises:
            BrokerError: the stream ends with this.
        """
        # First, so that what comes from here on is not missed by `ready`.
        self._something.clear()
        if self._failure is not None:
            raise self._failure
        if self._refusals:
            self._room.set()
            return self._refusals.popleft()
        while self._new:
            subscription = next(iter(self._new))
            event = self._hub.next_for(subscription)
            if event is not None:
                return event
            # Not before: looking at it may mark it, and it has been looked at.
            self._new.pop(subscription, None)
        if self._retry_delay is not None:
            return Closing(self._retry_delay)
        if self._heartbeat_due:
            self._heartbeat_due = False
            return Heartbeat()
        return None

    async def ready(self) -> None:
        """Wait until `take`, which had nothing, may have something."""
        await self._something.wait()

    def begin_write(self) -> None:
        """Say that a message is handed to the transport."""
        self._write_begun = self._hub.clock.monotonic()

    def end_write(self) -> None:
        """Say that the transport took it."""
        if self._write_begun is not None:
            self._sent_time = self._write_begun
            self._write_begun = None

    def close(self) -> None:
        """Free everything; to be called once, when the stream has ended, however it did."""
        self._free(keep=self._retry_delay is not None)
        self._hub.forget(self)

    def _free(self, *, keep: bool) -> None:
        for subscription in self._subscriptions.values():
            self._hub.leave(subscription, keep=keep)
        self._subscriptions.clear()
        self._new.clear()

    # --- from the hub -------------------------------------------------------------------------------------------------

    def mark(self, subscription: Subscription) -> None:
        """Note that a subscription may have something new."""
        self._new[subscription] = None
        self._something.set()

    def look(self, now: float, *, write_seconds: float, heartbeat_seconds: float) -> None:
        """Do what is due by the time."""
        if self._write_begun is not None:
            if now - self._write_begun >= write_seconds:
                self._drop()
        elif now - self._sent_time >= heartbeat_seconds and not self._heartbeat_due:
            self._heartbeat_due = True
            self._something.set()

    def _drop(self) -> None:
        """
        Free everything of a stream whose reader does not keep up.

        The write that hangs cannot be taken back, and no status can overtake it: who reads on, or never does until its
        connection ends, is told after it. Until then all that is left of the stream is its place among its caller's.
        """
        if self._failure is None:
            self._free(keep=False)
            self._refusals.clear()
            self.fail(errors.WatcherTooSlowError(retry_after=1.0))

    @property
    def has_failed(self) -> bool:
        """Whether it ends with an error as soon as its sender can say so."""
        return self._failure is not None

    def end(self, retry_delay: float) -> None:
        """Send what is new and due, then end with `Closing`."""
        if self._retry_delay is None:
            self._retry_delay = retry_delay
            for subscription in self._subscriptions.values():
                self._hub.renew_before(subscription, retry_delay + _REOPENING_MARGIN_SECONDS)
            self._something.set()

    def __len__(self) -> int:
        """Return the number of subscriptions."""
        return len(self._subscriptions)
