"""What the clients of five languages are tested against: an HTTP origin and a gRPC echo that have headers verified."""

from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

from tests.support.brokers import running_emulator
from tests.support.certificates import Authority
from tests.support.grpc_echo import GrpcEcho
from tests.support.http_origin import HttpOrigin


async def test_the_origin_has_headers_verified_and_writes_down_what_came() -> None:
    """Its verdict is the emulator's, and a rejection is of one request of each key."""
    async with running_emulator() as emulator, HttpOrigin(emulator.url) as origin, httpx.AsyncClient() as client:
        pair = emulator.backend.mint_token()
        headers = {"authorization": f"Bearer {pair.access_token}", "chatgpt-account-id": pair.account.account_id or ""}
        assert (await client.get(f"{origin.url}/verify")).status_code == 401
        assert (await client.get(f"{origin.url}/verify", headers=headers)).json()["verdict"] == "verified"
        for key, expected in (("a", 401), ("a", 200), ("b", 401)):
            answer = await client.get(f"{origin.url}/reject-once?key={key}", headers=headers)
            assert answer.status_code == expected
        assert (await client.put(f"{origin.url}/reject-always")).status_code == 401
        posted = await client.post(f"{origin.url}/x", content=_pieces(), headers=[("a", "1"), ("a", "2")])
        assert posted.json() == {"method": "POST", "path": "/x", "body": "onetwo"}
        redirect = await client.get(f"{origin.url}/redirect?to=http://127.0.0.1:1/x&status=307")
        assert (redirect.status_code, redirect.headers["location"]) == (307, "http://127.0.0.1:1/x")
        posts = [request for request in origin.requests if request.method == "POST"]
        assert [(request.values("a"), request.body, request.status) for request in posts] == [
            (["1", "2"], "onetwo", 200)
        ]


async def test_the_origin_ends_a_connection_when_told_and_tells_connections_apart() -> None:
    """A rejection leaves the connection to the next request; what is cut off is written down without a status."""
    async with HttpOrigin() as origin, httpx.AsyncClient() as client:
        assert len((await client.get(f"{origin.url}/reject-always?bytes=1000")).json()["error"]["more"]) == 1000
        assert (await client.get(f"{origin.url}/reject-then-cut?key=a")).status_code == 401
        with pytest.raises(httpx.TransportError):
            await client.get(f"{origin.url}/reject-then-cut?key=a")
        assert (await client.get(f"{origin.url}/x")).status_code == 200
    assert [request.status for request in origin.requests] == [401, 401, 0, 200]
    first, second, cut, after = (request.connection for request in origin.requests)
    assert first == second == cut != after


async def _pieces() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


async def test_the_echo_answers_the_metadata_that_the_emulator_accepts() -> None:
    """It speaks TLS only, and refuses what is not accepted."""
    authority = Authority()
    async with running_emulator() as emulator, GrpcEcho(emulator.url, authority.issue()) as echo:
        credentials = grpc.ssl_channel_credentials(authority.certificate)
        async with grpc.aio.secure_channel(echo.address, credentials) as channel:
            stub = credential_broker_pb2_grpc.CredentialBrokerStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListScopes(pb2.ListScopesRequest(), metadata=(("authorization", "Bearer x"),))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            pair = emulator.backend.mint_token()
            metadata = (
                ("authorization", f"Bearer {pair.access_token}"),
                ("chatgpt-account-id", pair.account.account_id or ""),
            )
            answer = await stub.ListScopes(pb2.ListScopesRequest(), metadata=metadata)
        assert set(metadata) <= {(scope.scope, scope.description) for scope in answer.scopes}
        assert [call.status for call in echo.requests] == [401, 200]
        assert echo.requests[1].values("authorization") == [metadata[0][1]]
