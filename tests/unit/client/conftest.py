"""What the tests of the Python client share: authorizations, and a small broker on loopback."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from credentialbroker.authorization import Authorization, Key
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

SCOPE_UNKNOWN = status_pb2.Status(code=3, message="no such scope")
SCOPE_UNKNOWN.details.add().Pack(
    error_details_pb2.ErrorInfo(reason="SCOPE_UNKNOWN", domain="credentialbroker.v1", metadata={"scope": "inferense"})
)
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
        if request.scope == "inferense":
            context.abort_with_status(rpc_status.to_status(SCOPE_UNKNOWN))
        if request.scope == "garbled":
            context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "from a proxy")
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


@dataclass
class Server:
    """An HTTP server that remembers each request, and answers as the path says."""

    url: str = ""
    seen: list[tuple[str, dict[str, list[str]], bytes]] = field(default_factory=list)

    def revisions(self) -> list[str]:
        """Return the end of each Authorization that came."""
        return ["".join(headers.get("authorization", ["none"])).rpartition("-")[2] for _, headers, _ in self.seen]


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """The backend, and a trap that is another origin."""
    running = []

    def start() -> Server:
        server = Server()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers: dict[str, list[str]] = {}
                for name, value in self.headers.items():
                    headers.setdefault(name.lower(), []).append(value)
                chunked = self.headers.get("transfer-encoding") == "chunked"
                body = self.chunks() if chunked else self.rfile.read(int(self.headers.get("content-length", 0)))
                server.seen.append((self.path, headers, body))
                rejected = self.path == "/reject" or (
                    self.path == "/heal" and "better" not in headers["authorization"][0]
                )
                if self.path == "/cut" and "better" in headers["authorization"][0]:
                    self.close_connection = True
                    return
                rejected = rejected or self.path == "/cut"
                self.send_response(401 if rejected else 302 if self.path.startswith("/to/") else 200)
                if self.path.startswith("/to/"):
                    self.send_header("location", self.path.removeprefix("/to/"))
                self.send_header("content-length", "0")
                self.end_headers()

            do_POST = do_GET

            def chunks(self) -> bytes:
                whole = b""
                while size := int(self.rfile.readline(), 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((http, thread))
        server.url = f"http://127.0.0.1:{http.server_port}"
        return server

    yield start(), start()
    for http, thread in running:
        http.shutdown()
        http.server_close()
        thread.join()
