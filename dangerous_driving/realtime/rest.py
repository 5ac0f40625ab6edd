"""REST: cameras, alerts, verdicts, pictures, counts and the audit. All times in UTC, all names in camelCase."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import AwareDatetime
from sqlalchemy import Engine

from dangerous_driving.contracts import (
    CAMERA_ID_PATTERN,
    Alert,
    AlertBasis,
    AlertState,
    Message,
    RiskLevel,
    Timestamp,
    Verdict,
    in_utc_milliseconds,
)
from dangerous_driving.ledger import alerts as ledger
from dangerous_driving.ledger import audit, overview
from dangerous_driving.ledger.alerts import AlertFilter, AlertPosition
from dangerous_driving.ledger.history import stage_times
from dangerous_driving.realtime.access import Role
from dangerous_driving.realtime.acts import Acts, UnknownTargetError, camera_status
from dangerous_driving.realtime.envelopes import NO_NUL, CameraStatus, Note, PersonName
from dangerous_driving.realtime.guard import Guard, actor_of, caller_of
from dangerous_driving.realtime.hub import Hub
from dangerous_driving.realtime.parameters import REFUSALS, CameraParameter, IdParameter
from dangerous_driving.realtime.pictures import Pictures
from dangerous_driving.settings import Settings

#: A picture never changes: its id derives from camera and time (an alert's is asked for by version).
PICTURE_HEADERS = {"Cache-Control": "private, max-age=86400, immutable"}
#: Counts go back this far.
COUNTED = timedelta(hours=1)

_PICTURE: dict[str, Any] = {
    "response_class": Response,
    "responses": {200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
}

#: The opening time in ms and the id of the last alert of a page; 14 digits reach the year 5138.
_CURSOR = re.compile(r"^([0-9]{1,14})\.([A-Za-z0-9-]{1,64})$")


class StageTime(Message):
    """When an alert first reached a stage, and how many seconds after the capture of the frame that led to it."""

    stage: AlertBasis
    at: Timestamp
    seconds: float


class AlertPage(Message):
    """Some alerts, the newest first, with their stages; ``next_cursor`` asks for the ones before them."""

    items: tuple[Alert, ...]
    stages: dict[str, tuple[StageTime, ...]]
    next_cursor: str | None


class AlertStep(Message):
    """One input that changed an alert, and the alert after it."""

    version: int
    kind: str
    at: Timestamp
    task_id: str | None
    level: RiskLevel | None
    alert: Alert


class AlertDetail(Message):
    """An alert and how it came about."""

    alert: Alert
    history: tuple[AlertStep, ...]


class FeedbackBody(Message):
    """A person's word."""

    note: Note = ""
    by: PersonName = "operator"


class ActBody(Message):
    """Who wants it done, where no token proves a name."""

    by: PersonName = "operator"


class KeyStatus(Message):
    """A key by its hash; ``used`` requests of ``limit`` in the last minute."""

    key_hash: str
    label: str
    state: str
    reason: str
    used: int
    limit: int


class Me(Message):
    """Who the token says that the caller is. ``name`` is empty unless a signed token proves it."""

    role: Role
    name: str
    expires_at: Timestamp | None


class AuditEntry(Message):
    """What somebody did; ``proven``: a signed token says the name."""

    id: int
    at: Timestamp
    actor: str
    role: Role
    proven: bool
    act: str
    target: str
    detail: dict[str, Any]
    address: str
    outcome: Literal["started", "done", "unknown_target", "failed"]
    finished_at: Timestamp | None


class AuditPage(Message):
    """Some acts, the newest first; ``next_before`` asks for the ones before them."""

    items: tuple[AuditEntry, ...]
    next_before: int | None


class Status(Message):
    """Counts of the last hour, cameras, keys and lags as they are now; ``lag`` is None while no broker answers."""

    server_time: Timestamp
    clients: int
    cameras: dict[str, int]
    tasks: dict[str, int]
    alerts: dict[str, int]
    keys: tuple[KeyStatus, ...]
    lag: dict[str, int] | None
    llm_model: str
    simulated_llm: bool
    demo: bool


class Rest:
    """The routes below ``/api``."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        hub: Hub,
        acts: Acts,
        pictures: Pictures,
        lag: Callable[[], dict[str, int] | None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._hub = hub
        self._acts = acts
        self._pictures = pictures
        self._lag = lag

    def router(self, guard: Guard) -> APIRouter:
        """All of them; `guard` refuses whoever may not use them."""
        api = APIRouter(prefix="/api", dependencies=[Depends(guard)], responses=REFUSALS)
        api.get("/me")(self.me)
        api.get("/cameras")(self.cameras)
        api.post("/cameras/{camera_id}/start")(self.start_camera)
        api.post("/cameras/{camera_id}/stop")(self.stop_camera)
        api.post("/cameras/{camera_id}/check")(self.check_camera)
        api.get("/alerts")(self.alerts)
        api.get("/alerts/{alert_id}")(self.alert)
        api.get("/alerts/{alert_id}/image", **_PICTURE)(self.alert_image)
        api.post("/alerts/{alert_id}/acknowledge")(self.acknowledge)
        api.post("/alerts/{alert_id}/reject")(self.reject)
        api.get("/frames/{camera_id}/{message_id}/image", **_PICTURE)(self.frame_image)
        api.get("/groups/{camera_id}/{task_id}/image", **_PICTURE)(self.group_image)
        api.get("/status")(self.status)
        api.get("/audit", dependencies=[Depends(guard.admin)])(self.audit)
        return api

    def me(self, request: Request) -> Me:
        """Who the caller is and what they may do."""
        caller = caller_of(request)
        return Me(role=caller.role, name=caller.name, expires_at=caller.expires_at)

    def cameras(self) -> list[CameraStatus]:
        """All cameras and how they are."""
        return [camera_status(row) for row in overview.list_cameras(self._engine)]

    def alerts(
        self,
        camera: Annotated[str | None, Query(pattern=f"^{CAMERA_ID_PATTERN.pattern}$")] = None,
        level: Annotated[RiskLevel | None, Query(description="lowest peak level")] = None,
        state: Annotated[list[AlertState] | None, Query()] = None,
        since: Annotated[AwareDatetime | None, Query(description="opened then or later")] = None,
        before: Annotated[AwareDatetime | None, Query(description="opened before")] = None,
        changed_since: Annotated[
            AwareDatetime | None, Query(alias="changedSince", description="changed then or later")
        ] = None,
        cursor: Annotated[
            str | None, Query(pattern=_CURSOR.pattern, description="nextCursor of the page before")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> AlertPage:
        """Alerts, those opened last first."""
        wanted = AlertFilter(
            camera_id=camera,
            level=level,
            states=tuple(state or ()),
            since=since,
            before=before,
            changed_since=changed_since,
        )
        found = ledger.list_alerts(self._engine, wanted, limit=limit + 1, after=_position(cursor))
        items = found[:limit]
        stages: dict[str, tuple[StageTime, ...]] = {}
        for row in stage_times(self._engine, [alert.alert_id for alert in items]):
            time = StageTime(stage=AlertBasis(row.stage), at=row.at, seconds=row.seconds)
            stages[row.alert_id] = (*stages.get(row.alert_id, ()), time)
        return AlertPage(
            items=tuple(items), stages=stages, next_cursor=_cursor(items[-1]) if len(found) > limit else None
        )

    def alert(self, alert_id: IdParameter) -> AlertDetail:
        """One alert and the inputs that made it what it is."""
        alert = self._known(alert_id)
        return AlertDetail(
            alert=alert, history=tuple(_step(event) for event in ledger.events_of(self._engine, alert_id))
        )

    def alert_image(self, alert_id: IdParameter) -> Response:
        """The group that the alert saw last; after a new version it may be another one."""
        # the page asks by version, so that its own copy is right and nothing is asked twice
        return _jpeg(self._pictures.alert(self._known(alert_id)))

    async def acknowledge(self, request: Request, alert_id: IdParameter, body: FeedbackBody) -> Alert:
        """Say that somebody takes care of it."""
        with _known_target("alert"):
            return await self._acts.judge(actor_of(request, body.by), alert_id, Verdict.ACKNOWLEDGED, body.note)

    async def reject(self, request: Request, alert_id: IdParameter, body: FeedbackBody) -> Alert:
        """Say that it is a false alarm."""
        with _known_target("alert"):
            return await self._acts.judge(actor_of(request, body.by), alert_id, Verdict.REJECTED, body.note)

    async def start_camera(self, request: Request, camera_id: CameraParameter, body: ActBody) -> CameraStatus:
        """Watch a camera again that was stopped."""
        with _known_target("camera"):
            return await self._acts.switch_camera(actor_of(request, body.by), camera_id, running=True)

    async def stop_camera(self, request: Request, camera_id: CameraParameter, body: ActBody) -> CameraStatus:
        """Stop watching a camera until it is started again."""
        with _known_target("camera"):
            return await self._acts.switch_camera(actor_of(request, body.by), camera_id, running=False)

    async def check_camera(self, request: Request, camera_id: CameraParameter, body: ActBody) -> CameraStatus:
        """How a camera is now, read anew."""
        with _known_target("camera"):
            return await self._acts.check_camera(actor_of(request, body.by), camera_id)

    def audit(
        self,
        before: Annotated[int | None, Query(ge=1, le=2**62, description="nextBefore of the page before")] = None,
        actor: Annotated[str | None, Query(max_length=64, pattern=NO_NUL)] = None,
        target: Annotated[str | None, Query(max_length=160, pattern=NO_NUL)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> AuditPage:
        """What people did through the bridges, the newest first. For admins."""
        found = audit.list_entries(self._engine, limit=limit + 1, before=before, actor=actor, target=target)
        items = tuple(
            AuditEntry(
                id=row.id,
                at=row.at,
                actor=row.actor,
                role=Role(row.role),
                proven=row.proven,
                act=row.act,
                target=row.target,
                detail=row.detail,
                address=row.address,
                outcome=row.outcome,
                finished_at=row.finished_at,
            )
            for row in found[:limit]
        )
        return AuditPage(items=items, next_before=items[-1].id if len(found) > limit else None)

    def frame_image(
        self, camera_id: CameraParameter, message_id: IdParameter, at: Annotated[AwareDatetime | None, Query()] = None
    ) -> Response:
        """A frame; ``at`` is its capture time, which only recent ones do without."""
        return _jpeg(self._pictures.frame(camera_id, message_id, in_utc_milliseconds(at) if at else None))

    def group_image(
        self, camera_id: CameraParameter, task_id: IdParameter, at: Annotated[AwareDatetime, Query()]
    ) -> Response:
        """The group of a task; ``at`` is its frame's capture time."""
        return _jpeg(self._pictures.group(camera_id, task_id, in_utc_milliseconds(at)))

    def status(self) -> Status:
        """What is going on, in numbers."""
        now = datetime.now(UTC)
        counts = overview.count_by_state(self._engine, since=now - COUNTED)
        return Status(
            server_time=now,
            clients=self._hub.clients,
            cameras=counts.cameras,
            tasks=counts.tasks,
            alerts=counts.alerts,
            keys=tuple(
                KeyStatus(
                    key_hash=key.key_hash,
                    label=key.label,
                    state=key.state,
                    reason=key.state_reason,
                    used=key.used,
                    limit=key.rpm_limit,
                )
                for key in overview.list_keys(self._engine)
            ),
            lag=self._lag(),
            llm_model=self._settings.llm.model,
            simulated_llm=self._settings.llm.simulated,
            demo=self._settings.realtime.demo_banner,
        )

    def _known(self, alert_id: str) -> Alert:
        found = ledger.get_alert(self._engine, alert_id)
        if found is None:
            raise HTTPException(404, "there is no such alert")
        return found


@contextmanager
def _known_target(what: str) -> Iterator[None]:
    try:
        yield
    except UnknownTargetError as error:
        raise HTTPException(404, f"there is no such {what}") from error


def _jpeg(picture: bytes) -> Response:
    return Response(picture, media_type="image/jpeg", headers=PICTURE_HEADERS)


def _step(event: ledger.RecordedInput) -> AlertStep:
    given = event.given
    return AlertStep(
        version=event.version,
        kind=str(given.kind),
        at=given.at,
        task_id=getattr(given, "task_id", None),
        level=getattr(given, "level", None),
        alert=event.alert,
    )


def _cursor(alert: Alert) -> str:
    return f"{round(alert.opened_at.timestamp() * 1000)}.{alert.alert_id}"


def _position(cursor: str | None) -> AlertPosition | None:
    if cursor is None:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise HTTPException(422, "cursor: not one that this interface gave")
    opened_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(match[1]))
    return AlertPosition(opened_at, match[2])
