"""
The load generator: keeps a fixed number of calls in flight at one server and checks how each of them ended.

It costs the machine far less a call than a grpcio server does (docs/performance.md), so one core of load saturates one
core of server. A run ends when every call it began has ended: what it counts is exactly what the server worked for.
"""

import contextlib
import selectors
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from tests.bench.frames import (
    PREFACE,
    SETTINGS_ACK,
    STATUS_NAMES,
    Flag,
    FrameReader,
    FrameType,
    ProtocolError,
    Request,
    grpc_status,
    max_concurrent_streams,
    messages,
    ping_ack,
    reset_cause,
    window_update,
)

OK: Final = STATUS_NAMES[0]
DRAIN_SECONDS: Final = 20.0
"""How long the calls in flight at the end of a run may take; above the broker's own deadline of 10 s."""
_CONNECT_SECONDS: Final = 5.0
_RECEIVE_BYTES: Final = 262_144
_WINDOW_STEP: Final = 2**30


class LoadError(Exception):
    """The load could not be kept up, so whatever was measured means nothing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The message of one answer, serialized, and when it came in Unix seconds."""

    message: bytes = field(repr=False)
    time: float


@dataclass(slots=True, kw_only=True)
class Run:
    """
    What one run did.

    Attributes:
        outcomes: calls by how they ended: the name of a gRPC status, or `RST_STREAM` and the name of an error of HTTP/2.
        seconds: from the first call to the last answer.
        peak_in_flight: the most calls that were unanswered at once.
        latencies: seconds from sending to the trailers, unordered, one a call.
        samples: the answers to every `sample_every`-th call, in the order they came; those that failed have none.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_in_flight: int = 0
    latencies: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many calls were begun; all of them have ended."""
        return self.outcomes.total()

    @property
    def failures(self) -> int:
        """How many of them did not end OK."""
        return self.calls - self.outcomes[OK]


class _Connection:
    __slots__ = ("allowed", "consumed", "next_stream", "reader", "sampled", "sent", "socket")

    def __init__(self, address: str) -> None:
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(_CONNECT_SECONDS)
            self.socket.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = FrameReader()
        self.next_stream = 1
        self.sent: dict[int, float] = {}
        """When each call in flight was sent."""
        self.sampled: dict[int, bytes] = {}
        """The data so far of the calls in flight whose answers are kept."""
        self.consumed = 0
        self.allowed: int | None = None

    def greet(self) -> None:
        """
        Exchange settings.

        A server that has not seen ours would index the headers of its first answers, and one whose own are unread would
        have calls beyond its limit.
        """
        self.send(PREFACE)
        greeted = acknowledged = False
        while not (greeted and acknowledged):
            replies = []
            for kind, flags, _, payload in self.reader.feed(self.receive()):
                if kind == FrameType.SETTINGS and flags & Flag.ACK:
                    acknowledged = True
                elif kind == FrameType.SETTINGS:
                    greeted = True
                    self.allowed = max_concurrent_streams(payload)
                    replies.append(SETTINGS_ACK)
                elif kind == FrameType.PING and not flags & Flag.ACK:
                    replies.append(ping_ack(payload))
            self.send(b"".join(replies))

    def receive(self) -> bytes:
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            raise LoadError("the server closed a connection")
        return data

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except ConnectionError:
            raise LoadError("the server closed a connection") from None


class Load:
    """
    Connections to one server, kept between runs.

    Args:
        address: `HOST:PORT` or `unix:PATH`.
        request: what to call.
        connections: how many to open.
        streams: calls in flight on each of them; their product is the number of calls in flight.
        sample_every: keep the answer of every so many calls for checking; 0 keeps none.

    Raises:
        OSError: the server cannot be reached.
        LoadError: the server allows fewer streams a connection.
    """

    def __init__(
        self, address: str, request: Request, *, connections: int = 1, streams: int = 1, sample_every: int = 0
    ) -> None:
        self._request = request
        self._streams = streams
        self._sample_every = sample_every
        self._begun = 0
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(connections):
                connection = _Connection(address)
                self._connections.append(connection)
                connection.greet()
                if connection.allowed is not None and connection.allowed < streams:
                    raise LoadError(f"the server allows {connection.allowed} streams a connection, not {streams}")
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def for_seconds(self, seconds: float) -> Run:
        """
        Keep every stream busy for a time, then wait for the calls in flight.

        Raises:
            LoadError: a connection was closed, or calls were not answered within `DRAIN_SECONDS`.
            ProtocolError: what came was not an answer of a gRPC server.
        """
        return self._run(until=time.perf_counter() + seconds, calls=None)

    def for_calls(self, calls: int) -> Run:
        """
        Make so many calls, as many at a time as there are streams.

        Raises:
            LoadError: as for `for_seconds`.
            ProtocolError: as for `for_seconds`.
        """
        return self._run(until=None, calls=calls)

    def _run(self, *, until: float | None, calls: int | None) -> Run:
        run = Run()
        left = calls if calls is not None else 2**63
        start = time.perf_counter()
        # All streams of all connections are begun before the first answer is read: that is the peak.
        for connection in self._connections:
            count = min(self._streams, left)
            connection.send(self._begin(connection, count, time.perf_counter()))
            left -= count
            run.peak_in_flight += count
        in_flight = run.peak_in_flight
        give_up = None
        while in_flight:
            ready = self._selector.select(0.1)
            now = time.perf_counter()
            if until is not None and now >= until:
                left = 0
            if left == 0 and give_up is None:
                give_up = now + DRAIN_SECONDS
            if give_up is not None and now > give_up:
                raise LoadError(f"{in_flight} calls were not answered within {DRAIN_SECONDS:.0f} s")
            for key, _ in ready:
                connection = key.data
                ended, replies = self._read(connection, run, now)
                count = min(ended, left)
                if count:
                    replies.append(self._begin(connection, count, now))
                    left -= count
                in_flight += count - ended
                if replies:
                    connection.send(b"".join(replies))
        run.seconds = time.perf_counter() - start
        return run

    def _begin(self, connection: _Connection, count: int, now: float) -> bytes:
        frames = []
        for _ in range(count):
            stream_id = connection.next_stream
            connection.next_stream += 2
            connection.sent[stream_id] = now
            if self._sample_every and self._begun % self._sample_every == 0:
                connection.sampled[stream_id] = b""
            self._begun += 1
            frames.append(self._request.on(stream_id))
        return b"".join(frames)

    def _read(self, connection: _Connection, run: Run, now: float) -> tuple[int, list[bytes]]:
        """Take what arrived; return how many calls ended and what has to be sent back."""
        ended = 0
        replies: list[bytes] = []
        for kind, flags, stream_id, payload in connection.reader.feed(connection.receive()):
            if kind == FrameType.DATA:
                connection.consumed += len(payload)
                if stream_id in connection.sampled:
                    connection.sampled[stream_id] += payload
                if flags & Flag.END_STREAM:
                    raise ProtocolError("an answer without trailers")
            elif kind == FrameType.HEADERS:
                if flags & Flag.END_STREAM:
                    status = grpc_status(payload)
                    if status is None:
                        raise ProtocolError("trailers without a status")
                    self._end(connection, run, stream_id, status, now)
                    ended += 1
            elif kind == FrameType.RST_STREAM:
                # A server may reset a stream that it has answered; that is no second ending.
                if stream_id in connection.sent:
                    self._end(connection, run, stream_id, f"RST_STREAM {reset_cause(payload)}", now)
                    ended += 1
            elif kind == FrameType.PING and not flags & Flag.ACK:
                replies.append(ping_ack(payload))
            elif kind == FrameType.SETTINGS and not flags & Flag.ACK:
                replies.append(SETTINGS_ACK)
            elif kind == FrameType.GOAWAY:
                raise LoadError("the server is going away")
            elif kind == FrameType.CONTINUATION:
                raise ProtocolError("a header block in several frames")
        if connection.consumed > _WINDOW_STEP:
            replies.append(window_update(0, connection.consumed))
            connection.consumed = 0
        return ended, replies

    def _end(self, connection: _Connection, run: Run, stream_id: int, outcome: str, now: float) -> None:
        run.latencies.append(now - connection.sent.pop(stream_id))
        run.outcomes[outcome] += 1
        data = connection.sampled.pop(stream_id, None)
        if data is not None:
            run.samples += [Sample(message, time.time()) for message in messages(data)]


def call(address: str, request: Request) -> tuple[str, bytes]:
    """
    Make one call on a connection of its own.

    Returns:
        The name of its status, and the answer's message (empty when there is none).

    Raises:
        OSError: the server cannot be reached.
        LoadError: the connection was closed before the answer.
    """
    with Load(address, request, sample_every=1) as load:
        run = load.for_calls(1)
    (outcome,) = run.outcomes
    return outcome, run.samples[0].message if run.samples else b""
