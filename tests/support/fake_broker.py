"""A broker that is not there: gRPC channels that answer in memory, for tests of what calls one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from broker.cli.channel import Target
from broker.errors import BrokerError
from broker.rpc.status import DETAILS_KEY, code_of, status_of

REQUEST_ID = "request-7"

Answer = Message | BrokerError | grpc.StatusCode | tuple[grpc.StatusCode, str] | Callable[[Any], Message]


@dataclass(frozen=True)
class Received:
    """One call as the broker would have seen it."""

    method: str
    request: Any
    metadata: Mapping[str, str]
    timeout: float | None


class FakeCallError(grpc.RpcError, grpc.Call):
    """How a failed call ends, as grpc's own: an error that is also the call."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...] = ()) -> None:
        super().__init__()
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._trailing

    def initial_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float | None:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False


@dataclass
class FakeBroker:
    """
    Answers calls in memory; to be given to a command as its `obj`.

    Attributes:
        answers: RPC name to what it answers: a message, a function of the request, an outcome of the broker, or a bare
            status as the gRPC runtime makes it.
        received: every call, in order.
        targets: where each channel was to go.
        open_channels: how many are not closed.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    open_channels: int = 0

    def __call__(self, target: Target) -> "FakeChannel":
        self.targets.append(target)
        self.open_channels += 1
        return FakeChannel(self)

    def answer(self, received: Received) -> Message:
        """Record a call and answer it."""
        self.received.append(received)
        answer = self.answers[received.method]
        if isinstance(answer, BrokerError):
            details = ((DETAILS_KEY, status_of(answer, REQUEST_ID).SerializeToString()),)
            raise FakeCallError(code_of(answer), answer.text, details)
        if isinstance(answer, grpc.StatusCode):
            raise FakeCallError(answer, "")
        if isinstance(answer, tuple):
            raise FakeCallError(*answer)
        return answer if isinstance(answer, Message) else answer(received.request)


class FakeChannel(grpc.Channel):
    """A channel into a `FakeBroker`; messages go through their serialized form, as on a wire."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._closed = False

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: Any = None,
    ) -> Any:
        name = method.rpartition("/")[2]

        def call(request: Any, timeout: float | None = None, metadata: Any = ()) -> Any:
            assert not self._closed
            seen = type(request).FromString(request_serializer(request))
            received = Received(name, seen, dict(metadata), timeout)
            return response_deserializer(self._broker.answer(received).SerializeToString())

        return call

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def subscribe(self, callback: Any, try_to_connect: Any = None) -> None:
        raise NotImplementedError

    def unsubscribe(self, callback: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._broker.open_channels -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
