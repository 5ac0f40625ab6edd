"""The tables of the ledger (SQLAlchemy 2). `migrations/` makes them; a test holds the two against each other.

``frame``, ``assessment_task``, ``risk_assessment`` and ``llm_call`` are partitioned by day of ``captured_at`` (UTC), which
is therefore part of their keys: every look-up gives it, so that PostgreSQL reads one partition. They carry no foreign
keys: the order in which parts write is free (a scheduler's claim may come before the tasks service), and
`invariants` checks the references instead. All times are ``timestamptz``, all latencies seconds.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    MetaData,
    Sequence,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: The tables cut into one partition a day.
PARTITIONED = ("frame", "assessment_task", "risk_assessment", "llm_call")

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}
BY_DAY: dict[str, Any] = {"postgresql_partition_by": "RANGE (captured_at)"}


class Base(DeclarativeBase):
    """Column types: text without length, aware times, double precision, JSONB."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        datetime: TIMESTAMP(timezone=True),
        float: DOUBLE_PRECISION(),
        dict[str, Any]: JSONB(),
        list[Any]: JSONB(),
        list[str]: ARRAY(Text()),
        list[int]: ARRAY(BigInteger()),
    }


#: Rises with each claim; a result whose token is not the task's current one comes from a worker that was given up.
claim_token_sequence = Sequence("claim_token_seq", metadata=Base.metadata, start=1)


def filled_now() -> Any:
    """A column that the database fills with the time of the row."""
    return mapped_column(server_default=func.now())


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

    __table_args__ = (Index(None, "camera_id", "captured_at"), BY_DAY)


class AssessmentTask(Base):
    """One group to assess: the queue of record.

    ``reason`` says why a task is pending or claimed; ``failure_*`` why it failed (``failure_raw`` keeps what could not be
    parsed); ``calls`` counts the requests made for it, over all runs.
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
        Index("uq_risk_assessment_current", "captured_at", "task_id", unique=True, postgresql_where=text("is_current")),
        Index("ix_risk_assessment_unpublished", "assessed_at", postgresql_where=text("published_at IS NULL")),
        Index(None, "camera_id", "captured_at"),
        BY_DAY,
    )


class LlmCall(Base):
    """One row for EVERY request to the endpoint, written before it leaves; ``lost``: its process died under way."""

    __tablename__ = "llm_call"

    captured_at: Mapped[datetime] = mapped_column(primary_key=True)  # of the task
    call_id: Mapped[str] = mapped_column(primary_key=True)  # TASKID_callN, N without gaps
    task_id: Mapped[str]
    camera_id: Mapped[str]
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


class ApiKey(Base):
    """One row per key, by its hash: the secret itself is never stored."""

    __tablename__ = "api_key"

    key_hash: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(server_default="")
    qps_limit: Mapped[int]
    rpm_limit: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="available")
    state_reason: Mapped[str] = mapped_column(server_default="")
    cooling_until: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default=text("0"))  # 5xx and time-outs in a row
    coolings: Mapped[int] = mapped_column(server_default=text("0"))  # rests in a row, for the back-off
    probing_until: Mapped[datetime | None]
    learned_qps: Mapped[int | None]  # limits that the provider showed to be lower than the configured ones
    learned_rpm: Mapped[int | None]
    learned_at: Mapped[datetime | None]  # NULL: told in words, not learnt from a refusal
    created_at: Mapped[datetime] = filled_now()
    updated_at: Mapped[datetime] = filled_now()

    __table_args__ = (
        CheckConstraint("state IN ('available', 'cooling', 'disabled')", name="state"),
        CheckConstraint("qps_limit > 0 AND rpm_limit > 0", name="limits"),
    )


class KeyReservation(Base):
    """The key pool's sliding windows, as a log: a row per slot that was taken, or given back. Not ledger: it is pruned."""

    __tablename__ = "key_reservation"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    key_hash: Mapped[str]
    lane: Mapped[str]
    reserved_at: Mapped[datetime]
    given_back: Mapped[bool] = mapped_column(server_default=text("false"))

    __table_args__ = (Index(None, "key_hash", "reserved_at"), {"prefixes": ["UNLOGGED"]})


class KeyPoolMember(Base):
    """A process that uses the keys; without the database each goes on with its share."""

    __tablename__ = "key_pool_member"

    member: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class LaneSpending(Base):
    """What a lane with a budget has spent on a day (UTC)."""

    __tablename__ = "lane_spending"

    day: Mapped[date] = mapped_column(primary_key=True)
    lane: Mapped[str] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cost: Mapped[float] = mapped_column(server_default=text("0"))


class Switch(Base):
    """Which lane a camera's groups take; the camera ``*`` stands for all that have no row of their own."""

    __tablename__ = "switch"

    camera_id: Mapped[str] = mapped_column(primary_key=True)
    lane: Mapped[str | None]  # NULL: taken back
    changed_at: Mapped[datetime] = filled_now()

    __table_args__ = (CheckConstraint("lane IN ('realtime', 'window', 'inline')", name="lane"),)


class CameraWindow(Base):
    """One camera's window with frames in it.

    ``version`` rises with each batch of new frames; a window run notes in ``assessed_version`` which content it completed,
    so late frames re-open the window by themselves.
    """

    __tablename__ = "camera_window"

    camera_id: Mapped[str] = mapped_column(primary_key=True)
    window_start: Mapped[datetime] = mapped_column(primary_key=True)
    length: Mapped[int] = mapped_column(primary_key=True)  # s
    version: Mapped[int] = mapped_column(server_default=text("1"))
    assessed_version: Mapped[int] = mapped_column(server_default=text("0"))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))  # runs on this version
    last_run_id: Mapped[str | None]
    created_at: Mapped[datetime] = filled_now()
    updated_at: Mapped[datetime] = filled_now()
    completed_at: Mapped[datetime | None]
    run_key: Mapped[str | None]  # of the run that the sensor put it into, with others
    launched_version: Mapped[int] = mapped_column(server_default=text("0"))  # the content at that time

    __table_args__ = (
        Index("ix_camera_window_due", "window_start", postgresql_where=text("assessed_version < version")),
    )


class Backfill(Base):
    """A re-assessment with another prompt or model: its answers stand beside the live ones, under its name."""

    __tablename__ = "backfill"

    run: Mapped[str] = mapped_column(primary_key=True)
    prompt_version: Mapped[str]
    model: Mapped[str]
    created_at: Mapped[datetime] = filled_now()

    __table_args__ = (CheckConstraint("run <> 'live'", name="run"),)


class BackfillTask(Base):
    """One group of a backfill: who assesses it, or why it has no answer. The live task knows nothing of it.

    A plain table: backfills are rare, and retention deletes their old rows.
    """

    __tablename__ = "backfill_task"

    run: Mapped[str] = mapped_column(primary_key=True)
    captured_at: Mapped[datetime] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(primary_key=True)
    camera_id: Mapped[str]
    state: Mapped[str]
    worker: Mapped[int] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    updated_at: Mapped[datetime] = filled_now()

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'claimed', 'assessed', 'failed')", name="state"),
        CheckConstraint("state <> 'failed' OR failure_code IS NOT NULL", name="cause"),
        Index(None, "captured_at"),
    )


class Incident(Base):
    """What a person is told of: a run that failed, windows given up, tasks that expired, a budget that is spent.

    One row as long as it lasts (kind and subject): what comes again raises ``count``.
    """

    __tablename__ = "incident"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    message: Mapped[str]
    count: Mapped[int] = mapped_column(server_default=text("1"))
    first_at: Mapped[datetime] = filled_now()
    last_at: Mapped[datetime] = filled_now()
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        Index("uq_incident_open", "kind", "subject", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index(None, "last_at"),
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
