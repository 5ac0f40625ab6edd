"""A simulated ledger of any size, made by PostgreSQL itself: for the marts' benchmark and the dashboards' tests.

Every value follows from the row's own id by a hash, so that the same span gives the same rows, and spans can be filled one
after another, or twice. It has what real ledgers have: answers without a confidence, failed and pending tasks, failed calls
of every kind, a superseded answer now and then, frames that were recorded late and some whose camera's clock was ahead,
alerts that people judged, one camera that its table does not know any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, text

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import make_partitions

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Traffic:
    """How much there is: `groups` of two objects or more in each of a camera's `frames` an hour."""

    cameras: int = 50
    frames: int = 140
    groups: int = 2
    keys: int = 10
    window_seconds: int = 3600

    @property
    def assessments_per_hour(self) -> int:
        """Tasks, of which about 98 of 100 have an answer."""
        return self.cameras * self.frames * self.groups


def fill_inventory(engine: Engine, traffic: Traffic) -> None:
    """Cameras and keys; of the last camera the table knows nothing."""
    parameters = {"cameras": traffic.cameras, "keys": traffic.keys}
    with transaction(engine) as connection:
        for statement in (_CAMERAS, _KEYS, _WORKER):
            connection.execute(text(statement), parameters)


def fill_hours(
    engine: Engine, traffic: Traffic, first: datetime, hours: int, *, written: datetime | None = None
) -> Iterator[datetime]:
    """Fill so many whole hours from `first` on, one transaction each; yields each hour when it is there.

    Rows are stamped as written moments after their capture, or at `written` where that is later.
    """
    for number in range(hours):
        hour = first + number * HOUR
        make_partitions(engine, [hour.astimezone(UTC).date()])
        with transaction(engine) as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL synchronous_commit = off"))
            fill_hour(connection, traffic, hour, written=written)
        yield hour


def fill_hour(connection: Connection, traffic: Traffic, hour: datetime, *, written: datetime | None = None) -> None:
    """All rows of one hour, whose partitions are there; what is there already stays as it is."""
    if hour != hour.replace(minute=0, second=0, microsecond=0):
        raise ValueError(f"{hour} is no whole hour")
    parameters = {
        "hour": hour, "cameras": traffic.cameras, "frames": traffic.frames, "groups": traffic.groups,
        "keys": traffic.keys, "step": 3600 / traffic.frames, "length": traffic.window_seconds,
        "written": written,
    }  # fmt: skip
    for statement in (_FRAMES, _TASKS, _ANSWERS, _SUPERSEDED, _CALLS, _WINDOWS, _ALERTS, _EVENTS, _NOTIFICATIONS):
        connection.execute(text(statement), parameters)


def _hash(what: str, modulus: int) -> str:
    return f"(abs(hashtextextended({what}, 7)) % {modulus})"


_CAMERAS = """
INSERT INTO camera (id, name, kind, status)
SELECT 'sim-' || n, 'Junction ' || n, 'simulated', CASE WHEN n % 17 = 0 THEN 'offline' ELSE 'online' END
FROM generate_series(1, greatest(1, :cameras - 1)) AS n
ON CONFLICT DO NOTHING
"""

_KEYS = """
INSERT INTO api_key (key_hash, label, qps_limit, rpm_limit, state)
SELECT 'key_' || n, 'simulated ' || n, 10, 300, CASE WHEN n % 7 = 0 THEN 'disabled' ELSE 'available' END
FROM generate_series(1, :keys) AS n
ON CONFLICT DO NOTHING
"""

_WORKER = """
INSERT INTO worker (service, node, pid) SELECT 'simulated', 'here', 1 WHERE NOT EXISTS (SELECT 1 FROM worker)
"""

# a colon before a letter or digit would be a parameter of SQLAlchemy's
_OBJECT = '{"objectId": 1, "class": "car", "confidence": 0.9, "bbox": [10, 10, 90, 60]}'

# camera, number of the frame in the hour, id, capture time; a moment's jitter, so that times are not all alike
_SEEN = f"""
SELECT camera_id, n, camera_id || '_' || floor(extract(epoch FROM captured_at) * 1000)::bigint AS message_id, captured_at
FROM (
    SELECT 'sim-' || c AS camera_id, n,
        date_trunc('milliseconds', CAST(:hour AS timestamptz) + make_interval(secs => n * :step
            + {_hash("'jitter' || c || ':' || n || CAST(:hour AS text)", 100)} / 1000.0)) AS captured_at
    FROM generate_series(1, :cameras) AS c, generate_series(0, :frames - 1) AS n
) AS moments
"""

_FRAMES = f"""
WITH seen AS ({_SEEN}), lists AS (
    SELECT array_agg(list ORDER BY size) AS lists FROM (
        SELECT size, (SELECT jsonb_agg(CAST('{_OBJECT}' AS jsonb)) FROM generate_series(1, size)) AS list
        FROM generate_series(1, 12) AS size
    ) AS sized
)
INSERT INTO frame (captured_at, message_id, camera_id, image_width, image_height, detected_objects, traffic_groups,
    detection_latency, model, node, recorded_at)
SELECT captured_at, message_id, camera_id, 1920, 1080, lists[:groups + 1 + {_hash("message_id", 8)}],
    lists[:groups + {_hash("'g' || message_id", 2)}], 0.05, 'simulated', 'here',
    greatest(CAST(:written AS timestamptz), captured_at + CASE {_hash("'late' || message_id", 500)}
        WHEN 0 THEN interval '20 minutes' WHEN 1 THEN interval '-3 seconds' ELSE interval '300 milliseconds' END)
FROM seen, lists
ON CONFLICT DO NOTHING
"""

_TASKS = f"""
WITH seen AS ({_SEEN})
INSERT INTO assessment_task (captured_at, task_id, message_id, camera_id, group_index, group_bbox, classes, object_count,
    detected_objects, priority, state, lane, reason, attempts, calls, failure_code, created_at, updated_at)
SELECT captured_at, message_id || '_group' || g, message_id, camera_id, g, '[10, 10, 200, 200]'::jsonb, '{{car}}', 2,
    '[]'::jsonb, {_hash("'p' || message_id || g", 1000)} / 1000.0,
    CASE fate WHEN 0 THEN 'failed' WHEN 1 THEN 'pending' ELSE 'assessed' END,
    CASE WHEN fate < 60 THEN 'window' ELSE 'realtime' END, CASE fate WHEN 1 THEN 'no quota' ELSE '' END,
    CASE fate WHEN 0 THEN 3 ELSE 1 END, CASE fate WHEN 1 THEN 0 ELSE 1 END,
    CASE fate WHEN 0 THEN 'unparsable' END, captured_at + interval '300 milliseconds',
    greatest(CAST(:written AS timestamptz), captured_at + interval '3 seconds')
FROM (SELECT *, {_hash("'fate' || message_id || '_group' || g", 100)} AS fate FROM seen, generate_series(1, :groups) AS g) AS t
ON CONFLICT DO NOTHING
"""

# a camera's own rate of danger, so that a ranking has something to find; the time of day makes it worse in the evening
_LEVEL = f"""
CASE WHEN {_hash("'level' || t.task_id", 10000)} < 20 + {_hash("'camera' || t.camera_id", 60)}
        + CASE WHEN extract(hour FROM t.captured_at) BETWEEN 16 AND 19 THEN 40 ELSE 0 END THEN 'high'
    WHEN {_hash("'level' || t.task_id", 10000)} < 300 THEN 'medium'
    WHEN {_hash("'level' || t.task_id", 10000)} < 2500 THEN 'low' ELSE 'none' END
"""

_IN_HOUR = "captured_at >= :hour AND captured_at < CAST(:hour AS timestamptz) + interval '1 hour'"

_ANSWERS = f"""
INSERT INTO risk_assessment (captured_at, task_id, run, message_id, camera_id, group_index, group_bbox, risk_level,
    confidence, risk_types, description, trigger_object_ids, is_current, lane, prompt_version, model, key_hash, call_id,
    retry_count, first_token_latency, latency, input_tokens, output_tokens, cost, raw_answer, node, assessed_at,
    published_at)
SELECT t.captured_at, t.task_id, 'live', t.message_id, t.camera_id, t.group_index, t.group_bbox, {_LEVEL},
    CASE WHEN {_hash("'c' || t.task_id", 50)} = 0 THEN NULL ELSE 0.5 + {_hash("'c' || t.task_id", 500)} / 1000.0 END,
    '{{}}', '', '{{}}', true, t.lane, 'v2', 'simulated-vl', 'key_' || 1 + {_hash("t.task_id", 1000)} % :keys,
    t.task_id || '_call1', 0, 0.4, 0.8 + {_hash("'l' || t.task_id", 2000)} / 1000.0, 900, 60, 0.0002, '{{}}', 'here',
    t.captured_at + make_interval(secs => 1.1 + {_hash("'l' || t.task_id", 2000)} / 1000.0), t.captured_at + interval '4 seconds'
FROM assessment_task t WHERE t.{_IN_HOUR.replace("AND captured_at", "AND t.captured_at")} AND t.state = 'assessed'
ON CONFLICT DO NOTHING
"""

# another run's answer beside the current one
_SUPERSEDED = f"""
INSERT INTO risk_assessment
SELECT (jsonb_populate_record(r, '{{"run": "backfill-1", "is_current": false, "prompt_version": "v1"}}')).*
FROM risk_assessment r WHERE r.{_IN_HOUR.replace("AND captured_at", "AND r.captured_at")} AND r.run = 'live'
    AND {_hash("'again' || r.task_id", 1000)} = 0
ON CONFLICT DO NOTHING
"""

_CALLS = f"""
INSERT INTO llm_call (captured_at, call_id, task_id, camera_id, call_number, run, lane, worker, key_hash, model,
    prompt_version, status, http_status, started_at, first_token_at, finished_at, input_tokens, output_tokens, cost)
SELECT captured_at, task_id || '_call1', task_id, camera_id, 1, 'live', lane, 1,
    'key_' || 1 + {_hash("task_id", 1000)} % :keys, 'simulated-vl', 'v2',
    CASE state WHEN 'assessed' THEN 'ok' ELSE (ARRAY['timeout', 'unparsable', 'rate_limited', 'unavailable'])[1 + {_hash("'s' || task_id", 4)}] END,
    CASE state WHEN 'assessed' THEN 200 END, captured_at + interval '300 milliseconds',
    CASE state WHEN 'assessed' THEN captured_at + interval '700 milliseconds' END,
    greatest(CAST(:written AS timestamptz), captured_at + make_interval(secs => 1.1 + {_hash("'l' || task_id", 2000)} / 1000.0)),
    900, CASE state WHEN 'assessed' THEN 60 END, CASE state WHEN 'assessed' THEN 0.0002 END
FROM assessment_task WHERE {_IN_HOUR} AND state <> 'pending'
ON CONFLICT DO NOTHING
"""

_WINDOWS = """
INSERT INTO camera_window (camera_id, window_start, length, assessed_version, completed_at, updated_at)
SELECT 'sim-' || c, start, :length, CASE WHEN abs(hashtextextended(c || start::text, 7)) % 40 = 0 THEN 0 ELSE 1 END,
    start + make_interval(secs => :length + 70),
    greatest(CAST(:written AS timestamptz), start + make_interval(secs => :length + 70))
FROM generate_series(1, :cameras) AS c,
    generate_series(CAST(:hour AS timestamptz), CAST(:hour AS timestamptz) + interval '59 minutes',
        make_interval(secs => :length)) AS start
ON CONFLICT DO NOTHING
"""

_ALERTS = f"""
INSERT INTO alert (alert_id, version, published_version, planned_version, camera_id, state, basis, risk_level, peak_level,
    risk_types, description, group_bbox, opened_at, last_seen_at, closed_at, updated_at, first_task_id, last_task_id,
    last_request_id, simulated, tracking, notified_at, verdict, verdict_by, verdict_at)
SELECT 'alert_' || r.task_id, 2, 2, 2, r.camera_id, CASE fate WHEN 0 THEN 'withdrawn' ELSE 'closed' END, 'final',
    r.risk_level, r.risk_level, (ARRAY['{{tailgating}}', '{{pedestrian_conflict}}', '{{wrong_way}}']::text[])[1 + fate % 3]::text[], '',
    '[10, 10, 200, 200]'::jsonb, r.captured_at,
    r.captured_at + make_interval(secs => fate), r.captured_at + interval '30 seconds', r.captured_at + interval '30 seconds',
    r.task_id, r.task_id, r.message_id, true, '{{}}'::jsonb, r.captured_at + interval '2 seconds',
    CASE fate WHEN 1 THEN 'rejected' WHEN 2 THEN 'acknowledged' WHEN 3 THEN 'acknowledged' END,
    CASE WHEN fate BETWEEN 1 AND 3 THEN 'simulated' END, CASE WHEN fate BETWEEN 1 AND 3 THEN r.captured_at + interval '1 minute' END
FROM (SELECT *, {_hash("'alert' || task_id", 10)} AS fate FROM risk_assessment WHERE {_IN_HOUR}
    AND risk_level = 'high' AND run = 'live') AS r
ON CONFLICT DO NOTHING
"""

_EVENTS = f"""
INSERT INTO alert_event (alert_id, version, input_id, kind, camera_id, task_id, captured_at, at, input, alert)
SELECT a.alert_id, stage.version, a.first_task_id || ':' || stage.kind, stage.kind, a.camera_id, a.first_task_id,
    a.opened_at, a.opened_at + make_interval(secs => stage.seconds * (1 + {_hash("a.alert_id", 1000)} / 500.0)), '{{}}'::jsonb, '{{}}'::jsonb
FROM alert a, (VALUES (1, 'provisional', 0.6), (2, 'final', 1.2)) AS stage (version, kind, seconds)
WHERE a.opened_at >= :hour AND a.opened_at < CAST(:hour AS timestamptz) + interval '1 hour'
ON CONFLICT DO NOTHING
"""

_NOTIFICATIONS = f"""
INSERT INTO notification (notification_id, receiver, kind, alert_id, camera_id, level, state, created_at, due_at, attempts,
    first_tried_at, sent_at)
SELECT 'n_' || a.alert_id, 'simulated', 'ring', a.alert_id, a.camera_id, a.risk_level,
    CASE {_hash("'n' || a.alert_id", 20)} WHEN 0 THEN 'failed' ELSE 'sent' END, a.opened_at + interval '2 seconds',
    a.opened_at + interval '2 seconds', 1, a.opened_at + interval '2 seconds',
    CASE {_hash("'n' || a.alert_id", 20)} WHEN 0 THEN NULL ELSE a.opened_at + interval '3 seconds' END
FROM alert a WHERE a.opened_at >= :hour AND a.opened_at < CAST(:hour AS timestamptz) + interval '1 hour'
ON CONFLICT DO NOTHING
"""
