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

import grpc
import httpx
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2

from tests.bench.processes import Server
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
    callers: "credential_broker_pb2_grpc.CredentialBrokerAsyncStub"
    admin: "broker_admin_pb2_grpc.BrokerAdminAsyncStub"


@asynccontextmanager
async def _emulator(folder: Path, profile: str) -> AsyncIterator[str]:
    arguments = ["--port", "0", "--profile", profile]
    with Server("emulator", "broker.emulator", arguments, folder=folder) as server:
        yield (await asyncio.to_thread(server.next_event))["url"]


@asynccontextmanager
async def _brokers(folder: Path, count: int, backend_url: str, profile: str) -> AsyncIterator[list[_Broker]]:
    async with AsyncExitStack() as running:
        brokers = []
        for number in range(1, count + 1):
            arguments = ["--state-dir", str(folder / "state"), "--backend", backend_url, "--profile", profile]
            arguments += ["--lease-seconds", str(LEASE_SECONDS)]
            server = running.enter_context(
                Server(f"broker-{number}", "tests.support.broker_process", arguments, folder=folder)
            )
            serving = await asyncio.to_thread(server.next_event)
            callers = await running.enter_async_context(guarded_channel(serving["callers"]))
            admin = await running.enter_async_context(guarded_channel(serving["admin"]))
            brokers.append(
                _Broker(
                    credential_broker_pb2_grpc.CredentialBrokerStub(callers),
                    broker_admin_pb2_grpc.BrokerAdminStub(admin),
                )
            )
        yield brokers


class _Round:
    """One round: callers, and an operator who changes the key."""

    def __init__(self, brokers: Sequence[_Broker], backend: httpx.AsyncClient, hold_seconds: float) -> None:
        self.seen = Observation(brokers=len(brokers))
        self._brokers = brokers
        self._backend = backend
        self._hold_seconds = hold_seconds
        self._connections = asyncio.Semaphore(_CONNECTIONS)

    async def call(self, number: int) -> None:
        """Ask for an authorization, and use it."""
        broker = self._brokers[number % len(self._brokers)]
        request = pb2.GetAuthorizationRequest(
            scope="inference", identity=IDENTITY, thread_id=f"thread-{number % THREADS}"
        )
        self.seen.calls += 1
        try:
            answer = await broker.callers.GetAuthorization(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            self.seen.failures[f"{error.code().name} {error.details()}"] += 1
            return
        if number % HELD_BACK == 0:
            await asyncio.sleep(self._hold_seconds)
        headers = {header.name: header.value for header in answer.authorization.headers}
        async with self._connections:
            self.seen.sent += 1
            await self._backend.get(RESOURCE, headers=headers)

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
        for number in range(rotations):
            await asyncio.sleep(seconds / (rotations + 1))
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

    Raises:
        ServerError: a process did not start.
    """
    async with AsyncExitStack() as running:
        url = await running.enter_async_context(_emulator(folder, profile))
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        backend = await running.enter_async_context(
            httpx.AsyncClient(base_url=url, trust_env=False, limits=limits, timeout=_CALL_SECONDS)
        )
        serving = await running.enter_async_context(_brokers(folder, brokers, url, profile))
        await _create(serving[0], backend)
        round_ = _Round(serving, backend, hold_seconds)
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


async def _control(backend: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    answer = await backend.request(method, f"/_emulator/{path}", json=body)
    answer.raise_for_status()
    return answer.json()


def measure_rotation(*, seconds: float, rate: int, rotations: int) -> list[Figure]:
    """Measure one broker with one upstream task for all threads, then two on one database with a task for each."""
    figures = []
    for brokers, profile in ((1, "codex-2026-08"), (2, "codex-2026-05")):
        with TemporaryDirectory(prefix="bench-rotation-") as folder:
            seen = asyncio.run(
                observe_rotation(
                    Path(folder), brokers=brokers, profile=profile, seconds=seconds, rotations=rotations, rate=rate
                )
            )
        figures.append(_figure(seen, profile, wanted=int(seconds * rate)))
    return figures


def _figure(seen: Observation, profile: str, *, wanted: int) -> Figure:
    achieved = seen.calls / seen.seconds if seen.seconds else 0.0
    notes = [
        f"{seen.calls} calls, {achieved:.0f} a second, {seen.failures.total()} failed {dict(seen.failures) or ''}".strip(),
        f"{seen.sent} headers sent, {seen.accepted} verified, {dict(seen.refused) or 'none refused'}",
        f"{seen.agents} agents seen; a rotation took at most {max(seen.seconds_of_rotations, default=0.0):.2f} s",
    ]
    verdict = Verdict.MET
    if seen.rejected or seen.failures:
        verdict = Verdict.MISSED
    # The last agent may have come too late to be seen; one that was never seen before that proves nothing.
    elif seen.calls < wanted or seen.agents < seen.rotations:
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
