"""
SQLite: the file, its settings, its locks and the meaning of its errors.

Facts this module builds on (sqlite.org: wal.html, lang_transaction.html, rescode.html, pragma.html, howtocorrupt.html):
the write-ahead log needs shared memory, so all processes must be on one host; `synchronous=FULL` syncs the log at
every commit; a transaction that reads first and writes later can fail without waiting, so writers begin IMMEDIATE;
SQLite gives `-wal` and `-shm` the mode of the database file; closing any descriptor of the file drops the process's
locks on it, so nothing here opens an existing file but SQLite itself.
"""

import contextlib
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from broker.errors import BrokerError, InternalError, RowCorruptError, StartupError, StoreDownError
from broker.store.sql import RETRY_AFTER, Engines, SqlStore

APPLICATION_ID: Final = 0x43724272
"""Marks the file as ours ("CrBr"), so that no other program's database is ever migrated; see `file database.db`."""

_READERS: Final = 4
"""Connections for reading. The hot path reads from memory; these serve misses, lists and the follower."""

_NETWORK_FILE_SYSTEMS: Final = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|gpfs|beegfs|ocfs2|gfs2|orangefs|pvfs2|ncpfs|coda"
    r"|fuse\.(sshfs|glusterfs|ceph|s3fs|rclone|davfs\d?|smbnetfs|juicefs|gcsfuse|blobfuse\d?|mount-s3)"
)

_SETTINGS: Final = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA secure_delete = ON",
)

# Primary result codes (rescode.html). The connection is only worth keeping after a wait that was too long, a refused
# value or a wrong statement; after anything else it may be bound to what is no longer there.
_WAITED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_OURS = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_MISUSE})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class SqliteDriver:
    """
    One SQLite file that several processes of this host may share.

    Args:
        path: the database file; it and its folder are made when they do not exist.
        busy_limit: seconds to wait for a lock that another process or task holds.
    """

    name = "sqlite"

    def __init__(self, path: Path, *, busy_limit: float = 5.0) -> None:
        self._path: Final = path.absolute()
        self._busy_limit: Final = busy_limit

    def prepare(self) -> None:
        """
        Make or check the file, and switch it to the write-ahead log.

        Raises:
            StartupError: the file, its folder or its file system cannot be used.
            StoreDownError: another process kept it locked.
        """
        try:
            _make_folder(self._path.parent)
            _refuse_network_file_system(self._path.parent)
            _make_or_check_file(self._path)
        except OSError as error:
            raise StartupError(
                f"the database {self._path} cannot be made or looked at ({error.strerror}); "
                "name a folder that this user may write to"
            ) from error
        try:
            with contextlib.closing(sqlite3.connect(self._uri(), uri=True, timeout=self._busy_limit)) as connection:
                self._refuse_other_programs_file(connection)
                self._switch_to_wal(connection)
        except sqlite3.Error as error:
            self._refuse_start(error)

    def engines(self) -> Engines:
        """Return an engine whose transactions begin IMMEDIATE on the one writing connection, and one for reading."""
        return Engines(
            write=self._engine(begin="BEGIN IMMEDIATE", connections=1, settings=_SETTINGS),
            read=self._engine(begin="BEGIN", connections=_READERS, settings=(*_SETTINGS, "PRAGMA query_only = ON")),
        )

    def outcome(self, error: DBAPIError) -> BrokerError:
        """Return what an error of SQLite means; only its symbolic name goes into the note."""
        code = _primary_code(error.orig)
        note = f"sqlite: {getattr(error.orig, 'sqlite_errorname', type(error.orig).__name__)}"
        if code in _DAMAGED:
            return RowCorruptError(note=note)
        if code in _OURS or code is None:
            return InternalError(note=note)
        return StoreDownError(retry_after=RETRY_AFTER, note=note)

    def _uri(self) -> str:
        # mode=rw: a file that was taken away while we run is an outage, not a reason to begin with an empty one.
        return f"file:{quote(os.fsencode(self._path))}?mode=rw"

    def _engine(self, *, begin: str, connections: int, settings: tuple[str, ...]) -> AsyncEngine:
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=self._uri(), query={"uri": "true"}),
            # isolation_level None keeps the driver from beginning transactions of its own.
            connect_args={"timeout": self._busy_limit, "isolation_level": None},
            pool_size=connections,
            max_overflow=0,
            pool_timeout=self._busy_limit,
            hide_parameters=True,
        )

        @event.listens_for(engine.sync_engine, "connect")
        def configure(connection: Any, _record: object) -> None:
            # A damaged text must spoil its own row and not the whole answer: `rows` finds the lone surrogates.
            connection.driver_connection.text_factory = _text_or_surrogates
            cursor = connection.cursor()
            for setting in settings:
                cursor.execute(setting)
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def begin_explicitly(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        @event.listens_for(engine.sync_engine, "handle_error")
        def drop_broken_connection(context: ExceptionContext) -> None:
            code = _primary_code(context.original_exception)
            if code is not None and code not in _WAITED | _OURS:
                context.is_disconnect = True

        return engine

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

    def _refuse_start(self, error: sqlite3.Error) -> None:
        code = _primary_code(error)
        if code in _WAITED:
            raise StoreDownError(retry_after=RETRY_AFTER, note="another process keeps the database locked") from error
        if code in _DAMAGED:
            raise StartupError(
                f"{self._path} is not a database or is damaged; move it away together with its -wal and -shm files and "
                "restore a backup, or start with an empty one"
            ) from error
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise StoreDownError(retry_after=RETRY_AFTER, note="the disk is full or fails") from error
        raise StartupError(
            f"{self._path} cannot be opened for writing ({getattr(error, 'sqlite_errorname', 'unknown')}); "
            "make the file and its folder writable for this user"
        ) from error


def sqlite_store(path: Path, *, busy_limit: float = 5.0) -> SqlStore:
    """Return the store in that SQLite file, not opened yet; `busy_limit` is the longest wait for a lock, in seconds."""
    return SqlStore(SqliteDriver(path, busy_limit=busy_limit))


def file_system_type(path: Path, mountinfo: str) -> str | None:
    """
    Return the type of the file system a resolved path lies on, None when no mount covers it.

    Args:
        path: absolute and without symbolic links.
        mountinfo: the content of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    """
    best = Path()
    found = None
    for mount_point, kind in _mounts(mountinfo):
        # Of mounts on the same place the last one is seen.
        if path.is_relative_to(mount_point) and len(mount_point.parts) >= len(best.parts):
            best, found = mount_point, kind
    return found


def _mounts(mountinfo: str) -> Iterator[tuple[Path, str]]:
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) > 4:  # noqa: PLR2004 the mount point is the fifth field
            mount_point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            yield Path(mount_point), after.split(" ")[0]


def _refuse_network_file_system(folder: Path) -> None:
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return  # not Linux: development only
    kind = file_system_type(folder.resolve(), mountinfo)
    if kind is not None and _NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise StartupError(
            f"{folder} lies on the network file system {kind}, on which SQLite's locks and shared log do not work; "
            "use a local disk, or a postgresql:// database for several hosts"
        )


def _make_folder(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process that starts with us
            each.mkdir(mode=0o700)
            _sync_folder(each.parent)


def _make_or_check_file(path: Path) -> None:
    try:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _refuse_unsafe_file(path)
        return
    try:
        os.fsync(made)
    finally:
        os.close(made)
    _sync_folder(path.parent)


def _refuse_unsafe_file(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise StartupError(f"{path} is not a plain file (a link, a folder or a device); name the database file itself")
    if found.st_uid != os.geteuid():
        raise StartupError(f"{path} belongs to another user; start as that user or name another file")
    if found.st_nlink != 1:
        raise StartupError(f"{path} has other hard links, which SQLite cannot share safely; copy it instead")
    if found.st_mode & 0o077:
        raise StartupError(f"{path} is open to other users (mode {found.st_mode & 0o777:04o}); run: chmod 600 {path}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text_or_surrogates(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _primary_code(error: BaseException | None) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
