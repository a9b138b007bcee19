"""What every call passes: the guard header, its id, its time, its cancellation, and errors that say nothing too much."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from broker.emulator import EmulatorServer
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.telemetry import configure_logging
from tests.support.brokers import (
    GUARD,
    Broker,
    Refusal,
    eventually,
    refusal_of,
    refused,
    running_broker,
    running_emulator,
)
from tests.support.stores import FaultyStore

PER_THREAD = "codex-2026-05"
"""A profile with an upstream task per thread, so that each new thread is registered."""
CALLER_METHODS = list(pb2.DESCRIPTOR.services_by_name["CredentialBroker"].methods)
ADMIN_METHODS = list(admin_pb2.DESCRIPTOR.services_by_name["BrokerAdmin"].methods)
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NOT_BUILT = {
    "RewrapSecrets",
    "VerifyAudit",
}


def path_of(method: MethodDescriptor) -> str:
    """Return what a method is called on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


def bare_channel(address: str) -> grpc.aio.Channel:
    """Open a channel that adds nothing."""
    return grpc.aio.insecure_channel(f"ipv4:{address}")


async def call(
    channel: grpc.aio.Channel, path: str, body: bytes | None = b"", *, stream: bool, **options: Any
) -> bytes:
    """
    Call a method with bytes; for a stream, send one message, or with None none, and take the first answer.

    A message that is sent as its stream is refused makes grpc.aio lose the refusal and say INTERNAL by itself.
    """
    if not stream:
        answer: bytes = await channel.unary_unary(path)(body or b"", **options)
        return answer
    conversation = channel.stream_stream(path)(None if body is None else iter([body]), **options)
    async for part in conversation:
        return bytes(part)
    raise AssertionError(f"{path}: ended without an answer")


@pytest.fixture
def events() -> Iterator[io.StringIO]:
    """Collect the broker's events as JSON lines."""
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    yield stream
    structlog.reset_defaults()


def per_thread(url: str) -> dict[str, Any]:
    """Return the settings of a backend whose threads have tasks of their own."""
    return {
        "default": {"profile": PER_THREAD, "base_url": f"{url}/backend-api", "authapi_base_url": f"{url}/api/accounts"}
    }


def lines(events: io.StringIO, event: str) -> list[dict[str, Any]]:
    """Return the events of one name."""
    found = [json.loads(line) for line in events.getvalue().splitlines()]
    return [one for one in found if one.get("event") == event]


# --- the guard header -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "0", "", "true", "1 ", "11"])
async def test_every_method_asks_for_the_guard_header(broker: Broker, value: str | None) -> None:
    """A forged request cannot add metadata, so none passes without it: no method of any service, nor reflection."""
    metadata = () if value is None else (("x-credential-broker", value),)
    callers, admin = bare_channel(broker.app.caller_address), bare_channel(broker.app.admin_address)
    try:
        for channel, methods in ((callers, CALLER_METHODS), (admin, ADMIN_METHODS)):
            for path, stream in [(path_of(one), one.client_streaming) for one in methods] + [(REFLECTION, True)]:
                refusal = await refused(call(channel, path, None, stream=stream, metadata=metadata))
                assert (path, refusal.reason) == (path, "GUARD_HEADER_MISSING")
                assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
                assert list(refusal.violations) == ["x-credential-broker"]
    finally:
        await callers.close()
        await admin.close()


async def test_with_the_guard_header_every_method_is_reached(broker: Broker) -> None:
    """The control of the test above: with the header, no method says that it is missing."""
    for channel, methods in zip(broker.channels, (CALLER_METHODS, ADMIN_METHODS), strict=True):
        for method in methods:
            try:
                await call(channel, path_of(method), stream=method.client_streaming)
            except grpc.aio.AioRpcError as error:
                assert refusal_of(error).reason not in ("GUARD_HEADER_MISSING", "INTERNAL")  # noqa: PT017 - or it answers


# --- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [one for one in CALLER_METHODS + ADMIN_METHODS if one.name in NOT_BUILT])
async def test_what_is_not_built_says_so(broker: Broker, method: MethodDescriptor) -> None:
    """The API is complete in its final form; what is missing answers UNIMPLEMENTED with a reason, the stream too."""
    channel = broker.channels[0 if method in CALLER_METHODS else 1]
    refusal = await refused(call(channel, path_of(method), stream=method.client_streaming))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT")


async def test_what_never_existed_is_answered_by_grpc(broker: Broker) -> None:
    """Unknown methods and services are UNIMPLEMENTED without an ErrorInfo of ours, with and without the guard."""
    for path in ("/credentialbroker.v1.CredentialBroker/Nope", "/nothing.At/All", "/credentialbroker.v1.BrokerAdmin/"):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(broker.channels[0], path, stream=False)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert rpc_status.from_call(refusal.value) is None


@pytest.mark.parametrize("other", [False, True], ids=["own", "other"])
async def test_each_listener_serves_its_own_service_alone(broker: Broker, other: bool) -> None:
    """No operator's method is on the callers' listener and the other way round, for every method there is."""
    for channel, methods in zip(broker.channels, (CALLER_METHODS, ADMIN_METHODS), strict=True):
        others = ADMIN_METHODS if methods is CALLER_METHODS else CALLER_METHODS
        for method in others if other else methods:
            there = True
            try:
                await call(channel, path_of(method), stream=method.client_streaming)
            except grpc.aio.AioRpcError as error:
                there = rpc_status.from_call(error) is not None
                assert there or error.code() is grpc.StatusCode.UNIMPLEMENTED  # noqa: PT017 - or it answers
            assert there is not other, method.name


# --- requests that are no messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\x7f"], ids=["tag", "cut"])
async def test_bytes_that_are_no_message_are_a_typed_error(broker: Broker, body: bytes) -> None:
    """The caller gets a reason as for any bad input, not the text of an exception as gRPC would tell it."""
    for channel, methods in zip(broker.channels, (CALLER_METHODS, ADMIN_METHODS), strict=True):
        for method in methods:
            if method.client_streaming:  # refuses before it reads anything
                continue
            refusal = await refused(call(channel, path_of(method), body, stream=False))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"), method.name
            assert list(refusal.violations) == ["request"]


async def test_text_that_is_not_utf8_is_a_typed_error(broker: Broker) -> None:
    """Clients of other languages may send any bytes as a string."""
    refusal = await refused(call(broker.channels[0], path_of(CALLER_METHODS[0]), b"\x0a\x02\xff\xfe", stream=False))
    assert (refusal.reason, list(refusal.violations)) == ("FIELD_INVALID", ["request"])


async def test_a_stream_of_bytes_that_are_no_message_is_a_typed_error(broker: Broker) -> None:
    """A stream that is read, as reflection's is, refuses the message that it cannot read."""
    refusal = await refused(call(broker.channels[0], REFLECTION, b"\xff\xff", stream=True))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    assert await call(broker.channels[0], REFLECTION, request.SerializeToString(), stream=True)


# --- request ids ------------------------------------------------------------------------------------------------------


def request_id_of(refusal: Refusal) -> str:
    """Return the id that the ErrorInfo names."""
    (info,) = [one for one in refusal.details if isinstance(one, error_details_pb2.ErrorInfo)]
    return info.metadata["request_id"]


async def test_a_callers_request_id_is_kept_when_it_is_well_formed(broker: Broker, events: io.StringIO) -> None:
    """The answer, the log and the audit record name the call as its caller does."""
    await broker.create_agent()
    for given in ("a", "Trace-1.2_3", "x" * 64):
        metadata = (("x-request-id", given),)
        request = pb2.GetAuthorizationRequest(scope="none")
        assert request_id_of(await refused(broker.callers.GetAuthorization(request, metadata=metadata))) == given
        assert lines(events, "call_refused")[-1]["request_id"] == given
        request = pb2.GetAuthorizationRequest(scope="inference", thread_id=f"t-{given}")
        await broker.callers.GetAuthorization(request, metadata=metadata)
        assert f'"request_id":"{given}"' in broker.app.config.audit_file.read_text().splitlines()[-1]


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a","reason":"forged', "a;b", "../etc"])
async def test_a_request_id_that_is_not_well_formed_is_replaced(
    broker: Broker, events: io.StringIO, given: str
) -> None:
    """Nothing that a caller sends can forge a line of the log: the id becomes one of ours."""
    request = pb2.GetAuthorizationRequest(scope="none")
    refusal = await refused(broker.callers.GetAuthorization(request, metadata=(("x-request-id", given),)))
    assert request_id_of(refusal) not in (given, "")
    assert [line["request_id"] for line in lines(events, "call_refused")] == [request_id_of(refusal)]


async def test_our_request_ids_are_never_the_same(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Each call has its own, also after a restart."""
    seen = []
    for _ in range(2):
        async with running_broker(tmp_path / "state", emulator) as broker:
            seen += [request_id_of(await refused(broker.authorize(scope="none"))) for _ in range(5)]
    assert len(set(seen)) == len(seen) == 10


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_deadline_that_leaves_no_time_is_refused_before_it_costs_anything(
    tmp_path: Path, emulator: EmulatorServer
) -> None:
    """Below 50 ms nothing is begun; above it the call is tried."""
    async with running_broker(tmp_path / "state", emulator) as broker:
        await broker.create_agent()
        # The runtime counts a deadline in whole milliseconds from when the call is made, so this one has some left.
        for _ in range(20):
            try:
                refusal = await refused(broker.authorize(thread_id="t", timeout=0.045))
            except (AssertionError, AttributeError):
                continue  # the deadline passed before the answer: gRPC's own status
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
            break
        else:
            raise AssertionError("the machine is too slow to answer within 45 ms")
        assert broker.registrations() <= 1  # the background task's prewarm, not the thread's
        assert (await broker.authorize(thread_id="t", timeout=5.0)).headers


async def test_time_is_capped_whatever_the_caller_says(tmp_path: Path) -> None:
    """A call with no deadline, or a longer one, ends by the broker's; the registration goes on without it."""
    async with running_emulator(profile=PER_THREAD) as emulator:
        limits, backends = {"caller_deadline_seconds": 0.3}, per_thread(emulator.url)
        async with running_broker(tmp_path / "state", emulator, limits=limits, backends=backends) as broker:
            await broker.create_agent()
            await eventually(lambda: broker.registrations() == 1)  # the prewarm
            emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER))
            for timeout in (None, 60.0):
                request = pb2.RegisterTaskRequest(thread_id="t")
                refusal = await refused(broker.callers.RegisterTask(request, timeout=timeout))
                assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REGISTRATION_IN_PROGRESS")
            emulator.backend.faults.remove()
            assert (await broker.authorize(thread_id="t")).headers


async def test_a_call_whose_work_does_not_end_is_ended(tmp_path: Path, emulator: EmulatorServer) -> None:
    """The cap holds for every method, also where nothing inside looks at the time."""
    stores: list[FaultyStore] = []

    def wrap(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    limits = {"admin_deadline_seconds": 0.2}
    async with running_broker(tmp_path / "state", emulator, wrap_store=wrap, limits=limits) as broker:
        gate = stores[0].hold("identities")
        refusal = await refused(broker.admin.ListIdentities(admin_pb2.ListIdentitiesRequest()))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        gate.set()
        await broker.admin.ListIdentities(admin_pb2.ListIdentitiesRequest())


# --- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["task", "claim_task", "complete_claim", "backend"])
async def test_a_caller_that_gives_up_leaves_no_trace(tmp_path: Path, stage: str) -> None:
    """Wherever its call stands, the registration goes on, once, and the next call profits; nothing is left hanging."""
    stores: list[FaultyStore] = []

    def wrap(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path / "state", emulator, wrap_store=wrap, backends=per_thread(emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: broker.registrations() == 1)  # the prewarm
        release, reached = held(stage, broker, stores[0])
        running = broker.callers.GetAuthorization(pb2.GetAuthorizationRequest(scope="inference", thread_id="t"))
        await eventually(reached)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        handled = broker.app.metrics.rpc_handled.labels(
            "unary", "credentialbroker.v1.CredentialBroker", "GetAuthorization", "CANCELLED"
        )
        await eventually(lambda: handled.value == 1)
        release()
        assert (await broker.authorize(thread_id="t")).headers
        assert broker.registrations() == 2
        jobs = {"load-task", "register-task"}
        await eventually(lambda: not jobs & {task.get_name() for task in asyncio.all_tasks()})


def held(stage: str, broker: Broker, store: FaultyStore) -> tuple[Callable[[], Any], Callable[[], bool]]:
    """Hold what a registration does in one place; return what lets go of it, and whether somebody waits there."""
    if stage == "backend":
        faults = broker.emulator.backend.faults
        faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER))
        return faults.remove, lambda: broker.registrations() == 2
    before = store.calls[stage]
    return store.hold(stage).set, lambda: store.calls[stage] > before


# --- defects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["unary", "stream"])
async def test_a_defect_says_nothing_to_the_caller_and_where_it_is_to_the_log(
    broker: Broker, events: io.StringIO, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """INTERNAL has a fixed text and a request id; the log has the place, once, and neither has the exception's text."""
    canary = "canary-7b1f"

    def breaks(*_: Any, **__: Any) -> Any:
        raise KeyError(canary)

    monkeypatch.setattr("broker.rpc.servicer.fields.scope", breaks)
    monkeypatch.setattr("grpc_reflection.v1alpha._base.BaseReflectionServicer._list_services", breaks)
    if path == "unary":
        refusal = await refused(broker.authorize())
    else:
        body = reflection_pb2.ServerReflectionRequest(list_services="x").SerializeToString()
        refusal = await refused(call(broker.channels[0], REFLECTION, body, stream=True))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    (info,) = [one for one in refusal.details if isinstance(one, error_details_pb2.RequestInfo)]
    (line,) = lines(events, "call_failed")
    assert line["request_id"] == info.request_id == request_id_of(refusal)
    assert line["level"] == "error"
    assert line["error"].startswith(f"KeyError at {Path(__file__).name}:")
    assert canary not in events.getvalue() + repr(refusal)


async def test_one_call_is_one_line_whatever_it_sends(broker: Broker, events: io.StringIO) -> None:
    """No id, scope or user agent of a caller makes a second line, or changes the terminal."""
    for text in ("a\nb", "\x1b[2Jx", "a\r\n{}", "\u2028", '"}\n{"event":"forged"}'):
        await refused(broker.authorize(scope=text, thread_id=text, identity=text))
    assert len(lines(events, "call_refused")) == len(events.getvalue().splitlines()) == 5
    assert events.getvalue().isascii()
    assert "\x1b" not in events.getvalue()


async def test_metadata_of_the_caller_is_not_logged(broker: Broker, events: io.StringIO) -> None:
    """What stands in other metadata is none of the broker's business."""
    metadata = (("authorization", "Basic canary-5d"), *GUARD)
    await refused(broker.callers.GetAuthorization(pb2.GetAuthorizationRequest(scope="none"), metadata=metadata))
    assert "canary-5d" not in events.getvalue()
