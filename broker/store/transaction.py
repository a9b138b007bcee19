"""
One write transaction: a connection, and the change counter that orders what is written in it.

The statements of this package are plain synchronous SQLAlchemy Core; `broker.store.sql` runs them inside one
transaction, off the event loop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, select, update

from broker.store import schema


class WriteTransaction:
    """
    A transaction that holds the database's write lock from its first statement on.

    Writers are therefore serialised: what is read here stays true until the commit, and the values of the change
    counter become visible in their order, with none missing in between.

    Args:
        connection: in a transaction that holds the write lock.
        new_task_id: makes the id of a new binding.
    """

    def __init__(self, connection: Connection, *, new_task_id: Callable[[], str]) -> None:
        self.connection = connection
        self.new_task_id = new_task_id
        self._started_at: int | None = None
        self._moved_to = 0

    def execute(self, statement: Executable) -> CursorResult[Any]:
        """Run one statement."""
        return self.connection.execute(statement)

    def execute_each(self, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run one statement for each set of its bound parameters; for none, nothing."""
        if rows:
            self.connection.execute(statement, rows)

    def next_change(self) -> int:
        """Move the change counter; every row that is written takes a value of its own."""
        if self._started_at is None:
            self._started_at = self.connection.execute(select(schema.meta.c.change_sequence)).scalar_one()
            self._moved_to = self._started_at
        self._moved_to += 1
        return self._moved_to

    def finish(self) -> None:
        """Store where the change counter stands; the last statement before the commit."""
        if self._started_at is not None and self._moved_to != self._started_at:
            self.connection.execute(update(schema.meta).values(change_sequence=self._moved_to))
