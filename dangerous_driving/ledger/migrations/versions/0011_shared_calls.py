"""One request for several groups of a frame: its row names all their tasks. Claims of backfills are swept like live ones.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE llm_call ADD COLUMN shared_with TEXT[] DEFAULT '{}' NOT NULL",
    # the calls that were made for a task stand under its own id or in this list
    "CREATE INDEX ix_llm_call_shared ON llm_call USING gin (shared_with) WHERE shared_with <> '{}'",
    "CREATE INDEX ix_backfill_task_claimed ON backfill_task (worker) WHERE state = 'claimed'",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX ix_backfill_task_claimed")
    op.execute("DROP INDEX ix_llm_call_shared")
    op.execute("ALTER TABLE llm_call DROP COLUMN shared_with")
