"""
The schema's revisions, and how a database gets from an older one to the newest.

Alembic runs them, inside one transaction that holds the write lock: processes that start together migrate once, and a
kill in the middle leaves the old schema or the new one. A database that is current never makes us import Alembic,
which costs a third of a second.

A new migration is a file in `versions` whose revision is the next number, a changed `broker.store.schema` and its
`REVISION`. A migration that the version before cannot live with also sets `meta.minimum_revision`; one that only adds
leaves it alone. There is no way down: restore the backup.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, select, text

from broker.errors import StartupError
from broker.store import SchemaTooNewError, schema

FOLDER: Final = Path(__file__).parent
"""Where Alembic finds the migrations: its `script_location`."""

_VERSION_TABLE: Final = "alembic_version"


def stored_revision(connection: Connection) -> str | None:
    """Return the revision of the database, None for an empty one."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    revision = connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar_one_or_none()  # noqa: S608 a constant
    return None if revision is None else str(revision)


def is_current(connection: Connection) -> bool:
    """
    Return whether the database needs no migration: its revision is ours, or a newer one that tolerates us.

    Raises:
        SchemaTooNewError: a newer version of the broker wrote it, in a form this version cannot read.
    """
    revision = stored_revision(connection)
    if revision is None or revision < schema.REVISION:
        return False
    if revision > schema.REVISION:
        needed = connection.execute(select(schema.meta.c.minimum_revision)).scalar_one()
        if needed > schema.REVISION:
            raise SchemaTooNewError(
                f"the database has schema {revision} and needs a broker that knows schema {needed}, this one knows "
                f"{schema.REVISION}; start the newer version again, or restore the backup made before it was installed"
            )
    return True


def upgrade(connection: Connection) -> None:
    """
    Bring the database to the newest revision; `connection` is in a transaction that holds the write lock.

    Raises:
        SchemaTooNewError: as `is_current`; another process may have migrated while this one waited for the lock.
        StartupError: the database has a revision that no version ever had.
    """
    if is_current(connection):
        return
    # Here, and not above: see the module's docstring.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StartupError(
            f"the database has schema {stored_revision(connection)}, to which no migration of this version belongs; "
            "restore a backup or use the version that made it"
        ) from error
