"""What a SQLite file and its disk can do to us, and that the broker goes on when it is over."""

import asyncio
import os
import resource
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from broker.errors import RowCorruptError, StartupError, StoreDownError
from broker.model import Identity, IdentityState, Task
from broker.store import Claimed
from broker.store.sql import SqlStore
from broker.store.sqlite import APPLICATION_ID, sqlite_store
from tests.support.stores import NOW, add_identity, add_task, agent_identity, create_request, task_claim


async def test_a_held_lock_is_an_outage_that_ends(database: Any) -> None:
    """Another process that keeps the write lock stops writes after the busy limit, never reads, until it lets go."""
    store = sqlite_store(database.path, busy_limit=0.1)
    await store.open()
    identity = await add_identity(store)
    holder = await database.worker("hold_lock")
    with pytest.raises(StoreDownError) as caught:
        await store.claim_task(task_claim(identity, "t"))
    assert caught.value.retry_after is not None
    assert identity == await store.identity(identity.id)
    assert await store.task(identity.id, "t") is None
    holder.go()
    assert await holder.line() == "released"
    assert isinstance(await store.claim_task(task_claim(identity, "t")), Claimed)
    await store.close()


async def test_callers_behind_a_held_lock_do_not_queue_up_for_ever(database: Any) -> None:
    """However many wait, each is answered after its own busy limit and at most one more, not after all the others'."""
    store = sqlite_store(database.path, busy_limit=0.2)
    await store.open()
    identity = await add_identity(store)
    await database.worker("hold_lock")
    calls = [store.claim_task(task_claim(identity, f"t{n}")) for n in range(50)]
    async with asyncio.timeout(5):  # one after the other they would take ten seconds
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {StoreDownError} == {type(outcome) for outcome in outcomes}
    await store.close()


async def test_a_lock_held_at_the_start_is_an_outage(database: Any) -> None:
    """A start beside a process that keeps the lock while the schema is missing fails as an outage, then succeeds."""
    database.path.touch(0o600)
    sqlite3.connect(database.path).close()
    database.execute("PRAGMA journal_mode = WAL")
    holder = await database.worker("hold_lock")
    store = sqlite_store(database.path, busy_limit=0.1)
    with pytest.raises(StoreDownError):
        await store.open()
    holder.go()
    assert await holder.line() == "released"
    await store.open()
    await store.close()


async def test_a_start_waits_for_a_lock_on_a_new_file(database: Any) -> None:
    """SQLite does not wait for the lock that the switch to the write-ahead log needs, so we do."""
    database.path.touch(0o600)
    holder = await database.worker("hold_lock")
    opening = asyncio.create_task((store := database.store()).open())
    done, _ = await asyncio.wait([opening], timeout=0.3)
    assert not done
    holder.go()
    await opening
    await add_identity(store)


async def test_a_full_database_is_an_outage_that_ends(store: SqlStore) -> None:
    """SQLITE_FULL in the middle of a transaction rolls all of it back; when there is room again work goes on."""
    identity = await add_identity(store)
    await _on_writer(store, "PRAGMA max_page_count = 1")  # SQLite takes the least it can: the present size
    done = await _add_tasks_until_refused(store, identity, "x" * 200)
    assert done
    assert sorted(task.id for task in done) == sorted(
        task.id for task in (await store.tasks(limit=10_000)).rows if task.upstream.sealed_task_id
    )
    await add_task(store, identity, "again")


async def test_a_file_that_cannot_grow_is_an_outage_that_ends(store: SqlStore, database: Any) -> None:
    """A write error of the operating system reaches the caller, loses nothing acknowledged, and can end."""
    identity = await add_identity(store)
    with _file_size_limit(400_000):
        done = await _add_tasks_until_refused(store, identity, "t")
    assert done
    for task in done:
        assert task == await store.task_by_id(task.id)
    await add_task(store, identity, "again")
    await store.close()
    await store.open()
    for task in done:
        assert task == await store.task_by_id(task.id)


async def test_a_read_only_database_is_an_outage_that_ends(store: SqlStore) -> None:
    """SQLITE_READONLY drops the connection, and the next one writes again."""
    identity = await add_identity(store)
    await _on_writer(store, "PRAGMA query_only = ON")
    with pytest.raises(StoreDownError):
        await store.claim_task(task_claim(identity, "t"))
    assert isinstance(await store.claim_task(task_claim(identity, "t")), Claimed)


async def test_a_file_that_was_taken_away_is_not_replaced(store: SqlStore, database: Any) -> None:
    """A reconnect that finds no file is an outage; an empty database must never take its place."""
    identity = await add_identity(store)
    await _on_writer(store, "PRAGMA query_only = ON")
    with pytest.raises(StoreDownError):
        await store.claim_task(task_claim(identity, "t"))  # drops the writing connection
    away = database.path.rename(database.path.with_suffix(".away"))
    with pytest.raises(StoreDownError):
        await store.claim_task(task_claim(identity, "t"))
    assert not database.path.exists()
    away.rename(database.path)
    assert isinstance(await store.claim_task(task_claim(identity, "t")), Claimed)


async def test_no_statement_or_value_is_in_an_error(store: SqlStore) -> None:
    """Neither the error nor its cause carries what was to be written."""
    identity = await add_identity(store, agent_identity(sealed_private_key=b"canary-bytes"))
    with pytest.raises(Exception) as caught:  # noqa: PT011 whatever it is, it must not carry the value
        await store.create_identity(replace(identity, email="canary-mail", name="other"), create_request())
    cause: BaseException | None = caught.value
    assert cause.__cause__ is not None
    while cause is not None:
        assert "canary" not in f"{cause} {cause!r} {getattr(cause, 'note', '')}"
        cause = cause.__cause__


@pytest.mark.parametrize("damage", ["not a database, whatever its name says", "SQLite format 3\0" + "x" * 5000])
async def test_what_is_no_database_stops_the_start(tmp_path: Path, damage: str) -> None:
    """A damaged or foreign file is refused with what to do, and left as it is."""
    path = tmp_path / "broker.db"
    path.write_text(damage)
    path.chmod(0o600)
    with pytest.raises(StartupError, match="restore a backup"):
        await sqlite_store(path).open()
    assert damage == path.read_text()


async def test_a_damaged_page_is_loud(store: SqlStore, database: Any) -> None:
    """A page that SQLite cannot read is data loss, said for what lies on it, while other tables are read."""
    identity = await add_identity(store)
    await store.bind_keyring("ring")
    await store.close()
    [(page,)] = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'identities'")
    [(size,)] = database.execute("PRAGMA page_size")
    with database.path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    await store.open()
    with pytest.raises(RowCorruptError):
        await store.identity(identity.id)
    assert await store.keyring_id() == "ring"


async def test_files_and_folders_belong_to_us_alone(tmp_path: Path) -> None:
    """Whatever the umask, the folder is 0700 and the database, its log and its index are 0600."""
    before = os.umask(0)
    try:
        path = tmp_path / "state" / "deeper" / "broker.db"
        store = sqlite_store(path)
        await store.open()
        await add_identity(store)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await store.close()
    finally:
        os.umask(before)
    assert modes == {"broker.db": 0o600, "broker.db-wal": 0o600, "broker.db-shm": 0o600}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)} == {0o700}


@pytest.mark.parametrize(
    ("kind", "because"),
    [
        ("link", "not a plain file"),
        ("folder", "not a plain file"),
        ("hard link", "hard links"),
        ("wide", r"mode 0640\); run: chmod 600"),
        ("other's", "another user"),
        ("no folder", "cannot be made"),
    ],
)
async def test_a_file_that_may_not_be_ours_is_refused(
    tmp_path: Path, kind: str, because: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links, folders, other users' and open files are refused before anything is written."""
    path, real = tmp_path / "broker.db", tmp_path / "real.db"
    real.touch(0o600)
    match kind:
        case "link":
            path.symlink_to(real)
        case "folder":
            path.mkdir()
        case "hard link":
            path.hardlink_to(real)
        case "wide":
            path.touch()
            path.chmod(0o640)
        case "other's":
            path.touch(0o600)
            monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)
        case _:
            path = real / "broker.db"
    with pytest.raises(StartupError, match=because):
        await sqlite_store(path).open()
    assert real.stat().st_size == 0


async def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal says which file system it is and what to use instead."""
    monkeypatch.setattr("broker.store.sqlite_file.file_system_type", lambda *_: "nfs4")
    with pytest.raises(StartupError, match=r"nfs4.*postgresql"):
        await sqlite_store(tmp_path / "broker.db").open()
    assert not (tmp_path / "broker.db").exists()


async def test_the_settings_hold_on_every_connection(store: SqlStore, database: Any) -> None:
    """WAL, full synchronisation and foreign keys are on for readers and the writer; only the writer can write."""
    names = ("journal_mode", "synchronous", "foreign_keys", "query_only", "trusted_schema", "application_id")

    def settings(connection: Connection) -> list[Any]:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    assert await store._driver.write(settings) == ["wal", 2, 1, 0, 0, APPLICATION_ID]
    reads = await asyncio.gather(*(store._driver.read(settings) for _ in range(4)))
    assert reads == [["wal", 2, 1, 1, 0, APPLICATION_ID]] * 4


async def test_deleted_secrets_are_wiped_from_the_file(store: SqlStore, database: Any) -> None:
    """A sealed key that was replaced does not stay behind in a free page."""
    identity = await add_identity(store, agent_identity(sealed_private_key=b"canary" * 500))
    await store.write_identity(replace(identity, state=IdentityState.DELETED, sealed_private_key=None, update_time=NOW))
    await store.close()  # moves the log into the file and removes it
    assert b"canary" not in database.path.read_bytes()


async def _add_tasks_until_refused(store: SqlStore, identity: Identity, prefix: str) -> list[Task]:
    """Return the tasks that were acknowledged before the outage that must come."""
    done: list[Task] = []
    while len(done) < 10_000:
        try:
            done.append(await add_task(store, identity, f"{prefix}{len(done)}"))
        except StoreDownError:
            return done
    pytest.fail("the outage did not come")


async def _on_writer(store: SqlStore, statement: str) -> None:
    """Do something to the writing connection that the operating system or an operator could do to the file."""
    await store._driver.write(lambda connection: connection.exec_driver_sql(statement).close())


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
