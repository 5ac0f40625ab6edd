"""REST: cameras, alerts, verdicts, pictures and counts. All times in UTC, all names in camelCase."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Response
from pydantic import AwareDatetime, Field
from sqlalchemy import Engine

from dangerous_driving.contracts import (
    CAMERA_ID_PATTERN,
    Alert,
    AlertState,
    Message,
    RiskLevel,
    Timestamp,
    Verdict,
    in_utc_milliseconds,
)
from dangerous_driving.ledger import alerts as ledger
from dangerous_driving.ledger import overview
from dangerous_driving.ledger.alerts import AlertFilter, AlertPosition
from dangerous_driving.realtime.envelopes import CameraStatus
from dangerous_driving.realtime.feedback import FeedbackDesk
from dangerous_driving.realtime.hub import Hub
from dangerous_driving.realtime.pictures import Pictures
from dangerous_driving.settings import Settings

#: A picture never changes: its id derives from camera and time (an alert's is asked for by version).
PICTURE_HEADERS = {"Cache-Control": "private, max-age=86400, immutable"}
#: Counts go back this far.
COUNTED = timedelta(hours=1)

CameraParameter = Annotated[str, Path(pattern=f"^{CAMERA_ID_PATTERN.pattern}$")]
IdParameter = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,160}$")]

_CURSOR = re.compile(r"(\d{1,15})\.([A-Za-z0-9-]{1,64})")


class AlertPage(Message):
    """Some alerts, the newest first; ``next_cursor`` asks for the ones before them."""

    items: tuple[Alert, ...]
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

    note: str = Field(default="", max_length=2000)
    by: str = Field(default="operator", min_length=1, max_length=64)


class KeyStatus(Message):
    """A key by its hash."""

    key_hash: str
    label: str
    state: str
    reason: str


class Status(Message):
    """Counts of the last hour, cameras and keys as they are now."""

    server_time: Timestamp
    clients: int
    cameras: dict[str, int]
    tasks: dict[str, int]
    alerts: dict[str, int]
    keys: tuple[KeyStatus, ...]
    llm_model: str
    simulated_llm: bool
    demo: bool


def camera_status(row: overview.CameraRow) -> CameraStatus:
    """A camera's row as clients get it."""
    return CameraStatus(
        camera_id=row.camera_id,
        name=row.name or row.camera_id,
        kind=row.kind,
        frame_interval=row.frame_interval,
        status=row.status,
        reason=row.status_reason,
        at=row.status_at,
    )


class Rest:
    """The routes below ``/api``."""

    def __init__(self, settings: Settings, engine: Engine, hub: Hub, desk: FeedbackDesk, pictures: Pictures) -> None:
        self._settings = settings
        self._engine = engine
        self._hub = hub
        self._desk = desk
        self._pictures = pictures

    def router(self, guard: Callable[..., Any]) -> APIRouter:
        """All of them; `guard` refuses whoever may not use them."""
        api = APIRouter(prefix="/api", dependencies=[Depends(guard)])
        api.get("/cameras")(self.cameras)
        api.get("/alerts")(self.alerts)
        api.get("/alerts/{alert_id}")(self.alert)
        api.get("/alerts/{alert_id}/image", response_class=Response)(self.alert_image)
        api.post("/alerts/{alert_id}/acknowledge")(self.acknowledge)
        api.post("/alerts/{alert_id}/reject")(self.reject)
        api.get("/frames/{camera_id}/{message_id}/image", response_class=Response)(self.frame_image)
        api.get("/groups/{camera_id}/{task_id}/image", response_class=Response)(self.group_image)
        api.get("/status")(self.status)
        return api

    def cameras(self) -> list[CameraStatus]:
        """All cameras and how they are."""
        return [camera_status(row) for row in overview.list_cameras(self._engine)]

    def alerts(
        self,
        camera: Annotated[str | None, Query(pattern=f"^{CAMERA_ID_PATTERN.pattern}$")] = None,
        level: Annotated[RiskLevel | None, Query(description="lowest peak level")] = None,
        state: Annotated[list[AlertState] | None, Query()] = None,
        since: Annotated[AwareDatetime | None, Query()] = None,
        before: Annotated[AwareDatetime | None, Query()] = None,
        cursor: Annotated[str | None, Query(description="nextCursor of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> AlertPage:
        """Alerts, those opened last first."""
        wanted = AlertFilter(camera_id=camera, level=level, states=tuple(state or ()), since=since, before=before)
        found = ledger.list_alerts(self._engine, wanted, limit=limit + 1, after=_position(cursor))
        items = found[:limit]
        return AlertPage(items=tuple(items), next_cursor=_cursor(items[-1]) if len(found) > limit else None)

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

    async def acknowledge(self, alert_id: IdParameter, body: FeedbackBody) -> Alert:
        """Say that somebody takes care of it."""
        return await self._judge(alert_id, Verdict.ACKNOWLEDGED, body)

    async def reject(self, alert_id: IdParameter, body: FeedbackBody) -> Alert:
        """Say that it is a false alarm."""
        return await self._judge(alert_id, Verdict.REJECTED, body)

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
                KeyStatus(key_hash=key.key_hash, label=key.label, state=key.state, reason=key.state_reason)
                for key in overview.list_keys(self._engine)
            ),
            llm_model=self._settings.llm.model,
            simulated_llm=self._settings.llm.simulated,
            demo=self._settings.realtime.demo_banner,
        )

    def _known(self, alert_id: str) -> Alert:
        found = ledger.get_alert(self._engine, alert_id)
        if found is None:
            raise HTTPException(404, "there is no such alert")
        return found

    async def _judge(self, alert_id: str, verdict: Verdict, body: FeedbackBody) -> Alert:
        given = await self._desk.give(alert_id, verdict, by=body.by, note=body.note)
        if given is None:
            raise HTTPException(404, "there is no such alert")
        return given


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
