"""How good the detector is, what cameras show, and challengers that assess beside the champion.

None of it hangs on the partitioned tables: profiles are kept longer than the frames that they were made of.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from dangerous_driving.ledger.tables.declarative import Base, filled_now


class DetectorEvaluation(Base):
    """Some weights on some labelled pictures; the id follows from both and from the detector's settings."""

    __tablename__ = "detector_evaluation"

    evaluation_id: Mapped[str] = mapped_column(primary_key=True)
    weights: Mapped[str]
    weights_hash: Mapped[str]
    data_set: Mapped[str]
    data_hash: Mapped[str]
    simulated: Mapped[bool]
    pictures: Mapped[int]
    engine: Mapped[str]
    input_size: Mapped[int | None]
    confidence: Mapped[float]
    iou: Mapped[float]
    group_distance: Mapped[float]
    evaluated_at: Mapped[datetime] = filled_now()

    __table_args__ = (Index(None, "data_set", "evaluated_at"),)


class DetectorScoreRow(Base):
    """One cell of an evaluation: class x size, of all pictures, of a light or of a weather; ``all`` stands for every one."""

    __tablename__ = "detector_score"

    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("detector_evaluation.evaluation_id", ondelete="CASCADE"), primary_key=True
    )
    class_name: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[str] = mapped_column(primary_key=True)
    light: Mapped[str] = mapped_column(primary_key=True)
    weather: Mapped[str] = mapped_column(primary_key=True)
    pictures: Mapped[int]
    objects: Mapped[int]
    ap: Mapped[float | None]
    ap50: Mapped[float | None]
    ap75: Mapped[float | None]
    ar: Mapped[float | None]
    recall: Mapped[float | None]
    precision: Mapped[float | None]

    __table_args__ = (CheckConstraint("size IN ('all', 'small', 'medium', 'large')", name="size"),)


class DetectorGroupRecall(Base):
    """How many groups, or dangers of a type, an evaluation found."""

    __tablename__ = "detector_group_recall"

    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("detector_evaluation.evaluation_id", ondelete="CASCADE"), primary_key=True
    )
    kind: Mapped[str] = mapped_column(primary_key=True)
    risk_type: Mapped[str] = mapped_column(primary_key=True)
    light: Mapped[str] = mapped_column(primary_key=True)
    weather: Mapped[str] = mapped_column(primary_key=True)
    groups: Mapped[int]
    found: Mapped[int]
    precision: Mapped[float | None]

    __table_args__ = (CheckConstraint("kind IN ('group', 'danger')", name="kind"),)


class DetectionProfile(Base):
    """What a camera's detections looked like in an hour: a histogram of one variable, for the drift watch."""

    __tablename__ = "detection_profile"

    camera_id: Mapped[str] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    variable: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)  # the detector's weights
    counts: Mapped[dict[str, Any]]  # {bin: count}

    __table_args__ = (
        CheckConstraint("variable IN ('class', 'confidence', 'group_size', 'road_users')", name="variable"),
        Index(None, "hour"),
    )


class DriftScore(Base):
    """A camera's day against its own weeks before. ``psi`` is None where there was too little to say anything."""

    __tablename__ = "drift_score"

    camera_id: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    variable: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    psi: Mapped[float | None]
    jensen_shannon: Mapped[float | None]
    usual: Mapped[float | None]  # the index above which a day of this camera is unusual
    count: Mapped[int]
    baseline_count: Mapped[int]
    baseline_days: Mapped[int]
    changes: Mapped[list[Any]]  # [{bin, expected, actual}] as shares, the largest contribution first
    model: Mapped[str]  # of the day
    model_changed: Mapped[bool]
    scored_at: Mapped[datetime] = filled_now()

    __table_args__ = (
        CheckConstraint("state IN ('too_little', 'stable', 'moderate', 'drifted')", name="state"),
        CheckConstraint("(state = 'too_little') = (psi IS NULL)", name="psi"),
        Index(None, "day"),
    )


class DriftBaseline(Base):
    """From when on a camera is compared: a person has seen that it changed, and says that it is meant to."""

    __tablename__ = "drift_baseline"

    camera_id: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[date]
    accepted_by: Mapped[str]
    note: Mapped[str] = mapped_column(server_default="")
    accepted_at: Mapped[datetime] = filled_now()


class Shadow(Base):
    """A challenger that assesses a share of the live groups beside the champion; its run is a backfill's, by this name."""

    __tablename__ = "shadow"

    run: Mapped[str] = mapped_column(primary_key=True)
    prompt_version: Mapped[str]
    model: Mapped[str]
    share: Mapped[float]
    since: Mapped[datetime] = filled_now()
    ended_at: Mapped[datetime | None]
    started_by: Mapped[str] = mapped_column(server_default="")

    __table_args__ = (
        CheckConstraint("run LIKE 'shadow:%'", name="run"),
        CheckConstraint("share > 0 AND share <= 1", name="share"),
    )


class ShadowWindow(Base):
    """A window whose sampled groups a challenger has assessed, as the window's content was then."""

    __tablename__ = "shadow_window"

    run: Mapped[str] = mapped_column(ForeignKey("shadow.run", ondelete="CASCADE"), primary_key=True)
    camera_id: Mapped[str] = mapped_column(primary_key=True)
    window_start: Mapped[datetime] = mapped_column(primary_key=True)
    length: Mapped[int] = mapped_column(primary_key=True)  # s
    version: Mapped[int]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    problem: Mapped[str | None]
    assessed_at: Mapped[datetime] = filled_now()

    __table_args__ = (Index(None, "window_start"),)
