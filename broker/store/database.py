"""The database as a whole: its key ring, what changed, what it holds."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, TextClause, func, select, update

from broker.model import IdentityId, IdentityState, RefreshState, TaskState, UpstreamKey
from broker.store import Changes, StoreStatistics, rows, schema
from broker.store.transaction import WriteTransaction

_meta = schema.meta


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
    for table, (version, *keys) in _NAMED.items():
        column = table.c.change_sequence
        written = select(column, version, *keys).where(column > after)
        found += [(row[0], table, row) for row in connection.execute(written.order_by(column).limit(limit + 1))]
    found.sort(key=lambda change: change[0])
    complete = len(found) <= limit
    listed = Changes(sequence=now_at if complete else found[limit - 1][0], complete=complete)
    for _, table, (_, version, *key) in found[:limit]:
        if table is schema.identities:
            listed.identities[IdentityId(key[0])] = version
        elif table is schema.bearers:
            listed.bearers[IdentityId(key[0])] = version
        elif table is schema.ladders:
            listed.ladders[IdentityId(key[0])] = version
        elif table in (schema.tasks, schema.pruned_tasks):
            listed.tasks[IdentityId(key[0]), rows.thread_of(key[1])] = version
        else:
            listed.upstream_tasks[IdentityId(key[0]), key[1], UpstreamKey(key[2])] = version
    return listed


_NAMED = {
    schema.identities: (schema.identities.c.version, schema.identities.c.id),
    schema.bearers: (schema.bearers.c.version, schema.bearers.c.identity_id),
    schema.ladders: (schema.ladders.c.version, schema.ladders.c.identity_id),
    schema.tasks: (schema.tasks.c.version, schema.tasks.c.identity_id, schema.tasks.c.thread_id),
    # Of a binding that is gone, a version beyond any that it had; see `broker.store.tasks`.
    schema.pruned_tasks: (
        schema.pruned_tasks.c.change_sequence,
        schema.pruned_tasks.c.identity_id,
        schema.pruned_tasks.c.thread_id,
    ),
    schema.upstream_tasks: (
        schema.upstream_tasks.c.version,
        schema.upstream_tasks.c.identity_id,
        schema.upstream_tasks.c.generation,
        schema.upstream_tasks.c.upstream_key,
    ),
}
"""Whose writes `changes` names: the version of a row, and the columns it is named by."""


def statistics(connection: Connection, *, driver: str, schema_version: str) -> StoreStatistics:
    """
    Count rows by state; a state that does not exist (a damaged row) is left out.

    Of bindings, which may be very many, only indexes are read: those that live have no purge time.
    """
    live = _size(connection, schema.tasks, schema.LIVE)
    ended = {TaskState(s): n for s, n in _by_state(connection, schema.tasks, schema.TOMBSTONE) if s in list(TaskState)}
    return StoreStatistics(
        driver=driver,
        schema_version=schema_version,
        identities={
            IdentityState(s): n for s, n in _by_state(connection, schema.identities) if s in list(IdentityState)
        },
        tasks={TaskState.ACTIVE: live, **ended} if live else ended,
        orphaned_upstream_tasks=_size(connection, schema.orphaned_upstream_tasks),
        bearers_dead=_size(connection, schema.bearers, schema.bearers.c.refresh_state == RefreshState.DEAD.value),
        pending_agents=_size(connection, schema.pending_agents),
    )


def _by_state(connection: Connection, table: Table, *which: ColumnElement[bool] | TextClause) -> list[tuple[str, int]]:
    counted = connection.execute(select(table.c.state, func.count()).where(*which).group_by(table.c.state))
    return [(state, number) for state, number in counted]


def _size(connection: Connection, table: Table, *which: ColumnElement[bool] | TextClause) -> int:
    return connection.execute(select(func.count()).select_from(table).where(*which)).scalar_one()
