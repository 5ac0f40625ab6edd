"""Where each object lies; pure.

::

    frames/{cameraId}/{yyyy}/{mm}/{dd}/{hh}/{messageId}.jpg          the frame
    frames/{cameraId}/{yyyy}/{mm}/{dd}/{hh}/{messageId}.json         its detection result, as it was sent
    groups/{cameraId}/{yyyy}/{mm}/{dd}/{hh}/{messageId}_group{n}.jpg the crop of one traffic group

Hours are of the capture time in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from dangerous_driving.errors import ContractError

DETECTION_SUFFIX = ".json"

_SEGMENT = re.compile(r"[^/\x00-\x1f\x7f\\.][^/\x00-\x1f\x7f\\]*")
#: bytes; what S3 allows
_KEY_BYTES_MAX = 1024
_PARTS = 7  # kind, camera, year, month, day, hour, name


class Kind(StrEnum):
    """The first part of a key."""

    FRAMES = "frames"
    GROUPS = "groups"


def frame_key(camera_id: str, captured_at: datetime, message_id: str) -> str:
    """Key of the JPEG of one frame.

    Raises:
        ContractError: an id cannot be part of a key.
    """
    return _key(Kind.FRAMES, camera_id, captured_at, f"{message_id}.jpg")


def detection_key(camera_id: str, captured_at: datetime, message_id: str) -> str:
    """Key of the detection result beside the frame."""
    return _key(Kind.FRAMES, camera_id, captured_at, message_id + DETECTION_SUFFIX)


def group_key(camera_id: str, captured_at: datetime, message_id: str, group_index: int) -> str:
    """Key of the JPEG of one traffic group of that frame."""
    return _key(Kind.GROUPS, camera_id, captured_at, f"{message_id}_group{group_index}.jpg")


def is_detection(key: str) -> bool:
    """Whether a key is that of a detection result."""
    return key.startswith(f"{Kind.FRAMES}/") and key.endswith(DETECTION_SUFFIX) and key.count("/") == _PARTS - 1


def camera_prefix(kind: Kind, camera_id: str) -> str:
    """What the keys of one camera begin with."""
    return checked(f"{kind}/{camera_id}") + "/"


def day_prefix(kind: Kind, camera_id: str, day: date) -> str:
    """What the keys of one camera and UTC day begin with."""
    return f"{camera_prefix(kind, camera_id)}{day:%Y/%m/%d}/"


def hour_prefix(kind: Kind, camera_id: str, moment: datetime) -> str:
    """What the keys of one camera and of the UTC hour that holds `moment` begin with."""
    return f"{camera_prefix(kind, camera_id)}{moment.astimezone(UTC):%Y/%m/%d/%H}/"


def hour_prefixes(kind: Kind, camera_id: str, start: datetime, end: datetime) -> list[str]:
    """The hours that `[start, end)` touches, in order. An hour may hold objects from outside that time."""
    hour = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    prefixes = []
    while hour < end:
        prefixes.append(hour_prefix(kind, camera_id, hour))
        hour += timedelta(hours=1)
    return prefixes


def _key(kind: Kind, camera_id: str, captured_at: datetime, name: str) -> str:
    key = hour_prefix(kind, camera_id, captured_at) + name
    if key.count("/") != _PARTS - 1:
        raise ContractError("object key", "", f"{key!r} has a '/' in one of its ids")
    return checked(key)


def checked(key: str) -> str:
    """The key, if it can be one in every store.

    Parts between slashes are not empty, begin with no dot (so there is no ``..``, and a store may keep files of its
    own beside the objects) and hold no backslash or control character.

    Raises:
        ContractError: names the key.
    """
    if not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise ContractError(
            "object key", "", f"{key!r} is not relative, or a part of it is empty, hidden or holds a control character"
        )
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise ContractError("object key", "", f"{key!r} is not Unicode text") from error
    if size > _KEY_BYTES_MAX:
        raise ContractError("object key", "", f"{key[:40]!r}… is longer than {_KEY_BYTES_MAX} bytes")
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix, if a key can begin so.

    Raises:
        ContractError: names the prefix.
    """
    complete, _, begun = prefix.rpartition("/")
    if complete:
        checked(complete)
    elif prefix.startswith("/"):
        raise ContractError("object key", "", f"{prefix!r} is not relative")
    if begun:
        checked(begun)
    return prefix
