"""
Each channel argument bites.

gRPC takes a misspelt argument without a word, so each is set to a small value here and must make a difference to a
broker that runs beside it with the values that are shipped.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import EmulatorServer
from broker.errors import StartupError
from tests.bench.frames import Flag, FrameType, Request, grpc_status, max_concurrent_streams, ping_ack, reset_cause
from tests.support.brokers import Broker, running_broker
from tests.support.certificates import Authority
from tests.support.raw_http2 import GET_AUTHORIZATION, GUARD, RawConnection, raw_connection

FOREVER = 2**31 - 1
TOO_MANY_PINGS = b"too_many_pings"

Twins = Callable[..., Awaitable[tuple[Broker, Broker]]]


@pytest.fixture
async def twins(tmp_path: Path, emulator: EmulatorServer) -> AsyncIterator[Twins]:
    """Start two brokers: one with the arguments that are named, one with what is shipped."""
    async with AsyncExitStack() as stack:

        async def start(**arguments: int) -> tuple[Broker, Broker]:
            small = {f"grpc.{name.replace('__', '.')}": value for name, value in arguments.items()}
            first = running_broker(tmp_path / "small", emulator, channel_arguments=small)
            second = running_broker(tmp_path / "shipped", emulator)
            return await stack.enter_async_context(first), await stack.enter_async_context(second)

        yield start


@asynccontextmanager
async def connections(small: Broker, shipped: Broker) -> AsyncIterator[tuple[RawConnection, RawConnection]]:
    """Connect to both, to the one that is shipped first: what happens to the other happens to it later, or never."""
    async with (
        raw_connection(shipped.app.caller_address) as control,
        raw_connection(small.app.caller_address) as subject,
    ):
        await control.until(FrameType.SETTINGS)
        await subject.until(FrameType.SETTINGS)
        yield subject, control


async def code_of(call: Awaitable[object]) -> grpc.StatusCode:
    """Await a call and return how it ended."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_second_process_cannot_take_a_share_of_the_calls(tmp_path: Path, emulator: EmulatorServer) -> None:
    """`so_reuseport` 0: a twin on the same port is refused, and named; with 1 it would have started."""
    for shared in (False, True):
        folder = tmp_path / str(shared)
        arguments = {"grpc.so_reuseport": 1} if shared else None
        async with running_broker(folder / "first", emulator, channel_arguments=arguments) as first:
            address = first.app.caller_address
            twin = running_broker(folder / "twin", emulator, channel_arguments=arguments, listen={"callers": [address]})
            with contextlib.nullcontext() if shared else pytest.raises(StartupError, match=address):
                async with twin:
                    assert shared


async def test_a_connection_holds_so_many_streams(twins: Twins) -> None:
    """`max_concurrent_streams`: the stream beyond it is refused, which a client retries elsewhere."""
    small, shipped = await twins(max_concurrent_streams=3)
    async with connections(small, shipped) as (subject, control):
        assert [max_concurrent_streams(one.of(FrameType.SETTINGS)[0]) for one in (subject, control)] == [3, 100]
        for connection in (subject, control):
            for stream_id in range(1, 9, 2):
                connection.open_stream(stream_id)
        (reset,) = await subject.until(FrameType.RST_STREAM)
        assert reset_cause(reset) == "ENHANCE_YOUR_CALM"
        assert [stream_id for kind, _, stream_id, _ in subject.received if kind == FrameType.RST_STREAM] == [7]
        assert await control.answers_pings()
        assert control.of(FrameType.RST_STREAM) == []


async def test_a_request_is_so_large(twins: Twins) -> None:
    """`max_receive_message_length`: a larger request is refused before anything looks at it."""
    small, shipped = await twins(max_receive_message_length=1000)
    assert await code_of(small.authorize(scope="x" * 2000)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await code_of(shipped.authorize(scope="x" * 2000)) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(shipped.authorize(scope="x" * 70_000)) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_answer_is_so_large(twins: Twins) -> None:
    """`max_send_message_length`: a larger answer is not sent."""
    small, shipped = await twins(max_send_message_length=1000)
    assert await code_of(small.callers.ListScopes(pb2.ListScopesRequest())) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await code_of(shipped.callers.ListScopes(pb2.ListScopesRequest())) is grpc.StatusCode.OK


async def with_metadata(broker: Broker, size: int) -> grpc.StatusCode:
    """Call with so many bytes of metadata."""
    call = broker.callers.ListScopes(pb2.ListScopesRequest(), metadata=(("x-filling", "a" * size),))
    return await code_of(call)


async def test_metadata_beyond_the_hard_limit_is_refused(twins: Twins) -> None:
    """`absolute_max_metadata_size`: a call with more metadata never passes."""
    small, shipped = await twins(absolute_max_metadata_size=1000, max_metadata_size=1000)
    assert await with_metadata(small, 2000) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await with_metadata(shipped, 2000) is grpc.StatusCode.OK
    assert await with_metadata(shipped, 20_000) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_beyond_the_soft_limit_is_refused_more_often_the_larger_it_is(twins: Twins) -> None:
    """`max_metadata_size`: between the limits a call is refused by chance, which tells clients to slim down."""
    small, shipped = await twins(max_metadata_size=256)
    # The chance to pass once is 1 in 8 for the first; 10 calls that all pass are beyond any luck.
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in [await with_metadata(small, 14_000) for _ in range(10)]
    assert {await with_metadata(shipped, 6000) for _ in range(10)} == {grpc.StatusCode.OK}


async def test_a_connection_lives_so_long(twins: Twins) -> None:
    """`max_connection_age_ms`: the client is told to go, and calls in flight may end."""
    small, shipped = await twins(max_connection_age_ms=100)
    async with connections(small, shipped) as (subject, control):
        subject.open_stream(1)
        control.open_stream(1)
        await subject.until(FrameType.GOAWAY)
        assert await subject.answers_pings(), "the call in flight has its grace"
        assert await control.answers_pings()
        assert control.of(FrameType.GOAWAY) == []


async def test_calls_in_flight_may_end_for_so_long(twins: Twins) -> None:
    """`max_connection_age_grace_ms`: a call that never ends cannot keep an old connection."""
    small, endless = await twins(max_connection_age_ms=100, max_connection_age_grace_ms=100)
    async with connections(small, endless) as (subject, control):
        subject.open_stream(1)
        control.open_stream(1)
        await subject.closed()
        assert await control.answers_pings()


async def test_a_connection_without_calls_is_closed(twins: Twins) -> None:
    """`max_connection_idle_ms`: a connection that nobody uses goes, one with a call stays."""
    small, shipped = await twins(max_connection_idle_ms=100)
    async with connections(small, shipped) as (subject, control), raw_connection(small.app.caller_address) as busy:
        busy.open_stream(1)
        await subject.until(FrameType.GOAWAY)
        assert await control.answers_pings()
        assert await busy.answers_pings()
        assert control.of(FrameType.GOAWAY) == busy.of(FrameType.GOAWAY) == []


async def test_a_connection_is_asked_whether_it_lives(twins: Twins) -> None:
    """`keepalive_time_ms`: on a connection where nothing comes, the server pings; who answers stays."""
    small, shipped = await twins(keepalive_time_ms=100)
    async with connections(small, shipped) as (subject, control):
        subject.open_stream(1)
        control.open_stream(1)
        (ping,) = await subject.until(FrameType.PING)
        subject.send(ping_ack(ping))
        assert await subject.answers_pings()
        assert await control.answers_pings()
        assert control.of(FrameType.PING) == control.of(FrameType.PING, Flag.ACK)


async def test_a_program_that_hangs_is_cut_off(twins: Twins) -> None:
    """`http2.ping_timeout_ms`: a connection that answers no ping is closed; with what is shipped it has more time."""
    small, shipped = await twins(keepalive_time_ms=100, http2__ping_timeout_ms=100)
    async with connections(small, shipped) as (subject, control):
        subject.open_stream(1)
        control.open_stream(1)
        await subject.closed()
        assert subject.of(FrameType.PING)
        assert await control.answers_pings()


def user_timeout_of(connection: RawConnection) -> int:
    """Return, in milliseconds, how long the server's end of a connection waits for data to be acknowledged."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as end:
            if end.family != socket.AF_UNIX and end.getpeername()[1] == connection.own_port:
                return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    raise AssertionError("the server has no such connection")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the options of sockets as Linux shows them")
async def test_a_host_that_is_gone_is_noticed(twins: Twins) -> None:
    """`keepalive_timeout_ms`: data that nobody acknowledges ends the connection after that time."""
    small, shipped = await twins(keepalive_timeout_ms=1234)
    async with connections(small, shipped) as (subject, control):
        assert (user_timeout_of(subject), user_timeout_of(control)) == (1234, 20_000)


async def pinged(broker: Broker, count: int) -> list[bytes]:
    """Send pings on a connection with a call that waits, and return what the server said of it when it left."""
    async with raw_connection(broker.app.caller_address) as connection:
        connection.open_stream(1)
        for _ in range(count):
            if not await connection.answers_pings():
                break
        return connection.of(FrameType.GOAWAY)


async def test_pings_without_data_are_counted(twins: Twins) -> None:
    """`http2.min_ping_interval_without_data_ms`: pings that come faster are strikes, and too many end the connection."""
    small, shipped = await twins(http2__min_ping_interval_without_data_ms=0)
    (goodbye,) = await pinged(shipped, 10)
    assert goodbye.endswith(TOO_MANY_PINGS)
    assert await pinged(small, 10) == []


async def test_so_many_pings_are_forgiven(twins: Twins) -> None:
    """`http2.max_ping_strikes`: how many pings that are too fast end a connection; 0 would be without end."""
    small, shipped = await twins(http2__max_ping_strikes=0)
    (goodbye,) = await pinged(shipped, 10)
    assert goodbye.endswith(TOO_MANY_PINGS)
    assert await pinged(small, 10) == []


async def test_a_handshake_takes_only_so_long(tmp_path: Path, emulator: EmulatorServer) -> None:
    """`server_handshake_timeout_ms`: who connects to the TLS port and stays silent is cut off."""
    certificate, key = Authority().issue().write(tmp_path)
    listen = {"tls": {"certificate_file": str(certificate), "private_key_file": str(key)}}
    small = running_broker(
        tmp_path / "small", emulator, channel_arguments={"grpc.server_handshake_timeout_ms": 100}, listen=listen
    )
    async with (
        running_broker(tmp_path / "shipped", emulator, listen=listen) as shipped,
        small as hasty,
        raw_connection(shipped.app.caller_address, preface=False) as control,
        raw_connection(hasty.app.caller_address, preface=False) as subject,
    ):
        waiting = asyncio.ensure_future(control.closed())
        await subject.closed()
        assert not waiting.done()
        waiting.cancel()


async def refused_of_burst(broker: Broker, calls: int) -> int:
    """Send calls in one go and count those that the server was too busy for."""
    request = Request(GET_AUTHORIZATION, pb2.GetAuthorizationRequest(scope="none").SerializeToString(), GUARD)
    async with raw_connection(broker.app.caller_address) as connection:
        connection.send(b"".join(request.on(1 + 2 * number) for number in range(calls)))
        ends = await connection.until(FrameType.HEADERS, flags=Flag.END_STREAM, count=calls)
    return [grpc_status(block) for block in ends].count("CANCELLED")


async def test_so_many_calls_may_wait_to_be_begun(twins: Twins) -> None:
    """`server.max_pending_requests_hard_limit`: the calls beyond it are refused; with what is shipped, all are taken."""
    small, shipped = await twins(server__max_pending_requests=1, server__max_pending_requests_hard_limit=2)
    assert await refused_of_burst(small, 99) > 0
    assert await refused_of_burst(shipped, 99) == 0


async def test_calls_that_wait_are_refused_by_chance_beyond_the_soft_limit(twins: Twins) -> None:
    """`server.max_pending_requests`: from there to the hard limit the chance to be refused grows."""
    small, _ = await twins(server__max_pending_requests=1, server__max_pending_requests_hard_limit=100)
    assert await refused_of_burst(small, 99) > 0


async def test_no_call_is_refused_below_the_soft_limit(twins: Twins) -> None:
    """`server.max_pending_requests`: a hard limit that is hardly above it refuses nobody below."""
    small, _ = await twins(server__max_pending_requests=100, server__max_pending_requests_hard_limit=101)
    assert await refused_of_burst(small, 99) == 0
