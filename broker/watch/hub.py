"""All streams and topics of this process, and the one loop that keeps them current."""

import asyncio
import heapq
import itertools
import operator
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker import errors
from broker.authorization import Answer, Asking, AuthorizationRequest, Authorizer
from broker.clock import Clock
from broker.errors import BrokerError
from broker.model import (
    CredentialKind,
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    ScopeName,
    TaskState,
    ThreadId,
)
from broker.scopes import TaskNeed
from broker.snapshots import IdentityView, Snapshots
from broker.telemetry import Metrics, logger
from broker.watch.stream import WatchStream
from broker.watch.topics import Event, Failed, Held, Subscription, Topic, Value, WithdrawalReason, Withdrawn

_LOG: Final = logger(__name__)

EARLIEST_END: Final = 0.6
LATEST_END: Final = 0.8
"""Between which parts of the connection age a stream is ended, so that it never meets the connection's own end."""
LONGEST_REOPENING_SECONDS: Final = 2.0
"""How long callers are told at most to wait before they open the next stream."""

_EARLIEST_RENEWAL: Final = 0.5
_LATEST_RENEWAL: Final = 0.8
_EARLIEST_RESENDING: Final = 0.2
_LATEST_RESENDING: Final = 0.4
_OBTAIN_SECONDS: Final = 10.0
_MOST_OBTAINING: Final = 64
_FIRST_RETRY_SECONDS: Final = 0.5
_LONGEST_RETRY_SECONDS: Final = 30.0
_LONGEST_HELD_RETRY_SECONDS: Final = 5.0
_LATEST_PASS_SECONDS: Final = 0.3
_PASS_SHARE: Final = 4.0
_BITE_SECONDS: Final = 0.002
"""For how long calls and streams wait at most while topics are gone through."""
_LONGEST_LOOK_SECONDS: Final = 0.25
_STALE_ENTRIES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """
    Limits and times of watching; all times in seconds.

    Attributes:
        streams: how many streams one principal may have.
        subscriptions: how many subscriptions all streams of one principal may have together.
        write_seconds: how long a message may wait for its reader.
        heartbeat_seconds: after how long a silent stream gets a heartbeat.
        connection_age: how old a connection may get.
    """

    streams: int
    subscriptions: int
    write_seconds: float
    heartbeat_seconds: float
    connection_age: float


class WatchHub:
    """All streams and topics of this process, and the one loop that keeps them current."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        snapshots: Snapshots,
        clock: Clock,
        metrics: Metrics,
        settings: WatchSettings,
        jitter: random.Random,
    ) -> None:
        self.clock: Final = clock
        self._authorizer = authorizer
        self._snapshots = snapshots
        self._metrics = metrics
        self._settings = settings
        self._jitter = jitter
        self._look_seconds = min(
            _LONGEST_LOOK_SECONDS,
            settings.write_seconds / 10,
            settings.heartbeat_seconds / 10,
            settings.connection_age * (LATEST_END - EARLIEST_END) / 10,
        )
        self._streams: dict[WatchStream, None] = {}
        self._streams_of: Counter[str] = Counter()
        self._subscriptions_of: Counter[str] = Counter()
        self._topics: dict[tuple[str, AuthorizationRequest], Topic] = {}
        self._places: dict[IdentityId | None, dict[Topic, None]] = {}
        self._due: list[tuple[float, int, Topic | Subscription]] = []
        self._order = itertools.count()
        self._changed: set[IdentityId | None] = set()
        self._suspects: deque[Topic] = deque()
        self._pass_begun: float | None = None
        self._next_pass = 0.0
        self._next_look = 0.0
        self._waiting: OrderedDict[Topic, None] = OrderedDict()
        self._obtaining: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._is_closed = False
        self._values = {kind: metrics.watch_values.labels(kind.value) for kind in CredentialKind}
        metrics.watch_streams.set_function(lambda: len(self._streams))
        metrics.watch_subscriptions.set_function(self._subscriptions_of.total)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow the snapshots and the time."""
        self._unsubscribe = self._snapshots.subscribe(self._note)
        self._loop = asyncio.create_task(self._run(), name="watch")

    def open(self, call: Asking) -> WatchStream:
        """
        Begin a stream.

        Raises:
            DrainingError: the broker stops.
            WatchLimitError: the caller has as many streams as it may have.
        """
        if self._is_closed:
            raise errors.DrainingError(retry_after=1.0)
        principal = call.caller.principal
        if self._streams_of[principal] >= self._settings.streams:
            raise errors.WatchLimitError(metadata={"limit": str(self._settings.streams)}, retry_after=5.0)
        now = self.clock.monotonic()
        life = self._settings.connection_age * self._jitter.uniform(EARLIEST_END, LATEST_END)
        stream = WatchStream(self, call, now=now, end_time=now + life)
        self._streams[stream] = None
        self._streams_of[principal] += 1
        self._wake.set()
        return stream

    async def close(self, grace: float) -> None:
        """End every stream with `Closing`, wait up to `grace` seconds until they have ended, then stop."""
        self._is_closed = True
        for stream in tuple(self._streams):
            stream.end(self._retry_delay())
        try:
            async with asyncio.timeout(grace):
                while any(not stream.has_failed for stream in self._streams):
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            _LOG.warning("watchers_not_reading", streams=len(self._streams))
        self._waiting.clear()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        tasks = [*self._obtaining, *([self._loop] if self._loop is not None else [])]
        self._loop = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def watch_count(self, identity_id: IdentityId) -> int:
        """Return how many subscriptions are for an identity."""
        return sum(len(topic.subscriptions) for topic in self._places.get(identity_id, ()))

    @property
    def topic_count(self) -> int:
        """How many topics there are."""
        return len(self._topics)

    @property
    def stream_count(self) -> int:
        """How many streams there are."""
        return len(self._streams)

    @property
    def obtaining_count(self) -> int:
        """How many topics wait for a task or a bearer."""
        return len(self._obtaining) + len(self._waiting)

    def _retry_delay(self) -> float:
        return self._jitter.uniform(0.05, 1.0) * LONGEST_REOPENING_SECONDS

    # --- subscriptions: for the streams -------------------------------------------------------------------------------

    def topic(self, call: Asking, request: AuthorizationRequest) -> Topic:
        """
        Return the topic of a request, worked out if it is new.

        Raises:
            WatchLimitError: the caller has as many subscriptions as it may have.
        """
        principal = call.caller.principal
        if self._subscriptions_of[principal] >= self._settings.subscriptions:
            raise errors.WatchLimitError(metadata={"limit": str(self._settings.subscriptions)}, retry_after=5.0)
        key = (principal, request)
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(call, request)
            self._put(topic, None)
            self._work(topic)
        return topic

    def join(self, subscription: Subscription, known_revision: str) -> None:
        """Take in a subscription whose caller holds a value of that revision, or none where it is empty."""
        topic = subscription.topic
        topic.subscriptions[subscription] = None
        self._subscriptions_of[topic.call.caller.principal] += 1
        if known_revision:
            try:
                known = self._authorizer.read_revision(topic.call.caller, known_revision)
            except errors.RevisionUnknownError:
                pass  # as if it held none
            else:
                ladder = _ladder_version(self._snapshots.view(known.identity_id))
                subscription.held = Held(known.text, known.identity_id, known.generation, ladder)
                subscription.is_resumed = True
        subscription.stream.mark(subscription)

    def leave(self, subscription: Subscription, *, keep: bool) -> None:
        """Free a subscription; `keep` its topic while its value is not due, since the caller comes back for it."""
        topic = subscription.topic
        del topic.subscriptions[subscription]
        principal = topic.call.caller.principal
        self._subscriptions_of[principal] -= 1
        if not self._subscriptions_of[principal]:
            del self._subscriptions_of[principal]
        if not topic.subscriptions and (not keep or topic.answer is None or self._is_closed):
            self._drop(topic)

    def forget(self, stream: WatchStream) -> None:
        """Free a stream, whose subscriptions have left."""
        del self._streams[stream]
        principal = stream.call.caller.principal
        self._streams_of[principal] -= 1
        if not self._streams_of[principal]:
            del self._streams_of[principal]
        self._ended.set()

    def _drop(self, topic: Topic) -> None:
        topic.is_gone = True
        del self._topics[topic.call.caller.principal, topic.request]
        self._take_out(topic)
        self._waiting.pop(topic, None)
        if topic.obtaining is not None:
            topic.obtaining.cancel()

    # --- what a subscription is sent ----------------------------------------------------------------------------------

    def next_for(self, subscription: Subscription) -> Event | None:
        """Return what a subscription is to be sent now, decided on and recorded; None when it is up to date."""
        topic = subscription.topic
        # 1. Whatever changed since the answer was made is decided on again before anything leaves.
        if topic.answer is not None and (
            topic.epoch != self._snapshots.epoch or topic.answer.authorization.expire_time <= self.clock.now()
        ):
            self._check(topic)
        # 2. What it holds and must not use goes first.
        held = subscription.held
        if held is not None and (topic.held is None or held.revision != topic.held.revision):
            reason = self._lost(held, topic)
            if reason is not None:
                subscription.held = None
                self._metrics.count(self._metrics.watch_withdrawals, reason.value)
                return Withdrawn(subscription, reason)
        if subscription.seen == topic.number:
            return None
        # 3. Then what there is in its place.
        if topic.is_obtaining:
            return None
        if topic.error is None and topic.answer is not None and not self._is_known(subscription, topic):
            try:
                self._authorizer.hand_out(topic.answer, subscription.stream.call)
            except BrokerError as error:
                self._fail(topic, error)
            else:
                subscription.seen, subscription.held = topic.number, topic.held
                subscription.resend_by = None
                self._values[topic.answer.authorization.kind].value += 1
                return Value(subscription, topic.answer)
        subscription.seen = topic.number
        if topic.error is None:
            return None  # it is held already
        self._metrics.count(self._metrics.refusals, topic.error.reason)
        return Failed(subscription.id, topic.error, max(0.001, topic.due - self.clock.monotonic()))

    def _is_known(self, subscription: Subscription, topic: Topic) -> bool:
        """
        Say whether the caller came back with this very value, which is then sent only when it may be due.

        When it was minted is not known here, only that its time to refresh had not come. So it lives for nearly half
        of a lease at least, and the next is sent within that.
        """
        if not subscription.is_resumed:
            return False
        subscription.is_resumed = False
        held, answer = subscription.held, topic.answer
        if held is None or answer is None or topic.held is None or held.revision != topic.held.revision:
            return False
        lease = answer.authorization.expire_time - answer.authorization.mint_time
        now = self.clock.monotonic()
        subscription.resend_by = now + lease * _LATEST_RESENDING
        self._schedule(now + lease * self._jitter.uniform(_EARLIEST_RESENDING, _LATEST_RESENDING), subscription)
        return True

    def _lost(self, held: Held, topic: Topic) -> WithdrawalReason | None:  # noqa: PLR0911 - a table, first match wins
        """Say why a value that is not the present one must not be used any more; None when it may be used up."""
        view = self._snapshots.view(held.identity_id)
        if view is None or view.identity.state is IdentityState.DELETED:
            return WithdrawalReason.IDENTITY_DELETED
        if view.identity.state is IdentityState.DISABLED:
            return WithdrawalReason.IDENTITY_DISABLED
        error = topic.error
        if isinstance(error, errors.IdentityRejectedError | errors.ReauthRequiredError):
            return WithdrawalReason.IDENTITY_REJECTED
        if view.identity.generation != held.generation:
            return WithdrawalReason.GENERATION_CHANGED
        if isinstance(error, errors.TaskEndedError):
            task = self._snapshots.task(view.identity, self._thread_of(topic.request))
            is_revoked = task is not None and task.task.state is TaskState.REVOKED
            return WithdrawalReason.TASK_REVOKED if is_revoked else WithdrawalReason.TASK_ENDED
        if _ladder_version(view) > held.ladder_version:
            return WithdrawalReason.CREDENTIAL_REJECTED
        return WithdrawalReason.NOT_ALLOWED if isinstance(error, _NOT_ALLOWED) else None

    def _thread_of(self, request: AuthorizationRequest) -> ThreadId | None:
        rule = self._authorizer.rule(ScopeName(request.scope))
        return ThreadId(request.thread_id) if rule.task is TaskNeed.THREAD else None

    # --- working topics out -------------------------------------------------------------------------------------------

    def _check(self, topic: Topic) -> None:
        """Decide again; work it out anew unless that comes to the very same credential."""
        held, answer = topic.held, topic.answer
        if held is None or answer is None or answer.authorization.expire_time <= self.clock.now():
            self._work(topic)
            return
        try:
            revision = self._authorizer.revision_now(topic.call.caller, topic.request)
            is_same = revision == held.revision and topic.identity is self._identity(held.identity_id)
        except BrokerError as error:
            self._fail(topic, error)
            return
        if is_same:
            topic.epoch = self._snapshots.epoch
            topic.basis = self._basis(topic)
        else:
            self._work(topic)

    def _rests_on_the_same(self, topic: Topic) -> bool:
        """Say whether no change concerns a topic's answer; far cheaper than to decide again."""
        basis = self._basis(topic)
        return len(basis) == len(topic.basis) > 0 and all(map(operator.is_, basis, topic.basis))

    def _basis(self, topic: Topic) -> tuple[object, ...]:
        """Return what an answer of now would rest on; nothing when there can be none."""
        try:
            return self._authorizer.basis(topic.call.caller, topic.request)
        except BrokerError:
            return ()

    def _work(self, topic: Topic) -> None:
        """Work a topic out anew, or have obtained what it needs first."""
        try:
            answer = self._authorizer.at_hand(topic.call.caller, topic.request)
        except BrokerError as error:
            self._fail(topic, error)
        except Exception as error:  # noqa: BLE001 - one topic must not end the loop of all
            _LOG.error("watch_crashed", exc_info=error)
            self._fail(topic, errors.InternalError())
        else:
            if answer is None:
                self._obtain(topic)
            else:
                self._offer(topic, answer)

    def _offer(self, topic: Topic, answer: Answer) -> None:
        """Take an answer as the topic's value, and plan the next."""
        is_new = answer is not topic.answer
        if is_new:
            revision = self._authorizer.read_revision(topic.call.caller, answer.authorization.revision)
            view = self._snapshots.view(revision.identity_id)
            topic.answer, topic.error, topic.failures = answer, None, 0
            topic.held = Held(revision.text, revision.identity_id, revision.generation, _ladder_version(view))
            topic.identity = self._identity(revision.identity_id)
            topic.basis = self._basis(topic)
            self._put(topic, revision.identity_id)
        topic.epoch = answer.epoch
        # Before it is due, and not before another second has begun, which is when it would be another.
        now = self.clock.now()
        refresh = min(answer.authorization.refresh_time, answer.authorization.expire_time - answer.min_lifetime)
        left = (refresh - now) * self._jitter.uniform(_EARLIEST_RENEWAL, _LATEST_RENEWAL)
        self._plan(topic, max(left, 1.01 - now % 1))
        if is_new:
            self._tell(topic)

    def _fail(self, topic: Topic, error: BrokerError) -> None:
        """Take an error in place of a value, and plan when it is tried again."""
        is_new = topic.error is None or topic.error.reason != error.reason
        self._clear(topic)
        topic.error = error
        self._put(topic, self._place_of(topic))
        if not is_new and topic.due > self.clock.monotonic():
            return  # looked at because something changed: nothing was tried
        topic.failures = 1 if is_new else min(topic.failures + 1, 16)
        longest = _LONGEST_RETRY_SECONDS
        if any(subscription.held is not None for subscription in topic.subscriptions):
            longest = _LONGEST_HELD_RETRY_SECONDS  # what is held must be replaced before it ends
        wait = min(longest, _FIRST_RETRY_SECONDS * 2**topic.failures)
        self._plan(topic, max(wait, error.retry_after or 0.0) * self._jitter.uniform(0.5, 1.0))
        if is_new:
            self._tell(topic)

    def _obtain(self, topic: Topic) -> None:
        """Have a task or a bearer obtained; what is held and cannot be had again is withdrawn meanwhile."""
        self._clear(topic)
        self._mark(topic)
        self._put(topic, self._place_of(topic))
        now = self.clock.monotonic()
        if topic.is_obtaining:
            return
        if now < topic.failure_time + _FIRST_RETRY_SECONDS:
            # That something failed may be all that changed: it is not tried again for that alone.
            self._plan(topic, topic.failure_time + _FIRST_RETRY_SECONDS - now)
            return
        topic.is_obtaining = True
        if len(self._obtaining) >= _MOST_OBTAINING:
            self._waiting[topic] = None
        else:
            self._begin_obtaining(topic)

    def _begin_obtaining(self, topic: Topic) -> None:
        task = asyncio.create_task(self._obtain_now(topic), name="watch-obtain")
        topic.obtaining = task
        self._obtaining.add(task)
        task.add_done_callback(self._obtained)

    async def _obtain_now(self, topic: Topic) -> None:
        deadline = self.clock.monotonic() + _OBTAIN_SECONDS
        answer: Answer | BrokerError
        try:
            answer = await self._authorizer.work_out(topic.call.caller, topic.request, deadline=deadline)
        except BrokerError as error:
            answer = error
        except Exception as error:  # noqa: BLE001 - it is tried again as any other failure
            _LOG.error("watch_crashed", exc_info=error)
            answer = errors.InternalError()
        topic.is_obtaining, topic.obtaining = False, None
        if isinstance(answer, BrokerError):
            topic.due = self.clock.monotonic()
            topic.failure_time = topic.due
            self._fail(topic, answer)
        else:
            self._offer(topic, answer)

    def _obtained(self, task: asyncio.Task[None]) -> None:
        self._obtaining.discard(task)
        while self._waiting and len(self._obtaining) < _MOST_OBTAINING:
            topic, _ = self._waiting.popitem(last=False)
            self._begin_obtaining(topic)

    def renew_before(self, subscription: Subscription, seconds: float) -> None:
        """Replace a value now if that is due within so many seconds, in which nothing can be sent."""
        if subscription.resend_by is not None and subscription.resend_by - self.clock.monotonic() < seconds:
            self._resend(subscription)
        answer = subscription.topic.answer
        if answer is not None and answer.authorization.refresh_time - self.clock.now() < seconds:
            self._work(subscription.topic)

    @staticmethod
    def _resend(subscription: Subscription) -> None:
        """Send a subscription what there is, whatever it was sent before."""
        subscription.seen = -1
        subscription.stream.mark(subscription)

    @staticmethod
    def _clear(topic: Topic) -> None:
        topic.answer = topic.held = None

    def _tell(self, topic: Topic) -> None:
        topic.number += 1
        self._mark(topic)

    @staticmethod
    def _mark(topic: Topic) -> None:
        for subscription in topic.subscriptions:
            subscription.stream.mark(subscription)

    # --- which identity concerns which topics -------------------------------------------------------------------------

    def _place_of(self, topic: Topic) -> IdentityId | None:
        name = topic.request.identity
        try:
            view = self._authorizer.view_of(IdentityName(name) if name else None, topic.call.caller)
        except BrokerError:
            return None
        # The name of a deleted one may be taken by another.
        return None if view.identity.state is IdentityState.DELETED else view.identity.id

    def _put(self, topic: Topic, place: IdentityId | None) -> None:
        if topic.is_gone:
            return
        topics = self._places.get(place)
        if topics is not None and topic in topics:
            return
        self._take_out(topic)
        topic.place = place
        self._places.setdefault(place, {})[topic] = None

    def _take_out(self, topic: Topic) -> None:
        topics = self._places.get(topic.place)
        if topics is not None:
            topics.pop(topic, None)
            if not topics:
                del self._places[topic.place]

    def _identity(self, identity_id: IdentityId) -> Identity | None:
        view = self._snapshots.view(identity_id)
        return None if view is None else view.identity

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _note(self, identity_id: IdentityId | None) -> None:
        """Note a change; it is looked at soon, together with others."""
        if self._topics:
            self._changed.add(identity_id)
            self._wake.set()

    def _plan(self, topic: Topic, seconds: float) -> None:
        topic.due = self.clock.monotonic() + seconds
        self._schedule(topic.due, topic)

    def _schedule(self, time: float, what: "Topic | Subscription") -> None:
        if not self._due or time < self._due[0][0]:
            self._wake.set()
        heapq.heappush(self._due, (time, next(self._order), what))
        if len(self._due) > 2 * (len(self._topics) + self._subscriptions_of.total()) + _STALE_ENTRIES:
            self._due = [entry for entry in self._due if self._is_wanted(entry[0], entry[2])]
            heapq.heapify(self._due)

    @staticmethod
    def _is_wanted(time: float, what: "Topic | Subscription") -> bool:
        if isinstance(what, Subscription):
            return what.resend_by is not None and what in what.topic.subscriptions
        return not what.is_gone and what.due == time

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                seconds = self.turn()
            except Exception as error:  # noqa: BLE001 - the loop must not end
                _LOG.error("watch_crashed", exc_info=error)
                seconds = _LONGEST_LOOK_SECONDS
            if seconds == 0:
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def turn(self) -> float | None:
        """Do a bite of what is due; return in how many seconds there is more to do, None when nothing is planned."""
        now = self.clock.monotonic()
        self._look(now)
        self._follow(now)
        end = self.clock.monotonic() + _BITE_SECONDS
        while self._due and self._due[0][0] <= now and self.clock.monotonic() < end:
            time, _, what = heapq.heappop(self._due)
            if self._is_wanted(time, what):
                self._on_time(what)
        times = [self._due[0][0]] if self._due else []
        if self._streams:
            times.append(self._next_look)
        if self._suspects:
            times.append(now)
        elif self._changed:
            times.append(self._next_pass)
        return max(0.0, min(times) - self.clock.monotonic()) if times else None

    def _on_time(self, what: "Topic | Subscription") -> None:
        if isinstance(what, Subscription):
            self._resend(what)
        elif what.subscriptions:
            self._work(what)
        else:
            self._drop(what)  # nobody came back for it

    def _look(self, now: float) -> None:
        """Look at every stream: one look at all of them now and then instead of timers for each."""
        if now < self._next_look:
            return
        self._next_look = now + self._look_seconds
        settings = self._settings
        for stream in tuple(self._streams):
            stream.look(now, write_seconds=settings.write_seconds, heartbeat_seconds=settings.heartbeat_seconds)
            if now >= stream.end_time:
                stream.end(self._retry_delay())

    def _follow(self, now: float) -> None:
        """
        Check the topics that a change concerns, in bites.

        When there are many of them and changes come all the time, one pass takes in all changes since the last, and
        passes take at most a fifth of the time, unless that would make one wait too long.
        """
        if not self._suspects:
            if not self._changed or now < self._next_pass:
                return
            self._pass_begun = now
            places = self._places.keys() if None in self._changed else self._changed | {None}
            for place in tuple(places):
                self._suspects.extend(self._places.get(place, ()))
            self._changed.clear()
        end = now + _BITE_SECONDS
        while self._suspects and self.clock.monotonic() < end:
            topic = self._suspects.popleft()
            if topic.is_gone:
                continue
            if not topic.subscriptions:
                self._drop(topic)
            elif topic.is_obtaining:
                self._mark(topic)  # what is held may be lost meanwhile
            elif topic.answer is None or not self._rests_on_the_same(topic):
                self._check(topic)
        if not self._suspects and self._pass_begun is not None:
            ended = self.clock.monotonic()
            self._next_pass = ended + min(_LATEST_PASS_SECONDS, _PASS_SHARE * (ended - self._pass_begun))
            self._pass_begun = None


_NOT_ALLOWED: Final = (
    errors.NotAllowedError,
    errors.IdentityRevokedError,
    errors.ScopeUnknownError,
    errors.ScopeDisabledError,
    errors.FeatureDisabledError,
    errors.BackendUnsupportedError,
    errors.BearerUnavailableError,
)
"""Refusals that say that what is held should not have been given under the rules of now."""


def _ladder_version(view: IdentityView | None) -> int:
    """Return how often something was noted about rejections of an identity's credentials."""
    return 0 if view is None or view.ladder is None else view.ladder.version
