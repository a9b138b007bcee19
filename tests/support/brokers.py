"""A whole broker on loopback with an emulator behind it: what most integration tests stand on."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc, error_reason_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from broker.app import Application
from broker.clock import Clock
from broker.config import Config, load_config
from broker.emulator import EmulatorServer, EmulatorSettings
from broker.store import Store

GUARD = (("x-credential-broker", "1"),)
_REQUEST_IDS = itertools.count(1)


@dataclass
class Broker:
    """A running broker, the emulator behind it, and stubs that send the guard metadata."""

    app: Application
    emulator: EmulatorServer
    callers: "credential_broker_pb2_grpc.CredentialBrokerAsyncStub"
    admin: "broker_admin_pb2_grpc.BrokerAdminAsyncStub"
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    async def create_agent(self, name: str = "agent", **fields: Any) -> admin_pb2.Identity:
        """Create an identity of mode AGENT with a bearer that the emulator minted."""
        fields.setdefault(
            "static_bearer",
            admin_pb2.StaticBearer(token=self.emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token),
        )
        answer = await self.admin.CreateIdentity(
            admin_pb2.CreateIdentityRequest(
                request_id=f"r{next(_REQUEST_IDS)}",
                name=name,
                backend="default",
                mode=admin_pb2.IDENTITY_MODE_AGENT,
                **fields,
            )
        )
        return answer.identity

    async def authorize(
        self, scope: str = "inference", thread_id: str = "", *, timeout: float = 5.0, **fields: Any
    ) -> pb2.Authorization:
        """Call GetAuthorization."""
        request = pb2.GetAuthorizationRequest(scope=scope, thread_id=thread_id, **fields)
        return (await self.callers.GetAuthorization(request, timeout=timeout)).authorization

    async def sees(self, authorization: pb2.Authorization, path: str = "/backend-api/codex/models") -> httpx.Response:
        """Send the headers to the emulator's protected resource, as a caller would."""
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.get(
                self.emulator.url + path, headers={item.name: item.value for item in authorization.headers}
            )

    def registrations(self, operation: str = "task_register") -> int:
        """Count the registrations of one kind that the emulator took."""
        return sum(1 for _ in self.emulator.backend.ledger.entries(operation=operation))


class _Guarded(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds the guard metadata to every unary call."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_guard(details), request)


class _GuardedStream(grpc.aio.StreamStreamClientInterceptor):
    """Adds it to streams; gRPC takes an object for one kind of call only, whatever it could intercept."""

    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(_with_guard(details), requests)


def _with_guard(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), *GUARD)
    return details._replace(metadata=metadata)


def guarded_channel(address: str, options: Mapping[str, Any] | None = None) -> grpc.aio.Channel:
    """Open a plaintext channel whose calls carry the guard metadata."""
    target = address if address.startswith("unix:") else f"ipv4:{address}"
    interceptors = (_Guarded(), _GuardedStream())
    return grpc.aio.insecure_channel(target, options=tuple((options or {}).items()), interceptors=interceptors)


def dev_config(state_dir: Path, backend_url: str, **sections: Mapping[str, Any]) -> Config:
    """Return the settings of a development broker on free loopback ports; `sections` are laid over them."""
    values: dict[str, dict[str, Any]] = {
        "broker": {"state_dir": str(state_dir), "drain_seconds": 0, "reflection": True, "grant_bootstrap": True},
        "listen": {"callers": ["127.0.0.1:0"], "admin": ["127.0.0.1:0"], "http": "127.0.0.1:0"},
        "backends": {
            "default": {
                "base_url": f"{backend_url}/backend-api",
                "authapi_base_url": f"{backend_url}/api/accounts",
            }
        },
    }
    for section, settings in sections.items():
        values.setdefault(section, {}).update(settings)
    return load_config(None, {}, dev=True, overrides=values)


@contextlib.asynccontextmanager
async def running_emulator(**settings: Any) -> AsyncIterator[EmulatorServer]:
    """Run an emulator on a free port."""
    async with EmulatorServer(EmulatorSettings(port=0, **settings)) as emulator:
        yield emulator


@contextlib.asynccontextmanager
async def running_broker(
    state_dir: Path,
    emulator: EmulatorServer,
    *,
    clock: Clock | None = None,
    wrap_store: Callable[[Store], Store] | None = None,
    channel_arguments: Mapping[str, int] | None = None,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Broker]:
    """Run a broker in this process until the end of the block, unless the block stopped it itself."""
    app = Application(
        dev_config(state_dir, emulator.url, **sections),
        clock=clock,
        wrap_store=wrap_store,
        channel_arguments=channel_arguments,
    )
    await app.start()
    channels = [guarded_channel(app.caller_address), guarded_channel(app.admin_address)]
    try:
        yield Broker(
            app,
            emulator,
            credential_broker_pb2_grpc.CredentialBrokerStub(channels[0]),
            broker_admin_pb2_grpc.BrokerAdminStub(channels[1]),
            channels,
        )
    finally:
        for channel in channels:
            await channel.close()
        if not app.stop_requested:
            await app.stop()


@dataclass(frozen=True)
class Refusal:
    """What a caller learns of a refused call."""

    code: grpc.StatusCode
    reason: str
    violations: dict[str, str]
    retry_seconds: float | None
    details: list[Any]


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Unpack a status; exactly one ErrorInfo of our domain must be there, with a reason of the enum."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    unpacked: list[Any] = []
    for packed in status.details:
        kind = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])
        message = kind()
        assert packed.Unpack(message)
        unpacked.append(message)
    (info,) = [one for one in unpacked if isinstance(one, error_details_pb2.ErrorInfo)]
    assert info.domain == "credentialbroker.v1"
    assert f"ERROR_REASON_{info.reason}" in error_reason_pb2.ErrorReason.keys()
    retry = [one for one in unpacked if isinstance(one, error_details_pb2.RetryInfo)]
    bad = [one for one in unpacked if isinstance(one, error_details_pb2.BadRequest)]
    return Refusal(
        error.code(),
        info.reason,
        {violation.field: violation.description for one in bad for violation in one.field_violations},
        retry[0].retry_delay.ToMilliseconds() / 1000 if retry else None,
        unpacked,
    )


async def refused(call: Any) -> Refusal:
    """Await a call that must be refused."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"was not refused: {answer!r}")


async def eventually(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait until something holds; fail when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
