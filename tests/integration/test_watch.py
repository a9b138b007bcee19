"""WatchAuthorizations over real gRPC: what is sent, when, and what is never sent."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, error_reason_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import EmulatorServer
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from tests.support.audit_lines import grants_in
from tests.support.brokers import (
    Broker,
    eventually,
    guarded_channel,
    refusal_of,
    running_broker,
    running_emulator,
)
from tests.support.command_line import ROOT
from tests.support.stores import FaultyStore
from tests.support.watching import Watcher, due_at, usable_until, watching

PER_THREAD = "codex-2026-05"


def reason_of(status: pb2.ErrorStatus) -> str:
    """Return the bare reason of an error."""
    return error_reason_pb2.ErrorReason.Name(status.reason).removeprefix("ERROR_REASON_")


def short(emulator: EmulatorServer, **more: Any) -> dict[str, dict[str, Any]]:
    """Return a backend whose assertions live for 4 s and are replaced within 2."""
    backend = {
        "base_url": f"{emulator.url}/backend-api",
        "authapi_base_url": f"{emulator.url}/api/accounts",
        "assertion_lifetime_seconds": 4,
    }
    return {"backends": {"default": backend | more}}


@pytest.fixture
async def emulator() -> AsyncIterator[EmulatorServer]:
    """Run an emulator."""
    async with running_emulator() as emulator:
        yield emulator


@pytest.fixture
async def broker(tmp_path: Path, emulator: EmulatorServer) -> AsyncIterator[Broker]:
    """Run a broker with one agent, whose assertions are short-lived."""
    async with running_broker(tmp_path / "state", emulator, **short(emulator)) as broker:
        await broker.create_agent()
        yield broker


@pytest.fixture
async def watcher(broker: Broker) -> AsyncIterator[Watcher]:
    """Open a stream."""
    async with watching(broker.callers) as watcher:
        yield watcher


def tally(broker: Broker, name: str, **labels: str) -> float:
    """Return one of the broker's metrics."""
    return broker.app.metrics.registry.get_sample_value(name, labels) or 0.0


# --- values -----------------------------------------------------------------------------------------------------------


async def test_the_first_value_comes_at_once_and_is_accepted(broker: Broker, watcher: Watcher) -> None:
    """A registration is all that it waits for, and what comes is what GetAuthorization hands out."""
    await watcher.subscribe("mine")
    value = await watcher.value("mine")
    assert (await broker.sees(value)).status_code == 200
    asked = await broker.authorize(thread_id="t1")
    assert (value.revision, value.connection_tag) == (asked.revision, asked.connection_tag)
    assert abs(value.server_time.ToNanoseconds() / 1e9 - time.time()) < 1


async def test_a_value_is_replaced_before_it_is_due(broker: Broker, watcher: Watcher) -> None:
    """Each next one is here before the `refresh_time` of the one before, and has a signature of its own."""
    await watcher.subscribe("a")
    values = [await watcher.value() for _ in range(4)]
    arrivals = [when for when, _ in watcher.received]
    assert all(arrival < due_at(before) for before, arrival in zip(values, arrivals[1:], strict=False))
    assert len({value.headers[0].value for value in values}) == 4
    assert len({value.revision for value in values}) == 1


async def test_a_value_is_worked_out_once_for_all_who_want_it(broker: Broker) -> None:
    """Thirty subscriptions on three streams: one topic, one signature, and each gets the same headers."""
    await broker.authorize(thread_id="t1")
    before = tally(broker, "credential_broker_signatures_total")
    async with contextlib.AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(watching(broker.callers)) for _ in range(3)]
        for watcher in watchers:
            for number in range(10):
                await watcher.subscribe(f"s{number}")
        values = [await watcher.value() for watcher in watchers for _ in range(10)]
        assert broker.app.watch.topic_count == 1
        assert tally(broker, "credential_broker_watch_subscriptions") == 30
        # One a second at most: the streams may have begun in two of them.
        assert tally(broker, "credential_broker_signatures_total") - before <= 2
        assert len({value.headers[0].value for value in values}) <= 2


async def test_who_comes_late_is_told_the_time_of_now(broker: Broker, watcher: Watcher) -> None:
    """A value that was packed a while ago leaves with a `server_time` that callers may subtract."""
    await watcher.subscribe("first")
    first = await watcher.value()
    while due_at(first) - time.time() > 1.2:  # a second has passed, and it is not due
        await asyncio.sleep(0.05)
    await watcher.subscribe("second")
    while (await watcher.event()).subscription_id != "second":
        pass
    when, second = watcher.received[-1]
    assert abs(second.authorization.server_time.ToNanoseconds() / 1e9 - when) < 1


async def test_every_value_is_in_the_audit_log(tmp_path: Path, emulator: EmulatorServer) -> None:
    """As many grants are recorded as values were received, by whichever way."""
    async with running_broker(tmp_path / "state", emulator, **short(emulator)) as broker:
        await broker.create_agent()
        async with watching(broker.callers) as watcher:
            for number in range(20):
                await watcher.subscribe(f"s{number}", thread_id=f"t{number % 4}")
            for _ in range(50):
                await watcher.value()
    granted = grants_in(tmp_path / "state" / "audit.jsonl")
    sent = tally(broker, "credential_broker_watch_values_total", kind="AGENT_ASSERTION")
    assert granted["inference"] == sent >= 50


async def test_values_go_on_while_the_store_is_away(tmp_path: Path, emulator: EmulatorServer) -> None:
    """What is in memory goes on being signed for, as for GetAuthorization."""
    stores: list[FaultyStore] = []

    def wrap(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    async with running_broker(tmp_path / "state", emulator, wrap_store=wrap, **short(emulator)) as broker:
        await broker.create_agent()
        async with watching(broker.callers) as watcher:
            await watcher.subscribe("a")
            await watcher.value()
            stores[0].go_down()
            for _ in range(3):
                assert (await broker.sees(await watcher.value())).status_code == 200
            stores[0].come_back()


# --- resuming ---------------------------------------------------------------------------------------------------------


async def test_a_value_that_is_known_is_not_sent_again(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Who comes back with a current revision hears nothing until the next is due; others get a value at once."""
    async with running_broker(tmp_path / "state", emulator) as broker:
        await broker.create_agent()
        async with watching(broker.callers) as first:
            await first.subscribe("a")
            held = await first.value()
        async with watching(broker.callers) as second:
            await second.subscribe("a", known_revision=held.revision)
            await second.subscribe("b", known_revision="x" * 60)
            await second.subscribe("c", known_revision=held.revision, thread_id="t2", scope="inference")
            await second.value("b")
            # Thread t2 shares the task, so its revision is the one that is held.
            assert await second.silent_for(1.0)


async def test_a_value_that_is_known_is_replaced_in_time(broker: Broker) -> None:
    """The next comes while the one that is held is usable still."""
    async with watching(broker.callers) as first:
        await first.subscribe("a")
        held = await first.value()
    async with watching(broker.callers) as second:
        await second.subscribe("a", known_revision=held.revision)
        await second.value("a")
        assert second.received[0][0] < usable_until(held)


async def test_what_was_revoked_meanwhile_is_withdrawn(broker: Broker) -> None:
    """A value that a caller comes back with is held against what is so now."""
    async with watching(broker.callers) as first:
        await first.subscribe("a")
        held = await first.value()
    await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
    async with watching(broker.callers) as second:
        await second.subscribe("a", known_revision=held.revision)
        assert await second.withdrawal() == "IDENTITY_DISABLED"
        assert reason_of(await second.error()) == "IDENTITY_REVOKED"
    await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))
    async with watching(broker.callers) as third:
        await third.subscribe("a", known_revision=held.revision)
        assert await third.withdrawal() == "GENERATION_CHANGED"
        assert (await third.value()).revision != held.revision


# --- withdrawals ------------------------------------------------------------------------------------------------------


async def test_a_disabled_identity_is_withdrawn_and_comes_back(broker: Broker, watcher: Watcher) -> None:
    """The withdrawal is first, then the error, and a value as soon as it is enabled."""
    await watcher.subscribe("a")
    before = await watcher.value()
    begun = time.monotonic()
    await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
    assert await watcher.withdrawal() == "IDENTITY_DISABLED"
    assert time.monotonic() - begun < 1
    assert reason_of(await watcher.error()) == "IDENTITY_REVOKED"
    await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))
    after = await watcher.value()
    assert after.revision != before.revision
    assert (await broker.sees(after)).status_code == 200
    assert tally(broker, "credential_broker_watch_withdrawals_total", reason="IDENTITY_DISABLED") == 1


async def test_a_deleted_identity_is_withdrawn(broker: Broker, watcher: Watcher) -> None:
    """And one that is made under its name afterwards is another one: its value comes at once."""
    await watcher.subscribe("a", identity="agent")
    before = await watcher.value()
    await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent"))
    assert await watcher.withdrawal() == "IDENTITY_DELETED"
    assert reason_of(await watcher.error()) == "IDENTITY_REVOKED"
    await broker.create_agent()
    while (event := await watcher.event()).WhichOneof("event") == "error":
        pass  # it is being registered
    assert event.authorization.revision != before.revision


async def test_an_ended_task_is_withdrawn(broker: Broker, watcher: Watcher) -> None:
    """Only the thread that was ended, although others share its task."""
    await watcher.subscribe("ended", thread_id="t1")
    await watcher.value("ended")
    await watcher.subscribe("other", thread_id="t2")
    await watcher.value("other")
    await broker.callers.EndTask(pb2.EndTaskRequest(thread_id="t1"))
    assert await watcher.withdrawal() == "TASK_ENDED"
    assert watcher.received[-1][1].subscription_id == "ended"
    assert reason_of(await watcher.error()) == "TASK_ENDED"
    await watcher.value("other")
    await broker.callers.RegisterTask(pb2.RegisterTaskRequest(thread_id="t1"))
    await watcher.value("ended")


async def test_a_revoked_task_is_withdrawn(tmp_path: Path, emulator: EmulatorServer) -> None:
    """With who took it down."""
    async with running_broker(tmp_path / "state", emulator, **short(emulator)) as broker:
        await broker.create_agent()
        async with watching(broker.callers) as watcher:
            await watcher.subscribe("a")
            await watcher.value()
            listed = await broker.admin.ListTasks(admin_pb2.ListTasksRequest(identity="agent"))
            (task,) = [task for task in listed.tasks if task.thread_id == "t1"]
            await broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id=task.id, force=True))
            assert await watcher.withdrawal() == "TASK_REVOKED"
            assert reason_of(await watcher.error()) == "TASK_ENDED"


async def test_a_new_key_withdraws_what_the_old_one_signed(broker: Broker, watcher: Watcher) -> None:
    """And the next value, signed with the new key, is there at once."""
    await watcher.subscribe("a")
    await watcher.value()
    await broker.admin.RotateIdentityKey(admin_pb2.RotateIdentityKeyRequest(name="agent", request_id="rotate-1"))
    while not (event := await watcher.event()).HasField("withdrawal"):
        pass  # the old key signs until the new one is proven
    assert event.withdrawal.reason == pb2.WITHDRAWAL_REASON_GENERATION_CHANGED
    while (event := await watcher.event()).HasField("error"):
        pass
    assert (await broker.sees(event.authorization)).status_code == 200


async def test_what_a_backend_rejected_is_withdrawn(broker: Broker, watcher: Watcher) -> None:
    """One caller's report has all who hold the credential let go of it, and the better one follows."""
    await watcher.subscribe("a")
    held = await watcher.value()
    report = pb2.ReportRejectedRequest(scope="inference", thread_id="t1", revision=held.revision, http_status=401)
    better = (await broker.callers.ReportRejected(report)).authorization
    while not (event := await watcher.event()).HasField("withdrawal"):
        pass  # one more of the old may have been under way
    assert event.withdrawal.reason == pb2.WITHDRAWAL_REASON_CREDENTIAL_REJECTED
    assert (await watcher.value()).revision == better.revision


@contextlib.asynccontextmanager
async def other_process(state_dir: Path, emulator: EmulatorServer) -> AsyncIterator[Any]:
    """Run a second broker, as a process of its own, on the same state directory; yield its operators' stub."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.broker_process",
        "--state-dir",
        str(state_dir),
        "--backend",
        emulator.url,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            serving = json.loads(await process.stdout.readline())
        async with guarded_channel(serving["admin"]) as channel:
            yield broker_admin_pb2_grpc.BrokerAdminStub(channel)
    finally:
        process.terminate()
        await process.communicate()


async def test_what_another_process_revokes_is_withdrawn_within_a_second(
    tmp_path: Path, emulator: EmulatorServer
) -> None:
    """The time runs from when the other process has acknowledged it."""
    state_dir = tmp_path / "state"
    async with running_broker(state_dir, emulator) as broker:
        await broker.create_agent()
        async with other_process(state_dir, emulator) as other, watching(broker.callers) as watcher:
            await watcher.subscribe("a")
            await watcher.value()
            for _ in range(5):
                await other.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
                begun = time.monotonic()
                assert await watcher.withdrawal() == "IDENTITY_DISABLED"
                assert time.monotonic() - begun < 1
                await watcher.error()
                await other.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))
                await watcher.value()


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_a_denied_subscription_stays_and_is_tried_again(broker: Broker, watcher: Watcher) -> None:
    """An identity that there is not is an error until there is one; other subscriptions are not disturbed."""
    await watcher.subscribe("later", identity="later")
    assert reason_of(await watcher.error()) == "NOT_ALLOWED"
    await watcher.subscribe("never", scope="nope")
    assert reason_of(await watcher.error()) == "SCOPE_UNKNOWN"
    await watcher.subscribe("fine", identity="agent")
    await watcher.value("fine")
    await broker.create_agent("later")
    while (event := await watcher.event()).subscription_id != "later" or event.HasField("error"):
        pass
    assert event.authorization.identity == "later"


async def test_a_failing_subscription_is_tried_again(tmp_path: Path) -> None:
    """The error says when; the value comes when the backend is back, and nobody asks for it."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path / "state", emulator, **short(emulator, profile=PER_THREAD)) as broker,
        watching(broker.callers) as watcher,
    ):
        await broker.create_agent()
        await eventually(lambda: broker.registrations() == 1)
        fault = FaultRule(action=Action.STATUS, status=503, operation=Operation.TASK_REGISTER, count=None)
        emulator.backend.faults.add(fault)
        await watcher.subscribe("a")
        status = await watcher.error()
        assert reason_of(status) in {"BACKEND_DOWN", "REGISTRATION_IN_PROGRESS"}
        assert status.retry_delay.ToMilliseconds() > 0
        emulator.backend.faults.remove()
        while (event := await watcher.event()).HasField("error"):
            pass
        assert (await broker.sees(event.authorization)).status_code == 200


async def test_a_name_in_use_is_an_error_and_changes_nothing(broker: Broker, watcher: Watcher) -> None:
    """The subscription that has the name goes on."""
    await watcher.subscribe("a")
    await watcher.value("a")
    await watcher.subscribe("a", thread_id="t2")
    status = await watcher.error()
    assert reason_of(status) == "FIELD_INVALID"
    assert watcher.received[-1][1].subscription_id == "a"
    await watcher.value("a")
    assert broker.app.watch.topic_count == 1


@pytest.mark.parametrize(
    "first",
    [
        pb2.WatchAuthorizationsRequest(),
        pb2.WatchAuthorizationsRequest(subscribe=pb2.Subscribe(subscription_id="", scope="inference")),
        pb2.WatchAuthorizationsRequest(subscribe=pb2.Subscribe(subscription_id="é", scope="inference")),
        pb2.WatchAuthorizationsRequest(subscribe=pb2.Subscribe(subscription_id="a")),
        pb2.WatchAuthorizationsRequest(unsubscribe=pb2.Unsubscribe()),
    ],
    ids=["no action", "no name", "no ASCII name", "no scope", "no name to end"],
)
async def test_a_malformed_first_message_ends_the_stream(
    broker: Broker, watcher: Watcher, first: pb2.WatchAuthorizationsRequest
) -> None:
    """A later one is an error, for its subscription where it names one."""
    await watcher.call.write(first)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await watcher.rest()
    assert refusal_of(ended.value).reason == "FIELD_INVALID"
    assert tally(broker, "credential_broker_watch_dropped_total", reason="FIELD_INVALID") == 1
    async with watching(broker.callers) as second:
        await second.subscribe("good")
        await second.value("good")
        await second.call.write(first)
        assert reason_of(await second.error()) == "FIELD_INVALID"
        await second.value("good")
    assert broker.app.watch.stream_count == 0 or await _ends(broker)


async def _ends(broker: Broker) -> bool:
    await eventually(lambda: broker.app.watch.stream_count == 0)
    return True


async def test_bytes_that_are_no_message_are_an_error(broker: Broker) -> None:
    """As a first message they end the stream; later ones are told, and the stream goes on."""
    path = "/credentialbroker.v1.CredentialBroker/WatchAuthorizations"
    good = pb2.WatchAuthorizationsRequest(
        subscribe=pb2.Subscribe(subscription_id="a", scope="inference", thread_id="t1")
    ).SerializeToString()
    call = broker.channels[0].stream_stream(path)()
    await call.write(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert refusal_of(ended.value).reason == "FIELD_INVALID"
    call = broker.channels[0].stream_stream(path)()
    await call.write(good)
    assert pb2.WatchAuthorizationsResponse.FromString(await call.read()).subscription_id == "a"
    await call.write(b"\xff\xff")
    error = pb2.WatchAuthorizationsResponse.FromString(await call.read())
    assert (error.subscription_id, reason_of(error.error.status)) == ("", "FIELD_INVALID")
    assert pb2.WatchAuthorizationsResponse.FromString(await call.read()).HasField("authorization")
    call.cancel()


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_stream_has_so_many_subscriptions(broker: Broker, watcher: Watcher) -> None:
    """The 1,001st is refused; when one ends there is room again."""

    async def ask() -> None:
        for number in range(1001):
            await watcher.subscribe(f"s{number}")

    asking = asyncio.ensure_future(ask())
    kinds = []
    while len(kinds) < 1001:
        event = await watcher.event()
        kinds.append(event.WhichOneof("event"))
        if event.HasField("error"):
            assert (event.subscription_id, reason_of(event.error.status)) == ("s1000", "WATCH_LIMIT")
    await asking
    assert "error" in kinds
    await watcher.unsubscribe("s0")
    await watcher.subscribe("s1000")
    while (await watcher.event()).subscription_id != "s1000":
        pass
    assert not watcher.received[-1][1].HasField("error")


async def test_a_caller_has_so_many_streams_and_subscriptions(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Beyond them a stream ends with WATCH_LIMIT, and a subscription gets it as an error."""
    limits = {"limits": {"watch_streams": 2, "watch_subscriptions": 3}}
    async with running_broker(tmp_path / "state", emulator, **short(emulator), **limits) as broker:
        await broker.create_agent()
        async with watching(broker.callers) as first, watching(broker.callers) as second:
            for watcher in (first, second):
                await watcher.subscribe("a")
                await watcher.value()
            async with watching(broker.callers) as third:
                await third.subscribe("a")
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    await third.rest()
            assert refusal_of(ended.value).reason == "WATCH_LIMIT"
            assert refusal_of(ended.value).retry_seconds
            await first.subscribe("b", thread_id="t2")
            await first.subscribe("c", thread_id="t3")
            while not (event := await first.event()).HasField("error"):
                pass
            assert (event.subscription_id, reason_of(event.error.status)) == ("c", "WATCH_LIMIT")
        await eventually(lambda: broker.app.watch.stream_count == 0)
        async with watching(broker.callers) as again:
            await again.subscribe("a")
            await again.value()


# --- the stream's own life --------------------------------------------------------------------------------------------


async def test_unsubscribing_frees_and_silences(broker: Broker, watcher: Watcher) -> None:
    """Its topic is gone, nothing more is sent for it, and its name is free."""
    await watcher.subscribe("a")
    await watcher.value("a")
    await watcher.subscribe("b", thread_id="t2")
    await watcher.value("b")
    await watcher.unsubscribe("unknown")
    await watcher.unsubscribe("a")
    await eventually(lambda: broker.app.watch.topic_count == 1)
    for _ in range(2):
        await watcher.value("b")
    await watcher.subscribe("a", thread_id="t3")
    while (await watcher.event()).subscription_id != "a":
        pass


async def test_a_silent_stream_has_heartbeats(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Also one without any subscription; where values flow there are none."""
    limits = {"limits": {"watch_heartbeat_seconds": 0.2}}
    async with running_broker(tmp_path / "state", emulator, **limits) as broker:
        async with watching(broker.callers) as watcher:
            for _ in range(3):
                event = await watcher.event()
                assert event.WhichOneof("event") == "heartbeat"
                assert abs(event.heartbeat.server_time.ToNanoseconds() / 1e9 - time.time()) < 1
        gaps = [after[0] - before[0] for before, after in zip(watcher.received, watcher.received[1:], strict=False)]
        assert all(gap > 0.15 for gap in gaps)


async def test_values_go_on_after_the_last_change(broker: Broker, watcher: Watcher) -> None:
    """That a caller has no more to say ends none of its subscriptions."""
    await watcher.subscribe("a")
    await watcher.call.done_writing()
    for _ in range(3):
        await watcher.value("a")


async def test_a_caller_that_goes_frees_everything(broker: Broker) -> None:
    """Streams, topics, and what waits for the backend: nothing of them is left, and nothing goes on for them."""
    tasks_before = len(asyncio.all_tasks())
    broker.emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            watcher = await stack.enter_async_context(watching(broker.callers))
            await watcher.subscribe("waits", thread_id="never registered")
            await watcher.subscribe("a", scope="control_plane.models")
        await eventually(lambda: tally(broker, "credential_broker_watch_subscriptions") == 10)
    watch = broker.app.watch
    await eventually(lambda: (watch.stream_count, watch.topic_count, watch.obtaining_count) == (0, 0, 0))
    broker.emulator.backend.faults.remove()
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before)
    assert tally(broker, "credential_broker_watch_streams") == 0


async def test_a_stream_ends_before_its_connection_does(tmp_path: Path, emulator: EmulatorServer) -> None:
    """`closing` comes at 60 to 80 % of the age, then the stream is over, and well."""
    age = 3.0
    arguments = {"grpc.max_connection_age_ms": int(age * 1000)}
    async with running_broker(tmp_path / "state", emulator, channel_arguments=arguments) as broker:
        await broker.create_agent()
        async with watching(broker.callers) as watcher:
            begun = time.monotonic()
            await watcher.subscribe("a")
            await watcher.value()
            *values, last = await watcher.rest()
            ended = time.monotonic() - begun
            assert await watcher.call.code() is grpc.StatusCode.OK
        assert all(event.HasField("authorization") for event in values)
        assert last.WhichOneof("event") == "closing"
        assert last.subscription_id == ""
        assert 0 < last.closing.retry_delay.ToMilliseconds() <= 2000
        assert 0.6 * age <= ended <= 0.8 * age + 1.0


@pytest.mark.slow
async def test_there_is_no_gap_over_many_reopenings(tmp_path: Path, emulator: EmulatorServer) -> None:
    """
    Twenty streams one after the other, with the revision held: there is a usable value at each moment.

    All are on one channel, whose connections end under them again and again; none is ever cut.
    """
    arguments = {"grpc.max_connection_age_ms": 800, "grpc.max_connection_age_grace_ms": 640}
    async with running_broker(tmp_path / "state", emulator, channel_arguments=arguments, **short(emulator)) as broker:
        await broker.create_agent()
        held: pb2.Authorization | None = None
        for _ in range(20):
            async with watching(broker.callers) as watcher:
                is_fresh = held is not None and time.time() < due_at(held)
                await watcher.subscribe("a", known_revision=held.revision if held and is_fresh else "")
                for event in await watcher.rest():
                    if event.HasField("authorization"):
                        assert held is None or time.time() < usable_until(held)
                        held = event.authorization
                assert await watcher.call.code() is grpc.StatusCode.OK
                assert event.WhichOneof("event") == "closing"
            assert held is not None
            await asyncio.sleep(event.closing.retry_delay.ToMilliseconds() / 1000)
            assert time.time() < usable_until(held)


async def test_a_broker_that_stops_ends_its_streams_first(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Each gets `closing` and OK; new ones are told to go elsewhere."""
    async with running_broker(tmp_path / "state", emulator, broker={"drain_seconds": 0.2}) as broker:
        await broker.create_agent()
        async with contextlib.AsyncExitStack() as stack:
            watchers = [await stack.enter_async_context(watching(broker.callers)) for _ in range(20)]
            for watcher in watchers:
                await watcher.subscribe("a")
                await watcher.value()
            broker.app.request_stop()
            stopping = asyncio.ensure_future(broker.app.run_until_stopped())
            for watcher in watchers:
                events = await watcher.rest()
                assert events[-1].WhichOneof("event") == "closing"
                assert await watcher.call.code() is grpc.StatusCode.OK
            await stopping
        assert broker.app.watch.stream_count == 0
        assert broker.app.watch.topic_count == 0
