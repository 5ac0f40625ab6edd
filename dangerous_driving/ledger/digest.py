"""The figures of a day, for the digest."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Engine, text

from dangerous_driving.alerts.digest import DayFigures, DigestAlert
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.incidents import incidents_between


def day_figures(engine: Engine, day: date, *, limit: int = 200) -> DayFigures:
    """What the ledger knows of a UTC day.

    Alerts count by the day on which they opened, withdrawn ones do not; frames and groups by that of their capture,
    calls and money by that of the call.

    Args:
        engine: of the ledger.
        day: the day.
        limit: alerts that are listed, the highest first.
    """
    start = datetime.combine(day, datetime.min.time(), tzinfo=UTC)
    until = start + timedelta(days=1)
    parameters = {"start": start, "until": until, "limit": limit}
    with transaction(engine) as connection:
        rows = connection.execute(text(_ALERTS), parameters).all()

        def counted(column: str) -> dict[str, int]:
            query = text(f"SELECT {column}, count(*) FROM alert WHERE {_OF_THE_DAY} GROUP BY 1 ORDER BY 1")  # noqa: S608
            return {str(key): count for key, count in connection.execute(query, parameters) if key is not None}

        levels, verdicts, cameras = counted("peak_level"), counted("verdict"), counted("camera_id")
        hours = counted("extract(hour FROM opened_at AT TIME ZONE 'UTC')::int")
        frames = connection.scalar(text(f"SELECT count(*) FROM frame WHERE {_CAPTURED}"), parameters) or 0  # noqa: S608
        states = text(f"SELECT state, count(*) FROM assessment_task WHERE {_CAPTURED} GROUP BY 1")  # noqa: S608
        tasks = dict(connection.execute(states, parameters).tuples().all())
        calls, cost = connection.execute(text(_CALLS), parameters).one()
    return DayFigures(
        day=day,
        alerts=tuple(
            DigestAlert(
                row.alert_id, row.camera_id, row.peak_level, tuple(row.risk_types), row.opened_at, row.seconds,
                row.verdict, row.description,
            )
            for row in rows
        ),
        by_level=levels,
        by_verdict=verdicts,
        by_camera=cameras,
        by_hour={int(hour): count for hour, count in hours.items()},
        frames=frames,
        tasks=tasks,
        calls=calls,
        cost=cost,
        incidents=tuple(
            f"{incident.kind} {incident.subject}: {incident.message}"
            for incident in incidents_between(engine, start, until)
        ),
    )  # fmt: skip


_OF_THE_DAY = "opened_at >= :start AND opened_at < :until AND state IN ('open', 'closed')"
_CAPTURED = "captured_at >= :start AND captured_at < :until"

_ALERTS = f"""
SELECT alert_id, camera_id, peak_level, risk_types, opened_at, verdict, description,
       extract(epoch FROM last_seen_at - opened_at)::float AS seconds
FROM alert WHERE {_OF_THE_DAY}
ORDER BY array_position(ARRAY['high', 'medium', 'low', 'none'], peak_level), opened_at LIMIT :limit
"""  # noqa: S608

# by the time of the call, as budgets and llm_usage count: a backfill's calls about last month are paid today
_CALLS = """
SELECT count(*), coalesce(sum(cost), 0.0) FROM llm_call WHERE started_at >= :start AND started_at < :until
"""
