"""The suite that every database must pass takes a `database`; one parameter a database."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker.store.sql import SqlStore
from tests.support.store_worker import store_at

ROOT = Path(__file__).parents[3]


class Worker:
    """A process of `tests.support.store_worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """Return the next line it says, empty when it has ended."""
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    def go(self) -> None:
        """Let it begin, or go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    async def rest(self) -> list[str]:
        """Return all it says until it ends, which it must do well."""
        said = []
        while line := await self.line():
            said.append(line)
        assert await self.process.wait() == 0
        return said


class SqliteDatabase:
    """A place for a SQLite database, empty at first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "broker.db"
        self.url = f"sqlite:{self.path}"
        self._stores: list[SqlStore] = []
        self._workers: list[Worker] = []

    def sibling(self, name: str) -> "SqliteDatabase":
        """Return another place, whose stores the test closes itself."""
        folder = self.path.parent / name
        folder.mkdir()
        return SqliteDatabase(folder)

    def store(self) -> SqlStore:
        """Return another store on this database, as another replica has it; closed by the fixture."""
        store = store_at(self.url)
        self._stores.append(store)
        return store

    def execute(self, statement: str, *parameters: Any) -> list[Any]:
        """Do to the database what no broker would: no constraint is checked."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("PRAGMA foreign_keys = OFF")
            return connection.execute(statement, parameters).fetchall()

    async def worker(self, command: str, *args: str) -> Worker:
        """Start another process on this database and wait until it stands ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.store_worker",
            self.url,
            command,
            *args,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        worker = Worker(process)
        self._workers.append(worker)
        assert await worker.line() == "ready"
        return worker

    async def close(self) -> None:
        """End what was begun."""
        for worker in self._workers:
            if worker.process.returncode is None:
                worker.process.kill()
            await worker.process.communicate()
        for store in self._stores:
            await store.close()


@pytest.fixture(params=[SqliteDatabase])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    """Yield an empty database of each kind."""
    database = request.param(tmp_path)
    yield database
    await database.close()


@pytest.fixture
async def store(database: SqliteDatabase) -> SqlStore:
    """Return an open store on an empty database."""
    store = database.store()
    await store.open()
    return store


@pytest.fixture
def sqlite_database(database: SqliteDatabase) -> SqliteDatabase:
    """Return the database for tests of what only SQLite has."""
    if not isinstance(database, SqliteDatabase):
        pytest.skip("only SQLite has this")
    return database
