"""Which rows were written since a time: what the analytical tables have to read again.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Rows come in the order of these times, so a BRIN of a few pages a day tells where to look; a B-tree would cost each
# write of the hot path an entry, and an update of a row that stays on its page (HOT) could not be one any more.
INDICES = (
    ("frame", "recorded_at"),
    ("assessment_task", "updated_at"),
    ("risk_assessment", "assessed_at"),
    ("llm_call", "finished_at"),
)


def upgrade() -> None:
    for table, column in INDICES:
        op.execute(f"CREATE INDEX ix_{table}_{column} ON {table} USING brin ({column}) WITH (autosummarize = on)")


def downgrade() -> None:
    for table, column in INDICES:
        op.execute(f"DROP INDEX ix_{table}_{column}")
