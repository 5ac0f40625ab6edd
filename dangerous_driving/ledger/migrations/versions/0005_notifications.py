"""Notifications: their outbox, quiet hours and snoozes of cameras, escalation of alerts.

Revision ID: 0005
Revises: 0002
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    ALTER TABLE alert
        ADD COLUMN announced_at TIMESTAMP WITH TIME ZONE,
        ADD COLUMN escalate_at TIMESTAMP WITH TIME ZONE,
        ADD COLUMN planned_version INTEGER DEFAULT 0 NOT NULL
    """,
    # nobody is told of what was before there were notifications
    "UPDATE alert SET planned_version = version",
    "CREATE INDEX ix_alert_unplanned ON alert (alert_id) WHERE planned_version < version",
    "CREATE INDEX ix_alert_announced ON alert (camera_id, announced_at) WHERE announced_at IS NOT NULL",
    "CREATE INDEX ix_alert_escalation ON alert (escalate_at) WHERE escalate_at IS NOT NULL",
    """
    CREATE TABLE camera_quiet (
        camera_id TEXT NOT NULL,
        snoozed_until TIMESTAMP WITH TIME ZONE,
        snoozed_by TEXT DEFAULT '' NOT NULL,
        snooze_note TEXT DEFAULT '' NOT NULL,
        quiet_hours JSONB DEFAULT '[]'::jsonb NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT pk_camera_quiet PRIMARY KEY (camera_id)
    )
    """,
    """
    CREATE TABLE notification (
        notification_id TEXT NOT NULL,
        receiver TEXT NOT NULL,
        kind TEXT NOT NULL,
        alert_id TEXT,
        camera_id TEXT,
        level TEXT NOT NULL,
        alert JSONB,
        state TEXT DEFAULT 'pending' NOT NULL,
        held_reason TEXT,
        digest_id TEXT,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        due_at TIMESTAMP WITH TIME ZONE NOT NULL,
        claimed_until TIMESTAMP WITH TIME ZONE,
        attempts INTEGER DEFAULT 0 NOT NULL,
        first_tried_at TIMESTAMP WITH TIME ZONE,
        last_error TEXT DEFAULT '' NOT NULL,
        sent_at TIMESTAMP WITH TIME ZONE,
        CONSTRAINT pk_notification PRIMARY KEY (notification_id),
        CONSTRAINT ck_notification_state CHECK (state IN ('pending', 'sent', 'merged', 'failed')),
        CONSTRAINT ck_notification_kind CHECK (kind IN (
            'ring', 'raised', 'escalation', 'withdrawn', 'closed', 'judged', 'digest', 'test'))
    )
    """,
    "CREATE INDEX ix_notification_pending ON notification (receiver, due_at) WHERE state = 'pending'",
    "CREATE INDEX ix_notification_receiver_sent_at ON notification (receiver, sent_at)",
    "CREATE INDEX ix_notification_alert_id ON notification (alert_id)",
    "CREATE INDEX ix_notification_digest ON notification (digest_id) WHERE digest_id IS NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE notification")
    op.execute("DROP TABLE camera_quiet")
    op.execute("ALTER TABLE alert DROP COLUMN announced_at, DROP COLUMN escalate_at, DROP COLUMN planned_version")
