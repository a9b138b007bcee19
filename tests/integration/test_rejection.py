"""ReportRejected over real gRPC, with a backend that rejects in each of its ways: every rung, and that it ends."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
import structlog
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

from broker.audit import AuditLog
from broker.authorization import AuthorizationRequest
from broker.bearer.oauth import LoginSource
from broker.emulator import EmulatorServer
from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET
from broker.emulator.faults import Action, FaultRule
from broker.emulator.ledger import Entry
from broker.emulator.routing import Operation
from broker.errors import GenerationChangedError
from broker.model import Caller, IdentityName, StoredLadder
from broker.store import Store
from tests.bench.processes import Server
from tests.bench.rejection import ENDLESS_GOAL, observe_endless
from tests.support import audit_lines
from tests.support.broker_process import LEASE_SECONDS
from tests.support.brokers import (
    Broker,
    Refusal,
    eventually,
    guarded_channel,
    refusal_of,
    refused,
    running_broker,
    running_emulator,
)
from tests.support.clocks import JumpingClock
from tests.support.stores import FaultyStore

ASSERTION, BEARER = pb2.CREDENTIAL_KIND_AGENT_ASSERTION, pb2.CREDENTIAL_KIND_BEARER
WINDOW = 600.0
INFERENCE, FILES, USAGE = "inference", "thread.files", "control_plane.usage"
PATHS = {INFERENCE: "/backend-api/codex/models", FILES: "/backend-api/files", USAGE: "/backend-api/wham/usage"}
"""Each scope with a route of its own at the backend."""


@pytest.fixture(autouse=True)
def events_dropped() -> Iterator[None]:
    """Drop events: without a configuration each exception is drawn at length, which takes longer than the test."""
    structlog.configure(processors=[_drop])
    yield
    structlog.reset_defaults()


def _drop(_logger: object, _method: str, _event: object) -> NoReturn:
    raise structlog.DropEvent


def fault(emulator: EmulatorServer, action: Action, **more: Any) -> str:
    """Have the backend reject, without end unless `count` says so; return the fault's id."""
    more.setdefault("count", None)
    return emulator.backend.faults.add(FaultRule(action=action, **more)).rule_id


def entries(broker: Broker, operation: str) -> list[Entry]:
    """Return what the backend was asked."""
    return list(broker.emulator.backend.ledger.entries(operation=operation))


def spent(broker: Broker) -> Counter[str]:
    """Count the registrations and token exchanges that the backend was asked for."""
    return Counter(
        {
            name: len(entries(broker, name))
            for name in ("task_register", "agent_register", "oauth")
            if entries(broker, name)
        }
    )


def counted(broker: Broker, step: str, kind: str = "AGENT_ASSERTION") -> float:
    """Read the metric of a step."""
    labels = {"kind": kind, "step": step}
    return broker.app.metrics.registry.get_sample_value("credential_broker_rejections_total", labels) or 0.0


async def sees(broker: Broker, scope: str, authorization: pb2.Authorization) -> int:
    """Send the headers to the route of a scope, and return the status."""
    return (await broker.sees(authorization, PATHS[scope])).status_code


async def all_accepted(broker: Broker, answers: list[pb2.Authorization]) -> bool:
    """Send each different header that callers were given to the backend, and say whether it accepted all."""
    different = {answer.headers[0].value: answer for answer in answers}
    return {await sees(broker, INFERENCE, answer) for answer in different.values()} == {200}


async def authorize(broker: Broker, scope: str, thread_id: str = "thread-1", **fields: Any) -> pb2.Authorization:
    """Call GetAuthorization."""
    return await broker.authorize(scope, "" if scope == USAGE else thread_id, **fields)


async def report(
    broker: Broker,
    scope: str,
    authorization: pb2.Authorization,
    thread_id: str = "thread-1",
    *,
    timeout: float = 10.0,
    **fields: Any,
) -> pb2.Authorization:
    """Call ReportRejected."""
    request = pb2.ReportRejectedRequest(
        scope=scope,
        thread_id="" if scope == USAGE else thread_id,
        revision=authorization.revision,
        http_status=401,
    )
    for name, value in fields.items():
        setattr(request, name, value)
    return (await broker.callers.ReportRejected(request, timeout=timeout)).authorization


async def rejected(broker: Broker, scope: str, thread_id: str = "thread-1") -> pb2.Authorization:
    """Get an authorization that the backend rejects on the route of its scope."""
    authorization = await authorize(broker, scope, thread_id)
    assert await sees(broker, scope, authorization) == 401
    return authorization


async def state_of(broker: Broker, name: str = "agent") -> "admin_pb2.IdentityState.ValueType":
    """Return the state of an identity."""
    return (await broker.admin.GetIdentity(admin_pb2.GetIdentityRequest(name=name))).identity.state


@asynccontextmanager
async def agent_at(tmp_path: Path, **sections: Any) -> AsyncIterator[Broker]:
    """Run a broker with one agent whose background task lives."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator, **sections) as broker:
        await broker.create_agent()
        await broker.authorize("control_plane.usage")
        yield broker


def pass_time(broker: Broker, clock: JumpingClock, seconds: float) -> None:
    """Let time pass, for the broker and for its backend."""
    clock.ahead += seconds
    broker.emulator.backend.change(clock_offset_seconds=clock.ahead)


# --- the first rung ---------------------------------------------------------------------------------------------------


async def test_a_stale_task_is_replaced_and_the_fresh_one_accepted(tmp_path: Path) -> None:
    """The commonest 401: the backend has forgotten a task. One fresh one mends it."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        better = await report(broker, INFERENCE, old)
        assert better.revision != old.revision
        assert better.connection_tag != old.connection_tag
        assert await sees(broker, INFERENCE, better) == 200
        assert spent(broker) - before == Counter(task_register=1)


async def test_each_threads_task_is_replaced_by_itself(tmp_path: Path) -> None:
    """With an upstream task a thread: a fresh one for each that the backend has forgotten, none for the others."""
    async with running_emulator(profile="codex-2026-05") as emulator:
        section = {
            "profile": "codex-2026-05",
            "base_url": f"{emulator.url}/backend-api",
            "authapi_base_url": f"{emulator.url}/api/accounts",
        }
        async with running_broker(tmp_path, emulator, backends={"default": section}) as broker:
            await broker.create_agent()
            await authorize(broker, USAGE)
            good = await authorize(broker, INFERENCE, "thread-0")
            before = spent(broker)
            for thread_id in ("thread-1", "thread-2"):
                fault(emulator, Action.STALE_TASK, count=1)
                old = await rejected(broker, INFERENCE, thread_id)
                better = await report(broker, INFERENCE, old, thread_id)
                assert await sees(broker, INFERENCE, better) == 200
            assert (await authorize(broker, INFERENCE, "thread-0")).revision == good.revision
            assert spent(broker) - before == Counter(task_register=4)  # two first ones, two fresh ones


async def test_100_parallel_reports_make_one_replacement(tmp_path: Path) -> None:
    """All 100 callers get the same new credential, which the backend accepts, for one registration."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        answers = await asyncio.gather(*(report(broker, INFERENCE, old) for _ in range(100)))
        (revision,) = {answer.revision for answer in answers}
        assert revision != old.revision
        assert await all_accepted(broker, answers)
        assert spent(broker) - before == Counter(task_register=1)
        assert counted(broker, "REPLACE_TASK") == 1


async def test_100_parallel_reports_to_two_brokers_make_one_replacement(tmp_path: Path) -> None:
    """Two brokers on one database climb one ladder; both hand out the one new credential."""
    async with agent_at(tmp_path) as one, running_broker(tmp_path, one.emulator) as other:
        fault(one.emulator, Action.STALE_TASK, count=1)
        old = await rejected(one, INFERENCE)
        assert (await authorize(other, INFERENCE)).revision == old.revision
        before = spent(one)
        turns = itertools.cycle((one, other))
        answers = await asyncio.gather(*(report(next(turns), INFERENCE, old) for _ in range(100)))
        assert len({answer.revision for answer in answers} - {old.revision}) == 1
        assert await all_accepted(one, answers)
        assert spent(one) - before == Counter(task_register=1)


async def test_what_another_broker_replaced_is_known_to_one_that_has_not_followed_yet(tmp_path: Path) -> None:
    """A report to a broker whose memory is behind gets the newest credential, never the one before the rejected."""
    async with agent_at(tmp_path) as one, running_broker(tmp_path, one.emulator) as other:
        first = await authorize(other, INFERENCE)
        other.app.upkeep.pause()
        await asyncio.sleep(0.2)  # its loop may be in the middle of a look
        fault(one.emulator, Action.STALE_TASK, count=2)
        second = await report(one, INFERENCE, await rejected(one, INFERENCE))
        assert (await authorize(other, INFERENCE)).revision == first.revision != second.revision
        assert await sees(one, INFERENCE, second) == 401
        refusal = await refused(report(other, INFERENCE, second))
        assert refusal.reason == "BACKEND_UNSUPPORTED"
        assert (await authorize(other, FILES)).revision == second.revision


async def test_a_newer_credential_is_returned_at_once_and_costs_nothing(tmp_path: Path) -> None:
    """A late report of what was replaced: no registration, no step, no record of a rejection."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        better = await report(broker, INFERENCE, old)
        before, lines = spent(broker), len(rejections_in(broker))
        again = await report(broker, INFERENCE, old)
        other_scope = await report(broker, FILES, old, "thread-2")
        assert better.revision == again.revision == other_scope.revision
        assert spent(broker) == before
        assert len(rejections_in(broker)) == lines
        assert counted(broker, "SUPERSEDED") == 2


def rejections_in(broker: Broker) -> list[dict[str, Any]]:
    """Return what the audit log says of rejections."""
    return [
        line
        for file in sorted(broker.app.config.state_dir.glob("audit*.jsonl"))
        for line in audit_lines.lines(file)
        if line["event"].startswith("rejection")
    ]


async def test_a_caller_that_gives_up_does_not_stop_the_replacement(tmp_path: Path) -> None:
    """With too little time the answer is REGISTRATION_IN_PROGRESS; the job goes on, and the next call has its fruit."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        hanging = fault(broker.emulator, Action.HANG, path_prefix="/api/accounts/v1/agent/", count=1)
        refusal = await refused(report(broker, INFERENCE, old, timeout=0.5))
        assert refusal.reason == "REGISTRATION_IN_PROGRESS"
        assert refusal.retry_seconds
        broker.emulator.backend.faults.remove(hanging)
        better = await report(broker, INFERENCE, old)
        assert await sees(broker, INFERENCE, better) == 200


async def test_a_backend_that_is_away_spends_nothing(tmp_path: Path) -> None:
    """BACKEND_DOWN with a wait; the old credential goes on being served, and the next report replaces it."""
    clock = JumpingClock()
    async with (
        running_emulator() as emulator,
        running_broker(tmp_path, emulator, clock=clock) as broker,
    ):
        await broker.create_agent()
        fault(emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        down = fault(emulator, Action.STATUS, path_prefix="/api/accounts/v1/agent/", status=503)
        refusal = await refused(report(broker, INFERENCE, old))
        assert (refusal.reason, refusal.code) == ("BACKEND_DOWN", grpc.StatusCode.UNAVAILABLE)
        asked = spent(broker)
        for refusal in await asyncio.gather(*(refused(report(broker, INFERENCE, old)) for _ in range(50))):
            assert refusal.reason == "BACKEND_DOWN"
            assert refusal.retry_seconds
        assert spent(broker)["task_register"] - asked["task_register"] <= 3  # the tries of one registration
        assert (await authorize(broker, INFERENCE)).revision == old.revision
        emulator.backend.faults.remove(down)
        pass_time(broker, clock, 5)
        assert await sees(broker, INFERENCE, await report(broker, INFERENCE, old)) == 200


# --- what a report must be --------------------------------------------------------------------------------------------


async def test_revisions_of_others_and_of_nobody_change_nothing(tmp_path: Path) -> None:
    """Malformed, spelled otherwise, or given to another caller: REVISION_UNKNOWN, nothing asked, nothing recorded."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.STALE_TASK)
        mine = await rejected(broker, INFERENCE)
        deadline = asyncio.get_running_loop().time() + 1e6
        theirs = await broker.app.authorizer.work_out(
            Caller("spiffe://other", "test"), AuthorizationRequest(INFERENCE, "thread-1"), deadline=deadline
        )
        before = spent(broker)
        flipped = mine.revision[:-1] + ("A" if mine.revision[-1] != "A" else "E")
        for revision in (
            "",
            "x",
            "\u00e9" * 20,
            "A" * 200,
            mine.revision + "=",
            mine.revision[:-1],
            flipped,
            mine.revision.replace(mine.revision[3], "!", 1),
            theirs.authorization.revision,
        ):
            refusal = await refused(report(broker, INFERENCE, mine, revision=revision))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REVISION_UNKNOWN")
        assert spent(broker) == before
        assert rejections_in(broker) == []


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"http_status": 403}, "FIELD_INVALID", "http_status"),
        ({"http_status": 0}, "FIELD_INVALID", "http_status"),
        ({"detail": "\u00e9" * 129}, "FIELD_INVALID", "detail"),
        ({"scope": ""}, "FIELD_INVALID", "scope"),
        ({"scope": "inference.none"}, "SCOPE_UNKNOWN", "scope"),
        ({"thread_id": ""}, "THREAD_ID_REQUIRED", "thread_id"),
        ({"thread_id": " x"}, "THREAD_ID_INVALID", "thread_id"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_what_is_wrong_in_a_report_is_named(
    tmp_path: Path, fields: dict[str, Any], reason: str, field: str
) -> None:
    """Each field by its name, before anything is done."""
    async with agent_at(tmp_path) as broker:
        authorization = await authorize(broker, INFERENCE)
        before = spent(broker)
        request = pb2.ReportRejectedRequest(
            scope=INFERENCE, thread_id="thread-1", revision=authorization.revision, http_status=401
        )
        for name, value in fields.items():
            setattr(request, name, value)
        refusal = await refused(broker.callers.ReportRejected(request))
        assert (refusal.reason, list(refusal.violations)) == (reason, [field])
        assert spent(broker) == before


async def test_a_revision_of_a_deleted_identity_is_not_taken_for_its_namesake(tmp_path: Path) -> None:
    """Another identity of that name has nothing to do with it; disabled ones refuse as ever."""
    async with agent_at(tmp_path) as broker:
        old = await authorize(broker, INFERENCE)
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        assert (await refused(report(broker, INFERENCE, old))).reason == "IDENTITY_REVOKED"
        await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent"))
        assert (await refused(report(broker, INFERENCE, old))).reason == "IDENTITY_REVOKED"
        await broker.create_agent()
        assert (await refused(report(broker, INFERENCE, old))).reason == "IDENTITY_REVOKED"


async def test_reports_are_recorded_without_secrets(tmp_path: Path) -> None:
    """Who reported what with which words of the backend, what looks like a credential cut out; and each step."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        value = old.headers[0].value
        await report(broker, INFERENCE, old, detail=f"no such task\nsent: {value}"[:250])
        told, step = rejections_in(broker)
        assert told["event"] == "rejection_reported"
        assert (told["scope"], told["thread_id"], told["kind"]) == (INFERENCE, "thread-1", "AGENT_ASSERTION")
        assert told["detail"].startswith("no such task sent: ")
        assert value[-20:] not in str(told)
        assert (step["event"], step["step"], step["scope"]) == ("rejection_step", "REPLACE_TASK", INFERENCE)
        assert (counted(broker, "REPORTED"), counted(broker, "REPLACE_TASK")) == (1, 1)


# --- a route that alone rejects ---------------------------------------------------------------------------------------


async def marked(broker: Broker, scope: str) -> Refusal | pb2.Authorization:
    """Have the route of a scope reject, and report until the route is marked; return what the last report got."""
    fault(broker.emulator, Action.ROUTE_REJECT, path_prefix=PATHS[scope])
    better = await report(broker, scope, await rejected(broker, scope))
    assert await sees(broker, scope, better) == 401
    try:
        return await report(broker, scope, better)
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)


async def test_a_route_that_requires_assertions_and_rejects_them_is_unsupported(tmp_path: Path) -> None:
    """One fresh task is spent; then BACKEND_UNSUPPORTED there, while the identity and other scopes go on."""
    async with agent_at(tmp_path) as broker:
        before = spent(broker)
        answer = await marked(broker, INFERENCE)
        assert isinstance(answer, Refusal)
        assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_UNSUPPORTED")
        assert (await refused(authorize(broker, INFERENCE))).reason == "BACKEND_UNSUPPORTED"
        assert await sees(broker, FILES, await authorize(broker, FILES)) == 200
        assert await sees(broker, USAGE, await authorize(broker, USAGE)) == 200
        assert await state_of(broker) == admin_pb2.IDENTITY_STATE_ACTIVE
        assert spent(broker) - before == Counter(task_register=1)
        explained = await broker.callers.ExplainAuthorization(
            pb2.ExplainAuthorizationRequest(scope=INFERENCE, thread_id="thread-1")
        )
        assert "refuses assertions for inference" in str(explained)


async def test_a_route_that_prefers_assertions_and_rejects_them_gets_a_bearer(tmp_path: Path) -> None:
    """The other column of row 7: a bearer that says why, which this route accepts; no token is spent for it."""
    async with agent_at(tmp_path) as broker:
        before = spent(broker)
        answer = await marked(broker, USAGE)
        assert isinstance(answer, pb2.Authorization)
        assert (answer.kind, answer.reason) == (BEARER, pb2.DECISION_REASON_BACKEND_UNSUPPORTED)
        assert answer.fallback_from == ASSERTION
        assert await sees(broker, USAGE, answer) == 200
        assert (await authorize(broker, INFERENCE)).kind == ASSERTION
        assert spent(broker) - before == Counter(task_register=1)


async def test_a_mark_ends_with_its_window_and_costs_one_more_task_then(tmp_path: Path) -> None:
    """The route is tried again; while it rejects, that is a task a window."""
    clock = JumpingClock()
    async with running_emulator() as emulator, running_broker(tmp_path, emulator, clock=clock) as broker:
        await broker.create_agent()
        await authorize(broker, USAGE)
        before = spent(broker)
        await marked(broker, INFERENCE)
        pass_time(broker, clock, WINDOW - 30)
        assert (await refused(authorize(broker, INFERENCE))).reason == "BACKEND_UNSUPPORTED"
        pass_time(broker, clock, 31)
        again = await rejected(broker, INFERENCE)
        better = await report(broker, INFERENCE, again)
        if better.revision == again.revision:  # only the clock was looked at
            better = await report(broker, INFERENCE, again)
        assert (await refused(report(broker, INFERENCE, better))).reason == "BACKEND_UNSUPPORTED"
        assert spent(broker) - before == Counter(task_register=2)


async def test_the_ladder_survives_a_restart(tmp_path: Path) -> None:
    """What was tried before is not tried again by the next process: the mark stands, and no task is spent."""
    async with running_emulator() as emulator:
        async with running_broker(tmp_path, emulator) as broker:
            await broker.create_agent()
            fault(emulator, Action.ROUTE_REJECT, path_prefix=PATHS[INFERENCE])
            fresh = await report(broker, INFERENCE, await rejected(broker, INFERENCE))
        async with running_broker(tmp_path, emulator) as broker:
            before = spent(broker)
            assert (await authorize(broker, INFERENCE)).revision == fresh.revision
            assert (await refused(report(broker, INFERENCE, fresh))).reason == "BACKEND_UNSUPPORTED"
        async with running_broker(tmp_path, emulator) as broker:
            assert (await refused(authorize(broker, INFERENCE))).reason == "BACKEND_UNSUPPORTED"
            assert spent(broker) == before


# --- a dead agent -----------------------------------------------------------------------------------------------------


async def test_two_routes_that_reject_cost_one_other_agent(tmp_path: Path) -> None:
    """The second route leads to a new key and a new agent, whose assertions are accepted everywhere."""
    async with agent_at(tmp_path) as broker:
        old = await authorize(broker, USAGE)
        await marked(broker, INFERENCE)
        fault(broker.emulator, Action.ROUTE_REJECT, path_prefix=PATHS[FILES], count=1)
        fresh = await rejected(broker, FILES)
        broker.emulator.backend.faults.remove()
        before = spent(broker)
        better = await report(broker, FILES, fresh)
        assert spent(broker) - before == Counter(agent_register=1, task_register=1)
        assert await sees(broker, FILES, better) == 200
        assert await sees(broker, INFERENCE, await authorize(broker, INFERENCE)) == 200
        assert better.connection_tag != old.connection_tag
        assert await state_of(broker) == admin_pb2.IDENTITY_STATE_ACTIVE


async def test_a_dead_agent_is_replaced_by_one_report(tmp_path: Path) -> None:
    """The backend refuses it everywhere, its task registrations too: one refused registration, one other agent."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.AGENT_DEAD, count=1)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        answers = await asyncio.gather(*(report(broker, INFERENCE, old) for _ in range(20)))
        (revision,) = {answer.revision for answer in answers}
        assert revision != old.revision
        assert await all_accepted(broker, answers)
        assert spent(broker) - before == Counter(task_register=2, agent_register=1)
        assert counted(broker, "REGISTER_ANEW") == 1


async def test_an_agent_refused_on_first_use_is_replaced_too(tmp_path: Path) -> None:
    """Nobody had anything to report yet: the refusal itself leads to another agent, once."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        broker.app.upkeep.pause()
        fault(emulator, Action.AGENT_DEAD, count=1)
        await broker.create_agent()
        assert (await refused(authorize(broker, INFERENCE))).reason == "IDENTITY_REJECTED"
        await eventually(lambda: spent(broker)["agent_register"] == 2)
        await eventually(lambda: counted(broker, "REGISTER_ANEW") == 1)

        async def serves() -> bool:
            try:
                return await sees(broker, INFERENCE, await authorize(broker, INFERENCE)) == 200
            except grpc.aio.AioRpcError:
                return False

        async with asyncio.timeout(10):
            while not await serves():
                await asyncio.sleep(0.05)
        assert spent(broker)["agent_register"] == 2


async def test_another_agent_that_cannot_be_had_now_is_waited_for(tmp_path: Path) -> None:
    """The backend is away for agents: told with a wait, asked for at its back-off's pace, and had in the end."""
    clock = JumpingClock()
    async with running_emulator() as emulator, running_broker(tmp_path, emulator, clock=clock) as broker:
        await broker.create_agent()
        await authorize(broker, USAGE)
        fault(emulator, Action.AGENT_DEAD, count=1)
        down = fault(emulator, Action.STATUS, operation=Operation.AGENT_REGISTER, status=503)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        for _ in range(10):
            refusal = await refused(report(broker, INFERENCE, old))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
            assert refusal.retry_seconds
        # Three tries each: of the first registration, and at most of two that its back-off allowed meanwhile.
        assert (spent(broker) - before)["agent_register"] <= 9
        assert await state_of(broker) == admin_pb2.IDENTITY_STATE_ROTATING
        emulator.backend.faults.remove(down)
        pass_time(broker, clock, 120)
        better = None
        async with asyncio.timeout(30):
            while better is None:
                better = await report_or_wait(broker, old)
        assert await sees(broker, INFERENCE, better) == 200
        assert len(emulator.backend.registry.agents_json()) == 2


async def test_an_identity_that_cannot_register_itself_is_rejected_at_once(tmp_path: Path) -> None:
    """An imported JWT has no other agent to be: REJECTED in the row, and no request leaves any more."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        await broker.admin.ImportIdentity(
            admin_pb2.ImportIdentityRequest(
                request_id="r1", name="agent", mode=admin_pb2.IDENTITY_MODE_AGENT, identity_jwt=issued.jwt
            )
        )
        await authorize(broker, USAGE)
        fault(emulator, Action.AGENT_DEAD, count=1)
        old = await rejected(broker, INFERENCE)
        assert (await refused(report(broker, INFERENCE, old))).reason == "IDENTITY_REJECTED"
        assert await state_of(broker) == admin_pb2.IDENTITY_STATE_REJECTED
        before = len(list(emulator.backend.ledger.entries()))
        for _ in range(50):
            assert (await refused(report(broker, INFERENCE, old))).reason == "IDENTITY_REJECTED"
            assert (await refused(authorize(broker, USAGE))).reason == "IDENTITY_REJECTED"
        assert len(list(emulator.backend.ledger.entries())) == before
        assert spent(broker)["agent_register"] == 0


async def test_1000_reports_to_a_backend_that_rejects_everything_end(tmp_path: Path) -> None:
    """One task, one agent, one task, for two processes together; then IDENTITY_REJECTED, whoever reports whatever."""
    seen = await observe_endless(tmp_path, brokers=2, reports=1000)
    assert Counter(seen.cost) == Counter(ENDLESS_GOAL)
    assert seen.outcomes.total() == seen.reports >= 1000
    assert seen.outcomes["IDENTITY_REJECTED"] > 900
    assert set(seen.outcomes) <= {"OK", "BACKEND_UNSUPPORTED", "REGISTRATION_IN_PROGRESS", "IDENTITY_REJECTED"}


async def test_a_rejected_identity_is_not_asked_for_anything(tmp_path: Path) -> None:
    """Two routes reject the other agent too: REJECTED in the row, told to every scope, and no request leaves."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.ROUTE_REJECT, path_prefix="/backend-api/")
        before = spent(broker)
        held = {scope: await authorize(broker, scope) for scope in (INFERENCE, FILES)}
        reasons: list[str] = []
        while reasons[-2:] != ["IDENTITY_REJECTED"] * 2:
            for scope, authorization in list(held.items()):
                try:
                    held[scope] = await report(broker, scope, authorization)
                except grpc.aio.AioRpcError as error:
                    reasons.append(refusal_of(error).reason)
        assert set(reasons) == {"BACKEND_UNSUPPORTED", "IDENTITY_REJECTED"}
        assert spent(broker) - before == Counter(task_register=2, agent_register=1)
        assert await state_of(broker) == admin_pb2.IDENTITY_STATE_REJECTED
        assert {counted(broker, step) for step in ("REGISTER_ANEW", "REJECT_IDENTITY")} == {1}
        requests = len(list(broker.emulator.backend.ledger.entries()))
        for scope in (INFERENCE, FILES, USAGE):
            assert (await refused(authorize(broker, scope))).reason == "IDENTITY_REJECTED"
        assert len(list(broker.emulator.backend.ledger.entries())) == requests


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [0.0, 70.0], ids=["heard just now", "not heard for a minute"])
async def test_a_clock_that_is_too_far_off_is_told_from_a_dead_key(tmp_path: Path, heard: float) -> None:
    """CLOCK_SKEW, no other agent, nothing marked; once the clock is right the identity goes on as it was."""
    clock = JumpingClock()
    async with running_emulator() as emulator, running_broker(tmp_path, emulator, clock=clock) as broker:
        await broker.create_agent()
        before = await authorize(broker, INFERENCE)
        pass_time(broker, clock, heard)
        emulator.backend.change(clock_offset_seconds=clock.ahead + 2000)
        old = await rejected(broker, INFERENCE)
        refusal = await refused(report(broker, INFERENCE, old))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CLOCK_SKEW")
        assert spent(broker)["agent_register"] == 1
        assert await state_of(broker) == admin_pb2.IDENTITY_STATE_ACTIVE
        if heard:
            assert spent(broker)["task_register"] == 1
            assert rejections_in(broker)[-1]["event"] == "rejection_reported"
        pass_time(broker, clock, 601)  # what was heard of the wrong clock is too old to count
        healed = await authorize(broker, INFERENCE)
        assert healed.revision == before.revision
        assert await sees(broker, INFERENCE, healed) == 200


async def test_a_wrong_clock_within_limits_costs_no_task(tmp_path: Path) -> None:
    """The same credential, signed by the backend's time, is the better one."""
    clock = JumpingClock()
    async with (
        running_emulator(freshness_seconds=60) as emulator,
        running_broker(tmp_path, emulator, clock=clock) as broker,
    ):
        await broker.create_agent()
        await authorize(broker, INFERENCE)
        pass_time(broker, clock, 70)
        emulator.backend.change(clock_offset_seconds=clock.ahead + 200)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        better = await report(broker, INFERENCE, old)
        assert better.revision == old.revision
        assert await sees(broker, INFERENCE, better) == 200
        assert spent(broker) == before


async def test_a_clock_that_goes_wrong_just_after_it_was_heard_costs_no_agent(tmp_path: Path) -> None:
    """The fresh task is refused for its time, which the refusal's own date shows: it is asked for by the right time."""
    async with running_emulator(freshness_seconds=60) as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        await authorize(broker, INFERENCE)
        emulator.backend.change(clock_offset_seconds=200)
        better = await report(broker, INFERENCE, await rejected(broker, INFERENCE))
        assert await sees(broker, INFERENCE, better) == 200
        assert spent(broker)["agent_register"] == 1


# --- bearers ----------------------------------------------------------------------------------------------------------


def token(emulator: EmulatorServer) -> str:
    """Return an access token the emulator accepts for a day."""
    return emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token


async def create_bearer(broker: Broker, **fields: Any) -> None:
    """Create an identity of mode BEARER."""
    await broker.admin.CreateIdentity(
        admin_pb2.CreateIdentityRequest(
            request_id="r1", name="login", backend="default", mode=admin_pb2.IDENTITY_MODE_BEARER, **fields
        )
    )


async def test_a_static_token_that_is_rejected_needs_a_person(tmp_path: Path) -> None:
    """There is no other token: REAUTH_REQUIRED in the row and for every process, without a request."""
    async with (
        running_emulator() as emulator,
        running_broker(tmp_path, emulator) as broker,
        running_broker(tmp_path, emulator) as other,
    ):
        await create_bearer(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator)))
        fault(emulator, Action.BEARER_REJECT)
        old = await rejected(broker, INFERENCE)
        assert (await refused(report(broker, INFERENCE, old))).reason == "REAUTH_REQUIRED"
        assert await state_of(broker, "login") == admin_pb2.IDENTITY_STATE_REAUTH_REQUIRED
        assert (await refused(authorize(broker, INFERENCE))).reason == "REAUTH_REQUIRED"
        assert (await refused(report(broker, INFERENCE, old))).reason == "REAUTH_REQUIRED"
        await asyncio.sleep(0.3)  # the other follows
        assert (await refused(authorize(other, INFERENCE))).reason == "REAUTH_REQUIRED"
        assert spent(broker) == Counter()
        assert counted(broker, "END_BEARER", "BEARER") == 1


async def test_a_token_of_a_file_is_over_until_the_file_has_another(tmp_path: Path) -> None:
    """A new token has another name and serves at once; nothing need be done but to write it."""
    path = tmp_path / "token"
    async with running_emulator() as emulator:
        path.write_text(token(emulator))
        sources = {"sink": {"type": "file", "path": str(path)}}
        async with running_broker(tmp_path / "state", emulator, bearer_sources=sources) as broker:
            await create_bearer(broker, bearer_source="sink")
            old = await authorize(broker, INFERENCE)
            assert await sees(broker, INFERENCE, old) == 200
            fingerprint = entries(broker, "resource")[-1].credential_fingerprint
            fault(emulator, Action.BEARER_REJECT, fingerprint=fingerprint)
            assert await sees(broker, INFERENCE, old) == 401
            assert (await refused(report(broker, INFERENCE, old))).reason == "REAUTH_REQUIRED"
            path.write_text(token(emulator))

            async def serves() -> bool:
                try:
                    return await sees(broker, INFERENCE, await authorize(broker, INFERENCE)) == 200
                except grpc.aio.AioRpcError:
                    return False

            async with asyncio.timeout(15):
                while not await serves():
                    await asyncio.sleep(0.05)


async def test_a_token_of_a_file_that_was_replaced_meanwhile_is_found_by_one_refresh(tmp_path: Path) -> None:
    """The broker looks into the file because of the report, sooner than it would have by itself."""
    path = tmp_path / "token"
    async with running_emulator() as emulator:
        path.write_text(token(emulator))
        sources = {"sink": {"type": "file", "path": str(path)}}
        async with running_broker(tmp_path / "state", emulator, bearer_sources=sources) as broker:
            await create_bearer(broker, bearer_source="sink")
            old = await authorize(broker, INFERENCE)
            broker.app.upkeep.pause()
            await asyncio.sleep(0.2)
            path.write_text(token(emulator))
            better = await report(broker, INFERENCE, old)
            assert better.revision != old.revision
            assert await sees(broker, INFERENCE, better) == 200
            assert counted(broker, "REFRESH_BEARER", "BEARER") == 1
            assert await state_of(broker, "login") == admin_pb2.IDENTITY_STATE_ACTIVE


async def test_a_configured_source_serves_again_with_its_next_token(tmp_path: Path) -> None:
    """Two of its tokens are rejected; nobody can log in for it, and nobody need: it brings another in its time."""
    clock = JumpingClock()
    secret = tmp_path / "secret"
    secret.write_text(DEFAULT_CLIENT_SECRET)
    secret.chmod(0o600)
    async with running_emulator(access_token_seconds=600.0) as emulator:
        machine = {
            "type": "client_credentials",
            "token_url": f"{emulator.url}/oauth/token",
            "client_id": DEFAULT_CLIENT_ID,
            "client_secret_file": str(secret),
        }
        async with running_broker(tmp_path / "state", emulator, clock=clock, bearer_sources={"m": machine}) as broker:
            await create_bearer(broker, bearer_source="m")
            old = await authorize(broker, INFERENCE)
            await refuse_this(broker, old)
            better = await report(broker, INFERENCE, old)
            await refuse_this(broker, better)
            assert (await refused(report(broker, INFERENCE, better))).reason == "REAUTH_REQUIRED"
            assert (await refused(authorize(broker, INFERENCE))).reason == "REAUTH_REQUIRED"
            assert counted(broker, "END_BEARER", "BEARER") == 1
            pass_time(broker, clock, 600)
            assert await sees(broker, INFERENCE, await authorize(broker, INFERENCE)) == 200


async def test_a_rejected_bearer_of_an_agent_leaves_its_assertions_alone(tmp_path: Path) -> None:
    """Its key and tasks are not touched; the scopes that need a bearer say REAUTH_REQUIRED."""
    async with agent_at(tmp_path, scopes={"control_plane.models": {"credential": "bearer_only"}}) as broker:
        before = spent(broker)
        fault(broker.emulator, Action.BEARER_REJECT)
        old = await broker.authorize("control_plane.models")
        assert old.kind == BEARER
        refusal = await refused(report(broker, "control_plane.models", old, ""))
        assert refusal.reason == "REAUTH_REQUIRED"
        assert (await refused(broker.authorize("control_plane.models"))).reason == "REAUTH_REQUIRED"
        assert await sees(broker, INFERENCE, await authorize(broker, INFERENCE)) == 200
        assert spent(broker) == before
        assert await state_of(broker) == admin_pb2.IDENTITY_STATE_ACTIVE


@asynccontextmanager
async def login_at(tmp_path: Path, *, brokers: int = 1, mode: Any = None, **each: Any) -> AsyncIterator[list[Broker]]:
    """Run brokers on one database, with an identity that lives on a login of its own."""
    async with running_emulator() as emulator, AsyncExitStack() as running:
        sources = {"chatgpt": {"type": "oauth", "token_url": f"{emulator.url}/oauth/token"}}
        serving = [
            await running.enter_async_context(running_broker(tmp_path, emulator, bearer_sources=sources, **each))
            for _ in range(brokers)
        ]
        login = emulator.backend.mint_token()
        await serving[0].admin.CreateIdentity(
            admin_pb2.CreateIdentityRequest(
                request_id="r1",
                name="login",
                backend="default",
                mode=mode or admin_pb2.IDENTITY_MODE_BEARER,
                oauth_bearer=admin_pb2.OauthBearer(
                    source="chatgpt",
                    refresh_token=login.refresh_token or "",
                    access_token=login.access_token,
                    id_token=login.id_token or "",
                ),
            )
        )
        yield serving


async def refuse_this(broker: Broker, authorization: pb2.Authorization) -> None:
    """Have the backend refuse one bearer from now on, wherever it comes."""
    assert await sees(broker, INFERENCE, authorization) == 200
    fault(broker.emulator, Action.BEARER_REJECT, fingerprint=entries(broker, "resource")[-1].credential_fingerprint)
    assert await sees(broker, INFERENCE, authorization) == 401


async def test_100_parallel_reports_of_a_login_to_two_brokers_refresh_it_once(tmp_path: Path) -> None:
    """One exchange, whose token all get and the backend accepts."""
    async with login_at(tmp_path, brokers=2) as brokers:
        one, other = brokers
        await asyncio.sleep(0.3)  # the other follows
        old = await authorize(one, INFERENCE)
        assert (await authorize(other, INFERENCE)).revision == old.revision
        await refuse_this(one, old)
        turns = itertools.cycle(brokers)
        answers = await asyncio.gather(*(report(next(turns), INFERENCE, old) for _ in range(100)))
        assert len({answer.revision for answer in answers} - {old.revision}) == 1
        assert await all_accepted(one, answers)
        assert spent(one) == Counter(oauth=1)
        assert await state_of(one, "login") == admin_pb2.IDENTITY_STATE_ACTIVE


async def test_a_login_whose_new_token_is_rejected_too_needs_a_person_and_serves_again_after(tmp_path: Path) -> None:
    """One exchange a window; then REAUTH_REQUIRED, until somebody logs in anew."""
    async with login_at(tmp_path) as (broker,):
        old = await authorize(broker, INFERENCE)
        await refuse_this(broker, old)
        better = await report(broker, INFERENCE, old)
        await refuse_this(broker, better)
        assert (await refused(report(broker, INFERENCE, better))).reason == "REAUTH_REQUIRED"
        assert await state_of(broker, "login") == admin_pb2.IDENTITY_STATE_REAUTH_REQUIRED
        for _ in range(20):
            assert (await refused(report(broker, INFERENCE, better))).reason == "REAUTH_REQUIRED"
        assert spent(broker) == Counter(oauth=1)
        login = broker.emulator.backend.mint_token()
        await broker.admin.ReauthenticateIdentity(
            admin_pb2.ReauthenticateIdentityRequest(
                request_id="r2",
                name="login",
                oauth_bearer=admin_pb2.OauthBearer(
                    source="chatgpt",
                    refresh_token=login.refresh_token or "",
                    access_token=login.access_token,
                    id_token=login.id_token or "",
                ),
            )
        )
        assert await sees(broker, INFERENCE, await authorize(broker, INFERENCE)) == 200
        assert await state_of(broker, "login") == admin_pb2.IDENTITY_STATE_ACTIVE


def login_of(broker: Broker) -> LoginSource:
    """Return the source of the login in one broker."""
    view = broker.app.snapshots.named(IdentityName("login"))
    assert view is not None
    assert isinstance(view.bearers, LoginSource)
    return view.bearers


async def test_a_token_that_is_being_refreshed_is_not_the_end_of_its_login(tmp_path: Path) -> None:
    """An issuer may end the old token with the refresh: what that brings is waited for, although one had its chance."""
    faulty: list[FaultyStore] = []

    def wrap(store: Store) -> Store:
        faulty.append(FaultyStore(store))
        return faulty[-1]

    async with login_at(tmp_path, wrap_store=wrap) as (broker,):
        old = await authorize(broker, INFERENCE)
        await refuse_this(broker, old)
        better = await report(broker, INFERENCE, old)
        gate = faulty[0].hold("complete_refresh")
        source = login_of(broker)
        refresh = asyncio.create_task(source.refresh(beyond=source.current()))
        await eventually(lambda: len(entries(broker, "oauth")) == 2)
        await refuse_this(broker, better)
        reported = asyncio.create_task(report(broker, INFERENCE, better))
        await eventually(lambda: counted(broker, "REPORTED", "BEARER") == 2)
        await asyncio.wait({reported}, timeout=0.2)
        gate.set()
        assert await sees(broker, INFERENCE, await reported) == 200
        await refresh
        assert await state_of(broker, "login") == admin_pb2.IDENTITY_STATE_ACTIVE
        assert spent(broker) == Counter(oauth=2)


async def test_a_token_that_another_broker_refreshed_is_not_the_end_of_its_login(tmp_path: Path) -> None:
    """The store is asked for what this broker has not followed yet, before a token's rejection ends the login."""
    async with login_at(tmp_path, brokers=2) as (one, other):
        old = await authorize(one, INFERENCE)
        await refuse_this(one, old)
        better = await report(one, INFERENCE, old)
        await eventually(lambda: other.app.snapshots.named(IdentityName("login")) is not None)
        source = login_of(other)
        await eventually(lambda: source.current() == login_of(one).current())
        one.app.upkeep.pause()
        await asyncio.sleep(0.3)  # what it was following with is done
        await source.refresh(beyond=source.current())
        await refuse_this(one, better)
        assert await sees(one, INFERENCE, await report(one, INFERENCE, better)) == 200
        assert await state_of(one, "login") == admin_pb2.IDENTITY_STATE_ACTIVE
        assert spent(one) == Counter(oauth=2)


async def test_an_issuer_that_is_away_costs_nothing_for_good(tmp_path: Path) -> None:
    """ISSUER_DOWN with a wait; the token is not over, and the same report refreshes it once the issuer is back."""
    clock = JumpingClock()
    async with login_at(tmp_path, clock=clock) as (broker,):
        old = await authorize(broker, INFERENCE)
        await refuse_this(broker, old)
        down = fault(broker.emulator, Action.STATUS, path_prefix="/oauth/token", status=503)
        refusal = await refused(report(broker, INFERENCE, old))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "ISSUER_DOWN")
        assert refusal.retry_seconds
        assert await state_of(broker, "login") == admin_pb2.IDENTITY_STATE_ACTIVE
        broker.emulator.backend.faults.remove(down)
        pass_time(broker, clock, 300)
        assert await sees(broker, INFERENCE, await report(broker, INFERENCE, old)) == 200


async def test_a_rejected_assertion_never_spends_a_refresh_token(tmp_path: Path) -> None:
    """A fresh task and a mark, with a login at hand that could be refreshed: the issuer is not asked."""
    async with login_at(tmp_path, mode=admin_pb2.IDENTITY_MODE_AGENT) as (broker,):
        answer = await marked(broker, USAGE)
        assert isinstance(answer, pb2.Authorization)
        assert answer.kind == BEARER
        assert await sees(broker, USAGE, answer) == 200
        assert spent(broker)["oauth"] == 0


# --- the store, and crashes -------------------------------------------------------------------------------------------


@asynccontextmanager
async def agent_on_faulty_store(tmp_path: Path) -> AsyncIterator[tuple[Broker, FaultyStore]]:
    """Run a broker with one agent on a database that fails when told to."""
    stores: list[FaultyStore] = []

    def wrap(real: Store) -> Any:
        stores.append(FaultyStore(real))
        return stores[0]

    async with running_emulator() as emulator, running_broker(tmp_path, emulator, wrap_store=wrap) as broker:
        await broker.create_agent()
        await broker.authorize(USAGE)
        yield broker, stores[0]


async def test_nothing_is_tried_that_is_not_written_down(tmp_path: Path) -> None:
    """With the ladder's write failing no task is asked for; once it can be written the same report is mended."""
    async with agent_on_faulty_store(tmp_path) as (broker, store):
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        store.fail("write_ladder")
        assert (await refused(report(broker, INFERENCE, old))).reason == "STORE_DOWN"
        assert spent(broker) == before
        assert await sees(broker, INFERENCE, await report(broker, INFERENCE, old)) == 200


async def test_a_write_whose_answer_was_lost_is_not_a_second_step(tmp_path: Path) -> None:
    """The ladder was written and the broker does not know: the next report goes on from there, with one task."""
    async with agent_on_faulty_store(tmp_path) as (broker, store):
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        store.fail("write_ladder", after=True)
        assert (await refused(report(broker, INFERENCE, old))).reason == "STORE_DOWN"
        assert await sees(broker, INFERENCE, await report(broker, INFERENCE, old)) == 200
        assert spent(broker) - before == Counter(task_register=1)


async def test_a_ladder_that_others_write_all_the_time_is_climbed_or_given_up(tmp_path: Path) -> None:
    """Losing the compare-and-set means looking again; losing it without end is an outcome, not a loop."""
    async with agent_on_faulty_store(tmp_path) as (broker, store):
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        store.fail("write_ladder", GenerationChangedError(), times=3)
        assert await sees(broker, INFERENCE, await report(broker, INFERENCE, old)) == 200
        assert store.calls["write_ladder"] == 4
        fresh = await authorize(broker, INFERENCE)
        store.fail("write_ladder", GenerationChangedError(), times=10_000)
        refusal = await refused(report(broker, INFERENCE, fresh))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "GENERATION_CHANGED")


async def test_a_ladder_of_a_later_broker_is_left_alone(tmp_path: Path) -> None:
    """What cannot be read is neither climbed nor written over; what is handed out goes on."""
    async with agent_on_faulty_store(tmp_path) as (broker, store):
        old = await authorize(broker, INFERENCE)
        identity = await store.store.identity_named(IdentityName("agent"))
        assert identity is not None
        ladder = await store.store.write_ladder(StoredLadder(identity_id=identity.id, document='{"format":2,"x":1}'))
        before = spent(broker)
        refusal = await refused(report(broker, INFERENCE, old))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "ROW_CORRUPT")
        assert await store.store.ladder(identity.id) == ladder
        assert spent(broker) == before
        assert (await authorize(broker, INFERENCE)).revision == old.revision


async def test_a_newer_credential_is_returned_with_the_store_away(tmp_path: Path) -> None:
    """Memory knows of the replacement; only steps need the store."""
    async with agent_on_faulty_store(tmp_path) as (broker, store):
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        better = await report(broker, INFERENCE, old)
        store.go_down()
        assert (await report(broker, INFERENCE, old)).revision == better.revision
        assert (await refused(report(broker, INFERENCE, better))).reason == "STORE_DOWN"
        store.come_back()


async def test_a_report_that_cannot_be_recorded_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUDIT_DOWN before anything is tried."""
    async with agent_at(tmp_path) as broker:
        fault(broker.emulator, Action.STALE_TASK, count=1)
        old = await rejected(broker, INFERENCE)
        before = spent(broker)
        with monkeypatch.context() as patch:
            patch.setattr(AuditLog, "_append", lambda _self, _line: False)
            assert (await refused(report(broker, INFERENCE, old))).reason == "AUDIT_DOWN"
        assert spent(broker) == before
        assert await sees(broker, INFERENCE, await report(broker, INFERENCE, old)) == 200


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("moment", "method"), [("after", "write_ladder"), ("before", "adopt_agent")])
async def test_a_broker_killed_on_the_ladder_leaves_what_the_next_one_goes_on_with(
    tmp_path: Path, moment: str, method: str
) -> None:
    """Killed (-9) at a write; reported the same, the next process ends with one other agent, which is accepted."""
    state = tmp_path / "state"
    async with running_emulator() as emulator:
        async with running_broker(state, emulator) as broker:
            await broker.create_agent()
            await authorize(broker, USAGE)
            held = await authorize(broker, INFERENCE)
            fault(emulator, Action.AGENT_DEAD, count=1)
            assert await sees(broker, INFERENCE, held) == 401
        arguments = ["--state-dir", str(state), "--backend", emulator.url, f"--die-{moment}", method]
        with Server("killed", "tests.support.broker_process", arguments, folder=tmp_path) as server:
            serving = await asyncio.to_thread(server.next_event)
            async with guarded_channel(serving["callers"]) as channel:
                request = pb2.ReportRejectedRequest(
                    scope=INFERENCE, thread_id="thread-1", revision=held.revision, http_status=401
                )
                with pytest.raises(grpc.aio.AioRpcError) as died:
                    await credential_broker_pb2_grpc.CredentialBrokerStub(channel).ReportRejected(request, timeout=20)
                assert died.value.code() == grpc.StatusCode.UNAVAILABLE
        limits = {"registration_lease_seconds": LEASE_SECONDS}
        async with running_broker(state, emulator, limits=limits) as broker:
            better = None
            async with asyncio.timeout(60):
                while better is None:
                    better = await report_or_wait(broker, held)
            assert await sees(broker, INFERENCE, better) == 200
            assert await state_of(broker) == admin_pb2.IDENTITY_STATE_ACTIVE
            assert len(entries(broker, "agent_register")) == 2


async def report_or_wait(broker: Broker, held: pb2.Authorization) -> pb2.Authorization | None:
    """Report once; wait a little where the answer says that trying again makes sense."""
    try:
        return await report(broker, INFERENCE, held)
    except grpc.aio.AioRpcError as error:
        if refusal_of(error).retry_seconds is None:
            raise
    await asyncio.sleep(0.1)
    return None
