"""Identities with what belongs to them: the same as when each is read alone, in fewer statements."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from broker.errors import RowCorruptError
from broker.model import Identity, IdentityState, StoredLadder
from broker.store import Damaged, WholeIdentity
from broker.store.sql import SqlStore
from tests.support.stores import NOW, add_identity, add_task, agent_identity, bearer_identity, new_key


async def _fill(store: SqlStore) -> None:
    """Add identities that have all, some and none of what may belong to one; those of earlier tests are other ones."""
    await add_identity(store, agent_identity("nothing"))
    await add_identity(store, bearer_identity("bearer"), bearer=b"sealed")
    every = await add_identity(store, agent_identity("everything"), bearer=b"its own")
    await store.write_ladder(StoredLadder(identity_id=every.id, document="{}"))
    for thread in (None, "thread"):
        await add_task(store, every, thread)
    sharing = await add_identity(store, agent_identity("sharing"))
    for thread in (None, "thread"):
        await add_task(store, sharing, thread, key="shared")
    ahead = await add_identity(store, agent_identity("ahead"))
    await _register_ahead(store, ahead)
    await _register_ahead(store, await add_identity(store, agent_identity("rotated")), adopt=True)
    passed = await add_identity(store, agent_identity("passed"))
    await add_task(store, passed, None)
    await store.write_identity(replace(passed, generation=2))
    gone = await add_identity(store, agent_identity("gone"), bearer=b"sealed")
    await add_task(store, gone, None)
    await store.write_identity(replace(gone, state=IdentityState.DELETED))


async def _register_ahead(store: SqlStore, identity: Identity, *, adopt: bool = False) -> None:
    """Give the background an upstream task of this generation and of the next, and let the next be the present one."""
    await add_task(store, identity, None)
    claim = await store.claim_agent(identity.id, generation=1, now=NOW, lease_seconds=30, new_key=new_key())
    held = await store.record_agent(claim.pending, agent_runtime_id="next", now=NOW)
    assert held is not None
    await add_task(store, identity, None, generation=2)
    if adopt:
        assert await store.adopt_agent(held, now=NOW) is not None


async def _read_alone(store: SqlStore, identity: Identity) -> WholeIdentity:
    """Read an identity's belongings one by one, by the methods for single ones."""

    async def alone(reading: Any) -> Any:
        try:
            return await reading
        except RowCorruptError as error:
            return Damaged(error.note)

    return WholeIdentity(
        identity=identity,
        bearer=await alone(store.bearer(identity.id)),
        ladder=await alone(store.ladder(identity.id)),
        background=await alone(store.task(identity.id, None)),
    )


async def _pages(store: SqlStore, limit: int) -> tuple[list[WholeIdentity], list[str]]:
    found, corrupt, after = [], [], ""
    while True:
        page = await store.whole_identities(after=after, limit=limit)
        assert len(page.rows) <= limit
        found += page.rows
        corrupt += page.corrupt
        if page.next_after is None:
            return found, corrupt
        after = page.next_after


DAMAGE = {
    "nothing": [],
    "bearer": ["UPDATE bearers SET pair = 0"],
    "ladder": ["UPDATE ladders SET version = 0"],
    "binding": ["UPDATE tasks SET state = 'NONSENSE'"],
    "binding of one": [
        "UPDATE tasks SET version = 0 WHERE identity_id = (SELECT id FROM identities WHERE name = 'ahead')"
    ],
    "upstream task": ["UPDATE upstream_tasks SET state = 'NONSENSE'"],
    "old upstream task": ["UPDATE upstream_tasks SET version = 0 WHERE generation = 1"],
    "text": ["UPDATE bearers SET source = CAST(x'fffe' AS TEXT)"],
    "identity": ["UPDATE identities SET state = 'MAYBE' WHERE name = 'everything'"],
    "all": [
        "UPDATE bearers SET version = 0",
        "UPDATE ladders SET document = CAST(x'ff' AS TEXT)",
        "UPDATE upstream_tasks SET sealed_task_id = NULL",
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_page_is_what_reading_each_alone_gives(store: SqlStore, database: Any, damage: str) -> None:
    """Whatever belongs to an identity or is damaged of it, and wherever pages are cut; nothing spoils its neighbours."""
    await _fill(store)
    for statement in DAMAGE[damage]:
        database.execute(statement)
    listed = await store.identities()
    alone = [await _read_alone(store, identity) for identity in listed.rows]
    for limit in (1, 3, 100):
        assert await _pages(store, limit) == (alone, list(listed.corrupt))
    for each in alone:
        assert each == await store.whole_identity(each.identity.id)
    names = {each.identity.name: each for each in alone}
    assert names["nothing"] == WholeIdentity(
        identity=names["nothing"].identity, bearer=None, ladder=None, background=None
    )
    if damage == "nothing":
        everything, rotated = names["everything"], names["rotated"].background
        assert None not in (everything.bearer, everything.ladder, everything.background)
        assert rotated is not None
        assert rotated.upstream.generation == 2
        assert names["ahead"].background.upstream.generation == 1
        assert names["passed"].background.upstream is None
        assert "gone" not in names
    elif damage != "identity":
        assert any(isinstance(row, Damaged) for each in alone for row in (each.bearer, each.ladder, each.background))


@pytest.mark.parametrize("table", ["bearers", "ladders", "tasks", "upstream_tasks"])
async def test_a_damaged_part_of_the_file_spoils_what_it_holds(sqlite_database: Any, table: str) -> None:
    """A table that cannot be read at all is as if each of its rows were damaged; the identities are still there."""
    store = sqlite_database.store()
    await store.open()
    await _fill(store)
    await store.close()
    _overwrite_root(sqlite_database.path, table)
    await store.open()
    listed = await store.identities()
    alone = [await _read_alone(store, identity) for identity in listed.rows]
    assert await _pages(store, 3) == (alone, [])
    for each in alone:
        assert each == await store.whole_identity(each.identity.id)
    assert len(alone) == 7
    assert any(isinstance(row, Damaged) for each in alone for row in (each.bearer, each.ladder, each.background))
    assert any(row is not None and not isinstance(row, Damaged) for each in alone for row in (each.bearer, each.ladder))


def _overwrite_root(path: Path, table: str) -> None:
    """Make a table's first page no page; nothing may have the file open."""
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)


async def test_a_single_one_is_returned_in_whatever_state(store: SqlStore, database: Any) -> None:
    """Deleted ones too, as long as their row can be read; what is not there is None."""
    await _fill(store)
    [(deleted,)] = database.execute("SELECT id FROM identities WHERE name = 'gone'")
    found = await store.whole_identity(deleted)
    assert found is not None
    assert (found.identity.state, found.bearer) == (IdentityState.DELETED, None)
    assert await store.whole_identity("nobody") is None
    database.execute("UPDATE identities SET version = 0 WHERE id = ?", deleted)
    with pytest.raises(RowCorruptError):
        await store.whole_identity(deleted)


async def test_a_longer_page_costs_no_more_statements(store: SqlStore) -> None:
    """One statement a kind of row, however many identities there are, whatever belongs to them."""
    statements: list[str] = []
    engine = store._driver._lanes.read._engine

    @event.listens_for(engine, "before_cursor_execute")
    def note(_c: object, _k: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    counts = []
    for _ in range(2):
        for number in range(20):
            name = f"agent-{number}-{len(counts)}"
            identity = await add_identity(store, agent_identity(name), bearer=b"sealed")
            await store.write_ladder(StoredLadder(identity_id=identity.id, document="{}"))
            await add_task(store, identity, None)
        statements.clear()
        page = await store.whole_identities(limit=1000)
        counts.append((len(page.rows), len(statements)))
    assert [rows for rows, _ in counts] == [20, 40]
    assert counts[0][1] == counts[1][1] == 4
