"""
A gRPC service over TLS that says which metadata it got and whether the emulator accepts them.

So that stubs of every language can call it, it is a `CredentialBroker` of which only `ListScopes` is built: its answer
has one scope for each entry of the metadata, with its name and, as description, its value. A call whose headers the
emulator does not accept is UNAUTHENTICATED.
"""

import ssl
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import httpx
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

from tests.support.certificates import Pair

_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""The emulator speaks plaintext; loading the machine's authorities would take a tenth of a second."""
_OF_THE_CREDENTIAL: Final = ("authorization", "chatgpt-account-id", "x-openai-fedramp")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedCall:
    """One call: its metadata in order, and the emulator's status of the same headers."""

    headers: list[tuple[str, str]]
    status: int

    def values(self, name: str) -> list[str]:
        """Return every value of a name."""
        return [value for one, value in self.headers if one == name]


class GrpcEcho(credential_broker_pb2_grpc.CredentialBrokerServicer):
    """
    An echo for as long as the `async with` block lasts.

    Args:
        emulator_url: who verifies.
        pair: the certificate and key to serve with.

    Attributes:
        address: `127.0.0.1:port`.
        requests: all calls, in order.
    """

    def __init__(self, emulator_url: str, pair: Pair) -> None:
        self.address = ""
        self.requests: list[ReceivedCall] = []
        self._emulator_url = emulator_url
        self._pair = pair

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(trust_env=False, timeout=10, verify=_NO_TLS)
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        credential_broker_pb2_grpc.add_CredentialBrokerServicer_to_server(self, self._server)
        tls = grpc.ssl_server_credentials(((self._pair.key, self._pair.certificate),))
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', tls)}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)
        await self._client.aclose()

    async def ListScopes(self, request: Any, context: Any) -> pb2.ListScopesResponse:
        """Answer with the metadata of the call."""
        headers = [(name, value) for name, value in context.invocation_metadata() or () if isinstance(value, str)]
        presented = [(name, value) for name, value in headers if name in _OF_THE_CREDENTIAL]
        verdict = await self._client.get(f"{self._emulator_url}/backend-api/codex/models", headers=presented)
        self.requests.append(ReceivedCall(headers=headers, status=verdict.status_code))
        if verdict.is_error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the emulator does not accept these headers")
        return pb2.ListScopesResponse(scopes=[pb2.ScopeRule(scope=name, description=value) for name, value in headers])
