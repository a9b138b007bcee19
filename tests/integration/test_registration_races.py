"""Many at once: one registration for all who wait, whoever gives up, dies or comes back late."""

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

from broker.emulator import EmulatorServer
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.model import IdentityName, TaskState, ThreadId, UpstreamTask
from broker.telemetry import CounterFamily
from tests.support.assertions import Assertion, assertion_of
from tests.support.brokers import Broker, eventually, guarded_channel, refused, running_broker, running_emulator
from tests.support.clocks import WallClock

PER_THREAD = "codex-2026-05"
OWN_CONNECTION = {"grpc.use_local_subchannel_pool": 1}
"""Without it all channels of a process to one address share one connection."""


def backend(profile: str, url: str) -> dict[str, Any]:
    """Return the configuration of a backend that speaks a profile."""
    return {
        "default": {"profile": profile, "base_url": f"{url}/backend-api", "authapi_base_url": f"{url}/api/accounts"}
    }


def hang(emulator: EmulatorServer) -> str:
    """Let the next task registration hang, and return the fault's id: removing it lets go."""
    return emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER)).rule_id


def counted(counter: CounterFamily) -> int:
    """Sum a counter over all its labels."""
    return sum(int(s.value) for family in counter.collect() for s in family.samples if s.name.endswith("_total"))


def background_lives(broker: Broker) -> bool:
    """Say whether the background task of the agent is ready in memory."""
    view = broker.app.snapshots.named(IdentityName("agent"))
    task = None if view is None else broker.app.snapshots.task(view.identity, None)
    return task is not None and task.upstream_task_id is not None


async def many_first_calls(broker: Broker, threads: list[str]) -> list[pb2.Authorization]:
    """Ask for all of these threads at once, over so many connections that none comes near its limit of streams."""
    request = pb2.GetAuthorizationRequest
    async with contextlib.AsyncExitStack() as opened:
        channels = [
            await opened.enter_async_context(guarded_channel(broker.app.caller_address, OWN_CONNECTION))
            for _ in range(25)
        ]
        stubs = [credential_broker_pb2_grpc.CredentialBrokerStub(channel) for channel in channels]
        answers = await asyncio.gather(
            *(
                stub.GetAuthorization(request(scope="inference", thread_id=thread), timeout=30)
                for stub, thread in zip(itertools.cycle(stubs), threads, strict=False)
            )
        )
    return [answer.authorization for answer in answers]


async def upstream_of(broker: Broker, thread_id: str) -> UpstreamTask:
    """Return the upstream task of a thread as it stands in the store."""
    identity = await broker.app.store.identity_named(IdentityName("agent"))
    assert identity is not None
    task = await broker.app.store.task(identity.id, ThreadId(thread_id))
    assert task is not None
    assert task.upstream is not None
    return task.upstream


async def test_a_thousand_first_calls_make_one_registration(tmp_path: Path) -> None:
    """1,000 concurrent first calls for one new thread: the backend's ledger shows one registration, all get its task."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        before = broker.registrations()
        answers = await many_first_calls(broker, ["thread-1"] * 1000)
        assert broker.registrations() - before == 1
        assert len({assertion_of(answer).task_id for answer in answers}) == 1
        assert {answer.kind for answer in answers} == {pb2.CREDENTIAL_KIND_AGENT_ASSERTION}


async def test_two_hundred_new_threads_share_one_upstream_task(tmp_path: Path) -> None:
    """In the single layout 200 new threads at once, and the background, make one upstream registration."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        answers = await many_first_calls(broker, [f"thread-{n}" for n in range(200)])
        answers.append(await broker.authorize("control_plane.analytics"))
        assert broker.registrations() == 1
        assert len({assertion_of(answer).task_id for answer in answers}) == 1


async def test_a_callers_cancellation_does_not_cancel_the_registration(tmp_path: Path) -> None:
    """Callers give up while the backend hangs; it answers in the end, and the next call finds the one task."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        hanging = hang(emulator)
        calls = [asyncio.create_task(broker.authorize(thread_id="thread-1")) for _ in range(5)]
        await eventually(lambda: broker.registrations() == 2)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        emulator.backend.faults.remove(hanging)
        answer = await broker.authorize(thread_id="thread-1")
        assert broker.registrations() == 2
        assert (await broker.sees(answer)).status_code == 200


async def test_a_caller_whose_time_is_over_learns_that_it_goes_on(tmp_path: Path) -> None:
    """Who cannot wait is told UNAVAILABLE with a delay before the deadline, and the registration serves the next call."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        hanging = hang(emulator)
        refusal = await refused(broker.authorize(thread_id="thread-1", timeout=0.7))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REGISTRATION_IN_PROGRESS")
        assert refusal.retry_seconds
        emulator.backend.faults.remove(hanging)
        await broker.authorize(thread_id="thread-1")
        assert broker.registrations() == 2


async def test_two_brokers_register_one_thread_once(tmp_path: Path) -> None:
    """Two brokers on one state directory, both asked for the same new threads: one registration each, one task each."""
    async with running_emulator(profile=PER_THREAD) as emulator:
        config = backend(PER_THREAD, emulator.url)
        async with (
            running_broker(tmp_path, emulator, backends=config) as one,
            running_broker(tmp_path, emulator, backends=config) as two,
        ):
            await one.create_agent()
            await eventually(lambda: background_lives(one) and background_lives(two))
            assert one.registrations() == 1
            threads = [f"thread-{n}" for n in range(20)]
            answers = await asyncio.gather(
                *(broker.authorize(thread_id=thread, timeout=20) for thread in threads for broker in (one, two))
            )
            tasks = [assertion_of(answer).task_id for answer in answers]
            assert tasks[0::2] == tasks[1::2]
            assert len(set(tasks)) == len(threads)
            assert one.registrations() == 1 + len(threads)
            assert len({answer.connection_tag for answer in answers}) == len(threads)


async def test_a_claim_is_taken_over_and_the_late_answer_is_not_used(tmp_path: Path) -> None:
    """A holder stands still past its lease: another takes over; what the first comes back with is an orphan, never in use."""
    later = WallClock()
    async with running_emulator(profile=PER_THREAD) as emulator:
        config = backend(PER_THREAD, emulator.url)
        async with (
            running_broker(tmp_path, emulator, backends=config) as holder,
            running_broker(tmp_path, emulator, clock=later, backends=config) as other,
        ):
            await holder.create_agent()
            await eventually(lambda: background_lives(holder) and background_lives(other))
            hanging = hang(emulator)
            held = asyncio.create_task(holder.authorize(thread_id="thread-1", timeout=10))
            await eventually(lambda: holder.registrations() == 2)
            # Within the lease nobody else registers.
            refusal = await refused(other.authorize(thread_id="thread-1", timeout=0.7))
            assert refusal.reason == "REGISTRATION_IN_PROGRESS"
            assert holder.registrations() == 2
            first = await upstream_of(holder, "thread-1")
            later.ahead += 46
            hanging_too = hang(emulator)
            taking = asyncio.create_task(other.authorize(thread_id="thread-1", timeout=10))
            await eventually(lambda: holder.registrations() == 3)
            # The first comes back while the second is still at it: its answer completes nothing.
            emulator.backend.faults.remove(hanging)
            await eventually(lambda: counted(holder.app.metrics.orphans) == 1)
            assert (await upstream_of(holder, "thread-1")).state is TaskState.CLAIMED
            emulator.backend.faults.remove(hanging_too)
            taken = assertion_of(await taking).task_id
            assert assertion_of(await held).task_id == taken
            assert holder.registrations() == 3
            now = await upstream_of(holder, "thread-1")
            assert now.state is TaskState.ACTIVE
            assert now.fencing_token > first.fencing_token
            assert (await holder.app.store.statistics()).orphaned_upstream_tasks == 1


async def test_a_broker_that_stops_gives_its_claim_back(tmp_path: Path) -> None:
    """A broker stopped in the midst of a registration leaves no lease to wait for, and records what may be lost."""
    async with running_emulator(profile=PER_THREAD) as emulator:
        config = backend(PER_THREAD, emulator.url)
        async with running_broker(tmp_path, emulator, backends=config, broker={"drain_grace_seconds": 0.05}) as broker:
            await broker.create_agent()
            await eventually(lambda: background_lives(broker))
            hang(emulator)
            call = asyncio.create_task(broker.authorize(thread_id="thread-1"))
            await eventually(lambda: broker.registrations() == 2)
            broker.app.request_stop()
            await broker.app.stop()
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            emulator.backend.faults.remove()
        async with running_broker(tmp_path, emulator, backends=config) as broker:
            answer = await broker.authorize(thread_id="thread-1")
            assert (await broker.sees(answer)).status_code == 200
            assert (await broker.app.store.statistics()).orphaned_upstream_tasks == 1


async def test_end_while_registering(tmp_path: Path) -> None:
    """A thread that is ended while its task is registered stays ended; the answer that comes is in nobody's use."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        await broker.create_agent()
        await eventually(lambda: background_lives(broker))
        hanging = hang(emulator)
        call = asyncio.create_task(refused(broker.authorize(thread_id="thread-1")))
        await eventually(lambda: broker.registrations() == 2)
        await broker.callers.EndTask(pb2.EndTaskRequest(thread_id="thread-1"))
        emulator.backend.faults.remove(hanging)
        assert (await call).reason == "TASK_ENDED"
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "TASK_ENDED"
        assert broker.registrations() == 2
        assert (await broker.app.store.statistics()).orphaned_upstream_tasks == 1


async def test_cancelled_calls_never_mix_answers_up(tmp_path: Path) -> None:
    """Calls for many identities and threads, half of them cut off: every answer is signed by the asked identity's key."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        running_broker(tmp_path, emulator, backends=backend(PER_THREAD, emulator.url)) as broker,
    ):
        keys = {name: (await broker.create_agent(name)).public_key for name in ("one", "two", "three")}
        answered: list[tuple[str, Assertion]] = []
        for wave in range(6):
            calls = [
                (name, asyncio.create_task(broker.authorize(identity=name, thread_id=f"thread-{n}", timeout=20)))
                for n in range(wave, wave + 10)
                for name in keys
            ]
            for number, (_, call) in enumerate(calls):
                if number % 4 == 0:
                    await asyncio.sleep(0)
                if number % 2:
                    call.cancel()
            answers = await asyncio.gather(*(call for _, call in calls), return_exceptions=True)
            answered += [
                (name, assertion_of(answer))
                for (name, _), answer in zip(calls, answers, strict=True)
                if isinstance(answer, pb2.Authorization)
            ]
        assert len(answered) == 90
        for name, assertion in answered:
            assert assertion.is_signed_by(keys[name])
        runtimes = {(name, assertion.agent_runtime_id) for name, assertion in answered}
        listed = (await broker.admin.ListIdentities(admin_pb2.ListIdentitiesRequest())).identities
        assert runtimes == {(one.name, one.agent_runtime_id) for one in listed}
