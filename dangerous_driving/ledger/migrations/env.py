"""Alembic's entry: runs on the connection that `schema.migrate` hands in."""

from alembic import context

from dangerous_driving.ledger.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    compare_server_default=False,
)
context.run_migrations()
