"""The database as a whole: key ring, change counter, statistics, opening and closing."""

from typing import Any

import pytest
from sqlalchemy import event

from broker.errors import StoreDownError
from broker.model import IdentityState, TaskState
from broker.store import StoreStatistics, schema
from broker.store.sql import SqlStore
from tests.support.stores import (
    NOW,
    FaultyStore,
    add_identity,
    add_task,
    agent_identity,
    bearer_identity,
    task_claim,
)


async def test_the_first_key_ring_stays(store: SqlStore, database: object) -> None:
    """A second ring gets the first one's id back, in every process and after a restart."""
    assert await store.keyring_id() is None
    assert await store.bind_keyring("one") == "one"
    assert await store.bind_keyring("two") == "one"
    other = database.store()
    await other.open()
    assert await other.keyring_id() == "one"


async def test_changes_name_every_row_written(store: SqlStore) -> None:
    """Each kind of row is named with the version it has now."""
    start = await store.change_sequence()
    identity = await add_identity(store, agent_identity())
    kept = await add_identity(store, bearer_identity(), bearer=b"sealed")
    task = await add_task(store, identity, "t")
    background = await add_task(store, identity, None)
    changes = await store.changes(start)
    assert changes.complete
    assert await store.change_sequence() == changes.sequence
    assert {identity.id: 1, kept.id: 1} == changes.identities
    assert {kept.id: 1} == changes.bearers
    assert {(identity.id, "t"): task.version, (identity.id, None): background.version} == changes.tasks
    assert {
        (identity.id, 1, task.upstream_key): task.upstream.version,
        (identity.id, 1, background.upstream_key): background.upstream.version,
    } == changes.upstream_tasks


async def test_nothing_new_is_an_empty_answer(store: SqlStore) -> None:
    """Who is up to date learns so, and where the counter stands when a database went back in time."""
    await add_identity(store)
    at = await store.change_sequence()
    changes = await store.changes(at)
    assert (at, True, {}) == (changes.sequence, changes.complete, changes.identities)
    assert at == (await store.changes(at + 100)).sequence


async def test_only_what_was_written_since_is_named(store: SqlStore) -> None:
    """A later write names its rows and no others."""
    identity = await add_identity(store)
    await add_task(store, identity, "a")
    await add_task(store, identity, "b")
    at = await store.change_sequence()
    ended = await store.end_task(identity.id, "a", now=NOW, purge_time=NOW + 1)
    changes = await store.changes(at)
    assert {(identity.id, "a"): ended.version} == changes.tasks
    assert {(identity.id, 1, ended.upstream_key): ended.upstream.version} == changes.upstream_tasks
    assert changes.identities == {}


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_a_limited_reader_gets_everything_in_the_end(store: SqlStore, limit: int) -> None:
    """Changes can be cut anywhere, within one transaction too, and each part names at most `limit` rows."""
    identity = await add_identity(store, agent_identity())
    tasks = [await add_task(store, identity, f"t{n}", key="shared") for n in range(5)]
    await store.revoke_task(tasks[0].id, now=NOW, purge_time=NOW, include_sharing=True)
    seen, at = {}, 0
    while True:
        part = await store.changes(at, limit=limit)
        named = part.identities | part.tasks | part.upstream_tasks | part.bearers
        assert len(named) <= limit
        assert part.sequence > at
        seen |= named
        at = part.sequence
        if part.complete:
            break
    whole = await store.changes(0)
    assert whole.identities | whole.tasks | whole.upstream_tasks | whole.bearers == seen
    assert whole.sequence == at


async def test_statistics_count_by_state(store: SqlStore) -> None:
    """An operator sees how many of what there are."""
    identity = await add_identity(store, agent_identity("a"))
    await add_identity(store, agent_identity("b", state=IdentityState.DISABLED))
    await add_task(store, identity, "t")
    await add_task(store, identity, "u")
    await store.end_task(identity.id, "u", now=NOW, purge_time=NOW)
    held = (await store.claim_task(task_claim(identity, "v"))).task.upstream
    await store.release_claim(held, now=NOW, answer_lost=True)
    assert (
        StoreStatistics(
            driver="sqlite",
            schema_version=schema.REVISION,
            identities={IdentityState.ACTIVE: 1, IdentityState.DISABLED: 1},
            tasks={TaskState.ACTIVE: 2, TaskState.ENDED: 1},
            orphaned_upstream_tasks=1,
        )
        == await store.statistics()
    )


async def test_statistics_look_at_no_binding(store: SqlStore, database: Any) -> None:
    """Bindings may be very many; those that live and those that ended are counted by indexes alone."""
    statements: list[str] = []
    engine = store._driver._lanes.read._engine
    event.listen(engine, "before_cursor_execute", lambda *seen: statements.append(seen[2]))
    await store.statistics()
    plans = [
        step[3]
        for statement in statements
        if "FROM tasks" in statement
        for step in database.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]
    walks = [step for step in plans if step.startswith(("SCAN", "SEARCH"))]
    assert len(walks) == 2
    assert all("COVERING INDEX" in step or "ix_tasks_last_use_time" in step for step in walks), walks


async def test_a_store_that_is_not_open_is_down(database: object) -> None:
    """Before it is opened and after it was closed every call says so; closing twice is fine."""
    store = database.store()
    with pytest.raises(StoreDownError):
        await store.change_sequence()
    await store.open()
    await store.change_sequence()
    await store.close()
    await store.close()
    with pytest.raises(StoreDownError):
        await store.change_sequence()


async def test_a_closed_store_can_be_opened_again(store: SqlStore) -> None:
    """What was written is there after a restart."""
    identity = await add_identity(store)
    task = await add_task(store, identity)
    await store.close()
    await store.open()
    assert identity == await store.identity(identity.id)
    assert task == await store.task(identity.id, task.thread_id)


async def test_the_faulty_store_counts_and_fails_as_told(store: SqlStore) -> None:
    """The wrapper other tests rely on: counted calls, an error before or after the effect, an outage."""
    faulty = FaultyStore(store)
    identity = await add_identity(faulty)
    faulty.fail("identity", times=2)
    for _ in range(2):
        with pytest.raises(StoreDownError):
            await faulty.identity(identity.id)
    assert identity == await faulty.identity(identity.id)
    faulty.fail("claim_task", after=True)
    with pytest.raises(StoreDownError):
        await faulty.claim_task(task_claim(identity, "t"))
    assert await store.task(identity.id, "t") is not None
    faulty.go_down()
    with pytest.raises(StoreDownError):
        await faulty.change_sequence()
    faulty.come_back()
    await faulty.change_sequence()
    assert faulty.calls == {"create_identity": 1, "identity": 3, "claim_task": 1, "change_sequence": 2}
    with pytest.raises(AttributeError):
        faulty.fail("no_such_method")
