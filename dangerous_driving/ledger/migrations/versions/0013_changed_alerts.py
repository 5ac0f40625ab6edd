"""What changed since a time is asked for at each return of a client: by an index.

Revision ID: 0013
Revises: 0012
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX ix_alert_updated_at ON alert (updated_at)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_alert_updated_at")
