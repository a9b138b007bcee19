"""The real store over a SQLite database in memory, of which each run has its own copy; every call is a step."""

import hashlib
import sqlite3
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Executable, create_engine, event
from sqlalchemy.pool import StaticPool

from broker.errors import BrokerError
from broker.store.sql import SqlStore
from tests.interleavings.schedule import Schedule

Result = TypeVar("Result")

_MOST_CONTENTS: Final = 5_000
"""States of the database that are kept; each has some 30 KB."""


class MemoryDriver:
    """
    A `broker.store.sql.Driver` in memory, without threads: a transaction is done when it was asked for.

    What is left out is what the scheduler stands for: that other work happens between asking and having.
    """

    name = "memory"

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.execute("PRAGMA page_size = 512")  # it is copied often
        self._engine = create_engine("sqlite://", creator=lambda: self._connection, poolclass=StaticPool)

        @event.listens_for(self._engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    def copy(self) -> bytes:
        """Return the whole database."""
        return self._connection.serialize()

    def restore(self, content: bytes) -> None:
        """Put a database in the place of the one there is."""
        self._connection.deserialize(content)
        self._connection.execute("PRAGMA foreign_keys = ON")

    async def connect(self) -> None:
        """Nothing has to be reached."""

    async def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()
        self._connection.close()

    async def has_changed(self) -> bool:
        """Be in doubt, always: whether anything changed is asked of the change counter."""
        return True

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run work that only reads."""
        with self._engine.begin() as connection:
            return work(connection)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run work in a transaction; nobody else is there to hold a lock."""
        with self._engine.begin() as connection:
            return work(connection)


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """One state of the database."""

    data: bytes
    digest: bytes

    @classmethod
    def of(cls, data: bytes) -> "Content":
        """Return the state that is these bytes."""
        return cls(data, hashlib.blake2b(data, digest_size=16).digest())


class Database:
    """
    The one real store, of which many runs make the same calls.

    A call's answer, and what it makes of the database, depend on nothing but the call and the database before it: the
    store reads no clock and no chance. So what was asked once of the same database is not worked out again.
    """

    def __init__(self, driver: MemoryDriver) -> None:
        self._driver = driver
        self._content = Content(b"", b"")
        self._store = SqlStore(driver, new_task_id=lambda: f"binding-{self._content.digest.hex()}")
        self._answers: dict[Hashable, tuple[object, Content]] = {}
        self._contents = 0

    async def open(self) -> Content:
        """Make the schema, and return the empty database."""
        await self._store.open()
        self._content = Content.of(self._driver.copy())
        return self._content

    async def ask(
        self, content: Content, method: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[object, Content]:
        """Return what a call to a database in that state returns or raises, and the state that it leaves behind."""
        call = (content.digest, method, args, tuple(sorted(options.items())))
        known = self._answers.get(call)
        if known is None:
            if self._contents >= _MOST_CONTENTS:
                self._answers.clear()
                self._contents = 0
            known = self._answers[call] = await self._work_out(content, method, args, options)
        return known

    async def query(self, content: Content, query: Executable) -> Any:
        """Return the one value that a query has in that state of the database."""
        self._go_to(content)
        return await self._driver.read(lambda connection: connection.execute(query).scalar_one())

    def _go_to(self, content: Content) -> None:
        if self._content.digest != content.digest:
            self._driver.restore(content.data)
            self._content = content

    async def _work_out(
        self, content: Content, method: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[object, Content]:
        self._go_to(content)
        answer: object
        try:
            answer = await getattr(self._store, method)(*args, **options)
        except BrokerError as error:
            answer = error
        after = Content.of(self._driver.copy())
        if after.digest == content.digest:
            return answer, content
        self._content = after
        self._contents += 1
        return answer, after


class Copy:
    """A `broker.store.Store` over one run's own copy of the database."""

    def __init__(self, database: Database, content: Content) -> None:
        self._database = database
        self.content = content

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **options: Any) -> Any:
            answer, self.content = await self._database.ask(self.content, method, args, options)
            if isinstance(answer, BrokerError):
                # A fresh one for each: a shared exception would gather all their tracebacks.
                raise type(answer)(metadata=answer.metadata, retry_after=answer.retry_after, note=answer.note)
            return answer

        return call


class Stepped:
    """
    Lets an operation stand still at each call of something: before its effect, after it, or both.

    Standing still before a call lets others act between what the operation knew and what it does; after a call, between
    what it did and what it makes of the answer.
    """

    def __init__(self, target: object, name: str, schedule: Schedule, *, before: bool, after: bool) -> None:
        self._target = target
        self._name = name
        self._schedule = schedule
        self._before = before
        self._after = after

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._target, method)
        if not callable(found):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            point = f"{self._name}.{method}"
            if self._before:
                await self._schedule.pause(point)
            # What came is kept in a name while it stands still: the state of a run is what names hold.
            answer: Any = None
            failure: Exception | None = None
            try:
                answer = found(*args, **options)
                if isinstance(answer, Awaitable):
                    answer = await answer
            except Exception as error:  # noqa: BLE001  -- raised below, whatever it is
                failure = error
            if self._after:
                await self._schedule.pause(f"{point} done")
            if failure is not None:
                raise failure
            return answer

        return call
