"""What retention takes from the ledger: whole day partitions, and the small rows beside them.

``alert`` and ``alert_event`` stay: they are few, and the history of a junction is read over years.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

from sqlalchemy import Connection, Engine, text

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import partition_name, with_brief_locks
from dangerous_driving.ledger.tables import PARTITIONED

#: s that dropping tries to get a table from its readers; then it fails, and the next run tries again.
PATIENCE = 60.0
EXPIRED = "no lane could carry it before its retention ended"


@dataclass(frozen=True)
class DayPartition:
    """One table's rows of one UTC day."""

    table: str
    day: date
    size: int  # bytes, indices included


def cutoff(now: datetime, retention_days: int) -> date:
    """The oldest day that is kept: the whole of today and the `retention_days` before it."""
    return now.astimezone(UTC).date() - timedelta(days=retention_days)


def expired_partitions(engine: Engine, before: date) -> list[DayPartition]:
    """The partitions of days before that one, oldest first."""
    found = []
    with transaction(engine) as connection:
        rows = connection.execute(text(_PARTITIONS), {"tables": list(PARTITIONED)}).all()
    for table, name, size in rows:
        day = datetime.strptime(name.removeprefix(f"{table}_p"), "%Y%m%d").replace(tzinfo=UTC).date()
        if day < before:
            found.append(DayPartition(table, day, size))
    return sorted(found, key=lambda partition: (partition.day, partition.table))


def expiring_tasks(engine: Engine, before: date) -> dict[str, int]:
    """Tasks of days up to `before` (it included: the next run drops it) that nobody has assessed, by camera."""
    with transaction(engine) as connection:
        return dict(connection.execute(text(_EXPIRING), {"before": _next_midnight(before)}).tuples().all())


def expire_tasks(engine: Engine, before: date) -> dict[str, int]:
    """Mark the tasks of :func:`expiring_tasks` as expired; returns how many, by camera."""
    with transaction(engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        parameters = {"before": _next_midnight(before), "reason": EXPIRED}
        return dict(connection.execute(text(_EXPIRE), parameters).tuples().all())


def drop_day(engine: Engine, day: date) -> None:
    """Drop all tables' partitions of the day, one transaction each.

    Raises:
        LedgerBusyError: a reader held a table for too long; the next run drops what is left.
    """
    for table in PARTITIONED:
        name = partition_name(table, day)
        with_brief_locks(engine, partial(_drop, name=name), what=f"dropping {name}", patience=PATIENCE)


def _drop(connection: Connection, *, name: str) -> None:
    connection.execute(text(f"DROP TABLE IF EXISTS {name}"))


def prune_rows(engine: Engine, before: date) -> dict[str, int]:
    """Delete the small rows that belong to days before that one; returns how many, by table."""
    parameters = {"before": datetime.combine(before, datetime.min.time(), tzinfo=UTC)}
    with transaction(engine) as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        return {table: connection.execute(text(query), parameters).rowcount for table, query in _SMALL.items()}


def cameras_without_content(engine: Engine) -> list[str]:
    """Cameras that the table does not enable and that have no window left."""
    with transaction(engine) as connection:
        return list(connection.scalars(text(_WITHOUT_CONTENT)))


def camera_ids(engine: Engine) -> list[str]:
    """All cameras ever seen."""
    with transaction(engine) as connection:
        return list(connection.scalars(text("SELECT id FROM camera ORDER BY id")))


def _next_midnight(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), datetime.min.time(), tzinfo=UTC)


_PARTITIONS = """
SELECT parent.relname, child.relname, pg_total_relation_size(child.oid)
FROM pg_inherits i
JOIN pg_class parent ON parent.oid = i.inhparent
JOIN pg_class child ON child.oid = i.inhrelid
WHERE parent.relname = ANY(:tables) AND parent.relkind = 'p'
"""

_EXPIRING = """
SELECT camera_id, count(*) FROM assessment_task WHERE captured_at < :before AND state = 'pending' GROUP BY 1
"""

_EXPIRE = """
WITH expired AS (
    UPDATE assessment_task SET state = 'expired', reason = :reason, updated_at = now()
    WHERE captured_at < :before AND state = 'pending' RETURNING camera_id
)
SELECT camera_id, count(*) FROM expired GROUP BY 1
"""

_SMALL = {
    "camera_window": "DELETE FROM camera_window WHERE window_start < :before",
    "backfill_task": "DELETE FROM backfill_task WHERE captured_at < :before",
    "shadow_window": "DELETE FROM shadow_window WHERE window_start < :before",
    # the drift watch looks back further than frames may be kept (monitoring.drift_weeks, 12 at most)
    "detection_profile": "DELETE FROM detection_profile WHERE hour < :before - interval '12 weeks'",
    # whatever became of it: nobody is rung up for what is that old. A digest is never older than what it tells
    "notification": "DELETE FROM notification WHERE created_at < :before",
    "incident": "DELETE FROM incident WHERE last_at < :before AND (ended_at IS NOT NULL OR kind = 'run_failed')",
    # a call's row names its worker, and goes with its day
    "worker": "DELETE FROM worker WHERE stopped_at < :before",
    # dead: one that lives reports every few seconds
    "detector": "DELETE FROM detector WHERE seen_at < now() - interval '1 day'",
}

_WITHOUT_CONTENT = """
SELECT id FROM camera c WHERE NOT enabled AND NOT EXISTS (SELECT 1 FROM camera_window w WHERE w.camera_id = c.id)
ORDER BY id
"""
