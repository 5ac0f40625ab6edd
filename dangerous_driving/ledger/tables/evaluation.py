"""Evaluation: cases with what is known of them, sets, runs of a prompt and model over a set, and who was promoted.

None of it hangs on the partitioned tables: a case keeps its task and a picture of its own, so that retention takes neither.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, SmallInteger, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from dangerous_driving.ledger.tables.declarative import Base, filled_now


class EvaluationCase(Base):
    """A group's picture with all that a prompt needs of it."""

    __tablename__ = "evaluation_case"

    case_id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str]
    origin: Mapped[str]  # the alert, scene or file
    camera_id: Mapped[str]
    captured_at: Mapped[datetime]
    cluster: Mapped[str]  # cases of one cluster resemble each other
    task: Mapped[dict[str, Any]]  # an AssessmentTask, as it lies on the topic
    picture_key: Mapped[str]
    created_at: Mapped[datetime] = filled_now()

    __table_args__ = (
        CheckConstraint("source IN ('operator', 'simulated', 'imported')", name="source"),
        Index(None, "camera_id", "captured_at"),
    )


class EvaluationLabel(Base):
    """What somebody said of a case: its level lies between two. All are kept, also those that contradict each other."""

    __tablename__ = "evaluation_label"

    case_id: Mapped[str] = mapped_column(primary_key=True)
    labelled_by: Mapped[str] = mapped_column(primary_key=True)
    labelled_at: Mapped[datetime] = mapped_column(primary_key=True)
    lowest: Mapped[str]
    highest: Mapped[str]
    risk_types: Mapped[list[str] | None]  # NULL: nothing was said of them
    note: Mapped[str] = mapped_column(server_default="")
    alert_event_id: Mapped[int | None] = mapped_column(BigInteger)  # the verdict that it follows from

    __table_args__ = (
        CheckConstraint("lowest IN ('none', 'low', 'medium', 'high')", name="lowest"),
        CheckConstraint("highest IN ('none', 'low', 'medium', 'high')", name="highest"),
        Index(
            "uq_evaluation_label_alert_event_id",
            "alert_event_id",
            unique=True,
            postgresql_where=text("alert_event_id IS NOT NULL"),
        ),
    )


class EvaluationSet(Base):
    """All cases as they were at one time; equal content is the same version."""

    __tablename__ = "evaluation_set"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content_digest: Mapped[str]
    held_out_share: Mapped[float]
    created_at: Mapped[datetime] = filled_now()


class EvaluationSetCase(Base):
    """A case as a member of a set, with its truth and side at that time. No truth: its labels contradicted each other."""

    __tablename__ = "evaluation_set_case"

    set_version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    case_id: Mapped[str] = mapped_column(primary_key=True)
    split: Mapped[str]
    lowest: Mapped[str | None]
    highest: Mapped[str | None]
    risk_types: Mapped[list[str] | None]

    __table_args__ = (
        CheckConstraint("split IN ('train', 'held_out')", name="split"),
        CheckConstraint("(lowest IS NULL) = (highest IS NULL)", name="truth"),
    )


class EvaluationRun(Base):
    """One prompt version and model, asked about one set."""

    __tablename__ = "evaluation_run"

    run: Mapped[str] = mapped_column(primary_key=True)
    prompt_version: Mapped[str]
    prompt_digest: Mapped[str]  # of the prompt's file
    model: Mapped[str]
    set_version: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="running")
    started_at: Mapped[datetime] = filled_now()
    finished_at: Mapped[datetime | None]
    figures: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))  # [{split, metric, value, low, high}]
    report_url: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("state IN ('running', 'complete')", name="state"),
        Index(None, "prompt_version", "model", "set_version"),
    )


class EvaluationResult(Base):
    """One answer about a case. ``ask`` 0 is the first; further ones ask the same again, to see whether it is stable."""

    __tablename__ = "evaluation_result"

    run: Mapped[str] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(primary_key=True)
    ask: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    state: Mapped[str]
    attempts: Mapped[int] = mapped_column(SmallInteger)
    risk_level: Mapped[str | None]
    confidence: Mapped[float | None]
    risk_types: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    description: Mapped[str] = mapped_column(server_default="")
    raw_answer: Mapped[str] = mapped_column(server_default="")
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    first_token_latency: Mapped[float | None]
    latency: Mapped[float | None]
    input_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    output_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cost: Mapped[float] = mapped_column(server_default=text("0"))
    answered_at: Mapped[datetime]
    reused_from: Mapped[str | None]  # the run that asked

    __table_args__ = (
        CheckConstraint("state IN ('asked', 'answered', 'failed')", name="state"),
        CheckConstraint("(state = 'answered') = (risk_level IS NOT NULL)", name="answer"),
        CheckConstraint("state <> 'failed' OR failure_code IS NOT NULL", name="cause"),
    )


class PromptDecision(Base):
    """What the gate said of a challenger, and why."""

    __tablename__ = "prompt_decision"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    decided_at: Mapped[datetime] = filled_now()
    champion: Mapped[str]
    challenger: Mapped[str]
    model: Mapped[str]
    set_version: Mapped[int]
    champion_run: Mapped[str]
    challenger_run: Mapped[str]
    verdict: Mapped[str]
    reasons: Mapped[list[str]]
    cases: Mapped[int]  # held out, with an agreed truth
    clusters: Mapped[int]
    coverage: Mapped[float]  # the challenger's
    differences: Mapped[list[Any]]  # [{metric, champion, challenger, difference, low, high, p, p_adjusted}]
    decided_by: Mapped[str]

    __table_args__ = (
        CheckConstraint("verdict IN ('better', 'refused', 'no_evidence')", name="verdict"),
        Index(None, "challenger", "id"),
    )


class PromptPromotion(Base):
    """Which prompt version is in use since when; the newest row holds. Without a row it is ``llm.prompt_version``."""

    __tablename__ = "prompt_promotion"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    promoted_at: Mapped[datetime] = filled_now()
    kind: Mapped[str]
    prompt_version: Mapped[str]
    prompt_digest: Mapped[str]
    previous: Mapped[str]
    promoted_by: Mapped[str]
    note: Mapped[str] = mapped_column(server_default="")
    decision_id: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        CheckConstraint("kind IN ('promoted', 'rolled_back')", name="kind"),
        CheckConstraint("kind <> 'promoted' OR decision_id IS NOT NULL", name="evidence"),
    )
