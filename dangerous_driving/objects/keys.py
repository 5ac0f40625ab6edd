"""Where objects lie: pure functions from camera, time and ids to keys. Times are cut to the hour in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime

FRAMES = "frames"
GROUPS = "groups"


def _stem(kind: str, camera_id: str, captured_at: datetime, message_id: str) -> str:
    return f"{kind}/{camera_id}/{captured_at.astimezone(UTC):%Y/%m/%d/%H}/{message_id}"


def frame_key(camera_id: str, captured_at: datetime, message_id: str) -> str:
    """``frames/{cameraId}/{yyyy}/{mm}/{dd}/{hh}/{messageId}.jpg``."""
    return _stem(FRAMES, camera_id, captured_at, message_id) + ".jpg"


def detection_key(camera_id: str, captured_at: datetime, message_id: str) -> str:
    """The detection result itself, beside its frame: ``….json``."""
    return _stem(FRAMES, camera_id, captured_at, message_id) + ".json"


def group_key(camera_id: str, captured_at: datetime, message_id: str, group_index: int) -> str:
    """``groups/{cameraId}/{yyyy}/{mm}/{dd}/{hh}/{messageId}_group{n}.jpg``."""
    return f"{_stem(GROUPS, camera_id, captured_at, message_id)}_group{group_index}.jpg"


def day_prefix(kind: str, camera_id: str, day: date) -> str:
    """Prefix of all objects of `kind` (`FRAMES` or `GROUPS`) of one camera and UTC day."""
    return f"{kind}/{camera_id}/{day:%Y/%m/%d}/"
