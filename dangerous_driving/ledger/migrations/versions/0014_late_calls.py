"""When a call's row was written, which may be hours after the call: the inline lane hands its calls in after an outage.

Revision ID: 0014
Revises: 0013
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Rows that are here keep null, so that no partition is written anew and the analytical tables do not take all of
    # them for new ones: counting hours again of which retention has dropped some calls would forget these.
    op.execute("ALTER TABLE llm_call ADD COLUMN recorded_at TIMESTAMP WITH TIME ZONE")
    op.execute("ALTER TABLE llm_call ALTER COLUMN recorded_at SET DEFAULT now()")
    # it reads the calls of all days once
    op.execute("SET LOCAL statement_timeout = 0")
    op.execute("CREATE INDEX ix_llm_call_recorded_at ON llm_call USING brin (recorded_at) WITH (autosummarize = on)")


def downgrade() -> None:
    op.execute("ALTER TABLE llm_call DROP COLUMN recorded_at")
