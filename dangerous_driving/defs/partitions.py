"""Partitions of the window lane: camera x time window. Pure, both ways between key and window.

A key is ``CAMERA|2025-10-20-10:00``, the window by its start in UTC. Cameras are a dynamic dimension, which the sensor
extends; windows exist from ``windows.start`` on, as soon as they have ended.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from dangerous_driving.assessment.windows import Window, window_start
from dangerous_driving.settings import WindowsSettings

#: Name of the dynamic partitions in the instance, and of both dimensions.
CAMERA = "camera"
WINDOW = "window"

TIME_FORMAT = "%Y-%m-%d-%H:%M"
HOUR = 3600
DAY = 86400


def first_window(settings: WindowsSettings, now: datetime) -> datetime:
    """Start of the oldest window: ``windows.start``, or ``retention_days`` before the midnight (UTC) before `now`."""
    start = settings.start
    if start is None:
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        start = midnight - timedelta(days=settings.retention_days)
    elif start.tzinfo is None:
        start = start.replace(tzinfo=UTC)
    return window_start(start, settings.length)


def cron_of(length: int) -> str:
    """When windows of `length` seconds begin; whole minutes that divide an hour, or whole hours that divide a day."""
    if length < HOUR:
        minutes = length // 60
        return "* * * * *" if minutes == 1 else f"*/{minutes} * * * *"
    hours = length // HOUR
    if length == DAY:
        return "0 0 * * *"
    return "0 * * * *" if hours == 1 else f"0 */{hours} * * *"


def window_partitions(settings: WindowsSettings, now: datetime) -> dg.MultiPartitionsDefinition:
    """The partitions of ``risk_assessments`` as they stand at `now`."""
    windows = dg.TimeWindowPartitionsDefinition(
        start=first_window(settings, now), cron_schedule=cron_of(settings.length), fmt=TIME_FORMAT, timezone="UTC"
    )
    return dg.MultiPartitionsDefinition({CAMERA: dg.DynamicPartitionsDefinition(name=CAMERA), WINDOW: windows})


def partition_key(window: Window) -> dg.MultiPartitionKey:
    """The window's key."""
    return dg.MultiPartitionKey({CAMERA: window.camera_id, WINDOW: window.start.strftime(TIME_FORMAT)})


def window_of_key(key: str, length: int) -> Window:
    """The window of a key; `length` in seconds.

    Raises:
        ValueError: the key has another form.
    """
    camera_id, _, start = key.partition("|")  # a camera id has no "|"
    return Window(camera_id, datetime.strptime(start, TIME_FORMAT).replace(tzinfo=UTC), length)
