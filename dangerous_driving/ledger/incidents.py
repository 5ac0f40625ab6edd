"""Incidents that a person is told of, and what holds the window lane back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

from sqlalchemy import ColumnElement, Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.contracts import Lane
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import ApiKey, LaneSpending
from dangerous_driving.ledger.tables import Incident as IncidentRow

#: Kind of the incident that lasts while no run of the window lane is launched.
HELD = "window_lane_held"
#: Rows of a digest.
SHOWN = 100
#: Kinds that nobody says the end of: each is told when it happens, and is over when it has not come again for `QUIET`. That is
#: less than a day, since retention expires tasks once a night: each night's loss is told.
MOMENTARY = frozenset({"tasks_expired", "windows_given_up"})
QUIET = timedelta(hours=12)


@dataclass(frozen=True)
class Incident:
    """``kind`` (``run_failed``, ``window_lane_held``, …) and ``subject`` make it the same one when it comes again."""

    kind: str
    subject: str
    message: str
    count: int = 1


class Budget(Protocol):
    """What a lane may spend in a day (UTC); None: no limit."""

    @property
    def calls(self) -> int | None:
        """Requests."""

    @property
    def cost(self) -> float | None:
        """Money."""


def record(engine: Engine, incident: Incident) -> bool:
    """Note it; returns whether it is new, and not one that lasts already."""
    statement = insert(IncidentRow).values(
        kind=incident.kind, subject=incident.subject, message=incident.message, count=incident.count
    )
    with transaction(engine) as connection:
        if incident.kind in MOMENTARY:
            connection.execute(
                update(IncidentRow)
                .where(*_open(incident.kind, incident.subject), IncidentRow.last_at < func.now() - QUIET)
                .values(ended_at=IncidentRow.last_at)
            )
        total = connection.scalar(
            statement.on_conflict_do_update(
                index_elements=["kind", "subject"],
                index_where=text("ended_at IS NULL"),
                set_={
                    "count": IncidentRow.count + statement.excluded.count,
                    "message": statement.excluded.message,
                    "last_at": func.now(),
                },
            ).returning(IncidentRow.count)
        )
    return total == incident.count


def end(engine: Engine, kind: str, subject: str) -> bool:
    """Note that it is over; returns whether there was one."""
    with transaction(engine) as connection:
        return bool(
            connection.execute(update(IncidentRow).where(*_open(kind, subject)).values(ended_at=func.now())).rowcount
        )


def _open(kind: str, subject: str) -> tuple[ColumnElement[bool], ...]:
    return IncidentRow.kind == kind, IncidentRow.subject == subject, IncidentRow.ended_at.is_(None)


def incidents_between(engine: Engine, start: datetime, end_: datetime) -> list[Incident]:
    """Those that were there in ``[start, end_)``, newest first."""
    statement = (
        select(IncidentRow.kind, IncidentRow.subject, IncidentRow.message, IncidentRow.count)
        .where(IncidentRow.last_at >= start, IncidentRow.first_at < end_)
        .order_by(IncidentRow.last_at.desc())
        .limit(SHOWN)
    )
    with transaction(engine) as connection:
        return [Incident(*row) for row in connection.execute(statement)]


def hold_reason(
    engine: Engine, lane: Lane, budget: Budget | None, *, keys: Collection[str], today: date | None = None
) -> str | None:
    """Why no run of this lane should be launched now, or None.

    Held back while its budget of the day is spent (``lane_spending``, which the key pool keeps), or while every one of
    `keys`, the hashes of those that are configured, is disabled: a run would hand all its groups back. A key without a row
    has not been used yet, and may be good. Rows of keys that were removed stay, and say nothing.
    """
    with transaction(engine) as connection:
        disabled = connection.scalar(
            select(func.count()).select_from(ApiKey).where(ApiKey.key_hash.in_(list(keys)), ApiKey.state == "disabled")
        )
        if keys and disabled == len(keys):
            return f"all {disabled} keys are disabled; enable one, or set another"
        if budget is None or (budget.calls is None and budget.cost is None):
            return None
        row = connection.execute(
            select(LaneSpending.calls, LaneSpending.cost).where(
                LaneSpending.day == (today or datetime.now(UTC).date()), LaneSpending.lane == lane.value
            )
        ).one_or_none()
    if row is None:
        return None
    spent = f"{row.calls} calls, {row.cost:.4g} of money"
    if (budget.calls is not None and row.calls >= budget.calls) or (
        budget.cost is not None and row.cost >= budget.cost
    ):
        return f"the lane {lane.value} has spent its budget of the day ({spent}); raise it, or wait for midnight UTC"
    return None
