"""
The first schema.

Written out and frozen: a migration says what was done then, `broker.store.schema` what holds now.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BYTES = sa.LargeBinary()
_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_FLAG = sa.Boolean().with_variant(sa.Integer(), "sqlite")
_TEXT = sa.Text()
_TIME: sa.Double[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    """Create every table, and the one row of `meta`."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("PRAGMA application_id = 1131561586")  # `broker.store.sqlite.APPLICATION_ID`, rolled back like a row
    op.create_table(
        "identities",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("backend", _TEXT, nullable=False),
        sa.Column("mode", _TEXT, nullable=False),
        sa.Column("origin", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("state_reason", _TEXT, nullable=False),
        sa.Column("account_id", _TEXT),
        sa.Column("user_id", _TEXT),
        sa.Column("email", _TEXT),
        sa.Column("plan_type", _TEXT),
        sa.Column("fedramp", _FLAG, nullable=False),
        sa.Column("assertions_enabled", _FLAG, nullable=False),
        sa.Column("bearer_source", _TEXT),
        sa.Column("agent_runtime_id", _TEXT),
        sa.Column("public_key", _TEXT),
        sa.Column("sealed_private_key", _BYTES),
        sa.Column("generation", _COUNT, nullable=False),
        sa.Column("version", _COUNT, nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("update_time", _TIME, nullable=False),
        sa.Column("expire_time", _TIME),
        sa.Column("change_sequence", _COUNT, nullable=False),
        sa.CheckConstraint(
            "mode <> 'AGENT' OR state <> 'ACTIVE' OR agent_runtime_id IS NOT NULL",
            name=op.f("ck_identities_active_agent_is_registered"),
        ),
        sa.CheckConstraint(
            "mode <> 'AGENT' OR state = 'DELETED' OR (public_key IS NOT NULL AND sealed_private_key IS NOT NULL)",
            name=op.f("ck_identities_agent_has_key"),
        ),
        sa.CheckConstraint(
            "mode = 'AGENT' OR (public_key IS NULL AND sealed_private_key IS NULL AND agent_runtime_id IS NULL)",
            name=op.f("ck_identities_bearer_has_no_key"),
        ),
        sa.CheckConstraint("mode IN ('AGENT', 'BEARER')", name=op.f("ck_identities_mode")),
        sa.CheckConstraint(
            "origin IN ('CREATED', 'IMPORTED_RECORD', 'IMPORTED_JWT', 'BARE_KEY', 'BEARER_ONLY')",
            name=op.f("ck_identities_origin"),
        ),
        sa.CheckConstraint(
            "state IN ('REGISTERING', 'ACTIVE', 'DISABLED', 'ROTATING', 'REAUTH_REQUIRED', 'REJECTED', 'DELETED')",
            name=op.f("ck_identities_state"),
        ),
        sa.CheckConstraint("generation >= 1 AND version >= 1", name=op.f("ck_identities_counted")),
        sa.CheckConstraint("length(id) > 0 AND length(name) > 0", name=op.f("ck_identities_named")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identities")),
        sqlite_strict=True,
    )
    op.create_index("ix_identities_change_sequence", "identities", ["change_sequence"], unique=False)
    op.create_index(
        "ix_identities_deleted",
        "identities",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state = 'DELETED'"),
        postgresql_where=sa.text("state = 'DELETED'"),
    )
    op.create_index("ix_identities_name_id", "identities", ["name", "id"], unique=False)
    op.create_index(
        "uq_identities_name",
        "identities",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state <> 'DELETED'"),
        postgresql_where=sa.text("state <> 'DELETED'"),
    )
    op.create_table(
        "meta",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("change_sequence", _COUNT, nullable=False),
        sa.Column("keyring_id", _TEXT),
        sa.Column("minimum_revision", _TEXT, nullable=False),
        sa.CheckConstraint("change_sequence >= 0", name=op.f("ck_meta_change_sequence")),
        sa.CheckConstraint("id = 1", name=op.f("ck_meta_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meta")),
        sqlite_strict=True,
    )
    op.create_table(
        "bearers",
        sa.Column("identity_id", _TEXT, nullable=False),
        sa.Column("sealed", _BYTES, nullable=False),
        sa.Column("version", _COUNT, nullable=False),
        sa.Column("expire_time", _TIME),
        sa.Column("change_sequence", _COUNT, nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_bearers_counted")),
        sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_bearers_identity_id")),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_bearers")),
        sqlite_strict=True,
    )
    op.create_index("ix_bearers_change_sequence", "bearers", ["change_sequence"], unique=False)
    op.create_table(
        "create_requests",
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("fingerprint", _BYTES, nullable=False),
        sa.Column("identity_id", _TEXT, nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("purge_time", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name=op.f("fk_create_requests_identity_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_create_requests")),
        sqlite_strict=True,
    )
    op.create_index("ix_create_requests_purge_time", "create_requests", ["purge_time"], unique=False)
    op.create_table(
        "orphaned_upstream_tasks",
        sa.Column("identity_id", _TEXT, nullable=False),
        sa.Column("generation", _COUNT, nullable=False),
        sa.Column("upstream_key", _TEXT, nullable=False),
        sa.Column("fencing_token", _COUNT, nullable=False),
        sa.Column("sealed_task_id", _BYTES),
        sa.Column("create_time", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["identity_id"], ["identities.id"], name=op.f("fk_orphaned_upstream_tasks_identity_id")
        ),
        sa.PrimaryKeyConstraint(
            "identity_id", "upstream_key", "generation", "fencing_token", name=op.f("pk_orphaned_upstream_tasks")
        ),
        sqlite_strict=True,
    )
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
    op.create_index("ix_tasks_change_sequence", "tasks", ["change_sequence"], unique=False)
    op.create_index("ix_tasks_identity_id_id", "tasks", ["identity_id", "id"], unique=False)
    op.create_index("ix_tasks_identity_id_upstream_key", "tasks", ["identity_id", "upstream_key"], unique=False)
    op.create_index(
        "ix_tasks_purge_time",
        "tasks",
        ["purge_time"],
        unique=False,
        sqlite_where=sa.text("purge_time IS NOT NULL"),
        postgresql_where=sa.text("purge_time IS NOT NULL"),
    )
    op.create_index("uq_tasks_binding", "tasks", ["identity_id", "kind", "thread_id"], unique=True)
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
        sa.Column("expire_time", _TIME),
        sa.Column("change_sequence", _COUNT, nullable=False),
        sa.CheckConstraint(
            "state <> 'ACTIVE' OR sealed_task_id IS NOT NULL", name=op.f("ck_upstream_tasks_active_has_an_answer")
        ),
        sa.CheckConstraint(
            "state <> 'CLAIMED' OR sealed_task_id IS NULL", name=op.f("ck_upstream_tasks_a_claim_has_no_answer")
        ),
        sa.CheckConstraint(
            "state = 'CLAIMED' OR lease_expire_time IS NULL", name=op.f("ck_upstream_tasks_only_claims_are_leased")
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
    op.create_index("ix_upstream_tasks_change_sequence", "upstream_tasks", ["change_sequence"], unique=False)
    op.execute("INSERT INTO meta (id, change_sequence, minimum_revision) VALUES (1, 0, '0001')")
