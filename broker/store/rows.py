"""
From rows to the words of `broker.model` and back.

A file can be damaged, or edited by hand. What does not fit the model raises `RowCorruptError` for that row alone;
nothing is repaired and nothing guessed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, RowMapping

from broker.errors import RowCorruptError
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    Mode,
    Origin,
    PendingAgent,
    RefreshState,
    StoredBearer,
    StoredLadder,
    Task,
    TaskKind,
    TaskState,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)
from broker.store import Damaged, schema

Model = TypeVar("Model")

UPSTREAM_PREFIX: Final = "upstream__"
"""What stands before the names of `UPSTREAM_COLUMNS`."""

UPSTREAM_COLUMNS: Final[list[ColumnElement[Any]]] = [
    column.label(UPSTREAM_PREFIX + column.name) for column in schema.upstream_tasks.c
]
"""The columns of an upstream task beside those of its binding, for `task_from`."""


def identity_from(row: RowMapping) -> Identity:
    """
    Read a row of `identities`.

    Raises:
        RowCorruptError: a value does not fit the model.
    """
    with _corrupt_unless_read("identities", row["id"]):
        return Identity(
            id=IdentityId(_text(row["id"])),
            name=IdentityName(_text(row["name"])),
            backend=_text(row["backend"]),
            mode=Mode(row["mode"]),
            origin=Origin(row["origin"]),
            state=IdentityState(row["state"]),
            state_reason=_text(row["state_reason"]),
            former_state=None if row["former_state"] is None else IdentityState(row["former_state"]),
            account_id=_optional_text(row["account_id"]),
            user_id=_optional_text(row["user_id"]),
            email=_optional_text(row["email"]),
            plan_type=_optional_text(row["plan_type"]),
            fedramp=_flag(row["fedramp"]),
            assertions_enabled=_flag(row["assertions_enabled"]),
            bearer_source=_optional_text(row["bearer_source"]),
            agent_runtime_id=_optional_text(row["agent_runtime_id"]),
            public_key=_optional_text(row["public_key"]),
            sealed_private_key=_optional_bytes(row["sealed_private_key"]),
            generation=_count(row["generation"]),
            version=_count(row["version"]),
            create_time=_time(row["create_time"]),
            update_time=_time(row["update_time"]),
            expire_time=_optional_time(row["expire_time"]),
        )


def bearer_from(row: RowMapping) -> StoredBearer:
    """
    Read a row of `bearers`.

    Raises:
        RowCorruptError: a value does not fit the model.
    """
    with _corrupt_unless_read("bearers", row["identity_id"]):
        bearer = StoredBearer(
            identity_id=IdentityId(_text(row["identity_id"])),
            version=_count(row["version"]),
            pair=_count(row["pair"]),
            sealed=_optional_bytes(row["sealed"]),
            expire_time=_optional_time(row["expire_time"]),
            obtain_time=_optional_time(row["obtain_time"]),
            source=_optional_text(row["source"]),
            sealed_refresh_token=_optional_bytes(row["sealed_refresh_token"]),
            refresh_state=RefreshState(row["refresh_state"]),
            fencing_token=_count(row["fencing_token"]),
            lease_expire_time=_optional_time(row["lease_expire_time"]),
            retry_time=_optional_time(row["retry_time"]),
            reason=_text(row["reason"]),
        )
        if bearer.refresh_state in (RefreshState.IN_FLIGHT, RefreshState.PROBING):
            if bearer.sealed_refresh_token is None:
                raise ValueError("what is being sent is not there")
        elif bearer.lease_expire_time is not None:
            raise ValueError("a lease on what is not being sent")
        return bearer


def pending_agent_from(row: RowMapping) -> PendingAgent:
    """
    Read a row of `pending_agents`.

    Raises:
        RowCorruptError: a value does not fit the model.
    """
    with _corrupt_unless_read("pending_agents", row["identity_id"]):
        return PendingAgent(
            identity_id=IdentityId(_text(row["identity_id"])),
            generation=_count(row["generation"]),
            sealed_private_key=_optional_bytes(row["sealed_private_key"]),
            public_key=_optional_text(row["public_key"]),
            agent_runtime_id=_optional_text(row["agent_runtime_id"]),
            fencing_token=_count(row["fencing_token"]),
            lease_expire_time=_optional_time(row["lease_expire_time"]),
            version=_count(row["version"]),
            create_time=_time(row["create_time"]),
            update_time=_time(row["update_time"]),
        )


def ladder_from(row: RowMapping) -> StoredLadder:
    """
    Read a row of `ladders`.

    Raises:
        RowCorruptError: a value does not fit the model.
    """
    with _corrupt_unless_read("ladders", row["identity_id"]):
        return StoredLadder(
            identity_id=IdentityId(_text(row["identity_id"])),
            version=_count(row["version"]),
            document=_text(row["document"]),
        )


def upstream_from(row: RowMapping, *, prefix: str = "") -> UpstreamTask:
    """
    Read a row of `upstream_tasks`.

    Raises:
        RowCorruptError: a value does not fit the model.
    """
    with _corrupt_unless_read("upstream_tasks", (row[f"{prefix}identity_id"], row[f"{prefix}upstream_key"])):
        upstream = UpstreamTask(
            identity_id=IdentityId(_text(row[f"{prefix}identity_id"])),
            generation=_count(row[f"{prefix}generation"]),
            key=UpstreamKey(_text(row[f"{prefix}upstream_key"])),
            state=TaskState(row[f"{prefix}state"]),
            version=_count(row[f"{prefix}version"]),
            fencing_token=_count(row[f"{prefix}fencing_token"]),
            lease_expire_time=_optional_time(row[f"{prefix}lease_expire_time"]),
            sealed_task_id=_optional_bytes(row[f"{prefix}sealed_task_id"]),
            create_time=_time(row[f"{prefix}create_time"]),
            update_time=_time(row[f"{prefix}update_time"]),
            expire_time=_end(row[f"{prefix}expire_time"]),
        )
        if upstream.state is TaskState.ACTIVE and upstream.sealed_task_id is None:
            raise ValueError("an active upstream task without the backend's answer")
        if upstream.state not in (TaskState.CLAIMED, TaskState.ACTIVE) and upstream.lease_expire_time is not None:
            raise ValueError("a lease on what is over")
        return upstream


def task_from(row: RowMapping) -> Task:
    """
    Read a row of `tasks`, joined with `UPSTREAM_COLUMNS` of the identity's current generation where there are any.

    Raises:
        RowCorruptError: a value does not fit the model.
    """
    upstream = upstream_from(row, prefix=UPSTREAM_PREFIX) if row[f"{UPSTREAM_PREFIX}identity_id"] is not None else None
    with _corrupt_unless_read("tasks", row["id"]):
        kind = TaskKind(row["kind"])
        thread_id = _text(row["thread_id"])
        if (kind is TaskKind.THREAD) == (thread_id == schema.NO_THREAD):
            raise ValueError("a thread's task has a thread_id, a background task has none")
        state = TaskState(row["state"])
        purge_time = _optional_time(row["purge_time"])
        if (state is TaskState.ACTIVE) != (purge_time is None):
            raise ValueError("an ended binding has a purge time, a live one has none")
        return Task(
            id=_text(row["id"]),
            identity_id=IdentityId(_text(row["identity_id"])),
            kind=kind,
            thread_id=thread_of(thread_id),
            state=state,
            upstream_key=UpstreamKey(_text(row["upstream_key"])),
            version=_count(row["version"]),
            create_time=_time(row["create_time"]),
            update_time=_time(row["update_time"]),
            purge_time=purge_time,
            last_use_time=_time(row["last_use_time"]),
            upstream=upstream,
        )


def or_damaged(read: Callable[[RowMapping], Model], row: RowMapping) -> Model | Damaged:
    """Read a row by one of the functions above; `Damaged` stands for what does not fit the model."""
    try:
        return read(row)
    except RowCorruptError as error:
        return Damaged(error.note)


def identity_values(identity: Identity) -> dict[str, Any]:
    """Return the columns of an identity, all but the change counter."""
    return {
        "id": identity.id,
        "name": identity.name,
        "backend": identity.backend,
        "mode": identity.mode.value,
        "origin": identity.origin.value,
        "state": identity.state.value,
        "state_reason": identity.state_reason,
        "former_state": None if identity.former_state is None else identity.former_state.value,
        "account_id": identity.account_id,
        "user_id": identity.user_id,
        "email": identity.email,
        "plan_type": identity.plan_type,
        "fedramp": identity.fedramp,
        "assertions_enabled": identity.assertions_enabled,
        "bearer_source": identity.bearer_source,
        "agent_runtime_id": identity.agent_runtime_id,
        "public_key": identity.public_key,
        "sealed_private_key": identity.sealed_private_key,
        "generation": identity.generation,
        "version": identity.version,
        "create_time": identity.create_time,
        "update_time": identity.update_time,
        "expire_time": identity.expire_time,
    }


def bearer_values(bearer: StoredBearer) -> dict[str, Any]:
    """Return the columns of a bearer, all but the change counter."""
    return {
        "identity_id": bearer.identity_id,
        "version": bearer.version,
        "pair": bearer.pair,
        "sealed": bearer.sealed,
        "expire_time": bearer.expire_time,
        "obtain_time": bearer.obtain_time,
        "source": bearer.source,
        "sealed_refresh_token": bearer.sealed_refresh_token,
        "refresh_state": bearer.refresh_state.value,
        "fencing_token": bearer.fencing_token,
        "lease_expire_time": bearer.lease_expire_time,
        "retry_time": bearer.retry_time,
        "reason": bearer.reason,
    }


def pending_agent_values(pending: PendingAgent) -> dict[str, Any]:
    """Return the columns of an agent on its way."""
    return {
        "identity_id": pending.identity_id,
        "generation": pending.generation,
        "sealed_private_key": pending.sealed_private_key,
        "public_key": pending.public_key,
        "agent_runtime_id": pending.agent_runtime_id,
        "fencing_token": pending.fencing_token,
        "lease_expire_time": pending.lease_expire_time,
        "version": pending.version,
        "create_time": pending.create_time,
        "update_time": pending.update_time,
    }


def ladder_values(ladder: StoredLadder) -> dict[str, Any]:
    """Return the columns of a ladder, all but the change counter."""
    return {"identity_id": ladder.identity_id, "version": ladder.version, "document": ladder.document}


def upstream_values(upstream: UpstreamTask) -> dict[str, Any]:
    """Return the columns of an upstream task, all but the change counter."""
    return {
        "identity_id": upstream.identity_id,
        "generation": upstream.generation,
        "upstream_key": upstream.key,
        "state": upstream.state.value,
        "version": upstream.version,
        "fencing_token": upstream.fencing_token,
        "lease_expire_time": upstream.lease_expire_time,
        "sealed_task_id": upstream.sealed_task_id,
        "create_time": upstream.create_time,
        "update_time": upstream.update_time,
        "expire_time": math.inf if upstream.expire_time is None else upstream.expire_time,
    }


def task_values(task: Task) -> dict[str, Any]:
    """Return the columns of a binding, all but the change counter."""
    return {
        "id": task.id,
        "identity_id": task.identity_id,
        "kind": task.kind.value,
        "thread_id": task.thread_id or schema.NO_THREAD,
        "state": task.state.value,
        "upstream_key": task.upstream_key,
        "version": task.version,
        "create_time": task.create_time,
        "update_time": task.update_time,
        "purge_time": task.purge_time,
        "last_use_time": task.last_use_time,
    }


def thread_of(column: str) -> ThreadId | None:
    """Return the thread that `tasks.thread_id` names, None for a background task."""
    return None if column == schema.NO_THREAD else ThreadId(column)


def readable(value: object) -> str:
    """Return what an operator can find a damaged row by, whatever became of it; never a secret column."""
    return str(value).encode("ascii", "backslashreplace").decode("ascii")[:128]


@contextmanager
def _corrupt_unless_read(table: str, key: object) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        # Neither the value nor the driver's words: the column may have held a secret.
        raise RowCorruptError(note=f"{table} {readable(key)}: {type(error).__name__}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode()  # a damaged text is read with lone surrogates (see `broker.store.sqlite`) and stops here
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("not bytes")
    return value


def _optional_bytes(value: object) -> bytes | None:
    return None if value is None else _bytes(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("not a counter")
    return value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("not a time")
    return float(value)


def _optional_time(value: object) -> float | None:
    return None if value is None else _time(value)


def _end(value: object) -> float | None:
    return None if value == math.inf else _time(value)


def _flag(value: object) -> bool:
    if value not in (0, 1):
        raise ValueError("not a flag")
    return bool(value)
