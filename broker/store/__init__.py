"""
What the broker asks of its database, in words; `broker.store.sql` keeps it, for SQLite and PostgreSQL alike.

The contract, beyond each method's own:

- *Durable.* When a writing method returns, its effect survives `kill -9` and power loss. When it raises, it had no
  effect, or (only with `StoreDownError`) it may have had its whole effect, never a part.
- *One transaction a method.* No method leaves a transaction open; none is held across a network call.
- *Compare-and-set.* Every row has a `version` that each write bumps. A write names the version, fencing token or
  generation it read and fails with `GenerationChangedError` when another write came first. Rows are returned as
  written.
- *Claims.* At most one claim of an upstream task is in flight. It has a lease and a fencing token that only grows; a
  claim whose lease ran out is taken over with a higher token, and who held the lower one can no longer complete it.
  Versions and tokens of tasks do not begin at 1, and do not begin again when a row was pruned and its key comes back.
- *Changes.* Every write moves one change counter that orders all writes. `changes(after)` names every row written
  since, by any process that shares the database, so a reader that follows it misses nothing.
- *Errors.* A database that cannot be reached, is locked for longer than the busy limit, is full or read-only raises
  `StoreDownError`; driver exceptions and their texts never leave this package.
- *Secrets.* The store keeps bytes that are already sealed and never sees a plaintext secret.
- *Cancellation.* A cancelled method has either its whole effect or none, and leaves no connection in an unknown state.

All times are given by the caller, in Unix seconds: the store reads no clock.
"""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from broker.errors import StartupError
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    StoredBearer,
    Task,
    TaskKind,
    TaskState,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)


class SchemaTooNewError(StartupError):
    """A newer version of the broker wrote this database, in a form this version cannot read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """
    The caller's own name for one creation, so that repeating it after a cut connection cannot create twice.

    `fingerprint` is a digest of the request's content; the same `request_id` with another one is refused.
    """

    request_id: str
    fingerprint: bytes
    now: float
    remember_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskClaim:
    """A wish to use the upstream task `upstream_key` for (identity, thread) or (identity, background)."""

    identity_id: IdentityId
    generation: int
    kind: TaskKind
    thread_id: ThreadId | None
    upstream_key: UpstreamKey
    now: float
    lease_seconds: float
    restart: bool = False
    """Whether an ended or revoked binding begins anew (RegisterTask) or is returned as it is (GetAuthorization)."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The claim is ours: register at the backend, then complete or release with `task.upstream.fencing_token`."""

    task: Task


@dataclass(frozen=True, slots=True)
class Standing:
    """Nothing to register: the upstream task lives, or the binding has ended and `restart` was not asked for."""

    task: Task


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """Another holder's claim is in flight; its lease ends at `task.upstream.lease_expire_time`."""

    task: Task


ClaimOutcome = Claimed | Standing | HeldElsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """
    The rows written since a point of the change counter, each with the version it has now.

    `sequence` is where to ask from next; lower than what was asked, it says that the database was replaced by an older
    one and everything must be read anew. `complete` is False when more changes wait behind `limit`.
    """

    sequence: int
    complete: bool
    identities: dict[IdentityId, int] = field(default_factory=dict)
    tasks: dict[tuple[IdentityId, ThreadId | None], int] = field(default_factory=dict)
    upstream_tasks: dict[tuple[IdentityId, int, UpstreamKey], int] = field(default_factory=dict)
    bearers: dict[IdentityId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """What an operator wants to know of the store at a glance."""

    driver: str
    schema_version: str
    identities: dict[IdentityState, int]
    tasks: dict[TaskState, int]
    """Bindings by their own state."""
    orphaned_upstream_tasks: int
    """Upstream tasks that may exist at a backend although nobody uses them, because their answer was lost."""


Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """
    One page of a list; `next_after` continues it and is None on the last page.

    A row that cannot be read does not spoil its page: its name (of a task: its id) is in `corrupt`, and reading it
    alone raises `RowCorruptError`.
    """

    rows: tuple[Row, ...]
    next_after: str | None
    corrupt: tuple[str, ...] = ()


class Store(Protocol):
    """The broker's database. The contract stands at the top of this module."""

    async def open(self) -> None:
        """
        Connect and make the schema current.

        Migrations run under an exclusive lock, so that processes that start together run them once.

        Raises:
            SchemaTooNewError: a newer version of the broker wrote this database.
            StoreDownError: it cannot be reached.
        """
        ...

    async def close(self) -> None:
        """Close every connection; the store is not usable afterwards."""
        ...

    # --- the database as a whole -------------------------------------------------------------------------------------

    async def bind_keyring(self, keyring_id: str) -> str:
        """
        Note which key ring seals this database, once and for ever, and return the one that is noted.

        The first caller's `keyring_id` stays; everyone else gets that one back and must compare.
        """
        ...

    async def keyring_id(self) -> str | None:
        """Return the noted key ring, or None for a database in which nothing was sealed yet."""
        ...

    async def changes(self, after: int, *, limit: int = 1000) -> Changes:
        """Return what was written since the change counter stood at `after`; also the cheapest proof of contact."""
        ...

    async def change_sequence(self) -> int:
        """Return where the change counter stands now."""
        ...

    async def statistics(self) -> StoreStatistics:
        """Count rows by state."""
        ...

    async def prune(self, now: float, *, limit: int = 500) -> int:
        """
        Remove at most `limit` tombstones and remembered requests whose time is over; return how many went.

        The bindings of deleted identities count as tombstones. Upstream tasks that no binding names any more go with
        the last one. Whoever follows `changes` is not told: nothing may rest on a tombstone past its purge time.
        """
        ...

    # --- identities --------------------------------------------------------------------------------------------------

    async def create_identity(
        self, identity: Identity, request: CreateRequest, *, bearer: StoredBearer | None = None
    ) -> Identity:
        """
        Insert an identity, its bearer and the memory of the request that made it, together.

        When the request is remembered with the same fingerprint nothing is written and what it made is returned.

        Raises:
            IdentityExistsError: another, undeleted identity has the name.
            RequestIdReusedError: the request is remembered with another fingerprint.
        """
        ...

    async def remembered_identity(self, request: CreateRequest) -> Identity | None:
        """
        Return what a creation of that request made, None when it is not remembered.

        Raises:
            RequestIdReusedError: the request is remembered with another fingerprint.
        """
        ...

    async def write_identity(self, identity: Identity) -> Identity:
        """
        Replace the row of `identity.id` if its version is still `identity.version`; return it with the version bumped.

        The generation may stay or grow, never shrink. The sealed bearer of an identity that becomes DELETED goes too.

        Raises:
            GenerationChangedError: the row has another version, or is gone.
            IdentityExistsError: its name is new and another, undeleted identity has it.
        """
        ...

    async def identity(self, identity_id: IdentityId) -> Identity | None:
        """Return one identity in whatever state, deleted ones included."""
        ...

    async def identity_named(self, name: IdentityName) -> Identity | None:
        """Return the undeleted identity of that name."""
        ...

    async def identities(self, *, after: str = "", limit: int = 100, include_deleted: bool = False) -> Page[Identity]:
        """List identities by name, from the first whose place is behind `after`."""
        ...

    async def bearer(self, identity_id: IdentityId) -> StoredBearer | None:
        """Return the sealed bearer kept for an identity."""
        ...

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def task(self, identity_id: IdentityId, thread_id: ThreadId | None) -> Task | None:
        """Return a binding with its upstream task of the identity's current generation; thread None: background."""
        ...

    async def task_by_id(self, task_id: str) -> Task | None:
        """Return a binding by its own id."""
        ...

    async def tasks(
        self,
        *,
        identity_id: IdentityId | None = None,
        state: TaskState | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Page[Task]:
        """List bindings by id; `state` selects by what `Task.effective_state` says."""
        ...

    async def claim_task(self, claim: TaskClaim) -> ClaimOutcome:
        """
        Create or find the binding and, where its upstream task does not live, claim that, in one transaction.

        A binding whose upstream task lives is `Standing`; so, without `restart`, is one that has ended, until its
        `purge_time`. A claim whose lease ran out is taken over with a higher fencing token; the earlier attempt is
        recorded as orphaned, since its answer may have been lost.

        Raises:
            GenerationChangedError: the identity is gone, not ACTIVE, or has another generation.
        """
        ...

    async def complete_claim(
        self,
        upstream: UpstreamTask,
        *,
        sealed_task_id: bytes,
        now: float,
        expire_time: float | None,
    ) -> UpstreamTask | None:
        """
        Make the claimed upstream task ACTIVE with what the backend answered.

        Returns None, and records the answer as orphaned, when the claim was taken over or the generation has moved on.
        Asked again with the same answer, after an error that hid a success, it returns the row as it stands.
        """
        ...

    async def release_claim(self, upstream: UpstreamTask, *, now: float, answer_lost: bool) -> None:
        """
        Give a claim back after a failure, so that the next one need not wait for the lease.

        `answer_lost` records an orphan: the backend may have registered a task. Not an error when the claim is gone.
        """
        ...

    async def end_task(
        self,
        identity_id: IdentityId,
        thread_id: ThreadId,
        *,
        now: float,
        purge_time: float,
        upstream_key: UpstreamKey | None = None,
    ) -> Task | None:
        """
        End the binding of a thread and leave its tombstone; idempotent.

        Where there is no binding, None is returned; with `upstream_key` a tombstone is left in its place, so that a
        registration that comes late finds the thread ended.

        An upstream task that no other live binding shares ends with it.
        """
        ...

    async def revoke_task(
        self, task_id: str, *, now: float, purge_time: float, include_sharing: bool
    ) -> tuple[Task, ...]:
        """
        Revoke a binding's upstream task and every live binding that shares it; return the bindings taken down.

        The named binding comes first, and ends REVOKED even if it had ENDED. Empty when there is no such binding. When
        others share the upstream task and `include_sharing` is False nothing is written and the sharing bindings are
        returned with their state unchanged: what was returned is down only if all of it is REVOKED.
        """
        ...
