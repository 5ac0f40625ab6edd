"""Detectors that know the same cameras divide them: each says in a row of its own that it lives, and what it knows.

Revision ID: 0016
Revises: 0015
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

STATEMENT = """
    CREATE TABLE detector (
        name TEXT NOT NULL,
        node TEXT NOT NULL,
        started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        live_until TIMESTAMP WITH TIME ZONE NOT NULL,
        cameras TEXT[] NOT NULL,
        CONSTRAINT pk_detector PRIMARY KEY (name)
    )
"""


def upgrade() -> None:
    op.execute(STATEMENT)


def downgrade() -> None:
    op.execute("DROP TABLE detector")
