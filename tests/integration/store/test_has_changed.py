"""The cheap question whether anybody wrote: it may be answered yes too often, and never no too early."""

import asyncio
from typing import Any

import pytest

from broker.errors import StoreDownError
from broker.store.sql import SqlStore
from tests.support.stores import add_identity, add_task


async def test_quiet_is_seen_as_quiet(store: SqlStore) -> None:
    """The first answer is yes, and after it no as long as nobody writes: reading is no writing."""
    identity = await add_identity(store)
    assert await store.has_changed()
    for _ in range(3):
        assert not await store.has_changed()
        await store.identity(identity.id)
        await store.changes(0)


async def test_a_write_of_this_process_is_seen(store: SqlStore) -> None:
    """Other connections of the same process count as well as other processes."""
    await store.has_changed()
    identity = await add_identity(store)
    assert await store.has_changed()
    assert not await store.has_changed()
    await add_task(store, identity)
    assert await store.has_changed()


async def test_another_store_on_the_same_database_is_seen(store: SqlStore, database: Any) -> None:
    """Each of them has its own memory of what it was told."""
    other = database.store()
    await other.open()
    assert await other.has_changed()
    await store.has_changed()
    await add_identity(store)
    assert await other.has_changed()
    assert await store.has_changed()
    assert not await other.has_changed()


async def test_no_write_of_another_process_is_missed(store: SqlStore, database: Any) -> None:
    """Who reads the changes only when told to has all of them, one look after the other process is done."""
    identity = await add_identity(store)
    worker = await database.worker("register", identity.id, "t", "150")
    worker.go()
    writing = asyncio.create_task(worker.rest())
    seen: dict[Any, int] = {}
    at = looks = yes = 0
    while True:
        no_more = writing.done()
        looks += 1
        if await store.has_changed():
            yes += 1
            changes = await store.changes(at)
            seen |= changes.tasks
            at = changes.sequence
            assert changes.complete
        if no_more:
            break
    stored = (await store.tasks(limit=1000)).rows
    assert len(stored) == 150
    assert {(identity.id, task.thread_id): task.version for task in stored} == seen
    assert at == await store.change_sequence()
    assert yes < looks, "nothing was spared"


async def test_every_single_write_of_another_process_is_seen(store: SqlStore, database: Any) -> None:
    """Acknowledged over there is seen here, each time, also right after the other process was killed."""
    identity = await add_identity(store)
    worker = await database.worker("register", identity.id, "t", "10000")
    await store.has_changed()
    worker.go()
    for _ in range(20):
        at = await store.change_sequence()
        await worker.line()
        while await store.change_sequence() == at:
            await worker.line()
        assert await store.has_changed()
    worker.process.kill()
    await worker.process.wait()
    await store.has_changed()
    assert not await store.has_changed()


async def test_after_a_fault_everything_may_have_changed(store: SqlStore) -> None:
    """A connection that was lost says nothing of what was written meanwhile; nor does a call that was cancelled."""
    await store.has_changed()
    lane = store._driver._lanes.watch
    await asyncio.to_thread(lane._engine.dispose)
    assert await store.has_changed()
    assert not await store.has_changed()
    call = asyncio.create_task(store.has_changed())
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert await store.has_changed()


async def test_a_store_that_is_away_says_so(store: SqlStore) -> None:
    """It is a proof of contact as any other call is; after it came back everything may have changed."""
    await store.has_changed()
    await store.close()
    with pytest.raises(StoreDownError):
        await store.has_changed()
    await store.open()
    assert await store.has_changed()


async def test_a_look_waits_for_no_writer(store: SqlStore, database: Any) -> None:
    """While another process holds the write lock the answer comes at once."""
    await store.has_changed()
    holder = await database.worker("hold_lock")
    assert not await asyncio.wait_for(store.has_changed(), timeout=2)
    holder.go()
    await holder.rest()
    assert not await store.has_changed()
