"""Alembic's way in: runs the migrations on the connection, and in the transaction, that `upgrade` hands over."""

from alembic import context

from broker.store import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    # SQLite's DDL is as transactional as PostgreSQL's; Alembic believes otherwise of the driver's default mode.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
