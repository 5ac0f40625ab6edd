"""The life of an alert, as a pure function: state of one camera + one input -> new state + changes.

::

    provisional ──> open ──> closed          a person's verdict (acknowledged, rejected) is kept beside the state
        └─────────> withdrawn

**Opening.** A sighting at `open_level` or above that continues no alert opens one: a whole answer an ``open`` one, geometry
or a level read from the stream a ``provisional`` one. Its id derives from the task.

**Continuation.** A sighting belongs to an alert of its camera when, for the alert's look that is nearest in time,

- ``|dt| <= gap``, where ``gap = max(silence, silence_intervals x frame interval)``,
- the places are near (:mod:`~dangerous_driving.alerts.place`), and
- the risk types meet: they name the same kind of danger (:func:`types_meet`), or one of the two has none yet.

Of several such alerts it is the nearest one. Times are capture times, so an answer may come late: one about an earlier
frame joins (it may raise the peak and add types), but moves neither place nor time back. Two alerts that a late answer
shows to be one are not merged: both have been shown, perhaps judged.

**Level.** ``level = max(newest confirmed level, levels of unanswered looks captured after it)``. A whole answer takes the
place of what its task's geometry or stream had claimed, so it confirms, raises or lowers under the same id. A
provisional alert none of whose looks is unanswered, and none confirmed, is withdrawn; an open one goes on until
silence. ``peak = max(confirmed levels, level)``.

**Closing.** Silence is counted in capture time, and believed once late answers had their time:
``open -> closed`` when ``now - last_seen_at > gap + lateness``; ``provisional -> withdrawn`` when
``now - last_seen_at > answer_timeout``. An answer that comes later still joins the closed alert that it belongs to.

**Ringing.** A change carries ``reached_level`` when the alert's peak rises above what was told of it, its frame is younger
than `live_age` and nobody has judged the alert; and ``notify``, once per alert, when that is `notify_level` or above.
Geometry and streamed levels older than `live_age` do nothing: the whole answer, which is never passed over, comes or
has come.

- *Cooldown.* Not within `cooldown` after another alert of the camera was told at that level or above, if their types
  meet. Of an alert that was withdrawn this holds for claims only: a whole answer is news then.
- *Quiet.* In quiet hours and snoozes the change carries ``held_until`` and does not ring: its notifications wait.
- *Escalation.* An alert that has rung and that nobody has judged within `escalate_after` rings again, also after its
  end (not after its withdrawal), at most `escalations` times; in quiet hours only after them.

**Replay.** Every input that changed an alert is kept in its order, with what it depends on beside the alerts: the frame
interval and the quiet of its camera at that time. What changed nothing is not kept, and may therefore
only ever suppress (an answer that has come makes geometry of its task moot; a harmless one makes geometry at its place
moot for `gap`): inputs that were kept were not suppressed, so replaying them gives the same alerts. An input that
was applied is not applied again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import assert_never

from dangerous_driving.alerts.inputs import Sighting, Tick, VerdictGiven, input_id_of
from dangerous_driving.alerts.place import distance, reach
from dangerous_driving.alerts.quiet import KeptQuiet, QuietRules, rules_for
from dangerous_driving.alerts.tracking import TrackedAlert, opened, with_sighting, withdrawn, without_claim
from dangerous_driving.assessment.risk import families_of
from dangerous_driving.contracts import (
    Alert,
    AlertBasis,
    AlertState,
    BBox,
    Message,
    RiskLevel,
    Timestamp,
    alert_id_of,
)
from dangerous_driving.settings import AlertsSettings

#: An escalation that was missed (nothing ran) is made up for within this time.
ESCALATION_AGE = timedelta(days=1)


class Answer(Message):
    """A whole answer that has come, whatever it says."""

    task_id: str
    captured_at: Timestamp
    level: RiskLevel
    bbox: BBox


@dataclass(frozen=True)
class CameraState:
    """All that the lifecycle of one camera's alerts depends on.

    ``alerts`` are the live ones, those ended ones whose time (give or take the gap) an input may touch, those told of within
    the cooldown, and those that may escalate. ``applied``
    are ids of inputs that have changed an alert; only those of the tasks at hand are needed. ``answers`` only suppress.
    """

    camera_id: str
    frame_interval: float = 1.8  # s
    simulated: bool = False
    quiet: QuietRules = field(default_factory=QuietRules)
    alerts: tuple[TrackedAlert, ...] = ()
    applied: frozenset[str] = frozenset()
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class AlertChange:
    """One alert's new version, and the input that made it."""

    before: Alert | None
    after: TrackedAlert
    input: Sighting | Tick | VerdictGiven


class Lifecycle:
    """The rules above under these settings."""

    def __init__(self, settings: AlertsSettings) -> None:
        self._settings = settings
        self._live_age = timedelta(seconds=settings.live_age)
        self._answer_timeout = timedelta(seconds=settings.answer_timeout)
        self._lateness = timedelta(seconds=settings.lateness)
        self.cooldown = timedelta(seconds=settings.cooldown)
        self._escalate_after = timedelta(seconds=settings.escalate_after) if settings.escalate_after else None

    def gap(self, frame_interval: float) -> timedelta:
        """How far apart in time two looks at one scene may be, for a camera of this frame interval (s)."""
        return timedelta(seconds=max(self._settings.silence, self._settings.silence_intervals * frame_interval))

    def quiet_rules(self, cameras: Iterable[str], kept: Mapping[str, KeptQuiet]) -> dict[str, QuietRules]:
        """When each camera is quiet, by the settings and by what people have set (`kept`, by camera)."""
        return {
            camera_id: rules_for(camera_id, self._settings.quiet_hours, self._settings.time_zone, kept)
            for camera_id in cameras
        }

    def step(self, state: CameraState, given: Sighting | Tick | VerdictGiven) -> tuple[CameraState, list[AlertChange]]:
        """What the input makes of the camera's alerts. An input that was applied before changes nothing."""
        if given.input_id in state.applied:
            return state, []
        given = _settled(state, given)
        match given:
            case Sighting(kind=AlertBasis.FINAL):
                pairs = self._answered(_as_then(state, given), given)
                state = self._with_answer(state, given)
            case Sighting():
                pairs = self._claimed(_as_then(state, given), given)
            case Tick():
                pairs = self._ticked(_as_then(state, given), given)
            case VerdictGiven():
                pairs = _judged(state, given)
            case _:
                assert_never(given)
        changes = [self._change(state, before, after, given) for before, after in pairs]
        if not changes:
            return state, []
        by_id = {tracked.alert.alert_id: tracked for tracked in state.alerts}
        by_id |= {change.after.alert.alert_id: change.after for change in changes}
        return replace(state, alerts=tuple(by_id.values()), applied=state.applied | {given.input_id}), changes

    def replay(
        self, state: CameraState, inputs: Iterable[Sighting | Tick | VerdictGiven]
    ) -> tuple[CameraState, list[AlertChange]]:
        """All steps one after another: with the inputs that were kept, it makes the same alerts again."""
        changes: list[AlertChange] = []
        for given in inputs:
            state, made = self.step(state, given)
            changes += made
        return state, changes

    # geometry and streamed levels

    def _claimed(self, state: CameraState, sighting: Sighting) -> list[_Pair]:
        if sighting.level.rank < self._settings.open_level.rank or sighting.at - sighting.captured_at > self._live_age:
            return []
        if any(answer.task_id == sighting.task_id for answer in state.answers):
            return []
        if sighting.kind is AlertBasis.GEOMETRY and (
            input_id_of(sighting.task_id, AlertBasis.PROVISIONAL) in state.applied or self._cleared(state, sighting)
        ):
            return []
        belongs_to = self._own(state, sighting) or self._continued(state, sighting)
        if belongs_to is None:
            return [(None, self._opened(state, sighting))]
        if not belongs_to.live:
            return []  # over already: only the whole answer may still say something of it
        return [(belongs_to, with_sighting(belongs_to, sighting))]

    def _cleared(self, state: CameraState, sighting: Sighting) -> bool:
        # what the LLM has just said of this place outweighs geometry: without this, cars parked close together would
        # open a provisional alert with every frame. One harmless answer is enough, whatever the others say: so a further
        # answer can only suppress more, which replays rely on, and a danger that it overlooks is found by its level
        gap = self.gap(state.frame_interval)
        for answer in state.answers:
            elapsed = sighting.captured_at - answer.captured_at
            if (
                answer.level.rank < self._settings.open_level.rank
                and abs(elapsed) <= gap
                and distance(answer.bbox, sighting.bbox) <= reach(elapsed.total_seconds())
            ):
                return True
        return False

    # whole answers

    def _answered(self, state: CameraState, sighting: Sighting) -> list[_Pair]:
        own = self._own(state, sighting)
        if sighting.level.rank < self._settings.open_level.rank:
            return [] if own is None else [(own, without_claim(own, sighting.task_id))]
        if own is not None and types_meet(own.alert.risk_types, sighting.risk_types):
            return [(own, self._with_answer_of(state, own, sighting))]
        # the stream's level was taken for another scene at this place
        pairs: list[_Pair] = [] if own is None else [(own, without_claim(own, sighting.task_id))]
        belongs_to = self._continued(state, sighting)
        if belongs_to is None:
            return [*pairs, (None, self._opened(state, sighting))]
        return [*pairs, (belongs_to, self._with_answer_of(state, belongs_to, sighting))]

    def _with_answer_of(self, state: CameraState, tracked: TrackedAlert, sighting: Sighting) -> TrackedAlert:
        after = with_sighting(tracked, sighting)
        return self._closed(state, after) if tracked.alert.state is AlertState.CLOSED else after

    def _with_answer(self, state: CameraState, sighting: Sighting) -> CameraState:
        answer = Answer(
            task_id=sighting.task_id, captured_at=sighting.captured_at, level=sighting.level, bbox=sighting.bbox
        )
        # None is forgotten here, however old: forgetting would depend on inputs that are not kept, and a replay would
        # suppress what was shown. The ledger gives each batch only the answers that it may need.
        return replace(state, answers=(*state.answers, answer))

    # the clock

    def _ticked(self, state: CameraState, tick: Tick) -> list[_Pair]:
        silence = self.gap(state.frame_interval) + self._lateness
        pairs: list[_Pair] = []
        for tracked in state.alerts:
            unseen = tick.at - tracked.alert.last_seen_at
            after = tracked
            if tracked.alert.state is AlertState.OPEN and unseen > silence:
                after = self._closed(state, tracked)
            elif tracked.alert.state is AlertState.PROVISIONAL and unseen > self._answer_timeout:
                after = withdrawn(tracked)
            if self._escalates(after, tick):
                after = self._escalated(after, tick)
            if after is not tracked:
                pairs.append((tracked, after))
        return pairs

    def _escalates(self, tracked: TrackedAlert, tick: Tick) -> bool:
        due = tracked.tracking.escalate_at
        return due is not None and tick.quiet is None and timedelta(0) <= tick.at - due <= ESCALATION_AGE

    def _escalated(self, tracked: TrackedAlert, tick: Tick) -> TrackedAlert:
        number = tracked.tracking.escalations + 1
        again = self._escalate_after if number < self._settings.escalations else None
        memory = {"escalations": number, "escalate_at": tick.at + again if again else None}
        return replace(tracked, tracking=tracked.tracking.model_copy(update=memory))

    def _closed(self, state: CameraState, tracked: TrackedAlert) -> TrackedAlert:
        closed_at = tracked.alert.last_seen_at + self.gap(state.frame_interval)
        return replace(
            tracked, alert=tracked.alert.model_copy(update={"state": AlertState.CLOSED, "closed_at": closed_at})
        )

    # whose it is

    def _own(self, state: CameraState, sighting: Sighting) -> TrackedAlert | None:
        claiming = (tracked for tracked in state.alerts if tracked.live and tracked.claims_task(sighting.task_id))
        return next(claiming, None)

    def _continued(self, state: CameraState, sighting: Sighting) -> TrackedAlert | None:
        gap = self.gap(state.frame_interval)
        found: list[tuple[bool, float, str, TrackedAlert]] = []
        for tracked in state.alerts:
            if tracked.alert.state is AlertState.WITHDRAWN or not types_meet(
                tracked.alert.risk_types, sighting.risk_types
            ):
                continue
            look = min(tracked.tracking.trail, key=lambda look: abs(look.captured_at - sighting.captured_at))
            elapsed = sighting.captured_at - look.captured_at
            apart = distance(look.bbox, sighting.bbox)
            if abs(elapsed) <= gap and apart <= reach(elapsed.total_seconds()):
                found.append((not tracked.live, apart, tracked.alert.alert_id, tracked))
        return min(found, key=lambda candidate: candidate[:3])[3] if found else None

    def _opened(self, state: CameraState, sighting: Sighting) -> TrackedAlert:
        # an earlier stage of the task has opened or joined an alert that is over or of another type: a second alert
        # of the same task, with an id of its own
        stages = (input_id_of(sighting.task_id, basis) for basis in AlertBasis)
        source = sighting.input_id if state.applied.intersection(stages) else sighting.task_id
        return opened(sighting, alert_id_of(source), simulated=sighting.simulated)

    def _change(
        self,
        state: CameraState,
        before: TrackedAlert | None,
        after: TrackedAlert,
        given: Sighting | Tick | VerdictGiven,
    ) -> AlertChange:
        shown: dict[str, object] = {"version": 1, "updated_at": given.at, **_NO_RING}
        if before is not None:
            shown |= {
                "version": before.alert.version + 1,
                "updated_at": max(before.alert.updated_at, given.at),
            }
        tracking = after.tracking
        if isinstance(given, Sighting) and (level := self._reached(state, after, given)) is not None:
            rings = level.rank >= self._settings.notify_level.rank and not tracking.notified
            shown |= {
                "reached_level": level,
                "notify": rings and given.quiet is None,
                "held_reason": given.quiet.reason if given.quiet else None,
                "held_until": given.quiet.until if given.quiet else None,
            }
            tracking = tracking.model_copy(
                update={"announced_level": level, "announced_at": given.at, "notified": tracking.notified or rings}
            )
            if rings and self._escalate_after is not None:
                told_at = given.quiet.until if given.quiet else given.at
                tracking = tracking.model_copy(update={"escalate_at": told_at + self._escalate_after})
        elif before is not None and tracking.escalations > before.tracking.escalations:
            shown |= {"notify": True, "escalation": tracking.escalations}
        alert = after.alert.model_copy(update=shown)
        return AlertChange(before.alert if before else None, TrackedAlert(alert, tracking), given)

    def _reached(self, state: CameraState, tracked: TrackedAlert, sighting: Sighting) -> RiskLevel | None:
        alert, tracking = tracked.alert, tracked.tracking
        told, level = tracking.announced_level, alert.peak_level
        if (
            alert.verdict is not None
            or alert.state is AlertState.WITHDRAWN
            or sighting.at - sighting.captured_at > self._live_age
            or (told.rank >= level.rank if told else tracking.notified)  # notified alone: a row of an older version
            or self._covered(state, tracked, sighting.at)
        ):
            return None
        return level

    def _covered(self, state: CameraState, tracked: TrackedAlert, at: datetime) -> bool:
        # by what was told of another alert just before
        alert = tracked.alert
        for other in state.alerts:
            memory = other.tracking
            if (
                other.alert.alert_id != alert.alert_id
                and memory.announced_at is not None
                and memory.announced_level is not None
                and at - memory.announced_at < self.cooldown
                and memory.announced_level.rank >= alert.peak_level.rank
                and not (other.alert.state is AlertState.WITHDRAWN and alert.basis is AlertBasis.FINAL)
                and types_meet(other.alert.risk_types, alert.risk_types)
            ):
                return True
        return False


_NO_RING: dict[str, object] = {
    "notify": False,
    "reached_level": None,
    "held_reason": None,
    "held_until": None,
    "escalation": 0,
}


def _settled(state: CameraState, given: Sighting | Tick | VerdictGiven) -> Sighting | Tick | VerdictGiven:
    """The input with all that it depends on beside the alerts, as it is kept; one that was kept stays as it is."""
    if isinstance(given, VerdictGiven) or given.frame_interval is not None:
        return given
    then: dict[str, object] = {"frame_interval": state.frame_interval, "quiet": state.quiet.at(given.at)}
    if isinstance(given, Sighting):
        then["simulated"] = given.simulated or state.simulated
    return given.model_copy(update=then)


def _as_then(state: CameraState, given: Sighting | Tick) -> CameraState:
    return replace(state, frame_interval=given.frame_interval or state.frame_interval)


_Pair = tuple[TrackedAlert | None, TrackedAlert]


def types_meet(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether two scenes may be one by their risk types: they share one, or name the same kind of danger.

    What has no type yet meets all, and so does what has only types that are in no table: they are a model's wording,
    which changes from frame to frame.
    """
    kinds, other_kinds = families_of(first), families_of(second)
    return not kinds or not other_kinds or bool(kinds & other_kinds) or bool(set(first) & set(second))


def _judged(state: CameraState, given: VerdictGiven) -> list[_Pair]:
    pairs: list[_Pair] = []
    for tracked in state.alerts:
        alert = tracked.alert
        said = (given.verdict, given.by, given.note)
        if alert.alert_id == given.alert_id and said != (alert.verdict, alert.verdict_by, alert.verdict_note):
            verdict = {
                "verdict": given.verdict,
                "verdict_by": given.by,
                "verdict_note": given.note,
                "verdict_at": given.at,
            }
            judged = alert.model_copy(update=verdict)
            pairs.append((tracked, TrackedAlert(judged, tracked.tracking.model_copy(update={"escalate_at": None}))))
    return pairs
