"""What the tests of the Python client share: authorizations, and a small broker on loopback."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from credentialbroker.authorization import Authorization, Key
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

YEARS = 30 * 365 * 86_400
"""How far the broker's clock is from this machine's: far enough that comparing them would show."""


def message(revision: str = "r1", *, lifetime: float = 60.0, tag: str = "tag") -> pb2.Authorization:
    """Return an authorization as the broker sends it."""
    made = pb2.Authorization(
        headers=[
            pb2.Header(name="authorization", value=f"AgentAssertion s3cret-{revision}", sensitive=True),
            pb2.Header(name="chatgpt-account-id", value="account"),
        ],
        kind=pb2.CREDENTIAL_KIND_AGENT_ASSERTION,
        reason=pb2.DECISION_REASON_TASK_ASSERTION,
        revision=revision,
        identity="agent",
        connection_tag=tag,
    )
    made.server_time.FromSeconds(YEARS)
    made.refresh_time.FromNanoseconds(round((YEARS + lifetime / 2) * 1e9))
    made.expire_time.FromNanoseconds(round((YEARS + lifetime) * 1e9))
    return made


def authorization(
    revision: str = "r1",
    *,
    key: Key = Key("", "inference", "t"),  # noqa: B008 - a tuple never changes
    received: float = 0.0,
    lifetime: float = 60.0,
    tag: str = "tag",
) -> Authorization:
    """Return an authorization as the client keeps it, received at a time of the test's own."""
    return Authorization(message(revision, lifetime=lifetime, tag=tag), key, received)


@dataclass
class SmallBroker(credential_broker_pb2_grpc.CredentialBrokerServicer):
    """Answers each call with the next revision, after `gate` opens; streams stay silent."""

    address: str = ""
    calls: list[Any] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    answer: Callable[[int], pb2.Authorization] = field(default=lambda number: message(f"r{number}"))

    def GetAuthorization(self, request: Any, context: Any) -> pb2.GetAuthorizationResponse:
        self.calls.append(request)
        number = len(self.calls)
        self.gate.wait(20)
        return pb2.GetAuthorizationResponse(authorization=self.answer(number))

    def ReportRejected(self, request: Any, context: Any) -> pb2.ReportRejectedResponse:
        self.reports.append(request)
        if request.revision.startswith("hopeless"):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing is left to try")
        return pb2.ReportRejectedResponse(authorization=message(f"better{len(self.reports)}"))

    def WatchAuthorizations(self, requests: Any, context: Any) -> Iterator[pb2.WatchAuthorizationsResponse]:
        context.send_initial_metadata((("x-credential-broker", "1"),))
        for _ in requests:
            pass
        yield from ()


@pytest.fixture
def broker() -> Iterator[SmallBroker]:
    """A small broker that answers at once."""
    small = SmallBroker()
    small.gate.set()
    server = grpc.server(futures.ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
    credential_broker_pb2_grpc.add_CredentialBrokerServicer_to_server(small, server)
    small.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield small
    small.gate.set()
    server.stop(None).wait()
