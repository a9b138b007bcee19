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

from broker.model import IdentityId, StoredBearer
from broker.store.sql import SqlStore
from broker.store.sqlite import sqlite_store
from tests.support.stores import NOW, add_task, agent_identity, new_key, task_claim


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


async def refresh(url: str, *identity_ids: str) -> None:
    """Refresh the login of each identity where nobody else does, and say whether it was ours."""
    store = store_at(url)
    await store.open()
    wait_for_go()
    for identity_id in identity_ids:
        claim = await store.claim_refresh(IdentityId(identity_id), pair=1, now=NOW, lease_seconds=30.0)
        if claim.is_ours:
            await _complete(store, claim.bearer)
        say(json.dumps([identity_id, claim.is_ours]))
    await store.close()


async def refresh_and_die(url: str, identity_id: str, step: str) -> None:
    """Be killed right after a step of a refresh was written."""
    store = store_at(url)
    await store.open()
    wait_for_go()
    held = (await store.claim_refresh(IdentityId(identity_id), pair=1, now=NOW, lease_seconds=30.0)).bearer
    if step == "completed":
        await _complete(store, held)
    elif step == "released":
        await store.release_refresh(held, retry_time=None)
    elif step == "refused":
        await store.refuse_refresh(held, reason="invalid_grant", now=NOW)
    elif step == "probed":
        await store.claim_refresh(held.identity_id, pair=1, now=NOW + 30, lease_seconds=30.0)
    os.kill(os.getpid(), signal.SIGKILL)


async def _complete(store: SqlStore, held: StoredBearer) -> None:
    await store.complete_refresh(
        held, sealed=b"access", sealed_refresh_token=b"refresh", expire_time=NOW + 600, obtain_time=NOW
    )


async def change_key(url: str, identity_id: str, name: str) -> None:
    """Change an identity's key to one of this name, or find that another is under way; say which."""
    store = store_at(url)
    await store.open()
    wait_for_go()
    claim = await store.claim_agent(
        IdentityId(identity_id), generation=1, now=NOW, lease_seconds=30.0, new_key=new_key(name)
    )
    if claim.is_ours:
        recorded = await store.record_agent(claim.pending, agent_runtime_id=name, now=NOW)
        assert recorded is not None
        say(json.dumps([True, recorded.public_key]))
        sys.stdin.readline()
        await store.adopt_agent(recorded, now=NOW)
    else:
        say(json.dumps([False, claim.pending.public_key]))
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


COMMANDS = {
    f.__name__: f for f in (claim, register, refresh, refresh_and_die, change_key, migrate, migrate_and_die, hold_lock)
}

if __name__ == "__main__":
    asyncio.run(COMMANDS[sys.argv[2]](sys.argv[1], *sys.argv[3:]))
