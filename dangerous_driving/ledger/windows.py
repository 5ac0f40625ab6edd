"""Windows in the ledger: which are due, what they hold, which content was completed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Engine, func, select, text, true, update

from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import AssessmentTask, CameraWindow, RiskAssessment

#: Runs that the sensor starts for one content of a window before it leaves it to a person.
MAX_ATTEMPTS = 5
#: Windows of another length that one statement takes over: a day's is looked through minute by minute.
TAKEN_OVER_AT_A_TIME = 100


@dataclass(frozen=True)
class DueWindow:
    """A closed window with content that no run has completed."""

    window: Window
    version: int
    attempts: int
    run_key: str | None = None  # of the run it was last put into
    launched_version: int = 0  # the content at that time


@dataclass(frozen=True)
class WindowCoverage:
    """What the ledger holds of one window; ``missing`` are groups of two or more objects without a task."""

    frames: int
    groups: int
    tasks: int
    assessed: int
    failed: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    claimed: int = 0
    expired: int = 0
    missing: int = 0
    unanswered: int = 0  # state assessed, but no current assessment
    levels: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every group has a task, and every task an answer, a cause of failure, or expired."""
        return not (self.pending or self.claimed or self.missing or self.unanswered)


def touch_windows(connection: Connection, captured: Iterable[tuple[str, datetime]], length: int) -> None:
    """Note new content (camera id, capture time) in its windows: a new version, which re-opens a completed one."""
    windows = sorted({window_of(camera_id, at, length) for camera_id, at in captured})
    if not windows:
        return
    connection.execute(
        _TOUCH,
        {
            "cameras": [window.camera_id for window in windows],
            "starts": [window.start for window in windows],
            "length": length,
        },
    )


_TOUCH = text("""
INSERT INTO camera_window AS w (camera_id, window_start, length)
SELECT camera_id, window_start, :length
FROM unnest(CAST(:cameras AS text[]), CAST(:starts AS timestamptz[])) AS touched(camera_id, window_start)
ON CONFLICT (camera_id, window_start, length) DO UPDATE SET version = w.version + 1, attempts = 0, updated_at = now()
""")


def due_windows(
    engine: Engine,
    *,
    now: datetime,
    lateness: float,
    length: int,
    limit: int,
    since: datetime | None = None,
    given_up_too: bool = False,
) -> list[DueWindow]:
    """Closed windows (from `since` on) whose content is not completed, oldest first, at most `limit`; one query.

    A window is left out after `MAX_ATTEMPTS` failed runs on the same content, unless `given_up_too`. One that a run is
    busy with is still due: the key of its run keeps the sensor from starting it twice.
    """
    closed_before = now - timedelta(seconds=length + lateness)
    statement = (
        select(
            CameraWindow.camera_id,
            CameraWindow.window_start,
            CameraWindow.version,
            CameraWindow.attempts,
            CameraWindow.run_key,
            CameraWindow.launched_version,
        )
        .where(
            CameraWindow.assessed_version < CameraWindow.version,
            CameraWindow.length == length,
            CameraWindow.window_start <= closed_before,
            true() if given_up_too else CameraWindow.attempts < MAX_ATTEMPTS,
        )
        .order_by(CameraWindow.window_start, CameraWindow.camera_id)
        .limit(limit)
    )
    if since is not None:
        statement = statement.where(CameraWindow.window_start >= since)
    with transaction(engine) as connection:
        return [
            DueWindow(Window(camera_id, start, length), version, attempts, run_key, launched)
            for camera_id, start, version, attempts, run_key, launched in connection.execute(statement)
        ]


def take_over_windows(engine: Engine, *, length: int, now: datetime, lateness: float | None) -> int:
    """Let windows of `length` stand for incomplete ones of another length, which nobody else would complete.

    ``windows.length`` was changed, and what was counted before stands under the old length. The windows of `length` over
    such a window that have frames or tasks are made, or opened again; it is settled itself, and so is whatever of another
    length lies wholly within them: no content is asked for or counted twice. Said again it changes nothing. Frames that a
    process with the old setting still writes open the old window again, which is taken over anew.

    Args:
        engine: of the ledger.
        length: s (``windows.length``).
        now: with time zone.
        lateness: s after its end until a window counts as closed; None: open ones, too.

    Returns:
        How many were settled; about `TAKEN_OVER_AT_A_TIME` at a time, oldest first, so ask until there are none.
    """
    parameters = {"length": length, "now": now, "lateness": lateness, "limit": TAKEN_OVER_AT_A_TIME}
    with transaction(engine) as connection:
        return connection.execute(text(_TAKE_OVER), parameters).rowcount


def launch_windows(engine: Engine, launches: Sequence[tuple[DueWindow, str]]) -> None:
    """Note the run (by its key) that each window is put into, with the content and the attempt it is about.

    Written before the run is asked for: a process that dies in between leaves a key without a run, which counts as
    not launched.
    """
    if not launches:
        return
    parameters = {
        "cameras": [due.window.camera_id for due, _ in launches],
        "starts": [due.window.start for due, _ in launches],
        "lengths": [due.window.length for due, _ in launches],
        "versions": [due.version for due, _ in launches],
        "attempts": [due.attempts for due, _ in launches],
        "keys": [key for _, key in launches],
    }
    with transaction(engine) as connection:
        connection.execute(text(_LAUNCH), parameters)


def windows_between(
    engine: Engine, start: datetime, until: datetime, *, length: int, cameras: Collection[str] = ()
) -> list[Window]:
    """Windows with content that begin in ``[start, until)``, of these cameras or of all."""
    statement = (
        select(CameraWindow.camera_id, CameraWindow.window_start)
        .where(CameraWindow.window_start >= start, CameraWindow.window_start < until, CameraWindow.length == length)
        .order_by(CameraWindow.window_start, CameraWindow.camera_id)
    )
    if cameras:
        statement = statement.where(CameraWindow.camera_id.in_(cameras))
    with transaction(engine) as connection:
        return [Window(camera_id, begin, length) for camera_id, begin in connection.execute(statement)]


def start_window(engine: Engine, window: Window, run_id: str) -> int:
    """Note a run on the window; returns the content version that the run is about (0: no frames)."""
    with transaction(engine) as connection:
        version = connection.scalar(
            update(CameraWindow)
            .where(*_is(window))
            .values(last_run_id=run_id, updated_at=func.now())
            .returning(CameraWindow.version)
        )
        return version or 0


def fail_window(engine: Engine, window: Window, version: int) -> None:
    """Note that a run on this content failed, so that the sensor starts another one."""
    with transaction(engine) as connection:
        connection.execute(
            update(CameraWindow)
            .where(*_is(window), CameraWindow.version == version)
            .values(attempts=CameraWindow.attempts + 1, updated_at=func.now())
        )


def complete_window(engine: Engine, window: Window, version: int) -> None:
    """Note that the window's content up to `version` is completed."""
    with transaction(engine) as connection:
        connection.execute(
            update(CameraWindow)
            .where(*_is(window), CameraWindow.assessed_version < version)
            .values(assessed_version=version, completed_at=func.now())
        )


def reopen_unanswered(engine: Engine, window: Window) -> int:
    """Make tasks pending again whose current answer is gone from the ledger; returns how many."""
    with transaction(engine) as connection:
        return connection.execute(
            text(_REOPEN), {"camera": window.camera_id, "start": window.start, "end": window.end}
        ).rowcount


def window_coverage(engine: Engine, window: Window) -> WindowCoverage:
    """Count what the ledger holds of the window."""
    parameters = {"camera": window.camera_id, "start": window.start, "end": window.end}
    in_window = (
        AssessmentTask.camera_id == window.camera_id,
        AssessmentTask.captured_at >= window.start,
        AssessmentTask.captured_at < window.end,
    )
    with transaction(engine) as connection:
        frames, groups, missing = connection.execute(text(_GROUPS), parameters).one()
        states: dict[str, int] = {}
        failed: dict[str, int] = {}
        counted = select(AssessmentTask.state, AssessmentTask.failure_code, func.count()).where(*in_window)
        for state, code, count in connection.execute(
            counted.group_by(AssessmentTask.state, AssessmentTask.failure_code)
        ):
            states[state] = states.get(state, 0) + count
            if state == "failed":
                failed[code] = count
        levels = select(RiskAssessment.risk_level, func.count()).where(
            RiskAssessment.camera_id == window.camera_id,
            RiskAssessment.captured_at >= window.start,
            RiskAssessment.captured_at < window.end,
            RiskAssessment.is_current,
        )
        by_level = dict(connection.execute(levels.group_by(RiskAssessment.risk_level)).tuples().all())
        unanswered = connection.scalar(text(_UNANSWERED), parameters) or 0
    return WindowCoverage(
        frames=frames,
        groups=groups,
        tasks=sum(states.values()),
        assessed=states.get("assessed", 0),
        failed=failed,
        pending=states.get("pending", 0),
        claimed=states.get("claimed", 0),
        expired=states.get("expired", 0),
        missing=missing,
        unanswered=unanswered,
        levels=by_level,
    )


def _is(window: Window) -> tuple[ColumnElement[bool], ...]:
    return (
        CameraWindow.camera_id == window.camera_id,
        CameraWindow.window_start == window.start,
        CameraWindow.length == window.length,
    )


_LAUNCH = """
UPDATE camera_window AS w
SET run_key = l.run_key, launched_version = l.version, updated_at = now(),
    attempts = CASE WHEN w.version = l.version THEN l.attempts ELSE w.attempts END
FROM unnest(CAST(:cameras AS text[]), CAST(:starts AS timestamptz[]), CAST(:lengths AS int[]), CAST(:versions AS int[]),
            CAST(:attempts AS int[]), CAST(:keys AS text[])) AS l(camera_id, start, length, version, attempts, run_key)
WHERE w.camera_id = l.camera_id AND w.window_start = l.start AND w.length = l.length
"""

# versions are those of the statement's snapshot: a window that gets new content meanwhile stays open, and is taken next time
_TAKE_OVER = """
WITH orphan AS (
    SELECT camera_id, window_start, length, version FROM camera_window
    WHERE assessed_version < version AND length <> :length
      AND (CAST(:lateness AS float8) IS NULL
           OR window_start + make_interval(secs => length + CAST(:lateness AS float8)) <= :now)
    ORDER BY window_start, camera_id LIMIT :limit
), span AS (
    SELECT DISTINCT camera_id, to_timestamp(number * :length) AS start, to_timestamp((number + 1) * :length) AS ending
    FROM orphan, generate_series(
        floor(extract(epoch FROM window_start) / :length)::bigint,
        ceil((extract(epoch FROM window_start) + length) / :length)::bigint - 1) AS number
), made AS (
    INSERT INTO camera_window AS w (camera_id, window_start, length)
    SELECT camera_id, start, :length FROM span s
    WHERE EXISTS (SELECT 1 FROM frame f
                  WHERE f.camera_id = s.camera_id AND f.captured_at >= s.start AND f.captured_at < s.ending)
       OR EXISTS (SELECT 1 FROM assessment_task t
                  WHERE t.camera_id = s.camera_id AND t.captured_at >= s.start AND t.captured_at < s.ending)
    ORDER BY camera_id, start
    ON CONFLICT (camera_id, window_start, length) DO UPDATE
        SET version = w.version + 1, attempts = 0, updated_at = now() WHERE w.assessed_version >= w.version
), settled AS (
    SELECT camera_id, window_start, length, version FROM orphan
    UNION
    -- OFFSET: by the key, span by span, however many of them are guessed
    SELECT c.* FROM span s, LATERAL (
        SELECT camera_id, window_start, length, version FROM camera_window
        WHERE camera_id = s.camera_id AND window_start >= s.start AND window_start < s.ending AND length < :length OFFSET 0
    ) c WHERE c.window_start + make_interval(secs => c.length) <= s.ending
)
UPDATE camera_window c
SET assessed_version = greatest(c.assessed_version, s.version), completed_at = NULL, updated_at = now()
FROM settled s
WHERE c.camera_id = s.camera_id AND c.window_start = s.window_start AND c.length = s.length
"""

_GROUPS = """
WITH traffic_group AS (
    SELECT frame.message_id, frame.captured_at, (traffic_group ->> 'groupIndex')::int AS group_index
    FROM frame, jsonb_array_elements(frame.traffic_groups) AS traffic_group
    WHERE frame.camera_id = :camera AND frame.captured_at >= :start AND frame.captured_at < :end
      AND (traffic_group ->> 'objectCount')::int >= 2
)
SELECT
    (SELECT count(*) FROM frame WHERE camera_id = :camera AND captured_at >= :start AND captured_at < :end),
    (SELECT count(*) FROM traffic_group),
    (SELECT count(*) FROM traffic_group g WHERE NOT EXISTS (
        SELECT 1 FROM assessment_task t
        WHERE t.captured_at = g.captured_at AND t.message_id = g.message_id AND t.group_index = g.group_index))
"""

_UNANSWERED = """
SELECT count(*) FROM assessment_task t
WHERE t.camera_id = :camera AND t.captured_at >= :start AND t.captured_at < :end AND t.state = 'assessed'
  AND NOT EXISTS (
    SELECT 1 FROM risk_assessment r
    WHERE r.captured_at = t.captured_at AND r.task_id = t.task_id AND r.is_current)
"""

_REOPEN = """
UPDATE assessment_task t SET state = 'pending', lane = 'window', reason = 'its answer is gone', updated_at = now()
WHERE t.camera_id = :camera AND t.captured_at >= :start AND t.captured_at < :end AND t.state = 'assessed'
  AND NOT EXISTS (
    SELECT 1 FROM risk_assessment r
    WHERE r.captured_at = t.captured_at AND r.task_id = t.task_id AND r.is_current)
"""
