"""A database with very many identities, written past the store: one at a time would take minutes."""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from broker.model import Identity, Task, UpstreamTask
from broker.store import rows


def fill_identities(path: Path, found: Iterable[tuple[Identity, Task, UpstreamTask]]) -> None:
    """
    Add identities, each with its background task and the upstream task of that.

    Args:
        path: the database; nothing may have it open.
        found: what to add, made to fit together.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        (change,) = connection.execute("SELECT change_sequence FROM meta").fetchone()
        for identity, task, upstream in found:
            for table, values in (
                ("identities", rows.identity_values(identity)),
                ("tasks", rows.task_values(task)),
                ("upstream_tasks", rows.upstream_values(upstream)),
            ):
                change += 1
                _insert(connection, table, {**values, "change_sequence": change})
        connection.execute("UPDATE meta SET change_sequence = ?", (change,))


def _insert(connection: sqlite3.Connection, table: str, values: Mapping[str, Any]) -> None:
    places = ", ".join(f":{column}" for column in values)
    connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", values)  # noqa: S608 - our columns
