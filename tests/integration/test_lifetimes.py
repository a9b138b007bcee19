"""Tasks over days, in a whole broker: replaced ahead of their end, registered anew after it, forgotten when unused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import EmulatorServer, EmulatorSettings
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.model import IdentityName, TaskState, ThreadId
from tests.support.assertions import assertion_of
from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator
from tests.support.clocks import JumpingClock
from tests.support.stores import FaultyStore

PER_THREAD = "codex-2026-05"
SHARED = "codex-2026-08"
LIFE = 3600.0


@asynccontextmanager
async def long_lived(
    tmp_path: Path, clock: JumpingClock, *, profile: str = PER_THREAD, **sections: Any
) -> AsyncIterator[tuple[Broker, EmulatorServer]]:
    """Run a broker whose tasks live an hour, with one agent whose login lasts, and a clock that a test moves."""
    async with EmulatorServer(EmulatorSettings(port=0, profile=profile), time_source=clock.now) as emulator:
        backend = {
            "profile": profile,
            "base_url": f"{emulator.url}/backend-api",
            "authapi_base_url": f"{emulator.url}/api/accounts",
            "task_lifetime_seconds": LIFE,
        }
        async with running_broker(tmp_path, emulator, clock=clock, backends={"default": backend}, **sections) as broker:
            token = emulator.backend.mint_token(lifetime=timedelta(days=365)).access_token
            await broker.create_agent(static_bearer=admin_pb2.StaticBearer(token=token))
            yield broker, emulator


async def jump(clock: JumpingClock, seconds: float, *brokers: Broker) -> None:
    """Let time pass, and wait until each broker has found its store again."""
    before = [broker.app.snapshots.confirmation for broker in brokers]
    clock.ahead += seconds
    for broker, known in zip(brokers, before, strict=True):
        await eventually(lambda b=broker, k=known: b.app.snapshots.confirmation.monotonic > k.monotonic + seconds)


def registrations_of_threads(broker: Broker) -> int:
    """Count the registrations but for that of the background task, which upkeep makes once its time has come."""
    (view,) = broker.app.snapshots.views()
    return broker.registrations() - (broker.app.snapshots.task(view.identity, None) is not None)


def task_of(answer: pb2.Authorization) -> str:
    """Return the upstream task id that an answer was signed for."""
    return assertion_of(answer).task_id


@pytest.mark.parametrize("profile", [PER_THREAD, SHARED])
async def test_a_task_in_use_is_replaced_with_nobody_waiting(tmp_path: Path, profile: str) -> None:
    """Near the end calls go on being answered with the old one while one successor is registered, and then with that."""
    clock = JumpingClock()
    async with long_lived(tmp_path, clock, profile=profile) as (broker, emulator):
        old = await broker.authorize(thread_id="thread")
        before = broker.registrations()
        await jump(clock, await end_of(broker, "thread") - clock.now() - 90, broker)
        hanging = emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER))
        answers = await asyncio.gather(*(broker.authorize(thread_id="thread", timeout=2) for _ in range(20)))
        assert {task_of(answer) for answer in answers} == {task_of(old)}
        await eventually(lambda: broker.registrations() == before + 1)
        emulator.backend.faults.remove(hanging.rule_id)
        new = await until_signed_for_another(broker, task_of(old))
        assert new.connection_tag != old.connection_tag
        assert new.revision != old.revision
        assert broker.registrations() == before + 1
        for answer in (answers[0], new):
            assert (await broker.sees(answer)).status_code == 200


async def until_signed_for_another(broker: Broker, old: str) -> pb2.Authorization:
    """Ask until an answer is for another upstream task."""
    async with asyncio.timeout(10):
        while True:
            answer = await broker.authorize(thread_id="thread")
            if task_of(answer) != old:
                return answer
            await asyncio.sleep(0.02)


async def test_after_its_end_a_task_is_registered_anew_and_the_call_waits(tmp_path: Path) -> None:
    """Nobody used it near its end, so nobody asked the backend."""
    clock = JumpingClock()
    async with long_lived(tmp_path, clock) as (broker, _):
        old = await broker.authorize(thread_id="thread")
        end = await end_of(broker, "thread")
        assert 0.9 * LIFE <= end - old.mint_time.ToNanoseconds() / 1e9 <= LIFE + 1
        unused = await broker.authorize(thread_id="unused")
        await jump(clock, LIFE, broker)
        again = await broker.authorize(thread_id="unused")
        assert task_of(again) != task_of(unused)
        await eventually(lambda: registrations_of_threads(broker) == 2 + 1)


async def test_a_task_that_is_over_is_registered_by_who_asks_for_it(tmp_path: Path) -> None:
    """RegisterTask never returns one of which no call could be signed."""
    clock = JumpingClock()
    async with long_lived(tmp_path, clock) as (broker, _):
        asked = pb2.RegisterTaskRequest(thread_id="thread")
        old = (await broker.callers.RegisterTask(asked)).task
        assert (await broker.callers.RegisterTask(asked)).task == old
        await jump(clock, LIFE, broker)
        task = (await broker.callers.RegisterTask(asked)).task
        assert task.expire_time.ToNanoseconds() / 1e9 > clock.now()
        await eventually(lambda: registrations_of_threads(broker) == 1 + 1)


async def end_of(broker: Broker, thread_id: str) -> float:
    """Return when the upstream task of a thread ends."""
    stored = await stored_task(broker, thread_id)
    assert stored.upstream.expire_time is not None
    end: float = stored.upstream.expire_time
    return end


async def stored_task(broker: Broker, thread_id: str | None) -> Any:
    """Return a binding of the agent as it stands in the store."""
    identity = await broker.app.store.identity_named(IdentityName("agent"))
    assert identity is not None
    return await broker.app.store.task(identity.id, None if thread_id is None else ThreadId(thread_id))


async def test_a_successor_that_cannot_be_had_costs_nothing_until_the_end(tmp_path: Path) -> None:
    """With the backend away the old task serves until its own end, which no answer outlives; then calls are refused."""
    clock = JumpingClock()
    async with long_lived(tmp_path, clock) as (broker, emulator):
        old = await broker.authorize(thread_id="thread")
        rule = emulator.backend.faults.add(
            FaultRule(action=Action.STATUS, status=503, operation=Operation.TASK_REGISTER, count=None)
        )
        end = await end_of(broker, "thread")
        await jump(clock, end - clock.now() - 40, broker)
        for _ in range(3):
            answer = await broker.authorize(thread_id="thread")
            assert task_of(answer) == task_of(old)
            assert answer.expire_time.ToNanoseconds() / 1e9 <= end + 1e-6  # as far as a float tells
            await asyncio.sleep(0.05)
        await jump(clock, 41, broker)
        assert (await refused(broker.authorize(thread_id="thread"))).reason == "BACKEND_DOWN"
        emulator.backend.faults.remove(rule.rule_id)
        await jump(clock, 61, broker)
        assert task_of(await broker.authorize(thread_id="thread")) != task_of(old)


async def test_calls_that_cannot_be_served_do_not_each_read_the_store(tmp_path: Path) -> None:
    """While the backend refuses an agent, callers of ever the same new threads cost a read each few seconds, no more."""
    stores: list[FaultyStore] = []

    def wrapped(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(
            tmp_path,
            emulator,
            wrap_store=wrapped,
            backends={
                "default": {
                    "profile": PER_THREAD,
                    "base_url": f"{emulator.url}/backend-api",
                    "authapi_base_url": f"{emulator.url}/api/accounts",
                }
            },
        ) as broker,
    ):
        await broker.create_agent()
        await broker.authorize("control_plane.usage")
        emulator.backend.faults.add(
            FaultRule(action=Action.STATUS, status=400, operation=Operation.TASK_REGISTER, count=None)
        )
        await refused(broker.authorize(thread_id="one"))
        await refused(broker.authorize(thread_id="two"))
        before = stores[0].calls["task"], stores[0].calls["claim_task"]
        for _ in range(25):
            assert (await refused(broker.authorize(thread_id="two"))).reason == "IDENTITY_REJECTED"
        assert stores[0].calls["task"] - before[0] <= 1
        assert stores[0].calls["claim_task"] == before[1]


async def test_what_nobody_uses_is_forgotten_by_every_process(tmp_path: Path) -> None:
    """A week without use prunes a thread for both brokers on the database; one in use at either of them stays."""
    clock = JumpingClock()
    idle = {"task_idle_seconds": 7 * 86400}
    async with long_lived(tmp_path, clock, limits=idle) as (broker, emulator):
        section = broker.app.config.backends["default"].model_dump(exclude_none=True)
        async with running_broker(tmp_path, emulator, clock=clock, backends={"default": section}, limits=idle) as other:
            for thread in ("idle", "used"):
                await broker.authorize(thread_id=thread)
                await other.authorize(thread_id=thread)
            await jump(clock, 6 * 86400, broker, other)
            await other.authorize(thread_id="used")
            await other.app.upkeep._lifetimes.write_uses()
            await jump(clock, 2 * 86400, broker, other)
            await broker.app.upkeep._lifetimes.prune()
            assert await stored_task(broker, "idle") is None
            kept = await stored_task(broker, "used")
            assert kept is not None
            assert kept.state is TaskState.ACTIVE
            for process in (broker, other):
                view = process.app.snapshots.named(IdentityName("agent"))
                assert view is not None
                await eventually(lambda p=process, v=view: p.app.snapshots.task(v.identity, ThreadId("idle")) is None)
                assert process.app.snapshots.task(view.identity, ThreadId("used")) is not None
