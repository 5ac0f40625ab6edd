"""REST for quiet hours and snoozes of cameras. A router of its own, put into the bridge with one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Request
from pydantic import Field
from sqlalchemy import Engine

from dangerous_driving.alerts.quiet import ALL_CAMERAS, KeptQuiet, rules_for
from dangerous_driving.contracts import CAMERA_ID_PATTERN, Message, Timestamp
from dangerous_driving.ledger import quiet
from dangerous_driving.realtime.acts import Actor, Acts
from dangerous_driving.realtime.guard import actor_of
from dangerous_driving.settings import Settings
from dangerous_driving.settings.alerts import QuietHours

#: s; a year.
LONGEST = 365 * 24 * 3600
#: Periods of one camera.
MOST_HOURS = 20

#: ``*`` stands for all cameras.
CameraParameter = Annotated[str, Path(pattern=rf"^({CAMERA_ID_PATTERN.pattern}|\*)$")]


class QuietPeriod(Message):
    """A time of day, local to ``timeZone``: ``22:00``. ``end`` before or equal to ``begin`` is on the next day."""

    begin: str = Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    end: str = Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()


class CameraQuietStatus(Message):
    """What people have set for a camera (``*``: for all), and until when it is quiet now by all rules."""

    camera_id: str
    snoozed_until: Timestamp | None
    snoozed_by: str
    note: str
    quiet_hours: tuple[QuietPeriod, ...]
    quiet_until: Timestamp | None
    time_zone: str


class SnoozeBody(Message):
    """How long, in seconds, why, and who says so."""

    seconds: int = Field(gt=0, le=LONGEST)
    note: str = Field(default="", max_length=2000, pattern=r"^[^\x00]*$")
    by: str = Field(default="operator", min_length=1, max_length=64, pattern=r"^[^\x00]+$")


class QuietHoursBody(Message):
    """The camera's own quiet hours, in place of those it had; none: it has none of its own."""

    quiet_hours: tuple[QuietPeriod, ...] = Field(max_length=MOST_HOURS)


class QuietRest:
    """The routes below ``/api/quiet``.

    Args:
        settings: quiet hours of the settings hold too.
        engine: of the ledger.
        acts: writes down who is quiet by whom.
        clock: the time.
    """

    def __init__(
        self, settings: Settings, engine: Engine, acts: Acts, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._alerts, self._engine, self._acts, self._clock = settings.alerts, engine, acts, clock

    def router(self, guard: Callable[..., Any]) -> APIRouter:
        """The routes; ``guard`` refuses whoever may not look, or not change anything."""
        api = APIRouter(prefix="/api/quiet", dependencies=[Depends(guard)])
        api.get("")(self.all_quiet)
        api.get("/{camera_id}")(self.camera_quiet)
        api.put("/{camera_id}/snooze")(self.snooze)
        api.post("/{camera_id}/snooze/end")(self.end_snooze)
        api.put("/{camera_id}/hours")(self.quiet_hours)
        return api

    def all_quiet(self) -> list[CameraQuietStatus]:
        """What people have set, by camera."""
        everything = quiet.read_quiet(self._engine)
        return [self._shown(everything[camera_id], everything) for camera_id in sorted(everything)]

    def camera_quiet(self, camera_id: CameraParameter) -> CameraQuietStatus:
        """Whether a camera is quiet, and why."""
        everything = quiet.read_quiet(self._engine)
        return self._shown(everything.get(camera_id, KeptQuiet(camera_id)), everything)

    async def snooze(self, camera_id: CameraParameter, body: SnoozeBody, request: Request) -> CameraQuietStatus:
        """Hold the camera's notifications for a while; what they tell comes at the end."""
        now, actor = self._clock(), actor_of(request, body.by)
        until = now + timedelta(seconds=body.seconds)
        return await self._change(
            actor,
            "snooze",
            camera_id,
            {"until": until.isoformat(), "note": body.note},
            lambda: quiet.snooze(self._engine, self._alerts, camera_id, until, by=actor.name, note=body.note, now=now),
        )

    async def end_snooze(self, camera_id: CameraParameter, request: Request) -> CameraQuietStatus:
        """End the snooze: what waits for it is told now."""
        return await self._change(
            actor_of(request),
            "snooze_end",
            camera_id,
            {},
            lambda: quiet.snooze(self._engine, self._alerts, camera_id, None, by="", now=self._clock()),
        )

    async def quiet_hours(
        self, camera_id: CameraParameter, body: QuietHoursBody, request: Request
    ) -> CameraQuietStatus:
        """Set the camera's own quiet hours, beside those of the settings."""
        hours = [QuietHours.model_validate(item.model_dump()) for item in body.quiet_hours]
        if len({(item.begin, item.end, item.days) for item in hours}) != len(hours):
            raise HTTPException(422, "quietHours: the same period twice")
        return await self._change(
            actor_of(request),
            "quiet_hours",
            camera_id,
            body.model_dump(mode="json", by_alias=True),
            lambda: quiet.set_quiet_hours(self._engine, self._alerts, camera_id, hours, now=self._clock()),
        )

    async def _change(
        self, actor: Actor, act: str, camera_id: str, detail: dict[str, Any], work: Callable[[], object]
    ) -> CameraQuietStatus:
        async def changed() -> CameraQuietStatus:
            await asyncio.to_thread(work)
            return await asyncio.to_thread(self.camera_quiet, camera_id)

        return await self._acts.carry_out(actor, act, camera_id, detail, changed)

    def _shown(self, kept: KeptQuiet, everything: dict[str, KeptQuiet]) -> CameraQuietStatus:
        alerts, now = self._alerts, self._clock()
        hours = [item for item in alerts.quiet_hours if kept.camera_id != ALL_CAMERAS or not item.cameras]
        active = rules_for(kept.camera_id, hours, alerts.time_zone, everything).at(now)
        return CameraQuietStatus(
            camera_id=kept.camera_id,
            snoozed_until=kept.snoozed_until if kept.snoozed_until and kept.snoozed_until > now else None,
            snoozed_by=kept.snoozed_by,
            note=kept.note,
            quiet_hours=tuple(QuietPeriod(**item.model_dump(mode="json", exclude={"cameras"})) for item in kept.hours),
            quiet_until=active.until if active else None,
            time_zone=alerts.time_zone,
        )
