"""
Bindings, upstream tasks and claims: the statements behind the contract in `broker.store`.

How a claim moves an upstream task (a release leaves it CLAIMED without a lease, free for the next):

    no row, released, ended, revoked, expired  --claim-->     CLAIMED, leased      fencing token grows
    CLAIMED, lease over                        --claim-->     CLAIMED, leased      fencing token grows, orphan recorded
    CLAIMED, leased                            --complete-->  ACTIVE               same fencing token only
    CLAIMED, leased                            --release-->   CLAIMED, no lease    same fencing token only
    CLAIMED or ACTIVE                          --end, revoke--> ENDED, REVOKED     orphan recorded if it was leased

Version and fencing token of a new row begin where the change counter stands and then grow by one. The counter moves
with every write, so both keep growing even when a row is pruned and its key comes back: neither a holder of an old
claim nor a revision of an old task can be mistaken for the new one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, case, delete, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from broker.errors import GenerationChangedError, RowCorruptError
from broker.model import IdentityId, IdentityState, Task, TaskKind, TaskState, ThreadId, UpstreamKey, UpstreamTask
from broker.store import Claimed, ClaimOutcome, HeldElsewhere, Page, Standing, TaskClaim, rows, schema
from broker.store.transaction import WriteTransaction

_identities = schema.identities
_tasks = schema.tasks
_upstream = schema.upstream_tasks
_orphans = schema.orphaned_upstream_tasks

_UNFINISHED = (TaskState.CLAIMED, TaskState.ACTIVE)
"""The states of an upstream task that an end or a revocation still changes."""


# --- reading ---------------------------------------------------------------------------------------------------------


def by_thread(connection: Connection, identity_id: IdentityId, thread_id: ThreadId | None) -> Task | None:
    """Return a binding with its upstream task of the identity's current generation; thread None: background."""
    kind = TaskKind.BACKGROUND if thread_id is None else TaskKind.THREAD
    return _first(
        connection,
        _tasks.c.identity_id == identity_id,
        _tasks.c.kind == kind.value,
        _tasks.c.thread_id == (thread_id or schema.NO_THREAD),
    )


def by_id(connection: Connection, task_id: str) -> Task | None:
    """Return a binding by its own id."""
    return _first(connection, _tasks.c.id == task_id)


def page(
    connection: Connection, *, identity_id: IdentityId | None, state: TaskState | None, after: str, limit: int
) -> Page[Task]:
    """List bindings by id."""
    found = _bindings().order_by(_tasks.c.id).limit(limit + 1)
    if after:
        found = found.where(_tasks.c.id > after)
    if identity_id is not None:
        found = found.where(_tasks.c.identity_id == identity_id)
    if state is not None:
        # `Task.effective_state`, said in SQL.
        upstream_state = func.coalesce(_upstream.c.state, TaskState.CLAIMED.value)
        effective = case((_tasks.c.state == TaskState.ACTIVE.value, upstream_state), else_=_tasks.c.state)
        found = found.where(effective == state.value)
    listed = connection.execute(found).mappings().all()
    readable, corrupt = [], []
    for row in listed[:limit]:
        try:
            readable.append(rows.task_from(row))
        except RowCorruptError:
            corrupt.append(rows.readable(row["id"]))
    return Page(
        rows=tuple(readable),
        next_after=listed[limit - 1]["id"] if len(listed) > limit else None,
        corrupt=tuple(corrupt),
    )


# --- claims ----------------------------------------------------------------------------------------------------------


def claim(tx: WriteTransaction, wish: TaskClaim) -> ClaimOutcome:
    """
    Create or find the binding and, where its upstream task does not live, claim that.

    Raises:
        GenerationChangedError: the identity is gone, not ACTIVE, or has another generation.
    """
    # 1. The identity must still be what the caller saw.
    epoch = select(_identities.c.state, _identities.c.generation).where(_identities.c.id == wish.identity_id)
    if tx.execute(epoch).first() != (IdentityState.ACTIVE.value, wish.generation):
        raise GenerationChangedError(note="the identity is gone, not active, or of another generation")
    # 2. The binding: new, standing, or begun anew.
    task = by_thread(tx.connection, wish.identity_id, wish.thread_id)
    if task is not None and task.state is not TaskState.ACTIVE and not (wish.restart or _is_over(task, wish.now)):
        return Standing(task)
    task = _bind(tx, wish, task)
    # 3. Its upstream task: living, held by another, or ours to register.
    upstream = task.upstream
    if upstream is not None and _lives(upstream, wish.now):
        return Standing(task)
    if upstream is not None and upstream.lease_expire_time is not None and upstream.lease_expire_time > wish.now:
        return HeldElsewhere(task)
    claimed = _claim_anew(tx, wish, upstream) if upstream is not None else _claim_first(tx, wish)
    return Claimed(replace(task, upstream=claimed))


def _is_over(tombstone: Task, now: float) -> bool:
    """Say whether a tombstone is only waiting to be pruned: then it is as if it were gone."""
    return tombstone.purge_time is not None and tombstone.purge_time <= now


def complete(
    tx: WriteTransaction, held: UpstreamTask, *, sealed_task_id: bytes, now: float, expire_time: float | None
) -> UpstreamTask | None:
    """Make a claim ACTIVE with the backend's answer; None, and the answer recorded as orphaned, when it is lost."""
    current = _stored(tx.connection, held.identity_id, held.generation, held.key)
    current_generation = tx.execute(
        select(_identities.c.generation).where(_identities.c.id == held.identity_id)
    ).scalar_one_or_none()
    if current is not None and current_generation == held.generation and current.fencing_token == held.fencing_token:
        if current.lease_expire_time is not None:
            return _write(
                tx,
                replace(
                    current,
                    state=TaskState.ACTIVE,
                    lease_expire_time=None,
                    sealed_task_id=sealed_task_id,
                    update_time=now,
                    expire_time=expire_time,
                ),
            )
        if current.state is TaskState.ACTIVE and current.sealed_task_id == sealed_task_id:
            return current  # asked again, after an error that hid that the first time had worked
    _record_orphan(tx, held, now=now, sealed_task_id=sealed_task_id)
    if current is not None and _holds(current, held):
        _write(tx, replace(current, state=TaskState.ORPHANED, lease_expire_time=None, update_time=now))
    return None


def release(tx: WriteTransaction, held: UpstreamTask, *, now: float, answer_lost: bool) -> None:
    """Free a claim that came to nothing; with `answer_lost` it is recorded as orphaned."""
    current = _stored(tx.connection, held.identity_id, held.generation, held.key)
    if current is not None and _holds(current, held):
        _write(tx, replace(current, lease_expire_time=None, update_time=now))
    if answer_lost:
        _record_orphan(tx, held, now=now)
    else:
        # Whoever took the claim over had to fear that the backend has a task of ours. It has none, we know now.
        tx.execute(delete(_orphans).where(*_is_orphan_of(held), _orphans.c.sealed_task_id.is_(None)))


# --- ends ------------------------------------------------------------------------------------------------------------


def end(
    tx: WriteTransaction,
    identity_id: IdentityId,
    thread_id: ThreadId,
    *,
    now: float,
    purge_time: float,
    upstream_key: UpstreamKey | None,
) -> Task | None:
    """End a binding, and its upstream task when no other live binding shares it."""
    task = by_thread(tx.connection, identity_id, thread_id)
    if task is None and upstream_key is not None:
        return _leave_tombstone(tx, identity_id, thread_id, upstream_key, now=now, purge_time=purge_time)
    if task is None or task.state is not TaskState.ACTIVE:
        return task
    upstream = task.upstream
    if upstream is not None and not _sharing(tx.connection, task):
        upstream = _finish(tx, upstream, TaskState.ENDED, now=now)
    (ended,) = _take_down(tx, (task,), TaskState.ENDED, now=now, purge_time=purge_time)
    return replace(ended, upstream=upstream)


def revoke(
    tx: WriteTransaction, task_id: str, *, now: float, purge_time: float, include_sharing: bool
) -> tuple[Task, ...]:
    """Revoke a binding, its upstream task, and the live bindings that share that; see the contract for the refusal."""
    task = by_id(tx.connection, task_id)
    if task is None:
        return ()
    sharing = _sharing(tx.connection, task)
    if sharing and not include_sharing:
        return (task, *sharing)
    upstream = task.upstream and _finish(tx, task.upstream, TaskState.REVOKED, now=now)
    down = _take_down(tx, (task, *sharing), TaskState.REVOKED, now=now, purge_time=purge_time)
    return tuple(replace(each, upstream=upstream) for each in down)


# --- what may be forgotten -------------------------------------------------------------------------------------------


def prune(tx: WriteTransaction, now: float, *, limit: int) -> int:
    """
    Remove tombstones whose time is over and the bindings of deleted identities, at most `limit` of them together.

    Upstream tasks that no binding names any more go with them. Rows that are gone are not in `changes`.
    """
    named = (_tasks.c.id, _tasks.c.identity_id, _tasks.c.upstream_key)
    over = select(*named).where(_tasks.c.purge_time <= now).order_by(_tasks.c.purge_time).limit(limit)
    gone: list[Row[Any]] = [*tx.execute(over)]
    if len(gone) < limit:
        of_deleted = (
            select(*named)
            .join_from(_identities, _tasks, _tasks.c.identity_id == _identities.c.id)
            .where(schema.DELETED, _tasks.c.id.not_in([task.id for task in gone]))
            .limit(limit - len(gone))
        )
        gone += tx.execute(of_deleted)
    for task in gone:
        tx.execute(delete(_tasks).where(_tasks.c.id == task.id))
        shared = (_tasks.c.identity_id == task.identity_id, _tasks.c.upstream_key == task.upstream_key)
        if tx.execute(select(_tasks.c.id).where(*shared).limit(1)).first() is None:
            _forget(tx, task.identity_id, task.upstream_key, now=now)
    return len(gone)


# --- parts -----------------------------------------------------------------------------------------------------------


def _bindings() -> Select[Any]:
    """Select bindings, each with its upstream task of the identity's current generation."""
    current = and_(
        _upstream.c.identity_id == _tasks.c.identity_id,
        _upstream.c.upstream_key == _tasks.c.upstream_key,
        _upstream.c.generation == _identities.c.generation,
    )
    return select(*_tasks.c, *rows.UPSTREAM_COLUMNS).select_from(
        _tasks.join(_identities, _identities.c.id == _tasks.c.identity_id).outerjoin(_upstream, current)
    )


def _first(connection: Connection, *conditions: ColumnElement[bool]) -> Task | None:
    row = connection.execute(_bindings().where(*conditions)).mappings().first()
    return None if row is None else rows.task_from(row)


def _sharing(connection: Connection, task: Task) -> tuple[Task, ...]:
    """Return the other live bindings of the same upstream task."""
    others = _bindings().where(
        _tasks.c.identity_id == task.identity_id,
        _tasks.c.upstream_key == task.upstream_key,
        _tasks.c.state == TaskState.ACTIVE.value,
        _tasks.c.id != task.id,
    )
    return tuple(rows.task_from(row) for row in connection.execute(others.order_by(_tasks.c.id)).mappings())


def _lives(upstream: UpstreamTask, now: float) -> bool:
    return upstream.state is TaskState.ACTIVE and (upstream.expire_time is None or upstream.expire_time > now)


def _holds(current: UpstreamTask, held: UpstreamTask) -> bool:
    return current.fencing_token == held.fencing_token and current.lease_expire_time is not None


def _leave_tombstone(
    tx: WriteTransaction,
    identity_id: IdentityId,
    thread_id: ThreadId,
    upstream_key: UpstreamKey,
    *,
    now: float,
    purge_time: float,
) -> Task:
    """Insert the ended binding of a thread that never had a task."""
    return _insert_binding(
        tx,
        Task(
            id=tx.new_task_id(),
            identity_id=identity_id,
            kind=TaskKind.THREAD,
            thread_id=thread_id,
            state=TaskState.ENDED,
            upstream_key=upstream_key,
            version=0,
            create_time=now,
            update_time=now,
            purge_time=purge_time,
        ),
    )


def _insert_binding(tx: WriteTransaction, task: Task) -> Task:
    """Insert a new binding; its versions begin at the change counter, so that they never come again after a prune."""
    change = tx.next_change()
    new = replace(task, version=change)
    tx.execute(insert(_tasks).values(**rows.task_values(new), change_sequence=change))
    return new


def _bind(tx: WriteTransaction, wish: TaskClaim, found: Task | None) -> Task:
    """Return the live binding of the wish, written where it is new, began anew, or got another upstream task."""
    if found is not None and found.state is TaskState.ACTIVE and found.upstream_key == wish.upstream_key:
        return found
    standing = _stored(tx.connection, wish.identity_id, wish.generation, wish.upstream_key)
    if found is None:
        new = Task(
            id=tx.new_task_id(),
            identity_id=wish.identity_id,
            kind=wish.kind,
            thread_id=wish.thread_id,
            state=TaskState.ACTIVE,
            upstream_key=wish.upstream_key,
            version=0,
            create_time=wish.now,
            update_time=wish.now,
        )
        return replace(_insert_binding(tx, new), upstream=standing)
    # An identity's task layout may have been changed since. The upstream task under the old key is left alone:
    # replicas that have not seen the change yet go on using it.
    bound = replace(
        found, state=TaskState.ACTIVE, upstream_key=wish.upstream_key, update_time=wish.now, purge_time=None
    )
    return replace(_write_binding(tx, bound), upstream=standing)


def _claim_first(tx: WriteTransaction, wish: TaskClaim) -> UpstreamTask:
    _forget(tx, wish.identity_id, wish.upstream_key, now=wish.now)  # of earlier generations
    change = tx.next_change()
    claimed = UpstreamTask(
        identity_id=wish.identity_id,
        generation=wish.generation,
        key=wish.upstream_key,
        state=TaskState.CLAIMED,
        version=change,
        fencing_token=change,
        lease_expire_time=wish.now + wish.lease_seconds,
        create_time=wish.now,
        update_time=wish.now,
    )
    tx.execute(insert(_upstream).values(**rows.upstream_values(claimed), change_sequence=change))
    return claimed


def _claim_anew(tx: WriteTransaction, wish: TaskClaim, found: UpstreamTask) -> UpstreamTask:
    if found.lease_expire_time is not None:
        _record_orphan(tx, found, now=wish.now)
    return _write(
        tx,
        replace(
            found,
            state=TaskState.CLAIMED,
            fencing_token=found.fencing_token + 1,
            lease_expire_time=wish.now + wish.lease_seconds,
            sealed_task_id=None,
            create_time=found.create_time if found.state is TaskState.CLAIMED else wish.now,
            update_time=wish.now,
            expire_time=None,
        ),
    )


def _finish(tx: WriteTransaction, upstream: UpstreamTask, state: TaskState, *, now: float) -> UpstreamTask:
    if upstream.state not in _UNFINISHED:
        return upstream
    if upstream.lease_expire_time is not None:
        _record_orphan(tx, upstream, now=now)
    return _write(tx, replace(upstream, state=state, lease_expire_time=None, update_time=now))


def _take_down(
    tx: WriteTransaction, tasks: Sequence[Task], state: TaskState, *, now: float, purge_time: float
) -> list[Task]:
    """Write bindings as ended or revoked, many in one statement: everybody may share one upstream task."""
    down = [
        task
        if task.state is state
        else replace(task, state=state, version=task.version + 1, update_time=now, purge_time=purge_time)
        for task in tasks
    ]
    written = [
        {"task": task.id, "next_version": task.version, "change": tx.next_change()}
        for task, before in zip(down, tasks, strict=True)
        if task is not before
    ]
    if written:
        values = {"state": state.value, "update_time": now, "purge_time": purge_time}
        statement = (
            update(_tasks)
            .where(_tasks.c.id == bindparam("task"))
            .values(**values, version=bindparam("next_version"), change_sequence=bindparam("change"))
        )
        tx.connection.execute(statement, written)
    return down


def _stored(connection: Connection, identity_id: IdentityId, generation: int, key: UpstreamKey) -> UpstreamTask | None:
    row = connection.execute(select(_upstream).where(*_is(identity_id, generation, key))).mappings().first()
    return None if row is None else rows.upstream_from(row)


def _is(identity_id: IdentityId, generation: int, key: UpstreamKey) -> tuple[ColumnElement[bool], ...]:
    return (
        _upstream.c.identity_id == identity_id,
        _upstream.c.upstream_key == key,
        _upstream.c.generation == generation,
    )


def _write(tx: WriteTransaction, upstream: UpstreamTask) -> UpstreamTask:
    """Write an upstream task that was read in this transaction, with its version bumped."""
    written = replace(upstream, version=upstream.version + 1)
    values = rows.upstream_values(written)
    place = _is(upstream.identity_id, upstream.generation, upstream.key)
    tx.execute(update(_upstream).where(*place).values(**values, change_sequence=tx.next_change()))
    return written


def _write_binding(tx: WriteTransaction, task: Task) -> Task:
    """Write a binding that was read in this transaction, with its version bumped."""
    written = replace(task, version=task.version + 1)
    values = rows.task_values(written)
    tx.execute(update(_tasks).where(_tasks.c.id == task.id).values(**values, change_sequence=tx.next_change()))
    return written


def _record_orphan(
    tx: WriteTransaction, upstream: UpstreamTask, *, now: float, sealed_task_id: bytes | None = None
) -> None:
    """Note that the backend may have a task of this claim; its id is added when it turns up after all."""
    if tx.execute(select(_orphans.c.fencing_token).where(*_is_orphan_of(upstream))).first() is None:
        tx.execute(
            insert(_orphans).values(
                identity_id=upstream.identity_id,
                generation=upstream.generation,
                upstream_key=upstream.key,
                fencing_token=upstream.fencing_token,
                sealed_task_id=sealed_task_id,
                create_time=now,
            )
        )
    elif sealed_task_id is not None:
        tx.execute(update(_orphans).where(*_is_orphan_of(upstream)).values(sealed_task_id=sealed_task_id))


def _is_orphan_of(upstream: UpstreamTask) -> tuple[ColumnElement[bool], ...]:
    return (
        _orphans.c.identity_id == upstream.identity_id,
        _orphans.c.upstream_key == upstream.key,
        _orphans.c.generation == upstream.generation,
        _orphans.c.fencing_token == upstream.fencing_token,
    )


def _forget(tx: WriteTransaction, identity_id: IdentityId, key: UpstreamKey, *, now: float) -> None:
    """Remove all generations of an upstream task; a claim that was in flight is remembered as orphaned."""
    place = (_upstream.c.identity_id == identity_id, _upstream.c.upstream_key == key)
    for row in tx.execute(select(_upstream).where(*place, _upstream.c.lease_expire_time.is_not(None))).mappings():
        _record_orphan(tx, rows.upstream_from(row), now=now)
    tx.execute(delete(_upstream).where(*place))
