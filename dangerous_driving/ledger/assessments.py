"""Calls to the endpoint and the answers they brought, of the live run and of backfills.

A live claim holds its task (`assessment_task`), a backfill's claim its own row (`backfill_task`): what a backfill does
changes nothing of the task but the number of its calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, Table, bindparam, func, literal_column, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.contracts import LIVE_RUN
from dangerous_driving.errors import StaleClaimError
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import AssessmentTask, BackfillTask, LlmCall, RiskAssessment


@dataclass(frozen=True)
class CallOutcome:
    """How a request ended. ``status`` is one of the `llm_call` table; times are of this process' clock."""

    status: str
    http_status: int | None = None
    first_token_at: datetime | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class AssessmentRecord:
    """One row of ``risk_assessment``; the field names are its columns."""

    captured_at: datetime
    task_id: str
    run: str
    message_id: str
    camera_id: str
    group_index: int
    group_bbox: list[float]
    risk_level: str
    confidence: float | None
    risk_types: list[str]
    description: str
    trigger_object_ids: list[int]
    danger_object_count: int | None
    lane: str
    prompt_version: str
    model: str
    key_hash: str
    call_id: str
    retry_count: int
    first_token_latency: float | None
    latency: float
    input_tokens: int
    output_tokens: int
    cost: float
    reused_from: str | None
    raw_answer: str
    node: str
    assessed_at: datetime


COLUMNS = tuple(AssessmentRecord.__dataclass_fields__)


def start_call(
    engine: Engine,
    claim: Claim,
    *,
    run: str,
    lane: str,
    key_hash: str,
    model: str,
    prompt_version: str,
    shared_with: Sequence[Claim] = (),
) -> str:
    """Write the call's row before the request leaves; returns its id, ``TASKID_callN``.

    Args:
        engine: of the ledger.
        claim: on the task that the row stands under.
        run: live; a backfill's claim brings its own.
        lane: whose quota it is.
        key_hash: of the key it goes out on.
        model: that is asked.
        prompt_version: that it is asked with.
        shared_with: live claims on other tasks of the same frame that the request asks about too.

    Raises:
        StaleClaimError: one of the tasks was handed to another worker: do not send the request.
    """
    task = claim.task
    live = claim.run == LIVE_RUN
    with transaction(engine) as connection:
        number = connection.scalar(
            _COUNT_CALL if live else _COUNT_BACKFILL_CALL,
            {"at": task.timestamp, "id": task.task_id} | ({"token": claim.token} if live else {}),
        )
        if number is None or not (live or _holds_backfill(connection, claim)):
            raise StaleClaimError(f"task {task.task_id} was handed to another worker")  # rolls the count back
        if shared_with and _count_held(connection, shared_with) < len(shared_with):
            raise StaleClaimError(f"a task that shares a call with {task.task_id} was handed to another worker")
        call_id = f"{task.task_id}_call{number}"
        connection.execute(
            _START_CALL,
            {
                "captured_at": task.timestamp,
                "call_id": call_id,
                "task_id": task.task_id,
                "shared_with": [other.task.task_id for other in shared_with],
                "camera_id": task.camera_id,
                "call_number": number,
                "run": run if live else claim.run,
                "lane": lane,
                "worker": claim.worker,
                "key_hash": key_hash,
                "model": model,
                "prompt_version": prompt_version,
            },
        )
    return call_id


def finish_call(engine: Engine, captured_at: datetime, call_id: str, outcome: CallOutcome) -> None:
    """Complete the call's row (also one that a sweep took for lost: the process lives after all)."""
    with transaction(engine) as connection:
        end_call(connection, captured_at, call_id, outcome)


def end_call(connection: Connection, captured_at: datetime, call_id: str, outcome: CallOutcome) -> None:
    """Complete a call's row within a transaction."""
    connection.execute(_FINISH_CALL, {"at": captured_at, "id": call_id} | vars(outcome))


def complete(engine: Engine, claim: Claim, record: AssessmentRecord, outcome: CallOutcome | None) -> None:
    """Keep an answer under the claim's fencing token and complete its call, in one transaction.

    Args:
        engine: of the ledger.
        claim: on the task.
        record: the answer.
        outcome: of the call that brought it; None: it was reused from another task, without a call.

    Raises:
        StaleClaimError: another worker holds the task: the answer is not kept, the call's row is.
    """
    values = {name: getattr(record, name) for name in COLUMNS} | {"is_current": True}
    if claim.run != LIVE_RUN:
        _complete_backfill(engine, claim, values | {"run": claim.run, "is_current": False}, outcome)
        return
    with transaction(engine) as connection:
        if outcome is not None:
            end_call(connection, record.captured_at, record.call_id, outcome)
        held = _keep(connection, claim, values)
    if not held:
        raise StaleClaimError(f"task {record.task_id} was handed to another worker: its answer is not kept")


def complete_shared(
    engine: Engine, answered: Sequence[tuple[Claim, AssessmentRecord]], outcome: CallOutcome
) -> list[AssessmentRecord]:
    """Keep the answers that one call brought, each under its own claim's fencing token, and complete the call.

    Args:
        engine: of the ledger.
        answered: live claims on tasks of one frame, with their answers; at least one.
        outcome: of the call.

    Returns:
        The answers that were kept: not those whose tasks other workers hold meanwhile.
    """
    kept = []
    with transaction(engine) as connection:
        first = answered[0][1]
        end_call(connection, first.captured_at, first.call_id, outcome)
        # in the order of their ids, as everybody locks tasks
        for claim, record in sorted(answered, key=lambda item: item[1].task_id):
            values = {name: getattr(record, name) for name in COLUMNS} | {"is_current": True}
            if _keep(connection, claim, values):
                kept.append(record)
    return kept


def _keep(connection: Connection, claim: Claim, values: dict[str, Any]) -> bool:
    """The live answer to a task, if the claim still holds it."""
    task = {"at": claim.task.timestamp, "id": claim.task.task_id}
    held = connection.scalar(_ASSESSED, task | {"token": claim.token, "by_lane": values["lane"]})
    if held is None:
        return False
    connection.execute(_GIVE_WAY, task | {"by_run": values["run"]})
    connection.execute(_KEEP, values)
    return True


# Built once: a statement that is built anew for each answer costs more processor time than running it.
_TASK: Table = AssessmentTask.__table__  # type: ignore[assignment]  # tables of declarative classes are such
_ANSWER: Table = RiskAssessment.__table__  # type: ignore[assignment]
_CALL: Table = LlmCall.__table__  # type: ignore[assignment]

_THIS_TASK = (_TASK.c.captured_at == bindparam("at"), _TASK.c.task_id == bindparam("id"))
_HELD = (*_THIS_TASK, _TASK.c.claim_token == bindparam("token"), _TASK.c.state == "claimed")
_COUNT_BACKFILL_CALL = update(_TASK).where(*_THIS_TASK).values(calls=_TASK.c.calls + 1).returning(_TASK.c.calls)
_COUNT_CALL = update(_TASK).where(*_HELD).values(calls=_TASK.c.calls + 1).returning(_TASK.c.calls)
_START_CALL = sqlalchemy.insert(_CALL).values(status="started", started_at=func.clock_timestamp())
_FINISH_CALL = (
    update(_CALL)
    .where(_CALL.c.captured_at == bindparam("at"), _CALL.c.call_id == bindparam("id"))
    .values(finished_at=func.clock_timestamp())
)
_ASSESSED = (
    update(_TASK)
    .where(*_HELD)
    .values(
        state="assessed",
        lane=bindparam("by_lane"),
        reason="",
        claim_worker=None,
        failure_code=None,
        failure_message=None,
        failure_raw=None,
        updated_at=func.now(),
    )
    .returning(_TASK.c.task_id)
)
#: An answer of a backfill that was made the current one gives way: this one was asked for.
_GIVE_WAY = (
    update(_ANSWER)
    .where(
        _ANSWER.c.captured_at == bindparam("at"),
        _ANSWER.c.task_id == bindparam("id"),
        _ANSWER.c.run != bindparam("by_run"),
        _ANSWER.c.is_current,
    )
    .values(is_current=False)
)
_KEPT = (*COLUMNS, "is_current")
# as text: SQLAlchemy compiles PostgreSQL's own INSERT anew each time it is run
_KEEP = text(f"""
INSERT INTO risk_assessment ({", ".join(_KEPT)}) VALUES ({", ".join(f":{name}" for name in _KEPT)})
ON CONFLICT (captured_at, task_id, run) DO UPDATE
SET {", ".join(f"{name} = excluded.{name}" for name in _KEPT)}, published_at = NULL
""").bindparams(*(bindparam(name, type_=_ANSWER.c[name].type) for name in _KEPT))  # noqa: S608  # names of columns


def fail(engine: Engine, claim: Claim, *, code: str, message: str, raw: str | None = None) -> bool:
    """Mark the task failed with its cause; False when another worker holds it meanwhile."""
    if claim.run != LIVE_RUN:
        return _fail_backfill(engine, claim, code, message)
    with transaction(engine) as connection:
        held = connection.scalar(
            update(AssessmentTask)
            .where(*_held(claim))
            .values(
                state="failed",
                reason="",
                claim_worker=None,
                attempts=AssessmentTask.attempts + 1,
                failure_code=code,
                failure_message=message,
                failure_raw=raw,
                updated_at=func.now(),
            )
            .returning(AssessmentTask.task_id)
        )
    return held is not None


def _complete_backfill(engine: Engine, claim: Claim, values: dict[str, Any], outcome: CallOutcome | None) -> None:
    with transaction(engine) as connection:
        if outcome is not None:
            end_call(connection, claim.task.timestamp, values["call_id"], outcome)
        held = connection.execute(
            update(BackfillTask)
            .where(*_held_backfill(claim))
            .values(state="assessed", failure_code=None, failure_message=None, updated_at=func.now())
        ).rowcount
        if held:
            connection.execute(
                insert(RiskAssessment)
                .values(values)
                .on_conflict_do_nothing(index_elements=["captured_at", "task_id", "run"])
            )
    if not held:
        raise StaleClaimError(f"task {claim.task.task_id} of {claim.run} was handed to another worker")


def _fail_backfill(engine: Engine, claim: Claim, code: str, message: str) -> bool:
    with transaction(engine) as connection:
        return bool(
            connection.execute(
                update(BackfillTask)
                .where(*_held_backfill(claim))
                .values(
                    state="failed",
                    attempts=BackfillTask.attempts + 1,
                    failure_code=code,
                    failure_message=message,
                    updated_at=func.now(),
                )
            ).rowcount
        )


def _holds_backfill(connection: Connection, claim: Claim) -> bool:
    return bool(connection.scalar(select(func.count()).select_from(BackfillTask).where(*_held_backfill(claim))))


def _held_backfill(claim: Claim) -> tuple[Any, ...]:
    return (
        BackfillTask.run == claim.run,
        BackfillTask.captured_at == claim.task.timestamp,
        BackfillTask.task_id == claim.task.task_id,
        BackfillTask.worker == claim.worker,
        BackfillTask.state == "claimed",
    )


def _held(claim: Claim) -> tuple[Any, ...]:
    return (
        AssessmentTask.captured_at == claim.task.timestamp,
        AssessmentTask.task_id == claim.task.task_id,
        AssessmentTask.claim_token == claim.token,
        AssessmentTask.state == "claimed",
    )


def _count_held(connection: Connection, claims: Sequence[Claim]) -> int:
    keys = [(claim.task.timestamp, claim.task.task_id, claim.token) for claim in claims]
    statement = (
        select(func.count())
        .select_from(AssessmentTask)
        .where(
            tuple_(AssessmentTask.captured_at, AssessmentTask.task_id, AssessmentTask.claim_token).in_(keys),
            AssessmentTask.state == "claimed",
        )
    )
    return connection.scalar(statement) or 0


#: Not a parameter: a plan for all runs could not use the index that holds the live ones alone.
_IS_LIVE = RiskAssessment.run == literal_column(f"'{LIVE_RUN}'")


def unpublished(engine: Engine, *, older_than: float, limit: int) -> list[AssessmentRecord]:
    """Live answers that are in the ledger but not known to be on the topic for `older_than` seconds."""
    columns = [getattr(RiskAssessment, name) for name in COLUMNS]
    statement = (
        select(*columns)
        .where(
            RiskAssessment.published_at.is_(None),
            _IS_LIVE,
            RiskAssessment.assessed_at < func.now() - text("make_interval(secs => :age)").bindparams(age=older_than),
        )
        .order_by(RiskAssessment.assessed_at)
        .limit(limit)
    )
    with transaction(engine) as connection:
        return [AssessmentRecord(*row) for row in connection.execute(statement)]


def mark_published(engine: Engine, records: Sequence[AssessmentRecord]) -> None:
    """Note that these answers' results are on the topic."""
    if not records:
        return
    keys = [(record.captured_at, record.task_id, record.run) for record in records]
    with transaction(engine) as connection:
        connection.execute(
            update(RiskAssessment)
            .where(tuple_(RiskAssessment.captured_at, RiskAssessment.task_id, RiskAssessment.run).in_(keys))
            .values(published_at=func.now())
        )
