"""
What rejected credentials cost, by the emulator's ledger: many reports of one revision, and reports that never help.

Callers get an authorization, have the backend reject it, and report that at the same moment, to one broker or to two
processes on one database. Then a backend rejects every assertion there is, and callers report for as long as they are
given anything to report.
"""

import asyncio
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

from tests.bench.processes import Cores, Server
from tests.bench.report import Figure, Verdict
from tests.support.brokers import guarded_channel, refusal_of

PARALLEL: Final = 100
ROUTES: Final = {"inference": "/backend-api/codex/models", "thread.files": "/backend-api/files"}
"""Scopes, each with a route of its own at the backend."""
THREAD: Final = "thread-1"
REGISTRATIONS: Final = ("task_register", "agent_register")
ENDLESS_GOAL: Final = {"task_register": 2, "agent_register": 1}
"""A fresh task, another agent, and the task that comes with it."""
_CALL_SECONDS: Final = 10.0
_SETUP_SECONDS: Final = 60.0


@dataclass(slots=True, kw_only=True)
class Parallel:
    """
    What rounds of parallel reports came to.

    Attributes:
        brokers: how many processes were reported to, on one database.
        replacements: for each round, how many task registrations arrived.
        revisions: for each round, how many new revisions the callers were given.
        accepted: answers that the backend accepted.
        failures: reports that were refused, by reason.
    """

    brokers: int
    replacements: list[int] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    accepted: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def is_met(self) -> bool:
        """Whether each round cost one replacement, which every caller got."""
        rounds = len(self.replacements)
        return self.replacements == self.revisions == [1] * rounds and self.accepted == rounds * PARALLEL


@dataclass(slots=True, kw_only=True)
class Endless:
    """
    What reporting to a backend that rejects everything came to.

    Attributes:
        reports: how many were made.
        outcomes: what they were answered, by reason; `OK` for another authorization.
        cost: registrations that arrived at the backend, by operation.
    """

    reports: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    cost: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Broker:
    callers: "credential_broker_pb2_grpc.CredentialBrokerAsyncStub"
    admin: "broker_admin_pb2_grpc.BrokerAdminAsyncStub"

    async def authorize(self, identity: str, scope: str) -> pb2.Authorization:
        request = pb2.GetAuthorizationRequest(scope=scope, identity=identity, thread_id=THREAD)
        return (await self.callers.GetAuthorization(request, timeout=_CALL_SECONDS)).authorization

    async def report(self, scope: str, rejected: pb2.Authorization) -> pb2.Authorization:
        request = pb2.ReportRejectedRequest(
            scope=scope, thread_id=THREAD, revision=rejected.revision, http_status=httpx.codes.UNAUTHORIZED
        )
        return (await self.callers.ReportRejected(request, timeout=_CALL_SECONDS)).authorization


class _Backend:
    """The emulator, as callers and as its controls see it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def accepts(self, scope: str, authorization: pb2.Authorization) -> bool:
        headers = {header.name: header.value for header in authorization.headers}
        return (await self._http.get(ROUTES[scope], headers=headers)).is_success

    async def token(self) -> str:
        token: str = (await self._control("POST", "tokens", {"expires_in": 86_400}))["access_token"]
        return token

    async def reject(self, **rule: Any) -> None:
        await self._control("POST", "faults", rule)

    async def registrations(self) -> Counter[str]:
        return Counter(
            {name: len((await self._control("GET", f"ledger?operation={name}"))["entries"]) for name in REGISTRATIONS}
        )

    async def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = await self._http.request(method, f"/_emulator/{path}", json=body)
        answer.raise_for_status()
        return answer.json()


@asynccontextmanager
async def _running(folder: Path, count: int, core: int | None) -> AsyncIterator[tuple[list[_Broker], _Backend]]:
    """Run an emulator and so many brokers on one state directory, each a process of its own."""
    async with AsyncExitStack() as running:
        emulator = running.enter_context(
            Server("emulator", "broker.emulator", ["--port", "0"], folder=folder, core=core)
        )
        url = (await asyncio.to_thread(emulator.next_event))["url"]
        http = await running.enter_async_context(
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=_CALL_SECONDS)
        )
        arguments = ["--state-dir", str(folder / "state"), "--backend", url]
        brokers = []
        for number in range(count):
            server = running.enter_context(
                Server(f"broker-{number}", "tests.support.broker_process", arguments, folder=folder, core=core)
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
        yield brokers, _Backend(http)


async def _create(brokers: Sequence[_Broker], backend: _Backend, name: str) -> None:
    """Create an agent, and wait until every broker serves it."""
    await brokers[0].admin.CreateIdentity(
        admin_pb2.CreateIdentityRequest(
            request_id=f"create-{name}",
            name=name,
            backend="default",
            mode=admin_pb2.IDENTITY_MODE_AGENT,
            static_bearer=admin_pb2.StaticBearer(token=await backend.token()),
        ),
        timeout=_SETUP_SECONDS,
    )
    for broker in brokers:
        async with asyncio.timeout(_SETUP_SECONDS):
            while True:
                try:
                    await broker.authorize(name, "inference")
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
                else:
                    break


async def observe_parallel(folder: Path, *, brokers: int, rounds: int, core: int | None = None) -> Parallel:
    """
    Have 100 callers report one revision at once, so many rounds, each with an identity of its own.

    Raises:
        ServerError: a process did not start.
    """
    seen = Parallel(brokers=brokers)
    async with _running(folder, brokers, core) as (serving, backend):
        for number in range(rounds):
            name = f"agent-{number}"
            await _create(serving, backend, name)
            await backend.reject(action="stale_task", count=1)
            old = await serving[0].authorize(name, "inference")
            if await backend.accepts("inference", old):
                seen.failures["the task was not stale"] += 1
            before = await backend.registrations()
            answers = await asyncio.gather(
                *(serving[caller % brokers].report("inference", old) for caller in range(PARALLEL)),
                return_exceptions=True,
            )
            given = [answer for answer in answers if isinstance(answer, pb2.Authorization)]
            seen.failures.update(_reason(answer) for answer in answers if isinstance(answer, BaseException))
            seen.accepted += sum([await backend.accepts("inference", answer) for answer in given])
            seen.revisions.append(len({answer.revision for answer in given} - {old.revision}))
            seen.replacements.append(((await backend.registrations()) - before).total())
    return seen


async def observe_endless(folder: Path, *, brokers: int, reports: int, core: int | None = None) -> Endless:
    """
    Have callers of two scopes report whatever they are given, to a backend that rejects every assertion.

    Raises:
        ServerError: a process did not start.
    """
    seen = Endless()
    async with _running(folder, brokers, core) as (serving, backend):
        await _create(serving, backend, "agent")
        await backend.reject(action="route_reject", path_prefix="/backend-api/", count=None)
        before = await backend.registrations()

        async def caller(number: int) -> None:
            broker, scope = serving[number % brokers], list(ROUTES)[number // brokers % len(ROUTES)]
            held = await broker.authorize("agent", scope)
            while seen.reports < reports:
                seen.reports += 1
                await backend.accepts(scope, held)
                try:
                    held = await broker.report(scope, held)
                    seen.outcomes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    seen.outcomes[_reason(error)] += 1

        await asyncio.gather(*(caller(number) for number in range(8)))
        seen.cost = dict((await backend.registrations()) - before)
    return seen


def _reason(error: BaseException) -> str:
    return refusal_of(error).reason if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__


def measure_rejection(cores: Cores, *, rounds: int, reports: int) -> list[Figure]:
    """Measure parallel reports to one broker and to two processes, then reports without end to two."""
    figures = []
    for brokers in (1, 2):
        with TemporaryDirectory(prefix="bench-rejection-") as folder:
            seen = asyncio.run(observe_parallel(Path(folder), brokers=brokers, rounds=rounds, core=cores.servers))
        figures.append(_parallel_figure(seen))
    with TemporaryDirectory(prefix="bench-rejection-") as folder:
        endless = asyncio.run(observe_endless(Path(folder), brokers=2, reports=reports, core=cores.servers))
    figures.append(_endless_figure(endless))
    return figures


def _parallel_figure(seen: Parallel) -> Figure:
    rounds = len(seen.replacements)
    return Figure(
        name=f"{PARALLEL} parallel ReportRejected to {seen.brokers} broker{'s' if seen.brokers > 1 else ''}",
        value=f"{sum(seen.replacements)} replacements in {rounds} rounds, {seen.accepted} of {rounds * PARALLEL} accepted",
        goal="1 a round, all accepted",
        verdict=Verdict.MET if seen.is_met else Verdict.MISSED,
        notes=[f"refused: {dict(seen.failures)}"] if seen.failures else [],
        details={"replacements": seen.replacements, "revisions": seen.revisions, "accepted": seen.accepted},
    )


def _endless_figure(seen: Endless) -> Figure:
    return Figure(
        name=f"{seen.reports} reports to a backend that rejects everything",
        value=", ".join(f"{count} {name}" for name, count in seen.cost.items()) or "nothing",
        goal="at most 1 task + 1 agent + 1 task",
        verdict=Verdict.MET if Counter(seen.cost) <= Counter(ENDLESS_GOAL) else Verdict.MISSED,
        notes=[f"answered: {dict(seen.outcomes)}"],
        details={"outcomes": dict(seen.outcomes), "cost": seen.cost},
    )
