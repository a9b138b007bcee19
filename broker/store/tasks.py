"""
Bindings, upstream tasks and claims: the statements behind the contract in `broker.store`.

How a claim moves an upstream task (a release leaves it CLAIMED without a lease, free for the next):

    no row, released, ended, revoked, expired  --claim-->     CLAIMED, leased      fencing token grows
    CLAIMED, lease over                        --claim-->     CLAIMED, leased      fencing token grows, orphan recorded
    ACTIVE, lives                              --replace-->   ACTIVE, leased       fencing token grows
    ACTIVE, lives, lease over                  --replace-->   ACTIVE, leased       fencing token grows, orphan recorded
    CLAIMED or ACTIVE, leased                  --complete-->  ACTIVE               same fencing token only
    CLAIMED or ACTIVE, leased                  --release-->   as it was, no lease  same fencing token only
    CLAIMED or ACTIVE                          --end, revoke--> ENDED, REVOKED     orphan recorded if it was leased

The version of an ACTIVE upstream task names what the backend answered. So it stays when a successor is claimed or given
up: nothing that callers have has changed, and the lease is nobody's concern but of those who claim.

Version and fencing token of a new row begin where the change counter stands and then grow by one. The counter moves
with every write, so both keep growing even when a row is pruned and its key comes back: neither a holder of an old
claim nor a revision of an old task can be mistaken for the new one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from broker.errors import GenerationChangedError, RowCorruptError
from broker.model import IdentityId, IdentityState, Task, TaskKind, TaskState, ThreadId, UpstreamKey, UpstreamTask
from broker.store import Claimed, ClaimOutcome, Damaged, HeldElsewhere, Page, Standing, TaskClaim, rows, schema
from broker.store.transaction import WriteTransaction

_identities = schema.identities
_tasks = schema.tasks
_upstream = schema.upstream_tasks
_orphans = schema.orphaned_upstream_tasks

_pending = schema.pending_agents

_REGISTERS_TASKS = (IdentityState.ACTIVE.value, IdentityState.ROTATING.value)
_REGISTERS_TASKS_AHEAD = (*_REGISTERS_TASKS, IdentityState.REJECTED.value, IdentityState.REAUTH_REQUIRED.value)
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


def background_of(connection: Connection, identity_ids: Collection[IdentityId]) -> dict[IdentityId, Task | Damaged]:
    """Return the background tasks of identities, by their ids, each as `by_thread` does."""
    found = _bindings().where(
        _tasks.c.identity_id.in_(identity_ids),
        _tasks.c.kind == TaskKind.BACKGROUND.value,
        _tasks.c.thread_id == schema.NO_THREAD,
    )
    return {row["identity_id"]: rows.or_damaged(rows.task_from, row) for row in connection.execute(found).mappings()}


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
    readable, corrupt = _read(listed[:limit])
    return Page(rows=readable, next_after=listed[limit - 1]["id"] if len(listed) > limit else None, corrupt=corrupt)


def live(connection: Connection, *, now: float, after: str, limit: int) -> Page[Task]:
    """
    List the bindings whose upstream task lives, by that one's end and, where they share it, by their own id.

    In this order one index leads from upstream task to upstream task past all that are over, and another from binding
    to binding past all that ended.
    """
    place = _LivePlace.read(after) if after else None
    listed: list[RowMapping] = []
    if place is not None:
        # First what is left of the upstream task at which the last page ended.
        its_own = _is(place.identity_id, place.generation, place.key)
        rest = _live_bindings(now).where(*its_own, _tasks.c.id > place.task_id)
        listed += connection.execute(rest.order_by(_tasks.c.id).limit(limit + 1)).mappings()
    if len(listed) <= limit:
        order = (_upstream.c.expire_time, _upstream.c.identity_id, _upstream.c.upstream_key, _upstream.c.generation)
        found = _live_bindings(now).order_by(*order, _tasks.c.id).limit(limit + 1 - len(listed))
        if place is not None:
            last = (place.expire_time, place.identity_id, place.key, place.generation)
            found = found.where(tuple_(*order) > tuple_(*last))
        listed += connection.execute(found).mappings()
    readable, corrupt = _read(listed[:limit])
    more = len(listed) > limit
    return Page(rows=readable, next_after=str(_LivePlace.of(listed[limit - 1])) if more else None, corrupt=corrupt)


@dataclass(frozen=True, slots=True)
class _LivePlace:
    """Where a page of live bindings ended."""

    expire_time: float
    identity_id: IdentityId
    key: UpstreamKey
    generation: int
    task_id: str

    @classmethod
    def of(cls, row: RowMapping) -> Self:
        identity_id, expire_time, key, generation = (
            row[f"{rows.UPSTREAM_PREFIX}{column}"]
            for column in ("identity_id", "expire_time", "upstream_key", "generation")
        )
        return cls(expire_time, identity_id, key, generation, row["id"])

    @classmethod
    def read(cls, text: str) -> Self:
        expire_time, generation, identity_id, task_id, key = text.split("\n", maxsplit=4)
        return cls(float(expire_time), IdentityId(identity_id), UpstreamKey(key), int(generation), task_id)

    def __str__(self) -> str:
        # The key is the only one that might hold a line's end.
        return f"{self.expire_time!r}\n{self.generation}\n{self.identity_id}\n{self.task_id}\n{self.key}"


def _live_bindings(now: float) -> Select[Any]:
    """Select live bindings through upstream tasks that live, of the identity's current generation."""
    of_identity = and_(_identities.c.id == _upstream.c.identity_id, _identities.c.generation == _upstream.c.generation)
    of_upstream = and_(
        _tasks.c.identity_id == _upstream.c.identity_id, _tasks.c.upstream_key == _upstream.c.upstream_key
    )
    return (
        select(*_tasks.c, *rows.UPSTREAM_COLUMNS)
        .select_from(_upstream.join(_identities, of_identity).join(_tasks, of_upstream))
        .where(schema.ACTIVE, schema.LIVE, _upstream.c.expire_time > now)
    )


def _read(listed: Sequence[RowMapping]) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """Return the bindings that can be read, and the ids of those that cannot."""
    readable, corrupt = [], []
    for row in listed:
        try:
            readable.append(rows.task_from(row))
        except RowCorruptError:
            corrupt.append(rows.readable(row["id"]))
    return tuple(readable), tuple(corrupt)


# --- use -------------------------------------------------------------------------------------------------------------


def touch(tx: WriteTransaction, uses: Sequence[tuple[str, float]]) -> None:
    """Note when bindings were last used; nobody who follows `changes` need know."""
    later = and_(_tasks.c.id == bindparam("task"), _tasks.c.last_use_time < bindparam("used"))
    tx.execute_each(
        update(_tasks).where(later).values(last_use_time=bindparam("used")),
        [{"task": task_id, "used": use_time} for task_id, use_time in uses],
    )


# --- claims ----------------------------------------------------------------------------------------------------------


def claim(tx: WriteTransaction, wish: TaskClaim) -> ClaimOutcome:
    """
    Create or find the binding and, where its upstream task does not live or is to be replaced, claim that.

    Raises:
        GenerationChangedError: nothing may be registered for the identity in that generation.
    """
    # 1. The identity must still be what the caller saw.
    current_generation = _require_generation(tx, wish)
    # 2. The binding: new, standing, or begun anew.
    task = by_thread(tx.connection, wish.identity_id, wish.thread_id)
    if task is not None and wish.generation != current_generation:
        task = replace(task, upstream=_stored(tx.connection, wish.identity_id, wish.generation, task.upstream_key))
    if task is not None and task.state is not TaskState.ACTIVE and not (wish.restart or _is_over(task, wish.now)):
        return Standing(task)
    task = _bind(tx, wish, task)
    # 3. Its upstream task: living, held by another, or ours to register.
    upstream = task.upstream
    lives = upstream is not None and _lives(upstream, wish.now)
    if upstream is not None and lives and upstream.version != wish.replace:
        return Standing(task)
    if upstream is not None and upstream.lease_expire_time is not None and upstream.lease_expire_time > wish.now:
        return HeldElsewhere(task)
    if upstream is None:
        claimed = _claim_first(tx, wish, older_than=current_generation)
    else:
        claimed = _claim_successor(tx, wish, upstream) if lives else _claim_anew(tx, wish, upstream)
    return Claimed(replace(_note_use(tx, task, wish.now), upstream=claimed))


def _require_generation(tx: WriteTransaction, wish: TaskClaim) -> int:
    """
    Return the identity's generation when tasks may be registered in that of the wish.

    Raises:
        GenerationChangedError: they may not.
    """
    epoch = (
        select(_identities.c.state, _identities.c.generation, _pending.c.generation, _pending.c.agent_runtime_id)
        .select_from(_identities.outerjoin(_pending, _pending.c.identity_id == _identities.c.id))
        .where(_identities.c.id == wish.identity_id)
    )
    found = tx.execute(epoch).first()
    if found is not None:
        state, generation, pending_generation, pending_runtime_id = tuple(found)
        if wish.generation == generation and state in _REGISTERS_TASKS:
            return int(generation)
        # Before the agent on its way has its tasks, an identity that is rejected has none that work.
        is_ahead = wish.generation == pending_generation and pending_generation > generation
        if is_ahead and pending_runtime_id is not None and state in _REGISTERS_TASKS_AHEAD:
            return int(generation)
    raise GenerationChangedError(note="the identity is gone, of another generation, or in a state without tasks")


def _note_use(tx: WriteTransaction, task: Task, now: float) -> Task:
    """Keep a binding that is claimed for from being pruned as unused before its next use is noted."""
    if task.last_use_time >= now:
        return task
    tx.execute(update(_tasks).where(_tasks.c.id == task.id).values(last_use_time=now))
    return replace(task, last_use_time=now)


def _is_over(tombstone: Task, now: float) -> bool:
    """Say whether a tombstone is only waiting to be pruned: then it is as if it were gone."""
    return tombstone.purge_time is not None and tombstone.purge_time <= now


def complete(
    tx: WriteTransaction, held: UpstreamTask, *, sealed_task_id: bytes, now: float, expire_time: float | None
) -> UpstreamTask | None:
    """Make a claim ACTIVE with the backend's answer; None, and the answer recorded as orphaned, when it is lost."""
    current = _stored(tx.connection, held.identity_id, held.generation, held.key)
    is_holders = current is not None and current.fencing_token == held.fencing_token
    if current is not None and is_holders and _may_complete(tx, held):
        if current.lease_expire_time is not None:
            return _write(
                tx,
                replace(
                    current,
                    state=TaskState.ACTIVE,
                    lease_expire_time=None,
                    sealed_task_id=sealed_task_id,
                    # Where it replaces one that lives, it begins now.
                    create_time=current.create_time if current.state is TaskState.CLAIMED else now,
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


def _may_complete(tx: WriteTransaction, held: UpstreamTask) -> bool:
    """Say whether the generation of a claim is the identity's, or still on its way to be."""
    generations = union_all(
        select(_identities.c.generation).where(_identities.c.id == held.identity_id),
        select(_pending.c.generation).where(_pending.c.identity_id == held.identity_id),
    )
    return held.generation in tx.execute(generations).scalars().all()


def release(tx: WriteTransaction, held: UpstreamTask, *, now: float, answer_lost: bool) -> None:
    """Free a claim that came to nothing; with `answer_lost` it is recorded as orphaned."""
    current = _stored(tx.connection, held.identity_id, held.generation, held.key)
    if current is not None and _holds(current, held):
        if current.state is TaskState.CLAIMED:
            _write(tx, replace(current, lease_expire_time=None, update_time=now))
        else:
            _write_lease(tx, replace(current, lease_expire_time=None))
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


def record_orphans(tx: WriteTransaction, *which: ColumnElement[bool], now: float) -> None:
    """Note the claims of upstream tasks that are about to be removed: the backend may have a task of each."""
    for row in tx.execute(select(_upstream).where(*which, _upstream.c.lease_expire_time.is_not(None))).mappings():
        _record_orphan(tx, rows.upstream_from(row), now=now)


# --- another generation -----------------------------------------------------------------------------------------------


def make_current(tx: WriteTransaction, identity_id: IdentityId, generation: int, *, now: float) -> None:
    """
    Let the tasks that were registered ahead for a generation be the identity's, in the place of the former ones.

    They take new values of the change counter, so that whoever follows `changes` meets them once they are current.
    """
    ahead = (_upstream.c.identity_id == identity_id, _upstream.c.generation == generation)
    keys = tx.execute(select(_upstream.c.upstream_key).where(*ahead)).scalars().all()
    former = (_upstream.c.identity_id == identity_id, _upstream.c.upstream_key.in_(keys))
    _remove(tx, *former, _upstream.c.generation < generation, now=now)
    named = [{"key": key, "change": tx.next_change()} for key in keys]
    place = (_upstream.c.identity_id == identity_id, _upstream.c.upstream_key == bindparam("key"))
    statement = update(_upstream).where(*place, _upstream.c.generation == generation)
    tx.execute_each(statement.values(change_sequence=bindparam("change")), named)


def forget_generation(tx: WriteTransaction, identity_id: IdentityId, generation: int, *, now: float) -> None:
    """Remove the tasks that were registered ahead for a generation; claims in flight are remembered as orphaned."""
    _remove(tx, _upstream.c.identity_id == identity_id, _upstream.c.generation == generation, now=now)


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
            last_use_time=now,
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
            last_use_time=wish.now,
        )
        return replace(_insert_binding(tx, new), upstream=standing)
    # An identity's task layout may have been changed since. The upstream task under the old key is left alone:
    # replicas that have not seen the change yet go on using it.
    bound = replace(
        found,
        state=TaskState.ACTIVE,
        upstream_key=wish.upstream_key,
        update_time=wish.now,
        purge_time=None,
        last_use_time=max(found.last_use_time, wish.now),
    )
    return replace(_write_binding(tx, bound), upstream=standing)


def _claim_first(tx: WriteTransaction, wish: TaskClaim, *, older_than: int) -> UpstreamTask:
    # The present generation's goes on being used while one ahead of it is registered.
    _forget(tx, wish.identity_id, wish.upstream_key, older_than=older_than, now=wish.now)
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


def _claim_successor(tx: WriteTransaction, wish: TaskClaim, living: UpstreamTask) -> UpstreamTask:
    if living.lease_expire_time is not None:
        _record_orphan(tx, living, now=wish.now)
    return _write_lease(
        tx,
        replace(living, fencing_token=living.fencing_token + 1, lease_expire_time=wish.now + wish.lease_seconds),
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


def _write_lease(tx: WriteTransaction, upstream: UpstreamTask) -> UpstreamTask:
    """Write who may replace a living upstream task, which leaves its version alone; see the top of this module."""
    place = _is(upstream.identity_id, upstream.generation, upstream.key)
    lease = {"fencing_token": upstream.fencing_token, "lease_expire_time": upstream.lease_expire_time}
    tx.execute(update(_upstream).where(*place).values(**lease, change_sequence=tx.next_change()))
    return upstream


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


def _forget(tx: WriteTransaction, identity_id: IdentityId, key: UpstreamKey, *, older_than: int, now: float) -> None:
    """Remove the passed generations of an upstream task."""
    place = (_upstream.c.identity_id == identity_id, _upstream.c.upstream_key == key)
    _remove(tx, *place, _upstream.c.generation < older_than, now=now)


def _remove(tx: WriteTransaction, *which: ColumnElement[bool], now: float) -> None:
    """Remove upstream tasks; a claim that was in flight is remembered as orphaned."""
    record_orphans(tx, *which, now=now)
    tx.execute(delete(_upstream).where(*which))
