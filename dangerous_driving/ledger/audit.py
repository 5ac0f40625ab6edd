"""What people did through the bridge: who, what, when, from where, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, insert, select, update

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import AuditEntry


@dataclass(frozen=True)
class Act:
    """One thing that a person wants done. ``proven``: the name is that of a signed token."""

    actor: str
    role: str
    proven: bool
    act: str
    target: str
    address: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class AuditRow:
    """An act as it was kept; ``outcome`` is ``started`` if the bridge died while it was done."""

    id: int
    at: datetime
    actor: str
    role: str
    proven: bool
    act: str
    target: str
    detail: dict[str, Any]
    address: str
    outcome: str
    finished_at: datetime | None


def begin(engine: Engine, act: Act) -> int:
    """Write down that it is about to be done; what cannot be written down is not to be done.

    Raises:
        LedgerError: it was not written down.
    """
    statement = (
        insert(AuditEntry)
        .values(
            actor=act.actor,
            role=act.role,
            proven=act.proven,
            act=act.act,
            target=act.target,
            address=act.address,
            detail=act.detail,
        )
        .returning(AuditEntry.id)
    )
    with transaction(engine) as connection:
        return int(connection.execute(statement).scalar_one())


def finish(engine: Engine, entry: int, outcome: str) -> None:
    """Write down how it ended: ``done``, ``unknown_target`` or ``failed``.

    Raises:
        LedgerError: it stays ``started``.
    """
    with transaction(engine) as connection:
        connection.execute(
            update(AuditEntry).where(AuditEntry.id == entry).values(outcome=outcome, finished_at=func.now())
        )


def list_entries(
    engine: Engine, *, limit: int, before: int | None = None, actor: str | None = None, target: str | None = None
) -> list[AuditRow]:
    """The newest first, at most `limit`, those with an id below `before`."""
    statement = select(
        AuditEntry.id, AuditEntry.at, AuditEntry.actor, AuditEntry.role, AuditEntry.proven, AuditEntry.act,
        AuditEntry.target, AuditEntry.detail, AuditEntry.address, AuditEntry.outcome, AuditEntry.finished_at,
    ).order_by(AuditEntry.id.desc()).limit(limit)  # fmt: skip
    if before is not None:
        statement = statement.where(AuditEntry.id < before)
    if actor is not None:
        statement = statement.where(AuditEntry.actor == actor)
    if target is not None:
        statement = statement.where(AuditEntry.target == target)
    with transaction(engine) as connection:
        return [AuditRow(*row) for row in connection.execute(statement)]
