"""Registering agents under claims: one registration a key, nothing lost to a store that is away, refusals undone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker import errors
from broker.agents import AgentRegistrar
from broker.errors import BrokerError
from broker.model import Identity, IdentityName, IdentityState, ThreadId
from broker.outbound import FailureKind
from broker.snapshots import IdentityView, Snapshots
from tests.support.workshop import LEASE, Workshop, failure, plain, workshop

THREAD = ThreadId("thread-1")


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    """A workshop on a new database, at a backend with an upstream task for each thread."""
    async with workshop(tmp_path, profile="codex-2026-05") as opened:
        opened.api.tasks.append(plain("task-1"))
        yield opened


async def row(shop: Workshop, name: str = "agent") -> Identity:
    """Return an identity as it stands in the store."""
    found = await shop.store.store.identity_named(IdentityName(name))
    assert found is not None
    return found


async def rotated(shop: Workshop, request_id: str = "rotate-1") -> Identity:
    """Change the key of the agent."""
    return await shop.rotator.rotate(await row(shop), request_id, wait_until=shop.clock.monotonic() + 5)


async def refusal(shop: Workshop, request_id: str = "rotate-1") -> BrokerError:
    """Change the key of the agent, which must fail, and return how."""
    with pytest.raises(BrokerError) as raised:
        await rotated(shop, request_id)
    return raised.value


async def resumed(shop: Workshop) -> None:
    """Let whatever registrations may be tried now come to their end."""
    shop.agents.resume()
    await asyncio.gather(*shop.agents._jobs.values())


def in_use(shop: Workshop, view: IdentityView, *threads: ThreadId) -> None:
    """Have calls ask for the tasks of threads."""
    for thread in threads:
        assert shop.snapshots.task(view.identity, thread) is not None


async def with_task(shop: Workshop, *threads: ThreadId) -> IdentityView:
    """Create an agent with tasks of threads that are in use."""
    view = await shop.agent()
    for thread in threads:
        await shop.registrar.ensure(view, thread, wait_until=shop.clock.monotonic() + 5)
    in_use(shop, view, *threads)
    return view


def another_process(shop: Workshop) -> tuple[AgentRegistrar, Snapshots]:
    """Return what registers agents in another process on the same database."""
    shared: dict[str, Any] = {"store": shop.store, "keyring": shop.keyring, "clock": shop.clock}
    snapshots = Snapshots(
        **shared,
        metrics=shop.metrics,
        backends=shop.snapshots._backends,
        bearer_sources=shop.sources,
        logins=shop.snapshots._logins,
        cached_threads=1000,
    )
    agents = AgentRegistrar(
        **shared,
        metrics=shop.metrics,
        snapshots=snapshots,
        registrar=shop.registrar,
        apis={"default": shop.api},  # type: ignore[dict-item]
        lease_seconds=2 * LEASE,
        jitter=shop.agents._jitter,
    )
    return agents, snapshots


# --- one registration a key -------------------------------------------------------------------------------------------


async def test_two_processes_register_a_key_once(shop: Workshop) -> None:
    """While one process asks the backend another waits for its outcome, and both go on with the one agent."""
    answered = asyncio.Event()

    async def slow() -> str:
        await answered.wait()
        return "runtime-1"

    shop.api.agents.append(slow)
    creating = asyncio.create_task(shop.create())
    while shop.api.count("agent") == 0:
        await asyncio.sleep(0)
    agents, snapshots = another_process(shop)
    view = snapshots.publish_identity(await row(shop), await shop.store.bearer((await row(shop)).id))
    waiting = asyncio.create_task(agents.finish(view, wait_until=shop.clock.monotonic() + 5))
    for _ in range(50):
        await asyncio.sleep(0)
    answered.set()
    assert (await waiting).identity == await creating
    assert shop.api.count("agent") == 1


async def test_a_claim_whose_holder_stands_still_is_taken_over(shop: Workshop) -> None:
    """Past the lease another process registers the key again; what the first is answered then is not used."""
    late = asyncio.Event()

    async def stuck() -> str:
        await late.wait()
        return "runtime-late"

    shop.api.agents += [stuck, "runtime-2"]
    creating = asyncio.create_task(shop.create())
    while shop.api.count("agent") == 0:
        await asyncio.sleep(0)
    shop.clock.wall += 2 * LEASE + 1
    agents, snapshots = another_process(shop)
    view = snapshots.publish_identity(await row(shop), await shop.store.bearer((await row(shop)).id))
    taken = await agents.finish(view, wait_until=shop.clock.monotonic() + 5)
    late.set()
    assert (await creating).agent_runtime_id == taken.identity.agent_runtime_id == "runtime-2"
    assert len({request["public_key"] for _, request in shop.api.asked}) == 1


@pytest.mark.parametrize("method", ["record_agent", "adopt_agent"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_store_that_is_away_when_the_backend_has_answered(shop: Workshop, method: str, *, after: bool) -> None:
    """The answer is written down as soon as the store is back, past the lease too; the key is registered once."""
    shop.api.agents.append("runtime-1")
    shop.store.fail(method, times=1 if after else 3, after=after)
    created = await shop.create()
    assert (created.state, created.agent_runtime_id) == (IdentityState.ACTIVE, "runtime-1")
    assert shop.api.count("agent") == 1


@pytest.mark.parametrize("method", ["record_agent", "adopt_agent", "abandon_agent"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_change_of_key_outlasts_a_store_that_is_away(shop: Workshop, method: str, *, after: bool) -> None:
    """So does a change of key, whether it succeeds or is refused."""
    view = await with_task(shop, THREAD)
    refused = method == "abandon_agent"
    shop.api.agents.clear()
    shop.api.agents.append(failure(FailureKind.REFUSED, status=403) if refused else "runtime-2")
    shop.store.fail(method, times=1 if after else 3, after=after)
    if refused:
        assert isinstance(await refusal(shop), errors.IdentityRejectedError)
    else:
        assert (await rotated(shop)).agent_runtime_id == "runtime-2"
    assert ((await row(shop)).generation > view.identity.generation) is not refused
    assert shop.api.count("agent") == 2


async def test_a_change_by_an_operator_ends_the_wait(shop: Workshop) -> None:
    """After a failure the next try waits; when an operator changed something meanwhile it comes at once."""
    shop.api.agents += [failure(FailureKind.REFUSED, status=403), "runtime-1"]
    with pytest.raises(errors.IdentityRejectedError):
        await shop.create()
    await resumed(shop)
    assert shop.api.count("agent") == 1
    await shop.enroller.update(await row(shop), bearer_source=None, assertions_enabled=False, expire_time=None)
    assert shop.agents.trouble(await row(shop)) is None
    await resumed(shop)
    assert (await row(shop)).state is IdentityState.ACTIVE


async def test_a_write_whose_asker_has_gone_is_known_here(shop: Workshop) -> None:
    """An operator's call that is cancelled while it writes takes effect, in memory too."""
    view = await shop.agent()
    gate = shop.store.hold("write_identity")
    disabling = asyncio.create_task(shop.enroller.disable(view.identity))
    while shop.store.calls["write_identity"] == 0:
        await asyncio.sleep(0)
    disabling.cancel()
    await asyncio.gather(disabling, return_exceptions=True)
    gate.set()
    await shop.enroller.close()
    seen = shop.snapshots.view(view.identity.id)
    assert seen is not None
    assert seen.identity.state is IdentityState.DISABLED


# --- proving a new key ------------------------------------------------------------------------------------------------


async def test_a_new_key_is_proven_before_it_serves(shop: Workshop) -> None:
    """Background and threads in use are registered with the new agent while the old one serves, and switch with it."""
    view = await with_task(shop, THREAD)
    before = shop.snapshots.task(view.identity, THREAD)
    seen: list[Identity] = []

    async def look() -> Any:
        current = shop.snapshots.view(view.identity.id)
        assert current is not None
        seen.append(current.identity)
        assert shop.snapshots.task(current.identity, THREAD) == before or before is not None
        return plain("task-2")

    shop.api.agents.clear()
    shop.api.agents.append("runtime-2")
    shop.api.tasks.clear()
    shop.api.tasks.append(look)
    after = await rotated(shop)
    assert [one.state for one in seen] == [IdentityState.ROTATING] * 2
    assert {one.public_key for one in seen} == {view.identity.public_key}
    for thread in (None, THREAD):
        task = shop.snapshots.task(after, thread)
        assert task is not None
        assert task.upstream_task_id == "task-2"
    asked = [request for kind, request in shop.api.asked if kind == "task"]
    assert [request["agent_runtime_id"] for request in asked] == ["runtime-1", "runtime-2", "runtime-2"]


async def test_nothing_registered_ahead_is_seen_before_the_switch(shop: Workshop) -> None:
    """When the change is undone after some tasks were registered, the next change does not find them."""
    view = await with_task(shop, THREAD)
    shop.api.agents.clear()
    shop.api.agents += ["runtime-2", "runtime-3"]
    shop.api.tasks.clear()
    shop.api.tasks += [plain("task-of-2"), failure(FailureKind.REFUSED, status=403)]
    assert isinstance(await refusal(shop), errors.IdentityRejectedError)
    current = await row(shop)
    assert (current.state, current.public_key) == (IdentityState.ACTIVE, view.identity.public_key)
    ahead = replace(current, generation=current.generation + 1)
    for thread in (None, THREAD):
        task = shop.snapshots.task(ahead, thread)
        assert task is None or task.upstream is None
    shop.api.tasks.clear()
    shop.api.tasks.append(plain("task-of-3"))
    after = await rotated(shop, "rotate-2")
    background = shop.snapshots.task(after, None)
    assert background is not None
    assert background.upstream_task_id == "task-of-3"


async def test_a_thread_that_cannot_be_registered_now_is_left_to_its_next_use(shop: Workshop) -> None:
    """Once the background task has proven the key, a passing failure of a thread's keeps nothing back."""
    await with_task(shop, THREAD)
    shop.api.agents.clear()
    shop.api.agents.append("runtime-2")
    shop.api.tasks.clear()
    shop.api.tasks += [plain("task-2"), failure(FailureKind.DOWN)]
    after = await rotated(shop)
    assert after.agent_runtime_id == "runtime-2"
    task = shop.snapshots.task(after, THREAD)
    assert task is not None
    assert task.upstream_task_id is None


async def test_what_passes_is_tried_again_with_the_same_key(shop: Workshop) -> None:
    """The backend away at either registration: ROTATING, and the next try goes on where this one stopped."""
    view = await shop.agent()
    shop.api.agents.clear()
    shop.api.agents += [failure(FailureKind.DOWN), "runtime-2"]
    assert isinstance(await refusal(shop), errors.BackendDownError)
    rotating = await row(shop)
    assert (rotating.state, rotating.public_key) == (IdentityState.ROTATING, view.identity.public_key)
    assert shop.agents.trouble(rotating) is not None
    pending = await shop.store.pending_agent(rotating.id)
    assert pending is not None
    shop.api.tasks.clear()
    shop.api.tasks += [failure(FailureKind.DOWN), plain("task-2")]
    shop.clock.pass_(60)
    await resumed(shop)
    assert (await row(shop)).state is IdentityState.ROTATING
    shop.clock.pass_(120)
    await resumed(shop)
    after = await row(shop)
    assert (after.state, after.public_key) == (IdentityState.ACTIVE, pending.public_key)
    keys = [request["public_key"] for kind, request in shop.api.asked if kind == "agent"]
    assert keys == [view.identity.public_key, pending.public_key, pending.public_key]


async def test_a_refused_request_may_be_repeated(shop: Workshop) -> None:
    """A change that came to nothing is not what its request is remembered by: repeated, it is tried with a new key."""
    await shop.agent()
    shop.api.agents.clear()
    shop.api.agents += [failure(FailureKind.REFUSED, status=403), "runtime-2"]
    assert isinstance(await refusal(shop), errors.IdentityRejectedError)
    after = await rotated(shop)
    assert after.agent_runtime_id == "runtime-2"
    assert await rotated(shop) == after
    keys = [request["public_key"] for kind, request in shop.api.asked if kind == "agent"]
    assert len(set(keys)) == 3


async def test_a_rejected_identity_can_change_its_key(shop: Workshop) -> None:
    """With another agent a REJECTED identity is in use again."""
    view = await shop.agent()
    await shop.store.write_identity(
        replace(view.identity, state=IdentityState.REJECTED, state_reason="IDENTITY_REJECTED")
    )
    shop.api.agents.clear()
    shop.api.agents.append("runtime-2")
    after = await rotated(shop)
    assert (after.state, after.state_reason, after.agent_runtime_id) == (IdentityState.ACTIVE, "", "runtime-2")


async def test_a_rejected_identity_whose_backend_is_away_is_tried_again(shop: Workshop) -> None:
    """Its state does not show that it changes its key; who began that goes on all the same, and stops at a refusal."""
    view = await shop.agent()
    await shop.store.write_identity(
        replace(view.identity, state=IdentityState.REJECTED, state_reason="IDENTITY_REJECTED")
    )
    shop.api.agents.clear()
    shop.api.agents += [failure(FailureKind.DOWN), failure(FailureKind.REFUSED, status=403), "runtime-2"]
    assert isinstance(await refusal(shop), errors.BackendDownError)
    shop.clock.pass_(60)
    await resumed(shop)
    assert shop.api.count("agent") == 3
    assert shop.agents.trouble(await row(shop)) is None
    for _ in range(3):
        shop.clock.pass_(1000)
        await resumed(shop)
    assert shop.api.count("agent") == 3
    assert (await row(shop)).state is IdentityState.REJECTED
    assert (await rotated(shop)).agent_runtime_id == "runtime-2"


async def test_stopping_in_the_midst_gives_the_claim_back(shop: Workshop) -> None:
    """A broker that stops while the backend is asked leaves a claim that the next one need not wait for."""
    await shop.agent()
    asked = asyncio.Event()

    async def hang() -> str:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    shop.api.agents.clear()
    shop.api.agents += [hang, "runtime-2"]
    rotating = asyncio.create_task(rotated(shop))
    await asked.wait()
    await shop.agents.close()
    await asyncio.gather(rotating, return_exceptions=True)
    await resumed(shop)
    assert (await row(shop)).agent_runtime_id == "runtime-2"
