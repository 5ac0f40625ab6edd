"""When a camera's notifications are held: quiet hours by the clock on the wall, and snoozes. Pure.

Alerts open, go on and close as ever meanwhile; only their notifications wait until the quiet is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from dangerous_driving.contracts import Message, Timestamp
from dangerous_driving.settings.alerts import QuietHours

#: In the place of a camera's id: all cameras.
ALL_CAMERAS = "*"

#: Longer than a week of quiet hours that follow each other without a pause is quiet for ever.
LONGEST = timedelta(days=8)

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Quiet(Message):
    """Why notifications are held, and until when."""

    reason: Literal["quiet_hours", "snooze"]
    until: Timestamp


@dataclass(frozen=True)
class QuietRules:
    """Of one camera: its quiet hours in this time zone, and the end of its snooze."""

    hours: tuple[QuietHours, ...] = ()
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    snoozed_until: datetime | None = None

    def at(self, moment: datetime) -> Quiet | None:
        """Whether the camera is quiet then. Periods that touch count as one."""
        until, reason = moment, None
        while until - moment < LONGEST:
            further = self._end(until)
            if further is None:
                break
            until, reason = further[0], reason or further[1]
        return Quiet(reason=reason, until=until) if reason else None

    def _end(self, moment: datetime) -> tuple[datetime, Literal["quiet_hours", "snooze"]] | None:
        if self.snoozed_until is not None and moment < self.snoozed_until:
            return self.snoozed_until, "snooze"
        ends = [end for hours in self.hours if (end := _end_of(hours, moment, self.zone)) is not None]
        return (max(ends), "quiet_hours") if ends else None


@dataclass(frozen=True)
class KeptQuiet:
    """What people have set for one camera (or for all): its snooze and its quiet hours."""

    camera_id: str
    snoozed_until: datetime | None = None
    snoozed_by: str = ""
    note: str = ""
    hours: tuple[QuietHours, ...] = ()


def rules_for(
    camera_id: str, hours: Sequence[QuietHours], zone: str, kept: Mapping[str, KeptQuiet] | None = None
) -> QuietRules:
    """The rules that hold for a camera.

    Args:
        camera_id: whose.
        hours: of the settings, for all cameras or some.
        zone: the name of their time zone.
        kept: what people have set, by camera; `ALL_CAMERAS` is for all.
    """
    own = [item for item in hours if not item.cameras or camera_id in item.cameras]
    snoozes = []
    for name in (camera_id, ALL_CAMERAS):
        if kept and name in kept:
            own += kept[name].hours
            snoozes.append(kept[name].snoozed_until)
    return QuietRules(tuple(own), ZoneInfo(zone), max((end for end in snoozes if end is not None), default=None))


def _end_of(hours: QuietHours, moment: datetime, zone: ZoneInfo) -> datetime | None:
    # wall-clock times are put together by day and zone, so that a change of summer time makes a night longer or shorter
    local = moment.astimezone(zone)
    overnight = timedelta(days=1 if hours.end <= hours.begin else 0)
    for back in (0, 1):
        day = local.date() - timedelta(days=back)
        if hours.days and _DAYS[day.weekday()] not in hours.days:
            continue
        begin = datetime.combine(day, hours.begin, tzinfo=zone).astimezone(UTC)
        end = datetime.combine(day + overnight, hours.end, tzinfo=zone).astimezone(UTC)
        if begin <= moment < end:
            return end
    return None
