"""A watcher that does not read: it is let go, it costs a bounded amount, and nobody else notices."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import EmulatorServer
from broker.errors import WatcherTooSlowError
from tests.bench.frames import Flag, FrameType, frame, grpc_status
from tests.support.brokers import Broker, eventually, running_broker, running_emulator
from tests.support.raw_http2 import RawConnection, raw_connection
from tests.support.watching import watching

WATCH = "/credentialbroker.v1.CredentialBroker/WatchAuthorizations"
NOTHING_MAY_COME, ANYTHING_MAY_COME = (
    frame(FrameType.SETTINGS, Flag.NONE, 0, (4).to_bytes(2, "big") + window.to_bytes(4, "big")) for window in (0, 2**24)
)
"""The setting by which a client says how much may be sent on each of its streams."""
SUBSCRIPTIONS = 400
"""So many values do not fit into what gRPC buffers of one stream."""


@pytest.fixture
async def emulator() -> AsyncIterator[EmulatorServer]:
    """Run an emulator."""
    async with running_emulator() as emulator:
        yield emulator


@pytest.fixture
async def broker(tmp_path: Path, emulator: EmulatorServer) -> AsyncIterator[Broker]:
    """Run a broker that waits half a second for its readers."""
    async with running_broker(tmp_path / "state", emulator, limits={"watch_write_seconds": 0.5}) as broker:
        await broker.create_agent()
        yield broker


def ask(connection: RawConnection, stream_id: int, count: int) -> None:
    """Open a stream and subscribe so often, all to the same."""
    connection.open_stream(stream_id, WATCH)
    for number in range(count):
        wish = pb2.Subscribe(subscription_id=f"s{number}", scope="inference", thread_id="t1")
        message = pb2.WatchAuthorizationsRequest(subscribe=wish).SerializeToString()
        data = b"\x00" + len(message).to_bytes(4, "big") + message
        connection.send(frame(FrameType.DATA, Flag.NONE, stream_id, data))


def subscriptions(broker: Broker) -> float | None:
    """Return how many subscriptions there are."""
    return broker.app.metrics.registry.get_sample_value("credential_broker_watch_subscriptions")


def dropped(broker: Broker) -> float:
    """Return how many streams were ended because their reader was too slow."""
    registry = broker.app.metrics.registry
    labels = {"reason": "WATCHER_TOO_SLOW"}
    return registry.get_sample_value("credential_broker_watch_dropped_total", labels) or 0.0


async def test_a_reader_that_stops_is_dropped_and_others_go_on(broker: Broker) -> None:
    """All that it held is freed although it never reads; when it does read on, it is told why its stream is over."""
    async with raw_connection(broker.app.caller_address) as stuck, watching(broker.callers) as healthy:
        await stuck.until(FrameType.SETTINGS)
        stuck.send(NOTHING_MAY_COME)
        ask(stuck, 1, SUBSCRIPTIONS)
        for number in range(50):
            await healthy.subscribe(f"h{number}", thread_id=f"healthy{number}")
        for _ in range(50):
            await healthy.value()
        await eventually(lambda: broker.app.watch.topic_count == 50)
        assert subscriptions(broker) == 50
        await healthy.subscribe("after", thread_id="after")
        await healthy.value("after")
        stuck.send(ANYTHING_MAY_COME)
        _, trailers = await stuck.until(FrameType.HEADERS, count=2)
        assert grpc_status(trailers) == "RESOURCE_EXHAUSTED"
        assert WatcherTooSlowError.text.encode() in trailers
        await eventually(lambda: broker.app.watch.stream_count == 1)
        assert dropped(broker) == 1


async def test_a_reader_that_pauses_for_less_gets_everything(tmp_path: Path, emulator: EmulatorServer) -> None:
    """What is behind its pause comes when it goes on: nothing is lost, nothing is sent twice."""
    async with (
        running_broker(tmp_path / "state", emulator) as broker,
        raw_connection(broker.app.caller_address) as slow,
    ):
        await broker.create_agent()
        await slow.until(FrameType.SETTINGS)
        slow.send(NOTHING_MAY_COME)
        ask(slow, 1, SUBSCRIPTIONS)
        await eventually(lambda: subscriptions(broker) == SUBSCRIPTIONS)
        slow.send(ANYTHING_MAY_COME)
        names: list[str] = []
        while len(names) < SUBSCRIPTIONS:
            await slow.until(FrameType.DATA, count=len(slow.of(FrameType.DATA)) + 1)
            names = names_in(b"".join(slow.of(FrameType.DATA)))
        assert sorted(names) == sorted(f"s{number}" for number in range(SUBSCRIPTIONS))
        assert dropped(broker) == 0


def names_in(data: bytes) -> list[str]:
    """Return the subscriptions that whole messages of a stream's data are about."""
    found, start = [], 0
    while len(data) >= start + 5:
        after = start + 5 + int.from_bytes(data[start + 1 : start + 5], "big")
        if after > len(data):
            break
        found.append(pb2.WatchAuthorizationsResponse.FromString(data[start + 5 : after]).subscription_id)
        start = after
    return found
