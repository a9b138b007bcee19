"""The database as a whole: its key ring, what changed, what it holds, what may go."""

from typing import Any

from sqlalchemy import Connection, Table, delete, func, select, update

from broker.model import IdentityId, IdentityState, TaskState, UpstreamKey
from broker.store import Changes, StoreStatistics, rows, schema, tasks
from broker.store.transaction import WriteTransaction

_meta = schema.meta
_requests = schema.create_requests


def bind_keyring(tx: WriteTransaction, keyring_id: str) -> str:
    """Note the key ring if none is noted yet; return the noted one."""
    tx.execute(update(_meta).where(_meta.c.keyring_id.is_(None)).values(keyring_id=keyring_id))
    return str(tx.execute(select(_meta.c.keyring_id)).scalar_one())


def keyring_id(connection: Connection) -> str | None:
    """Return the noted key ring."""
    noted = connection.execute(select(_meta.c.keyring_id)).scalar_one()
    return None if noted is None else str(noted)


def change_sequence(connection: Connection) -> int:
    """Return where the change counter stands."""
    return int(connection.execute(select(_meta.c.change_sequence)).scalar_one())


def changes(connection: Connection, after: int, *, limit: int) -> Changes:
    """
    Name the rows whose last write lies behind `after`, the first `limit` in the order of their writes.

    Every row took a counter value of its own, so the list can be cut anywhere.
    """
    now_at = change_sequence(connection)
    if now_at <= after:
        return Changes(sequence=now_at, complete=True)
    found: list[tuple[int, Table, Any]] = []
    for table in (schema.identities, schema.tasks, schema.upstream_tasks, schema.bearers):
        column = table.c.change_sequence
        keys = [table.c[name] for name in _KEYS[table.name]]
        written = select(column, table.c.version, *keys).where(column > after)
        found += [(row[0], table, row) for row in connection.execute(written.order_by(column).limit(limit + 1))]
    found.sort(key=lambda change: change[0])
    complete = len(found) <= limit
    listed = Changes(sequence=now_at if complete else found[limit - 1][0], complete=complete)
    for _, table, (_, version, *key) in found[:limit]:
        if table is schema.identities:
            listed.identities[IdentityId(key[0])] = version
        elif table is schema.bearers:
            listed.bearers[IdentityId(key[0])] = version
        elif table is schema.tasks:
            listed.tasks[IdentityId(key[0]), rows.thread_of(key[1])] = version
        else:
            listed.upstream_tasks[IdentityId(key[0]), key[1], UpstreamKey(key[2])] = version
    return listed


_KEYS = {
    schema.identities.name: ("id",),
    schema.bearers.name: ("identity_id",),
    schema.tasks.name: ("identity_id", "thread_id"),
    schema.upstream_tasks.name: ("identity_id", "generation", "upstream_key"),
}


def statistics(connection: Connection, *, driver: str, schema_version: str) -> StoreStatistics:
    """Count rows by state; a state that does not exist (a damaged row) is left out."""
    return StoreStatistics(
        driver=driver,
        schema_version=schema_version,
        identities={IdentityState(s): n for s, n in _count(connection, schema.identities) if s in list(IdentityState)},
        tasks={TaskState(s): n for s, n in _count(connection, schema.tasks) if s in list(TaskState)},
        orphaned_upstream_tasks=connection.execute(
            select(func.count()).select_from(schema.orphaned_upstream_tasks)
        ).scalar_one(),
    )


def prune(tx: WriteTransaction, now: float, *, limit: int) -> int:
    """Remove at most `limit` remembered requests and tombstones whose time is over."""
    over = select(_requests.c.request_id).where(_requests.c.purge_time <= now).limit(limit)
    forgotten = tx.execute(over).scalars().all()
    if forgotten:
        tx.execute(delete(_requests).where(_requests.c.request_id.in_(forgotten)))
    return len(forgotten) + tasks.prune(tx, now, limit=limit - len(forgotten))


def _count(connection: Connection, table: Table) -> list[tuple[str, int]]:
    counted = connection.execute(select(table.c.state, func.count()).group_by(table.c.state))
    return [(state, number) for state, number in counted]
