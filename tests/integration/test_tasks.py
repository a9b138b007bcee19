"""Tasks of a whole broker: registered once, used by many, reused, ended, revoked, renewed, and what was lost counted."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import EmulatorServer
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.model import IdentityName, IdentityState, TaskState, ThreadId
from broker.store import Store
from broker.telemetry import CounterFamily
from tests.support.assertions import assertion_of
from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator
from tests.support.clocks import WallClock
from tests.support.stores import FaultyStore

PER_THREAD = "codex-2026-05"
"""The profile with an upstream task per thread whose task registrations need no bearer."""


def backend(profile: str, url: str) -> dict[str, Any]:
    """Return the configuration of a backend that speaks a profile."""
    return {
        "default": {"profile": profile, "base_url": f"{url}/backend-api", "authapi_base_url": f"{url}/api/accounts"}
    }


def fault(emulator: EmulatorServer, action: Action, operation: Operation = Operation.TASK_REGISTER, **more: Any) -> str:
    """Let the emulator fail, and return the fault's id."""
    return emulator.backend.faults.add(FaultRule(action=action, operation=operation, **more)).rule_id


def counted(counter: CounterFamily) -> int:
    """Sum a counter over all its labels."""
    return sum(int(s.value) for family in counter.collect() for s in family.samples if s.name.endswith("_total"))


def background_lives(broker: Broker, name: str = "agent") -> bool:
    """Say whether the background task of an identity is ready in memory."""
    view = broker.app.snapshots.named(IdentityName(name))
    task = None if view is None else broker.app.snapshots.task(view.identity, None)
    return task is not None and task.upstream_task_id is not None


async def register(broker: Broker, thread_id: str = "", **fields: Any) -> pb2.Task:
    """Call RegisterTask."""
    if not thread_id:
        fields["kind"] = pb2.TASK_KIND_BACKGROUND
    request = pb2.RegisterTaskRequest(thread_id=thread_id, **fields)
    return (await broker.callers.RegisterTask(request, timeout=10)).task


async def end(broker: Broker, thread_id: str, **fields: Any) -> pb2.Task:
    """Call EndTask."""
    return (await broker.callers.EndTask(pb2.EndTaskRequest(thread_id=thread_id, **fields), timeout=10)).task


async def test_registered_on_first_need_and_used_by_all_later_calls(tmp_path: Path) -> None:
    """The first call for a thread registers its task; later ones, and RegisterTask, find it, and the backend accepts it."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        identity = await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        first = await broker.authorize(thread_id="thread-1")
        task = await register(broker, "thread-1")
        again = await broker.authorize(thread_id="thread-1")
        assert assertion_of(first).task_id == assertion_of(again).task_id
        assert (task.state, task.kind, task.thread_id) == (pb2.TASK_STATE_ACTIVE, pb2.TASK_KIND_THREAD, "thread-1")
        assert task.identity == identity.name
        assert (await broker.sees(first)).status_code == 200
        assert broker.registrations() == 2
        assert first.revision == again.revision


async def test_register_task_goes_ahead_of_need(tmp_path: Path) -> None:
    """RegisterTask registers once however often it is asked, and the call that needs the task waits for nothing."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        tasks = [await register(broker, "thread-1") for _ in range(3)]
        assert len({task.id for task in tasks}) == 1
        before = broker.registrations()
        await broker.authorize(thread_id="thread-1")
        assert broker.registrations() == before
        assert assertion_of(await broker.authorize(thread_id="thread-1")).task_id not in str(tasks)


async def test_background_is_prewarmed_and_retried_without_delaying_serving(tmp_path: Path) -> None:
    """A broker whose backend is away serves at once; the background task is registered when the backend is back."""
    async with running_emulator() as emulator:
        async with running_broker(tmp_path, emulator) as broker:
            broker.app.upkeep.pause()
            await broker.create_agent()
        away = fault(emulator, Action.STATUS, status=503, retry_after="0", count=None)
        async with running_broker(tmp_path, emulator) as broker:
            status = (await broker.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=5)).status
            assert status.serving_state == admin_pb2.SERVING_STATE_SERVING
            await eventually(lambda: broker.registrations() > 0)
            assert not background_lives(broker)
            emulator.backend.faults.remove(away)
            await eventually(lambda: background_lives(broker))
            before = broker.registrations()
            answer = await broker.authorize("control_plane.analytics")
            assert assertion_of(answer).task_id
            assert broker.registrations() == before


async def test_reused_after_restart(tmp_path: Path) -> None:
    """After a restart every task serves as before: the backend hears of none anew."""
    config: dict[str, Any] = {}
    async with running_emulator(profile=PER_THREAD) as emulator:
        config = backend(PER_THREAD, emulator.url)
        async with running_broker(tmp_path, emulator, backends=config) as broker:
            await broker.create_agent()
            await eventually(lambda: background_lives(broker))
            before = {thread: assertion_of(await broker.authorize(thread_id=thread)).task_id for thread in ("a", "b")}
            registrations = broker.registrations()
        async with running_broker(tmp_path, emulator, backends=config) as broker:
            after = {thread: assertion_of(await broker.authorize(thread_id=thread)).task_id for thread in ("a", "b")}
            background = await broker.authorize("control_plane.analytics")
            assert after == before
            assert (await broker.sees(background)).status_code == 200
            await broker.app.upkeep._prewarm()
            assert broker.registrations() == registrations


async def test_end_leaves_a_tombstone_and_is_idempotent(tmp_path: Path) -> None:
    """An ended thread answers TASK_ENDED, before and after a restart, ending it again changes nothing, others live on."""
    async with running_emulator(profile=PER_THREAD) as emulator:
        config = backend(PER_THREAD, emulator.url)
        async with running_broker(tmp_path, emulator, backends=config) as broker:
            await broker.create_agent()
            await register(broker, "thread-1")
            await register(broker, "thread-2")
            ended = await end(broker, "thread-1")
            assert ended.state == pb2.TASK_STATE_ENDED
            assert ended.purge_time.seconds - ended.update_time.seconds == 30 * 86400
            assert await end(broker, "thread-1") == ended
            refusal = await refused(broker.authorize(thread_id="thread-1"))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TASK_ENDED")
            assert (await broker.authorize(thread_id="thread-2")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION
        async with running_broker(tmp_path, emulator, backends=config) as broker:
            assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "TASK_ENDED"


async def test_end_of_a_thread_that_never_had_a_task(tmp_path: Path) -> None:
    """A thread can be ended before it began; nothing is registered for it then or later."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        assert (await end(broker, "never")).state == pb2.TASK_STATE_ENDED
        assert (await refused(broker.authorize(thread_id="never"))).reason == "TASK_ENDED"
        assert broker.registrations() == 1


async def test_register_after_end_begins_anew(tmp_path: Path) -> None:
    """RegisterTask on an ended thread starts a new upstream task with a higher version and another connection tag."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        old = await register(broker, "thread-1")
        before = await broker.authorize(thread_id="thread-1")
        await end(broker, "thread-1")
        new = await register(broker, "thread-1")
        after = await broker.authorize(thread_id="thread-1")
        assert new.version > old.version
        assert assertion_of(before).task_id != assertion_of(after).task_id
        assert before.connection_tag != after.connection_tag
        assert before.revision != after.revision


async def test_tombstone_goes_after_its_time(tmp_path: Path) -> None:
    """When the tombstone is over the thread is one that nobody knows, and its next call registers a task."""
    clock = WallClock()
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(
            tmp_path,
            emulator,
            clock=clock,
            backends=backend(PER_THREAD, emulator.url),
            limits={"tombstone_seconds": 60},
        ) as broker,
    ):
        await broker.create_agent()
        await register(broker, "thread-1")
        await end(broker, "thread-1")
        clock.ahead += 61
        await broker.app.upkeep._lifetimes.prune()
        assert (await broker.authorize(thread_id="thread-1")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION


async def test_end_of_one_binding_leaves_the_shared_upstream_task(tmp_path: Path) -> None:
    """In the single layout ending one thread ends its binding alone: others go on with the same upstream task."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        one, two = [assertion_of(await broker.authorize(thread_id=thread)).task_id for thread in ("one", "two")]
        assert one == two
        await end(broker, "one")
        assert assertion_of(await broker.authorize(thread_id="two")).task_id == two
        assert (await refused(broker.authorize(thread_id="one"))).reason == "TASK_ENDED"
        await register(broker, "one")
        assert assertion_of(await broker.authorize(thread_id="one")).task_id == two
        assert broker.registrations() == 1


async def test_revoke_names_who_shares_and_needs_force(tmp_path: Path) -> None:
    """A shared upstream task is revoked with `force` only; then every binding of it is down, and a new start is new."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        one, two = await register(broker, "one"), await register(broker, "two")
        before = assertion_of(await broker.authorize(thread_id="one")).task_id
        refusal = await refused(broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id=one.id)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TASK_SHARED")
        assert (await broker.authorize(thread_id="one")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION
        answer = await broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id=one.id, force=True))
        assert answer.task.id == one.id
        shared = {task.id: task for task in answer.shared_tasks}
        assert two.id in shared
        assert pb2.TASK_KIND_BACKGROUND in {task.kind for task in shared.values()}
        assert {task.state for task in (answer.task, *shared.values())} == {pb2.TASK_STATE_REVOKED}
        assert (await refused(broker.authorize(thread_id="two"))).reason == "TASK_ENDED"
        await register(broker, "two")
        assert assertion_of(await broker.authorize(thread_id="two")).task_id != before


async def test_a_revoked_background_task_is_left_alone_by_upkeep(tmp_path: Path) -> None:
    """Upkeep neither brings a revoked background task back nor asks the store about it for ever; RegisterTask begins it anew."""
    stores: list[FaultyStore] = []

    def wrap(store: Store) -> Store:
        stores.append(FaultyStore(store))
        return stores[0]  # type: ignore[return-value]

    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, wrap_store=wrap, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        (task,) = (await broker.admin.ListTasks(admin_pb2.ListTasksRequest())).tasks
        await broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id=task.id))
        claims = stores[0].calls["claim_task"]
        for _ in range(3):
            await broker.app.upkeep._prewarm()
            await asyncio.gather(*broker.app.upkeep._prewarming.values())
        assert stores[0].calls["claim_task"] == claims
        assert (await refused(broker.authorize("control_plane.analytics"))).reason == "TASK_ENDED"
        await register(broker)
        assert (await broker.authorize("control_plane.analytics")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION


async def test_disable_and_enable_make_every_task_anew(tmp_path: Path) -> None:
    """Disabling refuses at once and bumps the generation, so after enabling nothing made before is in use."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        identity = await broker.create_agent()
        before = await broker.authorize(thread_id="thread-1")
        disabled = (await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))).identity
        assert disabled.generation == identity.generation + 1
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "IDENTITY_REVOKED"
        assert (await refused(register(broker, "thread-1"))).reason == "IDENTITY_REVOKED"
        enabled = (await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))).identity
        assert enabled.public_key == identity.public_key
        after = await broker.authorize(thread_id="thread-1")
        assert assertion_of(after).task_id != assertion_of(before).task_id
        assert after.connection_tag != before.connection_tag
        assert (await broker.sees(after)).status_code == 200


async def test_lost_answers_are_recorded_and_counted(tmp_path: Path) -> None:
    """When the backend registers and its answers are cut, each lost one is an orphan, and the next try is used."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        cut = fault(emulator, Action.DROP_AFTER, count=None)
        refusal = await refused(broker.authorize(thread_id="thread-1", timeout=10))
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.retry_seconds is not None
        await eventually(lambda: counted(broker.app.metrics.orphans) == 1)
        assert (await broker.app.store.statistics()).orphaned_upstream_tasks == 1
        emulator.backend.faults.remove(cut)
        broker.app.registrar.forget_troubles(broker.app.snapshots.views()[0].identity.id)
        answer = await broker.authorize(thread_id="thread-1")
        assert (await broker.sees(answer)).status_code == 200


async def test_disabled_while_its_task_is_registered(tmp_path: Path) -> None:
    """A task whose identity is disabled in the midst is never used: the caller is told so, the answer is an orphan."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        hanging = fault(emulator, Action.HANG)
        call = asyncio.create_task(refused(broker.authorize(thread_id="thread-1")))
        await eventually(lambda: broker.registrations() == 2)
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        emulator.backend.faults.remove(hanging)
        assert (await call).reason == "IDENTITY_REVOKED"
        assert counted(broker.app.metrics.orphans) == 1
        identity = await broker.app.store.identity_named(IdentityName("agent"))
        assert identity is not None
        assert identity.state is IdentityState.DISABLED
        task = await broker.app.store.task(identity.id, ThreadId("thread-1"))
        assert task is not None
        assert task.effective_state is not TaskState.ACTIVE


@pytest.mark.parametrize(("status", "reason"), [(403, "IDENTITY_REJECTED"), (503, "BACKEND_DOWN")])
async def test_failures_are_typed_and_remembered(tmp_path: Path, status: int, reason: str) -> None:
    """A refusal is the identity's end for a while and is not asked again; a transient failure says when to come back."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        # Long enough that no slow machine outlives it.
        fault(emulator, Action.STATUS, status=status, retry_after="60", count=None)
        refusal = await refused(broker.authorize(thread_id="thread-1"))
        assert refusal.reason == reason
        asked = broker.registrations()
        again = await refused(broker.authorize(thread_id="thread-1"))
        assert again.reason == reason
        assert broker.registrations() == asked
        # An assertion that is required is never replaced; one that is preferred is not either, when it was refused hard.
        assert (await broker.authorize("control_plane.analytics")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION


async def test_nothing_is_begun_while_registrations_are_drained(tmp_path: Path) -> None:
    """The loops that begin registrations have ended before those under way are waited for: what drains is all there is."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        order: list[str] = []
        stop, drain = broker.app.upkeep.stop, broker.app.registrar.drain

        async def stopping() -> None:
            await stop()
            order.append("upkeep stopped")

        async def draining(seconds: float) -> None:
            order.append("draining")
            await drain(seconds)

        broker.app.upkeep.stop = stopping  # type: ignore[method-assign]
        broker.app.registrar.drain = draining  # type: ignore[method-assign]
        broker.app.request_stop()
        await broker.app.stop()
        assert order[:2] == ["upkeep stopped", "draining"]
