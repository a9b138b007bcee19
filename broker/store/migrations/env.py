"""
Alembic's way in: runs the migrations on the connection, and in the transaction, that `upgrade` hands over.

Alembic leaves a transaction that it finds open alone, so all steps are committed together by who began it.
"""

from alembic import context

from broker.store import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
)
context.run_migrations()
