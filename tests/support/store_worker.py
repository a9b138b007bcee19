"""
Another process on the same database, for tests of races and crashes: `python -m tests.support.store_worker URL COMMAND`.

It prints one line for each thing it did, flushed, so that what was printed was acknowledged; `ready` comes first, and
work begins when a line arrives on standard input.
"""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

from sqlalchemy import Engine, event

from broker.model import IdentityId
from broker.store.sql import SqlStore
from broker.store.sqlite import sqlite_store
from tests.support.stores import add_task, agent_identity, task_claim


def store_at(url: str) -> SqlStore:
    """Return the store that a URL of these tests names, not opened."""
    kind, _, place = url.partition(":")
    assert kind == "sqlite"
    return sqlite_store(Path(place))


def say(word: object) -> None:
    """Print a line that the test reads at once."""
    print(word, flush=True)


def wait_for_go() -> None:
    """Tell the test that this process stands ready, and wait for its line."""
    say("ready")
    sys.stdin.readline()


async def claim(url: str, identity_id: str, *threads: str) -> None:
    """Claim each thread once and say what came of it."""
    store = store_at(url)
    await store.open()
    identity = agent_identity(id=IdentityId(identity_id))
    wait_for_go()
    for thread in threads:
        outcome = await store.claim_task(task_claim(identity, thread))
        assert outcome.task.upstream is not None
        say(json.dumps([thread, type(outcome).__name__, outcome.task.upstream.fencing_token]))
    await store.close()


async def register(url: str, identity_id: str, prefix: str, number: str) -> None:
    """Register that many tasks, one after the other, saying each one's thread when it is acknowledged."""
    store = store_at(url)
    await store.open()
    identity = agent_identity(id=IdentityId(identity_id))
    wait_for_go()
    for n in range(int(number)):
        await add_task(store, identity, f"{prefix}-{n}")
        say(f"{prefix}-{n}")
    await store.close()


async def migrate(url: str) -> None:
    """Open the database, which brings its schema to the newest."""
    store = store_at(url)
    wait_for_go()
    await store.open()
    say((await store.statistics()).schema_version)
    await store.close()


async def migrate_and_die(url: str, after_statements: str) -> None:
    """Open a new database and be killed after that many statements of the migration; 0: right before its commit."""
    left = int(after_statements)
    began = False

    @event.listens_for(Engine, "after_cursor_execute")
    def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal left, began
        if statement.lstrip().startswith(("CREATE", "INSERT", "PRAGMA application_id =")):
            began = True
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    @event.listens_for(Engine, "commit")
    def die_at_commit(_c: object) -> None:
        if began:
            os.kill(os.getpid(), signal.SIGKILL)

    wait_for_go()
    await store_at(url).open()
    say("lived")


async def hold_lock(url: str) -> None:
    """Hold SQLite's write lock until a line arrives."""
    connection = sqlite3.connect(url.partition(":")[2], isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    wait_for_go()
    connection.execute("ROLLBACK")
    connection.close()
    say("released")


COMMANDS = {f.__name__: f for f in (claim, register, migrate, migrate_and_die, hold_lock)}

if __name__ == "__main__":
    asyncio.run(COMMANDS[sys.argv[2]](sys.argv[1], *sys.argv[3:]))
