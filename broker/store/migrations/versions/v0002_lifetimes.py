"""
Bearers that are refreshed, agents on their way, ladders, and tasks that are replaced ahead and pruned when unused.

Revision 0002, after 0001. The version before cannot live with it: it would write bearers sealed to another place, and
take a task that is being replaced for a corrupt row.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BYTES = sa.LargeBinary()
_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXT = sa.Text()
_TIME: sa.Double[float] = sa.Double().with_variant(sa.REAL(), "sqlite")

_LIVE = sa.text("purge_time IS NULL")
_TOMBSTONES = sa.text("purge_time IS NOT NULL")


def upgrade() -> None:
    """Rebuild what has other CHECKs now, row by row as it was, and create the rest."""
    _change_identities()
    _rebuild_bearers()
    _rebuild_tasks()
    _rebuild_upstream_tasks()
    _create_pending_agents()
    _create_ladders()
    _create_what_prune_works_off()
    op.execute("UPDATE meta SET minimum_revision = '0002'")


def _change_identities() -> None:
    op.add_column(
        "identities",
        sa.Column(
            "former_state",
            _TEXT,
            sa.CheckConstraint(
                "former_state IS NULL OR state = 'DISABLED'", name=op.f("ck_identities_only_disabled_has_former")
            ),
        ),
    )
    # What enabling made of them so far.
    op.execute(
        "UPDATE identities SET former_state ="
        " CASE WHEN mode = 'BEARER' OR agent_runtime_id IS NOT NULL THEN 'ACTIVE' ELSE 'REGISTERING' END"
        " WHERE state = 'DISABLED'"
    )
    op.drop_index("ix_identities_deleted", table_name="identities")


def _rebuild_bearers() -> None:
    with _rows_kept(
        "bearers",
        "identity_id, version, pair, sealed, expire_time, refresh_state, fencing_token, reason, change_sequence",
        "identity_id, version, version, sealed, expire_time, 'IDLE', version, '', change_sequence",
    ):
        op.create_table(
            "bearers",
            sa.Column("identity_id", _TEXT, nullable=False),
            sa.Column("version", _COUNT, nullable=False),
            sa.Column("pair", _COUNT, nullable=False),
            sa.Column("sealed", _BYTES),
            sa.Column("expire_time", _TIME),
            sa.Column("obtain_time", _TIME),
            sa.Column("source", _TEXT),
            sa.Column("sealed_refresh_token", _BYTES),
            sa.Column("refresh_state", _TEXT, nullable=False),
            sa.Column("fencing_token", _COUNT, nullable=False),
            sa.Column("lease_expire_time", _TIME),
            sa.Column("retry_time", _TIME),
            sa.Column("reason", _TEXT, nullable=False),
            sa.Column("change_sequence", _COUNT, nullable=False),
            sa.CheckConstraint(
                "(refresh_state = 'DEAD') = (reason <> '')", name=op.f("ck_bearers_the_dead_have_a_reason")
            ),
            sa.CheckConstraint(
                "lease_expire_time IS NULL OR refresh_state IN ('IN_FLIGHT', 'PROBING')",
                name=op.f("ck_bearers_only_sendings_are_leased"),
            ),
            sa.CheckConstraint(
                "refresh_state <> 'PROBING' OR lease_expire_time IS NOT NULL", name=op.f("ck_bearers_probes_are_leased")
            ),
            sa.CheckConstraint(
                "refresh_state IN ('IDLE', 'IN_FLIGHT', 'PROBING', 'DEAD')", name=op.f("ck_bearers_refresh_state")
            ),
            sa.CheckConstraint(
                "refresh_state NOT IN ('IN_FLIGHT', 'PROBING') OR sealed_refresh_token IS NOT NULL",
                name=op.f("ck_bearers_what_is_sent_is_there"),
            ),
            sa.CheckConstraint(
                "sealed IS NOT NULL OR sealed_refresh_token IS NOT NULL", name=op.f("ck_bearers_holds_a_token")
            ),
            sa.CheckConstraint(
                "sealed_refresh_token IS NULL OR source IS NOT NULL", name=op.f("ck_bearers_who_refreshes_is_named")
            ),
            sa.CheckConstraint("version >= 1 AND pair >= 1 AND fencing_token >= 1", name=op.f("ck_bearers_counted")),
            sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_bearers_identity_id")),
            sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_bearers")),
            sqlite_strict=True,
        )
    op.create_index("ix_bearers_change_sequence", "bearers", ["change_sequence"])


def _rebuild_tasks() -> None:
    kept = (
        "id, identity_id, kind, thread_id, state, upstream_key, version, create_time, update_time, purge_time,"
        " change_sequence"
    )
    with _rows_kept("tasks", f"{kept}, last_use_time", f"{kept}, update_time"):
        op.create_table(
            "tasks",
            sa.Column("id", _TEXT, nullable=False),
            sa.Column("identity_id", _TEXT, nullable=False),
            sa.Column("kind", _TEXT, nullable=False),
            sa.Column("thread_id", _TEXT, nullable=False),
            sa.Column("state", _TEXT, nullable=False),
            sa.Column("upstream_key", _TEXT, nullable=False),
            sa.Column("version", _COUNT, nullable=False),
            sa.Column("create_time", _TIME, nullable=False),
            sa.Column("update_time", _TIME, nullable=False),
            sa.Column("purge_time", _TIME),
            sa.Column("last_use_time", _TIME, nullable=False),
            sa.Column("change_sequence", _COUNT, nullable=False),
            sa.CheckConstraint("(kind = 'THREAD') = (thread_id <> '')", name=op.f("ck_tasks_thread")),
            sa.CheckConstraint("(state = 'ACTIVE') = (purge_time IS NULL)", name=op.f("ck_tasks_tombstone")),
            sa.CheckConstraint("kind IN ('THREAD', 'BACKGROUND')", name=op.f("ck_tasks_kind")),
            sa.CheckConstraint("state IN ('ACTIVE', 'ENDED', 'REVOKED')", name=op.f("ck_tasks_state")),
            sa.CheckConstraint("length(id) > 0", name=op.f("ck_tasks_named")),
            sa.CheckConstraint("version >= 1", name=op.f("ck_tasks_counted")),
            sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_tasks_identity_id")),
            sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
            sqlite_strict=True,
        )
    op.create_index("ix_tasks_change_sequence", "tasks", ["change_sequence"])
    op.create_index("ix_tasks_identity_id_id", "tasks", ["identity_id", "id"])
    op.create_index("ix_tasks_last_use_time", "tasks", ["last_use_time"], sqlite_where=_LIVE, postgresql_where=_LIVE)
    op.create_index(
        "ix_tasks_tombstones",
        "tasks",
        ["purge_time", "state"],
        sqlite_where=_TOMBSTONES,
        postgresql_where=_TOMBSTONES,
    )
    op.create_index("ix_tasks_upstream_key", "tasks", ["identity_id", "upstream_key", "purge_time", "id"])
    op.create_index("uq_tasks_binding", "tasks", ["identity_id", "kind", "thread_id"], unique=True)


def _rebuild_upstream_tasks() -> None:
    kept = (
        "identity_id, generation, upstream_key, state, version, fencing_token, lease_expire_time, sealed_task_id,"
        " create_time, update_time, change_sequence"
    )
    # 9e999 is infinity to SQLite, which has no word for it; PostgreSQL has no database of revision 0001.
    with _rows_kept("upstream_tasks", f"{kept}, expire_time", f"{kept}, coalesce(expire_time, 9e999)"):
        op.create_table(
            "upstream_tasks",
            sa.Column("identity_id", _TEXT, nullable=False),
            sa.Column("generation", _COUNT, nullable=False),
            sa.Column("upstream_key", _TEXT, nullable=False),
            sa.Column("state", _TEXT, nullable=False),
            sa.Column("version", _COUNT, nullable=False),
            sa.Column("fencing_token", _COUNT, nullable=False),
            sa.Column("lease_expire_time", _TIME),
            sa.Column("sealed_task_id", _BYTES),
            sa.Column("create_time", _TIME, nullable=False),
            sa.Column("update_time", _TIME, nullable=False),
            sa.Column("expire_time", _TIME, nullable=False),
            sa.Column("change_sequence", _COUNT, nullable=False),
            sa.CheckConstraint(
                "state <> 'ACTIVE' OR sealed_task_id IS NOT NULL", name=op.f("ck_upstream_tasks_active_has_an_answer")
            ),
            sa.CheckConstraint(
                "state <> 'CLAIMED' OR sealed_task_id IS NULL", name=op.f("ck_upstream_tasks_a_claim_has_no_answer")
            ),
            sa.CheckConstraint(
                "state IN ('CLAIMED', 'ACTIVE') OR lease_expire_time IS NULL",
                name=op.f("ck_upstream_tasks_only_the_unfinished_are_leased"),
            ),
            sa.CheckConstraint(
                "state IN ('CLAIMED', 'ACTIVE', 'ENDED', 'REVOKED', 'EXPIRED', 'ORPHANED')",
                name=op.f("ck_upstream_tasks_state"),
            ),
            sa.CheckConstraint(
                "generation >= 1 AND version >= 1 AND fencing_token >= 1", name=op.f("ck_upstream_tasks_counted")
            ),
            sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_upstream_tasks_identity_id")),
            sa.PrimaryKeyConstraint("identity_id", "upstream_key", "generation", name=op.f("pk_upstream_tasks")),
            sqlite_strict=True,
        )
    op.create_index("ix_upstream_tasks_change_sequence", "upstream_tasks", ["change_sequence"])
    op.create_index("ix_upstream_tasks_identity_id_generation", "upstream_tasks", ["identity_id", "generation"])
    active = sa.text("state = 'ACTIVE'")
    op.create_index(
        "uq_upstream_tasks_end",
        "upstream_tasks",
        ["expire_time", "identity_id", "upstream_key", "generation"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )


def _create_pending_agents() -> None:
    op.create_table(
        "pending_agents",
        sa.Column("identity_id", _TEXT, nullable=False),
        sa.Column("generation", _COUNT, nullable=False),
        sa.Column("sealed_private_key", _BYTES),
        sa.Column("public_key", _TEXT),
        sa.Column("agent_runtime_id", _TEXT),
        sa.Column("fencing_token", _COUNT, nullable=False),
        sa.Column("lease_expire_time", _TIME),
        sa.Column("version", _COUNT, nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("update_time", _TIME, nullable=False),
        sa.CheckConstraint(
            "(sealed_private_key IS NULL) = (public_key IS NULL)", name=op.f("ck_pending_agents_a_key_is_whole")
        ),
        sa.CheckConstraint(
            "generation >= 1 AND version >= 1 AND fencing_token >= 1", name=op.f("ck_pending_agents_counted")
        ),
        sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_pending_agents_identity_id")),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_pending_agents")),
        sqlite_strict=True,
    )


def _create_ladders() -> None:
    op.create_table(
        "ladders",
        sa.Column("identity_id", _TEXT, nullable=False),
        sa.Column("version", _COUNT, nullable=False),
        sa.Column("document", _TEXT, nullable=False),
        sa.Column("change_sequence", _COUNT, nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_ladders_counted")),
        sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_ladders_identity_id")),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_ladders")),
        sqlite_strict=True,
    )
    op.create_index("ix_ladders_change_sequence", "ladders", ["change_sequence"])


def _create_what_prune_works_off() -> None:
    op.create_table(
        "deleted_identities",
        sa.Column("identity_id", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_deleted_identities_identity_id")),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_deleted_identities")),
        sqlite_strict=True,
    )
    op.execute("INSERT INTO deleted_identities (identity_id) SELECT id FROM identities WHERE state = 'DELETED'")
    op.create_table(
        "pruned_tasks",
        sa.Column("change_sequence", _COUNT, autoincrement=False, nullable=False),
        sa.Column("identity_id", _TEXT, nullable=False),
        sa.Column("thread_id", _TEXT, nullable=False),
        sa.Column("prune_time", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_pruned_tasks_identity_id")),
        sa.PrimaryKeyConstraint("change_sequence", name=op.f("pk_pruned_tasks")),
        sqlite_strict=True,
    )
    op.create_index("ix_pruned_tasks_prune_time", "pruned_tasks", ["prune_time"])


@contextmanager
def _rows_kept(table: str, columns: str, values: str) -> Iterator[None]:
    """
    Let a table be created anew and put its rows back: no row refers to one of these tables.

    The rows are set aside, and not the table renamed, so that indexes and constraints can have their names again.
    """
    # Every word of these statements stands in this file.
    op.execute(f"CREATE TABLE {table}_0001 AS SELECT * FROM {table}")  # noqa: S608
    op.drop_table(table)
    yield
    op.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table}_0001")  # noqa: S608
    op.drop_table(f"{table}_0001")
