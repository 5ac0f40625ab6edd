"""Claims: which worker assesses which task.

The ledger is the queue of record. A claim belongs to a worker with a heartbeat and carries a fencing token; when
the heartbeat stops, :func:`sweep` hands the claims back, and a result that still comes with the old token is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, Row, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import LIVE_RUN, DetectedObject, GroupMetadata, Lane
from dangerous_driving.contracts import AssessmentTask as TaskMessage
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import (
    TASK_COLUMNS,
    TASK_RECORD,
    TASK_VALUES,
    statements_of,
    tasks_as_json,
)
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.tables import AssessmentTask, BackfillTask, Worker
from dangerous_driving.ledger.windows import touch_windows


@dataclass(frozen=True)
class Claim:
    """A task that a worker holds. ``attempts`` counts earlier failures; ``run``: live, or a backfill's name."""

    task: TaskMessage
    token: int
    worker: int
    attempts: int = 0
    run: str = LIVE_RUN


@dataclass(frozen=True)
class Swept:
    """What a sweep found of dead workers. ``to_backfills``: groups that a backfill's next run takes up."""

    workers: int = 0
    to_realtime: int = 0
    to_window: int = 0
    to_backfills: int = 0
    calls_lost: int = 0


def start_worker(engine: Engine, *, service: str, node: str, pid: int) -> int:
    """Register a worker; returns its id."""
    with transaction(engine) as connection:
        worker = connection.scalar(insert(Worker).values(service=service, node=node, pid=pid).returning(Worker.id))
        assert worker is not None  # noqa: S101
        return worker


def heartbeat(engine: Engine, worker: int) -> bool:
    """Say that the worker lives; False when it was given up meanwhile and must start anew."""
    with transaction(engine) as connection:
        alive = connection.scalar(
            update(Worker)
            .where(Worker.id == worker, Worker.stopped_at.is_(None))
            .values(heartbeat_at=func.clock_timestamp())
            .returning(Worker.id)
        )
        return alive is not None


def stop_worker(engine: Engine, worker: int) -> None:
    """Say that the worker has ended; what it may still hold goes back at the next sweep."""
    with transaction(engine) as connection:
        connection.execute(update(Worker).where(Worker.id == worker).values(stopped_at=func.now()))


def claim_tasks(
    engine: Engine,
    partitions: Partitions,
    worker: int,
    admitted: Sequence[TaskMessage],
    deferred: Sequence[TaskMessage],
    *,
    deferred_reason: str,
    window_length: int,
) -> list[Claim]:
    """Claim the admitted tasks for the realtime lane and leave the deferred ones pending for the window lane.

    One transaction; tasks the ledger does not have yet are written. What another worker holds, or what is answered
    already, is not claimed.
    """
    partitions.ensure(engine, (task.timestamp for task in (*admitted, *deferred)))
    with transaction(engine) as connection:
        new: set[tuple[str, datetime]] = set()
        claims: list[Claim] = []
        by_id = {task.task_id: task for task in admitted}
        for part in statements_of((*admitted, *deferred)):
            rows = connection.execute(
                _CLAIM_TASKS,
                {
                    "admitted": tasks_as_json(task for task in part if task.task_id in by_id),
                    "deferred": tasks_as_json(task for task in part if task.task_id not in by_id),
                    "worker": worker,
                    "deferred_reason": deferred_reason,
                },
            ).all()
            claims += [
                Claim(by_id[row.task_id], row.claim_token, worker, row.attempts)
                for row in rows
                if row.state == "claimed"
            ]
            new |= {(row.camera_id, row.captured_at) for row in rows if row.is_new}
        touch_windows(connection, new, window_length)
    return claims


# one parameter of a statement that is prepared once: 14 parameters a row cost 80 ms of the process' time for 200 tasks, in
# which its event loop gets no turn
#
# The admitted and the deferred in one statement, so that all rows go in the order of their key: the tasks service, beside the
# Flink job, writes the same ones at the same time, and with the fresh ones first the two waited for each other.
_CLAIM_TASKS = text(f"""
INSERT INTO assessment_task ({TASK_COLUMNS}, state, lane, reason, claim_worker, claim_token, claimed_at)
SELECT {TASK_VALUES},
    CASE WHEN admitted THEN 'claimed' ELSE 'pending' END,
    CASE WHEN admitted THEN 'realtime' ELSE 'window' END,
    CASE WHEN admitted THEN 'claimed by a scheduler' ELSE :deferred_reason END,
    CASE WHEN admitted THEN CAST(:worker AS bigint) END,
    CASE WHEN admitted THEN nextval('claim_token_seq') END,
    CASE WHEN admitted THEN now() END
FROM (
    SELECT true AS admitted, * FROM json_to_recordset(CAST(:admitted AS json)) AS message({TASK_RECORD})
    UNION ALL
    SELECT false, * FROM json_to_recordset(CAST(:deferred AS json)) AS message({TASK_RECORD})
) AS tasks
ORDER BY "timestamp", "taskId"
ON CONFLICT (captured_at, task_id) DO UPDATE
    SET state = excluded.state, lane = excluded.lane, reason = excluded.reason, claim_worker = excluded.claim_worker,
        claim_token = coalesce(excluded.claim_token, assessment_task.claim_token), claimed_at = excluded.claimed_at,
        updated_at = now()
    WHERE assessment_task.state = 'pending'
-- rows of this transaction carry its time, older ones do not
RETURNING task_id, state, claim_token, attempts, camera_id, captured_at, created_at = now() AS is_new
""")  # noqa: S608  # constants


def claim_pending_realtime(engine: Engine, worker: int, *, captured_after: datetime, limit: int) -> list[Claim]:
    """Claim what waits in the realtime lane and is still fresh: handed back by a sweep, or never seen on the topic."""
    return _claim(
        engine,
        worker,
        "state = 'pending' AND lane = 'realtime' AND captured_at >= :after",
        {"after": captured_after},
        limit,
    )


def claim_window(engine: Engine, worker: int, window: Window, *, max_attempts: int, limit: int) -> list[Claim]:
    """Claim the window's tasks that have no answer: pending in any lane, or failed fewer than `max_attempts` times.

    Also what this very worker holds: a run claims only when nothing of the window is under way in it, so such a claim was
    lost with the connection that made it, and nobody else would ever take it up while the worker lives.
    """
    return _claim(
        engine,
        worker,
        "camera_id = :camera AND captured_at >= :start AND captured_at < :end "
        "AND (state = 'pending' OR (state = 'failed' AND attempts < :max_attempts) "
        "OR (state = 'claimed' AND claim_worker = :worker))",
        {"camera": window.camera_id, "start": window.start, "end": window.end, "max_attempts": max_attempts},
        limit,
        lane=Lane.WINDOW,
    )


def _claim(
    engine: Engine,
    worker: int,
    condition: str,
    parameters: dict[str, object],
    limit: int,
    *,
    lane: Lane = Lane.REALTIME,
) -> list[Claim]:
    statement = text(
        f"""
        WITH chosen AS (
            SELECT captured_at, task_id FROM assessment_task WHERE {condition}
            ORDER BY priority DESC, captured_at DESC LIMIT :limit FOR UPDATE SKIP LOCKED
        )
        UPDATE assessment_task AS t
        SET state = 'claimed', lane = :lane, reason = 'claimed by a worker', claim_worker = :worker,
            claim_token = nextval('claim_token_seq'), claimed_at = now(), updated_at = now(),
            failure_code = NULL, failure_message = NULL, failure_raw = NULL
        FROM chosen WHERE t.captured_at = chosen.captured_at AND t.task_id = chosen.task_id
        RETURNING t.*
        """  # noqa: S608  # the condition is one of the constants above
    )
    with transaction(engine) as connection:
        rows = connection.execute(statement, {**parameters, "limit": limit, "worker": worker, "lane": lane.value}).all()
    claims = [Claim(task_message(row), row.claim_token, worker, row.attempts) for row in rows]
    return sorted(claims, key=lambda claim: (-claim.task.priority, claim.task.timestamp))


def task_message(row: Row[tuple[object, ...]]) -> TaskMessage:
    """The task's message as the tasks service would send it (without a base64 picture)."""
    return TaskMessage(
        task_id=row.task_id,
        request_id=row.message_id,
        camera_id=row.camera_id,
        timestamp=row.captured_at,
        group_index=row.group_index,
        group_image_url=row.group_image_url,
        detected_objects=tuple(DetectedObject.model_validate(item) for item in row.detected_objects),
        group_metadata=GroupMetadata(
            object_count=row.object_count, classes=tuple(row.classes), bbox=tuple(row.group_bbox)
        ),
        priority=row.priority,
    )


def held_by(engine: Engine, worker: int, *, older_than: float) -> list[Claim]:
    """What the ledger says the worker has held for `older_than` seconds; it may have lost track of some of it."""
    statement = text(
        "SELECT * FROM assessment_task WHERE state = 'claimed' AND claim_worker = :worker "
        "AND claimed_at < now() - make_interval(secs => :age)"
    )
    with transaction(engine) as connection:
        rows = connection.execute(statement, {"worker": worker, "age": older_than}).all()
    return [Claim(task_message(row), row.claim_token, worker, row.attempts) for row in rows]


def release(engine: Engine, claims: Sequence[Claim], *, lane: Lane, reason: str) -> int:
    """Give tasks back that were not assessed; those handed on to another worker meanwhile stay with it."""
    if not claims:
        return 0
    keys = [(claim.task.timestamp, claim.task.task_id, claim.token) for claim in claims if claim.run == LIVE_RUN]
    with transaction(engine) as connection:
        back = 0
        for claim in claims:
            if claim.run != LIVE_RUN:
                back += connection.execute(
                    update(BackfillTask)
                    .where(
                        BackfillTask.run == claim.run,
                        BackfillTask.captured_at == claim.task.timestamp,
                        BackfillTask.task_id == claim.task.task_id,
                        BackfillTask.worker == claim.worker,
                        BackfillTask.state == "claimed",
                    )
                    .values(state="pending", updated_at=func.now())
                ).rowcount
        if not keys:
            return back
        released = connection.execute(
            update(AssessmentTask)
            .where(
                tuple_(AssessmentTask.captured_at, AssessmentTask.task_id, AssessmentTask.claim_token).in_(keys),
                AssessmentTask.state == "claimed",
            )
            .values(
                state="pending",
                lane=lane.value,
                reason=reason,
                claim_worker=None,
                claimed_at=None,
                updated_at=func.now(),
            )
            .returning(AssessmentTask.task_id)
        ).all()
    return back + len(released)


def sweep(engine: Engine, *, worker_timeout: float, captured_after: datetime) -> Swept:
    """Give up workers whose heartbeat stopped, hand their claims back and mark their open calls as lost.

    Args:
        engine: of the ledger.
        worker_timeout: s without heartbeat.
        captured_after: fresher tasks go back to the realtime lane, older ones to the window lane.
    """
    with transaction(engine) as connection:
        dead = connection.scalars(text(_GIVE_UP), {"timeout": worker_timeout}).all()
        # also what ended workers left behind, and claims of workers that are not known at all
        lanes = connection.scalars(text(_HAND_BACK), {"after": captured_after}).all()
        backfills = connection.execute(text(_HAND_BACK_BACKFILLS)).rowcount
        lost = connection.execute(text(_MARK_LOST)).rowcount
    return Swept(
        workers=len(dead),
        to_realtime=sum(lane == Lane.REALTIME for lane in lanes),
        to_window=sum(lane == Lane.WINDOW for lane in lanes),
        to_backfills=backfills,
        calls_lost=lost,
    )


_GIVE_UP = """
UPDATE worker SET stopped_at = now()
WHERE stopped_at IS NULL AND heartbeat_at < clock_timestamp() - make_interval(secs => :timeout)
RETURNING id
"""

_HAND_BACK = """
UPDATE assessment_task AS t
SET state = 'pending', claim_worker = NULL, claimed_at = NULL, updated_at = now(),
    lane = CASE WHEN t.captured_at >= :after THEN 'realtime' ELSE 'window' END,
    reason = 'handed back: its worker ' || t.claim_worker || ' has gone'
WHERE t.state = 'claimed'
  AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = t.claim_worker AND w.stopped_at IS NULL)
RETURNING t.lane
"""

_HAND_BACK_BACKFILLS = """
UPDATE backfill_task AS b SET state = 'pending', updated_at = now()
WHERE b.state = 'claimed' AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = b.worker AND w.stopped_at IS NULL)
"""

_MARK_LOST = """
UPDATE llm_call AS c
SET status = 'lost', finished_at = now(), error = 'the process died while the call was under way'
WHERE c.status = 'started'
  AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = c.worker AND w.stopped_at IS NULL)
"""


def count_states(engine: Engine) -> dict[str, int]:
    """Tasks by state."""
    with transaction(engine) as connection:
        counted = select(AssessmentTask.state, func.count()).group_by(AssessmentTask.state)
        return dict(connection.execute(counted).tuples().all())
