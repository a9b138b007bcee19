"""Schemas: the tables in the code and in the database, newer ones, foreign ones."""

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from broker.errors import StartupError
from broker.model import IdentityState, StoredBearer, TaskState
from broker.store import SchemaTooNewError, migrations, schema
from broker.store.sql import SqlStore
from tests.support.stores import add_identity, create_request

ROOT = migrations.FOLDER.parents[2]

_OBJECTS = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND tbl_name <> 'alembic_version'"


def test_the_schema_in_the_code_is_what_the_migrations_make() -> None:
    """Neither the tables of `schema` nor the migrations can be changed alone, constraints included."""
    migrated, declared = create_engine("sqlite://"), create_engine("sqlite://")
    with migrated.begin() as connection:
        migrations.upgrade(connection)
        made = _objects(connection)
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    with declared.begin() as connection:
        schema.metadata.create_all(connection)
        assert made == _objects(connection)
    migrated.dispose()
    declared.dispose()


def test_the_newest_migration_is_the_schema_of_this_version() -> None:
    """`schema.REVISION` is the one head, and revisions are four digits in an unbroken row."""
    scripts = list(ScriptDirectory(migrations.FOLDER).walk_revisions())
    assert scripts[0].revision == schema.REVISION
    assert [f"{n:04d}" for n in range(len(scripts), 0, -1)] == [script.revision for script in scripts]


_ROWS_OF_0001 = """
    INSERT INTO identities (id, name, backend, mode, origin, state, state_reason, fedramp, assertions_enabled,
        agent_runtime_id, public_key, sealed_private_key, generation, version, create_time, update_time, change_sequence)
    VALUES ('a', 'agent', 'codex', 'AGENT', 'CREATED', 'ACTIVE', '', 0, 1, 'r', 'k', x'01', 1, 3, 1.5, 2.5, 1),
        ('d', 'off', 'codex', 'AGENT', 'CREATED', 'DISABLED', 'IDENTITY_REVOKED', 0, 1, 'r', 'k', x'01', 2, 2, 1, 2, 2),
        ('n', 'new', 'codex', 'AGENT', 'CREATED', 'DISABLED', 'IDENTITY_REVOKED', 0, 1, NULL, 'k', x'01', 2, 2, 1, 2, 3),
        ('g', 'gone', 'codex', 'BEARER', 'BEARER_ONLY', 'DELETED', '', 0, 1, NULL, NULL, NULL, 2, 2, 1, 2, 4);
    INSERT INTO bearers (identity_id, sealed, version, expire_time, change_sequence) VALUES ('a', x'02', 1, 9.5, 5);
    INSERT INTO tasks (id, identity_id, kind, thread_id, state, upstream_key, version, create_time, update_time,
        purge_time, change_sequence)
    VALUES ('t1', 'a', 'THREAD', 't', 'ACTIVE', 'k1', 6, 3, 4, NULL, 6),
        ('t2', 'a', 'THREAD', 'u', 'ENDED', 'k2', 7, 3, 4, 99, 7), ('t3', 'g', 'BACKGROUND', '', 'ACTIVE', 'k', 8, 3, 4,
        NULL, 8);
    INSERT INTO upstream_tasks (identity_id, generation, upstream_key, state, version, fencing_token, lease_expire_time,
        sealed_task_id, create_time, update_time, expire_time, change_sequence)
    VALUES ('a', 1, 'k1', 'ACTIVE', 9, 9, NULL, x'03', 3, 4, NULL, 9),
        ('a', 1, 'k2', 'CLAIMED', 10, 10, 50, NULL, 3, 4, NULL, 10);
    INSERT INTO create_requests VALUES ('r', x'04', 'a', 1, 100);
    UPDATE meta SET change_sequence = 10, keyring_id = 'ring';
"""


async def test_what_0001_kept_is_there_afterwards(database: Any) -> None:
    """Every row of the schema before comes over with what it meant, and what is new has its first value."""
    database.path.touch(mode=0o600)
    with closing(sqlite3.connect(database.path)) as connection:
        _run_migrations(database.path, "0001")
        connection.executescript(_ROWS_OF_0001)
    store = database.store()
    await store.open()
    assert (await store.statistics()).schema_version == schema.REVISION
    assert (await store.change_sequence(), await store.keyring_id()) == (10, "ring")
    agent = await store.identity("a")
    assert (agent.version, agent.create_time, agent.former_state) == (3, 1.5, None)
    assert (await store.identity("d")).former_state is IdentityState.ACTIVE
    assert (await store.identity("n")).former_state is IdentityState.REGISTERING
    assert await store.bearer("a") == StoredBearer(identity_id="a", sealed=b"\x02", expire_time=9.5)
    live, ended = (await store.tasks(identity_id="a")).rows
    assert (live.last_use_time, live.upstream.state, live.upstream.expire_time) == (4, TaskState.ACTIVE, None)
    assert (ended.purge_time, ended.upstream.lease_expire_time) == (99, 50)
    assert (live,) == (await store.live_tasks(now=1e12)).rows
    assert await store.prune(5, idle_before=0) == 2, "the binding that a deleted identity left, and the note of it"
    assert (await store.remembered_identity(create_request("r", fingerprint=b"\x04", now=5))).id == "a"
    assert database.execute("PRAGMA foreign_key_check") == database.execute("PRAGMA integrity_check")[1:] == []


async def test_0001_is_refused_by_its_successors_database(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write bearers sealed to another place, and take a task that is being replaced for damaged."""
    await store.close()
    monkeypatch.setattr(schema, "REVISION", "0001")
    with pytest.raises(SchemaTooNewError, match="0002"):
        await store.open()


def _run_migrations(path: Path, revision: str) -> None:
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(migrations.FOLDER))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


async def test_a_schema_that_does_not_know_us_is_refused(store: SqlStore, database: object) -> None:
    """A database of a newer version in a form we cannot read stops the start and stays as it is."""
    await store.close()
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.execute("UPDATE meta SET minimum_revision = '9998'")
    with pytest.raises(SchemaTooNewError, match="9999"):
        await store.open()
    assert database.execute("SELECT version_num FROM alembic_version") == [("9999",)]


async def test_a_schema_that_came_while_we_waited_is_looked_at_again(store: SqlStore, database: object) -> None:
    """Behind the lock another process may have migrated to a schema that does not know us."""
    await store._driver.write(migrations.upgrade)
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.execute("UPDATE meta SET minimum_revision = '9999'")
    with pytest.raises(SchemaTooNewError):
        await store._driver.write(migrations.upgrade)


async def test_a_newer_schema_that_tolerates_us_is_used(store: SqlStore, database: object) -> None:
    """The version before goes on running while the next one is rolled out."""
    await store.close()
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    await store.open()
    await add_identity(store)
    assert (await store.statistics()).schema_version == "9999"
    assert database.execute("SELECT version_num FROM alembic_version") == [("9999",)]


async def test_a_revision_nobody_made_is_refused(store: SqlStore, database: object) -> None:
    """A revision that no migration leads away from is not guessed at."""
    await store.close()
    database.execute("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(StartupError, match="0000"):
        await store.open()


async def test_another_programs_database_is_left_alone(database: object) -> None:
    """A file with tables that are not ours is refused and not changed, not even its journal mode."""
    database.execute("CREATE TABLE theirs (id)")
    database.path.chmod(0o600)
    before = database.path.read_bytes()
    with pytest.raises(StartupError, match="another program"):
        await database.store().open()
    assert before == database.path.read_bytes()


async def test_a_current_database_is_opened_without_alembic(store: SqlStore, database: object) -> None:
    """Alembic costs a third of a second at every start, so only a migration imports it."""
    await store.close()
    program = (
        "import asyncio, sys, pathlib\n"
        "from broker.store.sqlite import sqlite_store\n"
        "asyncio.run(sqlite_store(pathlib.Path(sys.argv[1])).open())\n"
        "print('alembic' in sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, database.path, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.strip()) == (0, b"False")


def _objects(connection: Any) -> set[tuple[str, str, frozenset[str]]]:
    listed = connection.exec_driver_sql(_OBJECTS).all()
    return {(kind, name, frozenset(_parts(sql))) for kind, name, sql in listed}


def _parts(sql: str) -> list[str]:
    """Return columns and constraints one by one: ALTER TABLE writes a new column into the line of the last."""
    parts, depth = [""], 0
    for letter in sql:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if (letter, depth) in ((",", 1), ("(", 1), (")", 0)):
            parts.append("")
        else:
            parts[-1] += letter
    return [" ".join(part.split()) for part in parts]
