"""The load generator against real grpcio servers: what it says of a call is what the server did."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.bench.cost import start_echo
from tests.bench.frames import Request
from tests.bench.load import Load, LoadError, call
from tests.bench.product import get_authorization

ANSWER = b"a" * 900
FLOOD = 2048
"""More calls in flight than grpcio takes without settings for it (about 1,000)."""


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    """Address of an echo in a process of its own."""
    with start_echo(tmp_path, "echo", ANSWER, core=None, as_bytes=True) as server:
        yield server.next_event()["address"]


class Odd:
    """A server of this process that does other things than answer at once."""

    def __init__(self) -> None:
        self.calls = 0

    def every_other(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Refuse every second call, with texts that look like a good status."""
        self.calls += 1
        if self.calls % 2:
            context.set_trailing_metadata((("x-more", "grpc-status0"),))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "grpc-status 0")
        return request

    def large(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer in many frames."""
        return request * 100_000


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start an `Odd` with options of grpcio, and return its address."""
    with ThreadPoolExecutor(4) as pool:
        servers = []

        def start(**options: Any) -> str:
            odd = Odd()
            server = grpc.server(pool, options=[(f"grpc.{name}", value) for name, value in options.items()])
            handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
                "EveryOther": grpc.unary_unary_rpc_method_handler(odd.every_other),
                "Large": grpc.unary_unary_rpc_method_handler(odd.large),
            }
            server.add_registered_method_handlers("t.Odd", handlers)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            servers.append(server)
            return f"127.0.0.1:{port}"

        yield start
        for server in servers:
            server.stop(None).wait()


def test_every_call_is_answered_and_sampled_as_asked(echo: str) -> None:
    """A run of so many calls makes exactly those, all OK, and keeps every tenth answer."""
    with Load(echo, get_authorization(), connections=3, streams=5, sample_every=10) as load:
        run = load.for_calls(200)
        assert (run.calls, run.failures, run.peak_in_flight, len(run.latencies)) == (200, 0, 15, 200)
        assert [sample.message for sample in run.samples] == [ANSWER] * 20
        assert load.for_calls(7).calls == 7


def test_a_run_of_some_time_ends_with_no_call_open(echo: str) -> None:
    """Every call that a run began has ended with it, so the next one starts from nothing."""
    with Load(echo, get_authorization(), connections=2, streams=4) as load:
        first, second = load.for_seconds(0.05), load.for_seconds(0.05)
    for run in (first, second):
        assert run.calls == len(run.latencies) >= 8
        assert run.failures == 0


def test_a_flood_beyond_the_limit_of_grpcio_is_seen_to_fail(echo: str) -> None:
    """Calls that a server cancels are counted as such, so that 0 errors elsewhere mean something."""
    with Load(echo, get_authorization(), connections=32, streams=FLOOD // 32) as load:
        run = load.for_calls(2 * FLOOD)
    assert run.peak_in_flight == FLOOD
    assert run.failures > 0
    assert run.calls == 2 * FLOOD


def test_refusals_are_counted_by_their_status(serve: Callable[..., str]) -> None:
    """A refused call is no OK, whatever its text and its other trailers say."""
    with Load(serve(), Request("/t.Odd/EveryOther", b"x"), streams=1, sample_every=1) as load:
        run = load.for_calls(20)
    assert run.outcomes == Counter({"PERMISSION_DENIED": 10, "OK": 10})
    assert [sample.message for sample in run.samples] == [b"x"] * 10


def test_a_method_that_does_not_exist_is_unimplemented(serve: Callable[..., str]) -> None:
    """An answer of trailers alone is understood too."""
    assert call(serve(), Request("/t.Odd/Missing", b"")) == ("UNIMPLEMENTED", b"")


def test_an_answer_of_many_frames_is_kept_whole(serve: Callable[..., str]) -> None:
    """A message beyond a frame's size, and beyond the window HTTP/2 begins with, arrives complete."""
    assert call(serve(), Request("/t.Odd/Large", b"0123456789")) == ("OK", b"0123456789" * 100_000)


def test_more_streams_than_the_server_allows_are_refused_at_once(serve: Callable[..., str]) -> None:
    """A load that could not be in flight does not pretend to be."""
    address = serve(max_concurrent_streams=3)
    with pytest.raises(LoadError, match="allows 3 streams a connection, not 4"):
        Load(address, get_authorization(), streams=4)


def test_a_server_that_goes_away_ends_the_run(serve: Callable[..., str]) -> None:
    """A connection that the server ends for its age is reported, not counted as anything."""
    address = serve(max_connection_age_ms=50, max_connection_age_grace_ms=5000)
    with (
        Load(address, Request("/t.Odd/EveryOther", b"x")) as load,
        pytest.raises(LoadError, match="the server is going away"),
    ):
        load.for_seconds(20)
