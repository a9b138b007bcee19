"""
The store, over any database that SQLAlchemy Core speaks; what differs between databases is a `Driver`.

Each method is one transaction. Its statements are synchronous functions of `identities`, `tasks` and `database`; the
driver decides where they run.
"""

import secrets
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection

from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    StoredBearer,
    Task,
    TaskState,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)
from broker.store import (
    Changes,
    ClaimOutcome,
    CreateRequest,
    Page,
    StoreStatistics,
    TaskClaim,
    database,
    identities,
    migrations,
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

    async def statistics(self) -> StoreStatistics:
        """Count rows by state."""
        return await self._driver.read(
            lambda connection: database.statistics(
                connection, driver=self._driver.name, schema_version=migrations.stored_revision(connection) or ""
            )
        )

    async def prune(self, now: float, *, limit: int = 500) -> int:
        """Remove what its time is over for."""
        return await self._write(lambda tx: database.prune(tx, now, limit=limit))

    # --- identities --------------------------------------------------------------------------------------------------

    async def create_identity(
        self, identity: Identity, request: CreateRequest, *, bearer: StoredBearer | None = None
    ) -> Identity:
        """Insert an identity, its bearer and the memory of the request, or return what the request made before."""
        return await self._write(lambda tx: identities.create(tx, identity, request, bearer))

    async def remembered_identity(self, request: CreateRequest) -> Identity | None:
        """Return what a creation of that request made."""
        return await self._driver.read(lambda connection: identities.remembered(connection, request))

    async def write_identity(self, identity: Identity) -> Identity:
        """Replace a row if its version is still the one given."""
        return await self._write(lambda tx: identities.write(tx, identity))

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

    async def bearer(self, identity_id: IdentityId) -> StoredBearer | None:
        """Return the sealed bearer kept for an identity."""
        return await self._driver.read(lambda connection: identities.bearer(connection, identity_id))

    # --- tasks -------------------------------------------------------------------------------------------------------

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
