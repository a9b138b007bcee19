"""Every preset against an emulator of that generation, in each of the four shapes in which a task id is answered."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator.accounts import Account
from broker.emulator.faults import Action, FaultRule
from broker.emulator.ledger import Entry
from broker.emulator.profiles import TaskAnswer
from broker.emulator.routing import Operation
from broker.model import IdentityName
from broker.profiles import PRESETS
from tests.support.assertions import assertion_of
from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator

CHATGPT, AUTHAPI = "/backend-api", "/api/accounts"
BACKGROUND = "control_plane.apps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """
    What a preset must do on the wire, written down from the protocol and not from the broker's table.

    Attributes:
        agent: the credential of an agent registration; None where agents come as JWTs.
        task: the credential of a task registration.
        base: where agents and tasks are registered.
        keys: the upstream tasks of two threads and the background, in that order.
        refs: what their registrations name, for each distinct key.
        biscuits: how many are spent in all.
        shapes: the answers it reads.
    """

    agent: str | None
    task: str
    base: str
    keys: tuple[str, str, str]
    refs: tuple[str | None, ...]
    biscuits: int
    shapes: tuple[TaskAnswer, ...] = tuple(TaskAnswer)


GENERATIONS = {
    "codex-2026-04": Generation(
        agent="biscuit",
        task="biscuit",
        base=CHATGPT,
        keys=("one", "two", "background"),
        refs=(None, None, None),
        biscuits=4,
        shapes=(TaskAnswer.ENCRYPTED_TASK_ID,),
    ),
    "codex-2026-04-provider": Generation(
        agent=None, task="signature", base=CHATGPT, keys=("single",) * 3, refs=(None,), biscuits=0
    ),
    "codex-2026-05": Generation(
        agent="biscuit",
        task="signature",
        base=CHATGPT,
        keys=("one", "two", "process"),
        refs=("thread-1", "thread-2", None),
        biscuits=1,
    ),
    "codex-2026-08": Generation(
        agent="bearer", task="signature", base=AUTHAPI, keys=("single",) * 3, refs=(None,), biscuits=0
    ),
}


def backend(profile: str, url: str) -> dict[str, Any]:
    """Return the configuration of a backend that speaks a profile."""
    return {
        "default": {"profile": profile, "base_url": f"{url}/backend-api", "authapi_base_url": f"{url}/api/accounts"}
    }


def entries(broker: Broker, operation: Operation) -> list[Entry]:
    """Return what the emulator received of one kind."""
    return list(broker.emulator.backend.ledger.entries(operation=operation))


async def enroll(broker: Broker, generation: Generation, **fields: Any) -> admin_pb2.Identity:
    """Create an agent, or where the generation registers none import the JWT of one."""
    if generation.agent is not None:
        return await broker.create_agent(**fields)
    answer = await broker.admin.ImportIdentity(
        admin_pb2.ImportIdentityRequest(
            request_id="import",
            name="agent",
            mode=admin_pb2.IDENTITY_MODE_AGENT,
            identity_jwt=broker.emulator.backend.issue_identity().jwt,
        )
    )
    return answer.identity


def test_every_preset_is_here() -> None:
    """No preset ships without its proof."""
    assert GENERATIONS.keys() == PRESETS.keys()


@pytest.mark.parametrize("shape", TaskAnswer)
@pytest.mark.parametrize("profile", GENERATIONS)
async def test_generation(tmp_path: Path, profile: str, shape: TaskAnswer) -> None:
    """Agent, tasks and calls are what this generation demands, whichever way it answers; the resource accepts them."""
    generation = GENERATIONS[profile]
    async with (
        running_emulator(profile=profile, task_answer=shape) as emulator,
        running_broker(tmp_path, emulator, backends=backend(profile, emulator.url)) as broker,
    ):
        broker.app.upkeep.pause()
        identity = await enroll(broker, generation)
        if shape not in generation.shapes:
            refusal = await refused(broker.authorize(thread_id="thread-1"))
            assert refusal.reason == "BACKEND_PROTOCOL"
            return
        answers = [
            await broker.authorize(thread_id="thread-1"),
            await broker.authorize(thread_id="thread-2"),
            await broker.authorize(BACKGROUND),
        ]
        # 1. Accepted, with the whole header set.
        for answer in answers:
            assert answer.kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION
            assert {item.name for item in answer.headers} == {"authorization", "chatgpt-account-id"}
            saw = (await broker.sees(answer)).json()
            assert (saw["verdict"], saw["kind"]) == ("verified", "agent_assertion")
            assert saw["agent_runtime_id"] == identity.agent_runtime_id
        # 2. The layout: who shares an upstream task.
        keys = dict(zip(generation.keys, (assertion_of(answer).task_id for answer in answers), strict=True))
        assert [keys[key] for key in generation.keys] == [assertion_of(answer).task_id for answer in answers]
        assert len(set(keys.values())) == len(keys)
        # 3. What was sent.
        agents, tasks = entries(broker, Operation.AGENT_REGISTER), entries(broker, Operation.TASK_REGISTER)
        assert [entry.credential_kind for entry in agents] == ([] if generation.agent is None else [generation.agent])
        assert [entry.credential_kind for entry in tasks] == [generation.task] * len(keys)
        assert {entry.base for entry in (*agents, *tasks)} == {generation.base}
        assert sorted(entry.external_task_ref or "" for entry in tasks) == sorted(ref or "" for ref in generation.refs)
        assert len(entries(broker, Operation.BISCUIT)) == generation.biscuits
        assert {entry.verdict for entry in (*agents, *tasks)} == {"verified"}
        for entry in (*agents, *tasks):
            assert "chatgpt-account-id" not in entry.header_names


@pytest.mark.parametrize("profile", [name for name, one in GENERATIONS.items() if one.agent is not None])
async def test_fedramp(tmp_path: Path, profile: str) -> None:
    """An agent of a FedRAMP account says so wherever its generation does, on every call and on no biscuit."""
    account = Account(account_id="account-gov", chatgpt_user_id="user-gov", fedramp=True)
    async with (
        running_emulator(profile=profile) as emulator,
        running_broker(tmp_path, emulator, backends=backend(profile, emulator.url)) as broker,
    ):
        token = emulator.backend.mint_token(account=account, lifetime=timedelta(days=1)).access_token
        await broker.create_agent(static_bearer=admin_pb2.StaticBearer(token=token), fedramp=True)
        for answer in (await broker.authorize(thread_id="thread-1"), await broker.authorize("bootstrap")):
            assert {item.name: item.value for item in answer.headers}["x-openai-fedramp"] == "true"
            assert (await broker.sees(answer)).json()["fedramp"] is True


async def test_routes_that_do_not_take_assertions(tmp_path: Path) -> None:
    """Generation B was seen to refuse assertions on some routes: there an agent without a bearer is told so, not sent on."""
    profile = "codex-2026-04-provider"
    async with (
        running_emulator(profile=profile) as emulator,
        running_broker(tmp_path, emulator, backends=backend(profile, emulator.url)) as broker,
    ):
        await enroll(broker, GENERATIONS[profile])
        for scope in ("control_plane.plugins", "control_plane.models", "control_plane.analytics"):
            assert (await refused(broker.authorize(scope))).reason == "BEARER_UNAVAILABLE"
        assert (await broker.authorize(BACKGROUND)).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION


@pytest.mark.parametrize("operation", ["agent", "task"])
async def test_a_401_for_a_biscuit_costs_one_refresh(tmp_path: Path, operation: str) -> None:
    """When the backend ceases to take the login a biscuit is asked with, its source is read once more before giving up."""
    profile = "codex-2026-04"
    async with running_emulator(profile=profile) as emulator:
        file = tmp_path / "token"
        config = backend(profile, emulator.url)
        sources = {"login": {"type": "file", "path": str(file)}}

        def log_in() -> None:
            emulator.backend.bearers.end_all()
            file.write_text(emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token)

        log_in()
        async with running_broker(tmp_path / "state", emulator, backends=config, bearer_sources=sources) as broker:
            if operation == "task":
                await broker.create_agent(static_bearer=None, bearer_source="login")
                await eventually(lambda: len(entries(broker, Operation.TASK_REGISTER)) == 1)
                view = broker.app.snapshots.named(IdentityName("agent"))
                assert view is not None
                await eventually(lambda: broker.app.snapshots.task(view.identity, None) is not None)
            asked = len(entries(broker, Operation.BISCUIT))
            hanging = emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.BISCUIT)).rule_id
            call: Any = (
                broker.create_agent(static_bearer=None, bearer_source="login")
                if operation == "agent"
                else broker.authorize(thread_id="thread-1")
            )
            waiting = asyncio.create_task(call)
            await eventually(lambda: len(entries(broker, Operation.BISCUIT)) == asked + 1)
            log_in()
            emulator.backend.faults.remove(hanging)
            await waiting
            refusals = [entry.refusal for entry in entries(broker, Operation.BISCUIT)[asked:]]
            assert refusals[:2] == ["bearer_unknown", None]


async def test_a_sealed_id_for_somebody_else(tmp_path: Path) -> None:
    """A task id that is sealed to another key, or is none, is a broken protocol: nothing is used, and a bearer never stands in."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        broker.app.upkeep.pause()
        await broker.create_agent()
        for body in ('{"encrypted_task_id":"AAAA"}', '{"task_id":"with:colon"}', '{"task_id":""}', "{}"):
            emulator.backend.faults.add(
                FaultRule(action=Action.STATUS, operation=Operation.TASK_REGISTER, status=200, body=body)
            )
            for call in (broker.authorize(BACKGROUND), broker.authorize(thread_id="thread-1")):
                assert (await refused(call)).reason == "BACKEND_PROTOCOL"
            broker.app.registrar.forget_troubles(broker.app.snapshots.views()[0].identity.id)
        assert (await broker.authorize(BACKGROUND)).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION
