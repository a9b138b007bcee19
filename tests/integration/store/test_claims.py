"""Claims of upstream tasks: claim, complete, release, take-over, generations."""

import math
from dataclasses import replace

import pytest

from broker.errors import GenerationChangedError, RowCorruptError
from broker.model import IdentityState, Task, TaskState, UpstreamTask
from broker.store import Claimed, HeldElsewhere, Standing
from broker.store.sql import SqlStore
from tests.support.stores import LONG_AGO, NOW, add_identity, add_task, agent_identity, task_claim


def _held(outcome: object) -> UpstreamTask:
    assert isinstance(outcome, Claimed), outcome
    assert outcome.task.upstream is not None
    return outcome.task.upstream


async def _orphans(store: SqlStore) -> int:
    return (await store.statistics()).orphaned_upstream_tasks


async def test_the_first_claim_is_ours(store: SqlStore) -> None:
    """Binding and upstream task are created together, and read back as they were returned."""
    identity = await add_identity(store)
    outcome = await store.claim_task(task_claim(identity, "t", lease_seconds=30))
    held = _held(outcome)
    assert (outcome.task.state, held.state) == (TaskState.ACTIVE, TaskState.CLAIMED)
    assert held.lease_expire_time == NOW + 30
    assert outcome.task == await store.task(identity.id, "t")
    assert outcome.task == await store.task_by_id(outcome.task.id)
    assert outcome.task.effective_state is TaskState.CLAIMED


async def test_a_background_task_is_a_binding_without_a_thread(store: SqlStore) -> None:
    """There is one background binding an identity, beside those of threads."""
    identity = await add_identity(store)
    task = await add_task(store, identity, None)
    assert task.thread_id is None
    assert task == await store.task(identity.id, None)
    assert task.id == (await add_task(store, identity, None)).id
    assert task.id != (await add_task(store, identity, "t")).id


async def test_a_completed_task_stands(store: SqlStore) -> None:
    """After completion every claim of it is answered with the living task, and nothing is written."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    done = await store.complete_claim(held, sealed_task_id=b"sealed", now=NOW + 1, expire_time=NOW + 100)
    assert done == replace(
        held,
        state=TaskState.ACTIVE,
        version=held.version + 1,
        lease_expire_time=None,
        sealed_task_id=b"sealed",
        update_time=NOW + 1,
        expire_time=NOW + 100,
    )
    before = await store.change_sequence()
    outcome = await store.claim_task(task_claim(identity, "t", now=NOW + 99.9))
    assert isinstance(outcome, Standing)
    assert done == outcome.task.upstream
    assert before == await store.change_sequence()


async def test_while_a_claim_is_in_flight_it_is_held_elsewhere(store: SqlStore) -> None:
    """Nobody else gets the claim until the lease ends, to the moment."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t", lease_seconds=30)))
    outcome = await store.claim_task(task_claim(identity, "t", now=NOW + 29.999))
    assert isinstance(outcome, HeldElsewhere)
    assert held == outcome.task.upstream


async def test_bindings_that_share_an_upstream_task_share_its_claim(store: SqlStore) -> None:
    """The claim is keyed by the upstream task: the second thread gets its binding but not a second registration."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "a", key="shared")))
    outcome = await store.claim_task(task_claim(identity, "b", key="shared"))
    assert isinstance(outcome, HeldElsewhere)
    assert ("b", held) == (outcome.task.thread_id, outcome.task.upstream)
    await store.complete_claim(held, sealed_task_id=b"s", now=NOW, expire_time=None)
    background = await store.claim_task(task_claim(identity, None, key="shared"))
    assert isinstance(background, Standing)
    assert background.task.upstream.sealed_task_id == b"s"


async def test_a_claim_whose_lease_ran_out_is_taken_over(store: SqlStore) -> None:
    """The new holder has a higher token; the old one's late answer is refused and kept as an orphan."""
    identity = await add_identity(store)
    lost = _held(await store.claim_task(task_claim(identity, "t", lease_seconds=30)))
    taken = _held(await store.claim_task(task_claim(identity, "t", now=NOW + 30)))
    assert taken.fencing_token > lost.fencing_token
    assert taken.version > lost.version
    assert await _orphans(store) == 1
    assert await store.complete_claim(lost, sealed_task_id=b"late", now=NOW + 31, expire_time=None) is None
    assert await _orphans(store) == 1
    done = await store.complete_claim(taken, sealed_task_id=b"won", now=NOW + 32, expire_time=None)
    assert done.sealed_task_id == b"won"
    assert await store.complete_claim(lost, sealed_task_id=b"late", now=NOW + 33, expire_time=None) is None
    assert done == (await store.task(identity.id, "t")).upstream


async def test_the_late_answer_is_kept_with_the_orphan(store: SqlStore, database: object) -> None:
    """An orphan whose id turned up can be told from one whose id nobody knows."""
    identity = await add_identity(store)
    lost = _held(await store.claim_task(task_claim(identity, "t")))
    await store.claim_task(task_claim(identity, "t", now=NOW + 60))
    query = "SELECT fencing_token, sealed_task_id FROM orphaned_upstream_tasks"
    assert [(lost.fencing_token, None)] == database.execute(query)
    await store.complete_claim(lost, sealed_task_id=b"late", now=NOW + 61, expire_time=None)
    assert [(lost.fencing_token, b"late")] == database.execute(query)


async def test_an_expired_lease_that_nobody_took_can_still_be_completed(store: SqlStore) -> None:
    """Only a take-over ends a claim, not the clock: the answer is used when it comes first."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t", lease_seconds=1)))
    done = await store.complete_claim(held, sealed_task_id=b"s", now=NOW + 50, expire_time=None)
    assert done is not None
    assert await _orphans(store) == 0


async def test_completing_twice_with_the_same_answer_is_fine(store: SqlStore) -> None:
    """Who could not see that the first attempt worked may repeat it."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    first = await store.complete_claim(held, sealed_task_id=b"s", now=NOW, expire_time=None)
    assert first == await store.complete_claim(held, sealed_task_id=b"s", now=NOW + 1, expire_time=None)
    assert await store.complete_claim(held, sealed_task_id=b"other", now=NOW + 1, expire_time=None) is None
    assert first == (await store.task(identity.id, "t")).upstream


async def test_a_released_claim_is_free_at_once(store: SqlStore) -> None:
    """The next claim need not wait for the lease, and is no orphan when the backend surely has no task."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    await store.release_claim(held, now=NOW + 1, answer_lost=False)
    free = (await store.task(identity.id, "t")).upstream
    assert (free.state, free.lease_expire_time) == (TaskState.CLAIMED, None)
    assert free.version > held.version
    assert await _orphans(store) == 0
    again = _held(await store.claim_task(task_claim(identity, "t", now=NOW + 2)))
    assert again.fencing_token > held.fencing_token


async def test_a_lost_answer_is_recorded_as_an_orphan(store: SqlStore) -> None:
    """A release that cannot know what the backend did leaves a record of it, once."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    await store.release_claim(held, now=NOW, answer_lost=True)
    await store.release_claim(held, now=NOW, answer_lost=True)
    assert await _orphans(store) == 1


async def test_releasing_a_claim_that_is_gone_does_nothing(store: SqlStore) -> None:
    """The release of who lost the claim must not free the new holder's."""
    identity = await add_identity(store)
    lost = _held(await store.claim_task(task_claim(identity, "t", lease_seconds=1)))
    taken = _held(await store.claim_task(task_claim(identity, "t", now=NOW + 1)))
    await store.release_claim(lost, now=NOW + 2, answer_lost=False)
    assert taken == (await store.task(identity.id, "t")).upstream


async def test_an_orphan_that_proves_to_be_none_is_taken_back(store: SqlStore) -> None:
    """Who lost the claim while the backend refused knows that nothing was registered."""
    identity = await add_identity(store)
    lost = _held(await store.claim_task(task_claim(identity, "t", lease_seconds=1)))
    await store.claim_task(task_claim(identity, "t", now=NOW + 1))
    assert await _orphans(store) == 1
    await store.release_claim(lost, now=NOW + 2, answer_lost=False)
    assert await _orphans(store) == 0


async def test_an_expired_upstream_task_is_claimed_anew(store: SqlStore) -> None:
    """At the moment it expires it lives no longer; its successor has a higher version and no id yet."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    done = await store.complete_claim(held, sealed_task_id=b"s", now=NOW, expire_time=NOW + 10)
    anew = _held(await store.claim_task(task_claim(identity, "t", now=NOW + 10)))
    assert anew.version > done.version
    assert anew.fencing_token > done.fencing_token
    assert (anew.sealed_task_id, anew.expire_time, anew.create_time) == (None, None, NOW + 10)
    assert await _orphans(store) == 0


@pytest.mark.parametrize(
    "state",
    [s for s in IdentityState if s not in (IdentityState.ACTIVE, IdentityState.ROTATING)],
    ids=lambda state: state.value,
)
async def test_only_an_active_identity_gets_a_claim(store: SqlStore, state: IdentityState) -> None:
    """Whatever else an identity is, nothing is registered in its name."""
    identity = await add_identity(store, agent_identity(state=state))
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(identity, "t"))
    assert await store.task(identity.id, "t") is None


async def test_a_claim_of_another_generation_is_refused(store: SqlStore) -> None:
    """Who still holds the old key must not register with it."""
    identity = await add_identity(store, agent_identity(generation=2))
    for generation in (1, 3):
        with pytest.raises(GenerationChangedError):
            await store.claim_task(task_claim(identity, "t", generation=generation))
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(agent_identity(), "t"))


async def test_an_answer_for_a_generation_that_has_passed_is_orphaned(store: SqlStore, database: object) -> None:
    """A key change while the backend answers makes the answer useless."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    await store.write_identity(replace(identity, generation=2))
    assert await store.complete_claim(held, sealed_task_id=b"s", now=NOW, expire_time=None) is None
    assert await _orphans(store) == 1
    assert database.execute("SELECT state, lease_expire_time FROM upstream_tasks") == [("ORPHANED", None)]


async def test_a_new_generation_begins_with_new_upstream_tasks(store: SqlStore) -> None:
    """Bindings outlive a key change; their upstream task does not, and its successor has a higher version."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    rotated = await store.write_identity(replace(identity, generation=2))
    between = await store.task(identity.id, "t")
    assert replace(task, upstream=None) == between
    assert between.effective_state is TaskState.CLAIMED
    held = _held(await store.claim_task(task_claim(rotated, "t")))
    assert held.generation == 2
    assert held.version > task.upstream.version
    assert held.fencing_token > task.upstream.fencing_token


async def test_another_task_layout_moves_the_binding(store: SqlStore) -> None:
    """A changed profile gives the binding another upstream task and leaves the old one to those who still use it."""
    identity = await add_identity(store)
    shared = await add_task(store, identity, "a", key="shared")
    own = _held(outcome := await store.claim_task(task_claim(identity, "a", key="own")))
    assert (shared.id, "own", "own") == (outcome.task.id, outcome.task.upstream_key, own.key)
    assert outcome.task.version > shared.version
    back = await store.claim_task(task_claim(identity, "a", key="shared"))
    assert isinstance(back, Standing)
    assert shared.upstream == back.task.upstream


async def test_versions_do_not_begin_again_after_a_prune(store: SqlStore) -> None:
    """A thread that comes back after its tombstone went cannot be mistaken for its former self."""
    identity = await add_identity(store)
    first = await add_task(store, identity, "t")
    ended = await store.end_task(identity.id, "t", now=NOW, purge_time=NOW + 1)
    assert await store.prune(NOW + 1, idle_before=LONG_AGO) == 1
    second = await add_task(store, identity, "t")
    assert second.id != first.id
    assert second.version > ended.version
    assert second.upstream.version > ended.upstream.version
    assert second.upstream.fencing_token > first.upstream.fencing_token


async def test_an_answer_whose_row_was_pruned_is_orphaned(store: SqlStore) -> None:
    """Even when nothing is left of a claim its late answer is recorded."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    await store.end_task(identity.id, "t", now=NOW, purge_time=NOW)
    await store.prune(NOW, idle_before=LONG_AGO)
    assert await store.complete_claim(held, sealed_task_id=b"s", now=NOW, expire_time=None) is None
    assert await _orphans(store) == 1


async def test_the_list_of_tasks_is_by_id_and_comes_in_pages(store: SqlStore) -> None:
    """All bindings are listed once, of one identity or of all."""
    one, two = [await add_identity(store, agent_identity(name)) for name in ("one", "two")]
    made = [await add_task(store, one, f"t{n}") for n in range(5)] + [await add_task(store, two, "t")]
    assert sorted(task.id for task in made) == [task.id for task in await _all(store, limit=2)]
    assert sorted(task.id for task in made[:5]) == [task.id for task in await _all(store, limit=5, identity_id=one.id)]
    assert (await store.tasks(limit=6)).next_after is None


async def test_the_list_of_tasks_selects_by_effective_state(store: SqlStore) -> None:
    """A state selects what a person is shown, the upstream task's where the binding itself lives."""
    identity = await add_identity(store)
    made = {
        TaskState.ACTIVE: await add_task(store, identity, "active"),
        TaskState.CLAIMED: (await store.claim_task(task_claim(identity, "claimed"))).task,
        TaskState.ENDED: await add_task(store, identity, "ended"),
        TaskState.REVOKED: await add_task(store, identity, "revoked"),
    }
    await store.end_task(identity.id, "ended", now=NOW, purge_time=NOW + 1)
    await store.revoke_task(made[TaskState.REVOKED].id, now=NOW, purge_time=NOW + 1, include_sharing=False)
    for state, task in made.items():
        page = await store.tasks(state=state)
        assert [(task.id, state)] == [(found.id, found.effective_state) for found in page.rows]
    await store.write_identity(replace(identity, generation=2))
    assert len((await store.tasks(state=TaskState.CLAIMED)).rows) == 2


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("tasks", "state", "LIVE"),
        ("tasks", "kind", "BACKGROUND"),
        ("tasks", "purge_time", 1.0),
        ("upstream_tasks", "state", "LIVE"),
        ("upstream_tasks", "sealed_task_id", None),
        ("upstream_tasks", "fencing_token", 0),
        ("upstream_tasks", "expire_time", -math.inf),
    ],
)
async def test_a_damaged_task_fails_alone(
    store: SqlStore, database: object, table: str, column: str, value: object
) -> None:
    """The damaged binding says so and is named in the list; another one of the identity is used as before."""
    identity = await add_identity(store)
    bad, good = await add_task(store, identity, "bad"), await add_task(store, identity, "good")
    where = "id = ?" if table == "tasks" else "upstream_key = ?"
    key = bad.id if table == "tasks" else bad.upstream_key
    database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", value, key)  # noqa: S608 names of this test
    with pytest.raises(RowCorruptError):
        await store.task_by_id(bad.id)
    page = await store.tasks()
    assert ((good,), (bad.id,)) == (page.rows, page.corrupt)
    assert isinstance(await store.claim_task(task_claim(identity, "good")), Standing)


async def _all(store: SqlStore, *, limit: int, **selection: object) -> list[Task]:
    found, after = [], ""
    while True:
        page = await store.tasks(after=after, limit=limit, **selection)
        assert len(page.rows) <= limit
        found += page.rows
        if page.next_after is None:
            return found
        after = page.next_after
