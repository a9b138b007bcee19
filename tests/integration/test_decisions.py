"""Each failure of a registration by each kind of scope, against the emulator: what a caller gets, and what is asked."""

import asyncio
import base64
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
import structlog
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.bearer import Bearer
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator
from tests.support.clocks import JumpingClock

ASSERTION, BEARER = pb2.CREDENTIAL_KIND_AGENT_ASSERTION, pb2.CREDENTIAL_KIND_BEARER
SCOPES = {
    "thread.files": {"credential": "assertion_preferred"},
    "control_plane.models": {"credential": "assertion_required"},
}
"""One scope of a thread that may fall back, and one without a thread that may not: the reverse of the built-in."""
REQUIRED = (("inference", "thread-1"), ("control_plane.models", ""))
PREFERRED = (("thread.files", "thread-1"), ("control_plane.usage", ""))


@dataclass(frozen=True)
class Failure:
    """One way a registration fails, and what a caller gets under assertion_required."""

    rule: dict[str, Any]
    reason: str
    falls_back: bool
    is_remembered: bool = True
    timeout: float = 5.0
    is_final: bool = True
    """False where the broker would make another agent in place of a refused one, if the identity can have one."""


def answering(body: dict[str, Any]) -> dict[str, Any]:
    """Answer a registration with this object."""
    return {"action": "status", "status": 200, "body": json.dumps(body)}


FAILURES = {
    "429": Failure({"action": "status", "status": 429}, "BACKEND_THROTTLED", falls_back=True),
    "500": Failure({"action": "status", "status": 500}, "BACKEND_DOWN", falls_back=True),
    "503": Failure({"action": "status", "status": 503}, "BACKEND_DOWN", falls_back=True),
    "connection cut": Failure({"action": "drop_after"}, "BACKEND_DOWN", falls_back=True),
    "answer cut": Failure({"action": "truncate"}, "BACKEND_DOWN", falls_back=True),
    "hang": Failure({"action": "hang"}, "REGISTRATION_IN_PROGRESS", falls_back=True, is_remembered=False, timeout=1.0),
    "redirect": Failure(
        {"action": "redirect", "location": "http://127.0.0.1:1/"}, "BACKEND_PROTOCOL", falls_back=False
    ),
    "garbage": Failure({"action": "garbage"}, "BACKEND_PROTOCOL", falls_back=False),
    "oversize": Failure({"action": "oversize", "size": 200_000}, "BACKEND_PROTOCOL", falls_back=False),
    "no id": Failure(answering({"other": "x"}), "BACKEND_PROTOCOL", falls_back=False),
    "id that cannot be one": Failure(answering({"task_id": "../x"}), "BACKEND_PROTOCOL", falls_back=False),
    "wrong seal": Failure(
        answering({"encrypted_task_id": base64.b64encode(bytes(80)).decode()}), "BACKEND_PROTOCOL", falls_back=False
    ),
    "400": Failure({"action": "status", "status": 400}, "IDENTITY_REJECTED", falls_back=False),
    "401": Failure({"action": "status", "status": 401}, "IDENTITY_REJECTED", falls_back=False, is_final=False),
    "403": Failure({"action": "status", "status": 403}, "IDENTITY_REJECTED", falls_back=False, is_final=False),
    "404": Failure({"action": "status", "status": 404}, "IDENTITY_REJECTED", falls_back=False),
    "409": Failure({"action": "status", "status": 409}, "IDENTITY_REJECTED", falls_back=False),
}
CODES = {
    "IDENTITY_REJECTED": grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.fixture(autouse=True)
def events_dropped() -> Iterator[None]:
    """Drop events: without a configuration each exception is drawn at length, which takes longer than the test."""
    structlog.configure(processors=[_drop])
    yield
    structlog.reset_defaults()


def _drop(_logger: object, _method: str, _event: object) -> NoReturn:
    raise structlog.DropEvent


@asynccontextmanager
async def broker_without_prewarming(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Broker, JumpingClock]]:
    """Run a broker whose background tasks are registered when a call needs them, on a clock that can be moved."""
    clock = JumpingClock()
    async with (
        running_emulator(**settings) as emulator,
        running_broker(tmp_path, emulator, clock=clock, scopes=SCOPES) as broker,
    ):
        broker.app.upkeep.pause()
        yield broker, clock


def break_registration(broker: Broker, identity: admin_pb2.Identity, rule: dict[str, Any]) -> FaultRule:
    """Spoil every task registration of one agent."""
    fault = FaultRule.from_json(
        {
            "operation": "task_register",
            "path_prefix": f"/api/accounts/v1/agent/{identity.agent_runtime_id}/",
            "count": None,
            **rule,
        }
    )
    return broker.emulator.backend.faults.add(fault)


def asked(broker: Broker, identity: admin_pb2.Identity) -> int:
    """Count the task registrations of one agent that arrived."""
    entries = broker.emulator.backend.ledger.entries(operation="task_register")
    return sum(identity.agent_runtime_id in entry.path for entry in entries)


def counted(broker: Broker, name: str, **labels: str) -> float:
    """Read a counter, 0 while it never counted."""
    return broker.app.metrics.registry.get_sample_value(name, labels) or 0.0


async def import_agent(broker: Broker, name: str) -> admin_pb2.Identity:
    """Import an identity that cannot register itself, with a bearer."""
    backend = broker.emulator.backend
    answer = await broker.admin.ImportIdentity(
        admin_pb2.ImportIdentityRequest(
            request_id=f"import-{name}",
            name=name,
            mode=admin_pb2.IDENTITY_MODE_AGENT,
            identity_jwt=backend.issue_identity().jwt,
            static_bearer=admin_pb2.StaticBearer(token=backend.mint_token(lifetime=timedelta(days=1)).access_token),
        )
    )
    return answer.identity


async def check(broker: Broker, name: str, failure: Failure) -> tuple[str, int, int]:
    """Have one agent fail in one way and ask for every kind of scope; return what was asked of the backend."""
    identity = await (broker.create_agent(name) if failure.is_final else import_agent(broker, name))
    break_registration(broker, identity, failure.rule)
    for scope, thread in REQUIRED:
        refusal = await refused(broker.authorize(scope, thread, identity=name, timeout=failure.timeout))
        assert refusal.reason == failure.reason, (name, scope)
        assert refusal.code == CODES.get(failure.reason, grpc.StatusCode.UNAVAILABLE)
        if refusal.code == grpc.StatusCode.UNAVAILABLE:
            assert refusal.retry_seconds, (name, scope)
    first = asked(broker, identity)
    for scope, thread in PREFERRED * 2:
        if failure.falls_back:
            answer = await broker.authorize(scope, thread, identity=name, timeout=failure.timeout)
            assert (answer.kind, answer.reason, answer.fallback_from) == (
                BEARER,
                pb2.DECISION_REASON_TASK_UNAVAILABLE,
                ASSERTION,
            ), (name, scope)
        else:
            refusal = await refused(broker.authorize(scope, thread, identity=name, timeout=failure.timeout))
            assert refusal.reason == failure.reason, (name, scope)
    # Nothing of this stands in the way of a scope that never wanted an assertion.
    assert (await broker.authorize("bootstrap", identity=name)).reason == pb2.DECISION_REASON_SCOPE_IS_BEARER_ONLY
    return name, first, asked(broker, identity)


async def test_each_failure_gives_each_scope_what_the_policy_says(tmp_path: Path) -> None:
    """All failures by all kinds of scope: kind and reason as the table says, fallbacks counted, nothing asked twice."""
    async with broker_without_prewarming(tmp_path) as (broker, _):
        names = {f"agent-{index}": failure for index, failure in enumerate(FAILURES.values())}
        results = await asyncio.gather(*(check(broker, name, failure) for name, failure in names.items()))
        for name, first, after in results:
            failure = names[name]
            if failure.is_remembered and not failure.falls_back:
                assert (first, after) == (1, 1), (name, failure)
            assert after == first, (name, failure)
        fallbacks = 2 * sum(failure.falls_back for failure in names.values())
        for scope, _thread in PREFERRED:
            labels = {"scope": scope, "reason": "TASK_UNAVAILABLE"}
            assert counted(broker, "credential_broker_fallbacks_total", **labels) == fallbacks
            kind = {**labels, "kind": "BEARER"}
            assert counted(broker, "credential_broker_decisions_total", **kind) == fallbacks
        for scope, _thread in REQUIRED:
            for reason in ("TASK_ASSERTION", "TASK_UNAVAILABLE"):
                labels = {"scope": scope, "reason": reason}
                assert counted(broker, "credential_broker_decisions_total", kind="BEARER", **labels) == 0
        broker.emulator.backend.faults.remove()
        broker.app.request_stop()
        await broker.app.run_until_stopped()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    grants = [line for line in lines if line["event"].startswith("grant")]
    fell_back = [line for line in grants if line.get("fallback_from") == "AGENT_ASSERTION"]
    assert sum(line.get("repeats", 1) for line in fell_back) == 2 * fallbacks
    assert {line["reason"] for line in fell_back} == {"TASK_UNAVAILABLE"}
    assert {line["scope"] for line in grants if line["kind"] == "BEARER"} == {
        "thread.files",
        "control_plane.usage",
        "bootstrap",
    }


@pytest.mark.parametrize("name", ["404", "garbage"])
async def test_what_was_refused_is_asked_again_after_a_minute_then_two(tmp_path: Path, name: str) -> None:
    """A hard or garbled answer is remembered for 60 s, then for 120, for all threads; a success forgets it."""
    async with broker_without_prewarming(tmp_path, freshness_seconds=3600) as (broker, clock):
        identity = await broker.create_agent()
        fault = break_registration(broker, identity, FAILURES[name].rule)
        reason = FAILURES[name].reason
        for ahead, registrations in ((0, 1), (58, 1), (61, 2), (61 + 118, 2), (61 + 122, 3)):
            clock.ahead = ahead
            for thread in ("one", "two"):
                assert (await refused(broker.authorize("inference", thread))).reason == reason
            assert asked(broker, identity) == registrations, ahead
        broker.emulator.backend.faults.remove(fault.rule_id)
        clock.ahead += 250
        assert (await broker.authorize("inference", "one")).kind == ASSERTION
        assert asked(broker, identity) == 4


async def test_retry_after_is_told_and_kept(tmp_path: Path) -> None:
    """A backend that asks for time is left alone for as long, callers are told how long, and then it is asked again."""
    async with broker_without_prewarming(tmp_path) as (broker, clock):
        identity = await broker.create_agent()
        rule = {"action": "status", "status": 429, "retry_after": 50}
        fault = break_registration(broker, identity, rule)
        first = await refused(broker.authorize("inference", "t"))
        assert first.reason == "BACKEND_THROTTLED"
        assert first.retry_seconds == pytest.approx(50, abs=2)
        clock.ahead = 30
        second = await refused(broker.authorize("inference", "t"))
        assert second.retry_seconds == pytest.approx(20, abs=3)
        assert (await broker.authorize("control_plane.usage")).kind == BEARER
        assert asked(broker, identity) == 1
        broker.emulator.backend.faults.remove(fault.rule_id)
        clock.ahead = 52
        assert (await broker.authorize("inference", "t")).kind == ASSERTION
        assert asked(broker, identity) == 2


async def test_a_transient_failure_of_one_thread_is_its_own(tmp_path: Path) -> None:
    """Where each thread has its own upstream task, one that cools down stops no other."""
    profile = "codex-2026-04"
    async with running_emulator(profile=profile) as emulator:
        backend = {
            "profile": profile,
            "base_url": f"{emulator.url}/backend-api",
            "authapi_base_url": f"{emulator.url}/api/accounts",
        }
        async with running_broker(tmp_path, emulator, backends={"default": backend}) as broker:
            await broker.create_agent()
            await eventually(lambda: broker.registrations() == 1)
            broker.emulator.backend.faults.add(
                FaultRule(action=Action.STATUS, status=429, retry_after="50", operation=Operation.TASK_REGISTER)
            )
            assert (await refused(broker.authorize("inference", "one"))).reason == "BACKEND_THROTTLED"
            assert (await broker.authorize("inference", "two")).kind == ASSERTION
            assert (await refused(broker.authorize("inference", "one"))).reason == "BACKEND_THROTTLED"


@pytest.mark.parametrize("ahead", [1000, -1000])
async def test_clocks_too_far_apart_are_told_in_every_column(tmp_path: Path, ahead: float) -> None:
    """Beyond the limit nothing is signed and nothing falls back: CLOCK_SKEW, each time, without asking the backend."""
    async with broker_without_prewarming(tmp_path, clock_offset_seconds=ahead) as (broker, _):
        identity = await broker.create_agent()
        for scope, thread in (*REQUIRED, *PREFERRED) * 2:
            refusal = await refused(broker.authorize(scope, thread))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CLOCK_SKEW"), scope
        assert asked(broker, identity) == 0
        assert (await broker.authorize("bootstrap")).kind == BEARER


@pytest.mark.parametrize("ahead", [120, -120])
async def test_a_smaller_difference_is_corrected(tmp_path: Path, ahead: float) -> None:
    """A backend that is two minutes off and takes nothing older than one accepts what is signed for its clock."""
    settings = {"clock_offset_seconds": ahead, "freshness_seconds": 60}
    async with broker_without_prewarming(tmp_path, **settings) as (broker, _):
        await broker.create_agent()
        answer = await broker.authorize("inference", "t")
        assert (await broker.sees(answer)).status_code == 200
        # The times that the caller is told stay in the broker's clock.
        assert abs(answer.expire_time.ToNanoseconds() / 1e9 - answer.server_time.ToNanoseconds() / 1e9) <= 61


async def test_a_bearer_file_is_followed_and_its_end_is_kept(tmp_path: Path) -> None:
    """A renewed token is handed out under a new revision and the old connection tag; an expired one never."""
    token_file = tmp_path / "token"
    clock = JumpingClock()
    sources = {"vault": {"type": "file", "path": str(token_file)}}
    async with running_emulator() as emulator:

        def renew() -> str:
            token = emulator.backend.mint_token().access_token
            token_file.write_text(token)
            token_file.chmod(0o600)
            return token

        first = renew()
        async with running_broker(tmp_path / "state", emulator, clock=clock, bearer_sources=sources) as broker:
            await broker.admin.CreateIdentity(
                admin_pb2.CreateIdentityRequest(
                    request_id="r",
                    name="bot",
                    backend="default",
                    mode=admin_pb2.IDENTITY_MODE_BEARER,
                    bearer_source="vault",
                )
            )
            before = await broker.authorize("inference", "t")
            assert before.reason == pb2.DECISION_REASON_IDENTITY_IS_BEARER
            assert header(before) == f"Bearer {first}"
            second = renew()
            (source,) = broker.app.upkeep._files

            def current() -> Bearer:
                bearer = source.current()
                assert bearer is not None
                return bearer

            await eventually(lambda: current().token.reveal() == second)
            clock.ahead += 1
            after = await broker.authorize("inference", "t")
            assert header(after) == f"Bearer {second}"
            assert after.revision != before.revision
            assert after.connection_tag == before.connection_tag
            # The file goes away and the token ends: nothing is handed out; a new one heals.
            token_file.unlink()
            expire_time = current().expire_time
            assert expire_time is not None
            clock.ahead += expire_time - clock.now() - 10
            last = await broker.authorize("inference", "t")
            assert last.expire_time.ToNanoseconds() / 1e9 <= expire_time - 5
            clock.ahead += 6
            refusal = await refused(broker.authorize("inference", "t"))
            assert (refusal.reason, bool(refusal.retry_seconds)) == ("ISSUER_DOWN", True)
            clock.ahead = 0
            renew()
            await eventually(lambda: current().token.reveal() != second)
            assert (await broker.authorize("inference", "t")).kind == BEARER


async def test_what_one_process_disables_another_refuses(tmp_path: Path) -> None:
    """Two brokers on one state directory: what an operator does at one is the answer of the other within a poll."""
    async with (
        running_emulator() as emulator,
        running_broker(tmp_path, emulator) as one,
        running_broker(tmp_path, emulator, audit={"file": str(tmp_path / "other.jsonl")}) as other,
    ):

        def state_at(broker: Broker) -> str:
            return "".join(view.identity.state.value for view in broker.app.snapshots.views())

        await one.create_agent()
        await eventually(lambda: state_at(other) == "ACTIVE")
        first, second = await one.authorize("inference", "t"), await other.authorize("inference", "t")
        assert one.registrations() == 1
        assert (first.revision, first.connection_tag) == (second.revision, second.connection_tag)

        await one.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        await eventually(lambda: state_at(other) == "DISABLED")
        assert (await refused(other.authorize("inference", "t"))).reason == "IDENTITY_REVOKED"
        await other.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))
        await eventually(lambda: state_at(one) == "ACTIVE")
        assert (await one.authorize("inference", "t")).kind == ASSERTION
        await one.callers.EndTask(pb2.EndTaskRequest(thread_id="t"))
        await eventually(lambda: other.app.snapshots.active_task_counts().total() == 1)
        assert (await refused(other.authorize("inference", "t"))).reason == "TASK_ENDED"


async def test_a_tombstone_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """An ended thread is TASK_ENDED for as long as the setting says, and begins anew after it, pruned or not."""
    clock = JumpingClock()
    async with (
        running_emulator(freshness_seconds=3600) as emulator,
        running_broker(tmp_path, emulator, clock=clock, limits={"tombstone_seconds": 100}) as broker,
    ):
        await broker.create_agent()
        await broker.authorize("inference", "used")
        for thread in ("used", "never used"):
            await broker.callers.EndTask(pb2.EndTaskRequest(thread_id=thread))
        clock.ahead = 98
        for thread in ("used", "never used"):
            assert (await refused(broker.authorize("inference", thread))).reason == "TASK_ENDED"
        clock.ahead = 101
        for thread in ("used", "never used"):
            assert (await broker.authorize("inference", thread)).kind == ASSERTION


async def test_a_live_task_is_used_whatever_is_known_against_registrations(tmp_path: Path) -> None:
    """A thread whose task lives, but was dropped from memory, is not refused for another thread's failure."""
    profile = "codex-2026-04"
    async with running_emulator(profile=profile) as emulator:
        backend = {
            "profile": profile,
            "base_url": f"{emulator.url}/backend-api",
            "authapi_base_url": f"{emulator.url}/api/accounts",
        }
        async with running_broker(tmp_path, emulator, backends={"default": backend}) as broker:
            await broker.create_agent()
            await broker.authorize("inference", "known")
            emulator.backend.faults.add(FaultRule(action=Action.GARBAGE, operation=Operation.TASK_REGISTER))
            assert (await refused(broker.authorize("inference", "other"))).reason == "BACKEND_PROTOCOL"
            broker.app.snapshots._tasks.clear()
            assert (await broker.authorize("inference", "known")).kind == ASSERTION
            assert (await refused(broker.authorize("inference", "third"))).reason == "BACKEND_PROTOCOL"


async def test_an_identity_whose_row_cannot_be_read_says_so(tmp_path: Path) -> None:
    """It answers ROW_CORRUPT and still counts when none is named; the other identity answers as before."""
    async with running_emulator() as emulator:
        async with running_broker(tmp_path, emulator) as broker:
            await broker.create_agent("bad")
            await broker.create_agent("good")
        with sqlite3.connect(tmp_path / "broker.db") as database:
            database.execute("PRAGMA ignore_check_constraints = ON")
            assert database.execute("UPDATE identities SET state = 'MAYBE' WHERE name = 'bad'").rowcount == 1
        database.close()
        async with running_broker(tmp_path, emulator) as broker:
            refusal = await refused(broker.authorize("inference", "t", identity="bad"))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "ROW_CORRUPT")
            assert (await broker.authorize("inference", "t", identity="good")).kind == ASSERTION
            assert (await refused(broker.authorize("inference", "t"))).reason == "IDENTITY_REQUIRED"


async def test_a_damaged_task_is_told_and_disturbs_no_other(tmp_path: Path) -> None:
    """A thread whose row cannot be read answers ROW_CORRUPT, not that the store is down."""
    async with running_emulator() as emulator:
        async with running_broker(tmp_path, emulator) as broker:
            await broker.create_agent()
            await broker.authorize("inference", "bad")
            await broker.authorize("inference", "good")
        with sqlite3.connect(tmp_path / "broker.db") as database:
            database.execute("PRAGMA ignore_check_constraints = ON")
            assert database.execute("UPDATE tasks SET state = 'MAYBE' WHERE thread_id = 'bad'").rowcount == 1
        database.close()
        async with running_broker(tmp_path, emulator) as broker:
            assert (await refused(broker.authorize("inference", "bad"))).reason == "ROW_CORRUPT"
            assert (await broker.authorize("inference", "good")).kind == ASSERTION


def header(authorization: pb2.Authorization) -> str:
    """Return the credential."""
    return next(item.value for item in authorization.headers if item.name == "authorization")
