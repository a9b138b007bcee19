"""Claims of successors: an upstream task that lives is replaced while it goes on being used."""

from dataclasses import replace

import pytest

from broker.errors import GenerationChangedError
from broker.model import IdentityState, Task, TaskState, UpstreamTask
from broker.store import Claimed, HeldElsewhere, Standing
from broker.store.sql import SqlStore
from tests.support.stores import NOW, add_identity, add_task, task_claim


def _held(outcome: object) -> UpstreamTask:
    assert isinstance(outcome, Claimed), outcome
    assert outcome.task.upstream is not None
    return outcome.task.upstream


async def _upstream(store: SqlStore, task: Task) -> UpstreamTask:
    found = await store.task_by_id(task.id)
    assert found is not None
    assert found.upstream is not None
    return found.upstream


async def _orphans(store: SqlStore) -> int:
    return (await store.statistics()).orphaned_upstream_tasks


async def test_the_old_one_is_used_until_its_successor_is_there(store: SqlStore) -> None:
    """The claim leaves state, id, end and version alone, so that no revision of it becomes an older one."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    held = _held(await store.claim_task(task_claim(identity, "t", replace=task.upstream.version, now=NOW + 5)))
    assert held == await _upstream(store, task)
    assert held == replace(task.upstream, fencing_token=task.upstream.fencing_token + 1, lease_expire_time=NOW + 35)
    assert isinstance(await store.claim_task(task_claim(identity, "t", now=NOW + 6)), Standing)
    done = await store.complete_claim(held, sealed_task_id=b"next", now=NOW + 7, expire_time=NOW + 99)
    assert done == replace(
        held,
        version=held.version + 1,
        lease_expire_time=None,
        sealed_task_id=b"next",
        create_time=NOW + 7,
        update_time=NOW + 7,
        expire_time=NOW + 99,
    )
    assert done == await _upstream(store, task)
    assert done == await store.complete_claim(held, sealed_task_id=b"next", now=NOW + 8, expire_time=None)
    assert await _orphans(store) == 0


async def test_one_successor_is_claimed_by_all_who_saw_the_same(store: SqlStore) -> None:
    """A second claim of the version in use waits; one of a version that has passed finds the successor standing."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    seen = task.upstream.version
    held = _held(await store.claim_task(task_claim(identity, "t", replace=seen)))
    waiting = await store.claim_task(task_claim(identity, "t", replace=seen))
    assert isinstance(waiting, HeldElsewhere)
    assert waiting.task.upstream.state is TaskState.ACTIVE
    await store.complete_claim(held, sealed_task_id=b"next", now=NOW, expire_time=None)
    before = await store.change_sequence()
    late = await store.claim_task(task_claim(identity, "t", replace=seen))
    assert isinstance(late, Standing)
    assert late.task.upstream.sealed_task_id == b"next"
    assert before == await store.change_sequence()


@pytest.mark.parametrize("answer_lost", [False, True])
async def test_a_successor_that_is_given_up_leaves_the_old_one(store: SqlStore, *, answer_lost: bool) -> None:
    """After the release the same version is in use and can be claimed again."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    held = _held(await store.claim_task(task_claim(identity, "t", replace=task.upstream.version)))
    await store.release_claim(held, now=NOW, answer_lost=answer_lost)
    assert replace(task.upstream, fencing_token=held.fencing_token) == await _upstream(store, task)
    assert await _orphans(store) == int(answer_lost)
    again = _held(await store.claim_task(task_claim(identity, "t", replace=task.upstream.version)))
    assert again.fencing_token > held.fencing_token


async def test_a_successor_whose_lease_ran_out_is_taken_over(store: SqlStore) -> None:
    """The first holder's answer is orphaned, the second's is used, and the old one until then."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    wish = task_claim(identity, "t", replace=task.upstream.version, lease_seconds=30)
    lost = _held(await store.claim_task(wish))
    taken = _held(await store.claim_task(replace(wish, now=NOW + 30)))
    assert taken.fencing_token > lost.fencing_token
    assert await _orphans(store) == 1
    assert await store.complete_claim(lost, sealed_task_id=b"late", now=NOW + 31, expire_time=None) is None
    assert (taken.sealed_task_id, TaskState.ACTIVE) == (task.upstream.sealed_task_id, taken.state)
    assert taken == await _upstream(store, task)
    done = await store.complete_claim(taken, sealed_task_id=b"won", now=NOW + 32, expire_time=None)
    assert done.sealed_task_id == b"won"


async def test_the_old_one_can_end_while_its_successor_is_registered(store: SqlStore) -> None:
    """Then it is a claim like any other: held while the lease runs, begun anew after it."""
    identity = await add_identity(store)
    held = _held(await store.claim_task(task_claim(identity, "t")))
    old = await store.complete_claim(held, sealed_task_id=b"s", now=NOW, expire_time=NOW + 10)
    _held(await store.claim_task(task_claim(identity, "t", replace=old.version, lease_seconds=30)))
    assert isinstance(await store.claim_task(task_claim(identity, "t", now=NOW + 10)), HeldElsewhere)
    anew = _held(await store.claim_task(task_claim(identity, "t", now=NOW + 30)))
    assert (anew.state, anew.sealed_task_id) == (TaskState.CLAIMED, None)
    assert anew.version > old.version
    assert await _orphans(store) == 1


@pytest.mark.parametrize("how", ["end", "revoke"])
async def test_an_end_wins_over_a_successor(store: SqlStore, how: str) -> None:
    """The answer that comes after it is orphaned and nothing lives again."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    held = _held(await store.claim_task(task_claim(identity, "t", replace=task.upstream.version)))
    if how == "end":
        await store.end_task(identity.id, "t", now=NOW, purge_time=NOW + 100)
    else:
        await store.revoke_task(task.id, now=NOW, purge_time=NOW + 100, include_sharing=False)
    over = await _upstream(store, task)
    assert over.state in (TaskState.ENDED, TaskState.REVOKED)
    assert await store.complete_claim(held, sealed_task_id=b"late", now=NOW, expire_time=None) is None
    await store.release_claim(held, now=NOW, answer_lost=False)
    assert over == await _upstream(store, task)
    assert over.version > task.upstream.version


async def test_disabling_wins_over_a_successor(store: SqlStore) -> None:
    """The answer belongs to a generation that has passed."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    held = _held(await store.claim_task(task_claim(identity, "t", replace=task.upstream.version)))
    await store.write_identity(replace(identity, state=IdentityState.DISABLED, generation=2))
    assert await store.complete_claim(held, sealed_task_id=b"late", now=NOW, expire_time=None) is None
    assert await _orphans(store) == 1
    with pytest.raises(GenerationChangedError):
        await store.claim_task(task_claim(identity, "t", replace=task.upstream.version))


async def test_a_shared_upstream_task_is_replaced_for_all_who_share_it(store: SqlStore) -> None:
    """Each binding sees the successor; only one of them registered it."""
    identity = await add_identity(store)
    tasks = [await add_task(store, identity, thread, key="shared") for thread in ("a", "b")]
    version = tasks[0].upstream.version
    held = _held(await store.claim_task(task_claim(identity, "a", key="shared", replace=version)))
    assert isinstance(await store.claim_task(task_claim(identity, "b", key="shared", replace=version)), HeldElsewhere)
    done = await store.complete_claim(held, sealed_task_id=b"next", now=NOW, expire_time=None)
    assert [done, done] == [await _upstream(store, task) for task in tasks]


async def test_a_claim_counts_as_a_use(store: SqlStore) -> None:
    """What is registered just now is not pruned as unused."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    outcome = await store.claim_task(task_claim(identity, "t", replace=task.upstream.version, now=NOW + 50))
    assert (outcome.task.last_use_time, outcome.task.version) == (NOW + 50, task.version)
    assert outcome.task == await store.task_by_id(task.id)
