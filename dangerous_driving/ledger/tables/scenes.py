"""What was seen and what was said of it: cameras, frames, tasks, assessments, calls."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    SmallInteger,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from dangerous_driving.ledger.tables.declarative import BY_DAY, Base, filled_now, written_order


class Camera(Base):
    """One row per camera ever seen."""

    __tablename__ = "camera"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(server_default="")
    kind: Mapped[str] = mapped_column(server_default="live")
    source: Mapped[str] = mapped_column(server_default="")  # without credentials
    frame_interval: Mapped[float] = mapped_column(server_default=text("1.8"))
    status: Mapped[str] = mapped_column(server_default="unknown")
    status_reason: Mapped[str] = mapped_column(server_default="")
    status_at: Mapped[datetime] = filled_now()
    created_at: Mapped[datetime] = filled_now()
    spec: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # of cameras kept here
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))

    __table_args__ = (
        CheckConstraint("kind IN ('live', 'replay', 'simulated')", name="kind"),
        CheckConstraint("status IN ('unknown', 'online', 'degraded', 'offline')", name="status"),
    )


class Detector(Base):
    """A process that reads cameras, as it last reported. The others take its cameras over when ``live_until`` has passed.

    ``started_at`` tells it from another process of its name. ``cameras``: all that it knows, whoever reads them.
    """

    __tablename__ = "detector"

    name: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str]
    started_at: Mapped[datetime] = filled_now()
    seen_at: Mapped[datetime] = filled_now()
    live_until: Mapped[datetime]
    cameras: Mapped[list[str]]


class Frame(Base):
    """One row per published frame. ``traffic_groups`` is the message's list without base64 pictures."""

    __tablename__ = "frame"

    captured_at: Mapped[datetime] = mapped_column(primary_key=True)
    message_id: Mapped[str] = mapped_column(primary_key=True)
    camera_id: Mapped[str]
    image_width: Mapped[int]
    image_height: Mapped[int]
    raw_frame_url: Mapped[str | None]
    detected_objects: Mapped[list[Any]]
    traffic_groups: Mapped[list[Any]]
    detection_latency: Mapped[float | None]
    model: Mapped[str | None]
    node: Mapped[str | None]
    recorded_at: Mapped[datetime] = filled_now()

    __table_args__ = (Index(None, "camera_id", "captured_at"), written_order("recorded_at"), BY_DAY)


class AssessmentTask(Base):
    """One group to assess: the queue of record.

    ``reason`` says why a task is pending or claimed; ``failure_*`` why it failed (``failure_raw`` keeps what could not be
    parsed); ``calls`` counts the requests that stand under its id, over all runs (those that it shared may stand under another's).
    """

    __tablename__ = "assessment_task"

    captured_at: Mapped[datetime] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(primary_key=True)
    message_id: Mapped[str]
    camera_id: Mapped[str]
    group_index: Mapped[int]
    group_image_url: Mapped[str | None]
    group_bbox: Mapped[list[Any]]
    classes: Mapped[list[str]]
    object_count: Mapped[int]
    detected_objects: Mapped[list[Any]]
    priority: Mapped[float]
    state: Mapped[str]
    lane: Mapped[str]
    reason: Mapped[str]
    claim_worker: Mapped[int | None] = mapped_column(BigInteger)
    claim_token: Mapped[int | None] = mapped_column(BigInteger)
    claimed_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    calls: Mapped[int] = mapped_column(server_default=text("0"))
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    failure_raw: Mapped[str | None]
    created_at: Mapped[datetime] = filled_now()
    updated_at: Mapped[datetime] = filled_now()

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'claimed', 'assessed', 'failed', 'expired')", name="state"),
        CheckConstraint("(state = 'claimed') = (claim_worker IS NOT NULL)", name="claim"),
        CheckConstraint("state <> 'failed' OR failure_code IS NOT NULL", name="cause"),
        Index(None, "camera_id", "captured_at"),
        Index("ix_assessment_task_waiting", "lane", "priority", postgresql_where=text("state = 'pending'")),
        Index("ix_assessment_task_claimed", "claim_worker", postgresql_where=text("state = 'claimed'")),
        written_order("updated_at"),
        BY_DAY,
    )


class RiskAssessment(Base):
    """One answer per task and run; exactly one of a task is current. ``published_at``: its result is on the topic."""

    __tablename__ = "risk_assessment"

    captured_at: Mapped[datetime] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(primary_key=True)
    message_id: Mapped[str]
    camera_id: Mapped[str]
    group_index: Mapped[int]
    group_bbox: Mapped[list[Any]]
    risk_level: Mapped[str]
    confidence: Mapped[float | None]
    risk_types: Mapped[list[str]]
    description: Mapped[str]
    trigger_object_ids: Mapped[list[int]]
    danger_object_count: Mapped[int | None]
    is_current: Mapped[bool]
    lane: Mapped[str]
    prompt_version: Mapped[str]
    model: Mapped[str]
    key_hash: Mapped[str]
    call_id: Mapped[str]
    retry_count: Mapped[int]
    first_token_latency: Mapped[float | None]
    latency: Mapped[float]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cost: Mapped[float]
    reused_from: Mapped[str | None]
    raw_answer: Mapped[str]
    node: Mapped[str]
    assessed_at: Mapped[datetime]
    published_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("risk_level IN ('none', 'low', 'medium', 'high')", name="risk_level"),
        CheckConstraint("NOT (is_current AND run LIKE 'shadow:%')", name="shadow"),
        Index("uq_risk_assessment_current", "captured_at", "task_id", unique=True, postgresql_where=text("is_current")),
        Index(
            "ix_risk_assessment_unpublished",
            "assessed_at",
            postgresql_where=text("published_at IS NULL AND run = 'live'"),  # the others' answers never are
        ),
        Index("ix_risk_assessment_backfill", "run", postgresql_where=text("run <> 'live'")),
        written_order("assessed_at"),
        Index(None, "camera_id", "captured_at"),
        BY_DAY,
    )


class LlmCall(Base):
    """One row for EVERY request to the endpoint, written before it leaves; ``lost``: its process died under way.

    A request about several groups of a frame is one row, of the riskiest one's task; ``shared_with`` names the others'.
    """

    __tablename__ = "llm_call"

    captured_at: Mapped[datetime] = mapped_column(primary_key=True)  # of the task
    call_id: Mapped[str] = mapped_column(primary_key=True)  # TASKID_callN, N without gaps
    task_id: Mapped[str]
    camera_id: Mapped[str]
    shared_with: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))  # tasks
    call_number: Mapped[int]
    run: Mapped[str]
    lane: Mapped[str]
    worker: Mapped[int] = mapped_column(BigInteger)
    key_hash: Mapped[str]
    model: Mapped[str]
    prompt_version: Mapped[str]
    status: Mapped[str]
    http_status: Mapped[int | None]
    started_at: Mapped[datetime]
    first_token_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    cost: Mapped[float | None]
    error: Mapped[str | None]
    # null: written before there was this column
    recorded_at: Mapped[datetime | None] = filled_now()

    __table_args__ = (
        CheckConstraint(
            "status IN ('started', 'ok', 'unparsable', 'key_rejected', 'rate_limited', 'timeout', 'unavailable', "
            "'bad_request', 'error', 'cancelled', 'lost')",
            name="status",
        ),
        Index(None, "task_id"),
        Index(None, "started_at"),
        Index("ix_llm_call_open", "worker", postgresql_where=text("status = 'started'")),
        Index("ix_llm_call_backfill", "run", postgresql_where=text("run <> 'live'")),
        Index(
            "ix_llm_call_shared", "shared_with", postgresql_using="gin", postgresql_where=text("shared_with <> '{}'")
        ),
        written_order("finished_at"),
        written_order("recorded_at"),
        BY_DAY,
    )


class Worker(Base):
    """A process that claims tasks; its claims are handed back when ``heartbeat_at`` stands still."""

    __tablename__ = "worker"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    service: Mapped[str]
    node: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[datetime] = filled_now()
    heartbeat_at: Mapped[datetime] = filled_now()
    stopped_at: Mapped[datetime | None]
