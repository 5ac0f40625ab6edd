"""The outbox of notifications: planned in one transaction with the mark of what was planned, sent at least once.

::

    pending ──> sent                 the receiver took it
       ├──────> merged               a digest tells it (``digest_id``)
       └──────> failed               given up after a day of failures; `retry` makes it pending again

A sender claims what it sends for a while; if it dies, another one takes over when the claim has ended. Receivers tell a
repetition by the id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.contracts import Alert as AlertMessage
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import Alert, AlertEvent, Notification
from dangerous_driving.notifications.pacing import Step, Waiting
from dangerous_driving.notifications.plan import Held, Planned, notification_id_of
from dangerous_driving.notifications.rendering import Item

#: Advisory locks: of planning, and of each receiver's outbox.
PLAN_LOCK = 7_261_012
RECEIVER_LOCKS = 7_261_013

#: Messages of a receiver looked at in one step.
LOOK = 1000

Planner = Callable[[AlertMessage, Mapping[str, RiskLevel], Mapping[str, Held]], Sequence[Planned]]
"""What each receiver is to be told of a version, given the level that it was told before and what of the alert still waits
for the end of a quiet time (both by receiver)."""


@dataclass(frozen=True)
class Claimed:
    """A message in hand; ``members`` of a digest."""

    item: Item
    created_at: datetime
    attempts: int  # this one included
    first_tried_at: datetime
    members: tuple[Item, ...] = ()


@dataclass(frozen=True)
class NotificationRow:
    """A message as it stands, for people."""

    notification_id: str
    receiver: str
    kind: str
    level: str
    alert_id: str | None
    camera_id: str | None
    state: str
    attempts: int
    created_at: datetime
    due_at: datetime
    sent_at: datetime | None
    held_reason: str | None
    last_error: str


def plan_pending(engine: Engine, plan: Planner, *, now: datetime, oldest: timedelta, limit: int) -> int:
    """Plan the notifications of alert versions that nobody has planned yet, each version once.

    Args:
        engine: of the ledger.
        plan: decides.
        now: the time.
        oldest: changes before that long are told to nobody.
        limit: versions in one transaction at most.

    Returns:
        How many versions were looked at.

    Raises:
        LedgerError: nothing was planned.
    """
    with transaction(engine) as connection:
        if not connection.scalar(select(func.pg_try_advisory_xact_lock(PLAN_LOCK))):
            return 0
        connection.execute(
            update(Alert)
            .where(Alert.planned_version < Alert.version, Alert.updated_at < now - oldest)
            .values(planned_version=Alert.version)
        )
        statement = (
            select(AlertEvent.alert_id, AlertEvent.version, AlertEvent.alert, AlertEvent.at)
            .join(Alert, Alert.alert_id == AlertEvent.alert_id)
            .where(Alert.planned_version < Alert.version, AlertEvent.version > Alert.planned_version)
            .order_by(AlertEvent.id)
            .limit(limit)
        )
        rows = connection.execute(statement).all()
        if not rows:
            return 0
        told = _told(connection, {row.alert_id for row in rows})
        waits = _waiting(connection, {row.alert_id for row in rows}, now)
        planned: list[Planned] = []
        newest: dict[str, int] = {}
        for row in rows:
            newest[row.alert_id] = max(row.version, newest.get(row.alert_id, 0))
            if row.at < now - oldest:
                continue
            for item in plan(AlertMessage.model_validate(row.alert), told[row.alert_id], waits[row.alert_id]):
                planned.append(item)
                if item.held_reason is not None:
                    waits[row.alert_id][item.receiver] = Held(item.due_at, item.held_reason)
                if item.kind in ("ring", "raised"):
                    told[row.alert_id][item.receiver] = item.level
        _keep(connection, planned, now)
        for alert_id, version in sorted(newest.items()):
            connection.execute(
                update(Alert)
                .where(Alert.alert_id == alert_id, Alert.planned_version < version)
                .values(planned_version=version)
            )
        return len(rows)


def put_test(engine: Engine, receiver: str, *, now: datetime) -> str:
    """Put a test message into the outbox; returns its id."""
    notification_id = notification_id_of(receiver, f"test:{now.isoformat()}")
    with transaction(engine) as connection:
        connection.execute(
            insert(Notification)
            .values(
                notification_id=notification_id, receiver=receiver, kind="test", level=RiskLevel.NONE.value,
                created_at=now, due_at=now,
            )
            .on_conflict_do_nothing()
        )  # fmt: skip
    return notification_id


def claim(
    engine: Engine,
    receiver: str,
    choose: Callable[[Sequence[Waiting], Sequence[datetime]], Step],
    *,
    now: datetime,
    window: timedelta,
    lease: timedelta,
) -> tuple[list[Claimed], datetime | None]:
    """Take what is to be sent to a receiver now; digests are put together in the same transaction.

    Args:
        engine: of the ledger.
        receiver: whose.
        choose: among what is due, given the times of what was sent within `window`.
        now: the time.
        window: of the rate limit.
        lease: until others may take it over.

    Returns:
        The messages, and when to look again if the limit is reached.

    Raises:
        LedgerError: nothing was claimed.
    """
    with transaction(engine) as connection:
        connection.execute(select(func.pg_advisory_xact_lock(RECEIVER_LOCKS, func.hashtext(receiver))))
        mine = (Notification.receiver == receiver, Notification.state == "pending")
        free = or_(Notification.claimed_until.is_(None), Notification.claimed_until <= now)
        rows = connection.execute(
            select(Notification.__table__)
            .where(*mine, free, Notification.due_at <= now)
            .order_by(Notification.number)
            .limit(LOOK)
        ).all()
        if not rows:
            return [], None
        sent = list(
            connection.scalars(
                select(Notification.sent_at).where(
                    Notification.receiver == receiver,
                    Notification.state == "sent",
                    Notification.kind != "test",
                    Notification.sent_at > now - window,
                )
            )
        )
        in_hand = connection.scalar(
            select(func.count()).select_from(Notification).where(*mine, Notification.claimed_until > now)
        )
        step = choose(
            [Waiting(row.notification_id, row.held_reason is not None, row.kind == "digest") for row in rows],
            [at for at in sent if at is not None] + [now] * (in_hand or 0),
        )
        wanted = list(step.send)
        if step.digest:
            by_id = {row.notification_id: row for row in rows}
            wanted.append(_digest(connection, receiver, [by_id[name] for name in step.digest], now))
        if not wanted:
            return [], step.look_again
        taken = connection.execute(
            update(Notification)
            .where(Notification.notification_id.in_(wanted))
            .values(
                claimed_until=now + lease,
                attempts=Notification.attempts + 1,
                first_tried_at=func.coalesce(Notification.first_tried_at, now),
            )
            .returning(Notification.__table__)
        ).all()
        order = {name: number for number, name in enumerate(wanted)}
        taken = sorted(taken, key=lambda row: order[row.notification_id])
        members = _members(connection, [row.notification_id for row in taken if row.kind == "digest"])
        claimed = [
            Claimed(_item(row), row.created_at, row.attempts, row.first_tried_at, tuple(members[row.notification_id]))
            for row in taken
        ]
        return claimed, step.look_again


def finish(engine: Engine, notification_id: str, *, at: datetime) -> None:
    """Note that the receiver has it.

    Raises:
        LedgerError: it is not noted; it will be sent again.
    """
    _settle(engine, notification_id, state="sent", sent_at=at, claimed_until=None, last_error="")


def postpone(engine: Engine, notification_id: str, *, due_at: datetime, error: str) -> None:
    """Give it back, to be sent at that time.

    Raises:
        LedgerError: it is not noted; another attempt comes when the claim ends.
    """
    _settle(engine, notification_id, due_at=due_at, claimed_until=None, last_error=error)


def give_up(engine: Engine, notification_id: str, *, error: str) -> None:
    """Mark it as failed; it stays, and a person may `retry`."""
    _settle(engine, notification_id, state="failed", claimed_until=None, last_error=error)


def retry(engine: Engine, *, now: datetime, receiver: str | None = None) -> int:
    """Make failed messages pending again; returns how many."""
    conditions = [Notification.state == "failed"]
    if receiver is not None:
        conditions.append(Notification.receiver == receiver)
    with transaction(engine) as connection:
        return connection.execute(
            update(Notification).where(*conditions).values(state="pending", due_at=now, first_tried_at=None, attempts=0)
        ).rowcount


def list_notifications(
    engine: Engine, *, limit: int, state: str | None = None, receiver: str | None = None
) -> list[NotificationRow]:
    """The newest first."""
    conditions = []
    if state is not None:
        conditions.append(Notification.state == state)
    if receiver is not None:
        conditions.append(Notification.receiver == receiver)
    statement = select(Notification.__table__).where(*conditions).order_by(Notification.number.desc()).limit(limit)
    names = NotificationRow.__dataclass_fields__
    with transaction(engine) as connection:
        return [
            NotificationRow(**{name: getattr(row, name) for name in names}) for row in connection.execute(statement)
        ]


def waiting_by_receiver(engine: Engine) -> dict[tuple[str, str], int]:
    """How many messages are pending or failed, by receiver and state."""
    statement = (
        select(Notification.receiver, Notification.state, func.count())
        .where(Notification.state.in_(("pending", "failed")))
        .group_by(Notification.receiver, Notification.state)
    )
    with transaction(engine) as connection:
        return {(receiver, state): count for receiver, state, count in connection.execute(statement)}


def _told(connection: Connection, alert_ids: Iterable[str]) -> dict[str, dict[str, RiskLevel]]:
    found: dict[str, dict[str, RiskLevel]] = defaultdict(dict)
    statement = select(Notification.alert_id, Notification.receiver, Notification.level).where(
        Notification.alert_id.in_(list(alert_ids)), Notification.kind.in_(("ring", "raised"))
    )
    for alert_id, receiver, name in connection.execute(statement):
        level, before = RiskLevel(name), found[str(alert_id)].get(receiver)
        if before is None or level.rank > before.rank:
            found[str(alert_id)][receiver] = level
    return found


def _waiting(connection: Connection, alert_ids: Iterable[str], now: datetime) -> dict[str, dict[str, Held]]:
    found: dict[str, dict[str, Held]] = defaultdict(dict)
    statement = (
        select(Notification.alert_id, Notification.receiver, Notification.due_at, Notification.held_reason)
        .where(
            Notification.alert_id.in_(list(alert_ids)),
            Notification.state == "pending",
            Notification.held_reason.is_not(None),
            Notification.due_at > now,
        )
        .order_by(Notification.due_at)
    )
    for alert_id, receiver, due_at, reason in connection.execute(statement):
        found[str(alert_id)][receiver] = Held(due_at, reason)
    return found


def _keep(connection: Connection, planned: Sequence[Planned], now: datetime) -> None:
    if not planned:
        return
    rows = [
        {
            "notification_id": item.notification_id,
            "receiver": item.receiver,
            "kind": item.kind,
            "alert_id": item.alert.alert_id,
            "camera_id": item.alert.camera_id,
            "level": item.level.value,
            "alert": item.alert.model_dump(mode="json", by_alias=True),
            "held_reason": item.held_reason,
            "created_at": now,
            "due_at": item.due_at,
        }
        for item in planned
    ]
    connection.execute(insert(Notification).values(rows).on_conflict_do_nothing())


def _digest(connection: Connection, receiver: str, rows: Sequence[Row[Any]], now: datetime) -> str:
    names = sorted(row.notification_id for row in rows)
    digest_id = notification_id_of(receiver, f"digest:{','.join(names)}")
    level = max((RiskLevel(row.level) for row in rows), key=lambda level: level.rank)
    connection.execute(
        insert(Notification).values(
            notification_id=digest_id, receiver=receiver, kind="digest", level=level.value, created_at=now, due_at=now
        )
    )
    connection.execute(
        update(Notification)
        .where(Notification.notification_id.in_(names))
        .values(state="merged", digest_id=digest_id, claimed_until=None)
    )
    return digest_id


def _members(connection: Connection, digests: Sequence[str]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    if not digests:
        return found
    statement = (
        select(Notification.__table__).where(Notification.digest_id.in_(list(digests))).order_by(Notification.number)
    )
    for row in connection.execute(statement):
        found[row.digest_id].append(_item(row))
    return found


def _item(row: Row[Any]) -> Item:
    return Item(
        notification_id=row.notification_id,
        kind=row.kind,
        level=RiskLevel(row.level),
        alert=AlertMessage.model_validate(row.alert) if row.alert is not None else None,
        held_reason=row.held_reason,
    )


def _settle(engine: Engine, notification_id: str, **values: Any) -> None:
    with transaction(engine) as connection:
        connection.execute(
            update(Notification)
            .where(Notification.notification_id == notification_id, Notification.state == "pending")
            .values(**values)
        )
