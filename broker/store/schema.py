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

from broker.model import IdentityState, Mode, Origin, RefreshState, TaskKind, TaskState

REVISION: Final = "0002"
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
    # With the column, where ALTER TABLE puts it: SQLite cannot rebuild a table that others refer to.
    Column(
        "former_state",
        Text,
        CheckConstraint("former_state IS NULL OR state = 'DISABLED'", name="only_disabled_has_former"),
    ),
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

_undeleted: Final = text("state <> 'DELETED'")
Index(
    "uq_identities_name",
    identities.c.name,
    unique=True,
    sqlite_where=_undeleted,
    postgresql_where=_undeleted,
)
Index("ix_identities_name_id", identities.c.name, identities.c.id)
Index("ix_identities_change_sequence", identities.c.change_sequence)

bearers: Final = Table(
    "bearers",
    metadata,
    Column("identity_id", Text, ForeignKey(identities.c.id), primary_key=True),
    Column("version", _COUNT, nullable=False),
    Column("pair", _COUNT, nullable=False),
    Column("sealed", _SEALED),
    Column("expire_time", _TIME),
    Column("obtain_time", _TIME),
    Column("source", Text),
    Column("sealed_refresh_token", _SEALED),
    Column("refresh_state", Text, nullable=False),
    Column("fencing_token", _COUNT, nullable=False),
    Column("lease_expire_time", _TIME),
    Column("retry_time", _TIME),
    Column("reason", Text, nullable=False),
    Column("change_sequence", _COUNT, nullable=False),
    CheckConstraint("version >= 1 AND pair >= 1 AND fencing_token >= 1", name="counted"),
    CheckConstraint("sealed IS NOT NULL OR sealed_refresh_token IS NOT NULL", name="holds_a_token"),
    CheckConstraint("sealed_refresh_token IS NULL OR source IS NOT NULL", name="who_refreshes_is_named"),
    _one_of("refresh_state", RefreshState, name="refresh_state"),
    CheckConstraint(
        "refresh_state NOT IN ('IN_FLIGHT', 'PROBING') OR sealed_refresh_token IS NOT NULL",
        name="what_is_sent_is_there",
    ),
    CheckConstraint(
        "lease_expire_time IS NULL OR refresh_state IN ('IN_FLIGHT', 'PROBING')", name="only_sendings_are_leased"
    ),
    CheckConstraint("refresh_state <> 'PROBING' OR lease_expire_time IS NOT NULL", name="probes_are_leased"),
    CheckConstraint("(refresh_state = 'DEAD') = (reason <> '')", name="the_dead_have_a_reason"),
    sqlite_strict=True,
)
Index("ix_bearers_change_sequence", bearers.c.change_sequence)

pending_agents: Final = Table(
    "pending_agents",
    metadata,
    Column("identity_id", Text, ForeignKey(identities.c.id), primary_key=True),
    Column("generation", _COUNT, nullable=False),
    Column("sealed_private_key", _SEALED),
    Column("public_key", Text),
    Column("agent_runtime_id", Text),
    Column("fencing_token", _COUNT, nullable=False),
    Column("lease_expire_time", _TIME),
    Column("version", _COUNT, nullable=False),
    Column("create_time", _TIME, nullable=False),
    Column("update_time", _TIME, nullable=False),
    CheckConstraint("generation >= 1 AND version >= 1 AND fencing_token >= 1", name="counted"),
    CheckConstraint("(sealed_private_key IS NULL) = (public_key IS NULL)", name="a_key_is_whole"),
    sqlite_strict=True,
)

ladders: Final = Table(
    "ladders",
    metadata,
    Column("identity_id", Text, ForeignKey(identities.c.id), primary_key=True),
    Column("version", _COUNT, nullable=False),
    Column("document", Text, nullable=False),
    Column("change_sequence", _COUNT, nullable=False),
    CheckConstraint("version >= 1", name="counted"),
    sqlite_strict=True,
)
Index("ix_ladders_change_sequence", ladders.c.change_sequence)

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
    Column("last_use_time", _TIME, nullable=False),
    Column("change_sequence", _COUNT, nullable=False),
    CheckConstraint("length(id) > 0", name="named"),
    _one_of("kind", TaskKind, name="kind"),
    CheckConstraint("(kind = 'THREAD') = (thread_id <> '')", name="thread"),
    CheckConstraint("state IN ('ACTIVE', 'ENDED', 'REVOKED')", name="state"),
    CheckConstraint("(state = 'ACTIVE') = (purge_time IS NULL)", name="tombstone"),
    CheckConstraint("version >= 1", name="counted"),
    sqlite_strict=True,
)
# The conditions of the partial indexes, spelled out in the queries that shall use them; see UNDELETED.
LIVE: Final = text("tasks.purge_time IS NULL")
TOMBSTONE: Final = text("tasks.purge_time IS NOT NULL")

_live: Final = text("purge_time IS NULL")
_tombstones: Final = text("purge_time IS NOT NULL")
Index("uq_tasks_binding", tasks.c.identity_id, tasks.c.kind, tasks.c.thread_id, unique=True)
Index("ix_tasks_identity_id_id", tasks.c.identity_id, tasks.c.id)
Index("ix_tasks_upstream_key", tasks.c.identity_id, tasks.c.upstream_key, tasks.c.purge_time, tasks.c.id)
Index("ix_tasks_last_use_time", tasks.c.last_use_time, sqlite_where=_live, postgresql_where=_live)
# With the state, so that tombstones are counted without being looked at.
Index(
    "ix_tasks_tombstones",
    tasks.c.purge_time,
    tasks.c.state,
    sqlite_where=_tombstones,
    postgresql_where=_tombstones,
)
Index("ix_tasks_change_sequence", tasks.c.change_sequence)

pruned_tasks: Final = Table(
    "pruned_tasks",
    metadata,
    # What is left of a live binding that was pruned, until everybody who follows the changes has seen it.
    Column("change_sequence", _COUNT, primary_key=True, autoincrement=False),
    Column("identity_id", Text, ForeignKey(identities.c.id), nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("prune_time", _TIME, nullable=False),
    sqlite_strict=True,
)
Index("ix_pruned_tasks_prune_time", pruned_tasks.c.prune_time)

deleted_identities: Final = Table(
    "deleted_identities",
    metadata,
    # Whose bindings are still to be pruned. Rows of `identities` stay, so that nobody need search them for these.
    Column("identity_id", Text, ForeignKey(identities.c.id), primary_key=True),
    sqlite_strict=True,
)

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
    # Infinity where it has no end, so that one walk in this order meets all that live.
    Column("expire_time", _TIME, nullable=False),
    Column("change_sequence", _COUNT, nullable=False),
    # The key stands before the generation, so that all generations of one upstream task are found in one place.
    PrimaryKeyConstraint("identity_id", "upstream_key", "generation"),
    _one_of("state", TaskState, name="state"),
    CheckConstraint("generation >= 1 AND version >= 1 AND fencing_token >= 1", name="counted"),
    CheckConstraint(
        "state IN ('CLAIMED', 'ACTIVE') OR lease_expire_time IS NULL", name="only_the_unfinished_are_leased"
    ),
    CheckConstraint("state <> 'CLAIMED' OR sealed_task_id IS NULL", name="a_claim_has_no_answer"),
    CheckConstraint("state <> 'ACTIVE' OR sealed_task_id IS NOT NULL", name="active_has_an_answer"),
    sqlite_strict=True,
)
ACTIVE: Final = text("upstream_tasks.state = 'ACTIVE'")

_active: Final = text("state = 'ACTIVE'")
Index("ix_upstream_tasks_change_sequence", upstream_tasks.c.change_sequence)
Index("ix_upstream_tasks_identity_id_generation", upstream_tasks.c.identity_id, upstream_tasks.c.generation)
# Unique already by its other columns, and said to be so: only then does SQLite walk it without sorting what it joins.
Index(
    "uq_upstream_tasks_end",
    upstream_tasks.c.expire_time,
    upstream_tasks.c.identity_id,
    upstream_tasks.c.upstream_key,
    upstream_tasks.c.generation,
    unique=True,
    sqlite_where=_active,
    postgresql_where=_active,
)

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
