"""The layout of the object store."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.errors import ContractError
from dangerous_driving.objects import (
    Kind,
    camera_prefix,
    day_prefix,
    detection_key,
    frame_key,
    group_key,
    hour_prefix,
    hour_prefixes,
    is_detection,
)

NOON = datetime(2026, 3, 1, 12, 59, 59, 999000, tzinfo=UTC)
CAMERAS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
TIMES = st.integers(946_684_800, 4_070_908_800).flatmap(  # the years 2000 to 2098
    lambda second: st.timezones().map(lambda zone: datetime.fromtimestamp(second, zone))
)


def test_the_layout_is_that_of_the_design() -> None:
    assert frame_key("cam-7", NOON, "m1") == "frames/cam-7/2026/03/01/12/m1.jpg"
    assert detection_key("cam-7", NOON, "m1") == "frames/cam-7/2026/03/01/12/m1.json"
    assert group_key("cam-7", NOON, "m1", 3) == "groups/cam-7/2026/03/01/12/m1_group3.jpg"
    assert camera_prefix(Kind.FRAMES, "cam-7") == "frames/cam-7/"
    assert day_prefix(Kind.GROUPS, "cam-7", date(2026, 3, 1)) == "groups/cam-7/2026/03/01/"
    assert hour_prefix(Kind.FRAMES, "cam-7", NOON) == "frames/cam-7/2026/03/01/12/"


def test_hours_are_utc_wherever_the_camera_stands() -> None:
    shanghai = timezone(timedelta(hours=8))
    assert frame_key("7", datetime(2026, 3, 1, 7, 30, tzinfo=shanghai), "m") == "frames/7/2026/02/28/23/m.jpg"


@given(CAMERAS, TIMES)
def test_the_prefixes_of_its_hour_and_day_find_a_key_and_no_other_camera_does(camera: str, moment: datetime) -> None:
    for kind, key in (
        (Kind.FRAMES, frame_key(camera, moment, "m")),
        (Kind.FRAMES, detection_key(camera, moment, "m")),
        (Kind.GROUPS, group_key(camera, moment, "m", 1)),
    ):
        assert key.startswith(hour_prefix(kind, camera, moment))
        assert key.startswith(day_prefix(kind, camera, moment.astimezone(UTC).date()))
        assert not key.startswith(camera_prefix(kind, camera + "0"))
        assert is_detection(key) is key.endswith(".json")


@given(TIMES, st.timedeltas(timedelta(0), timedelta(days=3)), st.floats(0, 1, exclude_max=True))
def test_the_hours_of_a_window_cover_it_once(start: datetime, length: timedelta, share: float) -> None:
    start = start.astimezone(UTC)
    prefixes = hour_prefixes(Kind.FRAMES, "c", start, start + length)
    assert len(prefixes) == len(set(prefixes))
    assert prefixes == sorted(prefixes)
    assert len(prefixes) <= length / timedelta(hours=1) + 2
    if length:
        assert hour_prefix(Kind.FRAMES, "c", start + length * share) in prefixes
    else:
        assert len(prefixes) <= 1


@pytest.mark.parametrize("message_id", ["a/b", "../../x", "", "\n", "\ud800", "x" * 1100], ids=ascii)
def test_an_id_that_would_leave_its_place_is_refused(message_id: str) -> None:
    for make in (frame_key, detection_key):
        with pytest.raises(ContractError, match="object key"):
            make("cam", NOON, message_id)
    with pytest.raises(ContractError, match="object key"):
        frame_key("a/b", NOON, "m")
    with pytest.raises(ContractError, match="object key"):
        day_prefix(Kind.FRAMES, "..", NOON.date())
