"""What is forgotten and in what bites, what lives, and that the cost of both rests on no dead row."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from broker.model import Identity, IdentityState, Task
from broker.store import Claimed, Standing
from broker.store.sql import SqlStore
from tests.support.dead_rows import fill
from tests.support.stores import LONG_AGO, NOW, add_identity, add_task, agent_identity, task_claim

DAY = 86_400.0


async def _live(store: SqlStore, *, now: float = NOW, limit: int = 500) -> list[Task]:
    tasks: list[Task] = []
    after = ""
    while True:
        page = await store.live_tasks(now=now, after=after, limit=limit)
        assert len(page.rows) <= limit
        tasks += page.rows
        if page.next_after is None:
            return tasks
        after = page.next_after


async def _expiring(store: SqlStore, identity: Identity, thread: str | None, expire_time: float) -> Task:
    outcome = await store.claim_task(task_claim(identity, thread))
    assert isinstance(outcome, Claimed)
    upstream = await store.complete_claim(outcome.task.upstream, sealed_task_id=b"s", now=NOW, expire_time=expire_time)
    return replace(outcome.task, upstream=upstream)


async def test_bindings_that_nobody_uses_go(store: SqlStore, database: Any) -> None:
    """They go when they were last used before the time given, with the upstream task that only they named."""
    identity = await add_identity(store)
    idle, used = await add_task(store, identity, "idle"), await add_task(store, identity, "used", now=NOW + 1)
    assert await store.prune(NOW + 9, idle_before=NOW) == 0
    assert await store.prune(NOW + 9, idle_before=NOW + 0.5) == 1
    assert await store.task_by_id(idle.id) is None
    assert used == await store.task_by_id(used.id)
    assert database.execute("SELECT upstream_key FROM upstream_tasks") == [(used.upstream_key,)]


async def test_who_follows_is_told_of_bindings_that_lived(store: SqlStore) -> None:
    """Under a version above any they had, once, and not when the binding is back; in its order among other writes."""
    identity = await add_identity(store)
    idle, back = await add_task(store, identity, "idle"), await add_task(store, identity, None)
    at = await store.change_sequence()
    await store.prune(NOW + 9, idle_before=NOW + 1)
    changes = await store.changes(at)
    assert set(changes.tasks) == {(identity.id, "idle"), (identity.id, None)}
    assert changes.tasks[identity.id, "idle"] > idle.version
    again = await add_task(store, identity, None)
    changes = await store.changes(at, limit=100)
    assert changes.tasks[identity.id, None] == again.version > back.version
    assert (await store.changes(changes.sequence)).tasks == {}


async def test_nobody_is_told_for_ever(store: SqlStore, database: Any) -> None:
    """What was told is forgotten after eight days, in bites as well."""
    identity = await add_identity(store)
    for n in range(3):
        await add_task(store, identity, f"t{n}")
    assert await store.prune(NOW + DAY, idle_before=NOW + 1) == 3 + 1  # and the request that made the identity
    assert await store.prune(NOW + 9 * DAY - 1, idle_before=LONG_AGO) == 0
    assert [await store.prune(NOW + 9 * DAY, idle_before=LONG_AGO, limit=2) for _ in range(3)] == [2, 1, 0]
    assert database.execute("SELECT count(*) FROM pruned_tasks") == [(0,)]


async def test_a_use_keeps_a_binding(store: SqlStore) -> None:
    """The later of two notes holds, ids that are unknown are ignored, and neither version nor changes move."""
    identity = await add_identity(store)
    task = await add_task(store, identity, "t")
    at = await store.change_sequence()
    await store.touch_tasks([(task.id, NOW + 50), ("unknown", NOW + 50)])
    await store.touch_tasks([(task.id, NOW + 20)])
    await store.touch_tasks([])
    assert replace(task, last_use_time=NOW + 50) == await store.task_by_id(task.id)
    assert at == await store.change_sequence()
    assert await store.prune(NOW + 60, idle_before=NOW + 50) == 0


async def test_expired_upstream_tasks_go_and_their_bindings_stay(store: SqlStore, database: Any) -> None:
    """The binding's next upstream task has higher numbers than the one that went."""
    identity = await add_identity(store)
    over = await _expiring(store, identity, "over", NOW + 10)
    lives = await _expiring(store, identity, "lives", NOW + 11)
    assert await store.prune(NOW + 9.9, idle_before=LONG_AGO) == 0
    assert await store.prune(NOW + 10, idle_before=LONG_AGO) == 1
    assert replace(over, upstream=None) == await store.task_by_id(over.id)
    assert lives == await store.task_by_id(lives.id)
    anew = await store.claim_task(task_claim(identity, "over", now=NOW + 10))
    assert anew.task.upstream.version > over.upstream.version
    assert anew.task.upstream.fencing_token > over.upstream.fencing_token


@pytest.mark.parametrize("successor", [True, False])
async def test_a_claim_in_flight_is_not_removed(store: SqlStore, *, successor: bool) -> None:
    """Neither under an upstream task that expires meanwhile nor under a binding; its answer counts."""
    identity = await add_identity(store)
    wish = task_claim(identity, "t", lease_seconds=30)
    if successor:
        old = await _expiring(store, identity, "t", NOW + 10)
        wish = replace(wish, replace=old.upstream.version)
    held = (await store.claim_task(wish)).task.upstream
    assert await store.prune(NOW + 29, idle_before=NOW) == 0
    done = await store.complete_claim(held, sealed_task_id=b"next", now=NOW + 29, expire_time=NOW + 100)
    assert done == (await store.task(identity.id, "t")).upstream


async def test_a_claim_in_flight_outlives_its_binding(store: SqlStore) -> None:
    """Even where the binding counts as unused, the thread's next call finds the answer and registers nothing anew."""
    identity = await add_identity(store)
    held = (await store.claim_task(task_claim(identity, "t", lease_seconds=30))).task.upstream
    assert await store.prune(NOW + 29, idle_before=NOW + 1) == 1
    assert await store.task(identity.id, "t") is None
    done = await store.complete_claim(held, sealed_task_id=b"s", now=NOW + 29, expire_time=None)
    again = await store.claim_task(task_claim(identity, "t", now=NOW + 30))
    assert isinstance(again, Standing)
    assert done == again.task.upstream


async def test_a_claim_that_nobody_came_back_for_is_an_orphan_when_it_goes(store: SqlStore) -> None:
    """A lease that is over keeps nothing, and that the backend may have a task is remembered."""
    identity = await add_identity(store)
    old = await _expiring(store, identity, "t", NOW + 10)
    await store.claim_task(task_claim(identity, "t", replace=old.upstream.version, lease_seconds=30))
    assert await store.prune(NOW + 30, idle_before=LONG_AGO) == 1
    assert (await store.statistics()).orphaned_upstream_tasks == 1
    await store.claim_task(task_claim(identity, "u", lease_seconds=30))
    assert await store.prune(NOW + 30, idle_before=NOW + 1) == 2
    assert (await store.statistics()).orphaned_upstream_tasks == 2


async def test_what_others_share_stays_with_them(store: SqlStore) -> None:
    """An upstream task, and a claim of it, goes with the last of its bindings only."""
    identity = await add_identity(store)
    await add_task(store, identity, "idle", key="shared")
    used = await add_task(store, identity, "used", key="shared", now=NOW + 5)
    await store.claim_task(
        task_claim(identity, "used", key="shared", replace=used.upstream.version, now=NOW + 5, lease_seconds=1)
    )
    assert await store.prune(NOW + 60, idle_before=NOW + 1) == 1
    assert used.upstream.sealed_task_id == (await store.task_by_id(used.id)).upstream.sealed_task_id
    assert (await store.statistics()).orphaned_upstream_tasks == 0


async def test_what_deleted_identities_left_goes_in_bites(store: SqlStore) -> None:
    """However many there are, a bite removes no more than its limit, and what is left is found by the next one."""
    for name in ("a", "b", "c"):
        identity = await add_identity(store, agent_identity(name))
        for n in range(5):
            await add_task(store, identity, f"t{n}")
        await store.write_identity(replace(identity, state=IdentityState.DELETED, generation=2))
    bites = []
    while went := await store.prune(NOW, idle_before=LONG_AGO, limit=3):
        bites.append(went)
    assert (max(bites), sum(bites)) == (3, 18)
    assert (await store.tasks()).rows == ()


# --- what lives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_what_lives_is_listed_once(store: SqlStore, limit: int) -> None:
    """In pages of any size, those that share an upstream task too; nothing that ended, expired or was not registered."""
    one, two = await add_identity(store, agent_identity("one")), await add_identity(store, agent_identity("two"))
    lives = [await add_task(store, one, f"shared {n}", key="shared") for n in range(4)]
    lives += [await _expiring(store, two, f"t{n}", NOW + 20 + n % 2) for n in range(4)]
    lives += [await add_task(store, two, None)]
    await add_task(store, one, "ended", key="shared")
    await store.end_task(one.id, "ended", now=NOW, purge_time=NOW + 100)
    await _expiring(store, one, "expired", NOW + 10)
    await store.claim_task(task_claim(one, "claimed"))
    gone = await add_identity(store, agent_identity("rotated"))
    await add_task(store, gone, "t")
    await store.write_identity(replace(gone, generation=2))
    listed = await _live(store, now=NOW + 10, limit=limit)
    assert sorted(lives, key=lambda task: task.id) == sorted(listed, key=lambda task: task.id)
    ends = [task.upstream.expire_time for task in listed]
    assert ends == [NOW + 20] * 2 + [NOW + 21] * 2 + [None] * 5


async def test_a_list_of_what_lives_goes_on_when_its_place_is_gone(store: SqlStore) -> None:
    """Between two pages rows may go and come; what stays is met once."""
    identity = await add_identity(store)
    made = [await _expiring(store, identity, f"t{n}", NOW + 10 + n) for n in range(4)]
    page = await store.live_tasks(now=NOW, limit=2)
    await store.end_task(identity.id, "t1", now=NOW, purge_time=NOW + 1)
    rest = await store.live_tasks(now=NOW, after=page.next_after, limit=2)
    assert [task.id for task in made] == [task.id for task in (*page.rows, *rest.rows)]


async def test_a_damaged_row_does_not_spoil_what_lives(store: SqlStore, database: Any) -> None:
    """It is named, and the others are listed."""
    identity = await add_identity(store)
    bad, good = await add_task(store, identity, "bad"), await add_task(store, identity, "good")
    database.execute("UPDATE tasks SET kind = 'BACKGROUND' WHERE id = ?", bad.id)
    page = await store.live_tasks(now=NOW)
    assert ((good,), (bad.id,)) == (page.rows, page.corrupt)


# --- cost ------------------------------------------------------------------------------------------------------------


async def test_dead_rows_cost_nothing(database: Any) -> None:
    """Beside 100,000 dead tasks, reading what lives and a bite of pruning do the work that they do beside 1,000."""
    few = await _work_beside(database.sibling("few"), 1_000)
    many = await _work_beside(database.sibling("many"), 100_000)
    for what, work in many.items():
        assert work <= few[what] * 1.2, (what, few, many)


async def _work_beside(database: Any, dead: int) -> dict[str, int]:
    """Return what SQLite works for each job, in hundreds of instructions of its virtual machine."""
    store = database.store()
    await store.open()
    identity = await add_identity(store)
    await store.close()
    fill(database.path, identity.id, now=NOW, live=200, expired=dead // 2, ended=dead // 4, idle=dead // 4)
    await store.open()
    work = {}
    with _work_of(store) as done:
        for after in ("", (await store.live_tasks(now=NOW, limit=100)).next_after):
            assert len((await store.live_tasks(now=NOW, after=after, limit=100)).rows) == 100
    work["live"] = len(done)
    with _work_of(store) as done:
        assert await store.prune(NOW, idle_before=NOW - DAY, limit=200) == 200
    work["prune idle"] = len(done)
    with _work_of(store) as done:
        assert await store.prune(NOW, idle_before=LONG_AGO, limit=200) == 200
    work["prune expired"] = len(done)
    with _work_of(store) as done:
        assert await store.prune(NOW + 40 * DAY, idle_before=LONG_AGO, limit=200) == 200
    work["prune ended"] = len(done)
    await store.close()
    return work


@contextmanager
def _work_of(store: SqlStore) -> Iterator[list[None]]:
    """Collect an item for every hundred instructions of SQLite's virtual machine."""
    done: list[None] = []
    engines = [lane._engine for lane in (store._driver._lanes.read, store._driver._lanes.write)]

    def watch(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(lambda: done.append(None), 100)

    for engine in engines:
        event.listen(engine, "checkout", watch)
    yield done
    for engine in engines:
        event.remove(engine, "checkout", watch)
