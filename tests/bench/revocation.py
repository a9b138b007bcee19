"""
How soon a revocation by one broker is heeded by another on the same database, while that one is kept busy.

Each revocation is seen from outside: a caller of the second broker asks without a pause from before it is sent to the
first one until it is refused. What is measured is the time from the sending to that refusal, so the writing of the
revocation is in it, and so is the caller's own last call. Beside it stands what the second broker measured itself.
"""

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
import httpx
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.processes import Cores, Server
from tests.bench.report import Figure, Verdict
from tests.support.brokers import guarded_channel, refusal_of

PROFILE: Final = "codex-2026-04"
"""One upstream task a thread: a revocation takes down one thread and no other."""
GOAL_SECONDS: Final = 1.0
HISTOGRAM: Final = "credential_broker_revocation_propagation_seconds"
HAMMERED: Final = "hammered"
THREADS: Final = 50
_CALL_SECONDS: Final = 10.0
_SETUP_SECONDS: Final = 60.0
_BETWEEN_CALLS: Final = 0.001


class Kind(StrEnum):
    """What is done to one broker and heeded by the other."""

    END_TASK = "EndTask"
    REVOKE_TASK = "RevokeTask"
    DISABLE_IDENTITY = "DisableIdentity"
    DELETE_IDENTITY = "DeleteIdentity"


@dataclass(slots=True)
class Observation:
    """
    What one run saw.

    Attributes:
        seconds: by kind, from sending each revocation to the first refusal by the other broker.
        calls: what the hammering callers of that broker were answered, by status.
        hammered_seconds: for how long they called.
        histogram: the broker's own histogram: cumulative counts by upper bound, over all labels.
        audit_files: names of the audit files of both, which share a state directory.
    """

    seconds: dict[Kind, list[float]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    calls: Counter[str] = field(default_factory=Counter)
    hammered_seconds: float = 0.0
    histogram: dict[str, int] = field(default_factory=dict)
    audit_files: list[str] = field(default_factory=list)

    @property
    def all_seconds(self) -> list[float]:
        """Every revocation's time, in order of length."""
        return sorted(itertools.chain.from_iterable(self.seconds.values()))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that a share of all are not above."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


@dataclass(frozen=True, slots=True)
class _Broker:
    callers: "credential_broker_pb2_grpc.CredentialBrokerAsyncStub"
    admin: "broker_admin_pb2_grpc.BrokerAdminAsyncStub"
    metrics_url: str

    async def authorize(self, identity: str, thread_id: str) -> pb2.GetAuthorizationResponse:
        request = pb2.GetAuthorizationRequest(scope="inference", identity=identity, thread_id=thread_id)
        return await self.callers.GetAuthorization(request, timeout=_CALL_SECONDS)


@asynccontextmanager
async def _brokers(folder: Path, backend_url: str, core: int | None) -> AsyncIterator[list[_Broker]]:
    """Run two brokers on one state directory, started at the same moment."""
    async with AsyncExitStack() as running:
        arguments = ["--state-dir", str(folder / "state"), "--backend", backend_url, "--profile", PROFILE]
        servers = [
            running.enter_context(Server(name, "tests.support.broker_process", arguments, folder=folder, core=core))
            for name in ("revoking", "heeding")
        ]
        brokers = []
        for server in servers:
            serving = await asyncio.to_thread(server.next_event)
            callers = await running.enter_async_context(guarded_channel(serving["callers"]))
            admin = await running.enter_async_context(guarded_channel(serving["admin"]))
            brokers.append(
                _Broker(
                    credential_broker_pb2_grpc.CredentialBrokerStub(callers),
                    broker_admin_pb2_grpc.BrokerAdminStub(admin),
                    f"http://{serving['http']}/metrics",
                )
            )
        yield brokers


class _Run:
    """Revocations through one broker, and callers of the other."""

    def __init__(self, revoking: _Broker, heeding: _Broker, backend: httpx.AsyncClient) -> None:
        self.seen = Observation()
        self._revoking = revoking
        self._heeding = heeding
        self._backend = backend

    async def create(self, name: str) -> None:
        """Create an agent with a bearer of its own."""
        answer = await self._backend.post("/_emulator/tokens", json={"expires_in": 86_400})
        answer.raise_for_status()
        await self._revoking.admin.CreateIdentity(
            admin_pb2.CreateIdentityRequest(
                request_id=f"create-{name}",
                name=name,
                backend="default",
                mode=admin_pb2.IDENTITY_MODE_AGENT,
                static_bearer=admin_pb2.StaticBearer(token=answer.json()["access_token"]),
            ),
            timeout=_SETUP_SECONDS,
        )

    async def hammer(self, caller: int, stop: asyncio.Event) -> None:
        """Call the heeding broker without a pause."""
        for number in itertools.count(caller):
            if stop.is_set():
                return
            try:
                await self._heeding.authorize(HAMMERED, f"thread-{number % THREADS}")
            except grpc.aio.AioRpcError as error:
                self.seen.calls[error.code().name] += 1
            else:
                self.seen.calls["OK"] += 1

    async def revoke(self, kind: Kind, number: int, worker: int) -> None:
        """Have one thing served by the heeding broker, revoke it through the other, and time the refusal."""
        identity, thread = f"switched-{worker}", f"thread-{number}"
        if kind is Kind.DELETE_IDENTITY:
            identity = f"deleted-{number}"
            await self.create(identity)
        await self.served(identity, thread)
        revocation, wanted = await self._revocation(kind, identity, thread)
        watching = asyncio.create_task(self._refused(identity, thread))
        await asyncio.sleep(2 * _BETWEEN_CALLS)
        sent = time.perf_counter()
        await revocation()
        moment, reason = await asyncio.wait_for(watching, _SETUP_SECONDS)
        if reason != wanted:
            raise AssertionError(f"{kind} was answered with {reason}")
        self.seen.seconds[kind].append(moment - sent)
        if kind is Kind.DISABLE_IDENTITY:
            await self._revoking.admin.EnableIdentity(
                admin_pb2.EnableIdentityRequest(name=identity), timeout=_SETUP_SECONDS
            )

    async def served(self, identity: str, thread: str) -> None:
        """Wait until the heeding broker, which learns of an identity a moment after it was made, serves it."""
        give_up = time.perf_counter() + _SETUP_SECONDS
        while True:
            try:
                await self._heeding.authorize(identity, thread)
            except grpc.aio.AioRpcError:
                if time.perf_counter() >= give_up:
                    raise
                await asyncio.sleep(0.02)
            else:
                return

    async def _refused(self, identity: str, thread: str) -> tuple[float, str]:
        """Ask until refused, and return when that was and why."""
        while True:
            try:
                await self._heeding.authorize(identity, thread)
            except grpc.aio.AioRpcError as error:
                return time.perf_counter(), refusal_of(error).reason
            await asyncio.sleep(_BETWEEN_CALLS)

    async def _revocation(self, kind: Kind, identity: str, thread: str) -> tuple[Callable[[], Awaitable[Any]], str]:
        """Return what revokes, and the reason with which callers are refused then."""
        admin, callers = self._revoking.admin, self._revoking.callers
        match kind:
            case Kind.END_TASK:
                ending = pb2.EndTaskRequest(identity=identity, thread_id=thread)
                return lambda: callers.EndTask(ending, timeout=_CALL_SECONDS), "TASK_ENDED"
            case Kind.REVOKE_TASK:
                registering = pb2.RegisterTaskRequest(identity=identity, thread_id=thread)
                task = (await callers.RegisterTask(registering, timeout=_CALL_SECONDS)).task
                revoking = admin_pb2.RevokeTaskRequest(id=task.id)
                return lambda: admin.RevokeTask(revoking, timeout=_CALL_SECONDS), "TASK_ENDED"
            case Kind.DISABLE_IDENTITY:
                disabling = admin_pb2.DisableIdentityRequest(name=identity)
                return lambda: admin.DisableIdentity(disabling, timeout=_CALL_SECONDS), "IDENTITY_REVOKED"
            case Kind.DELETE_IDENTITY:
                deleting = admin_pb2.DeleteIdentityRequest(name=identity)
                return lambda: admin.DeleteIdentity(deleting, timeout=_CALL_SECONDS), "IDENTITY_REVOKED"

    async def work(self, worker: int, numbers: "itertools.count[int]", revocations: int) -> None:
        """Revoke one thing after the other, sharing the numbers with other workers."""
        await self.create(f"switched-{worker}")
        kinds = list(Kind)
        for number in numbers:
            if number >= revocations:
                return
            await self.revoke(kinds[number % len(kinds)], number, worker)


async def observe_revocations(
    folder: Path, *, revocations: int, workers: int, callers: int, core: int | None = None
) -> Observation:
    """
    Revoke through one broker while callers of the other one never pause.

    Args:
        folder: empty, for everything the processes write.
        revocations: how many, of all kinds in turn.
        workers: how many are under way at a time.
        callers: how many calls the heeding broker has at every moment beside.
        core: what both brokers are bound to; None binds them to none.

    Raises:
        ServerError: a process did not start.
    """
    async with AsyncExitStack() as running:
        emulator = running.enter_context(
            Server("emulator", "broker.emulator", ["--port", "0", "--profile", PROFILE], folder=folder)
        )
        url = (await asyncio.to_thread(emulator.next_event))["url"]
        backend = await running.enter_async_context(
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=_CALL_SECONDS)
        )
        revoking, heeding = await running.enter_async_context(_brokers(folder, url, core))
        run = _Run(revoking, heeding, backend)
        await run.create(HAMMERED)
        await run.served(HAMMERED, "thread-0")
        stop = asyncio.Event()
        began = time.perf_counter()
        hammering = [asyncio.create_task(run.hammer(number, stop)) for number in range(callers)]
        numbers = itertools.count()
        try:
            await asyncio.gather(*(run.work(worker, numbers, revocations) for worker in range(workers)))
        finally:
            stop.set()
            await asyncio.gather(*hammering, return_exceptions=True)
        run.seen.hammered_seconds = time.perf_counter() - began
        run.seen.histogram = _histogram((await backend.get(heeding.metrics_url)).text)
        run.seen.audit_files = sorted(path.name for path in (folder / "state").glob("audit*.jsonl"))
        return run.seen


def _histogram(text: str) -> dict[str, int]:
    """Read the broker's own histogram, summed over its labels."""
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == HISTOGRAM else ():
            if sample.name.endswith("_bucket"):
                counts[sample.labels["le"]] += int(sample.value)
    return dict(counts)


def measure_revocation(cores: Cores, *, revocations: int, workers: int, callers: int) -> Figure:
    """Measure with the shipped settings: two processes, one SQLite file, and one core for both."""
    with TemporaryDirectory(prefix="bench-revocation-") as folder:
        seen = asyncio.run(
            observe_revocations(
                Path(folder), revocations=revocations, workers=workers, callers=callers, core=cores.servers
            )
        )
    ordered = seen.all_seconds
    p99 = percentile(ordered, 0.99)
    notes = [
        f"{kind}: {len(times)}, p50 {percentile(times, 0.5) * 1000:.0f} ms, p99 {percentile(times, 0.99) * 1000:.0f} ms"
        for kind, times in ((kind, sorted(times)) for kind, times in seen.seconds.items())
        if times
    ]
    calls = sum(seen.calls.values())
    notes.append(f"beside them {calls} calls, {calls / seen.hammered_seconds:.0f} a second: {dict(seen.calls)}")
    notes.append(f"the heeding broker's own count by upper bound in seconds: {seen.histogram}")
    heeded = seen.histogram.get("+Inf", 0)
    verdict = Verdict.MET if p99 < GOAL_SECONDS and set(seen.calls) == {"OK"} else Verdict.MISSED
    if heeded < revocations:
        notes.append(f"it counted only {heeded} revocations")
        verdict = Verdict.INVALID
    return Figure(
        name="revocation heeded by another process",
        value=f"p50 {percentile(ordered, 0.5):.3f} s, p99 {p99:.3f} s, max {ordered[-1]:.3f} s of {len(ordered)}",
        goal=f"p99 under {GOAL_SECONDS:.0f} s",
        verdict=verdict,
        notes=notes,
        details={
            "seconds": {kind.value: times for kind, times in seen.seconds.items()},
            "calls": dict(seen.calls),
            "histogram": seen.histogram,
        },
    )
