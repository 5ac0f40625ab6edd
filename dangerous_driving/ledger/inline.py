"""Calls of the inline lane, handed in to the ledger when it is back."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.assessment.inline_folder import InlineCall
from dangerous_driving.contracts import LIVE_RUN, Lane
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import insert_tasks
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.tables import AssessmentTask, LlmCall, RiskAssessment
from dangerous_driving.ledger.windows import touch_windows

REASON = "asked by the inline lane"


def hand_in(engine: Engine, partitions: Partitions, call: InlineCall, *, worker: int, window_length: int) -> bool:
    """Write the call's row and, unless another lane was faster, its answer. Handing in again changes nothing.

    Returns:
        Whether the answer was kept.

    Raises:
        LedgerError: the database is away.
    """
    assert call.outcome is not None  # noqa: S101
    task, outcome = call.task, call.outcome
    partitions.ensure(engine, [task.timestamp])
    here = (AssessmentTask.captured_at == task.timestamp, AssessmentTask.task_id == task.task_id)
    with transaction(engine) as connection:
        new = insert_tasks(connection, [task], lane=Lane.WINDOW, reason=REASON)
        touch_windows(connection, new, window_length)
        state, calls = connection.execute(
            select(AssessmentTask.state, AssessmentTask.calls).where(*here).with_for_update()
        ).one()
        known = select(LlmCall.call_id).where(
            LlmCall.captured_at == task.timestamp,
            LlmCall.task_id == task.task_id,
            LlmCall.started_at == call.started_at,
        )
        if connection.execute(known).first() is not None:
            return False
        call_id = f"{task.task_id}_call{calls + 1}"
        connection.execute(update(AssessmentTask).where(*here).values(calls=calls + 1, updated_at=func.now()))
        # keys that no pool on this database has used yet
        connection.execute(
            text("INSERT INTO api_key (key_hash, qps_limit, rpm_limit) VALUES (:key, 1, 1) ON CONFLICT DO NOTHING"),
            {"key": call.key_hash},
        )
        connection.execute(
            insert(LlmCall).values(
                captured_at=task.timestamp,
                call_id=call_id,
                task_id=task.task_id,
                camera_id=task.camera_id,
                call_number=calls + 1,
                run=LIVE_RUN,
                lane=Lane.INLINE.value,
                worker=worker,
                key_hash=call.key_hash,
                model=call.model,
                prompt_version=call.prompt_version,
                started_at=call.started_at,
                finished_at=call.finished_at or call.started_at,
                **asdict(outcome),
            )
        )
        if call.record is None or state not in {"pending", "failed"}:
            return False
        values = asdict(call.record) | {"call_id": call_id, "is_current": True}
        kept = connection.execute(insert(RiskAssessment).values(values).on_conflict_do_nothing()).rowcount
        connection.execute(
            update(AssessmentTask)
            .where(*here)
            .values(
                state="assessed",
                lane=Lane.INLINE.value,
                reason="",
                failure_code=None,
                failure_message=None,
                failure_raw=None,
                updated_at=func.now(),
            )
        )
        return bool(kept)
