"""Quiet hours by the clock on the wall, and snoozes."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dangerous_driving.alerts.quiet import ALL_CAMERAS, KeptQuiet, QuietRules, rules_for
from dangerous_driving.settings.alerts import AlertsSettings, QuietHours

NIGHT = QuietHours(begin=time(22), end=time(6))
VIENNA = ZoneInfo("Europe/Vienna")


def at(text: str, zone: ZoneInfo | None = None) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC).astimezone(UTC)


@pytest.mark.parametrize(
    ("moment", "until"),
    [
        ("2026-03-01T21:59:59", None),
        ("2026-03-01T22:00", "2026-03-02T06:00"),
        ("2026-03-02T05:59:59", "2026-03-02T06:00"),
        ("2026-03-02T06:00", None),
    ],
)
def test_a_night_ends_in_the_morning(moment: str, until: str | None) -> None:
    quiet = QuietRules((NIGHT,)).at(at(moment))
    assert (quiet.until if quiet else None) == (at(until) if until else None)


@pytest.mark.parametrize(
    ("begin", "hours"), [("2026-03-28T22:00", 7), ("2026-10-24T22:00", 9), ("2026-06-01T22:00", 8)]
)
def test_nights_follow_summer_time(begin: str, hours: int) -> None:
    quiet = QuietRules((NIGHT,), VIENNA).at(at(begin, VIENNA))
    assert quiet is not None
    assert quiet.until - at(begin, VIENNA) == timedelta(hours=hours)


def test_days_are_those_on_which_quiet_hours_begin() -> None:
    friday_night = QuietRules((QuietHours(begin=time(22), end=time(6), days=("fri",)),))
    assert friday_night.at(at("2026-03-06T23:00"))  # a Friday
    assert friday_night.at(at("2026-03-07T05:00"))
    assert friday_night.at(at("2026-03-07T23:00")) is None


def test_periods_that_touch_count_as_one() -> None:
    rules = QuietRules((NIGHT, QuietHours(begin=time(6), end=time(7))), snoozed_until=at("2026-03-02T07:30"))
    quiet = rules.at(at("2026-03-01T23:00"))
    assert quiet is not None
    assert (quiet.reason, quiet.until) == ("snooze", at("2026-03-02T07:30"))


def test_quiet_for_the_whole_day_has_no_end_but_is_answered() -> None:
    quiet = QuietRules((QuietHours(begin=time(0), end=time(0)),)).at(at("2026-03-01T12:00"))
    assert quiet is not None
    assert quiet.until > at("2026-03-08T12:00")


def test_rules_come_from_settings_and_from_people_for_one_camera_or_all() -> None:
    hours = [NIGHT, QuietHours(begin=time(12), end=time(13), cameras=("gate",))]
    noon, now = at("2026-03-01T12:30"), at("2026-03-01T10:00")
    assert rules_for("gate", hours, "UTC").at(noon)
    assert rules_for("north", hours, "UTC").at(noon) is None
    kept = {
        "north": KeptQuiet("north", hours=(QuietHours(begin=time(9), end=time(11)),)),
        ALL_CAMERAS: KeptQuiet(ALL_CAMERAS, snoozed_until=at("2026-03-01T12:45")),
    }
    assert rules_for("gate", hours, "UTC", kept).at(noon).until == at("2026-03-01T13:00")  # type: ignore[union-attr]
    assert rules_for("other", (), "UTC", kept).at(noon).until == at("2026-03-01T12:45")  # type: ignore[union-attr]
    assert rules_for("north", (), "UTC", kept).at(now).until == at("2026-03-01T12:45")  # type: ignore[union-attr]


@pytest.mark.parametrize("value", ["25:00", "22", "22:61", "noon", -1, 1440, True, 1.5])
def test_what_is_no_time_of_day_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="a time of day"):
        QuietHours.model_validate({"begin": value, "end": "06:00"})


def test_times_that_yaml_takes_for_numbers_mean_what_was_written() -> None:
    import yaml

    read = yaml.safe_load("{begin: 22:00, end: 06:30, days: [sat, sun]}")
    assert QuietHours.model_validate(read) == QuietHours(begin=time(22), end=time(6, 30), days=("sat", "sun"))


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="time zone"):
        AlertsSettings(time_zone="Mars/Olympus")


times = st.times().map(lambda value: value.replace(second=0, microsecond=0))
moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


@given(times, times, moments, st.sampled_from(["UTC", "Europe/Vienna", "Asia/Shanghai", "America/New_York"]))
def test_quiet_ends_after_it_began_and_something_is_quiet_until_then(
    begin: time, end: time, moment: datetime, zone: str
) -> None:
    rules = QuietRules((QuietHours(begin=begin, end=end),), ZoneInfo(zone))
    quiet = rules.at(moment)
    if quiet is not None:
        assert quiet.until > moment - timedelta(milliseconds=1)
        assert rules.at(moment + (quiet.until - moment) / 2) is not None
        if begin != end:
            assert rules.at(quiet.until) is None
