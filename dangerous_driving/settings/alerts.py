"""Settings of the alert lifecycle: when alerts open, ring, stay quiet and end."""

from __future__ import annotations

import re
from datetime import time
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from dangerous_driving.contracts import CAMERA_ID_PATTERN, RiskLevel
from dangerous_driving.settings.section import Section

MINUTES_PER_DAY = 24 * 60


def _clock_time(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MINUTES_PER_DAY:
        return time(*divmod(value, 60))  # what YAML makes of 22:00 without quotes: minutes
    if isinstance(value, str) and re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", value):
        hours, minutes = value.split(":")
        return time(int(hours), int(minutes))
    if isinstance(value, time):
        return value
    raise ValueError("a time of day such as '22:00'")


ClockTime = Annotated[
    time, BeforeValidator(_clock_time), PlainSerializer(lambda value: f"{value:%H:%M}", when_used="json")
]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class QuietHours(Section):
    """A time of day at which nobody is called. Alerts open as ever; what they would have rung is told at its end."""

    begin: ClockTime = Field(description="local time, such as '22:00'")
    end: ClockTime = Field(description="local time; before or equal to begin: on the next day")
    days: tuple[Weekday, ...] = Field(default=(), description="days on which they begin; default: every day")
    cameras: tuple[str, ...] = Field(default=(), description="ids of cameras; default: all")

    @field_validator("cameras")
    @classmethod
    def _camera_ids(cls, cameras: tuple[str, ...]) -> tuple[str, ...]:
        for camera in cameras:
            if not CAMERA_ID_PATTERN.fullmatch(camera):
                raise ValueError("a camera id is 1 to 64 letters, digits, '_' or '-'")
        return cameras


class AlertsSettings(Section):
    """The alert lifecycle; its rules stand at the head of `alerts/lifecycle.py`."""

    open_level: RiskLevel = Field(default=RiskLevel.MEDIUM, description="an alert opens at this level or above")
    notify_level: RiskLevel = Field(default=RiskLevel.HIGH, description="an alert rings at this level or above")
    geometry_priority: float | None = Field(
        default=0.9, ge=0, le=1, description="a group of this priority opens a provisional alert at once; null: never"
    )
    silence: float = Field(default=3.0, gt=0, description="s without a continuation until an alert may close")
    silence_intervals: float = Field(default=3.0, gt=0, description="the same in frame intervals; the longer counts")
    lateness: float = Field(
        default=10.0, ge=0, description="s that an answer may be late until silence is believed; closing waits for it"
    )
    answer_timeout: float = Field(
        default=60.0, gt=0, description="s until a provisional alert without answer is withdrawn"
    )
    live_age: float = Field(default=60.0, gt=0, description="s; older results notify nobody")
    cooldown: float = Field(
        default=30.0,
        ge=0,
        description="s after a camera has rung in which it does not ring again for the same risk type, unless for a "
        "higher level",
    )
    escalate_after: float | None = Field(
        default=None, gt=0, description="s without a verdict until an alert that has rung rings again; null: never"
    )
    escalations: int = Field(default=1, gt=0, description="how often it does so")
    time_zone: str = Field(default="UTC", description="of quiet hours, such as Europe/Vienna or Asia/Shanghai")
    quiet_hours: tuple[QuietHours, ...] = Field(
        default=(), description="times of day at which notifications are held; more by: alerts quiet-hours"
    )

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("no known time zone; write for example Europe/Vienna") from error
        return name
