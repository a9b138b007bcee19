"""The real store over a SQLite database in memory that is copied, not made, for each run; every call is a step."""

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import StaticPool

from tests.interleavings.schedule import Schedule

Result = TypeVar("Result")


class MemoryDriver:
    """
    A `broker.store.sql.Driver` in memory, without threads: a transaction is done when it was asked for.

    What is left out is what the scheduler stands for: that other work happens between asking and having.
    """

    name = "memory"

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
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

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run work that only reads."""
        with self._engine.begin() as connection:
            return work(connection)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run work in a transaction; nobody else is there to hold a lock."""
        with self._engine.begin() as connection:
            return work(connection)


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
            try:
                result = found(*args, **options)
                return await result if isinstance(result, Awaitable) else result
            finally:
                if self._after:
                    await self._schedule.pause(f"{point} done")

        return call
