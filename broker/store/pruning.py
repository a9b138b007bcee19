"""
What may be forgotten, in bites: the statements behind `Store.prune`.

Each kind of row whose time is over is found in the order of an index, from its start: a bite costs what it removes,
however many rows there are. A bite runs few statements over many rows, since all writers wait for it.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, bindparam, delete, exists, insert, or_, select

from broker.store import schema, tasks
from broker.store.transaction import WriteTransaction

_requests = schema.create_requests
_tasks = schema.tasks
_pruned = schema.pruned_tasks
_deleted = schema.deleted_identities
_upstream = schema.upstream_tasks

_TOLD_SECONDS: Final = 8 * 86_400.0
"""How long it is told that a live binding was pruned: longer than any broker goes on without the store (7 days)."""


def prune(tx: WriteTransaction, now: float, *, idle_before: float, limit: int) -> int:
    """Remove at most `limit` rows whose time is over, of the kinds in the contract; return how many went."""
    gone = _prune_requests(tx, now, limit)
    gone += _prune_tombstones(tx, now, limit - gone)
    gone += _prune_bindings_of_deleted(tx, now, limit - gone)
    gone += _prune_idle(tx, now, idle_before, limit - gone)
    gone += _prune_expired(tx, now, limit - gone)
    return gone + _prune_what_was_told(tx, now, limit - gone)


def _prune_requests(tx: WriteTransaction, now: float, limit: int) -> int:
    over = select(_requests.c.request_id).where(_requests.c.purge_time <= now).order_by(_requests.c.purge_time)
    gone = tx.execute(over.limit(limit)).scalars().all()
    tx.execute_each(
        delete(_requests).where(_requests.c.request_id == bindparam("gone")), [{"gone": each} for each in gone]
    )
    return len(gone)


def _prune_tombstones(tx: WriteTransaction, now: float, limit: int) -> int:
    over = _bindings().where(_tasks.c.purge_time <= now).order_by(_tasks.c.purge_time)
    gone = tx.execute(over.limit(limit)).all()
    _remove(tx, gone, now=now)
    return len(gone)


def _prune_bindings_of_deleted(tx: WriteTransaction, now: float, limit: int) -> int:
    """Remove what deleted identities left; nobody need be told, since whoever follows knows that they are deleted."""
    removed = 0
    while removed < limit:
        first = select(_deleted.c.identity_id).order_by(_deleted.c.identity_id).limit(1)
        identity_id = tx.execute(first).scalar_one_or_none()
        if identity_id is None:
            break
        left = limit - removed
        gone = tx.execute(_bindings().where(_tasks.c.identity_id == identity_id).limit(left)).all()
        _remove(tx, gone, now=now, in_flight_too=True)
        removed += len(gone)
        if len(gone) < left:
            tx.execute(delete(_deleted).where(_deleted.c.identity_id == identity_id))
            removed += 1
    return removed


def _prune_idle(tx: WriteTransaction, now: float, idle_before: float, limit: int) -> int:
    over = _bindings().where(schema.LIVE, _tasks.c.last_use_time < idle_before).order_by(_tasks.c.last_use_time)
    gone = tx.execute(over.limit(limit)).all()
    told = [
        {"change_sequence": tx.next_change(), "identity_id": each.identity_id, "thread_id": each.thread_id}
        for each in gone
    ]
    tx.execute_each(insert(_pruned), [{**each, "prune_time": now} for each in told])
    _remove(tx, gone, now=now)
    return len(gone)


def _prune_expired(tx: WriteTransaction, now: float, limit: int) -> int:
    """Remove upstream tasks that are over; of those that somebody is replacing, when that came to nothing."""
    columns = (_upstream.c.identity_id, _upstream.c.upstream_key, _upstream.c.generation, _upstream.c.lease_expire_time)
    over = (
        select(*columns)
        .where(schema.ACTIVE, _upstream.c.expire_time <= now, _not_in_flight(now))
        .order_by(_upstream.c.expire_time)
        .limit(limit)
    )
    gone = tx.execute(over).all()
    for each in gone:
        if each.lease_expire_time is not None:
            of_each = _is_of(each.identity_id, each.upstream_key)
            tasks.record_orphans(tx, *of_each, _upstream.c.generation == each.generation, now=now)
    place = (*_is_of(bindparam("identity"), bindparam("key")), _upstream.c.generation == bindparam("of_generation"))
    tx.execute_each(
        delete(_upstream).where(*place),
        [{"identity": each.identity_id, "key": each.upstream_key, "of_generation": each.generation} for each in gone],
    )
    return len(gone)


def _prune_what_was_told(tx: WriteTransaction, now: float, limit: int) -> int:
    over = select(_pruned.c.change_sequence).where(_pruned.c.prune_time <= now - _TOLD_SECONDS)
    gone = tx.execute(over.order_by(_pruned.c.prune_time).limit(limit)).scalars().all()
    tx.execute_each(
        delete(_pruned).where(_pruned.c.change_sequence == bindparam("gone")), [{"gone": each} for each in gone]
    )
    return len(gone)


def _bindings() -> Select[Any]:
    """Select what is needed to remove bindings; `is_claimed` where their upstream task has a claim."""
    claims = exists().where(_names_upstream(), _upstream.c.lease_expire_time.is_not(None))
    return select(
        _tasks.c.id, _tasks.c.identity_id, _tasks.c.thread_id, _tasks.c.upstream_key, claims.label("is_claimed")
    )


def _remove(tx: WriteTransaction, bindings: Sequence[Row[Any]], *, now: float, in_flight_too: bool = False) -> None:
    """Remove bindings, and the upstream tasks that none names any more unless a claim of theirs is in flight."""
    tx.execute_each(
        delete(_tasks).where(_tasks.c.id == bindparam("gone")), [{"gone": binding.id} for binding in bindings]
    )
    unnamed = [~exists().where(_names_upstream())]
    if not in_flight_too:
        unnamed.append(_not_in_flight(now))
    keys = {(binding.identity_id, binding.upstream_key): binding.is_claimed for binding in bindings}
    for (identity_id, key), is_claimed in keys.items():
        if is_claimed:
            tasks.record_orphans(tx, *_is_of(identity_id, key), *unnamed, now=now)
    tx.execute_each(
        delete(_upstream).where(*_is_of(bindparam("identity"), bindparam("key")), *unnamed),
        [{"identity": identity_id, "key": key} for identity_id, key in keys],
    )


def _is_of(identity_id: Any, key: Any) -> tuple[ColumnElement[bool], ...]:
    return (_upstream.c.identity_id == identity_id, _upstream.c.upstream_key == key)


def _names_upstream() -> ColumnElement[bool]:
    return and_(_tasks.c.identity_id == _upstream.c.identity_id, _tasks.c.upstream_key == _upstream.c.upstream_key)


def _not_in_flight(now: float) -> ColumnElement[bool]:
    return or_(_upstream.c.lease_expire_time.is_(None), _upstream.c.lease_expire_time <= now)
