"""The hub over a real store and a clock that stands still: what is sent, how often it is worked out, what is freed."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker import errors
from broker.audit import AuditLog
from broker.authorization import AuthorizationRequest, AuthorizationSettings, Authorizer
from broker.errors import BrokerError
from broker.model import Caller, IdentityState
from broker.outbound import FailureKind
from broker.rpc.server import CHANNEL_ARGUMENTS
from broker.scopes import build_catalogue
from broker.watch import (
    LATEST_END,
    Closing,
    Event,
    Failed,
    Heartbeat,
    Value,
    WatchHub,
    WatchSettings,
    WatchStream,
    WithdrawalReason,
    Withdrawn,
)
from tests.support.audit_lines import grants_in
from tests.support.workshop import Workshop, failure, plain, workshop

SETTINGS = WatchSettings(
    streams=10, subscriptions=5000, write_seconds=10.0, heartbeat_seconds=20.0, connection_age=300.0
)
ONE = Caller("spiffe://one", "test")
SIGNATURES = "credential_broker_signatures_total"


@dataclass(frozen=True)
class Call:
    """A call as the edge hands it on."""

    caller: Caller = ONE
    request_id: str = "r"


class Post:
    """A hub whose loop is turned by hand."""

    def __init__(self, shop: Workshop, folder: Path) -> None:
        self.shop = shop
        self.folder = folder
        self.audit = AuditLog(folder / "audit.jsonl", shop.clock, shop.metrics)
        apis: Any = {"default": shop.api}
        self.authorizer = Authorizer(
            snapshots=shop.snapshots,
            registrar=shop.registrar,
            lifetimes=shop.lifetimes,
            scopes=build_catalogue({}),
            apis=apis,
            keyring=shop.keyring,
            audit=self.audit,
            clock=shop.clock,
            metrics=shop.metrics,
            settings=AuthorizationSettings(
                default_identity=None, grant_bootstrap=True, max_lease=300.0, max_staleness=3600.0
            ),
            jitter=random.Random(1),
        )
        self.hub = WatchHub(
            authorizer=self.authorizer,
            snapshots=shop.snapshots,
            clock=shop.clock,
            metrics=shop.metrics,
            settings=SETTINGS,
            jitter=random.Random(2),
        )
        # What `start` does but for the loop.
        self.hub._unsubscribe = shop.snapshots.subscribe(self.hub._note)

    async def register(self, *threads: str) -> None:
        """Have the tasks of threads registered."""
        for thread in threads:
            request = AuthorizationRequest("inference", thread)
            await self.authorizer.work_out(Call().caller, request, deadline=self.shop.clock.monotonic() + 10)

    def later(self, seconds: float) -> None:
        """Let time pass, and the loop do all that is due by then."""
        self.shop.clock.pass_(seconds)
        self.turn()

    def turn(self) -> None:
        """Let the loop do all that is due now."""
        for _ in range(10_000):
            if self.hub.turn() != 0:
                return
        raise AssertionError("there is always something due")


def subscribe(stream: WatchStream, name: str = "a", thread: str = "t", known_revision: str = "", **more: str) -> None:
    """Subscribe to an authorization for a thread."""
    stream.subscribe(name, name.encode(), AuthorizationRequest("inference", thread, **more), known_revision)


def events(stream: WatchStream) -> list[Event]:
    """Take everything there is."""
    found: list[Event] = []
    while (event := stream.take()) is not None:
        found.append(event)
        if isinstance(event, Closing):
            break
    return found


def kinds(stream: WatchStream) -> list[type[Event]]:
    """Take everything there is and return of which kind it is."""
    return [type(event) for event in events(stream)]


@pytest.fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    """A hub with one agent, whose task for thread `t` is registered."""
    async with workshop(tmp_path) as shop:
        shop.api.tasks.append(plain("upstream-task-1"))
        made = Post(shop, tmp_path)
        await made.audit.open()
        await shop.snapshots.warm_up()
        await shop.agent()
        await made.register("t")
        yield made
        await made.hub.close(0)
        await made.audit.close()


async def test_nothing_leaves_on_a_decision_of_before(post: Post) -> None:
    """A value that waits for its sender is decided on again when it is taken: one that was revoked is not sent."""
    stream = post.hub.open(Call())
    subscribe(stream)
    (view,) = post.shop.snapshots.views()
    disabled = replace(view.identity, state=IdentityState.DISABLED, version=view.identity.version + 1)
    post.shop.snapshots.publish_identity(disabled)
    (failed,) = events(stream)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, errors.IdentityRevokedError)
    assert grants_in(post.folder / "audit.jsonl") == {}


async def test_what_has_not_changed_is_not_signed_again(post: Post) -> None:
    """A change of something else has a value decided on again, which signs nothing."""
    stream = post.hub.open(Call())
    subscribe(stream)
    before = post.shop.tally(SIGNATURES)
    post.shop.snapshots.touch()
    assert kinds(stream) == [Value]
    post.shop.snapshots.touch()
    post.turn()
    assert kinds(stream) == []
    assert post.shop.tally(SIGNATURES) == before


async def test_however_many_subscribe_it_is_worked_out_once(post: Post) -> None:
    """And each of its values is one object, which the edge packs once."""
    streams = [post.hub.open(Call()) for _ in range(5)]
    for stream in streams:
        for number in range(100):
            subscribe(stream, f"s{number}")
    assert post.hub.topic_count == 1
    before = post.shop.tally(SIGNATURES)
    for _ in range(3):
        post.later(29.0)
        answers = {event.answer for stream in streams for event in events(stream) if isinstance(event, Value)}
        assert len(answers) == 1
    assert post.shop.tally(SIGNATURES) - before == 3


async def test_who_does_not_read_finds_only_the_newest(post: Post) -> None:
    """Values that nobody took are not kept: memory does not grow with what a reader misses."""
    stream = post.hub.open(Call())
    subscribe(stream)
    for _ in range(5):
        post.later(29.0)
    value, heartbeat = events(stream)
    assert isinstance(value, Value)
    assert isinstance(heartbeat, Heartbeat)
    assert value.answer.authorization.mint_time == int(post.shop.clock.now())


async def test_values_of_one_second_are_replaced_at_many_times(post: Post) -> None:
    """Each before it is due, and not all at once."""
    threads = [f"t{number}" for number in range(300)]
    await post.register(*threads)
    streams = [post.hub.open(Call()), post.hub.open(Call())]
    for number, thread in enumerate(threads):
        subscribe(streams[number % 2], thread, thread)
    values = [event for stream in streams for event in events(stream) if isinstance(event, Value)]
    due = min(value.answer.authorization.refresh_time for value in values)
    per_second: list[int] = []
    while post.shop.clock.now() < due - 1:
        post.later(1.0)
        per_second.append(sum(len(events(stream)) for stream in streams))
    assert sum(per_second) >= 300 * 0.8
    assert max(per_second) < 300 * 0.3


async def test_a_withdrawal_comes_once_and_before_what_follows(post: Post) -> None:
    """In between the identity changed three times: only what is so in the end counts."""
    stream = post.hub.open(Call())
    subscribe(stream)
    assert kinds(stream) == [Value]
    (view,) = post.shop.snapshots.views()
    identity = view.identity
    for state in (IdentityState.DISABLED, IdentityState.ACTIVE, IdentityState.DISABLED):
        identity = replace(identity, state=state, version=identity.version + 1, generation=identity.generation + 1)
        post.shop.snapshots.publish_identity(identity)
        post.turn()
    withdrawn, failed = events(stream)
    assert isinstance(withdrawn, Withdrawn)
    assert withdrawn.reason is WithdrawalReason.IDENTITY_DISABLED
    assert isinstance(failed, Failed)
    assert events(stream) == []


async def test_a_value_without_a_record_does_not_leave(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the audit log cannot be written there is an error in its place, and the value when it can again."""
    stream = post.hub.open(Call())
    subscribe(stream)
    with monkeypatch.context() as broken:
        broken.setattr(post.audit, "_append", _no_space)
        (failed,) = events(stream)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, errors.AuditDownError)
    assert failed.retry_delay
    post.later(failed.retry_delay + 0.01)
    assert kinds(stream) == [Value]


def _no_space(_line: bytes) -> bool:
    raise OSError(28, "No space left on device")


async def test_a_refusal_is_told_once_and_tried_ever_more_rarely(post: Post) -> None:
    """The same reason is not told again with each try, and tries do not come at a constant rate."""
    stream = post.hub.open(Call())
    stream.subscribe("a", b"a", AuthorizationRequest("no_such_scope"), "")
    assert kinds(stream) == [Failed]
    topic = next(iter(post.hub._topics.values()))
    waits = []
    for _ in range(8):
        waits.append(topic.due - post.shop.clock.monotonic())
        post.later(waits[-1] + 0.001)
    assert kinds(stream) == [Heartbeat]
    assert waits[-1] > 8 * waits[0]
    assert max(waits) <= 30


async def test_what_is_planned_does_not_pile_up(post: Post) -> None:
    """Topics that are worked out again and again leave nothing behind."""
    stream = post.hub.open(Call())
    for number in range(20):
        subscribe(stream, f"s{number}", f"t{number}")
    await asyncio.sleep(0)
    for number in range(500):
        for topic in post.hub._topics.values():
            post.hub._plan(topic, 25.0 + number / 1000)
    assert len(post.hub._due) < 2000


async def test_no_more_than_so_many_topics_are_obtained_at_a_time(post: Post) -> None:
    """The others wait for their turn, and go when nobody wants them any more."""
    gate = asyncio.Event()

    async def when_open() -> Any:
        await gate.wait()
        return plain("upstream-task-2")

    post.shop.api.tasks.clear()
    post.shop.api.tasks.append(when_open)
    stream = post.hub.open(Call())
    for number in range(200):
        subscribe(stream, f"s{number}", f"new{number}")
    assert post.hub.obtaining_count == 200
    assert len(post.hub._obtaining) < 100
    stream.close()
    await asyncio.sleep(0)
    gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (post.hub.obtaining_count, post.hub.topic_count, post.hub.stream_count) == (0, 0, 0)


async def test_a_topic_waits_for_who_comes_back_but_not_for_ever(post: Post) -> None:
    """After `closing` its value goes on being current until it is due; after anything else it is gone at once."""
    stream = post.hub.open(Call())
    subscribe(stream)
    (value,) = events(stream)
    assert isinstance(value, Value)
    revision = value.answer.authorization.revision
    post.later(stream.end_time - post.shop.clock.monotonic() + 0.1)
    assert kinds(stream)[-1] is Closing
    stream.close()
    assert post.hub.topic_count == 1
    again = post.hub.open(Call())
    subscribe(again, known_revision=revision)
    assert events(again) == []
    again.unsubscribe("a")
    assert post.hub.topic_count == 0
    third = post.hub.open(Call())
    subscribe(third)
    third.end(1.0)
    assert kinds(third) == [Value, Closing]
    third.close()
    assert post.hub.topic_count == 1
    post.later(60.0)
    assert post.hub.topic_count == 0


async def test_a_value_that_would_be_due_between_two_streams_is_sent_before(post: Post) -> None:
    """The last thing before `closing` is what the caller will need until it is back."""
    stream = post.hub.open(Call())
    subscribe(stream)
    (first,) = events(stream)
    assert isinstance(first, Value)
    # Jump past what the loop had planned, as if it had been late.
    post.shop.clock.pass_(first.answer.authorization.refresh_time - post.shop.clock.now() - 1.0)
    stream.end(1.5)
    assert kinds(stream) == [Value, Closing]


async def test_a_silent_stream_gets_a_heartbeat(post: Post) -> None:
    """One, however long it was silent; and none while a message waits for its reader."""
    stream = post.hub.open(Call())
    post.later(19.0)
    assert kinds(stream) == []
    post.later(2.0)
    assert kinds(stream) == [Heartbeat]


async def test_a_reader_that_holds_up_a_write_loses_everything(post: Post) -> None:
    """Its subscriptions and topics are freed while the write still hangs; its place is not, until it has ended."""
    stream = post.hub.open(Call())
    subscribe(stream)
    stream.take()
    stream.begin_write()
    post.later(11.0)
    assert post.hub.topic_count == 0
    assert post.hub.stream_count == 1
    subscribe(stream, "b")  # was on its way: nothing comes of it
    assert post.hub.topic_count == 0
    stream.end_write()
    with pytest.raises(errors.WatcherTooSlowError):
        stream.take()
    stream.close()
    assert post.hub.stream_count == 0


async def test_a_failure_of_the_backend_is_no_withdrawal(post: Post) -> None:
    """A thread that cannot be registered is an error, tried again; other threads keep their values."""
    stream = post.hub.open(Call())
    subscribe(stream)
    assert kinds(stream) == [Value]
    (view,) = post.shop.snapshots.views()
    pending = replace(view.identity, generation=view.identity.generation + 1, version=view.identity.version + 1)
    post.shop.api.tasks.clear()
    post.shop.api.tasks.append(failure(FailureKind.DOWN))
    post.shop.snapshots.publish_identity(pending)
    post.turn()
    first, *_ = events(stream)
    assert isinstance(first, Withdrawn)
    assert first.reason is WithdrawalReason.GENERATION_CHANGED


def test_a_stream_ends_before_its_connection_is_cut() -> None:
    """A stream that begins in the last moment before its connection's end has all the time that the broker gives it."""
    age, grace = (CHANNEL_ARGUMENTS[f"grpc.max_connection_age_{name}ms"] for name in ("", "grace_"))
    assert grace >= LATEST_END * age


@pytest.mark.parametrize("error", [errors.DrainingError, errors.WatchLimitError])
async def test_who_may_not_open_a_stream_is_told(post: Post, error: type[BrokerError]) -> None:
    """Because the broker stops, or because there are as many as there may be."""
    if error is errors.DrainingError:
        await post.hub.close(0)
    else:
        for _ in range(SETTINGS.streams):
            post.hub.open(Call())
    with pytest.raises(error):
        post.hub.open(Call())
