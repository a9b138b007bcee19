"""A cancelled call has its whole effect or none, and the store works on."""

import asyncio
import threading

import pytest
from sqlalchemy import Connection

from broker.model import TaskState
from broker.store import HeldElsewhere
from broker.store.sql import SqlStore
from tests.support.stores import NOW, add_identity, task_claim


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_write_is_whole_or_nothing(store: SqlStore, turns: int) -> None:
    """Cancelled after any number of turns of the event loop, a claim either stands completely or was never made."""
    identity = await add_identity(store)
    call = asyncio.create_task(store.claim_task(task_claim(identity, "t")))
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    # The next write waits its turn behind the cancelled one, so that one has ended now.
    other = await store.claim_task(task_claim(identity, "other"))
    assert other.task.upstream.state is TaskState.CLAIMED
    task = await store.task(identity.id, "t")
    if task is not None:
        assert task.upstream.state is TaskState.CLAIMED
        changes = await store.changes(0)
        assert changes.tasks[identity.id, "t"] == task.version
        assert isinstance(await store.claim_task(task_claim(identity, "t")), HeldElsewhere)


async def test_a_caller_that_waits_for_a_lock_can_leave(store: SqlStore, database: object) -> None:
    """Cancellation is answered at once; what had begun goes on when the lock is free, what had not never happens."""
    identity = await add_identity(store)
    holder = await database.worker("hold_lock")
    began = asyncio.create_task(store.claim_task(task_claim(identity, "began")))
    waited = asyncio.create_task(store.claim_task(task_claim(identity, "waited")))
    await store.change_sequence()  # several turns of the loop: the first has its thread, the second waits for it
    for call in (began, waited):
        call.cancel()
        await asyncio.wait([call], timeout=1)
        assert call.cancelled()
    holder.go()
    await store.claim_task(task_claim(identity, "after"))
    assert await store.task(identity.id, "began") is not None
    assert await store.task(identity.id, "waited") is None


async def test_a_cancelled_reader_leaves_its_connection_clean(store: SqlStore) -> None:
    """Cancelling many reads takes no connection away and keeps no transaction open."""
    identity = await add_identity(store)
    for turns in range(20):
        reads = [asyncio.create_task(store.identity(identity.id)) for _ in range(8)]
        for _ in range(turns % 5):
            await asyncio.sleep(0)
        for read in reads:
            read.cancel()
        await asyncio.wait(reads)
    assert [identity] * 16 == await asyncio.gather(*(store.identity(identity.id) for _ in range(16)))
    # A reader left inside its transaction would go on seeing the old state.
    task = (await store.claim_task(task_claim(identity, "t"))).task
    assert [task] * 8 == await asyncio.gather(*(store.task(identity.id, "t") for _ in range(8)))


async def test_closing_waits_for_what_has_begun(store: SqlStore, database: object) -> None:
    """A write that its caller has left is still done when the store is closed."""
    identity = await add_identity(store)
    call = asyncio.create_task(store.claim_task(task_claim(identity, "t", now=NOW)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    await store.close()
    again = database.store()
    await again.open()
    assert await again.task(identity.id, "t") is not None


async def test_closing_waits_without_stopping_the_loop(store: SqlStore) -> None:
    """A read that takes long delays the end of `close` and nothing else."""
    begun, enough = threading.Event(), threading.Event()

    def read(connection: Connection) -> object:
        begun.set()
        return enough.wait(timeout=2) and connection.exec_driver_sql("SELECT 1").scalar_one()

    reading = asyncio.create_task(store._driver.read(read))
    await asyncio.to_thread(begun.wait)
    closing = asyncio.create_task(store.close())
    done, _ = await asyncio.wait([closing], timeout=0.2)
    assert not done
    enough.set()
    assert await reading == 1
    await closing
