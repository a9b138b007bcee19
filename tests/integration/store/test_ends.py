"""Ending, revoking, starting anew, and what may be forgotten afterwards."""

from dataclasses import replace

import pytest

from broker.model import IdentityState, TaskState
from broker.store import Claimed, HeldElsewhere, Standing
from broker.store.sql import SqlStore
from tests.support.stores import LONG_AGO, NOW, add_identity, add_task, agent_identity, create_request, task_claim

PURGE = NOW + 1000


async def test_an_ended_task_leaves_a_tombstone(store: SqlStore) -> None:
    """The binding ends with its own upstream task, and both say when and until when it is remembered."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    ended = await store.end_task(identity.id, "t", now=NOW + 5, purge_time=PURGE)
    upstream = replace(task.upstream, state=TaskState.ENDED, version=task.upstream.version + 1, update_time=NOW + 5)
    assert ended == replace(
        task, state=TaskState.ENDED, version=task.version + 1, update_time=NOW + 5, purge_time=PURGE, upstream=upstream
    )
    assert ended == await store.task(identity.id, "t")


async def test_ending_is_idempotent(store: SqlStore) -> None:
    """The second end changes nothing, not even the purge time; ending what is not there is None."""
    identity = await add_identity(store)
    await add_task(store, identity, "t")
    ended = await store.end_task(identity.id, "t", now=NOW, purge_time=PURGE)
    assert ended == await store.end_task(identity.id, "t", now=NOW + 1, purge_time=PURGE + 1)
    assert await store.end_task(identity.id, "other", now=NOW, purge_time=PURGE) is None


async def test_a_shared_upstream_task_ends_with_its_last_binding(store: SqlStore) -> None:
    """Ending one thread leaves the others' upstream task alone until nobody shares it."""
    identity = await add_identity(store)
    for thread in ("a", "b"):
        await add_task(store, identity, thread, key="shared")
    first = await store.end_task(identity.id, "a", now=NOW, purge_time=PURGE)
    assert (first.state, first.upstream.state) == (TaskState.ENDED, TaskState.ACTIVE)
    assert isinstance(await store.claim_task(task_claim(identity, "b", key="shared")), Standing)
    last = await store.end_task(identity.id, "b", now=NOW, purge_time=PURGE)
    assert (last.state, last.upstream.state) == (TaskState.ENDED, TaskState.ENDED)


async def test_an_ended_binding_stands_as_ended_unless_restarted(store: SqlStore) -> None:
    """A call for authorization must not begin an ended thread anew."""
    identity = await add_identity(store)
    await add_task(store, identity, "t")
    ended = await store.end_task(identity.id, "t", now=NOW, purge_time=PURGE)
    assert Standing(ended) == await store.claim_task(task_claim(identity, "t", now=NOW + 1))
    assert ended == await store.task(identity.id, "t")


@pytest.mark.parametrize("revoke", [False, True], ids=["ended", "revoked"])
async def test_a_restart_begins_anew(store: SqlStore, *, revoke: bool) -> None:
    """RegisterTask on an ended thread gives it life and a new upstream task of a higher version, without a tombstone."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    if revoke:
        (ended,) = await store.revoke_task(task.id, now=NOW, purge_time=PURGE, include_sharing=False)
    else:
        ended = await store.end_task(identity.id, "t", now=NOW, purge_time=PURGE)
    outcome = await store.claim_task(task_claim(identity, "t", now=NOW + 1, restart=True))
    assert isinstance(outcome, Claimed)
    begun = outcome.task
    assert (task.id, TaskState.ACTIVE, None) == (begun.id, begun.state, begun.purge_time)
    assert begun.version > ended.version
    assert begun.upstream.version > ended.upstream.version
    assert begun.upstream.fencing_token > ended.upstream.fencing_token
    assert begun.upstream.sealed_task_id is None


async def test_a_restart_on_a_living_shared_upstream_task_uses_it(store: SqlStore) -> None:
    """Where the upstream task lives on, only the binding begins anew."""
    identity = await add_identity(store)
    for thread in ("a", "b"):
        await add_task(store, identity, thread, key="shared")
    ended = await store.end_task(identity.id, "a", now=NOW, purge_time=PURGE)
    outcome = await store.claim_task(task_claim(identity, "a", key="shared", restart=True))
    assert isinstance(outcome, Standing)
    assert (TaskState.ACTIVE, ended.version + 1) == (outcome.task.state, outcome.task.version)


async def test_a_restart_of_a_living_binding_is_an_ordinary_claim(store: SqlStore) -> None:
    """RegisterTask is idempotent while the task lives."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    assert Standing(task) == await store.claim_task(task_claim(identity, "t", restart=True))


async def test_a_claim_that_is_ended_in_flight_is_orphaned(store: SqlStore) -> None:
    """The backend may have registered it already; a late answer cannot bring it back."""
    identity = await add_identity(store)
    outcome = await store.claim_task(task_claim(identity, "t"))
    ended = await store.end_task(identity.id, "t", now=NOW, purge_time=PURGE)
    assert (ended.upstream.state, ended.upstream.lease_expire_time) == (TaskState.ENDED, None)
    assert (await store.statistics()).orphaned_upstream_tasks == 1
    late = await store.complete_claim(outcome.task.upstream, sealed_task_id=b"s", now=NOW, expire_time=None)
    assert late is None
    assert ended == await store.task(identity.id, "t")


async def test_a_restarted_claim_outlives_its_predecessors_answer(store: SqlStore) -> None:
    """The fencing token tells the claim after a restart from the one before the end."""
    identity = await add_identity(store)
    before = (await store.claim_task(task_claim(identity, "t"))).task.upstream
    await store.end_task(identity.id, "t", now=NOW, purge_time=PURGE)
    after = (await store.claim_task(task_claim(identity, "t", restart=True))).task.upstream
    assert await store.complete_claim(before, sealed_task_id=b"old", now=NOW, expire_time=None) is None
    await store.release_claim(before, now=NOW, answer_lost=False)
    assert after == (await store.task(identity.id, "t")).upstream


async def test_a_revocation_takes_binding_and_upstream_task_down(store: SqlStore) -> None:
    """What is revoked cannot be claimed without a restart, and its tombstone has the given time."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    (revoked,) = await store.revoke_task(task.id, now=NOW + 1, purge_time=PURGE, include_sharing=False)
    assert (revoked.state, revoked.upstream.state, revoked.purge_time) == (TaskState.REVOKED, TaskState.REVOKED, PURGE)
    assert revoked == await store.task(identity.id, "t")
    assert Standing(revoked) == await store.claim_task(task_claim(identity, "t"))
    assert (revoked,) == await store.revoke_task(task.id, now=NOW + 2, purge_time=PURGE + 2, include_sharing=False)


async def test_revoking_what_is_not_there_is_empty(store: SqlStore) -> None:
    """There is nothing to take down."""
    assert await store.revoke_task("none", now=NOW, purge_time=PURGE, include_sharing=True) == ()


async def test_a_shared_upstream_task_is_not_revoked_unasked(store: SqlStore) -> None:
    """Without `include_sharing` the sharing bindings are named, the wanted one first, and nothing is written."""
    identity = await add_identity(store)
    tasks = {thread: await add_task(store, identity, thread, key="shared") for thread in ("a", "b", "c")}
    before = await store.change_sequence()
    named = await store.revoke_task(tasks["b"].id, now=NOW, purge_time=PURGE, include_sharing=False)
    assert tasks["b"] == named[0]
    assert sorted([tasks["a"].id, tasks["c"].id]) == [task.id for task in named[1:]]
    assert {TaskState.ACTIVE} == {task.state for task in named}
    assert before == await store.change_sequence()


async def test_a_shared_upstream_task_is_revoked_with_all_its_live_bindings(store: SqlStore) -> None:
    """With `include_sharing` all live bindings go down; those that had ended stay as they were."""
    identity = await add_identity(store)
    tasks = {thread: await add_task(store, identity, thread, key="shared") for thread in ("a", "b", "gone")}
    other = await add_task(store, identity, "other")
    gone = await store.end_task(identity.id, "gone", now=NOW, purge_time=PURGE)
    down = await store.revoke_task(tasks["b"].id, now=NOW, purge_time=PURGE, include_sharing=True)
    assert [tasks["b"].id, tasks["a"].id] == [task.id for task in down]
    assert {(TaskState.REVOKED, TaskState.REVOKED)} == {(task.state, task.upstream.state) for task in down}
    assert gone.version == (await store.task(identity.id, "gone")).version
    assert other == await store.task(identity.id, "other")


async def test_a_revocation_in_flight_orphans_the_claim(store: SqlStore) -> None:
    """The answer that comes after the revocation is not used."""
    identity = await add_identity(store)
    outcome = await store.claim_task(task_claim(identity, "t"))
    await store.revoke_task(outcome.task.id, now=NOW, purge_time=PURGE, include_sharing=False)
    late = await store.complete_claim(outcome.task.upstream, sealed_task_id=b"s", now=NOW, expire_time=None)
    assert late is None
    assert TaskState.REVOKED is (await store.task(identity.id, "t")).upstream.state


async def test_a_revoked_upstream_task_is_claimed_anew_by_who_restarts(store: SqlStore) -> None:
    """After a forced revocation of a shared task each thread begins anew, and again only one registers."""
    identity = await add_identity(store)
    tasks = [await add_task(store, identity, thread, key="shared") for thread in ("a", "b")]
    await store.revoke_task(tasks[0].id, now=NOW, purge_time=PURGE, include_sharing=True)
    first = await store.claim_task(task_claim(identity, "a", key="shared", restart=True))
    second = await store.claim_task(task_claim(identity, "b", key="shared", restart=True))
    assert isinstance(first, Claimed)
    assert isinstance(second, HeldElsewhere)
    assert first.task.upstream.version > tasks[0].upstream.version


async def test_prune_removes_what_its_time_is_over_for(store: SqlStore) -> None:
    """Tombstones go at their purge time, to the moment; living bindings and younger tombstones stay."""
    identity = await add_identity(store)
    for thread in ("old", "young", "live"):
        await add_task(store, identity, thread)
    await store.end_task(identity.id, "old", now=NOW, purge_time=NOW + 10)
    await store.end_task(identity.id, "young", now=NOW, purge_time=NOW + 11)
    assert await store.prune(NOW + 9.9, idle_before=LONG_AGO) == 0
    assert await store.prune(NOW + 10, idle_before=LONG_AGO) == 1
    assert await store.task(identity.id, "old") is None
    assert await store.task(identity.id, "young") is not None
    assert await store.task(identity.id, "live") is not None


async def test_prune_is_bounded(store: SqlStore) -> None:
    """One call removes at most `limit` rows of all kinds together; repeated calls come to an end."""
    identity = await store.create_identity(agent_identity(), create_request(remember_until=NOW + 1))
    for n in range(5):
        await add_task(store, identity, f"t{n}")
        await store.end_task(identity.id, f"t{n}", now=NOW, purge_time=NOW + 1)
    assert [await store.prune(NOW + 1, idle_before=LONG_AGO, limit=4) for _ in range(3)] == [4, 2, 0]
    assert (await store.tasks()).rows == ()


async def test_prune_forgets_upstream_tasks_that_nobody_names(store: SqlStore, database: object) -> None:
    """The upstream task goes with its last binding, tombstones included, and not before."""
    identity = await add_identity(store)
    for thread in ("a", "b"):
        await add_task(store, identity, thread, key="shared")
        await store.end_task(identity.id, thread, now=NOW, purge_time=NOW + (1 if thread == "a" else 2))
    await store.prune(NOW + 1, idle_before=LONG_AGO)
    assert database.execute("SELECT count(*) FROM upstream_tasks") == [(1,)]
    await store.prune(NOW + 2, idle_before=LONG_AGO)
    assert database.execute("SELECT count(*) FROM upstream_tasks") == [(0,)]


async def test_prune_forgets_what_deleted_identities_had(store: SqlStore, database: object) -> None:
    """Bindings of a deleted identity have no further use; the identity's own row stays."""
    gone = await add_identity(store, agent_identity("gone"))
    kept = await add_identity(store, agent_identity("kept"))
    for identity in (gone, kept):
        await add_task(store, identity, "a")
        await add_task(store, identity, None)
    await store.claim_task(task_claim(gone, "in flight"))
    await store.end_task(gone.id, "a", now=NOW, purge_time=NOW)  # due anyway, and counted once
    await store.write_identity(replace(gone, state=IdentityState.DELETED, generation=2))
    assert await store.prune(NOW, idle_before=LONG_AGO) == 4
    assert {kept.id} == {task.identity_id for task in (await store.tasks()).rows}
    assert database.execute("SELECT count(*) FROM upstream_tasks") == [(2,)]
    assert (await store.statistics()).orphaned_upstream_tasks == 1
    assert await store.identity(gone.id) is not None


async def test_a_new_generation_forgets_the_upstream_task_of_the_last(store: SqlStore, database: object) -> None:
    """Rows of passed generations do not pile up; a claim that was in flight is recorded as orphaned."""
    identity = await add_identity(store)
    await store.claim_task(task_claim(identity, "t"))
    rotated = await store.write_identity(replace(identity, generation=2))
    await store.claim_task(task_claim(rotated, "t"))
    assert database.execute("SELECT generation FROM upstream_tasks") == [(2,)]
    assert (await store.statistics()).orphaned_upstream_tasks == 1
