"""What an operator's page shows of the ledger besides alerts: cameras, keys, tasks and counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, func, select, text, tuple_

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import Alert, ApiKey, AssessmentTask, Camera, Frame, KeyReservation


@dataclass(frozen=True)
class CameraRow:
    """A camera and how it is."""

    camera_id: str
    name: str
    kind: str
    frame_interval: float  # s
    status: str
    status_reason: str
    status_at: datetime
    enabled: bool  # watched, unless an operator stopped it


@dataclass(frozen=True)
class KeyRow:
    """A key by its hash, with the requests of the last minute."""

    key_hash: str
    label: str
    state: str
    state_reason: str
    rpm_limit: int
    used: int


@dataclass(frozen=True)
class Counts:
    """By state: tasks captured since a time, alerts opened since then, and cameras now."""

    tasks: dict[str, int]
    alerts: dict[str, int]
    cameras: dict[str, int]


def ping(engine: Engine) -> None:
    """Ask the database for nothing.

    Raises:
        LedgerError: it did not answer.
    """
    with transaction(engine) as connection:
        connection.execute(text("SELECT 1"))


def list_cameras(engine: Engine, camera_id: str | None = None) -> list[CameraRow]:
    """All cameras, by id; or the one of this id, if there is one."""
    statement = select(
        Camera.id,
        Camera.name,
        Camera.kind,
        Camera.frame_interval,
        Camera.status,
        Camera.status_reason,
        Camera.status_at,
        Camera.enabled,
    ).order_by(Camera.id)
    if camera_id is not None:
        statement = statement.where(Camera.id == camera_id)
    with transaction(engine) as connection:
        return [CameraRow(*row) for row in connection.execute(statement)]


def list_keys(engine: Engine) -> list[KeyRow]:
    """All keys, by label and hash."""
    used = (
        select(func.count())
        .where(
            KeyReservation.key_hash == ApiKey.key_hash,
            KeyReservation.reserved_at >= func.now() - text("interval '1 minute'"),
        )
        .scalar_subquery()
    )
    statement = select(
        ApiKey.key_hash, ApiKey.label, ApiKey.state, ApiKey.state_reason, ApiKey.rpm_limit, used
    ).order_by(ApiKey.label, ApiKey.key_hash)
    with transaction(engine) as connection:
        return [KeyRow(*row) for row in connection.execute(statement)]


def count_by_state(engine: Engine, *, since: datetime) -> Counts:
    """How many there are of what."""
    tasks = (
        select(AssessmentTask.state, func.count())
        .where(AssessmentTask.captured_at >= since)
        .group_by(AssessmentTask.state)
    )
    alerts = select(Alert.state, func.count()).where(Alert.opened_at >= since).group_by(Alert.state)
    cameras = select(Camera.status, func.count()).group_by(Camera.status)
    with transaction(engine) as connection:
        return Counts(*(dict(connection.execute(query).tuples().all()) for query in (tasks, alerts, cameras)))


def frame_url(engine: Engine, camera_id: str, message_id: str, captured_at: datetime) -> str | None:
    """Where the picture of this frame lies; None if there is no such frame of this camera, or it has none."""
    statement = select(Frame.raw_frame_url).where(
        tuple_(Frame.captured_at, Frame.message_id) == (captured_at, message_id), Frame.camera_id == camera_id
    )
    with transaction(engine) as connection:
        return connection.scalar(statement)


def group_url(engine: Engine, camera_id: str, task_id: str, captured_at: datetime) -> str | None:
    """Where the picture of this task's group lies; None if there is no such task of this camera, or it has none."""
    statement = select(AssessmentTask.group_image_url).where(
        tuple_(AssessmentTask.captured_at, AssessmentTask.task_id) == (captured_at, task_id),
        AssessmentTask.camera_id == camera_id,
    )
    with transaction(engine) as connection:
        return connection.scalar(statement)
