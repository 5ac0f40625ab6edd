"""REST for looking back: an alert frame by frame, and hours, cameras and delays for plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query
from sqlalchemy import Engine

from dangerous_driving.alerts.inputs import Sighting
from dangerous_driving.contracts import (
    CAMERA_ID_PATTERN,
    BBox,
    CameraId,
    DetectedObject,
    Message,
    Timestamp,
    TrafficGroup,
)
from dangerous_driving.ledger import alerts as ledger
from dangerous_driving.ledger import history, overview
from dangerous_driving.realtime.parameters import REFUSALS, IdParameter

#: Frames that are shown before an alert began and after it was last seen, and those of the alert itself at most.
AROUND = 4
DURING = 40
#: A frame further away than this belongs to another scene.
NEARBY = timedelta(seconds=30)


class AlertFrame(Message):
    """A frame of an alert's camera; ``group_bbox`` is the group of the alert where it was seen in this frame."""

    part: Literal["before", "during", "after"]
    camera_id: CameraId
    message_id: str
    timestamp: Timestamp
    image_width: int
    image_height: int
    has_picture: bool
    detected_objects: tuple[DetectedObject, ...]
    traffic_groups: tuple[TrafficGroup, ...]
    group_bbox: BBox | None


class Span(StrEnum):
    """How far back, and the length of one step."""

    HOUR = "1h"
    DAY = "24h"
    WEEK = "7d"
    MONTH = "30d"


_SPANS: dict[Span, tuple[timedelta, timedelta]] = {
    Span.HOUR: (timedelta(hours=1), timedelta(minutes=1)),
    Span.DAY: (timedelta(hours=24), timedelta(hours=1)),
    Span.WEEK: (timedelta(days=7), timedelta(hours=6)),
    Span.MONTH: (timedelta(days=30), timedelta(days=1)),
}
_HOUR = timedelta(hours=1)
#: Days of the ranking that stand beside a span: little is certain of fewer than seven.
_RANKED_DAYS: dict[Span, Literal[7, 28]] = {Span.HOUR: 7, Span.DAY: 7, Span.WEEK: 7, Span.MONTH: 28}


class Scenes(Message):
    """Assessed scenes by level that were captured in a step."""

    at: Timestamp
    none: int
    low: int
    medium: int
    high: int


class Opened(Message):
    """Alerts opened in a step, by what was said of them since."""

    at: Timestamp
    acknowledged: int
    rejected: int
    unjudged: int
    withdrawn: int


class CameraRisk(Message):
    """A camera's exposure and danger; the rate is None without road users."""

    camera_id: CameraId
    name: str
    frames: int
    road_users: int
    dangerous_scenes: int
    dangerous_scenes_per_1000_road_users: float | None
    alerts: int
    rejected: int


class Junction(Message):
    """A camera's place by dangers (alerts neither withdrawn nor rejected) per 1,000 road users.

    The order is that of ``lower``, the lower end of the 95 % interval, so that one alert on a quiet road does not lead.
    ``evidence`` says whether the interval leaves the rate of all cameras together.
    """

    camera_id: CameraId
    name: str
    place: int
    evidence: Literal["more dangerous", "less dangerous", "no evidence"]
    dangers: int
    road_users: int
    rate: float
    lower: float
    upper: float


class Delay(Message):
    """Seconds from capture until a stage of an alert was decided."""

    stage: Literal["geometry", "provisional", "final"]
    count: int
    median: float
    p95: float


class History(Message):
    """All that the plots show. ``marts_built``: dbt has built its tables; scenes and exposure are empty until then."""

    since: Timestamp
    until: Timestamp
    step_seconds: int  # of alerts
    scene_step_seconds: int  # of scenes: the mart counts whole hours
    marts_built: bool
    scenes: tuple[Scenes, ...]
    alerts: tuple[Opened, ...]
    cameras: tuple[CameraRisk, ...]
    delays: tuple[Delay, ...]
    junction_days: Literal[7, 28]  # that the ranking is about, until its last build
    junctions: tuple[Junction, ...]


class HistoryRest:
    """The routes for looking back."""

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = engine
        self._clock = clock

    def router(self, guard: Callable[..., Any]) -> APIRouter:
        """All of them; `guard` refuses whoever may not use them."""
        api = APIRouter(prefix="/api", dependencies=[Depends(guard)], responses=REFUSALS)
        api.get("/alerts/{alert_id}/frames")(self.frames)
        api.get("/history")(self.history)
        return api

    def frames(self, alert_id: IdParameter) -> list[AlertFrame]:
        """The frames before, during and after an alert, the earliest first."""
        alert = ledger.get_alert(self._engine, alert_id)
        if alert is None:
            raise HTTPException(404, "there is no such alert")
        first, last = alert.opened_at, alert.last_seen_at
        boxes: dict[str, BBox] = {}
        for event in ledger.events_of(self._engine, alert_id):
            if isinstance(event.given, Sighting):
                boxes[event.given.request_id] = event.given.bbox
        camera = alert.camera_id
        before = history.frames_before(self._engine, camera, first, NEARBY, limit=AROUND)
        during = history.frames_between(self._engine, camera, first, last, limit=DURING)
        after_last = last + timedelta(milliseconds=1)
        after = history.frames_between(self._engine, camera, after_last, last + NEARBY, limit=AROUND)
        parts: tuple[tuple[Literal["before", "during", "after"], list[history.SeenFrame]], ...] = (
            ("before", before),
            ("during", during),
            ("after", after),
        )
        return [
            AlertFrame(
                part=part,
                camera_id=camera,
                message_id=frame.message_id,
                timestamp=frame.captured_at,
                image_width=frame.image_width,
                image_height=frame.image_height,
                has_picture=frame.has_picture,
                detected_objects=tuple(frame.objects),
                traffic_groups=tuple(frame.groups),
                group_bbox=boxes.get(frame.message_id),
            )
            for part, frames in parts
            for frame in frames
        ]

    def history(
        self,
        span: Annotated[Span, Query(description="how far back")] = Span.DAY,
        camera: Annotated[str | None, Query(pattern=f"^{CAMERA_ID_PATTERN.pattern}$")] = None,
    ) -> History:
        """Scenes by level (from the marts that dbt builds), alerts by verdict, cameras by danger and ranked, and delays."""
        length, step = _SPANS[span]
        scene_step = max(step, _HOUR)
        until = self._clock()
        # whole steps, so that the same hour is always the same bar
        since = _floor(until - length, step)
        scenes_since = _floor(since, _HOUR)
        built = history.marts_built(self._engine)
        names = {row.camera_id: row.name for row in overview.list_cameras(self._engine)}
        return History(
            since=since,
            until=until,
            step_seconds=int(step.total_seconds()),
            scene_step_seconds=int(scene_step.total_seconds()),
            marts_built=built,
            scenes=tuple(
                Scenes(at=row.at, none=row.none, low=row.low, medium=row.medium, high=row.high)
                for row in history.scenes_by_time(self._engine, scenes_since, until, scene_step, camera)
            )
            if built
            else (),
            alerts=tuple(
                Opened(
                    at=row.at,
                    acknowledged=row.acknowledged,
                    rejected=row.rejected,
                    unjudged=row.unjudged,
                    withdrawn=row.withdrawn,
                )
                for row in history.alerts_by_time(self._engine, since, until, step, camera)
            ),
            cameras=tuple(
                _camera(row, names) for row in history.risk_by_camera(self._engine, scenes_since, until, built=built)
            ),
            delays=tuple(
                Delay(stage=row.stage, count=row.count, median=row.median, p95=row.p95)
                for row in history.delays(self._engine, since, until, camera)
            ),
            junction_days=_RANKED_DAYS[span],
            junctions=tuple(
                Junction(name=names.get(row.camera_id) or row.camera_id, **asdict(row))
                for row in history.junctions(self._engine, _RANKED_DAYS[span])
            ),
        )


def _camera(row: history.CameraRisk, names: dict[str, str]) -> CameraRisk:
    return CameraRisk(
        camera_id=row.camera_id,
        name=names.get(row.camera_id) or row.camera_id,
        frames=row.frames,
        road_users=row.road_users,
        dangerous_scenes=row.dangerous_scenes,
        dangerous_scenes_per_1000_road_users=row.dangerous_scenes * 1000 / row.road_users if row.road_users else None,
        alerts=row.alerts,
        rejected=row.rejected,
    )


def _floor(at: datetime, step: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return at - (at - epoch) % step
