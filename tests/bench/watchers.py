"""
Many WatchAuthorizations streams at once, on raw HTTP/2: subscribes, reads on a thread of its own, and keeps count.

Like the load of unary calls it must cost less than the server under measurement, so a value is unpacked only where its
times are asked for.
"""

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from credentialbroker.v1 import credential_broker_pb2 as pb

from tests.bench.frames import (
    PREFACE,
    SETTINGS_ACK,
    Flag,
    FrameReader,
    FrameType,
    frame,
    grpc_status,
    literal,
    ping_ack,
)
from tests.bench.load import LoadError, Sample
from tests.bench.product import GUARD, SERVICE

WATCH: Final = f"/{SERVICE}/WatchAuthorizations"
STREAMS_A_CONNECTION: Final = 50
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 60.0
_RECEIVE_BYTES: Final = 262_144
_MESSAGE_HEAD_BYTES: Final = 5
_CLEARTEXT_POST: Final = b"\x83\x86"

Subscriptions = Callable[[int], Iterable[pb.Subscribe]]
"""What the stream of a number subscribes to."""


@dataclass(slots=True)
class Received:
    """
    What all streams received.

    Attributes:
        values: how many values.
        late: how many came after the `refresh_time` of the one before, by the wall clock.
        others: how many events of other kinds.
        samples: some of the values.
        due: when the newest value of each subscription is due, by stream and name; only where times are looked at.
        trouble: what went wrong, if anything did.
    """

    values: int = 0
    late: int = 0
    others: int = 0
    samples: list[Sample] = field(default_factory=list)
    due: dict[tuple[int, int, str], float] = field(default_factory=dict)
    trouble: str = ""


class _Connection:
    def __init__(self, number: int, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.number = number
        self.socket = socket.create_connection((host, int(port)), _CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = FrameReader()
        self.partial: dict[int, bytes] = {}
        self.answered: set[int] = set()
        self.socket.sendall(PREFACE)


class Watchers:
    """
    Streams at one server, each with its subscriptions.

    Args:
        address: the server's.
        streams: how many.
        subscriptions: what each subscribes to.
        looks_at_times: whether each value's times are looked at.
        sample_every: every how many values one is kept; 0 keeps none.
    """

    def __init__(
        self,
        address: str,
        *,
        streams: int,
        subscriptions: Subscriptions,
        looks_at_times: bool = False,
        sample_every: int = 0,
    ) -> None:
        self.received = Received()
        self._looks_at_times = looks_at_times
        self._sample_every = sample_every
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_forever, name="watchers", daemon=True)
        for number in range(-(-streams // STREAMS_A_CONNECTION)):
            connection = _Connection(number, address)
            self._connections.append(connection)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._streams = streams
        self._subscriptions = subscriptions

    def __enter__(self) -> Self:
        self._thread.start()
        for connection in self._connections:
            first = connection.number * STREAMS_A_CONNECTION
            wishes = [list(self._subscriptions(number)) for number in range(first, first + STREAMS_A_CONNECTION)]
            wishes = wishes[: self._streams - first]
            openings = [_opening(2 * number + 1, wish) for number, wish in enumerate(wishes)]
            connection.socket.sendall(b"".join(openings))
            # One crowd after the other: grpcio cancels calls that wait for 30 s to be looked at.
            self._wait(lambda: len(connection.answered) >= sum(map(bool, wishes)), seconds=_ANSWER_SECONDS)  # noqa: B023
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def wait_for_events(self, count: int, *, seconds: float) -> None:
        """
        Wait until so many events came in all.

        Raises:
            LoadError: they did not in time, or a stream ended.
        """
        received = self.received
        self._wait(lambda: received.values + received.others >= count, seconds=seconds)

    def _wait(self, condition: Callable[[], bool], *, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > end:
                raise LoadError(f"no more than {self.received.values} values came within {seconds:.0f} s")
            time.sleep(0.01)

    def check(self) -> None:
        """
        See that all streams are there.

        Raises:
            LoadError: one ended.
        """
        if self.received.trouble:
            raise LoadError(self.received.trouble)

    def overdue(self) -> int:
        """Count the subscriptions whose newest value is past its `refresh_time` now."""
        now = time.time()
        return sum(due < now for due in list(self.received.due.values()))

    def _read_forever(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                try:
                    self._read(key.data)
                except (OSError, ValueError, LoadError) as error:
                    self.received.trouble = str(error)
                    return

    def _read(self, connection: _Connection) -> None:
        data = connection.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise LoadError("a connection was closed")
        for kind, flags, stream_id, payload in connection.reader.feed(data):
            if kind == FrameType.DATA:
                self._take(connection, stream_id, payload)
            elif kind == FrameType.PING and not flags & Flag.ACK:
                connection.socket.sendall(ping_ack(payload))
            elif kind == FrameType.SETTINGS and not flags & Flag.ACK:
                connection.socket.sendall(SETTINGS_ACK)
            elif kind == FrameType.HEADERS and flags & Flag.END_STREAM:
                raise LoadError(f"a stream ended with {grpc_status(payload)}")
            elif kind in {FrameType.RST_STREAM, FrameType.GOAWAY}:
                raise LoadError(f"a stream was cut: {FrameType(kind).name}")

    def _take(self, connection: _Connection, stream_id: int, payload: bytes) -> None:
        connection.answered.add(stream_id)
        data = connection.partial.pop(stream_id, b"") + payload
        start = 0
        while len(data) - start >= _MESSAGE_HEAD_BYTES:
            body = start + _MESSAGE_HEAD_BYTES
            after = body + int.from_bytes(data[start + 1 : body], "big")
            if after > len(data):
                break
            self._count(connection, stream_id, data[body:after])
            start = after
        if start < len(data):
            connection.partial[stream_id] = data[start:]

    def _count(self, connection: _Connection, stream_id: int, message: bytes) -> None:
        received, now = self.received, time.time()
        is_sampled = self._sample_every and received.values % self._sample_every == 0
        if self._looks_at_times or is_sampled or len(message) < _SHORTEST_VALUE:
            event = pb.WatchAuthorizationsResponse.FromString(message)
            if not event.HasField("authorization"):
                received.others += 1
                return
            if is_sampled:
                answer = pb.GetAuthorizationResponse(authorization=event.authorization)
                received.samples.append(Sample(answer.SerializeToString(), now))
            if self._looks_at_times:
                key = (connection.number, stream_id, event.subscription_id)
                received.late += received.due.get(key, now) < now
                refresh = event.authorization.refresh_time
                received.due[key] = refresh.seconds + refresh.nanos / 1e9
        received.values += 1


_SHORTEST_VALUE: Final = 400
"""An assertion alone is longer than this; no other event is nearly so long."""


def _opening(stream_id: int, subscriptions: Iterable[pb.Subscribe]) -> bytes:
    fields = {
        ":path": WATCH,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **GUARD,
    }
    block = _CLEARTEXT_POST + b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())
    frames = [frame(FrameType.HEADERS, Flag.END_HEADERS, stream_id, block)]
    for wish in subscriptions:
        message = pb.WatchAuthorizationsRequest(subscribe=wish).SerializeToString()
        frames.append(frame(FrameType.DATA, Flag.NONE, stream_id, b"\x00" + len(message).to_bytes(4, "big") + message))
    return b"".join(frames)
