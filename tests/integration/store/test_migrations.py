"""Schemas: the tables in the code and in the database, newer ones, foreign ones."""

import asyncio
import sys
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from broker.errors import StartupError
from broker.store import SchemaTooNewError, migrations, schema
from broker.store.sql import SqlStore
from tests.support.stores import add_identity

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
