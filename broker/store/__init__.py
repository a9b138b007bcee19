"""
What the broker asks of its database, in words; `broker.store.sql` keeps it, for SQLite and PostgreSQL alike.

The contract, beyond each method's own:

- *Durable.* When a writing method returns, its effect survives `kill -9` and power loss. When it raises, it had no
  effect, or (only with `StoreDownError`) it may have had its whole effect, never a part.
- *One transaction a method.* No method leaves a transaction open; none is held across a network call.
- *Compare-and-set.* Every row has a `version` that each write bumps. A write names the version, fencing token or
  generation it read and fails with `GenerationChangedError` when another write came first. Rows are returned as
  written. Two writes bump nothing, since nothing that a version stands for has changed: `touch_tasks`, and taking or
  giving back the claim of a successor while the upstream task lives.
- *Claims.* At most one claim of an upstream task, of a bearer's refresh and of an agent is in flight. It has a lease
  and a fencing token that only grows; a claim whose lease ran out is taken over with a higher token, and who held the
  lower one can no longer complete it. Until it is taken over its holder can, however late. Versions and tokens do not
  begin again when a row was removed and its key comes back, and those of tasks do not begin at 1.
- *Changes.* Every write but `touch_tasks` moves one change counter that orders all writes. `changes(after)` names every
  row written since, by any process that shares the database, so a reader that follows it misses nothing. Agents on
  their way are not named: what they do to an identity is.
- *Errors.* A database that cannot be reached, is locked for longer than the busy limit, is full or read-only raises
  `StoreDownError`; driver exceptions and their texts never leave this package.
- *Secrets.* The store keeps bytes that are already sealed and never sees a plaintext secret.
- *Cancellation.* A cancelled method has either its whole effect or none, and leaves no connection in an unknown state.

All times are given by the caller, in Unix seconds: the store reads no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar

from broker.errors import StartupError
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    PendingAgent,
    StoredBearer,
    StoredLadder,
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
    replace: int | None = None
    """
    The version of the living upstream task that is to be replaced (its end is near, or the backend rejected it). While
    the claim is in flight the old one stays ACTIVE, with its version, and is used; so does it when the claim is given
    back. None, or another version: one that lives is Standing.
    """


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
    """
    Another holder's claim is in flight; its lease ends at `task.upstream.lease_expire_time`.

    Where it is the claim of a successor, `task.upstream` is ACTIVE and goes on being used.
    """

    task: Task


ClaimOutcome = Claimed | Standing | HeldElsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshClaim:
    """What came of claiming the refresh of a bearer: ours to send now only when `is_ours`."""

    bearer: StoredBearer
    is_ours: bool
    identity: Identity | None = None
    """The identity as it stands now, when the claim found that its refresh token is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentClaim:
    """What came of claiming an agent's registration: ours to go on with only when `is_ours`."""

    pending: PendingAgent
    identity: Identity
    """As it stands now: ROTATING where the claim began a change of key."""
    is_ours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that an identity shall change to, sealed to its next generation."""

    sealed_private_key: bytes = field(repr=False)
    public_key: str


class KeepBearer(Enum):
    """Says of `write_identity` that the identity's own bearer stays as it is."""

    KEEP = "KEEP"


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
    ladders: dict[IdentityId, int] = field(default_factory=dict)


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
    bearers_dead: int = 0
    """Bearers whose refresh token is spent or refused: their identities need a new login."""
    pending_agents: int = 0
    """Identities whose agent, the first or the next, is on its way to being registered."""


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


@dataclass(frozen=True, slots=True)
class Damaged:
    """Stands for a row that is there and cannot be read; reading it alone raises `RowCorruptError` with this note."""

    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeIdentity:
    """An identity with what belongs to it, all of one moment. A damaged row spoils what it is for and nothing else."""

    identity: Identity
    bearer: StoredBearer | Damaged | None
    """Of its own."""
    ladder: StoredLadder | Damaged | None
    background: Task | Damaged | None
    """Its background task, with the upstream task of its current generation."""


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

    async def has_changed(self) -> bool:
        """
        Say whether any process, this one included, may have written since this was last asked; cheaper than `changes`.

        True when in doubt, and the first time. It is said once: who then fails to read `changes` to the end has to go
        on without asking. Also a proof of contact.
        """
        ...

    async def statistics(self) -> StoreStatistics:
        """Count rows by state."""
        ...

    async def prune(self, now: float, *, idle_before: float, limit: int = 500) -> int:
        """
        Remove at most `limit` rows whose time is over; return how many went, 0 when there is nothing left to do.

        Tombstones, remembered requests, what deleted identities left, living bindings that were last used before
        `idle_before`, and ACTIVE upstream tasks whose `expire_time` is past. Upstream tasks that no binding names any
        more go with the last one. A claim in flight is not removed, unless its identity is deleted; making it counted
        as a use of its binding.

        Whoever follows `changes` is told of bindings that lived, under a version above any that they had, and neither
        of tombstones nor of upstream tasks: nothing may rest on them past their time. Costs what it removes, however
        many rows there are.
        """
        ...

    async def touch_tasks(self, uses: Sequence[tuple[str, float]]) -> None:
        """Note when bindings (by id) were last used; later times win, unknown ids are ignored, no version moves."""
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

    async def write_identity(
        self,
        identity: Identity,
        *,
        bearer: StoredBearer | KeepBearer | None = KeepBearer.KEEP,
        request: CreateRequest | None = None,
    ) -> Identity:
        """
        Replace the row of `identity.id` if its version is still `identity.version`; return it with the version bumped.

        The generation may stay or grow, never shrink. With a new generation an agent on its way goes, and the tasks
        that were registered ahead for it: the identity comes to its generation with the agent that it has. When the
        identity becomes DELETED its bearer and its ladder go too.

        Args:
            identity: as it shall be, with the version that was read.
            bearer: what its own bearer becomes in the same transaction: None for none, a new one with `pair` one above
                the one that stands (1 when none does). Its version and fencing token are the store's to choose.
            request: remembered with the write, as by `create_identity`; when it was remembered already nothing is
                written and the identity is returned as it stands.

        Raises:
            GenerationChangedError: the row has another version, or is gone, or the bearer has another pair.
            IdentityExistsError: its name is new and another, undeleted identity has it.
            RequestIdReusedError: the request is remembered with another fingerprint.
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

    async def whole_identity(self, identity_id: IdentityId) -> WholeIdentity | None:
        """Return one identity in whatever state, deleted ones included, with what belongs to it."""
        ...

    async def whole_identities(self, *, after: str = "", limit: int = 100) -> Page[WholeIdentity]:
        """
        List undeleted identities as `identities` does, each with what belongs to it.

        While the database is whole, a long page costs as many statements as a short one.
        """
        ...

    async def bearer(self, identity_id: IdentityId) -> StoredBearer | None:
        """Return the sealed bearer kept for an identity."""
        ...

    # --- refreshing a bearer: a refresh token is never sent by two, nor twice -----------------------------------------

    async def claim_refresh(
        self, identity_id: IdentityId, *, pair: int, now: float, lease_seconds: float
    ) -> RefreshClaim:
        """
        Claim the right to send the refresh token of `pair`, and mark it as sent, in one transaction.

        Ours when the row still has that pair, a refresh token, no `retry_time` to come, and is IDLE (becomes
        IN_FLIGHT), or IN_FLIGHT without a lease that still runs (becomes PROBING). A PROBING one whose lease ran out
        becomes DEAD with reason `refresh_answer_lost`, with what `refuse_refresh` does to the identity. Otherwise the
        row is returned as it stands and is not ours.

        Raises:
            GenerationChangedError: the identity has no bearer of its own (any more).
        """
        ...

    async def complete_refresh(
        self,
        held: StoredBearer,
        *,
        sealed: bytes,
        sealed_refresh_token: bytes | None,
        expire_time: float | None,
        obtain_time: float,
    ) -> StoredBearer | None:
        """
        Keep what the issuer answered: the next pair, IDLE, with nothing held against it. It may be used only then.

        The bytes are sealed to `held.pair + 1`. Returns None, and keeps what stands, when the claim was taken over or
        the bearer replaced meanwhile. Asked again with the same answer, after an error that hid a success, it returns
        the row as it stands.
        """
        ...

    async def release_refresh(self, held: StoredBearer, *, retry_time: float | None) -> StoredBearer | None:
        """
        Give a claim back whose sending was surely not processed, to be tried again from `retry_time` on.

        IN_FLIGHT becomes IDLE. PROBING becomes IN_FLIGHT without a lease: what became of the first sending is still
        not known, and the probe may be made once more. Returns the row as it stands now, None when the identity has
        none any more.
        """
        ...

    async def refuse_refresh(
        self, held: StoredBearer, *, reason: str, now: float
    ) -> tuple[StoredBearer, Identity] | None:
        """
        Note that the issuer refused the refresh token for good.

        The bearer is DEAD then, and an ACTIVE identity of mode BEARER becomes REAUTH_REQUIRED. Only for the holder of
        the claim: a pair that another brought meanwhile is never touched. Returns both rows as they stand now, None
        when the identity or its bearer is gone.
        """
        ...

    # --- registering agents -------------------------------------------------------------------------------------------

    async def claim_agent(
        self,
        identity_id: IdentityId,
        *,
        generation: int,
        now: float,
        lease_seconds: float,
        new_key: NewKey | None = None,
        request: CreateRequest | None = None,
    ) -> AgentClaim:
        """
        Claim the registration of an identity's agent, in one transaction.

        `generation` is the identity's present one. A REGISTERING identity registers the key that it has. With
        `new_key` one that is ACTIVE, ROTATING, REJECTED or REAUTH_REQUIRED begins to change its key (ACTIVE becomes
        ROTATING); where a change is under way already its key is kept and `new_key` ignored. A claim whose lease ran
        out, or that was released, is taken over with a higher fencing token.

        A `request` is remembered with what it began or joined, also when that is not ours. When it was remembered
        already, `new_key` is ignored: what it asked for is under way, done, or was undone.

        Raises:
            GenerationChangedError: the identity is gone, of another generation, of mode BEARER, in another state, or
                (without `new_key`) no change is under way.
            RequestIdReusedError: the request is remembered with another fingerprint.
        """
        ...

    async def pending_agent(self, identity_id: IdentityId) -> PendingAgent | None:
        """Return the agent on its way of an identity."""
        ...

    async def record_agent(self, held: PendingAgent, *, agent_runtime_id: str, now: float) -> PendingAgent | None:
        """
        Keep what the backend answered, so that nobody registers the key again.

        None when the claim is lost, or another id was kept before. Asked again with the same it returns the row.
        """
        ...

    async def adopt_agent(self, held: PendingAgent, *, now: float) -> Identity | None:
        """
        Make the pending agent the identity's, in one transaction: ACTIVE, with its key, runtime id and generation.

        Upstream tasks that were registered for that generation are current from then on, those that they replace go,
        and `changes` names them once more. None when the claim was taken over or the identity changed meanwhile
        (disabled, deleted). Asked again, after an error that hid a success, it returns the identity as it stands.
        """
        ...

    async def release_agent(self, held: PendingAgent, *, now: float) -> None:
        """Give the claim back for another try, by whichever process; not an error when it is gone."""
        ...

    async def abandon_agent(
        self, held: PendingAgent, *, now: float, fingerprint: bytes | None = None
    ) -> Identity | None:
        """
        Undo a change of key: the pending agent and the tasks registered for it go, ROTATING becomes ACTIVE.

        The requests of the content `fingerprint` that asked for it are forgotten: repeated, they ask anew. None when
        the claim was taken over or the change came to another end; asked again, after an error that hid a success, it
        returns the identity as it stands.
        """
        ...

    # --- rejections ---------------------------------------------------------------------------------------------------

    async def ladder(self, identity_id: IdentityId) -> StoredLadder | None:
        """Return what was tried because an identity's credentials were rejected."""
        ...

    async def write_ladder(self, ladder: StoredLadder) -> StoredLadder:
        """
        Replace the row if its version is still `ladder.version` (0: there is none); return it with the version bumped.

        Raises:
            GenerationChangedError: another version stands, or the identity is gone.
        """
        ...

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def live_tasks(self, *, now: float, after: str = "", limit: int = 500) -> Page[Task]:
        """
        List the bindings that are ACTIVE with an upstream task that lives, those that end first at the beginning.

        `after` is the `next_after` of the page before and nothing else. Costs what it returns, however many rows have
        ended or expired.
        """
        ...

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

        The generation is the identity's, or that of its pending agent once that has a runtime id: so tasks are
        registered ahead of a change of key, also for an identity that is REJECTED or REAUTH_REQUIRED until then. The
        task is returned with its upstream task of that generation.

        Raises:
            GenerationChangedError: the generation is neither, or the identity is gone or in a state (other than ACTIVE
                and ROTATING, for its own generation) in which nothing is registered for it.
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
