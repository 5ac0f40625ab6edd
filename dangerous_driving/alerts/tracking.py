"""One alert with all that the lifecycle remembers of it, and what a sighting makes of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dangerous_driving.alerts.inputs import Sighting
from dangerous_driving.contracts import Alert, AlertBasis, AlertState, BBox, Message, RiskLevel, Timestamp

#: Looks and unanswered claims kept of one alert, the newest: a minute of frames, far beyond the gap of a continuation.
MOST_LOOKS = 32
#: Types are partly free text of an LLM.
MOST_TYPES = 12

_WEIGHT = {basis: weight for weight, basis in enumerate(AlertBasis)}  # geometry < provisional < final


class Look(Message):
    """Where the alert's scene was at a time."""

    captured_at: Timestamp
    bbox: BBox


class Claim(Message):
    """A level that geometry or the stream claimed for a task whose whole answer is not known yet."""

    task_id: str
    captured_at: Timestamp
    level: RiskLevel
    basis: AlertBasis


class Tracking(Message):
    """Kept beside the alert (``alert.tracking``), so that any process can go on with it."""

    trail: tuple[Look, ...]  # by capture time, one per frame
    claims: tuple[Claim, ...] = ()
    confirmed_level: RiskLevel | None = None  # of the newest whole answer that belongs to the alert
    confirmed_at: Timestamp | None = None  # its capture time
    confirmed_peak: RiskLevel | None = None
    notified: bool = False  # it has rung, or its ringing is held
    announced_level: RiskLevel | None = None  # the highest that was told, or is held
    announced_at: Timestamp | None = None
    escalations: int = 0
    escalate_at: Timestamp | None = None  # when it rings again if nobody has judged it by then


@dataclass(frozen=True)
class TrackedAlert:
    """The alert as everyone sees it, and the lifecycle's memory of it."""

    alert: Alert
    tracking: Tracking

    @property
    def live(self) -> bool:
        """Whether silence or an answer can still end it."""
        return self.alert.state in (AlertState.PROVISIONAL, AlertState.OPEN)

    def claims_task(self, task_id: str) -> bool:
        """Whether it rests, among others, on this task's geometry or streamed level."""
        return any(claim.task_id == task_id for claim in self.tracking.claims)


def opened(sighting: Sighting, alert_id: str, *, simulated: bool) -> TrackedAlert:
    """A new alert, before its first version."""
    alert = Alert(
        alert_id=alert_id,
        version=1,
        camera_id=sighting.camera_id,
        state=AlertState.PROVISIONAL,
        basis=sighting.kind,
        risk_level=sighting.level,
        peak_level=sighting.level,
        group_bbox=sighting.bbox,
        opened_at=sighting.captured_at,
        last_seen_at=sighting.captured_at,
        updated_at=sighting.at,
        first_task_id=sighting.task_id,
        last_task_id=sighting.task_id,
        last_request_id=sighting.request_id,
        group_image_url=sighting.group_image_url,
        simulated=simulated,
    )
    return with_sighting(TrackedAlert(alert, Tracking(trail=())), sighting)


def with_sighting(tracked: TrackedAlert, sighting: Sighting) -> TrackedAlert:
    """The alert once this sighting belongs to it: a claim, or the whole answer in place of its task's claim."""
    alert, tracking = tracked.alert, tracked.tracking
    claims = [claim for claim in tracking.claims if claim.task_id != sighting.task_id]
    memory: dict[str, object] = {"trail": _with_look(tracking.trail, sighting)}
    shown: dict[str, object] = {
        "opened_at": min(alert.opened_at, sighting.captured_at),
        "simulated": alert.simulated or sighting.simulated,
    }
    if sighting.kind is AlertBasis.FINAL:
        if tracking.confirmed_at is None or sighting.captured_at >= tracking.confirmed_at:
            memory |= {"confirmed_level": sighting.level, "confirmed_at": sighting.captured_at}
            shown["description"] = sighting.description or alert.description
        memory["confirmed_peak"] = highest(sighting.level, tracking.confirmed_peak)
        shown["risk_types"] = tuple(dict.fromkeys((*alert.risk_types, *sighting.risk_types)))[:MOST_TYPES]
        if alert.state is AlertState.PROVISIONAL:
            shown["state"] = AlertState.OPEN
    else:
        claims.append(
            Claim(
                task_id=sighting.task_id,
                captured_at=sighting.captured_at,
                level=sighting.level,
                basis=sighting.kind,
            )
        )
    memory["claims"] = tuple(sorted(claims, key=lambda claim: (claim.captured_at, claim.task_id))[-MOST_LOOKS:])
    if sighting.captured_at >= alert.last_seen_at:
        shown |= {
            "last_seen_at": sighting.captured_at,
            "group_bbox": sighting.bbox,
            "last_task_id": sighting.task_id,
            "last_request_id": sighting.request_id,
            "group_image_url": sighting.group_image_url or alert.group_image_url,
        }
    return _levelled(TrackedAlert(alert.model_copy(update=shown), tracking.model_copy(update=memory)))


def without_claim(tracked: TrackedAlert, task_id: str) -> TrackedAlert:
    """The alert once the whole answer of this task has not confirmed its claim; withdrawn if nothing is left."""
    claims = tuple(claim for claim in tracked.tracking.claims if claim.task_id != task_id)
    left = TrackedAlert(tracked.alert, tracked.tracking.model_copy(update={"claims": claims}))
    if tracked.alert.state is AlertState.PROVISIONAL and not claims:
        return withdrawn(left)
    return _levelled(left)


def withdrawn(tracked: TrackedAlert) -> TrackedAlert:
    """The alert once nothing is left that it rests on; nobody need be called for it any more."""
    return TrackedAlert(
        tracked.alert.model_copy(update={"state": AlertState.WITHDRAWN}),
        tracked.tracking.model_copy(update={"escalate_at": None}),
    )


def highest(level: RiskLevel, *others: RiskLevel | None) -> RiskLevel:
    """The highest of the levels that are known."""
    return max([level, *(other for other in others if other is not None)], key=lambda known: known.rank)


def _with_look(trail: tuple[Look, ...], sighting: Sighting) -> tuple[Look, ...]:
    if any(look.captured_at == sighting.captured_at for look in trail):
        return trail
    looks = (*trail, Look(captured_at=sighting.captured_at, bbox=sighting.bbox))
    return tuple(sorted(looks, key=lambda look: look.captured_at)[-MOST_LOOKS:])


def _levelled(tracked: TrackedAlert) -> TrackedAlert:
    # level = max(newest confirmed level, claims captured after it); claims before it are settled by it
    alert, tracking = tracked.alert, tracked.tracking
    confirmed_at = tracking.confirmed_at
    claims = tuple(claim for claim in tracking.claims if confirmed_at is None or claim.captured_at > confirmed_at)
    levels = [(claim.level, claim.basis) for claim in claims]
    if tracking.confirmed_level is not None:
        levels.append((tracking.confirmed_level, AlertBasis.FINAL))
    level, basis = max(levels, key=lambda known: (known[0].rank, _WEIGHT[known[1]]))
    return TrackedAlert(
        alert.model_copy(
            update={
                "risk_level": level,
                "basis": basis,
                "peak_level": highest(level, tracking.confirmed_peak),
            }
        ),
        tracking.model_copy(update={"claims": claims}),
    )
