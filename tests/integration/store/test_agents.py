"""Agents on their way: first keys, changes of key, and tasks registered ahead of one."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from broker.errors import GenerationChangedError, RequestIdReusedError
from broker.model import Identity, IdentityState, PendingAgent, TaskState
from broker.store import Claimed, Standing
from broker.store.sql import SqlStore
from tests.support.stores import (
    NOW,
    add_identity,
    add_task,
    agent_identity,
    bearer_identity,
    create_request,
    new_key,
    task_claim,
)

LEASE = 30.0


async def _claim(store: SqlStore, identity: Identity, **wish: Any) -> PendingAgent:
    wish = {"generation": identity.generation, "now": NOW, "lease_seconds": LEASE, **wish}
    claim = await store.claim_agent(identity.id, **wish)
    assert claim.is_ours
    assert claim.pending == await store.pending_agent(identity.id)
    assert claim.identity == await store.identity(identity.id)
    return claim.pending


async def _changing(store: SqlStore, **changes: Any) -> tuple[Identity, PendingAgent]:
    """Return an identity on its way to a new key that the backend knows already."""
    identity = await add_identity(store, agent_identity(**changes))
    held = await _claim(store, identity, new_key=new_key())
    recorded = await store.record_agent(held, agent_runtime_id="runtime-2", now=NOW + 1)
    identity = await store.identity(identity.id)
    return identity, recorded


async def test_a_first_key_is_registered_under_a_claim(store: SqlStore) -> None:
    """One holder at a time; what the backend answered is kept and becomes the identity's."""
    identity = await add_identity(store, agent_identity(state=IdentityState.REGISTERING, agent_runtime_id=None))
    held = await _claim(store, identity)
    assert (held.generation, held.sealed_private_key, held.agent_runtime_id) == (1, None, None)
    other = await store.claim_agent(identity.id, generation=1, now=NOW + LEASE - 0.001, lease_seconds=LEASE)
    assert (False, held, identity) == (other.is_ours, other.pending, other.identity)
    recorded = await store.record_agent(held, agent_runtime_id="runtime-1", now=NOW + 1)
    assert recorded == replace(held, agent_runtime_id="runtime-1", version=held.version + 1, update_time=NOW + 1)
    assert (await store.statistics()).pending_agents == 1
    adopted = await store.adopt_agent(recorded, now=NOW + 2)
    assert adopted == replace(
        identity, state=IdentityState.ACTIVE, agent_runtime_id="runtime-1", version=2, update_time=NOW + 2
    )
    assert adopted == await store.identity(identity.id)
    assert await store.pending_agent(identity.id) is None
    assert adopted == await store.adopt_agent(recorded, now=NOW + 3)


@pytest.mark.parametrize(
    ("state", "meanwhile"),
    [
        (IdentityState.ACTIVE, IdentityState.ROTATING),
        (IdentityState.REJECTED, IdentityState.REJECTED),
        (IdentityState.REAUTH_REQUIRED, IdentityState.REAUTH_REQUIRED),
    ],
)
async def test_a_changed_key_comes_with_a_new_generation(
    store: SqlStore, state: IdentityState, meanwhile: IdentityState
) -> None:
    """Until it is adopted the identity keeps its key; then it is ACTIVE with the new one."""
    identity, recorded = await _changing(store, state=state, state_reason="why")
    assert (identity.state, identity.generation, identity.sealed_private_key) == (meanwhile, 1, b"sealed key")
    assert (recorded.generation, recorded.sealed_private_key) == (2, b"sealed key 2")
    adopted = await store.adopt_agent(recorded, now=NOW + 2)
    assert adopted == replace(
        identity,
        state=IdentityState.ACTIVE,
        state_reason="",
        agent_runtime_id="runtime-2",
        public_key="ssh-ed25519 2",
        sealed_private_key=b"sealed key 2",
        generation=2,
        version=identity.version + 1,
        update_time=NOW + 2,
    )
    assert adopted == await store.identity(identity.id)
    assert adopted == await store.adopt_agent(recorded, now=NOW + 3)


async def test_a_change_under_way_keeps_its_key(store: SqlStore) -> None:
    """Whoever asks for another while one is under way, or takes it over, goes on with the first."""
    identity = await add_identity(store)
    held = await _claim(store, identity, new_key=new_key("2"))
    rotating = await store.identity(identity.id)
    taken = await _claim(store, rotating, new_key=new_key("3"), now=NOW + LEASE)
    assert taken == replace(
        held,
        fencing_token=held.fencing_token + 1,
        version=held.version + 1,
        lease_expire_time=NOW + 2 * LEASE,
        update_time=NOW + LEASE,
    )
    assert rotating == await store.identity(identity.id)
    assert taken.fencing_token == (await _claim(store, rotating, now=NOW + 2 * LEASE)).fencing_token - 1


async def test_who_lost_the_claim_changes_nothing(store: SqlStore) -> None:
    """Neither answers, nor adoptions, nor ends of an overtaken holder count."""
    identity = await add_identity(store)
    lost = await _claim(store, identity, new_key=new_key())
    taken = await _claim(store, identity, now=NOW + LEASE)
    stood = await store.identity(identity.id)
    assert await store.record_agent(lost, agent_runtime_id="late", now=NOW) is None
    assert await store.adopt_agent(replace(lost, agent_runtime_id="late"), now=NOW) is None
    assert await store.abandon_agent(lost, now=NOW) is None
    await store.release_agent(lost, now=NOW)
    assert taken == await store.pending_agent(identity.id)
    assert stood == await store.identity(identity.id)


async def test_a_released_claim_is_free_at_once(store: SqlStore) -> None:
    """The next holder need not wait for the lease, and goes on with what was recorded; the last one no more."""
    identity, recorded = await _changing(store)
    await store.release_agent(recorded, now=NOW + 1)
    assert await store.record_agent(recorded, agent_runtime_id="runtime-2", now=NOW + 1) is None
    assert await store.adopt_agent(recorded, now=NOW + 1) is None
    assert await store.abandon_agent(recorded, now=NOW + 1) is None
    again = await _claim(store, identity, now=NOW + 1)
    assert again.fencing_token > recorded.fencing_token
    assert again.agent_runtime_id == "runtime-2"
    assert await store.adopt_agent(recorded, now=NOW + 2) is None


async def test_the_backends_answer_is_kept_once(store: SqlStore) -> None:
    """The same answer again is the row; another one is refused."""
    _, recorded = await _changing(store)
    again = await store.record_agent(recorded, agent_runtime_id="runtime-2", now=NOW + 9)
    assert again.agent_runtime_id == "runtime-2"
    assert await store.record_agent(recorded, agent_runtime_id="runtime-3", now=NOW + 9) is None
    assert again == await store.pending_agent(recorded.identity_id)


async def test_a_change_can_be_undone(store: SqlStore) -> None:
    """The old key goes on as before, and what was registered for the new one is gone."""
    identity, recorded = await _changing(store)
    task = await add_task(store, identity, "t")
    await add_task(store, identity, "t", generation=2)
    restored = await store.abandon_agent(recorded, now=NOW + 2)
    assert restored == replace(identity, state=IdentityState.ACTIVE, version=identity.version + 1, update_time=NOW + 2)
    assert await store.pending_agent(identity.id) is None
    assert task.upstream == (await store.task(identity.id, "t")).upstream
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(identity, "t", generation=2))
    again = await _claim(store, restored, new_key=new_key("3"))
    assert again.fencing_token > recorded.fencing_token


@pytest.mark.parametrize("state", [IdentityState.DISABLED, IdentityState.DELETED])
async def test_what_an_operator_ends_is_not_adopted(store: SqlStore, database: Any, state: IdentityState) -> None:
    """The change goes with the new generation, and so do the tasks registered for it: the old agent is still there."""
    identity, recorded = await _changing(store)
    await add_task(store, identity, "t", generation=2)
    in_flight = await store.claim_task(task_claim(identity, "u", generation=2))
    ended = await store.write_identity(replace(identity, state=state, generation=2))
    assert await store.pending_agent(identity.id) is None
    assert await store.adopt_agent(recorded, now=NOW + 2) is None
    assert await store.record_agent(recorded, agent_runtime_id="late", now=NOW + 2) is None
    assert ended == await store.identity(identity.id)
    assert (await store.task(identity.id, "t")).upstream is None
    assert (await store.statistics()).orphaned_upstream_tasks == 1
    late = await store.complete_claim(in_flight.task.upstream, sealed_task_id=b"s", now=NOW, expire_time=None)
    assert late is None
    assert database.execute("SELECT count(*) FROM upstream_tasks") == [(0,)]


async def test_a_write_of_the_same_generation_leaves_the_change_alone(store: SqlStore) -> None:
    """An operator may change other things of an identity while its key changes."""
    identity, recorded = await _changing(store)
    await store.write_identity(replace(identity, email="new@example.com"))
    adopted = await store.adopt_agent(recorded, now=NOW + 2)
    assert (adopted.email, adopted.generation) == ("new@example.com", 2)


@pytest.mark.parametrize(
    ("identity", "generation", "with_key"),
    [
        (agent_identity(state=IdentityState.DISABLED), 1, True),
        (agent_identity(state=IdentityState.DELETED), 1, True),
        (agent_identity(), 2, True),
        (agent_identity(), 1, False),
        (bearer_identity(), 1, True),
    ],
    ids=["disabled", "deleted", "generation", "no change under way", "no agent"],
)
async def test_only_what_may_get_an_agent_is_claimed(
    store: SqlStore, identity: Identity, generation: int, *, with_key: bool
) -> None:
    """Anything else is refused, and the request not remembered."""
    await add_identity(store, identity)
    request = create_request()
    with pytest.raises(GenerationChangedError):
        await store.claim_agent(
            identity.id,
            generation=generation,
            now=NOW,
            lease_seconds=LEASE,
            new_key=new_key() if with_key else None,
            request=request,
        )
    assert await store.remembered_identity(request) is None
    assert await store.pending_agent(identity.id) is None


async def test_a_request_begins_one_change(store: SqlStore) -> None:
    """Repeated, it joins what it began; after that came to its end it begins nothing any more."""
    identity = await add_identity(store)
    request = create_request("rotate")
    held = await _claim(store, identity, new_key=new_key(), request=request)
    again = await store.claim_agent(
        identity.id, generation=1, now=NOW, lease_seconds=LEASE, new_key=new_key("3"), request=request
    )
    assert (again.is_ours, again.pending) == (False, held)
    assert (await store.remembered_identity(request)).state is IdentityState.ROTATING
    with pytest.raises(RequestIdReusedError):
        await _claim(store, identity, new_key=new_key(), request=create_request("rotate", fingerprint=b"other"))
    await store.abandon_agent(held, now=NOW)
    with pytest.raises(GenerationChangedError):
        await _claim(store, identity, new_key=new_key("4"), request=request)
    assert await store.pending_agent(identity.id) is None


async def test_a_request_that_joins_a_change_is_remembered(store: SqlStore) -> None:
    """Two operators who ask at once get one change, and each can ask again."""
    identity = await add_identity(store)
    await _claim(store, identity, new_key=new_key())
    joining = create_request("second")
    claim = await store.claim_agent(
        identity.id, generation=1, now=NOW, lease_seconds=LEASE, new_key=new_key("3"), request=joining
    )
    assert not claim.is_ours
    assert claim.identity == await store.remembered_identity(joining)


# --- tasks ahead of a change -----------------------------------------------------------------------------------------


async def test_tasks_are_registered_ahead(store: SqlStore, database: Any) -> None:
    """The old task is used until the agent is adopted, and goes with its generation then."""
    identity, recorded = await _changing(store)
    old = await add_task(store, identity, "t")
    ahead = await add_task(store, identity, "t", generation=2)
    assert (ahead.id, ahead.upstream.generation) == (old.id, 2)
    assert old.upstream == (await store.task(identity.id, "t")).upstream
    assert isinstance(await store.claim_task(task_claim(identity, "t")), Standing)
    adopted = await store.adopt_agent(recorded, now=NOW)
    assert ahead == await store.task(identity.id, "t")
    assert database.execute("SELECT generation FROM upstream_tasks") == [(2,)]
    assert isinstance(await store.claim_task(task_claim(adopted, "t")), Standing)
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(identity, "t", generation=1))


async def test_a_task_can_be_registered_ahead_first(store: SqlStore) -> None:
    """The present generation's is not forgotten when it is registered after the one ahead of it."""
    identity, recorded = await _changing(store)
    ahead = await add_task(store, identity, "t", generation=2)
    assert (await store.task(identity.id, "t")).upstream is None
    await add_task(store, identity, "t")
    await store.adopt_agent(recorded, now=NOW)
    assert ahead.upstream == (await store.task(identity.id, "t")).upstream


@pytest.mark.parametrize("state", [IdentityState.REJECTED, IdentityState.REAUTH_REQUIRED])
async def test_an_identity_without_working_tasks_gets_some_ahead(store: SqlStore, state: IdentityState) -> None:
    """The next agent is proven while nothing is registered for the present one."""
    identity, _ = await _changing(store, state=state)
    assert isinstance(await store.claim_task(task_claim(identity, "t", generation=2)), Claimed)
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(identity, "t", generation=1))


async def test_nothing_is_registered_ahead_for_an_agent_the_backend_does_not_know(store: SqlStore) -> None:
    """Without a runtime id there is nothing to register with."""
    identity = await add_identity(store)
    await _claim(store, identity, new_key=new_key())
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(identity, "t", generation=2))
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(identity, "t", generation=3))


async def test_a_claim_ahead_is_completed_before_or_after_the_adoption(store: SqlStore) -> None:
    """What is in flight while the agent is adopted becomes the current task, one of the old generation does not."""
    identity, recorded = await _changing(store)
    old = (await store.claim_task(task_claim(identity, "old"))).task.upstream
    ahead = (await store.claim_task(task_claim(identity, "t", generation=2))).task.upstream
    await store.adopt_agent(recorded, now=NOW)
    done = await store.complete_claim(ahead, sealed_task_id=b"s", now=NOW, expire_time=None)
    assert (done.state, done) == (TaskState.ACTIVE, (await store.task(identity.id, "t")).upstream)
    assert await store.complete_claim(old, sealed_task_id=b"s", now=NOW, expire_time=None) is None


async def test_an_adoption_names_what_is_current_now(store: SqlStore) -> None:
    """Who follows the changes meets the identity and the tasks that came with it."""
    identity, recorded = await _changing(store)
    await add_task(store, identity, "t")
    ahead = await add_task(store, identity, "t", generation=2)
    at = await store.change_sequence()
    adopted = await store.adopt_agent(recorded, now=NOW)
    changes = await store.changes(at)
    assert {identity.id: adopted.version} == changes.identities
    assert {(identity.id, 2, ahead.upstream_key): ahead.upstream.version} == changes.upstream_tasks


async def test_an_end_ahead_of_the_change_holds_after_it(store: SqlStore) -> None:
    """A thread that ended while the key changed is not brought back by the task that was registered for it."""
    identity, recorded = await _changing(store)
    ahead = (await store.claim_task(task_claim(identity, "t", generation=2))).task.upstream
    await store.end_task(identity.id, "t", now=NOW, purge_time=NOW + 100)
    await store.complete_claim(ahead, sealed_task_id=b"s", now=NOW, expire_time=None)
    adopted = await store.adopt_agent(recorded, now=NOW)
    assert (await store.task(identity.id, "t")).effective_state is TaskState.ENDED
    assert isinstance(await store.claim_task(task_claim(adopted, "t")), Standing)


async def test_two_processes_change_one_key_once(store: SqlStore, database: Any) -> None:
    """Both ask at the same moment; one key, one runtime id and one generation come of it."""
    identity = await add_identity(store)
    workers = [await database.worker("change_key", identity.id, name) for name in ("one", "two")]
    for worker in workers:
        worker.go()
    said = [json.loads(await worker.line()) for worker in workers]
    # The winner adopts only now, so that the other one met the change under way.
    for worker in workers:
        worker.go()
    await asyncio.gather(*(worker.rest() for worker in workers))
    assert sorted(is_ours for is_ours, _ in said) == [False, True]
    assert len({public_key for _, public_key in said}) == 1
    changed = await store.identity(identity.id)
    assert (changed.generation, changed.public_key, changed.state) == (2, said[0][1], IdentityState.ACTIVE)


async def test_who_asked_for_what_came_to_nothing_may_ask_again(store: SqlStore) -> None:
    """A change that is undone takes the memory of its requests along; other requests of the time stay remembered."""
    identity = await add_identity(store)
    asked, joined = create_request("rotate-1"), create_request("rotate-2")
    other = create_request("other", fingerprint=b"something else")
    held = await _claim(store, identity, new_key=new_key(), request=asked)
    await store.claim_agent(identity.id, generation=1, now=NOW, lease_seconds=LEASE, new_key=new_key(), request=joined)
    rotating = await store.identity(identity.id)
    assert rotating is not None
    await store.write_identity(rotating, request=other)
    undone = await store.abandon_agent(held, now=NOW, fingerprint=asked.fingerprint)
    assert undone is not None
    assert [await store.remembered_identity(request) for request in (asked, joined, other)] == [None, None, undone]
    # Told again that it worked, as after an answer that was lost.
    assert await store.abandon_agent(held, now=NOW, fingerprint=asked.fingerprint) == undone
    begun = await _claim(store, undone, new_key=new_key("5"), request=asked)
    assert begun.fencing_token > held.fencing_token
    assert await store.abandon_agent(held, now=NOW) is None
