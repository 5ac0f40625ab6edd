"""Cameras that are kept in the table, beside those of the settings.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE camera ADD COLUMN spec JSONB, ADD COLUMN enabled BOOLEAN DEFAULT true NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE camera DROP COLUMN spec, DROP COLUMN enabled")
