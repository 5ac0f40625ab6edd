"""What the ledger and the store say of a window's quality, for the asset checks; read, never taken from a run's report."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, text

from dangerous_driving.assessment.windows import Window
from dangerous_driving.errors import ContractError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.objects import Kind, ObjectStore, hour_prefixes

#: Ids that a check names at most.
NAMED = 20


@dataclass(frozen=True)
class WindowQuality:
    """Counts and ids (at most `NAMED` each) of what is wrong in a window; latencies in seconds."""

    answers: int
    tasks: int
    failed: int
    results_without_task: list[str] = field(default_factory=list)
    tasks_without_frame: list[str] = field(default_factory=list)
    objects_missing: list[str] = field(default_factory=list)
    objects_missing_count: int = 0
    invalid: list[str] = field(default_factory=list)
    latency_p95: float | None = None
    calls_by_key: dict[str, int] = field(default_factory=dict)

    @property
    def failed_share(self) -> float:
        """Of the window's tasks."""
        return self.failed / self.tasks if self.tasks else 0.0

    @property
    def key_share(self) -> float:
        """Calls of the most used key by the mean of all that were used; 1 is even."""
        calls = self.calls_by_key.values()
        return max(calls) * len(calls) / sum(calls) if calls else 1.0


def window_quality(engine: Engine, store: ObjectStore, window: Window) -> WindowQuality:
    """Read one window.

    Raises:
        LedgerError: the database does not answer.
        ObjectStoreError: the store does not answer.
    """
    parameters = {"camera": window.camera_id, "start": window.start, "end": window.end, "limit": NAMED}
    with transaction(engine) as connection:
        tasks, failed = connection.execute(text(_TASKS), parameters).one()
        answers, p95 = connection.execute(text(_ANSWERS), parameters).one()
        lists = {
            name: list(connection.scalars(text(query), parameters))
            for name, query in (
                ("results_without_task", _RESULTS_WITHOUT_TASK),
                ("tasks_without_frame", _TASKS_WITHOUT_FRAME),
                ("invalid", _INVALID),
            )
        }
        keys = dict(connection.execute(text(_KEYS), parameters).tuples().all())
        addresses = list(connection.scalars(text(_ADDRESSES), parameters))
    missing = _missing(store, window, addresses)
    return WindowQuality(
        answers=answers,
        tasks=tasks,
        failed=failed,
        objects_missing=missing[:NAMED],
        objects_missing_count=len(missing),
        latency_p95=p95,
        calls_by_key=keys,
        **lists,
    )


def _missing(store: ObjectStore, window: Window, addresses: list[str]) -> list[str]:
    if not addresses:
        return []
    stored: set[str] = set()
    for kind in Kind:
        for prefix in hour_prefixes(kind, window.camera_id, window.start, window.end):
            stored.update(store.list(prefix))
    missing = []
    for address in addresses:
        try:
            key = store.key(address)
        except ContractError:
            missing.append(address)  # of another store
            continue
        if key not in stored:
            missing.append(key)
    return sorted(missing)


def newest_content(engine: Engine) -> dict[str, datetime | int | None]:
    """Capture time of the newest frame and task, and how many came in the last hour, by partitions of two days."""
    since = datetime.now(UTC) - timedelta(days=1)
    with transaction(engine) as connection:
        row = connection.execute(text(_NEWEST), {"since": since}).one()
    return dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for a row as a mapping


_IN = "{0}.camera_id = :camera AND {0}.captured_at >= :start AND {0}.captured_at < :end"

_TASKS = f"""
SELECT count(*), count(*) FILTER (WHERE t.state = 'failed') FROM assessment_task t WHERE {_IN.format("t")}
"""  # noqa: S608

_ANSWERS = f"""
SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY r.latency) FROM risk_assessment r
WHERE {_IN.format("r")} AND r.is_current
"""  # noqa: S608

_RESULTS_WITHOUT_TASK = f"""
SELECT r.task_id FROM risk_assessment r WHERE {_IN.format("r")} AND NOT EXISTS (
    SELECT 1 FROM assessment_task t WHERE t.captured_at = r.captured_at AND t.task_id = r.task_id) LIMIT :limit
"""  # noqa: S608

_TASKS_WITHOUT_FRAME = f"""
SELECT t.task_id FROM assessment_task t WHERE {_IN.format("t")} AND NOT EXISTS (
    SELECT 1 FROM frame f WHERE f.captured_at = t.captured_at AND f.message_id = t.message_id) LIMIT :limit
"""  # noqa: S608

# levels are held by the table itself; this also finds what a person wrote by hand
_INVALID = f"""
SELECT r.task_id || ' (' || r.run || ')' FROM risk_assessment r WHERE {_IN.format("r")} AND (
    r.risk_level NOT IN ('none', 'low', 'medium', 'high') OR r.confidence NOT BETWEEN 0 AND 1
    OR (r.risk_level = 'high' AND cardinality(r.risk_types) = 0 AND r.description = '')
    OR EXISTS (SELECT 1 FROM unnest(r.risk_types) AS kind WHERE kind IS NULL OR trim(kind) = '')) LIMIT :limit
"""  # noqa: S608

_KEYS = f"""
SELECT c.key_hash, count(*) FROM llm_call c WHERE {_IN.format("c")} GROUP BY 1
"""  # noqa: S608

_ADDRESSES = f"""
SELECT f.raw_frame_url FROM frame f WHERE {_IN.format("f")} AND f.raw_frame_url IS NOT NULL
UNION ALL
SELECT t.group_image_url FROM assessment_task t WHERE {_IN.format("t")} AND t.group_image_url IS NOT NULL
"""  # noqa: S608

_NEWEST = """
SELECT (SELECT max(captured_at) FROM frame WHERE captured_at >= :since) AS newest_frame,
       (SELECT count(*) FROM frame WHERE captured_at >= now() - interval '1 hour') AS frames_last_hour,
       (SELECT max(captured_at) FROM assessment_task WHERE captured_at >= :since) AS newest_task,
       (SELECT count(*) FROM assessment_task WHERE captured_at >= now() - interval '1 hour') AS tasks_last_hour,
       (SELECT count(*) FROM assessment_task WHERE state = 'pending') AS tasks_pending
"""
