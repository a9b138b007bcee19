"""
The tables, for the queries of this package; `broker/store/migrations` is what creates and changes them.

A test compares the two, so neither can move alone. Every table is STRICT in SQLite: a value of the wrong type is
refused when it is written, as PostgreSQL does anyway. The CHECK constraints repeat what `broker.model` promises, so
that a fault of the code stops at the database and not in somebody's snapshot.
"""

from enum import StrEnum
from typing import Final

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from broker.model import IdentityState, Mode, Origin, TaskKind, TaskState

REVISION: Final = "0001"
"""The schema this version of the broker reads and writes: the newest migration. Revisions are four digits and grow."""

NO_THREAD: Final = ""
"""What `tasks.thread_id` holds for a background task: a value and not NULL, so that one UNIQUE covers both kinds."""

_COUNT: Final = BigInteger().with_variant(Integer(), "sqlite")
_FLAG: Final = Boolean().with_variant(Integer(), "sqlite")
_SEALED: Final = LargeBinary()
_TIME: Final[Double[float]] = Double().with_variant(REAL(), "sqlite")

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _one_of(column: str, words: type[StrEnum], *, name: str) -> CheckConstraint:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


meta: Final = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("change_sequence", _COUNT, nullable=False),
    Column("keyring_id", Text),
    # The oldest schema whose readers and writers can live with this database: a migration that only adds leaves it
    # alone, so that the version before goes on running beside the new one.
    Column("minimum_revision", Text, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("change_sequence >= 0", name="change_sequence"),
    sqlite_strict=True,
)

identities: Final = Table(
    "identities",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("account_id", Text),
    Column("user_id", Text),
    Column("email", Text),
    Column("plan_type", Text),
    Column("fedramp", _FLAG, nullable=False),
    Column("assertions_enabled", _FLAG, nullable=False),
    Column("bearer_source", Text),
    Column("agent_runtime_id", Text),
    Column("public_key", Text),
    Column("sealed_private_key", _SEALED),
    Column("generation", _COUNT, nullable=False),
    Column("version", _COUNT, nullable=False),
    Column("create_time", _TIME, nullable=False),
    Column("update_time", _TIME, nullable=False),
    Column("expire_time", _TIME),
    Column("change_sequence", _COUNT, nullable=False),
    CheckConstraint("length(id) > 0 AND length(name) > 0", name="named"),
    _one_of("mode", Mode, name="mode"),
    _one_of("origin", Origin, name="origin"),
    _one_of("state", IdentityState, name="state"),
    CheckConstraint("generation >= 1 AND version >= 1", name="counted"),
    CheckConstraint(
        "mode = 'AGENT' OR (public_key IS NULL AND sealed_private_key IS NULL AND agent_runtime_id IS NULL)",
        name="bearer_has_no_key",
    ),
    CheckConstraint(
        "mode <> 'AGENT' OR state = 'DELETED' OR (public_key IS NOT NULL AND sealed_private_key IS NOT NULL)",
        name="agent_has_key",
    ),
    CheckConstraint(
        "mode <> 'AGENT' OR state <> 'ACTIVE' OR agent_runtime_id IS NOT NULL", name="active_agent_is_registered"
    ),
    sqlite_strict=True,
)
UNDELETED: Final = text("identities.state <> 'DELETED'")
"""As the partial index below has it: a bound parameter in its place would keep SQLite from using that."""

DELETED: Final = text("identities.state = 'DELETED'")

_undeleted: Final = text("state <> 'DELETED'")
_deleted: Final = text("state = 'DELETED'")
Index(
    "uq_identities_name",
    identities.c.name,
    unique=True,
    sqlite_where=_undeleted,
    postgresql_where=_undeleted,
)
Index("ix_identities_name_id", identities.c.name, identities.c.id)
Index("ix_identities_deleted", identities.c.id, sqlite_where=_deleted, postgresql_where=_deleted)
Index("ix_identities_change_sequence", identities.c.change_sequence)

bearers: Final = Table(
    "bearers",
    metadata,
    Column("identity_id", Text, ForeignKey(identities.c.id), primary_key=True),
    Column("sealed", _SEALED, nullable=False),
    Column("version", _COUNT, nullable=False),
    Column("expire_time", _TIME),
    Column("change_sequence", _COUNT, nullable=False),
    CheckConstraint("version >= 1", name="counted"),
    sqlite_strict=True,
)
Index("ix_bearers_change_sequence", bearers.c.change_sequence)

create_requests: Final = Table(
    "create_requests",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("identity_id", Text, ForeignKey(identities.c.id), nullable=False),
    Column("create_time", _TIME, nullable=False),
    Column("purge_time", _TIME, nullable=False),
    sqlite_strict=True,
)
Index("ix_create_requests_purge_time", create_requests.c.purge_time)

tasks: Final = Table(
    "tasks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("identity_id", Text, ForeignKey(identities.c.id), nullable=False),
    Column("kind", Text, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("upstream_key", Text, nullable=False),
    Column("version", _COUNT, nullable=False),
    Column("create_time", _TIME, nullable=False),
    Column("update_time", _TIME, nullable=False),
    Column("purge_time", _TIME),
    Column("change_sequence", _COUNT, nullable=False),
    CheckConstraint("length(id) > 0", name="named"),
    _one_of("kind", TaskKind, name="kind"),
    CheckConstraint("(kind = 'THREAD') = (thread_id <> '')", name="thread"),
    CheckConstraint("state IN ('ACTIVE', 'ENDED', 'REVOKED')", name="state"),
    CheckConstraint("(state = 'ACTIVE') = (purge_time IS NULL)", name="tombstone"),
    CheckConstraint("version >= 1", name="counted"),
    sqlite_strict=True,
)
_tombstones: Final = text("purge_time IS NOT NULL")
Index("uq_tasks_binding", tasks.c.identity_id, tasks.c.kind, tasks.c.thread_id, unique=True)
Index("ix_tasks_identity_id_id", tasks.c.identity_id, tasks.c.id)
Index("ix_tasks_identity_id_upstream_key", tasks.c.identity_id, tasks.c.upstream_key)
Index("ix_tasks_purge_time", tasks.c.purge_time, sqlite_where=_tombstones, postgresql_where=_tombstones)
Index("ix_tasks_change_sequence", tasks.c.change_sequence)

upstream_tasks: Final = Table(
    "upstream_tasks",
    metadata,
    Column("identity_id", Text, ForeignKey(identities.c.id), nullable=False),
    Column("generation", _COUNT, nullable=False),
    Column("upstream_key", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("version", _COUNT, nullable=False),
    Column("fencing_token", _COUNT, nullable=False),
    Column("lease_expire_time", _TIME),
    Column("sealed_task_id", _SEALED),
    Column("create_time", _TIME, nullable=False),
    Column("update_time", _TIME, nullable=False),
    Column("expire_time", _TIME),
    Column("change_sequence", _COUNT, nullable=False),
    # The key stands before the generation, so that all generations of one upstream task are found in one place.
    PrimaryKeyConstraint("identity_id", "upstream_key", "generation"),
    _one_of("state", TaskState, name="state"),
    CheckConstraint("generation >= 1 AND version >= 1 AND fencing_token >= 1", name="counted"),
    CheckConstraint("state = 'CLAIMED' OR lease_expire_time IS NULL", name="only_claims_are_leased"),
    CheckConstraint("state <> 'CLAIMED' OR sealed_task_id IS NULL", name="a_claim_has_no_answer"),
    CheckConstraint("state <> 'ACTIVE' OR sealed_task_id IS NOT NULL", name="active_has_an_answer"),
    sqlite_strict=True,
)
Index("ix_upstream_tasks_change_sequence", upstream_tasks.c.change_sequence)

orphaned_upstream_tasks: Final = Table(
    "orphaned_upstream_tasks",
    metadata,
    # No reference to `upstream_tasks`: an orphan is remembered longer than the row whose claim it was.
    Column("identity_id", Text, ForeignKey(identities.c.id), nullable=False),
    Column("generation", _COUNT, nullable=False),
    Column("upstream_key", Text, nullable=False),
    Column("fencing_token", _COUNT, nullable=False),
    Column("sealed_task_id", _SEALED),
    Column("create_time", _TIME, nullable=False),
    PrimaryKeyConstraint("identity_id", "upstream_key", "generation", "fencing_token"),
    sqlite_strict=True,
)
