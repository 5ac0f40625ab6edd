"""What was, for plots and for the look back at one alert: over hours and cameras, and frame by frame."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Row, func, select, text

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import AlertEvent, Frame

#: The table that dbt builds; see dbt_project/models/marts/camera_hourly_risk.yml.
HOURLY_RISK = "marts.camera_hourly_risk"
#: Likewise; see junction_ranking.yml.
RANKING = "marts.junction_ranking"


@dataclass(frozen=True)
class Scenes:
    """Assessed groups that began in one span of time, by level."""

    at: datetime
    none: int
    low: int
    medium: int
    high: int


@dataclass(frozen=True)
class Opened:
    """Alerts opened in one span of time, by what people said of them since."""

    at: datetime
    acknowledged: int
    rejected: int
    unjudged: int
    withdrawn: int


@dataclass(frozen=True)
class CameraRisk:
    """One camera over the whole time: exposure and danger from the mart, alerts from the ledger."""

    camera_id: str
    frames: int
    road_users: int
    dangerous_scenes: int
    alerts: int
    rejected: int


@dataclass(frozen=True)
class Junction:
    """One camera's place: dangers per 1,000 road users seen, with the ends of the 95 % interval."""

    camera_id: str
    place: int
    evidence: str
    dangers: int
    road_users: int
    rate: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Delay:
    """Seconds from capture until a stage of an alert was decided."""

    stage: str
    count: int
    median: float
    p95: float


@dataclass(frozen=True)
class SeenFrame:
    """A frame of the ledger, its objects and groups as they lay on the topic."""

    message_id: str
    captured_at: datetime
    image_width: int
    image_height: int
    has_picture: bool
    objects: list[Any]
    groups: list[Any]


def time_of_version(engine: Engine, alert_id: str, version: int) -> datetime | None:
    """When this version of the alert was decided; None if there is no such alert or version."""
    statement = select(AlertEvent.at).where(AlertEvent.alert_id == alert_id, AlertEvent.version == version)
    with transaction(engine) as connection:
        return connection.scalar(statement)


@dataclass(frozen=True)
class StageTime:
    """When an alert first reached a stage, and how many seconds after the capture of the frame that led to it."""

    alert_id: str
    stage: str
    at: datetime
    seconds: float


def stage_times(engine: Engine, alert_ids: Collection[str]) -> list[StageTime]:
    """The first of each stage of these alerts, in their order."""
    if not alert_ids:
        return []
    statement = text(
        """
        SELECT alert_id, kind, at, extract(epoch FROM at - captured_at)::double precision FROM (
            SELECT DISTINCT ON (alert_id, kind) id, alert_id, kind, at, captured_at FROM alert_event
            WHERE alert_id = ANY(:ids) AND kind IN ('geometry', 'provisional', 'final') ORDER BY alert_id, kind, version
        ) AS first ORDER BY id
        """
    )
    with transaction(engine) as connection:
        return [StageTime(*row) for row in connection.execute(statement, {"ids": list(alert_ids)})]


def marts_built(engine: Engine) -> bool:
    """Whether dbt has built the table of hours yet."""
    with transaction(engine) as connection:
        return connection.scalar(select(func.to_regclass(HOURLY_RISK))) is not None


def scenes_by_time(
    engine: Engine, since: datetime, until: datetime, step: timedelta, camera_id: str | None
) -> list[Scenes]:
    """From the mart: assessed scenes by level, in steps of whole hours counted from `since`; only steps with any."""
    statement = text(
        f"""
        SELECT date_bin(:step, hour_started_at, :since) AS at,
            sum(scenes_none)::int, sum(scenes_low)::int, sum(scenes_medium)::int, sum(scenes_high)::int
        FROM {HOURLY_RISK}
        WHERE hour_started_at >= :since AND hour_started_at < :until
            AND (CAST(:camera AS text) IS NULL OR camera_id = :camera)
        GROUP BY 1 ORDER BY 1
        """  # noqa: S608 - the name is a constant of this module
    )
    with transaction(engine) as connection:
        rows = connection.execute(statement, _span(since, until, camera_id) | {"step": step})
        return [Scenes(*row) for row in rows]


def alerts_by_time(
    engine: Engine, since: datetime, until: datetime, step: timedelta, camera_id: str | None
) -> list[Opened]:
    """From the ledger: alerts by the verdict on them, in steps counted from `since`; only steps with any."""
    statement = text(
        """
        SELECT date_bin(:step, opened_at, :since) AS at,
            count(*) FILTER (WHERE verdict = 'acknowledged'),
            count(*) FILTER (WHERE verdict = 'rejected'),
            count(*) FILTER (WHERE verdict IS NULL AND state <> 'withdrawn'),
            count(*) FILTER (WHERE verdict IS NULL AND state = 'withdrawn')
        FROM alert
        WHERE opened_at >= :since AND opened_at < :until
            AND (CAST(:camera AS text) IS NULL OR camera_id = :camera)
        GROUP BY 1 ORDER BY 1
        """
    )
    with transaction(engine) as connection:
        rows = connection.execute(statement, _span(since, until, camera_id) | {"step": step})
        return [Opened(*row) for row in rows]


def risk_by_camera(engine: Engine, since: datetime, until: datetime, *, built: bool) -> list[CameraRisk]:
    """Each camera with anything in this time; exposure and scenes are 0 while the mart is not `built`."""
    hours = (
        f"""
        SELECT camera_id, sum(frames)::bigint AS frames, sum(road_users_seen)::bigint AS road_users,
            sum(dangerous_scenes)::bigint AS dangerous
        FROM {HOURLY_RISK} WHERE hour_started_at >= date_trunc('hour', CAST(:since AS timestamptz), 'UTC')
            AND hour_started_at < :until GROUP BY 1
        """  # noqa: S608 - the name is a constant of this module
        if built
        else "SELECT NULL::text AS camera_id, 0::bigint AS frames, 0::bigint AS road_users, 0::bigint AS dangerous LIMIT 0"
    )
    statement = text(
        f"""
        WITH hours AS ({hours}), opened AS (
            SELECT camera_id, count(*) AS alerts, count(*) FILTER (WHERE verdict = 'rejected') AS rejected
            FROM alert WHERE opened_at >= :since AND opened_at < :until AND state <> 'withdrawn' GROUP BY 1
        )
        SELECT camera_id, coalesce(frames, 0), coalesce(road_users, 0), coalesce(dangerous, 0),
            coalesce(alerts, 0), coalesce(rejected, 0)
        FROM hours FULL JOIN opened USING (camera_id)
        ORDER BY 4 DESC, 5 DESC, 1
        """  # noqa: S608 - put together from constants
    )
    with transaction(engine) as connection:
        return [CameraRisk(*row) for row in connection.execute(statement, {"since": since, "until": until})]


def junctions(engine: Engine, period_days: int, *, limit: int = 50) -> list[Junction]:
    """From the mart: the cameras that saw anybody in the last 7, 28 or 90 days, the most dangerous first.

    Empty while dbt has not built the mart.
    """
    statement = text(
        f"""
        SELECT camera_id, place_most_dangerous, against_all_cameras, dangers, road_users_seen,
            dangers_per_1000_road_users, dangers_per_1000_road_users_lower, dangers_per_1000_road_users_upper
        FROM {RANKING} WHERE period_days = :days AND place_most_dangerous IS NOT NULL
        ORDER BY place_most_dangerous, camera_id LIMIT :limit
        """  # noqa: S608 - the name is a constant of this module
    )
    with transaction(engine) as connection:
        if connection.scalar(select(func.to_regclass(RANKING))) is None:
            return []
        return [Junction(*row) for row in connection.execute(statement, {"days": period_days, "limit": limit})]


def delays(engine: Engine, since: datetime, until: datetime, camera_id: str | None) -> list[Delay]:
    """How long after its capture each stage of the alerts was decided, of frames captured in this time."""
    statement = text(
        """
        SELECT kind, count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds),
            percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds)
        FROM (
            SELECT kind, extract(epoch FROM at - captured_at)::double precision AS seconds FROM alert_event
            WHERE captured_at >= :since AND captured_at < :until AND kind IN ('geometry', 'provisional', 'final')
                AND (CAST(:camera AS text) IS NULL OR camera_id = :camera)
        ) AS stages
        GROUP BY kind ORDER BY array_position(ARRAY['geometry', 'provisional', 'final'], kind)
        """
    )
    with transaction(engine) as connection:
        return [Delay(*row) for row in connection.execute(statement, _span(since, until, camera_id))]


def frames_between(engine: Engine, camera_id: str, since: datetime, until: datetime, *, limit: int) -> list[SeenFrame]:
    """Frames of a camera captured from `since` to `until` (both included), the earliest first, at most `limit`."""
    return _frames(engine, Frame.captured_at.between(since, until), camera_id, limit=limit, backwards=False)


def frames_before(
    engine: Engine, camera_id: str, before: datetime, within: timedelta, *, limit: int
) -> list[SeenFrame]:
    """The last frames of a camera captured before a time and not longer ago than `within`, the earliest first."""
    span = (Frame.captured_at >= before - within) & (Frame.captured_at < before)
    return _frames(engine, span, camera_id, limit=limit, backwards=True)[::-1]


def _frames(engine: Engine, span: Any, camera_id: str, *, limit: int, backwards: bool) -> list[SeenFrame]:
    order = Frame.captured_at.desc() if backwards else Frame.captured_at
    statement = (
        select(
            Frame.message_id, Frame.captured_at, Frame.image_width, Frame.image_height, Frame.raw_frame_url,
            Frame.detected_objects, Frame.traffic_groups,
        )
        .where(span, Frame.camera_id == camera_id)
        .order_by(order)
        .limit(limit)
    )  # fmt: skip
    with transaction(engine) as connection:
        return [_seen(row) for row in connection.execute(statement)]


def _seen(row: Row[Any]) -> SeenFrame:
    return SeenFrame(
        row.message_id,
        row.captured_at,
        row.image_width,
        row.image_height,
        row.raw_frame_url is not None,
        row.detected_objects,
        row.traffic_groups,
    )


def _span(since: datetime, until: datetime, camera_id: str | None) -> dict[str, Any]:
    return {"since": since, "until": until, "camera": camera_id}
