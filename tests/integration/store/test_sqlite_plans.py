"""Every query of the store finds its rows by an index, however large the tables are."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

from sqlalchemy import event

from broker.model import IdentityState, StoredLadder, TaskState
from broker.store.sql import SqlStore
from tests.support.stores import (
    LONG_AGO,
    NOW,
    add_identity,
    add_login,
    add_task,
    agent_identity,
    bearer_identity,
    create_request,
    new_key,
    task_claim,
)

_ONE_ROW_TABLES = ("meta", "alembic_version")


async def test_no_method_scans_a_table(store: SqlStore, database: Any) -> None:
    """SQLite's own plan of each statement that the methods run, counts for operators aside, names an index."""
    statements: dict[str, Any] = {}
    for lane in (store._driver._lanes.read, store._driver._lanes.write):

        @event.listens_for(lane._engine, "before_cursor_execute")
        def note(_c: object, _k: object, statement: str, parameters: Any, _x: object, many: bool) -> None:
            statements.setdefault(statement, parameters[0] if many else parameters)

    await _use_every_method(store)
    assert len(statements) > 80
    with closing(sqlite3.connect(database.path)) as connection:
        for statement, parameters in statements.items():
            if not statement.startswith(("SELECT", "UPDATE", "DELETE")):
                continue
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            for step in plan:
                assert _by_index(step, ordered=" LIMIT " in statement), (statement, plan)


def _by_index(step: str, *, ordered: bool) -> bool:
    """Whether a step is bounded: a search, or the walk along an index in the order of a list that ends at a limit."""
    if step.startswith("SCAN"):
        walk = ordered and " USING " in step and "INDEX" in step
        return walk or step.removeprefix("SCAN ").startswith(_ONE_ROW_TABLES)
    return "TEMP B-TREE" not in step


async def _use_every_method(store: SqlStore) -> None:
    await store.bind_keyring("ring")
    await store.keyring_id()
    request = create_request()
    identity = await store.create_identity(agent_identity(), request)
    await store.remembered_identity(request)
    gone = await add_identity(store, agent_identity("gone"), bearer=b"sealed")
    await store.bearer(gone.id)
    await add_task(store, gone, "t")
    await store.write_identity(replace(gone, state=IdentityState.DELETED))
    await store.identity(identity.id)
    await store.identity_named(identity.name)
    await store.identities(after="a\n0")
    await store.identities(after="a\n0", include_deleted=True)
    await store.whole_identity(identity.id)
    await store.whole_identities(after="a\n0")
    for thread in ("a", "b", "c", None):
        await add_task(store, identity, thread, key="shared")
    await store.task(identity.id, "a")
    held = (await store.claim_task(task_claim(identity, "d"))).task.upstream
    await store.release_claim(held, now=NOW, answer_lost=True)
    await store.release_claim(held, now=NOW, answer_lost=False)
    held = (await store.claim_task(task_claim(identity, "d"))).task.upstream
    await store.claim_task(task_claim(identity, "d", now=NOW + 100))
    await store.complete_claim(held, sealed_task_id=b"late", now=NOW, expire_time=None)
    await store.task_by_id("1")
    await store.tasks(after="1")
    await store.tasks(after="1", identity_id=identity.id, state=TaskState.ACTIVE)
    await store.end_task(identity.id, "a", now=NOW, purge_time=NOW)
    task = await store.task(identity.id, "b")
    await store.revoke_task(task.id, now=NOW, purge_time=NOW, include_sharing=True)
    await _refresh(store)
    await _change_key(store)
    await store.write_ladder(StoredLadder(identity_id=identity.id, document="{}"))
    await store.write_ladder(await store.ladder(identity.id))
    await store.touch_tasks([(task.id, NOW + 1)])
    await store.live_tasks(now=NOW, after=(await store.live_tasks(now=NOW, limit=1)).next_after)
    await store.changes(0)
    await store.change_sequence()
    await store.has_changed()
    await add_task(store, identity, "idle")
    await store.prune(NOW + 10, idle_before=NOW + 10)
    await store.prune(NOW + 1_000_000, idle_before=LONG_AGO)


async def _refresh(store: SqlStore) -> None:
    stored = await add_login(store, bearer_identity("login"))
    for end in (store.release_refresh, store.refuse_refresh):
        claim = await store.claim_refresh(stored.identity_id, pair=1, now=NOW, lease_seconds=30)
        more = {"retry_time": None} if end == store.release_refresh else {"reason": "invalid_grant", "now": NOW}
        await end(claim.bearer, **more)
    await store.complete_refresh(
        claim.bearer, sealed=b"s", sealed_refresh_token=None, expire_time=None, obtain_time=NOW
    )
    identity = await store.write_identity(await store.identity(stored.identity_id), bearer=replace(stored, pair=2))
    await store.write_identity(identity, bearer=None, request=create_request())


async def _change_key(store: SqlStore) -> None:
    identity = await add_identity(store, agent_identity("rotating"))
    living = await add_task(store, identity, "t")
    held = (await store.claim_task(task_claim(identity, "t", replace=living.upstream.version))).task.upstream
    await store.release_claim(held, now=NOW, answer_lost=False)
    for name in ("2", "3"):
        claim = await store.claim_agent(
            identity.id,
            generation=1,
            now=NOW,
            lease_seconds=30,
            new_key=new_key(name),
            request=create_request(),
        )
        held = await store.record_agent(claim.pending, agent_runtime_id=name, now=NOW)
        await add_task(store, identity, "t", generation=2)
        if name == "2":
            await store.release_agent(held, now=NOW)
            claim = await store.claim_agent(identity.id, generation=1, now=NOW, lease_seconds=30)
            await store.abandon_agent(claim.pending, now=NOW)
        else:
            await store.adopt_agent(held, now=NOW)
