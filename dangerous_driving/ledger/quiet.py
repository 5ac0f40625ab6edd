"""Snoozes and quiet hours that people set while everything runs; those of the settings stand in the settings.

What is set holds from the next input of the lifecycle on. A snooze that ends early also frees the notifications that
wait for its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.alerts.quiet import KeptQuiet, rules_for
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import CameraQuiet, Notification
from dangerous_driving.settings.alerts import AlertsSettings, QuietHours


def kept_quiet(connection: Connection) -> dict[str, KeptQuiet]:
    """All that people have set, by camera."""
    return {row.camera_id: _kept(row) for row in connection.execute(select(CameraQuiet.__table__))}


def read_quiet(engine: Engine) -> dict[str, KeptQuiet]:
    """The same in a transaction of its own.

    Raises:
        LedgerError: the database is away.
    """
    with transaction(engine) as connection:
        return kept_quiet(connection)


def snooze(
    engine: Engine,
    settings: AlertsSettings,
    camera_id: str,
    until: datetime | None,
    *,
    by: str,
    note: str = "",
    now: datetime,
) -> KeptQuiet:
    """Hold a camera's notifications until then, or no longer; what is due by it then is sent.

    Args:
        engine: of the ledger.
        settings: their quiet hours hold too.
        camera_id: which, or ``*`` for all.
        until: None ends the snooze.
        by: who.
        note: why.
        now: to free what waits.

    Raises:
        LedgerError: nothing was kept.
    """
    values = {"snoozed_until": until, "snoozed_by": by, "snooze_note": note, "updated_at": now}
    with transaction(engine) as connection:
        row = connection.execute(_upsert(camera_id, values)).one()
        _free(connection, settings, now)
        return _kept(row)


def set_quiet_hours(
    engine: Engine, settings: AlertsSettings, camera_id: str, hours: Sequence[QuietHours], *, now: datetime
) -> KeptQuiet:
    """Set a camera's own quiet hours (beside those of the settings); none: it has none of its own.

    Raises:
        LedgerError: nothing was kept.
    """
    kept = [item.model_dump(mode="json", include={"begin", "end", "days"}) for item in hours]
    with transaction(engine) as connection:
        row = connection.execute(_upsert(camera_id, {"quiet_hours": kept, "updated_at": now})).one()
        _free(connection, settings, now)
        return _kept(row)


def _upsert(camera_id: str, values: dict[str, Any]) -> Any:
    statement = insert(CameraQuiet).values(camera_id=camera_id, **values)
    return statement.on_conflict_do_update(index_elements=["camera_id"], set_=values).returning(CameraQuiet.__table__)


def _free(connection: Connection, settings: AlertsSettings, now: datetime) -> None:
    # what waits for an end that has moved forward is due then; one that moved back does not hold it any longer
    kept = kept_quiet(connection)
    waiting = select(Notification.camera_id).where(
        Notification.state == "pending", Notification.held_reason.is_not(None), Notification.due_at > now
    )
    for camera_id in connection.scalars(waiting.distinct()).all():
        if camera_id is None:
            continue  # a digest, which is not held
        quiet = rules_for(camera_id, settings.quiet_hours, settings.time_zone, kept).at(now)
        due = quiet.until if quiet else now
        connection.execute(
            update(Notification)
            .where(
                Notification.camera_id == camera_id,
                Notification.state == "pending",
                Notification.held_reason.is_not(None),
                Notification.due_at > now,
            )
            .values(due_at=func.least(Notification.due_at, due))
        )


def _kept(row: Row[Any]) -> KeptQuiet:
    return KeptQuiet(
        camera_id=row.camera_id,
        snoozed_until=row.snoozed_until,
        snoozed_by=row.snoozed_by,
        note=row.snooze_note,
        hours=tuple(QuietHours.model_validate(item) for item in row.quiet_hours),
    )
