"""What an operator or caller says while a registration is under way holds, and one failure counts once."""

import asyncio
import time
from pathlib import Path

from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import Action, FaultRule
from broker.emulator.routing import Operation
from broker.model import IdentityName, ThreadId
from tests.support.brokers import eventually, refused, running_broker, running_emulator


async def test_a_thread_that_is_ended_while_it_is_registered_stays_ended(tmp_path: Path) -> None:
    """EndTask that was acknowledged is not undone by a RegisterTask that began before it."""
    async with (
        running_emulator(profile="codex-2026-05") as emulator,
        running_broker(
            tmp_path / "state",
            emulator,
            backends={
                "default": {"base_url": f"{emulator.url}/backend-api", "profile": "codex-2026-05"},
            },
        ) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: broker.registrations() == 1)  # the prewarm
        fault = FaultRule(action=Action.DELAY, operation=Operation.TASK_REGISTER, seconds=0.5)
        emulator.backend.faults.add(fault)
        registering = asyncio.ensure_future(broker.callers.RegisterTask(pb2.RegisterTaskRequest(thread_id="t1")))
        await eventually(lambda: broker.registrations() == 2)
        ended = await broker.callers.EndTask(pb2.EndTaskRequest(thread_id="t1"))
        assert ended.task.state == pb2.TASK_STATE_ENDED
        await asyncio.wait({registering})
        registering.exception()
        assert (await refused(broker.authorize(thread_id="t1"))).reason == "TASK_ENDED"
        assert fault.fired == 1


async def test_many_failures_of_one_moment_count_once(tmp_path: Path) -> None:
    """Sixty threads that meet one refusal cool the identity down as one does."""
    async with (
        running_emulator(profile="codex-2026-05") as emulator,
        running_broker(
            tmp_path / "state",
            emulator,
            backends={
                "default": {"base_url": f"{emulator.url}/backend-api", "profile": "codex-2026-05"},
            },
        ) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: broker.registrations() == 1)
        refusal = FaultRule(action=Action.STATUS, operation=Operation.TASK_REGISTER, status=400, count=None)
        emulator.backend.faults.add(refusal)
        outcomes = await asyncio.gather(*(refused(broker.authorize(thread_id=f"t{n}")) for n in range(60)))
        assert {outcome.reason for outcome in outcomes} == {"IDENTITY_REJECTED"}
        view = broker.app.snapshots.named(IdentityName("agent"))
        assert view is not None
        trouble = broker.app.registrar.trouble(view, None)
        assert trouble is not None
        assert trouble.strikes == 1
        assert refusal.fired >= 1


async def test_a_registration_that_is_begun_while_the_broker_stops_ends_before_the_store_does(tmp_path: Path) -> None:
    """A change of key may begin one after the others were waited for: it gives its claim back, and nothing outlives."""
    async with (
        running_emulator(profile="codex-2026-05") as emulator,
        running_broker(
            tmp_path / "state",
            emulator,
            backends={
                "default": {"base_url": f"{emulator.url}/backend-api", "profile": "codex-2026-05"},
            },
        ) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: broker.registrations() == 1)
        emulator.backend.faults.add(FaultRule(action=Action.DELAY, operation=Operation.TASK_REGISTER, seconds=30))
        view = broker.app.snapshots.named(IdentityName("agent"))
        assert view is not None
        begun = []

        async def begin_late() -> None:
            late = broker.app.registrar.ensure(view, ThreadId("late"), wait_until=time.monotonic() + 30)
            begun.append(asyncio.create_task(late))
            await eventually(lambda: broker.registrations() == 2)

        broker.app._exits.push_async_callback(begin_late)
        await broker.app.stop()
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "register-task"]
        (late,) = begun
        await asyncio.wait({late}, timeout=5)
        assert late.done()
        assert late.cancelled() or late.exception() is not None
