"""
The store, over any database that SQLAlchemy Core speaks; what differs between databases is a `Driver`.

Each method is one transaction. Its statements are synchronous functions of the modules beside this one; the driver
decides where they run.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection

from broker.errors import RowCorruptError
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    PendingAgent,
    StoredBearer,
    StoredLadder,
    Task,
    TaskState,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)
from broker.store import (
    AgentClaim,
    Changes,
    ClaimOutcome,
    CreateRequest,
    Damaged,
    KeepBearer,
    NewKey,
    Page,
    RefreshClaim,
    StoreStatistics,
    TaskClaim,
    WholeIdentity,
    agents,
    bearers,
    belongings,
    database,
    enrollment,
    identities,
    ladders,
    migrations,
    pruning,
    tasks,
)
from broker.store.transaction import WriteTransaction

RETRY_AFTER: Final = 1.0
"""Seconds after which asking again makes sense when the store did not answer."""

Result = TypeVar("Result")


class Driver(Protocol):
    """
    What differs between databases.

    `read` and `write` run synchronous work inside one transaction and off the event loop, commit it when it returns
    and roll it back when it raises. A caller that is cancelled leaves at once; work that has begun goes on to its
    commit or its error, so that it has its whole effect or none and its connection comes back clean. Errors of the
    database are translated (`StoreDownError`, `RowCorruptError`, `InternalError`); the work's own pass unchanged.
    Before `connect` and after `close` they raise `StoreDownError`.
    """

    name: str
    """The word for it in `StoreStatistics.driver`."""

    async def connect(self) -> None:
        """
        Look at what is there before anything is written, and make what must exist.

        Raises:
            StartupError: it cannot be used as it is.
            StoreDownError: it cannot be reached.
        """
        ...

    async def close(self) -> None:
        """Let what has begun end, then close every connection."""
        ...

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run work that only reads; it sees one state of the database throughout."""
        ...

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run work in a transaction that holds the database's one write lock from its begin on."""
        ...

    async def has_changed(self) -> bool:
        """Say whether anything was committed, by whomever, since this was last asked; True when in doubt."""
        ...


class SqlStore:
    """
    The `broker.store.Store` over SQL.

    Args:
        driver: the database.
        new_task_id: makes the ids of bindings, which must never repeat.
    """

    def __init__(self, driver: Driver, *, new_task_id: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self._driver: Final = driver
        self._new_task_id: Final = new_task_id

    async def open(self) -> None:
        """Connect and make the schema current."""
        try:
            await self._driver.connect()
            if not await self._driver.read(migrations.is_current):
                await self._driver.write(migrations.upgrade)
        except BaseException:
            await self._driver.close()
            raise

    async def close(self) -> None:
        """Let what was begun end, then close every connection."""
        await self._driver.close()

    # --- the database as a whole -------------------------------------------------------------------------------------

    async def bind_keyring(self, keyring_id: str) -> str:
        """Note which key ring seals this database; return the one that is noted."""
        return await self._write(lambda tx: database.bind_keyring(tx, keyring_id))

    async def keyring_id(self) -> str | None:
        """Return the noted key ring."""
        return await self._driver.read(database.keyring_id)

    async def changes(self, after: int, *, limit: int = 1000) -> Changes:
        """Return what was written since the change counter stood at `after`."""
        return await self._driver.read(lambda connection: database.changes(connection, after, limit=limit))

    async def change_sequence(self) -> int:
        """Return where the change counter stands now."""
        return await self._driver.read(database.change_sequence)

    async def has_changed(self) -> bool:
        """Say whether any process may have written since this was last asked."""
        return await self._driver.has_changed()

    async def statistics(self) -> StoreStatistics:
        """Count rows by state."""
        return await self._driver.read(
            lambda connection: database.statistics(
                connection, driver=self._driver.name, schema_version=migrations.stored_revision(connection) or ""
            )
        )

    async def prune(self, now: float, *, idle_before: float, limit: int = 500) -> int:
        """Remove what its time is over for."""
        return await self._write(lambda tx: pruning.prune(tx, now, idle_before=idle_before, limit=limit))

    async def touch_tasks(self, uses: Sequence[tuple[str, float]]) -> None:
        """Note when bindings were last used."""
        await self._write(lambda tx: tasks.touch(tx, uses))

    # --- identities --------------------------------------------------------------------------------------------------

    async def create_identity(
        self, identity: Identity, request: CreateRequest, *, bearer: StoredBearer | None = None
    ) -> Identity:
        """Insert an identity, its bearer and the memory of the request, or return what the request made before."""
        return await self._write(lambda tx: enrollment.create(tx, identity, request, bearer))

    async def remembered_identity(self, request: CreateRequest) -> Identity | None:
        """Return what a creation of that request made."""
        return await self._driver.read(lambda connection: identities.remembered(connection, request))

    async def write_identity(
        self,
        identity: Identity,
        *,
        bearer: StoredBearer | KeepBearer | None = KeepBearer.KEEP,
        request: CreateRequest | None = None,
    ) -> Identity:
        """Replace a row, and its bearer, if its version is still the one given."""
        return await self._write(lambda tx: enrollment.write(tx, identity, bearer=bearer, request=request))

    async def identity(self, identity_id: IdentityId) -> Identity | None:
        """Return one identity in whatever state."""
        return await self._driver.read(lambda connection: identities.by_id(connection, identity_id))

    async def identity_named(self, name: IdentityName) -> Identity | None:
        """Return the undeleted identity of that name."""
        return await self._driver.read(lambda connection: identities.by_name(connection, name))

    async def identities(self, *, after: str = "", limit: int = 100, include_deleted: bool = False) -> Page[Identity]:
        """List identities by name."""
        return await self._driver.read(
            lambda connection: identities.page(connection, after=after, limit=limit, include_deleted=include_deleted)
        )

    async def whole_identity(self, identity_id: IdentityId) -> WholeIdentity | None:
        """Return one identity in whatever state, with what belongs to it."""
        try:
            return await self._driver.read(lambda connection: belongings.of_identity(connection, identity_id))
        except RowCorruptError:
            identity = await self.identity(identity_id)
            return None if identity is None else await self._read_apart(identity)

    async def whole_identities(self, *, after: str = "", limit: int = 100) -> Page[WholeIdentity]:
        """List undeleted identities by name, each with what belongs to it."""
        try:
            return await self._driver.read(lambda connection: belongings.page(connection, after=after, limit=limit))
        except RowCorruptError:
            listed = await self.identities(after=after, limit=limit)
            whole = [await self._read_apart(identity) for identity in listed.rows]
            return Page(rows=tuple(whole), next_after=listed.next_after, corrupt=listed.corrupt)

    async def _read_apart(self, identity: Identity) -> WholeIdentity:
        """
        Read what belongs to an identity, each in a transaction of its own.

        Where not a row but a part of the file is damaged, the whole answer that touches it is lost.
        """
        return WholeIdentity(
            identity=identity,
            bearer=await _or_damaged(self.bearer(identity.id)),
            ladder=await _or_damaged(self.ladder(identity.id)),
            background=await _or_damaged(self.task(identity.id, None)),
        )

    async def bearer(self, identity_id: IdentityId) -> StoredBearer | None:
        """Return the sealed bearer kept for an identity."""
        return await self._driver.read(lambda connection: bearers.of_identity(connection, identity_id))

    # --- refreshing a bearer -----------------------------------------------------------------------------------------

    async def claim_refresh(
        self, identity_id: IdentityId, *, pair: int, now: float, lease_seconds: float
    ) -> RefreshClaim:
        """Claim the right to send the refresh token of a pair, and mark it as sent."""
        return await self._write(
            lambda tx: bearers.claim(tx, identity_id, pair=pair, now=now, lease_seconds=lease_seconds)
        )

    async def complete_refresh(
        self,
        held: StoredBearer,
        *,
        sealed: bytes,
        sealed_refresh_token: bytes | None,
        expire_time: float | None,
        obtain_time: float,
    ) -> StoredBearer | None:
        """Keep what the issuer answered as the next pair."""
        return await self._write(
            lambda tx: bearers.complete(
                tx,
                held,
                sealed=sealed,
                sealed_refresh_token=sealed_refresh_token,
                expire_time=expire_time,
                obtain_time=obtain_time,
            )
        )

    async def release_refresh(self, held: StoredBearer, *, retry_time: float | None) -> StoredBearer | None:
        """Give a claim back whose sending was surely not processed."""
        return await self._write(lambda tx: bearers.release(tx, held, retry_time=retry_time))

    async def refuse_refresh(
        self, held: StoredBearer, *, reason: str, now: float
    ) -> tuple[StoredBearer, Identity] | None:
        """Note that the issuer refused the refresh token for good."""
        return await self._write(lambda tx: bearers.refuse(tx, held, reason=reason, now=now))

    # --- registering agents ------------------------------------------------------------------------------------------

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
        """Claim the registration of an identity's agent."""
        return await self._write(
            lambda tx: agents.claim(
                tx,
                identity_id,
                generation=generation,
                now=now,
                lease_seconds=lease_seconds,
                new_key=new_key,
                request=request,
            )
        )

    async def pending_agent(self, identity_id: IdentityId) -> PendingAgent | None:
        """Return the agent on its way of an identity."""
        return await self._driver.read(lambda connection: agents.of_identity(connection, identity_id))

    async def record_agent(self, held: PendingAgent, *, agent_runtime_id: str, now: float) -> PendingAgent | None:
        """Keep what the backend answered."""
        return await self._write(lambda tx: agents.record(tx, held, agent_runtime_id=agent_runtime_id, now=now))

    async def adopt_agent(self, held: PendingAgent, *, now: float) -> Identity | None:
        """Make the pending agent the identity's."""
        return await self._write(lambda tx: agents.adopt(tx, held, now=now))

    async def release_agent(self, held: PendingAgent, *, now: float) -> None:
        """Give the claim back for another try."""
        await self._write(lambda tx: agents.release(tx, held, now=now))

    async def abandon_agent(
        self, held: PendingAgent, *, now: float, fingerprint: bytes | None = None
    ) -> Identity | None:
        """Undo a change of key."""
        return await self._write(lambda tx: agents.abandon(tx, held, now=now, fingerprint=fingerprint))

    # --- rejections --------------------------------------------------------------------------------------------------

    async def ladder(self, identity_id: IdentityId) -> StoredLadder | None:
        """Return what was tried because an identity's credentials were rejected."""
        return await self._driver.read(lambda connection: ladders.of_identity(connection, identity_id))

    async def write_ladder(self, ladder: StoredLadder) -> StoredLadder:
        """Replace a row if its version is still the one given."""
        return await self._write(lambda tx: ladders.write(tx, ladder))

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def live_tasks(self, *, now: float, after: str = "", limit: int = 500) -> Page[Task]:
        """List the bindings whose upstream task lives."""
        return await self._driver.read(lambda connection: tasks.live(connection, now=now, after=after, limit=limit))

    async def task(self, identity_id: IdentityId, thread_id: ThreadId | None) -> Task | None:
        """Return a binding; thread None: background."""
        return await self._driver.read(lambda connection: tasks.by_thread(connection, identity_id, thread_id))

    async def task_by_id(self, task_id: str) -> Task | None:
        """Return a binding by its own id."""
        return await self._driver.read(lambda connection: tasks.by_id(connection, task_id))

    async def tasks(
        self,
        *,
        identity_id: IdentityId | None = None,
        state: TaskState | None = None,
        after: str = "",
        limit: int = 100,
    ) -> Page[Task]:
        """List bindings by id."""
        return await self._driver.read(
            lambda connection: tasks.page(connection, identity_id=identity_id, state=state, after=after, limit=limit)
        )

    async def claim_task(self, claim: TaskClaim) -> ClaimOutcome:
        """Create or find the binding and, where its upstream task does not live, claim that."""
        return await self._write(lambda tx: tasks.claim(tx, claim))

    async def complete_claim(
        self, upstream: UpstreamTask, *, sealed_task_id: bytes, now: float, expire_time: float | None
    ) -> UpstreamTask | None:
        """Make the claimed upstream task ACTIVE, or record the answer as orphaned."""
        return await self._write(
            lambda tx: tasks.complete(tx, upstream, sealed_task_id=sealed_task_id, now=now, expire_time=expire_time)
        )

    async def release_claim(self, upstream: UpstreamTask, *, now: float, answer_lost: bool) -> None:
        """Give a claim back after a failure."""
        await self._write(lambda tx: tasks.release(tx, upstream, now=now, answer_lost=answer_lost))

    async def end_task(
        self,
        identity_id: IdentityId,
        thread_id: ThreadId,
        *,
        now: float,
        purge_time: float,
        upstream_key: UpstreamKey | None = None,
    ) -> Task | None:
        """End the binding of a thread and leave its tombstone."""
        return await self._write(
            lambda tx: tasks.end(tx, identity_id, thread_id, now=now, purge_time=purge_time, upstream_key=upstream_key)
        )

    async def revoke_task(
        self, task_id: str, *, now: float, purge_time: float, include_sharing: bool
    ) -> tuple[Task, ...]:
        """Revoke a binding's upstream task and every live binding that shares it."""
        return await self._write(
            lambda tx: tasks.revoke(tx, task_id, now=now, purge_time=purge_time, include_sharing=include_sharing)
        )

    # --- transactions ------------------------------------------------------------------------------------------------

    async def _write(self, work: Callable[[WriteTransaction], Result]) -> Result:
        def whole(connection: Connection) -> Result:
            transaction = WriteTransaction(connection, new_task_id=self._new_task_id)
            result = work(transaction)
            transaction.finish()
            return result

        return await self._driver.write(whole)


async def _or_damaged(reading: Awaitable[Result]) -> Result | Damaged:
    try:
        return await reading
    except RowCorruptError as error:
        return Damaged(error.note)
