"""A database with very many tasks, written past the store: one at a time would take hours."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

DAY: Final = 86_400.0

_BINDING: Final = """
    INSERT INTO tasks (id, identity_id, kind, thread_id, state, upstream_key, version, create_time, update_time,
        purge_time, last_use_time, change_sequence)
    VALUES (?, ?, 'THREAD', ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_UPSTREAM: Final = """
    INSERT INTO upstream_tasks (identity_id, generation, upstream_key, state, version, fencing_token, sealed_task_id,
        create_time, update_time, expire_time, change_sequence)
    VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def fill(
    path: Path,
    identity_id: str,
    *,
    now: float,
    live: int = 0,
    expired: int = 0,
    ended: int = 0,
    idle: int = 0,
    seal: Callable[[str], bytes] = str.encode,
) -> None:
    """
    Add so many threads, each with an upstream task of its own, to an identity of generation 1.

    Args:
        path: the database; nothing may have it open.
        identity_id: whose they are.
        now: the present.
        live: registered an hour ago, to end in a day.
        expired: used until their upstream task ended, an hour ago.
        ended: by their callers; their tombstones stay for a month.
        idle: not used for a month, and their upstream task not over.
        seal: makes the sealed task id of an upstream key.
    """
    kinds = [
        ("live", live, "ACTIVE", None, now, now + DAY),
        ("expired", expired, "ACTIVE", None, now - 3600, now - 3600),
        ("ended", ended, "ENDED", now + 30 * DAY, now - 3600, now + DAY),
        ("idle", idle, "ACTIVE", None, now - 30 * DAY, now + DAY),
    ]
    with closing(sqlite3.connect(path)) as connection, connection:
        (change,) = connection.execute("SELECT change_sequence FROM meta").fetchone()
        for kind, number, state, purge_time, use_time, end in kinds:
            names = [(change + 2 * n + 1, f"{kind}-{n}") for n in range(number)]
            connection.executemany(
                _BINDING,
                (
                    (f"{at:032x}", identity_id, name, state, name, at, now, now, purge_time, use_time, at)
                    for at, name in names
                ),
            )
            connection.executemany(
                _UPSTREAM,
                (
                    (identity_id, name, state, at + 1, at + 1, seal(name), now - 3600, now - 3600, end, at + 1)
                    for at, name in names
                ),
            )
            change += 2 * number
        connection.execute("UPDATE meta SET change_sequence = ?", (change,))
