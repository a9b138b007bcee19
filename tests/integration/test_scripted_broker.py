"""The scripted broker says what it is told and writes down what it is asked."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

from broker.rpc.status import CODES
from tests.bench.frames import Flag, FrameType, ping_ack
from tests.support.brokers import eventually, guarded_channel, refused
from tests.support.raw_http2 import raw_connection
from tests.support.scripted_broker import ScriptedBroker
from tests.support.watching import Watcher, watching

Stub = "credential_broker_pb2_grpc.CredentialBrokerAsyncStub"


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedBroker]:
    """Run a scripted broker."""
    async with ScriptedBroker() as broker:
        yield broker


@pytest.fixture
async def callers(scripted: ScriptedBroker) -> AsyncIterator[Stub]:
    """Open a channel to it that tries nothing again."""
    async with guarded_channel(scripted.address, {"grpc.enable_retries": 0}) as channel:
        yield credential_broker_pb2_grpc.CredentialBrokerStub(channel)


async def ask(callers: Stub, thread: str = "t1", timeout: float = 5.0) -> pb2.Authorization:
    """Ask for one authorization."""
    request = pb2.GetAuthorizationRequest(scope="inference", thread_id=thread)
    return (await callers.GetAuthorization(request, timeout=timeout)).authorization


async def test_answers_come_in_order_and_the_last_goes_on(scripted: ScriptedBroker, callers: Stub) -> None:
    """What is told is answered call by call, and each call is written down."""
    scripted.script([{"revision": "a"}, {"revision": "b", "lifetime": 8, "skew": 86400 * 9, "kind": 77}])
    assert (await ask(callers)).revision == "a"
    second = await ask(callers)
    assert (second.revision, second.kind) == ("b", 77)
    assert round(second.expire_time.ToSeconds() - second.server_time.ToSeconds()) == 8
    assert second.server_time.ToSeconds() > time.time() + 86400 * 8
    assert (await ask(callers)).revision == "b"
    assert [call.request.thread_id for call in scripted.received] == ["t1"] * 3
    assert scripted.received[0].metadata["x-credential-broker"] == "1"
    assert 4 < (scripted.received[0].seconds or 0) <= 5
    assert scripted.calls("GetAuthorization", code="OK") == 3


async def test_every_reason_is_on_the_wire_as_the_broker_sends_it(scripted: ScriptedBroker, callers: Stub) -> None:
    """Errors go through the table of the real one."""
    for outcome, code in CODES.items():
        scripted.script([{"error": outcome.reason, "metadata": {"scope": "inference"}}])
        refusal = await refused(ask(callers))
        assert (refusal.reason, refusal.code) == (outcome.reason, code)


async def test_a_runtime_s_own_error_has_no_reason(scripted: ScriptedBroker, callers: Stub) -> None:
    """A bare status carries nothing of the broker, and a word from the future is carried as it is."""
    scripted.script([{"status": "UNKNOWN"}, {"status": "ABORTED", "reason_text": "FROM_THE_FUTURE"}], thread="t2")
    with pytest.raises(grpc.aio.AioRpcError) as bare:
        await ask(callers, "t2")
    assert not any(name == "grpc-status-details-bin" for name, _ in bare.value.trailing_metadata() or ())
    with pytest.raises(grpc.aio.AioRpcError) as newer:
        await ask(callers, "t2")
    assert b"FROM_THE_FUTURE" in dict(newer.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert (await ask(callers)).revision


async def test_details_can_be_a_stranger_s_or_none_at_all(scripted: ScriptedBroker, callers: Stub) -> None:
    """What a proxy sends in the place of the broker's details is sent as it is told."""
    scripted.script([
        {"status": "ABORTED", "reason_text": "NOT_ALLOWED", "domain": "proxy.test"},
        {"status": "ABORTED", "details": "not a status"},
    ])  # fmt: skip
    for expected in (b"proxy.test", b"not a status"):
        with pytest.raises(grpc.aio.AioRpcError) as foreign:
            await ask(callers)
        details = dict(foreign.value.trailing_metadata() or ())["grpc-status-details-bin"]
        assert expected in details
        assert b"credentialbroker" not in details


async def test_what_was_cancelled_is_known(scripted: ScriptedBroker, callers: Stub) -> None:
    """A call that its caller gave up ends so."""
    scripted.script([{"hang": True}])
    call = asyncio.create_task(ask(callers))
    await eventually(lambda: scripted.calls("GetAuthorization") == 1)
    call.cancel()
    await eventually(lambda: scripted.calls("GetAuthorization", code="CANCELLED") == 1)


async def test_streams_carry_what_is_pushed(scripted: ScriptedBroker, callers: Stub) -> None:
    """Each kind of event can be sent, also one that nobody knows."""
    scripted.script_streams([{"heartbeat": 0}])
    async with watching(callers) as watcher:
        await watcher.subscribe("s1")
        assert (await watcher.value("s1")).revision == "scripted:inference:t1:1"
        assert scripted.push(thread="t1", revision="next") == 1
        assert (await watcher.value("s1")).revision == "next"
        scripted.push(thread="t1", withdrawal="TASK_ENDED")
        assert await watcher.withdrawal() == "TASK_ENDED"
        scripted.push(thread="t1", error="BACKEND_DOWN")
        assert (await watcher.error()).code == grpc.StatusCode.UNAVAILABLE.value[0]
        scripted.push(thread="t1", unknown=True)
        assert (await watcher.event()).WhichOneof("event") is None
        scripted.closing(retry_delay=0.2, end_after=0)
        assert [event.WhichOneof("event") for event in await watcher.rest()] == ["closing"]
    (stream,) = scripted.opened
    await eventually(lambda: stream.ended is not None)
    assert (stream.seconds, [one.scope for one in stream.subscribed], scripted.streams) == (None, ["inference"], 0)


async def test_one_stream_of_two_can_be_told(scripted: ScriptedBroker, callers: Stub) -> None:
    """What is pushed on one stream does not reach the other."""
    scripted.script_streams([{"heartbeat": 0, "values": False}])
    async with watching(callers) as first:
        await first.subscribe("s1")
        await eventually(lambda: scripted.subscriptions == 1)
        async with watching(callers) as second:
            await second.subscribe("s1")
            await eventually(lambda: scripted.subscriptions == 2)
            assert scripted.push(thread="t1", stream=1, revision="second") == 1
            assert scripted.push(thread="t1", revision="both") == 2
            assert (await first.value("s1")).revision == "both"
            assert [(await second.value("s1")).revision for _ in range(2)] == ["second", "both"]


async def test_a_value_that_is_held_is_not_sent_again(scripted: ScriptedBroker, callers: Stub) -> None:
    """Who holds what is current gets heartbeats only."""
    held = await ask(callers)
    async with watching(callers) as watcher:
        await watcher.subscribe("s1", known_revision=held.revision)
        assert (await watcher.event()).WhichOneof("event") == "heartbeat"
        assert scripted.subscriptions == 1
        await watcher.unsubscribe("s1")
        await eventually(lambda: scripted.subscriptions == 0)


async def test_a_stream_ends_as_its_script_says(scripted: ScriptedBroker, callers: Stub) -> None:
    """A stream ends with an error or well."""
    scripted.script_streams([{"end_after": 0, "error": "WATCHER_TOO_SLOW"}, {"end_after": 0}])
    async with watching(callers) as watcher:
        assert (await refused(watcher.event())).reason == "WATCHER_TOO_SLOW"
    async with watching(callers) as watcher:
        assert await watcher.rest() == []


async def test_the_gate_counts_and_cuts_connections(scripted: ScriptedBroker, callers: Stub) -> None:
    """Connections are counted, reset, and taken without an answer."""
    await ask(callers)
    assert (scripted.gate.connections, len(scripted.gate.attempts)) == (1, 1)
    scripted.gate.turn("refuse", cut=True)
    with pytest.raises(grpc.aio.AioRpcError):
        await ask(callers)
    assert scripted.gate.connections == 0
    scripted.gate.turn("stall")
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await ask(callers, timeout=0.2)
    assert late.value.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
    scripted.gate.turn("open")
    await callers.GetAuthorization(
        pb2.GetAuthorizationRequest(scope="inference", thread_id="t1"), timeout=5, wait_for_ready=True
    )


async def test_the_gate_counts_pings_and_loses_connections(scripted: ScriptedBroker) -> None:
    """Answers are no pings; what is lost hears nothing, no end either, while others are served."""
    gate = scripted.gate
    async with raw_connection(scripted.address) as lost:
        lost.send(ping_ack(b"12345678"))
        assert await lost.answers_pings()
        assert len(gate.pings) == 1
        gate.turn("open", lose=True)
        async with raw_connection(scripted.address) as later:
            assert await later.answers_pings()
        lost.ping()
        await eventually(lambda: len(gate.pings) == 3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await lost.closed()
        assert lost.of(FrameType.PING, Flag.ACK) == [b"12345678"]
    await eventually(lambda: gate.connections == 0)


async def test_it_can_be_at_a_port(scripted: ScriptedBroker) -> None:
    """One that is taken is told, and nothing is left behind."""
    address = scripted.address
    port = int(address.rpartition(":")[2])
    with pytest.raises(OSError, match=str(port)):
        await ScriptedBroker(port=port).__aenter__()
    await scripted.gate.__aexit__()
    async with ScriptedBroker(port=port) as another:
        assert another.address == address


def test_a_word_that_is_no_word_is_refused() -> None:
    """A mistake in a case is told."""
    with pytest.raises(ValueError, match="lifetme"):
        ScriptedBroker().script([{"lifetme": 3}])


async def test_a_watcher_that_leaves_is_noticed(scripted: ScriptedBroker, callers: Stub) -> None:
    """A stream whose reader is gone has ended."""
    async with watching(callers) as watcher:
        assert isinstance(watcher, Watcher)
        await watcher.subscribe("s1")
        await watcher.value("s1")
        assert scripted.streams == 1
    await eventually(lambda: scripted.streams == 0)
