"""Runs of a prompt and model over a set of cases: what is left to ask, the calls, the answers.

A run that is killed goes on where it was; an answer that an earlier run got with the same prompt file and model is taken
over while it is fresh enough, so that a night asks for new cases alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.answers import ENDPOINT_FAULTS, Answer, AskedCase
from dangerous_driving.ledger.assessments import CallOutcome, end_call
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.tables import EvaluationResult, EvaluationRun, LlmCall


@dataclass(frozen=True)
class RunKey:
    """What a run is about. ``prompt_digest`` is of the prompt's file."""

    run: str
    prompt_version: str
    prompt_digest: str
    model: str
    set_version: int


@dataclass(frozen=True)
class RunRow:
    """A run as it stands."""

    key: RunKey
    state: str
    started_at: datetime
    finished_at: datetime | None
    figures: list[dict[str, Any]]
    report_url: str | None


def open_run(engine: Engine, key: RunKey, *, reuse_since: datetime) -> None:
    """Note the run, or find it begun, and take over what was answered since `reuse_since` by the same prompt and model.

    Raises:
        ConfigError: the prompt's file is not the one that answered under this version before.
    """
    with transaction(engine) as connection:
        other = connection.execute(
            select(EvaluationRun.run, EvaluationRun.started_at)
            .where(EvaluationRun.prompt_version == key.prompt_version, EvaluationRun.prompt_digest != key.prompt_digest)
            .limit(1)
        ).one_or_none()
        if other is not None:
            raise ConfigError(
                f"prompt {key.prompt_version}",
                f"its file was changed since it was evaluated on {other.started_at:%Y-%m-%d}",
                "put it back, and make the change in a file of a new version",
            )
        connection.execute(
            insert(EvaluationRun)
            .values(
                run=key.run,
                prompt_version=key.prompt_version,
                prompt_digest=key.prompt_digest,
                model=key.model,
                set_version=key.set_version,
            )
            .on_conflict_do_nothing()
        )
        connection.execute(
            text(_REUSE),
            {
                "run": key.run,
                "prompt": key.prompt_version,
                "digest": key.prompt_digest,
                "model": key.model,
                "set": key.set_version,
                "since": reuse_since,
            },
        )


def settled(engine: Engine, run: str, *, max_attempts: int) -> set[tuple[str, int]]:
    """Cases and asks that need no more asking: answered, or failed as often as is tried.

    What the endpoint failed is not among them, however often: started again later, the run asks it again.
    """
    result = EvaluationResult
    statement = select(result.case_id, result.ask).where(
        result.run == run,
        (result.state == "answered")
        | (
            (result.state == "failed")
            & (result.attempts >= max_attempts)
            & func.coalesce(result.failure_code, "").not_in(sorted(ENDPOINT_FAULTS))
        ),
    )
    with transaction(engine) as connection:
        return {(case_id, ask) for case_id, ask in connection.execute(statement)}


def start_call(
    engine: Engine,
    partitions: Partitions,
    key: RunKey,
    *,
    case_id: str,
    ask: int,
    camera_id: str,
    worker: int,
    key_hash: str,
    now: datetime,
) -> tuple[datetime, str]:
    """Write the request's row before it leaves; returns what `finish` wants: the row's time and id.

    Its ``captured_at`` is the time of the request: the case's own may be of a day whose partition retention has dropped.
    """
    partitions.ensure(engine, [now])
    with transaction(engine) as connection:
        statement = (
            insert(EvaluationResult)
            .values(run=key.run, case_id=case_id, ask=ask, state="asked", attempts=1, answered_at=now)
            .on_conflict_do_update(
                index_elements=["run", "case_id", "ask"],
                set_={"attempts": EvaluationResult.attempts + 1},
            )
            .returning(EvaluationResult.attempts)
        )
        attempts = connection.scalar(statement)
        assert attempts is not None  # inserted or updated  # noqa: S101
        call_id = f"{key.run}:{case_id}:{ask}_call{attempts}"
        connection.execute(
            insert(LlmCall).values(
                captured_at=now,
                call_id=call_id,
                task_id=case_id,
                camera_id=camera_id,
                call_number=attempts,
                run=key.run,
                lane="evaluation",
                worker=worker,
                key_hash=key_hash,
                model=key.model,
                prompt_version=key.prompt_version,
                status="started",
                started_at=func.clock_timestamp(),
            )
        )
    return now, call_id


def keep(
    engine: Engine,
    run: str,
    case_id: str,
    ask: int,
    answer: Answer,
    *,
    call: tuple[datetime, str, CallOutcome] | None = None,
) -> None:
    """Keep what came of asking, and complete its call, in one transaction.

    Without a call the case could not even be asked (no picture), which counts as an attempt, too.
    """
    values = {
        "state": "answered" if answer.risk_level is not None else "failed",
        "risk_level": None if answer.risk_level is None else answer.risk_level.value,
        "confidence": answer.confidence,
        "risk_types": list(answer.risk_types),
        "description": answer.description,
        "raw_answer": answer.raw_answer,
        "failure_code": answer.failure_code,
        "failure_message": answer.failure_message,
        "first_token_latency": answer.first_token_latency,
        "latency": answer.latency,
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "cost": answer.cost,
        "answered_at": func.now(),
    }
    statement = insert(EvaluationResult).values(run=run, case_id=case_id, ask=ask, attempts=1, **values)
    # the request's row has counted the attempt
    attempts = EvaluationResult.attempts + (1 if call is None else 0)
    with transaction(engine) as connection:
        if call is not None:
            end_call(connection, *call)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["run", "case_id", "ask"],
                set_={**values, "attempts": attempts},
                where=EvaluationResult.state != "answered",
            )
        )


def finish_run(engine: Engine, run: str, *, figures: list[dict[str, Any]], report_url: str | None) -> None:
    """Every case is answered or has failed for good; a run that is finished again has newer figures."""
    with transaction(engine) as connection:
        connection.execute(
            update(EvaluationRun)
            .where(EvaluationRun.run == run)
            .values(state="complete", finished_at=func.now(), figures=figures, report_url=report_url)
        )


def run_answers(engine: Engine, run: str) -> list[AskedCase]:
    """All answers of a run."""
    statement = select(EvaluationResult.__table__).where(EvaluationResult.run == run, EvaluationResult.state != "asked")
    with transaction(engine) as connection:
        return [
            AskedCase(
                row.case_id,
                row.ask,
                Answer(
                    risk_level=None if row.risk_level is None else RiskLevel(row.risk_level),
                    confidence=row.confidence,
                    risk_types=tuple(row.risk_types),
                    description=row.description,
                    raw_answer=row.raw_answer,
                    failure_code=row.failure_code,
                    failure_message=row.failure_message,
                    first_token_latency=row.first_token_latency,
                    latency=row.latency,
                    input_tokens=row.input_tokens,
                    output_tokens=row.output_tokens,
                    cost=row.cost,
                ),
                reused=row.reused_from is not None,
            )
            for row in connection.execute(statement)
        ]


def find_run(engine: Engine, *, prompt_version: str, model: str, set_version: int) -> RunRow | None:
    """The newest complete run of this prompt and model over this set."""
    found = _runs(
        engine,
        EvaluationRun.prompt_version == prompt_version,
        EvaluationRun.model == model,
        EvaluationRun.set_version == set_version,
        EvaluationRun.state == "complete",
        limit=1,
    )
    return found[0] if found else None


def evaluated_digest(engine: Engine, prompt_version: str) -> str | None:
    """Of the file that answered under this version; it never changes (see `open_run`). None: it was never evaluated."""
    found = _runs(engine, EvaluationRun.prompt_version == prompt_version, limit=1)
    return found[0].key.prompt_digest if found else None


def get_run(engine: Engine, run: str) -> RunRow | None:
    """One run."""
    found = _runs(engine, EvaluationRun.run == run, limit=1)
    return found[0] if found else None


def list_runs(engine: Engine, *, limit: int) -> list[RunRow]:
    """Runs, the newest first."""
    return _runs(engine, limit=limit)


def _runs(engine: Engine, *conditions: Any, limit: int) -> list[RunRow]:
    statement = (
        select(EvaluationRun.__table__)
        .where(*conditions)
        .order_by(EvaluationRun.started_at.desc(), EvaluationRun.run)
        .limit(limit)
    )
    with transaction(engine) as connection:
        rows: Sequence[Any] = connection.execute(statement).all()
    return [
        RunRow(
            RunKey(row.run, row.prompt_version, row.prompt_digest, row.model, row.set_version),
            row.state,
            row.started_at,
            row.finished_at,
            row.figures or [],
            row.report_url,
        )
        for row in rows
    ]


# the newest answer of each case and ask, once; where a prompt was asked is told, so that its age is that of the asking
_REUSE = """
INSERT INTO evaluation_result (
    run, case_id, ask, state, attempts, risk_level, confidence, risk_types, description, raw_answer,
    first_token_latency, latency, input_tokens, output_tokens, cost, answered_at, reused_from)
SELECT DISTINCT ON (r.case_id, r.ask)
    :run, r.case_id, r.ask, r.state, r.attempts, r.risk_level, r.confidence, r.risk_types, r.description, r.raw_answer,
    r.first_token_latency, r.latency, r.input_tokens, r.output_tokens, r.cost, r.answered_at,
    coalesce(r.reused_from, r.run)
FROM evaluation_result r
JOIN evaluation_run o ON o.run = r.run
JOIN evaluation_set_case m ON m.set_version = :set AND m.case_id = r.case_id
WHERE r.run <> :run AND r.state = 'answered' AND r.answered_at >= :since
  AND o.prompt_version = :prompt AND o.prompt_digest = :digest AND o.model = :model
ORDER BY r.case_id, r.ask, r.answered_at DESC
ON CONFLICT DO NOTHING
"""
