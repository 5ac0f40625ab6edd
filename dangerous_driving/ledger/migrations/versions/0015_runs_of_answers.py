"""Live answers that wait to be published, and the answers of a backfill or a challenger, are found by an index.

The index of what is not published held the answers of all runs, and those that are not live never are published: it grew
for ever, and a scheduler that looks each second read all of it.

Revision ID: 0015
Revises: 0014
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP INDEX ix_risk_assessment_unpublished")
    op.execute(
        "CREATE INDEX ix_risk_assessment_unpublished ON risk_assessment (assessed_at) "
        "WHERE published_at IS NULL AND run = 'live'"
    )
    op.execute("CREATE INDEX ix_risk_assessment_backfill ON risk_assessment (run) WHERE run <> 'live'")


def downgrade() -> None:
    op.execute("DROP INDEX ix_risk_assessment_backfill")
    op.execute("DROP INDEX ix_risk_assessment_unpublished")
    op.execute(
        "CREATE INDEX ix_risk_assessment_unpublished ON risk_assessment (assessed_at) WHERE published_at IS NULL"
    )
