"""The key pool's leases, learnt limits and budgets; the switch between lanes.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE key_reservation ADD COLUMN given_back BOOLEAN DEFAULT false NOT NULL",
    """
    ALTER TABLE api_key ADD COLUMN learned_qps INTEGER, ADD COLUMN learned_rpm INTEGER,
        ADD COLUMN learned_at TIMESTAMP WITH TIME ZONE
    """,
    """
    CREATE TABLE key_pool_member (
        member BIGINT NOT NULL,
        seen_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
        CONSTRAINT pk_key_pool_member PRIMARY KEY (member)
    )
    """,
    """
    CREATE TABLE lane_spending (
        day DATE NOT NULL,
        lane TEXT NOT NULL,
        calls BIGINT DEFAULT 0 NOT NULL,
        cost DOUBLE PRECISION DEFAULT 0 NOT NULL,
        CONSTRAINT pk_lane_spending PRIMARY KEY (day, lane)
    )
    """,
    """
    CREATE TABLE switch (
        camera_id TEXT NOT NULL,
        lane TEXT,
        changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT pk_switch PRIMARY KEY (camera_id),
        CONSTRAINT ck_switch_lane CHECK (lane IN ('realtime', 'window', 'inline'))
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in ("switch", "lane_spending", "key_pool_member"):
        op.execute(f"DROP TABLE {table}")
    op.execute("ALTER TABLE api_key DROP COLUMN learned_qps, DROP COLUMN learned_rpm, DROP COLUMN learned_at")
    op.execute("ALTER TABLE key_reservation DROP COLUMN given_back")
