"""Reading requests to the endpoint: who was asked, about what, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import Engine, literal, select, tuple_

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import LlmCall


@dataclass(frozen=True)
class Call:
    """One request. ``captured_at`` is its task's; ``cost`` in money; None where it is not over or was never told."""

    call_id: str
    task_id: str
    camera_id: str
    captured_at: datetime
    run: str
    lane: str
    key_hash: str
    model: str
    prompt_version: str
    status: str
    http_status: int | None
    started_at: datetime
    first_token_at: datetime | None
    finished_at: datetime | None
    input_tokens: int | None
    output_tokens: int | None
    cost: float | None
    error: str | None


@dataclass(frozen=True)
class CallFilter:
    """Which calls; None does not choose. ``before`` alone leaves out all that began at that very instant."""

    since: datetime
    before: datetime | None = None
    before_id: str | None = None  # with `before`: of the call to go on after, so that calls of one instant are not lost
    camera_id: str | None = None
    task_id: str | None = None
    key_hash: str | None = None
    lane: str | None = None
    status: str | None = None


def list_calls(engine: Engine, wanted: CallFilter, *, limit: int) -> list[Call]:
    """Calls by the time they began, the newest first. Raises LedgerError when the database is away."""
    chosen = [LlmCall.started_at >= wanted.since]
    if wanted.before is not None:
        chosen.append(
            LlmCall.started_at < wanted.before
            if wanted.before_id is None
            else tuple_(LlmCall.started_at, LlmCall.call_id) < tuple_(literal(wanted.before), literal(wanted.before_id))
        )
    chosen += [
        getattr(LlmCall, name) == value
        for name in ("camera_id", "task_id", "key_hash", "lane", "status")
        if (value := getattr(wanted, name)) is not None
    ]
    columns = [getattr(LlmCall, field.name) for field in fields(Call)]
    statement = select(*columns).where(*chosen).order_by(LlmCall.started_at.desc(), LlmCall.call_id.desc()).limit(limit)
    with transaction(engine) as connection:
        return [Call(*row) for row in connection.execute(statement)]
