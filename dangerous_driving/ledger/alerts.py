"""Alerts and the inputs that made them.

Whoever changes an alert locks its camera, loads what the lifecycle depends on, and writes alerts and events, all in one
transaction. So it does not matter which process does it, inputs that come again find that they were applied, and
a process may die anywhere. What was changed and not yet published is found by its version (:func:`publish_pending`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, func, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.alerts.inputs import AnyInput, Sighting, TaskDetails, Tick, VerdictGiven, input_id_of
from dangerous_driving.alerts.lifecycle import ESCALATION_AGE, AlertChange, Answer, CameraState, Lifecycle
from dangerous_driving.alerts.tracking import TrackedAlert, Tracking
from dangerous_driving.contracts import LIVE_RUN, AlertBasis, AlertState, RiskLevel
from dangerous_driving.contracts import Alert as AlertMessage
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.quiet import kept_quiet
from dangerous_driving.ledger.tables import Alert, AlertEvent, AssessmentTask, Camera, RiskAssessment

#: Name space of the advisory locks of cameras, and the lock of the outbox.
CAMERA_LOCKS = 7_261_010
OUTBOX_LOCK = 7_261_011

LIVE_STATES = (AlertState.PROVISIONAL.value, AlertState.OPEN.value)

#: Of one change, not of the alert.
_MOMENTARY = ("schema_version", "notify", "reached_level", "held_reason", "held_until", "escalation")
_MESSAGE_COLUMNS = tuple(name for name in AlertMessage.model_fields if name not in _MOMENTARY)
_BASES = {basis: weight for weight, basis in enumerate(AlertBasis)}


def advance(engine: Engine, lifecycle: Lifecycle, sightings: Sequence[Sighting]) -> list[AlertChange]:
    """Apply these sightings, by capture time, and keep what they change; applied ones change nothing."""
    if not sightings:
        return []
    by_camera: dict[str, list[Sighting]] = defaultdict(list)
    for sighting in sorted(sightings, key=lambda item: (item.captured_at, _BASES[item.kind], item.task_id)):
        by_camera[sighting.camera_id].append(sighting)
    changes: list[AlertChange] = []
    with transaction(engine) as connection:
        states = _load(connection, lifecycle, by_camera)
        for camera_id, state in states.items():
            changes += lifecycle.replay(state, by_camera[camera_id])[1]
        _write(connection, changes)
    return changes


def tick(
    engine: Engine, lifecycle: Lifecycle, at: datetime, *, of: Callable[[str], bool] = lambda _: True
) -> list[AlertChange]:
    """Close and withdraw what has been silent for long enough at this time; ring again for what nobody has judged.

    ``of``: the cameras that the caller speaks for.
    """
    with transaction(engine) as connection:
        cameras = connection.scalars(
            select(Alert.camera_id).where(or_(Alert.state.in_(LIVE_STATES), _escalating(at))).distinct()
        ).all()
        changes: list[AlertChange] = []
        ours: dict[str, list[Sighting]] = {camera_id: [] for camera_id in cameras if of(camera_id)}
        for state in _load(connection, lifecycle, ours, at=at).values():
            changes += lifecycle.step(state, Tick(at=at))[1]
        _write(connection, changes)
    return changes


def judge(engine: Engine, lifecycle: Lifecycle, given: VerdictGiven) -> AlertMessage | None:
    """Keep what a person said of an alert; returns the alert as it stands then, None if there is no such alert."""
    with transaction(engine) as connection:
        camera_id = connection.scalar(select(Alert.camera_id).where(Alert.alert_id == given.alert_id))
        if camera_id is None:
            return None
        _lock(connection, [camera_id])
        row = connection.execute(select(Alert.__table__).where(Alert.alert_id == given.alert_id)).one()
        state = CameraState(camera_id, alerts=(_tracked(row),), applied=_applied(connection, [given.input_id]))
        state, changes = lifecycle.step(state, given)
        _write(connection, changes)
        return state.alerts[0].alert


def task_details(engine: Engine, keys: Iterable[tuple[datetime, str]]) -> dict[str, TaskDetails]:
    """Picture and box of tasks, by task id; `keys` are their capture times and ids. Unknown tasks are left out."""
    wanted = list(keys)
    if not wanted:
        return {}
    statement = select(AssessmentTask.task_id, AssessmentTask.group_bbox, AssessmentTask.group_image_url).where(
        tuple_(AssessmentTask.captured_at, AssessmentTask.task_id).in_(wanted)
    )
    with transaction(engine) as connection:
        return {
            row.task_id: TaskDetails(_box(row.group_bbox), row.group_image_url) for row in connection.execute(statement)
        }


def publish_pending(engine: Engine, send: Callable[[Sequence[AlertMessage]], None], *, limit: int) -> int:
    """Hand versions that are not known to be published to `send`, in their order, and note that they are.

    `send` returns once they have arrived and raises what it likes otherwise; then they stay unpublished. A process that
    dies in between sends them again: receivers tell by id and version. One process publishes at a time; another one that
    tries meanwhile leaves it to the first.

    Returns:
        How many versions were sent.
    """
    with transaction(engine) as connection:
        if not connection.scalar(select(func.pg_try_advisory_xact_lock(OUTBOX_LOCK))):
            return 0
        statement = (
            select(AlertEvent.alert_id, AlertEvent.version, AlertEvent.alert)
            .join(Alert, Alert.alert_id == AlertEvent.alert_id)
            .where(Alert.published_version < Alert.version, AlertEvent.version > Alert.published_version)
            .order_by(AlertEvent.id)
            .limit(limit)
        )
        rows = connection.execute(statement).all()
        if not rows:
            return 0
        send([AlertMessage.model_validate(row.alert) for row in rows])
        newest: dict[str, int] = {}
        for row in rows:
            newest[row.alert_id] = max(row.version, newest.get(row.alert_id, 0))
        for alert_id, version in sorted(newest.items()):
            connection.execute(
                update(Alert)
                .where(Alert.alert_id == alert_id, Alert.published_version < version)
                .values(published_version=version)
            )
        return len(rows)


# what others read


@dataclass(frozen=True)
class AlertFilter:
    """Which alerts; None is no condition. ``level`` is a lowest peak level, ``since`` and ``before`` are of opening."""

    camera_id: str | None = None
    level: RiskLevel | None = None
    states: tuple[AlertState, ...] = ()
    since: datetime | None = None
    before: datetime | None = None
    changed_since: datetime | None = None


@dataclass(frozen=True)
class AlertPosition:
    """Where a page ended."""

    opened_at: datetime
    alert_id: str


@dataclass(frozen=True)
class RecordedInput:
    """One event of an alert: the input, and the alert as it stood after it."""

    version: int
    given: Sighting | Tick | VerdictGiven
    alert: AlertMessage


def list_alerts(
    engine: Engine, wanted: AlertFilter, *, limit: int, after: AlertPosition | None = None
) -> list[AlertMessage]:
    """The newest alerts first (by opening), at most `limit`, from the position on where the last page ended."""
    conditions = []
    if wanted.camera_id is not None:
        conditions.append(Alert.camera_id == wanted.camera_id)
    if wanted.level is not None:
        conditions.append(Alert.peak_level.in_([level.value for level in RiskLevel if level.rank >= wanted.level.rank]))
    if wanted.states:
        conditions.append(Alert.state.in_([state.value for state in wanted.states]))
    if wanted.since is not None:
        conditions.append(Alert.opened_at >= wanted.since)
    if wanted.before is not None:
        conditions.append(Alert.opened_at < wanted.before)
    if wanted.changed_since is not None:
        conditions.append(Alert.updated_at >= wanted.changed_since)
    if after is not None:
        conditions.append(tuple_(Alert.opened_at, Alert.alert_id) < (after.opened_at, after.alert_id))
    statement = (
        select(Alert.__table__).where(*conditions).order_by(Alert.opened_at.desc(), Alert.alert_id.desc()).limit(limit)
    )
    with transaction(engine) as connection:
        return [_message(row) for row in connection.execute(statement)]


def changed_since(engine: Engine, since: datetime, *, limit: int) -> list[AlertMessage]:
    """Alerts that changed at this time or later, those changed last first, at most `limit`."""
    # an alert does not change after what it is about is long over, except by a person's verdict or a very late answer
    statement = select(Alert.__table__).where(Alert.updated_at >= since).order_by(Alert.updated_at.desc()).limit(limit)
    with transaction(engine) as connection:
        return [_message(row) for row in connection.execute(statement)]


def get_alert(engine: Engine, alert_id: str) -> AlertMessage | None:
    """The alert as it stands."""
    with transaction(engine) as connection:
        row = connection.execute(select(Alert.__table__).where(Alert.alert_id == alert_id)).one_or_none()
    return _message(row) if row else None


def events_of(engine: Engine, alert_id: str) -> list[RecordedInput]:
    """All that made the alert what it is, in its order."""
    statement = (
        select(AlertEvent.version, AlertEvent.input, AlertEvent.alert)
        .where(AlertEvent.alert_id == alert_id)
        .order_by(AlertEvent.version)
    )
    with transaction(engine) as connection:
        return [_recorded(row) for row in connection.execute(statement)]


def inputs_of(engine: Engine, camera_id: str) -> list[Sighting | Tick | VerdictGiven]:
    """All inputs that changed an alert of this camera, in their order, each once: what a replay needs."""
    statement = (
        select(AlertEvent.input_id, AlertEvent.input).where(AlertEvent.camera_id == camera_id).order_by(AlertEvent.id)
    )
    with transaction(engine) as connection:
        inputs = {row.input_id: row.input for row in connection.execute(statement)}
    return [AnyInput.validate_python(given) for given in inputs.values()]


# loading and writing


def _lock(connection: Connection, cameras: Iterable[str]) -> None:
    # in one order, so that two processes with the same cameras cannot wait for each other
    connection.execute(
        text(
            "SELECT pg_advisory_xact_lock(:space, key) FROM "
            "(SELECT DISTINCT hashtext(camera) AS key FROM unnest(CAST(:cameras AS text[])) AS camera ORDER BY 1) AS keys"
        ),
        {"space": CAMERA_LOCKS, "cameras": sorted(set(cameras))},
    ).all()


def _escalating(at: datetime) -> ColumnElement[bool]:
    return and_(Alert.escalate_at <= at, Alert.escalate_at >= at - ESCALATION_AGE)


def _load(
    connection: Connection, lifecycle: Lifecycle, sightings: dict[str, list[Sighting]], *, at: datetime | None = None
) -> dict[str, CameraState]:
    _lock(connection, sightings)
    cameras = {
        row.id: row
        for row in connection.execute(
            select(Camera.id, Camera.frame_interval, Camera.kind).where(Camera.id.in_(list(sightings)))
        )
    }
    states = {}
    for camera_id in sorted(sightings):
        camera = cameras.get(camera_id)
        states[camera_id] = (
            CameraState(camera_id, frame_interval=camera.frame_interval, simulated=camera.kind == "simulated")
            if camera
            else CameraState(camera_id)
        )
    gaps = {camera_id: lifecycle.gap(state.frame_interval) for camera_id, state in states.items()}
    everything = [sighting for group in sightings.values() for sighting in group]
    told_since = min((item.at for item in everything), default=None)
    alerts = _alerts(
        connection,
        list(states),
        everything,
        gaps,
        told_since=told_since - lifecycle.cooldown if told_since else None,
        escalating_at=at,
    )
    quiet = lifecycle.quiet_rules(list(states), kept_quiet(connection))
    answers = _answers(connection, [item for item in everything if item.kind is not AlertBasis.FINAL], gaps)
    applied = _applied(
        connection, [input_id_of(sighting.task_id, basis) for sighting in everything for basis in AlertBasis]
    )
    return {
        camera_id: CameraState(
            camera_id,
            frame_interval=state.frame_interval,
            simulated=state.simulated,
            quiet=quiet[camera_id],
            alerts=tuple(alerts[camera_id]),
            applied=applied,
            answers=tuple(answers[camera_id]),
        )
        for camera_id, state in states.items()
    }


def _alerts(
    connection: Connection,
    cameras: list[str],
    sightings: Sequence[Sighting],
    gaps: dict[str, timedelta],
    *,
    told_since: datetime | None,
    escalating_at: datetime | None,
) -> dict[str, list[TrackedAlert]]:
    # the live ones, those ended ones whose time lies within a gap of a sighting, those that were told of a moment ago
    # (cooldown), and those that may ring again
    ended = connection.scalars(
        text(
            "SELECT DISTINCT alert.alert_id FROM unnest(CAST(:cameras AS text[]), CAST(:sinces AS timestamptz[]), "
            "CAST(:untils AS timestamptz[])) AS look (camera_id, since, until) "
            "JOIN alert ON alert.camera_id = look.camera_id "
            "AND alert.last_seen_at >= look.since AND alert.opened_at <= look.until"
        ),
        {
            "cameras": [item.camera_id for item in sightings],
            "sinces": [item.captured_at - gaps[item.camera_id] for item in sightings],
            "untils": [item.captured_at + gaps[item.camera_id] for item in sightings],
        },
    ).all()
    wanted = [
        and_(Alert.camera_id.in_(cameras), Alert.state.in_(LIVE_STATES)),
        Alert.alert_id.in_(list(ended)),
    ]
    if told_since is not None:
        wanted.append(and_(Alert.camera_id.in_(cameras), Alert.announced_at > told_since))
    if escalating_at is not None:
        wanted.append(and_(Alert.camera_id.in_(cameras), _escalating(escalating_at)))
    statement = select(Alert.__table__).where(or_(*wanted)).order_by(Alert.opened_at, Alert.alert_id)
    found: dict[str, list[TrackedAlert]] = defaultdict(list)
    for row in connection.execute(statement):
        found[row.camera_id].append(_tracked(row))
    return found


def _answers(connection: Connection, claims: Sequence[Sighting], gaps: dict[str, timedelta]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    if not claims:
        return found
    sinces: dict[str, datetime] = {}
    untils: dict[str, datetime] = {}
    for claim in claims:
        gap = gaps[claim.camera_id]
        sinces[claim.camera_id] = min(claim.captured_at - gap, sinces.get(claim.camera_id, claim.captured_at))
        untils[claim.camera_id] = max(claim.captured_at + gap, untils.get(claim.camera_id, claim.captured_at))
    statement = select(
        RiskAssessment.camera_id,
        RiskAssessment.task_id,
        RiskAssessment.captured_at,
        RiskAssessment.risk_level,
        RiskAssessment.group_bbox,
    ).where(
        RiskAssessment.run == LIVE_RUN,
        RiskAssessment.camera_id.in_(list(sinces)),
        # days of all, then times of each: the first prunes partitions
        RiskAssessment.captured_at.between(min(sinces.values()), max(untils.values())),
    )
    for row in connection.execute(statement):
        if sinces[row.camera_id] <= row.captured_at <= untils[row.camera_id]:
            found[row.camera_id].append(
                Answer(
                    task_id=row.task_id,
                    captured_at=row.captured_at,
                    level=RiskLevel(row.risk_level),
                    bbox=_box(row.group_bbox),
                )
            )
    return found


def _applied(connection: Connection, input_ids: Sequence[str]) -> frozenset[str]:
    if not input_ids:
        return frozenset()
    statement = select(AlertEvent.input_id).where(AlertEvent.input_id.in_(list(input_ids)))
    return frozenset(connection.scalars(statement))


def _write(connection: Connection, changes: Sequence[AlertChange]) -> None:
    if not changes:
        return
    newest: dict[str, dict[str, Any]] = {}
    for change in changes:
        row = _row(change)
        earlier = newest.get(row["alert_id"])
        if earlier and earlier["notified_at"]:
            row["notified_at"] = earlier["notified_at"]
        newest[row["alert_id"]] = row
    statement = insert(Alert).values(list(newest.values()))
    columns: dict[str, Any] = {
        name: statement.excluded[name]
        for name in (*_MESSAGE_COLUMNS, "tracking", "announced_at", "escalate_at")
        if name != "alert_id"
    }
    columns["notified_at"] = func.coalesce(Alert.notified_at, statement.excluded.notified_at)
    connection.execute(statement.on_conflict_do_update(index_elements=["alert_id"], set_=columns))
    connection.execute(insert(AlertEvent), [_event_row(change) for change in changes])


def _row(change: AlertChange) -> dict[str, Any]:
    alert = change.after.alert
    values = {name: getattr(alert, name) for name in _MESSAGE_COLUMNS}
    for name in ("state", "basis", "risk_level", "peak_level", "verdict"):
        values[name] = values[name].value if values[name] is not None else None
    return values | {
        "risk_types": list(alert.risk_types),
        "group_bbox": list(alert.group_bbox),
        "notified_at": alert.updated_at if alert.notify else None,
        "announced_at": change.after.tracking.announced_at,
        "escalate_at": change.after.tracking.escalate_at,
        "tracking": change.after.tracking.model_dump(mode="json", by_alias=True),
    }


def _event_row(change: AlertChange) -> dict[str, Any]:
    given, alert = change.input, change.after.alert
    seen = given if isinstance(given, Sighting) else None
    return {
        "alert_id": alert.alert_id,
        "version": alert.version,
        "input_id": given.input_id,
        "kind": str(given.kind),
        "camera_id": alert.camera_id,
        "task_id": seen.task_id if seen else None,
        "captured_at": seen.captured_at if seen else None,
        "at": given.at,
        "input": given.model_dump(mode="json", by_alias=True),
        "alert": alert.model_dump(mode="json", by_alias=True),
    }


def _message(row: Row[Any]) -> AlertMessage:
    values = {name: getattr(row, name) for name in _MESSAGE_COLUMNS}
    return AlertMessage.model_validate(values | {"group_bbox": _box(row.group_bbox)})


def _tracked(row: Row[Any]) -> TrackedAlert:
    return TrackedAlert(_message(row), Tracking.model_validate(row.tracking))


def _recorded(row: Row[Any]) -> RecordedInput:
    return RecordedInput(row.version, AnyInput.validate_python(row.input), AlertMessage.model_validate(row.alert))


def _box(sides: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = sides
    return x1, y1, x2, y2
