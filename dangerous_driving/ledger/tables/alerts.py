"""Alerts, what led to them, whom they are told to, and what people did."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from dangerous_driving.ledger.tables.declarative import Base, filled_now


class AuditEntry(Base):
    """What a person did through the bridge: written before it is done, completed after it; never changed otherwise."""

    __tablename__ = "audit_entry"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = filled_now()
    actor: Mapped[str]
    role: Mapped[str]
    proven: Mapped[bool]  # the name is that of a signed token, not what the client wrote
    act: Mapped[str]
    target: Mapped[str]  # an alert's or a camera's id
    detail: Mapped[dict[str, Any]]
    address: Mapped[str]
    outcome: Mapped[str] = mapped_column(server_default="started")
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("outcome IN ('started', 'done', 'unknown_target', 'failed')", name="outcome"),
        Index(None, "actor", "id"),
        Index(None, "target", "id"),
    )


class Alert(Base):
    """A dangerous scene over time, as it stands now; ``version`` counts its events, ``published_version`` those sent."""

    __tablename__ = "alert"

    alert_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    published_version: Mapped[int] = mapped_column(server_default=text("0"))
    camera_id: Mapped[str]
    state: Mapped[str]
    basis: Mapped[str]
    risk_level: Mapped[str]
    peak_level: Mapped[str]
    risk_types: Mapped[list[str]]
    description: Mapped[str]
    group_bbox: Mapped[list[Any]]
    opened_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]
    first_task_id: Mapped[str]
    last_task_id: Mapped[str]
    last_request_id: Mapped[str]
    group_image_url: Mapped[str | None]
    notified_at: Mapped[datetime | None]
    announced_at: Mapped[datetime | None]  # when its highest level was told, or held
    escalate_at: Mapped[datetime | None]  # when it rings again if nobody has judged it by then
    planned_version: Mapped[int] = mapped_column(server_default=text("0"))  # notifications are planned up to it
    simulated: Mapped[bool] = mapped_column(server_default=text("false"))
    tracking: Mapped[dict[str, Any]]  # what the lifecycle remembers of it: trail, open claims, confirmed level
    verdict: Mapped[str | None]
    verdict_by: Mapped[str | None]
    verdict_note: Mapped[str | None]
    verdict_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("state IN ('provisional', 'open', 'closed', 'withdrawn')", name="state"),
        CheckConstraint("verdict IN ('acknowledged', 'rejected')", name="verdict"),
        Index("ix_alert_open", "camera_id", postgresql_where=text("state IN ('provisional', 'open')")),
        Index(None, "camera_id", "last_seen_at"),
        Index(None, "opened_at"),
        Index(None, "updated_at"),
        Index("ix_alert_unpublished", "alert_id", postgresql_where=text("published_version < version")),
        Index("ix_alert_unplanned", "alert_id", postgresql_where=text("planned_version < version")),
        Index("ix_alert_announced", "camera_id", "announced_at", postgresql_where=text("announced_at IS NOT NULL")),
        Index("ix_alert_escalation", "escalate_at", postgresql_where=text("escalate_at IS NOT NULL")),
    )


class AlertEvent(Base):
    """The inputs of the alert lifecycle that changed an alert, in their order: replaying them gives the same alerts."""

    __tablename__ = "alert_event"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)  # the order
    alert_id: Mapped[str]
    version: Mapped[int]  # the alert's version after it, 1, 2, … without gaps
    input_id: Mapped[str]  # TASKID:STAGE, TASKID:geometry, tick:TIME, verdict:…; one input may change two alerts
    kind: Mapped[str]
    camera_id: Mapped[str]
    task_id: Mapped[str | None]
    captured_at: Mapped[datetime | None]
    at: Mapped[datetime]
    input: Mapped[dict[str, Any]]
    alert: Mapped[dict[str, Any]]  # as it stood after it

    __table_args__ = (
        UniqueConstraint("alert_id", "version"),
        UniqueConstraint("input_id", "alert_id"),
        Index(None, "camera_id", "id"),
        CheckConstraint("kind IN ('geometry', 'provisional', 'final', 'tick', 'verdict')", name="kind"),
    )


class CameraQuiet(Base):
    """When a camera's notifications are held, as people set it; camera ``*`` stands for all."""

    __tablename__ = "camera_quiet"

    camera_id: Mapped[str] = mapped_column(primary_key=True)
    snoozed_until: Mapped[datetime | None]
    snoozed_by: Mapped[str] = mapped_column(server_default="")
    snooze_note: Mapped[str] = mapped_column(server_default="")
    quiet_hours: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))  # [{begin, end, days}]
    updated_at: Mapped[datetime] = filled_now()


class Notification(Base):
    """The outbox: what is to be told to one receiver, and what became of it. The id is the receiver's idempotency key."""

    __tablename__ = "notification"

    notification_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, Identity())  # the order in which they arose
    receiver: Mapped[str]
    kind: Mapped[str]
    alert_id: Mapped[str | None]  # none of a digest
    camera_id: Mapped[str | None]
    level: Mapped[str]
    alert: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # as it stood then
    state: Mapped[str] = mapped_column(server_default="pending")
    held_reason: Mapped[str | None]
    digest_id: Mapped[str | None]  # the digest that told it
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]  # not before then
    claimed_until: Mapped[datetime | None]  # a sender has it in hand; afterwards another one may try
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    first_tried_at: Mapped[datetime | None]
    last_error: Mapped[str] = mapped_column(server_default="")
    sent_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'sent', 'merged', 'failed')", name="state"),
        CheckConstraint(
            "kind IN ('ring', 'raised', 'escalation', 'withdrawn', 'closed', 'judged', 'digest', 'test')", name="kind"
        ),
        Index("ix_notification_pending", "receiver", "number", postgresql_where=text("state = 'pending'")),
        Index(None, "receiver", "sent_at"),
        Index(None, "alert_id"),
        Index("ix_notification_digest", "digest_id", postgresql_where=text("digest_id IS NOT NULL")),
    )
