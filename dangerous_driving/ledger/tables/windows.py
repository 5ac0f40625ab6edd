"""Camera x time windows, backfills of them, and what went wrong."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    SmallInteger,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from dangerous_driving.ledger.tables.declarative import Base, filled_now


class CameraWindow(Base):
    """One camera's window with frames in it.

    ``version`` rises with each batch of new frames; a window run notes in ``assessed_version`` which content it completed,
    so late frames re-open the window by themselves.

    The length is a setting. Windows of another length that were not complete when it changed are taken over by those of the
    new one: ``assessed_version`` stands at ``version`` then, without a ``completed_at``.
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
        Index("ix_backfill_task_claimed", "worker", postgresql_where=text("state = 'claimed'")),
    )


class Incident(Base):
    """What a person is told of: a run that failed, windows given up, tasks that expired, a budget that is spent.

    One row as long as it lasts (kind and subject): what comes again raises ``count``. What is told when it happens, and has
    no end, is over when it has not come again for half a day.
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
