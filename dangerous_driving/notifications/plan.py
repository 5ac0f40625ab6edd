"""What a change of an alert is to be told to whom. Pure.

A receiver hears of an alert when its peak reaches the receiver's minimum level (``ring``), and of what follows only if it
heard of that. Ids derive from receiver, alert and occasion: planning again makes the same, and a receiver that gets a
message twice (which a crash can cause) knows it by its id.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dangerous_driving.contracts import ID_NAMESPACE, Alert, AlertState, RiskLevel
from dangerous_driving.settings.notifications import Receiver, Told

Kind = Told | Literal["digest", "test"]


@dataclass(frozen=True)
class Planned:
    """One message to one receiver. ``held_reason``: it waits for the end of a quiet time, and ``due_at`` is that."""

    notification_id: str
    receiver: str
    kind: Kind
    level: RiskLevel
    alert: Alert
    due_at: datetime
    held_reason: str | None = None


@dataclass(frozen=True)
class Held:
    """A message that waits for the end of a quiet time."""

    until: datetime
    reason: str


def notification_id_of(receiver: str, occasion: str) -> str:
    """Derived id of what one receiver is told on one occasion."""
    return str(uuid.uuid5(ID_NAMESPACE, f"notification:{receiver}:{occasion}"))


def planned(
    receiver: Receiver, alert: Alert, told: RiskLevel | None, *, now: datetime, waits: Held | None = None
) -> Planned | None:
    """What the receiver is to be told of this version of an alert, if anything.

    Args:
        receiver: its conditions.
        alert: as it stands after a change.
        told: the highest level of this alert that the receiver was told, or is going to be.
        now: when it is due, unless it is held.
        waits: what the receiver is going to be told of this alert before; what follows comes with it.
    """
    occasion = _occasion(receiver, alert, told)
    if occasion is None:
        return None
    kind, name, level = occasion
    if kind not in receiver.tells:
        return None
    held = waits
    if receiver.quiet and alert.held_until is not None:
        held = Held(alert.held_until, alert.held_reason or "quiet")
    if held is not None and held.until <= now:
        held = None
    return Planned(
        notification_id=notification_id_of(receiver.name, f"{alert.alert_id}:{name}"),
        receiver=receiver.name,
        kind=kind,
        level=level,
        alert=alert,
        due_at=held.until if held else now,
        held_reason=held.reason if held else None,
    )


def matches(receiver: Receiver, alert: Alert) -> bool:
    """Whether the alert is of a camera and type that the receiver wants to hear of."""
    types = set(receiver.risk_types)
    return (not receiver.cameras or alert.camera_id in receiver.cameras) and (
        not types or not alert.risk_types or bool(types & set(alert.risk_types))
    )


def _occasion(receiver: Receiver, alert: Alert, told: RiskLevel | None) -> tuple[Told, str, RiskLevel] | None:
    reached = alert.reached_level
    if told is None:
        hears = reached is not None and reached.rank >= receiver.min_level.rank and matches(receiver, alert)
        return ("ring", "ring", reached) if hears and reached is not None else None
    found: tuple[Told, str, RiskLevel] | None = None
    if reached is not None and reached.rank > told.rank:
        found = "raised", f"raised:{reached}", reached
    elif alert.escalation:
        found = "escalation", f"escalation:{alert.escalation}", alert.peak_level
    elif alert.state is AlertState.WITHDRAWN:
        found = "withdrawn", "withdrawn", told
    elif alert.verdict is not None and alert.verdict_at == alert.updated_at:
        found = "judged", f"judged:{alert.version}", told
    elif alert.state is AlertState.CLOSED:
        found = "closed", "closed", told
    return found
