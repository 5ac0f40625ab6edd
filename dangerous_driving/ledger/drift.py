"""Profiles of what cameras show, and the drift watch's verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.evaluation.drift import Profile, Score, Variable
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import DetectionProfile, DriftBaseline, DriftScore

#: Kind of the incident that lasts while a camera has drifted; its subject is the camera.
DRIFT_INCIDENT = "detection_drift"


def profile_day(engine: Engine, day: date) -> int:
    """Make the profiles of a UTC day anew from its frames; returns how many.

    A day whose frames retention has dropped keeps the profiles that it has.
    """
    start = datetime.combine(day, datetime.min.time(), tzinfo=UTC)
    parameters = {"start": start, "until": start + timedelta(days=1)}
    with transaction(engine) as connection:
        # hours of millions of detections; one camera and day at a time would read the same rows
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        return connection.execute(text(_PROFILE), parameters).rowcount


def profiled_days(engine: Engine, since: date, until: date) -> set[date]:
    """The days from `since` to before `until` that have profiles."""
    with transaction(engine) as connection:
        return set(connection.scalars(text(_DAYS), {"since": _midnight(since), "until": _midnight(until)}))


def days_with_frames(engine: Engine, since: date, until: date) -> set[date]:
    """The days from `since` to before `until` that have frames; asked day by day, so that one index entry answers."""
    found = set()
    with transaction(engine) as connection:
        for offset in range((until - since).days):
            start = _midnight(since + timedelta(days=offset))
            parameters = {"start": start, "until": start + timedelta(days=1)}
            if connection.scalar(text(_HAS_FRAMES), parameters):
                found.add(start.date())
    return found


def cameras_with_profiles(engine: Engine, since: date, until: date) -> list[str]:
    """Cameras that showed something in these days."""
    statement = (
        select(DetectionProfile.camera_id)
        .where(DetectionProfile.hour >= _midnight(since), DetectionProfile.hour < _midnight(until))
        .distinct()
        .order_by(DetectionProfile.camera_id)
    )
    with transaction(engine) as connection:
        return list(connection.scalars(statement))


def profiles(engine: Engine, camera_id: str, since: date, until: date) -> dict[Variable, list[Profile]]:
    """A camera's profiles from `since` to before `until`; what a person has declared to be past is left out."""
    with transaction(engine) as connection:
        accepted = connection.scalar(select(DriftBaseline.since).where(DriftBaseline.camera_id == camera_id))
        first = max(since, accepted) if accepted else since
        rows = connection.execute(
            select(DetectionProfile.variable, DetectionProfile.hour, DetectionProfile.counts, DetectionProfile.model)
            .where(
                DetectionProfile.camera_id == camera_id,
                DetectionProfile.hour >= _midnight(first),
                DetectionProfile.hour < _midnight(until),
            )
            .order_by(DetectionProfile.hour)
        ).all()
    found: dict[Variable, list[Profile]] = {variable: [] for variable in Variable}
    for variable, hour, counts, model in rows:
        found[Variable(variable)].append(Profile(hour, counts, model))
    return found


def days_moved(engine: Engine, camera_id: str, since: date, until: date) -> dict[Variable, int]:
    """On how many days from `since` to before `until` each variable had changed, moderately or more."""
    statement = (
        select(DriftScore.variable, func.count())
        .where(
            DriftScore.camera_id == camera_id,
            DriftScore.day >= since,
            DriftScore.day < until,
            DriftScore.state.in_(["moderate", "drifted"]),
        )
        .group_by(DriftScore.variable)
    )
    with transaction(engine) as connection:
        found = dict(connection.execute(statement).tuples().all())
    return {variable: found.get(variable.value, 0) for variable in Variable}


def keep_scores(engine: Engine, camera_id: str, day: date, scores: Sequence[Score]) -> None:
    """Write a camera's day, in place of what was said of it before."""
    rows: list[dict[str, Any]] = [
        {
            **{name: value for name, value in asdict(score).items() if name != "changes"},
            "variable": score.variable.value,
            "state": score.state.value,
            "camera_id": camera_id,
            "day": day,
            "changes": [asdict(change) for change in score.changes],
        }
        for score in scores
    ]
    with transaction(engine) as connection:
        connection.execute(delete(DriftScore).where(DriftScore.camera_id == camera_id, DriftScore.day == day))
        if rows:
            connection.execute(insert(DriftScore), rows)


@dataclass(frozen=True)
class KeptScore:
    """A verdict of the watch, as it was kept."""

    camera_id: str
    day: date
    variable: str
    state: str
    psi: float | None
    usual: float | None
    count: int
    baseline_days: int


def latest_scores(engine: Engine) -> list[KeptScore]:
    """The verdicts of each camera's newest day."""
    newest = select(DriftScore.camera_id, func.max(DriftScore.day).label("day")).group_by(DriftScore.camera_id)
    days = newest.subquery()
    statement = (
        select(*(getattr(DriftScore, name) for name in KeptScore.__dataclass_fields__))
        .join(days, (DriftScore.camera_id == days.c.camera_id) & (DriftScore.day == days.c.day))
        .order_by(DriftScore.camera_id, DriftScore.variable)
    )
    with transaction(engine) as connection:
        return [KeptScore(*row) for row in connection.execute(statement)]


def accept(engine: Engine, camera_id: str, since: date, *, by: str, note: str = "") -> None:
    """Begin a camera's baseline anew with a day: what it shows since then is what it is meant to show."""
    values = {"since": since, "accepted_by": by, "note": note}
    statement = insert(DriftBaseline).values(camera_id=camera_id, **values)
    with transaction(engine) as connection:
        connection.execute(
            statement.on_conflict_do_update(index_elements=["camera_id"], set_=values | {"accepted_at": func.now()})
        )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, datetime.min.time(), tzinfo=UTC)


_DAYS = """
SELECT DISTINCT (hour AT TIME ZONE 'UTC')::date FROM detection_profile WHERE hour >= :since AND hour < :until
"""

_HAS_FRAMES = "SELECT EXISTS (SELECT 1 FROM frame WHERE captured_at >= :start AND captured_at < :until)"

# an object is counted where its frame is; confidences in steps of 0.05, named by their lower bound
_PROFILE = """
WITH frames AS (
    SELECT camera_id, date_trunc('hour', captured_at, 'UTC') AS hour, coalesce(model, '') AS model,
           detected_objects, traffic_groups, jsonb_array_length(detected_objects) AS objects
    FROM frame WHERE captured_at >= :start AND captured_at < :until
),
counted AS (
    SELECT camera_id, hour, model, 'class' AS variable, o ->> 'class' AS bin, count(*) AS n
    FROM frames, jsonb_array_elements(detected_objects) AS o GROUP BY 1, 2, 3, 5
    UNION ALL
    SELECT camera_id, hour, model, 'confidence',
           to_char(floor(least((o ->> 'confidence')::numeric, 0.999) * 20) / 20, 'FM0.00'), count(*)
    FROM frames, jsonb_array_elements(detected_objects) AS o GROUP BY 1, 2, 3, 5
    UNION ALL
    SELECT camera_id, hour, model, 'group_size',
           CASE WHEN size <= 4 THEN size::text WHEN size <= 6 THEN '5-6' WHEN size <= 9 THEN '7-9' ELSE '10+' END,
           count(*)
    FROM frames, jsonb_array_elements(traffic_groups) AS g, LATERAL (SELECT (g ->> 'objectCount')::int AS size) AS s
    GROUP BY 1, 2, 3, 5
    UNION ALL
    SELECT camera_id, hour, model, 'road_users',
           CASE WHEN objects <= 1 THEN objects::text WHEN objects <= 3 THEN '2-3' WHEN objects <= 6 THEN '4-6'
                WHEN objects <= 10 THEN '7-10' WHEN objects <= 20 THEN '11-20' ELSE '21+' END,
           count(*)
    FROM frames GROUP BY 1, 2, 3, 5
)
INSERT INTO detection_profile AS p (camera_id, hour, variable, model, counts)
SELECT camera_id, hour, variable, model, jsonb_object_agg(bin, n) FROM counted GROUP BY 1, 2, 3, 4
ON CONFLICT (camera_id, hour, variable, model) DO UPDATE SET counts = excluded.counts
"""
