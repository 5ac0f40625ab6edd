"""What must hold in the ledger at any time; `dangerous-driving verify` checks it.

Each rule is one query that returns the rows that break it. Rules look at frames captured between `since` (within retention)
and `until` (now less a grace, since a frame is in the store a moment before it is in the ledger).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.errors import ContractError, ObjectNotFoundError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.objects import ObjectStore


@dataclass(frozen=True)
class Violation:
    """One broken rule: which, on which row or object, and how."""

    rule: str
    subject: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """Counts by table and state, and all violations found (at most `LIMIT` a rule)."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()


LIMIT = 1000

#: rule -> a query giving subject and problem
RULES: dict[str, str] = {
    "every camera of a frame is known": """
        SELECT DISTINCT camera_id, 'frames of this camera, but no row in camera' FROM frame f
        WHERE captured_at >= :since AND captured_at < :until
          AND NOT EXISTS (SELECT 1 FROM camera c WHERE c.id = f.camera_id)
    """,
    "every group of at least two objects has exactly one task": """
        SELECT f.message_id || '_group' || (g ->> 'groupIndex'), 'the frame has this group, but there is no task'
        FROM frame f, jsonb_array_elements(f.traffic_groups) AS g
        WHERE f.captured_at >= :since AND f.captured_at < :until AND (g ->> 'objectCount')::int >= 2
          AND NOT EXISTS (
            SELECT 1 FROM assessment_task t
            WHERE t.captured_at = f.captured_at AND t.task_id = f.message_id || '_group' || (g ->> 'groupIndex'))
    """,
    "every task belongs to a frame": """
        SELECT t.task_id, 'there is no frame ' || t.message_id FROM assessment_task t
        WHERE t.captured_at >= :since AND t.captured_at < :until AND NOT EXISTS (
            SELECT 1 FROM frame f WHERE f.captured_at = t.captured_at AND f.message_id = t.message_id)
    """,
    "every pending or claimed task has a reason": """
        SELECT task_id, 'state ' || state || ' without a reason' FROM assessment_task
        WHERE captured_at >= :since AND captured_at < :until AND state IN ('pending', 'claimed') AND reason = ''
    """,
    "every claimed task is held by a worker": """
        SELECT t.task_id, 'claimed by worker ' || t.claim_worker || ', which is not known or has stopped'
        FROM assessment_task t
        WHERE t.captured_at >= :since AND t.captured_at < :until AND t.state = 'claimed'
          AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = t.claim_worker AND w.stopped_at IS NULL)
    """,
    "every assessed task has exactly one current assessment": """
        SELECT t.task_id, 'state assessed, but no current assessment' FROM assessment_task t
        WHERE t.captured_at >= :since AND t.captured_at < :until AND t.state = 'assessed' AND NOT EXISTS (
            SELECT 1 FROM risk_assessment r
            WHERE r.captured_at = t.captured_at AND r.task_id = t.task_id AND r.is_current)
    """,
    "every current assessment belongs to an assessed task": """
        SELECT r.task_id, 'an assessment, but the task is ' || coalesce(t.state, 'not there') FROM risk_assessment r
        LEFT JOIN assessment_task t ON t.captured_at = r.captured_at AND t.task_id = r.task_id
        WHERE r.captured_at >= :since AND r.captured_at < :until AND r.is_current
          AND t.state IS DISTINCT FROM 'assessed'
    """,
    "every assessment has the call that brought it": """
        SELECT r.task_id, 'its call ' || r.call_id || ' is ' || coalesce(c.status, 'not there') FROM risk_assessment r
        LEFT JOIN llm_call c ON c.captured_at = r.captured_at AND c.call_id = r.call_id
        WHERE r.captured_at >= :since AND r.captured_at < :until AND r.reused_from IS NULL
          AND c.status IS DISTINCT FROM 'ok'
    """,
    "every request to the endpoint is a row": """
        SELECT t.task_id || '_call' || n, 'the task counts ' || t.calls || ' calls, but this one has no row'
        FROM assessment_task t, generate_series(1, t.calls) AS n
        WHERE t.captured_at >= :since AND t.captured_at < :until AND NOT EXISTS (
            SELECT 1 FROM llm_call c WHERE c.captured_at = t.captured_at AND c.call_id = t.task_id || '_call' || n)
    """,
    "every call belongs to a task or to a case of the evaluation": """
        SELECT c.call_id, 'there is no task or case ' || c.task_id FROM llm_call c
        WHERE c.captured_at >= :since AND c.captured_at < :until AND NOT EXISTS (
            SELECT 1 FROM assessment_task t WHERE t.captured_at = c.captured_at AND t.task_id = c.task_id)
          AND NOT EXISTS (SELECT 1 FROM evaluation_case e WHERE e.case_id = c.task_id)
    """,
    "every task that shares a call is there, and so is the call that its assessment names": """
        SELECT c.call_id, 'it is shared with ' || shared || ', which is no task of the frame' FROM llm_call c, unnest(c.shared_with) AS shared
        WHERE c.captured_at >= :since AND c.captured_at < :until AND NOT EXISTS (
            SELECT 1 FROM assessment_task t WHERE t.captured_at = c.captured_at AND t.task_id = shared)
        UNION ALL
        SELECT r.task_id, 'its call ' || r.call_id || ' does not name it' FROM risk_assessment r
        JOIN llm_call c ON c.captured_at = r.captured_at AND c.call_id = r.call_id
        WHERE r.captured_at >= :since AND r.captured_at < :until AND r.reused_from IS NULL
          AND c.task_id <> r.task_id AND NOT r.task_id = ANY(c.shared_with)
    """,
    "every call under way has a living worker": """
        SELECT c.call_id, 'started, but worker ' || c.worker || ' is gone and the call is not marked as lost'
        FROM llm_call c
        WHERE c.captured_at >= :since AND c.captured_at < :until AND c.status = 'started'
          AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = c.worker AND w.stopped_at IS NULL)
    """,
    "every group of a backfill is a task, and its backfill is known": """
        SELECT b.run || ' ' || b.task_id, 'there is no such task' FROM backfill_task b
        WHERE b.captured_at >= :since AND b.captured_at < :until AND NOT EXISTS (
            SELECT 1 FROM assessment_task t WHERE t.captured_at = b.captured_at AND t.task_id = b.task_id)
        UNION ALL
        SELECT DISTINCT b.run, 'groups of this backfill, but no row in backfill' FROM backfill_task b
        WHERE b.captured_at >= :since AND b.captured_at < :until
          AND NOT EXISTS (SELECT 1 FROM backfill k WHERE k.run = b.run)
    """,
    "every claimed group of a backfill is held by a worker": """
        SELECT b.run || ' ' || b.task_id, 'claimed by worker ' || b.worker || ', which is not known or has stopped'
        FROM backfill_task b
        WHERE b.captured_at >= :since AND b.captured_at < :until AND b.state = 'claimed'
          AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = b.worker AND w.stopped_at IS NULL)
    """,
    "every assessed group of a backfill has its answer": """
        SELECT b.run || ' ' || b.task_id, 'state assessed, but the backfill has no answer to it' FROM backfill_task b
        WHERE b.captured_at >= :since AND b.captured_at < :until AND b.state = 'assessed' AND NOT EXISTS (
            SELECT 1 FROM risk_assessment r
            WHERE r.captured_at = b.captured_at AND r.task_id = b.task_id AND r.run = b.run)
    """,
    "every answer of a backfill is to a group that it assessed, with its prompt": """
        SELECT r.run || ' ' || r.task_id, CASE WHEN r.prompt_version <> k.prompt_version
            THEN 'an answer to prompt ' || r.prompt_version || ' in a backfill with ' || k.prompt_version
            ELSE 'an answer, but the group is ' || coalesce(b.state, 'not there') END
        FROM risk_assessment r
        JOIN backfill k ON k.run = r.run
        LEFT JOIN backfill_task b ON b.run = r.run AND b.captured_at = r.captured_at AND b.task_id = r.task_id
        WHERE r.captured_at >= :since AND r.captured_at < :until
          AND (b.state IS DISTINCT FROM 'assessed' OR r.prompt_version <> k.prompt_version)
    """,
    "every key that was used is known": """
        SELECT DISTINCT c.key_hash, 'calls with this key, but no row in api_key' FROM llm_call c
        WHERE c.captured_at >= :since AND c.captured_at < :until
          AND NOT EXISTS (SELECT 1 FROM api_key k WHERE k.key_hash = c.key_hash)
    """,
    "every configured key is known": """
        SELECT key_hash, 'configured, but no row in api_key' FROM unnest(CAST(:keys AS text[])) AS key_hash
        WHERE NOT EXISTS (SELECT 1 FROM api_key k WHERE k.key_hash = key_hash.key_hash)
    """,
    "every worker that called is known": """
        SELECT DISTINCT 'worker ' || c.worker, 'it made calls, but has no row in worker' FROM llm_call c
        WHERE c.captured_at >= :since AND c.captured_at < :until
          AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = c.worker)
    """,
    # those of the present length first, which are all but for the days after a change of it
    "every frame lies in a window": """
        WITH outside AS MATERIALIZED (
            SELECT f.camera_id, f.captured_at, w.start
            FROM frame f, LATERAL (
                SELECT to_timestamp(floor(extract(epoch FROM f.captured_at) / :length) * :length) AS start) AS w
            WHERE f.captured_at >= :since AND f.captured_at < :until AND NOT EXISTS (
                SELECT 1 FROM camera_window c
                WHERE c.camera_id = f.camera_id AND c.window_start = w.start AND c.length = :length)
        ), lengths AS MATERIALIZED (SELECT DISTINCT length FROM camera_window WHERE length <> :length)
        SELECT DISTINCT f.camera_id || ' ' || to_char(f.start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
               'frames in this window, but no row in camera_window'
        FROM outside f WHERE NOT EXISTS (
            SELECT 1 FROM lengths l JOIN camera_window c ON c.length = l.length
            WHERE c.camera_id = f.camera_id
              AND c.window_start = to_timestamp(floor(extract(epoch FROM f.captured_at) / l.length) * l.length))
    """,
    "every alert has all its events": """
        SELECT a.alert_id, 'it had ' || a.version || ' events, event ' || n || ' is missing'
        FROM alert a, generate_series(1, a.version) AS n
        WHERE a.opened_at >= :since AND a.opened_at < :until AND NOT EXISTS (
            SELECT 1 FROM alert_event e WHERE e.alert_id = a.alert_id AND e.version = n)
    """,
    "every event belongs to an alert": """
        SELECT DISTINCT e.alert_id, 'events, but no row in alert' FROM alert_event e
        WHERE e.at >= :since AND NOT EXISTS (SELECT 1 FROM alert a WHERE a.alert_id = e.alert_id)
    """,
    "every alert follows from tasks and, once it is open, from assessments": """
        SELECT a.alert_id, 'state ' || a.state || ', but none of its events leads to '
               || CASE WHEN a.state IN ('open', 'closed') THEN 'an assessment' ELSE 'a task' END
        FROM alert a
        WHERE a.opened_at >= :since AND a.opened_at < :until AND NOT EXISTS (
            SELECT 1 FROM alert_event e
            JOIN assessment_task t ON t.captured_at = e.captured_at AND t.task_id = e.task_id
            WHERE e.alert_id = a.alert_id AND (a.state NOT IN ('open', 'closed') OR EXISTS (
                SELECT 1 FROM risk_assessment r
                WHERE r.captured_at = t.captured_at AND r.task_id = t.task_id AND r.run = 'live')))
    """,
    "every notification belongs to an alert, and a merged one to its digest": """
        SELECT n.notification_id, CASE WHEN n.state = 'merged' THEN 'its digest is not there' ELSE 'its alert is not there' END
        FROM notification n
        WHERE n.created_at >= :since AND (
            (n.alert_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM alert a WHERE a.alert_id = n.alert_id))
            OR (n.state = 'merged' AND NOT EXISTS (
                SELECT 1 FROM notification d WHERE d.notification_id = n.digest_id)))
    """,
}

COUNTS: dict[str, str] = {
    "frames": "SELECT camera_id, count(*) FROM frame WHERE captured_at >= :since GROUP BY 1 ORDER BY 1",
    "tasks": "SELECT state, count(*) FROM assessment_task WHERE captured_at >= :since GROUP BY 1 ORDER BY 1",
    "assessments": "SELECT risk_level, count(*) FROM risk_assessment WHERE captured_at >= :since AND is_current GROUP BY 1 ORDER BY 1",
    "calls": "SELECT status, count(*) FROM llm_call WHERE captured_at >= :since GROUP BY 1 ORDER BY 1",
    "backfill groups": "SELECT state, count(*) FROM backfill_task WHERE captured_at >= :since GROUP BY 1 ORDER BY 1",
    "alerts": "SELECT state, count(*) FROM alert WHERE opened_at >= :since GROUP BY 1 ORDER BY 1",
    "notifications": "SELECT state, count(*) FROM notification WHERE created_at >= :since GROUP BY 1 ORDER BY 1",
    "windows": (
        "SELECT CASE WHEN assessed_version >= version THEN 'complete' ELSE 'not complete' END, count(*) "
        "FROM camera_window WHERE window_start >= :since AND length = :length GROUP BY 1 ORDER BY 1"
    ),
}


def verify(
    engine: Engine,
    store: ObjectStore,
    *,
    since: datetime,
    until: datetime,
    window_length: int,
    key_hashes: Collection[str] = (),
) -> Verification:
    """Check all rules on frames captured in ``[since, until)``.

    Args:
        engine: of the ledger.
        store: whose objects are compared with the rows.
        since: the horizon.
        until: now, less a grace for what is under way.
        window_length: s.
        key_hashes: of the configured keys.
    """
    parameters = {"since": since, "until": until, "length": window_length, "keys": list(key_hashes)}
    violations: list[Violation] = []
    with transaction(engine) as connection:
        # one snapshot for all rules: a task that is answered meanwhile breaks none
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))  # a rule reads days of frames; nobody waits for it
        counts = {
            name: dict(connection.execute(text(query), parameters).tuples().all()) for name, query in COUNTS.items()
        }
        for rule, query in RULES.items():
            rows = connection.execute(text(f"SELECT * FROM ({query}) AS broken LIMIT {LIMIT}"), parameters)  # noqa: S608
            violations += [Violation(rule, subject, problem) for subject, problem in rows]
        violations += _objects(connection, store, since, until)
    return Verification(counts, tuple(violations))


def _objects(connection: Connection, store: ObjectStore, since: datetime, until: datetime) -> Iterator[Violation]:
    horizon = {"since": since, "until": until}
    stored = set(_captured_since(store, since))
    frames = connection.execute(
        text("SELECT message_id, raw_frame_url FROM frame WHERE captured_at >= :since AND captured_at < :until"),
        horizon,
    ).all()
    for message_id, url in frames:
        if url is None:
            continue  # it came without a picture
        yield from _missing(store, stored, url, f"frame {message_id}", also=".json")
    tasks = connection.execute(
        text(
            "SELECT task_id, group_image_url FROM assessment_task "
            "WHERE captured_at >= :since AND captured_at < :until AND group_image_url IS NOT NULL"
        ),
        horizon,
    )
    for task_id, url in tasks:
        yield from _missing(store, stored, url, f"task {task_id}")
    newer = connection.scalars(text("SELECT message_id FROM frame WHERE captured_at >= :until"), horizon)
    known = {message_id for message_id, _ in frames} | set(newer)
    for key in stored:
        message_id = key.rsplit("/", 1)[1].removesuffix(".json")
        if key.startswith("frames/") and key.endswith(".json") and message_id not in known:
            problem = _why_not_recorded(store, key, until)
            if problem:
                yield Violation("every published frame is in the ledger", message_id, problem)


def _missing(
    store: ObjectStore, stored: Container[str], url: str, subject: str, *, also: str | None = None
) -> Iterator[Violation]:
    try:
        key = store.key(url)
    except ContractError as error:
        yield Violation("every object exists", url, f"{subject} names it: {error}")
        return
    for wanted in [key, *([key.rsplit(".", 1)[0] + also] if also else [])]:
        if wanted not in stored:
            yield Violation("every object exists", wanted, f"{subject} names it, the store has it not")


def _why_not_recorded(store: ObjectStore, key: str, until: datetime) -> str | None:
    try:
        result = DetectionResult.from_json(store.get(key))
    except ContractError as error:
        return f"{key} cannot be read ({error}); move it away"
    except ObjectNotFoundError:
        return None  # retention took it meanwhile
    if result.timestamp >= until:
        return None  # it is on its way
    return f"{key} is in the store, the ledger has no such frame; run: dangerous-driving reimport"


def _captured_since(store: ObjectStore, since: datetime) -> Iterable[str]:
    # {kind}/{cameraId}/{yyyy}/{mm}/{dd}/{hh}/{name}: the date parts sort as text
    first_day = f"{since:%Y/%m/%d}"
    for kind in ("frames/", "groups/"):
        for key in store.list(kind):
            if "/".join(key.split("/")[2:5]) >= first_day:
                yield key
