"""
SQLite: its settings, its locks, its threads and the meaning of its errors.

Facts this module builds on (sqlite.org: wal.html, lang_transaction.html, rescode.html, pragma.html): the write-ahead
log needs shared memory, so all processes must be on one host; `synchronous=FULL` syncs the log at every commit; a
transaction that reads first and writes later can fail without waiting, so writers begin IMMEDIATE; readers and the
writer do not block each other.

Transactions run whole in a few threads: one switch of threads each, where an asynchronous wrapper of the driver costs
one a statement. (A claim of ten statements took 1.3 ms so, and 3.9 ms with the wrapper.)
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError

from broker.errors import BrokerError, InternalError, RowCorruptError, StartupError, StoreDownError
from broker.store import sqlite_file
from broker.store.sql import RETRY_AFTER, SqlStore

APPLICATION_ID: Final = 0x43724272
"""Marks the file as ours ("CrBr"), so that no other program's database is ever migrated."""

_READERS: Final = 4
"""Connections for reading. The hot path reads from memory; these serve misses, lists and the follower."""

_SETTINGS: Final = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA secure_delete = ON",
)

# Primary result codes (rescode.html). A connection is worth keeping after a wait that was too long, a refused value or
# a wrong statement; after anything else it may be bound to what is no longer there.
_WAITED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_OUR_FAULT: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }
)
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

Result = TypeVar("Result")


def sqlite_store(path: Path, *, busy_limit: float = 5.0) -> SqlStore:
    """
    Return the store in a SQLite file, not opened yet.

    Several processes of this host may share the file. It and its folder are made when they do not exist.

    Args:
        path: the database file.
        busy_limit: the longest wait for a lock that another process or task holds, in seconds.
    """
    return SqlStore(SqliteDriver(path, busy_limit=busy_limit))


class SqliteDriver:
    """One SQLite file, as a `broker.store.sql.Driver`; for the arguments see `sqlite_store`."""

    name = "sqlite"

    def __init__(self, path: Path, *, busy_limit: float) -> None:
        self._path: Final = path.absolute()
        self._busy_limit: Final = busy_limit
        self._lanes: _Lanes | None = None
        self._stood: tuple[object, int] | None = None

    async def connect(self) -> None:
        """
        Make or check the file, and switch it to the write-ahead log.

        Raises:
            StartupError: the file, its folder or its file system cannot be used.
            StoreDownError: another process kept it locked.
        """
        await asyncio.to_thread(self._prepare)
        self._lanes = _Lanes(
            read=self._lane(begin="BEGIN", width=_READERS, settings=(*_SETTINGS, "PRAGMA query_only = ON")),
            write=self._lane(begin="BEGIN IMMEDIATE", width=1, settings=_SETTINGS),
            watch=self._lane(begin="BEGIN", width=1, settings=(*_SETTINGS, "PRAGMA query_only = ON")),
        )

    async def close(self) -> None:
        """Let what has begun end, then close every connection."""
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            await lanes.read.close()
            await lanes.watch.close()
            await lanes.write.close()

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run work that only reads."""
        return await self._connected().read.run(work)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run work in a transaction that holds the write lock."""
        return await self._connected().write.run(work)

    async def has_changed(self) -> bool:
        """Say whether anything was committed since this was last asked."""
        stood, self._stood = self._stood, None
        self._stood = await self._connected().watch.run(_commit_mark)
        return stood is None or stood != self._stood

    def _connected(self) -> "_Lanes":
        if self._lanes is None:
            raise StoreDownError(retry_after=RETRY_AFTER, note="sqlite: not connected")
        return self._lanes

    def _uri(self) -> str:
        # mode=rw: a file that was taken away while we run is an outage, not a reason to begin with an empty one.
        return f"file:{quote(os.fsencode(self._path))}?mode=rw"

    def _lane(self, *, begin: str, width: int, settings: tuple[str, ...]) -> "_Lane":
        engine = create_engine(
            URL.create("sqlite", database=self._uri(), query={"uri": "true"}),
            # isolation_level None keeps the driver from beginning transactions of its own.
            connect_args={"timeout": self._busy_limit, "isolation_level": None},
            pool_size=width,
            max_overflow=0,
            hide_parameters=True,
        )

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            # A damaged text must spoil its own row and not the whole answer: `rows` finds the lone surrogates.
            connection.text_factory = _text_or_surrogates
            for setting in settings:
                connection.execute(setting)

        @event.listens_for(engine, "begin")
        def begin_explicitly(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        @event.listens_for(engine, "handle_error")
        def drop_broken_connection(context: ExceptionContext) -> None:
            code = _primary_code(context.original_exception)
            if code is not None and code not in _WAITED | _OUR_FAULT:
                context.is_disconnect = True

        return _Lane(engine, width=width, wait_limit=self._busy_limit)

    def _prepare(self) -> None:
        sqlite_file.make_or_check(self._path)
        try:
            with contextlib.closing(sqlite3.connect(self._uri(), uri=True, timeout=self._busy_limit)) as connection:
                self._refuse_other_programs_file(connection)
                self._switch_to_wal(connection)
        except sqlite3.Error as error:
            raise self._reason_not_to_start(error) from error

    def _refuse_other_programs_file(self, connection: sqlite3.Connection) -> None:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if objects and application_id != APPLICATION_ID:
            raise StartupError(f"{self._path} is the database of another program; name another file")

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        """Switch, waiting for others here: SQLite itself does not wait for this lock."""
        give_up = time.monotonic() + self._busy_limit
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if _primary_code(error) not in _WAITED or time.monotonic() >= give_up:
                    raise
                time.sleep(0.02)
                continue
            if mode != "wal":
                raise StartupError(f"{self._path} lies on a file system without shared memory; use a local disk")
            return

    def _reason_not_to_start(self, error: sqlite3.Error) -> Exception:
        code = _primary_code(error)
        if code in _WAITED:
            return StoreDownError(retry_after=RETRY_AFTER, note="another process keeps the database locked")
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return StoreDownError(retry_after=RETRY_AFTER, note="the disk is full or fails")
        if code in _DAMAGED:
            return StartupError(
                f"{self._path} is not a database or is damaged; move it away together with its -wal and -shm files and "
                "restore a backup, or start with an empty one"
            )
        return StartupError(
            f"{self._path} cannot be opened for writing ({_symbol(error)}); let this user write to it and its folder"
        )


class _Lane:
    """
    Connections of one kind, and as many threads to work on them.

    A caller waits for its turn no longer than for a lock, and leaves no trace when it is cancelled meanwhile. Threads
    cannot be interrupted, so what has begun goes on to its end whatever becomes of the caller.
    """

    def __init__(self, engine: Engine, *, width: int, wait_limit: float) -> None:
        self._engine: Final = engine
        self._width: Final = width
        self._wait_limit: Final = wait_limit
        self._free: Final = asyncio.Semaphore(width)
        self._threads: Final = ThreadPoolExecutor(width, thread_name_prefix="sqlite")

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        try:
            async with asyncio.timeout(self._wait_limit):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreDownError(retry_after=RETRY_AFTER, note="sqlite: every connection stayed in use") from error
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._transaction, work)
        running.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(running)

    async def close(self) -> None:
        for _ in range(self._width):
            await self._free.acquire()
        # The last connection to close moves the log into the database, which may take a while.
        await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.dispose)
        self._threads.shutdown()

    def _transaction(self, work: Callable[[Connection], Result]) -> Result:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            raise _outcome(error) from error


@dataclass(frozen=True, slots=True)
class _Lanes:
    read: _Lane
    write: _Lane
    watch: _Lane
    """One connection that never writes and is kept, for `_commit_mark`."""


def _commit_mark(connection: Connection) -> tuple[object, int]:
    """
    Return what differs once another connection, of this process or another one, has committed anything.

    `data_version` (sqlite.org/pragma.html) says something only beside others of its own connection, which is therefore
    returned with it, and held: no later one can be taken for it. It is read from the shared index of the log.
    """
    number = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    return connection.connection.dbapi_connection, number


def _outcome(error: DBAPIError) -> BrokerError:
    """Return what an error of SQLite means; only its symbolic name goes into the note."""
    code = _primary_code(error.orig)
    note = f"sqlite: {_symbol(error.orig)}"
    if code in _DAMAGED:
        return RowCorruptError(note=note)
    if code is None or code in _OUR_FAULT:
        return InternalError(note=note)
    return StoreDownError(retry_after=RETRY_AFTER, note=note)


def _primary_code(error: BaseException | None) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _symbol(error: BaseException | None) -> str:
    return str(getattr(error, "sqlite_errorname", type(error).__name__))


def _text_or_surrogates(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
