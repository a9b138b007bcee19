"""
Changes of key under load: how many of the headers that callers were given meanwhile the backend rejected.

Callers ask at a steady rate, whatever becomes of their calls, and send every header they get to the emulator's protected
resource: most at once, some only after a while, since what was signed before a change of key must be accepted after it
too. The emulator verifies each with the key of the agent that it names; its ledger is what is counted.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import httpx
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2

from tests.bench.processes import Cores, Server
from tests.bench.report import Figure, Verdict
from tests.support.brokers import guarded_channel

RATE: Final = 300
IDENTITY: Final = "rotating"
RESOURCE: Final = "/backend-api/codex/models"
THREADS: Final = 24
HELD_BACK: Final = 10
"""Every so many headers one is sent later than at once."""
LEASE_SECONDS: Final = 45
_CALL_SECONDS: Final = 10.0
_ROTATION_SECONDS: Final = 60.0
_CONNECTIONS: Final = 16
_CHANNELS: Final = 8
_OWN_CONNECTION: Final = {"grpc.use_local_subchannel_pool": 1}
_KEPT_RATE: Final = 0.95


@dataclass(slots=True, kw_only=True)
class Observation:
    """
    What one round saw.

    Attributes:
        brokers: how many processes served, on one database.
        calls: GetAuthorization calls made.
        seconds: from the first call to the last.
        failures: calls that were not answered, by reason of their status.
        sent: headers sent to the resource.
        accepted: of them, those that the emulator verified.
        refused: of them, by the emulator's reason.
        agents: runtime ids that accepted headers named.
        rotations: changes of key that were done while callers asked.
        seconds_of_rotations: how long each took.
    """

    brokers: int
    calls: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    agents: int = 0
    rotations: int = 0
    seconds_of_rotations: list[float] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Headers that were sent and not verified."""
        return self.sent - self.accepted


@dataclass(frozen=True, slots=True)
class _Broker:
    callers: "Sequence[credential_broker_pb2_grpc.CredentialBrokerAsyncStub]"
    """One for each channel: a connection takes 100 calls at a time, and a busy machine may have more under way."""
    admin: "broker_admin_pb2_grpc.BrokerAdminAsyncStub"


@asynccontextmanager
async def _emulator(folder: Path, profile: str, core: int | None) -> AsyncIterator[str]:
    arguments = ["--port", "0", "--profile", profile]
    with Server("emulator", "broker.emulator", arguments, folder=folder, core=core) as server:
        yield (await asyncio.to_thread(server.next_event))["url"]


@asynccontextmanager
async def _brokers(
    folder: Path, count: int, backend_url: str, profile: str, core: int | None
) -> AsyncIterator[list[_Broker]]:
    async with AsyncExitStack() as running:
        brokers = []
        for number in range(1, count + 1):
            arguments = ["--state-dir", str(folder / "state"), "--backend", backend_url, "--profile", profile]
            arguments += ["--lease-seconds", str(LEASE_SECONDS)]
            server = running.enter_context(
                Server(f"broker-{number}", "tests.support.broker_process", arguments, folder=folder, core=core)
            )
            serving = await asyncio.to_thread(server.next_event)
            callers = [
                await running.enter_async_context(guarded_channel(serving["callers"], _OWN_CONNECTION))
                for _ in range(_CHANNELS)
            ]
            admin = await running.enter_async_context(guarded_channel(serving["admin"]))
            brokers.append(
                _Broker(
                    [credential_broker_pb2_grpc.CredentialBrokerStub(channel) for channel in callers],
                    broker_admin_pb2_grpc.BrokerAdminStub(admin),
                )
            )
        yield brokers


class _Resource:
    """
    Sends headers to the emulator's protected resource over connections that it keeps.

    A request costs a fraction of what an HTTP client takes for it, so that one core can keep the rate.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._idle: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = asyncio.LifoQueue()
        for _ in range(_CONNECTIONS):
            self._idle.put_nowait(None)

    async def send(self, headers: dict[str, str]) -> None:
        """Send a GET with these headers and read the whole answer; the emulator's ledger says what came of it."""
        connection = await self._idle.get()
        try:
            reader, writer = connection or await asyncio.open_connection(self._host, self._port)
            lines = [f"GET {RESOURCE} HTTP/1.1", f"host: {self._host}:{self._port}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(int(length.partition(":")[2]))
            connection = (reader, writer)
        finally:
            self._idle.put_nowait(connection)

    def close(self) -> None:
        """Close the connections."""
        while not self._idle.empty():
            connection = self._idle.get_nowait()
            if connection is not None:
                connection[1].close()


class _Round:
    """One round: callers, and an operator who changes the key."""

    def __init__(self, brokers: Sequence[_Broker], resource: _Resource, hold_seconds: float) -> None:
        self.seen = Observation(brokers=len(brokers))
        self._brokers = brokers
        self._resource = resource
        self._hold_seconds = hold_seconds

    async def call(self, number: int) -> None:
        """Ask for an authorization, and use it."""
        broker = self._brokers[number % len(self._brokers)]
        request = pb2.GetAuthorizationRequest(
            scope="inference", identity=IDENTITY, thread_id=f"thread-{number % THREADS}"
        )
        self.seen.calls += 1
        try:
            stub = broker.callers[number // len(self._brokers) % _CHANNELS]
            answer = await stub.GetAuthorization(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            self.seen.failures[f"{error.code().name} {error.details()}"] += 1
            return
        if number % HELD_BACK == 0:
            await asyncio.sleep(self._hold_seconds)
        headers = {header.name: header.value for header in answer.authorization.headers}
        self.seen.sent += 1
        await self._resource.send(headers)

    async def ask(self, *, seconds: float, rate: int) -> None:
        """Keep the rate for a time, however long the answers take, and wait for all of them."""
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                moment = number / rate
                if moment >= seconds:
                    break
                await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                group.create_task(self.call(number))
            self.seen.seconds = time.perf_counter() - start

    async def rotate(self, *, seconds: float, rotations: int) -> None:
        """Change the key so many times within a time, through one broker after the other."""
        begin = time.perf_counter()
        for number in range(rotations):
            moment = begin + seconds * (number + 1) / (rotations + 1)
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            start = time.perf_counter()
            await self._brokers[number % len(self._brokers)].admin.RotateIdentityKey(
                admin_pb2.RotateIdentityKeyRequest(request_id=f"rotate-{number}", name=IDENTITY),
                timeout=_ROTATION_SECONDS,
            )
            self.seen.rotations += 1
            self.seen.seconds_of_rotations.append(time.perf_counter() - start)


async def observe_rotation(
    folder: Path,
    *,
    brokers: int,
    profile: str,
    seconds: float,
    rotations: int,
    rate: int = RATE,
    hold_seconds: float = 5.0,
    core: int | None = None,
) -> Observation:
    """
    Run one round.

    Args:
        folder: empty, for everything the processes write.
        brokers: how many serve, on one database.
        profile: what the backend speaks.
        seconds: how long callers ask.
        rotations: how often the key is changed meanwhile.
        rate: calls a second.
        hold_seconds: how long every tenth header is kept before it is sent.
        core: the core that brokers and emulator are bound to; None binds them to none.

    Raises:
        ServerError: a process did not start.
    """
    async with AsyncExitStack() as running:
        url = await running.enter_async_context(_emulator(folder, profile, core))
        backend = await running.enter_async_context(
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=_CALL_SECONDS)
        )
        resource = _Resource(url)
        running.callback(resource.close)
        serving = await running.enter_async_context(_brokers(folder, brokers, url, profile, core))
        await _create(serving[0], backend)
        for broker in serving:
            await _knows(broker)
        round_ = _Round(serving, resource, hold_seconds)
        async with asyncio.TaskGroup() as group:
            group.create_task(round_.rotate(seconds=seconds, rotations=rotations))
            await round_.ask(seconds=seconds, rate=rate)
        seen = round_.seen
        entries = (await _control(backend, "GET", "ledger?operation=resource"))["entries"]
        verified = [entry for entry in entries if entry["verdict"] == "verified"]
        seen.accepted = len(verified)
        seen.refused = Counter(
            entry["refusal"] or entry["outcome"] for entry in entries if entry["verdict"] != "verified"
        )
        seen.agents = len({entry["agent_runtime_id"] for entry in verified})
        return seen


async def _create(broker: _Broker, backend: httpx.AsyncClient) -> None:
    token = (await _control(backend, "POST", "tokens", {"expires_in": 86_400}))["access_token"]
    await broker.admin.CreateIdentity(
        admin_pb2.CreateIdentityRequest(
            request_id="create",
            name=IDENTITY,
            backend="default",
            mode=admin_pb2.IDENTITY_MODE_AGENT,
            static_bearer=admin_pb2.StaticBearer(token=token),
        ),
        timeout=_ROTATION_SECONDS,
    )


async def _knows(broker: _Broker) -> None:
    """Wait until a broker has learned of the agent, which another may have created."""
    request = pb2.GetAuthorizationRequest(scope="inference", identity=IDENTITY, thread_id="thread-0")
    async with asyncio.timeout(_CALL_SECONDS):
        while True:
            try:
                await broker.callers[0].GetAuthorization(request, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                return


async def _control(backend: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    answer = await backend.request(method, f"/_emulator/{path}", json=body)
    answer.raise_for_status()
    return answer.json()


def measure_rotation(cores: Cores, *, seconds: float, rate: int, rotations: int) -> list[Figure]:
    """Measure one broker with one upstream task for all threads, then two on one database with a task for each."""
    figures = []
    for brokers, profile in ((1, "codex-2026-08"), (2, "codex-2026-05")):
        with TemporaryDirectory(prefix="bench-rotation-") as folder:
            seen = asyncio.run(
                observe_rotation(
                    Path(folder),
                    brokers=brokers,
                    profile=profile,
                    seconds=seconds,
                    rotations=rotations,
                    rate=rate,
                    core=cores.servers,
                )
            )
        figures.append(_figure(seen, profile, rate))
    return figures


def _figure(seen: Observation, profile: str, rate: int) -> Figure:
    achieved = seen.calls / seen.seconds if seen.seconds else 0.0
    notes = [
        f"{seen.calls} calls, {achieved:.0f} a second, {seen.failures.total()} failed {dict(seen.failures) or ''}".strip(),
        f"{seen.sent} headers sent, {seen.accepted} verified, {dict(seen.refused) or 'none refused'}",
        f"{seen.agents} agents seen; a rotation took at most {max(seen.seconds_of_rotations, default=0.0):.2f} s",
    ]
    verdict = Verdict.MET
    if seen.rejected or seen.failures:
        verdict = Verdict.MISSED
    # Too few calls a second, or agents that no call was answered with, prove nothing.
    elif achieved < rate * _KEPT_RATE or seen.agents <= seen.rotations:
        verdict = Verdict.VOID
    return Figure(
        name=f"rotation, {seen.brokers} broker{'s' if seen.brokers > 1 else ''}, {profile}",
        value=f"{seen.rejected} rejected of {seen.sent}, {seen.rotations} rotations",
        goal="0 rejected",
        verdict=verdict,
        notes=notes,
        details={
            "calls": seen.calls,
            "calls_a_second": achieved,
            "failures": dict(seen.failures),
            "sent": seen.sent,
            "accepted": seen.accepted,
            "refused": dict(seen.refused),
            "rotations": seen.rotations,
            "seconds_of_rotations": seen.seconds_of_rotations,
        },
    )
