"""Several processes on one database: claims, changes, migrations, kills."""

import asyncio
import json
from collections import defaultdict

import pytest

from broker.model import TaskState
from broker.store import Claimed, schema
from broker.store.sql import SqlStore
from tests.support.stores import NOW, add_identity, add_task, task_claim


async def test_of_two_processes_one_gets_each_claim(store: SqlStore, database: object) -> None:
    """Two brokers that want the same tasks at the same moment register each of them once."""
    identity = await add_identity(store)
    threads = [f"t{n}" for n in range(40)]
    workers = [await database.worker("claim", identity.id, *threads) for _ in range(2)]
    for worker in workers:
        worker.go()
    outcomes = defaultdict(list)
    for said in await asyncio.gather(*(worker.rest() for worker in workers)):
        for line in said:
            thread, outcome, fencing_token = json.loads(line)
            outcomes[thread].append((outcome, fencing_token))
    assert set(threads) == set(outcomes)
    for thread, seen in outcomes.items():
        assert sorted(outcome for outcome, _ in seen) == ["Claimed", "HeldElsewhere"], thread
        assert len({fencing_token for _, fencing_token in seen}) == 1, thread


async def test_of_many_tasks_in_one_process_one_gets_the_claim(store: SqlStore) -> None:
    """A hundred concurrent claims of one upstream task by a hundred threads give one registration."""
    identity = await add_identity(store)
    outcomes = await asyncio.gather(
        *(store.claim_task(task_claim(identity, f"t{n}", key="shared")) for n in range(100))
    )
    assert sum(isinstance(outcome, Claimed) for outcome in outcomes) == 1
    assert len({outcome.task.id for outcome in outcomes}) == 100


async def test_a_reader_misses_nothing_while_two_processes_write(store: SqlStore, database: object) -> None:
    """Whoever follows `changes`, in parts of any size, ends with exactly what is in the database."""
    identity = await add_identity(store)
    workers = [await database.worker("register", identity.id, name, "60") for name in ("a", "b")]
    for worker in workers:
        worker.go()
    writing = asyncio.gather(*(worker.rest() for worker in workers))
    tasks, upstream_tasks, at = {}, {}, 0
    while True:
        no_more = writing.done()
        part = await store.changes(at, limit=7)
        tasks |= part.tasks
        upstream_tasks |= part.upstream_tasks
        at = part.sequence
        if no_more and part.complete:
            break
    stored = (await store.tasks(limit=1000)).rows
    assert len(stored) == 120
    assert {(identity.id, task.thread_id): task.version for task in stored} == tasks
    assert {(identity.id, 1, task.upstream_key): task.upstream.version for task in stored} == upstream_tasks


@pytest.mark.parametrize("acknowledged", [1, 4, 9, 16])
async def test_what_was_acknowledged_survives_kill_9(database: object, acknowledged: int) -> None:
    """A writer killed at any moment loses nothing it had been told was done, and leaves nothing half done."""
    store = database.store()
    await store.open()
    identity = await add_identity(store)
    await store.close()
    worker = await database.worker("register", identity.id, "t", "10000")
    worker.go()
    done = [await worker.line() for _ in range(acknowledged)]
    worker.process.kill()
    done += (await worker.process.stdout.read()).decode().splitlines()
    after = database.store()
    await after.open()
    rows = {task.thread_id: task for task in (await after.tasks(limit=10_000)).rows}
    assert set(done) <= set(rows)
    for thread, task in rows.items():
        if thread in done:
            assert (TaskState.ACTIVE, f"sealed key of {thread}".encode()) == (
                task.effective_state,
                task.upstream.sealed_task_id,
            )
    assert len(rows) - len(done) <= 1
    await add_task(after, identity, "and on", now=NOW + 1000)


async def test_processes_that_start_together_migrate_once(database: object) -> None:
    """All of them find the newest schema; none fails because another was quicker."""
    workers = [await database.worker("migrate") for _ in range(3)]
    for worker in workers:
        worker.go()
    said = await asyncio.gather(*(worker.rest() for worker in workers))
    assert said == [[schema.REVISION]] * 3
    assert database.execute("SELECT version_num FROM alembic_version") == [(schema.REVISION,)]


@pytest.mark.parametrize("statements", [1, 2, 5, 12, 20, 35, 0])
async def test_a_migration_killed_in_the_middle_leaves_nothing(database: object, statements: int) -> None:
    """After kill -9 the database is as before, and the next start migrates it."""
    worker = await database.worker("migrate_and_die", str(statements))
    worker.go()
    assert await worker.line() == ""
    assert await worker.process.wait() == -9
    assert database.execute("SELECT name FROM sqlite_master") == []
    assert database.execute("PRAGMA application_id") == [(0,)]
    store = database.store()
    await store.open()
    await add_identity(store)
